//! Whose rights are judged again, and when: those whom a changed fact can concern, or everybody.
//!
//! ```text
//! a transaction changes facts ──► numbers of those whom it can concern ──► the crowd: who has them ──► judged again
//!            └── whatever is uncertain ──► everybody                       100 ms after the last time, by turns with everybody else
//! ```
//!
//! Invariants:
//! * Who is not found is judged as he was ([`Concerns`](crate::policy::facts::Concerns)): then he is not judged, by a sweep of
//!   everybody neither, until everybody is to be. A message of the database is never decided by that.
//! * A place in the crowd is as old as what is looked up there. Who has older ones is to be judged by a version for everybody.
//! * Where Postgres has contradicted memory, it is asked again at a change that concerns the member, and not at any.
//! * Whatever was left out is looked at 10 s later, all the same: a mistake in the above must not last.
//!
//! Rejected: lists of members beside each fact. They would be as many as the facts, of which most are nobody's who is here.

use std::collections::BTreeSet;
use std::time::Duration;

use ahash::{AHashSet, RandomState};
use tokio::time::Instant;

use super::Members;
use super::plans::Used;
use super::watched::{Member, way_of};
use crate::hub::freshness::Age;
use crate::metrics::Metrics;
use crate::policy::facts::{Facts, Numbers};
use crate::policy::{Right, Way};

/// Members judged at once, before the hub does something else.
pub(super) const SLICE: usize = 1024;
/// Between the beginnings of two sweeps of a kind.
pub(super) const SWEEPS: Duration = Duration::from_millis(100);
/// After this, a change that seemed to concern some is taken for one that concerns everybody.
const RECHECK: Duration = Duration::from_secs(10);
/// Places that changes have told of; with more the change concerns everybody.
const MOST_TOLD: usize = 16_384;

/// Members by the facts that can concern them.
#[derive(Default)]
pub(super) struct Crowd {
    state: RandomState,
    /// Places and who stands there.
    places: BTreeSet<(u64, usize)>,
    /// Places that changes have told of since the last look.
    told: AHashSet<u64>,
    /// How often it has changed what is looked up.
    sets: u64,
    /// When the first of the changes that did not concern everybody will.
    recheck_at: Option<Instant>,
}

impl Crowd {
    pub(super) fn state(&self) -> &RandomState {
        &self.state
    }

    /// Another number for another way to be found. Everybody's places are old then.
    pub(super) fn new_set(&mut self) -> u64 {
        self.sets += 1;
        self.sets
    }

    /// Notes whom the transaction at hand can concern; false if that is everybody.
    pub(super) fn note(&mut self, used: &Used, facts: &Facts) -> bool {
        let Some(concerns) = used.concerns.as_ref().filter(|_| self.told.len() <= MOST_TOLD) else { return false };
        let (numbers, told) = (Numbers { state: &self.state, set: used.set }, &mut self.told);
        let few = facts.concerned(concerns, numbers, &mut |place| {
            told.insert(place);
        });
        if few {
            self.recheck_at.get_or_insert_with(|| Instant::now() + RECHECK);
        }
        few
    }

    /// Takes a member out.
    pub(super) fn forget(&mut self, key: usize, member: &Member) {
        for place in &member.places {
            self.places.remove(&(*place, key));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// A mistake, which must be noticed.
    #[cfg(test)]
    pub(super) fn forget_all(&mut self) {
        self.places.clear();
    }

    /// Takes the changes so far for ones that concern everybody.
    #[cfg(test)]
    pub(super) fn recheck(&mut self) {
        self.recheck_at = Some(Instant::now());
    }

    /// Whether somebody was told of.
    pub(super) fn is_told(&self) -> bool {
        !self.told.is_empty()
    }

    /// Those who were told of.
    fn take(&mut self, into: &mut Vec<usize>) {
        for place in self.told.drain() {
            into.extend(self.places.range((place, 0)..=(place, usize::MAX)).map(|(_, key)| *key));
        }
        if self.told.capacity() > MOST_TOLD / 4 {
            self.told = AHashSet::new();
        }
        // Both ways of a member may have found it.
        into.sort_unstable();
        into.dedup();
    }
}

impl Members {
    /// Judges what is to be judged, of those whom no change concerns what is older than the last that concerns everybody, if not
    /// `all`; forgets a member that is gone.
    pub(super) fn look_at(&mut self, key: usize, all: bool, facts: &Facts, metrics: &Metrics) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if member.watched.is_over() {
            self.crowd.forget(key, member);
            self.members.remove(&key);
            return;
        }
        let role = member.watched.asking.principal.role.clone();
        for way in [Way::Read, Way::Write] {
            let Some(plan) = self.plans.get(&(role.clone(), way)) else { continue };
            if member.viewers[way as usize].0.get() != plan.number {
                member.viewers[way as usize] = (plan.number.into(), plan.viewer(&member.watched.asking));
            }
        }
        if member.placed != self.crowd.sets {
            self.place(key);
        }
        let Some(member) = self.members.get(&key) else { return };
        let plans = [Way::Read, Way::Write].map(|way| self.plan(&member.watched.asking, way));
        for right in Right::ALL {
            if let Some(plan) = plans[way_of(right).0 as usize] {
                self.judge(member, plan, right, all, facts, metrics);
            }
        }
        for way in [Way::Read, Way::Write] {
            let rests_on_facts = plans[way as usize].is_some_and(|plan| !plan.tables.is_empty());
            member.watched.rights.set_old(way, rests_on_facts && self.age == Age::Old);
        }
    }

    /// Has a member stand where its plans' facts will find it.
    fn place(&mut self, key: usize) {
        let Some(member) = self.members.get_mut(&key) else { return };
        self.crowd.forget(key, member);
        member.places.clear();
        let asking = &member.watched.asking;
        for way in [Way::Read, Way::Write] {
            let Some(plan) = self.plans.get(&(asking.principal.role.clone(), way)) else { continue };
            let (_, viewer) = &member.viewers[way as usize];
            plan.places(viewer, &asking.topic, &self.crowd, &mut |place| {
                if !member.places.contains(&place) {
                    member.places.push(place);
                }
            });
        }
        self.crowd.places.extend(member.places.iter().map(|place| (*place, key)));
        member.placed = self.crowd.sets;
    }

    /// Part of a sweep, if one is due; says whether there is more to do at once.
    pub(super) fn sweep(&mut self, facts: &Facts, metrics: &Metrics) -> bool {
        let now = Instant::now();
        if self.crowd.is_told() && self.concerned.is_empty() && is_due(self.looked_at, now) {
            self.looked_at = Some(now);
            self.crowd.take(&mut self.concerned);
        }
        if self.crowd.recheck_at.take_if(|at| *at <= now).is_some() {
            self.plans.values_mut().for_each(|used| used.everybody = used.version);
            self.dirty = true;
        }
        if self.sweep.is_empty() && self.dirty && is_due(self.swept_at, now) {
            self.dirty = self.settling_until.is_some_and(|until| now < until);
            self.swept_at = Some(now);
            self.sweep = self.members.keys().copied().collect();
        }
        for turn in 0..SLICE {
            // By turns: a crowd that is told of again and again must not keep everybody else waiting.
            let concerned = turn % 2 == 0 && !self.concerned.is_empty() || self.sweep.is_empty();
            let next = if concerned { self.concerned.pop() } else { self.sweep.pop() };
            let Some(key) = next else { return false };
            self.look_at(key, concerned, facts, metrics);
        }
        !(self.concerned.is_empty() && self.sweep.is_empty())
    }

    /// When something is to be begun that no event tells of; `None` if nothing is.
    pub(super) fn sweep_at(&self) -> Option<Instant> {
        let after = |last: Option<Instant>| last.map_or_else(Instant::now, |at| at + SWEEPS);
        let concerned = self.crowd.is_told().then(|| after(self.looked_at));
        let everybody = self.dirty.then(|| after(self.swept_at));
        concerned.into_iter().chain(everybody).chain(self.crowd.recheck_at).min()
    }
}

fn is_due(last: Option<Instant>, now: Instant) -> bool {
    last.is_none_or(|at| at + SWEEPS <= now)
}
