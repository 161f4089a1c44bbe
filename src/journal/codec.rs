//! Notes as bytes.
//!
//! A file begins with [`MAGIC`], which is a line for whoever opens it, and the time of its making. A record is: `u32` length of
//! the payload, `u32` CRC-32C of it, the payload: one byte for the kind, `i64` milliseconds since 1970, the fields. Integers are
//! little endian, a text is a `u32` length and its bytes.

use std::borrow::Cow;
use std::sync::Arc;

use super::note::{Note, User, Wanted};
use crate::change::{Lsn, Position};

/// The first bytes of a file; another version has other ones.
pub(super) const MAGIC: &[u8] =
    b"rowcast journal 1: user ids, topics and filters of subscriptions; no rows, no tokens. Keep it private.\n";
/// [`MAGIC`], the time of its making and a checksum of that.
pub(super) const HEADER: usize = MAGIC.len() + 12;
/// Length and checksum.
pub(super) const FRAME: usize = 8;
/// A longer payload is not written.
pub(super) const MAX_PAYLOAD: usize = 256 << 10;

pub(super) fn header(now: i64) -> Vec<u8> {
    let time = now.to_le_bytes();
    [MAGIC, &time, &crc32c::crc32c(&time).to_le_bytes()].concat()
}

/// When the file was made, in milliseconds since 1970.
pub(super) fn decode_header(bytes: &[u8]) -> Option<i64> {
    let rest = bytes.get(..HEADER)?.strip_prefix(MAGIC)?;
    let (time, crc) = rest.split_at(8);
    (crc32c::crc32c(time).to_le_bytes() == crc).then(|| i64::from_le_bytes(time.try_into().unwrap_or_default()))
}

/// Appends a record; `false` if it is too long.
pub(super) fn encode(time: i64, note: &Note, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    put(time, note, out);
    let length = out.len() - start - FRAME;
    if length > MAX_PAYLOAD {
        out.truncate(start);
        return false;
    }
    let crc = crc32c::crc32c(&out[start + FRAME..]);
    out[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    out[start + 4..start + FRAME].copy_from_slice(&crc.to_le_bytes());
    true
}

/// The first record of these bytes and its length; `None` if no whole record begins here.
pub(super) fn decode(bytes: &[u8]) -> Option<(usize, i64, Note)> {
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = word(0)? as usize;
    if length > MAX_PAYLOAD {
        return None;
    }
    let payload = bytes.get(FRAME..FRAME + length)?;
    if crc32c::crc32c(payload) != word(4)? {
        return None;
    }
    let (time, note) = Fields(payload).note()?;
    Some((FRAME + length, time, note))
}

fn put(time: i64, note: &Note, out: &mut Vec<u8>) {
    let mut w = Put(out);
    match note {
        Note::Started { position } => w.head(1, time).u64(position.0),
        Note::Stopped => w.head(2, time),
        Note::Joined { channel, connection, topic, user, expires_at, from, entries } => {
            w.head(3, time).u64(*channel).u64(*connection).text(topic).user(user).u64(*expires_at as u64);
            w.position(*from).u32(entries.len() as u32);
            for Wanted { id, action, schema, table, filter } in entries {
                w.u32(*id as u32).text(action).option(schema.as_deref());
                w.option(table.as_deref()).option(filter.as_deref());
            }
            &mut w
        }
        Note::Refused { channel, topic, user } => w.head(4, time).u64(*channel).text(topic).user(user),
        Note::Token { channel, user, expires_at, at } => {
            w.head(5, time).u64(*channel).user(user).u64(*expires_at as u64).position(*at)
        }
        Note::Expired { channel } => w.head(6, time).u64(*channel),
        Note::Left { channel, connection, topic, user, from, at } => {
            w.head(7, time).u64(*channel).u64(*connection).text(topic).user(user).position(*from).position(*at)
        }
        Note::Paused { channel, at } => w.head(8, time).u64(*channel).position(*at),
        Note::Resumed { channel, at } => w.head(9, time).u64(*channel).position(*at),
        Note::Ended { channel, at } => w.head(10, time).u64(*channel).position(*at),
        Note::Closed { connection, reason, code } => {
            w.head(11, time).u64(*connection).text(reason).u32(u32::from(*code))
        }
        Note::Undecided { channel, table, reason, first, last, count } => {
            w.head(12, time).u64(*channel).u32(*table).text(reason).position(*first).position(*last).u32(*count)
        }
        Note::Gap { from, resumed } => w.head(13, time).u64(from.0).u64(resumed.0),
        Note::Facts { table, first, last, rows } => {
            w.head(14, time).u32(*table).position(*first).position(*last).u64(*rows)
        }
        Note::FactState { table, at, state } => w.head(15, time).u32(*table).position(*at).text(state),
        Note::Rules { at } => w.head(16, time).position(*at),
        Note::Hole { from, to, lost } => w.head(17, time).u64(*from as u64).u64(*to as u64).u64(*lost),
    };
}

struct Put<'a>(&'a mut Vec<u8>);

impl Put<'_> {
    fn head(&mut self, kind: u8, time: i64) -> &mut Self {
        self.0.push(kind);
        self.u64(time as u64)
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u32(text.len() as u32);
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn option(&mut self, text: Option<&str>) -> &mut Self {
        self.0.push(u8::from(text.is_some()));
        match text {
            Some(text) => self.text(text),
            None => self,
        }
    }

    fn user(&mut self, user: &User) -> &mut Self {
        self.text(&user.role).text(&user.subject)
    }

    fn position(&mut self, position: Position) -> &mut Self {
        self.u64(position.lsn.0).u32(position.ordinal)
    }
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn note(&mut self) -> Option<(i64, Note)> {
        let (kind, time) = (self.u8()?, self.i64()?);
        let note = match kind {
            1 => Note::Started { position: Lsn(self.u64()?) },
            2 => Note::Stopped,
            3 => self.joined()?,
            4 => Note::Refused { channel: self.u64()?, topic: self.text()?, user: self.user()? },
            5 => {
                Note::Token { channel: self.u64()?, user: self.user()?, expires_at: self.i64()?, at: self.position()? }
            }
            6 => Note::Expired { channel: self.u64()? },
            7 => Note::Left {
                channel: self.u64()?,
                connection: self.u64()?,
                topic: self.text()?,
                user: self.user()?,
                from: self.position()?,
                at: self.position()?,
            },
            8 => Note::Paused { channel: self.u64()?, at: self.position()? },
            9 => Note::Resumed { channel: self.u64()?, at: self.position()? },
            10 => Note::Ended { channel: self.u64()?, at: self.position()? },
            11 => {
                Note::Closed { connection: self.u64()?, reason: self.word()?, code: u16::try_from(self.u32()?).ok()? }
            }
            12 => Note::Undecided {
                channel: self.u64()?,
                table: self.u32()?,
                reason: self.word()?,
                first: self.position()?,
                last: self.position()?,
                count: self.u32()?,
            },
            13 => Note::Gap { from: Lsn(self.u64()?), resumed: Lsn(self.u64()?) },
            14 => {
                Note::Facts { table: self.u32()?, first: self.position()?, last: self.position()?, rows: self.u64()? }
            }
            15 => Note::FactState { table: self.u32()?, at: self.position()?, state: self.word()? },
            16 => Note::Rules { at: self.position()? },
            17 => Note::Hole { from: self.i64()?, to: self.i64()?, lost: self.u64()? },
            _ => return None,
        };
        self.0.is_empty().then_some((time, note))
    }

    fn joined(&mut self) -> Option<Note> {
        let (channel, connection, topic, user) = (self.u64()?, self.u64()?, self.text()?, self.user()?);
        let (expires_at, from, count) = (self.i64()?, self.position()?, self.u32()?);
        let mut entries = Vec::new();
        for _ in 0..count {
            entries.push(Wanted {
                id: self.u32()? as i32,
                action: self.word()?,
                schema: self.option()?,
                table: self.option()?,
                filter: self.option()?,
            });
        }
        Some(Note::Joined { channel, connection, topic, user, expires_at, from, entries })
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn i64(&mut self) -> Option<i64> {
        Some(self.u64()? as i64)
    }

    fn text(&mut self) -> Option<Arc<str>> {
        let length = self.u32()? as usize;
        std::str::from_utf8(self.take(length)?).ok().map(Arc::from)
    }

    fn word(&mut self) -> Option<Cow<'static, str>> {
        self.text().map(|text| Cow::Owned(text.to_string()))
    }

    #[expect(clippy::option_option, reason = "the outer one: there are not enough bytes")]
    fn option(&mut self) -> Option<Option<Arc<str>>> {
        match self.u8()? {
            0 => Some(None),
            1 => Some(Some(self.text()?)),
            _ => None,
        }
    }

    fn user(&mut self) -> Option<User> {
        Some(User { role: self.text()?, subject: self.text()? })
    }

    fn position(&mut self) -> Option<Position> {
        Some(Position { lsn: Lsn(self.u64()?), ordinal: self.u32()? })
    }
}
