//! What can't be given is told: to whom, from where to where, and why.
//!
//! A gap is told in order with the channel's rows, and nothing between its two ends comes afterwards. Its words are for a person
//! and hold no position: that would tell how much a database writes.

use std::sync::Arc;

use super::event::{Details, GapReason};
use super::matching;
use super::registry::{At, Channel};
use super::run::Hub;
use super::{ChannelId, Port};
use crate::change::{Lsn, Position};
use crate::journal::Note;
use crate::resume::Cursor;

/// The last place before this one.
pub(super) fn before(position: Position) -> Position {
    match position.ordinal.checked_sub(1) {
        Some(ordinal) => Position { ordinal, ..position },
        None => end_of(Lsn(position.lsn.0.saturating_sub(1))),
    }
}

/// Behind everything that ends there.
pub(super) fn end_of(lsn: Lsn) -> Position {
    Position { lsn, ordinal: u32::MAX }
}

fn words(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Expired => {
            "Gap: some of the changes since your place are older than what is kept; reload what you show (reason: expired)"
        }
        GapReason::Diverged => {
            "Gap: your place is in another history of the database, what has changed since can't be told; reload what you \
             show (reason: diverged)"
        }
        GapReason::Undecided => matching::UNDECIDED,
        GapReason::Unknown => {
            "Gap: your place can't be told any more, so what has changed since can't either; reload what you show (reason: \
             unknown)"
        }
        GapReason::Lost => "Gap: some changes are lost to this stream; reload what you show (reason: lost)",
    }
}

impl Hub {
    /// Tells one channel of a gap.
    pub(super) fn tell_gap(&mut self, port: &Arc<Port>, from: Option<Cursor>, to: Option<Cursor>, reason: GapReason) {
        let details = to.map(|to| Details::Gap { from, to, reason });
        self.deps.metrics.gaps.get_or_create(&[("reason", reason.as_str())]).inc();
        self.tell(port, false, words(reason), details);
    }

    /// The live stream jumps: everybody who is served by it is told. Those who catch up meet it themselves, or have passed it.
    pub(super) fn gap(&mut self, from: Option<Cursor>, resumed: Lsn, reason: GapReason) {
        let before = from.map_or(Lsn::ZERO, |from| from.position.lsn);
        self.deps.journal.note(Note::Gap { from: before, resumed });
        self.keeper.distrust(&mut self.facts);
        if resumed < before {
            // Another history, whose positions and transaction ids begin lower.
            self.xids.clear();
            self.snapshots.unseen.clear();
            self.owing.begin_history();
            self.shared_xids = None;
            self.relations.clear();
        }
        let to = self.cursor(end_of(resumed));
        let same = from.map(|from| from.epoch) == self.epoch;
        // Who begins behind it has lost nothing; in another history every place is lost.
        let concerned = |channel: &&Channel| channel.at == At::Live && !(same && channel.from() >= end_of(resumed));
        let live = self.registry.channels().filter(concerned);
        let ports: Vec<Arc<Port>> = live.map(|channel| channel.port.clone()).collect();
        ports.iter().for_each(|port| self.tell_gap(port, from, to, reason));
        if !same {
            self.registry.rebase(end_of(resumed), self.epoch);
        }
    }

    /// Queues a `system` message for a channel behind what it waits for.
    pub(super) fn tell(&mut self, port: &Arc<Port>, ok: bool, message: &str, details: Option<Details>) {
        if !self.lane.notice(port, ok, message, details) {
            matching::notify(&mut self.out, port, ok, message, details);
        }
    }

    /// The same for many.
    pub(super) fn tell_gaps(
        &mut self,
        channels: &[(ChannelId, Option<Cursor>)],
        to: Option<Cursor>,
        reason: GapReason,
    ) {
        for (id, from) in channels {
            if let Some(port) = self.registry.get(*id).map(|channel| channel.port.clone()) {
                self.tell_gap(&port, *from, to, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_a_row_is_the_row_before_it_or_the_end_of_what_ended_before() {
        let at = |lsn, ordinal| Position { lsn: Lsn(lsn), ordinal };
        assert_eq!(before(at(7, 3)), at(7, 2));
        assert_eq!(before(at(7, 0)), at(6, u32::MAX));
        assert!(before(at(0, 0)) >= at(0, 0));
    }
}
