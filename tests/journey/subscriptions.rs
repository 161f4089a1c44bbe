//! Which entries a change matches: kinds, wildcards, filters of each type; channels side by side.

use serde_json::{Value, json};

use super::{ALICES_SESSION, BOBS_SESSION, Scene, notify, watching};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Phone, summary};

/// The indexes of the entries that the change is for.
fn entries_of(change: &Change, ids: &[i64]) -> Vec<usize> {
    let index = |id: &i64| ids.iter().position(|known| known == id).expect("an id of ours");
    let mut indexes: Vec<usize> = change.ids.iter().map(index).collect();
    indexes.sort_unstable();
    indexes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_frame_names_every_entry_whose_kind_fits() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let entries: Value = ["INSERT", "UPDATE", "DELETE", "insert", "*"]
        .iter()
        .map(|event| json!({ "event": event, "schema": "public", "table": "notifications" }))
        .chain([json!({ "event": "*", "schema": "public", "table": "marks" })])
        .collect();
    let ids = phone.subscribe("room", &entries).await;
    scene.exec(&notify(ALICE, "n")).await;
    scene.exec("update notifications set kind = 'm'").await;
    scene.exec("delete from notifications").await;
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    let matched: Vec<_> = changes.iter().map(|change| entries_of(change, &ids)).collect();
    assert_eq!(matched, [vec![0, 3, 4], vec![1, 4], vec![2, 4]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wildcards_stand_for_the_publication() {
    let other = "create schema audit; grant usage on schema audit to authenticated;
        create table audit.\"Odd.Name, x\" (\"Id\" int primary key);
        grant select on audit.\"Odd.Name, x\" to authenticated;
        alter publication supabase_realtime add table audit.\"Odd.Name, x\";
        create table public.unpublished (id int primary key); grant select on public.unpublished to authenticated;";
    let scene = Scene::with(other).await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let entries = json!([
        { "event": "*", "schema": "public" },
        { "event": "*", "schema": "*" },
        { "event": "*", "schema": "public", "table": "*" },
        { "event": "*", "table": "notifications" },
        { "event": "*", "schema": "audit", "table": "Odd.Name, x" },
        { "event": "INSERT", "schema": "*", "table": "*" },
    ]);
    let ids = phone.subscribe("room", &entries).await;
    scene.exec(&notify(ALICE, "n")).await;
    scene.exec(&notify(BOB, "not his")).await;
    scene.exec("insert into public.unpublished values (1)").await;
    scene.exec("insert into audit.\"Odd.Name, x\" values (1)").await;
    scene.exec("update notifications set kind = 'm' where kind = 'n'").await;
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    let matched: Vec<_> = changes.iter().map(|change| (change.table(), entries_of(change, &ids))).collect();
    let expected =
        [("notifications", vec![0, 1, 2, 3, 5]), ("Odd.Name, x", vec![1, 4, 5]), ("notifications", vec![0, 1, 2, 3])];
    assert_eq!(matched, expected);
    assert_eq!((&changes[1].data["schema"], changes[1].record()), (&json!("audit"), &json!({ "Id": 1 })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_published_later_reaches_who_subscribed_to_all() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &json!([{ "event": "*", "schema": "public" }])).await;
    scene
        .exec(
            "create table public.late (n int primary key); grant select on public.late to authenticated; \
             alter publication supabase_realtime add table public.late",
        )
        .await;
    // The relay learns of it within the refresh interval.
    let deadline = tokio::time::Instant::now() + crate::support::phone::PATIENCE;
    for n in 1.. {
        scene.exec(&format!("insert into late values ({n})")).await;
        scene.mark(&n.to_string()).await;
        let before = phone.changes_before(&n.to_string()).await;
        if !before.is_empty() {
            assert_eq!(before[0].record(), &json!({ "n": n }));
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "never");
    }
}

async fn filters(phone: &mut Phone, table: &str, filters: &[&str]) -> Vec<i64> {
    let mut entries: Vec<Value> = filters
        .iter()
        .map(|filter| json!({ "event": "*", "schema": "public", "table": table, "filter": filter }))
        .collect();
    entries.push(json!({ "event": "*", "schema": "public", "table": "marks" }));
    phone.subscribe(table, &Value::Array(entries)).await
}

/// The filters that the change passed; the others are those that it should not pass.
fn assert_passed(change: &Change, ids: &[i64], filters: &[&str], expected: &[&str]) {
    let passed: Vec<&str> = entries_of(change, ids).into_iter().map(|index| filters[index]).collect();
    assert_eq!(passed, expected, "{} {}", change.kind(), change.table());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_compare_as_the_columns_type_does() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let upper = format!("user_id=eq.{}", ALICE.to_uppercase());
    let other = format!("user_id=eq.{BOB}");
    let yes = [
        "id=eq.7",
        "id=eq. 007",
        &upper,
        "kind=eq.\"a, b\"",
        "body=eq.é.=x",
        "read_at=eq.2026-01-02T04:04:05.678+01:00",
        "read_at=eq.2026-01-02 03:04:05.678000Z",
        "id=eq.7,body=eq.é.=x",
    ];
    let no =
        ["id=eq.8", &other, "kind=eq.a", "body=eq.É.=x", "read_at=eq.2026-01-02T03:04:05.679Z", "id=eq.7,body=eq."];
    let all: Vec<&str> = yes.iter().copied().chain(no).collect();
    let ids = filters(&mut phone, "notifications", &all).await;
    scene
        .exec(&format!(
            "insert into notifications (id, user_id, kind, body, read_at) overriding system value \
             values (7, '{ALICE}', 'a, b', 'é.=x', '2026-01-02 03:04:05.678Z')"
        ))
        .await;
    scene.exec("update notifications set read_at = null").await;
    scene.exec("update notifications set read_at = '2026-01-02 03:04:05.678Z'").await;
    scene.exec("delete from notifications").await;
    assert_passed(&phone.next_change().await, &ids, &all, &yes);
    // A NULL equals nothing.
    let without_time: Vec<&str> = yes.iter().copied().filter(|filter| !filter.starts_with("read_at")).collect();
    assert_passed(&phone.next_change().await, &ids, &all, &without_time);
    assert_passed(&phone.next_change().await, &ids, &all, &yes);
    assert_passed(&phone.next_change().await, &ids, &all, &yes);

    let own = format!("session_id=eq.{ALICES_SESSION}");
    let others = format!("session_id=eq.{BOBS_SESSION}");
    let yes = [
        "id=eq.00000000-0000-4000-8000-00000000000A",
        &own,
        "event_type=eq.x",
        "event_data=eq.{\"a\": 1.50}",
        "event_data=eq.\"{\\\"a\\\":1.5}\"",
        "created_at=eq.2026-01-01T23:30:00-00:30",
    ];
    let no =
        ["id=eq.00000000-0000-4000-8000-00000000000b", &others, "event_type=eq.X", "event_data=eq.{\"a\": \"1.5\"}"];
    let all: Vec<&str> = yes.iter().copied().chain(no).collect();
    let ids = filters(&mut phone, "session_events", &all).await;
    scene
        .exec(&format!(
            "insert into session_events values ('00000000-0000-4000-8000-00000000000a', '{ALICES_SESSION}', 'x', \
             '{{\"a\": 1.5}}', '2026-01-02 00:00:00Z')"
        ))
        .await;
    scene.exec("update session_events set created_at = created_at").await;
    scene.exec("delete from session_events").await;
    for _ in 0..3 {
        assert_passed(&phone.next_change().await, &ids, &all, &yes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_matched_by_its_new_row() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &super::filtered("notifications", "kind=eq.wanted")).await;
    scene.exec(&notify(ALICE, "other")).await;
    scene.exec("update notifications set kind = 'wanted'").await;
    scene.exec("update notifications set kind = 'other'").await;
    scene.exec("delete from notifications").await;
    scene.mark("end").await;
    assert_eq!(summary(&phone.changes_before("end").await, "kind"), ["UPDATE wanted"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_of_one_connection_get_their_own_frames_until_they_leave() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let one = phone.subscribe("one", &watching(&["notifications"])).await;
    let two = phone.subscribe("two", &super::filtered("notifications", "kind=eq.n")).await;
    scene.exec(&notify(ALICE, "n")).await;
    let mut received = [phone.next_change().await, phone.next_change().await];
    received.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!((&*received[0].topic, &received[0].ids), ("one", &vec![one[0]]));
    assert_eq!((&*received[1].topic, &received[1].ids), ("two", &vec![two[0]]));
    phone.leave("one").await;
    scene.exec(&notify(ALICE, "n")).await;
    scene.mark("left").await;
    let changes = phone.changes_before("left").await;
    assert_eq!(changes.iter().map(|change| &*change.topic).collect::<Vec<_>>(), ["two"]);
    // And it can come back.
    phone.subscribe("one", &watching(&["notifications"])).await;
    scene.exec(&notify(ALICE, "back")).await;
    let change = phone.next_change().await;
    assert_eq!((&*change.topic, &change.record()["kind"]), ("one", &json!("back")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_a_topic_again_replaces_its_entries() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    phone.subscribe("room", &super::filtered("notifications", "kind=eq.second")).await;
    scene.exec(&notify(ALICE, "first")).await;
    scene.exec(&notify(ALICE, "second")).await;
    scene.mark("end").await;
    assert_eq!(summary(&phone.changes_before("end").await, "kind"), ["INSERT second"]);
}
