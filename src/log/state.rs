//! What writer and readers share, and the one operation that anybody may do: make it durable.
//!
//! The state's lock is held for look-ups only, never across a file operation. All fsyncs of segments go one at a time through
//! [`Shared::hold_sync`], and none is tried after one failed: Linux reports a failed write-back once, to one caller, and
//! marks the pages clean, so a second fsync would return Ok for bytes that never reached the disk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, Semaphore};

use super::files::{Files, LogFile};
use super::notes::Notes;
use super::relations::Interner;
use super::segment::Header;
use super::tail::Tail;
use super::times::Times;
use super::{Epoch, LogConfig, LogError};
use crate::change::{Lsn, Transaction};
use crate::clock::Clock;
use crate::metrics::Metrics;

/// A segment as readers and retention see it.
pub(super) struct Segment {
    pub(super) header: Header,
    /// Bytes that may be read: whole records only.
    pub(super) length: u64,
}

pub(super) struct State {
    /// Changes with each epoch that is begun; 0 while there is none.
    pub(super) generation: u64,
    /// The generation that went on from the one before it, and from where: readers up to there have lost nothing.
    pub(super) fork: Option<(u64, Lsn)>,
    /// What is noted beside the records.
    pub(super) notes: Notes,
    /// See [`super::Log::written`].
    pub(super) written: Option<Lsn>,
    /// See [`super::Log::set_streamed`].
    pub(super) streamed: Lsn,
    /// Changes each time bytes that could be read are taken back.
    pub(super) cuts: u64,
    pub(super) epoch: Option<Epoch>,
    /// Oldest first; the last is the active one.
    pub(super) segments: VecDeque<Segment>,
    pub(super) floor: Lsn,
    pub(super) end: Lsn,
    pub(super) durable: Lsn,
    /// The active segment's file and how much of it is durable.
    pub(super) active: Option<Arc<dyn LogFile>>,
    pub(super) synced: u64,
    /// A failed fsync, or bytes of a failed append that could not be cut off.
    pub(super) needs_repair: bool,
    pub(super) tail: Tail,
}

impl State {
    pub(super) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.length).sum()
    }

    /// Makes a segment that was just created, and is durable, the active one.
    pub(super) fn install(&mut self, (segment, file): (Segment, Arc<dyn LogFile>)) {
        self.synced = segment.length;
        self.active = Some(file);
        self.segments.push_back(segment);
    }
}

pub(super) struct Shared {
    pub(super) config: LogConfig,
    pub(super) files: Arc<dyn Files>,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) interner: Interner,
    /// Woken after every change of `state` that a waiting reader may care for.
    pub(super) changed: Notify,
    sync_lock: Mutex<()>,
    state: Mutex<State>,
    times: Mutex<Times>,
    /// Who searches for a time, so that those who wait take no thread.
    pub(super) searching: Semaphore,
}

impl Shared {
    pub(super) fn new(
        config: LogConfig,
        files: Arc<dyn Files>,
        clock: Clock,
        metrics: Arc<Metrics>,
        interner: Interner,
        state: State,
    ) -> Arc<Shared> {
        let (changed, sync_lock, state) = (Notify::new(), Mutex::new(()), Mutex::new(state));
        let (times, searching) = (Mutex::default(), Semaphore::new(1));
        let shared = Shared { config, files, clock, metrics, interner, changed, sync_lock, state, times, searching };
        shared.measure(&shared.state());
        Arc::new(shared)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One search at a time: they read the same.
    pub(super) fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self, sequence: u64) -> PathBuf {
        super::segment::path(&self.config.dir, sequence)
    }

    fn measure(&self, state: &State) {
        self.metrics.log_bytes.set(state.bytes().cast_signed());
        self.metrics.log_memory.set(state.tail.bytes() as i64);
        self.metrics.log_floor_lsn.set(state.floor.0.cast_signed());
        self.metrics.log_end_lsn.set(state.end.0.cast_signed());
    }

    /// Changes the state and wakes the readers.
    pub(super) fn publish(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        self.measure(&state);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Makes what a record brought readable: the active segment now is `length` long, and complete up to `end`.
    pub(super) fn appended(&self, length: u64, end: Lsn, transaction: Option<&Arc<Transaction>>) {
        let mut state = self.state();
        if let Some(active) = state.segments.back_mut() {
            let grown = length - active.length;
            active.length = length;
            self.metrics.log_bytes.inc_by(grown.cast_signed());
        }
        state.end = end;
        self.metrics.log_end_lsn.set(end.0.cast_signed());
        if let Some(transaction) = transaction {
            state.tail.push(transaction.clone());
            self.metrics.log_memory.set(state.tail.bytes() as i64);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Keeps everybody else from syncing, and from changing which segment is the active one.
    pub(super) fn hold_sync(&self) -> MutexGuard<'_, ()> {
        self.sync_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`super::Log::sync`]. The caller holds [`Shared::hold_sync`].
    pub(super) fn sync(&self, _held: &MutexGuard<'_, ()>) -> Result<Lsn, LogError> {
        let (file, sequence, length, end) = {
            let state = self.state();
            if state.needs_repair {
                return Err(LogError::NeedsRepair);
            }
            let (Some(file), Some(active)) = (&state.active, state.segments.back()) else { return Ok(state.durable) };
            if state.durable == state.end {
                return Ok(state.durable);
            }
            (file.clone(), active.header.sequence, active.length, state.end)
        };
        let started = Instant::now();
        let result = file.sync_data();
        self.metrics.log_fsync.observe(started.elapsed().as_secs_f64());
        let mut state = self.state();
        match result {
            Ok(()) => {
                state.synced = length;
                state.durable = end;
                Ok(end)
            }
            Err(source) => {
                state.needs_repair = true;
                Err(LogError::Io { action: "sync", path: self.path(sequence), source })
            }
        }
    }
}
