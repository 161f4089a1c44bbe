//! How much one user may post: requests and messages per second, and requests and bytes of bodies at a time.
//!
//! Averages over a minute, so that a burst is no offence. Rejected: one bound for all users, which the first one uses up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::gateway::GatewayConfig;

/// Users that are remembered.
const MAX_USERS: usize = 10_000;
/// Seconds in a bucket.
const BUCKET: u64 = 5;
/// Buckets: a minute.
const BUCKETS: usize = 12;
const WINDOW: Duration = Duration::from_secs(BUCKET * BUCKETS as u64);

/// Events of the last minute.
#[derive(Debug)]
struct Rolling {
    since: Instant,
    /// The bucket in use, counted from then.
    at: u64,
    counts: [u32; BUCKETS],
}

impl Rolling {
    fn new(now: Instant) -> Rolling {
        Rolling { since: now, at: 0, counts: [0; BUCKETS] }
    }

    fn add(&mut self, now: Instant, count: usize) {
        self.move_on(now);
        let bucket = &mut self.counts[(self.at % BUCKETS as u64) as usize];
        *bucket = bucket.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// In the last minute.
    fn sum(&mut self, now: Instant) -> u64 {
        self.move_on(now);
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    fn move_on(&mut self, now: Instant) {
        let at = now.saturating_duration_since(self.since).as_secs() / BUCKET;
        for passed in self.at + 1..=at.min(self.at + BUCKETS as u64) {
            self.counts[(passed % BUCKETS as u64) as usize] = 0;
        }
        self.at = at.max(self.at);
    }
}

struct User {
    requests: Rolling,
    messages: Rolling,
    /// Of the bodies that are being read.
    bytes: usize,
    /// Requests whose body is not there yet.
    reading: usize,
    /// Requests that are not answered yet.
    posts: usize,
    last: Instant,
}

impl User {
    /// Something of it will be given back.
    fn is_busy(&self) -> bool {
        self.bytes > 0 || self.posts > 0
    }
}

#[derive(Default)]
struct All {
    users: HashMap<Arc<str>, User>,
    bytes: usize,
}

impl All {
    fn user(&mut self, key: &Arc<str>, now: Instant) -> &mut User {
        if !self.users.contains_key(key) && self.users.len() >= MAX_USERS {
            self.users.retain(|_, user| user.is_busy() || now.saturating_duration_since(user.last) < WINDOW);
            // Whoever was quiet for the longest time starts anew.
            let quiet = self.users.iter().filter(|(_, user)| !user.is_busy()).min_by_key(|(_, user)| user.last);
            if let Some(quiet) = quiet.map(|(key, _)| key.clone()).filter(|_| self.users.len() >= MAX_USERS) {
                self.users.remove(&quiet);
            }
        }
        let new = || User {
            requests: Rolling::new(now),
            messages: Rolling::new(now),
            bytes: 0,
            reading: 0,
            posts: 0,
            last: now,
        };
        let user = self.users.entry(key.clone()).or_insert_with(new);
        user.last = now;
        user
    }
}

/// See the module's comment.
pub(super) struct Rates {
    requests: u32,
    messages: u32,
    bytes: usize,
    user_bytes: usize,
    /// At a time, of one user: bodies that are being read, and requests.
    user_bodies: usize,
    user_posts: usize,
    all: Mutex<All>,
}

/// What a request's user has asked for, with this one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    /// Requests per second, over a minute.
    pub(super) rolling: f64,
    pub(super) limit: u32,
    pub(super) admitted: bool,
}

/// Bytes that may be read; given back when dropped.
pub(super) struct Place<'a> {
    rates: &'a Rates,
    user: Arc<str>,
    bytes: usize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.rates.lock();
        all.bytes -= self.bytes;
        if let Some(user) = all.users.get_mut(&self.user) {
            user.bytes -= self.bytes;
        }
    }
}

/// A request that is not answered yet; over when dropped.
pub(super) struct UnderWay<'a> {
    rates: &'a Rates,
    user: Arc<str>,
    reading: bool,
}

impl UnderWay<'_> {
    /// Its body is there. What it waits for from now on is for the relay to do: other backends that share its key may post.
    pub(super) fn is_read(&mut self) {
        if std::mem::take(&mut self.reading)
            && let Some(user) = self.rates.lock().users.get_mut(&self.user)
        {
            user.reading -= 1;
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if let Some(user) = self.rates.lock().users.get_mut(&self.user) {
            user.posts -= 1;
            user.reading -= usize::from(self.reading);
        }
    }
}

impl Rates {
    pub(super) fn new(config: &GatewayConfig) -> Rates {
        let largest = super::largest_batch(config);
        // Somebody can always post.
        let bytes = config.max_posting_bytes.max(largest);
        // The other half of the places is for everybody else.
        let half = (config.max_unauthenticated / 2).max(1);
        Rates {
            requests: config.max_posts_per_second,
            messages: config.max_posted_messages_per_second,
            bytes,
            user_bytes: (bytes / 4).max(largest),
            user_bodies: config.max_user_posts.min(half),
            user_posts: half,
            all: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, key: &Arc<str>, act: impl FnOnce(&mut User, Instant) -> T) -> T {
        let now = Instant::now();
        act(self.lock().user(key, now), now)
    }

    /// Of who is not known.
    pub(super) fn nobody(&self) -> Seen {
        Seen { rolling: 0.0, limit: self.requests, admitted: false }
    }

    /// Counts a request.
    pub(super) fn request(&self, user: &Arc<str>) -> Seen {
        let limit = self.requests;
        let sum = self.with(user, |user, now| {
            let before = user.requests.sum(now);
            user.requests.add(now, 1);
            before
        });
        let admitted = sum < u64::from(limit) * WINDOW.as_secs();
        // A minute's sum has an exact double.
        Seen { rolling: (sum + 1) as f64 / WINDOW.as_secs_f64(), limit, admitted }
    }

    /// One more request of this user, if there may be one: its body is to be read. Each takes a place of those that have not
    /// become a WebSocket until it is answered.
    pub(super) fn begin(&self, user: &Arc<str>) -> Option<UnderWay<'_>> {
        let begun = self.with(user, |of, _| {
            let may = of.reading < self.user_bodies && of.posts < self.user_posts;
            of.reading += usize::from(may);
            of.posts += usize::from(may);
            may
        });
        begun.then(|| UnderWay { rates: self, user: user.clone(), reading: true })
    }

    /// Whether so many more messages are within the bound.
    pub(super) fn may_send(&self, user: &Arc<str>, count: usize) -> bool {
        let sum = self.with(user, |user, now| user.messages.sum(now));
        sum + count as u64 <= u64::from(self.messages) * WINDOW.as_secs()
    }

    /// Counts messages.
    pub(super) fn sent(&self, user: &Arc<str>, count: usize) {
        self.with(user, |user, now| user.messages.add(now, count));
    }

    /// Room for a body of this size, if there is some.
    pub(super) fn reserve(&self, user: &Arc<str>, bytes: usize) -> Option<Place<'_>> {
        let mut all = self.lock();
        let free = self.bytes - all.bytes;
        let own = all.user(user, Instant::now());
        if own.bytes + bytes > self.user_bytes || bytes > free {
            return None;
        }
        own.bytes += bytes;
        all.bytes += bytes;
        Some(Place { rates: self, user: user.clone(), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(change: impl FnOnce(&mut GatewayConfig)) -> Rates {
        let mut config = GatewayConfig::default();
        change(&mut config);
        Rates::new(&config)
    }

    #[test]
    fn a_minute_is_remembered_and_no_more() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut rolling = Rolling::new(start);
        rolling.add(start, 7);
        rolling.add(after(30), 5);
        assert_eq!((rolling.sum(after(59)), rolling.sum(after(60)), rolling.sum(after(90))), (12, 5, 0));
        rolling.add(after(1000), 1);
        assert_eq!(rolling.sum(after(1001)), 1);
    }

    #[test]
    fn each_user_has_a_rate_of_his_own() {
        let rates = rates(|config| (config.max_posts_per_second, config.max_posted_messages_per_second) = (1, 1));
        let (alice, bob): (Arc<str>, Arc<str>) = ("alice".into(), "bob".into());
        assert!((0..60).all(|_| rates.request(&alice).admitted));
        let over = rates.request(&alice);
        assert!(!over.admitted && over.rolling > 1.0 && over.limit == 1);
        assert!(rates.request(&bob).admitted);
        assert!(rates.may_send(&alice, 60) && !rates.may_send(&alice, 61));
        rates.sent(&alice, 60);
        assert!(!rates.may_send(&alice, 1) && rates.may_send(&bob, 1));
    }

    #[test]
    fn bytes_are_shared_and_given_back() {
        let rates = rates(|config| {
            (config.max_post_bytes, config.max_payload_bytes, config.max_posting_bytes) = (10_000, 100, 80_000);
        });
        let users: Vec<Arc<str>> = (0..9).map(|user| user.to_string().into()).collect();
        let first = rates.reserve(&users[0], 15_000).expect("room");
        assert!(rates.reserve(&users[0], 5001).is_none() && rates.reserve(&users[0], 5000).is_some());
        let others: Vec<_> = users[1..4].iter().map(|user| rates.reserve(user, 20_000).expect("room")).collect();
        assert!(rates.reserve(&users[4], 5001).is_none());
        drop(first);
        assert!(rates.reserve(&users[4], 20_000).is_some());
        drop(others);
        assert_eq!(rates.lock().bytes, 0);
    }

    #[test]
    fn requests_of_one_user_at_a_time_are_bounded_and_those_of_others_are_not_concerned() {
        let rates = rates(|config| config.max_user_posts = 2);
        let (ada, bob): (Arc<str>, Arc<str>) = ("ada".into(), "bob".into());
        let (one, _two) = (rates.begin(&ada).expect("the first"), rates.begin(&ada).expect("the second"));
        assert!(rates.begin(&ada).is_none() && rates.begin(&bob).is_some());
        drop(one);
        let _three = rates.begin(&ada).expect("one was given back");
        assert!(rates.begin(&ada).is_none());
    }

    #[test]
    fn whose_body_is_there_makes_room_for_another_and_no_user_has_more_than_half_of_all_places() {
        let rates = rates(|config| (config.max_user_posts, config.max_unauthenticated) = (2, 7));
        let (ada, bob): (Arc<str>, Arc<str>) = ("ada".into(), "bob".into());
        let (mut one, two) = (rates.begin(&ada).expect("the first"), rates.begin(&ada).expect("the second"));
        one.is_read();
        one.is_read();
        let mut three = rates.begin(&ada).expect("one is read");
        assert!(rates.begin(&ada).is_none(), "two are being read");
        three.is_read();
        assert!(rates.begin(&ada).is_none() && rates.begin(&bob).is_some(), "three of seven places");
        drop((one, two, three));
        let all = rates.lock();
        assert!(all.users.values().all(|user| (user.reading, user.posts) == (0, 0)));
    }

    #[test]
    fn bodies_of_one_user_never_take_more_than_half_of_the_places() {
        for (places, most) in [(1, 1), (2, 1), (9, 4), (1024, 128)] {
            let rates = rates(|config| config.max_unauthenticated = places);
            let ada: Arc<str> = "ada".into();
            let begun: Vec<_> = std::iter::from_fn(|| rates.begin(&ada)).collect();
            assert_eq!(begun.len(), most, "of {places}");
        }
    }

    #[test]
    fn users_are_bounded() {
        let rates = rates(|_| {});
        let key = |user: usize| Arc::<str>::from(user.to_string());
        let _kept = rates.reserve(&key(0), 10);
        let _under_way = rates.begin(&key(1));
        for user in 0..MAX_USERS + 100 {
            rates.request(&key(user));
        }
        let all = rates.lock();
        assert_eq!(all.users.len(), MAX_USERS);
        assert!(all.users.contains_key("0") && all.users.contains_key("1"), "those that are busy");
    }
}
