//! What one member of a private channel may do there, as last decided: shared by its session, the hub and its room.
//!
//! Invariants: what was never decided is not allowed; a change wakes the member's connection once it is visible to everybody.
//! A right that was away for however short a time between two looks can be told to have been ([`Rights::lapses`]).
//!
//! Rejected: each of the three with an answer of its own. A right that ends must end everywhere at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::Way;

/// One of the four rights that policies on `realtime.messages` give or don't (`protocol.md` §7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// Broadcasts are delivered: SELECT, `extension = 'broadcast'`.
    ReadBroadcast,
    /// Presence is: SELECT, `extension = 'presence'`.
    ReadPresence,
    /// Broadcasts are taken: INSERT, `extension = 'broadcast'`.
    WriteBroadcast,
    /// Presence is tracked: INSERT, `extension = 'presence'`.
    WritePresence,
}

impl Right {
    /// All of them.
    pub const ALL: [Right; 4] =
        [Right::ReadBroadcast, Right::ReadPresence, Right::WriteBroadcast, Right::WritePresence];

    fn shift(self) -> u8 {
        self as u8 * 2
    }
}

const KNOWN: u64 = 0b01;
const ALLOWED: u64 = 0b10;
/// The first of a bit for each way, above those of the rights.
const OLD: u64 = 1 << 8;
/// Above everything else, the count of lapses; it may overflow.
const LAPSE: u64 = 1 << 32;

/// See the module's comment.
#[derive(Debug)]
pub struct Rights {
    bits: AtomicU64,
    changed: Arc<Notify>,
}

impl Rights {
    /// None is decided. `changed` is notified at every change that [`Rights::set`] or [`Rights::set_old`] makes.
    pub fn new(changed: Arc<Notify>) -> Rights {
        Rights { bits: AtomicU64::new(0), changed }
    }

    /// What was decided; `None` before that.
    pub fn get(&self, right: Right) -> Option<bool> {
        let bits = self.bits.load(Ordering::Acquire) >> right.shift();
        (bits & KNOWN != 0).then_some(bits & ALLOWED != 0)
    }

    /// Whether it was decided, and allowed.
    pub fn allows(&self, right: Right) -> bool {
        self.get(right) == Some(true)
    }

    /// Decides it, or takes the decision back. Says whether that is a change; then the connection is woken.
    pub fn set(&self, right: Right, allowed: Option<bool>) -> bool {
        let value = match allowed {
            None => 0,
            Some(false) => KNOWN,
            Some(true) => KNOWN | ALLOWED,
        } << right.shift();
        let mask = (KNOWN | ALLOWED) << right.shift();
        self.change(|bits| {
            let was_allowed = bits & (ALLOWED << right.shift()) != 0;
            let lapses = was_allowed && allowed != Some(true) && right == Right::ReadPresence;
            (bits & !mask | value).wrapping_add(if lapses { LAPSE } else { 0 })
        })
    }

    /// How often the right to read presence has ended: whoever has it, but counted another time, has missed something.
    pub fn lapses(&self) -> u32 {
        (self.bits.load(Ordering::Acquire) / LAPSE) as u32
    }

    /// Whether what memory last said of this way's rights is of long ago: it may be believed for a bounded time only.
    pub fn is_old(&self, way: Way) -> bool {
        self.bits.load(Ordering::Acquire) & (OLD << way as u8) != 0
    }

    /// Begins that time, or ends it. The connection is woken if that is a change.
    pub fn set_old(&self, way: Way, old: bool) {
        let bit = OLD << way as u8;
        self.change(|bits| if old { bits | bit } else { bits & !bit });
    }

    /// Says whether there was one; then the connection is woken.
    fn change(&self, change: impl Fn(u64) -> u64) -> bool {
        let (done, seen) = (Ordering::AcqRel, Ordering::Acquire);
        let different = |bits: u64| Some(change(bits)).filter(|changed| *changed != bits);
        let changed = self.bits.fetch_update(done, seen, different).is_ok();
        if changed {
            self.changed.notify_one();
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_decided_is_not_allowed_and_each_right_is_its_own() {
        let rights = Rights::new(Arc::default());
        for right in Right::ALL {
            assert_eq!((rights.get(right), rights.allows(right)), (None, false));
        }
        assert!(rights.set(Right::ReadPresence, Some(true)));
        assert!(!rights.set(Right::ReadPresence, Some(true)));
        assert!(rights.set(Right::WritePresence, Some(false)));
        assert!(rights.allows(Right::ReadPresence) && !rights.allows(Right::ReadBroadcast));
        assert_eq!(rights.get(Right::WritePresence), Some(false));
        assert!(rights.set(Right::ReadPresence, None));
        assert_eq!((rights.get(Right::ReadPresence), rights.get(Right::WritePresence)), (None, Some(false)));
    }

    #[tokio::test]
    async fn a_change_wakes_the_connection() {
        let changed = Arc::new(Notify::new());
        let rights = Rights::new(changed.clone());
        rights.set(Right::ReadBroadcast, Some(true));
        changed.notified().await;
        rights.set_old(Way::Read, true);
        changed.notified().await;
        rights.set_old(Way::Read, true);
        assert!(futures_util::FutureExt::now_or_never(changed.notified()).is_none());
    }

    #[test]
    fn a_right_to_read_presence_that_was_away_between_two_looks_is_known_to_have_been() {
        let rights = Rights::new(Arc::default());
        rights.set(Right::ReadPresence, Some(true));
        assert_eq!(rights.lapses(), 0);
        rights.set(Right::ReadPresence, None);
        rights.set(Right::ReadPresence, Some(true));
        rights.set(Right::ReadBroadcast, Some(true));
        rights.set(Right::ReadBroadcast, None);
        assert_eq!((rights.lapses(), rights.allows(Right::ReadPresence)), (1, true));
    }

    #[test]
    fn each_way_is_old_by_itself_and_no_right_is_changed_by_it() {
        let rights = Rights::new(Arc::default());
        rights.set(Right::WritePresence, Some(true));
        rights.set_old(Way::Write, true);
        assert!(rights.is_old(Way::Write) && !rights.is_old(Way::Read));
        assert!(rights.allows(Right::WritePresence) && rights.get(Right::ReadBroadcast).is_none());
        rights.set_old(Way::Write, false);
        assert!(!rights.is_old(Way::Write) && rights.allows(Right::WritePresence));
    }
}
