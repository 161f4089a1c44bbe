//! Frontiers: how far each device has received each of its subscriptions, so that a stock client which only names its device
//! goes on where it was.
//!
//! ```text
//!  join ──► Frontiers::join: begins at the lowest place of its key ──► Tracked (one per channel)
//!  Pong ──► Tracked::advance                                                │ dropped or ended: kept for its return
//!           └─► unsaved ──► store: table rowcast.frontiers ◄── loaded at the start
//! ```
//!
//! Invariants:
//! * A frontier is never ahead of what its client is known to have received: repeats are possible, loss is not.
//! * Memory decides; the table lags behind it and is only read at the start. Whatever can't be saved costs repeats after a
//!   crash of the relay. But for the first place of a key: until the table has that ([`Tracked::is_safe`]), its client would come
//!   back as a stranger, so its join is not answered before, unless the table can't be written to.
//! * All of it is bounded, per user and in all, and ends: [`FrontierConfig`].

mod key;
mod registry;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;
use tokio::sync::{Notify, watch};

pub use key::Key;
pub(in crate::resume) use key::{Owner, Part};
use registry::{Handle, Registry};
pub(in crate::resume) use registry::{Row, Unsaved};

use super::Cursor;
use crate::change::Position;
use crate::claims::Principal;
use crate::metrics::Metrics;

/// The bounds of frontiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontierConfig {
    /// All of them. A quarter, and only what users don't need, is for devices that nobody has signed in on.
    pub most: usize,
    /// Of one user.
    pub most_of_user: usize,
    /// Devices of one user.
    pub devices_of_user: usize,
    /// How long one is kept for a device that does not come back: twice as long as the log keeps changes, so that it is still
    /// told of the gap.
    pub keep: Duration,
    /// The same for a channel that was left.
    pub keep_left: Duration,
}

impl Default for FrontierConfig {
    fn default() -> FrontierConfig {
        FrontierConfig {
            most: 1_000_000,
            most_of_user: 1000,
            devices_of_user: 64,
            keep: Duration::from_secs(48 * 3600),
            keep_left: Duration::from_secs(60),
        }
    }
}

/// Frontiers given up, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    expired: u64,
    of_user: u64,
    of_all: u64,
    of_anonymous: u64,
    refused: u64,
}

/// All frontiers of a relay.
pub struct Frontiers {
    registry: Mutex<Registry>,
    keep: Duration,
    metrics: Arc<Metrics>,
    /// Something is to be saved.
    pub(super) work: Notify,
    /// What was saved before is here; until then no device may join.
    opened: watch::Sender<bool>,
    /// Whether what is to be saved is, soon; sent anew with every write.
    saving: watch::Sender<bool>,
}

impl Frontiers {
    /// Closed: nobody may join before [`super::FrontierStore`] has loaded what was saved.
    pub fn new(config: FrontierConfig, metrics: Arc<Metrics>) -> Arc<Frontiers> {
        let registry = Mutex::new(Registry::new(config));
        Arc::new(Frontiers {
            registry,
            keep: config.keep,
            metrics,
            work: Notify::new(),
            opened: watch::Sender::new(false),
            saving: watch::Sender::new(false),
        })
    }

    /// Open, and saved nowhere.
    pub fn in_memory(config: FrontierConfig, metrics: Arc<Metrics>) -> Arc<Frontiers> {
        let frontiers = Frontiers::new(config, metrics);
        frontiers.open(true);
        frontiers
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        // Nothing panics while it is half changed.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Access<'_>) -> T) -> T {
        let mut access = Access(self.registry());
        let result = work(&mut access);
        let dropped = access.0.take_dropped();
        drop(access);
        self.count(dropped);
        result
    }

    fn count(&self, dropped: Dropped) {
        for (reason, count) in [
            ("expired", dropped.expired),
            ("user_limit", dropped.of_user),
            ("limit", dropped.of_all),
            ("anonymous_limit", dropped.of_anonymous),
            ("refused", dropped.refused),
        ] {
            if count > 0 {
                self.metrics.frontiers_dropped.get_or_create(&[("reason", reason)]).inc_by(count);
            }
        }
    }

    /// [`FrontierConfig::keep`].
    pub(super) fn kept_for(&self) -> Duration {
        self.keep
    }

    pub(super) fn open(&self, open: bool) {
        self.opened.send_if_modified(|is_open| std::mem::replace(is_open, open) != open);
    }

    /// A write has ended, and how; or none will be made.
    pub(crate) fn saving(&self, well: bool) {
        self.saving.send_replace(well);
    }

    /// Whether devices may join, after waiting for it for this long at most.
    pub async fn opened(&self, patience: Duration) -> bool {
        let mut opened = self.opened.subscribe();
        tokio::time::timeout(patience, opened.wait_for(|open| *open)).await.is_ok_and(|open| open.is_ok())
    }

    /// Whether devices may join now.
    pub fn is_open(&self) -> bool {
        *self.opened.borrow()
    }

    /// A channel of a device joins: for each key where it begins, if something is known of it. A key that is named twice has one
    /// frontier. `epoch`: [`crate::log::Epoch::tag`] of the present history. `probe` is notified when the connection is to ask
    /// its client whether it is there.
    pub fn join(
        self: &Arc<Self>,
        wanted: &[Wanted<'_>],
        epoch: Option<u64>,
        probe: &Arc<Notify>,
        now: Instant,
    ) -> (Vec<Option<Cursor>>, Arc<Tracked>) {
        let mut starts: Vec<Option<Cursor>> = Vec::with_capacity(wanted.len());
        let mut handles = SmallVec::new();
        let mut last = None;
        self.with(|access| {
            for (index, wish) in wanted.iter().enumerate() {
                if let Some(same) = wanted[..index].iter().position(|other| other.key == wish.key) {
                    starts.push(starts[same]);
                    continue;
                }
                let since = wish.since.map(key::mark);
                let (start, handle) = access.0.join(wish.key, since, wish.otherwise, epoch, probe, now);
                starts.push(start);
                handles.extend(handle);
                last = handle.filter(|_| index + 1 == wanted.len());
            }
        });
        self.work.notify_one();
        let handles = Handles { frontiers: self.clone(), handles, last };
        (starts, Arc::new(Tracked { handles: Arc::new(handles), ended: Mutex::new(false) }))
    }

    /// Where a device with this key would begin, for tests.
    #[cfg(test)]
    pub(crate) fn peek(&self, key: &Key) -> Option<Cursor> {
        self.registry().peek(*key)
    }

    /// As before what was saved is loaded, for tests.
    #[cfg(test)]
    pub(crate) fn close(&self) {
        self.open(false);
    }

    /// How many frontiers there are: of connections, and of those that are gone.
    pub fn count_all(&self) -> (usize, usize) {
        let registry = self.registry();
        let live = registry.live();
        (live, registry.len() - live)
    }
}

impl std::fmt::Debug for Frontiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frontiers").finish_non_exhaustive()
    }
}

/// What a channel asks for at its join.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// What the frontier is kept for.
    pub key: Key,
    /// The entry's own `since` as JSON text: only a client that sent the same one goes on from a frontier.
    pub since: Option<&'a str>,
    /// Where it begins if nothing is known of it, as far as that is a place.
    pub otherwise: Option<Cursor>,
}

/// The registry, locked.
pub(super) struct Access<'a>(MutexGuard<'a, Registry>);

impl Access<'_> {
    pub(super) fn take_unsaved(&mut self, most: usize) -> Unsaved {
        self.0.take_unsaved(most)
    }

    pub(super) fn not_saved(&mut self, unsaved: Unsaved) {
        self.0.not_saved(unsaved);
    }

    pub(super) fn saved(&mut self, unsaved: &Unsaved, now: Instant) {
        self.0.saved(unsaved, now);
    }

    pub(super) fn unsaved(&self) -> usize {
        self.0.unsaved()
    }

    pub(super) fn load(&mut self, rows: Vec<(Row, Duration)>, stale: bool, now: Instant) {
        self.0.load(rows, stale, now);
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.0.expire(now);
    }

    pub(super) fn save_behind(&mut self, epoch: u64, lowest: Position, now: Instant) {
        self.0.save_behind(epoch, lowest, now);
    }

    pub(super) fn save_all(&mut self) {
        self.0.save_all();
    }
}

/// The frontiers of one channel. Dropped, they are kept for the channel's return.
#[derive(Debug)]
pub struct Tracked {
    handles: Arc<Handles>,
    ended: Mutex<bool>,
}

/// Which frontiers a receipt is for. Does not keep the channel's from ending.
#[derive(Debug)]
pub struct Handles {
    frontiers: Arc<Frontiers>,
    handles: SmallVec<[Handle; 2]>,
    /// That of the last key.
    last: Option<Handle>,
}

impl Handles {
    fn are_safe(&self, well: bool) -> bool {
        let safe = |access: &mut Access<'_>| self.handles.iter().all(|handle| access.0.is_safe(*handle));
        !well || self.frontiers.with(safe)
    }

    /// The client has received everything up to here; `rows`: and some of it was rows.
    pub fn advance(&self, to: Cursor, rows: bool) {
        self.advance_these(&self.handles, to, rows);
    }

    /// The same of the last key alone: the others were not delivered.
    pub fn advance_last(&self, to: Cursor, rows: bool) {
        self.advance_these(self.last.as_slice(), to, rows);
    }

    /// The client knows of this gap: who stands in it goes on at its end.
    pub fn skip(&self, from: Cursor, to: Cursor) {
        self.frontiers.with(|access| self.handles.iter().for_each(|handle| access.0.skip(*handle, from, to)));
        self.frontiers.work.notify_one();
    }

    fn advance_these(&self, handles: &[Handle], to: Cursor, rows: bool) {
        self.frontiers.with(|access| handles.iter().for_each(|handle| access.0.advance(*handle, to, rows)));
        if rows {
            self.frontiers.work.notify_one();
        }
    }
}

impl Handles {
    /// The client has shown life.
    pub fn alive(&self, now: Instant) {
        self.frontiers.with(|access| self.handles.iter().for_each(|handle| access.0.alive(*handle, now)));
    }
}

impl Tracked {
    /// Whether the client would go on from somewhere if this process ended now, or nothing can be done for that.
    pub fn is_safe(&self) -> bool {
        let well = *self.handles.frontiers.saving.borrow();
        self.handles.are_safe(well)
    }

    /// Resolves when that is so, or after this time.
    pub async fn safe(&self, patience: Duration) {
        let mut saving = self.handles.frontiers.saving.subscribe();
        let _ = tokio::time::timeout(patience, saving.wait_for(|well| self.handles.are_safe(*well))).await;
    }

    /// For receipts.
    pub fn handles(&self) -> Arc<Handles> {
        self.handles.clone()
    }

    /// The same frontiers under another name of the device, from where they are. These are left as they are.
    pub fn renamed(&self, principal: &Principal, device: &str, probe: &Arc<Notify>, now: Instant) -> Arc<Tracked> {
        let Handles { frontiers, handles, last } = &*self.handles;
        let key = Key::new(principal, device, "", "");
        let mut renamed = Handles { frontiers: frontiers.clone(), handles: SmallVec::new(), last: None };
        frontiers.with(|access| {
            for handle in handles {
                let also = access.0.also(*handle, key, probe, now);
                renamed.handles.extend(also);
                if *last == Some(*handle) {
                    renamed.last = also;
                }
            }
        });
        frontiers.work.notify_one();
        Arc::new(Tracked { handles: Arc::new(renamed), ended: Mutex::new(false) })
    }

    /// The channel is over; `left`: its client said so. `seen`: when the client last showed life.
    pub fn end(&self, left: bool, seen: Instant, now: Instant) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *ended, true) {
            return;
        }
        let Handles { frontiers, handles, .. } = &*self.handles;
        frontiers.with(|access| handles.iter().for_each(|handle| access.0.end(*handle, seen, left, now)));
        frontiers.work.notify_one();
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // Whoever ends it without saying when may have seen it until now.
        let now = Instant::now();
        self.end(false, now, now);
    }
}
