//! A sub-select that was read, and what EXISTS, IN and comparisons make of it.

use super::condition::Want;
use super::typed::{Typed, Val};
use super::{Compiler, NotPure, Result};
use crate::policy::rule::{ColumnRef, CompareOp, Expr, Scalar, Subquery};

/// A sub-select over tables; none for `SELECT value`.
#[derive(Debug, Clone)]
pub(super) struct Select {
    pub(super) slots: Vec<u16>,
    /// All of them hold for its rows.
    pub(super) conditions: Vec<Expr>,
    pub(super) outputs: Vec<Typed>,
    /// At most one of its rows counts: LIMIT 1, or the body of a function that returns one value.
    pub(super) first_only: bool,
}

impl Select {
    fn condition(&self, more: Option<Expr>) -> Expr {
        Expr::together(self.conditions.iter().cloned().chain(more).collect())
    }

    fn exists(&self, more: Option<Expr>) -> Expr {
        let condition = self.condition(more);
        match self.slots.is_empty() {
            true => Expr::is(condition, Some(true)),
            false => Expr::Exists(Box::new(Subquery { slots: self.slots.clone(), condition, outputs: Vec::new() })),
        }
    }
}

impl<'a> Compiler<'a> {
    /// `EXISTS (select)`.
    pub(super) fn select_exists(&mut self, select: &Select) -> Result<Expr> {
        match select.outputs.iter().any(|output| matches!(output.val, Val::Element(_))) {
            true => Err(NotPure("whether a list is empty".into())),
            false => Ok(select.exists(None)),
        }
    }

    /// `(left, …) IN (rows)`. The rows of a UNION are those of its parts.
    pub(super) fn in_rows(&mut self, left: Vec<Typed>, rows: Vec<Select>, want: Want) -> Result<Expr> {
        let mut any = Vec::new();
        for select in rows {
            any.push(self.in_select(left.clone(), select, want)?);
        }
        Ok(Expr::any(any))
    }

    fn in_select(&mut self, left: Vec<Typed>, select: Select, want: Want) -> Result<Expr> {
        if left.len() != select.outputs.len() {
            return Err(NotPure("a row compared with rows of another width".into()));
        }
        if select.first_only && !self.is_single(&select) {
            return Err(NotPure("LIMIT: which row it is, is left to chance".into()));
        }
        if select.slots.is_empty() {
            let ([left], [output]) = (&left[..], &select.outputs[..]) else {
                return Err(NotPure("a row compared with a row".into()));
            };
            if !select.conditions.is_empty() {
                return Err(NotPure("a condition without a table".into()));
            }
            return self.compare(left.clone(), CompareOp::Eq, output.clone(), want);
        }
        let mut pairs = Vec::new();
        let mut outputs = Vec::new();
        for (left, output) in left.into_iter().zip(select.outputs) {
            let (left, output) = self.without_frame(left, output)?;
            let kind = self.compared(&left.ty, &output.ty)?;
            pairs.push((kind, self.lower(left, kind)?));
            outputs.push(self.lower(output, kind)?);
        }
        let condition = Expr::together(select.conditions);
        Ok(Expr::In(pairs, Box::new(Subquery { slots: select.slots, condition, outputs })))
    }

    /// A scalar sub-select in a condition, which is true if there is a row and the condition is true of it, and NULL if there
    /// is no row.
    pub(super) fn lifted(
        &mut self,
        typed: Typed,
        want: Want,
        condition: impl FnOnce(&mut Self, Typed) -> Result<Expr>,
    ) -> Result<Expr> {
        let Val::Select(mut select) = typed.val else { return condition(self, typed) };
        let Some(output) = select.outputs.pop() else { return Err(NotPure("a sub-select without a value".into())) };
        let condition = condition(self, output)?;
        Ok(null_without(&select, select.exists(Some(condition.clone())), condition, want))
    }

    /// `select op other`.
    pub(super) fn compared_select(&mut self, left: Typed, op: CompareOp, right: Typed, want: Want) -> Result<Expr> {
        // IN looks at its left side also if there is no row: a claim that raises does so in Postgres, too.
        let may_fail = matches!(&right.val, Val::Term(term) if term.may_fail());
        match left.val {
            Val::Select(mut select) if may_fail && op == CompareOp::Eq => {
                select.first_only = false;
                let found = self.in_select(vec![right.clone()], (*select).clone(), Want::Exact)?;
                let Some(output) = select.outputs.pop() else { return Err(NotPure("no value".into())) };
                let equal = self.compare(output, op, right, Want::Exact)?;
                Ok(null_without(&select, found, equal, want))
            }
            val => {
                let left = Typed { ty: left.ty, val };
                self.lifted(left, want, |compiler, left| compiler.compare(left, op, right, Want::Exact))
            }
        }
    }

    pub(super) fn select_is_null(&mut self, mut select: Select) -> Result<Expr> {
        let Some(output) = select.outputs.pop() else { return Err(NotPure("a sub-select without a value".into())) };
        let is_null = self.is_null(output)?;
        Ok(Expr::negated(select.exists(Some(Expr::negated(is_null)))))
    }

    /// At most one row, or all rows have the same value.
    pub(super) fn is_single(&self, select: &Select) -> bool {
        let constant = select.outputs.iter().all(|output| matches!(output.val, Val::Constant(_)));
        (select.first_only && constant) || self.is_pinned(select)
    }

    /// The conditions give every table's primary key values that don't come from the sub-select's own tables.
    fn is_pinned(&self, select: &Select) -> bool {
        let mut equalities = Vec::new();
        for condition in &select.conditions {
            gather_equalities(condition, &mut equalities);
        }
        let mut open = select.slots.clone();
        loop {
            let pinned = |slot: &u16| {
                let source = usize::from(*slot).checked_sub(1).and_then(|place| self.sources.get(place));
                let table = source.and_then(|source| self.catalog.table(source.table_oid));
                let (Some(source), Some(table)) = (source, table) else { return false };
                let given = |name: &String| {
                    equalities.iter().any(|(column, other)| {
                        column.slot == *slot
                            && source.columns.get(usize::from(column.column)).is_some_and(|c| c.name == *name)
                            && !other.iter().any(|slot| open.contains(slot))
                    })
                };
                !table.primary_key.is_empty() && table.primary_key.iter().all(given)
            };
            let Some(place) = open.iter().position(pinned) else { return open.is_empty() };
            open.remove(place);
        }
    }
}

/// `found` says when it is true; if more is wanted, it is NULL where the condition is neither true nor false of any row.
fn null_without(select: &Select, found: Expr, condition: Expr, want: Want) -> Expr {
    if want == Want::Truth {
        return found;
    }
    let is_false = select.exists(Some(Expr::is(condition, Some(false))));
    Expr::any(vec![found, Expr::all(vec![Expr::Constant(None), Expr::negated(is_false)])])
}

/// Columns that must equal something, with the slots which that reads.
fn gather_equalities(condition: &Expr, found: &mut Vec<(ColumnRef, Vec<u16>)>) {
    match condition {
        Expr::And(parts) => parts.iter().for_each(|part| gather_equalities(part, found)),
        Expr::Compare(CompareOp::Eq, _, pair) => {
            for (a, b) in [(&pair.0, &pair.1), (&pair.1, &pair.0)] {
                if let Scalar::Column(column) = a {
                    found.push((*column, b.slots()));
                }
            }
        }
        _ => {}
    }
}
