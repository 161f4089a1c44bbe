//! Handshakes and pages (`protocol.md` §13.1).

use super::*;

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
        hub: HubHandle::new(commands.clone()),
        authority: Authority::new(no_pool(), HubHandle::new(commands), Default::default(), Arc::default()),
        pool: no_pool(),
        rooms: Rooms::new(RoomConfig::default(), Vec::new(), Arc::default()),
        verifier: Arc::new(verifier()),
        clock: Clock::system(),
        metrics: Arc::default(),
        journal: crate::journal::Journal::off(),
        log: crate::resume::History::new(crate::log::testing::in_memory().unwrap().log),
        cursor_key: Arc::new(crate::resume::CursorKey::new([1; 32])),
        frontiers: crate::resume::Frontiers::in_memory(Default::default(), Arc::new(Metrics::new())),
        drain: Drain::new(),
        gate: crate::task::Gate::always(),
        connections: Connections::default(),
        ready: watch::channel(false).1,
        shards: 1,
        tls: None,
    };
    let Err(error) = Gateway::new(quick(), deps).bind(relay.addr).await else { panic!("bound twice") };
    assert!(chain(&error).starts_with(&format!("cannot listen on {}: ", relay.addr)), "{}", chain(&error));
    assert!(error.advice().contains("choose another port with PORT"), "{}", error.advice());
}
