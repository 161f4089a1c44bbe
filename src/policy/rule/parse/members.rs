//! The right side of `ANY`, `ALL` and `IN`.

use sqlparser::ast::{CastKind, Expr as Ast, FunctionArguments, Ident, Query};

use super::claims::strip;
use super::condition::Want;
use super::literal::{self, Target};
use super::select::Select;
use super::typed::{Ty, Typed, Val, is_text};
use super::{Compiler, NotPure, Result, not_pure};
use crate::pgtype::{self, oid};
use crate::policy::rule::{ColumnRef, CompareOp, Expr, Members, Scalar};
use crate::policy::term::{Term, TermType};

/// Values to compare with.
pub(super) enum Set {
    /// `ARRAY[…]`.
    List(Vec<Typed>),
    /// A list from the token.
    Claim(Term),
    /// An array of the judged row, and the type of its elements.
    Array(ColumnRef, Ty),
    /// Rows of one column; each select adds some.
    Rows(Vec<Select>),
}

impl<'a> Compiler<'a> {
    /// `left op ANY (right)` (`any`), `left op ALL (right)`.
    pub(super) fn quantified_over(
        &mut self,
        left: &Ast,
        op: CompareOp,
        right: &Ast,
        any: bool,
        want: Want,
    ) -> Result<Expr> {
        // A sub-select right there is a set of rows; one that yields an array is printed with a cast.
        let set = match right {
            Ast::Subquery(query) => Set::Rows(self.rows(query)?),
            other => self.array(other)?,
        };
        let left = self.scalar(left)?;
        self.quantified(left, op, set, any, want)
    }

    pub(super) fn quantified(&mut self, left: Typed, op: CompareOp, set: Set, any: bool, want: Want) -> Result<Expr> {
        match set {
            Set::Rows(rows) => {
                if let Val::Select(_) = left.val {
                    return Err(NotPure("a sub-select compared with a sub-select".into()));
                }
                match (op, any) {
                    (CompareOp::Eq, true) => self.in_rows(vec![left], rows, want),
                    (CompareOp::Ne, false) => Ok(Expr::negated(self.in_rows(vec![left], rows, Want::Exact)?)),
                    _ => Err(NotPure("an operator other than IN with a sub-select".into())),
                }
            }
            set => {
                if let Val::Select(_) = left.val {
                    let set = std::cell::Cell::new(Some(set));
                    return self.lifted(left, want, |compiler, left| match set.take() {
                        Some(set) => compiler.quantified(left, op, set, any, Want::Exact),
                        None => Err(NotPure("a list".into())),
                    });
                }
                self.quantified_list(left, op, set, any)
            }
        }
    }

    fn quantified_list(&mut self, left: Typed, op: CompareOp, set: Set, any: bool) -> Result<Expr> {
        let framed = |list: &[Typed]| list.iter().any(|member| matches!(member.val, Val::Framed(_)));
        if let Set::List(list) = &set
            && matches!((op, any), (CompareOp::Eq, true) | (CompareOp::Ne, false))
            && framed(list)
        {
            let mut each = Vec::new();
            for member in list {
                each.push(self.compare(left.clone(), op, member.clone(), Want::Exact)?);
            }
            return Ok(if any { Expr::any(each) } else { Expr::all(each) });
        }
        let list = match &set {
            Set::List(list) => list.iter().map(|member| member.ty.clone()).collect(),
            Set::Claim(term) => vec![Typed::term(term.clone()).ty],
            Set::Array(_, ty) => vec![ty.clone()],
            Set::Rows(_) => Vec::new(),
        };
        let mut ty = left.ty.clone();
        for other in &list {
            ty = self.common(&ty, other)?;
        }
        let kind = self.compared(&ty, &ty)?;
        if !matches!(op, CompareOp::Eq | CompareOp::Ne) && kind.order.is_none() {
            return Err(NotPure("an order that only Postgres knows".into()));
        }
        let left = match left.val {
            Val::Element(_) => return Err(NotPure("two lists in one comparison".into())),
            _ => self.lower(left, kind)?,
        };
        let members = match set {
            Set::List(list) => {
                Members::List(list.into_iter().map(|member| self.lower(member, kind)).collect::<Result<_>>()?)
            }
            Set::Claim(term) => Members::Claim(self.claim(term)?),
            Set::Array(column, _) => Members::Array(column),
            Set::Rows(_) => return Err(NotPure("a sub-select".into())),
        };
        Ok(match any {
            true => Expr::Any(op, kind, Box::new(left), members),
            false => Expr::All(op, kind, Box::new(left), members),
        })
    }

    /// An array.
    fn array(&mut self, ast: &Ast) -> Result<Set> {
        match ast {
            Ast::Nested(inner) => self.array(inner),
            Ast::Array(array) if array.named => {
                Ok(Set::List(array.elem.iter().map(|member| self.scalar(member)).collect::<Result<_>>()?))
            }
            Ast::Cast { kind: CastKind::DoubleColon, expr, data_type, format: None } => {
                let Some(target) = self.array_target(data_type) else { return not_pure("a cast to an array", ast) };
                if let Some(text) = literal::quoted(expr) {
                    let list = literal::array(text)?.into_iter();
                    let one = |element| {
                        let text = literal::of_type(self.catalog.types(), target.oid, element, self.env.source)?;
                        Ok(Typed::constant(target.oid, text))
                    };
                    return Ok(Set::List(list.map(one).collect::<Result<_>>()?));
                }
                let set = match strip(expr) {
                    Ast::Subquery(query) => match self.only_value(query)? {
                        Some(value) => self.array(value)?,
                        None => return not_pure("a sub-select that yields an array", ast),
                    },
                    inner => self.array(inner)?,
                };
                self.cast_members(set, target)
            }
            Ast::Function(call) => {
                if let FunctionArguments::Subquery(query) = &call.args
                    && call.to_string() == format!("ARRAY({query})")
                {
                    return Ok(Set::Rows(self.rows(query)?));
                }
                self.split(call)
            }
            Ast::Identifier(name) => self.array_column(std::slice::from_ref(name)),
            Ast::CompoundIdentifier(names) => self.array_column(names),
            other => match literal::quoted(other) {
                Some(text) => {
                    let list = literal::array(text)?;
                    Ok(Set::List(list.into_iter().map(|e| Typed::constant(super::typed::UNKNOWN, e)).collect()))
                }
                None => not_pure("an array", other),
            },
        }
    }

    /// A column of the judged row. Of tables in memory single values are kept, not arrays.
    fn array_column(&mut self, names: &[Ident]) -> Result<Set> {
        let Typed { ty, val } = self.column(names)?;
        let Val::Scalar(Scalar::Column(column @ ColumnRef { slot: 0, .. })) = val else {
            return Err(NotPure("an array that is not a column of the table".into()));
        };
        let types = self.catalog.types();
        match pgtype::element_of(types, ty.oid).filter(|element| types.base_of(*element) == *element) {
            Some(oid) => Ok(Set::Array(column, Ty { oid, collated: ty.collated })),
            None => Err(NotPure("a column that is no array of plain values".into())),
        }
    }

    /// `string_to_array(claim, 'x')`.
    fn split(&mut self, call: &sqlparser::ast::Function) -> Result<Set> {
        if let Some((name, arguments)) = self.builtin(call)
            && name == "string_to_array"
            && let [text, separator] = &arguments[..]
            && let Some(separator) = literal::text(separator)
            && !separator.is_empty()
            && let Val::Term(term) = self.scalar(text)?.val
            && term.term_type() == TermType::Text
        {
            return Ok(Set::Claim(Term::Split(Box::new(term), separator.to_owned())));
        }
        not_pure("a function that yields an array", call)
    }

    fn cast_members(&mut self, set: Set, target: Target) -> Result<Set> {
        if target.domain {
            return Err(NotPure("a cast to a domain".into()));
        }
        let Target { oid: to, sized, .. } = target;
        Ok(match set {
            Set::List(list) => {
                Set::List(list.into_iter().map(|typed| self.cast(typed, to, sized)).collect::<Result<_>>()?)
            }
            Set::Claim(term) => {
                let text = if to == oid::VARCHAR { oid::TEXT } else { to };
                match TermType::of(text).and_then(|to| term.cast(to)) {
                    Some(term) if !sized => Set::Claim(term),
                    _ => return Err(NotPure("a cast of an array".into())),
                }
            }
            Set::Array(column, ty) => {
                let same = ty.oid == to || (is_text(ty.oid) && matches!(to, oid::TEXT | oid::VARCHAR));
                if sized || !same {
                    return Err(NotPure("a cast of an array".into()));
                }
                Set::Array(column, Ty { oid: to, collated: ty.collated })
            }
            Set::Rows(mut rows) => {
                for select in &mut rows {
                    let [output] = &mut select.outputs[..] else { return Err(NotPure("an array of rows".into())) };
                    *output = self.cast(output.clone(), to, sized)?;
                }
                Set::Rows(rows)
            }
        })
    }

    /// `expr IN (query)`.
    pub(super) fn in_query(&mut self, left: &Ast, query: &Query, want: Want) -> Result<Expr> {
        let rows = self.rows(query)?;
        let left = match strip(left) {
            Ast::Tuple(parts) => parts.iter().map(|part| self.scalar(part)).collect::<Result<Vec<_>>>()?,
            one => vec![self.scalar(one)?],
        };
        self.in_rows(left, rows, want)
    }
}
