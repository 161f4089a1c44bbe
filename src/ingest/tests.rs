//! Ingest over a scripted stream and a disk in memory.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use super::error::Holder;
use super::notes::Reader;
use super::origin::Source;
use super::start::{Found, Lineage};
use super::tend::{TOKEN_PREFIX, Tended, Turn};
use super::*;
use crate::change::{Lsn, Timestamp, TransactionBuilder};
use crate::clock::Clock;
use crate::log::testing::{DiscardingFiles, FullDisk, Torn};
use crate::log::{Epoch, Files, LogConfig, Read};
use crate::wal::{Received, SlotFault, SlotState, WalError};

const SERVER: u64 = 42;

/// A Postgres with nothing but a slot: what was committed, and what was confirmed.
#[derive(Clone, Default)]
struct Server {
    inner: Arc<Mutex<Inner>>,
    /// Rings when something was committed, confirmed, connected or closed.
    changed: Arc<Notify>,
}

#[derive(Default)]
struct Inner {
    committed: Vec<Arc<Transaction>>,
    /// Complete up to here.
    written: u64,
    confirmed: u64,
    lineage: Option<Lineage>,
    connects: u32,
    /// Errors for the next attempts to look at the slot.
    failing: VecDeque<WalError>,
    /// Another relay moves the slot to here between our look and our getting hold of it.
    moved: Option<u64>,
    /// A stream breaks after so many more transactions.
    breaks_after: Option<u32>,
    beats: u32,
    /// Such as 15; 0 counts as one of long ago.
    major: i32,
    /// 0 counts as 1. Each later one with the end of the one before it.
    timeline: u32,
    ends: Vec<(u32, u64)>,
    /// The slot was dropped, or made and not confirmed since.
    missing: bool,
    created: bool,
    lost: bool,
    drops: u32,
    /// Oids of publication `p`.
    publication: u32,
    /// Somebody reads the slot; who ends when told.
    holder: Option<Holder>,
    terminated: Vec<Reader>,
    /// The stream can't decode what comes after this.
    poisoned_after: Option<u64>,
    /// Tokens that were written do not come through the stream.
    deaf: bool,
}

struct Stream {
    server: Server,
    position: u64,
    timeline: u32,
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("not poisoned")
    }

    fn commit(&self, end: u64, bytes: usize) {
        self.lock().committed.push(transaction(end, bytes));
        self.idle(end);
    }

    fn idle(&self, written: u64) {
        self.lock().written = written;
        self.changed.notify_waiters();
    }

    /// Waits until it is so.
    async fn until(&self, what: &str, mut so: impl FnMut(&Inner) -> bool) {
        let waiting = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if so(&self.lock()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

impl Source for Stream {
    async fn next(&mut self) -> Result<Received, WalError> {
        loop {
            let changed = self.server.changed.clone();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            {
                let mut inner = self.server.lock();
                if inner.breaks_after == Some(0) {
                    inner.breaks_after = None;
                    return Err(WalError::Ended);
                }
                if inner.poisoned_after.is_some_and(|after| self.position >= after && inner.written > after) {
                    let (message, code) = ("publication \"p\" does not exist".into(), Some("42704".into()));
                    return Err(WalError::Server { message, code, slot: "s".into() });
                }
                let next = inner.committed.iter().find(|t| t.end_lsn.0 > self.position).cloned();
                if let Some(next) = next {
                    self.position = next.end_lsn.0;
                    inner.breaks_after = inner.breaks_after.map(|left| left - 1);
                    return Ok(Received::Transaction(next));
                }
                if inner.written > self.position {
                    self.position = inner.written;
                    return Ok(Received::Idle(Lsn(inner.written)));
                }
            }
            changed.await;
        }
    }

    fn confirm(&self, durable: Lsn) {
        assert!(durable.0 <= self.position, "confirmed {durable} beyond what was returned");
        let mut inner = self.server.lock();
        inner.confirmed = inner.confirmed.max(durable.0);
        drop(inner);
        self.server.changed.notify_waiters();
    }

    fn identity(&self) -> (u64, u32) {
        (SERVER, self.timeline)
    }

    async fn close(self, _deadline: Duration) {}
}

impl Origin for Server {
    type Source = Stream;

    async fn look(&mut self, _report: &mut Report) -> Result<Found, IngestError> {
        let mut inner = self.lock();
        if let Some(error) = inner.failing.pop_front() {
            return Err(error.into());
        }
        if inner.lost && !inner.missing {
            let fault = SlotFault::Lost("wal_removed".into());
            return Err(WalError::SlotUnusable { slot: "s".into(), fault }.into());
        }
        let created = std::mem::take(&mut inner.missing);
        if created {
            (inner.confirmed, inner.created, inner.lost, inner.poisoned_after) = (inner.written, true, false, None);
        }
        let slot = SlotState { created, confirmed_flush: Lsn(inner.confirmed), ..SlotState::default() };
        Ok(Found {
            system_identifier: SERVER,
            version: inner.major * 10_000,
            timeline: inner.timeline.max(1),
            parted: None,
            written: Lsn(inner.written),
            slot,
            holder: inner.holder.clone(),
            publications: [("p".to_owned(), inner.publication)].into(),
            lineage: inner.lineage.clone(),
        })
    }

    async fn lineage(&mut self) -> Result<Option<Lineage>, IngestError> {
        Ok(self.lock().lineage.clone())
    }

    async fn timelines(&mut self, _timeline: u32) -> Result<Vec<(u32, Lsn)>, IngestError> {
        Ok(self.lock().ends.iter().map(|(timeline, end)| (*timeline, Lsn(*end))).collect())
    }

    async fn connect(&mut self, start: Lsn) -> Result<Stream, IngestError> {
        let mut inner = self.lock();
        if start.0 > inner.written {
            return Err(WalError::Ahead { start, written: Lsn(inner.written) }.into());
        }
        if let Some(moved) = inner.moved.take() {
            inner.confirmed = moved;
        }
        // The server moves a start below the slot's position up, without a word.
        inner.confirmed = inner.confirmed.max(start.0);
        inner.connects += 1;
        let (position, timeline) = (inner.confirmed, inner.timeline.max(1));
        drop(inner);
        self.changed.notify_waiters();
        Ok(Stream { server: self.clone(), position, timeline })
    }

    async fn terminate(&mut self, reader: Reader) -> Result<(), IngestError> {
        let mut inner = self.lock();
        inner.terminated.push(reader);
        inner.holder = None;
        Ok(())
    }

    async fn drop_slot(&mut self) -> Result<(), IngestError> {
        let mut inner = self.lock();
        inner.missing = true;
        inner.drops += 1;
        Ok(())
    }

    async fn record(&mut self, epoch: Epoch, token: &str) -> Result<(), IngestError> {
        self.lock().lineage = Some(Lineage::of(epoch, token));
        Ok(())
    }

    fn tend(&self, turn: Option<Turn>) -> impl Future<Output = Result<Tended, IngestError>> + Send + 'static {
        let server = self.clone();
        async move {
            let behind = turn.map(|turn| {
                let mut inner = server.lock();
                if inner.lineage.as_ref() != Some(&turn.lineage) {
                    return None;
                }
                let end = inner.written + 1;
                inner.lineage = Some(Lineage { token: turn.to.clone(), ..turn.lineage });
                if !inner.deaf {
                    inner.committed.push(message(end, TOKEN_PREFIX, turn.to.as_bytes()));
                }
                inner.written = end;
                Some(Lsn(end))
            });
            server.changed.notify_waiters();
            let inner = server.lock();
            let publications = [("p".to_owned(), inner.publication)].into();
            Ok(Tended { written: Lsn(inner.written), version: inner.major * 10_000, publications, behind })
        }
    }

    fn beat(&self) -> impl Future<Output = Result<(), IngestError>> + Send + 'static {
        let server = self.clone();
        async move {
            server.lock().beats += 1;
            server.changed.notify_waiters();
            Ok(())
        }
    }
}

fn transaction(end: u64, bytes: usize) -> Arc<Transaction> {
    message(end, "test", &vec![b'x'; bytes])
}

fn message(end: u64, prefix: &str, content: &[u8]) -> Arc<Transaction> {
    let mut builder = TransactionBuilder::default();
    builder.message(Lsn(end), prefix.as_bytes(), content).expect("a message");
    Arc::new(builder.finish(end as u32, Lsn(end - 1), Lsn(end), Timestamp(end as i64), None))
}

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
