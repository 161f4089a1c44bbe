//! A policy as data that memory can judge: expressions over the row, the token's claims and facts, in Postgres's three-valued
//! logic.
//!
//! ```text
//! policy text ──compile──► Rule ──┬─ viewer(principal)  the claims it reads, evaluated once
//!                                 ├─ truth(row, viewer, facts)   true · false · null · raises · unsure
//!                                 └─ keys(row, facts)   which claims' values may pass: the index of the hub
//! ```
//!
//! A value is its *canonical text*: the bytes of [`crate::pgtype::canonical`] for its [`Kind`], so that equal values have equal
//! bytes. Every place a row can come from has a *slot*: slot 0 is the row that is judged, each table of each sub-select has one
//! of its own, so that a column is known by (slot, column) wherever it stands.
//!
//! Invariants:
//! * What is not known to be exactly as in Postgres is not a [`Rule`]: the compiler says why, and Postgres is asked.
//! * An inner table's own policies and grants are part of the condition of the sub-select that reads it.
//!
//! Rejected: a tree of closures, which neither prints nor compares.

mod build;
mod compile;
mod display;
mod convert;
mod eval;
mod keys;
mod members;
mod parse;
mod topic;
mod tree;
mod value;
mod viewer;
mod visit;

use std::sync::Arc;

use crate::pgtype::{Equality, Order};

pub(super) use compile::{Compiled, Policies, compile, compile_channel};
pub(super) use convert::convertible;
pub use eval::RowEval;
pub use keys::{Keys, RowKeys, RowValue, ViewerKey};
pub use topic::TopicValue;
pub use tree::Branch;
pub use viewer::{Claimed, KnownViewer, Viewer};
pub(super) use visit::exact_under;

/// How values of a type are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind {
    /// The base type's oid.
    pub oid: u32,
    /// What makes their texts canonical.
    pub equality: Equality,
    /// How they are ordered; `None` if only Postgres knows.
    pub order: Option<Order>,
}

/// The rules of one table for one role, if memory can judge them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What must be true.
    pub condition: Expr,
    /// Columns of the judged row (slot 0) that it reads, each once.
    pub reads: Vec<RuleColumn>,
    /// The expressions over claims that it reads, each once; [`Scalar::Claim`] and [`Members::Claim`] refer to them by index.
    pub claims: Vec<ClaimTerm>,
    /// The fact tables of slots 1, 2, …: `sources[0]` is slot 1. One table may stand here several times.
    pub sources: Vec<FactSource>,
}

/// A column as a rule reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleColumn {
    /// Unquoted.
    pub name: String,
    /// `pg_attribute.attnum`; negative for a [`TopicValue`] in the place of a column.
    pub number: i16,
    /// How it is compared.
    pub kind: Kind,
}

/// One occurrence of a fact table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactSource {
    /// `pg_class.oid`; of the root if it is partitioned.
    pub table_oid: u32,
    /// `schema.table`, for people.
    pub table: Arc<str>,
    /// The columns that are read, each once.
    pub columns: Vec<RuleColumn>,
}

/// A claims expression and the kind of its value, or of its elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimTerm {
    /// What to evaluate.
    pub term: super::Term,
    /// Of the value.
    pub kind: Kind,
}

/// A column, by where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ColumnRef {
    /// 0: the judged row; n: `Rule::sources[n - 1]`.
    pub slot: u16,
    /// Index in `Rule::reads`, or in the source's `columns`.
    pub column: u16,
}

/// An expression with a value. Its kind is known from where it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scalar {
    /// A column.
    Column(ColumnRef),
    /// `Rule::claims[i]`.
    Claim(u16),
    /// Canonical text; `None` is NULL.
    Constant(Option<Box<[u8]>>),
    /// The first that is not NULL. Later ones are not evaluated.
    Coalesce(Vec<Scalar>),
    /// NULL if both are equal under the kind, else the first.
    NullIf(Kind, Box<(Scalar, Scalar)>),
    /// The first arm whose condition is true.
    Case(Vec<(Expr, Scalar)>, Option<Box<Scalar>>),
    /// A condition as a boolean value (`t`, `f`).
    Truth(Box<Expr>),
    /// A cast that may change the text, or raise.
    Convert(Conversion, Box<Scalar>),
}

/// Casts whose result differs from the canonical text, or that may raise. All others are not written down at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conversion {
    /// `t` → `true`.
    BoolToText,
    /// `uuid_in`.
    TextToUuid,
    /// `int2in`, `int4in`, `int8in` by size in bytes.
    TextToInt(u8),
    /// `boolin`.
    TextToBool,
    /// To an integer of this size: raises when out of range.
    IntToInt(u8),
}

/// Comparison operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CompareOp {
    /// `=`
    Eq,
    /// `<>`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
}

/// The right side of `ANY` and `ALL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// `ARRAY[…]`.
    List(Vec<Scalar>),
    /// A claims expression of type array; a NULL array makes the whole NULL.
    Claim(u16),
    /// A column of the judged row, of an array type. The kind is that of its elements.
    Array(ColumnRef),
}

/// An expression that is true, false or null.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// A boolean constant; `None` is NULL.
    Constant(Option<bool>),
    /// A boolean value.
    Value(Scalar),
    /// `left op right`; NULL if either is.
    Compare(CompareOp, Kind, Box<(Scalar, Scalar)>),
    /// `left IS NOT DISTINCT FROM right`.
    Same(Kind, Box<(Scalar, Scalar)>),
    /// `left op ANY (members)`.
    Any(CompareOp, Kind, Box<Scalar>, Members),
    /// `left op ALL (members)`.
    All(CompareOp, Kind, Box<Scalar>, Members),
    /// `… IS NULL`.
    IsNull(Box<Scalar>),
    /// `… IS TRUE`, `IS FALSE`, `IS UNKNOWN`.
    Is(Box<Expr>, Option<bool>),
    /// `NOT …`.
    Not(Box<Expr>),
    /// All of them.
    And(Vec<Expr>),
    /// Any of them.
    Or(Vec<Expr>),
    /// `EXISTS (SELECT … FROM sources WHERE condition)`.
    Exists(Box<Subquery>),
    /// `(left, …) IN (SELECT output, … FROM sources WHERE condition)`, with NULLs as SQL has them.
    In(Vec<(Kind, Scalar)>, Box<Subquery>),
}

/// A sub-select over fact tables: the cross product of its slots, of which `condition` picks. Inner joins and the inner tables'
/// own policies are in the condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subquery {
    /// Slots, in the order of FROM.
    pub slots: Vec<u16>,
    /// WHERE, ON and the inner tables' policies.
    pub condition: Expr,
    /// What IN compares with; empty for EXISTS.
    pub outputs: Vec<Scalar>,
}

/// What an expression comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// True.
    True,
    /// False.
    False,
    /// NULL.
    Null,
    /// Postgres would raise an error.
    Raises,
    /// Only Postgres knows, for this row and this principal.
    Unsure,
}
