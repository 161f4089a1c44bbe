//! Items 168 to 176: what a delivered change looks like, and its order (`protocol.md` §13.12).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::stage::all_of;
use crate::support::token::{self, ALICE};
use crate::support::{Change, Stage, summary};

const ITEMS: &str = "
    create table public.items (id int primary key, title text, done boolean default false, at timestamptz);
    grant select on public.items to authenticated;
    alter publication supabase_realtime add table public.items;";

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

/// Kind, `record` and `old_record`, as far as they are there.
fn images(change: &Change) -> (&str, Option<&Value>, Option<&Value>) {
    (change.kind(), change.data.get("record"), change.data.get("old_record"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_168_an_insert_has_its_record_and_no_old_record() {
    let stage = Stage::with(ITEMS).await;
    let mut pair = stage.watch(&token::user(ALICE), &all_of("items")).await;
    stage.exec("insert into items values (1, 'a \"title\"', true, null)").await;
    let change = pair.next_change().await;
    assert_eq!((&*change.topic, &change.ids), ("room", &vec![pair.ids[0]]));
    let mut known: BTreeSet<&str> = keys(&change.data).into_iter().collect();
    // Ours, beside what the protocol has.
    known.remove("cursor");
    let expected = ["schema", "table", "type", "commit_timestamp", "columns", "record", "errors"];
    assert_eq!(known, BTreeSet::from(expected));
    assert_eq!((&change.data["schema"], change.table(), change.kind()), (&json!("public"), "items", "INSERT"));
    assert_eq!(change.record(), &json!({ "id": 1, "title": "a \"title\"", "done": true, "at": null }));
    assert_eq!(change.data["errors"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_169_an_update_that_leaves_the_key_alone_has_the_key_as_its_old_record() {
    let stage = Stage::with(ITEMS).await;
    let mut pair = stage.watch(&token::user(ALICE), &all_of("items")).await;
    stage.exec("insert into items values (1, 'before')").await;
    stage.exec("update items set title = 'after'").await;
    stage.exec("update items set title = null, done = null").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let row = |title: Value, done: Value| json!({ "id": 1, "title": title, "done": done, "at": null });
    let key = json!({ "id": 1 });
    assert_eq!(images(&changes[1]), ("UPDATE", Some(&row(json!("after"), json!(false))), Some(&key)));
    assert_eq!(images(&changes[2]), ("UPDATE", Some(&row(json!(null), json!(null))), Some(&key)));
    assert_eq!(changes[1].data["errors"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_170_an_update_shows_the_old_row_as_far_as_the_identity_has_it() {
    let stage = Stage::with(&format!(
        "{ITEMS} create table public.pairs (a int, note text, b text, primary key (b, a));
         create table public.whole (id int primary key, note text);
         alter table public.whole replica identity full;
         grant select on public.pairs, public.whole to authenticated;
         alter publication supabase_realtime add table public.pairs, public.whole;"
    ))
    .await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "items" },
        { "event": "*", "schema": "public", "table": "pairs" },
        { "event": "*", "schema": "public", "table": "whole" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    for sql in [
        "insert into whole values (1, 'before'); insert into items values (1, 'x'); insert into pairs values (1, 'n', 'x')",
        "update whole set note = 'after'",
        "update whole set id = 2, note = null",
        "update items set id = 2",
        "update items set id = 2",
        "update pairs set a = 2",
        "update pairs set b = 'y', note = 'm'",
    ] {
        stage.exec(sql).await;
    }
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let item = json!({ "id": 2, "title": "x", "done": false, "at": null });
    let expected = [
        (json!({ "id": 1, "note": "after" }), json!({ "id": 1, "note": "before" })),
        (json!({ "id": 2, "note": null }), json!({ "id": 1, "note": "after" })),
        (item.clone(), json!({ "id": 1 })),
        (item, json!({ "id": 2 })),
        (json!({ "a": 2, "note": "n", "b": "x" }), json!({ "a": 1, "b": "x" })),
        (json!({ "a": 2, "note": "m", "b": "y" }), json!({ "a": 2, "b": "x" })),
    ];
    assert_eq!(changes.len(), 3 + expected.len());
    for (change, (new, old)) in changes[3..].iter().zip(&expected) {
        assert_eq!(images(change), ("UPDATE", Some(new), Some(old)));
    }
}

/// Three tables with the identities that a delete may have, and one under row-level security.
const DELETES: &str = "
    create table public.by_key (id int primary key, note text);
    create table public.by_row (like public.by_key including all);
    create table public.guarded (like public.by_key including all);
    alter table public.by_row replica identity full;
    alter table public.guarded replica identity full;
    alter table public.guarded enable row level security;
    create policy everybody on public.guarded for select to authenticated using (true);
    create policy positive on public.guarded as restrictive for select to authenticated using (id > 0);
    grant select on public.by_key, public.by_row, public.guarded to authenticated;
    alter publication supabase_realtime add table public.by_key, public.by_row, public.guarded;";

/// The other mode is in `deletes_mode`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_171_a_delete_has_the_old_identity_and_no_record() {
    let stage = Stage::with(DELETES).await;
    let mut pair = stage.watch(&token::user(ALICE), &json!([{ "event": "DELETE", "schema": "public" }])).await;
    for table in ["by_key", "by_row", "guarded"] {
        stage.exec(&format!("insert into {table} values (1, 'n'), (-1, 'hidden')")).await;
        stage.exec(&format!("delete from {table} where id = 1")).await;
    }
    // By the old row, this one may not be seen.
    stage.exec("delete from guarded").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let (key, row) = (json!({ "id": 1 }), json!({ "id": 1, "note": "n" }));
    // Judged: who is shown to have had a right to the old row sees all of the identity.
    let expected = [("by_key", &key), ("by_row", &row), ("guarded", &row)];
    let told: Vec<_> = changes.iter().map(|change| (change.table(), change.old_record())).collect();
    assert_eq!(told, expected);
    for change in &changes {
        assert_eq!((change.kind(), change.data.get("record"), &change.data["errors"]), ("DELETE", None, &Value::Null));
        assert!(change.data["commit_timestamp"].is_string());
    }
    // Where the identity is the key, `columns` still names what the role may read.
    assert_eq!(changes[0].data["columns"].as_array().map(Vec::len), Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_172_an_entry_gets_the_kinds_that_it_asked_for() {
    let stage = Stage::with(ITEMS).await;
    let kinds = ["INSERT", "insert", "UPDATE", "Update", "DELETE", "delete", "*", "SELECT", ""];
    let mut entries: Vec<Value> =
        kinds.iter().map(|event| json!({ "event": event, "schema": "public", "table": "items" })).collect();
    entries.extend([
        json!({ "schema": "public", "table": "items" }),
        json!({ "event": 5, "schema": "public", "table": "items" }),
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &Value::Array(entries)).await;
    stage.exec("insert into items values (1)").await;
    stage.exec("update items set title = 'x'").await;
    stage.exec("delete from items").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let told: Vec<_> = changes.iter().map(|change| (change.kind(), pair.entries_of(change))).collect();
    let expected = [
        ("INSERT", vec![0, 1, 6, 7, 8, 9, 10]),
        ("UPDATE", vec![2, 3, 6, 7, 8, 9, 10]),
        ("DELETE", vec![4, 5, 6, 7, 8, 9, 10]),
    ];
    assert_eq!(told, expected);
    // Alone on its channel, one kind brings no frame of another.
    let mut only =
        stage.watch(&token::user(ALICE), &json!([{ "event": "insert", "schema": "public", "table": "items" }])).await;
    stage.exec("insert into items values (2)").await;
    stage.exec("update items set title = 'x'").await;
    stage.exec("delete from items").await;
    stage.mark("only").await;
    assert_eq!(summary(&only.changes_before("only").await, "id"), ["INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_173_columns_are_named_with_their_types_in_the_tables_order() {
    let stage = Stage::with(
        "create type public.mood as enum ('fine'); create domain public.grade as int check (value > 0);
         create type public.\"Two Words\" as (a int);
         create table public.shapes (z int8, gone text, a varchar(5), n numeric(5, 2), tags text[], m public.mood, g public.grade,
             c public.\"Two Words\", f bpchar, id int primary key, ts timestamp, r int4range);
         alter table public.shapes drop column gone;
         grant select on public.shapes to authenticated;
         alter publication supabase_realtime add table public.shapes;",
    )
    .await;
    let mut pair = stage.watch(&token::user(ALICE), &all_of("shapes")).await;
    stage.exec("insert into shapes (id) values (1); update shapes set z = 1").await;
    stage.mark("end").await;
    let columns: Vec<Value> = [
        ("z", "int8"),
        ("a", "varchar"),
        ("n", "numeric"),
        ("tags", "_text"),
        ("m", "mood"),
        ("g", "grade"),
        ("c", "Two Words"),
        ("f", "bpchar"),
        ("id", "int4"),
        ("ts", "timestamp"),
        ("r", "int4range"),
    ]
    .map(|(name, kind)| json!({ "name": name, "type": kind }))
    .into();
    let changes = pair.changes_before("end").await;
    assert_eq!(changes.len(), 2);
    for change in &changes {
        assert_eq!(change.data["columns"], Value::Array(columns.clone()), "{}", change.kind());
    }
    // In the record too, since clients show it in that order.
    let text = &changes[0].text;
    let places: Vec<_> = columns.iter().map(|c| text.rfind(&format!("{}:", c["name"]))).collect();
    assert!(places.is_sorted() && places[0].is_some(), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_174_the_commit_timestamp_has_milliseconds_and_is_the_commits() {
    let stage = Stage::with(ITEMS).await;
    let mut pair = stage.watch(&token::user(ALICE), &all_of("items")).await;
    let client = stage.pg.client().await;
    let clock = async || -> String {
        let sql = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
        client.query_one(sql, &[]).await.expect("a row").get(0)
    };
    stage.exec("set timezone to 'Asia/Kolkata'").await;
    let before = clock().await;
    stage.exec("insert into items values (1); update items set done = true; delete from items").await;
    let after = clock().await;
    stage.exec("reset timezone").await;
    for _ in 0..3 {
        let change = pair.next_change().await;
        let stamp = change.data["commit_timestamp"].as_str().expect("a string");
        let pattern: String = stamp.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(pattern, "0000-00-00T00:00:00.000Z", "{stamp}");
        // Tighter than "within two seconds of now", and true on a slow machine as well.
        assert!(*before <= *stamp && *stamp <= *after, "{before} {stamp} {after}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_175_a_transactions_changes_come_in_order_with_one_timestamp_and_a_rolled_back_one_gives_nothing() {
    let stage = Stage::with(&format!(
        "{ITEMS} create table public.lines (id int primary key, item int);
         grant select on public.lines to authenticated;
         alter publication supabase_realtime add table public.lines;"
    ))
    .await;
    let entries = json!([{ "event": "*", "schema": "public" }]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    stage.exec("begin; insert into items values (9); insert into lines values (9); rollback").await;
    stage
        .exec(
            "begin; insert into items values (1); insert into lines select n, 1 from generate_series(1, 300) n; \
             savepoint s; delete from items; rollback to s; \
             update items set id = 2; delete from lines where id > 298; insert into items values (3); commit",
        )
        .await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let mut expected = vec!["INSERT 1".to_owned()];
    expected.extend((1..=300).map(|n| format!("INSERT {n}")));
    expected.extend(["UPDATE 2", "DELETE 299", "DELETE 300", "INSERT 3"].map(str::to_owned));
    assert_eq!(summary(&changes, "id"), expected);
    for change in &changes {
        assert_eq!(change.data["commit_timestamp"], changes[0].data["commit_timestamp"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_176_truncation_gives_nothing() {
    let stage = Stage::with(ITEMS).await;
    let mut pair = stage.watch(&token::user(ALICE), &all_of("items")).await;
    stage.exec("insert into items values (1); truncate items").await;
    stage.exec("begin; insert into items values (2); truncate items restart identity cascade; insert into items values (3); commit").await;
    stage.mark("end").await;
    assert_eq!(summary(&pair.changes_before("end").await, "id"), ["INSERT 1", "INSERT 2", "INSERT 3"]);
}
