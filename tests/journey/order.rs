//! Commit order, transactions as a whole, and what is never sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{ALICES_SESSION, Scene, event, notify, watching};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{self, ALICE};
use crate::support::{Change, TestPg, summary};

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

/// Writes numbered rows, one a transaction, in turn to a table judged in memory and to one that Postgres is asked about.
struct Writer {
    /// The number of the last one begun.
    begun: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    writing: JoinHandle<u32>,
}

impl Writer {
    async fn start(pg: &TestPg) -> Writer {
        let client = pg.client().await;
        let (begun, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (number, stopping) = (begun.clone(), stop.clone());
        let writing = rowcast::task::spawn("writer", async move {
            while !stopping.load(Ordering::SeqCst) {
                let n = number.fetch_add(1, Ordering::SeqCst) + 1;
                let text = n.to_string();
                let sql = if n.is_multiple_of(2) { notify(ALICE, &text) } else { event(ALICES_SESSION, &text) };
                client.batch_execute(&sql).await.expect("written");
            }
            number.load(Ordering::SeqCst)
        });
        Writer { begun, stop, writing }
    }

    fn begun(&self) -> u32 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Waits until more rows have been written than now.
    async fn goes_on(&self) {
        let wanted = self.begun() + 50;
        let deadline = Instant::now() + PATIENCE;
        while self.begun() < wanted {
            assert!(Instant::now() < deadline, "the writer stands still");
            pause().await;
        }
    }

    async fn stop(self) -> u32 {
        self.stop.store(true, Ordering::SeqCst);
        self.writing.await.expect("it does not panic")
    }
}

fn numbers(changes: &[Change]) -> Vec<u32> {
    let number = |change: &Change| {
        let column = if change.table() == "notifications" { "kind" } else { "event_type" };
        change.record()[column].as_str().and_then(|text| text.parse().ok()).expect("a number")
    };
    changes.iter().map(number).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_subscribes_or_takes_a_new_token_amid_writes_misses_nothing_and_gets_nothing_twice() {
    let scene = Scene::start().await;
    let writer = Writer::start(&scene.pg).await;
    let entries = watching(&["notifications", "session_events"]);
    let mut phones = Vec::new();
    for _ in 0..5 {
        let mut phone = scene.relay.phone(&token::user(ALICE)).await;
        phone.subscribe("room", &entries).await;
        phones.push((writer.begun(), phone));
        writer.goes_on().await;
    }
    for round in 0..3 {
        for (_, phone) in &mut phones {
            // Another token of the same user.
            phone.push_token("room", &token::short(ALICE, 1000 + round)).await;
            phone.subscribed("room").await;
        }
        writer.goes_on().await;
    }
    let last = writer.stop().await;
    scene.mark("end").await;
    for (begun, phone) in &mut phones {
        let received = numbers(&phone.changes_before("end").await);
        let first = *received.first().expect("rows");
        assert!(
            first <= *begun + 1,
            "the first is {first}, although {begun} was not yet committed when changes flowed"
        );
        let expected: Vec<u32> = (first..=last).collect();
        assert!(received == expected, "{} rows of {}: {received:?}", received.len(), expected.len());
    }
}
