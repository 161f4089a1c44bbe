//! The log as those see it who know places and read no rows: where it ends, and what it keeps.
//!
//! The gateway is given this and not the log: what it sends must have been permitted.

use std::time::Duration;

use super::Cursor;
use crate::change::Position;
use crate::log::{Epoch, Log, Place};

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
        let (epoch, end) = self.0.head()?;
        Some(Cursor { epoch: epoch.tag(), position: Position { lsn: end, ordinal: u32::MAX } })
    }

    /// [`Cursor::epoch`] of the history that is being recorded.
    pub fn epoch(&self) -> Option<u64> {
        self.0.epoch().map(Epoch::tag)
    }

    /// Whether everything after this place can be given.
    pub fn goes_on_from(&self, cursor: Cursor) -> bool {
        self.0.place(cursor.epoch, cursor.position) == Place::Here
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
