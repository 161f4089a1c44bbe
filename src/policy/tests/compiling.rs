//! Which plan comes of which rules.

use super::support::*;
use crate::policy::rule::Expr;
use crate::policy::{DenyReason, Engine, Options, compile};
use crate::testing::TestDatabase;

#[tokio::test]
async fn roles_that_stand_above_the_policies_get_everything_and_superusers_nothing() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create role c_owner; create role c_member; create role c_noinherit noinherit; create role c_super superuser;
             create role c_bypass bypassrls; create role c_under_bypass; create role c_group;
             grant c_owner to c_member, c_noinherit; grant c_bypass to c_under_bypass; grant c_group to c_member, c_noinherit;
             create table t (id int primary key, user_id uuid); alter table t owner to c_owner;
             grant select on t to public; alter table t enable row level security;
             create policy p on t to c_group using (user_id = auth.uid());
             alter publication supabase_realtime add table t",
        )
        .await;
    let roles = ["c_owner", "c_member", "c_noinherit", "c_super", "c_bypass", "c_under_bypass", "service_role"];
    let engines = async |database: &mut TestDatabase| {
        let catalog = catalog(database, &roles).await;
        let oid = catalog.find("public", "t").expect("published").oid;
        roles.map(|role| compile(&catalog, oid, role, Options::default()).engine)
    };
    let deny = Engine::Deny;
    let none = || deny(DenyReason::NoPolicy);
    let [owner, member, noinherit, superuser, bypass, under, service] = engines(&mut database).await;
    assert_eq!((owner, member), (Engine::Everything, Engine::Everything), "the owner's rights");
    assert_eq!(noinherit, none(), "a NOINHERIT member has neither the owner's rights nor the group's policies");
    assert_eq!(superuser, deny(DenyReason::SuperuserRole));
    assert_eq!(
        (bypass, under, service),
        (Engine::Everything, none(), Engine::Everything),
        "BYPASSRLS is not inherited"
    );

    database.run("alter table t force row level security").await;
    let [owner, member, noinherit, ..] = engines(&mut database).await;
    assert_eq!((owner, noinherit), (none(), none()));
    assert!(matches!(member, Engine::Pure(_)), "FORCE binds the owner too, and the group's policy applies");

    let catalog = catalog(&mut database, &["missing"]).await;
    let oid = catalog.find("public", "t").expect("published").oid;
    assert_eq!(compile(&catalog, oid, "missing", Options::default()).engine, deny(DenyReason::UnknownRole));
    assert_eq!(compile(&catalog, 1, "missing", Options::default()).engine, deny(DenyReason::UnknownTable));
    database
        .run("drop table t; drop role c_owner, c_member, c_noinherit, c_super, c_bypass, c_under_bypass, c_group")
        .await;
}

#[tokio::test]
async fn several_policies_are_combined_as_postgres_combines_them() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table t (id int primary key, user_id uuid, org int, email text); alter table t enable row level security;
             create policy a on t using (user_id = auth.uid());
             create policy writers on t for update using (true);
             create policy checks on t with check (true);
             alter publication supabase_realtime add table t",
        )
        .await;
    let printed = async |database: &mut TestDatabase, sql: &str| {
        database.run(sql).await;
        plan(database, "t", "authenticated").await
    };
    let uid = "auth.uid()";
    let shows = "shows email, id, org, user_id";
    let one = printed(&mut database, "select 1").await;
    let head = "public.t for authenticated: pure, ";
    assert_eq!(one.to_string(), format!("{head}user_id = {uid}; owners found by user_id; {shows}"));
    assert_eq!(one, printed(&mut database, "select 1").await, "plans compare by value");

    let two = "create policy b on t using (org = (current_setting('request.jwt.claims', true)::json ->> 'org')::int)";
    let two = printed(&mut database, two).await;
    let org = "((claims)::json->>'org')::int4";
    assert_eq!(
        two.to_string(),
        format!("{head}(user_id = {uid} or org = {org}); owners found by user_id or org; {shows}")
    );
    assert_ne!(one, two);

    let three = "create policy c on t as restrictive using (user_id = (select auth.uid()))";
    let three = printed(&mut database, three).await;
    let expected =
        format!("{head}((user_id = {uid} or org = {org}) and user_id = {uid}); owners found by user_id; {shows}");
    assert_eq!(three.to_string(), expected);

    let open =
        printed(&mut database, "create policy d on t using (true); create policy e on t using (length(email) > 1)");
    let open = open.await;
    assert!(
        matches!(&open.engine, Engine::Pure(rule) if matches!(rule.condition, Expr::Compare(..))),
        "true OR anything is true: {open}"
    );

    let asked = printed(&mut database, "drop policy d on t").await;
    assert!(matches!(&asked.engine, Engine::Ask { reason, .. } if reason.starts_with("policy \"e\": ")), "{asked}");
    assert!(asked.keys().is_none());

    let denied = printed(&mut database, "drop policy a on t; drop policy b on t; drop policy e on t").await;
    assert_eq!(denied.engine, Engine::Deny(DenyReason::NoPolicy), "a restrictive policy alone permits nothing");
}

#[tokio::test]
async fn a_function_counts_by_its_body_and_by_who_may_call_it() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table t (id int primary key, user_id uuid); alter table t enable row level security;
             create policy p on t using (user_id = auth.uid()); alter publication supabase_realtime add table t",
        )
        .await;
    let is_pure = async |database: &mut TestDatabase, sql: &str| {
        database.run(sql).await;
        let plan = plan(database, "t", "authenticated").await;
        match &plan.engine {
            Engine::Pure(_) => true,
            Engine::Ask { .. } => false,
            other => panic!("{other:?}"),
        }
    };
    let define = |body: &str, options: &str| {
        format!("create or replace function auth.uid() returns uuid language sql {options} as $$ {body} $$")
    };
    let old = "SELECT nullif(current_setting('request.jwt.claim.sub', true), '')::uuid;";
    assert!(is_pure(&mut database, "select 1").await);
    assert!(is_pure(&mut database, &define(old, "stable")).await);
    assert!(!is_pure(&mut database, &define(old, "stable set request.jwt.claim.sub = 'x'")).await, "a SET clause");
    let other = old.replace("claim.sub", "claim.other");
    assert!(!is_pure(&mut database, &define(&other, "stable")).await, "another setting");
    assert!(is_pure(&mut database, &define(old, "stable")).await);
    assert!(!is_pure(&mut database, "revoke execute on function auth.uid() from public").await, "no EXECUTE");
    assert!(is_pure(&mut database, "grant execute on function auth.uid() to authenticated").await);
}

#[tokio::test]
async fn grants_decide_what_is_shown_and_whether_anything_is() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create schema closed; create table closed.u (id int primary key); grant select on closed.u to authenticated;
             create table t (id int primary key, a text, b text); revoke all on t from authenticated;
             alter publication supabase_realtime add table t, closed.u",
        )
        .await;
    assert_eq!(plan(&mut database, "t", "authenticated").await.engine, Engine::Deny(DenyReason::NoGrant));
    database.run("grant select (id, b) on t to authenticated").await;
    let masked = plan(&mut database, "t", "authenticated").await;
    assert_eq!(masked.to_string(), "public.t for authenticated: everything; shows b, id");
    let catalog = catalog(&mut database, &["authenticated"]).await;
    let closed = catalog.find("closed", "u").expect("published").oid;
    let engine = compile(&catalog, closed, "authenticated", Options::default()).engine;
    assert_eq!(engine, Engine::Deny(DenyReason::NoGrant), "no USAGE on the schema");
}

#[tokio::test]
async fn a_partition_without_policies_does_not_show_what_its_root_hides() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table root (id int primary key, user_id uuid) partition by range (id);
             create table leaf partition of root for values from (0) to (10);
             alter table root enable row level security;
             alter publication supabase_realtime add table root",
        )
        .await;
    let leaf = plan(&mut database, "leaf", "authenticated").await;
    assert_eq!(leaf.engine, Engine::Deny(DenyReason::UnprotectedPartition));
    assert_eq!(plan(&mut database, "leaf", "service_role").await.engine, Engine::Everything);
    database.run("alter table leaf enable row level security; create policy p on leaf using (true)").await;
    assert_eq!(
        plan(&mut database, "leaf", "authenticated").await.rule().expect("pure").condition,
        Expr::Constant(Some(true))
    );
}
