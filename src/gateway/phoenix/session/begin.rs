//! Where a join begins: each entry where its `since` says, all others at the end of the log as of the reply. An entry that
//! asks for a snapshot too needs none if all that came since is there. The entry of messages, the last, begins where the
//! `replay` says.
//!
//! So the reply names a place, and everything committed after it arrives, however long the activation takes and however often
//! it is tried again. Rejected: the hub's position at the activation, which comes after the reply, and would leave what was
//! committed in between to chance.

use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;

use super::devices::Kept;
use super::fresh::Fresh;
use super::join::{Found, Granted};
use super::presence::Calls;
use super::topic::{Channel, Counted, Topic};
use super::{CHANGES_REFUSED, Effect, Now, Place, Session, stored};
use crate::channel::{self, Feed, Join, JoinError, Notice, Privacy, Replay, Request, Since, Wanted};
use crate::gateway::encode::details;
use crate::gateway::phoenix::codec::{self, Message, Status};
use crate::hub::{Details, Entry, Stage, Start};
use crate::policy::Right;
use crate::resume::{Cursor, CursorError};

/// What a join asks for, with its places.
pub(super) struct Beginning {
    /// For the hub; that of messages is the last.
    pub(super) entries: Vec<Entry>,
    /// What the reply tells: nothing owed is at or before it. `None` if that is not known yet.
    pub(super) cursor: Option<Cursor>,
    /// Of a device.
    pub(super) kept: Kept,
    /// Of a client that keeps cursors.
    pub(super) fresh: Option<Fresh>,
    /// Why the client's entries are none; then they are not among them.
    pub(super) malformed: Option<String>,
}

impl Session {
    /// Where the join begins as of now.
    pub(super) fn begin(
        &self,
        granted: &Granted,
        found: &Found,
        topic: &str,
        now: Now,
    ) -> Result<Beginning, JoinError> {
        let Granted { join, principal, .. } = granted;
        let here = self.shared.log.here();
        let entries: Result<Vec<Entry>, String> = join.changes.iter().map(|wanted| self.entry(wanted, here)).collect();
        let (mut entries, malformed) = match entries {
            Ok(entries) => (entries, None),
            Err(text) => (Vec::new(), Some(text)),
        };
        let changes = if malformed.is_none() { join.changes.as_slice() } else { &[] };
        let of_messages = found.stored.as_ref().map(|stored| stored.start).or(here);
        entries.push(stored::entry(topic, found, self.messages_start(join, of_messages)?));
        let mut begun = Beginning { entries, cursor: None, kept: Kept::default(), fresh: None, malformed };
        begun.kept = self.resume(&mut begun.entries, join, changes, topic, principal, now);
        // Who has nothing to come back for needs no place.
        let private = join.privacy == Privacy::Private;
        if private || !changes.is_empty() {
            begun.cursor = here.and_then(|here| lowest(here, &begun.entries));
        }
        let keeps = changes.iter().any(Wanted::keeps_cursors) || matches!(join.replay, Some(Replay::After(_)));
        begun.fresh = keeps.then_some(Fresh { at: now.at, cursor: begun.cursor });
        Ok(begun)
    }

    /// Where the messages of its topic begin.
    fn messages_start(&self, join: &Join, here: Option<Cursor>) -> Result<Start, JoinError> {
        let Some(Replay::After(text)) = &join.replay else { return Ok(here.map_or(Start::Now, Start::After)) };
        match self.shared.cursor_key.open(text) {
            Ok(cursor) => Ok(Start::After(cursor)),
            // As with `since`.
            Err(CursorError::OtherKey) => Ok(Start::Lost),
            Err(CursorError::Malformed) => Err(JoinError::ReplayParams),
        }
    }

    fn entry(&self, wanted: &Wanted, here: Option<Cursor>) -> Result<Entry, String> {
        let start = match wanted.since()? {
            None => here.map_or(Start::Now, Start::After),
            Some(Since::Time(time)) => Start::Time(time),
            Some(Since::Cursor(text)) => match self.shared.cursor_key.open(&text) {
                Ok(cursor) => Start::After(cursor),
                // Not the client's fault: it is told of a gap, and goes on.
                Err(CursorError::OtherKey) => Start::Lost,
                Err(error @ CursorError::Malformed) => return Err(format!("Error parsing `since`: {error}")),
            },
        };
        let mut entry = Entry { start, ..wanted.entry()? };
        if entry.snapshot.is_some() && wanted.since()?.is_some() && self.can_go_on(start) {
            // It has what a snapshot would bring.
            entry.snapshot = None;
        }
        Ok(entry)
    }

    /// Whether everything after this place is still there.
    fn can_go_on(&self, start: Start) -> bool {
        match start {
            Start::After(cursor) => self.shared.log.goes_on_from(cursor),
            // At least once, from the first that is kept.
            Start::Time(_) => true,
            Start::Now | Start::Lost => false,
        }
    }

    /// A channel, and the frames that its client gets first: the join reply, which tells this place, and what follows it.
    pub(super) fn channel(
        &self,
        message: &Message<'_>,
        granted: Granted,
        cursor: Option<Cursor>,
        feed: Feed,
        found: Found,
        after: &[Bytes],
    ) -> (Box<Channel>, Vec<Bytes>) {
        let version = self.visitor.version;
        let Granted { join, token, principal } = granted;
        if !join.unreadable.is_empty() {
            debug!(connection = self.visitor.connection, fields = ?join.unreadable, "InvalidJoinPayload: read as absent");
        }
        let mut response = String::from(r#"{"postgres_changes":["#);
        for (index, wanted) in join.changes.iter().enumerate() {
            response.push_str(if index > 0 { "," } else { "" });
            wanted.echo(&mut response);
        }
        response.push(']');
        if let Some(cursor) = cursor {
            response.push_str(&details(Details::Reached(cursor), &self.shared.cursor_key));
        }
        response.push('}');
        let (topic, own_ref) = (Arc::<str>::from(message.topic.as_ref()), message.join_ref.or(&message.reference));
        let reply = codec::reply(version, &message.join_ref, &message.reference, &topic, Status::Ok, &response);
        let mut frames = vec![reply];
        frames.extend_from_slice(after);
        frames.extend(self.replayed(found.stored.as_ref().map_or(&[], |stored| &*stored.messages), &own_ref, &topic));
        let channel = Channel {
            id: found.id.unwrap_or_else(channel::next_id),
            topic,
            join_ref: message.join_ref.clone(),
            own_ref,
            token,
            principal,
            ack: join.ack,
            echo: join.echo,
            replication_ready: join.replication_ready,
            stage: Arc::new(Stage::waiting()),
            presence: join.presence,
            key: join.key.map_or_else(presence_key, Arc::from),
            calls: Calls::default(),
            member: found.member,
            feed,
            fresh: None,
            kept: Kept::default(),
            asked: None,
            kept_bytes: if join.changes.is_empty() { 0 } else { message.payload.len() },
            _counted: Counted::new(&self.shared.metrics),
        };
        (Box::new(channel), frames)
    }

    /// Has the channel come into its room.
    pub(super) fn enter(&self, channel: &Channel) -> Effect {
        let principal = &channel.principal;
        // Who is nobody in particular is not one with all others like that.
        let user = match &*principal.subject {
            "" => format!("{}#{}", principal.role, self.visitor.connection).into(),
            _ => principal.user(),
        };
        Effect::Enter {
            id: channel.id,
            topic: channel.topic.clone(),
            join_ref: channel.own_ref.clone(),
            stage: channel.stage.clone(),
            seat: Place {
                rights: channel.member.as_ref().map(|member| member.rights.clone()),
                presence: channel.presence,
                key: channel.key.clone(),
                user,
            },
        }
    }

    /// The join is answered with these frames; its entries are asked for.
    pub(super) fn joined(
        &mut self,
        mut channel: Box<Channel>,
        frames: &[Bytes],
        malformed: Option<String>,
        out: &mut Vec<Effect>,
    ) {
        self.counted_join(&channel);
        out.push(self.enter(&channel));
        let greeting = if let [reply] = frames { reply.clone() } else { frames.concat().into() };
        out.push(Effect::Greet { stage: channel.stage.clone(), greeting });
        self.answered_join(&mut channel, out);
        if let Some(text) = malformed {
            self.refused("changes refused", &channel.topic, &channel.principal, CHANGES_REFUSED);
            out.push(channel.notice(self.visitor.version, &self.shared.cursor_key, &Notice::Refused(text)));
        }
        out.push(channel.ask(Request::Subscribe { again: false }));
        self.topics.insert(channel.topic.clone(), Topic::Joined(channel));
    }

    /// What follows every join reply.
    pub(super) fn answered_join(&self, channel: &mut Channel, out: &mut Vec<Effect>) {
        let readable = channel.member.as_ref().is_none_or(|member| member.rights.allows(Right::ReadPresence));
        if channel.presence && readable {
            out.push(Effect::PresenceState(channel.id));
        }
        if let Some(member) = &mut channel.member {
            member.told_presence();
        }
        out.extend(self.watch_joined(channel));
        out.extend(Session::await_stream(channel));
    }
}

/// A key for who names none: a UUID of version 4.
fn presence_key() -> Arc<str> {
    let mut id: [u8; 16] = rand::random();
    (id[6], id[8]) = (id[6] & 0x0f | 0x40, id[8] & 0x3f | 0x80);
    stored::uuid(id).into()
}

/// Where an entry goes on whose channel has reached this place.
pub(in crate::gateway::phoenix) fn later(start: Start, reached: Cursor) -> Start {
    match start {
        // Added later than the others, and nothing before is owed to it.
        Start::After(own) if own.epoch == reached.epoch && own.position > reached.position => start,
        _ => Start::After(reached),
    }
}

/// The place with which a client that got nothing yet can come back and lose nothing. A place in another history counts as the
/// lowest: whoever comes back with it is told of the gap again. With a snapshot there is none before its end.
fn lowest(here: Cursor, entries: &[Entry]) -> Option<Cursor> {
    if entries.iter().any(|entry| entry.snapshot.is_some()) {
        return None;
    }
    let starts = entries.iter().map(|entry| match entry.start {
        Start::After(cursor) => Some(cursor),
        Start::Now | Start::Time(_) | Start::Lost => None,
    });
    let starts: Vec<Cursor> = starts.collect::<Option<_>>()?;
    starts.into_iter().min_by_key(|start| (start.epoch == here.epoch, start.position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Lsn, Position, Timestamp};
    use crate::hub::{Action, Name};

    fn at(epoch: u64, lsn: u64) -> Cursor {
        Cursor { epoch, position: Position { lsn: Lsn(lsn), ordinal: 0 } }
    }

    #[test]
    fn the_reply_tells_the_lowest_place_or_none() {
        let entry = |start| {
            let (schema, table, action) = (Name::Any, Name::Any, Action::All);
            Entry {
                id: 1,
                action,
                schema,
                table,
                filter: None,
                select: None,
                start,
                cursor_as: None,
                snapshot: None,
                messages: None,
            }
        };
        let lowest = |starts: &[Start]| lowest(at(1, 9), &starts.iter().copied().map(entry).collect::<Vec<_>>());
        assert_eq!(lowest(&[Start::After(at(1, 9))]), Some(at(1, 9)));
        assert_eq!(lowest(&[Start::After(at(1, 9)), Start::After(at(1, 5)), Start::After(at(1, 7))]), Some(at(1, 5)));
        assert_eq!(lowest(&[Start::After(at(1, 5)), Start::After(at(2, 20))]), Some(at(2, 20)));
        for unknown in [Start::Lost, Start::Time(Timestamp(0)), Start::Now] {
            assert_eq!(lowest(&[Start::After(at(1, 9)), unknown]), None);
        }
    }
}
