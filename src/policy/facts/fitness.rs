//! Whether the facts of a table can be kept, by the catalog alone; and if not, what would change that.

use std::collections::BTreeSet;

use super::{Layout, quoted, statement};
use crate::catalog::{Catalog, Table};

/// Why a table can't be a fact table for now, and what makes it one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which of the conditions it does not meet; a stable name.
    pub check: &'static str,
    /// As the end of a sentence that begins with the table.
    pub why: String,
    /// SQL, or what to do; may be empty.
    pub remedy: String,
}

/// A table as its facts need it to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// What would be kept of it.
    pub layout: Layout,
    /// The stream has all of it; otherwise it has to be added to our publication, and may be.
    pub streamed: bool,
}

/// Whether the facts in these columns of a table can be kept. `login` is for the remedy.
pub fn fitness(
    table: &Table,
    catalog: &Catalog,
    columns: &BTreeSet<i16>,
    (publication, login): (&str, &str),
) -> Result<Fit, Refusal> {
    let name = format!("{}.{}", quoted(&table.schema), quoted(&table.name));
    let refused = |check, why: &str, remedy: String| Err(Refusal { check, why: why.into(), remedy });
    let via_root = table.published.as_ref().is_some_and(|published| published.via_root);
    if table.is_partitioned && via_root {
        let why = "is published via its root, which hides what happens to a single partition";
        let remedy = "alter publication … set (publish_via_partition_root = false), if clients can do with the partitions' names";
        return refused("facts_via_root", why, remedy.into());
    }
    if let Some(obstacle) = table.streamed.obstacle {
        return refused("facts_stream", &format!("can't be followed in the stream: {obstacle}"), String::new());
    }
    let layout = match Layout::of(table, catalog.types(), columns) {
        Ok(layout) => layout,
        // With a key of other columns it would be the same.
        Err(why) if Layout::of(table, catalog.types(), &BTreeSet::new()).is_ok() => {
            return refused("facts_columns", &format!("can't be kept: {why}"), String::new());
        }
        Err(why) => {
            let why = format!("has no identity by which its rows can be followed: {why}");
            return refused("facts_identity", &why, format!("alter table {name} replica identity full;"));
        }
    };
    if !table.loadable {
        let bypass = if table.row_security { format!(" alter role {login} bypassrls;") } else { String::new() };
        let schema = quoted(&table.schema);
        let remedy = format!("grant usage on schema {schema} to {login}; grant select on {name} to {login};{bypass}");
        return refused("facts_load", "may not be read in full by the relay's login", remedy);
    }
    let streamed = &table.streamed;
    let sent = |column: &str| streamed.columns.as_ref().is_none_or(|columns| columns.contains(column));
    if streamed.all_actions && streamed.all_rows && layout.columns.iter().all(|column| sent(&column.name)) {
        return Ok(Fit { layout, streamed: true });
    }
    let statement = format!("{};", statement(publication, table));
    if streamed.has_column_list {
        let why =
            "has a column list in a publication of the stream; a second publication without it would stop the stream";
        return refused(
            "facts_column_list",
            why,
            format!("alter publication … drop table {name}; alter publication … add table {name};"),
        );
    }
    if !table.ours {
        let why = format!("is not sent in full, and the relay's login may not add it to {publication}");
        return refused("facts_publication", &why, statement);
    }
    Ok(Fit { layout, streamed: false })
}
