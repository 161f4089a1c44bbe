//! What makes the stream carry a fact table's changes: its place in our publication, and nobody left who began to write before.
//!
//! Invariants:
//! * A table is added only if no writer and no slot can suffer from it, looked at under the lock that `ALTER PUBLICATION` takes, in
//!   its transaction: without a replica identity every UPDATE would fail at the writer, and a column list elsewhere in the stream
//!   would make the slot unreadable for good (0A000).
//! * [`Writers::at_work`] sees everybody who may have written before the publication had the table, or whose commit is in the stream
//!   but not visible yet (a hanging synchronous standby): both still hold their locks.
//!
//! Rejected: adding tables by the catalog as last read. It may be a second old, and the damage stays.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::catalog::Table;
use crate::error::{Fault, Remedy};
use crate::pg::{Lent, PgError, Pool};

/// `ALTER PUBLICATION` waits this long for other DDL on the table, and makes nobody wait but DDL. Longer than
/// `deadlock_timeout` usually is, after which an autovacuum gives way.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a table was not added.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The server refused, or the connection broke.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// It would do harm.
    #[error("{0}")]
    Unfit(String),
}

impl Fault for PublishError {
    fn remedy(&self) -> Remedy {
        match self {
            PublishError::Pg(error) => error.remedy(),
            PublishError::Unfit(_) => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            PublishError::Pg(error) => error.advice(),
            PublishError::Unfit(_) => String::new(),
        }
    }
}

/// A name as SQL wants it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The statement that adds the table to the publication. Tables that inherit from it in the old way are not meant.
pub fn statement(publication: &str, table: &Table) -> String {
    let (schema, name) = (quoted(&table.schema), quoted(&table.name));
    let only = if table.is_partitioned { "" } else { "only " };
    format!("alter publication {} add table {only}{schema}.{name}", quoted(publication))
}

/// What the table, its partitions and the tables above it look like to the transaction that just added it. One row: it is still
/// the table of this name; the name of a partition whose UPDATEs would fail; whether a publication of the stream has a column list;
/// whether an identity of all columns has one that is not published.
const CHECK: &str = "with below as (select $1::oid as oid union select t.relid::oid from pg_partition_tree($1::oid::regclass) t), \
    family as (select oid from below union select a.relid::oid from pg_partition_ancestors($1::oid::regclass) a), \
    leaf as (select c.oid, c.relname, c.relreplident, c.relpersistence from pg_class c join below using (oid) where c.relkind <> 'p') \
    select coalesce(to_regclass($2::text)::oid = $1, false), \
      (select min(leaf.relname::text) from leaf where leaf.relpersistence = 'p' and not (leaf.relreplident = 'f' or exists ( \
         select from pg_index i where i.indrelid = leaf.oid and i.indisvalid and i.indimmediate \
           and case leaf.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident else false end))), \
      exists (select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid join family on family.oid = r.prrelid \
         where p.pubname = any($3::text[]) and to_jsonb(r) ->> 'prattrs' is not null), \
      current_setting('server_version_num')::int4 >= 180000 and exists (select from leaf \
         join pg_attribute a on a.attrelid = leaf.oid where leaf.relreplident = 'f' and a.attgenerated <> '' and not a.attisdropped)";

/// Adds the table to the publication, unless that would do harm. `stream` is every publication that the stream reads.
pub async fn add(pool: &Pool, publication: &str, stream: &[String], table: &Table) -> Result<(), PublishError> {
    let mut lent = Lent(Some(pool.get().await?));
    let Some(client) = lent.0.as_mut() else { return Ok(()) };
    let transaction = client.transaction().await.map_err(PgError::query("cannot begin"))?;
    let timeout = LOCK_TIMEOUT.as_millis();
    let alter = statement(publication, table);
    let altered = transaction
        .batch_execute(&format!("set local search_path = ''; set local lock_timeout = {timeout}; {alter}"))
        .await;
    if altered.as_ref().is_err_and(|error| error.code() == Some(&SqlState::DUPLICATE_OBJECT)) {
        // Somebody else has just done it; the next reading of the catalog tells whether as it should be.
        transaction.rollback().await.map_err(PgError::query("cannot end the transaction"))?;
        drop(lent.0.take());
        return Ok(());
    }
    altered.map_err(PgError::query("cannot add the table to the publication of facts"))?;
    let name = format!("{}.{}", quoted(&table.schema), quoted(&table.name));
    let row = transaction.query_one(CHECK, &[&table.oid, &name, &stream]).await;
    let row = row.map_err(PgError::query("cannot look at the table that was added"))?;
    let failed = PgError::query("cannot understand the table that was added");
    let looked = (|| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)))();
    let (same, without, listed, generated): (bool, Option<String>, bool, bool) = looked.map_err(failed)?;
    let unfit = if !same {
        Some("it has just got another name".to_owned())
    } else if let Some(name) = without {
        Some(format!("{name} has no replica identity, so every UPDATE and DELETE of it would fail"))
    } else if listed {
        Some("a publication of the stream has a column list for it, and the slot could not be read any more".to_owned())
    } else {
        generated.then(|| "its identity is FULL and has a generated column, so every UPDATE would fail".to_owned())
    };
    if let Some(unfit) = unfit {
        transaction.rollback().await.map_err(PgError::query("cannot take the table out again"))?;
        drop(lent.0.take());
        return Err(PublishError::Unfit(unfit));
    }
    transaction.commit().await.map_err(PgError::query("cannot commit the table's place in the publication"))?;
    drop(lent.0.take());
    Ok(())
}

/// Who may have written to a table unseen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writers(Vec<(String, Option<i32>)>);

const AT_WORK: &str = "select distinct l.virtualtransaction::text, l.pid from pg_catalog.pg_locks l \
    where l.locktype = 'relation' and l.granted and l.relation = any($1::oid[]) \
      and l.database = (select oid from pg_catalog.pg_database where datname = current_database()) \
      and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
      and l.pid is distinct from pg_catalog.pg_backend_pid() order by 1";

impl Writers {
    /// Those who have a lock for writing on one of these tables now.
    pub async fn at_work(pool: &Pool, tables: &[u32]) -> Result<Writers, PgError> {
        let mut lent = Lent(Some(pool.get().await?));
        let Some(client) = lent.0.as_ref() else { return Ok(Writers::default()) };
        let rows = client.query(AT_WORK, &[&tables]).await.map_err(PgError::query("cannot look at locks"))?;
        drop(lent.0.take());
        let writer = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
        let writers: Result<Vec<_>, tokio_postgres::Error> = rows.iter().map(writer).collect();
        Ok(Writers(writers.map_err(PgError::query("cannot understand the locks"))?))
    }

    /// Of these, those who are still there.
    pub fn still(self, now: &Writers) -> Writers {
        Writers(self.0.into_iter().filter(|writer| now.0.contains(writer)).collect())
    }

    /// Nobody is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Waits until everybody who is at work on these tables now has finished; who begins later is not waited for. `report` is told
/// of those who are left, and since when they are waited for. After the deadline it returns them.
pub async fn wait_for_writers(
    pool: &Pool,
    tables: &[u32],
    deadline: Duration,
    mut report: impl FnMut(&Writers, Duration),
) -> Result<Writers, PgError> {
    let (started, mut pause) = (tokio::time::Instant::now(), FIRST_PAUSE);
    let mut left = Writers::at_work(pool, tables).await?;
    while !left.is_empty() && started.elapsed() < deadline {
        report(&left, started.elapsed());
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        left = left.still(&Writers::at_work(pool, tables).await?);
    }
    Ok(left)
}

impl std::fmt::Display for Writers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (transaction, pid)) in self.0.iter().enumerate() {
            let separator = if i > 0 { ", " } else { "" };
            match pid {
                Some(pid) => write!(f, "{separator}process {pid}")?,
                None => write!(f, "{separator}prepared transaction {transaction}")?,
            }
        }
        Ok(())
    }
}
