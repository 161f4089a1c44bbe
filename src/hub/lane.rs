//! The stage where rows wait for Postgres's answers.
//!
//! A row may have two kinds of questions: whether somebody may see it, and then, for those who may, whether their filters
//! match. Questions about rights take turns by policy ([`super::turns`]) on the connections there are for them; those about
//! filters start when all of the row's answers about rights are there, on connections of their own.
//!
//! A row leaves in parts, one for each channel, and each channel's in commit order ([`super::line`]): it waits for its own
//! answers and for what is before it in its own channel, not for others. What nobody has to be asked about, and nothing is
//! before of, is not kept here at all. Nothing is reordered within a channel or dropped. Bounded in bytes, parts counted: when
//! full, the hub stops reading and the rows wait in the log. A row whose turn doesn't come in time is undecided, so that a
//! policy that can't keep up does not stop the stream for good.
//!
//! Rejected: an order per connection. What is promised is the order of a subscription, and a channel's filters would then
//! delay another channel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::event::Details;
use super::filters::{Failures, Outcome, Refusal, RowFilters};
use super::gaps::before;
use super::line::{Line, Place};
use super::registry::Registry;
use super::settle::{self, OfRow, Released, Settled};
use super::turns::{Change, Ended, Failure, Turns, Whose};
use super::waiting::{Asked, Filtered, Kept, LaneRow, Permits, Ready, Waiting};
use super::{ChannelId, Port};

use crate::filter::{FilterAnswer, FilterAsker, FilterQuestion, MAX_TERMS};
use crate::metrics::Metrics;
use crate::policy::{Answers, Asker, Bound, Question, UndecidedReason, Verdict};
use crate::resume::Cursor;

/// Where a row is kept; its sequence number tells it from another that is kept there later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RowAt {
    slot: usize,
    sequence: u64,
}

/// Most bytes of rows in the lane, by their size in the stream and that of their parts.
const MAX_BYTES: usize = 32 << 20;
/// Most rows in the lane.
const MAX_ROWS: usize = 4096;
/// While more questions wait, none is asked about rows of the past.
const PAST_QUESTIONS: usize = 4;
/// What a part takes, about.
const PART_BYTES: usize = 192;
/// Where nothing is kept: of notices.
const NO_ROW: usize = usize::MAX;
/// Questions about filters on their way at once.
const MAX_ASKING_FILTERS: usize = 2;
/// The longest that a row waits for its turn to be asked about.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// See the module's comment.
pub(super) struct Lane {
    asker: Asker,
    filter_asker: FilterAsker,
    failures: Failures,
    line: Line<settle::Outcome>,
    rows: Vec<Option<Kept>>,
    free: Vec<usize>,
    /// Of the next row or notice.
    sequence: u64,
    bytes: usize,
    turns: Turns<(RowAt, usize)>,
    /// Filter questions that have not started: the row and indices of its conditions. Older rows are before newer ones unless
    /// the answers of `asked` came out of order.
    parts: VecDeque<(RowAt, Vec<usize>)>,
    asking: JoinSet<Answered>,
    /// How many of `asking` are about filters.
    asking_filters: usize,
    metrics: Arc<Metrics>,
}

/// What came of a question.
enum Answered {
    /// With whose it was, and what it took.
    Verdicts(RowAt, usize, Answers, Whose, Duration),
    /// Also when it began, and what each condition took.
    Filters(RowAt, Vec<usize>, Instant, Vec<(FilterAnswer, Duration)>),
}

/// What of a row need not wait.
pub(super) struct Passed {
    pub(super) permits: Permits,
    pub(super) undecided: Vec<Arc<Port>>,
}

impl Lane {
    pub(super) fn new(asker: Asker, filter_asker: FilterAsker, metrics: Arc<Metrics>) -> Lane {
        Lane {
            turns: Turns::new(asker.config()),
            asker,
            failures: Failures::new(filter_asker.config().budget),
            filter_asker,
            line: Line::new(),
            rows: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            bytes: 0,
            parts: VecDeque::new(),
            asking: JoinSet::new(),
            asking_filters: 0,
            metrics,
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

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    /// Rows, their bytes, and the questions under way.
    pub(super) fn depth(&self) -> (usize, usize, usize) {
        (self.rows.len() - self.free.len(), self.bytes, self.asking.len())
    }

    pub(super) fn measure(&self, metrics: &Metrics) {
        let (rows, bytes, questions) = self.depth();
        metrics.lane_rows.set(rows as i64);
        metrics.lane_size.set(bytes as i64);
        metrics.lane_questions.set(questions as i64);
        metrics.lane_queued.set((self.turns.waiting() + self.parts.len()) as i64);
        metrics.lane_channels.set(self.line.depth().0 as i64);
        metrics.ask_suspended.set(self.turns.suspended() as i64);
    }

    pub(super) fn has_room(&self) -> bool {
        self.rows.len() - self.free.len() < MAX_ROWS && self.bytes < MAX_BYTES
    }

    fn row(&mut self, at: RowAt) -> Option<&mut Kept> {
        self.rows.get_mut(at.slot)?.as_mut().filter(|row| row.sequence == at.sequence)
    }

    /// Takes a row in and starts its questions as far as there is room for them. What of it need not wait is given back and
    /// goes first; other parts may be ready too ([`Lane::released`]).
    pub(super) fn push(&mut self, row: LaneRow, registry: &Registry) -> Passed {
        let LaneRow { event, mut permits, asked, filtered, mut undecided, xids, bytes, cost, several } = row;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.rows.push(None);
            self.rows.len() - 1
        });
        let at = RowAt { slot, sequence: self.next_sequence() };
        let kept = Kept {
            event,
            asked,
            filtered,
            filters: RowFilters::default(),
            xids,
            bytes,
            cost,
            several,
            since: Instant::now(),
            sequence: at.sequence,
            parts: 0,
        };
        let mut number = 0;
        let mut place = || {
            number += 1;
            Place { sequence: at.sequence, number: number - 1, slot: at.slot }
        };
        let behind = !self.line.is_empty();
        // First the number of each part that must be answered, so that it follows from where it stands in the row.
        let questions: Vec<Place> = kept.asked.iter().flat_map(|asked| &asked.waiting).map(|_| place()).collect();
        let filters: Vec<Place> = kept.filtered.iter().map(|_| place()).collect();
        let mut ready = Vec::new();
        if behind {
            for (permit, members) in &mut permits {
                let mut shared = None;
                let waits = |member: &mut Ready| self.line.waits(member.port.id);
                for Ready { port, ids, cursor_as } in members.extract_if(.., waits) {
                    let permit = shared.get_or_insert_with(|| Arc::new(permit.clone())).clone();
                    ready.push((port.id, place(), settle::Outcome::Ready(permit, ids, cursor_as)));
                }
            }
            permits.retain(|(_, members)| !members.is_empty());
            for port in undecided.extract_if(.., |port| self.line.waits(port.id)) {
                ready.push((port.id, place(), settle::Outcome::Undecided));
            }
        }
        if cost > 0 {
            let asked = kept.asked.iter().flat_map(|asked| asked.waiting.iter().map(|w| w.share.channel));
            let others = kept.filtered.iter().map(|filtered| filtered.share.channel);
            for channel in asked.chain(others).chain(ready.iter().map(|(channel, ..)| *channel)) {
                registry.get(channel).inspect(|known| known.port.place.pace().add(cost));
            }
        }
        let mut questions = questions.into_iter();
        for Asked { principals, waiting, .. } in &kept.asked {
            for (Waiting { share, principal }, place) in waiting.iter().zip(&mut questions) {
                self.line.park(share.channel, place, principals[*principal].sharing_key.clone(), None);
            }
        }
        for (Filtered { share, principal, .. }, place) in kept.filtered.iter().zip(filters) {
            self.line.park(share.channel, place, principal.sharing_key.clone(), None);
        }
        for (channel, place, outcome) in ready {
            let waits_as = registry.get(channel).map_or_else(|| "".into(), |known| known.principal.sharing_key.clone());
            self.line.park(channel, place, waits_as, Some(outcome));
        }
        if behind && !(permits.is_empty() && undecided.is_empty()) {
            self.metrics.lane_passed.inc();
        }
        self.keep(at, kept, number as usize);
        Passed { permits, undecided }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Keeps a row for its parts, and lines up its questions.
    fn keep(&mut self, at: RowAt, mut row: Kept, parts: usize) {
        if parts == 0 {
            self.free.push(at.slot);
            return;
        }
        row.parts = parts;
        row.bytes += parts * PART_BYTES;
        self.bytes += row.bytes;
        let plans: SmallVec<[Arc<Bound>; 1]> = row.asked.iter().map(|asked| asked.bound.clone()).collect();
        self.rows[at.slot] = Some(row);
        let mut refused = false;
        for (index, bound) in plans.iter().enumerate() {
            if self.turns.push(bound.plan(), (at, index), Instant::now()).is_err() {
                refused = true;
                self.refuse(at, index, UndecidedReason::Suspended);
            }
        }
        if !refused {
            self.judged(at);
        }
        self.start();
    }

    /// A question that is not asked.
    fn refuse(&mut self, at: RowAt, index: usize, reason: UndecidedReason) {
        let Some(asked) = self.row(at).and_then(|row| row.asked.get(index)) else { return };
        let verdicts = vec![Verdict::Undecided(reason); asked.principals.len()];
        self.verdicts(at, index, verdicts);
    }

    /// What became of a question: decides the parts that wait for nothing else.
    fn verdicts(&mut self, at: RowAt, index: usize, verdicts: Vec<Verdict>) {
        let RowAt { slot, sequence } = at;
        let Some(row) = self.rows.get_mut(slot).and_then(Option::as_mut).filter(|row| row.sequence == sequence) else {
            return;
        };
        let first = row.first_part(index);
        let Some(asked) = row.asked.get_mut(index).filter(|asked| asked.verdicts.is_none()) else { return };
        for (Waiting { share, principal }, number) in asked.waiting.iter().zip(first..) {
            let verdict = verdicts.get(*principal);
            // His filters come next.
            if matches!(verdict, Some(Verdict::Permit(_))) && !share.open.is_empty() {
                continue;
            }
            let verdict = match verdict.unwrap_or(&Verdict::Undecided(UndecidedReason::Connection)) {
                Verdict::Deny(_) if asked.doubted => &Verdict::Undecided(UndecidedReason::Facts),
                verdict => verdict,
            };
            let outcome = settle::answered(verdict, share);
            self.line.decide(share.channel, Place { sequence, number, slot }, outcome);
        }
        asked.verdicts = Some(verdicts);
        self.judged(at);
    }

    /// If all verdicts of this row are there, asks about the filters of those who were permitted it.
    fn judged(&mut self, at: RowAt) {
        let limits = self.filter_asker.config().clone();
        let Some(row) = self.row(at).filter(|row| row.is_judged()) else { return };
        row.collect_filters(&limits);
        let conditions: Vec<usize> = (0..row.filters.len()).collect();
        self.parts.extend(conditions.chunks(MAX_TERMS).map(|part| (at, part.to_vec())));
        if conditions.is_empty() {
            // Nobody has any, or there is room for none of them.
            self.filtered(at);
        }
    }

    /// If all answers about this row's filters are there, decides the parts that waited for them.
    fn filtered(&mut self, at: RowAt) {
        let RowAt { slot, sequence } = at;
        let Some(row) = self.rows.get(slot).and_then(Option::as_ref).filter(|row| row.sequence == sequence) else {
            return;
        };
        if !row.is_judged() || !row.filters.is_answered() {
            return;
        }
        let mut decided = Vec::new();
        let mut number = 0;
        for Asked { waiting, verdicts, .. } in &row.asked {
            let verdicts = verdicts.as_deref().unwrap_or_default();
            for Waiting { share, principal } in waiting {
                if let Some(Verdict::Permit(permit)) = verdicts.get(*principal).filter(|_| !share.open.is_empty()) {
                    decided.push((share.channel, number, settle::matched(row, self, share, permit, true)));
                }
                number += 1;
            }
        }
        for Filtered { share, permit, .. } in &row.filtered {
            decided.push((share.channel, number, settle::matched(row, self, share, permit, false)));
            number += 1;
        }
        for (kind, count) in [("too_many", row.filters.left_out), ("over_budget", row.filters.over_budget)] {
            if count > 0 {
                self.metrics.filter_failures.get_or_create(&[("kind", kind)]).inc_by(count);
            }
        }
        for (channel, number, outcome) in decided {
            self.line.decide(channel, Place { sequence, number, slot }, outcome);
        }
    }

    fn start(&mut self) {
        self.start_verdicts();
        while self.asking_filters < MAX_ASKING_FILTERS && self.start_filters() {}
    }

    /// Starts the next filter question, if there is one.
    fn start_filters(&mut self) -> bool {
        while let Some((at, mut part)) = self.parts.pop_front() {
            let kept = self.rows.get_mut(at.slot).and_then(Option::as_mut);
            let Some(row) = kept.filter(|row| row.sequence == at.sequence) else { continue };
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
                self.filtered(at);
                continue;
            }
            let terms = part.iter().map(|at| row.filters.term(*at).clone()).collect();
            let question = FilterQuestion { row: row.event.row.clone(), terms };
            let asker = self.filter_asker.clone();
            self.asking_filters += 1;
            self.asking.spawn(async move {
                let began = Instant::now();
                Answered::Filters(at, part, began, asker.judge(&question).await)
            });
            return true;
        }
        false
    }

    /// Starts questions about rights, as many as there are and may start.
    fn start_verdicts(&mut self) {
        while let Some((whose, (at, index))) = self.turns.next(Instant::now()) {
            let row = self.rows.get(at.slot).and_then(Option::as_ref).filter(|row| row.sequence == at.sequence);
            let Some((row, asked)) = row.and_then(|row| Some((row, row.asked.get(index)?))) else {
                let _ = self.turns.ended(&whose, Ended::Unknown, Duration::ZERO, Instant::now());
                continue;
            };
            let waited = row.since.elapsed();
            if waited > LONGEST_WAIT {
                self.refuse(at, index, UndecidedReason::Timeout);
                self.ended(&whose, Ended::Failed(Failure::Behind), waited);
                continue;
            }
            let question = Question {
                bound: asked.bound.clone(),
                change: row.event.row.clone(),
                principals: asked.principals.clone(),
                xids: row.xids.clone(),
            };
            let asker = self.asker.clone();
            self.asking.spawn(async move {
                let began = Instant::now();
                let answers = asker.ask(&question).await;
                Answered::Verdicts(at, index, answers, whose, began.elapsed())
            });
        }
    }

    /// Takes note of how a policy fares.
    fn ended(&mut self, whose: &Whose, ended: Ended, took: Duration) {
        let changed = self.turns.ended(whose, ended, took, Instant::now());
        let name = |turns: &Turns<_>| {
            let plan = turns.plan(whose);
            let table = plan.and_then(|plan| plan.table.clone());
            let role = plan.map(|plan| plan.role.clone()).unwrap_or_default();
            (table.map(|table| format!("{}.{}", table.schema, table.name)).unwrap_or_default(), role)
        };
        match changed {
            Change::Nothing => {}
            Change::Suspended { failure, pause, refused } => {
                let (table, role) = name(&self.turns);
                self.metrics.ask_suspensions.get_or_create(&[("reason", failure.as_str())]).inc();
                tracing::error!(
                    table,
                    role,
                    reason = failure.as_str(),
                    refused = refused.len(),
                    "the table's policies for this role keep failing; Postgres is not asked about them for {pause:?}, and its \
                     subscribers are told of gaps: {}",
                    failure.advice()
                );
                for (at, index) in refused {
                    self.refuse(at, index, UndecidedReason::Suspended);
                }
            }
            Change::Restored => {
                let (table, role) = name(&self.turns);
                tracing::info!(table, role, "the table's policies for this role answer again");
            }
        }
    }

    /// Resolves when an answer has come; pending while nothing is asked. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        let Some(joined) = self.asking.join_next().await else { return std::future::pending().await };
        match joined {
            Ok(Answered::Verdicts(at, index, Answers { verdicts, failure }, whose, took)) => {
                let decided = verdicts.iter().any(|verdict| !matches!(verdict, Verdict::Undecided(_)));
                let ended = match failure {
                    Some(reason) => Ended::Failed(Failure::Undecided(reason)),
                    None if decided => Ended::Answered,
                    None => Ended::Unknown,
                };
                self.verdicts(at, index, verdicts);
                self.ended(&whose, ended, took);
            }
            Ok(Answered::Filters(at, part, began, answers)) => {
                self.asking_filters -= 1;
                for (term, (answer, took)) in part.into_iter().zip(answers) {
                    let kept = self.rows.get_mut(at.slot).and_then(Option::as_mut);
                    let Some(row) = kept.filter(|row| row.sequence == at.sequence) else { break };
                    let outcome = Outcome { began, answer, took };
                    self.failures.note(&row.filters.term(term).0, row.filters.owners(term), &outcome);
                    row.filters.answer(term, answer);
                }
                self.filtered(at);
            }
            // A panic in a question is a bug; without its answer the row would block the lane for ever.
            Err(error) => std::panic::resume_unwind(error.try_into_panic().unwrap_or_else(|_| Box::new("cancelled"))),
        }
        self.start();
    }

    /// Room for rows of the past, which leave some to the present, and whose questions can wait in the log: no policy may seem
    /// to be behind for what is asked here.
    pub(super) fn has_room_to_spare(&self) -> bool {
        let waiting = self.turns.waiting() + self.parts.len();
        waiting < PAST_QUESTIONS && self.rows.len() - self.free.len() < MAX_ROWS / 2 && self.bytes < MAX_BYTES / 2
    }

    /// Whether something of this channel waits.
    pub(super) fn waits(&self, channel: ChannelId) -> bool {
        self.line.waits(channel)
    }

    /// See [`Line::stirred`].
    pub(super) fn stirred(&mut self) -> Vec<ChannelId> {
        self.line.stirred()
    }

    /// The first row that a channel waits for.
    pub(super) fn front(&self, channel: ChannelId) -> Option<Cursor> {
        let Place { slot, sequence, .. } = self.line.front(channel)?;
        let row = self.rows.get(slot)?.as_ref().filter(|row| row.sequence == sequence)?;
        Some(Cursor { epoch: row.event.epoch?, position: row.event.row.position })
    }

    /// The place just before it.
    pub(super) fn complete_to(&self, channel: ChannelId) -> Option<Cursor> {
        self.front(channel).map(|front| Cursor { position: before(front.position), ..front })
    }

    /// What to tell a channel, in order with its changes. Says whether it has to wait; if not, the caller tells.
    pub(super) fn notice(&mut self, port: &Arc<Port>, ok: bool, message: &str, details: Option<Details>) -> bool {
        if !self.line.waits(port.id) {
            return false;
        }
        let place = Place { sequence: self.next_sequence(), number: 0, slot: NO_ROW };
        self.bytes += PART_BYTES;
        self.line.park(
            port.id,
            place,
            "".into(),
            Some(settle::Outcome::Notice(port.clone(), ok, message.into(), details)),
        );
        true
    }

    /// What may leave by now, settled for those who are still there.
    pub(super) fn released(&mut self, registry: &Registry, now: i64) -> Vec<Settled> {
        let parts = self.line.take();
        if parts.is_empty() {
            return Vec::new();
        }
        let metrics = self.metrics.clone();
        let released = parts.into_iter().map(|part| {
            let row = self.rows.get(part.place.slot).and_then(Option::as_ref);
            let row = row.map(|row| OfRow { event: row.event.clone(), cost: row.cost, several: row.several });
            if let Some(OfRow { cost, .. }) = row.as_ref().filter(|row| row.cost > 0) {
                registry.get(part.channel).inspect(|known| known.port.place.pace().take(*cost));
            }
            self.gone(part.place);
            Released { part, row }
        });
        settle::settle(released, registry, now, &metrics)
    }

    /// Another instance of the channel begins: what the one before waits for is nobody's.
    pub(super) fn forget(&mut self, channel: ChannelId) {
        let places: SmallVec<[Place; 4]> = self.line.forget(channel).collect();
        places.into_iter().for_each(|place| self.gone(place));
    }

    /// A part has left.
    fn gone(&mut self, Place { slot, .. }: Place) {
        let Some(row) = self.rows.get_mut(slot).and_then(Option::as_mut) else {
            self.bytes -= PART_BYTES;
            return;
        };
        row.parts -= 1;
        if row.parts == 0 {
            self.bytes -= row.bytes;
            self.rows[slot] = None;
            self.free.push(slot);
        }
    }
}
