//! One row: who is concerned, who may see it, who gets it.

use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use smallvec::SmallVec;

use super::event::{Event, Fanout, Ids, Member, Notice, Outgoing};
use super::filters::{Conditional, Match};
use super::index::Candidate;
use super::lane::{Asked, Filtered, Lane, LaneRow, Permits, Ready, Share, Waiting};
use super::registry::Registry;
use crate::catalog::Published;
use crate::change::{Change, RowChange, Timestamp};
use crate::claims::Principal;
use crate::filter::{AskedTerm, FilterFailure, OpenTerms};
use crate::metrics::Metrics;
use crate::pgtype::Types;
use crate::policy::{Bound, ColumnMask, DenyReason, Judged, Permit, Verdict};

/// A matching entry of a channel.
struct Hit {
    slot: u32,
    entry_id: i32,
    keep: Option<ColumnMask>,
    principal: Arc<Principal>,
    bound: Arc<Bound>,
    open: OpenTerms,
}

/// What a client is told when a change could not be decided for it.
pub(super) const UNDECIDED: &str = "Gap: a change could not be checked against the database in time and was not sent; \
     reload what you show (reason: undecided)";

/// Whether the client publications send this kind of change.
pub(super) fn is_published(published: &Published, change: &Change) -> bool {
    match change {
        Change::Insert { .. } => published.insert,
        Change::Update { .. } => published.update,
        Change::Delete { .. } => published.delete,
    }
}

/// What [`Matcher::judge`] found.
pub(super) struct Judgement {
    pub(super) permits: Permits,
    pub(super) asked: SmallVec<[Asked; 1]>,
    /// Permitted, but for filters that Postgres has to judge.
    pub(super) filtered: Vec<Filtered>,
    /// Channels for which there will be no answer.
    pub(super) undecided: Vec<Arc<super::Port>>,
    /// Where each principal stands in `asked`, by plan and claims.
    principals: AHashMap<(usize, Arc<str>), (usize, usize)>,
}

/// Most principals of one question: its deadline is for all of them.
const MAX_PRINCIPALS: usize = 256;

/// Reused from row to row.
#[derive(Default)]
pub(super) struct Matcher {
    hits: Vec<Hit>,
}

impl Matcher {
    /// Finds and judges the candidates of a row whose table's index fits its relation.
    pub(super) fn judge(
        &mut self,
        registry: &mut Registry,
        row: &RowChange,
        now_unix_seconds: i64,
        metrics: &Metrics,
    ) -> Judgement {
        self.hits.clear();
        let mut counts = Counts::default();
        if let Some(table) = registry.table(row.relation.oid) {
            let hits = &mut self.hits;
            let unseen = table.candidates(&row.change, row.position, &mut |candidate: Candidate<'_>| {
                hits.push(Hit {
                    slot: candidate.key.slot,
                    entry_id: candidate.entry_id,
                    keep: candidate.keep.cloned(),
                    principal: candidate.principal.clone(),
                    bound: candidate.bound.clone(),
                    open: candidate.open,
                });
            });
            if unseen {
                counts.deny(metrics, DenyReason::MissingEvidence.as_str());
            }
        }
        self.hits.sort_unstable_by_key(|hit| (hit.slot, hit.entry_id));
        let mut judgement = Judgement {
            permits: Permits::new(),
            asked: SmallVec::new(),
            filtered: Vec::new(),
            undecided: Vec::new(),
            principals: AHashMap::new(),
        };
        for hits in self.hits.chunk_by(|a, b| a.slot == b.slot) {
            let Some(channel) = registry.at(hits[0].slot) else { continue };
            let judged = hits[0].bound.judge(&row.change, &hits[0].principal, now_unix_seconds);
            for Selected { keep, ids, open } in by_selection(hits) {
                match &judged {
                    Judged::Decided(Verdict::Permit(permit)) if open.is_empty() => {
                        counts.permit += 1;
                        let ready = Ready { port: channel.port.clone(), ids };
                        add(&mut judgement.permits, narrowed(permit, keep), ready);
                    }
                    Judged::Decided(Verdict::Permit(permit)) => {
                        counts.permit += 1;
                        let share = Share { channel: channel.port.id, ids, open, keep: keep.cloned() };
                        let principal = hits[0].principal.clone();
                        judgement.filtered.push(Filtered { share, principal, permit: permit.clone() });
                    }
                    Judged::Decided(Verdict::Deny(reason)) => counts.deny(metrics, reason.as_str()),
                    Judged::Decided(Verdict::Undecided(_)) => {
                        counts.undecided += 1;
                        judgement.undecided.push(channel.port.clone());
                    }
                    Judged::Ask => {
                        let share = Share { channel: channel.port.id, ids, open, keep: keep.cloned() };
                        judgement.ask(&hits[0].bound, &hits[0].principal, Waiting { share, principal: 0 });
                    }
                }
            }
        }
        counts.report(metrics);
        judgement
    }
}

impl Judgement {
    /// It is nobody's row.
    pub(super) fn is_empty(&self) -> bool {
        self.permits.is_empty() && !self.must_wait() && self.undecided.is_empty()
    }

    /// Postgres has to be asked.
    pub(super) fn must_wait(&self) -> bool {
        !self.asked.is_empty() || !self.filtered.is_empty()
    }

    /// Principals with equal claims share a question, and so an answer.
    fn ask(&mut self, bound: &Arc<Bound>, principal: &Arc<Principal>, mut waiting: Waiting) {
        let known = (Arc::as_ptr(bound) as usize, principal.sharing_key.clone());
        if let Some((at, index)) = self.principals.get(&known) {
            waiting.principal = *index;
            self.asked[*at].waiting.push(waiting);
            return;
        }
        // The last question about this plan, unless it is full.
        let has_room = |a: &Asked| Arc::ptr_eq(&a.bound, bound) && a.principals.len() < MAX_PRINCIPALS;
        let at = self.asked.iter().rposition(has_room).unwrap_or_else(|| {
            let (principals, waiting) = (Vec::new(), Vec::new());
            self.asked.push(Asked { bound: bound.clone(), principals, waiting, verdicts: None });
            self.asked.len() - 1
        });
        let asked = &mut self.asked[at];
        waiting.principal = asked.principals.len();
        self.principals.insert(known, (at, waiting.principal));
        asked.principals.push(principal.clone());
        asked.waiting.push(waiting);
    }
}

/// The matching entries of one channel that select the same columns.
struct Selected<'a> {
    keep: Option<&'a ColumnMask>,
    ids: Ids,
    open: Conditional,
}

/// The matching entries of one channel, by what they select: each selection is a frame of its own.
fn by_selection(hits: &[Hit]) -> SmallVec<[Selected<'_>; 1]> {
    let mut groups: SmallVec<[Selected<'_>; 1]> = SmallVec::new();
    for hit in hits {
        let at = groups.iter().position(|group| group.keep == hit.keep.as_ref());
        let at = at.unwrap_or_else(|| {
            groups.push(Selected { keep: hit.keep.as_ref(), ids: Ids::new(), open: Vec::new() });
            groups.len() - 1
        });
        let Selected { ids, open, .. } = &mut groups[at];
        // Equal entries share an id, and everything else too.
        if !hit.open.is_empty() {
            if open.last().is_none_or(|(id, _)| *id != hit.entry_id) {
                open.push((hit.entry_id, hit.open.clone()));
            }
        } else if ids.last() != Some(&hit.entry_id) {
            ids.push(hit.entry_id);
        }
    }
    groups
}

fn narrowed(permit: &Permit, keep: Option<&ColumnMask>) -> Permit {
    keep.map_or_else(|| permit.clone(), |keep| permit.narrowed(keep))
}

fn add(permits: &mut Permits, permit: Permit, ready: Ready) {
    match permits.iter_mut().find(|(known, _)| *known == permit) {
        Some((_, members)) => members.push(ready),
        None => permits.push((permit, vec![ready])),
    }
}

/// What the answers for a row made of those who waited for them.
#[derive(Default)]
pub(super) struct Settled {
    /// Channels that were not decided.
    pub(super) undecided: Vec<Arc<super::Port>>,
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
                    settled.undecided.push(port);
                }
                None => settled.undecided.push(port),
            }
        }
    }
    if row.filters.left_out > 0 {
        metrics.filter_failures.get_or_create(&[("kind", "too_many")]).inc_by(row.filters.left_out);
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
            self.undecided.push(channel.port.clone());
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
            self.undecided.push(port.clone());
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
    format!("Subscription ended: the filter {} {what}, twice in a row; use a simpler one", term.describe())
}

/// Turns what is decided into work for the shards.
pub(super) fn emit(
    out: &mut [Vec<Outgoing>],
    event: &Arc<Event>,
    permits: Permits,
    undecided: &[Arc<super::Port>],
) -> u64 {
    let mut deliveries = 0;
    for (permit, ready) in permits {
        let mut by_shard: SmallVec<[Vec<Member>; 8]> = (0..out.len()).map(|_| Vec::new()).collect();
        deliveries += ready.len() as u64;
        for Ready { port, ids } in ready {
            let shard = port.shard % out.len();
            by_shard[shard].push(Member { port, ids });
        }
        for (members, out) in by_shard.into_iter().zip(out.iter_mut()) {
            if !members.is_empty() {
                out.push(Outgoing::Change(Fanout { event: permit.admit(event.clone()), members }));
            }
        }
    }
    for port in undecided {
        notify(out, port, false, UNDECIDED);
    }
    deliveries
}

/// Queues a `system` message for a channel, in order with its changes.
pub(super) fn notify(out: &mut [Vec<Outgoing>], port: &Arc<super::Port>, ok: bool, message: &str) {
    let shard = port.shard % out.len();
    out[shard].push(Outgoing::Notice(Notice { port: port.clone(), ok, message: message.into() }));
}

/// An event of a row, not encoded yet.
pub(super) fn event(row: RowChange, commit_time: Timestamp, taken: Instant, types: &Arc<Types>) -> Arc<Event> {
    Arc::new(Event::new(Arc::new(row), commit_time, taken, types.clone()))
}

/// Verdicts of one row, reported together.
#[derive(Default)]
struct Counts {
    permit: u64,
    deny: u64,
    undecided: u64,
}

impl Counts {
    fn deny(&mut self, metrics: &Metrics, reason: &'static str) {
        self.deny += 1;
        metrics.denials.get_or_create(&[("reason", reason)]).inc();
    }

    fn report(&self, metrics: &Metrics) {
        for (kind, count) in [("permit", self.permit), ("deny", self.deny), ("undecided", self.undecided)] {
            if count > 0 {
                metrics.verdicts.get_or_create(&[("kind", kind)]).inc_by(count);
            }
        }
    }
}
