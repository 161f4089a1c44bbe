//! Many subscribers in one process: the client side of the load tests, apart from the relay and from the writer.
//!
//! Reads one line of JSON (see [`Order`]) from standard input, opens a WebSocket per user, joins one channel each with one
//! unfiltered `postgres_changes` entry, and prints one line when all are subscribed and one when it ends:
//!
//! ```text
//! {"ready":1050,"seconds":0.8}
//! {"phones":[{"user":"…","rows":[[7,1754041200123456],…]},…],"faults":[],"latency_micros":{"p50":…,"p99":…,"max":…}}
//! ```
//!
//! The table looks like the example `notifications`: `id` grows in commit order, `user_id` is the owner, `body` begins with
//! the wall clock of the writer in microseconds, and the row whose `kind` is `last` is the user's last one: his phone hangs
//! up after it, so that what didn't come before it is proved absent, not waited for. The process ends when all have hung up,
//! or at the end of its input, or at the deadline.
//!
//! With `"resume":true` a phone whose connection ends, or is refused, comes back with its last cursor; a further line `cut` on
//! the standard input drops all connections, and after a line `back` all connect again, which is told by
//!
//! ```text
//! {"back":1050,"seconds":1.2}
//! ```
//!
//! Checked as rows arrive: they are the user's own, inserts, each once, in the order of `id`. What is missing only the
//! writer knows.
//!
//! `cargo build --release --example phones`, then `target/release/examples/phones < order.json`.

use std::borrow::Cow;
use std::io::{BufRead as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rowcast::clock::Clock;
use rowcast::dev::mint_token;
use rowcast::task::{Connections, Drain};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, json};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

const TOPIC: &str = "realtime:load";
/// As the SDKs do.
const HEARTBEAT: Duration = Duration::from_secs(25);
/// Handshakes and joins under way at a time, of each thread.
const JOINING: usize = 32;
/// The same when all come back, which nobody arranges for them.
const COMING_BACK: usize = 1024;
/// All come back within this; and who was refused tries again within twice this.
const COMES_BACK: Duration = Duration::from_secs(1);
/// Only the first so many faults are told in full.
const FAULTS: usize = 20;

/// What to do.
#[derive(Deserialize)]
struct Order {
    /// `host:port` of the relay.
    address: String,
    /// `JWT_SECRET` of the relay; tokens are minted here.
    secret: String,
    /// In schema `public`.
    table: String,
    /// One phone each.
    users: Vec<String>,
    #[serde(default = "two")]
    threads: usize,
    #[serde(default)]
    resume: bool,
    /// From the start to the end of the process.
    deadline_seconds: u64,
}

fn two() -> usize {
    2
}

/// One phone's record.
#[derive(Serialize)]
struct Record {
    user: String,
    /// Whether its last row came.
    complete: bool,
    /// `id`, and when its frame was read: microseconds since 1970.
    rows: Vec<(i64, i64)>,
    #[serde(skip)]
    latencies: Vec<i64>,
    #[serde(skip)]
    faults: Vec<String>,
}

enum Event {
    Subscribed,
    Back,
    Ended(Record),
}

#[derive(Serialize)]
struct Percentiles {
    p50: i64,
    p99: i64,
    max: i64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let order: Arc<Order> = Arc::new(serde_json::from_str(&line)?);
    let count = order.users.len();
    if limit < count as u64 + 64 {
        return Err(format!("{count} phones need more than {limit} open files; raise the limit: ulimit -Hn").into());
    }
    let started = Instant::now();
    let deadline = started + Duration::from_secs(order.deadline_seconds);
    let drain = Drain::new();
    let (outage, cut) = watch::channel(false);
    let back_at = Arc::new(Mutex::new(started));
    follow_the_input(drain.clone(), outage, back_at.clone());
    // Room for the events of every phone: as good as none ever waits for this channel.
    let (events, reports) = sync_channel(4 * count);
    for number in 0..order.threads {
        let (order, drain, events, cut) = (order.clone(), drain.clone(), events.clone(), cut.clone());
        thread::Builder::new()
            .name(format!("phones-{number}"))
            .spawn(move || run_share(number, &order, &drain, &events, &cut))?;
    }
    drop(events);
    let (mut subscribed, mut back) = (0, 0);
    let mut records = Vec::with_capacity(count);
    loop {
        let rest = match drain.is_draining() {
            true => Duration::MAX,
            false => deadline.saturating_duration_since(Instant::now()),
        };
        match reports.recv_timeout(rest) {
            Ok(Event::Subscribed) => {
                subscribed += 1;
                if subscribed == count {
                    say(&json!({ "ready": count, "seconds": started.elapsed().as_secs_f64() }))?;
                }
            }
            Ok(Event::Back) => {
                back += 1;
                if back == count {
                    back = 0;
                    let at = *back_at.lock().unwrap_or_else(PoisonError::into_inner);
                    say(&json!({ "back": count, "seconds": at.elapsed().as_secs_f64() }))?;
                }
            }
            Ok(Event::Ended(record)) => records.push(record),
            Err(RecvTimeoutError::Timeout) => drain.drain(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    summarise(&order, records)
}

fn follow_the_input(drain: Drain, outage: watch::Sender<bool>, back_at: Arc<Mutex<Instant>>) {
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let cut = line.trim() == "cut";
            if !cut {
                *back_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
            outage.send_replace(cut);
        }
        drain.drain();
    });
}

/// One thread: every so-many-th user.
fn run_share(
    number: usize,
    order: &Arc<Order>,
    drain: &Drain,
    events: &SyncSender<Event>,
    cut: &watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let phones = Connections::default();
        let joining = Arc::new([Semaphore::new(JOINING), Semaphore::new(COMING_BACK)]);
        for user in order.users.iter().skip(number).step_by(order.threads) {
            let rows = Vec::with_capacity(64);
            let record =
                Record { user: user.clone(), complete: false, rows, latencies: Vec::new(), faults: Vec::new() };
            let (order, events, cut, cursor) = (order.clone(), events.clone(), cut.clone(), None);
            let phone = Phone { order, clock: Clock::system(), events, cut, cursor, record };
            phones.spawn("phone", phone.run(joining.clone(), drain.clone()));
        }
        phones.join(Duration::MAX).await;
    });
}

struct Phone {
    order: Arc<Order>,
    clock: Clock,
    events: SyncSender<Event>,
    /// There is no network at present.
    cut: watch::Receiver<bool>,
    /// Everything up to here has come.
    cursor: Option<String>,
    record: Record,
}

type Socket = WebSocketStream<TcpStream>;

/// `[join_ref, ref, topic, event, payload]`.
#[derive(Deserialize)]
struct Frame<'a>(IgnoredAny, IgnoredAny, IgnoredAny, #[serde(borrow)] Cow<'a, str>, #[serde(borrow)] &'a RawValue);

#[derive(Deserialize)]
struct Changes<'a> {
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(rename = "type", borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    record: Row<'a>,
    cursor: Option<String>,
}

#[derive(Deserialize)]
struct Row<'a> {
    id: i64,
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    body: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Notice<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    extension: Option<&'a str>,
    message: Option<String>,
    gap: Option<IgnoredAny>,
    cursor: Option<String>,
    response: Option<Joined>,
}

#[derive(Deserialize)]
struct Joined {
    cursor: Option<String>,
}

impl Phone {
    async fn run(mut self, joining: Arc<[Semaphore; 2]>, drain: Drain) {
        let ended = tokio::select! {
            ended = self.live_on(&joining) => ended,
            () = drain.draining() => Err("its last row had not come when the process was told to end".to_owned()),
        };
        match ended {
            Ok(()) => self.record.complete = true,
            Err(fault) => self.record.faults.push(fault),
        }
        let _ = self.events.send(Event::Ended(self.record));
    }

    /// Until the last row, over as many connections as it takes.
    async fn live_on(&mut self, [first, again]: &[Semaphore; 2]) -> Result<(), String> {
        let mut subscribed = false;
        let mut joining = first;
        loop {
            let mut cut = self.cut.clone();
            let was_cut = tokio::select! {
                ended = self.live(joining, &mut subscribed) => match ended {
                    Err(_) if self.order.resume && self.record.faults.is_empty() => false,
                    ended => return ended,
                },
                _ = cut.wait_for(|cut| *cut) => true,
            };
            if was_cut && cut.wait_for(|cut| !*cut).await.is_err() {
                return Err("the order to come back never came".to_owned());
            }
            let most = if was_cut { COMES_BACK } else { 2 * COMES_BACK };
            tokio::time::sleep(most.mul_f64(rand::random::<f64>())).await;
            joining = again;
        }
    }

    /// Until the last row, or the end of the connection.
    async fn live(&mut self, joining: &Semaphore, subscribed: &mut bool) -> Result<(), String> {
        let mut socket = {
            let _turn = joining.acquire().await.map_err(|error| error.to_string())?;
            let mut socket = self.connect().await?;
            if self.subscribe(&mut socket).await? {
                return Ok(());
            }
            socket
        };
        let _ = self.events.send(if std::mem::replace(subscribed, true) { Event::Back } else { Event::Subscribed });
        // Not all in the same instant.
        let first = HEARTBEAT.mul_f64(0.5 + 0.5 * rand::random::<f64>());
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + first, HEARTBEAT);
        loop {
            tokio::select! {
                message = socket.next() => {
                    if self.received(message)? {
                        let _ = tokio::time::timeout(Duration::from_secs(2), socket.close(None)).await;
                        return Ok(());
                    }
                }
                _ = beat.tick() => {
                    let sent = socket.send(Message::text(r#"[null,"0","phoenix","heartbeat",{}]"#)).await;
                    sent.map_err(|error| format!("cannot send: {error}"))?;
                }
            }
        }
    }

    fn token(&self) -> Result<String, String> {
        let mut claims = Map::new();
        claims.insert("role".into(), json!("authenticated"));
        claims.insert("sub".into(), json!(self.record.user));
        let valid = Duration::from_secs(24 * 3600);
        mint_token(&self.order.secret, claims, &self.clock, valid).map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<Socket, String> {
        let stream =
            TcpStream::connect(&self.order.address).await.map_err(|error| format!("cannot connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let url = format!("ws://{}/realtime/v1/websocket?vsn=2.0.0&apikey={}", self.order.address, self.token()?);
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(4096);
        // The error's own text may hold the URL, and with it the token.
        match tokio_tungstenite::client_async_with_config(url, stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(SocketError::Http(answer)) => Err(format!("refused with {}", answer.status())),
            Err(SocketError::Io(error)) => Err(format!("cannot connect: {error}")),
            Err(_) => Err("the handshake failed".into()),
        }
    }

    /// Says whether the last row has come already: rows may overtake the message that they flow.
    async fn subscribe(&mut self, socket: &mut Socket) -> Result<bool, String> {
        let mut entry = json!({ "event": "*", "schema": "public", "table": self.order.table });
        if let Some(cursor) = &self.cursor {
            entry["since"] = json!(cursor);
        }
        let payload = json!({ "config": { "postgres_changes": [entry] }, "access_token": self.token()? });
        let join = json!(["1", "1", TOPIC, "phx_join", payload]).to_string();
        socket.send(Message::text(join)).await.map_err(|error| format!("cannot send: {error}"))?;
        loop {
            let text = match socket.next().await {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(frame))) => return Err(closed(frame.map(|frame| u16::from(frame.code)))),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(format!("the connection broke: {error}")),
                None => return Err("the connection ended".into()),
            };
            let frame: Frame<'_> = parse(&text)?;
            if frame.3 == "postgres_changes" {
                if self.change(frame.4)? {
                    return Ok(true);
                }
            } else if frame.3 == "phx_reply" || frame.3 == "system" {
                let notice: Notice<'_> = parse(frame.4.get())?;
                if notice.gap.is_some() {
                    self.record.faults.push(format!("a gap: {}", frame.4.get()));
                } else if notice.status != "ok" {
                    return Err(format!("not subscribed: {}", notice.message.as_deref().unwrap_or(frame.4.get())));
                } else if notice.extension == Some("postgres_changes") {
                    return Ok(false);
                }
                // A cursor of a later join would skip what this one still is to get.
                if self.cursor.is_none() {
                    self.cursor = notice.response.and_then(|joined| joined.cursor);
                }
            }
        }
    }

    /// Takes one message; says whether it was the last row.
    fn received(&mut self, message: Option<Result<Message, SocketError>>) -> Result<bool, String> {
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Close(frame))) => return Err(closed(frame.map(|frame| u16::from(frame.code)))),
            Some(Ok(_)) => return Ok(false),
            Some(Err(error)) => return Err(format!("the connection broke: {error}")),
            None => return Err("the connection ended".into()),
        };
        let frame: Frame<'_> = parse(&text)?;
        match &*frame.3 {
            "postgres_changes" => self.change(frame.4),
            "system" => {
                let notice: Notice<'_> = parse(frame.4.get())?;
                if notice.status != "ok" || notice.gap.is_some() {
                    self.record.faults.push(format!("told: {}", frame.4.get()));
                }
                self.cursor = notice.cursor.or(self.cursor.take());
                Ok(false)
            }
            // The answer to a heartbeat.
            "phx_reply" => Ok(false),
            other => Err(format!("an unexpected {other}")),
        }
    }

    fn change(&mut self, payload: &RawValue) -> Result<bool, String> {
        let mut changes: Changes<'_> = parse(payload.get())?;
        self.cursor = changes.data.cursor.take().or(self.cursor.take());
        Ok(self.row(unix_micros(), &changes.data))
    }

    fn row(&mut self, now: i64, data: &Data<'_>) -> bool {
        let row = &data.record;
        let record = &mut self.record;
        let mut fault = |what: &str| record.faults.push(format!("row {}: {what}", row.id));
        if row.user_id != record.user {
            fault("somebody else's");
        }
        if data.action != "INSERT" {
            fault("not an insert");
        }
        if record.rows.last().is_some_and(|(last, _)| *last >= row.id) {
            let again = record.rows.iter().any(|(id, _)| *id == row.id);
            fault(if again { "came twice" } else { "came after a later one" });
        }
        record.rows.push((row.id, now));
        let sent = row.body.split(' ').next().and_then(|micros| micros.parse::<i64>().ok());
        record.latencies.extend(sent.map(|sent| now - sent));
        row.kind == "last"
    }
}

fn closed(code: Option<u16>) -> String {
    match code {
        Some(code) => format!("the server closed the connection ({code})"),
        None => "the server closed the connection without a code".into(),
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| format!("a frame of another shape: {error}"))
}

fn unix_micros() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "compared with the writer's clock, in microseconds")]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn say(line: &impl Serialize) -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, line)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn summarise(order: &Order, mut records: Vec<Record>) -> Result<(), Box<dyn std::error::Error>> {
    let told =
        records.iter().flat_map(|record| record.faults.iter().map(move |fault| format!("{}: {fault}", record.user)));
    let faults: Vec<String> = told.take(FAULTS).collect();
    let fault_count: usize = records.iter().map(|record| record.faults.len()).sum();
    let mut latencies: Vec<i64> = records.iter_mut().flat_map(|record| std::mem::take(&mut record.latencies)).collect();
    latencies.sort_unstable();
    let at = |share: f64| {
        latencies.get((latencies.len() as f64 * share) as usize).or(latencies.last()).copied().unwrap_or(0)
    };
    let latency = Percentiles { p50: at(0.5), p99: at(0.99), max: at(1.0) };
    let place = |user: &str| order.users.iter().position(|other| other == user);
    records.sort_by_cached_key(|record| place(&record.user));
    say(&json!({ "phones": records, "faults": faults, "fault_count": fault_count, "latency_micros": latency }))
}
