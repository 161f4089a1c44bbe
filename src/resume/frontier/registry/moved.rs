//! Places that move without a receipt: to another name of the same client's, and past what was told to be missing.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::{Handle, Registry};
use crate::resume::Cursor;
use crate::resume::frontier::Key;

impl Registry {
    /// Whoever holds this slot has this key too, but for what it is of: a slot of its own there, at the same place. What is kept
    /// there for others is left to them. `None` if there is no room.
    pub(in crate::resume::frontier) fn also(
        &mut self,
        handle: Handle,
        key: Key,
        probe: &Arc<Notify>,
        now: Instant,
    ) -> Option<Handle> {
        let slot = self.held(handle)?;
        let (at, since, key) = (slot.at, slot.since, Key { what: slot.key.what, ..key });
        if !self.room_for(key) {
            return None;
        }
        let index = self.insert(key, now);
        self.next += 1;
        let (tenure, slot) = (self.next, &mut self.slots[index as usize]);
        (slot.tenure, slot.turn, slot.at, slot.since) = (tenure, tenure, at, since);
        slot.probe = Some(probe.clone());
        self.queue(index);
        Some(Handle { index, tenure })
    }

    /// The client was told that nothing between these places comes: if it is there, it is behind that.
    pub(in crate::resume::frontier) fn skip(&mut self, handle: Handle, from: Cursor, to: Cursor) {
        let Some(slot) = self.held(handle) else { return };
        let Some(at) = slot.at else { return };
        let within = |epoch| at.epoch == epoch && at.position > from.position && at.position < to.position;
        if at == from || (from.epoch == to.epoch && within(to.epoch)) {
            slot.at = Some(to);
            self.queue(handle.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::change::{Lsn, Position};
    use crate::claims::Principal;
    use crate::resume::frontier::{FrontierConfig, Frontiers, Tracked, Wanted};

    fn at(epoch: u64, lsn: u64) -> Cursor {
        Cursor { epoch, position: Position { lsn: Lsn(lsn), ordinal: 0 } }
    }

    fn alice() -> Principal {
        let claims = json!({"role": "authenticated", "sub": "alice"});
        Principal::new(claims.as_object().unwrap().clone(), i64::MAX).unwrap()
    }

    fn key(device: &str, entry: &str) -> Key {
        Key::new(&alice(), device, "realtime:t", entry)
    }

    fn join(frontiers: &Arc<Frontiers>, device: &str, otherwise: u64, now: Instant) -> Arc<Tracked> {
        let wanted = ["a", "b"].map(|entry| {
            let otherwise = Some(at(1, if entry == "a" { otherwise } else { otherwise + 1 }));
            Wanted { key: key(device, entry), since: Some("s"), otherwise }
        });
        frontiers.join(&wanted, Some(1), &Arc::default(), now).1
    }

    #[test]
    fn under_another_name_places_go_on_and_those_of_others_there_stay() {
        let frontiers = Frontiers::in_memory(FrontierConfig::default(), Default::default());
        let now = Instant::now();
        // Another tab was there, and is gone.
        join(&frontiers, "new", 3, now).end(false, now, now);
        let old = join(&frontiers, "old", 5, now);
        old.handles().advance(at(1, 8), true);
        let third = old.renamed(&alice(), "third", &Arc::default(), now);
        assert_eq!(frontiers.peek(&key("third", "a")), Some(at(1, 8)));
        drop(third);
        let new = old.renamed(&alice(), "new", &Arc::default(), now);
        old.end(false, now, now);
        new.handles().advance(at(1, 12), true);
        new.handles().advance_last(at(1, 14), true);
        new.end(false, now, now);
        let later = now + Duration::from_secs(1);
        let starts = |device| {
            let wanted = ["a", "b"].map(|entry| Wanted { key: key(device, entry), since: Some("s"), otherwise: None });
            let (starts, tracked) = frontiers.join(&wanted, Some(1), &Arc::default(), later);
            // It has all by now.
            tracked.handles().advance(at(1, 99), true);
            std::mem::forget(tracked);
            starts
        };
        assert_eq!(starts("old"), [Some(at(1, 8)), Some(at(1, 8))]);
        assert_eq!(starts("new"), [Some(at(1, 3)), Some(at(1, 4))], "the tab that was there");
    }

    #[test]
    fn who_stands_in_a_gap_goes_on_behind_it_and_who_does_not_stays() {
        let frontiers = Frontiers::in_memory(FrontierConfig::default(), Default::default());
        let now = Instant::now();
        let tracked = join(&frontiers, "phone", 5, now);
        let places = || ["a", "b"].map(|entry| frontiers.peek(&key("phone", entry)));
        let handles = tracked.handles();
        handles.skip(at(1, 1), at(1, 5));
        handles.skip(at(1, 7), at(1, 9));
        handles.skip(at(2, 1), at(2, 9));
        assert_eq!(places(), [Some(at(1, 5)), Some(at(1, 6))]);
        handles.skip(at(1, 6), at(1, 9));
        assert_eq!(places(), [Some(at(1, 5)), Some(at(1, 9))]);
        handles.skip(at(1, 4), at(1, 7));
        assert_eq!(places(), [Some(at(1, 7)), Some(at(1, 9))]);
        // Of another history than where it ends, or ahead of all there is.
        handles.skip(at(1, 7), at(2, 3));
        assert_eq!(places(), [Some(at(2, 3)), Some(at(1, 9))]);
        handles.skip(at(1, 9), at(1, 2));
        assert_eq!(places(), [Some(at(2, 3)), Some(at(1, 2))]);
    }
}
