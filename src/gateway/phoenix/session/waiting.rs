//! Messages that wait for something on their topic, and the keys of tokens that may be worth waiting for.

use bytes::Bytes;

use super::topic::{Backlog, Topic, Waits, What};
use super::{Effect, Now, Session};
use crate::claims::TokenError;
use crate::gateway::phoenix::codec::{self, Message, Ref};

impl Session {
    pub(super) fn hold(&mut self, message: Message<'_>, out: &mut Vec<Effect>) {
        let config = &self.shared.config;
        let Some(Topic::Pending(pending)) = self.topics.get_mut(message.topic.as_ref()) else { return };
        let (backlog, bytes) = (&mut pending.backlog, message.size());
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

    /// Whether a message of this size may wait.
    pub(super) fn may_hold(&self, bytes: usize) -> bool {
        self.held_bytes + bytes <= self.shared.config.max_pending_bytes
    }

    pub(super) fn release(&mut self, backlog: Backlog, now: Now, out: &mut Vec<Effect>) {
        self.held_bytes -= backlog.bytes;
        for message in backlog.messages {
            self.dispatch(message, &Bytes::new(), now, out);
        }
    }

    /// Whether keys are being fetched that may make a refused token good; if so, they are waited for.
    pub(super) fn learn(&mut self, error: &TokenError, out: &mut Vec<Effect>) -> bool {
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
    pub(in crate::gateway::phoenix) fn learned(&mut self, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        self.learning = false;
        let waiting = self.topics.iter().filter(|(_, topic)| topic.waits() == Some(Waits::Keys));
        for name in waiting.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let Some(Topic::Pending(pending)) = self.topics.remove(&name) else { continue };
            let backlog = pending.backlog;
            match pending.what {
                What::Join { join, after, mut found, .. } => {
                    self.held_bytes -= join.payload.len();
                    found.learned = true;
                    self.decide(&join, after, backlog, *found, now, &mut out);
                }
                What::Push { channel, push, .. } => {
                    self.topics.insert(name, Topic::Joined(channel));
                    if let Some(renewal) = push {
                        self.held_bytes -= renewal.size();
                        self.renew(&renewal, false, now, &mut out);
                    }
                    self.release(backlog, now, &mut out);
                }
                what => drop(self.topics.insert(name, Topic::pending(what, backlog))),
            }
        }
        out
    }
}
