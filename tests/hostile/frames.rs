//! Frames that are too large, never end, are no frames, no text or no message, and JSON without a bottom.

use std::net::SocketAddr;

use futures_util::future::join_all;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use super::intruder::{DOORS, Door, Intruder, deep};
use super::{MIB, Siege};
use crate::support::binary::kind_3;

/// `max_message_bytes`.
const LARGEST: usize = 5_000_000;
const LEVELS: usize = 100_000;

/// A masked frame's head that claims so many bytes; the mask is zero, so that the payload stays what it is.
fn claims(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first, 0x80 | 127];
    head.extend(length.to_be_bytes());
    head.extend([0; 4]);
    head
}

/// A small one.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | u8::try_from(payload.len()).expect("short"), 0, 0, 0, 0];
    frame.extend_from_slice(payload);
    frame
}

async fn too_large(addr: SocketAddr) {
    for length in [LARGEST as u64 + 1, 1 << 40, u64::MAX >> 1, u64::MAX] {
        let mut intruder = Intruder::connect(addr, Door::V2).await;
        intruder.bytes(&claims(0x81, length)).await;
        assert_eq!(intruder.end().await.0, Some(1009), "{length}");
    }
    let mut intruder = Intruder::connect(addr, Door::V1).await;
    for part in 0..=LARGEST / 100_000 {
        intruder.fragment(&[b'x'; 100_000], part == 0, false).await;
    }
    assert_eq!(intruder.end().await.0, Some(1009));
    // Who claims much and sends little costs what he sends.
    let claim = |door| async move {
        let mut intruder = Intruder::connect(addr, door).await;
        intruder.bytes(&claims(0x81, LARGEST as u64)).await;
        intruder.bytes(&[b'x'; 1000]).await;
        intruder
    };
    let held = join_all((0..150).map(|n| claim(DOORS[n % 3]))).await;
    Intruder::connect(addr, Door::V2).await.alive().await;
    drop(held);
}

async fn without_end(addr: SocketAddr) {
    let endless = |door| async move {
        let mut intruder = Intruder::connect(addr, door).await;
        for part in 0..20_000 {
            // Empty ones and small ones, and pings between them.
            let bytes: &[u8] = if part % 2 == 0 { b"" } else { b"[" };
            intruder.fragment(bytes, part == 0, false).await;
            if part % 1000 == 0 {
                intruder.send(Message::Ping("are you there".into())).await;
            }
        }
        intruder
    };
    let held = join_all((0..6).map(|n| endless(DOORS[n % 3]))).await;
    drop(held);
    // A message in as many fragments as it has bytes is a message all the same.
    let mut intruder = Intruder::connect(addr, Door::V2).await;
    let text = r#"[null,"piecemeal","phoenix","heartbeat",{"text":"ä€😀"}]"#.as_bytes();
    for (at, byte) in text.iter().enumerate() {
        intruder.fragment(&[*byte], at == 0, at + 1 == text.len()).await;
    }
    let answers = intruder.answers().await;
    assert!(answers.iter().any(|answer| answer[1] == "piecemeal"), "{answers:?}");
}

async fn no_frames(addr: SocketAddr) {
    let wrong: [(&str, Vec<u8>, u16); 12] = [
        ("not masked", vec![0x81, 2, b'h', b'i'], 1002),
        ("a reserved bit", masked(0xC1, b"[]"), 1002),
        ("a reserved kind", masked(0x83, b"[]"), 1002),
        ("a reserved control frame", masked(0x8B, b""), 1002),
        ("a control frame in parts", masked(0x09, b"x"), 1002),
        ("a long ping", [&[0x89, 0x80 | 126, 0, 126, 0, 0, 0, 0][..], &[0; 126]].concat(), 1002),
        ("nothing to go on with", masked(0x80, b"x"), 1002),
        ("a message in a message", [masked(0x01, b"["), masked(0x81, b"[]")].concat(), 1002),
        ("no text", masked(0x81, b"\xff\xfe"), 1007),
        ("no text behind some", [masked(0x01, b"[\"\xe2\x82"), masked(0x80, b"\"]")].concat(), 1007),
        ("a surrogate", masked(0x81, b"[\"\xed\xa0\x80\"]"), 1007),
        ("half a close", masked(0x88, b"\x03"), 1002),
    ];
    for (what, bytes, code) in wrong {
        for door in DOORS {
            let mut intruder = Intruder::connect(addr, door).await;
            intruder.bytes(&bytes).await;
            let (found, before) = intruder.end().await;
            // A close that can't be read may be answered with one that says nothing.
            assert!(found == Some(code) || what == "half a close", "{what}: {found:?} after {before:?}");
        }
    }
}

/// Every kind, and a broadcast cut at every length, with each of its strings spoilt in turn.
async fn binary(addr: SocketAddr) {
    let mut intruder = Intruder::connect(addr, Door::V2).await;
    intruder.push((r#""1""#, r#""1""#), "realtime:bin", "phx_join", "{}").await;
    intruder.alive().await;
    let Message::Binary(whole) = kind_3(("1", "2"), "realtime:bin", "cur", r#"{"m":1}"#, 1, br#"{"x":3}"#) else {
        unreachable!("it is binary")
    };
    for kind in 0..=255u8 {
        for length in [1, 5, 7, whole.len()] {
            let mut bytes = whole[..length].to_vec();
            bytes[0] = kind;
            if kind != 3 || length < whole.len() {
                intruder.send(Message::Binary(bytes.into())).await;
            }
        }
    }
    for length in 0..whole.len() {
        intruder.send(Message::Binary(whole.slice(..length))).await;
    }
    for at in 0..whole.len() {
        let mut bytes = whole.to_vec();
        bytes[at] = 0xFF;
        intruder.send(Message::Binary(bytes.into())).await;
    }
    let length = |n| Message::Binary([&[3, n, n, n, n, n, 1][..], &vec![b'x'; usize::from(n) * 5]].concat().into());
    intruder.send(length(255)).await;
    intruder.send(kind_3(("1", "2"), "realtime:bin", "deep", "", 1, deep(LEVELS, true, true).as_bytes())).await;
    intruder.send(kind_3(("1", "2"), "realtime:bin", "deep", &deep(120, false, true), 1, b"{}")).await;
    let answers = intruder.answers().await;
    assert!(answers.iter().all(|answer| answer[4]["status"] == "error" || answer[4]["status"] == "ok"), "{answers:?}");
    // The other doors have no binary frames.
    for door in [Door::V1, Door::Topics] {
        let mut intruder = Intruder::connect(addr, door).await;
        for kind in 0..=255u8 {
            intruder.send(Message::Binary(vec![kind, 0, 0, 0, 0, 0, 0].into())).await;
        }
        intruder.alive().await;
    }
}

async fn deep_json(addr: SocketAddr) {
    for door in [Door::V1, Door::V2] {
        let mut intruder = Intruder::connect(addr, door).await;
        let one = r#""1""#;
        for (object, closed) in [(true, true), (false, true), (true, false), (false, false)] {
            let json = deep(LEVELS, object, closed);
            for payload in [
                json.clone(),
                format!(r#"{{"config":{json}}}"#),
                format!(r#"{{"config":{{"postgres_changes":{json}}}}}"#),
                format!(r#"{{"config":{{"postgres_changes":[{{"filter":{json}}}]}}}}"#),
                format!(r#"{{"config":{{"broadcast":{json},"presence":{json},"private":{json}}}}}"#),
                format!(r#"{{"access_token":{json}}}"#),
            ] {
                intruder.push((one, one), "realtime:deep", "phx_join", &payload).await;
            }
            intruder.push((one, one), "realtime:deep", "phx_join", r#"{"config":{"presence":{"enabled":true}}}"#).await;
            for event in ["broadcast", "presence", "access_token", "phx_leave", "heartbeat", "nonsense"] {
                intruder.push((one, r#""2""#), "realtime:none", event, &json).await;
            }
            for payload in [
                format!(r#"{{"type":"broadcast","event":"deep","payload":{json}}}"#),
                format!(r#"{{"type":{json},"event":{json}}}"#),
            ] {
                intruder.push((one, r#""2""#), "realtime:deep", "broadcast", &payload).await;
            }
            let track = format!(r#"{{"type":"presence","event":"track","payload":{{"a":{json}}}}}"#);
            intruder.push((one, r#""3""#), "realtime:deep", "presence", &track).await;
            intruder.push((&json, &json), "realtime:deep", "broadcast", "{}").await;
            intruder.text(json).await;
            let before = intruder.alive().await;
            // What it was told may be as deep, and is text.
            assert!(before.iter().all(|message| message.is_text()), "{before:.500?}");
        }
    }
    let mut intruder = Intruder::connect(addr, Door::Topics).await;
    for (object, closed) in [(true, true), (false, true), (true, false), (false, false)] {
        let json = deep(LEVELS, object, closed);
        let types = ["subscribe", "unsubscribe", "publish", "track", "untrack", "token", "ping"];
        for (kind, field) in types.into_iter().flat_map(|kind| {
            ["topics", "topic", "changes", "presence", "since", "payload", "event", "token", "ref", "more"]
                .map(|field| (kind, field))
        }) {
            intruder
                .text(format!(r#"{{"type":"{kind}","topics":["a"],"topic":"a","event":"e","{field}":{json}}}"#))
                .await;
        }
        intruder.text(json).await;
        for message in intruder.alive().await {
            let Message::Text(text) = message else { panic!("{message:.500?}") };
            assert!(text.starts_with(r#"{"type":"#), "{text:.500}");
        }
    }
}

/// What a member sends is what the others get, however deep it is.
async fn deep_broadcast(addr: SocketAddr) {
    let mut heard = Intruder::connect(addr, Door::V1).await;
    let mut said = Intruder::connect(addr, Door::V2).await;
    for intruder in [&mut heard, &mut said] {
        intruder.push((r#""1""#, r#""1""#), "realtime:well", "phx_join", "{}").await;
        intruder.alive().await;
    }
    let json = deep(LEVELS, true, true);
    said.send(kind_3(("1", "2"), "realtime:well", "deep", "", 1, json.as_bytes())).await;
    said.alive().await;
    let message = heard.next().await;
    let expected = format!(
        r#"{{"topic":"realtime:well","event":"broadcast","payload":{{"event":"deep","payload":{json},"type":"broadcast"}},"ref":null}}"#
    );
    let Message::Text(text) = &message else { panic!("{message:.500?}") };
    assert!(*text == expected, "{text:.200}");
    assert!(serde_json::from_str::<Value>(text).is_err(), "a tree of it is too deep");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_frame_is_only_its_own_connection_suffers() {
    let mut siege = Siege::begin(&[]).await;
    // 5 MB for each message under way, and there are few of them.
    siege.withstands("frames that are too large", 64 * MIB, too_large).await;
    siege.withstands("fragments without end", 32 * MIB, without_end).await;
    siege.withstands("what is no frame", 32 * MIB, no_frames).await;
    siege.withstands("binary frames", 32 * MIB, binary).await;
    siege.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_may_be_as_deep_as_it_likes() {
    let mut siege = Siege::begin(&[]).await;
    siege.withstands("deep JSON", 64 * MIB, deep_json).await;
    siege.withstands("deep JSON for others", 32 * MIB, deep_broadcast).await;
    siege.end().await;
}
