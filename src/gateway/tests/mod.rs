//! The gateway over real TCP, with a hub that only answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame, Utf8Bytes};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::shard::Shard;
use super::{Deps, Gateway, GatewayConfig, Tokens, frame};
use crate::authority::Authority;
use crate::claims::tests::{token, verifier};
use crate::clock::Clock;
use crate::error::{Fault as _, chain};
use crate::hub::{Activated, ChannelId, Command, HubHandle, Port, Subscribed, Watched};
use crate::metrics::Metrics;
use crate::pg::{PgConfig, Pool};
use crate::policy::Told;
use crate::room::{RoomConfig, Rooms};
use crate::task::{self, Connections, Drain};

mod broadcast;
mod devices;
mod http;
mod keys;
mod socket;
mod topics;

const PATIENCE: Duration = Duration::from_secs(10);

/// What the hub was asked, and the answers it holds back.
#[derive(Default)]
struct Asked {
    ports: Mutex<HashMap<ChannelId, Arc<Port>>>,
    held: Mutex<Vec<oneshot::Sender<Subscribed>>>,
    hold: AtomicBool,
    reclaims: Mutex<Vec<ChannelId>>,
    watched: Mutex<Vec<Watched>>,
}

impl Asked {
    fn take(&self, command: Command) {
        match command {
            Command::Subscribe { port, reply, .. } => {
                self.ports.lock().unwrap().insert(port.id, port);
                if self.hold.load(Ordering::SeqCst) {
                    self.held.lock().unwrap().push(reply);
                } else {
                    let _ = reply.send(Ok(Activated::default()));
                }
            }
            Command::Reclaim { id, reply, .. } => {
                self.reclaims.lock().unwrap().push(id);
                let _ = reply.send(Ok(Activated::default()));
            }
            Command::Describe { .. } | Command::Look { .. } | Command::Judge { .. } => {}
            // Whoever asks may do all.
            Command::Rights { reply, .. } => {
                let _ = reply.send(Some(Told { broadcast: Some(true), presence: Some(true), by_facts: false }));
            }
            Command::Footing { .. } => {}
            Command::Watch(watched) => self.watched.lock().unwrap().push(watched),
            Command::Leave { id } => {
                self.ports.lock().unwrap().remove(&id);
            }
        }
    }

    fn count(&self) -> usize {
        self.ports.lock().unwrap().len()
    }
}

struct Relay {
    addr: SocketAddr,
    clock: Clock,
    drain: Drain,
    metrics: Arc<Metrics>,
    connections: Connections,
    ready: watch::Sender<bool>,
    asked: Arc<Asked>,
    frontiers: Arc<crate::resume::Frontiers>,
}

/// Nobody answers there.
pub(super) fn no_pool() -> Pool {
    PgConfig::from_url("postgres://nobody@127.0.0.1:1/nothing").and_then(|config| config.pool()).expect("a pool")
}

fn quick() -> GatewayConfig {
    GatewayConfig { tick: Duration::from_millis(10), close_timeout: Duration::from_secs(2), ..GatewayConfig::default() }
}

async fn relay(config: GatewayConfig) -> Relay {
    relay_with(config, Arc::new(verifier())).await
}

async fn relay_with(config: GatewayConfig, verifier: Arc<dyn Tokens>) -> Relay {
    relay_of(config, verifier, |clock, metrics, drain| rooms(2, clock, metrics, drain)).await
}

async fn relay_of(
    config: GatewayConfig,
    verifier: Arc<dyn Tokens>,
    rooms: impl FnOnce(Clock, Arc<Metrics>, Drain) -> Arc<Rooms>,
) -> Relay {
    let (commands, mut queue) = mpsc::channel(8);
    let (ready, ready_seen) = watch::channel(false);
    let (clock, drain, connections) = (Clock::system(), Drain::new(), Connections::default());
    let metrics = Arc::new(Metrics::new());
    let frontiers = crate::resume::Frontiers::in_memory(Default::default(), metrics.clone());
    let deps = Deps {
        hub: HubHandle::new(commands.clone()),
        rooms: rooms(clock.clone(), metrics.clone(), drain.clone()),
        verifier,
        clock: clock.clone(),
        metrics: metrics.clone(),
        journal: crate::journal::Journal::off(),
        log: crate::resume::History::new(crate::log::testing::in_memory().unwrap().log),
        cursor_key: Arc::new(crate::resume::CursorKey::new([1; 32])),
        frontiers: frontiers.clone(),
        drain: drain.clone(),
        gate: task::Gate::always(),
        connections: connections.clone(),
        ready: ready_seen,
        authority: Authority::new(no_pool(), HubHandle::new(commands), Default::default(), metrics.clone()),
        pool: no_pool(),
        shards: 2,
        tls: None,
    };
    let asked = Arc::new(Asked::default());
    let hub = asked.clone();
    drop(task::spawn("hub", async move {
        while let Some(command) = queue.recv().await {
            hub.take(command);
        }
    }));
    let bound = Gateway::new(config, deps).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addr = bound.local_addr();
    drop(task::spawn("gateway", bound.serve()));
    Relay { addr, clock, drain, metrics, connections, ready, asked, frontiers }
}

/// Rooms with shards that write.
fn rooms(shards: usize, clock: Clock, metrics: Arc<Metrics>, drain: Drain) -> Arc<Rooms> {
    let key = Arc::new(crate::resume::CursorKey::new([1; 32]));
    let queues = (0..shards).map(|_| {
        let (shard, from_hub) = Shard::new(metrics.clone(), clock.clone(), key.clone());
        let queue = shard.rooms();
        drop(task::spawn("shard", async move {
            let _no_hub_ends_it = from_hub;
            shard.run().await;
        }));
        queue
    });
    let rooms = Rooms::new(RoomConfig::default(), queues.collect(), metrics);
    drop(task::spawn("rooms", rooms.clone().run(drain)));
    rooms
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "not in time: {what}");
}

type Phone = WebSocketStream<TcpStream>;

impl Relay {
    fn token(&self, lifetime: i64) -> String {
        token(json!({"role": "anon", "exp": self.clock.unix_seconds() + lifetime}))
    }

    async fn phone(&self) -> Phone {
        let url = format!("ws://{}/realtime/v1/websocket?vsn=2.0.0&apikey={}", self.addr, self.token(3600));
        let stream = TcpStream::connect(self.addr).await.unwrap();
        client_async(url.into_client_request().unwrap(), stream).await.unwrap().0
    }

    /// Status, head and body of a hand-written request. The head's lines but the first end in `\r\n`.
    async fn http(&self, line: &str, headers: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: relay\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        response(&mut stream).await
    }

    /// An upgrade request.
    async fn upgrade(&self, path: &str, headers: &str) -> (u16, String, String) {
        self.http(&format!("GET {path}"), &format!("{UPGRADE}{headers}")).await
    }
}

const UPGRADE: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn response(stream: &mut TcpStream) -> (u16, String, String) {
    let mut bytes = Vec::new();
    let read = async {
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let head = head.to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
                if body.len() >= length.parse::<usize>().unwrap() {
                    return (head[9..12].parse().unwrap(), head, body.to_owned());
                }
            }
            assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{text}");
        }
    };
    timeout(PATIENCE, read).await.unwrap()
}

async fn next(phone: &mut Phone) -> Message {
    timeout(PATIENCE, phone.next()).await.unwrap().unwrap().unwrap()
}

async fn next_json(phone: &mut Phone) -> Value {
    match next(phone).await {
        Message::Text(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn send(phone: &mut Phone, message: Value) {
    phone.send(Message::text(message.to_string())).await.unwrap();
}

/// Reads on until the connection is closed; the close code, if one came.
async fn close_code(phone: &mut Phone) -> Option<u16> {
    let mut code = None;
    let read = async {
        while let Some(message) = phone.next().await {
            match message {
                Ok(Message::Close(frame)) => code = frame.map(|frame| frame.code.into()),
                Ok(_) => {}
                Err(Error::ConnectionClosed) => break,
                Err(error) => panic!("after {code:?}: {error}"),
            }
        }
    };
    timeout(PATIENCE, read).await.unwrap();
    code
}

fn todos() -> Value {
    json!({"config": {"postgres_changes": [{"event": "*", "schema": "public", "table": "todos"}]}})
}
