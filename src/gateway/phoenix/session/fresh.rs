//! Fresh cursors for clients that keep them and get no changes: the place they would come back with must not grow so old that
//! the log no longer reaches back to it.
//!
//! Told once a tenth of what the log keeps has passed since the last one, in time or in bytes. A change brings a cursor of its
//! own, so who gets changes is told in vain, once in hours; and not at all if the change that overtakes it is later. Rejected: knowing which channels got changes, a write for each
//! delivery to save that.

use std::time::Instant;

use super::topic::Topic;
use super::{Effect, Session};
use crate::gateway::encode::details;
use crate::gateway::phoenix::codec::{self, Status};
use crate::hub::{CURSOR, ChannelId, Details};
use crate::resume::Cursor;

/// The parts of what the log keeps after which a cursor is no longer fresh.
const PARTS: u32 = 10;

/// The last place that a client was told for certain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fresh {
    pub(super) at: Instant,
    /// `None` if there was none yet.
    pub(super) cursor: Option<Cursor>,
}

impl Session {
    /// Frames with fresh cursors, for whom it is time. `reached`: up to where everything owed to a channel is queued.
    pub(in crate::gateway::phoenix) fn freshen(
        &mut self,
        now: Instant,
        reached: impl Fn(ChannelId) -> Option<Cursor>,
    ) -> Vec<Effect> {
        let shared = &self.shared;
        let (bytes, age) = shared.log.kept();
        let mut out = Vec::new();
        for topic in self.topics.values_mut() {
            let Topic::Joined(channel) = topic else { continue };
            let Some(fresh) = &mut channel.fresh else { continue };
            let written = fresh.cursor.map_or(0, |cursor| shared.log.bytes_since(cursor));
            if now.saturating_duration_since(fresh.at) < age / PARTS && written < bytes / u64::from(PARTS) {
                continue;
            }
            // In this order: what was judged up to there was judged before the clock says that the token is good.
            let Some(cursor) = reached(channel.id) else { continue };
            if Some(cursor) == fresh.cursor || channel.principal.is_expired(shared.clock.unix_seconds()) {
                continue;
            }
            *fresh = Fresh { at: now, cursor: Some(cursor) };
            let (topic, more) = (&channel.topic, details(Details::Reached(cursor), &shared.cursor_key));
            let version = self.visitor.version;
            let frame = codec::system(version, &channel.own_ref, topic, "postgres_changes", Status::Ok, CURSOR, &more);
            out.push(Effect::Reached { id: channel.id, at: cursor, frame });
        }
        out
    }
}
