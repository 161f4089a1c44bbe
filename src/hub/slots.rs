//! Numbered places that are used again, and sets of such numbers: what an index with a million subscriptions is made of.
//!
//! A number instead of a pointer or a key: four bytes where a list names a subscription, and no hash to find it. A set of one,
//! as nearly all are, is in place; one of a few is a list, and beyond it is a hash set, so that leaving a set of a million costs
//! no more than leaving one of two.
//!
//! Rejected: lists with back pointers, which must be kept right in two places.

use ahash::AHashSet;
use smallvec::SmallVec;

/// Values in numbered places; a place that became free is taken by the next.
pub(super) struct Slots<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots::new()
    }
}

impl<T> Slots<T> {
    pub(super) const fn new() -> Slots<T> {
        Slots { places: Vec::new(), free: Vec::new() }
    }

    /// Puts a value into a free place.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as u32
        });
        self.places[place as usize] = Some(value);
        place
    }

    pub(super) fn remove(&mut self, place: u32) -> Option<T> {
        let value = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some(value)
    }

    pub(super) fn get(&self, place: u32) -> Option<&T> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, place: u32) -> Option<&mut T> {
        self.places.get_mut(place as usize)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places.iter().enumerate().filter_map(|(place, value)| Some((place as u32, value.as_ref()?)))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Most numbers of a list; removal walks it.
const FEW: usize = 32;

/// A set of numbers of places. What is more than one is boxed, so that the many small sets stay small.
#[derive(Default)]
pub(super) enum IdSet {
    #[default]
    Empty,
    One(u32),
    /// Two or more.
    Few(Box<SmallVec<[u32; 6]>>),
    Many(Box<AHashSet<u32>>),
}

impl IdSet {
    /// Adds a number that is not in it.
    pub(super) fn insert(&mut self, id: u32) {
        match self {
            IdSet::Empty => *self = IdSet::One(id),
            IdSet::One(other) => *self = IdSet::Few(Box::new(SmallVec::from_slice(&[*other, id]))),
            IdSet::Few(list) if list.len() < FEW => list.push(id),
            IdSet::Few(list) => {
                let mut set: AHashSet<u32> = list.iter().copied().collect();
                set.insert(id);
                *self = IdSet::Many(Box::new(set));
            }
            IdSet::Many(set) => drop(set.insert(id)),
        }
    }

    pub(super) fn remove(&mut self, id: u32) {
        match self {
            IdSet::Empty => {}
            IdSet::One(known) => {
                if *known == id {
                    *self = IdSet::Empty;
                }
            }
            IdSet::Few(list) => {
                if let Some(at) = list.iter().position(|known| *known == id) {
                    list.swap_remove(at);
                }
                if let [last] = list[..] {
                    *self = IdSet::One(last);
                }
            }
            IdSet::Many(set) => {
                set.remove(&id);
                if set.len() <= FEW / 2 {
                    *self = IdSet::Few(Box::new(set.iter().copied().collect()));
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, IdSet::Empty)
    }

    /// In any order.
    pub(super) fn each(&self, mut visit: impl FnMut(u32)) {
        match self {
            IdSet::Empty => {}
            IdSet::One(id) => visit(*id),
            IdSet::Few(list) => list.iter().for_each(|id| visit(*id)),
            IdSet::Many(set) => set.iter().for_each(|id| visit(*id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_numbers_is_a_set_whatever_its_size(steps in proptest::collection::vec((any::<bool>(), 0u32..80), 0..400)) {
            let (mut ours, mut model) = (IdSet::default(), BTreeSet::new());
            for (insert, id) in steps {
                if !insert {
                    model.remove(&id);
                    ours.remove(id);
                } else if model.insert(id) {
                    ours.insert(id);
                }
                prop_assert_eq!(ours.is_empty(), model.is_empty());
            }
            let mut left = Vec::new();
            ours.each(|id| left.push(id));
            left.sort_unstable();
            prop_assert_eq!(left, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_free_place_is_taken_again() {
        let mut slots = Slots::new();
        let (a, b) = (slots.insert("a"), slots.insert("b"));
        assert_eq!((slots.remove(a), slots.remove(a), slots.len()), (Some("a"), None, 1));
        assert_eq!(slots.get(a), None);
        assert_eq!(slots.insert("c"), a);
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(a, &"c"), (b, &"b")]);
    }
}
