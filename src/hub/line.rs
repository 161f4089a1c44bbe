//! The order that is promised: what one channel gets leaves in commit order, and no channel waits for another.
//!
//! A part is one channel's share in one row (or a notice to it). A channel has a queue of parts from its first that can't leave
//! yet on; a channel without a queue has nothing that anything could overtake. Plain data: no clock, no I/O.
//!
//! Invariants:
//! * A part leaves when it and all parts before it in its channel's queue are decided, and not before.
//! * What is taken together is sorted by row, so that a row leaves at once for all who may have it by then.
//!
//! Rejected: one line for all, in which a slow policy of one table delays every other.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::AHashMap;

use super::ChannelId;

/// A part on its way: which row, and which of the row's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Ascending in commit order; never used again.
    pub(super) sequence: u64,
    /// Counted within the row.
    pub(super) number: u32,
    /// Where the row is kept.
    pub(super) slot: usize,
}

struct Part<T> {
    place: Place,
    waits_as: Arc<str>,
    outcome: Option<T>,
}

/// A part that may leave.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left<T> {
    pub(super) place: Place,
    pub(super) channel: ChannelId,
    /// The sharing key of the principal that it was judged for.
    pub(super) waits_as: Arc<str>,
    pub(super) outcome: T,
}

/// See the module's comment.
pub(super) struct Line<T> {
    channels: AHashMap<ChannelId, VecDeque<Part<T>>>,
    left: Vec<Left<T>>,
    parts: usize,
    /// Channels that began or ended to wait.
    stirred: Vec<ChannelId>,
}

impl<T> Line<T> {
    pub(super) fn new() -> Line<T> {
        Line { channels: AHashMap::new(), left: Vec::new(), parts: 0, stirred: Vec::new() }
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Whether something of this channel waits, so that what comes now has to wait behind it.
    pub(super) fn waits(&self, channel: ChannelId) -> bool {
        self.channels.contains_key(&channel)
    }

    /// Channels with something that waits, and what waits.
    pub(super) fn depth(&self) -> (usize, usize) {
        (self.channels.len(), self.parts)
    }

    /// Puts a part behind all others of its channel; its place must be behind theirs too.
    pub(super) fn park(&mut self, channel: ChannelId, place: Place, waits_as: Arc<str>, outcome: Option<T>) {
        let queue = self.channels.entry(channel).or_default();
        debug_assert!(queue.back().is_none_or(|last| last.place < place), "out of order");
        queue.push_back(Part { place, waits_as, outcome });
        if queue.len() == 1 {
            self.stirred.push(channel);
        }
        self.parts += 1;
        self.leave(channel);
    }

    /// What became of a part.
    pub(super) fn decide(&mut self, channel: ChannelId, place: Place, outcome: T) {
        let Some(queue) = self.channels.get_mut(&channel) else { return };
        let Ok(at) = queue.binary_search_by_key(&place, |part| part.place) else { return };
        queue[at].outcome = Some(outcome);
        if at == 0 {
            self.leave(channel);
        }
    }

    /// Takes the front of a queue out, as far as it is decided.
    fn leave(&mut self, channel: ChannelId) {
        let Some(queue) = self.channels.get_mut(&channel) else { return };
        while let Some(Part { place, waits_as, outcome }) = queue.pop_front() {
            let Some(outcome) = outcome else {
                queue.push_front(Part { place, waits_as, outcome: None });
                return;
            };
            self.parts -= 1;
            self.left.push(Left { place, channel, waits_as, outcome });
        }
        self.channels.remove(&channel);
        self.stirred.push(channel);
    }

    /// Drops what a channel waits for; gives the places back.
    pub(super) fn forget(&mut self, channel: ChannelId) -> impl Iterator<Item = Place> {
        let queue = self.channels.remove(&channel).unwrap_or_default();
        self.parts -= queue.len();
        if !queue.is_empty() {
            self.stirred.push(channel);
        }
        queue.into_iter().map(|part| part.place)
    }

    /// Which channels may have begun or ended to wait since this was asked last.
    pub(super) fn stirred(&mut self) -> Vec<ChannelId> {
        std::mem::take(&mut self.stirred)
    }

    /// The first part that a channel waits for.
    pub(super) fn front(&self, channel: ChannelId) -> Option<Place> {
        Some(self.channels.get(&channel)?.front()?.place)
    }

    /// All parts that may leave now, by row.
    pub(super) fn take(&mut self) -> Vec<Left<T>> {
        let mut left = std::mem::take(&mut self.left);
        left.sort_by_key(|part| part.place);
        left
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const CHANNELS: u64 = 5;

    /// A row's parts: the channel, and whether it must be answered first.
    type Row = Vec<(u64, bool)>;

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        proptest::collection::vec(proptest::collection::vec((0..CHANNELS, any::<bool>()), 0..4), 1..40)
    }

    /// A driver without a clock: answers come in any order, and some rows after some answers. `turns` picks what is next.
    fn drive(rows: &[Row], mut turns: impl FnMut(usize) -> usize) -> BTreeMap<u64, Vec<Place>> {
        let mut line: Line<()> = Line::new();
        let mut out: BTreeMap<u64, Vec<Place>> = BTreeMap::new();
        let mut open: Vec<(u64, Place)> = Vec::new();
        let mut rest = rows.iter().enumerate();
        let mut more = true;
        while more || !open.is_empty() {
            // The place behind the last stands for the next row.
            let pick = turns(open.len() + usize::from(more));
            if pick < open.len() {
                let (channel, place) = open.swap_remove(pick);
                line.decide(ChannelId(channel), place, ());
            } else if let Some((sequence, row)) = rest.next() {
                let ahead = |line: &Line<()>, channel| line.waits(ChannelId(channel));
                let waited: Vec<bool> = row.iter().map(|(channel, _)| ahead(&line, *channel)).collect();
                for (number, (channel, asked)) in row.iter().enumerate() {
                    let place = Place { sequence: sequence as u64, number: number as u32, slot: 0 };
                    // As the lane does it: who has nothing before him in the line gets his at once.
                    if !asked && !waited[number] && !ahead(&line, *channel) {
                        out.entry(*channel).or_default().push(place);
                        continue;
                    }
                    line.park(ChannelId(*channel), place, "".into(), (!asked).then_some(()));
                    if *asked {
                        open.push((*channel, place));
                    }
                }
            } else {
                more = false;
            }
            let left = line.take();
            assert!(left.is_sorted_by_key(|part| part.place.sequence));
            for part in left {
                out.entry(part.channel.0).or_default().push(part.place);
            }
            // Whoever has no question open has nothing that waits.
            for channel in 0..CHANNELS {
                let asked = open.iter().any(|(of, _)| *of == channel);
                assert_eq!(line.waits(ChannelId(channel)), asked, "channel {channel}");
            }
        }
        assert!(line.is_empty() && line.depth() == (0, 0));
        out
    }

    proptest! {
        #[test]
        fn every_channel_gets_all_of_its_own_in_commit_order_whatever_the_order_of_the_answers(
            rows in rows(),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 1..200),
        ) {
            let mut at = 0;
            let out = drive(&rows, |among| {
                at += 1;
                picks[at % picks.len()].index(among.max(1))
            });
            for channel in 0..CHANNELS {
                let owed = rows.iter().enumerate().flat_map(|(sequence, row)| {
                    row.iter().enumerate().filter(move |(_, (of, _))| *of == channel).map(move |(number, _)| {
                        Place { sequence: sequence as u64, number: number as u32, slot: 0 }
                    })
                });
                let got = out.get(&channel).cloned().unwrap_or_default();
                prop_assert_eq!(got, owed.collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_channel_that_waits_holds_nobody_else_and_a_part_that_is_unknown_is_nobodys() {
        let mut line = Line::new();
        let (slow, other) = (ChannelId(1), ChannelId(2));
        let place = |sequence| Place { sequence, number: 0, slot: 0 };
        line.park(slow, place(1), "a".into(), None);
        line.park(slow, place(2), "a".into(), Some("second"));
        line.park(other, place(3), "b".into(), Some("third"));
        let taken: Vec<&str> = line.take().into_iter().map(|part| part.outcome).collect();
        assert_eq!((taken, line.waits(slow), line.waits(other), line.depth()), (vec!["third"], true, false, (1, 2)));
        line.decide(other, place(1), "never");
        line.decide(slow, place(7), "never");
        line.decide(slow, place(1), "first");
        let taken: Vec<&str> = line.take().into_iter().map(|part| part.outcome).collect();
        assert_eq!(taken, ["first", "second"]);
        assert!(line.is_empty() && line.take().is_empty());
    }
}
