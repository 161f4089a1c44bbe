//! Items 64, 114 to 128, 133, 151 and 152: private channels, under policies that are there before the relay.

use serde_json::{Value, json};

use super::stage::{BOTH, Scene, joined, ok, refused};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, Version, without_cursor};

/// A policy for reading, and one for writing.
fn policies(using: &str, check: &str) -> String {
    format!(
        "create policy r on realtime.messages for select to authenticated using ({using}); \
         create policy w on realtime.messages for insert to authenticated with check ({check});"
    )
}

fn config(more: Value) -> Value {
    let mut config = json!({ "private": true });
    config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    json!({ "config": config })
}

async fn join(phone: &mut Phone, topic: &str, more: Value) -> Value {
    phone.join_with(topic, config(more)).await
}

fn unauthorized(topic: &str) -> Value {
    refused(&format!("Unauthorized: You do not have permissions to read from this Channel topic: {topic}"))
}

fn message(event: &str) -> Value {
    json!({ "type": "broadcast", "event": event, "payload": {} })
}

/// The events of all broadcasts before the one with event `end`.
async fn until_end(phone: &mut Phone) -> Vec<String> {
    let mut before = Vec::new();
    loop {
        let event = phone.next_broadcast().await.payload["event"].as_str().expect("a name").to_owned();
        if event == "end" {
            return before;
        }
        before.push(event);
    }
}

fn system(topic: &str, message: &str) -> Value {
    json!({ "extension": "system", "status": "error", "message": message, "channel": topic })
}

#[tokio::test]
async fn item_064_where_all_is_private_a_private_channel_works() {
    let scene = Scene::prepared(&policies("true", "true"), |config| config.gateway.private_only = true).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        assert_eq!(join(&mut phone, "room", json!({})).await["status"], "ok");
    }
}

#[tokio::test]
async fn item_114_without_policies_nobody_may_read() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        assert_eq!(join(&mut phone, "room", json!({})).await, unauthorized("room"));
        assert_eq!(phone.join("room", &json!([])).await, joined(), "the public one is another");
    }
}

#[tokio::test]
async fn item_115_a_policy_may_name_the_topic() {
    let scene = Scene::prepared(&policies("realtime.topic() = 'a'", "false"), |_| {}).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let reply = join(&mut phone, "a", json!({})).await;
        assert_eq!(json!({ "status": "ok", "response": without_cursor(reply["response"].clone()) }), joined());
        assert_eq!(join(&mut phone, "b", json!({})).await, unauthorized("b"));
    }
}

#[tokio::test]
async fn item_116_who_may_read_presence_alone_gets_no_broadcasts() {
    let sql = "create policy r on realtime.messages for select to authenticated \
                   using (extension = 'presence' or (select auth.uid()) = 'b0b00000-0000-4000-8000-000000000001'); \
               create policy w on realtime.messages for insert to authenticated with check (true);";
    let scene = Scene::prepared(sql, |_| {}).await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        let mut alice = scene.phone(version).await;
        assert_eq!(join(&mut alice, &topic, json!({})).await, unauthorized(&topic));
        let presence = json!({ "presence": { "enabled": true, "key": "alice" }, "broadcast": { "self": true } });
        assert_eq!(join(&mut alice, &topic, presence).await["status"], "ok");
        alice.next_of(&topic, "presence_state").await;
        let mut bob = scene.phone_of(&token::user(BOB), version).await;
        let presence = json!({ "presence": { "enabled": true, "key": "bob" } });
        assert_eq!(join(&mut bob, &topic, presence).await["status"], "ok");
        alice.push(&topic, "broadcast", message("end")).await;
        assert!(until_end(&mut bob).await.is_empty());
        // It has been sent to all who may read it, herself not among them.
        bob.push(&topic, "presence", json!({ "event": "track", "payload": {} })).await;
        let frames = alice.next_of(&topic, "presence_diff").await;
        assert!(frames.payload["joins"]["bob"].is_object());
        assert!(alice.frames_so_far().await.iter().all(|frame| frame.event != "broadcast"));
    }
}

/// A row of `marks`, which comes in one order with what the database broadcasts, proves that nothing was.
#[tokio::test]
async fn item_116_who_may_read_presence_alone_gets_nothing_that_the_database_sends() {
    for using in ["extension = 'presence'", "extension = 'presence' and random() >= 0"] {
        let scene = Scene::prepared(&policies(using, "true"), |_| {}).await;
        for version in BOTH {
            let mut phone = scene.phone(version).await;
            let entry = json!([{ "event": "*", "schema": "public", "table": "marks" }]);
            let more = json!({ "presence": { "enabled": true }, "postgres_changes": entry });
            assert_eq!(join(&mut phone, "room", more).await["status"], "ok");
            phone.next_of("room", "presence_state").await;
            phone.subscribed("room").await;
            scene.pg.exec("select realtime.send('{}', 'secret', 'room', true)").await;
            scene.mark("end").await;
            phone.expect_nothing_before("end").await;
            let frames = phone.frames_so_far().await;
            assert!(frames.is_empty(), "{using}: {frames:#?}");
        }
    }
}

#[tokio::test]
async fn item_117_presence_that_is_off_opens_nothing() {
    let scene = Scene::prepared(&policies("extension = 'presence'", "true"), |_| {}).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        assert_eq!(join(&mut phone, "room", json!({})).await, unauthorized("room"));
    }
}

#[tokio::test]
async fn item_118_who_may_not_write_hears_others_and_nothing_of_its_own() {
    let check = format!("(select auth.uid()) = '{BOB}'");
    let scene = Scene::prepared(&policies("true", &check), |_| {}).await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        let (mut alice, mut bob) = (scene.phone(version).await, scene.phone_of(&token::user(BOB), version).await);
        for phone in [&mut alice, &mut bob] {
            assert_eq!(join(phone, &topic, json!({ "broadcast": { "ack": true } })).await["status"], "ok");
        }
        alice.push(&topic, "broadcast", message("vanishes")).await;
        // What comes for its topic waits for the answer about it.
        let reply = json!({ "status": "error", "response": {} });
        alice
            .send_as(
                (Value::Null, json!("dance")),
                &format!("realtime:{topic}"),
                "presence",
                json!({ "event": "dance" }),
            )
            .await;
        assert_eq!(alice.reply_to(&json!("dance")).await.payload, reply);
        bob.send_as((Value::Null, json!("b")), &format!("realtime:{topic}"), "broadcast", message("end")).await;
        assert_eq!(bob.reply_to(&json!("b")).await.payload, ok());
        assert!(until_end(&mut alice).await.is_empty());
        let frames = bob.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
        let frames = alice.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
    }
}

#[tokio::test]
async fn item_119_the_right_to_write_may_depend_on_claims() {
    let check = format!("(select auth.uid()) = '{BOB}'");
    let scene = Scene::prepared(&policies("true", &check), |_| {}).await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        let (mut alice, mut bob) = (scene.phone(version).await, scene.phone_of(&token::user(BOB), version).await);
        for phone in [&mut alice, &mut bob] {
            join(phone, &topic, json!({ "broadcast": { "self": true } })).await;
        }
        alice.push(&topic, "broadcast", message("of alice")).await;
        // What comes for its topic waits for the answer about it.
        alice.push(&topic, "presence", json!({ "event": "dance" })).await;
        alice.next_of(&topic, "phx_reply").await;
        bob.push(&topic, "broadcast", message("of bob")).await;
        bob.push(&topic, "broadcast", message("end")).await;
        for phone in [&mut alice, &mut bob] {
            assert_eq!(until_end(phone).await, ["of bob"]);
        }
    }
}

#[tokio::test]
async fn item_120_a_policy_that_raises_refuses_and_the_server_lives() {
    let scene = Scene::prepared(&policies("1 / (random() * 0)::int = 1", "true"), |_| {}).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        assert_eq!(join(&mut phone, "room", json!({})).await, unauthorized("room"));
        phone.heartbeat().await;
    }
}

#[tokio::test]
async fn item_121_a_role_that_does_not_exist_is_refused() {
    let scene = Scene::prepared(&policies("true", "true"), |_| {}).await;
    for version in BOTH {
        let mut phone = scene.phone_of(&token::role("nobody_knows"), version).await;
        assert_eq!(join(&mut phone, "room", json!({})).await, unauthorized("room"));
    }
}

/// Once as it is written in the protocol, which memory may judge, and once as only Postgres can.
#[tokio::test]
async fn item_122_a_policy_may_look_at_the_requests_headers() {
    let header = "current_setting('request.headers')::json->>'x-test' = 'yes'";
    for using in [header.to_owned(), format!("{header} and random() >= 0")] {
        let scene = Scene::prepared(&policies(&using, &using), |_| {}).await;
        for version in BOTH {
            let base = scene.relay.base();
            for (name, value) in [("x-test", "no"), ("x-other", "yes")] {
                let mut phone = Phone::connect_with(&base, &token::user(ALICE), version, (name, value)).await;
                assert_eq!(join(&mut phone, "room", json!({})).await, unauthorized("room"), "{name}: {value}");
            }
            let mut without = scene.phone(version).await;
            assert_eq!(join(&mut without, "room", json!({})).await, unauthorized("room"));
            let mut phone = Phone::connect_with(&base, &token::user(ALICE), version, ("X-Test", "yes")).await;
            let broadcast = json!({ "broadcast": { "self": true } });
            assert_eq!(join(&mut phone, "room", broadcast).await["status"], "ok", "{using}");
            phone.push("room", "broadcast", message("written")).await;
            assert_eq!(phone.next_broadcast().await.payload["event"], "written");
        }
    }
}

#[tokio::test]
async fn item_123_the_service_may_do_all_without_policies() {
    let scene = Scene::start().await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        let mut phones = Vec::new();
        for _ in 0..2 {
            let mut phone = scene.phone_of(&token::role("service_role"), version).await;
            let presence = json!({ "presence": { "enabled": true, "key": "s" } });
            assert_eq!(join(&mut phone, &topic, presence).await["status"], "ok");
            phones.push(phone);
        }
        phones[0].push(&topic, "broadcast", message("e")).await;
        assert_eq!(phones[1].next_broadcast().await.payload["event"], "e");
        phones[0].push(&topic, "presence", json!({ "event": "track", "payload": {} })).await;
        assert!(phones[1].next_of(&topic, "presence_diff").await.payload["joins"]["s"].is_object());
    }
}

/// A client that sends at once, without waiting for the reply, is answered in order.
#[tokio::test]
async fn item_123_pushes_behind_a_join_wait_for_it() {
    for check in ["true", "random() >= 0"] {
        let scene = Scene::prepared(&policies(check, check), |_| {}).await;
        for version in BOTH {
            let (mut phone, mut other) = (scene.phone(version).await, scene.phone(version).await);
            assert_eq!(join(&mut other, "room", json!({})).await["status"], "ok");
            let more = json!({ "broadcast": { "ack": true }, "presence": { "enabled": true, "key": "k" } });
            let reference = phone.push_join("room", config(more)).await;
            for (reference, event, payload) in [
                ("b", "broadcast", message("own")),
                ("t", "presence", json!({ "event": "track", "payload": { "n": 1 } })),
                ("u", "presence", json!({ "event": "untrack" })),
                ("l", "phx_leave", json!({})),
            ] {
                phone.send_as((Value::Null, json!(reference)), "realtime:room", event, payload).await;
            }
            phone.channel_closed("room").await;
            let frames = phone.frames_of("room");
            let replies = frames.iter().filter(|frame| frame.event == "phx_reply");
            let replies: Vec<_> =
                replies.map(|frame| (frame.reference.clone(), frame.payload["status"].clone())).collect();
            let expected = [&*reference, "b", "t", "u", "l"].map(|reference| (json!(reference), json!("ok")));
            assert_eq!(replies, expected, "{check}");
            assert_eq!(other.next_broadcast().await.payload["event"], "own");
            other.leave("room").await;
        }
    }
}

#[tokio::test]
async fn item_124_asking_leaves_no_rows() {
    let scene = Scene::prepared(&policies("random() >= 0", "random() < 0"), |_| {}).await;
    let mut phone = scene.phone(Version::V2).await;
    for number in 0..5 {
        let topic = format!("room{number}");
        assert_eq!(join(&mut phone, &topic, json!({})).await["status"], "ok");
        phone.push(&topic, "broadcast", message("e")).await;
        phone.leave(&topic).await;
    }
    let count =
        scene.pg.client().await.query_one("select count(*) from realtime.messages", &[]).await.expect("a count");
    assert_eq!(count.get::<_, i64>(0), 0);
}

#[tokio::test]
async fn item_126_a_token_that_may_not_read_ends_the_channel() {
    let using = format!("(select auth.uid()) = '{ALICE}'");
    let scene = Scene::prepared(&policies(&using, "true"), |_| {}).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        join(&mut phone, "room", json!({})).await;
        phone.push_token("room", &token::user(BOB)).await;
        let text = "You do not have permissions to read from this Channel topic: room";
        assert_eq!(phone.system("room").await, system("room", text));
        phone.channel_closed("room").await;
    }
}

#[tokio::test]
async fn item_127_a_token_that_loses_one_of_two_rights_ends_the_channel() {
    let using = format!("extension = 'broadcast' or (select auth.uid()) = '{ALICE}'");
    let scene = Scene::prepared(&policies(&using, "true"), |_| {}).await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        join(&mut phone, "room", json!({ "presence": { "enabled": true } })).await;
        phone.push_token("room", &token::user(BOB)).await;
        let text = "You no longer have permission to read from this Channel topic: room";
        assert_eq!(phone.system("room").await, system("room", text));
        phone.channel_closed("room").await;
    }
}

#[tokio::test]
async fn item_128_broadcasts_that_a_token_gains_begin_to_arrive() {
    let using = format!("extension = 'presence' or (select auth.uid()) = '{BOB}'");
    let scene = Scene::prepared(&policies(&using, "true"), |_| {}).await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        let mut phone = scene.phone(version).await;
        let presence = json!({ "presence": { "enabled": true, "key": "k" }, "broadcast": { "self": true } });
        assert_eq!(join(&mut phone, &topic, presence).await["status"], "ok");
        phone.push_token(&topic, &token::user(BOB)).await;
        // It waits for the answer about the token, and for its right to write.
        phone.push(&topic, "broadcast", message("own")).await;
        assert_eq!(phone.next_broadcast().await.payload["event"], "own");
        scene.pg.exec(&format!("select realtime.send('{{}}', 'stored', '{topic}', true)")).await;
        assert_eq!(phone.next_broadcast().await.payload["event"], "stored");
    }
}

#[tokio::test]
async fn item_133_a_new_token_makes_the_right_to_write_be_asked_for_again() {
    // Such as memory can judge, and such as only Postgres can, whose answer is kept for a time.
    for check in ["true", "random() >= 0"] {
        let scene = Scene::prepared(&policies("true", "false"), |_| {}).await;
        for version in BOTH {
            let topic = format!("room{version:?}");
            let write =
                format!("create policy more on realtime.messages for insert to authenticated with check ({check})");
            scene.pg.exec(&write).await;
            let mut alice = scene.phone(version).await;
            assert_eq!(join(&mut alice, &topic, json!({ "broadcast": { "ack": true } })).await["status"], "ok");
            let mut witness = scene.phone_of(&token::role("service_role"), version).await;
            assert_eq!(join(&mut witness, &topic, json!({ "broadcast": { "self": true } })).await["status"], "ok");
            let full = format!("realtime:{topic}");
            alice.send_as((Value::Null, json!("before")), &full, "broadcast", message("before")).await;
            assert_eq!(alice.reply_to(&json!("before")).await.payload, ok());
            scene.pg.exec("drop policy more on realtime.messages").await;
            alice.push_token(&topic, &token::short(ALICE, 3000)).await;
            alice.send_as((Value::Null, json!("after")), &full, "broadcast", message("after")).await;
            let track = json!({ "event": "track", "payload": {} });
            alice.send_as((Value::Null, json!("track")), &full, "presence", track).await;
            let refused = json!({ "status": "error", "response": {} });
            assert_eq!(alice.reply_to(&json!("track")).await.payload, refused, "{check}");
            let frames = alice.frames_so_far().await;
            assert!(frames.is_empty(), "a broadcast that is not allowed is not answered: {frames:#?}");
            witness.push(&topic, "broadcast", message("end")).await;
            assert_eq!(until_end(&mut witness).await, ["before"], "{check}");
        }
    }
}

#[tokio::test]
async fn item_151_who_may_not_write_presence_is_refused() {
    let scene = Scene::prepared(&policies("true", "extension = 'broadcast'"), |_| {}).await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        let mut phone = scene.phone(version).await;
        join(&mut phone, &topic, json!({ "presence": { "enabled": true, "key": "a" } })).await;
        let mut witness = scene.phone_of(&token::role("service_role"), version).await;
        join(&mut witness, &topic, json!({ "presence": { "enabled": true, "key": "w" } })).await;
        let track = json!({ "event": "track", "payload": {} });
        phone.send_as((Value::Null, json!("t")), &format!("realtime:{topic}"), "presence", track.clone()).await;
        assert_eq!(phone.reply_to(&json!("t")).await.payload, json!({ "status": "error", "response": {} }));
        witness.push(&topic, "presence", track).await;
        for phone in [&mut phone, &mut witness] {
            let joins = phone.next_of(&topic, "presence_diff").await.payload["joins"].clone();
            assert_eq!(joins.as_object().map(|joins| joins.keys().cloned().collect()), Some(vec!["w".to_owned()]));
        }
    }
}

#[tokio::test]
async fn item_152_who_may_not_read_presence_hears_nothing_of_it() {
    let using = format!("extension = 'broadcast' or (select auth.uid()) = '{BOB}'");
    let scene = Scene::prepared(&policies(&using, "true"), |_| {}).await;
    for version in BOTH {
        let topic = format!("room{version:?}");
        let (mut alice, mut bob) = (scene.phone(version).await, scene.phone_of(&token::user(BOB), version).await);
        for phone in [&mut alice, &mut bob] {
            assert_eq!(join(phone, &topic, json!({ "presence": { "enabled": true } })).await["status"], "ok");
        }
        bob.push(&topic, "presence", json!({ "event": "track", "payload": {} })).await;
        bob.next_of(&topic, "presence_diff").await;
        bob.push(&topic, "broadcast", message("end")).await;
        assert!(until_end(&mut alice).await.is_empty());
        let frames = alice.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
    }
}
