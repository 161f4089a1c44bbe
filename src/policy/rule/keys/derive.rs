//! From a condition to its keys.

use std::collections::BTreeMap;

use super::{EVERYBODY, Key, Source};
use crate::pgtype::Equality;
use crate::policy::facts::PathStep;
use crate::policy::rule::{ColumnRef, CompareOp, Expr, Kind, Members, Rule, Scalar, exact_under};

/// With more branches than this a rule has no keys.
const MOST_BRANCHES: usize = 64;
const MOST_DEPTH: usize = 8;

/// One key for each way to be permitted.
pub(super) struct Derived {
    pub(super) keys: Vec<Key>,
    pub(super) gates: Vec<Expr>,
}

/// Costs, to choose among keys of which any would do: steps count ten each.
const STEP: u32 = 10;
const CONSTANT_START: u32 = 1_000;
const SCAN: u32 = 10_000;
const ROW: u32 = 100_000;
const GATE: u32 = 1_000_000;

pub(super) fn derive(rule: &Rule) -> Option<Derived> {
    let mut derivation = Derivation { rule, branches: 0 };
    let mut facts = Necessary::default();
    facts.require(rule, &rule.condition);
    let (_, mut derived) = derivation.choose(facts, 0)?;
    let mut keys: Vec<Key> = Vec::new();
    for key in derived.keys {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    derived.keys = keys;
    derived.gates.dedup();
    Some(derived)
}

/// Something that must be true.
#[derive(Clone, Copy)]
enum Claim<'r> {
    Expr(&'r Expr),
    Equal(&'r Kind, &'r Scalar, &'r Scalar),
}

/// What must be true of some rows of the slots, all together, for a permit. Sub-selects are dissolved: their slots are
/// numbered through.
#[derive(Clone, Default)]
struct Necessary<'r> {
    /// Columns that equal columns or constants.
    bonds: Vec<(&'r Kind, &'r Scalar, &'r Scalar)>,
    /// Columns that equal a claim, or an element of one.
    targets: Vec<(u16, ColumnRef)>,
    /// Arrays of the judged row, one of whose elements equals a claim.
    arrays: Vec<(u16, u16, Equality)>,
    /// Conditions over the judged row.
    rows: Vec<&'r Expr>,
    /// Conditions over claims.
    gates: Vec<&'r Expr>,
    ors: Vec<Vec<Claim<'r>>>,
}

impl<'r> Necessary<'r> {
    fn require(&mut self, rule: &'r Rule, expr: &'r Expr) {
        self.classify(expr);
        match expr {
            Expr::And(parts) => parts.iter().for_each(|part| self.require(rule, part)),
            Expr::Or(parts) => self.ors.push(parts.iter().map(Claim::Expr).collect()),
            Expr::Is(inner, Some(true)) | Expr::Value(Scalar::Truth(inner)) => self.require(rule, inner),
            Expr::Value(Scalar::Coalesce(list)) => {
                // `coalesce(x, false)` is true only if x is.
                let never = |scalar: &Scalar| match scalar {
                    Scalar::Constant(value) => value.as_deref() != Some(b"t"),
                    _ => false,
                };
                if let Some((Scalar::Truth(inner), rest)) = list.split_first()
                    && rest.iter().all(never)
                {
                    self.require(rule, inner);
                }
            }
            Expr::Exists(sub) => self.require(rule, &sub.condition),
            Expr::In(lefts, sub) => {
                self.require(rule, &sub.condition);
                for ((kind, left), output) in lefts.iter().zip(&sub.outputs) {
                    self.equal(rule, kind, left, output);
                }
            }
            Expr::Compare(CompareOp::Eq, kind, pair) => self.equal(rule, kind, &pair.0, &pair.1),
            Expr::Any(CompareOp::Eq, kind, left, Members::List(list)) => {
                self.ors.push(list.iter().map(|member| Claim::Equal(kind, left, member)).collect());
            }
            Expr::Any(CompareOp::Eq, kind, left, Members::Claim(claim)) => {
                if let Scalar::Column(column) = &**left {
                    self.target(rule, kind.equality, *column, *claim);
                }
            }
            Expr::Any(CompareOp::Eq, kind, left, Members::Array(column)) => {
                if let Scalar::Claim(claim) = &**left
                    && column.slot == 0
                    && rule.claims.get(usize::from(*claim)).is_some_and(|claim| exact_under(&claim.kind, kind.equality))
                {
                    self.arrays.push((*claim, column.column, kind.equality));
                }
            }
            _ => {}
        }
    }

    fn require_claim(&mut self, rule: &'r Rule, claim: Claim<'r>) {
        match claim {
            Claim::Expr(expr) => self.require(rule, expr),
            Claim::Equal(kind, a, b) => self.equal(rule, kind, a, b),
        }
    }

    /// Conditions that can be decided with the row alone, or with the claims alone.
    fn classify(&mut self, expr: &'r Expr) {
        // True of everybody: says nothing.
        if matches!(expr, Expr::Constant(Some(true)) | Expr::And(_)) {
            return;
        }
        let (mut subs, mut claims, mut columns, mut facts) = (false, false, false, false);
        expr.visit(&mut |_| subs = true, &mut |scalar| match scalar {
            Scalar::Claim(_) => claims = true,
            Scalar::Column(column) if column.slot == 0 => columns = true,
            Scalar::Column(_) => facts = true,
            _ => {}
        });
        expr.array_claims(&mut |_| claims = true);
        columns |= expr.reads_array();
        match (subs || facts, claims, columns) {
            (false, false, _) => self.rows.push(expr),
            (false, true, false) => self.gates.push(expr),
            _ => {}
        }
    }

    fn equal(&mut self, rule: &'r Rule, kind: &'r Kind, a: &'r Scalar, b: &'r Scalar) {
        match (a, b) {
            (Scalar::Column(column), Scalar::Claim(claim)) | (Scalar::Claim(claim), Scalar::Column(column)) => {
                self.target(rule, kind.equality, *column, *claim);
            }
            (Scalar::Column(_), Scalar::Column(_) | Scalar::Constant(_)) => self.bonds.push((kind, a, b)),
            (Scalar::Constant(_), Scalar::Column(_)) => self.bonds.push((kind, b, a)),
            (Scalar::Truth(inner), Scalar::Constant(Some(text)))
            | (Scalar::Constant(Some(text)), Scalar::Truth(inner))
                if **text == *b"t" =>
            {
                self.require(rule, inner);
            }
            _ => {}
        }
    }

    fn target(&mut self, rule: &Rule, equality: Equality, column: ColumnRef, claim: u16) {
        let claim_kind = rule.claims.get(usize::from(claim)).map(|term| &term.kind);
        if claim_kind.is_some_and(|kind| exact_under(kind, equality))
            && kind_of(rule, column).is_some_and(|kind| exact_under(kind, equality))
        {
            self.targets.push((claim, column));
        }
    }
}

fn kind_of(rule: &Rule, column: ColumnRef) -> Option<&Kind> {
    let at = usize::from(column.column);
    match usize::from(column.slot).checked_sub(1) {
        None => rule.reads.get(at).map(|read| &read.kind),
        Some(source) => rule.sources.get(source)?.columns.get(at).map(|column| &column.kind),
    }
}

struct Derivation<'r> {
    rule: &'r Rule,
    branches: usize,
}

impl<'r> Derivation<'r> {
    /// The cheapest keys of what is necessary.
    fn choose(&mut self, mut necessary: Necessary<'r>, depth: usize) -> Option<(u32, Derived)> {
        let ors = std::mem::take(&mut necessary.ors);
        let mut best: Option<(u32, Derived)> = None;
        let mut offer = |cost: u32, keys: Vec<Key>, gates: Vec<Expr>| {
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, Derived { keys, gates }));
            }
        };
        let when: Vec<Expr> = necessary.rows.iter().map(|expr| (*expr).clone()).collect();
        let ways = self.ways(&necessary);
        for (claim, column) in &necessary.targets {
            let found = match column.slot {
                0 => Some((0, Source::Column(column.column))),
                slot => {
                    ways.get(&slot).map(|(cost, steps)| (*cost, Source::Path { steps: steps.clone(), target: *column }))
                }
            };
            if let Some((cost, source)) = found {
                offer(cost, vec![Key { claim: *claim, when: when.clone(), source }], Vec::new());
            }
        }
        for (claim, column, equality) in &necessary.arrays {
            let source = Source::Elements(*column, *equality);
            offer(1, vec![Key { claim: *claim, when: when.clone(), source }], Vec::new());
        }
        if !when.is_empty() {
            offer(ROW, vec![Key { claim: EVERYBODY, when: when.clone(), source: Source::Row }], Vec::new());
        }
        if !necessary.gates.is_empty() {
            let gates = necessary.gates.iter().map(|expr| (*expr).clone()).collect();
            offer(GATE, Vec::new(), vec![Expr::And(gates)]);
        }
        for or in ors {
            if let Some((cost, derived)) = self.union(&necessary, or, depth) {
                offer(cost, derived.keys, derived.gates);
            }
        }
        best
    }

    /// Keys of every branch of an OR.
    fn union(&mut self, necessary: &Necessary<'r>, or: Vec<Claim<'r>>, depth: usize) -> Option<(u32, Derived)> {
        self.branches += or.len();
        if self.branches > MOST_BRANCHES || depth > MOST_DEPTH {
            return None;
        }
        let mut all = (1, Derived { keys: Vec::new(), gates: Vec::new() });
        for claim in or {
            let mut branch = necessary.clone();
            branch.require_claim(self.rule, claim);
            let (cost, derived) = self.choose(branch, depth + 1)?;
            all.0 = all.0.max(cost + 1);
            all.1.keys.extend(derived.keys);
            all.1.gates.extend(derived.gates);
        }
        Some(all)
    }

    /// How each slot is reached from the judged row: cost and steps.
    fn ways(&self, necessary: &Necessary<'r>) -> BTreeMap<u16, (u32, Vec<PathStep>)> {
        let mut ways: BTreeMap<u16, (u32, Vec<PathStep>)> = BTreeMap::from([(0, (0, Vec::new()))]);
        let slots = 1..=self.rule.sources.len() as u16;
        loop {
            let mut best: Option<(u32, u16, Vec<PathStep>)> = None;
            for slot in slots.clone().filter(|slot| !ways.contains_key(slot)) {
                for (cost, steps) in ways.values() {
                    let step = self.step(necessary, slot, steps);
                    let connected = step.key.iter().any(|(_, _, scalar)| matches!(scalar, Scalar::Column(_)));
                    let own = match (connected, step.key.is_empty()) {
                        (true, _) => STEP,
                        (false, false) => CONSTANT_START,
                        (false, true) => SCAN,
                    };
                    // Rows that nothing connects are read from the row only, not from each of other rows.
                    if own != STEP && !steps.is_empty() {
                        continue;
                    }
                    let cost = cost + own;
                    if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                        let steps = steps.iter().cloned().chain([step]).collect();
                        best = Some((cost, slot, steps));
                    }
                }
            }
            let Some((cost, slot, steps)) = best else { return ways };
            ways.insert(slot, (cost, steps));
        }
    }

    /// The rows of a slot that equal what is known after these steps.
    fn step(&self, necessary: &Necessary<'r>, slot: u16, steps: &[PathStep]) -> PathStep {
        let known = |scalar: &Scalar| match scalar {
            Scalar::Column(column) => column.slot == 0 || steps.iter().any(|step| step.slot == column.slot),
            _ => matches!(scalar, Scalar::Constant(_)),
        };
        let mut key: Vec<(u16, Equality, Scalar)> = Vec::new();
        for (kind, a, b) in &necessary.bonds {
            for (own, other) in [(a, b), (b, a)] {
                let Scalar::Column(column) = own else { continue };
                let exact = kind_of(self.rule, *column).is_some_and(|own| exact_under(own, kind.equality));
                if column.slot == slot && known(other) && exact && !key.iter().any(|(at, ..)| *at == column.column) {
                    key.push((column.column, kind.equality, (**other).clone()));
                }
            }
        }
        // What connects is worth an index; constants only if there is nothing else.
        let connects = |(_, _, scalar): &(u16, Equality, Scalar)| matches!(scalar, Scalar::Column(_));
        if key.iter().any(connects) {
            key.retain(connects);
        }
        PathStep { slot, key }
    }
}
