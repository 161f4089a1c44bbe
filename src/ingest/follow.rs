//! One open stream, from its first transaction to the drain or an error.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::origin::{Origin, Source};
use super::switch::Switching;
use super::tend::Tending;
use super::{Core, IngestError, IngestState};
use crate::change::{Body, Lsn, Transaction};
use crate::error::chain;
use crate::fail::{self, Point};
use crate::log::LogError;
use crate::wal::Received;

/// What a transaction costs in memory beside its body, roughly.
const OVERHEAD: usize = 512;

/// Transactions that the log could not take yet, oldest first.
struct Backlog {
    waiting: VecDeque<Arc<Transaction>>,
    bytes: usize,
    /// Why; `None` while nothing waits.
    error: Option<LogError>,
    retry_at: Instant,
}

/// What is due when.
pub(super) struct Chores {
    pub(super) tending: Tending,
    heartbeat_at: Instant,
    beating: Option<JoinHandle<Result<(), IngestError>>>,
    retain_at: Instant,
    /// The newest position without a transaction, and when it may be noted.
    idle: Lsn,
    advance_at: Instant,
    pub(super) switching: Switching,
}

impl Chores {
    /// The newest position without a transaction.
    pub(super) fn idle(&self) -> Lsn {
        self.idle
    }
}

fn cost(transaction: &Transaction) -> usize {
    OVERHEAD
        + match &transaction.body {
            Body::Memory(body) => body.len(),
            // It is in a file.
            Body::Spilled(_) => 0,
        }
}

impl<O: Origin> Core<O> {
    /// Reads and appends; confirms what is durable. `Ok` is the drain.
    pub(super) async fn follow(&mut self, source: &mut O::Source) -> Result<(), IngestError> {
        let now = Instant::now();
        self.pen.log.forget_streamed();
        let mut backlog = Backlog { waiting: VecDeque::new(), bytes: 0, error: None, retry_at: now };
        let mut chores = Chores {
            tending: Tending::new(now, self.config.tend_delay),
            heartbeat_at: now + self.config.heartbeat_interval,
            beating: None,
            retain_at: now,
            idle: Lsn::ZERO,
            advance_at: now,
            switching: Switching::default(),
        };
        self.prepare_switch(&mut chores.switching);
        let drain = self.drain.clone();
        let end = loop {
            let wake = self.wake(&backlog, &chores);
            let received = tokio::select! {
                biased;
                () = drain.draining() => break Ok(()),
                synced = self.pen.synced() => {
                    match synced {
                        Ok(durable) => {
                            fail::point(Point::Fsynced);
                            source.confirm(durable);
                            fail::point(Point::Confirmed);
                        }
                        Err(error) => break Err(error.into()),
                    }
                    self.pen.start_sync();
                    continue;
                }
                beat = beaten(&mut chores.beating) => {
                    chores.beating = None;
                    if let Err(error) = beat {
                        tracing::warn!(error = chain(&error), "no heartbeat could be sent through the stream");
                    }
                    continue;
                }
                tended = chores.tending.done() => {
                    match self.tended(tended, &mut chores.tending).await {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    }
                }
                settled = chores.switching.done() => {
                    self.settled(settled, &mut chores.switching);
                    None
                }
                () = sleep_until(wake) => None,
                received = source.next() => Some(received),
            };
            let worked = match received {
                None => self.due(&mut backlog, &mut chores).await,
                Some(Ok(received)) => self.take(received, &mut backlog, &mut chores).await,
                Some(Err(error)) => Err(error.into()),
            };
            let worked = match worked {
                Ok(()) if backlog.error.is_none() => self.switch_if_there(&chores),
                worked => worked,
            };
            if let Err(error) = worked {
                break Err(error);
            }
        };
        if let Some(beating) = chores.beating.take() {
            beating.abort();
        }
        chores.tending.stop();
        chores.switching.stop();
        if end.is_ok() {
            self.last_words(&mut backlog, &chores).await;
        }
        end
    }

    /// When something is due.
    fn wake(&self, backlog: &Backlog, chores: &Chores) -> Instant {
        let mut wake = chores.retain_at.min(chores.tending.wake());
        if chores.beating.is_none() {
            wake = wake.min(chores.heartbeat_at);
        }
        if let Some(again) = chores.switching.wake() {
            wake = wake.min(again);
        }
        if backlog.error.is_some() {
            wake = wake.min(backlog.retry_at);
        } else if chores.idle > self.pen.log.end() {
            wake = wake.min(chores.advance_at);
        }
        wake
    }

    async fn take(
        &mut self,
        received: Received,
        backlog: &mut Backlog,
        chores: &mut Chores,
    ) -> Result<(), IngestError> {
        self.backoff.reset();
        chores.heartbeat_at = Instant::now() + self.config.heartbeat_interval;
        chores.tending.passed(&received)?;
        match received {
            Received::Idle(lsn) => {
                chores.idle = chores.idle.max(lsn);
                if backlog.error.is_none() {
                    self.pen.log.set_streamed(lsn);
                }
                Ok(())
            }
            Received::Transaction(_) if self.unreadable > 0 => {
                // It was decoded after all.
                self.unreadable = 0;
                Box::pin(self.take(received, backlog, chores)).await
            }
            Received::Transaction(transaction) if backlog.error.is_none() => {
                fail::point(Point::Received);
                match self.pen.append(&transaction).await {
                    Ok(()) => {
                        fail::point(Point::Appended);
                        Ok(())
                    }
                    Err(error) => self.keep(transaction, error, backlog),
                }
            }
            Received::Transaction(transaction) => {
                backlog.bytes += cost(&transaction);
                backlog.waiting.push_back(transaction);
                self.bound(backlog)
            }
        }
    }

    /// A first transaction that the log did not take: it waits, if waiting can help.
    fn keep(
        &mut self,
        transaction: Arc<Transaction>,
        error: LogError,
        backlog: &mut Backlog,
    ) -> Result<(), IngestError> {
        if !matches!(error, LogError::Io { .. }) {
            return Err(error.into());
        }
        let text = chain(&error);
        tracing::error!(error = text, "the log can't be written; changes wait in memory");
        self.report.state.send_replace(IngestState::Buffering(text));
        backlog.retry_at = Instant::now() + self.config.retry_interval;
        backlog.bytes += cost(&transaction);
        backlog.waiting.push_back(transaction);
        backlog.error = Some(error);
        self.bound(backlog)
    }

    /// Too much waits: the stream must be closed, since it may not be left unread.
    fn bound(&mut self, backlog: &mut Backlog) -> Result<(), IngestError> {
        if backlog.bytes <= self.config.buffer_bytes {
            return Ok(());
        }
        let Some(source) = backlog.error.take() else { return Ok(()) };
        self.stuck = backlog.waiting.pop_front();
        Err(IngestError::BufferFull { bytes: backlog.bytes, source })
    }

    /// Does what is due now.
    async fn due(&mut self, backlog: &mut Backlog, chores: &mut Chores) -> Result<(), IngestError> {
        let now = Instant::now();
        if backlog.error.is_some() && now >= backlog.retry_at {
            self.catch_up(backlog).await?;
        }
        if backlog.error.is_none() && chores.idle > self.pen.log.end() && now >= chores.advance_at {
            chores.advance_at = now + self.config.advance_interval;
            match self.pen.advance(chores.idle) {
                // Nothing is lost by noting it later.
                Err(error @ LogError::Io { .. }) => {
                    tracing::warn!(error = chain(&error), "the log can't be written");
                }
                other => other?,
            }
        }
        if chores.beating.is_none() && now >= chores.heartbeat_at {
            chores.heartbeat_at = now + self.config.heartbeat_interval;
            chores.beating = Some(crate::task::spawn("heartbeat", self.origin.beat()));
        }
        if now >= chores.tending.wake() {
            self.tend(&mut chores.tending).await?;
        }
        if chores.switching.wake().is_some_and(|at| now >= at) {
            self.prepare_switch(&mut chores.switching);
        }
        if now >= chores.retain_at {
            chores.retain_at = now + self.config.retain_interval;
            if let Err(error) = self.pen.blocking(crate::log::LogWriter::retain).await {
                tracing::warn!(error = chain(&error), "old segments of the log could not be removed");
            }
        }
        Ok(())
    }

    /// Appends what waits, as far as the log takes it.
    async fn catch_up(&mut self, backlog: &mut Backlog) -> Result<(), IngestError> {
        while let Some(first) = backlog.waiting.front() {
            match self.pen.append(first).await {
                Ok(()) => {
                    backlog.bytes = backlog.bytes.saturating_sub(cost(first));
                    backlog.waiting.pop_front();
                }
                Err(error @ LogError::Io { .. }) => {
                    backlog.retry_at = Instant::now() + self.config.retry_interval;
                    backlog.error = Some(error);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        *backlog = Backlog { waiting: VecDeque::new(), bytes: 0, error: None, retry_at: backlog.retry_at };
        tracing::info!("the log can be written again");
        self.report.state.send_replace(IngestState::Streaming);
        Ok(())
    }

    /// At the drain: what has been read is written, if it can be. What can't comes again.
    async fn last_words(&mut self, backlog: &mut Backlog, chores: &Chores) {
        let mut done = Ok(());
        if backlog.error.is_some() {
            done = self.catch_up(backlog).await;
        }
        if done.is_ok() && backlog.error.is_none() && chores.idle > self.pen.log.end() {
            done = self.pen.advance(chores.idle).map_err(IngestError::from);
        }
        if let Err(error) = done {
            tracing::warn!(error = chain(&error), "not all that was read could be written; it will be read again");
        }
    }
}

async fn beaten(beating: &mut Option<JoinHandle<Result<(), IngestError>>>) -> Result<(), IngestError> {
    match beating {
        // Aborted or panicked: the panic was printed, and the next heartbeat is another task.
        Some(beating) => beating.await.unwrap_or(Ok(())),
        None => std::future::pending().await,
    }
}
