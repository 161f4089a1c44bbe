//! How far a channel's entries are: asked for, active, refused, to be asked for again.
//!
//! Every channel has one entry that its client did not write, for the messages of its topic, and it is the last. Of that one
//! alone nothing is told. If the others are refused for good, it is asked for alone: the channel still gets broadcasts.
//!
//! At most one request per channel is under way at the hub, so their order is never in doubt: what a new token asks for while
//! one is under way is asked when that one is answered.

use std::time::{Duration, Instant};

use crate::hub::{Activated, Entry, Subscribed, Warning};
use crate::resume::Cursor;

/// What the door is to ask of the hub. It answers with [`Feed::answered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Activate the entries. `again`: something of this channel may still be there; it is to be forgotten first.
    Subscribe {
        /// See above.
        again: bool,
    },
    /// Put the channel's present principal in force.
    Reclaim,
}

/// The hub's answer to a [`Request`].
pub type Answer = Subscribed;

/// A `system` frame that the client is to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// `Subscribed to PostgreSQL`, and everything after this place will come.
    Subscribed(Option<Cursor>),
    /// Why not.
    Refused(String),
    /// Something about accepted entries, right after `Subscribed`.
    Warning(Warning),
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// A request is under way; `token`: a newer principal waits for its end.
    Asking {
        token: bool,
    },
    Active,
    /// Asked again at this time.
    Waiting(Instant),
    /// Not before the client acts.
    Refused,
}

/// Which entries go on where the channel was when they are asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoOn {
    /// None: each begins where it says.
    Nowhere,
    /// That of the messages alone.
    Messages,
    /// All.
    All,
}

/// The state of one channel's entries.
#[derive(Debug)]
pub struct Feed {
    entries: Vec<Entry>,
    /// The entry of messages is asked for without the others.
    alone: bool,
    /// It was, when entries were active the last time.
    was_alone: bool,
    state: State,
    /// The last error told, so that each try of a long outage does not repeat it.
    told: Option<String>,
    retry: Duration,
}

impl Feed {
    /// For at least one entry, that of messages being the last; the first request is `Subscribe { again: false }`. `retry`: time between tries, jittered.
    pub fn new(entries: Vec<Entry>, retry: Duration) -> Feed {
        Feed { entries, alone: false, was_alone: false, state: State::Asking { token: false }, told: None, retry }
    }

    /// Time between tries from now on.
    pub fn retry_every(&mut self, retry: Duration) {
        self.retry = retry;
    }

    /// What is asked for now.
    pub fn entries(&self) -> &[Entry] {
        let others = if self.alone { self.wanted() } else { 0 };
        &self.entries[others..]
    }

    /// What the channel wants, whether or not it is asked for now.
    pub fn all(&self) -> &[Entry] {
        &self.entries
    }

    /// How many of them the client wrote.
    pub fn wanted(&self) -> usize {
        self.entries.iter().filter(|entry| entry.messages.is_none()).count()
    }

    /// Which of [`Feed::entries`] were there before.
    pub fn goes_on(&self) -> GoOn {
        if self.was_alone { GoOn::Messages } else { GoOn::All }
    }

    /// Nothing is told of what is asked for now.
    fn is_quiet(&self) -> bool {
        self.entries().iter().all(|entry| entry.messages.is_some())
    }

    /// The same entries begin elsewhere from the next request on.
    pub fn begin_at(&mut self, entries: Vec<Entry>) {
        self.entries = entries;
    }

    /// When [`Feed::due`] has something to ask.
    pub fn wakes_at(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(at) => Some(at),
            _ => None,
        }
    }

    /// The next try, when its time has come.
    pub fn due(&mut self, now: Instant) -> Option<Request> {
        self.wakes_at().filter(|at| *at <= now)?;
        self.state = State::Asking { token: false };
        Some(Request::Subscribe { again: true })
    }

    /// The channel has a new principal.
    pub fn principal_changed(&mut self) -> Option<Request> {
        let request = match &mut self.state {
            State::Asking { token } => {
                *token = true;
                return None;
            }
            State::Active if !self.alone => Request::Reclaim,
            // What the old principal could not have, the new one may.
            State::Active | State::Waiting(_) | State::Refused => {
                self.alone = false;
                Request::Subscribe { again: true }
            }
        };
        self.told = None;
        self.state = State::Asking { token: false };
        Some(request)
    }

    /// The hub has answered the request under way: what to tell, and what to ask next.
    pub fn answered(&mut self, answer: Answer, now: Instant) -> (Vec<Notice>, Option<Request>) {
        let State::Asking { token } = self.state else { return (Vec::new(), None) };
        let quiet = self.is_quiet();
        let again = Request::Subscribe { again: true };
        match answer {
            Ok(Activated { warnings, cursor, told }) => {
                self.told = None;
                self.was_alone = self.alone;
                // The new token may have what the one before could not.
                let next = if std::mem::take(&mut self.alone) && token { again } else { Request::Reclaim };
                self.alone = self.was_alone && !token;
                self.state = if token { State::Asking { token: false } } else { State::Active };
                let subscribed = (!quiet).then_some(Notice::Subscribed(cursor));
                let notices = subscribed.into_iter().chain(warnings.into_iter().map(Notice::Warning));
                (notices.filter(|_| !told).collect(), token.then_some(next))
            }
            Err(error) if token => {
                // The new token may do better; that nothing came meanwhile must be told all the same.
                self.state = State::Asking { token: false };
                self.alone = false;
                ((!quiet).then_some(Notice::Refused(error.message)).into_iter().collect(), Some(again))
            }
            Err(error) => {
                let news = !quiet && self.told.as_ref() != Some(&error.message);
                if !quiet {
                    self.told = Some(error.message.clone());
                }
                let mut next = None;
                self.state = match error.retry {
                    true => State::Waiting(now + jittered(self.retry)),
                    false if !quiet && self.wanted() < self.entries.len() => {
                        self.alone = true;
                        next = Some(again);
                        State::Asking { token: false }
                    }
                    false => State::Refused,
                };
                (news.then_some(Notice::Refused(error.message)).into_iter().collect(), next)
            }
        }
    }
}

/// Between 0.8 and 1.2 of it: an outage must not end in a herd.
fn jittered(retry: Duration) -> Duration {
    retry.mul_f64(rand::random_range(0.8..1.2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Action, Messages, Name, Start, SubscribeError};

    fn entry(messages: bool) -> Entry {
        let messages = messages.then(|| Messages { topic: "t".into(), member: None, replayed: None });
        let (any, start) = (Name::Any, Start::Now);
        let (filter, select, cursor_as, snapshot) = (None, None, None, None);
        let id = i32::from(messages.is_none());
        Entry {
            id,
            action: Action::All,
            schema: any.clone(),
            table: any,
            filter,
            select,
            start,
            cursor_as,
            snapshot,
            messages,
        }
    }

    fn feed_of(entries: &[bool]) -> (Feed, Instant) {
        (Feed::new(entries.iter().copied().map(entry).collect(), Duration::from_secs(5)), Instant::now())
    }

    /// With one entry of its client's, and none of messages.
    fn feed() -> (Feed, Instant) {
        feed_of(&[false])
    }

    fn ids(feed: &Feed) -> Vec<i32> {
        feed.entries().iter().map(|entry| entry.id).collect()
    }

    fn error(message: &str, retry: bool) -> Answer {
        Err(SubscribeError { message: message.into(), retry })
    }

    #[test]
    fn success_is_told_once() {
        let (mut feed, now) = feed();
        assert_eq!(feed.answered(Ok(Activated::default()), now), (vec![Notice::Subscribed(None)], None));
        assert_eq!(feed.answered(Ok(Activated::default()), now), (vec![], None));
        assert_eq!(feed.due(now + Duration::from_secs(60)), None);
    }

    #[test]
    fn warnings_follow_the_good_news() {
        let (mut feed, now) = feed();
        let warning = |ok| Warning { ok, message: "no primary key".into() };
        let notices = vec![Notice::Subscribed(None), Notice::Warning(warning(false)), Notice::Warning(warning(true))];
        assert_eq!(
            feed.answered(Ok(Activated { warnings: vec![warning(false), warning(true)], ..Activated::default() }), now),
            (notices, None)
        );
        let told = Activated { warnings: vec![warning(true)], told: true, ..Activated::default() };
        feed.principal_changed();
        assert_eq!(feed.answered(Ok(told), now), (vec![], None), "it was told in order with the rows");
    }

    #[test]
    fn a_refusal_is_final_until_a_new_token() {
        let (mut feed, now) = feed();
        assert_eq!(feed.answered(error("no", false), now), (vec![Notice::Refused("no".into())], None));
        assert_eq!(feed.due(now + Duration::from_secs(60)), None);
        assert_eq!(feed.principal_changed(), Some(Request::Subscribe { again: true }));
        assert_eq!(feed.answered(error("no", false), now), (vec![Notice::Refused("no".into())], None));
    }

    #[test]
    fn an_outage_is_told_once_and_tried_again() {
        let (mut feed, now) = feed();
        assert_eq!(feed.answered(error("down", true), now).0, vec![Notice::Refused("down".into())]);
        assert_eq!(feed.due(now + Duration::from_secs(3)), None);
        let later = now + Duration::from_secs(6);
        assert_eq!(feed.due(later), Some(Request::Subscribe { again: true }));
        assert_eq!(feed.due(later), None);
        assert_eq!(feed.answered(error("down", true), later), (vec![], None));
        assert!(feed.wakes_at().is_some());
        assert_eq!(feed.due(later + Duration::from_secs(6)), Some(Request::Subscribe { again: true }));
        assert_eq!(feed.answered(Ok(Activated::default()), later), (vec![Notice::Subscribed(None)], None));
    }

    #[test]
    fn a_token_that_comes_while_asking_is_asked_for_afterwards() {
        let (mut feed, now) = feed();
        assert_eq!(feed.principal_changed(), None);
        assert_eq!(
            feed.answered(Ok(Activated::default()), now),
            (vec![Notice::Subscribed(None)], Some(Request::Reclaim))
        );
        assert_eq!(feed.principal_changed(), None);
        let told = vec![Notice::Refused("role".into())];
        assert_eq!(feed.answered(error("role", false), now), (told, Some(Request::Subscribe { again: true })));
        assert_eq!(feed.answered(Ok(Activated::default()), now), (vec![Notice::Subscribed(None)], None));
        assert_eq!(feed.principal_changed(), Some(Request::Reclaim));
    }

    #[test]
    fn of_messages_alone_nothing_is_told() {
        let (mut feed, now) = feed_of(&[true]);
        assert_eq!(feed.answered(error("down", true), now), (vec![], None));
        let later = now + Duration::from_secs(6);
        assert_eq!(feed.due(later), Some(Request::Subscribe { again: true }));
        assert_eq!(feed.answered(Ok(Activated::default()), later), (vec![], None));
        assert_eq!(feed.principal_changed(), Some(Request::Reclaim));
        assert_eq!(feed.answered(error("no", false), later), (vec![], None));
        assert_eq!(feed.due(later + Duration::from_secs(60)), None);
        assert_eq!(feed.principal_changed(), Some(Request::Subscribe { again: true }));
    }

    #[test]
    fn messages_are_asked_for_alone_when_the_others_are_refused_for_good() {
        let (mut feed, now) = feed_of(&[false, true]);
        assert_eq!((ids(&feed), feed.wanted()), (vec![1, 0], 1));
        let told = vec![Notice::Refused("no table".into())];
        assert_eq!(
            feed.answered(error("no table", false), now),
            (told.clone(), Some(Request::Subscribe { again: true }))
        );
        assert_eq!((ids(&feed), feed.all().len(), feed.wanted()), (vec![0], 2, 1));
        assert_eq!(feed.answered(Ok(Activated::default()), now), (vec![], None));
        assert_eq!(feed.goes_on(), GoOn::Messages);
        // A new token may have all of them.
        assert_eq!(feed.principal_changed(), Some(Request::Subscribe { again: true }));
        assert_eq!((ids(&feed), feed.goes_on()), (vec![1, 0], GoOn::Messages));
        assert_eq!(feed.answered(error("no table", false), now).0, told);
        assert_eq!(feed.principal_changed(), None);
        assert_eq!(feed.answered(Ok(Activated::default()), now), (vec![], Some(Request::Subscribe { again: true })));
        assert_eq!(ids(&feed), [1, 0]);
        assert_eq!(feed.answered(Ok(Activated::default()), now).0, vec![Notice::Subscribed(None)]);
        assert_eq!(feed.goes_on(), GoOn::All);
    }
}
