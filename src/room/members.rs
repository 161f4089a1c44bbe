//! The members of a room on one shard: a list that a message can take along without copying it.
//!
//! Blocks behind `Arc`s, copied only while a message holds them: a message takes the list for the price of one count, and who
//! comes or goes copies a block at most. Rejected: one flat list, of which every join beside a message in flight copies
//! everything; a lock that the writer of a message takes, which makes joins wait for sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ahash::AHashMap;

use crate::hub::{ChannelId, Port};
use crate::policy::{Right, Rights};

/// Members of a block: what one who comes or goes copies at most.
const BLOCK: usize = 64;

/// A member as those who write to it see it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) port: Arc<Port>,
    /// Of a private room.
    pub(crate) rights: Option<Arc<Rights>>,
    /// It has presence switched on.
    pub(crate) presence: AtomicBool,
    /// Which of the room's forms its frames have: those of one form are the same bytes.
    pub(crate) form: usize,
    /// It was told that it has missed a broadcast.
    pub(crate) missed: AtomicBool,
}

impl Slot {
    /// Whether it may read this, as far as it is decided.
    pub(crate) fn may(&self, right: Right) -> bool {
        self.rights.as_ref().is_none_or(|rights| rights.allows(right))
    }

    /// Whether presence is switched on.
    pub(crate) fn has_presence(&self) -> bool {
        self.presence.load(Ordering::Acquire)
    }
}

/// Blocks of members, as a message takes them along.
pub(crate) type Blocks = Arc<Vec<Arc<Vec<Arc<Slot>>>>>;

/// The members on one shard. In no order.
#[derive(Debug, Default)]
pub(super) struct Members {
    blocks: Blocks,
    places: AHashMap<ChannelId, usize>,
}

impl Members {
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    pub(super) fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    pub(super) fn insert(&mut self, slot: Arc<Slot>) {
        let place = self.places.len();
        self.places.insert(slot.port.id, place);
        let blocks = Arc::make_mut(&mut self.blocks);
        match blocks.get_mut(place / BLOCK) {
            Some(block) => Arc::make_mut(block).push(slot),
            None => blocks.push(Arc::new(vec![slot])),
        }
    }

    /// The last takes its place.
    pub(super) fn remove(&mut self, id: ChannelId) {
        let Some(place) = self.places.remove(&id) else { return };
        let blocks = Arc::make_mut(&mut self.blocks);
        let Some(block) = blocks.last_mut() else { return };
        let Some(last) = Arc::make_mut(block).pop() else { return };
        if block.is_empty() {
            blocks.pop();
        }
        if last.port.id != id {
            self.places.insert(last.port.id, place);
            if let Some(block) = blocks.get_mut(place / BLOCK) {
                Arc::make_mut(block)[place % BLOCK] = last;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::room::tests::slot;

    fn ids(blocks: &Blocks) -> BTreeSet<u64> {
        let all: Vec<u64> = blocks.iter().flat_map(|block| block.iter().map(|slot| slot.port.id.0)).collect();
        let set: BTreeSet<u64> = all.iter().copied().collect();
        assert_eq!(all.len(), set.len(), "each once");
        set
    }

    proptest! {
        #[test]
        fn it_holds_who_has_come_and_not_gone_and_a_message_keeps_whom_it_took(
            steps in prop::collection::vec((any::<bool>(), 0u64..200), 0..600), at in 0usize..600,
        ) {
            let (mut members, mut model) = (Members::default(), BTreeSet::new());
            let mut taken = None;
            for (step, (comes, id)) in steps.into_iter().enumerate() {
                if step == at {
                    taken = Some((members.blocks().clone(), model.clone()));
                }
                if comes && model.insert(id) {
                    members.insert(slot(id));
                } else if !comes {
                    model.remove(&id);
                    members.remove(ChannelId(id));
                }
                prop_assert_eq!(members.is_empty(), model.is_empty());
            }
            prop_assert_eq!(ids(members.blocks()), model);
            if let Some((blocks, model)) = taken {
                prop_assert_eq!(ids(&blocks), model);
            }
        }
    }
}
