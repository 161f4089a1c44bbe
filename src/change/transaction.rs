//! One committed transaction: a header, the relations its rows refer to, and a body of records.
//!
//! Body record: `u32` length (little endian, of what follows), one tag byte, payload.
//!
//! | tag | payload |
//! |---|---|
//! | `I` | relation index `u32`, `N` TupleData |
//! | `U` | relation index `u32`, optional `K` or `O` + TupleData, then `N` + TupleData |
//! | `D` | relation index `u32`, `K` or `O` + TupleData |
//! | `T` | flags `u8` (1 CASCADE, 2 RESTART IDENTITY), count `u32`, that many relation indexes `u32` |
//! | `M` | LSN `u64`, prefix length `u32`, prefix, content |
//!
//! Integers that we add are little endian; TupleData is as pgoutput sent it. This is also what the log stores, so a format
//! change here is a format change there.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::{Lsn, MalformedTuple, OldRow, Position, Relation, Tuple};

/// Microseconds since 2000-01-01 00:00 UTC, Postgres's own epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Microseconds between 1970-01-01 and 2000-01-01.
    pub const UNIX_OFFSET_MICROS: i64 = 946_684_800_000_000;

    /// Microseconds since 1970-01-01 00:00 UTC.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(Self::UNIX_OFFSET_MICROS)
    }
}

/// What a row change did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new row.
    Insert {
        /// The row.
        new: Tuple,
    },
    /// A changed row.
    Update {
        /// The row after; columns may be [`super::Value::Unchanged`].
        new: Tuple,
        /// The row before: present if the identity is full or the key changed.
        old: Option<OldRow>,
    },
    /// A removed row.
    Delete {
        /// What the identity kept of it.
        old: OldRow,
    },
}

/// One row change with its place in history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowChange {
    /// The table as it was when the row was written.
    pub relation: Arc<Relation>,
    /// Commit end LSN and ordinal.
    pub position: Position,
    /// What happened.
    pub change: Change,
}

/// A TRUNCATE with all published tables in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// The tables.
    pub relations: Vec<Arc<Relation>>,
    /// TRUNCATE … CASCADE.
    pub cascade: bool,
    /// TRUNCATE … RESTART IDENTITY.
    pub restart_identity: bool,
    /// Commit end LSN and ordinal.
    pub position: Position,
}

/// A transactional `pg_logical_emit_message`. Any login may write one: a hint, never a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// As given by the writer.
    pub prefix: String,
    /// As given by the writer.
    pub content: Bytes,
    /// Where the message stands in the WAL.
    pub lsn: Lsn,
    /// Commit end LSN and ordinal.
    pub position: Position,
}

/// One item of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A row change.
    Row(RowChange),
    /// A TRUNCATE.
    Truncate(Truncate),
    /// A logical message.
    Message(LogicalMessage),
}

/// Why a transaction can't be read back.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    /// The spilled body can't be read.
    #[error("cannot read the spilled transaction")]
    Io(#[from] io::Error),
    /// A tuple is not one.
    #[error("malformed row in the transaction")]
    Tuple(#[from] MalformedTuple),
    /// A record is not one.
    #[error("malformed record in the transaction: {0}")]
    Record(&'static str),
    /// A record longer than [`Transaction::MAX_RECORD`].
    #[error("a record of {0} bytes is over the limit of {max}", max = Transaction::MAX_RECORD)]
    TooLong(usize),
}

/// A body that is not in memory. Each call starts a new read from its first byte.
pub trait SpilledBody: Send + Sync {
    /// Opens a reader of the whole body.
    fn open(&self) -> io::Result<Box<dyn Read + Send>>;
    /// Its length in bytes.
    fn len(&self) -> u64;
    /// Whether it is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The records of a transaction.
#[derive(Clone)]
pub enum Body {
    /// In memory, shared.
    Memory(Bytes),
    /// On disk; see [`SpilledBody`].
    Spilled(Arc<dyn SpilledBody>),
}

impl Body {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Memory(bytes) => bytes.len() as u64,
            Body::Spilled(body) => body.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Memory(bytes) => write!(f, "Memory({} bytes)", bytes.len()),
            Body::Spilled(body) => write!(f, "Spilled({} bytes)", body.len()),
        }
    }
}

/// The replication origin that retention marks its transactions with: their deletes are housekeeping, not somebody's wish.
/// Only who was granted `pg_replication_origin_session_setup` can set one, so a client's login can't hide a delete with it.
pub const RETENTION_ORIGIN: &str = "rowcast_retention";

/// The prefix of the logical message by which an event trigger says that rules changed. Anybody may emit one: a hint.
pub const RULES_PREFIX: &str = "rowcast.rules";

/// One committed transaction, whole.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// The top-level transaction id (32 bits, wraps).
    pub xid: u32,
    /// LSN of the commit record.
    pub commit_lsn: Lsn,
    /// LSN just after the commit record: what is confirmed, and the LSN of every position in it.
    pub end_lsn: Lsn,
    /// When it committed, by the database's clock.
    pub commit_time: Timestamp,
    /// The relations its records refer to by index, in order of first use. One oid may stand here twice, if its shape changed
    /// in the middle.
    pub relations: Vec<Arc<Relation>>,
    /// The replication origin its session had set up, by name; `None` for ordinary writers.
    pub origin: Option<Arc<str>>,
    /// Whether rules may have changed in it, or after the transaction before it: the stream described a relation again, or
    /// it carries a message with [`RULES_PREFIX`]. A hint: it may be set for nothing, and anybody may cause that.
    pub rules_changed: bool,
    /// Number of items.
    pub items: u32,
    /// The items.
    pub body: Body,
}

impl Transaction {
    /// The longest record: a row and its old image, of 1 GB each at most, as Postgres has it.
    pub const MAX_RECORD: usize = 0x7FFF_FFFF;

    /// Whether retention made it: its deletes are told to nobody, but keep their positions.
    pub fn is_retention(&self) -> bool {
        self.origin.as_deref() == Some(RETENTION_ORIGIN)
    }

    /// The position of its last item, or of its commit if it has none.
    pub fn last_position(&self) -> Position {
        Position { lsn: self.end_lsn, ordinal: self.items.saturating_sub(1) }
    }

    /// Its items in order. May be called any number of times; a spilled body is read from disk each time.
    /// The iterator owns what it needs, so it may outlive the borrow and be advanced a slice at a time.
    pub fn iter(&self) -> Items {
        let source = match &self.body {
            Body::Memory(bytes) => Source::Memory(bytes.clone()),
            Body::Spilled(body) => match body.open() {
                Ok(reader) => Source::Reader(reader, body.len()),
                Err(error) => Source::Failed(Some(error)),
            },
        };
        Items { relations: self.relations.clone(), end_lsn: self.end_lsn, source, ordinal: 0, only: None }
    }

    /// The rows of the relations that `wanted` picks, and all truncates; other records are passed over without a look.
    pub fn iter_of(&self, wanted: impl Fn(&Arc<Relation>) -> bool) -> Items {
        let only = self.relations.iter().map(wanted).collect();
        Items { only: Some(only), ..self.iter() }
    }
}

impl IntoIterator for &Transaction {
    type Item = Result<Item, TransactionError>;
    type IntoIter = Items;

    fn into_iter(self) -> Items {
        self.iter()
    }
}

enum Source {
    Memory(Bytes),
    Reader(Box<dyn Read + Send>, u64),
    Failed(Option<io::Error>),
}

/// Iterator over a transaction's items; ends after the first error.
pub struct Items {
    relations: Vec<Arc<Relation>>,
    end_lsn: Lsn,
    source: Source,
    ordinal: u32,
    /// By relation, whether its rows are wanted.
    only: Option<Box<[bool]>>,
}

impl Items {
    /// Whether the record is one that nobody wants.
    fn skips(&self, record: &Bytes) -> bool {
        let Some(only) = &self.only else { return false };
        match record.first_chunk::<5>() {
            Some([b'I' | b'U' | b'D', index @ ..]) => only.get(u32::from_le_bytes(*index) as usize) == Some(&false),
            _ => record.first() == Some(&b'M'),
        }
    }

    /// The next record without its length, or `None` at the end.
    fn record(&mut self) -> Result<Option<Bytes>, TransactionError> {
        match &mut self.source {
            Source::Failed(error) => error.take().map_or(Ok(None), |e| Err(e.into())),
            Source::Memory(rest) => {
                if rest.is_empty() {
                    return Ok(None);
                }
                if rest.len() < 4 {
                    return Err(TransactionError::Record("the body ends inside a length"));
                }
                let length = rest.get_u32_le() as usize;
                if length > rest.len() {
                    return Err(TransactionError::Record("a record is longer than the body"));
                }
                Ok(Some(rest.split_to(length)))
            }
            Source::Reader(reader, left) => {
                if *left == 0 {
                    return Ok(None);
                }
                let mut length = [0; 4];
                reader.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if length + 4 > *left {
                    return Err(TransactionError::Record("a record is longer than the body"));
                }
                let mut record = vec![0; length as usize];
                reader.read_exact(&mut record)?;
                *left -= length + 4;
                Ok(Some(Bytes::from(record)))
            }
        }
    }

    fn relation(&self, index: u32) -> Result<Arc<Relation>, TransactionError> {
        let known = self.relations.get(index as usize);
        known.cloned().ok_or(TransactionError::Record("a row refers to an unknown relation"))
    }

    fn decode(&mut self, record: &Bytes) -> Result<Item, TransactionError> {
        let position = Position { lsn: self.end_lsn, ordinal: self.ordinal };
        self.ordinal += 1;
        let mut fields = Fields { record, at: 0 };
        match fields.u8()? {
            tag @ (b'I' | b'U' | b'D') => {
                let relation = self.relation(fields.u32()?)?;
                let change = fields.change(tag)?;
                Ok(Item::Row(RowChange { relation, position, change }))
            }
            b'T' => {
                let flags = fields.u8()?;
                let count = fields.u32()?;
                let relations = (0..count).map(|_| self.relation(fields.u32()?)).collect::<Result<_, _>>()?;
                let (cascade, restart_identity) = (flags & 1 != 0, flags & 2 != 0);
                Ok(Item::Truncate(Truncate { relations, cascade, restart_identity, position }))
            }
            b'M' => {
                let lsn = Lsn((u64::from(fields.u32()?)) | (u64::from(fields.u32()?) << 32));
                let length = fields.u32()? as usize;
                let prefix = fields.take(length)?;
                let content = record.slice(fields.at..);
                let prefix = String::from_utf8_lossy(&prefix).into_owned();
                Ok(Item::Message(LogicalMessage { prefix, content, lsn, position }))
            }
            _ => Err(TransactionError::Record("unknown record tag")),
        }
    }
}

impl Iterator for Items {
    type Item = Result<Item, TransactionError>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = loop {
            match self.record() {
                Ok(None) => return None,
                Ok(Some(record)) if self.skips(&record) => self.ordinal += 1,
                Ok(Some(record)) => break self.decode(&record),
                Err(error) => break Err(error),
            }
        };
        if result.is_err() {
            self.source = Source::Failed(None);
        }
        Some(result)
    }
}

pub(super) struct Fields<'a> {
    pub(super) record: &'a Bytes,
    pub(super) at: usize,
}

impl Fields<'_> {
    fn take(&mut self, length: usize) -> Result<Bytes, TransactionError> {
        if length > self.record.len() - self.at {
            return Err(TransactionError::Record("a record ends inside a field"));
        }
        self.at += length;
        Ok(self.record.slice(self.at - length..self.at))
    }

    fn u8(&mut self) -> Result<u8, TransactionError> {
        let byte = self.record.get(self.at).ok_or(TransactionError::Record("a record ends inside a field"))?;
        self.at += 1;
        Ok(*byte)
    }

    fn u32(&mut self) -> Result<u32, TransactionError> {
        let bytes = self.record.get(self.at..self.at + 4);
        let bytes = bytes.ok_or(TransactionError::Record("a record ends inside a field"))?;
        self.at += 4;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn tuple(&mut self) -> Result<Tuple, TransactionError> {
        Ok(Tuple::parse(self.record, &mut self.at)?)
    }

    pub(super) fn change(&mut self, tag: u8) -> Result<Change, TransactionError> {
        let misplaced = TransactionError::Record("a tuple of this kind can't stand here");
        let kind = self.u8()?;
        let change = match (tag, kind) {
            (b'I', b'N') => Change::Insert { new: self.tuple()? },
            (b'U', b'N') => Change::Update { new: self.tuple()?, old: None },
            (b'U', b'K' | b'O') => {
                let old = self.old(kind)?;
                if self.u8()? != b'N' {
                    return Err(misplaced);
                }
                Change::Update { new: self.tuple()?, old: Some(old) }
            }
            (b'D', b'K' | b'O') => Change::Delete { old: self.old(kind)? },
            _ => return Err(misplaced),
        };
        if self.at != self.record.len() {
            return Err(TransactionError::Record("bytes follow the row"));
        }
        Ok(change)
    }

    fn old(&mut self, kind: u8) -> Result<OldRow, TransactionError> {
        let tuple = self.tuple()?;
        Ok(if kind == b'K' { OldRow::KeyOnly(tuple) } else { OldRow::Full(tuple) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{RelationColumn, ReplicaIdentity, TransactionBuilder, Value};
    use super::*;
    use proptest::prelude::*;

    fn relation(oid: u32) -> Arc<Relation> {
        let column = RelationColumn { name: "id".into(), type_oid: 23, type_modifier: -1, key: true };
        Arc::new(Relation {
            oid,
            schema: "public".into(),
            table: format!("t{oid}"),
            identity: ReplicaIdentity::Full,
            columns: vec![column],
        })
    }

    fn raw(kinds: &[u8], text: &[u8]) -> Bytes {
        let mut out = Vec::new();
        for kind in kinds {
            out.push(*kind);
            Tuple::encode([Value::Text(text)].into_iter(), &mut out);
        }
        Bytes::from(out)
    }

    fn build() -> Transaction {
        let (a, b) = (relation(1), relation(2));
        let mut builder = TransactionBuilder::default();
        builder.row(b'I', &a, &raw(b"N", b"1")).expect("insert");
        builder.row(b'U', &b, &raw(b"ON", b"2")).expect("update");
        builder.row(b'U', &a, &raw(b"N", b"3")).expect("update");
        builder.row(b'D', &a, &raw(b"K", b"4")).expect("delete");
        builder.truncate(3, &[a, b]).expect("truncate");
        builder.message(Lsn(0x1_0000_0007), b"p", b"content").expect("message");
        builder.finish(7, Lsn(10), Lsn(20), Timestamp(5), None)
    }

    #[test]
    fn items_come_back_in_order_as_often_as_asked() {
        let transaction = build();
        for _ in 0..2 {
            let items: Vec<Item> = transaction.iter().collect::<Result<_, _>>().expect("items");
            assert_eq!(items.len(), 6);
            for (i, item) in items.iter().enumerate() {
                let position = match item {
                    Item::Row(row) => row.position,
                    Item::Truncate(truncate) => truncate.position,
                    Item::Message(message) => message.position,
                };
                assert_eq!(position, Position { lsn: Lsn(20), ordinal: i as u32 });
            }
            assert!(
                matches!(&items[1], Item::Row(RowChange { relation, change: Change::Update { old: Some(OldRow::Full(old)), .. }, .. })
                if relation.oid == 2 && old.get(0) == Value::Text(b"2"))
            );
            assert!(matches!(
                &items[3],
                Item::Row(RowChange { change: Change::Delete { old: OldRow::KeyOnly(_) }, .. })
            ));
            assert!(
                matches!(&items[4], Item::Truncate(t) if t.cascade && t.restart_identity && t.relations.len() == 2)
            );
            assert!(
                matches!(&items[5], Item::Message(m) if m.lsn == Lsn(0x1_0000_0007) && m.prefix == "p" && &m.content[..] == b"content")
            );
        }
    }

    #[test]
    fn only_a_message_with_the_prefix_or_a_word_of_the_builders_owner_says_that_rules_changed() {
        assert!(!build().rules_changed, "rows, a TRUNCATE and another's message");
        let finished = |builder: TransactionBuilder| builder.finish(7, Lsn(10), Lsn(20), Timestamp(5), None);
        let with = |prefix: &str| {
            let mut builder = TransactionBuilder::default();
            builder.message(Lsn(1), prefix.as_bytes(), b"").expect("message");
            builder.message(Lsn(2), b"p", b"").expect("message");
            finished(builder).rules_changed
        };
        assert!(with(RULES_PREFIX));
        assert!(!with("rowcast.rules2") && !with("rowcast.") && !with(""));
        let mut told = TransactionBuilder::default();
        told.rules_changed();
        assert!(finished(told).rules_changed);
    }

    #[test]
    fn rows_that_nobody_wants_are_passed_over_and_keep_their_ordinals() {
        let ordinals = |oid: u32| -> Vec<u32> {
            let items = build().iter_of(|relation| relation.oid == oid).map(|item| match item.expect("an item") {
                Item::Row(row) => row.position.ordinal,
                Item::Truncate(truncate) => truncate.position.ordinal,
                Item::Message(message) => message.position.ordinal,
            });
            items.collect()
        };
        assert_eq!((ordinals(1), ordinals(2), ordinals(3)), (vec![0, 2, 3, 4], vec![1, 4], vec![4]));
    }

    #[test]
    fn a_malformed_row_fails_where_it_comes_in() {
        let mut builder = TransactionBuilder::default();
        assert!(builder.row(b'I', &relation(1), &raw(b"K", b"1")).is_err());
        assert!(builder.row(b'D', &relation(1), &raw(b"N", b"1")).is_err());
        let mut trailing = raw(b"N", b"1").to_vec();
        trailing.push(0);
        assert!(builder.row(b'I', &relation(1), &Bytes::from(trailing)).is_err());
        assert_eq!(builder.buffered(), 0);
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let transaction = Transaction { body: Body::Memory(Bytes::from(body)), ..build() };
            let mut errors = 0;
            for item in &transaction {
                errors += usize::from(item.is_err());
            }
            prop_assert!(errors <= 1);
        }
    }
}
