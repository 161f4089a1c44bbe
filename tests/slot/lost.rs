//! The slot is gone, or the server has given it up.

use super::*;
use crate::support::Relay;
use crate::support::pg::TestPgOptions;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_dropped_while_we_run_is_made_anew_and_clients_are_told_of_a_gap() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    mark(&pg, "before").await;
    next_mark(&mut phone, "before").await;
    pg.exec(DROP_SLOT).await;
    gap(&mut phone).await;
    relay.logged("the replication slot was gone and was made anew").await;
    relay.logged("Find out who dropped the slot").await;
    relay.readiness(200).await;
    mark(&pg, "after").await;
    next_mark(&mut phone, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_dropped_while_we_are_stopped_begins_a_new_history_with_a_loud_line() {
    let pg = with_marks().await;
    let mut relay = program(&pg).await;
    let away = Away::from(&relay.base()).await;
    stop(&pg, &mut relay).await;
    pg.exec("select pg_drop_replication_slot('rowcast')").await;
    mark(&pg, "lost").await;
    relay.start_again().await;
    let line = relay.logged("the replication slot was gone and was made anew").await;
    assert!(line.contains("ERROR") && line.contains("a new history begins"), "{line}");
    away.told(&relay.base(), &pg, "diverged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_folder_that_is_gone_is_a_loud_line_and_a_gap_for_who_comes_back() {
    let pg = with_marks().await;
    let mut relay = program(&pg).await;
    let away = Away::from(&relay.base()).await;
    stop(&pg, &mut relay).await;
    std::fs::remove_dir_all(relay.data_dir().join("log")).expect("it was there");
    mark(&pg, "committed while stopped").await;
    relay.start_again().await;
    let line = relay.logged("the slot was used before, but the log folder is empty").await;
    assert!(line.contains("ERROR") && line.contains("Keep ROWCAST_DATA_DIR over restarts"), "{line}");
    away.told(&relay.base(), &pg, "diverged").await;
}

async fn limited() -> TestPg {
    let settings = vec![("max_slot_wal_keep_size", "2MB")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    pg.exec(MARKS).await;
    pg
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_the_server_gave_up_while_we_were_stopped_is_made_anew_without_a_person() {
    let pg = limited().await;
    let mut relay = program(&pg).await;
    let away = Away::from(&relay.base()).await;
    stop(&pg, &mut relay).await;
    pg.exec(MUCH_WAL).await;
    pg.exec("checkpoint").await;
    until(&pg, "select wal_status = 'lost' from pg_replication_slots").await;
    relay.start_again().await;
    relay.logged("the server has given up WAL that the replication slot needed").await;
    relay.logged("Raise max_slot_wal_keep_size").await;
    away.told(&relay.base(), &pg, "diverged").await;
}

/// A relay that hangs (stopped here by SIGSTOP) is not read, and the server gives its slot up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_given_up_under_a_relay_that_hung_is_told_as_a_gap_to_clients_that_are_still_there() {
    use nix::sys::signal::{Signal, kill};
    let pg = limited().await;
    let relay = program(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    mark(&pg, "before").await;
    next_mark(&mut phone, "before").await;
    let id = nix::unistd::Pid::from_raw(i32::try_from(relay.pid()).expect("a process id"));
    kill(id, Signal::SIGSTOP).expect("stopped");
    pg.exec(MUCH_WAL).await;
    let client = pg.client().await;
    let checkpoint = rowcast::task::spawn("checkpoint", async move { client.batch_execute("checkpoint").await });
    // The checkpoint hangs until a session that is not read is ended a second time.
    let deadline = Instant::now() + PATIENCE;
    let looking = pg.client().await;
    let lost = "select wal_status = 'lost' from pg_replication_slots where slot_name = 'rowcast'";
    while !looking.query_one(lost, &[]).await.expect("the slot").get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "the slot is not given up");
        pg.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where active").await;
        pause().await;
    }
    kill(id, Signal::SIGCONT).expect("continued");
    gap(&mut phone).await;
    drop(checkpoint.await);
    mark(&pg, "after").await;
    next_mark(&mut phone, "after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_slot_that_nobody_noted_as_ours_is_left_alone_and_named() {
    let pg = limited().await;
    pg.exec("select pg_create_logical_replication_slot('rowcast', 'pgoutput')").await;
    pg.exec(MUCH_WAL).await;
    pg.exec("checkpoint").await;
    until(&pg, "select wal_status = 'lost' from pg_replication_slots").await;
    let mut relay = RelayProcess::new(&pg);
    relay.spawn();
    assert_eq!(relay.end_by_itself().await, Some(1), "{}", relay.log());
    assert!(relay.log().contains("pg_drop_replication_slot('rowcast')"), "{}", relay.log());
    until(&pg, "select count(*) = 1 from pg_replication_slots").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_new_history_is_counted_by_its_reason() {
    let pg = with_marks().await;
    let relay = Relay::start(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    pg.exec(DROP_SLOT).await;
    gap(&mut phone).await;
    let deadline = Instant::now() + PATIENCE;
    while relay.metric("rowcast_epochs_total", "reason=\"slot_lost\"").await < 1.0 {
        assert!(Instant::now() < deadline, "not counted");
        pause().await;
    }
}
