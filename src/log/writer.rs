//! Appending. There is one writer, and nothing it does waits for a reader.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Instant;

use super::codec::{self, FRAME, Frame, Kind, TRAILER};
use super::files::LogFile;
use super::notes::Notes;
use super::relations::Dictionary;
use super::segment::{self, HEADER, Header, SegmentRange};
use super::state::{Segment, Shared};
use super::tail::Tail;
use super::{Epoch, LogError};
use crate::change::{Body, Lsn, Transaction};

/// A body up to this is copied behind its head, so that the record is one write; a larger one is written from where it is.
const ONE_WRITE: u64 = 256 * 1024;

/// The segment being written.
pub(super) struct Active {
    pub(super) file: Arc<dyn LogFile>,
    pub(super) header: Header,
    /// Where the next record begins.
    pub(super) offset: u64,
    pub(super) dictionary: Dictionary,
}

/// The one who appends. Owns the folder: while it lives, nobody else can open the log.
pub struct LogWriter {
    pub(super) shared: Arc<Shared>,
    active: Option<Active>,
    /// A file of the next sequence number may lie there: the active segment may not grow before it is replaced.
    must_roll: bool,
    buffer: Vec<u8>,
    numbers: Vec<(u32, bool)>,
    _lock: Box<dyn Send + Sync>,
}

impl LogWriter {
    pub(super) fn new(shared: Arc<Shared>, lock: Box<dyn Send + Sync>, active: Option<Active>) -> LogWriter {
        LogWriter { shared, active, must_roll: false, buffer: Vec::new(), numbers: Vec::new(), _lock: lock }
    }

    /// The history being recorded; `None` before the first.
    pub fn epoch(&self) -> Option<Epoch> {
        self.active.as_ref().map(|a| a.header.epoch)
    }

    /// The position up to which the log is complete, durable or not.
    pub fn end(&self) -> Lsn {
        self.shared.state().end
    }

    /// Starts another history at `start`: the segments of the one before are removed, and readers of it get a
    /// [`super::Read::Gap`]. Durable when it returns. Also ends the need for [`LogWriter::repair`].
    pub fn begin_epoch(&mut self, epoch: Epoch, start: Lsn) -> Result<(), LogError> {
        let shared = self.shared.clone();
        let held = shared.hold_sync();
        let segment = self.create_segment(epoch, start)?;
        if !shared.state().notes.parents.is_empty()
            && let Err(error) = self.change_notes(|notes| notes.parents.clear())
        {
            // They name another child, so nobody takes them for this one's.
            tracing::warn!(error = crate::error::chain(&error), "the histories before this one can't be forgotten");
        }
        let mut old = Vec::new();
        shared.publish(|state| {
            old.extend(state.segments.drain(..).map(|s| s.header.sequence));
            state.generation += 1;
            state.cuts += 1;
            state.streamed = Lsn::ZERO;
            state.epoch = Some(epoch);
            (state.floor, state.end, state.durable) = (start, start, start);
            state.written = None;
            state.tail = Tail::new(start, shared.config.tail_bytes);
            state.needs_repair = false;
            state.install(segment);
        });
        drop(held);
        // The new segment's header already says that these are of the past; recovery would remove them too.
        self.remove_segments(&old);
        Ok(())
    }

    /// What ingest has noted of its slot; null before the first time.
    pub fn slot_notes(&self) -> serde_json::Value {
        self.shared.state().notes.slot.clone()
    }

    /// Replaces it; durable when this returns, and unchanged on an error. Blocking.
    pub fn set_slot_notes(&mut self, slot: serde_json::Value) -> Result<(), LogError> {
        if self.shared.state().notes.slot == slot {
            return Ok(());
        }
        self.change_notes(|notes| notes.slot = slot)
    }

    /// Changes what is noted, on the disk first.
    pub(super) fn change_notes(&mut self, change: impl FnOnce(&mut Notes)) -> Result<(), LogError> {
        let mut notes = self.shared.state().notes.clone();
        change(&mut notes);
        notes.store(&*self.shared.files, &self.shared.config.dir)?;
        self.shared.state().notes = notes;
        Ok(())
    }

    /// Writes one transaction; readable when this returns, not durable. Skipped (`None`) if the log is complete beyond it.
    /// Returns the same transaction, or for a spilled one a transaction whose body is read from the segment, so that the
    /// spill can go. After an error nothing of it is readable; if it could not be cut off either, and after a failed sync,
    /// everything is refused until [`LogWriter::repair`].
    pub fn append(&mut self, transaction: &Arc<Transaction>) -> Result<Option<Arc<Transaction>>, LogError> {
        if transaction.end_lsn <= self.end() {
            return Ok(None);
        }
        let started = Instant::now();
        let size = transaction.body.len();
        let (length, stored) = self.attempt(size, |writer, active, synced| {
            let before_body = writer.encode_head(active, transaction, synced)?;
            let stored = match &transaction.body {
                Body::Memory(body) => {
                    writer.write_memory(active, body)?;
                    transaction.clone()
                }
                Body::Spilled(body) => {
                    writer.write_spilled(active, &**body)?;
                    let (file, offset) = (active.file.clone(), active.offset + before_body);
                    let body = Body::Spilled(Arc::new(SegmentRange { file, offset, length: size }));
                    Arc::new(Transaction { body, ..Transaction::clone(transaction) })
                }
            };
            Ok((before_body + size + TRAILER as u64, stored))
        })?;
        for ((_, new), relation) in self.numbers.iter().zip(&transaction.relations) {
            if *new {
                self.shared.interner.adopt(relation);
            }
        }
        self.shared.appended(length, transaction.end_lsn, Some(&stored));
        let metrics = &self.shared.metrics;
        metrics.log_append.observe(started.elapsed().as_secs_f64());
        let since_commit = self.shared.clock.unix_millis() - transaction.commit_time.unix_micros().div_euclid(1000);
        metrics.commit_to_append.observe(since_commit.max(0) as f64 / 1000.0);
        Ok(Some(stored))
    }

    /// Records that the stream is complete up to `lsn` without a transaction (an idle keepalive). Nothing if it already is.
    pub fn advance(&mut self, lsn: Lsn) -> Result<(), LogError> {
        if lsn <= self.end() {
            return Ok(());
        }
        let (length, ()) = self.attempt(0, |writer, active, synced| {
            let length = (FRAME + 8 + TRAILER) as u64;
            writer.buffer.clear();
            let frame = Frame { marker: active.header.marker, kind: Kind::Advance, length, synced };
            frame.encode(&mut writer.buffer);
            writer.buffer.extend_from_slice(&lsn.0.to_le_bytes());
            let crc = crc32c::crc32c(&writer.buffer);
            writer.buffer.extend_from_slice(&crc.to_le_bytes());
            writer.write(active, &writer.buffer, active.offset)?;
            Ok((length, ()))
        })?;
        self.shared.appended(length, lsn, None);
        Ok(())
    }

    /// Gets the log going again after [`LogError::NeedsRepair`]: it goes back to what is durable, in a new segment, and
    /// returns that position, from which the stream must be read again. Does nothing if nothing is wrong. Readers who were
    /// further wait until the stream has passed their position again; the positions are the same.
    pub fn repair(&mut self) -> Result<Lsn, LogError> {
        let shared = self.shared.clone();
        let _held = shared.hold_sync();
        let (durable, synced, epoch) = {
            let state = shared.state();
            let Some(epoch) = state.epoch.filter(|_| state.needs_repair) else { return Ok(state.end) };
            (state.durable, state.synced, epoch)
        };
        if let Some(active) = &self.active {
            // Only to give the room back: the next segment's base says where this one ends, even if this fails.
            if let Err(error) = active.file.truncate(synced) {
                tracing::warn!(%error, segment = active.header.sequence, "cannot cut what was not durable");
            }
        }
        let segment = self.create_segment(epoch, durable)?;
        shared.publish(|state| {
            if let Some(old) = state.segments.back_mut() {
                old.length = synced;
            }
            state.cuts += 1;
            state.streamed = Lsn::ZERO;
            // Its places were given out.
            state.written = state.written.map(|written| written.max(state.end));
            state.end = durable;
            state.tail.truncate(durable);
            state.needs_repair = false;
            state.install(segment);
        });
        tracing::warn!(position = %durable, "the log went back to its durable position after a failed write");
        Ok(durable)
    }

    /// Runs the writing of one record of about `size` bytes at the end of the active segment, which may first have to be
    /// followed by a new one. `write` returns the record's length. Returns the segment's length after it.
    fn attempt<T>(
        &mut self,
        size: u64,
        write: impl FnOnce(&mut LogWriter, &mut Active, u64) -> Result<(u64, T), LogError>,
    ) -> Result<(u64, T), LogError> {
        let metrics = self.shared.metrics.clone();
        let result = self.make_room(size).and_then(|()| {
            let mut active = self.active.take().ok_or(LogError::NoEpoch)?;
            let synced = self.shared.state().synced;
            let defined = active.dictionary.len();
            let result = write(self, &mut active, synced);
            let result = match result {
                Ok((length, value)) => {
                    active.offset += length;
                    Ok((active.offset, value))
                }
                Err(error) => {
                    active.dictionary.truncate(defined);
                    if active.file.truncate(active.offset).is_err() {
                        self.shared.state().needs_repair = true;
                    }
                    Err(error)
                }
            };
            self.active = Some(active);
            result
        });
        if result.is_err() {
            metrics.log_append_errors.inc();
        }
        result
    }

    /// Sees that a record of about this size may be appended to the active segment.
    fn make_room(&mut self, size: u64) -> Result<(), LogError> {
        if self.shared.state().needs_repair {
            return Err(LogError::NeedsRepair);
        }
        let active = self.active.as_ref().ok_or(LogError::NoEpoch)?;
        let full = active.offset > HEADER
            && active.offset.saturating_add(size + codec::MIN_RECORD) > self.shared.config.segment_bytes;
        if full || self.must_roll { self.roll() } else { Ok(()) }
    }

    /// Closes the active segment and begins the next one. The closed one is durable first, so that only the last can be torn.
    fn roll(&mut self) -> Result<(), LogError> {
        let shared = self.shared.clone();
        let held = shared.hold_sync();
        let end = shared.sync(&held)?;
        let epoch = self.epoch().ok_or(LogError::NoEpoch)?;
        let segment = self.create_segment(epoch, end)?;
        shared.publish(|state| state.install(segment));
        Ok(())
    }

    /// Creates the segment after the active one, makes it the writer's own, and returns what the state must learn of it.
    pub(super) fn create_segment(&mut self, epoch: Epoch, base: Lsn) -> Result<(Segment, Arc<dyn LogFile>), LogError> {
        let header = Header {
            marker: rand::random(),
            epoch,
            sequence: self.active.as_ref().map_or(1, |a| a.header.sequence + 1),
            base,
            created_millis: self.shared.clock.unix_millis(),
        };
        let created = segment::create(&*self.shared.files, &self.shared.config.dir, &header);
        let file = created.map_err(|failed| {
            self.must_roll |= failed.leftover;
            failed.error
        })?;
        self.must_roll = false;
        self.active = Some(Active { file: file.clone(), header, offset: HEADER, dictionary: Dictionary::default() });
        Ok((Segment { header, length: HEADER }, file))
    }

    /// Fills the buffer with all that comes before the body. Returns its length.
    fn encode_head(&mut self, active: &mut Active, transaction: &Transaction, synced: u64) -> Result<u64, LogError> {
        self.numbers.clear();
        self.numbers.extend(transaction.relations.iter().map(|r| active.dictionary.number(r)));
        self.buffer.clear();
        self.buffer.shrink_to(2 * ONE_WRITE as usize);
        let frame = Frame { marker: active.header.marker, kind: Kind::Transaction, length: 0, synced };
        frame.encode(&mut self.buffer);
        codec::encode_head(transaction, &self.numbers, &mut self.buffer).map_err(LogError::Unstorable)?;
        let before_body = self.buffer.len() as u64;
        let length = before_body + transaction.body.len() + TRAILER as u64;
        self.buffer[8..16].copy_from_slice(&length.to_le_bytes());
        Ok(before_body)
    }

    /// Writes the buffered head and a body from memory.
    fn write_memory(&mut self, active: &Active, body: &[u8]) -> Result<(), LogError> {
        if body.len() as u64 <= ONE_WRITE {
            self.buffer.extend_from_slice(body);
            let crc = crc32c::crc32c(&self.buffer);
            self.buffer.extend_from_slice(&crc.to_le_bytes());
            return self.write(active, &self.buffer, active.offset);
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.buffer), body);
        let at = active.offset + self.buffer.len() as u64;
        self.write(active, &self.buffer, active.offset)?;
        self.write(active, body, at)?;
        self.write(active, &crc.to_le_bytes(), at + body.len() as u64)
    }

    /// Writes the buffered head and a body from its spill, through the same buffer.
    fn write_spilled(&mut self, active: &Active, body: &dyn crate::change::SpilledBody) -> Result<(), LogError> {
        let mut crc = crc32c::crc32c(&self.buffer);
        self.write(active, &self.buffer, active.offset)?;
        let mut at = active.offset + self.buffer.len() as u64;
        let mut left = body.len();
        let mut reader = body.open().map_err(LogError::Spill)?;
        while left > 0 {
            self.buffer.resize(ONE_WRITE.min(left) as usize, 0);
            reader.read_exact(&mut self.buffer).map_err(LogError::Spill)?;
            crc = crc32c::crc32c_append(crc, &self.buffer);
            self.write(active, &self.buffer, at)?;
            at += self.buffer.len() as u64;
            left -= self.buffer.len() as u64;
        }
        self.write(active, &crc.to_le_bytes(), at)
    }

    fn write(&self, active: &Active, bytes: &[u8], offset: u64) -> Result<(), LogError> {
        active.file.write_at(bytes, offset).map_err(|source| {
            let path = self.shared.path(active.header.sequence);
            LogError::Io { action: "append to", path, source }
        })
    }
}

impl std::fmt::Debug for LogWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogWriter(end {})", self.end())
    }
}
