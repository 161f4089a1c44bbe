//! Each finding: made on purpose, found, and gone after its own SQL.

use rowcast::doctor::{Finding, Severity, worst};

use super::Clinic;

/// How a finding goes away.
#[derive(Clone, Copy)]
pub(super) enum Cure {
    /// By its own SQL.
    Own,
    /// By its own SQL and a restart.
    OwnAndRestart,
    /// It has no SQL that could be run: its `todo` has this in it, and this SQL, ours, does it.
    Todo(&'static str, &'static str),
}

pub(super) struct Case {
    /// What makes it wrong, a statement each.
    wrong: &'static [&'static str],
    /// The finding: check, severity, subject as it is printed.
    found: (&'static str, Severity, &'static str),
    cure: Cure,
    /// Puts the database in order for the next case.
    after: &'static [&'static str],
}

pub(super) const fn case(
    found: (&'static str, Severity, &'static str),
    wrong: &'static [&'static str],
    cure: Cure,
    after: &'static [&'static str],
) -> Case {
    Case { wrong, found, cure, after }
}

use Cure::{Own, OwnAndRestart, Todo};
use Severity::{Error, Note, Warning};

const RELOAD: &str = "select pg_reload_conf()";

const SERVER: &[Case] = &[
    case(("slot_budget", Warning, "server"), &["alter system reset max_slot_wal_keep_size", RELOAD], Own, &[]),
    case(("synchronous_commit", Note, "server"), &["alter system set synchronous_commit = off", RELOAD], Own, &[]),
    case(
        ("synchronous_commit", Note, "role writer"),
        &["create role writer login", "alter role writer set synchronous_commit = off"],
        Own,
        &["alter role writer in database postgres set synchronous_commit = off"],
    ),
    case(("synchronous_commit", Note, "role writer"), &[], Own, &[]),
    case(("synchronous_commit", Note, "server"), &["alter database postgres set synchronous_commit = off"], Own, &[]),
    case(("connection_limit", Warning, "role relay"), &["alter role relay connection limit 6"], Own, &[]),
    case(
        ("foreign_claims", Warning, "server"),
        &["alter database postgres set request.jwt.claim.email = 'x'"],
        Todo("alter database … reset", "alter database postgres reset request.jwt.claim.email"),
        &[],
    ),
];

/// Of settings that came with version 18.
const SERVER_18: &[Case] = &[case(
    ("idle_slot_timeout", Warning, "server"),
    &["alter system set idle_replication_slot_timeout = '1d'", RELOAD],
    Own,
    &[],
)];

const SLOTS: &[Case] = &[
    case(
        ("slot_unusable", Error, "slot rowcast"),
        &["select pg_create_physical_replication_slot('rowcast')"],
        Own,
        &["select pg_create_logical_replication_slot('rowcast', 'pgoutput', false, true)"],
    ),
    // With two_phase on, as the case before left it.
    case(("slot_unusable", Error, "slot rowcast"), &[], Own, &[]),
    case(
        ("slot_abandoned", Note, "slot elsewhere"),
        &["select pg_create_physical_replication_slot('elsewhere', true)"],
        Own,
        &[],
    ),
    case(
        ("slot_abandoned", Warning, "slot formerly"),
        &[
            "select pg_create_logical_replication_slot('formerly', 'pgoutput')",
            "insert into rowcast.lineage (slot, system_identifier, incarnation, token) values ('formerly', '1', '2', '3')",
        ],
        Own,
        &["delete from rowcast.lineage"],
    ),
    case(
        ("slot_behind", Warning, "slot rowcast"),
        &[
            "alter system set max_wal_size = '2MB'",
            RELOAD,
            "select pg_create_logical_replication_slot('rowcast', 'pgoutput')",
            "create table public.filler as select repeat('x', 1000) from generate_series(1, 12000)",
            "drop table public.filler",
            "checkpoint",
        ],
        Own,
        &["alter system reset max_wal_size", RELOAD],
    ),
    case(
        ("slots", Error, "server"),
        &[
            "alter system set max_replication_slots = 1",
            "select pg_create_physical_replication_slot('another', true)",
            "restart",
        ],
        OwnAndRestart,
        &["select pg_drop_replication_slot('another')"],
    ),
    case(("senders", Error, "server"), &["alter system set max_wal_senders = 0", "restart"], OwnAndRestart, &[]),
    case(
        ("replication_connection", Error, "server"),
        &["alter system set max_wal_senders = 0", "restart"],
        Todo("max_wal_senders", "alter system set max_wal_senders = 4; restart"),
        &[],
    ),
];

const ROLES: &[Case] = &[
    case(("login_replication", Error, "role relay"), &["alter role relay noreplication"], Own, &[]),
    case(
        ("login_bypassrls", Warning, "role relay"),
        // No policy looks into a table above whose policies the relay has to be.
        &[
            "alter policy \"users see events of their own sessions\" on session_events using (true)",
            "alter role relay bypassrls",
        ],
        Own,
        &[],
    ),
    case(("token_role_missing", Warning, "role clerk"), &[], Own, &[]),
    case(("token_role_superuser", Error, "role clerk"), &["alter role clerk superuser"], Own, &[]),
    case(("token_role_not_granted", Error, "role authenticated"), &["revoke authenticated from relay"], Own, &[]),
    case(("filter_role", Warning, "role rowcast_filter"), &["revoke rowcast_filter from relay"], Own, &[]),
    case(("filter_role", Warning, "role rowcast_filter"), &["drop role rowcast_filter"], Own, &[]),
    case(("schema_rights", Error, "schema rowcast"), &["revoke update on rowcast.lineage from relay"], Own, &[]),
    case(("schema_rights", Error, "schema rowcast"), &["revoke usage on schema rowcast from relay"], Own, &[]),
    case(
        ("migrations", Error, "schema rowcast"),
        &["update rowcast.migrations set checksum = 'x' || checksum where version = 1"],
        Todo(
            "the Rowcast that migrated",
            "update rowcast.migrations set checksum = substr(checksum, 2) where version = 1",
        ),
        &[],
    ),
    case(("rule_hints", Note, "schema rowcast"), &["alter event trigger rowcast_rules_changed disable"], Own, &[]),
    case(
        ("rule_hints", Note, "schema rowcast"),
        &["drop event trigger rowcast_rules_dropped"],
        Todo(
            "rowcast migrate up",
            "create event trigger rowcast_rules_dropped on sql_drop execute function rowcast.hint_rules()",
        ),
        &[],
    ),
    case(
        ("migrations", Note, "schema rowcast"),
        &["alter table rowcast.migrations alter version type int using -version"],
        Todo("", "alter table rowcast.migrations alter version type int using -version"),
        &[],
    ),
];

const PUBLICATIONS: &[Case] = &[
    case(("publication_missing", Error, "publication rowcast_facts"), &["drop publication rowcast_facts"], Own, &[]),
    case(
        ("publication_missing", Error, "publication rowcast_facts"),
        &["select pg_create_logical_replication_slot('rowcast', 'pgoutput')", "drop publication rowcast_facts"],
        Own,
        &[
            "do $$ begin if exists (select from pg_replication_slots) then raise 'the slot is still there'; end if; end $$",
        ],
    ),
    case(
        ("publication_missing", Warning, "publication rowcast_messages"),
        &["drop publication rowcast_messages"],
        Own,
        &[],
    ),
    case(
        ("messages_publication", Warning, "publication rowcast_messages"),
        &["alter publication rowcast_messages set (publish_via_partition_root = false)"],
        Own,
        &[],
    ),
    case(
        ("messages_unpublished", Warning, "table realtime.messages"),
        &["do $$ begin if exists (select from pg_publication_tables where pubname = 'rowcast_messages') then \
           alter publication rowcast_messages drop table realtime.messages; end if; end $$"],
        Own,
        &[],
    ),
    case(
        ("publication_actions", Note, "publication supabase_realtime"),
        &["alter publication supabase_realtime set (publish = 'insert')"],
        Own,
        &[],
    ),
    case(
        ("publication_empty", Warning, "publication supabase_realtime"),
        &["alter publication supabase_realtime drop table session_events, notifications"],
        Todo("add table", "alter publication supabase_realtime add table session_events, notifications"),
        &[],
    ),
    case(
        ("column_list_identity", Error, "table public.notifications"),
        &[
            "alter publication supabase_realtime drop table notifications",
            "alter publication supabase_realtime add table notifications (id, user_id) where (id > 7)",
        ],
        Own,
        &[
            "do $$ begin if not exists (select from pg_publication_tables where tablename = 'notifications' and rowfilter is not null) \
             then raise 'the filter is gone'; end if; end $$",
            "alter publication supabase_realtime drop table notifications",
            "alter publication supabase_realtime add table notifications",
        ],
    ),
    case(
        ("row_filter_identity", Error, "table public.notifications"),
        &[
            "alter table notifications replica identity default",
            "alter publication supabase_realtime drop table notifications",
            "alter publication supabase_realtime add table notifications where (kind = 'public')",
        ],
        Own,
        &[
            "alter publication supabase_realtime drop table notifications",
            "alter publication supabase_realtime add table notifications",
        ],
    ),
    case(
        ("column_lists", Error, "table public.\"Odd\""),
        &[
            "create table \"Odd\" (id int primary key, \"order\" int, secret text)",
            "alter table \"Odd\" enable row level security",
            "grant select on \"Odd\" to authenticated",
            "create policy p on \"Odd\" for select using (true)",
            "alter publication supabase_realtime add table \"Odd\" (id, \"order\")",
            "alter publication rowcast_facts add table \"Odd\"",
        ],
        Own,
        &[],
    ),
    case(
        ("row_filter", Note, "table public.\"Odd\""),
        &[
            "alter publication supabase_realtime drop table \"Odd\"",
            "alter publication supabase_realtime add table \"Odd\" where (id > 7)",
        ],
        Own,
        &["drop table \"Odd\""],
    ),
    case(
        ("via_root_mix", Warning, "table public.readings"),
        &[
            "create table readings (id int primary key, user_id uuid) partition by range (id)",
            "create table readings_1 partition of readings for values from (0) to (9)",
            "alter table readings enable row level security",
            "alter table readings_1 enable row level security",
            "alter publication rowcast_facts set (publish_via_partition_root = true)",
            "alter publication rowcast_facts add table readings",
            "alter publication supabase_realtime add table readings",
        ],
        Own,
        &["alter publication rowcast_facts set (publish_via_partition_root = false)", "drop table readings"],
    ),
    case(
        ("unlogged", Note, "table fast.lane"),
        &[
            "create schema fast",
            "create unlogged table fast.lane (id int primary key)",
            "create publication rowcast_extra",
            "alter publication supabase_realtime add tables in schema fast",
        ],
        Own,
        &["drop schema fast cascade", "drop publication rowcast_extra"],
    ),
];

pub(super) const DROP: &str = "drop table t";
pub(super) const PUBLISH: &str = "alter publication supabase_realtime add table t";
pub(super) const READ: &str = "grant select on t to authenticated";
pub(super) const RLS: &str = "alter table t enable row level security";
pub(super) const OWN: &str = "create policy own on t for select to authenticated using (user_id = auth.uid())";
pub(super) const TABLE: &str = "create table t (id int primary key, user_id uuid, note text)";

const TABLES: &[Case] = &[
    case(
        ("replica_identity", Error, "table public.t"),
        &["create table t (id int, user_id uuid)", READ, RLS, OWN, PUBLISH],
        Own,
        &[DROP],
    ),
    case(
        ("replica_identity", Error, "table public.t"),
        &[TABLE, READ, RLS, OWN, PUBLISH, "alter table t replica identity nothing"],
        Own,
        &[DROP],
    ),
    case(
        ("primary_key", Error, "table public.t"),
        &["create table t (id int, user_id uuid)", READ, RLS, OWN, PUBLISH],
        Own,
        &[DROP],
    ),
    case(("primary_key", Error, "table public.t"), &["create table t (id int not null)", READ, PUBLISH], Own, &[DROP]),
    case(("deletes", Warning, "table public.t"), &[TABLE, READ, RLS, OWN, PUBLISH], Own, &[DROP]),
    case(
        ("deletes", Warning, "table public.t"),
        &[
            "create table t (id int primary key, user_id uuid) partition by range (id)",
            "create table t1 partition of t for values from (0) to (9)",
            READ,
            RLS,
            "alter table t1 enable row level security",
            OWN,
            "alter publication supabase_realtime set (publish_via_partition_root = true)",
            PUBLISH,
            // Does not reach the partition.
            "alter table t replica identity full",
        ],
        Own,
        &[DROP, "alter publication supabase_realtime set (publish_via_partition_root = false)"],
    ),
    case(
        ("evidence", Error, "table public.t"),
        &[TABLE, READ, RLS, OWN, "alter publication supabase_realtime add table t (id, note)"],
        Own,
        &[DROP],
    ),
    case(
        ("evidence", Error, "table public.t"),
        &[TABLE, READ, RLS, OWN, "alter publication supabase_realtime add table t (id, note) where (id > 7)"],
        Todo(
            "Publish all columns",
            "begin; alter publication supabase_realtime drop table t; \
            alter publication supabase_realtime add table t where (id > 7); commit",
        ),
        &[DROP],
    ),
    case(
        ("evidence", Error, "table public.t"),
        &[
            "create table t (id int primary key, a int, twice int generated always as (a * 2) stored)",
            READ,
            RLS,
            "create policy p on t for select using (twice > 0)",
            PUBLISH,
        ],
        Todo("the columns that it is made of", "alter policy p on t using (a > 0)"),
        &[DROP],
    ),
    case(
        ("deletes_cascade", Note, "table public.t"),
        &[
            "create table t (id int primary key, session_id uuid references coding_sessions on delete cascade, user_id uuid)",
            READ,
            RLS,
            "alter table t replica identity full",
            "create policy p on t for select using (now() > (select max(created_at) from coding_sessions))",
            PUBLISH,
        ],
        Todo("the owner into the row", "alter policy p on t using (user_id = auth.uid())"),
        &[DROP],
    ),
    case(("row_security", Warning, "table public.t"), &[TABLE, "grant select on t to anon", PUBLISH], Own, &[DROP]),
    case(("row_security", Note, "table public.t"), &[TABLE, READ, PUBLISH], Own, &[DROP]),
    case(("policies", Warning, "table public.t"), &[TABLE, READ, RLS, PUBLISH], Own, &[DROP]),
    case(
        ("policies", Warning, "table public.t"),
        &["create table t (id int primary key)", READ, RLS, PUBLISH],
        Todo("create policy", "create policy p on t for select using (true)"),
        &[DROP],
    ),
    case(("grants", Warning, "table public.t"), &[TABLE, PUBLISH], Own, &[DROP]),
    case(
        ("key_grant", Warning, "table public.t"),
        &[TABLE, "grant select (user_id) on t to authenticated", RLS, OWN, PUBLISH],
        Own,
        &[DROP],
    ),
    case(
        ("open_partition", Warning, "table public.t1"),
        &[
            "create table t (id int primary key, user_id uuid) partition by range (id)",
            "create table t1 partition of t for values from (0) to (9)",
            READ,
            "grant select on t1 to authenticated",
            RLS,
            OWN,
            PUBLISH,
        ],
        Own,
        &[DROP],
    ),
    case(
        ("engine", Note, "table public.t"),
        &[TABLE, READ, RLS, "create policy p on t for select using (now() > '2000-01-01')", PUBLISH],
        Todo("without the clock", "alter policy p on t using (user_id = auth.uid())"),
        &[DROP],
    ),
];

fn find<'a>(found: &'a [Finding], case: &Case) -> Option<&'a Finding> {
    let (check, severity, subject) = case.found;
    // A table's name in a subject is not quoted.
    let subject = subject.replace('"', "");
    found.iter().find(|f| f.check == check && f.severity == severity && f.subject.to_string() == subject)
}

async fn run(clinic: &mut Clinic, statement: &str) {
    for part in statement.split("; restart") {
        if part == "restart" {
            clinic.pg.restart().await;
        } else if !part.is_empty() {
            clinic.pg.exec(part).await;
        }
    }
    if statement.ends_with("; restart") {
        clinic.pg.restart().await;
    }
}

/// Each is found, has what a person needs to know, and is gone after its cure.
pub(super) async fn all(mut clinic: Clinic, cases: &[Case]) {
    for case in cases {
        let (check, ..) = case.found;
        for statement in case.wrong {
            run(&mut clinic, statement).await;
        }
        let found = clinic.until(&format!("{check} is found"), |found| find(found, case).is_some()).await;
        let finding = find(&found, case).expect("just found");
        assert!(!finding.why.is_empty() || !finding.todo.iter().all(String::is_empty), "{finding:#?}");
        let sql = match case.cure {
            Own | OwnAndRestart => finding.sql.clone().unwrap_or_else(|| panic!("{check} has no SQL: {finding:#?}")),
            Todo(phrase, sql) => {
                assert_eq!(finding.sql, None, "{check}");
                assert!(finding.todo.as_deref().unwrap_or_default().contains(phrase), "{check}: {finding:#?}");
                sql.to_owned()
            }
        };
        for statement in sql.lines() {
            run(&mut clinic, statement).await;
        }
        if matches!(case.cure, OwnAndRestart) {
            clinic.pg.restart().await;
        }
        clinic.until(&format!("{check} is gone after\n{sql}"), |found| find(found, case).is_none()).await;
        for statement in case.after {
            run(&mut clinic, statement).await;
        }
    }
    clinic.until("all is well again", |found| worst(found) < Severity::Warning).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_server_is_found_and_mended_by_its_own_sql() {
    all(Clinic::healthy().await, SERVER).await;
    let clinic = Clinic::healthy().await;
    if clinic.pg.major() >= 18 {
        all(clinic, SERVER_18).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_slots_is_found_and_mended_by_its_own_sql() {
    all(Clinic::healthy().await, SLOTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_roles_is_found_and_mended_by_its_own_sql() {
    let mut clinic = Clinic::healthy().await;
    clinic.roles = vec!["clerk".into()];
    all(clinic, ROLES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_the_publications_is_found_and_mended_by_its_own_sql() {
    all(Clinic::healthy().await, PUBLICATIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_table_is_found_and_mended_by_its_own_sql() {
    all(Clinic::healthy().await, TABLES).await;
}

/// The checks that the tables above prove.
pub(super) fn proved() -> Vec<&'static str> {
    [SERVER, SLOTS, ROLES, PUBLICATIONS, super::messages::MESSAGES, TABLES, super::facts::FACT_TABLES]
        .into_iter()
        .flatten()
        .map(|case| case.found.0)
        .collect()
}
