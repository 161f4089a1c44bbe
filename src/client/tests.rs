//! Against a server that says what a test tells it to, and that is not always a relay.

use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::{WebSocketStream, accept_async};

use super::*;
use crate::task;

const LIMIT: Duration = Duration::from_secs(20);
const TOPIC: &str = "realtime:room";

type Socket = WebSocketStream<TcpStream>;

async fn listener() -> (TcpListener, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}", listener.local_addr().expect("an address"));
    let address = Address::parse(&url, None).expect("an address");
    let wanted = Wanted::table("public", "notes");
    (listener, Asked { address, key: "hunter2".into(), token: None, channel: "room".into(), wanted, since: None })
}

async fn accepted(listener: &TcpListener) -> Socket {
    accept_async(listener.accept().await.expect("a connection").0).await.expect("a handshake")
}

async fn received(socket: &mut Socket) -> Value {
    let frame = socket.next().await.expect("a frame").expect("a frame");
    serde_json::from_str(&frame.into_text().expect("text")).expect("JSON")
}

async fn say(socket: &mut Socket, event: &str, payload: Value) {
    let frame = json!(["1", null, TOPIC, event, payload]).to_string();
    socket.send(Frame::text(frame)).await.expect("sent");
}

fn system(status: &str, message: &str) -> Value {
    json!({ "extension": "postgres_changes", "status": status, "message": message, "channel": "room" })
}

fn change(id: u32) -> Value {
    json!({ "ids": [1], "data": { "id": id } })
}

async fn welcome(socket: &mut Socket) {
    let join = received(socket).await;
    assert_eq!((&join[2], &join[3]), (&json!(TOPIC), &json!("phx_join")));
    assert_eq!(join[4]["config"]["postgres_changes_options"]["wait"], true);
    say(socket, "phx_reply", json!({ "status": "ok", "response": { "postgres_changes": [] } })).await;
    say(socket, "system", system("ok", "Subscribed to PostgreSQL")).await;
}

/// What becomes of an attempt with a server that does this.
async fn attempt<F: Future<Output = ()> + Send + 'static>(
    serve: impl FnOnce(TcpListener) -> F,
) -> Result<Connection, ClientError> {
    let (listener, asked) = listener().await;
    let server = task::spawn("server", serve(listener));
    let opened = Connection::open(&asked, LIMIT).await;
    server.await.expect("the server did what it was told");
    opened
}

/// The error, which names neither the key nor a row.
async fn failure<F: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(TcpListener) -> F) -> ClientError {
    let Err(error) = attempt(serve).await else { panic!("it was subscribed") };
    let text = crate::error::chain(&error);
    assert!(!text.contains("hunter2"), "{text}");
    error
}

async fn id(connection: &mut Connection) -> Value {
    match connection.next().await.expect("something comes") {
        Message::Change(change) => serde_json::from_str::<Value>(change.data.get()).expect("JSON")["id"].clone(),
        Message::Notice(notice) => panic!("{notice:?}"),
    }
}

#[tokio::test]
async fn changes_that_come_before_the_word_of_an_older_server_are_kept() {
    let opened = attempt(|listener| async move {
        let mut socket = accepted(&listener).await;
        received(&mut socket).await;
        say(&mut socket, "phx_reply", json!({ "status": "ok", "response": {} })).await;
        say(&mut socket, "postgres_changes", change(1)).await;
        say(&mut socket, "system", system("ok", "Subscribed to PostgreSQL")).await;
        say(&mut socket, "postgres_changes", change(2)).await;
    });
    let mut connection = opened.await.expect("subscribed");
    assert_eq!(id(&mut connection).await, 1);
    assert_eq!(id(&mut connection).await, 2);
    let ended = connection.next().await.expect_err("the server is gone");
    assert_eq!(ended.remedy(), Remedy::Retry);
}

#[tokio::test]
async fn a_refusal_after_a_good_reply_is_one_too() {
    let error = failure(|listener| async move {
        let mut socket = accepted(&listener).await;
        received(&mut socket).await;
        say(&mut socket, "phx_reply", json!({ "status": "ok", "response": {} })).await;
        say(&mut socket, "system", system("error", "Please check Realtime is enabled")).await;
        let _ = socket.next().await;
    });
    assert!(matches!(error.await, ClientError::Refused { .. }));
}

#[tokio::test]
async fn the_reasons_of_a_join_are_told_apart() {
    for (reason, expected) in [
        ("InvalidJWTToken: Token has expired 5 seconds ago", Remedy::Operator),
        ("RealtimeDisabledForConfiguration: no", Remedy::Operator),
        ("Something new", Remedy::Operator),
        ("RealtimeRestarting: Realtime is restarting, please standby", Remedy::Retry),
        ("PostgresChangesSubscribeTimeout: later", Remedy::Retry),
    ] {
        let error = failure(|listener| async move {
            let mut socket = accepted(&listener).await;
            received(&mut socket).await;
            say(&mut socket, "phx_reply", json!({ "status": "error", "response": { "reason": reason } })).await;
            let _ = socket.next().await;
        });
        assert_eq!(error.await.remedy(), expected, "{reason}");
    }
}

#[tokio::test]
async fn what_answers_and_is_no_relay_is_told_from_a_relay_that_is_not_ready() {
    let http = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    };
    let cases = [
        (http("401 Unauthorized", r#"{"error":"Token has expired"}"#), Remedy::Operator, "Token has expired"),
        (http("404 Not Found", "<html>"), Remedy::Operator, "404"),
        (http("302 Found", ""), Remedy::Operator, "302"),
        (
            http("429 Too Many Requests", r#"{"error":"Too many connected users"}"#),
            Remedy::Retry,
            "Too many connected users",
        ),
        (http("503 Service Unavailable", ""), Remedy::Retry, "503"),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), Remedy::Operator, "no relay"),
        (String::new(), Remedy::Retry, "ended during the handshake"),
    ];
    for (answer, remedy, phrase) in cases {
        let error = failure(|listener| async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.expect("a request");
            stream.write_all(answer.as_bytes()).await.expect("written");
        })
        .await;
        let text = crate::error::chain(&error);
        assert!(error.remedy() == remedy && text.contains(phrase), "{phrase}: {text}");
    }
}

#[tokio::test]
async fn what_no_relay_sends_ends_the_connection_without_being_repeated() {
    for text in
        ["hunter2", "{\"row\":\"hunter2\"}", r#"[null,null,"realtime:room","postgres_changes",{"row":"hunter2"}]"#]
    {
        let error = failure(|listener| async move {
            let mut socket = accepted(&listener).await;
            received(&mut socket).await;
            socket.send(Frame::text(text)).await.expect("sent");
            let _ = socket.next().await;
        });
        assert_eq!(error.await.to_string(), "the server sent what no relay sends");
    }
}

#[tokio::test]
async fn heartbeats_are_sent_in_silence_and_in_a_flood_and_silence_ends_it() {
    let (listener, asked) = listener().await;
    let server = task::spawn("server", async move {
        let mut socket = accepted(&listener).await;
        welcome(&mut socket).await;
        for _ in 0..2 {
            let beat = received(&mut socket).await;
            assert_eq!((&beat[2], &beat[3]), (&json!("phoenix"), &json!("heartbeat")));
            say(&mut socket, "postgres_changes", change(1)).await;
        }
        // So much that there is always something to read.
        let (mut outgoing, mut incoming) = socket.split();
        let flood = async {
            loop {
                let frame = json!([null, null, TOPIC, "postgres_changes", change(2)]).to_string();
                outgoing.send(Frame::text(frame)).await.expect("sent");
            }
        };
        tokio::select! {
            () = flood => {}
            beat = incoming.next() => assert!(beat.expect("a frame").expect("a frame").is_text()),
        }
        // From here on nothing is said, but the connection stays.
        while incoming.next().await.is_some_and(|frame| frame.is_ok()) {}
    });
    let mut connection = Connection::open(&asked, LIMIT).await.expect("subscribed");
    connection.heartbeat = Duration::from_secs(1);
    let following = async {
        loop {
            if let Err(error) = connection.next().await {
                break error;
            }
        }
    };
    let error = tokio::time::timeout(LIMIT, following).await.expect("silence is noticed");
    assert_eq!(error.to_string(), "nothing heard for 2s");
    drop(connection);
    server.await.expect("the server saw its heartbeats");
}

#[tokio::test]
async fn a_lost_connection_is_followed_by_another_until_a_person_must_act() {
    let (listener, asked) = listener().await;
    let server = task::spawn("server", async move {
        // Nobody is there yet.
        drop(listener.accept().await.expect("a connection"));
        for id in 1..=2 {
            let mut socket = accepted(&listener).await;
            welcome(&mut socket).await;
            say(&mut socket, "system", system("ok", "a note")).await;
            say(&mut socket, "postgres_changes", change(id)).await;
            say(&mut socket, "system", json!({ "extension": "system", "status": "error", "message": "Too many" }))
                .await;
            say(&mut socket, "phx_close", json!({})).await;
            let _ = socket.next().await;
        }
        let mut socket = accepted(&listener).await;
        welcome(&mut socket).await;
        say(&mut socket, "system", system("error", "Subscription ended: the filter")).await;
        let _ = socket.next().await;
    });
    let mut follow = Follow::new(asked);
    let mut story = Vec::new();
    let error = loop {
        match tokio::time::timeout(LIMIT, follow.next()).await.expect("in time") {
            Ok(News::Lost { why, pause }) => {
                assert!(pause <= crate::wal::Backoff::CAP);
                story.push(format!("lost: {why}"));
            }
            Ok(News::Subscribed { again, resumed: false }) => story.push(format!("subscribed {again}")),
            Ok(other @ News::Subscribed { .. }) => panic!("{other:?} from a server without cursors"),
            Ok(News::Change(change)) => story.push(change.data.get().to_owned()),
            Ok(News::Notice(notice)) => story.push(notice.text),
            Err(error) => break error,
        }
    };
    let closed = "lost: the relay closed the channel: Too many";
    let first = story.remove(0);
    assert!(first.starts_with("lost: the connection"), "{first}");
    let expected = [
        "subscribed false",
        "a note",
        "{\"id\":1}",
        closed,
        "subscribed true",
        "a note",
        "{\"id\":2}",
        closed,
        "subscribed true",
    ];
    assert_eq!(story, expected);
    assert!(follow.was_subscribed() && error.to_string().ends_with("Subscription ended: the filter"), "{error}");
    drop(follow);
    server.await.expect("the server did what it was told");
}

#[tokio::test]
async fn each_connection_goes_on_where_the_one_before_it_ended() {
    let (listener, asked) = listener().await;
    let server = task::spawn("server", async move {
        let mut since = Vec::new();
        let reply = |cursor: &str| json!({ "status": "ok", "response": { "postgres_changes": [], "cursor": cursor } });
        let placed = |mut payload: Value, cursor: &str| {
            payload["cursor"] = cursor.into();
            payload
        };
        for round in 0..6 {
            let mut socket = accepted(&listener).await;
            let join = received(&mut socket).await;
            since.push(join[4]["config"]["postgres_changes"][0]["since"].clone());
            say(&mut socket, "phx_reply", reply("reply")).await;
            let subscribed = system("ok", "Subscribed to PostgreSQL");
            match round {
                0 => say(&mut socket, "system", subscribed).await,
                1 => say(&mut socket, "system", placed(subscribed, "subscribed")).await,
                2 => {
                    say(&mut socket, "system", subscribed).await;
                    say(&mut socket, "postgres_changes", json!({ "ids": [1], "data": { "cursor": "change" } })).await;
                }
                3 => {
                    say(&mut socket, "system", subscribed).await;
                    say(&mut socket, "system", placed(system("ok", "Cursor"), "quiet")).await;
                }
                _ => {
                    // Ahead of the word that it is subscribed: no refusal.
                    let mut gap = system("error", "Gap: reload");
                    gap["gap"] = json!({ "from": null, "to": "gap", "reason": "expired" });
                    say(&mut socket, "system", gap).await;
                    say(&mut socket, "system", subscribed).await;
                }
            }
            drop(socket);
        }
        since
    });
    let mut follow = Follow::new(asked);
    let mut lost = 0;
    while lost < 6 {
        if let News::Lost { .. } = tokio::time::timeout(LIMIT, follow.next()).await.expect("in time").expect("no end") {
            lost += 1;
        }
    }
    assert_eq!(follow.cursor(), Some("gap"));
    let since = server.await.expect("the server did what it was told");
    assert_eq!(
        since,
        [json!(null), json!("reply"), json!("subscribed"), json!("change"), json!("quiet"), json!("gap")]
    );
}

#[test]
fn what_is_not_given_is_left_out_of_the_entry() {
    let entry = Wanted::table("public", "t").entry(None);
    assert_eq!(entry, json!({ "event": "*", "schema": "public", "table": "t", "since": null }));
    let all = Wanted { table: None, select: vec!["a".into()], ..Wanted::table("s", "") };
    assert_eq!(all.entry(Some("c")), json!({ "event": "*", "schema": "s", "select": ["a"], "since": "c" }));
    assert_eq!(all.entry(Some("15"))["since"], 15);
    assert_eq!(all.to_string(), "s.*");
}

#[test]
fn a_refusal_names_the_statement_that_mends_it() {
    let refused = |wanted: &str, text: &str| ClientError::Refused { wanted: wanted.into(), text: text.into() }.advice();
    let unpublished = "Please check Realtime is enabled for the given connect parameters";
    assert!(refused("public.notes", unpublished).ends_with("ADD TABLE public.notes;"));
    assert!(refused("public.My notes", unpublished).ends_with("ADD TABLE public.\"My notes\";"));
    assert!(!refused("public.*", unpublished).contains("public.*"));
    assert!(refused("public.notes", "invalid column for filter nope").contains("GRANT SELECT"));
    assert_eq!(refused("public.notes", "something new"), "");
}
