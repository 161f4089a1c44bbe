//! From what a client asked for to subscriptions on tables, checked against the catalog.
//!
//! All entries of a channel or none (`protocol.md` §5.4). Runs beside the hub, not in it, because a filter's literals are cast by
//! Postgres; the result is put into force by the hub between two changes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::filters::Owner;
use super::messages::NO_TABLE;
use super::rules::{Rules, RulesHandle};
use super::warnings::warnings;
use super::{Action, Entry, Name, SubscribeError, Warning};
use crate::catalog::{Catalog, Column, Table};
use crate::claims::Principal;
use crate::filter::{self, ColumnSpec, Condition, Predicate, SubscribeParameters, Validator};
use crate::pgtype::type_name;
use crate::policy::Options;

/// One entry on one table.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) table_oid: u32,
    pub(super) entry_id: i32,
    /// Which of the channel's entries it is of.
    pub(super) entry: u32,
    pub(super) action: Action,
    pub(super) predicate: Predicate,
    /// The columns asked for and the key; `None` for all.
    pub(super) select: Option<Arc<BTreeSet<String>>>,
    /// Under which name the record carries its cursor.
    pub(super) cursor_as: Option<Arc<str>>,
}

impl Target {
    /// Of an entry that asks for messages. There is no table to look for: members wait for the first of it, too.
    fn of_messages(entry_id: i32) -> Target {
        let (action, predicate, select, cursor_as) = (Action::Insert, Predicate::everything(), None, None);
        Target { table_oid: NO_TABLE, entry_id, entry: 0, action, predicate, select, cursor_as }
    }
}

/// A reading of the catalog must know the channel's role within this.
const ROLE_DEADLINE: Duration = Duration::from_secs(10);

/// Most conditions of all entries of a channel: each is looked at for each row of its table.
const MAX_CONDITIONS: usize = 1000;

/// Resolves all entries for a principal, against a catalog that knows his role.
pub(super) async fn resolve(
    mut rules: RulesHandle,
    validator: Arc<Validator>,
    entries: &[Entry],
    (principal, owner): (&Principal, &Owner),
    options: Options,
) -> Result<(Vec<Target>, Vec<Warning>, Rules), SubscribeError> {
    let Some(rules) = rules.with_role(&principal.role, ROLE_DEADLINE).await else {
        let message = "Unable to subscribe to changes: the database can't be read at the moment".into();
        return Err(SubscribeError { message, retry: true });
    };
    let mut targets = Vec::with_capacity(entries.len());
    let owner = owner.key();
    let parsed = entries.iter().filter_map(|entry| entry.filter.as_deref()).map(filter::parse);
    let conditions: usize = parsed.map(|parsed| parsed.map_or(0, |conditions| conditions.len())).sum();
    if conditions > MAX_CONDITIONS {
        let message = format!(
            "Unable to subscribe to changes: the channel's filters have {conditions} conditions in all; at most \
             {MAX_CONDITIONS} are allowed"
        );
        return Err(SubscribeError { message, retry: false });
    }
    for (at, entry) in entries.iter().enumerate() {
        let first = targets.len();
        resolve_entry(&rules.catalog, &validator, entry, (principal, &owner), &mut targets).await?;
        targets[first..].iter_mut().for_each(|target| target.entry = at as u32);
    }
    let warnings = warnings(&rules.catalog, entries, &targets, &principal.role, options);
    Ok((targets, warnings, rules))
}

/// Whether the entry names this table, for its rows.
pub(super) fn names(entry: &Entry, schema: &str, table: &str) -> bool {
    let is = |name: &Name, text: &str| match name {
        Name::Any => true,
        Name::Is(wanted) => **wanted == *text,
    };
    entry.messages.is_none() && is(&entry.schema, schema) && is(&entry.table, table)
}

async fn resolve_entry(
    catalog: &Catalog,
    validator: &Validator,
    entry: &Entry,
    (principal, owner): (&Principal, &str),
    targets: &mut Vec<Target>,
) -> Result<(), SubscribeError> {
    if entry.messages.is_some() {
        targets.push(Target::of_messages(entry.id));
        return Ok(());
    }
    let refused = |message: String| SubscribeError { message, retry: false };
    let conditions = match &entry.filter {
        Some(text) => filter::parse(text).map_err(|error| refused(error.client_detail()))?,
        None => Vec::new(),
    };
    let parameters = SubscribeParameters {
        event: entry.action.as_str(),
        schema: name_text(&entry.schema),
        table: name_text(&entry.table),
        conditions: &conditions,
        select: entry.select.as_deref().filter(|s| !s.is_empty()),
    };
    let tables: Vec<&Arc<Table>> = match (&entry.schema, &entry.table) {
        (Name::Is(schema), Name::Is(table)) => catalog.find(schema, table).into_iter().collect(),
        _ => catalog.tables().filter(|t| names(entry, &t.schema, &t.name)).collect(),
    };
    if tables.is_empty() {
        return Err(refused(parameters.not_enabled()));
    }
    if catalog.role(&principal.role).is_none() {
        let detail = format!("ERROR 42704 (undefined_object) role \"{}\" does not exist", principal.role);
        return Err(refused(parameters.exception(&detail)));
    }
    for table in tables {
        if let Some(name) = hidden_by_cursor(entry, table, &principal.role) {
            return Err(refused(name));
        }
        let target = on_table(catalog, validator, entry, &conditions, table, (&principal.role, owner)).await;
        targets.push(
            target
                .map_err(|error| SubscribeError { message: parameters.message(&error), retry: error.is_retryable() })?,
        );
    }
    Ok(())
}

/// Why the record can't carry its cursor under the name that was asked for: a column that the role may read has it.
fn hidden_by_cursor(entry: &Entry, table: &Table, role: &str) -> Option<String> {
    let name = entry.cursor_as.as_deref()?;
    let column = table.columns.iter().find(|column| *column.name == *name)?;
    let readable = table.access.get(role).is_some_and(|access| access.columns.contains(&column.number));
    let (schema, table) = (&table.schema, &table.name);
    readable.then(|| {
        format!("Error parsing `cursor_as`: {schema}.{table} has a column \"{name}\"; choose a name that no column has")
    })
}

pub(super) async fn on_table(
    catalog: &Catalog,
    validator: &Validator,
    entry: &Entry,
    conditions: &[Condition],
    table: &Table,
    (role, owner): (&str, &str),
) -> Result<Target, filter::FilterError> {
    let selected = entry.select.as_deref().filter(|s| !s.is_empty());
    let mut predicate = Predicate::everything();
    if !conditions.is_empty() || selected.is_some() {
        let (types, columns) = (catalog.types(), columns(catalog, table, role));
        if !conditions.is_empty() {
            predicate = validator.validate(owner, conditions, &columns, types).await?;
        }
        if let Some(names) = selected {
            filter::check_select(names.iter().map(String::as_str), &columns)?;
        }
    }
    let select = selected.map(|names| Arc::new(names.iter().chain(&table.primary_key).cloned().collect()));
    Ok(Target {
        table_oid: table.oid,
        entry_id: entry.id,
        entry: 0,
        action: entry.action,
        predicate,
        select,
        cursor_as: entry.cursor_as.clone(),
    })
}

/// The table's columns as the role sees them.
pub(super) fn columns<'a>(catalog: &'a Catalog, table: &'a Table, role: &str) -> Vec<ColumnSpec<'a>> {
    let access = table.access.get(role);
    let spec = |column: &'a Column| ColumnSpec {
        name: &column.name,
        type_oid: column.type_oid,
        type_name: type_name(catalog.types(), column.type_oid),
        collation_deterministic: column.collation_deterministic,
        collation: column.collation.as_ref().map(|collation| &*collation.name),
        collation_bytewise: column.collation.as_ref().is_some_and(|collation| collation.bytewise),
        utf8: catalog.is_utf8(),
        readable: access.is_some_and(|a| a.columns.contains(&column.number)),
    };
    table.columns.iter().map(spec).collect()
}

fn name_text(name: &Name) -> &str {
    match name {
        Name::Any => "*",
        Name::Is(name) => name,
    }
}
