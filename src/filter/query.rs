//! The same filter as a condition of a query: what a snapshot selects is what the live filter would let through.
//!
//! Every condition is made of the operator and the literal that rows of the stream are judged by; the literal is a parameter
//! of the column's base type, so no text of a client is ever in the statement. A condition that memory judges is what
//! Postgres says of the same operator, by the promise of [`super::Predicate`]; so it needs no trial.

use std::sync::Arc;

use super::asked::{self, AskedTerm, Found};
use super::trial::array_oid;
use super::validate::{ColumnSpec, Judge, Validator};
use super::{Condition, FilterError, Operator};
use crate::pgtype::Types;

impl Validator {
    /// The conditions for a query about one table, checked as [`Validator::validate`] checks them.
    pub async fn conditions(
        &self,
        owner: &str,
        conditions: &[Condition],
        columns: &[ColumnSpec<'_>],
        types: &Types,
    ) -> Result<Vec<Arc<AskedTerm>>, FilterError> {
        let checked = async {
            let mut terms = Vec::with_capacity(conditions.len());
            for condition in conditions {
                let column = super::validate::readable(columns, condition)?;
                terms.push(match self.judge(owner, condition, column, types).await? {
                    Judge::Postgres(term) => term,
                    Judge::Memory(..) => Arc::new(self.term(condition, column, types.base_of(column.type_oid)).await?),
                });
            }
            Ok(terms)
        };
        super::validate::within_deadline(checked).await
    }

    /// Of a condition that memory judges: on types whose operators are Postgres's own.
    async fn term(&self, condition: &Condition, column: &ColumnSpec<'_>, base: u32) -> Result<AskedTerm, FilterError> {
        let found = Found { schema: "pg_catalog".into(), strict: true };
        let Condition { operator, negated, value, .. } = condition;
        let (sql, negated, literal) = match operator {
            Operator::Is => match value.as_str() {
                "true" | "false" | "unknown" => (format!("select $1 is {value}"), *negated, None),
                _ => (asked::null_statement(*negated).to_owned(), false, None),
            },
            _ => {
                let of = if *operator == Operator::In { self.array_of(base).await? } else { base };
                (asked::statement(*operator, &found, column.collation), *negated, Some((of, value.as_str().into())))
            }
        };
        Ok(AskedTerm {
            column: column.name.into(),
            type_oid: column.type_oid,
            operator: *operator,
            negated,
            sql: sql.into(),
            value_type: base,
            literal,
            of_null: if *operator == Operator::Is { None } else { asked::of_null(*operator, &found) },
        })
    }

    async fn array_of(&self, base: u32) -> Result<u32, FilterError> {
        if let Some(known) = crate::pgtype::array_over(base) {
            return Ok(known);
        }
        let (_turn, client) = self.connection(&self.turns).await?;
        array_oid(&**client, base).await
    }
}

impl AskedTerm {
    /// The column that it is about.
    pub fn column(&self) -> &str {
        &self.column
    }

    /// Type and text of the literal, which is a parameter of the query; `is` has none.
    pub fn literal(&self) -> Option<(u32, &str)> {
        self.literal.as_ref().map(|(oid, text)| (*oid, &**text))
    }

    /// The condition about `value`, an SQL expression, with its literal as parameter `number`. True exactly for what matches;
    /// false or NULL for the rest.
    pub fn condition(&self, value: &str, number: usize) -> String {
        let expression = self.sql.strip_prefix("select ").unwrap_or(&self.sql);
        let expression = placed(expression, value, number);
        let expression = match self.of_null {
            // With a bare NULL it is a test of the value itself, not of the fields of a composite.
            Some(Some(known)) if self.operator != Operator::Is => {
                format!("case when {value} is not distinct from null then {known} else {expression} end")
            }
            _ => expression,
        };
        if self.negated { format!("(not ({expression}))") } else { format!("({expression})") }
    }
}

/// Puts the value in place of `$1` and another number in place of `$2`, but not within quoted names.
fn placed(sql: &str, value: &str, number: usize) -> String {
    let mut out = String::with_capacity(sql.len() + value.len());
    let mut quoted = false;
    let mut rest = sql.chars().peekable();
    while let Some(c) = rest.next() {
        quoted ^= c == '"';
        match (c, rest.peek()) {
            ('$', Some('1')) if !quoted => {
                rest.next();
                out.push_str(value);
            }
            ('$', Some('2')) if !quoted => {
                rest.next();
                out.push_str(&format!("${number}"));
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_like_parameters_stay() {
        let sql = r#"($1 collate "we$1rd"."$2""$1") operator("$2".=) $2"#;
        let placed = placed(sql, r#"t."$1""#, 7);
        assert_eq!(placed, r#"(t."$1" collate "we$1rd"."$2""$1") operator("$2".=) $7"#);
    }
}
