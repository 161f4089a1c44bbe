//! Writing what rooms hand over.
//!
//! Messages of one room that wait together are written member by member, so that each connection gets them in one system call.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Shard;
use crate::gateway::encode::{NoFrame, broadcast_frame, presence_diff_frame, presence_state_frame, system_frame};
use crate::hub::{ChannelId, Seldom, Sent};
use crate::metrics::Metrics;
use crate::policy::Right;
use crate::room::{Cast, Kind, RoomBatch, Slot, What};

/// Batches that are taken up together: a bound on the time until a batch of the hub gets its turn.
const TOGETHER: usize = 32;

/// Messages for the same members.
struct Run {
    members: Arc<Vec<Arc<Vec<Arc<Slot>>>>>,
    casts: Vec<(Arc<Cast>, Option<ChannelId>)>,
}

/// What became of broadcasts.
#[derive(Default)]
struct Counts {
    delivered: u64,
    denied: u64,
    missed: u64,
}

/// What a member is told once that a broadcast was too large for what it has not read yet.
const MISSED: &str = "A large broadcast was left out: this connection reads too slowly";

impl Shard {
    /// Writes this batch, and others that wait behind it.
    pub(crate) fn write_rooms(&mut self, first: RoomBatch) {
        let mut counts = Counts::default();
        let mut run: Option<Run> = None;
        let mut next = Some(first);
        for _ in 0..TOGETHER {
            let Some(batch) = next.take().or_else(|| self.rooms.try_recv().ok()) else { break };
            match batch.what {
                What::Casts { members, casts, skip } => {
                    if run.as_ref().is_none_or(|run| !Arc::ptr_eq(&run.members, &members)) {
                        self.write_run(run.take(), &mut counts);
                        run = Some(Run { members, casts: Vec::new() });
                    }
                    run.iter_mut().for_each(|run| run.casts.extend(casts.iter().map(|cast| (cast.clone(), skip))));
                }
                What::State { slot, payload } => {
                    // What was said before it is in it.
                    self.write_run(run.take(), &mut counts);
                    write_state(&slot, &payload);
                }
            }
        }
        self.write_run(run, &mut counts);
        for (kind, count) in [("delivered", counts.delivered), ("denied", counts.denied), ("missed", counts.missed)] {
            if count > 0 {
                self.metrics.broadcasts.get_or_create(&[("kind", kind)]).inc_by(count);
            }
        }
    }

    /// Writes all that waits.
    #[cfg(test)]
    pub(crate) fn write_waiting(&mut self) {
        while let Ok(batch) = self.rooms.try_recv() {
            self.write_rooms(batch);
        }
    }

    fn write_run(&self, run: Option<Run>, counts: &mut Counts) {
        let Some(Run { members, casts }) = run else { return };
        for slot in members.iter().flat_map(|block| block.iter()) {
            let port = &slot.port;
            let mut frames: SmallVec<[(&Bytes, bool); 8]> = SmallVec::new();
            for (cast, skip) in &casts {
                if *skip == Some(port.id) {
                    continue;
                }
                let is_broadcast = matches!(cast.kind, Kind::Broadcast(_));
                let right = if is_broadcast { Right::ReadBroadcast } else { Right::ReadPresence };
                if !slot.may(right) {
                    counts.denied += u64::from(is_broadcast);
                } else if (is_broadcast || slot.has_presence())
                    && let Some(frame) = cast.frame(slot.form, || encode(&cast.kind, slot, &self.metrics, &self.warned))
                {
                    frames.push((frame, is_broadcast));
                }
            }
            if frames.is_empty() {
                continue;
            }
            let delivered = Cell::new(0);
            let written = frames.iter().filter(|(_, is_broadcast)| {
                // Asked while the outbox is held: nothing precedes the join reply, or follows the end.
                let is_greeted = port.stage.is_greeted();
                delivered.set(delivered.get() + u64::from(is_greeted && *is_broadcast));
                is_greeted
            });
            let sent = port.outbox.send_most(written.copied());
            let Sent::But(missed) = sent else { continue };
            counts.delivered += delivered.get().saturating_sub(missed as u64);
            counts.missed += missed as u64;
            if missed > 0 && !slot.missed.swap(true, Ordering::Relaxed) {
                let notice = system_frame(port.version, &port.topic, &port.join_ref, "broadcast", false, MISSED, "");
                port.outbox.send_all([&notice].into_iter().filter(|_| port.stage.is_greeted()));
            }
        }
    }
}

/// The frame for all members like this one; what has none is told of here, once.
fn encode(kind: &Kind, like: &Slot, metrics: &Metrics, warned: &Seldom) -> Option<Bytes> {
    let (version, topic) = (like.port.version, &like.port.topic);
    let frame = match kind {
        Kind::Broadcast(message) => broadcast_frame(version, topic, message),
        Kind::Diff(payload) => presence_diff_frame(version, topic, payload),
    };
    match frame {
        Ok(frame) => Some(frame),
        Err(NoFrame::NoForm) => None,
        Err(reason @ (NoFrame::TooLong | NoFrame::Malformed)) => {
            metrics.broadcasts.get_or_create(&[("kind", "unsendable")]).inc();
            // Whoever sends such messages does not fill the log with them.
            if let Some(more) = warned.tell(Instant::now()) {
                let version = version.as_str();
                tracing::warn!(version, %reason, more, "a broadcast can't be sent to members of this version");
            }
            None
        }
    }
}

fn write_state(slot: &Slot, payload: &[u8]) {
    let port = &slot.port;
    if !slot.may(Right::ReadPresence) || !port.stage.is_greeted() {
        return;
    }
    if let Ok(frame) = presence_state_frame(port.version, &port.topic, &port.join_ref, payload) {
        port.outbox.send_all([&frame].into_iter().filter(|_| port.stage.is_greeted()));
    }
}

#[cfg(test)]
#[path = "rooms_tests.rs"]
mod tests;
