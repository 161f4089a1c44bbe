//! The durable, replayable record of committed transactions.
//!
//! ```text
//!  ingest ── append ──► segment file ──► readable at once ──► Reader (hub, replays)
//!    │                      │                                  memory tail if close to the end, else disk
//!    └── sync ──► fsync ────┘──► durable() ──► only now confirmed to Postgres
//! ```
//!
//! Invariants:
//! * A position up to which [`Log::sync`] returned survives any crash, names of files included.
//! * Transactions are stored and read in commit order, each once, whole. Appending is idempotent by end LSN.
//! * Reading yields every transaction above the reader's position, or an explicit [`Read::Gap`]. Never a silent hole: each
//!   segment says where the one before it ends, and a reader checks that it got there.
//! * Nothing is handed out that doesn't match its checksum.
//! * The log knows no subscriber and no WAL client: a slow reader lags here and holds nobody up.
//!
//! **Torn or damaged.** At opening only the last segment is scanned; the others were durable before it was begun. If the scan
//! meets a bad record, the rest is searched for a whole record whose `synced` field says that the bad bytes had been durable
//! when it was written. If there is one, the disk lost what it had promised: opening is refused. If not, the tail is torn
//! (never confirmed to Postgres, which will send it again) and is cut, whatever whole records stand in it: a disk may write
//! the second page of an unsynced group and lose the first. What can't be told: a record that was synced, with none written
//! after that sync, and then damaged, looks like a torn one. Who compares [`Log::end`] with the slot's confirmed position at
//! start will notice.
//!
//! **A failed fsync** is final for the bytes it was asked for (the kernel drops them and forgets). The durable position stays,
//! writing is refused, and [`LogWriter::repair`] goes back to the durable position in a new file; Postgres still has the rest.
//! For the same reason opening writes the last, possibly unsynced, records once more before it calls them durable.
//!
//! Rejected: an embedded database (rocksdb, fjall, redb: a third to two thirds of the speed, and slow to open after a kill);
//! one checksum per row (nobody needs half a transaction); an index file (a second truth to recover; a segment is scanned in
//! milliseconds).

mod codec;
mod cursor;
mod error;
mod files;
mod fork;
mod notes;
mod reader;
mod recover;
mod relations;
mod retention;
mod scan;
mod segment;
mod state;
mod tail;
mod times;
pub mod testing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use error::LogError;
pub use files::{Files, Lock, LogFile, RealFiles};
pub use reader::{Read, Reader};
pub use times::Place;
pub use writer::LogWriter;

use crate::change::Lsn;
use crate::clock::Clock;
use crate::metrics::Metrics;
use state::Shared;

/// Where the log is and how much of it is kept.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// The folder; the log owns it. Files of other names in it are left alone.
    pub dir: PathBuf,
    /// A segment is closed before it grows beyond this, unless a single transaction is larger.
    pub segment_bytes: u64,
    /// Whole segments are removed from the old end while all together are larger.
    pub retain_bytes: u64,
    /// Segments are removed when the newest transaction in them is older, by the relay's clock.
    pub retain_age: Duration,
    /// Bytes of transactions held in memory for readers near the end.
    pub tail_bytes: usize,
}

impl LogConfig {
    /// The defaults, in this folder: 64 MiB segments, 4 GiB or 24 hours kept, 64 MiB in memory.
    pub fn new(dir: impl Into<PathBuf>) -> LogConfig {
        LogConfig {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            retain_bytes: 4 << 30,
            retain_age: Duration::from_secs(24 * 3600),
            tail_bytes: 64 << 20,
        }
    }
}

/// The name of one history. Positions of different epochs can't be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// `pg_control_system().system_identifier`.
    pub system_identifier: u64,
    /// Random, chosen when the slot was created.
    pub incarnation: u128,
}

impl Epoch {
    /// Its short name, as cursors carry it. Different for different epochs but for one in 2^64.
    pub fn tag(self) -> u64 {
        // The half of a random number.
        (self.incarnation >> 64) as u64 ^ self.incarnation as u64 ^ self.system_identifier
    }
}

/// An open log: the handle that everybody may clone, and the one writer.
#[derive(Debug)]
pub struct Opened {
    /// For readers, and for syncing.
    pub log: Log,
    /// For the one who appends; owns the folder's lock.
    pub writer: LogWriter,
}

/// Opens the log: takes the exclusive lock of the folder (held as long as the writer lives), creates it if missing, recovers.
/// Blocking. Everything found is durable when this returns.
pub fn open(config: LogConfig, files: Arc<dyn Files>, clock: Clock, metrics: Arc<Metrics>) -> Result<Opened, LogError> {
    files.create_dir(&config.dir).map_err(LogError::io("create", &config.dir))?;
    let lock_path = config.dir.join("lock");
    let lock = match files.lock(&lock_path).map_err(LogError::io("lock", &lock_path))? {
        Lock::Ours(lock) => lock,
        Lock::Held { holder } => return Err(LogError::Locked { dir: config.dir, holder }),
    };
    let interner = relations::Interner::default();
    let notes = notes::Notes::load(&*files, &config.dir)?;
    let (state, active) = recover::recover(&config, &*files, &interner, notes)?;
    let shared = Shared::new(config, files, clock, metrics, interner, state);
    let writer = LogWriter::new(shared.clone(), lock, active);
    Ok(Opened { log: Log { shared }, writer })
}

/// A handle on the log; cheap to clone.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
}

impl Log {
    /// Makes everything appended so far durable and returns the position that now is. Blocking (call it on a blocking
    /// thread); appends go on meanwhile. After an error, nothing is durable that wasn't before, and all writing is refused
    /// until [`LogWriter::repair`].
    pub fn sync(&self) -> Result<Lsn, LogError> {
        let held = self.shared.hold_sync();
        self.shared.sync(&held)
    }

    /// The position up to which everything survives a crash.
    pub fn durable(&self) -> Lsn {
        self.shared.state().durable
    }

    /// The position up to which the log is complete and readable, durable or not.
    pub fn end(&self) -> Lsn {
        self.shared.state().end
    }

    /// All transactions with end LSN > floor (and ≤ [`Log::end`]) are here.
    pub fn floor(&self) -> Lsn {
        self.shared.state().floor
    }

    /// Where a reader can go on to whom the segment that holds what comes after this position is unreadable: where the next
    /// one begins. `None` if there is none.
    pub fn next_segment(&self, position: Lsn) -> Option<Lsn> {
        let state = self.shared.state();
        state.segments.iter().map(|segment| segment.header.base).find(|base| *base > position)
    }

    /// The history that is being recorded; `None` before the first.
    pub fn epoch(&self) -> Option<Epoch> {
        self.shared.state().epoch
    }

    /// See [`LogWriter::slot_notes`].
    pub fn slot_notes(&self) -> serde_json::Value {
        self.shared.state().notes.slot.clone()
    }

    /// The history that is being recorded, and how far it is readable; `None` before the first.
    pub fn head(&self) -> Option<(Epoch, Lsn)> {
        let state = self.shared.state();
        state.epoch.map(|epoch| (epoch, state.end))
    }

    /// Whether a position of the history with this [`Epoch::tag`] means the same here: it is ours, or one that ours went on
    /// from, and the position lies before they parted. Says nothing of the floor.
    pub fn shares(&self, tag: u64, position: Lsn) -> bool {
        self.shared_until(tag).is_some_and(|until| position <= until)
    }

    /// Up to where the history of this tag is the same as the one being recorded, which is so without an end for that one
    /// itself; `None` if it is another one altogether.
    pub fn shared_until(&self, tag: u64) -> Option<Lsn> {
        let state = self.shared.state();
        let epoch = state.epoch?;
        if epoch.tag() == tag { Some(Lsn(u64::MAX)) } else { state.notes.shared(epoch, tag) }
    }

    /// Up to where the server is known to have flushed its WAL, and at least the log's end; `None` until that was asked. No
    /// position beyond was ever given out in this history, so none will come: whoever waits there waits in vain.
    pub fn written(&self) -> Option<Lsn> {
        let state = self.shared.state();
        state.written.map(|written| written.max(state.end))
    }

    /// Notes up to where the server has flushed its WAL. Only growth counts, until another history begins.
    pub fn set_written(&self, flushed: Lsn) {
        let mut state = self.shared.state();
        state.written = state.written.max(Some(flushed));
    }

    /// Notes that nothing but what is in the log has come of the stream up to here. In memory only, at once, where
    /// [`LogWriter::advance`] writes, and therefore now and then.
    pub fn set_streamed(&self, position: Lsn) {
        let mut state = self.shared.state();
        state.streamed = state.streamed.max(position);
    }

    /// A stream begins anew, perhaps from a server that was a standby: how far the one before had come says nothing of it.
    pub fn forget_streamed(&self) {
        self.shared.state().streamed = Lsn::ZERO;
    }

    /// Up to where nothing can come any more for whoever has read to `position`.
    pub fn known_from(&self, position: Lsn) -> Lsn {
        let state = self.shared.state();
        if position >= state.end { position.max(state.streamed) } else { position }
    }

    /// How many transactions are between two places, and how many items they have, if all of them are in memory. Costs
    /// no more the further apart they are.
    pub fn distance(&self, after: Lsn, to: Lsn) -> Option<(usize, u64)> {
        self.shared.state().tail.count(after, to)
    }

    /// Bytes in the segments.
    pub fn bytes(&self) -> u64 {
        self.shared.state().bytes()
    }

    /// A reader whose first transaction is the first with end LSN > `from`. `from` may be ahead of the end: the reader then
    /// waits until the stream has passed it. Below the floor, its first answer is a [`Read::Gap`].
    pub fn reader(&self, from: Lsn) -> Reader {
        Reader::new(self.shared.clone(), from)
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state();
        write!(f, "Log({} ..= {}, durable {})", state.floor, state.end, state.durable)
    }
}
