//! Who says more than anybody can hear, in the room of those who want to be heard; and who never listens.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::intruder::{DOORS, Door, Intruder};
use super::{MIB, ROOM, Siege};

/// How long a flood lasts.
const LASTS: Duration = Duration::from_secs(2);
/// Who never read.
const DEAF: usize = 60;
/// `ROWCAST_OUTBOX_BYTES` of the relay with those: ten times what is said at once, so that whoever reads keeps up, also where
/// its turn comes late.
const OUTBOX: &str = "4194304";

fn topic() -> String {
    format!("realtime:{ROOM}")
}

const JOIN: &str = r#"{"config":{"broadcast":{"self":true},"presence":{"enabled":true}}}"#;

/// Joined where the others are.
async fn inside(addr: SocketAddr, door: Door) -> Intruder {
    let mut intruder = Intruder::connect(addr, door).await;
    if door == Door::Topics {
        let frame = json!({ "type": "subscribe", "topics": [ROOM], "private": false, "presence": true });
        intruder.text(frame.to_string()).await;
    } else {
        intruder.push((r#""1""#, r#""1""#), &topic(), "phx_join", JOIN).await;
    }
    intruder.alive().await;
    intruder
}

/// Broadcasts as fast as the relay takes them, with their answers unread for as long as it lets that be.
async fn broadcast_flood(addr: SocketAddr) {
    let mut intruder = inside(addr, Door::V2).await;
    let payload = json!({ "type": "broadcast", "event": "noise", "payload": "x".repeat(1000) }).to_string();
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < LASTS {
        for _ in 0..50 {
            intruder.push((r#""1""#, r#""2""#), &topic(), "broadcast", &payload).await;
            sent += 1;
        }
        intruder.alive().await;
    }
    println!("one client sent {sent} broadcasts of 1 KB in {:.1?}", begun.elapsed());
}

/// Over the limit it is told, and loses the channel; the room goes on.
async fn over_the_limit(addr: SocketAddr) {
    let mut intruder = inside(addr, Door::V2).await;
    let payload = json!({ "type": "broadcast", "event": "noise", "payload": 1 }).to_string();
    let mut told = Vec::new();
    for _ in 0..60 {
        for _ in 0..50 {
            intruder.push((r#""1""#, r#""2""#), &topic(), "broadcast", &payload).await;
        }
        told.extend(intruder.answers().await);
    }
    assert!(told.iter().any(|answer| answer[4]["message"] == "Too many messages per second"), "it was not told");
    assert!(told.iter().any(|answer| answer[3] == "phx_close"), "it still is in its channel");
}

async fn presence_flood(addr: SocketAddr) {
    let one = |door: Door| async move {
        let mut intruder = inside(addr, door).await;
        let mut told = Vec::new();
        for number in 0..1500 {
            let state = json!({ "number": number, "more": "x".repeat(200) });
            if door == Door::Topics {
                let frame = json!({ "type": "track", "topic": ROOM, "payload": state });
                intruder.text(frame.to_string()).await;
            } else {
                let track = json!({ "type": "presence", "event": "track", "payload": state });
                intruder.push((r#""1""#, r#""2""#), &topic(), "presence", &track.to_string()).await;
            }
            if number % 100 == 99 {
                told.extend(intruder.answers().await);
            }
        }
        // More than a thousand calls in half a minute.
        assert!(told.iter().any(|answer| answer.to_string().contains("Client presence rate limit exceeded")));
    };
    join_all(DOORS.map(one)).await;
    // In and out, all at once and again.
    for _ in 0..3 {
        let held = join_all((0..40).map(|n| inside(addr, DOORS[n % 3]))).await;
        drop(held);
    }
}

/// They are in the room and never read what is said there, nor what they themselves have asked for.
async fn deaf(addr: SocketAddr) {
    let mut held = join_all((0..DEAF).map(|n| inside(addr, DOORS[n % 3]))).await;
    let asking = join_all(held.iter_mut().take(6).map(|intruder| async {
        for _ in 0..2000 {
            intruder.text(r#"["1","9","realtime:nowhere","phx_leave",{}]"#).await;
        }
    }));
    asking.await;
    let mut intruder = inside(addr, Door::V2).await;
    let payload = json!({ "type": "broadcast", "event": "noise", "payload": "x".repeat(20_000) }).to_string();
    // Each is sent more than the system's buffers and an outbox hold; all of it together would be a gigabyte and a half.
    for _ in 0..60 {
        for _ in 0..20 {
            intruder.push((r#""1""#, r#""2""#), &topic(), "broadcast", &payload).await;
        }
        // A heartbeat's answer overtakes what waits for the room's turn: only its own words tell that they were passed on.
        let mut heard = 0;
        while heard < 20 {
            heard += usize::from(matches!(intruder.next().await, Message::Text(text) if text.contains("noise")));
        }
    }
    let mut closed = 0;
    for mut intruder in held {
        let (code, before) = intruder.end().await;
        assert!(matches!(code, Some(1013) | None), "{code:?} after {} messages", before.len());
        closed += 1;
    }
    assert_eq!(closed, DEAF);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_floods_a_room_is_one_of_many_in_it() {
    let mut siege = Siege::begin(&[]).await;
    siege.withstands("a flood of broadcasts", 64 * MIB, broadcast_flood).await;
    siege.withstands("a flood of presences", 64 * MIB, presence_flood).await;
    siege.end().await;
    let mut siege = Siege::begin(&[("ROWCAST_MAX_MESSAGES_PER_SECOND", "30")]).await;
    siege.withstands("more broadcasts than are allowed", 32 * MIB, over_the_limit).await;
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_listens_costs_an_outbox_and_then_nothing() {
    let mut siege = Siege::begin(&[("ROWCAST_OUTBOX_BYTES", OUTBOX)]).await;
    // Frames are shared: were they not, it would be an outbox of each and more.
    siege.withstands("members who never read", 48 * MIB, deaf).await;
    siege.end().await;
}
