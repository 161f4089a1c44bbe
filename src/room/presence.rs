//! Who is present in a room (`protocol.md` §8): what each member tracks, what the others have been told of it, and the
//! difference.
//!
//! Each meta is kept twice while they differ: as it is, and as it was last published. So a diff is the difference of the two
//! whenever it is made, a meta that came and went in between leaves no trace, and `presence_state`, which shows what was
//! published, fits the diffs before and after it exactly.
//!
//! Rejected: a list of events, which must be searched for what cancels out, and which grows without a bound.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::RoomError;
use super::meta::{Meta, Reference, Tracked};
use crate::hub::ChannelId;

/// One who tracks: by key first, so that the metas of a key follow each other. The key is JSON text.
type Who = (Arc<str>, ChannelId);

#[derive(Debug, Default)]
struct Entry {
    current: Option<Meta>,
    published: Option<Meta>,
    /// The current one came from the published one by updates alone.
    descends: bool,
}

impl Entry {
    /// What is kept of it under this key.
    fn bytes(&self, key: &str) -> usize {
        let size = |meta: &Option<Meta>| meta.as_ref().map_or(0, |meta| meta.text().len());
        match (&self.current, &self.published) {
            (None, None) => 0,
            _ if self.is_published() => key.len() + size(&self.current),
            _ => key.len() + size(&self.current) + size(&self.published),
        }
    }

    fn is_published(&self) -> bool {
        let reference = |meta: &Option<Meta>| meta.as_ref().map(|meta| meta.reference);
        reference(&self.current) == reference(&self.published)
    }
}

/// What one room may keep of presence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) metas: usize,
    /// Of one meta with its key.
    pub(super) meta: usize,
    pub(super) bytes: usize,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Presence {
    entries: BTreeMap<Who, Entry>,
    dirty: BTreeSet<Who>,
    /// Who tracks something now.
    present: usize,
    /// Bytes of all metas and keys.
    bytes: usize,
    /// Changes since the last diff.
    changes: u64,
    /// What was published, written out; kept until it changes.
    state: Option<Bytes>,
}

/// What [`Presence::publish`] found.
#[derive(Debug, Default)]
pub(super) struct Diffs {
    /// Payloads of `presence_diff`, each complete in itself.
    pub(super) payloads: Vec<Bytes>,
    /// How many changes had no diff of their own.
    pub(super) coalesced: u64,
}

/// A diff is cut behind the change with which it gets larger than this: clients read frames of a megabyte at most.
const DIFF_BYTES: usize = 256 * 1024;

impl Presence {
    /// How many metas there are now.
    pub(super) fn len(&self) -> usize {
        self.present
    }

    /// Bytes of what is kept.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is something to tell.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Tracks this, in the place of what was tracked. Whether that is a change.
    pub(super) fn track(
        &mut self,
        key: &Arc<str>,
        id: ChannelId,
        tracked: &Tracked,
        reference: Reference,
        bounds: Bounds,
    ) -> Result<bool, RoomError> {
        let who = (key.clone(), id);
        let entry = self.entries.get(&who);
        let current = entry.and_then(|entry| entry.current.as_ref());
        if current.is_some_and(|current| current.tracks(tracked)) {
            return Ok(false);
        }
        let descends = entry.is_some_and(|entry| entry.descends);
        let published = entry.and_then(|entry| entry.published.as_ref());
        let previous = published.filter(|_| descends).map(|meta| meta.reference);
        let before = entry.map_or(0, |entry| entry.bytes(key));
        let meta = Meta::new(tracked, reference, previous);
        let bytes = key.len() + published.map_or(0, |meta| meta.text().len()) + meta.text().len();
        let is_full = entry.is_none() && self.entries.len() >= bounds.metas;
        let is_large = key.len() + meta.text().len() > bounds.meta;
        if is_full || is_large || self.bytes - before + bytes > bounds.bytes {
            return Err(RoomError::PresenceFull);
        }
        self.change(who, |entry| entry.current = Some(meta));
        Ok(true)
    }

    /// Takes it back. Whether there was something.
    pub(super) fn untrack(&mut self, key: &Arc<str>, id: ChannelId) -> bool {
        let who = (key.clone(), id);
        if self.entries.get(&who).is_none_or(|entry| entry.current.is_none()) {
            return false;
        }
        self.change(who, |entry| (entry.current, entry.descends) = (None, false));
        true
    }

    fn change(&mut self, who: Who, make: impl FnOnce(&mut Entry)) {
        let entry = self.entries.entry(who.clone()).or_default();
        let (before, was) = (entry.bytes(&who.0), entry.current.is_some());
        make(entry);
        self.bytes = self.bytes - before + entry.bytes(&who.0);
        self.present = self.present + usize::from(entry.current.is_some()) - usize::from(was);
        self.changes += 1;
        if entry.current.is_none() && entry.published.is_none() {
            self.entries.remove(&who);
            self.dirty.remove(&who);
        } else {
            self.dirty.insert(who);
        }
    }

    /// What is new since the last time; published from now on.
    pub(super) fn publish(&mut self) -> Diffs {
        let mut diffs = Diffs::default();
        let (mut joins, mut leaves) = (Groups::default(), Groups::default());
        let mut told = 0;
        for who in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.entries.get_mut(&who) else { continue };
            if !entry.is_published() {
                told += 1;
                self.bytes -= entry.bytes(&who.0);
                if let Some(meta) = &entry.published {
                    leaves.add(&who.0, meta);
                }
                if let Some(meta) = &entry.current {
                    joins.add(&who.0, meta);
                }
                entry.published.clone_from(&entry.current);
                entry.descends = true;
                self.bytes += entry.bytes(&who.0);
            }
            if entry.current.is_none() {
                self.entries.remove(&who);
            }
            if joins.len() + leaves.len() > DIFF_BYTES {
                diffs.payloads.push(diff(&mut joins, &mut leaves));
            }
        }
        if joins.len() + leaves.len() > 0 {
            diffs.payloads.push(diff(&mut joins, &mut leaves));
        }
        if told > 0 {
            self.state = None;
        }
        let changes = std::mem::take(&mut self.changes);
        diffs.coalesced = changes.saturating_sub(diffs.payloads.len() as u64);
        diffs
    }

    /// The payload of `presence_state`: what was published.
    pub(super) fn state(&mut self) -> Bytes {
        if let Some(state) = &self.state {
            return state.clone();
        }
        let mut groups = Groups::with_capacity(self.bytes + self.entries.len() * 32);
        for ((key, _), entry) in &self.entries {
            if let Some(meta) = &entry.published {
                groups.add(key, meta);
            }
        }
        let mut out = Vec::new();
        groups.write_to(&mut out);
        let state = Bytes::from(out);
        self.state = Some(state.clone());
        state
    }
}

/// A `presence_diff`; both are empty afterwards.
fn diff(joins: &mut Groups, leaves: &mut Groups) -> Bytes {
    const JOINS: &[u8] = br#"{"joins":"#;
    const LEAVES: &[u8] = br#","leaves":"#;
    let mut out = Vec::with_capacity(JOINS.len() + LEAVES.len() + joins.len() + leaves.len() + 10);
    out.extend_from_slice(JOINS);
    joins.write_to(&mut out);
    out.extend_from_slice(LEAVES);
    leaves.write_to(&mut out);
    out.push(b'}');
    Bytes::from(out)
}

/// `{"key":{"metas":[…]}, …}`, of metas that come sorted by key.
#[derive(Debug, Default)]
struct Groups {
    out: Vec<u8>,
    key: Option<Arc<str>>,
}

impl Groups {
    fn with_capacity(bytes: usize) -> Groups {
        Groups { out: Vec::with_capacity(bytes), key: None }
    }

    fn len(&self) -> usize {
        self.out.len()
    }

    fn add(&mut self, key: &Arc<str>, meta: &Meta) {
        if self.key.as_ref() == Some(key) {
            self.out.push(b',');
        } else {
            self.out.extend_from_slice(if self.key.is_some() { b"]}," } else { b"" });
            self.out.extend_from_slice(key.as_bytes());
            self.out.extend_from_slice(br#":{"metas":["#);
            self.key = Some(key.clone());
        }
        self.out.extend_from_slice(meta.text());
    }

    /// Appends the object, and is empty.
    fn write_to(&mut self, out: &mut Vec<u8>) {
        let is_some = self.key.take().is_some();
        out.reserve_exact(self.out.len() + 4);
        out.push(b'{');
        out.append(&mut self.out);
        out.extend_from_slice(if is_some { b"]}}" } else { b"}" });
    }
}

#[cfg(test)]
#[path = "presence_tests.rs"]
mod tests;
