//! (being written)
use std::fmt;

use smallvec::SmallVec;

use super::{Rule, Viewer};
use crate::change::Value;
use crate::policy::facts::{FactBinding, Facts, Side};

/// What every permit under a rule implies: the viewer's value of one of these claims is among those that the row yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    claims: Vec<u16>,
}

/// A viewer's place in the index of one claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewerKey {
    /// He is found by these values only; none: never by this claim.
    Values(SmallVec<[Box<[u8]>; 1]>),
    /// The claim says nothing about him: he must be judged on every row.
    MustJudge,
}

/// What [`Keys::of_row`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowKeys {
    /// All values were found.
    Complete,
    /// For these claims there were too many: everybody in their indexes must be judged.
    TooMany(SmallVec<[u16; 2]>),
    /// A column that decides is absent.
    Absent,
}

impl Rule {
    /// The keys of this rule; `None` if everybody must be judged on every row.
    pub fn keys(&self) -> Option<Keys> {
        None
    }
}

impl Keys {
    /// The claims that have an index, each once. A number beyond [`Rule::claims`] is not a claim but an index in which
    /// [`Keys::of_viewer`] puts everybody: for rows that are open to all.
    pub fn claims(&self) -> &[u16] {
        &self.claims
    }

    /// Under which values of a claim the viewer is to be found.
    pub fn of_viewer(&self, claim: u16, viewer: &Viewer) -> ViewerKey {
        let _ = (claim, viewer);
        ViewerKey::MustJudge
    }

    /// Calls `found(claim, value)` for every value that this row yields, perhaps repeatedly. Gives a claim up after `limit`
    /// steps.
    #[expect(clippy::too_many_arguments, reason = "the row, its evidence and the visitor, as for Rule::truth")]
    pub fn of_row<'a>(
        &self,
        binding: &FactBinding,
        facts: &Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        limit: usize,
        found: &mut dyn FnMut(u16, &[u8]),
    ) -> RowKeys {
        let _ = (binding, facts, side, column, limit, found);
        RowKeys::TooMany(self.claims.iter().copied().collect())
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("")
    }
}
