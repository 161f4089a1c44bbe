//! What one verdict and one lookup cost: `cargo test --release --lib facts::tests::speed -- --nocapture`. Unoptimized it only
//! runs, over few rows.

use std::hint::black_box;
use std::time::Instant;

use super::cases::{FIRST, ready, rule};
use super::cases::{col, eq, member, viewer};
use super::memory::uuid;
use crate::change::Value;
use crate::policy::facts::{FactState, Side};
use crate::policy::rule::{Expr, Rule, Scalar, Subquery, Truth};

/// Nanoseconds per call: the least of some runs.
fn measure(mut call: impl FnMut(u64)) -> u128 {
    let calls = if cfg!(debug_assertions) { 20 } else { 200_000 };
    let mut run = |_| {
        let start = Instant::now();
        (0..calls).for_each(&mut call);
        start.elapsed().as_nanos() / u128::from(calls)
    };
    (0..5).map(&mut run).min().unwrap_or_default()
}

fn two_levels() -> Rule {
    let inner = Expr::And(vec![eq(col(2, 0), col(1, 0)), eq(col(2, 1), Scalar::Claim(0))]);
    let inner = Expr::Exists(Box::new(Subquery { slots: vec![2], condition: inner, outputs: Vec::new() }));
    let outer =
        Subquery { slots: vec![1], condition: Expr::And(vec![eq(col(1, 1), col(0, 1)), inner]), outputs: Vec::new() };
    rule(Expr::Exists(Box::new(outer)), 2)
}

#[test]
fn a_verdict_costs_what_it_cost_with_few_facts() {
    let large: u64 = if cfg!(debug_assertions) { 5_000 } else { 1_000_000 };
    for rows in [1000, large] {
        let facts = ready(rows);
        let owner = rule(eq(col(0, 1), Scalar::Claim(0)), 0);
        let rules = [("owner", owner), ("membership", rule(member(1, None), 1)), ("two levels", two_levels())];
        let users: Vec<(String, String, _)> = (0..1024)
            .map(|i| i * (rows / 1024).max(1) % rows)
            .map(|user| (uuid(user / 100), uuid(FIRST + user), viewer(FIRST + user)))
            .collect();
        for (name, rule) in rules {
            let (binding, keys) = (facts.bind(&rule).expect("ready"), rule.keys().expect("keys"));
            let truth = measure(|i| {
                let (team, user, viewer) = &users[i as usize % users.len()];
                let column = |at: usize| Value::Text(if at == 0 { team.as_bytes() } else { user.as_bytes() });
                let truth = rule.truth(&binding, &facts, Side::After, &column, viewer);
                assert_eq!(black_box(truth), Truth::True);
            });
            let lookup = measure(|i| {
                let (team, user, _) = &users[i as usize % users.len()];
                let column = |at: usize| Value::Text(if at == 0 { team.as_bytes() } else { user.as_bytes() });
                let mut found = 0;
                keys.of_row(&binding, &facts, Side::After, &column, 1000, &mut |_, _| found += 1);
                assert!(black_box(found) > 0);
            });
            println!("{rows} facts, {name}: {truth} ns a verdict, {lookup} ns to find the candidates");
        }
        if let FactState::Ready { rows, bytes } = facts.state(1001) {
            println!("{rows} facts: {bytes} bytes, {} each", bytes as u64 / rows);
        }
    }
}
