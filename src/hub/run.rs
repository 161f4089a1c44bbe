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
use super::lane::{Lane, LaneRow};
use super::matching::{self, Judgement, Matcher, UNDECIDED};
use super::noting::NotedFacts;
use super::owing::Owing;
use super::prepare::FACTS;
use super::registry::Registry;
use super::resolve;
use super::rules::{Rules, RulesHandle, RulesReader};
use super::settle::{Leaving, Settled};
use super::{Batch, ChannelId, Command, HubConfig, HubDeps, HubError, HubHandle, Port};
use crate::catalog::Snapshot;
use crate::change::{Change, Item, Items, Lsn, Position, RULES_PREFIX, Relation, RowChange, Transaction};
use crate::error::chain;
use crate::filter::{FilterAsker, Validator};
use crate::journal::Note;
use crate::log::{Epoch, LogError, Read, Reader};
use crate::policy::Asker;
use crate::policy::facts::Facts;
use crate::resume::Cursor;

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
    transaction: Arc<Transaction>,
    items: Items,
    /// When it was taken from the log: rules read since then are no older than its commit, however old they are by now.
    received: Instant,
    /// It brings a relation that was not seen yet: rules must be read after this, under a snapshot that sees it.
    gate: Option<Instant>,
    /// The gate has been closed for too long; whether the transaction may have changed rules itself, so that it stays closed.
    overdue: Option<bool>,
    /// Its rows are being judged, by facts that have been folded if it concerns any.
    begun: bool,
    folded: bool,
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
    /// Rows that were lost for want of facts, to be told.
    pub(super) owing: Owing,
    /// Since subscriptions that wait for facts were looked at.
    pub(super) facts_changed: bool,
    pub(super) reader: Reader,
    pub(super) work: Option<Work>,
    /// The shape of each table as last seen in the stream.
    pub(super) relations: AHashMap<u32, Arc<Relation>>,
    /// Transactions that the latest snapshot did not see yet, oldest first.
    pub(super) xids: VecDeque<u32>,
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
        let hub = Hub {
            facts: Facts::new(config.facts.memory),
            keeper,
            facts_changed: false,
            owing: Owing::default(),
            commands,
            rules_reader: Some(rules_reader),
            rules,
            current: None,
            ahead: None,
            validator: Arc::new(Validator::new(deps.pool.clone(), config.filter_ask.statement_timeout)),
            registry: Registry::new(config.policy),
            matcher: Matcher::default(),
            noted: NotedFacts::default(),
            lane: Lane::new(asker, filter_asker, deps.metrics.clone()),
            reader: deps.log.reader(deps.log.end()),
            work: None,
            relations: AHashMap::new(),
            xids: VecDeque::new(),
            shared_xids: None,
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
        let mut sweep = tokio::time::interval(SWEEP);
        let drain = self.deps.drain.clone();
        loop {
            self.tend_facts();
            self.release_waiting();
            self.note_fact_states();
            self.turn().await;
            self.flush().await;
            self.lane.measure(&self.deps.metrics);
            let (runnable, reads) = (self.is_runnable(), self.may_read());
            let (poke_at, read_at) = (self.poke_at, self.read_at);
            let facts_at = self.facts_at();
            let overdue_at = self.revalidating.values().min().copied();
            // In this order: stop; what is waited for by rows; what clients ask; new rows; housekeeping.
            tokio::select! {
                biased;
                () = drain.draining() => break,
                () = self.rules.changed() => self.on_rules(),
                () = self.lane.answered() => self.leave_lane(),
                () = self.keeper.finished() => {}
                Some(done) = self.resolving.join_next() => self.on_resolved(done),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                _ = sweep.tick() => {
                    self.sweep();
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
                () = sleep_until(read_at), if read_at.is_some() => self.read_at = None,
                read = self.reader.next(), if reads => self.on_read(read),
            }
        }
        self.flush().await;
        let _ = rules_task.await;
        Ok(())
    }

    /// The position as clients keep it; `None` before the first history.
    pub(super) fn cursor(&self, position: Position) -> Option<Cursor> {
        self.reader.epoch().map(|epoch| Cursor { epoch: epoch.tag(), position })
    }

    pub(super) fn position(&self) -> Position {
        let lsn = self.work.as_ref().map_or(self.reader.position(), |work| work.transaction.end_lsn);
        Position { lsn, ordinal: u32::MAX }
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
        match read {
            Ok(Read::Transaction(transaction)) => {
                if let Some(appended) = self.reader.appended_at() {
                    self.deps.metrics.append_to_match.observe(appended.elapsed().as_secs_f64());
                }
                self.note_facts(&transaction);
                self.xids.push_back(transaction.xid);
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
                });
            }
            Ok(Read::Idle(_)) => {}
            // The log's very first epoch: whoever subscribed before it is told, but there is nothing to alarm a person.
            Ok(Read::Gap { from: from @ Lsn::ZERO, resumed }) => self.gap(from, resumed),
            Ok(Read::Gap { from, resumed }) => {
                tracing::error!(%from, %resumed, "changes are missing from the log; all subscribers are told of a gap");
                self.gap(from, resumed);
            }
            // No file descriptor left, and the like: it may pass, and asking again reads again.
            Err(LogError::Io { .. }) if self.failed_reads < MAX_FAILED_READS => {
                self.failed_reads += 1;
                self.read_at = Some(Instant::now() + READ_PAUSE);
            }
            Err(error) => {
                let (from, resumed) = (self.reader.position(), self.deps.log.end());
                tracing::error!(%from, %resumed, error = %chain(&error), "the log can't be read here; skipping to its end, all subscribers are told of a gap");
                self.reader = self.deps.log.reader(resumed);
                self.gap(from, resumed);
            }
        }
    }

    /// The catalog must be read again before its rows are judged: it brings a relation that was not seen yet, or says that rules
    /// have changed. A reading that shows it already is as good as a new one.
    fn needs_reading(&self, transaction: &Transaction) -> bool {
        let known = |r: &Arc<Relation>| self.relations.get(&r.oid).is_some_and(|k| Arc::ptr_eq(k, r) || k == r);
        let seen = || self.current.as_ref().is_some_and(|rules| rules.snapshot.sees(transaction.xid));
        !transaction.relations.iter().all(known) || (transaction.rules_changed && !seen())
    }

    fn gap(&mut self, from: Lsn, resumed: Lsn) {
        self.deps.journal.note(Note::Gap { from, resumed });
        self.keeper.distrust(&mut self.facts);
        if resumed < from {
            // Another history, whose positions and transaction ids begin lower.
            self.xids.clear();
            self.shared_xids = None;
            self.relations.clear();
            self.registry.rebase(Position { lsn: resumed, ordinal: u32::MAX });
        }
        let message =
            format!("Gap: changes between {from} and {resumed} are lost to this stream; reload what you show");
        let ports: Vec<Arc<Port>> = self.registry.channels().map(|channel| channel.port.clone()).collect();
        ports.iter().for_each(|port| self.tell(port, false, &message));
    }

    /// Whether the transaction at hand may be judged now; if not, what it waits for has been asked for.
    fn is_runnable(&mut self) -> bool {
        let Some(work) = &mut self.work else { return false };
        if !self.lane.has_room() || !self.revalidating.is_empty() {
            return false;
        }
        let (received, max_age) = (work.received, self.config.max_rules_age);
        let Some(rules) = self.current.as_ref().filter(|r| r.is_fresh(max_age) || r.read_at >= received) else {
            self.poke_at.get_or_insert_with(|| Instant::now() + POKE);
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
        if work.folded
            && let Err(error) = self.facts.begin(&work.transaction)
        {
            // The rows are about to fail in the same way.
            tracing::error!(error = %chain(&error), "a transaction can't be folded into the facts; they are loaded again");
            self.keeper.distrust(&mut self.facts);
        }
        let (committed, now) = (work.transaction.commit_time.unix_micros(), self.deps.clock.unix_millis());
        let ended = [("facts", work.folded), ("rules", work.transaction.rules_changed)];
        for (kind, _) in ended.into_iter().filter(|(_, so)| *so) {
            self.deps.metrics.right_ended(kind, committed, now);
        }
        true
    }

    /// Some rows of the transaction at hand are judged and others not.
    pub(super) fn is_within(&self) -> bool {
        self.work.as_ref().is_some_and(|work| work.begun)
    }

    /// The transaction at hand is over.
    fn end(&mut self) {
        if self.work.take().is_some_and(|work| work.folded) {
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
                Some(Ok(Item::Row(row))) => self.row(row),
                Some(Ok(Item::Truncate(_) | Item::Message(_))) => {}
                Some(Err(error)) => {
                    let lsn = work.transaction.end_lsn;
                    tracing::error!(%lsn, error = %chain(&error), "a transaction can't be read back; all subscribers are told of a gap");
                    self.end();
                    self.gap(lsn, lsn);
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

    fn row(&mut self, row: RowChange) {
        let (Some(rules), Some(work)) = (&self.current, &self.work) else { return };
        if work.transaction.is_retention() && matches!(row.change, Change::Delete { .. }) {
            self.deps.metrics.retention_deletes_hidden.inc();
            return;
        }
        let oid = row.relation.oid;
        let Some(table) = rules.catalog.table(oid) else { return self.unknown_table(&row) };
        if !table.published.as_ref().is_some_and(|p| matching::is_published(p, &row.change)) {
            return;
        }
        let Some(index) = self.registry.table(oid) else { return };
        index.fit(&row.relation, &rules.catalog, &self.facts);
        let now = self.deps.clock.unix_seconds();
        let metrics = &self.deps.metrics;
        let mut judgement = self.matcher.judge(&mut self.registry, &row, &self.facts, now, metrics);
        self.lose(std::mem::take(&mut judgement.lost), judgement.lost_to_all, &row);
        let (Some(rules), Some(work)) = (&self.current, &self.work) else { return };
        let metrics = &self.deps.metrics;
        if judgement.is_empty() {
            return;
        }
        let bytes = (work.transaction.body.len() / u64::from(work.transaction.items.max(1))) as usize + 512;
        let times = (work.transaction.commit_time, work.received.into_std());
        let event = matching::event(row, times, rules.catalog.types(), self.reader.epoch().map(Epoch::tag));
        if !judgement.must_wait() && self.lane.is_empty() {
            let sent = matching::emit(&mut self.out, &event, judgement.permits, &judgement.undecided);
            metrics.undecided_gaps.inc_by(judgement.undecided.len() as u64);
            self.note_undecided(judgement.undecided.iter().map(|port| (port, "catalog")), &event.row);
            metrics.deliveries.inc_by(sent);
            self.queued += sent as usize;
            return;
        }
        let xids = self.shared_xids.get_or_insert_with(|| self.xids.iter().copied().collect()).clone();
        let Judgement { permits, asked, filtered, undecided, .. } = judgement;
        let row = LaneRow { event: event.clone(), permits, asked, filtered, undecided, xids, bytes };
        let passed = self.lane.push(row, &self.registry);
        let sent = matching::emit(&mut self.out, &event, passed.permits, &passed.undecided);
        self.deps.metrics.undecided_gaps.inc_by(passed.undecided.len() as u64);
        self.note_undecided(passed.undecided.iter().map(|port| (port, "catalog")), &event.row);
        self.deps.metrics.deliveries.inc_by(sent);
        self.queued += sent as usize;
        self.leave_lane();
    }

    /// A table that is in the stream and not in the catalog: dropped since, or not visible yet. Whoever asked for all tables
    /// may have been owed its rows.
    fn unknown_table(&mut self, row: &RowChange) {
        let Some(rules) = &self.current else { return };
        if rules.snapshot.sees(self.work.as_ref().map_or(0, |w| w.transaction.xid)) {
            // The catalog is newer than the row: the table was dropped, or left the publication.
            return;
        }
        let (schema, table) = (&row.relation.schema, &row.relation.table);
        let concerned = self.registry.channels().filter(|c| c.entries.iter().any(|e| resolve::names(e, schema, table)));
        let ports: Vec<Arc<Port>> = concerned.map(|channel| channel.port.clone()).collect();
        self.deps.metrics.undecided_gaps.inc_by(ports.len() as u64);
        ports.iter().for_each(|port| self.tell(port, false, UNDECIDED));
        self.note_undecided(ports.iter().map(|port| (port, "unknown table")), row);
    }

    fn leave_lane(&mut self) {
        let now = self.deps.clock.unix_seconds();
        for settled in self.lane.released(&self.registry, now) {
            let Leaving { event, permits, undecided, reasons, ended } = match settled {
                Settled::Row(row) => row,
                Settled::Notice(port, ok, message) => {
                    matching::notify(&mut self.out, &port, ok, &message);
                    continue;
                }
            };
            let (lost, undecided) = undecided.into_iter().zip(reasons).partition::<Vec<_>, _>(|(_, why)| *why == FACTS);
            self.lose(lost.into_iter().map(|(port, _)| port).collect(), false, &event.row);
            self.deps.metrics.undecided_gaps.inc_by(undecided.len() as u64);
            self.note_undecided(undecided.iter().map(|(port, why)| (port, *why)), &event.row);
            let undecided: Vec<Arc<Port>> = undecided.into_iter().map(|(port, _)| port).collect();
            let sent = matching::emit(&mut self.out, &event, permits, &undecided);
            self.deps.metrics.deliveries.inc_by(sent);
            self.queued += sent as usize;
            for (port, message) in ended {
                let table = &event.row.relation.table;
                tracing::warn!(table, message, "a subscription was ended for its filter");
                self.deps.journal.note(Note::Ended { channel: port.id.0, at: event.row.position });
                self.remove(port.id);
                matching::notify(&mut self.out, &port, false, &message);
                self.count();
            }
        }
    }

    /// Queues a `system` message for a channel behind what it waits for.
    pub(super) fn tell(&mut self, port: &Arc<Port>, ok: bool, message: &str) {
        if !self.lane.notice(port, ok, message) {
            matching::notify(&mut self.out, port, ok, message);
        }
    }

    async fn flush(&mut self) {
        self.queued = 0;
        for (out, shard) in self.out.iter_mut().zip(&self.deps.shards) {
            if !out.is_empty() {
                let batch = Batch::from(std::mem::take(out));
                // A shard never waits for a socket, so this waits for processor time only. It is gone at the drain.
                let _ = shard.send(batch).await;
            }
        }
    }
}

/// Whether rules may have changed in this very transaction: it carries the hint, or a table that was known is described again.
/// Of one that is new to us we know nothing older, so there is nothing to be wrong about.
fn may_change_rules(transaction: &Transaction, known: &AHashMap<u32, Arc<Relation>>) -> bool {
    let hint = |item| matches!(item, Ok(Item::Message(message)) if message.prefix == RULES_PREFIX);
    transaction.rules_changed
        && (transaction.relations.iter().any(|relation| known.contains_key(&relation.oid))
            || transaction.iter().any(hint))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
