//! What may raise or be unsure in a sub-select, apart from its rows and because of them.

use std::collections::BTreeSet;

use crate::pgtype::Equality;
use crate::policy::rule::{ColumnRef, CompareOp, Conversion, Expr, Members, Scalar, Subquery};

/// Something that may raise or be unsure.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::policy) enum Doubtful {
    Scalar(Scalar),
    /// An array claim.
    List(u16),
    /// An array of the judged row, compared under this equality.
    Array(ColumnRef, Equality),
}

/// Collects what may raise or be unsure in a sub-select.
pub(super) struct Doubts<'a> {
    /// Has a fact column's conversion watched: (table, watch), or `None` if it can't be.
    watch: &'a dyn Fn(ColumnRef, Conversion) -> Option<(usize, usize)>,
    /// Slots whose rows are known around it.
    outer: &'a BTreeSet<u16>,
    /// What is evaluated whatever the rows.
    pub(super) always: Vec<Doubtful>,
    /// What may be evaluated.
    pub(super) lazy: Vec<Doubtful>,
    pub(super) watches: Vec<(usize, usize)>,
    /// Something can't be watched.
    pub(super) naive: bool,
}

impl<'a> Doubts<'a> {
    pub(super) fn of(
        sub: &Subquery,
        outer: &'a BTreeSet<u16>,
        watch: &'a dyn Fn(ColumnRef, Conversion) -> Option<(usize, usize)>,
    ) -> Doubts<'a> {
        let (always, lazy, watches) = (Vec::new(), Vec::new(), Vec::new());
        let mut doubts = Doubts { watch, outer, always, lazy, watches, naive: false };
        doubts.sub(sub, false);
        doubts
    }

    fn add(&mut self, doubt: Doubtful, lazy: bool) {
        let list = if lazy { &mut self.lazy } else { &mut self.always };
        if !list.contains(&doubt) {
            list.push(doubt);
        }
    }

    fn expr(&mut self, expr: &Expr, lazy: bool) {
        match expr {
            Expr::Constant(_) => {}
            Expr::Value(scalar) => self.scalar(scalar, lazy),
            Expr::IsNull(scalar) => self.scalar(scalar, lazy),
            Expr::Compare(op, kind, pair) => {
                self.naive |= kind.order.is_none() && !matches!(op, CompareOp::Eq | CompareOp::Ne);
                self.scalar(&pair.0, lazy);
                self.scalar(&pair.1, lazy);
            }
            Expr::Same(_, pair) => {
                self.scalar(&pair.0, lazy);
                self.scalar(&pair.1, lazy);
            }
            Expr::Any(_, kind, left, members) | Expr::All(_, kind, left, members) => {
                self.scalar(left, lazy);
                match members {
                    Members::List(list) => list.iter().for_each(|scalar| self.scalar(scalar, lazy)),
                    Members::Claim(claim) => self.add(Doubtful::List(*claim), lazy),
                    Members::Array(column) => self.add(Doubtful::Array(*column, kind.equality), lazy),
                }
            }
            Expr::Is(inner, _) | Expr::Not(inner) => self.expr(inner, lazy),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().for_each(|part| self.expr(part, lazy)),
            Expr::Exists(sub) => self.sub(sub, lazy),
            Expr::In(lefts, sub) => {
                lefts.iter().for_each(|(_, left)| self.scalar(left, lazy));
                self.sub(sub, lazy);
            }
        }
    }

    fn sub(&mut self, sub: &Subquery, lazy: bool) {
        self.expr(&sub.condition, lazy);
        sub.outputs.iter().for_each(|output| self.scalar(output, lazy));
    }

    fn scalar(&mut self, scalar: &Scalar, lazy: bool) {
        match scalar {
            Scalar::Column(ColumnRef { slot: 0, .. }) | Scalar::Claim(_) => {
                self.add(Doubtful::Scalar(scalar.clone()), lazy);
            }
            Scalar::Column(_) | Scalar::Constant(_) => {}
            Scalar::Coalesce(list) => {
                for (at, scalar) in list.iter().enumerate() {
                    self.scalar(scalar, lazy || at > 0);
                }
            }
            Scalar::NullIf(_, pair) => {
                self.scalar(&pair.0, lazy);
                self.scalar(&pair.1, lazy);
            }
            Scalar::Case(arms, otherwise) => {
                for (at, (condition, value)) in arms.iter().enumerate() {
                    self.expr(condition, lazy || at > 0);
                    self.scalar(value, true);
                }
                otherwise.iter().for_each(|scalar| self.scalar(scalar, true));
            }
            Scalar::Truth(inner) => self.expr(inner, lazy),
            Scalar::Convert(Conversion::BoolToText, inner) => self.scalar(inner, lazy),
            Scalar::Convert(conversion, inner) => self.convert(scalar, *conversion, inner, lazy),
        }
    }

    fn convert(&mut self, whole: &Scalar, conversion: Conversion, inner: &Scalar, lazy: bool) {
        let own = |column: &ColumnRef| column.slot != 0 && !self.outer.contains(&column.slot);
        match inner {
            Scalar::Column(column) if own(column) => match (self.watch)(*column, conversion) {
                Some(watch) => self.watches.push(watch),
                None => self.naive = true,
            },
            Scalar::Column(_) | Scalar::Claim(_) | Scalar::Constant(_) => {
                self.add(Doubtful::Scalar(whole.clone()), lazy);
            }
            _ => self.naive = true,
        }
    }
}
