//! Tables, types, keys, grants, policies and roles, as read at one snapshot.
//!
//! Invariants:
//! * Everything comes from one repeatable-read, read-only transaction, with its `pg_current_snapshot()`, so the reader can tell
//!   by transaction id whether a given DDL is in it. (Privilege functions look at the newest catalog, which may be newer than
//!   the snapshot: rights are then newer than the commit, never older.)
//! * Policy texts are fetched with an empty search_path: a name without a schema in them is one of `pg_catalog`.
//! * Privileges and memberships are answered by Postgres itself (`has_column_privilege`, `pg_has_role`), never re-derived.
//!
//! Rejected: reading role by role and table by table when first needed. A catalog that is whole can be compared with the last
//! one ([`Catalog::same_rules`]), and plans made from one catalog agree with each other.

mod body;
mod closure;
mod messages;
mod read;
mod snapshot;
mod sql;
mod stream;
mod table;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

pub use messages::Messages;
pub use read::read;
pub use snapshot::{ParseSnapshotError, Snapshot};
pub use table::{
    Access, Collation, Column, Function, OldImage, PolicyCommand, PolicyRow, Published, Role, RowFilter, Streamed,
    Table,
};

use crate::error::{Fault, Remedy};
use crate::pg::is_transient;
use crate::pgtype::Types;

/// The publication of tables that policies look into. Its rows go to no subscriber.
pub const FACTS_PUBLICATION: &str = "rowcast_facts";
/// The publication of `realtime.messages`, whose rows are broadcasts. They go to no subscriber of tables.
pub const MESSAGES_PUBLICATION: &str = "rowcast_messages";

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The client publications, such as `supabase_realtime`. One that does not exist publishes nothing.
    pub publications: Vec<String>,
    /// The stream's other publications, which may send what the client publications hold back.
    pub others: Vec<String>,
    /// Roles that tokens have named. Those which don't exist are absent from the result.
    pub roles: BTreeSet<String>,
}

/// Why the catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The server refused, or the connection broke.
    #[error("cannot read the catalog ({what})")]
    Query {
        /// Which part.
        what: &'static str,
        /// The answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It took too long.
    #[error("the catalog could not be read within {0:?}")]
    Timeout(Duration),
    /// A table was dropped or changed while it was read; the next read sees the result.
    #[error("the catalog changed while it was read: {0}")]
    Changing(String),
    /// The server said something that no server says.
    #[error("the catalog makes no sense: {0}")]
    Malformed(String),
}

impl Fault for CatalogError {
    fn remedy(&self) -> Remedy {
        match self {
            CatalogError::Timeout(_) | CatalogError::Changing(_) => Remedy::Retry,
            CatalogError::Malformed(_) => Remedy::Bug,
            CatalogError::Query { source, .. } => match source.code() {
                Some(state) if !is_transient(state) => Remedy::Operator,
                _ => Remedy::Retry,
            },
        }
    }

    fn advice(&self) -> String {
        match self {
            CatalogError::Query { source, .. } if source.code().is_some_and(|c| c.code() == "42501") => {
                "Let the relay's role read the system catalogs (they are readable by default).".into()
            }
            _ => String::new(),
        }
    }
}

/// Everything that decides who may see what, but for the snapshot.
#[derive(Debug, Clone, PartialEq)]
struct Rules {
    tables: BTreeMap<u32, Arc<Table>>,
    roles: BTreeMap<String, Arc<Role>>,
    functions: BTreeMap<u32, Arc<Function>>,
    /// Roles that may look into a schema, for the schemas that anything here names.
    schemas: BTreeMap<String, BTreeSet<String>>,
    /// Schema and name of operators that a function's search_path reaches, but for `pg_catalog`'s.
    operators: BTreeSet<(String, String)>,
    /// Names of known functions that `pg_catalog` has too.
    builtins: BTreeSet<String>,
    types: Arc<Types>,
    encoding: String,
    foreign_claims: bool,
    plain_backslashes: bool,
    messages: Option<Messages>,
}

/// The catalog as of one snapshot.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// What the read could see.
    pub snapshot: Snapshot,
    rules: Rules,
    by_name: HashMap<(String, String), u32>,
    by_leaf: HashMap<u32, Vec<u32>>,
}

impl Catalog {
    fn new(snapshot: Snapshot, rules: Rules) -> Catalog {
        let by_name = rules.tables.values().map(|t| ((t.schema.clone(), t.name.clone()), t.oid)).collect();
        let mut by_leaf: HashMap<u32, Vec<u32>> = HashMap::new();
        for table in rules.tables.values() {
            let own = (!table.leaves.contains(&table.oid)).then_some(&table.oid);
            for oid in table.leaves.iter().chain(own) {
                by_leaf.entry(*oid).or_default().push(table.oid);
            }
        }
        Catalog { snapshot, rules, by_name, by_leaf }
    }

    /// The table of this oid: published, an ancestor of a published partition, or one that policies look into.
    pub fn table(&self, oid: u32) -> Option<&Arc<Table>> {
        self.rules.tables.get(&oid)
    }

    /// The published tables, by oid.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.rules.tables.values().filter(|t| t.published.is_some())
    }

    /// The published table of this name.
    pub fn find(&self, schema: &str, name: &str) -> Option<&Arc<Table>> {
        let oid = self.by_name.get(&(schema.to_owned(), name.to_owned()))?;
        self.table(*oid).filter(|t| t.published.is_some())
    }

    /// The table of this name that is known for any reason; not one that clients may subscribe to.
    pub fn named(&self, schema: &str, name: &str) -> Option<&Arc<Table>> {
        self.by_name.get(&(schema.to_owned(), name.to_owned())).and_then(|oid| self.table(*oid))
    }

    /// `realtime.messages`, if there is such a table; known whether it is published or not.
    pub fn messages(&self) -> Option<&Messages> {
        self.rules.messages.as_ref()
    }

    /// The functions of this name that are known.
    pub fn functions_named(&self, schema: &str, name: &str) -> impl Iterator<Item = &Arc<Function>> {
        self.rules.functions.values().filter(move |f| f.schema == schema && f.name == name)
    }

    /// The known tables whose rows come under the name of this relation, which is such a table or a partition that holds rows
    /// of it: a partition that a policy names is a table of its own, and its root's rows too.
    pub fn fact_roots(&self, relation_oid: u32) -> &[u32] {
        self.by_leaf.get(&relation_oid).map_or(&[], Vec::as_slice)
    }

    /// Whether the role has USAGE on the schema of a known table or function, or of a function's search_path. False for a
    /// schema that does not exist; name resolution passes over both.
    pub fn may_use_schema(&self, schema: &str, role: &str) -> bool {
        schema == "pg_catalog" || self.rules.schemas.get(schema).is_some_and(|roles| roles.contains(role))
    }

    /// Whether the schema, one of a known function's search_path, has operators of this name, which could be what a body
    /// kept as text means.
    pub fn has_operator(&self, schema: &str, name: &str) -> bool {
        self.rules.operators.contains(&(schema.to_owned(), name.to_owned()))
    }

    /// Whether `pg_catalog`, which is searched first, has functions of this name, which is that of a known one with a
    /// search_path in force.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.rules.builtins.contains(name)
    }

    /// The role of this name, if it exists and was wanted, or owns a known table or a function that runs as its owner.
    pub fn role(&self, name: &str) -> Option<&Arc<Role>> {
        self.rules.roles.get(name)
    }

    /// Types of all columns of all tables here, and the types these are made of.
    pub fn types(&self) -> &Arc<Types> {
        &self.rules.types
    }

    /// A function that some policy here calls, or that such a function may call.
    pub fn function(&self, oid: u32) -> Option<&Arc<Function>> {
        self.rules.functions.get(&oid)
    }

    /// `server_encoding` is UTF8: the text in the stream is the text in the table.
    pub fn is_utf8(&self) -> bool {
        self.rules.encoding == "UTF8"
    }

    /// The server's own configuration gives a value to a claims setting that we leave unset (`request.jwt.claim` and
    /// `….email`), so functions that look there first do not see the token's claims.
    pub fn has_foreign_claims(&self) -> bool {
        self.rules.foreign_claims
    }

    /// Whether a backslash in a quoted text of a policy is just that (`standard_conforming_strings`).
    pub fn has_plain_backslashes(&self) -> bool {
        self.rules.plain_backslashes
    }

    /// Equal but for the snapshot: plans made from the other hold for this one.
    pub fn same_rules(&self, other: &Catalog) -> bool {
        self.rules == other.rules
    }
}
