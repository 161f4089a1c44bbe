//! Everybody comes back at the same time, after an outage in which rows went on: how long until all have what they missed, what
//! that costs the relay, and that the database is asked nothing for it.
//!
//! Asserted: each phone got exactly its rows, each once, over both connections; while they caught up the relay sent Postgres no
//! statement but those that it sends all the time; and in a release build, a device that comes for the first time is subscribed
//! long before the stock client would give up. To see the figures, in two client processes:
//!
//! ```text
//! cargo build --release --example phones
//! ROWCAST_LOAD_SUBSCRIBERS=10000 ROWCAST_LOAD_OUTAGE=60 ROWCAST_LOAD_RATE=500 \
//!     cargo test --release --test main load::reconnect -- --nocapture
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use super::membership::number;
use super::phones::{self, Phones, Summary};
use super::usage::{cpu_time, resident_bytes};
use super::{NOTIFICATIONS, Written, check, percentiles};
use crate::support::pg::TestPgOptions;
use crate::support::{Phone, RelayProcess, TestPg, Version, token};

/// The server notes each statement: when, of which program, and its text.
const NOTING: [(&str, &str); 6] = [
    ("logging_collector", "on"),
    ("log_directory", "log"),
    ("log_filename", "statements.log"),
    ("log_statement", "all"),
    ("log_line_prefix", "@%n %a@"),
    ("log_rotation_size", "0"),
];

/// A statement of the relay: when, in seconds since 1970, and its first words.
type Statement = (f64, String);

fn statements(log: &PathBuf) -> Vec<Statement> {
    let text = std::fs::read(log).expect("the server's log");
    let text = String::from_utf8_lossy(&text).into_owned();
    let statement = |line: &str| {
        let (head, message) = line.strip_prefix('@')?.split_once('@')?;
        let (at, program) = head.split_once(' ')?;
        let (kind, sql) = message.trim_start().strip_prefix("LOG:")?.trim_start().split_once(": ")?;
        let is_ours = program.starts_with("rowcast") && (kind == "statement" || kind.starts_with("execute"));
        let words: Vec<&str> = sql.split_whitespace().take(6).collect();
        is_ours.then(|| Some((at.parse().ok()?, words.join(" ")))).flatten()
    };
    text.lines().filter_map(statement).collect()
}

/// Rows for the users in turn, each in a transaction of its own, at a steady rate until told to stop. By id.
async fn write(client: Client, users: Arc<Vec<String>>, rate: usize, stop: Arc<AtomicBool>) -> BTreeMap<i64, Written> {
    let sql = "insert into public.notifications (user_id, kind, body) values ($1::text::uuid, 'load', $2) returning id";
    let insert = client.prepare(sql).await.expect("a statement");
    let padding = "x".repeat(280);
    let mut tick = tokio::time::interval(Duration::from_secs(1) / u32::try_from(rate).expect("small"));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut written = BTreeMap::new();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        // 7,919 has no factor in common with a round number.
        let owner = number * 7919 % users.len();
        number += 1;
        let sent = phones::unix_micros();
        let row = client.query_one(&insert, &[&users[owner], &format!("{sent} {padding}")]).await.expect("a row");
        written.insert(row.get(0), Written { owner, sent, committed: phones::unix_micros() });
    }
    written
}

/// When each phone had all rows that were committed before it was let back, microseconds after that.
fn caught_up(users: usize, written: &BTreeMap<i64, Written>, summary: &Summary, cut: i64, back: i64) -> Vec<i64> {
    let mut missed = vec![None; users];
    for (id, row) in written.iter().filter(|(_, row)| row.committed > cut && row.sent < back) {
        missed[row.owner] = Some(*id);
    }
    let phones = summary.phones.iter().zip(missed);
    let arrival = |(phone, last): (&phones::PhoneRecord, Option<i64>)| {
        let last = last?;
        phone.rows.iter().find(|(id, _)| *id == last).map(|(_, at)| at - back)
    };
    phones.filter_map(arrival).collect()
}

/// Between two devices that come for the first time.
const NEWCOMER_EVERY: Duration = Duration::from_millis(200);
/// Of the first connection of a device, from its begin until changes flow. What counts is that the stock client does not give up:
/// after 10 s without a reply it leaves and joins again, which in a storm makes more of it. With 10,000 it is one or two, most
/// of it in the kernel's queue, where nobody can tell who is new; of the subscriptions it has some turns for itself.
const NEWCOMER_WAITS: Duration = Duration::from_secs(7);

/// When it began, in microseconds since 1970; and what it took.
struct Newcomer {
    began: i64,
    connected: i64,
    subscribed: i64,
}

/// Devices that were never there, one after the other, whoever is before them. Each tells when it began and how long it took
/// until it was connected, and until it was subscribed, in microseconds.
async fn newcomers(base: String, stop: Arc<AtomicBool>) -> Vec<Newcomer> {
    let mut tick = tokio::time::interval(NEWCOMER_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut coming: Vec<JoinHandle<Newcomer>> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        tick.tick().await;
        let number = coming.len();
        let base = format!("{base}/device/newcomer-{number}");
        coming.push(rowcast::task::spawn("newcomer", async move {
            let token = token::user(&format!("11111111-0000-4000-8000-{number:012x}"));
            let entries = json!([{ "event": "*", "schema": "public", "table": "notifications" }]);
            let began = phones::unix_micros();
            let mut phone = Phone::connect(&base, &token, Version::V2).await;
            let connected = phones::unix_micros() - began;
            phone.subscribe("load", &entries).await;
            Newcomer { began, connected, subscribed: phones::unix_micros() - began }
        }));
    }
    let mut all = Vec::new();
    for one in coming {
        all.push(one.await.expect("subscribed"));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_come_back_at_once_and_get_what_they_missed_without_a_question_to_the_database() {
    let (count, rate) = (number("ROWCAST_LOAD_SUBSCRIBERS", 200), number("ROWCAST_LOAD_RATE", 200));
    let outage = Duration::from_secs(number("ROWCAST_LOAD_OUTAGE", 5) as u64);
    phones::raise_file_limit();
    let options = TestPgOptions { settings: NOTING.to_vec(), ..TestPgOptions::default() };
    let pg = TestPg::with(options).await;
    pg.exec(NOTIFICATIONS).await;
    let relay = RelayProcess::start(&pg).await;
    let users: Vec<String> = (0..count).map(|n| format!("00000000-0000-4000-8000-{n:012x}")).collect();
    let users = Arc::new(users);
    let address = relay.addr().to_string();
    let mut processes: Vec<Phones> =
        users.chunks(count.div_ceil(2)).map(|users| Phones::start_resuming(&address, "notifications", users)).collect();
    for phones in &mut processes {
        phones.ready().await;
    }
    let client = pg.client().await;
    client.batch_execute("set log_statement = 'none'").await.expect("a superuser");
    let stop = Arc::new(AtomicBool::new(false));
    let writer = rowcast::task::spawn("writer", write(client, users.clone(), rate, stop.clone()));
    let devices = rowcast::task::spawn("newcomers", newcomers(relay.base(), stop.clone()));
    // What happens while time passes is what is measured here.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cut = phones::unix_micros();
    processes.iter_mut().for_each(|phones| phones.cut(true));
    tokio::time::sleep(outage).await;
    let (back, cpu, started) = (phones::unix_micros(), cpu_time(relay.pid()), Instant::now());
    processes.iter_mut().for_each(|phones| phones.cut(false));
    let mut seconds: f64 = 0.0;
    for phones in &mut processes {
        seconds = seconds.max(phones.back().await);
    }
    let joined_cpu = cpu_time(relay.pid()).saturating_sub(cpu);
    let (joined, most) = (started.elapsed(), resident_bytes(relay.pid()) >> 20);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await.expect("rows");
    let devices = devices.await.expect("devices");
    let client = pg.client().await;
    client.batch_execute("set log_statement = 'none'").await.expect("a superuser");
    super::write_last(&client, &users).await;
    let mut summary = Summary { phones: Vec::new(), faults: Vec::new(), fault_count: 0 };
    for phones in processes {
        let part = phones.summary().await;
        summary.phones.extend(part.phones);
        summary.faults.extend(part.faults);
        summary.fault_count += part.fault_count;
    }
    check(&users, &written, &summary, count);

    let times = caught_up(count, &written, &summary, cut, back);
    let missed = written.values().filter(|row| row.committed > cut && row.sent < back).count();
    let profile = if cfg!(debug_assertions) { "dev (not for figures)" } else { "release" };
    println!("profile {profile}: {count} phones, {outage:?} without a network, {rate} rows/s: {missed} rows missed");
    println!("all subscribed again after {seconds:.2} s; relay CPU {joined_cpu:.2?} in {joined:.2?}, {most} MiB");
    println!("network back -> caught up: {}", percentiles(times.iter().copied()));
    let first = |from: i64, to: i64| devices.iter().filter(move |device| (from..to).contains(&device.began));
    let all_back = back + (seconds * 1e6) as i64;
    for (when, from, to) in [("before", 0, back), ("begun while all come back", back, all_back)] {
        let connected = percentiles(first(from, to).map(|device| device.connected));
        let subscribed = percentiles(first(from, to).map(|device| device.subscribed));
        println!("a device's first connection, {when}: connected {connected}; subscribed {subscribed}");
    }
    let until = back + times.iter().max().copied().unwrap_or(0).max((seconds * 1e6) as i64);
    let all = statements(&pg.data().join("log/statements.log"));
    let between = |from: i64, to: i64| {
        let range = (from as f64 / 1e6)..(to as f64 / 1e6);
        all.iter().filter(move |(at, _)| range.contains(at)).map(|(_, sql)| sql.as_str())
    };
    let usual: BTreeSet<&str> = between(i64::MIN / 2, back).collect();
    let others: Vec<&str> = between(back, until).filter(|sql| !usual.contains(sql)).collect();
    let per_second = |from, to| between(from, to).count() as f64 * 1e6 / (to - from) as f64;
    println!(
        "statements of the relay: {:.1}/s during the outage, {:.1}/s while all caught up, {} of other kinds",
        per_second(cut, back),
        per_second(back, until),
        others.len()
    );
    assert!(!all.is_empty(), "the server notes no statements of the relay");
    assert!(others.is_empty(), "{others:#?}");
    // Not by how many came back: what runs all the time, and what a moment's delay may have put together.
    let seconds = (until - back) as f64 / 1e6;
    let usually = per_second(cut, back) * seconds;
    let many = per_second(back, until) * seconds;
    assert!(many < 3.0 * usually + 60.0, "{many} statements where {usually:.0} are usual");
    if !cfg!(debug_assertions) {
        let most = first(back, i64::MAX).map(|device| device.subscribed).max().unwrap_or_default();
        assert!(most < NEWCOMER_WAITS.as_micros() as i64, "a device waited {most} µs for its first subscription");
    }
}
