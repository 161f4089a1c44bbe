//! Places in the shards' queues, taken before the room's lock, so that what is said under it leaves in one order everywhere.
//!
//! Places are taken in ascending order of the shards, by everybody: two who wait for each other's can't be. Who finds a shard
//! occupied that was not, once it has the lock, gives all of them back and begins again with that shard too.

use smallvec::SmallVec;
use tokio::sync::mpsc;

use super::RoomError;
use super::batch::{RoomBatch, What};
use super::state::{Room, Shards, State};

/// One place in the queue of each of some shards.
pub(super) struct Places<'a>(SmallVec<[(usize, mpsc::Permit<'a, RoomBatch>); 8]>);

impl<'a> Places<'a> {
    pub(super) async fn take(queues: &'a [mpsc::Sender<RoomBatch>], shards: &Shards) -> Result<Places<'a>, RoomError> {
        let mut places = SmallVec::new();
        for &shard in shards {
            places.push((shard, queues[shard].reserve().await.map_err(|_| RoomError::Closed)?));
        }
        Ok(Places(places))
    }

    fn covers(&self, shards: &Shards) -> bool {
        shards.iter().all(|shard| self.0.iter().any(|(has, _)| has == shard))
    }

    /// Hands this to each shard with members. For use under the lock.
    pub(super) fn send(self, state: &State, what: impl Fn(&State, usize) -> What) {
        for (shard, place) in self.0 {
            if !state.shards[shard].is_empty() {
                place.send(RoomBatch { what: what(state, shard) });
            }
        }
    }
}

/// Waits for a place in each queue that the room's members need, then has `act` say what to send, under the room's lock.
pub(super) async fn in_order<T>(
    queues: &[mpsc::Sender<RoomBatch>],
    room: &Room,
    act: impl FnOnce(&mut State, Places<'_>) -> T,
) -> Result<T, RoomError> {
    let mut wanted = room.lock().occupied();
    loop {
        let places = Places::take(queues, &wanted).await?;
        let mut state = room.lock();
        let occupied = state.occupied();
        if places.covers(&occupied) {
            return Ok(act(&mut state, places));
        }
        drop(state);
        wanted.extend(occupied);
        wanted.sort_unstable();
        wanted.dedup();
    }
}
