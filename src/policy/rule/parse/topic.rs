//! What policies of private channels make of the topic: pieces of it, patterns it matches, texts around it.
//!
//! Only of the topic, and with constants. `prefix || x = topic` is read as `x = what the topic has after the prefix`, which finds
//! a room by an index whatever its topics are called. Rejected: the same for columns of tables, which no index would answer.

use sqlparser::ast::{AccessExpr, BinaryOperator, CastKind, DataType, Expr as Ast, Subscript, Value as Literal};

use super::claims::strip;
use super::collation::Collated;
use super::typed::{Framed, Ty, Typed, UNKNOWN, Val, is_text};
use super::{Compiler, NotPure, Result, not_pure};
use crate::catalog::Column;
use crate::pgtype::oid;
use crate::policy::rule::topic::Pattern;
use crate::policy::rule::{ColumnRef, Expr, RuleColumn, Scalar, TopicValue};

/// `~~`, `!~~` and `^@`.
pub(super) fn is_pattern_match(op: &BinaryOperator) -> bool {
    matches!(op, BinaryOperator::PGLikeMatch | BinaryOperator::PGNotLikeMatch | BinaryOperator::PGStartsWith)
}

/// A column's number stands for the value at this place.
fn number_of(place: usize) -> Result<i16> {
    i16::try_from(place).map(|place| -1 - place).map_err(|_| NotPure("too much is made of the topic".into()))
}

impl Compiler<'_> {
    /// What a value is made of, if it is made of the topic alone.
    pub(super) fn topic_value(&self, scalar: &Scalar) -> Option<TopicValue> {
        let Scalar::Column(ColumnRef { slot: 0, column }) = scalar else { return None };
        let topic: &Column = self.topic?;
        match self.reads.get(usize::from(*column))?.number {
            number if number == topic.number => topic.collation_deterministic.then_some(TopicValue::Topic),
            number => {
                let place = usize::try_from(-1 - i32::from(number)).ok()?;
                self.topic_values.get(place).cloned()
            }
        }
    }

    /// The value in the place of a column of the judged row.
    pub(super) fn topic_column(&mut self, value: TopicValue, ty: Ty) -> Result<Typed> {
        let Some(kind) = self.kind(&ty) else { return not_pure("a value made of the topic", value) };
        let place = self.topic_values.iter().position(|known| *known == value).unwrap_or_else(|| {
            self.topic_values.push(value.clone());
            self.topic_values.len() - 1
        });
        let number = number_of(place)?;
        let column = self.reads.iter().position(|read| read.number == number).unwrap_or_else(|| {
            self.reads.push(RuleColumn { name: value.to_string(), number, kind });
            self.reads.len() - 1
        });
        let column = u16::try_from(column).map_err(|_| NotPure("too many columns".into()))?;
        Ok(Typed { ty, val: Val::Scalar(Scalar::Column(ColumnRef { slot: 0, column })) })
    }

    /// A text that is made of the topic.
    fn topic_text(&self, typed: &Typed) -> Option<TopicValue> {
        match &typed.val {
            Val::Scalar(scalar) if matches!(typed.ty.oid, oid::TEXT | oid::VARCHAR) => self.topic_value(scalar),
            _ => None,
        }
    }

    /// `nullif(topic, text)`.
    pub(super) fn topic_unless(&mut self, value: &Typed, other: &Typed) -> Result<Option<Typed>> {
        let (Some(of), Val::Constant(Some(text))) = (self.topic_text(value), &other.val) else { return Ok(None) };
        if !matches!(other.ty.oid, UNKNOWN | oid::TEXT) {
            return Ok(None);
        }
        // The same operator as a comparison has.
        self.compared(&value.ty, &other.ty)?;
        let made = TopicValue::NullIf(Box::new(of), text.as_str().into());
        self.topic_column(made, text_like(value)).map(Some)
    }

    /// A function of the topic and of constants; `None` if it is none that we know, or not of the topic. `called`: it is written as
    /// a call, so that another function may be meant.
    pub(super) fn of_topic(&mut self, name: &str, arguments: &[&Ast], called: bool) -> Result<Option<Typed>> {
        let known = matches!(
            (name, arguments.len()),
            ("split_part" | "replace", 3) | ("starts_with" | "left" | "right", 2) | ("substring" | "substr", 2 | 3)
        );
        let [of, rest @ ..] = arguments else { return Ok(None) };
        if !known {
            return Ok(None);
        }
        let first = self.scalar(of)?;
        let Some(value) = self.topic_text(&first).map(Box::new) else { return Ok(None) };
        if called {
            self.is_builtin_only(name)?;
        }
        let rest: Vec<Typed> = rest.iter().map(|ast| self.constant(ast)).collect::<Result<_>>()?;
        let text = |place: usize| rest.get(place).and_then(text).map(Box::from);
        let number = |place: usize| rest.get(place).and_then(number);
        let made = match (name, text(0), text(1), number(0), number(1)) {
            ("split_part", Some(delimiter), _, _, Some(n)) if n != 0 => TopicValue::Part(value, delimiter, n),
            ("replace", Some(from), Some(to), ..) => TopicValue::Replace(value, from, to),
            ("starts_with", Some(prefix), ..) => TopicValue::StartsWith(value, prefix),
            ("left", _, _, Some(n), _) => TopicValue::Left(value, n),
            ("right", _, _, Some(n), _) => TopicValue::Right(value, n),
            ("substring" | "substr", _, _, Some(from), None) if rest.len() == 1 => {
                TopicValue::Substring(value, from, None)
            }
            ("substring" | "substr", _, _, Some(from), Some(length)) if length >= 0 => {
                TopicValue::Substring(value, from, Some(length))
            }
            _ => return Err(NotPure(format!("{name} of the topic with what are not the constants it needs"))),
        };
        let ty = if name == "starts_with" { Ty::plain(oid::BOOL) } else { text_like(&first) };
        self.topic_column(made, ty).map(Some)
    }

    /// `(string_to_array(topic, delimiter))[n]`.
    pub(super) fn element_of_topic(&mut self, root: &Ast, chain: &[AccessExpr], ast: &Ast) -> Result<Typed> {
        let [AccessExpr::Subscript(Subscript::Index { index })] = chain else { return not_pure("not understood", ast) };
        let Ast::Function(call) = strip(root) else { return not_pure("an element of an array", ast) };
        let Some((name, list)) = self.builtin(call) else { return not_pure("an element of an array", ast) };
        let (true, [of, delimiter]) = (name == "string_to_array", &list[..]) else {
            return not_pure("an element of an array", ast);
        };
        self.is_builtin_only(&name)?;
        let first = self.scalar(of)?;
        let (delimiter, index) = (self.constant(delimiter)?, self.constant(index)?);
        match (self.topic_text(&first), text(&delimiter), number(&index)) {
            (Some(of), Some(delimiter), Some(n)) => {
                self.topic_column(TopicValue::Element(Box::new(of), delimiter.into(), n), text_like(&first))
            }
            _ => not_pure("an element of an array", ast),
        }
    }

    /// `LIKE`, `NOT LIKE`, `^@`.
    pub(super) fn pattern_match(&mut self, left: &Ast, op: &BinaryOperator, right: &Ast, ast: &Ast) -> Result<Expr> {
        let shown = || not_pure(&format!("the operator {op}"), ast);
        if self.topic.is_none() {
            return shown();
        }
        let of = self.scalar(left)?;
        let Some(value) = self.topic_text(&of).map(Box::new) else {
            return not_pure(&format!("the operator {op} of something that is not made of the topic"), ast);
        };
        let escaped = match strip(right) {
            Ast::Function(call) => match self.builtin(call) {
                Some((name, list)) if name == "like_escape" && !self.env.source => match &list[..] {
                    [text, escape] => Some((self.constant(text)?, self.constant(escape)?)),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        };
        let pattern = match &escaped {
            Some((pattern, escape)) => match (text(pattern), text(escape)) {
                (Some(pattern), Some(escape)) => Pattern::escaped(pattern, escape),
                _ => None,
            },
            None => {
                let pattern = self.constant(right)?;
                self.is_builtin_operator(&op.to_string(), of.ty.oid == oid::TEXT)?;
                text(&pattern).map(str::to_owned)
            }
        };
        let Some(pattern) = pattern else { return shown() };
        let matched = match op {
            BinaryOperator::PGStartsWith => TopicValue::StartsWith(value, pattern.into()),
            _ => match Pattern::new(&pattern) {
                Some(pattern) => TopicValue::Like(value, pattern),
                None => return not_pure("a pattern that ends in a backslash", ast),
            },
        };
        let typed = self.topic_column(matched, Ty::plain(oid::BOOL))?;
        let Val::Scalar(matched) = typed.val else { return shown() };
        let matched = Expr::Value(matched);
        Ok(if *op == BinaryOperator::PGNotLikeMatch { Expr::negated(matched) } else { matched })
    }

    /// `… || …`.
    pub(super) fn joined(&mut self, ast: &Ast) -> Result<Typed> {
        let (_, parts) = self.joined_parts(ast)?;
        let topics: Option<Vec<TopicValue>> = parts
            .iter()
            .map(|part| match &part.val {
                Val::Constant(Some(text)) => Some(TopicValue::Text(text.as_str().into())),
                _ => self.topic_text(part),
            })
            .collect();
        if let Some(topics) = topics {
            return match topics.iter().any(|part| !matches!(part, TopicValue::Text(_))) {
                true => {
                    let collated = parts.iter().fold(Collated::DEFAULT, |all, part| all.with(&part.ty.collated));
                    self.topic_column(TopicValue::Joined(topics), Ty { oid: oid::TEXT, collated })
                }
                false => not_pure("the operator || of constants", ast),
            };
        }
        let (mut before, mut after) = (String::new(), String::new());
        let mut inner: Option<Typed> = None;
        for part in parts {
            match part.val {
                Val::Constant(Some(text)) if inner.is_some() => after.push_str(&text),
                Val::Constant(Some(text)) => before.push_str(&text),
                Val::Constant(None) | Val::Element(_) | Val::Framed(_) => return not_pure("the operator ||", ast),
                _ if inner.is_some() => return not_pure("the operator || of several values", ast),
                _ => inner = Some(part),
            }
        }
        let Some(inner) = inner else { return not_pure("the operator ||", ast) };
        let ty = inner.ty.clone();
        Ok(Typed { ty, val: Val::Framed(Box::new(Framed { prefix: before, inner, suffix: after })) })
    }

    /// What is joined, as texts, and whether the first of the operands was a text before.
    fn joined_parts(&mut self, ast: &Ast) -> Result<(bool, Vec<Typed>)> {
        let (left, right) = match ast {
            Ast::Nested(inner) => return self.joined_parts(inner),
            Ast::BinaryOp { left, op: BinaryOperator::StringConcat, right } => (left, right),
            other => {
                let typed = self.scalar(other)?;
                let known = is_text(typed.ty.oid) && typed.ty.oid != oid::NAME;
                let exact = matches!(typed.ty.oid, oid::TEXT | UNKNOWN);
                self.is_builtin_operator("||", exact)?;
                return Ok((known, vec![self.cast(typed, oid::TEXT, false)?]));
            }
        };
        let ((left_text, mut parts), (right_text, more)) = (self.joined_parts(left)?, self.joined_parts(right)?);
        // Of other types it is another operator, such as that of arrays.
        if !left_text && !right_text {
            return not_pure("the operator ||", ast);
        }
        parts.extend(more);
        Ok((true, parts))
    }

    /// `prefix || x || suffix` compared with what is made of the topic, as what is compared with x. NULL and false stay apart.
    pub(super) fn without_frame(&mut self, left: Typed, right: Typed) -> Result<(Typed, Typed)> {
        let (other, framed) = match (left.val, right.val) {
            (Val::Framed(framed), val) => (Typed { ty: right.ty, val }, framed),
            (val, Val::Framed(framed)) => (Typed { ty: left.ty, val }, framed),
            (left_val, right_val) => {
                return Ok((Typed { ty: left.ty, val: left_val }, Typed { ty: right.ty, val: right_val }));
            }
        };
        let Some(of) = self.topic_text(&other) else {
            return Err(NotPure("the operator || but in a comparison with the topic".into()));
        };
        let Framed { prefix, inner, suffix } = *framed;
        let inside = TopicValue::Inside(Box::new(of), prefix.into(), suffix.into());
        Ok((self.topic_column(inside, other.ty)?, inner))
    }

    /// An argument that is a constant. Elsewhere one with a backslash is left to Postgres; here are the patterns.
    fn constant(&mut self, ast: &Ast) -> Result<Typed> {
        if let Ast::Cast { kind: CastKind::DoubleColon, expr, data_type: DataType::Text, format: None } = strip(ast)
            && let Some(text) = self.with_backslash(expr)
        {
            return Ok(Typed::constant(oid::TEXT, text));
        }
        let typed = self.scalar(ast)?;
        match typed.val {
            Val::Constant(Some(_)) => Ok(typed),
            _ => not_pure("an argument that is not a constant", ast),
        }
    }

    /// A quoted text with a backslash in it, if that means itself in what the server prints.
    fn with_backslash(&self, ast: &Ast) -> Option<String> {
        match strip(ast) {
            Ast::Value(value) => match &value.value {
                Literal::SingleQuotedString(text) => {
                    let plain = !self.env.source && self.catalog.has_plain_backslashes();
                    (plain && text.contains('\\')).then(|| text.clone())
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// In the text of a function the schemas of its search_path may have others of this name, and one of them may fit better.
    fn is_builtin_only(&self, name: &str) -> Result<()> {
        if !self.env.source {
            return Ok(());
        }
        let Some(path) = self.env.search_path else {
            return Err(NotPure(format!("{name} without a schema, in a function without a search_path")));
        };
        match path.iter().any(|schema| schema == "$user" || self.catalog.functions_named(schema, name).next().is_some())
        {
            true => Err(NotPure(format!("functions called {name} in a function's search_path"))),
            false => Ok(()),
        }
    }

    /// The same of operators. `exact`: for operands of just these types, the one of `pg_catalog` is the first that is found.
    fn is_builtin_operator(&self, name: &str, exact: bool) -> Result<()> {
        if !self.env.source || exact {
            return Ok(());
        }
        let other = |schema: &String| schema == "$user" || self.catalog.has_operator(schema, name);
        match self.env.search_path {
            Some(path) if !path.iter().any(other) => Ok(()),
            _ => Err(NotPure("operators in the schemas of a function's search_path".into())),
        }
    }
}

/// A text under the collation of what it is made of.
fn text_like(of: &Typed) -> Ty {
    Ty { oid: oid::TEXT, collated: of.ty.collated.clone() }
}

/// Of a constant that is a text or has no type yet.
fn text(typed: &Typed) -> Option<&str> {
    match &typed.val {
        Val::Constant(Some(text)) if matches!(typed.ty.oid, oid::TEXT | UNKNOWN) => Some(text),
        _ => None,
    }
}

fn number(typed: &Typed) -> Option<i32> {
    match &typed.val {
        Val::Constant(Some(text)) if matches!(typed.ty.oid, oid::INT4 | oid::INT2) => text.parse().ok(),
        _ => None,
    }
}
