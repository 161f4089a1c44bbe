//! A condition that Postgres has to judge: its statement, and what is known without asking.
//!
//! The statement is made of an operator that was looked up in the catalog, the column's collation, and two parameters; no text
//! of a client is ever in it. Its parameters have the column's *base* type: the value has passed the domain's checks already,
//! and nobody's check function should run for each row.

use super::Operator;
use crate::pgtype::oid;

/// A condition for Postgres. Equal ones about one value have one answer.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct AskedTerm {
    pub(super) column: Box<str>,
    /// The column's type as it was checked.
    pub(super) type_oid: u32,
    pub(super) operator: Operator,
    pub(super) negated: bool,
    /// `$1` is the value, `$2` the literal.
    pub(super) sql: Box<str>,
    pub(super) value_type: u32,
    /// Its type and its text; `is` has none.
    pub(super) literal: Option<(u32, Box<str>)>,
    /// What it says of NULL, if that is known: `Some(None)` is NULL.
    pub(super) of_null: Option<Option<bool>>,
}

impl AskedTerm {
    /// Whether the row matches, by the statement's answer.
    pub fn accepts(&self, answer: Option<bool>) -> bool {
        answer.is_some_and(|answer| answer != self.negated)
    }

    /// `imatch on column note`, for messages.
    pub fn describe(&self) -> String {
        let not = if self.negated && self.operator != Operator::Neq { "not." } else { "" };
        format!("{not}{} on column {}", self.operator.as_str(), self.column)
    }
}

/// A condition about `text` that differs from others with another literal.
#[cfg(test)]
pub(crate) fn asked_for_tests(literal: &str) -> std::sync::Arc<AskedTerm> {
    let found = Found { schema: "pg_catalog".into(), strict: true };
    std::sync::Arc::new(AskedTerm {
        column: "t".into(),
        type_oid: oid::TEXT,
        operator: Operator::Match,
        negated: false,
        sql: statement(Operator::Match, &found, None).into(),
        value_type: oid::TEXT,
        literal: Some((oid::TEXT, literal.into())),
        of_null: Some(None),
    })
}

/// An operator as found in the catalog.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Its schema, quoted.
    pub(super) schema: String,
    /// NULL in, NULL out.
    pub(super) strict: bool,
}

/// The operator's name in SQL; `is` has none.
pub(super) fn sign(operator: Operator) -> &'static str {
    match operator {
        Operator::Eq | Operator::In | Operator::IsDistinct => "=",
        Operator::Neq => "<>",
        Operator::Lt => "<",
        Operator::Lte => "<=",
        Operator::Gt => ">",
        Operator::Gte => ">=",
        Operator::Like => "~~",
        Operator::Ilike => "~~*",
        Operator::Match => "~",
        Operator::Imatch => "~*",
        Operator::Is => "",
    }
}

/// The statement of `<value> <operator> <literal>` under this collation (quoted).
///
/// IS DISTINCT FROM looks its `=` up in the search_path and can't be told which one to take, so that NULLs are left to
/// [`of_null`] and the rest is `=`.
pub(super) fn statement(operator: Operator, found: &Found, collation: Option<&str>) -> String {
    let value = collation.map_or_else(|| "$1".into(), |name| format!("($1 collate {name})"));
    let (schema, sign) = (&found.schema, sign(operator));
    match operator {
        Operator::In => format!("select {value} operator({schema}.{sign}) any ($2)"),
        Operator::IsDistinct => format!("select not ({value} operator({schema}.{sign}) $2)"),
        _ => format!("select ({value} operator({schema}.{sign}) $2)"),
    }
}

/// `is.null` of a composite: NOT NULL is not its opposite.
pub(super) fn null_statement(negated: bool) -> &'static str {
    if negated { "select $1 is not null" } else { "select $1 is null" }
}

/// See [`AskedTerm::of_null`].
pub(super) fn of_null(operator: Operator, found: &Found) -> Option<Option<bool>> {
    match operator {
        Operator::IsDistinct => Some(Some(true)),
        // An empty list doesn't look at the value.
        Operator::In => None,
        _ => found.strict.then_some(None),
    }
}

/// `LIKE` refuses this pattern as soon as a text is long enough to get to its end. The pattern as its type prints it.
pub(super) fn ends_in_escape(base: u32, pattern: &str) -> bool {
    let escapes = match base {
        oid::BYTEA => pattern.as_bytes().rchunks_exact(2).take_while(|hex| hex == b"5c").count(),
        // As text it has no blanks at the end.
        oid::BPCHAR => trailing_backslashes(pattern.trim_end_matches(' ')),
        _ => trailing_backslashes(pattern),
    };
    escapes % 2 == 1
}

fn trailing_backslashes(text: &str) -> usize {
    text.bytes().rev().take_while(|b| *b == b'\\').count()
}
