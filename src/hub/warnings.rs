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

/// For the targets of a channel's entries. An error if nothing that the channel asks for by name will come but DELETEs; a note
/// otherwise, since some clients give a channel up, or join it again and again, at an error.
pub(super) fn warnings(
    catalog: &Catalog,
    entries: &[Entry],
    targets: &[Target],
    role: &str,
    options: Options,
) -> Vec<Warning> {
    let mut tables: BTreeMap<DenyReason, BTreeSet<String>> = BTreeMap::new();
    let is_named = |entry: &Entry| matches!((&entry.schema, &entry.table), (Name::Is(_), Name::Is(_)));
    let mut hopeless = true;
    for target in targets {
        let Some(entry) = entries.iter().find(|entry| entry.id == target.entry_id) else { continue };
        let Some(table) = catalog.table(target.table_oid) else { continue };
        let why = policy::obstacle(catalog, table, role, options);
        let of_deletes = entry.action == Action::Delete;
        match why.filter(|why| !(of_deletes && matches!(why, DenyReason::NoPrimaryKey | DenyReason::NoGrant))) {
            Some(why) => {
                hopeless &= is_named(entry);
                tables.entry(why).or_default().insert(format!("{}.{}", table.schema, table.name));
            }
            None => hopeless = false,
        }
    }
    let warning = |(why, tables): (DenyReason, BTreeSet<String>)| {
        let mut text = tables.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        if tables.len() > NAMED {
            text = format!("{text} and {} more", tables.len() - NAMED);
        }
        Warning { ok: !hopeless, message: message(why, role, &text) }
    };
    tables.into_iter().map(warning).collect()
}
