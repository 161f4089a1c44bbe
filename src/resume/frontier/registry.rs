//! Which frontiers there are: pure state, the time passed in.
//!
//! A *slot* holds one frontier: of a connection that is there, or of one that is gone (an *orphan*) and may come back. What a
//! client really has is at its slot's place or later.
//!
//! Tabs of one device share a key, and which of them comes back can't be told. So a join begins at the lowest place of its key
//! and takes over the slot of the *highest* orphan: as many slots are left as tabs may still come, and among them the lowest
//! places, so that whoever comes next begins early enough.
//!
//! A socket that is dead is often noticed only after its successor has come. So a join that finds other connections of its key
//! takes nothing over at once, but is *owed* an orphan. Those connections are asked at once whether their clients are there
//! (`probe`). When each has shown life since or has ended, the join gets the highest of what was orphaned, in truth, before it
//! came: nothing, if it is a new tab.
//!
//! Rejected: dropping an orphan when another tab has passed it (the tab that slept would lose rows), and telling tabs apart by
//! their refs (not every SDK counts on over a reconnect).

mod moved;
mod room;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::key::{Key, Owner, Part};
use super::{Dropped, FrontierConfig};
use crate::resume::Cursor;

/// A slot as its connection knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::resume) struct Handle {
    index: u32,
    tenure: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Live,
    /// Until then.
    Orphan(Instant),
}

#[derive(Debug)]
struct Slot {
    key: Key,
    /// Tells slots of one key apart in the table.
    tab: i32,
    state: State,
    /// Changes whenever another connection gets the slot.
    tenure: u64,
    /// Changes with `state`, so that the queues of orphans know their own.
    turn: u64,
    joined: Instant,
    /// When its client last showed life, as far as is known here.
    alive: Instant,
    /// Since its join.
    owed: Option<Instant>,
    /// Has its connection ask whether its client is there.
    probe: Option<Arc<Notify>>,
    at: Option<Cursor>,
    since: Option<Part>,
    left: bool,
    /// Its number is among those to be saved, be it from before it was given up and made anew.
    queued: bool,
    /// What the table has, as far as we know.
    saved: Option<Cursor>,
    /// The table has a place of it, this one or an earlier one, and not as that of a channel that was left.
    safe: bool,
    /// When that was written, as far as it is known.
    written: Option<Instant>,
}

/// A frontier as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::resume) struct Row {
    pub(in crate::resume) key: Key,
    pub(in crate::resume) tab: i32,
    pub(in crate::resume) at: Cursor,
    pub(in crate::resume) since: Option<Part>,
    pub(in crate::resume) left: bool,
}

/// What is to be written: first what is gone, then what is.
#[derive(Debug, Default)]
pub(in crate::resume) struct Unsaved {
    pub(in crate::resume) gone: Vec<(Key, i32)>,
    pub(in crate::resume) rows: Vec<Row>,
    /// Some of it must not be lost: the table has nothing else of its client.
    pub(in crate::resume) firm: bool,
}

#[derive(Debug)]
pub(super) struct Registry {
    config: FrontierConfig,
    slots: Vec<Slot>,
    free: Vec<u32>,
    owners: HashMap<Owner, Vec<u32>>,
    /// Orphans in the order of their ends, by [`kind_of`].
    orphans: [VecDeque<(u32, u64)>; 4],
    /// To be saved, oldest first.
    unsaved: VecDeque<u32>,
    gone: VecDeque<(Key, i32)>,
    next: u64,
    /// Slots that are owed something.
    owing: usize,
    /// Slots of devices that nobody has signed in on.
    anonymous: usize,
    /// How many were given up before their time, since [`Registry::take_dropped`].
    dropped: Dropped,
}

/// Of users, of devices without one; of channels that were left, by users and without one.
fn kind_of(left: bool, anonymous: bool) -> usize {
    2 * usize::from(left) + usize::from(anonymous)
}

/// Ends of fewer orphans than twice this are not looked through.
const LEAST_SWEPT: usize = 64;

impl Registry {
    pub(super) fn new(config: FrontierConfig) -> Registry {
        Registry {
            config,
            slots: Vec::new(),
            free: Vec::new(),
            owners: HashMap::new(),
            orphans: Default::default(),
            unsaved: VecDeque::new(),
            gone: VecDeque::new(),
            next: 0,
            owing: 0,
            anonymous: 0,
            dropped: Dropped::default(),
        }
    }

    /// How many there are, of connections and orphans.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn live(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == State::Live).count()
    }

    pub(super) fn take_dropped(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }

    pub(super) fn unsaved(&self) -> usize {
        self.unsaved.len() + self.gone.len()
    }

    /// A connection asks for the key, with this mark of a `since`. `otherwise`: where it begins if nothing is known, as far as
    /// that is a place. `epoch`: of the present history; places in others are the lowest. Says where it begins if something is
    /// known; no handle if there is no room.
    pub(super) fn join(
        &mut self,
        key: Key,
        since: Option<Part>,
        otherwise: Option<Cursor>,
        epoch: Option<u64>,
        probe: &Arc<Notify>,
        now: Instant,
    ) -> (Option<Cursor>, Option<Handle>) {
        let all: Vec<u32> = self.of(key).collect();
        // A `since` of its own is what only the same client can have sent.
        let known = |slot: &Slot| since.is_none() || slot.since == since;
        let fitting: Vec<u32> = all.iter().copied().filter(|index| known(&self.slots[*index as usize])).collect();
        let rank = |at: Cursor| (Some(at.epoch) == epoch, at.position);
        let start = fitting.iter().filter_map(|index| self.slots[*index as usize].at).min_by_key(|at| rank(*at));
        let highest = |indexes: &[u32]| {
            let orphan = |index: &u32| matches!(self.slots[*index as usize].state, State::Orphan(_));
            let place = |index: &u32| self.slots[*index as usize].at.map(rank);
            indexes.iter().copied().filter(orphan).max_by_key(place)
        };
        // Some of them may be dead, and nobody has noticed. Who lives shows it now.
        let live = all.iter().map(|index| &self.slots[*index as usize]).filter(|slot| slot.state == State::Live);
        let owed = live.clone().next().is_some().then_some(now);
        live.filter_map(|slot| slot.probe.as_ref()).for_each(|probe| probe.notify_one());
        let taken = if owed.is_none() { highest(&fitting).or_else(|| highest(&all)) } else { None };
        let index = match taken {
            Some(index) => index,
            None if self.room_for(key) => self.insert(key, now),
            None => return (start, None),
        };
        self.next += 1;
        let (tenure, turn) = (self.next, self.next);
        self.owing -= usize::from(self.slots[index as usize].owed.is_some());
        let slot = &mut self.slots[index as usize];
        // A place that is later in the table than here is so because another row there has this one: that may go before this.
        let ahead = slot.saved.is_some_and(|saved| start.is_some_and(|start| rank(start) < rank(saved)));
        let unknown = slot.saved.is_none() || slot.left || slot.since != since || ahead;
        // The word that it was left may be on its way, and what the table has then is soon forgotten.
        slot.safe &= !slot.left;
        (slot.state, slot.tenure, slot.turn) = (State::Live, tenure, turn);
        (slot.joined, slot.alive) = (now, now);
        (slot.owed, slot.at, slot.since, slot.left) = (owed, start.or(otherwise), since, false);
        slot.probe = Some(probe.clone());
        self.owing += usize::from(owed.is_some());
        if unknown {
            self.queue(index);
        }
        (start, Some(Handle { index, tenure }))
    }

    /// The client has everything up to here. `urgent`: and some of it was rows. Never goes back within a history.
    pub(super) fn advance(&mut self, handle: Handle, to: Cursor, urgent: bool) {
        let Some(slot) = self.held(handle) else { return };
        let moves = slot.at.is_none_or(|at| at.epoch != to.epoch || at.position < to.position);
        if moves {
            slot.at = Some(to);
        }
        // What the table has would make it begin elsewhere.
        let far = slot.saved.is_none_or(|saved| saved.epoch != to.epoch);
        if (moves && far) || (urgent && slot.saved != slot.at) {
            self.queue(handle.index);
        }
    }

    /// The connection is over, or the channel. `seen`: when its client last showed life. `left`: the client meant it.
    pub(super) fn end(&mut self, handle: Handle, seen: Instant, left: bool, now: Instant) {
        let Some(slot) = self.held(handle).filter(|slot| slot.state == State::Live) else { return };
        slot.alive = seen.max(slot.alive);
        let key = slot.key;
        if slot.at.is_none() {
            self.release(handle.index);
            return self.settle(key);
        }
        self.orphan(handle.index, left, now + if left { self.config.keep_left } else { self.config.keep });
        if left {
            self.queue(handle.index);
        }
        self.settle(key);
    }

    /// The client has shown life.
    pub(super) fn alive(&mut self, handle: Handle, now: Instant) {
        let Some(slot) = self.held(handle) else { return };
        slot.alive = now;
        let key = slot.key;
        self.settle(key);
    }

    /// Gives joins what they are owed, as soon as it is certain what that is.
    fn settle(&mut self, key: Key) {
        while self.owing > 0 {
            let owed = self.of(key).filter_map(|index| Some((self.slots[index as usize].owed?, index))).min();
            let Some((since, creditor)) = owed else { return };
            let others: Vec<u32> = self.of(key).filter(|index| *index != creditor).collect();
            let silent = |index: &u32| self.slots[*index as usize].alive <= since;
            let is_live = |index: &u32| self.slots[*index as usize].state == State::Live;
            if others.iter().any(|index| silent(index) && is_live(index)) {
                return;
            }
            // Of another history is the lowest, and so the last to go; within it, by place.
            let here = self.slots[creditor as usize].at.map(|at| at.epoch);
            let rank = |index: &u32| self.slots[*index as usize].at.map(|at| (Some(at.epoch) == here, at.position));
            let highest = others.iter().copied().filter(silent).max_by_key(rank);
            self.slots[creditor as usize].owed = None;
            self.owing -= 1;
            if let Some(index) = highest {
                // Had it been known, the join would have begun there.
                let before = others.iter().filter(|index| self.slots[**index as usize].joined <= since).count();
                let place = self.slots[index as usize].at.filter(|_| before == 1);
                if let Some(place) = place {
                    let later = |at: &Cursor| at.epoch == place.epoch && at.position < place.position;
                    let slot = &mut self.slots[creditor as usize];
                    slot.at = slot.at.map(|at| if later(&at) { place } else { at });
                }
                self.release(index);
            }
        }
    }

    /// Gives up what was kept long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        for which in 0..self.orphans.len() {
            while let Some((index, turn)) = self.orphans[which].front().copied() {
                let slot = &self.slots[index as usize];
                let current = slot.turn == turn;
                if current && !matches!(slot.state, State::Orphan(until) if until <= now) {
                    break;
                }
                self.orphans[which].pop_front();
                if current {
                    self.dropped.expired += 1;
                    self.release(index);
                }
            }
        }
    }

    /// Has everything saved whose saved place is so far behind that it matters: below `lowest`, of its history. And of those
    /// that are there, what was written so long ago that a restart would find it too old.
    pub(super) fn save_behind(&mut self, epoch: u64, lowest: crate::change::Position, now: Instant) {
        let old = |slot: &Slot| {
            let long_ago = |written: Instant| now.saturating_duration_since(written) >= self.config.keep / 2;
            slot.state == State::Live && slot.saved.is_some() && slot.written.is_some_and(long_ago)
        };
        let behind = |slot: &Slot| {
            let (Some(at), Some(saved)) = (slot.at, slot.saved) else { return slot.at.is_some() };
            at != saved && (saved.epoch != epoch || saved.position < lowest)
        };
        let all: Vec<u32> = (0..self.slots.len() as u32)
            .filter(|index| {
                let slot = &self.slots[*index as usize];
                slot.state != State::Free && (behind(slot) || old(slot))
            })
            .collect();
        all.into_iter().for_each(|index| self.queue(index));
    }

    /// Has everything saved that has moved.
    pub(super) fn save_all(&mut self) {
        for index in 0..self.slots.len() as u32 {
            let slot = &self.slots[index as usize];
            if slot.state != State::Free && slot.at.is_some() && slot.saved != slot.at {
                self.queue(index);
            }
        }
    }

    /// The oldest of what is to be saved.
    pub(super) fn take_unsaved(&mut self, most: usize) -> Unsaved {
        // What took the place of something that is gone must be there before that goes.
        let behind = if self.unsaved.len() > most { 0 } else { self.gone.len().min(most) };
        let gone: Vec<(Key, i32)> = self.gone.drain(..behind).collect();
        // Somebody else has the same number by now.
        let again = |(key, tab): &(Key, i32)| self.of(*key).any(|index| self.slots[index as usize].tab == *tab);
        let gone = gone.into_iter().filter(|row| !again(row)).collect();
        let (mut rows, mut firm) = (Vec::new(), false);
        while rows.len() < most
            && let Some(index) = self.unsaved.pop_front()
        {
            let slot = &mut self.slots[index as usize];
            slot.queued = false;
            let Some(at) = slot.at.filter(|_| slot.state != State::Free) else { continue };
            slot.saved = Some(at);
            firm |= !slot.safe && !slot.left;
            rows.push(Row { key: slot.key, tab: slot.tab, at, since: slot.since, left: slot.left });
        }
        Unsaved { gone, rows, firm }
    }

    /// It was saved.
    pub(super) fn saved(&mut self, unsaved: &Unsaved, now: Instant) {
        for row in &unsaved.rows {
            let found = self.of(row.key).find(|index| self.slots[*index as usize].tab == row.tab);
            if let Some(index) = found {
                let slot = &mut self.slots[index as usize];
                (slot.safe, slot.written) = (!row.left, Some(now));
            }
        }
    }

    /// Whether its client would go on from somewhere if this process ended now.
    pub(super) fn is_safe(&self, handle: Handle) -> bool {
        let held =
            self.slots.get(handle.index as usize).filter(|slot| slot.tenure == handle.tenure && slot.at.is_some());
        // Of tabs that share a key each begins at the lowest place.
        held.is_none_or(|slot| {
            let mut all = self.of(slot.key).map(|index| &self.slots[index as usize]);
            slot.safe || all.any(|slot| slot.safe && !slot.left)
        })
    }

    /// It could not be saved: it is to be tried again.
    pub(super) fn not_saved(&mut self, unsaved: Unsaved) {
        for row in unsaved.rows {
            let found = self.of(row.key).find(|index| self.slots[*index as usize].tab == row.tab);
            if let Some(index) = found {
                self.slots[index as usize].saved = None;
                self.queue(index);
            }
        }
        for (key, tab) in unsaved.gone {
            self.forget_row(key, tab);
        }
    }

    /// What the table has, oldest first, each with how long ago it was saved. `stale`: somebody else has kept it since, and what
    /// is here of connections that are gone is older. Of what is not there at all, only this is known: it may cost repeats.
    pub(super) fn load(&mut self, rows: Vec<(Row, Duration)>, stale: bool, now: Instant) {
        if stale {
            let known: HashSet<Key> = rows.iter().map(|(row, _)| row.key).collect();
            let orphan = |index: &u32| {
                let slot = &self.slots[*index as usize];
                matches!(slot.state, State::Orphan(_)) && known.contains(&slot.key)
            };
            let orphans: Vec<u32> = (0..self.slots.len() as u32).filter(orphan).collect();
            orphans.into_iter().for_each(|index| self.release(index));
            self.gone.clear();
            // What was on its way then is not in the table, and what was there may be anything.
            for index in 0..self.slots.len() as u32 {
                let slot = &mut self.slots[index as usize];
                (slot.saved, slot.safe) = (None, false);
                if slot.state != State::Free {
                    self.queue(index);
                }
            }
        }
        for (row, age) in rows {
            let keep = if row.left { self.config.keep_left } else { self.config.keep };
            let Some(rest) = keep.checked_sub(age).filter(|_| self.room_for(row.key)) else {
                self.dropped.expired += 1;
                self.forget_row(row.key, row.tab);
                continue;
            };
            let clash = self.of(row.key).find(|index| self.slots[*index as usize].tab == row.tab);
            if let Some(index) = clash {
                let used: Vec<i32> = self.of(row.key).map(|index| self.slots[index as usize].tab).collect();
                let tab = (row.tab.saturating_add(1)..).find(|tab| !used.contains(tab)).unwrap_or_default();
                let slot = &mut self.slots[index as usize];
                (slot.tab, slot.saved, slot.safe) = (tab, None, false);
                self.queue(index);
            }
            let index = self.insert(row.key, now);
            let slot = &mut self.slots[index as usize];
            (slot.tab, slot.at, slot.saved, slot.since) = (row.tab, Some(row.at), Some(row.at), row.since);
            (slot.safe, slot.written) = (!row.left, now.checked_sub(age));
            self.orphan(index, row.left, now + rest);
        }
    }

    /// Ends that are kept in mind, of orphans and of what was one.
    #[cfg(test)]
    pub(super) fn ends(&self) -> usize {
        self.orphans.iter().map(VecDeque::len).sum()
    }

    #[cfg(test)]
    pub(super) fn peek(&self, key: Key) -> Option<Cursor> {
        self.of(key).filter_map(|index| self.slots[index as usize].at).min_by_key(|at| at.position)
    }

    // --- Slots.

    fn of(&self, key: Key) -> impl Iterator<Item = u32> + '_ {
        let all = self.owners.get(&key.owner).into_iter().flatten().copied();
        all.filter(move |index| self.slots[*index as usize].key == key)
    }

    fn held(&mut self, handle: Handle) -> Option<&mut Slot> {
        self.slots.get_mut(handle.index as usize).filter(|slot| slot.tenure == handle.tenure)
    }

    fn free_tab(&self, key: Key) -> i32 {
        let mut used: Vec<i32> = self.of(key).map(|index| self.slots[index as usize].tab).collect();
        used.sort_unstable();
        used.dedup();
        used.iter().zip(0..).find(|(used, tab)| *used != tab).map_or(used.len() as i32, |(_, tab)| tab)
    }

    fn insert(&mut self, key: Key, now: Instant) -> u32 {
        let tab = self.free_tab(key);
        let slot = Slot {
            key,
            tab,
            state: State::Live,
            tenure: 0,
            turn: 0,
            joined: now,
            alive: now,
            owed: None,
            probe: None,
            at: None,
            since: None,
            left: false,
            queued: false,
            saved: None,
            safe: false,
            written: None,
        };
        let index = match self.free.pop() {
            Some(index) => {
                let queued = self.slots[index as usize].queued;
                self.slots[index as usize] = Slot { queued, ..slot };
                index
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.owners.entry(key.owner).or_default().push(index);
        self.anonymous += usize::from(key.anonymous);
        index
    }

    fn orphan(&mut self, index: u32, left: bool, until: Instant) {
        self.next += 1;
        let turn = self.next;
        let slot = &mut self.slots[index as usize];
        (slot.state, slot.turn, slot.left) = (State::Orphan(until), turn, left);
        slot.probe = None;
        let which = kind_of(left, slot.key.anonymous);
        let (queue, slots) = (&mut self.orphans[which], &self.slots);
        queue.push_back((index, turn));
        // Who comes back leaves his entry behind, and the first of them may be of somebody who does not come back for days. Each
        // slot has one that counts, so at least half of them go, which pays for the look at all.
        if queue.len() > 2 * slots.len().max(LEAST_SWEPT) {
            queue.retain(|(index, turn)| slots[*index as usize].turn == *turn);
        }
    }

    fn release(&mut self, index: u32) {
        self.next += 1;
        let (turn, slot) = (self.next, &mut self.slots[index as usize]);
        let (key, tab, was_saved) = (slot.key, slot.tab, slot.saved.is_some());
        (slot.state, slot.turn, slot.tenure, slot.at) = (State::Free, turn, turn, None);
        slot.probe = None;
        self.owing -= usize::from(slot.owed.take().is_some());
        self.free.push(index);
        self.anonymous -= usize::from(key.anonymous);
        if let Some(owned) = self.owners.get_mut(&key.owner) {
            owned.retain(|other| *other != index);
            if owned.is_empty() {
                self.owners.remove(&key.owner);
            }
        }
        if was_saved {
            self.forget_row(key, tab);
        }
    }

    fn forget_row(&mut self, key: Key, tab: i32) {
        // What does not fit stays in the table until it is too old: repeats, no loss.
        if self.gone.len() < self.config.most {
            self.gone.push_back((key, tab));
        }
    }

    fn queue(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.queued && slot.at.is_some() {
            slot.queued = true;
            self.unsaved.push_back(index);
        }
    }
}
