//! A slot can't be made while a transaction that was open before goes on.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_waits_for_an_old_transaction_longer_than_its_timeout_and_names_it() {
    let pg = with_marks().await;
    let writer = pg.client().await;
    writer.batch_execute("begin; insert into public.marks (note) values ('old')").await.expect("written");
    let pid: i32 = writer.query_one("select pg_backend_pid()", &[]).await.expect("a row").get(0);
    let mut relay = RelayProcess::new(&pg);
    relay.set("ROWCAST_STARTUP_TIMEOUT", "1s");
    relay.spawn();
    let line = relay.logged(&format!("pid {pid} (idle in transaction, user postgres, for ")).await;
    assert!(line.contains(&format!("pg_terminate_backend({pid})")), "{line}");
    relay.readiness(503).await;
    writer.batch_execute("commit").await.expect("committed");
    relay.readiness(200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_stay_while_a_lost_slot_can_not_be_made_and_are_told_of_the_gap_when_it_is() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    let writer = pg.client().await;
    writer.batch_execute("begin; insert into public.marks (note) values ('old')").await.expect("written");
    pg.exec(DROP_SLOT).await;
    relay.logged("waited").await;
    // It may have been sent away before it was known that nobody can have the slot; a moment later it is served.
    let deadline = Instant::now() + PATIENCE;
    while handshake(relay.addr()).await != "101" {
        assert!(Instant::now() < deadline, "nobody is let in");
        pause().await;
    }
    let mut other = watcher(&relay.base()).await;
    other.heartbeat().await;
    writer.batch_execute("commit").await.expect("committed");
    relay.readiness(200).await;
    gap(&mut other).await;
    mark(&pg, "after").await;
    next_mark(&mut other, "after").await;
    drop(phone.close_code());
}
