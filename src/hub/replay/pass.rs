//! One way through the past: a reader, the transaction at hand, and who takes part.

use std::pin::pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use tokio::time::Instant;

use super::PAUSE;
use crate::change::{Items, Lsn, Position, Transaction};
use crate::hub::ChannelId;
use crate::hub::gaps::end_of;
use crate::log::{Epoch, LogError, Read, Reader};
use std::sync::Arc;

/// Members of which nobody minds some being named twice.
const FEW: usize = 4096;

/// The transaction at hand.
pub(super) struct PassWork {
    pub(super) transaction: Arc<Transaction>,
    pub(super) items: Items,
    pub(super) taken: Instant,
}

/// See the module's comment.
pub(super) struct Pass {
    pub(super) reader: Reader,
    /// [`Epoch::tag`] of the history that `at` is in.
    pub(super) epoch: Option<u64>,
    /// Everything up to here was judged for all of the pass.
    pub(super) at: Position,
    pub(super) work: Option<PassWork>,
    /// A transaction that may not be judged yet, and since when.
    pub(super) gated: Option<(Arc<Transaction>, Instant)>,
    /// Who takes part; some have left since.
    pub(super) members: Vec<ChannelId>,
    trim_at: usize,
    /// It can't go on before this.
    pub(super) rests_until: Option<Instant>,
    pub(super) failed_reads: u32,
    /// Waits for the disk.
    on_disk: bool,
    /// What came from the disk.
    stash: Option<Result<Read, LogError>>,
}

/// What the log has for a pass.
pub(super) enum Next {
    Read(Result<Read, LogError>),
    /// The end of the log.
    End,
    /// Nothing yet.
    Later,
}

impl Pass {
    /// Gives what is after `from`.
    pub(super) fn new(reader: Reader, from: Position) -> Pass {
        Pass {
            epoch: reader.epoch().map(Epoch::tag),
            reader,
            at: from,
            work: None,
            gated: None,
            members: Vec::new(),
            trim_at: FEW,
            rests_until: None,
            failed_reads: 0,
            on_disk: false,
            stash: None,
        }
    }

    /// Where the reader of a pass from here begins: the transaction that a start is in the middle of is read again.
    pub(super) fn first(from: Position) -> Lsn {
        if from.ordinal == u32::MAX { from.lsn } else { Lsn(from.lsn.0.saturating_sub(1)) }
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        !self.on_disk && self.rests_until.is_none_or(|until| until <= now)
    }

    /// Takes what has come from the disk.
    pub(super) fn look(&mut self) {
        if self.on_disk
            && let Some(read) = self.reader.try_next().now_or_never()
        {
            self.on_disk = false;
            self.stash = read.transpose();
        }
    }

    pub(super) fn join(&mut self, channel: ChannelId) {
        self.members.push(channel);
        if self.members.len() >= self.trim_at {
            // Those that are parked come again and again.
            self.members.sort_unstable();
            self.members.dedup();
            self.trim_at = 2 * self.members.len() + FEW;
        }
    }

    /// Who begins here or later may still join.
    pub(super) fn open_from(&self) -> Position {
        self.work.as_ref().map_or(self.at, |work| end_of(work.transaction.end_lsn))
    }

    pub(super) fn rest(&mut self, now: Instant) {
        self.rests_until = Some(now + PAUSE);
    }

    /// The next thing, without waiting for it.
    pub(super) fn next(&mut self, live: &Reader, now: Instant) -> Next {
        let read = match self.stash.take() {
            Some(read) => read,
            None => match self.reader.try_next().now_or_never() {
                None => {
                    self.on_disk = true;
                    return Next::Later;
                }
                Some(Ok(None)) => return Next::End,
                Some(read) => match read.transpose() {
                    Some(read) => read,
                    None => return Next::End,
                },
            },
        };
        if !self.reader.is_beside(live) {
            // Another history has begun, which the stream comes to first.
            self.stash = Some(read);
            self.rest(now);
            return Next::Later;
        }
        Next::Read(read)
    }

    fn poll_loaded(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.on_disk {
            return Poll::Pending;
        }
        let polled = pin!(self.reader.try_next()).poll(cx);
        polled.map(|read| {
            self.on_disk = false;
            self.stash = read.transpose();
        })
    }
}

/// Ready when one of them has what it waited for.
pub(super) fn poll_loaded<'a>(passes: impl Iterator<Item = &'a mut Pass>, cx: &mut Context<'_>) -> Poll<()> {
    for pass in passes {
        if pass.poll_loaded(cx).is_ready() {
            return Poll::Ready(());
        }
    }
    Poll::Pending
}
