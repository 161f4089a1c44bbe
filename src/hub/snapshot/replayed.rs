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
//! The transactions are looked at up to the reading's end only. One that the reading saw had its commit in the WAL by then; so
//! whatever ends later it did not see, and how long something that was in progress takes is no matter. Who has been given
//! everything up to there, and would go on from there if he asked again, needs them no more: they are let go
//! ([`Replayed::let_go`]), since of a busy server's many they are long, and the channel may stay for days.
//!
//! Rejected: beginning at the end of the log as of before the reading. A commit that waits for a standby is in the stream before
//! it can be seen, and would be in neither part.

#[cfg(test)]
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use crate::catalog::Snapshot;
use crate::change::{Lsn, Position};
use crate::hub::ChannelId;
use crate::hub::run::Hub;
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
        let (until, ids) = (seam.until(), ids.into());
        (start, Replayed { until, seam: Mutex::new(Some(seam)), ids, is_owed_more: false })
    }
}

/// What of a topic's messages a member is not to get from the stream. Shared by the session, which may ask again, and the hub.
#[derive(Debug)]
pub struct Replayed {
    /// Behind this only ids leave something out.
    until: Cursor,
    /// Which transactions the reading saw, as long as one of them may come.
    seam: Mutex<Option<Seam>>,
    /// A UUID's 16 bytes.
    ids: Box<[[u8; 16]]>,
    is_owed_more: bool,
}

impl PartialEq for Replayed {
    /// The same reading, whether or not it is still known what it saw.
    fn eq(&self, other: &Replayed) -> bool {
        (self.until, &self.ids, self.is_owed_more) == (other.until, &other.ids, other.is_owed_more)
    }
}

impl Eq for Replayed {}

impl Replayed {
    /// For who begins somewhere else, and is owed what comes after that but for what was read.
    #[must_use]
    pub fn owed_more(&self) -> Replayed {
        Replayed { until: self.until, seam: Mutex::new(None), ids: self.ids.clone(), is_owed_more: true }
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
        if at.lsn > self.until.position.lsn {
            return false;
        }
        let own = self.until.epoch;
        let seam = self.seam.lock().unwrap_or_else(PoisonError::into_inner);
        seam.as_ref().is_some_and(|seam| seam.shows((xid, Some(own)), at.lsn))
            && (epoch == Some(own) || shares(own, at.lsn))
    }

    /// Everything up to there was given to who has this, and he goes on from no earlier place. Lets go of what is needed for
    /// nothing that may still come; says whether that is so. `shares`: as for [`Replayed::has`], of the history of that place.
    pub(in crate::hub) fn let_go(&self, reached: Cursor, shares: impl FnOnce(u64, Lsn) -> bool) -> bool {
        let until = self.until;
        let is_behind = reached.position >= until.position
            && (reached.epoch == until.epoch || shares(until.epoch, until.position.lsn));
        if is_behind {
            *self.seam.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        is_behind
    }

    /// It is known which transactions the reading saw.
    #[cfg(test)]
    pub(in crate::hub) fn has_seam(&self) -> bool {
        self.seam.lock().unwrap().is_some()
    }
}

impl Hub {
    /// A channel begins, which may have read something.
    pub(in crate::hub) fn keep_replayed(&mut self, id: ChannelId) {
        let Some(channel) = self.registry.get(id) else { return };
        let mut replayed = channel.entries.iter().filter_map(|entry| entry.messages.as_ref()?.replayed.clone());
        match replayed.next() {
            Some(replayed) => self.snapshots.replayed.insert(id, replayed),
            None => self.snapshots.replayed.remove(&id),
        };
    }

    /// Lets go of what channels have read, as far as they are beyond it. By what their connections have, as the sessions go on
    /// from there: the hub itself is ahead of that.
    pub(in crate::hub) fn let_go_of_replayed(&mut self) {
        let (registry, log, epoch) = (&self.registry, &self.deps.log, self.epoch);
        self.snapshots.replayed.retain(|id, replayed| {
            let Some(reached) = registry.get(*id).map(|channel| channel.port.reached()) else { return false };
            let shares = |reached: Cursor| move |own, at| Some(reached.epoch) == epoch && log.shares(own, at);
            !reached.is_some_and(|reached| replayed.let_go(reached, shares(reached)))
        });
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
        assert!(replayed.has_seam() && !device.has_seam());
    }

    #[test]
    fn which_transactions_were_seen_is_known_as_long_as_one_of_them_may_come() {
        let footing = Footing::of(Cursor { epoch: 1, position: end_of(300) });
        let sees = Snapshot::parse("7:10:7").expect("a snapshot");
        let (_, replayed) = footing.replayed(sees, Lsn(400), vec![[8; 16]]);
        let same = footing.replayed(Snapshot::parse("7:10:7").expect("a snapshot"), Lsn(400), vec![[8; 16]]).1;
        let let_go = |epoch, position, shared| replayed.let_go(Cursor { epoch, position }, |_, at| at <= Lsn(shared));
        assert!(!let_go(1, end_of(399), 0) && !let_go(1, Position { lsn: Lsn(400), ordinal: 7 }, 0));
        assert!(!let_go(2, end_of(500), 399), "the other history may be left again for one that shares more");
        assert!(replayed.has_seam());
        assert!(let_go(1, end_of(400), 0) && !replayed.has_seam());
        assert_eq!(replayed, same, "it is the same reading still");
        assert_ne!(replayed, same.owed_more());
        let has = |xid, at, id| replayed.has((xid, Some(1)), end_of(at), Some([id; 16]), |_, _| false);
        assert!(!has(7, 500, 7) && has(7, 500, 8), "ids are looked at for good");
        assert!(same.let_go(Cursor { epoch: 2, position: end_of(400) }, |_, at| at <= Lsn(400)));
    }
}
