//! Ingest: the next transaction is appended to the log; when it is durable there, it is confirmed to Postgres.
//!
//! ```text
//!  Origin ── look, decide, connect ──► Source ── next ──► Pen ── append ──► log ──► readers
//!                                        ▲                 └── fsync ──┐
//!                                        └──────── confirm ◄───────────┘
//! ```
//!
//! Invariants:
//! * Nothing is confirmed that is not durable in the log.
//! * It knows no subscriber and waits for none. The stream is read at once or closed, never left unread.
//! * What the log holds of one epoch has no hole: the slot's position is looked at again once the slot is ours, and whatever
//!   does not fit begins another epoch, loudly.
//! * While the disk is full, at most `buffer_bytes` wait in memory; then the stream is closed and Postgres keeps the rest.
//!
//! Rejected: a queue between the stream and the log, a place more where transactions can be lost or grow; the log itself is
//! the queue.

mod error;
mod follow;
mod notes;
mod open;
mod origin;
mod pen;
mod report;
mod start;
mod switch;
mod tend;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

pub use error::{Holder, IngestError};
pub use notes::written_from;

use crate::change::Transaction;
use crate::error::{Fault as _, Remedy, chain};
use crate::log::{Log, LogWriter};
use crate::metrics::Metrics;
use crate::pg::PgConfig;
use crate::task::Drain;
use crate::wal::{Backoff, WalConfig};
use notes::Notes;
use origin::{Origin, Postgres, Source as _};
use pen::Pen;
use report::Report;
use start::Why;

/// For so long trouble that may pass is looked at often.
const QUICK: Duration = Duration::from_secs(60);

/// What ingest needs to know.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// The stream.
    pub wal: WalConfig,
    /// After so long without anything from the stream, a message of our own is sent through it. 10 s.
    pub heartbeat_interval: Duration,
    /// How often it is looked, beside the stream, whether the publications are still the same. 5 s.
    pub tend_interval: Duration,
    /// From the beginning of a stream to the first such look. 200 ms.
    pub tend_delay: Duration,
    /// How often the token in `rowcast.lineage` changes. 60 s.
    pub token_interval: Duration,
    /// How often the log's limits are enforced. 60 s.
    pub retain_interval: Duration,
    /// Bytes of transactions held in memory while the disk is full. 64 MiB.
    pub buffer_bytes: usize,
    /// Between two tries to write to a disk that refused. 1 s.
    pub retry_interval: Duration,
    /// Positions without a transaction are noted in the log at most this often. 1 s.
    pub advance_interval: Duration,
    /// Between two attempts once a person must do something. 5 s.
    pub operator_interval: Duration,
    /// For saying goodbye to the server at the drain. 3 s.
    pub close_deadline: Duration,
}

impl IngestConfig {
    /// The defaults named at the fields.
    pub fn new(wal: WalConfig) -> IngestConfig {
        IngestConfig {
            wal,
            heartbeat_interval: Duration::from_secs(10),
            tend_interval: Duration::from_secs(5),
            tend_delay: Duration::from_millis(200),
            token_interval: Duration::from_secs(60),
            retain_interval: Duration::from_secs(60),
            buffer_bytes: 64 << 20,
            retry_interval: Duration::from_secs(1),
            advance_interval: Duration::from_secs(1),
            operator_interval: Duration::from_secs(5),
            close_deadline: Duration::from_secs(3),
        }
    }
}

/// What ingest is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngestState {
    /// Not streaming yet.
    Starting,
    /// Changes are streaming.
    Streaming,
    /// Changes come in, but the log can't take them; the reason.
    Buffering(String),
    /// Not streaming, since making the slot waits for transactions that were open before; which.
    Blocked(String),
    /// Not streaming; the reason.
    Waiting(String),
}

impl fmt::Display for IngestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IngestState::Starting => f.write_str("starting"),
            IngestState::Streaming => f.write_str("streaming"),
            IngestState::Buffering(reason) => write!(f, "buffering: {reason}"),
            IngestState::Blocked(reason) => write!(f, "blocked: {reason}"),
            IngestState::Waiting(reason) => write!(f, "waiting: {reason}"),
        }
    }
}

/// What others may see of it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct IngestHandle {
    /// What it is doing.
    pub state: watch::Receiver<IngestState>,
    /// Whether changes are streaming.
    pub ready: watch::Receiver<bool>,
}

/// Reads the stream into the log; see [`Ingest::run`].
pub struct Ingest {
    core: Core<Postgres>,
}

impl Ingest {
    /// Nothing runs yet. `pg` is for queries beside the stream.
    pub fn new(
        config: IngestConfig,
        log: Log,
        writer: LogWriter,
        pg: PgConfig,
        metrics: Arc<Metrics>,
        drain: Drain,
    ) -> (Ingest, IngestHandle) {
        let origin = Postgres::new(pg, config.wal.clone(), metrics.clone());
        let (core, handle) = Core::new(config, log, writer, origin, metrics, drain);
        (Ingest { core }, handle)
    }

    /// Reads until the drain, which ends in a last confirmation. Until changes have streamed once, an error that a person
    /// must mend is returned at once, any other after `startup`; afterwards none is: it goes on trying.
    pub async fn run(self, startup: Duration) -> Result<(), IngestError> {
        self.core.run(startup).await
    }
}

/// [`Ingest`] over any origin.
struct Core<O> {
    config: IngestConfig,
    origin: O,
    pen: Pen,
    metrics: Arc<Metrics>,
    drain: Drain,
    report: Report,
    ready: watch::Sender<bool>,
    backoff: Backoff,
    /// As they are on the disk.
    notes: Notes,
    /// Why the slot that is missing was dropped by us.
    renewed: Option<Why>,
    /// The log has come to where the stream may have the publications that are wanted.
    switched: bool,
    /// So often in a row the server could not decode the next row.
    unreadable: u32,
    /// Changes have streamed once.
    was_up: bool,
    /// What the log could not take when the stream was closed for it: the sign that there is room again. It directly
    /// follows the log's end, so it must be forgotten if the log goes back.
    stuck: Option<Arc<Transaction>>,
}

impl<O: Origin> Core<O> {
    fn new(
        config: IngestConfig,
        log: Log,
        writer: LogWriter,
        origin: O,
        metrics: Arc<Metrics>,
        drain: Drain,
    ) -> (Core<O>, IngestHandle) {
        let (state, state_seen) = watch::channel(IngestState::Starting);
        let (ready, ready_seen) = watch::channel(false);
        let core = Core {
            notes: Notes::read(writer.slot_notes()),
            config,
            origin,
            pen: Pen::new(log, writer),
            metrics,
            drain,
            report: Report::new(state),
            ready,
            backoff: Backoff::new(),
            renewed: None,
            switched: false,
            unreadable: 0,
            was_up: false,
            stuck: None,
        };
        (core, IngestHandle { state: state_seen, ready: ready_seen })
    }

    async fn run(mut self, startup: Duration) -> Result<(), IngestError> {
        let mut deadline = Instant::now() + startup;
        loop {
            let error = match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.ready.send_replace(false);
            if !self.was_up && error.remedy() != Remedy::Retry {
                return Err(error);
            }
            let pause = self.pause(&error);
            if error.is_waiting_for_others() {
                deadline = Instant::now() + pause + startup;
            }
            if !self.was_up && Instant::now() + pause >= deadline {
                return Err(IngestError::Startup { after: startup, source: Box::new(error) });
            }
            self.report.tell(&error);
            tokio::select! {
                () = self.drain.draining() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn pause(&mut self, error: &IngestError) -> Duration {
        if self.stuck.is_some() {
            return self.config.retry_interval;
        }
        match error.remedy() {
            // A look costs little, and clients wait for somebody to take over.
            _ if error.is_waiting_for_others() => self.config.retry_interval,
            // The next look says what is to be mended; if nothing is, the slot is made anew.
            _ if error.is_undecodable(&self.config.wal.slot) => self.backoff.next(),
            // At first quickly: a server that restarts, or another that takes over, should be met before clients are sent away.
            Remedy::Retry if self.report.lasts() < QUICK => self.backoff.next().min(self.config.retry_interval),
            Remedy::Retry => self.backoff.next(),
            Remedy::Operator | Remedy::Bug => self.config.operator_interval,
        }
    }

    /// Streams from finding a start to the end, one after the other while only its publications change. `Ok` is the drain.
    async fn attempt(&mut self) -> Result<(), IngestError> {
        loop {
            match self.stream().await {
                Err(IngestError::Switching) => {
                    let publications = self.config.wal.publications.join(", ");
                    tracing::info!(publications, position = %self.pen.log.end(), "the stream has other publications from here on");
                }
                ended => return ended,
            }
        }
    }

    /// One stream. `Ok` is the drain.
    async fn stream(&mut self) -> Result<(), IngestError> {
        let drain = self.drain.clone();
        let opened = tokio::select! {
            biased;
            () = drain.draining() => None,
            opened = self.open() => Some(opened?),
        };
        let Some(mut source) = opened else { return Ok(()) };
        tracing::info!(start = %self.pen.log.end(), "streaming changes");
        self.was_up = true;
        self.report.over();
        self.ready.send_replace(true);
        if let Err(error) = self.follow(&mut source).await {
            if matches!(error, IngestError::Switching) {
                let durable = self.pen.sync_all().await?;
                self.switched = true;
                source.confirm(durable);
                source.close(self.config.close_deadline).await;
            }
            if error.is_undecodable(&self.config.wal.slot) {
                self.unreadable += 1;
            }
            return Err(error);
        }
        // The drain: what was read becomes durable and is confirmed, so that the next start reads nothing twice.
        self.ready.send_replace(false);
        match self.pen.sync_all().await {
            Ok(durable) => source.confirm(durable),
            Err(error) => {
                tracing::warn!(error = chain(&error), "the log's end could not be made durable; it will be read again")
            }
        }
        source.close(self.config.close_deadline).await;
        Ok(())
    }
}
