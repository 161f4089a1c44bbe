//! One connection's outgoing frames: bounded in bytes, written at once where the socket takes them.
//!
//! Invariants:
//! * Frames leave whole and in the order they were sent; a frame of which some bytes are out is always finished first.
//! * At most `limit` bytes wait, and one frame beyond that which is large by itself. What would exceed it closes the connection
//!   with the slow-consumer frame: the socket is shed, never a single event, so a client never has a silent hole. Only large
//!   frames whose sender says so are left out instead, or one who says much would have all others closed.
//! * [`Outbox::send`] never waits. The connection's own task writes what the socket did not take ([`Outbox::attention`],
//!   [`Outbox::flush`]).
//!
//! Rejected: a task per connection fed by a channel, which costs a wake-up and a copy of the queue per delivery; here whoever
//! delivers writes, and several frames for one connection leave in one system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::Notify;

/// The socket as far as the outbox needs it: a write that never waits.
pub trait Transmit: Send + Sync + 'static {
    /// Writes what it can; `WouldBlock` if nothing.
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// For a socket that keeps something of what it took, as TLS does: `WouldBlock` while that is not out.
    fn try_flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What [`Outbox::flush`] left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Everything is written.
    Empty,
    /// The socket is full: call again when it is writable.
    Blocked,
    /// Everything is written, the close frame too: shut the socket down.
    Finished,
    /// The socket failed: drop it.
    Broken,
}

/// Why we close a connection; the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// More waited than the bound (1013).
    Slow,
    /// The relay stops (1012).
    Drain,
    /// No inbound frame for the idle timeout (1012).
    Idle,
    /// Two Pings without a sign of life (1012).
    Unanswered,
    /// The relay has been without its slot for too long (1012).
    Slot,
    /// The client joined more often than it may (1012).
    Joins,
    /// The peer broke the WebSocket protocol or a limit of it.
    Protocol,
    /// The peer closed.
    Peer,
}

impl CloseReason {
    /// A stable lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            CloseReason::Slow => "slow",
            CloseReason::Drain => "drain",
            CloseReason::Idle => "idle",
            CloseReason::Unanswered => "unanswered",
            CloseReason::Slot => "slot",
            CloseReason::Joins => "joins",
            CloseReason::Protocol => "protocol",
            CloseReason::Peer => "peer",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Nothing more is accepted; what is queued still goes out.
    Closing(CloseReason),
    Broken,
}

/// What became of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// They are queued but for so many, which were left out.
    But(usize),
    /// The connection is closing, or has become too slow.
    Refused,
}

struct State {
    queue: VecDeque<Bytes>,
    /// Bytes of the front frame that are out already.
    written: usize,
    /// Bytes queued and not out.
    waiting: usize,
    /// Frames that have left the queue.
    out: u64,
    /// The frame that is beyond the limit, if one waits: its place, counted like `out`, and its size.
    beyond: Option<(u64, usize)>,
    phase: Phase,
    /// The socket was full at the last write: only the connection's task writes until it has flushed.
    blocked: bool,
    /// The connection's task wants to hear of the next frames that others send.
    watched: bool,
    /// And there were some.
    noticed: bool,
}

impl State {
    /// Those of `waiting` that are of the frame beyond the limit.
    fn waiting_beyond(&self) -> usize {
        self.beyond.map_or(0, |(place, size)| if place == self.out { size - self.written } else { size })
    }
}

/// See the module's comment. Shared by the connection's task, the shard and whoever closes.
pub struct Outbox {
    number: u64,
    state: Mutex<State>,
    socket: Box<dyn Transmit>,
    attention: Notify,
    limit: usize,
    slow_close: Bytes,
}

/// Frames per system call. Linux takes 1024; more than a few dozen gains nothing (numbers.md §2).
const FRAMES_PER_WRITE: usize = 64;

impl Outbox {
    /// `limit`: bytes that may wait. `slow_close`: the complete WebSocket close frame for a slow consumer.
    pub fn new(socket: Box<dyn Transmit>, limit: usize, slow_close: Bytes) -> Outbox {
        let state = State {
            queue: VecDeque::new(),
            written: 0,
            waiting: 0,
            out: 0,
            beyond: None,
            phase: Phase::Open,
            blocked: false,
            watched: false,
            noticed: false,
        };
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Outbox { number, state: Mutex::new(state), socket, attention: Notify::new(), limit, slow_close }
    }

    /// The connection's, unique in the process.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a complete WebSocket frame. Says whether it was accepted: not on a connection that is closing or too slow.
    pub fn send(&self, frame: Bytes) -> bool {
        self.send_all(std::slice::from_ref(&frame))
    }

    /// Queues several complete frames and writes them together. The iterator runs while the outbox is held, so what it leaves
    /// out is decided at the instant at which the rest takes its place in the order.
    pub fn send_all<'a>(&self, frames: impl IntoIterator<Item = &'a Bytes>) -> bool {
        self.queue(frames.into_iter().map(|frame| (frame, false)), true) != Sent::Refused
    }

    /// The same of frames some of which may be left out: those that say so, are large, and don't fit.
    pub fn send_most<'a>(&self, frames: impl IntoIterator<Item = (&'a Bytes, bool)>) -> Sent {
        self.queue(frames, true)
    }

    /// The same for the connection's own frames, of which it need not be told.
    pub fn send_own<'a>(&self, frames: impl IntoIterator<Item = &'a Bytes>) -> bool {
        self.queue(frames.into_iter().map(|frame| (frame, false)), false) != Sent::Refused
    }

    /// Has [`Outbox::attention`] resolve at the next frames that others send; [`Outbox::noticed`] then says so.
    pub fn watch(&self) {
        self.lock().watched = true;
    }

    /// Whether others have sent frames since [`Outbox::watch`]. True once.
    pub fn noticed(&self) -> bool {
        std::mem::take(&mut self.lock().noticed)
    }

    fn queue<'a>(&self, frames: impl IntoIterator<Item = (&'a Bytes, bool)>, others: bool) -> Sent {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Sent::Refused;
        }
        let next = state.out + state.queue.len() as u64;
        let (was_empty, mut counted) = (state.waiting == 0, state.waiting - state.waiting_beyond());
        let (mut taken, mut size, mut left_out) = (SmallVec::<[Bytes; 8]>::new(), 0, 0);
        for (frame, may_miss) in frames {
            let length = frame.len();
            // A write of nothing would look like the end of the socket.
            if length == 0 {
                continue;
            }
            let is_large = length > if may_miss { self.limit / 4 } else { self.limit };
            if counted + length <= self.limit {
                counted += length;
            } else if is_large && state.beyond.is_none() {
                state.beyond = Some((next + taken.len() as u64, length));
            } else if is_large && may_miss {
                left_out += 1;
                continue;
            } else if was_empty {
                // A single answer larger than the bound must still fit into an empty outbox.
                counted += length;
            } else {
                self.shed(&mut state);
                return Sent::Refused;
            }
            size += length;
            taken.push(frame.clone());
        }
        if others && state.watched && size > 0 {
            (state.watched, state.noticed) = (false, true);
            self.attention.notify_one();
        }
        state.queue.extend(taken);
        state.waiting += size;
        self.write_if_free(&mut state);
        Sent::But(left_out)
    }

    /// Queues this close frame behind what waits; nothing is accepted after it. The first close wins.
    pub fn close(&self, reason: CloseReason, frame: Bytes) {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return;
        }
        state.phase = Phase::Closing(reason);
        state.waiting += frame.len();
        state.queue.push_back(frame);
        self.write_if_free(&mut state);
        self.attention.notify_one();
    }

    /// Drops what waits but the frame already begun, and closes as a slow consumer.
    fn shed(&self, state: &mut State) {
        let begun = state.written > 0;
        state.queue.truncate(usize::from(begun));
        state.beyond = None;
        state.queue.push_back(self.slow_close.clone());
        state.waiting = state.queue.iter().map(Bytes::len).sum::<usize>() - state.written;
        state.phase = Phase::Closing(CloseReason::Slow);
        self.attention.notify_one();
    }

    fn write_if_free(&self, state: &mut State) {
        if state.blocked {
            return;
        }
        match self.write(state) {
            Flushed::Empty => {}
            Flushed::Blocked => {
                state.blocked = true;
                self.attention.notify_one();
            }
            Flushed::Finished | Flushed::Broken => self.attention.notify_one(),
        }
    }

    fn write(&self, state: &mut State) -> Flushed {
        while !state.queue.is_empty() {
            let mut parts = [IoSlice::new(&[]); FRAMES_PER_WRITE];
            let mut count = 0;
            for (part, frame) in parts.iter_mut().zip(&state.queue) {
                let skip = if count == 0 { state.written } else { 0 };
                *part = IoSlice::new(&frame[skip..]);
                count += 1;
            }
            match self.socket.try_write_vectored(&parts[..count]) {
                Ok(0) => return self.fail(state),
                Ok(size) => {
                    state.waiting -= size;
                    let mut left = size;
                    while let Some(front) = state.queue.front() {
                        let rest = front.len() - state.written;
                        if left < rest {
                            state.written += left;
                            break;
                        }
                        left -= rest;
                        state.written = 0;
                        state.queue.pop_front();
                        state.out += 1;
                        state.beyond = state.beyond.filter(|(place, _)| *place >= state.out);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Blocked,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.fail(state),
            }
        }
        match self.socket.try_flush() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Flushed::Blocked,
            Err(_) => return self.fail(state),
        }
        // A burst may have grown the queue; an idle connection should not keep it.
        if state.queue.capacity() > FRAMES_PER_WRITE {
            state.queue.shrink_to(8);
        }
        if matches!(state.phase, Phase::Closing(_)) { Flushed::Finished } else { Flushed::Empty }
    }

    fn fail(&self, state: &mut State) -> Flushed {
        state.phase = Phase::Broken;
        state.queue.clear();
        state.beyond = None;
        state.waiting = 0;
        state.written = 0;
        Flushed::Broken
    }

    /// Resolves when the connection's task has something to do here: call [`Outbox::flush`].
    pub async fn attention(&self) {
        self.attention.notified().await;
    }

    /// Writes what waits. For the connection's task only, after `attention` and whenever the socket became writable.
    pub fn flush(&self) -> Flushed {
        let mut state = self.lock();
        if state.phase == Phase::Broken {
            return Flushed::Broken;
        }
        let flushed = self.write(&mut state);
        state.blocked = flushed == Flushed::Blocked;
        flushed
    }

    /// How many bytes may wait.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Whether the socket has taken everything.
    pub fn is_out(&self) -> bool {
        let state = self.lock();
        state.waiting == 0 && !state.blocked
    }

    /// Why it is closing, if it is.
    pub fn closing(&self) -> Option<CloseReason> {
        match self.lock().phase {
            Phase::Closing(reason) => Some(reason),
            Phase::Open | Phase::Broken => None,
        }
    }

    /// Whether frames are still accepted.
    pub fn is_open(&self) -> bool {
        self.lock().phase == Phase::Open
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A socket that takes `room` bytes and then blocks.
    #[derive(Clone, Default)]
    struct Pipe {
        inner: Arc<Mutex<(Vec<u8>, usize, bool)>>,
    }

    impl Pipe {
        fn make_room(&self, room: usize) {
            self.inner.lock().unwrap().1 += room;
        }
        fn bytes(&self) -> Vec<u8> {
            self.inner.lock().unwrap().0.clone()
        }
    }

    impl Transmit for Pipe {
        fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            let mut inner = self.inner.lock().unwrap();
            if inner.2 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let all: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
            let size = all.len().min(inner.1);
            if all.is_empty() {
                return Ok(0);
            }
            if size == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            inner.0.extend_from_slice(&all[..size]);
            inner.1 -= size;
            Ok(size)
        }
    }

    fn outbox(pipe: &Pipe, limit: usize) -> Outbox {
        Outbox::new(Box::new(pipe.clone()), limit, Bytes::from_static(b"<slow>"))
    }

    #[test]
    fn a_free_socket_is_written_at_once() {
        let pipe = Pipe::default();
        pipe.make_room(100);
        let outbox = outbox(&pipe, 10);
        assert!(outbox.send_all(&[Bytes::from_static(b"one"), Bytes::from_static(b"two")]));
        assert_eq!(pipe.bytes(), b"onetwo");
        assert_eq!(outbox.waiting(), 0);
    }

    #[test]
    fn an_empty_frame_is_none() {
        let pipe = Pipe::default();
        pipe.make_room(100);
        let outbox = outbox(&pipe, 10);
        assert!(outbox.send(Bytes::new()) && outbox.is_open());
        assert!(outbox.send_all(&[Bytes::new(), Bytes::from_static(b"one")]) && outbox.is_open());
        assert_eq!(pipe.bytes(), b"one");
    }

    #[test]
    fn what_does_not_fit_waits_and_leaves_in_order() {
        let pipe = Pipe::default();
        pipe.make_room(4);
        let outbox = outbox(&pipe, 100);
        outbox.send(Bytes::from_static(b"onetwo"));
        pipe.make_room(100);
        // The connection's task has not flushed yet: a later frame may not overtake.
        outbox.send(Bytes::from_static(b"three"));
        assert_eq!(pipe.bytes(), b"onet");
        assert_eq!(outbox.flush(), Flushed::Empty);
        assert_eq!(pipe.bytes(), b"onetwothree");
    }

    #[test]
    fn a_slow_consumer_is_closed_after_the_frame_already_begun() {
        let pipe = Pipe::default();
        pipe.make_room(2);
        let outbox = outbox(&pipe, 10);
        assert!(outbox.send(Bytes::from_static(b"12345")));
        assert!(outbox.send(Bytes::from_static(b"67")));
        assert!(!outbox.send(Bytes::from_static(b"abcdefgh")));
        assert_eq!(outbox.closing(), Some(CloseReason::Slow));
        assert!(!outbox.send(Bytes::from_static(b"x")));
        pipe.make_room(100);
        assert_eq!(outbox.flush(), Flushed::Finished);
        assert_eq!(pipe.bytes(), b"12345<slow>");
    }

    /// A socket that takes everything and lets it out when told.
    #[derive(Clone, Default)]
    struct Keeping(Arc<Mutex<bool>>);

    impl Transmit for Keeping {
        fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            Ok(parts.iter().map(|part| part.len()).sum())
        }

        fn try_flush(&self) -> io::Result<()> {
            if *self.0.lock().unwrap() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        }
    }

    #[tokio::test]
    async fn what_the_socket_keeps_is_asked_for_until_it_is_out() {
        let socket = Keeping::default();
        let outbox = Outbox::new(Box::new(socket.clone()), 10, Bytes::from_static(b"<slow>"));
        outbox.send(Bytes::from_static(b"one"));
        outbox.attention().await;
        assert_eq!((outbox.waiting(), outbox.flush()), (0, Flushed::Blocked));
        // Nothing is given to it meanwhile, and what waits is bounded as ever.
        outbox.send(Bytes::from_static(b"two"));
        assert_eq!(outbox.waiting(), 3);
        outbox.close(CloseReason::Drain, Bytes::from_static(b"<drain>"));
        assert_eq!(outbox.flush(), Flushed::Blocked);
        *socket.0.lock().unwrap() = true;
        assert_eq!(outbox.flush(), Flushed::Finished);
    }

    #[test]
    fn an_answer_larger_than_the_bound_fits_an_empty_outbox() {
        let pipe = Pipe::default();
        let outbox = outbox(&pipe, 10);
        assert!(outbox.send(Bytes::from(vec![b'x'; 50])));
        assert!(outbox.send(Bytes::from_static(b"0123456789")), "it does not use up what the others have");
        assert!(!outbox.send(Bytes::from_static(b"y")));
    }

    #[test]
    fn a_frame_larger_than_the_bound_waits_beside_it_one_at_a_time() {
        let (pipe, large) = (Pipe::default(), Bytes::from(vec![b'x'; 50]));
        let outbox = outbox(&pipe, 10);
        assert!(outbox.send(Bytes::from_static(b"one")) && outbox.send(large.clone()));
        pipe.make_room(30);
        assert_eq!((outbox.flush(), outbox.waiting()), (Flushed::Blocked, 23));
        assert!(outbox.send(Bytes::from_static(b"0123456789")));
        pipe.make_room(23);
        assert_eq!((outbox.flush(), outbox.waiting()), (Flushed::Blocked, 10));
        assert!(outbox.send(large.clone()), "the one before is out");
        assert!(!outbox.send(large));
        assert_eq!(outbox.closing(), Some(CloseReason::Slow));
    }

    #[test]
    fn large_frames_that_may_be_missed_are_left_out_and_small_ones_shed() {
        let (pipe, large) = (Pipe::default(), Bytes::from(vec![b'x'; 50]));
        let outbox = outbox(&pipe, 10);
        let small = Bytes::from_static(b"12");
        assert_eq!(outbox.send_most([(&large, true), (&large, true), (&small, true)]), Sent::But(1));
        assert_eq!(outbox.send_most([(&large, true)]), Sent::But(1));
        assert_eq!(outbox.waiting(), 52);
        pipe.make_room(52);
        assert_eq!((outbox.flush(), outbox.send_most([(&large, true)])), (Flushed::Empty, Sent::But(0)));
        (0..5).for_each(|_| assert_eq!(outbox.send_most([(&small, true)]), Sent::But(0)));
        assert_eq!(outbox.send_most([(&small, true)]), Sent::Refused);
        assert_eq!(outbox.closing(), Some(CloseReason::Slow));
    }

    #[test]
    fn the_close_frame_is_the_last() {
        let pipe = Pipe::default();
        let outbox = outbox(&pipe, 100);
        outbox.send(Bytes::from_static(b"one"));
        outbox.close(CloseReason::Drain, Bytes::from_static(b"<drain>"));
        outbox.close(CloseReason::Idle, Bytes::from_static(b"<idle>"));
        assert!(!outbox.send(Bytes::from_static(b"late")));
        pipe.make_room(100);
        assert_eq!(outbox.flush(), Flushed::Finished);
        assert_eq!(pipe.bytes(), b"one<drain>");
        assert_eq!(outbox.closing(), Some(CloseReason::Drain));
    }

    #[test]
    fn a_broken_socket_forgets_what_waits() {
        let pipe = Pipe::default();
        let outbox = outbox(&pipe, 100);
        outbox.send(Bytes::from_static(b"one"));
        pipe.inner.lock().unwrap().2 = true;
        assert_eq!(outbox.flush(), Flushed::Broken);
        assert_eq!(outbox.waiting(), 0);
        assert!(!outbox.is_open());
    }

    #[tokio::test]
    async fn attention_is_given_when_the_socket_blocks() {
        let pipe = Pipe::default();
        let outbox = outbox(&pipe, 100);
        outbox.send(Bytes::from_static(b"one"));
        outbox.attention().await;
        assert_eq!(outbox.flush(), Flushed::Blocked);
    }
}
