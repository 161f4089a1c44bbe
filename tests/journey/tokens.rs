//! Tokens on a living channel: a new one changes whose rows arrive, one that runs out ends the channel.

use rowcast::clock::Clock;
use serde_json::{Value, json};

use super::client::{Client, EVERY_KIND};
use super::{ALICES_SESSION, BOBS_SESSION, Scene, database, event, mark, notify, watching};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, Relay, Stock, Version, summary};

fn assert_expired(system: &Value, topic: &str) {
    let message = system["message"].as_str().expect("a text");
    let seconds = message.strip_prefix("Token has expired ").and_then(|rest| rest.strip_suffix(" seconds ago"));
    assert!(seconds.is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{message}");
    let expected = json!({ "extension": "system", "status": "error", "message": message, "channel": topic });
    assert_eq!(*system, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_another_users_token_that_users_rows_arrive_and_the_former_ones_do_not() {
    let scene = Scene::start().await;
    let entries = watching(&["notifications", "session_events"]);
    let alices = token::user(ALICE);
    let subscribing = EVERY_KIND.map(|kind| Client::subscribe(kind, &scene.relay, &alices, &entries));
    let mut clients = futures_util::future::join_all(subscribing).await;
    let write = async || {
        for sql in [notify(ALICE, "a"), notify(BOB, "b"), event(ALICES_SESSION, "a"), event(BOBS_SESSION, "b")] {
            scene.exec(&sql).await;
        }
    };
    let kinds = |changes: &[crate::support::Change]| {
        [summary(&changes[..1], "kind"), summary(&changes[1..], "event_type")].concat()
    };
    for (round, (subject, letter)) in [(ALICE, "a"), (BOB, "b"), (ALICE, "a")].into_iter().enumerate() {
        if round > 0 {
            let another = token::user(subject);
            futures_util::future::join_all(clients.iter_mut().map(|client| client.set_token(&another))).await;
        }
        write().await;
        let mark = format!("round {round}");
        scene.mark(&mark).await;
        for (client, kind) in clients.iter_mut().zip(EVERY_KIND) {
            let received = client.changes_before(&mark).await;
            assert_eq!(kinds(&received), [format!("INSERT {letter}"), format!("INSERT {letter}")], "{kind:?} {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_role_brings_that_roles_columns() {
    let clerk = "create role clerk nologin; grant usage on schema public to clerk;
        grant select (id, user_id, kind) on notifications to clerk; grant select on marks to clerk;
        create policy clerks on notifications for select to clerk using (user_id = auth.uid());";
    let scene = Scene::with(clerk).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    for (token, columns) in [(token::user_as("clerk", ALICE), 3), (token::user(ALICE), 6)] {
        phone.push_token("room", &token).await;
        phone.subscribed("room").await;
        scene.exec(&notify(ALICE, "n")).await;
        let change = phone.next_change().await;
        assert_eq!(change.record().as_object().expect("a record").len(), columns);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_token_runs_out_is_told_closed_and_sent_nothing_more() {
    let scene = Scene::start().await;
    for version in [Version::V1, Version::V2] {
        let mut phone = Phone::connect(&scene.relay.base(), &token::user(ALICE), version).await;
        phone.subscribe("lasting", &watching(&["notifications"])).await;
        phone.speak_as(&token::short(ALICE, 3));
        phone.subscribe("short", &watching(&["notifications"])).await;
        scene.exec(&notify(ALICE, "in time")).await;
        for _ in 0..2 {
            assert_eq!(phone.next_change().await.record()["kind"], "in time");
        }
        assert_expired(&phone.system("short").await, "short");
        phone.channel_closed("short").await;
        scene.exec(&notify(ALICE, "too late")).await;
        scene.mark("end").await;
        let changes = phone.changes_before("end").await;
        assert_eq!(summary(&changes, "kind"), ["INSERT too late"]);
        assert_eq!(changes[0].topic, "lasting");
        phone.heartbeat().await;
        assert!(phone.frames_of("short").is_empty());
        // With a good token the topic can be joined again.
        phone.speak_as(&token::user(ALICE));
        phone.subscribe("short", &watching(&["notifications"])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_held_against_the_clock_and_not_against_a_timer() {
    let pg = database("").await;
    let clock = Clock::system();
    let relay = Relay::with(&pg, clock.clone(), |_| {}).await;
    let mut phone = relay.phone(&token::short(ALICE, 600)).await;
    let mut witness = relay.phone(&token::user(ALICE)).await;
    witness.subscribe("room", &watching(&["notifications", "session_events"])).await;
    for (topic, tables) in [("room", &["notifications"][..]), ("asked", &["session_events"]), ("marks", &[])] {
        phone.subscribe(topic, &watching(tables)).await;
    }
    pg.exec(&notify(ALICE, "in time")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "in time");
    assert_eq!(witness.next_change().await.record()["kind"], "in time");
    // The channel's timer knows nothing of this and is minutes away.
    clock.advance(601_000);
    pg.exec(&notify(ALICE, "too late")).await;
    pg.exec(&event(ALICES_SESSION, "too late")).await;
    mark(&pg, "end").await;
    assert_eq!(witness.changes_before("end").await.len(), 2);
    // A row in memory, one of which Postgres would have to be asked, and the mark: the first of each channel.
    assert!(relay.metric("rowcast_denials_total", "reason=\"expired\"").await >= 3.0);
    phone.heartbeat().await;
    assert_eq!(phone.changes_so_far(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_token_in_time_keeps_the_channel() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("control", &watching(&[])).await;
    phone.speak_as(&token::short(ALICE, 3));
    phone.subscribe("control too", &watching(&[])).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    phone.push_token("room", &token::user(ALICE)).await;
    phone.subscribed("room").await;
    // The other channel, which kept the short token, shows that its time is over.
    assert_expired(&phone.system("control too").await, "control too");
    phone.channel_closed("control too").await;
    scene.exec(&notify(ALICE, "n")).await;
    let change = phone.next_change().await;
    assert_eq!((&*change.topic, &change.record()["kind"]), ("room", &json!("n")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_tell_their_application_that_the_token_has_expired() {
    let scene = Scene::start().await;
    let entries = watching(&["notifications"]);
    for stock in [Stock::JavaScript, Stock::Python] {
        let mut phone = scene.relay.sdk(stock, &token::user(ALICE)).await;
        phone.subscribe("room", &entries).await;
        phone.set_auth(&token::short(ALICE, 3)).await;
        phone.subscribed("room").await;
        if stock == Stock::JavaScript {
            assert_expired(&phone.system("room").await, "room");
        } else {
            let (status, error) = phone.status("room").await;
            assert_eq!(status, "CHANNEL_ERROR");
            assert_expired(&serde_json::from_str(&error).expect("JSON"), "room");
        }
        assert_eq!(phone.status("room").await.0, "CLOSED", "{stock:?}");
        // With a fresh token the application can open the channel again.
        phone.set_auth(&token::user(ALICE)).await;
        phone.subscribe("room", &entries).await;
        scene.exec(&notify(ALICE, "n")).await;
        scene.mark("end").await;
        assert_eq!(summary(&phone.changes_before("end").await, "kind"), ["INSERT n"], "{stock:?}");
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_token_closes_the_channel_and_an_expired_one_cannot_join() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    phone.push_token("room", &token::expired(ALICE)).await;
    assert_expired(&phone.system("room").await, "room");
    phone.channel_closed("room").await;

    phone.speak_as(&token::expired(ALICE));
    let reply = phone.join("room", &watching(&["notifications"])).await;
    assert_eq!(reply["status"], "error");
    let reason = reply["response"]["reason"].as_str().expect("a text");
    assert!(reason.starts_with("InvalidJWTToken: Token has expired "), "{reason}");

    phone.speak_as(&token::user(ALICE));
    phone.subscribe("room", &watching(&["notifications"])).await;
    let forged = rowcast::dev::mint_token(
        "another secret, also of more than thirty-two bytes",
        [("role".to_owned(), json!("authenticated")), ("sub".to_owned(), json!(BOB))].into_iter().collect(),
        &Clock::system(),
        std::time::Duration::from_secs(60),
    );
    phone.push_token("room", &forged.expect("signed")).await;
    let expected = json!({ "extension": "system", "status": "error", "message": "Failed to validate JWT signature",
                           "channel": "room" });
    assert_eq!(phone.system("room").await, expected);
    phone.channel_closed("room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_token_and_those_that_are_none_change_nothing() {
    let scene = Scene::start().await;
    let token = token::user(ALICE);
    let mut phone = scene.relay.phone(&token).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    for payload in [
        json!({ "access_token": token }),
        json!({ "access_token": null }),
        json!({ "access_token": "sb_x" }),
        json!({}),
    ] {
        phone.push("room", "access_token", payload).await;
    }
    phone.heartbeat().await;
    scene.exec(&notify(ALICE, "n")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "n");
    assert!(phone.frames_of("room").is_empty());
}
