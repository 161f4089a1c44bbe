//! The machine goes down: whatever no sync had covered is lost, in whole, in part, or sector by sector.
//!
//! The ingest is the real one, in this process, on a disk in memory. The machine is halted first, so that nothing is written
//! between the last operation that succeeded and the crash; only then is the ingest ended.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;
use rowcast::change::Lsn;
use rowcast::clock::Clock;
use rowcast::ingest::{Ingest, IngestConfig, IngestError};
use rowcast::log::testing::{DiscardingFiles, Torn};
use rowcast::log::{LogConfig, Opened};
use rowcast::metrics::Metrics;
use rowcast::pg::PgConfig;
use rowcast::task::Drain;
use rowcast::wal::WalConfig;
use tokio::task::JoinHandle;

use super::slow::SlowFiles;
use super::witness::Witness;
use super::writers::Writers;
use super::{assert_same, create_table, dice, logged};
use crate::support::TestPg;

const CRASHES: u32 = 40;
const RUN: Duration = Duration::from_millis(400);
const SLOT: &str = "rowcast";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_confirmed_is_missing_when_unsynced_writes_are_lost() {
    let mut dice = dice();
    let pg = TestPg::start().await;
    create_table(&pg).await;
    let mut witness = Witness::start(&pg).await;
    let machine = Machine::new(&pg);

    // The slot is there before the first row, and its history is begun.
    let first = machine.boot();
    let epoch = {
        let log = first.opened.log.clone();
        first.run().stop().await;
        log.epoch().expect("a history")
    };
    let writers = Writers::start(&pg, &mut dice).await;
    let mut checked = Lsn::ZERO;
    for number in 1..=CRASHES {
        let running = machine.boot().run();
        machine.live(running, &mut dice).await;
        let confirmed = machine.confirmed(&pg).await;
        machine.files.crash(torn(&mut dice));

        let recovered = machine.boot().opened;
        let (log, end) = (recovered.log, recovered.writer.end());
        assert_eq!(log.epoch(), Some(epoch), "crash {number} began another history");
        assert!(end >= confirmed, "crash {number}: confirmed {confirmed}, but the log ends at {end}");
        let committed = witness.committed().await;
        let place = |lsn| committed.partition_point(|transaction| transaction.end <= lsn);
        // What was confirmed before is looked at again at the end.
        let from = checked.max(log.floor());
        assert_same(&logged(&log, from).await, &committed[place(from)..place(end)]);
        checked = confirmed;
    }

    let running = machine.boot().run();
    let rows = writers.stop().await;
    let end = machine.caught_up(&pg).await;
    running.stop().await;
    let committed = witness.committed().await;
    let last = machine.boot().opened;
    assert!(last.log.durable() >= end);
    assert_same(&logged(&last.log, last.log.floor()).await, committed);
    let count: usize = committed.iter().map(|transaction| transaction.ids.len()).sum();
    assert_eq!(count as u64, rows, "the witness saw what the writers committed");
    let confirmed = committed.iter().filter(|transaction| transaction.end <= checked).count();
    assert!(confirmed > 0, "nothing was ever confirmed, so nothing was proved");
    println!(
        "{rows} rows in {} transactions; {confirmed} were confirmed at the last of {CRASHES} crashes",
        committed.len()
    );
}

fn torn(dice: &mut StdRng) -> Torn {
    match dice.random_range(0..3) {
        0 => Torn::Lost,
        1 => Torn::Prefix(dice.random_range(0..100_000)),
        _ => Torn::Scattered(dice.random()),
    }
}

/// A relay's machine, as far as the path from the database to its disk goes.
struct Machine {
    files: DiscardingFiles,
    dir: PathBuf,
    spill: tempfile::TempDir,
    pg: PgConfig,
}

/// The machine is up and the log is open.
struct Booted {
    opened: Opened,
    config: IngestConfig,
    pg: PgConfig,
}

/// Changes are streaming, or about to.
struct Running {
    task: JoinHandle<Result<(), IngestError>>,
    ready: tokio::sync::watch::Receiver<bool>,
    drain: Drain,
}

impl Machine {
    fn new(pg: &TestPg) -> Machine {
        Machine {
            files: DiscardingFiles::new(),
            dir: Path::new("/log").to_owned(),
            spill: tempfile::tempdir().expect("a folder"),
            pg: PgConfig::from_url(&pg.url()).expect("a good URL"),
        }
    }

    fn boot(&self) -> Booted {
        // Small segments, so that crashes hit their seams as well.
        let config = LogConfig { segment_bytes: 1 << 20, tail_bytes: 1 << 20, ..LogConfig::new(&self.dir) };
        let files = Arc::new(SlowFiles(Arc::new(self.files.clone())));
        let opened =
            rowcast::log::open(config, files, Clock::system(), Arc::new(Metrics::new())).expect("the log opens");
        let publications = ["supabase_realtime", "rowcast_facts"].map(str::to_owned).to_vec();
        let wal = WalConfig::new(self.pg.clone(), SLOT, publications, self.spill.path().to_owned());
        // Confirmations are what is tested: many of them.
        let wal = WalConfig { status_interval: Duration::from_millis(20), ..wal };
        let config = IngestConfig { retry_interval: Duration::from_millis(20), ..IngestConfig::new(wal) };
        Booted { opened, config, pg: self.pg.clone() }
    }

    /// Runs for a while, with or without trouble with the disk, until nothing can be written any more; then the process ends.
    async fn live(&self, mut running: Running, dice: &mut StdRng) {
        if dice.random_bool(0.2) {
            // Halted somewhere in its start.
            self.files.halt_after(Some(dice.random_range(0..10)));
        } else {
            running.streaming().await;
            if dice.random_bool(0.3) {
                self.files.fail_syncs(dice.random_range(1..3));
            }
            if dice.random_bool(0.2) {
                self.files.fail_operations(dice.random_range(0..30), dice.random_range(1..5));
            }
            tokio::time::sleep(RUN.mul_f64(dice.random())).await;
            self.files.halt_after(Some(dice.random_range(0..5)));
        }
        // The relay may notice that its disk is gone, and must confirm nothing for it.
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..60))).await;
        running.task.abort();
        match running.task.await {
            Err(error) => assert!(error.is_cancelled(), "{error}"),
            // Giving up on a disk that is off is no fault before the first change has streamed.
            Ok(ended) => drop(ended.expect_err("not told to end")),
        }
    }

    /// What Postgres may forget, once nobody can confirm any more.
    async fn confirmed(&self, pg: &TestPg) -> Lsn {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let (active, confirmed) = slot(pg).await;
            if !active {
                return confirmed;
            }
            assert!(Instant::now() < deadline, "the slot is still in use");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until everything written so far is confirmed; returns where that was.
    async fn caught_up(&self, pg: &TestPg) -> Lsn {
        let sql = "select pg_current_wal_insert_lsn()::text";
        let text: String = pg.client().await.query_one(sql, &[]).await.expect("a row").get(0);
        let end: Lsn = text.parse().expect("an LSN");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let (_, confirmed) = slot(pg).await;
            if confirmed >= end {
                return end;
            }
            assert!(Instant::now() < deadline, "confirmed {confirmed}, not {end}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Whether it is in use, and what is confirmed.
async fn slot(pg: &TestPg) -> (bool, Lsn) {
    let sql = "select active, confirmed_flush_lsn::text from pg_replication_slots where slot_name = $1";
    let row = pg.client().await.query_one(sql, &[&SLOT]).await.expect("the slot");
    (row.get(0), row.get::<_, String>(1).parse().expect("an LSN"))
}

impl Booted {
    fn run(self) -> Running {
        let drain = Drain::new();
        let Opened { log, writer } = self.opened;
        let (ingest, handle) = Ingest::new(self.config, log, writer, self.pg, Arc::new(Metrics::new()), drain.clone());
        let task = rowcast::task::spawn("ingest", ingest.run(Duration::from_secs(20)));
        Running { task, ready: handle.ready, drain }
    }
}

impl Running {
    async fn streaming(&mut self) {
        let ready = tokio::time::timeout(Duration::from_secs(20), self.ready.wait_for(|ready| *ready)).await;
        if !matches!(ready, Ok(Ok(_))) {
            panic!("not streaming: {:?}", (&mut self.task).await);
        }
    }

    /// In order.
    async fn stop(mut self) {
        self.streaming().await;
        self.drain.drain();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.task).await;
        ended.expect("in time").expect("no panic").expect("no error");
    }
}
