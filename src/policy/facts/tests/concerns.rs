//! Whoever a transaction judges otherwise is found by the rows that it changes, whatever the rule; and seldom is that everybody.

use std::collections::BTreeSet;

use ahash::RandomState;

use super::Dice;
use super::cases::{col, member, membership, ready, rule, transaction};
use super::folding::Seam;
use super::memory::uuid;
use super::rules::{Rules, judged, viewer};
use super::world::{Cell, Class};
use crate::change::Value;
use crate::policy::facts::{Concerns, FactBinding, Facts, Numbers, Side};
use crate::policy::rule::{CompareOp, Expr, Rule, Scalar, Subquery, Truth, Viewer};

/// What some transactions came to.
#[derive(Default, Debug)]
struct Tally {
    rules: u64,
    with_concerns: u64,
    cases: u64,
    changed: u64,
    /// Who was judged otherwise without being found.
    missed: Vec<String>,
    /// A transaction was known not to concern somebody.
    spared: u64,
}

struct Case {
    row: Vec<Cell>,
    viewer: Viewer,
    truth: Truth,
    numbers: BTreeSet<u64>,
}

fn column(row: &[Cell]) -> impl Fn(usize) -> Value<'static> {
    let row = row.to_vec();
    move |at| row[at].map_or(Value::Null, |text| Value::Text(text.as_bytes()))
}

fn truth(rule: &Rule, binding: &FactBinding, facts: &Facts, row: &[Cell], viewer: &Viewer) -> Truth {
    match rule.truth(binding, facts, Side::After, &column(row), viewer) {
        // A policy ends with one of them.
        Truth::Null => Truth::False,
        truth => truth,
    }
}

/// One transaction, of which everybody who is judged otherwise must be found. `omit`: one of the lookups is left out.
fn check(seed: u64, dice: &mut Dice, seam: &mut Seam, rules: &[Rule], omit: Option<usize>, tally: &mut Tally) {
    let state = RandomState::with_seeds(1, 2, 3, 4);
    let mut known: Vec<(&Rule, FactBinding, Option<Concerns>, Vec<Case>)> = Vec::new();
    for (set, rule) in rules.iter().enumerate() {
        let binding = seam.facts.bind(rule).expect("ready");
        let concerns = seam.facts.concerns_of(rule, &binding);
        let concerns = match omit {
            None => concerns,
            Some(omit) => concerns.and_then(|concerns| concerns.without(omit)),
        };
        tally.rules += 1;
        tally.with_concerns += u64::from(concerns.is_some());
        let case = |row: Vec<Cell>, viewer: Viewer| {
            let mut numbers = BTreeSet::new();
            if let Some(concerns) = &concerns {
                let set = Numbers { state: &state, set: set as u64 };
                concerns.of_viewer(&viewer, &column(&row), set, &mut |number| {
                    numbers.insert(number);
                });
            }
            let truth = truth(rule, &binding, &seam.facts, &row, &viewer);
            Case { row, viewer, truth, numbers }
        };
        let cases = (0..12).map(|_| case(judged(dice), viewer(dice))).collect();
        known.push((rule, binding, concerns, cases));
    }
    let tx = seam.world.transaction(dice);
    seam.facts.begin(&tx).expect("it can be read");
    for (set, (rule, binding, concerns, cases)) in known.iter().enumerate() {
        let Some(concerns) = concerns else { continue };
        let mut found = BTreeSet::new();
        let set = Numbers { state: &state, set: set as u64 };
        let few = seam.facts.concerned(concerns, set, &mut |number| {
            found.insert(number);
        });
        for Case { row, viewer, truth: before, numbers } in cases {
            let after = truth(rule, binding, &seam.facts, row, viewer);
            let is_found = !few || !found.is_disjoint(numbers);
            tally.cases += 1;
            tally.changed += u64::from(after != *before);
            tally.spared += u64::from(!is_found && !found.is_empty());
            if after != *before && !is_found {
                let what = format!("seed {seed}: {before:?}, then {after:?}, row {row:?}, {rule:#?}, {concerns:#?}");
                tally.missed.push(what);
            }
        }
    }
    seam.facts.end();
}

fn eq(a: Scalar, b: Scalar) -> Expr {
    Expr::Compare(CompareOp::Eq, Class::Text.kind(), Box::new((a, b)))
}

/// What people write: somebody is in a room, by a claim, a column of the row or both; perhaps by way of another table.
fn plain(dice: &mut Dice) -> Rule {
    let key = |dice: &mut Dice| match dice.roll(3) {
        0 => eq(col(1, 0), Scalar::Claim(0)),
        1 => eq(col(1, 1), col(0, 1)),
        _ => Expr::And(vec![eq(col(1, 0), Scalar::Claim(0)), eq(col(1, 1), col(0, 1))]),
    };
    let own = key(dice);
    let (slots, condition) = match dice.one_in(2) {
        true => (vec![1], own),
        false => (vec![1, 2], Expr::And(vec![own, eq(col(2, 0), col(1, 0)), eq(col(2, 1), col(0, 0))])),
    };
    let sources = slots.len();
    let found = match dice.one_in(2) {
        true => Expr::Exists(Box::new(Subquery { slots, condition, outputs: Vec::new() })),
        false => {
            let outputs = vec![col(1, 1)];
            Expr::In(vec![(Class::Text.kind(), col(0, 0))], Box::new(Subquery { slots, condition, outputs }))
        }
    };
    let condition = if dice.one_in(4) { Expr::Not(Box::new(found)) } else { found };
    of_tables(condition, sources, dice)
}

fn of_tables(condition: Expr, sources: usize, dice: &mut Dice) -> Rule {
    let mut rule = Rules::rule(dice);
    while rule.sources.len() < sources {
        rule = Rules::rule(dice);
    }
    // The tables with two texts in front.
    let texts = |oid: u32| oid != 1002;
    let known: Vec<_> = rule.sources.iter().filter(|source| texts(source.table_oid)).cloned().collect();
    let Some(first) = known.first() else { return of_tables(condition, sources, dice) };
    rule.sources = (0..sources).map(|at| known.get(at).unwrap_or(first).clone()).collect();
    rule.condition = condition;
    rule
}

fn run(seeds: std::ops::Range<u64>, make: fn(&mut Dice) -> Rule, omit: Option<usize>) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let mut seam = Seam::new(&mut dice);
        let rules: Vec<Rule> = (0..4).map(|_| make(&mut dice)).collect();
        for _ in 0..6 {
            check(seed, &mut dice, &mut seam, &rules, omit, &mut tally);
        }
    }
    tally
}

#[test]
fn whoever_is_judged_otherwise_is_found() {
    for (make, known, spared) in [(Rules::rule as fn(&mut Dice) -> Rule, 2, 10), (plain, 1, 4)] {
        let tally = run(0..400, make, None);
        let Tally { rules, with_concerns, cases, changed, .. } = tally;
        let counts = format!("{with_concerns} of {rules} rules, {changed} of {cases} changed, {} spared", tally.spared);
        println!("{counts}");
        assert!(tally.missed.is_empty(), "{} were missed: {}", tally.missed.len(), tally.missed[0]);
        assert!(with_concerns * known >= rules && changed > 1000 && tally.spared * spared > cases, "{counts}");
    }
}

#[test]
fn a_lookup_that_is_left_out_is_noticed() {
    for omit in 0..2 {
        assert!(!run(0..60, Rules::rule, Some(omit)).missed.is_empty(), "lookup {omit}");
    }
    assert!(!run(0..60, plain, Some(0)).missed.is_empty());
}

#[test]
fn of_many_rows_it_is_not_asked_whom_each_concerns() {
    let state = RandomState::with_seeds(1, 2, 3, 4);
    let (mut facts, rule) = (ready(5000), rule(member(1, None), 1));
    let binding = facts.bind(&rule).expect("ready");
    let concerns = facts.concerns_of(&rule, &binding).expect("known");
    let found = |facts: &Facts| {
        let (mut found, numbers) = (0, Numbers { state: &state, set: 1 });
        facts.concerned(&concerns, numbers, &mut |_| found += 1).then_some(found)
    };
    assert_eq!((found(&facts), facts.changing(&[1001])), (Some(0), 0), "no transaction is at hand");
    let row = [Some(&*uuid(0)), Some(&*uuid(1)), None].map(|cell| cell.map(str::to_owned));
    let row: Vec<Option<&str>> = row.iter().map(Option::as_deref).collect();
    facts.begin(&transaction(200, &[(b'I', &membership(), &[(b'N', &row)])])).expect("it can be read");
    assert_eq!(
        (found(&facts), facts.changing(&[1001]), facts.changing(&[1002])),
        (Some(2), 1, 0),
        "he, and who is in doubt"
    );
    facts.end();
    assert_eq!((found(&facts), facts.changing(&[1001])), (Some(0), 0));
    facts.begin(&transaction(201, &[(b'T', &membership(), &[])])).expect("it can be read");
    assert_eq!(found(&facts), None);
}
