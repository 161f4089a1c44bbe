//! Writing what the hub hands over: encode once, then put each connection's frames into its outbox together.
//!
//! A shard serves a fixed part of all connections and never waits for a socket: what a socket does not take at once, its own
//! task writes later. So one shard's queue holds the hub up only while there is no processor time to encode.
//!
//! Rejected: a wake-up per connection and delivery, at twice the CPU (numbers.md §2).

mod rooms;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::encode::{NoFrame, Place, RowShape, changes_frame, details, message_frame, system_frame, write_data};
use crate::change::Relation;
use crate::clock::Clock;
use crate::fail::{self, Point};
use crate::hub::{
    Batch, Details, Event, Fanout, Greeting, Member, Message, NO_CURSOR, Notice, Outgoing, Port, Reach, Seldom, Version,
};
use crate::metrics::Metrics;
use crate::pgtype::Types;
use crate::resume::{Cursor, CursorKey};
use crate::room::RoomBatch;

/// Batches that may wait for a shard.
const QUEUE: usize = 64;
/// Shapes of relations kept; the least recently made goes first.
const SHAPES: usize = 64;

/// One shard of sockets.
pub struct Shard {
    batches: mpsc::Receiver<Batch>,
    /// A queue of its own: what clients say to each other can't be in the way of changes, and the hub, which lets the past wait
    /// while there is much to write, looks at its own only.
    rooms: mpsc::Receiver<RoomBatch>,
    to_rooms: mpsc::Sender<RoomBatch>,
    /// Warnings of messages of rooms that can't be sent.
    warned: Seldom,
    /// Warnings of database broadcasts that can't be sent.
    warned_of_rows: Seldom,
    metrics: Arc<Metrics>,
    clock: Clock,
    key: Arc<CursorKey>,
    shapes: Vec<(Arc<Relation>, Arc<Types>, Arc<RowShape>)>,
    data: Vec<u8>,
    frames: Vec<Frame>,
    /// When the transactions of the batch at hand were taken up.
    taken: Vec<Instant>,
    /// Set behind the frames of the batch at hand: what becomes of channels' places.
    places: Vec<Placing>,
    reach: Arc<Reach>,
}

/// What becomes of a channel's place.
enum Placing {
    Begin(Arc<Port>, Option<Cursor>),
    Hold(Arc<Port>, Option<Cursor>),
    /// Bytes that were on their way have arrived.
    Arrived(Arc<Port>, u32),
    /// It was told of a gap.
    Gap(Arc<Port>, Option<Cursor>, Cursor),
}

/// Something for one connection.
struct Frame {
    port: Arc<Port>,
    bytes: Bytes,
    /// It is the join reply.
    greeting: bool,
    /// It tells of a gap between these places.
    gap: Option<(Option<Cursor>, Cursor)>,
}

impl Frame {
    fn new(port: Arc<Port>, bytes: Bytes) -> Frame {
        Frame { port, bytes, greeting: false, gap: None }
    }

    /// Asked while the outbox is held: nothing of an instance precedes its join reply, or follows the frames that say that the
    /// instance has ended.
    fn may_be_written(&self) -> bool {
        if self.greeting { self.port.stage.greet() } else { self.port.stage.is_greeted() }
    }
}

/// The member is about to be told this change's place, unless its frame shows none.
fn tell_place(event: &Event, member: &Member) {
    if let Some(epoch) = event.epoch.filter(|_| member.cursor_as.as_deref() != Some(NO_CURSOR)) {
        member.port.place.tell(Cursor { epoch, position: event.row.position });
    }
}

impl Shard {
    /// The shard and the way to it. `key`: seals the cursors.
    pub fn new(metrics: Arc<Metrics>, clock: Clock, key: Arc<CursorKey>) -> (Shard, mpsc::Sender<Batch>) {
        let (sender, batches) = mpsc::channel(QUEUE);
        let (to_rooms, rooms) = mpsc::channel(QUEUE);
        let shard = Shard {
            batches,
            rooms,
            to_rooms,
            warned: Seldom::default(),
            warned_of_rows: Seldom::default(),
            metrics,
            clock,
            key,
            shapes: Vec::new(),
            data: Vec::new(),
            frames: Vec::new(),
            taken: Vec::new(),
            places: Vec::new(),
            reach: Arc::default(),
        };
        (shard, sender)
    }

    /// The way to it for rooms.
    pub fn rooms(&self) -> mpsc::Sender<RoomBatch> {
        self.to_rooms.clone()
    }

    /// Writes until the hub is gone, and what rooms have sent by then.
    pub async fn run(mut self) {
        loop {
            tokio::select! {
                batch = self.batches.recv() => match batch {
                    Some(batch) => self.write(batch),
                    None => break,
                },
                // It has a sender itself: there is always one.
                Some(batch) = self.rooms.recv() => self.write_rooms(batch),
            }
            // A run of large batches must not keep connections' own tasks from this thread.
            tokio::task::yield_now().await;
        }
        self.rooms.close();
        while let Ok(batch) = self.rooms.try_recv() {
            self.write_rooms(batch);
        }
    }

    pub(crate) fn write(&mut self, batch: Batch) {
        let now = self.clock.unix_millis();
        let reached = batch.cursor();
        for outgoing in batch.items {
            match outgoing {
                Outgoing::Change(fanout) => self.change(&fanout, now),
                Outgoing::Notice(notice) => {
                    let bytes = self.notice_frame(&notice);
                    let gap = match notice.details {
                        Some(Details::Gap { from, to, .. }) => Some((from, to)),
                        _ => None,
                    };
                    self.frames.push(Frame { gap, ..Frame::new(notice.port, bytes) });
                }
                Outgoing::Greeting(Greeting { port, frames: bytes }) => {
                    self.frames.push(Frame { greeting: true, ..Frame::new(port, bytes) });
                }
                Outgoing::Begin(port, start) => self.places.push(Placing::Begin(port, start)),
                Outgoing::Hold(port, at) => self.places.push(Placing::Hold(port, at)),
                // Phoenix has no word for it.
                Outgoing::Live(port, at) if port.version == Version::Plain => {
                    let at = at.map_or_else(|| "null".into(), |at| format!("\"{}\"", self.key.seal(at)));
                    let bytes = format!("{{\"live\":{at}}}\n").into();
                    self.frames.push(Frame::new(port, bytes));
                }
                Outgoing::Live(..) => {}
            }
        }
        // By connection; stable, so that each connection's frames stay in order.
        self.frames.sort_by_key(|frame| Arc::as_ptr(&frame.port.outbox) as usize);
        for frames in self.frames.chunk_by(|a, b| Arc::ptr_eq(&a.port.outbox, &b.port.outbox)) {
            let places = &mut self.places;
            let written = frames.iter().filter(|frame| frame.may_be_written()).inspect(|frame| {
                places.extend(frame.gap.map(|(from, to)| Placing::Gap(frame.port.clone(), from, to)));
            });
            frames[0].port.outbox.send_all(written.map(|frame| &frame.bytes));
        }
        if !self.frames.is_empty() {
            fail::point(Point::Written);
        }
        self.frames.clear();
        self.move_on(reached);
        for taken in self.taken.drain(..) {
            self.metrics.match_to_write.observe(taken.elapsed().as_secs_f64());
        }
    }

    /// Tells how far the channels are, now that their frames are in the outboxes.
    fn move_on(&mut self, reached: Option<Cursor>) {
        for placing in &self.places {
            match placing {
                Placing::Hold(port, at) => port.place.hold(*at),
                Placing::Arrived(port, bytes) => port.place.pace().take(*bytes),
                Placing::Gap(port, from, to) => port.place.tell_gap(*from, *to),
                Placing::Begin(..) => {}
            }
        }
        // Who begins behind its shard has its hold by now.
        for placing in self.places.drain(..) {
            if let Placing::Begin(port, start) = placing {
                port.place.begin(self.reach.clone(), start);
            }
        }
        self.reach.set(reached);
    }

    fn notice_frame(&self, notice: &Notice) -> Bytes {
        let port = &notice.port;
        let place = match notice.details {
            Some(Details::Reached(cursor) | Details::Snapshot { cursor, .. }) => Some(cursor),
            // Of one entry; another may still be behind.
            Some(Details::Gap { .. }) | None => None,
        };
        let leads_back = |of: &Details| matches!(of, Details::Reached(cursor) if port.place.is_past(*cursor));
        let told = notice.details.filter(|of| !leads_back(of));
        place.into_iter().for_each(|place| port.place.tell(place));
        let more = told.map(|of| details(of, &self.key)).unwrap_or_default();
        let extension = "postgres_changes";
        system_frame(port.version, &port.topic, &port.join_ref, extension, notice.ok, &notice.message, &more)
    }

    fn change(&mut self, fanout: &Fanout, now: i64) {
        let event = fanout.event.value();
        let permit = fanout.event.permit();
        if !event.snapshot {
            let latency = now - event.commit_time.unix_micros().div_euclid(1000);
            self.metrics.commit_to_write.observe(latency.max(0) as f64 / 1000.0);
        }
        if self.taken.last() != Some(&event.taken) {
            self.taken.push(event.taken);
        }
        if event.message {
            return self.message(fanout);
        }
        let shape = self.shape(event);
        let (buffer, key) = (&mut self.data, &self.key);
        let mut data_with = |cursor_as: Option<&Arc<str>>| {
            event.data(permit, cursor_as, || {
                buffer.clear();
                let cursor_as = cursor_as.map(|name| &**name);
                let cursor = event.cursor(key).filter(|_| cursor_as != Some(NO_CURSOR));
                let place = Place { cursor, cursor_as, snapshot: event.snapshot };
                write_data(&shape, &event.row, event.commit_time, place, permit, buffer);
                Bytes::copy_from_slice(buffer)
            })
        };
        let mut data: Option<(&Option<Arc<str>>, Bytes)> = None;
        let mut last: Option<(usize, Bytes)> = None;
        for (i, member) in fanout.members.iter().enumerate() {
            if member.cost > 0 {
                self.places.push(Placing::Arrived(member.port.clone(), member.cost));
            }
            if member.port.stage.is_closed() {
                continue;
            }
            // Members of one topic usually follow each other: the shared cache is asked once for them all.
            let same = last.as_ref().filter(|(known, _)| {
                let known = &fanout.members[*known];
                known.ids == member.ids
                    && known.cursor_as == member.cursor_as
                    && known.port.version == member.port.version
                    && known.port.topic == member.port.topic
            });
            let frame = match same {
                Some((_, frame)) => frame.clone(),
                None => event.frame(permit, member, || {
                    if data.as_ref().is_none_or(|(name, _)| **name != member.cursor_as) {
                        data = Some((&member.cursor_as, data_with(member.cursor_as.as_ref())));
                    }
                    let data = data.as_ref().map_or(&[][..], |(_, data)| data);
                    changes_frame(member.port.version, &member.port.topic, &member.ids, data)
                }),
            };
            tell_place(event, member);
            member.port.place.deliver();
            self.frames.push(Frame::new(member.port.clone(), frame.clone()));
            last = Some((i, frame));
        }
    }

    /// A database broadcast. Encoded once per protocol version and topic; an empty frame says that it has none.
    fn message(&mut self, fanout: &Fanout) {
        let (event, permit) = (fanout.event.value(), fanout.event.permit());
        let Some(message) = Message::of(&event.row) else { return };
        for member in &fanout.members {
            let port = &member.port;
            if member.cost > 0 {
                self.places.push(Placing::Arrived(port.clone(), member.cost));
            }
            if port.stage.is_closed() {
                continue;
            }
            let frame = event.frame(permit, member, || {
                let shows = member.cursor_as.as_deref() != Some(NO_CURSOR);
                let cursor = event.cursor(&self.key).filter(|_| shows);
                message_frame(port.version, &port.topic, &message, cursor).unwrap_or_else(|why| {
                    if why != NoFrame::NoForm
                        && let Some(more) = self.warned_of_rows.tell(Instant::now())
                    {
                        let (position, reason) = (event.row.position, why.as_str());
                        tracing::warn!(%position, reason, more, "a database broadcast is not sent to members with protocol 2");
                    }
                    Bytes::new()
                })
            });
            if frame.is_empty() {
                let why = if port.version == Version::V2 { NoFrame::TooLong } else { NoFrame::NoForm };
                self.metrics.messages_dropped.get_or_create(&[("reason", why.as_str())]).inc();
                continue;
            }
            tell_place(event, member);
            port.place.deliver();
            self.frames.push(Frame::new(port.clone(), frame));
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

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};
    use std::sync::Mutex;

    use super::*;
    use crate::change::{Lsn, Position};
    use crate::hub::{ChannelId, Outbox, Place, Stage, Transmit};

    mod messages;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Transmit for Paper {
        fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            let mut bytes = self.0.lock().unwrap();
            parts.iter().for_each(|part| bytes.extend_from_slice(part));
            Ok(parts.iter().map(|part| part.len()).sum())
        }
    }

    impl Paper {
        fn outbox(&self) -> Arc<Outbox> {
            Arc::new(Outbox::new(Box::new(self.clone()), 1 << 20, Bytes::new()))
        }

        /// What is on it: greetings and notices, by their texts.
        fn words(&self) -> Vec<&'static str> {
            let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
            let mut found: Vec<(usize, &str)> = ["<reply>", "one", "two"]
                .into_iter()
                .flat_map(|word| text.match_indices(word).map(move |(at, _)| (at, word)))
                .collect();
            found.sort_unstable();
            found.into_iter().map(|(_, word)| word).collect()
        }
    }

    fn port(outbox: &Arc<Outbox>, stage: Stage) -> Arc<Port> {
        let (topic, join_ref) = ("realtime:t".into(), "null".into());
        let (outbox, stage) = (outbox.clone(), Arc::new(stage));
        Arc::new(Port {
            id: ChannelId(1),
            outbox,
            shard: 0,
            topic,
            version: Version::V2,
            join_ref,
            stage,
            place: Place::default(),
        })
    }

    fn notice(port: &Arc<Port>, message: &str) -> Outgoing {
        Outgoing::Notice(Notice { port: port.clone(), ok: true, message: message.into(), details: None })
    }

    fn greeting(port: &Arc<Port>) -> Outgoing {
        Outgoing::Greeting(Greeting { port: port.clone(), frames: Bytes::from_static(b"<reply>") })
    }

    fn shard() -> Shard {
        Shard::new(Arc::new(Metrics::new()), Clock::system(), Arc::new(CursorKey::new([1; 32]))).0
    }

    #[test]
    fn a_held_reply_is_written_first_and_once() {
        let paper = Paper::default();
        let port = port(&paper.outbox(), Stage::waiting());
        let mut shard = shard();
        shard.write(vec![greeting(&port), notice(&port, "one"), greeting(&port)].into());
        shard.write(vec![greeting(&port), notice(&port, "two")].into());
        assert_eq!(paper.words(), ["<reply>", "one", "two"]);
    }

    #[test]
    fn of_a_join_that_was_given_up_nothing_is_written() {
        let paper = Paper::default();
        let port = port(&paper.outbox(), Stage::waiting());
        let mut shard = shard();
        shard.write(vec![notice(&port, "one")].into());
        assert!(port.stage.give_up());
        shard.write(vec![greeting(&port), notice(&port, "two")].into());
        assert!(paper.words().is_empty());
    }

    #[test]
    fn nothing_follows_the_end_of_an_instance_and_others_go_on() {
        let paper = Paper::default();
        let outbox = paper.outbox();
        let (ended, other) = (port(&outbox, Stage::greeted()), port(&outbox, Stage::greeted()));
        ended.stage.close();
        shard().write(vec![notice(&ended, "one"), notice(&other, "two")].into());
        assert_eq!(paper.words(), ["two"]);
    }

    #[test]
    fn no_notice_leads_back_behind_what_was_told_before() {
        let paper = Paper::default();
        let port = port(&paper.outbox(), Stage::greeted());
        let at = |lsn| Cursor { epoch: 1, position: Position { lsn: Lsn(lsn), ordinal: 0 } };
        let telling = |details| {
            Outgoing::Notice(Notice { port: port.clone(), ok: true, message: "x".into(), details: Some(details) })
        };
        let mut shard = shard();
        let cursors = || String::from_utf8_lossy(&paper.0.lock().unwrap()).matches("\"cursor\"").count();
        shard.write(vec![telling(Details::Reached(at(5))), telling(Details::Reached(at(9)))].into());
        assert_eq!(cursors(), 2);
        shard.write(vec![telling(Details::Reached(at(7)))].into());
        assert_eq!(cursors(), 2);
        assert!(port.place.is_past(at(7)) && !port.place.is_past(at(9)));
        let gap = Details::Gap { from: Some(at(2)), to: at(30), reason: crate::hub::GapReason::Expired };
        assert!(port.place.gaps().is_empty());
        shard.write(vec![telling(gap)].into());
        assert_eq!(port.place.gaps(), [(Some(at(2)), at(30))]);
        port.stage.close();
        shard.write(vec![telling(gap)].into());
        assert_eq!(port.place.gaps().len(), 1, "it was not written");
        assert!(!port.place.is_past(at(20)), "another entry may be behind the end of a gap");
    }

    /// The session refuses at the moment at which the shard writes: the client reads one or the other.
    #[test]
    fn a_reply_and_a_refusal_exclude_each_other() {
        for _ in 0..200 {
            let paper = Paper::default();
            let port = port(&paper.outbox(), Stage::waiting());
            let (theirs, batch) = (port.clone(), Batch::from(vec![greeting(&port), notice(&port, "one")]));
            let writing = std::thread::spawn(move || shard().write(batch));
            if theirs.stage.give_up() {
                theirs.outbox.send(Bytes::from_static(b"two"));
            }
            writing.join().unwrap();
            let words = paper.words();
            assert!(words == ["two"] || words == ["<reply>", "one"], "{words:?}");
        }
    }
}
