//! Who has subscribed to what: the channels with their entries, and an index per table.
//!
//! Each channel is in one place ([`At`]): among those who are served live, in a pass through the past, or in none while it waits
//! for something. Live and each pass have indexes of their own, so that a row is looked up among those it may be for.

use std::sync::Arc;

use ahash::AHashMap;
use smallvec::SmallVec;

use super::index::TableIndex;
use super::messages::{MessageIndex, NO_TABLE};
use super::resolve::Target;
use super::slots::Slots;
use super::snapshot::Seam;
use super::{ChannelId, Entry, Port};
use crate::catalog::Catalog;
use crate::change::Position;
use crate::claims::Principal;
use crate::policy;
use crate::resume::Cursor;

/// Where the subscriptions of a channel are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// By every row that the stream brings.
    Live,
    /// By the rows of this pass.
    Pass(usize),
    /// Nowhere: it waits for a pass.
    Waiting,
    /// Nowhere: its connection has not taken enough of what it was sent.
    Parked,
    /// Nowhere: its entries are being resolved again.
    Paused,
    /// Nowhere: its snapshot comes first.
    Snapshot,
    /// Nowhere: its token is no longer valid. If it gets another one in time, it goes on with the first row that it was not
    /// given for that.
    Expired,
}

impl At {
    fn set(self) -> Option<usize> {
        match self {
            At::Live => Some(0),
            At::Pass(pass) => Some(pass + 1),
            At::Waiting | At::Parked | At::Paused | At::Snapshot | At::Expired => None,
        }
    }
}

/// Where each entry of a channel begins, in the order of the entries; one for all if they are the same.
pub(super) type Froms = SmallVec<[Position; 1]>;

/// A channel with active entries.
pub(super) struct Channel {
    pub(super) port: Arc<Port>,
    pub(super) principal: Arc<Principal>,
    pub(super) entries: Arc<Vec<Entry>>,
    pub(super) targets: Vec<Target>,
    /// The number of each target in its table's index.
    pub(super) subs: Vec<u32>,
    /// Rows at or before this are not for it.
    pub(super) froms: Froms,
    /// Of the history that they belong to.
    pub(super) epoch: Option<u64>,
    pub(super) at: At,
    /// The rows of its tables after this are not given to it: some table is gone, and messages go on without them. To be told
    /// as a gap when the tables are back.
    pub(super) out_since: Option<Cursor>,
    /// What the entries that have had a snapshot must not get again.
    pub(super) seam: Option<Arc<Seam>>,
}

impl Channel {
    pub(super) fn new(port: Arc<Port>, principal: Arc<Principal>, entries: Arc<Vec<Entry>>) -> Channel {
        let (targets, subs) = (Vec::new(), Vec::new());
        let (froms, epoch, at, out_since, seam) = (Froms::new(), None, At::Live, None, None);
        Channel { port, principal, entries, targets, subs, froms, epoch, at, out_since, seam }
    }

    /// The same channel in the same place, its targets not yet looked for.
    pub(super) fn place(&self) -> Channel {
        let (port, principal, entries) = (self.port.clone(), self.principal.clone(), self.entries.clone());
        let (froms, epoch, at, seam) = (self.froms.clone(), self.epoch, self.at, self.seam.clone());
        let out_since = self.out_since;
        Channel { froms, epoch, at, out_since, seam, ..Channel::new(port, principal, entries) }
    }

    /// No table that it asks for is looked at for it.
    pub(super) fn is_out(&self) -> bool {
        self.targets.iter().all(|target| target.table_oid == NO_TABLE)
            && self.entries.iter().any(|entry| entry.messages.is_none())
    }

    /// Those of its entries that have a snapshot begin there.
    pub(super) fn begin_snapped(&mut self, start: Position) {
        let own = |at: usize| self.froms.get(at).or(self.froms.first()).copied().unwrap_or_default();
        let entries = self.entries.iter().enumerate();
        self.froms = entries.map(|(at, entry)| if entry.snapshot.is_some() { start } else { own(at) }).collect();
    }

    /// Rows at or before this are not for any of its entries.
    pub(super) fn from(&self) -> Position {
        self.froms.iter().min().copied().unwrap_or_default()
    }

    fn start_of(&self, target: &Target) -> Position {
        let own = self.froms.get(target.entry as usize).or(self.froms.first());
        own.copied().unwrap_or_default()
    }

    fn seam_of(&self, target: &Target) -> Option<Arc<Seam>> {
        let entry = self.entries.get(target.entry as usize)?;
        self.seam.clone().filter(|_| entry.snapshot.is_some())
    }
}

/// How many of them are on tables, as clients ask for them.
pub(super) fn on_tables(targets: &[Target]) -> usize {
    targets.iter().filter(|target| target.table_oid != NO_TABLE).count()
}

type Tables = AHashMap<u32, TableIndex>;

/// Those who are looked for in one place.
#[derive(Default)]
struct Set {
    tables: Tables,
    messages: MessageIndex,
}

/// All channels. Slots are reused, [`ChannelId`]s are not.
pub(super) struct Registry {
    options: policy::Options,
    slots: Slots<Channel>,
    by_id: AHashMap<ChannelId, u32>,
    /// Those of the live ones, then those of each pass.
    sets: Vec<Set>,
    subscriptions: usize,
    /// The rules that the stream has come to, if they are not those in force.
    passed: Option<Arc<Catalog>>,
}

impl Registry {
    pub(super) fn new(options: policy::Options, passes: usize) -> Registry {
        Registry {
            options,
            slots: Slots::new(),
            by_id: AHashMap::new(),
            sets: (0..=passes).map(|_| Set::default()).collect(),
            subscriptions: 0,
            passed: None,
        }
    }

    /// Activates a channel, in place of what it had before: with the same slot, and the same classes if its rights are the same.
    pub(super) fn activate(&mut self, channel: Channel, targets: Vec<Target>, catalog: &Catalog) {
        let id = channel.port.id;
        let (slot, before) = match self.by_id.get(&id) {
            Some(slot) => (*slot, self.slots.get_mut(*slot).map(|known| std::mem::replace(known, channel))),
            None => (self.slots.insert(channel), None),
        };
        self.by_id.insert(id, slot);
        self.point(slot, targets, catalog);
        if let Some(before) = before {
            self.unpoint(before.at, &before.targets, before.subs);
        }
    }

    /// The stream goes on from another position, in another history: nobody may wait until it has passed the old one.
    pub(super) fn rebase(&mut self, from: Position, epoch: Option<u64>) {
        for channel in self.slots.values_mut().filter(|channel| channel.at == At::Live) {
            channel.froms.iter_mut().for_each(|own| *own = from.min(*own));
            channel.epoch = epoch;
        }
        if let Some(live) = self.sets.first_mut() {
            live.tables.values_mut().for_each(|table| table.rebase(from));
            live.messages.rebase(from);
        }
    }

    /// Whoever is live is in this history from here on, without having lost anything.
    pub(super) fn enter(&mut self, epoch: Option<u64>) {
        let live = self.slots.values_mut().filter(|channel| channel.at == At::Live);
        live.for_each(|channel| channel.epoch = epoch);
    }

    /// Has a channel looked for elsewhere, from where `begin` says.
    pub(super) fn put(&mut self, id: ChannelId, at: At, begin: impl FnOnce(&mut Channel), catalog: &Catalog) {
        let Some(slot) = self.by_id.get(&id).copied() else { return };
        let Some(channel) = self.slots.get_mut(slot) else { return };
        let (targets, subs, before) =
            (std::mem::take(&mut channel.targets), std::mem::take(&mut channel.subs), channel.at);
        begin(channel);
        channel.at = at;
        self.unpoint(before, &targets, subs);
        self.point(slot, targets, catalog);
    }

    /// Gives a channel new targets, after the rules changed.
    pub(super) fn retarget(&mut self, id: ChannelId, targets: Vec<Target>, catalog: &Catalog) {
        let Some(slot) = self.by_id.get(&id).copied() else { return };
        let Some(channel) = self.slots.get_mut(slot) else { return };
        let before = (std::mem::take(&mut channel.targets), std::mem::take(&mut channel.subs));
        let at = channel.at;
        self.point(slot, targets, catalog);
        self.unpoint(at, &before.0, before.1);
    }

    /// A channel goes on without its tables. To be retargeted.
    pub(super) fn leave_out(&mut self, id: ChannelId, since: Option<Cursor>) {
        if let Some(channel) = self.by_id.get(&id).and_then(|slot| self.slots.get_mut(*slot)) {
            channel.out_since = channel.out_since.or(since);
        }
    }

    /// It goes on with them; since when it had been without, if it had. To be retargeted.
    pub(super) fn take_in(&mut self, id: ChannelId) -> Option<(Arc<Port>, Cursor)> {
        let channel = self.by_id.get(&id).and_then(|slot| self.slots.get_mut(*slot))?;
        Some((channel.port.clone(), channel.out_since.take()?))
    }

    fn point(&mut self, slot: u32, targets: Vec<Target>, catalog: &Catalog) {
        let Some(channel) = self.slots.get_mut(slot) else { return };
        self.subscriptions += on_tables(&targets);
        let Some(Set { tables, messages }) = channel.at.set().and_then(|set| self.sets.get_mut(set)) else {
            channel.targets = targets;
            return;
        };
        let subs = targets.iter().map(|target| {
            let asked = channel.entries.get(target.entry as usize).and_then(|entry| entry.messages.as_ref());
            if let (NO_TABLE, Some(asked)) = (target.table_oid, asked) {
                return messages.insert(slot, channel, (target.entry_id, channel.start_of(target)), asked);
            }
            let table =
                tables.entry(target.table_oid).or_insert_with(|| TableIndex::new(self.options, self.passed.clone()));
            let (port, principal) = (channel.port.clone(), channel.principal.clone());
            let place = (channel.start_of(target), channel.seam_of(target));
            table.insert(slot, port, principal, target.clone(), place, catalog)
        });
        let subs = subs.collect();
        (channel.targets, channel.subs) = (targets, subs);
    }

    fn unpoint(&mut self, at: At, targets: &[Target], subs: Vec<u32>) {
        self.subscriptions -= on_tables(targets);
        let Some(Set { tables, messages }) = at.set().and_then(|set| self.sets.get_mut(set)) else { return };
        for (Target { table_oid, .. }, sub) in targets.iter().zip(subs) {
            if *table_oid == NO_TABLE {
                messages.remove(sub);
            }
            if let Some(table) = tables.get_mut(table_oid) {
                table.remove(sub);
                if table.is_empty() {
                    tables.remove(table_oid);
                }
            }
        }
    }

    /// Forgets a channel.
    pub(super) fn remove(&mut self, id: ChannelId) {
        if let Some(channel) = self.by_id.remove(&id).and_then(|slot| self.slots.remove(slot)) {
            self.unpoint(channel.at, &channel.targets, channel.subs);
        }
    }

    /// Forgets the channels whose connection takes nothing any more.
    pub(super) fn sweep(&mut self) {
        let dead: Vec<ChannelId> = self.channels().filter(|c| !c.port.outbox.is_open()).map(|c| c.port.id).collect();
        for id in dead {
            self.remove(id);
        }
    }

    pub(super) fn get(&self, id: ChannelId) -> Option<&Channel> {
        self.by_id.get(&id).and_then(|slot| self.slots.get(*slot))
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.slots.iter().map(|(_, channel)| channel)
    }

    pub(super) fn table(&mut self, at: At, oid: u32) -> Option<&mut TableIndex> {
        self.sets.get_mut(at.set()?)?.tables.get_mut(&oid)
    }

    /// Somebody who is looked for there has subscribed to this table.
    pub(super) fn has_table(&self, at: At, oid: u32) -> bool {
        at.set().and_then(|set| self.sets.get(set)).is_some_and(|set| set.tables.contains_key(&oid))
    }

    /// Those who ask for messages and are looked for there; `None` if there is none.
    pub(super) fn messages(&self, at: At) -> Option<&MessageIndex> {
        let set = at.set().and_then(|set| self.sets.get(set))?;
        Some(&set.messages).filter(|messages| !messages.is_empty())
    }

    /// Nobody is looked for there.
    pub(super) fn is_empty(&self, at: At) -> bool {
        at.set().and_then(|set| self.sets.get(set)).is_none_or(|set| set.tables.is_empty() && set.messages.is_empty())
    }

    /// Puts the plans of these rules into force. The facts are those of the stream, which may be behind the rules: a plan that is
    /// new does not judge by them before [`Registry::catch_up`]. A migration changes both together, and the new rule may give
    /// by the old facts what nobody ever had.
    pub(super) fn apply_rules(&mut self, catalog: &Catalog, before: &Arc<Catalog>) {
        self.passed.get_or_insert_with(|| before.clone());
        for table in self.sets.iter_mut().flat_map(|set| set.tables.values_mut()) {
            table.apply_rules(catalog, self.passed.as_ref());
        }
    }

    /// The stream has come to the rules in force.
    pub(super) fn catch_up(&mut self) {
        self.passed = None;
        self.sets.iter_mut().flat_map(|set| set.tables.values_mut()).for_each(TableIndex::catch_up);
    }

    /// Tables that somebody subscribes to, by oid, with the number of subscriptions.
    pub(super) fn by_table(&self) -> AHashMap<u32, usize> {
        let mut counts = AHashMap::new();
        for (oid, table) in self.sets.iter().flat_map(|set| &set.tables) {
            *counts.entry(*oid).or_default() += table.len();
        }
        counts
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.subscriptions
    }
}
