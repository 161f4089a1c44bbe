//! Reading the journal while it is written: whole files, oldest first, each up to its first byte that is no record.

use std::io;
use std::path::Path;

use super::codec::{self, HEADER};
use super::note::Note;
use super::segments;
use crate::change::Lsn;
use crate::log::Files;

/// From when on the journal tells anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extent {
    /// Milliseconds since 1970; `None` if there is no journal.
    pub begins: Option<i64>,
    /// The position that the hub began after, if the journal begins with a run's start: what is above it is within.
    pub from: Option<Lsn>,
    /// Bytes read.
    pub bytes: u64,
}

/// More than any file has.
const MAX_FILE: u64 = 64 << 20;

struct Reading<'a> {
    each: &'a mut dyn FnMut(i64, Note),
    extent: Extent,
    /// The time of the latest note.
    latest: Option<i64>,
    /// Something is missing since then.
    hole: Option<i64>,
    /// The run before has said goodbye, or there was none.
    ended: bool,
}

pub(super) fn read(files: &dyn Files, dir: &Path, each: &mut dyn FnMut(i64, Note)) -> io::Result<Extent> {
    let numbers = match segments::numbers(files, dir) {
        Ok(numbers) => numbers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Extent::default()),
        Err(error) => return Err(error),
    };
    let mut reading = Reading { each, extent: Extent::default(), latest: None, hole: None, ended: true };
    let mut before = None;
    for number in numbers {
        let bytes = match file(files, &segments::path(dir, number)) {
            Ok(bytes) => bytes,
            // Removed as the oldest, just now: the journal begins with the next one.
            Err(error) if error.kind() == io::ErrorKind::NotFound && reading.latest.is_none() => continue,
            Err(error) => return Err(error),
        };
        if before.is_some_and(|before: u64| before + 1 != number) {
            reading.missing();
        }
        before = Some(number);
        reading.file(&bytes);
    }
    Ok(reading.extent)
}

fn file(files: &dyn Files, path: &Path) -> io::Result<Vec<u8>> {
    let file = files.open(path)?;
    let length = file.length()?.min(MAX_FILE) as usize;
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        match file.read_at(&mut bytes[at..], at as u64)? {
            0 => break,
            count => at += count,
        }
    }
    bytes.truncate(at);
    Ok(bytes)
}

impl Reading<'_> {
    /// Notes may be missing from here on.
    fn missing(&mut self) {
        self.hole = self.hole.or(self.latest);
    }

    fn file(&mut self, bytes: &[u8]) {
        self.extent.bytes += bytes.len() as u64;
        let Some(created) = codec::decode_header(bytes) else { return self.missing() };
        if self.extent.begins.is_none() {
            self.extent.begins = Some(created);
        }
        self.latest = self.latest.or(Some(created));
        let mut rest = &bytes[HEADER..];
        let mut first = self.extent.bytes == bytes.len() as u64;
        while let Some((length, time, note)) = codec::decode(rest) {
            rest = &rest[length..];
            if let (true, Note::Started { position }) = (first, &note) {
                self.extent.from = Some(*position);
            }
            first = false;
            self.note(time, note);
        }
        if !rest.is_empty() {
            // Of the file that is being written this is what a write under way looks like, and nothing follows it.
            self.missing();
        }
    }

    fn note(&mut self, time: i64, note: Note) {
        if matches!(note, Note::Started { .. }) && !self.ended {
            self.missing();
        }
        if let Some(from) = self.hole.take() {
            (self.each)(time, Note::Hole { from, to: time, lost: 0 });
        }
        self.ended = matches!(note, Note::Stopped);
        self.latest = Some(time);
        (self.each)(time, note);
    }
}
