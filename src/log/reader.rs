//! Reading: from memory when close to the end, else from disk, changing over without hole or repeat because the only thing
//! a reader remembers is its position.
//!
//! Rejected: a broadcast channel per reader. Either it is bounded and a slow reader loses, or it isn't and a slow reader
//! takes the memory; and joining it exactly where the disk ends needs a lock that appending would have to wait for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinHandle;

use super::cursor::{Batch, Cursor, read_batch};
use super::state::Shared;
use super::{Epoch, LogError};
use crate::change::{Lsn, Transaction};

/// What a [`Reader`] yields.
#[derive(Debug, Clone)]
pub enum Read {
    /// The next transaction.
    Transaction(Arc<Transaction>),
    /// The stream is known to be complete up to here, and nothing new is in it.
    Idle(Lsn),
    /// The reader fell below the floor, or the epoch changed: what was between is not here. Reading goes on from `resumed`.
    Gap {
        /// Where the reader was.
        from: Lsn,
        /// Where it is now.
        resumed: Lsn,
    },
}

/// A place in the log, moving forward.
pub struct Reader {
    shared: Arc<Shared>,
    generation: u64,
    /// Of the history that `position` is in.
    epoch: Option<Epoch>,
    position: Lsn,
    /// When the latest transaction that was yielded was appended; `None` if it came from disk.
    appended_at: Option<Instant>,
    /// Read from disk and not yet handed out.
    ready: VecDeque<Read>,
    cursor: Option<Cursor>,
    /// The trip to the disk under way. Kept here, so that a caller that gives up waiting (a `select!`) loses no work.
    pending: Option<JoinHandle<Batch>>,
}

enum Step {
    Read(Read),
    Disk,
    End,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: Lsn) -> Reader {
        let (generation, epoch) = {
            let state = shared.state();
            (state.generation, state.epoch)
        };
        Reader {
            shared,
            generation,
            epoch,
            position: from,
            appended_at: None,
            ready: VecDeque::new(),
            cursor: None,
            pending: None,
        }
    }

    /// Everything up to here has been yielded.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The history that [`Reader::position`] is in, and what was yielded last; `None` before the first.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Whether no other history has begun since the latest thing was yielded.
    pub fn is_current(&self) -> bool {
        self.generation == self.shared.state().generation
    }

    /// Whether both are in the same history, as far as they know.
    pub fn is_beside(&self, other: &Reader) -> bool {
        self.generation == other.generation
    }

    /// When the latest thing yielded was appended, if it is a transaction that did not have to be read from disk.
    pub fn appended_at(&self) -> Option<Instant> {
        self.appended_at
    }

    /// The next thing; waits at the end of the log, as long as it takes. Cancel-safe. After an error the position is where it
    /// was: asking again reads again.
    pub async fn next(&mut self) -> Result<Read, LogError> {
        let shared = self.shared.clone();
        loop {
            let mut changed = std::pin::pin!(shared.changed.notified());
            // Before looking, so that an append between the look and the wait wakes us.
            changed.as_mut().enable();
            if let Some(read) = self.try_next().await? {
                return Ok(read);
            }
            changed.await;
        }
    }

    /// Like [`Reader::next`], but `None` at the end of the log. Cancel-safe.
    pub async fn try_next(&mut self) -> Result<Option<Read>, LogError> {
        loop {
            match self.step() {
                Step::Read(read) => return Ok(Some(read)),
                Step::End => return Ok(None),
                Step::Disk => self.load().await?,
            }
        }
    }

    /// What is next, as far as it is known without the disk.
    fn step(&mut self) -> Step {
        let shared = self.shared.clone();
        let state = shared.state();
        if self.generation != state.generation {
            let before = std::mem::replace(&mut self.generation, state.generation);
            self.epoch = state.epoch;
            (self.cursor, self.pending) = (None, None);
            self.ready.clear();
            match state.fork.filter(|(generation, _)| *generation == state.generation && before + 1 == *generation) {
                Some((_, at)) if self.position > at => return self.gap(at),
                // What was read lies before the place where the histories part.
                Some(_) => {}
                // A reader that was there before the first epoch has lost nothing, unless it begins above its position.
                None if before == 0 => {}
                None => return self.gap(state.floor),
            }
        }
        if let Some(read) = self.ready.pop_front() {
            return self.yielded(read);
        }
        if self.pending.is_some() {
            return Step::Disk;
        }
        if self.position < state.floor {
            self.cursor = None;
            return self.gap(state.floor);
        }
        if self.position < state.tail.from() {
            return Step::Disk;
        }
        self.cursor = None;
        match state.tail.after(self.position) {
            Some((transaction, at)) => {
                let step = self.yielded(Read::Transaction(transaction.clone()));
                self.appended_at = Some(*at);
                step
            }
            None if state.end > self.position => self.yielded(Read::Idle(state.end)),
            None => Step::End,
        }
    }

    fn gap(&mut self, resumed: Lsn) -> Step {
        self.yielded(Read::Gap { from: self.position, resumed })
    }

    fn yielded(&mut self, read: Read) -> Step {
        self.appended_at = None;
        self.position = match &read {
            Read::Transaction(transaction) => transaction.end_lsn,
            Read::Idle(lsn) => *lsn,
            Read::Gap { resumed, .. } => *resumed,
        };
        Step::Read(read)
    }

    /// Brings the next batch from disk.
    async fn load(&mut self) -> Result<(), LogError> {
        let pending = self.pending.get_or_insert_with(|| {
            let (shared, cursor, position) = (self.shared.clone(), self.cursor.take(), self.position);
            tokio::task::spawn_blocking(move || read_batch(&shared, cursor, position))
        });
        let batch = pending.await;
        self.pending = None;
        let batch = batch.map_err(|_| LogError::Aborted)?;
        self.cursor = batch.cursor;
        self.ready = batch.reads;
        match batch.error {
            // What was read before it is handed out first; the next trip meets it again.
            Some(error) if self.ready.is_empty() => Err(error),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader(at {})", self.position)
    }
}
