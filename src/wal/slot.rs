//! Before the stream: is the server fit for it, are the publications there, and then the slot.
//!
//! The slot comes last. Decoding looks at the catalog as of each row, so a slot that is older than its publication
//! fails at the first row in between, and no repair of the publication helps. Rejected: `CREATE_REPLICATION_SLOT` on
//! the stream's own session, which needs a session that can wait on old transactions for long without being able to say
//! for which.

use std::future::Future;
use std::time::Duration;

use serde::Deserialize;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::change::Lsn;
use crate::pg::PgError;

use super::{Blocker, SlotFault, WalConfig, WalError};

/// How long the making of a slot may wait for older transactions. Every attempt starts waiting anew, for two or three
/// times the longest of them, so it must be longer than any batch job; whoever waits asks [`blockers`] meanwhile.
pub const SLOT_DEADLINE: Duration = Duration::from_secs(3600);

/// The slot as [`prepare`] found or made it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotState {
    /// Whether it was made just now: whatever was known before belongs to another history.
    pub created: bool,
    /// What commits before this can't be had from the slot any more.
    pub confirmed_flush: Lsn,
    /// From here on the server keeps WAL for it.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended` or `unreserved`, as `pg_replication_slots` has it.
    pub wal_status: Option<String>,
    /// The session that reads it now.
    pub active_pid: Option<i32>,
    /// Whether standbys are to have a copy of it; `None` before version 17, which can't.
    pub failover: Option<bool>,
}

/// Looks at the server and makes what is ours. Checks version, `wal_level`, the role's replication right and the
/// publications, then the slot, which is made (permanent, pgoutput) if it is absent.
pub async fn prepare(client: &Client, config: &WalConfig) -> Result<SlotState, WalError> {
    prepare_within(client, config, SLOT_DEADLINE).await
}

pub(super) async fn prepare_within(
    client: &Client,
    config: &WalConfig,
    slot_deadline: Duration,
) -> Result<SlotState, WalError> {
    config.validate()?;
    let database = check_server(client, config).await?;
    check_publications(client, config, &database).await?;
    if let Some(state) = look(client, config, &database, false).await? {
        return Ok(state);
    }
    let created = create(client, config, slot_deadline).await?;
    let state = look(client, config, &database, created).await?;
    // Dropped by somebody in this very moment; the next attempt makes it again.
    state.ok_or_else(|| WalError::SlotUnusable { slot: config.slot.clone(), fault: SlotFault::InCreation(None) })
}

/// A query with the deadline that all of them have here.
async fn ask<T>(
    config: &WalConfig,
    what: &'static str,
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, WalError> {
    let after = config.connect_timeout;
    let answer = tokio::time::timeout(after, query).await.map_err(|_| WalError::Timeout { what, after })?;
    Ok(answer.map_err(PgError::query(what))?)
}

/// Looks whether the server and our role are fit for a stream: version, `wal_level`, replication right. Changes nothing.
pub async fn check(client: &Client, config: &WalConfig) -> Result<(), WalError> {
    config.validate()?;
    check_server(client, config).await.map(drop)
}

/// The slot as it is, or `None`; an error if it is there and can't be used. Changes nothing.
pub async fn inspect(client: &Client, config: &WalConfig) -> Result<Option<SlotState>, WalError> {
    config.validate()?;
    let what = "cannot look at the slot";
    let row = ask(config, what, client.query_one("select current_database()::text", &[])).await?;
    let database: String = row.try_get(0).map_err(PgError::query(what))?;
    look(client, config, &database, false).await
}

/// Version, role and level; gives the database's name.
async fn check_server(client: &Client, config: &WalConfig) -> Result<String, WalError> {
    let what = "cannot look at the server";
    // RDS grants the right through membership in a role of its own.
    let sql = "select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(), \
               current_setting('wal_level'), current_user::text, current_database()::text, \
               exists (select 1 from pg_roles where rolname = current_user and (rolsuper or rolreplication)) \
               or exists (select 1 from pg_roles where rolname = 'rds_replication' and pg_has_role(oid, 'member'))";
    let row = ask(config, what, client.query_one(sql, &[])).await?;
    let unreadable = PgError::query(what);
    let (version, version_name, standby, level, role, database, may) = read_server(&row).map_err(unreadable)?;
    if version < 140_000 {
        return Err(WalError::Version(version_name));
    }
    if standby {
        return Err(WalError::Standby);
    }
    if level != "logical" {
        return Err(WalError::WalLevel(level));
    }
    if !may {
        return Err(WalError::NotReplication(role));
    }
    Ok(database)
}

/// Version number and name, in recovery, wal_level, role, database, replication right.
type Server = (i32, String, bool, String, String, String, bool);

fn read_server(row: &tokio_postgres::Row) -> Result<Server, tokio_postgres::Error> {
    let (version, name, standby) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok((version, name, standby, row.try_get(3)?, row.try_get(4)?, row.try_get(5)?, row.try_get(6)?))
}

/// Whether all publications are there and agree on the columns of each table.
async fn check_publications(client: &Client, config: &WalConfig, database: &str) -> Result<(), WalError> {
    let what = "cannot read the publications";
    let sql = "select name from unnest($1::text[]) with ordinality wanted (name, place) \
               where not exists (select 1 from pg_publication where pubname = name) order by place";
    let rows = ask(config, what, client.query(sql, &[&config.publications])).await?;
    let names: Vec<String> =
        rows.iter().map(|r| r.try_get(0)).collect::<Result<_, _>>().map_err(PgError::query(what))?;
    if !names.is_empty() {
        return Err(WalError::PublicationMissing { names, database: database.into() });
    }
    // Column lists came with version 15; before, `attnames` is not there, and the row simply has no such key.
    let sql = "select schemaname || '.' || tablename from pg_publication_tables t where pubname = any($1) \
               group by schemaname, tablename having count(distinct to_jsonb(t) -> 'attnames') > 1 order by 1 limit 10";
    let rows = ask(config, what, client.query(sql, &[&config.publications])).await?;
    let tables: Vec<String> =
        rows.iter().map(|r| r.try_get(0)).collect::<Result<_, _>>().map_err(PgError::query(what))?;
    if tables.is_empty() { Ok(()) } else { Err(WalError::ColumnLists { tables }) }
}

/// `pg_replication_slots`, as JSON since each version has other columns.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlotRow {
    plugin: Option<String>,
    slot_type: Option<String>,
    database: Option<String>,
    temporary: Option<bool>,
    active_pid: Option<i32>,
    restart_lsn: Option<String>,
    confirmed_flush_lsn: Option<String>,
    wal_status: Option<String>,
    two_phase: Option<bool>,
    /// 17 and up.
    failover: Option<bool>,
    /// 16 and up: a recovery conflict.
    conflicting: Option<bool>,
    /// 17 and up.
    invalidation_reason: Option<String>,
}

impl SlotRow {
    fn fault(&self, database: &str) -> Option<SlotFault> {
        let lost = || {
            let reason = self.invalidation_reason.clone();
            let reason = reason.or_else(|| (self.conflicting == Some(true)).then(|| "conflict with recovery".into()));
            reason.or_else(|| (self.wal_status.as_deref() == Some("lost")).then(|| "wal_status lost".into()))
        };
        if self.slot_type.as_deref() != Some("logical") {
            return Some(SlotFault::Physical);
        }
        match (self.plugin.as_deref(), self.database.as_deref()) {
            (Some("pgoutput"), Some(found)) if found == database => {}
            (Some("pgoutput"), found) => return Some(SlotFault::Database(found.unwrap_or_default().into())),
            (plugin, _) => return Some(SlotFault::Plugin(plugin.unwrap_or_default().into())),
        }
        if self.temporary == Some(true) {
            return Some(SlotFault::Temporary);
        }
        if self.two_phase == Some(true) {
            return Some(SlotFault::TwoPhase);
        }
        if let Some(reason) = lost() {
            return Some(SlotFault::Lost(reason));
        }
        self.confirmed_flush_lsn.is_none().then_some(SlotFault::InCreation(self.active_pid))
    }
}

/// The slot, if there is one; an error if it is there and can't be used.
async fn look(
    client: &Client,
    config: &WalConfig,
    database: &str,
    created: bool,
) -> Result<Option<SlotState>, WalError> {
    let what = "cannot look at the slot";
    let sql = "select to_jsonb(s)::text from pg_replication_slots s where slot_name = $1::text";
    let Some(row) = ask(config, what, client.query_opt(sql, &[&config.slot])).await? else { return Ok(None) };
    let text: String = row.try_get(0).map_err(PgError::query(what))?;
    let slot: SlotRow =
        serde_json::from_str(&text).map_err(|e| WalError::Protocol(format!("pg_replication_slots: {e}")))?;
    if let Some(fault) = slot.fault(database) {
        return Err(WalError::SlotUnusable { slot: config.slot.clone(), fault });
    }
    let lsn = |text: &String| text.parse().map_err(|e| WalError::Protocol(format!("pg_replication_slots: {e}")));
    Ok(Some(SlotState {
        created,
        confirmed_flush: slot.confirmed_flush_lsn.as_ref().map(lsn).transpose()?.unwrap_or(Lsn::ZERO),
        restart_lsn: slot.restart_lsn.as_ref().map(lsn).transpose()?,
        wal_status: slot.wal_status,
        active_pid: slot.active_pid,
        failover: slot.failover,
    }))
}

/// Makes the slot; `false` if another session was faster. The server waits for all transactions that write now, in
/// every database of the cluster.
async fn create(client: &Client, config: &WalConfig, deadline: Duration) -> Result<bool, WalError> {
    let slot = &config.slot;
    // If we go away, the server should notice while it waits. Not every platform has it.
    let _ = client.batch_execute("set client_connection_check_interval = '1s'").await;
    let more = match config.failover {
        true if server_version(client, config).await? >= 170_000 => ", false, false, true",
        _ => "",
    };
    // One message, so one implicit transaction: the settings end with it, also if we go away in the middle. The name
    // was validated to need no quoting.
    let sql = format!(
        "set local statement_timeout = {}; set local lock_timeout = 0; \
         select lsn from pg_create_logical_replication_slot('{slot}', 'pgoutput'{more})",
        deadline.as_millis().max(1)
    );
    // The server ends it by itself; our own clock is for a server that is gone.
    let after = deadline + config.connect_timeout;
    let asked = tokio::time::timeout(after, client.simple_query(&sql)).await;
    match asked.map_err(|_| WalError::Timeout { what: "making the slot", after })? {
        Ok(messages) => Ok(messages.iter().any(|m| matches!(m, SimpleQueryMessage::Row(_)))),
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(false),
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            let blockers = blockers(client, config).await?;
            Err(WalError::SlotBlocked { slot: slot.clone(), waited: deadline, blockers })
        }
        Err(error) => Err(PgError::query("cannot make the slot")(error).into()),
    }
}

async fn server_version(client: &Client, config: &WalConfig) -> Result<i32, WalError> {
    let what = "cannot look at the server";
    let row = ask(config, what, client.query_one("select current_setting('server_version_num')::int", &[])).await?;
    Ok(row.try_get(0).map_err(PgError::query(what))?)
}

/// Removes the slot, if it is there. Only for one that can't be read any more: what it would still have given is gone.
pub async fn drop_slot(client: &Client, config: &WalConfig) -> Result<(), WalError> {
    let sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1::text";
    ask(config, "cannot drop the slot", client.query_opt(sql, &[&config.slot])).await.map(drop)
}

/// Who holds transaction ids now, oldest first, and so holds up the making of a slot. From `pg_locks`, which tells everybody,
/// unlike `pg_stat_activity`.
pub async fn blockers(client: &Client, config: &WalConfig) -> Result<Vec<Blocker>, WalError> {
    let what = "cannot look for open transactions";
    let sql = "select l.pid, p.gid, coalesce(' (' || a.state || ', user ' || a.usename || coalesce(', for ' || \
               extract(epoch from clock_timestamp() - a.xact_start)::bigint || ' s', '') || ')', '') \
               from pg_locks l left join pg_stat_activity a on a.pid = l.pid \
               left join pg_prepared_xacts p on p.transaction = l.transactionid \
               where l.locktype = 'transactionid' and l.mode = 'ExclusiveLock' and l.granted \
               and l.pid is distinct from pg_backend_pid() order by age(l.transactionid) desc limit 5";
    let rows = ask(config, what, client.query(sql, &[])).await?;
    let read = |row: &tokio_postgres::Row| -> Result<Blocker, tokio_postgres::Error> {
        Ok(Blocker { pid: row.try_get(0)?, gid: row.try_get(1)?, detail: row.try_get(2)? })
    };
    Ok(rows.iter().map(read).collect::<Result<_, _>>().map_err(PgError::query(what))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(json: &str) -> Option<SlotFault> {
        serde_json::from_str::<SlotRow>(json).expect("json").fault("app")
    }

    #[test]
    fn only_a_permanent_healthy_pgoutput_slot_of_this_database_is_used() {
        let good =
            r#""plugin":"pgoutput","slot_type":"logical","database":"app","confirmed_flush_lsn":"0/1","active":true"#;
        let with = |more: &str| row(&format!("{{{good}{more}}}"));
        assert_eq!(with(r#","temporary":false,"wal_status":"reserved","safe_wal_size":null"#), None);
        assert_eq!(with(r#","temporary":true"#), Some(SlotFault::Temporary));
        assert_eq!(with(r#","two_phase":true"#), Some(SlotFault::TwoPhase));
        assert!(matches!(with(r#","wal_status":"lost""#), Some(SlotFault::Lost(_))));
        assert_eq!(with(r#","invalidation_reason":"idle_timeout""#), Some(SlotFault::Lost("idle_timeout".into())));
        assert!(matches!(with(r#","conflicting":true"#), Some(SlotFault::Lost(_))));
        assert_eq!(row(r#"{"slot_type":"physical"}"#), Some(SlotFault::Physical));
        let other = r#"{"slot_type":"logical","plugin":"test_decoding","database":"app"}"#;
        assert_eq!(row(other), Some(SlotFault::Plugin("test_decoding".into())));
        let other = r#"{"slot_type":"logical","plugin":"pgoutput","database":"else"}"#;
        assert_eq!(row(other), Some(SlotFault::Database("else".into())));
        let making = r#"{"slot_type":"logical","plugin":"pgoutput","database":"app","active_pid":7}"#;
        assert_eq!(row(making), Some(SlotFault::InCreation(Some(7))));
    }
}
