//! Messages that come from the database: which entry of the hub brings them, those replayed out of the table, and the word that
//! they flow (`protocol.md` §3.1.4, §7.6, §7.7).
//!
//! Replayed messages are read before the reply is made. What the log brings begins where everything before could be seen by that
//! reading, and leaves out what it saw ([`crate::hub::Replayed`]): so nothing falls between the two, and nothing is in both.
//!
//! Of what follows the reading each message has its cursor. Who comes back with one from before the reading's end gets again what
//! was replayed and lies behind it: no place parts the two.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::debug;

use super::join::Found;
use super::topic::{Channel, Topic, What, sub_topic};
use super::{Effect, Now, Session};
use crate::channel::JoinError;
use crate::gateway::phoenix::codec::{self, Ref, Status};
use crate::hub::{Action, ChannelId, Entry, Messages, Name, Replayed, Start};
use crate::messages::{MOST_BYTES, Stored, StoredPayload};
use crate::resume::Cursor;

/// The canonical text of the entry of messages, under which devices are resumed.
pub(super) const MESSAGES: &str = r#"{"messages":true}"#;

/// What was read out of the table, and how the stream goes on from it.
#[derive(Debug)]
pub(in crate::gateway::phoenix) struct FromTable {
    /// The oldest first.
    pub(in crate::gateway::phoenix) messages: Vec<Stored>,
    /// Behind this the tail begins,
    pub(in crate::gateway::phoenix) start: Cursor,
    /// and leaves this out.
    pub(in crate::gateway::phoenix) replayed: Arc<Replayed>,
    /// Its part of what the connection may hold of such messages.
    pub(in crate::gateway::phoenix) room: Option<OwnedSemaphorePermit>,
    /// How long its join may wait for the client to read.
    pub(in crate::gateway::phoenix) until: Instant,
}

/// Bytes of a frame around a replayed message, at most: what is written beside payload and event.
const AROUND: usize = 1024;

impl FromTable {
    /// Bytes that will be written, at most; more than the payloads where bytes go out as text.
    pub(in crate::gateway::phoenix) fn size(&self) -> usize {
        let around = |stored: &Stored| AROUND + stored.size() + stored.size() / 2;
        self.messages.iter().map(around).sum()
    }
}

/// The entry that brings a topic's messages. Never one that a client wrote: it has the id 0.
pub(super) fn entry(topic: &str, found: &Found, start: Start) -> Entry {
    let replayed = found.stored.as_ref().map(|stored| stored.replayed.clone());
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
        messages: Some(Messages { topic: sub_topic(topic).into(), member, replayed }),
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

    /// Takes room for stored messages while their join is not answered: for one full replay, however many topics wait.
    pub(in crate::gateway::phoenix) fn make_room(&mut self, stored: &mut FromTable) -> bool {
        let room = self.replays.get_or_insert_with(|| Arc::new(Semaphore::new(MOST_BYTES as usize)));
        if stored.room.is_none() {
            let size = stored.messages.iter().map(Stored::size).sum::<usize>();
            stored.room = u32::try_from(size).ok().and_then(|size| room.clone().try_acquire_many_owned(size).ok());
        }
        if stored.room.is_none() {
            debug!(
                connection = self.visitor.connection,
                "ReplayFailed: a join is refused, other joins of its connection hold all room for stored messages"
            );
        }
        stored.room.is_some()
    }

    /// Bytes of replies with stored messages that wait for their joins' changes: they are written whenever the hub activates those.
    pub(in crate::gateway::phoenix) fn promised(&self) -> usize {
        let held = self.topics.values().filter_map(Topic::held).filter(|held| held.room.is_some());
        held.map(|held| held.greeting.len()).sum()
    }

    /// Stored messages were read, or could not be.
    pub(in crate::gateway::phoenix) fn stored(
        &mut self,
        number: u64,
        answer: Option<FromTable>,
        now: Now,
    ) -> Vec<Effect> {
        let mut out = Vec::new();
        match self.take_waiting(number) {
            Some((_, What::Join { join, after, mut found, .. }, backlog)) => {
                self.held_bytes -= join.payload.len();
                let mut answer = answer;
                match answer.take_if(|stored| self.make_room(stored)) {
                    Some(mut stored) => {
                        found.room = stored.room.take();
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
