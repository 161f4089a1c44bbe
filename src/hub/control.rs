//! What changes the hub's state between two rows: rules, commands, and entries that were resolved beside it.
//!
//! Each resolution has a ticket; only the latest of a channel counts, and a channel that left has none. While an active channel
//! is resolved again because a table changed, no row is judged at all: a filter bound to yesterday's columns must not decide.
//! That is for a moment only: a channel that takes longer gets nothing, and is told of a gap, until it is resolved.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::oneshot;
use tokio::task::{JoinError, unconstrained};
use tokio::time::Instant;

use super::event::{Details, GapReason, Greeting, Outgoing};
use super::filters::Owner;
use super::matching;
use super::messages::NO_TABLE;
use super::registry::{At, Channel};
use super::replay::{self, Moments};
use super::reshaped::reshaped;
use super::resolve::{self, Target};
use super::rules::Rules;
use super::run::Hub;
use super::snapshot::{self, Snapped, Taking};
use super::{Activated, ChannelId, Command, Entry, Port, SUBSCRIBED, SubscribeError, Subscribed, Warning};
use crate::catalog::Catalog;
use crate::claims::Principal;
use crate::resume::Cursor;

type Reply = oneshot::Sender<Subscribed>;
type Resolution = Result<(Vec<Target>, Vec<Warning>, Rules), SubscribeError>;

/// Commands, and answers to them, that are taken between two turns.
const AT_ONCE: usize = 256;
/// How long all wait while a channel is resolved again.
const ALL_WAIT: Duration = Duration::from_secs(2);

/// Somebody's entries, resolved.
pub(super) struct Resolved {
    ticket: u64,
    id: ChannelId,
    why: Why,
    result: Resolution,
}

impl Resolved {
    /// What a client's wish would put into force: the targets, the role, and since when it waits for facts.
    pub(super) fn wanted(&mut self) -> Option<(&[Target], &Arc<str>, &mut Option<Instant>)> {
        match (&mut self.why, &self.result) {
            (Why::Subscribe(wish), Ok((targets, ..))) => Some((targets, &wish.principal.role, &mut wish.waits_since)),
            _ => None,
        }
    }
}

enum Why {
    Subscribe(Box<Wish>),
    /// The rules changed under an active channel.
    Again,
}

/// What a client wants, and whom to tell.
struct Wish {
    port: Arc<Port>,
    entries: Arc<Vec<Entry>>,
    principal: Arc<Principal>,
    greeting: Option<Bytes>,
    reply: Reply,
    /// For facts.
    waits_since: Option<Instant>,
    /// What its entries ask for, once it is taken.
    snapped: Option<Snapped>,
    /// Where the times that its entries name are in the log.
    moments: Moments,
}

impl Hub {
    pub(super) fn on_rules(&mut self) {
        let Some(rules) = self.rules.latest() else { return };
        let before = self.current.replace(rules.clone());
        let catalog = &rules.catalog;
        self.members.note_rules(catalog, &self.facts);
        self.xids.retain(|xid| !rules.snapshot.sees(*xid));
        self.snapshots.unseen.seen(&rules.snapshot);
        self.shared_xids = None;
        self.keeper.look_again();
        let Some(before) = before else { return };
        if Arc::ptr_eq(&before.catalog, catalog) {
            return;
        }
        self.note_rules(&before, &rules);
        let reshaped = reshaped(&before.catalog, catalog);
        if !reshaped.is_empty() {
            let concerned = |entry: &Entry, role: &str| reshaped.iter().any(|table| table.concerns(entry, role));
            let channels = self.registry.channels();
            let channels = channels.filter(|c| c.entries.iter().any(|entry| concerned(entry, &c.principal.role)));
            let again: Vec<_> = channels.map(|c| (c.port.id, c.entries.clone(), c.principal.clone())).collect();
            for (id, entries, principal) in again {
                if self.subscribing.contains(&id) {
                    // What is under way is resolved again anyway if it is older than these rules.
                    self.hold(id);
                } else {
                    self.hold(id);
                    self.revalidate(id, entries, principal, Duration::ZERO);
                }
            }
        }
        self.ahead = Some(rules.snapshot.clone());
        self.registry.apply_rules(catalog, &before.catalog);
    }

    /// No row is judged until this channel is resolved, or its time is over.
    fn hold(&mut self, id: ChannelId) {
        self.revalidating.entry(id).or_insert_with(|| Instant::now() + ALL_WAIT);
    }

    /// Others don't wait for what takes long: until these channels are resolved they get nothing, and are told so.
    pub(super) fn on_overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<ChannelId> =
            self.revalidating.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            self.release(id);
        }
        self.count();
    }

    /// Goes on without this channel.
    fn release(&mut self, id: ChannelId) {
        self.revalidating.remove(&id);
        if self.registry.get(id).is_some_and(|channel| channel.at != At::Paused) {
            // What it misses it gets when it is resolved.
            self.pause(id);
            self.note_paused(id, true);
        }
    }

    fn revalidate(&mut self, id: ChannelId, entries: Arc<Vec<Entry>>, principal: Arc<Principal>, pause: Duration) {
        let ticket = self.ticket(id);
        let (rules, validator, options) = (self.rules.clone(), self.validator.clone(), self.config.policy);
        let connection = self.registry.get(id).map_or(0, |channel| channel.port.outbox.number());
        self.resolving.spawn(async move {
            tokio::time::sleep(pause).await;
            let owner = Owner::of(&principal, connection);
            let result = resolve::resolve(rules, validator, &entries, (&principal, &owner), options).await;
            Resolved { ticket, id, why: Why::Again, result }
        });
    }

    fn ticket(&mut self, id: ChannelId) -> u64 {
        self.next_ticket += 1;
        self.tickets.insert(id, self.next_ticket);
        self.next_ticket
    }

    // --- Commands.

    /// What has come by now: many come at once, and each turn in between has work of its own.
    pub(super) fn take_commands(&mut self) {
        for _ in 0..AT_ONCE {
            match self.commands.try_recv() {
                Ok(command) => self.on_command(command),
                Err(_) => return,
            }
        }
    }

    /// The same for what was resolved.
    pub(super) fn take_resolved(&mut self) {
        for _ in 0..AT_ONCE {
            match self.resolving.try_join_next() {
                Some(done) => self.on_resolved(done),
                None => return,
            }
        }
    }

    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Subscribe { port, entries, principal, greeting, reply } => {
                self.subscribe(Wish {
                    port,
                    entries: Arc::new(entries),
                    principal,
                    greeting,
                    reply,
                    waits_since: None,
                    snapped: None,
                    moments: Moments::new(),
                });
            }
            Command::Reclaim { id, principal, reply } => match self.registry.get(id) {
                Some(channel) => {
                    let (port, entries) = (channel.port.clone(), channel.entries.clone());
                    let (greeting, waits_since, snapped, moments) = (None, None, None, Moments::new());
                    self.subscribe(Wish { port, entries, principal, greeting, reply, waits_since, snapped, moments });
                }
                None => {
                    // Ended by us, or never begun: the session asks for it anew.
                    let message = "The channel has no active subscription".into();
                    let _ = reply.send(Err(SubscribeError { message, retry: true }));
                }
            },
            Command::Describe { reply } => drop(reply.send(self.describe())),
            Command::Look { look, reply } => drop(reply.send(self.look(&look))),
            Command::Judge { row, principal, reply } => drop(reply.send(self.judge_now(&row, &principal))),
            Command::Rights { asking, way, expected, reply } => self.on_rights_asked(asking, way, expected, reply),
            Command::Footing { reply } => drop(reply.send(self.footing())),
            Command::Watch(watched) => self.on_watch(watched),
            Command::Leave { id } => {
                self.forget(id);
                self.count();
            }
        }
    }

    fn forget(&mut self, id: ChannelId) {
        self.subscribing.remove(&id);
        self.tickets.remove(&id);
        self.revalidating.remove(&id);
        self.snapshots.sending.remove(&id);
        self.remove(id);
    }

    fn subscribe(&mut self, mut wish: Wish) {
        let id = wish.port.id;
        let ticket = self.ticket(id);
        self.subscribing.insert(id);
        // A re-validation under way is superseded: this resolution sees the same rules or newer ones.
        let log = self.deps.log.clone();
        let (rules, validator, options) = (self.rules.clone(), self.validator.clone(), self.config.policy);
        let mut resolution = Box::pin(async move {
            let owner = Owner::of(&wish.principal, wish.port.outbox.number());
            let result = async {
                wish.moments = replay::moments(log, &wish.entries).await?;
                resolve::resolve(rules, validator, &wish.entries, (&wish.principal, &owner), options).await
            };
            let result = result.await;
            Resolved { ticket, id, why: Why::Subscribe(Box::new(wish)), result }
        });
        // Most who come wait for nothing. In a storm, when thousands of tasks want to run, one more for each would make each wait
        // for all of them twice.
        let is_new = self.registry.get(id).is_none();
        match is_new.then(|| unconstrained(resolution.as_mut()).now_or_never()).flatten() {
            Some(done) => self.on_resolved(Ok(done)),
            None => drop(self.resolving.spawn(resolution)),
        }
    }

    pub(super) fn on_resolved(&mut self, done: Result<Resolved, JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.try_into_panic().unwrap_or_else(|_| Box::new("cancelled"))),
        };
        // The reading that it was resolved against may not have reached us yet; or a newer one has, which asks again.
        self.on_rules();
        if self.tickets.get(&done.id) != Some(&done.ticket) {
            return;
        }
        let Some(current) = self.current.clone() else { return };
        let stale = matches!(&done.result, Ok((.., rules)) if !Arc::ptr_eq(&rules.catalog, &current.catalog));
        let done = if stale {
            done
        } else {
            match self.waits_for_facts(done) {
                Some(done) => match self.snapped(done) {
                    Some(done) => done,
                    None => return,
                },
                None => return,
            }
        };
        match done.why {
            Why::Subscribe(wish) if stale => self.subscribe(Wish { snapped: None, ..*wish }),
            Why::Subscribe(wish) => {
                let Wish { port, entries, principal, greeting, reply, snapped, moments, .. } = *wish;
                let may_pass = done.result.as_ref().is_err_and(|e| e.retry);
                if may_pass && self.revalidating.contains_key(&done.id) {
                    // What it has is bound to yesterday's columns.
                    self.release(done.id);
                }
                self.settled(done.id);
                self.subscribing.remove(&done.id);
                if let Some((targets, known)) = self.in_force(done.id, &port, &principal, &entries).filter(|_| may_pass)
                {
                    // A new token of equal rights, and the database could not be asked: what is in force stays.
                    let (at, from) = (known.at, if known.at == At::Live { self.position() } else { known.from() });
                    self.note_active(&port, &principal, &entries, from, true);
                    let channel = Channel { principal: principal.clone(), ..known };
                    self.registry.activate(channel, targets, &current.catalog);
                    match at {
                        At::Expired => self.place(done.id),
                        // It waits for its entries to be resolved, which this wish has taken the place of.
                        At::Paused => self.revalidate(done.id, entries, principal, Duration::from_secs(1)),
                        At::Live | At::Pass(_) | At::Waiting | At::Parked | At::Snapshot => {}
                    }
                    if reply.send(Ok(Activated::default())).is_err() {
                        self.remove(done.id);
                    }
                    return self.count();
                }
                if done.result.as_ref().is_err_and(|e| !e.retry) {
                    self.note_refused(&port, &principal);
                }
                let result = done.result.map(|(targets, warnings, _)| {
                    let come = (greeting, snapped, &moments);
                    self.activate((port, entries, principal), come, (targets, warnings), &current.catalog)
                });
                if result.as_ref().is_err_and(|e| !e.retry) {
                    self.remove(done.id);
                }
                self.count();
                if reply.send(result).is_err() {
                    // Who asked is gone, and would not know that it must leave.
                    self.remove(done.id);
                }
            }
            Why::Again => self.on_revalidated(done.id, done.result, stale, &current.catalog),
        }
    }

    /// Has the snapshots taken that a client's wish asks for and that it has not got; gives it back if there are none to take.
    fn snapped(&mut self, done: Resolved) -> Option<Resolved> {
        let Resolved { ticket, id, why: Why::Subscribe(mut wish), result: Ok((targets, warnings, rules)) } = done
        else {
            return Some(done);
        };
        let is_taken = wish.snapped.as_ref().is_some_and(|snapped| snapped.epoch == self.epoch);
        // An active channel has it, or is getting it; for whom is another question.
        let has_it = self.registry.get(id).is_some()
            && self
                .snapshots
                .sending
                .get(&id)
                .is_none_or(|sending| !sending.has_rows() || sending.is_for(&wish.principal.sharing_key));
        if is_taken || has_it || !snapshot::is_wanted(&wish.entries) {
            return Some(Resolved { ticket, id, why: Why::Subscribe(wish), result: Ok((targets, warnings, rules)) });
        }
        let taking = Taking {
            taker: self.snapshots.taker.clone(),
            validator: self.validator.clone(),
            options: self.config.policy,
            ground: self.snapshots.unseen.ground(self.position()),
            epoch: self.epoch,
        };
        self.resolving.spawn(async move {
            let who = (&*wish.principal, wish.port.outbox.number());
            let taken = taking.take(&rules.catalog, &wish.entries, &targets, who).await;
            let result = taken.map(|snapped| {
                wish.snapped = Some(snapped);
                (targets, warnings, rules)
            });
            Resolved { ticket, id, why: Why::Subscribe(wish), result }
        });
        None
    }

    /// Puts what was resolved into force; says where a channel that was not active begins.
    fn activate(
        &mut self,
        (port, entries, principal): (Arc<Port>, Arc<Vec<Entry>>, Arc<Principal>),
        (greeting, snapped, moments): (Option<Bytes>, Option<Snapped>, &Moments),
        (targets, warnings): (Vec<Target>, Vec<Warning>),
        catalog: &Catalog,
    ) -> Activated {
        let (id, shard) = (port.id, port.shard % self.out.len());
        if let Some(frames) = greeting {
            // Before any row that is emitted from here on.
            self.out[shard].push(Outgoing::Greeting(Greeting { port: port.clone(), frames }));
        }
        // A channel that has a new token stays where it is: rows that wait are still for it.
        let known = self.registry.get(id).filter(|channel| same(&channel.port, &port) && channel.entries == entries);
        if let Some(known) = known {
            let (at, is_empty) = (known.at, known.is_out());
            let is_aside = at != At::Live || snapped.is_some();
            if is_aside {
                // It may have more to look for than the pass that it is in has at hand.
                self.pause(id);
            }
            self.tell_out(id);
            let Some(known) = self.registry.get(id) else {
                return Activated { warnings, ..Activated::default() };
            };
            let mut channel = Channel { principal, ..known.place() };
            if let Some(snapped) = snapped {
                // For other rights than what was being sent.
                channel.begin_snapped(snapped.start);
                channel.seam = Some(snapped.seam.clone());
                self.begin_snapshot(&port, snapped);
            }
            let from = if is_aside { channel.from() } else { self.position() };
            self.note_active(&port, &channel.principal, &channel.entries, from, true);
            self.registry.activate(channel, targets, catalog);
            if at == At::Paused || is_empty {
                self.note_paused(id, false);
            }
            if is_aside {
                self.place(id);
            }
            // What it is still owed may be on its way: it has no place to tell.
            return Activated { warnings, ..Activated::default() };
        }
        self.holds.forget(id);
        self.lane.forget(id);
        self.owing.forget(id);
        let (froms, missing) = self.begin_at(&entries, moments, snapped.as_ref().map(|snapped| snapped.start));
        let (at, seam) = (At::Paused, snapped.as_ref().map(|snapped| snapped.seam.clone()));
        let new = Channel::new(port.clone(), principal, entries);
        let channel = Channel { froms, epoch: self.epoch, at, seam, ..new };
        let from = channel.from();
        self.note_active(&port, &channel.principal, &channel.entries, from, false);
        self.registry.activate(channel, targets, catalog);
        self.keep_replayed(id);
        for (from, to, reason) in missing {
            self.tell_gap(&port, from, to, reason);
        }
        let start = self.cursor(from);
        self.out[shard].push(Outgoing::Begin(port.clone(), start));
        // From within a snapshot there is no going on.
        let cursor = start.filter(|_| snapped.is_none());
        let told = port.place.announces();
        if told {
            matching::notify(&mut self.out, &port, true, SUBSCRIBED, cursor.map(Details::Reached));
            for warning in &warnings {
                matching::notify(&mut self.out, &port, warning.ok, &warning.message, None);
            }
        }
        if let Some(snapped) = snapped {
            self.begin_snapshot(&port, snapped);
        }
        self.place(id);
        Activated { warnings, cursor, told }
    }

    /// What is in force for a channel of just these rights and entries.
    fn in_force(
        &self,
        id: ChannelId,
        port: &Arc<Port>,
        principal: &Principal,
        entries: &Arc<Vec<Entry>>,
    ) -> Option<(Vec<Target>, Channel)> {
        let channel = self
            .registry
            .get(id)
            .filter(|channel| !channel.targets.is_empty() && !channel.is_out() && same(&channel.port, port))?;
        let same = channel.principal.sharing_key == principal.sharing_key && channel.entries == *entries;
        same.then(|| (channel.targets.clone(), channel.place()))
    }

    fn on_revalidated(&mut self, id: ChannelId, result: Resolution, stale: bool, catalog: &Catalog) {
        let Some(channel) = self.registry.get(id) else { return self.forget(id) };
        let (port, entries, principal) = (channel.port.clone(), channel.entries.clone(), channel.principal.clone());
        match result {
            Ok(_) if stale => self.revalidate(id, entries, principal, Duration::ZERO),
            Err(error) if error.retry => {
                self.release(id);
                self.revalidate(id, entries, principal, Duration::from_secs(1));
            }
            Ok((targets, warnings, _)) => {
                let (at, is_empty) = (channel.at, channel.is_out());
                self.keeper.want(&targets, &principal.role);
                if at != At::Live {
                    // It may have more to look for than the pass that it is in has at hand.
                    self.pause(id);
                }
                self.tell_out(id);
                self.registry.retarget(id, targets, catalog);
                if at == At::Paused || is_empty {
                    self.note_paused(id, false);
                }
                let reached = self.registry.get(id).and_then(|channel| self.progress(channel));
                let reached = self.lowest([reached.or_else(|| self.cursor(self.judged())), self.lost(id)]);
                self.settled(id);
                self.tell(&port, true, SUBSCRIBED, reached.map(Details::Reached));
                for warning in warnings {
                    self.tell(&port, warning.ok, &warning.message, None);
                }
                if at != At::Live {
                    self.place(id);
                }
            }
            Err(error) => {
                // Messages, which need no table of the client's, go on. Without any the channel is kept without targets where it
                // is: should the table come back, it is asked again, and goes on from there with all of its tables.
                let messages: Vec<Target> =
                    channel.targets.iter().filter(|target| target.table_oid == NO_TABLE).cloned().collect();
                let (at, is_pausing) = (channel.at, messages.is_empty());
                if is_pausing {
                    self.pause(id);
                } else {
                    let here = self.so_far(id);
                    self.registry.leave_out(id, here);
                }
                self.registry.retarget(id, messages, catalog);
                self.note_paused(id, true);
                self.settled(id);
                self.tell(&port, false, &error.message, None);
                if at == At::Paused && !is_pausing {
                    // It waited for this.
                    self.place(id);
                }
                self.holds.stir(id);
            }
        }
        self.count();
    }

    /// Up to where a channel was given everything, but for what it has lost.
    fn so_far(&self, id: ChannelId) -> Option<Cursor> {
        let channel = self.registry.get(id)?;
        self.progress(channel).or_else(|| self.cursor(self.judged()))
    }

    /// Tells a channel of the rows that it was not given while messages went on without its tables, which are about to be back.
    fn tell_out(&mut self, id: ChannelId) {
        let to = self.so_far(id);
        let Some((port, from)) = self.registry.take_in(id) else { return };
        if self.lowest([Some(from), to]) == Some(from) && Some(from) != to {
            self.tell_gap(&port, Some(from), to, GapReason::Lost);
        }
        self.holds.stir(id);
    }

    fn settled(&mut self, id: ChannelId) {
        self.tickets.remove(&id);
        self.revalidating.remove(&id);
    }

    pub(super) fn count(&self) {
        self.deps.metrics.subscriptions.set(self.registry.subscriptions() as i64);
    }
}

/// A new instance of a channel begins anew.
fn same(one: &Arc<Port>, other: &Arc<Port>) -> bool {
    Arc::ptr_eq(one, other)
}
