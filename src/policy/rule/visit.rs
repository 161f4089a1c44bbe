//! Walking over a rule.

use super::{Expr, Kind, Members, Scalar, Subquery};
use crate::pgtype::{Equality, oid};

/// Whether a column's canonical text is canonical under another equality, too: then a comparison under that one is a
/// comparison of what is kept.
pub(in crate::policy) fn exact_under(column: &Kind, equality: Equality) -> bool {
    let integer = matches!(column.oid, oid::INT2 | oid::INT4 | oid::INT8);
    column.equality == equality || (equality == Equality::Numeric && integer)
}

impl Expr {
    /// Calls `sub` for every sub-select and `scalar` for every scalar in it, those of its sub-selects included.
    pub(in crate::policy) fn visit<'a>(
        &'a self,
        sub: &mut dyn FnMut(&'a Subquery),
        scalar: &mut dyn FnMut(&'a Scalar),
    ) {
        match self {
            Expr::Constant(_) => {}
            Expr::Value(value) => value.visit(sub, scalar),
            Expr::IsNull(value) => value.visit(sub, scalar),
            Expr::Compare(_, _, pair) | Expr::Same(_, pair) => {
                pair.0.visit(sub, scalar);
                pair.1.visit(sub, scalar);
            }
            Expr::Any(_, _, left, members) | Expr::All(_, _, left, members) => {
                left.visit(sub, scalar);
                if let Members::List(list) = members {
                    list.iter().for_each(|value| value.visit(sub, scalar));
                }
            }
            Expr::Is(inner, _) | Expr::Not(inner) => inner.visit(sub, scalar),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().for_each(|part| part.visit(sub, scalar)),
            Expr::Exists(inner) => inner.visit(sub, scalar),
            Expr::In(lefts, inner) => {
                lefts.iter().for_each(|(_, left)| left.visit(sub, scalar));
                inner.visit(sub, scalar);
            }
        }
    }

    /// Array claims that it compares with.
    pub(in crate::policy) fn array_claims(&self, found: &mut dyn FnMut(u16)) {
        match self {
            Expr::Any(_, _, _, Members::Claim(claim)) | Expr::All(_, _, _, Members::Claim(claim)) => found(*claim),
            Expr::Is(inner, _) | Expr::Not(inner) => inner.array_claims(found),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().for_each(|part| part.array_claims(found)),
            Expr::Exists(sub) | Expr::In(_, sub) => sub.condition.array_claims(found),
            _ => {}
        }
    }
}

impl Expr {
    /// Whether it compares with an array of the judged row.
    pub(in crate::policy) fn reads_array(&self) -> bool {
        match self {
            Expr::Any(_, _, _, Members::Array(_)) | Expr::All(_, _, _, Members::Array(_)) => true,
            Expr::Is(inner, _) | Expr::Not(inner) => inner.reads_array(),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().any(Expr::reads_array),
            other => {
                let mut found = false;
                other.visit(&mut |_| {}, &mut |scalar| match scalar {
                    Scalar::Truth(inner) => found |= inner.reads_array(),
                    Scalar::Case(arms, _) => found |= arms.iter().any(|(condition, _)| condition.reads_array()),
                    _ => {}
                });
                found
            }
        }
    }
}

impl Subquery {
    fn visit<'a>(&'a self, sub: &mut dyn FnMut(&'a Subquery), scalar: &mut dyn FnMut(&'a Scalar)) {
        sub(self);
        self.condition.visit(sub, scalar);
        self.outputs.iter().for_each(|output| output.visit(sub, scalar));
    }
}

impl Scalar {
    fn visit<'a>(&'a self, sub: &mut dyn FnMut(&'a Subquery), scalar: &mut dyn FnMut(&'a Scalar)) {
        scalar(self);
        match self {
            Scalar::Column(_) | Scalar::Claim(_) | Scalar::Constant(_) => {}
            Scalar::Coalesce(list) => list.iter().for_each(|value| value.visit(sub, scalar)),
            Scalar::NullIf(_, pair) => {
                pair.0.visit(sub, scalar);
                pair.1.visit(sub, scalar);
            }
            Scalar::Case(arms, otherwise) => {
                for (condition, value) in arms {
                    condition.visit(sub, scalar);
                    value.visit(sub, scalar);
                }
                otherwise.iter().for_each(|value| value.visit(sub, scalar));
            }
            Scalar::Truth(inner) => inner.visit(sub, scalar),
            Scalar::Convert(_, inner) => inner.visit(sub, scalar),
        }
    }
}
