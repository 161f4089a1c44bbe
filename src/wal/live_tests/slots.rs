//! Preparing the slot, and slots that have gone bad.

use super::super::slot::prepare_within;
use super::*;
use crate::error::{Fault as _, Remedy};

async fn refused(server: &TestServer, config: &WalConfig) -> WalError {
    let error = prepare(&server.client().await, config).await.expect_err("refused");
    assert_eq!(error.remedy(), Remedy::Operator, "{error:?}");
    assert!(!error.advice().is_empty(), "{error:?}");
    error
}

const SLOTS: &str = "select count(*) from pg_replication_slots";

#[tokio::test]
async fn the_slot_is_made_once_and_found_afterwards() {
    let server = TestServer::start().await;
    server.sql("create publication p").await;
    let config = wal_config(&server, &["p"]);
    let client = server.client().await;
    let made = prepare(&client, &config).await.expect("made");
    assert!(made.created && made.confirmed_flush > Lsn::ZERO && made.restart_lsn.is_some(), "{made:?}");
    assert_eq!((made.wal_status.as_deref(), made.active_pid), (Some("reserved"), None));
    let found = prepare(&client, &config).await.expect("found");
    assert_eq!(found, SlotState { created: false, ..made });
    let settings = "select current_setting('statement_timeout') || current_setting('lock_timeout')";
    let row = client.query_one(settings, &[]).await.expect("settings");
    assert_eq!(row.get::<_, String>(0), "10s5s", "the session keeps its own limits");
}

#[tokio::test]
async fn two_relays_that_start_together_agree_on_one_slot() {
    let server = TestServer::start().await;
    server.sql("create publication p").await;
    let config = wal_config(&server, &["p"]);
    let (a, b) = (server.client().await, server.client().await);
    let (a, b) = tokio::join!(prepare(&a, &config), prepare(&b, &config));
    let mut made = 0;
    for outcome in [a, b] {
        match outcome {
            Ok(state) => made += u32::from(state.created),
            Err(error) => assert_eq!(error.remedy(), Remedy::Retry, "{error:?}"),
        }
    }
    assert_eq!(made, 1);
}

#[tokio::test]
async fn without_its_publications_no_slot_is_made() {
    let server = TestServer::start().await;
    server.sql("create publication p").await;
    let error = refused(&server, &wal_config(&server, &["p", "Absent", "absent2"])).await;
    assert!(error.to_string().contains(r#"database postgres has no publication "Absent", "absent2""#), "{error}");
    assert!(error.advice().contains("CREATE PUBLICATION \"Absent\""), "{}", error.advice());
    let other = WalConfig { pg: server.pg("dbname=other"), ..wal_config(&server, &["p"]) };
    let client = other_database(&server).await;
    let error = prepare(&client, &other).await.expect_err("another database");
    assert!(matches!(error, WalError::PublicationMissing { .. }), "{error:?}");
    assert_eq!(server.text(SLOTS).await, "0");
}

#[tokio::test]
async fn publications_that_contradict_each_other_are_found_before_they_poison_the_slot() {
    let server = TestServer::start().await;
    let sql = "create table t (id int primary key, a int, b int); create publication p for table t (id, a); \
               create publication q for table t (id, b); create publication r for table t (id, a)";
    server.sql(sql).await;
    let error = refused(&server, &wal_config(&server, &["p", "q"])).await;
    assert!(matches!(&error, WalError::ColumnLists { tables } if tables[..] == ["public.t"]), "{error:?}");
    prepare(&server.client().await, &wal_config(&server, &["p", "r"])).await.expect("the same columns are fine");
}

#[tokio::test]
async fn a_server_that_does_not_decode_is_refused() {
    let server = TestServer::start_with(&[("wal_level", "replica")]).await;
    server.sql("create publication p; create role plain login; create role replicator login replication").await;
    let config = wal_config(&server, &["p"]);
    let error = refused(&server, &config).await;
    assert!(matches!(&error, WalError::WalLevel(level) if level == "replica"), "{error:?}");
    assert!(error.advice().contains("ALTER SYSTEM SET wal_level = 'logical'"), "{}", error.advice());
}

#[tokio::test]
async fn a_role_without_the_replication_right_is_refused_and_one_with_it_is_enough() {
    let server = TestServer::start().await;
    server.sql("create publication p; create role \"Plain\" login; create role replicator login replication").await;
    let config = wal_config(&server, &["p"]);
    let client = server.pg("user=Plain").connect().await.expect("connected");
    let error = prepare(&client, &config).await.expect_err("refused");
    assert!(error.advice().contains("ALTER ROLE \"Plain\" REPLICATION"), "{error:?}");
    let client = server.pg("user=replicator").connect().await.expect("connected");
    assert!(prepare(&client, &config).await.expect("made").created);
    let streaming = WalConfig { pg: server.pg("user=replicator"), ..config };
    connect(&streaming, Lsn::ZERO).await.expect("connected");
}

#[tokio::test]
async fn slots_that_are_not_ours_are_refused() {
    let server = TestServer::start().await;
    server.sql("create publication p").await;
    let other = other_database(&server).await;
    let client = server.client().await;
    let make = "select pg_create_logical_replication_slot";
    other.batch_execute(&format!("{make}('elsewhere', 'pgoutput')")).await.expect("made");
    client.batch_execute(&format!("{make}('plugin', 'test_decoding')")).await.expect("made");
    client.batch_execute(&format!("{make}('temporary', 'pgoutput', true)")).await.expect("made");
    client.batch_execute(&format!("{make}('two', 'pgoutput', false, true)")).await.expect("made");
    client.batch_execute("select pg_create_physical_replication_slot('physical')").await.expect("made");
    for (slot, wanted) in [
        ("elsewhere", SlotFault::Database("other".into())),
        ("plugin", SlotFault::Plugin("test_decoding".into())),
        ("temporary", SlotFault::Temporary),
        ("two", SlotFault::TwoPhase),
        ("physical", SlotFault::Physical),
    ] {
        let config = WalConfig { slot: slot.into(), ..wal_config(&server, &["p"]) };
        let error = refused(&server, &config).await;
        assert!(matches!(&error, WalError::SlotUnusable { fault, .. } if *fault == wanted), "{error:?}");
    }
}

#[tokio::test]
async fn a_slot_that_waits_for_old_transactions_names_them() {
    let server = TestServer::start().await;
    server.sql("create table t (id int primary key); create publication p for table t").await;
    let config = wal_config(&server, &["p"]);
    let writer = server.client().await;
    let pid: i32 = writer.query_one("select pg_backend_pid()", &[]).await.expect("pid").get(0);
    writer.batch_execute("begin; insert into t values (1)").await.expect("written");
    server.sql("begin; insert into t values (2); prepare transaction 'it''s'").await;
    let client = server.client().await;
    let error = prepare_within(&client, &config, Duration::from_millis(200)).await.expect_err("blocked");
    assert_eq!((error.remedy(), error.label()), (Remedy::Retry, "slot_blocked"));
    let text = error.to_string();
    assert!(
        text.contains(&format!("pid {pid} (idle in transaction, user postgres")) && text.contains("'it's'"),
        "{text}"
    );
    assert_eq!(server.text(SLOTS).await, "0", "the attempt left nothing behind");
    writer.batch_execute("commit").await.expect("committed");
    server.sql("commit prepared 'it''s'").await;
    assert!(prepare(&client, &config).await.expect("made").created);
}

#[tokio::test]
async fn a_publication_dropped_while_streaming_is_explained() {
    let server = TestServer::start().await;
    server.sql("create table t (id int primary key); create publication p for table t").await;
    let config = wal_config(&server, &["p"]);
    let mut s = stream(&server, &config).await;
    server.sql("drop publication p; insert into t values (1)").await;
    if server.major().await >= 18 {
        // Since version 18 the server goes on without it, and takes it up again when it is back.
        server.sql("create publication p for table t").await;
        server.sql("insert into t values (2)").await;
        assert_eq!(shown(&mut s).await, ["I public.t N[2]"]);
        return;
    }
    let error = try_transaction(&mut s).await.expect_err("it is gone");
    assert_eq!((error.sqlstate(), error.remedy(), error.label()), (Some("42704"), Remedy::Operator, "missing_object"));
    let advice = error.advice();
    assert!(
        advice.contains("CREATE PUBLICATION \"p\"") && advice.contains("pg_replication_slot_advance('s1'"),
        "{advice}"
    );
    drop(s);
    // The advice works.
    server.wait_until("select active from pg_replication_slots", |t| t == "false").await;
    server.sql("create publication p for table t").await;
    server.sql("select pg_replication_slot_advance('s1', pg_current_wal_lsn())").await;
    let mut s = stream(&server, &config).await;
    server.sql("insert into t values (2)").await;
    assert_eq!(shown(&mut s).await, ["I public.t N[2]"]);
}

#[tokio::test]
async fn a_slot_that_lost_its_wal_is_told_from_one_that_is_only_behind() {
    let server = TestServer::start_with(&[("max_slot_wal_keep_size", "2MB")]).await;
    server.sql("create table t (id int primary key, b text)").await;
    server.sql("create publication p for table t").await;
    let config = wal_config(&server, &["p"]);
    prepare(&server.client().await, &config).await.expect("prepared");
    for _ in 0..8 {
        server.sql("select pg_logical_emit_message(false, 'filler', repeat('x', 900000))").await;
        server.sql("select pg_switch_wal()").await;
    }
    server.sql("checkpoint").await;
    server.wait_until("select wal_status from pg_replication_slots", |t| t == "lost").await;
    let error = refused(&server, &config).await;
    assert!(matches!(&error, WalError::SlotUnusable { fault: SlotFault::Lost(_), .. }), "{error:?}");
    assert!(error.advice().contains("pg_drop_replication_slot('s1')"), "{}", error.advice());
    let error = connect(&config, Lsn::ZERO).await.err().expect("lost");
    assert_eq!((error.sqlstate(), error.remedy()), (Some("55000"), Remedy::Operator));
    assert!(error.advice().contains("pg_drop_replication_slot('s1')"), "{}", error.advice());
}
