//! The ready table for events: each policy template, partitions by day, and retention that drops them.

use serde_json::json;
use tokio_postgres::error::SqlState;

use super::{refused, run, value};
use crate::support::token::{ALICE, BOB, user};
use crate::support::{Relay, TestPg, summary};

const EVENTS: &str = "events_table.sql";

const MARKS: &str =
    "create table public.marks (id bigint generated always as identity primary key, note text not null);
    grant select on public.marks to authenticated; alter publication supabase_realtime add table public.marks;";

async fn database() -> TestPg {
    let pg = TestPg::start().await;
    run(&pg, "postgres", "roles.sql", &[]).await;
    pg.exec("grant create on schema public to rowcast_dba; grant authenticated, service_role to rowcast_dba").await;
    pg.exec(MARKS).await;
    pg
}

/// What alice gets when the worker has inserted one event for her and one for bob.
async fn received(pg: &TestPg, relay: &Relay, inserts: &str) -> Vec<String> {
    let mut phone = relay.phone(&user(ALICE)).await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "events" }, { "event": "*", "schema": "public", "table": "marks" },
    ]);
    phone.subscribe("events", &entries).await;
    let worker = pg.client().await;
    worker.batch_execute("set role service_role").await.expect("the worker's role");
    worker.batch_execute(inserts).await.expect("the worker inserts");
    let error = worker.batch_execute("delete from public.events").await.expect_err("it only inserts");
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    pg.exec("insert into public.marks (note) values ('end')").await;
    summary(&phone.changes_before("end").await, "event_type")
}

#[tokio::test]
async fn each_policy_template_shows_a_user_what_is_his() {
    let pg = database().await;
    pg.exec(&format!(
        "set role rowcast_dba; create table public.sessions (id uuid primary key, user_id uuid); create table public.members (topic text, user_id uuid);
         grant select on public.sessions, public.members to authenticated; reset role;
         insert into public.sessions values ('{ALICE}', '{ALICE}'), ('{BOB}', '{BOB}');
         insert into public.members values ('room:a', '{ALICE}'), ('room:b', '{BOB}')"
    ))
    .await;
    for (policy, column, hers, his) in [
        ("owner", "user_id", ALICE, BOB),
        ("session", "session_id", ALICE, BOB),
        ("topic", "topic", "room:a", "room:b"),
    ] {
        let variables = [("policy", policy)];
        run(&pg, "rowcast_dba", EVENTS, &variables).await.says(&["was made", "rowcast_dba"]);
        run(&pg, "rowcast_dba", EVENTS, &variables).await.says(&["is there already"]);
        let relay = Relay::start(&pg).await;
        let insert = format!(
            "insert into public.events ({column}, event_type, payload) values ('{hers}', 'hers', '{{\"n\": 1}}'), ('{his}', 'his', '{{}}')"
        );
        assert_eq!(received(&pg, &relay, &insert).await, ["INSERT hers"], "{policy}");
        relay.drain().await;
        pg.exec("drop table public.events").await;
    }
    // Another template takes the place of the one before.
    run(&pg, "rowcast_dba", EVENTS, &[("policy", "owner")]).await;
    run(&pg, "rowcast_dba", EVENTS, &[("policy", "none")]).await;
    assert_eq!(value::<i64>(&pg, "select count(*) from pg_policy where polrelid = 'public.events'::regclass").await, 0);
    for (variables, says) in [
        (vec![("policy", "everybody")], "owner, session, topic or none"),
        (vec![("table", "a.b.c")], "not a table's name"),
        (vec![("partitioned", "yes")], "and not partitioned"),
        (vec![("policy", "session"), ("sessions", "public.absent")], "does not exist"),
    ] {
        refused(&pg, "rowcast_dba", EVENTS, &variables).await.says(&[says]);
    }
    refused(&pg, "rowcast_monitor", EVENTS, &[("table", "public.mine")]).await.says(&["permission denied"]);
}

#[tokio::test]
async fn by_day_it_keeps_partitions_ahead_and_retention_drops_those_that_all_rules_have_passed() {
    let pg = database().await;
    pg.exec("alter publication supabase_realtime set (publish_via_partition_root = true)").await;
    for _ in 0..2 {
        run(&pg, "rowcast_dba", EVENTS, &[("partitioned", "yes")]).await.says(&["|          9"]);
    }
    let table = ("table", "public.events");
    let keep = |days| [table, ("keep", days), ("drop_partitions", "yes")];
    run(&pg, "rowcast_dba", "retention_set.sql", &keep("7 days")).await;
    let typed =
        [table, ("keep", "30 days"), ("type_column", "event_type"), ("pattern", "dm.%"), ("drop_partitions", "yes")];
    run(&pg, "rowcast_dba", "retention_set.sql", &typed).await;
    // Days that are past: one that every rule has passed, one that only the shorter has.
    for (age, name) in [(40, "events_old"), (20, "events_young")] {
        pg.exec(&format!(
            "set role rowcast_dba; do $$ begin execute format('create table public.{name} partition of public.events for values from (%L) to (%L)',
                (now() at time zone 'UTC')::date - {age}, (now() at time zone 'UTC')::date - {age} + 1); end $$; reset role;
             insert into public.events (user_id, event_type, created_at) select '{ALICE}', kind,
                (((now() at time zone 'UTC')::date - {age})::timestamp + interval '1 hour') at time zone 'UTC' from unnest(array['dm.text', 'typing']) kind"
        ))
        .await;
    }
    let relay = Relay::start(&pg).await;
    run(&pg, "rowcast_dba", "retention_run.sql", &[]).await.says(&["| t"]);
    let insert =
        format!("insert into public.events (user_id, event_type) values ('{ALICE}', 'hers'), ('{BOB}', 'his')");
    assert_eq!(received(&pg, &relay, &insert).await, ["INSERT hers"]);
    relay.drain().await;
    let left = "select string_agg(event_type, ' ' order by id) from public.events";
    assert_eq!(value::<String>(&pg, left).await, "dm.text hers his");
    assert!(
        value::<bool>(
            &pg,
            "select to_regclass('public.events_old') is null and to_regclass('public.events_young') is not null"
        )
        .await
    );
    assert_eq!(value::<i64>(&pg, "select sum(partitions) from rowcast.retention_runs").await, 1);

    // A worker may have the partitions made, and nothing else.
    let worker = pg.client().await;
    worker.batch_execute("set role service_role").await.expect("the worker's role");
    let made = worker.query_one("select public.events_keep_partitions(9)", &[]).await.expect("it may").get::<_, i32>(0);
    assert_eq!(made, 2);
    // A day with rows in the default partition gets none, and no row is refused.
    worker
        .batch_execute("insert into public.events (user_id, event_type, created_at) values (gen_random_uuid(), 'far', now() + interval '12 days')")
        .await
        .expect("there is a place for every row");
    let made =
        worker.query_one("select public.events_keep_partitions(13)", &[]).await.expect("it may").get::<_, i32>(0);
    assert_eq!(made, 3);
    drop(worker);
    pg.exec("drop table public.events; drop function public.events_keep_partitions(integer)").await;
}
