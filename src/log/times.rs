//! From a commit time to a place in the log, and from a place to whether the log can go on from it.
//!
//! Commit times are not in commit order: they are taken before the commit is written, and clocks are set back. So the place is
//! that of the *first* transaction of the log that committed at or after the time, and everything before it committed earlier:
//! at least once, never less. The newest time so far only grows along the log, so it can be searched by halves: it is noted
//! each mebibyte. The log is read once for that, when somebody asks for a time, and from then on only what is new in it.
//!
//! Rejected: choosing a segment by its creation, which trusts two machines' clocks to be equal; an index file, see the module.

use std::io;
use std::time::Duration;

use super::scan::{Entry, Scanner};
use super::segment::{HEADER, Header};
use super::{Log, LogError};
use crate::change::{Lsn, Position, Timestamp};

/// The relay's clock and the database's are not further apart than this. Who serves tokens by one and commits by the other
/// has other troubles first.
const SKEW_MILLIS: i64 = 3_600_000;
/// The newest commit time where there was none.
const NOTHING: Timestamp = Timestamp(i64::MIN);
/// Bytes between two notes.
const STEP: u64 = 1 << 20;
/// Retention may remove segments while they are read.
const TRIES: u32 = 5;

/// Whether the log can go on from a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Everything after it is here, or yet to come.
    Here,
    /// Some of what comes after it was removed.
    Expired,
    /// It is in a history that is not ours, or in a part of ours that was lost.
    Diverged,
}

/// What is known of the commit times in the log. Of one state of it: what is taken back ends it.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// Of the log when this was begun: its generation, and its cuts.
    of: (u64, u64),
    /// Ascending.
    notes: Vec<Note>,
    /// Where to read on.
    next: Option<Note>,
}

/// Before a record.
#[derive(Debug, Clone, Copy)]
struct Note {
    sequence: u64,
    /// Where the record begins.
    offset: u64,
    /// Where the one before it ends.
    before: Lsn,
    /// The newest commit time up to there.
    newest: Timestamp,
}

/// A segment as of one moment.
struct Segment {
    header: Header,
    length: u64,
    /// The base of the next one; `None` for the active one.
    next: Option<Lsn>,
}

/// The part of a segment's bytes that comes after a position, as if its transactions were all of one size.
fn share(length: u64, base: u64, next: u64, position: u64) -> u64 {
    let (all, left) = (next.saturating_sub(base), next.saturating_sub(position.max(base)));
    // Of two 64-bit numbers, the product fits.
    let part = u128::from(length) * u128::from(left) / u128::from(all.max(1));
    u64::try_from(part).unwrap_or(length)
}

/// Whether whatever was in the log at this moment of our clock had committed before that time of the database's.
fn is_surely_after(time: Timestamp, created_millis: i64) -> bool {
    time.unix_micros().div_euclid(1000) > created_millis.saturating_add(SKEW_MILLIS)
}

impl Log {
    /// Whether everything after this place of the history with that [`super::Epoch::tag`] can be read. A place ahead of the end,
    /// but not of the server's WAL, is here: its reader waits.
    pub fn place(&self, tag: u64, position: Position) -> Place {
        // Beyond all that was ever written, in vain.
        if !self.shares(tag, position.lsn) || self.written().is_some_and(|written| position.lsn > written) {
            return Place::Diverged;
        }
        // Of a place within a transaction, the transaction is needed.
        let needed = if position.ordinal == u32::MAX { position.lsn.0 } else { position.lsn.0.saturating_sub(1) };
        if needed < self.floor().0 { Place::Expired } else { Place::Here }
    }

    /// What the log keeps: bytes, and for how long.
    pub fn kept(&self) -> (u64, Duration) {
        (self.shared.config.retain_bytes, self.shared.config.retain_age)
    }

    /// About how many bytes of the log come after this position.
    pub fn bytes_since(&self, position: Lsn) -> u64 {
        let state = self.shared.state();
        let nexts = state.segments.iter().skip(1).map(|s| s.header.base).chain([state.end]);
        let segments = state.segments.iter().zip(nexts);
        segments.map(|(s, next)| share(s.length, s.header.base.0, next.0, position.0)).sum()
    }

    /// The place after which a [`super::Reader`] yields everything that committed at or after this time: below the floor if some
    /// of that may have been removed, or was never here; the end of the log for a time that has not come. Blocking: the first
    /// call reads all of the log. One at a time.
    pub fn position_at(&self, time: Timestamp) -> Result<Lsn, LogError> {
        for _ in 1..TRIES {
            match self.search(time) {
                Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        self.search(time)
    }

    /// The same, off the async threads.
    pub async fn find(&self, time: Timestamp) -> Result<Lsn, LogError> {
        // Never closed.
        let _one = self.shared.searching.acquire().await;
        let log = self.clone();
        tokio::task::spawn_blocking(move || log.position_at(time)).await.unwrap_or(Err(LogError::Aborted))
    }

    fn search(&self, time: Timestamp) -> Result<Lsn, LogError> {
        let mut times = self.shared.times();
        let (of, segments, end) = {
            let state = self.shared.state();
            let nexts = state.segments.iter().skip(1).map(|s| Some(s.header.base)).chain([None]);
            let segments = state.segments.iter().zip(nexts);
            let segments: Vec<Segment> =
                segments.map(|(s, next)| Segment { header: s.header, length: s.length, next }).collect();
            ((state.generation, state.cuts), segments, state.end)
        };
        let Some(first) = segments.first() else { return Ok(end) };
        if times.of != of {
            *times = Times { of, ..Times::default() };
        }
        times.forget(first.header.sequence);
        self.read_on(&mut times, &segments)?;
        let unknown = Lsn(first.header.base.0.saturating_sub(1));
        let Some(mut at) = times.before(time) else { return Ok(unknown) };
        let from = segments.iter().position(|segment| segment.header.sequence == at.sequence);
        for (nth, segment) in segments.iter().enumerate().skip(from.unwrap_or(segments.len())) {
            if Some(nth) != from {
                at = Note { sequence: segment.header.sequence, offset: HEADER, ..at };
            }
            let (stopped, found) = self.scan(segment, at, |_, newest| newest >= time)?;
            at = stopped;
            if found {
                break;
            }
        }
        // If nothing is known to have committed earlier, who knows what was before.
        let earlier = at.newest > NOTHING || is_surely_after(time, first.header.created_millis);
        Ok(if earlier { at.before } else { unknown })
    }

    /// Notes what is new in the log.
    fn read_on(&self, times: &mut Times, segments: &[Segment]) -> Result<(), LogError> {
        for segment in segments {
            let sequence = segment.header.sequence;
            let start = || Note { sequence, offset: HEADER, before: segment.header.base, newest: NOTHING };
            let from = match times.next {
                None => start(),
                Some(next) if next.sequence == sequence => next,
                Some(next) if next.sequence < sequence => Note { newest: next.newest, ..start() },
                Some(_) => continue,
            };
            let mut last = times.notes.last().filter(|note| note.sequence == sequence).map(|note| note.offset);
            let (end, _) = self.scan(segment, from, |before, _| {
                if last.is_none_or(|last| before.offset >= last + STEP) {
                    last = Some(before.offset);
                    times.notes.push(*before);
                }
                false
            })?;
            times.next = Some(end);
        }
        Ok(())
    }

    /// Reads a segment from a note on, up to its end or to the record that is wanted: which is asked with the place before it and
    /// the newest time with it. Returns the place before that record, or the end's; and whether there is one.
    fn scan(
        &self,
        segment: &Segment,
        from: Note,
        mut wanted: impl FnMut(&Note, Timestamp) -> bool,
    ) -> Result<(Note, bool), LogError> {
        let path = self.shared.path(segment.header.sequence);
        let file = self.shared.files.open(&path).map_err(LogError::io("open", &path))?;
        let mut scanner = Scanner::new(file, path, segment.header.marker, from.offset, false);
        scanner.set_limit(segment.length);
        let mut at = from;
        while let Some(record) = scanner.next().map_err(|error| scanner.error(error))? {
            let end = record.entry.end();
            // Behind the base of the next segment may be what was taken back.
            if segment.next.is_some_and(|next| end > next) {
                break;
            }
            let newest = match &record.entry {
                Entry::Transaction(head, _) => at.newest.max(head.commit_time),
                Entry::Advance(_) => at.newest,
            };
            if wanted(&at, newest) {
                return Ok((at, true));
            }
            at = Note { offset: scanner.offset(), before: end, newest, ..at };
        }
        Ok((at, false))
    }
}

impl Times {
    /// Segments before this one are gone. Of what they held, the newest time is kept; unless not all of it was read.
    fn forget(&mut self, first: u64) {
        if self.next.is_some_and(|next| next.sequence < first) {
            *self = Times { of: self.of, ..Times::default() };
        }
        let gone = self.notes.partition_point(|note| note.sequence < first);
        self.notes.drain(..gone);
    }

    /// The last note before which all committed earlier; `None` if there is none any more.
    fn before(&self, time: Timestamp) -> Option<Note> {
        if let Some(next) = self.next.filter(|next| next.newest < time) {
            return Some(next);
        }
        let after = self.notes.partition_point(|note| note.newest < time);
        after.checked_sub(1).and_then(|at| self.notes.get(at)).copied()
    }
}
