//! Rows that were not given and of which that is told later, for many of them together.
//!
//! Of two kinds. Rows that are gone and could not be judged because the facts were not at hand: while facts are loaded, or are those
//! of another moment, nobody can tell who was permitted a row before its deletion, and whoever is not permitted it by what is known
//! later is told of a gap. Not for each row: a table may lose a million, and each notice makes a client reload. All that was lost
//! while the facts were away is one gap, told when they are back, or after a while if they stay away.
//!
//! And rows for which Postgres had no answer in time: the first is told at once, by whoever hands it over ([`Owing::tells_now`]). While
//! a channel has been told within [`TOGETHER`], what it misses is owed to it, and told as one gap when that time is over; and so on. So
//! a policy that answers nobody is one notice a second, however many its rows, and the last of them is always told.
//!
//! Invariant: what was lost is told after it was lost; until then [`Owing::since`] says that the channel is not complete, and
//! what it gets carries no cursor from which it could go on. So a client that reloads at the notice misses nothing, and one that
//! goes away before it does not resume behind the loss.
//!
//! A notice does not wait behind rows that wait for Postgres, or the channel would be held before the loss for as long as they
//! take: it goes ahead of them, up to the place before the first of them. What was lost beyond that stays owed.
//!
//! Most often the facts are merely ahead of the stream, as when the relay has been away. Who was denied a row by such facts was denied it
//! rightly if they were the same before the row: if the stream shows no change of a table that policies look into from the row's
//! transaction on, up to the moment of the facts ([`Owing::note_change`]). Then there is nothing to tell. That a table was in no
//! publication for a part of that time the stream can't show; whoever is not permitted the row any more is owed nothing then.
//!
//! Rejected: telling at the first loss for want of facts. What is lost after the client has reloaded would have to be told again and
//! again. And telling what is owed before the channel's next row, so that all rows have their cursor: rows that are decided and rows
//! that are not may alternate, and each of the latter would be a notice again.

use std::collections::VecDeque;
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
/// Between two looks at all who are owed something.
const LOOK: Duration = Duration::from_millis(50);
/// Between two messages through a stream in which nothing comes by itself.
const NUDGE_EVERY: Duration = Duration::from_secs(2);

/// What one channel is owed.
#[derive(Clone)]
pub(super) struct Owed {
    pub(super) port: Arc<Port>,
    /// The first row that was lost.
    pub(super) first: Cursor,
    /// The last one, which may be in a later history.
    pub(super) last: Cursor,
    /// Since when it is owed rows that there were no facts for.
    began: Option<Instant>,
    /// Since when it is owed others.
    open: Option<Instant>,
    /// All that it is owed may turn out to be nothing; [`crate::policy::facts::Facts::generation`] meanwhile.
    doubt: Option<u64>,
    /// Rows of which nobody was told yet that they were not decided, by table.
    pub(super) doubted: SmallVec<[Doubted; 1]>,
}

/// Rows of one table that a channel may have lost.
#[derive(Clone)]
pub(super) struct Doubted {
    pub(super) table: u32,
    pub(super) first: Position,
    pub(super) last: Position,
    pub(super) count: u32,
}

impl Owed {
    /// Nothing but facts was missing.
    pub(super) fn is_of_facts(&self) -> bool {
        self.open.is_none()
    }

    /// When it is told; `over` if the facts are back.
    fn due_at(&self, over: bool) -> Option<Instant> {
        due_at((self.began, self.open), over)
    }

    fn extend(&mut self, at: Cursor) {
        if self.first.epoch == at.epoch && at.position < self.first.position {
            self.first = at;
        }
        if self.last.epoch != at.epoch || at.position > self.last.position {
            self.last = at;
        }
    }

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

/// When the oldest of either kind is due.
fn due_at((began, open): (Option<Instant>, Option<Instant>), over: bool) -> Option<Instant> {
    let began = began.map(|began| began + if over { TOGETHER } else { LONGEST });
    began.into_iter().chain(open.map(|open| open + TOGETHER)).min()
}

/// See the module's comment.
#[derive(Default)]
pub(super) struct Owing {
    owed: AHashMap<ChannelId, Owed>,
    /// When the oldest of rows that there were no facts for began, and of the others.
    began: Option<Instant>,
    open: Option<Instant>,
    /// When all who are owed something were looked at.
    looked_at: Option<Instant>,
    /// Who was told a moment ago, and when; and the same in order, though some may have been told again since.
    recent: AHashMap<ChannelId, Instant>,
    told: VecDeque<(Instant, ChannelId)>,
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

    /// A row is lost to a channel for want of facts; with a `doubt`, of a table under facts of a generation, it may not be.
    pub(super) fn add(&mut self, port: &Arc<Port>, at: Cursor, now: Instant, doubt: Option<(u32, u64)>) {
        self.began.get_or_insert(now);
        let generation = doubt.map(|(_, generation)| generation);
        let owed = self.owe(port, at, generation);
        owed.began.get_or_insert(now);
        if let Some((table, _)) = doubt {
            owed.doubt_row(table, at.position);
        }
    }

    fn owe(&mut self, port: &Arc<Port>, at: Cursor, doubt: Option<u64>) -> &mut Owed {
        port.place.lose();
        let new = || {
            let (port, doubted) = (port.clone(), SmallVec::new());
            Owed { port, first: at, last: at, began: None, open: None, doubt, doubted }
        };
        let owed = self.owed.entry(port.id).or_insert_with(new);
        owed.doubt = owed.doubt.filter(|known| Some(*known) == doubt);
        owed.extend(at);
        owed
    }

    /// For a channel a row was not decided in time. Whether that is to be told at once; if not, it is owed from here on. What is
    /// told at once says nothing of what is owed from before: so then neither is.
    pub(super) fn tells_now(&mut self, port: &Arc<Port>, at: Cursor, now: Instant) -> bool {
        self.forget_told(now);
        if !self.recent.contains_key(&port.id) && !self.is_behind(port.id, Some(at.epoch), at.position) {
            self.note_told(port.id, now);
            return true;
        }
        self.open.get_or_insert(now);
        self.owe(port, at, None).open.get_or_insert(now);
        false
    }

    /// A channel has been told.
    pub(super) fn note_told(&mut self, channel: ChannelId, now: Instant) {
        self.recent.insert(channel, now);
        self.told.push_back((now, channel));
    }

    fn forget_told(&mut self, now: Instant) {
        while let Some((at, channel)) = self.told.front().copied().filter(|(at, _)| *at + TOGETHER <= now) {
            self.told.pop_front();
            if self.recent.get(&channel) == Some(&at) {
                self.recent.remove(&channel);
            }
        }
    }

    /// What was taken is owed still: from this row on, and as if it had begun now, if what was before was told.
    pub(super) fn put_back(&mut self, mut owed: Owed, rest: Option<(Cursor, Instant)>) {
        if let Some((first, now)) = rest {
            owed.first = first;
            (owed.began, owed.open) = (owed.began.map(|_| now), owed.open.map(|_| now));
            (owed.doubt, owed.doubted) = (None, SmallVec::new());
        }
        let earlier = |known: &mut Option<Instant>, at| *known = known.iter().copied().chain(at).min();
        earlier(&mut self.began, owed.began);
        earlier(&mut self.open, owed.open);
        self.owed.insert(owed.port.id, owed);
    }

    /// The first row that a channel has lost and was not told of: it is complete up to before it only.
    pub(super) fn since(&self, channel: ChannelId) -> Option<Cursor> {
        self.owed.get(&channel).map(|owed| owed.first)
    }

    /// Whether a channel could go on from this row only without what it has lost before, or of the very row.
    pub(super) fn is_behind(&self, channel: ChannelId, epoch: Option<u64>, row: Position) -> bool {
        let is_before = |first: Cursor| Some(first.epoch) != epoch || first.position <= row;
        self.since(channel).is_some_and(is_before)
    }

    /// Nobody is owed anything.
    pub(super) fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    pub(super) fn forget(&mut self, channel: ChannelId) {
        self.owed.remove(&channel);
        self.recent.remove(&channel);
    }

    /// When [`Owing::take`] has something; `over` if the facts are back.
    pub(super) fn due_at(&self, over: bool) -> Option<Instant> {
        let due = due_at((self.began, self.open), over)?;
        Some(self.looked_at.map_or(due, |at| due.max(at + LOOK)))
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
        self.forget_told(now);
        if self.due_at(over).is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.looked_at = Some(now);
        let is_due = |owed: &Owed| owed.due_at(over).is_some_and(|at| at <= now);
        let mut due: Vec<Owed> = self.owed.extract_if(|_, owed| is_due(owed)).map(|(_, owed)| owed).collect();
        self.began = self.owed.values().filter_map(|owed| owed.began).min();
        self.open = self.owed.values().filter_map(|owed| owed.open).min();
        due.sort_unstable_by_key(|owed| owed.port.id);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Lsn;
    use crate::hub::tests::port;

    fn at(lsn: u64) -> Cursor {
        Cursor { epoch: 1, position: Position { lsn: Lsn(lsn), ordinal: 0 } }
    }

    fn taken(owing: &mut Owing, now: Instant) -> Vec<(Cursor, Cursor)> {
        owing.take(true, now).iter().map(|owed| (owed.first, owed.last)).collect()
    }

    #[test]
    fn the_first_row_that_is_not_decided_is_told_at_once_and_those_of_a_second_together() {
        let (mut owing, port, began) = (Owing::default(), port(), Instant::now());
        let after = |milliseconds| began + Duration::from_millis(milliseconds);
        assert!(owing.tells_now(&port, at(10), began) && owing.is_empty());
        assert!(!owing.tells_now(&port, at(20), after(300)) && !owing.tells_now(&port, at(30), after(900)));
        assert_eq!((owing.since(port.id), taken(&mut owing, after(1200))), (Some(at(20)), vec![]));
        assert!(
            !owing.is_behind(port.id, Some(1), at(19).position) && owing.is_behind(port.id, Some(1), at(20).position)
        );
        assert!(!owing.tells_now(&port, at(40), after(1290)), "something is owed from before");
        assert_eq!(owing.due_at(true), Some(after(1300)));
        assert_eq!(taken(&mut owing, after(1300)), [(at(20), at(40))]);
        owing.note_told(port.id, after(1300));
        assert!(owing.is_empty() && owing.since(port.id).is_none());
        assert!(!owing.tells_now(&port, at(50), after(2200)));
        assert_eq!(taken(&mut owing, after(3200)), [(at(50), at(50))], "the last one too");
        assert!(owing.tells_now(&port, at(60), after(4300)), "nobody was told for a second");
        assert!(owing.tells_now(&port, at(70), after(9000)));
        assert_eq!((owing.told.len(), owing.recent.len()), (1, 1));
    }

    #[test]
    fn what_is_told_at_once_does_not_reach_beyond_what_is_owed() {
        let (mut owing, port, now) = (Owing::default(), port(), Instant::now());
        owing.add(&port, at(20), now, Some((7, 1)));
        assert!(owing.tells_now(&port, at(10), now), "it waited for Postgres, and is before what is owed");
        owing.recent.clear();
        assert!(!owing.tells_now(&port, at(30), now));
        let owed = owing.take(false, now + TOGETHER).pop().expect("owed, though the facts are not back");
        assert_eq!((owed.first, owed.last, owed.is_of_facts(), owed.doubt), (at(20), at(30), false, None));
        assert_eq!(owed.doubted.len(), 1, "nobody was told of it yet");
    }

    #[test]
    fn what_can_not_be_told_yet_stays_owed_and_the_rest_of_what_was_told_begins_anew() {
        let (mut owing, port, now) = (Owing::default(), port(), Instant::now());
        owing.add(&port, at(20), now, Some((7, 1)));
        owing.add(&port, at(90), now, Some((7, 1)));
        let take = |owing: &mut Owing, later| owing.take(true, now + later).pop();
        let owed = take(&mut owing, TOGETHER).expect("due");
        assert!(owing.is_empty());
        owing.put_back(owed, None);
        let owed = take(&mut owing, TOGETHER + LOOK).expect("due still");
        assert_eq!((owed.first, owed.doubt, owed.doubted[0].count), (at(20), Some(1), 2));
        owing.put_back(owed, Some((at(50), now + TOGETHER + LOOK)));
        assert_eq!((owing.since(port.id), take(&mut owing, TOGETHER * 2).is_none()), (Some(at(50)), true));
        let owed = take(&mut owing, TOGETHER * 2 + LOOK).expect("due again");
        assert_eq!((owed.first, owed.last, owed.doubt, owed.doubted.len()), (at(50), at(90), None, 0));
    }

    #[test]
    fn those_who_are_owed_something_are_not_looked_at_all_the_time() {
        let (mut owing, now) = (Owing::default(), Instant::now());
        let ports: Vec<_> = (0..100).map(|_| port()).collect();
        for (n, port) in ports.iter().enumerate() {
            owing.note_told(port.id, now);
            assert!(!owing.tells_now(port, at(n as u64), now + Duration::from_millis(n as u64)));
        }
        let mut looks = 0;
        for later in 0..200 {
            looks += usize::from(!owing.take(true, now + TOGETHER + Duration::from_millis(later)).is_empty());
        }
        assert!(owing.is_empty() && looks <= 4, "{looks} looks");
    }
}
