//! What the stock clients hand to their applications.

use serde_json::json;

use super::{Scene, watching};
use crate::support::token::{self, ALICE};
use crate::support::{Stock, summary};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_are_given_the_row_as_it_is() {
    let scene = Scene::start().await;
    for stock in [Stock::JavaScript, Stock::Python] {
        let mut phone = scene.relay.sdk(stock, &token::user(ALICE)).await;
        phone.subscribe("room", &watching(&["notifications"])).await;
        scene
            .exec(&format!(
                "insert into notifications (id, user_id, kind, body, created_at) overriding system value \
                 values (7, '{ALICE}', 'k', 'ä \"b\"', '2026-01-02 03:04:05.678Z')"
            ))
            .await;
        scene.exec("update notifications set body = 'b'").await;
        scene.exec("delete from notifications").await;
        scene.mark("end").await;
        let changes = phone.changes_before("end").await;
        let row = |body: &str| {
            json!({ "id": 7, "user_id": ALICE, "kind": "k", "body": body, "read_at": null,
                    "created_at": "2026-01-02T03:04:05.678+00:00" })
        };
        assert_eq!(changes.iter().map(|change| change.kind()).collect::<Vec<_>>(), ["INSERT", "UPDATE", "DELETE"]);
        assert_eq!((changes[0].record(), changes[0].data.get("old_record")), (&row("ä \"b\""), None), "{stock:?}");
        assert_eq!((changes[1].record(), changes[1].old_record()), (&row("b"), &row("ä \"b\"")), "{stock:?}");
        assert_eq!((changes[2].data.get("record"), changes[2].old_record()), (None, &row("b")), "{stock:?}");
        for change in &changes {
            assert_eq!((&change.data["schema"], &change.data["errors"]), (&json!("public"), &json!(null)));
            assert!(change.data["commit_timestamp"].as_str().is_some_and(|stamp| stamp.ends_with('Z')));
        }
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_callback_gets_the_changes_that_it_asked_for() {
    let scene = Scene::start().await;
    for stock in [Stock::JavaScript, Stock::Python] {
        let mut phone = scene.relay.sdk(stock, &token::user(ALICE)).await;
        let table = |event: &str| json!({ "event": event, "schema": "public", "table": "notifications" });
        let entries = json!([
            table("INSERT"), table("UPDATE"), table("DELETE"),
            { "event": "*", "schema": "public", "table": "notifications", "filter": "kind=eq.k" },
            { "event": "*", "schema": "public", "table": "marks" },
            { "event": "INSERT", "schema": "public" },
        ]);
        phone.subscribe("room", &entries).await;
        scene.exec(&super::notify(ALICE, "k")).await;
        scene.exec("update notifications set kind = 'l'").await;
        scene.exec("delete from notifications").await;
        scene.mark("end").await;
        let changes = phone.changes_before("end").await;
        let mut told: Vec<(i64, String)> =
            changes.iter().map(|change| change.ids[0]).zip(summary(&changes, "kind")).collect();
        told.sort_unstable();
        let expected = [(0, "INSERT k"), (1, "UPDATE l"), (2, "DELETE l"), (3, "INSERT k"), (5, "INSERT k")];
        assert_eq!(told, expected.map(|(index, text)| (index, text.to_owned())), "{stock:?}");
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_can_be_left_and_opened_again() {
    let scene = Scene::start().await;
    for stock in [Stock::JavaScript, Stock::Python] {
        let mut phone = scene.relay.sdk(stock, &token::user(ALICE)).await;
        let other = json!([{ "event": "*", "schema": "public", "table": "session_events" }]);
        phone.subscribe("other", &other).await;
        for round in ["first", "second"] {
            phone.subscribe("room", &watching(&["notifications"])).await;
            scene.exec(&super::notify(ALICE, round)).await;
            scene.mark(round).await;
            let changes = phone.changes_before(round).await;
            assert_eq!(summary(&changes, "kind"), [format!("INSERT {round}")], "{stock:?}");
            phone.unsubscribe("room").await;
        }
        phone.exit().await;
    }
}
