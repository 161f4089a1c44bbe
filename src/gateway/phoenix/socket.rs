//! One connection's task: reads frames, carries out the session's effects, writes what the outbox could not.
//!
//! Invariants:
//! * Nothing but the outbox writes to the socket, so that frames of different origins never mix; tungstenite only reads, and its
//!   pongs and close echoes go into the outbox as whole frames.
//! * The socket belongs to this task; the outbox only borrows it. When the task is done, the peer is disconnected, whoever else
//!   still holds the outbox.
//! * Every end of a connection makes the hub forget its channels, after whatever was asked for them.
//!
//! Rejected: halves in two tasks, which costs a second stack and a queue between them.

mod asked;
mod deferred;
mod effects;
mod joined;
mod replays;

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::{AbortHandle, Abortable, Aborted, BoxFuture, join};
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant as TokioInstant, sleep_until, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::{debug, warn};

use self::deferred::Deferred;
use self::joined::{Joined, Moves};
use super::codec::{self, Decoded};
use super::receipts::{Due, Mark, Receipts};
use super::rooms::Seats;
use super::session::{Effect, FromTable, Now, Session, Visitor};
use crate::authority::{AuthorityError, Reads, Watch, Writes};
use crate::channel::Answer;
use crate::gateway::limits::Admitted;
use crate::gateway::storm::OwnTurns;
use crate::gateway::stream::{ReadHalf, Stream, WriteHalf};
use crate::gateway::unfinished::Part;
use crate::gateway::{GatewayConfig, Shared, close, frame, topics};
use crate::hub::{ChannelId, CloseReason, Flushed, Outbox, Transmit, Version};

/// Bytes asked of the socket at a time; idle connections keep this buffer.
const READ_BUFFER: usize = 1024;
/// Messages of one connection before others have their turn: what a hundred clients send at once keeps nobody waiting for long.
const AT_A_TURN: u32 = 16;
/// Of a masked control frame.
const CONTROL_HEADER: usize = 6;
/// tungstenite's buffer grows to its largest message and stays; after one of this size it is replaced.
const HEAVY_MESSAGE: usize = 64 * 1024;

/// The half that the outbox writes to, as long as the connection's task holds it.
struct Lent(Weak<WriteHalf>);

impl Transmit for Lent {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.upgrade().ok_or(io::ErrorKind::BrokenPipe)?.try_write_vectored(parts)
    }

    fn try_flush(&self) -> io::Result<()> {
        self.0.upgrade().ok_or(io::ErrorKind::BrokenPipe)?.try_flush()
    }
}

/// What tungstenite takes for its socket.
struct Inbound {
    read: ReadHalf,
    outbox: Arc<Outbox>,
    /// Bytes that tungstenite got so far.
    taken: u64,
    /// Those of them that are no whole message yet.
    unfinished: Part,
}

impl AsyncRead for Inbound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.read).poll_read(cx, buf);
        let size = buf.filled().len() - before;
        self.taken += size as u64;
        if !self.unfinished.grow(size) {
            self.outbox
                .close(CloseReason::Protocol, frame::close(1013, "too many large messages under way, come again"));
        }
        polled
    }
}

impl AsyncWrite for Inbound {
    /// Without a write buffer tungstenite hands over one control frame at a time.
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, frame: &[u8]) -> Poll<io::Result<usize>> {
        let whole = Bytes::copy_from_slice(frame);
        if frame.first().is_some_and(|first| first & 0x0F == 8) {
            self.outbox.close(CloseReason::Peer, whole);
        } else {
            // Refused on a connection that is closing; then nobody waits for a pong.
            self.outbox.send_own([&whole]);
        }
        Poll::Ready(Ok(frame.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// How something that the session waits for has ended.
pub(super) enum Done {
    /// The hub has answered.
    Answered(ChannelId, Answer),
    /// The hub has taken a leave.
    Left,
    /// Keys were fetched, or could not be in time.
    Learned,
    /// Who may read a private channel.
    Read(u64, Result<Reads, AuthorityError>),
    /// Who may write.
    Wrote(u64, Result<Writes, AuthorityError>),
    /// Stored messages, if they could be read.
    Stored(u64, Option<FromTable>),
    /// Whether the stream flows.
    Streams(ChannelId, bool),
}

type Operation = Abortable<BoxFuture<'static, Done>>;

struct Connection {
    shared: Arc<Shared>,
    number: u64,
    version: Version,
    shard: usize,
    outbox: Arc<Outbox>,
    write: Arc<WriteHalf>,
    session: Session,
    /// Of a connection of that door.
    door: topics::Door,
    operations: FuturesUnordered<Operation>,
    /// What is asked about rights, stored messages and the stream. Their askers may end before the answers come.
    questions: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Stops what is asked for a channel, so that a leave can't be overtaken by it.
    asked: HashMap<ChannelId, AbortHandle>,
    deferred: Deferred,
    /// Stops what fetches keys.
    learning: Option<AbortHandle>,
    /// What the hub was given for each channel that is joined.
    ports: HashMap<ChannelId, Joined>,
    /// The channels' places in the rooms of their topics.
    seats: Seats,
    /// Keep their rights true.
    watches: HashMap<ChannelId, Watch>,
    /// A right of some channel has changed.
    changed: Arc<Notify>,
    receipts: Receipts,
    probe: Arc<Notify>,
    last_inbound: Instant,
    /// Since when the peer takes no bytes.
    blocked_since: Option<Instant>,
    /// At the hub; made when it is asked for something.
    turns: Option<OwnTurns>,
    /// When it is closed, because all are told to go.
    leaves: Option<(Instant, CloseReason)>,
    /// The least number of bytes that the messages so far have had on the wire.
    read: u64,
    /// A message was so large that tungstenite's buffer should go.
    heavy: bool,
}

/// Why [`Connection::serve`] has returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    /// The connection is closing.
    Over,
    /// tungstenite holds a large buffer, and nothing in it.
    Heavy,
}

fn reading(config: &GatewayConfig) -> WebSocketConfig {
    let limit = Some(config.max_message_bytes);
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(limit)
        .max_frame_size(limit)
}

/// Bytes of a message sent as one masked frame with the shortest header.
fn least_wire_size(message: &Message) -> u64 {
    let size = message.len();
    let header = match size {
        0..126 => 6,
        126..65_536 => 8,
        _ => 14,
    };
    header + size as u64
}

/// Serves an upgraded connection until it ends. `leftover`: bytes that were read behind the handshake; `place`: kept so long.
pub(in crate::gateway) async fn run(
    shared: Arc<Shared>,
    visitor: Visitor,
    shard: usize,
    stream: Stream,
    leftover: Bytes,
    place: Admitted,
) {
    let (read, write) = stream.into_split();
    let write = Arc::new(write);
    let socket = Box::new(Lent(Arc::downgrade(&write)));
    let slow_close = close::frame_for(CloseReason::Slow);
    let outbox = Arc::new(Outbox::new(socket, shared.config.max_outbox_bytes, slow_close));
    // A copy of its own size: tungstenite keeps this buffer, and hyper's has 8 KiB.
    let first = Vec::from(leftover.as_ref());
    drop(leftover);
    let (taken, unfinished) = (first.len() as u64, shared.unfinished.part(visitor.principal.user()));
    let inbound = Inbound { read, outbox: outbox.clone(), taken, unfinished };
    let config = Some(reading(&shared.config));
    let mut socket = WebSocketStream::from_partially_read(inbound, first, Role::Server, config).await;
    let probe = visitor.probe.clone();
    let (number, version) = (visitor.connection, visitor.version);
    let session = Session::new(shared.clone(), visitor);
    let mut connection = Connection {
        number,
        version,
        shard,
        outbox,
        write,
        changed: session.changed(),
        session,
        door: topics::Door::default(),
        operations: FuturesUnordered::new(),
        questions: FuturesUnordered::new(),
        asked: HashMap::new(),
        deferred: Deferred::default(),
        learning: None,
        ports: HashMap::new(),
        seats: Seats::default(),
        watches: HashMap::new(),
        receipts: Receipts::new(shared.config.device.clone(), Instant::now()),
        probe,
        last_inbound: Instant::now(),
        blocked_since: None,
        turns: None,
        leaves: None,
        read: 0,
        heavy: false,
        shared,
    };
    while connection.serve(&mut socket).await == Served::Heavy {
        let config = Some(reading(&connection.shared.config));
        let mut inbound = socket.into_inner();
        (inbound.taken, connection.read, connection.heavy) = (0, 0, false);
        socket = WebSocketStream::from_raw_socket(inbound, Role::Server, config).await;
    }
    Box::pin(connection.finish(socket.into_inner().read)).await;
    drop(place);
}

impl Connection {
    /// Until the connection is closing, for whatever reason, or the socket's buffer is to be replaced.
    async fn serve(&mut self, socket: &mut WebSocketStream<Inbound>) -> Served {
        let shared = self.shared.clone();
        let mut draining = pin!(shared.drain.draining());
        let mut closed = pin!(shared.gate.closed());
        let mut sleep = pin!(sleep_until(TokioInstant::now() + self.next_wake()));
        let mut taken = 0_u32;
        while self.outbox.is_open() {
            tokio::select! {
                // Who sends faster than a room takes it is not read meanwhile.
                message = socket.next(), if !self.seats.is_sending() => {
                    self.last_inbound = Instant::now();
                    if matches!(&message, Some(Ok(message)) if !message.is_close()) {
                        self.receipts.inbound(self.last_inbound);
                    }
                    if let Some(Ok(message)) = &message {
                        self.read += least_wire_size(message);
                        self.heavy |= message.len() >= HEAVY_MESSAGE;
                    }
                    let data = matches!(message, Some(Ok(Message::Text(_) | Message::Binary(_))));
                    let unfinished = &mut socket.get_mut().unfinished;
                    match &message {
                        Some(Ok(control)) if !data => unfinished.shrink(control.len() + CONTROL_HEADER),
                        _ => unfinished.end(),
                    }
                    taken += 1;
                    self.received(message);
                    // Equal only if every message was one frame of the least size and no byte of another has come: a
                    // fragment or a longer header leaves `read` behind for good, and then the buffer just stays. Behind a
                    // data message tungstenite also owes no pong.
                    if self.heavy && data && self.read == socket.get_ref().taken {
                        return Served::Heavy;
                    }
                }
                () = self.outbox.attention() => {
                    self.flush();
                    if self.outbox.noticed() {
                        self.receipts.written(Instant::now());
                    }
                }
                () = self.deferred.safe(), if self.deferred.is_waiting() => self.carry_out_deferred(),
                () = self.probe.notified() => self.receipts.probe(Instant::now()),
                () = self.changed.notified() => {
                    let effects = self.session.rights_changed(self.now());
                    self.carry_out(effects);
                }
                sent = self.seats.sent(), if self.seats.is_sending() => self.sent(sent),
                _ = self.write.writable(), if self.blocked_since.is_some() => self.flush(),
                Some(done) = self.operations.next(), if !self.operations.is_empty() => {
                    let effects = match done {
                        Ok(done) => self.done(done),
                        Err(Aborted) => Vec::new(),
                    };
                    self.carry_out(effects);
                }
                Some(done) = self.questions.next(), if !self.questions.is_empty() => {
                    let effects = self.done(done);
                    self.carry_out(effects);
                }
                () = draining.as_mut(), if self.leaves.is_none() => self.leave(CloseReason::Drain),
                () = closed.as_mut(), if self.leaves.is_none() => self.leave(CloseReason::Slot),
                () = sleep.as_mut() => {
                    self.tick();
                    if socket.get_ref().unfinished.is_overdue(shared.config.idle_timeout) {
                        self.close(CloseReason::Idle);
                    }
                }
            }
            if taken >= AT_A_TURN {
                taken = 0;
                tokio::task::yield_now().await;
            }
            let wake = TokioInstant::now() + self.next_wake();
            if sleep.is_elapsed() || wake < sleep.deadline() {
                sleep.as_mut().reset(wake);
            }
        }
        Served::Over
    }

    fn done(&mut self, done: Done) -> Vec<Effect> {
        let now = self.now();
        match done {
            Done::Answered(id, answer) => {
                self.asked.remove(&id);
                self.session.answered(id, answer, now)
            }
            Done::Learned => self.session.learned(now),
            Done::Read(number, answer) => self.session.read_answered(number, answer, now),
            Done::Wrote(number, answer) => self.session.write_answered(number, answer, now),
            Done::Stored(number, stored) => self.stored(number, stored),
            Done::Streams(id, flows) => self.session.stream_awaited(id, flows, now),
            Done::Left => Vec::new(),
        }
    }

    fn now(&self) -> Now {
        Now { unix_millis: self.shared.clock.unix_millis(), at: Instant::now() }
    }

    /// The longest sleep: until something is due, and never longer than the tick.
    fn next_wake(&self) -> Duration {
        let config = &self.shared.config;
        let quiet = self.last_inbound.elapsed().min(config.idle_timeout);
        let stuck = self.blocked_since.map_or(Duration::ZERO, |since| since.elapsed().min(config.idle_timeout));
        let until_timeout = config.idle_timeout - quiet.max(stuck);
        let due = self.session.next_tick(self.now()).unwrap_or(Duration::MAX);
        let due = due.min(self.receipts.wake(Instant::now()));
        let leaves = self.leaves.map_or(Duration::MAX, |(at, _)| at.saturating_duration_since(Instant::now()));
        // A timer that is a hair early must not spin.
        config.tick.min(until_timeout).min(due).min(leaves).max(Duration::from_millis(1))
    }

    fn received(&mut self, message: Option<Result<Message, Error>>) {
        let frame = match &message {
            Some(Ok(Message::Text(text))) => Bytes::from(text.clone()),
            Some(Ok(Message::Binary(bytes))) => bytes.clone(),
            _ => Bytes::new(),
        };
        let decoded = match &message {
            Some(Ok(message)) if self.version == Version::Topics && !message.is_pong() => return self.asked(message),
            Some(Ok(Message::Text(text))) => codec::decode_text(self.version, text),
            Some(Ok(Message::Binary(bytes))) => codec::decode_binary(self.version, bytes),
            Some(Ok(Message::Pong(payload))) => {
                if let Some(took) = self.receipts.pong(payload, Instant::now()) {
                    self.shared.metrics.pong.observe(took.as_secs_f64());
                    self.watch();
                }
                return;
            }
            // Pings are answered by tungstenite, closes echoed.
            Some(Ok(_)) => return,
            Some(Err(error)) => {
                match close::frame_for_error(error) {
                    Some(frame) => self.outbox.close(CloseReason::Protocol, frame),
                    None => self.close(CloseReason::Peer),
                }
                return debug!(connection = self.number, %error, "the connection can't be read any further");
            }
            None => return self.close(CloseReason::Peer),
        };
        match decoded {
            Decoded::Message(message) => self.handle(message, &frame),
            Decoded::Ignored => {}
            Decoded::Malformed => {
                self.shared.metrics.malformed_frames.inc();
                debug!(connection = self.number, "MalformedWebSocketMessage: dropped");
            }
        }
    }

    /// `frame`: what the message was read from.
    fn handle(&mut self, message: codec::Message<'_>, frame: &Bytes) {
        // Without a ref it is sent whether or not the one before was answered.
        if message.topic == "phoenix" && !message.reference.is_null() && self.receipts.wants_heartbeats() {
            let marks = self.marks();
            self.receipts.heartbeat(marks, Instant::now());
        }
        // A Pong is a proof, and what it does not reach is told again.
        if message.event == "phx_join" && self.receipts.wants_heartbeats() {
            // Not of channels that were left: that may have been said before the word of a gap came.
            let joined = self.ports.values().filter(|joined| *joined.port.topic == *message.topic);
            joined.for_each(Joined::skip_gaps);
        }
        let of_a_topic = message.topic != "phoenix";
        let effects = self.session.handle(message, frame, self.now());
        match of_a_topic {
            true => self.carry_out(effects),
            // A heartbeat is about no channel, and waits for none.
            false => self.carry_out_now(effects),
        }
    }

    fn tick(&mut self) {
        let effects = self.session.tick(self.now());
        self.carry_out(effects);
        let ports = &self.ports;
        let effects = self.session.freshen(Instant::now(), |id| ports.get(&id)?.reached());
        self.carry_out(effects);
        if let Some((_, reason)) = self.leaves.filter(|(at, _)| *at <= Instant::now()) {
            return self.close(reason);
        }
        self.ask_the_peer();
        let timeout = self.shared.config.idle_timeout;
        if self.last_inbound.elapsed() >= timeout {
            self.close(CloseReason::Idle);
        } else if self.blocked_since.is_some_and(|since| since.elapsed() >= timeout) {
            self.close(CloseReason::Slow);
        }
    }

    /// All are told to go, this one in a moment.
    fn leave(&mut self, reason: CloseReason) {
        let farewell = self.shared.farewell();
        if farewell.is_zero() {
            return self.close(reason);
        }
        self.leaves = Some((Instant::now() + farewell, reason));
    }

    /// A Ping, if one is due.
    fn ask_the_peer(&mut self) {
        match self.receipts.due(Instant::now()) {
            Due::Nothing => {}
            Due::Dead => self.close(CloseReason::Unanswered),
            Due::Ping => {
                let marks = self.marks();
                let number = self.receipts.pinged(marks, Instant::now());
                self.outbox.send_own([&frame::encode(frame::Opcode::Ping, number.to_string().as_bytes())]);
                self.shared.metrics.pings.inc();
                self.watch();
            }
        }
    }

    /// Has us hear of the next rows, if anybody wants to know what became of them.
    fn watch(&self) {
        if self.ports.values().any(|joined| joined.tracked.is_some()) {
            self.outbox.watch();
        }
    }

    /// How far the channels of a device are: whatever is queued from now on is behind that.
    fn marks(&mut self) -> Vec<Mark> {
        let mut marks = Vec::new();
        for joined in self.ports.values_mut() {
            let Some(tracked) = &joined.tracked else { continue };
            // In this order: rows up to there were judged before the clock says so.
            let reached = joined.reached();
            let delivered = joined.port.place.delivered();
            if std::mem::replace(&mut joined.delivered, delivered) != delivered {
                // The hub says a moment later how far that was.
                joined.fresh = 2;
            }
            let rows = joined.fresh > 0;
            joined.fresh = joined.fresh.saturating_sub(1);
            let reached = reached.filter(|_| joined.moves != Moves::Nothing);
            let to = reached.filter(|_| self.shared.clock.unix_seconds() < joined.expires_at);
            let alone = joined.moves == Moves::Messages;
            marks.push(Mark { handles: tracked.handles(), to, rows, alone });
        }
        marks
    }

    fn close(&self, reason: CloseReason) {
        self.outbox.close(reason, close::frame_for(reason));
    }

    fn flush(&mut self) {
        let before = self.outbox.waiting();
        self.blocked_since = match self.outbox.flush() {
            Flushed::Blocked if self.outbox.waiting() < before => Some(Instant::now()),
            Flushed::Blocked => self.blocked_since.or_else(|| Some(Instant::now())),
            Flushed::Empty | Flushed::Finished | Flushed::Broken => None,
        };
    }

    /// Sends what waits and says goodbye; makes the hub forget the channels. Both within the close timeout.
    async fn finish(mut self, mut read: ReadHalf) {
        // The others of its rooms see it go, whatever the rest takes.
        self.seats.end();
        let Connection { shared, outbox, write, session, mut operations, asked, learning, number, receipts, .. } = self;
        asked.values().chain(&learning).for_each(AbortHandle::abort);
        let reason = outbox.closing();
        if let Some(reason) = reason.filter(|reason| *reason != CloseReason::Peer) {
            shared.metrics.closes.get_or_create(&[("reason", reason.as_str())]).inc();
        }
        session.audit_end(reason);
        shared.journal.note(close::note(outbox.number(), reason));
        let deadline = TokioInstant::now() + shared.config.close_timeout;
        let goodbye = async {
            while outbox.flush() == Flushed::Blocked && write.writable().await.is_ok() {}
            write.say_goodbye();
            // Half-closes the socket: the peer sees the end behind the close frame.
            drop(write);
            // Unread bytes would turn the close into a reset, which may overtake the close frame.
            let mut scratch = vec![0; READ_BUFFER];
            while read.read(&mut scratch).await.is_ok_and(|size| size > 0) {}
        };
        let leaving = async {
            for id in session.end(receipts.alive()) {
                shared.hub.leave(id).await;
            }
            while operations.next().await.is_some() {}
        };
        let (_, left) = join(timeout_at(deadline, goodbye), timeout_at(deadline, leaving)).await;
        if left.is_err() {
            warn!(connection = number, "the hub did not take the end of a connection in time");
        }
        debug!(connection = number, reason = reason.map(CloseReason::as_str), "connection ended");
    }
}
