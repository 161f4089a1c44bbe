//! Connections that have not become a WebSocket yet: so many at a time, and who has nothing to say makes room for who has.
//!
//! Invariants:
//! * A guest waits, or is being answered; only who waits can be sent away, and then who has waited the longest.
//! * Nobody is sent away while there is a place.
//!
//! So whoever holds all places by saying nothing, or a byte now and then, has to come again as often as others come, and those
//! who do say what they want are through meanwhile. Rejected: only a deadline for the head, which keeps everybody out for
//! as long as it is; and a bound for each address, which is one address behind a proxy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// See the module's comment.
pub(super) struct Anteroom {
    places: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    /// Somebody has begun to wait.
    quiet: Notify,
}

/// By when they began to wait.
#[derive(Default)]
struct Waiting {
    next: u64,
    guests: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place, until it is dropped.
pub(super) struct Guest {
    room: Arc<Anteroom>,
    /// Its place among those who wait.
    turn: Mutex<Option<u64>>,
    /// It is to go.
    sent_away: Arc<Notify>,
    _place: OwnedSemaphorePermit,
}

/// While it lives, the guest is not sent away.
pub(super) struct Served(Arc<Guest>);

impl Anteroom {
    pub(super) fn new(most: usize) -> Arc<Anteroom> {
        let places = Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(Anteroom { places, waiting: Mutex::default(), quiet: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, as soon as there is one; `sent_away` is called if somebody has lost his for it. Nothing is lost if
    /// this is not awaited to its end but the place of that one.
    pub(super) async fn enter(self: &Arc<Anteroom>, sent_away: impl FnOnce()) -> Arc<Guest> {
        let place = match self.places.clone().try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => self.make_room(sent_away).await,
        };
        // The semaphore is never closed.
        let Some(place) = place else { return std::future::pending().await };
        let guest =
            Guest { room: self.clone(), turn: Mutex::default(), sent_away: Arc::new(Notify::new()), _place: place };
        guest.wait();
        Arc::new(guest)
    }

    async fn make_room(&self, sent_away: impl FnOnce()) -> Option<OwnedSemaphorePermit> {
        loop {
            // Asked for first, so that none who begins to wait meanwhile is overlooked.
            let quiet = self.quiet.notified();
            let longest = self.lock().guests.pop_first();
            if let Some((_, longest)) = longest {
                longest.notify_one();
                sent_away();
                return self.places.clone().acquire_owned().await.ok();
            }
            // All are being answered.
            tokio::select! {
                place = self.places.clone().acquire_owned() => return place.ok(),
                () = quiet => {}
            }
        }
    }
}

impl Guest {
    fn wait(&self) {
        let mut waiting = self.room.lock();
        let turn = waiting.next;
        waiting.next += 1;
        waiting.guests.insert(turn, self.sent_away.clone());
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
        drop(waiting);
        self.room.quiet.notify_one();
    }

    fn stop_waiting(&self) {
        let mut waiting = self.room.lock();
        if let Some(turn) = self.turn.lock().unwrap_or_else(PoisonError::into_inner).take() {
            waiting.guests.remove(&turn);
        }
    }

    /// It has said what it wants.
    pub(super) fn served(self: &Arc<Guest>) -> Served {
        self.stop_waiting();
        Served(self.clone())
    }

    /// Until it is to go.
    pub(super) async fn sent_away(&self) {
        self.sent_away.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_has_waited_the_longest_makes_room() {
        let room = Anteroom::new(2);
        let calm = || unreachable!("nobody has to go");
        let (first, second) = (room.enter(calm).await, room.enter(calm).await);
        let served = first.served();
        let mut gone = 0;
        let third = room.enter(|| gone += 1).now_or_never();
        assert!(third.is_none() && second.sent_away().now_or_never().is_some());
        assert!(first.sent_away().now_or_never().is_none());
        assert_eq!(gone, 1);
        drop(second);
        let third = room.enter(calm).await;
        // Whoever is answered begins to wait again, behind who came since.
        drop(served);
        let fourth = room.enter(|| gone += 1).now_or_never();
        assert!(fourth.is_none() && third.sent_away().now_or_never().is_some());
        assert_eq!(gone, 2);
    }

    #[tokio::test]
    async fn nobody_is_sent_away_while_he_is_answered() {
        let room = Anteroom::new(1);
        let guest = room.enter(|| unreachable!("there is a place")).await;
        let served = guest.served();
        let mut gone = 0;
        let mut next = Box::pin(room.enter(|| gone += 1));
        assert!(next.as_mut().now_or_never().is_none());
        drop(served);
        assert!(next.as_mut().now_or_never().is_none() && guest.sent_away().now_or_never().is_some());
        drop(guest);
        assert!(next.now_or_never().is_some());
        assert_eq!(gone, 1);
        assert!(room.lock().guests.is_empty());
    }
}
