//! The harness itself: tests that restart and kill servers rely on this.

use crate::support::TestPg;
use crate::support::pg::TestPgOptions;

#[tokio::test]
async fn what_was_committed_survives_a_restart_and_a_kill_on_the_same_url() {
    let mut pg = TestPg::with(TestPgOptions { fsync: true, bare: true, ..TestPgOptions::default() }).await;
    let url = pg.url();
    pg.exec("create table kept (step int); insert into kept values (1)").await;
    pg.restart().await;
    pg.exec("insert into kept values (2)").await;
    pg.kill().await;
    pg.start_again().await;
    assert_eq!(pg.url(), url);
    assert!(url.contains(&pg.port().to_string()));
    let row = pg.client().await.query_one("select count(*) from kept", &[]).await.expect("a row");
    assert_eq!(row.get::<_, i64>(0), 2);
}

#[tokio::test]
async fn settings_reach_the_server() {
    let settings = vec![("max_slot_wal_keep_size", "8MB")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    let client = pg.client().await;
    for (name, value) in [("max_slot_wal_keep_size", "8MB"), ("fsync", "off"), ("wal_sender_timeout", "10s")] {
        let row = client.query_one(&format!("show {name}"), &[]).await.expect("a row");
        assert_eq!(row.get::<_, &str>(0), value, "{name}");
    }
}
