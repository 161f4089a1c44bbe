//! The smallest client that speaks the protocol: connects, joins one channel, hands out the changes it receives.
//!
//! Written for the demonstration, on purpose without anything of the server's own codec: what it proves is the wire.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{DemoUser, DevError};

const TOPIC: &str = "realtime:session_events";
/// The server drops sockets that are silent for longer than about a minute; SDKs beat every 25 s.
const HEARTBEAT: Duration = Duration::from_secs(25);

/// One subscribed client.
pub(super) struct Phone {
    who: &'static str,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// Changes that came while something else was waited for.
    waiting: VecDeque<Received>,
    next_ref: u64,
    last_sent: Instant,
}

/// A change, as it arrived.
pub(super) struct Received {
    /// When its frame was read.
    pub(super) at: Instant,
    /// `data` of the frame.
    pub(super) data: Value,
}

impl Phone {
    /// Connects and subscribes to `session_events`; returns once the server says that changes flow.
    pub(super) async fn subscribe(base_url: &str, user: &DemoUser, limit: Duration) -> Result<Phone, DevError> {
        let who = user.name;
        let joining = Phone::join(base_url, user);
        match tokio::time::timeout(limit, joining).await {
            Ok(joined) => joined.map_err(|what| DevError::Phone { who, what }),
            Err(_) => Err(DevError::Phone { who, what: format!("not subscribed within {limit:?}") }),
        }
    }

    async fn join(base_url: &str, user: &DemoUser) -> Result<Phone, String> {
        let base = base_url.replacen("http", "ws", 1);
        let url = format!("{}/realtime/v1/websocket?apikey={}&vsn=2.0.0", base.trim_end_matches('/'), user.token);
        // The error's text may hold the URL and with it the token, so only its kind is told.
        let connected = connect_async(url.as_str()).await;
        let (socket, _) = connected.map_err(|error| match error {
            tokio_tungstenite::tungstenite::Error::Http(answer) => format!("refused with {}", answer.status()),
            tokio_tungstenite::tungstenite::Error::Io(error) => format!("cannot connect: {error}"),
            _ => "the handshake failed".to_owned(),
        })?;
        let (waiting, last_sent) = (VecDeque::new(), Instant::now());
        let mut phone = Phone { who: user.name, socket, waiting, next_ref: 1, last_sent };
        let config = json!({
            "config": { "postgres_changes": [{ "event": "*", "schema": "public", "table": "session_events" }] },
            "access_token": user.token,
        });
        phone.send(Some("1"), TOPIC, "phx_join", &config).await?;
        loop {
            let (topic, event, payload) = phone.read().await?;
            match (topic.as_str(), event.as_str()) {
                (TOPIC, "phx_reply") if payload["status"] != "ok" => {
                    return Err(format!("the join was refused: {}", payload["response"]["reason"]));
                }
                (TOPIC, "system") if payload["extension"] == "postgres_changes" => {
                    if payload["status"] == "ok" {
                        return Ok(phone);
                    }
                    return Err(format!("the subscription was refused: {}", payload["message"]));
                }
                _ => phone.keep(&event, payload),
            }
        }
    }

    /// The next change within the limit; `None` if there was none.
    pub(super) async fn next(&mut self, limit: Duration) -> Result<Option<Received>, DevError> {
        let who = self.who;
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(Some(change));
            }
            let beat = tokio::time::Instant::from_std(self.last_sent + HEARTBEAT);
            let failed = |what| DevError::Phone { who, what };
            tokio::select! {
                read = self.read() => {
                    let (_, event, payload) = read.map_err(failed)?;
                    self.keep(&event, payload);
                }
                () = tokio::time::sleep_until(beat) => {
                    self.send(None, "phoenix", "heartbeat", &json!({})).await.map_err(failed)?;
                }
                () = tokio::time::sleep_until(deadline) => return Ok(None),
            }
        }
    }

    /// Says goodbye; whether the server hears it doesn't matter.
    pub(super) async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.socket.close(None)).await;
    }

    fn keep(&mut self, event: &str, mut payload: Value) {
        if event == "postgres_changes" {
            self.waiting.push_back(Received { at: Instant::now(), data: payload["data"].take() });
        }
    }

    async fn send(&mut self, join: Option<&str>, topic: &str, event: &str, payload: &Value) -> Result<(), String> {
        let reference = self.next_ref.to_string();
        self.next_ref += 1;
        self.last_sent = Instant::now();
        let frame = json!([join, reference, topic, event, payload]).to_string();
        self.socket.send(Message::text(frame)).await.map_err(|error| format!("cannot send: {error}"))
    }

    /// Topic, event and payload of the next text frame. Dropping the future loses nothing: a frame is taken whole.
    async fn read(&mut self) -> Result<(String, String, Value), String> {
        loop {
            let frame = self.socket.next().await.ok_or("the connection ended")?;
            match frame.map_err(|error| format!("the connection broke: {error}"))? {
                Message::Text(text) => {
                    let parsed = serde_json::from_str::<(Value, Value, String, String, Value)>(&text);
                    let (_, _, topic, event, payload) = parsed.map_err(|_| "not a frame of version 2".to_owned())?;
                    return Ok((topic, event, payload));
                }
                Message::Close(frame) => {
                    let code = frame.map_or_else(|| "no code".to_owned(), |frame| frame.code.to_string());
                    return Err(format!("the server closed the connection ({code})"));
                }
                _ => {}
            }
        }
    }
}
