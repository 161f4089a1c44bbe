//! What rooms cost, without sockets: a message from its sender to the members' outboxes, and presence of many.

use serde_json::value::RawValue;

use super::*;
use crate::room::{Member, Message, Payload, RoomConfig, RoomKey, Rooms, Seat};
use crate::task::{self, Drain};

/// A room of this many members on one shard.
fn room(shard: &Shard, count: usize) -> (Arc<Rooms>, Vec<Seat>) {
    let config = RoomConfig { messages_per_second: u32::MAX, presence_per_second: u32::MAX, ..RoomConfig::default() };
    let rooms = Rooms::new(config, vec![shard.rooms()], Arc::default());
    let enter = |member: super::Member| {
        let key = RoomKey { private: false, topic: "room".into() };
        let own: Arc<str> = format!("key-{}", member.port.id.0).into();
        rooms.enter(key, Member { port: member.port, rights: None, presence: true, key: own.clone(), user: own })
    };
    let seats = members(count).into_iter().map(enter).collect();
    (rooms, seats)
}

/// Not within a runtime, which would have whoever finds a place each time pause now and then.
#[test]
fn nanoseconds_per_delivery() {
    println!();
    let (mut shard, _sender) = shard();
    let payload = Bytes::from(format!(r#"{{"body":"{}"}}"#, "x".repeat(200)));
    for (together, count) in [(1, 10), (1, 1000), (8, 1000), (32, 1000)] {
        let (_rooms, seats) = room(&shard, count);
        let event = || Message::Event { event: "e".into(), payload: Payload::Json(payload.clone()), meta: None };
        let mut outcome = Ok(());
        let each = nanos(|| {
            for _ in 0..together {
                outcome = futures_util::FutureExt::now_or_never(seats[0].broadcast(event(), true)).expect("a place");
            }
            shard.write_waiting();
        });
        outcome.expect("taken");
        let each = each / (count * together) as f64;
        show(&format!("broadcast to {count}, {together} waiting together, per delivery"), each);
        println!("{:<58} {:>9.1} M/s on one core", "", 1e3 / each);
    }
}

/// All come, look and track; every one of them reads of all.
#[tokio::test]
async fn a_storm_of_presences() {
    let count = if cfg!(debug_assertions) { 100 } else { 5000 };
    let (mut shard, _sender) = shard();
    let (rooms, drain) = (Rooms::new(RoomConfig::default(), vec![shard.rooms()], Arc::default()), Drain::new());
    let keeper = task::spawn("rooms", rooms.clone().run(drain.clone()));
    let key = RoomKey { private: false, topic: "room".into() };
    let start = Instant::now();
    let mut seats = Vec::new();
    for member in members(count) {
        let own: Arc<str> = format!("key-{}", member.port.id.0).into();
        let own = Member { port: member.port, rights: None, presence: true, key: own.clone(), user: own };
        let seat = rooms.enter(key.clone(), own);
        seat.send_state().await;
        let payload = format!(r#"{{"name":"user {}","online_at":"2026-11-20T10:15:30.123Z"}}"#, seats.len());
        seat.track(RawValue::from_string(payload).expect("JSON").into()).await.expect("tracked");
        seats.push(seat);
        shard.write_waiting();
        tokio::task::yield_now().await;
    }
    println!("\n{count} enter, read the state and track: {:?}", start.elapsed());
    drain.drain();
    keeper.await.expect("ended");
}
