//! The bytes of a record, and nothing else: no file, no position in one.
//!
//! All integers little endian.
//!
//! | offset | field | |
//! |---|---|---|
//! | 0 | marker `u32` | the segment's random number: where a record may begin |
//! | 4 | kind `u8`, 3 zero bytes | `T` transaction, `A` advance |
//! | 8 | length `u64` | of the whole record, marker and CRC included |
//! | 16 | synced `u64` | bytes of this segment known to be durable when this was written |
//! | 24 | payload | |
//! | length − 4 | crc32c `u32` | of everything before it |
//!
//! Payload of `T`: head length `u32`, head, body. Head: xid `u32`, items `u32`, commit LSN `u64`, end LSN `u64`, commit time
//! `i64`, relation count `u32`, then per relation its number in the segment's dictionary `u32`; with the top bit set the
//! definition follows and takes that number; then, if its writer had set up a replication origin, the origin's name as
//! length `u16` and text (nothing if not, as in records from before there was such a field); then, if there is a flag to
//! set, the flags `u8`: 1 rules changed, 2 no origin, for which an empty name then stands (nothing if there is none, as in
//! records from before there were flags). There is one way to write a head. The body is [`crate::change::Body`]'s bytes, as they are.
//! Payload of `A`: LSN `u64`.
//!
//! The CRC comes last so that a body of any size can be streamed from its spill without reading it twice. The marker is
//! random so that no row, whatever a user writes into it, can pass for a record when damage is searched for what follows it.

use crate::change::{Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, Transaction};

/// Bytes before the payload.
pub(super) const FRAME: usize = 24;
/// Bytes after it.
pub(super) const TRAILER: usize = 4;
/// The shortest record there is.
pub(super) const MIN_RECORD: u64 = (FRAME + TRAILER) as u64;

const DEFINES: u32 = 1 << 31;
const FIXED_HEAD: usize = 36;

const RULES_CHANGED: u8 = 1;
const NO_ORIGIN: u8 = 2;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Transaction,
    Advance,
}

/// The part of a record before its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) marker: u32,
    pub(super) kind: Kind,
    pub(super) length: u64,
    pub(super) synced: u64,
}

impl Frame {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.marker.to_le_bytes());
        let kind = match self.kind {
            Kind::Transaction => b'T',
            Kind::Advance => b'A',
        };
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.synced.to_le_bytes());
    }

    /// Reads the first [`FRAME`] bytes. Whether the marker and the length make sense is for the caller to say.
    pub(super) fn decode(bytes: &[u8]) -> Result<Frame, &'static str> {
        let mut fields = Fields(bytes);
        let marker = fields.u32()?;
        let kind = match fields.take(4)? {
            b"T\0\0\0" => Kind::Transaction,
            b"A\0\0\0" => Kind::Advance,
            _ => return Err("a record of an unknown kind"),
        };
        Ok(Frame { marker, kind, length: fields.u64()?, synced: fields.u64()? })
    }
}

/// A relation as a record names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RelationRef {
    /// Defined by an earlier record of the segment.
    Known(u32),
    /// Defined here, under this number.
    New(u32, Relation),
}

/// A transaction without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) xid: u32,
    pub(super) items: u32,
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) commit_time: Timestamp,
    pub(super) relations: Vec<RelationRef>,
    pub(super) origin: Option<String>,
    pub(super) rules_changed: bool,
}

/// Writes the head with its length before it. `relations` are the numbers of the transaction's relations, each with whether
/// this record must define it.
pub(super) fn encode_head(
    transaction: &Transaction,
    relations: &[(u32, bool)],
    out: &mut Vec<u8>,
) -> Result<(), &'static str> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&transaction.xid.to_le_bytes());
    out.extend_from_slice(&transaction.items.to_le_bytes());
    out.extend_from_slice(&transaction.commit_lsn.0.to_le_bytes());
    out.extend_from_slice(&transaction.end_lsn.0.to_le_bytes());
    out.extend_from_slice(&transaction.commit_time.0.to_le_bytes());
    out.extend_from_slice(&(relations.len() as u32).to_le_bytes());
    for ((number, defines), relation) in relations.iter().zip(&transaction.relations) {
        if *number >= DEFINES {
            return Err("too many relations");
        }
        if *defines {
            out.extend_from_slice(&(number | DEFINES).to_le_bytes());
            encode_relation(relation, out)?;
        } else {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    match &transaction.origin {
        Some(origin) => encode_text(origin, out)?,
        None if transaction.rules_changed => encode_text("", out)?,
        None => {}
    }
    if transaction.rules_changed {
        out.push(RULES_CHANGED | if transaction.origin.is_none() { NO_ORIGIN } else { 0 });
    }
    let length = u32::try_from(out.len() - start - 4).map_err(|_| "its relations take more than 4 GiB")?;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Reads a head, without the length before it.
pub(super) fn decode_head(bytes: &[u8]) -> Result<Head, &'static str> {
    let mut fields = Fields(bytes);
    let mut head = Head {
        xid: fields.u32()?,
        items: fields.u32()?,
        commit_lsn: Lsn(fields.u64()?),
        end_lsn: Lsn(fields.u64()?),
        commit_time: Timestamp(fields.u64()? as i64),
        relations: Vec::new(),
        origin: None,
        rules_changed: false,
    };
    let count = fields.u32()? as usize;
    if count > (bytes.len() - FIXED_HEAD) / 4 {
        return Err("a record with more relations than bytes");
    }
    head.relations.reserve(count);
    for _ in 0..count {
        let number = fields.u32()?;
        head.relations.push(match number & DEFINES {
            0 => RelationRef::Known(number),
            _ => RelationRef::New(number & !DEFINES, decode_relation(&mut fields)?),
        });
    }
    if !fields.0.is_empty() {
        head.origin = Some(fields.text()?);
    }
    if !fields.0.is_empty() {
        let flags = fields.u8()?;
        if flags & RULES_CHANGED == 0 || flags & !(RULES_CHANGED | NO_ORIGIN) != 0 {
            return Err("a record with unknown flags");
        }
        head.rules_changed = true;
        if flags & NO_ORIGIN != 0 && head.origin.take().is_none_or(|origin| !origin.is_empty()) {
            return Err("a record with an origin and the flag that it has none");
        }
    }
    if fields.0.is_empty() { Ok(head) } else { Err("a record with bytes after its head") }
}

/// Reads the payload of an advance record.
pub(super) fn decode_advance(payload: &[u8]) -> Result<Lsn, &'static str> {
    let mut fields = Fields(payload);
    let lsn = Lsn(fields.u64()?);
    if fields.0.is_empty() { Ok(lsn) } else { Err("a record with bytes after its end") }
}

fn encode_relation(relation: &Relation, out: &mut Vec<u8>) -> Result<(), &'static str> {
    out.extend_from_slice(&relation.oid.to_le_bytes());
    out.push(match relation.identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
        ReplicaIdentity::Nothing => b'n',
    });
    encode_text(&relation.schema, out)?;
    encode_text(&relation.table, out)?;
    let columns = u16::try_from(relation.columns.len()).map_err(|_| "a table of more than 65535 columns")?;
    out.extend_from_slice(&columns.to_le_bytes());
    for column in &relation.columns {
        encode_text(&column.name, out)?;
        out.extend_from_slice(&column.type_oid.to_le_bytes());
        out.extend_from_slice(&column.type_modifier.to_le_bytes());
        out.push(u8::from(column.key));
    }
    Ok(())
}

fn encode_text(text: &str, out: &mut Vec<u8>) -> Result<(), &'static str> {
    let length = u16::try_from(text.len()).map_err(|_| "a name of more than 65535 bytes")?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn decode_relation(fields: &mut Fields<'_>) -> Result<Relation, &'static str> {
    let oid = fields.u32()?;
    let identity = match fields.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        b'n' => ReplicaIdentity::Nothing,
        _ => return Err("a relation with an unknown replica identity"),
    };
    let (schema, table) = (fields.text()?, fields.text()?);
    let count = fields.u16()?;
    let mut columns = Vec::with_capacity(usize::from(count).min(fields.0.len() / 11));
    for _ in 0..count {
        let name = fields.text()?;
        let type_oid = fields.u32()?;
        let type_modifier = fields.u32()?.cast_signed();
        let key = match fields.u8()? {
            0 => false,
            1 => true,
            _ => return Err("a column with an unknown flag"),
        };
        columns.push(RelationColumn { name, type_oid, type_modifier, key });
    }
    Ok(Relation { oid, schema, table, identity, columns })
}

/// Takes fields off the front of a slice.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("a record that ends inside a field")?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (taken, rest) = self.0.split_first_chunk().ok_or("a record that ends inside a field")?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, &'static str> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, &'static str> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, &'static str> {
        let length = self.u16()?;
        let bytes = self.take(usize::from(length))?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a name that is not UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::change::Body;

    fn relation() -> impl Strategy<Value = Relation> {
        use ReplicaIdentity::{Default, Full, Index, Nothing};
        let column = (".{0,12}", any::<u32>(), any::<i32>(), any::<bool>());
        let column = column.prop_map(|(name, type_oid, type_modifier, key)| RelationColumn {
            name,
            type_oid,
            type_modifier,
            key,
        });
        let identity = prop_oneof![Just(Default), Just(Full), Just(Index), Just(Nothing)];
        (any::<u32>(), ".{0,12}", ".{0,12}", identity, proptest::collection::vec(column, 0..8))
            .prop_map(|(oid, schema, table, identity, columns)| Relation { oid, schema, table, identity, columns })
    }

    /// A head as it was written before there were origins, and before there were flags.
    fn old_head(origin: Option<&str>) -> Vec<u8> {
        let mut out = vec![7, 0, 0, 0, 2, 0, 0, 0];
        for field in [10u64, 20, 5] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&1u32.to_le_bytes());
        out.extend_from_slice(&3u32.to_le_bytes());
        if let Some(origin) = origin {
            encode_text(origin, &mut out).expect("a short name");
        }
        out
    }

    #[test]
    fn a_record_from_before_there_were_flags_says_that_no_rules_changed() {
        for origin in [None, Some("rowcast_retention"), Some("")] {
            let head = decode_head(&old_head(origin)).expect("an old head");
            assert_eq!((head.xid, head.origin.as_deref(), head.rules_changed), (7, origin, false));
            assert_eq!(head.relations, [RelationRef::Known(3)]);
        }
    }

    #[test]
    fn flags_of_a_later_version_and_contradictions_are_refused() {
        let with = |origin: &str, flags: &[u8]| decode_head(&[old_head(Some(origin)), flags.to_vec()].concat());
        assert!(with("", &[3]).is_ok_and(|head| head.rules_changed && head.origin.is_none()));
        assert!(with("o", &[1]).is_ok_and(|head| head.rules_changed && head.origin.is_some()));
        for (origin, flags) in [("", &[0][..]), ("", &[2]), ("", &[7]), ("o", &[3]), ("", &[1, 0])] {
            assert!(with(origin, flags).is_err(), "{origin:?} {flags:?}");
        }
    }

    proptest! {
        #[test]
        fn a_head_comes_back(
            relations in proptest::collection::vec((relation(), any::<bool>()), 0..6),
            (xid, items, commit, end, time) in any::<(u32, u32, u64, u64, i64)>(),
            origin in proptest::option::of(".{0,12}"),
            rules_changed in any::<bool>(),
        ) {
            let transaction = Transaction {
                xid,
                commit_lsn: Lsn(commit),
                end_lsn: Lsn(end),
                commit_time: Timestamp(time),
                relations: relations.iter().map(|(r, _)| Arc::new(r.clone())).collect(),
                origin: origin.as_deref().map(Arc::from),
                rules_changed,
                items,
                body: Body::Memory(Bytes::new()),
            };
            let numbers: Vec<_> = relations.iter().enumerate().map(|(i, (_, new))| (i as u32, *new)).collect();
            let mut out = Vec::new();
            encode_head(&transaction, &numbers, &mut out).expect("encode");
            let head = decode_head(&out[4..]).expect("decode");
            prop_assert_eq!(u32::from_le_bytes([out[0], out[1], out[2], out[3]]) as usize, out.len() - 4);
            prop_assert_eq!((head.xid, head.items, head.commit_lsn.0, head.end_lsn.0), (xid, items, commit, end));
            prop_assert_eq!(head.commit_time.0, time);
            prop_assert_eq!((&head.origin, head.rules_changed), (&origin, rules_changed));
            let expected: Vec<_> = relations.into_iter().enumerate().map(|(i, (r, new))| match new {
                true => RelationRef::New(i as u32, r),
                false => RelationRef::Known(i as u32),
            }).collect();
            prop_assert_eq!(head.relations, expected);
        }

        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::decode(&bytes);
            let _ = decode_head(&bytes);
            let _ = decode_advance(&bytes);
        }
    }
}
