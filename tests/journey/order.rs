//! Commit order, transactions as a whole, and what is never sent.

use super::{ALICES_SESSION, Scene, event, notify, watching};
use crate::support::summary;
use crate::support::token::{self, ALICE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_one_transaction_arrive_in_order_and_say_the_same_time() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications", "session_events"])).await;
    scene
        .exec(&format!(
            "begin; {} {} update notifications set kind = 'two'; {} delete from notifications; commit",
            notify(ALICE, "one"),
            event(ALICES_SESSION, "e1"),
            event(ALICES_SESSION, "e2"),
        ))
        .await;
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    let told: Vec<String> = changes.iter().map(|change| format!("{} {}", change.kind(), change.table())).collect();
    assert_eq!(
        told,
        [
            "INSERT notifications",
            "INSERT session_events",
            "UPDATE notifications",
            "INSERT session_events",
            "DELETE notifications"
        ]
    );
    for change in &changes {
        assert_eq!(change.data["commit_timestamp"], changes[0].data["commit_timestamp"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_decide_the_order_not_the_order_of_writing() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications", "session_events"])).await;
    let mut late = scene.pg.client().await;
    let transaction = late.transaction().await.expect("a transaction");
    transaction.batch_execute(&event(ALICES_SESSION, "written first")).await.expect("inserted");
    transaction.batch_execute(&notify(ALICE, "written first")).await.expect("inserted");
    scene.exec(&notify(ALICE, "committed first")).await;
    transaction.commit().await.expect("committed");
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    assert_eq!(summary(&changes[..1], "kind"), ["INSERT committed first"]);
    assert_eq!(summary(&changes[1..2], "event_type"), ["INSERT written first"]);
    assert_eq!(summary(&changes[2..], "kind"), ["INSERT written first"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_rolled_back_rows_nor_truncation_are_sent() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications", "session_events"])).await;
    scene.exec(&format!("begin; {} rollback", notify(ALICE, "never"))).await;
    scene
        .exec(&format!(
            "begin; savepoint s; {} rollback to s; {} commit",
            notify(ALICE, "never"),
            notify(ALICE, "kept")
        ))
        .await;
    scene.exec("truncate notifications, session_events").await;
    scene.mark("end").await;
    assert_eq!(summary(&phone.changes_before("end").await, "kind"), ["INSERT kept"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_arrives_whole_and_in_order() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications", "session_events"])).await;
    let rows = 5000;
    scene
        .exec(&format!(
            "insert into notifications (user_id, kind, body) \
             select '{ALICE}', n::text, repeat('x', 100) from generate_series(1, {rows}) n"
        ))
        .await;
    scene.mark("pure").await;
    let received = summary(&phone.changes_before("pure").await, "kind");
    let expected: Vec<String> = (1..=rows).map(|n| format!("INSERT {n}")).collect();
    assert!(received == expected, "{} rows", received.len());
    let rows = 200;
    scene
        .exec(&format!(
            "insert into session_events (session_id, event_type) \
             select '{ALICES_SESSION}', n::text from generate_series(1, {rows}) n"
        ))
        .await;
    scene.mark("asked").await;
    let received = summary(&phone.changes_before("asked").await, "event_type");
    let expected: Vec<String> = (1..=rows).map(|n| format!("INSERT {n}")).collect();
    assert!(received == expected, "{} rows", received.len());
}
