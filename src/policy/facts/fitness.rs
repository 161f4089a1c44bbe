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
    /// Statements that make it one; may be empty.
    pub sql: Vec<String>,
    /// What else there is to do; may be empty.
    pub todo: &'static str,
}

impl Refusal {
    /// SQL, or what to do; may be empty.
    pub fn remedy(&self) -> String {
        if self.sql.is_empty() { self.todo.to_owned() } else { self.sql.join(" ") }
    }
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
    let refused = |check, why: &str, sql: Vec<String>, todo| Err(Refusal { check, why: why.into(), sql, todo });
    let via_root = table.published.as_ref().is_some_and(|published| published.via_root);
    if table.is_partitioned && via_root {
        let why = "is published via its root, which hides what happens to a single partition";
        let todo = "If clients can do with the partitions' names: alter publication … set (publish_via_partition_root = false).";
        return refused("facts_via_root", why, Vec::new(), todo);
    }
    if let Some(obstacle) = table.streamed.obstacle {
        let why = format!("can't be followed in the stream: {obstacle}");
        let todo = "Write what the policy needs into a plain table, or into the row itself.";
        return refused("facts_stream", &why, Vec::new(), todo);
    }
    let layout = match Layout::of(table, catalog.types(), columns) {
        Ok(layout) => layout,
        // With another key it would be the same.
        Err(why) if Layout::of(table, catalog.types(), &BTreeSet::new()).is_ok() => {
            let todo = "Give the column a type whose values compare by their text, such as uuid, text or bigint.";
            return refused("facts_stream", &format!("can't be kept: {why}"), Vec::new(), todo);
        }
        Err(why) => {
            let why = format!("has no identity by which its rows can be followed: {why}");
            if table.is_partitioned {
                let todo = "alter table … replica identity full, for the table and for each of its partitions.";
                return refused("facts_identity", &why, Vec::new(), todo);
            }
            return refused("facts_identity", &why, vec![format!("alter table {name} replica identity full;")], "");
        }
    };
    if !table.loadable {
        let mut sql = vec![
            format!("grant usage on schema {} to {login};", quoted(&table.schema)),
            format!("grant select on {name} to {login};"),
        ];
        if table.row_security {
            sql.push(format!("alter role {login} bypassrls;"));
        }
        let todo = "Or make the relay's login the owner of the table.";
        return refused("facts_load", "may not be read in full by the relay's login", sql, todo);
    }
    let streamed = &table.streamed;
    let sent = |column: &str| streamed.columns.as_ref().is_none_or(|columns| columns.contains(column));
    if streamed.all_actions && streamed.all_rows && layout.columns.iter().all(|column| sent(&column.name)) {
        return Ok(Fit { layout, streamed: true });
    }
    if streamed.has_column_list {
        let why =
            "has a column list in a publication of the stream; a second publication without it would stop the stream";
        let todo =
            "Publish all of its columns there: alter publication … drop table …; alter publication … add table …;";
        return refused("facts_column_list", why, Vec::new(), todo);
    }
    if !table.ours {
        let why = format!("is not sent in full, and the relay's login may not add it to {publication}");
        return refused("facts_publication", &why, vec![format!("{};", statement(publication, table))], "");
    }
    Ok(Fit { layout, streamed: false })
}
