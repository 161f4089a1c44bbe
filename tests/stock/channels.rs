//! Channels: several on one connection, left and opened again; several users side by side.

use serde_json::{Value, json};

use super::{STOCKS, TABLES, calls_before, entry, write_notes};
use crate::support::stage::with_marks;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Stage, summary};

fn tasks(event: &str) -> Value {
    with_marks(&json!([entry(event, "tasks", &json!({}))]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_left_is_silent_and_opened_again_it_is_as_new() {
    let stage = Stage::with(TABLES).await;
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        phone.subscribe("witness", &tasks("INSERT")).await;
        for round in 0..3 {
            // With other entries each time: the ids are those of the last join.
            let filter = entry("*", "tasks", &json!({ "filter": format!("id=gte.{round}") }));
            phone.subscribe("room", &json!([filter, entry("DELETE", "tasks", &json!({}))])).await;
            stage.exec(&format!("insert into tasks (id) values ({round}), (-1); delete from tasks")).await;
            let mark = format!("{stock:?} {round}");
            stage.mark(&mark).await;
            let changes = phone.changes_before(&mark).await;
            let of = |topic: &str| changes.iter().filter(|change| change.topic == topic).cloned().collect::<Vec<_>>();
            assert_eq!(summary(&of("witness"), "id"), [format!("INSERT {round}"), "INSERT -1".into()], "{stock:?}");
            let mut calls = super::calls(&of("room"));
            calls.sort_unstable();
            let (insert, delete) = (format!("0: INSERT {round}"), format!("0: DELETE {round}"));
            assert_eq!(calls, [&*delete, &*insert, "1: DELETE -1", &*format!("1: DELETE {round}")], "{stock:?}");
            phone.unsubscribe("room").await;
            stage.exec("insert into tasks (id) values (7); delete from tasks").await;
            let mark = format!("{stock:?} {round} left");
            stage.mark(&mark).await;
            let changes = phone.changes_before(&mark).await;
            assert_eq!(changes.iter().map(|change| &*change.topic).collect::<Vec<_>>(), ["witness"], "{stock:?}");
        }
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_on_one_topic_of_one_table_get_each_their_own() {
    let stage = Stage::with(TABLES).await;
    let entries = with_marks(&json!([entry("*", "notes", &json!({}))]));
    let mut phones = Vec::new();
    for stock in STOCKS {
        for (user, id) in [(ALICE, 1), (BOB, 2)] {
            let mut phone = stage.relay.sdk(stock, &token::user(user)).await;
            phone.subscribe("room", &entries).await;
            phones.push((stock, id, phone));
        }
    }
    // A subscription may begin a little before it was asked for.
    stage.mark("begin").await;
    for (.., phone) in &mut phones {
        phone.changes_before("begin").await;
    }
    write_notes(&stage).await;
    stage.mark("end").await;
    for (stock, id, mut phone) in phones {
        let expected = ["INSERT", "UPDATE", "DELETE"].map(|kind| format!("0: {kind} {id}"));
        assert_eq!(calls_before(&mut phone, "end").await, expected, "{stock:?}");
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_are_given_rows_with_the_values_that_postgres_has() {
    let stage = Stage::with(
        "create table public.kinds (id int8 primary key, n numeric, f float8, b boolean, j jsonb, tags text[], grid int[],
             at timestamptz, day date, r int4range, bytes bytea, nothing text);
         grant select on public.kinds to authenticated;
         alter publication supabase_realtime add table public.kinds;",
    )
    .await;
    let entries = with_marks(&json!([entry("INSERT", "kinds", &json!({}))]));
    for stock in STOCKS {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        phone.subscribe("room", &entries).await;
        stage
            .exec(
                "insert into kinds values (7, 1.50, 0.1, true, '{\"a\": [1, null, \"x\"]}', '{a,\"b, c\",NULL}', '{{1,2},{3,4}}',
                     '2026-01-02 03:04:05.678+01', '2026-01-02', '[1,4)', '\\x0102', null);
                 truncate kinds",
            )
            .await;
        stage.mark("end").await;
        let changes = phone.changes_before("end").await;
        let expected = json!({
            "id": 7, "n": 1.5, "f": 0.1, "b": true, "j": { "a": [1, null, "x"] }, "tags": ["a", "b, c", null],
            "grid": [[1, 2], [3, 4]], "at": "2026-01-02T02:04:05.678+00:00", "day": "2026-01-02", "r": "[1,4)",
            "bytes": "0102", "nothing": null,
        });
        assert_eq!(changes[0].record(), &expected, "{stock:?}");
        phone.exit().await;
    }
}
