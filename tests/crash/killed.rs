//! SIGKILL.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;
use rowcast::change::Lsn;
use rowcast::clock::Clock;
use rowcast::log::{LogConfig, RealFiles};
use rowcast::metrics::Metrics;

use super::witness::Witness;
use super::writers::Writers;
use super::{assert_same, create_table, dice, logged};
use crate::support::{RelayProcess, TestPg};

/// While it sets itself up in a database that doesn't know it.
const FIRST_KILLS: u32 = 3;
const KILLS: u32 = 20;
/// Longer than a start takes, so that some are killed before, some while and some just after they begin to stream.
const START: Duration = Duration::from_millis(400);
const RUN: Duration = Duration::from_millis(800);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_holds_exactly_the_committed_rows_after_20_kills() {
    let mut dice = dice();
    let pg = TestPg::start().await;
    create_table(&pg).await;
    let mut witness = Witness::start(&pg).await;
    let mut relay = RelayProcess::new(&pg);
    for _ in 0..FIRST_KILLS {
        kill_starting(&mut relay, &mut dice).await;
    }
    // Rows count from the moment at which the relay's slot is there.
    relay.start_again().await;
    relay.kill().await;
    let writers = Writers::start(&pg, &mut dice).await;
    let mut starting = 0;
    for _ in 0..KILLS {
        if dice.random_bool(0.3) {
            kill_starting(&mut relay, &mut dice).await;
            starting += 1;
        } else {
            relay.start_again().await;
            tokio::time::sleep(RUN.mul_f64(dice.random())).await;
            relay.kill().await;
        }
    }
    relay.start_again().await;
    let rows = writers.stop().await;
    let end = current_lsn(&pg).await;
    caught_up(&pg, &relay, end).await;
    let status = relay.stop().await;
    assert!(status.success(), "{status}\n{}", relay.log());

    let config = LogConfig::new(relay.data_dir().join("log"));
    let metrics = Arc::new(Metrics::new());
    let opened = rowcast::log::open(config, Arc::new(RealFiles), Clock::system(), metrics).expect("the log opens");
    assert!(opened.log.end() >= end, "the log ends at {}, before {end}", opened.log.end());
    let (logged, committed) = (logged(&opened.log, opened.log.floor()).await, witness.committed().await);
    assert_same(&logged, committed);
    let count: usize = committed.iter().map(|transaction| transaction.ids.len()).sum();
    let kept: i64 = pg.client().await.query_one("select count(*) from steps", &[]).await.expect("a row").get(0);
    assert_eq!((count as u64, kept.cast_unsigned()), (rows, rows), "the witness saw what the writers committed");
    println!(
        "{rows} rows in {} transactions survived {KILLS} kills, {starting} of them during a start",
        committed.len()
    );
}

/// Starts a relay and kills it at some moment of its start.
async fn kill_starting(relay: &mut RelayProcess, dice: &mut StdRng) {
    relay.spawn();
    tokio::time::sleep(START.mul_f64(dice.random())).await;
    relay.kill().await;
}

async fn current_lsn(pg: &TestPg) -> Lsn {
    let sql = "select pg_current_wal_insert_lsn()::text";
    let text: String = pg.client().await.query_one(sql, &[]).await.expect("a row").get(0);
    text.parse().expect("an LSN")
}

/// Waits until the relay has confirmed all up to there.
async fn caught_up(pg: &TestPg, relay: &RelayProcess, end: Lsn) {
    let client = pg.client().await;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let sql = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'rowcast'";
        let confirmed: String = client.query_one(sql, &[]).await.expect("the relay's slot").get(0);
        if confirmed.parse::<Lsn>().expect("an LSN") >= end {
            return;
        }
        assert!(Instant::now() < deadline, "confirmed {confirmed}, not {end}\n{}", relay.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
