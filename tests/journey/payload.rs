//! What a change looks like: keys, types, formats, and how much of the old row is shown.

use serde_json::{Value, json};

use super::{ALICES_SESSION, BOBS_SESSION, Scene, notify, watching};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Phone, Version, without_cursor};

/// Takes the timestamp out and checks its form: UTC, exactly three digits, about now.
fn without_timestamp(change: &Change) -> Value {
    let mut data = without_cursor(change.data.clone());
    let stamp = data["commit_timestamp"].take();
    let stamp = stamp.as_str().expect("a string");
    let pattern: String = stamp.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(pattern, "0000-00-00T00:00:00.000Z", "{stamp}");
    data.as_object_mut().expect("an object").remove("commit_timestamp");
    data
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_has_exactly_the_keys_and_values_that_clients_expect() {
    let scene = Scene::start().await;
    for version in [Version::V1, Version::V2] {
        let mut phone = Phone::connect(&scene.relay.base(), &token::user(ALICE), version).await;
        let ids = phone.subscribe("room", &watching(&["notifications", "session_events"])).await;
        scene
            .exec(&format!(
                "insert into notifications (id, user_id, kind, body, created_at) overriding system value \
                 values (9007199254740993, '{ALICE}', 'käse \"1\"', E'two\\nlines', '2026-01-02 04:04:05.678+01')"
            ))
            .await;
        let change = phone.next_change().await;
        assert_eq!((&*change.topic, &change.ids), ("room", &vec![ids[0]]));
        let expected = json!({
            "schema": "public", "table": "notifications", "type": "INSERT", "errors": null,
            "columns": [
                { "name": "id", "type": "int8" }, { "name": "user_id", "type": "uuid" }, { "name": "kind", "type": "text" },
                { "name": "body", "type": "text" }, { "name": "read_at", "type": "timestamptz" },
                { "name": "created_at", "type": "timestamptz" },
            ],
            "record": {
                "id": 9_007_199_254_740_993_i64, "user_id": ALICE, "kind": "käse \"1\"", "body": "two\nlines", "read_at": null,
                "created_at": "2026-01-02T03:04:05.678+00:00",
            },
        });
        assert_eq!(without_timestamp(&change), expected);
        scene.exec("delete from notifications").await;
        assert_eq!(phone.next_change().await.kind(), "DELETE");

        let id = "00000000-0000-4000-8000-000000000001";
        scene
            .exec(&format!(
                "insert into session_events values \
                 ('{id}', '{ALICES_SESSION}', '', '{{\"b\": [1.50, null, \"x\"], \"a\": {{}}}}', '2026-01-02 00:00:00+00')"
            ))
            .await;
        let change = phone.next_change().await;
        let expected = json!({
            "schema": "public", "table": "session_events", "type": "INSERT", "errors": null,
            "columns": [
                { "name": "id", "type": "uuid" }, { "name": "session_id", "type": "uuid" },
                { "name": "event_type", "type": "text" }, { "name": "event_data", "type": "jsonb" },
                { "name": "created_at", "type": "timestamptz" },
            ],
            "record": {
                "id": id, "session_id": ALICES_SESSION, "event_type": "",
                "event_data": { "a": {}, "b": [1.50, null, "x"] }, "created_at": "2026-01-02T00:00:00+00:00",
            },
        });
        assert_eq!(without_timestamp(&change), expected);
        // Taken by this phone, so that it is behind the next one when that comes.
        scene.exec("delete from session_events").await;
        assert_eq!(phone.next_change().await.kind(), "DELETE");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commit_timestamp_is_the_databases() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&[])).await;
    let client = scene.pg.client().await;
    let clock = async || -> String {
        let sql = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
        client.query_one(sql, &[]).await.expect("a row").get(0)
    };
    let before = clock().await;
    scene.mark("one").await;
    let after = clock().await;
    let change = phone.next_change().await;
    let stamp = change.data["commit_timestamp"].as_str().expect("a string");
    assert!(*before <= *stamp && *stamp <= *after, "{before} {stamp} {after}");
}

/// Two tables with the same policy: identity is the key in the first, the whole row in the second.
const IDENTITIES: &str = "
    create table public.by_key (user_id uuid, id int, note text, primary key (user_id, id));
    create table public.by_row (like public.by_key including all);
    alter table public.by_row replica identity full;
    alter table public.by_key enable row level security;
    alter table public.by_row enable row level security;
    create policy own on public.by_key for select to authenticated using (user_id = auth.uid());
    create policy own on public.by_row for select to authenticated using (user_id = auth.uid());
    grant select on public.by_key, public.by_row to authenticated;
    alter publication supabase_realtime add table public.by_key, public.by_row;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_row_is_shown_as_far_as_the_identity_has_it() {
    let scene = Scene::with(IDENTITIES).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["by_key", "by_row"])).await;
    for table in ["by_key", "by_row"] {
        scene.exec(&format!("insert into {table} values ('{ALICE}', 1, 'first')")).await;
        scene.exec(&format!("update {table} set note = 'second'")).await;
        scene.exec(&format!("update {table} set id = 2")).await;
        scene.exec(&format!("delete from {table}")).await;
    }
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    let row = |id: i32, note: &str| json!({ "user_id": ALICE, "id": id, "note": note });
    let key = |id: i32| json!({ "user_id": ALICE, "id": id });
    let expected = [
        ("INSERT", Some(row(1, "first")), None),
        ("UPDATE", Some(row(1, "second")), Some(key(1))),
        ("UPDATE", Some(row(2, "second")), Some(key(1))),
        ("DELETE", None, Some(key(2))),
        ("INSERT", Some(row(1, "first")), None),
        ("UPDATE", Some(row(1, "second")), Some(row(1, "first"))),
        ("UPDATE", Some(row(2, "second")), Some(row(1, "second"))),
        ("DELETE", None, Some(row(2, "second"))),
    ];
    let shown = |change: &Change| {
        let image = |key: &str| change.data.get(key).cloned();
        (change.kind().to_owned(), image("record"), image("old_record"))
    };
    let received: Vec<_> = changes.iter().map(shown).collect();
    let expected = expected.map(|(kind, new, old)| (kind.to_owned(), new, old));
    assert_eq!(received, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_old_row_that_was_not_his_the_new_owner_sees_the_key_only() {
    let scene = Scene::with(IDENTITIES).await;
    let mut phone = scene.relay.phone(&token::user(BOB)).await;
    phone.subscribe("room", &watching(&["notifications", "by_row", "session_events"])).await;
    scene
        .exec(&format!("insert into notifications (user_id, kind, body) values ('{ALICE}', 'k', 'secret of alice')"))
        .await;
    scene.exec(&format!("update notifications set user_id = '{BOB}', body = ''")).await;
    scene.exec(&format!("insert into by_row values ('{ALICE}', 1, 'secret of alice')")).await;
    scene.exec(&format!("update by_row set user_id = '{BOB}', note = ''")).await;
    let change = phone.next_change().await;
    assert_eq!((change.kind(), change.old_record()), ("UPDATE", &json!({ "id": 1 })));
    let change = phone.next_change().await;
    assert_eq!((change.kind(), change.old_record()), ("UPDATE", &json!({ "id": 1, "user_id": ALICE })));
    // The same where Postgres has to be asked about both rows.
    let id = "00000000-0000-4000-8000-000000000001";
    scene
        .exec(&format!(
            "insert into session_events (id, session_id, event_type) values ('{id}', '{ALICES_SESSION}', 'secret')"
        ))
        .await;
    scene.exec(&format!("update session_events set session_id = '{BOBS_SESSION}', event_type = 'given'")).await;
    scene.exec("update session_events set event_type = 'own'").await;
    let change = phone.next_change().await;
    assert_eq!((change.kind(), change.old_record()), ("UPDATE", &json!({ "id": id })));
    let change = phone.next_change().await;
    assert_eq!((&change.record()["event_type"], &change.old_record()["event_type"]), (&json!("own"), &json!("given")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_added_while_subscribed_is_in_the_next_record() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    let mut shapes = Vec::new();
    for change in ["", "add column urgent boolean not null default true", "drop column body"] {
        if !change.is_empty() {
            scene.exec(&format!("alter table notifications {change}")).await;
        }
        scene.exec(&notify(ALICE, "n")).await;
        let change = phone.next_change().await;
        let columns = change.data["columns"].as_array().expect("columns");
        let mut names: Vec<&str> = columns.iter().map(|c| c["name"].as_str().expect("a name")).collect();
        shapes.push(names.join(" "));
        names.sort_unstable();
        let record = change.record().as_object().expect("a record");
        assert_eq!(record.keys().collect::<Vec<_>>(), names);
    }
    assert_eq!(
        shapes,
        [
            "id user_id kind body read_at created_at",
            "id user_id kind body read_at created_at urgent",
            "id user_id kind read_at created_at urgent"
        ]
    );
}
