//! Subscribers by the thousand for tests and benches: what the hub knows, without its task, log and sockets.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::event::{Event, Outgoing};
use super::matching::{Judgement, Matcher, emit, event};
use super::registry::{At, Channel, Registry};
use super::resolve::Target;
use super::{Action, ChannelId, Outbox, Place, Port, Stage, Transmit, Version};
use crate::catalog::Catalog;
use crate::change::{RowChange, Timestamp};
use crate::claims::Principal;
use crate::filter::Predicate;
use crate::metrics::Metrics;
use crate::policy::Options;
use crate::policy::facts::Facts;

/// See the module's comment.
pub(crate) struct Crowd {
    pub(super) registry: Registry,
    pub(crate) facts: Facts,
    matcher: Matcher,
    pub(super) catalog: Arc<Catalog>,
    pub(crate) metrics: Metrics,
    outbox: Arc<Outbox>,
    topic: Arc<str>,
    stage: Arc<Stage>,
    out: [Vec<Outgoing>; 2],
    joined: u64,
}

/// A socket that takes everything.
struct Hole;

impl Transmit for Hole {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|part| part.len()).sum())
    }
}

impl Crowd {
    pub(crate) fn new(catalog: Catalog, options: Options) -> Crowd {
        Crowd {
            registry: Registry::new(options, 0),
            facts: Facts::new(usize::MAX),
            matcher: Matcher::default(),
            catalog: Arc::new(catalog),
            metrics: Metrics::new(),
            outbox: Arc::new(Outbox::new(Box::new(Hole), 1 << 20, Bytes::new())),
            topic: "realtime:room".into(),
            stage: Arc::new(Stage::greeted()),
            out: [Vec::with_capacity(4), Vec::with_capacity(4)],
            joined: 0,
        }
    }

    /// A channel with one entry on a table. All share one outbox: what a connection costs is measured elsewhere.
    pub(crate) fn join(&mut self, principal: &Arc<Principal>, table_oid: u32, predicate: Predicate) -> ChannelId {
        self.joined += 1;
        let id = ChannelId(self.joined);
        self.activate(id, principal, table_oid, predicate);
        id
    }

    /// The same for a channel that may be there already.
    pub(super) fn activate(&mut self, id: ChannelId, principal: &Arc<Principal>, table_oid: u32, predicate: Predicate) {
        let target =
            Target { table_oid, entry_id: 7, entry: 0, action: Action::All, predicate, select: None, cursor_as: None };
        let port = Arc::new(Port {
            id,
            outbox: self.outbox.clone(),
            shard: id.0 as usize,
            topic: self.topic.clone(),
            version: Version::V2,
            join_ref: self.topic.clone(),
            stage: self.stage.clone(),
            place: Place::default(),
        });
        let channel = Channel::new(port, principal.clone(), Arc::default());
        self.registry.activate(channel, vec![target], &self.catalog);
    }

    pub(crate) fn leave(&mut self, id: ChannelId) {
        self.registry.remove(id);
    }

    pub(crate) fn subscriptions(&self) -> usize {
        self.registry.subscriptions()
    }

    /// Finds and judges the candidates of a row.
    pub(super) fn judge(&mut self, row: &RowChange) -> Judgement {
        if let Some(table) = self.registry.table(At::Live, row.relation.oid) {
            table.fit(&row.relation, &self.catalog, &self.facts);
        }
        self.matcher.judge((&mut self.registry, At::Live), (row, (0, None)), &self.facts, 0, &self.metrics)
    }

    /// How many judgements the latest row took.
    pub(super) fn judged(&self) -> usize {
        self.matcher.judged()
    }

    /// The next row is looked up, whatever rows were before it.
    pub(crate) fn forget_rooms(&mut self, table_oid: u32) {
        self.registry.table(At::Live, table_oid).into_iter().for_each(|table| table.forget_rooms());
    }

    /// The rules changed.
    pub(super) fn apply_rules(&mut self, catalog: Catalog) {
        let before = std::mem::replace(&mut self.catalog, Arc::new(catalog));
        self.registry.apply_rules(&self.catalog, &before);
        self.registry.catch_up();
    }

    /// The event of a row, made once for [`Crowd::deliver`].
    pub(crate) fn event(&self, row: RowChange) -> Arc<Event> {
        Arc::new(event(row, (Timestamp(0), Instant::now()), self.catalog.types(), Some(1)))
    }

    /// What the hub does for a row, up to the batches for the shards. Returns how many get it.
    pub(crate) fn deliver(&mut self, event: &Arc<Event>) -> u64 {
        let judgement = self.judge(&event.row);
        let deliveries = emit(&mut self.out, event, judgement.permits, &judgement.undecided, 0);
        self.out.iter_mut().for_each(Vec::clear);
        deliveries
    }
}
