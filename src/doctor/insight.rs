//! What an explanation says beside the plan: the tables that a policy looks into, and how soon a changed rule counts.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tokio_postgres::Client;

use super::millis;
use crate::config::Config;
use crate::migrate;
use crate::policy::rule::Rule;

/// A table that the policies look into, kept in memory by a running relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FactView {
    /// `schema.table`.
    pub table: String,
    /// The columns that are read.
    pub columns: Vec<String>,
    /// `ready`, `loading` and so on; `not running` if no relay could be asked, `not loaded` if nobody needs it there.
    pub state: String,
    /// Rows; of a table that is not in memory, what the planner believes. `None`: it was never analyzed.
    pub rows: Option<u64>,
    /// Bytes in memory.
    pub bytes: Option<u64>,
    /// Why it is not in memory; empty otherwise.
    pub why: String,
    /// What to do about it; may be empty.
    pub remedy: String,
}

/// How soon a changed rule counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RulesView {
    /// What counts from its own commit on, in the order of commits.
    pub at_commit: Vec<&'static str>,
    /// What is looked for from time to time.
    pub polled: Vec<&'static str>,
    /// A polled change counts for every row that is judged later than this after its commit, in milliseconds.
    pub within_ms: u64,
}

/// What event triggers of ours tell of; without them it is polled.
const HINTED: [&str; 2] =
    ["functions and schemas that the policies use", "policies, grants and columns of tables that they look into"];

pub(super) fn rules(config: &Config, hinted: bool) -> RulesView {
    let mut at_commit =
        vec!["the table's own policies, grants, columns, row-level security", "rows of tables in memory"];
    let mut polled = vec!["roles, memberships, BYPASSRLS", "disabled triggers, settings of the database"];
    if hinted {
        at_commit.extend(HINTED)
    } else {
        polled.extend(HINTED)
    }
    RulesView { at_commit, polled, within_ms: millis(config.hub.max_rules_age) }
}

/// The tables that a rule looks into, with the columns that it reads, before a relay was asked.
pub(super) async fn facts(client: &Client, rule: &Rule) -> Result<Vec<FactView>, tokio_postgres::Error> {
    let mut sources: BTreeMap<u32, (String, BTreeSet<String>)> = BTreeMap::new();
    for source in &rule.sources {
        let known = sources.entry(source.table_oid).or_insert_with(|| (source.table.to_string(), BTreeSet::new()));
        known.1.extend(source.columns.iter().map(|column| column.name.clone()));
    }
    let oids: Vec<u32> = sources.keys().copied().collect();
    let rows = estimates(client, &oids).await?;
    let view = |((table, columns), rows): ((String, BTreeSet<String>), Option<u64>)| FactView {
        table,
        columns: columns.into_iter().collect(),
        state: "not running".into(),
        rows,
        bytes: None,
        why: String::new(),
        remedy: String::new(),
    };
    Ok(sources.into_values().zip(rows).map(view).collect())
}

/// Rows of each table by the planner's estimate, in the order of the oids.
async fn estimates(client: &Client, oids: &[u32]) -> Result<Vec<Option<u64>>, tokio_postgres::Error> {
    // A partitioned table has its rows, and mostly its estimate, in its partitions.
    let sql = "select (select sum(nullif(c.reltuples, -1))::bigint from pg_catalog.pg_class c \
                  where c.oid = t.oid and c.relkind <> 'p' \
                     or c.oid in (select relid from pg_catalog.pg_partition_tree(t.oid) where isleaf and relid <> t.oid)) \
               from unnest($1::oid[]) with ordinality t(oid, place) order by place";
    let rows = client.query(sql, &[&oids]).await?;
    rows.iter().map(|row| Ok(row.try_get::<_, Option<i64>>(0)?.and_then(|rows| u64::try_from(rows).ok()))).collect()
}

/// Whether our event triggers are there and fire.
pub(super) async fn hinted(client: &Client) -> Result<bool, tokio_postgres::Error> {
    client.query_one(migrate::HINTS_INSTALLED, &[]).await?.try_get(0)
}
