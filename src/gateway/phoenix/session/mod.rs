//! What one connection's messages mean: a state machine from messages, answers and time to effects. No I/O.
//!
//! Invariants:
//! * Messages of one topic take effect in order, also while something on it waits: a refusal's delay, a key, what rights there
//!   are, or the changes that a join is to be answered with. Other topics don't wait. Only a leave or another join cuts a held
//!   join short.
//! * Of a held join, nothing is said before its reply, and one reply at most: whoever takes the [`Stage`] from waiting speaks.
//! * A channel yields one [`Effect::Enter`] when it joins, and when it ends for whatever reason exactly one [`Effect::Leave`],
//!   or is named by [`Session::end`].
//! * A client reads no text here that it did not send, but those of the catalogue.
//!
//! Rejected: a task per channel, which costs memory and a hop for what is a table look-up.

pub(super) mod begin;
mod broadcast;
mod devices;
mod fresh;
mod held;
mod join;
mod joined;
mod members;
mod presence;
mod stored;
mod topic;
mod waiting;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::value::RawValue;
use tokio::sync::{Notify, Semaphore};
use tracing::{debug, info};

#[cfg(any(test, fuzzing))]
pub(super) use self::broadcast::for_the_room;
pub(super) use self::stored::FromTable;
use self::topic::{Topic, What};
use super::codec::{self, Message, Ref, Status};
use crate::authority::Asking;
use crate::channel::{GoOn, JoinError};
use crate::claims::{Principal, TokenError};
use crate::gateway::Shared;
use crate::gateway::limits::Rate;
use crate::hub::{ChannelId, CloseReason, Entry, Stage, Version};
use crate::journal::Note;
use crate::policy::Rights;
use crate::resume::{Cursor, Tracked};
use crate::room;

/// Why a channel that is joined gets no changes; the client has the text.
const CHANGES_REFUSED: &str = "ChangesRefused";
/// A held join's subscription is tried again after this, if the ordinary time is longer.
const HELD_RETRY: Duration = Duration::from_secs(1);

/// What the connection's task is to do, in this order.
#[derive(Debug)]
pub(super) enum Effect {
    /// Queue this frame.
    Send(Bytes),
    /// The same, unless the channel has told a later place by then.
    Reached { id: ChannelId, at: Cursor, frame: Bytes },
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
        go_on: GoOn,
        stage: Arc<Stage>,
        greeting: Option<Bytes>,
        tracked: Option<Arc<Tracked>>,
    },
    /// Ask the hub, and make it forget the channel if it refuses; hand its answer to [`Session::answered`].
    Reclaim { id: ChannelId, principal: Arc<Principal>, tracked: Option<Arc<Tracked>> },
    /// Give the channel a seat in the room of its topic. What comes for it is written once the stage is greeted.
    Enter { id: ChannelId, topic: Arc<str>, join_ref: Ref, stage: Arc<Stage>, seat: Place },
    /// Have the room send it who is present.
    PresenceState(ChannelId),
    /// Send this to the channel's room, and to itself if it wants `echo`; then queue `ack`. If the room refuses, call
    /// [`Session::rejected`].
    Broadcast { id: ChannelId, message: room::Message, echo: bool, ack: Option<Bytes> },
    /// Have the channel be present with this, or not any more, and answer `ok`; hand an error to [`Session::untaken`].
    Track { id: ChannelId, payload: Option<Arc<RawValue>>, reference: Ref, ok: Bytes },
    /// Ask who may read, within a bound; hand the answer to [`Session::read_answered`].
    Read { number: u64, asking: Asking, presence: bool },
    /// Ask who may write, likewise; for [`Session::write_answered`].
    Write { number: u64, asking: Asking },
    /// Have the channel's rights kept true.
    Watch { id: ChannelId, asking: Asking, rights: Arc<Rights> },
    /// Read stored messages of this topic, within a bound; for [`Session::stored`].
    Stored { number: u64, topic: Arc<str>, since: i64, limit: u32 },
    /// Wait until the stream flows, within a bound; then call [`Session::stream_awaited`].
    AwaitStream(ChannelId),
    /// Give up what is asked for this channel, then make the hub forget it, and its seat and its watch.
    Leave(ChannelId),
    /// Have the keys of tokens fetched, within a bound; then call [`Session::learned`].
    Learn,
    /// Close the connection, behind what is queued.
    Close(CloseReason),
}

impl Effect {
    /// The channel that it names.
    pub(super) fn channel(&self) -> Option<ChannelId> {
        match self {
            Effect::Subscribe { id, .. }
            | Effect::Reclaim { id, .. }
            | Effect::Enter { id, .. }
            | Effect::Broadcast { id, .. }
            | Effect::Track { id, .. }
            | Effect::Watch { id, .. }
            | Effect::PresenceState(id)
            | Effect::AwaitStream(id)
            | Effect::Leave(id) => Some(*id),
            // What was told of it is told, also behind its end.
            Effect::Send(_)
            | Effect::Reached { .. }
            | Effect::Greet { .. }
            | Effect::Read { .. }
            | Effect::Write { .. }
            | Effect::Stored { .. }
            | Effect::Learn
            | Effect::Close(_) => None,
        }
    }
}

/// How a channel is in its room.
#[derive(Debug)]
pub(super) struct Place {
    /// `None` of a public channel.
    pub(super) rights: Option<Arc<Rights>>,
    /// Presence was asked for.
    pub(super) presence: bool,
    /// Its presence key.
    pub(super) key: Arc<str>,
    /// Whose it is, for fairness.
    pub(super) user: Arc<str>,
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
    joins: Rate,
    /// Messages on joined channels.
    messages: Rate,
    /// Keys are being fetched.
    learning: bool,
    /// Bytes of all backlogs.
    held_bytes: usize,
    /// Room for what is replayed by joins that are not answered; made when there is one.
    replays: Option<Arc<Semaphore>>,
    /// The visitor's, shared.
    headers: Arc<str>,
    /// How many questions were asked.
    questions: u64,
    /// Notified when a right of some channel has changed.
    changed: Arc<Notify>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, mut visitor: Visitor) -> Session {
        let generation = shared.verifier.generation();
        let headers = std::mem::take(&mut visitor.headers).into();
        Session {
            shared,
            visitor,
            latest: None,
            generation,
            topics: HashMap::new(),
            joins: Rate::default(),
            messages: Rate::default(),
            learning: false,
            held_bytes: 0,
            replays: None,
            headers,
            questions: 0,
            changed: Arc::default(),
        }
    }

    /// Notified when [`Session::rights_changed`] is to be called.
    pub(super) fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// A message has come, read from this frame.
    pub(super) fn handle(&mut self, message: Message<'_>, frame: &Bytes, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        self.dispatch(message, frame, now, &mut out);
        out
    }

    fn dispatch(&mut self, message: Message<'_>, frame: &Bytes, now: Now, out: &mut Vec<Effect>) {
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
            Some(Topic::Joined(_)) => match message.event.as_ref() {
                _ if !self.counts(&message, now, out) => {}
                "access_token" => self.renew(&message, true, now, out),
                "broadcast" => self.broadcast(message, frame, now, out),
                "presence" => self.presence(message, now, out),
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

    /// Time has passed: tokens expire, tries are due, held-back answers go out.
    pub(super) fn tick(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let mut due = Vec::new();
        for (name, topic) in &mut self.topics {
            if topic.is_due(now) {
                due.push(name.clone());
            } else if let Some(request) = topic.channel_mut().and_then(|channel| channel.feed.due(now.at)) {
                out.extend(topic.ask(request));
            }
        }
        self.ask_again(now, &mut out);
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
        if topic.waits().is_some() && is_expired {
            // It ends like one that waits for nothing.
            let backlog = self.give_up_push(name);
            self.fall_due(name, now, out);
            return self.release(backlog, now, out);
        }
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
        self.topics.values().filter_map(Topic::channel).map(|channel| channel.id).collect()
    }
}
