//! What one connection's messages mean: a state machine from messages, answers and time to effects. No I/O.
//!
//! Invariants:
//! * Messages of one topic take effect in order, also while a join on it waits for its answer; other topics don't wait.
//! * A channel that ends for whatever reason and had asked for changes yields exactly one [`Effect::Leave`], or is named by
//!   [`Session::end`].
//! * A client reads no text here that it did not send, but those of the catalogue.
//!
//! Rejected: a task per channel, which costs memory and a hop for what is a table look-up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::{debug, info};

use super::codec::{self, Message, Ref, Status};
use crate::channel::{self, Answer, Feed, Join, JoinError, Notice, Privacy, Request, TokenChoice};
use crate::claims::{Principal, TokenError};
use crate::error::ClientFacing;
use crate::gateway::Shared;
use crate::hub::{ChannelId, Entry, Version};
use crate::metrics::Metrics;

/// What the connection's task is to do, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Queue this frame.
    Send(Bytes),
    /// Ask the hub, `again`: after making it forget the channel; hand its answer to [`Session::answered`].
    Subscribe {
        id: ChannelId,
        topic: Arc<str>,
        join_ref: Ref,
        entries: Vec<Entry>,
        principal: Arc<Principal>,
        again: bool,
    },
    /// Ask the hub, and make it forget the channel if it refuses; hand its answer to [`Session::answered`].
    Reclaim { id: ChannelId, principal: Arc<Principal> },
    /// Give up what is asked for this channel, then make the hub forget it.
    Leave(ChannelId),
}

/// The time, by both clocks: the wall's for tokens, the machine's for waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) unix_millis: i64,
    pub(super) at: Instant,
}

impl Now {
    fn seconds(self) -> i64 {
        self.unix_millis.div_euclid(1000)
    }
}

/// Who connected.
pub(in crate::gateway) struct Visitor {
    pub(in crate::gateway) connection: u64,
    pub(in crate::gateway) version: Version,
    pub(in crate::gateway) token: Arc<str>,
    pub(in crate::gateway) principal: Arc<Principal>,
}

pub(super) struct Session {
    shared: Arc<Shared>,
    visitor: Visitor,
    /// The last other token that was verified: joins come in bursts with the same one.
    latest: Option<(Arc<str>, Arc<Principal>)>,
    topics: HashMap<Arc<str>, Topic>,
}

enum Topic {
    Joined(Box<Channel>),
    /// A refused join whose answer is held back, and what came after it.
    Refusing(Box<Refusing>),
}

struct Channel {
    id: ChannelId,
    topic: Arc<str>,
    /// Of the join frame, unaltered.
    join_ref: Ref,
    /// The join frame's join_ref, or its ref if that was null.
    own_ref: Ref,
    token: Arc<str>,
    principal: Arc<Principal>,
    ack: bool,
    feed: Option<Feed>,
    _counted: Counted,
}

struct Refusing {
    frames: Vec<Bytes>,
    until: Instant,
    waiting: Vec<Message<'static>>,
    bytes: usize,
}

/// Keeps the gauge of channels true, however a channel ends.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Counted {
        metrics.channels.inc();
        Counted(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.channels.dec();
    }
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, visitor: Visitor) -> Session {
        Session { shared, visitor, latest: None, topics: HashMap::new() }
    }

    /// A message has come.
    pub(super) fn handle(&mut self, message: Message<'_>, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        self.dispatch(message, now, &mut out);
        out
    }

    fn dispatch(&mut self, message: Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        if message.topic == "phoenix" && message.event == "heartbeat" {
            let reply = codec::reply(version, &Ref::NULL, &message.reference, "phoenix", Status::Ok, "{}");
            out.push(Effect::Send(reply));
            return;
        }
        match self.topics.get_mut(message.topic.as_ref()) {
            Some(Topic::Refusing(refusing)) => {
                let config = &self.shared.config;
                let bytes = refusing.bytes + message.payload.len();
                if refusing.waiting.len() < config.max_pending && bytes <= config.max_join_bytes {
                    refusing.bytes = bytes;
                    refusing.waiting.push(message.into_owned());
                } else {
                    let reason = "too many messages while a join is pending";
                    out.push(Effect::Send(codec::refusal(
                        version,
                        &Ref::NULL,
                        &message.reference,
                        &message.topic,
                        reason,
                    )));
                }
            }
            _ if message.event == "phx_join" => self.join(&message, now, out),
            Some(Topic::Joined(_)) if message.event == "phx_leave" => self.leave(&message, out),
            Some(Topic::Joined(channel)) => match message.event.as_ref() {
                "access_token" => self.renew(&message, now, out),
                // Never pretend that something was delivered: who asked to know is told.
                "broadcast" if channel.ack => {
                    out.push(channel.refuse(version, &message, "broadcast is not supported yet"))
                }
                "presence" => out.push(channel.refuse(version, &message, "presence is not supported yet")),
                event => debug!(connection = self.visitor.connection, event, "event ignored"),
            },
            None if message.event == "phx_leave" => {
                let (join_ref, reference) = (&message.join_ref, &message.reference);
                out.push(Effect::Send(codec::reply(version, join_ref, reference, &message.topic, Status::Ok, "{}")));
            }
            None => out.push(self.unmatched(&message)),
        }
    }

    fn unmatched(&self, message: &Message<'_>) -> Effect {
        let version = self.visitor.version;
        Effect::Send(codec::refusal(version, &Ref::NULL, &message.reference, &message.topic, "unmatched topic"))
    }

    fn join(&mut self, message: &Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let named = message.topic.starts_with("realtime:");
        if !named || message.topic.len() > self.shared.config.max_topic_bytes {
            out.push(self.unmatched(message));
            return;
        }
        // The old instance ends first, whether or not the new one begins; its close is told after the new one's reply.
        let mut after = Vec::new();
        if let Some(Topic::Joined(old)) = self.topics.remove(message.topic.as_ref()) {
            out.extend(old.feed.is_some().then_some(Effect::Leave(old.id)));
            // A Python client, whose join_ref is null, would take the close for the new instance's (decision 4).
            if !old.join_ref.is_null() {
                after.push(codec::close(self.visitor.version, &old.join_ref, &old.topic));
            }
        }
        match self.admit(message, now) {
            Ok((join, token, principal)) => self.joined(message, &join, token, principal, after, out),
            Err(error) => self.refuse_join(message, &error, now, after, out),
        }
    }

    /// The checks of §3.1.3, in their order.
    fn admit(&mut self, message: &Message<'_>, now: Now) -> Result<(Join, Arc<str>, Arc<Principal>), JoinError> {
        let config = &self.shared.config;
        if message.topic == "realtime:" {
            return Err(JoinError::TopicName);
        }
        if self.shared.drain.is_draining() {
            return Err(JoinError::Restarting);
        }
        if message.payload.len() > config.max_join_bytes {
            return Err(JoinError::Payload("The payload is too large"));
        }
        let join = Join::parse(&message.payload);
        if join.changes.len() > config.max_entries {
            return Err(JoinError::Payload("Too many postgres_changes entries"));
        }
        match join.privacy {
            Privacy::Unreadable => return Err(JoinError::Payload("private must be a boolean")),
            Privacy::Public if config.private_only => return Err(JoinError::PrivateOnly),
            Privacy::Public | Privacy::Private => {}
        }
        let joined = self.topics.values().filter(|topic| matches!(topic, Topic::Joined(_))).count();
        if joined >= config.max_channels {
            return Err(JoinError::TooManyChannels);
        }
        let (token, principal) = match &join.token {
            TokenChoice::Own(token) => self.verify(token, now)?,
            TokenChoice::Connection => self.verify(&self.visitor.token.clone(), now)?,
        };
        if join.privacy == Privacy::Private {
            return Err(JoinError::Private);
        }
        if join.replay {
            return Err(JoinError::Replay);
        }
        Ok((join, token, principal))
    }

    fn verify(&mut self, token: &str, now: Now) -> Result<(Arc<str>, Arc<Principal>), TokenError> {
        let known = [Some((&self.visitor.token, &self.visitor.principal)), self.latest.as_ref().map(|(t, p)| (t, p))];
        for (text, principal) in known.into_iter().flatten() {
            if **text == *token && !principal.is_expired(now.seconds()) {
                return Ok((text.clone(), principal.clone()));
            }
        }
        let verified = (Arc::from(token), Arc::new(self.shared.verifier.verify(token, now.seconds())?));
        self.latest = Some(verified.clone());
        Ok(verified)
    }

    fn joined(
        &mut self,
        message: &Message<'_>,
        join: &Join,
        token: Arc<str>,
        principal: Arc<Principal>,
        after: Vec<Bytes>,
        out: &mut Vec<Effect>,
    ) {
        let version = self.visitor.version;
        if !join.unreadable.is_empty() {
            debug!(connection = self.visitor.connection, fields = ?join.unreadable, "InvalidJoinPayload: read as absent");
        }
        let mut response = String::from(r#"{"postgres_changes":["#);
        for (index, wanted) in join.changes.iter().enumerate() {
            response.push_str(if index > 0 { "," } else { "" });
            wanted.echo(&mut response);
        }
        response.push_str("]}");
        let (topic, own_ref) = (Arc::<str>::from(message.topic.as_ref()), message.join_ref.or(&message.reference));
        let reply = codec::reply(version, &message.join_ref, &message.reference, &topic, Status::Ok, &response);
        out.push(Effect::Send(reply));
        out.extend(after.into_iter().map(Effect::Send));
        if join.presence {
            // True: nobody can be present yet. Without it JS holds back whatever presence event follows.
            out.push(Effect::Send(codec::empty_presence_state(version, &own_ref, &topic)));
        }
        let mut channel = Channel {
            id: channel::next_id(),
            topic: topic.clone(),
            join_ref: message.join_ref.clone(),
            own_ref,
            token,
            principal,
            ack: join.ack,
            feed: None,
            _counted: Counted::new(&self.shared.metrics),
        };
        if !join.changes.is_empty() {
            let entries: Result<Vec<Entry>, String> = join.changes.iter().map(channel::Wanted::entry).collect();
            match entries {
                Ok(entries) => {
                    channel.feed = Some(Feed::new(entries, self.shared.config.retry));
                    out.extend(channel.ask(Request::Subscribe { again: false }));
                }
                Err(text) => out.push(channel.notice(version, Notice::Refused(text))),
            }
        }
        self.topics.insert(topic, Topic::Joined(Box::new(channel)));
    }

    fn refuse_join(
        &mut self,
        message: &Message<'_>,
        error: &JoinError,
        now: Now,
        after: Vec<Bytes>,
        out: &mut Vec<Effect>,
    ) {
        self.audit("join refused", &message.topic, &self.visitor.principal, error.code());
        let reason = error.client_text();
        let reply =
            codec::refusal(self.visitor.version, &message.join_ref, &message.reference, &message.topic, &reason);
        let mut frames = vec![reply];
        frames.extend(after);
        let config = &self.shared.config;
        // Held-back answers take memory; who collects too many gets them at once.
        if config.join_failure_delay.is_zero() || self.topics.len() >= config.max_channels * 2 {
            out.extend(frames.into_iter().map(Effect::Send));
            return;
        }
        let until = now.at + config.join_failure_delay;
        let refusing = Refusing { frames, until, waiting: Vec::new(), bytes: 0 };
        self.topics.insert(message.topic.as_ref().into(), Topic::Refusing(Box::new(refusing)));
    }

    fn audit(&self, what: &'static str, topic: &str, principal: &Principal, code: &'static str) {
        self.shared.metrics.refusals.get_or_create(&[("code", code)]).inc();
        let connection = self.visitor.connection;
        info!(target: "audit", connection, user = ?principal.subject, ?topic, reason = code, "{what}");
    }

    fn leave(&mut self, message: &Message<'_>, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        let Some(Topic::Joined(channel)) = self.topics.get(message.topic.as_ref()) else { return };
        // The client has moved on to another instance; null is a match (decision 2).
        if !message.join_ref.is_null() && message.join_ref != channel.own_ref {
            return;
        }
        let reply = codec::reply(version, &channel.own_ref, &message.reference, &channel.topic, Status::Ok, "{}");
        out.push(Effect::Send(reply));
        self.close(&message.topic, out);
    }

    /// Ends a joined channel with its `phx_close`.
    fn close(&mut self, topic: &str, out: &mut Vec<Effect>) {
        if let Some(Topic::Joined(channel)) = self.topics.remove(topic) {
            out.push(Effect::Send(codec::close(self.visitor.version, &channel.join_ref, &channel.topic)));
            out.extend(channel.feed.is_some().then_some(Effect::Leave(channel.id)));
        }
    }

    /// `access_token`: never answered, unless the token is bad.
    fn renew(&mut self, message: &Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let Some(token) = channel::renewed_token(&message.payload) else { return };
        let topic = message.topic.as_ref();
        if matches!(self.topics.get(topic), Some(Topic::Joined(channel)) if *channel.token == *token) {
            return;
        }
        match self.verify(&token, now) {
            Ok((token, principal)) => {
                let Some(Topic::Joined(channel)) = self.topics.get_mut(topic) else { return };
                (channel.token, channel.principal) = (token, principal);
                if let Some(request) = channel.feed.as_mut().and_then(Feed::principal_changed) {
                    out.extend(channel.ask(request));
                }
            }
            Err(error) => self.expel(topic, &error, out),
        }
    }

    /// Ends a channel whose token is no good: `system` error, then `phx_close`.
    fn expel(&mut self, topic: &str, error: &TokenError, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        let Some(Topic::Joined(channel)) = self.topics.get(topic) else { return };
        self.audit("token refused", topic, &channel.principal, error.code());
        let text = error.client_text();
        let frame = codec::system(version, &channel.own_ref, &channel.topic, "system", Status::Error, &text);
        out.push(Effect::Send(frame));
        self.close(topic, out);
    }

    /// The hub has answered a [`Effect::Subscribe`] or [`Effect::Reclaim`].
    pub(super) fn answered(&mut self, id: ChannelId, answer: Answer, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let version = self.visitor.version;
        let channel = self.topics.values_mut().find_map(|topic| match topic {
            Topic::Joined(channel) if channel.id == id => Some(channel),
            _ => None,
        });
        let Some(channel) = channel else { return out };
        let Some(feed) = channel.feed.as_mut() else { return out };
        let (notice, next) = feed.answered(answer, now.at);
        out.extend(notice.map(|notice| channel.notice(version, notice)));
        out.extend(next.and_then(|request| channel.ask(request)));
        out
    }

    /// Time has passed: tokens expire, tries are due, held-back answers go out.
    pub(super) fn tick(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let mut expired = Vec::new();
        let mut answered = Vec::new();
        for (name, topic) in &mut self.topics {
            match topic {
                Topic::Joined(channel) if channel.principal.is_expired(now.seconds()) => expired.push(name.clone()),
                Topic::Joined(channel) => {
                    let request = channel.feed.as_mut().and_then(|feed| feed.due(now.at));
                    out.extend(request.and_then(|request| channel.ask(request)));
                }
                Topic::Refusing(refusing) if refusing.until <= now.at => answered.push(name.clone()),
                Topic::Refusing(_) => {}
            }
        }
        for topic in expired {
            if let Some(Topic::Joined(channel)) = self.topics.get(&topic) {
                let seconds = now.seconds().saturating_sub(channel.principal.expires_at).max(0);
                self.expel(&topic, &TokenError::Expired { seconds }, &mut out);
            }
        }
        for topic in answered {
            if let Some(Topic::Refusing(refusing)) = self.topics.remove(&topic) {
                out.extend(refusing.frames.into_iter().map(Effect::Send));
                for message in refusing.waiting {
                    self.dispatch(message, now, &mut out);
                }
            }
        }
        out
    }

    /// How long until [`Session::tick`] has something to do; `None` if nothing is planned.
    pub(super) fn next_tick(&self, now: Now) -> Option<Duration> {
        let due = |topic: &Topic| match topic {
            Topic::Refusing(refusing) => Some(refusing.until.saturating_duration_since(now.at)),
            Topic::Joined(channel) => {
                let millis = channel.principal.expires_at.saturating_mul(1000).saturating_sub(now.unix_millis);
                let expiry = Duration::from_millis(u64::try_from(millis).unwrap_or(0));
                let retry = channel.feed.as_ref().and_then(Feed::wakes_at);
                Some(retry.map_or(expiry, |at| expiry.min(at.saturating_duration_since(now.at))))
            }
        };
        self.topics.values().filter_map(due).min()
    }

    /// The connection is over: the channels that the hub must forget.
    pub(super) fn end(self) -> Vec<ChannelId> {
        let asked = |topic: Topic| match topic {
            Topic::Joined(channel) => channel.feed.is_some().then_some(channel.id),
            Topic::Refusing(_) => None,
        };
        self.topics.into_values().filter_map(asked).collect()
    }
}

impl Channel {
    fn ask(&self, request: Request) -> Option<Effect> {
        let principal = self.principal.clone();
        Some(match request {
            Request::Reclaim => Effect::Reclaim { id: self.id, principal },
            Request::Subscribe { again } => Effect::Subscribe {
                id: self.id,
                topic: self.topic.clone(),
                join_ref: self.own_ref.clone(),
                entries: self.feed.as_ref()?.entries().to_vec(),
                principal,
                again,
            },
        })
    }

    fn notice(&self, version: Version, notice: Notice) -> Effect {
        let (status, text) = match &notice {
            Notice::Subscribed => (Status::Ok, "Subscribed to PostgreSQL"),
            Notice::Refused(text) => (Status::Error, text.as_str()),
        };
        Effect::Send(codec::system(version, &self.own_ref, &self.topic, "postgres_changes", status, text))
    }

    fn refuse(&self, version: Version, message: &Message<'_>, reason: &str) -> Effect {
        Effect::Send(codec::refusal(version, &self.own_ref, &message.reference, &self.topic, reason))
    }
}
