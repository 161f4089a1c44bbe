//! Rooms under load, over real sockets: a busy one, and one into which everybody comes at once.
//!
//! Asserted: of each sender every member got every message, in order; every presence is known to everybody. Printed: the times
//! from sender to receiver, the time until a storm of joins has settled, bytes, memory and CPU time of the relay. Small unless
//! told otherwise, since the members are in the process of the test. To see the figures:
//!
//! ```text
//! ROWCAST_ROOM_MEMBERS=1000 ROWCAST_ROOM_SECONDS=30 ROWCAST_ROOM_PRESENCES=5000 \
//!     cargo test --release --test main load::rooms -- --nocapture --test-threads=1
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, Stream, StreamExt as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::membership::number;
use super::percentiles;
use super::phones::{raise_file_limit, unix_micros};
use super::usage::{cpu_time, resident_bytes};
use crate::support::{RelayProcess, TestPg, token};

/// For anything that a member waits for, also on a machine that has little time for it.
const PATIENCE: Duration = Duration::from_secs(120);
const SENDERS: usize = 10;
/// Of all senders together.
const MESSAGES_PER_SECOND: usize = 100;
const TOPIC: &str = "realtime:crowd";
/// Members that come at the same time.
const AT_A_TIME: usize = 200;

type Socket = WebSocketStream<TcpStream>;

async fn relay(pg: &TestPg) -> RelayProcess {
    let mut relay = RelayProcess::new(pg);
    // One user joins once: the limit is not what is looked at here.
    relay.set("ROWCAST_MAX_JOINS_PER_SECOND", "100000");
    relay.start_again().await;
    relay
}

/// Connected, and a join sent.
async fn come(address: std::net::SocketAddr, token: &str, presence: bool) -> Socket {
    let line = TcpStream::connect(address).await.expect("a connection");
    line.set_nodelay(true).expect("an option");
    let url = format!("ws://{address}/realtime/v1/websocket?apikey={token}&vsn=2.0.0");
    let (mut socket, _) = client_async(url, line).await.expect("a handshake");
    let config = json!({
        "broadcast": {"ack": false, "self": true}, "presence": {"key": "", "enabled": presence}, "private": false,
    });
    let join = json!(["1", "1", TOPIC, "phx_join", {"config": config, "access_token": token}]);
    socket.send(Message::text(join.to_string())).await.expect("sent");
    socket
}

/// The next text frame.
async fn next(socket: &mut (impl Stream<Item = Result<Message, Error>> + Unpin)) -> String {
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("in time") {
            Some(Ok(Message::Text(text))) => return text.as_str().to_owned(),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn joined(socket: &mut Socket) {
    let reply = next(socket).await;
    assert!(reply.contains("phx_reply") && reply.contains(r#""status":"ok""#), "{reply}");
}

/// Reads until each sender's last message is there; the times that the messages took, in microseconds.
async fn listen(mut from: SplitStream<Socket>, senders: usize, each: usize) -> Vec<i64> {
    let mut next_of = vec![0; senders];
    let mut times = Vec::with_capacity(senders * each);
    while times.len() < senders * each {
        let frame = next(&mut from).await;
        if !frame.contains(r#""broadcast""#) {
            continue;
        }
        let field = |name: &str| -> i64 {
            let at = frame.find(name).expect("a member") + name.len();
            let end = frame[at..].find([',', '}']).expect("an end") + at;
            frame[at..end].parse().expect("a number")
        };
        let (sender, at) = (field(r#""sender":"#) as usize, field(r#""number":"#));
        assert_eq!(at, next_of[sender], "sender {sender}: nothing is lost, nothing comes twice or out of order");
        next_of[sender] += 1;
        times.push(unix_micros() - field(r#""sent":"#));
    }
    times
}

/// Sends this many, and what keeps the connection alive in between.
async fn speak(mut to: SplitSink<Socket, Message>, sender: usize, each: usize) {
    let mut tick = tokio::time::interval(Duration::from_secs(1) * SENDERS as u32 / MESSAGES_PER_SECOND as u32);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..each {
        tick.tick().await;
        let body = "x".repeat(100);
        let payload = json!({"type": "broadcast", "event": "said", "payload":
            {"sender": sender, "number": number, "sent": unix_micros(), "body": body}});
        let message = json!(["1", format!("s{number}"), TOPIC, "broadcast", payload]);
        to.send(Message::text(message.to_string())).await.expect("sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_member_of_a_busy_room_gets_every_message_in_order() {
    raise_file_limit();
    let members = number("ROWCAST_ROOM_MEMBERS", 60).max(SENDERS);
    let seconds = number("ROWCAST_ROOM_SECONDS", 3);
    let pg = TestPg::start().await;
    let relay = relay(&pg).await;
    let token = token::user("00000000-0000-4000-8000-000000000001");
    let mut sockets = Vec::new();
    while sockets.len() < members {
        let more = AT_A_TIME.min(members - sockets.len());
        let coming = (0..more).map(|_| come(relay.addr(), &token, false));
        sockets.extend(futures_util::future::join_all(coming).await);
    }
    for socket in &mut sockets {
        joined(socket).await;
    }
    let each = seconds * MESSAGES_PER_SECOND / SENDERS;
    let (mut listening, mut speaking, mut quiet) = (JoinSet::new(), JoinSet::new(), Vec::new());
    let (before, start) = (cpu_time(relay.pid()), Instant::now());
    for (number, socket) in sockets.into_iter().enumerate() {
        let (to, from) = socket.split();
        listening.spawn(listen(from, SENDERS, each));
        if number < SENDERS {
            speaking.spawn(speak(to, number, each));
        } else {
            quiet.push(to);
        }
    }
    let times: Vec<i64> = listening.join_all().await.into_iter().flatten().collect();
    speaking.join_all().await;
    let (took, cpu) = (start.elapsed(), cpu_time(relay.pid()).saturating_sub(before));
    assert_eq!(times.len(), members * SENDERS * each);
    println!(
        "{members} members, {SENDERS} senders, {} messages in {took:.1?}: {} deliveries, none lost; \
         {}; relay {cpu:.2?} CPU, {} MB",
        SENDERS * each,
        times.len(),
        percentiles(times.iter().copied()),
        resident_bytes(relay.pid()) >> 20,
    );
}

/// Joins, tracks, and reads until it knows of all. References are counted: each is told to it once, in the state or in a diff.
async fn be_present(
    address: std::net::SocketAddr,
    token: String,
    all: usize,
    bytes: Arc<AtomicU64>,
) -> (Duration, Socket) {
    let start = Instant::now();
    let mut socket = come(address, &token, true).await;
    let (mut known, mut has_state) = (0, false);
    while known < all {
        let frame = next(&mut socket).await;
        bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        let head = &frame[..frame.len().min(80)];
        if head.contains("phx_reply") {
            assert!(frame.contains(r#""status":"ok""#), "{frame}");
            if frame.starts_with(r#"["1","1","#) {
                let meta = json!({"name": "somebody", "online_at": "2026-11-20T10:15:30.123Z"});
                let track =
                    json!(["1", "2", TOPIC, "presence", {"type": "presence", "event": "track", "payload": meta}]);
                socket.send(Message::text(track.to_string())).await.expect("sent");
            }
        } else if head.contains("presence_state") {
            assert!(!has_state && frame.starts_with(r#"["1",null,"#), "one state, of this join: {head}");
            has_state = true;
            known += frame.matches(r#""phx_ref":"#).count();
        } else if head.contains("presence_diff") && has_state {
            let (_, leaves) = frame.split_once(r#""leaves":"#).expect("leaves");
            assert!(leaves.starts_with("{}"), "nobody leaves");
            known += frame.matches(r#""phx_ref":"#).count();
        }
    }
    assert_eq!(known, all);
    let took = start.elapsed();
    // Kept open until all know all: there are no leaves in the others' views.
    (took, socket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_storm_of_presences_settles_and_everybody_knows_of_everybody() {
    raise_file_limit();
    let presences = number("ROWCAST_ROOM_PRESENCES", 60);
    let pg = TestPg::start().await;
    let relay = relay(&pg).await;
    let token = token::user("00000000-0000-4000-8000-000000000001");
    let bytes = Arc::new(AtomicU64::new(0));
    let (before, start) = (cpu_time(relay.pid()), Instant::now());
    let mut coming = JoinSet::new();
    for _ in 0..presences {
        coming.spawn(be_present(relay.addr(), token.clone(), presences, bytes.clone()));
    }
    let (mut settled, _open): (Vec<Duration>, Vec<Socket>) = coming.join_all().await.into_iter().unzip();
    let (took, cpu) = (start.elapsed(), cpu_time(relay.pid()).saturating_sub(before));
    settled.sort_unstable();
    assert_eq!(settled.len(), presences);
    println!(
        "{presences} presences at once: all know all after {took:.2?}, half of them within {:.2?}; {} MB sent, \
         {} bytes for each of another; relay {cpu:.2?} CPU, {} MB",
        settled[presences / 2],
        bytes.load(Ordering::Relaxed) >> 20,
        bytes.load(Ordering::Relaxed) / (presences * presences) as u64,
        resident_bytes(relay.pid()) >> 20,
    );
}
