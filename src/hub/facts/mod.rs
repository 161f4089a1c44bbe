//! Which facts the rules in force look into, and how they come and stay: the hub's side of [`policy::facts`].
//!
//! ```text
//! plans in use ──► needs ──► fit? ──no──► Refused (Postgres is asked; the log says what to do)
//!                             │ yes
//!                    in the stream? ──no──► Adding ──► Added (until a reading of the catalog shows it)
//!                             │ yes
//!                          Loading: record, wait for writers, copy ──► Ready ──► (changed, broken) ──► Loading again
//! ```
//!
//! Invariants:
//! * Facts change between two transactions only: what tasks bring is kept until then ([`Keeper::tend`]).
//! * Recording begins before the look at who is writing, and that before the snapshot: whatever is in the stream from the
//!   recording on is folded or visible, and whatever went by before it is visible. Which of the two, the transaction's id says.
//! * A table that is not ready makes nobody wait longer than [`FactsConfig::wait`]: then Postgres is asked.
//!
//! Rejected: recording before the table is in the publication, which would save a reading of the catalog; whether the stream has
//! all of it is then known only afterwards. A load on the hub's own task, which would stop all deliveries.

mod channels;
mod entry;
mod measure;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use entry::{Cure, Entry, LONGEST_PAUSE, Step, rest, say, say_error};
use work::{Done, Load, Outcome};

use super::resolve::Target;
use super::rules::{Rules, RulesHandle};
use crate::catalog::Catalog;
use crate::change::Relation;
use crate::error::{Fault as _, Remedy};
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::policy::facts::{self, FactState, Facts, LoadError, LoadLimits, PublishError, Refusal, fitness};
use crate::policy::rule::{FactSource, Rule};
use crate::policy::{self, Options};

/// Loads at once.
const LOADS: usize = 2;
/// Facts that no rule looks into any more are kept this long.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// What is too large now will not be smaller soon.
const TOO_LARGE_PAUSE: Duration = Duration::from_secs(600);
/// Facts that break sooner than this after a load are loaded again after a pause.
const STEADY: Duration = Duration::from_secs(10);

/// Settings of facts.
#[derive(Debug, Clone)]
pub struct FactsConfig {
    /// Our own publication in the stream, to which tables are added.
    pub publication: String,
    /// For the rows of all tables together, in bytes.
    pub memory: usize,
    /// How long rows and new subscriptions wait for facts before Postgres is asked. 2 s.
    pub wait: Duration,
    /// For reading one table.
    pub load_deadline: Duration,
}

impl Default for FactsConfig {
    fn default() -> FactsConfig {
        FactsConfig {
            publication: "rowcast_facts".into(),
            memory: 256 << 20,
            wait: Duration::from_secs(2),
            load_deadline: Duration::from_secs(600),
        }
    }
}

/// A table with its role: the subscriptions on them share a plan.
type Use = (u32, Arc<str>);

/// What the plans in use want of one table.
#[derive(Default)]
struct Need {
    name: Option<Arc<str>>,
    columns: BTreeSet<i16>,
    /// Tables whose rows are judged by it.
    judged: Vec<u32>,
}

/// What a table's facts are at, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactsOf {
    /// `schema.table`.
    pub table: String,
    /// `preparing`, `loading`, `ready`, `resting` or `refused`.
    pub state: &'static str,
    /// Rows that are kept.
    pub rows: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Why it is resting or refused; else empty.
    pub why: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// See the module's comment.
pub(super) struct Keeper {
    pool: Pool,
    config: FactsConfig,
    /// Every publication that the stream reads.
    stream: Vec<String>,
    options: Options,
    metrics: Arc<Metrics>,
    loads: Arc<Semaphore>,
    uses: AHashSet<Use>,
    /// What each plan looks into, by the catalog of `compiled_by`.
    sources: AHashMap<Use, Arc<[FactSource]>>,
    rules: AHashMap<Use, Arc<Rule>>,
    compiled_by: Option<Arc<Catalog>>,
    entries: BTreeMap<u32, Entry>,
    work: JoinSet<Done>,
    finished: Vec<Done>,
    next_ticket: u64,
    due: bool,
    /// [`Facts::generation`] when last looked at.
    generation: u64,
    wake_at: Option<Instant>,
    /// Tables whose rows wait for facts, and until when.
    held: Vec<(u32, Instant)>,
    /// Tables whose rules look into one that is under way, however long it takes.
    awaited: Vec<u32>,
    /// The rules of private channels, and the table of their messages.
    channels: (u32, Vec<Arc<Rule>>),
    /// Beside what the plans look into.
    #[cfg(test)]
    pub(super) also: Vec<(Use, FactSource)>,
}

impl Keeper {
    pub(super) fn new(
        pool: Pool,
        config: FactsConfig,
        stream: Vec<String>,
        options: Options,
        metrics: Arc<Metrics>,
    ) -> Keeper {
        Keeper {
            pool,
            config,
            stream,
            options,
            metrics,
            loads: Arc::new(Semaphore::new(LOADS)),
            uses: AHashSet::new(),
            sources: AHashMap::new(),
            rules: AHashMap::new(),
            compiled_by: None,
            entries: BTreeMap::new(),
            work: JoinSet::new(),
            finished: Vec::new(),
            next_ticket: 0,
            due: false,
            generation: 0,
            wake_at: None,
            held: Vec::new(),
            awaited: Vec::new(),
            channels: (0, Vec::new()),
            #[cfg(test)]
            also: Vec::new(),
        }
    }

    // --- What the hub tells.

    /// Subscriptions on these tables are about to be in force, or waited for, in this role.
    pub(super) fn want(&mut self, targets: &[Target], role: &Arc<str>) {
        for target in targets {
            if !self.uses.contains(&(target.table_oid, role.clone())) {
                self.uses.insert((target.table_oid, role.clone()));
                self.due = true;
            }
        }
    }

    /// All that is still wanted.
    pub(super) fn retain(&mut self, wanted: AHashSet<Use>) {
        self.due |= self.uses != wanted;
        self.uses = wanted;
    }

    /// Another reading of the catalog is in force, or time has passed.
    pub(super) fn look_again(&mut self) {
        self.due = true;
        self.wake_at = None;
    }

    /// Something is missing from the stream: nothing that was kept can be trusted. Works at any time.
    pub(super) fn distrust(&mut self, facts: &mut Facts) {
        let until = Instant::now() + self.config.wait;
        for (oid, entry) in &mut self.entries {
            if matches!(entry.step, Step::Loading(..) | Step::Ready(_)) {
                facts.forget(*oid);
                entry.go(Step::New);
                entry.patience = Some(until);
                self.due = true;
            }
        }
    }

    /// Resolves when a task has something, which [`Keeper::tend`] then puts into force.
    pub(super) async fn finished(&mut self) {
        match self.work.join_next().await {
            Some(Ok(done)) => {
                self.finished.push(done);
                self.due = true;
            }
            // Aborted ones bring nothing.
            Some(Err(error)) => resume(error),
            None => std::future::pending().await,
        }
    }

    /// When [`Keeper::look_again`] is to be called.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.wake_at
    }

    // --- What the hub asks.

    /// Rows of one of these tables wait for facts.
    pub(super) fn holds(&self, relations: &[Arc<Relation>]) -> bool {
        let now = Instant::now();
        let held = |relation: &Arc<Relation>| self.held.iter().any(|(oid, at)| *oid == relation.oid && now < *at);
        !self.held.is_empty() && relations.iter().any(held)
    }

    /// Facts for rows of one of these tables are under way, however long that takes.
    pub(super) fn is_awaited(&self, relations: &[Arc<Relation>]) -> bool {
        relations.iter().any(|relation| self.awaited.contains(&relation.oid))
    }

    /// Facts that are needed are not at hand, and will be by themselves.
    pub(super) fn hopes(&self) -> bool {
        let hopes = |entry: &Entry| {
            entry.unneeded_since.is_none() && !matches!(entry.step, Step::Ready(_)) && !entry.is_given_up()
        };
        self.entries.values().any(hopes)
    }

    /// Facts for these targets are on their way.
    pub(super) fn is_preparing(&mut self, catalog: &Arc<Catalog>, targets: &[Target], role: &Arc<str>) -> bool {
        self.compile(catalog);
        let sources: Vec<Arc<[FactSource]>> =
            targets.iter().map(|target| self.sources_of(catalog, (target.table_oid, role.clone()))).collect();
        let under_way = |oid: u32| self.entries.get(&oid).is_none_or(|entry| entry.step.is_under_way());
        sources.iter().flat_map(|sources| sources.iter()).any(|source| under_way(source.table_oid))
    }

    /// Everything that is known of them, by name.
    pub(super) fn describe(&self, facts: &Facts) -> Vec<FactsOf> {
        let of = |(oid, entry): (&u32, &Entry)| {
            let (rows, bytes) = match facts.state(*oid) {
                FactState::Ready { rows, bytes } => (rows, bytes as u64),
                _ => (0, 0),
            };
            let said = matches!(entry.step, Step::Resting(_) | Step::Refused).then_some(entry.said.as_ref()).flatten();
            let (why, remedy) = said.cloned().unwrap_or_default();
            FactsOf { table: entry.name.to_string(), state: entry.step.label(), rows, bytes, why, remedy }
        };
        let mut all: Vec<FactsOf> = self.entries.iter().map(of).collect();
        all.sort_by(|a, b| a.table.cmp(&b.table));
        all
    }

    // --- Between two transactions.

    /// Puts into force what came, and begins what has to be begun; says whether there was anything to look at. Must not be called
    /// within a transaction.
    pub(super) fn tend(&mut self, facts: &mut Facts, rules: &Rules, readings: &RulesHandle) -> bool {
        if !self.due && facts.generation() == self.generation {
            return false;
        }
        self.due = false;
        let now = Instant::now();
        for done in std::mem::take(&mut self.finished) {
            if matches!(done.outcome, Outcome::Loaded(_)) && rules.read_at < done.at {
                // Rows of a later moment than the rules are together the rights of none.
                readings.request();
                self.finished.push(done);
                continue;
            }
            self.settle(facts, done, readings);
        }
        self.mend_broken(facts, now);
        let needs = self.needs(&rules.catalog);
        self.note_needs(facts, &needs, now);
        let oids: Vec<u32> = needs.keys().copied().collect();
        for oid in oids {
            self.advance(facts, oid, rules, now);
        }
        let given_up = self.entries.iter().filter(|(_, entry)| entry.is_given_up());
        facts.give_up(given_up.map(|(oid, _)| *oid).collect());
        self.generation = facts.generation();
        self.hold_and_wake(&needs, now);
        self.measure(facts);
        true
    }

    fn compile(&mut self, catalog: &Arc<Catalog>) {
        if !self.compiled_by.as_ref().is_some_and(|known| Arc::ptr_eq(known, catalog)) {
            self.sources.clear();
            self.rules.clear();
            self.compiled_by = Some(catalog.clone());
        }
    }

    #[cfg(test)]
    pub(super) fn forget_plans(&mut self) {
        self.compiled_by = None;
    }

    fn sources_of(&mut self, catalog: &Arc<Catalog>, wanted: Use) -> Arc<[FactSource]> {
        let options = self.options;
        #[cfg(test)]
        let also: Vec<FactSource> =
            self.also.iter().filter(|(of, _)| *of == wanted).map(|(_, source)| source.clone()).collect();
        let Keeper { sources, rules, .. } = self;
        let compiled = sources.entry(wanted);
        let sources = compiled.or_insert_with_key(|wanted| {
            let (table, role) = wanted;
            let plan = policy::compile(catalog, *table, role, options);
            rules.extend(plan.rule().map(|rule| (wanted.clone(), rule.clone())));
            #[cfg(test)]
            return plan.sources().iter().cloned().chain(also).collect();
            #[cfg(not(test))]
            plan.sources().into()
        });
        sources.clone()
    }

    fn needs(&mut self, catalog: &Arc<Catalog>) -> BTreeMap<u32, Need> {
        self.compile(catalog);
        let mut needs: BTreeMap<u32, Need> = BTreeMap::new();
        let uses: Vec<Use> = self.uses.iter().cloned().collect();
        for wanted in uses {
            let judged = wanted.0;
            for source in self.sources_of(catalog, wanted).iter() {
                let need = needs.entry(source.table_oid).or_default();
                need.name.get_or_insert_with(|| source.table.clone());
                need.columns.extend(source.columns.iter().map(|column| column.number));
                need.judged.push(judged);
            }
        }
        for source in self.channels.1.iter().flat_map(|rule| &rule.sources) {
            let need = needs.entry(source.table_oid).or_default();
            need.name.get_or_insert_with(|| source.table.clone());
            need.columns.extend(source.columns.iter().map(|column| column.number));
            need.judged.push(self.channels.0);
        }
        needs
    }

    /// Makes entries for what is needed, and drops what no longer is.
    fn note_needs(&mut self, facts: &mut Facts, needs: &BTreeMap<u32, Need>, now: Instant) {
        self.entries.retain(|oid, entry| {
            if needs.contains_key(oid) {
                entry.unneeded_since = None;
                return true;
            }
            let since = *entry.unneeded_since.get_or_insert(now);
            let kept = now.duration_since(since) < FORGET_AFTER;
            if !kept {
                facts.forget(*oid);
                tracing::info!(table = %entry.name, "no rule looks into this table any more; its facts are forgotten");
            }
            kept
        });
        for (oid, need) in needs {
            let entry = self.entries.entry(*oid).or_insert_with(|| Entry {
                name: need.name.clone().unwrap_or_else(|| oid.to_string().into()),
                columns: BTreeSet::new(),
                step: Step::New,
                layout: None,
                storage: 0,
                cure: Cure::Time,
                patience: Some(now + self.config.wait),
                failures: 0,
                unneeded_since: None,
                said: None,
            });
            // What was asked for once stays: a load costs more than a column.
            entry.columns.extend(&need.columns);
        }
    }

    /// Facts that could not follow the stream are loaded again.
    fn mend_broken(&mut self, facts: &mut Facts, now: Instant) {
        for (oid, entry) in &mut self.entries {
            if !matches!(entry.step, Step::Ready(_) | Step::Loading(..)) {
                continue;
            }
            let FactState::Broken(why) = facts.state(*oid) else { continue };
            tracing::warn!(table = %entry.name, why, "the facts of this table can't follow the stream; they are loaded again");
            self.metrics.fact_loads.get_or_create(&[("result", "broken")]).inc();
            facts.forget(*oid);
            match entry.step {
                Step::Ready(since) if now.duration_since(since) >= STEADY => {
                    entry.failures = 0;
                    entry.patience = Some(now + self.config.wait);
                    entry.go(Step::New);
                }
                _ => rest(entry, now, None, entry.cure),
            }
        }
    }

    /// One step further, if the catalog allows it.
    fn advance(&mut self, facts: &mut Facts, oid: u32, rules: &Rules, now: Instant) {
        let catalog = &rules.catalog;
        let Some(entry) = self.entries.get_mut(&oid) else { return };
        let table = catalog.table(oid);
        let fit = match table {
            Some(table) => {
                let names = (self.config.publication.as_str(), "<the relay's login>");
                fitness(table, catalog, &entry.columns, names).map(|fit| (table, fit))
            }
            None => {
                let why = "is not in the catalog".into();
                Err(Refusal { check: "facts_gone", why, sql: Vec::new(), todo: "" })
            }
        };
        let (table, fit) = match fit {
            Ok(fit) => fit,
            Err(refusal) => {
                facts.forget(oid);
                entry.go(Step::Refused);
                entry.patience = None;
                let remedy = refusal.remedy();
                return say(entry, refusal.why, remedy);
            }
        };
        let same = entry.layout.as_deref() == Some(&fit.layout) && entry.storage == table.storage;
        match &entry.step {
            Step::Ready(_) | Step::Loading(..) if same && fit.streamed => return,
            Step::Resting(until) if same && now < *until => return,
            Step::Adding(..) => return,
            Step::Added(at) if !fit.streamed && rules.read_at < *at => return,
            Step::Added(_) if !fit.streamed => {
                let why = format!("is in {} and still not sent in full", self.config.publication);
                let remedy = format!(
                    "alter publication {} set (publish = 'insert, update, delete, truncate');",
                    facts::quoted(&self.config.publication)
                );
                say(entry, why, remedy);
                return rest(entry, now, None, Cure::Person);
            }
            Step::Ready(_) | Step::Loading(..) => {
                tracing::info!(table = %entry.name, "this table has changed; its facts are loaded again");
                entry.patience = Some(now + self.config.wait);
            }
            Step::New | Step::Resting(_) | Step::Refused | Step::Added(_) => {}
        }
        entry.storage = table.storage;
        self.next_ticket += 1;
        let (ticket, started, pool) = (self.next_ticket, Instant::now(), self.pool.clone());
        let done = move |outcome| Done { table: oid, ticket, took: started.elapsed(), at: Instant::now(), outcome };
        let layout = Arc::new(fit.layout);
        entry.layout = Some(layout.clone());
        if !fit.streamed {
            facts.forget(oid);
            let (publication, stream, table) = (self.config.publication.clone(), self.stream.clone(), table.clone());
            let task = self
                .work
                .spawn(async move { done(Outcome::Added(facts::add(&pool, &publication, &stream, &table).await)) });
            return entry.go(Step::Adding(ticket, task));
        }
        facts.record(layout.clone());
        let limits =
            LoadLimits { bytes: self.config.memory.saturating_sub(facts.bytes()), deadline: self.config.load_deadline };
        let (name, loads, lookups) = (entry.name.clone(), self.loads.clone(), self.lookups(catalog, &layout));
        let load = Load { pool, layout, limits, lookups, name, loads };
        let task = self.work.spawn(async move { done(load.run().await) });
        if let Some(entry) = self.entries.get_mut(&oid) {
            entry.go(Step::Loading(ticket, task));
        }
    }

    /// Puts a task's result into force.
    fn settle(&mut self, facts: &mut Facts, done: Done, readings: &RulesHandle) {
        let Some(entry) = self.entries.get_mut(&done.table) else { return };
        if entry.step.ticket() != Some(done.ticket) {
            return;
        }
        let now = Instant::now();
        let count = |result| {
            self.metrics.fact_loads.get_or_create(&[("result", result)]).inc();
        };
        match done.outcome {
            Outcome::Added(Ok(())) => {
                tracing::info!(table = %entry.name, publication = self.config.publication, "added to the publication of facts");
                entry.go(Step::Added(now));
                readings.request();
            }
            Outcome::Added(Err(error)) => {
                count("not_added");
                let told = matches!(error, PublishError::Unfit(_)) || error.remedy() != Remedy::Retry;
                say_error(entry, "could not be added to the publication of facts", &error, error.advice());
                let cure = if told { Cure::Person } else { Cure::Time };
                rest(entry, now, told.then_some(LONGEST_PAUSE), cure);
            }
            Outcome::Blocked(writers) => {
                count("blocked");
                facts.forget(done.table);
                say(
                    entry,
                    format!("is being written to, without an end, by {writers}"),
                    "End that transaction.".into(),
                );
                rest(entry, now, None, Cure::Time);
            }
            Outcome::Loaded(loaded) => match *loaded {
                Ok((table, snapshot)) => match facts.install(table, &snapshot) {
                    Ok(()) => {
                        count("loaded");
                        self.metrics.fact_load.observe(done.took.as_secs_f64());
                        tracing::info!(table = %entry.name, took = ?done.took, state = ?facts.state(done.table), "facts are loaded");
                        (entry.patience, entry.said, entry.cure) = (None, None, Cure::Time);
                        entry.go(Step::Ready(now));
                    }
                    Err(error) => {
                        count("failed");
                        facts.forget(done.table);
                        let cure = if error.remedy() == Remedy::Retry { Cure::Time } else { Cure::Person };
                        say_error(entry, "could not be put together", &error, String::new());
                        rest(entry, now, None, cure);
                    }
                },
                Err(error) => {
                    count(error.kind());
                    facts.forget(done.table);
                    // Changes by DDL come with another reading of the catalog.
                    readings.request();
                    say_error(entry, "could not be read", &error, error.advice());
                    let pause = match error {
                        LoadError::TooLarge { .. } => Some(TOO_LARGE_PAUSE),
                        LoadError::Changed(_) if entry.failures < 3 => Some(Duration::from_millis(50)),
                        _ => None,
                    };
                    let cure = if error.remedy() == Remedy::Retry { Cure::Time } else { Cure::Person };
                    rest(entry, now, pause, cure);
                }
            },
        }
    }

    fn hold_and_wake(&mut self, needs: &BTreeMap<u32, Need>, now: Instant) {
        self.held.clear();
        self.awaited.clear();
        let mut wake: Option<Instant> = None;
        let mut at = |time: Instant| wake = Some(wake.map_or(time, |known| known.min(time)));
        for (oid, entry) in &self.entries {
            if entry.step.is_under_way() {
                self.awaited.extend(needs.get(oid).into_iter().flat_map(|need| &need.judged));
            }
            if let Some(until) = entry.patience.filter(|until| entry.step.is_under_way() && now < *until) {
                at(until);
                let judged = needs.get(oid).map_or(&[][..], |need| &need.judged);
                self.held.extend(judged.iter().map(|table| (*table, until)));
            }
            if let Step::Resting(until) = entry.step
                && entry.unneeded_since.is_none()
            {
                at(until);
            }
            if let Some(since) = entry.unneeded_since {
                at(since + FORGET_AFTER);
            }
        }
        self.wake_at = wake;
    }
}

fn resume(error: JoinError) {
    if let Ok(panic) = error.try_into_panic() {
        std::panic::resume_unwind(panic);
    }
}
