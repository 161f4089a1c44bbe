//! A phone of the test's own, which comes back whenever its connection ends, and writes down all that it sees. It goes on by
//! cursor (key `since`), or it names a device and says nothing of where it was.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::support::{Stock, Version, binary};

/// Between two heartbeats, and after how long without an answer the connection is given up.
const BEAT: Duration = Duration::from_secs(2);
const DEAD: Duration = Duration::from_secs(8);
/// For a connection and its handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// Until a join has been answered.
const JOIN: Duration = Duration::from_secs(15);
/// Small, so that who does not read is soon noticed.
const RECEIVE_BUFFER: u32 = 32 * 1024;

/// How a phone finds its place again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It sends the last cursor that it had.
    Cursor,
    /// It names its device.
    Device,
    /// A stock client that names its device.
    Stock(Stock),
}

/// What a phone noticed.
#[derive(Debug, Clone)]
pub(super) enum Seen {
    /// It is about to ask for its channel.
    Joining,
    /// The join was answered, with this cursor.
    Joined(Option<String>),
    /// `Subscribed to PostgreSQL`.
    Subscribed,
    /// A change or a message: what no other has, and its cursor.
    Row(String, Option<String>),
    /// The row of `marks` with this note.
    Mark(String),
    /// A gap from, to; the reason.
    Gap(Option<String>, Option<String>, String),
    /// A cursor without a change.
    Reached,
    /// A Ping was answered.
    Receipt,
    /// Something that is no good news.
    Told(String),
    /// The connection is over.
    Ended(#[expect(dead_code, reason = "for who reads the last things of a stuck phone")] Option<u16>),
}

/// All that one phone noticed, in order.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) user: String,
    pub(super) kind: Kind,
    /// The private channel that it is a member of; else its channel is a public one, without messages.
    pub(super) room: Option<&'static str>,
    /// What it asks for.
    pub(super) tables: Vec<&'static str>,
    pub(super) seen: Vec<(Instant, Seen)>,
    /// All changes, kept or not.
    pub(super) rows: u64,
    /// Only the last things are kept.
    pub(super) forgetful: bool,
}

impl Record {
    pub(super) fn note(&mut self, seen: Seen) {
        self.rows += u64::from(matches!(seen, Seen::Row(..)));
        if self.forgetful && self.seen.len() >= 100 {
            self.seen.drain(..90);
        }
        self.seen.push((Instant::now(), seen));
    }

    /// The name of its channel.
    pub(super) fn topic(&self) -> &'static str {
        self.room.unwrap_or("room")
    }

    /// The last things, for a message.
    pub(super) fn tail(&self) -> String {
        let last: Vec<String> =
            self.seen.iter().rev().take(6).map(|(at, seen)| format!("{:.1?} ago {seen:?}", at.elapsed())).collect();
        format!("{} ({:?}): {}", self.name, self.kind, last.join("; "))
    }
}

/// What the test and its phones tell each other.
pub(super) struct Board {
    /// Marks that each phone has, by the phone's number.
    marks: Mutex<Vec<HashSet<String>>>,
    /// Phones whose number divided by this leaves nothing don't read; zero: all read.
    slow: watch::Sender<usize>,
    over: watch::Sender<bool>,
}

impl Board {
    pub(super) fn new() -> Arc<Board> {
        let (slow, _) = watch::channel(0);
        let (over, _) = watch::channel(false);
        Arc::new(Board { marks: Mutex::default(), slow, over })
    }

    /// So many more phones are to come.
    pub(super) fn expect_more(&self, phones: usize) {
        let mut marks = self.marks.lock().expect("nobody panicked");
        marks.extend(std::iter::repeat_n(HashSet::new(), phones));
    }

    pub(super) fn mark(&self, phone: usize, note: &str) {
        if note.len() < 40 {
            self.marks.lock().expect("nobody panicked")[phone].insert(note.to_owned());
        }
    }

    /// The phones that do not have this mark.
    pub(super) fn without(&self, note: &str) -> Vec<usize> {
        let marks = self.marks.lock().expect("nobody panicked");
        (0..marks.len()).filter(|phone| !marks[*phone].contains(note)).collect()
    }

    /// The phones that have had no mark yet.
    pub(super) fn without_any(&self) -> Vec<usize> {
        let marks = self.marks.lock().expect("nobody panicked");
        (0..marks.len()).filter(|phone| marks[*phone].is_empty()).collect()
    }

    pub(super) fn slow_down(&self, every: usize) {
        self.slow.send_replace(every);
    }

    pub(super) fn end(&self) {
        self.over.send_replace(true);
    }

    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Resolves at the end.
    pub(super) async fn over(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}

/// See the module's comment.
pub(super) struct Phone {
    pub(super) number: usize,
    pub(super) addr: SocketAddr,
    pub(super) token: String,
    pub(super) board: Arc<Board>,
    pub(super) record: Record,
    /// The last that it was given.
    pub(super) cursor: Option<String>,
}

type Socket = WebSocketStream<TcpStream>;

impl Phone {
    /// Until the board says that it is over.
    pub(super) async fn run(mut self) -> Record {
        let board = self.board.clone();
        while !board.is_over() {
            let code = tokio::select! {
                code = self.live() => code,
                () = board.over() => None,
            };
            self.record.note(Seen::Ended(code));
            let pause = rand::rng().random_range(20..250);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.record
    }

    /// One connection; the code that it was closed with.
    async fn live(&mut self) -> Option<u16> {
        let mut socket = timeout(CONNECT, self.connect()).await.ok()??;
        self.record.note(Seen::Joining);
        self.join(&mut socket).await.ok()?;
        let mut slow = self.board.slow.subscribe();
        let (mut beat, mut heard) = (tokio::time::interval(BEAT), Instant::now());
        // As realtime-js does it: another one only when the last has been answered.
        let mut unanswered = false;
        let joined_by = Instant::now() + JOIN;
        let mut joined = false;
        loop {
            let number = self.number;
            tokio::select! {
                message = async {
                    let _ = slow.wait_for(|every| *every == 0 || !number.is_multiple_of(*every)).await;
                    socket.next().await
                } => {
                    heard = Instant::now();
                    match message? {
                        Ok(Message::Text(text)) => {
                            unanswered &= !text.starts_with(r#"[null,"0","phoenix""#);
                            joined |= self.take(&text)?;
                        }
                        Ok(Message::Binary(bytes)) => self.message(&binary::parse(Version::V2, &bytes).payload),
                        // The answer is queued; now it goes out.
                        Ok(Message::Ping(_)) => {
                            socket.flush().await.ok()?;
                            self.record.note(Seen::Receipt);
                        }
                        Ok(Message::Close(frame)) => return frame.map(|frame| frame.code.into()),
                        Ok(_) => {}
                        Err(Error::Io(_) | Error::Protocol(_) | Error::ConnectionClosed) => return None,
                        Err(error) => {
                            self.record.note(Seen::Told(format!("the connection broke: {error}")));
                            return None;
                        }
                    }
                }
                _ = beat.tick() => {
                    let is_slow = { let every = *slow.borrow(); every != 0 && number.is_multiple_of(every) };
                    if is_slow { heard = Instant::now(); }
                    if heard.elapsed() > DEAD || (!joined && Instant::now() > joined_by) {
                        return None;
                    }
                    if !unanswered {
                        let beat = Message::text(r#"[null,"0","phoenix","heartbeat",{}]"#);
                        timeout(DEAD, socket.send(beat)).await.ok()?.ok()?;
                        unanswered = true;
                    }
                }
            }
        }
    }

    async fn connect(&self) -> Option<Socket> {
        let tcp = TcpSocket::new_v4().ok()?;
        tcp.set_recv_buffer_size(RECEIVE_BUFFER).ok()?;
        let line = tcp.connect(self.addr).await.ok()?;
        line.set_nodelay(true).ok()?;
        let device = match self.record.kind {
            Kind::Device => format!("&device={}", self.record.name),
            _ => String::new(),
        };
        let url = format!("ws://{}/realtime/v1/websocket?apikey={}&vsn=2.0.0{device}", self.addr, self.token);
        client_async(url, line).await.ok().map(|(socket, _)| socket)
    }

    async fn join(&mut self, socket: &mut Socket) -> Result<(), Error> {
        let since = self.cursor.as_ref().filter(|_| self.record.kind == Kind::Cursor);
        let entry = |table: &&str| {
            let mut entry = json!({ "event": "*", "schema": "public", "table": table });
            if let Some(since) = since {
                entry["since"] = json!(since);
            }
            entry
        };
        let entries: Value = self.record.tables.iter().map(entry).collect();
        let mut config = json!({ "postgres_changes": entries, "private": self.record.room.is_some() });
        if let Some(since) = since.filter(|_| self.record.room.is_some()) {
            config["broadcast"] = json!({ "replay": { "cursor": since } });
        }
        let payload = json!({ "config": config, "access_token": self.token });
        let topic = format!("realtime:{}", self.record.topic());
        socket.send(Message::text(json!(["1", "1", topic, "phx_join", payload]).to_string())).await
    }

    /// One frame; whether it says that changes flow. `None`: this connection is of no more use.
    fn take(&mut self, text: &str) -> Option<bool> {
        let frame: Value = serde_json::from_str(text).expect("JSON");
        let (event, payload) = (frame[3].as_str().expect("an event"), &frame[4]);
        let cursor = |value: &Value| value.as_str().map(str::to_owned);
        match event {
            "postgres_changes" => {
                let data = &payload["data"];
                let at = cursor(&data["cursor"]);
                if at.is_some() {
                    self.cursor.clone_from(&at);
                }
                if data["table"] == "marks" {
                    let note = data["record"]["note"].as_str().unwrap_or_default();
                    self.board.mark(self.number, note);
                    let note: String = note.chars().take(40).collect();
                    self.record.note(Seen::Mark(note));
                } else {
                    self.record.note(Seen::Row(key(data), at));
                }
            }
            "broadcast" => self.message(payload),
            "phx_reply" if frame[1] == "1" => {
                if payload["status"] != "ok" {
                    self.record.note(Seen::Told(format!("the join was answered {payload}")));
                    return None;
                }
                let at = cursor(&payload["response"]["cursor"]);
                // Only where it was is a place to go on from; where it is now is one if it has never been anywhere.
                self.cursor = self.cursor.take().or_else(|| at.clone());
                self.record.note(Seen::Joined(at));
            }
            "phx_reply" => {}
            "system" => return self.system(payload),
            other => {
                self.record.note(Seen::Told(format!("{other} {payload}")));
                return None;
            }
        }
        Some(false)
    }

    fn message(&mut self, message: &Value) {
        let at = message["meta"]["cursor"].as_str().map(str::to_owned);
        if at.is_some() {
            self.cursor.clone_from(&at);
        }
        self.record.note(Seen::Row(key_of_message(message), at));
    }

    fn system(&mut self, payload: &Value) -> Option<bool> {
        let cursor = |value: &Value| value.as_str().map(str::to_owned);
        let gap = &payload["gap"];
        if gap.is_object() {
            let message = payload["message"].as_str().unwrap_or_default();
            let reason = format!("{}: {message}", gap["reason"].as_str().unwrap_or_default());
            let (from, to) = (cursor(&gap["from"]), cursor(&gap["to"]));
            if to.is_some() {
                self.cursor.clone_from(&to);
            }
            self.record.note(Seen::Gap(from, to, reason));
        } else if payload["status"] != "ok" {
            self.record.note(Seen::Told(payload.to_string()));
            return None;
        } else if payload["message"] == "Subscribed to PostgreSQL" {
            // As an application does that keeps whatever it was told last.
            if let Some(at) = cursor(&payload["cursor"]) {
                self.cursor = Some(at);
            }
            self.record.note(Seen::Subscribed);
            return Some(true);
        } else if let Some(at) = cursor(&payload["cursor"]) {
            self.cursor = Some(at);
            self.record.note(Seen::Reached);
        }
        Some(false)
    }
}

/// What no other message has: the row's id, which `realtime.send()` puts into the payload too.
pub(super) fn key_of_message(message: &Value) -> String {
    format!("INSERT messages {} ", message["payload"]["id"].as_str().unwrap_or_default())
}

/// What no other change has.
pub(super) fn key(data: &Value) -> String {
    let kind = data["type"].as_str().unwrap_or_default();
    let row = if kind == "DELETE" { &data["old_record"] } else { &data["record"] };
    let rev = if kind == "DELETE" { String::new() } else { row["rev"].to_string() };
    format!("{kind} {} {} {rev}", data["table"].as_str().unwrap_or_default(), row["id"])
}
