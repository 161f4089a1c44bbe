//! `Phone`: a client of its own making that speaks both versions of the protocol, so that a mistake in the server's codec is not
//! repeated here. It checks what every frame must look like, whatever the test is about.
//!
//! Nothing waits without a deadline, and whoever waited in vain is told where and what came instead. Absence is proved by a
//! row of `marks` in a later transaction ([`Phone::changes_before`]), never by waiting.

use std::collections::{HashMap, VecDeque};
use std::panic::Location;
use std::time::Duration;

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::binary::{self, Binary};
use super::{Change, without_cursor};

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// JSON objects.
    V1,
    /// JSON arrays.
    V2,
}

/// A frame from the server, the same for both versions.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Null in version 1, which has none.
    pub(crate) join_ref: Value,
    pub(crate) reference: Value,
    pub(crate) topic: String,
    pub(crate) event: String,
    pub(crate) payload: Value,
    /// The whole frame as it came; of a binary one its event.
    pub(crate) text: String,
    /// Of a binary frame (kind 4). Then `payload` is what clients make of it, without the payload of its own if that is bytes.
    pub(crate) binary: Option<Binary>,
}

/// What a connection runs over.
pub(crate) trait Line: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Line for T {}

/// A connection.
pub(crate) struct Phone {
    /// Gone once the connection has ended.
    socket: Option<WebSocketStream<Box<dyn Line>>>,
    version: Version,
    token: String,
    next_ref: u64,
    /// The join_ref of each topic that was joined.
    joins: HashMap<String, String>,
    /// Read, and not asked for yet.
    inbox: VecDeque<Frame>,
    /// Of the close frame, if there was one.
    code: Option<u16>,
}

impl Phone {
    /// Connects to `<base>/websocket`, where `base` is such as `ws://127.0.0.1:4000/realtime/v1`.
    #[track_caller]
    pub(crate) fn connect(base: &str, token: &str, version: Version) -> impl Future<Output = Phone> + use<> {
        let at = Location::caller();
        let host = base.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).expect("ws://").to_owned();
        let (base, token) = (base.to_owned(), token.to_owned());
        async move {
            let line = tokio::time::timeout(PATIENCE, TcpStream::connect(host)).await;
            let line = line.unwrap_or_else(|_| panic!("at {at}: no connection within {PATIENCE:?}"));
            let line = line.unwrap_or_else(|error| panic!("at {at}: no connection: {error}"));
            Phone::over_at(Box::new(line), &base, (&token, None), version, at).await
        }
    }

    /// The same with a header.
    #[track_caller]
    pub(crate) fn connect_with<'a>(
        base: &'a str,
        token: &'a str,
        version: Version,
        header: (&'static str, &'a str),
    ) -> impl Future<Output = Phone> + 'a {
        let at = Location::caller();
        let host = base.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).expect("ws://");
        async move {
            let line = TcpStream::connect(host).await.unwrap_or_else(|error| panic!("at {at}: no connection: {error}"));
            Phone::over_at(Box::new(line), base, (token, Some(header)), version, at).await
        }
    }

    /// The same over a line of the test's own.
    #[track_caller]
    pub(crate) fn over(
        line: Box<dyn Line>,
        base: &str,
        token: &str,
        version: Version,
    ) -> impl Future<Output = Phone> + use<> {
        let at = Location::caller();
        let (base, token) = (base.to_owned(), token.to_owned());
        async move { Phone::over_at(line, &base, (&token, None), version, at).await }
    }

    async fn over_at(
        line: Box<dyn Line>,
        base: &str,
        (token, header): (&str, Option<(&'static str, &str)>),
        version: Version,
        at: &Location<'_>,
    ) -> Phone {
        let vsn = match version {
            Version::V1 => "1.0.0",
            Version::V2 => "2.0.0",
        };
        let url = format!("{base}/websocket?apikey={token}&vsn={vsn}");
        let mut request = url.into_client_request().expect("a good URL");
        if let Some((name, value)) = header {
            request.headers_mut().insert(name, value.parse().expect("a header's value"));
        }
        let token = token.to_owned();
        let connecting = tokio::time::timeout(PATIENCE, client_async(request, line));
        let connected = connecting.await.unwrap_or_else(|_| panic!("at {at}: no handshake within {PATIENCE:?}"));
        let (socket, _) = connected.unwrap_or_else(|error| panic!("at {at}: no handshake: {error}"));
        let (joins, inbox) = (HashMap::new(), VecDeque::new());
        Phone { socket: Some(socket), version, token, next_ref: 1, joins, inbox, code: None }
    }

    /// The token that joins send from now on.
    pub(crate) fn speak_as(&mut self, token: &str) {
        token.clone_into(&mut self.token);
    }

    /// Joins with these `postgres_changes` entries and waits until changes flow. Returns the entries' ids.
    #[track_caller]
    pub(crate) fn subscribe<'a>(
        &'a mut self,
        topic: &'a str,
        entries: &'a Value,
    ) -> impl Future<Output = Vec<i64>> + 'a {
        let at = Location::caller();
        async move {
            let reply = self.join_at(topic, entries, at).await;
            assert_eq!(reply["status"], "ok", "at {at}: {reply}");
            let ids = ids_of(&reply["response"]["postgres_changes"], entries, at);
            self.subscribed_at(topic, at).await;
            ids
        }
    }

    /// Joins, and returns the payload of the reply.
    #[track_caller]
    pub(crate) fn join<'a>(&'a mut self, topic: &'a str, entries: &'a Value) -> impl Future<Output = Value> + 'a {
        self.join_at(topic, entries, Location::caller())
    }

    /// Joins with a payload of the test's own.
    #[track_caller]
    pub(crate) fn join_with<'a>(&'a mut self, topic: &'a str, payload: Value) -> impl Future<Output = Value> + 'a {
        self.join_payload(topic, payload, Location::caller())
    }

    async fn join_at(&mut self, topic: &str, entries: &Value, at: &Location<'_>) -> Value {
        // What all SDKs send along.
        let config = json!({
            "broadcast": { "ack": false, "self": false }, "presence": { "key": "", "enabled": false },
            "private": false, "postgres_changes": entries,
        });
        let payload = json!({ "config": config, "access_token": self.token });
        self.join_payload(topic, payload, at).await
    }

    async fn join_payload(&mut self, topic: &str, payload: Value, at: &Location<'_>) -> Value {
        let reference = self.push_join(topic, payload).await;
        self.reply(&reference, at).await
    }

    /// Joins with a payload of the test's own, and waits for nothing; the frame's ref.
    pub(crate) async fn push_join(&mut self, topic: &str, payload: Value) -> String {
        let reference = self.next_ref.to_string();
        self.joins.insert(format!("realtime:{topic}"), reference.clone());
        self.push(topic, "phx_join", payload).await;
        reference
    }

    async fn reply(&mut self, reference: &str, at: &Location<'_>) -> Value {
        let mine = |frame: &Frame| frame.event == "phx_reply" && frame.reference == reference;
        self.wait("a reply", at, mine).await.payload
    }

    /// Waits for `Subscribed to PostgreSQL`.
    #[track_caller]
    pub(crate) fn subscribed<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = ()> + 'a {
        self.subscribed_at(topic, Location::caller())
    }

    async fn subscribed_at(&mut self, topic: &str, at: &Location<'_>) {
        let system = self.system_at(topic, at).await;
        let expected = json!({ "extension": "postgres_changes", "status": "ok", "message": "Subscribed to PostgreSQL",
                               "channel": topic });
        // After a new token there may be none.
        let system = if system.get("cursor").is_some() { without_cursor(system) } else { system };
        assert_eq!(system, expected, "at {at}");
    }

    /// The payload of the next `system` frame of this topic.
    #[track_caller]
    pub(crate) fn system<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = Value> + 'a {
        self.system_at(topic, Location::caller())
    }

    async fn system_at(&mut self, topic: &str, at: &Location<'_>) -> Value {
        let full = format!("realtime:{topic}");
        self.wait("a system frame", at, |frame| frame.event == "system" && frame.topic == full).await.payload
    }

    /// Waits for a `system` frame of this topic with this message; its payload.
    #[track_caller]
    pub(crate) fn wait_for_system<'a>(
        &'a mut self,
        topic: &'a str,
        message: &'a str,
    ) -> impl Future<Output = Value> + 'a {
        let at = Location::caller();
        async move {
            let full = format!("realtime:{topic}");
            let fits = |f: &Frame| f.event == "system" && f.topic == full && f.payload["message"] == message;
            self.wait(message, at, fits).await.payload
        }
    }

    /// The next change, of any topic.
    #[track_caller]
    pub(crate) fn next_change(&mut self) -> impl Future<Output = Change> + '_ {
        self.next_change_at(Location::caller())
    }

    async fn next_change_at(&mut self, at: &Location<'_>) -> Change {
        let frame = self.wait("a change", at, |frame| frame.event == "postgres_changes").await;
        let keys: Vec<&String> = frame.payload.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["data", "ids"], "at {at}");
        let ids: Vec<i64> = serde_json::from_value(frame.payload["ids"].clone()).expect("integers");
        assert!(!ids.is_empty(), "at {at}");
        let topic = frame.topic.strip_prefix("realtime:").expect("a topic of ours").to_owned();
        Change { topic, ids, data: frame.payload["data"].clone(), text: data_text(&frame.text, self.version) }
    }

    /// Everything received before the mark, which is taken too. The subscription has an entry for table `marks`.
    #[track_caller]
    pub(crate) fn changes_before<'a>(&'a mut self, mark: &'a str) -> impl Future<Output = Vec<Change>> + 'a {
        let at = Location::caller();
        async move {
            let mut changes = Vec::new();
            loop {
                let change = self.next_change_at(at).await;
                if change.is_mark(mark) {
                    return changes;
                }
                changes.push(change);
            }
        }
    }

    /// The mark is the next change.
    #[track_caller]
    pub(crate) fn expect_nothing_before<'a>(&'a mut self, mark: &'a str) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        let before = self.changes_before(mark);
        async move {
            let before = before.await;
            assert!(before.is_empty(), "at {at}: received {before:#?}");
        }
    }

    /// The changes that are here already, whatever may still come. Proves nothing about absence.
    pub(crate) fn changes_so_far(&mut self) -> Vec<Change> {
        while let Some(Some(frame)) = self.read().now_or_never() {
            self.inbox.push_back(frame);
        }
        let mut found = Vec::new();
        while self.inbox.iter().any(|frame| frame.event == "postgres_changes") {
            let change = self.next_change().now_or_never();
            found.push(change.expect("it is here"));
        }
        found
    }

    /// Waits for a round trip, so that every frame which the server queued before it is in the inbox.
    #[track_caller]
    pub(crate) fn heartbeat(&mut self) -> impl Future<Output = ()> + '_ {
        self.heartbeat_at(Location::caller())
    }

    async fn heartbeat_at(&mut self, at: &Location<'_>) {
        let reference = self.next_ref.to_string();
        self.send_frame(&Value::Null, "phoenix", "heartbeat", json!({})).await;
        let reply = self.reply(&reference, at).await;
        assert_eq!(reply, json!({ "status": "ok", "response": {} }), "at {at}");
    }

    /// Sends a token for a joined topic.
    pub(crate) async fn push_token(&mut self, topic: &str, token: &str) {
        self.push(topic, "access_token", json!({ "access_token": token })).await;
    }

    /// Leaves the topic and waits for the goodbye.
    #[track_caller]
    pub(crate) fn leave<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = ()> + 'a {
        let at = Location::caller();
        async move {
            let reference = self.next_ref.to_string();
            self.push(topic, "phx_leave", json!({})).await;
            let reply = self.reply(&reference, at).await;
            assert_eq!(reply, json!({ "status": "ok", "response": {} }), "at {at}");
            self.channel_closed_at(topic, at).await;
        }
    }

    /// Waits for `phx_close`, which carries the join_ref in both places.
    #[track_caller]
    pub(crate) fn channel_closed<'a>(&'a mut self, topic: &'a str) -> impl Future<Output = ()> + 'a {
        self.channel_closed_at(topic, Location::caller())
    }

    async fn channel_closed_at(&mut self, topic: &str, at: &Location<'_>) {
        let full = format!("realtime:{topic}");
        let frame = self.wait("phx_close", at, |frame| frame.event == "phx_close" && frame.topic == full).await;
        assert_eq!(frame.payload, json!({}), "at {at}");
        assert_eq!(frame.reference, self.joins[&full], "at {at}");
        if self.version == Version::V2 {
            assert_eq!(frame.join_ref, self.joins[&full], "at {at}");
        }
    }

    /// The frames of this topic that are in the inbox, taken out.
    pub(crate) fn frames_of(&mut self, topic: &str) -> Vec<Frame> {
        let full = format!("realtime:{topic}");
        let (of_topic, others) = self.inbox.drain(..).partition(|frame| frame.topic == full);
        self.inbox = others;
        of_topic.into()
    }

    /// Waits until the server has closed the connection; the code, unless it broke without one.
    #[track_caller]
    pub(crate) fn close_code(&mut self) -> impl Future<Output = Option<u16>> + '_ {
        let at = Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match timeout_at(deadline, self.read()).await {
                    Ok(Some(frame)) => self.inbox.push_back(frame),
                    Ok(None) => return self.code,
                    Err(_) => panic!("at {at}: still connected after {PATIENCE:?}"),
                }
            }
        }
    }

    /// Sends an event with the topic's join_ref.
    pub(crate) async fn push(&mut self, topic: &str, event: &str, payload: Value) {
        let full = format!("realtime:{topic}");
        let join_ref = self.joins.get(&full).map_or(Value::Null, |join_ref| json!(join_ref));
        self.send_frame(&join_ref, &full, event, payload).await;
    }

    async fn send_frame(&mut self, join_ref: &Value, topic: &str, event: &str, payload: Value) {
        let reference = self.next_ref.to_string();
        self.next_ref += 1;
        self.send_refs(join_ref, &json!(reference), topic, event, payload).await;
    }

    /// Sends an event with refs of the test's own, to a topic that is written in full.
    pub(crate) async fn send_as(&mut self, refs: (Value, Value), topic: &str, event: &str, payload: Value) {
        let (join_ref, reference) = refs;
        if event == "phx_join" {
            let known_by = if join_ref.is_null() { &reference } else { &join_ref };
            self.joins.insert(topic.to_owned(), known_by.as_str().unwrap_or_default().to_owned());
        }
        self.send_refs(&join_ref, &reference, topic, event, payload).await;
    }

    async fn send_refs(&mut self, join_ref: &Value, reference: &Value, topic: &str, event: &str, payload: Value) {
        let frame = match self.version {
            Version::V1 => json!({ "topic": topic, "event": event, "payload": payload, "ref": reference,
                                   "join_ref": join_ref }),
            Version::V2 => json!([join_ref, reference, topic, event, payload]),
        };
        self.send(Message::text(frame.to_string())).await;
    }

    /// Sends whatever it is.
    pub(crate) async fn send(&mut self, message: Message) {
        let socket = self.socket.as_mut().expect("a connection");
        socket.send(message).await.expect("the connection takes it");
    }

    /// The next frame of any kind.
    #[track_caller]
    pub(crate) fn next_frame(&mut self) -> impl Future<Output = Frame> + '_ {
        let at = Location::caller();
        async move { self.wait("a frame", at, |_| true).await }
    }

    /// The next broadcast, of any topic.
    #[track_caller]
    pub(crate) fn next_broadcast(&mut self) -> impl Future<Output = Frame> + '_ {
        let at = Location::caller();
        async move { self.wait("a broadcast", at, |frame| frame.event == "broadcast").await }
    }

    /// The next frame with this event of this topic.
    #[track_caller]
    pub(crate) fn next_of<'a>(&'a mut self, topic: &'a str, event: &'a str) -> impl Future<Output = Frame> + 'a {
        let at = Location::caller();
        async move {
            let full = format!("realtime:{topic}");
            self.wait(event, at, |frame| frame.event == event && frame.topic == full).await
        }
    }

    /// The reply to the push with this ref.
    #[track_caller]
    pub(crate) fn reply_to<'a>(&'a mut self, reference: &'a Value) -> impl Future<Output = Frame> + 'a {
        let at = Location::caller();
        async move { self.wait("a reply", at, |frame| frame.event == "phx_reply" && frame.reference == *reference).await }
    }

    /// All frames that the server queued before the answer to a heartbeat, those that nobody asked for yet included.
    #[track_caller]
    pub(crate) fn frames_so_far(&mut self) -> impl Future<Output = Vec<Frame>> + '_ {
        let at = Location::caller();
        async move {
            self.heartbeat_at(at).await;
            self.inbox.drain(..).collect()
        }
    }

    /// The first frame that fits, of those received or still to come.
    async fn wait(&mut self, what: &str, at: &Location<'_>, fits: impl Fn(&Frame) -> bool) -> Frame {
        if let Some(place) = self.inbox.iter().position(&fits) {
            return self.inbox.remove(place).expect("it is there");
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match timeout_at(deadline, self.read()).await {
                Ok(Some(frame)) if fits(&frame) => return frame,
                Ok(Some(frame)) => self.inbox.push_back(frame),
                Ok(None) => panic!("at {at}: the connection ended ({:?}) before {what}: {:#?}", self.code, self.inbox),
                Err(_) => panic!("at {at}: no {what} within {PATIENCE:?}, only {:#?}", self.inbox),
            }
        }
    }

    /// The next frame; `None` if the connection has ended. Dropping the future loses nothing.
    async fn read(&mut self) -> Option<Frame> {
        while let Some(socket) = &mut self.socket {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => return Some(self.parse(&text)),
                // The next call answers it, and then sees the end.
                Some(Ok(Message::Close(frame))) => self.code = frame.map(|frame| frame.code.into()),
                Some(Ok(Message::Binary(bytes))) => return Some(binary::parse(self.version, &bytes)),
                Some(Ok(_)) => {}
                Some(Err(Error::Io(_) | Error::Protocol(_) | Error::ConnectionClosed)) | None => self.socket = None,
                Some(Err(error)) => panic!("the connection broke: {error}"),
            }
        }
        None
    }

    fn parse(&self, text: &str) -> Frame {
        let parsed: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let string = |value: &Value| value.as_str().unwrap_or_else(|| panic!("no string: {text}")).to_owned();
        let frame = match (self.version, &parsed) {
            (Version::V1, Value::Object(object)) => {
                let keys: Vec<&String> = object.keys().collect();
                assert_eq!(keys, ["event", "payload", "ref", "topic"], "{text}");
                Frame {
                    join_ref: Value::Null,
                    reference: object["ref"].clone(),
                    topic: string(&object["topic"]),
                    event: string(&object["event"]),
                    payload: object["payload"].clone(),
                    text: text.to_owned(),
                    binary: None,
                }
            }
            (Version::V2, Value::Array(array)) if array.len() == 5 => Frame {
                join_ref: array[0].clone(),
                reference: array[1].clone(),
                topic: string(&array[2]),
                event: string(&array[3]),
                payload: array[4].clone(),
                text: text.to_owned(),
                binary: None,
            },
            _ => panic!("not a frame of {:?}: {text}", self.version),
        };
        self.check_refs(&frame, text);
        frame
    }

    /// Which frames carry which refs (`protocol.md` §2.4).
    fn check_refs(&self, frame: &Frame, text: &str) {
        // A broadcast carries what its sender sent.
        assert!(frame.payload.is_object() || frame.event == "broadcast", "{text}");
        match frame.event.as_str() {
            "presence_state" => {
                assert!(frame.reference.is_null(), "{text}");
                if self.version == Version::V2 {
                    assert_eq!(frame.join_ref, self.joins[&frame.topic], "{text}");
                }
            }
            "broadcast" => assert!(frame.reference.is_null(), "{text}"),
            "postgres_changes" | "presence_diff" => {
                assert_eq!((&frame.join_ref, &frame.reference), (&Value::Null, &Value::Null), "{text}")
            }
            "system" => {
                assert!(frame.reference.is_null(), "{text}");
                if self.version == Version::V2 {
                    assert_eq!(frame.join_ref, self.joins[&frame.topic], "{text}");
                }
            }
            _ => {}
        }
    }
}

/// `data` of a frame with a change, as it was sent.
fn data_text(frame: &str, version: Version) -> String {
    #[derive(serde::Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        data: &'a RawValue,
    }
    #[derive(serde::Deserialize)]
    struct Whole<'a> {
        #[serde(borrow)]
        payload: Payload<'a>,
    }
    let payload = match version {
        Version::V1 => serde_json::from_str::<Whole<'_>>(frame).map(|whole| whole.payload),
        Version::V2 => {
            let array: Vec<&RawValue> = serde_json::from_str(frame).expect("it was read before");
            serde_json::from_str(array[4].get())
        }
    };
    payload.expect("it was read before").data.get().to_owned()
}

/// The ids in a join reply, which repeats the entries in their order (`protocol.md` §3.1.4).
#[track_caller]
fn ids_of(answered: &Value, entries: &Value, at: &Location<'_>) -> Vec<i64> {
    let asked = entries.as_array().expect("a list of entries");
    let answered = answered.as_array().unwrap_or_else(|| panic!("at {at}: no entries in the reply"));
    assert_eq!(answered.len(), asked.len(), "at {at}");
    let id = |(answered, asked): (&Value, &Value)| {
        let mut rest = answered.as_object().expect("an object").clone();
        let id = rest.remove("id").and_then(|id| id.as_i64());
        let id = id.unwrap_or_else(|| panic!("at {at}: no integer id in {answered}"));
        assert_eq!(Value::Object(rest), *asked, "at {at}");
        assert!((1..=i64::from(i32::MAX)).contains(&id), "at {at}: {id}");
        id
    };
    answered.iter().zip(asked).map(id).collect()
}
