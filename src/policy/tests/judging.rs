//! Evidence, masks and moments, in memory.

use std::sync::Arc;

use super::support::*;
use crate::change::{Change, OldRow, ReplicaIdentity, Tuple, Value};
use crate::policy::{ColumnMask, DenyReason, Judged, UndecidedReason, Verdict};
use crate::testing::TestDatabase;

const TABLE: &str = "create table t (id int primary key, user_id uuid, body text, secret text);
    revoke all on t from authenticated; grant select (id, user_id, body) on t to authenticated;
    alter table t enable row level security; create policy p on t using (user_id = auth.uid());
    alter publication supabase_realtime add table t";

fn mask(columns: &[usize]) -> ColumnMask {
    columns.iter().copied().collect()
}

fn row(owner: &str) -> Tuple {
    texts(&[Some("1"), Some(owner), Some("b"), Some("s")])
}

fn update(new: Tuple, old: Option<OldRow>) -> Change {
    Change::Update { new, old }
}

#[track_caller]
fn masks(verdict: Verdict) -> (ColumnMask, ColumnMask) {
    match verdict {
        Verdict::Permit(permit) => (permit.new_columns().clone(), permit.old_columns().clone()),
        other => panic!("{other:?}"),
    }
}

const MISSING: Verdict = Verdict::Deny(DenyReason::MissingEvidence);

#[tokio::test]
async fn with_a_key_identity_the_old_row_shows_its_key_and_a_delete_cannot_be_judged_by_its_owner() {
    let mut database = TestDatabase::new().await;
    database.run(TABLE).await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let alice = user(ALICE);
    let judge = |change: &Change| decided(judge(&bound, change, &alice, 0));
    let key = || texts(&[Some("1"), None, None, None]);

    assert_eq!(masks(judge(&insert(row(ALICE)))), (mask(&[0, 1, 2]), mask(&[])), "secret is not granted");
    assert_eq!(judge(&insert(row(BOB))), Verdict::Deny(DenyReason::Policy));
    assert_eq!(masks(judge(&update(row(ALICE), None))), (mask(&[0, 1, 2]), mask(&[0])));
    assert_eq!(masks(judge(&update(row(ALICE), Some(OldRow::KeyOnly(key()))))).1, mask(&[0]));
    assert_eq!(judge(&delete(key(), ReplicaIdentity::Default)), MISSING, "NULL in a key-only row is not a value");

    let unchanged = [Value::Text(b"1"), Value::Unchanged, Value::Text(b"b"), Value::Null];
    let unchanged = || Tuple::from_values(unchanged.into_iter());
    assert_eq!(judge(&update(unchanged(), None)), MISSING);
    assert_eq!(judge(&update(unchanged(), Some(OldRow::KeyOnly(key())))), MISSING);
    assert_eq!(judge(&insert(texts(&[Some("1")]))), MISSING, "a short tuple has no more columns");
}

#[tokio::test]
async fn with_a_full_identity_old_rows_are_judged_by_themselves() {
    let mut database = TestDatabase::new().await;
    database.run(TABLE).await;
    database.run("alter table t replica identity full").await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let alice = user(ALICE);
    let judge = |change: &Change| decided(judge(&bound, change, &alice, 0));
    let full = |owner| Some(OldRow::Full(row(owner)));

    assert_eq!(masks(judge(&update(row(ALICE), full(ALICE)))).1, mask(&[0, 1, 2]), "she could see the old row");
    assert_eq!(masks(judge(&update(row(ALICE), full(BOB)))).1, mask(&[0]), "she could not");
    assert_eq!(judge(&update(row(BOB), full(ALICE))), Verdict::Deny(DenyReason::Policy), "the new row decides");
    let toasted = [Value::Text(b"1"), Value::Unchanged, Value::Unchanged, Value::Null];
    let toasted = Tuple::from_values(toasted.into_iter());
    assert_eq!(masks(judge(&update(toasted.clone(), full(ALICE)))).0, mask(&[0, 1, 2]), "filled from the old row");
    assert_eq!(judge(&update(toasted, full(BOB))), Verdict::Deny(DenyReason::Policy));
    let gone = delete(row(ALICE), ReplicaIdentity::Full);
    assert_eq!(masks(judge(&gone)), (mask(&[0, 1, 2]), mask(&[0, 1, 2])));
    assert_eq!(judge(&delete(row(BOB), ReplicaIdentity::Full)), Verdict::Deny(DenyReason::Policy));
}

#[tokio::test]
async fn old_rows_of_a_partitioned_root_hold_what_all_partitions_log() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table t (id int primary key, user_id uuid) partition by range (id);
             create table leaf partition of t for values from (0) to (10);
             alter table t replica identity full, enable row level security;
             create policy p on t using (user_id = auth.uid());
             alter publication supabase_realtime add table t;
             alter publication supabase_realtime set (publish_via_partition_root = true)",
        )
        .await;
    let old = || delete(texts(&[Some("1"), Some(ALICE)]), ReplicaIdentity::Full);
    let alice = user(ALICE);
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    assert_eq!(decided(judge(&bound, &old(), &alice, 0)), MISSING, "the leaf logged its key only");
    let everything = bind(&plan(&mut database, "t", "service_role").await);
    let service = principal("service_role", serde_json::json!({}));
    assert_eq!(masks(decided(judge(&everything, &old(), &service, 0))).1, mask(&[0]));
    database.run("alter table leaf replica identity full").await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    assert_eq!(masks(decided(judge(&bound, &old(), &alice, 0))).1, mask(&[0, 1]));
}

#[tokio::test]
async fn columns_that_are_not_sent_deny_and_columns_that_differ_stay_open() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table t (id int primary key, user_id uuid, body text, twin uuid generated always as (user_id) stored);
             alter table t enable row level security; create policy p on t using (user_id = auth.uid());
             alter publication supabase_realtime add table t (id, body)",
        )
        .await;
    let alice = user(ALICE);
    let plan_now = plan(&mut database, "t", "authenticated").await;
    let unpublished = bind(&plan_now);
    assert_eq!(decided(judge(&unpublished, &insert(texts(&[Some("1"), Some("b")])), &alice, 0)), MISSING);
    database
        .run(
            "alter publication supabase_realtime set table t; alter policy p on t using (twin = auth.uid() and length(body) > 0)",
        )
        .await;
    let generated = bind(&plan(&mut database, "t", "authenticated").await);
    let new = || insert(texts(&[Some("1"), Some(ALICE), Some("b")]));
    assert_eq!(decided(judge(&generated, &new(), &alice, 0)), MISSING, "asked or not");

    database.run("alter policy p on t using (user_id = auth.uid())").await;
    let plan_now = plan(&mut database, "t", "authenticated").await;
    let mut older = relation(plan_now.table.as_ref().expect("a table"));
    older.columns[1].type_oid = 25;
    let open = Verdict::Undecided(UndecidedReason::Catalog);
    assert_eq!(decided(judge(&plan_now.bind(&Arc::new(older.clone())), &new(), &alice, 0)), open, "another type");
    older.columns[1].name = "owner".into();
    assert_eq!(decided(judge(&plan_now.bind(&Arc::new(older)), &new(), &alice, 0)), open, "another name");
}

#[tokio::test]
async fn the_dead_and_the_misplaced_get_nothing_and_keys_must_be_readable() {
    let mut database = TestDatabase::new().await;
    database.run(TABLE).await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let mut claims = serde_json::Map::new();
    claims.insert("role".into(), "authenticated".into());
    claims.insert("sub".into(), ALICE.into());
    let dying = crate::claims::Principal::new(claims, 100).expect("a principal");
    assert!(matches!(decided(judge(&bound, &insert(row(ALICE)), &dying, 99)), Verdict::Permit(_)));
    assert_eq!(decided(judge(&bound, &insert(row(ALICE)), &dying, 100)), Verdict::Deny(DenyReason::Expired));
    let anon = principal("anon", serde_json::json!({ "sub": ALICE }));
    assert_eq!(decided(judge(&bound, &insert(row(ALICE)), &anon, 0)), Verdict::Deny(DenyReason::UnknownRole));
    let odd = principal("authenticated", serde_json::json!({ "sub": [ALICE] }));
    assert_eq!(judge(&bound, &insert(row(ALICE)), &odd, 0), Judged::Ask, "the text of an array is Postgres's affair");

    database.run("revoke select (id) on t from authenticated").await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    assert_eq!(decided(judge(&bound, &insert(row(ALICE)), &user(ALICE), 0)), Verdict::Deny(DenyReason::NoGrant));
}
