//! Postgres as the judge.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::support::*;
use crate::change::{Change, OldRow, ReplicaIdentity};
use crate::metrics::Metrics;
use crate::policy::{AskConfig, Asker, Bound, DenyReason, UndecidedReason, Verdict};
use crate::testing::TestDatabase;

async fn prepared(policy: &str) -> (TestDatabase, Bound) {
    let mut database = TestDatabase::new().await;
    database
        .run(&format!(
            "create table t (id int primary key, user_id uuid, body text); alter table t enable row level security;
             create table acl (user_id uuid, id int); insert into acl values ('{ALICE}', 1);
             insert into t values (1, '{ALICE}', 'x');
             create policy p on t to authenticated using (({policy}) and pg_backend_pid() > 0);
             alter publication supabase_realtime add table t"
        ))
        .await;
    let plan = plan(&mut database, "t", "authenticated").await;
    // Also what memory judges can be asked about.
    assert!(plan.form.is_some(), "{plan}");
    (database, bind(&plan))
}

fn is_permit(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Permit(_))
}

const RAISED: Verdict = Verdict::Deny(DenyReason::PolicyError);
const DENIED: Verdict = Verdict::Deny(DenyReason::Policy);

#[tokio::test]
async fn two_users_get_their_own_answers_in_both_orders() {
    let (database, bound) = prepared("id in (select id from acl where acl.user_id = (select auth.uid()))").await;
    let (asker, metrics) = asker(&database, "plain_relay");
    let row = || insert(texts(&[Some("1"), None, None]));
    let (alice, bob) = (user(ALICE), user(BOB));
    let verdicts = asker.judge(&question(&bound, row(), &[alice.clone(), bob.clone()])).await;
    assert!(is_permit(&verdicts[0]) && verdicts[1] == DENIED, "{verdicts:?}");
    let verdicts = asker.judge(&question(&bound, row(), &[bob.clone(), alice.clone()])).await;
    assert!(is_permit(&verdicts[1]) && verdicts[0] == DENIED, "{verdicts:?}");
    // More than one pipeline's worth, mixed.
    let many: Vec<_> = (0..100).map(|i| if i % 3 == 0 { alice.clone() } else { bob.clone() }).collect();
    for (i, verdict) in asker.judge(&question(&bound, row(), &many)).await.iter().enumerate() {
        assert_eq!(is_permit(verdict), i % 3 == 0, "{i}: {verdict:?}");
    }
    assert!(metrics.render().contains("rowcast_ask_seconds_count 3"));
}

#[tokio::test]
async fn who_makes_the_policy_raise_denies_only_himself() {
    let (database, bound) = prepared("user_id = auth.uid() and 1 / (auth.jwt() ->> 'n')::int > 0").await;
    let (asker, _) = asker(&database, "plain_relay");
    let with = |n: serde_json::Value| principal("authenticated", json!({ "sub": ALICE, "n": n }));
    let all = [with(json!(1)), with(json!(0)), with(json!("x")), with(json!(1)), with(json!("\u{0}")), with(json!(1))];
    let change = insert(texts(&[Some("1"), Some(ALICE), None]));
    let verdicts = asker.judge(&question(&bound, change, &all)).await;
    let permits: Vec<bool> = verdicts.iter().map(is_permit).collect();
    assert_eq!(permits, [true, false, false, true, false, true], "{verdicts:?}");
    assert!([1, 2, 4].iter().all(|i| verdicts[*i] == RAISED), "{verdicts:?}");
}

#[tokio::test]
async fn the_image_is_judged_and_not_the_row_in_the_table() {
    let (database, bound) = prepared("user_id = auth.uid() and body <> 'hidden'").await;
    let (asker, _) = asker(&database, "plain_relay");
    let users = [user(ALICE), user(BOB)];
    let image = |owner, body| texts(&[Some("1"), Some(owner), Some(body)]);
    let bobs = asker.judge(&question(&bound, insert(image(BOB, "x")), &users)).await;
    assert!(bobs[0] == DENIED && is_permit(&bobs[1]), "{bobs:?}");
    let hidden = asker.judge(&question(&bound, insert(image(ALICE, "hidden")), &users)).await;
    assert_eq!(hidden, [DENIED, DENIED]);
    let holes = insert(texts(&[Some("1"), Some(ALICE)]));
    let missing = Verdict::Deny(DenyReason::MissingEvidence);
    assert_eq!(asker.judge(&question(&bound, holes, &users)).await, [missing.clone(), missing], "no hole is a NULL");
}

#[tokio::test]
async fn old_rows_are_judged_too() {
    let (mut database, _) = prepared("user_id = auth.uid() and body <> 'hidden'").await;
    database.run("alter table t replica identity full").await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let (asker, _) = asker(&database, "plain_relay");
    let row = |owner| texts(&[Some("1"), Some(owner), Some("x")]);
    let users = [user(ALICE), user(BOB)];
    let update = |old| Change::Update { new: row(ALICE), old: Some(OldRow::Full(row(old))) };
    let old_columns = |verdict: &Verdict| match verdict {
        Verdict::Permit(permit) => (0..3).filter(|i| permit.old_columns().contains(*i)).count(),
        other => panic!("{other:?}"),
    };
    let verdicts = asker.judge(&question(&bound, update(ALICE), &users)).await;
    assert_eq!((old_columns(&verdicts[0]), &verdicts[1]), (3, &DENIED));
    let verdicts = asker.judge(&question(&bound, update(BOB), &users)).await;
    assert_eq!((old_columns(&verdicts[0]), &verdicts[1]), (1, &DENIED), "only the key of a row that she could not see");
    let gone = delete(row(BOB), ReplicaIdentity::Full);
    let verdicts = asker.judge(&question(&bound, gone, &users)).await;
    assert_eq!((&verdicts[0], old_columns(&verdicts[1])), (&DENIED, 3));
}

#[tokio::test]
async fn a_text_that_names_a_closed_schema_is_answered_by_looking_the_row_up() {
    let mut database = TestDatabase::new().await;
    database
        .run(&format!(
            "create schema closed; create table closed.acl (user_id uuid, id int);
             grant select on closed.acl to authenticated; insert into closed.acl values ('{ALICE}', 1);
             create table t (id int primary key, user_id uuid, body text); alter table t enable row level security;
             insert into t values (1, '{BOB}', 'x');
             create policy p on t using (user_id is not null and id in (select a.id from closed.acl a where a.user_id = auth.uid()));
             alter publication supabase_realtime add table t"
        ))
        .await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let (asker, _) = asker(&database, "plain_relay");
    let users = [user(BOB), user(ALICE)];
    let image = |id, owner| texts(&[Some(id), Some(owner), Some("x")]);
    let verdicts = asker.judge(&question(&bound, insert(image("1", BOB)), &users)).await;
    assert!(verdicts[0] == DENIED && is_permit(&verdicts[1]), "{verdicts:?}");
    let other = asker.judge(&question(&bound, insert(image("1", ALICE)), &users)).await;
    assert_eq!(other, [DENIED, DENIED], "the row is no longer the one of the image");
    assert_eq!(asker.judge(&question(&bound, insert(image("2", BOB)), &users)).await, [DENIED, DENIED], "no such row");
    database.run("alter table t replica identity full").await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let gone = delete(image("1", BOB), ReplicaIdentity::Full);
    assert_eq!(
        asker.judge(&question(&bound, gone, &users)).await,
        [RAISED, RAISED],
        "a deleted row can't be looked up"
    );
}

#[tokio::test]
async fn an_answer_is_void_until_the_transactions_before_it_are_visible() {
    let (database, bound) = prepared("id in (select id from acl where acl.user_id = auth.uid())").await;
    let writer = database.config("relay").connect().await.expect("connects");
    // A revoke that is in the stream and not yet visible to others.
    writer.batch_execute("begin; delete from acl").await.expect("deletes");
    let xid = writer.query_one("select pg_current_xact_id()::xid::text", &[]).await.expect("an id");
    let xid: u32 = xid.get::<_, String>(0).parse().expect("a number");
    let (asker, metrics) = asker(&database, "plain_relay");
    let row = || insert(texts(&[Some("1"), None, None]));
    let mut asked = question(&bound, row(), &[user(ALICE)]);
    assert!(is_permit(&asker.judge(&asked).await[0]), "without the id it would leak");
    asked.xids = Arc::new([xid]);

    let short = AskConfig { deadline: Duration::from_secs(2), ..AskConfig::default() };
    let impatient = Asker::new(database.pool("plain_relay"), short, metrics.clone());
    let open = Verdict::Undecided(UndecidedReason::NotVisibleYet);
    assert_eq!(impatient.judge(&asked).await, [open], "neither permitted nor denied");

    let voids = metrics.ask_not_visible.get();
    assert!(voids > 1);
    let commit = async {
        while metrics.ask_not_visible.get() < voids + 2 {
            tokio::task::yield_now().await;
        }
        writer.batch_execute("commit").await.expect("commits");
    };
    let (verdicts, ()) = tokio::join!(asker.judge(&asked), commit);
    assert_eq!(verdicts, [DENIED], "the revoke counts");
}

#[tokio::test]
async fn what_is_not_the_policys_fault_stays_undecided() {
    let (database, bound) = prepared("user_id = auth.uid() and body <> 'slow' or pg_sleep(30) is null").await;
    let metrics = Arc::new(crate::metrics::Metrics::new());
    let hasty = AskConfig { statement_timeout: Duration::from_millis(100), ..AskConfig::default() };
    let hasty = Asker::new(database.pool("plain_relay"), hasty, metrics.clone());
    let change = || insert(texts(&[Some("1"), Some(ALICE), Some("x")]));
    let verdicts = hasty.judge(&question(&bound, change(), &[user(BOB), user(ALICE)])).await;
    let timeout = Verdict::Undecided(UndecidedReason::Timeout);
    assert!(verdicts[0] == timeout && is_permit(&verdicts[1]), "{verdicts:?}");

    let deadline = AskConfig { deadline: Duration::from_millis(150), ..AskConfig::default() };
    let pool = database.pool("plain_relay");
    let limited = Asker::new(pool.clone(), deadline, metrics.clone());
    assert_eq!(limited.judge(&question(&bound, change(), &[user(BOB)])).await, [timeout]);
    assert!(is_permit(&limited.judge(&question(&bound, change(), &[user(ALICE)])).await[0]), "a fresh connection");
    pool.close();
    let broken = Verdict::Undecided(UndecidedReason::Connection);
    assert_eq!(limited.judge(&question(&bound, change(), &[user(ALICE)])).await, [broken]);

    database.run("create role no_rights login").await;
    let stranger = Asker::new(database.pool("no_rights"), AskConfig::default(), metrics);
    let role = Verdict::Undecided(UndecidedReason::Role);
    assert_eq!(stranger.judge(&question(&bound, change(), &[user(ALICE)])).await, [role]);
}

#[tokio::test]
async fn a_pooled_connection_keeps_nothing_of_a_principal() {
    let (database, bound) = prepared("user_id = auth.uid() and length(body) > 0").await;
    let pool = database.pool("plain_relay");
    let asker = Asker::new(pool.clone(), AskConfig::default(), Arc::new(crate::metrics::Metrics::new()));
    let change = insert(texts(&[Some("1"), Some(ALICE), Some("x")]));
    assert!(is_permit(&asker.judge(&question(&bound, change, &[user(ALICE)])).await[0]));
    let client = pool.get().await.expect("the same connection");
    let sql = "select current_user::text, current_setting('request.jwt.claims', true), current_setting('search_path')";
    let row = client.query_one(sql, &[]).await.expect("a row");
    let state: (String, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(state.0, "plain_relay");
    assert_eq!(state.1.as_deref().unwrap_or_default(), "");
    assert_ne!(state.2, "");
}

#[tokio::test]
async fn a_function_over_the_row_judges_a_deleted_row_too() {
    let (mut database, _) = prepared("body is not null").await;
    database
        .run(
            "create function owns(t) returns bool language sql stable as 'select $1.user_id = auth.uid()';
             alter policy p on t using (owns(t)); alter table t replica identity full, drop column body, add column note text",
        )
        .await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let (asker, _) = asker(&database, "plain_relay");
    let gone = delete(texts(&[Some("9"), Some(ALICE), Some("\"(,\\)\"")]), ReplicaIdentity::Full);
    let verdicts = asker.judge(&question(&bound, gone, &[user(ALICE), user(BOB)])).await;
    assert!(is_permit(&verdicts[0]) && verdicts[1] == DENIED, "{verdicts:?}");
}

/// Everything is on its way before the first answer comes: what happens to one must not become another's.
#[tokio::test]
async fn what_fails_in_the_middle_of_the_pipeline_is_nobody_elses_answer() {
    let (database, _) = prepared("body is not null").await;
    database
        .run(
            "create function die() returns bool language sql security definer as 'select pg_terminate_backend(pg_backend_pid())';
             create function judge(owner uuid) returns bool language plpgsql as $$ begin
                 case auth.jwt() ->> 'does'
                     when 'raises' then raise exception 'x'; when 'ends' then perform public.die();
                     when 'resets' then reset role; perform set_config('request.jwt.claim.sub', gen_random_uuid()::text, true);
                     else null;
                 end case;
                 return owner = auth.uid(); end $$;
             alter policy p on t using (judge(user_id))",
        )
        .await;
    let mut database = database;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let (way, metrics) = (database.way("plain_relay"), Arc::new(Metrics::new()));
    let pool = way.config.asking_pool(4).expect("a pool");
    let config = AskConfig { deadline: Duration::from_secs(20), ..AskConfig::default() };
    let asker = Asker::new(pool, config, metrics.clone());
    let who = |sub: &str, does: &str| principal("authenticated", json!({ "sub": sub, "does": does }));
    let connection = Verdict::Undecided(UndecidedReason::Connection);
    for order in [[ALICE, BOB], [BOB, ALICE]] {
        for crowd in [1, 10] {
            let mut all = Vec::new();
            for _ in 0..crowd {
                all.extend([who(order[0], ""), who(order[1], "raises"), who(order[1], ""), who(ALICE, "resets")]);
            }
            all.insert(all.len() / 2, who(ALICE, "ends"));
            let change = insert(texts(&[Some("1"), Some(ALICE), None]));
            let answers = asker.ask(&question(&bound, change, &all)).await;
            assert_eq!(answers.failure, None);
            for (who, verdict) in all.iter().zip(&answers.verdicts) {
                let expected = match who.claims_json.contains("\"ends\"") {
                    _ if who.claims_json.contains("\"raises\"") => RAISED,
                    _ if who.claims_json.contains("\"resets\"") => DENIED,
                    true => connection.clone(),
                    false if *who.subject == *ALICE => {
                        assert!(is_permit(verdict), "{}: {verdict:?}", who.claims_json);
                        continue;
                    }
                    false => DENIED,
                };
                assert_eq!(*verdict, expected, "{}", who.claims_json);
            }
        }
    }
    assert_eq!(metrics.ask_broken.get(), 8, "twice each time, the second time for him alone");
    // Nobody but him: it may be the policy.
    let change = insert(texts(&[Some("1"), Some(ALICE), None]));
    let answers = asker.ask(&question(&bound, change, &[who(ALICE, "ends")])).await;
    assert_eq!((answers.failure, &answers.verdicts[0]), (Some(UndecidedReason::Connection), &connection));
}

#[tokio::test]
async fn a_function_that_is_wrongly_called_immutable_gives_nobody_anothers_answer() {
    let (mut database, _) = prepared("body is not null").await;
    database
        .run(
            "create function me() returns uuid language sql immutable as $$ select nullif(current_setting('request.jwt.claim.sub', true), '')::uuid $$;
             create function him() returns uuid language plpgsql immutable as $$ begin return nullif(current_setting('request.jwt.claim.sub', true), '')::uuid; end $$;
             alter policy p on t using (user_id = me() and user_id = him())",
        )
        .await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let (asker, _) = asker(&database, "plain_relay");
    let (alice, bob) = (user(ALICE), user(BOB));
    let many: Vec<_> = (0..40).map(|i| if i < 20 { alice.clone() } else { bob.clone() }).collect();
    let change = || insert(texts(&[Some("1"), Some(ALICE), None]));
    let verdicts = asker.judge(&question(&bound, change(), &many)).await;
    assert!(verdicts.iter().enumerate().all(|(i, verdict)| is_permit(verdict) == (i < 20)), "{verdicts:?}");
}

#[tokio::test]
async fn a_right_to_a_schema_that_was_taken_counts_for_the_next_question() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create schema shut; create function shut.yes() returns bool language sql stable as 'select random() < 2';
             grant usage on schema shut to authenticated;
             create table t (id int, user_id uuid, body text); alter table t enable row level security;
             alter table t replica identity full; create policy p on t using (shut.yes());
             alter publication supabase_realtime add table t",
        )
        .await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let one = Asker::new(
        database.config("plain_relay").asking_pool(1).expect("a pool"),
        AskConfig::default(),
        Arc::new(crate::metrics::Metrics::new()),
    );
    let users: Vec<_> = (0..5).map(|i| principal("authenticated", json!({ "n": i }))).collect();
    let gone = || delete(texts(&[Some("1"), None, None]), ReplicaIdentity::Full);
    for count in [1, 5] {
        assert!(one.judge(&question(&bound, gone(), &users[..count])).await.iter().all(is_permit));
    }
    database.run("revoke usage on schema shut from authenticated").await;
    for count in [1, 5] {
        let verdicts = one.judge(&question(&bound, gone(), &users[..count])).await;
        assert!(verdicts.iter().all(|verdict| *verdict == RAISED), "{verdicts:?}");
    }
}

#[tokio::test]
async fn what_only_running_shows_to_be_unusable_is_looked_up_for_many_as_for_one() {
    let (mut database, _) = prepared("body is not null").await;
    database
        .run(
            "create function mine(owner uuid) returns bool language plpgsql as 'begin return owner = auth.uid(); end';
             revoke execute on function mine from public; alter policy p on t using (mine(user_id))",
        )
        .await;
    let bound = bind(&plan(&mut database, "t", "authenticated").await);
    let (asker, _) = asker(&database, "plain_relay");
    let users: Vec<_> = (0..6).map(|i| user(&format!("a0eebc99-9c0b-4ef8-bb6d-{i:012}"))).collect();
    let change = || insert(texts(&[Some("1"), Some(ALICE), Some("x")]));
    for count in [1, 2, 3, 6] {
        let verdicts = asker.judge(&question(&bound, change(), &users[..count])).await;
        assert!(verdicts.iter().all(|verdict| *verdict == RAISED), "{verdicts:?}");
    }
}
