//! Whom rows were for that had the same in the columns that the rule reads: busy rooms are looked up in the facts once, and not
//! for every message.
//!
//! It only proposes, as the index does: whoever it names is judged for each row. It says what the lookup would say as long as
//! the facts are what they were. Classes that came since are proposed too, as nobody has looked whether they should be; those
//! that went are passed over. Bounded: when full it begins anew.
//!
//! Rejected: keeping verdicts as well. A mistake here would then be a leak.

use std::collections::VecDeque;

use ahash::AHashMap;

/// What took fewer steps is looked up as quickly.
const WORTH_KEEPING: usize = 8;
/// Most classes of all entries, and entries.
const MAX_KEPT: usize = 1 << 18;
/// More newcomers than this are not judged on suspicion: the row is looked up.
const MAX_NEWCOMERS: usize = 32;

/// A class: its number, and when it came. That begins anew after four thousand million: at worst one class too many is
/// proposed.
pub(super) type Known = (u32, u32);

/// See the module's comment.
#[derive(Default)]
pub(super) struct Memo {
    /// Of the facts.
    version: u64,
    entries: AHashMap<Box<[u8]>, Entry>,
    kept: usize,
    /// How many classes ever came.
    came: u64,
    /// The latest of them, oldest first.
    newcomers: VecDeque<(u32, u64)>,
}

struct Entry {
    /// [`Memo::came`] when it was made.
    since: u64,
    classes: Box<[Known]>,
}

impl Memo {
    /// A class came; returns when.
    pub(super) fn came(&mut self, class: u32) -> u32 {
        self.came += 1;
        if self.newcomers.len() == MAX_NEWCOMERS {
            self.newcomers.pop_front();
        }
        self.newcomers.push_back((class, self.came));
        self.came as u32
    }

    /// Calls `visit` for each class that may be concerned, some of which may be gone; or says that it does not know.
    pub(super) fn recall(&mut self, version: u64, columns: &[u8], visit: &mut dyn FnMut(Known)) -> bool {
        if self.version != version {
            self.version = version;
            self.clear();
        }
        let Some(entry) = self.entries.get(columns) else { return false };
        if self.came - entry.since > MAX_NEWCOMERS as u64 {
            return false;
        }
        entry.classes.iter().for_each(|known| visit(*known));
        let since = entry.since;
        let newcomers = self.newcomers.iter().filter(|(_, came)| *came > since);
        newcomers.for_each(|(class, came)| visit((*class, *came as u32)));
        true
    }

    /// Keeps what a lookup at the version of the last [`Memo::recall`] found in so many steps: in the order in which they came to
    /// their places, which is that of their subscriptions as a rule, so that memory is read one way and nothing is left to sort.
    pub(super) fn keep(&mut self, columns: &[u8], steps: usize, classes: impl ExactSizeIterator<Item = Known>) {
        if steps < WORTH_KEEPING {
            return;
        }
        // An entry counts for itself, too.
        if self.kept + classes.len() + 1 > MAX_KEPT {
            self.clear();
        }
        self.kept += classes.len() + 1;
        let mut classes: Box<[Known]> = classes.collect();
        classes.sort_unstable();
        let entry = Entry { since: self.came, classes };
        if let Some(before) = self.entries.insert(columns.into(), entry) {
            self.kept -= before.classes.len() + 1;
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.kept = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recalled(memo: &mut Memo, version: u64, columns: &[u8]) -> Option<Vec<u32>> {
        let mut classes = Vec::new();
        memo.recall(version, columns, &mut |(class, _)| classes.push(class)).then_some(classes)
    }

    #[test]
    fn what_is_remembered_ends_with_the_facts_and_newcomers_are_suspects() {
        let mut memo = Memo::default();
        let known: Vec<Known> = (0..8).map(|class| (class, memo.came(class))).collect();
        assert_eq!(recalled(&mut memo, 1, b"room"), None);
        memo.keep(b"room", WORTH_KEEPING, known.iter().copied());
        assert_eq!(recalled(&mut memo, 1, b"room"), Some((0..8).collect()));
        assert_eq!(recalled(&mut memo, 1, b"another"), None);
        memo.came(3);
        assert_eq!(recalled(&mut memo, 1, b"room"), Some((0..8).chain([3]).collect()));
        for class in 0..MAX_NEWCOMERS as u32 {
            memo.came(class);
        }
        assert_eq!(recalled(&mut memo, 1, b"room"), None, "too many");
        memo.keep(b"room", WORTH_KEEPING, known.iter().copied());
        assert!(recalled(&mut memo, 1, b"room").is_some());
        assert_eq!(recalled(&mut memo, 2, b"room"), None, "other facts");
        assert_eq!(recalled(&mut memo, 1, b"room"), None, "and they don't come back");
    }

    #[test]
    fn it_is_bounded() {
        let mut memo = Memo::default();
        assert_eq!(recalled(&mut memo, 1, b""), None);
        for room in 0..1000u32 {
            memo.keep(&room.to_le_bytes(), 1000, vec![(7, 1); 999].into_iter());
            assert!(memo.kept <= MAX_KEPT && memo.entries.len() * 1000 == memo.kept);
        }
    }
}
