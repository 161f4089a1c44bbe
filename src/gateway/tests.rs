//! The gateway over real TCP, with a hub that only answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, Utf8Bytes};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Deps, Gateway, GatewayConfig, frame};
use crate::claims::tests::{token, verifier};
use crate::clock::Clock;
use crate::error::{Fault as _, chain};
use crate::hub::{ChannelId, Command, HubHandle, Port, SubscribeError};
use crate::metrics::Metrics;
use crate::task::{self, Connections, Drain};

const PATIENCE: Duration = Duration::from_secs(10);

/// What the hub was asked, and the answers it holds back.
#[derive(Default)]
struct Asked {
    ports: Mutex<HashMap<ChannelId, Arc<Port>>>,
    held: Mutex<Vec<oneshot::Sender<Result<(), SubscribeError>>>>,
    hold: AtomicBool,
    reclaims: Mutex<Vec<ChannelId>>,
}

impl Asked {
    fn take(&self, command: Command) {
        match command {
            Command::Subscribe { port, reply, .. } => {
                self.ports.lock().unwrap().insert(port.id, port);
                if self.hold.load(Ordering::SeqCst) {
                    self.held.lock().unwrap().push(reply);
                } else {
                    let _ = reply.send(Ok(()));
                }
            }
            Command::Reclaim { id, reply, .. } => {
                self.reclaims.lock().unwrap().push(id);
                let _ = reply.send(Ok(()));
            }
            Command::Leave { id } => {
                self.ports.lock().unwrap().remove(&id);
            }
        }
    }

    fn count(&self) -> usize {
        self.ports.lock().unwrap().len()
    }
}

struct Relay {
    addr: SocketAddr,
    clock: Clock,
    drain: Drain,
    metrics: Arc<Metrics>,
    connections: Connections,
    ready: watch::Sender<bool>,
    asked: Arc<Asked>,
}

fn quick() -> GatewayConfig {
    GatewayConfig { tick: Duration::from_millis(10), close_timeout: Duration::from_secs(2), ..GatewayConfig::default() }
}

async fn relay(config: GatewayConfig) -> Relay {
    let (commands, mut queue) = mpsc::channel(8);
    let (ready, ready_seen) = watch::channel(false);
    let (clock, drain, connections) = (Clock::system(), Drain::new(), Connections::default());
    let metrics = Arc::new(Metrics::new());
    let deps = Deps {
        hub: HubHandle::new(commands),
        verifier: Arc::new(verifier()),
        clock: clock.clone(),
        metrics: metrics.clone(),
        drain: drain.clone(),
        connections: connections.clone(),
        ready: ready_seen,
        shards: 2,
    };
    let asked = Arc::new(Asked::default());
    let hub = asked.clone();
    drop(task::spawn("hub", async move {
        while let Some(command) = queue.recv().await {
            hub.take(command);
        }
    }));
    let bound = Gateway::new(config, deps).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = bound.local_addr();
    drop(task::spawn("gateway", bound.serve()));
    Relay { addr, clock, drain, metrics, connections, ready, asked }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in time: {what}");
}

type Phone = WebSocketStream<TcpStream>;

impl Relay {
    fn token(&self, lifetime: i64) -> String {
        token(json!({"role": "anon", "exp": self.clock.unix_seconds() + lifetime}))
    }

    async fn phone(&self) -> Phone {
        let url = format!("ws://{}/realtime/v1/websocket?vsn=2.0.0&apikey={}", self.addr, self.token(3600));
        let stream = TcpStream::connect(self.addr).await.unwrap();
        client_async(url.into_client_request().unwrap(), stream).await.unwrap().0
    }

    /// Status, head and body of a hand-written request. The head's lines but the first end in `\r\n`.
    async fn http(&self, line: &str, headers: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: relay\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        response(&mut stream).await
    }

    /// An upgrade request.
    async fn upgrade(&self, path: &str, headers: &str) -> (u16, String, String) {
        self.http(&format!("GET {path}"), &format!("{UPGRADE}{headers}")).await
    }
}

const UPGRADE: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn response(stream: &mut TcpStream) -> (u16, String, String) {
    let mut bytes = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
                if body.len() >= length.parse::<usize>().unwrap() {
                    return (head[9..12].parse().unwrap(), head, body.to_owned());
                }
            }
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{text}");
        }
    };
    timeout(PATIENCE, read).await.unwrap()
}

async fn next(phone: &mut Phone) -> Message {
    timeout(PATIENCE, phone.next()).await.unwrap().unwrap().unwrap()
}

async fn next_json(phone: &mut Phone) -> Value {
    match next(phone).await {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn send(phone: &mut Phone, message: Value) {
    phone.send(Message::text(message.to_string())).await.unwrap();
}

/// Reads on until the connection is closed; the close code, if one came.
async fn close_code(phone: &mut Phone) -> Option<u16> {
    let mut code = None;
    let read = async {
        while let Some(message) = phone.next().await {
            match message {
                Ok(Message::Close(frame)) => code = frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(Error::ConnectionClosed) => break,
                Err(error) => panic!("after {code:?}: {error}"),
            }
        }
    };
    timeout(PATIENCE, read).await.unwrap();
    code
}

fn todos() -> Value {
    json!({"config": {"postgres_changes": [{"event": "*", "schema": "public", "table": "todos"}]}})
}

#[tokio::test]
async fn every_path_and_version_is_upgraded() {
    let relay = relay(quick()).await;
    let key = relay.token(60);
    for path in ["/realtime/v1/websocket", "/socket/websocket", "/websocket", "/realtime/v1/websocket/"] {
        for query in ["", "&vsn=1.0.0", "&vsn=2.0.1", "&eventsPerSecond=10&log_level=warn&vsn=2.0.0"] {
            let (status, head, _) = relay.upgrade(&format!("{path}?apikey={key}{query}"), "origin: https://evil.example\r\nsec-websocket-protocol: phoenix\r\nsec-websocket-extensions: permessage-deflate\r\n").await;
            assert_eq!(status, 101, "{path} {query}");
            assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
            assert!(!head.contains("sec-websocket-protocol") && !head.contains("extensions"), "{head}");
        }
    }
}

#[tokio::test]
async fn refused_handshakes_have_the_statuses_and_texts_that_clients_know() {
    let relay = relay(quick()).await;
    let now = relay.clock.unix_seconds();
    let good = relay.token(60);
    let wrong = format!("{}AAAAAA", &good[..good.len() - 6]);
    let claims = |claims: Value| token(claims);
    let (decimal, text) =
        (claims(json!({"role": "x", "exp": now as f64 + 60.5})), claims(json!({"role": "x", "exp": "9"})));
    let required = "Fields `role` and `exp` are required in JWT";
    let cases = [
        ("vsn=2.0.0".to_owned(), String::new(), 401, "API key is missing"),
        ("apikey=not-a-jwt".into(), String::new(), 401, "The token provided is not a valid JWT"),
        ("apikey=sb_publishable_other".into(), String::new(), 401, "The token provided is not a valid JWT"),
        (format!("apikey={wrong}"), String::new(), 401, "Failed to validate JWT signature"),
        (format!("apikey={}", relay.token(-1)), String::new(), 401, "Token has expired"),
        (format!("apikey={}", claims(json!({"exp": now + 60}))), String::new(), 401, required),
        (format!("apikey={}", claims(json!({"role": "x"}))), String::new(), 401, required),
        (format!("apikey={good}"), format!("x-api-key: {wrong}\r\n"), 401, "Failed to validate JWT signature"),
        (format!("apikey={text}"), String::new(), 500, "Error connecting to Realtime"),
    ];
    for (query, headers, status, error) in cases {
        let (found, head, body) = relay.upgrade(&format!("/socket/websocket?{query}"), &headers).await;
        assert_eq!(
            (found, serde_json::from_str::<Value>(&body).unwrap()),
            (status, json!({ "error": error })),
            "{query}"
        );
        assert!(head.contains("content-type: application/json; charset=utf-8"), "{head}");
    }
    for query in ["vsn=3.0.0", "vsn=abc", "vsn="] {
        let (status, _, body) = relay.upgrade(&format!("/websocket?{query}&apikey={good}"), "").await;
        assert_eq!((status, body.as_str()), (403, ""), "{query}");
    }
    for query in [
        format!("apikey={decimal}"),
        "apikey=sb_publishable_abc".into(),
        format!("apikey={}", good.replace('.', "%252E")),
    ] {
        assert_eq!(relay.upgrade(&format!("/websocket?{query}"), "").await.0, 101, "{query}");
    }
    let header = relay.upgrade("/websocket?apikey=bad", &format!("x-api-key: {good}\r\n")).await;
    assert_eq!(header.0, 101);
    assert_eq!(relay.http("GET /websocket", "").await.0, 400);
    assert_eq!(relay.http("POST /websocket", "content-length: 0\r\n").await.0, 400);
    assert_eq!(relay.metrics.refusals.get_or_create(&[("code", "MalformedJWT")]).get(), 2);
}

#[tokio::test]
async fn the_pages_tell_the_state() {
    let relay = relay(quick()).await;
    let get = async |path: &str| {
        let (status, _, body) = relay.http(&format!("GET {path}"), "").await;
        (status, body)
    };
    assert_eq!(get("/healthz").await.0, 200);
    assert_eq!(get("/healthcheck").await, (200, "ok".into()));
    assert_eq!(get("/api/ping").await, (200, r#"{"message":"Success"}"#.into()));
    assert_eq!(get("/realtime/v1/api/ping/").await.0, 200);
    assert_eq!(get("/readyz").await, (503, "not streaming changes yet\n".into()));
    relay.ready.send_replace(true);
    assert_eq!(get("/readyz").await, (200, "streaming\n".into()));
    for path in ["/", "/nothing", "/realtime/v1", "/websocket/x"] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let relay = relay(GatewayConfig { max_connections: 1, ..quick() }).await;
    let phone = relay.phone().await;
    let path = format!("/websocket?apikey={}", relay.token(60));
    let (status, _, body) = relay.upgrade(&path, "").await;
    assert_eq!((status, body.as_str()), (429, r#"{"error":"Too many connected users"}"#));
    assert_eq!(relay.metrics.connections.get(), 1);
    drop(phone);
    until("the place is free", || relay.metrics.connections.get() == 0).await;
    assert_eq!(relay.upgrade(&path, "").await.0, 101);
}

#[tokio::test]
async fn a_failed_handshake_may_be_delayed() {
    let relay = relay(GatewayConfig { handshake_failure_delay: Duration::from_millis(50), ..quick() }).await;
    let start = std::time::Instant::now();
    assert_eq!(relay.upgrade("/websocket", "").await.0, 401);
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[tokio::test]
async fn who_says_nothing_makes_room_for_others() {
    let config = GatewayConfig { header_timeout: Duration::from_millis(50), max_unauthenticated: 1, ..quick() };
    let relay = relay(config).await;
    let mut silent = TcpStream::connect(relay.addr).await.unwrap();
    silent.write_all(b"GET /healthz HTTP/1.1\r\nx: ").await.unwrap();
    assert_eq!(relay.http("GET /healthz", "").await.0, 200);
    let mut rest = Vec::new();
    assert!(timeout(PATIENCE, silent.read_to_end(&mut rest)).await.is_ok());
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let relay = relay(quick()).await;
    let long = format!("x: {}\r\n", "y".repeat(20_000));
    assert_eq!(relay.http("GET /healthz", &long).await.0, 431);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_what_to_do() {
    let relay = relay(quick()).await;
    let (commands, _) = mpsc::channel(1);
    let deps = Deps {
        hub: HubHandle::new(commands),
        verifier: Arc::new(verifier()),
        clock: Clock::system(),
        metrics: Arc::default(),
        drain: Drain::new(),
        connections: Connections::default(),
        ready: watch::channel(false).1,
        shards: 1,
    };
    let Err(error) = Gateway::new(quick(), deps).bind(relay.addr).await else { panic!("bound twice") };
    assert!(chain(&error).starts_with(&format!("cannot listen on {}: ", relay.addr)), "{}", chain(&error));
    assert!(error.advice().contains("choose another port with PORT"), "{}", error.advice());
}

#[tokio::test]
async fn frames_sent_right_behind_the_handshake_are_read() {
    let relay = relay(quick()).await;
    let mut stream = TcpStream::connect(relay.addr).await.unwrap();
    let mut bytes =
        format!("GET /websocket?apikey={} HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n", relay.token(60)).into_bytes();
    let heartbeat = r#"{"topic":"phoenix","event":"heartbeat","ref":"1"}"#;
    bytes.extend([0x81, 0x80 | u8::try_from(heartbeat.len()).unwrap(), 0, 0, 0, 0]);
    bytes.extend(heartbeat.as_bytes());
    stream.write_all(&bytes).await.unwrap();
    let mut read = Vec::new();
    let expected = r#"{"topic":"phoenix","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":"1"}"#;
    let found = timeout(PATIENCE, async {
        while !read.ends_with(expected.as_bytes()) {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        }
    });
    assert!(found.await.is_ok(), "{}", String::from_utf8_lossy(&read));
}

#[tokio::test]
async fn a_ping_is_answered_and_a_close_echoed() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    phone.send(Message::Ping(Bytes::from_static(b"are you there"))).await.unwrap();
    assert_eq!(next(&mut phone).await, Message::Pong(Bytes::from_static(b"are you there")));
    phone.close(None).await.unwrap();
    assert_eq!(close_code(&mut phone).await, None);
    until("the connection is forgotten", || relay.connections.is_empty()).await;
    assert_eq!(relay.metrics.connections.get(), 0);
}

#[tokio::test]
async fn malformed_frames_are_dropped_and_the_socket_lives() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    for text in ["", "{", "{}", "[1,2,3,4]"] {
        phone.send(Message::text(text)).await.unwrap();
    }
    for bytes in [&b""[..], b"\x07", b"\x03\x01", b"\x00\x00\x00\x00\x00"] {
        phone.send(Message::binary(bytes)).await.unwrap();
    }
    // And a message in pieces is one message.
    let (one, two) = (r#"[null,"1","phoenix","#, r#""heartbeat",{}]"#);
    for (piece, kind, last) in [(one, Data::Text, false), (two, Data::Continue, true)] {
        let frame = Frame::message(Utf8Bytes::from(piece), OpCode::Data(kind), last);
        phone.send(Message::Frame(frame)).await.unwrap();
    }
    assert_eq!(next_json(&mut phone).await[1], "1");
    assert_eq!(relay.metrics.malformed_frames.get(), 7);
}

#[tokio::test]
async fn too_large_a_message_closes_with_1009() {
    let relay = relay(GatewayConfig { max_message_bytes: 1000, ..quick() }).await;
    let mut phone = relay.phone().await;
    let _ = phone.send(Message::text("x".repeat(3_000_000))).await;
    assert_eq!(close_code(&mut phone).await, Some(1009));
    let mut phone = relay.phone().await;
    for kind in [Data::Text, Data::Continue] {
        let frame = Frame::message(Utf8Bytes::from("x".repeat(600)), OpCode::Data(kind), false);
        phone.send(Message::Frame(frame)).await.unwrap();
    }
    assert_eq!(close_code(&mut phone).await, Some(1009));
    until("both are counted", || relay.metrics.closes.get_or_create(&[("reason", "protocol")]).get() == 2).await;
}

#[tokio::test]
async fn a_quiet_connection_is_closed_with_1012_and_a_ping_keeps_it() {
    let relay = relay(GatewayConfig { idle_timeout: Duration::from_millis(300), ..quick() }).await;
    let (mut quiet, mut alive) = (relay.phone().await, relay.phone().await);
    let pinging = async {
        for _ in 0..8 {
            alive.send(Message::Ping(Bytes::new())).await.unwrap();
            assert_eq!(next(&mut alive).await, Message::Pong(Bytes::new()));
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
    };
    let (code, ()) = tokio::join!(close_code(&mut quiet), pinging);
    assert_eq!(code, Some(1012));
}

#[tokio::test]
async fn a_drain_closes_all_with_1012_and_ends_in_time() {
    let relay = relay(quick()).await;
    let mut phones = Vec::new();
    for _ in 0..20 {
        let mut phone = relay.phone().await;
        send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
        assert_eq!(next_json(&mut phone).await[4]["status"], "ok");
        phones.push(phone);
    }
    until("all are subscribed", || relay.asked.count() == 20).await;
    // One that never reads must not hold the others up.
    let deaf = relay.phone().await;
    relay.drain.drain();
    let codes = async {
        for phone in &mut phones {
            assert_eq!(close_code(phone).await, Some(1012));
        }
    };
    let ((), ended) = tokio::join!(codes, relay.connections.join(PATIENCE));
    assert!(ended);
    assert_eq!((relay.asked.count(), relay.metrics.connections.get(), relay.metrics.channels.get()), (0, 0, 0));
    assert_eq!(relay.metrics.closes.get_or_create(&[("reason", "drain")]).get(), 21);
    drop(deaf);
    assert!(TcpStream::connect(relay.addr).await.is_err());
}

#[tokio::test]
async fn a_phone_that_stops_reading_is_closed_with_1013() {
    let relay = relay(GatewayConfig { max_outbox_bytes: 10_000, ..quick() }).await;
    let mut phone = relay.phone().await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    until("it is subscribed", || relay.asked.count() == 1).await;
    let port = relay.asked.ports.lock().unwrap().values().next().unwrap().clone();
    let change = frame::text("x".repeat(5000).as_bytes());
    let mut sent = 0;
    while port.outbox.send(change.clone()) {
        sent += 1;
        assert!(sent < 100_000, "it never filled up");
    }
    assert_eq!(close_code(&mut phone).await, Some(1013));
    until("the hub was told", || relay.asked.count() == 0).await;
    assert_eq!(relay.metrics.closes.get_or_create(&[("reason", "slow")]).get(), 1);
}

#[tokio::test]
async fn a_phone_that_takes_nothing_for_long_is_closed_though_it_still_talks() {
    let relay = relay(GatewayConfig { idle_timeout: Duration::from_millis(200), ..quick() }).await;
    let mut phone = relay.phone().await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    until("it is subscribed", || relay.asked.count() == 1).await;
    let port = relay.asked.ports.lock().unwrap().values().next().unwrap().clone();
    while port.outbox.waiting() < 500_000 {
        assert!(port.outbox.send(frame::text("x".repeat(50_000).as_bytes())));
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    while port.outbox.is_open() {
        assert!(std::time::Instant::now() < deadline);
        let _ = phone.send(Message::Ping(Bytes::new())).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(port.outbox.closing(), Some(crate::hub::CloseReason::Slow));
}

#[tokio::test]
async fn a_token_that_expires_ends_its_channel_and_not_the_socket() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    let payload = json!({"access_token": relay.token(100)});
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", payload])).await;
    send(&mut phone, json!(["2", "2", "realtime:u", "phx_join", {}])).await;
    next_json(&mut phone).await;
    next_json(&mut phone).await;
    relay.clock.advance(105_000);
    let told = next_json(&mut phone).await;
    assert!(told[4]["message"].as_str().unwrap().starts_with("Token has expired 5 seconds ago"), "{told}");
    assert_eq!(next_json(&mut phone).await, json!(["1", "1", "realtime:t", "phx_close", {}]));
    send(&mut phone, json!(["2", "3", "realtime:u", "phx_leave", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "3");
}

#[tokio::test]
async fn a_hundred_joins_at_once_are_all_answered() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    for n in 0..100 {
        let reference = n.to_string();
        phone
            .feed(Message::text(
                json!([reference, reference, format!("realtime:{n}"), "phx_join", todos()]).to_string(),
            ))
            .await
            .unwrap();
    }
    phone.flush().await.unwrap();
    let (mut replies, mut subscribed) = (0, 0);
    while replies < 100 || subscribed < 100 {
        let frame = next_json(&mut phone).await;
        match frame[3].as_str().unwrap() {
            "phx_reply" => replies += 1,
            "system" => {
                assert_eq!(frame[4]["message"], "Subscribed to PostgreSQL");
                subscribed += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((relay.asked.count(), relay.metrics.channels.get()), (100, 100));
    drop(phone);
    until("the hub forgot them all", || relay.asked.count() == 0).await;
    until("the gauges are back", || relay.metrics.channels.get() == 0 && relay.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn a_slow_hub_holds_up_neither_heartbeats_nor_leaves() {
    let relay = relay(quick()).await;
    relay.asked.hold.store(true, Ordering::SeqCst);
    let mut phone = relay.phone().await;
    for topic in ["realtime:a", "realtime:b", "realtime:c"] {
        send(&mut phone, json!(["1", "1", topic, "phx_join", todos()])).await;
        assert_eq!(next_json(&mut phone).await[3], "phx_reply");
    }
    send(&mut phone, json!([null, "2", "phoenix", "heartbeat", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "2");
    until("all are asked for", || relay.asked.count() == 3).await;
    send(&mut phone, json!(["1", "3", "realtime:a", "phx_leave", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "3");
    assert_eq!(next_json(&mut phone).await[3], "phx_close");
    until("the one is forgotten", || relay.asked.count() == 2).await;
    // Joined again: the new instance is subscribed, the old one stays forgotten.
    send(&mut phone, json!(["4", "4", "realtime:b", "phx_join", todos()])).await;
    assert_eq!(next_json(&mut phone).await[1], "4");
    assert_eq!(next_json(&mut phone).await, json!(["1", "1", "realtime:b", "phx_close", {}]));
    until("all three have been asked", || relay.asked.held.lock().unwrap().len() == 4).await;
    for reply in relay.asked.held.lock().unwrap().drain(..) {
        let _ = reply.send(Ok(()));
    }
    let mut told = [next_json(&mut phone).await[2].clone(), next_json(&mut phone).await[2].clone()];
    told.sort_by_key(Value::to_string);
    assert_eq!(told, ["realtime:b", "realtime:c"]);
    until("two are left", || relay.asked.count() == 2).await;
    drop(phone);
    until("none is left", || relay.asked.count() == 0).await;
}

#[tokio::test]
async fn a_new_token_reaches_the_hub() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    next_json(&mut phone).await;
    assert_eq!(next_json(&mut phone).await[4]["message"], "Subscribed to PostgreSQL");
    send(&mut phone, json!([null, "2", "realtime:t", "access_token", {"access_token": relay.token(99)}])).await;
    assert_eq!(next_json(&mut phone).await[4]["message"], "Subscribed to PostgreSQL");
    assert_eq!(relay.asked.reclaims.lock().unwrap().len(), 1);
}

/// `cargo test -- --ignored --nocapture idle_connection`, alone in its process.
#[tokio::test]
#[ignore = "measures the whole process"]
async fn an_idle_connection_costs_at_most_eight_kilobytes() {
    use std::io::{Read as _, Write as _};
    const COUNT: usize = 4000;
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let relay = relay(GatewayConfig::default()).await;
    let (addr, key) = (relay.addr, relay.token(3600));
    let open = move |count: usize| {
        let connect = move |_| {
            let mut stream = std::net::TcpStream::connect(addr).unwrap();
            let request = format!("GET /websocket?vsn=2.0.0&apikey={key} HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut head = [0; 129];
            stream.read_exact(&mut head).unwrap();
            stream
        };
        (0..count).map(connect).collect::<Vec<_>>()
    };
    let first = tokio::task::spawn_blocking({
        let open = open.clone();
        move || open(200)
    });
    let _first = first.await.unwrap();
    let before = resident();
    let _phones = tokio::task::spawn_blocking(move || open(COUNT)).await.unwrap();
    until("all are open", || relay.metrics.connections.get() == 4200).await;
    let each = (resident() - before) / COUNT;
    println!("{each} bytes per idle connection");
    assert!(each <= 8192, "{each}");
}
