//! A rule as a tree for people: one condition a branch, what is asked of other tables below the tables' names.

use serde::Serialize;

use super::{Expr, Rule, Scalar, Subquery};

/// A line and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// The line.
    pub text: String,
    /// What belongs to it.
    pub below: Vec<Branch>,
}

impl Branch {
    fn new(text: impl Into<String>, below: Vec<Branch>) -> Branch {
        Branch { text: text.into(), below }
    }
}

impl Rule {
    /// The condition, a branch for each of its parts. `line`: how a rule whose condition has no parts is written.
    pub fn tree(&self, line: &dyn Fn(&Rule) -> String) -> Branch {
        self.branch(&self.condition, line)
    }

    fn branch(&self, expr: &Expr, line: &dyn Fn(&Rule) -> String) -> Branch {
        let branches = |parts: &[Expr]| parts.iter().map(|part| self.branch(part, line)).collect();
        match expr {
            Expr::And(parts) => Branch::new("all of", branches(parts)),
            Expr::Or(parts) => Branch::new("any of", branches(parts)),
            Expr::Not(inner) => Branch::new("not", vec![self.branch(inner, line)]),
            Expr::Is(inner, value) => {
                let word = match value {
                    Some(true) => "true",
                    Some(false) => "false",
                    None => "unknown",
                };
                Branch::new(format!("this is {word}"), vec![self.branch(inner, line)])
            }
            Expr::Exists(query) => {
                let text = format!("a row of {} exists", self.tables(query));
                Branch::new(text, vec![self.branch(&query.condition, line)])
            }
            Expr::In(left, query) => {
                let row = |scalars: &mut dyn Iterator<Item = &Scalar>| -> String {
                    let texts: Vec<String> =
                        scalars.map(|scalar| self.line(Expr::Value(scalar.clone()), line)).collect();
                    texts.join(", ")
                };
                let left = row(&mut left.iter().map(|(_, scalar)| scalar));
                let text = format!("{left} is in {} of {}", row(&mut query.outputs.iter()), self.tables(query));
                Branch::new(text, vec![self.branch(&query.condition, line)])
            }
            Expr::Constant(_)
            | Expr::Value(_)
            | Expr::Compare(..)
            | Expr::Same(..)
            | Expr::Any(..)
            | Expr::All(..)
            | Expr::IsNull(_) => Branch::new(self.line(expr.clone(), line), Vec::new()),
        }
    }

    fn line(&self, condition: Expr, line: &dyn Fn(&Rule) -> String) -> String {
        line(&Rule { condition, ..self.clone() })
    }

    fn tables(&self, query: &Subquery) -> String {
        let name =
            |slot: &u16| self.sources.get(usize::from(*slot).wrapping_sub(1)).map_or("?", |source| &*source.table);
        query.slots.iter().map(name).collect::<Vec<_>>().join(" with ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ColumnRef, CompareOp, FactSource, Kind};
    use super::*;
    use crate::pgtype::Equality;

    #[test]
    fn a_tree_has_a_branch_for_each_condition_and_the_inner_ones_below_their_table() {
        let kind = Kind { oid: 23, equality: Equality::Bytes, order: None };
        let column = |slot| Scalar::Column(ColumnRef { slot, column: 0 });
        let mine = |slot| Expr::Compare(CompareOp::Eq, kind, Box::new((column(slot), Scalar::Claim(0))));
        let query = Subquery { slots: vec![1], condition: mine(1), outputs: vec![column(1)] };
        let member = Expr::In(vec![(kind, column(0))], Box::new(query.clone()));
        let blocked = Expr::Not(Box::new(Expr::Exists(Box::new(query))));
        let source = FactSource { table_oid: 5, table: "public.members".into(), columns: Vec::new() };
        let rule = Rule {
            condition: Expr::Or(vec![mine(0), Expr::And(vec![member, blocked])]),
            reads: Vec::new(),
            claims: Vec::new(),
            sources: vec![source],
        };
        let shown = |rule: &Rule| match &rule.condition {
            Expr::Value(Scalar::Column(column)) => format!("column {}", column.slot),
            Expr::Compare(_, _, pair) if pair.0 == column(0) => "column 0 = claim".into(),
            _ => "column 1 = claim".into(),
        };
        fn text(branch: &Branch, indent: usize, out: &mut String) {
            out.push_str(&format!("{}{}\n", "  ".repeat(indent), branch.text));
            branch.below.iter().for_each(|branch| text(branch, indent + 1, out));
        }
        let mut out = String::new();
        text(&rule.tree(&shown), 0, &mut out);
        let expected = "any of\n  column 0 = claim\n  all of\n    column 0 is in column 1 of public.members\n      \
             column 1 = claim\n    not\n      a row of public.members exists\n        column 1 = claim\n";
        assert_eq!(out, expected);
    }
}
