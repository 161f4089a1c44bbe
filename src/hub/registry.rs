//! Who has subscribed to what: the channels with their entries, and an index per table.

use std::sync::Arc;

use ahash::AHashMap;

use super::index::TableIndex;
use super::resolve::Target;
use super::slots::Slots;
use super::{ChannelId, Entry, Port};
use crate::catalog::Catalog;
use crate::change::Position;
use crate::claims::Principal;
use crate::policy;

/// A channel with active entries.
pub(super) struct Channel {
    pub(super) port: Arc<Port>,
    pub(super) principal: Arc<Principal>,
    pub(super) entries: Arc<Vec<Entry>>,
    pub(super) targets: Vec<Target>,
    /// The number of each target in its table's index.
    subs: Vec<u32>,
    /// Rows at or before this are not for it.
    pub(super) from: Position,
}

/// All channels. Slots are reused, [`ChannelId`]s are not.
pub(super) struct Registry {
    options: policy::Options,
    slots: Slots<Channel>,
    by_id: AHashMap<ChannelId, u32>,
    tables: AHashMap<u32, TableIndex>,
    subscriptions: usize,
    /// The rules that the stream has come to, if they are not those in force.
    passed: Option<Arc<Catalog>>,
}

impl Registry {
    pub(super) fn new(options: policy::Options) -> Registry {
        Registry {
            options,
            slots: Slots::new(),
            by_id: AHashMap::new(),
            tables: AHashMap::new(),
            subscriptions: 0,
            passed: None,
        }
    }

    /// Activates a channel, in place of what it had before: with the same slot, and the same classes if its rights are the same.
    pub(super) fn activate(
        &mut self,
        port: Arc<Port>,
        principal: Arc<Principal>,
        entries: Arc<Vec<Entry>>,
        targets: Vec<Target>,
        from: Position,
        catalog: &Catalog,
    ) {
        let id = port.id;
        let channel = Channel { port, principal, entries, targets: Vec::new(), subs: Vec::new(), from };
        let (slot, before) = match self.by_id.get(&id) {
            Some(slot) => (*slot, self.slots.get_mut(*slot).map(|known| std::mem::replace(known, channel))),
            None => (self.slots.insert(channel), None),
        };
        self.by_id.insert(id, slot);
        self.point(slot, targets, catalog);
        if let Some(before) = before {
            self.unpoint(before.targets, before.subs);
        }
    }

    /// The stream goes on from an earlier position, in another history: nobody may wait until it has passed the old one.
    pub(super) fn rebase(&mut self, from: Position) {
        for channel in self.slots.values_mut() {
            channel.from = channel.from.min(from);
        }
        for table in self.tables.values_mut() {
            table.rebase(from);
        }
    }

    /// Gives a channel new targets, after the rules changed.
    pub(super) fn retarget(&mut self, id: ChannelId, targets: Vec<Target>, catalog: &Catalog) {
        let Some(slot) = self.by_id.get(&id).copied() else { return };
        let Some(channel) = self.slots.get_mut(slot) else { return };
        let before = (std::mem::take(&mut channel.targets), std::mem::take(&mut channel.subs));
        self.point(slot, targets, catalog);
        self.unpoint(before.0, before.1);
    }

    fn point(&mut self, slot: u32, targets: Vec<Target>, catalog: &Catalog) {
        let Some(channel) = self.slots.get_mut(slot) else { return };
        let subs = targets.iter().map(|target| {
            let table = self
                .tables
                .entry(target.table_oid)
                .or_insert_with(|| TableIndex::new(self.options, self.passed.clone()));
            let (port, principal) = (channel.port.clone(), channel.principal.clone());
            table.insert(slot, port, principal, target.clone(), channel.from, catalog)
        });
        let subs = subs.collect();
        self.subscriptions += targets.len();
        (channel.targets, channel.subs) = (targets, subs);
    }

    fn unpoint(&mut self, targets: Vec<Target>, subs: Vec<u32>) {
        self.subscriptions -= targets.len();
        for (Target { table_oid, .. }, sub) in targets.into_iter().zip(subs) {
            if let Some(table) = self.tables.get_mut(&table_oid) {
                table.remove(sub);
                if table.is_empty() {
                    self.tables.remove(&table_oid);
                }
            }
        }
    }

    /// Forgets a channel.
    pub(super) fn remove(&mut self, id: ChannelId) {
        if let Some(channel) = self.by_id.remove(&id).and_then(|slot| self.slots.remove(slot)) {
            self.unpoint(channel.targets, channel.subs);
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

    pub(super) fn table(&mut self, oid: u32) -> Option<&mut TableIndex> {
        self.tables.get_mut(&oid)
    }

    /// Puts the plans of these rules into force. The facts are those of the stream, which may be behind the rules: a plan that is
    /// new does not judge by them before [`Registry::catch_up`]. A migration changes both together, and the new rule may give
    /// by the old facts what nobody ever had.
    pub(super) fn apply_rules(&mut self, catalog: &Catalog, before: &Arc<Catalog>) {
        self.passed.get_or_insert_with(|| before.clone());
        for table in self.tables.values_mut() {
            table.apply_rules(catalog, self.passed.as_ref());
        }
    }

    /// The stream has come to the rules in force.
    pub(super) fn catch_up(&mut self) {
        self.passed = None;
        self.tables.values_mut().for_each(TableIndex::catch_up);
    }

    /// Tables that somebody subscribes to, by oid, with the number of subscriptions.
    pub(super) fn by_table(&self) -> impl Iterator<Item = (u32, usize)> {
        self.tables.iter().map(|(oid, table)| (*oid, table.len()))
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.subscriptions
    }
}
