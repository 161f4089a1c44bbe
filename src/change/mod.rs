//! What happened in the database, as plain data.
//!
//! A [`Transaction`] is one committed transaction, whole: its rows, truncates and logical messages in commit order, iterable
//! as often as needed, in memory or spilled. Nothing here does I/O of its own, knows tokio, or knows that clients exist.
//!
//! Invariants:
//! * A [`Position`] is (commit end LSN, ordinal in the transaction). It is counted by the decoder over *every* item, before any
//!   filter, so the same WAL gives the same positions after a crash. A row's own LSN is never used: it goes backwards from
//!   one transaction to the next.
//! * SQL NULL and "not sent" are different values ([`Value::Null`], [`Value::Unchanged`]), and a key-only old row is a
//!   different type from a full one ([`OldRow`]): nobody downstream can mistake an absent column for a NULL.
//!
//! Rejected: a decoded `Vec<Row>` per transaction. Rows are kept as the bytes pgoutput sent, because that is what the log
//! writes, and splitting them into (offset, length) cells costs some twenty nanoseconds a row when somebody looks.

mod build;
mod position;
mod relation;
mod row;
mod transaction;

pub use build::TransactionBuilder;
pub use position::{Lsn, ParseLsnError, Position};
pub use relation::{Relation, RelationColumn, ReplicaIdentity};
pub use row::{MalformedTuple, OldRow, Tuple, Value};
pub use transaction::{
    Body, Change, Item, Items, LogicalMessage, RETENTION_ORIGIN, RULES_PREFIX, RowChange, SpilledBody, Timestamp,
    Transaction, TransactionError, Truncate,
};
