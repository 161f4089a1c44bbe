//! Broadcast over HTTP on the wire: what comes before a body is read, floods, and browsers.

use super::*;

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: relay\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

async fn say(relay: &Relay, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(relay.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    response(&mut stream).await
}

const BODY: &str = r#"{"messages":[{"topic":"t","event":"e","payload":{"a":1}}]}"#;

#[tokio::test]
async fn both_endpoints_answer_on_all_their_paths() {
    let relay = relay(quick()).await;
    let key = format!("Authorization: bearer {}\r\n", relay.token(60));
    for path in ["/api/broadcast", "/api/broadcast/", "/realtime/v1/api/broadcast", "/api/broadcast?apikey=x&vsn=2.0.0"]
    {
        let (status, head, body) = say(&relay, &post(path, &key, BODY)).await;
        assert_eq!((status, body.as_str()), (202, ""), "{path}");
        for name in ["x-rate-rolling", "x-rate-limit", "x-rate-limit-remaining", "x-request-id"] {
            assert!(head.contains(&format!("\n{name}: ")), "{head}");
        }
        assert!(head.contains("\naccess-control-allow-origin: *"), "{head}");
    }
    for path in ["/api/broadcast/t%3A1/events/x", "/realtime/v1/api/broadcast/a%2Fb/events/%C3%A4/"] {
        let (status, _, body) = say(&relay, &post(path, &key, "[1]")).await;
        assert_eq!((status, body.as_str()), (202, ""), "{path}");
    }
    for path in
        ["/api/broadcast/t", "/api/broadcast/t/events", "/api/broadcast/t/events/", "/api/broadcast/a/b/events/c"]
    {
        assert_eq!(say(&relay, &post(path, &key, "[1]")).await.0, 404, "{path}");
    }
    let (status, _, body) = say(&relay, &post("/api/broadcast", "x-api-key: a\r\n", BODY)).await;
    assert_eq!((status, body.as_str()), (401, r#"{"message":"Unauthorized"}"#));
}

#[tokio::test]
async fn browsers_are_told_that_they_may_ask() {
    let relay = relay(quick()).await;
    let asking = "origin: https://app.example\r\naccess-control-request-method: POST\r\naccess-control-request-headers: authorization,x-team\r\n";
    for path in ["/api/broadcast", "/realtime/v1/api/broadcast/t/events/e"] {
        let (status, head, body) = relay.http(&format!("OPTIONS {path}"), asking).await;
        assert_eq!((status, body.as_str()), (204, ""));
        for part in ["allow-origin: *", "allow-methods: post, options", "x-client-info", "x-team"] {
            assert!(head.contains(part), "{part}: {head}");
        }
    }
}

/// Without a token the connection's own buffer is all that a body can fill.
#[tokio::test]
async fn a_flood_of_posts_without_a_token_is_refused_unread() {
    let relay = relay(quick()).await;
    let head = "POST /api/broadcast HTTP/1.1\r\nhost: relay\r\ncontent-length: 8000000\r\n\r\n";
    let mut streams = Vec::new();
    for _ in 0..10_000 {
        // Nothing of the body is sent: whoever waited for it would not answer.
        let mut stream = TcpStream::connect(relay.addr).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        streams.push(stream);
        if streams.len() == 100 {
            for mut stream in streams.drain(..) {
                assert_eq!(response(&mut stream).await.0, 401);
            }
        }
    }
    assert_eq!(relay.metrics.refusals.get_or_create(&[("code", "MissingAPIKey")]).get(), 10_000);
    assert_eq!(relay.metrics.posts.get_or_create(&[("status", "401")]).get(), 10_000);
    let all = &relay.connections;
    until("no connection stays", || all.is_empty()).await;
}

#[tokio::test]
async fn a_body_that_drips_ends_in_time_and_harms_nobody() {
    let config = GatewayConfig { post_timeout: Duration::from_millis(300), ..quick() };
    let relay = relay(config).await;
    let key = format!("apikey: {}\r\n", relay.token(60));
    let mut slow = TcpStream::connect(relay.addr).await.unwrap();
    let head = format!("POST /api/broadcast HTTP/1.1\r\nhost: relay\r\ncontent-length: 100\r\n{key}\r\n{{");
    slow.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(say(&relay, &post("/api/broadcast", &key, BODY)).await.0, 202);
    assert_eq!(response(&mut slow).await.0, 408);
}

#[tokio::test]
async fn a_large_body_is_refused_by_its_length() {
    let relay = relay(quick()).await;
    let key = format!("apikey: {}\r\n", relay.token(60));
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: relay\r\ncontent-length: 900000000\r\n{key}\r\n");
    assert_eq!(say(&relay, &head("/api/broadcast")).await.0, 413);
    assert_eq!(say(&relay, &head("/api/broadcast/t/events/e")).await.0, 422);
}

#[tokio::test]
async fn the_health_check_of_the_original_is_answered_to_whoever_has_a_key() {
    let relay = relay(quick()).await;
    let key = format!("authorization: Bearer {}\r\n", relay.token(60));
    let path = "/api/tenants/realtime-dev/health";
    assert_eq!(relay.http(&format!("GET {path}"), "").await.0, 401);
    for ready in [false, true] {
        relay.ready.send_replace(ready);
        let (status, _, body) = relay.http(&format!("GET {path}"), &key).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["data"]["healthy"], &body["data"]["region"]), (200, &json!(ready), &Value::Null));
    }
    let mut stream = TcpStream::connect(relay.addr).await.unwrap();
    stream.write_all(format!("HEAD {path} HTTP/1.1\r\nhost: relay\r\n{key}\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 15];
    timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
}
