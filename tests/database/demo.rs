//! The demonstration of `rowcast dev`, against a stand-in for the relay: that it says so when the relay leaks, loses or repeats
//! a row. Against the real relay it runs in the journey tests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rowcast::clock::Clock;
use rowcast::dev::binaries::Search;
use rowcast::dev::{self, DevEnvironment, DevError, DevOptions};
use rowcast::pg::PgConfig;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

/// How the stand-in behaves.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Honest,
    LeaksAll,
    Repeats,
}

async fn prepared() -> (tempfile::TempDir, DevEnvironment) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let search = Search {
        pg_bin: std::env::var_os("PG_BIN").map(PathBuf::from),
        path: std::env::var_os("PATH"),
        ..Search::default()
    };
    let options =
        DevOptions { state_dir: folder.path().join("state"), search, postgres_port: None, clock: Clock::system() };
    (folder, dev::prepare(options).await.expect("prepared"))
}

/// Serves until the test's runtime ends; returns its base URL.
async fn stand_in(environment: &DevEnvironment, manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (database, secret) = (environment.database_url.clone(), environment.jwt_secret.clone());
    drop(rowcast::task::spawn("stand-in", async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(rowcast::task::spawn("phone", serve(stream, database.clone(), secret.clone(), manner)));
        }
    }));
    url
}

async fn serve(stream: TcpStream, database: String, secret: String, manner: Manner) {
    let mut query = String::new();
    #[expect(clippy::result_large_err, reason = "the library's own signature")]
    let remember = |request: &Request, response: Response| {
        query = request.uri().query().unwrap_or_default().to_owned();
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, remember).await.expect("a handshake");
    let token = query.split('&').find_map(|pair| pair.strip_prefix("apikey=")).expect("a key");
    let key = jsonwebtoken::DecodingKey::from_secret(secret.as_bytes());
    let rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
    let claims = jsonwebtoken::decode::<Value>(token, &key, &rules).expect("a good token").claims;
    let user = claims["sub"].as_str().expect("a subject").to_owned();

    let join = socket.next().await.expect("a frame").expect("a frame").into_text().expect("text");
    let join: Value = serde_json::from_str(&join).expect("JSON");
    assert_eq!((&join[3], &join[2]), (&json!("phx_join"), &json!("realtime:session_events")));
    let client = PgConfig::from_url(&database).expect("a URL").connect().await.expect("a connection");
    let sql = "select count(*) from public.session_events";
    let mut sent: i64 = client.query_one(sql, &[]).await.expect("a row").get(0);
    let reply = json!({ "status": "ok", "response": join[4]["config"] });
    let active = json!({ "extension": "postgres_changes", "status": "ok", "message": "Subscribed to PostgreSQL" });
    for (event, payload) in [("phx_reply", reply), ("system", active)] {
        let frame = json!(["1", "1", join[2], event, payload]).to_string();
        socket.send(Message::text(frame)).await.expect("sent");
    }
    loop {
        let sql = "select s.user_id::text, to_jsonb(e)::text from public.session_events e \
                   join public.coding_sessions s on s.id = e.session_id order by e.created_at offset $1";
        let Ok(rows) = client.query(sql, &[&sent]).await else { return };
        for row in rows {
            sent += 1;
            if row.get::<_, &str>(0) != user && manner != Manner::LeaksAll {
                continue;
            }
            let record: Value = serde_json::from_str(row.get(1)).expect("JSON");
            let frame = json!([null, null, join[2], "postgres_changes", { "ids": [1], "data": { "record": record } }]);
            let times = if manner == Manner::Repeats { 2 } else { 1 };
            for _ in 0..times {
                if socket.send(Message::text(frame.to_string())).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn the_demonstration_shows_each_user_his_own_and_can_be_repeated() {
    let (_folder, environment) = prepared().await;
    let url = stand_in(&environment, Manner::Honest).await;
    for _ in 0..2 {
        let outcome = dev::demo(&environment, &url).await.expect("all promises kept");
        assert_eq!((outcome.alice_received, outcome.bob_received, outcome.delays.len()), (4, 1, 5));
    }
    environment.insert_event(&environment.alice, "typed by hand").await.expect("inserted");
    environment.stop().await;
}

#[tokio::test]
async fn the_demonstration_fails_when_the_relay_leaks_or_repeats() {
    let (_folder, environment) = prepared().await;
    for (manner, says) in [(Manner::LeaksAll, "somebody else"), (Manner::Repeats, "another event")] {
        let url = stand_in(&environment, manner).await;
        match dev::demo(&environment, &url).await {
            Err(DevError::Broken(what)) => assert!(what.contains(says), "{what}"),
            other => panic!("{:?}", other.map_err(|error| error.to_string())),
        }
    }
}

#[tokio::test]
async fn preparing_again_keeps_users_secret_and_events() {
    let (folder, environment) = prepared().await;
    let (url, secret) = (environment.database_url.clone(), environment.jwt_secret.clone());
    environment.insert_event(&environment.alice, "kept").await.expect("inserted");
    environment.stop().await;
    let search = Search { path: std::env::var_os("PATH"), ..Search::default() };
    let search = Search { pg_bin: std::env::var_os("PG_BIN").map(PathBuf::from), ..search };
    let options =
        DevOptions { state_dir: folder.path().join("state"), search, postgres_port: None, clock: Clock::system() };
    let environment = dev::prepare(options).await.expect("prepared again");
    assert_eq!((&environment.database_url, &environment.jwt_secret), (&url, &secret));
    let client = PgConfig::from_url(&url).expect("a URL").connect().await.expect("a connection");
    let row = client.query_one("select count(*) from session_events", &[]).await.expect("a row");
    assert_eq!(row.get::<_, i64>(0), 1);
}
