//! The relay under load, on real sockets: the built binary, its clients in a process of their own (`tests/tools/phones.rs`),
//! and the writer here.
//!
//! Asserted: every phone got exactly the rows of its user, in commit order. Printed, because a machine that runs tests is no
//! place to assert them: the time from commit to client, memory and CPU time of the relay. To see them:
//!
//! ```text
//! cargo test --release --test main load:: -- --nocapture      # after: cargo build --release --example phones
//! ```
//!
//! `ROWCAST_LOAD_SECONDS` (30) is how long rows are written.

mod membership;
pub(crate) mod phones;
mod reconnect;
mod rooms;
pub(crate) mod usage;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use phones::{Phones, Summary};
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;
use usage::{cpu_time, resident_bytes};

use crate::support::{RelayProcess, TestPg};

const NOTIFICATIONS: &str = include_str!("../../sql/examples/notifications.sql");
const OWNERS: usize = 1000;
const BYSTANDERS: usize = 50;
const ROWS_PER_SECOND: u64 = 200;

/// When a row was sent to the database, and when its commit had returned: microseconds since 1970.
struct Written {
    owner: usize,
    sent: i64,
    committed: i64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_subscribers_each_get_exactly_their_rows() {
    phones::raise_file_limit();
    let pg = TestPg::start().await;
    pg.exec(NOTIFICATIONS).await;
    let relay = RelayProcess::start(&pg).await;
    let empty = resident_bytes(relay.pid());
    let users: Vec<String> = (0..OWNERS + BYSTANDERS).map(|n| format!("00000000-0000-4000-8000-{n:012x}")).collect();
    let mut phones = Phones::start(&relay.addr().to_string(), "notifications", &users);
    let seconds = phones.ready().await;
    let each = resident_bytes(relay.pid()).saturating_sub(empty) / users.len() as u64;
    println!("{} phones subscribed in {seconds:.2} s; {each} bytes of relay memory each", users.len());

    let client = pg.client().await;
    let before = cpu_time(relay.pid());
    let (written, took) = write(&client, &users).await;
    write_last(&client, &users).await;
    let summary = phones.summary().await;
    check(&users, &written, &summary, OWNERS);
    report(&written, &summary, took, cpu_time(relay.pid()).saturating_sub(before), relay.pid());
}

/// Rows for the owners in turn, each in a transaction of its own, at a steady rate. By id.
async fn write(client: &Client, users: &[String]) -> (BTreeMap<i64, Written>, Duration) {
    let seconds: u64 = std::env::var_os("ROWCAST_LOAD_SECONDS")
        .map_or(30, |text| text.to_str().and_then(|text| text.parse().ok()).expect("a number of seconds"));
    let sql = "insert into public.notifications (user_id, kind, body) values ($1::text::uuid, 'load', $2) returning id";
    let insert = client.prepare(sql).await.expect("a statement");
    let padding = "x".repeat(280);
    let mut written = BTreeMap::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(ROWS_PER_SECOND).expect("small"));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let started = Instant::now();
    for number in 0..usize::try_from(seconds * ROWS_PER_SECOND).expect("small") {
        tick.tick().await;
        // Another order in every round: 389 has no factor in common with a thousand.
        let owner = (number * 389 + number / OWNERS) % OWNERS;
        let sent = phones::unix_micros();
        let row = client.query_one(&insert, &[&users[owner], &format!("{sent} {padding}")]).await.expect("a row");
        written.insert(row.get(0), Written { owner, sent, committed: phones::unix_micros() });
    }
    (written, started.elapsed())
}

/// Everybody's last row, in later transactions: who got it had his chance to get whatever came before.
async fn write_last(client: &Client, users: &[String]) {
    for some in users.chunks(100) {
        let sql = "insert into public.notifications (user_id, kind, body) select user_id::uuid, 'last', $2 from unnest($1::text[]) user_id";
        client.execute(sql, &[&some, &phones::unix_micros().to_string()]).await.expect("rows");
    }
}

fn check(users: &[String], written: &BTreeMap<i64, Written>, summary: &Summary, owners: usize) {
    assert_eq!(summary.fault_count, 0, "{:#?}", summary.faults);
    let mut expected = vec![Vec::new(); users.len()];
    for (id, row) in written {
        expected[row.owner].push(*id);
    }
    assert_eq!(summary.phones.len(), users.len());
    for ((phone, user), expected) in summary.phones.iter().zip(users).zip(&expected) {
        assert_eq!(phone.user, *user);
        assert!(phone.complete, "{user} did not get the last row");
        let got: Vec<i64> = phone.rows.iter().map(|(id, _)| *id).collect();
        // The last one is the marker.
        assert_eq!(got[..got.len() - 1], expected[..], "{user} got other rows");
    }
    assert!(expected[..owners].iter().all(|ids| !ids.is_empty()) || written.len() < owners, "every owner had rows");
}

fn report(written: &BTreeMap<i64, Written>, summary: &Summary, took: Duration, cpu: Duration, pid: u32) {
    let arrivals = summary.phones.iter().flat_map(|phone| &phone.rows);
    let known: Vec<_> = arrivals.filter_map(|(id, at)| Some((written.get(id)?, *at))).collect();
    let rate = written.len() as f64 / took.as_secs_f64();
    let profile = if cfg!(debug_assertions) { "dev (not for figures)" } else { "release" };
    println!("profile {profile}, {} cores, {} rows at {rate:.0}/s", cores(), written.len());
    println!("commit returned -> client: {}", percentiles(known.iter().map(|(row, at)| at - row.committed)));
    // The first rows of a table cost more: its catalog is read and its plan is made.
    let slowest = known.iter().max_by_key(|(row, at)| at - row.committed);
    let later = known.iter().filter(|(row, _)| slowest.is_some_and(|(most, _)| row.sent > most.sent)).count();
    println!("the slowest was number {} of {}", known.len() - later, known.len());
    println!("insert sent -> client:     {}", percentiles(known.iter().map(|(row, at)| at - row.sent)));
    let share = cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
    println!("relay: {share:.1} % of one core, {} MiB", resident_bytes(pid) >> 20);
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A client may see the row before the writer's commit returns: such times are negative.
fn percentiles(micros: impl Iterator<Item = i64>) -> String {
    let mut all: Vec<i64> = micros.collect();
    all.sort_unstable();
    let at = |share: f64| {
        let index = (all.len() as f64 * share) as usize;
        all.get(index.min(all.len().saturating_sub(1))).map_or(f64::NAN, |micros| *micros as f64 / 1000.0)
    };
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(0.5), at(0.99), at(1.0))
}
