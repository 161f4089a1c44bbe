//! Which subscriptions of one table a row may concern, without looking at the others.
//!
//! Owner first: where a plan is "column = claim", subscribers are found by the row's value in that column, and only then are
//! filters read; so a filter can't probe rows of others, and the cost of a row follows its recipients. Where there is no owner
//! key, an `eq` filter is the key; what has neither is tried one by one.
//!
//! The index only proposes. Every candidate is judged by `policy` afterwards: a mistake here can lose a delivery, never leak one.
//!
//! It is bound to one relation of the stream, and rebuilt when the relation, or the plan of a role, changes.
//! Rejected: filter first, which fails open and lets one popular filter value cost all its subscribers per row.

use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::Action;
use super::resolve::Target;
use crate::catalog::Catalog;
use crate::change::{Change, OldRow, Position, Relation, Value};
use crate::claims::Principal;
use crate::filter::{BoundPredicate, OpenTerms};
use crate::pgtype::{Equality, canonical};
use crate::policy::{self, Bound, ColumnMask, OwnerKey, Plan};

/// A subscription: the channel's slot in the registry, and which of its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SubKey {
    pub(super) slot: u32,
    pub(super) target: u32,
}

/// One subscription on this table.
struct Sub {
    target: Target,
    principal: Arc<Principal>,
    /// Rows at or before this are not for it.
    from: Position,
    /// Made with the binding.
    predicate: Bind,
    keep: Option<ColumnMask>,
}

enum Bind {
    /// No filter.
    Everything,
    Predicate(BoundPredicate),
    /// A column of the filter is not in the relation.
    Never,
}

/// A subscription that a row may concern.
pub(super) struct Candidate<'a> {
    pub(super) key: SubKey,
    pub(super) entry_id: i32,
    pub(super) principal: &'a Arc<Principal>,
    pub(super) keep: Option<&'a ColumnMask>,
    pub(super) bound: &'a Arc<Bound>,
    /// What Postgres has to be asked whether the filter matches.
    pub(super) open: OpenTerms,
}

type Subs = AHashSet<SubKey>;
type ByText = AHashMap<Box<[u8]>, Subs>;

/// The subscribers of one role.
struct Group {
    bound: Arc<Bound>,
    owner: Option<OwnerKey>,
    by_owner: ByText,
    /// By column and the equality under which its text is canonical.
    by_value: Vec<(usize, Equality, ByText)>,
    rest: Subs,
}

/// Where a subscription stands in its group.
enum Place {
    Owner(Box<[u8]>),
    Value(usize, Equality, Box<[u8]>),
    Rest,
    /// It can never match.
    Nowhere,
}

struct Binding {
    relation: Arc<Relation>,
    groups: AHashMap<Arc<str>, Group>,
}

/// All subscriptions of one table.
pub(super) struct TableIndex {
    options: policy::Options,
    subs: AHashMap<SubKey, Sub>,
    binding: Option<Binding>,
}

impl TableIndex {
    pub(super) fn new(options: policy::Options) -> TableIndex {
        TableIndex { options, subs: AHashMap::new(), binding: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.subs.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.subs.len()
    }

    pub(super) fn insert(
        &mut self,
        key: SubKey,
        target: Target,
        principal: Arc<Principal>,
        from: Position,
        catalog: &Catalog,
    ) {
        let mut sub = Sub { target, principal, from, predicate: Bind::Never, keep: None };
        if let Some(binding) = &mut self.binding {
            binding.add(key, &mut sub, catalog, self.options);
        }
        self.subs.insert(key, sub);
    }

    pub(super) fn remove(&mut self, key: SubKey) {
        let Some(sub) = self.subs.remove(&key) else { return };
        if let Some(binding) = &mut self.binding {
            binding.remove(key, &sub);
        }
    }

    /// See [`super::registry::Registry::rebase`].
    pub(super) fn rebase(&mut self, from: Position) {
        for sub in self.subs.values_mut() {
            sub.from = sub.from.min(from);
        }
    }

    /// The rules changed: plans that differ are put into force. Keeps everything else.
    pub(super) fn apply_rules(&mut self, catalog: &Catalog) {
        let Some(binding) = &self.binding else { return };
        let same = |(role, group): (&Arc<str>, &Group)| {
            policy::compile(catalog, binding.relation.oid, role, self.options) == **group.bound.plan()
        };
        if !binding.groups.iter().all(same) {
            let relation = binding.relation.clone();
            self.bind(&relation, catalog);
        }
    }

    /// Makes the index fit this relation if it does not yet.
    pub(super) fn fit(&mut self, relation: &Arc<Relation>, catalog: &Catalog) {
        let fits = self.binding.as_ref().is_some_and(|b| Arc::ptr_eq(&b.relation, relation) || b.relation == *relation);
        if !fits {
            self.bind(relation, catalog);
        }
    }

    fn bind(&mut self, relation: &Arc<Relation>, catalog: &Catalog) {
        let mut binding = Binding { relation: relation.clone(), groups: AHashMap::new() };
        for (key, sub) in &mut self.subs {
            binding.add(*key, sub, catalog, self.options);
        }
        self.binding = Some(binding);
    }

    /// Calls `found` for each subscription whose action and filter match. Call [`TableIndex::fit`] before. Says whether some
    /// could not be looked for because the row came without its owner column: they are denied for want of evidence.
    pub(super) fn candidates<'a>(
        &'a self,
        change: &Change,
        at: Position,
        found: &mut dyn FnMut(Candidate<'a>),
    ) -> bool {
        let Some(binding) = &self.binding else { return false };
        let mut unseen = false;
        let is_delete = matches!(change, Change::Delete { .. });
        let to_all = |group: &Group| is_delete && group.bound.plan().deletes_to_all();
        if binding.groups.values().any(to_all) {
            for (key, sub) in &self.subs {
                let group = binding.groups.get(&sub.principal.role).filter(|group| to_all(group));
                if let Some(candidate) = group.and_then(|group| sub.candidate(*key, group, change, at)) {
                    found(candidate);
                }
            }
        }
        for group in binding.groups.values().filter(|group| !to_all(group)) {
            let mut consider = |key: &SubKey| {
                let candidate = self.subs.get(key).and_then(|sub| sub.candidate(*key, group, change, at));
                candidate.into_iter().for_each(&mut *found);
            };
            group.rest.iter().for_each(&mut consider);
            if let Some(column) = group.bound.key_column_index().filter(|_| !group.by_owner.is_empty()) {
                unseen |= is_absent(change, column, &binding.relation);
                if let Some(value) = judged_value(change, column)
                    && let Some(subs) = group.by_owner.get(value)
                {
                    subs.iter().for_each(&mut consider);
                }
            }
            for (column, equality, by_value) in &group.by_value {
                if let Some(value) = judged_value(change, *column)
                    && let Some(value) = canonical(*equality, value)
                    && let Some(subs) = by_value.get::<[u8]>(&value)
                {
                    subs.iter().for_each(&mut consider);
                }
            }
        }
        unseen
    }
}

impl Sub {
    /// This subscription, if its action and filter match.
    fn candidate<'a>(&'a self, key: SubKey, group: &'a Group, change: &Change, at: Position) -> Option<Candidate<'a>> {
        if !self.wants(change, at) {
            return None;
        }
        let open = match &self.predicate {
            Bind::Predicate(predicate) => predicate.open(change),
            Bind::Everything | Bind::Never => OpenTerms::new(),
        };
        let (entry_id, principal, keep) = (self.target.entry_id, &self.principal, self.keep.as_ref());
        Some(Candidate { key, entry_id, principal, keep, bound: &group.bound, open })
    }

    fn wants(&self, change: &Change, at: Position) -> bool {
        let action = matches!(
            (self.target.action, change),
            (Action::All, _)
                | (Action::Insert, Change::Insert { .. })
                | (Action::Update, Change::Update { .. })
                | (Action::Delete, Change::Delete { .. })
        );
        let matches = || match &self.predicate {
            Bind::Everything => true,
            Bind::Predicate(predicate) => predicate.matches(change),
            Bind::Never => false,
        };
        action && at > self.from && matches()
    }
}

/// The value by which a row is judged: of the new row, or of the deleted one. `None` if it is NULL or was not sent.
fn judged_value(change: &Change, column: usize) -> Option<&[u8]> {
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

/// Whether the image by which the row is judged came without this column.
fn is_absent(change: &Change, column: usize, relation: &Relation) -> bool {
    match change {
        Change::Insert { new } => new.get(column) == Value::Unchanged,
        Change::Update { new, old } => {
            new.get(column) == Value::Unchanged
                && !matches!(old, Some(OldRow::Full(old)) if old.get(column) != Value::Unchanged)
        }
        Change::Delete { old: OldRow::Full(old) } => old.get(column) == Value::Unchanged,
        Change::Delete { old: OldRow::KeyOnly(_) } => !relation.columns[column].key,
    }
}

impl Binding {
    fn add(&mut self, key: SubKey, sub: &mut Sub, catalog: &Catalog, options: policy::Options) {
        sub.predicate = if sub.target.predicate.is_empty() {
            Bind::Everything
        } else {
            sub.target.predicate.bind(&self.relation).map_or(Bind::Never, Bind::Predicate)
        };
        sub.keep = sub.target.select.as_ref().map(|names| kept(&self.relation, names));
        let role = &sub.principal.role;
        let relation = &self.relation;
        let group = self.groups.entry(role.clone()).or_insert_with(|| Group::new(catalog, relation, role, options));
        match group.place(sub) {
            Place::Owner(value) => group.by_owner.entry(value).or_default().insert(key),
            Place::Value(column, equality, value) => {
                group.values(column, equality).entry(value).or_default().insert(key)
            }
            Place::Rest => group.rest.insert(key),
            Place::Nowhere => false,
        };
    }

    fn remove(&mut self, key: SubKey, sub: &Sub) {
        let Some(group) = self.groups.get_mut(&sub.principal.role) else { return };
        match group.place(sub) {
            Place::Owner(value) => forget(&mut group.by_owner, &value, key),
            Place::Value(column, equality, value) => forget(group.values(column, equality), &value, key),
            Place::Rest => drop(group.rest.remove(&key)),
            Place::Nowhere => {}
        }
    }
}

fn forget(map: &mut ByText, value: &[u8], key: SubKey) {
    if let Some(subs) = map.get_mut(value) {
        subs.remove(&key);
        if subs.is_empty() {
            map.remove(value);
        }
    }
}

fn kept(relation: &Relation, names: &BTreeSet<String>) -> ColumnMask {
    (0..relation.columns.len()).filter(|i| names.contains(&relation.columns[*i].name)).collect()
}

impl Group {
    fn new(catalog: &Catalog, relation: &Arc<Relation>, role: &str, options: policy::Options) -> Group {
        let plan: Arc<Plan> = Arc::new(policy::compile(catalog, relation.oid, role, options));
        let bound = Arc::new(plan.bind(relation));
        // Without its column in the relation the key is of no use: every row is then judged, and denied for want of evidence.
        let owner = plan.owner_key().filter(|_| bound.key_column_index().is_some()).cloned();
        Group { bound, owner, by_owner: AHashMap::new(), by_value: Vec::new(), rest: Subs::default() }
    }

    /// Depends on nothing but the subscription and the group, so that removal finds what insertion chose.
    fn place(&self, sub: &Sub) -> Place {
        if matches!(sub.predicate, Bind::Never) {
            return Place::Nowhere;
        }
        if let Some(owner) = &self.owner
            && !owner.must_judge(&sub.principal)
        {
            return owner.value(&sub.principal).map_or(Place::Nowhere, |value| Place::Owner(value.into()));
        }
        if let Bind::Predicate(predicate) = &sub.predicate
            && let Some((column, value, equality)) = predicate.eq_key()
        {
            return Place::Value(column, equality, value.into());
        }
        Place::Rest
    }

    fn values(&mut self, column: usize, equality: Equality) -> &mut ByText {
        let at = self.by_value.iter().position(|(c, e, _)| (*c, *e) == (column, equality));
        let at = at.unwrap_or_else(|| {
            self.by_value.push((column, equality, AHashMap::new()));
            self.by_value.len() - 1
        });
        &mut self.by_value[at].2
    }
}
