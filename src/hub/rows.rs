//! One row on its way through the hub: matched, judged, through the lane if Postgres has to be asked, to the shards.
//!
//! Rows of the stream and rows of a pass go the same way; they differ in who is looked for, and in that the latter are counted
//! towards what a connection has not taken yet.

use std::sync::Arc;

use ahash::AHashSet;
use tokio::time::Instant;

use super::gaps::before;
use super::matching::{self, Judgement, UNDECIDED};
use super::messages::is_of_messages;
use super::prepare::FACTS;
use super::registry::At;
use super::resolve;
use super::run::Hub;
use super::settle::{Leaving, Settled};
use super::waiting::{LaneRow, Permits};
use super::{ChannelId, Details, Event, GapReason, NO_CURSOR, Outgoing, Port, Version};
use crate::change::{Change, RowChange, Timestamp, Transaction};
use crate::journal::Note;
use crate::resume::Cursor;

/// What a row has of its transaction.
pub(super) struct Origin {
    xid: u32,
    commit_time: Timestamp,
    /// When the transaction was taken up.
    taken: Instant,
    is_retention: bool,
    /// What a row takes in memory, about.
    bytes: usize,
    /// Of the history that it is in.
    epoch: Option<u64>,
}

impl Origin {
    pub(super) fn of(transaction: &Transaction, taken: Instant, epoch: Option<u64>) -> Origin {
        Origin {
            xid: transaction.xid,
            commit_time: transaction.commit_time,
            taken,
            is_retention: transaction.is_retention(),
            bytes: (transaction.body.len() / u64::from(transaction.items.max(1))) as usize + 512,
            epoch,
        }
    }

    pub(super) fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Its transaction's id, and of which history that is.
    pub(super) fn transaction(&self) -> (u32, Option<u64>) {
        (self.xid, self.epoch)
    }

    /// When its transaction committed, and was taken up.
    pub(super) fn when(&self) -> (Timestamp, std::time::Instant) {
        (self.commit_time, self.taken.into_std())
    }
}

impl Hub {
    /// Delivers a row to those who are looked for there.
    pub(super) fn row(&mut self, at: At, row: RowChange, origin: &Origin) {
        if !is_of_messages(&row.relation) {
            return self.table_row(at, row, origin, None);
        }
        let message = self.message(at, &row, origin);
        self.table_row(at, row, origin, message.as_ref().map(|(_, judgement)| judgement));
        if let Some((event, judgement)) = message {
            self.hand_on(at, event, judgement, origin);
        }
    }

    /// The same as a row of a table, but for the broadcast that it may be too, as it was judged: who gets both gets that behind
    /// this, with the cursor of both.
    fn table_row(&mut self, at: At, row: RowChange, origin: &Origin, message: Option<&Judgement>) {
        let Some(rules) = &self.current else { return };
        if origin.is_retention && matches!(row.change, Change::Delete { .. }) {
            if at == At::Live {
                self.deps.metrics.retention_deletes_hidden.inc();
            }
            return;
        }
        let oid = row.relation.oid;
        let Some(table) = rules.catalog.table(oid) else {
            // In the stream for the broadcasts alone: nobody is owed it as a row.
            return if is_of_messages(&row.relation) {
            } else {
                self.unknown_table(at, &row, origin)
            };
        };
        if !table.published.as_ref().is_some_and(|p| matching::is_published(p, &row.change)) {
            return;
        }
        let Some(index) = self.registry.table(at, oid) else { return };
        index.fit(&row.relation, &rules.catalog, &self.facts);
        let types = rules.catalog.types().clone();
        let now = self.deps.clock.unix_seconds();
        let metrics = &self.deps.metrics;
        let transaction = origin.transaction();
        let mut judgement =
            self.matcher.judge((&mut self.registry, at), (&row, transaction), &self.facts, now, metrics);
        self.lose(std::mem::take(&mut judgement.lost), (&row, origin.epoch));
        let doubted = std::mem::take(&mut judgement.doubted);
        self.doubt(at, doubted, judgement.doubted_by_all, (&row, origin.epoch));
        for id in std::mem::take(&mut judgement.expired) {
            self.withhold(id, row.position, origin.epoch);
        }
        if judgement.is_empty() {
            return;
        }
        if let Some(message) = message {
            judgement.leave_cursor_to(message);
        }
        let event = Arc::new(matching::event(row, origin.when(), &types, origin.epoch));
        self.hand_on(at, event, judgement, origin);
    }

    /// What was judged goes on to the lane or to the shards.
    pub(super) fn hand_on(&mut self, at: At, event: Arc<Event>, judgement: Judgement, origin: &Origin) {
        let cost = if at == At::Live { 0 } else { self.passes.weigh(&judgement, &event.row, &self.registry) };
        let waits = judgement.must_wait() || !self.lane.is_empty();
        let (permits, undecided) = if !waits {
            (judgement.permits, judgement.undecided)
        } else {
            let xids = self.shared_xids.get_or_insert_with(|| self.xids.iter().copied().collect()).clone();
            let (event, bytes) = (event.clone(), origin.bytes);
            let Judgement { permits, asked, filtered, undecided, several, .. } = judgement;
            let row = LaneRow { event, permits, asked, filtered, undecided, xids, bytes, cost, several };
            let passed = self.lane.push(row, &self.registry);
            (passed.permits, passed.undecided)
        };
        self.note_undecided(undecided.iter().map(|port| (port, "catalog")), &event.row);
        let told = self.undecided(undecided, (&event.row, event.epoch));
        let permits = self.without_places(permits, &event, &told);
        let sent = matching::emit(&mut self.out, &event, permits, &told, cost);
        self.deps.metrics.deliveries.inc_by(sent);
        self.queued += sent as usize;
        if waits {
            self.leave_lane();
        }
    }

    /// Who has lost rows of which he was not told yet gets this one without its cursor: from there he would never hear of them.
    /// So does who is `told` that something of this very row was not decided, which comes behind it. A page over HTTP waits for
    /// what it is owed before it ends, and looks at the places of its rows then.
    fn without_places(&self, mut permits: Permits, event: &Event, told: &[Arc<Port>]) -> Permits {
        if self.owing.is_empty() && told.is_empty() {
            return permits;
        }
        let told: AHashSet<ChannelId> = told.iter().map(|port| port.id).collect();
        for ready in permits.iter_mut().flat_map(|(_, members)| members) {
            let id = ready.port.id;
            let is_behind = told.contains(&id) || self.owing.is_behind(id, event.epoch, event.row.position);
            if is_behind && ready.port.version != Version::Plain {
                ready.cursor_as = Some(NO_CURSOR.into());
            }
        }
        permits
    }

    /// A table that is in the stream and not in the catalog: dropped since, or not visible yet. Whoever asked for all tables
    /// may have been owed its rows.
    fn unknown_table(&mut self, at: At, row: &RowChange, origin: &Origin) {
        let Some(rules) = &self.current else { return };
        if rules.snapshot.sees(origin.xid) {
            // The catalog is newer than the row: the table was dropped, or left the publication.
            return;
        }
        let (schema, table) = (&row.relation.schema, &row.relation.table);
        let concerned = self.registry.channels().filter(|channel| {
            let named = || channel.entries.iter().any(|entry| resolve::names(entry, schema, table));
            channel.at == at && row.position > channel.from() && named()
        });
        let ports: Vec<Arc<Port>> = concerned.map(|channel| channel.port.clone()).collect();
        self.note_undecided(ports.iter().map(|port| (port, "unknown table")), row);
        let details = matching::undecided_at(row.position, origin.epoch);
        let told = self.undecided(ports, (row, origin.epoch));
        told.iter().for_each(|port| self.tell(port, false, UNDECIDED, details));
    }

    pub(super) fn leave_lane(&mut self) {
        let now = self.deps.clock.unix_seconds();
        for settled in self.lane.released(&self.registry, now) {
            let Leaving { event, cost, permits, undecided, reasons, ended } = match settled {
                Settled::Row(row) => row,
                Settled::Notice(port, ok, message, details) => {
                    matching::notify(&mut self.out, &port, ok, &message, details);
                    continue;
                }
            };
            let (lost, undecided) = undecided.into_iter().zip(reasons).partition::<Vec<_>, _>(|(_, why)| *why == FACTS);
            // Whoever it is by name, wherever he is served by now.
            self.lose(lost.into_iter().map(|(port, _)| port).collect(), (&event.row, event.epoch));
            self.note_undecided(undecided.iter().map(|(port, why)| (port, *why)), &event.row);
            let undecided: Vec<Arc<Port>> = undecided.into_iter().map(|(port, _)| port).collect();
            let told = self.undecided(undecided, (&event.row, event.epoch));
            let permits = self.without_places(permits, &event, &told);
            let sent = matching::emit(&mut self.out, &event, permits, &told, cost);
            self.deps.metrics.deliveries.inc_by(sent);
            self.queued += sent as usize;
            for (port, message) in ended {
                let table = &event.row.relation.table;
                tracing::warn!(table, message, "a subscription was ended for its filter");
                self.deps.journal.note(Note::Ended { channel: port.id.0, at: event.row.position });
                // What it waits for is dropped with it, and what it was owed already. Should the client ask again, it goes on
                // behind that: from before, the same rows would end it again.
                let here = event.epoch.map(|epoch| Cursor { epoch, position: before(event.row.position) });
                let (from, to) = (self.lowest([here, self.lost(port.id)]), self.cursor(self.judged()));
                self.remove(port.id);
                let details = to.map(|to| Details::Gap { from, to, reason: GapReason::Undecided });
                matching::notify(&mut self.out, &port, false, &message, details);
                let shard = port.shard % self.out.len();
                self.out[shard].push(Outgoing::Hold(port, to));
                self.count();
            }
        }
    }
}
