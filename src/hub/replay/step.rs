//! A pass goes on: reads, judges, meets the floor, arrives.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::pass::{Next, Pass, PassWork};
use super::place::advance;
use super::{MOVED, NEAR};
use crate::change::{Item, Lsn, Position, Relation, Transaction};
use crate::error::chain;
use crate::hub::gaps::end_of;
use crate::hub::messages::is_of_messages;
use crate::hub::registry::{At, Channel, Froms};
use crate::hub::rows::Origin;
use crate::hub::run::{Hub, may_change_rules};
use crate::hub::{ChannelId, GapReason};
use crate::log::{Epoch, LogError, Read};
use crate::resume::Cursor;

/// Rows of a slice.
const SLICE: u64 = 256;
/// Deliveries of a slice.
const DELIVERIES: usize = 8192;
/// When no more than this is left, it is done at once.
const LAST_TRANSACTIONS: usize = 64;
const LAST_ITEMS: u64 = 1024;
/// A log that can't be read is tried again for ten seconds.
const READ_PAUSE: Duration = Duration::from_millis(100);
const MAX_FAILED_READS: u32 = 100;

/// What a slice may do yet.
struct Budget {
    rows: u64,
    /// [`Hub::queued`] must not exceed this.
    queued: usize,
    /// The last stretch has been granted.
    last: bool,
}

/// How a step of a pass ended.
enum Step {
    Go,
    /// Nothing more for now.
    Stop,
    /// It is over.
    Over,
}

impl Hub {
    /// A slice of one pass, if it can go on.
    pub(super) fn run_pass(&mut self, number: usize, now: Instant) {
        let Some(mut pass) = self.passes.passes[number].take() else { return };
        if !pass.is_ready(now) {
            self.passes.passes[number] = Some(pass);
            return;
        }
        pass.rests_until = None;
        let mut budget = Budget { rows: SLICE, queued: self.queued + DELIVERIES, last: false };
        let over = loop {
            if self.registry.is_empty(At::Pass(number)) {
                break true;
            }
            match self.step(&mut pass, number, &mut budget, now) {
                Step::Go => {}
                Step::Stop => break false,
                Step::Over => break true,
            }
        };
        if over {
            self.passes.is_free = true;
        } else {
            self.passes.passes[number] = Some(pass);
        }
    }

    fn step(&mut self, pass: &mut Pass, number: usize, budget: &mut Budget, now: Instant) -> Step {
        if pass.work.is_some() {
            return self.judge_past(pass, number, budget);
        }
        if pass.at >= end_of(self.done) {
            return if self.go_live(pass, number) { Step::Over } else { Step::Stop };
        }
        if budget.rows == 0 && !self.is_last(pass, budget) {
            return Step::Stop;
        }
        if let Some((transaction, since)) = pass.gated.take() {
            return self.take_up(pass, number, transaction, since, now);
        }
        let read = match pass.next(&self.reader, now) {
            Next::Read(read) => read,
            Next::Later => return Step::Stop,
            Next::End => {
                // Not further than the reader has come: a failed sync takes back from the log what the stream has been through,
                // and it comes again.
                let there = pass.reader.position();
                pass.at = pass.at.max(end_of(there.min(self.done)));
                if there >= self.done {
                    return Step::Go;
                }
                pass.rest(now);
                return Step::Stop;
            }
        };
        if !matches!(read, Ok(Read::Gap { .. })) {
            // Histories may part where nobody is concerned.
            pass.epoch = pass.reader.epoch().map(Epoch::tag);
        }
        match read {
            Ok(Read::Transaction(transaction)) if transaction.end_lsn <= self.done => {
                pass.failed_reads = 0;
                self.take_up(pass, number, transaction, now, now)
            }
            Ok(Read::Idle(lsn)) if lsn <= self.done => {
                pass.at = pass.at.max(end_of(lsn));
                Step::Go
            }
            // Nothing is left before what the stream has not come to.
            Ok(Read::Transaction(_) | Read::Idle(_)) => {
                pass.at = pass.at.max(end_of(self.done));
                self.read_on(pass, number)
            }
            Ok(Read::Gap { resumed, .. }) => {
                self.jump(pass, number, resumed);
                Step::Go
            }
            Err(LogError::Io { .. }) if pass.failed_reads < MAX_FAILED_READS => {
                pass.failed_reads += 1;
                pass.rests_until = Some(now + READ_PAUSE);
                Step::Stop
            }
            Err(error) => {
                // Of damage that lasts, the next segment knows nothing.
                let next = matches!(error, LogError::Damaged { .. })
                    .then(|| self.deps.log.next_segment(pass.reader.position()));
                let (from, to) = (pass.at, end_of(next.flatten().map_or(self.done, |next| next.min(self.done))));
                tracing::error!(%from, %to, error = %chain(&error), "the log can't be read here; those who catch up skip this, and are told of a gap");
                self.lose_stretch(pass, number, to, GapReason::Lost);
                self.read_on(pass, number)
            }
        }
    }

    /// What is behind where the pass is, is read from there on.
    fn read_on(&mut self, pass: &mut Pass, number: usize) -> Step {
        let reader = self.deps.log.reader(Pass::first(pass.at));
        if reader.is_beside(&self.reader) {
            pass.reader = reader;
            return Step::Go;
        }
        // Another history has begun in this moment, which the stream comes to first: then they are placed anew.
        if let Some(current) = self.current.clone() {
            for id in self.members(pass, number) {
                self.registry.put(id, At::Waiting, |channel| advance(channel, pass.at, pass.epoch), &current.catalog);
                let from = self.registry.get(id).map_or(pass.at, Channel::from);
                self.passes.waiting.insert((from, id));
                self.holds.stir(id);
            }
        }
        Step::Over
    }

    /// Whether so little is left that it is done at once; grants it.
    fn is_last(&self, pass: &Pass, budget: &mut Budget) -> bool {
        if budget.last {
            return false;
        }
        budget.last = true;
        let left = self.deps.log.distance(pass.at.lsn, self.done);
        let is_last = left.is_some_and(|(count, items)| count <= LAST_TRANSACTIONS && items <= LAST_ITEMS);
        if is_last {
            budget.rows = LAST_ITEMS;
            budget.queued += DELIVERIES;
        }
        is_last
    }

    /// Begins with a transaction, unless rules or facts for its rows are on their way.
    fn take_up(
        &mut self,
        pass: &mut Pass,
        number: usize,
        transaction: Arc<Transaction>,
        since: Instant,
        now: Instant,
    ) -> Step {
        self.note_change(&transaction);
        let Some(rules) = &self.current else { return Step::Stop };
        let is_seen = rules.snapshot.sees(transaction.xid);
        let waits_for_rules = transaction.rules_changed
            && !is_seen
            && (since.elapsed() < self.config.ask.deadline || may_change_rules(&transaction, &self.relations));
        let waits_for_facts =
            since.elapsed() < self.config.facts.load_deadline && self.keeper.is_awaited(&transaction.relations);
        if waits_for_rules || waits_for_facts {
            if waits_for_rules {
                self.poke_soon();
            }
            pass.gated = Some((transaction, since));
            pass.rest(now);
            return Step::Stop;
        }
        if !is_seen && !self.xids.contains(&transaction.xid) {
            // From before this hub began: a question must wait for it as well.
            self.xids.push_back(transaction.xid);
            self.shared_xids = None;
        }
        let has_messages = self.registry.messages(At::Pass(number)).is_some();
        let wanted = |relation: &Arc<Relation>| {
            let of_messages = is_of_messages(relation);
            self.registry.has_table(At::Pass(number), relation.oid)
                || (of_messages && has_messages)
                || (!of_messages && rules.catalog.table(relation.oid).is_none())
        };
        if !transaction.relations.iter().any(wanted) {
            pass.at = pass.at.max(end_of(transaction.end_lsn));
            return Step::Go;
        }
        let items = transaction.iter_of(wanted);
        pass.work = Some(PassWork { transaction, items, taken: now });
        Step::Go
    }

    /// See [`crate::hub::owing`].
    fn note_change(&mut self, transaction: &Transaction) {
        if self.facts.concerns(&transaction.relations) {
            self.owing.note_change(transaction.end_lsn);
        }
    }

    /// Rows of the transaction at hand.
    fn judge_past(&mut self, pass: &mut Pass, number: usize, budget: &mut Budget) -> Step {
        if let Some(work) = &pass.work {
            // Facts may have come since it was taken up.
            self.note_change(&work.transaction);
        }
        loop {
            if budget.rows == 0 && !self.is_last(pass, budget) {
                return Step::Stop;
            }
            if self.queued > budget.queued || !self.lane.has_room_to_spare() {
                return Step::Stop;
            }
            let Some(work) = &mut pass.work else { return Step::Go };
            match work.items.next() {
                Some(Ok(Item::Row(row))) => {
                    budget.rows = budget.rows.saturating_sub(1);
                    let (at, epoch) = (row.position, pass.epoch);
                    let origin = Origin::of(&work.transaction, work.taken, epoch);
                    self.row(At::Pass(number), row, &origin);
                    pass.at = pass.at.max(at);
                    for id in std::mem::take(&mut self.passes.full) {
                        self.park(id, at, epoch);
                    }
                }
                Some(Ok(Item::Truncate(_) | Item::Message(_))) => {}
                Some(Err(error)) => {
                    let lsn = work.transaction.end_lsn;
                    tracing::error!(%lsn, error = %chain(&error), "a transaction can't be read back; those who catch up are told of a gap");
                    self.lose_stretch(pass, number, end_of(lsn), GapReason::Lost);
                    return self.read_on(pass, number);
                }
                None => {
                    pass.at = pass.at.max(end_of(work.transaction.end_lsn));
                    pass.work = None;
                    return Step::Go;
                }
            }
        }
    }

    /// Who takes part in a pass.
    fn members(&self, pass: &mut Pass, number: usize) -> Vec<ChannelId> {
        let mut members = std::mem::take(&mut pass.members);
        // A channel may have left and come again.
        members.sort_unstable();
        members.dedup();
        members.retain(|id| self.registry.get(*id).is_some_and(|channel| channel.at == At::Pass(number)));
        members
    }

    /// What is up to there can't be given: all whom that concerns are told, and go on behind it.
    fn lose_stretch(&mut self, pass: &mut Pass, number: usize, to: Position, reason: GapReason) {
        let members = self.members(pass, number);
        let concerned: Vec<(ChannelId, Option<Cursor>)> = members
            .iter()
            .filter_map(|id| Some((*id, self.registry.get(*id)?.from().max(pass.at))))
            .filter(|(_, from)| *from < to)
            .map(|(id, position)| (id, pass.epoch.map(|epoch| Cursor { epoch, position })))
            .collect();
        let told = pass.epoch.map(|epoch| Cursor { epoch, position: to });
        self.tell_gaps(&concerned, told, reason);
        self.owing.note_change(to.lsn);
        pass.members = members;
        pass.work = None;
        pass.gated = None;
        pass.at = pass.at.max(to);
        pass.failed_reads = 0;
    }

    /// The log goes on elsewhere: its floor has overtaken the pass, or another history has begun.
    fn jump(&mut self, pass: &mut Pass, number: usize, resumed: Lsn) {
        let (before, to) = (pass.epoch, end_of(resumed));
        pass.epoch = pass.reader.epoch().map(Epoch::tag);
        let told = pass.epoch.map(|epoch| Cursor { epoch, position: to });
        let same = before == pass.epoch;
        let reason = if same { GapReason::Expired } else { GapReason::Lost };
        let members = self.members(pass, number);
        let concerned: Vec<(ChannelId, Option<Cursor>)> = members
            .iter()
            .filter_map(|id| Some((*id, self.registry.get(*id)?.from().max(pass.at))))
            .filter(|(_, from)| !same || *from < to)
            .map(|(id, position)| (id, before.map(|epoch| Cursor { epoch, position })))
            .collect();
        self.tell_gaps(&concerned, told, reason);
        self.owing.note_change(resumed);
        if !same && let Some(current) = self.current.clone() {
            let epoch = pass.epoch;
            let begin = |channel: &mut Channel| (channel.froms, channel.epoch) = (Froms::from_slice(&[to]), epoch);
            members.iter().for_each(|id| self.registry.put(*id, At::Pass(number), begin, &current.catalog));
        }
        (pass.members, pass.work, pass.gated, pass.at) = (members, None, None, to);
    }

    /// The pass has come to the stream: its channels are live from here on. Says whether all are; so many are moved at once.
    fn go_live(&mut self, pass: &mut Pass, number: usize) -> bool {
        let Some(current) = self.current.clone() else { return false };
        let (members, at, epoch) = (self.members(pass, number), pass.at.max(end_of(self.done)), self.epoch);
        let (now, later) = members.split_at(members.len().min(MOVED));
        for id in now {
            self.registry.put(*id, At::Live, |channel| advance(channel, at, epoch), &current.catalog);
            let Some(channel) = self.registry.get(*id) else { continue };
            let (port, from) = (channel.port.clone(), channel.from());
            self.is_live(*id, &port, from);
        }
        if number == NEAR {
            tracing::trace!(channels = now.len(), "caught up");
        } else {
            tracing::debug!(channels = now.len(), %at, "caught up");
        }
        pass.members = later.to_vec();
        later.is_empty()
    }
}
