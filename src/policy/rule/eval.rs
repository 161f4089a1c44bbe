//! A rule's truth for one row and one viewer, exactly as Postgres has it or [`Truth::Unsure`].
//!
//! * AND and OR look at every operand: one that raises makes the whole raise, whatever the others say, since a real SELECT
//!   usually raises while it is planned. Unsure beats everything. CASE and COALESCE evaluate only what they reach.
//! * A sub-select raises if what it takes from outside raises, or if the condition raises for any combination of its tables'
//!   rows: which rows Postgres would reach first is its planner's affair. Otherwise it is what SQL says, in any order.
//!
//! How a sub-select's rows are found is in [`crate::policy::facts`]; here is one loop for all of it. Nothing is allocated for
//! comparisons of columns, claims and constants.

mod product;
mod walk;

use std::borrow::Cow;
use std::cell::Cell;

use smallvec::SmallVec;

use super::convert::convert;
use super::value::{Val, compared, find, of_bool, worse};
use super::viewer::{Hint, KnownViewer};
use super::{ColumnRef, CompareOp, Expr, Kind, Rule, RuleColumn, Scalar, Subquery, Truth, Viewer};
use crate::change::Value;
use crate::pgtype::canonical;
use crate::policy::facts::{
    Access, Doubtful, FactBinding, Facts, KeyPart, Level, NULL, Row, Side, Store, SubPlan, Symbol,
};
use crate::policy::rule::Claimed;
use crate::policy::term::Fault;

/// Rows of facts that the verdicts of one row may look at, all together, beside those in [`ROWS_EACH`]. What no index answers is
/// Postgres's work, not the hub's, which judges no other row meanwhile.
const MOST_ROWS: usize = 50_000;
/// Those that each of them may look at in any case: what indexes find.
const ROWS_EACH: usize = 64;

impl Rule {
    /// The truth of the rule for a row and a viewer. `column(i)` is the row's value for `reads[i]`, as the stream has it;
    /// [`Value::Unchanged`] if it is absent, which makes the answer unsure. So do a binding that is no longer valid, and a
    /// condition that needs a look at too many rows.
    pub fn truth<'a>(
        &self,
        binding: &FactBinding,
        facts: &Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        viewer: &Viewer,
    ) -> Truth {
        let viewer = KnownViewer::new(viewer.clone());
        self.judge_row(binding, facts, side, column).truth(&viewer)
    }

    /// The same for many viewers: what depends on the row alone is looked up once.
    pub fn judge_row<'e, 'a: 'e>(
        &'e self,
        binding: &'e FactBinding,
        facts: &'e Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
    ) -> RowEval<'e> {
        RowEval { eval: Eval::new(self, binding, facts, side, column, None) }
    }
}

/// A row whose rule is to be evaluated for many viewers; see [`Rule::judge_row`]. Each truth is found by a full evaluation:
/// only numbers of values are carried from one viewer to the next, and only those that the row and the facts determine.
pub struct RowEval<'e> {
    eval: Option<Eval<'e>>,
}

impl<'e> RowEval<'e> {
    /// See [`Rule::truth`].
    pub fn truth(&mut self, viewer: &'e KnownViewer) -> Truth {
        let Some(eval) = &mut self.eval else { return Truth::Unsure };
        eval.viewer = Some(viewer.viewer());
        eval.hint = Some(viewer.hint());
        eval.budget = (eval.budget + ROWS_EACH).min(MOST_ROWS);
        match eval.truth(&eval.rule.condition) {
            _ if eval.budget == 0 => Truth::Unsure,
            truth => truth,
        }
    }
}

fn is_doubt(truth: Truth) -> bool {
    matches!(truth, Truth::Raises | Truth::Unsure)
}

/// AND, with `decisive` false, or OR, with `decisive` true, of two outcomes.
pub(super) fn connect(decisive: Truth, a: Truth, b: Truth) -> Truth {
    let rank = |truth: Truth| match truth {
        Truth::Unsure => 4,
        Truth::Raises => 3,
        truth if truth == decisive => 2,
        Truth::Null => 1,
        Truth::True | Truth::False => 0,
    };
    if rank(b) > rank(a) { b } else { a }
}

/// One evaluation.
pub(super) struct Eval<'e> {
    rule: &'e Rule,
    binding: &'e FactBinding,
    side: Side,
    /// What the rule reads of the row.
    row: SmallVec<[Val<'e>; 4]>,
    viewer: Option<&'e Viewer>,
    /// The viewer's.
    hint: Option<&'e Cell<Option<Hint>>>,
    /// What columns came to, whoever the viewer is.
    found: SmallVec<[Found<'e>; 2]>,
    /// By slot, from slot 1.
    stores: SmallVec<[&'e Store; 4]>,
    /// By slot; that of slot 0 is not used.
    rows: SmallVec<[Row; 8]>,
    /// Rows that may still be looked at. At zero every outcome is void.
    pub(super) budget: usize,
}

/// The number that a table has for the value of a column, which had this number in its own table; [`NULL`] for the row's.
struct Found<'e> {
    part: &'e KeyPart,
    from: Symbol,
    symbol: Option<Symbol>,
}

impl<'e> Eval<'e> {
    /// `None` if the binding is no longer valid. Without a viewer every claim is unsure.
    pub(super) fn new<'a: 'e>(
        rule: &'e Rule,
        binding: &'e FactBinding,
        facts: &'e Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        viewer: Option<&'e Viewer>,
    ) -> Option<Eval<'e>> {
        let mut stores = SmallVec::new();
        if !rule.sources.is_empty() {
            if binding.generation != facts.generation() || binding.tables().len() != rule.sources.len() {
                return None;
            }
            for table in binding.tables() {
                stores.push(facts.store(table)?);
            }
        }
        let rows = SmallVec::from_elem(0, rule.sources.len() + 1);
        let value = |(at, read): (usize, &RuleColumn)| match column(at) {
            Value::Unchanged => Val::Unsure,
            Value::Null => Val::Null,
            Value::Text(text) => canonical(read.kind.equality, text).map_or(Val::Unsure, Val::Text),
        };
        let row = rule.reads.iter().enumerate().map(value).collect();
        let (hint, found) = (None, SmallVec::new());
        Some(Eval { rule, binding, side, row, viewer, hint, found, stores, rows, budget: MOST_ROWS })
    }

    pub(super) fn truth(&mut self, expr: &'e Expr) -> Truth {
        match expr {
            Expr::Constant(None) => Truth::Null,
            Expr::Constant(Some(value)) => of_bool(*value),
            Expr::Value(scalar) => self.value_truth(scalar),
            Expr::Compare(op, kind, pair) => {
                let (a, b) = (self.scalar(&pair.0), self.scalar(&pair.1));
                compared(*op, kind, &a, &b)
            }
            Expr::Same(kind, pair) => {
                let (a, b) = (self.scalar(&pair.0), self.scalar(&pair.1));
                match (&a, &b) {
                    (Val::Null, Val::Null) => Truth::True,
                    (Val::Null, Val::Text(_) | Val::Fact(..)) | (Val::Text(_) | Val::Fact(..), Val::Null) => {
                        Truth::False
                    }
                    _ => compared(CompareOp::Eq, kind, &a, &b),
                }
            }
            Expr::Any(op, kind, left, members) => self.members(Truth::True, *op, kind, left, members),
            Expr::All(op, kind, left, members) => self.members(Truth::False, *op, kind, left, members),
            Expr::IsNull(scalar) => {
                let value = self.scalar(scalar);
                value.doubt().unwrap_or_else(|| of_bool(matches!(value, Val::Null)))
            }
            Expr::Is(inner, wanted) => match (self.truth(inner), wanted) {
                (doubt @ (Truth::Raises | Truth::Unsure), _) => doubt,
                (truth, Some(wanted)) => of_bool(truth == of_bool(*wanted)),
                (truth, None) => of_bool(truth == Truth::Null),
            },
            Expr::Not(inner) => match self.truth(inner) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                other => other,
            },
            Expr::And(parts) => {
                parts.iter().fold(Truth::True, |truth, part| connect(Truth::False, truth, self.truth(part)))
            }
            Expr::Or(parts) => {
                parts.iter().fold(Truth::False, |truth, part| connect(Truth::True, truth, self.truth(part)))
            }
            Expr::Exists(sub) => self.exists(sub),
            Expr::In(lefts, sub) => self.is_in(lefts, sub),
        }
    }

    fn value_truth(&mut self, scalar: &'e Scalar) -> Truth {
        let value = match scalar {
            Scalar::Truth(inner) => return self.truth(inner),
            scalar => self.scalar(scalar),
        };
        if let Val::Null = value {
            return Truth::Null;
        }
        let read = value.with_text(|text| match text {
            b"t" => Truth::True,
            b"f" => Truth::False,
            _ => Truth::Unsure,
        });
        read.or(value.doubt()).unwrap_or(Truth::Unsure)
    }

    pub(super) fn claimed(&self, claim: u16) -> &'e Claimed {
        self.viewer.map_or(&Claimed::Unsure, |viewer| viewer.claimed(claim))
    }

    pub(super) fn column(&self, column: ColumnRef) -> Val<'e> {
        match usize::from(column.slot).checked_sub(1) {
            None => self.row.get(usize::from(column.column)).cloned().unwrap_or(Val::Unsure),
            Some(slot) => {
                let store = self.stores[slot];
                let symbol = store.cell(self.rows[slot + 1], self.binding.column(column));
                let kind = &self.rule.sources[slot].columns[usize::from(column.column)].kind;
                if symbol == NULL { Val::Null } else { Val::Fact(store, symbol, kind) }
            }
        }
    }

    pub(super) fn scalar(&mut self, scalar: &'e Scalar) -> Val<'e> {
        match scalar {
            Scalar::Column(column) => self.column(*column),
            Scalar::Claim(claim) => match self.claimed(*claim) {
                Claimed::Null => Val::Null,
                Claimed::Value(text) => Val::Text(Cow::Borrowed(text)),
                Claimed::Raises => Val::Raises,
                Claimed::List(_) | Claimed::Unsure => Val::Unsure,
            },
            Scalar::Constant(None) => Val::Null,
            Scalar::Constant(Some(text)) => Val::Text(Cow::Borrowed(text)),
            Scalar::Coalesce(list) => {
                for scalar in list {
                    match self.scalar(scalar) {
                        Val::Null => {}
                        value => return value,
                    }
                }
                Val::Null
            }
            Scalar::NullIf(kind, pair) => {
                let (a, b) = (self.scalar(&pair.0), self.scalar(&pair.1));
                match compared(CompareOp::Eq, kind, &a, &b) {
                    Truth::True => Val::Null,
                    Truth::Raises => Val::Raises,
                    Truth::Unsure => Val::Unsure,
                    Truth::False | Truth::Null => a,
                }
            }
            Scalar::Case(arms, otherwise) => {
                for (condition, value) in arms {
                    match self.truth(condition) {
                        Truth::True => return self.scalar(value),
                        Truth::Raises => return Val::Raises,
                        Truth::Unsure => return Val::Unsure,
                        Truth::False | Truth::Null => {}
                    }
                }
                otherwise.as_ref().map_or(Val::Null, |scalar| self.scalar(scalar))
            }
            Scalar::Truth(inner) => match self.truth(inner) {
                Truth::True => Val::Text(Cow::Borrowed(b"t")),
                Truth::False => Val::Text(Cow::Borrowed(b"f")),
                Truth::Null => Val::Null,
                Truth::Raises => Val::Raises,
                Truth::Unsure => Val::Unsure,
            },
            Scalar::Convert(conversion, inner) => {
                let value = self.scalar(inner);
                let converted = value.with_text(|text| convert(*conversion, text).map(Cow::into_owned));
                match converted {
                    None => value,
                    Some(Ok(text)) => Val::Text(Cow::Owned(text)),
                    Some(Err(Fault::Raises)) => Val::Raises,
                    Some(Err(Fault::Unsure)) => Val::Unsure,
                }
            }
        }
    }

    /// What is known of a sub-select before its rows: a doubt about all of it (the first), or that everything must be read.
    fn mode(&mut self, plan: &'e SubPlan) -> (Truth, bool) {
        let mut doubt = Truth::False;
        for doubtful in &plan.doubts {
            doubt = worse(self.doubt_of(doubtful), doubt);
        }
        let naive = plan.naive
            || plan.watches.iter().any(|(table, watch)| self.has_refused(*table, *watch))
            || plan.lazy.iter().any(|doubtful| is_doubt(self.doubt_of(doubtful)));
        (doubt, naive)
    }

    fn doubt_of(&mut self, doubtful: &'e Doubtful) -> Truth {
        match doubtful {
            // What was found is a value.
            Doubtful::Scalar(Scalar::Claim(claim)) if self.last_hint().is_some_and(|hint| hint.claim == *claim) => {
                Truth::False
            }
            Doubtful::Scalar(Scalar::Column(ColumnRef { slot: 0, column })) => {
                let value = self.row.get(usize::from(*column)).unwrap_or(&Val::Unsure);
                value.doubt().unwrap_or(Truth::False)
            }
            Doubtful::Scalar(scalar) => self.scalar(scalar).doubt().unwrap_or(Truth::False),
            Doubtful::Array(column, equality) => {
                self.array(*column, Truth::True, Truth::False, &|element| match element {
                    Val::Text(text) if canonical(*equality, text).is_none() => Truth::Unsure,
                    _ => Truth::False,
                })
            }
            Doubtful::List(claim) => match self.claimed(*claim) {
                Claimed::List(_) | Claimed::Null => Truth::False,
                Claimed::Raises => Truth::Raises,
                Claimed::Value(_) | Claimed::Unsure => Truth::Unsure,
            },
        }
    }

    fn has_refused(&self, table: usize, watch: usize) -> bool {
        let place = self.binding.tables().position(|other| other == table);
        place.is_none_or(|slot| self.stores[slot].has_refused(watch))
    }

    fn exists(&mut self, sub: &'e Subquery) -> Truth {
        let Some(plan) = self.binding.plan(sub) else { return self.read_all(sub, None) };
        let (mut doubt, naive) = self.mode(plan);
        if is_doubt(doubt) {
            return doubt;
        }
        if naive {
            return self.read_all(sub, None);
        }
        let found = self.descend(&plan.all.levels, &mut doubt, &mut |_, _| true);
        if is_doubt(doubt) { doubt } else { of_bool(found) }
    }

    fn is_in(&mut self, lefts: &'e [(Kind, Scalar)], sub: &'e Subquery) -> Truth {
        let values: Lefts<'e> = lefts.iter().map(|(kind, left)| (kind, self.scalar(left))).collect();
        let mut doubt =
            values.iter().fold(Truth::False, |doubt, (_, value)| worse(value.doubt().unwrap_or(Truth::False), doubt));
        let Some(plan) = self.binding.plan(sub) else {
            return worse(self.read_all(sub, Some(&values)), doubt);
        };
        let (inner, naive) = self.mode(plan);
        doubt = worse(doubt, inner);
        if is_doubt(doubt) {
            return doubt;
        }
        if naive {
            return self.read_all(sub, Some(&values));
        }
        let any_null = values.iter().any(|(_, value)| matches!(value, Val::Null));
        if any_null && plan.positive {
            return Truth::Null;
        }
        if let Some(probe) = plan.probe.as_ref().filter(|_| !any_null) {
            if self.descend(&probe.levels, &mut doubt, &mut |_, _| true) {
                return worse(Truth::True, doubt);
            }
            let null =
                plan.nulls.as_ref().is_some_and(|nulls| self.descend(&nulls.levels, &mut doubt, &mut |_, _| true));
            return worse(if null { Truth::Null } else { Truth::False }, doubt);
        }
        let mut truth = Truth::False;
        self.descend(&plan.all.levels, &mut doubt, &mut |eval, doubt| {
            let row = eval.row_equal(&values, sub);
            *doubt = worse(row, *doubt);
            truth = connect(Truth::True, truth, row);
            truth == Truth::True
        });
        worse(truth, doubt)
    }

    /// `(left, …) = (output, …)` for the current rows.
    fn row_equal(&mut self, values: &Lefts<'e>, sub: &'e Subquery) -> Truth {
        values.iter().zip(&sub.outputs).fold(Truth::True, |truth, ((kind, left), output)| {
            let output = self.scalar(output);
            connect(Truth::False, truth, compared(CompareOp::Eq, kind, left, &output))
        })
    }

    /// Runs the loops of a join. `each` is called for every combination of rows that passes, until it says true; the doubt of
    /// whatever was evaluated is added up.
    fn descend(
        &mut self,
        levels: &'e [Level],
        doubt: &mut Truth,
        each: &mut dyn FnMut(&mut Self, &mut Truth) -> bool,
    ) -> bool {
        let Some((level, rest)) = levels.split_first() else { return each(self, doubt) };
        let store = self.stores[usize::from(level.slot) - 1];
        match &level.access {
            Access::Scan => {
                for row in 0..store.versions() {
                    if self.visit(store, row, level, rest, doubt, each) {
                        return true;
                    }
                }
            }
            Access::Index { index, key } => {
                let mut symbols: SmallVec<[Symbol; 4]> = SmallVec::new();
                for part in key {
                    match self.symbol(store, part, doubt) {
                        Some(symbol) => symbols.push(symbol),
                        None => return false,
                    }
                }
                // Nothing but being there is asked of the row: any that is will do.
                let any = rest.is_empty() && level.filters.is_empty();
                let hint = self.last_hint().filter(|hint| any && hint.epoch == store.epoch());
                if let Some(row) = hint.and_then(|hint| hint.row)
                    && store.has_key(*index, row, &symbols)
                    && self.visit(store, row, level, rest, doubt, each)
                {
                    return true;
                }
                for row in store.rows(*index, &symbols) {
                    if self.visit(store, row, level, rest, doubt, each) {
                        if let (Some(hint), Some(place)) = (hint, self.hint) {
                            place.set(Some(Hint { row: Some(row), ..hint }));
                        }
                        return true;
                    }
                }
            }
        }
        false
    }

    fn visit(
        &mut self,
        store: &'e Store,
        row: Row,
        level: &'e Level,
        rest: &'e [Level],
        doubt: &mut Truth,
        each: &mut dyn FnMut(&mut Self, &mut Truth) -> bool,
    ) -> bool {
        if self.budget == 0 {
            return true;
        }
        self.budget -= 1;
        if !store.sees(self.side, row) {
            return false;
        }
        self.rows[usize::from(level.slot)] = row;
        for filter in &level.filters {
            let truth = self.truth(filter);
            if truth != Truth::True {
                *doubt = worse(truth, *doubt);
                return false;
            }
        }
        self.descend(rest, doubt, each)
    }

    /// The symbol that a column of an index must have; `None` if no row has it.
    fn symbol(&mut self, store: &'e Store, part: &'e KeyPart, doubt: &mut Truth) -> Option<Symbol> {
        let KeyPart::Equal(equality, scalar) = part else { return Some(NULL) };
        match scalar {
            Scalar::Claim(claim) => {
                let fits =
                    |hint: &Hint| hint.epoch == store.epoch() && (hint.claim, hint.equality) == (*claim, *equality);
                if let Some(hint) = self.last_hint().filter(fits) {
                    return Some(hint.symbol);
                }
                let value = self.scalar(scalar);
                let symbol = find(store, *equality, &value, doubt);
                if let (Some(hint), Some(symbol)) = (self.hint, symbol) {
                    hint.set(Some(Hint {
                        epoch: store.epoch(),
                        symbol,
                        row: None,
                        claim: *claim,
                        equality: *equality,
                    }));
                }
                symbol
            }
            Scalar::Column(column) => {
                let of_row = column.slot == 0;
                let value = if of_row { Val::Null } else { self.column(*column) };
                let from = match value {
                    Val::Fact(own, symbol, _) if std::ptr::eq(own, store) => return Some(symbol),
                    Val::Fact(_, symbol, _) => symbol,
                    _ => NULL,
                };
                let known = self.found.iter().position(|found| std::ptr::eq(found.part, part));
                if let Some(known) = known.map(|at| &self.found[at]).filter(|found| found.from == from) {
                    return known.symbol;
                }
                let value = if of_row { self.column(*column) } else { value };
                let mut own_doubt = Truth::False;
                let symbol = find(store, *equality, &value, &mut own_doubt);
                if is_doubt(own_doubt) {
                    *doubt = worse(own_doubt, *doubt);
                    return None;
                }
                let found = Found { part, from, symbol };
                match known {
                    Some(at) => self.found[at] = found,
                    None => self.found.push(found),
                }
                symbol
            }
            scalar => {
                let value = self.scalar(scalar);
                find(store, *equality, &value, doubt)
            }
        }
    }

    fn last_hint(&self) -> Option<Hint> {
        self.hint.and_then(Cell::get)
    }

    /// Calls `found` with a fact column's table and number, if it is not NULL.
    fn with_fact(&self, column: ColumnRef, found: &mut dyn FnMut(&Store, Symbol)) {
        if let Val::Fact(store, symbol, _) = self.column(column) {
            found(store, symbol);
        }
    }
}

type Lefts<'e> = SmallVec<[(&'e Kind, Val<'e>); 2]>;
