//! Relations are written once per segment and shared in memory.

use std::sync::{Arc, Mutex, PoisonError};

use ahash::{AHashMap, AHashSet};

use crate::change::Relation;

/// The writer's side: which relations the active segment has defined, by number.
#[derive(Default)]
pub(super) struct Dictionary {
    entries: Vec<Arc<Relation>>,
    /// The number of the last shape seen of each oid: nearly every look-up ends here, by pointer.
    latest: AHashMap<u32, u32>,
}

impl Dictionary {
    pub(super) fn of(entries: Vec<Arc<Relation>>) -> Dictionary {
        let latest = entries.iter().enumerate().map(|(i, r)| (r.oid, i as u32)).collect();
        Dictionary { entries, latest }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The relation's number, and whether it is new and must be defined.
    pub(super) fn number(&mut self, relation: &Arc<Relation>) -> (u32, bool) {
        let latest = self.latest.get(&relation.oid).copied();
        if let Some(number) = latest {
            let known = &self.entries[number as usize];
            if Arc::ptr_eq(known, relation) || known == relation {
                return (number, false);
            }
            if let Some(older) = self.entries.iter().position(|r| r == relation) {
                return (older as u32, false);
            }
        }
        let number = self.entries.len() as u32;
        self.entries.push(relation.clone());
        self.latest.insert(relation.oid, number);
        (number, true)
    }

    /// Forgets what was defined by a record that could not be written.
    pub(super) fn truncate(&mut self, length: usize) {
        if length < self.entries.len() {
            self.entries.truncate(length);
            *self = Dictionary::of(std::mem::take(&mut self.entries));
        }
    }
}

/// The readers' side: one `Arc` per distinct relation, whichever segment it came from.
#[derive(Default)]
pub(super) struct Interner {
    known: Mutex<Known>,
}

/// Relations that nobody holds are dropped before another is added, at the earliest with so many.
const PRUNE_ABOVE: usize = 4096;

/// Most may be held, as with a schema for each tenant: they are looked through again only when there are twice as many as the
/// last time left, or each that comes would cost a look at all.
#[derive(Default)]
struct Known {
    all: AHashSet<Arc<Relation>>,
    /// What the last look left.
    left: usize,
    #[cfg(test)]
    looked_at: usize,
}

impl Known {
    fn add(&mut self, relation: &Arc<Relation>) {
        if self.all.contains(relation) {
            return;
        }
        if self.all.len() >= PRUNE_ABOVE.max(2 * self.left) {
            #[cfg(test)]
            (self.looked_at += self.all.len());
            self.all.retain(|r| Arc::strong_count(r) > 1);
            self.left = self.all.len();
        }
        self.all.insert(relation.clone());
    }
}

impl Interner {
    pub(super) fn intern(&self, relation: Relation) -> Arc<Relation> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.all.get(&relation) {
            return shared.clone();
        }
        let shared = Arc::new(relation);
        known.add(&shared);
        shared
    }

    /// Makes the writer's `Arc` the one that readers get too.
    pub(super) fn adopt(&self, relation: &Arc<Relation>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).add(relation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::ReplicaIdentity;

    fn relation(oid: u32, table: &str) -> Relation {
        let (schema, identity) = ("public".to_owned(), ReplicaIdentity::Full);
        Relation { oid, schema, table: table.to_owned(), identity, columns: Vec::new() }
    }

    #[test]
    fn a_shape_is_new_once_and_a_shape_that_comes_back_keeps_its_number() {
        let (a, b, renamed) = (relation(1, "a"), relation(2, "b"), relation(1, "z"));
        let [a, b, renamed] = [a, b, renamed].map(Arc::new);
        let mut dictionary = Dictionary::default();
        assert_eq!(dictionary.number(&a), (0, true));
        assert_eq!(dictionary.number(&b), (1, true));
        assert_eq!(dictionary.number(&Arc::new(relation(1, "a"))), (0, false));
        assert_eq!(dictionary.number(&renamed), (2, true));
        assert_eq!(dictionary.number(&a), (0, false));
        dictionary.truncate(2);
        assert_eq!(dictionary.number(&a), (0, false));
        assert_eq!(dictionary.number(&renamed), (2, true));
    }

    #[test]
    fn equal_relations_are_one_arc() {
        let interner = Interner::default();
        let mine = Arc::new(relation(1, "a"));
        interner.adopt(&mine);
        assert!(Arc::ptr_eq(&interner.intern(relation(1, "a")), &mine));
        let other = interner.intern(relation(1, "b"));
        assert!(Arc::ptr_eq(&interner.intern(relation(1, "b")), &other));
    }

    #[test]
    fn shapes_that_nobody_holds_are_given_up_whoever_brought_them() {
        let interner = Interner::default();
        let held = Arc::new(relation(0, "held"));
        interner.adopt(&held);
        for oid in 1..3 * PRUNE_ABOVE as u32 {
            interner.adopt(&Arc::new(relation(oid, "a")));
        }
        assert!(interner.known.lock().expect("nobody panicked").all.len() <= PRUNE_ABOVE);
        assert!(Arc::ptr_eq(&interner.intern(relation(0, "held")), &held));
    }

    #[test]
    fn of_many_that_are_held_each_costs_a_look_at_a_few() {
        let (interner, many) = (Interner::default(), 10 * PRUNE_ABOVE);
        let held: Vec<_> = (0..many).map(|oid| Arc::new(relation(oid as u32, "a"))).collect();
        // The second time they are known, as in the next segment.
        held.iter().chain(&held).for_each(|one| interner.adopt(one));
        let known = interner.known.lock().expect("nobody panicked");
        assert!(known.all.len() == many && known.looked_at <= 2 * many, "{} looks", known.looked_at);
    }
}
