//! Subscriptions that can't be, and changes with errors: what applications are told, and that they can go on.

use serde_json::{Value, json};

use super::{STOCKS, TABLES, calls_before, entry};
use crate::support::sdk::SdkPhone;
use crate::support::stage::with_marks;
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock};

/// The message of the error that follows a good join. JavaScript shows the frame; Python hides it and calls the channel broken.
async fn told(phone: &mut SdkPhone, stock: Stock, topic: &str) -> String {
    if stock == Stock::Python {
        let (status, error) = phone.status(topic).await;
        assert_eq!(status, "CHANNEL_ERROR", "{error}");
        let payload: Value = serde_json::from_str(&error).expect("JSON");
        return payload["message"].as_str().expect("a text").to_owned();
    }
    let system = phone.system(topic).await;
    assert_eq!((&system["extension"], &system["status"]), (&json!("postgres_changes"), &json!("error")));
    system["message"].as_str().expect("a text").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_are_told_why_and_can_subscribe_again_with_something_better() {
    let stage = Stage::with(TABLES).await;
    let cases = [
        (entry("*", "tasks", &json!({ "filter": "wrong" })), "Error parsing `filter` params: [\"wrong\"]"),
        (entry("*", "tasks", &json!({ "filter": "nope=eq.1" })), "invalid column for filter nope"),
        (entry("*", "tasks", &json!({ "filter": "id=eq.hey" })), "ERROR 22P02 (invalid_text_representation)"),
        (entry("*", "tasks", &json!({ "select": ["nope"] })), "invalid column for select nope"),
        (entry("*", "unpublished", &json!({})), "Please check Realtime is enabled"),
    ];
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        for (index, (bad, expected)) in cases.iter().enumerate() {
            let topic = format!("case {index}");
            let good = entry("*", "tasks", &json!({ "filter": format!("id=eq.{index}") }));
            phone.ask_to_subscribe(&topic, &with_marks(&json!([good, bad])));
            assert_eq!(phone.status(&topic).await.0, "SUBSCRIBED", "{stock:?} {bad}");
            let message = told(&mut phone, stock, &topic).await;
            assert!(message.contains(expected), "{stock:?} {bad}: {message}");
            phone.unsubscribe(&topic).await;
            // The same topic on the same connection.
            phone.subscribe(&topic, &with_marks(&json!([good]))).await;
            stage.exec(&format!("insert into tasks (id) values ({index}); delete from tasks")).await;
            let mark = format!("{stock:?} {index}");
            stage.mark(&mark).await;
            let calls = calls_before(&mut phone, &mark).await;
            assert_eq!(calls, [format!("0: INSERT {index}"), format!("0: DELETE {index}")], "{stock:?} {bad}");
            phone.unsubscribe(&topic).await;
        }
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_channel_gets_nothing_and_its_neighbour_everything() {
    let stage = Stage::with(TABLES).await;
    for stock in [Stock::JavaScript, Stock::JavaScriptV1] {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        phone.subscribe("good", &with_marks(&json!([entry("*", "tasks", &json!({}))]))).await;
        let entries = json!([entry("*", "tasks", &json!({})), entry("*", "tasks", &json!({ "filter": "nope=eq.1" }))]);
        phone.ask_to_subscribe("bad", &entries);
        assert_eq!(phone.status("bad").await.0, "SUBSCRIBED");
        told(&mut phone, stock, "bad").await;
        stage.exec("insert into tasks (id) values (1); delete from tasks").await;
        stage.mark("end").await;
        let changes = phone.changes_before("end").await;
        assert_eq!(changes.iter().map(|change| &*change.topic).collect::<Vec<_>>(), ["good"; 2], "{stock:?}");
        // The channel is open as far as the application knows, and stays so.
        assert_eq!(phone.more_statuses("bad"), [], "{stock:?}");
        phone.exit().await;
    }
}

/// Older Python clients drop a frame whose `errors` is a list; this one must get it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_was_cut_is_given_to_the_application_with_its_error() {
    let stage = Stage::with(TABLES).await;
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        phone.subscribe("room", &with_marks(&json!([entry("INSERT", "tasks", &json!({}))]))).await;
        stage.exec("insert into tasks values (1, repeat('x', 1100000), 7)").await;
        stage.exec("truncate tasks").await;
        stage.mark("end").await;
        let changes = phone.changes_before("end").await;
        assert_eq!(changes.len(), 1, "{stock:?}");
        assert_eq!(changes[0].data["errors"], json!(["Error 413: Payload Too Large"]), "{stock:?}");
        let record = changes[0].record();
        assert_eq!((&record["id"], &record["rank"]), (&json!(1), &json!(7)), "{stock:?}");
        // JavaScript fills in the columns that are not there.
        assert!(record.get("title").is_none_or(Value::is_null), "{stock:?}");
        phone.exit().await;
    }
}

/// Decision 25: the message comes once, at the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_table_without_a_key_the_application_is_told_and_its_other_tables_go_on() {
    let stage = Stage::with(&format!(
        "{TABLES} create table public.keyless (n int); grant select on public.keyless to authenticated;
         alter publication supabase_realtime add table public.keyless;"
    ))
    .await;
    let entries = with_marks(&json!([entry("*", "keyless", &json!({})), entry("*", "tasks", &json!({}))]));
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        phone.subscribe("room", &entries).await;
        let system = phone.system("room").await;
        let begin = "Error 400: Bad Request, no primary key";
        assert!(system["message"].as_str().is_some_and(|message| message.starts_with(begin)), "{stock:?}: {system}");
        stage.exec("insert into keyless values (1); insert into tasks (id) values (1)").await;
        stage.mark("end").await;
        assert_eq!(calls_before(&mut phone, "end").await, ["1: INSERT 1"], "{stock:?}");
        stage.exec("truncate tasks, marks").await;
        phone.exit().await;
    }
}

/// Of a wildcard it is no error: the Python client would call the channel broken and join it again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_wildcards_tables_without_a_key_no_client_makes_an_error() {
    let stage = Stage::with(&format!(
        "{TABLES} create table public.keyless (n int); grant select on public.keyless to authenticated;
         alter publication supabase_realtime add table public.keyless;"
    ))
    .await;
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        let entries = json!([{ "event": "*", "schema": "public" }, entry("*", "marks", &json!({}))]);
        phone.subscribe("room", &entries).await;
        let system = phone.system("room").await;
        assert_eq!(system["status"], "ok", "{stock:?}");
        let begin = "Error 400: Bad Request, no primary key";
        assert!(system["message"].as_str().is_some_and(|message| message.starts_with(begin)), "{stock:?}: {system}");
        stage.exec("insert into keyless values (1); insert into tasks (id) values (1)").await;
        stage.mark("end").await;
        assert_eq!(calls_before(&mut phone, "end").await, ["0: INSERT 1"], "{stock:?}");
        assert_eq!(phone.more_statuses("room"), [], "{stock:?}");
        stage.exec("truncate tasks, marks").await;
        phone.exit().await;
    }
}
