//! (being written)

mod fitness;
mod layout;
mod load;
mod publish;

use std::fmt;
use std::sync::Arc;

pub use fitness::{Fit, Refusal, fitness};
pub use layout::{FactKey, Layout};
pub use load::{LoadError, LoadLimits, load};
pub use publish::{PublishError, Writers, add, quoted, statement, wait_for_writers};

use super::rule::Rule;
use crate::catalog::Snapshot;
use crate::change::{Relation, Transaction, TransactionError};
use crate::error::{Fault, Remedy};

/// Which state of the facts a row is judged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the transaction that is being folded: for old images.
    Before,
    /// After it: for new images.
    After,
}

/// How far a fact table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FactState {
    /// Nobody asked for it.
    Absent,
    /// It is being loaded; so many changes were recorded since.
    Recording {
        /// Row changes and truncates.
        since_rows: u64,
    },
    /// Its facts are those of the last folded transaction.
    Ready {
        /// Rows.
        rows: u64,
        /// Memory.
        bytes: usize,
    },
    /// It must be loaded again; why.
    Broken(String),
}

/// Why facts can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// More memory than there may be.
    #[error("the facts take {bytes} bytes, over the limit of {limit}")]
    TooLarge {
        /// Needed so far.
        bytes: usize,
        /// Allowed.
        limit: usize,
    },
    /// A table was installed that nobody said was being loaded, or with another layout.
    #[error("table {0} was loaded, but not with the layout that is being recorded")]
    NotRecording(u32),
    /// A row of the wrong width.
    #[error("a row of {found} columns where {expected} were asked for")]
    Width {
        /// Columns of the layout.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A value that its type does not print.
    #[error("a value of column {0} is not as its type prints it")]
    Text(String),
    /// Rows and their changes contradict each other.
    #[error("the rows and their changes contradict each other: {0}")]
    Diverged(String),
}

impl Fault for FactsError {
    fn remedy(&self) -> Remedy {
        match self {
            FactsError::TooLarge { .. } => Remedy::Operator,
            FactsError::NotRecording(_) | FactsError::Diverged(_) => Remedy::Retry,
            FactsError::Width { .. } | FactsError::Text(_) => Remedy::Bug,
        }
    }
}

/// Facts that a rule needs are not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("facts of {table}: {why}")]
pub struct NotReady {
    /// `schema.table`.
    pub table: Arc<str>,
    /// Not loaded yet, being loaded, broken.
    pub why: String,
}

/// A rule's sources resolved to fact tables, valid while [`Facts::generation`] is what it was.
#[derive(Debug, Clone, Default)]
pub struct FactBinding {
    generation: u64,
}

/// The rows of one fact table, being loaded.
pub struct FactTable {
    layout: Arc<Layout>,
}

impl FactTable {
    /// An empty one.
    pub fn new(layout: Arc<Layout>) -> FactTable {
        FactTable { layout }
    }

    /// An empty one that refuses to grow over so many bytes.
    pub fn limited(layout: Arc<Layout>, bytes: usize) -> FactTable {
        let _ = bytes;
        FactTable::new(layout)
    }

    /// Adds a row: its values in the layout's order, as Postgres prints them.
    pub fn insert<'a>(&mut self, values: impl Iterator<Item = Option<&'a [u8]>>) -> Result<(), FactsError> {
        let _ = values;
        Ok(())
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        0
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        0
    }
}

/// All fact tables of the process.
#[derive(Default)]
pub struct Facts {
    generation: u64,
}

impl Facts {
    /// None, and memory for so many bytes.
    pub fn new(limit_bytes: usize) -> Facts {
        let _ = limit_bytes;
        Facts::default()
    }

    /// From the next [`Facts::begin`] on, the table's changes are kept by transaction id: it is being loaded. What was there
    /// is dropped.
    pub fn record(&mut self, layout: Arc<Layout>) {
        let _ = layout;
    }

    /// Makes a loaded table ready: the recorded transactions that the snapshot does not see are folded into it.
    pub fn install(&mut self, loaded: FactTable, snapshot: &Snapshot) -> Result<(), FactsError> {
        let _ = snapshot;
        Err(FactsError::NotRecording(loaded.layout.table_oid))
    }

    /// Drops a table.
    pub fn forget(&mut self, table_oid: u32) {
        let _ = table_oid;
    }

    /// How far the table is.
    pub fn state(&self, table_oid: u32) -> FactState {
        let _ = table_oid;
        FactState::Absent
    }

    /// Whether a transaction over these relations must be folded.
    pub fn concerns(&self, relations: &[Arc<Relation>]) -> bool {
        let _ = relations;
        false
    }

    /// Folds a whole transaction. Until [`Facts::end`], [`Side::Before`] is the state before it, [`Side::After`] the state
    /// after it. A table that can't follow becomes [`FactState::Broken`]. An error means that the transaction can't be read.
    pub fn begin(&mut self, tx: &Transaction) -> Result<(), TransactionError> {
        let _ = tx;
        Ok(())
    }

    /// The transaction is over: Before is After.
    pub fn end(&mut self) {}

    /// Changes whenever a table becomes Ready, Broken, Absent or gets another layout.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Resolves a rule's sources and makes the indexes it needs.
    pub fn bind(&self, rule: &Rule) -> Result<FactBinding, NotReady> {
        match rule.sources.first() {
            None => Ok(FactBinding::default()),
            Some(source) => Err(NotReady { table: source.table.clone(), why: "not loaded".to_owned() }),
        }
    }

    /// Memory that all tables take.
    pub fn bytes(&self) -> usize {
        0
    }

    /// All tables that are not absent.
    pub fn tables(&self) -> impl Iterator<Item = (u32, FactState)> {
        std::iter::empty()
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("generation", &self.generation).finish_non_exhaustive()
    }
}
