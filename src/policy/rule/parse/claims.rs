//! Operators on the token's JSON.

use sqlparser::ast::{BinaryOperator, CastKind, DataType, Expr as Ast, UnaryOperator, Value as Literal};

use super::condition::Want;
use super::typed::{Typed, Val, is_integer};
use super::{Compiler, Result, literal, not_pure};
use crate::pgtype::oid;
use crate::policy::rule::{CompareOp, Expr, Members, Scalar};
use crate::policy::term::{Elements, Term, TermType};

impl Compiler<'_> {
    /// A term of type JSON.
    fn json(&mut self, ast: &Ast) -> Result<Term> {
        match self.scalar(ast)?.val {
            Val::Term(term) if term.is_json() => Ok(term),
            _ => not_pure("an operator on JSON that is not the token's", ast),
        }
    }

    /// `->`, `->>`, `#>`, `#>>`.
    pub(super) fn member(&mut self, left: &Ast, op: &BinaryOperator, right: &Ast) -> Result<Typed> {
        let from = self.json(left)?;
        let as_text = matches!(op, BinaryOperator::LongArrow | BinaryOperator::HashLongArrow);
        let term = match op {
            BinaryOperator::HashArrow | BinaryOperator::HashLongArrow => {
                let path = literal::texts(right)?;
                if path.is_empty() {
                    return not_pure("an empty path", right);
                }
                Term::Path(Box::new(from), path, as_text)
            }
            _ => match (literal::text(right), integer(right)) {
                (Some(key), _) => match from.member(key, as_text) {
                    Some(term) => term,
                    None => return not_pure("a member of something that is not JSON", left),
                },
                (None, Some(index)) => Term::Index(Box::new(from), index, as_text),
                (None, None) => return not_pure("a key that is not a constant", right),
            },
        };
        Ok(Typed::term(term))
    }

    /// `claims ? text`, `claims ?| texts`, `claims ?& texts`.
    pub(super) fn has_key(&mut self, left: &Ast, op: &BinaryOperator, right: &Ast, want: Want) -> Result<Expr> {
        let from = self.json(left)?;
        if from.term_type() != TermType::Jsonb {
            return not_pure("an operator that json does not have", left);
        }
        let keys = Term::Elements(Box::new(from), Elements::Keys);
        if *op == BinaryOperator::Question {
            let key = self.scalar(right)?;
            return self.is_element(key, keys, want);
        }
        let mut found = Vec::new();
        for key in literal::texts(right)? {
            found.push(self.is_element(Typed::constant(oid::TEXT, key), keys.clone(), want)?);
        }
        if found.is_empty() {
            return not_pure("an empty list of keys", right);
        }
        Ok(if *op == BinaryOperator::QuestionAnd { Expr::all(found) } else { Expr::any(found) })
    }

    /// `value = ANY (list)` for an operator that is NULL whenever the value is, also if the list is empty.
    fn is_element(&mut self, value: Typed, list: Term, want: Want) -> Result<Expr> {
        let element = Typed::term(list.clone());
        let kind = self.compared(&value.ty, &element.ty)?;
        let may_be_null = !matches!(value.val, Val::Constant(Some(_)));
        let value = self.lower(value, kind)?;
        let list = Members::Claim(self.claim(list)?);
        let found = Expr::Any(CompareOp::Eq, kind, Box::new(value.clone()), list);
        if want == Want::Truth || !may_be_null {
            return Ok(found);
        }
        let unknown = Expr::all(vec![Expr::Constant(None), Expr::IsNull(Box::new(value))]);
        Ok(Expr::any(vec![found, unknown]))
    }

    /// `claims @> json`.
    pub(super) fn contains(&mut self, left: &Ast, right: &Ast, want: Want) -> Result<Expr> {
        let from = self.json(left)?;
        if from.term_type() != TermType::Jsonb {
            return not_pure("an operator that json does not have", left);
        }
        if let Some(constant) = json_literal(right) {
            let claim = self.claim(Term::Contains(Box::new(from), constant))?;
            return Ok(Expr::Value(Scalar::Claim(claim)));
        }
        match self.built(right)? {
            Some((value, false)) => {
                let strings = if is_integer(value.ty.oid) { Elements::Numbers } else { Elements::Strings };
                self.is_element(value, Term::Elements(Box::new(from), strings), want)
            }
            // An array of a NULL is an array of JSON's null.
            Some((value, true)) => {
                let of_array =
                    if is_integer(value.ty.oid) { Elements::NumbersOfArray } else { Elements::StringsOfArray };
                let null = Term::Contains(Box::new(from.clone()), serde_json::json!([null]));
                let found = self.is_element(value.clone(), Term::Elements(Box::new(from), of_array), want)?;
                let is_null = self.is_null(value)?;
                let null = Expr::Value(Scalar::Claim(self.claim(null)?));
                Ok(Expr::any(vec![
                    Expr::all(vec![is_null.clone(), null]),
                    Expr::all(vec![Expr::negated(is_null), found]),
                ]))
            }
            None => not_pure("JSON that is not a constant", right),
        }
    }

    /// `to_jsonb(value)` of a text or an integer, or (true) `jsonb_build_array(value)`.
    fn built(&mut self, ast: &Ast) -> Result<Option<(Typed, bool)>> {
        let Ast::Function(call) = strip(ast) else { return Ok(None) };
        let Some((name, arguments)) = self.builtin(call) else { return Ok(None) };
        let in_array = match name.as_str() {
            "to_jsonb" => false,
            "jsonb_build_array" => true,
            _ => return Ok(None),
        };
        let [argument] = &arguments[..] else { return Ok(None) };
        let value = self.scalar(argument)?;
        let fits = is_integer(value.ty.oid)
            || matches!(value.ty.oid, oid::TEXT | oid::VARCHAR | oid::UUID)
            || self.is_enum(value.ty.oid);
        if !fits {
            return not_pure("JSON made of another type than text and integer", ast);
        }
        let value = match is_integer(value.ty.oid) {
            true => value,
            false => self.cast(value, oid::TEXT, false)?,
        };
        Ok(Some((value, in_array)))
    }

    /// `claims = '…'::jsonb`.
    pub(super) fn json_equality(&mut self, left: &Ast, right: &Ast) -> Result<Option<Expr>> {
        for (json, constant) in [(left, right), (right, left)] {
            let Some(constant) = json_literal(constant) else { continue };
            let typed = self.scalar(json)?;
            if let Val::Term(term) = typed.val
                && term.term_type() == TermType::Jsonb
            {
                let claim = self.claim(Term::Equals(Box::new(term), constant))?;
                return Ok(Some(Expr::Value(Scalar::Claim(claim))));
            }
        }
        Ok(None)
    }
}

pub(super) fn strip(ast: &Ast) -> &Ast {
    match ast {
        Ast::Nested(inner) => strip(inner),
        other => other,
    }
}

/// `'…'::jsonb`. A number that is not a 64-bit integer would be compared by digits that are lost here.
fn json_literal(ast: &Ast) -> Option<serde_json::Value> {
    let Ast::Cast { kind: CastKind::DoubleColon, expr, data_type: DataType::JSONB, format: None } = strip(ast) else {
        return None;
    };
    serde_json::from_str(literal::quoted(expr)?).ok()
}

/// `0`, `-1`, `'-1'::integer`.
fn integer(ast: &Ast) -> Option<i32> {
    match ast {
        Ast::Nested(inner) => integer(inner),
        Ast::Value(value) => match &value.value {
            Literal::Number(digits, false) => digits.parse().ok(),
            _ => None,
        },
        Ast::UnaryOp { op: UnaryOperator::Minus, expr } => integer(expr).and_then(i32::checked_neg),
        Ast::Cast { kind: CastKind::DoubleColon, expr, data_type: DataType::Integer(None), format: None } => {
            literal::quoted(expr)?.parse().ok()
        }
        _ => None,
    }
}
