//! Whom a fact's value stands for, by the value's number: so that a room that is looked up again, as after each change of its
//! members, takes neither printing nor hashing each member's uuid.
//!
//! A number means a value under an epoch of its table; what is kept here says under which, and so can't be taken for another
//! value's. That the subscribers of a value have changed is noted by a hash of its text: whatever was looked up before of a
//! value with the same hash is not believed any more. Bounded: places are overwritten.
//!
//! Rejected: the index itself by number. Facts come and go with others than those who subscribe, and are loaded anew.

/// Notes of changes; a power of two.
const BUCKETS: usize = 1 << 12;
/// Fewest and most places; powers of two.
const LEAST_PLACES: usize = 1 << 8;
const MOST_PLACES: usize = 1 << 17;

/// Who stands under a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Under {
    /// No class.
    Nobody,
    /// One class.
    One(u32),
    /// Its text tells which.
    Several,
}

/// A fact's value: the epoch of its table, and its number there.
pub(super) type Number = (u64, u32);

/// See the module's comment.
#[derive(Default)]
pub(super) struct Numbers {
    places: Vec<Place>,
    /// Of values that had to make room since it last grew.
    overwritten: usize,
    /// By hash, when the subscribers of such a value changed last. Empty while nothing was ever found here.
    changed: Vec<u32>,
    changes: u32,
}

#[derive(Clone, Copy)]
struct Place {
    /// No table's epoch is zero.
    number: Number,
    /// [`Numbers::changes`] when it was looked up.
    at: u32,
    bucket: u16,
    under: Under,
}

const EMPTY: Place = Place { number: (0, 0), at: 0, bucket: 0, under: Under::Nobody };

impl Numbers {
    /// Other subscribers stand under a value of this hash than before.
    pub(super) fn change(&mut self, hash: u64) {
        if self.places.is_empty() {
            return;
        }
        match self.changes.checked_add(1) {
            Some(changes) => self.changes = changes,
            None => return *self = Numbers::default(),
        }
        self.changed[bucket(hash)] = self.changes;
    }

    /// Who stands under a value, if it was looked up since that changed.
    pub(super) fn get(&self, number: Number) -> Option<Under> {
        let place = self.places.get(number.1 as usize & self.places.len().wrapping_sub(1))?;
        let is_known = place.number == number && self.changed[usize::from(place.bucket)] <= place.at;
        is_known.then_some(place.under)
    }

    /// Keeps what was looked up of a value of this hash.
    pub(super) fn keep(&mut self, number: Number, hash: u64, under: Under) {
        if self.places.is_empty() {
            self.places = vec![EMPTY; LEAST_PLACES];
            self.changed = vec![0; BUCKETS];
        }
        self.put(Place { number, at: self.changes, bucket: bucket(hash) as u16, under });
        if self.overwritten > self.places.len() && self.places.len() < MOST_PLACES {
            self.overwritten = 0;
            let twice = vec![EMPTY; self.places.len() * 2];
            let before = std::mem::replace(&mut self.places, twice);
            before.into_iter().filter(|place| place.number.0 != 0).for_each(|place| self.put(place));
        }
    }

    fn put(&mut self, place: Place) {
        // Numbers are dense, and those of one room often neighbours.
        let at = place.number.1 as usize & (self.places.len() - 1);
        let before = std::mem::replace(&mut self.places[at], place);
        self.overwritten += usize::from(before.number.0 == place.number.0 && before.number.1 != place.number.1);
    }
}

fn bucket(hash: u64) -> usize {
    hash as usize & (BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_found_holds_until_it_changes_or_the_number_means_another_value() {
        let mut numbers = Numbers::default();
        numbers.change(7);
        assert_eq!(numbers.get((1, 5)), None);
        numbers.keep((1, 5), 7, Under::One(3));
        assert_eq!(numbers.get((1, 5)), Some(Under::One(3)));
        assert_eq!((numbers.get((2, 5)), numbers.get((1, 6))), (None, None), "another epoch, another number");
        numbers.change(8);
        assert_eq!(numbers.get((1, 5)), Some(Under::One(3)), "another value");
        numbers.change(7);
        assert_eq!(numbers.get((1, 5)), None);
        numbers.keep((1, 5), 7, Under::Nobody);
        assert_eq!(numbers.get((1, 5)), Some(Under::Nobody));
        numbers.changes = u32::MAX;
        numbers.change(1);
        assert_eq!(numbers.get((1, 5)), None, "all begins anew");
    }

    #[test]
    fn it_grows_with_what_is_looked_up_and_no_further() {
        let mut numbers = Numbers::default();
        for round in 0..8u32 {
            for number in 0..MOST_PLACES as u32 * 2 {
                numbers.keep((1, number), u64::from(number), Under::One(round));
            }
            assert!(numbers.places.len() <= MOST_PLACES);
        }
        assert_eq!(numbers.places.len(), MOST_PLACES);
        assert_eq!(numbers.get((1, MOST_PLACES as u32 * 2 - 1)), Some(Under::One(7)));
    }

    proptest! {
        #[test]
        fn it_never_says_what_is_no_longer_so(
            steps in proptest::collection::vec((any::<bool>(), 0u32..600, 1u64..3, 0u32..4), 1..2000),
        ) {
            let mut numbers = Numbers::default();
            let mut truth: HashMap<Number, u32> = HashMap::new();
            for (look, number, epoch, class) in steps {
                let (key, hash) = ((epoch, number), u64::from(number) * 7 + epoch);
                let now = *truth.entry(key).or_default();
                if look {
                    let known = numbers.get(key);
                    prop_assert!(known.is_none_or(|known| known == Under::One(now)));
                    numbers.keep(key, hash, Under::One(now));
                    prop_assert_eq!(numbers.get(key), Some(Under::One(now)));
                } else {
                    truth.insert(key, class);
                    numbers.change(hash);
                }
            }
        }
    }
}
