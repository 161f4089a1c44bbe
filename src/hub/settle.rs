//! What the answers for a row make of those who waited for them: who gets it, who is told of a gap, whose subscription ends.
//!
//! Who waited is looked at again when his part leaves: a channel that left, or has another token by now, does not get what was
//! asked for, or permitted to, its past.

use std::sync::Arc;

use ahash::AHashSet;

use super::event::{Details, Event, Ids};
use super::filters::Match;
use super::lane::Lane;
use super::line::Left;
use super::matching::{Counts, add, last_has_cursor, narrowed};
use super::registry::Registry;
use super::waiting::{Kept, Permits, Ready, Share};
use super::{ChannelId, Port};
use crate::filter::{AskedTerm, FilterFailure};
use crate::metrics::Metrics;
use crate::policy::{DenyReason, Permit, UndecidedReason, Verdict};

/// What became of a part.
pub(super) enum Outcome {
    /// Permitted in memory; it was behind others.
    Ready(Arc<Permit>, Ids, Option<Arc<str>>),
    /// Undecided in memory, and counted.
    Undecided,
    /// Nothing of a row: what to tell a channel.
    Notice(Arc<Port>, bool, Arc<str>, Option<Details>),
    Answered(Box<Answered>),
}

/// What Postgres's answers made of a part.
#[derive(Default)]
pub(super) struct Answered {
    /// Postgres said yes to the rights themselves.
    permitted: bool,
    denied: Option<DenyReason>,
    undecided: Option<&'static str>,
    /// What leaves: the entries that match.
    deliver: Option<Delivered>,
    /// The filter can't be judged: what to tell.
    ended: Option<String>,
}

/// Under which permit and ids, and under which name the record carries its cursor.
type Delivered = (Permit, Ids, Option<Arc<str>>);

/// A part that leaves, with its row unless it is a notice.
pub(super) struct Released {
    pub(super) part: Left<Outcome>,
    pub(super) row: Option<OfRow>,
}

/// See [`super::waiting::LaneRow`].
pub(super) struct OfRow {
    pub(super) event: Arc<Event>,
    pub(super) cost: u32,
    pub(super) several: bool,
}

/// What leaves of one row.
pub(super) struct Leaving {
    pub(super) event: Arc<Event>,
    /// See [`super::waiting::LaneRow::cost`].
    pub(super) cost: u32,
    pub(super) permits: Permits,
    /// Channels that were not decided.
    pub(super) undecided: Vec<Arc<Port>>,
    /// Why, of each of them.
    pub(super) reasons: Vec<&'static str>,
    /// Channels whose filter Postgres can't judge, and what to tell them.
    pub(super) ended: Vec<(Arc<Port>, String)>,
}

/// What leaves, in order.
pub(super) enum Settled {
    Row(Leaving),
    Notice(Arc<Port>, bool, Arc<str>, Option<Details>),
}

/// Of a share whose filters, if any, need not be asked about.
pub(super) fn answered(verdict: &Verdict, share: &Share) -> Outcome {
    let mut answered = Answered::default();
    match verdict {
        Verdict::Permit(permit) => {
            answered.permitted = true;
            answered.deliver = deliver(permit, share, share.ids.clone());
        }
        Verdict::Deny(reason) => answered.denied = Some(*reason),
        Verdict::Undecided(reason) => answered.undecided = Some(reason.as_str()),
    }
    Outcome::Answered(Box::new(answered))
}

fn deliver(permit: &Permit, share: &Share, ids: Ids) -> Option<Delivered> {
    (!ids.is_empty()).then(|| (narrowed(permit, share.keep.as_ref()), ids, share.cursor_as.clone()))
}

/// Of a share that is permitted the row, by what Postgres said of its filters; `asked` if it said the former too.
pub(super) fn matched(row: &Kept, lane: &Lane, share: &Share, permit: &Permit, asked: bool) -> Outcome {
    let mut answered = Answered { permitted: asked, ..Answered::default() };
    let mut ids = share.ids.clone();
    for (id, open) in &share.open {
        match row.filters.decide(open) {
            Match::Yes => ids.push(*id),
            Match::No => {}
            Match::Undecided => answered.undecided = Some(FILTER),
            Match::Failed(term) => {
                answered.undecided = Some(FILTER);
                if let Some(failure) = lane.failures().given_up(&term) {
                    answered.ended = Some(ended(&term, failure, lane));
                }
            }
        }
    }
    ids.sort_unstable();
    answered.deliver = deliver(permit, share, ids);
    Outcome::Answered(Box::new(answered))
}

fn ended(term: &AskedTerm, failure: FilterFailure, lane: &Lane) -> String {
    let what = match failure {
        FilterFailure::Timeout => format!("took longer than {:?} for the database to judge", lane.filter_timeout()),
        FilterFailure::Raised => "made the database raise an error".into(),
    };
    format!("Subscription ended: the filter {} {what}, repeatedly; use a simpler one", term.describe())
}

/// One row at a time, while its parts are gone through.
struct Settling<'a> {
    registry: &'a Registry,
    now: i64,
    metrics: &'a Metrics,
    settled: Vec<Settled>,
    /// Of the row at hand.
    sequence: u64,
    several: bool,
    told: AHashSet<ChannelId>,
    reason: &'static str,
    counts: Counts,
    /// Whose subscription has ended on the way.
    gone: AHashSet<ChannelId>,
}

/// Settles parts that leave together, in their order.
pub(super) fn settle(
    released: impl IntoIterator<Item = Released>,
    registry: &Registry,
    now: i64,
    metrics: &Metrics,
) -> Vec<Settled> {
    let mut settling = Settling {
        registry,
        now,
        metrics,
        settled: Vec::new(),
        sequence: 0,
        several: false,
        told: AHashSet::new(),
        reason: "",
        counts: Counts::default(),
        gone: AHashSet::new(),
    };
    for Released { part, row } in released {
        settling.part(part, row);
    }
    settling.report();
    settling.settled
}

impl Settling<'_> {
    fn part(&mut self, part: Left<Outcome>, row: Option<OfRow>) {
        let Left { place, channel, waits_as, outcome } = part;
        let outcome = match (outcome, row) {
            (Outcome::Notice(port, ok, message, details), _) => {
                self.settled.push(Settled::Notice(port, ok, message, details));
                return;
            }
            (_, None) => return,
            (outcome, Some(OfRow { event, cost, several })) => {
                if place.sequence != self.sequence {
                    self.report();
                    (self.sequence, self.several) = (place.sequence, several);
                    let (permits, undecided, ended) = (Permits::new(), Vec::new(), Vec::new());
                    let reasons = Vec::new();
                    self.settled.push(Settled::Row(Leaving { event, cost, permits, undecided, reasons, ended }));
                }
                outcome
            }
        };
        let Some(port) = self.still(channel, &waits_as, &outcome) else { return };
        let Some(Settled::Row(row)) = self.settled.last_mut() else { return };
        match outcome {
            Outcome::Ready(permit, ids, cursor_as) => {
                add(&mut row.permits, Permit::clone(&permit), Ready { port, ids, cursor_as });
            }
            Outcome::Undecided => self.undecided(port, ""),
            Outcome::Notice(..) => {}
            Outcome::Answered(answered) => {
                let Answered { permitted, denied, undecided, deliver, ended } = *answered;
                self.counts.permit += u64::from(permitted);
                if let Some((permit, ids, cursor_as)) = deliver {
                    add(&mut row.permits, permit, Ready { port: port.clone(), ids, cursor_as });
                }
                if let Some(message) = ended.filter(|_| self.gone.insert(channel)) {
                    row.ended.push((port.clone(), message));
                }
                if let Some(reason) = denied {
                    self.counts.deny(self.metrics, reason.as_str());
                }
                if let Some(reason) = undecided {
                    self.counts.undecided += u64::from(!permitted && reason != FILTER);
                    self.undecided(port, reason);
                }
            }
        }
    }

    /// The channel, if it is still the one that waited.
    fn still(&mut self, id: ChannelId, waits_as: &str, outcome: &Outcome) -> Option<Arc<Port>> {
        // Gone meanwhile: the answer is about nobody.
        let channel = self.registry.get(id).filter(|_| !self.gone.contains(&id))?;
        let port = channel.port.clone();
        if *channel.principal.sharing_key != *waits_as {
            // Somebody else by now, who may have been owed the row as well.
            self.counts.undecided += 1;
            self.undecided(port, "other_token");
            return None;
        }
        if channel.principal.is_expired(self.now) {
            // A new token may be on its way, and what comes next by that; so this row must not be missed in silence.
            if !matches!(outcome, Outcome::Undecided) {
                self.counts.deny(self.metrics, DenyReason::Expired.as_str());
            }
            self.undecided(port, EXPIRED);
            return None;
        }
        Some(port)
    }

    fn undecided(&mut self, port: Arc<Port>, reason: &'static str) {
        let Some(Settled::Row(row)) = self.settled.last_mut() else { return };
        if self.told.insert(port.id) {
            self.reason = if self.reason.is_empty() { reason } else { self.reason };
            row.undecided.push(port);
            row.reasons.push(if reason.is_empty() { "catalog" } else { reason });
        }
    }

    /// The row at hand is complete.
    fn report(&mut self) {
        let quiet = ["", "other_token", EXPIRED, UndecidedReason::Suspended.as_str(), UndecidedReason::Facts.as_str()];
        if let Some(Settled::Row(row)) = self.settled.last()
            && !quiet.contains(&self.reason)
        {
            tracing::warn!(
                table = row.event.row.relation.table, position = %row.event.row.position, reason = self.reason,
                channels = row.undecided.len(),
                "the database did not answer in time whether a change may be sent; its subscribers are told of a gap"
            );
        }
        if let Some(Settled::Row(row)) = self.settled.last_mut()
            && self.several
        {
            last_has_cursor(&mut row.permits);
        }
        self.told.clear();
        self.reason = "";
        std::mem::take(&mut self.counts).report(self.metrics);
    }
}

/// Why a part is undecided whose rights are not.
const FILTER: &str = "filter";
/// Why a part is not given, nor judged again, whose channel has no valid token when it leaves.
const EXPIRED: &str = "expired";
