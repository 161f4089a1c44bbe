//! The stage where rows wait for Postgres's answers and leave in commit order.
//!
//! A first-in-first-out line of rows. A row whose questions are all answered leaves when it is at the front; one without
//! questions waits only while others are before it. A slow answer delays what is behind it; it never reorders or drops.
//! Bounded in rows and bytes: when full, the hub stops reading and the rows wait in the log.
//!
//! Rejected for now: an order per subscription instead of one for all, which would let rows pass that nobody waits for.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::task::JoinSet;

use super::event::{Event, Ids};
use super::{ChannelId, Port};
use crate::claims::Principal;
use crate::policy::{Asker, Bound, ColumnMask, Permit, Question, Verdict};

/// A channel's part in a row that nobody has judged yet.
pub(super) struct Waiting {
    pub(super) channel: ChannelId,
    pub(super) ids: Ids,
    pub(super) keep: Option<ColumnMask>,
    /// Index in the question's principals.
    pub(super) principal: usize,
}

/// One question to Postgres and those who wait for it.
pub(super) struct Asked {
    pub(super) bound: Arc<Bound>,
    pub(super) principals: Vec<Arc<Principal>>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) verdicts: Option<Vec<Verdict>>,
}

/// A channel that gets the row.
pub(super) struct Ready {
    pub(super) port: Arc<Port>,
    pub(super) ids: Ids,
}

/// Those who may see the same columns of a row.
pub(super) type Permits = SmallVec<[(Permit, Vec<Ready>); 1]>;

/// A row on its way.
pub(super) struct LaneRow {
    pub(super) event: Arc<Event>,
    pub(super) permits: Permits,
    pub(super) asked: SmallVec<[Asked; 1]>,
    /// Transactions up to this row that others may not see yet.
    pub(super) xids: Arc<[u32]>,
    pub(super) bytes: usize,
}

/// Most rows in the lane.
const MAX_ROWS: usize = 4096;
/// Most bytes of rows in the lane, by their size in the stream.
const MAX_BYTES: usize = 32 << 20;
/// Questions on their way at once: less than the pool has connections, so that filters can still be checked.
const MAX_ASKING: usize = 4;

/// See the module's comment.
pub(super) struct Lane {
    asker: Asker,
    rows: VecDeque<LaneRow>,
    /// Sequence number of the front row.
    front: u64,
    bytes: usize,
    /// The next question to start: row sequence and index in the row.
    next: (u64, usize),
    asking: JoinSet<(u64, usize, Vec<Verdict>)>,
}

impl Lane {
    pub(super) fn new(asker: Asker) -> Lane {
        let rows = VecDeque::new();
        Lane { asker, rows, front: 0, bytes: 0, next: (0, 0), asking: JoinSet::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.rows.len() < MAX_ROWS && self.bytes < MAX_BYTES
    }

    /// Appends a row and starts its questions as far as there is room for them.
    pub(super) fn push(&mut self, row: LaneRow) {
        self.bytes += row.bytes;
        self.rows.push_back(row);
        self.start();
    }

    fn start(&mut self) {
        while self.asking.len() < MAX_ASKING {
            let (sequence, index) = self.next;
            let Some(row) = self.rows.get((sequence - self.front) as usize) else { return };
            let Some(asked) = row.asked.get(index) else {
                self.next = (sequence + 1, 0);
                continue;
            };
            let question = Question {
                bound: asked.bound.clone(),
                change: row.event.row.clone(),
                principals: asked.principals.clone(),
                xids: row.xids.clone(),
            };
            let asker = self.asker.clone();
            self.asking.spawn(async move { (sequence, index, asker.judge(&question).await) });
            self.next = (sequence, index + 1);
        }
    }

    /// Resolves when an answer has come; pending while nothing is asked. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        let Some(joined) = self.asking.join_next().await else { return std::future::pending().await };
        match joined {
            Ok((sequence, index, verdicts)) => {
                let row = self.rows.get_mut((sequence - self.front) as usize);
                if let Some(asked) = row.and_then(|row| row.asked.get_mut(index)) {
                    asked.verdicts = Some(verdicts);
                }
            }
            // A panic in a question is a bug; without its answer the row would block the lane for ever.
            Err(error) => std::panic::resume_unwind(error.try_into_panic().unwrap_or_else(|_| Box::new("cancelled"))),
        }
        self.start();
    }

    /// The front row, if all its answers are there.
    pub(super) fn pop(&mut self) -> Option<LaneRow> {
        if !self.rows.front()?.asked.iter().all(|a| a.verdicts.is_some()) {
            return None;
        }
        let row = self.rows.pop_front()?;
        self.front += 1;
        self.bytes -= row.bytes;
        if self.next.0 < self.front {
            self.next = (self.front, 0);
        }
        Some(row)
    }
}
