//! Which subscriptions must be checked again after the catalog changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Entry, resolve};
use crate::catalog::{Catalog, Table};

/// A published table that came, went, or is not what subscriptions were checked against.
pub(super) struct Reshaped {
    schema: String,
    name: String,
    /// Came, went, or changed its columns or key: everybody's subscription on it is concerned.
    shape: bool,
    /// Roles that may select other columns than before: a filter or a selection on them is concerned.
    roles: BTreeSet<String>,
}

impl Reshaped {
    pub(super) fn concerns(&self, entry: &Entry, role: &str) -> bool {
        let reads = entry.filter.is_some() || entry.select.is_some();
        resolve::names(entry, &self.schema, &self.name) && (self.shape || reads && self.roles.contains(role))
    }
}

/// The tables in which the two differ.
pub(super) fn reshaped(before: &Catalog, after: &Catalog) -> Vec<Reshaped> {
    let one = |table: &Arc<Table>, other: Option<&Arc<Table>>| {
        let shape = other.is_none_or(|other| shape(table) != shape(other));
        let roles = other.map(|other| regranted(table, other)).unwrap_or_default();
        let (schema, name) = (table.schema.clone(), table.name.clone());
        (shape || !roles.is_empty()).then_some(Reshaped { schema, name, shape, roles })
    };
    let changed = before.tables().filter_map(|t| one(t, after.find(&t.schema, &t.name)));
    let new = after.tables().filter(|t| before.find(&t.schema, &t.name).is_none()).filter_map(|t| one(t, None));
    changed.chain(new).collect()
}

fn shape(table: &Table) -> impl PartialEq + '_ {
    (table.oid, &table.columns, &table.primary_key)
}

/// Roles known to both readings whose columns differ, and those that went.
fn regranted(before: &Table, after: &Table) -> BTreeSet<String> {
    let differs = |(role, access): &(&String, &crate::catalog::Access)| {
        after.access.get(*role).is_none_or(|now| now.columns != access.columns)
    };
    before.access.iter().filter(differs).map(|(role, _)| role.clone()).collect()
}
