//! How far behind Postgres the facts are that rights on private channels rest on.
//!
//! ```text
//! rules reader ── where does WAL end? ──► mark ──► passed by the stream and by the hub: whatever
//!                                                  was committed before the question is in the facts
//! ```
//!
//! Invariants:
//! * The facts are as old as the newest mark that was passed; nothing else proves anything. A walsender that decodes something
//!   huge, a connection that is gone, an ingest that stands still, a hub that is late and a database that does not answer all
//!   look the same from here, and are the same to whoever has lost a right meanwhile.
//! * Facts that were old are believed again once a mark was passed that was asked for *after* the stream had been seen to be
//!   there: by then they have what Postgres was asked and has said meanwhile.
//! * A mark of another server than the one that the log is written from (a promotion that only one of the two has seen yet, a
//!   pool that reaches a restored cluster) is no mark: positions mean the same only in one history. Not seen is a copy of the
//!   server's files that went on without a timeline of its own.
//! * Nothing is asked while nobody's rights rest on facts, and nothing is written while the stream keeps up: WAL may end
//!   within a record that nobody completes, as a large open transaction leaves it, and only then a message of our own is sent.
//!
//! Rejected: commit times against the server's clock in the stream, which tell how late is what comes, and nothing while
//! nothing comes; a heartbeat each second, which has a database that is idle write for ever.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::change::Lsn;

/// Marks kept; of more, only the newest.
const MOST_MARKS: usize = 16;
/// A mark that takes longer may stand within a record.
const NUDGE_AFTER: Duration = Duration::from_millis(500);
/// The same while the facts are old, which is to end soon.
const NUDGE_SOON: Duration = Duration::from_millis(250);
/// A message that was sent for a mark may have been lost.
const NUDGE_AGAIN: Duration = Duration::from_secs(2);
/// Between two looks at a mark that was not passed yet.
const LOOK: Duration = Duration::from_millis(25);

/// Where WAL ended, and when that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) asked_at: Instant,
    pub(super) written: Lsn,
    pub(super) server: Server,
}

/// A cluster, by its system identifier, and a timeline of it.
pub(super) type Server = (u64, u32);

/// Facts that were old must have caught up to here, if they are old after `most`.
fn close(most: Duration) -> Duration {
    most * 3 / 4
}

/// What is known of the facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Age {
    /// They may be believed.
    #[default]
    Recent,
    /// Nothing yet.
    Unknown,
    /// They may say yes where Postgres says no by now.
    Old,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    wanted_since: Option<Instant>,
    /// Not passed yet, oldest first.
    marks: VecDeque<Mark>,
    /// The newest one that was passed.
    passed: Option<Instant>,
    age: Age,
    /// When the stream was seen to have caught up again.
    close_since: Option<Instant>,
    /// The mark for which a message was sent, and when.
    nudged: Option<(Instant, Instant)>,
}

impl Freshness {
    /// Whether it is to be known from now on. True: a mark should be asked for at once.
    pub(super) fn want(&mut self, wanted: bool, now: Instant) -> bool {
        if !wanted {
            *self = Freshness::default();
            return false;
        }
        let begins = self.wanted_since.is_none();
        if begins {
            (self.wanted_since, self.age) = (Some(now), Age::Unknown);
        }
        begins
    }

    /// An answer of Postgres; the same one may come again.
    pub(super) fn mark(&mut self, mark: Mark) {
        // One of before nobody wanted any tells nothing.
        if self.wanted_since.is_none_or(|since| mark.asked_at < since) {
            return;
        }
        let newest = self.marks.back().map(|mark| mark.asked_at).max(self.passed);
        if newest.is_some_and(|newest| mark.asked_at <= newest) {
            return;
        }
        if self.marks.len() >= MOST_MARKS {
            self.marks.pop_back();
        }
        self.marks.push_back(mark);
    }

    /// The facts are those of this position in the log that is written from this server, if that is known. Says whether that
    /// is news.
    pub(super) fn pass(&mut self, position: Lsn, server: impl FnOnce() -> Option<Server>) -> bool {
        if !self.marks.iter().any(|mark| mark.written <= position) {
            return false;
        }
        if let Some(server) = server() {
            self.marks.retain(|mark| mark.server == server);
        }
        // After a promotion, positions of before may lie ahead.
        let Some(newest) = self.marks.iter().rposition(|mark| mark.written <= position) else { return false };
        self.passed = self.marks.drain(..=newest).next_back().map(|mark| mark.asked_at);
        true
    }

    /// What is so now, given how old facts may be. The second: another mark should be asked for at once.
    pub(super) fn judge(&mut self, now: Instant, most: Duration) -> (Age, bool) {
        let Some(since) = self.passed.or(self.wanted_since) else { return (Age::Recent, false) };
        let old = now.saturating_duration_since(since);
        let mut asks = false;
        match self.age {
            _ if old > most => (self.age, self.close_since) = (Age::Old, None),
            Age::Old => match self.close_since {
                Some(at) if since >= at => (self.age, self.close_since) = (Age::Recent, None),
                None if old <= close(most) && self.passed.is_some() => (self.close_since, asks) = (Some(now), true),
                Some(_) | None => {}
            },
            Age::Unknown if self.passed.is_some() => self.age = Age::Recent,
            Age::Unknown | Age::Recent => {}
        }
        (self.age, asks)
    }

    /// Whether all is in the facts that was committed until so long before this moment.
    pub(super) fn covers(&self, moment: Instant, most: Duration) -> bool {
        self.age == Age::Recent && self.passed.is_some_and(|passed| passed + most >= moment)
    }

    /// How old they are at the most, as far as that is known.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        let since = self.passed.or(self.wanted_since);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Whether a message is to be sent through the stream now: seldom for one mark.
    pub(super) fn nudges(&mut self, now: Instant) -> bool {
        let Some(oldest) = self.marks.front().map(|mark| mark.asked_at) else { return false };
        let after = if self.age == Age::Old { NUDGE_SOON } else { NUDGE_AFTER };
        let sent = self.nudged.filter(|(mark, _)| *mark == oldest).map(|(_, at)| at);
        let due = now.saturating_duration_since(oldest) > after
            && sent.is_none_or(|at| now.saturating_duration_since(at) >= NUDGE_AGAIN);
        if due {
            self.nudged = Some((oldest, now));
        }
        due
    }

    /// When there is something to look at.
    pub(super) fn wakes_at(&self, now: Instant, most: Duration) -> Option<Instant> {
        let look = (!self.marks.is_empty()).then(|| now + LOOK);
        let ends = self.passed.or(self.wanted_since).filter(|_| self.age != Age::Old).map(|since| since + most + LOOK);
        look.into_iter().chain(ends).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(2);
    const SECOND: Duration = Duration::from_secs(1);
    const HERE: Server = (7, 1);

    /// Freshness and the time that passes.
    struct Play {
        freshness: Freshness,
        start: Instant,
        millis: u64,
    }

    impl Play {
        fn new() -> Play {
            let start = Instant::now();
            let mut freshness = Freshness::default();
            assert!(freshness.want(true, start) && !freshness.want(true, start));
            Play { freshness, start, millis: 0 }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        /// At this moment Postgres is asked, and says so.
        fn mark(&mut self, millis: u64, written: u64) {
            self.mark_of(HERE, millis, written);
        }

        fn mark_of(&mut self, server: Server, millis: u64, written: u64) {
            self.millis = millis;
            self.freshness.mark(Mark { asked_at: self.at(millis), written: Lsn(written), server });
        }

        /// At this moment the hub is there.
        fn pass(&mut self, millis: u64, position: u64) -> Age {
            self.millis = millis;
            self.freshness.pass(Lsn(position), || Some(HERE));
            self.judge(millis).0
        }

        fn judge(&mut self, millis: u64) -> (Age, bool) {
            let now = self.at(millis);
            self.freshness.judge(now, MOST)
        }
    }

    #[test]
    fn a_stream_that_keeps_up_is_never_old_however_quiet() {
        let mut play = Play::new();
        assert_eq!(play.judge(5).0, Age::Unknown);
        for second in 0..100 {
            play.mark(second * 1000 + 10, 100);
            assert_eq!(play.pass(second * 1000 + 900, 100), Age::Recent);
        }
    }

    #[test]
    fn silence_of_the_stream_and_silence_of_the_database_are_the_same() {
        for marks in [true, false] {
            let mut play = Play::new();
            play.mark(10, 100);
            assert_eq!(play.pass(20, 100), Age::Recent);
            for second in (1..4).filter(|_| marks) {
                play.mark(second * 1000, 200);
            }
            assert_eq!(play.judge(2010).0, Age::Recent);
            assert_eq!(play.judge(2011).0, Age::Old);
        }
        let mut play = Play::new();
        assert_eq!((play.judge(2000).0, play.judge(2001).0), (Age::Unknown, Age::Old), "not even once");
    }

    #[test]
    fn a_stream_that_goes_on_late_stays_old_and_one_that_is_there_is_believed_after_one_more_mark() {
        let mut play = Play::new();
        for second in 0..30 {
            play.mark(second * 1000, second * 10);
            let age = play.pass(second * 1000 + 500, (second * 10).saturating_sub(50));
            assert_eq!(age == Age::Old, second > 1, "{second}");
        }
        // All but the last second, and then all.
        assert_eq!(play.pass(29_600, 290), Age::Old);
        assert_eq!(play.judge(29_601), (Age::Old, false), "it was asked for already");
        play.mark(29_610, 290);
        assert_eq!(play.pass(29_620, 290), Age::Recent);
        assert_eq!(play.judge(31_610).0, Age::Recent);
    }

    #[test]
    fn the_first_sign_of_the_end_asks_for_the_second() {
        let mut play = Play::new();
        assert_eq!(play.judge(3000), (Age::Old, false));
        play.mark(3000, 10);
        play.freshness.pass(Lsn(10), || Some(HERE));
        assert_eq!(play.judge(3010), (Age::Old, true));
        assert!(!play.freshness.covers(play.at(3010), SECOND));
        play.mark(3005, 10);
        assert_eq!(play.pass(3011, 10), Age::Old, "asked before");
        play.mark(3020, 10);
        assert_eq!(play.pass(3021, 10), Age::Recent);
        assert!(play.freshness.covers(play.at(4020), SECOND) && !play.freshness.covers(play.at(4021), SECOND));
    }

    #[test]
    fn a_stream_with_a_lag_that_keeps_nobody_old_makes_nobody_old_for_ever() {
        for lag in [100, 600, 900] {
            let mut play = Play::new();
            assert_eq!(play.judge(3000).0, Age::Old);
            let mut asked = Vec::new();
            // As the reader of rules asks: each second, and when it is to.
            let (mut next, mut age) = (3001, Age::Old);
            for millis in 3001..10_000 {
                if millis == next {
                    asked.push(millis);
                    play.mark(millis, millis);
                    next += 1000;
                }
                play.freshness.pass(Lsn(millis - lag), || Some(HERE));
                let (is, asks) = play.judge(millis);
                if asks {
                    next = millis + 1;
                }
                assert!(age == Age::Old || is == Age::Recent, "{lag}: {millis}");
                age = is;
            }
            assert_eq!(age, Age::Recent, "{lag}");
        }
    }

    #[test]
    fn a_mark_of_another_server_proves_nothing_wherever_it_stands() {
        let mut play = Play::new();
        for (millis, other) in [(10, (7, 2)), (11, (8, 1))] {
            play.mark_of(other, millis, 50);
            assert_eq!(play.pass(millis, 100), Age::Unknown);
        }
        play.mark(20, 90);
        play.mark_of((7, 2), 30, 50);
        assert_eq!(play.pass(31, 100), Age::Recent);
        assert_eq!(play.freshness.passed, Some(play.at(20)));
        // Of which server the log is, is not known yet.
        play.mark_of((7, 2), 40, 50);
        assert!(play.freshness.pass(Lsn(100), || None));
    }

    #[test]
    fn marks_are_bounded_and_those_of_a_server_before_do_not_hold_up_those_of_the_next() {
        let mut play = Play::new();
        for second in 0..100 {
            play.mark(second, 1000 + second);
        }
        assert_eq!(play.freshness.marks.len(), MOST_MARKS);
        play.mark(101, 900);
        assert_eq!(play.pass(102, 900), Age::Recent);
        assert!(play.freshness.marks.is_empty());
    }

    #[test]
    fn a_message_is_sent_seldom_for_a_mark_that_is_not_passed() {
        let mut play = Play::new();
        play.mark(0, 10);
        assert!(!play.freshness.nudges(play.at(500)));
        assert!(play.freshness.nudges(play.at(501)) && !play.freshness.nudges(play.at(600)));
        play.mark(1000, 20);
        assert!(!play.freshness.nudges(play.at(1600)), "the oldest counts");
        play.pass(1700, 10);
        assert!(play.freshness.nudges(play.at(1700)));
        assert!(!play.freshness.nudges(play.at(3699)));
        assert!(play.freshness.nudges(play.at(3700)), "it may have been lost");
        assert_eq!(play.judge(5000).0, Age::Old);
        play.mark(5001, 30);
        play.pass(5002, 20);
        assert!(!play.freshness.nudges(play.at(5251)) && play.freshness.nudges(play.at(5252)), "sooner");
    }

    #[test]
    fn nothing_is_known_or_asked_while_nobody_wants_it() {
        let mut play = Play::new();
        play.mark(0, 10);
        let now = play.at(5000);
        assert!(!play.freshness.want(false, now));
        play.mark(5000, 10);
        assert_eq!(play.freshness.judge(now, MOST), (Age::Recent, false));
        assert_eq!((play.freshness.wakes_at(now, MOST), play.freshness.lag(now)), (None, Duration::ZERO));
        assert!(play.freshness.marks.is_empty() && !play.freshness.nudges(now));
        // One of before proves nothing when it is wanted again.
        play.freshness.want(true, now);
        play.mark(4999, 10);
        assert_eq!((play.pass(5000, 10), play.freshness.marks.len()), (Age::Unknown, 0));
        play.mark(5001, 10);
        assert_eq!(play.pass(5002, 10), Age::Recent);
    }
}
