//! The journal's files: which there are, and the one that is written.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::JournalConfig;
use super::codec::{self, HEADER};
use crate::log::{Files, LogFile};

const SUFFIX: &str = ".journal";
/// Files that the journal is spread over; the oldest is removed whole.
const SEGMENTS: u64 = 16;
/// A file is not begun for less than this, if the journal may be larger.
const LEAST: u64 = 4096;

pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SUFFIX}"))
}

/// Numbers of the files, ascending.
pub(super) fn numbers(files: &dyn Files, dir: &Path) -> io::Result<Vec<u64>> {
    let number = |name: &String| u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok();
    let mut numbers: Vec<u64> = files.list(dir)?.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// A file that is not written any more.
struct Sealed {
    number: u64,
    bytes: u64,
    /// The time of its newest note; of one that an earlier run left, when this one found it.
    newest: i64,
}

/// The file that is written.
struct Active {
    number: u64,
    file: Arc<dyn LogFile>,
    /// Up to here it holds whole records.
    bytes: u64,
    created: i64,
    newest: i64,
}

/// All files. Every operation is blocking.
pub(super) struct Segments {
    config: JournalConfig,
    files: Arc<dyn Files>,
    sealed: VecDeque<Sealed>,
    active: Option<Active>,
    next: u64,
    /// What is there was looked at.
    opened: bool,
}

impl Segments {
    pub(super) fn new(config: JournalConfig, files: Arc<dyn Files>) -> Segments {
        Segments { config, files, sealed: VecDeque::new(), active: None, next: 0, opened: false }
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>() + self.active.as_ref().map_or(0, |a| a.bytes)
    }

    fn segment_bytes(&self) -> u64 {
        (self.config.bytes / SEGMENTS).clamp(LEAST, 8 << 20)
    }

    /// Appends whole records; after an error none of them is there.
    pub(super) fn append(&mut self, records: &[u8], now: i64) -> io::Result<()> {
        self.open(now)?;
        let length = records.len() as u64;
        let too_old = |active: &Active| now.saturating_sub(active.created) > self.age() / 8;
        let full = |active: &Active| active.bytes > HEADER as u64 && active.bytes + length > self.segment_bytes();
        if self.active.as_ref().is_some_and(|active| full(active) || too_old(active)) {
            self.seal();
        }
        self.make_room(length);
        if self.active.is_none() {
            self.begin(now)?;
        }
        let Some(active) = &mut self.active else { return Ok(()) };
        match active.file.write_at(records, active.bytes) {
            Ok(()) => {
                active.bytes += length;
                active.newest = now;
                Ok(())
            }
            Err(error) => {
                // What is left of it must not look like a record behind a later, shorter one.
                let _ = active.file.truncate(active.bytes);
                Err(error)
            }
        }
    }

    fn age(&self) -> i64 {
        i64::try_from(self.config.age.as_millis()).unwrap_or(i64::MAX)
    }

    fn open(&mut self, now: i64) -> io::Result<()> {
        if self.opened {
            return Ok(());
        }
        self.files.create_dir(&self.config.dir)?;
        for number in numbers(&*self.files, &self.config.dir)? {
            let bytes = self.files.open(&path(&self.config.dir, number)).and_then(|file| file.length());
            self.sealed.push_back(Sealed { number, bytes: bytes.unwrap_or(0), newest: now });
            self.next = number + 1;
        }
        self.opened = true;
        Ok(())
    }

    fn begin(&mut self, now: i64) -> io::Result<()> {
        let number = self.next;
        let path = path(&self.config.dir, number);
        let file = self.files.create(&path)?;
        if let Err(error) = file.write_at(&codec::header(now), 0) {
            let _ = self.files.remove(&path);
            return Err(error);
        }
        self.next += 1;
        self.active = Some(Active { number, file, bytes: HEADER as u64, created: now, newest: now });
        Ok(())
    }

    fn seal(&mut self) {
        if let Some(active) = self.active.take() {
            self.sealed.push_back(Sealed { number: active.number, bytes: active.bytes, newest: active.newest });
        }
    }

    /// Removes the oldest files until so many bytes more are within the bound.
    fn make_room(&mut self, more: u64) {
        let more = more + HEADER as u64;
        while self.bytes() + more > self.config.bytes && self.remove_oldest() {}
    }

    /// Removes the files that are too old.
    pub(super) fn expire(&mut self, now: i64) {
        let age = self.age();
        if self.active.as_ref().is_some_and(|active| now.saturating_sub(active.newest) > age) {
            self.seal();
        }
        while self.sealed.front().is_some_and(|oldest| now.saturating_sub(oldest.newest) > age) {
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) -> bool {
        let Some(oldest) = self.sealed.pop_front() else { return false };
        if let Err(error) = self.files.remove(&path(&self.config.dir, oldest.number)) {
            tracing::debug!(%error, "an old file of the journal could not be removed");
        }
        true
    }
}
