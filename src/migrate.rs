//! What Rowcast installs in the user's database: numbered scripts, each in one transaction, each with its way back.
//!
//! Invariants:
//! * Only what is absent is made; what was made is recorded in `rowcast.installed`, and only that is ever removed. An object
//!   that others depend on stays and is named in the [`Report`]; nothing is dropped with CASCADE.
//! * A step that not every login may take can be left out: it is then not recorded, and tried again at the next `up`.
//! * A step takes the advisory lock and then looks whether it still has to run, so any number may run at once.
//! * The scripts qualify every name and run with `search_path = pg_catalog, pg_temp`: nobody's `public.now()` runs with an
//!   administrator's rights.
//!
//! Rejected: a migration library (tables of its own, no record of what was found and what was made); a single current
//! version number, since a relay that may only make its own objects applies the [`Scope::Own`] steps and leaves the others out.

use std::fmt;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use crate::catalog::{FACTS_PUBLICATION, MESSAGES_PUBLICATION};
use crate::error::{Fault, Remedy};
use crate::pg::{PgError, is_transient};

/// Whether the relay needs the objects for itself, or applications and policies do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Schema `rowcast` with all in it, `rowcast_facts`, `rowcast_messages`: `serve` makes these.
    Own,
    /// Roles, `auth`, the publication, event triggers: only on request.
    Shared,
}

/// One numbered step.
#[derive(Debug)]
pub struct Migration {
    /// Its place in the order; also the number in the file's name.
    pub version: u32,
    /// The file's name without number and direction.
    pub name: &'static str,
    /// Who needs it.
    pub scope: Scope,
    /// For a step that may be left out where the login may not take it: a query for one truth, whether it did its work.
    done: Option<&'static str>,
    up: &'static str,
    down: &'static str,
}

impl Migration {
    /// The SQL that makes it.
    pub fn up_script(&self) -> &'static str {
        self.up
    }
}

macro_rules! migration {
    ($version:literal, $scope:ident, $file:literal, $name:literal) => {
        migration!($version, $scope, $file, $name, None)
    };
    ($version:literal, $scope:ident, $file:literal, $name:literal, $done:expr) => {
        Migration {
            version: $version,
            name: $name,
            scope: Scope::$scope,
            done: $done,
            up: include_str!(concat!("../migrations/", $file, "_", $name, ".up.sql")),
            down: include_str!(concat!("../migrations/", $file, "_", $name, ".down.sql")),
        }
    };
}

/// All steps in order.
pub static MIGRATIONS: &[Migration] = &[
    migration!(1, Own, "0001", "rowcast"),
    migration!(2, Shared, "0002", "roles"),
    migration!(3, Shared, "0003", "auth"),
    migration!(4, Shared, "0004", "publication"),
    migration!(5, Shared, "0005", "filter_role"),
    migration!(6, Own, "0006", "retention"),
    migration!(7, Shared, "0007", "rule_hints", Some(HINTS_INSTALLED)),
    migration!(8, Own, "0008", "frontiers"),
    migration!(9, Shared, "0009", "realtime"),
    migration!(10, Own, "0010", "messages"),
];

/// Whether the event triggers of step 7 are there and fire, as a query for one truth.
pub const HINTS_INSTALLED: &str = "select count(*) = 2 from pg_catalog.pg_event_trigger t \
    join pg_catalog.pg_proc p on p.oid = t.evtfoid join pg_catalog.pg_namespace n on n.oid = p.pronamespace \
    where t.evtname in ('rowcast_rules_changed', 'rowcast_rules_dropped') and t.evtenabled in ('A', 'O') \
    and n.nspname = 'rowcast' and p.proname = 'hint_rules'";

/// Holds one migration at a time in this database; the number is arbitrary and ours.
const LOCK: i64 = 0x0072_6f77_6361_7374;

/// Why the database could not be brought to the wanted state.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A script failed; its transaction was rolled back, the steps before it stay.
    #[error("migration {version} ({name}, {direction}) failed{}", server_text(.source))]
    Step {
        /// Its number.
        version: u32,
        /// Its name.
        name: &'static str,
        /// "up" or "down".
        direction: &'static str,
        /// What the server said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The script that ran here is not the one in this binary.
    #[error("migration {version} ({name}) was applied from a different script than this Rowcast carries")]
    Changed {
        /// Its number.
        version: u32,
        /// Its name.
        name: &'static str,
    },
    /// A newer Rowcast was here.
    #[error("the database has migration {version} ({name}), which this Rowcast does not know")]
    Newer {
        /// Its number.
        version: i32,
        /// Its name, from the database.
        name: String,
    },
    /// A relay still reads the slot, so nothing of it can be removed.
    #[error("a relay is connected to replication slot {slot}")]
    SlotActive {
        /// The slot's name.
        slot: String,
    },
    /// The target has no such step.
    #[error("there is no migration {0}")]
    NoSuchVersion(u32),
    /// Another statement failed.
    #[error(transparent)]
    Pg(#[from] PgError),
}

fn server_text(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!(": {} (SQLSTATE {})", db.message(), db.code().code()),
        None => String::new(),
    }
}

impl Fault for MigrateError {
    fn remedy(&self) -> Remedy {
        match self {
            MigrateError::Step { source, .. } => match source.code() {
                Some(state) if !is_transient(state) => Remedy::Operator,
                _ => Remedy::Retry,
            },
            MigrateError::Pg(error) => error.remedy(),
            _ => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            MigrateError::Step { source, .. } => {
                let Some(db) = source.as_db_error() else { return String::new() };
                match db.hint() {
                    Some(hint) => hint.to_owned(),
                    None if *db.code() == SqlState::INSUFFICIENT_PRIVILEGE => {
                        "Run `rowcast migrate up` once as the owner of the database or as a superuser.".into()
                    }
                    None => String::new(),
                }
            }
            MigrateError::Changed { .. } | MigrateError::Newer { .. } => {
                "Use the Rowcast that migrated this database, or a newer one.".into()
            }
            MigrateError::SlotActive { .. } => "Stop the relay, then run it again.".into(),
            MigrateError::NoSuchVersion(_) => {
                format!("`rowcast migrate status` lists them; the last is {}.", MIGRATIONS.len())
            }
            MigrateError::Pg(error) => error.advice(),
        }
    }
}

/// What a run did. `Display` is for a person: one line each.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// The steps that ran, in the order they ran.
    pub steps: Vec<(u32, &'static str)>,
    /// The steps that `up` left out because the login may not take them. Nothing needs them; they are tried again each time.
    pub left_out: Vec<(u32, &'static str)>,
    /// What `up` made, such as `role anon`; what it found is not listed.
    pub made: Vec<String>,
    /// What `down` left because something depends on it, with the reason.
    pub kept: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.steps.is_empty() {
            writeln!(f, "nothing to do")?;
        }
        for (version, name) in &self.steps {
            writeln!(f, "ran   {version:04} {name}")?;
        }
        for (version, name) in &self.left_out {
            writeln!(f, "left  {version:04} {name}: only a superuser can make it; the relay works without")?;
        }
        for made in &self.made {
            writeln!(f, "made  {made}")?;
        }
        for kept in &self.kept {
            writeln!(f, "kept  {kept}")?;
        }
        Ok(())
    }
}

/// A step's state in a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its number.
    pub version: u32,
    /// Its name.
    pub name: &'static str,
    /// Who needs it.
    pub scope: Scope,
    /// It is left out where the login may not take it.
    pub optional: bool,
    /// When it was applied, as Postgres prints it; `None` if it was not.
    pub applied_at: Option<String>,
    /// Applied from another script than ours.
    pub changed: bool,
}

/// Applies every step that is missing.
pub async fn up(client: &mut Client) -> Result<Report, MigrateError> {
    apply(client, |_| true).await
}

/// Applies only what the relay itself needs. Takes no lock and writes nothing when all is there.
pub async fn ensure_own(client: &mut Client) -> Result<Report, MigrateError> {
    let own = |migration: &Migration| migration.scope == Scope::Own;
    let applied = status(client).await?;
    if applied.iter().all(|step| step.scope != Scope::Own || (step.applied_at.is_some() && !step.changed)) {
        return Ok(Report::default());
    }
    apply(client, own).await
}

/// Takes back every step above `to`, newest first; `None` takes back all, and then drops the slots of ours that no relay
/// reads, since nobody would be left to move them.
pub async fn down(client: &mut Client, to: Option<u32>) -> Result<Report, MigrateError> {
    let to = to.unwrap_or(0);
    if to > 0 && !MIGRATIONS.iter().any(|migration| migration.version == to) {
        return Err(MigrateError::NoSuchVersion(to));
    }
    let mut report = Report::default();
    refuse_unknown(client).await?;
    let slots = if to == 0 { own_slots(client).await? } else { Vec::new() };
    for migration in MIGRATIONS.iter().rev().filter(|migration| migration.version > to) {
        let transaction = begin(client).await?;
        if applied_checksum(&transaction, migration).await?.is_none() {
            continue;
        }
        revert(&transaction, migration, &mut report).await?;
        transaction.commit().await.map_err(PgError::query("cannot commit the migration"))?;
        report.steps.push((migration.version, migration.name));
    }
    // Dropping a slot can't be undone by a rollback, so it comes after everything that can fail.
    for slot in slots {
        let dropped = client.query("select pg_catalog.pg_drop_replication_slot($1)", &[&slot]).await;
        if let Err(error) = dropped {
            report.kept.push(format!("replication slot {slot}{}", server_text(&error)));
        }
    }
    Ok(report)
}

/// Every step this Rowcast knows, and whether it is applied.
pub async fn status(client: &Client) -> Result<Vec<Status>, MigrateError> {
    let rows = if has_journal(client).await? {
        let sql = "select version, applied_at::text, checksum from rowcast.migrations";
        client.query(sql, &[]).await.map_err(PgError::query("cannot read rowcast.migrations"))?
    } else {
        Vec::new()
    };
    let mut all = Vec::new();
    for migration in MIGRATIONS {
        let row = rows.iter().find(|row| i64::from(row.get::<_, i32>(0)) == i64::from(migration.version));
        let changed = match row {
            Some(row) => row.get::<_, String>(2) != checksum(client, migration.up).await?,
            None => false,
        };
        let applied_at = row.map(|row| row.get(1));
        all.push(Status {
            version: migration.version,
            name: migration.name,
            scope: migration.scope,
            optional: migration.done.is_some(),
            applied_at,
            changed,
        });
    }
    Ok(all)
}

/// What a relay that serves these publications needs and the database does not have, such as `publication orders`. Roles and
/// `auth` functions are not among them: a database whose policies don't use them needs none.
pub async fn missing(client: &Client, publications: &[String]) -> Result<Vec<String>, MigrateError> {
    let mut absent = Vec::new();
    if !has_journal(client).await? {
        absent.push("schema rowcast".to_owned());
    }
    let mut wanted: Vec<&str> = publications.iter().map(String::as_str).collect();
    wanted.extend([FACTS_PUBLICATION, MESSAGES_PUBLICATION]);
    let sql = "select name from unnest($1::text[]) with ordinality as wanted (name, place) \
               where not exists (select from pg_catalog.pg_publication where pubname = name) order by place";
    let rows = client.query(sql, &[&wanted]).await.map_err(PgError::query("cannot read pg_publication"))?;
    absent.extend(rows.iter().map(|row| format!("publication {}", row.get::<_, &str>(0))));
    Ok(absent)
}

/// Adds `realtime.messages` to its publication if it is there and not in it. `None` if there is nothing left to do; else the
/// SQL for who may, and why the login did not.
pub async fn publish_messages(client: &Client) -> Result<Option<(String, String)>, MigrateError> {
    let sql = "select exists (select from pg_catalog.pg_publication_rel r where r.prpubid = p.oid and r.prrelid = c.oid), \
               pg_has_role(c.relowner, 'USAGE') and pg_has_role(p.pubowner, 'USAGE'), \
               pg_get_userbyid(c.relowner)::text, pg_get_userbyid(p.pubowner)::text \
               from pg_catalog.pg_publication p, pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
               where p.pubname = $1 and n.nspname = 'realtime' and c.relname = 'messages' and c.relkind in ('r', 'p')";
    let failed = PgError::query("cannot look for realtime.messages");
    let Some(row) = client.query_opt(sql, &[&MESSAGES_PUBLICATION]).await.map_err(failed)? else { return Ok(None) };
    let (is_member, may): (bool, bool) = (row.get(0), row.get(1));
    if is_member {
        return Ok(None);
    }
    let (table, publication): (String, String) = (row.get(2), row.get(3));
    let sql = format!("alter publication {MESSAGES_PUBLICATION} add table realtime.messages;");
    if !may {
        let why = format!("it takes an owner of the table ({table}) and of the publication ({publication})");
        return Ok(Some((sql, why)));
    }
    // Not in one transaction with anything else: it waits for a lock.
    let added = client.batch_execute(&format!("begin; set local lock_timeout = '5s'; {sql} commit")).await;
    let Err(error) = added else { return Ok(None) };
    let why = server_text(&error);
    let _ = client.batch_execute("rollback").await;
    if error.code() == Some(&SqlState::DUPLICATE_OBJECT) {
        // Somebody else did at the same moment.
        return Ok(None);
    }
    Ok(Some((sql, why.trim_start_matches(": ").to_owned())))
}

async fn apply(client: &mut Client, wanted: fn(&Migration) -> bool) -> Result<Report, MigrateError> {
    let mut report = Report::default();
    for migration in MIGRATIONS.iter().filter(|migration| wanted(migration)) {
        let transaction = begin(client).await?;
        let checksum = checksum(&transaction, migration.up).await?;
        match applied_checksum(&transaction, migration).await? {
            // What may be left out may also have been removed by hand; `up` makes it again.
            Some(ours) if ours == checksum && done(&transaction, migration).await? => continue,
            Some(ours) if ours == checksum => {}
            Some(_) => return Err(MigrateError::Changed { version: migration.version, name: migration.name }),
            None => {}
        }
        let failed =
            |source| MigrateError::Step { version: migration.version, name: migration.name, direction: "up", source };
        transaction.batch_execute(migration.up).await.map_err(failed)?;
        if !done(&transaction, migration).await? {
            // Not recorded, and rolled back with the transaction.
            report.left_out.push((migration.version, migration.name));
            continue;
        }
        let version = db_version(migration);
        let sql = "insert into rowcast.migrations (version, name, checksum) values ($1, $2, $3) on conflict do nothing";
        transaction.execute(sql, &[&version, &migration.name, &checksum]).await.map_err(failed)?;
        // Rows of this transaction only: `now()` is its start, and `made_at` defaults to it.
        let sql = "select kind || ' ' || identity || case when detail = '' then '' else ' to ' || detail end \
                   from rowcast.installed where migration = $1 and made_at = now() order by id";
        let made = transaction.query(sql, &[&version]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        report.steps.push((migration.version, migration.name));
        report.made.extend(made.iter().map(|row| row.get::<_, String>(0)));
    }
    Ok(report)
}

/// Whether a step that can be left out has done its work; the others have if they did not fail.
async fn done(transaction: &Transaction<'_>, migration: &Migration) -> Result<bool, MigrateError> {
    let Some(sql) = migration.done else { return Ok(true) };
    let row =
        transaction.query_one(sql, &[]).await.map_err(PgError::query("cannot look at what the migration made"))?;
    Ok(row.get(0))
}

async fn revert(transaction: &Transaction<'_>, migration: &Migration, report: &mut Report) -> Result<(), MigrateError> {
    let failed =
        |source| MigrateError::Step { version: migration.version, name: migration.name, direction: "down", source };
    transaction.batch_execute(migration.down).await.map_err(failed)?;
    if has_journal(transaction).await? {
        let version = db_version(migration);
        transaction.execute("delete from rowcast.migrations where version = $1", &[&version]).await.map_err(failed)?;
        let sql = "select kind || ' ' || identity || ': ' || kept_because from rowcast.installed \
                   where migration = $1 and kept_because is not null order by id";
        let kept = transaction.query(sql, &[&version]).await.map_err(failed)?;
        report.kept.extend(kept.iter().map(|row| row.get::<_, String>(0)));
    } else {
        let sql = "select 1 from pg_catalog.pg_namespace where nspname = 'rowcast'";
        if !transaction.query(sql, &[]).await.map_err(failed)?.is_empty() {
            report.kept.push("schema rowcast: it holds objects that Rowcast did not make".into());
        }
    }
    Ok(())
}

/// A transaction that holds the migration lock, with the settings the scripts rely on.
async fn begin(client: &mut Client) -> Result<Transaction<'_>, MigrateError> {
    let transaction = client.transaction().await.map_err(PgError::query("cannot begin a transaction"))?;
    let settings = "set local search_path = pg_catalog, pg_temp; set local lock_timeout = '60s'; \
                    set local statement_timeout = '120s'; set local check_function_bodies = on";
    transaction.batch_execute(settings).await.map_err(PgError::query("cannot prepare the migration"))?;
    let lock = "select pg_catalog.pg_advisory_xact_lock($1)";
    transaction.execute(lock, &[&LOCK]).await.map_err(PgError::query("cannot get the migration lock"))?;
    Ok(transaction)
}

fn db_version(migration: &Migration) -> i32 {
    i32::try_from(migration.version).unwrap_or(i32::MAX)
}

/// The server computes it, so that the crate needs no hash of its own for this.
async fn checksum<C: tokio_postgres::GenericClient>(client: &C, script: &str) -> Result<String, MigrateError> {
    let sql = "select encode(sha256(convert_to($1, 'UTF8')), 'hex')";
    let row = client.query_one(sql, &[&script]).await.map_err(PgError::query("cannot compute a checksum"))?;
    Ok(row.get(0))
}

async fn has_journal<C: tokio_postgres::GenericClient>(client: &C) -> Result<bool, MigrateError> {
    let sql = "select exists (select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
               where n.nspname = 'rowcast' and c.relname = 'migrations')";
    let row = client.query_one(sql, &[]).await.map_err(PgError::query("cannot look for schema rowcast"))?;
    Ok(row.get(0))
}

async fn applied_checksum(
    transaction: &Transaction<'_>,
    migration: &Migration,
) -> Result<Option<String>, MigrateError> {
    if !has_journal(transaction).await? {
        return Ok(None);
    }
    let sql = "select checksum from rowcast.migrations where version = $1";
    let row = transaction
        .query_opt(sql, &[&db_version(migration)])
        .await
        .map_err(PgError::query("cannot read rowcast.migrations"))?;
    Ok(row.map(|row| row.get(0)))
}

/// A newer Rowcast's objects may rest on ours: don't pull them away from under it.
async fn refuse_unknown(client: &Client) -> Result<(), MigrateError> {
    if !has_journal(client).await? {
        return Ok(());
    }
    let known: Vec<i32> = MIGRATIONS.iter().map(db_version).collect();
    let sql = "select version, name from rowcast.migrations where version <> all ($1) order by version desc limit 1";
    let row = client.query_opt(sql, &[&known]).await.map_err(PgError::query("cannot read rowcast.migrations"))?;
    match row {
        Some(row) => Err(MigrateError::Newer { version: row.get(0), name: row.get(1) }),
        None => Ok(()),
    }
}

/// Our slots in this database; an error if a relay reads one.
async fn own_slots(client: &Client) -> Result<Vec<String>, MigrateError> {
    if !has_journal(client).await? {
        return Ok(Vec::new());
    }
    let sql = "select slot_name::text, active from pg_catalog.pg_replication_slots \
               join rowcast.lineage on slot_name = slot where database = current_database()";
    let rows = client.query(sql, &[]).await.map_err(PgError::query("cannot read the replication slots"))?;
    let mut slots = Vec::new();
    for row in rows {
        let slot: String = row.get(0);
        if row.get(1) {
            return Err(MigrateError::SlotActive { slot });
        }
        slots.push(slot);
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_numbered_from_one_without_holes() {
        let versions: Vec<u32> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        let expected: Vec<u32> = (1..=u32::try_from(MIGRATIONS.len()).expect("few")).collect();
        assert_eq!(versions, expected);
    }

    #[test]
    fn every_script_says_who_may_run_it_what_it_locks_and_how_to_undo_it() {
        for migration in MIGRATIONS {
            for script in [migration.up, migration.down] {
                for header in ["-- Who may run it:", "-- Locks:", "-- Undo:"] {
                    assert!(script.contains(header), "{} lacks {header:?}", migration.name);
                }
                assert!(!script.to_lowercase().contains(" cascade;"), "{} uses CASCADE", migration.name);
            }
        }
    }
}
