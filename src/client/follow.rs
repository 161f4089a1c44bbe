//! A subscription that outlives its connections.
//!
//! What ended by itself is begun again, with growing and random pauses, after the last change that was handed out: none is
//! missed and none comes twice, if the server gives cursors. What a person must mend ends it. The first
//! subscription has a deadline, since an address that was mistyped answers never.

use std::time::Duration;

use tokio::time::Instant;

use super::{Asked, Change, ClientError, Connection, Message, Notice};
use crate::error::{Fault as _, Remedy};
use crate::wal::Backoff;

/// For one attempt: more than the server holds a join.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Within which the first subscription must succeed.
const FIRST: Duration = Duration::from_secs(20);
/// A connection that held this long was a good one: the next pause is short again.
const GOOD: Duration = Duration::from_secs(10);

/// What there is to tell.
#[derive(Debug)]
pub enum News {
    /// Changes flow from here on.
    Subscribed {
        /// Not for the first time.
        again: bool,
        /// After the last thing that was told: what was committed in between comes, or is told to be lost.
        resumed: bool,
    },
    /// A change.
    Change(Change),
    /// The relay has something to say.
    Notice(Notice),
    /// The connection is lost, or there was none; it is tried again.
    Lost {
        /// Why.
        why: ClientError,
        /// When.
        pause: Duration,
    },
}

/// The subscription.
pub struct Follow {
    asked: Asked,
    connection: Option<(Connection, Instant)>,
    backoff: Backoff,
    pause: Duration,
    first_until: Instant,
    was_subscribed: bool,
}

impl Follow {
    /// Nothing is connected before the first [`Follow::next`].
    pub fn new(asked: Asked) -> Follow {
        Follow {
            asked,
            connection: None,
            backoff: Backoff::new(),
            pause: Duration::ZERO,
            first_until: Instant::now() + FIRST,
            was_subscribed: false,
        }
    }

    /// Whether changes have flowed at some time.
    pub fn was_subscribed(&self) -> bool {
        self.was_subscribed
    }

    /// The next thing to tell. An error is the end: a person must do something.
    pub async fn next(&mut self) -> Result<News, ClientError> {
        let Some((connection, since)) = &mut self.connection else { return self.connect().await };
        match connection.next().await {
            Ok(Message::Change(change)) => {
                self.reached(change.cursor());
                Ok(News::Change(change))
            }
            Ok(Message::Notice(notice)) => {
                self.reached(notice.cursor.clone());
                Ok(News::Notice(notice))
            }
            Err(why) => {
                if since.elapsed() >= GOOD {
                    self.backoff.reset();
                }
                self.connection = None;
                self.lost(why)
            }
        }
    }

    async fn connect(&mut self) -> Result<News, ClientError> {
        tokio::time::sleep(self.pause).await;
        let now = Instant::now();
        let limit = if self.was_subscribed { ATTEMPT } else { ATTEMPT.min(self.first_until.duration_since(now)) };
        match Connection::open(&self.asked, limit).await {
            Ok(connection) => {
                let resumed = connection.begins().is_some() && self.asked.since.is_some();
                self.reached(connection.begins().map(str::to_owned));
                self.connection = Some((connection, Instant::now()));
                let again = std::mem::replace(&mut self.was_subscribed, true);
                Ok(News::Subscribed { again, resumed })
            }
            Err(why) => self.lost(why),
        }
    }

    /// The next connection goes on after this place.
    fn reached(&mut self, cursor: Option<String>) {
        if cursor.is_some() {
            self.asked.since = cursor;
        }
    }

    /// The place after the last thing that was told: with it, nothing is missed and nothing repeated. `None` from a server
    /// that tells none; before the first change, what was asked for.
    pub fn cursor(&self) -> Option<&str> {
        self.asked.since.as_deref()
    }

    fn lost(&mut self, why: ClientError) -> Result<News, ClientError> {
        let pause = self.backoff.next();
        let too_late = !self.was_subscribed && Instant::now() + pause >= self.first_until;
        if why.remedy() != Remedy::Retry || too_late {
            return Err(why);
        }
        self.pause = pause;
        Ok(News::Lost { why, pause })
    }

    /// Says goodbye.
    pub async fn close(self) {
        if let Some((connection, _)) = self.connection {
            connection.close().await;
        }
    }
}
