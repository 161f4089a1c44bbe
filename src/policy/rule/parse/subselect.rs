//! Reading `SELECT … FROM … WHERE …`: inner joins, derived tables and lists of the token.

use sqlparser::ast::{
    Distinct, Expr as Ast, Join, JoinConstraint, JoinOperator, LimitClause, Query, Select as SelectAst, SelectItem,
    SetExpr, SetOperator, TableAlias, TableFactor, TableWithJoins, Value as Literal,
};

use super::claims::strip;
use super::condition::Want;
use super::scope::{Columns, Item, identifier};
use super::select::Select;
use super::typed::{Typed, Val};
use super::{Compiler, NotPure, Result, not_pure};
use crate::policy::rule::{CompareOp, Expr, Members};

/// What a sub-select is read for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Its rows.
    Rows,
    /// Whether there is one; its values don't matter.
    Existence,
}

impl<'a> Compiler<'a> {
    pub(super) fn exists(&mut self, query: &Query) -> Result<Expr> {
        let mut any = Vec::new();
        for select in self.query(query, Purpose::Existence)? {
            any.push(self.select_exists(&select)?);
        }
        Ok(Expr::any(any))
    }

    /// `(SELECT count(*) …) > 0` is EXISTS, and its like.
    pub(super) fn count_compared(&mut self, left: &Ast, op: CompareOp, right: &Ast) -> Result<Option<Expr>> {
        let Ast::Subquery(query) = strip(left) else { return Ok(None) };
        let SetExpr::Select(select) = query.body.as_ref() else { return Ok(None) };
        let counts = |item: &SelectItem| match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => {
                matches!(expr.to_string().to_ascii_lowercase().as_str(), "count(*)" | "count(1)")
            }
            _ => false,
        };
        if !matches!(&select.projection[..], [item] if counts(item)) || select.distinct.is_some() {
            return Ok(None);
        }
        let bound = self.bare_literal(strip(right)).map(|typed| typed.val);
        let Some(Val::Constant(Some(bound))) = bound else { return not_pure("count(*)", left) };
        let any = match (op, bound.as_str()) {
            (CompareOp::Gt | CompareOp::Ne, "0") | (CompareOp::Ge, "1") => true,
            (CompareOp::Eq | CompareOp::Le, "0") | (CompareOp::Lt, "1") => false,
            _ => return not_pure("count(*)", left),
        };
        let mut query = (**query).clone();
        if let SetExpr::Select(select) = query.body.as_mut() {
            select.projection.clear();
        }
        if query.limit_clause.is_some() {
            return not_pure("LIMIT", left);
        }
        let exists = self.exists(&query)?;
        Ok(Some(if any { exists } else { Expr::negated(exists) }))
    }

    pub(super) fn rows(&mut self, query: &Query) -> Result<Vec<Select>> {
        self.query(query, Purpose::Rows)
    }

    /// `( SELECT … )` as a value.
    pub(super) fn scalar_query(&mut self, query: &Query) -> Result<Typed> {
        let rows = self.rows(query)?;
        let [select] = &rows[..] else { return not_pure("a UNION as a value", query) };
        self.only_row(select.clone()).map_err(|NotPure(why)| NotPure(format!("{why}: {query}")))
    }

    /// The value of a select that has one row at most.
    pub(super) fn only_row(&mut self, select: Select) -> Result<Typed> {
        let [output] = &select.outputs[..] else { return Err(NotPure("a sub-select of several columns".into())) };
        if let Val::Element(_) = output.val {
            return Err(NotPure("a sub-select of several rows".into()));
        }
        if select.slots.is_empty() && select.conditions.is_empty() {
            return Ok(output.clone());
        }
        if select.slots.is_empty() || matches!(output.val, Val::Select(_)) {
            return Err(NotPure("a sub-select of this form".into()));
        }
        if !self.is_single(&select) {
            return Err(NotPure("a sub-select that may have several rows".into()));
        }
        Ok(Typed { ty: output.ty.clone(), val: Val::Select(Box::new(select)) })
    }

    /// The expression of `( SELECT expr )` if that is all there is.
    pub(super) fn only_value<'q>(&mut self, query: &'q Query) -> Result<Option<&'q Ast>> {
        let SetExpr::Select(select) = query.body.as_ref() else { return Ok(None) };
        let [item] = &select.projection[..] else { return Ok(None) };
        let (SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }) = item else { return Ok(None) };
        Ok((query.to_string() == format!("SELECT {item}")).then_some(expr))
    }

    fn query(&mut self, query: &Query, purpose: Purpose) -> Result<Vec<Select>> {
        let limit = match &query.limit_clause {
            None => None,
            Some(LimitClause::LimitOffset { limit: Some(Ast::Value(value)), offset: None, limit_by })
                if limit_by.is_empty() =>
            {
                match &value.value {
                    Literal::Number(digits, false) => digits.parse::<u64>().ok().filter(|rows| *rows > 0),
                    _ => None,
                }
            }
            Some(_) => None,
        };
        let plain = match limit {
            None => query.body.to_string(),
            Some(rows) => format!("{} LIMIT {rows}", query.body),
        };
        if query.to_string() != plain {
            return not_pure("a sub-select with more than SELECT, FROM and WHERE", query);
        }
        let mut rows = self.body(&query.body, purpose)?;
        match (limit, &mut rows[..]) {
            // Any row will do.
            (Some(_), _) if purpose == Purpose::Existence => {}
            (Some(1), [select]) => select.first_only = true,
            (Some(_), _) => return not_pure("LIMIT", query),
            (None, _) => {}
        }
        Ok(rows)
    }

    fn body(&mut self, body: &SetExpr, purpose: Purpose) -> Result<Vec<Select>> {
        match body {
            SetExpr::Select(select) => Ok(vec![self.select(select, purpose)?]),
            SetExpr::Query(query) => self.query(query, purpose),
            SetExpr::SetOperation { op: SetOperator::Union, left, right, .. } => {
                let mut rows = self.body(left, purpose)?;
                rows.extend(self.body(right, purpose)?);
                match rows.iter().any(|select| select.first_only) {
                    true => not_pure("LIMIT in a UNION", body),
                    false => Ok(rows),
                }
            }
            other => not_pure("a sub-select", other),
        }
    }

    fn select(&mut self, select: &SelectAst, purpose: Purpose) -> Result<Select> {
        if !is_plain(select) {
            return not_pure("a sub-select with more than SELECT, FROM and WHERE", select);
        }
        self.env.levels.push(Vec::new());
        let read = self.select_within(select, purpose);
        self.env.levels.pop();
        read
    }

    fn select_within(&mut self, select: &SelectAst, purpose: Purpose) -> Result<Select> {
        let mut read = Select { slots: Vec::new(), conditions: Vec::new(), outputs: Vec::new(), first_only: false };
        let mut lists = 0;
        for from in &select.from {
            lists += self.from(from, &mut read)?;
        }
        if lists > 0 && (select.from.len() > 1 || !read.slots.is_empty()) {
            return not_pure("a list joined with a table", select);
        }
        let own: Vec<u16> = read.slots.clone();
        if let Some(condition) = &select.selection {
            let mut parts = Vec::new();
            conjuncts(condition, &mut parts);
            for part in parts {
                let before = self.element_reads;
                let condition = self.condition(part, Want::Truth)?.for_truth();
                let as_member = matches!(condition, Expr::Any(.., Members::Claim(_)));
                match self.element_reads - before {
                    0 => {}
                    1 if as_member && lists == 1 => lists = 0,
                    _ => return not_pure("more than one comparison with the elements of a list", condition_text(part)),
                }
                read.conditions.push(condition);
            }
            if purpose == Purpose::Rows && !select.from.is_empty() && read.slots.is_empty() {
                return not_pure("a list with a condition", select);
            }
        }
        if purpose == Purpose::Existence && lists > 0 {
            return not_pure("whether a list is empty", select);
        }
        self.projection(select, purpose, &mut read)?;
        for slot in own {
            self.check_privileges(slot)?;
        }
        Ok(read)
    }

    fn projection(&mut self, select: &SelectAst, purpose: Purpose, read: &mut Select) -> Result<()> {
        for item in &select.projection {
            let expr = match item {
                SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => expr,
                SelectItem::Wildcard(_) if purpose == Purpose::Existence && item.to_string() == "*" => {
                    self.read_everything();
                    continue;
                }
                other => return not_pure("a column of a sub-select", other),
            };
            match self.set(expr)? {
                Some(set) => {
                    if select.projection.len() > 1 || !read.slots.is_empty() || !read.conditions.is_empty() {
                        return not_pure("a set among other columns", expr);
                    }
                    *read = set;
                }
                None => {
                    let before = (purpose == Purpose::Existence).then(|| self.clone_reads());
                    let output = self.scalar(expr)?;
                    match before {
                        // The value is not needed, so its columns are not read; the privilege is.
                        Some(before) => self.restore_reads(before)?,
                        None => read.outputs.push(output),
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds what stands in FROM; the number of lists among it.
    fn from(&mut self, from: &TableWithJoins, read: &mut Select) -> Result<usize> {
        let mut lists = self.factor(&from.relation, read)?;
        for Join { relation, global, join_operator } in &from.joins {
            if *global {
                return not_pure("a join", relation);
            }
            lists += self.factor(relation, read)?;
            match join_operator {
                JoinOperator::Join(JoinConstraint::On(on)) | JoinOperator::Inner(JoinConstraint::On(on)) => {
                    let on = self.condition(on, Want::Truth)?.for_truth();
                    read.conditions.push(on);
                }
                JoinOperator::CrossJoin(JoinConstraint::None) => {}
                _ => return not_pure("a join other than an inner one", from),
            }
        }
        Ok(lists)
    }

    fn factor(&mut self, factor: &TableFactor, read: &mut Select) -> Result<usize> {
        let shown = factor.to_string();
        let with_alias = |what: String, alias: &Option<TableAlias>| match alias {
            Some(alias) => format!("{what} {alias}"),
            None => what,
        };
        match factor {
            TableFactor::Table { name, alias, args: None, .. } if shown == with_alias(name.to_string(), alias) => {
                let parts: Option<Vec<&str>> = name.0.iter().map(|p| p.as_ident().and_then(identifier)).collect();
                let Some(parts) = parts else { return not_pure("a table", name) };
                let (table, slot, condition) = self.source(&parts)?;
                let (alias, names) = alias_names(alias)?;
                let columns = Columns::Table { slot, table, names, checked: true };
                self.add(Item { name: alias.unwrap_or(&table.name).to_owned(), columns })?;
                read.slots.push(slot);
                read.conditions.extend(condition);
                Ok(0)
            }
            TableFactor::Table { name, alias, args: Some(arguments), .. } => {
                let arguments = arguments.args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let call = format!("{name}({arguments})");
                if shown != with_alias(call.clone(), alias) {
                    return not_pure("a function in FROM", factor);
                }
                let call = super::expression(&call)?;
                let Some(set) = self.set(&call)? else { return not_pure("a function in FROM", factor) };
                let (Some(alias), names) = alias_names(alias)? else {
                    return not_pure("a function in FROM without a name", factor);
                };
                let [output] = &set.outputs[..] else { return not_pure("a function of several columns", factor) };
                // Without a name of its own, the column is called like the function.
                let column = names.into_iter().next().unwrap_or_else(|| alias.to_owned());
                let is_list = matches!(output.val, Val::Element(_));
                let columns = Columns::Values(vec![(column, output.clone())]);
                self.add(Item { name: alias.to_owned(), columns })?;
                self.merge(read, set)?;
                Ok(usize::from(is_list))
            }
            TableFactor::Derived { lateral: false, subquery, alias: alias @ Some(_), .. }
                if shown == with_alias(format!("({subquery})"), alias) =>
            {
                let names = output_names(subquery);
                let mut rows = self.rows(subquery)?;
                let (Some(select), true) = (rows.pop(), rows.is_empty()) else {
                    return not_pure("a UNION in FROM", factor);
                };
                let (Some(alias), aliases) = alias_names(alias)? else { return not_pure("no name", factor) };
                let named = |(place, output): (usize, &Typed)| {
                    let name = aliases.get(place).cloned().or_else(|| names.get(place).cloned().flatten());
                    Some((name?, output.clone()))
                };
                let values: Option<Vec<_>> = select.outputs.iter().enumerate().map(named).collect();
                let Some(values) = values else { return not_pure("a column without a name", factor) };
                self.add(Item { name: alias.to_owned(), columns: Columns::Values(values) })?;
                self.merge(read, select)?;
                Ok(0)
            }
            TableFactor::NestedJoin { table_with_joins, alias: None } => self.from(table_with_joins, read),
            other => not_pure("something in FROM", other),
        }
    }

    fn merge(&mut self, read: &mut Select, set: Select) -> Result<()> {
        if set.first_only && !self.is_single(&set) {
            return Err(NotPure("LIMIT in FROM".into()));
        }
        read.slots.extend(set.slots);
        read.conditions.extend(set.conditions);
        Ok(())
    }

    fn add(&mut self, item: Item<'a>) -> Result<()> {
        match self.env.levels.last_mut() {
            Some(level) => level.push(item),
            None => return Err(NotPure("FROM outside of a sub-select".into())),
        }
        Ok(())
    }
}

fn condition_text(ast: &Ast) -> String {
    strip(ast).to_string()
}

/// The parts that an AND of any depth joins.
fn conjuncts<'q>(ast: &'q Ast, parts: &mut Vec<&'q Ast>) {
    match strip(ast) {
        Ast::BinaryOp { left, op: sqlparser::ast::BinaryOperator::And, right } => {
            conjuncts(left, parts);
            conjuncts(right, parts);
        }
        other => parts.push(other),
    }
}

/// It prints as the plainest form does, so there is nothing else in it.
fn is_plain(select: &SelectAst) -> bool {
    let list = |items: Vec<String>| items.join(", ");
    let mut plain = String::from("SELECT");
    match &select.distinct {
        None => {}
        // Rows that are there twice are as good as rows that are there once.
        Some(Distinct::Distinct) => plain.push_str(" DISTINCT"),
        Some(_) => return false,
    }
    if !select.projection.is_empty() {
        plain = format!("{plain} {}", list(select.projection.iter().map(ToString::to_string).collect()));
    }
    if !select.from.is_empty() {
        plain = format!("{plain} FROM {}", list(select.from.iter().map(ToString::to_string).collect()));
    }
    if let Some(condition) = &select.selection {
        plain = format!("{plain} WHERE {condition}");
    }
    select.to_string() == plain
}

fn alias_names(alias: &Option<TableAlias>) -> Result<(Option<&str>, Vec<String>)> {
    let Some(alias) = alias else { return Ok((None, Vec::new())) };
    let names = alias.columns.iter().map(|column| match column.data_type {
        None => identifier(&column.name).map(str::to_owned),
        Some(_) => None,
    });
    match (identifier(&alias.name), names.collect::<Option<Vec<_>>>(), &alias.at) {
        (Some(name), Some(names), None) => Ok((Some(name), names)),
        _ => not_pure("a name in FROM", alias),
    }
}

/// What the columns of a derived table are called.
fn output_names(query: &Query) -> Vec<Option<String>> {
    let SetExpr::Select(select) = query.body.as_ref() else { return Vec::new() };
    let name = |item: &SelectItem| match item {
        SelectItem::ExprWithAlias { alias, .. } => identifier(alias).map(str::to_owned),
        SelectItem::UnnamedExpr(Ast::Identifier(ident)) => identifier(ident).map(str::to_owned),
        SelectItem::UnnamedExpr(Ast::CompoundIdentifier(parts)) => parts.last().and_then(identifier).map(str::to_owned),
        _ => None,
    };
    select.projection.iter().map(name).collect()
}
