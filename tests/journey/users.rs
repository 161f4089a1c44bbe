//! Two users on one table: each receives what is his, with every client, with and without a filter.

use super::client::pairs;
use super::{ALICES_SESSION, BOBS_SESSION, Scene, event, filtered, notify, watching};
use crate::support::summary;
use crate::support::token::{self, ALICE, BOB};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_receives_his_own_notifications_and_nobody_elses() {
    let scene = Scene::start().await;
    let entries = watching(&["notifications"]);
    let tokens = [&*token::user(ALICE), &*token::user(BOB)];
    let clients = pairs(&scene.relay, tokens, [&entries, &entries]).await;
    scene.exec(&notify(ALICE, "a1")).await;
    scene.exec(&notify(BOB, "b1")).await;
    scene.exec(&format!("begin; {} {} commit", notify(ALICE, "a2"), notify(BOB, "b2"))).await;
    scene.exec("update notifications set read_at = now() where kind = 'a1'").await;
    scene.exec(&format!("update notifications set user_id = '{BOB}', kind = 'moved' where kind = 'a2'")).await;
    scene.exec("delete from notifications where kind = 'a1'").await;
    scene.exec("delete from notifications where kind = 'b1'").await;
    scene.mark("end").await;
    for (kind, [mut alice, mut bob]) in clients {
        let received = summary(&alice.changes_before("end").await, "kind");
        assert_eq!(received, ["INSERT a1", "INSERT a2", "UPDATE a1", "DELETE a1"], "{kind:?}");
        let received = summary(&bob.changes_before("end").await, "kind");
        assert_eq!(received, ["INSERT b1", "INSERT b2", "UPDATE moved", "DELETE b1"], "{kind:?}");
        alice.end().await;
        bob.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_receives_the_events_of_his_own_sessions_and_of_nobody_elses() {
    let scene = Scene::start().await;
    let entries = watching(&["session_events"]);
    let tokens = [&*token::user(ALICE), &*token::user(BOB)];
    let clients = pairs(&scene.relay, tokens, [&entries, &entries]).await;
    scene.exec(&event(ALICES_SESSION, "a1")).await;
    scene.exec(&event(BOBS_SESSION, "b1")).await;
    scene.exec(&format!("begin; {} {} commit", event(ALICES_SESSION, "a2"), event(BOBS_SESSION, "b2"))).await;
    scene.exec("update session_events set event_data = '{\"seen\": true}' where event_type = 'a1'").await;
    let moved = format!("update session_events set session_id = '{BOBS_SESSION}', event_type = 'moved'");
    scene.exec(&format!("{moved} where event_type = 'a2'")).await;
    scene.exec("delete from session_events where event_type = 'a1'").await;
    scene.exec("delete from session_events where event_type = 'b1'").await;
    scene.mark("end").await;
    for (kind, [mut alice, mut bob]) in clients {
        let received = summary(&alice.changes_before("end").await, "event_type");
        assert_eq!(received, ["INSERT a1", "INSERT a2", "UPDATE a1", "DELETE a1"], "{kind:?}");
        let received = summary(&bob.changes_before("end").await, "event_type");
        assert_eq!(received, ["INSERT b1", "INSERT b2", "UPDATE moved", "DELETE b1"], "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_for_somebody_elses_rows_yields_nothing() {
    let scene = Scene::start().await;
    let tokens = [&*token::user(ALICE), &*token::user(BOB)];
    let filters = [
        filtered("notifications", &format!("user_id=eq.{ALICE}")),
        filtered("session_events", &format!("session_id=eq.{ALICES_SESSION}")),
    ];
    let mut clients = Vec::new();
    for entries in &filters {
        clients.push(pairs(&scene.relay, tokens, [entries, entries]).await);
    }
    for sql in [notify(ALICE, "a1"), notify(BOB, "b1"), event(ALICES_SESSION, "a1"), event(BOBS_SESSION, "b1")] {
        scene.exec(&sql).await;
    }
    scene
        .exec("update notifications set kind = kind || '!'; update session_events set event_type = event_type || '!'")
        .await;
    scene.exec("delete from notifications; delete from session_events").await;
    scene.mark("end").await;
    for (pairs, column) in clients.into_iter().zip(["kind", "event_type"]) {
        for (kind, [mut alice, mut bob]) in pairs {
            let received = summary(&alice.changes_before("end").await, column);
            assert_eq!(received, ["INSERT a1", "UPDATE a1!", "DELETE a1!"], "{kind:?} {column}");
            assert_eq!(bob.changes_before("end").await, [], "{kind:?} {column}");
        }
    }
}
