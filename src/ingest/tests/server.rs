//! A Postgres of a few lines.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::PATIENCE;
use crate::change::{Lsn, Timestamp, Transaction, TransactionBuilder};
use crate::ingest::IngestError;
use crate::ingest::error::Holder;
use crate::ingest::notes::Reader;
use crate::ingest::origin::{Origin, Source};
use crate::ingest::report::Report;
use crate::ingest::start::{Found, Lineage};
use crate::ingest::tend::{TOKEN_PREFIX, Tended, Turn};
use crate::log::Epoch;
use crate::wal::{Received, SlotFault, SlotState, WalError};

pub(super) const SERVER: u64 = 42;

impl Inner {
    fn publications(&self) -> std::collections::BTreeMap<String, u32> {
        self.more.iter().cloned().chain([("p".to_owned(), self.publication)]).collect()
    }
}

/// A Postgres with nothing but a slot: what was committed, and what was confirmed.
#[derive(Clone, Default)]
pub(super) struct Server {
    inner: Arc<Mutex<Inner>>,
    /// Rings when something was committed, confirmed, connected or closed.
    changed: Arc<Notify>,
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) committed: Vec<Arc<Transaction>>,
    /// Complete up to here.
    pub(super) written: u64,
    pub(super) confirmed: u64,
    pub(super) lineage: Option<Lineage>,
    pub(super) connects: u32,
    /// The publications that each asked for.
    pub(super) asked: Vec<Vec<String>>,
    /// Publications beside `p`.
    pub(super) more: Vec<(String, u32)>,
    /// Transactions from before are open.
    pub(super) unsettled: bool,
    /// Errors for the next attempts to look at the slot.
    pub(super) failing: VecDeque<WalError>,
    /// Another relay moves the slot to here between our look and our getting hold of it.
    pub(super) moved: Option<u64>,
    /// A stream breaks after so many more transactions.
    pub(super) breaks_after: Option<u32>,
    pub(super) beats: u32,
    pub(super) looks: u32,
    pub(super) connected: bool,
    /// Who reads the slot once we have connected.
    pub(super) holder_when_connected: Option<Holder>,
    /// Such as 15; 0 counts as one of long ago.
    pub(super) major: i32,
    /// 0 counts as 1. Each later one with the end of the one before it.
    pub(super) timeline: u32,
    pub(super) ends: Vec<(u32, u64)>,
    /// The slot was dropped, or made and not confirmed since.
    pub(super) missing: bool,
    pub(super) created: bool,
    pub(super) lost: bool,
    pub(super) drops: u32,
    /// Oids of publication `p`.
    pub(super) publication: u32,
    /// Somebody reads the slot; who ends when told.
    pub(super) holder: Option<Holder>,
    pub(super) terminated: Vec<Reader>,
    /// The stream can't decode what comes after this.
    pub(super) poisoned_after: Option<u64>,
    /// Tokens that were written do not come through the stream.
    pub(super) deaf: bool,
}

pub(crate) struct Stream {
    server: Server,
    position: u64,
    timeline: u32,
}

impl Server {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("not poisoned")
    }

    pub(super) fn commit(&self, end: u64, bytes: usize) {
        self.lock().committed.push(transaction(end, bytes));
        self.idle(end);
    }

    pub(super) fn idle(&self, written: u64) {
        self.lock().written = written;
        self.changed.notify_waiters();
    }

    /// Waits until it is so.
    pub(super) async fn until(&self, what: &str, mut so: impl FnMut(&Inner) -> bool) {
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

impl Drop for Stream {
    fn drop(&mut self) {
        self.server.lock().connected = false;
    }
}

impl Origin for Server {
    type Source = Stream;

    async fn look(&mut self, _report: &mut Report) -> Result<Found, IngestError> {
        let mut inner = self.lock();
        inner.looks += 1;
        drop(inner);
        self.changed.notify_waiters();
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
            waits_for_standbys: false,
            slot,
            holder: inner.holder.clone().or_else(|| inner.holder_when_connected.clone().filter(|_| inner.connected)),
            publications: inner.publications(),
            lineage: inner.lineage.clone(),
        })
    }

    async fn lineage(&mut self) -> Result<Option<Lineage>, IngestError> {
        Ok(self.lock().lineage.clone())
    }

    async fn timelines(&mut self, _timeline: u32) -> Result<Vec<(u32, Lsn)>, IngestError> {
        Ok(self.lock().ends.iter().map(|(timeline, end)| (*timeline, Lsn(*end))).collect())
    }

    async fn connect(&mut self, start: Lsn, publications: &[String]) -> Result<Stream, IngestError> {
        let mut inner = self.lock();
        inner.asked.push(publications.to_vec());
        if start.0 > inner.written {
            return Err(WalError::Ahead { start, written: Lsn(inner.written) }.into());
        }
        if let Some(moved) = inner.moved.take() {
            inner.confirmed = moved;
        }
        // The server moves a start below the slot's position up, without a word.
        inner.confirmed = inner.confirmed.max(start.0);
        (inner.connects, inner.connected) = (inner.connects + 1, true);
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

    fn settle(&self) -> impl Future<Output = Result<Lsn, IngestError>> + Send + 'static {
        let server = self.clone();
        async move {
            server.until("transactions have ended", |inner| !inner.unsettled).await;
            let mut inner = server.lock();
            let here = inner.written;
            inner.written += 1;
            drop(inner);
            server.changed.notify_waiters();
            Ok(Lsn(here))
        }
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
            let publications = inner.publications();
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

pub(super) fn transaction(end: u64, bytes: usize) -> Arc<Transaction> {
    message(end, "test", &vec![b'x'; bytes])
}

fn message(end: u64, prefix: &str, content: &[u8]) -> Arc<Transaction> {
    let mut builder = TransactionBuilder::default();
    builder.message(Lsn(end), prefix.as_bytes(), content).expect("a message");
    Arc::new(builder.finish(end as u32, Lsn(end - 1), Lsn(end), Timestamp(end as i64), None))
}
