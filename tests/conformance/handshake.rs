//! Items 1 to 17: who is let in, and what the others are told.

use futures_util::{SinkExt as _, StreamExt as _};
use rowcast::claims::{KeySetConfig, KeySetLocation};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::stage::{Scene, Shared};
use crate::support::phone::PATIENCE;
use crate::support::signer::{Kind, Signer, key_set};
use crate::support::token::{self, ALICE};

/// Far enough.
const LATER: i64 = 4_000_000_000;

/// How an upgrade went.
enum Door {
    Open(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
    Shut { status: u16, content_type: String, body: String },
}

/// `target` begins behind the server's address: a path and a query.
async fn knock_with(base: &str, target: &str, headers: &[(&'static str, &str)]) -> Door {
    let host = base.strip_suffix("/realtime/v1").expect("the usual base");
    let mut request = format!("{host}{target}").into_client_request().expect("a good request");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a good value"));
    }
    let connecting = tokio_tungstenite::connect_async(request);
    match tokio::time::timeout(PATIENCE, connecting).await.expect("an answer in time") {
        Ok((socket, answer)) => {
            assert_eq!(answer.status(), 101);
            for absent in ["sec-websocket-protocol", "sec-websocket-extensions"] {
                assert!(!answer.headers().contains_key(absent), "{absent}");
            }
            Door::Open(Box::new(socket))
        }
        Err(Error::Http(answer)) => Door::Shut {
            status: answer.status().as_u16(),
            content_type: answer.headers()["content-type"].to_str().expect("ASCII").to_owned(),
            body: String::from_utf8(answer.body().clone().unwrap_or_default()).expect("UTF-8"),
        },
        Err(error) => panic!("neither let in nor refused: {error}"),
    }
}

async fn knock(base: &str, query: &str) -> Door {
    knock_with(base, &format!("/realtime/v1/websocket{query}"), &[]).await
}

impl Door {
    #[track_caller]
    fn assert_open(self) -> Box<WebSocketStream<MaybeTlsStream<TcpStream>>> {
        match self {
            Door::Open(socket) => socket,
            Door::Shut { status, body, .. } => panic!("refused: {status} {body}"),
        }
    }

    #[track_caller]
    fn assert_shut(self, expected: u16, error: &str) {
        match self {
            Door::Shut { status, content_type, body } => {
                let body: Value = serde_json::from_str(&body).expect("JSON");
                assert_eq!((status, body), (expected, json!({ "error": error })));
                assert_eq!(content_type, "application/json; charset=utf-8");
            }
            Door::Open(_) => panic!("let in"),
        }
    }
}

/// Sends a heartbeat of version 1 and reads the answer.
async fn speaks_v1(mut socket: Box<WebSocketStream<MaybeTlsStream<TcpStream>>>) {
    let heartbeat = json!({ "topic": "phoenix", "event": "heartbeat", "payload": {}, "ref": "1" });
    let answer = exchange(&mut socket, &heartbeat).await;
    assert_eq!((&answer["event"], &answer["ref"]), (&json!("phx_reply"), &json!("1")), "{answer}");
}

/// The same for version 2.
async fn speaks_v2(mut socket: Box<WebSocketStream<MaybeTlsStream<TcpStream>>>) {
    let answer = exchange(&mut socket, &json!([null, "1", "phoenix", "heartbeat", {}])).await;
    assert_eq!((&answer[1], &answer[3]), (&json!("1"), &json!("phx_reply")), "{answer}");
}

async fn exchange(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>, message: &Value) -> Value {
    socket.send(Message::text(message.to_string())).await.expect("sent");
    let answer = tokio::time::timeout(PATIENCE, socket.next()).await.expect("in time");
    let answer = answer.expect("an answer").expect("no error").into_text().expect("text");
    serde_json::from_str(&answer).expect("JSON")
}

/// The query with a token of these claims.
fn key(token: &str) -> String {
    format!("?apikey={token}&vsn=2.0.0")
}

fn claims(claims: &Value) -> String {
    key(&token::raw(&json!({ "alg": "HS256", "typ": "JWT" }), claims))
}

fn anon() -> String {
    token::role("anon")
}

#[tokio::test]
async fn item_001_a_good_key_opens_the_gateways_path() {
    let relay = Shared::relay().await;
    let target = format!("/realtime/v1/websocket{}", key(&anon()));
    speaks_v2(knock_with(relay.base(), &target, &[]).await.assert_open()).await;
}

#[tokio::test]
async fn item_002_a_good_key_opens_the_bare_path() {
    let relay = Shared::relay().await;
    let target = format!("/socket/websocket{}", key(&anon()));
    speaks_v2(knock_with(relay.base(), &target, &[]).await.assert_open()).await;
}

#[tokio::test]
async fn item_003_without_a_vsn_the_socket_speaks_version_1() {
    let relay = Shared::relay().await;
    speaks_v1(knock(relay.base(), &format!("?apikey={}", anon())).await.assert_open()).await;
}

#[tokio::test]
async fn item_004_other_patches_of_a_version_are_spoken_and_other_versions_are_forbidden() {
    let relay = Shared::relay().await;
    speaks_v2(knock(relay.base(), &format!("?apikey={}&vsn=2.0.1", anon())).await.assert_open()).await;
    for vsn in ["3.0.0", "abc"] {
        match knock(relay.base(), &format!("?apikey={}&vsn={vsn}", anon())).await {
            Door::Shut { status, body, .. } => assert_eq!((status, &*body), (403, ""), "{vsn}"),
            Door::Open(_) => panic!("{vsn} was let in"),
        }
    }
}

#[tokio::test]
async fn item_005_without_a_key_the_answer_says_so() {
    let relay = Shared::relay().await;
    for query in ["", "?vsn=1.0.0", "?vsn=2.0.0"] {
        knock(relay.base(), query).await.assert_shut(401, "API key is missing");
    }
}

#[tokio::test]
async fn item_006_a_key_that_is_no_token_is_refused() {
    let relay = Shared::relay().await;
    for text in ["not-a-jwt", "a.b.c", ""] {
        knock(relay.base(), &key(text)).await.assert_shut(401, "The token provided is not a valid JWT");
    }
}

#[tokio::test]
async fn item_007_a_key_signed_with_another_secret_is_refused() {
    let relay = Shared::relay().await;
    let other = "another secret, also of more than thirty-two bytes";
    let forged = token::signed_with(other, &json!({ "alg": "HS256" }), &json!({ "role": "anon", "exp": LATER }));
    knock(relay.base(), &key(&forged)).await.assert_shut(401, "Failed to validate JWT signature");
}

#[tokio::test]
async fn item_008_an_expired_key_is_refused() {
    let relay = Shared::relay().await;
    knock(relay.base(), &key(&token::expired(ALICE))).await.assert_shut(401, "Token has expired");
}

#[tokio::test]
async fn item_009_a_key_without_role_or_exp_is_refused() {
    let relay = Shared::relay().await;
    for lacking in [json!({ "exp": LATER }), json!({ "role": "anon" }), json!({})] {
        let door = knock(relay.base(), &claims(&lacking)).await;
        door.assert_shut(401, "Fields `role` and `exp` are required in JWT");
    }
}

#[tokio::test]
async fn item_010_the_header_wins_over_the_query() {
    let relay = Shared::relay().await;
    let good = anon();
    let target = format!("/realtime/v1/websocket{}", key("not-a-jwt"));
    knock_with(relay.base(), &target, &[("x-api-key", &good)]).await.assert_open();
    let target = format!("/realtime/v1/websocket{}", key(&good));
    let door = knock_with(relay.base(), &target, &[("x-api-key", "not-a-jwt")]).await;
    door.assert_shut(401, "The token provided is not a valid JWT");
}

#[tokio::test]
async fn item_011_a_decimal_exp_is_good_and_one_in_a_string_is_not() {
    let relay = Shared::relay().await;
    knock(relay.base(), &claims(&json!({ "role": "anon", "exp": 4_000_000_000.5 }))).await.assert_open();
    let door = knock(relay.base(), &claims(&json!({ "role": "anon", "exp": LATER.to_string() }))).await;
    assert!(matches!(door, Door::Shut { .. }));
}

#[tokio::test]
async fn item_012_a_key_id_that_no_key_set_knows_leaves_the_shared_secret() {
    let relay = Shared::relay().await;
    let signed = |secret| {
        let header = json!({ "alg": "HS256", "typ": "JWT", "kid": "unheard of" });
        key(&token::signed_with(secret, &header, &json!({ "role": "anon", "exp": LATER })))
    };
    knock(relay.base(), &signed(token::SECRET)).await.assert_open();
    let other = "another secret, also of more than thirty-two bytes";
    knock(relay.base(), &signed(other)).await.assert_shut(401, "Failed to validate JWT signature");
}

#[tokio::test]
async fn item_013_keys_of_a_key_set_let_in_and_an_unknown_kid_is_named() {
    let signers = Kind::ALL.map(|kind| Signer::new(kind, &format!("{kind:?}")));
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), key_set(&signers.each_ref())).expect("written");
    let location = KeySetLocation::File(file.path().to_owned());
    let scene = Scene::with(|config| config.verifier.key_set = Some(KeySetConfig::new(location))).await;
    let claims = json!({ "role": "anon", "exp": LATER });
    for signer in &signers {
        speaks_v2(knock(&scene.relay.base(), &key(&signer.token(&claims))).await.assert_open()).await;
    }
    for kind in Kind::ALL {
        let door = knock(&scene.relay.base(), &key(&Signer::new(kind, "nobody's").token(&claims))).await;
        let text =
            "Failed to generate JWT signer for key ID (kid) \"nobody's\", check your JWT secret or JWKS configuration";
        door.assert_shut(401, text);
    }
    let forged = Signer::new(Kind::Es256, "Es256").token(&claims);
    knock(&scene.relay.base(), &key(&forged)).await.assert_shut(401, "Failed to validate JWT signature");
}

#[tokio::test]
async fn item_014_a_role_that_the_database_does_not_know_may_connect() {
    let relay = Shared::relay().await;
    speaks_v2(knock(relay.base(), &key(&token::role("nobody knows me"))).await.assert_open()).await;
}

#[tokio::test]
async fn item_015_unknown_parameters_do_not_matter() {
    let relay = Shared::relay().await;
    let query = format!("{}&eventsPerSecond=10&log_level=warn&token=x&Authorization=y", key(&anon()));
    speaks_v2(knock(relay.base(), &query).await.assert_open()).await;
}

#[tokio::test]
async fn item_016_any_origin_may_connect() {
    let relay = Shared::relay().await;
    let target = format!("/realtime/v1/websocket{}", key(&anon()));
    let origin = [("origin", "https://evil.example")];
    speaks_v2(knock_with(relay.base(), &target, &origin).await.assert_open()).await;
}

#[tokio::test]
async fn item_017_whoever_finds_no_place_left_is_told_so() {
    let scene = Scene::with(|config| config.gateway.max_connections = 1).await;
    let base = scene.relay.base();
    let mut first = knock(&base, &key(&anon())).await.assert_open();
    knock(&base, &key(&anon())).await.assert_shut(429, "Too many connected users");
    // A refused token is the first thing to be told, place or no place.
    knock(&base, "").await.assert_shut(401, "API key is missing");
    first.close().await.expect("it takes the goodbye");
    while first.next().await.is_some_and(|message| message.is_ok()) {}
    // The place is free when the connection's task has ended, which is a little after the goodbye.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Door::Shut { status, .. } = knock(&base, &key(&anon())).await {
        assert_eq!(status, 429);
        assert!(tokio::time::Instant::now() < deadline, "the place is never free again");
        crate::support::relay::pause().await;
    }
}
