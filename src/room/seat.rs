//! A channel's place in a room. Dropping it leaves the room, and takes back what it tracks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::batch::{RoomBatch, What};
use super::members::Slot;
use super::meta::{Tracked, push_json_string};
use super::state::{Room, State};
use super::{Message, RoomError, Rooms};

/// See the module's comment.
pub struct Seat {
    rooms: Arc<Rooms>,
    room: Arc<Room>,
    slot: Arc<Slot>,
    /// The presence key as JSON text.
    key: Arc<str>,
    user: Arc<str>,
    /// The turn that all members of the same user share.
    turn: Arc<Semaphore>,
    /// Bytes of what it tracks; changed under the room's lock.
    tracked: AtomicUsize,
}

impl Seat {
    pub(super) fn new(
        rooms: Arc<Rooms>,
        room: Arc<Room>,
        slot: Arc<Slot>,
        key: Arc<str>,
        user: Arc<str>,
        turn: Arc<Semaphore>,
    ) -> Seat {
        let mut quoted = String::with_capacity(key.len() + 2);
        push_json_string(&key, &mut quoted);
        Seat { rooms, room, slot, key: quoted.into(), user, turn, tracked: AtomicUsize::new(0) }
    }

    /// To all members; to this one too if `to_self`. Waits for the turn of its user and for places in the shards' queues; what
    /// one member sends after another arrives after it.
    pub async fn broadcast(&self, message: Message, to_self: bool) -> Result<(), RoomError> {
        let _turn = self.turn.acquire().await.map_err(|_| RoomError::Closed)?;
        let skip = (!to_self).then_some(self.slot.port.id);
        self.rooms.send(&self.room, message, Some(&self.user), skip).await
    }

    /// Tracks this object under the member's key, in the place of what it tracks; an equal one changes nothing. The diff follows,
    /// at once in a quiet room. Switches presence on for this member.
    pub async fn track(&self, payload: Arc<RawValue>) -> Result<(), RoomError> {
        let tracked = Tracked::new(&payload).ok_or(RoomError::NotAMap)?;
        let (config, reference) = (&self.rooms.config, self.rooms.reference());
        let (limit, age) = (config.presence_per_second, self.room.age());
        self.rooms.change_presence(&self.room, |state| {
            if !state.count_change(limit, age) {
                return Err(RoomError::TooManyPresence);
            }
            let bounds = self.rooms.bounds(state.presence.bytes());
            let (before, now) = (self.tracked.load(Ordering::Relaxed), self.key.len() + tracked.len());
            if !self.count_tracked(before, now) {
                return Err(RoomError::PresenceFull);
            }
            let taken = state.presence.track(&self.key, self.slot.port.id, &tracked, reference, bounds);
            if let Err(error) = taken {
                self.count_tracked(now, before);
                return Err(error);
            }
            // Before anybody can tell the others: it reads of itself too.
            self.slot.presence.store(true, Ordering::Release);
            Ok(())
        })
    }

    /// Takes back what it tracks, if anything.
    pub async fn untrack(&self) -> Result<(), RoomError> {
        self.rooms.change_presence(&self.room, |state| self.take_back(state));
        Ok(())
    }

    fn take_back(&self, state: &mut State) {
        state.presence.untrack(&self.key, self.slot.port.id);
        self.count_tracked(self.tracked.load(Ordering::Relaxed), 0);
    }

    /// Counts what this member tracks for its connection, if that may be.
    fn count_tracked(&self, before: usize, now: usize) -> bool {
        let may = self.rooms.count_tracked(self.slot.port.outbox.number(), before, now);
        if may {
            self.tracked.store(now, Ordering::Relaxed);
        }
        may
    }

    /// Sends `presence_state` through the queue that diffs take, so that it fits those before and after it. To be called once,
    /// when the port's stage is greeted: before that it would not be written.
    pub async fn send_state(&self) {
        let shard = self.slot.port.shard % self.rooms.queues.len().max(1);
        let Some(queue) = self.rooms.queues.get(shard) else { return };
        // Without a shard the connection is ending.
        let Ok(place) = queue.reserve().await else { return };
        let mut state = self.room.lock();
        let payload = state.presence.state();
        place.send(RoomBatch { what: What::State { slot: self.slot.clone(), payload } });
    }
}

#[cfg(test)]
impl Seat {
    pub(super) fn id(&self) -> u64 {
        self.slot.port.id.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.rooms.leave(&self.room, |state| {
            state.leave(&self.slot, &self.user);
            self.take_back(state);
        });
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("room", &self.room.key).field("port", &self.slot.port).finish_non_exhaustive()
    }
}
