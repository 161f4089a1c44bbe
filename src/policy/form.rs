//! The SQL by which Postgres judges a row image that may not be in the table any more.
//!
//! The image comes as one text parameter, cast to the table's row type. Of its fields only those that the policy reads are
//! named in the derived table, so an absent column cannot pose as NULL: a policy that read it after all would fail to parse.
//! The alias is the table's own name, because sub-selects in the policy's text refer to it.
//!
//! The second statement is for policies whose *text* the subscriber may not use though a real SELECT works (it names a schema
//! without USAGE). It looks the row up as the subscriber, and demands besides what Supabase demands (the key) that the columns
//! which the policy reads are still those of the image: otherwise an old image would be judged by a newer row.

use std::collections::BTreeSet;

use super::image::quote_ident;
use crate::catalog::Table;

/// The statements for one table and policy expression. Parameter `$1` is the image; the one column is a nullable boolean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Judges the image.
    pub question: String,
    /// Judges the current row of the same key; `None` without a primary key.
    pub lookup: Option<String>,
    /// Names of the columns that must be present in the image.
    pub reads: BTreeSet<String>,
}

impl Form {
    /// For a combined policy expression that reads these columns; `whole` if it refers to the whole row.
    pub(super) fn new(table: &Table, expression: &str, reads: BTreeSet<String>, whole: bool) -> Form {
        let (schema, name) = (quote_ident(&table.schema), quote_ident(&table.name));
        let named = |prefix: &str| {
            let columns = table.columns.iter().filter(|c| reads.contains(&c.name));
            columns.map(|c| format!("{prefix}{}", quote_ident(&c.name))).collect::<Vec<_>>().join(", ")
        };
        // OFFSET 0 keeps the planner from parsing the image once for each column.
        let row = format!("(select $1::text::{schema}.{name} as r offset 0) as i");
        let source = if whole {
            // A row of the table's own type, so that functions over it are found.
            format!("unnest(array[$1::text::{schema}.{name}])")
        } else {
            format!("(select {} from {row})", named("(i.r)."))
        };
        let question = format!("select ({expression}\n) from {source} as {name}");
        let key = table.primary_key.iter().map(|k| format!("t.{0} = (i.r).{0}", quote_ident(k)));
        let mut conditions: Vec<String> = key.collect();
        let lookup = (!conditions.is_empty()).then(|| {
            if !reads.is_empty() {
                // As records: two bare ROWs would be compared field by field, which needs an ordering for every type.
                let (now, then) = (named("t."), named("(i.r)."));
                conditions.push(format!("row({now})::record operator(pg_catalog.*=) row({then})::record"));
            }
            let conditions = conditions.join(" and ");
            format!("select exists(select 1 from {schema}.{name} as t, {row} where {conditions})")
        });
        Form { question, lookup, reads }
    }
}
