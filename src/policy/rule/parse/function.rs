//! Helper functions in SQL: the body is read as if it stood where the call stands, under the function's own role and names.

use std::collections::BTreeSet;

use sqlparser::ast::{Expr as Ast, Query};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::condition::Want;
use super::scope::{Columns, Env, Item};
use super::select::Select;
use super::typed::{Ty, Typed, UNKNOWN, Val, is_integer, is_text};
use super::{Compiler, Frame, NotPure, Result, not_pure};
use crate::catalog::Function;
use crate::pgtype::oid;
use crate::policy::rule::{Expr, Scalar};

impl<'a> Compiler<'a> {
    /// The one value that the function returns.
    pub(super) fn inlined(&mut self, function: &'a Function, arguments: Vec<Typed>) -> Result<Typed> {
        let shown = named(function);
        let arguments = self.arguments(function, arguments)?;
        let rows = self.function_body(function, &arguments).map_err(&shown)?;
        let [select] = &rows[..] else { return Err(shown(NotPure("a UNION".into()))) };
        let mut select = select.clone();
        // The first row counts, and NULL if there is none.
        select.first_only = true;
        let value = self.only_row(select).and_then(|typed| self.returned(typed, function)).map_err(&shown)?;
        if !function.strict {
            return Ok(value);
        }
        let present = self.strict(&arguments)?;
        if present.is_empty() {
            return Ok(value);
        }
        match value.val {
            Val::Select(mut select) => {
                select.conditions.splice(0..0, present);
                Ok(Typed { ty: value.ty, val: Val::Select(select) })
            }
            val if value.ty.oid == oid::BOOL => {
                let condition = self.truth(Typed { ty: value.ty, val }, Want::Exact)?;
                let present = Expr::all(present);
                let unknown = Expr::all(vec![Expr::Constant(None), Expr::negated(present.clone())]);
                let either = Expr::any(vec![Expr::all(vec![present, condition]), unknown]);
                Ok(Typed::scalar(oid::BOOL, Scalar::Truth(Box::new(either))))
            }
            val => {
                let ty = value.ty.clone();
                let kind = self.compared(&ty, &ty)?;
                let value = self.lower(Typed { ty: value.ty, val }, kind)?;
                Ok(Typed { ty, val: Val::Scalar(Scalar::Case(vec![(Expr::all(present), value)], None)) })
            }
        }
    }

    /// The rows that the function returns: one column.
    pub(super) fn inlined_rows(&mut self, function: &'a Function, arguments: Vec<Typed>) -> Result<Select> {
        let shown = named(function);
        let arguments = self.arguments(function, arguments)?;
        let rows = self.function_body(function, &arguments).map_err(&shown)?;
        let [select] = &rows[..] else { return Err(shown(NotPure("a UNION".into()))) };
        let mut select = select.clone();
        let [output] = &mut select.outputs[..] else { return Err(shown(NotPure("several columns".into()))) };
        *output = self.returned(output.clone(), function).map_err(&shown)?;
        if function.strict {
            let present = self.strict(&arguments)?;
            if select.slots.is_empty() && !present.is_empty() {
                return Err(shown(NotPure("STRICT without a table".into())));
            }
            select.conditions.extend(present);
        }
        Ok(select)
    }

    /// The values of the last arguments where they are not given.
    pub(super) fn defaults(&self, function: &Function) -> Option<Vec<Ast>> {
        let text = function.defaults.as_deref()?;
        match super::expression(&format!("ARRAY[{text}]")).ok()? {
            Ast::Array(list) if list.named => Some(list.elem),
            _ => None,
        }
    }

    /// As the parameters' types; nothing but columns, claims and constants, so that a value used twice is the same.
    fn arguments(&mut self, function: &Function, arguments: Vec<Typed>) -> Result<Vec<Typed>> {
        let mut typed = Vec::new();
        let mut arguments = arguments;
        let missing = function.arguments.len() - arguments.len().min(function.arguments.len());
        if missing > 0 {
            let defaults = self.defaults(function).unwrap_or_default();
            let Some(from) = defaults.len().checked_sub(missing) else {
                return Err(NotPure(format!("an argument of {} is missing", function.name)));
            };
            // They were written where the function was made, with nothing around them.
            let bare = Env::nothing(self.env.role);
            let outer = std::mem::replace(&mut self.env, bare);
            let values: Result<Vec<Typed>> = defaults[from..].iter().map(|value| self.scalar(value)).collect();
            self.env = outer;
            arguments.extend(values?);
        }
        for (argument, (_, oid)) in arguments.into_iter().zip(&function.arguments) {
            let plain = match &argument.val {
                Val::Constant(_) | Val::Term(_) | Val::Scalar(Scalar::Column(_) | Scalar::Convert(..)) => true,
                // As `realtime.topic()` is.
                Val::Scalar(Scalar::NullIf(_, pair)) => {
                    matches!(**pair, (Scalar::Column(_), Scalar::Constant(_)))
                }
                _ => false,
            };
            if !plain {
                return Err(NotPure(format!("an argument of {} that is neither a column nor a claim", function.name)));
            }
            let to = self.catalog.types().base_of(*oid);
            if to != *oid {
                return Err(NotPure(format!(
                    "an argument of {} that is of a domain, whose checks may raise",
                    function.name
                )));
            }
            if !goes_as(argument.ty.oid, to) {
                // Postgres finds another function, or none.
                return Err(NotPure(format!("an argument of {} that is of another type", function.name)));
            }
            typed.push(self.cast(argument, to, false)?);
        }
        Ok(typed)
    }

    /// The result is of the declared type but for what Postgres converts by itself.
    fn returned(&mut self, typed: Typed, function: &Function) -> Result<Typed> {
        let to = self.catalog.types().base_of(function.result_type);
        if to != function.result_type {
            return Err(NotPure("a result of a domain, whose checks may raise".into()));
        }
        let from = typed.ty.oid;
        let same =
            from == to || from == UNKNOWN || (is_text(from) && is_text(to)) || (is_integer(from) && is_integer(to));
        if !same {
            return Err(NotPure("a result of another type".into()));
        }
        if let Val::Select(_) = typed.val {
            let collated = typed.ty.collated.clone();
            return Ok(Typed { ty: Ty { oid: from, collated }, val: typed.val });
        }
        self.cast(typed, to, false)
    }

    fn function_body(&mut self, function: &'a Function, arguments: &[Typed]) -> Result<Vec<Select>> {
        if function.other_settings {
            return Err(NotPure("SET clauses other than search_path".into()));
        }
        if self.frames.contains(&Frame::Function(function.oid)) {
            return Err(NotPure("it calls itself".into()));
        }
        if self.frames.len() > 12 {
            return Err(NotPure("functions within functions".into()));
        }
        let (text, source) = match (&function.parsed_body, &function.source) {
            (Some(parsed), _) => (parsed, false),
            (None, Some(source)) => (source, true),
            (None, None) => return Err(NotPure("not written in SQL".into())),
        };
        let query = query(text)?;
        let path = function.search_path.as_deref();
        if source && path.is_some_and(|path| path.iter().skip(1).any(|schema| schema == "pg_catalog")) {
            return Err(NotPure("a search_path in which pg_catalog is not the first".into()));
        }
        let mut names = BTreeSet::new();
        let mut values = Vec::new();
        for (place, ((name, _), value)) in function.arguments.iter().zip(arguments).enumerate() {
            values.push((format!("${}", place + 1), value.clone()));
            if !name.is_empty() && names.insert(name) {
                values.push((name.clone(), value.clone()));
            }
        }
        let role = if function.security_definer { function.owner.as_str() } else { self.env.role };
        let item = Item { name: function.name.clone(), columns: Columns::Values(values) };
        let inner = Env { levels: vec![vec![item]], source, search_path: path, ..Env::nothing(role) };
        let outer = std::mem::replace(&mut self.env, inner);
        self.frames.push(Frame::Function(function.oid));
        let rows = self.rows(&query);
        self.frames.pop();
        self.env = outer;
        rows
    }
}

/// Whether a value of one type may stand where a function takes another, without a cast.
fn goes_as(from: u32, to: u32) -> bool {
    let width = |oid| [oid::INT2, oid::INT4, oid::INT8, oid::NUMERIC].iter().position(|known| *known == oid);
    match (width(from), width(to)) {
        _ if from == to || from == UNKNOWN => true,
        (Some(from), Some(to)) => from < to,
        _ => is_text(from) && matches!(to, oid::TEXT | oid::VARCHAR),
    }
}

fn named(function: &Function) -> impl Fn(NotPure) -> NotPure {
    let name = format!("{}.{}", function.schema, function.name);
    move |NotPure(why)| NotPure(format!("function {name}: {why}"))
}

/// The one query of a body: `SELECT …`, `RETURN …`, `BEGIN ATOMIC SELECT …; END`.
fn query(body: &str) -> Result<Query> {
    let body = body.trim();
    let atomic = body.strip_prefix("BEGIN ATOMIC").and_then(|body| body.strip_suffix("END"));
    let returned = body.strip_prefix("RETURN ").map(|value| format!("SELECT {value}"));
    let text = returned.unwrap_or_else(|| atomic.unwrap_or(body).to_owned());
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(&text).map_err(|e| NotPure(e.to_string()))?;
    let query = parser.parse_query().map_err(|e| NotPure(e.to_string()))?;
    let _ = parser.consume_token(&Token::SemiColon);
    match parser.peek_token().token {
        Token::EOF => Ok(*query),
        other => not_pure("the body goes on", other),
    }
}
