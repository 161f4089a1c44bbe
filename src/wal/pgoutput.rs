//! pgoutput, protocol 1, text format: bytes to messages.
//!
//! A row is not taken apart here: its bytes after the relation's oid go on as they are, and
//! [`TransactionBuilder::row`](crate::change::TransactionBuilder::row) checks them once. Every length and count is
//! checked against the bytes that are really there before anything is reserved for it. Bytes after the end of a message
//! are an error: the version is pinned, so they mean that we read it wrongly.
//!
//! Where the replication library has already parsed a message (Begin, Commit, logical messages), [`super::stream`]
//! makes the same [`Message`]; this decoder knows all of them, so that recorded streams can be read without the
//! library.

use bytes::Bytes;

use crate::change::{Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, TransactionError};

/// A stream that breaks pgoutput's rules: corruption, or our error.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// No bytes at all.
    #[error("an empty message")]
    Empty,
    /// The message is too short for its fields.
    #[error("a {message} message ends after {length} bytes, inside a field")]
    Truncated {
        /// Its name in the protocol.
        message: &'static str,
        /// Its length.
        length: usize,
    },
    /// The message is too long for its fields.
    #[error("{extra} bytes follow the end of a {message} message")]
    Trailing {
        /// Its name in the protocol.
        message: &'static str,
        /// How many.
        extra: usize,
    },
    /// A type byte that protocol 1 does not have.
    #[error("unknown message type `{}` ({name})", .byte.escape_ascii())]
    UnknownType {
        /// The byte.
        byte: u8,
        /// What a later protocol means by it.
        name: &'static str,
    },
    /// A replica identity other than `d`, `n`, `f`, `i`.
    #[error("relation {oid} has the unknown replica identity `{}`", .identity.escape_ascii())]
    UnknownIdentity {
        /// The relation.
        oid: u32,
        /// The byte.
        identity: u8,
    },
    /// A row or a truncate of a table that no Relation message described.
    #[error("relation {0} was not described before its first row")]
    UnknownRelation(u32),
    /// More tables than one session is expected to see.
    #[error("over {0} relations were described in one session")]
    TooManyRelations(usize),
    /// Something that belongs into a transaction came outside of one.
    #[error("a {0} message outside of a transaction")]
    Outside(&'static str),
    /// A transaction began in another.
    #[error("transaction {inner} begins inside transaction {outer}")]
    Nested {
        /// The open one.
        outer: u32,
        /// The new one.
        inner: u32,
    },
    /// The commit does not belong to the begin.
    #[error("transaction {xid} was announced to commit at {announced} and committed at {found}")]
    CommitMismatch {
        /// The transaction.
        xid: u32,
        /// In Begin.
        announced: Lsn,
        /// In Commit.
        found: Lsn,
    },
    /// Positions must grow from commit to commit.
    #[error("a transaction ends at {found}, not after the one before, which ended at {before}")]
    NotIncreasing {
        /// End of the transaction before.
        before: Lsn,
        /// End of this one.
        found: Lsn,
    },
    /// More items than an ordinal can number.
    #[error("a transaction has more than {max} items", max = u32::MAX)]
    TooManyItems,
    /// A row that is not one.
    #[error("a malformed row")]
    Row(#[source] TransactionError),
}

/// Two causes are the same if they read the same; the row's inner error can't be compared otherwise.
impl PartialEq for Malformed {
    fn eq(&self, other: &Self) -> bool {
        crate::error::chain(self) == crate::error::chain(other)
    }
}

/// One pgoutput message.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// Start of a committed transaction.
    Begin { commit_lsn: Lsn, commit_time: Timestamp, xid: u32 },
    /// Its end.
    Commit { commit_lsn: Lsn, end_lsn: Lsn, commit_time: Timestamp },
    /// A table's shape, before its first row in the session and after each change.
    Relation(Relation),
    /// `I`, `U` or `D` with the bytes after the relation's oid, unchecked.
    Row { tag: u8, oid: u32, raw: Bytes },
    /// All published tables of one TRUNCATE.
    Truncate { flags: u8, oids: Vec<u32> },
    /// `pg_logical_emit_message`.
    Logical { transactional: bool, lsn: Lsn, prefix: Bytes, content: Bytes },
    /// A non-built-in type, before the Relation that uses it. Values travel as text with the type's oid, so its name is
    /// not kept.
    Type,
    /// Right after Begin: the replication origin that the writer's session had set up.
    Origin { name: String },
}

/// Takes one message apart.
pub(super) fn decode(data: &Bytes) -> Result<Message, Malformed> {
    let Some(&tag) = data.first() else { return Err(Malformed::Empty) };
    let message = name(tag);
    let mut fields = Fields { data, at: 1, message };
    let decoded = match tag {
        b'B' => {
            let commit_lsn = fields.lsn()?;
            let commit_time = fields.timestamp()?;
            Message::Begin { commit_lsn, commit_time, xid: fields.u32()? }
        }
        b'C' => {
            let _unused_flags = fields.u8()?;
            let commit_lsn = fields.lsn()?;
            let end_lsn = fields.lsn()?;
            Message::Commit { commit_lsn, end_lsn, commit_time: fields.timestamp()? }
        }
        b'R' => Message::Relation(relation(&mut fields)?),
        b'I' | b'U' | b'D' => {
            let oid = fields.u32()?;
            Message::Row { tag, oid, raw: fields.rest() }
        }
        b'T' => {
            let count = fields.u32()? as usize;
            let flags = fields.u8()?;
            if count > fields.left() / 4 {
                return Err(fields.truncated());
            }
            Message::Truncate { flags, oids: (0..count).map(|_| fields.u32()).collect::<Result<_, _>>()? }
        }
        b'M' => {
            let transactional = fields.u8()? & 1 != 0;
            let lsn = fields.lsn()?;
            let prefix = fields.c_string()?;
            let length = fields.u32()? as usize;
            Message::Logical { transactional, lsn, prefix, content: fields.take(length)? }
        }
        b'Y' => {
            fields.u32()?;
            fields.c_string()?;
            fields.c_string()?;
            Message::Type
        }
        b'O' => {
            fields.lsn()?;
            Message::Origin { name: fields.name()? }
        }
        byte => return Err(Malformed::UnknownType { byte, name: message }),
    };
    match fields.left() {
        0 => Ok(decoded),
        extra => Err(Malformed::Trailing { message, extra }),
    }
}

fn name(tag: u8) -> &'static str {
    match tag {
        b'B' => "Begin",
        b'C' => "Commit",
        b'R' => "Relation",
        b'Y' => "Type",
        b'I' => "Insert",
        b'U' => "Update",
        b'D' => "Delete",
        b'T' => "Truncate",
        b'M' => "Message",
        b'O' => "Origin",
        b'S' | b'E' | b'c' | b'A' => "a streamed transaction, which was not asked for",
        b'b' | b'P' | b'K' | b'r' | b'p' => "two-phase commit, which was not asked for",
        _ => "not in any version of the protocol",
    }
}

fn relation(fields: &mut Fields<'_>) -> Result<Relation, Malformed> {
    let oid = fields.u32()?;
    // pgoutput leaves out the name of the schema that is always searched.
    let schema = match fields.name()? {
        empty if empty.is_empty() => "pg_catalog".into(),
        schema => schema,
    };
    let table = fields.name()?;
    let identity = match fields.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        identity => return Err(Malformed::UnknownIdentity { oid, identity }),
    };
    let count = usize::from(fields.u16()?);
    // A column takes ten bytes at least: flags, an empty name's end, two integers.
    if count > fields.left() / 10 {
        return Err(fields.truncated());
    }
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        let key = fields.u8()? & 1 != 0;
        let name = fields.name()?;
        let type_oid = fields.u32()?;
        let type_modifier = fields.u32()?.cast_signed();
        columns.push(RelationColumn { name, type_oid, type_modifier, key });
    }
    Ok(Relation { oid, schema, table, identity, columns })
}

/// A cursor over one message; integers are big endian.
struct Fields<'a> {
    data: &'a Bytes,
    at: usize,
    message: &'static str,
}

impl Fields<'_> {
    fn truncated(&self) -> Malformed {
        Malformed::Truncated { message: self.message, length: self.data.len() }
    }

    fn left(&self) -> usize {
        self.data.len() - self.at
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.data[self.at..].first_chunk::<N>().ok_or_else(|| self.truncated())?;
        self.at += N;
        Ok(*bytes)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, Malformed> {
        self.array().map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    fn timestamp(&mut self) -> Result<Timestamp, Malformed> {
        self.array().map(|bytes| Timestamp(i64::from_be_bytes(bytes)))
    }

    fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.left() {
            return Err(self.truncated());
        }
        self.at += length;
        Ok(self.data.slice(self.at - length..self.at))
    }

    fn rest(&mut self) -> Bytes {
        let rest = self.data.slice(self.at..);
        self.at = self.data.len();
        rest
    }

    fn c_string(&mut self) -> Result<Bytes, Malformed> {
        let length = self.data[self.at..].iter().position(|b| *b == 0).ok_or_else(|| self.truncated())?;
        let text = self.take(length)?;
        self.at += 1;
        Ok(text)
    }

    /// An identifier. In an SQL_ASCII database it may be any bytes; tables are known by oid, so a lossy name harms
    /// nobody.
    fn name(&mut self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(&self.c_string()?).into_owned())
    }
}

/// Writers of valid messages, for the tests of this module and its neighbours.
#[cfg(test)]
pub(super) mod write {
    use super::*;
    use crate::change::{Tuple, Value};

    pub(crate) fn begin(commit_lsn: u64, xid: u32) -> Bytes {
        let mut out = vec![b'B'];
        out.extend(commit_lsn.to_be_bytes());
        out.extend(7i64.to_be_bytes());
        out.extend(xid.to_be_bytes());
        out.into()
    }

    pub(crate) fn commit(commit_lsn: u64, end_lsn: u64) -> Bytes {
        let mut out = vec![b'C', 0];
        out.extend(commit_lsn.to_be_bytes());
        out.extend(end_lsn.to_be_bytes());
        out.extend(7i64.to_be_bytes());
        out.into()
    }

    pub(crate) fn relation(relation: &Relation) -> Bytes {
        let mut out = vec![b'R'];
        out.extend(relation.oid.to_be_bytes());
        if relation.schema != "pg_catalog" {
            out.extend(relation.schema.as_bytes());
        }
        out.push(0);
        out.extend(relation.table.as_bytes());
        out.push(0);
        out.push(match relation.identity {
            ReplicaIdentity::Default => b'd',
            ReplicaIdentity::Nothing => b'n',
            ReplicaIdentity::Full => b'f',
            ReplicaIdentity::Index => b'i',
        });
        out.extend((relation.columns.len() as u16).to_be_bytes());
        for column in &relation.columns {
            out.push(u8::from(column.key));
            out.extend(column.name.as_bytes());
            out.push(0);
            out.extend(column.type_oid.to_be_bytes());
            out.extend(column.type_modifier.to_be_bytes());
        }
        out.into()
    }

    pub(crate) fn row(tag: u8, oid: u32, tuples: &[(u8, &[Value<'_>])]) -> Bytes {
        let mut out = vec![tag];
        out.extend(oid.to_be_bytes());
        for (kind, values) in tuples {
            out.push(*kind);
            Tuple::encode(values.iter().copied(), &mut out);
        }
        out.into()
    }

    pub(crate) fn truncate(flags: u8, oids: &[u32]) -> Bytes {
        let mut out = vec![b'T'];
        out.extend((oids.len() as u32).to_be_bytes());
        out.push(flags);
        for oid in oids {
            out.extend(oid.to_be_bytes());
        }
        out.into()
    }

    pub(crate) fn logical(transactional: bool, lsn: u64, prefix: &str, content: &[u8]) -> Bytes {
        let mut out = vec![b'M', u8::from(transactional)];
        out.extend(lsn.to_be_bytes());
        out.extend(prefix.as_bytes());
        out.push(0);
        out.extend((content.len() as u32).to_be_bytes());
        out.extend(content);
        out.into()
    }

    pub(crate) fn named(tag: u8, head: &[u8], names: &[&str]) -> Bytes {
        let mut out = vec![tag];
        out.extend(head);
        for name in names {
            out.extend(name.as_bytes());
            out.push(0);
        }
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Value;
    use proptest::prelude::*;

    fn table(schema: &str) -> Relation {
        let column = |name: &str, key| RelationColumn { name: name.into(), type_oid: 25, type_modifier: -1, key };
        let columns = vec![column("id", true), column("größe", false)];
        Relation {
            oid: 16384, schema: schema.into(), table: "Täble".into(), identity: ReplicaIdentity::Index, columns
        }
    }

    /// One of each, valid.
    fn samples() -> Vec<Bytes> {
        let new: &[Value<'_>] = &[Value::Text(b"1"), Value::Unchanged];
        let old: &[Value<'_>] = &[Value::Text(b"1"), Value::Null];
        vec![
            write::begin(0x1_0000_0000, 700),
            write::commit(0x1_0000_0000, 0x1_0000_0030),
            write::relation(&table("public")),
            write::relation(&table("pg_catalog")),
            write::row(b'I', 16384, &[(b'N', new)]),
            write::row(b'U', 16384, &[(b'O', old), (b'N', new)]),
            write::row(b'D', 16384, &[(b'K', old)]),
            write::truncate(3, &[1, 2, u32::MAX]),
            write::logical(true, 9, "p", b"content"),
            write::logical(false, 9, "", b""),
            write::named(b'Y', &9u32.to_be_bytes(), &["public", "mood"]),
            write::named(b'O', &9u64.to_be_bytes(), &["elsewhere"]),
        ]
    }

    #[test]
    fn every_message_of_protocol_1_is_read() {
        let read: Vec<Message> = samples().iter().map(|m| decode(m).expect("valid")).collect();
        let (commit_lsn, commit_time) = (Lsn(0x1_0000_0000), Timestamp(7));
        assert_eq!(read[0], Message::Begin { commit_lsn, commit_time, xid: 700 });
        assert_eq!(read[1], Message::Commit { commit_lsn, end_lsn: Lsn(0x1_0000_0030), commit_time });
        assert_eq!(read[2], Message::Relation(table("public")));
        assert_eq!(read[3], Message::Relation(table("pg_catalog")), "an empty schema means pg_catalog");
        assert!(matches!(&read[4], Message::Row { tag: b'I', oid: 16384, raw } if raw[0] == b'N'));
        assert!(matches!(&read[5], Message::Row { tag: b'U', oid: 16384, raw } if raw[0] == b'O'));
        assert!(matches!(&read[6], Message::Row { tag: b'D', oid: 16384, raw } if raw[0] == b'K'));
        assert_eq!(read[7], Message::Truncate { flags: 3, oids: vec![1, 2, u32::MAX] });
        let (prefix, content) = (Bytes::from("p"), Bytes::from("content"));
        assert_eq!(read[8], Message::Logical { transactional: true, lsn: Lsn(9), prefix, content });
        assert!(matches!(&read[9], Message::Logical { transactional: false, content, .. } if content.is_empty()));
        assert_eq!(read[10], Message::Type);
        assert_eq!(read[11], Message::Origin { name: "elsewhere".into() });
    }

    #[test]
    fn rows_are_shared_with_the_message_not_copied() {
        let message = &samples()[4];
        let Ok(Message::Row { raw, .. }) = decode(message) else { panic!("a row") };
        assert_eq!(raw.as_ptr(), message[5..].as_ptr());
    }

    #[test]
    fn a_message_cut_short_or_too_long_is_an_error() {
        for message in samples() {
            let is_row = matches!(message[0], b'I' | b'U' | b'D');
            for end in 0..message.len() {
                // What is left of a row is judged where it is put into the transaction.
                if is_row && end >= 5 {
                    continue;
                }
                assert!(decode(&message.slice(..end)).is_err(), "{message:?} cut to {end}");
            }
            if !is_row {
                let longer = Bytes::from([&message[..], b"x"].concat());
                assert!(matches!(decode(&longer), Err(Malformed::Trailing { extra: 1, .. })), "{message:?}");
            }
        }
    }

    #[test]
    fn an_unknown_type_is_named() {
        let text = |byte: u8| decode(&Bytes::from(vec![byte, 1, 2, 3])).expect_err("unknown").to_string();
        assert!(text(b'S').contains("`S` (a streamed transaction"), "{}", text(b'S'));
        assert!(text(b'b').contains("`b` (two-phase"), "{}", text(b'b'));
        assert!(text(0xFF).contains("`\\xff`"), "{}", text(0xFF));
    }

    #[test]
    fn lying_counts_reserve_nothing() {
        let mut truncate = vec![b'T'];
        truncate.extend(u32::MAX.to_be_bytes());
        truncate.push(0);
        assert!(matches!(decode(&truncate.into()), Err(Malformed::Truncated { .. })));
        let mut content = vec![b'M', 1];
        content.extend(9u64.to_be_bytes());
        content.push(0);
        content.extend(u32::MAX.to_be_bytes());
        assert!(matches!(decode(&content.into()), Err(Malformed::Truncated { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&Bytes::from(raw));
        }

        #[test]
        fn a_damaged_message_is_read_or_refused_without_panic(
            which in 0usize..12,
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        ) {
            let mut raw = samples()[which].to_vec();
            for (at, byte) in damage {
                let at = at.index(raw.len());
                raw[at] = byte;
            }
            let _ = decode(&Bytes::from(raw));
        }
    }
}
