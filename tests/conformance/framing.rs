//! Items 18 to 27: the shape of frames, and what no frame may do to a socket.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::stage::{BOTH, Scene, Shared, assert_joined, joined, refs, summary, watching};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, Version};

/// Every text that the server sends in a session that has one frame of each kind, as it came over the wire.
async fn session(vsn: &str, frame: fn(Value, Value, &str, &str, Value) -> Value) -> Vec<Value> {
    let scene = Scene::start().await;
    let url = format!("{}/websocket?apikey={}&vsn={vsn}", scene.relay.base(), token::user(ALICE));
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("it is let in");
    let config = json!({ "presence": { "enabled": true }, "postgres_changes": watching() });
    let topic = "realtime:room";
    let sent = [
        frame(json!("1"), json!("1"), topic, "phx_join", json!({ "config": config })),
        frame(json!("2"), json!("2"), "realtime:", "phx_join", json!({})),
        frame(Value::Null, json!("3"), "phoenix", "heartbeat", json!({})),
        frame(Value::Null, json!("4"), "realtime:elsewhere", "broadcast", json!({})),
    ];
    for frame in sent {
        socket.send(Message::text(frame.to_string())).await.expect("sent");
    }
    let mut texts: Vec<Value> = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await;
        let message = message.unwrap_or_else(|_| panic!("only {texts:#?}")).expect("it lives").expect("no error");
        let text: Value = serde_json::from_str(&message.into_text().expect("a text frame")).expect("JSON");
        texts.push(text.clone());
        match event_of(&text) {
            // The first of two: the last one tells that the token has expired.
            "system" if text.to_string().contains("Subscribed to PostgreSQL") => scene.notify(ALICE, "n").await,
            "postgres_changes" => {
                let expired = json!({ "access_token": token::expired(ALICE) });
                let renewal = frame(json!("1"), json!("5"), topic, "access_token", expired);
                socket.send(Message::text(renewal.to_string())).await.expect("sent");
            }
            "phx_close" => break,
            _ => {}
        }
    }
    for event in ["phx_reply", "presence_state", "system", "postgres_changes"] {
        assert!(texts.iter().any(|text| event_of(text) == event), "no {event} in {texts:#?}");
    }
    texts
}

/// Of a frame of either version.
fn event_of(text: &Value) -> &str {
    text.get("event").or_else(|| text.get(3)).and_then(Value::as_str).unwrap_or_default()
}

fn object(join_ref: Value, reference: Value, topic: &str, event: &str, payload: Value) -> Value {
    json!({ "topic": topic, "event": event, "payload": payload, "ref": reference, "join_ref": join_ref })
}

fn array(join_ref: Value, reference: Value, topic: &str, event: &str, payload: Value) -> Value {
    json!([join_ref, reference, topic, event, payload])
}

#[tokio::test]
async fn item_018_frames_of_version_1_have_exactly_four_keys() {
    for text in session("1.0.0", object).await {
        let mut keys: Vec<&String> = text.as_object().expect("an object").keys().collect();
        keys.sort();
        assert_eq!(keys, ["event", "payload", "ref", "topic"], "{text}");
    }
}

#[tokio::test]
async fn item_019_frames_of_version_2_have_exactly_five_elements() {
    for text in session("2.0.0", array).await {
        assert_eq!(text.as_array().expect("an array").len(), 5, "{text}");
    }
}

#[tokio::test]
async fn item_020_in_version_1_what_answers_nothing_has_a_null_ref() {
    let texts = session("1.0.0", object).await;
    let unasked = ["system", "postgres_changes", "broadcast", "presence_state", "presence_diff"];
    let mut seen = std::collections::BTreeSet::new();
    for text in texts.iter().filter(|text| unasked.contains(&text["event"].as_str().expect("a text"))) {
        assert_eq!(text.get("ref"), Some(&Value::Null), "{text}");
        seen.insert(text["event"].as_str().expect("a text"));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["postgres_changes", "presence_state", "system"]);
}

/// Sends each, and nothing comes before the answer to a heartbeat; a channel that was joined before is joined still.
async fn assert_without_effect(version: Version, messages: impl IntoIterator<Item = Message>) {
    let relay = Shared::relay().await;
    let mut phone = relay.phone(version).await;
    assert_eq!(phone.join("room", &json!([])).await, joined());
    for message in messages {
        let shown = format!("{message:?}");
        phone.send(message).await;
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{shown} brought {frames:#?}");
    }
    assert_joined(&mut phone, "realtime:room").await;
}

fn texts(texts: &[&str]) -> Vec<Message> {
    texts.iter().map(|text| Message::text(*text)).collect()
}

#[tokio::test]
async fn item_021_what_version_2_cannot_read_has_no_effect() {
    let unreadable = texts(&[
        "[\"1\",\"1\",",
        "hello",
        "",
        r#"{"topic":"realtime:other","event":"phx_join","payload":{},"ref":"r"}"#,
        r#"["r","r","realtime:other","phx_join"]"#,
    ]);
    assert_without_effect(Version::V2, unreadable).await;
}

#[tokio::test]
async fn item_022_what_version_1_cannot_read_has_no_effect() {
    let unreadable = texts(&[
        r#"["r","r","realtime:other","phx_join",{}]"#,
        r#"{"event":"phx_join","payload":{},"ref":"r"}"#,
        "null",
        "{",
        "",
    ]);
    assert_without_effect(Version::V1, unreadable).await;
}

#[tokio::test]
async fn item_023_binary_frames_that_are_none_have_no_effect() {
    let frames: [&[u8]; 8] = [
        b"",
        b"\x01abc",
        b"\x09realtime:room",
        b"\x03",
        b"\x03\x01\x01\x0d",
        b"\x03\x01\x01\xff\x03\x00\x0117realtime:roomcur{}",
        b"\x00\x01\x01",
        // Whole, and of use to nobody: a plain Phoenix push.
        b"\x00\x01\x01\x0d\x0217realtime:roomevdata",
    ];
    let messages = frames.map(|bytes| Message::Binary(Bytes::from_static(bytes)));
    assert_without_effect(Version::V2, messages).await;
}

/// A heartbeat of exactly this many bytes.
fn heartbeat_of(version: Version, bytes: usize) -> Message {
    let (head, tail) = match version {
        Version::V1 => (r#"{"topic":"phoenix","event":"heartbeat","ref":"big","payload":{"x":""#, r#""}}"#),
        Version::V2 => (r#"[null,"big","phoenix","heartbeat",{"x":""#, r#""}]"#),
    };
    Message::text(format!("{head}{}{tail}", "x".repeat(bytes - head.len() - tail.len())))
}

#[tokio::test]
async fn item_024_a_frame_above_the_limit_closes_the_socket_with_1009() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        phone.send(heartbeat_of(version, 5_000_000)).await;
        assert_eq!(phone.reply_to(&json!("big")).await.topic, "phoenix");
        phone.send(heartbeat_of(version, 5_000_001)).await;
        assert_eq!(phone.close_code().await, Some(1009), "{version:?}");
        // Fragments count together.
        let mut phone = relay.phone(version).await;
        let half = || Bytes::from(vec![b' '; 2_500_001]);
        phone.send(Message::Frame(Frame::message(half(), OpCode::Data(Data::Text), false))).await;
        phone.send(Message::Frame(Frame::message(half(), OpCode::Data(Data::Continue), true))).await;
        assert_eq!(phone.close_code().await, Some(1009), "{version:?}");
    }
}

#[tokio::test]
async fn item_025_a_silent_socket_is_closed_and_one_with_heartbeats_is_not() {
    let minute = Duration::from_secs(60);
    assert_eq!(rowcast::gateway::GatewayConfig::default().idle_timeout, minute);
    let scene = Scene::with(|config| config.gateway.idle_timeout = Duration::from_secs(2)).await;
    let mut silent = scene.phone(Version::V2).await;
    let mut pinging = scene.phone(Version::V2).await;
    let mut beating = scene.phone(Version::V2).await;
    let lively = async {
        loop {
            pinging.send(Message::Ping(Bytes::new())).await;
            beating.heartbeat().await;
            pause().await;
        }
    };
    let code = tokio::select! {
        code = silent.close_code() => code,
        () = lively => unreachable!("it goes on for ever"),
    };
    assert_eq!(code, Some(1012));
    pinging.heartbeat().await;
    beating.heartbeat().await;
}

#[tokio::test]
async fn item_026_a_ping_is_answered_with_its_payload() {
    let relay = Shared::relay().await;
    for vsn in ["1.0.0", "2.0.0"] {
        let url = format!("{}/websocket?apikey={}&vsn={vsn}", relay.base(), token::user(BOB));
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("it is let in");
        for payload in [&b""[..], b"are you there?", &[0xff; 125]] {
            socket.send(Message::Ping(Bytes::copy_from_slice(payload))).await.expect("sent");
            let answer = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time");
            let answer = answer.expect("an answer").expect("no error");
            assert_eq!(answer, Message::Pong(Bytes::copy_from_slice(payload)));
        }
    }
}

#[tokio::test]
async fn item_027_a_sixth_element_does_not_matter() {
    let relay = Shared::relay().await;
    let mut phone: Phone = relay.phone(Version::V2).await;
    phone.send(Message::text(r#"[null,"r","phoenix","heartbeat",{},"more"]"#)).await;
    assert_eq!(phone.reply_to(&json!("r")).await.topic, "phoenix");
    let (join_ref, reference) = refs("j", "k");
    let join = json!([join_ref, reference, "realtime:room", "phx_join", {}, {"six": 6}, 7]);
    phone.send(Message::text(join.to_string())).await;
    assert_eq!(phone.reply_to(&json!("k")).await.payload, joined());
    assert_eq!(summary(&phone.frames_so_far().await), Vec::<String>::new());
}
