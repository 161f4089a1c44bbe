//! A policy as data: boolean connectives over "this column equals this claim", with Postgres's three-valued logic.

use std::collections::BTreeSet;
use std::fmt;

use super::term::{Fault, Term};
use crate::change::Value;
use crate::claims::Principal;

/// "column = claim". The types are such that equal values have equal text: uuid, the integers, and text under a
/// deterministic collation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Equality {
    /// Unquoted name.
    pub column: String,
    /// What it must equal.
    pub claim: Term,
}

/// A policy expression that needs nothing but the row and the claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// `true` or `false`.
    Constant(bool),
    /// A column and a claim are equal.
    Equal(Equality),
    /// All of them.
    And(Vec<Expr>),
    /// Any of them.
    Or(Vec<Expr>),
}

/// What an expression comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Null,
    /// Postgres would raise an error.
    Raises,
    /// Only Postgres knows, for this row and this principal.
    Unsure,
}

impl Expr {
    /// The conjunction, constants folded as Postgres folds them before it runs anything.
    pub(super) fn all(parts: Vec<Expr>) -> Expr {
        fold(parts, false, Expr::And)
    }

    /// The disjunction, constants folded likewise.
    pub(super) fn any(parts: Vec<Expr>) -> Expr {
        fold(parts, true, Expr::Or)
    }

    /// Names of the columns it reads.
    pub fn columns(&self) -> BTreeSet<&str> {
        match self {
            Expr::Constant(_) => BTreeSet::new(),
            Expr::Equal(equality) => BTreeSet::from([equality.column.as_str()]),
            Expr::And(parts) | Expr::Or(parts) => parts.iter().flat_map(Expr::columns).collect(),
        }
    }

    /// An equality without which the whole is never true.
    pub(super) fn necessary(&self) -> Option<&Equality> {
        match self {
            Expr::Constant(_) => None,
            Expr::Equal(equality) => Some(equality),
            Expr::And(parts) => parts.iter().find_map(Expr::necessary),
            Expr::Or(parts) => {
                let first = parts.first()?.necessary()?;
                parts.iter().all(|p| p.necessary() == Some(first)).then_some(first)
            }
        }
    }

    /// Evaluates; `column` gives the value of a column, [`Value::Unchanged`] if it is absent.
    pub(super) fn truth<'a>(&self, column: &impl Fn(&str) -> Value<'a>, principal: &Principal) -> Truth {
        match self {
            Expr::Constant(true) => Truth::True,
            Expr::Constant(false) => Truth::False,
            Expr::Equal(Equality { column: name, claim }) => equal(column(name), claim.text(principal)),
            Expr::And(parts) => connect(parts.iter().map(|p| p.truth(column, principal)), Truth::True, Truth::False),
            Expr::Or(parts) => connect(parts.iter().map(|p| p.truth(column, principal)), Truth::False, Truth::True),
        }
    }
}

fn fold(parts: Vec<Expr>, decisive: bool, make: fn(Vec<Expr>) -> Expr) -> Expr {
    if parts.contains(&Expr::Constant(decisive)) {
        return Expr::Constant(decisive);
    }
    let mut parts: Vec<Expr> = parts.into_iter().filter(|p| !matches!(p, Expr::Constant(_))).collect();
    match parts.len() {
        0 => Expr::Constant(!decisive),
        1 => parts.remove(0),
        _ => make(parts),
    }
}

fn equal(value: Value<'_>, claim: Result<Option<String>, Fault>) -> Truth {
    match (value, claim) {
        (_, Err(Fault::Raises)) => Truth::Raises,
        (_, Err(Fault::Unsure)) | (Value::Unchanged, _) => Truth::Unsure,
        (Value::Null, Ok(_)) | (_, Ok(None)) => Truth::Null,
        (Value::Text(text), Ok(Some(claim))) if text == claim.as_bytes() => Truth::True,
        (Value::Text(_), Ok(Some(_))) => Truth::False,
    }
}

/// AND (`neutral` true, `decisive` false) or OR (the other way round). An operand that raises makes the whole raise, whatever
/// the others say: a real SELECT usually does so while it is planned (selectivity is estimated with the claims' values), and
/// where it would not, the row is withheld rather than guessed.
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

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Expr], word: &str| {
            f.write_str("(")?;
            for (i, part) in parts.iter().enumerate() {
                write!(f, "{}{part}", if i == 0 { "" } else { word })?;
            }
            f.write_str(")")
        };
        match self {
            Expr::Constant(value) => write!(f, "{value}"),
            Expr::Equal(Equality { column, claim }) => write!(f, "{column} = {claim}"),
            Expr::And(parts) => list(f, parts, " and "),
            Expr::Or(parts) => list(f, parts, " or "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Truth; 5] = [Truth::True, Truth::False, Truth::Null, Truth::Raises, Truth::Unsure];

    fn and(parts: &[Truth]) -> Truth {
        connect(parts.iter().copied(), Truth::True, Truth::False)
    }

    fn or(parts: &[Truth]) -> Truth {
        connect(parts.iter().copied(), Truth::False, Truth::True)
    }

    #[test]
    fn the_connectives_obey_sql() {
        use Truth::{False, Null, True};
        for (a, b, both, either) in [
            (True, True, True, True),
            (True, False, False, True),
            (True, Null, Null, True),
            (False, False, False, False),
            (False, Null, False, Null),
            (Null, Null, Null, Null),
        ] {
            assert_eq!((and(&[a, b]), and(&[b, a])), (both, both), "{a:?} and {b:?}");
            assert_eq!((or(&[a, b]), or(&[b, a])), (either, either), "{a:?} or {b:?}");
        }
    }

    #[test]
    fn order_never_matters_and_no_doubt_becomes_true() {
        for a in ALL {
            for b in ALL {
                assert_eq!(and(&[a, b]), and(&[b, a]));
                assert_eq!(or(&[a, b]), or(&[b, a]));
                for c in ALL {
                    assert_eq!(and(&[a, b, c]), and(&[c, a, b]));
                    assert_eq!(or(&[a, b, c]), or(&[c, a, b]));
                }
                let doubtful = [a, b].iter().any(|t| matches!(t, Truth::Raises | Truth::Unsure));
                if doubtful {
                    assert_ne!(or(&[a, b]), Truth::True, "{a:?} or {b:?}");
                    assert_ne!(and(&[a, b]), Truth::True, "{a:?} and {b:?}");
                }
            }
        }
    }
}
