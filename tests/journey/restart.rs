//! The relay goes and comes back, as told or killed; so does Postgres. Stock clients find their way back by themselves.

use super::{ALICES_SESSION, Scene, database, event, mark, notify, watching};
use crate::support::phone::{Phone, Version};
use crate::support::sdk::{SdkPhone, Stock};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{RelayProcess, TestPg, summary};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Told,
    Killed,
}

/// Nothing that an operator would have to look at, and nothing that nobody may read.
fn assert_quiet_and_discreet(log: &str, tokens: &[&str]) {
    assert!(log.contains("listening") && log.contains("drained"), "{log}");
    let is_alarm = |line: &&str| [" WARN ", " ERROR "].iter().any(|level| line.contains(level));
    // What takes long on this machine is no alarm of the relay's.
    let alarm = log.lines().filter(is_alarm).find(|line| !line.contains("reading the catalog is slow"));
    assert!(alarm.is_none(), "{alarm:?} in:\n{log}");
    for secret in tokens.iter().copied().chain(["body of a notification", token::SECRET]) {
        assert!(!log.contains(secret), "the log tells {secret}:\n{log}");
    }
    // Who it was is for the audit log alone.
    let line = log.lines().find(|line| line.contains(ALICE) && !line.contains(" audit: "));
    assert!(line.is_none(), "a line tells {ALICE}: {line:?}");
}

async fn secret_row(pg: &TestPg, user: &str, kind: &str) {
    pg.exec(&format!(
        "insert into notifications (user_id, kind, body) values ('{user}', '{kind}', 'body of a notification')"
    ))
    .await;
}

async fn stock_clients_come_back(end: End) {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let (alices, bobs) = (token::user(ALICE), token::user(BOB));
    let entries = watching(&["notifications", "session_events"]);
    let mut phones = Vec::new();
    for stock in [Stock::JavaScript, Stock::Python] {
        for token in [&alices, &bobs] {
            let mut phone = SdkPhone::connect(stock, &relay.base(), token).await;
            phone.subscribe("room", &entries).await;
            phones.push(phone);
        }
    }
    for round in 0..2 {
        let (before, after) = (format!("before {round}"), format!("after {round}"));
        secret_row(&pg, ALICE, "a").await;
        pg.exec(&event(ALICES_SESSION, "a")).await;
        mark(&pg, &before).await;
        for (index, phone) in phones.iter_mut().enumerate() {
            let received = phone.changes_before(&before).await;
            assert_eq!(received.len(), if index % 2 == 0 { 2 } else { 0 }, "{index}: {received:?}");
        }
        match end {
            End::Told => assert!(relay.stop().await.success(), "{}", relay.log()),
            End::Killed => relay.kill().await,
        }
        for phone in &mut phones {
            assert_eq!(phone.status("room").await.0, "CHANNEL_ERROR");
        }
        relay.start_again().await;
        for phone in &mut phones {
            // Python's client may fail to connect in between and says so again.
            loop {
                match &*phone.status("room").await.0 {
                    "SUBSCRIBED" => break,
                    status => assert_eq!(status, "CHANNEL_ERROR"),
                }
            }
            phone.subscribed("room").await;
        }
        secret_row(&pg, BOB, "b").await;
        secret_row(&pg, ALICE, "a").await;
        mark(&pg, &after).await;
        for (index, phone) in phones.iter_mut().enumerate() {
            let received = summary(&phone.changes_before(&after).await, "kind");
            assert_eq!(received, [if index % 2 == 0 { "INSERT a" } else { "INSERT b" }], "{index}");
        }
    }
    for phone in phones {
        phone.exit().await;
    }
    assert!(relay.stop().await.success(), "{}", relay.log());
    assert_quiet_and_discreet(&relay.log(), &[&alices, &bobs]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_rejoin_after_the_relay_was_told_to_end() {
    stock_clients_come_back(End::Told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_rejoin_after_the_relay_was_killed() {
    stock_clients_come_back(End::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_connected_when_the_relay_is_told_to_end_reads_1012() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let mut phones = Vec::new();
    for version in [Version::V1, Version::V2] {
        let mut phone = Phone::connect(&relay.base(), &token::user(ALICE), version).await;
        phone.subscribe("room", &watching(&["notifications"])).await;
        phones.push(phone);
    }
    assert!(relay.stop().await.success(), "{}", relay.log());
    for phone in &mut phones {
        assert_eq!(phone.close_code().await, Some(1012));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_within_the_process_says_1012_too() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    // At the same time: a phone that does not read can't answer the goodbye, which the drain waits for.
    let (code, ()) = tokio::join!(phone.close_code(), scene.relay.drain());
    assert_eq!(code, Some(1012));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_postgres_channels_are_still_joined_and_nothing_is_lost() {
    let mut scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications", "session_events"])).await;
    for round in 0..2 {
        let (before, after) = (format!("before {round}"), format!("after {round}"));
        scene.exec(&notify(ALICE, &before)).await;
        scene.pg.restart().await;
        scene.exec(&notify(ALICE, &after)).await;
        scene.exec(&event(ALICES_SESSION, &after)).await;
        scene.mark(&after).await;
        let changes = phone.changes_before(&after).await;
        assert_eq!(summary(&changes[..2], "kind"), [format!("INSERT {before}"), format!("INSERT {after}")]);
        assert_eq!(summary(&changes[2..], "event_type"), [format!("INSERT {after}")]);
    }
}
