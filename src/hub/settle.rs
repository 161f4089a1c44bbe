//! A row whose answers have all come: who gets it, who is told of a gap, whose subscription ends.
//!
//! Who waited is looked at again: a channel that left, or has another token by now, does not get what was asked for its past.

use std::sync::Arc;

use super::event::Ids;
use super::filters::Match;
use super::lane::{Filtered, Lane, LaneRow, Permits, Ready, Share, Waiting};
use super::matching::{Counts, add, narrowed};
use super::registry::Registry;
use crate::claims::Principal;
use crate::filter::{AskedTerm, FilterFailure};
use crate::metrics::Metrics;
use crate::policy::{DenyReason, Permit, Verdict};

/// What the answers for a row made of those who waited for them.
#[derive(Default)]
pub(super) struct Settled {
    /// Channels that were not decided.
    pub(super) undecided: Vec<Arc<super::Port>>,
    /// Why, of each of them.
    pub(super) reasons: Vec<&'static str>,
    /// Channels whose filter Postgres can't judge, and what to tell them.
    pub(super) ended: Vec<(Arc<super::Port>, String)>,
}

/// Adds the answers that came for a row to what was known at once.
pub(super) fn settle(row: &mut LaneRow, lane: &Lane, registry: &Registry, now: i64, metrics: &Metrics) -> Settled {
    let mut settled = Settled::default();
    let mut counts = Counts::default();
    let table = &row.event.row.relation.table;
    for Filtered { share, principal, permit } in std::mem::take(&mut row.filtered) {
        if let Some(port) = settled.still(&share, &principal, registry, now, &mut counts, metrics) {
            let ids = settled.matching(row, lane, &share, &port);
            deliver(&mut row.permits, &permit, &share, port, ids);
        }
    }
    for asked in std::mem::take(&mut row.asked) {
        let verdicts = asked.verdicts.unwrap_or_default();
        for Waiting { share, principal } in asked.waiting {
            let waits_as = &asked.principals[principal];
            let port = settled.still(&share, waits_as, registry, now, &mut counts, metrics);
            let Some(port) = port else { continue };
            match verdicts.get(principal) {
                Some(Verdict::Permit(permit)) => {
                    counts.permit += 1;
                    let ids = settled.matching(row, lane, &share, &port);
                    deliver(&mut row.permits, permit, &share, port, ids);
                }
                Some(Verdict::Deny(reason)) => counts.deny(metrics, reason.as_str()),
                Some(Verdict::Undecided(reason)) => {
                    counts.undecided += 1;
                    tracing::warn!(
                        table, position = %row.event.row.position, reason = reason.as_str(),
                        "a change could not be judged in time; the subscriber is told of a gap"
                    );
                    settled.undecided(port, reason.as_str());
                }
                None => settled.undecided(port, "no answer"),
            }
        }
    }
    for (kind, count) in [("too_many", row.filters.left_out), ("over_budget", row.filters.over_budget)] {
        if count > 0 {
            metrics.filter_failures.get_or_create(&[("kind", kind)]).inc_by(count);
        }
    }
    counts.report(metrics);
    settled
}

fn deliver(permits: &mut Permits, permit: &Permit, share: &Share, port: Arc<super::Port>, ids: Ids) {
    if !ids.is_empty() {
        add(permits, narrowed(permit, share.keep.as_ref()), Ready { port, ids });
    }
}

impl Settled {
    fn undecided(&mut self, port: Arc<super::Port>, reason: &'static str) {
        self.undecided.push(port);
        self.reasons.push(reason);
    }

    /// The channel, if it is still the one that waited.
    fn still(
        &mut self,
        share: &Share,
        principal: &Principal,
        registry: &Registry,
        now: i64,
        counts: &mut Counts,
        metrics: &Metrics,
    ) -> Option<Arc<super::Port>> {
        // Gone meanwhile: the answer is about nobody.
        let channel = registry.get(share.channel)?;
        if channel.principal.sharing_key != principal.sharing_key {
            // Somebody else by now, who may have been owed the row as well.
            counts.undecided += 1;
            self.undecided(channel.port.clone(), "new token");
            return None;
        }
        if channel.principal.is_expired(now) {
            counts.deny(metrics, DenyReason::Expired.as_str());
            return None;
        }
        Some(channel.port.clone())
    }

    /// The entries that match, by what Postgres said of their filters.
    fn matching(&mut self, row: &LaneRow, lane: &Lane, share: &Share, port: &Arc<super::Port>) -> Ids {
        let mut ids = share.ids.clone();
        let mut undecided = false;
        for (id, open) in &share.open {
            match row.filters.decide(open) {
                Match::Yes => ids.push(*id),
                Match::No => {}
                Match::Undecided => undecided = true,
                Match::Failed(term) => {
                    undecided = true;
                    if let Some(failure) = lane.failures().given_up(&term) {
                        self.end(port, ended(&term, failure, lane));
                    }
                }
            }
        }
        if undecided && !self.undecided.iter().any(|known| known.id == port.id) {
            tracing::warn!(
                table = row.event.row.relation.table, position = %row.event.row.position,
                "the database did not answer a filter; the subscriber is told of a gap"
            );
            self.undecided(port.clone(), "filter");
        }
        ids.sort_unstable();
        ids
    }

    fn end(&mut self, port: &Arc<super::Port>, message: String) {
        if !self.ended.iter().any(|(known, _)| known.id == port.id) {
            self.ended.push((port.clone(), message));
        }
    }
}

fn ended(term: &AskedTerm, failure: FilterFailure, lane: &Lane) -> String {
    let what = match failure {
        FilterFailure::Timeout => format!("took longer than {:?} for the database to judge", lane.filter_timeout()),
        FilterFailure::Raised => "made the database raise an error".into(),
    };
    format!("Subscription ended: the filter {} {what}, repeatedly; use a simpler one", term.describe())
}
