//! Items 106 to 113: when broadcasts from the database flow, and what is replayed.

use rowcast::clock::Clock;
use serde_json::{Value, json};

use super::stage::{BOTH, Scene, refused};
use crate::support::{Phone, Version};

const OPEN: &str = "create policy r on realtime.messages for select to authenticated using (true);";

async fn join(phone: &mut Phone, topic: &str, broadcast: Value, private: bool) -> Value {
    phone.join_with(topic, json!({ "config": { "private": private, "broadcast": broadcast } })).await
}

/// A message that was stored so many seconds ago.
async fn store(scene: &Scene, topic: &str, event: &str, seconds: u32) {
    scene
        .pg
        .exec(&format!(
            "insert into realtime.messages (topic, extension, event, private, payload, inserted_at) values \
             ('{topic}', 'broadcast', '{event}', true, '{{\"n\": 1}}', now() at time zone 'utc' - interval '{seconds} s')"
        ))
        .await;
}

#[tokio::test]
async fn item_106_who_asks_is_told_when_the_stream_flows() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let reply = join(&mut phone, "room", json!({ "replication_ready": true }), false).await;
        assert_eq!(reply["status"], "ok");
        let expected = json!({ "extension": "system", "status": "ok", "channel": "room",
                               "message": "Replication connection established" });
        assert_eq!(phone.system("room").await, expected);
    }
}

#[tokio::test]
async fn item_107_who_does_not_ask_is_not_told() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        join(&mut phone, "room", json!({}), false).await;
        join(&mut phone, "told", json!({ "replication_ready": true }), false).await;
        phone.system("told").await;
        assert!(phone.frames_of("room").is_empty());
    }
}

#[tokio::test]
async fn item_108_the_newest_are_replayed_oldest_first() {
    let scene = Scene::prepared(OPEN, |_| {}).await;
    for (event, seconds) in [("one", 30), ("two", 20), ("three", 10)] {
        store(&scene, "room", event, seconds).await;
    }
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let reply = join(&mut phone, "room", json!({ "replay": { "since": 0, "limit": 2 } }), true).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        for event in ["two", "three"] {
            let frame = phone.next_broadcast().await;
            assert_eq!((&frame.payload["event"], &frame.payload["payload"]["n"]), (&json!(event), &json!(1)));
            assert_eq!(frame.payload["meta"]["replayed"], true);
            assert_eq!(frame.payload["meta"]["id"].as_str().map(str::len), Some(36));
        }
        assert!(phone.frames_so_far().await.is_empty());
        phone.leave("room").await;
        // Before the state of presence, behind the reply.
        let config =
            json!({ "private": true, "presence": { "enabled": true }, "broadcast": { "replay": { "since": 0 } } });
        phone.push_join("room", json!({ "config": config })).await;
        let frames = phone.next_of("room", "presence_state").await;
        assert_eq!(frames.payload, json!({}));
        let before: Vec<String> = phone.frames_of("room").into_iter().map(|frame| frame.event).collect();
        assert_eq!(before, ["phx_reply", "broadcast", "broadcast", "broadcast"]);
    }
}

#[tokio::test]
async fn item_109_what_is_older_is_not_replayed_and_never_more_than_25() {
    let scene = Scene::prepared(OPEN, |_| {}).await;
    store(&scene, "room", "old", 3600).await;
    for _ in 0..30 {
        store(&scene, "room", "new", 60).await;
    }
    let since = Clock::system().unix_millis() - 600_000;
    for (version, since, expected) in [(Version::V1, 0, 25), (Version::V2, since, 25)] {
        let mut phone = scene.phone(version).await;
        join(&mut phone, "room", json!({ "replay": { "since": since, "limit": 100 } }), true).await;
        let frames = phone.frames_so_far().await;
        assert_eq!(frames.len(), expected);
        assert!(frames.iter().all(|frame| frame.payload["event"] == "new"));
    }
    store(&scene, "other", "old", 3600).await;
    store(&scene, "other", "new", 60).await;
    let mut phone = scene.phone(Version::V2).await;
    join(&mut phone, "other", json!({ "replay": { "since": since } }), true).await;
    let frames = phone.frames_so_far().await;
    assert_eq!((frames.len(), &frames[0].payload["event"]), (1, &json!("new")));
}

#[tokio::test]
async fn item_110_a_replay_is_text_with_the_join_ref_and_bytes_are_binary() {
    let scene = Scene::prepared(OPEN, |_| {}).await;
    store(&scene, "room", "text", 20).await;
    scene.pg.exec("select realtime.send_binary('\\xdead', 'bytes', 'room', true)").await;
    let replay = json!({ "replay": { "since": 0 } });
    let mut phone = scene.phone(Version::V2).await;
    join(&mut phone, "room", replay.clone(), true).await;
    let text = phone.next_broadcast().await;
    assert_eq!((&text.binary, &text.join_ref, &text.payload["event"]), (&None, &json!("1"), &json!("text")));
    let bytes = phone.next_broadcast().await.binary.expect("a binary frame");
    let meta: Value = serde_json::from_str(&bytes.metadata).expect("JSON");
    assert_eq!((bytes.encoding, &*bytes.payload, &meta["replayed"]), (0, &b"\xde\xad"[..], &json!(true)));
    let mut phone = scene.phone(Version::V1).await;
    join(&mut phone, "room", replay, true).await;
    let frames = phone.frames_so_far().await;
    assert_eq!((frames.len(), &frames[0].payload["event"]), (1, &json!("text")));
}

#[tokio::test]
async fn item_111_a_public_channel_has_no_replay() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let reply = join(&mut phone, "room", json!({ "replay": { "since": 0 } }), false).await;
        assert_eq!(reply, refused("UnableToReplayMessages: Replay is not allowed for public channels"));
    }
}

#[tokio::test]
async fn item_112_replay_needs_whole_numbers() {
    let scene = Scene::prepared(OPEN, |_| {}).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let missing = [json!({}), json!({ "since": null }), json!({ "limit": 2 }), json!([]), json!(5)];
        let strange =
            [json!("5"), json!(5.5), json!(-1), json!(true), json!(1e30)].map(|since| json!({ "since": since }));
        let limits = [json!("2"), json!(2.5), json!({})].map(|limit| json!({ "since": 5, "limit": limit }));
        for replay in missing.into_iter().chain(strange).chain(limits) {
            let reply = join(&mut phone, "room", json!({ "replay": replay }), true).await;
            assert_eq!(reply, refused("UnableToReplayMessages: Replay params are not valid"), "{replay}");
        }
        assert_eq!(join(&mut phone, "room", json!({ "replay": { "since": 5 } }), true).await["status"], "ok");
    }
}

/// Who joins for presence alone may read none of what is stored.
#[tokio::test]
async fn item_112_a_replay_needs_the_right_to_read_broadcasts() {
    let sql = "create policy r on realtime.messages for select to authenticated using (extension = 'presence')";
    let scene = Scene::prepared(sql, |_| {}).await;
    store(&scene, "room", "secret", 20).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let mut config = json!({ "private": true, "presence": { "enabled": true } });
        assert_eq!(phone.join_with("room", json!({ "config": config })).await["status"], "ok");
        phone.next_of("room", "presence_state").await;
        config["broadcast"] = json!({ "replay": { "since": 0 } });
        let text = "Unauthorized: You do not have permissions to read from this Channel topic: room";
        assert_eq!(phone.join_with("room", json!({ "config": config })).await, refused(text));
    }
}

#[tokio::test]
async fn item_113_what_is_replayed_does_not_come_again() {
    let scene = Scene::prepared(OPEN, |_| {}).await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        scene.pg.exec(&format!("select realtime.send('{{}}', 'once', '{topic}', true)")).await;
        let mut phone = scene.phone(version).await;
        join(&mut phone, &topic, json!({ "replay": { "since": 0 } }), true).await;
        scene.pg.exec(&format!("select realtime.send('{{}}', 'end', '{topic}', true)")).await;
        let events =
            [phone.next_broadcast().await, phone.next_broadcast().await].map(|frame| frame.payload["event"].clone());
        assert_eq!(events, ["once", "end"]);
    }
}
