//! A slot of this name is there and is not one that we can use.

use super::*;

async fn refused_at_start(pg: &TestPg, says: &[&str]) {
    let mut relay = RelayProcess::new(pg);
    relay.spawn();
    assert_eq!(relay.end_by_itself().await, Some(1), "{}", relay.log());
    for text in says {
        assert!(relay.log().contains(text), "{text}: {}", relay.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_of_another_plugin_or_kind_ends_a_start_with_what_to_do() {
    let pg = with_marks().await;
    let drop = "select pg_drop_replication_slot('rowcast')";
    pg.exec("select pg_create_logical_replication_slot('rowcast', 'test_decoding')").await;
    refused_at_start(&pg, &["slot rowcast decodes with test_decoding, not pgoutput", "Name another slot"]).await;
    pg.exec(drop).await;
    pg.exec("select pg_create_physical_replication_slot('rowcast')").await;
    refused_at_start(&pg, &["slot rowcast is a physical one", "pg_drop_replication_slot('rowcast')"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_of_another_database_ends_a_start_with_what_to_do() {
    let pg = with_marks().await;
    pg.exec("create database other").await;
    let url = format!("{}/other", pg.url().trim_end_matches("/postgres"));
    let other = rowcast::pg::PgConfig::from_url(&url).expect("a URL").connect().await.expect("connected");
    other.batch_execute("select pg_create_logical_replication_slot('rowcast', 'pgoutput')").await.expect("made");
    refused_at_start(&pg, &["slot rowcast belongs to database other", "Name another slot"]).await;
}

/// It was ours when we started: the relay stays, says what is wrong, sends its clients away, and goes on when it is mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_replaced_by_a_foreign_one_while_we_run_is_waited_out() {
    let pg = with_marks().await;
    let relay = program(&pg).await;
    let mut phone = watcher(&relay.base()).await;
    let replace =
        DROP_SLOT.replace("exit;", "perform pg_create_logical_replication_slot('rowcast', 'test_decoding'); exit;");
    pg.exec(&replace).await;
    let line = relay.logged("decodes with test_decoding").await;
    assert!(line.contains("ERROR") && line.contains("until this is mended"), "{line}");
    assert_eq!(phone.close_code().await, Some(1012));
    relay.readiness(503).await;
    pg.exec("select pg_drop_replication_slot('rowcast')").await;
    relay.readiness(200).await;
    relay.logged("clients are let in").await;
    let mut phone = watcher(&relay.base()).await;
    mark(&pg, "after").await;
    next_mark(&mut phone, "after").await;
}
