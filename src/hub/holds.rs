//! How far each channel is, told to its connection: see [`super::reach`].
//!
//! A channel is complete up to the stream's position unless it catches up, waits in the lane, is aside, or has lost rows of which
//! it was not told yet. Whatever may change that stirs the channel; before anything is handed to the shards, each stirred one's
//! hold is computed anew and told if it differs. Those that have one are looked at again every [`MOVE`]: they move on with their
//! pass, or with the rows that they wait for.

use ahash::AHashMap;
use tokio::time::{Duration, Instant};

use super::gaps::before;
use super::registry::{At, Channel};
use super::run::Hub;
use super::{Batch, ChannelId, Outgoing};
use crate::change::Position;
use crate::fail::{self, Point};
use crate::resume::Cursor;

/// Between two looks at those that have a hold, and between two empty batches.
const MOVE: Duration = Duration::from_millis(100);

/// See the module's comment.
pub(super) struct Holds {
    told: AHashMap<ChannelId, Cursor>,
    stirred: Vec<ChannelId>,
    looked_at: Instant,
    /// What each shard was told last, and when.
    sent: Vec<(Option<Cursor>, Instant)>,
    /// When [`Hub::flush`] has something to tell though nothing happens.
    pub(super) due_at: Option<Instant>,
}

impl Holds {
    pub(super) fn new(shards: usize) -> Holds {
        let now = Instant::now();
        let (told, stirred) = (AHashMap::new(), Vec::new());
        Holds { told, stirred, looked_at: now, sent: vec![(None, now); shards], due_at: None }
    }

    /// This channel may be less far, or farther, than before.
    pub(super) fn stir(&mut self, channel: ChannelId) {
        self.stirred.push(channel);
    }

    /// Another instance of the channel begins, which was told nothing yet.
    pub(super) fn forget(&mut self, channel: ChannelId) {
        self.told.remove(&channel);
    }
}

impl Hub {
    /// Everything up to here was judged for those who are live.
    pub(super) fn judged(&self) -> Position {
        let within = self.work.as_ref().and_then(|work| work.last);
        within.unwrap_or(super::gaps::end_of(self.done))
    }

    /// The position as clients keep it; `None` before the first history.
    pub(super) fn cursor(&self, position: Position) -> Option<Cursor> {
        self.epoch.map(|epoch| Cursor { epoch, position })
    }

    /// Up to where a channel was given everything by its rows' source, be they on their way; `None`: as far as the stream.
    pub(super) fn progress(&self, channel: &Channel) -> Option<Cursor> {
        let cursor = |position| channel.epoch.map(|epoch| Cursor { epoch, position });
        match channel.at {
            At::Live => None,
            At::Pass(pass) => {
                let (at, epoch) = self.passes.at(pass)?;
                epoch.map(|epoch| Cursor { epoch, position: at.max(channel.from()) })
            }
            At::Waiting | At::Parked | At::Paused | At::Snapshot | At::Expired => cursor(channel.from()),
        }
    }

    pub(super) fn hold_of(&self, id: ChannelId) -> Option<Cursor> {
        let channel = self.registry.get(id)?;
        let holds = [self.progress(channel), self.lane.complete_to(id), self.lost(id)];
        self.lowest(holds)
    }

    /// The place before the first row that a channel has lost and was not told of.
    pub(super) fn lost(&self, id: ChannelId) -> Option<Cursor> {
        let owed = self.owing.since(id).map(|first| Cursor { position: before(first.position), ..first });
        let out = self.registry.get(id).and_then(|channel| channel.out_since);
        self.lowest([owed, out])
    }

    /// Of two histories the one before the present one is the lower.
    pub(super) fn lowest(&self, places: impl IntoIterator<Item = Option<Cursor>>) -> Option<Cursor> {
        places.into_iter().flatten().min_by_key(|place| (Some(place.epoch) == self.epoch, place.position))
    }

    fn move_holds(&mut self, now: Instant) {
        let waited = self.lane.stirred();
        waited.iter().for_each(|id| self.arrived(*id));
        let Holds { told, stirred, looked_at, .. } = &mut self.holds;
        stirred.extend(waited);
        if now >= *looked_at + MOVE {
            *looked_at = now;
            stirred.extend(told.keys());
            self.let_go_of_replayed();
        }
        for id in std::mem::take(&mut self.holds.stirred) {
            let hold = self.hold_of(id);
            if self.holds.told.get(&id).copied() == hold {
                continue;
            }
            match hold {
                Some(hold) => self.holds.told.insert(id, hold),
                None => self.holds.told.remove(&id),
            };
            if let Some(channel) = self.registry.get(id) {
                let shard = channel.port.shard % self.out.len();
                self.out[shard].push(Outgoing::Hold(channel.port.clone(), hold));
            }
        }
    }

    /// Hands over what is queued, and tells how far that is.
    pub(super) async fn flush(&mut self) {
        self.queued = 0;
        let now = Instant::now();
        self.move_holds(now);
        let (reached, epoch) = (self.judged(), self.epoch);
        let cursor = self.cursor(reached);
        let mut due_at = (!self.holds.told.is_empty()).then_some(self.holds.looked_at + MOVE);
        for ((out, shard), sent) in self.out.iter_mut().zip(&self.deps.shards).zip(&mut self.holds.sent) {
            let items = std::mem::take(out);
            let batch = Batch { items, reached, epoch };
            if !batch.items.is_empty() {
                *sent = (cursor, now);
                // A shard never waits for a socket, so this waits for processor time only. It is gone at the drain.
                let _ = shard.send(batch).await;
                fail::point(Point::Queued);
            } else if sent.0 != cursor && now >= sent.1 + MOVE {
                // One that has so much to do is told with that.
                sent.1 = now;
                if shard.try_send(batch).is_ok() {
                    sent.0 = cursor;
                }
            }
            if sent.0 != cursor {
                due_at = Some(due_at.map_or(sent.1 + MOVE, |at| at.min(sent.1 + MOVE)));
            }
        }
        self.holds.due_at = due_at;
    }
}
