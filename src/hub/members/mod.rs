//! Members of private channels, whose rights the hub keeps true: the policies of `realtime.messages` over the facts of the moment.
//!
//! ```text
//! rules change, facts change ──► plan.version + 1 ──► may_read: at the next message, exactly
//!                                                └──► sweep, in slices: all other rights, within 250 ms, of those whom a
//!                                                     changed fact can concern; after other changes, of everybody
//! facts are old (freshness)  ──► a sweep of everybody: rights that rest on them are marked as old, their connections ask Postgres
//! ```
//!
//! Invariants:
//! * A right that memory has judged is judged again whenever its plan's version has changed, before a message is matched by it.
//! * What memory can't judge any more is taken back, and the member's connection asks Postgres. What it never could is left
//!   alone, unless the rules themselves have changed.
//! * Memory that says no where Postgres has said yes is behind it, or newer: it takes the right back, and is not believed.
//! * What was taken back only for want of knowledge is given back when memory knows again and says yes.
//! * Nobody is let in, nobody is given anything, and nothing is denied for good, by facts of which it is not known that they
//!   are recent. What they deny now may have been given again since: they take the right back, and Postgres is asked, once
//!   until they say something else or are recent again. The rights that they gave before they were old hold for a bounded
//!   time only ([`Rights::is_old`]). What Postgres denies meanwhile is not given back until the facts have what it knew.
//! * A commit that changes no fact of a plan costs nothing for its members; one that does costs what those cost whom it can
//!   concern (`sweep`). Whatever is uncertain about that concerns everybody.
//!
//! Rejected: judging at each broadcast between clients. There may be thousands a second, and a sweep is prompt enough.

mod asked;
mod plans;
mod sweep;
mod watched;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use smallvec::SmallVec;
use tokio::time::Instant;

use self::asked::Asked;
use self::plans::{Use, Used};
use self::sweep::Crowd;
pub use self::watched::Watch;
pub(crate) use self::watched::Watched;
use self::watched::{Member, Seen, is_same, key, told, twin_of, way_of};
use super::freshness::Age;
use crate::catalog::Catalog;
use crate::metrics::Metrics;
use crate::policy::facts::Facts;
use crate::policy::rule::{KnownViewer, Rule, Viewer};
use crate::policy::{self, Asking, MemberPlan, Right, Rights, Told, Verdict, Way};

/// A plan that nobody asks for is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// See the module's comment.
#[derive(Default)]
pub(super) struct Members {
    catalog: Option<Arc<Catalog>>,
    plans: AHashMap<Use, Used>,
    /// By where their rights are: nothing else comes to be there while they are known here.
    members: AHashMap<usize, Member>,
    crowd: Crowd,
    asked: Vec<Asked>,
    /// [`Facts::stamp`] when the plans were last looked at.
    stamp: (u64, u64),
    compiled: u64,
    /// Rules in use have changed: whose facts are wanted is to be told.
    sources_changed: bool,
    /// Questions are to be looked at.
    look: bool,
    /// Some plan has another version for everybody than its members were judged by, or a session may set a right by an older
    /// answer.
    dirty: bool,
    /// Until when the latter may be.
    settling_until: Option<Instant>,
    swept_at: Option<Instant>,
    /// The members that are still to be looked at by the sweep of everybody that is under way.
    sweep: Vec<usize>,
    looked_at: Option<Instant>,
    /// Those whom changed facts can concern, who are still to be looked at.
    concerned: Vec<usize>,
    /// Of the facts that rights rest on.
    age: Age,
}

impl Members {
    /// Whether this member gets a message of the database that is in the transaction at hand, by the rules in force and the
    /// facts after that transaction. The token's expiry is the caller's to check.
    pub(super) fn may_read(&self, rights: &Arc<Rights>, facts: &Facts, metrics: &Metrics) -> Verdict {
        let judged = self.members.get(&key(rights)).and_then(|member| {
            let plan = self.plan(&member.watched.asking, Way::Read)?;
            self.judge(member, plan, Right::ReadBroadcast, true, facts, metrics)
        });
        policy::may_have_message(Some(rights), judged)
    }

    fn plan(&self, asking: &Asking, way: Way) -> Option<&Used> {
        // Looked up by parts, without a copy of the role.
        let role = asking.principal.role.clone();
        self.plans.get(&(role, way))
    }

    /// The verdict of the plan, which the member's rights are made to follow: as it is now, or, if no change concerns the member,
    /// as it was when one concerned everybody.
    fn judge(
        &self,
        member: &Member,
        plan: &Used,
        right: Right,
        concerned: bool,
        facts: &Facts,
        metrics: &Metrics,
    ) -> Option<bool> {
        let before = member.seen[right as usize].get();
        let (mut seen, decides) = (before, self.decides(plan));
        let least = if concerned { plan.version } else { plan.everybody };
        let rights = &member.watched.rights;
        // The session may know better than an old verdict, which then changes nothing before it is a new one.
        let differs = || before.version < plan.version && told(before, before, rights.get(right)).is_some();
        if before.number != plan.number || before.version < least || differs() {
            let verdict = verdict(member, plan, right, facts);
            // Facts that catch up have a new version with each commit, and what Postgres has said is ahead of them all.
            let again = before.number == plan.number && (before.verdict, verdict) == (Some(false), Some(false));
            let doubted = before.doubted && again && !decides;
            seen = Seen { number: plan.number, version: plan.version, verdict, doubted, ..before };
        }
        let is = rights.get(right);
        seen.taken &= is.is_none();
        let told = match told(before, seen, is) {
            Some(Some(true)) if !decides => None,
            Some(Some(false)) if !decides => Some(None),
            told => told,
        };
        if let Some(told) = told {
            (seen.doubted, seen.taken) = (told.is_none(), told.is_none());
            if rights.set(right, told) && told == Some(false) {
                metrics.authz_revocations.inc();
            }
        }
        member.seen[right as usize].set(seen);
        seen.verdict
    }

    /// Whether what the plan says is so: it is not of long ago.
    fn decides(&self, plan: &Used) -> bool {
        plan.tables.is_empty() || self.age == Age::Recent
    }

    /// The sweep tells everybody; what was not given by old facts is given then, and whom Postgres has contradicted meanwhile
    /// is asked about once more.
    fn note_age(&mut self, age: Age) {
        self.dirty |= self.age != age;
        if self.age != age && age == Age::Recent {
            let rest_on_facts = self.plans.values_mut().filter(|used| !used.tables.is_empty());
            rest_on_facts.for_each(Used::is_new_to_all);
        }
        self.age = age;
    }

    /// Somebody's rights rest on facts, or were asked for.
    fn rest_on_facts(&self) -> bool {
        self.plans.values().any(|used| !used.tables.is_empty())
    }

    /// Looks whether what plans rest on has changed. Cheap if not. To be called whenever facts may have changed, and before
    /// messages of a transaction are matched.
    pub(super) fn note_facts(&mut self, facts: &Facts) {
        let stamp = facts.stamp();
        if self.plans.is_empty() || self.stamp == stamp {
            return;
        }
        self.stamp = stamp;
        for used in self.plans.values_mut() {
            self.dirty |= used.bind(facts, &mut self.crowd);
        }
        self.look |= !self.asked.is_empty();
    }

    /// Other rules may be in force.
    pub(super) fn note_rules(&mut self, catalog: &Arc<Catalog>, facts: &Facts) {
        self.look |= !self.asked.is_empty();
        if self.catalog.as_ref().is_some_and(|known| Arc::ptr_eq(known, catalog)) {
            return;
        }
        self.catalog = Some(catalog.clone());
        for ((role, way), used) in &mut self.plans {
            let plan = MemberPlan::compile(catalog, role, *way);
            if plan != *used.plan {
                self.compiled += 1;
                *used = Used::new(plan, self.compiled).instead_of(used);
                used.bind(facts, &mut self.crowd);
                (self.dirty, self.sources_changed) = (true, true);
            }
        }
    }

    /// Makes sure that there are plans for a role.
    fn want(&mut self, asking: &Asking, way: Way, facts: &Facts) {
        let Some(catalog) = &self.catalog else { return };
        let used = self.plans.entry((asking.principal.role.clone(), way)).or_insert_with(|| {
            self.compiled += 1;
            let mut used = Used::new(MemberPlan::compile(catalog, &asking.principal.role, way), self.compiled);
            used.bind(facts, &mut self.crowd);
            self.sources_changed |= !used.tables.is_empty();
            used
        });
        used.asked_at = Instant::now();
    }

    /// The rules whose facts are wanted, if they are others than at the last call.
    fn changed_rules(&mut self) -> Option<Vec<Arc<Rule>>> {
        std::mem::take(&mut self.sources_changed).then(|| {
            let rules = self.plans.values().filter_map(|used| used.plan.rule());
            rules.filter(|rule| !rule.sources.is_empty()).cloned().collect()
        })
    }

    fn add(&mut self, watched: Watched, facts: &Facts, metrics: &Metrics) {
        if watched.is_over() {
            // It came late: another may be in its place by now.
            return;
        }
        for way in [Way::Read, Way::Write] {
            self.want(&watched.asking, way, facts);
        }
        let viewers = [Way::Read, Way::Write].map(|way| match self.plan(&watched.asking, way) {
            Some(plan) => (Cell::new(plan.number), plan.viewer(&watched.asking)),
            None => (Cell::new(0), KnownViewer::new(Viewer::new([]))),
        });
        let key = watched.key();
        // What the same member was judged and asked for before is not news.
        let known = self.members.get(&key).filter(|known| is_same(&known.watched.asking, &watched.asking));
        let seen = known.map(|known| known.seen.clone()).unwrap_or_default();
        let member = Member { watched, viewers, seen, places: SmallVec::new(), placed: 0 };
        if let Some(before) = self.members.insert(key, member) {
            self.crowd.forget(key, &before);
        }
        self.look_at(key, true, facts, metrics);
    }

    /// Forgets members that are gone and plans that nobody needs.
    pub(super) fn tidy(&mut self) {
        let crowd = &mut self.crowd;
        self.members.retain(|key, member| {
            if member.watched.is_over() {
                crowd.forget(*key, member);
            }
            !member.watched.is_over()
        });
        let mut roles: AHashMap<Arc<str>, ()> = AHashMap::new();
        for member in self.members.values() {
            roles.entry(member.watched.asking.principal.role.clone()).or_default();
        }
        let before = self.plans.len();
        self.plans.retain(|(role, _), used| roles.contains_key(role) || used.asked_at.elapsed() < FORGET_AFTER);
        self.sources_changed |= self.plans.len() != before;
    }

    /// What memory says now.
    fn told(&self, asking: &Asking, way: Way, facts: &Facts) -> Option<Told> {
        let used = self.plan(asking, way)?;
        let viewer = used.viewer(asking);
        Some(Told {
            broadcast: used.judge(&viewer, &asking.topic, "broadcast", facts),
            presence: used.judge(&viewer, &asking.topic, "presence", facts),
            by_facts: !used.tables.is_empty(),
        })
    }
}

/// What memory says of a right.
fn verdict(member: &Member, plan: &Used, right: Right, facts: &Facts) -> Option<bool> {
    if let Some(twin) = twin_of(right).filter(|_| !plan.plan.reads_extension()) {
        let seen = member.seen[twin as usize].get();
        if (seen.number, seen.version) == (plan.number, plan.version) {
            return seen.verdict;
        }
    }
    let (way, extension) = way_of(right);
    let asking = &member.watched.asking;
    let (number, viewer) = &member.viewers[way as usize];
    match number.get() == plan.number {
        true => plan.judge(viewer, &asking.topic, extension, facts),
        false => plan.judge(&plan.viewer(asking), &asking.topic, extension, facts),
    }
}

#[cfg(test)]
mod tests;
