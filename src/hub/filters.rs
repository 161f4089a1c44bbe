//! What Postgres has to say of a row's filters: each distinct condition once, whatever the number of subscribers.
//!
//! Filters are asked about only for those who were permitted the row. A condition that fails (takes too long, raises) three
//! times in a row is not asked again for a while, and ends the subscriptions that wait for it: a hostile pattern costs a few
//! timeouts, not one for each row and each phone. Only failures of questions that began after the last one count, and a timeout
//! on a large value is the value's.
//!
//! Nor do new patterns help, or patterns that are slow and answer. Each owner (a user on all his connections; a connection
//! whose token names no user) has a share of a row's conditions, and a budget of Postgres's time. What is beyond is undecided
//! for that owner: he is told of a gap, his subscriptions stay, and nobody else's filter is touched.
//!
//! Rejected: owners by claims alone, which makes all anonymous clients one; owners by channel, of which anybody opens a hundred.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::claims::Principal;
use crate::filter::{AskedTerm, FilterAnswer, FilterAskConfig, FilterFailure, OpenTerms};

/// An entry's id, and what must hold for it to match.
pub(super) type Conditional = Vec<(i32, OpenTerms)>;

/// Most conditions of one row: what is beyond stays undecided.
const MAX_TERMS_OF_ROW: usize = 1024;
/// In a row, until a condition is given up.
const STRIKES: u32 = 3;
/// A condition that more owners than this have is nobody's in particular: it has a budget of its own.
const MAX_OWNERS: usize = 16;
/// How long a condition is given up for.
const PENALTY: Duration = Duration::from_secs(60);
/// Of a budget.
const WINDOW: Duration = Duration::from_secs(60);
/// An answer within this is free: who has many rows, and ordinary filters, is not to be cut off.
const FREE: Duration = Duration::from_millis(1);
/// Most conditions, and most owners, that are remembered.
const MAX_REMEMBERED: usize = 4096;

/// Whose a condition is, for fairness.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// The token's subject.
    User(Arc<str>),
    /// The number of a connection whose token names no user.
    Connection(u64),
}

impl Owner {
    pub(super) fn of(principal: &Principal, connection: u64) -> Owner {
        match &*principal.subject {
            "" => Owner::Connection(connection),
            _ => Owner::User(principal.subject.clone()),
        }
    }

    /// The same for who knows owners by a text.
    pub(super) fn key(&self) -> String {
        match self {
            Owner::User(subject) => format!("user {subject}"),
            Owner::Connection(number) => format!("connection {number}"),
        }
    }
}

/// Those who wait for a condition; of many, some.
pub(super) type Owners = SmallVec<[Owner; 1]>;

/// The open conditions of one row, each with its column's index.
#[derive(Default)]
pub(super) struct RowFilters {
    index: AHashMap<(Arc<AskedTerm>, usize), usize>,
    terms: Vec<(Arc<AskedTerm>, usize)>,
    owners: Vec<Owners>,
    answers: Vec<Option<FilterAnswer>>,
    answered: usize,
    /// How many each owner has brought.
    brought: AHashMap<Owner, usize>,
    /// Conditions that were too many.
    pub(super) left_out: u64,
    /// Conditions that were not asked about since nobody who waits for them has any time left.
    pub(super) over_budget: u64,
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
    pub(super) fn add(&mut self, open: &OpenTerms, owner: &Owner, limits: &FilterAskConfig) {
        for term in open {
            if let Some(at) = self.index.get(term) {
                let owners = &mut self.owners[*at];
                if owners.len() <= MAX_OWNERS && !owners.contains(owner) {
                    owners.push(owner.clone());
                }
                continue;
            }
            let rest = MAX_TERMS_OF_ROW - self.terms.len();
            let room = rest.div_ceil(limits.part_of_rest.max(1)).min(limits.conditions_of_owner);
            let brought = self.brought.entry(owner.clone()).or_default();
            if *brought >= room {
                self.left_out += 1;
                continue;
            }
            *brought += 1;
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
                _ if matches!(decided, Match::Yes) => decided = Match::Undecided,
                _ => {}
            }
        }
        decided
    }
}

struct Failing {
    times: u32,
    failure: FilterFailure,
    /// When the latest of them was counted.
    latest: Instant,
}

/// Time that was spent in a window.
struct Spent {
    since: Instant,
    time: Duration,
}

/// Conditions that fail, by their latest answers, and what has been spent on whom.
pub(super) struct Failures {
    /// Of Postgres's time, for all conditions of an owner in one window.
    budget: Duration,
    terms: AHashMap<Arc<AskedTerm>, Failing>,
    owners: AHashMap<Owner, Spent>,
    /// On conditions that are nobody's in particular.
    shared: AHashMap<Arc<AskedTerm>, Spent>,
}

/// What Postgres said of one condition.
pub(super) struct Outcome {
    /// When the question began.
    pub(super) began: Instant,
    pub(super) answer: FilterAnswer,
    /// What this condition took of it.
    pub(super) took: Duration,
}

/// Why a condition is not asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has failed too often.
    GivenUp(FilterFailure),
    /// Those who wait for it have spent their time.
    OverBudget,
}

/// Whether there is room to remember this one.
fn has_room<K: Eq + std::hash::Hash, V>(map: &mut AHashMap<K, V>, key: &K, is_current: impl Fn(&V) -> bool) -> bool {
    if map.len() >= MAX_REMEMBERED && !map.contains_key(key) {
        map.retain(|_, value| is_current(value));
    }
    map.len() < MAX_REMEMBERED || map.contains_key(key)
}

impl Spent {
    fn is_current(&self) -> bool {
        self.since.elapsed() < WINDOW
    }
}

fn charge<K: Eq + std::hash::Hash + Clone>(map: &mut AHashMap<K, Spent>, key: &K, time: Duration) {
    if has_room(map, key, Spent::is_current) {
        let spent = map.entry(key.clone()).or_insert_with(|| Spent { since: Instant::now(), time: Duration::ZERO });
        if !spent.is_current() {
            *spent = Spent { since: Instant::now(), time: Duration::ZERO };
        }
        spent.time += time;
    }
}

fn has_spent<K: Eq + std::hash::Hash>(map: &AHashMap<K, Spent>, key: &K, budget: Duration) -> bool {
    map.get(key).is_some_and(|spent| spent.time >= budget && spent.is_current())
}

impl Failures {
    pub(super) fn new(budget: Duration) -> Failures {
        Failures { budget, terms: AHashMap::new(), owners: AHashMap::new(), shared: AHashMap::new() }
    }

    pub(super) fn note(&mut self, term: &Arc<AskedTerm>, owners: &Owners, outcome: &Outcome) {
        let costs = outcome.took.saturating_sub(FREE);
        if !costs.is_zero() && owners.len() > MAX_OWNERS {
            charge(&mut self.shared, term, costs);
        } else if !costs.is_zero() {
            let each = costs / owners.len().max(1) as u32;
            owners.iter().for_each(|owner| charge(&mut self.owners, owner, each));
        }
        match outcome.answer {
            FilterAnswer::Says(_) => {
                if !self.terms.is_empty() {
                    self.terms.remove(term);
                }
            }
            FilterAnswer::Failed(failure) => self.strike(term, failure, outcome.began),
            // The connection's fault or the value's, not the condition's.
            FilterAnswer::TooLarge | FilterAnswer::Undecided => {}
        }
    }

    /// Once more, if the question began after the latest that counts: of those on their way at once one is enough.
    fn strike(&mut self, term: &Arc<AskedTerm>, failure: FilterFailure, began: Instant) {
        let is_current = |failing: &Failing| failing.latest.elapsed() < PENALTY;
        let before = self.terms.get(term).filter(|failing| is_current(failing));
        if before.is_some_and(|failing| began <= failing.latest) {
            return;
        }
        let times = before.map_or(0, |failing| failing.times) + 1;
        if has_room(&mut self.terms, term, is_current) {
            self.terms.insert(term.clone(), Failing { times, failure, latest: Instant::now() });
        }
    }

    /// Why a condition is not asked about for now: on its own account, or since all who wait for it have spent their time.
    pub(super) fn refused(&self, term: &Arc<AskedTerm>, owners: &Owners) -> Option<Refusal> {
        let spent = || {
            if owners.len() > MAX_OWNERS {
                has_spent(&self.shared, term, self.budget)
            } else {
                !self.owners.is_empty() && owners.iter().all(|owner| has_spent(&self.owners, owner, self.budget))
            }
        };
        let given_up = self.given_up(term).map(Refusal::GivenUp);
        given_up.or_else(|| spent().then_some(Refusal::OverBudget))
    }

    /// How a condition fails that has failed too often.
    pub(super) fn given_up(&self, term: &Arc<AskedTerm>) -> Option<FilterFailure> {
        let failing = self.terms.get(term)?;
        (failing.times >= STRIKES && failing.latest.elapsed() < PENALTY).then_some(failing.failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::asked_for_tests as term;

    const TIMEOUT: FilterAnswer = FilterAnswer::Failed(FilterFailure::Timeout);
    const RAISED: FilterAnswer = FilterAnswer::Failed(FilterFailure::Raised);

    fn user(name: &str) -> Owner {
        Owner::User(name.into())
    }

    fn owners(names: &[&str]) -> Owners {
        names.iter().map(|name| user(name)).collect()
    }

    fn quick(answer: FilterAnswer) -> Outcome {
        Outcome { began: Instant::now(), answer, took: Duration::ZERO }
    }

    fn slow(answer: FilterAnswer) -> Outcome {
        Outcome { took: Duration::from_millis(100), ..quick(answer) }
    }

    #[test]
    fn three_in_a_row_are_enough_and_an_answer_between_starts_anew() {
        let mut failures = Failures::new(FilterAskConfig::default().budget);
        let (a, alice) = (term("a"), owners(&["alice"]));
        for answer in [TIMEOUT, TIMEOUT, FilterAnswer::Says(None), RAISED, FilterAnswer::Undecided, RAISED] {
            failures.note(&a, &alice, &quick(answer));
        }
        failures.note(&a, &alice, &quick(FilterAnswer::TooLarge));
        assert_eq!(failures.refused(&a, &alice), None);
        failures.note(&a, &alice, &quick(RAISED));
        assert_eq!(failures.refused(&a, &alice), Some(Refusal::GivenUp(FilterFailure::Raised)));
        assert_eq!(failures.refused(&term("b"), &alice), None, "errors are no reason to stop asking for somebody");
    }

    #[test]
    fn of_questions_that_are_on_their_way_at_once_one_counts() {
        let mut failures = Failures::new(FilterAskConfig::default().budget);
        let (a, alice) = (term("a"), owners(&["alice"]));
        let began = Instant::now();
        for _ in 0..5 {
            failures.note(&a, &alice, &Outcome { began, answer: TIMEOUT, took: Duration::ZERO });
        }
        assert_eq!(failures.given_up(&a), None);
    }

    #[test]
    fn who_has_spent_his_time_is_not_asked_for_and_others_are() {
        for answer in [TIMEOUT, FilterAnswer::TooLarge, FilterAnswer::Says(Some(true))] {
            let mut failures = Failures::new(FilterAskConfig::default().budget);
            let mallory = owners(&["mallory"]);
            let mut asked = 0;
            while failures.refused(&term("next"), &mallory).is_none() {
                failures.note(&term(&asked.to_string()), &mallory, &slow(answer));
                asked += 1;
            }
            assert_eq!(asked, 21, "99 ms of each count");
            assert_eq!(failures.refused(&term("next"), &mallory), Some(Refusal::OverBudget));
            assert_eq!(failures.refused(&term("next"), &owners(&["mallory", "alice"])), None);
            assert_eq!(failures.given_up(&term("0")), None);
        }
    }

    #[test]
    fn a_slow_condition_that_many_have_is_nobodys_and_has_a_budget_of_its_own() {
        let mut failures = Failures::new(FilterAskConfig::default().budget);
        let many: Owners = (0..=MAX_OWNERS as u64).map(Owner::Connection).collect();
        for _ in 0..30 {
            failures.note(&term("a"), &many, &slow(FilterAnswer::Says(None)));
        }
        assert_eq!(failures.refused(&term("a"), &many), Some(Refusal::OverBudget));
        assert_eq!(failures.refused(&term("b"), &many), None);
        assert_eq!(failures.refused(&term("b"), &many[..1].iter().cloned().collect()), None);
    }

    #[test]
    fn without_a_user_the_connection_is_the_owner() {
        let principal = |claims: serde_json::Value| Principal::new(claims.as_object().unwrap().clone(), 1).unwrap();
        let anon = principal(serde_json::json!({ "role": "anon" }));
        assert_ne!(Owner::of(&anon, 1), Owner::of(&anon, 2));
        let alice = principal(serde_json::json!({ "role": "authenticated", "sub": "alice" }));
        assert_eq!(Owner::of(&alice, 1), Owner::of(&alice, 2));
    }

    #[test]
    fn nobody_fills_a_row_with_his_conditions() {
        let limits = FilterAskConfig::default();
        let mut filters = RowFilters::default();
        let many = |of: &str| (0..5000).map(|n| (term(&format!("{of}{n}")), 0)).collect::<OpenTerms>();
        filters.add(&many("mallory"), &user("mallory"), &limits);
        assert_eq!((filters.len(), filters.left_out), (32, 5000 - 32));
        for n in 0..50 {
            filters.add(&many(&n.to_string()), &user(&n.to_string()), &limits);
        }
        let open: OpenTerms = [(term("hers"), 0)].into_iter().collect();
        filters.add(&open, &user("alice"), &limits);
        filters.answer(filters.len() - 1, FilterAnswer::Says(Some(true)));
        assert!(matches!(filters.decide(&open), Match::Yes), "there is room for a newcomer");
        // What somebody else has brought is answered for him too.
        filters.add(&open, &user("mallory"), &limits);
        assert!(matches!(filters.decide(&many("mallory")), Match::Undecided));
    }

    #[test]
    fn a_condition_that_is_not_fulfilled_decides_whatever_became_of_the_others() {
        let limits = FilterAskConfig::default();
        let mut filters = RowFilters::default();
        let open: OpenTerms = ["a", "b", "c"].iter().map(|text| (term(text), 0)).collect();
        let alice = user("alice");
        filters.add(&open, &alice, &limits);
        filters.add(&open, &alice, &limits);
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
