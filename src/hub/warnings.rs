//! What a subscription will never bring, told once when it begins (`protocol.md` §15, decision 25).
//!
//! The server that clients know sends an error row in place of each INSERT and UPDATE that has no primary key or whose key the
//! role may not select. One message says the same, and costs nothing per row.

use std::collections::{BTreeMap, BTreeSet};

use super::resolve::Target;
use super::{Action, Entry, Name, Warning};
use crate::catalog::Catalog;
use crate::policy::{self, DenyReason, Options};

/// Tables that one message names.
const NAMED: usize = 10;

fn message(why: DenyReason, role: &str, tables: &str) -> String {
    match why {
        DenyReason::NoPrimaryKey => {
            format!("Error 400: Bad Request, no primary key: INSERT and UPDATE of {tables} are not sent")
        }
        DenyReason::SuperuserRole => format!(
            "Error 401: Unauthorized: role {role} is a superuser; a token that names one receives nothing of {tables}"
        ),
        DenyReason::UnprotectedPartition => format!(
            "Error 401: Unauthorized: the partitioned table above {tables} has row-level security and the partition has \
             not; nothing of it is sent"
        ),
        _ => format!(
            "Error 401: Unauthorized: role {role} may not select the primary key of {tables}; INSERT and UPDATE are not sent"
        ),
    }
}

/// For the targets of a channel's entries. About a table that an entry names it is an error; about one among many that a
/// wildcard stands for, a note: some clients join again and again at an error.
pub(super) fn warnings(
    catalog: &Catalog,
    entries: &[Entry],
    targets: &[Target],
    role: &str,
    options: Options,
) -> Vec<Warning> {
    let mut named: BTreeSet<(DenyReason, String)> = BTreeSet::new();
    let mut among: BTreeMap<DenyReason, Vec<String>> = BTreeMap::new();
    for target in targets {
        let Some(entry) = entries.iter().find(|entry| entry.id == target.entry_id) else { continue };
        let Some(table) = catalog.table(target.table_oid) else { continue };
        let Some(why) = policy::obstacle(catalog, table, role, options) else { continue };
        if entry.action == Action::Delete && matches!(why, DenyReason::NoPrimaryKey | DenyReason::NoGrant) {
            continue;
        }
        let text = format!("{}.{}", table.schema, table.name);
        if matches!((&entry.schema, &entry.table), (Name::Is(_), Name::Is(_))) {
            named.insert((why, text));
        } else {
            let tables = among.entry(why).or_default();
            if !tables.contains(&text) {
                tables.push(text);
            }
        }
    }
    let errors = named.into_iter().map(|(why, table)| Warning { ok: false, message: message(why, role, &table) });
    let notes = among.into_iter().map(|(why, tables)| {
        let mut text = tables.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        if tables.len() > NAMED {
            text = format!("{text} and {} more", tables.len() - NAMED);
        }
        Warning { ok: true, message: message(why, role, &text) }
    });
    errors.chain(notes).collect()
}
