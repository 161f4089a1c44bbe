//! `ROWCAST_DELETES=key-to-all`, for those who rely on what Supabase does: items 171, 195 and 196 in the compatible mode
//! (`protocol.md` §6.4). The default, `judged`, is tested in `delivery` and `rls`.

use rowcast::policy::Deletes;
use serde_json::{Value, json};

use crate::support::stage::all_of;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Stage, summary};

/// A relay that tells everybody the keys of deleted rows.
async fn key_to_all(sql: &str) -> Stage {
    Stage::configured(sql, |config| config.hub.policy.deletes = Deletes::KeyToAll).await
}

/// Table and `old_record` of each.
fn told(changes: &[Change]) -> Vec<(&str, &Value)> {
    for change in changes {
        assert_eq!((change.kind(), change.data.get("record"), &change.data["errors"]), ("DELETE", None, &Value::Null));
    }
    changes.iter().map(|change| (change.table(), change.old_record())).collect()
}

const TABLES: &str = "
    create table public.by_key (id int primary key, user_id uuid, note text);
    create table public.by_row (like public.by_key including all);
    create table public.by_index (like public.by_key including all);
    create table public.guarded (like public.by_key including all);
    create table public.guarded_thin (like public.by_key including all);
    create table public.keyless (id int, user_id uuid, note text);
    create table public.guarded_keyless (like public.keyless);
    alter table public.by_index alter note set not null;
    create unique index by_note on public.by_index (note);
    alter table public.by_index replica identity using index by_note;
    alter table public.by_row replica identity full;
    alter table public.guarded replica identity full;
    alter table public.keyless replica identity full;
    alter table public.guarded_keyless replica identity full;
    alter table public.guarded enable row level security;
    alter table public.guarded_thin enable row level security;
    alter table public.guarded_keyless enable row level security;
    create policy own on public.guarded for select to authenticated using (user_id = auth.uid());
    create policy own on public.guarded_thin for select to authenticated using (user_id = auth.uid());
    create policy own on public.guarded_keyless for select to authenticated using (user_id = auth.uid());
    create role clerk nologin;
    grant usage on schema public to clerk;
    grant select (note) on all tables in schema public to clerk;
    grant select on all tables in schema public to authenticated;
    alter publication supabase_realtime add table public.by_key, public.by_row, public.by_index, public.guarded,
        public.guarded_thin, public.keyless, public.guarded_keyless;";

/// One row of Alice's in each table, written before anybody subscribes.
async fn filled() -> Stage {
    let stage = key_to_all(TABLES).await;
    for table in ["by_key", "by_row", "by_index", "guarded", "guarded_thin", "keyless", "guarded_keyless"] {
        stage.exec(&format!("insert into {table} values (1, '{ALICE}', 'n')")).await;
    }
    stage
}

const DELETE_ALL: &str = "delete from by_key; delete from by_row; delete from by_index; delete from guarded; \
                          delete from guarded_thin; delete from keyless; delete from guarded_keyless";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_171_key_to_all_sends_the_identity_without_row_level_security_and_the_primary_key_with_it() {
    let stage = filled().await;
    let entries = json!([{ "event": "DELETE", "schema": "public" }]);
    let (key, row) = (json!({ "id": 1 }), json!({ "id": 1, "user_id": ALICE, "note": "n" }));
    let (index, nothing) = (json!({ "note": "n" }), json!({}));
    let mut pairs = Vec::new();
    // It doesn't matter whose the row was.
    for user in [ALICE, BOB] {
        pairs.push(stage.watch(&token::user(user), &entries).await);
    }
    stage.exec(DELETE_ALL).await;
    stage.mark("end").await;
    for pair in &mut pairs {
        let changes = pair.changes_before("end").await;
        let expected = [
            ("by_key", &key),
            ("by_row", &row),
            ("by_index", &index),
            ("guarded", &key),
            ("guarded_thin", &key),
            ("keyless", &row),
            ("guarded_keyless", &nothing),
        ];
        assert_eq!(told(&changes), expected);
        assert!(changes.iter().all(|change| change.data["commit_timestamp"].is_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_195_key_to_all_sends_a_delete_to_every_subscriber_whose_filter_passes() {
    let stage = filled().await;
    let entry = |filter: &str| json!({ "event": "*", "schema": "public", "table": "guarded", "filter": filter });
    // Filters see the whole old row, also what is then not shown.
    let entries =
        json!([entry("note=eq.n"), entry("note=eq.m"), entry("id=eq.1"), entry(&format!("user_id=eq.{BOB}"))]);
    let mut bob = stage.watch(&token::user(BOB), &entries).await;
    // Of the thin one there is no more than the key.
    let thin = json!([
        { "event": "*", "schema": "public", "table": "guarded_thin", "filter": "note=eq.n" },
        { "event": "*", "schema": "public", "table": "guarded_thin", "filter": "id=eq.1" },
    ]);
    let mut thin = stage.watch(&token::user(BOB), &thin).await;
    // Rights to columns hold in this mode too.
    let mut clerk =
        stage.watch(&token::user_as("clerk", ALICE), &json!([{ "event": "DELETE", "schema": "public" }])).await;
    stage.exec("delete from guarded; delete from guarded_thin; delete from by_row").await;
    stage.mark("end").await;
    let changes = bob.changes_before("end").await;
    assert_eq!(told(&changes), [("guarded", &json!({ "id": 1 }))]);
    assert_eq!(bob.entries_of(&changes[0]), [0, 2]);
    let changes = thin.changes_before("end").await;
    assert_eq!(told(&changes), [("guarded_thin", &json!({ "id": 1 }))]);
    assert_eq!(thin.entries_of(&changes[0]), [1]);
    let changes = clerk.changes_before("end").await;
    let (nothing, note) = (json!({}), json!({ "note": "n" }));
    assert_eq!(told(&changes), [("guarded", &nothing), ("guarded_thin", &nothing), ("by_row", &note)]);
    assert_eq!(changes[0].data["columns"], json!([{ "name": "note", "type": "text" }]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_195_key_to_all_changes_nothing_about_inserts_and_updates() {
    let stage = filled().await;
    let mut bob = stage.watch(&token::user(BOB), &all_of("guarded")).await;
    let mut alice = stage.watch(&token::user(ALICE), &all_of("guarded")).await;
    // A subscription may begin a little before it was asked for.
    stage.mark("begin").await;
    alice.changes_before("begin").await;
    bob.changes_before("begin").await;
    stage.exec(&format!("insert into guarded values (2, '{ALICE}'); update guarded set note = 'm' where id = 2")).await;
    stage.mark("end").await;
    assert_eq!(bob.changes_before("end").await, []);
    assert_eq!(summary(&alice.changes_before("end").await, "id"), ["INSERT 2", "UPDATE 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_196_key_to_all_tells_everybody_of_a_row_inserted_and_deleted_in_one_transaction() {
    let stage = key_to_all(TABLES).await;
    let mut pairs = Vec::new();
    for user in [ALICE, BOB] {
        pairs.push(stage.watch(&token::user(user), &all_of("guarded")).await);
    }
    stage.exec(&format!("begin; insert into guarded values (1, '{ALICE}', 'n'); delete from guarded; commit")).await;
    stage.mark("end").await;
    for pair in &mut pairs {
        let mut changes = pair.changes_before("end").await;
        changes.retain(|change| change.kind() != "INSERT");
        assert_eq!(told(&changes), [("guarded", &json!({ "id": 1 }))]);
    }
}
