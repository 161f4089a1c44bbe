//! One WebSocket, from the handshake to its end: join, heartbeats, changes.
//!
//! The join asks for a reply that is held until its changes are active (`postgres_changes_options.wait`), and the `system`
//! frame that says so is waited for too: an older server knows the frame alone.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use super::address::Stream;
use super::{Asked, ClientError};

/// The server drops sockets that are silent for longer than about a minute; SDKs beat every 25 s.
const HEARTBEAT: Duration = Duration::from_secs(25);
/// For one frame to be taken by the system.
const SEND: Duration = Duration::from_secs(10);
/// How long the server may hold the join reply, in milliseconds.
const HOLD_MILLIS: u64 = 10_000;

/// A change, as it arrived.
#[derive(Debug)]
pub struct Change {
    /// When its frame was read.
    pub at: std::time::Instant,
    /// `data` of the frame, byte for byte.
    pub data: Box<RawValue>,
}

impl Change {
    /// Its place: with this for [`Asked::since`], what comes after it is got. `None` from a server that has none.
    pub fn cursor(&self) -> Option<String> {
        serde_json::from_str::<Placed>(self.data.get()).ok()?.cursor
    }
}

#[derive(Deserialize)]
struct Placed {
    cursor: Option<String>,
}

/// A `system` frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Whether its status is `ok`.
    pub ok: bool,
    /// The message.
    pub text: String,
    /// Everything before this place is behind the client, or lost to it.
    pub cursor: Option<String>,
}

/// What comes on a subscribed channel.
#[derive(Debug)]
pub enum Message {
    /// A change.
    Change(Change),
    /// The server has something to say.
    Notice(Notice),
}

/// A subscribed connection.
pub struct Connection {
    socket: WebSocketStream<Box<dyn Stream>>,
    topic: String,
    wanted: String,
    /// Where its changes begin.
    begins: Option<String>,
    /// What came while something else was waited for.
    waiting: VecDeque<Message>,
    next_ref: u64,
    last_sent: Instant,
    last_received: Instant,
    /// [`HEARTBEAT`], but in tests.
    pub(super) heartbeat: Duration,
    /// The last `system` error of the channel itself, which says why it is closed next.
    reason: Option<String>,
}

struct Received {
    topic: String,
    event: String,
    payload: Box<RawValue>,
}

impl Connection {
    /// Connects and subscribes; returns once the server says that changes flow.
    pub async fn open(asked: &Asked, limit: Duration) -> Result<Connection, ClientError> {
        let opening = Box::pin(async {
            let mut connection = Connection::connect(asked).await?;
            connection.join(asked).await?;
            Ok(connection)
        });
        tokio::time::timeout(limit, opening).await.unwrap_or(Err(ClientError::Timeout(limit)))
    }

    async fn connect(asked: &Asked) -> Result<Connection, ClientError> {
        let stream = asked.address.connect().await?;
        let request = asked.address.request(&asked.key);
        let (socket, _) =
            tokio_tungstenite::client_async(request, stream).await.map_err(|error| handshake_failed(&error))?;
        let now = Instant::now();
        Ok(Connection {
            socket,
            topic: format!("realtime:{}", asked.channel),
            wanted: asked.wanted.to_string(),
            begins: None,
            waiting: VecDeque::new(),
            next_ref: 1,
            last_sent: now,
            last_received: now,
            heartbeat: HEARTBEAT,
            reason: None,
        })
    }

    async fn join(&mut self, asked: &Asked) -> Result<(), ClientError> {
        let mut payload = json!({ "config": {
            "postgres_changes": [asked.wanted.entry(asked.since.as_deref())],
            "postgres_changes_options": { "wait": true, "timeout": HOLD_MILLIS },
        } });
        if let Some(token) = &asked.token {
            payload["access_token"] = json!(token);
        }
        let topic = self.topic.clone();
        self.send(Some("1"), &topic, "phx_join", &payload).await?;
        let mut replied = false;
        loop {
            let received = self.read().await?;
            match self.understand(&received)? {
                Some(Understood::Joined(cursor)) => {
                    replied = true;
                    self.begins = cursor;
                }
                Some(Understood::Subscribed(cursor)) if replied => {
                    self.begins = cursor.or(self.begins.take());
                    return Ok(());
                }
                Some(Understood::Message(Message::Notice(notice))) if !notice.ok && notice.cursor.is_none() => {
                    return Err(self.subscription_refused(notice.text));
                }
                Some(Understood::Message(message)) => self.waiting.push_back(message),
                _ => {}
            }
        }
    }

    /// The place after which everything comes; `None` from a server that tells none.
    pub fn begins(&self) -> Option<&str> {
        self.begins.as_deref()
    }

    /// The next thing that comes; an error ends the connection. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Ok(message);
            }
            // Before anything is read, or a flood of changes would keep the server from hearing of us.
            let beat = self.last_sent + self.heartbeat;
            if Instant::now() >= beat {
                self.send(None, "phoenix", "heartbeat", &json!({})).await?;
                continue;
            }
            let silence = self.last_received + 2 * self.heartbeat;
            tokio::select! {
                // What is there is read first: nobody may have looked for longer than silence is borne.
                biased;
                received = self.read() => {
                    let received = received?;
                    match self.understand(&received)? {
                        Some(Understood::Message(message)) => return Ok(message),
                        Some(Understood::Subscribed(_) | Understood::Joined(_)) | None => {}
                    }
                }
                () = tokio::time::sleep_until(silence) => {
                    return Err(ClientError::Ended(format!("nothing heard for {:?}", 2 * self.heartbeat)));
                }
                () = tokio::time::sleep_until(beat) => {}
            }
        }
    }

    /// Says goodbye; whether the server hears it doesn't matter.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.socket.close(None)).await;
    }

    fn understand(&mut self, received: &Received) -> Result<Option<Understood>, ClientError> {
        if received.topic != self.topic {
            return Ok(None);
        }
        let payload = received.payload.get();
        match &*received.event {
            "postgres_changes" => {
                let body: ChangeBody = parse(payload)?;
                let change = Change { at: std::time::Instant::now(), data: body.data };
                Ok(Some(Understood::Message(Message::Change(change))))
            }
            "phx_reply" => {
                let reply: Value = parse(payload)?;
                if reply["status"] == "ok" {
                    let cursor = reply["response"]["cursor"].as_str().map(str::to_owned);
                    return Ok(Some(Understood::Joined(cursor)));
                }
                let reason = reply["response"]["reason"].as_str().unwrap_or("no reason given");
                Err(self.join_refused(reason))
            }
            "system" => {
                let system: System = parse(payload)?;
                let ok = system.status == "ok";
                if system.extension == "postgres_changes" {
                    if ok && system.message == "Subscribed to PostgreSQL" {
                        return Ok(Some(Understood::Subscribed(system.cursor)));
                    }
                    // The relay has given this subscription up for good.
                    if system.message.starts_with("Subscription ended:") {
                        return Err(self.subscription_refused(system.message));
                    }
                } else if !ok {
                    self.reason = Some(system.message);
                    return Ok(None);
                }
                let cursor = system.cursor.or_else(|| system.gap.map(|gap| gap.to));
                Ok(Some(Understood::Message(Message::Notice(Notice { ok, text: system.message, cursor }))))
            }
            "phx_close" | "phx_error" => {
                let why = self.reason.take().map(|reason| format!(": {reason}")).unwrap_or_default();
                Err(ClientError::Ended(format!("the relay closed the channel{why}")))
            }
            _ => Ok(None),
        }
    }

    fn subscription_refused(&self, text: String) -> ClientError {
        ClientError::Refused { wanted: self.wanted.clone(), text }
    }

    /// By the codes of `protocol.md` §16.
    fn join_refused(&self, reason: &str) -> ClientError {
        let (code, text) = reason.split_once(": ").unwrap_or(("", reason));
        match code {
            "MalformedJWT" | "JwtSignatureError" | "JwtSignerError" | "InvalidJWTToken" => {
                ClientError::Token(text.to_owned())
            }
            "RealtimeRestarting"
            | "PostgresChangesSubscribeTimeout"
            | "ClientJoinRateLimitReached"
            | "ConnectionRateLimitReached"
            | "UnableToConnectToProject"
            | "InitializingProjectConnection"
            | "DatabaseLackOfConnections"
            | "IncreaseConnectionPool" => ClientError::NotReady(text.to_owned()),
            "RealtimeDisabledForConfiguration" => self.subscription_refused(text.to_owned()),
            _ => self.subscription_refused(reason.to_owned()),
        }
    }

    async fn send(&mut self, join: Option<&str>, topic: &str, event: &str, payload: &Value) -> Result<(), ClientError> {
        let reference = self.next_ref.to_string();
        self.next_ref += 1;
        self.last_sent = Instant::now();
        let frame = json!([join, reference, topic, event, payload]).to_string();
        match tokio::time::timeout(SEND, self.socket.send(Frame::text(frame))).await {
            Ok(sent) => sent.map_err(|error| broke(&error)),
            Err(_) => Err(ClientError::Ended(format!("nothing could be sent for {SEND:?}"))),
        }
    }

    /// The next text frame. Dropping the future loses nothing: a frame is taken whole.
    async fn read(&mut self) -> Result<Received, ClientError> {
        loop {
            let frame = self.socket.next().await.ok_or_else(|| ClientError::Ended("the connection ended".into()))?;
            self.last_received = Instant::now();
            match frame.map_err(|error| broke(&error))? {
                Frame::Text(text) => {
                    let (_, _, topic, event, payload): (IgnoredAny, IgnoredAny, String, String, Box<RawValue>) =
                        parse(&text)?;
                    return Ok(Received { topic, event, payload });
                }
                Frame::Close(frame) => {
                    let why = frame.map(|frame| closed(frame.code, &frame.reason)).unwrap_or_default();
                    return Err(ClientError::Ended(format!("the relay closed the connection{why}")));
                }
                _ => {}
            }
        }
    }
}

enum Understood {
    /// And where its changes begin, if that is known.
    Joined(Option<String>),
    Subscribed(Option<String>),
    Message(Message),
}

#[derive(Deserialize)]
struct ChangeBody {
    data: Box<RawValue>,
}

#[derive(Deserialize)]
struct System {
    #[serde(default)]
    extension: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
    cursor: Option<String>,
    gap: Option<Gap>,
}

#[derive(Deserialize)]
struct Gap {
    to: String,
}

/// Our text for what can't be read: the library's might quote a row.
fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, ClientError> {
    serde_json::from_str(text).map_err(|_| ClientError::Ended("the server sent what no relay sends".into()))
}

fn closed(code: CloseCode, reason: &str) -> String {
    let code = u16::from(code);
    if reason.is_empty() { format!(" ({code})") } else { format!(" ({code}: {reason})") }
}

/// The texts of some of the library's errors hold the request and with it the key, so only what is known is told.
fn broke(error: &tungstenite::Error) -> ClientError {
    ClientError::Ended(match error {
        tungstenite::Error::Io(error) => format!("the connection broke: {error}"),
        tungstenite::Error::Protocol(error) => format!("the connection broke: {error}"),
        tungstenite::Error::Capacity(_) => "the server sent a message that is too large".into(),
        _ => "the connection broke".into(),
    })
}

fn handshake_failed(error: &tungstenite::Error) -> ClientError {
    match error {
        tungstenite::Error::Http(answer) => {
            let status = answer.status();
            let body = answer.body().as_deref().unwrap_or_default();
            let told =
                serde_json::from_slice::<Value>(body).ok().and_then(|body| Some(body["error"].as_str()?.to_owned()));
            match status.as_u16() {
                401 => ClientError::Token(told.unwrap_or_else(|| status.to_string())),
                408 | 425 | 429 | 500..=599 => ClientError::NotReady(told.unwrap_or_else(|| status.to_string())),
                _ => ClientError::NotRelay(format!("it answered {status}")),
            }
        }
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::HttparseError(_))
        | tungstenite::Error::HttpFormat(_) => ClientError::NotRelay("it does not speak HTTP".into()),
        tungstenite::Error::Protocol(
            tungstenite::error::ProtocolError::HandshakeIncomplete
            | tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => ClientError::Ended("the connection ended during the handshake".into()),
        tungstenite::Error::Protocol(error) => ClientError::NotRelay(error.to_string()),
        error => broke(error),
    }
}
