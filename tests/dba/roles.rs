//! The relay as the login that roles.sql makes: it works, and each of its rights is needed for something that has a name.

use std::collections::BTreeSet;
use std::time::Duration;

use rowcast::app::App;
use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::error::chain;
use serde_json::json;
use tokio::time::Instant;

use super::{refused, run, value};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{ALICE, SECRET, user};
use crate::support::{Relay, TestPg, summary};

const ROLES: &str = "roles.sql";
const WITH_RETENTION: [(&str, &str); 3] = [("table_owner", "app"), ("runner", "relay"), ("channels", "yes")];

/// `notes` is judged in memory, `puzzles` by Postgres.
const TABLES: &str =
    "create role app nologin; grant create on schema public to app; grant usage on schema auth to app; set role app;
    create table public.notes (id bigint generated always as identity primary key, user_id uuid not null, note text,
        created_at timestamptz not null default now());
    create table public.puzzles (id bigint generated always as identity primary key, user_id uuid not null, note text);
    create table public.marks (id bigint generated always as identity primary key, note text not null);
    create index on public.notes (created_at);
    alter table public.notes enable row level security; alter table public.puzzles enable row level security;
    create policy own on public.notes for select to authenticated using (user_id = auth.uid());
    create policy own on public.puzzles for select to authenticated using (md5(user_id::text) = md5(auth.uid()::text));
    grant select on public.notes, public.puzzles, public.marks to authenticated; reset role;
    alter publication supabase_realtime add table public.notes, public.puzzles, public.marks;
    -- So that the grants of roles.sql are the only ones.
    revoke connect on database postgres from public;";

async fn scene() -> TestPg {
    let pg = TestPg::start().await;
    pg.exec(TABLES).await;
    for _ in 0..2 {
        run(&pg, "postgres", ROLES, &WITH_RETENTION).await.says(&["rowcast_relay", "rowcast_retention"]);
    }
    run(&pg, "rowcast_dba", "retention_set.sql", &[("table", "notes"), ("keep", "7 days")]).await;
    pg
}

/// As the relay's login, with everything switched on.
fn as_relay(pg: &TestPg) -> impl FnOnce(&mut Config) + use<> {
    let url = pg.url_as("rowcast_relay");
    move |config| {
        let (data, admin) = (config.data_dir.clone(), config.admin);
        *config = Config::new(&url, SECRET, data).expect("a configuration");
        config.admin = admin;
        config.retention = Some(Duration::from_secs(1));
        config.report_interval = Duration::from_millis(100);
    }
}

async fn write(pg: &TestPg, note: &str) {
    pg.exec(&format!(
        "insert into public.notes (user_id, note) values ('{ALICE}', '{note}'); \
         insert into public.puzzles (user_id, note) values ('{ALICE}', '{note}'); insert into public.marks (note) values ('{note}')"
    ))
    .await;
}

/// What alice gets of one row of each table: `notes puzzles` if all is well.
async fn delivered(pg: &TestPg, relay: &Relay) -> String {
    let mut phone = relay.phone(&user(ALICE)).await;
    let entries: serde_json::Value =
        ["notes", "puzzles", "marks"].map(|table| json!({ "event": "*", "schema": "public", "table": table })).into();
    let joined = phone.join("all", &entries).await;
    if joined["status"] != "ok" {
        return joined.to_string();
    }
    phone.subscribed("all").await;
    write(pg, "hello").await;
    let changes = phone.changes_before("hello").await;
    changes.iter().map(|change| change.table().to_owned()).collect::<Vec<_>>().join(" ")
}

async fn reaches(relay: &Relay, metric: &str, labels: &str, least: f64) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while relay.metric(metric, labels).await < least {
        if Instant::now() > deadline {
            return false;
        }
        pause().await;
    }
    true
}

#[tokio::test]
async fn the_relays_login_can_do_everything_the_relay_does() {
    let pg = scene().await;
    let old = "insert into public.notes (user_id, note, created_at) select '{ALICE}', 'old', now() - interval '8 days' from generate_series(1, 5)";
    pg.exec(&old.replace("{ALICE}", ALICE)).await;
    let relay = Relay::with(&pg, Clock::system(), as_relay(&pg)).await;
    assert_eq!(delivered(&pg, &relay).await, "notes puzzles");
    assert!(reaches(&relay, "rowcast_retention_rows_total", "", 5.0).await);
    assert!(reaches(&relay, "rowcast_retention_runs_total", "done", 1.0).await);
    assert!(reaches(&relay, "rowcast_reports_total", "written", 2.0).await);
    assert_eq!(value::<i64>(&pg, "select count(*) from public.notes where note = 'old'").await, 0);
    // A filter is cast by Postgres.
    let mut phone = relay.phone(&user(ALICE)).await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "notes", "filter": "note=eq.wanted" },
                         { "event": "*", "schema": "public", "table": "marks" }]);
    phone.subscribe("filtered", &entries).await;
    write(&pg, "other").await;
    write(&pg, "wanted").await;
    assert_eq!(summary(&phone.changes_before("wanted").await, "note"), ["INSERT other", "INSERT wanted"]);
    relay.drain().await;
}

/// What a missing right breaks.
enum Breaks {
    /// The relay does not start; the error says this.
    Start(&'static str),
    /// A row that Postgres has to judge does not arrive.
    Asking,
    /// Tokens of this role can't be judged by Postgres.
    Tokens(&'static str),
    /// `rowcast.relay_status` stays empty.
    Report,
    /// What devices have received is not saved.
    Frontiers,
    /// Rows are not removed.
    Retention,
    /// Private channels can't be judged.
    Channels,
    /// The partitions of messages are not cared for.
    Partitions,
}

/// What the relay does with messages, above the table's policies.
const JUDGING: &str = "begin; set local row_security = off; \
    insert into realtime.messages (topic, extension) values ('t', 'broadcast'); select * from realtime.messages; rollback";

/// What the relay does with the frontiers of devices.
const SAVING: &str = "begin; \
    insert into rowcast.frontier_owners (slot, relay) values ('s', 'r') on conflict (slot) do update set relay = excluded.relay; \
    select from rowcast.frontier_owners where slot = 's' and relay = 'r' for share; \
    insert into rowcast.frontiers (slot, owner, device, what, tab, anonymous, epoch, lsn, ordinal, departed) \
    values ('s', '', '', '', 0, false, 0, '0/0', 0, false) \
    on conflict (slot, owner, device, what, tab) do update set lsn = excluded.lsn; \
    select * from rowcast.frontiers; \
    delete from rowcast.frontiers where slot = 's'; select slot_name from pg_catalog.pg_replication_slots; rollback";

fn needed() -> Vec<(&'static str, Breaks)> {
    use Breaks::{Asking, Channels, Frontiers, Partitions, Report, Retention, Start, Tokens};
    vec![
        ("attribute login", Start("is not permitted to log in")),
        ("attribute replication", Start("no replication right")),
        ("database postgres CONNECT", Start("permission denied for database")),
        ("schema rowcast USAGE", Start("permission denied for schema rowcast")),
        ("table rowcast.migrations SELECT", Start("permission denied for table migrations")),
        ("table rowcast.lineage SELECT", Start("permission denied for table lineage")),
        ("table rowcast.lineage INSERT", Start("permission denied for table lineage")),
        ("table rowcast.lineage UPDATE", Start("permission denied for table lineage")),
        ("member authenticated", Asking),
        ("member anon", Tokens("anon")),
        ("member service_role", Tokens("service_role")),
        ("table rowcast.relay_status SELECT", Report),
        ("table rowcast.relay_status INSERT", Report),
        ("table rowcast.relay_status UPDATE", Report),
        ("function rowcast.take_sample() EXECUTE", Report),
        ("table rowcast.frontier_owners SELECT", Frontiers),
        ("table rowcast.frontier_owners INSERT", Frontiers),
        ("table rowcast.frontier_owners UPDATE", Frontiers),
        ("table rowcast.frontiers SELECT", Frontiers),
        ("table rowcast.frontiers INSERT", Frontiers),
        ("table rowcast.frontiers UPDATE", Frontiers),
        ("table rowcast.frontiers DELETE", Frontiers),
        ("member rowcast_retention", Retention),
        ("table rowcast.retention SELECT", Retention),
        ("table rowcast.retention_runs SELECT", Retention),
        ("table rowcast.retention_runs INSERT", Retention),
        ("table rowcast.retention_runs UPDATE", Retention),
        ("table rowcast.retention_runs DELETE", Retention),
        ("procedure rowcast.run_retention EXECUTE", Retention),
        ("attribute bypassrls", Channels),
        ("schema realtime USAGE", Channels),
        ("table realtime.messages SELECT", Channels),
        ("table realtime.messages INSERT", Channels),
        ("table rowcast.installed SELECT", Partitions),
        ("member supabase_realtime_admin", Partitions),
    ]
}

/// Every right that a role has by name, in the words of `needed`.
async fn rights(pg: &TestPg, role: &str) -> BTreeSet<String> {
    let sql = format!(
        "with r as (select * from pg_roles where rolname = '{role}')
         select 'attribute login' from r where rolcanlogin union select 'attribute replication' from r where rolreplication
         union select 'attribute superuser' from r where rolsuper union select 'attribute createrole' from r where rolcreaterole
         union select 'attribute createdb' from r where rolcreatedb union select 'attribute bypassrls' from r where rolbypassrls
         union select 'member ' || g.rolname from r join pg_auth_members m on m.member = r.oid join pg_roles g on g.oid = m.roleid
         union select 'database ' || datname || ' ' || a.privilege_type from r, pg_database d, aclexplode(d.datacl) a where a.grantee = r.oid
         union select 'schema ' || nspname || ' ' || a.privilege_type from r, pg_namespace n, aclexplode(n.nspacl) a where a.grantee = r.oid
         union select 'table ' || c.relnamespace::regnamespace || '.' || relname || ' ' || a.privilege_type
               from r, pg_class c, aclexplode(c.relacl) a where a.grantee = r.oid
         union select 'column ' || t.attrelid::regclass || '.' || attname || ' ' || a.privilege_type
               from r, pg_attribute t, aclexplode(t.attacl) a where a.grantee = r.oid
         union select case when prokind = 'p' then 'procedure ' || pronamespace::regnamespace || '.' || proname
                           else 'function ' || pronamespace::regnamespace || '.' || proname || '(' || oidvectortypes(proargtypes) || ')' end
                      || ' ' || a.privilege_type from r, pg_proc p, aclexplode(p.proacl) a where a.grantee = r.oid"
    );
    let rows = pg.client().await.query(&sql, &[]).await.expect("the rights");
    rows.iter().map(|row| row.get(0)).collect()
}

/// The statement that takes one of them away.
fn revoke(right: &str, role: &str) -> String {
    let (kind, rest) = right.split_once(' ').expect("a kind");
    let split = || rest.rsplit_once(' ').expect("what and which");
    match kind {
        "attribute" => format!("alter role {role} no{rest}"),
        "member" => format!("revoke {rest} from {role}"),
        "column" => {
            let ((column, right), role) = (split(), role);
            let (table, column) = column.rsplit_once('.').expect("table and column");
            format!("revoke {right} ({column}) on {table} from {role}")
        }
        kind => format!("revoke {} on {kind} {} from {role}", split().1, split().0),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_right_of_the_relays_login_is_needed_and_there_is_no_other() {
    let pg = scene().await;
    let mut needed = needed();
    // A migration may have made it: as it, Postgres judges filters.
    if value::<bool>(&pg, "select to_regrole('rowcast_filter') is not null").await {
        needed.push(("member rowcast_filter", Breaks::Tokens("rowcast_filter")));
    }
    let named: BTreeSet<String> = needed.iter().map(|(right, _)| (*right).to_owned()).collect();
    assert_eq!(rights(&pg, "rowcast_relay").await, named);
    for (right, breaks) in needed {
        pg.exec(&revoke(right, "rowcast_relay")).await;
        let broken = match breaks {
            Breaks::Start(says) => {
                let error = start_fails(&pg).await;
                assert!(error.contains(says), "without {right}: {error}");
                true
            }
            Breaks::Asking => {
                let relay = Relay::with(&pg, Clock::system(), as_relay(&pg)).await;
                delivered(&pg, &relay).await != "notes puzzles"
            }
            Breaks::Tokens(role) => {
                let mut client = pg.client_as("rowcast_relay").await;
                let transaction = client.transaction().await.expect("a transaction");
                rowcast::pg::assume(&transaction, role, "", "{}").await.is_err()
            }
            Breaks::Report => {
                let relay = Relay::with(&pg, Clock::system(), as_relay(&pg)).await;
                reaches(&relay, "rowcast_reports_total", "failed", 1.0).await
            }
            Breaks::Frontiers => pg.client_as("rowcast_relay").await.batch_execute(SAVING).await.is_err(),
            Breaks::Retention => {
                let relay = Relay::with(&pg, Clock::system(), as_relay(&pg)).await;
                reaches(&relay, "rowcast_retention_runs_total", "failed", 1.0).await
            }
            Breaks::Channels => pg.client_as("rowcast_relay").await.batch_execute(JUDGING).await.is_err(),
            Breaks::Partitions => !tends(&pg).await,
        };
        assert!(broken, "nothing breaks without {right}");
        run(&pg, "postgres", ROLES, &WITH_RETENTION).await;
    }
    assert!(tends(&pg).await, "it can't care for the partitions");
    pg.client_as("rowcast_relay").await.batch_execute(JUDGING).await.expect("it can't judge private channels");
    assert_eq!(rights(&pg, "rowcast_relay").await, named, "the script gives them back");
}

/// Whether the relay's login can make a partition that is missing.
async fn tends(pg: &TestPg) -> bool {
    let mut client = pg.client_as("rowcast_relay").await;
    pg.exec(
        "do $$ begin execute 'drop table if exists realtime.messages_' || to_char((now() at time zone 'utc')::date + 1, 'YYYY_MM_DD'); end $$",
    )
    .await;
    let keep = Duration::from_secs(72 * 3600);
    rowcast::messages::tend(&mut client, rowcast::messages::Scope::Own, keep)
        .await
        .is_ok_and(|tended| tended.made.len() == 1)
}

/// Read above their policies, or not at all.
const IN_FULL: &str = "set row_security = off; select * from public.members";

#[tokio::test]
async fn tables_that_policies_look_into_are_read_in_full_with_rights_of_their_own() {
    let pg = TestPg::start().await;
    pg.exec(
        "create table public.members (team bigint, user_id uuid, primary key (team, user_id));
         alter table public.members enable row level security;
         create table public.teams (id bigint primary key)",
    )
    .await;
    run(&pg, "postgres", ROLES, &[]).await;
    let plain = rights(&pg, "rowcast_relay").await;
    refused(&pg, "postgres", ROLES, &[("fact_tables", "public.members, public.nowhere")])
        .await
        .says(&["no table 'public.nowhere'"]);
    run(&pg, "postgres", ROLES, &[("fact_tables", "public.teams")]).await;
    assert!(!rights(&pg, "rowcast_relay").await.contains("attribute bypassrls"), "it is not needed for this table");
    for _ in 0..2 {
        run(&pg, "postgres", ROLES, &[("fact_tables", "public.members,public.teams")]).await;
    }
    let more: Vec<String> = rights(&pg, "rowcast_relay").await.difference(&plain).cloned().collect();
    let wanted =
        ["attribute bypassrls", "schema public USAGE", "table public.members SELECT", "table public.teams SELECT"];
    assert_eq!(more, wanted);
    pg.client_as("rowcast_relay").await.batch_execute(IN_FULL).await.expect("read in full");
    for right in ["attribute bypassrls", "table public.members SELECT"] {
        pg.exec(&revoke(right, "rowcast_relay")).await;
        assert!(
            pg.client_as("rowcast_relay").await.batch_execute(IN_FULL).await.is_err(),
            "nothing breaks without {right}"
        );
        run(&pg, "postgres", ROLES, &[("fact_tables", "public.members, public.teams")]).await;
    }
}

/// The error with which a relay of this login does not start.
async fn start_fails(pg: &TestPg) -> String {
    not_ready(pg, as_relay(pg)).await
}

async fn not_ready(pg: &TestPg, adjust: impl FnOnce(&mut Config)) -> String {
    let data = tempfile::tempdir().expect("a folder");
    let mut config = Config::new(&pg.url(), SECRET, data.path()).expect("a configuration");
    adjust(&mut config);
    config.startup_timeout = Duration::from_secs(2);
    let mut running = Box::pin(App::build(config)).await.expect("it holds its ports").spawn();
    chain(&running.ready(PATIENCE).await.expect_err("it lacks a right"))
}

/// A policy's function may `RESET ROLE`: what the relay's own login may, it may not then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_judged_under_a_login_of_their_own_that_may_do_nothing_else() {
    let pg = scene().await;
    let needed = [
        ("attribute login", Some("is not permitted to log in")),
        ("database postgres CONNECT", Some("permission denied for database")),
        ("member anon", None),
        ("member authenticated", None),
        ("member service_role", None),
    ];
    let named: BTreeSet<String> = needed.iter().map(|(right, _)| (*right).to_owned()).collect();
    assert_eq!(rights(&pg, "rowcast_ask").await, named);
    let inherits: bool = value(&pg, "select rolinherit from pg_roles where rolname = 'rowcast_ask'").await;
    assert!(!inherits);
    // The relay's login needs no token role then.
    pg.exec("revoke anon, authenticated, service_role from rowcast_relay").await;
    let asking = |config: &mut Config| {
        as_relay(&pg)(config);
        config.ask_login = Some(Box::new(config.pg.as_user("rowcast_ask", None)));
    };
    let relay = Relay::with(&pg, Clock::system(), asking).await;
    assert_eq!(delivered(&pg, &relay).await, "notes puzzles");
    let logins = "select string_agg(distinct usename::text, ' ') from pg_stat_activity \
                  where pid <> pg_backend_pid() and query not like '%string_agg(%' and (query like '%md5(%' or query like '%deallocate all%')";
    assert_eq!(value::<Option<String>>(&pg, logins).await.as_deref(), Some("rowcast_ask"));
    relay.drain().await;
    let denied =
        ["table public.puzzles", "table rowcast.lineage", "create table public.t ()", "set role rowcast_filter"];
    for sql in denied {
        let session = pg.client_as("rowcast_ask").await;

        assert!(session.batch_execute(sql).await.is_err(), "{sql}");
    }
    for (right, says) in needed {
        let Some(says) = says else { continue };
        pg.exec(&revoke(right, "rowcast_ask")).await;
        let error = not_ready(&pg, asking).await;
        assert!(error.contains(says), "without {right}: {error}");
        run(&pg, "postgres", ROLES, &WITH_RETENTION).await;
    }
}

#[tokio::test]
async fn every_right_of_retentions_role_is_needed_and_there_is_no_other() {
    let pg = scene().await;
    let needed = [
        "attribute bypassrls",
        "schema rowcast USAGE",
        "table rowcast.retention SELECT",
        "table public.notes SELECT",
        "table public.notes DELETE",
        "column notes.created_at UPDATE",
        "function pg_catalog.pg_replication_origin_session_setup(text) EXECUTE",
        "function pg_catalog.pg_replication_origin_session_reset() EXECUTE",
        "function pg_catalog.pg_replication_origin_session_is_setup() EXECUTE",
    ];
    let named: BTreeSet<String> = needed.iter().map(|right| (*right).to_owned()).collect();
    assert_eq!(rights(&pg, "rowcast_retention").await, named);
    for right in needed {
        pg.exec(&format!(
            "insert into public.notes (user_id, note, created_at) values ('{ALICE}', 'old', now() - interval '8 days')"
        ))
        .await;
        pg.exec(&revoke(right, "rowcast_retention")).await;
        let session = pg.client_as("rowcast_dba").await;
        let called = session.query_one("call rowcast.run_retention()", &[]).await;
        let broken = called.is_ok_and(|row| row.get::<_, Option<&str>>("errors").is_none());
        assert!(!broken, "nothing breaks without {right}");
        run(&pg, "postgres", ROLES, &WITH_RETENTION).await;
    }
}

#[tokio::test]
async fn monitoring_reads_and_writes_nothing_and_undo_leaves_nothing() {
    let pg = scene().await;
    let monitor = pg.client_as("rowcast_monitor").await;
    for allowed in ["table rowcast.retention", "table rowcast.relay_status", "table rowcast.status_samples"] {
        monitor.batch_execute(allowed).await.expect(allowed);
    }
    for denied in [
        "delete from rowcast.retention",
        "insert into rowcast.relay_status values ('x', 'x', 'x', now(), now(), '{}')",
        "select * from public.notes",
        "set role authenticated",
        "call rowcast.run_retention()",
        "select pg_drop_replication_slot('rowcast')",
    ] {
        assert!(monitor.batch_execute(denied).await.is_err(), "{denied}");
    }
    drop(monitor);
    refused(&pg, "rowcast_dba", ROLES, &[]).await.says(&["permission denied"]);
    refused(&pg, "postgres", ROLES, &[("table_owner", "postgres")]).await.says(&["is a superuser"]);
    for _ in 0..2 {
        run(&pg, "postgres", ROLES, &[("undo", "yes")]).await;
        let left = "select count(*) from pg_roles where rolname in ('rowcast_relay', 'rowcast_ask', 'rowcast_dba', 'rowcast_monitor', 'rowcast_retention')";
        assert_eq!(value::<i64>(&pg, left).await, 0);
    }
    let owner = "select pg_get_userbyid(pubowner)::text from pg_publication where pubname = 'supabase_realtime'";
    assert_eq!(value::<String>(&pg, owner).await, "postgres", "the publication is still there");
    assert_eq!(value::<i64>(&pg, "select count(*) from rowcast.retention").await, 1, "and the rules");
}

#[tokio::test]
async fn passwords_are_set_only_if_given() {
    let pg = TestPg::start().await;
    let with = "select rolpassword is not null from pg_authid where rolname = 'rowcast_relay'";
    run(&pg, "postgres", ROLES, &[]).await;
    assert!(!value::<bool>(&pg, with).await);
    run(&pg, "postgres", ROLES, &[("relay_password", "it's 'quoted'")]).await;
    assert!(value::<bool>(&pg, with).await);
    run(&pg, "postgres", ROLES, &[]).await;
    assert!(value::<bool>(&pg, with).await, "kept");
}
