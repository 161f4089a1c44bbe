//! Filters, column lists and wildcards as applications write them.

use serde_json::{Value, json};

use super::{STOCKS, TABLES, calls_before, entry};
use crate::support::stage::with_marks;
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock};

/// Which of these entries' callbacks are called for each of the rows.
async fn called(stage: &Stage, stock: Stock, entries: &[Value]) -> Vec<String> {
    let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
    phone.subscribe("room", &with_marks(&Value::Array(entries.to_vec()))).await;
    for row in [
        "1, 'milk', 5, false, '2026-01-02 03:04:05Z'",
        "2, 'a, \"b\" (c)', 10, true, null",
        "3, null, null, null, '2026-01-03 00:00Z'",
    ] {
        stage.exec(&format!("insert into tasks values ({row})")).await;
    }
    stage.exec("update tasks set rank = 6 where id = 1").await;
    stage.exec("delete from tasks where id = 2").await;
    stage.mark("end").await;
    let calls = calls_before(&mut phone, "end").await;
    stage.exec("truncate tasks").await;
    phone.exit().await;
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_of_several_operators_call_the_callbacks_that_asked_for_the_row() {
    let stage = Stage::with(TABLES).await;
    let filters = [
        "id=eq.1",
        "title=neq.milk",
        "rank=gte.6,rank=lt.10",
        "title=in.(milk,\"a, \\\"b\\\" (c)\")",
        "title=eq.\"a, \\\"b\\\" (c)\"",
        "title=is.null",
        "done=is.true",
        "rank=isdistinct.5",
        "id=not.in.(1,3)",
        "due=lte.2026-01-02T04:04:05+01:00",
        "done=not.eq.true",
    ];
    let entries = filters.map(|filter| entry("*", "tasks", &json!({ "filter": filter })));
    for stock in STOCKS {
        let expected = [
            "0: INSERT 1",
            "3: INSERT 1",
            "9: INSERT 1",
            "10: INSERT 1",
            "1: INSERT 2",
            "3: INSERT 2",
            "4: INSERT 2",
            "6: INSERT 2",
            "7: INSERT 2",
            "8: INSERT 2",
            "5: INSERT 3",
            "7: INSERT 3",
            "0: UPDATE 1",
            "2: UPDATE 1",
            "3: UPDATE 1",
            "7: UPDATE 1",
            "9: UPDATE 1",
            "10: UPDATE 1",
            "1: DELETE 2",
            "3: DELETE 2",
            "4: DELETE 2",
            "6: DELETE 2",
            "7: DELETE 2",
            "8: DELETE 2",
        ];
        assert_eq!(called(&stage, stock, &entries).await, expected, "{stock:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_and_the_order_of_text_call_the_callbacks_that_asked_for_the_row() {
    let stage = Stage::with(TABLES).await;
    let filters = [
        "title=like.mi%",
        "title=ilike.%ILK",
        "title=match.\"^a, \"",
        "title=not.imatch.LK$",
        "title=gt.b",
        "title=like.\"%, %(_)\"",
    ];
    let entries = filters.map(|filter| entry("INSERT", "tasks", &json!({ "filter": filter })));
    for stock in STOCKS {
        let expected = ["0: INSERT 1", "1: INSERT 1", "4: INSERT 1", "2: INSERT 2", "3: INSERT 2", "5: INSERT 2"];
        assert_eq!(called(&stage, stock, &entries).await, expected, "{stock:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_of_the_javascript_clients_builder_are_understood() {
    let stage = Stage::with(TABLES).await;
    let built = [
        json!([["eq", "id", 1]]),
        json!([["gte", "rank", 5], ["lt", "rank", 10]]),
        json!([["in", "title", ["milk", "a, \"b\" (c)", " blank"]]]),
        json!([["eq", "title", "a, \"b\" (c)"]]),
        json!([["is", "title", null]]),
        json!([["is", "done", true]]),
        json!([["isDistinct", "rank", 5]]),
        json!([["not", "title", "in", ["milk"]]]),
        json!([["not", "due", "is", null], ["not", "id", "eq", 3]]),
        json!([]),
    ];
    let entries = built.map(|calls| entry("INSERT", "tasks", &json!({ "filter": calls })));
    for stock in [Stock::JavaScript, Stock::JavaScriptV1] {
        let expected = [
            "0: INSERT 1",
            "1: INSERT 1",
            "2: INSERT 1",
            "8: INSERT 1",
            "9: INSERT 1",
            "2: INSERT 2",
            "3: INSERT 2",
            "5: INSERT 2",
            "6: INSERT 2",
            "7: INSERT 2",
            "9: INSERT 2",
            "4: INSERT 3",
            "6: INSERT 3",
            "9: INSERT 3",
        ];
        assert_eq!(called(&stage, stock, &entries).await, expected, "{stock:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_of_the_javascript_clients_builder_are_understood() {
    let stage = Stage::with(TABLES).await;
    let built = [
        json!([["like", "title", "mi%"]]),
        json!([["ilike", "title", "%(C)"]]),
        json!([["match", "title", "\\(c\\)$"]]),
        json!([["imatch", "title", "^M.L"], ["eq", "id", 1]]),
        json!([["not", "title", "like", "%l%"]]),
    ];
    let entries = built.map(|calls| entry("INSERT", "tasks", &json!({ "filter": calls })));
    for stock in [Stock::JavaScript, Stock::JavaScriptV1] {
        let expected = ["0: INSERT 1", "3: INSERT 1", "1: INSERT 2", "2: INSERT 2", "4: INSERT 2"];
        assert_eq!(called(&stage, stock, &entries).await, expected, "{stock:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_list_gives_the_application_the_key_and_what_it_asked_for() {
    let stage = Stage::with(TABLES).await;
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        let entries = json!([
            entry("*", "tasks", &json!({ "select": ["title"] })),
            entry("*", "tasks", &json!({ "select": ["rank", "done"], "filter": "title=eq.t" })),
        ]);
        phone.subscribe("room", &with_marks(&entries)).await;
        stage.exec("insert into tasks values (1, 't', 5, true)").await;
        stage.exec("update tasks set title = 'u'; delete from tasks").await;
        stage.mark("end").await;
        let mut changes = phone.changes_before("end").await;
        changes.sort_by_key(|change| change.ids[0]);
        let image = |index: usize, key: &str| changes[index].data[key].clone();
        assert_eq!(changes.iter().map(|change| change.ids[0]).collect::<Vec<_>>(), [0, 0, 0, 1], "{stock:?}");
        let title = |title: &str| json!({ "id": 1, "title": title });
        assert_eq!(image(0, "record"), title("t"), "{stock:?}");
        assert_eq!((image(1, "record"), image(1, "old_record")), (title("u"), title("t")), "{stock:?}");
        assert_eq!(image(2, "old_record"), title("u"), "{stock:?}");
        assert_eq!(image(3, "record"), json!({ "id": 1, "rank": 5, "done": true }), "{stock:?}");
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wildcards_call_the_callback_for_every_table_that_they_stand_for() {
    let stage = Stage::with(&format!(
        "{TABLES} create schema other; grant usage on schema other to authenticated;
         create table other.things (id int primary key); grant select on other.things to authenticated;
         alter publication supabase_realtime add table other.things;"
    ))
    .await;
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        let entries = json!([
            { "event": "*", "schema": "public" },
            { "event": "INSERT", "schema": "*" },
            { "event": "UPDATE", "schema": "*", "table": "*" },
            { "event": "*", "schema": "other", "table": "*" },
            { "event": "*", "schema": "public", "table": "marks" },
        ]);
        phone.subscribe("room", &entries).await;
        stage.exec("insert into tasks (id) values (1); update tasks set rank = 1; delete from tasks").await;
        stage
            .exec("insert into other.things values (2); update other.things set id = 3; delete from other.things")
            .await;
        stage.exec(&format!("insert into notes values (4, '{ALICE}'), (5, null); delete from notes")).await;
        stage.mark("end").await;
        let calls = calls_before(&mut phone, "end").await;
        let expected = [
            "0: INSERT 1",
            "1: INSERT 1",
            "0: UPDATE 1",
            "2: UPDATE 1",
            "0: DELETE 1",
            "1: INSERT 2",
            "3: INSERT 2",
            "2: UPDATE 3",
            "3: UPDATE 3",
            "3: DELETE 3",
            "0: INSERT 4",
            "1: INSERT 4",
            "0: DELETE 4",
        ];
        assert_eq!(calls, expected, "{stock:?}");
        phone.exit().await;
    }
}
