//! What Postgres has to say of a row's filters: each distinct condition once, whatever the number of subscribers.
//!
//! Filters are asked about only for those who were permitted the row. A condition that fails (takes too long, raises) twice in
//! a row is not asked again for a while, and ends the subscriptions that wait for it: a hostile pattern costs two timeouts, not
//! one for each row and each phone.
//!
//! Rejected: counting failures per channel. Whoever opens a hundred channels would stall the line a hundred times as long.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use tokio::time::Instant;

use crate::filter::{AskedTerm, FilterAnswer, FilterFailure, OpenTerms};

/// An entry's id, and what must hold for it to match.
pub(super) type Conditional = Vec<(i32, OpenTerms)>;

/// Most conditions of one row: what is beyond stays undecided.
const MAX_TERMS_OF_ROW: usize = 1024;
/// In a row, until a condition is given up.
const STRIKES: u32 = 2;
/// How long it is given up for.
const PENALTY: Duration = Duration::from_secs(60);
/// Most conditions whose failures are remembered.
const MAX_FAILING: usize = 4096;

/// The open conditions of one row, each with its column's index.
#[derive(Default)]
pub(super) struct RowFilters {
    index: AHashMap<(Arc<AskedTerm>, usize), usize>,
    terms: Vec<(Arc<AskedTerm>, usize)>,
    answers: Vec<Option<FilterAnswer>>,
    answered: usize,
    /// Conditions that were too many.
    pub(super) left_out: u64,
}

/// Whether an entry matches a row.
pub(super) enum Match {
    Yes,
    No,
    Undecided,
    /// Undecided through the fault of this condition.
    Failed(Arc<AskedTerm>),
}

impl RowFilters {
    pub(super) fn add(&mut self, open: &OpenTerms) {
        for term in open {
            if self.index.contains_key(term) {
                continue;
            }
            if self.terms.len() == MAX_TERMS_OF_ROW {
                self.left_out += 1;
                continue;
            }
            self.index.insert(term.clone(), self.terms.len());
            self.terms.push(term.clone());
            self.answers.push(None);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.terms.len()
    }

    pub(super) fn term(&self, at: usize) -> &(Arc<AskedTerm>, usize) {
        &self.terms[at]
    }

    pub(super) fn answer(&mut self, at: usize, answer: FilterAnswer) {
        self.answered += usize::from(self.answers[at].replace(answer).is_none());
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answered == self.terms.len()
    }

    /// All conditions must hold, so that one that doesn't decides, whatever became of the others.
    pub(super) fn decide(&self, open: &OpenTerms) -> Match {
        let mut decided = Match::Yes;
        for term in open {
            let answer = self.index.get(term).and_then(|at| self.answers[*at]);
            match answer {
                Some(FilterAnswer::Says(answer)) if term.0.accepts(answer) => {}
                Some(FilterAnswer::Says(_)) => return Match::No,
                Some(FilterAnswer::Failed(_)) => decided = Match::Failed(term.0.clone()),
                Some(FilterAnswer::Undecided) | None if matches!(decided, Match::Yes) => decided = Match::Undecided,
                Some(FilterAnswer::Undecided) | None => {}
            }
        }
        decided
    }
}

struct Failing {
    times: u32,
    failure: FilterFailure,
    latest: Instant,
}

/// Conditions that fail, by their latest answers.
#[derive(Default)]
pub(super) struct Failures {
    terms: AHashMap<Arc<AskedTerm>, Failing>,
}

impl Failures {
    pub(super) fn note(&mut self, term: &Arc<AskedTerm>, answer: FilterAnswer) {
        match answer {
            FilterAnswer::Says(_) => {
                if !self.terms.is_empty() {
                    self.terms.remove(term);
                }
            }
            // The connection's fault, not the condition's.
            FilterAnswer::Undecided => {}
            FilterAnswer::Failed(failure) => {
                if self.terms.len() >= MAX_FAILING {
                    self.terms.retain(|_, failing| failing.latest.elapsed() < PENALTY);
                }
                if self.terms.len() >= MAX_FAILING && !self.terms.contains_key(term) {
                    return;
                }
                let new = Failing { times: 0, failure, latest: Instant::now() };
                let failing = self.terms.entry(term.clone()).or_insert(new);
                *failing = Failing { times: failing.times + 1, failure, latest: Instant::now() };
            }
        }
    }

    /// How a condition fails that is not asked about any more for now.
    pub(super) fn given_up(&self, term: &Arc<AskedTerm>) -> Option<FilterFailure> {
        let failing = self.terms.get(term)?;
        (failing.times >= STRIKES && failing.latest.elapsed() < PENALTY).then_some(failing.failure)
    }
}
