//! Where histories part. A standby that was promoted may not have got all that the server before it had sent us: what lies
//! behind that place is not so any more, and the positions there mean something else from now on.
//!
//! The stream itself tells of it ([`crate::log::Read::Gap`]) only if it has passed that place. A channel may begin ahead of the
//! stream, since a join begins at the end of the log and the hub may lag: what it has seen there, or in a snapshot, was taken
//! back, and rows would be taken for what it already has.
//!
//! Rejected: telling everybody at every promotion. Mostly nothing was taken back, and each notice makes a client reload.

use super::gaps::end_of;
use super::registry::{At, Channel, Froms};
use super::run::Hub;
use super::{ChannelId, GapReason};
use crate::change::Position;
use crate::resume::Cursor;

impl Hub {
    /// Another history goes on. `told`: whoever is live was told of a gap.
    pub(super) fn part(&mut self, told: bool) {
        let Some(current) = self.current.clone() else { return };
        let is_concerned = |channel: &&Channel| {
            let seam = channel.seam.as_ref();
            channel.epoch != self.epoch || seam.is_some_and(|seam| seam.epoch() != self.epoch)
        };
        let concerned = self.registry.channels().filter(is_concerned).map(|channel| channel.port.id);
        for id in concerned.collect::<Vec<ChannelId>>() {
            let Some(channel) = self.registry.get(id) else { continue };
            match channel.at {
                At::Live if !told => self.begin_where_they_part(id),
                // The pass itself meets the place where they part.
                At::Pass(pass) if self.passes.at(pass).is_some_and(|(at, epoch)| self.is_shared(epoch, at)) => {
                    self.begin_where_they_part(id);
                }
                // These come to it when they are placed again.
                At::Live | At::Pass(_) | At::Waiting | At::Parked | At::Paused | At::Snapshot | At::Expired => {}
            }
            self.part_snapshot(id, told, &current.catalog);
        }
        self.registry.enter(self.epoch);
    }

    fn is_shared(&self, epoch: Option<u64>, at: Position) -> bool {
        epoch.is_none_or(|epoch| self.deps.log.shares(epoch, at.lsn))
    }

    /// If some of a channel's places are behind the place where its history and the present one part, it is told, and goes on
    /// from there with what that concerns.
    pub(super) fn begin_where_they_part(&mut self, id: ChannelId) {
        let (Some(current), Some(channel)) = (self.current.clone(), self.registry.get(id)) else { return };
        let Some(epoch) = channel.epoch.filter(|epoch| Some(*epoch) != self.epoch) else { return };
        let until = self.deps.log.shared_until(epoch);
        let is_lost = |from: &Position| until.is_none_or(|until| from.lsn > until);
        let Some(first) = channel.froms.iter().filter(|from| is_lost(from)).min().copied() else { return };
        let floor = self.deps.log.floor();
        let to = end_of(until.map_or(floor, |until| until.max(floor)));
        let froms: Froms = channel.froms.iter().map(|from| if is_lost(from) { to } else { *from }).collect();
        let (port, at, epoch_now) = (channel.port.clone(), channel.at, self.epoch);
        self.tell_gap(&port, Some(Cursor { epoch, position: first }), self.cursor(to), GapReason::Lost);
        let begin = |channel: &mut Channel| (channel.froms, channel.epoch) = (froms, epoch_now);
        self.registry.put(id, at, begin, &current.catalog);
        self.holds.stir(id);
    }
}
