//! Connections that have not become a WebSocket yet: so many at a time, and who has nothing to say makes room for who has.
//!
//! Invariants:
//! * A guest waits, or is being answered; only who waits can be sent away, and then who has waited the longest.
//! * Nobody is sent away while there is a place, or before he had his time to speak.
//!
//! So whoever holds all places by saying nothing, or a byte now and then, has to come again as often as others come, and those
//! who do say what they want are through meanwhile. Rejected: only a deadline for the head, which keeps everybody out for
//! as long as it is; and a bound for each address, which is one address behind a proxy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

/// See the module's comment.
pub(super) struct Anteroom {
    places: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    /// Somebody has begun to wait.
    quiet: Notify,
    /// The least that everybody has for what he wants to say.
    least: Duration,
}

/// By when they began to wait.
#[derive(Default)]
struct Waiting {
    next: u64,
    guests: BTreeMap<u64, (Instant, Arc<Notify>)>,
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
    pub(super) fn new(most: usize, least: Duration) -> Arc<Anteroom> {
        let places = Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS)));
        Arc::new(Anteroom { places, waiting: Mutex::default(), quiet: Notify::new(), least })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, who is there already, as soon as there is one; `sent_away` is called if somebody has to go for it.
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
            let until = match self.longest() {
                Ok(longest) => {
                    longest.notify_one();
                    sent_away();
                    return self.places.clone().acquire_owned().await.ok();
                }
                Err(until) => until,
            };
            let overdue = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    // All are being answered.
                    None => quiet.await,
                }
            };
            tokio::select! {
                place = self.places.clone().acquire_owned() => return place.ok(),
                () = overdue => {}
            }
        }
    }

    /// Who has waited the longest and for long enough, no longer among those who wait; or when somebody will have, if anybody waits.
    fn longest(&self) -> Result<Arc<Notify>, Option<Instant>> {
        let mut waiting = self.lock();
        let Some(first) = waiting.guests.first_entry() else { return Err(None) };
        let until = first.get().0 + self.least;
        if Instant::now() < until {
            return Err(Some(until));
        }
        Ok(first.remove().1)
    }
}

impl Guest {
    fn wait(&self) {
        let mut waiting = self.room.lock();
        let turn = waiting.next;
        waiting.next += 1;
        waiting.guests.insert(turn, (Instant::now(), self.sent_away.clone()));
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
        let room = Anteroom::new(2, Duration::ZERO);
        let calm = || unreachable!("nobody has to go");
        let (first, second) = (room.enter(calm).await, room.enter(calm).await);
        let served = first.served();
        let mut gone = 0;
        assert!(room.enter(|| gone += 1).now_or_never().is_none());
        assert!(second.sent_away().now_or_never().is_some() && first.sent_away().now_or_never().is_none());
        assert_eq!(gone, 1);
        drop(second);
        let third = room.enter(calm).await;
        // Whoever is answered begins to wait again, behind who came since.
        drop(served);
        assert!(room.enter(|| gone += 1).now_or_never().is_none());
        assert!(third.sent_away().now_or_never().is_some() && first.sent_away().now_or_never().is_none());
        assert_eq!(gone, 2);
    }

    #[tokio::test]
    async fn nobody_is_sent_away_while_he_is_answered_or_before_his_time() {
        let least = Duration::from_millis(20);
        let room = Anteroom::new(1, least);
        let guest = room.enter(|| unreachable!("there is a place")).await;
        let served = guest.served();
        let mut next = Box::pin(room.enter(|| {}));
        assert!(next.as_mut().now_or_never().is_none() && guest.sent_away().now_or_never().is_none());
        let begun = Instant::now();
        drop(served);
        tokio::select! {
            () = guest.sent_away() => {}
            _ = next.as_mut() => panic!("there is no place"),
        }
        assert!(begun.elapsed() >= least);
        drop(guest);
        drop(next.await);
        assert!(room.lock().guests.is_empty());
    }
}
