//! A reader's place on disk. Blocking; runs off the async threads, a bounded batch at a time.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::LogError;
use super::reader::Read;
use super::scan::{Definitions, Entry, Scanner, transaction};
use super::segment::HEADER;
use super::state::Shared;
use crate::change::{Body, Lsn};

/// Bytes of bodies after which a batch is handed over.
const BATCH_BYTES: u64 = 1 << 20;
/// Reads after which it is.
const BATCH_READS: usize = 512;

/// What one trip to the disk brought.
pub(super) struct Batch {
    pub(super) reads: VecDeque<Read>,
    /// Where to go on; `None` to look the segment up by position again.
    pub(super) cursor: Option<Cursor>,
    /// Met after the reads.
    pub(super) error: Option<LogError>,
}

/// An open segment and the place in it.
pub(super) struct Cursor {
    sequence: u64,
    scanner: Scanner,
    definitions: Definitions,
    /// End LSN of the last record passed.
    passed: Lsn,
    /// [`super::state::State::cuts`] when it was opened: after a cut, its place may be one that was taken back.
    cuts: u64,
}

/// Where a segment may be read to, as of now.
struct Bounds {
    length: u64,
    /// The base of the next segment; `None` for the active one.
    next: Option<Lsn>,
}

/// Reads the next records above `position`. An empty batch without an error means that the log changed underneath (segments
/// were removed or taken back) and that the position must be looked at again.
pub(super) fn read_batch(shared: &Shared, cursor: Option<Cursor>, position: Lsn) -> Batch {
    let cuts = shared.state().cuts;
    let cursor = cursor.filter(|c| c.cuts == cuts);
    let mut batch = Batch { reads: VecDeque::new(), cursor, error: None };
    let result = fill(shared, &mut batch, position);
    if let Err(error) = result {
        batch.cursor = None;
        // What can't be read may have been taken back meanwhile.
        batch.error = (shared.state().cuts == cuts).then_some(error);
    }
    batch
}

fn fill(shared: &Shared, batch: &mut Batch, mut position: Lsn) -> Result<(), LogError> {
    let mut bytes = 0;
    while bytes < BATCH_BYTES && batch.reads.len() < BATCH_READS {
        let mut cursor = match batch.cursor.take() {
            Some(cursor) => cursor,
            None => match Cursor::open(shared, position)? {
                Some(cursor) => cursor,
                None => return Ok(()),
            },
        };
        let Some(bounds) = bounds(shared, cursor.sequence) else { return Ok(()) };
        cursor.scanner.set_limit(bounds.length);
        while bytes < BATCH_BYTES && batch.reads.len() < BATCH_READS && bounds.next != Some(cursor.passed) {
            let Some(read) = cursor.next(shared)? else {
                // All there is to read of this segment. A closed one must have reached the next one's base.
                return match bounds.next {
                    Some(_) => Err(cursor.scanner.damaged("the segment ends before the next one begins")),
                    None if batch.reads.is_empty() => {
                        Err(cursor.scanner.damaged("the segment ends before the position that was written"))
                    }
                    None => {
                        batch.cursor = Some(cursor);
                        Ok(())
                    }
                };
            };
            if bounds.next.is_some_and(|next| cursor.passed > next) {
                return Err(cursor.scanner.damaged("a record before this goes beyond the segment's end"));
            }
            if cursor.passed > position {
                position = cursor.passed;
                if let Read::Transaction(transaction) = &read {
                    bytes += match &transaction.body {
                        Body::Memory(body) => body.len() as u64,
                        Body::Spilled(_) => 0,
                    };
                }
                batch.reads.push_back(read);
            }
        }
        if bounds.next != Some(cursor.passed) {
            batch.cursor = Some(cursor);
        }
    }
    Ok(())
}

/// `None` if the segment was removed.
fn bounds(shared: &Shared, sequence: u64) -> Option<Bounds> {
    let state = shared.state();
    let at = state.segments.binary_search_by_key(&sequence, |s| s.header.sequence).ok()?;
    let next = state.segments.get(at + 1).map(|s| s.header.base);
    Some(Bounds { length: state.segments[at].length, next })
}

impl Cursor {
    /// Opens the segment that holds the first record above `position`; `None` if it was removed meanwhile.
    fn open(shared: &Shared, position: Lsn) -> Result<Option<Cursor>, LogError> {
        let (header, cuts) = {
            let state = shared.state();
            let after = state.segments.partition_point(|s| s.header.base <= position);
            match after.checked_sub(1) {
                Some(at) => (state.segments[at].header, state.cuts),
                None => return Ok(None),
            }
        };
        let path = shared.path(header.sequence);
        let file = match shared.files.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && bounds(shared, header.sequence).is_none() => {
                return Ok(None);
            }
            Err(source) => return Err(LogError::Io { action: "open", path, source }),
        };
        let scanner = Scanner::new(file, path, header.marker, HEADER, true);
        let (sequence, passed) = (header.sequence, header.base);
        Ok(Some(Cursor { sequence, scanner, definitions: Definitions::default(), passed, cuts }))
    }

    /// The next record, whatever its position; `None` at the limit.
    fn next(&mut self, shared: &Shared) -> Result<Option<Read>, LogError> {
        let record = match self.scanner.next() {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(None),
            Err(error) => return Err(self.scanner.error(error)),
        };
        let end = record.entry.end();
        if end <= self.passed {
            self.scanner.seek(record.offset);
            return Err(self.scanner.damaged("the record's position is not after the one before it"));
        }
        self.passed = end;
        match record.entry {
            Entry::Advance(lsn) => Ok(Some(Read::Idle(lsn))),
            Entry::Transaction(head, body) => {
                let mut head = head;
                let references = std::mem::take(&mut head.relations);
                let relations = self.definitions.resolve(references, &shared.interner).map_err(|what| {
                    self.scanner.seek(record.offset);
                    self.scanner.damaged(what)
                })?;
                Ok(Some(Read::Transaction(Arc::new(transaction(head, relations, body)))))
            }
        }
    }
}
