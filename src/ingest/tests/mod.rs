//! Ingest over a scripted stream and a disk in memory.

use super::*;
use crate::change::Lsn;
use crate::clock::Clock;
use crate::log::testing::{DiscardingFiles, FullDisk, Torn};
use crate::log::{Epoch, Files, LogConfig, Read};
use crate::wal::WalError;

mod server;
mod slots;
mod switch;

use server::{Server, transaction};

const PATIENCE: Duration = Duration::from_secs(10);

/// A server, a disk, and at most one ingest between them.
struct Bench {
    server: Server,
    disk: DiscardingFiles,
    full: Arc<FullDisk>,
    config: IngestConfig,
    startup: Duration,
}

/// An ingest that runs.
struct Running {
    log: Log,
    handle: IngestHandle,
    drain: Drain,
    metrics: Arc<Metrics>,
    task: tokio::task::JoinHandle<Result<(), IngestError>>,
}

impl Bench {
    fn new() -> Bench {
        let disk = DiscardingFiles::new();
        let pg = PgConfig::from_url("postgres://u@h/d").expect("a URL");
        let wal = WalConfig::new(pg, "s", vec!["p".into()], "/spill".into());
        let config = IngestConfig {
            retry_interval: Duration::from_millis(5),
            advance_interval: Duration::from_millis(5),
            operator_interval: Duration::from_millis(5),
            // Only where a test is about it: a token is a transaction.
            tend_interval: Duration::from_secs(3600),
            tend_delay: Duration::from_secs(3600),
            ..IngestConfig::new(wal)
        };
        let full = Arc::new(FullDisk::new(Arc::new(disk.clone())));
        let server = Server::default();
        server.idle(100);
        Bench { server, disk, full, config, startup: PATIENCE }
    }

    fn open(&self) -> crate::log::Opened {
        let files: Arc<dyn Files> = self.full.clone();
        crate::log::open(LogConfig::new("/log"), files, Clock::system(), Arc::new(Metrics::new()))
            .expect("the log opens")
    }

    fn start(&self) -> Running {
        let opened = self.open();
        let (drain, metrics) = (Drain::new(), Arc::new(Metrics::new()));
        let (core, handle) = Core::new(
            self.config.clone(),
            opened.log.clone(),
            opened.writer,
            self.server.clone(),
            metrics.clone(),
            drain.clone(),
        );
        let task = crate::task::spawn("ingest", core.run(self.startup));
        Running { log: opened.log, handle, drain, metrics, task }
    }

    async fn confirmed(&self, position: u64) {
        self.server.until(&format!("confirmed {position}"), |server| server.confirmed >= position).await;
    }

    /// The machine loses its power. What was confirmed must be on the disk.
    async fn crash(&self, running: Running) {
        running.task.abort();
        let _ = running.task.await;
        self.disk.crash(Torn::Lost);
        let opened = self.open();
        let confirmed = self.server.lock().confirmed;
        assert!(opened.log.end().0 >= confirmed, "confirmed {confirmed}, but the disk has {:?}", opened.log);
    }
}

impl Running {
    async fn state(&mut self, wanted: impl FnMut(&IngestState) -> bool) {
        let waiting = self.handle.state.wait_for(wanted);
        drop(tokio::time::timeout(PATIENCE, waiting).await.expect("the state comes").expect("it runs"));
    }

    /// End positions of everything in the log; a gap is a failure.
    async fn ends(&self) -> Vec<u64> {
        let mut reader = self.log.reader(self.log.floor());
        let mut ends = Vec::new();
        while let Some(read) = reader.try_next().await.expect("read") {
            match read {
                Read::Transaction(transaction) => ends.push(transaction.end_lsn.0),
                Read::Idle(_) => {}
                Read::Gap { from, resumed } => panic!("a gap from {from} to {resumed}"),
            }
        }
        ends
    }

    async fn stop(self) -> Result<(), IngestError> {
        self.drain.drain();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").expect("it does not panic")
    }
}

#[tokio::test]
async fn what_is_read_is_in_the_log_once_and_confirmed_when_it_is_durable() {
    let bench = Bench::new();
    let mut running = bench.start();
    running.state(|state| *state == IngestState::Streaming).await;
    assert!(*running.handle.ready.borrow());
    for end in 101..=150 {
        bench.server.commit(end, 10);
    }
    bench.confirmed(150).await;
    assert_eq!(running.ends().await, (101..=150).collect::<Vec<_>>());
    assert!(running.log.durable() >= Lsn(150));
    bench.crash(running).await;
}

#[tokio::test]
async fn a_position_without_a_transaction_is_confirmed_too() {
    let bench = Bench::new();
    let running = bench.start();
    bench.server.idle(500);
    bench.confirmed(500).await;
    bench.crash(running).await;
}

#[tokio::test]
async fn after_a_stop_the_same_history_goes_on_and_after_a_crash_too() {
    let bench = Bench::new();
    let running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    bench.server.commit(120, 10);
    running.stop().await.expect("a clean stop");
    let lineage = bench.server.lock().lineage.clone();
    bench.server.commit(130, 10);
    let running = bench.start();
    bench.confirmed(130).await;
    bench.crash(running).await;
    bench.server.commit(140, 10);
    let running = bench.start();
    bench.confirmed(140).await;
    assert_eq!(running.ends().await, [110, 120, 130, 140]);
    assert_eq!(bench.server.lock().lineage, lineage);
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_failed_fsync_confirms_nothing_and_the_stream_is_read_again() {
    let bench = Bench::new();
    let running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    bench.disk.fail_syncs(1);
    bench.server.commit(120, 10);
    bench.confirmed(120).await;
    assert!(bench.server.lock().connects >= 2, "the log went back, so the stream was read again");
    assert_eq!(running.ends().await, [110, 120]);
    bench.crash(running).await;
}

#[tokio::test]
async fn a_full_disk_is_waited_for_in_memory_without_closing_the_stream() {
    let bench = Bench::new();
    let mut running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    bench.full.set_room(Some(0));
    for end in [120, 130, 140] {
        bench.server.commit(end, 1000);
    }
    running.state(|state| matches!(state, IngestState::Buffering(_))).await;
    assert!(bench.server.lock().confirmed < 120);
    bench.full.set_room(None);
    bench.confirmed(140).await;
    assert_eq!(running.ends().await, [110, 120, 130, 140]);
    assert_eq!(bench.server.lock().connects, 1);
    running.state(|state| *state == IngestState::Streaming).await;
    bench.crash(running).await;
}

#[tokio::test]
async fn beyond_the_buffer_the_stream_is_closed_and_nothing_is_lost_or_repeated() {
    let mut bench = Bench::new();
    bench.config.buffer_bytes = 4000;
    let mut running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    bench.full.set_room(Some(0));
    for end in 120..130 {
        bench.server.commit(end, 1000);
    }
    running.state(|state| matches!(state, IngestState::Waiting(_))).await;
    assert!(!*running.handle.ready.borrow());
    assert_eq!(bench.server.lock().connects, 1, "no stream is opened while there is no room");
    bench.full.set_room(None);
    bench.confirmed(129).await;
    let expected: Vec<u64> = std::iter::once(110).chain(120..130).collect();
    assert_eq!(running.ends().await, expected);
    bench.crash(running).await;
}

#[tokio::test]
async fn a_disk_that_is_full_in_the_middle_of_a_record_and_cannot_be_cut_leaves_no_hole() {
    let mut bench = Bench::new();
    bench.config.buffer_bytes = 4000;
    let running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    bench.full.set_truncate_fails(true);
    bench.full.set_room(Some(300));
    for end in 120..130 {
        bench.server.commit(end, 1000);
    }
    let mut running = running;
    running.state(|state| matches!(state, IngestState::Waiting(_))).await;
    bench.full.set_truncate_fails(false);
    bench.full.set_room(None);
    bench.confirmed(129).await;
    let expected: Vec<u64> = std::iter::once(110).chain(120..130).collect();
    assert_eq!(running.ends().await, expected);
    bench.crash(running).await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_opened_again_where_the_log_ends() {
    let bench = Bench::new();
    bench.server.lock().breaks_after = Some(3);
    let running = bench.start();
    for end in 101..=106 {
        bench.server.commit(end, 10);
    }
    bench.confirmed(106).await;
    assert_eq!(running.ends().await, (101..=106).collect::<Vec<_>>());
    assert_eq!(bench.server.lock().connects, 2);
    bench.crash(running).await;
}

#[tokio::test]
async fn a_slot_that_somebody_moved_while_we_connected_is_noticed() {
    let bench = Bench::new();
    let running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    running.stop().await.expect("a clean stop");
    // Another relay, with another folder, read and confirmed this one.
    bench.server.commit(120, 10);
    bench.server.lock().moved = Some(120);
    let running = bench.start();
    bench.server.commit(130, 10);
    bench.confirmed(130).await;
    assert_eq!(running.metrics.epochs.get_or_create(&[("reason", "log_behind")]).get(), 1);
    assert_eq!(running.log.floor(), Lsn(120), "what is missing is below the floor");
    assert_eq!(running.ends().await, [130]);
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_server_that_lost_what_the_log_holds_begins_another_history() {
    let bench = Bench::new();
    let running = bench.start();
    bench.server.commit(200, 10);
    bench.confirmed(200).await;
    running.stop().await.expect("a clean stop");
    {
        // Restored from a copy.
        let mut server = bench.server.lock();
        server.committed.clear();
        (server.written, server.confirmed) = (150, 140);
    }
    let running = bench.start();
    bench.server.commit(160, 10);
    bench.confirmed(160).await;
    assert_eq!(running.metrics.epochs.get_or_create(&[("reason", "server_behind")]).get(), 1);
    assert_eq!(running.ends().await, [160]);
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn at_the_start_a_person_is_told_at_once_and_trouble_that_may_pass_is_waited_for() {
    let mut bench = Bench::new();
    bench.server.lock().failing.push_back(WalError::WalLevel("replica".into()));
    let error = bench.start().task.await.expect("no panic").expect_err("refused");
    assert!(matches!(error, IngestError::Wal(WalError::WalLevel(_))), "{error}");

    bench.server.lock().failing.extend([WalError::Standby, WalError::Standby]);
    let running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    running.stop().await.expect("a clean stop");

    bench.startup = Duration::ZERO;
    bench.server.lock().failing.push_back(WalError::Standby);
    let error = bench.start().task.await.expect("no panic").expect_err("refused");
    assert!(
        matches!(&error, IngestError::Startup { source, .. } if matches!(**source, IngestError::Wal(WalError::Standby)))
    );
    assert!(error.advice().contains("primary"), "{}", error.advice());
}

#[tokio::test]
async fn once_it_was_up_even_what_a_person_must_mend_does_not_end_it() {
    let bench = Bench::new();
    let mut running = bench.start();
    running.state(|state| *state == IngestState::Streaming).await;
    {
        let mut server = bench.server.lock();
        server.failing.push_back(WalError::WalLevel("replica".into()));
        server.breaks_after = Some(0);
    }
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    running.state(|state| *state == IngestState::Streaming).await;
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn a_quiet_stream_gets_a_heartbeat() {
    let mut bench = Bench::new();
    bench.config.heartbeat_interval = Duration::from_millis(5);
    let running = bench.start();
    bench.server.until("two heartbeats", |server| server.beats >= 2).await;
    running.stop().await.expect("a clean stop");
}

#[tokio::test]
async fn the_log_of_a_second_server_is_never_continued() {
    let bench = Bench::new();
    {
        let mut opened = bench.open();
        opened.writer.begin_epoch(Epoch { system_identifier: 7, incarnation: 1 }, Lsn(50)).expect("an epoch");
        opened.writer.append(&transaction(60, 10)).expect("appended");
    }
    let running = bench.start();
    bench.server.commit(110, 10);
    bench.confirmed(110).await;
    assert_eq!(running.metrics.epochs.get_or_create(&[("reason", "other_cluster")]).get(), 1);
    assert_eq!(running.ends().await, [110]);
    running.stop().await.expect("a clean stop");
}
