//! Room for one frontier more, and who has to go for it.
//!
//! Invariant: what users have is given up for other users only. Without a user a device costs nothing to invent, and the key that
//! such clients have is public: all of them together have a share, and it is the first to go when users need it.

use super::super::key::{Key, Part};
use super::{Registry, State, kind_of};

/// Of all frontiers, one in so many may be of devices that nobody has signed in on.
const ANONYMOUS_SHARE: usize = 4;

impl Registry {
    /// Whether another slot may be made; makes room where something older may go. Counts what is given up or refused.
    pub(super) fn room_for(&mut self, key: Key) -> bool {
        let owned = self.owners.get(&key.owner).map_or(&[][..], Vec::as_slice);
        let mut devices: Vec<Part> = owned.iter().map(|index| self.slots[*index as usize].key.device).collect();
        devices.sort_unstable();
        devices.dedup();
        let is_new = !devices.contains(&key.device);
        if owned.len() >= self.config.most_of_user || (is_new && devices.len() >= self.config.devices_of_user) {
            return self.room_of_owner(key);
        }
        if key.anonymous {
            let share = self.config.most.div_ceil(ANONYMOUS_SHARE);
            let has = self.anonymous < share && self.len() < self.config.most;
            let room = has || self.give_up_oldest([kind_of(true, true), kind_of(false, true)]);
            self.dropped.of_anonymous += u64::from(!has);
            return room;
        }
        if self.len() < self.config.most {
            return true;
        }
        // Left channels first, then devices that nobody has signed in on. If all are there, the new one is what is lost.
        self.dropped.of_all += 1;
        self.give_up_oldest([kind_of(true, true), kind_of(true, false), kind_of(false, true), kind_of(false, false)])
    }

    /// Within the bounds of one owner.
    fn room_of_owner(&mut self, key: Key) -> bool {
        let owned = self.owners.get(&key.owner).map_or(&[][..], Vec::as_slice);
        let oldest = owned.iter().copied().filter_map(|index| match self.slots[index as usize].state {
            State::Orphan(until) => Some((until, index)),
            State::Free | State::Live => None,
        });
        let Some((_, index)) = oldest.min() else {
            self.dropped.refused += 1;
            return false;
        };
        // A device goes as a whole, or a part of it would seem to have missed nothing.
        let device = self.slots[index as usize].key.device;
        let orphan = |index: &u32| {
            let slot = &self.slots[*index as usize];
            slot.key.device == device && matches!(slot.state, State::Orphan(_))
        };
        let gone: Vec<u32> = owned.iter().copied().filter(orphan).collect();
        self.dropped.of_user += gone.len() as u64;
        gone.into_iter().for_each(|index| self.release(index));
        true
    }

    /// The oldest orphan of the first of these kinds that has one.
    fn give_up_oldest<const N: usize>(&mut self, kinds: [usize; N]) -> bool {
        for which in kinds {
            while let Some((index, turn)) = self.orphans[which].pop_front() {
                if self.slots[index as usize].turn == turn {
                    self.release(index);
                    return true;
                }
            }
        }
        false
    }
}
