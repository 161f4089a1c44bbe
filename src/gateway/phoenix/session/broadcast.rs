//! Broadcasts from a client to the others of its topic (`protocol.md` §7.2).

use std::borrow::Cow;

use bytes::Bytes;
use tracing::debug;

use super::topic::Topic;
use super::{Effect, Now, Session};
use crate::gateway::phoenix::codec::{self, Message, Status};
use crate::hub::ChannelId;
use crate::policy::Right;
use crate::room::{self, Payload, RoomError};

/// What a client is told, and a channel ended with, that sends more than it may.
const TOO_MANY_MESSAGES: &str = "Too many messages per second";
const TOO_MANY_PRESENCES: &str = "Too many presence messages per second";

impl Session {
    /// Counts a message for a joined channel. False: it is one too many, and the channel has ended.
    pub(super) fn counts(&mut self, message: &Message<'_>, now: Now, out: &mut Vec<Effect>) -> bool {
        let counted = self.messages.admit(now.at, self.shared.config.max_messages_per_second);
        if !counted {
            self.end_channel(&message.topic, TOO_MANY_MESSAGES, "MessagePerSecondRateLimitReached", now, out);
        }
        counted
    }

    /// `frame`: what the message was read from, if it was not copied.
    pub(super) fn broadcast(&mut self, message: Message<'_>, frame: &Bytes, now: Now, out: &mut Vec<Effect>) {
        let version = self.visitor.version;
        let Some(Topic::Joined(channel)) = self.topics.get(message.topic.as_ref()) else { return };
        if message.size() > self.shared.config.largest_payload() {
            if channel.ack {
                let response = r#"{"reason":"payload_size_exceeded"}"#;
                out.push(Effect::Send(channel.reply(version, &message.reference, Status::Error, response)));
            }
            return;
        }
        if let Some(member) = &channel.member {
            match member.may_write(Right::WriteBroadcast, now.at) {
                None => return self.ask_for_push(message, false, out),
                // Nobody is told, not even who asked for answers.
                Some(false) => return debug!(connection = self.visitor.connection, "a broadcast is not allowed"),
                Some(true) => {}
            }
        }
        let ack = channel.ack.then(|| channel.reply(version, &message.reference, Status::Ok, "{}"));
        let (id, echo) = (channel.id, channel.echo);
        out.push(Effect::Broadcast { id, message: for_the_room(message, frame), echo, ack });
    }

    /// A broadcast, or what presence a channel asked for, was not taken by its room.
    pub(in crate::gateway::phoenix) fn rejected(&mut self, id: ChannelId, error: RoomError, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let (text, code) = match error {
            RoomError::TooManyMessages => (TOO_MANY_MESSAGES, "MessagePerSecondRateLimitReached"),
            RoomError::TooManyPresence => (TOO_MANY_PRESENCES, "PresenceRateLimitReached"),
            // These are told to who asked, and end nothing.
            RoomError::PresenceFull | RoomError::NotAMap | RoomError::Closed => return out,
        };
        if let Some(name) = self.name_of(id) {
            self.end_channel(&name, text, code, now, &mut out);
        }
        out
    }
}

/// As others get it.
pub(in crate::gateway::phoenix) fn for_the_room(message: Message<'_>, frame: &Bytes) -> room::Message {
    let Some(push) = message.push else {
        return room::Message::Text { payload: codec::shared(frame, message.payload) };
    };
    let payload = match push.binary {
        None => Payload::Json(codec::shared(frame, message.payload)),
        Some(Cow::Borrowed(bytes)) => Payload::Binary(codec::shared(frame, Cow::Borrowed(bytes))),
        Some(Cow::Owned(bytes)) => Payload::Binary(bytes.into()),
    };
    room::Message::Event { event: push.event.as_ref().into(), payload, meta: None }
}
