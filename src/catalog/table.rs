//! What the catalog knows of a table: shape, keys, rules, and what each token role may do with it.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::ReplicaIdentity;

/// A column that exists now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// `pg_attribute.attnum`, from 1; gaps where columns were dropped.
    pub number: i16,
    /// Unquoted.
    pub name: String,
    /// `pg_type.oid`; a domain's own.
    pub type_oid: u32,
    /// `atttypmod`.
    pub type_modifier: i32,
    /// Equality is equality of bytes. True for types without a collation.
    pub collation_deterministic: bool,
    /// How its text is compared; `None` for types without a collation.
    pub collation: Option<Collation>,
    /// GENERATED ALWAYS AS: not in the stream before Postgres 18.
    pub generated: bool,
    /// Has a default.
    pub has_default: bool,
    /// NOT NULL.
    pub not_null: bool,
}

/// A column's collation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collation {
    /// Qualified and quoted: `pg_catalog."de_DE"`.
    pub name: String,
    /// Orders by the bytes of the server's encoding, as C and POSIX do.
    pub bytewise: bool,
}

/// A policy for SELECT or ALL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// Unique in its table.
    pub name: String,
    /// Permissive policies are ORed, restrictive ones ANDed.
    pub permissive: bool,
    /// SELECT or ALL.
    pub command: PolicyCommand,
    /// Names in TO; `public` for everybody.
    pub roles: Vec<String>,
    /// The USING text of `pg_get_expr` under an empty search_path. `None`: the policy has no USING, so it neither permits nor
    /// restricts reading.
    pub expression: Option<String>,
    /// Numbers of this table's columns that the policy depends on. A whole-row reference is not among them: it shows as
    /// `.*` in the text.
    pub columns: Vec<i16>,
    /// It reads `ctid`, `tableoid` or another system column.
    pub system_columns: bool,
    /// Oids of the functions it calls, those of `initdb` left out.
    pub functions: BTreeSet<u32>,
}

/// Which command a policy is for; only those that govern SELECT are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyCommand {
    /// FOR SELECT.
    Select,
    /// FOR ALL.
    All,
}

/// What the client publications send of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// INSERT is published.
    pub insert: bool,
    /// UPDATE is published.
    pub update: bool,
    /// DELETE is published.
    pub delete: bool,
    /// TRUNCATE is published.
    pub truncate: bool,
    /// Rows of partitions appear as rows of this root.
    pub via_root: bool,
    /// What the client publications hold back and the stream may send all the same, because another publication in it does:
    /// the relay has to hold it back itself. `None` if there is no filter, or if the server applies it.
    pub row_filter: Option<RowFilter>,
    /// Which rows the client publications send, in SQL, whoever holds back the rest; `None`: all.
    pub sent_rows: Option<String>,
    /// The published columns; `None` where the server does not tell (before Postgres 15): all.
    pub columns: Option<BTreeSet<String>>,
}

/// The WHERE of a table in the client publications.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFilter {
    /// As `pg_get_expr` prints it; several publications' are joined by OR.
    pub expression: String,
    /// Numbers of the columns that it reads.
    pub columns: BTreeSet<i16>,
}

/// Which columns of an old image are values and not filler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldImage {
    /// What the Relation message says: an ordinary table, or a root whose partitions are all FULL.
    AsSent,
    /// The primary key only: a root some of whose partitions log just that, whatever the message claims.
    PrimaryKey,
    /// None: partitions log other columns than the root's message says.
    Nothing,
}

/// What one token role may do with a table, evaluated by Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// USAGE on the schema: without it a SELECT fails.
    pub schema_usage: bool,
    /// Numbers of the columns it may select.
    pub columns: BTreeSet<i16>,
    /// It has the rights of the owner (`pg_has_role(…, 'USAGE')`).
    pub owner: bool,
    /// Names of the policies that apply to it.
    pub policies: BTreeSet<String>,
}

/// A table of a client publication, an ancestor of one, or a table that policies of such tables look into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// In `attnum` order, dropped ones left out.
    pub columns: Vec<Column>,
    /// Names in key order; empty without a primary key.
    pub primary_key: Vec<String>,
    /// `relreplident`.
    pub identity: ReplicaIdentity,
    /// Names of the columns that identify an old row; all for FULL, none for NOTHING.
    pub identity_columns: Vec<String>,
    /// What of an old image is real.
    pub old_image: OldImage,
    /// ROW LEVEL SECURITY is enabled.
    pub row_security: bool,
    /// FORCE ROW LEVEL SECURITY.
    pub force_row_security: bool,
    /// Owner's role name.
    pub owner: String,
    /// Those for SELECT and ALL, by name.
    pub policies: Vec<PolicyRow>,
    /// `None` for an ancestor that is not itself published.
    pub published: Option<Published>,
    /// A partitioned table (its rows live in partitions).
    pub is_partitioned: bool,
    /// Oids of the partitioned tables above it, parent first, root last; empty for an ordinary table or a root.
    pub ancestors: Vec<u32>,
    /// By role name; one entry for every wanted role that exists, and for every owner of a function that a policy calls.
    pub access: BTreeMap<String, Access>,
    /// Oids of the tables that hold its rows, ascending: its partitions that are not partitioned themselves, or itself.
    pub leaves: Vec<u32>,
    /// What the whole stream, facts included, sends of its rows.
    pub streamed: Streamed,
    /// Differs whenever its rows may have changed without a row in the stream: DDL that writes new values, a partition attached or
    /// detached, a renamed enum label, a while outside of the publications. Not after a TRUNCATE, which is in the stream.
    /// Compares within this process only. 0 for a table that no policy and no function of one looks into.
    pub storage: u64,
    /// Our login may read all of it: it owns the table, or may select it and is above row-level security.
    pub loadable: bool,
    /// Our login has the rights of its owner, and so may add it to a publication.
    pub ours: bool,
}

/// What all publications of the stream together send of a table's rows, under its own name or its partitions'.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Streamed {
    /// INSERT, UPDATE, DELETE and TRUNCATE of every leaf.
    pub all_actions: bool,
    /// Some publication sends every row of every leaf: no row filter holds any back.
    pub all_rows: bool,
    /// Names of the columns that the stream sends; `None` for all.
    pub columns: Option<BTreeSet<String>>,
    /// Some publication of the stream has a column list for it, so it can't be added to another one without a list.
    pub has_column_list: bool,
    /// Why its rows can't be followed in the stream whatever publication it is added to, in words; `all_actions` is false then.
    pub obstacle: Option<&'static str>,
}

impl Table {
    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// Whether the stream can carry the column at all.
    pub fn is_sent(&self, column: &Column) -> bool {
        let listed = self.published.as_ref().and_then(|p| p.columns.as_ref());
        listed.is_none_or(|columns| columns.contains(&column.name)) && !column.generated
    }
}

/// A role that tokens may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// `pg_roles.oid`.
    pub oid: u32,
    /// Unquoted.
    pub name: String,
    /// Tokens must not name one.
    pub superuser: bool,
    /// Its own attribute; BYPASSRLS is not inherited.
    pub bypass_row_security: bool,
    /// Our login may `SET ROLE` to it: needed for every question to Postgres.
    pub assumable: bool,
}

/// A function that some policy calls, or that such a function may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// `pg_proc.oid`.
    pub oid: u32,
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub name: String,
    /// `pg_type.oid` of the result.
    pub result_type: u32,
    /// The body, if it is an SQL function without arguments that has a text body, a single result and no SET clause.
    pub sql_body: Option<String>,
    /// Names (empty if unnamed) and types of its arguments; all are IN arguments without VARIADIC, else `callable` is false.
    pub arguments: Vec<(String, u32)>,
    /// What its last arguments are if they are not given, separated by commas, as the server prints it under an empty
    /// search_path.
    pub defaults: Option<String>,
    /// Its whole source, if it is an SQL function with a text body.
    pub source: Option<String>,
    /// The body of an SQL function in the new style (`RETURN …`, `BEGIN ATOMIC`), as the server prints it under an empty
    /// search_path.
    pub parsed_body: Option<String>,
    /// An ordinary function with plain IN arguments.
    pub callable: bool,
    /// It returns a set.
    pub returns_set: bool,
    /// Not called if an argument is NULL.
    pub strict: bool,
    /// `i`, `s` or `v`.
    pub volatility: char,
    /// SECURITY DEFINER: runs with the rights of its owner.
    pub security_definer: bool,
    /// The owner's role name.
    pub owner: String,
    /// The schemas of its own `SET search_path`, unquoted; `None` if it has none.
    pub search_path: Option<Vec<String>>,
    /// It has SET clauses other than search_path.
    pub other_settings: bool,
    /// Wanted roles that may execute it.
    pub executable_by: BTreeSet<String>,
}
