//! One round of care for the partitions of `realtime.messages`: days ahead are made, days that are over are dropped.
//!
//! Invariants:
//! * One change a transaction, each under the advisory lock [`LOCK`], so relays take turns; each gives up a lock after
//!   [`SETTINGS`]' `lock_timeout`, so that writers wait behind us for that long at most, and is tried again.
//! * A day whose rows wait in the default partition gets its partition by moving them into it *before* it is attached: then it is
//!   a table of its own, in no publication, and what is written into it is in no stream. Nothing is broadcast twice.
//! * Dropped is only a partition of one UTC day with the name such a one has, and, unless told otherwise, only of a table that
//!   Rowcast made.
//!
//! What is locked: making a day takes SHARE UPDATE EXCLUSIVE on the table (reads and writes go on) and ACCESS EXCLUSIVE on the
//! default partition, which is read through; dropping one takes ACCESS EXCLUSIVE on the table for the moment of the drop.
//!
//! Rejected: `DETACH … CONCURRENTLY` before the drop, which Postgres refuses where there is a default partition. `CREATE TABLE …
//! PARTITION OF`, which takes ACCESS EXCLUSIVE on the table, and fails if the default partition has rows of that day. A mark of
//! a replication origin on moved rows, which most logins may not set, and which other readers of the stream don't know.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use crate::error::{Fault, Remedy};
use crate::pg::PgError;

/// Who cares for the partitions takes this; migration 9 does too.
const LOCK: i64 = 8_245_085_352_413_884_275;
/// Of each transaction.
const SETTINGS: &str = "set local search_path = pg_catalog, pg_temp; set local row_security = off; \
    set local lock_timeout = '500ms'; set local statement_timeout = '30s'; set local timezone = 'UTC'";
/// More rows of a day than these stay where they are: moving them would keep writers waiting. They are sent, replayed and
/// removed from the default partition just as well.
const MOST_MOVED: i64 = 10_000;
/// Rows of the default partition deleted in one transaction.
const DELETED_AT_ONCE: i64 = 5_000;
/// How often a change is tried whose lock somebody else has.
const TRIES: u32 = 5;
/// Between two tries; grows.
const PAUSE: Duration = Duration::from_millis(200);

/// Whose partitions are cared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scope {
    /// Everything where Rowcast made the table; where it did not, only days that are missing are made.
    #[default]
    Own,
    /// Everything, whoever made the table.
    All,
    /// Nothing.
    Nothing,
}

/// What a round did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tended {
    /// There is no such table, or it is not partitioned by the time: nothing to care for.
    pub absent: bool,
    /// Another relay was at it.
    pub busy: bool,
    /// Partitions made, by name.
    pub made: Vec<String>,
    /// Partitions dropped, by name.
    pub dropped: Vec<String>,
    /// Rows moved from the default partition into their day's.
    pub moved: u64,
    /// Rows of the default partition deleted since their time was over.
    pub deleted: u64,
    /// Days left in the default partition, with the reason.
    pub left: Vec<String>,
}

/// Why a round could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The login is no member of the owner.
    #[error("the relay's login {login} may not care for the partitions of realtime.messages, which belongs to {owner}")]
    NotMember {
        /// Ours.
        login: String,
        /// The table's.
        owner: String,
    },
    /// Somebody had the table locked the whole time.
    #[error("the partitions of realtime.messages are locked by others")]
    Locked(#[source] PgError),
    /// Another statement failed.
    #[error(transparent)]
    Pg(#[from] PgError),
}

impl Fault for UpkeepError {
    fn remedy(&self) -> Remedy {
        match self {
            UpkeepError::NotMember { .. } => Remedy::Operator,
            UpkeepError::Locked(_) => Remedy::Retry,
            UpkeepError::Pg(error) => error.remedy(),
        }
    }

    fn advice(&self) -> String {
        match self {
            UpkeepError::NotMember { login, owner } => {
                format!(
                    "As a superuser: grant {owner} to {login}; (or sql/roles.sql -v channels=yes for rowcast_relay). Set ROWCAST_MESSAGES_UPKEEP=off if others care for them."
                )
            }
            UpkeepError::Locked(_) => String::new(),
            UpkeepError::Pg(error) => error.advice(),
        }
    }
}

fn failed(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> UpkeepError {
    move |source| UpkeepError::Pg(PgError::query(what)(source))
}

/// The table as it is found at the start of a round.
struct Table {
    owner: String,
    /// The default partition, quoted, with its schema.
    default: Option<String>,
    ours: bool,
}

/// Brings the partitions into the wanted state: from yesterday to three days ahead; with `scope`, nothing older than `keep`.
pub async fn tend(client: &mut Client, scope: Scope, keep: Duration) -> Result<Tended, UpkeepError> {
    let mut tended = Tended::default();
    let table = if scope == Scope::Nothing { None } else { find(client).await? };
    let Some(table) = table else { return Ok(Tended { absent: true, ..tended }) };
    while let Some(day) = missing(client, &tended).await? {
        match patiently(client, &table, Change::Make(&day)).await? {
            Done::Busy => return Ok(Tended { busy: true, ..tended }),
            Done::Made { moved } => {
                tended.moved += moved;
                tended.made.push(day.name);
            }
            Done::Left(why) => tended.left.push(format!("{}: {why}", day.name)),
            Done::Dropped(_) | Done::Deleted(_) => {}
        }
    }
    if !table.ours && scope != Scope::All {
        return Ok(tended);
    }
    loop {
        match patiently(client, &table, Change::Drop { keep }).await? {
            Done::Busy => return Ok(Tended { busy: true, ..tended }),
            Done::Dropped(Some(name)) => tended.dropped.push(name),
            _ => break,
        }
    }
    while table.default.is_some() {
        match patiently(client, &table, Change::Delete { keep }).await? {
            Done::Busy => return Ok(Tended { busy: true, ..tended }),
            Done::Deleted(rows) if rows > 0 => tended.deleted += rows,
            _ => break,
        }
    }
    Ok(tended)
}

async fn find(client: &Client) -> Result<Option<Table>, UpkeepError> {
    let what = "cannot look at realtime.messages";
    let sql = format!(
        "select r.rolname::text, d.oid::regclass::text, current_user::text, \
                pg_has_role(current_user, c.relowner, {MAY_ACT_AS}), exists (select from pg_catalog.pg_tables where schemaname = 'rowcast' and tablename = 'installed') \
         from pg_catalog.pg_class c \
         join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'realtime' \
         join pg_catalog.pg_partitioned_table p on p.partrelid = c.oid and p.partstrat = 'r' and p.partnatts = 1 \
         join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = p.partattrs[0] and a.attname = 'inserted_at' \
         join pg_catalog.pg_roles r on r.oid = c.relowner \
         left join pg_catalog.pg_class d on d.oid = p.partdefid \
         where c.relname = 'messages'"
    );
    let Some(row) = client.query_opt(&sql, &[]).await.map_err(failed(what))? else { return Ok(None) };
    let (owner, login): (String, String) = (row.get(0), row.get(2));
    if !row.get::<_, bool>(3) {
        return Err(UpkeepError::NotMember { login, owner });
    }
    let mut ours = row.get(4);
    if ours {
        let sql =
            "select exists (select from rowcast.installed where kind = 'table' and identity = 'realtime.messages')";
        ours = client.query_one(sql, &[]).await.map_err(failed(what))?.get(0);
    }
    Ok(Some(Table { owner, default: row.get(1), ours }))
}

/// The right by which a login may assume a role, as SQL.
const MAY_ACT_AS: &str = "case when current_setting('server_version_num')::int >= 160000 then 'SET' else 'MEMBER' end";

/// A day without a partition.
struct Day {
    /// The partition's name, without its schema.
    name: String,
    from: String,
    to: String,
}

/// The partitions with their bounds, as times; the default partition has none.
const PARTITIONS: &str = "select c.relname::text as name, n.nspname::text as schema, c.relowner as owner, \
        coalesce((regexp_match(b.text, 'FROM \\(''([^'']+)''\\)'))[1], '-infinity')::timestamp as lower, \
        coalesce((regexp_match(b.text, 'TO \\(''([^'']+)''\\)'))[1], 'infinity')::timestamp as upper \
    from pg_catalog.pg_inherits i \
    join pg_catalog.pg_class c on c.oid = i.inhrelid \
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
    cross join lateral (select pg_catalog.pg_get_expr(c.relpartbound, c.oid) as text) b \
    join pg_catalog.pg_class root on root.oid = i.inhparent and root.relname = 'messages' \
    join pg_catalog.pg_namespace home on home.oid = root.relnamespace and home.nspname = 'realtime' \
    where b.text <> 'DEFAULT'";

/// The first day of the window that no partition covers and that was not left in this round.
async fn missing(client: &Client, tended: &Tended) -> Result<Option<Day>, UpkeepError> {
    let left: Vec<&str> = tended.left.iter().filter_map(|text| text.split(':').next()).collect();
    let sql = format!(
        "with parts as ({PARTITIONS}), \
              days as (select (now() at time zone 'utc')::date + ahead as day from generate_series(-1, 3) as ahead) \
         select name, to_char(day, 'YYYY-MM-DD'), to_char(day + 1, 'YYYY-MM-DD') from ( \
             select day, 'messages_' || to_char(day, 'YYYY_MM_DD') as name from days \
             where not exists (select from parts where lower < (day + 1)::timestamp and upper > day::timestamp)) missing \
         where name <> all ($1) order by day desc limit 1"
    );
    let row =
        client.query_opt(&sql, &[&left]).await.map_err(failed("cannot read the partitions of realtime.messages"))?;
    Ok(row.map(|row| Day { name: row.get(0), from: row.get(1), to: row.get(2) }))
}

/// One change to the partitions.
#[derive(Clone, Copy)]
enum Change<'a> {
    Make(&'a Day),
    Drop { keep: Duration },
    Delete { keep: Duration },
}

enum Done {
    Busy,
    Made { moved: u64 },
    Left(String),
    Dropped(Option<String>),
    Deleted(u64),
}

/// Tries a change until its locks are free.
async fn patiently(client: &mut Client, table: &Table, change: Change<'_>) -> Result<Done, UpkeepError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match once(client, table, change).await {
            Err(UpkeepError::Pg(error)) if error.sqlstate() == Some(&SqlState::LOCK_NOT_AVAILABLE) => error,
            // Somebody else made or dropped it meanwhile: look again.
            other => return other,
        };
        if tries >= TRIES {
            return Err(UpkeepError::Locked(error));
        }
        tokio::time::sleep(PAUSE * tries).await;
    }
}

async fn once(client: &mut Client, table: &Table, change: Change<'_>) -> Result<Done, UpkeepError> {
    let what = "cannot prepare for the partitions of realtime.messages";
    let transaction = client.transaction().await.map_err(failed(what))?;
    transaction.batch_execute(SETTINGS).await.map_err(failed(what))?;
    let sql = "select pg_try_advisory_xact_lock($1), set_config('role', $2, true)";
    // As the owner, to whom then belongs what is made. What is dropped may be another's.
    let role = if matches!(change, Change::Drop { .. }) { "none" } else { &table.owner };
    let row = transaction.query_one(sql, &[&LOCK, &role]).await.map_err(failed(what))?;
    if !row.get::<_, bool>(0) {
        return Ok(Done::Busy);
    }
    let done = match change {
        Change::Make(day) => make(&transaction, table, day).await?,
        Change::Drop { keep } => drop_oldest(&transaction, keep).await?,
        Change::Delete { keep } => delete(&transaction, table, keep).await?,
    };
    if !matches!(done, Done::Left(_)) {
        transaction.commit().await.map_err(failed("cannot commit a partition of realtime.messages"))?;
    }
    Ok(done)
}

async fn make(transaction: &Transaction<'_>, table: &Table, day: &Day) -> Result<Done, UpkeepError> {
    let what = "cannot make a partition of realtime.messages";
    let Day { name, from, to } = day;
    let sql = "select to_regclass('realtime.' || quote_ident($1)) is not null";
    if transaction.query_one(sql, &[name]).await.map_err(failed(what))?.get(0) {
        return Ok(Done::Left("there is a table of that name which is no partition".into()));
    }
    let new = format!("create table realtime.{name} (like realtime.messages including all)");
    transaction.batch_execute(&new).await.map_err(failed(what))?;
    // Rows are reached by the table alone; default privileges may have given the partition some of its own.
    let close = format!(
        "alter table realtime.{name} enable row level security; \
         do $$ declare role text; begin \
             for role in select rolname from pg_roles where rolname in ('anon', 'authenticated', 'service_role') loop \
                 execute format('revoke all on realtime.{name} from %I', role); \
             end loop; \
             revoke all on realtime.{name} from public; \
         end $$"
    );
    transaction.batch_execute(&close).await.map_err(failed(what))?;
    let mut moved = 0;
    if let Some(default) = &table.default {
        let range = format!("inserted_at >= '{from}' and inserted_at < '{to}'");
        let lock = format!("lock table only {default} in access exclusive mode");
        transaction.batch_execute(&lock).await.map_err(failed(what))?;
        let count = format!("select count(*) from (select from only {default} where {range} limit $1) few");
        let row = transaction.query_one(&count, &[&(MOST_MOVED + 1)]).await.map_err(failed(what))?;
        let count: i64 = row.get(0);
        if count > MOST_MOVED {
            return Ok(Done::Left(format!(
                "its partition can't be made, since {default} has more than {MOST_MOVED} rows of it"
            )));
        }
        if count > 0 {
            let sql = format!(
                "with moved as (delete from only {default} where {range} returning *) \
                 insert into realtime.{name} select * from moved"
            );
            moved = transaction.execute(&sql, &[]).await.map_err(failed(what))?;
        }
    }
    let attach = format!(
        "alter table realtime.messages attach partition realtime.{name} for values from ('{from}') to ('{to}')"
    );
    transaction.batch_execute(&attach).await.map_err(failed(what))?;
    Ok(Done::Made { moved })
}

/// Drops the oldest partition whose day is over for `keep`, but never one that would be made again.
async fn drop_oldest(transaction: &Transaction<'_>, keep: Duration) -> Result<Done, UpkeepError> {
    let what = "cannot drop a partition of realtime.messages";
    let sql = format!(
        "with parts as ({PARTITIONS}) \
         select name, case when pg_has_role(owner, {MAY_ACT_AS}) then pg_get_userbyid(owner)::text else 'none' end from parts \
         where schema = 'realtime' and name ~ '^messages_[0-9]{{4}}_[0-9]{{2}}_[0-9]{{2}}$' \
           and lower > '-infinity' and upper < 'infinity' and upper - lower = interval '1 day' \
           and upper <= (now() at time zone 'utc') - $1::bigint * interval '1 second' \
           and upper <= (now() at time zone 'utc')::date - 1 \
         order by upper limit 1"
    );
    let keep = i64::try_from(keep.as_secs()).unwrap_or(i64::MAX).min(MOST_KEPT);
    let Some(row) = transaction.query_opt(&sql, &[&keep]).await.map_err(failed(what))? else {
        return Ok(Done::Dropped(None));
    };
    let (name, owner): (String, String) = (row.get(0), row.get(1));
    transaction.execute("select set_config('role', $1, true)", &[&owner]).await.map_err(failed(what))?;
    transaction.batch_execute(&format!("drop table realtime.{name}")).await.map_err(failed(what))?;
    Ok(Done::Dropped(Some(name)))
}

/// A thousand years, in seconds.
const MOST_KEPT: i64 = 31_536_000_000;

async fn delete(transaction: &Transaction<'_>, table: &Table, keep: Duration) -> Result<Done, UpkeepError> {
    let Some(default) = &table.default else { return Ok(Done::Deleted(0)) };
    let sql = format!(
        "delete from only {default} where ctid = any (array( \
             select ctid from only {default} \
             where inserted_at < (now() at time zone 'utc') - $1::bigint * interval '1 second' \
             limit $2 for update skip locked))"
    );
    let keep = i64::try_from(keep.as_secs()).unwrap_or(i64::MAX).min(MOST_KEPT);
    let rows = transaction.execute(&sql, &[&keep, &DELETED_AT_ONCE]).await;
    Ok(Done::Deleted(rows.map_err(failed("cannot delete old rows of realtime.messages"))?))
}
