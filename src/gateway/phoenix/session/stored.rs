//! Messages that come from the database: which entry of the hub brings them, those replayed out of the table, and the word that
//! they flow (`protocol.md` §3.1.4, §7.6, §7.7).
//!
//! Replayed messages are read before the reply is made, and what the log brings begins where it ended before that reading: so
//! nothing falls between the two, and what is in both is skipped by its id.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use super::join::Found;
use super::topic::{Channel, Topic, What, sub_topic};
use super::{Effect, Now, Session};
use crate::channel::JoinError;
use crate::gateway::phoenix::codec::{self, Ref, Status};
use crate::hub::{Action, ChannelId, Entry, Messages, Name, Start};
use crate::messages::{Stored, StoredPayload};

/// The canonical text of the entry of messages, under which devices are resumed.
pub(super) const MESSAGES: &str = r#"{"messages":true}"#;

/// The entry that brings a topic's messages. Never one that a client wrote: it has the id 0.
pub(super) fn entry(topic: &str, found: &Found, start: Start) -> Entry {
    let skip: Arc<[[u8; 16]]> = found.stored.iter().flatten().map(|stored| stored.id).collect();
    let member = found.member.as_ref().map(|member| member.rights.clone());
    Entry {
        id: 0,
        action: Action::All,
        schema: Name::Any,
        table: Name::Any,
        filter: None,
        select: None,
        start,
        cursor_as: None,
        snapshot: None,
        messages: Some(Messages { topic: sub_topic(topic).into(), member, skip }),
    }
}

/// As Postgres writes it.
pub(super) fn uuid(id: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (i, byte) in id.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Session {
    /// The frames of what is replayed.
    pub(super) fn replayed(&self, stored: &[Stored], own_ref: &Ref, topic: &str) -> Vec<Bytes> {
        let version = self.visitor.version;
        let frame = |stored: &Stored| {
            let meta = format!(r#"{{"replayed":true,"id":"{}"}}"#, uuid(stored.id));
            match &stored.payload {
                StoredPayload::Json(json) => {
                    let event = codec::json(&stored.event);
                    let payload = format!(r#"{{"type":"broadcast","event":{event},"payload":{json},"meta":{meta}}}"#);
                    Some(codec::replayed(version, own_ref, topic, &payload))
                }
                StoredPayload::Binary(bytes) => codec::replayed_binary(version, topic, &stored.event, &meta, bytes),
            }
        };
        stored.iter().filter_map(frame).collect()
    }

    /// Stored messages were read, or could not be.
    pub(in crate::gateway::phoenix) fn stored(
        &mut self,
        number: u64,
        answer: Option<Vec<Stored>>,
        now: Now,
    ) -> Vec<Effect> {
        let mut out = Vec::new();
        match self.take_waiting(number) {
            Some((_, What::Join { join, after, mut found, .. }, backlog)) => {
                self.held_bytes -= join.payload.len();
                match answer {
                    Some(stored) => {
                        found.stored = Some(stored);
                        self.decide(&join, after, backlog, *found, now, &mut out);
                    }
                    None => {
                        out.extend(found.id.map(Effect::Leave));
                        let asker = super::join::Asker::of(&join);
                        self.refuse_join(&asker, &JoinError::ReplayFailed, after, backlog, now, &mut out);
                    }
                }
            }
            Some((name, what, backlog)) => drop(self.topics.insert(name, Topic::pending(what, backlog))),
            None => {}
        }
        out
    }

    /// Tells a channel that asked for it when broadcasts from the database flow.
    pub(super) fn await_stream(channel: &Channel) -> Option<Effect> {
        channel.replication_ready.then_some(Effect::AwaitStream(channel.id))
    }

    /// They flow, or did not begin to in time.
    pub(in crate::gateway::phoenix) fn stream_awaited(&mut self, id: ChannelId, flows: bool, now: Now) -> Vec<Effect> {
        let mut out = Vec::new();
        let Some(name) = self.name_of(id) else { return out };
        if flows {
            let channel = self.topics.get(&name).and_then(Topic::channel);
            let text = "Replication connection established";
            out.extend(channel.map(|channel| channel.system(self.visitor.version, Status::Ok, text)));
        } else {
            let text = "Replication connection was not established in time";
            self.end_channel(&name, text, "ReplicationNotReady", now, &mut out);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_as_postgres_writes_it() {
        let id = [0xa1, 0x1c, 0xe0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, 0x0f];
        assert_eq!(uuid(id), "a11ce000-0000-4000-8000-00000000000f");
    }
}
