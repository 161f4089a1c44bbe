//! Nothing owed undelivered, nothing unowed delivered, whatever goes wrong.
//!
//! Many phones (by cursor, by device, and the stock clients), many writers, rights that come and go, and one trouble after the
//! other; then quiet; then each phone's debt is computed from the history of commits ([`judge`]).
//!
//! A bounded part runs with the suite, with a seed of its own. For long runs, and to repeat one:
//!
//! ```text
//! ROWCAST_OBLIGATION_ROUNDS=20 ROWCAST_OBLIGATION_SECONDS=60 ROWCAST_SEED=7 cargo test --test main obligation:: -- --nocapture
//! ```

mod faults;
mod judge;
mod kills;
mod phone;
#[cfg(debug_assertions)]
mod points;
mod rooms;
mod soak;
mod stalled;
mod stock;
mod upgrade;
mod world;
mod writers;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rowcast::task::Drain;
use tokio::time::{Duration, Instant};

use self::faults::{Fault, OF_BINARY, OF_PROCESS, Tally, strike};
use self::judge::{Judge, Verdict};
use self::world::{Cast, World, unhurried};
use self::writers::Scribe;
use crate::journey::revocation::history;
use crate::journey::revocation::writers::Operations;
use crate::support::Stock;

/// Of the suite: found nothing so far, and repeats as far as a race can.
const SEED: u64 = 20_251;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var_os(name)?;
    Some(text.to_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name} is no number")))
}

/// What goes wrong in a world, and what is written meanwhile.
#[derive(Clone, Copy)]
enum Trouble {
    /// These, for so long, under all writers.
    Faults(&'static [Fault], Duration),
    /// So many crashes at each failpoint, under all writers.
    #[cfg(debug_assertions)]
    Points(u64),
    /// So many kills, under a steady hundred rows a second.
    Kills(u64),
    /// An older program first, then these, under all writers.
    Programs(&'static [upgrade::Next]),
}

/// One world, from its beginning to its judgement.
async fn round(cast: Cast, trouble: Trouble, seed: u64) -> (Verdict, Tally) {
    let mut world = match trouble {
        Trouble::Programs(_) => upgrade::begin(cast).await,
        _ => World::begin(cast).await,
    };
    let (users, url) = (world.users.clone(), world.pg.url());
    let operations = Operations::default();
    let pace = number("ROWCAST_OBLIGATION_PACE").unwrap_or(60);
    let stop = Drain::new();
    let mut writing = Vec::new();
    for n in 0..5 {
        writing.push(Scribe::new(&url, seed.wrapping_add(n), pace, &users, &operations, &stop).await);
    }
    let mut writing = writing.into_iter();
    let mut next = || writing.next().expect("as many as were made");
    let mut dice = StdRng::seed_from_u64(seed);
    let make_trouble = async {
        match trouble {
            Trouble::Faults(kinds, lasts) => strike(&mut world, kinds, &mut dice, Instant::now() + lasts).await,
            #[cfg(debug_assertions)]
            Trouble::Points(times) => points::crash_at_each(&mut world, times, &mut dice).await,
            Trouble::Kills(times) => kills::kill_again_and_again(&mut world, times, &mut dice).await,
            Trouble::Programs(programs) => upgrade::one_after_the_other(&mut world, programs).await,
        }
        stop.drain();
    };
    if let Trouble::Kills(_) = trouble {
        tokio::join!(next().steady(100), make_trouble);
    } else {
        tokio::join!(
            next().rights(),
            next().rights(),
            next().content(),
            next().content(),
            next().rules(),
            make_trouble
        );
    }
    judged(world, &operations).await
}

/// After the quiet.
async fn judged(mut world: World, operations: &Operations) -> (Verdict, Tally) {
    world.let_all_in(operations).await;
    let mut stuck = world.caught_up("end").await;
    if stuck.is_empty() {
        for user in &world.users {
            let row = format!("insert into own (user_id) values ('{user}')");
            unhurried(&world.pg).await.batch_execute(&row).await.expect("a fresh row");
        }
        stuck = world.caught_up("fresh").await;
    }
    let records = world.records().await;
    if !stuck.is_empty() {
        let told: Vec<String> = stuck.iter().map(|number| records[*number].tail()).collect();
        println!("stuck:\n{}\nthe relay:\n{}", told.join("\n"), world.machine.log_tail());
    }
    let history = history::read_with_ends(&unhurried(&world.pg).await).await;
    let key = world.machine.cursor_key();
    let times = operations.begun();
    let judge = Judge::new(history, &times, key, world.receipted(), &world.tally, &records);
    let verdict = judge.judge(&records);
    if !verdict.violations.is_empty() && number("ROWCAST_OBLIGATION_LOG").is_some() {
        println!("the relay:\n{}", world.machine.log_tail());
    }
    if let Some(answered) = world.lies() {
        println!("{answered} Pings were answered by the proxy");
        assert!(answered > 0);
    }
    world.machine.stop().await;
    (verdict, world.tally.clone())
}

/// As many worlds as are asked for.
async fn rounds(name: &str, mut cast: Cast, trouble: Trouble) {
    if std::env::var_os("ROWCAST_OBLIGATION_ONLY").is_some_and(|only| only == "cursor") {
        (cast.devices, cast.stock, cast.member_devices, cast.member_stock) = (0, &[], 0, &[]);
    }
    let seed = number("ROWCAST_SEED").unwrap_or(SEED);
    let (mut all, mut faults) = (Verdict::default(), Tally::default());
    for n in 0..number("ROWCAST_OBLIGATION_ROUNDS").unwrap_or(1) {
        let seed = seed.wrapping_add(1000 * n);
        println!("{name}: ROWCAST_SEED={seed}");
        let (verdict, tally) = Box::pin(round(cast, trouble, seed)).await;
        println!("{name}, seed {seed}: {tally}\n  {verdict}");
        for (text, times) in &verdict.told {
            println!("  told {times} times: {text}");
        }
        for (reason, times) in &verdict.reasons {
            println!("  {times} gaps: {reason}");
        }
        for violation in verdict.violations.iter().take(4) {
            println!("  {violation}");
        }
        all.add(verdict);
        faults.add(&tally);
    }
    println!("{name}: {faults}\n  {all}");
    assert!(all.violations.is_empty(), "{} violations, the first: {}", all.violations.len(), all.violations[0]);
    assert!(all.received > 0);
}

/// How long each kind of trouble goes on: so many seconds in the suite.
fn lasting(kinds: &'static [Fault], seconds: u64) -> Trouble {
    Trouble::Faults(kinds, Duration::from_secs(number("ROWCAST_OBLIGATION_SECONDS").unwrap_or(seconds)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_phone_gets_what_it_is_owed_through_kills_and_cuts() {
    let stock = &[Stock::JavaScript, Stock::JavaScript, Stock::Python];
    let member_stock = &[Stock::JavaScript, Stock::Python];
    let cast = Cast { cursors: 2, devices: 1, stock, members: 1, member_devices: 1, member_stock, ..Cast::default() };
    rounds("the binary", cast, lasting(OF_BINARY, 25)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_phone_gets_what_it_is_owed_through_full_disks_and_wrong_clocks() {
    let cast = Cast { cursors: 2, devices: 1, members: 1, member_devices: 1, in_process: true, ..Cast::default() };
    rounds("within the process", cast, lasting(OF_PROCESS, 12)).await;
}

/// Proxies that answer Pings themselves prove nothing of the client; its heartbeats do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_stock_client_gets_what_it_is_owed_behind_a_proxy_that_answers_pings() {
    let (stock, member_stock) = (&[Stock::JavaScript, Stock::JavaScript], &[Stock::JavaScript]);
    let cast = Cast { devices: 1, stock, member_devices: 1, member_stock, lying: true, ..Cast::default() };
    let kinds = &[Fault::Kill, Fault::PhonesCut, Fault::PhonesStall, Fault::HalfOpen];
    rounds("behind a proxy", cast, lasting(kinds, 12)).await;
}

/// Without trouble, the judge itself is judged.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_phone_gets_what_it_is_owed_when_nothing_goes_wrong() {
    let cast = Cast { cursors: 2, devices: 1, members: 1, member_devices: 1, ..Cast::default() };
    rounds("in peace", cast, Trouble::Faults(&[], Duration::from_secs(4))).await;
}

/// A process that ends at any place of a row's journey, some passes after its start. A release build has no such places.
#[cfg(debug_assertions)]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_phone_gets_what_it_is_owed_when_the_relay_crashes_at_each_failpoint() {
    let cast = Cast { cursors: 1, devices: 1, members: 1, member_devices: 1, ..Cast::default() };
    rounds("failpoints", cast, Trouble::Points(number("ROWCAST_OBLIGATION_PASSES").unwrap_or(2))).await;
}

/// What no server of the kind could do for a stock client so far.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stock_client_that_names_its_device_loses_nothing_when_the_relay_is_killed_again_and_again() {
    let cast = Cast { stock: &[Stock::JavaScript], member_stock: &[Stock::JavaScript], ..Cast::default() };
    rounds("a stock client", cast, Trouble::Kills(number("ROWCAST_OBLIGATION_KILLS").unwrap_or(3))).await;
}
