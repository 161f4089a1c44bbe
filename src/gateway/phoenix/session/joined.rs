//! A joined channel: how it is left, gets a new token, hears from the hub, and ends.

use tracing::info;

use super::topic::{Backlog, Channel, Topic, Waits, What};
use super::{CHANGES_REFUSED, Effect, Now, Session};
use crate::channel::{self, Answer, JoinError, Notice};
use crate::claims::{Principal, TokenError};
use crate::error::ClientFacing;
use crate::gateway::phoenix::codec::{self, Message, Status};
use crate::hub::{Activated, ChannelId, Version};

impl Session {
    /// A line of the audit log: who and where, and nothing of what was sent.
    pub(super) fn audit(&self, what: &'static str, topic: &str, principal: &Principal, reason: Option<&'static str>) {
        let connection = self.visitor.connection;
        info!(target: "audit", connection, user = &*principal.subject, role = &*principal.role, topic, reason, "{what}");
    }

    pub(super) fn refused(&self, what: &'static str, topic: &str, principal: &Principal, code: &'static str) {
        self.shared.metrics.refusals.get_or_create(&[("code", code)]).inc();
        self.audit(what, topic, principal, Some(code));
    }

    pub(super) fn counted_join(&self, channel: &Channel) {
        self.shared.metrics.joins.inc();
        self.audit("joined", &channel.topic, &channel.principal, None);
    }

    pub(super) fn leave(&mut self, message: &Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        let Some(Topic::Joined(channel)) = self.topics.get(message.topic.as_ref()) else { return };
        if channel.is_stale(message) {
            return;
        }
        out.push(Effect::Send(channel.reply(version, &message.reference, Status::Ok, "{}")));
        self.shared.metrics.leaves.inc();
        self.audit("left", &channel.topic, &channel.principal, None);
        self.close(&message.topic, true, now, out);
    }

    /// Ends a joined channel with its `phx_close`. `left`: its client wanted that.
    pub(super) fn close(&mut self, topic: &str, left: bool, now: Now, out: &mut Vec<Effect>) {
        if let Some(Topic::Joined(mut channel)) = self.topics.remove(topic) {
            channel.kept.end(left, now.at, now.at);
            channel.hush();
            // Who left is told so by the answer; the topics door says it once.
            if !(left && self.visitor.version == Version::Topics) {
                out.push(Effect::Send(codec::close(self.visitor.version, &channel.join_ref, &channel.topic)));
            }
            out.push(Effect::Leave(channel.id));
        }
    }

    /// A channel waits for nothing any more; the message that did is dropped. Returns what came behind it.
    pub(super) fn give_up_push(&mut self, name: &str) -> Backlog {
        let is_push =
            |topic: &Topic| matches!(topic, Topic::Pending(pending) if matches!(pending.what, What::Push { .. }));
        if !self.topics.get(name).is_some_and(is_push) {
            return Backlog::default();
        }
        let Some((name, Topic::Pending(pending))) = self.topics.remove_entry(name) else { return Backlog::default() };
        let What::Push { channel, push, .. } = pending.what else { return pending.backlog };
        self.held_bytes -= push.map_or(0, |push| push.size());
        self.topics.insert(name, Topic::Joined(channel));
        pending.backlog
    }

    /// Ends a channel with this reason: `system` error, then `phx_close`. A join that is held is refused; a message that waits
    /// on it is dropped, and those behind it find no channel.
    pub(super) fn end_channel(&mut self, name: &str, text: &str, code: &'static str, now: Now, out: &mut Vec<Effect>) {
        let Some(topic) = self.topics.get(name) else { return };
        if topic.held().is_some() {
            let topic = super::topic::sub_topic(name).into();
            return self.refuse_held(name, JoinError::Unauthorized { topic }, now, out);
        }
        let backlog = self.give_up_push(name);
        let Some(Topic::Joined(channel)) = self.topics.get(name) else { return };
        self.refused("channel ended", name, &channel.principal, code);
        out.push(channel.system(self.visitor.version, Status::Error, text));
        self.close(name, false, now, out);
        self.release(backlog, now, out);
    }

    /// `access_token`: never answered, unless the token is bad.
    pub(super) fn renew(&mut self, message: &Message<'_>, may_learn: bool, now: Now, out: &mut Vec<Effect>) {
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
                if let Some(request) = channel.feed.principal_changed() {
                    out.push(channel.ask_as_due(request));
                }
                self.shared.metrics.token_refreshes.inc();
                self.audit("token refreshed", topic, &principal, None);
                let topic = match &mut channel.member {
                    None => Topic::Joined(channel),
                    // What it may read is asked for anew; until that is known, the rights are those of the token before.
                    Some(member) => {
                        member.begin_anew();
                        let presence = member.has_presence();
                        let (number, asking) = (self.number(), self.asking(topic, &principal));
                        out.push(Effect::Read { number, asking, presence });
                        let what = What::Push { channel, push: None, waits: Waits::Answer(number) };
                        Topic::pending(what, Backlog::default())
                    }
                };
                self.topics.insert(name, topic);
            }
            Err(error) if may_learn && self.may_hold(message.payload.len()) && self.learn(&error, out) => {
                self.held_bytes += message.payload.len();
                let Some((name, Topic::Joined(channel))) = self.topics.remove_entry(topic) else { return };
                let what = What::Push { channel, push: Some(message.clone().into_owned()), waits: Waits::Keys };
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
    pub(super) fn expel(&mut self, topic: &str, error: &TokenError, now: Now, out: &mut Vec<Effect>) {
        let Some(Topic::Joined(channel)) = self.topics.get(topic) else { return };
        out.push(channel.system(self.visitor.version, Status::Error, &error.client_text()));
        self.close(topic, false, now, out);
    }

    /// The hub has answered a [`Effect::Subscribe`] or [`Effect::Reclaim`].
    pub(in crate::gateway::phoenix) fn answered(&mut self, id: ChannelId, answer: Answer, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(name) = self.name_of(id) else { return out };
        if self.topics.get(&name).is_some_and(|topic| topic.held().is_some()) {
            self.held_answered(&name, answer, now, &mut out);
        } else {
            self.feed_answered(&name, answer, now, &mut out);
        }
        out
    }

    /// The topic of a channel.
    pub(super) fn name_of(&self, id: ChannelId) -> Option<std::sync::Arc<str>> {
        let of = |topic: &Topic| topic.channel().is_some_and(|channel| channel.id == id);
        self.topics.iter().find(|(_, topic)| of(topic)).map(|(name, _)| name.clone())
    }

    pub(super) fn feed_answered(&mut self, name: &str, answer: Answer, now: Now, out: &mut Vec<Effect>) {
        let Some(channel) = self.topics.get_mut(name).and_then(Topic::channel_mut) else { return };
        let retry = matches!(&answer, Err(error) if error.retry);
        if let (Some(fresh), Ok(Activated { cursor: cursor @ Some(_), .. })) = (&mut channel.fresh, &answer) {
            fresh.cursor = *cursor;
        }
        let (notices, next) = channel.feed.answered(answer, now.at);
        let refused = notices.iter().any(|notice| matches!(notice, Notice::Refused(_)));
        let (version, key) = (self.visitor.version, &self.shared.cursor_key);
        out.extend(notices.iter().map(|notice| channel.notice(version, key, notice)));
        out.extend(next.map(|request| channel.ask_as_due(request)));
        if refused && let Some(channel) = self.topics.get(name).and_then(Topic::channel) {
            match retry {
                true => self.audit("changes delayed", name, &channel.principal, None),
                false => self.refused("changes refused", name, &channel.principal, CHANGES_REFUSED),
            }
        }
    }
}
