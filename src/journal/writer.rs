//! The task that writes the journal, in batches, on a blocking thread.
//!
//! A disk that takes nothing stops no delivery: what could not be written is counted, tried no more, and told as a hole by the
//! next write that succeeds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::codec;
use super::note::Note;
use super::segments::Segments;
use super::{Message, Shared};
use crate::metrics::Metrics;
use crate::task::Drain;

/// Notes written at once.
const BATCH: usize = 4096;
/// How long notes that can be told as one wait for each other.
const GATHER: Duration = Duration::from_secs(1);
/// Notes that wait for others of their kind.
const MAX_GATHERED: usize = 4096;
/// How often old files are looked for.
const LOOK: Duration = Duration::from_secs(60);
/// Bytes of notes after which they are written.
const CHUNK: usize = 256 << 10;
/// How often a disk that takes nothing is mentioned.
const TELL: Duration = Duration::from_secs(60);

/// See the module's comment.
pub struct Writer {
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Message>,
    sink: Option<Sink>,
    metrics: Arc<Metrics>,
    /// With their times: to be told as one with what may follow.
    gathered: Vec<(i64, Note)>,
    gathered_since: Option<Instant>,
}

/// What the blocking thread works with.
struct Sink {
    segments: Segments,
    /// Since when nothing can be written, and how many notes that cost.
    failing: Option<(i64, u64)>,
    told: Option<Instant>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, messages: mpsc::Receiver<Message>, metrics: Arc<Metrics>) -> Writer {
        let segments = Segments::new(shared.config.clone(), shared.files.clone());
        let sink = Sink { segments, failing: None, told: None };
        Writer { shared, messages, sink: Some(sink), metrics, gathered: Vec::new(), gathered_since: None }
    }

    /// Writes what is noted until the drain, and then what is still in the queue.
    pub async fn run(mut self, drain: Drain) {
        let mut messages = Vec::new();
        let mut looked = Instant::now();
        loop {
            let wake = match self.gathered_since {
                Some(since) => (since + GATHER).min(looked + LOOK),
                None => looked + LOOK,
            };
            tokio::select! {
                biased;
                () = drain.draining() => break,
                count = self.messages.recv_many(&mut messages, BATCH) => if count == 0 { break },
                () = tokio::time::sleep_until(wake) => {}
            }
            let look = looked.elapsed() >= LOOK;
            if look {
                looked = Instant::now();
            }
            let due = self.gathered_since.is_some_and(|since| since.elapsed() >= GATHER);
            self.write(&mut messages, due, look).await;
        }
        while let Ok(message) = self.messages.try_recv() {
            messages.push(message);
        }
        messages.push(Message::Note(self.shared.clock.unix_millis(), Note::Stopped));
        self.write(&mut messages, true, false).await;
    }

    async fn write(&mut self, messages: &mut Vec<Message>, all: bool, look: bool) {
        let (mut notes, mut flushed) = (Vec::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                Message::Note(time, note) => self.take(time, note, &mut notes),
                Message::Flush(done) => flushed.push(done),
            }
        }
        if all || !flushed.is_empty() || self.gathered.len() > MAX_GATHERED {
            notes.append(&mut self.gathered);
            self.gathered_since = None;
        }
        let now = self.shared.clock.unix_millis();
        if let Some((from, lost)) = self.shared.missed.take() {
            self.metrics.journal_lost.inc_by(lost);
            notes.push((now, Note::Hole { from, to: now, lost }));
        }
        if !notes.is_empty() || look {
            self.store(notes, now, look).await;
        }
        flushed.into_iter().for_each(answer);
    }

    /// Puts a note where it is to be written, or with others of its kind.
    fn take(&mut self, time: i64, note: Note, notes: &mut Vec<(i64, Note)>) {
        if !matches!(note, Note::Facts { .. } | Note::Undecided { .. }) {
            return notes.push((time, note));
        }
        let known = self.gathered.iter_mut().rev().take(64).any(|(_, gathered)| gathered.absorb(&note));
        if !known {
            self.gathered.push((time, note));
            self.gathered_since.get_or_insert_with(Instant::now);
        }
    }

    async fn store(&mut self, notes: Vec<(i64, Note)>, now: i64, look: bool) {
        let Some(mut sink) = self.sink.take() else { return };
        let metrics = self.metrics.clone();
        let storing = tokio::task::spawn_blocking(move || {
            if look {
                sink.segments.expire(now);
            }
            sink.store(&notes, now, &metrics);
            metrics.journal_bytes.set(i64::try_from(sink.segments.bytes()).unwrap_or(i64::MAX));
            sink
        });
        // A panic there is a bug, and printed; the journal is over then, and says so by its silence being counted.
        match storing.await {
            Ok(sink) => self.sink = Some(sink),
            Err(error) => tracing::error!(%error, "the journal can't be written any more"),
        }
    }
}

fn answer(done: oneshot::Sender<()>) {
    // Who asked may have given up.
    let _ = done.send(());
}

impl Sink {
    fn store(&mut self, notes: &[(i64, Note)], now: i64, metrics: &Metrics) {
        let (mut buffer, mut count) = (Vec::new(), 0);
        for (time, note) in notes {
            if !codec::encode(*time, note, &mut buffer) {
                codec::encode(*time, &shortened(note, *time), &mut buffer);
            }
            count += 1;
            if buffer.len() > CHUNK {
                self.append(&mut buffer, std::mem::take(&mut count), now, metrics);
            }
        }
        if count > 0 {
            self.append(&mut buffer, count, now, metrics);
        }
    }

    fn append(&mut self, records: &mut Vec<u8>, count: u64, now: i64, metrics: &Metrics) {
        if let Some((from, lost)) = self.failing {
            let mut all = Vec::new();
            codec::encode(now, &Note::Hole { from, to: now, lost }, &mut all);
            all.append(records);
            *records = all;
        }
        match self.segments.append(records, now) {
            Ok(()) => {
                metrics.journal_notes.inc_by(count);
                if self.failing.take().is_some() {
                    tracing::info!("the journal is written again");
                    self.told = None;
                }
            }
            Err(error) => {
                metrics.journal_lost.inc_by(count);
                let (from, lost) = self.failing.unwrap_or((now, 0));
                self.failing = Some((from, lost + count));
                if self.told.is_none_or(|told| told.elapsed() >= TELL) {
                    self.told = Some(Instant::now());
                    tracing::warn!(%error, "the journal can't be written; `rowcast why` will not know of this time");
                }
            }
        }
        records.clear();
    }
}

/// What is kept of a note that is too long.
fn shortened(note: &Note, time: i64) -> Note {
    match note.clone() {
        Note::Joined { channel, connection, topic, user, expires_at, from, .. } => {
            Note::Joined { channel, connection, topic, user, expires_at, from, entries: Vec::new() }
        }
        _ => Note::Hole { from: time, to: time, lost: 1 },
    }
}
