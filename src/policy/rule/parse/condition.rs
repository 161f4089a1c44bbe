//! What is true: connectives, comparisons, membership.

use sqlparser::ast::{BinaryOperator, Expr as Ast, UnaryOperator};

use super::claims::strip;
use super::topic::is_pattern_match;
use super::typed::{BOOLEAN, Typed, UNKNOWN, Val};
use super::{Compiler, NotPure, Result, not_pure};
use crate::pgtype::{TypeKind, oid};
use crate::policy::rule::{CompareOp, Expr, Members, Scalar};

/// What the reader of a condition wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Whether it is true: false and NULL are the same, as in USING, WHERE, ON and WHEN.
    Truth,
    /// All three.
    Exact,
}

/// Whether the node is a boolean operator, so that [`Compiler::condition`] reads it and not [`Compiler::scalar`].
pub(super) fn is_condition(ast: &Ast) -> bool {
    use BinaryOperator as Op;
    match ast {
        Ast::BinaryOp { op, .. } => {
            comparison(op).is_some()
                || matches!(
                    op,
                    Op::And | Op::Or | Op::Question | Op::QuestionPipe | Op::QuestionAnd | Op::AtArrow | Op::ArrowAt
                )
                || is_pattern_match(op)
        }
        Ast::UnaryOp { op: UnaryOperator::Not, .. }
        | Ast::IsNull(_)
        | Ast::IsNotNull(_)
        | Ast::IsTrue(_)
        | Ast::IsNotTrue(_)
        | Ast::IsFalse(_)
        | Ast::IsNotFalse(_)
        | Ast::IsUnknown(_)
        | Ast::IsNotUnknown(_)
        | Ast::IsDistinctFrom(..)
        | Ast::IsNotDistinctFrom(..)
        | Ast::InList { .. }
        | Ast::InSubquery { .. }
        | Ast::Between { .. }
        | Ast::AnyOp { .. }
        | Ast::AllOp { .. }
        | Ast::Exists { .. }
        | Ast::Like { .. } => true,
        _ => false,
    }
}

pub(super) fn comparison(op: &BinaryOperator) -> Option<CompareOp> {
    match op {
        BinaryOperator::Eq => Some(CompareOp::Eq),
        BinaryOperator::NotEq => Some(CompareOp::Ne),
        BinaryOperator::Lt => Some(CompareOp::Lt),
        BinaryOperator::LtEq => Some(CompareOp::Le),
        BinaryOperator::Gt => Some(CompareOp::Gt),
        BinaryOperator::GtEq => Some(CompareOp::Ge),
        _ => None,
    }
}

impl<'a> Compiler<'a> {
    pub(super) fn condition(&mut self, ast: &Ast, want: Want) -> Result<Expr> {
        use BinaryOperator as Op;
        match ast {
            Ast::Nested(inner) => self.condition(inner, want),
            Ast::BinaryOp { left, op: Op::And, right } => {
                Ok(Expr::all(vec![self.condition(left, want)?, self.condition(right, want)?]))
            }
            Ast::BinaryOp { left, op: Op::Or, right } => self.either(left, right, want),
            Ast::UnaryOp { op: UnaryOperator::Not, expr } => Ok(Expr::negated(self.condition(expr, Want::Exact)?)),
            Ast::BinaryOp { left, op: op @ (Op::Question | Op::QuestionPipe | Op::QuestionAnd), right } => {
                self.has_key(left, op, right, want)
            }
            Ast::BinaryOp { left, op: Op::AtArrow, right } => self.contains_all(left, right, want),
            Ast::BinaryOp { left, op: Op::ArrowAt, right } => self.contains_all(right, left, want),
            Ast::BinaryOp { left, op, right } if is_pattern_match(op) => self.pattern_match(left, op, right, ast),
            Ast::Like { negated, any: false, expr, pattern, escape_char: None } => {
                let op = if *negated { Op::PGNotLikeMatch } else { Op::PGLikeMatch };
                self.pattern_match(expr, &op, pattern, ast)
            }
            Ast::BinaryOp { left, op, right } => match comparison(op) {
                Some(op) => self.comparison(left, op, right, want),
                None => not_pure(&format!("the operator {op}"), ast),
            },
            Ast::IsTrue(inner) => Ok(Expr::is(self.condition(inner, Want::Truth)?, Some(true))),
            Ast::IsNotTrue(inner) => Ok(Expr::negated(Expr::is(self.condition(inner, Want::Truth)?, Some(true)))),
            Ast::IsFalse(inner) => Ok(Expr::is(self.condition(inner, Want::Exact)?, Some(false))),
            Ast::IsNotFalse(inner) => Ok(Expr::negated(Expr::is(self.condition(inner, Want::Exact)?, Some(false)))),
            Ast::IsUnknown(inner) => Ok(Expr::is(self.condition(inner, Want::Exact)?, None)),
            Ast::IsNotUnknown(inner) => Ok(Expr::negated(Expr::is(self.condition(inner, Want::Exact)?, None))),
            Ast::IsNull(inner) => {
                let typed = self.scalar(inner)?;
                self.is_null(typed)
            }
            Ast::IsNotNull(inner) => {
                let typed = self.scalar(inner)?;
                Ok(Expr::negated(self.is_null(typed)?))
            }
            Ast::IsNotDistinctFrom(left, right) => self.same(left, right),
            Ast::IsDistinctFrom(left, right) => Ok(Expr::negated(self.same(left, right)?)),
            Ast::Between { expr, negated, low, high } => {
                let want = if *negated { Want::Exact } else { want };
                let above = self.comparison(expr, CompareOp::Ge, low, want)?;
                let within = Expr::all(vec![above, self.comparison(expr, CompareOp::Le, high, want)?]);
                Ok(if *negated { Expr::negated(within) } else { within })
            }
            Ast::InList { expr, list, negated } => {
                let op = if *negated { CompareOp::Ne } else { CompareOp::Eq };
                let list = list.iter().map(|member| self.scalar(member)).collect::<Result<Vec<_>>>()?;
                let left = self.scalar(expr)?;
                self.quantified(left, op, super::members::Set::List(list), !*negated, want)
            }
            Ast::AnyOp { left, compare_op, right, is_some: false } => match comparison(compare_op) {
                Some(op) => self.quantified_over(left, op, right, true, want),
                None => not_pure(&format!("the operator {compare_op}"), ast),
            },
            Ast::AllOp { left, compare_op, right } => match comparison(compare_op) {
                Some(op) => self.quantified_over(left, op, right, false, want),
                None => not_pure(&format!("the operator {compare_op}"), ast),
            },
            Ast::InSubquery { expr, subquery, negated } => {
                let want = if *negated { Want::Exact } else { want };
                let found = self.in_query(expr, subquery, want)?;
                Ok(if *negated { Expr::negated(found) } else { found })
            }
            Ast::Exists { subquery, negated } => {
                let found = self.exists(subquery)?;
                Ok(if *negated { Expr::negated(found) } else { found })
            }
            other => {
                let typed = self.scalar(other)?;
                self.truth(typed, want)
            }
        }
    }

    /// Postgres folds `true OR …` before it looks at the rest, so the rest may be anything.
    fn either(&mut self, left: &Ast, right: &Ast, want: Want) -> Result<Expr> {
        match (self.condition(left, want), self.condition(right, want)) {
            (Ok(Expr::Constant(Some(true))), _) | (_, Ok(Expr::Constant(Some(true)))) => Ok(Expr::Constant(Some(true))),
            (left, right) => Ok(Expr::any(vec![left?, right?])),
        }
    }

    /// A boolean value as a condition.
    pub(super) fn truth(&mut self, typed: Typed, want: Want) -> Result<Expr> {
        let typed = if typed.ty.oid == UNKNOWN { self.cast(typed, oid::BOOL, false)? } else { typed };
        if !typed.is_boolean() {
            return Err(NotPure("a condition that is not a boolean".into()));
        }
        match typed.val {
            Val::Constant(value) => Ok(Expr::Constant(value.map(|text| text == "t"))),
            Val::Scalar(Scalar::Truth(condition)) => Ok(*condition),
            Val::Select(_) => self.lifted(typed, want, |compiler, typed| compiler.truth(typed, Want::Exact)),
            _ => Ok(Expr::Value(self.lower(typed, BOOLEAN)?)),
        }
    }

    fn comparison(&mut self, left: &Ast, op: CompareOp, right: &Ast, want: Want) -> Result<Expr> {
        if matches!(op, CompareOp::Eq | CompareOp::Ne)
            && let Some(equal) = self.json_equality(left, right)?
        {
            return Ok(if op == CompareOp::Eq { equal } else { Expr::negated(equal) });
        }
        for (left, op, right) in [(left, op, right), (right, mirrored(op), left)] {
            if let Some(counted) = self.count_compared(left, op, right)? {
                return Ok(counted);
            }
        }
        let (left, right) = (self.scalar(left)?, self.scalar(right)?);
        self.compare(left, op, right, want)
    }

    pub(super) fn compare(&mut self, left: Typed, op: CompareOp, right: Typed, want: Want) -> Result<Expr> {
        if let Val::Select(_) = left.val {
            return self.compared_select(left, op, right, want);
        }
        if let Val::Select(_) = right.val {
            return self.compared_select(right, mirrored(op), left, want);
        }
        let (left, right) = match op {
            CompareOp::Eq | CompareOp::Ne => self.without_frame(left, right)?,
            _ => (left, right),
        };
        if let Val::Select(_) = right.val {
            return self.compared_select(right, op, left, want);
        }
        let kind = self.compared(&left.ty, &right.ty)?;
        if !matches!(op, CompareOp::Eq | CompareOp::Ne) && kind.order.is_none() {
            let name = crate::pgtype::type_name(self.catalog.types(), kind.oid);
            return Err(NotPure(format!("an order of type {name} that only Postgres knows")));
        }
        let element = match (&left.val, &right.val) {
            (Val::Element(_), Val::Element(_)) => return Err(NotPure("two lists in one comparison".into())),
            (Val::Element(list), _) => Some((list.clone(), right.clone(), mirrored(op))),
            (_, Val::Element(list)) => Some((list.clone(), left.clone(), op)),
            _ => None,
        };
        if let Some((list, other, op)) = element {
            let other = self.lower(other, kind)?;
            let list = Members::Claim(self.claim(list)?);
            return Ok(Expr::Any(op, kind, Box::new(other), list));
        }
        let (left, right) = (self.lower(left, kind)?, self.lower(right, kind)?);
        Ok(Expr::compare(op, kind, left, right))
    }

    /// `IS NOT DISTINCT FROM`.
    fn same(&mut self, left: &Ast, right: &Ast) -> Result<Expr> {
        let (left, right) = (self.scalar(left)?, self.scalar(right)?);
        let kind = self.compared(&left.ty, &right.ty)?;
        let (left, right) = (self.lower(left, kind)?, self.lower(right, kind)?);
        Ok(Expr::Same(kind, Box::new((left, right))))
    }

    pub(super) fn is_null(&mut self, typed: Typed) -> Result<Expr> {
        let composite = self.catalog.types().get(typed.ty.oid).map(|info| &info.kind);
        if let Some(TypeKind::Composite { .. }) = composite {
            // A record is NULL if all its fields are.
            return Err(NotPure("IS NULL of a record".into()));
        }
        match typed.val {
            Val::Constant(value) => Ok(Expr::Constant(Some(value.is_none()))),
            Val::Term(term) => Ok(Expr::IsNull(Box::new(Scalar::Claim(self.claim(term)?)))),
            Val::Scalar(scalar) => Ok(Expr::IsNull(Box::new(scalar))),
            Val::Select(select) => self.select_is_null(*select),
            // NULL if what it is joined with is.
            Val::Framed(framed) => self.is_null(framed.inner),
            Val::Element(term) => not_pure("elements of a list", term),
        }
    }

    /// `claims @> …`, or `ARRAY[…] @> ARRAY[…]`.
    fn contains_all(&mut self, large: &Ast, small: &Ast, want: Want) -> Result<Expr> {
        let (Ast::Array(of), Ast::Array(wanted)) = (strip(large), strip(small)) else {
            return match strip(large) {
                Ast::Identifier(_) | Ast::CompoundIdentifier(_) => not_pure("containment in a column", large),
                _ => self.contains(large, small, want),
            };
        };
        let mut all = Vec::new();
        for member in &wanted.elem {
            let list = of.elem.iter().map(|e| self.scalar(e)).collect::<Result<Vec<_>>>()?;
            let member = self.scalar(member)?;
            let found = self.quantified(member, CompareOp::Eq, super::members::Set::List(list), true, Want::Exact)?;
            // Of arrays, no NULL equals anything, and there is always an answer.
            all.push(Expr::is(found, Some(true)));
        }
        match all.is_empty() || of.elem.is_empty() {
            true => not_pure("an empty array", small),
            false => Ok(Expr::all(all)),
        }
    }
}

/// `a op b` is `b mirrored(op) a`.
pub(super) fn mirrored(op: CompareOp) -> CompareOp {
    match op {
        CompareOp::Lt => CompareOp::Gt,
        CompareOp::Le => CompareOp::Ge,
        CompareOp::Gt => CompareOp::Lt,
        CompareOp::Ge => CompareOp::Le,
        same => same,
    }
}
