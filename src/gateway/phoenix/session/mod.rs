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

pub(super) mod begin;
mod devices;
mod fresh;
mod held;
mod topic;
mod waiting;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;
use tracing::{debug, info};

use self::begin::Beginning;
use self::topic::{Backlog, Channel, Topic, What};
use super::codec::{self, Message, Ref, Status};
use crate::channel::{self, Answer, Feed, Join, JoinError, Notice, Privacy, TokenChoice};
use crate::claims::{Principal, TokenError};
use crate::error::ClientFacing;
use crate::gateway::Shared;
use crate::gateway::limits::JoinRate;
use crate::hub::{Activated, ChannelId, CloseReason, Entry, Stage, Version};
use crate::journal::Note;
use crate::resume::Tracked;

/// Characters of a topic that is none, in the audit log.
const MAX_AUDITED_TOPIC: usize = 64;
/// Why a channel that is joined gets no changes; the client has the text.
const CHANGES_REFUSED: &str = "ChangesRefused";
/// A held join's subscription is tried again after this, if the ordinary time is longer.
const HELD_RETRY: Duration = Duration::from_secs(1);

/// What the connection's task is to do, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Queue this frame.
    Send(Bytes),
    /// Queue a held join's reply, if the stage says so by then.
    Greet { stage: Arc<Stage>, greeting: Bytes },
    /// Ask the hub, `again`: after making it forget the channel, `go_on`: from where the channel was; hand its answer to
    /// [`Session::answered`].
    Subscribe {
        id: ChannelId,
        topic: Arc<str>,
        join_ref: Ref,
        entries: Vec<Entry>,
        principal: Arc<Principal>,
        again: bool,
        go_on: bool,
        stage: Arc<Stage>,
        greeting: Option<Bytes>,
        tracked: Option<Arc<Tracked>>,
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
    /// The `x-…` headers of the handshake as a JSON object: `request.headers` of policies on messages.
    #[expect(dead_code, reason = "read when private channels are served")]
    pub(in crate::gateway) headers: Box<str>,
    /// The device that it names.
    pub(in crate::gateway) device: Option<Arc<str>>,
    /// Notified when the connection is to ask the client whether it is there.
    pub(in crate::gateway) probe: Arc<Notify>,
}

pub(super) struct Session {
    shared: Arc<Shared>,
    visitor: Visitor,
    /// The last other token that was verified: joins come in bursts with the same one.
    latest: Option<(Arc<str>, Arc<Principal>)>,
    /// Of the verifier's keys, when `visitor` and `latest` were verified.
    generation: u64,
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
        let generation = shared.verifier.generation();
        Session { shared, visitor, latest: None, generation, topics, joins, learning: false, held_bytes: 0 }
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
            Some(Topic::Joined(_)) if message.event == "phx_leave" => self.leave(&message, now, out),
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
            // Whoever makes up topics without end fills no log.
            if self.joins.admit(now.at, config.max_joins_per_second) {
                let topic: String = message.topic.chars().take(MAX_AUDITED_TOPIC).collect();
                self.refused("join refused", &topic, &self.visitor.principal, "UnmatchedTopic");
            }
            out.push(self.unmatched(message));
            return;
        }
        let too_often = !self.joins.admit(now.at, config.max_joins_per_second);
        // The old instance ends first, whether or not the new one begins; its close is told after the new one's reply.
        let mut old = self.topics.remove(message.topic.as_ref());
        // Before the new one asks where it begins.
        if let Some(channel) = old.as_mut().and_then(Topic::channel_mut) {
            channel.kept.end(false, now.at, now.at);
        }
        if let Some(Topic::Pending(pending)) = &old
            && let What::Held { channel, held } = &pending.what
        {
            held.stage.give_up();
            out.push(Effect::Leave(channel.id));
        }
        if let Some(Topic::Joined(old)) = old {
            self.shared.metrics.leaves.inc();
            self.audit("left", &old.topic, &old.principal, Some("rejoined"));
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
            // A client that has left or joined anew meanwhile waits for nothing.
            Ok((join, token, principal)) => match join.wait.filter(|_| !join.changes.is_empty() && !backlog.ends()) {
                Some(wait) => match self.begin(&join, &message.topic, &principal, now) {
                    Ok(Beginning { entries, cursor, kept, fresh }) => {
                        let (mut channel, frames) = self.channel(message, &join, cursor, token, principal, &after);
                        (channel.kept, channel.fresh) = (kept, fresh);
                        channel.feed = Some(Feed::new(entries, self.shared.config.retry.min(HELD_RETRY)));
                        return self.hold_join(message, channel, frames, after, wait, backlog, now, out);
                    }
                    Err(text) => JoinError::Changes(text),
                },
                None => {
                    let begun = self.begin(&join, &message.topic, &principal, now);
                    let cursor = begun.as_ref().ok().and_then(|begun| begun.cursor);
                    let (channel, frames) = self.channel(message, &join, cursor, token, principal, &after);
                    out.extend(frames.into_iter().map(Effect::Send));
                    self.joined(channel, begun, out);
                    return self.release(backlog, now, out);
                }
            },
            Err(JoinError::Token(error))
                if may_learn && self.may_hold(message.payload.len()) && self.learn(&error, out) =>
            {
                self.held_bytes += message.payload.len();
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
        let generation = self.shared.verifier.generation();
        let same_keys = self.generation == generation;
        for (text, principal) in known.into_iter().flatten().filter(|_| same_keys) {
            if **text == *token && !principal.is_expired(now.seconds()) {
                return Ok((text.clone(), principal.clone()));
            }
        }
        let verified = (Arc::from(token), Arc::new(self.shared.verifier.verify(token, now.seconds())?));
        // The connection's own token is verified anew from now on, if its keys are gone.
        if same_keys {
            self.latest = Some(verified.clone());
        }
        Ok(verified)
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
        self.refused("join refused", asker.topic, &self.visitor.principal, error.code());
        let reason = error.client_text();
        codec::refusal(self.visitor.version, asker.join_ref, asker.reference, asker.topic, &reason)
    }

    // --- Joined channels.

    /// A line of the audit log: who and where, and nothing of what was sent.
    fn audit(&self, what: &'static str, topic: &str, principal: &Principal, reason: Option<&'static str>) {
        let connection = self.visitor.connection;
        info!(target: "audit", connection, user = &*principal.subject, role = &*principal.role, topic, reason, "{what}");
    }

    fn refused(&self, what: &'static str, topic: &str, principal: &Principal, code: &'static str) {
        self.shared.metrics.refusals.get_or_create(&[("code", code)]).inc();
        self.audit(what, topic, principal, Some(code));
    }

    fn counted_join(&self, channel: &Channel) {
        self.shared.metrics.joins.inc();
        self.audit("joined", &channel.topic, &channel.principal, None);
    }

    fn leave(&mut self, message: &Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        let Some(Topic::Joined(channel)) = self.topics.get(message.topic.as_ref()) else { return };
        if channel.is_stale(message) {
            return;
        }
        let reply = codec::reply(version, &channel.own_ref, &message.reference, &channel.topic, Status::Ok, "{}");
        out.push(Effect::Send(reply));
        self.shared.metrics.leaves.inc();
        self.audit("left", &channel.topic, &channel.principal, None);
        self.close(&message.topic, true, now, out);
    }

    /// Ends a joined channel with its `phx_close`. `left`: its client wanted that.
    fn close(&mut self, topic: &str, left: bool, now: Now, out: &mut Vec<Effect>) {
        if let Some(Topic::Joined(mut channel)) = self.topics.remove(topic) {
            channel.kept.end(left, now.at, now.at);
            // Who left is told so by the answer; the topics door says it once.
            if !(left && self.visitor.version == Version::Topics) {
                out.push(Effect::Send(codec::close(self.visitor.version, &channel.join_ref, &channel.topic)));
            }
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
                let Some((name, Topic::Joined(mut channel))) = self.topics.remove_entry(topic) else { return };
                channel.token = token;
                let before = std::mem::replace(&mut channel.principal, principal.clone());
                self.change_user(&mut channel, &before, now);
                if let Some(request) = channel.feed.as_mut().and_then(Feed::principal_changed) {
                    out.extend(channel.ask_as_due(request));
                }
                self.topics.insert(name, Topic::Joined(channel));
                self.shared.metrics.token_refreshes.inc();
                self.audit("token refreshed", topic, &principal, None);
            }
            Err(error) if may_learn && self.may_hold(message.payload.len()) && self.learn(&error, out) => {
                self.held_bytes += message.payload.len();
                let Some((name, Topic::Joined(channel))) = self.topics.remove_entry(topic) else { return };
                let what = What::NewKey { channel, renewal: message.clone().into_owned() };
                self.topics.insert(name, Topic::pending(what, Backlog::default()));
            }
            Err(error) => {
                if let Some(channel) = self.topics.get(topic).and_then(Topic::channel) {
                    self.refused("token refused", topic, &channel.principal, error.code());
                }
                self.expel(topic, &error, now, out);
            }
        }
    }

    /// Ends a channel whose token is no good: `system` error, then `phx_close`.
    fn expel(&mut self, topic: &str, error: &TokenError, now: Now, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        let Some(Topic::Joined(channel)) = self.topics.get(topic) else { return };
        let text = error.client_text();
        let frame = codec::system(version, &channel.own_ref, &channel.topic, "system", Status::Error, &text, "");
        out.push(Effect::Send(frame));
        self.close(topic, false, now, out);
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
        let retry = matches!(&answer, Err(error) if error.retry);
        if let (Some(fresh), Ok(Activated { cursor: cursor @ Some(_), .. })) = (&mut channel.fresh, &answer) {
            fresh.cursor = *cursor;
        }
        let (notices, next) = feed.answered(answer, now.at);
        let refused = notices.iter().any(|notice| matches!(notice, Notice::Refused(_)));
        let (version, key) = (self.visitor.version, &self.shared.cursor_key);
        out.extend(notices.iter().map(|notice| channel.notice(version, key, notice)));
        out.extend(next.and_then(|request| channel.ask_as_due(request)));
        if refused && let Some(channel) = self.topics.get(name).and_then(Topic::channel) {
            match retry {
                true => self.audit("changes delayed", name, &channel.principal, None),
                false => self.refused("changes refused", name, &channel.principal, CHANGES_REFUSED),
            }
        }
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
            (Topic::Joined(channel), _) => {
                self.shared.metrics.expiries.inc();
                self.shared.journal.note(Note::Expired { channel: channel.id.0 });
                self.audit("expired", name, &channel.principal, None);
                self.expel(name, &expired, now, out);
            }
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

    /// The full topics of its channels.
    pub(super) fn names(&self) -> Vec<Arc<str>> {
        let channels = self.topics.iter().filter(|(_, topic)| topic.is_channel());
        channels.map(|(name, _)| name.clone()).collect()
    }

    /// The last line about this connection.
    pub(super) fn audit_end(&self, reason: Option<CloseReason>) {
        let Visitor { connection, principal, .. } = &self.visitor;
        let channels = self.topics.values().filter(|topic| topic.is_channel()).count();
        let reason = reason.map_or("broken", CloseReason::as_str);
        info!(target: "audit", connection, user = &*principal.subject, role = &*principal.role, channels, reason,
            "disconnected");
    }

    /// The connection is over, `seen` being when its client last showed life: the channels that the hub must forget.
    pub(super) fn end(mut self, seen: Instant) -> Vec<ChannelId> {
        let now = Instant::now();
        for channel in self.topics.values_mut().filter_map(Topic::channel_mut) {
            channel.kept.end(false, seen, now);
        }
        let asked = |topic: &Topic| topic.channel().filter(|channel| channel.feed.is_some()).map(|channel| channel.id);
        self.topics.values().filter_map(asked).collect()
    }
}
