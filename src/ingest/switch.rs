//! When the stream is to have other publications than the log was read with.
//!
//! A position counts the rows that the publications send, so one transaction must not be read twice with different ones; and
//! the server can't decode a row that is older than a publication it is asked for (42704, and no repair helps). So the stream goes
//! on with those that the log knows until everything is behind it that was begun before now; there it is closed, what it
//! brought is made durable, and it is opened again with those that are wanted.
//!
//! Invariants: the log's history goes on, nobody is told of a gap, and changes flow while old transactions are waited for. Where
//! there is no history to go on with, or one of the old publications is gone, there is nothing to wait for.
//!
//! Rejected: a slot made anew, which is a gap for everybody at an upgrade.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::follow::Chores;
use super::notes::Notes;
use super::origin::Origin;
use super::start::{Found, Start};
use super::{Core, IngestError};
use crate::change::Lsn;
use crate::error::chain;

/// Between two tries to learn it.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits for what was begun before now.
#[derive(Default)]
pub(super) struct Switching {
    task: Option<JoinHandle<Result<Lsn, IngestError>>>,
    /// Once known: behind this nothing is older than the publications that are wanted.
    at: Option<Lsn>,
    again_at: Option<Instant>,
}

impl Switching {
    /// What came of the wait; never, if there is none. Cancel-safe.
    pub(super) async fn done(&mut self) -> Result<Lsn, IngestError> {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let done = task.await;
        self.task = None;
        // Aborted or panicked: the panic was printed.
        done.unwrap_or(Err(IngestError::Moved))
    }

    /// When it is tried again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.again_at
    }

    pub(super) fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Those that the stream is asked for, if the history goes on from `start`.
pub(super) fn asked(wanted: &[String], notes: &Notes, switched: bool, start: Start, found: &Found) -> Vec<String> {
    let known = &notes.publications;
    let same = known.len() == wanted.len() && wanted.iter().all(|name| known.contains_key(name));
    let still = |(name, oid): (&String, &u32)| found.publications.get(name) == Some(oid);
    if switched || same || known.is_empty() || matches!(start, Start::Begin(..)) || !known.iter().all(still) {
        return wanted.to_vec();
    }
    known.keys().cloned().collect()
}

/// Of what was found, those that the stream is asked for.
pub(super) fn among(found: &BTreeMap<String, u32>, names: &[String]) -> BTreeMap<String, u32> {
    found.iter().filter(|(name, _)| names.contains(name)).map(|(name, oid)| (name.clone(), *oid)).collect()
}

impl<O: Origin> Core<O> {
    /// The stream has other publications than are wanted.
    fn is_to_switch(&self) -> bool {
        let (wanted, known) = (&self.config.wal.publications, &self.notes.publications);
        // Tests with a server that knows none.
        !known.is_empty() && (known.len() != wanted.len() || !wanted.iter().all(|name| known.contains_key(name)))
    }

    /// At the beginning of a stream, and after a failure.
    pub(super) fn prepare_switch(&mut self, switching: &mut Switching) {
        switching.again_at = None;
        if self.is_to_switch() && switching.at.is_none() && switching.task.is_none() {
            tracing::info!(
                wanted = self.config.wal.publications.join(", "),
                "the stream gets other publications when transactions that are open now have ended; until then it has those from before"
            );
            switching.task = Some(crate::task::spawn("settle", self.origin.settle()));
        }
    }

    /// Takes in how far the stream has to go.
    pub(super) fn settled(&mut self, settled: Result<Lsn, IngestError>, switching: &mut Switching) {
        match settled {
            Ok(at) => switching.at = Some(at),
            Err(error) => {
                tracing::warn!(error = chain(&error), "it can't be learnt when the stream may get other publications");
                switching.again_at = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// An error once the stream has come so far; what it brought is in the log.
    pub(super) fn switch_if_there(&mut self, chores: &Chores) -> Result<(), IngestError> {
        let Some(at) = chores.switching.at else { return Ok(()) };
        let idle = chores.idle();
        if idle.max(self.pen.log.end()) < at {
            return Ok(());
        }
        if idle > self.pen.log.end() {
            self.pen.advance(idle)?;
        }
        Err(IngestError::Switching)
    }
}
