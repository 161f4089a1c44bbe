//! What has a value: columns, claims, constants, casts, CASE, COALESCE, NULLIF.

use sqlparser::ast::{CaseWhen, CastKind, Expr as Ast, UnaryOperator, Value as Literal};

use super::condition::{Want, is_condition};
use super::literal;
use super::typed::{BOOLEAN, Ty, Typed, UNKNOWN, Val, is_text};
use super::{Compiler, NotPure, Result, mentions_clock, not_pure};
use crate::pgtype::oid;
use crate::policy::rule::{CompareOp, Kind, Scalar};
use crate::policy::term::{Term, TermType};

impl<'a> Compiler<'a> {
    pub(super) fn scalar(&mut self, ast: &Ast) -> Result<Typed> {
        use sqlparser::ast::BinaryOperator as Op;
        if is_condition(ast) {
            let condition = self.condition(ast, Want::Exact)?;
            return Ok(Typed::scalar(oid::BOOL, Scalar::Truth(Box::new(condition))));
        }
        if let Some(constant) = self.bare_literal(ast) {
            return Ok(constant);
        }
        match ast {
            Ast::Nested(inner) => self.scalar(inner),
            Ast::Identifier(ident) => self.column(std::slice::from_ref(ident)),
            Ast::CompoundIdentifier(parts) => self.column(parts),
            Ast::Value(value) => match &value.value {
                Literal::Placeholder(name) => {
                    let ident = sqlparser::ast::Ident::with_quote('"', name.as_str());
                    self.column(&[ident])
                }
                _ => not_pure("a constant", ast),
            },
            Ast::TypedString(typed) if !typed.uses_odbc_syntax => {
                let text = match &typed.value.value {
                    Literal::SingleQuotedString(text) if !text.contains('\\') => text,
                    _ => return not_pure("a constant", ast),
                };
                match self.target(&typed.data_type) {
                    Some(target) => self.cast(Typed::constant(UNKNOWN, text), target.oid, target.sized),
                    None => not_pure("a constant of this type", ast),
                }
            }
            Ast::Cast { kind: CastKind::DoubleColon | CastKind::Cast, expr, data_type, format: None } => {
                let inner = self.scalar(expr)?;
                match self.target(data_type) {
                    Some(target) if !target.domain || matches!(inner.val, Val::Constant(_)) => {
                        self.cast(inner, target.oid, target.sized)
                    }
                    _ => not_pure("a cast", ast),
                }
            }
            Ast::UnaryOp { op: UnaryOperator::Minus, expr } => match expr.as_ref() {
                Ast::Value(value) => match &value.value {
                    Literal::Number(digits, false) => {
                        literal::number(digits, true).ok_or_else(|| NotPure(format!("a constant: {ast}")))
                    }
                    _ => not_pure("arithmetic", ast),
                },
                _ => not_pure("arithmetic", ast),
            },
            Ast::BinaryOp { left, op: op @ (Op::Arrow | Op::LongArrow | Op::HashArrow | Op::HashLongArrow), right } => {
                self.member(left, op, right)
            }
            Ast::BinaryOp { op: Op::StringConcat, .. } if self.topic.is_some() => self.joined(ast),
            Ast::BinaryOp { .. } if mentions_clock(ast) => not_pure("it reads the clock", ast),
            Ast::BinaryOp { op, .. } => not_pure(&format!("the operator {op}"), ast),
            Ast::Case { operand, conditions, else_result, .. } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            Ast::Subquery(query) => self.scalar_query(query),
            Ast::Function(call) => self.call(call),
            Ast::Substring { expr, substring_from: Some(from), substring_for, special, shorthand }
                if self.topic.is_some() =>
            {
                let name = if *shorthand { "substr" } else { "substring" };
                let list: Vec<&Ast> = [&**expr, &**from].into_iter().chain(substring_for.as_deref()).collect();
                // What is not written as a call is never another function.
                match self.of_topic(name, &list, *special)? {
                    Some(typed) => Ok(typed),
                    None => not_pure("a function", ast),
                }
            }
            Ast::CompoundFieldAccess { root, access_chain } if self.topic.is_some() => {
                self.element_of_topic(root, access_chain, ast)
            }
            Ast::Collate { .. } => not_pure("COLLATE", ast),
            Ast::AtTimeZone { .. } => not_pure("AT TIME ZONE", ast),
            other => not_pure("not understood", other),
        }
    }

    fn case(&mut self, operand: Option<&Ast>, arms: &[CaseWhen], otherwise: Option<&Ast>) -> Result<Typed> {
        let mut conditions = Vec::new();
        let mut results = Vec::new();
        for CaseWhen { condition, result } in arms {
            conditions.push(match operand {
                None => self.condition(condition, Want::Truth)?,
                Some(operand) => {
                    let (operand, value) = (self.scalar(operand)?, self.scalar(condition)?);
                    self.compare(operand, CompareOp::Eq, value, Want::Truth)?
                }
            });
            results.push(self.scalar(result)?);
        }
        let otherwise = otherwise.map(|ast| self.scalar(ast)).transpose()?;
        let (ty, kind) = self.united(results.iter().chain(&otherwise))?;
        let results = results.into_iter().map(|typed| self.whole(typed, kind)).collect::<Result<Vec<_>>>()?;
        let otherwise = otherwise.map(|typed| self.whole(typed, kind)).transpose()?.map(Box::new);
        let arms = conditions.into_iter().zip(results).collect();
        Ok(Typed { ty, val: Val::Scalar(Scalar::Case(arms, otherwise)) })
    }

    /// As a part of a larger expression; a boolean sub-select as a condition.
    fn whole(&mut self, typed: Typed, kind: Kind) -> Result<Scalar> {
        match typed.val {
            Val::Select(_) if typed.is_boolean() => Ok(Scalar::Truth(Box::new(self.truth(typed, Want::Exact)?))),
            _ => self.lower(typed, kind),
        }
    }

    /// The type of all of them, and how it is written.
    fn united<'t>(&self, parts: impl Iterator<Item = &'t Typed>) -> Result<(Ty, Kind)> {
        let mut ty = Ty::plain(UNKNOWN);
        for part in parts {
            ty = self.common(&ty, &part.ty)?;
        }
        let kind = match ty.oid {
            oid::BOOL => BOOLEAN,
            _ => self.compared(&ty, &ty)?,
        };
        Ok((ty, kind))
    }

    pub(super) fn coalesce(&mut self, arguments: &[&Ast]) -> Result<Typed> {
        let parts = arguments.iter().map(|ast| self.scalar(ast)).collect::<Result<Vec<_>>>()?;
        let as_term = |typed: &Typed| match &typed.val {
            Val::Term(term) if term.term_type() == TermType::Text => Some(term.clone()),
            Val::Constant(Some(text)) if is_text(typed.ty.oid) || typed.ty.oid == UNKNOWN => {
                Some(Term::Text(text.clone()))
            }
            _ => None,
        };
        if parts.iter().any(|typed| matches!(typed.val, Val::Term(_)))
            && let Some(terms) = parts.iter().map(as_term).collect()
        {
            return Ok(Typed::term(Term::Coalesce(terms)));
        }
        let (ty, kind) = self.united(parts.iter())?;
        let parts = parts.into_iter().map(|typed| self.whole(typed, kind)).collect::<Result<_>>()?;
        Ok(Typed { ty, val: Val::Scalar(Scalar::Coalesce(parts)) })
    }

    pub(super) fn null_if(&mut self, value: &Ast, other: &Ast) -> Result<Typed> {
        let (value, other) = (self.scalar(value)?, self.scalar(other)?);
        let is_empty = matches!(&other.val, Val::Constant(Some(text)) if text.is_empty());
        if let Some(typed) = self.topic_unless(&value, &other)? {
            return Ok(typed);
        }
        match value.val {
            Val::Term(term) if is_empty && term.term_type() == TermType::Text => {
                Ok(Typed::term(Term::NullIfEmpty(Box::new(term))))
            }
            val => {
                let value = Typed { ty: value.ty, val };
                let ty = value.ty.clone();
                let kind = self.compared(&value.ty, &other.ty)?;
                let pair = (self.lower(value, kind)?, self.lower(other, kind)?);
                Ok(Typed { ty, val: Val::Scalar(Scalar::NullIf(kind, Box::new(pair))) })
            }
        }
    }
}
