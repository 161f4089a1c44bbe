//! Items 86 to 98: broadcast over HTTP, heard by members of both versions.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::stage::{BOTH, Scene, Shared};
use crate::support::Version;
use crate::support::phone::PATIENCE;
use crate::support::token::{self, ALICE, BOB};

/// An answer.
struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }
}

/// Asks on a connection of its own. `headers`: lines without their ends.
async fn ask(addr: SocketAddr, line: &str, headers: &[String], body: &[u8]) -> Answer {
    let asking = async {
        let mut stream = TcpStream::connect(addr).await.expect("a connection");
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = body.len();
        let head =
            format!("{line} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).await.expect("it is taken");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        Answer { status: head[9..12].parse().expect("a status"), head, body: answer[end + 4..].to_vec() }
    };
    timeout(PATIENCE, asking).await.expect("an answer in time")
}

fn bearer(token: &str) -> Vec<String> {
    vec![format!("Authorization: Bearer {token}"), "content-type: application/json".to_owned()]
}

/// `messages` as a batch with the token of a user.
async fn post(addr: SocketAddr, messages: Value) -> Answer {
    let body = json!({ "messages": messages }).to_string();
    ask(addr, "POST /realtime/v1/api/broadcast", &bearer(&token::user(ALICE)), body.as_bytes()).await
}

fn message(topic: &str, number: u64) -> Value {
    json!({ "topic": topic, "event": "x", "payload": { "n": number } })
}

/// A client that is in one channel, and shows what it hears there as it came.
struct Member {
    socket: WebSocketStream<TcpStream>,
    version: Version,
    topic: String,
}

impl Member {
    async fn join(addr: SocketAddr, version: Version, topic: &str) -> Member {
        Member::join_as(addr, version, topic, false, &token::user(ALICE)).await
    }

    async fn join_as(addr: SocketAddr, version: Version, topic: &str, private: bool, token: &str) -> Member {
        let vsn = if version == Version::V1 { "1.0.0" } else { "2.0.0" };
        let line = TcpStream::connect(addr).await.expect("a connection");
        let url = format!("ws://{addr}/realtime/v1/websocket?apikey={token}&vsn={vsn}");
        let (socket, _) = client_async(url, line).await.expect("a handshake");
        let mut member = Member { socket, version, topic: format!("realtime:{topic}") };
        let payload = json!({ "config": { "private": private, "broadcast": {}, "presence": {} } });
        member.push("phx_join", payload).await;
        let reply = member.next_text("phx_reply").await;
        assert_eq!(reply["status"], "ok", "{reply}");
        member
    }

    async fn push(&mut self, event: &str, payload: Value) {
        let topic = &self.topic;
        let frame = match self.version {
            Version::V1 => json!({ "topic": topic, "event": event, "payload": payload, "ref": "1", "join_ref": "1" }),
            Version::V2 => json!(["1", "1", topic, event, payload]),
        };
        self.socket.send(Message::text(frame.to_string())).await.expect("it is taken");
    }

    async fn next(&mut self) -> Message {
        timeout(PATIENCE, self.socket.next()).await.expect("a frame in time").expect("a frame").expect("no error")
    }

    /// The payload of the next text frame of this event, on this topic.
    async fn next_text(&mut self, event: &str) -> Value {
        loop {
            let Message::Text(text) = self.next().await else { panic!("no text") };
            let frame: Value = serde_json::from_str(&text).expect("JSON");
            let (of, topic, payload) = match self.version {
                Version::V1 => (&frame["event"], &frame["topic"], &frame["payload"]),
                Version::V2 => (&frame[3], &frame[2], &frame[4]),
            };
            if *of == event {
                assert_eq!(*topic, self.topic);
                return payload.clone();
            }
        }
    }

    /// Topic, event, encoding and payload of the next frame, which is of kind 4 and has no metadata.
    async fn next_binary(&mut self) -> (String, String, u8, Vec<u8>) {
        loop {
            let bytes = match self.next().await {
                Message::Binary(bytes) => bytes,
                Message::Text(text) if text.contains("broadcast") => panic!("{text}"),
                _ => continue,
            };
            let [4, topic, event, 0, encoding, rest @ ..] = &*bytes else { panic!("{bytes:?}") };
            let (topic, rest) = rest.split_at(usize::from(*topic));
            let (event, payload) = rest.split_at(usize::from(*event));
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
            return (text(topic), text(event), *encoding, payload.to_vec());
        }
    }
}

fn text(number: u64) -> Value {
    json!({ "type": "broadcast", "event": "x", "payload": { "n": number } })
}

fn addr(relay: &Shared) -> SocketAddr {
    let host = relay.base().strip_prefix("ws://").and_then(|rest| rest.split('/').next()).expect("ws://");
    host.parse().expect("an address")
}

#[tokio::test]
async fn item_086_a_batch_is_accepted_and_heard_as_text() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    for version in BOTH {
        let topic = format!("item 86 {version:?}");
        let mut member = Member::join(addr, version, &topic).await;
        for scheme in ["Bearer", "bearer", "BEARER"] {
            let headers = [format!("authorization: {scheme} {}", token::user(BOB))];
            let body = json!({ "messages": [message(&topic, 1), message(&topic, 2)] }).to_string();
            let answer = ask(addr, "POST /api/broadcast", &headers, body.as_bytes()).await;
            assert_eq!((answer.status, answer.body.len()), (202, 0), "{}", answer.head);
            for name in ["x-rate-rolling", "x-rate-limit", "x-rate-limit-remaining", "x-request-id"] {
                assert!(answer.head.contains(&format!("\n{name}: ")), "{}", answer.head);
            }
            assert_eq!(member.next_text("broadcast").await, text(1));
            assert_eq!(member.next_text("broadcast").await, text(2));
        }
    }
}

#[tokio::test]
async fn item_087_the_key_may_stand_in_apikey_and_not_in_x_api_key() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    let body = json!({ "messages": [message("item 87", 1)] }).to_string();
    for (name, status) in [("apikey", 202), ("x-api-key", 401)] {
        let headers = [format!("{name}: {}", token::user(ALICE))];
        assert_eq!(
            ask(addr, "POST /realtime/v1/api/broadcast", &headers, body.as_bytes()).await.status,
            status,
            "{name}"
        );
    }
}

#[tokio::test]
async fn item_088_without_a_good_token_it_is_unauthorized() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    let body = json!({ "messages": [message("item 88", 1)] }).to_string();
    for headers in [vec![], bearer(&token::expired(ALICE)), bearer("nonsense"), bearer("")] {
        for path in ["/api/broadcast", "/api/broadcast/t/events/e"] {
            let answer = ask(addr, &format!("POST {path}"), &headers, body.as_bytes()).await;
            assert_eq!((answer.status, answer.json()), (401, json!({ "message": "Unauthorized" })), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn item_089_of_an_incomplete_batch_nothing_is_delivered() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    let mut member = Member::join(addr, Version::V2, "item 89").await;
    let answer = post(addr, json!([{ "topic": "item 89" }, message("item 89", 1)])).await;
    let blank = json!(["can't be blank"]);
    let expected = json!({ "errors": { "messages": [{ "payload": blank, "event": blank }, {}] } });
    assert_eq!((answer.status, answer.json()), (422, expected));
    let answer = post(addr, json!([{ "event": "x", "payload": 1 }])).await;
    let expected = json!({ "errors": { "messages": [{ "topic": blank, "payload": ["is invalid"] }] } });
    assert_eq!((answer.status, answer.json()), (422, expected));
    assert_eq!(post(addr, json!([message("item 89", 2)])).await.status, 202);
    assert_eq!(member.next_text("broadcast").await, text(2));
}

#[tokio::test]
async fn item_090_messages_must_be_there() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    let headers = bearer(&token::user(ALICE));
    for body in ["{}", r#"{"messages":[]}"#, r#"{"messages":null}"#] {
        let answer = ask(addr, "POST /api/broadcast", &headers, body.as_bytes()).await;
        assert_eq!((answer.status, answer.json()), (422, json!({ "errors": { "messages": ["can't be blank"] } })));
    }
    let answer = ask(addr, "POST /api/broadcast", &headers, b"{").await;
    assert_eq!((answer.status, &*answer.body), (400, &b"Bad Request"[..]));
}

#[tokio::test]
async fn item_091_an_id_arrives_as_meta_id() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    for version in BOTH {
        let topic = format!("item 91 {version:?}");
        let mut member = Member::join(addr, version, &topic).await;
        let mut sent = message(&topic, 1);
        sent["id"] = json!("an id");
        assert_eq!(post(addr, json!([sent])).await.status, 202);
        let mut expected = text(1);
        expected["meta"] = json!({ "id": "an id" });
        assert_eq!(member.next_text("broadcast").await, expected);
    }
}

/// Everybody may read private topics, Alice may write to `room`.
const POLICIES: &str = "create policy read on realtime.messages for select to authenticated using (true); \
     create policy write on realtime.messages for insert to authenticated \
     with check (realtime.topic() = 'room' and auth.uid() = 'a11ce000-0000-4000-8000-000000000001');";

#[tokio::test]
async fn item_092_private_messages_need_the_right_to_write_and_stay_in_private_channels() {
    let scene = Scene::with(|_| {}).await;
    scene.pg.exec(POLICIES).await;
    let addr = scene.relay.addr();
    let mut private = Member::join_as(addr, Version::V2, "room", true, &token::user(BOB)).await;
    let mut public = Member::join(addr, Version::V2, "room").await;
    let private_one = |number| {
        let mut message = message("room", number);
        message["private"] = json!(true);
        message
    };
    let body = json!({ "messages": [private_one(1), message("room", 2)] }).to_string();
    let headers = bearer(&token::user(BOB));
    assert_eq!(ask(addr, "POST /api/broadcast", &headers, body.as_bytes()).await.status, 202);
    assert_eq!(post(addr, json!([private_one(3), message("room", 4), message("else", 5)])).await.status, 202);
    assert_eq!(private.next_text("broadcast").await, text(3));
    assert_eq!(public.next_text("broadcast").await, text(2));
    assert_eq!(public.next_text("broadcast").await, text(4));
}

#[tokio::test]
async fn item_093_a_single_message_is_an_event_of_its_own() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    let mut old = Member::join(addr, Version::V1, "item:93/a").await;
    let mut new = Member::join(addr, Version::V2, "item:93/a").await;
    let line = "POST /realtime/v1/api/broadcast/item%3A93%2Fa/events/an%20event";
    for payload in [r#"{"a": 1.10}"#, "[1]", "\"x\""] {
        let answer = ask(addr, line, &bearer(&token::user(ALICE)), payload.as_bytes()).await;
        assert_eq!((answer.status, answer.body.len()), (202, 0));
        let (topic, event, encoding, bytes) = new.next_binary().await;
        assert_eq!((&*topic, &*event, encoding), ("realtime:item:93/a", "an event", 1));
        assert_eq!(String::from_utf8_lossy(&bytes), payload);
        let heard = old.next_text("broadcast").await;
        let value: Value = serde_json::from_str(payload).expect("JSON");
        assert_eq!(heard, json!({ "event": "an event", "payload": value, "type": "broadcast" }));
    }
}

#[tokio::test]
async fn item_094_octets_arrive_as_they_were_sent() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    let mut old = Member::join(addr, Version::V1, "item 94").await;
    let mut new = Member::join(addr, Version::V2, "item 94").await;
    let headers = [format!("apikey: {}", token::user(ALICE)), "content-type: application/octet-stream".to_owned()];
    for body in [&b"\x00\xff\xfe{"[..], b""] {
        let answer = ask(addr, "POST /api/broadcast/item%2094/events/bin/", &headers, body).await;
        assert_eq!(answer.status, 202);
        let expected = ("realtime:item 94".to_owned(), "bin".to_owned(), 0, body.to_vec());
        assert_eq!(new.next_binary().await, expected);
    }
    // Version 1 has no form for bytes: what it hears next was sent later.
    assert_eq!(post(addr, json!([message("item 94", 7)])).await.status, 202);
    assert_eq!(old.next_text("broadcast").await, text(7));
}

#[tokio::test]
async fn item_095_other_types_are_not_supported() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    let headers = [format!("apikey: {}", token::user(ALICE)), "content-type: text/plain".to_owned()];
    let answer = ask(addr, "POST /api/broadcast/t/events/e", &headers, b"hi").await;
    let text = "Unsupported Media Type. Use application/json or application/octet-stream";
    assert_eq!((answer.status, answer.json()), (415, json!({ "error": text })));
}

#[tokio::test]
async fn item_096_a_single_private_message_without_the_right_is_forbidden() {
    let scene = Scene::with(|_| {}).await;
    scene.pg.exec(POLICIES).await;
    let addr = scene.relay.addr();
    let mut member = Member::join_as(addr, Version::V2, "room", true, &token::user(BOB)).await;
    let line = "POST /api/broadcast/room/events/x?private=true";
    let answer = ask(addr, line, &bearer(&token::user(BOB)), b"1").await;
    assert_eq!((answer.status, answer.json()), (403, json!({ "message": "Unauthorized" })));
    let nobody = ask(addr, line, &bearer(&token::role("no_such_role")), b"1").await;
    assert_eq!((nobody.status, nobody.json()), (422, json!({ "message": "RLS policy error" })));
    assert_eq!(ask(addr, line, &bearer(&token::user(ALICE)), b"2").await.status, 202);
    assert_eq!(member.next_binary().await.3, b"2");
}

#[tokio::test]
async fn item_097_above_the_rate_it_is_too_many() {
    let scene = Scene::with(|config| {
        config.gateway.max_posted_messages_per_second = 1;
        config.gateway.max_posts_per_second = 2;
    })
    .await;
    let addr = scene.relay.addr();
    let messages = |count| Value::Array((0..count).map(|number| message("room", number)).collect());
    let answer = post(addr, messages(61)).await;
    let text = "Too many messages to broadcast, please reduce the batch size";
    assert_eq!((answer.status, answer.json()), (429, json!({ "message": text })));
    assert_eq!(post(addr, messages(60)).await.status, 202);
    // Averages are of a minute: time must not have passed.
    let text = "You have exceeded your rate limit";
    let answer = post(addr, messages(1)).await;
    assert_eq!((answer.status, answer.json()), (429, json!({ "message": text })));
    let start = tokio::time::Instant::now();
    let mut last = answer;
    while start.elapsed() < Duration::from_secs(40) && last.json()["message"] == text {
        last = post(addr, messages(1)).await;
    }
    assert_eq!((last.status, last.json()), (429, json!({ "message": "Too many requests" })));
}

#[tokio::test]
async fn item_098_browsers_may_ask_from_anywhere() {
    let relay = Shared::relay().await;
    let addr = addr(&relay);
    for path in ["/realtime/v1/api/broadcast", "/api/broadcast/t/events/e"] {
        let headers = [
            "origin: https://app.example".to_owned(),
            "access-control-request-method: POST".to_owned(),
            "access-control-request-headers: authorization,apikey,content-type,x-client-info".to_owned(),
        ];
        let answer = ask(addr, &format!("OPTIONS {path}"), &headers, b"").await;
        assert_eq!(answer.status, 204);
        for part in ["allow-origin: *", "allow-methods: post, options", "authorization", "x-client-info"] {
            assert!(answer.head.contains(part), "{part}: {}", answer.head);
        }
    }
    let answer = post(addr, json!([message("item 98", 1)])).await;
    assert!(answer.head.contains("\naccess-control-allow-origin: *"), "{}", answer.head);
}
