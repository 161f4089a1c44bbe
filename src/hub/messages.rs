//! Database broadcasts: rows of `realtime.messages` for the members of the topic that they name (`protocol.md` §7.6).
//!
//! A row is looked up among those who are served where it is met ([`MessageIndex`], one for the live and one for each pass), and
//! from there on goes the way of any other row: one order, one place, one cursor. What differs is the question about rights:
//! a member of the public channel needs none, one of the private channel its right to read broadcasts, as it is when the stream
//! has come to the message. While that is being decided the channel waits before the message, and goes on from there, as one
//! does that takes too little: nothing is lost and nothing told.
//!
//! The row is known by the table's name as the stream has it, that of the partitioned root: our publication sends what is in a
//! partition under it. A partition that a client publication lists by itself is a table like any other, and no message.
//!
//! Rejected: a table's index with a filter on `topic`. Its rows are judged one by one against the policies as if they were
//! data, while the right to a channel was decided, and is followed, for the channel.

use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;

use super::event::{Event, Ids};
use super::gaps::before;
use super::matching::{self, Counts, Judgement};
use super::registry::{At, Channel, Registry};
use super::rows::Origin;
use super::run::Hub;
use super::slots::{IdSet, Slots};
use super::snapshot::Seam;
use super::waiting::Ready;
use super::{ChannelId, Messages, NO_CURSOR, Port, Replayed};
use crate::change::{Change, Position, Relation, RowChange, Value};
use crate::policy::{self, DenyReason, Verdict};

/// Schema and name of the table whose rows are broadcasts.
pub const MESSAGES_TABLE: (&str, &str) = ("realtime", "messages");

/// The "table" of a target that asks for messages. No table has this oid.
pub(super) const NO_TABLE: u32 = 0;

/// Whether rows of this relation are broadcasts.
pub fn is_of_messages(relation: &Relation) -> bool {
    (&*relation.schema, &*relation.table) == MESSAGES_TABLE
}

/// A row as the broadcast that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// For the private channel of that name.
    pub private: bool,
    /// Without `realtime:`.
    pub topic: &'a str,
    /// The application's name for it.
    pub event: &'a str,
    /// The row's, as Postgres prints it.
    pub id: &'a str,
    /// What is sent.
    pub body: Body<'a>,
}

/// What a message carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// The text of a `jsonb`.
    Json(&'a [u8]),
    /// The digits of a `bytea`, two for each byte.
    Hex(&'a [u8]),
}

impl Body<'_> {
    /// Bytes of what is sent.
    pub fn size(&self) -> usize {
        match self {
            Body::Json(text) => text.len(),
            Body::Hex(digits) => digits.len() / 2,
        }
    }
}

/// Why a row is sent to nobody; the metric's label.
type Dropped = &'static str;

impl<'a> Message<'a> {
    /// `None` for what is no message: not an INSERT, or without what makes one.
    pub fn of(row: &'a RowChange) -> Option<Message<'a>> {
        Message::read(row).ok()
    }

    fn read(row: &'a RowChange) -> Result<Message<'a>, Dropped> {
        const MALFORMED: Dropped = "malformed";
        let Change::Insert { new } = &row.change else { return Err(MALFORMED) };
        let value = |name: &str| row.relation.column(name).map_or(Value::Unchanged, |column| new.get(column));
        let text = |name: &str| value(name).as_str().ok_or(MALFORMED);
        // The policies speak of it, and what is stored under another one is not replayed either.
        if value("extension").as_str().is_some_and(|extension| extension != "broadcast") {
            return Err("extension");
        }
        let body = match (value("binary_payload"), value("payload")) {
            (Value::Text(bytea), _) => Body::Hex(bytea.strip_prefix(br"\x").ok_or(MALFORMED)?),
            (_, Value::Text(json)) => Body::Json(json),
            _ => return Err(MALFORMED),
        };
        let private = match text("private")? {
            "t" => true,
            "f" => false,
            _ => return Err(MALFORMED),
        };
        let (topic, event, id) = (text("topic")?, text("event")?, text("id")?);
        Ok(Message { private, topic, event, id, body })
    }

    fn id_bytes(&self) -> Option<[u8; 16]> {
        let mut digits = self.id.bytes().filter(|byte| *byte != b'-');
        let mut nibble = || (digits.next()? as char).to_digit(16);
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            *byte = (nibble()? << 4 | nibble()?) as u8;
        }
        digits.next().is_none().then_some(bytes)
    }
}

/// A member of a topic, as far as a message asks.
struct MessageSub {
    /// Of its channel in the registry.
    channel: u32,
    entry_id: i32,
    port: Arc<Port>,
    /// The principal's.
    expires_at: i64,
    /// Messages at or before this are not for it.
    from: Position,
    messages: Messages,
    /// Of its channel's entries that have a snapshot: while they are within it, there is no place to go on from.
    seam: Option<Arc<Seam>>,
    /// Its channel is without the rows of its tables: who went on from here would never hear of them.
    no_cursor: Option<Arc<str>>,
}

impl MessageSub {
    fn cursor_as(&self, at: Position) -> Option<Arc<str>> {
        if self.no_cursor.is_some() {
            return self.no_cursor.clone();
        }
        self.seam.as_ref().filter(|seam| seam.covers(at.lsn)).map(|seam| seam.no_cursor().clone())
    }
}

/// Who asks for the messages of which topic.
#[derive(Default)]
pub(super) struct MessageIndex {
    subs: Slots<MessageSub>,
    public: AHashMap<Arc<str>, IdSet>,
    private: AHashMap<Arc<str>, IdSet>,
}

impl MessageIndex {
    pub(super) fn is_empty(&self) -> bool {
        self.subs.is_empty()
    }

    fn topics(&mut self, private: bool) -> &mut AHashMap<Arc<str>, IdSet> {
        if private { &mut self.private } else { &mut self.public }
    }

    /// Adds an entry of a channel; returns the number by which it is removed.
    pub(super) fn insert(
        &mut self,
        slot: u32,
        channel: &Channel,
        (entry_id, from): (i32, Position),
        messages: &Messages,
    ) -> u32 {
        let (port, expires_at, messages) = (channel.port.clone(), channel.principal.expires_at, messages.clone());
        let (private, topic) = (messages.member.is_some(), messages.topic.clone());
        let (seam, no_cursor) = (channel.seam.clone(), channel.out_since.map(|_| NO_CURSOR.into()));
        let sub = MessageSub { channel: slot, entry_id, port, expires_at, from, messages, seam, no_cursor };
        let id = self.subs.insert(sub);
        self.topics(private).entry(topic).or_default().insert(id);
        id
    }

    pub(super) fn remove(&mut self, id: u32) {
        let Some(MessageSub { messages, .. }) = self.subs.remove(id) else { return };
        let topics = self.topics(messages.member.is_some());
        if let Some(members) = topics.get_mut(&messages.topic) {
            members.remove(id);
            if members.is_empty() {
                topics.remove(&messages.topic);
            }
        }
    }

    /// See [`Registry::rebase`].
    pub(super) fn rebase(&mut self, from: Position) {
        for sub in self.subs.values_mut() {
            sub.from = sub.from.min(from);
        }
    }

    /// Those who have asked for this message, by channel, each channel once. `had`: whether it is among what somebody has had.
    fn members(&self, message: &Message<'_>, at: Position, had: impl Fn(&Replayed) -> bool) -> Vec<&MessageSub> {
        let topics = if message.private { &self.private } else { &self.public };
        let mut members = Vec::new();
        if let Some(ids) = topics.get(message.topic) {
            ids.each(|number| {
                let wants = |sub: &&MessageSub| at > sub.from && !sub.messages.replayed.as_deref().is_some_and(&had);
                members.extend(self.subs.get(number).filter(wants));
            });
        }
        members.sort_unstable_by_key(|sub| sub.channel);
        members.dedup_by_key(|sub| sub.channel);
        members
    }
}

/// Who gets a message, and who waits before it for a right to be decided.
fn judge(
    registry: &Registry,
    at: At,
    (message, position): (&Message<'_>, Position),
    (may, had): (impl Fn(&Messages) -> Verdict, impl Fn(&Replayed) -> bool),
    now_unix_seconds: i64,
    counts: (&mut Counts, &crate::metrics::Metrics),
) -> (Judgement, Vec<ChannelId>) {
    let (mut judgement, mut waits) = (Judgement::default(), Vec::new());
    let (counts, metrics) = counts;
    let members = registry.messages(at).map(|index| index.members(message, position, had)).unwrap_or_default();
    for sub in members {
        if now_unix_seconds >= sub.expires_at {
            counts.deny(metrics, DenyReason::Expired.as_str());
            judgement.expired.push(sub.port.id);
            continue;
        }
        match may(&sub.messages) {
            Verdict::Permit(permit) => {
                counts.permit += 1;
                let ids = Ids::from_slice(&[sub.entry_id]);
                let (port, cursor_as) = (sub.port.clone(), sub.cursor_as(position));
                matching::add(&mut judgement.permits, permit, Ready { port, ids, cursor_as });
            }
            Verdict::Deny(reason) => counts.deny(metrics, reason.as_str()),
            // Counted when it is decided.
            Verdict::Undecided(_) => waits.push(sub.port.id),
        }
    }
    (judgement, waits)
}

impl Hub {
    /// Judges a row of `realtime.messages` for the members of its topic who are looked for there; `None` if nobody gets it now.
    pub(super) fn message(&mut self, at: At, row: &RowChange, origin: &Origin) -> Option<(Arc<Event>, Judgement)> {
        let metrics = self.deps.metrics.clone();
        if !matches!(row.change, Change::Insert { .. }) {
            return None;
        }
        if at == At::Live {
            metrics.messages.inc();
        }
        let message = match Message::read(row) {
            Ok(message) => message,
            Err(reason) => {
                let what = "it has no topic, event, id or payload, or is not of a broadcast";
                self.drop_message(at, row, reason, what);
                return None;
            }
        };
        if message.body.size() > self.config.max_message_bytes {
            self.drop_message(at, row, "payload", "its payload is larger than what may be broadcast");
            return None;
        }
        let rules = self.current.as_ref()?;
        let (types, mut counts) = (rules.catalog.types().clone(), Counts::default());
        let now = self.deps.clock.unix_seconds();
        let may = |messages: &Messages| self.may_have(messages);
        let (id, transaction) = (message.id_bytes(), origin.transaction());
        let shares = |epoch, at| self.deps.log.shares(epoch, at);
        let had = |replayed: &Replayed| replayed.has(transaction, row.position, id, shares);
        let (mut judgement, waits) =
            judge(&self.registry, at, (&message, row.position), (may, had), now, (&mut counts, &metrics));
        counts.report(&metrics);
        for id in waits {
            self.await_right(id, before(row.position), origin.epoch());
        }
        for id in std::mem::take(&mut judgement.expired) {
            self.withhold(id, row.position, origin.epoch());
        }
        if judgement.is_empty() {
            return None;
        }
        metrics.message_deliveries.inc_by(judgement.permits.iter().map(|(_, members)| members.len() as u64).sum());
        let event = Event::of_message(matching::event(row.clone(), origin.when(), &types, origin.epoch()));
        Some((Arc::new(event), judgement))
    }

    /// Counts a row that is sent to nobody, and warns of it: seldom, since whoever may insert there can do so without end.
    fn drop_message(&mut self, at: At, row: &RowChange, reason: Dropped, what: &str) {
        // Once, though passes come by again.
        if at != At::Live {
            return;
        }
        self.deps.metrics.messages_dropped.get_or_create(&[("reason", reason)]).inc();
        if let Some(more) = self.dropped.entry(reason).or_default().tell(Instant::now()) {
            let position = row.position;
            tracing::warn!(%position, reason, more, "a row of realtime.messages is not broadcast: {what}");
        }
    }

    /// Whether a member may have messages as of where the stream is.
    fn may_have(&self, messages: &Messages) -> Verdict {
        match &messages.member {
            Some(rights) => self.members.may_read(rights, &self.facts, &self.deps.metrics),
            None => policy::may_have_message(None, None),
        }
    }

    /// Whether it can't be told yet whether a channel may have messages.
    pub(super) fn awaits_right(&self, channel: &Channel) -> bool {
        let asked = channel.entries.iter().filter_map(|entry| entry.messages.as_ref());
        asked.into_iter().any(|messages| matches!(self.may_have(messages), Verdict::Undecided(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_its_bytes() {
        let message = |id| Message { private: true, topic: "t", event: "e", id, body: Body::Json(b"1") };
        let id = message("6ecd8c99-4036-403d-bf84-cf8400f67836").id_bytes().expect("an id");
        assert_eq!(id[..4], [0x6e, 0xcd, 0x8c, 0x99]);
        for odd in ["", "6ecd8c99", "6ecd8c99-4036-403d-bf84-cf8400f6783x", "6ecd8c99-4036-403d-bf84-cf8400f6783600"] {
            assert_eq!(message(odd).id_bytes(), None, "{odd}");
        }
    }
}
