//! What Postgres has to say of a row's filters: each distinct condition once, whatever the number of subscribers.
//!
//! Filters are asked about only for those who were permitted the row. A condition that fails (takes too long, raises) twice in
//! a row is not asked again for a while, and ends the subscriptions that wait for it: a hostile pattern costs two timeouts, not
//! one for each row and each phone. Nor does a new pattern help: a user whose patterns have timed out some times is not asked
//! for at all for that while.
//!
//! Rejected: counting failures per channel. Whoever opens a hundred channels would stall the line a hundred times as long.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::filter::{AskedTerm, FilterAnswer, FilterFailure, OpenTerms};

/// An entry's id, and what must hold for it to match.
pub(super) type Conditional = Vec<(i32, OpenTerms)>;

/// Most conditions of one row: what is beyond stays undecided.
const MAX_TERMS_OF_ROW: usize = 1024;
/// In a row, until a condition is given up.
const STRIKES: u32 = 2;
/// Timeouts of all conditions of one user, until none of them is asked.
const OWNERS_STRIKES: u32 = 8;
/// A condition that more users than this have is nobody's in particular.
const MAX_OWNERS: usize = 4;
/// How long a condition or a user is given up for.
const PENALTY: Duration = Duration::from_secs(60);
/// Most conditions, and most users, whose failures are remembered.
const MAX_FAILING: usize = 4096;

/// The users who wait for a condition, by their [`crate::claims::Principal::sharing_key`].
pub(super) type Owners = SmallVec<[Arc<str>; 1]>;

/// The open conditions of one row, each with its column's index.
#[derive(Default)]
pub(super) struct RowFilters {
    index: AHashMap<(Arc<AskedTerm>, usize), usize>,
    terms: Vec<(Arc<AskedTerm>, usize)>,
    owners: Vec<Owners>,
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
    pub(super) fn add(&mut self, open: &OpenTerms, owner: &Arc<str>) {
        for term in open {
            if let Some(at) = self.index.get(term) {
                let owners = &mut self.owners[*at];
                if owners.len() <= MAX_OWNERS && !owners.contains(owner) {
                    owners.push(owner.clone());
                }
                continue;
            }
            if self.terms.len() == MAX_TERMS_OF_ROW {
                self.left_out += 1;
                continue;
            }
            self.index.insert(term.clone(), self.terms.len());
            self.terms.push(term.clone());
            self.owners.push(smallvec::smallvec![owner.clone()]);
            self.answers.push(None);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.terms.len()
    }

    pub(super) fn term(&self, at: usize) -> &(Arc<AskedTerm>, usize) {
        &self.terms[at]
    }

    /// Whose it is; of a condition that many have, some of them.
    pub(super) fn owners(&self, at: usize) -> &Owners {
        &self.owners[at]
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

#[derive(Clone, Copy)]
struct Failing {
    times: u32,
    failure: FilterFailure,
    latest: Instant,
}

/// Conditions that fail, by their latest answers.
#[derive(Default)]
pub(super) struct Failures {
    terms: AHashMap<Arc<AskedTerm>, Failing>,
    owners: AHashMap<Arc<str>, Failing>,
}

/// Once more, if there is room to remember it.
fn count<K: Eq + std::hash::Hash + Clone>(map: &mut AHashMap<K, Failing>, key: &K, failure: FilterFailure) {
    if map.len() >= MAX_FAILING {
        map.retain(|_, failing| failing.latest.elapsed() < PENALTY);
    }
    if map.len() >= MAX_FAILING && !map.contains_key(key) {
        return;
    }
    let before = map.get(key).filter(|failing| failing.latest.elapsed() < PENALTY).map_or(0, |failing| failing.times);
    map.insert(key.clone(), Failing { times: before + 1, failure, latest: Instant::now() });
}

impl Failures {
    pub(super) fn note(&mut self, term: &Arc<AskedTerm>, owners: &Owners, answer: FilterAnswer) {
        match answer {
            FilterAnswer::Says(_) => {
                if !self.terms.is_empty() {
                    self.terms.remove(term);
                }
            }
            // The connection's fault, not the condition's.
            FilterAnswer::Undecided => {}
            FilterAnswer::Failed(failure) => {
                count(&mut self.terms, term, failure);
                // An error costs nobody time.
                if failure == FilterFailure::Timeout && owners.len() <= MAX_OWNERS {
                    owners.iter().for_each(|owner| count(&mut self.owners, owner, failure));
                }
            }
        }
    }

    /// How a condition fails that is not asked about for now, on its own account or since all who wait for it are not.
    pub(super) fn refused(&self, term: &Arc<AskedTerm>, owners: &Owners) -> Option<FilterFailure> {
        if self.terms.is_empty() && self.owners.is_empty() {
            return None;
        }
        let blocked = || owners.iter().all(|owner| self.blocked(owner)).then_some(FilterFailure::Timeout);
        self.given_up(term).or_else(blocked)
    }

    /// How a condition fails that has failed too often.
    pub(super) fn given_up(&self, term: &Arc<AskedTerm>) -> Option<FilterFailure> {
        let failing = self.terms.get(term)?;
        (failing.times >= STRIKES && failing.latest.elapsed() < PENALTY).then_some(failing.failure)
    }

    /// Whether the user's conditions have timed out too often.
    pub(super) fn blocked(&self, owner: &Arc<str>) -> bool {
        let failing = self.owners.get(owner);
        failing.is_some_and(|f| f.times >= OWNERS_STRIKES && f.latest.elapsed() < PENALTY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::asked_for_tests as term;

    const TIMEOUT: FilterAnswer = FilterAnswer::Failed(FilterFailure::Timeout);

    fn owners(names: &[&str]) -> Owners {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn twice_in_a_row_is_enough_and_an_answer_between_starts_anew() {
        let mut failures = Failures::default();
        let (a, alice) = (term("a"), owners(&["alice"]));
        failures.note(&a, &alice, TIMEOUT);
        failures.note(&a, &alice, FilterAnswer::Says(None));
        failures.note(&a, &alice, FilterAnswer::Failed(FilterFailure::Raised));
        failures.note(&a, &alice, FilterAnswer::Undecided);
        assert_eq!(failures.refused(&a, &alice), None);
        failures.note(&a, &alice, FilterAnswer::Failed(FilterFailure::Raised));
        assert_eq!(failures.refused(&a, &alice), Some(FilterFailure::Raised));
        assert_eq!(failures.refused(&term("b"), &alice), None, "errors are no reason to stop asking for somebody");
    }

    #[test]
    fn who_comes_with_ever_new_patterns_is_not_asked_for_and_others_are() {
        let mut failures = Failures::default();
        for i in 0..OWNERS_STRIKES {
            assert_eq!(failures.refused(&term("next"), &owners(&["mallory"])), None);
            failures.note(&term(&i.to_string()), &owners(&["mallory"]), TIMEOUT);
        }
        assert!(failures.refused(&term("next"), &owners(&["mallory"])).is_some());
        assert_eq!(failures.refused(&term("next"), &owners(&["mallory", "alice"])), None);
    }

    #[test]
    fn a_condition_that_is_not_fulfilled_decides_whatever_became_of_the_others() {
        let mut filters = RowFilters::default();
        let open: OpenTerms = ["a", "b", "c"].iter().map(|text| (term(text), 0)).collect();
        let alice: Arc<str> = "alice".into();
        filters.add(&open, &alice);
        filters.add(&open, &alice);
        assert_eq!(filters.len(), 3, "each once");
        filters.answer(0, TIMEOUT);
        filters.answer(1, FilterAnswer::Says(Some(true)));
        assert!(matches!(filters.decide(&open), Match::Failed(_)));
        assert!(!filters.is_answered());
        filters.answer(2, FilterAnswer::Says(None));
        assert!(filters.is_answered() && matches!(filters.decide(&open), Match::No));
        assert!(matches!(filters.decide(&open[1..2].iter().cloned().collect()), Match::Yes));
    }
}
