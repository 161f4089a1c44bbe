//! Items 36 to 39, 57, 62 and 67 to 81: broadcasts between clients.
//!
//! That something does not arrive is proved by what its sender sends after it: one sender's messages keep their order.

use serde_json::{Value, json};

use super::stage::{BOTH, Scene, Shared, joined, ok, refs, refused, shown};
use crate::support::binary::{Binary, kind_3};
use crate::support::phone::Frame;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, Version};

/// Everybody may do everything on private channels.
const OPEN: &str = "create policy r on realtime.messages for select to authenticated using (true); \
                    create policy w on realtime.messages for insert to authenticated with check (true);";

/// Joins with this `broadcast` and this privacy.
async fn join(phone: &mut Phone, topic: &str, broadcast: Value, private: bool) {
    let config = json!({ "broadcast": broadcast, "private": private });
    let reply = phone.join_with(topic, json!({ "config": config })).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

async fn enter(phone: &mut Phone, topic: &str) {
    join(phone, topic, json!({}), false).await;
}

fn message(event: &str, payload: Value) -> Value {
    json!({ "type": "broadcast", "event": event, "payload": payload })
}

/// All broadcasts before the one with event `end`.
async fn until_end(phone: &mut Phone) -> Vec<Frame> {
    let mut before = Vec::new();
    loop {
        let frame = phone.next_broadcast().await;
        if frame.payload["event"] == "end" {
            return before;
        }
        before.push(frame);
    }
}

fn events(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.payload["event"].as_str().unwrap_or("none")).collect()
}

#[tokio::test]
async fn item_037_an_acknowledged_broadcast_may_have_any_join_ref() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join(&mut phone, "item37", json!({ "ack": true }), false).await;
        for (index, join_ref) in [Value::Null, json!("stale")].into_iter().enumerate() {
            let reference = json!(format!("r{index}"));
            phone.send_as((join_ref, reference.clone()), "realtime:item37", "broadcast", message("e", json!({}))).await;
            let reply = phone.reply_to(&reference).await;
            assert_eq!((reply.payload, reply.join_ref), (ok(), shown(version, json!("1"))));
        }
    }
}

#[tokio::test]
async fn item_039_broadcasts_reach_topics_of_any_name() {
    let long = "ä".repeat(100);
    let relay = Shared::relay().await;
    for version in BOTH {
        let (mut one, mut two) = (relay.phone(version).await, relay.phone(version).await);
        for topic in ["room:1:lobby", "two words", "zażółć gęślą 🙂", "\"quoted\" \\ {}", "*", long.as_str()] {
            let topic = format!("{topic}{version:?}");
            enter(&mut one, &topic).await;
            enter(&mut two, &topic).await;
            one.push(&topic, "broadcast", message("e", json!({ "to": topic }))).await;
            let frame = two.next_broadcast().await;
            assert_eq!((frame.topic, &frame.payload["payload"]["to"]), (format!("realtime:{topic}"), &json!(topic)));
        }
    }
}

#[tokio::test]
async fn item_057_after_a_second_join_a_broadcast_to_oneself_arrives_once() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let topic = format!("item57{version:?}");
        for _ in 0..2 {
            join(&mut phone, &topic, json!({ "self": true }), false).await;
        }
        phone.push(&topic, "broadcast", message("once", json!({}))).await;
        phone.push(&topic, "broadcast", message("end", json!({}))).await;
        assert_eq!(events(&until_end(&mut phone).await), ["once"]);
    }
}

#[tokio::test]
async fn item_062_after_leaving_no_broadcast_arrives_and_joining_again_works() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let (mut one, mut two) = (relay.phone(version).await, relay.phone(version).await);
        let (topic, witness) = (format!("item62{version:?}"), format!("item62w{version:?}"));
        for phone in [&mut one, &mut two] {
            enter(phone, &topic).await;
            enter(phone, &witness).await;
        }
        two.leave(&topic).await;
        one.push(&topic, "broadcast", message("lost", json!({}))).await;
        one.push(&witness, "broadcast", message("end", json!({}))).await;
        assert!(until_end(&mut two).await.is_empty());
        enter(&mut two, &topic).await;
        one.push(&topic, "broadcast", message("found", json!({}))).await;
        assert_eq!(two.next_broadcast().await.payload["event"], "found");
    }
}

/// One binary broadcast of a V2 client, as two others get it; the second gets nothing if `None` is said of it.
async fn pushed(topic: &str, encoding: u8, metadata: &str, payload: &[u8]) -> (Frame, Vec<Frame>) {
    let relay = Shared::relay().await;
    let mut sender = relay.phone(Version::V2).await;
    let (mut two, mut one) = (relay.phone(Version::V2).await, relay.phone(Version::V1).await);
    for phone in [&mut sender, &mut two, &mut one] {
        enter(phone, topic).await;
    }
    let full = format!("realtime:{topic}");
    sender.send(kind_3(("1", "7"), &full, "cur", metadata, encoding, payload)).await;
    sender.push(topic, "broadcast", message("end", json!({}))).await;
    let mut of_two = until_end(&mut two).await;
    assert_eq!(of_two.len(), 1);
    (of_two.remove(0), until_end(&mut one).await)
}

#[tokio::test]
async fn item_067_a_binary_json_broadcast_keeps_its_bytes() {
    let (frame, _) = pushed("item67", 1, "", br#"{"x": 3.0}"#).await;
    let expected = Binary { encoding: 1, metadata: String::new(), payload: br#"{"x": 3.0}"#.to_vec() };
    assert_eq!((frame.binary, &*frame.topic, &*frame.text), (Some(expected), "realtime:item67", "cur"));
}

#[tokio::test]
async fn item_068_version_1_gets_a_binary_json_broadcast_as_an_object() {
    let (_, frames) = pushed("item68", 1, "", br#"{"x":3}"#).await;
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].payload, json!({ "event": "cur", "payload": { "x": 3 }, "type": "broadcast" }));
}

#[tokio::test]
async fn item_069_bytes_reach_version_2_alone() {
    let (frame, others) = pushed("item69", 0, "", b"\xde\xad\x00").await;
    let expected = Binary { encoding: 0, metadata: String::new(), payload: b"\xde\xad\x00".to_vec() };
    assert_eq!(frame.binary, Some(expected));
    assert!(others.is_empty(), "{others:#?}");
}

#[tokio::test]
async fn item_078_metadata_is_not_forwarded() {
    let (frame, others) = pushed("item78", 1, r#"{"secret":1}"#, b"{}").await;
    assert_eq!(frame.binary.map(|binary| binary.metadata), Some(String::new()));
    assert_eq!(others[0].payload, json!({ "event": "cur", "payload": {}, "type": "broadcast" }));
}

/// A text broadcast with this payload, as both versions get it from each.
async fn texts(topic: &str, payloads: &[Value]) {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("{topic}{version:?}");
        let mut sender = relay.phone(version).await;
        let (mut two, mut one) = (relay.phone(Version::V2).await, relay.phone(Version::V1).await);
        for phone in [&mut sender, &mut two, &mut one] {
            enter(phone, &topic).await;
        }
        for payload in payloads {
            sender.push(&topic, "broadcast", payload.clone()).await;
            for phone in [&mut two, &mut one] {
                let frame = phone.next_broadcast().await;
                assert_eq!((&frame.payload, &frame.join_ref, &frame.binary), (payload, &Value::Null, &None));
            }
        }
        sender.heartbeat().await;
    }
}

#[tokio::test]
async fn item_070_a_text_broadcast_has_null_refs_and_its_payload_verbatim() {
    texts("item70", &[message("e", json!({ "a": [1, null, "ä"] }))]).await;
}

#[tokio::test]
async fn item_071_a_flat_payload_arrives_as_it_was_sent() {
    texts("item71", &[json!({ "a": 1, "type": "broadcast", "event": "x" })]).await;
}

#[tokio::test]
async fn item_072_any_payload_is_passed_on() {
    texts("item72", &[json!({}), json!("str"), json!([1]), json!(5)]).await;
}

#[tokio::test]
async fn item_073_who_wants_to_hears_itself_once() {
    let relay = Shared::relay().await;
    for version in BOTH {
        for own in [true, false] {
            let topic = format!("item73{version:?}{own}");
            let (mut phone, mut other) = (relay.phone(version).await, relay.phone(version).await);
            join(&mut phone, &topic, json!({ "self": own }), false).await;
            enter(&mut other, &topic).await;
            phone.push(&topic, "broadcast", message("mine", json!({}))).await;
            assert_eq!(other.next_broadcast().await.payload["event"], "mine");
            other.push(&topic, "broadcast", message("end", json!({}))).await;
            let heard = until_end(&mut phone).await;
            assert_eq!(events(&heard), if own { vec!["mine"] } else { vec![] });
        }
    }
}

#[tokio::test]
async fn item_074_two_channels_of_a_socket_do_not_mix() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let (mut phone, mut other) = (relay.phone(version).await, relay.phone(version).await);
        let topics = [format!("item74a{version:?}"), format!("item74b{version:?}")];
        for topic in &topics {
            enter(&mut phone, topic).await;
            enter(&mut other, topic).await;
        }
        for topic in &topics {
            other.push(topic, "broadcast", message(topic, json!({}))).await;
            let frame = phone.next_broadcast().await;
            assert_eq!((frame.topic, &frame.payload["event"]), (format!("realtime:{topic}"), &json!(topic)));
        }
        // What one channel sends does not come back over the other.
        phone.push(&topics[0], "broadcast", message("mine", json!({}))).await;
        assert_eq!(other.next_broadcast().await.payload["event"], "mine");
        other.push(&topics[1], "broadcast", message("end", json!({}))).await;
        assert!(until_end(&mut phone).await.is_empty());
    }
}

#[tokio::test]
async fn item_075_another_socket_of_the_same_user_hears_it() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item75{version:?}");
        let (mut one, mut two) = (relay.phone(version).await, relay.phone(version).await);
        enter(&mut one, &topic).await;
        enter(&mut two, &topic).await;
        one.push(&topic, "broadcast", message("e", json!({}))).await;
        assert_eq!(two.next_broadcast().await.payload["event"], "e");
    }
}

#[tokio::test]
async fn item_076_only_who_wants_answers_is_answered() {
    let relay = Shared::relay().await;
    for version in BOTH {
        for ack in [true, false] {
            let mut phone = relay.phone(version).await;
            join(&mut phone, "item76", json!({ "ack": ack }), false).await;
            let full = "realtime:item76";
            phone.send_as(refs("1", "push"), full, "broadcast", message("e", json!({}))).await;
            if version == Version::V2 {
                phone.send(kind_3(("1", "binary"), full, "e", "", 0, b"x")).await;
            }
            if ack {
                let reply = phone.reply_to(&json!("push")).await;
                assert_eq!((reply.payload, reply.join_ref), (ok(), shown(version, json!("1"))));
                if version == Version::V2 {
                    assert_eq!(phone.reply_to(&json!("binary")).await.payload, ok());
                }
            }
            let frames = phone.frames_so_far().await;
            assert!(frames.is_empty(), "{frames:#?}");
        }
    }
}

#[tokio::test]
async fn item_077_a_payload_above_the_limit_is_refused_and_the_channel_lives() {
    let scene = Scene::with(|config| config.gateway.max_payload_bytes = 2000).await;
    for version in BOTH {
        for ack in [true, false] {
            let (mut phone, mut other) = (scene.phone(version).await, scene.phone(version).await);
            join(&mut phone, "room", json!({ "ack": ack }), false).await;
            enter(&mut other, "room").await;
            let large = message("large", json!({ "x": "y".repeat(3000) }));
            phone.send_as(refs("1", "large"), "realtime:room", "broadcast", large).await;
            if ack {
                let reply = phone.reply_to(&json!("large")).await;
                assert_eq!(reply.payload, refused("payload_size_exceeded"));
            }
            phone.push("room", "broadcast", message("end", json!({}))).await;
            assert!(until_end(&mut other).await.is_empty());
        }
    }
}

#[tokio::test]
async fn item_079_fifty_messages_arrive_in_order() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item79{version:?}");
        let (mut one, mut two) = (relay.phone(version).await, relay.phone(version).await);
        enter(&mut one, &topic).await;
        enter(&mut two, &topic).await;
        for number in 0..50 {
            one.push(&topic, "broadcast", message("n", json!({ "number": number }))).await;
        }
        for number in 0..50 {
            assert_eq!(two.next_broadcast().await.payload["payload"]["number"], number);
        }
    }
}

/// Two rooms of these names, and nothing gets from one to the other.
async fn apart(public: &str, private: &str) {
    let scene = Scene::prepared(OPEN, |_| {}).await;
    for version in BOTH {
        let mut phones = Vec::new();
        for (topic, is_private) in [(public, false), (private, true)] {
            for user in [ALICE, BOB] {
                let mut phone = scene.phone_of(&token::user(user), version).await;
                join(&mut phone, topic, json!({}), is_private).await;
                phones.push(phone);
            }
        }
        for (sender, topic) in [(0, public), (2, private)] {
            phones[sender].push(topic, "broadcast", message("mine", json!({}))).await;
            let frame = phones[sender + 1].next_broadcast().await;
            assert_eq!((frame.topic, &frame.payload["event"]), (format!("realtime:{topic}"), &json!("mine")));
        }
        for (sender, topic) in [(0, public), (2, private)] {
            phones[sender].push(topic, "broadcast", message("end", json!({}))).await;
            assert!(until_end(&mut phones[sender + 1]).await.is_empty());
        }
    }
}

#[tokio::test]
async fn item_080_the_public_and_the_private_channel_of_a_name_do_not_mix() {
    apart("room", "room").await;
}

#[tokio::test]
async fn item_081_a_prefix_is_no_privacy() {
    apart("private:x", "x").await;
}

/// Its neighbour, that nothing else is answered, is in `topics.rs`.
#[tokio::test]
async fn item_038_after_an_event_that_nobody_knows_broadcasts_work() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        assert_eq!(phone.join("item38", &json!([])).await, joined());
        phone.push("item38", "dance", json!({})).await;
        join(&mut phone, "item38b", json!({ "self": true }), false).await;
        phone.push("item38b", "broadcast", message("end", json!({}))).await;
        assert!(until_end(&mut phone).await.is_empty());
    }
}
