//! Up, down and up again: on an empty database, on one that has some of it already, half-way, and from two sides at once.

use rowcast::error::Fault as _;
use rowcast::migrate::{self, MIGRATIONS, MigrateError, Scope};
use tokio_postgres::Client;

use crate::support::TestPg;

const EXAMPLE: &str = include_str!("../../sql/examples/session_events.sql");

async fn exists(client: &Client, what: &str) -> bool {
    let sql = match what.split_once(' ').expect("kind and name") {
        ("role", name) => format!("select exists (select from pg_roles where rolname = '{name}')"),
        ("schema", name) => format!("select exists (select from pg_namespace where nspname = '{name}')"),
        ("publication", name) => format!("select exists (select from pg_publication where pubname = '{name}')"),
        ("trigger", name) => format!("select exists (select from pg_event_trigger where evtname = '{name}')"),
        ("function", name) => format!("select to_regprocedure('{name}') is not null"),
        (kind, _) => panic!("no such kind: {kind}"),
    };
    client.query_one(&sql, &[]).await.expect("a row").get(0)
}

const ALL: [&str; 20] = [
    "schema rowcast",
    "publication rowcast_facts",
    "publication rowcast_messages",
    "role anon",
    "role authenticated",
    "role service_role",
    "schema auth",
    "function auth.uid()",
    "function auth.role()",
    "function auth.jwt()",
    "publication supabase_realtime",
    "role rowcast_filter",
    "role supabase_realtime_admin",
    "schema realtime",
    "function realtime.topic()",
    "function realtime.send(jsonb,text,text,boolean)",
    "function realtime.send_binary(bytea,text,text,boolean)",
    "function realtime.broadcast_changes(text,text,text,text,text,record,record,text)",
    "trigger rowcast_rules_changed",
    "trigger rowcast_rules_dropped",
];

/// What `serve` makes by itself.
const OWN: [&str; 3] = ["schema rowcast", "publication rowcast_facts", "publication rowcast_messages"];

async fn assert_present(client: &Client, wanted: &[&str]) {
    for what in ALL {
        assert_eq!(exists(client, what).await, wanted.contains(&what), "{what}");
    }
}

#[tokio::test]
async fn up_makes_everything_and_down_leaves_nothing() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    for _round in 0..2 {
        let report = migrate::up(&mut client).await.expect("up");
        assert_eq!(report.steps.len(), MIGRATIONS.len());
        assert!(report.made.contains(&"role service_role".to_owned()), "{report}");
        assert_present(&client, &ALL).await;
        let again = migrate::up(&mut client).await.expect("up twice");
        assert_eq!(again.to_string(), "nothing to do\n");
        let applied = migrate::status(&client).await.expect("status");
        assert!(applied.iter().all(|step| step.applied_at.is_some() && !step.changed));

        let report = migrate::down(&mut client, None).await.expect("down");
        assert_eq!(report.kept, Vec::<String>::new());
        assert_present(&client, &[]).await;
    }
    let report = migrate::down(&mut client, None).await.expect("down of nothing");
    assert!(report.steps.is_empty());
}

#[tokio::test]
async fn each_step_can_be_taken_back_alone_and_applied_again() {
    let pg = TestPg::start().await;
    let mut client = pg.client().await;
    for migration in MIGRATIONS.iter().rev().filter(|migration| migration.version > 1) {
        let report = migrate::down(&mut client, Some(migration.version - 1)).await.expect("down");
        assert_eq!(report.steps, [(migration.version, migration.name)]);
        let applied = migrate::status(&client).await.expect("status");
        assert!(applied.iter().all(|step| step.applied_at.is_some() == (step.version < migration.version)));
    }
    assert_present(&client, &["schema rowcast", "publication rowcast_facts"]).await;
    let report = migrate::up(&mut client).await.expect("up");
    assert_eq!(report.steps.len(), MIGRATIONS.len() - 1);
    assert_present(&client, &ALL).await;
    assert!(matches!(migrate::down(&mut client, Some(99)).await, Err(MigrateError::NoSuchVersion(99))));
}

#[tokio::test]
async fn what_was_there_before_is_not_recorded_and_survives_down() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    let existing = "create role authenticated nologin; create role anon nologin; create schema auth;
        create function auth.uid() returns uuid language sql stable as 'select null::uuid';
        create table public.orders (id bigint primary key);
        create publication supabase_realtime for table public.orders;";
    client.batch_execute(existing).await.expect("objects");
    let report = migrate::up(&mut client).await.expect("up");
    for found in
        ["role authenticated", "role anon", "schema auth", "function auth.uid()", "publication supabase_realtime"]
    {
        assert!(!report.made.contains(&found.to_owned()), "{found} was there");
    }
    assert!(report.made.contains(&"function auth.jwt()".to_owned()), "{report}");
    let body: String = client
        .query_one("select prosrc from pg_proc where oid = 'auth.uid()'::regprocedure", &[])
        .await
        .expect("a row")
        .get(0);
    assert_eq!(body, "select null::uuid", "an existing function keeps its body");

    migrate::down(&mut client, None).await.expect("down");
    assert_present(
        &client,
        &["role authenticated", "role anon", "schema auth", "function auth.uid()", "publication supabase_realtime"],
    )
    .await;
    let sql = "select count(*) from pg_publication_tables where pubname = 'supabase_realtime'";
    assert_eq!(client.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0), 1);
}

#[tokio::test]
async fn what_others_depend_on_stays_with_its_data_and_is_named() {
    let pg = TestPg::start().await;
    let mut client = pg.client().await;
    client.batch_execute(EXAMPLE).await.expect("the example");
    let fill = "insert into coding_sessions (user_id) values ('a11ce000-0000-4000-8000-000000000001');
        insert into session_events (session_id, event_type) select id, 'kept' from coding_sessions";
    client.batch_execute(fill).await.expect("rows");

    let report = migrate::down(&mut client, None).await.expect("down");
    for (what, because) in [
        ("publication supabase_realtime", "session_events"),
        ("function auth.uid()", "policy"),
        ("role authenticated", "depend"),
        ("schema auth", "auth.uid()"),
    ] {
        assert!(exists(&client, what).await, "{what} is in use");
        let line = report.kept.iter().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {report}"));
        assert!(line.contains(because), "{line}");
    }
    for gone in [
        "schema rowcast",
        "publication rowcast_facts",
        "publication rowcast_messages",
        "role anon",
        "function auth.jwt()",
    ] {
        assert!(!exists(&client, gone).await, "{gone} was ours and unused");
    }
    let rows: i64 = client.query_one("select count(*) from session_events", &[]).await.expect("a row").get(0);
    assert_eq!(rows, 1);
    // And it all works again.
    migrate::up(&mut client).await.expect("up");
    assert_present(&client, &ALL).await;
}

#[tokio::test]
async fn what_was_kept_is_still_ours_and_goes_once_it_is_free() {
    let pg = TestPg::start().await;
    let mut client = pg.client().await;
    client
        .batch_execute("create table t (id int primary key); alter publication supabase_realtime add table t")
        .await
        .expect("a table");
    let report = migrate::down(&mut client, Some(3)).await.expect("down");
    assert_eq!(
        report.kept,
        ["publication supabase_realtime: publication supabase_realtime still publishes tables: public.t"]
    );
    migrate::up(&mut client).await.expect("up");
    client.batch_execute("drop table t").await.expect("free");
    let report = migrate::down(&mut client, Some(3)).await.expect("down");
    assert!(report.kept.is_empty(), "{report}");
    assert!(!exists(&client, "publication supabase_realtime").await);
}

#[tokio::test]
async fn serve_makes_only_its_own_and_up_adds_the_rest() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    let wanted = ["supabase_realtime".to_owned(), "orders".to_owned()];
    let missing = migrate::missing(&client, &wanted).await.expect("missing");
    assert_eq!(
        missing,
        [
            "schema rowcast",
            "publication supabase_realtime",
            "publication orders",
            "publication rowcast_facts",
            "publication rowcast_messages"
        ]
    );
    let report = migrate::ensure_own(&mut client).await.expect("own");
    let own: Vec<_> = MIGRATIONS.iter().filter(|m| m.scope == Scope::Own).map(|m| (m.version, m.name)).collect();
    assert_eq!(report.steps, own);
    assert_eq!(migrate::ensure_own(&mut client).await.expect("own again").steps, []);
    assert_present(&client, &OWN).await;
    migrate::up(&mut client).await.expect("up");
    assert_eq!(migrate::missing(&client, &wanted).await.expect("missing"), ["publication orders"]);
}

#[tokio::test]
async fn two_runs_at_once_do_the_work_once() {
    let pg = TestPg::bare().await;
    let (mut first, mut second, mut third) = (pg.client().await, pg.client().await, pg.client().await);
    let (a, b, c) = tokio::join!(migrate::up(&mut first), migrate::up(&mut second), migrate::ensure_own(&mut third));
    let ran = a.expect("one").steps.len() + b.expect("the other").steps.len() + c.expect("the third").steps.len();
    assert_eq!(ran, MIGRATIONS.len());
    assert_present(&first, &ALL).await;
}

#[tokio::test]
async fn a_failing_step_leaves_the_steps_before_it_and_nothing_of_its_own() {
    let pg = TestPg::bare().await;
    pg.exec("create role clerk login; grant create on database postgres to clerk").await;
    let mut client = pg.client_as("clerk").await;
    let error = migrate::up(&mut client).await.expect_err("may not create roles");
    assert!(matches!(error, MigrateError::Step { version: 2, .. }), "{error}");
    assert!(error.to_string().contains("clerk may not create the role anon"), "{error}");
    assert!(error.advice().contains("create role anon nologin noinherit; grant anon to clerk;"), "{}", error.advice());
    assert_present(&client, &["schema rowcast", "publication rowcast_facts"]).await;

    // With the roles given by a superuser, the same login finishes the work.
    pg.exec(
        "create role anon nologin; create role authenticated nologin; create role service_role nologin bypassrls; \
         create role rowcast_filter nologin noinherit",
    )
    .await;
    let error = migrate::up(&mut client).await.expect_err("may not grant itself roles");
    assert!(error.advice().contains("grant anon to clerk;"), "{}", error.advice());
    pg.exec("grant anon, authenticated, service_role to clerk").await;
    let error = migrate::up(&mut client).await.expect_err("may not grant itself the last role");
    assert!(error.advice().contains("grant rowcast_filter to clerk;"), "{}", error.advice());
    pg.exec("grant rowcast_filter to clerk").await;
    let error = migrate::up(&mut client).await.expect_err("may not create the role that owns messages");
    assert!(error.advice().contains("create role supabase_realtime_admin nologin noinherit;"), "{}", error.advice());
    pg.exec("create role supabase_realtime_admin nologin noinherit").await;
    let error = migrate::up(&mut client).await.expect_err("may not grant itself that role");
    assert!(error.advice().contains("grant supabase_realtime_admin to clerk;"), "{}", error.advice());
    pg.exec("grant supabase_realtime_admin to clerk").await;
    let report = migrate::up(&mut client).await.expect("up");
    assert_eq!(report.steps, [(9, "realtime"), (10, "messages")]);
    assert_eq!(report.left_out, [(7, "rule_hints")], "it needs a superuser");
    let transaction = client.transaction().await.expect("a transaction");
    rowcast::pg::assume(&transaction, "authenticated", "x", r#"{"sub":"x"}"#).await.expect("may act as a user");
}

#[tokio::test]
async fn a_login_that_may_create_roles_is_granted_them() {
    let pg = TestPg::bare().await;
    pg.exec("create role admin login createrole; grant create on database postgres to admin; create role service_role nologin bypassrls").await;
    if pg.major() >= 16 {
        pg.exec("grant service_role to admin with admin option").await;
    }
    let mut client = pg.client_as("admin").await;
    let report = migrate::up(&mut client).await.expect("up");
    assert!(report.made.contains(&"membership authenticated to admin".to_owned()), "{report}");
    for role in ["anon", "authenticated", "service_role"] {
        let transaction = client.transaction().await.expect("a transaction");
        rowcast::pg::assume(&transaction, role, "", "{}").await.expect("may act as it");
    }
    let report = migrate::down(&mut client, None).await.expect("down");
    assert!(report.kept.is_empty(), "{report}");
    assert!(exists(&client, "role service_role").await);
}

#[tokio::test]
async fn a_script_that_changed_after_it_ran_and_a_newer_database_are_refused() {
    let pg = TestPg::start().await;
    let mut client = pg.client().await;
    pg.exec("update rowcast.migrations set checksum = 'another' where version = 3").await;
    assert!(matches!(migrate::up(&mut client).await, Err(MigrateError::Changed { version: 3, .. })));
    let changed: Vec<u32> = migrate::status(&client)
        .await
        .expect("status")
        .iter()
        .filter(|step| step.changed)
        .map(|step| step.version)
        .collect();
    assert_eq!(changed, [3]);
    pg.exec("insert into rowcast.migrations (version, name, checksum) values (900, 'later', '')").await;
    assert!(matches!(migrate::down(&mut client, None).await, Err(MigrateError::Newer { version: 900, .. })));
}

#[tokio::test]
async fn functions_in_the_callers_search_path_are_not_run() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    let trap = "create schema trap; create table trap.ran (what text);
        create function trap.format(text, text) returns text language plpgsql as
            $$ begin insert into trap.ran values ('format'); return pg_catalog.format($1, $2); end $$;
        create function trap.to_regnamespace(text) returns regnamespace language plpgsql as
            $$ begin insert into trap.ran values ('regnamespace'); return pg_catalog.to_regnamespace($1); end $$;
        set search_path = trap, pg_catalog";
    client.batch_execute(trap).await.expect("a trap");
    migrate::up(&mut client).await.expect("up");
    migrate::down(&mut client, None).await.expect("down");
    let ran: i64 = client.query_one("select count(*) from trap.ran", &[]).await.expect("a row").get(0);
    assert_eq!(ran, 0);
}

#[tokio::test]
async fn down_drops_the_slot_that_nobody_reads_and_no_other() {
    let pg = TestPg::start().await;
    let mut client = pg.client().await;
    let slots =
        "select pg_create_logical_replication_slot(name, 'pgoutput') from (values ('rowcast'), ('somebody')) v (name)";
    client.batch_execute(slots).await.expect("slots");
    pg.exec("insert into rowcast.lineage values ('rowcast', '1', 'x', 'y')").await;
    migrate::down(&mut client, None).await.expect("down");
    let rows = client.query("select slot_name::text from pg_replication_slots", &[]).await.expect("rows");
    let left: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(left, ["somebody"]);
}

#[tokio::test]
async fn the_auth_functions_read_both_forms_of_the_claims() {
    let pg = TestPg::start().await;
    let mut client = pg.client().await;
    let subject = "a11ce000-0000-4000-8000-000000000001";
    let claims = format!(r#"{{"role":"authenticated","sub":"{subject}","org":7}}"#);
    let transaction = client.transaction().await.expect("a transaction");
    let set = "select set_config('request.jwt.claims', $1, true), set_config('role', 'authenticated', true)";
    transaction.query(set, &[&claims]).await.expect("claims");
    let row = transaction
        .query_one("select auth.uid()::text, auth.role(), auth.jwt() ->> 'org'", &[])
        .await
        .expect("the role may call them");
    assert_eq!((row.get(0), row.get(1), row.get(2)), (subject, "authenticated", "7"));
    drop(transaction);
    let row = client.query_one("select auth.uid()::text, auth.role(), auth.jwt()::text", &[]).await.expect("a row");
    for column in 0..3 {
        assert_eq!(row.get::<_, Option<&str>>(column), None, "nobody has no claims");
    }
}

#[tokio::test]
async fn messages_are_published_however_the_steps_come_and_what_may_not_be_done_is_said() {
    let published = "select count(*) from pg_publication_tables where pubname = 'rowcast_messages' \
                     and schemaname = 'realtime' and tablename = 'messages'";
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    let count = async |client: &Client| client.query_one(published, &[]).await.expect("a row").get::<_, i64>(0);
    // The relay's own steps first, as on a database that is migrated later.
    migrate::ensure_own(&mut client).await.expect("own");
    assert_eq!(migrate::publish_messages(&client).await.expect("looks"), None, "there is no such table yet");
    migrate::up(&mut client).await.expect("up");
    assert_eq!(count(&client).await, 1);
    // And all at once.
    migrate::down(&mut client, None).await.expect("down");
    migrate::up(&mut client).await.expect("up");
    assert_eq!(count(&client).await, 1);
    assert_eq!(migrate::publish_messages(&client).await.expect("looks"), None);
    client.batch_execute("alter publication rowcast_messages drop table realtime.messages").await.expect("dropped");
    pg.exec("create role relay login").await;
    let other = pg.client_as("relay").await;
    let (sql, why) = migrate::publish_messages(&other).await.expect("looks").expect("not done");
    assert!(sql.contains("add table realtime.messages") && why.contains("owner"), "{sql} {why}");
    assert_eq!(count(&client).await, 0);
    assert_eq!(migrate::publish_messages(&client).await.expect("looks"), None);
    assert_eq!(count(&client).await, 1);
}
