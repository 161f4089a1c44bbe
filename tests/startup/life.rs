//! A relay that works: it streams, it confirms, it drains, it goes on where it was.

use nix::sys::signal::Signal;

use super::process::{Process, Rowcast};
use crate::support::TestPg;

/// The position behind everything committed so far.
async fn written(pg: &TestPg) -> String {
    let sql = "select pg_current_wal_flush_lsn()::text";
    pg.client().await.query_one(sql, &[]).await.expect("a position").get(0)
}

async fn confirmed(pg: &TestPg, slot: &str, position: &str) -> bool {
    let sql = "select confirmed_flush_lsn >= $2::text::pg_lsn from pg_replication_slots where slot_name = $1";
    pg.client().await.query_one(sql, &[&slot, &position]).await.expect("the slot").get(0)
}

async fn streaming(pg: &TestPg, data: &std::path::Path) -> Process {
    let mut process = Rowcast::serve(&pg.url()).at(data).env("ROWCAST_SLOT", "life").spawn();
    process.line_with("streaming changes").await;
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_confirms_what_was_read_and_the_next_start_goes_on_from_there() {
    let pg = TestPg::start().await;
    let data = tempfile::tempdir().expect("a folder");
    let process = streaming(&pg, data.path()).await;
    pg.exec(
        "create table t (id int primary key); alter publication supabase_realtime add table t; insert into t values (1)",
    )
    .await;
    let position = written(&pg).await;
    while !confirmed(&pg, "life", &position).await {
        // Each look is a round trip; something in the WAL makes the server say where it is.
        pg.exec("select pg_logical_emit_message(true, 'test', '')").await;
    }
    process.signal(Signal::SIGTERM);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("drained") && ended.stderr.contains("clean=true"), "{}", ended.stderr);

    pg.exec("insert into t values (2)").await;
    let process = streaming(&pg, data.path()).await;
    process.signal(Signal::SIGINT);
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stderr.contains("a new history"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_data_folder_begins_a_new_history_and_says_so() {
    let pg = TestPg::start().await;
    for (round, expected) in [(1, "slot is new"), (2, "the log folder is empty")] {
        let data = tempfile::tempdir().expect("a folder");
        let process = streaming(&pg, data.path()).await;
        process.signal(Signal::SIGKILL);
        let ended = process.ended().await;
        assert!(ended.stderr.contains(expected), "round {round}: {}", ended.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn migrate_brings_a_bare_database_to_what_serve_needs_and_back() {
    let pg = TestPg::bare().await;
    let migrate = |action: &str| Rowcast::new(&["migrate", action]).env("DATABASE_URL", &pg.url()).output();
    let ended = migrate("status").await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("rowcast migrate up"), "{}", ended.stderr);
    let ended = migrate("up").await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("publication supabase_realtime"), "{}", ended.stdout);
    assert_eq!(migrate("status").await.code, Some(0));
    let ended = migrate("down").await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(migrate("status").await.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_of_a_newcomer_holds_with_the_real_relay() {
    let folder = tempfile::tempdir().expect("a folder");
    // Run by root, the private server is another user and must get to its folder.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).expect("permissions");
    let state = folder.path().join("state");
    let mut rowcast = Rowcast::new(&["dev", "--once", "--state-dir", state.to_str().expect("text")]).env("PORT", "0");
    // Where the server programs are found.
    for name in ["PATH", "PG_BIN"] {
        if let Some(value) = std::env::var_os(name) {
            rowcast = rowcast.env(name, value.to_str().expect("text"));
        }
    }
    let ended = rowcast.output().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("alice has it after"), "{}", ended.stdout);
    assert!(ended.stdout.contains("bob's phone received none of alice's"), "{}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_whether_changes_are_streaming() {
    let pg = TestPg::start().await;
    let port = crate::support::pg::free_port().to_string();
    let health = async || Rowcast::new(&["health"]).env("PORT", &port).env("HOST", "0.0.0.0").output().await;
    let ended = health().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no relay answers on 127.0.0.1 port"), "{}", ended.stderr);
    let mut process = Rowcast::serve(&pg.url()).env("PORT", &port).spawn();
    process.line_with("streaming changes").await;
    let ended = health().await;
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "ready\n"), "{}", ended.stderr);
    process.signal(Signal::SIGTERM);
    process.ended().await;
}
