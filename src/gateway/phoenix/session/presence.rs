//! `presence` messages: what they ask for, what is refused, and what they are answered (`protocol.md` §3.6, §8).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use super::topic::{Channel, Topic};
use super::{Effect, Now, Session};
use crate::channel::{Presence, presence};
use crate::gateway::phoenix::codec::{self, Message, Ref, Status};
use crate::hub::ChannelId;
use crate::policy::Right;
use crate::room::RoomError;

/// A channel's presence calls in the window at hand.
#[derive(Debug, Default)]
pub(super) struct Calls {
    since: Option<Instant>,
    count: u32,
}

impl Calls {
    fn admit(&mut self, now: Instant, window: Duration, most: u32) -> bool {
        let since = self.since.filter(|since| now.saturating_duration_since(*since) < window);
        if since.is_none() {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= most
    }
}

impl Session {
    pub(super) fn presence(&mut self, message: Message<'_>, now: Now, out: &mut Vec<Effect>) {
        let Some(Topic::Joined(channel)) = self.topics.get_mut(message.topic.as_ref()) else { return };
        let asked = presence(&message.payload);
        let config = &self.shared.config;
        if asked != Presence::Nothing && !channel.calls.admit(now.at, config.presence_window, config.max_presence_calls)
        {
            let text = "Client presence rate limit exceeded";
            return self.end_channel(&message.topic, text, "ClientPresenceRateLimitReached", now, out);
        }
        match asked {
            Presence::Nothing => self.presence_reply(&message, Status::Ok, "{}", out),
            Presence::Unknown => self.presence_refused(&message, out),
            Presence::Untrack => out.push(to_the_room(channel, None, message, self.visitor.version)),
            Presence::Track(payload) => {
                match may_track(channel, now) {
                    May::Yes => {}
                    May::No => return self.presence_refused(&message, out),
                    May::Unread => return self.ask_for_push(message, true, out),
                    May::Unwritten => return self.ask_for_push(message, false, out),
                }
                let Some(payload) = payload else {
                    let response = r#"{"reason":"Presence track payload must be a map"}"#;
                    return self.presence_reply(&message, Status::Error, response, out);
                };
                if payload.get().len() > config.largest_payload() {
                    let text = "Track message size exceeded";
                    return self.end_channel(&message.topic, text, "TrackMessageSizeExceeded", now, out);
                }
                out.push(to_the_room(channel, Some(payload.into()), message, self.visitor.version));
            }
        }
    }

    fn presence_reply(&self, message: &Message<'_>, status: Status, response: &str, out: &mut Vec<Effect>) {
        let Some(channel) = self.topics.get(message.topic.as_ref()).and_then(Topic::channel) else { return };
        out.push(Effect::Send(channel.reply(self.visitor.version, &message.reference, status, response)));
    }

    pub(super) fn presence_refused(&self, message: &Message<'_>, out: &mut Vec<Effect>) {
        self.presence_reply(message, Status::Error, "{}", out);
    }

    /// The room did not take an [`Effect::PresenceState`] in time. Diffs mean nothing without it: the client is to join anew.
    pub(in crate::gateway::phoenix) fn stateless(&mut self, id: ChannelId, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        if let Some(name) = self.name_of(id) {
            let text = "Presence state could not be sent in time";
            self.end_channel(&name, text, "PresenceStateTimeout", now, &mut out);
        }
        out
    }

    /// The room has not taken an [`Effect::Track`].
    pub(in crate::gateway::phoenix) fn untaken(
        &mut self,
        id: ChannelId,
        reference: &Ref,
        error: RoomError,
        now: Now,
    ) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(channel) = self.name_of(id).and_then(|name| self.topics.get(&name)?.channel()) else { return out };
        let version = self.visitor.version;
        match error {
            RoomError::Closed => out.push(Effect::Send(channel.reply(version, reference, Status::Error, "{}"))),
            RoomError::PresenceFull | RoomError::NotAMap => {
                let response = format!(r#"{{"reason":{}}}"#, codec::json(&error.to_string()));
                out.push(Effect::Send(channel.reply(version, reference, Status::Error, &response)));
            }
            RoomError::TooManyPresence | RoomError::TooManyMessages => return self.rejected(id, error, now),
        }
        out
    }
}

/// What the room is to take, and what its client is then answered.
fn to_the_room(
    channel: &Channel,
    payload: Option<Arc<RawValue>>,
    message: Message<'_>,
    version: crate::hub::Version,
) -> Effect {
    let ok = channel.reply(version, &message.reference, Status::Ok, "{}");
    Effect::Track { id: channel.id, payload, reference: message.reference, ok }
}

enum May {
    Yes,
    No,
    /// It is not known yet whether it may read presence.
    Unread,
    /// Or write it.
    Unwritten,
}

fn may_track(channel: &mut Channel, now: Now) -> May {
    let Some(member) = &mut channel.member else { return May::Yes };
    if !member.wants_presence() {
        return May::Unread;
    }
    match member.may_write(Right::WritePresence, now.at) {
        None => May::Unwritten,
        Some(false) => May::No,
        Some(true) => May::Yes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_anew_in_each_window() {
        let (start, window, mut calls) = (Instant::now(), Duration::from_secs(30), Calls::default());
        let mut admit = |after: u64| calls.admit(start + Duration::from_secs(after), window, 2);
        assert!(admit(5) && admit(6) && !admit(7) && !admit(34));
        assert!(admit(35) && admit(64) && !admit(64) && admit(65));
    }
}
