//! A join, from the message to the channel or the refusal (`protocol.md` §3.1).
//!
//! What a join needs to know from elsewhere is found out in steps: the keys of its token, whether it may read, what is to be
//! replayed. After each step the join is decided anew with all that was found, so the checks stand in one place and in one
//! order, and hold at the moment of the reply.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::begin::Beginning;
use super::members::Membership;
use super::stored::FromTable;
use super::topic::{Backlog, Topic, Waits, What, sub_topic};
use super::{Effect, Now, Session};
use crate::channel::{self, Feed, Join, JoinError, Privacy, Replay, TokenChoice};
use crate::claims::{Principal, TokenError};
use crate::error::ClientFacing;
use crate::gateway::phoenix::codec::{self, Message, Ref};
use crate::hub::{ChannelId, CloseReason, Version};
use crate::policy::Right;

/// Characters of a topic that is none, in the audit log.
const MAX_AUDITED_TOPIC: usize = 64;

/// What a join has found out.
#[derive(Default)]
pub(super) struct Found {
    /// Keys were fetched, or could not be: what is known now decides.
    pub(super) learned: bool,
    /// Presence is asked for.
    pub(super) presence: bool,
    /// It may read this private channel.
    pub(super) member: Option<Box<Membership>>,
    /// Whose rights are watched already, for the time in which stored messages are read.
    pub(super) id: Option<ChannelId>,
    /// What is to be replayed.
    pub(super) stored: Option<FromTable>,
    /// Its part of what a connection may hold of that.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// What a join may have.
pub(super) struct Granted {
    pub(super) join: Join,
    pub(super) token: Arc<str>,
    pub(super) principal: Arc<Principal>,
}

/// Which join a reply is for.
pub(super) struct Asker<'a> {
    pub(super) join_ref: &'a Ref,
    pub(super) reference: &'a Ref,
    pub(super) topic: &'a str,
}

impl<'a> Asker<'a> {
    pub(super) fn of(message: &'a Message<'_>) -> Asker<'a> {
        Asker { join_ref: &message.join_ref, reference: &message.reference, topic: &message.topic }
    }
}

impl Session {
    /// `after`: frames that are to follow the reply.
    pub(super) fn join(&mut self, message: &Message<'_>, mut after: Vec<Bytes>, now: Now, out: &mut Vec<Effect>) {
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
        let own = self.joins.admit(now.at, config.max_joins_per_second);
        let too_often = !own || !self.shared.joins.admit(now.at);
        // The old instance ends first, whether or not the new one begins; its close is told after the new one's reply.
        let mut old = self.topics.remove(message.topic.as_ref());
        // Before the new one asks where it begins.
        if let Some(channel) = old.as_mut().and_then(Topic::channel_mut) {
            channel.kept.end(false, now.at, now.at);
        }
        if let Some(Topic::Joined(channel)) = &old {
            channel.hush();
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
            out.push(Effect::Leave(old.id));
            // A Python client takes any close for the channel's end and drops what comes then, whatever its ref says (seen with
            // realtime-py 2.34, which joins anew at each gap notice). It speaks version 1 (decision 4).
            if !old.join_ref.is_null() && self.visitor.version == Version::V2 {
                after.push(codec::close(self.visitor.version, &old.join_ref, &old.topic));
            }
        }
        if too_often {
            out.push(Effect::Send(self.refusal(&Asker::of(message), &JoinError::TooManyJoins)));
            out.extend(after.into_iter().map(Effect::Send));
            out.push(Effect::Close(CloseReason::Joins));
            return;
        }
        self.decide(message, after, Backlog::default(), Found::default(), now, out);
    }

    /// Answers the join, or finds out what is missing for that. `backlog`: what came since.
    pub(super) fn decide(
        &mut self,
        message: &Message<'_>,
        after: Vec<Bytes>,
        backlog: Backlog,
        mut found: Found,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let error = match self.admit(message, now) {
            Ok(granted) => match self.missing(&granted, message, &mut found, out) {
                Ok(None) => return self.answer(message, granted, after, backlog, found, now, out),
                Ok(Some(waits)) => return self.wait_for(waits, message, after, backlog, found),
                Err(error) => error,
            },
            Err(JoinError::Token(error))
                if !found.learned && self.may_hold(message.payload.len()) && self.learn(&error, out) =>
            {
                return self.wait_for(Waits::Keys, message, after, backlog, found);
            }
            Err(error) => error,
        };
        out.extend(found.id.map(Effect::Leave));
        self.refuse_join(&Asker::of(message), &error, after, backlog, now, out);
    }

    fn wait_for(&mut self, waits: Waits, message: &Message<'_>, after: Vec<Bytes>, backlog: Backlog, found: Found) {
        self.held_bytes += message.payload.len();
        let what = What::Join { join: message.clone().into_owned(), after, found: Box::new(found), waits };
        self.topics.insert(message.topic.as_ref().into(), Topic::pending(what, backlog));
    }

    /// What is asked for, because the join can't be answered without it.
    fn missing(
        &mut self,
        granted: &Granted,
        message: &Message<'_>,
        found: &mut Found,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Waits>, JoinError> {
        let Granted { join, principal, .. } = granted;
        if join.privacy != Privacy::Private {
            return join.replay.is_none().then_some(None).ok_or(JoinError::Replay);
        }
        // Who followed the rights meanwhile and no longer can has taken them back: they are asked for again.
        let undecided = |member: &Membership| member.rights.get(Right::ReadBroadcast).is_none();
        if found.stored.is_some() && found.member.as_deref().is_some_and(undecided) {
            found.member = None;
        }
        let Some(member) = &mut found.member else {
            if !self.may_hold(message.payload.len()) {
                return Err(JoinError::PoolExhausted);
            }
            found.presence = join.presence;
            let (number, asking) = (self.number(), self.asking(&message.topic, principal));
            out.push(Effect::Read { number, asking, presence: join.presence });
            return Ok(Some(Waits::Answer(number)));
        };
        let Some(replay) = &join.replay else { return Ok(None) };
        if !member.rights.allows(Right::ReadBroadcast) {
            return Err(JoinError::Unauthorized { topic: sub_topic(&message.topic).into() });
        }
        match replay {
            Replay::Invalid => Err(JoinError::ReplayParams),
            Replay::Stored { since, limit } if found.stored.is_none() => {
                if !self.may_hold(message.payload.len()) {
                    return Err(JoinError::ReplayFailed);
                }
                let id = *found.id.get_or_insert_with(channel::next_id);
                out.extend(self.watch_member(id, &message.topic, principal, member));
                let (number, topic) = (self.number(), sub_topic(&message.topic).into());
                out.push(Effect::Stored { number, topic, since: *since, limit: *limit });
                Ok(Some(Waits::Answer(number)))
            }
            Replay::Stored { .. } | Replay::After(_) => Ok(None),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one join, handed on once")]
    fn answer(
        &mut self,
        message: &Message<'_>,
        granted: Granted,
        after: Vec<Bytes>,
        backlog: Backlog,
        mut found: Found,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let begun = match self.begin(&granted, &found, &message.topic, now) {
            Ok(begun) => begun,
            Err(error) => {
                out.extend(found.id.map(Effect::Leave));
                return self.refuse_join(&Asker::of(message), &error, after, backlog, now, out);
            }
        };
        // A client that has left or joined anew meanwhile waits for nothing.
        let wait = granted.join.wait.filter(|_| !granted.join.changes.is_empty() && !backlog.ends());
        let Beginning { entries, cursor, kept, fresh, malformed } = begun;
        if let (Some(_), Some(text)) = (wait, &malformed) {
            let error = JoinError::Changes(text.clone());
            out.extend(found.id.map(Effect::Leave));
            return self.refuse_join(&Asker::of(message), &error, after, backlog, now, out);
        }
        let retry = self.shared.config.retry;
        let retry = if wait.is_some() { retry.min(super::HELD_RETRY) } else { retry };
        let feed = Feed::new(entries, retry);
        let room = found.room.take();
        let (mut channel, frames) = self.channel(message, granted, cursor, feed, found, &after);
        (channel.kept, channel.fresh) = (kept, fresh);
        if let Some(wait) = wait {
            return self.hold_join(message, channel, (frames, room), after, wait, backlog, now, out);
        }
        self.joined(channel, &frames, malformed, out);
        self.release(backlog, now, out);
    }

    /// The checks of §3.1.3 that need nobody else, in their order.
    fn admit(&mut self, message: &Message<'_>, now: Now) -> Result<Granted, JoinError> {
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
        Ok(Granted { join, token, principal })
    }

    /// What a connection asks for stays in memory as long as it does.
    fn has_room_for(&self, join: &Join, message: &Message<'_>) -> Result<(), JoinError> {
        let config = &self.shared.config;
        if join.changes.is_empty() {
            return Ok(());
        }
        let (mut entries, mut bytes) = (join.changes.len(), message.payload.len());
        for channel in self.topics.values().filter_map(Topic::channel) {
            entries += channel.feed.wanted();
            bytes += channel.kept_bytes;
        }
        if entries > config.max_connection_entries || bytes > config.max_connection_entry_bytes {
            return Err(JoinError::Payload("Too many postgres_changes entries on this connection"));
        }
        Ok(())
    }

    pub(super) fn verify(&mut self, token: &str, now: Now) -> Result<(Arc<str>, Arc<Principal>), TokenError> {
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

    pub(super) fn refuse_join(
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
}
