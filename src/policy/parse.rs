//! From the text of a policy to an [`Expr`], by an allow-list: what is not recognised in every detail is not Pure.
//!
//! The parser is sqlparser's; each syntax node is matched with all that it may carry. Where a node has dozens of optional
//! clauses (a sub-select, a call), the node must print exactly as its plainest form does, so a clause that we don't know of
//! can't hide in it. Rejected: recognising policies by regular expressions or by their usual spelling as strings.

use std::collections::BTreeSet;

use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr as Ast, Ident, Query, SelectItem, SetExpr, Value as Literal,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::bodies;
use super::expr::{Equality, Expr};
use super::term::{Setting, Term, TermType};
use crate::catalog::{Catalog, PolicyRow, Table};

/// Why a policy is not Pure, for `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NotPure(pub(super) String);

fn not_pure<T>(what: &str, node: impl std::fmt::Display) -> Result<T, NotPure> {
    let shown: String = node.to_string().chars().take(80).collect();
    Err(NotPure(format!("{what}: {shown}")))
}

/// Where a policy text stands.
pub(super) struct Context<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) table: &'a Table,
    pub(super) role: &'a str,
}

/// Parses the USING text of a policy.
pub(super) fn policy(context: &Context<'_>, policy: &PolicyRow, text: &str) -> Result<Expr, NotPure> {
    let mut parser = Parser::new(&PostgreSqlDialect {}).try_with_sql(text).map_err(|e| NotPure(e.to_string()))?;
    let ast = parser.parse_expr().map_err(|e| NotPure(e.to_string()))?;
    if parser.peek_token().token != sqlparser::tokenizer::Token::EOF {
        return not_pure("the text goes on", parser.peek_token());
    }
    if policy.system_columns {
        return Err(NotPure("it reads a system column".into()));
    }
    Reader { context, functions: &policy.functions }.boolean(&ast)
}

struct Reader<'a> {
    context: &'a Context<'a>,
    /// Functions that this policy really refers to: a name in the text may have been taken by another one since.
    functions: &'a BTreeSet<u32>,
}

/// A column with the type it has after the casts around it.
struct ColumnSide {
    name: String,
    term_type: TermType,
}

impl Reader<'_> {
    fn boolean(&self, ast: &Ast) -> Result<Expr, NotPure> {
        match ast {
            Ast::Nested(inner) => self.boolean(inner),
            Ast::Value(value) => match value.value {
                Literal::Boolean(constant) => Ok(Expr::Constant(constant)),
                _ => not_pure("a constant that is not a boolean", ast),
            },
            Ast::BinaryOp { left, op: BinaryOperator::And, right } => {
                Ok(Expr::all(vec![self.boolean(left)?, self.boolean(right)?]))
            }
            Ast::BinaryOp { left, op: BinaryOperator::Or, right } => {
                Ok(Expr::any(vec![self.boolean(left)?, self.boolean(right)?]))
            }
            Ast::BinaryOp { left, op: BinaryOperator::Eq, right } => self.equality(left, right),
            other => not_pure("not an owner equality", other),
        }
    }

    fn equality(&self, left: &Ast, right: &Ast) -> Result<Expr, NotPure> {
        let (column, claim) = match self.column(left) {
            Some(column) => (column, self.term(right)?),
            None => match self.column(right) {
                Some(column) => (column, self.term(left)?),
                None => return not_pure("no side is a plain column", format_args!("{left} = {right}")),
            },
        };
        let same = match (column.term_type, claim.term_type()) {
            (TermType::Int(_), TermType::Int(_)) => true,
            (a, b) => a == b,
        };
        if !same {
            return not_pure("a comparison of unlike types", format_args!("{left} = {right}"));
        }
        Ok(Expr::Equal(Equality { column: column.name, claim }))
    }

    /// A column, under casts that leave its text as it is.
    fn column(&self, ast: &Ast) -> Option<ColumnSide> {
        match ast {
            Ast::Nested(inner) => self.column(inner),
            Ast::Identifier(ident) => {
                let column = self.context.table.column(identifier(ident)?)?;
                let term_type = match self.context.catalog.types().base_of(column.type_oid) {
                    2950 => TermType::Uuid,
                    21 => TermType::Int(2),
                    23 => TermType::Int(4),
                    20 => TermType::Int(8),
                    // text, varchar
                    25 | 1043 if column.collation_deterministic => TermType::Text,
                    _ => return None,
                };
                Some(ColumnSide { name: column.name.clone(), term_type })
            }
            Ast::Cast { kind: CastKind::DoubleColon, expr, data_type, format: None } => {
                let column = self.column(expr)?;
                let to = cast_type(data_type)?;
                let keeps_text = match (column.term_type, to) {
                    (TermType::Int(from), TermType::Int(to)) => to >= from,
                    (TermType::Uuid | TermType::Int(_), TermType::Text) => true,
                    (from, to) => from == to,
                };
                keeps_text.then_some(ColumnSide { term_type: to, ..column })
            }
            _ => None,
        }
    }

    fn term(&self, ast: &Ast) -> Result<Term, NotPure> {
        match ast {
            Ast::Nested(inner) => self.term(inner),
            Ast::Subquery(query) => self.term(plain_select(query)?),
            Ast::Cast { kind: CastKind::DoubleColon, expr, data_type, format: None } => {
                let inner = self.term(expr)?;
                match cast_type(data_type).and_then(|to| inner.cast(to)) {
                    Some(term) => Ok(term),
                    None => not_pure("a cast that is not reproduced", ast),
                }
            }
            Ast::BinaryOp { left, op, right } => {
                let as_text = match op {
                    BinaryOperator::Arrow => false,
                    BinaryOperator::LongArrow => true,
                    _ => return not_pure("an operator on claims", ast),
                };
                let Some(key) = text_literal(right) else { return not_pure("a key that is not a constant", ast) };
                match self.term(left)?.member(key, as_text) {
                    Some(term) => Ok(term),
                    None => not_pure("a member of something that is not JSON", ast),
                }
            }
            Ast::Function(call) => self.call(call),
            other => not_pure("not a claim", other),
        }
    }

    fn call(&self, call: &sqlparser::ast::Function) -> Result<Term, NotPure> {
        let shown = call.to_string();
        for setting in [Setting::Claims, Setting::Subject, Setting::Role] {
            if shown == format!("current_setting('{}'::TEXT, true)", setting.name()) {
                return Ok(Term::Setting(setting));
            }
        }
        let [schema, name] = &call.name.0[..] else { return not_pure("a function", call) };
        let parts = (schema.as_ident().and_then(identifier), name.as_ident().and_then(identifier));
        let (Some(schema), Some(name)) = parts else { return not_pure("a function", call) };
        if shown != format!("{}()", call.name) {
            return not_pure("a function", call);
        }
        let named = self.functions.iter().filter_map(|oid| self.context.catalog.function(*oid));
        let mut named = named.filter(|f| f.schema == schema && f.name == name);
        let (Some(function), None) = (named.next(), named.next()) else { return not_pure("a function", call) };
        if !function.executable_by.contains(self.context.role) {
            return not_pure("a function that the role may not execute", call);
        }
        if self.context.catalog.has_foreign_claims() {
            return Err(NotPure("the server's configuration sets a request.jwt setting".into()));
        }
        bodies::known(function).ok_or_else(|| NotPure(format!("the body of {shown} is not a known one")))
    }
}

/// The expression of `( SELECT expr [AS alias])` if that is all there is.
fn plain_select(query: &Query) -> Result<&Ast, NotPure> {
    let SetExpr::Select(select) = query.body.as_ref() else { return not_pure("a sub-select", query) };
    let [item] = &select.projection[..] else { return not_pure("a sub-select", query) };
    let (expr, plain) = match item {
        SelectItem::UnnamedExpr(expr) => (expr, format!("SELECT {expr}")),
        SelectItem::ExprWithAlias { expr, alias } => (expr, format!("SELECT {expr} AS {alias}")),
        _ => return not_pure("a sub-select", query),
    };
    if query.to_string() == plain { Ok(expr) } else { not_pure("a sub-select", query) }
}

/// The name that Postgres means: an unquoted one must be what `quote_identifier` leaves unquoted.
fn identifier(ident: &Ident) -> Option<&str> {
    let plain = |text: &str| {
        text.bytes().enumerate().all(|(i, b)| matches!(b, b'a'..=b'z' | b'_') || (i > 0 && b.is_ascii_digit()))
    };
    match ident.quote_style {
        Some('"') => Some(&ident.value),
        None if plain(&ident.value) => Some(&ident.value),
        _ => None,
    }
}

/// `'…'::text`.
fn text_literal(ast: &Ast) -> Option<&str> {
    let Ast::Cast { kind: CastKind::DoubleColon, expr, data_type: DataType::Text, format: None } = ast else {
        return None;
    };
    match expr.as_ref() {
        Ast::Value(value) => match &value.value {
            // How a parser treats a backslash is a matter of settings; no real claim has one in its name.
            Literal::SingleQuotedString(text) if !text.contains('\\') => Some(text),
            _ => None,
        },
        _ => None,
    }
}

fn cast_type(data_type: &DataType) -> Option<TermType> {
    match data_type {
        DataType::Text => Some(TermType::Text),
        DataType::Uuid => Some(TermType::Uuid),
        DataType::SmallInt(None) => Some(TermType::Int(2)),
        DataType::Integer(None) => Some(TermType::Int(4)),
        DataType::BigInt(None) => Some(TermType::Int(8)),
        DataType::JSON => Some(TermType::Json),
        DataType::JSONB => Some(TermType::Jsonb),
        _ => None,
    }
}
