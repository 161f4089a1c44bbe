//! The hub's one task: it pulls transactions from the log, judges their rows, and takes commands in between.
//!
//! ```text
//! log ──reader──► gate (fresh rules? relation known?) ──► matching ──► lane (waits for Postgres) ──► shards
//!                                                   commands ──┘ take effect at an exact position
//! ```
//!
//! Invariants:
//! * One task owns the state; nothing is pushed at it but bounded commands. A slow hub lags in the log.
//! * It never waits for Postgres: rules are read, filters cast and rows judged by others, whose results come back as events.
//! * No row is judged with rules that are stale, older than the row's relation, or not yet applied to all channels.
//!
//! Rejected: locks around a shared registry. A subscription's first row would then depend on who got the lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ahash::{AHashMap, AHashSet};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::control::Resolved;
use super::event::Outgoing;
use super::facts::Keeper;
use super::freshness::Freshness;
use super::holds::Holds;
use super::lane::Lane;
use super::matching::Matcher;
use super::members::Members;
use super::noting::NotedFacts;
use super::owing::Owing;
use super::registry::{At, Registry};
use super::replay::{PASSES, Passes};
use super::rows::Origin;
use super::rules::{Rules, RulesHandle, RulesReader};
use super::seldom::Seldom;
use super::snapshot::Snapshots;
use super::{ChannelId, Command, GapReason, HubConfig, HubDeps, HubError, HubHandle};
use crate::catalog::Snapshot;
use crate::change::{Item, Items, Lsn, Position, RULES_PREFIX, Relation, Transaction};
use crate::error::chain;
use crate::filter::{FilterAsker, Validator};
use crate::log::{Epoch, LogError, Read, Reader};
use crate::policy::facts::Facts;
use crate::policy::{Asker, Taker};

/// Rows handled before commands are looked at again.
const SLICE: usize = 256;
/// Transactions handled before commands are looked at again.
const TURN: usize = 64;
/// Commands that may wait.
const COMMANDS: usize = 1024;
/// Between two readings that are waited for.
const POKE: Duration = Duration::from_millis(25);
const SWEEP: Duration = Duration::from_secs(10);
/// A log that can't be read is tried again for ten seconds.
const READ_PAUSE: Duration = Duration::from_millis(100);
const MAX_FAILED_READS: u32 = 100;
/// Members that may be queued before the shards get them.
const MAX_QUEUED: usize = 65_536;

/// The transaction at hand.
pub(super) struct Work {
    pub(super) transaction: Arc<Transaction>,
    items: Items,
    /// When it was taken from the log: rules read since then are no older than its commit, however old they are by now.
    pub(super) received: Instant,
    /// It brings a relation that was not seen yet: rules must be read after this, under a snapshot that sees it.
    gate: Option<Instant>,
    /// The gate has been closed for too long; whether the transaction may have changed rules itself, so that it stays closed.
    overdue: Option<bool>,
    /// Its rows are being judged, by facts that have been folded if it concerns any.
    begun: bool,
    folded: bool,
    /// The last of its rows that was judged.
    pub(super) last: Option<Position>,
}

/// See the module's comment.
pub struct Hub {
    pub(super) config: HubConfig,
    pub(super) deps: HubDeps,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) rules_reader: Option<RulesReader>,
    pub(super) rules: RulesHandle,
    /// In force.
    pub(super) current: Option<Rules>,
    /// At which they were read, until the stream has passed it.
    pub(super) ahead: Option<Snapshot>,
    pub(super) validator: Arc<Validator>,
    pub(super) registry: Registry,
    pub(super) matcher: Matcher,
    pub(super) lane: Lane,
    /// What the policies look into.
    pub(super) facts: Facts,
    /// What the journal has of them.
    pub(super) noted: NotedFacts,
    pub(super) keeper: Keeper,
    pub(super) members: Members,
    /// How old the facts are that members' rights rest on.
    pub(super) freshness: Freshness,
    /// Rows that were lost for want of facts, to be told.
    pub(super) owing: Owing,
    /// Since subscriptions that wait for facts were looked at.
    pub(super) facts_changed: bool,
    pub(super) reader: Reader,
    /// The end of what was judged in full, or skipped.
    pub(super) done: Lsn,
    /// [`Epoch::tag`] of the history that it is in; `None` before the first.
    pub(super) epoch: Option<u64>,
    /// Channels that catch up.
    pub(super) passes: Passes,
    pub(super) holds: Holds,
    pub(super) work: Option<Work>,
    /// The shape of each table as last seen in the stream.
    pub(super) relations: AHashMap<u32, Arc<Relation>>,
    /// Transactions that the latest snapshot did not see yet, oldest first.
    pub(super) xids: VecDeque<u32>,
    pub(super) snapshots: Snapshots,
    /// The same, as questions share them.
    pub(super) shared_xids: Option<Arc<[u32]>>,
    pub(super) resolving: JoinSet<Resolved>,
    /// Resolved, and waiting for facts until then at most.
    pub(super) awaiting: Vec<(Instant, Resolved)>,
    /// The latest resolution of each channel that is under way.
    pub(super) tickets: AHashMap<ChannelId, u64>,
    /// Channels whose ticket is a client's wish, not ours.
    pub(super) subscribing: AHashSet<ChannelId>,
    pub(super) next_ticket: u64,
    /// Active channels whose targets are being resolved again, until when: no row is judged meanwhile.
    pub(super) revalidating: AHashMap<ChannelId, Instant>,
    pub(super) out: Vec<Vec<Outgoing>>,
    pub(super) poke_at: Option<Instant>,
    /// The log could not be read; again at this time.
    pub(super) read_at: Option<Instant>,
    pub(super) failed_reads: u32,
    /// Warnings of messages that are not sent, by reason.
    pub(super) dropped: AHashMap<&'static str, Seldom>,
    /// Members in `out`.
    pub(super) queued: usize,
}

impl Hub {
    /// The hub and the way to it; nothing runs yet. It starts at the end of the log as of now.
    pub fn new(config: HubConfig, deps: HubDeps) -> (Hub, HubHandle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (rules_reader, rules) = RulesReader::new(
            deps.catalog_pool.clone(),
            (config.publications.clone(), config.other_publications.clone()),
            config.catalog_interval,
            (deps.clock.clone(), deps.metrics.clone()),
            deps.drain.clone(),
        );
        let asker = Asker::new(deps.ask_pool.clone(), config.ask.clone(), deps.metrics.clone());
        let filter_asker = FilterAsker::new(deps.pool.clone(), config.filter_ask.clone(), deps.metrics.clone());
        let stream = config.publications.iter().chain(&config.other_publications).cloned().collect();
        let (pool, metrics) = (deps.facts_pool.clone(), deps.metrics.clone());
        let keeper = Keeper::new(pool, config.facts.clone(), stream, config.policy, metrics);
        let reader = deps.log.reader(deps.log.end());
        let hub = Hub {
            facts: Facts::new(config.facts.memory),
            keeper,
            facts_changed: false,
            members: Members::default(),
            freshness: Freshness::default(),
            owing: Owing::default(),
            commands,
            rules_reader: Some(rules_reader),
            rules,
            current: None,
            ahead: None,
            validator: Arc::new(Validator::new(deps.pool.clone(), config.filter_ask.statement_timeout)),
            registry: Registry::new(config.policy, PASSES),
            matcher: Matcher::default(),
            noted: NotedFacts::default(),
            lane: Lane::new(asker, filter_asker, deps.metrics.clone()),
            passes: Passes::new(),
            holds: Holds::new(deps.shards.len()),
            done: reader.position(),
            epoch: reader.epoch().map(Epoch::tag),
            reader,
            work: None,
            relations: AHashMap::new(),
            xids: VecDeque::new(),
            shared_xids: None,
            snapshots: Snapshots::new(Taker::new(
                deps.snapshot_pool.clone(),
                config.snapshot.clone(),
                deps.metrics.clone(),
            )),
            resolving: JoinSet::new(),
            awaiting: Vec::new(),
            tickets: AHashMap::new(),
            subscribing: AHashSet::new(),
            next_ticket: 0,
            revalidating: AHashMap::new(),
            out: deps.shards.iter().map(|_| Vec::new()).collect(),
            poke_at: None,
            read_at: None,
            failed_reads: 0,
            dropped: AHashMap::new(),
            queued: 0,
            config,
            deps,
        };
        (hub, HubHandle::new(sender))
    }

    /// Runs until the drain.
    pub async fn run(mut self) -> Result<(), HubError> {
        if self.out.is_empty() {
            return Err(HubError::NoShards);
        }
        let Some(rules_reader) = self.rules_reader.take() else { return Err(HubError::Twice) };
        let rules_task = crate::task::spawn("catalog", rules_reader.run());
        self.look_back().await;
        let mut sweep = tokio::time::interval(SWEEP);
        let drain = self.deps.drain.clone();
        loop {
            self.tend_facts();
            self.release_waiting();
            self.note_fact_states();
            self.send_snapshots();
            self.turn().await;
            let more = self.replay() | self.tend_members();
            self.flush().await;
            self.lane.measure(&self.deps.metrics);
            self.passes.measure(&self.deps.metrics);
            let (runnable, reads) = (self.is_runnable() || more, self.may_read());
            let (poke_at, read_at) = (self.poke_at, self.read_at);
            let (replay_at, flush_at) = (self.passes.wake_at, self.holds.due_at);
            let (facts_at, snapshots_at) = (self.facts_at(), self.snapshots_at());
            let members_at = self.members_at();
            let overdue_at = self.revalidating.values().min().copied();
            // In this order: stop; what is waited for by rows; what clients ask; new rows; housekeeping.
            tokio::select! {
                biased;
                () = drain.draining() => break,
                () = self.rules.changed() => self.on_rules(),
                () = self.lane.answered() => self.leave_lane(),
                () = self.keeper.finished() => {}
                Some(done) = self.resolving.join_next() => {
                    self.on_resolved(done);
                    self.take_resolved();
                }
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.on_command(command);
                        self.take_commands();
                    }
                    None => break,
                },
                _ = sweep.tick() => {
                    self.sweep();
                    self.members.tidy();
                    self.relent();
                    self.sweep_facts();
                    self.count();
                }
                () = std::future::ready(()), if runnable => {}
                () = sleep_until(poke_at), if poke_at.is_some() => {
                    self.poke_at = None;
                    self.rules.request();
                }
                () = sleep_until(overdue_at), if overdue_at.is_some() => self.on_overdue(),
                () = sleep_until(facts_at), if facts_at.is_some() => self.keeper.look_again(),
                () = sleep_until(members_at), if members_at.is_some() => {}
                () = sleep_until(snapshots_at), if snapshots_at.is_some() => {}
                () = sleep_until(read_at), if read_at.is_some() => self.read_at = None,
                () = sleep_until(replay_at), if replay_at.is_some() => {}
                () = sleep_until(flush_at), if flush_at.is_some() => {}
                () = self.passes.loaded() => {}
                read = self.reader.next(), if reads => self.on_read(read),
            }
        }
        self.flush().await;
        let _ = rules_task.await;
        Ok(())
    }

    pub(super) fn position(&self) -> Position {
        let lsn = self.work.as_ref().map_or(self.reader.position(), |work| work.transaction.end_lsn);
        Position { lsn, ordinal: u32::MAX }
    }

    /// Up to where nothing was committed that is not in the facts.
    pub(super) fn folded(&self) -> Lsn {
        match &self.work {
            Some(work) if !work.begun => self.done,
            _ => self.deps.log.known_from(self.reader.position()),
        }
    }

    /// Everything that the log has was judged.
    pub(super) fn is_at_end(&self) -> bool {
        self.work.is_none() && self.reader.position() >= self.deps.log.end()
    }

    // --- Rows.

    /// As much as may be done at once: a slice of a large transaction, or several small ones.
    async fn turn(&mut self) {
        for _ in 0..TURN {
            if self.work.is_none() {
                if !self.may_read() {
                    return;
                }
                match self.reader.try_next().await {
                    Ok(None) => return,
                    Ok(Some(read)) => self.on_read(Ok(read)),
                    Err(error) => self.on_read(Err(error)),
                }
            }
            if !self.is_runnable() || !self.slice() || self.queued > MAX_QUEUED {
                return;
            }
        }
    }

    fn may_read(&self) -> bool {
        self.work.is_none() && self.lane.has_room() && self.read_at.is_none()
    }

    fn on_read(&mut self, read: Result<Read, LogError>) {
        if read.is_ok() {
            self.failed_reads = 0;
        }
        let before = self.cursor(self.judged());
        let known = std::mem::replace(&mut self.epoch, self.reader.epoch().map(Epoch::tag));
        let is_told = !matches!(read, Ok(Read::Transaction(_) | Read::Idle(_)));
        if known.is_some() && known != self.epoch && !is_told {
            // Another server goes on with the history. What was loaded from the one before may hold what never happened here.
            self.keeper.distrust(&mut self.facts);
        }
        match read {
            Ok(Read::Transaction(transaction)) => {
                if let Some(appended) = self.reader.appended_at() {
                    self.deps.metrics.append_to_match.observe(appended.elapsed().as_secs_f64());
                }
                self.note_facts(&transaction);
                self.xids.push_back(transaction.xid);
                self.snapshots.unseen.push(transaction.xid, transaction.end_lsn);
                self.shared_xids = None;
                let gate = self.needs_reading(&transaction).then(|| {
                    self.rules.request();
                    Instant::now()
                });
                let items = transaction.iter();
                self.work = Some(Work {
                    transaction,
                    items,
                    received: Instant::now(),
                    gate,
                    overdue: None,
                    begun: false,
                    folded: false,
                    last: None,
                });
            }
            Ok(Read::Idle(lsn)) => self.done = lsn,
            Ok(Read::Gap { from, resumed }) => {
                self.done = resumed;
                let same = before.map(|before| before.epoch) == self.epoch;
                // The log's very first epoch: whoever subscribed before it is told, but there is nothing to alarm a person.
                if from != Lsn::ZERO {
                    tracing::error!(%from, %resumed, "changes are missing from the log; all subscribers are told of a gap");
                }
                self.gap(before, resumed, if same { GapReason::Expired } else { GapReason::Lost });
            }
            // No file descriptor left, and the like: it may pass, and asking again reads again.
            Err(LogError::Io { .. }) if self.failed_reads < MAX_FAILED_READS => {
                self.failed_reads += 1;
                self.read_at = Some(Instant::now() + READ_PAUSE);
            }
            Err(error) => {
                let (from, log) = (self.reader.position(), &self.deps.log);
                // Of damage that lasts, the next segment knows nothing.
                let next = matches!(error, LogError::Damaged { .. }).then(|| log.next_segment(from)).flatten();
                let resumed = next.unwrap_or(log.end());
                tracing::error!(%from, %resumed, error = %chain(&error), "the log can't be read here; skipping this, all subscribers are told of a gap");
                self.reader = self.deps.log.reader(resumed);
                self.epoch = self.reader.epoch().map(Epoch::tag);
                self.done = resumed;
                self.gap(before, resumed, GapReason::Lost);
            }
        }
        if known != self.epoch {
            self.part(is_told);
        }
    }

    /// The catalog must be read again before its rows are judged: it brings a relation that was not seen yet, or says that rules
    /// have changed. A reading that shows it already is as good as a new one.
    fn needs_reading(&self, transaction: &Transaction) -> bool {
        let known = |r: &Arc<Relation>| self.relations.get(&r.oid).is_some_and(|k| Arc::ptr_eq(k, r) || k == r);
        let seen = || self.current.as_ref().is_some_and(|rules| rules.snapshot.sees(transaction.xid));
        !transaction.relations.iter().all(known) || (transaction.rules_changed && !seen())
    }

    /// Whether the transaction at hand may be judged now; if not, what it waits for has been asked for.
    fn is_runnable(&mut self) -> bool {
        let Some(work) = &mut self.work else { return false };
        if !self.lane.has_room() || !self.revalidating.is_empty() {
            return false;
        }
        let (received, max_age) = (work.received, self.config.max_rules_age);
        let Some(rules) = self.current.as_ref().filter(|r| r.is_fresh(max_age) || r.read_at >= received) else {
            self.poke_soon();
            return false;
        };
        let Some(since) = work.gate else { return self.begin() };
        let seen = rules.read_at >= since && rules.snapshot.sees(work.transaction.xid);
        if !seen && since.elapsed() < self.config.ask.deadline {
            self.poke_at.get_or_insert_with(|| Instant::now() + POKE);
            return false;
        }
        if !seen {
            let first = work.overdue.is_none();
            let holds = *work.overdue.get_or_insert_with(|| may_change_rules(&work.transaction, &self.relations));
            if first {
                tracing::warn!(
                    position = %work.transaction.end_lsn,
                    "a transaction is in the stream but not visible to other sessions after {:?} (a hanging synchronous \
                     standby?); {}", self.config.ask.deadline,
                    if holds { "it may have changed rules, so all rows wait for it in the log" }
                    else { "its tables are judged by the catalog as it is" }
                );
            }
            if holds {
                self.poke_at.get_or_insert_with(|| Instant::now() + POKE);
                return false;
            }
        }
        for relation in &work.transaction.relations {
            self.relations.insert(relation.oid, relation.clone());
        }
        work.gate = None;
        self.begin()
    }

    /// Folds the transaction at hand into the facts, once, when those that its rows are judged by are there or have been waited
    /// for; says whether its rows may be judged.
    fn begin(&mut self) -> bool {
        if self.work.as_ref().is_none_or(|work| work.begun) {
            return self.work.is_some();
        }
        self.tend_facts();
        let Some(work) = &mut self.work else { return false };
        if self.keeper.holds(&work.transaction.relations) {
            return false;
        }
        work.begun = true;
        self.facts.pass(work.transaction.xid);
        if self.ahead.take_if(|snapshot| snapshot.is_before(work.transaction.xid)).is_some() {
            self.registry.catch_up();
        }
        work.folded = self.facts.concerns(&work.transaction.relations);
        if work.folded {
            self.owing.note_change(work.transaction.end_lsn);
        }
        if work.folded
            && let Err(error) = self.facts.begin(&work.transaction)
        {
            // The rows are about to fail in the same way.
            tracing::error!(error = %chain(&error), "a transaction can't be folded into the facts; they are loaded again");
            self.keeper.distrust(&mut self.facts);
        }
        self.members.note_facts(&self.facts);
        let (committed, now) = (work.transaction.commit_time.unix_micros(), self.deps.clock.unix_millis());
        let ended = [("facts", work.folded), ("rules", work.transaction.rules_changed)];
        for (kind, _) in ended.into_iter().filter(|(_, so)| *so) {
            self.deps.metrics.right_ended(kind, committed, now);
        }
        true
    }

    /// Has the rules read again, unless that is under way.
    pub(super) fn poke_soon(&mut self) {
        self.poke_at.get_or_insert_with(|| Instant::now() + POKE);
    }

    /// Some rows of the transaction at hand are judged and others not.
    pub(super) fn is_within(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.begun)
    }

    /// The transaction at hand is over.
    fn end(&mut self) {
        let Some(work) = self.work.take() else { return };
        self.done = work.transaction.end_lsn;
        if work.folded {
            self.facts.end();
        }
    }

    /// Judges up to [`SLICE`] rows; says whether the transaction is finished.
    fn slice(&mut self) -> bool {
        for _ in 0..SLICE {
            if !self.lane.has_room() || self.queued > MAX_QUEUED {
                return false;
            }
            let Some(work) = &mut self.work else { return true };
            match work.items.next() {
                Some(Ok(Item::Row(row))) => {
                    work.last = Some(row.position);
                    let origin = Origin::of(&work.transaction, work.received, self.epoch);
                    self.row(At::Live, row, &origin);
                }
                Some(Ok(Item::Truncate(_) | Item::Message(_))) => {}
                Some(Err(error)) => {
                    let lsn = work.transaction.end_lsn;
                    tracing::error!(%lsn, error = %chain(&error), "a transaction can't be read back; all subscribers are told of a gap");
                    let from = self.cursor(self.judged());
                    self.end();
                    self.gap(from, lsn, GapReason::Lost);
                    return true;
                }
                None => {
                    self.end();
                    return true;
                }
            }
        }
        false
    }
}

/// Whether rules may have changed in this very transaction: it carries the hint, or a table that was known is described again.
/// Of one that is new to us we know nothing older, so there is nothing to be wrong about.
pub(super) fn may_change_rules(transaction: &Transaction, known: &AHashMap<u32, Arc<Relation>>) -> bool {
    let hint = |item| matches!(item, Ok(Item::Message(message)) if message.prefix == RULES_PREFIX);
    transaction.rules_changed
        && (transaction.relations.iter().any(|relation| known.contains_key(&relation.oid))
            || transaction.iter().any(hint))
}

pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
