//! The key set at hand: fetched at the start, again from time to time, and when a token names a key that it lacks.
//!
//! Invariants:
//! * Only [`Keys::load`] and [`Keys::keep`] fetch, and only one of them runs: so there is one request at a time, and no client
//!   that hangs up can stop one.
//! * Tokens with unknown key ids, which anybody can make up, cause one request per [`KeySetConfig::floor`] at most.
//! * A fetch that fails changes nothing: the last good set stays, however old. One that succeeds replaces it all: a key that
//!   left the set is no longer valid for a new connection, join or token. Channels that joined before stay until their `exp`.
//!
//! Rejected: fetching in the task of whoever asks first; a client could then start a request, hang up, and so use up the floor
//! that keeps the others from learning a new key. Rejected: obeying `Cache-Control`, which some issuers set to a day.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::fetch::{FetchError, fetch};
use super::key_set::{KeySet, Skipped};
use super::location::KeySetLocation;
use crate::clock::Clock;
use crate::error::{Fault, Remedy, chain};
use crate::metrics::Metrics;
use crate::task::Drain;

/// How soon a fetch that failed is tried again by itself, unless the refresh comes sooner.
const RETRY: Duration = Duration::from_secs(30);
/// Between two attempts at the start: from, to.
const START_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// The longest sleep before the clock is looked at again, so that a machine that was suspended, or whose clock was set, is
/// soon right.
const TICK: Duration = Duration::from_secs(1);

/// Where the key set is and how often it is looked at.
#[derive(Debug, Clone)]
pub struct KeySetConfig {
    /// Where it is.
    pub location: KeySetLocation,
    /// A PEM file with the only authorities that may vouch for the server; `None` for Mozilla's.
    pub ca: Option<PathBuf>,
    /// Between two fetches.
    pub refresh: Duration,
    /// Between two fetches that unknown key ids cause.
    pub floor: Duration,
    /// For one fetch, from the name's lookup to the last byte.
    pub timeout: Duration,
}

impl KeySetConfig {
    /// Every ten minutes; at most every 30 seconds for unknown key ids; 5 seconds for one fetch.
    pub fn new(location: KeySetLocation) -> KeySetConfig {
        let seconds = Duration::from_secs;
        KeySetConfig { location, ca: None, refresh: seconds(600), floor: seconds(30), timeout: seconds(5) }
    }
}

/// No key set could be had.
#[derive(Debug, thiserror::Error)]
#[error("the key set {location} can't be used")]
pub struct KeySetError {
    /// Where it should be, without its query.
    pub location: String,
    /// Why not.
    #[source]
    pub reason: FetchError,
}

impl Fault for KeySetError {
    fn remedy(&self) -> Remedy {
        self.reason.remedy()
    }

    fn advice(&self) -> String {
        self.reason.advice()
    }
}

/// The key set, and who fetches it when. Times are milliseconds since 1970.
pub(super) struct Keys {
    config: KeySetConfig,
    clock: Clock,
    metrics: Arc<Metrics>,
    at_hand: RwLock<Arc<KeySet>>,
    /// How often the set has been replaced.
    generation: AtomicU64,
    flight: Mutex<Flight>,
    /// Somebody set [`Flight::wanted`].
    asked: Notify,
    /// Changes whenever a fetch has ended.
    ended: watch::Sender<()>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Flight {
    /// A fetch is asked for and has not begun.
    wanted: bool,
    under_way: bool,
    last_asked: Option<i64>,
    /// Nobody fetches any more.
    stopped: bool,
}

/// What the last fetches brought, so that each thing is logged once.
#[derive(Default)]
struct Seen {
    /// When the last ended.
    at: i64,
    text: Option<Vec<u8>>,
    skipped: Vec<Skipped>,
    failing: bool,
}

impl Keys {
    pub(super) fn new(config: KeySetConfig, clock: Clock, metrics: Arc<Metrics>) -> Keys {
        Keys {
            config,
            clock,
            metrics,
            at_hand: RwLock::default(),
            generation: AtomicU64::new(0),
            flight: Mutex::default(),
            asked: Notify::new(),
            ended: watch::Sender::new(()),
            seen: Mutex::default(),
        }
    }

    /// The last good set; empty before the first.
    pub(super) fn at_hand(&self) -> Arc<KeySet> {
        self.at_hand.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another number after each replacement of the set.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether waiting for [`Keys::learn`] may make this id known, or it has become known meanwhile.
    pub(super) fn may_learn(&self, kid: &str) -> bool {
        let flight = self.flight();
        let fetching = !flight.stopped && (flight.wanted || flight.under_way || self.floor_allows(&flight));
        fetching || self.at_hand().knows(kid)
    }

    /// See [`super::Verifier::learn`].
    pub(super) async fn learn(&self) {
        let mut ended = {
            let mut flight = self.flight();
            if flight.stopped {
                return;
            }
            if !(flight.wanted || flight.under_way) {
                if !self.floor_allows(&flight) {
                    return;
                }
                flight.wanted = true;
                flight.last_asked = Some(self.clock.unix_millis());
                self.asked.notify_one();
            }
            // While the lock is held, so that the end can't be missed.
            self.ended.subscribe()
        };
        // The fetch has its own, shorter deadline.
        let _ = tokio::time::timeout(self.config.timeout + TICK, ended.changed()).await;
    }

    /// The first fetch, tried again until this much time is over or a person must do something. `Ok` also at the drain.
    pub(super) async fn load(&self, patience: Duration, drain: &Drain) -> Result<(), KeySetError> {
        let deadline = Instant::now() + patience;
        let mut pause = START_PAUSES.0;
        loop {
            let tried = tokio::select! {
                () = drain.draining() => return Ok(()),
                tried = self.fetch() => tried,
            };
            match tried {
                Err(error) if error.remedy() == Remedy::Retry && Instant::now() + pause < deadline => {}
                ended => return ended,
            }
            tokio::select! {
                () = drain.draining() => return Ok(()),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(START_PAUSES.1),
            }
        }
    }

    /// Fetches when it is time or somebody asks, until the drain.
    pub(super) async fn keep(&self, drain: &Drain) {
        let _stopped = Stopped(self);
        loop {
            tokio::select! {
                () = drain.draining() => return,
                () = self.asked.notified() => if !self.flight().wanted { continue },
                () = self.due() => {}
            }
            tokio::select! {
                () = drain.draining() => return,
                _ = self.fetch() => {}
            }
        }
    }

    /// Until it is time for the next fetch after the last, or the clock was set back.
    async fn due(&self) {
        let (since, failing) = {
            let seen = self.seen();
            (seen.at, seen.failing)
        };
        let pause = if failing { RETRY.min(self.config.refresh) } else { self.config.refresh };
        while (since..since.saturating_add(millis(pause))).contains(&self.clock.unix_millis()) {
            tokio::time::sleep(TICK.min(pause)).await;
        }
    }

    /// One fetch. What comes of it is counted here, and logged if it is news.
    async fn fetch(&self) -> Result<(), KeySetError> {
        let flying = Flying::begin(self);
        let fetched = fetch(&self.config.location, self.config.ca.as_deref(), self.config.timeout).await;
        self.seen().at = self.clock.unix_millis();
        let installed = fetched.and_then(|text| self.install(text));
        // Those who wait look at the new set.
        drop(flying);
        installed.map_err(|reason| {
            let error = KeySetError { location: self.config.location.to_string(), reason };
            self.metrics.jwks_fetches.get_or_create(&[("result", "failed")]).inc();
            let mut seen = self.seen();
            if !std::mem::replace(&mut seen.failing, true) {
                let left = if seen.text.is_some() { "the last good one stays" } else { "there is none yet" };
                tracing::warn!(error = chain(&error), "the key set can't be fetched; {left}");
            }
            error
        })
    }

    fn install(&self, text: Vec<u8>) -> Result<(), FetchError> {
        let mut seen = self.seen();
        let result = if seen.text.as_ref() == Some(&text) { "same" } else { "changed" };
        if result == "changed" {
            let (set, skipped) = KeySet::parse(&text).map_err(FetchError::NoKeySet)?;
            if seen.skipped != skipped {
                skipped.iter().for_each(report);
                seen.skipped = skipped;
            }
            let keys = set.len();
            *self.at_hand.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
            self.generation.fetch_add(1, Ordering::Release);
            self.metrics.jwks_keys.set(i64::try_from(keys).unwrap_or(i64::MAX));
            seen.text = Some(text);
            if keys == 0 {
                tracing::warn!(location = %self.config.location, "the key set has no usable key");
            } else {
                tracing::info!(location = %self.config.location, keys, "key set read");
            }
        }
        self.metrics.jwks_fetches.get_or_create(&[("result", result)]).inc();
        if std::mem::take(&mut seen.failing) {
            tracing::info!(location = %self.config.location, "the key set can be fetched again");
        }
        Ok(())
    }

    fn floor_allows(&self, flight: &Flight) -> bool {
        // A clock that was set back must not stretch the wait.
        let passed = |last: i64| !(0..millis(self.config.floor)).contains(&(self.clock.unix_millis() - last));
        flight.last_asked.is_none_or(passed)
    }

    fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn report(key: &Skipped) {
    if key.harmless {
        tracing::debug!(kid = key.kid, reason = key.reason, "a key of the key set is not used");
    } else {
        tracing::warn!(kid = key.kid, reason = key.reason, "a key of the key set is not used");
    }
}

/// A fetch under way; its end, also by being dropped, wakes who waits for it.
struct Flying<'a>(&'a Keys);

impl Flying<'_> {
    fn begin(keys: &Keys) -> Flying<'_> {
        let mut flight = keys.flight();
        (flight.wanted, flight.under_way) = (false, true);
        Flying(keys)
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.flight().under_way = false;
        self.0.ended.send_replace(());
    }
}

/// From its drop on nobody fetches, and nobody needs to wait.
struct Stopped<'a>(&'a Keys);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.flight().stopped = true;
        self.0.ended.send_replace(());
    }
}
