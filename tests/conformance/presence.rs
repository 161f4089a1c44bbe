//! Items 36 and 135 to 150: who is present.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::stage::{BOTH, Scene, Shared, ok, refused, shown};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::{Phone, Version};

/// Of a socket that has ended.
const LEAVES_WITHIN: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(5);

/// Joins with this presence key.
async fn join(phone: &mut Phone, topic: &str, key: Value, enabled: bool) {
    let config = json!({ "presence": { "key": key, "enabled": enabled } });
    let reply = phone.join_with(topic, json!({ "config": config })).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

/// The answer to a presence message.
async fn presence(phone: &mut Phone, topic: &str, reference: &str, payload: Value) -> Value {
    let refs = (Value::Null, json!(reference));
    phone.send_as(refs, &format!("realtime:{topic}"), "presence", payload).await;
    phone.reply_to(&json!(reference)).await.payload
}

async fn track(phone: &mut Phone, topic: &str, reference: &str, payload: Value) {
    let message = json!({ "type": "presence", "event": "track", "payload": payload });
    assert_eq!(presence(phone, topic, reference, message).await, ok());
}

async fn diff(phone: &mut Phone, topic: &str) -> Value {
    phone.next_of(topic, "presence_diff").await.payload
}

/// A meta without its refs, which are strings.
fn bare(meta: &Value) -> Value {
    let mut meta = meta.as_object().expect("an object").clone();
    assert!(meta.remove("phx_ref").is_some_and(|reference| reference.is_string()));
    meta.remove("phx_ref_prev");
    Value::Object(meta)
}

#[tokio::test]
async fn item_036_a_presence_push_may_have_any_join_ref() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join(&mut phone, "item36", json!("k"), true).await;
        for (index, join_ref) in [Value::Null, json!("stale")].into_iter().enumerate() {
            let reference = json!(format!("r{index}"));
            let payload = json!({ "event": "track", "payload": { "n": index } });
            phone.send_as((join_ref, reference.clone()), "realtime:item36", "presence", payload).await;
            let reply = phone.reply_to(&reference).await;
            assert_eq!((reply.payload, reply.join_ref), (ok(), shown(version, json!("1"))));
        }
    }
}

#[tokio::test]
async fn item_135_the_state_follows_the_reply() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join(&mut phone, &format!("item135{version:?}"), json!(""), true).await;
        assert_eq!(phone.next_of(&format!("item135{version:?}"), "presence_state").await.payload, json!({}));
    }
}

#[tokio::test]
async fn item_136_without_presence_there_is_no_state() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let (mut off, mut on) = (relay.phone(version).await, relay.phone(version).await);
        let topic = format!("item136{version:?}");
        join(&mut off, &topic, json!("off"), false).await;
        join(&mut on, &topic, json!("on"), true).await;
        track(&mut on, &topic, "t", json!({})).await;
        // In a public room everybody hears of it; a state would have come before.
        let frame = off.next_frame().await;
        assert_eq!(frame.event, "presence_diff");
    }
}

#[tokio::test]
async fn item_137_tracking_is_answered_and_told_to_all() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item137{version:?}");
        let (mut one, mut two) = (relay.phone(version).await, relay.phone(Version::V2).await);
        join(&mut one, &topic, json!("u1"), true).await;
        join(&mut two, &topic, json!("u2"), true).await;
        track(&mut one, &topic, "t", json!({ "name": "ann" })).await;
        for phone in [&mut one, &mut two] {
            let diff = diff(phone, &topic).await;
            assert_eq!(bare(&diff["joins"]["u1"]["metas"][0]), json!({ "name": "ann" }));
            assert_eq!((diff["joins"].as_object().map(serde_json::Map::len), &diff["leaves"]), (Some(1), &json!({})));
        }
    }
}

#[tokio::test]
async fn item_138_who_names_no_key_gets_one_for_each_join() {
    let relay = Shared::relay().await;
    let mut keys = Vec::new();
    for version in BOTH {
        for key in [Value::Null, json!("")] {
            let mut phone = relay.phone(version).await;
            let topic = format!("item138{}", keys.len());
            join(&mut phone, &topic, key, true).await;
            for payload in [json!({ "n": 1 }), json!({ "n": 2 })] {
                track(&mut phone, &topic, &payload["n"].to_string(), payload).await;
                let diff = diff(&mut phone, &topic).await;
                keys.extend(diff["joins"].as_object().expect("an object").keys().cloned());
            }
        }
    }
    // After a join of the same connection it is another one.
    let mut phone = relay.phone(Version::V2).await;
    for _ in 0..2 {
        join(&mut phone, "item138", json!(""), true).await;
        for number in 0..2 {
            track(&mut phone, "item138", &number.to_string(), json!({ "n": number })).await;
            let diff = diff(&mut phone, "item138").await;
            keys.extend(diff["joins"].as_object().expect("an object").keys().cloned());
        }
        phone.leave("item138").await;
    }
    for own in keys.chunks(2) {
        assert!(own[0] == own[1] && own[0].len() == 36, "{own:?}");
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 6);
}

#[tokio::test]
async fn item_139_a_number_as_key_is_its_text() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item139{version:?}");
        let mut phone = relay.phone(version).await;
        join(&mut phone, &topic, json!(123), true).await;
        track(&mut phone, &topic, "t", json!({})).await;
        assert!(diff(&mut phone, &topic).await["joins"]["123"].is_object());
    }
}

#[tokio::test]
async fn item_140_the_same_again_is_no_news() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item140{version:?}");
        let mut phone = relay.phone(version).await;
        join(&mut phone, &topic, json!("k"), true).await;
        track(&mut phone, &topic, "a", json!({ "n": 1 })).await;
        let first = diff(&mut phone, &topic).await;
        track(&mut phone, &topic, "b", json!({ "n": 1 })).await;
        track(&mut phone, &topic, "c", json!({ "n": 2 })).await;
        let second = diff(&mut phone, &topic).await;
        let (before, after) = (&first["joins"]["k"]["metas"][0], &second["joins"]["k"]["metas"][0]);
        assert_eq!(bare(after), json!({ "n": 2 }));
        assert_eq!(after["phx_ref_prev"], before["phx_ref"]);
        assert_ne!(after["phx_ref"], before["phx_ref"]);
        assert_eq!(second["leaves"]["k"]["metas"], json!([before]));
    }
}

#[tokio::test]
async fn item_141_an_update_is_one_diff_with_both() {
    let relay = Shared::relay().await;
    let (mut one, mut two) = (relay.phone(Version::V2).await, relay.phone(Version::V1).await);
    join(&mut one, "item141", json!("k"), true).await;
    join(&mut two, "item141", json!("w"), true).await;
    track(&mut one, "item141", "a", json!({ "n": 1 })).await;
    let first = diff(&mut two, "item141").await;
    track(&mut one, "item141", "b", json!({ "n": 2 })).await;
    let second = diff(&mut two, "item141").await;
    assert_eq!(second["leaves"]["k"]["metas"], first["joins"]["k"]["metas"]);
    assert_eq!(second["joins"]["k"]["metas"][0]["phx_ref_prev"], first["joins"]["k"]["metas"][0]["phx_ref"]);
}

#[tokio::test]
async fn item_142_untracking_is_told_once() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item142{version:?}");
        let mut phone = relay.phone(version).await;
        join(&mut phone, &topic, json!("k"), true).await;
        track(&mut phone, &topic, "a", json!({ "n": 1 })).await;
        let joined = diff(&mut phone, &topic).await;
        for reference in ["b", "c"] {
            assert_eq!(presence(&mut phone, &topic, reference, json!({ "event": "untrack" })).await, ok());
        }
        let left = diff(&mut phone, &topic).await;
        assert_eq!((&left["joins"], &left["leaves"]), (&json!({}), &joined["joins"]));
        // The same again is news after that, and has nothing to do with what was there before.
        track(&mut phone, &topic, "d", json!({ "n": 1 })).await;
        let again = diff(&mut phone, &topic).await;
        let meta = &again["joins"]["k"]["metas"][0];
        assert_eq!((bare(meta), meta.get("phx_ref_prev"), &again["leaves"]), (json!({ "n": 1 }), None, &json!({})));
        assert_ne!(meta["phx_ref"], joined["joins"]["k"]["metas"][0]["phx_ref"]);
    }
}

#[tokio::test]
async fn item_143_a_socket_that_ends_leaves() {
    let relay = Shared::relay().await;
    for version in BOTH {
        for goodbye in [true, false] {
            let topic = format!("item143{version:?}{goodbye}");
            let mut two = relay.phone(version).await;
            join(&mut two, &topic, json!("two"), true).await;
            // A machine with too much to do may be late, and not each time.
            let mut took = Vec::new();
            while took.len() < 5 && took.iter().all(|took| *took >= LEAVES_WITHIN) {
                let mut one = relay.phone(version).await;
                join(&mut one, &topic, json!("one"), true).await;
                track(&mut one, &topic, "t", json!({})).await;
                let joined = diff(&mut two, &topic).await;
                let ended = Instant::now();
                if goodbye {
                    one.send(Message::Close(None)).await;
                } else {
                    drop(one);
                }
                assert_eq!(diff(&mut two, &topic).await["leaves"], joined["joins"]);
                took.push(ended.elapsed());
            }
            assert!(took.iter().any(|took| *took < LEAVES_WITHIN), "{took:?}");
        }
    }
}

/// Its network is gone: the connection stays open, and nothing more comes.
#[tokio::test]
async fn item_143_who_falls_silent_leaves_after_the_idle_timeout() {
    let scene = Scene::with(|config| config.gateway.idle_timeout = IDLE).await;
    let silent = async |version| {
        let topic = format!("item143{version:?}");
        let (mut one, mut two) = (scene.phone(version).await, scene.phone(version).await);
        join(&mut one, &topic, json!("one"), true).await;
        join(&mut two, &topic, json!("two"), true).await;
        track(&mut one, &topic, "t", json!({})).await;
        let joined = diff(&mut two, &topic).await;
        let begun = Instant::now();
        let left = loop {
            two.heartbeat().await;
            let diffs = two.frames_of(&topic).into_iter().find(|frame| frame.event == "presence_diff");
            if let Some(left) = diffs {
                break left.payload;
            }
            assert!(begun.elapsed() < IDLE + PATIENCE, "it is still present");
            pause().await;
        };
        assert_eq!(left["leaves"], joined["joins"]);
        assert!(begun.elapsed() > IDLE / 2, "not while it may still speak");
    };
    futures_util::future::join_all(BOTH.map(silent)).await;
}

#[tokio::test]
async fn item_144_one_key_may_have_several_metas() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item144{version:?}");
        let (mut one, mut two) = (relay.phone(version).await, relay.phone(version).await);
        for (phone, number) in [(&mut one, 1), (&mut two, 2)] {
            join(phone, &topic, json!("k"), true).await;
            track(phone, &topic, "t", json!({ "n": number })).await;
            diff(phone, &topic).await;
        }
        let mut late = relay.phone(version).await;
        join(&mut late, &topic, json!("late"), true).await;
        let state = late.next_of(&topic, "presence_state").await.payload;
        let mut metas: Vec<Value> = state["k"]["metas"].as_array().expect("a list").iter().map(bare).collect();
        metas.sort_by_key(|meta| meta["n"].as_i64());
        assert_eq!(metas, [json!({ "n": 1 }), json!({ "n": 2 })]);
        two.leave(&topic).await;
        let left = diff(&mut late, &topic).await;
        assert_eq!(left["leaves"]["k"]["metas"].as_array().map(Vec::len), Some(1));
        assert_eq!(bare(&left["leaves"]["k"]["metas"][0]), json!({ "n": 2 }));
    }
}

#[tokio::test]
async fn item_145_who_comes_late_sees_all() {
    let relay = Shared::relay().await;
    let mut phones = Vec::new();
    for number in 0..3 {
        let mut phone = relay.phone(Version::V2).await;
        join(&mut phone, "item145", json!(format!("k{number}")), true).await;
        track(&mut phone, "item145", "t", json!({ "n": number })).await;
        diff(&mut phone, "item145").await;
        phones.push(phone);
    }
    let mut late = relay.phone(Version::V1).await;
    join(&mut late, "item145", json!("late"), true).await;
    let state = late.next_of("item145", "presence_state").await.payload;
    for number in 0..3 {
        assert_eq!(bare(&state[format!("k{number}")]["metas"][0]), json!({ "n": number }));
    }
}

#[tokio::test]
async fn item_146_the_event_may_be_in_capitals() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item146{version:?}");
        let mut phone = relay.phone(version).await;
        join(&mut phone, &topic, json!("k"), true).await;
        assert_eq!(presence(&mut phone, &topic, "t", json!({ "event": "TRACK", "payload": {} })).await, ok());
        assert!(diff(&mut phone, &topic).await["joins"]["k"].is_object());
    }
}

#[tokio::test]
async fn item_147_what_is_no_object_is_refused_and_the_channel_lives() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join(&mut phone, "item147", json!("k"), true).await;
        for (index, payload) in [json!([1]), json!("x"), json!(5)].into_iter().enumerate() {
            let message = json!({ "event": "track", "payload": payload });
            let reply = presence(&mut phone, "item147", &format!("t{index}"), message).await;
            assert_eq!(reply, refused("Presence track payload must be a map"));
        }
        track(&mut phone, "item147", "ok", json!({})).await;
    }
}

#[tokio::test]
async fn item_148_an_event_that_nobody_knows_is_refused() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join(&mut phone, "item148", json!("k"), true).await;
        let reply = presence(&mut phone, "item148", "t", json!({ "event": "dance" })).await;
        assert_eq!(reply, json!({ "status": "error", "response": {} }));
        assert_eq!(presence(&mut phone, "item148", "u", json!({ "payload": {} })).await, ok());
    }
}

#[tokio::test]
async fn item_149_who_tracks_hears_of_others_from_then_on() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let topic = format!("item149{version:?}");
        let (mut off, mut on) = (relay.phone(version).await, relay.phone(version).await);
        join(&mut off, &topic, json!("off"), false).await;
        join(&mut on, &topic, json!("on"), true).await;
        track(&mut off, &topic, "t", json!({})).await;
        assert!(diff(&mut on, &topic).await["joins"]["off"].is_object());
        assert!(diff(&mut off, &topic).await["joins"]["off"].is_object());
        track(&mut on, &topic, "t", json!({})).await;
        assert!(diff(&mut off, &topic).await["joins"]["on"].is_object());
        assert!(off.frames_so_far().await.iter().all(|frame| frame.event != "presence_state"));
    }
}

/// In a private channel its right to read is asked for then.
#[tokio::test]
async fn item_149_who_tracks_in_a_private_channel_hears_of_others_from_then_on() {
    let relay = Shared::relay().await;
    for (version, topic) in BOTH.into_iter().zip(["open 149", "open 150"]) {
        let (mut off, mut on) = (relay.phone(version).await, relay.phone(version).await);
        for (phone, key, enabled) in [(&mut off, "off", false), (&mut on, "on", true)] {
            let config = json!({ "private": true, "presence": { "key": key, "enabled": enabled } });
            assert_eq!(phone.join_with(topic, json!({ "config": config })).await["status"], "ok");
        }
        track(&mut on, topic, "t", json!({ "n": 1 })).await;
        assert!(diff(&mut on, topic).await["joins"]["on"].is_object());
        track(&mut off, topic, "t", json!({})).await;
        assert!(diff(&mut on, topic).await["joins"]["off"].is_object());
        assert!(diff(&mut off, topic).await["joins"]["off"].is_object(), "the first that it hears is its own");
        track(&mut on, topic, "u", json!({ "n": 2 })).await;
        assert_eq!(bare(&diff(&mut off, topic).await["joins"]["on"]["metas"][0]), json!({ "n": 2 }));
        assert!(off.frames_so_far().await.iter().all(|frame| frame.event != "presence_state"));
    }
}

#[tokio::test]
async fn item_150_too_many_calls_end_the_channel() {
    let scene = Scene::with(|config| config.gateway.max_presence_calls = 3).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        join(&mut phone, "room", json!("k"), true).await;
        for number in 0..3 {
            track(&mut phone, "room", &number.to_string(), json!({ "n": number })).await;
        }
        phone.push("room", "presence", json!({ "event": "untrack" })).await;
        let system = phone.system("room").await;
        let expected = json!({ "extension": "system", "status": "error", "channel": "room",
                               "message": "Client presence rate limit exceeded" });
        assert_eq!(system, expected);
        phone.channel_closed("room").await;
    }
}
