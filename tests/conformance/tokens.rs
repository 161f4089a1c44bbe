//! Items 125 to 134: a new token on a joined channel, and one that runs out.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::stage::{BOTH, Scene, Shared, assert_joined, joined, watching};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, summary};

/// The `system` frame and the `phx_close` that end a channel with a bad token; nothing more comes for it.
async fn assert_ended(phone: &mut Phone, topic: &str) -> String {
    let system = phone.system(topic).await;
    let message = system["message"].as_str().expect("a text").to_owned();
    let expected = json!({ "extension": "system", "status": "error", "message": message, "channel": topic });
    assert_eq!(system, expected);
    phone.channel_closed(topic).await;
    let rest = phone.frames_so_far().await;
    assert!(rest.iter().all(|frame| frame.topic != format!("realtime:{topic}")), "{rest:#?}");
    message
}

#[track_caller]
fn assert_expired(message: &str) {
    let seconds = message.strip_prefix("Token has expired ").and_then(|rest| rest.strip_suffix(" seconds ago"));
    assert!(seconds.is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{message}");
}

#[tokio::test]
async fn item_125_another_roles_token_is_taken_in_silence() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        assert_eq!(phone.join("room", &json!([])).await, joined());
        for token in [token::role("anon"), token::user(BOB), token::role("nobody knows me")] {
            phone.push_token("room", &token).await;
        }
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
        assert_joined(&mut phone, "realtime:room").await;
    }
}

#[tokio::test]
async fn item_129_an_expired_token_ends_the_channel() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        assert_eq!(phone.join("room", &json!([])).await, joined());
        phone.push_token("room", &token::expired(ALICE)).await;
        assert_expired(&assert_ended(&mut phone, "room").await);
    }
}

#[tokio::test]
async fn item_130_an_empty_token_ends_the_channel() {
    let relay = Shared::relay().await;
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        assert_eq!(phone.join("room", &json!([])).await, joined());
        phone.push_token("room", "").await;
        assert_eq!(assert_ended(&mut phone, "room").await, "The token provided is not a valid JWT");
    }
}

#[tokio::test]
async fn item_131_an_opaque_key_null_and_the_same_token_change_nothing() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        let own = token::user(ALICE);
        phone.speak_as(&own);
        phone.subscribe("room", &watching()).await;
        for value in [json!("sb_x"), Value::Null, json!(own)] {
            phone.push("room", "access_token", json!({ "access_token": value })).await;
        }
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
        scene.notify(ALICE, "hers").await;
        scene.notify(BOB, "his").await;
        scene.mark(&format!("{version:?}")).await;
        let received = phone.changes_before(&format!("{version:?}")).await;
        assert_eq!(summary(&received, "kind"), ["INSERT hers"]);
        // Had any of them been taken for a new token, it would have been confirmed before that row.
        let frames = phone.frames_so_far().await;
        assert!(frames.is_empty(), "{frames:#?}");
    }
}

#[tokio::test]
async fn item_132_a_token_that_runs_out_ends_its_channel_and_no_other() {
    let relay = Shared::relay().await;
    let mut phones = Vec::new();
    for version in BOTH {
        let mut phone = relay.phone(version).await;
        assert_eq!(phone.join("lasting", &json!([])).await, joined());
        phone.speak_as(&token::short(ALICE, 3));
        assert_eq!(phone.join("short", &json!([])).await, joined());
        phones.push((phone, Instant::now()));
    }
    for (mut phone, since) in phones {
        assert_expired(&assert_ended(&mut phone, "short").await);
        // Tokens count whole seconds, so three of them may be little more than two.
        assert!(since.elapsed() > Duration::from_millis(1500), "after {:?}", since.elapsed());
        assert_joined(&mut phone, "realtime:lasting").await;
    }
}

#[tokio::test]
async fn item_134_a_new_token_judges_rows_from_then_on_and_is_confirmed() {
    let scene = Scene::start().await;
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        phone.subscribe("room", &watching()).await;
        scene.notify(ALICE, "hers").await;
        assert_eq!(phone.next_change().await.record()["kind"], "hers");
        let sent = Instant::now();
        phone.push_token("room", &token::user(BOB)).await;
        phone.subscribed("room").await;
        assert!(sent.elapsed() < Duration::from_secs(5), "after {:?}", sent.elapsed());
        scene.notify(ALICE, "hers").await;
        scene.notify(BOB, "his").await;
        scene.mark(&format!("{version:?}")).await;
        let received = phone.changes_before(&format!("{version:?}")).await;
        assert_eq!(summary(&received, "kind"), ["INSERT his"]);
    }
}
