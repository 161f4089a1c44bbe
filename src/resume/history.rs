//! The log as those see it who know places and read no rows: where it ends, what it keeps, where a commit time is.
//!
//! The gateway is given this and not the log: what it sends must have been permitted.

use std::time::Duration;

use super::Cursor;
use crate::change::{Lsn, Position, Timestamp};
use crate::log::{Epoch, Log, LogError, Place};

/// See the module's comment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct History(Log);

impl History {
    /// Of this log.
    pub fn new(log: Log) -> History {
        History(log)
    }

    /// The place behind everything that is recorded; `None` before the first history.
    pub fn here(&self) -> Option<Cursor> {
        self.0.head().map(|(epoch, end)| place(epoch, end))
    }

    /// [`Cursor::epoch`] of the history that is being recorded.
    pub fn epoch(&self) -> Option<u64> {
        self.0.epoch().map(Epoch::tag)
    }

    /// Whether everything after this place can be given.
    pub fn goes_on_from(&self, cursor: Cursor) -> bool {
        self.0.place(cursor.epoch, cursor.position) == Place::Here
    }

    /// The place behind which is everything that committed at or after this time: one that is not kept any more if some of
    /// that was removed. `None` before the first history, and while another one begins.
    pub async fn before(&self, time: Timestamp) -> Result<Option<Cursor>, LogError> {
        let Some((epoch, _)) = self.0.head() else { return Ok(None) };
        let end = self.0.find(time).await?;
        Ok((self.0.epoch() == Some(epoch)).then(|| place(epoch, end)))
    }

    /// What is kept: bytes, and for how long.
    pub fn kept(&self) -> (u64, Duration) {
        self.0.kept()
    }

    /// About how many bytes were recorded after this place.
    pub fn bytes_since(&self, cursor: Cursor) -> u64 {
        self.0.bytes_since(cursor.position.lsn)
    }
}

fn place(epoch: Epoch, lsn: Lsn) -> Cursor {
    Cursor { epoch: epoch.tag(), position: Position { lsn, ordinal: u32::MAX } }
}
