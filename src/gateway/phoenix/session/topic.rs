//! What a session keeps about one topic: a joined channel, or what waits there and the messages that wait behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::devices::Kept;
use super::fresh::Fresh;
use super::join::Found;
use super::members::Membership;
use super::presence::Calls;
use super::{Effect, Now};
use crate::channel::{Feed, GoOn, Notice, Request};
use crate::claims::Principal;
use crate::gateway::encode::details;
use crate::gateway::phoenix::codec::{self, Message, Ref, Status};
use crate::hub::{ChannelId, Details, SUBSCRIBED, Stage, Version};
use crate::metrics::Metrics;
use crate::resume::CursorKey;

pub(super) enum Topic {
    Joined(Box<Channel>),
    /// What comes for it waits.
    Pending(Box<Pending>),
}

pub(super) struct Pending {
    pub(super) what: What,
    pub(super) backlog: Backlog,
}

/// What a topic waits for.
pub(super) enum What {
    /// A join was refused, and the answer is held back until then.
    Refusing { frames: Vec<Bytes>, until: Instant },
    /// A join waits for something. `after`: frames that follow the join's reply.
    Join { join: Message<'static>, after: Vec<Bytes>, found: Box<Found>, waits: Waits },
    /// The channel is joined; a message of its client's waits for something. `None`: it has taken effect but for that.
    Push { channel: Box<Channel>, push: Option<Message<'static>>, waits: Waits },
    /// A join is answered when its changes are active.
    Held { channel: Box<Channel>, held: Held },
}

/// For what a message waits. Each comes within a bound of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    /// Keys of tokens.
    Keys,
    /// The answer to a question about rights, or to one for stored messages: which.
    Answer(u64),
}

/// Messages that wait, in order.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) messages: Vec<Message<'static>>,
    pub(super) bytes: usize,
}

impl Backlog {
    /// Whether the client has left the topic, or joined it anew.
    pub(super) fn ends(&self) -> bool {
        self.messages.iter().any(|message| matches!(message.event.as_ref(), "phx_leave" | "phx_join"))
    }
}

/// A join whose reply waits until its changes are active.
pub(super) struct Held {
    /// Of the latest request to the hub.
    pub(super) stage: Arc<Stage>,
    /// The join reply and what follows it.
    pub(super) greeting: Bytes,
    /// For what is replayed in it.
    pub(super) room: Option<OwnedSemaphorePermit>,
    /// The join frame's ref.
    pub(super) reference: Ref,
    /// Frames that follow also another reply than the one in `greeting`.
    pub(super) after: Vec<Bytes>,
    pub(super) until: Instant,
    /// How long that was.
    pub(super) wait: Duration,
    /// Why the latest try failed.
    pub(super) last: Option<String>,
}

pub(super) struct Channel {
    pub(super) id: ChannelId,
    pub(super) topic: Arc<str>,
    /// Of the join frame, unaltered.
    pub(super) join_ref: Ref,
    /// The join frame's join_ref, or its ref if that was null.
    pub(super) own_ref: Ref,
    pub(super) token: Arc<str>,
    pub(super) principal: Arc<Principal>,
    /// Each broadcast is answered.
    pub(super) ack: bool,
    /// Its own broadcasts come back to it.
    pub(super) echo: bool,
    /// It is to be told when broadcasts from the database flow.
    pub(super) replication_ready: bool,
    /// Whether others' messages may reach it, and its presence state: from its reply on.
    pub(super) stage: Arc<Stage>,
    /// Presence was asked for at the join.
    pub(super) presence: bool,
    /// Its presence key.
    pub(super) key: Arc<str>,
    pub(super) calls: Calls,
    /// Of a private channel.
    pub(super) member: Option<Box<Membership>>,
    pub(super) feed: Feed,
    /// Of a client that keeps cursors.
    pub(super) fresh: Option<Fresh>,
    /// Of its device.
    pub(super) kept: Kept,
    /// Of the latest request to the hub.
    pub(super) asked: Option<Arc<Stage>>,
    /// Bytes of the join, if its entries are kept.
    pub(super) kept_bytes: usize,
    pub(super) _counted: Counted,
}

/// Keeps the gauge of channels true, however a channel ends.
pub(super) struct Counted(Arc<Metrics>);

impl Counted {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Counted {
        metrics.channels.inc();
        Counted(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.channels.dec();
    }
}

impl Topic {
    pub(super) fn pending(what: What, backlog: Backlog) -> Topic {
        Topic::Pending(Box::new(Pending { what, backlog }))
    }

    pub(super) fn channel(&self) -> Option<&Channel> {
        match self {
            Topic::Joined(channel) => Some(channel),
            Topic::Pending(pending) => match &pending.what {
                What::Push { channel, .. } | What::Held { channel, .. } => Some(channel),
                What::Refusing { .. } | What::Join { .. } => None,
            },
        }
    }

    pub(super) fn channel_mut(&mut self) -> Option<&mut Channel> {
        match self {
            Topic::Joined(channel) => Some(channel),
            Topic::Pending(pending) => match &mut pending.what {
                What::Push { channel, .. } | What::Held { channel, .. } => Some(channel),
                What::Refusing { .. } | What::Join { .. } => None,
            },
        }
    }

    pub(super) fn held(&self) -> Option<&Held> {
        match self {
            Topic::Pending(pending) => match &pending.what {
                What::Held { held, .. } => Some(held),
                _ => None,
            },
            Topic::Joined(_) => None,
        }
    }

    /// What a message on it waits for.
    pub(super) fn waits(&self) -> Option<Waits> {
        match self {
            Topic::Pending(pending) => match &pending.what {
                What::Join { waits, .. } | What::Push { waits, .. } => Some(*waits),
                What::Refusing { .. } | What::Held { .. } => None,
            },
            Topic::Joined(_) => None,
        }
    }

    /// The request as it is to be put to the hub.
    pub(super) fn ask(&mut self, request: Request) -> Option<Effect> {
        if let Topic::Pending(pending) = self
            && let What::Held { channel, held } = &mut pending.what
        {
            return Some(channel.ask_held(held, matches!(request, Request::Subscribe { again: true })));
        }
        self.channel_mut().map(|channel| channel.ask_as_due(request))
    }

    /// Whether its time is over: the token's, the held join's, the refusal's. Also while a message of the channel waits for an
    /// answer, for its room goes by its rights alone; but not while the keys of its next token are fetched.
    pub(super) fn is_due(&self, now: Now) -> bool {
        match self {
            Topic::Joined(channel) => channel.principal.is_expired(now.seconds()),
            Topic::Pending(pending) => match &pending.what {
                What::Refusing { until, .. } => *until <= now.at,
                What::Held { channel, held } => held.until <= now.at || channel.principal.is_expired(now.seconds()),
                What::Push { channel, waits: Waits::Answer(_), .. } => channel.principal.is_expired(now.seconds()),
                What::Join { .. } | What::Push { .. } => false,
            },
        }
    }

    /// Whether it is, or may become, a channel.
    pub(super) fn is_channel(&self) -> bool {
        !matches!(self, Topic::Pending(pending) if matches!(pending.what, What::Refusing { .. }))
    }

    /// How long until time alone changes something.
    pub(super) fn next_tick(&self, now: Now) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(now.at);
        let channel = self.channel();
        let retry = channel.and_then(|channel| channel.feed.wakes_at()).map(until);
        let rights = channel.and_then(|channel| channel.member.as_ref()?.wakes_at()).map(until);
        let expiry = |channel: &Channel| {
            let millis = channel.principal.expires_at.saturating_mul(1000).saturating_sub(now.unix_millis);
            Duration::from_millis(u64::try_from(millis).unwrap_or(0))
        };
        let own = match self {
            Topic::Joined(channel) => Some(expiry(channel)),
            Topic::Pending(pending) => match &pending.what {
                What::Refusing { until: at, .. } => Some(until(*at)),
                What::Held { channel, held } => Some(expiry(channel).min(until(held.until))),
                What::Push { channel, waits: Waits::Answer(_), .. } => Some(expiry(channel)),
                // What it waits for comes, or doesn't, within a bound of its own.
                What::Join { .. } | What::Push { .. } => None,
            },
        };
        [own, retry, rights].into_iter().flatten().min()
    }
}

impl Channel {
    /// Whether a leave is for an earlier instance, from which the client has moved on; null is a match (decision 2).
    pub(super) fn is_stale(&self, leave: &Message<'_>) -> bool {
        !leave.join_ref.is_null() && leave.join_ref != self.own_ref
    }

    /// The request of a channel whose join is answered.
    pub(super) fn ask(&mut self, request: Request) -> Effect {
        match request {
            Request::Reclaim => {
                let (principal, tracked) = (self.principal.clone(), self.kept.tracked());
                Effect::Reclaim { id: self.id, principal, tracked }
            }
            Request::Subscribe { again } => self.subscribe(again, Arc::new(Stage::greeted()), None),
        }
    }

    /// The request of a channel whose join is held, with a stage of its own: an earlier try can't greet any more.
    pub(super) fn ask_held(&mut self, held: &mut Held, again: bool) -> Effect {
        held.stage = Arc::new(Stage::waiting_with(self.stage.clone()));
        self.subscribe(again, held.stage.clone(), Some(held.greeting.clone()))
    }

    /// From now on no change of what was asked for is written, nor any notice about it, whenever the hub hears of that.
    pub(super) fn hush(&self) {
        self.asked.iter().for_each(|stage| stage.close());
    }

    fn subscribe(&mut self, again: bool, stage: Arc<Stage>, greeting: Option<Bytes>) -> Effect {
        self.asked = Some(stage.clone());
        let entries = self.feed.entries().to_vec();
        let (topic, join_ref, principal) = (self.topic.clone(), self.own_ref.clone(), self.principal.clone());
        let go_on = if again { self.feed.goes_on() } else { GoOn::Nowhere };
        let (id, tracked) = (self.id, self.kept.tracked());
        Effect::Subscribe { id, topic, join_ref, entries, principal, again, go_on, stage, greeting, tracked }
    }

    /// A `system` frame about its changes.
    pub(super) fn notice(&self, version: Version, key: &CursorKey, notice: &Notice) -> Effect {
        let (status, text) = match notice {
            Notice::Subscribed(_) => (Status::Ok, SUBSCRIBED),
            Notice::Refused(text) => (Status::Error, text.as_str()),
            Notice::Warning(warning) => (if warning.ok { Status::Ok } else { Status::Error }, warning.message.as_str()),
        };
        let more = match notice {
            Notice::Subscribed(Some(cursor)) => details(Details::Reached(*cursor), key),
            _ => String::new(),
        };
        Effect::Send(codec::system(version, &self.own_ref, &self.topic, "postgres_changes", status, text, &more))
    }

    /// A `system` frame about the channel itself.
    pub(super) fn system(&self, version: Version, status: Status, text: &str) -> Effect {
        Effect::Send(codec::system(version, &self.own_ref, &self.topic, "system", status, text, ""))
    }

    /// The answer to a push. `response`: JSON text of an object.
    pub(super) fn reply(&self, version: Version, reference: &Ref, status: Status, response: &str) -> Bytes {
        codec::reply(version, &self.own_ref, reference, &self.topic, status, response)
    }
}

/// A topic without `realtime:`.
pub(super) fn sub_topic(topic: &str) -> &str {
    topic.strip_prefix("realtime:").unwrap_or(topic)
}
