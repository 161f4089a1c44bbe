//! Sending a snapshot's rows at the pace of the connection, and telling where it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::Snapped;
use super::take::Part;
use crate::catalog::Catalog;
use crate::change::{Change, Position, Relation, RowChange, Timestamp, Tuple, Value};
use crate::hub::event::{Details, Event, Fanout, Ids, Member, Notice, Outgoing};
use crate::hub::registry::At;
use crate::hub::run::Hub;
use crate::hub::{ChannelId, GapReason, Port};
use crate::pgtype::Types;
use crate::policy::Permit;
use crate::resume::Cursor;

/// How often a channel that is slow, or whose seam is not behind it, is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Rows of one channel that are sent before others have their turn.
const SLICE: usize = 256;
/// What a row's frame takes beside its values, about.
const FRAME_BYTES: usize = 512;

/// A channel that gets its snapshot.
pub(in crate::hub) struct Sending {
    port: Arc<Port>,
    sharing_key: Arc<str>,
    at: Timestamp,
    types: Arc<Types>,
    parts: std::collections::VecDeque<Rows>,
    /// Place in the bound of what is held, while there are rows.
    held: Option<OwnedSemaphorePermit>,
    /// Behind this the tail leaves nothing out.
    until: Cursor,
    /// What is to be told of each entry at the end.
    told: Vec<(i32, u32, bool)>,
}

/// What is left of one entry's rows.
struct Rows {
    ids: Ids,
    relation: Arc<Relation>,
    permit: Permit,
    rows: std::vec::IntoIter<Tuple>,
}

impl Sending {
    fn new(port: Arc<Port>, snapped: Snapped) -> Sending {
        // An entry without rows is none to wait for.
        let Snapped { parts, at, types, seam, sharing_key, held, .. } = snapped;
        let told = parts.iter().flat_map(|Part { ids, shown }| {
            // The bound of rows fits.
            ids.iter().map(|id| (*id, shown.rows.len() as u32, shown.more)).collect::<Vec<_>>()
        });
        let told = told.collect();
        let rows = |Part { ids, shown }| Rows {
            ids,
            relation: shown.relation,
            permit: shown.permit,
            rows: shown.rows.into_iter(),
        };
        let parts = parts.into_iter().map(rows).filter(|part| part.rows.len() > 0).collect();
        Sending { port, sharing_key, at, types, parts, held: Some(held), until: seam.until(), told }
    }

    /// Whether its rows are for somebody of these rights.
    pub(in crate::hub) fn is_for(&self, sharing_key: &str) -> bool {
        *self.sharing_key == *sharing_key
    }

    /// Whether there is something to be sent before the stream.
    pub(in crate::hub) fn has_rows(&self) -> bool {
        !self.parts.is_empty()
    }

    fn next(&mut self) -> Option<Outgoing> {
        while let Some(part) = self.parts.front_mut() {
            let Some(new) = part.rows.next() else {
                self.parts.pop_front();
                continue;
            };
            let is_last = part.rows.len() == 0;
            let size = |value| if let Value::Text(text) = value { text.len() } else { 4 };
            let cost = FRAME_BYTES + new.values().map(size).sum::<usize>();
            let cost = u32::try_from(cost).unwrap_or(u32::MAX);
            let row = RowChange {
                relation: part.relation.clone(),
                position: Position::default(),
                change: Change::Insert { new },
            };
            let event = Arc::new(Event::of_snapshot(Arc::new(row), self.at, Instant::now(), self.types.clone()));
            self.port.place.pace().add(cost);
            let member = Member { port: self.port.clone(), ids: part.ids.clone(), cursor_as: None, cost };
            let outgoing = Outgoing::Change(Fanout { event: part.permit.admit(event), members: vec![member] });
            if is_last {
                self.parts.pop_front();
            }
            if self.parts.is_empty() {
                self.held = None;
            }
            return Some(outgoing);
        }
        None
    }
}

impl Hub {
    /// The channel is active, and gets these rows before anything of the stream.
    pub(in crate::hub) fn begin_snapshot(&mut self, port: &Arc<Port>, snapped: Snapped) {
        port.place.begin_snapshot();
        self.snapshots.sending.insert(port.id, Sending::new(port.clone(), snapped));
        self.deps.metrics.snapshots_sending.set(self.snapshots.sending.len() as i64);
    }

    /// Whether the channel must not have anything of the stream yet.
    pub(in crate::hub) fn awaits_snapshot(&self, id: ChannelId) -> bool {
        self.snapshots.sending.get(&id).is_some_and(Sending::has_rows)
    }

    /// When channels are to be looked at again.
    pub(in crate::hub) fn snapshots_at(&self) -> Option<tokio::time::Instant> {
        (!self.snapshots.sending.is_empty()).then(|| tokio::time::Instant::now() + LOOK)
    }

    /// Sends what the connections take, and tells those who are through.
    pub(in crate::hub) fn send_snapshots(&mut self) {
        if self.snapshots.sending.is_empty() {
            return;
        }
        let now = self.deps.clock.unix_seconds();
        let (mut through, mut over) = (Vec::new(), Vec::new());
        for (id, sending) in &mut self.snapshots.sending {
            let known = self.registry.get(*id);
            let Some(known) = known.filter(|_| !sending.port.stage.is_closed() && sending.port.outbox.is_open()) else {
                over.push(*id);
                continue;
            };
            if known.principal.is_expired(now) {
                // Its session ends it, or has another token for it.
                continue;
            }
            let shard = sending.port.shard % self.out.len();
            let most = sending.port.outbox.limit() / 4;
            let mut sent = 0;
            while sending.has_rows() && sent < SLICE && sending.port.burden() < most {
                let Some(outgoing) = sending.next() else { break };
                self.out[shard].push(outgoing);
                sent += 1;
            }
            self.deps.metrics.deliveries.inc_by(sent as u64);
            self.queued += sent;
            if !sending.has_rows() && sent > 0 {
                through.push(*id);
            }
            let reached = sending.port.place.streamed().filter(|_| !sending.has_rows());
            let until = sending.until;
            let is_behind = |reached: Cursor| reached.epoch == until.epoch && reached.position >= until.position;
            if !reached.is_some_and(is_behind) {
                continue;
            }
            let cursor = until;
            for (id, rows, more) in sending.told.drain(..) {
                let details = Some(Details::Snapshot { id, rows, more, cursor });
                let message = COMPLETE.into();
                let notice = Notice { port: sending.port.clone(), ok: true, message, details };
                self.out[shard].push(Outgoing::Notice(notice));
            }
            sending.port.place.end_snapshot();
            over.push(*id);
        }
        for id in over {
            self.snapshots.sending.remove(&id);
        }
        // What is said of the stream comes behind the rows.
        through.into_iter().for_each(|id| self.place(id));
        self.deps.metrics.snapshots_sending.set(self.snapshots.sending.len() as i64);
    }
}

impl Hub {
    /// Another history goes on: a snapshot that shows only what is in both is as good as before, and goes on in that one. What
    /// another one shows may never have happened: its channel is told, unless it is live and `told` already, and that was it.
    pub(in crate::hub) fn part_snapshot(&mut self, id: ChannelId, told: bool, catalog: &Catalog) {
        let Some(channel) = self.registry.get(id) else { return };
        let Some(seam) = channel.seam.as_ref().filter(|seam| seam.epoch() != self.epoch).cloned() else { return };
        let (at, port) = (channel.at, channel.port.clone());
        let is_shared = seam.epoch().is_none_or(|epoch| self.deps.log.shares(epoch, seam.until().position.lsn));
        let after = is_shared.then(|| Arc::new(seam.continued(self.epoch)));
        self.registry.put(id, at, |channel| channel.seam = after.clone(), catalog);
        let Some(sending) = self.snapshots.sending.get_mut(&id) else { return };
        if let Some(after) = after {
            sending.until = after.until();
            return;
        }
        self.snapshots.sending.remove(&id);
        if !(told && at == At::Live) {
            let to =
                self.registry.get(id).and_then(|channel| self.progress(channel)).or_else(|| self.cursor(self.judged()));
            self.tell_gap(&port, None, to, GapReason::Lost);
        }
        port.place.end_snapshot();
        if at == At::Snapshot {
            self.place(id);
        }
    }
}

/// The notice behind a snapshot and its seam.
pub const COMPLETE: &str = "Snapshot complete";
