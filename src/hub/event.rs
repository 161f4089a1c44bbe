//! What leaves the hub: one row change for many members, encoded once.
//!
//! The hub does not encode. An [`Event`] carries a write-once cache of encodings, keyed by everything that changes the bytes;
//! the first writer fills an entry, the rest share it. Two permits that show different columns never share an entry.

use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{Port, Version};
use crate::change::{Position, RowChange, Timestamp};
use crate::pgtype::Types;
use crate::policy::{Permit, Permitted};
use crate::resume::{Cursor, CursorKey};

/// The ids of a channel's entries that match, ascending.
pub type Ids = SmallVec<[i32; 2]>;

/// Everything that decides the bytes of a frame, but for the row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FrameKey {
    permit: Permit,
    version: Version,
    topic: Arc<str>,
    ids: Ids,
    cursor_as: Option<Arc<str>>,
}

/// One row change on its way out.
#[derive(Debug)]
pub struct Event {
    /// The change.
    pub row: Arc<RowChange>,
    /// When its transaction committed.
    pub commit_time: Timestamp,
    /// When the hub took its transaction up.
    pub taken: Instant,
    /// The types as of the catalog it was judged with.
    pub types: Arc<Types>,
    /// The tag of the history that it belongs to, for its cursor; `None` for what has none: a row of a snapshot.
    pub epoch: Option<u64>,
    /// It is a row of a snapshot, and `commit_time` is the snapshot's.
    pub snapshot: bool,
    /// It goes out as the broadcast that it is, not as a change of a table.
    pub message: bool,
    cursor: OnceLock<Option<String>>,
    encodings: Mutex<Encodings>,
}

#[derive(Debug, Default)]
struct Encodings {
    data: Vec<(Permit, Option<Arc<str>>, Bytes)>,
    frames: Vec<(FrameKey, Bytes)>,
}

/// More different frames of one event than this are not kept: every member has a topic of its own, and sharing is over.
const FRAMES_KEPT: usize = 32;

impl Event {
    /// Nothing is encoded yet.
    pub fn new(
        row: Arc<RowChange>,
        commit_time: Timestamp,
        taken: Instant,
        types: Arc<Types>,
        epoch: Option<u64>,
    ) -> Event {
        let (cursor, encodings) = (OnceLock::new(), Mutex::default());
        Event { row, commit_time, taken, types, epoch, snapshot: false, message: false, cursor, encodings }
    }

    /// A row of a snapshot taken at this time.
    pub fn of_snapshot(row: Arc<RowChange>, at: Timestamp, taken: Instant, types: Arc<Types>) -> Event {
        Event { snapshot: true, ..Event::new(row, at, taken, types, None) }
    }

    /// The same as a broadcast.
    pub fn of_message(self) -> Event {
        Event { message: true, ..self }
    }

    /// The text of its cursor, sealed once; `None` if it has none. One relay has one key.
    pub fn cursor(&self, key: &CursorKey) -> Option<&str> {
        let place = |epoch| Cursor { epoch, position: self.row.position };
        self.cursor.get_or_init(|| self.epoch.map(|epoch| key.seal(place(epoch)))).as_deref()
    }

    /// The `data` object for this permit and name of the cursor in the record; `encode` runs if nobody has made it yet.
    pub fn data(&self, permit: &Permit, cursor_as: Option<&Arc<str>>, encode: impl FnOnce() -> Bytes) -> Bytes {
        let mut encodings = self.lock();
        let same =
            |(known, name, _): &&(Permit, Option<Arc<str>>, Bytes)| known == permit && name.as_ref() == cursor_as;
        if let Some((.., data)) = encodings.data.iter().find(same) {
            return data.clone();
        }
        let data = encode();
        encodings.data.push((permit.clone(), cursor_as.cloned(), data.clone()));
        data
    }

    /// The frame for a member; `encode` runs if nobody has made it yet.
    pub fn frame(&self, permit: &Permit, member: &Member, encode: impl FnOnce() -> Bytes) -> Bytes {
        let port = &member.port;
        let same = |key: &FrameKey| {
            key.version == port.version
                && key.ids == member.ids
                && key.cursor_as == member.cursor_as
                && key.topic == port.topic
                && key.permit == *permit
        };
        if let Some((_, frame)) = self.lock().frames.iter().find(|(key, _)| same(key)) {
            return frame.clone();
        }
        let frame = encode();
        let mut encodings = self.lock();
        if encodings.frames.len() < FRAMES_KEPT {
            let (topic, ids, cursor_as) = (port.topic.clone(), member.ids.clone(), member.cursor_as.clone());
            let key = FrameKey { permit: permit.clone(), version: port.version, topic, ids, cursor_as };
            encodings.frames.push((key, frame.clone()));
        }
        frame
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Encodings> {
        self.encodings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In the place of a name, which is never empty: the member's change is told without its cursor. It lies in the seam of a
/// snapshot, and going on from there would bring what the snapshot showed; or going on from there would not bring all, since
/// another frame of the same row is to come, or a gap to be told.
pub const NO_CURSOR: &str = "";

/// The same, once for all members.
pub(super) static NONE: LazyLock<Arc<str>> = LazyLock::new(|| NO_CURSOR.into());

/// A channel that gets an event, under these ids.
#[derive(Debug, Clone)]
pub struct Member {
    /// The channel.
    pub port: Arc<Port>,
    /// Its matching entries.
    pub ids: Ids,
    /// The name under which its record carries the cursor; [`NO_CURSOR`]: nothing of it is shown.
    pub cursor_as: Option<Arc<str>>,
    /// Bytes that were added to the port's pace for it; taken away when it is in the outbox.
    pub cost: u32,
}

/// One event for the members of one shard who may see the same columns of it.
#[derive(Debug, Clone)]
pub struct Fanout {
    /// The event with what may be shown.
    pub event: Permitted<Arc<Event>>,
    /// Who gets it.
    pub members: Vec<Member>,
}

/// A `system` message for one channel, in order with its changes.
#[derive(Debug, Clone)]
pub struct Notice {
    /// The channel.
    pub port: Arc<Port>,
    /// `status` is `ok`, not `error`.
    pub ok: bool,
    /// Safe for the client.
    pub message: Arc<str>,
    /// What a program is to read of it.
    pub details: Option<Details>,
}

/// The part of a notice that is for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Details {
    /// Everything up to here has been sent (`cursor`).
    Reached(Cursor),
    /// An entry's snapshot and its seam are behind (`snapshot: {id, rows, more}`, `cursor`).
    Snapshot {
        /// The entry's.
        id: i32,
        /// How many rows it had.
        rows: u32,
        /// The limit left some out.
        more: bool,
        /// Everything up to here has been sent.
        cursor: Cursor,
    },
    /// Something can't be given (`gap: {from, to, reason}`).
    Gap {
        /// Up to here all was given; `None` if that can't be told.
        from: Option<Cursor>,
        /// From here on all will be.
        to: Cursor,
        /// Why.
        reason: GapReason,
    },
}

/// Why something can't be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// It is older than what the log keeps.
    Expired,
    /// It is of another history of the database, or of another database.
    Diverged,
    /// It could not be decided whether it may be sent.
    Undecided,
    /// The place is not known: the key of its cursor is lost.
    Unknown,
    /// The log could not be read there, or has lost it.
    Lost,
}

impl GapReason {
    /// As clients and metrics read it.
    pub fn as_str(self) -> &'static str {
        match self {
            GapReason::Expired => "expired",
            GapReason::Diverged => "diverged",
            GapReason::Undecided => "undecided",
            GapReason::Unknown => "unknown",
            GapReason::Lost => "lost",
        }
    }
}

/// The held join reply of a channel, before anything else of it.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// The channel.
    pub port: Arc<Port>,
    /// Complete frames. Written only if [`super::Stage::greet`] says so.
    pub frames: Bytes,
}

/// One thing for a shard to write.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// A change.
    Change(Fanout),
    /// A `system` message.
    Notice(Notice),
    /// A join reply.
    Greeting(Greeting),
    /// The channel is active from here on, with nothing owed to it up to this place.
    Begin(Arc<Port>, Option<Cursor>),
    /// The channel is complete up to this place only, until told otherwise; `None`: as far as its shard.
    Hold(Arc<Port>, Option<Cursor>),
    /// The channel has caught up: what follows is live.
    Live(Arc<Port>, Option<Cursor>),
}

/// What the hub hands to one shard at a time.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// In order.
    pub items: Vec<Outgoing>,
    /// Behind these items everything up to here has been handed over, but for channels with a hold.
    pub reached: Position,
    /// Of the history that `reached` belongs to; `None` before the first.
    pub epoch: Option<u64>,
}

impl Batch {
    /// How far whoever has written it is.
    pub fn cursor(&self) -> Option<Cursor> {
        self.epoch.map(|epoch| Cursor { epoch, position: self.reached })
    }
}

impl From<Vec<Outgoing>> for Batch {
    fn from(items: Vec<Outgoing>) -> Batch {
        Batch { items, ..Batch::default() }
    }
}
