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
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::event::Outgoing;
use super::lane::{Lane, LaneRow};
use super::matching::{self, Matcher, UNDECIDED};
use super::registry::Registry;
use super::resolve::{self, Target};
use super::rules::{Rules, RulesHandle, RulesReader};
use super::{Batch, ChannelId, Command, Entry, HubConfig, HubDeps, HubError, HubHandle, Name, Port, SubscribeError};
use crate::catalog::Catalog;
use crate::change::{Item, Items, Lsn, Position, Relation, RowChange, Transaction};
use crate::claims::Principal;
use crate::error::chain;
use crate::filter::Validator;
use crate::log::{Read, Reader};
use crate::policy::Asker;

/// Rows handled before commands are looked at again.
const SLICE: usize = 256;
/// Transactions handled before commands are looked at again.
const TURN: usize = 64;
/// Commands that may wait.
const COMMANDS: usize = 1024;
/// Between two readings that are waited for.
const POKE: Duration = Duration::from_millis(25);
const SWEEP: Duration = Duration::from_secs(10);

type Reply = oneshot::Sender<Result<(), SubscribeError>>;

/// The transaction at hand.
struct Work {
    transaction: Arc<Transaction>,
    items: Items,
    /// It brings a relation that was not seen yet: rules must be read after this, under a snapshot that sees it.
    gate: Option<Instant>,
}

/// Somebody's entries, being resolved beside the hub.
struct Resolving {
    /// Ends of waiting ones are ignored if the channel has left or asked again meanwhile.
    ticket: u64,
    id: ChannelId,
    why: Why,
    result: Result<(Vec<Target>, Rules), SubscribeError>,
}

enum Why {
    Subscribe {
        port: Arc<Port>,
        entries: Arc<Vec<Entry>>,
        principal: Arc<Principal>,
        reply: Reply,
    },
    /// The rules changed under an active channel.
    Again,
}

/// See the module's comment.
pub struct Hub {
    config: HubConfig,
    deps: HubDeps,
    commands: mpsc::Receiver<Command>,
    rules_reader: Option<RulesReader>,
    rules: RulesHandle,
    /// In force.
    current: Option<Rules>,
    validator: Arc<Validator>,
    registry: Registry,
    matcher: Matcher,
    lane: Lane,
    reader: Reader,
    work: Option<Work>,
    /// The shape of each table as last seen in the stream.
    relations: AHashMap<u32, Arc<Relation>>,
    /// Transactions that the latest snapshot did not see yet, oldest first.
    xids: VecDeque<u32>,
    /// The same, as questions share them.
    shared_xids: Option<Arc<[u32]>>,
    resolving: JoinSet<Resolving>,
    /// The latest resolution of each channel that is under way.
    tickets: AHashMap<ChannelId, u64>,
    next_ticket: u64,
    /// Active channels whose targets are being resolved again: no row is judged meanwhile.
    revalidating: AHashSet<ChannelId>,
    out: Vec<Vec<Outgoing>>,
    poke_at: Option<Instant>,
}

impl Hub {
    /// The hub and the way to it; nothing runs yet. It starts at the end of the log as of now.
    pub fn new(config: HubConfig, deps: HubDeps) -> (Hub, HubHandle) {
        let (sender, commands) = mpsc::channel(COMMANDS);
        let (rules_reader, rules) = RulesReader::new(
            deps.pool.clone(),
            config.publications.clone(),
            config.catalog_interval,
            deps.metrics.clone(),
            deps.drain.clone(),
        );
        let asker = Asker::new(deps.pool.clone(), config.ask.clone(), deps.metrics.clone());
        let hub = Hub {
            commands,
            rules_reader: Some(rules_reader),
            rules,
            current: None,
            validator: Arc::new(Validator::new(deps.pool.clone())),
            registry: Registry::default(),
            matcher: Matcher::default(),
            lane: Lane::new(asker),
            reader: deps.log.reader(deps.log.end()),
            work: None,
            relations: AHashMap::new(),
            xids: VecDeque::new(),
            shared_xids: None,
            resolving: JoinSet::new(),
            tickets: AHashMap::new(),
            next_ticket: 0,
            revalidating: AHashSet::new(),
            out: deps.shards.iter().map(|_| Vec::new()).collect(),
            poke_at: None,
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
            self.turn().await;
            self.flush().await;
            let (runnable, reads) = (self.is_runnable(), self.work.is_none() && self.lane.has_room());
            let poke_at = self.poke_at;
            // In this order: stop; what is waited for by rows; what clients ask; new rows; housekeeping.
            tokio::select! {
                biased;
                () = drain.draining() => break,
                () = self.rules.changed() => self.on_rules(),
                () = self.lane.answered() => self.leave_lane(),
                Some(done) = self.resolving.join_next() => self.on_resolved(done),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                () = std::future::ready(()), if runnable => {}
                () = sleep_until(poke_at), if poke_at.is_some() => {
                    self.poke_at = None;
                    self.rules.request();
                }
                read = self.reader.next(), if reads => self.on_read(read),
                _ = sweep.tick() => {
                    self.registry.sweep();
                    self.count();
                }
            }
        }
        self.flush().await;
        let _ = rules_task.await;
        Ok(())
    }

    fn position(&self) -> Position {
        let lsn = self.work.as_ref().map_or(self.reader.position(), |work| work.transaction.end_lsn);
        Position { lsn, ordinal: u32::MAX }
    }

    // --- Rows.

    /// As much as may be done at once: a slice of a large transaction, or several small ones.
    async fn turn(&mut self) {
        for _ in 0..TURN {
            if self.work.is_none() {
                if !self.lane.has_room() {
                    return;
                }
                match self.reader.try_next().await {
                    Ok(None) => return,
                    Ok(Some(read)) => self.on_read(Ok(read)),
                    Err(error) => self.on_read(Err(error)),
                }
            }
            if !self.is_runnable() || !self.slice() {
                return;
            }
        }
    }

    fn on_read(&mut self, read: Result<Read, crate::log::LogError>) {
        match read {
            Ok(Read::Transaction(transaction)) => {
                self.xids.push_back(transaction.xid);
                self.shared_xids = None;
                let known = |r: &Arc<Relation>| self.relations.get(&r.oid).is_some_and(|k| Arc::ptr_eq(k, r) || k == r);
                let gate = (!transaction.relations.iter().all(known)).then(|| {
                    self.rules.request();
                    Instant::now()
                });
                let items = transaction.iter();
                self.work = Some(Work { transaction, items, gate });
            }
            Ok(Read::Idle(_)) => {}
            // The log's very first epoch: whoever subscribed before it is told, but there is nothing to alarm a person.
            Ok(Read::Gap { from: from @ Lsn::ZERO, resumed }) => self.gap(from, resumed),
            Ok(Read::Gap { from, resumed }) => {
                tracing::error!(%from, %resumed, "changes are missing from the log; all subscribers are told of a gap");
                self.gap(from, resumed);
            }
            Err(error) => {
                let (from, resumed) = (self.reader.position(), self.deps.log.end());
                tracing::error!(%from, %resumed, error = %chain(&error), "the log can't be read here; skipping to its end, all subscribers are told of a gap");
                self.reader = self.deps.log.reader(resumed);
                self.gap(from, resumed);
            }
        }
    }

    fn gap(&mut self, from: Lsn, resumed: Lsn) {
        let message =
            format!("Gap: changes between {from} and {resumed} are lost to this stream; reload what you show");
        for channel in self.registry.channels() {
            matching::notify(&mut self.out, &channel.port, false, &message);
        }
    }

    /// Whether the transaction at hand may be judged now; if not, what it waits for has been asked for.
    fn is_runnable(&mut self) -> bool {
        let Some(work) = &mut self.work else { return false };
        if !self.lane.has_room() || !self.revalidating.is_empty() {
            return false;
        }
        let Some(rules) = self.current.as_ref().filter(|r| r.is_fresh(self.config.max_rules_age)) else {
            self.poke_at.get_or_insert_with(|| Instant::now() + POKE);
            return false;
        };
        let Some(since) = work.gate else { return true };
        let seen = rules.read_at >= since && rules.snapshot.sees(work.transaction.xid);
        if !seen && since.elapsed() < self.config.ask.deadline {
            self.poke_at.get_or_insert_with(|| Instant::now() + POKE);
            return false;
        }
        if !seen {
            tracing::warn!(
                position = %work.transaction.end_lsn,
                "a transaction is in the stream but not visible to other sessions after {:?} (a hanging synchronous \
                 standby?); its tables are judged by the catalog as it is", self.config.ask.deadline
            );
        }
        for relation in &work.transaction.relations {
            self.relations.insert(relation.oid, relation.clone());
        }
        work.gate = None;
        true
    }

    /// Judges up to [`SLICE`] rows; says whether the transaction is finished.
    fn slice(&mut self) -> bool {
        for _ in 0..SLICE {
            if !self.lane.has_room() {
                return false;
            }
            let Some(work) = &mut self.work else { return true };
            match work.items.next() {
                Some(Ok(Item::Row(row))) => self.row(row),
                Some(Ok(Item::Truncate(_) | Item::Message(_))) => {}
                Some(Err(error)) => {
                    let lsn = work.transaction.end_lsn;
                    tracing::error!(%lsn, error = %chain(&error), "a transaction can't be read back; all subscribers are told of a gap");
                    self.gap(lsn, lsn);
                    self.work = None;
                    return true;
                }
                None => {
                    self.work = None;
                    return true;
                }
            }
        }
        false
    }

    fn row(&mut self, row: RowChange) {
        let (Some(rules), Some(work)) = (&self.current, &self.work) else { return };
        let oid = row.relation.oid;
        let Some(table) = rules.catalog.table(oid) else { return self.unknown_table(&row) };
        if !table.published.as_ref().is_some_and(|p| matching::is_published(p, &row.change)) {
            return;
        }
        let Some(index) = self.registry.table(oid) else { return };
        index.fit(&row.relation, &rules.catalog);
        let now = self.deps.clock.unix_seconds();
        let metrics = &self.deps.metrics;
        let judgement = self.matcher.judge(&mut self.registry, &row, now, metrics);
        if judgement.permits.is_empty() && judgement.asked.is_empty() && judgement.undecided.is_empty() {
            return;
        }
        let bytes = (work.transaction.body.len() / u64::from(work.transaction.items.max(1))) as usize;
        metrics.undecided_gaps.inc_by(judgement.undecided.len() as u64);
        let event = matching::event(row, work.transaction.commit_time, rules.catalog.types());
        if judgement.asked.is_empty() && self.lane.is_empty() {
            let sent = matching::emit(&mut self.out, &event, judgement.permits, &judgement.undecided);
            metrics.deliveries.inc_by(sent);
            return;
        }
        for port in &judgement.undecided {
            matching::notify(&mut self.out, port, false, UNDECIDED);
        }
        let xids = self.shared_xids.get_or_insert_with(|| self.xids.iter().copied().collect()).clone();
        let (permits, asked) = (judgement.permits, judgement.asked);
        self.lane.push(LaneRow { event, permits, asked, xids, bytes });
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
        for channel in self.registry.channels() {
            if channel.entries.iter().any(|entry| resolve::names(entry, schema, table)) {
                matching::notify(&mut self.out, &channel.port, false, UNDECIDED);
                self.deps.metrics.undecided_gaps.inc();
            }
        }
    }

    fn leave_lane(&mut self) {
        while let Some(mut row) = self.lane.pop() {
            let now = self.deps.clock.unix_seconds();
            let undecided = matching::settle(&mut row, &self.registry, now, &self.deps.metrics);
            self.deps.metrics.undecided_gaps.inc_by(undecided.len() as u64);
            let sent = matching::emit(&mut self.out, &row.event, row.permits, &undecided);
            self.deps.metrics.deliveries.inc_by(sent);
        }
    }

    async fn flush(&mut self) {
        for (out, shard) in self.out.iter_mut().zip(&self.deps.shards) {
            if !out.is_empty() {
                let batch: Batch = std::mem::take(out);
                // A shard never waits for a socket, so this waits for processor time only. It is gone at the drain.
                let _ = shard.send(batch).await;
            }
        }
    }

    // --- Rules.

    fn on_rules(&mut self) {
        let Some(rules) = self.rules.latest() else { return };
        let before = self.current.replace(rules.clone());
        let catalog = &rules.catalog;
        self.xids.retain(|xid| !rules.snapshot.sees(*xid));
        self.shared_xids = None;
        let Some(before) = before else { return };
        if Arc::ptr_eq(&before.catalog, catalog) {
            return;
        }
        let reshaped = reshaped(&before.catalog, catalog);
        if !reshaped.is_empty() {
            let concerned = |entry: &Entry| match (&entry.schema, &entry.table) {
                (Name::Is(schema), Name::Is(table)) => reshaped.contains(&(schema.to_string(), table.to_string())),
                _ => true,
            };
            let channels = self.registry.channels().filter(|c| c.entries.iter().any(concerned));
            let again: Vec<_> = channels.map(|c| (c.port.id, c.entries.clone(), c.principal.clone())).collect();
            for (id, entries, principal) in again {
                self.revalidate(id, entries, principal, Duration::ZERO);
            }
        }
        self.registry.apply_rules(catalog);
    }

    fn revalidate(&mut self, id: ChannelId, entries: Arc<Vec<Entry>>, principal: Arc<Principal>, pause: Duration) {
        self.revalidating.insert(id);
        let ticket = self.ticket(id);
        let (rules, validator) = (self.rules.clone(), self.validator.clone());
        self.resolving.spawn(async move {
            tokio::time::sleep(pause).await;
            let result = resolve::resolve(rules, validator, &entries, &principal).await;
            Resolving { ticket, id, why: Why::Again, result }
        });
    }

    fn ticket(&mut self, id: ChannelId) -> u64 {
        self.next_ticket += 1;
        self.tickets.insert(id, self.next_ticket);
        self.next_ticket
    }

    // --- Commands.

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Subscribe { port, entries, principal, reply } => {
                self.subscribe(port, Arc::new(entries), principal, reply);
            }
            Command::Reclaim { id, principal, reply } => match self.registry.get(id) {
                Some(channel) => {
                    let (port, entries) = (channel.port.clone(), channel.entries.clone());
                    self.subscribe(port, entries, principal, reply);
                }
                None => {
                    let message = "The channel has no active subscription".into();
                    let _ = reply.send(Err(SubscribeError { message, retry: false }));
                }
            },
            Command::Leave { id } => {
                self.forget(id);
                self.count();
            }
        }
    }

    fn forget(&mut self, id: ChannelId) {
        self.tickets.remove(&id);
        self.revalidating.remove(&id);
        self.registry.remove(id);
    }

    fn subscribe(&mut self, port: Arc<Port>, entries: Arc<Vec<Entry>>, principal: Arc<Principal>, reply: Reply) {
        let id = port.id;
        let ticket = self.ticket(id);
        // A re-validation under way is superseded: this resolution sees the same rules or newer ones.
        let (rules, validator) = (self.rules.clone(), self.validator.clone());
        self.resolving.spawn(async move {
            let result = resolve::resolve(rules, validator, &entries, &principal).await;
            Resolving { ticket, id, why: Why::Subscribe { port, entries, principal, reply }, result }
        });
    }

    fn on_resolved(&mut self, done: Result<Resolving, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.try_into_panic().unwrap_or_else(|_| Box::new("cancelled"))),
        };
        if self.tickets.get(&done.id) != Some(&done.ticket) {
            return;
        }
        // The reading that it was resolved against may not have reached us yet.
        self.on_rules();
        let Some(current) = self.current.clone() else { return };
        let stale = matches!(&done.result, Ok((_, rules)) if !Arc::ptr_eq(&rules.catalog, &current.catalog));
        match done.why {
            Why::Subscribe { port, entries, principal, reply } if stale => {
                self.subscribe(port, entries, principal, reply);
            }
            Why::Subscribe { port, entries, principal, reply } => {
                self.tickets.remove(&done.id);
                self.revalidating.remove(&done.id);
                let result = done.result.map(|(targets, _)| {
                    let from = self.position();
                    self.registry.activate(port, principal, entries, targets, from, &current.catalog);
                });
                if result.as_ref().is_err_and(|e| !e.retry) {
                    self.registry.remove(done.id);
                }
                self.count();
                if reply.send(result).is_err() {
                    // Who asked is gone, and would not know that it must leave.
                    self.registry.remove(done.id);
                }
            }
            Why::Again => self.on_revalidated(done.id, done.result, stale, &current.catalog),
        }
    }

    fn on_revalidated(
        &mut self,
        id: ChannelId,
        result: Result<(Vec<Target>, Rules), SubscribeError>,
        stale: bool,
        catalog: &Catalog,
    ) {
        let Some(channel) = self.registry.get(id) else { return self.forget(id) };
        let (port, entries, principal) = (channel.port.clone(), channel.entries.clone(), channel.principal.clone());
        match result {
            Ok(_) if stale => self.revalidate(id, entries, principal, Duration::ZERO),
            Err(error) if error.retry => self.revalidate(id, entries, principal, Duration::from_secs(1)),
            Ok((targets, _)) => {
                self.registry.retarget(id, targets, catalog);
                self.settled(id);
                matching::notify(&mut self.out, &port, true, "Subscribed to PostgreSQL");
            }
            Err(error) => {
                self.forget(id);
                matching::notify(&mut self.out, &port, false, &error.message);
            }
        }
        self.count();
    }

    fn settled(&mut self, id: ChannelId) {
        self.tickets.remove(&id);
        self.revalidating.remove(&id);
    }

    fn count(&self) {
        self.deps.metrics.subscriptions.set(self.registry.subscriptions() as i64);
    }
}

/// Names of the published tables that came, went, or changed their columns or key.
fn reshaped(before: &Catalog, after: &Catalog) -> AHashSet<(String, String)> {
    let same = |a: &crate::catalog::Table, b: &crate::catalog::Table| {
        (a.oid, &a.columns, &a.primary_key) == (b.oid, &b.columns, &b.primary_key)
    };
    let differs = |one: &Catalog, other: &Catalog| {
        let gone = one.tables().filter(|t| !other.find(&t.schema, &t.name).is_some_and(|o| same(t, o)));
        gone.map(|t| (t.schema.clone(), t.name.clone())).collect::<Vec<_>>()
    };
    differs(before, after).into_iter().chain(differs(after, before)).collect()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
