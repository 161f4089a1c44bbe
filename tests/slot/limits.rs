//! What the server may do to a slot by its settings, said before it happens; and slots that standbys have a copy of.

use super::*;
use crate::support::pg::TestPgOptions;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_comes_near_its_limit_is_a_line_with_what_keeps_it() {
    let settings = vec![("max_slot_wal_keep_size", "1GB")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    pg.exec(MARKS).await;
    let relay = program(&pg).await;
    // It keeps the WAL since its beginning, however well we read.
    let old = pg.client().await;
    old.batch_execute("begin; insert into public.marks (note) values ('old')").await.expect("written");
    let filling = async {
        loop {
            pg.exec("select pg_logical_emit_message(false, 'filler', repeat('x', 30000))").await;
            pause().await;
        }
    };
    // Two looks at the slot, fifteen seconds apart.
    let said = async {
        while !relay.log().contains("soon be over max_slot_wal_keep_size") {
            pause().await;
        }
    };
    tokio::select! {
        () = filling => {}
        said = tokio::time::timeout(3 * PATIENCE, said) => said.unwrap_or_else(|_| panic!("never said:\n{}", relay.log())),
    }
    let line = relay.logged("soon be over max_slot_wal_keep_size").await;
    assert!(line.contains("a transaction that is open for long"), "{line}");
}

/// Version 18 gives up a slot that nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_after_which_the_server_gives_the_slot_up_is_told_in_hours() {
    if TestPg::start().await.major() < 18 {
        return;
    }
    let settings = vec![("idle_replication_slot_timeout", "2h")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    let relay = program(&pg).await;
    let line = relay.logged("idle_replication_slot_timeout").await;
    assert!(line.contains("WARN") && line.contains("hours=2"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_given_up_because_nobody_read_it_is_made_anew_and_who_comes_back_is_told() {
    if TestPg::start().await.major() < 18 {
        return;
    }
    let settings = vec![("idle_replication_slot_timeout", "1s")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    pg.exec(MARKS).await;
    let mut relay = program(&pg).await;
    let away = Away::from(&relay.base()).await;
    stop(&pg, &mut relay).await;
    // The server looks at each checkpoint.
    let deadline = Instant::now() + PATIENCE;
    let given_up = "select coalesce(invalidation_reason = 'idle_timeout', false) from pg_replication_slots";
    let client = pg.client().await;
    while !client.query_one(given_up, &[]).await.expect("the slot").get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "the slot is not given up");
        mark(&pg, "lost").await;
        pg.exec("checkpoint").await;
        pause().await;
    }
    relay.start_again().await;
    relay.logged("the server has given up WAL that the replication slot needed").await;
    away.told(&relay.base(), &pg, "diverged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_is_made_for_standbys_where_the_server_can_and_one_that_is_not_is_said() {
    let pg = with_marks().await;
    let mut relay = program(&pg).await;
    stop(&pg, &mut relay).await;
    relay.set("ROWCAST_SLOT_FAILOVER", "true");
    relay.start_again().await;
    if pg.major() < 17 {
        // What this server can't do is no reason not to work.
        relay.logged("ROWCAST_SLOT_FAILOVER needs PostgreSQL 17").await;
        return;
    }
    relay.logged("the slot is not copied to standbys although ROWCAST_SLOT_FAILOVER asks for it").await;
    stop(&pg, &mut relay).await;
    pg.exec("select pg_drop_replication_slot('rowcast')").await;
    relay.start_again().await;
    until(&pg, "select failover from pg_replication_slots where slot_name = 'rowcast'").await;
    relay.logged("name their physical slots in synchronized_standby_slots").await;
}
