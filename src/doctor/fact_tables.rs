//! Tables that policies look into: whether the relay can keep their facts in memory. Where it can't, Postgres is asked about every
//! row, which is right and slow.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::facts::Facts;
use super::finding::{ident, size};
use super::{Finding, Subject, SubjectKind, Unreadable};
use crate::catalog::{Catalog, Table};
use crate::config::{Config, FACTS_PUBLICATION};
use crate::policy::facts::fitness;
use crate::policy::{Engine, Plan};

/// What a row takes beside its values, and what a value takes beside its text: an upper estimate of ours.
const ROW_BYTES: f64 = 96.0;
const VALUE_BYTES: f64 = 24.0;

/// The fact tables of the plans, with the columns that are read and the roles.
///
/// Where a rule could not even be compiled because of such a table, its name is in the reason, and it is looked at all the same.
fn wanted<'a>(catalog: &Catalog, plans: &'a [Plan]) -> BTreeMap<u32, (BTreeSet<i16>, BTreeSet<&'a str>)> {
    let mut wanted: BTreeMap<u32, (BTreeSet<i16>, BTreeSet<&str>)> = BTreeMap::new();
    for plan in plans {
        for source in plan.sources() {
            let (columns, roles) = wanted.entry(source.table_oid).or_default();
            columns.extend(source.columns.iter().map(|column| column.number));
            roles.insert(plan.role.as_str());
        }
        let Engine::Ask { reason, .. } = &plan.engine else { continue };
        for word in reason.split([' ', ',', ':', ';', '"']) {
            let table = word.split_once('.').and_then(|(schema, name)| catalog.named(schema, name));
            if let Some(table) = table.filter(|table| table.oid != plan.table_oid) {
                wanted.entry(table.oid).or_default().1.insert(plan.role.as_str());
            }
        }
    }
    wanted
}

fn refused(check: &str, subject: Subject, what: String) -> Finding {
    match check {
        "facts_via_root" => Finding::note("facts_via_root", subject, what),
        "facts_identity" => Finding::note("facts_identity", subject, what),
        "facts_load" => Finding::note("facts_load", subject, what),
        "facts_column_list" => Finding::note("facts_column_list", subject, what),
        "facts_publication" => Finding::note("facts_publication", subject, what),
        _ => Finding::note("facts_stream", subject, what),
    }
}

/// Rows, as the server estimates them, and bytes of the columns of one row.
const SIZES: &str = "select w.oid, \
    coalesce((select sum(greatest(c.reltuples, 0)) from pg_catalog.pg_class c where c.oid = any(w.leaves)), 0)::float8, \
    coalesce((select sum(s.avg_width) from pg_catalog.pg_stats s join pg_catalog.pg_class c on c.relname = s.tablename \
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = s.schemaname \
        where c.oid = w.oid and s.attname = any(w.columns)), 0)::float8 \
    from (select $1::oid as oid, $2::oid[] as leaves, $3::text[] as columns) w";

/// Whether the login needs BYPASSRLS to read one of them.
pub(super) fn need_bypass(catalog: &Catalog, plans: &[Plan]) -> bool {
    let reads_above = |table: &Table| table.row_security && (table.force_row_security || !table.ours);
    wanted(catalog, plans).keys().filter_map(|oid| catalog.table(*oid)).any(|table| reads_above(table))
}

pub(super) async fn check(
    client: &Client,
    catalog: &Catalog,
    config: &Config,
    facts: &Facts,
    plans: &[Plan],
) -> Result<Vec<Finding>, Unreadable> {
    let mut findings = Vec::new();
    let mut bytes = 0.0;
    for (oid, (columns, roles)) in wanted(catalog, plans) {
        let Some(table) = catalog.table(oid) else { continue };
        let subject = || Subject::table(&table.schema, &table.name);
        let roles = roles.into_iter().collect::<Vec<_>>().join(", ");
        let in_use = !columns.is_empty();
        let fit = match fitness(table, catalog, &columns, (FACTS_PUBLICATION, &ident(&facts.login))) {
            Ok(fit) => fit,
            Err(refusal) => {
                let why = format!(
                    "Policies for {roles} look into it, so Postgres is asked about every row that they judge, and a DELETE \
                             that cascades from it reaches nobody: when Postgres is asked, what would permit it is gone."
                );
                let finding = refused(refusal.check, subject(), refusal.why).why(why);
                let finding = if refusal.sql.is_empty() { finding } else { finding.sql(refusal.sql.join("\n")) };
                findings.push(if refusal.todo.is_empty() { finding } else { finding.todo(refusal.todo) });
                continue;
            }
        };
        if !in_use {
            continue;
        }
        let names: Vec<&str> = fit.layout.columns.iter().map(|column| column.name.as_str()).collect();
        let row = client.query_one(SIZES, &[&oid, &table.leaves, &names]).await?;
        let (rows, width): (f64, f64) = (row.try_get(1)?, row.try_get(2)?);
        let needed = rows * (ROW_BYTES + VALUE_BYTES * names.len() as f64 + width);
        bytes += needed;
        let place = if fit.streamed { "" } else { "; the relay adds it to the stream when it is needed" };
        let what = format!("is kept in memory for {roles}: about {rows} rows, {}{place}", size(needed as i64));
        findings.push(Finding::ok("facts", subject(), what));
    }
    let limit = config.hub.facts.memory;
    if bytes > limit as f64 {
        let name = "ROWCAST_FACTS_MEMORY";
        let (needed, limit) = (size(bytes as i64), size(i64::try_from(limit).unwrap_or(i64::MAX)));
        let what = format!("the tables that policies look into take about {needed} of memory, and {limit} are allowed");
        findings.push(
            Finding::warning("facts_memory", Subject::new(SubjectKind::Setting, name), what)
                .why("What does not fit is asked of Postgres, row by row; a DELETE that cascades from it then reaches nobody.")
                .todo(format!("Set {name} to more than {needed}, if the machine has it.")),
        );
    }
    Ok(findings)
}
