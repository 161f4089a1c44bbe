//! How far a channel's changes are: asked for, active, refused, to be asked for again.
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

/// The state of one channel's entries.
#[derive(Debug)]
pub struct Feed {
    entries: Vec<Entry>,
    state: State,
    /// The last error told, so that each try of a long outage does not repeat it.
    told: Option<String>,
    retry: Duration,
}

impl Feed {
    /// For at least one entry; the first request is `Subscribe { again: false }`. `retry`: time between tries, jittered.
    pub fn new(entries: Vec<Entry>, retry: Duration) -> Feed {
        Feed { entries, state: State::Asking { token: false }, told: None, retry }
    }

    /// Time between tries from now on.
    pub fn retry_every(&mut self, retry: Duration) {
        self.retry = retry;
    }

    /// What is asked for.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
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
            State::Active => Request::Reclaim,
            // What the old principal could not have, the new one may.
            State::Waiting(_) | State::Refused => Request::Subscribe { again: true },
        };
        self.told = None;
        self.state = State::Asking { token: false };
        Some(request)
    }

    /// The hub has answered the request under way: what to tell, and what to ask next.
    pub fn answered(&mut self, answer: Answer, now: Instant) -> (Vec<Notice>, Option<Request>) {
        let State::Asking { token } = self.state else { return (Vec::new(), None) };
        match answer {
            Ok(Activated { warnings, cursor }) => {
                self.told = None;
                self.state = if token { State::Asking { token: false } } else { State::Active };
                let warnings = warnings.into_iter().map(Notice::Warning);
                let notices = std::iter::once(Notice::Subscribed(cursor)).chain(warnings);
                (notices.collect(), token.then_some(Request::Reclaim))
            }
            Err(error) if token => {
                // The new token may do better; that nothing came meanwhile must be told all the same.
                self.state = State::Asking { token: false };
                (vec![Notice::Refused(error.message)], Some(Request::Subscribe { again: true }))
            }
            Err(error) => {
                self.state = if error.retry { State::Waiting(now + jittered(self.retry)) } else { State::Refused };
                let news = self.told.as_ref() != Some(&error.message);
                self.told = Some(error.message.clone());
                (news.then_some(Notice::Refused(error.message)).into_iter().collect(), None)
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
    use crate::hub::SubscribeError;

    fn feed() -> (Feed, Instant) {
        (Feed::new(Vec::new(), Duration::from_secs(5)), Instant::now())
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
            feed.answered(Ok(Activated { warnings: vec![warning(false), warning(true)], cursor: None }), now),
            (notices, None)
        );
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
}
