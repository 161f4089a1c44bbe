//! Stand-in.
use std::fmt;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::{CompareOp, Expr, Rule, Scalar, Truth};
use crate::change::Value;
use crate::claims::Principal;
use crate::pgtype::canonical;
use crate::policy::facts::{FactBinding, Facts, Side};
use crate::policy::term::Fault;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Viewer {
    values: Arc<[Claimed]>,
}
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claimed {
    Null,
    Value(Box<[u8]>),
    Raises,
    Unsure,
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    claim: u16,
    column: u16,
    name: String,
    kind: super::Kind,
    claims: [u16; 1],
}
pub enum ViewerKey {
    Values(SmallVec<[Box<[u8]>; 1]>),
    MustJudge,
}
pub enum RowKeys {
    Complete,
    TooMany(SmallVec<[u16; 2]>),
    Absent,
}
impl Keys {
    pub fn claims(&self) -> &[u16] {
        &self.claims
    }
    pub fn of_viewer(&self, claim: u16, viewer: &Viewer) -> ViewerKey {
        match &viewer.values[claim as usize] {
            Claimed::Null | Claimed::Raises => ViewerKey::Values(smallvec![]),
            Claimed::Value(value) => ViewerKey::Values(smallvec![value.clone()]),
            Claimed::Unsure => ViewerKey::MustJudge,
        }
    }
    pub fn of_row<'a>(
        &self,
        _: &FactBinding,
        _: &Facts,
        _: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        limit: usize,
        found: &mut dyn FnMut(u16, &[u8]),
    ) -> RowKeys {
        match column(self.column as usize) {
            Value::Unchanged => RowKeys::Absent,
            Value::Null => RowKeys::Complete,
            Value::Text(text) => match canonical(self.kind.equality, text) {
                Some(text) if limit > 0 => {
                    found(self.claim, &text);
                    RowKeys::Complete
                }
                _ => RowKeys::TooMany(smallvec![self.claim]),
            },
        }
    }
}
impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.condition)
    }
}
impl Rule {
    pub fn viewer(&self, principal: &Principal) -> Viewer {
        let claimed = |claim: &super::ClaimTerm| match claim.term.text(principal) {
            Ok(None) => Claimed::Null,
            Ok(Some(text)) => Claimed::Value(text.into_bytes().into()),
            Err(Fault::Raises) => Claimed::Raises,
            Err(Fault::Unsure) => Claimed::Unsure,
        };
        Viewer { values: self.claims.iter().map(claimed).collect() }
    }
    pub fn keys(&self) -> Option<Keys> {
        fn necessary(expr: &Expr) -> Option<(u16, u16, super::Kind)> {
            match expr {
                Expr::Compare(CompareOp::Eq, kind, sides) => match &**sides {
                    (Scalar::Column(column), Scalar::Claim(claim)) => Some((column.column, *claim, *kind)),
                    _ => None,
                },
                Expr::And(parts) => parts.iter().find_map(necessary),
                Expr::Or(parts) => {
                    let first = necessary(parts.first()?)?;
                    parts.iter().all(|part| necessary(part) == Some(first)).then_some(first)
                }
                _ => None,
            }
        }
        let (column, claim, kind) = necessary(&self.condition)?;
        Some(Keys { claim, column, name: self.reads[column as usize].name.clone(), kind, claims: [claim] })
    }
    pub fn truth<'a>(
        &self,
        _: &FactBinding,
        _: &Facts,
        _: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        viewer: &Viewer,
    ) -> Truth {
        eval(&self.condition, column, viewer)
    }
}
fn eval<'a>(expr: &Expr, column: &dyn Fn(usize) -> Value<'a>, viewer: &Viewer) -> Truth {
    match expr {
        Expr::Constant(Some(true)) => Truth::True,
        Expr::Constant(Some(false)) => Truth::False,
        Expr::Compare(CompareOp::Eq, kind, sides) => match &**sides {
            (Scalar::Column(at), Scalar::Claim(claim)) => {
                match (column(at.column as usize), &viewer.values[*claim as usize]) {
                    (_, Claimed::Raises) => Truth::Raises,
                    (_, Claimed::Unsure) | (Value::Unchanged, _) => Truth::Unsure,
                    (Value::Null, _) | (_, Claimed::Null) => Truth::Null,
                    (Value::Text(text), Claimed::Value(value)) => match canonical(kind.equality, text) {
                        Some(text) if *text == **value => Truth::True,
                        Some(_) => Truth::False,
                        None => Truth::Unsure,
                    },
                }
            }
            _ => Truth::Unsure,
        },
        Expr::And(parts) => connect(parts.iter().map(|p| eval(p, column, viewer)), Truth::True, Truth::False),
        Expr::Or(parts) => connect(parts.iter().map(|p| eval(p, column, viewer)), Truth::False, Truth::True),
        _ => Truth::Unsure,
    }
}
fn connect(parts: impl Iterator<Item = Truth>, neutral: Truth, decisive: Truth) -> Truth {
    let rank = |truth: Truth| match truth {
        Truth::Unsure => 4,
        Truth::Raises => 3,
        truth if truth == decisive => 2,
        Truth::Null => 1,
        Truth::True | Truth::False => 0,
    };
    parts.fold(neutral, |outcome, part| if rank(part) > rank(outcome) { part } else { outcome })
}

pub(crate) fn from_old(
    old: &crate::policy::expr::Expr,
    table: &crate::catalog::Table,
    types: &crate::pgtype::Types,
) -> Rule {
    let mut rule = Rule { condition: Expr::Constant(None), reads: Vec::new(), claims: Vec::new(), sources: Vec::new() };
    rule.condition = convert(old, table, types, &mut rule.reads, &mut rule.claims);
    rule
}
fn convert(
    old: &crate::policy::expr::Expr,
    table: &crate::catalog::Table,
    types: &crate::pgtype::Types,
    reads: &mut Vec<super::RuleColumn>,
    claims: &mut Vec<super::ClaimTerm>,
) -> Expr {
    use crate::policy::expr::{Equality, Expr as Old};
    match old {
        Old::Constant(value) => Expr::Constant(Some(*value)),
        Old::Equal(Equality { column, claim }) => {
            let known = table.column(column).expect("a column");
            let oid = types.base_of(known.type_oid);
            let equality = crate::pgtype::equality(types, oid, true).expect("equality");
            let kind = super::Kind { oid, equality, order: None };
            let at = reads.iter().position(|c| c.name == *column).unwrap_or_else(|| {
                reads.push(super::RuleColumn { name: column.clone(), number: known.number, kind });
                reads.len() - 1
            });
            let claim_at = claims.iter().position(|c| c.term == *claim).unwrap_or_else(|| {
                claims.push(super::ClaimTerm { term: claim.clone(), kind });
                claims.len() - 1
            });
            let sides =
                (Scalar::Column(super::ColumnRef { slot: 0, column: at as u16 }), Scalar::Claim(claim_at as u16));
            Expr::Compare(CompareOp::Eq, kind, Box::new(sides))
        }
        Old::And(parts) => Expr::And(parts.iter().map(|p| convert(p, table, types, reads, claims)).collect()),
        Old::Or(parts) => Expr::Or(parts.iter().map(|p| convert(p, table, types, reads, claims)).collect()),
    }
}
