//! Rooms with a shard that writes to paper.

use std::io::{self, IoSlice};
use std::sync::Mutex;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::*;
use crate::clock::Clock;
use crate::hub::{ChannelId, Outbox, Place, Port, Stage, Transmit, Version};
use crate::policy::Rights;
use crate::resume::CursorKey;
use crate::room::{Member, Message, Payload, RoomConfig, RoomKey, Rooms, Seat};
use crate::task::{self, Drain};

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
    /// What a client of version 2 reads: event and payload, and the bytes of binary frames as a string.
    fn read(&self) -> Vec<(String, Value)> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let mut rest = &bytes[..];
        let mut read = Vec::new();
        while !rest.is_empty() {
            let (length, header) = match rest[1] {
                126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                127 => panic!("no test sends so much"),
                length => (usize::from(length), 2),
            };
            let frame = &rest[header..header + length];
            read.push(match rest[0] {
                0x81 => {
                    let frame: Value = serde_json::from_slice(frame).unwrap();
                    let version_1 = frame.is_object();
                    let place = |one: &str, two: usize| if version_1 { frame[one].clone() } else { frame[two].clone() };
                    (place("event", 3).as_str().unwrap().to_owned(), place("payload", 4))
                }
                _ => ("binary".to_owned(), json!(String::from_utf8_lossy(frame))),
            });
            rest = &rest[header + length..];
        }
        read
    }
}

/// A shard that writes when it is told to.
struct Desk {
    shard: Shard,
    rooms: Arc<Rooms>,
    metrics: Arc<Metrics>,
}

impl Desk {
    fn new() -> Desk {
        let metrics = Arc::new(Metrics::new());
        let (shard, _) = Shard::new(metrics.clone(), Clock::system(), Arc::new(CursorKey::new([1; 32])));
        let rooms = Rooms::new(RoomConfig::default(), vec![shard.rooms()], metrics.clone());
        Desk { shard, rooms, metrics }
    }

    fn enter(&self, id: u64, version: Version, stage: Stage, rights: Option<Arc<Rights>>) -> (Seat, Paper, Arc<Port>) {
        let paper = Paper::default();
        let port = Arc::new(Port {
            id: ChannelId(id),
            outbox: Arc::new(Outbox::new(Box::new(paper.clone()), 1 << 20, Bytes::new())),
            shard: 0,
            topic: "realtime:room".into(),
            version,
            join_ref: "\"1\"".into(),
            stage: Arc::new(stage),
            place: Place::default(),
        });
        let key = RoomKey { private: rights.is_some(), topic: "room".into() };
        let member = Member { port: port.clone(), rights, presence: true, key: "k".into(), user: "u".into() };
        (self.rooms.enter(key, member), paper, port)
    }

    /// Writes all that waits.
    fn write(&mut self) {
        self.shard.write_waiting();
    }

    fn count(&self, kind: &'static str) -> u64 {
        self.metrics.broadcasts.get_or_create(&[("kind", kind)]).get()
    }
}

fn text(payload: &str) -> Message {
    Message::Text { payload: Bytes::copy_from_slice(payload.as_bytes()) }
}

fn said(payload: Value) -> (String, Value) {
    ("broadcast".into(), payload)
}

fn raw(text: &str) -> Arc<RawValue> {
    RawValue::from_string(text.into()).unwrap().into()
}

#[tokio::test]
async fn nothing_is_written_before_the_join_reply_or_after_the_end() {
    let mut desk = Desk::new();
    let (one, paper, port) = desk.enter(1, Version::V2, Stage::waiting(), None);
    one.broadcast(text("1"), true).await.unwrap();
    one.send_state().await;
    desk.write();
    assert_eq!(paper.read(), []);
    assert!(port.stage.greet());
    one.broadcast(text("2"), true).await.unwrap();
    one.send_state().await;
    desk.write();
    assert_eq!(paper.read(), [said(json!(2)), ("presence_state".into(), json!({}))]);
    one.broadcast(text("3"), true).await.unwrap();
    port.stage.close();
    desk.write();
    assert_eq!(paper.read(), []);
    assert_eq!(desk.count("delivered"), 1);
}

#[tokio::test]
async fn messages_that_wait_together_arrive_in_order_in_each_version() {
    let mut desk = Desk::new();
    let (one, paper, _) = desk.enter(1, Version::V2, Stage::greeted(), None);
    let (_two, old_paper, _) = desk.enter(2, Version::V1, Stage::greeted(), None);
    let event = |payload| Message::Event { event: "e".into(), payload, meta: None };
    one.broadcast(text("1"), true).await.unwrap();
    one.broadcast(event(Payload::Json(Bytes::from_static(b"2"))), true).await.unwrap();
    one.broadcast(text("3"), false).await.unwrap();
    one.broadcast(event(Payload::Binary(Bytes::from_static(b"4"))), true).await.unwrap();
    let (_three, late_paper, _) = desk.enter(3, Version::V2, Stage::greeted(), None);
    one.broadcast(text("5"), true).await.unwrap();
    desk.write();
    let binary = |tail: &str| ("binary".to_owned(), json!(format!("\u{4}\r\u{1}\u{0}{tail}")));
    let two = binary("\u{1}realtime:roome2");
    let four = binary("\u{0}realtime:roome4");
    assert_eq!(paper.read(), [said(json!(1)), two, four, said(json!(5))]);
    let event = said(json!({"event": "e", "payload": 2, "type": "broadcast"}));
    assert_eq!(old_paper.read(), [said(json!(1)), event, said(json!(3)), said(json!(5))]);
    assert_eq!(late_paper.read(), [said(json!(5))]);
}

#[tokio::test]
async fn rights_are_asked_when_it_is_written() {
    let mut desk = Desk::new();
    let drain = Drain::new();
    let keeper = task::spawn("rooms", desk.rooms.clone().run(drain.clone()));
    let rights = || Arc::new(Rights::new(Arc::default()));
    let (theirs, mine) = (rights(), rights());
    let (one, _, _) = desk.enter(1, Version::V2, Stage::greeted(), Some(mine));
    let (_two, paper, _) = desk.enter(2, Version::V2, Stage::greeted(), Some(theirs.clone()));
    one.broadcast(text("1"), false).await.unwrap();
    one.broadcast(text("2"), false).await.unwrap();
    theirs.set(Right::ReadBroadcast, Some(true));
    desk.write();
    assert_eq!(paper.read(), [said(json!(1)), said(json!(2))]);
    one.broadcast(text("3"), false).await.unwrap();
    theirs.set(Right::ReadBroadcast, Some(false));
    desk.write();
    one.track(raw("{}")).await.unwrap();
    while desk.metrics.presence_diffs.get() == 0 {
        tokio::task::yield_now().await;
    }
    _two.send_state().await;
    desk.write();
    assert_eq!(paper.read(), [], "neither broadcasts nor presence");
    assert_eq!((desk.count("delivered"), desk.count("denied")), (2, 1));
    theirs.set(Right::ReadPresence, Some(true));
    one.untrack().await.unwrap();
    while desk.metrics.presence_diffs.get() == 1 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    desk.write();
    let read = paper.read();
    assert_eq!((read.len(), &read[0].0[..], &read[0].1["joins"]), (1, "presence_diff", &json!({})));
    drain.drain();
    keeper.await.unwrap();
}

#[tokio::test]
async fn what_a_version_cannot_be_told_is_counted_once() {
    let mut desk = Desk::new();
    let (one, paper, _) = desk.enter(1, Version::V2, Stage::greeted(), None);
    let (_two, same_paper, _) = desk.enter(2, Version::V2, Stage::greeted(), None);
    let (_three, old_paper, _) = desk.enter(3, Version::V1, Stage::greeted(), None);
    let payload = Payload::Json(Bytes::from_static(b"1"));
    one.broadcast(Message::Event { event: "e".repeat(256).into(), payload, meta: None }, true).await.unwrap();
    desk.write();
    assert_eq!((paper.read().len(), same_paper.read().len(), old_paper.read().len()), (0, 0, 1));
    assert_eq!((desk.count("unsendable"), desk.count("delivered")), (1, 1));
}

#[tokio::test]
async fn a_member_who_reads_nothing_is_shed_and_others_go_on() {
    let mut desk = Desk::new();
    struct Stuck;
    impl Transmit for Stuck {
        fn try_write_vectored(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
    let (one, paper, port) = desk.enter(1, Version::V2, Stage::greeted(), None);
    let outbox = Arc::new(Outbox::new(Box::new(Stuck), 1000, Bytes::from_static(b"<slow>")));
    let stuck = Arc::new(Port {
        id: ChannelId(2),
        outbox: outbox.clone(),
        shard: 0,
        topic: port.topic.clone(),
        version: Version::V2,
        join_ref: port.join_ref.clone(),
        stage: Arc::new(Stage::greeted()),
        place: Place::default(),
    });
    let key = RoomKey { private: false, topic: "room".into() };
    let member = Member { port: stuck, rights: None, presence: false, key: "k".into(), user: "v".into() };
    let _two = desk.rooms.enter(key, member);
    for number in 0..100 {
        one.broadcast(text(&number.to_string()), true).await.unwrap();
        desk.write();
    }
    assert_eq!(paper.read().len(), 100);
    assert_eq!(outbox.closing(), Some(crate::hub::CloseReason::Slow));
}

/// A socket that takes nothing until it is told to.
struct Slow(Mutex<bool>, Paper);

impl Transmit for Arc<Slow> {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if *self.0.lock().unwrap() {
            return self.1.try_write_vectored(parts);
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Desk {
    /// A member of the public room, beside this one, with room for 1000 bytes that it does not read.
    fn enter_slow(&self, beside: &Port) -> (Seat, Arc<Slow>, Arc<Outbox>) {
        let slow = Arc::new(Slow(Mutex::new(false), Paper::default()));
        let outbox = Arc::new(Outbox::new(Box::new(slow.clone()), 1000, Bytes::from_static(b"<slow>")));
        let port = Port {
            id: ChannelId(2),
            outbox: outbox.clone(),
            shard: 0,
            topic: beside.topic.clone(),
            version: Version::V2,
            join_ref: beside.join_ref.clone(),
            stage: Arc::new(Stage::greeted()),
            place: Place::default(),
        };
        let key = RoomKey { private: false, topic: "room".into() };
        let member = Member { port: Arc::new(port), rights: None, presence: true, key: "k".into(), user: "v".into() };
        (self.rooms.enter(key, member), slow, outbox)
    }
}

#[tokio::test]
async fn a_presence_diff_is_never_left_out_however_large_it_is() {
    let mut desk = Desk::new();
    let drain = Drain::new();
    let keeper = task::spawn("rooms", desk.rooms.clone().run(drain.clone()));
    let (one, _, port) = desk.enter(1, Version::V2, Stage::greeted(), None);
    let (_two, _, outbox) = desk.enter_slow(&port);
    for diffs in 1..=2 {
        one.track(raw(&json!({ "n": diffs, "a": "x".repeat(3000) }).to_string())).await.unwrap();
        while desk.metrics.presence_diffs.get() < diffs {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        desk.write();
    }
    assert_eq!(outbox.closing(), Some(crate::hub::CloseReason::Slow), "who misses a diff would show who is long gone");
    assert_eq!(desk.count("missed"), 0);
    drain.drain();
    keeper.await.unwrap();
}

#[tokio::test]
async fn who_comes_into_a_private_room_without_rights_hears_nothing() {
    let mut desk = Desk::new();
    let rights = Arc::new(Rights::new(Arc::default()));
    let (one, _, port) = desk.enter(1, Version::V2, Stage::greeted(), Some(rights));
    let paper = Paper::default();
    let of_two = Port {
        id: ChannelId(2),
        outbox: Arc::new(Outbox::new(Box::new(paper.clone()), 1 << 20, Bytes::new())),
        shard: 0,
        topic: port.topic.clone(),
        version: Version::V2,
        join_ref: port.join_ref.clone(),
        stage: Arc::new(Stage::greeted()),
        place: Place::default(),
    };
    let key = RoomKey { private: true, topic: "room".into() };
    let member = Member { port: Arc::new(of_two), rights: None, presence: true, key: "k".into(), user: "v".into() };
    let two = desk.rooms.enter(key, member);
    one.broadcast(text("1"), false).await.unwrap();
    two.send_state().await;
    desk.write();
    assert_eq!((paper.read(), desk.count("denied")), (vec![], 1));
}

#[tokio::test]
async fn two_large_broadcasts_do_not_shed_everybody_in_the_room() {
    let mut desk = Desk::new();
    let (one, _, port) = desk.enter(1, Version::V2, Stage::greeted(), None);
    let (_two, slow, outbox) = desk.enter_slow(&port);
    let large = "x".repeat(3000);
    for payload in [&large, &large, &large, "small"] {
        one.broadcast(text(&format!("{payload:?}")), true).await.unwrap();
        desk.write();
    }
    assert!(outbox.is_open());
    assert_eq!((desk.count("delivered"), desk.count("missed")), (4 + 2, 2));
    *slow.0.lock().unwrap() = true;
    outbox.flush();
    let read = slow.1.read();
    let notice = json!({"status": "error", "message": MISSED, "extension": "broadcast", "channel": "room"});
    assert_eq!(read, [said(json!(large)), ("system".into(), notice), said(json!("small"))], "it is told once");
}

#[tokio::test]
async fn what_rooms_have_sent_is_written_when_the_hub_is_gone() {
    let metrics = Arc::new(Metrics::new());
    let (shard, from_hub) = Shard::new(metrics.clone(), Clock::system(), Arc::new(CursorKey::new([1; 32])));
    let rooms = Rooms::new(RoomConfig::default(), vec![shard.rooms()], metrics.clone());
    let mut desk = Desk { shard, rooms, metrics };
    let (one, paper, _) = desk.enter(1, Version::V2, Stage::greeted(), None);
    one.broadcast(text("1"), true).await.unwrap();
    drop(from_hub);
    let shard = std::mem::replace(&mut desk.shard, Desk::new().shard);
    shard.run().await;
    assert_eq!(paper.read(), [said(json!(1))]);
    assert_eq!(one.broadcast(text("2"), true).await, Err(crate::room::RoomError::Closed));
}
