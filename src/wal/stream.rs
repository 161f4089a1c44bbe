//! Transactions, one after the other, and positions in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pgwire_replication::{FeedbackObserver, ReplicationEvent};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::change::{Lsn, Timestamp, Transaction};
use crate::metrics::Metrics;

use super::assemble::Assembler;
use super::client::{GOODBYE, Session};
use super::pgoutput::{self, Message};
use super::spill::{self, SpillPlace};
use super::{WalConfig, WalError};

/// What [`Stream::next`] gives.
#[derive(Debug, Clone)]
pub enum Received {
    /// The next committed transaction with anything in it.
    Transaction(Arc<Transaction>),
    /// Every transaction that commits before this position was already returned.
    Idle(Lsn),
}

/// A running replication stream. Whoever holds it must keep calling [`Stream::next`], or drop it: a connection that is
/// open but not read can make the server's checkpoints hang as soon as the slot runs over `max_slot_wal_keep_size`.
/// While the caller is late, the library goes on telling the server that we live, so the server itself will not end it.
///
/// Dropping it closes the connection at once, and the slot is free; see [`Stream::close`] for the polite way.
pub struct Stream {
    session: Session,
    assembler: Assembler,
    system_identifier: u64,
    timeline: u32,
    flushed_at_connect: Lsn,
    silence_timeout: Duration,
    /// When the last message came.
    heard: Instant,
    /// When the transaction at hand began to come.
    begun: Instant,
    /// Nothing above may be confirmed.
    returned: Lsn,
    confirmed: AtomicU64,
    /// Rings after each status that told the server of a newer position.
    told: Arc<Notify>,
    failed: bool,
    metrics: Arc<Metrics>,
}

impl Stream {
    /// Connects to the first usable host and starts the stream at `start`, which must be a commit end LSN that is
    /// durable with us, or [`Lsn::ZERO`] for where the slot is. Returns when the server has accepted it: the slot is
    /// ours then.
    ///
    /// `start` is confirmed to the server at once. A `start` above what the server has written is refused
    /// ([`WalError::Ahead`]); one below the slot's confirmed position is silently moved up to it by the server, so
    /// compare with [`SlotState::confirmed_flush`](super::SlotState) first.
    ///
    /// On success the slot's earlier spill leftovers are gone and `stream_connects` is counted; a failure is counted in
    /// `stream_errors`.
    pub async fn connect(config: &WalConfig, start: Lsn, metrics: &Arc<Metrics>) -> Result<Stream, WalError> {
        let told = Arc::new(Notify::new());
        let ring = told.clone();
        let observer = FeedbackObserver::new(move |_| ring.notify_one());
        let started = match Box::pin(Session::start(config, start, observer)).await {
            Ok((session, identity)) => {
                let parsed = identity.system_id.parse();
                parsed
                    .map(|id: u64| (session, id, identity))
                    .map_err(|e| WalError::Protocol(format!("IDENTIFY_SYSTEM: {e}")))
            }
            Err(error) => Err(error),
        };
        let (session, system_identifier, identity) = started.inspect_err(|error| count(metrics, error))?;
        spill::sweep(&config.spill_dir);
        metrics.stream_connects.inc();
        metrics.streaming.set(1);
        Ok(Stream {
            session,
            assembler: Assembler::new(SpillPlace::new(&config.spill_dir), config.spill_threshold),
            system_identifier,
            timeline: identity.timeline,
            flushed_at_connect: Lsn(identity.xlogpos.0),
            silence_timeout: config.silence_timeout,
            heard: Instant::now(),
            begun: Instant::now(),
            returned: start,
            confirmed: AtomicU64::new(start.0),
            told,
            failed: false,
            metrics: metrics.clone(),
        })
    }

    /// `pg_control_system().system_identifier`: which cluster this is.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// The server's timeline; grows with each promotion.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Up to where the server had flushed its WAL when we connected. Every transaction that had returned to its writer
    /// by then ends at or before it (unless `synchronous_commit` was off).
    pub fn flushed_at_connect(&self) -> Lsn {
        self.flushed_at_connect
    }

    /// The next whole committed transaction or idle position, in commit order. Cancel-safe. An idle position follows at
    /// the latest after a third of the silence timeout. After an error, only [`WalError::Ended`] follows: connect
    /// again.
    pub async fn next(&mut self) -> Result<Received, WalError> {
        if self.failed {
            return Err(WalError::Ended);
        }
        let received = self.receive().await;
        match &received {
            Ok(Received::Transaction(transaction)) => self.returned = self.returned.max(transaction.end_lsn),
            Ok(Received::Idle(lsn)) => self.returned = self.returned.max(*lsn),
            Err(error) => {
                self.failed = true;
                self.metrics.streaming.set(0);
                count(&self.metrics, error);
            }
        }
        received
    }

    async fn receive(&mut self) -> Result<Received, WalError> {
        loop {
            if let Some(completed) = self.assembler.settle().await? {
                // Before version 15, transactions that touch nothing published come too, empty.
                if completed.transaction.items == 0 {
                    return Ok(Received::Idle(completed.transaction.end_lsn));
                }
                self.metrics.decode.observe(self.begun.elapsed().as_secs_f64());
                self.metrics.transactions.inc();
                self.metrics.changes.inc_by(completed.rows);
                self.metrics.spilled_transactions.inc_by(u64::from(completed.spilled));
                return Ok(Received::Transaction(Arc::new(completed.transaction)));
            }
            // What waits in the buffer is taken even if the caller was away for longer than the timeout.
            let received = timeout_at(self.heard + self.silence_timeout, self.session.receive()).await;
            let event = received.map_err(|_| WalError::Silence(self.silence_timeout))??;
            self.heard = Instant::now();
            if matches!(event, ReplicationEvent::Begin { .. }) {
                self.begun = self.heard;
            }
            if let ReplicationEvent::KeepAlive { wal_end, .. } = event {
                match self.assembler.keepalive(Lsn(wal_end.0)) {
                    Some(position) => return Ok(Received::Idle(position)),
                    None => continue,
                }
            }
            self.assembler.accept(message(event)?)?;
        }
    }

    /// Everything that commits before `durable` is durable with us and need not be sent again. Cheap; only growth
    /// counts; the server is told within the status interval. A position that was not returned yet is cut down to the
    /// last that was.
    pub fn confirm(&self, durable: Lsn) {
        if durable > self.returned {
            tracing::error!(%durable, returned = %self.returned, "a position was confirmed that the stream has not reached");
        }
        let durable = durable.min(self.returned);
        let before = self.confirmed.fetch_max(durable.0, Ordering::AcqRel);
        if durable.0 > before {
            self.session.confirm(durable);
            self.metrics.confirmed_lsn.set(durable.0.cast_signed());
        }
    }

    /// Ends the session, after the last confirmed position has been sent or `deadline` is over. What arrives meanwhile
    /// is thrown away; it was not confirmed and will come again.
    pub async fn close(mut self, deadline: Duration) {
        let end = Instant::now() + deadline;
        let confirmed = Lsn(*self.confirmed.get_mut());
        while !self.failed && self.session.confirmed_on_the_wire() < confirmed {
            tokio::select! {
                () = self.told.notified() => {}
                // Read on, so that the library is never stuck with an event in its hand.
                event = self.session.receive() => if event.is_err() { return },
                () = tokio::time::sleep_until(end) => break,
            }
        }
        let _ = timeout_at(end.max(Instant::now() + GOODBYE), self.session.shutdown()).await;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.metrics.streaming.set(0);
    }
}

fn count(metrics: &Metrics, error: &WalError) {
    metrics.stream_errors.get_or_create(&[("kind", error.label())]).inc();
}

/// The library has parsed some messages already; the rest comes as bytes.
fn message(event: ReplicationEvent) -> Result<Message, WalError> {
    Ok(match event {
        ReplicationEvent::XLogData { data, .. } => pgoutput::decode(&data)?,
        ReplicationEvent::Begin { final_lsn, xid, commit_time_micros } => {
            Message::Begin { commit_lsn: Lsn(final_lsn.0), commit_time: Timestamp(commit_time_micros), xid }
        }
        ReplicationEvent::Commit { lsn, end_lsn, commit_time_micros } => Message::Commit {
            commit_lsn: Lsn(lsn.0),
            end_lsn: Lsn(end_lsn.0),
            commit_time: Timestamp(commit_time_micros),
        },
        ReplicationEvent::Message { transactional, lsn, prefix, content } => {
            Message::Logical { transactional, lsn: Lsn(lsn.0), prefix: Bytes::from(prefix), content }
        }
        // No stop position is ever given, and keepalives were taken before.
        ReplicationEvent::StoppedAt { .. } | ReplicationEvent::KeepAlive { .. } => return Err(WalError::Ended),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_can_own_the_stream() {
        fn sendable<T: Send>(_: T) {}
        fn future(stream: &mut Stream) {
            sendable(stream.next());
        }
        let _: fn(&mut Stream) = future;
    }
}
