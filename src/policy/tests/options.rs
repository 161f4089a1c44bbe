//! What the operator decides beside the policies, and what a publication holds back.

use std::sync::Arc;

use super::support::*;
use crate::change::{Change, ReplicaIdentity};
use crate::policy::{Bound, ColumnMask, Deletes, DenyReason, Engine, Judged, Options, Verdict, compile};
use crate::testing::TestDatabase;

async fn bound(database: &mut TestDatabase, table: &str, role: &str, options: Options) -> Bound {
    let catalog = catalog(database, &[role]).await;
    let oid = catalog.find("public", table).map_or(0, |t| t.oid);
    bind(&Arc::new(compile(&catalog, oid, role, options)))
}

fn shown(verdict: Verdict) -> ColumnMask {
    match verdict {
        Verdict::Permit(permit) => permit.old_columns().clone(),
        other => panic!("{other:?}"),
    }
}

fn mask(columns: &[usize]) -> ColumnMask {
    columns.iter().copied().collect()
}

const TO_ALL: Options = Options { deletes: Deletes::KeyToAll, open_partitions: false };

#[tokio::test]
async fn with_key_to_all_every_role_learns_the_key_of_a_deleted_row_and_no_more() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table t (id int primary key, user_id uuid, body text); alter table t replica identity full;
             grant select on t to authenticated, service_role; alter table t enable row level security;
             create policy p on t to authenticated using (user_id = auth.uid());
             create table open (id int primary key, note text, secret text); alter table open replica identity full;
             revoke all on open from authenticated; grant select (id, note) on open to authenticated;
             create role o_nobody; create role o_super superuser;
             alter publication supabase_realtime add table t, open",
        )
        .await;
    let gone = delete(texts(&[Some("1"), Some(BOB), Some("b")]), ReplicaIdentity::Full);
    let alice = user(ALICE);
    let to_all = bound(&mut database, "t", "authenticated", TO_ALL).await;
    assert_eq!(shown(decided(judge(&to_all, &gone, &alice, 0))), mask(&[0]), "under row-level security the key alone");
    let judged = bound(&mut database, "t", "authenticated", Options::default()).await;
    assert_eq!(decided(judge(&judged, &gone, &alice, 0)), Verdict::Deny(DenyReason::Policy));
    assert_eq!(shown(decided(judge(&judged, &gone, &user(BOB), 0))), mask(&[0, 1, 2]));

    let service = bound(&mut database, "t", "service_role", TO_ALL).await;
    let service_role = principal("service_role", serde_json::json!({}));
    assert_eq!(shown(decided(judge(&service, &gone, &service_role, 0))), mask(&[0]));
    let inserted = insert(texts(&[Some("1"), Some(BOB), Some("b")]));
    assert_eq!(decided(judge(&to_all, &inserted, &alice, 0)), Verdict::Deny(DenyReason::Policy), "only deletes");

    let open = bound(&mut database, "open", "authenticated", TO_ALL).await;
    assert_eq!(shown(decided(judge(&open, &gone, &alice, 0))), mask(&[0, 1]), "what the role may select");
    // As the server that clients know: a role without any right learns that some row is gone.
    let nobody = bound(&mut database, "open", "o_nobody", TO_ALL).await;
    let o_nobody = principal("o_nobody", serde_json::json!({}));
    assert_eq!(shown(decided(judge(&nobody, &gone, &o_nobody, 0))), mask(&[]));
    for (role, reason) in [("o_super", DenyReason::SuperuserRole), ("o_missing", DenyReason::UnknownRole)] {
        let refused = bound(&mut database, "open", role, TO_ALL).await;
        let verdict = decided(judge(&refused, &gone, &principal(role, serde_json::json!({})), 0));
        assert_eq!(verdict, Verdict::Deny(reason));
    }
    let mut expired = (*alice).clone();
    expired.expires_at = 10;
    assert_eq!(decided(judge(&to_all, &gone, &expired, 10)), Verdict::Deny(DenyReason::Expired));
}

#[tokio::test]
async fn without_a_primary_key_only_deletes_are_sent() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table t (id int, note text); alter table t replica identity full; grant select on t to anon;
             alter publication supabase_realtime add table t",
        )
        .await;
    let anon = principal("anon", serde_json::json!({}));
    let keyless = bound(&mut database, "t", "anon", Options::default()).await;
    let row = || texts(&[Some("1"), Some("n")]);
    for change in [insert(row()), Change::Update { new: row(), old: None }] {
        assert_eq!(decided(judge(&keyless, &change, &anon, 0)), Verdict::Deny(DenyReason::NoPrimaryKey));
    }
    assert_eq!(shown(decided(judge(&keyless, &delete(row(), ReplicaIdentity::Full), &anon, 0))), mask(&[0, 1]));
}

#[tokio::test]
async fn an_open_partition_is_sent_only_if_the_operator_says_so() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table root (id int primary key) partition by range (id);
             create table leaf partition of root for values from (0) to (10); grant select on leaf to authenticated;
             alter table root enable row level security; alter publication supabase_realtime add table root",
        )
        .await;
    let open = Options { open_partitions: true, ..Options::default() };
    for (options, engine) in
        [(Options::default(), Engine::Deny(DenyReason::UnprotectedPartition)), (open, Engine::Everything)]
    {
        assert_eq!(bound(&mut database, "leaf", "authenticated", options).await.plan().engine, engine);
    }
}

/// `rowcast_facts` is in the stream too, and publications are united: the server then sends what the clients' holds back.
#[tokio::test]
async fn a_row_filter_that_another_publication_of_the_stream_undoes_is_applied_here() {
    let mut database = TestDatabase::new().await;
    let version =
        database.client.query_one("select current_setting('server_version_num')::int4", &[]).await.expect("a row");
    if version.get::<_, i32>(0) < 150_000 {
        return;
    }
    database
        .run(
            "create table t (id int primary key, user_id uuid, shared boolean); grant select on t to authenticated, anon;
             create table p (id int primary key, user_id uuid, shared boolean); grant select on p to authenticated;
             alter table p enable row level security; create policy own on p using (user_id = auth.uid());
             alter publication supabase_realtime add table t where (id < 10), p where (id < 10);
             create publication rowcast_facts",
        )
        .await;
    let anon = principal("anon", serde_json::json!({}));
    let server = bound(&mut database, "t", "anon", Options::default()).await;
    assert_eq!(server.plan().engine, Engine::Everything, "the server applies it");
    database.run("alter publication rowcast_facts add table t, p").await;

    let (asker, _) = asker(&database, "postgres");
    let judge = async |bound: &Bound, change: Change, who: &Arc<crate::claims::Principal>| match judge(
        bound, &change, who, 0,
    ) {
        Judged::Decided(verdict) => verdict,
        Judged::Ask => asker.judge(&question(bound, change, std::slice::from_ref(who))).await.remove(0),
    };
    let row = |id: &'static str, owner: &'static str| texts(&[Some(id), Some(owner), Some("t")]);
    let unprotected = bound(&mut database, "t", "anon", TO_ALL).await;
    assert!(matches!(judge(&unprotected, insert(row("1", BOB)), &anon).await, Verdict::Permit(_)));
    assert_eq!(judge(&unprotected, insert(row("10", BOB)), &anon).await, Verdict::Deny(DenyReason::Policy));
    let key_only = |id| delete(texts(&[Some(id), None, None]), ReplicaIdentity::Default);
    assert_eq!(shown(judge(&unprotected, key_only("1"), &anon).await), mask(&[0]));
    assert_eq!(judge(&unprotected, key_only("10"), &anon).await, Verdict::Deny(DenyReason::Policy));

    let alice = user(ALICE);
    let protected = bound(&mut database, "p", "authenticated", Options::default()).await;
    assert!(matches!(judge(&protected, insert(row("1", ALICE)), &alice).await, Verdict::Permit(_)));
    for hidden in [row("10", ALICE), row("1", BOB)] {
        assert_eq!(judge(&protected, insert(hidden), &alice).await, Verdict::Deny(DenyReason::Policy));
    }
    // The same filter there holds the same rows back.
    database.run("alter publication rowcast_facts set table t where (id < 10), p").await;
    assert_eq!(bound(&mut database, "t", "anon", Options::default()).await.plan().engine, Engine::Everything);
}
