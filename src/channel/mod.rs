//! Transport-free state machines: what a join asks for, the changes it wants, and how far its subscription is.
//!
//! Nothing here does I/O or knows how a frame looks; a door (Phoenix now, others later) feeds it and carries out what it asks.

mod changes;
mod feed;
mod join;
mod object;
mod place;
mod presence;

use std::sync::atomic::{AtomicU64, Ordering};

pub use changes::Wanted;
pub use feed::{Answer, Feed, GoOn, Notice, Request};
pub use join::{Join, JoinError, Privacy, Replay, TokenChoice, UNREACHABLE, no_permission, renewed_token};
pub use place::Since;
pub use presence::{Presence, presence};

use crate::hub::ChannelId;

/// An id that no other channel of this process has.
pub fn next_id() -> ChannelId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    ChannelId(NEXT.fetch_add(1, Ordering::Relaxed))
}
