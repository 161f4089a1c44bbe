//! What is noted.

use std::borrow::Cow;
use std::sync::Arc;

use crate::change::{Lsn, Position};

/// A token's role and `sub`; nothing else of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct User {
    /// The `role` claim.
    pub role: Arc<str>,
    /// The `sub` claim; empty if there is none.
    pub subject: Arc<str>,
}

/// One entry of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Of the join reply.
    pub id: i32,
    /// `*`, `INSERT`, `UPDATE` or `DELETE`.
    pub action: Cow<'static, str>,
    /// `None`: any.
    pub schema: Option<Arc<str>>,
    /// `None`: any.
    pub table: Option<Arc<str>>,
    /// As the client sent it.
    pub filter: Option<Arc<str>>,
}

/// Something that may be the reason why a row did not arrive. Channels and connections are numbered within one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A run began; the hub begins after this position.
    Started {
        /// The log's end.
        position: Lsn,
    },
    /// The run has ended in order.
    Stopped,
    /// A channel's entries are active.
    Joined {
        /// Which.
        channel: u64,
        /// On which connection.
        connection: u64,
        /// Its topic.
        topic: Arc<str>,
        /// Whom it speaks for.
        user: User,
        /// When the token expires, in seconds since 1970.
        expires_at: i64,
        /// Rows at or before this are not for it.
        from: Position,
        /// What it asked for; none if it was too long to be kept.
        entries: Vec<Wanted>,
    },
    /// A channel's entries were refused.
    Refused {
        /// Which.
        channel: u64,
        /// Its topic.
        topic: Arc<str>,
        /// Whom it spoke for.
        user: User,
    },
    /// A new token is in force for an active channel.
    Token {
        /// Which.
        channel: u64,
        /// Whom it speaks for from now on.
        user: User,
        /// When the token expires, in seconds since 1970.
        expires_at: i64,
        /// The hub's position.
        at: Position,
    },
    /// The token of a channel has expired.
    Expired {
        /// Which.
        channel: u64,
    },
    /// A channel is not active any more, for whatever reason. Says again what it was, since the note of its join may be gone.
    Left {
        /// Which.
        channel: u64,
        /// On which connection.
        connection: u64,
        /// Its topic.
        topic: Arc<str>,
        /// Whom it spoke for.
        user: User,
        /// Rows at or before this were not for it.
        from: Position,
        /// The hub's position: rows after this are not for it.
        at: Position,
    },
    /// An active channel gets nothing, since a table of it changed and its entries can't be resolved again (yet).
    Paused {
        /// Which.
        channel: u64,
        /// The hub's position.
        at: Position,
    },
    /// It does again.
    Resumed {
        /// Which.
        channel: u64,
        /// The hub's position.
        at: Position,
    },
    /// A subscription was ended for its filter.
    Ended {
        /// Which.
        channel: u64,
        /// The row that was too much.
        at: Position,
    },
    /// A connection is over.
    Closed {
        /// Which.
        connection: u64,
        /// `slow`, `drain`, `idle`, `joins`, `protocol`, `peer` or `broken`.
        reason: Cow<'static, str>,
        /// Of the close frame; 0 if none was sent.
        code: u16,
    },
    /// Rows of a table that were not decided for a channel, which was told of a gap.
    Undecided {
        /// Which.
        channel: u64,
        /// Its oid.
        table: u32,
        /// Why.
        reason: Cow<'static, str>,
        /// The first of them.
        first: Position,
        /// The last of them.
        last: Position,
        /// How many.
        count: u32,
    },
    /// Nobody got what was between these positions; all were told.
    Gap {
        /// After this.
        from: Lsn,
        /// Up to this.
        resumed: Lsn,
    },
    /// Rows of a table that policies look into were changed.
    Facts {
        /// Its oid.
        table: u32,
        /// The first of them.
        first: Position,
        /// The last of them.
        last: Position,
        /// How many, at most: of a transaction that changes several tables each is said to have them all.
        rows: u64,
    },
    /// What became of a table that policies look into: `loaded`, `broken` and so on.
    FactState {
        /// Its oid.
        table: u32,
        /// The hub's position.
        at: Position,
        /// In a word or a sentence.
        state: Cow<'static, str>,
    },
    /// Other policies, grants, roles, publications or tables are in force.
    Rules {
        /// The hub's position: rows after this are judged by them.
        at: Position,
    },
    /// Notes are missing here.
    Hole {
        /// Milliseconds since 1970.
        from: i64,
        /// Milliseconds since 1970.
        to: i64,
        /// How many; 0 if nobody knows.
        lost: u64,
    },
}

impl Note {
    /// Takes up another note that follows it, if both can be told as one. Many of a kind would push everything else out.
    pub(super) fn absorb(&mut self, other: &Note) -> bool {
        match (self, other) {
            (
                Note::Facts { table, last, rows, .. },
                Note::Facts { table: other_table, last: other_last, rows: other_rows, .. },
            ) if table == other_table => {
                (*last, *rows) = (*other_last, rows.saturating_add(*other_rows));
                true
            }
            (
                Note::Undecided { channel, table, reason, last, count, .. },
                Note::Undecided {
                    channel: other_channel,
                    table: other_table,
                    reason: other_reason,
                    last: other_last,
                    count: other_count,
                    ..
                },
            ) if (&*channel, &*table, &*reason) == (other_channel, other_table, other_reason) => {
                (*last, *count) = (*other_last, count.saturating_add(*other_count));
                true
            }
            _ => false,
        }
    }
}
