//! Who is in a topic together: broadcast between clients, and presence. Both live in memory only.
//!
//! ```text
//!  Seat::broadcast ─┐  places in the shards' queues first, then the room's lock:   ┌► shard ─ each member's outbox
//!  Rooms::publish  ─┼► one batch per shard, none per member                        ├► shard
//!  diffs (Rooms::run)┘                                                             └► …
//! ```
//!
//! Invariants:
//! * All members read the messages of a room in one order: they are handed to all shards under the room's lock.
//! * Nothing is awaited under a lock. Who sends faster than the shards write waits, and of one user one at a time, so that
//!   users share a room equally, however many connections each has.
//! * `presence_state` shows what diffs have told so far, and comes in order with them.
//! * Rights are asked when a shard writes, not when a message is sent.
//! * A room without members does not exist. What it keeps is bounded by its members, and presence by [`RoomConfig`].
//!
//! Rejected: a task per room, whose queue is one more place where messages wait; tokio's broadcast channel, which drops what a
//! slow receiver has not read.

mod batch;
mod members;
mod meta;
mod order;
mod presence;
mod rate;
mod rooms;
mod seat;
mod state;

#[cfg(test)]
mod tests;

pub use batch::{Cast, RoomBatch};
pub(crate) use batch::{Kind, What};
pub(crate) use members::Slot;
pub use rooms::Rooms;
pub use seat::Seat;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::hub::Port;
use crate::policy::Rights;

/// Which room. A public and a private one of the same topic are two.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoomKey {
    /// Its members need rights.
    pub private: bool,
    /// Without `realtime:`.
    pub topic: Arc<str>,
}

/// A channel that enters a room.
#[derive(Debug, Clone)]
pub struct Member {
    /// Where its frames go.
    pub port: Arc<Port>,
    /// What it may read; `None` in a public room.
    pub rights: Option<Arc<Rights>>,
    /// Presence was asked for at the join.
    pub presence: bool,
    /// Its presence key.
    pub key: Arc<str>,
    /// Who it is for the sharing of the room: members of the same user have one share. One without a name has that of its
    /// connection.
    pub user: Arc<str>,
}

/// A broadcast. Payloads are passed on byte by byte.
#[derive(Debug, Clone)]
pub enum Message {
    /// The `broadcast` event of a text frame, its payload any JSON: text for all.
    Text {
        /// Valid JSON, as the codec has found it.
        payload: Bytes,
    },
    /// A named event, as of a frame of kind 3, of HTTP and of the database.
    Event {
        /// Its name.
        event: Arc<str>,
        /// What it carries.
        payload: Payload,
        /// A JSON object, such as `{"id":"…"}`.
        meta: Option<Bytes>,
    },
}

/// What an event carries.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Any JSON.
    Json(Bytes),
    /// Any bytes; clients of protocol 1 don't get it.
    Binary(Bytes),
}

/// Bounds of rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomConfig {
    /// Messages per second of one room, on average over a minute. 10 000. Over it, those users are refused who have sent more
    /// than their share.
    pub messages_per_second: u32,
    /// Changes of presence per second of one room, on average over a minute. 5000.
    pub presence_per_second: u32,
    /// Metas of one room. 50 000.
    pub presence_metas: usize,
    /// Bytes of one meta with its key. 64 KiB.
    pub presence_meta_bytes: usize,
    /// Bytes of all metas and keys of one room: who joins gets all of them in one frame, which is made under the room's lock.
    /// 8 MiB.
    pub presence_bytes: usize,
    /// The same of one connection, in all of its rooms. 1 MiB.
    pub presence_connection_bytes: usize,
    /// The same of all rooms together. 256 MiB.
    pub presence_all_bytes: usize,
    /// Diffs of a public room go to all its members, as on other servers; otherwise to those who have presence switched on. True.
    pub presence_to_all: bool,
    /// Diffs of one room are at least so far apart; what happens meanwhile is told in one. 50 ms. In rooms of
    /// more than a thousand members it grows with them.
    pub presence_window: Duration,
    /// And not beyond this, as long as it is the longer of the two. 1.5 s, as on other servers.
    pub presence_longest_window: Duration,
}

impl Default for RoomConfig {
    fn default() -> RoomConfig {
        RoomConfig {
            messages_per_second: 10_000,
            presence_per_second: 5000,
            presence_metas: 50_000,
            presence_meta_bytes: 64 << 10,
            presence_bytes: 8 << 20,
            presence_connection_bytes: 1 << 20,
            presence_all_bytes: 256 << 20,
            presence_to_all: true,
            presence_window: Duration::from_millis(50),
            presence_longest_window: Duration::from_millis(1500),
        }
    }
}

/// Why a room did not take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoomError {
    /// The room has more messages per second than it may have.
    #[error("Too many messages per second")]
    TooManyMessages,
    /// The room has more changes of presence per second than it may have.
    #[error("Too many presence messages per second")]
    TooManyPresence,
    /// The room, the connection or the relay keeps as many metas, or bytes of them, as it may; or the meta alone is too large.
    #[error("Too many presences")]
    PresenceFull,
    /// What is to be tracked is no JSON object.
    #[error("Presence track payload must be a map")]
    NotAMap,
    /// The relay stops.
    #[error("Realtime is restarting, please standby")]
    Closed,
}
