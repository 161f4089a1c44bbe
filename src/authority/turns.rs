//! Whose probe comes next: a turn per user, and one turn of all that only those have who were let in before.
//!
//! Invariants:
//! * One user's probes take one turn at a time, however many he waits with: others are between them.
//! * Who was let in is asked about again though many others want in: his right ends where that comes too late.
//!
//! Rejected: one queue for all, in which a client that joins a thousand channels is before everybody else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::AHashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Probes of one user that wait: those of all channels of a connection.
const MOST_WAITING: usize = 1024;
/// Users and topics that are remembered to have been let in.
const MOST_KNOWN: usize = 1 << 16;

/// A user and a topic.
type Who = (Arc<str>, Arc<str>);

/// See the module's comment.
pub(super) struct Turns {
    all: Semaphore,
    /// For those who were let in before.
    again: Semaphore,
    users: Mutex<AHashMap<Arc<str>, User>>,
    /// Who was let in to which topic, until when that is remembered.
    known: Mutex<AHashMap<Who, Instant>>,
}

struct User {
    turn: Arc<Semaphore>,
    /// Probes that wait or run.
    probes: usize,
}

/// Free for the next when dropped.
pub(super) struct Turn<'a> {
    _of_all: SemaphorePermit<'a>,
    _own: Option<OwnedSemaphorePermit>,
    _here: Here<'a>,
}

struct Here<'a> {
    turns: &'a Turns,
    user: Arc<str>,
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        let mut users = lock(&self.turns.users);
        if let Some(user) = users.get_mut(&self.user) {
            user.probes -= 1;
            if user.probes == 0 {
                users.remove(&self.user);
            }
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// So many probes at a time.
    pub(super) fn new(most: usize) -> Turns {
        let again = usize::from(most > 1);
        let all = Semaphore::new(most.max(1) - again);
        Turns { all, again: Semaphore::new(again), users: Mutex::default(), known: Mutex::default() }
    }

    /// Waits for a turn. `None`: too many probes of this user wait.
    pub(super) async fn take(&self, user: &Arc<str>, topic: &Arc<str>) -> Option<Turn<'_>> {
        let (here, turn) = self.enter(user)?;
        let is_known =
            lock(&self.known).get(&(user.clone(), topic.clone())).is_some_and(|until| *until > Instant::now());
        let shared = async {
            let own = turn.acquire_owned().await.ok()?;
            Some((self.all.acquire().await.ok()?, Some(own)))
        };
        let (of_all, own) = tokio::select! {
            biased;
            permit = self.again.acquire(), if is_known => (permit.ok()?, None),
            permits = shared => permits?,
        };
        Some(Turn { _of_all: of_all, _own: own, _here: here })
    }

    fn enter(&self, user: &Arc<str>) -> Option<(Here<'_>, Arc<Semaphore>)> {
        let mut users = lock(&self.users);
        let new = || User { turn: Arc::new(Semaphore::new(1)), probes: 0 };
        let found = users.entry(user.clone()).or_insert_with(new);
        if found.probes >= MOST_WAITING {
            return None;
        }
        found.probes += 1;
        Some((Here { turns: self, user: user.clone() }, found.turn.clone()))
    }

    /// This user was let in to this topic.
    pub(super) fn let_in(&self, user: &Arc<str>, topic: &Arc<str>, remembered: Duration) {
        let (mut known, now) = (lock(&self.known), Instant::now());
        let who = (user.clone(), topic.clone());
        if known.len() >= MOST_KNOWN && !known.contains_key(&who) {
            known.retain(|_, until| *until > now);
        }
        if known.len() < MOST_KNOWN || known.contains_key(&who) {
            known.insert(who, now + remembered);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn name(of: &str) -> Arc<str> {
        of.into()
    }

    #[tokio::test]
    async fn one_user_with_many_joins_does_not_keep_others_waiting() {
        let turns = Turns::new(4);
        let (greedy, topic) = (name("greedy"), name("t"));
        let first = turns.take(&greedy, &topic).await.expect("a turn");
        let mut waiting: Vec<_> = (0..500).map(|_| Box::pin(turns.take(&greedy, &topic))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
        let other = turns.take(&name("modest"), &topic).now_or_never().flatten();
        assert!(other.is_some());
        drop(first);
        assert!(waiting[0].as_mut().now_or_never().flatten().is_some());
        drop((waiting, other));
        assert!(lock(&turns.users).is_empty());
    }

    #[tokio::test]
    async fn who_was_let_in_is_asked_about_again_before_new_joins() {
        let turns = Turns::new(4);
        let topic = name("t");
        let member = name("member");
        turns.let_in(&member, &topic, Duration::from_secs(60));
        let mut held = Vec::new();
        for user in 0..3 {
            held.push(turns.take(&name(&user.to_string()), &topic).await.expect("a turn"));
        }
        assert!(turns.take(&name("new"), &topic).now_or_never().is_none());
        assert!(turns.take(&member, &name("other")).now_or_never().is_none(), "it was let in elsewhere");
        assert!(turns.take(&member, &topic).now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn what_waits_and_what_is_remembered_is_bounded() {
        let turns = Turns::new(1);
        let (user, topic) = (name("u"), name("t"));
        let _held = turns.take(&user, &topic).await.expect("a turn");
        let mut waiting: Vec<_> = (1..MOST_WAITING).map(|_| Box::pin(turns.take(&user, &topic))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.as_mut().now_or_never().is_none()));
        assert!(matches!(turns.take(&user, &topic).now_or_never(), Some(None)));
        for topic in 0..MOST_KNOWN + 10 {
            turns.let_in(&user, &name(&topic.to_string()), Duration::from_secs(60));
        }
        assert_eq!(lock(&turns.known).len(), MOST_KNOWN);
    }
}
