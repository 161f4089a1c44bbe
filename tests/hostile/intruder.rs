//! A client that says whatever it likes, down to single bytes.

use std::net::SocketAddr;

use futures_util::{SinkExt as _, StreamExt as _};
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support::phone::PATIENCE;
use crate::support::token::{self, BOB};

/// What it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    V1,
    V2,
    Topics,
}

pub(super) const DOORS: [Door; 3] = [Door::V1, Door::V2, Door::Topics];

pub(super) struct Intruder {
    socket: WebSocketStream<TcpStream>,
    door: Door,
    beats: u64,
}

impl Intruder {
    /// Comes in as a user like any other.
    pub(super) async fn connect(addr: SocketAddr, door: Door) -> Intruder {
        let token = token::user(BOB);
        let url = match door {
            Door::V1 => format!("ws://{addr}/realtime/v1/websocket?apikey={token}&vsn=1.0.0"),
            Door::V2 => format!("ws://{addr}/realtime/v1/websocket?apikey={token}&vsn=2.0.0"),
            Door::Topics => format!("ws://{addr}/api/ws?token={token}"),
        };
        let connecting = async {
            let line = TcpStream::connect(addr).await.expect("a connection");
            client_async(url, line).await.expect("a handshake").0
        };
        let socket = timeout(PATIENCE, connecting).await.expect("a handshake in time");
        Intruder { socket, door, beats: 0 }
    }

    /// Sends; a server that has hung up takes nothing, which [`Intruder::end`] shows.
    pub(super) async fn send(&mut self, message: Message) {
        let sent = timeout(PATIENCE, self.socket.send(message)).await;
        let _ = sent.expect("taken, or refused");
    }

    pub(super) async fn text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    /// A message as a client of this door writes it. `payload`: JSON text, or what is sent for it.
    pub(super) async fn push(&mut self, refs: (&str, &str), topic: &str, event: &str, payload: &str) {
        let ((join_ref, reference), topic) = (refs, Value::from(topic));
        let text = match self.door {
            Door::V1 => format!(
                r#"{{"topic":{topic},"event":"{event}","payload":{payload},"ref":{reference},"join_ref":{join_ref}}}"#
            ),
            _ => format!(r#"[{join_ref},{reference},{topic},"{event}",{payload}]"#),
        };
        self.text(text).await;
    }

    /// A part of a message; the first one is text, the others go on with it.
    pub(super) async fn fragment(&mut self, part: &[u8], first: bool, last: bool) {
        let opcode = OpCode::Data(if first { Data::Text } else { Data::Continue });
        self.send(Message::Frame(Frame::message(part.to_vec(), opcode, last))).await;
    }

    /// Bytes as they are.
    pub(super) async fn bytes(&mut self, bytes: &[u8]) {
        let writing = async {
            let line = self.socket.get_mut();
            let _ = line.write_all(bytes).await;
            let _ = line.flush().await;
        };
        timeout(PATIENCE, writing).await.expect("taken, or refused");
    }

    /// A heartbeat is answered; whatever came before.
    pub(super) async fn alive(&mut self) -> Vec<Message> {
        self.beats += 1;
        let name = format!("\"beat {}\"", self.beats);
        match self.door {
            Door::Topics => self.text(format!(r#"{{"type":"ping","ref":{name}}}"#)).await,
            _ => self.push(("null", &name), "phoenix", "heartbeat", "{}").await,
        }
        let mut before = Vec::new();
        let reading = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) if text.contains(&name) => return,
                    Some(Ok(message)) => before.push(message),
                    ended => panic!("{ended:?} after {before:.200?}"),
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("an answer in time");
        before
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Message {
        let message = timeout(PATIENCE, self.socket.next()).await.expect("a message in time");
        message.expect("it is connected").expect("a message")
    }

    /// The JSON texts among what came before the answer to a heartbeat.
    pub(super) async fn answers(&mut self) -> Vec<Value> {
        let texts = self.alive().await.into_iter().filter_map(|message| match message {
            Message::Text(text) => Some(serde_json::from_str(&text).unwrap_or_else(|_| {
                // JSON, if only with a number or a depth that no tree can have.
                serde_json::from_str::<IgnoredAny>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                Value::Null
            })),
            _ => None,
        });
        texts.collect()
    }

    /// Reads until the server has hung up; the code it gave, and what came before.
    pub(super) async fn end(&mut self) -> (Option<u16>, Vec<Message>) {
        let (mut code, mut before) = (None, Vec::new());
        let reading = async {
            while let Some(Ok(message)) = self.socket.next().await {
                match message {
                    Message::Close(frame) => code = frame.map(|frame| frame.code.into()),
                    message => before.push(message),
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("an end in time");
        (code, before)
    }
}

/// Writes to a connection of its own and reads until the relay has hung up; what it said.
pub(super) async fn say(addr: SocketAddr, bytes: &[u8]) -> String {
    let saying = async {
        let mut line = TcpStream::connect(addr).await.expect("a connection");
        // It may have been refused half-way.
        let _ = line.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = line.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    timeout(PATIENCE, saying).await.expect("an end in time")
}

/// JSON that is so deep, open or closed.
pub(super) fn deep(levels: usize, object: bool, closed: bool) -> String {
    let (open, shut) = if object { (r#"{"a":"#, "}") } else { ("[", "]") };
    let inner = if object { "1" } else { "" };
    let end = if closed { shut.repeat(levels) } else { String::new() };
    [open.repeat(levels), inner.to_owned(), end].concat()
}
