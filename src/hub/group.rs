//! The subscribers of one role on one table, by what decides for them.
//!
//! Those whose claims read alike are a *class*: the rule comes to the same for all of them, so a row is judged once per class
//! and not once per subscriber. A class stands under the values of its claims that the plan's [`Keys`] name, and a row is
//! looked up by the values that it yields, be they its own or those of facts. Where the keys say nothing about a class, or the
//! plan has none, each of its subscriptions is found by an `eq` filter, or tried on every row.
//!
//! Claims are evaluated when somebody subscribes, never for a row. What facts say may change at any time: nothing here depends on
//! it but the binding, so that a reloaded fact table moves nobody.

use std::sync::Arc;

use ahash::AHashMap;
use smallvec::SmallVec;

use super::index::{Bind, Proposals, Sub};
use super::memo::Memo;
use super::numbers::{Numbers, Under};
use super::slots::{IdSet, Slots};
use crate::catalog::Catalog;
use crate::change::{Change, OldRow, Relation, RowChange, Value};
use crate::claims::Principal;
use crate::pgtype::{Equality, canonical};
use crate::policy::facts::{FactBinding, Facts};
use crate::policy::rule::{Keys, KnownViewer, RowKeys, RowValue, Viewer, ViewerKey};
use crate::policy::{self, Bound, RowJudge};

type ByText = AHashMap<Box<[u8]>, IdSet>;

/// See the module's comment.
pub(super) struct Group {
    role: Arc<str>,
    bound: Arc<Bound>,
    /// To the facts of this generation. `None` before the first row.
    generation: Option<u64>,
    /// The plan is newer than the facts: together they are the rights of no moment.
    ahead: bool,
    /// There is no binding, and that is a matter of time.
    hopes: bool,
    /// The facts are of a later moment than the rows: whom they don't permit an old row may have been permitted it.
    late: bool,
    /// Old rows that were tried on all subscribers since `late`.
    widened: u32,
    /// `None`: the rule looks into no table, or not all is known of those it looks into.
    binding: Option<FactBinding>,
    classes: Slots<Class>,
    by_viewer: AHashMap<Viewer, u32>,
    /// For each claim of the keys, in their order.
    by_claim: SmallVec<[ByClaim; 1]>,
    /// Subscriptions, by column and the equality under which its text is canonical.
    by_value: Vec<(usize, Equality, ByText)>,
    /// Subscriptions that have to be tried on every row.
    rest: IdSet,
    memo: Memo,
}

/// Subscribers with equal viewers, in one line of the processor's cache.
#[repr(align(64))]
struct Class {
    viewer: KnownViewer,
    /// The subscriptions of a keyed class that can match at all.
    subs: IdSet,
    /// What [`Memo::came`] said.
    came: u32,
    /// Its number in [`Proposals::classes`], if that says so.
    met: u32,
    members: u32,
    /// Found by the keys; else each of its subscriptions stands for itself.
    keyed: bool,
}

/// Classes by the values of one claim.
struct ByClaim {
    claim: u16,
    by_text: ByText,
    /// What was found there for values of facts.
    numbers: Numbers,
}

impl ByClaim {
    fn new(claim: u16) -> ByClaim {
        ByClaim { claim, by_text: ByText::new(), numbers: Numbers::default() }
    }

    fn add(&mut self, value: Box<[u8]>, class: u32) {
        self.numbers.change(self.by_text.hasher().hash_one(&*value));
        self.by_text.entry(value).or_default().insert(class);
    }

    fn remove(&mut self, value: &[u8], class: u32) {
        self.numbers.change(self.by_text.hasher().hash_one(value));
        if let Some(set) = self.by_text.get_mut(value) {
            set.remove(class);
            if set.is_empty() {
                self.by_text.remove(value);
            }
        }
    }

    /// Calls `visit` for each class under a value.
    fn each(&mut self, value: RowValue<'_>, visit: &mut impl FnMut(u32)) {
        let number = value.number();
        match number.and_then(|number| self.numbers.get(number)) {
            Some(Under::Nobody) => return,
            Some(Under::One(class)) => return visit(class),
            Some(Under::Several) | None => {}
        }
        value.with_text(|text| {
            let set = self.by_text.get(text);
            set.into_iter().for_each(|set| set.each(&mut *visit));
            let under = match set {
                None | Some(IdSet::Empty) => Under::Nobody,
                Some(IdSet::One(class)) => Under::One(*class),
                Some(IdSet::Few(_) | IdSet::Many(_)) => Under::Several,
            };
            if let Some(number) = number {
                self.numbers.keep(number, self.by_text.hasher().hash_one(text), under);
            }
        });
    }
}

/// A row in search of its subscribers.
#[derive(Clone, Copy)]
pub(super) struct Search<'a> {
    pub(super) row: &'a RowChange,
    pub(super) facts: &'a Facts,
    pub(super) subs: &'a Slots<Sub>,
    /// Of this group.
    pub(super) group: u32,
}

impl Search<'_> {
    /// Proposes a subscription, if its action and filter match.
    fn consider(&self, id: u32, class: u32, into: &mut Proposals) {
        if let Some(sub) = self.subs.get(id)
            && sub.wants(&self.row.change, self.row.position)
        {
            into.propose(id, sub, class);
        }
    }
}

impl Group {
    pub(super) fn new(catalog: &Catalog, relation: &Arc<Relation>, role: &Arc<str>, options: policy::Options) -> Group {
        let plan = Arc::new(policy::compile(catalog, relation.oid, role, options));
        let claims = plan.keys().into_iter().flat_map(Keys::claims);
        Group {
            role: role.clone(),
            by_claim: claims.map(|claim| ByClaim::new(*claim)).collect(),
            bound: Arc::new(plan.bind(relation)),
            generation: None,
            ahead: false,
            hopes: false,
            late: false,
            widened: 0,
            binding: None,
            classes: Slots::new(),
            by_viewer: AHashMap::new(),
            by_value: Vec::new(),
            rest: IdSet::default(),
            memo: Memo::default(),
        }
    }

    pub(super) fn role(&self) -> &Arc<str> {
        &self.role
    }

    pub(super) fn bound(&self) -> &Arc<Bound> {
        &self.bound
    }

    /// Whether the plan is newer than the facts, which then say nothing about it.
    pub(super) fn set_ahead(&mut self, ahead: bool) {
        if self.ahead != ahead {
            (self.ahead, self.generation) = (ahead, None);
        }
    }

    /// Looks the facts up anew if what is known has changed.
    pub(super) fn fit(&mut self, facts: &Facts) {
        if self.generation != Some(facts.generation()) {
            self.generation = Some(facts.generation());
            (self.binding, self.hopes) = match self.bound.plan().rule().filter(|rule| !rule.sources.is_empty()) {
                None => (None, false),
                Some(_) if self.ahead => (None, true),
                Some(rule) => match facts.bind(rule) {
                    Ok(binding) => (Some(binding), false),
                    Err(missing) => (None, !missing.for_good),
                },
            };
        }
        self.late = facts.is_ahead() && self.binding.is_some();
        if !self.late {
            self.widened = 0;
        }
    }

    /// Whether nobody can tell for now who was permitted a row that is gone: who is not permitted it by what is known later, is
    /// not denied it.
    pub(super) fn doubts(&self, change: &Change) -> bool {
        (self.hopes || self.late) && matches!(change, Change::Delete { .. })
    }

    /// Whether that is only since the facts are of a later moment than the rows: if it turns out that nothing changed them in
    /// between, they told the truth.
    pub(super) fn is_late(&self) -> bool {
        self.late && !self.hopes
    }

    /// A row to be judged for classes.
    pub(super) fn judge_row<'a>(&'a self, change: &'a Change, facts: &'a Facts) -> RowJudge<'a> {
        if self.hopes {
            return self.bound.judge_without_facts(change);
        }
        self.bound.judge_row(change, self.binding.as_ref().map(|binding| (binding, facts)))
    }

    /// Whom a class consists of.
    pub(super) fn viewer(&self, class: u32) -> Option<&KnownViewer> {
        Some(&self.classes.get(class)?.viewer)
    }

    #[cfg(test)]
    pub(super) fn footprint(&self) -> usize {
        let keyed: usize = self.by_claim.iter().map(|index| index.by_text.len()).sum();
        let filtered: usize = self.by_value.iter().map(|(.., map)| map.len()).sum();
        assert_eq!(self.classes.len(), self.by_viewer.len());
        self.classes.len() + keyed + filtered + usize::from(!self.rest.is_empty())
    }

    #[cfg(test)]
    pub(super) fn forget_rooms(&mut self) {
        self.memo.clear();
    }

    // --- Who comes and goes.

    /// Makes a subscription findable; returns its class.
    pub(super) fn add(&mut self, id: u32, principal: &Principal, predicate: &Bind) -> u32 {
        let class = self.class(principal);
        self.place(id, class, predicate, IdSet::insert);
        class
    }

    pub(super) fn remove(&mut self, id: u32, class: u32, predicate: &Bind) {
        self.place(id, class, predicate, IdSet::remove);
        let Some(known) = self.classes.get_mut(class) else { return };
        known.members -= 1;
        if known.members > 0 {
            return;
        }
        let Some(Class { viewer, keyed, .. }) = self.classes.remove(class) else { return };
        self.by_viewer.remove(viewer.viewer());
        if keyed {
            self.each_key(viewer.viewer(), &mut |index, value| index.remove(&value, class));
        }
    }

    /// The class of a principal, with one more member.
    fn class(&mut self, principal: &Principal) -> u32 {
        let viewer = self.bound.plan().viewer(principal);
        if let Some(class) = self.by_viewer.get(&viewer) {
            if let Some(known) = self.classes.get_mut(*class) {
                known.members += 1;
            }
            return *class;
        }
        let keyed = self.is_keyed(&viewer);
        let (members, subs) = (1, IdSet::default());
        let class = Class { viewer: KnownViewer::new(viewer.clone()), subs, came: 0, met: 0, members, keyed };
        let class = self.classes.insert(class);
        if keyed {
            let came = self.memo.came(class);
            self.classes.get_mut(class).into_iter().for_each(|class| class.came = came);
            self.each_key(&viewer, &mut |index, value| index.add(value, class));
        }
        self.by_viewer.insert(viewer, class);
        class
    }

    /// Whether the keys tell for this viewer which rows he can't get.
    fn is_keyed(&self, viewer: &Viewer) -> bool {
        let told = |keys: &Keys, claim: &u16| matches!(keys.of_viewer(*claim, viewer), ViewerKey::Values(_));
        self.bound.plan().keys().is_some_and(|keys| keys.claims().iter().all(|claim| told(keys, claim)))
    }

    /// Where a class stands, with the values under which it does, each once.
    fn each_key(&mut self, viewer: &Viewer, visit: &mut dyn FnMut(&mut ByClaim, Box<[u8]>)) {
        let Group { bound, by_claim, .. } = self;
        let Some(keys) = bound.plan().keys() else { return };
        for index in by_claim {
            let ViewerKey::Values(mut values) = keys.of_viewer(index.claim, viewer) else { continue };
            values.sort_unstable();
            values.dedup();
            values.into_iter().for_each(|value| visit(index, value));
        }
    }

    /// Applies `change` to the set in which a subscription stands. Depends on nothing but the arguments and the class, so that
    /// removal finds what insertion chose.
    fn place(&mut self, id: u32, class: u32, predicate: &Bind, change: fn(&mut IdSet, u32)) {
        let Some(class) = self.classes.get_mut(class) else { return };
        match predicate {
            Bind::Never => {}
            _ if class.keyed => change(&mut class.subs, id),
            Bind::Predicate(bound) => match bound.eq_key() {
                Some((column, value, equality)) => {
                    let map = values(&mut self.by_value, column, equality);
                    let set = map.entry(value.into()).or_default();
                    change(set, id);
                    if set.is_empty() {
                        map.remove(value);
                    }
                }
                None => change(&mut self.rest, id),
            },
            Bind::Everything => change(&mut self.rest, id),
        }
    }

    // --- Who is concerned.

    /// Proposes whom the row may concern. Says whether some could not be looked for because the row came without a column
    /// that the keys need: they are denied for want of evidence.
    pub(super) fn search(&mut self, search: Search<'_>, into: &mut Proposals) -> bool {
        let change = &search.row.change;
        let Group { classes, by_value, rest, .. } = self;
        let mut consider = |id: u32| {
            let Some(class) = search.subs.get(id).map(|sub| sub.class) else { return };
            let Some((met, _)) = meet(classes, class, &search, into) else { return };
            search.consider(id, met, into);
        };
        rest.each(&mut consider);
        for (column, equality, map) in by_value.iter() {
            if let Some(value) = filtered_value(change, *column)
                && let Some(value) = canonical(*equality, value)
                && let Some(subs) = map.get::<[u8]>(&value)
            {
                subs.each(&mut consider);
            }
        }
        self.search_by_keys(search, into)
    }

    fn search_by_keys(&mut self, search: Search<'_>, into: &mut Proposals) -> bool {
        if self.by_claim.iter().all(|index| index.by_text.is_empty()) {
            return false;
        }
        // Without facts the lookup is as quick as remembering.
        let version = self.binding.as_ref().filter(|_| !self.late).and_then(|_| search.facts.version());
        let mut reads = std::mem::take(&mut into.reads);
        reads.clear();
        let version = version.filter(|_| self.bound.write_reads(&search.row.change, &mut reads));
        let mut unseen = false;
        if !version.is_some_and(|version| self.recall(version, &reads, search, into)) {
            let first = into.classes.len();
            let (outcome, steps) = self.look_up(search, into);
            unseen = outcome == RowKeys::Absent;
            if version.is_some() && outcome == RowKeys::Complete {
                let classes = &self.classes;
                let known = |(_, class): &(u32, u32)| (*class, classes.get(*class).map_or(0, |class| class.came));
                self.memo.keep(&reads, steps, into.classes[first..].iter().map(known));
            }
        }
        into.reads = reads;
        unseen
    }

    /// Proposes who was found for a row of which the rule read the same, if that is known.
    fn recall(&mut self, version: u64, reads: &[u8], search: Search<'_>, into: &mut Proposals) -> bool {
        let Group { classes, memo, .. } = self;
        memo.recall(version, reads, &mut |(class, came)| {
            if classes.get(class).is_some_and(|known| known.came == came) {
                visit(classes, class, &search, into);
            }
        })
    }

    /// Proposes who is found by the keys of a row. Says also how many values it yielded.
    fn look_up(&mut self, search: Search<'_>, into: &mut Proposals) -> (RowKeys, usize) {
        let Group { bound, binding, classes, by_claim, late, widened, .. } = self;
        let mut facts = binding.as_ref().map(|binding| (binding, search.facts));
        if *late && matches!(search.row.change, Change::Delete { .. }) {
            // They yield the owners of later. A backlog of many such rows is not tried on everybody, and everybody is told.
            *widened += 1;
            match *widened <= MOST_WIDENED {
                true => facts = None,
                false => into.all_doubt = true,
            }
        }
        let mut visit = |class: u32| visit(classes, class, &search, into);
        // A row that yields more values than there are subscribers is quicker tried on all of them.
        let limit = 2 * by_claim.iter().map(|index| index.by_text.len()).max().unwrap_or(0) + LEAST_LIMIT;
        let mut steps = 0;
        let mut found = |claim: u16, value: RowValue<'_>| {
            steps += 1;
            if let Some(index) = by_claim.iter_mut().find(|index| index.claim == claim) {
                index.each(value, &mut visit);
            }
        };
        let outcome = match bound.row_keys(&search.row.change, facts, limit, &mut found) {
            RowKeys::TooMany(claims) => {
                let exceeded = by_claim.iter().filter(|index| claims.contains(&index.claim));
                exceeded.for_each(|index| all(&index.by_text, &mut visit));
                RowKeys::TooMany(claims)
            }
            // The catalog and the stream disagree: nobody is denied for that, each is told.
            RowKeys::Absent if bound.is_stale() => {
                by_claim.iter().for_each(|index| all(&index.by_text, &mut visit));
                RowKeys::TooMany(SmallVec::new())
            }
            outcome => outcome,
        };
        (outcome, steps)
    }

    /// Proposes a subscription of this group, wherever it stands.
    pub(super) fn propose(&mut self, id: u32, sub: &Sub, search: &Search<'_>, into: &mut Proposals) {
        if let Some((met, _)) = meet(&mut self.classes, sub.class, search, into) {
            search.consider(id, met, into);
        }
    }
}

/// Old rows that are tried on all subscribers while the facts are late.
const MOST_WIDENED: u32 = 256;
/// A few values are looked up, however few subscribers there are.
const LEAST_LIMIT: usize = 64;

/// Proposes the subscriptions of a class, once per row.
fn visit(classes: &mut Slots<Class>, class: u32, search: &Search<'_>, into: &mut Proposals) {
    let Some((met, true)) = meet(classes, class, search, into) else { return };
    if let Some(class) = classes.get(class) {
        class.subs.each(|id| search.consider(id, met, into));
    }
}

/// The number of a class among those that the row has met, and whether this is the first time.
fn meet(classes: &mut Slots<Class>, id: u32, search: &Search<'_>, into: &mut Proposals) -> Option<(u32, bool)> {
    let class = classes.get_mut(id)?;
    let (number, first) = into.meet(search.group, id, class.met);
    class.met = number;
    Some((number, first))
}

fn all(map: &ByText, visit: &mut dyn FnMut(u32)) {
    map.values().for_each(|classes| classes.each(&mut *visit));
}

fn values(by_value: &mut Vec<(usize, Equality, ByText)>, column: usize, equality: Equality) -> &mut ByText {
    let at = by_value.iter().position(|(c, e, _)| (*c, *e) == (column, equality));
    let at = at.unwrap_or_else(|| {
        by_value.push((column, equality, ByText::new()));
        by_value.len() - 1
    });
    &mut by_value[at].2
}

/// The value by which a row is filtered: of the new row, or of the deleted one. `None` if it is NULL or was not sent.
fn filtered_value(change: &Change, column: usize) -> Option<&[u8]> {
    let tuple = match change {
        Change::Insert { new } => new,
        Change::Update { new, old: Some(OldRow::Full(old)) } if new.get(column) == Value::Unchanged => old,
        Change::Update { new, .. } => new,
        Change::Delete { old } => old.tuple(),
    };
    match tuple.get(column) {
        Value::Text(text) => Some(text),
        Value::Null | Value::Unchanged => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_row_reads_of_many_is_one_line_of_the_cache() {
        assert_eq!((size_of::<Option<Class>>(), size_of::<Option<Sub>>()), (64, 64));
    }
}
