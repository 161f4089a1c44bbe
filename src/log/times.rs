//! From a commit time to a place in the log.
//!
//! Commit times are not in commit order: they are taken before the commit is written, and clocks are set back. So the place is
//! that of the *first* transaction of the log that committed at or after the time, found by reading, and everything before it
//! committed earlier: at least once, never less. Each closed segment is read once at most; its newest commit time is kept.
//!
//! Rejected: an index by time, which would need commit times to be in order; choosing the segment by its creation, which
//! trusts two machines' clocks to be equal.

use std::io;
use std::time::Duration;

use super::scan::{Entry, Scanner};
use super::segment::{HEADER, Header};
use super::{Log, LogError};
use crate::change::{Lsn, Position, Timestamp};

/// The relay's clock and the database's are not further apart than this. Who serves tokens by one and commits by the other
/// has other troubles first.
const SKEW_MILLIS: i64 = 3_600_000;
/// The newest commit time of a segment without a transaction.
const NOTHING: Timestamp = Timestamp(i64::MIN);
/// Retention may remove segments while they are read.
const TRIES: u32 = 5;

/// Whether the log can go on from a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Everything after it is here, or yet to come.
    Here,
    /// Some of what comes after it was removed.
    Expired,
    /// It is in a history that is not ours.
    Diverged,
}

/// A segment as of one moment.
struct Segment {
    header: Header,
    length: u64,
    /// Of the next one, which was created when all that is in this one was there; `None` for the active one.
    next: Option<Header>,
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
    /// Whether everything after this place of the history with that [`super::Epoch::tag`] can be read. A place ahead of the end
    /// is here: its reader waits.
    pub fn place(&self, tag: u64, position: Position) -> Place {
        if !self.shares(tag, position.lsn) {
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
    /// call may read all of the log.
    pub fn position_at(&self, time: Timestamp) -> Result<Lsn, LogError> {
        for _ in 1..TRIES {
            match self.search(time) {
                Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                done => return done,
            }
        }
        self.search(time)
    }

    fn search(&self, time: Timestamp) -> Result<Lsn, LogError> {
        let (segments, end) = {
            let state = self.shared.state();
            let nexts = state.segments.iter().skip(1).map(|s| Some(s.header)).chain([None]);
            let segments = state.segments.iter().zip(nexts);
            let segments: Vec<Segment> =
                segments.map(|(s, next)| Segment { header: s.header, length: s.length, next }).collect();
            (segments, state.end)
        };
        let Some(first) = segments.first() else { return Ok(end) };
        let floor = first.header.base;
        // Something of the log committed before the time: then so had what was removed.
        let mut earlier = is_surely_after(time, first.header.created_millis);
        for segment in &segments {
            let known = self.shared.newest().get(&segment.header.sequence).copied();
            if known.is_some_and(|newest| newest < time) {
                earlier |= known > Some(NOTHING);
                continue;
            }
            if segment.next.is_some_and(|next| is_surely_after(time, next.created_millis)) {
                continue;
            }
            if let Some(found) = self.search_segment(segment, time, &mut earlier)? {
                return Ok(if earlier { found } else { Lsn(floor.0.saturating_sub(1)) });
            }
        }
        Ok(if earlier { end } else { Lsn(floor.0.saturating_sub(1)) })
    }

    /// Where the record before the first that is wanted ends; `None` if there is none in this segment, which then is noted.
    fn search_segment(&self, segment: &Segment, time: Timestamp, earlier: &mut bool) -> Result<Option<Lsn>, LogError> {
        let header = &segment.header;
        let path = self.shared.path(header.sequence);
        let file = self.shared.files.open(&path).map_err(LogError::io("open", &path))?;
        let mut scanner = Scanner::new(file, path, header.marker, HEADER, false);
        scanner.set_limit(segment.length);
        let (mut before, mut newest) = (header.base, NOTHING);
        while let Some(record) = scanner.next().map_err(|error| scanner.error(error))? {
            let end = record.entry.end();
            // Behind the base of the next segment may be what was taken back.
            if segment.next.is_some_and(|next| end > next.base) {
                break;
            }
            if let Entry::Transaction(head, _) = &record.entry {
                if head.commit_time >= time {
                    return Ok(Some(before));
                }
                newest = newest.max(head.commit_time);
                *earlier = true;
            }
            before = end;
        }
        if segment.next.is_some() {
            self.shared.newest().insert(header.sequence, newest);
        }
        Ok(None)
    }
}
