//! What the rules will look up in a table, so that whoever reads its rows makes the indexes: the hub judges nothing while it makes
//! them.
//!
//! Found by binding the rules to empty tables, since how a rule looks things up does not depend on the rows. What is missed here is
//! made by [`Facts::bind`], later.

use std::sync::{Arc, OnceLock};

use super::{FactTable, Facts, Layout, State, Store, Tracked};
use crate::policy::rule::Rule;

/// See the module's comment.
pub struct Lookups(Option<Box<Store>>);

impl Lookups {
    /// Of the table of the first of these layouts; the others are those of tables that the rules look into as well.
    pub fn of(layouts: &[Arc<Layout>], rules: &[Arc<Rule>]) -> Lookups {
        let Some(first) = layouts.first() else { return Lookups(None) };
        let mut facts = Facts::new(usize::MAX);
        for layout in layouts {
            let state = State::Ready(Box::new(Store::new(layout.clone())));
            facts.tables.push(Tracked {
                layout: layout.clone(),
                state,
                mappings: Vec::new(),
                loaded_at: None,
                turns: 0,
            });
        }
        for rule in rules {
            // One that looks into a table that is not here binds nothing, and is bound when it is.
            let _ = facts.bind(rule);
        }
        let own = facts.tables.into_iter().find(|table| table.layout == *first);
        Lookups(own.and_then(|table| match table.state {
            State::Ready(store) => Some(store),
            State::Recording(_) | State::Broken(_) => None,
        }))
    }
}

impl FactTable {
    /// Makes what will be looked up, if the table has the layout that it was found for.
    pub fn prepare(&mut self, lookups: &Lookups) {
        let Some(known) = lookups.0.as_ref().filter(|known| known.layout == self.store.layout) else { return };
        for index in known.indexes.iter().filter_map(OnceLock::get) {
            let _ = self.store.index_over(index.columns());
        }
        for watch in known.watches.iter().filter_map(OnceLock::get) {
            let _ = self.store.watch_over(watch.column, watch.conversion);
        }
    }
}
