//! A hash table of numbers whose keys stand elsewhere: four bytes per place, linear probing, no tombstones.
//!
//! Symbols and indexes of rows share it. Rejected: `HashMap<Key, u32>`, which would hold every key a second time.

/// A place without a number.
const EMPTY: u32 = u32::MAX;
const SMALLEST: usize = 8;

/// The table. The caller knows each number's hash and key.
#[derive(Default)]
pub(super) struct Probe {
    /// A power of two of places, or none.
    places: Vec<u32>,
    used: usize,
}

impl Probe {
    pub(super) fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<u32>()
    }

    /// Where a number of this hash would stand first.
    fn start(&self, hash: u64) -> usize {
        // The high bits: weak hashes are better there.
        (hash >> 32) as usize & (self.places.len() - 1)
    }

    fn place(&self, hash: u64, mut is: impl FnMut(u32) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mask = self.places.len() - 1;
        let mut at = self.start(hash);
        loop {
            match self.places[at] {
                EMPTY => return None,
                number if is(number) => return Some(at),
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// The number of this hash that `is` the one looked for.
    pub(super) fn find(&self, hash: u64, is: impl FnMut(u32) -> bool) -> Option<u32> {
        self.place(hash, is).map(|at| self.places[at])
    }

    /// Adds a number that is not there; `hash_of` gives the hash of any number in the table.
    pub(super) fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        // Three quarters full at most.
        if (self.used + 1) * 4 > self.places.len() * 3 {
            let size = (self.places.len() * 2).max(SMALLEST);
            let old = std::mem::replace(&mut self.places, vec![EMPTY; size]);
            for number in old.into_iter().filter(|number| *number != EMPTY) {
                self.put(hash_of(number), number);
            }
        }
        self.put(hash, number);
        self.used += 1;
    }

    fn put(&mut self, hash: u64, number: u32) {
        let mask = self.places.len() - 1;
        let mut at = self.start(hash);
        while self.places[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.places[at] = number;
    }

    /// Puts another number of the same key in the place of one.
    pub(super) fn replace(&mut self, hash: u64, old: u32, new: u32) {
        if let Some(at) = self.place(hash, |number| number == old) {
            self.places[at] = new;
        }
    }

    /// Takes a number out; those behind it move up, so that no search ends too early.
    pub(super) fn remove(&mut self, hash: u64, is: impl FnMut(u32) -> bool, hash_of: impl Fn(u32) -> u64) {
        let Some(mut hole) = self.place(hash, is) else { return };
        let mask = self.places.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let number = self.places[at];
            if number == EMPTY {
                break;
            }
            let start = self.start(hash_of(number));
            // It may move to the hole if its search begins at or before it.
            if at.wrapping_sub(start) & mask >= at.wrapping_sub(hole) & mask {
                self.places[hole] = number;
                hole = at;
            }
        }
        self.places[hole] = EMPTY;
        self.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(
            steps in proptest::collection::vec((any::<bool>(), 0u32..40), 0..200), spread in 0u32..4,
        ) {
            // Bad hashes on purpose: everything collides at spread 0.
            let hash = |number: u32| u64::from(number.wrapping_mul(spread)) << 32;
            let mut probe = Probe::default();
            let mut set = std::collections::BTreeSet::new();
            for (add, number) in steps {
                if add && set.insert(number) {
                    probe.insert(hash(number), number, hash);
                } else if !add && set.remove(&number) {
                    probe.remove(hash(number), |n| n == number, hash);
                }
                prop_assert_eq!(probe.used, set.len());
                for number in 0..40 {
                    prop_assert_eq!(probe.find(hash(number), |n| n == number).is_some(), set.contains(&number));
                }
            }
        }
    }
}
