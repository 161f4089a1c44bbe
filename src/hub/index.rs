//! Which subscriptions of one table a row may concern, without looking at the others.
//!
//! Owner first: subscribers are found by what the plan says that each of them must have in common with the row ([`Group`]), and
//! only then are filters read; so a filter can't probe rows of others, and the cost of a row follows its recipients. Where a
//! plan says no such thing, an `eq` filter is the key; what has neither is tried one by one.
//!
//! The index only proposes. Every candidate is judged by `policy` afterwards: a mistake here can lose a delivery, never leak one.
//!
//! It is bound to one relation of the stream, to the plans, and to the facts: another relation binds all anew, another plan
//! the subscribers of its role, and other facts nobody.
//! Rejected: filter first, which fails open and lets one popular filter value cost all its subscribers per row.

use std::collections::BTreeSet;
use std::sync::Arc;

use smallvec::SmallVec;

use super::group::{Group, Search};
use super::resolve::Target;
use super::slots::Slots;
use super::snapshot::Seam;
use super::{Action, Port};
use crate::catalog::{Catalog, OldImage};
use crate::change::{Change, Lsn, Position, Relation, RowChange};
use crate::claims::Principal;
use crate::filter::{BoundPredicate, OpenTerms};
use crate::policy::facts::Facts;
use crate::policy::{self, Bound, ColumnMask, Judged, RowJudge};

/// One subscription on this table: what every row asks of it, in one line of the processor's cache.
#[repr(align(64))]
pub(super) struct Sub {
    /// Of its channel in the registry.
    pub(super) channel: u32,
    /// Made with the binding, as the class.
    pub(super) group: u32,
    pub(super) class: u32,
    entry_id: i32,
    pub(super) port: Arc<Port>,
    /// The principal's.
    expires_at: i64,
    /// Rows at or before this are not for it.
    from: Position,
    action: Action,
    /// The rest says nothing of which rows it wants.
    plain: bool,
    /// It selects all columns.
    whole: bool,
    rest: Box<Rest>,
}

/// What few rows ask of a subscription.
struct Rest {
    principal: Arc<Principal>,
    target: Target,
    /// Made with the binding, as what it keeps.
    predicate: Bind,
    keep: Option<ColumnMask>,
    /// Its snapshot shows transactions that it is not to get again.
    seam: Option<Arc<Seam>>,
}

/// A filter on a relation.
pub(super) enum Bind {
    /// No filter.
    Everything,
    Predicate(Box<BoundPredicate>),
    /// A column of the filter is not in the relation.
    Never,
}

/// A subscription that a row may concern.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit {
    pub(super) channel: u32,
    pub(super) entry_id: i32,
    pub(super) sub: u32,
    /// Its class's number in [`Proposals::classes`].
    pub(super) class: u32,
}

/// What [`TableIndex::search`] finds; reused from row to row.
#[derive(Default)]
pub(super) struct Proposals {
    pub(super) hits: Vec<Hit>,
    /// The classes that were met: group and number in it.
    pub(super) classes: Vec<(u32, u32)>,
    /// What the rule reads of the row, as bytes.
    pub(super) reads: Vec<u8>,
    /// Somebody may have been permitted the row who was not looked for: see [`Group::doubts`].
    pub(super) all_doubt: bool,
}

impl Proposals {
    pub(super) fn clear(&mut self) {
        self.hits.clear();
        self.classes.clear();
        self.all_doubt = false;
    }

    pub(super) fn propose(&mut self, sub: u32, at: &Sub, class: u32) {
        self.hits.push(Hit { channel: at.channel, entry_id: at.entry_id, sub, class });
    }

    /// Notes a class, which is said to have this number if the row has met it; returns its number, and whether this is the
    /// first time.
    pub(super) fn meet(&mut self, group: u32, class: u32, number: u32) -> (u32, bool) {
        if self.classes.get(number as usize) == Some(&(group, class)) {
            return (number, false);
        }
        self.classes.push((group, class));
        ((self.classes.len() - 1) as u32, true)
    }
}

/// Fewer have nothing to wait for together.
const WORTH_WARMING: usize = 4;

/// All subscriptions of one table.
pub(super) struct TableIndex {
    options: policy::Options,
    subs: Slots<Sub>,
    /// What the groups are bound to; `None` before the first row.
    relation: Option<Arc<Relation>>,
    /// By role: there are few.
    groups: Vec<Group>,
    /// See [`super::registry::Registry::apply_rules`].
    passed: Option<Arc<Catalog>>,
    /// Subscriptions that have one.
    seams: usize,
}

impl TableIndex {
    pub(super) fn new(options: policy::Options, passed: Option<Arc<Catalog>>) -> TableIndex {
        TableIndex { options, subs: Slots::new(), relation: None, groups: Vec::new(), passed, seams: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subs.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.subs.len()
    }

    /// Adds a subscription of a channel; returns the number by which it is removed.
    pub(super) fn insert(
        &mut self,
        channel: u32,
        port: Arc<Port>,
        principal: Arc<Principal>,
        target: Target,
        (from, seam): (Position, Option<Arc<Seam>>),
        catalog: &Catalog,
    ) -> u32 {
        let expires_at = principal.expires_at;
        let (entry_id, action) = (target.entry_id, target.action);
        self.seams += usize::from(seam.is_some());
        let rest = Box::new(Rest { principal, target, predicate: Bind::Never, keep: None, seam });
        let (group, class, plain, whole) = (0, 0, false, false);
        let sub = Sub { channel, group, class, entry_id, port, expires_at, from, action, plain, whole, rest };
        let id = self.subs.insert(sub);
        self.bind(id, catalog);
        id
    }

    pub(super) fn remove(&mut self, id: u32) {
        let Some(sub) = self.subs.remove(id) else { return };
        self.seams -= usize::from(sub.rest.seam.is_some());
        if let Some(group) = self.groups.get_mut(sub.group as usize) {
            group.remove(id, sub.class, &sub.rest.predicate);
        }
    }

    /// See [`super::registry::Registry::rebase`].
    pub(super) fn rebase(&mut self, from: Position) {
        for sub in self.subs.values_mut() {
            sub.from = sub.from.min(from);
        }
    }

    pub(super) fn sub(&self, id: u32) -> Option<&Sub> {
        self.subs.get(id)
    }

    pub(super) fn bound(&self, sub: &Sub) -> Option<&Arc<Bound>> {
        Some(self.groups.get(sub.group as usize)?.bound())
    }

    /// See [`Group::doubts`].
    pub(super) fn doubts(&self, sub: &Sub, change: &Change) -> bool {
        self.groups.get(sub.group as usize).is_some_and(|group| group.doubts(change))
    }

    /// See [`Group::is_late`].
    pub(super) fn is_late(&self, sub: &Sub) -> bool {
        self.groups.get(sub.group as usize).is_some_and(Group::is_late)
    }

    /// How many things it keeps to find subscriptions.
    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        self.groups.iter().map(Group::footprint).sum()
    }

    #[cfg(test)]
    pub(super) fn forget_rooms(&mut self) {
        self.groups.iter_mut().for_each(Group::forget_rooms);
    }

    // --- Binding.

    /// The rules changed: plans that differ are put into force. Keeps everything else.
    pub(super) fn apply_rules(&mut self, catalog: &Catalog, passed: Option<&Arc<Catalog>>) {
        self.passed = passed.cloned();
        let Some(relation) = self.relation.clone() else { return };
        for at in 0..self.groups.len() {
            let group = &self.groups[at];
            let role = group.role().clone();
            if policy::compile(catalog, relation.oid, &role, self.options) != **group.bound().plan() {
                self.groups[at] = Group::new(catalog, &relation, &role, self.options);
                self.groups[at].set_ahead(self.passed.is_some());
                self.bind_all(catalog, |sub| sub.group == at as u32);
            }
        }
    }

    /// The stream has come to the rules in force.
    pub(super) fn catch_up(&mut self) {
        self.passed = None;
        self.groups.iter_mut().for_each(|group| group.set_ahead(false));
    }

    /// Makes the index fit this relation and these facts if it does not yet.
    pub(super) fn fit(&mut self, relation: &Arc<Relation>, catalog: &Catalog, facts: &Facts) {
        let fits = self.relation.as_ref().is_some_and(|known| Arc::ptr_eq(known, relation) || known == relation);
        if !fits {
            self.relation = Some(relation.clone());
            self.groups.clear();
            self.bind_all(catalog, |_| true);
        }
        self.groups.iter_mut().for_each(|group| group.fit(facts));
    }

    fn bind_all(&mut self, catalog: &Catalog, concerned: impl Fn(&Sub) -> bool) {
        let ids: Vec<u32> = self.subs.iter().filter(|(_, sub)| concerned(sub)).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.bind(id, catalog));
    }

    /// Adds a subscription to its group, once the relation is known.
    fn bind(&mut self, id: u32, catalog: &Catalog) {
        let (Some(relation), Some(sub)) = (&self.relation, self.subs.get_mut(id)) else { return };
        let rest = &mut *sub.rest;
        rest.predicate = bind_predicate(&rest.target, relation, catalog);
        rest.keep = rest.target.select.as_ref().map(|names| kept(relation, names));
        sub.plain = matches!(rest.predicate, Bind::Everything);
        sub.whole = rest.keep.is_none() && rest.target.cursor_as.is_none() && rest.seam.is_none();
        let role = &rest.principal.role;
        let at = self.groups.iter().position(|group| group.role() == role).unwrap_or_else(|| {
            let mut group = Group::new(catalog, relation, role, self.options);
            let differs = |passed: &Arc<Catalog>| {
                policy::compile(passed, relation.oid, role, self.options) != **group.bound().plan()
            };
            group.set_ahead(self.passed.as_ref().is_some_and(differs));
            self.groups.push(group);
            self.groups.len() - 1
        });
        sub.group = at as u32;
        sub.class = self.groups[at].add(id, &rest.principal, &rest.predicate);
    }

    // --- Rows.

    /// Finds the subscriptions whose action and filter match. Call [`TableIndex::fit`] before. Says whether some could not be
    /// looked for because the row came without what they are found by: they are denied for want of evidence.
    pub(super) fn search(&mut self, row: &RowChange, facts: &Facts, into: &mut Proposals) -> bool {
        let is_delete = matches!(row.change, Change::Delete { .. });
        let mut unseen = false;
        for (at, group) in self.groups.iter_mut().enumerate() {
            let search = Search { row, facts, subs: &self.subs, group: at as u32 };
            if is_delete && group.bound().plan().deletes_to_all() {
                for (id, sub) in self.subs.iter().filter(|(_, sub)| sub.group == at as u32) {
                    group.propose(id, sub, &search, into);
                }
            } else {
                unseen |= group.search(search, into);
            }
        }
        unseen
    }

    /// Leaves out those whose snapshots show the row's transaction: its id and the history that it is in.
    pub(super) fn leave_out(&self, transaction: (u32, Option<u64>), end: Lsn, from: &mut Proposals) {
        if self.seams > 0 {
            from.hits.retain(|hit| !self.subs.get(hit.sub).is_some_and(|sub| sub.has_seen(transaction, end)));
        }
    }

    /// Reads what the next steps write for each of many: their counts of references are far apart in memory, and reading waits
    /// for many of them at a time where counting waits for each.
    pub(super) fn warm(&self, hits: &[Hit]) {
        if hits.len() >= WORTH_WARMING {
            let ports = hits.iter().filter_map(|hit| self.sub(hit.sub)).map(|sub| &sub.port);
            std::hint::black_box(ports.fold(0, |sum, port| sum ^ port.shard ^ Arc::strong_count(port)));
        }
    }

    /// Judges a row for classes that [`TableIndex::search`] met.
    pub(super) fn judges<'a>(&'a self, change: &'a Change, facts: &'a Facts) -> Judges<'a> {
        Judges { table: self, change, facts, judges: SmallVec::new() }
    }
}

/// A row that is judged for class after class.
pub(super) struct Judges<'a> {
    table: &'a TableIndex,
    change: &'a Change,
    facts: &'a Facts,
    /// By group.
    judges: SmallVec<[(u32, RowJudge<'a>); 1]>,
}

impl Judges<'_> {
    /// The verdict for all of a class whose token is valid.
    pub(super) fn verdict(&mut self, (group, class): (u32, u32)) -> Option<Judged> {
        let of = self.table.groups.get(group as usize)?;
        let viewer = of.viewer(class)?;
        let at = self.judges.iter().position(|(known, _)| *known == group).unwrap_or_else(|| {
            self.judges.push((group, of.judge_row(self.change, self.facts)));
            self.judges.len() - 1
        });
        Some(self.judges[at].1.verdict(viewer))
    }
}

impl Sub {
    /// Whether action and filter match.
    pub(super) fn wants(&self, change: &Change, at: Position) -> bool {
        let action = matches!(
            (self.action, change),
            (Action::All, _)
                | (Action::Insert, Change::Insert { .. })
                | (Action::Update, Change::Update { .. })
                | (Action::Delete, Change::Delete { .. })
        );
        let matches = || match &self.rest.predicate {
            Bind::Everything => true,
            Bind::Predicate(predicate) => predicate.matches(change),
            Bind::Never => false,
        };
        action && at > self.from && (self.plain || matches())
    }

    /// Who subscribed.
    pub(super) fn principal(&self) -> &Arc<Principal> {
        &self.rest.principal
    }

    /// What Postgres has to be asked whether the filter matches.
    pub(super) fn open(&self, change: &Change) -> OpenTerms {
        match &self.rest.predicate {
            Bind::Predicate(predicate) => predicate.open(change),
            Bind::Everything | Bind::Never => OpenTerms::new(),
        }
    }

    /// The columns that it selects; `None` for all.
    pub(super) fn keep(&self) -> Option<&ColumnMask> {
        self.rest.keep.as_ref()
    }

    /// Whether it neither filters nor selects.
    pub(super) fn takes_all(&self) -> bool {
        self.plain && self.whole
    }

    /// Under which name its records carry the cursor.
    pub(super) fn cursor_as(&self, at: Position) -> Option<&Arc<str>> {
        let seam = self.rest.seam.as_ref().filter(|seam| seam.covers(at.lsn));
        seam.map_or(self.rest.target.cursor_as.as_ref(), |seam| Some(seam.no_cursor()))
    }

    /// Whether its snapshot shows what this transaction did.
    fn has_seen(&self, transaction: (u32, Option<u64>), end: Lsn) -> bool {
        self.rest.seam.as_ref().is_some_and(|seam| seam.shows(transaction, end))
    }

    /// Whether its token is no longer valid.
    pub(super) fn is_expired(&self, unix_seconds: i64) -> bool {
        unix_seconds >= self.expires_at
    }
}

fn bind_predicate(target: &Target, relation: &Arc<Relation>, catalog: &Catalog) -> Bind {
    if target.predicate.is_empty() {
        return Bind::Everything;
    }
    let table = catalog.table(relation.oid);
    let is_real = |name: &str| {
        table.is_none_or(|table| match table.old_image {
            OldImage::AsSent => true,
            OldImage::PrimaryKey => table.primary_key.iter().any(|key| key == name),
            OldImage::Nothing => false,
        })
    };
    let bound = target.predicate.bind_within(relation, is_real);
    bound.map_or(Bind::Never, |bound| Bind::Predicate(Box::new(bound)))
}

fn kept(relation: &Relation, names: &BTreeSet<String>) -> ColumnMask {
    (0..relation.columns.len()).filter(|i| names.contains(&relation.columns[*i].name)).collect()
}
