//! What is found on servers that a statement can't mend, and that nothing is changed by looking.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::Duration;

use rowcast::clock::Clock;
use rowcast::config::Settings;
use rowcast::doctor::{Finding, Severity, examine, worst};
use tokio::time::Instant;

use super::{Clinic, config, mended, shown};
use crate::support::pg::TestPgOptions;
use crate::support::stage::all_of;
use crate::support::token::{self, SECRET};
use crate::support::{RelayProcess, Stage, TestPg};

/// Checks whose findings the other tests make; the file beside each proves it.
const ELSEWHERE: &[&str] = &[
    // checks.rs
    "connection",
    "connections",
    "clock",
    "encoding",
    "wal_level",
    "login_superuser",
    "schema",
    "key_set",
    "standby",
    "data_dir_in_use",
    "unreadable",
    "locked",
    // command.rs
    "setting",
    "jwt_secret",
    "data_dir",
    "disk",
    // pooler.rs
    "pooler",
    // asking.rs
    "ask_login",
    // Of versions and networks that this machine does not have: unit tests in src/doctor.
    "version",
    "tls",
    "idle_slot_timeout",
    // Of settings: below.
    "facts_memory",
    // Only ever fine.
    "facts",
    "slot",
    "login",
    "publication",
];

#[test]
fn every_check_has_a_test() {
    let mut written = BTreeSet::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/doctor")).expect("the sources") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a source");
        let text = text.split("#[cfg(test)]").next().expect("a part").to_owned();
        for call in ["Finding::ok(", "Finding::note(", "Finding::warning(", "Finding::error("] {
            for (_, rest) in text.match_indices(call).map(|(at, call)| text.split_at(at + call.len())) {
                let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                written.insert(name.expect("the check's name as a literal").to_owned());
            }
        }
    }
    let proved: BTreeSet<String> =
        mended::proved().into_iter().chain(ELSEWHERE.iter().copied()).map(str::to_owned).collect();
    assert_eq!(written, proved);
}

#[track_caller]
fn one<'a>(found: &'a [Finding], check: &str) -> &'a Finding {
    let mut named = found.iter().filter(|finding| finding.check == check);
    let first = named.next().unwrap_or_else(|| panic!("no {check} in\n{}", shown(found)));
    assert_eq!(named.next(), None, "{check} twice");
    first
}

async fn with_setting(name: &'static str, value: &'static str) -> Clinic {
    Clinic::with(TestPgOptions { settings: vec![(name, value)], ..TestPgOptions::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_database_gives_no_warning_and_looking_changes_nothing() {
    let clinic = Clinic::healthy().await;
    let state = "select (select count(*) from pg_replication_slots), (select count(*) from pg_class), \
                 (select count(*) from pg_roles), (select string_agg(pubname, ',' order by 1) from pg_publication), \
                 (select xmin::text from rowcast.migrations where version = 1)";
    let client = clinic.pg.client().await;
    let look = async || {
        let row = client.query_one(state, &[]).await.expect("a row");
        let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
        (counts, row.get::<_, Option<String>>(3), row.get::<_, Option<String>>(4))
    };
    let before = look().await;
    let found = clinic.findings().await;
    assert!(worst(&found) < Severity::Warning, "{}", shown(&found));
    assert_eq!(look().await, before);
    let entries = std::fs::read_dir(clinic.data.path()).expect("the data folder").count();
    assert_eq!(entries, 0, "something was written into the data folder");
    // How the example's membership policy is judged is worth a note, and no more.
    let noted = |finding: &&Finding| finding.severity == Severity::Note;
    assert!(found.iter().filter(noted).all(|f| matches!(f.check, "engine" | "deletes_cascade")), "{}", shown(&found));
    // Each engine is told, for each of the three roles.
    assert_eq!(found.iter().filter(|finding| finding.check == "engine").count(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_that_will_not_fit_into_memory_are_foretold() {
    let clinic = Clinic::healthy().await;
    let rows = "insert into coding_sessions (user_id) select gen_random_uuid() from generate_series(1, 5000); analyze coding_sessions";
    clinic.pg.exec(rows).await;
    let mut config = super::config(&clinic.pg.url_as(clinic.login), clinic.data.path());
    let found = examine(&config, &[], &Clock::system()).await;
    assert!(one(&found, "facts").what.contains("about 5000 rows"), "{}", shown(&found));
    config.hub.facts.memory = 100_000;
    let found = examine(&config, &[], &Clock::system()).await;
    let told = one(&found, "facts_memory");
    assert!(told.todo.as_ref().is_some_and(|todo| todo.contains("ROWCAST_FACTS_MEMORY")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_database_out_of_reach_it_says_just_that() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let data = tempfile::tempdir().expect("a folder");
    let url = format!("postgres://u:hunter2@127.0.0.1:{port}/x");
    let found = examine(&config(&url, data.path()), &[], &Clock::system()).await;
    let finding = one(&found, "connection");
    assert!(finding.what.contains("refused") && !finding.what.contains("hunter2"), "{finding:?}");
    assert!(found.iter().all(|other| other == finding || other.severity == Severity::Ok), "{}", shown(&found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_the_connection_and_says_nothing_is_not_waited_for() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("postgres://u@{}/x", silent.local_addr().expect("an address"));
    let data = tempfile::tempdir().expect("a folder");
    let started = Instant::now();
    let found = examine(&config(&url, data.path()), &[], &Clock::system()).await;
    assert_eq!(one(&found, "connection").severity, Severity::Error);
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_table_is_told_and_the_rest_is_looked_at() {
    let clinic = Clinic::healthy().await;
    let client = clinic.pg.client().await;
    client.batch_execute("begin; lock table public.notifications in access exclusive mode").await.expect("a lock");
    let found = clinic.findings().await;
    // Which questions wait for the lock differs between versions; the catalog is always among them.
    let waited = found.iter().find(|finding| finding.check == "unreadable" && finding.what.contains("the catalog"));
    assert!(waited.is_some(), "{}", shown(&found));
    assert_eq!(one(&found, "wal_level").severity, Severity::Ok);
    let lock = one(&found, "locked");
    assert_eq!((lock.severity, lock.subject.to_string().as_str()), (Severity::Warning, "table public.notifications"));
    clinic.pg.exec(lock.sql.as_deref().expect("SQL")).await;
    clinic.until("no lock", |found| worst(found) < Severity::Warning).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_not_set_up_for_logical_decoding_is_an_error_with_its_setting() {
    let clinic = with_setting("wal_level", "replica").await;
    let found = clinic.findings().await;
    let finding = one(&found, "wal_level");
    assert_eq!(finding.severity, Severity::Error);
    // The test's server has the setting on its command line, so it can't be applied here.
    assert_eq!(finding.sql.as_deref(), Some("alter system set wal_level = 'logical';"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_another_encoding_is_a_warning() {
    let clinic = Clinic::with(TestPgOptions::default()).await;
    clinic.pg.exec("create database old encoding 'SQL_ASCII' locale 'C' template template0").await;
    let url = format!("{}old", clinic.pg.url().trim_end_matches("postgres"));
    let found = clinic.findings_at(&url, &Clock::system()).await;
    assert_eq!(one(&found, "encoding").severity, Severity::Warning);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_free_connections_are_a_warning_with_a_larger_number() {
    let clinic = Clinic::with(TestPgOptions::default()).await;
    let mut clients = Vec::new();
    for _ in 0..45 {
        clients.push(clinic.pg.client().await);
    }
    let found = clinic.until("a warning", |found| found.iter().any(|finding| finding.check == "connections")).await;
    let finding = one(&found, "connections");
    assert_eq!(finding.sql.as_deref(), Some("alter system set max_connections = 83;"));
    drop(clients);
    clinic.until("no warning", |found| found.iter().all(|finding| finding.check != "connections")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_off_is_a_warning() {
    let clinic = Clinic::healthy().await;
    let clock = Clock::system();
    for (shift, says) in [(90_000, "90 s ahead of"), (-180_000, "90 s behind")] {
        clock.advance(shift);
        let found = clinic.findings_at(&clinic.pg.url_as("relay"), &clock).await;
        let finding = one(&found, "clock");
        // The server may be slow to answer; a second more or less is not what this is about.
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.what.contains(says.split(' ').next_back().expect("a word")), "{finding:?}");
    }
    clock.advance(90_000);
    let found = clinic.findings_at(&clinic.pg.url_as("relay"), &clock).await;
    assert_eq!(one(&found, "clock").severity, Severity::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_named_and_the_rest_is_looked_at() {
    let files = vec![("standby.signal", String::new())];
    let settings = vec![("hot_standby", "on")];
    let clinic = Clinic::with(TestPgOptions { files, settings, ..TestPgOptions::default() }).await;
    let found = clinic.findings().await;
    assert_eq!(one(&found, "standby").severity, Severity::Error);
    assert_eq!(one(&found, "migrations").severity, Severity::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_a_superuser_is_shown_how_to_have_a_small_login() {
    let mut clinic = Clinic::healthy().await;
    clinic.login = "postgres";
    let found = clinic.findings().await;
    let sql = one(&found, "login_superuser").sql.clone().expect("SQL");
    for statement in sql.lines() {
        clinic.pg.exec(statement).await;
    }
    clinic.login = "rowcast_relay";
    let found = clinic.findings().await;
    assert!(worst(&found) < Severity::Warning, "{}", shown(&found));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_database_is_brought_in_order_by_what_is_said() {
    let mut clinic = Clinic::with(TestPgOptions { bare: true, ..TestPgOptions::default() }).await;
    let errors = |found: &[Finding]| -> BTreeSet<&'static str> {
        found.iter().filter(|f| f.severity == Severity::Error).map(|finding| finding.check).collect()
    };
    assert_eq!(errors(&clinic.findings().await), ["publication_missing"].into());
    clinic.pg.exec("create role relay login").await;
    clinic.login = "relay";
    let found = clinic.findings().await;
    assert_eq!(errors(&found), ["login_replication", "publication_missing", "schema"].into(), "{}", shown(&found));
    for finding in found.iter().filter(|finding| finding.severity > Severity::Ok) {
        for statement in finding.sql.iter().flat_map(|sql| sql.lines()) {
            clinic.pg.exec(statement).await;
        }
    }
    let found = clinic.until("no error", |found| errors(found).is_empty()).await;
    // What is left needs a person: which tables to publish. The schema is made by the relay itself.
    let left: Vec<_> = found.iter().filter(|f| f.severity >= Severity::Warning).map(|f| f.check).collect();
    assert_eq!(left, ["publication_empty"], "{}", shown(&found));
    assert_eq!(one(&found, "schema").severity, Severity::Note);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_running_relay_it_says_who_reads_and_disturbs_nothing() {
    let pg = TestPg::start().await;
    let mut relay = RelayProcess::start(&pg).await;
    let found = examine(&config(&pg.url(), &relay.data_dir()), &[], &Clock::system()).await;
    let folder = one(&found, "data_dir_in_use");
    assert!(folder.what.contains(&relay.pid().to_string()), "{folder:?}");
    let slot = one(&found, "slot");
    assert!(slot.what.contains("a relay reads it"), "{slot:?}");
    assert!(found.iter().all(|finding| finding.severity < Severity::Error), "{}", shown(&found));
    assert!(relay.stop().await.success(), "{}", relay.log());
    assert!(!relay.log().contains("WARN"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_set_that_cannot_be_had_is_an_error_also_beside_a_secret() {
    let data = tempfile::tempdir().expect("a folder");
    let mut settings = Settings::default();
    settings.set("database_url", "postgres://u@127.0.0.1:1/x");
    settings.set("jwt_secret", SECRET);
    settings.set("jwks_url", data.path().join("keys.json").to_str().expect("text"));
    let config = settings.config(data.path()).expect("a configuration");
    let found = examine(&config, &[], &Clock::system()).await;
    assert_eq!(one(&found, "key_set").severity, Severity::Error);
    std::fs::write(
        data.path().join("keys.json"),
        r#"{"keys":[{"kty":"oct","kid":"a","k":"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE"}]}"#,
    )
    .expect("a file");
    let found = examine(&config, &[], &Clock::system()).await;
    assert_eq!(one(&found, "key_set").severity, Severity::Ok, "{}", shown(&found));
}

/// What `deletes` claims is what a relay does: nobody gets the delete before its SQL, the owner does after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_is_said_to_reach_nobody_does_not_and_does_after_the_cure() {
    let stage = Stage::with(
        "create table public.t (id int primary key, user_id uuid);
         alter table public.t enable row level security; grant select on public.t to authenticated;
         create policy own on public.t for select to authenticated using (user_id = auth.uid());
         alter publication supabase_realtime add table public.t",
    )
    .await;
    let data = tempfile::tempdir().expect("a folder");
    let mut pair = stage.watch(&token::user(token::ALICE), &all_of("t")).await;
    let row = |id: u32| format!("insert into public.t values ({id}, '{}')", token::ALICE);

    let found = examine(&config(&stage.pg.url(), data.path()), &[], &Clock::system()).await;
    let sql = one(&found, "deletes").sql.clone().expect("SQL");
    stage.exec(&row(1)).await;
    stage.exec("delete from public.t").await;
    stage.mark("before").await;
    let kinds: Vec<String> =
        pair.changes_before("before").await.iter().map(|change| change.kind().to_owned()).collect();
    assert_eq!(kinds, ["INSERT"]);

    stage.exec(&sql).await;
    let found = examine(&config(&stage.pg.url(), data.path()), &[], &Clock::system()).await;
    assert!(found.iter().all(|finding| finding.check != "deletes"), "{}", shown(&found));
    stage.exec(&row(2)).await;
    stage.exec("delete from public.t").await;
    stage.mark("after").await;
    let kinds: Vec<String> = pair.changes_before("after").await.iter().map(|change| change.kind().to_owned()).collect();
    assert_eq!(kinds, ["INSERT", "DELETE"]);
}
