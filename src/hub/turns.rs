//! Whose question Postgres is asked next: fair between policies, and a policy that keeps failing is left alone for a while.
//!
//! A policy here is what applies to one table for one role. They take turns; one that is slow, or not known yet, has at most
//! half of the places, so that the others' questions always find one. After five questions in a row without a decision
//! (time-out, broken connection, a role that can't be assumed, or rows that had to wait too long for their turn) a policy is
//! *suspended*: its questions are refused, which leaves its rows undecided at once. After a pause one question is let through;
//! its answer ends the suspension, another failure doubles the pause. A policy that was changed starts anew. A slow one has no
//! more questions waiting than it answers in a few seconds, and what is beyond is refused: rows that wait take the room of
//! everybody's.
//!
//! Plain data; the time is passed in.
//!
//! Rejected: a limit on waiting rows for each policy, slow or not. A burst on a good policy must wait, not be lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use tokio::time::Instant;

use crate::policy::{AskConfig, Plan, UndecidedReason};

/// In times of the first pause.
const LONGEST_PAUSE: u32 = 12;
/// Questions that take longer than this on average are slow.
const SLOW: Duration = Duration::from_millis(50);
/// So long may pass without an answer before the next one counts as that slow.
const SILENCE: Duration = Duration::from_secs(2);
/// The questions of a slow policy that wait are no more than it answers in this time.
const MOST_BEHIND: Duration = Duration::from_secs(5);
/// More policies than this are not remembered.
const MAX_REMEMBERED: usize = 4096;

/// Why a policy has no answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Postgres could not decide.
    Undecided(UndecidedReason),
    /// The rows waited too long for their turn.
    Behind,
}

impl Failure {
    /// The metric's label.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Failure::Undecided(reason) => reason.as_str(),
            Failure::Behind => "behind",
        }
    }

    /// What a person can do.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Failure::Undecided(UndecidedReason::Timeout) | Failure::Behind => {
                "make it one that is judged in memory, or make what it looks up faster (an index); `rowcast explain-policy` shows \
                 what is asked"
            }
            Failure::Undecided(UndecidedReason::Role) => {
                "grant the role to the relay's login; `rowcast doctor` prints the SQL"
            }
            Failure::Undecided(_) => "see the server's log for what ends the session",
        }
    }
}

/// How a question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Somebody got a decision.
    Answered,
    Failed(Failure),
    /// It says nothing about the policy: the database was away, the row not visible yet.
    Unknown,
}

/// What a question's end changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<Q> {
    Nothing,
    /// Its other questions are refused: these waited.
    Suspended {
        failure: Failure,
        pause: Duration,
        refused: Vec<Q>,
    },
    /// It answers again.
    Restored,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Failures in a row.
    Asked(u32),
    Suspended {
        until: Instant,
        pause: Duration,
    },
    /// One question is under way to see.
    Probing {
        pause: Duration,
    },
}

struct Policy<Q> {
    plan: Arc<Plan>,
    waiting: VecDeque<Q>,
    running: usize,
    /// Of its questions' times, the later ones counting more.
    mean: Option<Duration>,
    /// When a question last ended, or began while no other was under way.
    heard: Instant,
    state: State,
}

impl<Q> Policy<Q> {
    /// It is slow, and has as much before it as it can do in the time.
    fn is_behind(&self, places: usize, now: Instant) -> bool {
        let silence = if self.running > 0 { now.saturating_duration_since(self.heard) } else { Duration::ZERO };
        let one = if silence > SILENCE { silence } else { self.mean.unwrap_or_default() };
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        one > SLOW
            && one.saturating_mul(waiting) > MOST_BEHIND.saturating_mul(u32::try_from(places).unwrap_or(u32::MAX))
    }
}

/// The table and the role.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Whose(u32, Arc<str>);

/// See the module's comment. `Q` names a question.
pub(super) struct Turns<Q> {
    places: usize,
    /// In a row, until a policy is suspended.
    failures: u32,
    /// The first pause; doubles.
    pause: Duration,
    running: usize,
    waiting: usize,
    suspended: usize,
    policies: AHashMap<Whose, Policy<Q>>,
    /// Those with something that waits, the next one first.
    order: VecDeque<Whose>,
}

impl<Q> Turns<Q> {
    pub(super) fn new(config: &AskConfig) -> Turns<Q> {
        Turns {
            places: config.connections.max(1),
            failures: config.failures,
            pause: config.suspension,
            running: 0,
            waiting: 0,
            suspended: 0,
            policies: AHashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Questions that wait for their turn.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Policies that are suspended.
    pub(super) fn suspended(&self) -> usize {
        self.suspended
    }

    /// Lines a question up. Gives it back if its policy is suspended, or slow and too far behind.
    pub(super) fn push(&mut self, plan: &Arc<Plan>, question: Q, now: Instant) -> Result<(), Q> {
        let whose = Whose(plan.table_oid, plan.role.as_str().into());
        if self.policies.len() >= MAX_REMEMBERED && !self.policies.contains_key(&whose) {
            let idle = |policy: &Policy<Q>| policy.running == 0 && policy.waiting.is_empty();
            self.policies.retain(|_, policy| !idle(policy) || !matches!(policy.state, State::Asked(_)));
        }
        let policy = self.policies.entry(whose.clone()).or_insert_with(|| Policy {
            plan: plan.clone(),
            waiting: VecDeque::new(),
            running: 0,
            mean: None,
            heard: now,
            state: State::Asked(0),
        });
        if !Arc::ptr_eq(&policy.plan, plan) {
            if policy.plan != *plan {
                self.suspended -= usize::from(!matches!(policy.state, State::Asked(_)));
                (policy.state, policy.mean) = (State::Asked(0), None);
            }
            policy.plan = plan.clone();
        }
        match policy.state {
            State::Asked(_) if policy.is_behind((self.places / 2).max(1), now) => return Err(question),
            State::Asked(_) => {}
            State::Suspended { until, pause } if until <= now && policy.running == 0 => {
                policy.state = State::Probing { pause };
            }
            State::Suspended { .. } | State::Probing { .. } => return Err(question),
        }
        if policy.waiting.is_empty() {
            self.order.push_back(whose);
        }
        policy.waiting.push_back(question);
        self.waiting += 1;
        Ok(())
    }

    /// The next question to ask, if there is a place for it.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Whose, Q)> {
        if self.running >= self.places {
            return None;
        }
        for _ in 0..self.order.len() {
            let whose = self.order.pop_front()?;
            let Some(policy) = self.policies.get_mut(&whose) else { continue };
            let is_quick = policy.mean.is_some_and(|mean| mean <= SLOW) && matches!(policy.state, State::Asked(0));
            let places = if is_quick { self.places } else { (self.places / 2).max(1) };
            if policy.running >= places {
                self.order.push_back(whose);
                continue;
            }
            let Some(question) = policy.waiting.pop_front() else { continue };
            if policy.running == 0 {
                policy.heard = now;
            }
            policy.running += 1;
            self.running += 1;
            self.waiting -= 1;
            if !policy.waiting.is_empty() {
                self.order.push_back(whose.clone());
            }
            return Some((whose, question));
        }
        None
    }

    /// A question that [`Turns::next`] gave has ended, after this time.
    pub(super) fn ended(&mut self, whose: &Whose, ended: Ended, took: Duration, now: Instant) -> Change<Q> {
        self.running -= 1;
        let Some(policy) = self.policies.get_mut(whose) else { return Change::Nothing };
        policy.running -= 1;
        policy.heard = now;
        // It is not the policy that waiting rows wait for, but what keeps its questions from being answered at all.
        let ended = match ended {
            Ended::Failed(Failure::Behind) if policy.mean.is_none_or(|mean| mean <= SLOW) => Ended::Unknown,
            other => other,
        };
        if !matches!(ended, Ended::Unknown | Ended::Failed(Failure::Behind)) {
            policy.mean = Some(policy.mean.map_or(took, |mean| (mean * 3 + took) / 4));
        }
        let (failure, pause) = match (policy.state, ended) {
            (State::Asked(_), Ended::Answered) => {
                policy.state = State::Asked(0);
                return Change::Nothing;
            }
            (State::Probing { .. }, Ended::Answered) => {
                policy.state = State::Asked(0);
                self.suspended -= 1;
                return Change::Restored;
            }
            (State::Asked(failures), Ended::Failed(failure)) if failures + 1 >= self.failures => (failure, self.pause),
            (State::Asked(failures), Ended::Failed(_)) => {
                policy.state = State::Asked(failures + 1);
                return Change::Nothing;
            }
            (State::Probing { pause }, Ended::Failed(failure)) => {
                (failure, (pause * 2).min(self.pause * LONGEST_PAUSE))
            }
            // The next question is the probe.
            (State::Probing { pause }, Ended::Unknown) => {
                policy.state = State::Suspended { until: now, pause };
                return Change::Nothing;
            }
            // Of those under way when it was suspended.
            (State::Asked(_), Ended::Unknown) | (State::Suspended { .. }, _) => return Change::Nothing,
        };
        self.suspended += usize::from(matches!(policy.state, State::Asked(_)));
        policy.state = State::Suspended { until: now + pause, pause };
        let refused: Vec<Q> = std::mem::take(&mut policy.waiting).into();
        self.waiting -= refused.len();
        self.order.retain(|other| other != whose);
        Change::Suspended { failure, pause, refused }
    }

    /// What this policy is called.
    pub(super) fn plan(&self, whose: &Whose) -> Option<&Arc<Plan>> {
        self.policies.get(whose).map(|policy| &policy.plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::denying_for_tests as plan;

    const TIMEOUT: Ended = Ended::Failed(Failure::Undecided(UndecidedReason::Timeout));
    const LONG: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_secs(5);
    const SHORT: Duration = Duration::from_millis(1);

    fn turns(connections: usize) -> Turns<u32> {
        Turns::new(&AskConfig { connections, ..AskConfig::default() })
    }

    fn take(turns: &mut Turns<u32>) -> (Whose, u32) {
        turns.next(Instant::now()).expect("there is a place")
    }

    /// Suspends it, and gives the time of that.
    fn suspend(turns: &mut Turns<u32>, plan: &Arc<Plan>, now: Instant) -> Duration {
        for n in 0..5 {
            turns.push(plan, n, now).expect("is asked");
            let (whose, _) = take(turns);
            match turns.ended(&whose, TIMEOUT, LONG, now) {
                Change::Suspended { pause, .. } => return pause,
                other => assert_eq!(other, Change::Nothing),
            }
        }
        panic!("not suspended");
    }

    #[test]
    fn a_slow_policy_has_half_of_the_places_and_a_quick_one_all_that_are_free() {
        let mut turns = turns(4);
        let now = Instant::now();
        let (slow, quick) = (plan(1, "a"), plan(2, "a"));
        (0..10).for_each(|n| turns.push(&slow, n, now).expect("is asked"));
        let running: Vec<(Whose, u32)> = std::iter::from_fn(|| turns.next(Instant::now())).collect();
        assert_eq!((running.len(), turns.waiting()), (2, 8), "nobody knows it yet");
        (100..110).for_each(|n| turns.push(&quick, n, now).expect("is asked"));
        let (whose, first) = take(&mut turns);
        assert_eq!((first, turns.ended(&whose, Ended::Answered, SHORT, now)), (100, Change::Nothing));
        let quick: Vec<u32> = std::iter::from_fn(|| turns.next(Instant::now())).map(|(_, n)| n).collect();
        assert_eq!(quick, [101, 102]);
        assert_eq!(turns.ended(&running[0].0, Ended::Answered, LONG, now), Change::Nothing);
        assert_eq!(take(&mut turns).1, 2, "each in its own order");
        assert!(turns.next(Instant::now()).is_none());
    }

    #[test]
    fn a_slow_policy_has_no_more_waiting_than_it_answers_in_time_and_a_quick_one_any_number() {
        let mut turns = turns(4);
        let now = Instant::now();
        let (slow, quick) = (plan(1, "a"), plan(2, "a"));
        for (plan, took) in [(&slow, LONG / 10), (&quick, SHORT)] {
            turns.push(plan, 0, now).expect("is asked");
            let (whose, _) = turns.next(now).expect("there is a place");
            turns.ended(&whose, Ended::Answered, took, now);
        }
        let taken = |turns: &mut Turns<u32>, plan| (0..2000).filter(|n| turns.push(plan, *n, now).is_ok()).count();
        assert_eq!(taken(&mut turns, &slow), 51, "five seconds of two places, at 200 ms each");
        assert_eq!(taken(&mut turns, &quick), 2000);
        // One that does not answer at all is known for slow after a while, whatever it was before.
        let (whose, _) = turns.next(now).expect("there is a place");
        assert!(turns.push(&quick, 1, now + SILENCE).is_ok());
        let other = if whose.0 == 1 { &slow } else { &quick };
        assert!(turns.push(other, 1, now + SILENCE + LONG).is_err());
    }

    #[test]
    fn policies_take_turns() {
        let mut turns = turns(1);
        let now = Instant::now();
        for n in 0..3 {
            turns.push(&plan(1, "a"), n, now).expect("is asked");
            turns.push(&plan(1, "b"), 10 + n, now).expect("is asked");
        }
        let mut order = Vec::new();
        while let Some((whose, n)) = turns.next(Instant::now()) {
            order.push(n);
            turns.ended(&whose, Ended::Answered, SHORT, now);
        }
        assert_eq!(order, [0, 10, 1, 11, 2, 12]);
    }

    #[test]
    fn a_policy_that_keeps_failing_is_left_alone_and_one_question_at_a_time_tells_when_it_answers() {
        let mut turns = turns(4);
        let (broken, other) = (plan(1, "a"), plan(1, "b"));
        let mut now = Instant::now();
        assert_eq!(suspend(&mut turns, &broken, now), PAUSE);
        assert_eq!((turns.suspended(), turns.push(&broken, 7, now)), (1, Err(7)));
        assert_eq!(turns.push(&other, 8, now), Ok(()), "another role's rules are others");
        now += PAUSE;
        assert_eq!((turns.push(&broken, 9, now), turns.push(&broken, 10, now)), (Ok(()), Err(10)));
        assert_eq!(take(&mut turns).1, 8);
        let (whose, probe) = take(&mut turns);
        assert_eq!(probe, 9);
        let failed = turns.ended(&whose, TIMEOUT, LONG, now);
        assert!(matches!(failed, Change::Suspended { pause, .. } if pause == 2 * PAUSE), "{failed:?}");
        now += 2 * PAUSE;
        assert_eq!(turns.push(&broken, 11, now), Ok(()));
        assert_eq!(take(&mut turns).1, 11);
        assert_eq!(turns.ended(&whose, Ended::Unknown, LONG, now), Change::Nothing);
        assert_eq!(turns.push(&broken, 12, now), Ok(()), "that said nothing; the next one is to");
        assert_eq!(take(&mut turns).1, 12);
        assert_eq!(turns.ended(&whose, Ended::Answered, SHORT, now), Change::Restored);
        assert_eq!(
            (turns.suspended(), turns.push(&broken, 13, now), turns.push(&broken, 14, now)),
            (0, Ok(()), Ok(()))
        );
    }

    #[test]
    fn what_waits_behind_the_failures_is_given_back_and_an_answer_between_starts_the_count_anew() {
        let mut turns = turns(2);
        let (policy, now) = (plan(1, "a"), Instant::now());
        (0..20).for_each(|n| turns.push(&policy, n, now).expect("is asked"));
        for ended in
            [TIMEOUT, TIMEOUT, TIMEOUT, TIMEOUT, Ended::Answered, TIMEOUT, Ended::Unknown, TIMEOUT, TIMEOUT, TIMEOUT]
        {
            let (whose, _) = take(&mut turns);
            assert_eq!(turns.ended(&whose, ended, LONG, now), Change::Nothing);
        }
        let (whose, _) = take(&mut turns);
        let Change::Suspended { refused, .. } = turns.ended(&whose, TIMEOUT, LONG, now) else { panic!("goes on") };
        assert_eq!((refused, turns.waiting()), ((11..20).collect(), 0));
        assert!(turns.next(Instant::now()).is_none());
    }

    #[test]
    fn rows_that_wait_too_long_count_against_a_policy_that_is_slow_and_no_other() {
        for (took, suspended) in [(SHORT, 0), (LONG, 1)] {
            let mut turns = turns(1);
            let (policy, now) = (plan(1, "a"), Instant::now());
            (0..10).for_each(|n| turns.push(&policy, n, now).expect("is asked"));
            let (whose, _) = take(&mut turns);
            turns.ended(&whose, Ended::Answered, took, now);
            for _ in 0..5 {
                let (whose, _) = take(&mut turns);
                turns.ended(&whose, Ended::Failed(Failure::Behind), 30 * LONG, now);
            }
            assert_eq!(turns.suspended(), suspended);
        }
    }

    #[test]
    fn a_policy_that_was_changed_starts_anew() {
        let mut turns = turns(4);
        let (now, before) = (Instant::now(), plan(1, "a"));
        suspend(&mut turns, &before, now);
        let same = Arc::new(Plan::clone(&before));
        assert_eq!(turns.push(&same, 1, now), Err(1));
        let mut changed = Plan::clone(&before);
        changed.readable.insert("more".into());
        assert_eq!(turns.push(&Arc::new(changed), 2, now), Ok(()));
    }
}
