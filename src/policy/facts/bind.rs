//! How a rule finds its facts: for each sub-select an order of its tables and an index for each.
//!
//! An equality between a column and something that is known before (the judged row, a claim, a constant, an outer or earlier
//! table) is answered by an index; the other conjuncts are tried on the rows that are left. That is exact unless some row that
//! is left out would raise. What may raise is known here: conversions of columns are watched by the table ([`Store`] counts the
//! values they refuse), everything else that is in doubt does not depend on the rows. If there is such a doubt the whole product
//! of the tables is read, as the definition has it.
//!
//! Rejected: trusting Postgres to reach rows in our order. Which rows it reaches before an error is its planner's affair, so
//! one row that raises makes the sub-select raise.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::doubts::{Doubtful, Doubts};
use super::layout::Layout;
use super::table::Store;
use super::{Facts, NotReady, State};
use crate::pgtype::Equality;
use crate::policy::rule::{
    ColumnRef, CompareOp, Conversion, Expr, Keys, Kind, Members, Rule, RuleColumn, Scalar, Subquery, exact_under,
};

/// A rule's sources resolved to fact tables, valid while [`Facts::generation`] is what it was. The default is for rules without
/// sources.
#[derive(Debug, Clone, Default)]
pub struct FactBinding {
    pub(in crate::policy) generation: u64,
    bound: Arc<Bound>,
}

#[derive(Debug, Default)]
struct Bound {
    /// By slot, from slot 1.
    slots: Vec<Slot>,
    /// By the first slot of the sub-select.
    plans: Vec<Option<SubPlan>>,
    /// One for each path of the rule's keys.
    paths: Vec<Join>,
}

/// Where a slot's rows are.
#[derive(Debug)]
struct Slot {
    table: usize,
    /// By the source's columns, the table's.
    columns: Box<[u16]>,
}

/// How a sub-select is evaluated.
#[derive(Debug)]
pub(in crate::policy) struct SubPlan {
    /// What it evaluates whatever the rows: a doubt about one is a doubt about all.
    pub(in crate::policy) doubts: Vec<Doubtful>,
    /// What it may evaluate, depending on the rows: a doubt about one means reading everything.
    pub(in crate::policy) lazy: Vec<Doubtful>,
    /// (table, watch): if it has refused a value, everything is read.
    pub(in crate::policy) watches: Vec<(usize, usize)>,
    /// Everything is read always.
    pub(in crate::policy) naive: bool,
    /// Only truth counts here: false and NULL are one.
    pub(in crate::policy) positive: bool,
    /// The rows that meet the condition, by what is known.
    pub(in crate::policy) all: Join,
    /// IN: those that are equal to the left side as well.
    pub(in crate::policy) probe: Option<Join>,
    /// IN, where NULL counts: those whose output is NULL.
    pub(in crate::policy) nulls: Option<Join>,
}

/// Nested loops.
#[derive(Debug, Default)]
pub(in crate::policy) struct Join {
    pub(in crate::policy) levels: Vec<Level>,
}

/// One of them.
#[derive(Debug)]
pub(in crate::policy) struct Level {
    pub(in crate::policy) slot: u16,
    pub(in crate::policy) access: Access,
    /// Must be true of the rows so far.
    pub(in crate::policy) filters: Vec<Expr>,
}

/// Which rows a loop goes through.
#[derive(Debug)]
pub(in crate::policy) enum Access {
    /// All.
    Scan,
    /// Those with a key.
    Index { index: usize, key: Vec<KeyPart> },
}

/// What a column of an index must be.
#[derive(Debug, Clone)]
pub(in crate::policy) enum KeyPart {
    /// Equal to a value.
    Equal(Equality, Scalar),
    /// NULL.
    Null,
}

/// A step of a path from the judged row to a fact: rows of a slot whose columns equal what is known.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::policy) struct PathStep {
    pub(in crate::policy) slot: u16,
    pub(in crate::policy) key: Vec<(u16, Equality, Scalar)>,
}

impl FactBinding {
    /// The store and the column of a fact column.
    pub(in crate::policy) fn place(&self, column: ColumnRef) -> Option<(usize, u16)> {
        let slot = self.bound.slots.get(usize::from(column.slot).checked_sub(1)?)?;
        Some((slot.table, *slot.columns.get(usize::from(column.column))?))
    }

    /// The tables of all slots, from slot 1.
    pub(in crate::policy) fn tables(&self) -> impl ExactSizeIterator<Item = usize> {
        self.bound.slots.iter().map(|slot| slot.table)
    }

    /// The layout column of a source's column; the slot is one of the rule's.
    pub(in crate::policy) fn column(&self, column: ColumnRef) -> u16 {
        self.place(column).map_or(0, |(_, column)| column)
    }

    pub(in crate::policy) fn plan(&self, sub: &Subquery) -> Option<&SubPlan> {
        self.bound.plans.get(usize::from(*sub.slots.first()?))?.as_ref()
    }

    pub(super) fn plans(&self) -> impl Iterator<Item = &SubPlan> {
        self.bound.plans.iter().flatten()
    }

    pub(in crate::policy) fn path(&self, path: usize) -> Option<&Join> {
        self.bound.paths.get(path)
    }
}

impl Facts {
    /// Resolves a rule's sources and makes the indexes it needs.
    pub fn bind(&self, rule: &Rule) -> Result<FactBinding, NotReady> {
        if rule.sources.is_empty() {
            return Ok(FactBinding { generation: self.generation, ..FactBinding::default() });
        }
        let mut slots = Vec::with_capacity(rule.sources.len());
        let mut stores = Vec::with_capacity(rule.sources.len());
        for source in &rule.sources {
            let for_good = self.given_up.contains(&source.table_oid);
            let not_ready = |why: String| NotReady { table: source.table.clone(), why, for_good };
            let place = self.tables.iter().position(|table| table.layout.table_oid == source.table_oid);
            let place = place.ok_or_else(|| not_ready("not loaded yet".to_owned()))?;
            let store: &Store = match &self.tables[place].state {
                State::Ready(store) => store,
                State::Recording(_) => return Err(not_ready("being loaded".to_owned())),
                State::Broken(why) => return Err(not_ready(format!("to be loaded again: {why}"))),
            };
            let column = |column: &RuleColumn| {
                let kept = place_of(&store.layout, column);
                kept.ok_or_else(|| not_ready(format!("column {} is not loaded", column.name)))
            };
            let columns = source.columns.iter().map(column).collect::<Result<_, _>>()?;
            slots.push(Slot { table: place, columns });
            stores.push(store);
        }
        let (plans, seen) = (Vec::new(), BTreeSet::new());
        let mut binder = Binder { rule, slots: &slots, stores: &stores, plans, seen, shared: false };
        binder.plans.resize_with(rule.sources.len() + 1, || None);
        binder.expr(&rule.condition, true, &mut BTreeSet::new());
        let keys = rule.keys();
        let paths = keys.iter().flat_map(Keys::paths).map(|steps| binder.path(steps)).collect();
        let plans = if binder.shared { Vec::new() } else { binder.plans };
        Ok(FactBinding { generation: self.generation, bound: Arc::new(Bound { slots, plans, paths }) })
    }

    pub(in crate::policy) fn store(&self, place: usize) -> Option<&Store> {
        match &self.tables.get(place)?.state {
            State::Ready(store) => Some(store),
            State::Recording(_) | State::Broken(_) => None,
        }
    }
}

/// Where a layout keeps a column as a rule reads it.
fn place_of(layout: &Layout, column: &RuleColumn) -> Option<u16> {
    let place = layout.column(column.number)?;
    let kept = &layout.columns[place];
    (kept.name == column.name && kept.kind.equality == column.kind.equality).then_some(place as u16)
}

/// What is known of an equality: the column's place, what it equals, and which conjunct says so.
struct Bond {
    column: u16,
    part: KeyPart,
    conjunct: Option<usize>,
}

struct Binder<'a> {
    rule: &'a Rule,
    slots: &'a [Slot],
    stores: &'a [&'a Store],
    plans: Vec<Option<SubPlan>>,
    /// Slots of sub-selects that were planned.
    seen: BTreeSet<u16>,
    /// A slot belongs to two sub-selects, so that neither has a plan: everything is read.
    shared: bool,
}

impl<'a> Binder<'a> {
    /// Plans the sub-selects in an expression; `outer` are the slots whose rows are known around it.
    fn expr(&mut self, expr: &'a Expr, positive: bool, outer: &mut BTreeSet<u16>) {
        match expr {
            Expr::And(parts) | Expr::Or(parts) => parts.iter().for_each(|part| self.expr(part, positive, outer)),
            Expr::Exists(sub) => self.subquery(sub, &[], positive, outer),
            Expr::In(lefts, sub) => {
                lefts.iter().for_each(|(_, left)| self.scalar(left, outer));
                self.subquery(sub, lefts, positive, outer);
            }
            Expr::Constant(_) => {}
            Expr::Value(Scalar::Truth(inner)) => self.expr(inner, positive, outer),
            Expr::Value(scalar) => self.scalar(scalar, outer),
            Expr::IsNull(scalar) => self.scalar(scalar, outer),
            Expr::Compare(_, _, pair) | Expr::Same(_, pair) => {
                self.scalar(&pair.0, outer);
                self.scalar(&pair.1, outer);
            }
            Expr::Any(_, _, left, members) | Expr::All(_, _, left, members) => {
                self.scalar(left, outer);
                if let Members::List(list) = members {
                    list.iter().for_each(|scalar| self.scalar(scalar, outer));
                }
            }
            Expr::Is(inner, _) | Expr::Not(inner) => self.expr(inner, false, outer),
        }
    }

    fn scalar(&mut self, scalar: &'a Scalar, outer: &mut BTreeSet<u16>) {
        match scalar {
            Scalar::Column(_) | Scalar::Claim(_) | Scalar::Constant(_) => {}
            Scalar::Coalesce(list) => list.iter().for_each(|scalar| self.scalar(scalar, outer)),
            Scalar::NullIf(_, pair) => {
                self.scalar(&pair.0, outer);
                self.scalar(&pair.1, outer);
            }
            Scalar::Case(arms, otherwise) => {
                for (condition, scalar) in arms {
                    self.expr(condition, false, outer);
                    self.scalar(scalar, outer);
                }
                otherwise.iter().for_each(|scalar| self.scalar(scalar, outer));
            }
            Scalar::Truth(inner) => self.expr(inner, false, outer),
            Scalar::Convert(_, inner) => self.scalar(inner, outer),
        }
    }

    fn subquery(&mut self, sub: &'a Subquery, lefts: &[(Kind, Scalar)], positive: bool, outer: &mut BTreeSet<u16>) {
        let Some(first) = sub.slots.first().copied() else {
            return self.expr(&sub.condition, true, outer);
        };
        let known = outer.clone();
        outer.extend(&sub.slots);
        self.expr(&sub.condition, true, outer);
        sub.outputs.iter().for_each(|output| self.scalar(output, outer));
        *outer = known;
        let plan = self.plan(sub, lefts, positive, outer);
        self.plans[usize::from(first)] = Some(plan);
        for slot in &sub.slots {
            self.shared |= !self.seen.insert(*slot);
        }
    }

    fn plan(&self, sub: &Subquery, lefts: &[(Kind, Scalar)], positive: bool, outer: &BTreeSet<u16>) -> SubPlan {
        let watch = |column: ColumnRef, conversion: Conversion| {
            let source = usize::from(column.slot) - 1;
            let place = self.slots[source].columns[usize::from(column.column)];
            Some((self.slots[source].table, self.stores[source].watch_over(place, conversion)?))
        };
        let Doubts { always: mut doubts, lazy, watches, naive, .. } = Doubts::of(sub, outer, &watch);
        let conjuncts = conjuncts(&sub.condition);
        // The left side is evaluated before anything else.
        doubts.retain(|doubt| !lefts.iter().any(|(_, left)| *doubt == Doubtful::Scalar(left.clone())));
        let outputs: Option<Vec<ColumnRef>> = sub.outputs.iter().map(|output| self.own_column(output, sub)).collect();
        let can_probe = |(column, (kind, left)): (&ColumnRef, &(Kind, Scalar))| {
            self.is_known(left, outer) && exact_under(&self.column(*column).kind, kind.equality)
        };
        let outputs = outputs.filter(|columns| {
            let distinct = columns.iter().collect::<BTreeSet<_>>().len();
            !lefts.is_empty() && distinct == lefts.len() && columns.iter().zip(lefts).all(can_probe)
        });
        let mut plan =
            SubPlan { doubts, lazy, watches, naive, positive, all: Join::default(), probe: None, nulls: None };
        if let Some(outputs) = outputs.filter(|outputs| positive || outputs.len() == 1) {
            let equal = outputs
                .iter()
                .zip(lefts)
                .map(|(column, (kind, left))| (*column, KeyPart::Equal(kind.equality, left.clone())));
            plan.probe = self.join(sub, &conjuncts, &equal.collect::<Vec<_>>(), outer);
            if !positive {
                plan.nulls = self.join(sub, &conjuncts, &[(outputs[0], KeyPart::Null)], outer);
                plan.probe.take_if(|_| plan.nulls.is_none());
            }
        }
        if plan.probe.is_none() || !positive {
            match self.join(sub, &conjuncts, &[], outer) {
                Some(all) => plan.all = all,
                None => plan.naive = true,
            }
        }
        plan
    }

    /// A column of the sub-select's own tables.
    fn own_column(&self, scalar: &Scalar, sub: &Subquery) -> Option<ColumnRef> {
        match scalar {
            Scalar::Column(column) if sub.slots.contains(&column.slot) => Some(*column),
            _ => None,
        }
    }

    fn column(&self, column: ColumnRef) -> &'a RuleColumn {
        match usize::from(column.slot).checked_sub(1) {
            None => &self.rule.reads[usize::from(column.column)],
            Some(source) => &self.rule.sources[source].columns[usize::from(column.column)],
        }
    }

    /// Simple, and known when the rows of these slots are.
    fn is_known(&self, scalar: &Scalar, slots: &BTreeSet<u16>) -> bool {
        match scalar {
            Scalar::Column(column) => column.slot == 0 || slots.contains(&column.slot),
            Scalar::Claim(_) | Scalar::Constant(_) => true,
            _ => false,
        }
    }

    /// Puts the tables into an order in which each is looked up by as much as possible. `None` if `extra` can't be looked up;
    /// without it there always is one.
    fn join(
        &self,
        sub: &Subquery,
        conjuncts: &[&Expr],
        extra: &[(ColumnRef, KeyPart)],
        outer: &BTreeSet<u16>,
    ) -> Option<Join> {
        let mut known = outer.clone();
        let mut left: Vec<u16> = sub.slots.clone();
        let mut pending: Vec<bool> = vec![true; conjuncts.len()];
        let mut levels = Vec::with_capacity(left.len());
        while !left.is_empty() {
            let mut best: Option<(u32, usize, Vec<Bond>)> = None;
            for (place, slot) in left.iter().enumerate() {
                let bonds = self.bonds(*slot, conjuncts, extra, &known);
                let (score, bonds) = self.best_of(*slot, bonds);
                if best.as_ref().is_none_or(|(most, ..)| score > *most) {
                    best = Some((score, place, bonds));
                }
            }
            let Some((_, place, bonds)) = best else { break };
            let slot = left.remove(place);
            let must = bonds.iter().any(|bond| bond.conjunct.is_none());
            let access = self.access(slot, bonds, &mut pending);
            if must && matches!(access, Access::Scan) {
                return None;
            }
            known.insert(slot);
            let mut filters = Vec::new();
            for (at, conjunct) in conjuncts.iter().enumerate() {
                if pending[at] && all_known(conjunct, &known) {
                    pending[at] = false;
                    filters.push((*conjunct).clone());
                }
            }
            levels.push(Level { slot, access, filters });
        }
        Some(Join { levels })
    }

    /// What a slot's columns equal, one for each column.
    fn bonds(
        &self,
        slot: u16,
        conjuncts: &[&Expr],
        extra: &[(ColumnRef, KeyPart)],
        known: &BTreeSet<u16>,
    ) -> Vec<Bond> {
        let mut bonds: Vec<Bond> = Vec::new();
        let mut add = |column: ColumnRef, part: KeyPart, conjunct: Option<usize>| {
            let column = self.slots[usize::from(slot) - 1].columns[usize::from(column.column)];
            if !bonds.iter().any(|bond| bond.column == column) {
                bonds.push(Bond { column, part, conjunct });
            }
        };
        // A column that IN compares is looked up by that, whatever else it equals: nothing else says so.
        for (column, part) in extra.iter().filter(|(column, _)| column.slot == slot) {
            add(*column, part.clone(), None);
        }
        for (at, conjunct) in conjuncts.iter().enumerate() {
            let Expr::Compare(CompareOp::Eq, kind, pair) = conjunct else { continue };
            for (own, other) in [(&pair.0, &pair.1), (&pair.1, &pair.0)] {
                let Scalar::Column(column) = own else { continue };
                if column.slot == slot
                    && self.is_known(other, known)
                    && exact_under(&self.column(*column).kind, kind.equality)
                {
                    add(*column, KeyPart::Equal(kind.equality, other.clone()), Some(at));
                }
            }
        }
        bonds
    }

    /// How good a lookup is, and which bonds it takes.
    fn best_of(&self, slot: u16, bonds: Vec<Bond>) -> (u32, Vec<Bond>) {
        let store = self.stores[usize::from(slot) - 1];
        let mut columns: Vec<u16> = bonds.iter().map(|bond| bond.column).collect();
        columns.sort_unstable();
        let must = |bond: &Bond| bond.conjunct.is_none();
        if store.is_unique(&columns) {
            let key = store.layout.key_columns() as u16;
            let bonds = bonds.into_iter().filter(|bond| bond.column < key || must(bond)).collect();
            return (1000, bonds);
        }
        // Constants pick few values of many rows: they are tried on the rows found by the others.
        let constant = |bond: &Bond| matches!(bond.part, KeyPart::Equal(_, Scalar::Constant(_))) && !must(bond);
        if bonds.iter().all(constant) {
            return (u32::from(!bonds.is_empty()), bonds);
        }
        let bonds: Vec<Bond> = bonds.into_iter().filter(|bond| !constant(bond)).collect();
        let claim = bonds.iter().any(|bond| matches!(bond.part, KeyPart::Equal(_, Scalar::Claim(_))));
        (bonds.len() as u32 * 10 + if claim { 5 } else { 0 }, bonds)
    }

    fn access(&self, slot: u16, mut bonds: Vec<Bond>, pending: &mut [bool]) -> Access {
        bonds.sort_by_key(|bond| bond.column);
        let columns: Vec<u16> = bonds.iter().map(|bond| bond.column).collect();
        if columns.is_empty() {
            return Access::Scan;
        }
        let Some(index) = self.stores[usize::from(slot) - 1].index_over(&columns) else { return Access::Scan };
        for conjunct in bonds.iter().filter_map(|bond| bond.conjunct) {
            pending[conjunct] = false;
        }
        Access::Index { index, key: bonds.into_iter().map(|bond| bond.part).collect() }
    }

    fn path(&self, steps: &[PathStep]) -> Join {
        let level = |step: &PathStep| {
            let columns = &self.slots[usize::from(step.slot) - 1].columns;
            let bond = |(column, equality, scalar): &(u16, Equality, Scalar)| Bond {
                column: columns[usize::from(*column)],
                part: KeyPart::Equal(*equality, scalar.clone()),
                conjunct: None,
            };
            let mut bonds: Vec<Bond> = Vec::new();
            for bond in step.key.iter().map(bond) {
                if !bonds.iter().any(|other| other.column == bond.column) {
                    bonds.push(bond);
                }
            }
            Level { slot: step.slot, access: self.access(step.slot, bonds, &mut []), filters: Vec::new() }
        };
        Join { levels: steps.iter().map(level).collect() }
    }
}

/// The parts of a conjunction.
fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::And(parts) => parts.iter().flat_map(conjuncts).collect(),
        other => vec![other],
    }
}

/// Whether an expression reads no row but the judged one, those of these slots and those of its own sub-selects.
fn all_known(expr: &Expr, known: &BTreeSet<u16>) -> bool {
    let mut inner = BTreeSet::new();
    let mut read = BTreeSet::new();
    expr.visit(&mut |sub| inner.extend(sub.slots.iter().copied()), &mut |scalar| {
        if let Scalar::Column(column) = scalar {
            read.insert(column.slot);
        }
    });
    read.iter().all(|slot| *slot == 0 || known.contains(slot) || inner.contains(slot))
}
