//! How much one client, and all of them together, may take.
//!
//! Connections are counted by guards that live in their tasks, so that a count can't outlive what it counts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::gauge::Gauge;

use super::device::DeviceConfig;
use super::tls::TlsFiles;
use crate::hub::Version;
use crate::metrics::Metrics;

/// The gateway's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// WebSocket connections at a time; more get 429.
    pub max_connections: usize,
    /// TCP connections that have not become a WebSocket yet. For one more, who has been silent for the longest time has to go;
    /// while all are being answered, more wait to be accepted.
    pub max_unauthenticated: usize,
    /// Time for the TLS handshake; for the head of a request, and between two requests of a connection.
    pub header_timeout: Duration,
    /// Bytes of a request's head, at least 8192; more get 431.
    pub max_head_bytes: usize,
    /// Wait before a refused handshake is answered.
    pub handshake_failure_delay: Duration,
    /// Wait before a refused join is answered; other topics of the connection don't wait.
    pub join_failure_delay: Duration,
    /// How long a handshake, a join or a new token may wait for the keys of tokens to be fetched.
    pub learn_timeout: Duration,
    /// Handshakes that may wait for keys at a time; they are not authenticated, and more are refused.
    pub max_learning: usize,
    /// Joined channels per connection.
    pub max_channels: usize,
    /// Joins per second of a connection, on average over a minute; more close it with 1012.
    pub max_joins_per_second: u32,
    /// The same of all connections together; handshakes get 429 meanwhile.
    pub max_all_joins_per_second: u32,
    /// Messages per second of a connection on its joined channels, on average over a minute; more end the channel.
    pub max_messages_per_second: u32,
    /// Presence messages of a channel in `presence_window`; more end the channel.
    pub max_presence_calls: u32,
    /// See `max_presence_calls`.
    pub presence_window: Duration,
    /// The longest that a question about rights on a private channel may take, or the reading of stored messages.
    pub rights_timeout: Duration,
    /// Within this rights on a private channel are asked for again that rest on tables while the stream is behind.
    pub rights_recheck: Duration,
    /// How long a private channel stays whose rights have become too old and can't be asked for.
    pub rights_patience: Duration,
    /// How long a channel that asked for it waits to be told that the stream flows.
    pub stream_patience: Duration,
    /// The longest that the room of a topic may keep a connection waiting.
    pub room_patience: Duration,
    /// Subscriptions that the hub is asked for at a time, of all connections; more wait their turn.
    pub max_subscribing: usize,
    /// Those of one connection.
    pub max_connection_subscribing: usize,
    /// TCP connections accepted in a second, evenly; more wait in the kernel's queue.
    pub max_connects_per_second: u32,
    /// Connections closed in a second at a drain, while that takes no longer than `drain_window`.
    pub max_closes_per_second: u32,
    /// The longest over which connections are closed at a drain.
    pub drain_window: Duration,
    /// The longest that a join's reply is held until its changes are active.
    pub max_join_wait: Duration,
    /// Bytes of an inbound message; more close the connection with 1009.
    pub max_message_bytes: usize,
    /// Bytes of large messages that have begun and not ended, of all connections; no user may hold more than is left, and who
    /// sends more is closed with 1013. One that has not ended within `idle_timeout` ends its connection.
    pub max_unfinished_bytes: usize,
    /// Bytes of a join's payload, of which the entries stay in memory.
    pub max_join_bytes: usize,
    /// Entries of `postgres_changes` in one join.
    pub max_entries: usize,
    /// Entries of `postgres_changes` of all channels of a connection.
    pub max_connection_entries: usize,
    /// Bytes of all joins of a connection whose entries stay in memory.
    pub max_connection_entry_bytes: usize,
    /// Bytes of a topic.
    pub max_topic_bytes: usize,
    /// Messages of one topic that may wait for a join to be answered.
    pub max_pending: usize,
    /// Bytes of all messages of a connection that wait for joins.
    pub max_pending_bytes: usize,
    /// Bytes that may wait for a slow consumer before it is closed with 1013.
    pub max_outbox_bytes: usize,
    /// Without an inbound frame for this long the connection is closed with 1012; likewise one whose peer takes no bytes.
    pub idle_timeout: Duration,
    /// How long a closing connection may take to send what waits and to say goodbye.
    pub close_timeout: Duration,
    /// Time between two tries to subscribe, while the hub says it may work later.
    pub retry: Duration,
    /// The longest a connection sleeps before it looks at the clock again: the bound on noticing that the clock was set.
    pub tick: Duration,
    /// How devices are told apart, and their receipts taken.
    pub device: DeviceConfig,
    /// Pages of history and snapshots over HTTP that are read at a time; more get 429.
    pub max_pages: usize,
    /// The same for one user.
    pub max_user_pages: usize,
    /// Rows of a page.
    pub max_page_rows: u32,
    /// Bytes of a page: one of history ends there, a snapshot is refused beyond.
    pub max_page_bytes: usize,
    /// The longest that a page may take.
    pub page_timeout: Duration,
    /// Requests to broadcast over HTTP per second of one user, on average over a minute; more get 429.
    pub max_posts_per_second: u32,
    /// Their messages per second, likewise.
    pub max_posted_messages_per_second: u32,
    /// Such requests of one user whose body is being read; more get 429. Each has a place of `max_unauthenticated` until it is
    /// answered, and no user has more than half of these.
    pub max_user_posts: usize,
    /// Bytes of the body of a batch; more get 413.
    pub max_post_bytes: usize,
    /// Bytes of one broadcast's payload; more are refused.
    pub max_payload_bytes: usize,
    /// Bytes of bodies that are read at a time, of which one user has at most a quarter; more get 429.
    pub max_posting_bytes: usize,
    /// The longest that a request to broadcast may take, its body and the hand-over included.
    pub post_timeout: Duration,
    /// Public channels are refused.
    pub private_only: bool,
    /// TLS on our own listener; `None` for none.
    pub tls: Option<TlsFiles>,
    /// Between two looks at the files of `tls`.
    pub tls_poll: Duration,
}

impl Default for GatewayConfig {
    fn default() -> GatewayConfig {
        GatewayConfig {
            max_connections: 100_000,
            max_unauthenticated: 1024,
            header_timeout: Duration::from_secs(10),
            max_head_bytes: 16 * 1024,
            handshake_failure_delay: Duration::ZERO,
            join_failure_delay: Duration::ZERO,
            learn_timeout: Duration::from_secs(5),
            max_learning: 256,
            max_channels: 1000,
            max_joins_per_second: 100,
            max_all_joins_per_second: 20_000,
            max_messages_per_second: 1000,
            max_presence_calls: 1000,
            presence_window: Duration::from_secs(30),
            max_payload_bytes: 3_000_000,
            rights_timeout: Duration::from_secs(8),
            rights_recheck: Duration::from_secs(10),
            rights_patience: Duration::from_secs(30),
            stream_patience: Duration::from_secs(60),
            room_patience: Duration::from_secs(5),
            max_subscribing: 256,
            max_connection_subscribing: 8,
            max_connects_per_second: 2000,
            max_closes_per_second: 1000,
            drain_window: Duration::from_millis(2500),
            max_join_wait: Duration::from_secs(20),
            max_message_bytes: 5_000_000,
            max_unfinished_bytes: 256 * 1024 * 1024,
            max_join_bytes: 256 * 1024,
            max_entries: 1000,
            max_connection_entries: 10_000,
            max_connection_entry_bytes: 4 * 1024 * 1024,
            max_topic_bytes: 1024,
            max_pending: 64,
            max_pending_bytes: 4 * 1024 * 1024,
            max_outbox_bytes: 1024 * 1024,
            idle_timeout: Duration::from_secs(60),
            close_timeout: Duration::from_secs(3),
            retry: Duration::from_secs(5),
            tick: Duration::from_secs(15),
            device: DeviceConfig::default(),
            max_pages: 32,
            max_user_pages: 4,
            max_page_rows: 1000,
            max_page_bytes: 2 * 1024 * 1024,
            page_timeout: Duration::from_secs(20),
            max_posts_per_second: 1000,
            max_posted_messages_per_second: 10_000,
            max_user_posts: 128,
            max_post_bytes: 8_000_000,
            max_posting_bytes: 64 * 1024 * 1024,
            post_timeout: Duration::from_secs(15),
            private_only: false,
            tls: None,
            tls_poll: Duration::from_secs(2),
        }
    }
}

/// What a payload may have above its limit: what is wrapped around it, as other servers have it.
const TOLERANCE: usize = 500;

impl GatewayConfig {
    /// Bytes of the largest payload that is taken.
    pub fn largest_payload(&self) -> usize {
        self.max_payload_bytes.saturating_add(TOLERANCE)
    }
}

/// Seconds in a bucket of a [`Rate`].
const BUCKET_SECONDS: u64 = 5;
/// Buckets: a minute.
const BUCKETS: usize = 12;

/// What happened during the last minute: the joins of a connection, or its messages.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// Of the first one.
    since: Option<Instant>,
    /// The bucket in use, counted from then.
    at: u64,
    counts: [u32; BUCKETS],
}

impl Rate {
    /// Counts one, and says whether the average is within the bound with it.
    pub(super) fn admit(&mut self, now: Instant, max_per_second: u32) -> bool {
        self.turn(now);
        let count = &mut self.counts[(self.at % BUCKETS as u64) as usize];
        *count = count.saturating_add(1);
        self.sum() <= Rate::most(max_per_second)
    }

    /// Whether the bound was reached.
    pub(super) fn is_full(&mut self, now: Instant, max_per_second: u32) -> bool {
        self.turn(now);
        self.sum() >= Rate::most(max_per_second)
    }

    fn most(max_per_second: u32) -> u64 {
        u64::from(max_per_second) * BUCKET_SECONDS * BUCKETS as u64
    }

    fn sum(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Forgets what is older than a minute.
    fn turn(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let at = now.saturating_duration_since(since).as_secs() / BUCKET_SECONDS;
        for passed in self.at + 1..=at.min(self.at + BUCKETS as u64) {
            self.counts[(passed % BUCKETS as u64) as usize] = 0;
        }
        // A minute or more without one has emptied all of them, wherever this one is.
        self.at = at;
    }
}

/// The joins of all connections.
#[derive(Debug)]
pub(super) struct Joins {
    rate: Mutex<Rate>,
    max_per_second: u32,
}

impl Joins {
    pub(super) fn new(config: &GatewayConfig) -> Joins {
        Joins { rate: Mutex::default(), max_per_second: config.max_all_joins_per_second }
    }

    /// Counts a join, and says whether it may be.
    pub(super) fn admit(&self, now: Instant) -> bool {
        self.lock().admit(now, self.max_per_second)
    }

    /// Whether there are so many that nobody else should come and join.
    pub(super) fn are_too_many(&self, now: Instant) -> bool {
        self.lock().is_full(now, self.max_per_second)
    }

    fn lock(&self) -> MutexGuard<'_, Rate> {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the open connections.
#[derive(Clone)]
pub(super) struct Admission {
    open: Arc<AtomicUsize>,
    max: usize,
    metrics: Arc<Metrics>,
}

impl Admission {
    pub(super) fn new(max: usize, metrics: Arc<Metrics>) -> Admission {
        Admission { open: Arc::default(), max, metrics }
    }

    /// A place, if one is free.
    pub(super) fn admit(&self, version: Version) -> Option<Admitted> {
        let take = |open: usize| (open < self.max).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        let admitted = Admitted { to: self.clone(), version };
        self.metrics.connections.inc();
        admitted.by_protocol().inc();
        Some(admitted)
    }
}

/// One connection's place; free again when dropped.
pub(in crate::gateway) struct Admitted {
    to: Admission,
    version: Version,
}

impl Admitted {
    fn by_protocol(&self) -> Gauge {
        let label = [("version", self.version.as_str())];
        self.to.metrics.connections_by_protocol.get_or_create(&label).clone()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.to.open.fetch_sub(1, Ordering::Relaxed);
        self.to.metrics.connections.dec();
        self.by_protocol().dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_are_averaged_over_the_last_minute() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!((0..60).all(|_| rate.admit(start, 1)));
        assert!(!rate.admit(after(1), 1) && !rate.admit(after(59), 1));
        // The first bucket is forgotten, the two refused ones are not all of it.
        assert!((0..59).all(|_| rate.admit(after(60), 1)));
        assert!(!rate.admit(after(61), 1));
        let mut idle = Rate::default();
        assert!((0..60).all(|_| idle.admit(start, 1)) && idle.admit(after(1000), 1));
        assert!((0..59).all(|_| idle.admit(after(1001), 1)) && !idle.admit(after(1002), 1));
        assert!(!Rate::default().admit(start, 0));
    }

    #[test]
    fn a_place_is_free_again_when_its_holder_is_gone() {
        let metrics = Arc::new(Metrics::new());
        let admission = Admission::new(2, metrics.clone());
        let (one, two) = (admission.admit(Version::V1), admission.admit(Version::V2));
        assert!(one.is_some() && two.is_some() && admission.admit(Version::V1).is_none());
        assert_eq!(metrics.connections.get(), 2);
        drop(one);
        assert!(admission.admit(Version::V1).is_some());
        assert_eq!(metrics.connections.get(), 1);
        let of = |version| metrics.connections_by_protocol.get_or_create(&[("version", version)]).get();
        assert_eq!((of("1.0.0"), of("2.0.0")), (0, 1));
    }
}
