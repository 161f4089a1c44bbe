//! When a connection's peer is asked whether it is there and what it has received: Pings, their Pongs, and heartbeats. No I/O.
//!
//! A Pong proves that the peer's WebSocket has had every frame that was queued before its Ping. So with each Ping goes, for every
//! channel of a device, how far the channel was when the Ping was queued ([`Mark`]), and that is what the Pong receipts.
//!
//! Invariants:
//! * One Ping is outstanding, or two if the peer has been silent since the first. Never one per row: rows are asked about once a
//!   second at most, silence every 25 s.
//! * Only a peer that shows no life at all is given up: one that is slow has megabytes of rows before the Ping.
//!
//! The hub says how far a channel is only a moment after its rows are written. So the first Ping behind rows waits a little, and
//! when it is answered one more follows, a second later, for what was not said by then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::fail::{self, Point};
use crate::gateway::{DeviceConfig, Receipt};
use crate::resume::{Cursor, Handles};

/// What a receipt moves, and to where; `rows`: there may be rows among it.
#[derive(Debug, Clone)]
pub(super) struct Mark {
    pub(super) handles: Arc<Handles>,
    pub(super) to: Option<Cursor>,
    pub(super) rows: bool,
    /// Only the entry of messages was in force, whose frontier is the last.
    pub(super) alone: bool,
}

impl Mark {
    fn receipt(&self, now: Instant) {
        self.handles.alive(now);
        if let Some(to) = self.to {
            match self.alone {
                true => self.handles.advance_last(to, self.rows),
                false => self.handles.advance(to, self.rows),
            }
            fail::point(Point::Receipted);
        }
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// To be sent, and told with [`Receipts::pinged`].
    Ping,
    /// The peer has not answered.
    Dead,
}

struct Sent {
    number: u64,
    at: Instant,
    marks: Vec<Mark>,
    busy: bool,
}

/// One connection's.
pub(super) struct Receipts {
    config: DeviceConfig,
    /// Somewhat different for each connection, so that those who came together are not asked together.
    quiet: Duration,
    next: u64,
    sent: SmallVec<[Sent; 2]>,
    last: Instant,
    /// When the peer last showed life.
    alive: Instant,
    /// Rows were written: ask then.
    due: Option<Instant>,
    busy: bool,
    /// It names a device, so that quiet progress is of interest too.
    tracked: bool,
    /// What was before the reply to the last heartbeat.
    heartbeat: Vec<Mark>,
}

impl Receipts {
    pub(super) fn new(config: DeviceConfig, now: Instant) -> Receipts {
        let quiet = config.quiet.mul_f64(rand::random_range(0.8..=1.0));
        Receipts {
            config,
            quiet,
            next: 1,
            sent: SmallVec::new(),
            last: now,
            alive: now,
            due: None,
            busy: false,
            tracked: false,
            heartbeat: Vec::new(),
        }
    }

    /// A channel of a device has joined.
    pub(super) fn track(&mut self) {
        self.tracked = true;
    }

    /// Rows were written.
    pub(super) fn written(&mut self, now: Instant) {
        self.busy = true;
        let due = (now + self.config.behind).max(self.last + self.config.busy);
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Somebody wants to know whether the peer is there.
    pub(super) fn probe(&mut self, now: Instant) {
        if self.sent.is_empty() {
            self.due = Some(now);
        }
    }

    /// Anything came from the peer, but for the end.
    pub(super) fn inbound(&mut self, now: Instant) {
        self.alive = now;
    }

    pub(super) fn alive(&self) -> Instant {
        self.alive
    }

    /// `None`: nothing until the peer says something, or is closed for saying nothing.
    fn next_due(&self) -> Option<Instant> {
        match self.sent.as_slice() {
            [] => {
                let quiet = if self.tracked { self.last } else { self.last.max(self.alive) } + self.quiet;
                Some(self.due.map_or(quiet, |due| due.min(quiet)))
            }
            [one] => Some(one.at.max(self.alive) + self.config.unanswered),
            // It has talked since, so it is not gone: it is slow, or answers no Pings.
            [first, ..] if self.alive > first.at => None,
            [.., last] => Some(last.at + self.config.unanswered),
        }
    }

    /// How long until [`Receipts::due`] may say something.
    pub(super) fn wake(&self, now: Instant) -> Duration {
        self.next_due().map_or(Duration::MAX, |due| due.saturating_duration_since(now))
    }

    pub(super) fn due(&self, now: Instant) -> Due {
        match self.next_due() {
            Some(due) if due <= now && self.sent.len() < 2 => Due::Ping,
            Some(due) if due <= now => Due::Dead,
            _ => Due::Nothing,
        }
    }

    /// The number of the Ping that is to be queued, after the marks were read.
    pub(super) fn pinged(&mut self, marks: Vec<Mark>, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.last = now;
        // What was written since may be behind the marks of the first, and is not behind the second's.
        self.sent.push(Sent { number, at: now, marks, busy: std::mem::take(&mut self.busy) });
        self.due = None;
        number
    }

    /// A Pong came. How long it took, if it is the answer to something.
    pub(super) fn pong(&mut self, payload: &[u8], now: Instant) -> Option<Duration> {
        let number: u64 = std::str::from_utf8(payload).ok()?.parse().ok()?;
        // The answer to one is the answer to those before it (RFC 6455 §5.5.3).
        let place = self.sent.iter().position(|sent| sent.number == number)?;
        let mut answered: SmallVec<[Sent; 2]> = self.sent.drain(..=place).collect();
        let busy = answered.iter().any(|sent| sent.busy);
        let last = answered.pop()?;
        match self.config.receipt {
            Receipt::Pong => last.marks.iter().for_each(|mark| mark.receipt(now)),
            // It may be the proxy's.
            Receipt::Heartbeat => last.marks.iter().for_each(|mark| mark.handles.alive(now)),
        }
        if busy && self.config.receipt == Receipt::Pong {
            let due = self.last + self.config.busy;
            self.due = Some(self.due.map_or(due, |before| before.min(due)));
        }
        Some(now.saturating_duration_since(last.at))
    }

    /// Whether the marks are wanted when a heartbeat with a ref comes, before its reply is queued.
    pub(super) fn wants_heartbeats(&self) -> bool {
        self.tracked && self.config.receipt == Receipt::Heartbeat
    }

    /// Such a heartbeat came: its sender has processed the reply to the one before.
    pub(super) fn heartbeat(&mut self, marks: Vec<Mark>, now: Instant) {
        std::mem::replace(&mut self.heartbeat, marks).iter().for_each(|mark| mark.receipt(now));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::change::{Lsn, Position};
    use crate::claims::Principal;
    use crate::resume::{Frontiers, Key, Wanted};

    #[test]
    fn while_only_messages_are_in_force_their_frontier_moves_alone() {
        let frontiers = Frontiers::in_memory(Default::default(), Default::default());
        let claims = json!({"role": "anon"});
        let principal = Principal::new(claims.as_object().unwrap().clone(), i64::MAX).unwrap();
        let at = |lsn| Cursor { epoch: 1, position: Position { lsn: Lsn(lsn), ordinal: 0 } };
        let wanted = ["{}", r#"{"messages":true}"#].map(|entry| {
            let key = Key::new(&principal, "phone", "realtime:t", entry);
            Wanted { key, since: None, otherwise: Some(at(5)) }
        });
        let now = Instant::now();
        let (_, tracked) = frontiers.join(&wanted, Some(1), &Default::default(), now);
        let mark = |lsn, alone| Mark { handles: tracked.handles(), to: Some(at(lsn)), rows: true, alone };
        let places = || wanted.each_ref().map(|wanted| frontiers.peek(&wanted.key));
        mark(9, true).receipt(now);
        assert_eq!(places(), [Some(at(5)), Some(at(9))]);
        mark(12, false).receipt(now);
        assert_eq!(places(), [Some(at(12)), Some(at(12))]);
    }

    struct Stage {
        receipts: Receipts,
        now: Instant,
    }

    fn stage() -> Stage {
        let now = Instant::now();
        let mut receipts = Receipts::new(DeviceConfig::default(), now);
        receipts.quiet = receipts.config.quiet;
        Stage { receipts, now }
    }

    impl Stage {
        fn pass(&mut self, millis: u64) -> Due {
            self.now += Duration::from_millis(millis);
            let due = self.receipts.due(self.now);
            assert_eq!(due != Due::Nothing, self.receipts.wake(self.now).is_zero(), "nobody is woken for nothing");
            due
        }

        fn ping(&mut self) -> Vec<u8> {
            self.receipts.pinged(Vec::new(), self.now).to_string().into_bytes()
        }

        fn pong(&mut self, payload: &[u8]) -> Option<Duration> {
            self.receipts.inbound(self.now);
            self.receipts.pong(payload, self.now)
        }
    }

    #[test]
    fn a_quiet_peer_is_asked_every_25_seconds_and_a_talking_one_is_not() {
        let mut stage = stage();
        assert_eq!(stage.pass(24_999), Due::Nothing);
        assert_eq!(stage.pass(1), Due::Ping);
        let ping = stage.ping();
        assert_eq!(stage.pass(100), Due::Nothing);
        assert_eq!(stage.pong(&ping), Some(Duration::from_millis(100)));
        for _ in 0..10 {
            assert_eq!(stage.pass(20_000), Due::Nothing);
            stage.receipts.inbound(stage.now);
        }
        // Of a device it is of interest where it is.
        stage.receipts.track();
        assert_eq!(stage.pass(1), Due::Ping);
    }

    #[test]
    fn rows_are_asked_about_soon_and_then_once_a_second_and_once_more() {
        let mut stage = stage();
        stage.pass(5000);
        stage.receipts.written(stage.now);
        assert_eq!(stage.pass(99), Due::Nothing);
        assert_eq!(stage.pass(1), Due::Ping);
        let ping = stage.ping();
        // One at a time, however many rows there are.
        stage.receipts.written(stage.now);
        assert_eq!(stage.pass(3000), Due::Nothing);
        stage.pong(&ping);
        assert_eq!(stage.pass(0), Due::Ping);
        let ping = stage.ping();
        stage.pass(10);
        stage.pong(&ping);
        assert_eq!(stage.pass(989), Due::Nothing);
        assert_eq!(stage.pass(1), Due::Ping, "what was not said by then");
        let ping = stage.ping();
        stage.pong(&ping);
        assert_eq!(stage.pass(24_999), Due::Nothing);
        assert_eq!(stage.pass(1), Due::Ping);
    }

    #[test]
    fn a_peer_without_a_sign_of_life_is_given_up_after_two_pings() {
        let mut stage = stage();
        assert_eq!(stage.pass(25_000), Due::Ping);
        stage.ping();
        assert_eq!(stage.pass(14_999), Due::Nothing);
        assert_eq!(stage.pass(1), Due::Ping);
        let second = stage.ping();
        assert_eq!(stage.pass(14_999), Due::Nothing);
        assert_eq!(stage.pass(1), Due::Dead);
        // A Pong at the last moment answers both.
        assert_eq!(stage.pong(&second), Some(Duration::from_secs(15)));
        assert!(stage.receipts.sent.is_empty());
    }

    #[test]
    fn who_talks_and_does_not_answer_is_slow_and_not_dead() {
        let mut stage = stage();
        stage.pass(25_000);
        let ping = stage.ping();
        for _ in 0..20 {
            assert_eq!(stage.pass(14_000), Due::Nothing);
            stage.receipts.inbound(stage.now);
        }
        assert_eq!(stage.pass(15_000), Due::Ping);
        stage.ping();
        assert_eq!(stage.pass(60_000), Due::Nothing, "how long it may be silent is another's business");
        assert!(stage.pong(&ping).is_some());
    }

    #[test]
    fn only_an_answer_to_what_was_asked_counts() {
        let mut stage = stage();
        stage.pass(25_000);
        let ping = stage.ping();
        for wrong in [&b""[..], b"x", b"2", b"0", b"-1", b"99999999999999999999999"] {
            assert_eq!(stage.pong(wrong), None);
        }
        assert!(stage.pong(&ping).is_some());
        assert_eq!(stage.pong(&ping), None, "once");
    }

    #[test]
    fn a_probe_asks_at_once_unless_somebody_asks_already() {
        let mut stage = stage();
        stage.pass(100);
        stage.receipts.probe(stage.now);
        assert_eq!(stage.pass(0), Due::Ping);
        stage.ping();
        stage.receipts.probe(stage.now);
        assert_eq!(stage.pass(1), Due::Nothing);
    }
}
