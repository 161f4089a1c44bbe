//! `Wire`: a TCP proxy between two of our programs that does what networks do: it cuts, stalls, drips, leaves one end without
//! the other, and, as some proxies do, answers WebSocket Pings in the client's place.
//!
//! It listens on a port of its own and connects to its target for every connection that it takes; the target may be gone in
//! between. Bytes pass unread, unless Pings are to be answered: then both directions pass frame by frame, so that a Pong of its
//! own never falls into the middle of a frame.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rowcast::task::Connections;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};

/// Bytes that a dripping wire lets through at a time, and the time between two drops: 8 KiB a second.
const DROP: usize = 64;
const DRIP: Duration = Duration::from_millis(8);
/// How long the far end of a connection stays after its near end was taken away.
const ORPHANED: Duration = Duration::from_secs(600);

/// How bytes pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// As they come.
    Free,
    /// None, and nobody is told.
    Stalled,
    /// A few at a time.
    Dripping,
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Both ends are reset.
    Reset,
    /// Who connected is reset; the target is told nothing.
    HalfOpen,
}

/// See the module's comment. Dropping it cuts everything.
pub(crate) struct Wire {
    addr: SocketAddr,
    shared: Arc<Shared>,
    connections: Connections,
}

struct Shared {
    target: SocketAddr,
    /// For all connections, those to come as well.
    flow: watch::Sender<Flow>,
    /// Counts up; connections that are there end.
    cut: watch::Sender<(u64, Cut)>,
    answers_pings: bool,
    /// Pings that were.
    answered: AtomicU64,
}

impl Wire {
    /// To this address.
    pub(crate) async fn to(target: SocketAddr) -> Wire {
        Wire::new(target, false).await
    }

    /// To a relay; Pings of the relay are answered here and never reach the client.
    pub(crate) async fn answering_pings(target: SocketAddr) -> Wire {
        Wire::new(target, true).await
    }

    async fn new(target: SocketAddr, answers_pings: bool) -> Wire {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (flow, _) = watch::channel(Flow::Free);
        let (cut, _) = watch::channel((0, Cut::Reset));
        let shared = Arc::new(Shared { target, flow, cut, answers_pings, answered: AtomicU64::new(0) });
        let connections = Connections::default();
        let (taken, of_each) = (shared.clone(), connections.clone());
        connections.spawn("wire", async move {
            while let Ok((near, _)) = listener.accept().await {
                of_each.spawn("wire's connection", carry(near, taken.clone()));
            }
        });
        Wire { addr, shared, connections }
    }

    /// Where to connect.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Pings that were answered here.
    pub(crate) fn pings_answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// From now on.
    pub(crate) fn set(&self, flow: Flow) {
        self.shared.flow.send_replace(flow);
    }

    /// Resets every connection that is there.
    pub(crate) fn cut(&self) {
        self.shared.cut.send_modify(|(count, cut)| (*count, *cut) = (*count + 1, Cut::Reset));
    }

    /// Resets the near end of every connection, and leaves the target with one that is silent for good.
    pub(crate) fn half_open(&self) {
        self.shared.cut.send_modify(|(count, cut)| (*count, *cut) = (*count + 1, Cut::HalfOpen));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.connections.kill();
    }
}

async fn carry(near: TcpStream, shared: Arc<Shared>) {
    let mut cut = shared.cut.subscribe();
    let mut flow = shared.flow.subscribe();
    // A stalled network takes no new connection either.
    if flow.wait_for(|flow| *flow != Flow::Stalled).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(shared.target).await else {
        let _ = near.set_zero_linger();
        return;
    };
    for socket in [&near, &far] {
        let _ = socket.set_nodelay(true);
    }
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let far_out = Arc::new(Mutex::new(far_out));
    let near_out = Arc::new(Mutex::new(near_out));
    let (up, down) = if shared.answers_pings {
        let pong = Some((far_out.clone(), shared.clone()));
        (Passing::Frames(Frames::default()), Passing::Frames(Frames { pong, ..Frames::default() }))
    } else {
        (Passing::Bytes, Passing::Bytes)
    };
    let ended = {
        let up = pump(near_in, far_out.clone(), shared.flow.subscribe(), up);
        let down = pump(far_in, near_out.clone(), shared.flow.subscribe(), down);
        tokio::select! {
            // One direction may end before the other.
            _ = async { tokio::join!(up, down) } => None,
            changed = cut.changed() => changed.is_ok().then(|| cut.borrow().1),
        }
    };
    // The halves that were read from are gone with the pumps.
    match ended {
        None => {}
        Some(Cut::Reset) => {
            for out in [near_out, far_out] {
                let _ = out.lock().await.as_ref().set_zero_linger();
            }
        }
        Some(Cut::HalfOpen) => {
            let _ = near_out.lock().await.as_ref().set_zero_linger();
            drop(near_out);
            tokio::time::sleep(ORPHANED).await;
            drop(far_out);
        }
    }
}

/// What passes at a time.
enum Passing {
    Bytes,
    Frames(Frames),
}

/// Bytes of which only whole frames pass on.
#[derive(Default)]
struct Frames {
    held: Vec<u8>,
    /// The handshake is over.
    upgraded: bool,
    /// Where Pings are answered to, if they are.
    pong: Option<(Arc<Mutex<OwnedWriteHalf>>, Arc<Shared>)>,
}

/// Until the end of what is read, or until nobody takes it.
async fn pump(
    mut from: OwnedReadHalf,
    to: Arc<Mutex<OwnedWriteHalf>>,
    mut flow: watch::Receiver<Flow>,
    mut passing: Passing,
) -> Option<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        flow.wait_for(|flow| *flow != Flow::Stalled).await.ok()?;
        let read = from.read(&mut buffer).await.ok()?;
        if read == 0 {
            // The other direction goes on.
            let _ = to.lock().await.shutdown().await;
            return None;
        }
        match &mut passing {
            Passing::Bytes => pass(&buffer[..read], &to, &mut flow).await?,
            Passing::Frames(frames) => {
                frames.held.extend_from_slice(&buffer[..read]);
                while let Some(whole) = frames.next().await {
                    pass(&whole, &to, &mut flow).await?;
                }
            }
        }
    }
}

async fn pass(mut bytes: &[u8], to: &Mutex<OwnedWriteHalf>, flow: &mut watch::Receiver<Flow>) -> Option<()> {
    let mut to = to.lock().await;
    while !bytes.is_empty() {
        let now = *flow.wait_for(|flow| *flow != Flow::Stalled).await.ok()?;
        if now == Flow::Free {
            return to.write_all(bytes).await.ok();
        }
        let (drop, rest) = bytes.split_at(bytes.len().min(DROP));
        to.write_all(drop).await.ok()?;
        bytes = rest;
        tokio::time::sleep(DRIP).await;
    }
    Some(())
}

impl Frames {
    /// The next whole piece that passes on: the handshake's head, or a frame.
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if !self.upgraded {
                let head = self.held.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
                self.upgraded = true;
                return Some(self.held.drain(..head).collect());
            }
            let length = frame_length(&self.held)?;
            if self.held.len() < length {
                return None;
            }
            let frame: Vec<u8> = self.held.drain(..length).collect();
            const PING: u8 = 0x89;
            match &self.pong {
                Some((server, shared)) if frame[0] == PING => {
                    // Masked with zeros, which leaves the payload as it is.
                    let payload = &frame[2..];
                    let mut pong = vec![0x8a, 0x80 | frame[1], 0, 0, 0, 0];
                    pong.extend_from_slice(payload);
                    if server.lock().await.write_all(&pong).await.is_ok() {
                        shared.answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
                _ => return Some(frame),
            }
        }
    }
}

/// Of the frame that these bytes begin with, head and mask included; `None` if the head is not all there.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    let number = |range: std::ops::Range<usize>| {
        Some(bytes.get(range)?.iter().fold(0, |all: usize, byte| (all << 8) | usize::from(*byte)))
    };
    let (head, payload) = match second & 0x7f {
        126 => (4, number(2..4)?),
        127 => (10, number(2..10)?),
        short => (2, usize::from(short)),
    };
    Some(head + mask + payload)
}
