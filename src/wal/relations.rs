//! The shapes of the tables as the stream last described them.
//!
//! Keyed by oid, never by name, and replaced by each Relation message, which may come in the middle of a transaction.
//! An unchanged shape keeps its `Arc`, so that everybody downstream can compare pointers; that it was described again is a
//! word about rules, which [`super::assemble`] passes on. Rejected: asking the catalog,
//! which knows today's shape and not the one of the row.

use std::sync::Arc;

use crate::change::Relation;

use super::pgoutput::Malformed;

/// Most relations in one session. Postgres never says that a table is gone, so a database that makes and drops tables
/// would fill the cache; a new session starts with an empty one.
const MOST: usize = 1 << 18;

/// The relation cache of one session.
#[derive(Debug, Default)]
pub(super) struct Relations {
    by_oid: ahash::HashMap<u32, Arc<Relation>>,
}

impl Relations {
    /// Takes in a Relation message.
    pub(super) fn describe(&mut self, relation: Relation) -> Result<(), Malformed> {
        match self.by_oid.get(&relation.oid) {
            Some(known) if **known == relation => return Ok(()),
            None if self.by_oid.len() >= MOST => return Err(Malformed::TooManyRelations(MOST)),
            _ => {}
        }
        self.by_oid.insert(relation.oid, Arc::new(relation));
        Ok(())
    }

    /// The current shape of a table that was described.
    pub(super) fn get(&self, oid: u32) -> Result<&Arc<Relation>, Malformed> {
        self.by_oid.get(&oid).ok_or(Malformed::UnknownRelation(oid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::ReplicaIdentity;

    fn relation(oid: u32, table: &str) -> Relation {
        let (schema, table) = ("public".into(), table.into());
        Relation { oid, schema, table, identity: ReplicaIdentity::Default, columns: Vec::new() }
    }

    #[test]
    fn an_unchanged_shape_keeps_its_pointer_and_a_changed_one_replaces_it() {
        let mut relations = Relations::default();
        relations.describe(relation(1, "a")).expect("described");
        let first = relations.get(1).expect("known").clone();
        relations.describe(relation(1, "a")).expect("described");
        assert!(Arc::ptr_eq(&first, relations.get(1).expect("known")));
        relations.describe(relation(1, "renamed")).expect("described");
        assert_eq!(relations.get(1).expect("known").table, "renamed");
        assert_eq!(first.table, "a");
    }

    #[test]
    fn a_table_that_was_not_described_is_an_error() {
        assert_eq!(Relations::default().get(9), Err(Malformed::UnknownRelation(9)));
    }

    #[test]
    fn the_cache_does_not_grow_without_end() {
        let mut relations = Relations::default();
        for oid in 0..MOST as u32 {
            relations.describe(relation(oid, "t")).expect("described");
        }
        assert_eq!(relations.describe(relation(u32::MAX, "t")), Err(Malformed::TooManyRelations(MOST)));
        assert_eq!(relations.describe(relation(0, "renamed")), Ok(()));
    }
}
