//! The relay in this process, as other tests use it.

use std::net::SocketAddr;
use std::time::Duration;

use rowcast::app::{App, AppError, Running};
use rowcast::config::Config;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::process::SECRET;
use crate::support::TestPg;

const PATIENCE: Duration = Duration::from_secs(30);

/// Status and everything else of an answer.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let asking = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        (answer[9..12].parse().expect("a status"), answer)
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("an answer in time")
}

async fn start(config: &Config) -> Running {
    let mut running = App::build(config.clone()).await.expect("it is built").spawn();
    running.ready(PATIENCE).await.expect("it streams");
    running
}

fn config(pg: &TestPg, data: &tempfile::TempDir) -> Config {
    let mut config = Config::new(&pg.url(), SECRET, data.path()).expect("a good configuration");
    config.admin = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_answers_for_its_health_and_shows_its_state() {
    let pg = TestPg::start().await;
    let data = tempfile::tempdir().expect("a folder");
    let running = start(&config(&pg, &data)).await;
    let admin = running.admin_addr.expect("an admin address");
    for address in [running.local_addr, admin] {
        assert_eq!(get(address, "/healthz").await.0, 200);
        assert_eq!(get(address, "/readyz").await.0, 200);
    }
    let (status, metrics) = get(admin, "/metrics").await;
    assert_eq!(status, 200);
    for text in
        ["application/openmetrics-text", "rowcast_streaming 1", "rowcast_epochs_total{reason=\"new_slot\"} 1", "# EOF"]
    {
        assert!(metrics.contains(text), "{text} in {metrics}");
    }
    let (_, state) = get(admin, "/state").await;
    let body = state.split_once("\r\n\r\n").expect("a body").1;
    let state: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(state["ingest"]["state"], "streaming");
    assert_eq!(state["slot"], "rowcast");
    assert_eq!(state["log"]["epoch"]["incarnation"].as_str().map(str::len), Some(32));
    assert_eq!(get(running.local_addr, "/metrics").await.0, 404, "metrics are not for clients");
    assert!(running.drain().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_leaves_ports_and_folder_free_and_the_next_goes_on_from_its_log() {
    let pg = TestPg::start().await;
    let data = tempfile::tempdir().expect("a folder");
    let mut config = config(&pg, &data);
    let first = start(&config).await;
    config.port = first.local_addr.port();
    let epoch = first.log().epoch();
    first.kill().await;
    // The server notices a closed connection in its own time; until then the slot is taken, and waited for.
    let second = start(&config).await;
    assert_eq!(second.log().epoch(), epoch);
    assert!(second.drain().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_cannot_share_a_folder() {
    let pg = TestPg::start().await;
    let data = tempfile::tempdir().expect("a folder");
    let config = config(&pg, &data);
    let running = start(&config).await;
    let error = App::build(config).await.err().expect("refused");
    assert!(matches!(error, AppError::Log(_)), "{error}");
    assert!(error.to_string().contains("in use by process"), "{error}");
    assert!(running.drain().await.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_database_is_survived() {
    let mut pg = TestPg::start().await;
    let data = tempfile::tempdir().expect("a folder");
    let running = start(&config(&pg, &data)).await;
    let connects = running.metrics().stream_connects.get();
    let epoch = running.log().epoch();
    pg.restart().await;
    pg.exec("select pg_logical_emit_message(true, 'test', 'after')").await;
    let sql = "select pg_current_wal_flush_lsn()::text";
    let written: String = pg.client().await.query_one(sql, &[]).await.expect("a position").get(0);
    let written: rowcast::change::Lsn = written.parse().expect("a position");
    let mut reader = running.log().reader(running.log().end());
    let caught_up = async {
        while reader.position() < written {
            reader.next().await.expect("read");
        }
    };
    tokio::time::timeout(PATIENCE, caught_up).await.expect("it streams again");
    assert!(running.metrics().stream_connects.get() > connects);
    assert_eq!(running.log().epoch(), epoch, "the history goes on");
    assert!(running.drain().await.is_clean());
}
