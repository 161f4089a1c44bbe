//! Catching up: channels that begin in the past, and how they come to the present.
//!
//! ```text
//!  start in the past ──► pass (shared; a reader of the log, an index of its own) ──► caught up: live, in one turn
//!        ▲    │ no pass free: waits        │ its connection takes too little
//!        └────┴──────── place ◄──── parked ┘
//! ```
//!
//! A pass goes through the log behind the stream, never ahead of it, in slices between two live transactions, and judges by the
//! rules and facts of now. All whose start it has not passed yet may join it, each getting what is after his own start; so a
//! storm of reconnects costs the range of the log and the deliveries, not their product. When a pass has come to where the
//! stream is, its channels are moved over before the next live transaction is looked at: no row is in both or in neither.
//!
//! Invariants:
//! * A channel is in one place ([`super::registry::At`]), and what it is owed up to there has been emitted, told as a gap, or waits in the lane,
//!   which all share: order within a channel holds wherever its rows come from.
//! * A connection that catches up is never closed for what is sent to it from here: it is parked before its outbox is full.
//! * Live goes first: a pass runs for a slice at a time, and only while shards and lane have room to spare.
//!
//! Rejected: a reader per channel (range × clients); holding live rows back until a channel has caught up, which needs memory in
//! proportion to the distance.

mod pass;
mod place;
mod step;

use std::collections::BTreeSet;

use ahash::AHashSet;
use tokio::time::{Duration, Instant};

use super::matching::Judgement;
use super::registry::Registry;
use super::run::Hub;
use super::waiting::Waiting;
use super::{ChannelId, Port};
use crate::change::{Change, Position, RowChange, Tuple, Value};
use crate::metrics::Metrics;
use pass::Pass;
pub(super) use place::{Moments, moments};

/// Passes at once. The last one is for starts near the present, which must not wait for anything.
pub(super) const PASSES: usize = 5;
const NEAR: usize = PASSES - 1;
/// Transactions, and items in them, that a start may be behind the present to count as near it.
const NEAR_TRANSACTIONS: usize = 1024;
const NEAR_ITEMS: u64 = 16_384;
/// A start this far behind another shares its pass rather than beginning one.
const SHARED_BYTES: u64 = 16 << 20;
/// Channels moved at once.
const MOVED: usize = 2048;
/// Between two looks at parked channels.
const PARKED_LOOK: Duration = Duration::from_millis(20);
/// After which a pass that can't go on is tried again.
const PAUSE: Duration = Duration::from_millis(25);
/// While the shards have more to write than this, the past waits.
const SHARD_BATCHES: usize = 2;
const SHARD_PAUSE: Duration = Duration::from_millis(1);

/// See the module's comment.
pub(super) struct Passes {
    passes: [Option<Box<Pass>>; PASSES],
    /// Whose turn it is.
    next: usize,
    /// Channels for which no pass was free, by their start.
    waiting: BTreeSet<(Position, ChannelId)>,
    /// A place may have become free for them.
    is_free: bool,
    parked: Vec<ChannelId>,
    /// Channels that are live, and will be told when what they wait for in the lane has left.
    arriving: AHashSet<ChannelId>,
    looked_at: Instant,
    /// Who got more from the row at hand than its connection should have waiting.
    full: Vec<ChannelId>,
    /// When [`Hub::replay`] is to be called though nothing happens.
    pub(super) wake_at: Option<Instant>,
}

impl Passes {
    pub(super) fn new() -> Passes {
        Passes {
            passes: [const { None }; PASSES],
            next: 0,
            waiting: BTreeSet::new(),
            is_free: false,
            parked: Vec::new(),
            arriving: AHashSet::new(),
            looked_at: Instant::now(),
            full: Vec::new(),
            wake_at: None,
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.parked.is_empty() && self.passes.iter().all(Option::is_none)
    }

    pub(super) fn measure(&self, metrics: &Metrics) {
        metrics.replay_passes.set(self.passes.iter().flatten().count() as i64);
        metrics.replay_waiting.set(self.waiting.len() as i64);
        metrics.replay_parked.set(self.parked.len() as i64);
    }

    /// Up to where a pass has judged, and of which history that is.
    pub(super) fn at(&self, pass: usize) -> Option<(Position, Option<u64>)> {
        self.passes.get(pass)?.as_ref().map(|pass| (pass.at, pass.epoch))
    }

    fn wake(&mut self, at: Instant) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    /// Resolves when a pass has what it waited for from the disk. Cancel-safe.
    pub(super) async fn loaded(&mut self) {
        std::future::poll_fn(|cx| pass::poll_loaded(self.passes.iter_mut().flatten().map(|pass| &mut **pass), cx))
            .await;
    }

    /// What a row of the past adds to the pace of each who gets it; remembers those for whom that is enough for now.
    pub(super) fn weigh(&mut self, judgement: &Judgement, row: &RowChange, registry: &Registry) -> u32 {
        let cost = cost(row);
        let mut consider = |port: &Port| {
            if port.burden() + cost as usize > port.outbox.limit() / 4 {
                self.full.push(port.id);
            }
        };
        judgement.permits.iter().flat_map(|(_, members)| members).for_each(|member| consider(&member.port));
        let asked = judgement.asked.iter().flat_map(|asked| &asked.waiting);
        let asked = asked.map(|Waiting { share, .. }| share.channel);
        let filtered = judgement.filtered.iter().map(|filtered| filtered.share.channel);
        for channel in asked.chain(filtered) {
            registry.get(channel).into_iter().for_each(|known| consider(&known.port));
        }
        cost
    }
}

/// What the frame of a row takes, about: rather more than less.
fn cost(row: &RowChange) -> u32 {
    let size = |tuple: &Tuple| -> usize {
        let bytes = |value| if let Value::Text(text) = value { text.len() } else { 0 };
        tuple.values().map(bytes).sum()
    };
    let values = match &row.change {
        Change::Insert { new } => size(new),
        Change::Update { new, old } => size(new) + old.as_ref().map_or(0, |old| size(old.tuple())),
        Change::Delete { old } => size(old.tuple()),
    };
    let names: usize = row.relation.columns.iter().map(|column| column.name.len() + 32).sum();
    u32::try_from(512 + 2 * names + values + values / 4).unwrap_or(u32::MAX)
}

impl Hub {
    /// Goes on with the past for a slice; says whether there is more to do at once.
    pub(super) fn replay(&mut self) -> bool {
        self.passes.wake_at = None;
        if self.passes.is_idle() {
            return false;
        }
        let now = Instant::now();
        if self.place_again(now) {
            // A pass that goes on would leave them behind.
            return true;
        }
        self.passes.passes.iter_mut().flatten().for_each(|pass| pass.look());
        if !self.may_replay() {
            return false;
        }
        self.run_pass(NEAR, now);
        if self.shards_have_room() {
            let order = (0..NEAR).map(|step| (self.passes.next + step) % NEAR);
            let turn =
                order.into_iter().find(|pass| self.passes.passes[*pass].as_ref().is_some_and(|p| p.is_ready(now)));
            if let Some(pass) = turn {
                self.passes.next = (pass + 1) % NEAR;
                self.run_pass(pass, now);
            }
        } else {
            self.passes.wake(now + SHARD_PAUSE);
            return self.passes.passes[NEAR].as_ref().is_some_and(|pass| pass.is_ready(now));
        }
        let Passes { passes, wake_at, .. } = &mut self.passes;
        for pass in passes.iter().flatten() {
            *wake_at = [*wake_at, pass.rests_until].into_iter().flatten().min();
        }
        let more = passes.iter().flatten().any(|pass| pass.is_ready(now));
        more || (self.passes.is_free && !self.passes.waiting.is_empty() && self.reader.is_current())
    }

    /// Whether rows of the past may be judged now.
    fn may_replay(&mut self) -> bool {
        if self.is_within() || !self.revalidating.is_empty() || !self.lane.has_room_to_spare() {
            return false;
        }
        let max_age = self.config.max_rules_age;
        if self.current.as_ref().is_some_and(|rules| rules.is_fresh(max_age)) {
            return true;
        }
        self.poke_soon();
        false
    }

    fn shards_have_room(&self) -> bool {
        self.deps.shards.iter().all(|shard| shard.max_capacity() - shard.capacity() <= SHARD_BATCHES)
    }
}
