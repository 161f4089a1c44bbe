//! Opening what a process before left, however it ended. The rule that tells torn from damaged is in the module's header.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::files::{Files, LogFile};
use super::notes::Notes;
use super::relations::{Dictionary, Interner};
use super::scan::{Definitions, Entry, ScanError, Scanner};
use super::segment::{self, BadHeader, HEADER, Header, VERSION, read_full};
use super::state::{Segment, State};
use super::tail::Tail;
use super::writer::Active;
use super::{LogConfig, LogError};
use crate::change::Lsn;

/// Reads the folder, cuts a torn tail, removes what belongs to no history that can be read, and makes the rest durable.
pub(super) fn recover(
    config: &LogConfig,
    files: &dyn Files,
    interner: &Interner,
    notes: Notes,
) -> Result<(State, Option<Active>), LogError> {
    let dir = &*config.dir;
    let mut state = State {
        generation: 0,
        fork: None,
        notes,
        written: None,
        streamed: Lsn::ZERO,
        cuts: 0,
        epoch: None,
        segments: VecDeque::new(),
        floor: Lsn::ZERO,
        end: Lsn::ZERO,
        durable: Lsn::ZERO,
        active: None,
        synced: 0,
        needs_repair: false,
        tail: Tail::new(Lsn::ZERO, config.tail_bytes),
    };
    let found = read_headers(files, dir)?;
    let found = keep_one_history(found, &state.notes, files, dir)?;
    let Some(last) = found.last().map(|f| f.header) else { return Ok((state, None)) };
    state.segments = found.iter().map(|f| Segment { header: f.header, length: f.length }).collect();

    let path = segment::path(dir, last.sequence);
    let file = files.open(&path).map_err(LogError::io("open", &path))?;
    let scanned = scan_last(&file, &path, &last, interner)?;
    make_durable(&file, &path, &scanned)?;
    files.sync_dir(dir).map_err(LogError::io("sync", dir))?;

    if let Some(segment) = state.segments.back_mut() {
        segment.length = scanned.length;
    }
    state.generation = 1;
    state.epoch = Some(last.epoch);
    state.floor = found[0].header.base;
    (state.end, state.durable) = (scanned.end, scanned.end);
    state.active = Some(file.clone());
    state.synced = scanned.length;
    state.tail = Tail::new(scanned.end, config.tail_bytes);
    let dictionary = Dictionary::of(scanned.definitions.known);
    Ok((state, Some(Active { file, header: last, offset: scanned.length, dictionary })))
}

struct Found {
    header: Header,
    /// Of the file; a segment that is not the last may have meaningless bytes behind its last record.
    length: u64,
}

/// The headers of all segments, by sequence. Removes a last segment that was not complete when the process ended.
fn read_headers(files: &dyn Files, dir: &Path) -> Result<Vec<Found>, LogError> {
    let names = files.list(dir).map_err(LogError::io("list", dir))?;
    let mut sequences: Vec<u64> = names.iter().filter_map(|n| segment::parse_name(n)).collect();
    sequences.sort_unstable();
    let mut found: Vec<Found> = Vec::with_capacity(sequences.len());
    for (i, &sequence) in sequences.iter().enumerate() {
        let path = segment::path(dir, sequence);
        let damaged = |what| LogError::Damaged { path: path.clone(), offset: 0, what };
        let file = files.open(&path).map_err(LogError::io("open", &path))?;
        let length = file.length().map_err(LogError::io("read", &path))?;
        let mut bytes = [0; HEADER as usize];
        let count = read_full(&*file, &mut bytes, 0).map_err(LogError::io("read", &path))?;
        match Header::decode(&bytes[..count]) {
            Ok(header) if header.sequence != sequence => return Err(damaged("its header names another segment")),
            Ok(header) => found.push(Found { header, length }),
            Err(BadHeader::Version(version)) => {
                return Err(LogError::Version { path, found: version, known: VERSION });
            }
            // No record is written before the header is durable, so this one never held anything.
            Err(BadHeader::Invalid(_)) if i + 1 == sequences.len() && length <= HEADER => {
                tracing::warn!(path = %path.display(), "removing a segment whose creation was interrupted");
                files.remove(&path).map_err(LogError::io("remove", &path))?;
                files.sync_dir(dir).map_err(LogError::io("sync", dir))?;
            }
            Err(BadHeader::Invalid(what)) => return Err(damaged(what)),
        }
    }
    Ok(found)
}

/// The segments of the last epoch, and of those that it went on from, that follow one another without a hole up to the last one. Others are leftovers of a
/// retention or of a new epoch that was interrupted, or an operator moved one away: they are removed, and whoever was there
/// is told of a gap.
fn keep_one_history(found: Vec<Found>, notes: &Notes, files: &dyn Files, dir: &Path) -> Result<Vec<Found>, LogError> {
    let follows = |before: &Header, after: &Header| match before.epoch == after.epoch {
        true => before.sequence + 1 == after.sequence,
        false => notes.links(before.epoch, after.epoch, after.base),
    };
    let (mut kept, mut leftovers): (Vec<Found>, Vec<Found>) = (Vec::new(), Vec::new());
    for next in found {
        // What the next history does not share, left by a fork that was interrupted.
        while let Some(last) = kept.pop_if(|last| {
            last.header.epoch != next.header.epoch
                && last.header.base >= next.header.base
                && follows(&last.header, &next.header)
        }) {
            leftovers.push(last);
        }
        if kept.last().is_some_and(|last| !follows(&last.header, &next.header)) {
            leftovers.append(&mut kept);
        }
        kept.push(next);
    }
    let found = kept;
    for leftover in leftovers {
        let path = segment::path(dir, leftover.header.sequence);
        tracing::warn!(path = %path.display(), "removing a segment that no kept segment follows");
        if let Err(error) = files.remove(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove it");
        }
    }
    for pair in found.windows(2) {
        if pair[0].header.base > pair[1].header.base {
            let path = segment::path(dir, pair[1].header.sequence);
            return Err(LogError::Damaged { path, offset: 0, what: "it begins before the segment before it" });
        }
    }
    Ok(found)
}

/// What the last segment holds.
struct Scanned {
    end: Lsn,
    /// Bytes up to the end of the last good record.
    length: u64,
    /// Bytes that a record proves to have been durable.
    proven: u64,
    /// Bytes of the file.
    file_length: u64,
    definitions: Definitions,
}

fn scan_last(file: &Arc<dyn LogFile>, path: &Path, header: &Header, interner: &Interner) -> Result<Scanned, LogError> {
    let file_length = file.length().map_err(LogError::io("read", path))?;
    let mut scanner = Scanner::new(file.clone(), path.to_owned(), header.marker, HEADER, false);
    scanner.set_limit(file_length);
    let (mut end, mut proven, mut definitions) = (header.base, HEADER, Definitions::default());
    let bad = loop {
        match scanner.next() {
            Ok(None) => break None,
            Ok(Some(record)) => {
                let damaged = |what| LogError::Damaged { path: path.to_owned(), offset: record.offset, what };
                if record.entry.end() <= end {
                    return Err(damaged("the record's position is not after the one before it"));
                }
                end = record.entry.end();
                proven = proven.max(record.synced);
                if let Entry::Transaction(head, _) = record.entry {
                    definitions.resolve(head.relations, interner).map_err(damaged)?;
                }
            }
            Err(ScanError::Bad(what)) => break Some(what),
            Err(error) => return Err(scanner.error(error)),
        }
    };
    let length = scanner.offset();
    if let Some(what) = bad {
        if was_durable(&mut scanner, length).map_err(LogError::io("read", path))? {
            return Err(LogError::Damaged { path: path.to_owned(), offset: length, what });
        }
        tracing::warn!(
            path = %path.display(), offset = length, bytes = file_length - length, end = %end, what,
            "cutting the torn end of the log; it was never confirmed to Postgres"
        );
    }
    Ok(Scanned { end, length, proven, file_length, definitions })
}

/// Whether a whole record behind the bad one at `bad` says that the bytes there had been durable.
fn was_durable(scanner: &mut Scanner, bad: u64) -> io::Result<bool> {
    let mut from = bad + 1;
    while let Some(candidate) = scanner.find_marker(from)? {
        scanner.seek(candidate);
        from = match scanner.next() {
            Ok(Some(record)) if record.synced > bad => return Ok(true),
            Ok(_) => scanner.offset(),
            Err(ScanError::Io(error)) => return Err(error),
            Err(ScanError::Bad(_)) => candidate + 1,
        };
    }
    Ok(false)
}

/// Cuts what is behind the last good record and makes the rest durable. The records behind the proven part are written once
/// more: if an fsync of them failed, the page cache shows them and the disk doesn't have them.
fn make_durable(file: &Arc<dyn LogFile>, path: &Path, scanned: &Scanned) -> Result<(), LogError> {
    if scanned.file_length > scanned.length {
        file.truncate(scanned.length).map_err(LogError::io("cut the torn end of", path))?;
    }
    let mut chunk = vec![0; 256 * 1024];
    // While nothing is proven, not even the header is.
    let mut at = if scanned.proven == HEADER { 0 } else { scanned.proven };
    while at < scanned.length {
        let want = chunk.len().min(usize::try_from(scanned.length - at).unwrap_or(usize::MAX));
        let count = file.read_at(&mut chunk[..want], at).map_err(LogError::io("read", path))?;
        if count == 0 {
            return Err(LogError::Damaged { path: path.to_owned(), offset: at, what: "the file became shorter" });
        }
        file.write_at(&chunk[..count], at).map_err(LogError::io("rewrite the end of", path))?;
        at += count as u64;
    }
    file.sync_data().map_err(LogError::io("sync", path))
}
