//! What one connection's messages mean: a state machine from messages, answers and time to effects. No I/O.
//!
//! Invariants:
//! * Messages of one topic take effect in order, also while something on it waits: a refusal's delay, a key, or the changes that
//!   a join is to be answered with. Other topics don't wait. Only a leave or another join cuts a held join short.
//! * Of a held join, nothing is said before its reply, and one reply at most: whoever takes the [`Stage`] from waiting speaks.
//! * A channel that ends for whatever reason and had asked for changes yields exactly one [`Effect::Leave`], or is named by
//!   [`Session::end`].
//! * A client reads no text here that it did not send, but those of the catalogue.
//!
//! Rejected: a task per channel, which costs memory and a hop for what is a table look-up.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tracing::{debug, info};

use super::codec::{self, Message, Ref, Status};
use super::topic::{Backlog, Channel, Counted, Held, Topic, What};
use crate::channel::{self, Answer, Feed, Join, JoinError, Notice, Privacy, Request, TokenChoice};
use crate::claims::{Principal, TokenError};
use crate::error::ClientFacing;
use crate::gateway::Shared;
use crate::gateway::limits::JoinRate;
use crate::hub::{ChannelId, CloseReason, Entry, Stage, Version};

/// A held join's subscription is tried again after this, if the ordinary time is longer.
const HELD_RETRY: Duration = Duration::from_secs(1);

/// What the connection's task is to do, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Queue this frame.
    Send(Bytes),
    /// Queue a held join's reply, if the stage says so by then.
    Greet { stage: Arc<Stage>, greeting: Bytes },
    /// Ask the hub, `again`: after making it forget the channel; hand its answer to [`Session::answered`].
    Subscribe {
        id: ChannelId,
        topic: Arc<str>,
        join_ref: Ref,
        entries: Vec<Entry>,
        principal: Arc<Principal>,
        again: bool,
        stage: Arc<Stage>,
        greeting: Option<Bytes>,
    },
    /// Ask the hub, and make it forget the channel if it refuses; hand its answer to [`Session::answered`].
    Reclaim { id: ChannelId, principal: Arc<Principal> },
    /// Give up what is asked for this channel, then make the hub forget it.
    Leave(ChannelId),
    /// Have the keys of tokens fetched, within a bound; then call [`Session::learned`].
    Learn,
    /// Close the connection, behind what is queued.
    Close(CloseReason),
}

/// The time, by both clocks: the wall's for tokens, the machine's for waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) unix_millis: i64,
    pub(super) at: Instant,
}

impl Now {
    pub(super) fn seconds(self) -> i64 {
        self.unix_millis.div_euclid(1000)
    }
}

/// Who connected.
pub(in crate::gateway) struct Visitor {
    pub(in crate::gateway) connection: u64,
    pub(in crate::gateway) version: Version,
    pub(in crate::gateway) token: Arc<str>,
    pub(in crate::gateway) principal: Arc<Principal>,
    /// The `x-…` headers of the handshake as a JSON object: `request.headers` of policies on messages.
    #[expect(dead_code, reason = "read when private channels are served")]
    pub(in crate::gateway) headers: Box<str>,
}

pub(super) struct Session {
    shared: Arc<Shared>,
    visitor: Visitor,
    /// The last other token that was verified: joins come in bursts with the same one.
    latest: Option<(Arc<str>, Arc<Principal>)>,
    topics: HashMap<Arc<str>, Topic>,
    joins: JoinRate,
    /// Keys are being fetched.
    learning: bool,
    /// Bytes of all backlogs.
    held_bytes: usize,
}

/// Which join a reply is for.
struct Asker<'a> {
    join_ref: &'a Ref,
    reference: &'a Ref,
    topic: &'a str,
}

impl<'a> Asker<'a> {
    fn of(message: &'a Message<'_>) -> Asker<'a> {
        Asker { join_ref: &message.join_ref, reference: &message.reference, topic: &message.topic }
    }
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, visitor: Visitor) -> Session {
        let (topics, joins) = (HashMap::new(), JoinRate::default());
        Session { shared, visitor, latest: None, topics, joins, learning: false, held_bytes: 0 }
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
        let cuts_short = message.event == "phx_join" || message.event == "phx_leave";
        match self.topics.get_mut(message.topic.as_ref()) {
            Some(Topic::Pending(pending)) => match &pending.what {
                What::Held { .. } if cuts_short => self.cut_short(message, now, out),
                _ => self.hold(message, out),
            },
            _ if message.event == "phx_join" => self.join(&message, Vec::new(), now, out),
            Some(Topic::Joined(_)) if message.event == "phx_leave" => self.leave(&message, out),
            Some(Topic::Joined(channel)) => match message.event.as_ref() {
                "access_token" => self.renew(&message, true, now, out),
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

    // --- What waits.

    fn hold(&mut self, message: Message<'_>, out: &mut Vec<Effect>) {
        let config = &self.shared.config;
        let Some(Topic::Pending(pending)) = self.topics.get_mut(message.topic.as_ref()) else { return };
        let (backlog, bytes) = (&mut pending.backlog, message.payload.len());
        if backlog.messages.len() < config.max_pending && self.held_bytes + bytes <= config.max_pending_bytes {
            backlog.bytes += bytes;
            self.held_bytes += bytes;
            backlog.messages.push(message.into_owned());
        } else {
            let (version, reason) = (self.visitor.version, "too many messages while a join is pending");
            let refusal = codec::refusal(version, &Ref::NULL, &message.reference, &message.topic, reason);
            out.push(Effect::Send(refusal));
        }
    }

    fn release(&mut self, backlog: Backlog, now: Now, out: &mut Vec<Effect>) {
        self.held_bytes -= backlog.bytes;
        for message in backlog.messages {
            self.dispatch(message, now, out);
        }
    }

    /// Whether keys are being fetched that may make a refused token good; if so, they are waited for.
    fn learn(&mut self, error: &TokenError, out: &mut Vec<Effect>) -> bool {
        if !self.shared.verifier.may_learn(error) {
            return false;
        }
        if !self.learning {
            self.learning = true;
            out.push(Effect::Learn);
        }
        true
    }

    /// The keys were fetched, or could not be.
    pub(super) fn learned(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        self.learning = false;
        let waits = |topic: &Topic| matches!(topic, Topic::Pending(pending) if matches!(pending.what, What::Key { .. } | What::NewKey { .. }));
        let waiting = self.topics.iter().filter(|(_, topic)| waits(topic)).map(|(name, _)| name.clone());
        for name in waiting.collect::<Vec<_>>() {
            let Some(Topic::Pending(pending)) = self.topics.remove(&name) else { continue };
            let backlog = pending.backlog;
            match pending.what {
                What::Key { join, after } => self.decide(&join, after, backlog, false, now, &mut out),
                What::NewKey { channel, renewal } => {
                    self.topics.insert(name, Topic::Joined(channel));
                    self.renew(&renewal, false, now, &mut out);
                    self.release(backlog, now, &mut out);
                }
                what => drop(self.topics.insert(name, Topic::pending(what, backlog))),
            }
        }
        out
    }

    fn unmatched(&self, message: &Message<'_>) -> Effect {
        let version = self.visitor.version;
        Effect::Send(codec::refusal(version, &Ref::NULL, &message.reference, &message.topic, "unmatched topic"))
    }

    // --- Joins.

    /// `after`: frames that are to follow the reply.
    fn join(&mut self, message: &Message<'_>, mut after: Vec<Bytes>, now: Now, out: &mut Vec<Effect>) {
        let config = &self.shared.config;
        let named = message.topic.starts_with("realtime:");
        if !named || message.topic.len() > config.max_topic_bytes {
            out.push(self.unmatched(message));
            return;
        }
        let too_often = !self.joins.admit(now.at, config.max_joins_per_second);
        // The old instance ends first, whether or not the new one begins; its close is told after the new one's reply.
        if let Some(Topic::Joined(old)) = self.topics.remove(message.topic.as_ref()) {
            out.extend(old.feed.is_some().then_some(Effect::Leave(old.id)));
            // A Python client, whose join_ref is null, would take the close for the new instance's (decision 4).
            if !old.join_ref.is_null() {
                after.push(codec::close(self.visitor.version, &old.join_ref, &old.topic));
            }
        }
        if too_often {
            out.push(Effect::Send(self.refusal(&Asker::of(message), &JoinError::TooManyJoins)));
            out.extend(after.into_iter().map(Effect::Send));
            out.push(Effect::Close(CloseReason::Joins));
            return;
        }
        self.decide(message, after, Backlog::default(), true, now, out);
    }

    /// `may_learn`: whether a token that needs another key may wait for it. `backlog`: what came since.
    fn decide(
        &mut self,
        message: &Message<'_>,
        after: Vec<Bytes>,
        backlog: Backlog,
        may_learn: bool,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let refused = match self.admit(message, now) {
            Ok((join, token, principal)) => match join.wait.filter(|_| !join.changes.is_empty()) {
                Some(wait) => match entries(&join) {
                    Ok(entries) => {
                        let (mut channel, frames) = self.channel(message, &join, token, principal, &after);
                        channel.feed = Some(Feed::new(entries, self.shared.config.retry.min(HELD_RETRY)));
                        return self.hold_join(message, channel, frames, after, wait, backlog, now, out);
                    }
                    Err(text) => JoinError::Changes(text),
                },
                None => {
                    let (channel, frames) = self.channel(message, &join, token, principal, &after);
                    out.extend(frames.into_iter().map(Effect::Send));
                    self.joined(channel, &join, out);
                    return self.release(backlog, now, out);
                }
            },
            Err(JoinError::Token(error)) if may_learn && self.learn(&error, out) => {
                let what = What::Key { join: message.clone().into_owned(), after };
                self.topics.insert(message.topic.as_ref().into(), Topic::pending(what, backlog));
                return;
            }
            Err(error) => error,
        };
        self.refuse_join(&Asker::of(message), &refused, after, backlog, now, out);
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
        if self.topics.values().filter(|topic| topic.is_channel()).count() >= config.max_channels {
            return Err(JoinError::TooManyChannels);
        }
        self.has_room_for(&join, message)?;
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

    /// What a connection asks for stays in memory as long as it does.
    fn has_room_for(&self, join: &Join, message: &Message<'_>) -> Result<(), JoinError> {
        let config = &self.shared.config;
        if join.changes.is_empty() {
            return Ok(());
        }
        let (mut entries, mut bytes) = (join.changes.len(), message.payload.len());
        for channel in self.topics.values().filter_map(Topic::channel) {
            entries += channel.feed.as_ref().map_or(0, |feed| feed.entries().len());
            bytes += channel.kept_bytes;
        }
        if entries > config.max_connection_entries || bytes > config.max_connection_entry_bytes {
            return Err(JoinError::Payload("Too many postgres_changes entries on this connection"));
        }
        Ok(())
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

    /// A channel that asks for nothing yet, and the frames of its join reply.
    fn channel(
        &self,
        message: &Message<'_>,
        join: &Join,
        token: Arc<str>,
        principal: Arc<Principal>,
        after: &[Bytes],
    ) -> (Box<Channel>, Vec<Bytes>) {
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
        let mut frames = vec![reply];
        frames.extend_from_slice(after);
        if join.presence {
            // True: nobody can be present yet. Without it JS holds back whatever presence event follows.
            frames.push(codec::empty_presence_state(version, &own_ref, &topic));
        }
        let channel = Channel {
            id: channel::next_id(),
            topic,
            join_ref: message.join_ref.clone(),
            own_ref,
            token,
            principal,
            ack: join.ack,
            feed: None,
            kept_bytes: if join.changes.is_empty() { 0 } else { message.payload.len() },
            _counted: Counted::new(&self.shared.metrics),
        };
        (Box::new(channel), frames)
    }

    /// The join is answered; its changes are asked for.
    fn joined(&mut self, mut channel: Box<Channel>, join: &Join, out: &mut Vec<Effect>) {
        match entries(join) {
            Ok(entries) if entries.is_empty() => {}
            Ok(entries) => {
                channel.feed = Some(Feed::new(entries, self.shared.config.retry));
                out.extend(channel.ask(Request::Subscribe { again: false }));
            }
            Err(text) => out.push(channel.notice(self.visitor.version, &Notice::Refused(text))),
        }
        self.topics.insert(channel.topic.clone(), Topic::Joined(channel));
    }

    fn refuse_join(
        &mut self,
        asker: &Asker<'_>,
        error: &JoinError,
        after: Vec<Bytes>,
        backlog: Backlog,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let mut frames = vec![self.refusal(asker, error)];
        frames.extend(after);
        let config = &self.shared.config;
        // Held-back answers take memory; who collects too many gets them at once.
        if config.join_failure_delay.is_zero() || self.topics.len() >= config.max_channels * 2 {
            out.extend(frames.into_iter().map(Effect::Send));
            return self.release(backlog, now, out);
        }
        let until = now.at + config.join_failure_delay;
        self.topics.insert(asker.topic.into(), Topic::pending(What::Refusing { frames, until }, backlog));
    }

    fn refusal(&self, asker: &Asker<'_>, error: &JoinError) -> Bytes {
        self.audit("join refused", asker.topic, &self.visitor.principal, error.code());
        let reason = error.client_text();
        codec::refusal(self.visitor.version, asker.join_ref, asker.reference, asker.topic, &reason)
    }

    // --- Held joins (§5.6).

    #[expect(clippy::too_many_arguments, reason = "the parts of one join, handed on once")]
    fn hold_join(
        &mut self,
        message: &Message<'_>,
        channel: Box<Channel>,
        frames: Vec<Bytes>,
        after: Vec<Bytes>,
        wait: Duration,
        backlog: Backlog,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let wait = wait.min(self.shared.config.max_join_wait);
        let mut greeting = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
        frames.iter().for_each(|frame| greeting.extend_from_slice(frame));
        let mut held = Held {
            stage: Arc::new(Stage::waiting()),
            greeting: greeting.freeze(),
            reference: message.reference.clone(),
            after,
            until: now.at + wait,
            wait,
            last: None,
        };
        out.extend(channel.ask_held(&mut held, false));
        self.topics.insert(channel.topic.clone(), Topic::pending(What::Held { channel, held }, backlog));
    }

    /// The hub has answered for a held join.
    fn held_answered(&mut self, name: &str, answer: Answer, now: Now, out: &mut Vec<Effect>) {
        let error = match answer {
            Err(error) if !error.retry => {
                return self.refuse_held(name, JoinError::Changes(error.message), now, out);
            }
            Err(error) => error,
            Ok(warnings) => {
                let backlog = self.greeted(name, out);
                self.feed_answered(name, Ok(warnings), now, out);
                return self.release(backlog, now, out);
            }
        };
        let Some(Topic::Pending(pending)) = self.topics.get_mut(name) else { return };
        let What::Held { channel, held } = &mut pending.what else { return };
        if held.stage.give_up() {
            held.last = Some(error.message.clone());
            // What the feed would tell, the refusal tells when the time is over.
            let _ = channel.feed.as_mut().map(|feed| feed.answered(Err(error), now.at));
        } else {
            // The hub did activate it; its answer was lost.
            let backlog = self.greeted(name, out);
            self.feed_answered(name, Err(error), now, out);
            self.release(backlog, now, out);
        }
    }

    /// A held join is a channel from now on, its reply out or the next thing to be. Returns what waited for that.
    fn greeted(&mut self, name: &str, out: &mut Vec<Effect>) -> Backlog {
        let Some((name, topic)) = self.topics.remove_entry(name) else { return Backlog::default() };
        let Topic::Pending(pending) = topic else {
            self.topics.insert(name, topic);
            return Backlog::default();
        };
        let (topic, backlog) = match pending.what {
            What::Held { mut channel, held } => {
                out.push(Effect::Greet { stage: held.stage, greeting: held.greeting });
                channel.feed.as_mut().into_iter().for_each(|feed| feed.retry_every(self.shared.config.retry));
                (Topic::Joined(channel), pending.backlog)
            }
            what => (Topic::pending(what, pending.backlog), Backlog::default()),
        };
        self.topics.insert(name, topic);
        backlog
    }

    /// Takes a held join back, unless its reply is out: then it is a channel, what waited is handled, and this is `None`.
    fn take_held(&mut self, name: &str, now: Now, out: &mut Vec<Effect>) -> Option<(Box<Channel>, Held, Backlog)> {
        let Some(Topic::Pending(pending)) = self.topics.get(name) else { return None };
        let What::Held { held, .. } = &pending.what else { return None };
        if !held.stage.give_up() {
            let backlog = self.greeted(name, out);
            self.release(backlog, now, out);
            return None;
        }
        let Some(Topic::Pending(pending)) = self.topics.remove(name) else { return None };
        let What::Held { channel, held } = pending.what else { return None };
        out.push(Effect::Leave(channel.id));
        Some((channel, held, pending.backlog))
    }

    fn refuse_held(&mut self, name: &str, error: JoinError, now: Now, out: &mut Vec<Effect>) {
        let Some((channel, held, backlog)) = self.take_held(name, now, out) else { return };
        let asker = Asker { join_ref: &channel.join_ref, reference: &held.reference, topic: &channel.topic };
        self.refuse_join(&asker, &error, held.after, backlog, now, out);
    }

    /// The client leaves or joins anew while a join is held: that one is never answered.
    fn cut_short(&mut self, message: Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let topic = self.topics.get(message.topic.as_ref());
        let leaves = message.event == "phx_leave";
        if leaves && topic.and_then(Topic::channel).is_some_and(|channel| channel.is_stale(&message)) {
            return;
        }
        let Some((_, held, backlog)) = self.take_held(&message.topic, now, out) else {
            return self.dispatch(message, now, out);
        };
        // There is no channel any more that they could be for.
        self.release(backlog, now, out);
        if leaves {
            out.extend(held.after.into_iter().map(Effect::Send));
            self.dispatch(message, now, out);
        } else {
            self.join(&message, held.after, now, out);
        }
    }

    // --- Joined channels.

    fn audit(&self, what: &'static str, topic: &str, principal: &Principal, code: &'static str) {
        self.shared.metrics.refusals.get_or_create(&[("code", code)]).inc();
        let connection = self.visitor.connection;
        info!(target: "audit", connection, user = ?principal.subject, ?topic, reason = code, "{what}");
    }

    fn leave(&mut self, message: &Message<'_>, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        let Some(Topic::Joined(channel)) = self.topics.get(message.topic.as_ref()) else { return };
        if channel.is_stale(message) {
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
    fn renew(&mut self, message: &Message<'_>, may_learn: bool, now: Now, out: &mut Vec<Effect>) {
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
            Err(error) if may_learn && self.learn(&error, out) => {
                let Some((name, Topic::Joined(channel))) = self.topics.remove_entry(topic) else { return };
                let what = What::NewKey { channel, renewal: message.clone().into_owned() };
                self.topics.insert(name, Topic::pending(what, Backlog::default()));
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
        let of = |topic: &Topic| topic.channel().is_some_and(|channel| channel.id == id);
        let Some((name, topic)) = self.topics.iter().find(|(_, topic)| of(topic)) else { return out };
        let name = name.clone();
        if topic.held().is_some() {
            self.held_answered(&name, answer, now, &mut out);
        } else {
            self.feed_answered(&name, answer, now, &mut out);
        }
        out
    }

    fn feed_answered(&mut self, name: &str, answer: Answer, now: Now, out: &mut Vec<Effect>) {
        let Some(channel) = self.topics.get_mut(name).and_then(Topic::channel_mut) else { return };
        let Some(feed) = channel.feed.as_mut() else { return };
        let (notices, next) = feed.answered(answer, now.at);
        out.extend(notices.iter().map(|notice| channel.notice(self.visitor.version, notice)));
        out.extend(next.and_then(|request| channel.ask(request)));
    }

    /// Time has passed: tokens expire, tries are due, held-back answers go out.
    pub(super) fn tick(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let mut due = Vec::new();
        for (name, topic) in &mut self.topics {
            if topic.is_due(now) {
                due.push(name.clone());
            } else if let Some(request) = topic.channel_mut().and_then(|c| c.feed.as_mut()?.due(now.at)) {
                out.extend(topic.ask(request));
            }
        }
        for name in due {
            self.fall_due(&name, now, &mut out);
        }
        out
    }

    fn fall_due(&mut self, name: &str, now: Now, out: &mut Vec<Effect>) {
        let Some(topic) = self.topics.get(name) else { return };
        let expires_at = topic.channel().map_or(i64::MAX, |channel| channel.principal.expires_at);
        let expired = TokenError::Expired { seconds: now.seconds().saturating_sub(expires_at).max(0) };
        let is_expired = topic.channel().is_some_and(|channel| channel.principal.is_expired(now.seconds()));
        match (topic, topic.held()) {
            (Topic::Joined(_), _) => self.expel(name, &expired, out),
            (_, Some(_)) if is_expired => self.refuse_held(name, JoinError::Token(expired), now, out),
            (_, Some(held)) => {
                let error = JoinError::ChangesTimeout { after: held.wait, last: held.last.clone() };
                self.refuse_held(name, error, now, out);
            }
            _ => {
                let Some(Topic::Pending(pending)) = self.topics.remove(name) else { return };
                if let What::Refusing { frames, .. } = pending.what {
                    out.extend(frames.into_iter().map(Effect::Send));
                }
                self.release(pending.backlog, now, out);
            }
        }
    }

    /// How long until [`Session::tick`] has something to do; `None` if nothing is planned.
    pub(super) fn next_tick(&self, now: Now) -> Option<Duration> {
        self.topics.values().filter_map(|topic| topic.next_tick(now)).min()
    }

    /// The connection is over: the channels that the hub must forget.
    pub(super) fn end(self) -> Vec<ChannelId> {
        let asked = |topic: &Topic| topic.channel().filter(|channel| channel.feed.is_some()).map(|channel| channel.id);
        self.topics.values().filter_map(asked).collect()
    }
}

/// What the hub needs to know of a join's entries, or the text that says which is none.
fn entries(join: &Join) -> Result<Vec<Entry>, String> {
    join.changes.iter().map(channel::Wanted::entry).collect()
}
