//! Snapshot and tail: the rows that a user may see now, then everything after, nothing missing and nothing twice.
//!
//! ```text
//! subscribe ─► resolve ─► take (beside the hub: one SELECT per entry, of one moment) ─► activate ─► send ─► tail
//!                          │ what it shows, by transaction id        channel starts behind ┘  its own pace │
//!                          └──────────────► Seam: the tail leaves out what was shown ◄───────────────────────┘
//! ```
//!
//! Invariants:
//! * A channel is active with its whole snapshot or not at all: what fails is told as a refusal, or tried again.
//! * The rows go before anything of the stream; the channel is behind the stream until they are sent, and then catches up as
//!   any other does. They go at the connection's pace.
//! * Rows of the snapshot and of the seam carry no cursor: there is no place between them from which one could go on. The first
//!   cursor is the seam's end, told by a notice.
//! * A new token of other rights before the rows are sent takes the snapshot anew, for the new rights.

mod replayed;
mod seam;
mod send;
mod take;

use std::sync::Arc;

use ahash::AHashMap;

pub use replayed::{Footing, Replayed};
pub(super) use seam::{Seam, Unseen};
pub use send::COMPLETE;
pub(super) use send::Sending;
pub use take::REFUSED;
pub(super) use take::{Snapped, Taking, is_wanted};

use super::ChannelId;
use super::run::Hub;
use crate::change::Lsn;
use crate::log::Read;
use crate::policy::Taker;

/// What the hub keeps for snapshots.
pub(super) struct Snapshots {
    pub(super) taker: Arc<Taker>,
    pub(super) unseen: Unseen,
    /// Channels whose rows are not all sent, or whose seam is not behind them.
    pub(super) sending: AHashMap<ChannelId, Sending>,
    /// What channels have read of messages that may still come.
    pub(super) replayed: AHashMap<ChannelId, Arc<Replayed>>,
}

impl Snapshots {
    pub(super) fn new(taker: Taker) -> Snapshots {
        let (unseen, sending, replayed) = (Unseen::default(), AHashMap::new(), AHashMap::new());
        Snapshots { taker: Arc::new(taker), unseen, sending, replayed }
    }
}

/// How far the hub looks back in the log when it begins, in bytes of WAL.
const LOOK_BACK: u64 = 64 << 20;

impl Hub {
    /// What a reading of the database that begins now is to be joined to; `None` before the first history.
    pub(super) fn footing(&self) -> Option<Footing> {
        let ground = self.snapshots.unseen.ground(self.position());
        self.epoch.map(|epoch| Footing { ground, epoch })
    }

    /// What the log had before this process began may still be hidden from others, if its commit waits for a standby: it is
    /// noted as if the stream had just brought it. The first reading of the catalog tells which are seen. Bounded: a commit that
    /// has been hidden for longer than this is overlooked.
    pub(super) async fn look_back(&mut self) {
        let end = self.reader.position();
        let from = self.deps.log.floor().max(Lsn(end.0.saturating_sub(LOOK_BACK)));
        let mut reader = self.deps.log.reader(from);
        while reader.position() < end {
            match reader.try_next().await {
                Ok(Some(Read::Transaction(transaction))) if transaction.end_lsn <= end => {
                    self.xids.push_back(transaction.xid);
                    self.snapshots.unseen.push(transaction.xid, transaction.end_lsn);
                }
                Ok(Some(Read::Gap { .. })) => {
                    self.xids.clear();
                    self.snapshots.unseen.clear();
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = %crate::error::chain(&error), "the end of the log can't be looked at");
                    break;
                }
            }
        }
        self.shared_xids = None;
    }
}
