//! Connecting, pinned settings, confirming, and the ends of a session.

use std::path::Path;

use tokio::io::copy_bidirectional;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::*;
use crate::error::{Fault as _, Remedy};

const CONFIRMED: &str = "select confirmed_flush_lsn from pg_replication_slots where slot_name = 's1'";

async fn with_table() -> TestServer {
    let server = TestServer::start().await;
    server.sql("create table t (id int primary key, b text); create publication p for table t").await;
    server
}

fn lsn(text: &str) -> Lsn {
    text.parse().expect("an LSN")
}

#[tokio::test]
async fn hostile_settings_of_the_role_the_database_and_the_url_do_not_change_the_text() {
    let server = TestServer::start().await;
    let settings = "set datestyle = 'German'; X set timezone = 'Asia/Tokyo'; X set intervalstyle = 'iso_8601'; \
                    X set bytea_output = 'escape'; X set extra_float_digits = -3; X set search_path = 'hidden'; \
                    X set quote_all_identifiers = on; X set client_encoding = 'LATIN1'; X set statement_timeout = 50; \
                    X set idle_session_timeout = 50; X set wal_sender_timeout = 100";
    let hostile = |target: &str| format!("{target} {}", settings.replace('X', target));
    let ddl = "create schema hidden; create table hidden.t (id int primary key, at timestamptz, d date, i interval, b bytea, \
               f float8, r regclass, x text); create publication p for table hidden.t";
    server.sql(ddl).await;
    server.sql(&format!("{}; {}", hostile("alter role postgres"), hostile("alter database postgres"))).await;
    let mut config = wal_config(&server, &["p"]);
    let url = "options='-c DateStyle=German -c bytea_output=escape -c TimeZone=Asia/Tokyo -c client_encoding=LATIN1'";
    config.pg = server.pg(url);
    let mut s = stream(&server, &config).await;
    let insert = "insert into hidden.t values (1, '2026-01-02 03:04:05.678+00', '2026-01-02', '1 day 02:03:04', '\\xdeadbeef', \
                  0.1::float8 + 0.2, 'hidden.t', 'größe')";
    server.sql(&format!("set datestyle = 'ISO'; set client_encoding = 'UTF8'; {insert}")).await;
    let wanted = "I hidden.t N[1,2026-01-02 03:04:05.678+00,2026-01-02,1 day 02:03:04,\\xdeadbeef,0.30000000000000004,hidden.t,größe]";
    assert_eq!(shown(&mut s).await, [wanted]);
}

#[tokio::test]
async fn the_session_is_known_by_its_name_and_its_server() {
    let server = with_table().await;
    let s = stream(&server, &wal_config(&server, &["p"])).await;
    assert_eq!(server.text("select application_name from pg_stat_replication").await, "rowcast");
    let identifier = server.text("select system_identifier from pg_control_system()").await;
    assert_eq!(s.system_identifier().to_string(), identifier);
    assert_eq!(s.timeline(), 1);
    let now = lsn(&server.text("select pg_current_wal_flush_lsn()").await);
    assert!(s.flushed_at_connect() > Lsn::ZERO && s.flushed_at_connect() <= now);
}

#[tokio::test]
async fn publications_with_hostile_names_are_found() {
    let server = TestServer::start().await;
    let names = ["UPPER", "a,b", "it's \"quoted\"", " spaced ", "größe", "p; drop table t"];
    let mut sql = String::from("create table t (id int primary key)");
    for name in names {
        sql += &format!("; create publication \"{}\"", name.replace('"', "\"\""));
    }
    server.sql(&sql).await;
    // The last one alone holds the table, so all must have been understood.
    server.sql("alter publication \"p; drop table t\" add table t").await;
    let mut s = stream(&server, &wal_config(&server, &names)).await;
    server.sql("insert into t values (1)").await;
    assert_eq!(shown(&mut s).await, ["I public.t N[1]"]);
}

#[tokio::test]
async fn a_confirmed_transaction_does_not_come_again_and_an_unconfirmed_one_does() {
    let server = with_table().await;
    let config = wal_config(&server, &["p"]);
    let mut s = stream(&server, &config).await;
    server.sql("insert into t values (1)").await;
    server.sql("insert into t values (2)").await;
    let first = transaction(&mut s).await;
    s.confirm(first.end_lsn);
    s.close(PATIENCE).await;
    server.wait_until("select active from pg_replication_slots", |t| t == "false").await;
    assert_eq!(lsn(&server.text(CONFIRMED).await), first.end_lsn, "the end told the server the last position");
    let mut s = connect(&config, Lsn::ZERO).await.expect("connected");
    let second = transaction(&mut s).await;
    assert_eq!(show(&second), ["I public.t N[2,∅]"]);
    drop(s);
    // Our own record may be ahead of the slot's.
    server.wait_until("select active from pg_replication_slots", |t| t == "false").await;
    let mut s = connect(&config, second.end_lsn).await.expect("connected");
    server.sql("insert into t values (3)").await;
    assert_eq!(shown(&mut s).await, ["I public.t N[3,∅]"]);
}

#[tokio::test]
async fn an_idle_slot_moves_with_the_writes_of_another_database() {
    let server = with_table().await;
    let mut s = stream(&server, &wal_config(&server, &["p"])).await;
    let other = other_database(&server).await;
    other
        .batch_execute("create table f (b text); insert into f select repeat('x', 500) from generate_series(1, 9999)")
        .await
        .expect("written");
    let written = lsn(&server.text("select pg_current_wal_flush_lsn()").await);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        assert!(tokio::time::Instant::now() < deadline, "no position passed {written}");
        let Received::Idle(position) = received(&mut s).await.expect("idle") else {
            panic!("nothing of ours was written")
        };
        s.confirm(position);
        if position >= written {
            break;
        }
    }
    server.wait_until(CONFIRMED, |confirmed| lsn(confirmed) >= written).await;
}

#[tokio::test]
async fn nothing_is_confirmed_that_was_not_returned() {
    let server = with_table().await;
    let config = wal_config(&server, &["p"]);
    let mut s = stream(&server, &config).await;
    server.sql("insert into t values (1)").await;
    let first = transaction(&mut s).await;
    s.confirm(Lsn(u64::MAX));
    s.close(PATIENCE).await;
    server.wait_until("select active from pg_replication_slots", |t| t == "false").await;
    assert_eq!(lsn(&server.text(CONFIRMED).await), first.end_lsn);
    server.sql("insert into t values (2)").await;
    let mut s = connect(&config, Lsn::ZERO).await.expect("connected");
    assert_eq!(shown(&mut s).await, ["I public.t N[2,∅]"]);
}

#[tokio::test]
async fn a_start_that_the_server_has_not_written_is_refused_before_it_does_harm() {
    let server = with_table().await;
    let config = wal_config(&server, &["p"]);
    prepare(&server.client().await, &config).await.expect("prepared");
    let before = server.text(CONFIRMED).await;
    let error = connect(&config, Lsn(0xFF_0000_0000)).await.err().expect("refused");
    assert!(matches!(error, WalError::Ahead { .. }), "{error:?}");
    assert_eq!(error.remedy(), Remedy::Operator);
    assert_eq!(server.text(CONFIRMED).await, before);
}

#[tokio::test]
async fn a_second_consumer_is_told_to_wait() {
    let server = with_table().await;
    let config = wal_config(&server, &["p"]);
    let first = stream(&server, &config).await;
    let metrics = Arc::new(Metrics::new());
    let error = Stream::connect(&config, Lsn::ZERO, &metrics).await.err().expect("taken");
    assert_eq!((error.sqlstate(), error.remedy(), error.label()), (Some("55006"), Remedy::Retry, "slot_active"));
    assert!(metrics.render().contains("rowcast_stream_errors_total{kind=\"slot_active\"} 1"), "{}", metrics.render());
    assert!(prepare(&server.client().await, &config).await.expect("it is ours").active_pid.is_some());
    drop(first);
    server.wait_until("select active from pg_replication_slots", |t| t == "false").await;
    connect(&config, Lsn::ZERO).await.expect("free again");
}

#[tokio::test]
async fn passwords_work_by_scram_and_by_md5_and_a_wrong_one_is_the_operators_business() {
    let server = with_table().await;
    let sql = "create role locked login replication password 'right'; set password_encryption = md5; \
               create role old login replication password 'right'";
    server.sql(sql).await;
    let mut config = wal_config(&server, &["p"]);
    prepare(&server.client().await, &config).await.expect("prepared");
    for role in ["locked", "old"] {
        config.pg = server.pg(&format!("user={role} password=right"));
        connect(&config, Lsn::ZERO).await.expect("the right one").close(PATIENCE).await;
        config.pg = server.pg(&format!("user={role} password=wrong"));
        let error = connect(&config, Lsn::ZERO).await.err().expect("the wrong one");
        assert_eq!(
            (error.sqlstate(), error.remedy(), error.label()),
            (Some("28P01"), Remedy::Operator, "authentication")
        );
        assert!(error.advice().contains("password"), "{}", error.advice());
        assert!(!crate::error::chain(&error).contains("wrong"));
        server.wait_until("select active from pg_replication_slots", |t| t == "false").await;
    }
}

#[tokio::test]
async fn what_an_operator_must_repair_is_said_with_its_code() {
    let server = with_table().await;
    server.sql("create role plain login").await;
    let config = wal_config(&server, &["p"]);
    let refused = async |config: &WalConfig| connect(config, Lsn::ZERO).await.err().expect("refused");
    let error = refused(&config).await;
    assert_eq!((error.sqlstate(), error.remedy()), (Some("42704"), Remedy::Operator));
    assert!(error.advice().contains("Slot `s1` was dropped"), "{}", error.advice());
    let error = refused(&WalConfig { pg: server.pg("dbname=absent"), ..config.clone() }).await;
    assert_eq!((error.sqlstate(), error.remedy()), (Some("3D000"), Remedy::Operator));
    let error = refused(&WalConfig { pg: server.pg("user=plain"), ..config.clone() }).await;
    assert_eq!((error.sqlstate(), error.remedy()), (Some("42501"), Remedy::Operator));
    assert!(error.advice().contains("REPLICATION"), "{}", error.advice());
    prepare(&server.client().await, &config).await.expect("prepared");
    drop(other_database(&server).await);
    let error = refused(&WalConfig { pg: server.pg("dbname=other"), ..config.clone() }).await;
    assert_eq!((error.sqlstate(), error.remedy()), (Some("55000"), Remedy::Operator));
}

#[tokio::test]
async fn the_first_usable_host_is_taken() {
    let server = with_table().await;
    let mut config = wal_config(&server, &["p"]);
    prepare(&server.client().await, &config).await.expect("prepared");
    let hosts = format!("host=/nonexistent,{} user=postgres dbname=postgres", server.home().display());
    config.pg = crate::pg::PgConfig::from_url(&hosts).expect("parameters");
    connect(&config, Lsn::ZERO).await.expect("the second host");
}

#[tokio::test]
async fn a_terminated_session_and_a_crashed_server_are_worth_another_attempt() {
    let mut server = with_table().await;
    let config = wal_config(&server, &["p"]);
    let mut s = stream(&server, &config).await;
    server.sql("select pg_terminate_backend(active_pid) from pg_replication_slots").await;
    let error = try_transaction(&mut s).await.expect_err("ended");
    assert_eq!((error.remedy(), error.sqlstate()), (Remedy::Retry, Some("57P01")), "{error:?}");
    // The server lets go of the slot a moment after it has said goodbye.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut s = loop {
        match connect(&config, Lsn::ZERO).await {
            Ok(s) => break s,
            Err(error) => {
                assert_eq!((error.remedy(), error.sqlstate()), (Remedy::Retry, Some("55006")), "{error:?}");
                assert!(tokio::time::Instant::now() < deadline, "the slot is still taken");
            }
        }
    };
    server.crash();
    let error = try_transaction(&mut s).await.expect_err("ended");
    assert_eq!(error.remedy(), Remedy::Retry, "{error:?}");
    let error = connect(&config, Lsn::ZERO).await.err().expect("nobody there");
    assert_eq!((error.remedy(), error.label()), (Remedy::Retry, "connection"), "{error:?}");
}

/// Forwards one socket to another until told to stall: both sides stay open and hear nothing.
async fn proxy(listen: &Path, to: std::path::PathBuf, stall: watch::Receiver<bool>) {
    let listener = UnixListener::bind(listen.join(".s.PGSQL.5432")).expect("bound");
    drop(crate::task::spawn("test-proxy", async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, mut stall) = (to.join(".s.PGSQL.5432"), stall.clone());
            drop(crate::task::spawn("test-proxy-connection", async move {
                let Ok(mut far) = UnixStream::connect(to).await else { return };
                let stalled = tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => false,
                    stalled = stall.wait_for(|s| *s) => stalled.is_ok(),
                };
                if stalled {
                    std::future::pending::<()>().await;
                }
            }));
        }
    }));
}

#[tokio::test]
async fn a_silent_line_is_taken_for_dead_and_an_idle_one_is_not() {
    let server = with_table().await;
    let near = tempfile::tempdir().expect("dir");
    let (stall, stalled) = watch::channel(false);
    proxy(near.path(), server.home().into(), stalled).await;
    let mut config = wal_config(&server, &["p"]);
    prepare(&server.client().await, &config).await.expect("prepared");
    let through = format!("host={} user=postgres dbname=postgres", near.path().display());
    config.pg = crate::pg::PgConfig::from_url(&through).expect("parameters");
    config.silence_timeout = Duration::from_millis(900);
    config.connect_timeout = Duration::from_secs(5);
    let mut s = connect(&config, Lsn::ZERO).await.expect("connected");
    let started = tokio::time::Instant::now();
    while started.elapsed() < config.silence_timeout * 2 {
        let Ok(Received::Idle(position)) = received(&mut s).await else { panic!("the server answers") };
        // The server volunteers positions while some are unconfirmed; a line with nothing left to say is the hard case.
        s.confirm(position);
    }
    stall.send_replace(true);
    let silent = tokio::time::Instant::now();
    let error = try_transaction(&mut s).await.expect_err("dead");
    assert!(matches!(error, WalError::Silence(_)), "{error:?}");
    assert!(silent.elapsed() < config.silence_timeout * 3);
    assert_eq!(error.remedy(), Remedy::Retry);
    // A host that takes the connection and says nothing.
    config.connect_timeout = Duration::from_millis(200);
    let error = connect(&config, Lsn::ZERO).await.err().expect("no answer");
    assert!(matches!(error, WalError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn closing_a_dead_connection_ends_at_the_deadline() {
    let server = with_table().await;
    let near = tempfile::tempdir().expect("dir");
    let (stall, stalled) = watch::channel(false);
    proxy(near.path(), server.home().into(), stalled).await;
    let mut config = wal_config(&server, &["p"]);
    prepare(&server.client().await, &config).await.expect("prepared");
    let through = format!("host={} user=postgres dbname=postgres", near.path().display());
    config.pg = crate::pg::PgConfig::from_url(&through).expect("parameters");
    config.status_interval = Duration::from_secs(3600);
    let mut s = connect(&config, Lsn::ZERO).await.expect("connected");
    server.sql("insert into t values (1)").await;
    let first = transaction(&mut s).await;
    s.confirm(first.end_lsn);
    stall.send_replace(true);
    let started = tokio::time::Instant::now();
    s.close(Duration::from_millis(200)).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}
