//! What a rule needs to know of a principal: the claims it reads, each evaluated once.
//!
//! Two principals with equal [`Viewer`]s get the same verdict from the rule on every row, so the hub judges one of them.
//! Rejected: handing the principal to the evaluator, which would parse the same claim for every row.

use std::cell::Cell;
use std::sync::Arc;

use super::Rule;
use crate::claims::Principal;
use crate::pgtype::Equality;
use crate::policy::facts::{Row, Symbol};

/// A claims expression's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// NULL.
    Null,
    /// Canonical text.
    Value(Box<[u8]>),
    /// An array's elements as canonical text, `None` for NULL.
    List(Box<[Option<Box<[u8]>>]>),
    /// Postgres would raise an error.
    Raises,
    /// Only Postgres knows.
    Unsure,
}

/// The claims that a rule reads, evaluated once for one principal. Two viewers that are equal share every verdict.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Viewer {
    /// Behind one thin pointer: there is one for each of a million users, and few rows look at it.
    values: Arc<Box<[Claimed]>>,
}

impl Viewer {
    /// From the values of [`Rule::claims`], in that order.
    pub fn new(values: impl IntoIterator<Item = Claimed>) -> Viewer {
        Viewer { values: Arc::new(values.into_iter().collect()) }
    }

    /// The value of `Rule::claims[index]`. An index that the rule does not have is unsure.
    pub fn claimed(&self, index: u16) -> &Claimed {
        self.values.get(usize::from(index)).unwrap_or(&Claimed::Unsure)
    }
}

/// A viewer who is judged again and again: with the number under which a table of facts has his claim, so that nothing is
/// looked up by its text.
#[derive(Debug)]
pub struct KnownViewer {
    viewer: Viewer,
    hint: Cell<Option<Hint>>,
}

/// Where the text of a claim was found. It is a value of this viewer, and not NULL or in doubt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    /// Of the table's symbols: as long as it is the same, so is what the number means.
    pub(super) epoch: u64,
    pub(super) symbol: Symbol,
    /// The table's row that a lookup by this claim and the row's columns found last, if any: most users are in few rooms. To be
    /// compared before it is believed.
    pub(super) row: Option<Row>,
    pub(super) claim: u16,
    pub(super) equality: Equality,
}

impl KnownViewer {
    /// Nothing was looked up yet.
    pub fn new(viewer: Viewer) -> KnownViewer {
        KnownViewer { viewer, hint: Cell::new(None) }
    }

    /// The viewer.
    pub fn viewer(&self) -> &Viewer {
        &self.viewer
    }

    pub(super) fn hint(&self) -> &Cell<Option<Hint>> {
        &self.hint
    }
}

/// Claims are nobody's business: only how many there are.
impl std::fmt::Debug for Viewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Viewer").field("claims", &self.values.len()).finish_non_exhaustive()
    }
}

impl Rule {
    /// Evaluates the claims that this rule reads.
    pub fn viewer(&self, principal: &Principal) -> Viewer {
        Viewer::new(self.claims.iter().map(|claim| claim.term.claimed(claim.kind, principal)))
    }
}
