//! One row: who is concerned, who may see it, who gets it.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Instant;

use ahash::{AHashMap, AHashSet};
use smallvec::SmallVec;

use super::ChannelId;
use super::event::{Details, Event, Fanout, GapReason, Ids, Member, NO_CURSOR, NONE, Notice, Outgoing};
use super::filters::Conditional;
use super::gaps::before;
use super::index::{Hit, Proposals, Sub, TableIndex};
use super::registry::{At, Registry};
use super::waiting::{Asked, Filtered, Permits, Ready, Share, Waiting};
use crate::catalog::Published;
use crate::change::{Change, Position, RowChange, Timestamp};
use crate::claims::Principal;
use crate::fail::{self, Point};
use crate::metrics::Metrics;
use crate::pgtype::Types;
use crate::policy::facts::Facts;
use crate::policy::{Bound, ColumnMask, DenyReason, Judged, Permit, UndecidedReason, Verdict};
use crate::resume::Cursor;

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
#[derive(Default)]
pub(super) struct Judgement {
    pub(super) permits: Permits,
    pub(super) asked: SmallVec<[Asked; 1]>,
    /// Permitted, but for filters that Postgres has to judge.
    pub(super) filtered: Vec<Filtered>,
    /// Channels for which there will be no answer.
    pub(super) undecided: Vec<Arc<super::Port>>,
    /// Channels whose row is lost for want of facts; they are told later, of all such rows together ([`super::owing`]).
    pub(super) lost: Vec<Arc<super::Port>>,
    /// The same, denied by facts that are ahead of the row and may yet turn out to be what they were before it.
    pub(super) doubted: Vec<Arc<super::Port>>,
    /// So for all others that want such rows.
    pub(super) doubted_by_all: bool,
    /// Channels that would have been judged, but for their token, which is no longer valid.
    pub(super) expired: Vec<super::ChannelId>,
    /// Some channel may get the row in several frames.
    pub(super) several: bool,
    /// Where each principal stands in `asked`, by plan and claims.
    principals: AHashMap<(usize, Arc<str>), (usize, usize)>,
}

/// Most principals of one question: its deadline is for all of them.
const MAX_PRINCIPALS: usize = 256;

/// Reused from row to row.
#[derive(Default)]
pub(super) struct Matcher {
    proposals: Proposals,
    /// Of each class that the row met, once it is needed.
    verdicts: Vec<Option<Judged>>,
}

impl Matcher {
    /// How many judgements the latest row took.
    #[cfg(test)]
    pub(super) fn judged(&self) -> usize {
        self.verdicts.iter().flatten().count()
    }

    /// Finds and judges the candidates of a row whose table's index fits its relation and the facts. With the row the id of its
    /// transaction, and the history that this is in.
    pub(super) fn judge(
        &mut self,
        (registry, at): (&mut Registry, At),
        (row, transaction): (&RowChange, (u32, Option<u64>)),
        facts: &Facts,
        now_unix_seconds: i64,
        metrics: &Metrics,
    ) -> Judgement {
        let mut judgement = Judgement::default();
        let Some(table) = registry.table(at, row.relation.oid) else { return judgement };
        let mut counts = Counts::default();
        let Matcher { proposals, verdicts } = self;
        proposals.clear();
        if table.search(row, facts, proposals) {
            counts.deny(metrics, DenyReason::MissingEvidence.as_str());
        }
        table.leave_out(transaction, row.position.lsn, proposals);
        let Proposals { hits, classes, all_doubt, .. } = proposals;
        judgement.doubted_by_all = *all_doubt;
        let order = |hit: &Hit| (hit.channel, hit.entry_id);
        if !hits.is_sorted_by_key(order) {
            hits.sort_unstable_by_key(order);
        }
        verdicts.clear();
        verdicts.resize(classes.len(), None);
        let table = &*table;
        let mut judges = table.judges(&row.change, facts);
        for (at, hit) in hits.iter().enumerate() {
            let class = hit.class as usize;
            // Only the first entry of a channel counts: all have its principal.
            let is_first = at == 0 || hits[at - 1].channel != hit.channel;
            if is_first && verdicts[class].is_none() {
                verdicts[class] = judges.verdict(classes[class]);
            }
        }
        table.warm(hits);
        for hits in hits.chunk_by(|a, b| a.channel == b.channel) {
            let Some(sub) = table.sub(hits[0].sub) else { continue };
            let Some(judged) = &verdicts[hits[0].class as usize] else { continue };
            judgement.channel(table, (sub, hits), row, judged, now_unix_seconds, (&mut counts, metrics));
        }
        counts.report(metrics);
        if judgement.several {
            last_has_cursor(&mut judgement.permits);
        }
        if !judgement.permits.is_empty() {
            fail::point(Point::Matched);
        }
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

    /// Who gets this other thing too, which comes behind what was judged here, gets it with the cursor of both.
    pub(super) fn leave_cursor_to(&mut self, other: &Judgement) {
        let both: AHashSet<ChannelId> =
            other.permits.iter().flat_map(|(_, members)| members).map(|ready| ready.port.id).collect();
        let ready = self.permits.iter_mut().flat_map(|(_, members)| members);
        ready.filter(|ready| both.contains(&ready.port.id)).for_each(|ready| ready.cursor_as = Some(NONE.clone()));
        let asked = self.asked.iter_mut().flat_map(|asked| &mut asked.waiting).map(|waiting| &mut waiting.share);
        let shares = asked.chain(self.filtered.iter_mut().map(|filtered| &mut filtered.share));
        shares.filter(|share| both.contains(&share.channel)).for_each(|share| share.cursor_as = Some(NONE.clone()));
    }

    /// Adds what was judged for the matching entries of one channel.
    fn channel(
        &mut self,
        table: &TableIndex,
        (sub, hits): (&Sub, &[Hit]),
        row: &RowChange,
        judged: &Judged,
        now_unix_seconds: i64,
        (counts, metrics): (&mut Counts, &Metrics),
    ) {
        if sub.is_expired(now_unix_seconds) {
            counts.deny(metrics, DenyReason::Expired.as_str());
            return self.expired.push(sub.port.id);
        }
        if let (Judged::Decided(Verdict::Permit(permit)), [hit]) = (judged, hits)
            && sub.takes_all()
        {
            counts.permit += 1;
            return add(
                &mut self.permits,
                permit,
                Ready { port: sub.port.clone(), ids: Ids::from_slice(&[hit.entry_id]), cursor_as: None },
            );
        }
        let doubted = table.doubts(sub, &row.change);
        let groups = by_selection(table, hits, row);
        // All of a row leaves together: if Postgres is asked about a part of it, the others wait.
        let waits = groups.iter().any(|group| !group.open.is_empty());
        self.several |= groups.len() > 1;
        for Selected { keep, cursor_as, ids, open } in groups {
            let cursor_as = cursor_as.cloned();
            match judged {
                Judged::Decided(Verdict::Permit(permit)) if !waits => {
                    counts.permit += 1;
                    add(&mut self.permits, narrowed(permit, keep), Ready { port: sub.port.clone(), ids, cursor_as });
                }
                Judged::Decided(Verdict::Permit(permit)) => {
                    counts.permit += 1;
                    let (share, principal) = (share(&sub.port, ids, open, (keep, cursor_as)), sub.principal().clone());
                    self.filtered.push(Filtered { share, principal, permit: permit.clone() });
                }
                Judged::Decided(Verdict::Deny(DenyReason::Policy | DenyReason::PolicyError)) if doubted => {
                    counts.undecided += 1;
                    let list = if table.is_late(sub) { &mut self.doubted } else { &mut self.lost };
                    list.push(sub.port.clone());
                }
                Judged::Decided(Verdict::Undecided(UndecidedReason::Facts)) => {
                    counts.undecided += 1;
                    self.lost.push(sub.port.clone());
                }
                Judged::Decided(Verdict::Deny(reason)) => counts.deny(metrics, reason.as_str()),
                Judged::Decided(Verdict::Undecided(_)) => {
                    counts.undecided += 1;
                    self.undecided.push(sub.port.clone());
                }
                Judged::Ask => {
                    let Some(bound) = table.bound(sub) else { continue };
                    let share = share(&sub.port, ids, open, (keep, cursor_as));
                    self.ask((bound, doubted), sub.principal(), Waiting { share, principal: 0 });
                }
            }
        }
    }

    /// Principals with equal claims share a question, and so an answer.
    fn ask(&mut self, (bound, doubted): (&Arc<Bound>, bool), principal: &Arc<Principal>, mut waiting: Waiting) {
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
            self.asked.push(Asked { bound: bound.clone(), doubted, principals, waiting, verdicts: None });
            self.asked.len() - 1
        });
        let asked = &mut self.asked[at];
        waiting.principal = asked.principals.len();
        self.principals.insert(known, (at, waiting.principal));
        asked.principals.push(principal.clone());
        asked.waiting.push(waiting);
    }
}

fn share(
    port: &super::Port,
    ids: Ids,
    open: Conditional,
    (keep, cursor_as): (Option<&ColumnMask>, Option<Arc<str>>),
) -> Share {
    Share { channel: port.id, connection: port.outbox.number(), ids, open, keep: keep.cloned(), cursor_as }
}

/// The matching entries of one channel that select the same columns and want the same record.
struct Selected<'a> {
    keep: Option<&'a ColumnMask>,
    cursor_as: Option<&'a Arc<str>>,
    ids: Ids,
    open: Conditional,
}

/// The matching entries of one channel, by what they select: each selection is a frame of its own.
fn by_selection<'a>(table: &'a TableIndex, hits: &[Hit], row: &RowChange) -> SmallVec<[Selected<'a>; 1]> {
    let mut groups: SmallVec<[Selected<'a>; 1]> = SmallVec::new();
    for hit in hits {
        let Some(sub) = table.sub(hit.sub) else { continue };
        let (keep, cursor_as, terms) = (sub.keep(), sub.cursor_as(row.position), sub.open(&row.change));
        let at = groups.iter().position(|group| group.keep == keep && group.cursor_as == cursor_as);
        let at = at.unwrap_or_else(|| {
            groups.push(Selected { keep, cursor_as, ids: Ids::new(), open: Vec::new() });
            groups.len() - 1
        });
        let Selected { ids, open, .. } = &mut groups[at];
        // Equal entries share an id, and everything else too.
        if !terms.is_empty() {
            if open.last().is_none_or(|(id, _)| *id != hit.entry_id) {
                open.push((hit.entry_id, terms));
            }
        } else if ids.last() != Some(&hit.entry_id) {
            ids.push(hit.entry_id);
        }
    }
    if groups.len() > 1 {
        // What need not be asked about waits behind what must be, and leaves with it.
        groups.sort_by_key(|group| group.open.is_empty());
    }
    groups
}

/// Of the frames of a row that a channel gets, only the last shows the cursor: who is cut off between two of them, and goes on
/// from a cursor that he has, gets all of them. The last is one that names it, if there is any: who looks at names sees no other.
pub(super) fn last_has_cursor(permits: &mut Permits) {
    let rank = |ready: &Ready| match ready.cursor_as.as_deref() {
        Some(NO_CURSOR) => 0,
        None => 1,
        Some(_) => 2,
    };
    // Of each channel: how many, and the last of the highest rank.
    let mut frames: AHashMap<ChannelId, (u32, u8, usize)> = AHashMap::new();
    for (number, ready) in permits.iter().flat_map(|(_, members)| members).enumerate() {
        let (count, highest, last) = frames.entry(ready.port.id).or_default();
        *count += 1;
        if rank(ready) >= *highest {
            (*highest, *last) = (rank(ready), number);
        }
    }
    let (mut lasts, mut number) = (Permits::new(), 0);
    for (permit, members) in permits.iter_mut() {
        let is_last = |ready: &mut Ready| {
            let here = number;
            number += 1;
            match frames.get(&ready.port.id) {
                Some((2.., _, last)) if *last == here => true,
                Some((2.., ..)) => {
                    ready.cursor_as = Some(NONE.clone());
                    false
                }
                _ => false,
            }
        };
        members.extract_if(.., is_last).for_each(|ready| add(&mut lasts, &*permit, ready));
    }
    permits.retain(|(_, members)| !members.is_empty());
    permits.extend(lasts);
}

pub(super) fn narrowed(permit: &Permit, keep: Option<&ColumnMask>) -> Permit {
    keep.map_or_else(|| permit.clone(), |keep| permit.narrowed(keep))
}

pub(super) fn add(permits: &mut Permits, permit: impl Borrow<Permit>, ready: Ready) {
    let permit = permit.borrow();
    match permits.iter_mut().find(|(known, _)| known == permit) {
        Some((_, members)) => members.push(ready),
        None => permits.push((permit.clone(), vec![ready])),
    }
}

/// Turns what is decided into work for the shards.
pub(super) fn emit(
    out: &mut [Vec<Outgoing>],
    event: &Arc<Event>,
    permits: Permits,
    undecided: &[Arc<super::Port>],
    cost: u32,
) -> u64 {
    let mut deliveries = 0;
    for (permit, ready) in permits {
        let share = ready.len().div_ceil(out.len());
        let mut by_shard: SmallVec<[Vec<Member>; 8]> = (0..out.len()).map(|_| Vec::new()).collect();
        deliveries += ready.len() as u64;
        for Ready { port, ids, cursor_as } in ready {
            let shard = port.shard % out.len();
            if cost > 0 {
                port.place.pace().add(cost);
            }
            let members = &mut by_shard[shard];
            if members.is_empty() {
                members.reserve(share);
            }
            members.push(Member { port, ids, cursor_as, cost });
        }
        for (members, out) in by_shard.into_iter().zip(out.iter_mut()) {
            if !members.is_empty() {
                out.push(Outgoing::Change(Fanout { event: permit.admit(event.clone()), members }));
            }
        }
    }
    let details = undecided_at(event.row.position, event.epoch);
    for port in undecided {
        notify(out, port, false, UNDECIDED, details);
    }
    deliveries
}

/// What a program is told of a row that was not decided.
pub(super) fn undecided_at(at: Position, epoch: Option<u64>) -> Option<Details> {
    epoch.map(|epoch| Details::Gap {
        from: Some(Cursor { epoch, position: before(at) }),
        to: Cursor { epoch, position: at },
        reason: GapReason::Undecided,
    })
}

/// Queues a `system` message for a channel, in order with its changes.
pub(super) fn notify(
    out: &mut [Vec<Outgoing>],
    port: &Arc<super::Port>,
    ok: bool,
    message: &str,
    details: Option<Details>,
) {
    let shard = port.shard % out.len();
    out[shard].push(Outgoing::Notice(Notice { port: port.clone(), ok, message: message.into(), details }));
}

/// An event of a row, not encoded yet.
pub(super) fn event(row: RowChange, when: (Timestamp, Instant), types: &Arc<Types>, epoch: Option<u64>) -> Event {
    let (commit_time, taken) = when;
    Event::new(Arc::new(row), commit_time, taken, types.clone(), epoch)
}

/// Verdicts of one row, reported together. What is counted is candidates: each channel, once per selection of columns, whose
/// action and filter match, also where a verdict was reached once for many of them.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) permit: u64,
    deny: u64,
    pub(super) undecided: u64,
}

impl Counts {
    pub(super) fn deny(&mut self, metrics: &Metrics, reason: &'static str) {
        self.deny += 1;
        metrics.denials.get_or_create(&[("reason", reason)]).inc();
    }

    pub(super) fn report(&self, metrics: &Metrics) {
        for (kind, count) in [("permit", self.permit), ("deny", self.deny), ("undecided", self.undecided)] {
            if count > 0 {
                metrics.verdicts.get_or_create(&[("kind", kind)]).inc_by(count);
            }
        }
    }
}
