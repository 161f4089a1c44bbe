//! The same seam for messages that a session reads out of the table: what was read, and the tail that follows it.
//!
//! A session asks for the [`Footing`] first, then reads, and has the two made into where the tail begins and what it leaves out
//! ([`Replayed`]): every message that the reading could see, also one that it was cut off from by its time or its limit.
//!
//! Ids are not enough for that: they tell neither what was cut off, nor that a message which is in the stream already was still
//! hidden. They are looked at as well, and for good: a row that an UPDATE moves to another partition comes as a new one with the
//! old id. And they decide alone where the transactions that were seen are no guide: in another history, which gives their
//! numbers to others, and for a device, to which more is owed than was read.
//!
//! Rejected: beginning at the end of the log as of before the reading. A commit that waits for a standby is in the stream before
//! it can be seen, and would be in neither part.

#[cfg(test)]
use std::sync::Arc;

use crate::catalog::Snapshot;
use crate::change::{Lsn, Position};
use crate::resume::Cursor;

use super::seam::{Ground, Seam};

/// Where the stream is, before something is read from the database.
#[derive(Debug, Clone)]
pub struct Footing {
    pub(super) ground: Ground,
    pub(super) epoch: u64,
}

impl Footing {
    /// Where everything up to there can be seen.
    #[cfg(test)]
    pub fn of(at: Cursor) -> Footing {
        Footing { ground: Ground { at: at.position, unseen: Arc::default() }, epoch: at.epoch }
    }

    /// What was read since: `sees` is its snapshot, `until` the end of the WAL after that was taken, `ids` what was found.
    /// Returns the place behind which the tail begins, too.
    pub fn replayed(&self, sees: Snapshot, until: Lsn, ids: Vec<[u8; 16]>) -> (Cursor, Replayed) {
        let start = Cursor { epoch: self.epoch, position: self.ground.start(&sees) };
        let seam = Seam::new(sees, until, Some(self.epoch));
        (start, Replayed { seam, ids: ids.into(), is_owed_more: false })
    }
}

/// What of a topic's messages a member is not to get from the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    seam: Seam,
    /// A UUID's 16 bytes.
    ids: Box<[[u8; 16]]>,
    is_owed_more: bool,
}

impl Replayed {
    /// For who begins somewhere else, and is owed what comes after that but for what was read.
    #[must_use]
    pub fn owed_more(&self) -> Replayed {
        Replayed { is_owed_more: true, ..self.clone() }
    }

    /// What was read.
    pub fn ids(&self) -> &[[u8; 16]] {
        &self.ids
    }

    /// Whether a message is left out: of this transaction, which ended at `at` in the history `epoch`. `shares`: whether a place
    /// of the history that it names means the same in that one.
    pub(in crate::hub) fn has(
        &self,
        (xid, epoch): (u32, Option<u64>),
        at: Position,
        id: Option<[u8; 16]>,
        shares: impl FnOnce(u64, Lsn) -> bool,
    ) -> bool {
        if id.is_some_and(|id| self.ids.contains(&id)) {
            return true;
        }
        let own = self.seam.epoch();
        !self.is_owed_more
            && self.seam.shows((xid, own), at.lsn)
            && (epoch == own || own.is_some_and(|own| shares(own, at.lsn)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(lsn: u64) -> Position {
        Position { lsn: Lsn(lsn), ordinal: u32::MAX }
    }

    #[test]
    fn what_a_reading_sees_is_left_out_and_what_it_does_not_see_is_not() {
        let ground = Ground { at: end_of(300), unseen: Arc::new([(7, Lsn(100)), (8, Lsn(200))].into()) };
        let sees = Snapshot::parse("7:10:7").expect("a snapshot");
        let (start, replayed) = Footing { ground, epoch: 1 }.replayed(sees, Lsn(400), vec![[8; 16]]);
        assert_eq!(start, Cursor { epoch: 1, position: end_of(99) });
        let shares = |_, at: Lsn| at <= Lsn(250);
        let has = |of: &Replayed, xid, epoch, at, id| of.has((xid, Some(epoch)), end_of(at), Some([id; 16]), shares);
        assert!(!has(&replayed, 7, 1, 100, 7), "it was hidden");
        assert!(has(&replayed, 8, 1, 200, 8), "it was read");
        assert!(has(&replayed, 9, 1, 400, 9), "it was cut off");
        assert!(!has(&replayed, 10, 1, 350, 10), "it had not ended");
        assert!(!has(&replayed, 8, 1, 401, 11), "it came later, by a number that is used again");
        assert!(has(&replayed, 12, 1, 500, 8), "it was moved later");
        // Where another history is still the same, and where it is not: there ids alone say what was read.
        assert!(has(&replayed, 9, 2, 240, 9) && !has(&replayed, 7, 2, 100, 7));
        assert!(has(&replayed, 9, 2, 260, 8) && !has(&replayed, 9, 2, 260, 9));
        let device = replayed.owed_more();
        assert!(has(&device, 8, 1, 200, 8) && !has(&device, 9, 1, 400, 9));
    }
}
