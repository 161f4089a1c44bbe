//! One room: its members by shard, its presence, and what is counted of it. Everything is under one short lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use smallvec::SmallVec;
use tokio::sync::Semaphore;

use super::RoomKey;
use super::members::{Members, Slot};
use super::presence::Presence;
use super::rate::{Rate, WINDOW_SECONDS};
use crate::hub::Version;

/// Shards by number, ascending.
pub(super) type Shards = SmallVec<[usize; 8]>;

/// See the module's comment.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) key: RoomKey,
    made: Instant,
    state: Mutex<State>,
}

impl Room {
    pub(super) fn new(key: RoomKey, shards: usize) -> Room {
        let state = State {
            shards: (0..shards).map(|_| Members::default()).collect(),
            count: 0,
            forms: Vec::new(),
            users: AHashMap::new(),
            posters: AHashMap::new(),
            presence: Presence::default(),
            last_diff: None,
            is_due: false,
            messages: Rate::default(),
            changes: Rate::default(),
            share: (Duration::ZERO, 0),
        };
        Room { key, made: Instant::now(), state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since it was made.
    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) shards: Box<[Members]>,
    /// Members of all shards.
    pub(super) count: usize,
    /// What the frames of its members look like: version and topic. By [`Slot::form`].
    pub(super) forms: Vec<(Version, Arc<str>)>,
    users: AHashMap<Arc<str>, User>,
    /// What users have sent who are not in the room, from HTTP.
    posters: AHashMap<Arc<str>, Rate>,
    pub(super) presence: Presence,
    pub(super) last_diff: Option<Instant>,
    /// The next diff is planned.
    pub(super) is_due: bool,
    messages: Rate,
    changes: Rate,
    /// What a user may have sent in the last minute once the room has too much, and when that was found.
    share: (Duration, u64),
}

/// What the members of one user have together.
#[derive(Debug)]
struct User {
    members: usize,
    sent: Rate,
    turn: Arc<Semaphore>,
}

/// Users outside of a room whose messages to it are counted for themselves.
const MAX_POSTERS: usize = 1024;

impl State {
    /// The form of frames like these.
    pub(super) fn form(&mut self, version: Version, topic: &Arc<str>) -> usize {
        let known = self.forms.iter().position(|(v, t)| *v == version && t == topic);
        known.unwrap_or_else(|| {
            self.forms.push((version, topic.clone()));
            self.forms.len() - 1
        })
    }

    /// Takes it in; the turn that it shares with the others of its user.
    pub(super) fn enter(&mut self, slot: Arc<Slot>, user: &Arc<str>) -> Arc<Semaphore> {
        let shard = slot.port.shard % self.shards.len();
        self.shards[shard].insert(slot);
        self.count += 1;
        let new = || User { members: 0, sent: Rate::default(), turn: Arc::new(Semaphore::new(1)) };
        let user = self.users.entry(user.clone()).or_insert_with(new);
        user.members += 1;
        user.turn.clone()
    }

    pub(super) fn leave(&mut self, slot: &Slot, user: &Arc<str>) {
        let shard = slot.port.shard % self.shards.len();
        self.shards[shard].remove(slot.port.id);
        self.count -= 1;
        if let Some(of) = self.users.get_mut(user) {
            of.members -= 1;
            if of.members == 0 {
                self.users.remove(user);
            }
        }
    }

    /// Shards with members.
    pub(super) fn occupied(&self) -> Shards {
        (0..self.shards.len()).filter(|shard| !self.shards[*shard].is_empty()).collect()
    }

    /// Counts a message at this age of the room, if it may be sent. `user`: `None` for nobody of the room.
    pub(super) fn count_message(&mut self, user: Option<&Arc<str>>, limit: u32, age: Duration) -> bool {
        let most = u64::from(limit) * WINDOW_SECONDS;
        if self.messages.sum(age) >= most {
            let share = self.share(most, age);
            let of = user.and_then(|user| self.sent(user, age));
            if of.is_none_or(|sent| sent.sum(age) >= share) {
                return false;
            }
        }
        self.messages.count(age);
        if let Some(sent) = user.and_then(|user| self.sent(user, age)) {
            sent.count(age);
        }
        true
    }

    /// What this user has sent; nobody's if too many are remembered who are not in the room.
    fn sent(&mut self, user: &Arc<str>, age: Duration) -> Option<&mut Rate> {
        if let Some(user) = self.users.get_mut(user) {
            return Some(&mut user.sent);
        }
        if !self.posters.contains_key(user) && self.posters.len() >= MAX_POSTERS {
            self.posters.retain(|_, sent| sent.sum(age) > 0);
            if self.posters.len() >= MAX_POSTERS {
                return None;
            }
        }
        Some(self.posters.entry(user.clone()).or_default())
    }

    /// What each of those who send may have sent. Found anew once in a second.
    fn share(&mut self, most: u64, age: Duration) -> u64 {
        if self.share.1 == 0 || age >= self.share.0 + Duration::from_secs(1) {
            let rates = self.users.values_mut().map(|user| &mut user.sent).chain(self.posters.values_mut());
            let senders = rates.filter_map(|sent| (sent.sum(age) > 0).then_some(())).count();
            // One more: who has not sent yet has a share too.
            self.share = (age, (most / (senders as u64 + 1)).max(1));
        }
        self.share.1
    }

    /// Counts a change of presence, if it may be made.
    pub(super) fn count_change(&mut self, limit: u32, age: Duration) -> bool {
        if self.changes.sum(age) >= u64::from(limit) * WINDOW_SECONDS {
            return false;
        }
        self.changes.count(age);
        true
    }
}
