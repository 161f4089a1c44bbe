//! Rows that are gone and could not be judged because the facts were not at hand, and whom that has to be told.
//!
//! While facts are loaded, or are those of another moment, nobody can tell who was permitted a row before its deletion:
//! whoever is not permitted it by what is known later is told of a gap. Not for each row: a table may lose a million, and each
//! notice makes a client reload. All that was lost while the facts were away is one gap, told when they are back, or after a
//! while if they stay away.
//!
//! Invariant: what was lost is told after it was lost; until then [`Owing::since`] says that the channel is not complete, and
//! what it gets carries no cursor from which it could go on. So a client that reloads at the notice misses nothing, and one that
//! goes away before it does not resume behind the loss.
//!
//! Most often the facts are merely ahead of the stream, as when the relay has been away. Who was denied a row by such facts was denied it
//! rightly if they were the same before the row: if the stream shows no change of a table that policies look into from the row's
//! transaction on, up to the moment of the facts ([`Owing::note_change`]). Then there is nothing to tell. That a table was in no
//! publication for a part of that time the stream can't show; whoever is not permitted the row any more is owed nothing then.
//!
//! Rejected: telling at the first loss. What is lost after the client has reloaded would have to be told again and again.

use std::sync::Arc;
use std::time::Duration;

use ahash::AHashMap;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{ChannelId, Port};
use crate::change::{Lsn, Position};
use crate::resume::Cursor;

/// What a client is told.
pub(super) const LOST: &str = "Gap: rows were deleted while the tables that the policies look into were being read, and it can't be told any \
     more whether they were yours; reload what you show (reason: undecided)";

/// What is lost within this time is told together.
const TOGETHER: Duration = Duration::from_secs(1);
/// Nobody waits longer to be told.
const LONGEST: Duration = Duration::from_secs(10);
/// Between two messages through a stream in which nothing comes by itself.
const NUDGE_EVERY: Duration = Duration::from_secs(2);

/// What one channel is owed.
pub(super) struct Owed {
    pub(super) port: Arc<Port>,
    /// The first row that was lost.
    pub(super) first: Cursor,
    /// The last one, which may be in a later history.
    pub(super) last: Cursor,
    began: Instant,
    /// All that it is owed may turn out to be nothing; [`crate::policy::facts::Facts::generation`] meanwhile.
    doubt: Option<u64>,
    /// Rows of which nobody was told yet that they were not decided, by table.
    pub(super) doubted: SmallVec<[Doubted; 1]>,
}

/// Rows of one table that a channel may have lost.
pub(super) struct Doubted {
    pub(super) table: u32,
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) count: u32,
}

impl Owed {
    fn doubt_row(&mut self, table: u32, at: Position) {
        match self.doubted.iter_mut().find(|known| known.table == table) {
            Some(known) => {
                (known.first, known.last) = (known.first.min(at), known.last.max(at));
                known.count += 1;
            }
            None => self.doubted.push(Doubted { table, first: at, last: at, count: 1 }),
        }
    }
}

/// See the module's comment.
#[derive(Default)]
pub(super) struct Owing {
    owed: AHashMap<ChannelId, Owed>,
    /// When the oldest began.
    began: Option<Instant>,
    /// When a message was sent through the stream for it.
    nudged: Option<Instant>,
    /// Behind the last transaction, of those that were read from the log, that changed a table which policies look into.
    changed: Lsn,
}

impl Owing {
    /// The stream, or a pass, has come to a transaction that ends there and changes a table which policies look into; or what it
    /// has not come to may have.
    pub(super) fn note_change(&mut self, end: Lsn) {
        self.changed = self.changed.max(end);
    }

    /// Another history begins, lower than the one before: the stream has come to none of its changes yet.
    pub(super) fn begin_history(&mut self) {
        self.changed = Lsn::ZERO;
    }

    /// Whether all that a channel is owed is in doubt, and no facts were changed or loaded since before.
    pub(super) fn is_unchanged_since(&self, owed: &Owed, generation: u64) -> bool {
        owed.doubt == Some(generation) && self.changed < owed.first.position.lsn
    }

    /// A row is lost to a channel; with a `doubt`, of a table under facts of a generation, it may not be.
    pub(super) fn add(&mut self, port: &Arc<Port>, at: Cursor, now: Instant, doubt: Option<(u32, u64)>) {
        self.began.get_or_insert(now);
        port.place.lose();
        let generation = doubt.map(|(_, generation)| generation);
        let new = || {
            let (port, doubted) = (port.clone(), SmallVec::new());
            Owed { port, first: at, last: at, began: now, doubt: generation, doubted }
        };
        let owed = self.owed.entry(port.id).or_insert_with(new);
        owed.doubt = owed.doubt.filter(|known| Some(*known) == generation);
        if let Some((table, _)) = doubt {
            owed.doubt_row(table, at.position);
        }
        if owed.first.epoch == at.epoch && at.position < owed.first.position {
            owed.first = at;
        }
        if owed.last.epoch != at.epoch || at.position > owed.last.position {
            owed.last = at;
        }
    }

    /// The first row that a channel has lost and was not told of: it is complete up to before it only.
    pub(super) fn since(&self, channel: ChannelId) -> Option<Cursor> {
        self.owed.get(&channel).map(|owed| owed.first)
    }

    /// Whether a channel could go on from this row only without what it has lost before.
    pub(super) fn is_behind(&self, channel: ChannelId, epoch: Option<u64>, row: Position) -> bool {
        let is_before = |first: Cursor| Some(first.epoch) != epoch || first.position < row;
        self.since(channel).is_some_and(is_before)
    }

    /// Nobody is owed anything.
    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    pub(super) fn forget(&mut self, channel: ChannelId) {
        self.owed.remove(&channel);
    }

    /// When [`Owing::take`] has something; `over` if the facts are back.
    pub(super) fn due_at(&self, over: bool) -> Option<Instant> {
        self.began.map(|began| began + if over { TOGETHER } else { LONGEST })
    }

    /// When a message is to be sent through the stream, if that is all that is missing.
    pub(super) fn nudge_at(&self) -> Option<Instant> {
        let began = self.began? + TOGETHER;
        Some(self.nudged.map_or(began, |nudged| began.max(nudged + NUDGE_EVERY)))
    }

    /// Whether that is now.
    pub(super) fn nudges(&mut self, now: Instant) -> bool {
        let due = self.nudge_at().is_some_and(|at| at <= now);
        if due {
            self.nudged = Some(now);
        }
        due
    }

    /// Who is to be told now, by channel.
    pub(super) fn take(&mut self, over: bool, now: Instant) -> Vec<Owed> {
        if self.due_at(over).is_none_or(|at| now < at) {
            return Vec::new();
        }
        let wait = if over { TOGETHER } else { LONGEST };
        let mut due: Vec<Owed> =
            self.owed.extract_if(|_, owed| now >= owed.began + wait).map(|(_, owed)| owed).collect();
        self.began = self.owed.values().map(|owed| owed.began).min();
        due.sort_unstable_by_key(|owed| owed.port.id);
        due
    }
}
