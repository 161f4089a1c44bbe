//! Making conditions, constants folded as Postgres folds them before it runs anything; and taking stock of them.

use std::collections::{BTreeMap, BTreeSet};

use super::{ColumnRef, CompareOp, Expr, Kind, Members, Rule, Scalar, Subquery};

impl Expr {
    /// The conjunction.
    pub(super) fn all(parts: Vec<Expr>) -> Expr {
        fold(parts, false)
    }

    /// The conjunction of what Postgres looks at one by one, in an order of its own: a sub-select's WHERE and its tables' policies.
    /// One that is false does not keep another from raising.
    pub(super) fn together(parts: Vec<Expr>) -> Expr {
        let raising: Vec<Expr> = parts.iter().filter(|part| part.may_raise()).cloned().collect();
        match Expr::all(parts) {
            Expr::Constant(Some(false)) if !raising.is_empty() => {
                Expr::And([Expr::Constant(Some(false))].into_iter().chain(raising).collect())
            }
            all => all,
        }
    }

    /// Whether its value may be an error for some claims or rows.
    fn may_raise(&self) -> bool {
        let mut found = false;
        self.array_claims(&mut |_| found = true);
        self.visit(&mut |_| {}, &mut |scalar| found |= matches!(scalar, Scalar::Claim(_) | Scalar::Convert(..)));
        found
    }

    /// The disjunction.
    pub(super) fn any(parts: Vec<Expr>) -> Expr {
        fold(parts, true)
    }

    pub(super) fn negated(inner: Expr) -> Expr {
        match inner {
            Expr::Constant(value) => Expr::Constant(value.map(|value| !value)),
            Expr::Not(inner) => *inner,
            other => Expr::Not(Box::new(other)),
        }
    }

    /// Simplified where NULL is as good as false.
    pub(super) fn for_truth(self) -> Expr {
        match self {
            Expr::Constant(None) => Expr::Constant(Some(false)),
            Expr::And(parts) => Expr::all(parts.into_iter().map(Expr::for_truth).collect()),
            Expr::Or(parts) => Expr::any(parts.into_iter().map(Expr::for_truth).collect()),
            Expr::Value(Scalar::Truth(inner)) | Expr::Is(inner, Some(true)) => inner.for_truth(),
            other => other,
        }
    }

    /// `inner IS value`.
    pub(super) fn is(inner: Expr, value: Option<bool>) -> Expr {
        match inner {
            Expr::Constant(constant) => Expr::Constant(Some(constant == value)),
            // Never NULL, so its truth is itself.
            inner @ (Expr::Exists(_) | Expr::IsNull(_) | Expr::Is(..) | Expr::Same(..)) if value == Some(true) => inner,
            other => Expr::Is(Box::new(other), value),
        }
    }

    pub(super) fn compare(op: CompareOp, kind: Kind, left: Scalar, right: Scalar) -> Expr {
        match (&left, op, &right) {
            (Scalar::Constant(None), ..) | (.., Scalar::Constant(None)) => Expr::Constant(None),
            // Canonical text: equal bytes are equal values.
            (Scalar::Constant(Some(a)), CompareOp::Eq, Scalar::Constant(Some(b))) => Expr::Constant(Some(a == b)),
            (Scalar::Constant(Some(a)), CompareOp::Ne, Scalar::Constant(Some(b))) => Expr::Constant(Some(a != b)),
            _ => Expr::Compare(op, kind, Box::new((left, right))),
        }
    }
}

fn fold(parts: Vec<Expr>, decisive: bool) -> Expr {
    let mut flat = Vec::new();
    for part in parts {
        match part {
            Expr::Constant(Some(value)) if value == decisive => return Expr::Constant(Some(decisive)),
            Expr::Constant(Some(_)) => {}
            Expr::And(inner) if !decisive => flat.extend(inner),
            Expr::Or(inner) if decisive => flat.extend(inner),
            other => flat.push(other),
        }
    }
    // An inner table's own policy often says again what the policy says.
    let mut once: Vec<Expr> = Vec::with_capacity(flat.len());
    for part in flat {
        if !once.contains(&part) {
            once.push(part);
        }
    }
    let mut flat = once;
    if flat.len() <= 1 {
        return flat.pop().unwrap_or(Expr::Constant(Some(!decisive)));
    }
    if decisive { Expr::Or(flat) } else { Expr::And(flat) }
}

/// What an expression refers to.
pub(super) trait Visitor {
    fn column(&mut self, _column: &mut ColumnRef) {}
    fn claim(&mut self, _claim: &mut u16) {}
    fn slot(&mut self, _slot: &mut u16) {}
}

impl Expr {
    /// Shows everything that it refers to, sub-selects' slots first.
    pub(super) fn visit_mut(&mut self, visitor: &mut impl Visitor) {
        match self {
            Expr::Constant(_) => {}
            Expr::Value(scalar) => scalar.visit_mut(visitor),
            Expr::IsNull(scalar) => scalar.visit_mut(visitor),
            Expr::Compare(_, _, pair) | Expr::Same(_, pair) => {
                pair.0.visit_mut(visitor);
                pair.1.visit_mut(visitor);
            }
            Expr::Any(_, _, left, members) | Expr::All(_, _, left, members) => {
                left.visit_mut(visitor);
                match members {
                    Members::List(list) => list.iter_mut().for_each(|member| member.visit_mut(visitor)),
                    Members::Claim(claim) => visitor.claim(claim),
                    Members::Array(column) => visitor.column(column),
                }
            }
            Expr::Is(inner, _) | Expr::Not(inner) => inner.visit_mut(visitor),
            Expr::And(parts) | Expr::Or(parts) => parts.iter_mut().for_each(|part| part.visit_mut(visitor)),
            Expr::Exists(query) => query.visit_mut(visitor),
            Expr::In(left, query) => {
                left.iter_mut().for_each(|(_, scalar)| scalar.visit_mut(visitor));
                query.visit_mut(visitor);
            }
        }
    }
}

impl Subquery {
    fn visit_mut(&mut self, visitor: &mut impl Visitor) {
        self.slots.iter_mut().for_each(|slot| visitor.slot(slot));
        self.condition.visit_mut(visitor);
        self.outputs.iter_mut().for_each(|output| output.visit_mut(visitor));
    }
}

impl Scalar {
    fn visit_mut(&mut self, visitor: &mut impl Visitor) {
        match self {
            Scalar::Column(column) => visitor.column(column),
            Scalar::Claim(claim) => visitor.claim(claim),
            Scalar::Constant(_) => {}
            Scalar::Coalesce(parts) => parts.iter_mut().for_each(|part| part.visit_mut(visitor)),
            Scalar::NullIf(_, pair) => {
                pair.0.visit_mut(visitor);
                pair.1.visit_mut(visitor);
            }
            Scalar::Case(arms, otherwise) => {
                for (condition, result) in arms {
                    condition.visit_mut(visitor);
                    result.visit_mut(visitor);
                }
                if let Some(otherwise) = otherwise {
                    otherwise.visit_mut(visitor);
                }
            }
            Scalar::Truth(condition) => condition.visit_mut(visitor),
            Scalar::Convert(_, inner) => inner.visit_mut(visitor),
        }
    }

    /// The slots whose columns it reads.
    pub(super) fn slots(&self) -> Vec<u16> {
        struct Slots(Vec<u16>);
        impl Visitor for Slots {
            fn column(&mut self, column: &mut ColumnRef) {
                self.0.push(column.slot);
            }
        }
        let mut slots = Slots(Vec::new());
        self.clone().visit_mut(&mut slots);
        slots.0
    }
}

#[derive(Default)]
struct Used {
    columns: BTreeSet<ColumnRef>,
    claims: BTreeSet<u16>,
    slots: BTreeSet<u16>,
}

impl Visitor for Used {
    fn column(&mut self, column: &mut ColumnRef) {
        self.columns.insert(*column);
    }

    fn claim(&mut self, claim: &mut u16) {
        self.claims.insert(*claim);
    }

    fn slot(&mut self, slot: &mut u16) {
        self.slots.insert(*slot);
    }
}

/// Old places to new ones.
struct Moved {
    columns: BTreeMap<ColumnRef, ColumnRef>,
    claims: BTreeMap<u16, u16>,
    slots: BTreeMap<u16, u16>,
}

impl Visitor for Moved {
    fn column(&mut self, column: &mut ColumnRef) {
        *column = self.columns.get(column).copied().unwrap_or(*column);
    }

    fn claim(&mut self, claim: &mut u16) {
        *claim = self.claims.get(claim).copied().unwrap_or(*claim);
    }

    fn slot(&mut self, slot: &mut u16) {
        *slot = self.slots.get(slot).copied().unwrap_or(*slot);
    }
}

impl Rule {
    /// Without the columns, claims and tables that folding has left unused. `forbidden` follows the slots.
    pub(super) fn compacted(mut self, forbidden: &mut Vec<(u16, String)>) -> Rule {
        let mut used = Used::default();
        self.condition.visit_mut(&mut used);
        let slots: BTreeMap<u16, u16> = used.slots.iter().copied().zip(1..).collect();
        let mut columns = BTreeMap::new();
        let mut taken: BTreeMap<u16, u16> = BTreeMap::new();
        for column in &used.columns {
            let slot = if column.slot == 0 { 0 } else { slots.get(&column.slot).copied().unwrap_or_default() };
            let place = taken.entry(slot).or_default();
            columns.insert(*column, ColumnRef { slot, column: *place });
            *place += 1;
        }
        let keep = |slot: u16, place: usize| {
            u16::try_from(place).is_ok_and(|place| used.columns.contains(&ColumnRef { slot, column: place }))
        };
        let mut place = 0..;
        self.reads.retain(|_| keep(0, place.next().unwrap_or_default()));
        for (source, slot) in self.sources.iter_mut().zip(1..) {
            let mut place = 0..;
            source.columns.retain(|_| keep(slot, place.next().unwrap_or_default()));
        }
        let mut slot = 1..;
        self.sources.retain(|_| used.slots.contains(&slot.next().unwrap_or_default()));
        let mut claim = 0..;
        self.claims.retain(|_| used.claims.contains(&claim.next().unwrap_or_default()));
        forbidden.retain(|(slot, _)| used.slots.contains(slot));
        let claims = used.claims.iter().copied().zip(0..).collect();
        self.condition.visit_mut(&mut Moved { columns, claims, slots });
        self
    }

    /// Names of the judged table's columns that it reads.
    pub fn columns(&self) -> BTreeSet<&str> {
        self.reads.iter().map(|column| column.name.as_str()).collect()
    }

    /// The tables that it looks into, with the numbers of the columns that it reads there.
    pub fn fact_columns(&self) -> BTreeMap<u32, BTreeSet<i16>> {
        let mut tables: BTreeMap<u32, BTreeSet<i16>> = BTreeMap::new();
        for source in &self.sources {
            tables.entry(source.table_oid).or_default().extend(source.columns.iter().map(|column| column.number));
        }
        tables
    }
}
