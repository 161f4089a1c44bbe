//! Items 40 to 66: joining and leaving.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::stage::{BOTH, Scene, Shared, assert_joined, joined, ok, refs, refused, shown, summary, watching};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{self, Phone, Version};

/// The `postgres_changes` of a good join reply.
async fn entries_of(phone: &mut Phone, topic: &str, entries: &Value) -> Vec<Value> {
    let reply = phone.join(topic, entries).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    reply["response"]["postgres_changes"].as_array().expect("a list").clone()
}

/// Joins an empty channel with a ref of the test's own for both.
async fn join_as(phone: &mut Phone, topic: &str, name: &str) {
    phone.send_as(refs(name, name), topic, "phx_join", json!({ "config": {} })).await;
}

/// A join with this token is refused for this reason, or one that begins so, and nothing follows.
async fn assert_refused(token: &str, reason: &str) {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let reply = phone.join_with("room", json!({ "config": {}, "access_token": token })).await;
        let text = reply["response"]["reason"].as_str().expect("a text").to_owned();
        assert_eq!(reply, refused(&text));
        assert!(text.starts_with(reason), "{text}");
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
    }
}

#[tokio::test]
async fn item_040_an_empty_config_joins_with_an_empty_list() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        assert_eq!(phone.join_with("room", json!({ "config": {} })).await, joined());
    }
}

#[tokio::test]
async fn item_041_broadcast_and_presence_may_be_null() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let config = json!({ "broadcast": null, "presence": null, "private": false, "postgres_changes": [] });
        assert_eq!(phone.join_with("room", json!({ "config": config })).await, joined());
        assert_joined(&mut phone, "realtime:room").await;
    }
}

#[tokio::test]
async fn item_042_booleans_may_be_words() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        for (topic, word) in [("no", "false"), ("NO", "False"), ("yes", "True"), ("YES", "TRUE")] {
            let config = json!({ "presence": { "enabled": word }, "private": "false", "broadcast": { "ack": word } });
            assert_eq!(phone.join_with(topic, json!({ "config": config })).await, joined());
        }
        // States come in order, so those of the first two would be here by now.
        for topic in ["yes", "YES"] {
            phone.next_of(topic, "presence_state").await;
        }
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
    }
}

#[tokio::test]
async fn item_043_null_entries_are_none() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        for (topic, entries) in [("list", json!([null])), ("null", Value::Null)] {
            assert_eq!(phone.join(topic, &entries).await, joined());
        }
        // A subscription that was asked for later is confirmed: theirs would have been, too.
        phone.subscribe("room", &watching()).await;
        scene.mark(&format!("{version:?}")).await;
        phone.expect_nothing_before(&format!("{version:?}")).await;
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
    }
}

#[tokio::test]
async fn item_044_the_reply_lists_both_entries_in_order_as_they_were_sent() {
    let relay = Shared::relay().await;
    let entries = json!([
        { "event": "INSERT", "schema": "public", "table": "notifications", "filter": "kind=eq.x" },
        { "table": "marks", "schema": "public", "event": "*" },
    ]);
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let listed = entries_of(&mut phone, "room", &entries).await;
        assert_eq!(listed.len(), 2);
        for (listed, sent) in listed.iter().zip(entries.as_array().expect("a list")) {
            let mut listed = listed.as_object().expect("an object").clone();
            let id = listed.remove("id").expect("an id");
            assert!(id.is_i64() || id.is_u64(), "{id}");
            assert_eq!(Value::Object(listed), *sent);
        }
    }
}

#[tokio::test]
async fn item_045_an_unknown_key_of_an_entry_is_echoed() {
    let relay = Shared::relay().await;
    let extra = json!({ "deep": [1, null, { "ä": "\"" }], "number": 1.5 });
    let entries = json!([{ "event": "*", "schema": "public", "table": "marks", "extra": extra }]);
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let listed = entries_of(&mut phone, "room", &entries).await;
        assert_eq!(listed[0]["extra"], extra);
        assert_eq!(listed[0].as_object().expect("an object").len(), 5);
        phone.subscribed("room").await;
    }
}

/// Entries that differ in one field each.
fn various() -> Value {
    json!([
        { "event": "*", "schema": "public", "table": "marks" },
        { "event": "INSERT", "schema": "public", "table": "marks" },
        { "event": "*", "schema": "public", "table": "notifications" },
        { "event": "*", "schema": "public" },
        { "event": "*", "schema": "other", "table": "marks" },
        { "event": "*", "schema": "public", "table": "marks", "filter": "id=eq.1" },
        { "event": "*", "schema": "public", "table": "marks", "filter": "id=eq.2" },
        { "event": "*", "schema": "public", "table": "marks", "select": ["id"] },
    ])
}

#[tokio::test]
async fn item_046_different_entries_have_different_ids() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let listed = entries_of(&mut phone, "room", &various()).await;
        let ids: HashSet<i64> = listed.iter().map(|entry| entry["id"].as_i64().expect("an integer")).collect();
        assert_eq!(ids.len(), listed.len());
    }
}

#[tokio::test]
async fn item_047_ids_fit_a_positive_signed_integer_of_32_bits() {
    let relay = Shared::relay().await;
    let filters =
        (0..100).map(|n| json!({ "event": "*", "schema": "public", "table": "marks", "filter": format!("id=eq.{n}") }));
    let entries = Value::Array(filters.collect());
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        for entry in entries_of(&mut phone, "room", &entries).await {
            let id = entry["id"].as_i64().expect("an integer");
            assert!((1..=2_147_483_647).contains(&id), "{id}");
        }
    }
}

#[tokio::test]
async fn item_048_an_expired_token_does_not_join() {
    assert_refused(&token::expired(ALICE), "InvalidJWTToken: Token has expired ").await;
}

#[tokio::test]
async fn item_049_what_is_no_token_does_not_join() {
    assert_refused("potato", "MalformedJWT: The token provided is not a valid JWT").await;
}

#[tokio::test]
async fn item_050_a_token_without_a_role_does_not_join() {
    let token = token::raw(&json!({ "alg": "HS256" }), &json!({ "exp": 4_000_000_000_i64, "sub": ALICE }));
    assert_refused(&token, "InvalidJWTToken: Fields `role` and `exp` are required in JWT").await;
}

#[tokio::test]
async fn item_051_a_forged_token_does_not_join() {
    let other = "another secret, also of more than thirty-two bytes";
    let claims = json!({ "role": "authenticated", "exp": 4_000_000_000_i64, "sub": ALICE });
    let token = token::signed_with(other, &json!({ "alg": "HS256" }), &claims);
    assert_refused(&token, "JwtSignatureError: Failed to validate JWT signature").await;
}

/// Joined with this payload, a connection with this token gets the rows of Alice and none of Bob's.
async fn assert_speaks_as_alice(connection: &str, tokens: Value) {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = Phone::connect(&scene.relay.base(), connection, version).await;
        let mut payload = tokens.clone();
        payload["config"] = json!({ "postgres_changes": watching() });
        assert_eq!(phone.join_with("room", payload).await["status"], "ok");
        phone.subscribed("room").await;
        scene.notify(BOB, "his").await;
        scene.notify(ALICE, "hers").await;
        scene.mark(&format!("{version:?}")).await;
        let received = phone.changes_before(&format!("{version:?}")).await;
        assert_eq!(support::summary(&received, "kind"), ["INSERT hers"], "{version:?}");
    }
}

#[tokio::test]
async fn item_052_with_an_opaque_key_the_connections_token_speaks() {
    assert_speaks_as_alice(&token::user(ALICE), json!({ "access_token": "sb_publishable_x" })).await;
}

#[tokio::test]
async fn item_053_without_a_token_the_connections_speaks() {
    assert_speaks_as_alice(&token::user(ALICE), json!({})).await;
}

#[tokio::test]
async fn item_054_a_user_token_alone_speaks() {
    assert_speaks_as_alice(&token::role("anon"), json!({ "user_token": token::user(ALICE) })).await;
}

#[tokio::test]
async fn item_055_nothing_follows_a_refused_join_and_the_topic_can_be_joined_later() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let reply = phone.join_with("room", json!({ "config": {}, "access_token": "potato" })).await;
        assert_eq!(reply["status"], "error");
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
        assert_eq!(phone.join("room", &json!([])).await, joined());
        assert_joined(&mut phone, "realtime:room").await;
    }
}

#[tokio::test]
async fn item_056_a_second_join_is_answered_before_the_first_is_closed() {
    let relay = Shared::relay().await;
    let topic = "realtime:room";
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join_as(&mut phone, topic, "first").await;
        join_as(&mut phone, topic, "second").await;
        let frames = phone.frames_so_far().await;
        // Decision 4: a Python client, which speaks version 1, takes any close for the new channel's end.
        let expected = ["phx_reply \"first\"", "phx_reply \"second\"", "phx_close \"first\""];
        assert_eq!(summary(&frames), expected[..if version == Version::V2 { 3 } else { 2 }]);
        if let Some(closed) = frames.get(2) {
            assert_eq!((&closed.join_ref, &closed.payload), (&shown(version, json!("first")), &json!({})));
        }
        phone.send_as((Value::Null, json!("a")), "realtime:py", "phx_join", json!({ "config": {} })).await;
        phone.send_as((Value::Null, json!("b")), "realtime:py", "phx_join", json!({ "config": {} })).await;
        assert_eq!(summary(&phone.frames_so_far().await), ["phx_reply \"a\"", "phx_reply \"b\""]);
    }
}

/// For a broadcast this waits for broadcasts; a change must arrive once just so.
#[tokio::test]
async fn item_057_after_a_second_join_everything_arrives_once() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        phone.subscribe("room", &watching()).await;
        phone.subscribe("room", &watching()).await;
        scene.notify(ALICE, "once").await;
        scene.mark(&format!("{version:?}")).await;
        let received = phone.changes_before(&format!("{version:?}")).await;
        assert_eq!(support::summary(&received, "kind"), ["INSERT once"]);
    }
}

#[tokio::test]
async fn item_058_leaving_is_answered_and_then_closed_with_the_joins_ref() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join_as(&mut phone, "realtime:room", "j").await;
        phone.send_as(refs("j", "l"), "realtime:room", "phx_leave", json!({})).await;
        let frames = phone.frames_so_far().await;
        assert_eq!(summary(&frames), ["phx_reply \"j\"", "phx_reply \"l\"", "phx_close \"j\""]);
        assert_eq!((&frames[1].payload, &frames[2].payload), (&ok(), &json!({})));
        assert!(frames.iter().all(|frame| frame.join_ref == shown(version, json!("j"))), "{frames:#?}");
    }
}

#[tokio::test]
async fn item_059_leaving_what_is_not_joined_is_answered_and_no_more() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        phone.send_as(refs("j", "l"), "realtime:room", "phx_leave", json!({})).await;
        let frames = phone.frames_so_far().await;
        assert_eq!(summary(&frames), ["phx_reply \"l\""]);
        assert_eq!((&frames[0].join_ref, &frames[0].payload), (&shown(version, json!("j")), &ok()));
    }
}

#[tokio::test]
async fn item_060_leaving_with_a_null_join_ref_leaves() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join_as(&mut phone, "realtime:room", "j").await;
        phone.send_as((Value::Null, json!("l")), "realtime:room", "phx_leave", json!({})).await;
        let frames = phone.frames_so_far().await;
        assert_eq!(summary(&frames), ["phx_reply \"j\"", "phx_reply \"l\"", "phx_close \"j\""]);
    }
}

#[tokio::test]
async fn item_061_leaving_with_a_stale_join_ref_has_no_effect() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        join_as(&mut phone, "realtime:room", "j").await;
        phone.send_as(refs("stale", "l"), "realtime:room", "phx_leave", json!({})).await;
        assert_eq!(summary(&phone.frames_so_far().await), ["phx_reply \"j\""]);
        assert_joined(&mut phone, "realtime:room").await;
    }
}

/// For broadcasts this waits for broadcasts; changes must cease just so.
#[tokio::test]
async fn item_062_after_leaving_nothing_arrives_and_joining_again_works() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        phone.subscribe("room", &watching()).await;
        phone.subscribe("witness", &watching()).await;
        phone.leave("room").await;
        scene.notify(ALICE, "n").await;
        let change = phone.next_change().await;
        assert_eq!((&*change.topic, &change.record()["kind"]), ("witness", &json!("n")));
        phone.subscribe("room", &watching()).await;
        scene.notify(ALICE, "n").await;
        let mut topics = [phone.next_change().await.topic, phone.next_change().await.topic];
        topics.sort();
        assert_eq!(topics, ["room", "witness"]);
        assert!(phone.frames_so_far().await.is_empty());
    }
}

#[tokio::test]
async fn item_063_a_channel_above_the_limit_is_refused_until_there_is_room() {
    let scene = Scene::with(|config| config.gateway.max_channels = 3).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        for topic in ["a", "b", "c"] {
            assert_eq!(phone.join(topic, &json!([])).await, joined());
        }
        let reply = phone.join("d", &json!([])).await;
        assert_eq!(reply, refused("ChannelRateLimitReached: Too many channels"));
        // Another connection has a limit of its own.
        assert_eq!(scene.phone(version).await.join("d", &json!([])).await, joined());
        phone.leave("b").await;
        assert_eq!(phone.join("d", &json!([])).await, joined());
    }
}

/// Its other half, that a private channel works, waits for private channels.
#[tokio::test]
async fn item_064_where_all_is_private_a_public_channel_is_refused() {
    let scene = Scene::with(|config| config.gateway.private_only = true).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let reply = phone.join("room", &json!([])).await;
        assert_eq!(reply, refused("PrivateOnly: This project only allows private channels"));
    }
}

#[tokio::test]
async fn item_066_a_hundred_joins_at_once_are_answered_within_ten_seconds() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        let sent = Instant::now();
        for number in 0..100 {
            let (name, payload) = (format!("j{number}"), json!({ "config": { "postgres_changes": watching() } }));
            phone.send_as(refs(&name, &name), &format!("realtime:{number}"), "phx_join", payload).await;
        }
        for number in 0..100 {
            let reply = phone.reply_to(&json!(format!("j{number}"))).await;
            assert_eq!(reply.payload["status"], "ok", "{number}");
        }
        assert!(sent.elapsed() < Duration::from_secs(10), "{version:?}: {:?}", sent.elapsed());
        for number in 0..100 {
            phone.subscribed(&number.to_string()).await;
        }
    }
}
