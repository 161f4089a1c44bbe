//! Reads the records of one segment one after the other, each verified before it is handed out.
//!
//! Rejected: trusting the CRC of the file system or of an earlier read. A record that lies would be delivered to the wrong
//! people, and the checksum costs less than the copy out of the page cache.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::LogError;
use super::codec::{self, FRAME, Frame, Head, Kind, MIN_RECORD, RelationRef, TRAILER};
use super::files::LogFile;
use super::relations::Interner;
use super::segment::{SegmentRange, read_full};
use crate::change::{Body, Lsn, Relation, Transaction};

/// A record longer than this is handed out as a range of the file.
pub(super) const LARGE: u64 = 8 * 1024 * 1024;
const CHUNK: usize = 256 * 1024;

/// A verified record.
pub(super) struct Record {
    /// Where it begins.
    pub(super) offset: u64,
    /// The durable length of the segment that its writer knew of.
    pub(super) synced: u64,
    pub(super) entry: Entry,
}

pub(super) enum Entry {
    Transaction(Head, Body),
    Advance(Lsn),
}

impl Entry {
    /// Up to where the stream is complete with it.
    pub(super) fn end(&self) -> Lsn {
        match self {
            Entry::Transaction(head, _) => head.end_lsn,
            Entry::Advance(lsn) => *lsn,
        }
    }
}

/// Why there is no next record.
pub(super) enum ScanError {
    /// The bytes at the scanner's offset are no record.
    Bad(&'static str),
    Io(io::Error),
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        ScanError::Io(error)
    }
}

impl From<&'static str> for ScanError {
    fn from(what: &'static str) -> Self {
        ScanError::Bad(what)
    }
}

/// A place in a segment, moving forward.
pub(super) struct Scanner {
    file: Arc<dyn LogFile>,
    path: PathBuf,
    marker: u32,
    /// Where the next record begins.
    offset: u64,
    /// Where the readable part ends; may be raised between two records.
    limit: u64,
    /// Whether bodies are handed out, or only verified.
    bodies: bool,
    buffer: Vec<u8>,
    /// The offset of the buffer's first byte.
    buffered_at: u64,
}

impl Scanner {
    pub(super) fn new(file: Arc<dyn LogFile>, path: PathBuf, marker: u32, from: u64, bodies: bool) -> Scanner {
        Scanner { file, path, marker, offset: from, limit: from, bodies, buffer: Vec::new(), buffered_at: from }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Goes to another place, where a record may begin.
    pub(super) fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// A scan error as the log's.
    pub(super) fn error(&self, error: ScanError) -> LogError {
        match error {
            ScanError::Bad(what) => self.damaged(what),
            ScanError::Io(source) => LogError::Io { action: "read", path: self.path.clone(), source },
        }
    }

    pub(super) fn damaged(&self, what: &'static str) -> LogError {
        LogError::Damaged { path: self.path.clone(), offset: self.offset, what }
    }

    /// The next record, or `None` at the limit. After an error the offset still is where the bad record begins.
    pub(super) fn next(&mut self) -> Result<Option<Record>, ScanError> {
        let left = self.limit.saturating_sub(self.offset);
        if left == 0 {
            return Ok(None);
        }
        if left < MIN_RECORD {
            return Err("the file ends inside a record".into());
        }
        let offset = self.offset;
        let frame = Frame::decode(self.bytes(offset, FRAME)?)?;
        if frame.marker != self.marker {
            return Err("no record begins here".into());
        }
        if frame.length < MIN_RECORD || frame.length > left {
            return Err("the record is longer than what is left of the file".into());
        }
        let entry = if frame.length > LARGE { self.large(&frame)? } else { self.small(&frame)? };
        self.offset = offset + frame.length;
        Ok(Some(Record { offset, synced: frame.synced, entry }))
    }

    fn small(&mut self, frame: &Frame) -> Result<Entry, ScanError> {
        let bodies = self.bodies;
        let record = self.bytes(self.offset, frame.length as usize)?;
        let (covered, crc) = record.split_at(record.len() - TRAILER);
        if crc32c::crc32c(covered).to_le_bytes() != crc {
            return Err(BAD_CRC.into());
        }
        let payload = &covered[FRAME..];
        if frame.kind == Kind::Advance {
            return Ok(Entry::Advance(codec::decode_advance(payload)?));
        }
        let (head, body) = split_head(payload)?;
        let body = if bodies { Bytes::copy_from_slice(body) } else { Bytes::new() };
        Ok(Entry::Transaction(codec::decode_head(head)?, Body::Memory(body)))
    }

    fn large(&mut self, frame: &Frame) -> Result<Entry, ScanError> {
        if frame.kind != Kind::Transaction {
            return Err("an advance record of impossible length".into());
        }
        self.verify(frame.length)?;
        let start = self.offset;
        let length = self.bytes(start, FRAME + 4)?;
        let head_length = u64::from(u32::from_le_bytes([length[24], length[25], length[26], length[27]]));
        let before_body = FRAME as u64 + 4 + head_length;
        if before_body > frame.length - TRAILER as u64 {
            return Err("a head longer than its record".into());
        }
        let head = codec::decode_head(&self.bytes(start, before_body as usize)?[FRAME + 4..])?;
        let length = frame.length - TRAILER as u64 - before_body;
        let body = SegmentRange { file: self.file.clone(), offset: start + before_body, length };
        Ok(Entry::Transaction(head, Body::Spilled(Arc::new(body))))
    }

    /// Checks the CRC of a record without holding it.
    fn verify(&mut self, length: u64) -> Result<(), ScanError> {
        let mut chunk = vec![0; CHUNK];
        let (mut at, mut left, mut crc) = (self.offset, length - TRAILER as u64, 0);
        while left > 0 {
            let want = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
            if read_full(&*self.file, &mut chunk[..want], at)? < want {
                return Err("the file ends inside a record".into());
            }
            crc = crc32c::crc32c_append(crc, &chunk[..want]);
            at += want as u64;
            left -= want as u64;
        }
        let mut stored = [0; TRAILER];
        let complete = read_full(&*self.file, &mut stored, at)? == TRAILER;
        if complete && stored == crc.to_le_bytes() { Ok(()) } else { Err(BAD_CRC.into()) }
    }

    /// That many bytes at the offset, read ahead by chunks.
    fn bytes(&mut self, offset: u64, length: usize) -> Result<&[u8], ScanError> {
        let start = offset.wrapping_sub(self.buffered_at);
        let within = start <= self.buffer.len() as u64 && self.buffer.len() as u64 - start >= length as u64;
        if !within {
            let readable = usize::try_from(self.limit.saturating_sub(offset)).unwrap_or(usize::MAX);
            let want = length.max(CHUNK.min(readable));
            self.buffer.resize(want, 0);
            self.buffer.shrink_to(CHUNK);
            self.buffered_at = offset;
            let count = read_full(&*self.file, &mut self.buffer, offset).inspect_err(|_| self.buffer.clear())?;
            self.buffer.truncate(count);
            if count < length {
                return Err("the file ends inside a record".into());
            }
        }
        let start = (offset - self.buffered_at) as usize;
        Ok(&self.buffer[start..start + length])
    }

    /// The first offset at or after `from` where the marker stands.
    pub(super) fn find_marker(&mut self, mut from: u64) -> Result<Option<u64>, io::Error> {
        let marker = self.marker.to_le_bytes();
        let mut chunk = vec![0; CHUNK];
        while from + marker.len() as u64 <= self.limit {
            let count = read_full(&*self.file, &mut chunk, from)?;
            if let Some(at) = chunk[..count].windows(marker.len()).position(|w| w == marker) {
                return Ok(Some(from + at as u64));
            }
            if count < CHUNK {
                break;
            }
            from += (count - marker.len() + 1) as u64;
        }
        Ok(None)
    }
}

const BAD_CRC: &str = "the record's checksum is wrong";

fn split_head(payload: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let mut fields = codec::Fields(payload);
    let length = fields.u32()? as usize;
    Ok((fields.take(length)?, fields.0))
}

/// The relations a segment has defined so far, by number.
#[derive(Default)]
pub(super) struct Definitions {
    pub(super) known: Vec<Arc<Relation>>,
}

impl Definitions {
    /// Resolves the relations of a head, in their order, learning the new ones.
    pub(super) fn resolve(
        &mut self,
        references: Vec<RelationRef>,
        interner: &Interner,
    ) -> Result<Vec<Arc<Relation>>, &'static str> {
        let mut relations = Vec::with_capacity(references.len());
        for reference in references {
            relations.push(match reference {
                RelationRef::Known(number) => {
                    let known = self.known.get(number as usize);
                    known.cloned().ok_or("a record refers to a relation that no record before it defines")?
                }
                RelationRef::New(number, relation) if number as usize == self.known.len() => {
                    self.known.push(interner.intern(relation));
                    self.known[number as usize].clone()
                }
                RelationRef::New(..) => return Err("a relation is defined out of turn"),
            });
        }
        Ok(relations)
    }
}

/// The transaction of a verified record.
pub(super) fn transaction(head: Head, relations: Vec<Arc<Relation>>, body: Body) -> Transaction {
    let Head { xid, items, commit_lsn, end_lsn, commit_time, relations: _, origin, rules_changed } = head;
    let origin = origin.map(Arc::from);
    Transaction { xid, commit_lsn, end_lsn, commit_time, relations, origin, rules_changed, items, body }
}
