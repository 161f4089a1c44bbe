//! Retention: who may set and run it, what it removes, and that clients never take it for a user's delete.

use std::time::Duration;

use rowcast::clock::Clock;
use serde_json::json;
use tokio::time::Instant;

use super::{refused, run, value};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{ALICE, user};
use crate::support::{Relay, TestPg, summary};

const SET: &str = "retention_set.sql";
const RUN: &str = "retention_run.sql";
const STATUS: &str = "retention_status.sql";

const EVENTS: &str =
    "create role app nologin; grant create on schema public to app; grant usage on schema auth to app; set role app;
    create table public.events (id bigint generated always as identity primary key, user_id uuid not null, type text,
        created_at timestamptz not null default now());
    create index events_created_at on public.events (created_at);
    alter table public.events replica identity full;
    alter table public.events enable row level security; alter table public.events force row level security;
    create policy own on public.events for select to authenticated using (user_id = auth.uid());
    grant select on public.events to authenticated; reset role;
    alter publication supabase_realtime add table public.events;";

/// With a DBA's login who may do what the scripts name, and no superuser after that.
pub(super) async fn with_events() -> TestPg {
    let pg = TestPg::start().await;
    pg.exec(EVENTS).await;
    run(&pg, "postgres", "roles.sql", &[("table_owner", "app")]).await;
    pg
}

/// Rows of these types and ages in days.
async fn fill(pg: &TestPg, rows: &[(&str, i32)]) {
    for (kind, days) in rows {
        pg.exec(&format!(
            "insert into public.events (user_id, type, created_at) \
             values ('{ALICE}', nullif('{kind}', ''), now() - interval '{days} days')"
        ))
        .await;
    }
}

async fn left(pg: &TestPg) -> String {
    value(pg, "select coalesce(string_agg(coalesce(type, '-'), ' ' order by id), '') from public.events").await
}

#[tokio::test]
async fn each_kind_of_event_is_kept_as_long_as_its_rule_says() {
    let pg = with_events().await;
    let table = ("table", "public.events");
    let kinds = ("type_column", "type");
    for _ in 0..2 {
        run(&pg, "rowcast_dba", SET, &[table, kinds, ("pattern", "dm.%")]).await.says(&["dm.%", "30 days"]);
        run(&pg, "rowcast_dba", SET, &[table, kinds, ("pattern", "dm.typing"), ("keep", "1 hour")]).await;
        run(&pg, "rowcast_dba", SET, &[table, ("keep", "7 days")]).await.says(&["(the rest)", "7 days", "01:00:00"]);
    }
    let rows = [
        ("dm.text", 31),
        ("dm.text", 29),
        ("dm.typing", 1),
        ("dm.typing", 0),
        ("presence", 8),
        ("presence", 6),
        ("", 8),
    ];
    fill(&pg, &rows).await;
    run(&pg, "rowcast_dba", STATUS, &[]).await.says(&[
        "ready",
        "dm.%: 1 rows",
        "dm.typing: 1 rows",
        "(the rest): 2 rows",
    ]);
    run(&pg, "rowcast_monitor", STATUS, &[]).await.says(&["dm.%", "not counted"]);
    run(&pg, "rowcast_dba", RUN, &[]).await.says(&["public.events dm.%", "| t"]);
    assert_eq!(left(&pg).await, "dm.text dm.typing presence");
    run(&pg, "rowcast_dba", RUN, &[table]).await;
    assert_eq!(left(&pg).await, "dm.text dm.typing presence");
    run(&pg, "rowcast_monitor", STATUS, &[("counting", "no")]).await.says(&["done", "rowcast_dba"]);

    for says in ["was removed", "no such rule"] {
        run(&pg, "rowcast_dba", SET, &[table, ("remove", "yes")]).await.says(&[says]);
    }
    for pattern in ["dm.%", "dm.typing"] {
        run(&pg, "rowcast_dba", SET, &[table, kinds, ("pattern", pattern), ("remove", "yes")]).await;
    }
    let may = "select has_table_privilege('rowcast_retention', 'public.events', 'SELECT, DELETE') \
               or has_any_column_privilege('rowcast_retention', 'public.events', 'UPDATE')";
    assert!(!value::<bool>(&pg, may).await, "undone, no right is left");
    fill(&pg, &[("old", 90)]).await;
    run(&pg, "rowcast_dba", RUN, &[]).await;
    assert_eq!(left(&pg).await, "dm.text dm.typing presence old", "without a rule nothing is touched");
}

#[tokio::test]
async fn rules_that_cannot_work_are_refused_with_the_reason() {
    let pg = with_events().await;
    pg.exec("create table public.others (id int, created_at timestamptz)").await;
    let events = ("table", "public.events");
    for (login, variables, says) in [
        ("rowcast_dba", vec![("table", "absent")], "there is no table"),
        ("rowcast_dba", vec![events, ("time_column", "born")], "has no column born"),
        ("rowcast_dba", vec![events, ("time_column", "type")], "not a time"),
        ("rowcast_dba", vec![events, ("pattern", "x%")], "type_column"),
        ("rowcast_dba", vec![events, ("keep", "-1 day")], "check constraint"),
        ("rowcast_dba", vec![events, ("pause", "1 hour")], "check constraint"),
        ("rowcast_dba", vec![events, ("keep", "soon")], "invalid input syntax"),
        ("rowcast_dba", vec![events, ("archive", "absent")], "create table absent (like public.events"),
        ("rowcast_dba", vec![("table", "public.others")], "permission denied"),
        ("rowcast_monitor", vec![events], "permission denied"),
        ("rowcast_relay", vec![events], "permission denied"),
    ] {
        refused(&pg, login, SET, &variables).await.says(&[says]);
    }
    assert_eq!(value::<i64>(&pg, "select count(*) from rowcast.retention").await, 0);
    refused(&pg, "rowcast_dba", RUN, &[("table", "absent")]).await.says(&["there is no such table"]);
    for login in ["rowcast_monitor", "rowcast_relay"] {
        refused(&pg, login, RUN, &[]).await.says(&["permission denied"]);
    }
}

#[tokio::test]
async fn a_users_delete_is_delivered_and_retentions_is_not() {
    let pg = with_events().await;
    pg.exec(
        "create table public.marks (id bigint generated always as identity primary key, note text not null);
         grant select on public.marks to authenticated; alter publication supabase_realtime add table public.marks",
    )
    .await;
    run(&pg, "rowcast_dba", SET, &[("table", "events"), ("keep", "7 days"), ("batch_rows", "2"), ("pause", "0")]).await;
    fill(&pg, &[("old", 9), ("old", 8), ("old", 8), ("deleted", 1), ("kept", 1)]).await;
    let relay = Relay::start(&pg).await;
    let mut phone = relay.phone(&user(ALICE)).await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "events" }, { "event": "*", "schema": "public", "table": "marks" },
    ]);
    phone.subscribe("events", &entries).await;
    run(&pg, "rowcast_dba", RUN, &[]).await;
    assert_eq!(left(&pg).await, "deleted kept");
    pg.exec("delete from public.events where type = 'deleted'").await;
    // Not marked, it is everybody's business.
    fill(&pg, &[("late", 9)]).await;
    run(&pg, "rowcast_dba", RUN, &[("unmarked", "yes")]).await;
    pg.exec("insert into public.marks (note) values ('end')").await;
    let changes = phone.changes_before("end").await;
    assert_eq!(summary(&changes, "type"), ["DELETE deleted", "INSERT late", "DELETE late"]);
    assert!(relay.metric("rowcast_retention_deletes_hidden_total", "").await >= 3.0);
    relay.drain().await;
}

#[tokio::test]
async fn who_may_not_mark_is_told_and_goes_on_only_if_he_says_so() {
    let pg = with_events().await;
    // A database whose superuser has not run roles.sql: the owner of the tables runs retention himself.
    run(&pg, "postgres", "roles.sql", &[("undo", "yes")]).await;
    pg.exec(
        "create role clerk login; grant app to clerk; grant usage on schema rowcast to clerk; alter table public.events no force row level security;
         grant all on rowcast.retention, rowcast.retention_runs to clerk; grant execute on procedure rowcast.run_retention to clerk",
    )
    .await;
    run(&pg, "clerk", SET, &[("table", "events"), ("keep", "7 days")]).await;
    fill(&pg, &[("old", 9), ("new", 1)]).await;
    refused(&pg, "clerk", RUN, &[]).await.says(&["may not mark its deletes", "sql/roles.sql", "unmarked"]);
    assert_eq!(left(&pg).await, "old new");
    run(&pg, "clerk", RUN, &[("unmarked", "yes")]).await.says(&["| f"]);
    assert_eq!(left(&pg).await, "new");
}

#[tokio::test]
async fn what_policies_hide_is_removed_too_or_an_error_says_so() {
    let pg = with_events().await;
    run(&pg, "rowcast_dba", SET, &[("table", "events"), ("keep", "7 days")]).await;
    fill(&pg, &[("old", 9)]).await;
    pg.exec("alter role rowcast_retention nobypassrls").await;
    run(&pg, "rowcast_dba", RUN, &[]).await.says(&["row-level security", "42501"]);
    assert_eq!(left(&pg).await, "old");
    run(&pg, "postgres", "roles.sql", &[]).await;
    run(&pg, "rowcast_dba", RUN, &[]).await;
    assert_eq!(left(&pg).await, "");
}

#[tokio::test]
async fn removed_rows_are_in_the_archive_and_locked_ones_wait() {
    let pg = with_events().await;
    pg.exec("set role app; create table public.events_archive (like public.events); reset role").await;
    run(&pg, "rowcast_dba", SET, &[("table", "events"), ("keep", "7 days"), ("archive", "events_archive")]).await;
    fill(&pg, &[("a", 9), ("b", 9), ("c", 1)]).await;
    let holder = pg.client().await;
    holder.batch_execute("begin; select from public.events where type = 'a' for update").await.expect("a lock");
    run(&pg, "rowcast_dba", RUN, &[]).await;
    assert_eq!(left(&pg).await, "a c");
    holder.batch_execute("commit").await.expect("released");
    run(&pg, "rowcast_dba", RUN, &[]).await;
    assert_eq!(left(&pg).await, "c");
    let kept: String = value(&pg, "select string_agg(type, ' ' order by type) from public.events_archive").await;
    assert_eq!(kept, "a b");
    pg.exec("insert into public.events overriding system value select * from public.events_archive").await;
    assert_eq!(left(&pg).await, "a b c");
}

#[tokio::test]
async fn a_second_run_does_nothing_and_says_so() {
    let pg = with_events().await;
    run(&pg, "rowcast_dba", SET, &[("table", "events"), ("keep", "7 days")]).await;
    fill(&pg, &[("old", 9)]).await;
    let holder = pg.client().await;
    let lock = "select pg_advisory_lock(8245085352413884274)";
    holder.batch_execute(lock).await.expect("the lock");
    let call = "call rowcast.run_retention()";
    let row = pg.client_as("rowcast_dba").await.query_one(call, &[]).await.expect("it answers");
    assert!(row.get::<_, bool>("busy"));
    assert_eq!(left(&pg).await, "old");
    holder.batch_execute("select pg_advisory_unlock(8245085352413884274)").await.expect("released");
    let session = pg.client_as("rowcast_dba").await;
    for expected in [1, 0] {
        let row = session.query_one(call, &[]).await.expect("it answers");
        assert_eq!((row.get::<_, i64>("deleted"), row.get::<_, bool>("busy")), (expected, false));
    }
}

#[tokio::test]
async fn a_run_bounded_in_time_stops_between_batches_and_the_next_goes_on() {
    let pg = with_events().await;
    let rule = [("table", "events"), ("keep", "7 days"), ("batch_rows", "10"), ("pause", "1 ms")];
    run(&pg, "rowcast_dba", SET, &rule).await;
    pg.exec(&format!(
        "insert into public.events (user_id, type, created_at) select '{ALICE}', 'old', now() - interval '9 days' from generate_series(1, 100)"
    ))
    .await;
    let session = pg.client_as("rowcast_dba").await;
    let row = session.query_one("call rowcast.run_retention(lasted => '0')", &[]).await.expect("it answers");
    assert_eq!((row.get::<_, i64>("deleted"), row.get::<_, bool>("more")), (10, true));
    let row = session.query_one("call rowcast.run_retention()", &[]).await.expect("it answers");
    assert_eq!((row.get::<_, i64>("deleted"), row.get::<_, bool>("more")), (90, false));
}

#[tokio::test]
async fn a_relay_that_stops_in_the_middle_of_a_run_waits_for_no_batch_and_leaves_no_lock() {
    let pg = with_events().await;
    run(&pg, "postgres", "roles.sql", &[("table_owner", "app"), ("runner", "relay")]).await;
    // Between two batches it sleeps for as long as a test may take.
    let rule = [("table", "events"), ("keep", "7 days"), ("batch_rows", "1"), ("pause", "1 minute")];
    run(&pg, "rowcast_dba", SET, &rule).await;
    fill(&pg, &[("old", 9), ("old", 8), ("old", 8)]).await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.retention = Some(Duration::from_secs(1))).await;
    let deadline = Instant::now() + PATIENCE;
    let until = async |sql: &'static str| {
        while !value::<bool>(&pg, sql).await {
            assert!(Instant::now() < deadline, "not yet: {sql}");
            pause().await;
        }
    };
    until("select count(*) = 2 from public.events").await;
    relay.drain().await;
    until("select not exists (select from pg_locks where locktype = 'advisory')").await;
    let faster = [("table", "events"), ("keep", "7 days")];
    run(&pg, "rowcast_dba", SET, &faster).await;
    run(&pg, "rowcast_dba", RUN, &[]).await;
    assert_eq!(left(&pg).await, "");
}
