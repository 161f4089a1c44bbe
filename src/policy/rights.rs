//! What one member of a private channel may do there, as last decided: shared by its session, the hub and its room.
//!
//! Invariants: what was never decided is not allowed; a change wakes the member's connection once it is visible to everybody.
//!
//! Rejected: each of the three with an answer of its own. A right that ends must end everywhere at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

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

const KNOWN: u8 = 0b01;
const ALLOWED: u8 = 0b10;

/// See the module's comment.
#[derive(Debug)]
pub struct Rights {
    bits: AtomicU8,
    changed: Arc<Notify>,
}

impl Rights {
    /// None is decided. `changed` is notified at every change that [`Rights::set`] makes.
    pub fn new(changed: Arc<Notify>) -> Rights {
        Rights { bits: AtomicU8::new(0), changed }
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
        let before = self.bits.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| Some(bits & !mask | value));
        let changed = before.unwrap_or_else(|bits| bits) & mask != value;
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
    }
}
