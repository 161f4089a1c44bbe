//! All rooms, by key; and the planned diffs of their presence.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::{AHashMap, RandomState};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use smallvec::smallvec;
use tokio::sync::{Notify, mpsc};

use super::batch::{Cast, Kind, RoomBatch, What};
use super::members::Slot;
use super::meta::Reference;
use super::order::in_order;
use super::presence::Bounds;
use super::state::{Room, State};
use super::{Member, Message, RoomConfig, RoomError, RoomKey, Seat};
use crate::hub::ChannelId;
use crate::metrics::Metrics;
use crate::policy::Rights;
use crate::task::Drain;

/// A diff costs a frame for each member, so the diffs of a large room are further apart: at most 20,000 frames a second.
const WINDOW_PER_MEMBER: Duration = Duration::from_micros(50);
/// Parts of the map, so that joins of different rooms seldom meet.
const PARTS: usize = 64;

type Part = AHashMap<RoomKey, Arc<Room>>;

/// See the module's comment.
pub struct Rooms {
    pub(super) config: RoomConfig,
    pub(super) queues: Vec<mpsc::Sender<RoomBatch>>,
    pub(super) metrics: Arc<Metrics>,
    parts: Box<[Mutex<Part>]>,
    hasher: RandomState,
    /// Rooms that have a diff to send, and when; each is here once at most.
    due: Mutex<Vec<(Instant, Arc<Room>)>>,
    wake: Notify,
    process: u32,
    references: AtomicU64,
    /// Bytes of the presence of all rooms.
    present: AtomicUsize,
    /// Bytes that each connection tracks, by the number of its outbox; one that tracks nothing is not here.
    pub(super) tracked: Mutex<AHashMap<u64, usize>>,
}

impl Rooms {
    /// No room yet. `queues`: one per shard ([`crate::gateway::shard::Shard::rooms`]); a port's `shard` picks one. Diffs are sent
    /// while [`Rooms::run`] runs.
    pub fn new(config: RoomConfig, queues: Vec<mpsc::Sender<RoomBatch>>, metrics: Arc<Metrics>) -> Arc<Rooms> {
        Arc::new(Rooms {
            config,
            queues,
            metrics,
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            due: Mutex::default(),
            wake: Notify::new(),
            process: rand::random(),
            references: AtomicU64::new(1),
            present: AtomicUsize::new(0),
            tracked: Mutex::default(),
        })
    }

    /// Registers a channel; from now on broadcasts and diffs go to its port, and are written while its stage is greeted.
    pub fn enter(self: &Arc<Self>, key: RoomKey, member: Member) -> Seat {
        let Member { port, rights, presence, key: own, user } = member;
        // Who has no rights in a private room may do nothing there.
        let rights = rights.or_else(|| key.private.then(|| Arc::new(Rights::new(Arc::default()))));
        let (slot, room, turn) = {
            let mut part = self.part(&key);
            let room = part.entry(key.clone()).or_insert_with(|| {
                self.metrics.rooms.inc();
                Arc::new(Room::new(key, self.queues.len().max(1)))
            });
            let mut state = room.lock();
            let to_all = self.config.presence_to_all;
            let form = state.form(port.version, &port.topic);
            let presence = AtomicBool::new(presence || to_all);
            let slot = Arc::new(Slot { port, rights, presence, form, missed: AtomicBool::new(false) });
            let turn = state.enter(slot.clone(), &user);
            drop(state);
            (slot, room.clone(), turn)
        };
        self.metrics.room_members.inc();
        Seat::new(self.clone(), room, slot, own, user, turn)
    }

    /// To all members of a room, from this user, who need not be in it; waits for places in the shards' queues. A room that
    /// nobody is in takes everything.
    pub async fn publish(&self, key: &RoomKey, message: Message, user: &Arc<str>) -> Result<(), RoomError> {
        let room = self.part(key).get(key).cloned();
        match room {
            Some(room) => self.send(&room, message, Some(user), None).await,
            None => {
                self.broadcasts("received", 1);
                Ok(())
            }
        }
    }

    /// Sends the planned diffs until it is told to stop.
    pub async fn run(self: Arc<Self>, drain: Drain) {
        let mut flushes = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = drain.draining() => return,
                () = self.wake.notified() => {}
                Some(()) = flushes.next() => {}
            }
            for (at, room) in std::mem::take(&mut *self.due()) {
                let rooms = &self;
                flushes.push(async move {
                    if at > Instant::now() {
                        tokio::time::sleep_until(at.into()).await;
                    }
                    rooms.tell_presence(&room).await;
                });
            }
        }
    }

    pub(super) async fn send(
        &self,
        room: &Room,
        message: Message,
        user: Option<&Arc<str>>,
        skip: Option<ChannelId>,
    ) -> Result<(), RoomError> {
        let limit = self.config.messages_per_second;
        if !room.lock().count_message(user, limit, room.age()) {
            self.broadcasts("refused", 1);
            return Err(RoomError::TooManyMessages);
        }
        self.broadcasts("received", 1);
        in_order(&self.queues, room, |state, places| {
            let cast = Cast::new(Kind::Broadcast(message), state.forms.len());
            places.send(state, |state, shard| {
                let members = state.shards[shard].blocks().clone();
                What::Casts { members, casts: smallvec![cast.clone()], skip }
            });
        })
        .await
    }

    async fn tell_presence(&self, room: &Room) {
        let told = in_order(&self.queues, room, |state, places| {
            state.is_due = false;
            let before = state.presence.bytes();
            let diffs = state.presence.publish();
            self.count_bytes(before, state.presence.bytes());
            self.metrics.presence_coalesced.inc_by(diffs.coalesced);
            if diffs.payloads.is_empty() {
                return;
            }
            state.last_diff = Some(Instant::now());
            self.metrics.presence_diffs.inc_by(diffs.payloads.len() as u64);
            let forms = state.forms.len();
            let casts: Vec<_> = diffs.payloads.into_iter().map(|diff| Cast::new(Kind::Diff(diff), forms)).collect();
            places.send(state, |state, shard| {
                let members = state.shards[shard].blocks().clone();
                What::Casts { members, casts: casts.iter().cloned().collect(), skip: None }
            });
        });
        // Without shards there is nobody to tell.
        let _ = told.await;
    }

    /// Does this to a room's presence, and plans a diff if there is something to tell then.
    pub(super) fn change_presence<T>(&self, room: &Arc<Room>, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = room.lock();
        let (before, bytes) = (state.presence.len(), state.presence.bytes());
        let result = act(&mut state);
        let more = i64::try_from(state.presence.len()).unwrap_or(0) - i64::try_from(before).unwrap_or(0);
        self.metrics.presence_metas.inc_by(more);
        self.count_bytes(bytes, state.presence.bytes());
        if state.presence.is_dirty() && !state.is_due {
            state.is_due = true;
            let now = Instant::now();
            let window = self.window(state.count);
            let at = state.last_diff.map_or(now, |last| now.max(last + window));
            drop(state);
            self.due().push((at, room.clone()));
            self.wake.notify_one();
        }
        result
    }

    fn count_bytes(&self, before: usize, now: usize) {
        // Modulo the size of the integer, so that less is a sum too.
        self.present.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// What a room may keep that keeps `bytes` now.
    pub(super) fn bounds(&self, bytes: usize) -> Bounds {
        let left = self.config.presence_all_bytes.saturating_sub(self.present.load(Ordering::Relaxed));
        Bounds {
            metas: self.config.presence_metas,
            meta: self.config.presence_meta_bytes,
            bytes: self.config.presence_bytes.min(bytes.saturating_add(left)),
        }
    }

    /// Counts that a connection tracks `now` in the place of `before`, unless that is more than it may.
    pub(super) fn count_tracked(&self, connection: u64, before: usize, now: usize) -> bool {
        let mut tracked = self.tracked.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = tracked.get(&connection).copied().unwrap_or(0).saturating_sub(before) + now;
        if now > before && sum > self.config.presence_connection_bytes {
            return false;
        }
        match sum {
            0 => tracked.remove(&connection),
            _ => tracked.insert(connection, sum),
        };
        true
    }

    /// Between two diffs of a room with so many members.
    pub(super) fn window(&self, members: usize) -> Duration {
        let large = WINDOW_PER_MEMBER.saturating_mul(u32::try_from(members).unwrap_or(u32::MAX));
        self.config.presence_window.max(large.min(self.config.presence_longest_window))
    }

    /// Ends a room that nobody is in any more.
    pub(super) fn leave(&self, room: &Arc<Room>, leave: impl FnOnce(&mut State)) {
        let mut part = self.part(&room.key);
        self.change_presence(room, leave);
        self.metrics.room_members.dec();
        if room.lock().count == 0 && part.remove(&room.key).is_some() {
            self.metrics.rooms.dec();
        }
    }

    pub(super) fn reference(&self) -> Reference {
        Reference { process: self.process, number: self.references.fetch_add(1, Ordering::Relaxed) }
    }

    fn broadcasts(&self, kind: &'static str, count: u64) {
        self.metrics.broadcasts.get_or_create(&[("kind", kind)]).inc_by(count);
    }

    fn part(&self, key: &RoomKey) -> MutexGuard<'_, Part> {
        let part = self.hasher.hash_one(key) as usize % PARTS;
        self.parts[part].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self) -> MutexGuard<'_, Vec<(Instant, Arc<Room>)>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
