//! Writing what the hub hands over: encode once, then put each connection's frames into its outbox together.
//!
//! A shard serves a fixed part of all connections and never waits for a socket: what a socket does not take at once, its own
//! task writes later. So one shard's queue holds the hub up only while there is no processor time to encode.
//!
//! Rejected: a wake-up per connection and delivery, at twice the CPU (numbers.md §2).

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::encode::{RowShape, changes_frame, system_frame, write_data};
use crate::change::Relation;
use crate::clock::Clock;
use crate::hub::{Batch, Event, Fanout, Notice, Outgoing, Port};
use crate::metrics::Metrics;
use crate::pgtype::Types;

/// Batches that may wait for a shard.
const QUEUE: usize = 64;
/// Shapes of relations kept; the least recently made goes first.
const SHAPES: usize = 64;

/// One shard of sockets.
pub struct Shard {
    batches: mpsc::Receiver<Batch>,
    metrics: Arc<Metrics>,
    clock: Clock,
    shapes: Vec<(Arc<Relation>, Arc<Types>, Arc<RowShape>)>,
    data: Vec<u8>,
    frames: Vec<(Arc<Port>, Bytes)>,
}

impl Shard {
    /// The shard and the way to it.
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> (Shard, mpsc::Sender<Batch>) {
        let (sender, batches) = mpsc::channel(QUEUE);
        let shard = Shard { batches, metrics, clock, shapes: Vec::new(), data: Vec::new(), frames: Vec::new() };
        (shard, sender)
    }

    /// Writes until all senders are gone.
    pub async fn run(mut self) {
        while let Some(batch) = self.batches.recv().await {
            self.write(batch);
            // A run of large batches must not keep connections' own tasks from this thread.
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn write(&mut self, batch: Batch) {
        let now = self.clock.unix_millis();
        for outgoing in batch {
            match outgoing {
                Outgoing::Change(fanout) => self.change(&fanout, now),
                Outgoing::Notice(notice) => self.frames.push((notice.port.clone(), notice_frame(&notice))),
            }
        }
        // By connection; stable, so that each connection's frames stay in order.
        self.frames.sort_by_key(|(port, _)| Arc::as_ptr(&port.outbox) as usize);
        for frames in self.frames.chunk_by(|(a, _), (b, _)| Arc::ptr_eq(&a.outbox, &b.outbox)) {
            // Asked under the outbox's lock: nothing of an instance that has ended follows the frames that say so.
            let open = frames.iter().filter(|(port, _)| !port.is_closed());
            frames[0].0.outbox.send_all(open.map(|(_, frame)| frame));
        }
        self.frames.clear();
    }

    fn change(&mut self, fanout: &Fanout, now: i64) {
        let event = fanout.event.value();
        let permit = fanout.event.permit();
        let latency = now - event.commit_time.unix_micros().div_euclid(1000);
        self.metrics.commit_to_write.observe(latency.max(0) as f64 / 1000.0);
        let shape = self.shape(event);
        let buffer = &mut self.data;
        let data = event.data(permit, || {
            buffer.clear();
            write_data(&shape, &event.row, event.commit_time, permit, buffer);
            Bytes::copy_from_slice(buffer)
        });
        let mut last: Option<(usize, Bytes)> = None;
        for (i, member) in fanout.members.iter().enumerate().filter(|(_, member)| !member.port.is_closed()) {
            // Members of one topic usually follow each other: the shared cache is asked once for them all.
            let same = last.as_ref().filter(|(known, _)| {
                let known = &fanout.members[*known];
                known.ids == member.ids
                    && known.port.version == member.port.version
                    && known.port.topic == member.port.topic
            });
            let frame = match same {
                Some((_, frame)) => frame.clone(),
                None => event.frame(permit, member, || {
                    changes_frame(member.port.version, &member.port.topic, &member.ids, &data)
                }),
            };
            self.frames.push((member.port.clone(), frame.clone()));
            last = Some((i, frame));
        }
    }

    fn shape(&mut self, event: &Event) -> Arc<RowShape> {
        let (relation, types) = (&event.row.relation, &event.types);
        let known = self.shapes.iter().find(|(r, t, _)| Arc::ptr_eq(r, relation) && Arc::ptr_eq(t, types));
        if let Some((_, _, shape)) = known {
            return shape.clone();
        }
        let shape = Arc::new(RowShape::new(relation, types));
        if self.shapes.len() >= SHAPES {
            self.shapes.remove(0);
        }
        self.shapes.push((relation.clone(), types.clone(), shape.clone()));
        shape
    }
}

fn notice_frame(notice: &Notice) -> Bytes {
    let port = &notice.port;
    system_frame(port.version, &port.topic, &port.join_ref, "postgres_changes", notice.ok, &notice.message)
}
