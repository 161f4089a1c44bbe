//! Half an hour of ordinary life, and now and then a cut: memory, file descriptors and the slot's lag stay what they were.
//!
//! ```text
//! ROWCAST_SOAK_MINUTES=30 cargo test --release --test main obligation::soak -- --nocapture
//! ```
//!
//! The newest part of the log is kept in memory, which fills up with what is written until `ROWCAST_LOG_MEMORY` is reached: that
//! is small here, and what must not grow is the rest. `ROWCAST_SOAK_LOG_MEMORY=64MiB` makes it what it is by default,
//! `ROWCAST_SOAK_RATE` writes more than a hundred rows a second.
//!
//! In the suite it takes some seconds, and only shows that it runs.

use std::fmt;
use std::net::SocketAddr;

use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rowcast::task::Drain;
use tokio::time::{Duration, Instant};

use super::world::{Cast, Machine, World, unhurried};
use super::writers::Scribe;
use super::{SEED, number};
use crate::journey::revocation::writers::Operations;
use crate::load::usage::resident_bytes;
use crate::support::pg::free_port;
use crate::support::relay::get;

/// Between two cuts of all phones' connections, about.
const CUT_EVERY: Duration = Duration::from_secs(40);
/// Growth that is none: of memory in bytes, of descriptors.
const SLACK_BYTES: u64 = 8 << 20;
const SLACK_FILES: u64 = 24;
/// Of the slot, in bytes, whenever it is looked at.
const LAG: u64 = 64 << 20;

/// What is looked at, over time.
struct Curve {
    name: &'static str,
    unit: u64,
    samples: Vec<u64>,
}

impl Curve {
    fn of(name: &'static str, unit: u64) -> Curve {
        Curve { name, unit, samples: Vec::new() }
    }

    /// The average of the second fifth, and of the last: the first is the time in which caches fill.
    fn ends(&self) -> (u64, u64) {
        let fifth = (self.samples.len() / 5).max(1);
        let average = |part: &[u64]| part.iter().sum::<u64>() / part.len().max(1) as u64;
        let second = &self.samples[fifth.min(self.samples.len() - 1)..(2 * fifth).min(self.samples.len())];
        (average(second), average(&self.samples[self.samples.len() - fifth..]))
    }

    fn most(&self) -> u64 {
        self.samples.iter().copied().max().unwrap_or_default()
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (early, late) = self.ends();
        let (first, last) =
            (self.samples.first().copied().unwrap_or_default(), self.samples.last().copied().unwrap_or_default());
        let [first, last, most, early, late] = [first, last, self.most(), early, late].map(|value| value / self.unit);
        write!(f, "{}: first {first}, last {last}, max {most}; second fifth {early}, last fifth {late}", self.name)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_and_files_and_lag_do_not_grow_with_time() {
    let minutes = number("ROWCAST_SOAK_MINUTES");
    let lasts = minutes.map_or(Duration::from_secs(8), |minutes| Duration::from_secs(60 * minutes));
    let cast = Cast { cursors: 5, devices: 5, forgetful: true, ..Cast::default() };
    let mut world = World::begin(cast).await;
    let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let Machine::Binary(relay) = &mut world.machine else { unreachable!("the binary was asked for") };
    assert!(relay.stop().await.success(), "{}", relay.log());
    let log_memory = std::env::var_os("ROWCAST_SOAK_LOG_MEMORY").and_then(|text| text.into_string().ok());
    relay.set("ROWCAST_LOG_MEMORY", log_memory.as_deref().unwrap_or("4MiB"));
    relay.set("ROWCAST_ADMIN_ADDR", &admin.to_string());
    relay.start_again().await;
    // Nobody reads it here, and it keeps WAL.
    let client = unhurried(&world.pg).await;
    client.batch_execute("select pg_drop_replication_slot('history')").await.expect("dropped");
    let (operations, stop) = (Operations::default(), Drain::new());
    let (users, url) = (world.users.clone(), world.pg.url());
    let mut writing = Vec::new();
    for n in 0..4 {
        writing.push(Scribe::new(&url, SEED + n, 60, &users, &operations, &stop).await);
    }
    let mut writing = writing.into_iter();
    let mut next = || writing.next().expect("as many as were made");
    let live = async {
        let curves = watch(&world, admin, lasts).await;
        stop.drain();
        curves
    };
    let rate = number("ROWCAST_SOAK_RATE").map_or(100, |rate| u32::try_from(rate).expect("small"));
    let ((), (), (), (), curves) =
        tokio::join!(next().rights(), next().content(), next().steady(rate), next().rules(), live);
    let stuck = world.caught_up("end").await;
    let records = world.records().await;
    let rows: u64 = records.iter().map(|record| record.rows).sum();
    println!("soak of {lasts:?}: {} phones received {rows} rows", records.len());
    for curve in &curves {
        println!("  {curve}");
    }
    world.machine.stop().await;
    assert!(stuck.is_empty(), "{stuck:?} did not get the last row");
    let [_, files, lag, log, memory, ..] = &curves;
    assert!(lag.most() < LAG, "{lag}");
    assert!(log.most() > 0, "{log}");
    if minutes.is_some() {
        let ((early, late), (few, many)) = (memory.ends(), files.ends());
        assert!(late <= early + early / 8 + SLACK_BYTES, "{memory}");
        assert!(many <= few + SLACK_FILES, "{files}");
    }
}

async fn watch(world: &World, admin: SocketAddr, lasts: Duration) -> [Curve; 7] {
    let mut curves = [
        Curve::of("resident, KiB", 1024),
        Curve::of("file descriptors", 1),
        Curve::of("slot lag, bytes", 1),
        Curve::of("the log in memory, KiB", 1024),
        Curve::of("resident without that, KiB", 1024),
        Curve::of("the log on disk, KiB", 1024),
        Curve::of("facts, KiB", 1024),
    ];
    let Machine::Binary(relay) = &world.machine else { unreachable!("the binary was asked for") };
    let client = unhurried(&world.pg).await;
    let mut dice = StdRng::seed_from_u64(SEED);
    let begun = Instant::now();
    let every = (lasts / 200).clamp(Duration::from_millis(200), Duration::from_secs(5));
    let mut cut_at = begun + CUT_EVERY;
    while begun.elapsed() < lasts {
        tokio::time::sleep(every).await;
        let sql = "select pg_wal_lsn_diff(pg_current_wal_flush_lsn(), confirmed_flush_lsn)::bigint \
                   from pg_replication_slots where slot_name = 'rowcast'";
        let lag: i64 = client.query_one(sql, &[]).await.expect("the slot").get(0);
        let files = std::fs::read_dir(format!("/proc/{}/fd", relay.pid())).map_or(0, Iterator::count);
        let metrics = get(admin, "/metrics").await.map(|(_, text)| text).unwrap_or_default();
        let metric = |name: &str| {
            let lines = metrics.lines().filter_map(|line| line.split_once(' '));
            lines.filter(|(sample, _)| *sample == name).find_map(|(_, value)| value.parse().ok()).unwrap_or_default()
        };
        let (resident, log) = (resident_bytes(relay.pid()), metric("rowcast_log_memory_bytes"));
        let samples = [
            resident,
            files as u64,
            u64::try_from(lag).unwrap_or_default(),
            log,
            resident.saturating_sub(log),
            metric("rowcast_log_size_bytes"),
            metric("rowcast_fact_size_bytes"),
        ];
        curves.iter_mut().zip(samples).for_each(|(curve, sample)| curve.samples.push(sample));
        if Instant::now() > cut_at {
            world.phones.cut();
            cut_at = Instant::now() + CUT_EVERY.mul_f64(0.5 + dice.random::<f64>());
        }
    }
    curves
}
