//! Plays a session.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::Decoder;
use crate::support::phone::PATIENCE;
use crate::support::sdk::SdkPhone;
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock};

/// A step of the session.
struct Step {
    line: usize,
    does: String,
    what: String,
}

fn steps(session: &str, replaced: &[(&str, &str)]) -> Vec<Step> {
    let lines = session.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(index, line)| {
            let (does, what) = line.split_once(' ').unwrap_or_else(|| panic!("line {}: {line}", index + 1));
            let what = replaced.iter().fold(what.to_owned(), |what, (name, value)| what.replace(name, value));
            Step { line: index + 1, does: does.to_owned(), what }
        })
        .collect()
}

/// With `\xNN` as bytes.
fn bytes(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(hex, 16).unwrap_or_else(|_| panic!("\\x{part}")));
        bytes.extend(rest.as_bytes());
    }
    bytes
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Whether it is as wanted, but for what is left open.
fn fits(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::String(open), _) if open == "$any" => true,
        (Value::String(open), found) if open == "$string" => found.is_string(),
        (Value::String(open), found) if open == "$int" => found.is_i64(),
        (Value::Array(wanted), Value::Array(found)) => {
            wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| fits(wanted, found))
        }
        (Value::Object(wanted), Value::Object(found)) => {
            let same = |(key, value): (&String, &Value)| match key.as_str() {
                "$key" => found.values().any(|found| fits(value, found)),
                key => found.get(key).is_some_and(|found| fits(value, found)),
            };
            wanted.len() == found.len() && wanted.iter().all(same)
        }
        _ => wanted == found,
    }
}

/// The parts of a binary broadcast.
fn broadcast_parts(frame: &[u8]) -> Value {
    assert_eq!((frame[0], frame[4]), (4, 1), "a broadcast of JSON");
    let mut at = 5;
    let mut part = |length: u8| {
        let start = at;
        at += usize::from(length);
        String::from_utf8_lossy(&frame[start..at]).into_owned()
    };
    let (topic, event, meta) = (part(frame[1]), part(frame[2]), part(frame[3]));
    let payload: Value = serde_json::from_slice(&frame[at..]).expect("JSON");
    json!({ "topic": topic, "event": event, "meta": parsed(&meta), "payload": payload })
}

struct Player {
    addr: SocketAddr,
    token: String,
    decoder: Decoder,
    socket: Option<WebSocketStream<TcpStream>>,
    js: SdkPhone,
    v1: SdkPhone,
}

/// The whole of a session, on a stage with what its statements need. The JavaScript clients are in the room `room`.
pub(crate) async fn play(stage: &Stage, decoder: Decoder, session: &str) {
    let (token, fresh) = (token::user(ALICE), token::short(ALICE, 1800));
    let steps = steps(session, &[("$TOKEN", &token), ("$FRESH", &fresh), ("$ALICE", ALICE)]);
    let connected = [Stock::JavaScript, Stock::JavaScriptV1].map(|stock| stage.relay.sdk(stock, &token));
    let [js, v1] = connected;
    let (mut js, mut v1) = tokio::join!(js, v1);
    js.open("room", &json!({})).await;
    v1.open("room", &json!({})).await;
    let mut player = Player { addr: stage.relay.addr(), token, decoder, socket: None, js, v1 };
    let mut wanted: Vec<&Step> = Vec::new();
    for step in &steps {
        if !step.does.starts_with("server") {
            player.expect(std::mem::take(&mut wanted)).await;
        }
        match &*step.does {
            "sql" => stage.exec(&step.what).await,
            server if server.starts_with("server") => wanted.push(step),
            _ => player.act(step).await,
        }
    }
    player.expect(wanted).await;
    player.js.exit().await;
    player.v1.exit().await;
}

impl Player {
    async fn act(&mut self, step: &Step) {
        let (line, what) = (step.line, &*step.what);
        match &*step.does {
            "connect" => self.connect(what).await,
            "client" => self.send(Message::text(what)).await,
            "client-binary" => self.send(Message::binary(bytes(what))).await,
            "post" => self.post(step).await,
            "js-says" => assert_eq!(self.js.act("send", "room", &parsed(what)).await, "ok", "line {line}"),
            "v1-says" => assert_eq!(self.v1.act("send", "room", &parsed(what)).await, "ok", "line {line}"),
            "js-hears" => assert_eq!(self.js.broadcast().await, parsed(what), "line {line}"),
            "v1-hears" => assert_eq!(self.v1.broadcast().await, parsed(what), "line {line}"),
            other => panic!("line {line}: what is {other}?"),
        }
    }

    async fn connect(&mut self, version: &str) {
        if let Some(mut socket) = self.socket.take() {
            socket.close(None).await.expect("it is closed");
        }
        let line = TcpStream::connect(self.addr).await.expect("a connection");
        let url = format!("ws://{}/realtime/v1/websocket?apikey={}&vsn={version}", self.addr, self.token);
        let (socket, _) = timeout(PATIENCE, client_async(url, line)).await.expect("in time").expect("a handshake");
        self.socket = Some(socket);
    }

    async fn send(&mut self, message: Message) {
        self.socket.as_mut().expect("a connection").send(message).await.expect("it is taken");
    }

    async fn post(&mut self, step: &Step) {
        let mut parts = step.what.splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_else(|| panic!("line {}: {}", step.line, step.what));
        let (path, kind, body) = (part(), part(), bytes(part()));
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\napikey: {0}\r\nauthorization: Bearer {0}\r\n\
             content-type: {kind}\r\ncontent-length: {1}\r\n\r\n",
            self.token,
            body.len()
        );
        let posting = async {
            let mut stream = TcpStream::connect(self.addr).await.expect("a connection");
            stream.write_all(&[head.as_bytes(), &body].concat()).await.expect("it is taken");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 202 "), "line {}: {answer}", step.line);
        };
        timeout(PATIENCE, posting).await.expect("an answer in time");
    }

    /// Exactly these come next.
    async fn expect(&mut self, mut wanted: Vec<&Step>) {
        while !wanted.is_empty() {
            let message = self.next(&wanted).await;
            let place = wanted.iter().position(|step| self.answers(step, &message));
            let lines: Vec<usize> = wanted.iter().map(|step| step.line).collect();
            let place = place.unwrap_or_else(|| panic!("lines {lines:?}: unexpected: {message:?}"));
            let first = wanted.iter().position(|step| step.does == "server-first");
            assert!(first.is_none_or(|first| first == place), "lines {lines:?}: too early: {message:?}");
            wanted.remove(place);
        }
    }

    async fn next(&mut self, wanted: &[&Step]) -> Message {
        let socket = self.socket.as_mut().expect("a connection");
        loop {
            let told = wanted.first().map(|step| (step.line, &step.what));
            let next = timeout(PATIENCE, socket.next()).await.unwrap_or_else(|_| panic!("nothing came for {told:?}"));
            match next.unwrap_or_else(|| panic!("the connection ended before {told:?}")).expect("no error") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    fn answers(&self, step: &Step, message: &Message) -> bool {
        match (&*step.does, message) {
            ("server" | "server-first", Message::Text(text)) => {
                let frame = parsed(text);
                self.decoder.check(&frame);
                fits(&parsed(&step.what), &frame)
            }
            ("server-binary", Message::Binary(frame)) => frame[..] == bytes(&step.what)[..],
            ("server-binary-json", Message::Binary(frame)) => fits(&parsed(&step.what), &broadcast_parts(frame)),
            _ => false,
        }
    }
}

#[test]
fn an_answer_has_to_fit_in_everything_but_what_is_left_open() {
    let wanted = parsed(r#"{"a":["$string","$int"],"b":{"$key":{"c":"$any"}},"d":null}"#);
    let fitting = parsed(r#"{"a":["x",1],"b":{"k":{"c":[]}},"d":null}"#);
    assert!(fits(&wanted, &fitting));
    for (place, other) in [
        ("/a", json!(["x"])),
        ("/a/0", json!(1)),
        ("/a/1", json!("1")),
        ("/b", json!({})),
        ("/b/k", json!({ "c": 1, "more": 1 })),
        ("/d", json!(0)),
    ] {
        let mut answer = fitting.clone();
        *answer.pointer_mut(place).expect("it is there") = other;
        assert!(!fits(&wanted, &answer), "{place}");
    }
    assert!(!fits(&wanted, &parsed(r#"{"a":["x",1],"b":{"k":{"c":[]}},"d":null,"e":null}"#)));
    assert_eq!(bytes("\\x03\\xffa\\x00ä"), b"\x03\xffa\x00\xc3\xa4");
}
