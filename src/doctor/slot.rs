//! Our slot, and slots that nobody reads any more: what they hold back stays on the server's disk.

use serde::Deserialize;

use super::finding::{literal, size};
use super::{Finding, Patient, Severity, Subject, SubjectKind, Unreadable};
use crate::error::{Fault as _, chain};
use crate::wal::{self, SlotFault, SlotState, WalError};

/// From here on a slot that nobody reads is more than a note.
const MUCH: i64 = 1 << 30;

/// Of `pg_replication_slots`.
#[derive(Debug, Deserialize)]
struct Slot {
    name: String,
    database: Option<String>,
    active: bool,
    wal_status: Option<String>,
    /// What is left until it is lost.
    safe: Option<i64>,
    /// Bytes of WAL from where it stands to the end.
    held: Option<i64>,
}

const SLOTS: &str = "select coalesce(json_agg(json_build_object('name', slot_name, 'database', database, 'active', active, \
    'wal_status', wal_status, 'safe', safe_wal_size, 'held', pg_catalog.pg_wal_lsn_diff( \
        case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn)::bigint) \
    order by slot_name), '[]')::text from pg_catalog.pg_replication_slots";

pub(super) async fn check(patient: &Patient<'_>) -> Result<Vec<Finding>, Unreadable> {
    let name = &patient.config.ingest.wal.slot;
    let row = patient.client.query_one(SLOTS, &[]).await?;
    let slots: Vec<Slot> = serde_json::from_str(row.try_get(0)?)?;
    let mut findings = Vec::new();
    let found = slots.iter().find(|slot| slot.name == *name);
    match wal::inspect(patient.client, &patient.config.ingest.wal).await {
        Ok(None) => findings.extend(absent(patient, name)),
        Ok(Some(state)) => findings.extend(usable(name, &state, found)),
        Err(error) => findings.push(unusable(name, &error)),
    }
    let ours = lineage(patient).await?;
    let others = slots.iter().filter(|slot| slot.name != *name && !slot.active);
    findings.extend(others.map(|slot| {
        let in_lineage = ours.contains(&slot.name) && slot.database.as_deref() == Some(&patient.facts.database);
        abandoned(slot, in_lineage)
    }));
    Ok(findings)
}

fn subject(name: &str) -> Subject {
    Subject::new(SubjectKind::Slot, name)
}

/// Names that relays on this database have used.
async fn lineage(patient: &Patient<'_>) -> Result<Vec<String>, Unreadable> {
    let may = "select has_table_privilege(c.oid, 'SELECT') and has_schema_privilege(n.oid, 'USAGE') from pg_catalog.pg_class c \
               join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = 'rowcast' and c.relname = 'lineage'";
    match patient.client.query_opt(may, &[]).await? {
        Some(row) if row.try_get::<_, bool>(0)? => {}
        _ => return Ok(Vec::new()),
    }
    let rows = patient.client.query("select slot from rowcast.lineage", &[]).await?;
    Ok(rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
}

fn absent(patient: &Patient<'_>, name: &str) -> Vec<Finding> {
    let facts = patient.facts;
    let mut findings =
        vec![Finding::ok("slot", subject(name), "is not there yet; `rowcast serve` makes it at its first start")];
    if facts.used_slots >= facts.max_slots {
        findings.push(
            Finding::error("slots", Subject::server(), format!("all {} replication slots are in use", facts.max_slots))
                .why("The relay can't make its own.")
                .sql(format!("alter system set max_replication_slots = {};", facts.max_slots + 4))
                .todo("Restart the server afterwards; or drop a slot that nobody reads."),
        );
    }
    findings.extend(senders(patient));
    findings
}

/// A relay that reads has its sender already.
fn senders(patient: &Patient<'_>) -> Option<Finding> {
    let facts = patient.facts;
    (facts.used_senders >= facts.max_senders).then(|| {
        Finding::error("senders", Subject::server(), format!("all {} WAL senders are in use", facts.max_senders))
            .why("The stream needs one.")
            .sql(format!("alter system set max_wal_senders = {};", facts.max_senders + 4))
            .todo("Restart the server afterwards; or end a replication connection that nobody needs.")
    })
}

fn usable(name: &str, state: &SlotState, found: Option<&Slot>) -> Vec<Finding> {
    let held = found.and_then(|slot| slot.held).unwrap_or(0);
    let status = found.and_then(|slot| slot.wal_status.as_deref()).unwrap_or("reserved");
    let reader = match state.active_pid {
        Some(pid) => format!("a relay reads it (server process {pid})"),
        None => "no relay reads it now".into(),
    };
    let mut findings = Vec::new();
    let late = status != "reserved" || (state.active_pid.is_none() && held >= MUCH);
    if !late {
        findings.push(Finding::ok("slot", subject(name), format!("is sound; {reader}; it holds back {}", size(held))));
        return findings;
    }
    let left = match found.and_then(|slot| slot.safe) {
        Some(safe) if safe > 0 => format!("; it is lost after {} more", size(safe)),
        Some(_) => "; it is lost at the next checkpoint".into(),
        None => String::new(),
    };
    let what = format!("holds back {} of WAL ({status}){left}; {reader}", size(held));
    let finding = if status == "unreserved" {
        Finding::error("slot_behind", subject(name), what)
    } else {
        Finding::warning("slot_behind", subject(name), what)
    };
    let finding =
        finding.why("Clients hear that much later, and the server's disk fills until the relay has caught up.");
    findings.push(match state.active_pid {
        Some(_) => finding.todo("Wait until it has caught up; if it does not, its log says why."),
        None => finding
            .sql(format!("select pg_drop_replication_slot({});", literal(name)))
            .todo("Start the relay. The SQL is for a relay that does not come back: clients then miss what was committed meanwhile."),
    });
    findings
}

fn unusable(name: &str, error: &WalError) -> Finding {
    let finding = Finding::error("slot_unusable", subject(name), chain(error));
    match error {
        WalError::SlotUnusable { fault: SlotFault::InCreation(_), .. } => finding
            .why("A slot is ready when all transactions that were open at its beginning have ended.")
            .todo(error.advice()),
        WalError::SlotUnusable { fault, .. } => {
            let why = match fault {
                SlotFault::Lost(_) => {
                    "Changes since then can't be had any more. A new slot starts from now; clients are told of a gap."
                }
                _ => "Changes can't be read from it.",
            };
            finding
                .why(why)
                .sql(format!("select pg_drop_replication_slot({});", literal(name)))
                .todo("If the slot is somebody else's, leave it and set ROWCAST_SLOT to another name.")
        }
        _ => finding.why("The relay reads its changes from it.").todo(error.advice()),
    }
}

fn abandoned(slot: &Slot, ours: bool) -> Finding {
    let held = slot.held.unwrap_or(0);
    let whose = if ours { "a relay's, under another name than ours" } else { "not ours" };
    let what = format!("({whose}) is read by nobody and holds back {}", size(held));
    let severity = if ours || held >= MUCH { Severity::Warning } else { Severity::Note };
    let finding = match severity {
        Severity::Warning => Finding::warning("slot_abandoned", subject(&slot.name), what),
        _ => Finding::note("slot_abandoned", subject(&slot.name), what),
    };
    finding
        .why("A slot keeps WAL for its reader, however long he stays away: the disk fills.")
        .sql(format!("select pg_drop_replication_slot({});", literal(&slot.name)))
        .todo("Drop it only if its reader is not coming back.")
}
