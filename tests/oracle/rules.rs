//! What a subscriber is owed of a change, by what Postgres says of its images.

use super::claims::Who;
use super::column::is_out_of_line;
use super::round::{Round, Step};
use super::stage::{Seen, Truth};

#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) round: &'a Round,
    pub(super) truth: &'a Truth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owed {
    Must,
    May,
    Not,
}

impl Rules<'_> {
    /// Whether the stream sends these columns of the image that decides, or they are in a complete old row.
    pub(super) fn sent<'b>(&self, step: Step, mut columns: impl Iterator<Item = &'b str>) -> bool {
        let table = &self.round.table;
        columns.all(|name| {
            let column = table.find(name);
            table.is_full()
                || if step.is_delete() {
                    table.identity_columns().contains(&column)
                } else {
                    !self.is_untouched(step, column)
                }
        })
    }

    /// An UPDATE leaves this value where it is, out of line.
    pub(super) fn is_untouched(&self, step: Step, column: usize) -> bool {
        let rows = &self.round.rows;
        match step {
            Step::Update(from, to) => {
                rows[from][column] == rows[to][column] && is_out_of_line(rows[to][column].as_ref())
            }
            Step::Insert(_) | Step::Delete(_) => false,
        }
    }

    /// The columns of the new row that can be shown.
    pub(super) fn new_columns(&self, step: Step) -> Vec<usize> {
        let full = self.round.table.is_full();
        self.all().into_iter().filter(|column| full || !self.is_untouched(step, *column)).collect()
    }

    /// Whether the stream sends all that policies for this role read.
    pub(super) fn has_evidence(&self, step: Step, role: &str) -> bool {
        let table = &self.round.table;
        let protected = table.row_security && role != "service_role";
        let applying = table.policies.iter().filter(|policy| protected && policy.applies_to(role));
        self.sent(step, applying.flat_map(|policy| policy.columns().iter().copied()))
    }

    /// No claim raises, or it does whatever the planner thinks.
    pub(super) fn is_exact(&self, who: &Who) -> bool {
        let applying = || self.round.table.policies.iter().filter(|policy| policy.applies_to(who.role()));
        let casts = |claim: &&str| applying().any(|policy| policy.casts(claim));
        let single = applying().count() == 1 && applying().all(|policy| policy.is_single());
        single || !who.malformed.iter().any(casts)
    }

    pub(super) fn may_read_key(&self, role: &str) -> bool {
        self.round.table.key.iter().all(|i| self.truth.readable[role][*i])
    }

    /// What is logged of the old row of a DELETE.
    pub(super) fn identity(&self) -> Vec<usize> {
        let table = &self.round.table;
        if table.is_full() { self.all() } else { table.identity_columns() }
    }

    /// There is something to show: an old row needs a readable column, a new one a readable key.
    pub(super) fn shows_something(&self, step: Step, role: &str) -> bool {
        match step {
            Step::Delete(_) => self.identity().into_iter().any(|i| self.truth.readable[role][i]),
            Step::Insert(_) | Step::Update(..) => self.may_read_key(role),
        }
    }

    pub(super) fn owed(&self, step: Step, who: usize) -> Owed {
        let subscriber = &self.round.who[who];
        let exact = self.is_exact(subscriber) && self.has_evidence(step, subscriber.role());
        match self.truth.seen[who][step.judged()] {
            _ if !self.shows_something(step, subscriber.role()) => Owed::Not,
            Seen::Yes if exact => Owed::Must,
            Seen::Yes => Owed::May,
            Seen::Raises if !self.is_exact(subscriber) => Owed::May,
            Seen::Raises | Seen::No => Owed::Not,
        }
    }

    /// Whether an UPDATE shows the whole old row and not its key alone.
    pub(super) fn widened(&self, from: usize, who: usize) -> Owed {
        let exact = self.is_exact(&self.round.who[who]);
        match self.truth.seen[who][from] {
            _ if !self.round.table.is_full() => Owed::Not,
            Seen::Yes if exact => Owed::Must,
            Seen::Yes => Owed::May,
            Seen::Raises if !exact => Owed::May,
            Seen::Raises | Seen::No => Owed::Not,
        }
    }

    /// The readable ones of these columns.
    pub(super) fn readable(&self, who: usize, columns: &[usize]) -> Vec<usize> {
        let readable = &self.truth.readable[self.round.who[who].role()];
        columns.iter().copied().filter(|i| readable[*i]).collect()
    }

    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.round.table.columns.len()).collect()
    }
}
