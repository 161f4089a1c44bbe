//! Going on in another history from a place within this one: what lies behind it is not so any more, what lies before it is
//! shared. A standby that was promoted had not got all that the server before it had sent us.
//!
//! The segments before the place stay under the name of the history that wrote them; the notes say that they belong to this
//! one as well. They are durable before the first segment of the new history is made, so a crash in between leaves a log of
//! the old one, which whoever compares it with the database will not go on with.

use super::segment::HEADER;
use super::{Epoch, LogError, LogWriter};
use crate::change::Lsn;
use crate::log::scan::Scanner;

/// Where a log can be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    /// The end of the last record that stays, or where its segment begins.
    at: Lsn,
    /// The segment that it is in.
    sequence: u64,
    /// Bytes of it that stay.
    length: u64,
}

impl LogWriter {
    /// The last position at or before `limit` that a record of the log ends at, from which [`LogWriter::fork`] can go on;
    /// `None` if the whole log lies behind the limit. Blocking.
    pub fn last_at_or_before(&self, limit: Lsn) -> Result<Option<Lsn>, LogError> {
        if limit >= self.end() {
            return Ok(Some(self.end()));
        }
        Ok(self.cut(limit)?.map(|cut| cut.at))
    }

    fn cut(&self, limit: Lsn) -> Result<Option<Cut>, LogError> {
        let (header, length) = {
            let state = self.shared.state();
            let after = state.segments.partition_point(|s| s.header.base <= limit);
            let Some(segment) = after.checked_sub(1).and_then(|at| state.segments.get(at)) else { return Ok(None) };
            (segment.header, segment.length)
        };
        let path = self.shared.path(header.sequence);
        let file = self.shared.files.open(&path).map_err(LogError::io("open", &path))?;
        let mut scanner = Scanner::new(file, path, header.marker, HEADER, false);
        scanner.set_limit(length);
        let mut cut = Cut { at: header.base, sequence: header.sequence, length: HEADER };
        // Behind the base of the next segment this one may hold what was taken back.
        while let Some(record) = scanner.next().map_err(|error| scanner.error(error))? {
            let end = record.entry.end();
            if end > limit || end <= cut.at {
                break;
            }
            (cut.at, cut.length) = (end, scanner.offset());
        }
        Ok(Some(cut))
    }

    /// Goes on as `epoch` from `at`, a position given by [`LogWriter::last_at_or_before`]. Positions up to `shared`, which may lie
    /// ahead, mean the same in both histories. Readers up to there notice nothing,
    /// those beyond get a [`super::Read::Gap`] back to it. Durable when it returns. Blocking.
    pub fn fork(&mut self, epoch: Epoch, at: Lsn, shared: Lsn) -> Result<(), LogError> {
        let Some(before) = self.epoch() else { return Err(LogError::NoEpoch) };
        let Some(cut) = self.cut(at)?.filter(|cut| cut.at == at) else {
            return Err(LogError::Unstorable("no record ends where the other history begins"));
        };
        let until = shared.max(at);
        let shared = self.shared.clone();
        let held = shared.hold_sync();
        self.change_notes(|notes| notes.fork(before, epoch, until))?;
        let segment = self.create_segment(epoch, at)?;
        let mut removed = Vec::new();
        shared.publish(|state| {
            // A segment that would begin there holds nothing that stays.
            while state.segments.back().is_some_and(|last| last.header.base >= at) {
                removed.extend(state.segments.pop_back().map(|last| last.header.sequence));
            }
            if let Some(last) = state.segments.back_mut().filter(|last| last.header.sequence == cut.sequence) {
                last.length = cut.length;
            }
            state.generation += 1;
            state.fork = Some((state.generation, at));
            state.cuts += 1;
            state.streamed = Lsn::ZERO;
            state.epoch = Some(epoch);
            (state.end, state.durable) = (at, at);
            state.floor = state.floor.min(at);
            state.tail.truncate(at);
            state.needs_repair = false;
            state.install(segment);
        });
        drop(held);
        self.remove_segments(&removed);
        Ok(())
    }
}
