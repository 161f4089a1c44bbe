//! The rows that a user may see now: a real SELECT, run by Postgres in the user's role and with his claims.
//!
//! ```text
//! Selection (table, columns, filter, order, limit) ──► Taker: BEGIN, snapshot, SET ROLE + claims, SELECT ──► Shown
//! ```
//!
//! Why a permit made here is sound, though no evaluator of ours has seen the rows: Postgres itself applied row-level security,
//! grants and the filter, as the role, with `row_security = on`. What can go wrong is asked for explicitly: the transaction is
//! read-only and new, the role and claims were set in it before the SELECT, an error anywhere makes no permit at all, and the
//! permit shows no more columns than the catalog says that the role may select: those that were selected. Beside what Postgres
//! would show, this holds back what the live feed never sends: tables that [`super::obstacle`] bars, rows that the publication
//! holds back, columns that it does not send.
//!
//! All selections of one [`Taker::take`] are of one snapshot, whose `pg_current_snapshot()` says which transactions they show,
//! and whose place in the WAL bounds where these can be.
//!
//! Rejected: judging rows read as a superuser in memory (a table scan of ours for each join), and a cursor for each row (a
//! snapshot has no order of commits).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::image::{fields, quote_ident};
use super::permit::{ColumnMask, DenyReason, Permit};
use super::plan::Options;
use crate::catalog::{self, Catalog, Table};
use crate::change::{Lsn, Relation, RelationColumn, Timestamp, Tuple, Value};
use crate::claims::Principal;
use crate::filter::{AskedTerm, TextOf, parameter_type};
use crate::metrics::Metrics;
use crate::pg::{ASSUME, Lent, Pool};

/// Bounds of snapshots.
#[derive(Debug, Clone)]
pub struct SnapshotConfig {
    /// Connections for them, and so snapshots being read at once. 4.
    pub connections: usize,
    /// Most rows of one entry. 1,000.
    pub max_rows: u32,
    /// Most bytes of one channel's snapshots, as text. 8 MiB.
    pub max_bytes: usize,
    /// Most bytes of all snapshots that were read and not sent yet. 64 MiB.
    pub max_held: usize,
    /// For one SELECT. 5 s.
    pub statement_timeout: Duration,
    /// For the whole, waiting for its turn included. 15 s.
    pub deadline: Duration,
}

impl Default for SnapshotConfig {
    fn default() -> SnapshotConfig {
        SnapshotConfig {
            connections: 4,
            max_rows: 1000,
            max_bytes: 8 << 20,
            max_held: 64 << 20,
            statement_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(15),
        }
    }
}

/// Why there is no snapshot. The text is safe for the client, and says what he can do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The live feed would not send its rows either.
    #[error("{BARRED}")]
    Barred(DenyReason),
    /// A column of `order` that is not there, or that the role may not select.
    #[error("invalid column for order {0}")]
    Order(String),
    /// More than the bound.
    #[error("the limit must be 1 to {0}")]
    Limit(u32),
    /// Postgres refused.
    #[error("the database refused it (SQLSTATE {0})")]
    Refused(String),
    /// It took too long.
    #[error("it takes the database longer than {0:?}; use a narrower filter, or an order that an index has")]
    Timeout(Duration),
    /// Too large.
    #[error("it has more than {0} bytes; ask for fewer rows, or select columns")]
    TooLarge(usize),
    /// No turn in time.
    #[error("the database is busy with others' snapshots")]
    Busy,
    /// No connection, or it broke, or the table was changed meanwhile.
    #[error("the database could not be asked")]
    Unavailable,
}

/// How a refusal ends for want of rights.
pub const BARRED: &str = "the role may not read the table, or the table has no primary key that it may read";

impl SnapshotError {
    /// Whether the same snapshot may be had a moment later.
    pub fn may_pass(&self) -> bool {
        matches!(self, SnapshotError::Busy | SnapshotError::Unavailable)
    }

    /// The metric's label.
    pub fn as_str(&self) -> &'static str {
        match self {
            SnapshotError::Barred(_) | SnapshotError::Order(_) | SnapshotError::Limit(_) => "refused",
            SnapshotError::Refused(_) => "refused",
            SnapshotError::Timeout(_) => "timeout",
            SnapshotError::TooLarge(_) => "too_large",
            SnapshotError::Busy => "busy",
            SnapshotError::Unavailable => "unavailable",
        }
    }
}

/// What is to be selected of one table for one role.
#[derive(Debug, Clone)]
pub struct Selection {
    relation: Arc<Relation>,
    sql: String,
    /// Types and texts of the parameters.
    literals: Vec<(u32, Box<str>)>,
    /// Index in the relation of each selected column.
    columns: Vec<usize>,
    limit: usize,
    /// The first of the order is the newest.
    reversed: bool,
}

/// What an entry asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// See [`crate::filter::Validator::conditions`].
    pub filter: &'a [Arc<AskedTerm>],
    /// Names of the columns to be shown; `None` for all.
    pub select: Option<&'a BTreeSet<String>>,
    /// At most so many rows: the first by the order.
    pub limit: u32,
    /// Columns, and whether descending. Empty: by the primary key, descending.
    pub order: &'a [(String, bool)],
}

impl Selection {
    /// For a role, as the rules are now. The rows are the first `limit` by the order, given with the last of a descending order
    /// first, so that what grows with time comes oldest first. The primary key decides between equals.
    pub fn new(
        catalog: &Catalog,
        table: &Table,
        role: &str,
        options: Options,
        asked: Asked<'_>,
    ) -> Result<Selection, SnapshotError> {
        if let Some(reason) = super::obstacle(catalog, table, role, options) {
            return Err(SnapshotError::Barred(reason));
        }
        let no_grant = SnapshotError::Barred(DenyReason::NoGrant);
        let access = table.access.get(role).ok_or(no_grant)?;
        let readable = |name: &str| table.column(name).is_some_and(|c| access.columns.contains(&c.number));
        if let Some((name, _)) = asked.order.iter().find(|(name, _)| !readable(name)) {
            return Err(SnapshotError::Order(name.clone()));
        }
        let relation = relation(table);
        let wanted = |name: &str| readable(name) && asked.select.is_none_or(|select| select.contains(name));
        let columns: Vec<usize> = (0..relation.columns.len()).filter(|i| wanted(&relation.columns[*i].name)).collect();
        if columns.is_empty() {
            return Err(SnapshotError::Barred(DenyReason::NoGrant));
        }
        let shown = columns.iter().map(|i| format!("t.{}", quote_ident(&relation.columns[*i].name)));
        let shown = shown.collect::<Vec<_>>().join(", ");
        let mut literals = Vec::new();
        let mut conditions = Vec::new();
        for term in asked.filter {
            if let Some((oid, text)) = term.literal() {
                literals.push((oid, text.into()));
            }
            conditions.push(term.condition(&format!("t.{}", quote_ident(term.column())), literals.len()));
        }
        let sent = table.published.as_ref().and_then(|published| published.sent_rows.as_ref());
        conditions.extend(sent.map(|filter| format!("({filter}\n)")));
        let conditions = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") };
        let reversed = asked.order.first().is_none_or(|(_, descending)| *descending);
        let keys = table.primary_key.iter().map(|name| (name, reversed));
        let order = asked.order.iter().map(|(name, descending)| (name, *descending)).chain(keys);
        let order =
            order.map(|(name, descending)| format!("t.{}{}", quote_ident(name), if descending { " desc" } else { "" }));
        let order = order.collect::<Vec<_>>().join(", ");
        // The rows of tables that inherit from it come under their own names.
        let only = if table.is_partitioned { "" } else { "only " };
        let (schema, name) = (quote_ident(&table.schema), quote_ident(&table.name));
        let limit = asked.limit as usize;
        let sql = format!(
            "select row({shown})::pg_catalog.text from {only}{schema}.{name} as t where {conditions} \
             order by {order} limit {}",
            limit + 1
        );
        Ok(Selection { relation: Arc::new(relation), sql, literals, columns, limit, reversed })
    }

    /// The table as its rows come.
    pub fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }
}

/// The table as the stream describes it.
fn relation(table: &Table) -> Relation {
    let column = |column: &catalog::Column| RelationColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        key: table.identity_columns.contains(&column.name),
    };
    Relation {
        oid: table.oid,
        schema: table.schema.clone(),
        table: table.name.clone(),
        identity: table.identity,
        columns: table.columns.iter().filter(|column| table.is_sent(column)).map(column).collect(),
    }
}

/// What a selection gave.
#[derive(Debug)]
pub struct Shown {
    /// The table.
    pub relation: Arc<Relation>,
    /// For every one of `rows`.
    pub permit: Permit,
    /// Oldest first.
    pub rows: Vec<Tuple>,
    /// There are more that the limit left out.
    pub more: bool,
}

/// Selections of one snapshot.
#[derive(Debug)]
pub struct Taken {
    /// Which transactions they show.
    pub sees: catalog::Snapshot,
    /// Every transaction that they show ended at or before this.
    pub until: Lsn,
    /// When, by the database's clock.
    pub at: Timestamp,
    /// In the order of the selections.
    pub shown: Vec<Shown>,
    /// Their place in the bound of what is held; free again when dropped.
    pub held: OwnedSemaphorePermit,
}

/// Where everybody's snapshots wait for each other.
type Line = tokio::sync::Mutex<()>;
/// Lines that may be there before those that nobody waits in are cleared away.
const MANY_LINES: usize = 256;
/// Held bytes are counted in these.
const UNIT: usize = 1024;

/// Takes snapshots. Everybody has one at a time, so that others wait for one of his and not for all.
pub struct Taker {
    pool: Pool,
    config: SnapshotConfig,
    metrics: Arc<Metrics>,
    turns: Semaphore,
    held: Arc<Semaphore>,
    lines: Mutex<HashMap<Box<str>, Weak<Line>>>,
}

impl Taker {
    /// Over a pool ([`crate::pg::PgConfig::asking_pool`]) whose login may `SET ROLE` to the token roles.
    pub fn new(pool: Pool, config: SnapshotConfig, metrics: Arc<Metrics>) -> Taker {
        let (turns, held) = (Semaphore::new(config.connections), Semaphore::new(config.max_held / UNIT));
        Taker { pool, config, metrics, turns, held: Arc::new(held), lines: Mutex::default() }
    }

    /// Its bounds.
    pub fn config(&self) -> &SnapshotConfig {
        &self.config
    }

    /// Selects for a principal. `owner`: on whose behalf, for fairness alone. Takes at most the deadline.
    pub async fn take(
        &self,
        owner: &str,
        principal: &Principal,
        selections: &[Selection],
    ) -> Result<Taken, SnapshotError> {
        let started = Instant::now();
        let taken = tokio::time::timeout(self.config.deadline, self.in_turn(owner, principal, selections)).await;
        let taken = taken.unwrap_or(Err(SnapshotError::Busy));
        self.metrics.snapshot.observe(started.elapsed().as_secs_f64());
        let result = taken.as_ref().map_or_else(SnapshotError::as_str, |_| "taken");
        self.metrics.snapshots.get_or_create(&[("result", result)]).inc();
        taken
    }

    async fn in_turn(
        &self,
        owner: &str,
        principal: &Principal,
        selections: &[Selection],
    ) -> Result<Taken, SnapshotError> {
        let line = self.line(owner);
        let _first = line.lock().await;
        // What is read must have a place before it is read.
        let most = self.config.max_bytes.div_ceil(UNIT) as u32;
        let mut held = self.held.clone().acquire_many_owned(most).await.map_err(|_| SnapshotError::Unavailable)?;
        let _turn = self.turns.acquire().await.map_err(|_| SnapshotError::Unavailable)?;
        let object = self.pool.get().await.map_err(|error| {
            tracing::debug!(error = %crate::error::chain(&error), "no connection for a snapshot");
            SnapshotError::Unavailable
        })?;
        let mut lent = Lent(Some(object));
        let Some(client) = lent.0.as_ref() else { return Err(SnapshotError::Unavailable) };
        let (sees, until, at) = self.begin(client).await?;
        assume(client, principal).await?;
        let mut shown = Vec::with_capacity(selections.len());
        let mut bytes = 0;
        for selection in selections {
            shown.push(self.select(client, selection, &mut bytes).await?);
        }
        // A rollback resets the role and the claims; without it the connection is not used again.
        client.batch_execute("rollback").await.map_err(|error| self.failed(&error))?;
        drop(lent.0.take());
        let used = (bytes.div_ceil(UNIT)).min(most as usize);
        drop(held.split(most as usize - used));
        Ok(Taken { sees, until, at, shown, held })
    }

    fn line(&self, owner: &str) -> Arc<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(owner).and_then(Weak::upgrade) {
            return line;
        }
        if lines.len() >= MANY_LINES {
            lines.retain(|_, line| line.strong_count() > 0);
        }
        let line = Arc::new(Line::default());
        lines.insert(owner.into(), Arc::downgrade(&line));
        line
    }

    /// Begins the transaction, whose snapshot is that of its first query.
    async fn begin(&self, client: &Client) -> Result<(catalog::Snapshot, Lsn, Timestamp), SnapshotError> {
        let timeout = self.config.statement_timeout.as_millis().max(1);
        // The place in the WAL is looked at after the snapshot was taken: what that shows was written before.
        let begin = format!(
            "begin isolation level repeatable read read only; set local statement_timeout = {timeout}; \
             set local search_path = ''; set local row_security = on; set local plan_cache_mode = force_custom_plan; \
             select pg_catalog.pg_current_snapshot()::pg_catalog.text, pg_catalog.pg_current_wal_insert_lsn(), \
             (pg_catalog.date_part('epoch', pg_catalog.now()) * 1000000)::pg_catalog.int8, \
             pg_catalog.now() operator(pg_catalog.=) pg_catalog.statement_timestamp()"
        );
        let messages = client.simple_query(&begin).await.map_err(|error| self.failed(&error))?;
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        // It is a new transaction, in which no other statement has run.
        let row = row.filter(|row| row.get(3) == Some("t")).ok_or(SnapshotError::Unavailable)?;
        let parsed = || {
            let sees = catalog::Snapshot::parse(row.get(0)?).ok()?;
            let micros: i64 = row.get(2)?.parse().ok()?;
            let at = Timestamp(micros.saturating_sub(Timestamp::UNIX_OFFSET_MICROS));
            Some((sees, row.get(1)?.parse().ok()?, at))
        };
        parsed().ok_or(SnapshotError::Unavailable)
    }

    async fn select(&self, client: &Client, selection: &Selection, bytes: &mut usize) -> Result<Shown, SnapshotError> {
        let Selection { relation, sql, literals, columns, limit, reversed } = selection;
        let literals: Vec<(TextOf<'_>, Type)> =
            literals.iter().map(|(oid, text)| (TextOf(text.as_bytes()), parameter_type(*oid))).collect();
        let literals = literals.iter().map(|(text, of)| (text as &(dyn ToSql + Sync), of.clone()));
        let failed = |error| self.failed(&error);
        let found = client.query_typed_raw(sql, literals).await.map_err(failed)?;
        let mut found = std::pin::pin!(found);
        let mut rows = Vec::new();
        let mut more = false;
        while let Some(row) = found.try_next().await.map_err(failed)? {
            let Record(text) = row.try_get(0).map_err(failed)?;
            if rows.len() == *limit {
                more = true;
                continue;
            }
            *bytes += text.len() + size_of::<Tuple>();
            if *bytes > self.config.max_bytes {
                return Err(SnapshotError::TooLarge(self.config.max_bytes));
            }
            rows.push(tuple(text, relation, columns).ok_or(SnapshotError::Unavailable)?);
        }
        if *reversed {
            rows.reverse();
        }
        self.metrics.snapshot_rows.inc_by(rows.len() as u64);
        let mask: ColumnMask = columns.iter().copied().collect();
        Ok(Shown { relation: relation.clone(), permit: Permit::grant(mask, ColumnMask::none()), rows, more })
    }

    fn failed(&self, error: &tokio_postgres::Error) -> SnapshotError {
        let Some(state) = error.code() else { return SnapshotError::Unavailable };
        // The SQLSTATE alone: messages quote values.
        tracing::debug!(sqlstate = state.code(), "a snapshot could not be taken");
        match (&state.code()[..2], state.code()) {
            (_, "42501") => SnapshotError::Barred(DenyReason::NoGrant),
            (_, "57014") => SnapshotError::Timeout(self.config.statement_timeout),
            // DDL came between the reading of the catalog and this.
            (_, "42703" | "42P01" | "42704") => SnapshotError::Unavailable,
            // A function that writes, which in an ordinary SELECT would work.
            (_, "25006") => SnapshotError::Refused(state.code().into()),
            ("08" | "25" | "26" | "40" | "53" | "55" | "57" | "58" | "72" | "F0", _) => SnapshotError::Unavailable,
            _ => SnapshotError::Refused(state.code().into()),
        }
    }
}

async fn assume(client: &Client, principal: &Principal) -> Result<(), SnapshotError> {
    // A NUL can't be in a setting. The JSON has it escaped, and what reads it there raises.
    let subject = if principal.subject.contains('\0') { "" } else { &*principal.subject };
    let settings: [&str; 3] = [&principal.claims_json, subject, &principal.role];
    let settings = settings.each_ref().map(|text| (text as &(dyn ToSql + Sync), Type::TEXT));
    match client.query_typed(ASSUME, &settings).await {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::debug!(error = %crate::error::chain(&error), "cannot become the role that a snapshot is for");
            let refused = |state: &tokio_postgres::error::SqlState| SnapshotError::Refused(state.code().into());
            Err(error.code().map_or(SnapshotError::Unavailable, refused))
        }
    }
}

/// A row as text, in whatever encoding it is.
struct Record<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Record<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Record<'a>, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Record(raw))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TEXT
    }
}

/// A row of the relation with these columns; the others are absent.
fn tuple(text: &[u8], relation: &Relation, columns: &[usize]) -> Option<Tuple> {
    let fields = fields(text).filter(|fields| fields.len() == columns.len())?;
    let mut values = vec![Value::Unchanged; relation.columns.len()];
    for (column, field) in columns.iter().zip(&fields) {
        values[*column] = field.as_deref().map_or(Value::Null, Value::Text);
    }
    Some(Tuple::from_values(values.into_iter()))
}
