//! Where a channel belongs: live, in which pass, or aside.

use std::collections::BTreeSet;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::pass::Pass;
use super::{MOVED, NEAR, NEAR_ITEMS, NEAR_TRANSACTIONS, PARKED_LOOK, PAUSE, SHARED_BYTES};
use crate::change::{Lsn, Position, Timestamp};
use crate::error::chain;
use crate::hub::gaps::{before, end_of};
use crate::hub::registry::{At, Channel, Froms};
use crate::hub::run::Hub;
use crate::hub::{ChannelId, Entry, GapReason, Outgoing, Port, Start, SubscribeError};
use crate::log::{Log, LogError, Place};
use crate::resume::Cursor;

/// A gap that a channel begins with: from where, to where, why.
pub(in crate::hub) type Missing = (Option<Cursor>, Option<Cursor>, GapReason);

/// Times that entries begin at, and behind which place of the log what committed since is.
pub(in crate::hub) type Moments = Vec<(Timestamp, Lsn)>;

/// Looks the times up at which entries begin.
pub(in crate::hub) async fn moments(log: Log, entries: &[Entry]) -> Result<Moments, SubscribeError> {
    let times: Vec<Timestamp> = entries
        .iter()
        .filter_map(|entry| match entry.start {
            Start::Time(time) => Some(time),
            Start::Now | Start::After(_) | Start::Lost => None,
        })
        .collect();
    if times.is_empty() {
        return Ok(Moments::new());
    }
    let unreadable = |error: LogError| {
        tracing::error!(error = %chain(&error), "the log can't be searched for a time");
        SubscribeError { message: "Unable to subscribe to changes: the log can't be searched".into(), retry: true }
    };
    let mut moments = Moments::new();
    for time in times {
        moments.push((time, log.find(time).await.map_err(unreadable)?));
    }
    Ok(moments)
}

impl Hub {
    /// Where the entries of a channel begin, and what of it can't be given. `snapped`: for those that have a snapshot.
    pub(in crate::hub) fn begin_at(
        &self,
        entries: &[Entry],
        moments: &Moments,
        snapped: Option<Position>,
    ) -> (Froms, SmallVec<[Missing; 1]>) {
        let mut missing: SmallVec<[Missing; 1]> = SmallVec::new();
        let mut miss = |gap: Missing| {
            if !missing.contains(&gap) {
                missing.push(gap);
            }
        };
        let now = self.position();
        let mut froms: Froms = entries
            .iter()
            .map(|entry| match (snapped.filter(|_| entry.snapshot.is_some()), entry.start) {
                (Some(snapped), _) => snapped,
                (None, Start::Now) => now,
                (None, Start::After(cursor)) => match self.standing(cursor) {
                    Ok(()) => cursor.position,
                    Err((reason, from)) => {
                        miss((Some(cursor), self.cursor(from), reason));
                        from
                    }
                },
                (None, Start::Time(time)) => {
                    let floor = self.deps.log.floor();
                    let found = moments.iter().find(|(known, _)| *known == time).map_or(floor, |(_, at)| *at);
                    if found < floor {
                        // Nothing that is kept is older, so nobody can tell whether something is missing.
                        miss((None, self.cursor(end_of(floor)), GapReason::Expired));
                    }
                    end_of(found.max(floor))
                }
                (None, Start::Lost) => {
                    miss((None, self.cursor(now), GapReason::Unknown));
                    now
                }
            })
            .collect();
        if froms.iter().all(|from| Some(from) == froms.first()) {
            froms.truncate(1);
        }
        (froms, missing)
    }

    /// Whether everything after a place can be given; if not, why, and from where on it can.
    fn standing(&self, cursor: Cursor) -> Result<(), (GapReason, Position)> {
        let (log, at) = (&self.deps.log, cursor.position);
        match log.place(cursor.epoch, at) {
            Place::Expired => Err((GapReason::Expired, end_of(log.floor()))),
            Place::Here if log.written().is_none_or(|written| at.lsn <= written) => Ok(()),
            // Also of a place that this history has never come to: of a copy, or of what a crash took back.
            Place::Here | Place::Diverged => Err((GapReason::Diverged, self.position())),
        }
    }

    /// Has a channel served from where it begins.
    pub(in crate::hub) fn place(&mut self, id: ChannelId) {
        let Some(current) = self.current.clone() else { return };
        let is_current = self.reader.is_current();
        if self.awaits_snapshot(id) {
            self.registry.put(id, At::Snapshot, |_| {}, &current.catalog);
            return self.holds.stir(id);
        }
        if is_current {
            // Another history may have begun while it was aside: what there is of that it gets.
            self.begin_where_they_part(id);
        }
        let Some(channel) = self.registry.get(id) else { return };
        let (from, port) = (channel.from(), channel.port.clone());
        if channel.targets.is_empty() {
            // It waits for a table.
            return self.registry.put(id, At::Paused, |_| {}, &current.catalog);
        }
        let (epoch, same) = (self.epoch, channel.epoch == self.epoch);
        let at = if !is_current && !same {
            // Which of its places are shared can't be told before the stream has come to the last history.
            At::Waiting
        } else if from >= self.judged() {
            At::Live
        } else if is_current {
            self.choose(from).map_or(At::Waiting, At::Pass)
        } else {
            At::Waiting
        };
        let begin = |channel: &mut Channel| channel.epoch = if is_current { epoch } else { channel.epoch };
        self.registry.put(id, at, begin, &current.catalog);
        match at {
            At::Live => return self.is_live(id, &port, from),
            At::Pass(pass) => {
                let pass = self.passes.passes.get_mut(pass).and_then(Option::as_mut);
                pass.into_iter().for_each(|pass| pass.join(id));
            }
            At::Waiting | At::Parked | At::Paused | At::Snapshot | At::Expired => {
                self.passes.waiting.insert((from, id));
            }
        }
        self.holds.stir(id);
    }

    pub(super) fn is_live(&mut self, id: ChannelId, port: &Arc<Port>, from: Position) {
        self.holds.stir(id);
        if self.lane.waits(id) {
            self.passes.arriving.insert(id);
            return;
        }
        let at = self.lowest([self.cursor(from.max(self.judged())), self.lost(id)]);
        let shard = port.shard % self.out.len();
        self.out[shard].push(Outgoing::Live(port.clone(), at));
    }

    /// A channel may have got the last row that it waited for.
    pub(in crate::hub) fn arrived(&mut self, id: ChannelId) {
        if !self.passes.arriving.is_empty() && !self.lane.waits(id) && self.passes.arriving.remove(&id) {
            let live = self.registry.get(id).filter(|channel| channel.at == At::Live);
            if let Some((port, from)) = live.map(|channel| (channel.port.clone(), channel.from())) {
                self.is_live(id, &port, from);
            }
        }
    }

    /// A pass for what begins here, behind the stream: one that is not past it, or a new one.
    fn choose(&mut self, from: Position) -> Option<usize> {
        let near = self.deps.log.distance(Pass::first(from), self.done);
        let is_near = near.is_some_and(|(count, items)| count < NEAR_TRANSACTIONS && items <= NEAR_ITEMS);
        let passes = &self.passes.passes;
        let open = |pass: &Pass| pass.open_from() <= from;
        if is_near && passes[NEAR].as_ref().is_none_or(|pass| open(pass)) {
            return self.passes.passes[NEAR].is_some().then_some(NEAR).or_else(|| self.begin_pass(NEAR, from));
        }
        let open = (0..NEAR).filter(|at| passes[*at].as_ref().is_some_and(|pass| open(pass)));
        let nearest = open.max_by_key(|at| passes[*at].as_ref().map(|pass| pass.open_from()));
        let is_close = |at: &usize| {
            let lsn = passes[*at].as_ref().map_or(0, |pass| pass.at.lsn.0);
            from.lsn.0.saturating_sub(lsn) <= SHARED_BYTES
        };
        if let Some(close) = nearest.filter(is_close) {
            return Some(close);
        }
        // A free one is for who is the farthest behind: all who wait may join it.
        let is_first = self.passes.waiting.first().is_none_or(|(first, _)| from <= *first);
        let free = (0..NEAR).find(|at| is_first && passes[*at].is_none());
        free.and_then(|free| self.begin_pass(free, from)).or(nearest)
    }

    fn begin_pass(&mut self, at: usize, from: Position) -> Option<usize> {
        let reader = self.deps.log.reader(Pass::first(from));
        // Another history has begun in this moment, which the stream comes to first.
        if !reader.is_beside(&self.reader) {
            return None;
        }
        self.passes.passes[at] = Some(Box::new(Pass::new(reader, from)));
        Some(at)
    }

    /// Channels that were aside and can go on, the one farthest behind first. Says whether there are more.
    pub(super) fn place_again(&mut self, now: Instant) -> bool {
        if !self.passes.parked.is_empty() {
            if now >= self.passes.looked_at + PARKED_LOOK {
                self.passes.looked_at = now;
                self.unpark();
            }
            let at = self.passes.looked_at + PARKED_LOOK;
            self.passes.wake(at);
        }
        let is_free = std::mem::take(&mut self.passes.is_free) || self.passes.passes.iter().any(Option::is_none);
        if self.passes.waiting.is_empty() || !is_free {
            return false;
        }
        // Tried again after a moment if nothing helped.
        self.passes.wake(now + PAUSE);
        if !self.reader.is_current() {
            return false;
        }
        let mut moved = 0;
        // Those nearest the present last: they may have a pass of their own when there is none for the others.
        for next in [BTreeSet::first, BTreeSet::last] {
            while let Some(key) = next(&self.passes.waiting).copied() {
                if moved == MOVED {
                    return true;
                }
                moved += 1;
                self.passes.waiting.remove(&key);
                let is_waiting = |hub: &Hub| hub.registry.get(key.1).is_some_and(|c| c.at == At::Waiting);
                if is_waiting(self) {
                    self.place(key.1);
                }
                // What does not help this one helps nobody on its side of it.
                if is_waiting(self) {
                    break;
                }
            }
        }
        false
    }

    fn unpark(&mut self) {
        let is_parked = |hub: &Hub, id: ChannelId| hub.registry.get(id).is_some_and(|c| c.at == At::Parked);
        let mut ready: Vec<(Position, ChannelId)> = Vec::new();
        let mut parked = std::mem::take(&mut self.passes.parked);
        parked.retain(|id| {
            let Some(channel) = self.registry.get(*id).filter(|channel| channel.at == At::Parked) else { return false };
            if channel.port.burden() > channel.port.outbox.limit() / 8 || self.awaits_right(channel) {
                return true;
            }
            ready.push((channel.from(), *id));
            false
        });
        self.passes.parked = parked;
        ready.sort_unstable();
        for (_, id) in ready {
            if is_parked(self, id) {
                self.place(id);
            }
        }
    }

    /// A channel of a pass gets no more until its connection has taken what it has.
    pub(super) fn park(&mut self, id: ChannelId, at: Position, epoch: Option<u64>) {
        let Some(current) = self.current.clone() else { return };
        if self.registry.get(id).is_some_and(|channel| matches!(channel.at, At::Pass(_))) {
            self.registry.put(id, At::Parked, |channel| advance(channel, at, epoch), &current.catalog);
            self.passes.parked.push(id);
            self.holds.stir(id);
        }
    }

    /// A channel gets nothing until it is decided whether it may; then it goes on from here.
    pub(in crate::hub) fn await_right(&mut self, id: ChannelId, at: Position, epoch: Option<u64>) {
        let Some(current) = self.current.clone() else { return };
        self.registry.put(id, At::Parked, |channel| advance(channel, at, epoch), &current.catalog);
        self.passes.parked.push(id);
        self.holds.stir(id);
    }

    /// A channel gets nothing until its entries are resolved again; then it goes on from here.
    pub(in crate::hub) fn pause(&mut self, id: ChannelId) {
        let (Some(current), Some(channel)) = (self.current.clone(), self.registry.get(id)) else { return };
        let at = match channel.at {
            At::Live => self.cursor(self.judged()),
            _ => self.progress(channel),
        };
        let (at, epoch) = at.map_or((channel.from(), channel.epoch), |at| (at.position, Some(at.epoch)));
        self.registry.put(id, At::Paused, |channel| advance(channel, at, epoch), &current.catalog);
        self.holds.stir(id);
    }
}

impl Hub {
    /// This row was not given to a channel since its token is no longer valid. Nor is anything after it: a new token may be on
    /// its way, and what comes first is judged again by that.
    pub(in crate::hub) fn withhold(&mut self, id: ChannelId, row: Position, epoch: Option<u64>) {
        let Some(current) = self.current.clone() else { return };
        self.registry.put(id, At::Expired, |channel| advance(channel, before(row), epoch), &current.catalog);
        self.holds.stir(id);
    }

    /// Goes on with those whose token is valid after all: the clock was set back.
    pub(in crate::hub) fn relent(&mut self) {
        let now = self.deps.clock.unix_seconds();
        let valid = |channel: &&Channel| channel.at == At::Expired && !channel.principal.is_expired(now);
        let valid: Vec<ChannelId> = self.registry.channels().filter(valid).map(|channel| channel.port.id).collect();
        valid.into_iter().for_each(|id| self.place(id));
    }
}

/// Nothing up to there is for it any more.
pub(super) fn advance(channel: &mut Channel, to: Position, epoch: Option<u64>) {
    channel.froms.iter_mut().for_each(|from| *from = to.max(*from));
    channel.epoch = epoch;
}
