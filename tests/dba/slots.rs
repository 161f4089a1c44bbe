//! Slots: what is shown, the forecast, and rebuilding one with the loss stated.

use super::{refused, run, value};
use crate::support::pg::TestPgOptions;
use crate::support::{Relay, TestPg};

const STATUS: &str = "slot_status.sql";
const REBUILD: &str = "slot_drop_and_rebuild.sql";

/// A database where a relay was and is no more.
async fn left_alone(settings: Vec<(&'static str, &'static str)>) -> TestPg {
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    run(&pg, "postgres", "roles.sql", &[]).await;
    Relay::start(&pg).await.drain().await;
    pg
}

#[tokio::test]
async fn the_forecast_comes_from_two_samples_and_names_the_limit() {
    let pg = left_alone(vec![("max_slot_wal_keep_size", "64MB")]).await;
    pg.exec("delete from rowcast.status_samples").await;
    run(&pg, "rowcast_monitor", STATUS, &[]).await.says(&["NOBODY READS IT", "one sample only"]);
    // Ten minutes later, as far as the samples know.
    pg.exec("update rowcast.status_samples set taken_at = taken_at - interval '10 minutes'").await;
    pg.exec("create table public.filler (t text); insert into public.filler select repeat('x', 1000) from generate_series(1, 8000)").await;
    run(&pg, "rowcast_monitor", STATUS, &[]).await.says(&["in 0", "when the slot is invalidated"]);
    run(&pg, "rowcast_dba", STATUS, &[("disk_free_bytes", "1000")]).await.says(&["when the disk is full"]);
}

#[tokio::test]
async fn a_slot_is_rebuilt_only_when_confirmed_and_the_relay_begins_another_history() {
    let pg = left_alone(Vec::new()).await;
    pg.exec("create table public.t (id int primary key); alter publication supabase_realtime add table public.t").await;
    refused(&pg, "rowcast_dba", REBUILD, &[]).await.says(&["nothing was done", "confirm=yes", "wal_not_read"]);
    assert_eq!(value::<i64>(&pg, "select count(*) from rowcast.lineage").await, 1);
    refused(&pg, "rowcast_monitor", REBUILD, &[("confirm", "yes")]).await.says(&["permission denied"]);

    let relay = Relay::start(&pg).await;
    refused(&pg, "rowcast_dba", REBUILD, &[("confirm", "yes")]).await.says(&["Stop the relay first"]);
    relay.drain().await;
    for _ in 0..2 {
        pg.exec("select 1").await;
        run(&pg, "rowcast_dba", REBUILD, &[("confirm", "yes")]).await.says(&["Start the relay now"]);
        assert_eq!(
            value::<i64>(&pg, "select count(*) from pg_replication_slots where slot_name = 'rowcast' and not active")
                .await,
            1
        );
        assert_eq!(value::<i64>(&pg, "select count(*) from rowcast.lineage").await, 0);
        pg.exec("insert into rowcast.lineage values ('rowcast', '1', 'x', 'y')").await;
    }
    pg.exec("delete from rowcast.lineage").await;
    // The relay goes on with it.
    Relay::start(&pg).await.drain().await;
    assert_eq!(value::<i64>(&pg, "select count(*) from rowcast.lineage").await, 1);
}

#[tokio::test]
async fn somebody_elses_slot_is_left_alone() {
    let pg = left_alone(Vec::new()).await;
    pg.exec("select pg_create_logical_replication_slot('others', 'pgoutput'); select pg_create_physical_replication_slot('standby')").await;
    for slot in ["others", "standby"] {
        let variables = [("slot", slot), ("confirm", "yes")];
        refused(&pg, "rowcast_dba", REBUILD, &variables).await.says(&["slot"]);
    }
    assert_eq!(value::<i64>(&pg, "select count(*) from pg_replication_slots").await, 3);
}
