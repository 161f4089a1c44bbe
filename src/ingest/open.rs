//! From nothing to a stream that fits the log: look at the slot, decide, get hold of it, look again.

use std::time::Duration;

use tokio::time::Instant;

use super::error::Holder;
use super::notes::{Notes, Reader};
use super::origin::{Origin, Source as _};
use super::start::{Found, Parted, Start, Why, decide};
use super::switch::{among, asked};
use super::{Core, IngestError};
use crate::change::Lsn;
use crate::error::chain;
use crate::log::{Epoch, LogError};
use crate::wal::{SlotFault, WalError};

/// An earlier session of ours is left so long to end by itself before we end it.
const GRACE: Duration = Duration::from_secs(2);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(50);
/// So often a stream may break at the same row before the slot counts as unreadable. The publications are looked at before
/// each try.
const MOST_UNREADABLE: u32 = 2;

impl<O: Origin> Core<O> {
    /// Gets the log in order and a stream that fits it.
    pub(super) async fn open(&mut self) -> Result<O::Source, IngestError> {
        let (end, went_back) = self.pen.settle().await?;
        if went_back {
            self.stuck = None;
            self.switched = false;
        }
        if let Some(stuck) = self.stuck.clone() {
            self.pen.append(&stuck).await.inspect_err(|error| self.forget_stuck(error))?;
            self.stuck = None;
            self.pen.sync_all().await?;
        }
        let end = end.max(self.pen.log.durable());
        let found = self.usable_slot().await?;
        let start = decide(self.pen.log.epoch(), end, &self.notes, &found);
        let (start, at) = self.cut(start, &found).await?;
        let names = asked(&self.config.wal.publications, &self.notes, self.switched, start, &found);
        match self.origin.connect(at, &names).await {
            Ok(source) => self.take_over(source, (start, at), &names).await,
            Err(IngestError::Wal(WalError::Ahead { .. })) if !matches!(start, Start::Begin(..)) => {
                let at = found.slot.confirmed_flush;
                let source = self.origin.connect(at, &names).await?;
                self.take_over(source, (Start::Begin(at, Why::ServerBehind), at), &names).await
            }
            Err(error) => Err(error),
        }
    }

    fn forget_stuck(&mut self, error: &LogError) {
        if !(error.is_full() || matches!(error, LogError::Io { .. })) {
            self.stuck = None;
        }
    }

    /// A slot that can be read and that nobody reads; made anew if ours can't be read any more.
    async fn usable_slot(&mut self) -> Result<Found, IngestError> {
        let found = match self.survey().await {
            Err(IngestError::Wal(WalError::SlotUnusable { fault: SlotFault::Lost(_), .. }))
                if self.is_ours().await? =>
            {
                self.renew(Why::SlotInvalidated).await?;
                self.survey().await?
            }
            surveyed => surveyed?,
        };
        let found = self.without_reader(found).await?;
        match self.worn_out(&found) {
            Some(why) => {
                self.renew(why).await?;
                self.survey().await
            }
            None => Ok(found),
        }
    }

    /// The slot's name is noted in the database: no other program made it.
    async fn is_ours(&mut self) -> Result<bool, IngestError> {
        Ok(self.origin.lineage().await?.is_some())
    }

    /// What is on the server; where its timeline is another than the log's, with the place where they parted.
    async fn survey(&mut self) -> Result<Found, IngestError> {
        let mut found = self.origin.look(&mut self.report).await?;
        if let Some(known) = self.notes.timeline.filter(|known| *known != found.timeline) {
            let ends = self.origin.timelines(found.timeline).await?;
            let end = ends.into_iter().find(|(timeline, _)| *timeline == known);
            found.parted = Some(end.map_or(Parted::Unknown, |(_, lsn)| Parted::At(lsn)));
        }
        Ok(found)
    }

    /// While another session reads the slot, that is how it is. Only one of our own is ended, which we know by its process id
    /// and start: a line that broke without the server noticing. The folder is locked, so no other relay can be its owner.
    /// A session that is ending loses its start before it gives the slot back: one with our process id is left that time.
    async fn without_reader(&mut self, mut found: Found) -> Result<Found, IngestError> {
        let slot = self.config.wal.slot.clone();
        let (mut patience, mut ended) = (Instant::now() + GRACE, false);
        while let Some(holder) = found.holder.clone() {
            let is_ours = |own: &Reader| own.pid == holder.pid && holder.started.is_none_or(|at| at == own.started);
            let Some(reader) = self.notes.reader.filter(is_ours) else {
                return Err(IngestError::Taken { slot, holder });
            };
            if Instant::now() >= patience {
                if holder.started.is_none() {
                    return Err(IngestError::Taken { slot, holder });
                }
                if ended {
                    return Err(IngestError::OwnSession { slot, holder });
                }
                tracing::warn!(
                    pid = reader.pid,
                    "our own session from before still holds the slot, over a connection that is gone; it is ended"
                );
                self.origin.terminate(reader).await?;
                self.metrics.slot_sessions_ended.inc();
                (patience, ended) = (Instant::now() + GRACE, true);
            }
            tokio::time::sleep(PAUSE).await;
            found = self.survey().await?;
        }
        Ok(found)
    }

    /// Why the slot is of no use although the server still gives it out.
    fn worn_out(&self, found: &Found) -> Option<Why> {
        let replaced = passes_over(found.version) && !self.notes.replaced(&found.publications).is_empty();
        match () {
            () if found.slot.created => None,
            () if self.unreadable >= MOST_UNREADABLE => Some(Why::SlotUnreadable),
            () if replaced => Some(Why::PublicationReplaced),
            () => None,
        }
    }

    /// Drops the slot, so that the next look makes another. What it could still have given can't be had in any way.
    async fn renew(&mut self, why: Why) -> Result<(), IngestError> {
        tracing::error!(slot = self.config.wal.slot, reason = why.text(), "the replication slot is made anew");
        self.origin.drop_slot().await?;
        (self.renewed, self.unreadable) = (Some(why), 0);
        Ok(())
    }

    /// The same start with the reason why a slot had to be made; and from where the stream is to be asked for.
    async fn cut(&mut self, start: Start, found: &Found) -> Result<(Start, Lsn), IngestError> {
        Ok(match start {
            Start::Begin(at, Why::SlotLost | Why::LogLost) if found.slot.created => {
                (Start::Begin(at, self.renewed.unwrap_or(Why::SlotLost)), at)
            }
            Start::Fork(limit) => match self.pen.blocking(move |writer| writer.last_at_or_before(limit)).await? {
                Some(at) if at >= found.slot.confirmed_flush && at >= self.pen.log.floor() => (start, at),
                _ => (Start::Begin(found.slot.confirmed_flush, Why::OtherTimeline), found.slot.confirmed_flush),
            },
            Start::Begin(at, _) | Start::Continue(at) => (start, at),
        })
    }

    /// The slot is ours now, so nobody else can move it. Whoever held it before may have, between our look and now: the
    /// server would then have skipped what lies between without a word.
    async fn take_over(
        &mut self,
        source: O::Source,
        (start, at): (Start, Lsn),
        names: &[String],
    ) -> Result<O::Source, IngestError> {
        let found = self.survey().await?;
        let (stream, timeline) = source.identity();
        if found.system_identifier != stream {
            return Err(IngestError::TwoServers { queries: found.system_identifier, stream });
        }
        let now = decide(self.pen.log.epoch(), self.pen.log.end(), &self.notes, &found);
        match start {
            _ if found.timeline != timeline => return Err(IngestError::Moved),
            Start::Continue(_) if now == start => self.note(|notes| notes.meet(&found, names)).await?,
            Start::Fork(limit) if now == start && found.slot.confirmed_flush <= at => {
                self.begin(at, Why::Promoted, (&found, names), Some(limit)).await?;
            }
            Start::Begin(at, why) if found.slot.confirmed_flush <= at => {
                self.begin(at, why, (&found, names), None).await?
            }
            Start::Continue(_) | Start::Fork(_) | Start::Begin(..) => return Err(IngestError::Moved),
        }
        self.renewed = None;
        self.pen.log.set_written(found.written);
        self.warn_of_standbys(&found);
        Ok(source)
    }

    /// What a person who asked for slots on standbys should know, once.
    fn warn_of_standbys(&self, found: &Found) {
        if !self.config.wal.failover || self.was_up {
            return;
        }
        let slot = &self.config.wal.slot;
        match found.slot.failover {
            Some(false) => tracing::warn!(
                slot,
                "the slot is not copied to standbys although ROWCAST_SLOT_FAILOVER asks for it: it was made without. Stop the \
                 relay, run sql/slot_drop_and_rebuild.sql, and start it again; clients are told of a gap"
            ),
            Some(true) if !found.waits_for_standbys => tracing::warn!(
                slot,
                "the slot is copied to standbys, but the relay may read changes before they have them: name their physical \
                 slots in synchronized_standby_slots, or a standby that takes over takes back what it did not have"
            ),
            Some(true) => {}
            None => tracing::warn!(
                slot,
                "ROWCAST_SLOT_FAILOVER needs PostgreSQL 17: here a standby that takes over has no slot, and clients are told of a gap"
            ),
        }
    }

    /// Another history, which shares the old one up to a limit if there is one. The database learns of it first: if it can't, the old log is still there.
    async fn begin(
        &mut self,
        at: Lsn,
        why: Why,
        (found, names): (&Found, &[String]),
        shared: Option<Lsn>,
    ) -> Result<(), IngestError> {
        let epoch = Epoch { system_identifier: found.system_identifier, incarnation: rand::random() };
        let token = new_token();
        let noted = token.clone();
        self.note(|notes| {
            notes.meet(found, names);
            notes.tokens.push(noted);
        })
        .await?;
        self.origin.record(epoch, &token).await?;
        let lost = self.pen.log.end();
        self.pen
            .blocking(move |writer| match shared {
                Some(shared) => writer.fork(epoch, at, shared),
                None => writer.begin_epoch(epoch, at),
            })
            .await?;
        self.metrics.epochs.get_or_create(&[("reason", why.label())]).inc();
        match why {
            Why::NewSlot => tracing::info!(position = %at, reason = why.text(), "a new history begins"),
            Why::Promoted if at == lost => {
                tracing::info!(position = %at, reason = why.text(), "the history goes on, and nothing of it is lost");
            }
            Why::Promoted => tracing::error!(
                position = %at,
                until = %lost,
                reason = why.text(),
                advice = why.advice(),
                "the history goes on from an earlier position: what was read behind it never happened here, and clients who \
                 got it are told of a gap"
            ),
            _ => tracing::error!(
                position = %at,
                reason = why.text(),
                advice = why.advice(),
                "a new history begins: what the old one held can't be replayed, and clients that come back are told of a gap"
            ),
        }
        // Only now is the one before of no use, and it does no harm.
        if let Err(error) = self.note(|notes| notes.tokens = vec![token]).await {
            tracing::warn!(error = chain(&error), "it could not be noted which history the slot has");
        }
        Ok(())
    }

    /// Changes the notes, on the disk first.
    pub(super) async fn note(&mut self, change: impl FnOnce(&mut Notes)) -> Result<(), LogError> {
        let mut notes = self.notes.clone();
        change(&mut notes);
        let value = notes.write();
        self.pen.blocking(move |writer| writer.set_slot_notes(value)).await?;
        self.notes = notes;
        Ok(())
    }
}

/// Whether a server of this version passes over a publication that is missing, without a word. Older ones refuse to decode.
pub(super) fn passes_over(version: i32) -> bool {
    version >= 180_000
}

/// What nobody can guess.
pub(super) fn new_token() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl Notes {
    /// Notes what was found while the slot is ours, and with which publications it is read.
    fn meet(&mut self, found: &Found, names: &[String]) {
        self.timeline = Some(found.timeline);
        self.publications = among(&found.publications, names);
        self.reader = found.holder.as_ref().and_then(Holder::session).or(self.reader);
        // The last one is what the database holds now.
        if let Some(lineage) = &found.lineage {
            self.tokens.truncate(1);
            self.tokens.retain(|token| *token != lineage.token);
            self.tokens.push(lineage.token.clone());
        }
    }
}

impl Holder {
    /// The session, if we may see when it began.
    pub(super) fn session(&self) -> Option<Reader> {
        self.started.map(|started| Reader { pid: self.pid, started })
    }
}
