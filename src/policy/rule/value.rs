//! Values of one evaluation, their comparison, and where a fact table has them.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::{CompareOp, Kind, Truth, exact_under};
use crate::pgtype::{Equality, canonical, compare};
use crate::policy::facts::{Store, Symbol};

/// A value on its way through a comparison.
#[derive(Clone)]
pub(super) enum Val<'e> {
    Null,
    /// Canonical.
    Text(Cow<'e, [u8]>),
    /// A cell of a fact table; not NULL.
    Fact(&'e Store, Symbol, &'e Kind),
    Raises,
    Unsure,
}

impl Val<'_> {
    pub(super) fn doubt(&self) -> Option<Truth> {
        match self {
            Val::Raises => Some(Truth::Raises),
            Val::Unsure => Some(Truth::Unsure),
            _ => None,
        }
    }

    /// Calls `with` with the text of a value that is neither NULL nor in doubt.
    pub(super) fn with_text<T>(&self, with: impl FnOnce(&[u8]) -> T) -> Option<T> {
        match self {
            Val::Text(text) => Some(with(text)),
            Val::Fact(store, symbol, _) => Some(with(&store.packed(*symbol).text())),
            Val::Null | Val::Raises | Val::Unsure => None,
        }
    }
}

/// The greater doubt of two outcomes, or the first that is one.
pub(super) fn worse(a: Truth, b: Truth) -> Truth {
    match (a, b) {
        (Truth::Unsure, _) | (_, Truth::Unsure) => Truth::Unsure,
        (Truth::Raises, _) | (_, Truth::Raises) => Truth::Raises,
        (a, _) => a,
    }
}

pub(super) fn of_bool(value: bool) -> Truth {
    if value { Truth::True } else { Truth::False }
}

pub(super) fn compared(op: CompareOp, kind: &Kind, a: &Val<'_>, b: &Val<'_>) -> Truth {
    if let Some(doubt) = a.doubt() {
        return worse(doubt, b.doubt().unwrap_or(doubt));
    }
    if let Some(doubt) = b.doubt() {
        return doubt;
    }
    if matches!((a, b), (Val::Null, _) | (_, Val::Null)) {
        return Truth::Null;
    }
    match op {
        CompareOp::Eq => equal(kind.equality, a, b).map_or(Truth::Unsure, of_bool),
        CompareOp::Ne => equal(kind.equality, a, b).map_or(Truth::Unsure, |equal| of_bool(!equal)),
        CompareOp::Lt | CompareOp::Le | CompareOp::Gt | CompareOp::Ge => {
            let order = |a: &[u8]| b.with_text(|b| kind.order.and_then(|order| compare(order, a, b))).flatten();
            let Some(Some(order)) = a.with_text(order) else { return Truth::Unsure };
            of_bool(match op {
                CompareOp::Lt => order == Ordering::Less,
                CompareOp::Le => order != Ordering::Greater,
                CompareOp::Gt => order == Ordering::Greater,
                _ => order != Ordering::Less,
            })
        }
    }
}

/// Equality of two values that are neither NULL nor in doubt. `None` if one is not as its type prints it.
fn equal(equality: Equality, a: &Val<'_>, b: &Val<'_>) -> Option<bool> {
    match (a, b) {
        (Val::Fact(from, symbol, kind), Val::Fact(other_from, other, other_kind))
            if exact_under(kind, equality) && exact_under(other_kind, equality) =>
        {
            match std::ptr::eq(*from, *other_from) {
                true => Some(symbol == other),
                false => Some(from.packed(*symbol) == other_from.packed(*other)),
            }
        }
        (Val::Fact(from, symbol, kind), Val::Text(text)) | (Val::Text(text), Val::Fact(from, symbol, kind))
            if exact_under(kind, equality) =>
        {
            Some(from.packed(*symbol).is(&canonical(equality, text)?))
        }
        (Val::Text(a), Val::Text(b)) if equality == Equality::Bytes => Some(a == b),
        _ => {
            let same = |a: &[u8]| {
                let a = canonical(equality, a)?;
                b.with_text(|b| Some(a == canonical(equality, b)?)).flatten()
            };
            a.with_text(same).flatten()
        }
    }
}

/// The symbol that a table has for a value; `None` if no row has it.
pub(super) fn find(store: &Store, equality: Equality, value: &Val<'_>, doubt: &mut Truth) -> Option<Symbol> {
    match value {
        Val::Null => None,
        Val::Fact(from, symbol, _) if std::ptr::eq(*from, store) => Some(*symbol),
        Val::Fact(from, symbol, kind) if exact_under(kind, equality) => store.find_packed(from.packed(*symbol)),
        value => {
            let found = value.with_text(|text| match canonical(equality, text) {
                Some(text) => Ok(store.find(&text)),
                None => Err(Truth::Unsure),
            });
            match found {
                Some(Ok(symbol)) => symbol,
                Some(Err(truth)) => {
                    *doubt = worse(truth, *doubt);
                    None
                }
                None => {
                    *doubt = worse(value.doubt().unwrap_or(Truth::Unsure), *doubt);
                    None
                }
            }
        }
    }
}
