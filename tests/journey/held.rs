//! Joins that are answered when their changes flow: `postgres_changes_options: {wait: true}`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Scene, filtered, notify, watching};
use crate::support::token::{self, ALICE};
use crate::support::{Phone, Stock, Version, summary};

fn held(entries: Value, timeout: u32) -> Value {
    json!({ "config": { "postgres_changes": entries, "postgres_changes_options": { "wait": true, "timeout": timeout } } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_after_the_reply_arrives_and_nothing_comes_before_it() {
    let scene = Scene::start().await;
    for version in [Version::V1, Version::V2] {
        let mut phone = Phone::connect(&scene.relay.base(), &token::user(ALICE), version).await;
        for round in 0..20 {
            let topic = format!("room-{round}");
            // Rows that are under way while the hub activates.
            let row = notify(ALICE, "during");
            let joining = phone.join_with(&topic, held(watching(&["notifications"]), 15_000));
            let (reply, ()) = tokio::join!(joining, scene.exec(&row));
            assert_eq!(reply["status"], "ok", "{reply}");
            assert_eq!(reply["response"]["postgres_changes"].as_array().map(Vec::len), Some(2));
            let before: Vec<String> = phone.frames_of(&topic).into_iter().map(|frame| frame.event).collect();
            assert!(before.is_empty(), "{before:?} came before the reply");
            // Without waiting for anything else.
            scene.exec(&notify(ALICE, "after")).await;
            scene.mark(&topic).await;
            phone.subscribed(&topic).await;
            let changes = phone.changes_before(&topic).await;
            let changes: Vec<_> = changes.into_iter().filter(|change| change.topic == topic).collect();
            assert_eq!(summary(&changes, "kind").last().map(String::as_str), Some("INSERT after"), "round {round}");
            phone.leave(&topic).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_subscribed_to_refuses_the_join() {
    let scene = Scene::start().await;
    for version in [Version::V1, Version::V2] {
        let mut phone = Phone::connect(&scene.relay.base(), &token::user(ALICE), version).await;
        let nothing = json!([{ "event": "*", "schema": "public", "table": "no_such_table" }]);
        for (entries, text) in [
            (nothing, "Unable to subscribe to changes with given parameters. Please check Realtime is enabled"),
            (filtered("notifications", "nothing"), "Error parsing `filter` params: [\"nothing\"]"),
            (filtered("notifications", "nocolumn=eq.1"), "Unable to subscribe to changes with given parameters."),
            (json!([{ "event": "*" }]), "No subscription params provided."),
        ] {
            let reply = phone.join_with("room", held(entries, 15_000)).await;
            assert_eq!(reply["status"], "error", "{reply}");
            let reason = reply["response"]["reason"].as_str().expect("a reason");
            assert!(reason.starts_with(&format!("RealtimeDisabledForConfiguration: {text}")), "{reason}");
        }
        // Nothing is left of them, and nothing was said but the replies.
        let reply = phone.join_with("room", held(watching(&["notifications"]), 15_000)).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        phone.subscribed("room").await;
        scene.exec(&notify(ALICE, "n")).await;
        assert_eq!(phone.next_change().await.record()["kind"], "n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_can_not_be_checked_in_time_is_refused_and_may_be_tried_again() {
    let scene = Scene::with("create role late_role").await;
    let mut phone = scene.relay.phone(&token::user_as("late_role", ALICE)).await;
    // No reading of the catalog ends from now on, so that nobody learns of a role that was not asked for before.
    let other = scene.pg.client().await;
    other.batch_execute("begin; lock table pg_catalog.pg_policy in access exclusive mode").await.expect("locked");
    let begun = Instant::now();
    let reply = phone.join_with("room", held(watching(&[]), 700)).await;
    assert!(begun.elapsed() >= Duration::from_millis(700));
    let reason = reply["response"]["reason"].as_str().expect("a reason");
    let expected = "PostgresChangesSubscribeTimeout: Changes were not active within 700 ms";
    assert!(reason.starts_with(expected), "{reply}");
    phone.heartbeat().await;
    other.batch_execute("rollback").await.expect("unlocked");
    let reply = phone.join_with("room", held(watching(&[]), 15_000)).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    phone.subscribed("room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_held_joins_at_once_are_answered_within_the_patience_of_clients() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let begun = Instant::now();
    for number in 0..100 {
        phone.push_join(&format!("room-{number}"), held(watching(&["notifications"]), 10_000)).await;
    }
    for number in 0..100 {
        phone.subscribed(&format!("room-{number}")).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    scene.exec(&notify(ALICE, "n")).await;
    let mut topics: Vec<String> = Vec::new();
    for _ in 0..100 {
        topics.push(phone.next_change().await.topic);
    }
    topics.sort();
    topics.dedup();
    assert_eq!(topics.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stock_client_may_write_as_soon_as_it_is_told_that_it_is_subscribed() {
    let scene = Scene::start().await;
    let wait = json!({ "postgres_changes_options": { "wait": true, "timeout": 15_000 } });
    let mut phone = scene.relay.sdk(Stock::JavaScript, &token::user(ALICE)).await;
    for round in 0..5 {
        let topic = format!("room-{round}");
        phone.ask_to_subscribe_with(&topic, &watching(&["notifications"]), &wait);
        assert_eq!(phone.status(&topic).await.0, "SUBSCRIBED");
        scene.exec(&notify(ALICE, "at once")).await;
        scene.mark(&topic).await;
        assert_eq!(summary(&phone.changes_before(&topic).await, "kind"), ["INSERT at once"]);
        phone.unsubscribe(&topic).await;
    }
    let nothing = json!([{ "event": "*", "schema": "public", "table": "no_such_table" }]);
    phone.ask_to_subscribe_with("nothing", &nothing, &wait);
    let (status, error) = phone.status("nothing").await;
    assert_eq!(status, "CHANNEL_ERROR");
    assert!(error.starts_with("RealtimeDisabledForConfiguration: Unable to subscribe to changes"), "{error}");
    phone.exit().await;
}
