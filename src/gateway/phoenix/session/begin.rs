//! Where a join begins: each entry where its `since` says, all others at the end of the log as of the reply. An entry that
//! asks for a snapshot too needs none if all that came since is there.
//!
//! So the reply names a place, and everything committed after it arrives, however long the activation takes and however often
//! it is tried again. Rejected: the hub's position at the activation, which comes after the reply, and would leave what was
//! committed in between to chance.

use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;

use super::devices::Kept;
use super::fresh::Fresh;
use super::topic::{Channel, Counted, Topic};
use super::{CHANGES_REFUSED, Effect, Now, Session};
use crate::channel::{self, Feed, Join, Notice, Request, Since, Wanted};
use crate::claims::Principal;
use crate::gateway::encode::details;
use crate::gateway::phoenix::codec::{self, Message, Status};
use crate::hub::{Details, Entry, Start};
use crate::resume::{Cursor, CursorError};

/// What a join asks for, with its places.
#[derive(Default)]
pub(super) struct Beginning {
    /// For the hub.
    pub(super) entries: Vec<Entry>,
    /// What the reply tells: nothing owed is at or before it. `None` if that is not known yet.
    pub(super) cursor: Option<Cursor>,
    /// Of a device.
    pub(super) kept: Kept,
    /// Of a client that keeps cursors.
    pub(super) fresh: Option<Fresh>,
}

impl Session {
    /// Where the join begins as of now, or the text that says which entry is none.
    pub(super) fn begin(&self, join: &Join, topic: &str, principal: &Principal, now: Now) -> Result<Beginning, String> {
        if join.changes.is_empty() {
            return Ok(Beginning::default());
        }
        let here = self.shared.log.here();
        let entries: Vec<Entry> =
            join.changes.iter().map(|wanted| self.entry(wanted, here)).collect::<Result<_, _>>()?;
        let mut begun = Beginning { entries, ..Beginning::default() };
        begun.kept = self.resume(&mut begun, &join.changes, topic, principal, now);
        begun.cursor = here.and_then(|here| lowest(here, &begun.entries));
        let fresh = Fresh { at: now.at, cursor: begun.cursor };
        begun.fresh = join.changes.iter().any(Wanted::keeps_cursors).then_some(fresh);
        Ok(begun)
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

    /// A channel that asks for nothing yet, and the frames of its join reply, which tells this place.
    pub(super) fn channel(
        &self,
        message: &Message<'_>,
        join: &Join,
        cursor: Option<Cursor>,
        token: Arc<str>,
        principal: Arc<Principal>,
        after: &[Bytes],
    ) -> (Box<Channel>, Vec<Bytes>) {
        let version = self.visitor.version;
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
        if join.presence {
            // True: nobody can be present yet. Without it JS holds back whatever presence event follows.
            frames.push(codec::empty_presence_state(version, &own_ref, &topic));
        }
        let channel = Channel {
            id: channel::next_id(),
            topic,
            join_ref: message.join_ref.clone(),
            own_ref,
            token,
            principal,
            ack: join.ack,
            feed: None,
            fresh: None,
            kept: Kept::default(),
            kept_bytes: if join.changes.is_empty() { 0 } else { message.payload.len() },
            _counted: Counted::new(&self.shared.metrics),
        };
        (Box::new(channel), frames)
    }

    /// The join is answered; its changes are asked for.
    pub(super) fn joined(
        &mut self,
        mut channel: Box<Channel>,
        begun: Result<Beginning, String>,
        out: &mut Vec<Effect>,
    ) {
        self.counted_join(&channel);
        match begun {
            Ok(Beginning { entries, .. }) if entries.is_empty() => {}
            Ok(Beginning { entries, kept, fresh, .. }) => {
                (channel.kept, channel.fresh) = (kept, fresh);
                channel.feed = Some(Feed::new(entries, self.shared.config.retry));
                out.extend(channel.ask(Request::Subscribe { again: false }));
            }
            Err(text) => {
                self.refused("changes refused", &channel.topic, &channel.principal, CHANGES_REFUSED);
                out.push(channel.notice(self.visitor.version, &self.shared.cursor_key, &Notice::Refused(text)));
            }
        }
        self.topics.insert(channel.topic.clone(), Topic::Joined(channel));
    }
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
