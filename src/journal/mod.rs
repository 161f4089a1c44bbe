//! What decides silence, kept for a while: who was subscribed to what and since when, what ended it, what was not decided,
//! which rules and facts changed. `rowcast why` answers from it.
//!
//! ```text
//!  hub, gateway ── note() ──► bounded queue ──► Writer (one task) ──► journal/0000….journal, the oldest removed
//!                    never waits                                        ▲
//!                                                  read() ──────────────┘ also while it is written
//! ```
//!
//! Invariants:
//! * [`Journal::note`] never waits and never fails. What the queue or the disk does not take is counted, and the journal itself
//!   says from when to when something is missing ([`Note::Hole`]): "not known" is never told as "did not happen".
//! * It holds user ids (`sub`), roles, topics and the filters of subscriptions: never a row's values, a token or another claim.
//!   Each file says so in its first line, and is readable by its owner alone.
//! * Bounded in bytes and in age; a file is removed whole, the oldest first.
//! * A file is appended to by the run that made it and no other. A torn end is where that file ends.
//!
//! Nothing is synced to disk: it is evidence, not data, and a crash of the machine shows as a hole. A delivery is not noted,
//! there are too many; it follows from what is: subscribed, matched, permitted, and nothing of this in between.
//!
//! Rejected: the log of changes as the place for it (a slow disk would then hold up what clients get), and tracing's output
//! (nobody can ask it).

mod codec;
mod note;
mod reader;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use note::{Note, User, Wanted};
pub use reader::Extent;
pub use writer::Writer;

use crate::clock::Clock;
use crate::log::Files;
use crate::metrics::Metrics;

/// Where the journal is and how much of it is kept.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// The folder; the journal owns it.
    pub dir: PathBuf,
    /// Most bytes of all its files; 0: there is no journal.
    pub bytes: u64,
    /// A file is removed when the newest note in it is older.
    pub age: Duration,
}

impl JournalConfig {
    /// The defaults, in this folder: 64 MiB, a week.
    pub fn new(dir: impl Into<PathBuf>) -> JournalConfig {
        JournalConfig { dir: dir.into(), bytes: 64 << 20, age: Duration::from_secs(7 * 24 * 3600) }
    }
}

/// Notes that may wait for the writer.
const QUEUE: usize = 65_536;
/// How long a reader waits for what is in the queue.
const FLUSH: Duration = Duration::from_secs(2);

/// What is in the queue.
enum Message {
    /// With its time, in milliseconds since 1970.
    Note(i64, Note),
    /// Answered when everything before it is written, or could not be.
    Flush(oneshot::Sender<()>),
}

/// The way to the journal; cheap to clone.
#[derive(Clone)]
pub struct Journal {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    config: JournalConfig,
    files: Arc<dyn Files>,
    clock: Clock,
    queue: mpsc::Sender<Message>,
    missed: Missed,
}

/// Notes that the queue had no room for.
#[derive(Default)]
struct Missed {
    count: AtomicU64,
    /// Milliseconds since 1970; zero if there are none.
    since: AtomicI64,
}

impl Missed {
    fn add(&self, now: i64) {
        let _ = self.since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    /// Since when, and how many; forgets them.
    fn take(&self) -> Option<(i64, u64)> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let since = self.since.swap(0, Ordering::AcqRel);
        Some((since, self.count.swap(0, Ordering::AcqRel)))
    }
}

impl Journal {
    /// One that notes nothing.
    pub fn off() -> Journal {
        Journal { shared: None }
    }

    /// The way to it and the task that writes it; nothing runs yet, and no file is touched. `None` for the task if it is off.
    pub fn new(
        config: JournalConfig,
        files: Arc<dyn Files>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> (Journal, Option<Writer>) {
        if config.bytes == 0 {
            return (Journal::off(), None);
        }
        let (queue, messages) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared { config, files, clock, queue, missed: Missed::default() });
        let writer = Writer::new(shared.clone(), messages, metrics);
        (Journal { shared: Some(shared) }, Some(writer))
    }

    /// Whether anything is noted.
    pub fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Notes something that has just happened. Never waits.
    pub fn note(&self, note: Note) {
        let Some(shared) = &self.shared else { return };
        let now = shared.clock.unix_millis();
        if shared.queue.try_send(Message::Note(now, note)).is_err() {
            shared.missed.add(now);
        }
    }

    /// Waits until everything noted so far can be read, at most two seconds. Says whether it can.
    pub async fn flush(&self) -> bool {
        let Some(shared) = &self.shared else { return true };
        let (done, written) = oneshot::channel();
        let flushing = async { shared.queue.send(Message::Flush(done)).await.is_ok() && written.await.is_ok() };
        tokio::time::timeout(FLUSH, flushing).await.unwrap_or(false)
    }

    /// Calls `each` for every note with its time in milliseconds since 1970, oldest first. Blocking. Where notes are missing,
    /// it is called with a [`Note::Hole`].
    pub fn read(&self, each: &mut dyn FnMut(i64, Note)) -> io::Result<Extent> {
        let Some(shared) = &self.shared else { return Ok(Extent::default()) };
        reader::read(&*shared.files, &shared.config.dir, each)
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal").field("on", &self.is_on()).finish()
    }
}
