//! How far a channel is: up to which place everything that is owed to it stands in its connection's outbox.
//!
//! A shard says how far it is once for all its channels ([`Reach`]): whatever the hub handed over with it is in the outboxes by
//! then. A channel that is behind (it catches up, or a row of it waits for Postgres) has a *hold* at the place up to which it is
//! complete. The hub sets a hold in or before the batch whose reach passes it, and lifts it behind the frames it was for; so
//! whoever reads the reach first and the hold then has read a place that both had passed.
//!
//! Rejected: a place per channel that each batch moves on, which costs a write per connection and row that nobody gets.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::Port;
use crate::resume::Cursor;

/// How far a shard is.
#[derive(Debug, Default)]
pub struct Reach(Mutex<Option<Cursor>>);

impl Reach {
    /// Everything up to here is in the outboxes, but for channels with a hold. `None`: the log has no history yet.
    pub fn set(&self, to: Option<Cursor>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// See [`Reach::set`].
    pub fn get(&self) -> Option<Cursor> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel's place in the stream: shared by the hub, which decides it, the shard, which sets it behind the frames, and the
/// connection, which asks for it.
#[derive(Debug, Default)]
pub struct Place {
    /// The shard's reach, and where the channel began; set at its activation.
    begun: OnceLock<(Arc<Reach>, Option<Cursor>)>,
    hold: Mutex<Option<Cursor>>,
    pace: Pace,
    /// Frames with a change.
    delivered: AtomicU64,
    /// Its snapshot or the seam is not behind it.
    in_snapshot: AtomicBool,
    had_snapshot: AtomicBool,
    /// See [`Port::has_lost`].
    has_lost: AtomicBool,
    /// See [`Place::announcing`].
    announces: bool,
    told: Mutex<Told>,
}

/// What a channel's frames have told its client.
#[derive(Debug, Default)]
struct Told {
    latest: Option<Cursor>,
    /// Gaps, each from a place (`None`: one that can't be told) to another.
    gaps: Vec<(Option<Cursor>, Cursor)>,
}

/// Gaps of one channel that are kept in mind: most have none, and those of its beginning come first.
const GAPS_KEPT: usize = 16;

impl Place {
    /// Of a channel whose client is to be told that it is subscribed before its first row, so by who writes the rows.
    pub fn announcing() -> Place {
        Place { announces: true, ..Place::default() }
    }

    /// See [`Place::announcing`].
    pub(super) fn announces(&self) -> bool {
        self.announces
    }

    /// A frame that tells this place is about to be written.
    pub fn tell(&self, at: Cursor) {
        let mut told = self.told();
        if !told.latest.is_some_and(|latest| is_before(at, latest)) {
            told.latest = Some(at);
        }
    }

    /// Whether the client has been told a later place than this, or will be before whatever is queued from now on. A client that
    /// keeps the last place must not be led back. Asked while the outbox is held.
    pub fn is_past(&self, at: Cursor) -> bool {
        self.told().latest.is_some_and(|latest| is_before(at, latest))
    }

    /// What the client was told before by another instance is told.
    pub fn take_over(&self, before: &Place) {
        if let Some(at) = before.told().latest {
            self.tell(at);
        }
    }

    /// The word of this gap is in the outbox.
    pub fn tell_gap(&self, from: Option<Cursor>, to: Cursor) {
        let mut told = self.told();
        if told.gaps.len() < GAPS_KEPT {
            told.gaps.push((from, to));
        }
    }

    /// The gaps whose word is in the outbox or has left it.
    pub fn gaps(&self) -> Vec<(Option<Cursor>, Cursor)> {
        self.told().gaps.clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard has written what precedes the channel's first row.
    pub fn begin(&self, reach: Arc<Reach>, start: Option<Cursor>) {
        let _ = self.begun.set((reach, start));
    }

    /// The channel is complete up to here only; `None`: as far as its shard.
    pub fn hold(&self, at: Option<Cursor>) {
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// A frame with a change is about to be written.
    pub fn deliver(&self) {
        self.delivered.fetch_add(1, Ordering::AcqRel);
    }

    /// How many there were.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Acquire)
    }

    /// The channel gets a snapshot first: it can't go on from anywhere until that and its seam are behind it.
    pub fn begin_snapshot(&self) {
        self.in_snapshot.store(true, Ordering::Release);
    }

    /// They are.
    pub fn end_snapshot(&self) {
        self.had_snapshot.store(true, Ordering::Release);
        self.in_snapshot.store(false, Ordering::Release);
    }

    /// Whether a snapshot that the channel asked for need not be taken again: it goes on from where it was.
    pub fn had_snapshot(&self) -> bool {
        self.had_snapshot.load(Ordering::Acquire)
    }

    /// A row is lost to it; before any later row is handed over.
    pub(super) fn lose(&self) {
        self.has_lost.store(true, Ordering::Release);
    }

    /// What is on its way to the outbox.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// How far the stream is for it, whatever is owed of a snapshot.
    pub(super) fn streamed(&self) -> Option<Cursor> {
        let (reach, start) = self.begun.get()?;
        // In this order, see the module's comment.
        let reach = reach.get();
        let hold = *self.hold.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = match (reach, hold) {
            (Some(reach), Some(hold)) if reach.epoch == hold.epoch && reach.position < hold.position => reach,
            // Of another history: what it is complete up to is the hold.
            (_, Some(hold)) => hold,
            (reach, None) => reach?,
        };
        // Nothing at or before its start is owed to it, however far behind the hub is.
        let start = start.filter(|start| start.epoch == reached.epoch && start.position > reached.position);
        Some(start.unwrap_or(reached))
    }
}

/// Places of two histories can't be compared.
fn is_before(one: Cursor, other: Cursor) -> bool {
    one.epoch == other.epoch && one.position < other.position
}

/// Bytes that the hub has sent a channel that catches up, and that are not in its outbox yet.
#[derive(Debug, Default)]
pub struct Pace(AtomicUsize);

impl Pace {
    /// Bytes are on their way.
    pub fn add(&self, bytes: u32) {
        self.0.fetch_add(bytes as usize, Ordering::AcqRel);
    }

    /// They have arrived, or will not.
    pub fn take(&self, bytes: u32) {
        // A channel that asked anew on another port has never heard of them.
        let less = |before: usize| Some(before.saturating_sub(bytes as usize));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

impl Port {
    /// Everything owed to the channel at or before this is in its connection's outbox. `None` before its activation, and before
    /// the log's first history; and until its snapshot is complete, since nobody can go on from within one.
    pub fn reached(&self) -> Option<Cursor> {
        let streamed = self.place.streamed();
        streamed.filter(|_| !self.place.in_snapshot.load(Ordering::Acquire))
    }

    /// Ends this instance; says up to where everything was written for it. In this order: once it is closed, frames are dropped
    /// that count as handed over.
    pub fn retire(&self) -> Option<Cursor> {
        let reached = self.reached();
        self.stage.close();
        reached
    }

    /// Whether a row was ever lost that is told of behind later ones: whoever has those has not everything before them, unless
    /// [`Port::reached`] says so. Whoever has a row that came before the loss may still be told `false`.
    pub fn has_lost(&self) -> bool {
        self.place.has_lost.load(Ordering::Acquire)
    }

    /// Bytes that the channel's connection has not taken yet, those on their way to its outbox included.
    pub fn burden(&self) -> usize {
        // In this order: what arrives in between is counted twice rather than not at all.
        let on_their_way = self.place.pace.bytes();
        on_their_way.saturating_add(self.outbox.waiting())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Lsn, Position};

    fn cursor(epoch: u64, lsn: u64) -> Option<Cursor> {
        Some(Cursor { epoch, position: Position { lsn: Lsn(lsn), ordinal: u32::MAX } })
    }

    #[test]
    fn a_channel_is_as_far_as_its_shard_and_its_hold() {
        let (place, reach) = (Place::default(), Arc::new(Reach::default()));
        reach.set(cursor(1, 10));
        assert_eq!(place.streamed(), None, "not active");
        place.begin(reach.clone(), cursor(1, 5));
        assert_eq!(place.streamed(), cursor(1, 10));
        place.hold(cursor(1, 7));
        assert_eq!(place.streamed(), cursor(1, 7));
        place.hold(cursor(1, 12));
        assert_eq!(place.streamed(), cursor(1, 10));
        reach.set(cursor(2, 3));
        assert_eq!(place.streamed(), cursor(1, 12), "what it waits for is of the history before");
        place.hold(None);
        assert_eq!(place.streamed(), cursor(2, 3));
    }

    #[test]
    fn a_place_leads_back_if_a_later_one_of_its_history_was_told() {
        let place = Place::default();
        let at = |epoch, lsn| cursor(epoch, lsn).unwrap();
        assert!(!place.is_past(at(1, 1)));
        place.tell(at(1, 10));
        place.tell(at(1, 7));
        assert!(place.is_past(at(1, 9)) && !place.is_past(at(1, 10)) && !place.is_past(at(1, 11)));
        assert!(!place.is_past(at(2, 1)), "of another history");
        let next = Place::announcing();
        next.take_over(&place);
        assert!(next.is_past(at(1, 9)));
        place.tell(at(2, 3));
        assert!(place.is_past(at(2, 2)) && !place.is_past(at(1, 9)));
    }

    #[test]
    fn an_instance_that_ends_has_reached_nothing_that_was_dropped_for_it() {
        for _ in 0..200 {
            let reach = Arc::new(Reach::default());
            let port = crate::hub::tests::port();
            port.place.begin(reach.clone(), cursor(1, 1));
            reach.set(cursor(1, 1));
            let shard = {
                let (port, reach) = (port.clone(), reach.clone());
                std::thread::spawn(move || {
                    let mut written = 1;
                    for lsn in 2..20 {
                        if !port.stage.is_closed() {
                            written = lsn;
                        }
                        reach.set(cursor(1, lsn));
                        std::thread::yield_now();
                    }
                    written
                })
            };
            while reach.get().is_some_and(|reached| reached.position.lsn < Lsn(4)) {
                std::thread::yield_now();
            }
            let reached = port.retire().expect("a place").position.lsn.0;
            let written = shard.join().expect("it ends");
            assert!(reached <= written, "{reached} of {written}");
        }
    }

    #[test]
    fn a_start_ahead_of_the_hub_is_not_taken_back() {
        let (place, reach) = (Place::default(), Arc::new(Reach::default()));
        reach.set(cursor(1, 10));
        place.begin(reach.clone(), cursor(1, 20));
        assert_eq!(place.streamed(), cursor(1, 20));
        reach.set(cursor(1, 30));
        assert_eq!(place.streamed(), cursor(1, 30));
        reach.set(None);
        assert_eq!(place.streamed(), None);
    }
}
