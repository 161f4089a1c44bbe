//! What is remembered beside the records: the histories that this one goes on from, and what ingest wants to know of the slot
//! after a restart. One small file, replaced whole.
//!
//! A new file is written and made durable before the one before it goes; the highest number with a good checksum counts. A
//! file that can't be read is as good as none: who is told less than he asked begins a new history, which is loud and safe.
//!
//! Rejected: a field in the segment's header, which would be another format for something that changes every minute.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::Files;
use super::segment::read_full;
use super::{Epoch, LogError};
use crate::change::Lsn;

const SUFFIX: &str = ".notes";
/// More is not ours.
const MAX_BYTES: u64 = 1 << 20;
/// Ancestors that are remembered; the oldest go first.
const MAX_PARENTS: usize = 16;

/// A history that another one went on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parent {
    pub(super) of: Name,
    /// The one that went on.
    pub(super) child: Name,
    /// Up to here they are the same.
    pub(super) until: u64,
}

/// An epoch, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Name(u64, u64, u64);

impl From<Epoch> for Name {
    fn from(epoch: Epoch) -> Name {
        Name(epoch.system_identifier, (epoch.incarnation >> 64) as u64, epoch.incarnation as u64)
    }
}

impl From<Name> for Epoch {
    fn from(Name(system_identifier, high, low): Name) -> Epoch {
        Epoch { system_identifier, incarnation: u128::from(high) << 64 | u128::from(low) }
    }
}

/// All that is remembered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Notes {
    /// Oldest first; each is the child of the one before.
    pub(super) parents: Vec<Parent>,
    /// Ingest's own.
    pub(super) slot: Value,
    #[serde(skip)]
    number: u64,
}

impl Notes {
    /// Whether `after` goes on from `before`, and from no later than `at`.
    pub(super) fn links(&self, before: Epoch, after: Epoch, at: Lsn) -> bool {
        let link = |p: &Parent| p.of == before.into() && p.child == after.into() && at.0 <= p.until;
        self.parents.iter().any(link)
    }

    /// Up to where the history of this tag is the same as that of `epoch`; `None` if it is another one.
    pub(super) fn shared(&self, epoch: Epoch, tag: u64) -> Option<Lsn> {
        let (mut child, mut until) = (Name::from(epoch), u64::MAX);
        for parent in self.parents.iter().rev() {
            if parent.child != child {
                return None;
            }
            until = until.min(parent.until);
            if Epoch::from(parent.of).tag() == tag {
                return Some(Lsn(until));
            }
            child = parent.of;
        }
        None
    }

    /// Notes that `child` goes on from `of`, with which it shares everything up to `until`.
    pub(super) fn fork(&mut self, of: Epoch, child: Epoch, until: Lsn) {
        if self.parents.last().is_some_and(|last| last.child != of.into()) {
            self.parents.clear();
        }
        self.parents.push(Parent { of: of.into(), child: child.into(), until: until.0 });
        let over = self.parents.len().saturating_sub(MAX_PARENTS);
        self.parents.drain(..over);
    }

    /// What is there; nothing if it can't be read.
    pub(super) fn load(files: &dyn Files, dir: &Path) -> Result<Notes, LogError> {
        let mut numbers = numbers(files, dir)?;
        numbers.sort_unstable();
        let last = numbers.last().copied().unwrap_or(0);
        for number in numbers.into_iter().rev() {
            let path = dir.join(file_name(number));
            match read(files, &path) {
                Some(notes) => return Ok(Notes { number: last, ..notes }),
                None => {
                    tracing::warn!(path = %path.display(), "what was noted beside the log can't be read; passed over")
                }
            }
        }
        Ok(Notes { number: last, ..Notes::default() })
    }

    /// Makes them durable. On an error what was noted before still is.
    pub(super) fn store(&mut self, files: &dyn Files, dir: &Path) -> Result<(), LogError> {
        let number = self.number + 1;
        let path = dir.join(file_name(number));
        // A map with text keys and a few numbers can always be written.
        let mut bytes = serde_json::to_vec(&self).unwrap_or_default();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let file = files.create(&path).map_err(LogError::io("create", &path))?;
        file.write_at(&bytes, 0).map_err(LogError::io("write", &path))?;
        file.sync_data().map_err(LogError::io("sync", &path))?;
        files.sync_dir(dir).map_err(LogError::io("sync", dir))?;
        self.number = number;
        for old in numbers(files, dir)?.into_iter().filter(|old| *old < number) {
            let path = dir.join(file_name(old));
            if let Err(error) = files.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a file that is no longer needed");
            }
        }
        Ok(())
    }
}

fn file_name(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

fn numbers(files: &dyn Files, dir: &Path) -> Result<Vec<u64>, LogError> {
    let names = files.list(dir).map_err(LogError::io("list", dir))?;
    let number = |name: &String| {
        let number = u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok()?;
        (file_name(number) == *name).then_some(number)
    };
    Ok(names.iter().filter_map(number).collect())
}

fn read(files: &dyn Files, path: &Path) -> Option<Notes> {
    let file = files.open(path).ok()?;
    let length = file.length().ok().filter(|length| *length <= MAX_BYTES)?;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    if read_full(&*file, &mut bytes, 0).ok()? < bytes.len() {
        return None;
    }
    let (text, crc) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(text).to_le_bytes() != *crc {
        return None;
    }
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DiscardingFiles, Torn};
    use super::*;

    fn epoch(incarnation: u128) -> Epoch {
        Epoch { system_identifier: u64::MAX, incarnation }
    }

    #[test]
    fn what_was_noted_last_survives_a_crash_and_a_torn_file_leaves_the_one_before() {
        let (disk, dir) = (DiscardingFiles::new(), Path::new("/log"));
        disk.create_dir(dir).expect("a folder");
        assert_eq!(Notes::load(&disk, dir).expect("none"), Notes::default());
        let mut notes = Notes { slot: "first".into(), ..Notes::default() };
        notes.store(&disk, dir).expect("stored");
        notes.fork(epoch(1 << 70), epoch(2), Lsn(5));
        notes.store(&disk, dir).expect("stored");
        assert_eq!(disk.names(dir).len(), 1, "the one before is gone");
        disk.crash(Torn::Lost);
        assert_eq!(Notes::load(&disk, dir).expect("read"), notes);
        let torn = disk.create(&dir.join(file_name(9))).expect("a file");
        torn.write_at(b"{", 0).expect("written");
        let found = Notes::load(&disk, dir).expect("read");
        assert_eq!((&found.slot, found.number), (&notes.slot, 9), "the next one gets another name");
    }

    #[test]
    fn a_history_shares_with_its_ancestors_what_lies_before_every_fork_between() {
        let mut notes = Notes::default();
        notes.fork(epoch(1), epoch(2), Lsn(100));
        notes.fork(epoch(2), epoch(3), Lsn(80));
        let shared = |of, tag: u128| notes.shared(epoch(of), epoch(tag).tag());
        assert_eq!((shared(3, 2), shared(3, 1), shared(3, 9)), (Some(Lsn(80)), Some(Lsn(80)), None));
        assert_eq!((shared(2, 1), shared(9, 2)), (None, None), "the last link is of another history");
        assert!(
            notes.links(epoch(1), epoch(2), Lsn(100))
                && !notes.links(epoch(1), epoch(3), Lsn(100))
                && !notes.links(epoch(1), epoch(2), Lsn(101))
        );
        notes.fork(epoch(7), epoch(8), Lsn(200));
        assert_eq!(notes.parents.len(), 1, "what is not an ancestor is forgotten");
    }
}
