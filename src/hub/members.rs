//! Members of private channels, whose rights the hub keeps true: the policies of `realtime.messages` over the facts of the moment.
//!
//! ```text
//! rules change, facts change ──► plan.version + 1 ──► may_read: at the next message, exactly
//!                                                └──► sweep, in slices: everybody else's rights, within 250 ms
//! facts are old (freshness)  ──► the same sweep: rights that rest on them are marked as old, and their connections ask Postgres
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
//! * A commit that changes no fact of a plan costs nothing for its members.
//!
//! Rejected: judging at each broadcast between clients. There may be thousands a second, and a sweep is prompt enough.

use std::cell::Cell;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ahash::AHashMap;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::freshness::Age;
use super::run::Hub;
use crate::catalog::Catalog;
use crate::metrics::Metrics;
use crate::policy::facts::{FactBinding, Facts};
use crate::policy::rule::{KnownViewer, Rule, Viewer};
use crate::policy::{self, Asking, MemberPlan, Right, Rights, Told, Verdict, Way};

/// Members judged at once, before the hub does something else.
const SLICE: usize = 1024;
/// Between the beginnings of two sweeps.
const SWEEPS: Duration = Duration::from_millis(100);
/// A session has made its member's rights of an answer by then.
const SETTLING: Duration = Duration::from_secs(2);
/// A plan that nobody asks for is forgotten after this.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// For memory to come to what Postgres has said.
const CATCH_UP: Duration = Duration::from_secs(1);
/// By facts of longer before the question than this nobody is let in.
const MOST_LAG: Duration = Duration::from_secs(1);
/// Questions that may wait for rules and facts; others are answered by Postgres.
const MOST_WAITING: usize = 20_000;

/// Rights that the hub keeps true, until this is dropped.
#[derive(Debug)]
pub struct Watch {
    _alive: Arc<()>,
}

/// The hub's end of a [`Watch`].
#[derive(Debug)]
pub struct Watched {
    asking: Asking,
    rights: Arc<Rights>,
    alive: Weak<()>,
}

impl Watch {
    pub(super) fn new(asking: Asking, rights: Arc<Rights>) -> (Watch, Watched) {
        let alive = Arc::new(());
        let watched = Watched { asking, rights, alive: Arc::downgrade(&alive) };
        (Watch { _alive: alive }, watched)
    }
}

#[cfg(test)]
impl Watched {
    /// Its [`Watch`] is there.
    pub(crate) fn is_wanted(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

/// A role and what its members want.
type Use = (Arc<str>, Way);

/// A compiled plan in use.
struct Used {
    plan: Arc<MemberPlan>,
    /// `None` while its facts are not there.
    binding: Option<FactBinding>,
    /// Of the facts, when it was bound.
    stamp: (u64, u64),
    tables: Vec<u32>,
    /// Which compilation, and which state of rules and facts.
    number: u64,
    version: u64,
    asked_at: Instant,
}

impl Used {
    fn new(plan: MemberPlan, number: u64) -> Used {
        let mut tables: Vec<u32> = plan.rule().iter().flat_map(|rule| &rule.sources).map(|s| s.table_oid).collect();
        tables.sort_unstable();
        tables.dedup();
        let plan = Arc::new(plan);
        let stamp = (u64::MAX, u64::MAX);
        Used { plan, binding: None, stamp, tables, number, version: 0, asked_at: Instant::now() }
    }

    fn viewer(&self, asking: &Asking) -> KnownViewer {
        KnownViewer::new(self.plan.rule().map_or_else(|| Viewer::new([]), |rule| rule.viewer(&asking.principal)))
    }

    fn judge(&self, viewer: &KnownViewer, topic: &str, extension: &str, facts: &Facts) -> Option<bool> {
        self.plan.judge(viewer, topic, extension, self.binding.as_ref().map(|binding| (binding, facts)))
    }
}

/// What was last judged of one right: by which compilation and version of the plan, and how.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    number: u64,
    version: u64,
    verdict: Option<bool>,
    /// The right was taken back since: what it is now, Postgres has said.
    doubted: bool,
    /// The right was taken back, and nobody has set it since.
    taken: bool,
}

/// What a member's right is to be set to, if to anything: what memory last said of it, what it says now, and what the right
/// is, which the session may have set meanwhile by an older answer.
fn told(before: Seen, seen: Seen, right: Option<bool>) -> Option<Option<bool>> {
    let Some(right) = right else {
        // Never asked, or being asked again; but what was taken for want of knowledge is given back when memory knows again.
        return (before.taken && seen.verdict == Some(true)).then_some(Some(true));
    };
    let is_new = (before.number, before.version) != (seen.number, seen.version);
    match seen.verdict {
        Some(verdict) if verdict == right => None,
        Some(true) => Some(Some(true)),
        Some(false) if is_new && before.verdict == Some(true) => Some(Some(false)),
        Some(false) => (!seen.doubted).then_some(None),
        // What was never in memory's hands stays as it is, but not under other policies.
        None => {
            let other = before.number != 0 && before.number != seen.number;
            (is_new && (before.verdict.is_some() || other)).then_some(None)
        }
    }
}

struct Member {
    watched: Watched,
    /// What each way's plan takes from the principal, by the plan's number.
    viewers: [(Cell<u64>, KnownViewer); 2],
    seen: [Cell<Seen>; 4],
}

/// A question that waits.
struct Asked {
    asking: Asking,
    way: Way,
    expected: Option<(bool, Option<bool>)>,
    at: Instant,
    until: Instant,
    reply: oneshot::Sender<Option<Told>>,
}

/// See the module's comment.
#[derive(Default)]
pub(super) struct Members {
    catalog: Option<Arc<Catalog>>,
    plans: AHashMap<Use, Used>,
    /// By where their rights are: nothing else comes to be there while they are known here.
    members: AHashMap<usize, Member>,
    asked: Vec<Asked>,
    /// [`Facts::stamp`] when the plans were last looked at.
    stamp: (u64, u64),
    compiled: u64,
    /// Rules in use have changed: whose facts are wanted is to be told.
    sources_changed: bool,
    /// Questions are to be looked at.
    look: bool,
    /// Some plan has another version than its members were judged by, or a session may set a right by an older answer.
    dirty: bool,
    /// Until when the latter may be.
    settling_until: Option<Instant>,
    swept_at: Option<Instant>,
    /// The members that are still to be looked at by the sweep under way.
    sweep: Vec<usize>,
    /// Of the facts that rights rest on.
    age: Age,
}

fn key(rights: &Arc<Rights>) -> usize {
    Arc::as_ptr(rights) as usize
}

fn is_same(one: &Asking, other: &Asking) -> bool {
    let key = |asking: &Asking| asking.principal.sharing_key.clone();
    one.topic == other.topic && one.headers == other.headers && key(one) == key(other)
}

fn way_of(right: Right) -> (Way, &'static str) {
    match right {
        Right::ReadBroadcast => (Way::Read, "broadcast"),
        Right::ReadPresence => (Way::Read, "presence"),
        Right::WriteBroadcast => (Way::Write, "broadcast"),
        Right::WritePresence => (Way::Write, "presence"),
    }
}

impl Members {
    /// Whether this member gets a message of the database that is in the transaction at hand, by the rules in force and the
    /// facts after that transaction. The token's expiry is the caller's to check.
    pub(super) fn may_read(&self, rights: &Arc<Rights>, facts: &Facts, metrics: &Metrics) -> Verdict {
        let judged = self.members.get(&key(rights)).and_then(|member| {
            let plan = self.plan(&member.watched.asking, Way::Read)?;
            self.judge(member, plan, Right::ReadBroadcast, facts, metrics)
        });
        policy::may_have_message(Some(rights), judged)
    }

    fn plan(&self, asking: &Asking, way: Way) -> Option<&Used> {
        // Looked up by parts, without a copy of the role.
        let role = asking.principal.role.clone();
        self.plans.get(&(role, way))
    }

    /// The verdict of the plan as it is now, which the member's rights are made to follow.
    fn judge(&self, member: &Member, plan: &Used, right: Right, facts: &Facts, metrics: &Metrics) -> Option<bool> {
        let before = member.seen[right as usize].get();
        let (mut seen, decides) = (before, self.decides(plan));
        if (before.number, before.version) != (plan.number, plan.version) {
            let (way, extension) = way_of(right);
            let asking = &member.watched.asking;
            let (number, viewer) = &member.viewers[way as usize];
            let verdict = match number.get() == plan.number {
                true => plan.judge(viewer, &asking.topic, extension, facts),
                false => plan.judge(&plan.viewer(asking), &asking.topic, extension, facts),
            };
            // Facts that catch up have a new version with each commit, and what Postgres has said is ahead of them all.
            let again = before.number == plan.number && (before.verdict, verdict) == (Some(false), Some(false));
            let doubted = before.doubted && again && !decides;
            seen = Seen { number: plan.number, version: plan.version, verdict, doubted, ..before };
        }
        let rights = &member.watched.rights;
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
            rest_on_facts.for_each(|used| used.version += 1);
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
            self.dirty |= bind(used, facts);
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
                let asked_at = used.asked_at;
                *used = Used { asked_at, version: used.version + 1, ..Used::new(plan, self.compiled) };
                bind(used, facts);
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
            bind(&mut used, facts);
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
        if watched.alive.strong_count() == 0 {
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
        let key = key(&watched.rights);
        // What the same member was judged and asked for before is not news.
        let known = self.members.get(&key).filter(|known| is_same(&known.watched.asking, &watched.asking));
        let seen = known.map(|known| known.seen.clone()).unwrap_or_default();
        self.members.insert(key, Member { watched, viewers, seen });
        self.look_at(key, facts, metrics);
    }

    /// Judges what is not of the plans' versions; forgets a member that is gone.
    fn look_at(&mut self, key: usize, facts: &Facts, metrics: &Metrics) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if member.watched.alive.strong_count() == 0 {
            self.members.remove(&key);
            return;
        }
        for way in [Way::Read, Way::Write] {
            let asking = &member.watched.asking;
            let Some(plan) = self.plans.get(&(asking.principal.role.clone(), way)) else { continue };
            if member.viewers[way as usize].0.get() != plan.number {
                member.viewers[way as usize] = (Cell::new(plan.number), plan.viewer(asking));
            }
        }
        let Some(member) = self.members.get(&key) else { return };
        let plans = [Way::Read, Way::Write].map(|way| self.plan(&member.watched.asking, way));
        for right in Right::ALL {
            if let Some(plan) = plans[way_of(right).0 as usize] {
                self.judge(member, plan, right, facts, metrics);
            }
        }
        for way in [Way::Read, Way::Write] {
            let rests_on_facts = plans[way as usize].is_some_and(|plan| !plan.tables.is_empty());
            member.watched.rights.set_old(way, rests_on_facts && self.age == Age::Old);
        }
    }

    /// Part of a sweep, if one is due; says whether there is more to do at once.
    fn sweep(&mut self, facts: &Facts, metrics: &Metrics) -> bool {
        let now = Instant::now();
        if self.sweep.is_empty() && self.dirty && self.sweep_at().is_none_or(|at| at <= now) {
            self.dirty = self.settling_until.is_some_and(|until| now < until);
            self.swept_at = Some(now);
            self.sweep = self.members.keys().copied().collect();
        }
        for _ in 0..SLICE {
            let Some(key) = self.sweep.pop() else { return false };
            self.look_at(key, facts, metrics);
        }
        !self.sweep.is_empty()
    }

    /// When the next sweep may begin; `None` if any time.
    fn sweep_at(&self) -> Option<Instant> {
        self.swept_at.map(|at| at + SWEEPS)
    }

    /// Forgets members that are gone and plans that nobody needs.
    pub(super) fn tidy(&mut self) {
        self.members.retain(|_, member| member.watched.alive.strong_count() > 0);
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

/// Binds the plan to the facts if those that it rests on have changed; says so.
fn bind(used: &mut Used, facts: &Facts) -> bool {
    let stamp = facts.stamp_of(&used.tables);
    let Some(rule) = used.plan.rule() else { return false };
    if used.stamp == stamp {
        return false;
    }
    let (same_generation, was_bound) = (used.stamp.0 == stamp.0, used.binding.is_some());
    used.stamp = stamp;
    if !(same_generation && was_bound) {
        used.binding = facts.bind(rule).ok();
        if used.tables.is_empty() && was_bound {
            // It rests on none.
            return false;
        }
    }
    used.version += 1;
    true
}

impl Hub {
    pub(super) fn on_rights_asked(
        &mut self,
        asking: Asking,
        way: Way,
        expected: Option<(bool, Option<bool>)>,
        reply: oneshot::Sender<Option<Told>>,
    ) {
        if self.members.asked.len() >= MOST_WAITING {
            let _ = reply.send(None);
            return;
        }
        self.rules.want(&asking.principal.role);
        // What was committed before the question is in the rules that it is answered by.
        self.rules.request();
        let at = Instant::now();
        let until = at + if expected.is_some() { CATCH_UP } else { self.config.facts.wait };
        self.members.asked.push(Asked { asking, way, expected, at, until, reply });
    }

    /// Whether the facts that rights rest on are old, if there are any: as old as rules may be.
    fn note_freshness(&mut self) {
        let (now, most) = (Instant::now(), self.config.max_rules_age);
        let wanted = self.members.rest_on_facts();
        self.rules.want_marks(wanted);
        let begins = self.freshness.want(wanted, now);
        if let Some(mark) = self.current.as_ref().and_then(|rules| rules.mark) {
            self.freshness.mark(mark);
        }
        // Not while another history has begun that was not come to yet, in which the position means nothing.
        let server = || crate::ingest::written_from(&self.deps.log);
        if wanted && self.reader.is_current() && self.freshness.pass(self.folded(), server) {
            self.members.look |= !self.members.asked.is_empty();
        }
        let (age, asks) = self.freshness.judge(now, most);
        if begins || asks {
            self.rules.request();
        }
        if self.freshness.nudges(now) {
            self.nudge();
        }
        match (self.members.age, age) {
            (Age::Recent | Age::Unknown, Age::Old) => tracing::warn!(
                "the stream is behind the database, or silent: members of private channels whose rights rest on tables are \
                 asked about again and again until it is there"
            ),
            (Age::Old, Age::Recent) => tracing::info!("the stream is there again: rights follow it"),
            _ => {}
        }
        self.members.note_age(age);
        self.deps.metrics.authz_facts_age.set(self.freshness.lag(now).as_secs_f64());
    }

    /// Has a message sent through the stream, which completes what WAL ends within.
    pub(super) fn nudge(&self) {
        let pool = self.deps.pool.clone();
        drop(crate::task::spawn("nudge", async move {
            let sent = match pool.get().await {
                Ok(client) => crate::wal::heartbeat(&client).await.map_err(|error| crate::error::chain(&error)),
                Err(error) => Err(crate::error::chain(&error)),
            };
            if let Err(error) = sent {
                tracing::debug!(error, "no message could be sent through the stream to see whether it flows");
            }
        }));
    }

    pub(super) fn on_watch(&mut self, watched: Watched) {
        self.note_freshness();
        self.members.add(watched, &self.facts, &self.deps.metrics);
    }

    /// Whatever is due about members; says whether there is more to do at once.
    pub(super) fn tend_members(&mut self) -> bool {
        self.members.note_facts(&self.facts);
        self.note_freshness();
        let now = Instant::now();
        if std::mem::take(&mut self.members.look) || self.members.asked.iter().any(|asked| asked.until <= now) {
            for asked in std::mem::take(&mut self.members.asked) {
                self.answer(asked, now);
            }
        }
        if let Some(rules) = self.members.changed_rules() {
            let oid = self.current.as_ref().and_then(|rules| rules.catalog.messages().map(|m| m.reading.oid));
            self.keeper.want_rules(oid.unwrap_or_default(), rules);
        }
        let more = self.members.sweep(&self.facts, &self.deps.metrics);
        self.deps.metrics.authz_watched.set(self.members.members.len() as i64);
        more
    }

    /// When [`Hub::tend_members`] is to be called.
    pub(super) fn members_at(&self) -> Option<Instant> {
        let sweep = self.members.dirty.then(|| self.members.sweep_at().unwrap_or_else(Instant::now));
        let looks = self.freshness.wakes_at(Instant::now(), self.config.max_rules_age);
        self.members.asked.iter().map(|asked| asked.until).chain(sweep).chain(looks).min()
    }

    /// Answers, or waits on.
    fn answer(&mut self, mut asked: Asked, now: Instant) {
        if asked.reply.is_closed() {
            return;
        }
        let role = &*asked.asking.principal.role;
        let current = self.current.as_ref();
        let rules = current.filter(|rules| rules.read_at >= asked.at && rules.roles.contains(role));
        let told = rules.is_some().then(|| {
            self.members.want(&asked.asking, asked.way, &self.facts);
            self.members.told(&asked.asking, asked.way, &self.facts)
        });
        let told = told.flatten();
        let by_facts = told.is_some_and(|told| told.by_facts);
        if by_facts && !self.freshness.covers(asked.at, MOST_LAG) {
            // The stream may be a moment from being there.
            asked.until = asked.until.min(asked.at + MOST_LAG);
        }
        let told = told.filter(|told| !told.by_facts || self.freshness.covers(asked.at, MOST_LAG));
        // Postgres is asked at once.
        let is_old = by_facts && self.members.age == Age::Old;
        let is_late = is_old || asked.until <= now;
        let waits = match (told, asked.expected) {
            _ if is_late => false,
            (None, _) => true,
            (Some(told), Some((broadcast, presence))) => {
                told.broadcast != Some(broadcast) || presence.is_some_and(|presence| told.presence != Some(presence))
            }
            // Facts may be on their way.
            (Some(told), None) => told.by_facts && told.broadcast.is_none() && self.is_preparing_members(&asked),
        };
        if waits {
            self.members.asked.push(asked);
        } else {
            if asked.reply.send(told).is_ok() {
                (self.members.dirty, self.members.settling_until) = (true, Some(now + SETTLING));
            }
        }
    }

    fn is_preparing_members(&self, asked: &Asked) -> bool {
        let used = self.members.plan(&asked.asking, asked.way);
        used.is_some_and(|used| used.binding.is_none() && self.keeper.are_under_way(&used.tables))
    }
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
