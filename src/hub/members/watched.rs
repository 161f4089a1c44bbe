//! One member: what is watched, and what was last judged of it.

use std::cell::Cell;
use std::sync::{Arc, Weak};

use smallvec::SmallVec;

use crate::policy::rule::KnownViewer;
use crate::policy::{Asking, Right, Rights, Way};

/// Rights that the hub keeps true, until this is dropped.
#[derive(Debug)]
pub struct Watch {
    _alive: Arc<()>,
}

/// The hub's end of a [`Watch`].
#[derive(Debug)]
pub struct Watched {
    pub(super) asking: Asking,
    pub(super) rights: Arc<Rights>,
    alive: Weak<()>,
}

impl Watch {
    pub(in crate::hub) fn new(asking: Asking, rights: Arc<Rights>) -> (Watch, Watched) {
        let alive = Arc::new(());
        let watched = Watched { asking, rights, alive: Arc::downgrade(&alive) };
        (Watch { _alive: alive }, watched)
    }
}

#[cfg(test)]
impl Watched {
    /// Its [`Watch`] is there.
    pub(crate) fn is_wanted(&self) -> bool {
        self.alive.strong_count() > 0
    }
}

impl Watched {
    pub(super) fn is_over(&self) -> bool {
        self.alive.strong_count() == 0
    }

    /// By where its rights are.
    pub(super) fn key(&self) -> usize {
        key(&self.rights)
    }
}

pub(super) fn key(rights: &Arc<Rights>) -> usize {
    Arc::as_ptr(rights) as usize
}

pub(super) fn is_same(one: &Asking, other: &Asking) -> bool {
    let key = |asking: &Asking| asking.principal.sharing_key.clone();
    one.topic == other.topic && one.headers == other.headers && key(one) == key(other)
}

pub(super) fn way_of(right: Right) -> (Way, &'static str) {
    match right {
        Right::ReadBroadcast => (Way::Read, "broadcast"),
        Right::ReadPresence => (Way::Read, "presence"),
        Right::WriteBroadcast => (Way::Write, "broadcast"),
        Right::WritePresence => (Way::Write, "presence"),
    }
}

/// The right that differs from this one in the extension only, and is judged before it.
pub(super) fn twin_of(right: Right) -> Option<Right> {
    match right {
        Right::ReadPresence => Some(Right::ReadBroadcast),
        Right::WritePresence => Some(Right::WriteBroadcast),
        Right::ReadBroadcast | Right::WriteBroadcast => None,
    }
}

pub(super) struct Member {
    pub(super) watched: Watched,
    /// What each way's plan takes from the principal, by the plan's number.
    pub(super) viewers: [(Cell<u64>, KnownViewer); 2],
    pub(super) seen: [Cell<Seen>; 4],
    /// Where it stands in the crowd, and since which change of what is looked up there.
    pub(super) places: SmallVec<[u64; 2]>,
    pub(super) placed: u64,
}

/// What was last judged of one right: by which compilation and version of the plan, and how.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) number: u64,
    pub(super) version: u64,
    pub(super) verdict: Option<bool>,
    /// The right was taken back since: what it is now, Postgres has said.
    pub(super) doubted: bool,
    /// The right was taken back, and nobody has set it since.
    pub(super) taken: bool,
}

/// What a member's right is to be set to, if to anything: what memory last said of it, what it says now, and what the right
/// is, which the session may have set meanwhile by an older answer.
pub(super) fn told(before: Seen, seen: Seen, right: Option<bool>) -> Option<Option<bool>> {
    let Some(right) = right else {
        // Never asked, or being asked again; but what was taken for want of knowledge is given back when memory knows again.
        return (before.taken && seen.verdict == Some(true)).then_some(Some(true));
    };
    let is_new = (before.number, before.version) != (seen.number, seen.version);
    match seen.verdict {
        Some(verdict) if verdict == right => None,
        Some(true) => Some(Some(true)),
        Some(false) if is_new && before.verdict == Some(true) => Some(Some(false)),
        Some(false) => (!seen.doubted).then_some(None),
        // What was never in memory's hands stays as it is, but not under other policies.
        None => {
            let other = before.number != 0 && before.number != seen.number;
            (is_new && (before.verdict.is_some() || other)).then_some(None)
        }
    }
}
