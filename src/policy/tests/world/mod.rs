//! A world of generated policies, rows, claims and histories of facts, in which our verdict must be that of a SELECT.
//!
//! Each round draws a policy for `docs` from a grammar (`grammar`), policies for the tables it looks into, and a few
//! transactions (`schema`). After each transaction every row is judged for every principal: in memory with the facts as the
//! real stream of the server left them, before and after the transaction, sometimes by asking, and by a plain SELECT as the
//! role with the claims. Who is permitted must also be found by the rule's keys: an index that misses him loses an event.
//!
//! Allowed to differ: where an expression may raise, the planner decides whether it does, and a row may be withheld that a
//! SELECT shows. Never the other way round.
//!
//! Everything follows from a seed, which is printed. To reach a million verdicts, or to see one seed again:
//!
//! ```text
//! ROWCAST_WORLD_VERDICTS=1000000 [ROWCAST_WORLD_SEED=n] cargo test --release --lib policy::tests::world -- --nocapture
//! ```

mod grammar;
mod judge;
mod schema;

use std::time::Instant;

use judge::{Counts, Fault, World};

/// Rounds of the suite, and those that are new each time.
const ROUNDS: u64 = 60;
const NEW_ROUNDS: u64 = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name).map(|text| text.to_str().and_then(|text| text.parse().ok()).expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_memory_says_of_generated_policies_and_facts_a_select_says_too() {
    let (one, wanted) = (number("ROWCAST_WORLD_SEED"), number("ROWCAST_WORLD_VERDICTS"));
    let new: u64 = rand::random_range(1_000_000..1_000_000_000);
    // A long run begins where nobody was.
    let first = one.unwrap_or(if wanted.is_some() { new } else { 1 });
    println!("world: from seed {first}, then from seed {new}");
    let mut world = World::new().await;
    let (started, mut counts, mut rounds) = (Instant::now(), Counts::default(), 0);
    let more = |rounds: u64, counts: &Counts| match (wanted, one) {
        (Some(wanted), _) => counts.verdicts < wanted,
        (None, Some(_)) => rounds < 1,
        (None, None) => rounds < ROUNDS + NEW_ROUNDS,
    };
    while more(rounds, &counts) {
        let seed = if wanted.is_none() && one.is_none() && rounds >= ROUNDS { new + rounds } else { first + rounds };
        let differences = world.round(seed, None, &mut counts).await;
        if let Some(difference) = differences.first() {
            panic!("{} differences with ROWCAST_WORLD_SEED={seed}; the first:\n{difference}", differences.len());
        }
        rounds += 1;
    }
    println!("world: {rounds} rounds from seed {first} in {:.1?}: {counts:#?}", started.elapsed());
    if rounds > ROUNDS / 2 {
        assert!(counts.pure * 20 >= rounds * 10, "too few policies are judged in memory: {counts:?}");
        assert!(counts.permits * 20 > counts.verdicts, "too few permits: {counts:?}");
        assert!(counts.asked > 50, "{counts:?}");
        // What is not compared, or where an error makes a difference, is the exception.
        let rare = |count: u64, of: u64, share: u64| count * share < of;
        assert!(rare(counts.withheld, counts.verdicts, 50), "too much is withheld: {counts:?}");
        assert!(rare(counts.no_for_raise + counts.raise_for_no, counts.verdicts, 20), "{counts:?}");
        assert!(rare(counts.unsure, counts.verdicts, 20), "too much is left to Postgres: {counts:?}");
        let asked_unlike = counts.asked_yes_for_raise + counts.asked_no_for_raise + counts.asked_raise_for_no;
        assert!(rare(counts.asked_withheld + asked_unlike, counts.asked, 20), "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_faults_are_found() {
    let mut world = World::new().await;
    for fault in Fault::ALL {
        let mut counts = Counts::default();
        let mut found = false;
        for seed in 1..=ROUNDS {
            found |= !world.round(seed, Some(fault), &mut counts).await.is_empty();
            if found {
                break;
            }
        }
        assert!(found, "{fault:?} was not noticed in {ROUNDS} rounds");
    }
}
