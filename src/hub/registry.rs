//! Who has subscribed to what: the channels with their entries, and an index per table.

use std::sync::Arc;

use ahash::AHashMap;

use super::index::{SubKey, TableIndex};
use super::resolve::Target;
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
    /// Rows at or before this are not for it.
    pub(super) from: Position,
}

/// All channels. Slots are reused, [`ChannelId`]s are not.
pub(super) struct Registry {
    options: policy::Options,
    slots: Vec<Option<Channel>>,
    free: Vec<u32>,
    by_id: AHashMap<ChannelId, u32>,
    tables: AHashMap<u32, TableIndex>,
    subscriptions: usize,
}

impl Registry {
    pub(super) fn new(options: policy::Options) -> Registry {
        Registry {
            options,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: AHashMap::new(),
            tables: AHashMap::new(),
            subscriptions: 0,
        }
    }

    /// Activates a channel, in place of what it had before.
    pub(super) fn activate(
        &mut self,
        port: Arc<Port>,
        principal: Arc<Principal>,
        entries: Arc<Vec<Entry>>,
        targets: Vec<Target>,
        from: Position,
        catalog: &Catalog,
    ) {
        self.remove(port.id);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.by_id.insert(port.id, slot);
        self.slots[slot as usize] = Some(Channel { port, principal, entries, targets: Vec::new(), from });
        self.point(slot, targets, catalog);
    }

    /// The stream goes on from an earlier position, in another history: nobody may wait until it has passed the old one.
    pub(super) fn rebase(&mut self, from: Position) {
        for channel in self.slots.iter_mut().flatten() {
            channel.from = channel.from.min(from);
        }
        for table in self.tables.values_mut() {
            table.rebase(from);
        }
    }

    /// Gives a channel new targets, after the rules changed.
    pub(super) fn retarget(&mut self, id: ChannelId, targets: Vec<Target>, catalog: &Catalog) {
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.unpoint(slot);
            self.point(slot, targets, catalog);
        }
    }

    fn point(&mut self, slot: u32, targets: Vec<Target>, catalog: &Catalog) {
        let Some(channel) = &mut self.slots[slot as usize] else { return };
        for (i, target) in targets.iter().enumerate() {
            let key = SubKey { slot, target: i as u32 };
            let table = self.tables.entry(target.table_oid).or_insert_with(|| TableIndex::new(self.options));
            table.insert(key, target.clone(), channel.principal.clone(), channel.from, catalog);
        }
        self.subscriptions += targets.len();
        channel.targets = targets;
    }

    fn unpoint(&mut self, slot: u32) {
        let Some(channel) = &mut self.slots[slot as usize] else { return };
        let targets = std::mem::take(&mut channel.targets);
        self.subscriptions -= targets.len();
        for (i, target) in targets.iter().enumerate() {
            if let Some(table) = self.tables.get_mut(&target.table_oid) {
                table.remove(SubKey { slot, target: i as u32 });
                if table.is_empty() {
                    self.tables.remove(&target.table_oid);
                }
            }
        }
    }

    /// Forgets a channel.
    pub(super) fn remove(&mut self, id: ChannelId) {
        if let Some(slot) = self.by_id.remove(&id) {
            self.unpoint(slot);
            self.slots[slot as usize] = None;
            self.free.push(slot);
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
        self.by_id.get(&id).and_then(|slot| self.at(*slot))
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Channel> {
        self.slots.get(slot as usize).and_then(Option::as_ref)
    }

    pub(super) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.slots.iter().flatten()
    }

    pub(super) fn table(&mut self, oid: u32) -> Option<&mut TableIndex> {
        self.tables.get_mut(&oid)
    }

    /// Puts the plans of these rules into force.
    pub(super) fn apply_rules(&mut self, catalog: &Catalog) {
        for table in self.tables.values_mut() {
            table.apply_rules(catalog);
        }
    }

    /// Tables that somebody subscribes to, by oid, with the number of subscriptions.
    pub(super) fn by_table(&self) -> impl Iterator<Item = (u32, usize)> {
        self.tables.iter().map(|(oid, table)| (*oid, table.len()))
    }

    pub(super) fn subscriptions(&self) -> usize {
        self.subscriptions
    }
}
