//! The stage where rows wait for Postgres's answers and leave in commit order.
//!
//! A row may have two kinds of questions: whether somebody may see it, and then, for those who may, whether their filters
//! match. The second kind starts when all answers of the first are there, and has at most half of the questions on their way:
//! however slow somebody's filters are, there is room for the first kind.
//!
//! A first-in-first-out line of rows. A row whose questions are all answered leaves when it is at the front; one without
//! questions waits only while others are before it. A slow answer delays what is behind it; it never reorders or drops.
//! Bounded in rows and bytes: when full, the hub stops reading and the rows wait in the log.
//!
//! Rejected for now: an order per subscription instead of one for all, which would let rows pass that nobody waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::event::{Event, Ids};
use super::filters::{Conditional, Failures, Outcome, Owner, Refusal, RowFilters};
use super::{ChannelId, Port};
use crate::claims::Principal;
use crate::filter::{FilterAnswer, FilterAskConfig, FilterAsker, FilterQuestion, MAX_TERMS};
use crate::metrics::Metrics;
use crate::policy::{Asker, Bound, ColumnMask, Permit, Question, Verdict};

/// A channel's part in a row: its matching entries of one selection.
pub(super) struct Share {
    pub(super) channel: ChannelId,
    /// The number of its connection.
    pub(super) connection: u64,
    pub(super) ids: Ids,
    /// Entries that match if Postgres says so.
    pub(super) open: Conditional,
    pub(super) keep: Option<ColumnMask>,
}

/// A share that nobody has judged yet.
pub(super) struct Waiting {
    pub(super) share: Share,
    /// Index in the question's principals.
    pub(super) principal: usize,
}

/// A share that was permitted in memory, with entries whose filters are open.
pub(super) struct Filtered {
    pub(super) share: Share,
    pub(super) principal: Arc<Principal>,
    pub(super) permit: Permit,
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
    pub(super) filtered: Vec<Filtered>,
    /// Filled when all of `asked` is answered.
    pub(super) filters: RowFilters,
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
/// Of these, most about filters.
const MAX_ASKING_FILTERS: usize = 2;

/// See the module's comment.
pub(super) struct Lane {
    asker: Asker,
    filter_asker: FilterAsker,
    failures: Failures,
    rows: VecDeque<LaneRow>,
    /// Sequence number of the front row.
    front: u64,
    bytes: usize,
    /// The next question to start: row sequence and index in the row.
    next: (u64, usize),
    /// Filter questions that have not started: row sequence and indices of its conditions. Older rows are before newer ones
    /// unless the answers of `asked` came out of order.
    parts: VecDeque<(u64, Vec<usize>)>,
    asking: JoinSet<Answered>,
    /// How many of `asking` are about filters.
    asking_filters: usize,
}

/// What came of a question, with its row's sequence number.
enum Answered {
    Verdicts(u64, usize, Vec<Verdict>),
    /// Also when it began, and what each condition took.
    Filters(u64, Vec<usize>, Instant, Vec<(FilterAnswer, Duration)>),
}

impl LaneRow {
    fn is_judged(&self) -> bool {
        self.asked.iter().all(|asked| asked.verdicts.is_some())
    }

    fn is_done(&self) -> bool {
        self.is_judged() && self.filters.is_answered()
    }

    /// The open conditions of those who were permitted the row.
    fn collect_filters(&mut self, limits: &FilterAskConfig) {
        let LaneRow { asked, filtered, filters, .. } = self;
        let mut collect = |share: &Share, principal: &Principal| {
            if share.open.is_empty() {
                return;
            }
            let owner = Owner::of(principal, share.connection);
            share.open.iter().for_each(|(_, open)| filters.add(open, &owner, limits));
        };
        filtered.iter().for_each(|filtered| collect(&filtered.share, &filtered.principal));
        for Asked { principals, waiting, verdicts, .. } in asked {
            let verdicts = verdicts.as_deref().unwrap_or_default();
            let permitted = |w: &&Waiting| matches!(verdicts.get(w.principal), Some(Verdict::Permit(_)));
            waiting.iter().filter(permitted).for_each(|w| collect(&w.share, &principals[w.principal]));
        }
    }
}

impl Lane {
    pub(super) fn new(asker: Asker, filter_asker: FilterAsker) -> Lane {
        Lane {
            asker,
            failures: Failures::new(filter_asker.config().budget),
            filter_asker,
            rows: VecDeque::new(),
            front: 0,
            bytes: 0,
            next: (0, 0),
            parts: VecDeque::new(),
            asking: JoinSet::new(),
            asking_filters: 0,
        }
    }

    /// The conditions that fail.
    pub(super) fn failures(&self) -> &Failures {
        &self.failures
    }

    /// Of one condition.
    pub(super) fn filter_timeout(&self) -> Duration {
        self.filter_asker.statement_timeout()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows, their bytes, and the questions under way.
    pub(super) fn depth(&self) -> (usize, usize, usize) {
        (self.rows.len(), self.bytes, self.asking.len())
    }

    pub(super) fn measure(&self, metrics: &Metrics) {
        let (rows, bytes, questions) = self.depth();
        metrics.lane_rows.set(rows as i64);
        metrics.lane_size.set(bytes as i64);
        metrics.lane_questions.set(questions as i64);
    }

    pub(super) fn has_room(&self) -> bool {
        self.rows.len() < MAX_ROWS && self.bytes < MAX_BYTES
    }

    fn row(&mut self, sequence: u64) -> Option<&mut LaneRow> {
        self.rows.get_mut(sequence.checked_sub(self.front)? as usize)
    }

    /// Appends a row and starts its questions as far as there is room for them. The row may be done at once.
    pub(super) fn push(&mut self, row: LaneRow) {
        self.bytes += row.bytes;
        self.rows.push_back(row);
        let sequence = self.front + self.rows.len() as u64 - 1;
        self.judged(sequence);
        self.start();
    }

    /// If all verdicts of this row are there, asks about the filters of those who were permitted it.
    fn judged(&mut self, sequence: u64) {
        let limits = self.filter_asker.config().clone();
        let Some(row) = self.row(sequence).filter(|row| row.is_judged()) else { return };
        row.collect_filters(&limits);
        let conditions: Vec<usize> = (0..row.filters.len()).collect();
        self.parts.extend(conditions.chunks(MAX_TERMS).map(|part| (sequence, part.to_vec())));
    }

    fn start(&mut self) {
        while self.asking.len() < MAX_ASKING && (self.start_filters() || self.start_verdicts()) {}
    }

    /// Starts the next filter question, if there is one and it may start.
    fn start_filters(&mut self) -> bool {
        if self.asking_filters >= MAX_ASKING_FILTERS {
            return false;
        }
        while let Some((sequence, mut part)) = self.parts.pop_front() {
            let Some(row) = self.rows.get_mut((sequence - self.front) as usize) else { continue };
            let failures = &self.failures;
            part.retain(|at| match failures.refused(&row.filters.term(*at).0, row.filters.owners(*at)) {
                Some(Refusal::GivenUp(failure)) => {
                    row.filters.answer(*at, FilterAnswer::Failed(failure));
                    false
                }
                Some(Refusal::OverBudget) => {
                    row.filters.answer(*at, FilterAnswer::Undecided);
                    row.filters.over_budget += 1;
                    false
                }
                None => true,
            });
            if part.is_empty() {
                continue;
            }
            let terms = part.iter().map(|at| row.filters.term(*at).clone()).collect();
            let question = FilterQuestion { row: row.event.row.clone(), terms };
            let asker = self.filter_asker.clone();
            self.asking_filters += 1;
            self.asking.spawn(async move {
                let began = Instant::now();
                Answered::Filters(sequence, part, began, asker.judge(&question).await)
            });
            return true;
        }
        false
    }

    /// Starts the next question about rights, if there is one.
    fn start_verdicts(&mut self) -> bool {
        loop {
            let (sequence, index) = self.next;
            let Some(row) = self.rows.get((sequence - self.front) as usize) else { return false };
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
            self.asking.spawn(async move { Answered::Verdicts(sequence, index, asker.judge(&question).await) });
            self.next = (sequence, index + 1);
            return true;
        }
    }

    /// Resolves when an answer has come; pending while nothing is asked. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        let Some(joined) = self.asking.join_next().await else { return std::future::pending().await };
        match joined {
            Ok(Answered::Verdicts(sequence, index, verdicts)) => {
                if let Some(asked) = self.row(sequence).and_then(|row| row.asked.get_mut(index)) {
                    asked.verdicts = Some(verdicts);
                }
                self.judged(sequence);
            }
            Ok(Answered::Filters(sequence, part, began, answers)) => {
                self.asking_filters -= 1;
                for (at, (answer, took)) in part.into_iter().zip(answers) {
                    let Some(row) = self.rows.get_mut((sequence - self.front) as usize) else { break };
                    let outcome = Outcome { began, answer, took };
                    self.failures.note(&row.filters.term(at).0, row.filters.owners(at), &outcome);
                    row.filters.answer(at, answer);
                }
            }
            // A panic in a question is a bug; without its answer the row would block the lane for ever.
            Err(error) => std::panic::resume_unwind(error.try_into_panic().unwrap_or_else(|_| Box::new("cancelled"))),
        }
        self.start();
    }

    /// The front row, if all its answers are there.
    pub(super) fn pop(&mut self) -> Option<LaneRow> {
        if !self.rows.front()?.is_done() {
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
