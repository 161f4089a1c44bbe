//! Messages that have begun and not ended: what all connections together may hold of them, and for how long.
//!
//! One message has a bound of its own. But whoever opens many connections and ends none of his messages would hold as many times
//! that, for as long as he sends a Ping now and then. Small messages are free: buffers hold them anyhow, and who sends no others
//! suffers nothing from those who do.
//!
//! Invariants:
//! * All together hold no more than the bound, but for what was read last on connections that are closed for it.
//! * No user holds more than is left: one has half of the bound at most, two a third each, and for one more there is always as
//!   much as each of them has. Only who has a token is here at all; of others a head is read, which has its own bound.
//!
//! Rejected: a fixed part for each user, of which a few who act together use up all; first come, first served.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;

/// Bytes of a message that don't count.
const FREE: usize = 64 * 1024;

/// What there is of all connections.
pub(super) struct Unfinished {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    /// Of each user; who holds nothing is not here.
    users: AHashMap<Arc<str>, usize>,
}

impl Unfinished {
    pub(super) fn new(most: usize) -> Arc<Unfinished> {
        Arc::new(Unfinished { most, held: Mutex::default() })
    }

    /// For one connection of this user ([`crate::claims::Principal::user`]).
    pub(super) fn part(self: &Arc<Unfinished>, user: Arc<str>) -> Part {
        Part { all: self.clone(), user, bytes: 0, since: None }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's part of it, given back when dropped.
pub(super) struct Part {
    all: Arc<Unfinished>,
    user: Arc<str>,
    bytes: usize,
    /// When it began to count.
    since: Option<Instant>,
}

impl Part {
    /// So many bytes have come; whether there is a place for them.
    #[must_use]
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let before = self.counted();
        self.bytes += bytes;
        let more = self.counted() - before;
        if more == 0 {
            return true;
        }
        self.since.get_or_insert_with(Instant::now);
        let mut held = self.all.lock();
        held.bytes += more;
        let left = self.all.most.saturating_sub(held.bytes);
        let own = held.users.entry(self.user.clone()).or_default();
        *own += more;
        *own <= left
    }

    /// So many of them were no part of a message.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let before = self.counted();
        self.bytes = self.bytes.saturating_sub(bytes);
        let less = before - self.counted();
        if less > 0 {
            let mut held = self.all.lock();
            held.bytes -= less;
            match held.users.get_mut(&self.user) {
                Some(own) if *own > less => *own -= less,
                _ => drop(held.users.remove(&self.user)),
            }
        }
        if self.counted() == 0 {
            self.since = None;
        }
    }

    /// The message has ended.
    pub(super) fn end(&mut self) {
        self.shrink(self.bytes);
    }

    /// Whether it has counted for longer than that.
    pub(super) fn is_overdue(&self, most: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= most)
    }

    fn counted(&self) -> usize {
        self.bytes.saturating_sub(FREE)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(all: &Arc<Unfinished>, user: &str) -> Part {
        all.part(user.into())
    }

    #[test]
    fn large_messages_share_a_bound_and_small_ones_are_free() {
        let all = Unfinished::new(1000);
        let (mut one, mut two, mut small) = (part(&all, "u"), part(&all, "u"), part(&all, "u"));
        assert!(one.grow(FREE) && one.grow(300) && two.grow(FREE + 200));
        assert!(!two.grow(1));
        assert!(small.grow(FREE) && !small.is_overdue(Duration::ZERO) && one.is_overdue(Duration::ZERO));
        two.shrink(1);
        one.end();
        assert!(!one.is_overdue(Duration::ZERO) && two.grow(300) && !one.grow(FREE + 1));
        drop((one, two));
        let held = all.lock();
        assert_eq!((held.bytes, held.users.len()), (0, 0));
    }

    #[test]
    fn no_user_takes_what_others_need_however_many_connections_he_has() {
        let all = Unfinished::new(1000);
        let mut greedy: Vec<Part> = (0..10).map(|_| part(&all, "greedy")).collect();
        let taken = greedy.iter_mut().filter_map(|part| part.grow(FREE + 100).then_some(())).count();
        assert_eq!(taken, 5, "half of all");
        // Who is over it is closed.
        greedy.truncate(5);
        let mut modest = part(&all, "modest");
        assert!(modest.grow(FREE + 250) && !modest.grow(1));
        modest.end();
        drop(greedy);
        // However many act together: for one more there is as much as each of them has.
        let mut crowd: Vec<Part> = (0..9).map(|user| part(&all, &user.to_string())).collect();
        assert!(crowd.iter_mut().all(|part| part.grow(FREE + 100)));
        assert!(!crowd[0].grow(1) && modest.grow(FREE + 49));
    }
}
