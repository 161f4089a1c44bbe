//! Items 28 to 39: heartbeats, which frame carries which refs, and names of topics.

use std::time::Duration;

use serde_json::{Value, json};

use super::stage::{BOTH, Scene, Shared, assert_joined, joined, ok, refs, refused, shown, watching};
use crate::support::Version;
use crate::support::token::ALICE;

#[tokio::test]
async fn item_028_a_heartbeat_is_answered_with_its_ref() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        phone.send_as((Value::Null, json!("5")), "phoenix", "heartbeat", json!({})).await;
        let reply = phone.next_frame().await;
        assert_eq!((&*reply.event, &*reply.topic, reply.reference), ("phx_reply", "phoenix", json!("5")));
        assert_eq!((reply.join_ref, reply.payload), (Value::Null, ok()));
    }
}

#[tokio::test]
async fn item_029_a_heartbeat_without_a_ref_is_answered_without_one() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        phone.send_as((Value::Null, Value::Null), "phoenix", "heartbeat", json!({})).await;
        let reply = phone.next_frame().await;
        assert_eq!((&*reply.event, &*reply.topic, reply.reference), ("phx_reply", "phoenix", Value::Null));
        assert_eq!(reply.payload, ok());
    }
}

#[tokio::test]
async fn item_030_a_heartbeat_does_not_wait_for_joins() {
    let hold = Duration::from_secs(1);
    let scene = Scene::with(|config| config.gateway.join_failure_delay = hold).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let sent = tokio::time::Instant::now();
        for topic in ["a", "b", "c"] {
            let payload = json!({ "access_token": "potato" });
            phone.send_as(refs(topic, topic), &format!("realtime:{topic}"), "phx_join", payload).await;
        }
        // The answers to the joins are held back for a second, so what comes before them came within that second.
        phone.heartbeat().await;
        let before = phone.frames_of("a").len() + phone.frames_of("b").len() + phone.frames_of("c").len();
        assert_eq!(before, 0, "{version:?}");
        for topic in ["a", "b", "c"] {
            assert_eq!(phone.reply_to(&json!(topic)).await.payload["status"], "error");
        }
        assert!(sent.elapsed() >= hold, "{version:?}");
    }
}

#[tokio::test]
async fn item_031_a_topic_without_the_prefix_matches_nothing() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        phone.send_as(refs("j", "r"), "foo", "phx_join", json!({ "config": {} })).await;
        let reply = phone.next_frame().await;
        assert_eq!((&*reply.event, &*reply.topic, reply.reference), ("phx_reply", "foo", json!("r")));
        assert_eq!((reply.join_ref, reply.payload), (Value::Null, refused("unmatched topic")));
    }
}

#[tokio::test]
async fn item_032_a_topic_must_have_a_name() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let reply = phone.join_with("", json!({ "config": {} })).await;
        assert_eq!(reply, refused("TopicNameRequired: You must provide a topic name"));
    }
}

#[tokio::test]
async fn item_033_a_push_to_a_topic_that_was_never_joined_matches_nothing() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let payload = json!({ "type": "broadcast", "event": "e", "payload": {} });
        phone.send_as((Value::Null, json!("r")), "realtime:nowhere", "broadcast", payload).await;
        let reply = phone.next_frame().await;
        assert_eq!((&*reply.event, &*reply.topic, reply.reference), ("phx_reply", "realtime:nowhere", json!("r")));
        assert_eq!((reply.join_ref, reply.payload), (Value::Null, refused("unmatched topic")));
    }
}

#[tokio::test]
async fn item_034_a_reply_has_both_refs_of_the_join_and_later_frames_its_join_ref() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let config = json!({ "config": { "postgres_changes": watching() } });
        phone.send_as(refs("4", "9"), "realtime:room", "phx_join", config).await;
        let reply = phone.next_frame().await;
        assert_eq!((&*reply.event, reply.reference), ("phx_reply", json!("9")));
        assert_eq!(reply.join_ref, shown(version, json!("4")));
        let system = phone.next_frame().await;
        assert_eq!((&*system.event, system.reference), ("system", Value::Null));
        assert_eq!(system.join_ref, shown(version, json!("4")));
    }
}

#[tokio::test]
async fn item_035_a_join_without_a_join_ref_is_known_by_its_ref() {
    let relay = Shared::relay().await;
    let mut phone = relay.phone(Version::V2).await;
    let config = json!({ "config": { "presence": { "enabled": true } } });
    phone.send_as((Value::Null, json!("3")), "realtime:room", "phx_join", config).await;
    let reply = phone.next_frame().await;
    assert_eq!((&*reply.event, reply.join_ref, reply.reference), ("phx_reply", Value::Null, json!("3")));
    let state = phone.next_frame().await;
    assert_eq!((&*state.event, state.join_ref, state.reference), ("presence_state", json!("3"), Value::Null));
}

#[tokio::test]
async fn item_038_an_event_that_nobody_knows_has_no_effect() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        assert_eq!(phone.join("room", &json!([])).await, joined());
        for event in ["dance", "postgres_changes", "system", "presence_state", "phx_reply", ""] {
            phone.push("room", event, json!({ "type": event })).await;
        }
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
        assert_joined(&mut phone, "realtime:room").await;
    }
}

/// Its other half, that broadcasts reach such topics, waits for broadcasts.
#[tokio::test]
async fn item_039_names_of_topics_are_left_as_they_are() {
    let long = "ä".repeat(100);
    let topics = ["room:1:lobby", "two words", "zażółć gęślą 🙂", "\"quoted\" \\ {}", "*", long.as_str()];
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        for topic in topics {
            phone.subscribe(topic, &watching()).await;
        }
        scene.notify(ALICE, "n").await;
        let mut received = Vec::new();
        for _ in topics {
            received.push(phone.next_change().await.topic);
        }
        received.sort();
        let mut expected = topics.to_vec();
        expected.sort_unstable();
        assert_eq!(received, expected);
        for topic in topics {
            phone.leave(topic).await;
        }
    }
}
