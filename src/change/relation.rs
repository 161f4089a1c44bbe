//! The shape of a table as the stream described it when the row was written.

/// What Postgres logs of the old row (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Every column.
    Full,
    /// The columns of one unique index.
    Index,
    /// Nothing: the writer's UPDATE and DELETE fail if they are published.
    Nothing,
}

/// One column of a [`Relation`]. Generated, dropped and unpublished columns are not sent, so they are not here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RelationColumn {
    /// Unquoted name.
    pub name: String,
    /// `pg_type.oid`; for a domain, the domain's.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`.
    pub type_modifier: i32,
    /// Part of the replica identity. Under [`ReplicaIdentity::Full`] every column is.
    pub key: bool,
}

/// A table as the Relation message before its rows described it. Keyed by `oid`, never by name; replaced whenever a new
/// Relation message arrives, which may be in the middle of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Relation {
    /// `pg_class.oid`. With `publish_via_partition_root` the root's.
    pub oid: u32,
    /// Unquoted schema name (`pg_catalog` where pgoutput sends the empty string).
    pub schema: String,
    /// Unquoted table name.
    pub table: String,
    /// What old rows hold.
    pub identity: ReplicaIdentity,
    /// In the order of the tuples' cells.
    pub columns: Vec<RelationColumn>,
}

impl Relation {
    /// Index of the column of this name in the tuples of this relation.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }
}
