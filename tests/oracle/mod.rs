//! The oracle: whatever Rowcast says of a generated row to a generated subscriber, Postgres must say too.
//!
//! In memory ([`check`]): thousands of (row, subscriber) and (row, filter) a second, on images that Postgres printed. End to end
//! ([`wire`]): the real relay, a real stream, real sockets. What must be equal:
//!
//! * the verdict, and a SELECT of the row as the role with the claims;
//! * a filter's answer, and that of the SQL it stands for, with the column's own collation; a refused filter is one that
//!   Postgres refuses too;
//! * the JSON, and `to_jsonb` of what the role may read; of bytea without its prefix.
//!
//! Allowed to differ: of a claim that can't be cast, several policies may raise or not, as the planner likes; then a row may be
//! withheld that a SELECT shows. Columns that the stream doesn't send match no filter, and deny if a policy reads them. A literal
//! too long for a domain is refused, where an explicit cast would cut it.
//!
//! Everything follows from a seed, which is printed. To let it run for an hour, or to see one seed again:
//!
//! ```text
//! ROWCAST_ORACLE_SECONDS=3600 [ROWCAST_ORACLE_SEED=n] cargo test --release --test main oracle:: -- --nocapture
//! ```

mod check;
mod claims;
mod column;
mod dice;
mod evaluator;
mod filters;
mod json;
mod policies;
mod round;
mod rules;
mod shrink;
mod stage;
mod table;
mod wire;

use std::time::{Duration, Instant};

use check::{Counts, check};
use evaluator::{Evaluator, Fault};
use round::Round;
use shrink::minimise;
use stage::Stage;

/// The suite's own seeds, and one more that is new each time. A run by time begins at a random one.
const SEEDS: std::ops::Range<u64> = 1..25;

/// Likewise of the scenes end to end.
const SCENES: std::ops::Range<u64> = 1..3;

/// Seeds to try: those of the suite, or as many as the given time allows.
struct Budget {
    seeds: Box<dyn Iterator<Item = u64>>,
    until: Option<Instant>,
}

impl Budget {
    fn read(own: std::ops::Range<u64>) -> Budget {
        let number = |name: &str| {
            std::env::var_os(name).map(|text| text.to_str().and_then(|t| t.parse().ok()).expect("a number"))
        };
        let random: u64 = rand::random_range(1_000_000..1_000_000_000);
        let seed: Option<u64> = number("ROWCAST_ORACLE_SEED");
        match number("ROWCAST_ORACLE_SECONDS") {
            Some(seconds) => Budget {
                seeds: Box::new(seed.unwrap_or(random)..),
                until: Some(Instant::now() + Duration::from_secs(seconds)),
            },
            None => Budget {
                seeds: match seed {
                    Some(seed) => Box::new(std::iter::once(seed)),
                    None => Box::new(own.chain([random])),
                },
                until: None,
            },
        }
    }

    fn next(&mut self) -> Option<u64> {
        if self.until.is_some_and(|until| Instant::now() >= until) { None } else { self.seeds.next() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory_we_say_of_every_row_and_filter_what_postgres_says() {
    let mut stage = Stage::new().await;
    let mut budget = Budget::read(SEEDS);
    let (started, mut counts, mut rounds) = (Instant::now(), Counts::default(), 0u32);
    while let Some(seed) = budget.next() {
        println!("oracle: seed {seed}");
        let round = Round::generate(seed);
        let (found, differences) =
            check(&mut stage, &round, Evaluator(None)).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        counts.add(found);
        rounds += 1;
        if let Some(first) = differences.first() {
            let least = minimise(&mut stage, &round, first, Evaluator(None)).await;
            panic!("{} differences with ROWCAST_ORACLE_SEED={seed}; the first:\n{least}", differences.len());
        }
    }
    let took = started.elapsed();
    let rate = counts.cases() as f64 / took.as_secs_f64();
    println!("oracle: {rounds} tables in {took:.1?}, {rate:.0} cases/s, {counts:?}");
    // Lest it rots into comparing nothing.
    if rounds >= 10 {
        assert!(counts.filters > 5_000 && counts.in_memory > 3_000 && counts.asked > 100, "{counts:?}");
        assert!(counts.permits > 1_000 && counts.refused > 20, "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn end_to_end_each_subscriber_receives_what_postgres_says_he_may_see() {
    let mut budget = Budget::read(SCENES);
    let (started, mut counts, mut scenes) = (Instant::now(), wire::Counts::default(), 0u32);
    while let Some(seed) = budget.next() {
        println!("oracle: scene {seed}");
        match wire::run(seed, None).await {
            Ok(found) => counts.add(found),
            Err(why) => panic!("end to end, with ROWCAST_ORACLE_SEED={seed}: {why}"),
        }
        scenes += 1;
    }
    println!("oracle: {scenes} scenes in {:.1?}, {counts:?}", started.elapsed());
    assert!(counts.owed > 100 * scenes as usize, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_is_lost_repeated_or_changed_is_found() {
    let spoils: [(wire::Spoil, &str); 3] = [
        (|received| drop(received.pop()), "1 missing, 0 too many"),
        (|received| received.extend(received.first().cloned()), "0 missing, 1 too many"),
        (|received| received[0].data["record"]["n"] = "another".into(), "1 missing, 1 too many"),
    ];
    for (spoil, says) in spoils {
        let why = wire::run(SCENES.start, Some(spoil)).await.expect_err(says);
        assert!(why.contains(says), "{why}");
    }
}

/// The oracle must find the fault within the suite's own seeds.
async fn is_found(fault: Fault) {
    let mut stage = Stage::new().await;
    for seed in SEEDS {
        let round = Round::generate(seed);
        let (_, differences) = check(&mut stage, &round, Evaluator(Some(fault))).await.expect("the round's SQL runs");
        if let Some(first) = differences.first() {
            let least = minimise(&mut stage, &round, first, Evaluator(Some(fault))).await;
            println!("{fault:?}: seed {seed}, {} differences; the first:\n{least}", differences.len());
            return;
        }
    }
    panic!("{fault:?} is not found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_compared_by_its_bytes_under_another_collation_is_found() {
    is_found(Fault::Bytes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_taken_for_false_under_not_is_found() {
    is_found(Fault::NullIsFalse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blanks_of_char_compared_as_text_are_found() {
    is_found(Fault::Padding).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_compared_without_case_are_found() {
    is_found(Fault::OwnerCase).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_owner_given_to_who_has_no_claim_are_found() {
    is_found(Fault::NobodyOwnsNull).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_judged_by_its_old_row_is_found() {
    is_found(Fault::OldRow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_the_role_may_not_read_left_in_the_json_is_found() {
    is_found(Fault::Unmasked).await;
}
