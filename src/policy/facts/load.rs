//! The rows of a fact table, read at one snapshot.
//!
//! Invariants:
//! * The rows are those of the snapshot that comes with them, or there are none: `row_security = off` makes a reader without the
//!   right raise instead of reading zero rows, and a table that was rewritten, renamed or repartitioned between the snapshot and
//!   the reading is refused ([`LoadError::Changed`]), since such changes do not respect snapshots.
//! * Values are read as text under the same settings as the stream's, so that equal values have equal bytes.
//! * Memory is looked at while reading, not afterwards.
//!
//! Rejected: `LOCK TABLE` before the snapshot, which a login with rights on single columns may not do; an exported snapshot of
//! a new slot, which would cost a slot and wait for every transaction of the server.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_postgres::{IsolationLevel, Transaction};

use super::{FactTable, FactsError, Layout, quoted};
use crate::catalog::Snapshot;
use crate::error::{Fault, Remedy};
use crate::pg::{Lent, PgError, Pool};

/// Bounds of one load.
#[derive(Debug, Clone)]
pub struct LoadLimits {
    /// What the table may take in memory.
    pub bytes: usize,
    /// For the whole of it.
    pub deadline: Duration,
}

/// Why the rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The server refused, or the connection broke.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// It took too long.
    #[error("its rows could not be read within {0:?}")]
    Timeout(Duration),
    /// It does not fit into the memory that is left for facts.
    #[error("its rows take more than the {} MiB of memory that are left for facts", .limit >> 20)]
    TooLarge {
        /// Bytes.
        limit: usize,
    },
    /// It was changed by DDL while it was read; the next try sees the result.
    #[error("it was changed by DDL while it was read ({0})")]
    Changed(&'static str),
    /// The server said something that no server says.
    #[error("its rows make no sense: {0}")]
    Malformed(&'static str),
    /// A value is not one of its type.
    #[error(transparent)]
    Facts(FactsError),
}

impl From<FactsError> for LoadError {
    fn from(error: FactsError) -> LoadError {
        match error {
            FactsError::TooLarge { limit, .. } => LoadError::TooLarge { limit },
            other => LoadError::Facts(other),
        }
    }
}

impl LoadError {
    /// A label for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            LoadError::TooLarge { .. } => "too_large",
            LoadError::Changed(_) => "changed",
            LoadError::Timeout(_) => "timeout",
            LoadError::Pg(_) | LoadError::Malformed(_) | LoadError::Facts(_) => "failed",
        }
    }
}

impl Fault for LoadError {
    fn remedy(&self) -> Remedy {
        match self {
            LoadError::Pg(error) => error.remedy(),
            LoadError::Timeout(_) | LoadError::Changed(_) => Remedy::Retry,
            LoadError::TooLarge { .. } => Remedy::Operator,
            LoadError::Malformed(_) | LoadError::Facts(_) => Remedy::Bug,
        }
    }

    fn advice(&self) -> String {
        match self {
            LoadError::Pg(error) if error.sqlstate().is_some_and(|code| code.code() == "42501") => {
                "Let the relay's login select the table's columns, and either own the table or have BYPASSRLS.".into()
            }
            LoadError::Pg(error) => error.advice(),
            LoadError::TooLarge { .. } => "Raise ROWCAST_FACTS_MEMORY, or let Postgres be asked.".into(),
            _ => String::new(),
        }
    }
}

/// Reads the table's rows, and the snapshot they are of. The login must be above the table's row-level security.
pub async fn load(pool: &Pool, layout: &Arc<Layout>, limits: &LoadLimits) -> Result<(FactTable, Snapshot), LoadError> {
    let loading = within(pool, layout, limits);
    tokio::time::timeout(limits.deadline, loading).await.map_err(|_| LoadError::Timeout(limits.deadline))?
}

async fn within(pool: &Pool, layout: &Arc<Layout>, limits: &LoadLimits) -> Result<(FactTable, Snapshot), LoadError> {
    let mut lent = Lent(Some(pool.get().await?));
    let Some(client) = lent.0.as_mut() else { return Err(LoadError::Malformed("no connection")) };
    let start = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start();
    let transaction = start.await.map_err(PgError::query("cannot begin to read a fact table"))?;
    let timeout = limits.deadline.as_millis();
    let settings = format!(
        "set local row_security = off; set local search_path = ''; set local statement_timeout = {timeout}; \
         set local idle_in_transaction_session_timeout = {timeout}"
    );
    transaction.batch_execute(&settings).await.map_err(PgError::query("cannot begin to read a fact table"))?;
    let (snapshot, name, is_partitioned) = place(&transaction, layout).await?;
    let table = copy(&transaction, layout, (&name, is_partitioned), limits.bytes).await?;
    unchanged(&transaction, layout, &name).await?;
    transaction.commit().await.map_err(PgError::query("cannot finish reading a fact table"))?;
    // By a snapshot of its own: a column that was renamed before the reading began would be another one under the old name.
    columns_unchanged(client, layout).await?;
    let returned = lent.0.take();
    drop(returned);
    Ok((table, snapshot))
}

/// The snapshot, the table's quoted name in it, and whether it is partitioned.
async fn place(transaction: &Transaction<'_>, layout: &Layout) -> Result<(Snapshot, String, bool), LoadError> {
    let sql = "select pg_current_snapshot()::text, format('%I.%I', n.nspname, c.relname), c.relkind = 'p' \
               from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1";
    let row = transaction.query_opt(sql, &[&layout.table_oid]).await;
    let row = row.map_err(PgError::query("cannot look up a fact table"))?;
    let row = row.ok_or(LoadError::Changed("it was dropped"))?;
    let malformed = |_| LoadError::Malformed("the answer has another shape");
    let text: String = row.try_get(0).map_err(malformed)?;
    let snapshot = Snapshot::parse(&text).map_err(|_| LoadError::Malformed("the snapshot can't be read"))?;
    Ok((snapshot, row.try_get(1).map_err(malformed)?, row.try_get(2).map_err(malformed)?))
}

async fn copy(
    transaction: &Transaction<'_>,
    layout: &Arc<Layout>,
    (name, is_partitioned): (&str, bool),
    limit: usize,
) -> Result<FactTable, LoadError> {
    let columns: Vec<String> = layout.columns.iter().map(|column| quoted(&column.name)).collect();
    // Tables that inherit in the old way are tables of their own; partitions are not.
    let only = if is_partitioned { "" } else { "only " };
    // A login with rights on single columns may not select `tableoid`.
    let (leaf, tableoid) = match layout.leaves[..] {
        [leaf] => (Some(leaf), ""),
        _ => (None, "tableoid, "),
    };
    let sql = format!("copy (select {tableoid}{} from {only}{name}) to stdout", columns.join(", "));
    let stream = transaction.copy_out(&sql).await.map_err(PgError::query("cannot read a fact table"))?;
    tokio::pin!(stream);
    let (mut table, mut rows) = (FactTable::limited(layout.clone(), limit), TextRows::default());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(PgError::query("cannot read a fact table"))?;
        rows.feed(&chunk, &mut |cells| insert(&mut table, cells, leaf))?;
    }
    if table.bytes() > limit {
        return Err(LoadError::TooLarge { limit });
    }
    if !rows.is_at_end() {
        return Err(LoadError::Malformed("the last row has no end"));
    }
    Ok(table)
}

/// `leaf` is the table that all rows are in; `None` if the first cell says it.
fn insert(table: &mut FactTable, cells: &Cells, leaf: Option<u32>) -> Result<(), LoadError> {
    let mut values = cells.iter();
    let leaf = match leaf {
        Some(leaf) => leaf,
        None => {
            let oid = values.next().flatten().and_then(|oid| std::str::from_utf8(oid).ok());
            oid.and_then(|oid| oid.parse().ok()).ok_or(LoadError::Malformed("a row of no table"))?
        }
    };
    Ok(table.insert_into(leaf, values)?)
}

/// The table that was read, now locked against DDL, is the one that the snapshot shows, with the files and partitions that it
/// shows. What functions answer is of now; what tables hold is of the snapshot.
async fn unchanged(transaction: &Transaction<'_>, layout: &Layout, name: &str) -> Result<(), LoadError> {
    let sql = "select coalesce(to_regclass($2::text)::oid = $1, false), \
        coalesce((select array_agg(c.oid order by c.oid) from pg_class c where c.oid = any($3::oid[]) \
            and c.relfilenode is not distinct from pg_relation_filenode(c.oid)), '{}'), \
        coalesce((select array_agg(t.relid::oid order by t.relid::oid) from pg_partition_tree($1::oid::regclass) t where t.isleaf), '{}')";
    let row = transaction.query_one(sql, &[&layout.table_oid, &name, &layout.leaves]).await;
    let row = row.map_err(PgError::query("cannot look at a fact table again"))?;
    let malformed = |_| LoadError::Malformed("the answer has another shape");
    let (same, files, leaves): (bool, Vec<u32>, Vec<u32>) =
        (row.try_get(0).map_err(malformed)?, row.try_get(1).map_err(malformed)?, row.try_get(2).map_err(malformed)?);
    if !same {
        return Err(LoadError::Changed("it has another name"));
    }
    if files != layout.leaves {
        return Err(LoadError::Changed("it was rewritten or truncated"));
    }
    // An ordinary table has no tree.
    if leaves != layout.leaves && !(leaves.is_empty() && layout.leaves == [layout.table_oid]) {
        return Err(LoadError::Changed("it has other partitions"));
    }
    Ok(())
}

async fn columns_unchanged(client: &tokio_postgres::Client, layout: &Layout) -> Result<(), LoadError> {
    let sql = "select count(*) from pg_catalog.pg_attribute a \
        join unnest($2::int2[], $3::text[]) as wanted (number, name) on a.attnum = wanted.number and a.attname = wanted.name \
        where a.attrelid = $1 and not a.attisdropped";
    let numbers: Vec<i16> = layout.columns.iter().map(|column| column.number).collect();
    let names: Vec<&str> = layout.columns.iter().map(|column| column.name.as_str()).collect();
    let row = client.query_one(sql, &[&layout.table_oid, &numbers, &names]).await;
    let row = row.map_err(PgError::query("cannot look at a fact table's columns"))?;
    let same: i64 = row.try_get(0).map_err(|_| LoadError::Malformed("the answer has another shape"))?;
    if usize::try_from(same) != Ok(numbers.len()) {
        return Err(LoadError::Changed("its columns"));
    }
    Ok(())
}

/// The cells of one row.
#[derive(Debug, Default)]
struct Cells {
    text: Vec<u8>,
    /// Where each ends in `text`; NULL or not.
    ends: Vec<(usize, bool)>,
}

impl Cells {
    fn iter(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut start = 0;
        self.ends.iter().map(move |(end, is_null)| {
            let text = &self.text[start..*end];
            start = *end;
            (!is_null).then_some(text)
        })
    }

    /// A line of COPY's text format, without its end. The escapes are those that a server writes; any other is refused.
    fn parse(&mut self, line: &[u8]) -> Result<(), LoadError> {
        self.text.clear();
        self.ends.clear();
        for field in line.split(|byte| *byte == b'\t') {
            let is_null = field == b"\\N";
            if !is_null {
                self.unescape(field)?;
            }
            self.ends.push((self.text.len(), is_null));
        }
        Ok(())
    }

    fn unescape(&mut self, mut field: &[u8]) -> Result<(), LoadError> {
        while let Some(at) = field.iter().position(|byte| *byte == b'\\') {
            self.text.extend_from_slice(&field[..at]);
            self.text.push(match field.get(at + 1) {
                Some(b'b') => 8,
                Some(b't') => b'\t',
                Some(b'n') => b'\n',
                Some(b'v') => 11,
                Some(b'f') => 12,
                Some(b'r') => b'\r',
                Some(b'\\') => b'\\',
                _ => return Err(LoadError::Malformed("an escape that no server writes")),
            });
            field = &field[at + 2..];
        }
        self.text.extend_from_slice(field);
        Ok(())
    }
}

/// Cuts COPY's stream into rows, however the server cut it into messages.
#[derive(Debug, Default)]
struct TextRows {
    /// Of a row whose end has not come yet.
    rest: Vec<u8>,
    cells: Cells,
}

impl TextRows {
    fn feed(
        &mut self,
        mut chunk: &[u8],
        row: &mut dyn FnMut(&Cells) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        // A line feed in a value comes as `\n`, so a bare one always ends a row.
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            if self.rest.is_empty() {
                self.cells.parse(&chunk[..end])?;
            } else {
                self.rest.extend_from_slice(&chunk[..end]);
                self.cells.parse(&self.rest)?;
                self.rest.clear();
            }
            row(&self.cells)?;
            chunk = &chunk[end + 1..];
        }
        self.rest.extend_from_slice(chunk);
        Ok(())
    }

    fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Row = Vec<Option<Vec<u8>>>;

    fn rows(chunks: &[&[u8]]) -> Result<Vec<Row>, LoadError> {
        let (mut rows, mut all) = (TextRows::default(), Vec::new());
        for chunk in chunks {
            rows.feed(chunk, &mut |cells| {
                all.push(cells.iter().map(|cell| cell.map(<[u8]>::to_vec)).collect());
                Ok(())
            })?;
        }
        assert!(rows.is_at_end(), "a row without an end");
        Ok(all)
    }

    /// As `CopyAttributeOutText` of the server does.
    fn written(row: &Row) -> Vec<u8> {
        let mut line = Vec::new();
        for (i, cell) in row.iter().enumerate() {
            if i > 0 {
                line.push(b'\t');
            }
            let Some(text) = cell else {
                line.extend_from_slice(b"\\N");
                continue;
            };
            for byte in text {
                match byte {
                    8 => line.extend_from_slice(b"\\b"),
                    9 => line.extend_from_slice(b"\\t"),
                    10 => line.extend_from_slice(b"\\n"),
                    11 => line.extend_from_slice(b"\\v"),
                    12 => line.extend_from_slice(b"\\f"),
                    13 => line.extend_from_slice(b"\\r"),
                    b'\\' => line.extend_from_slice(b"\\\\"),
                    other => line.push(*other),
                }
            }
        }
        line.push(b'\n');
        line
    }

    #[test]
    fn null_the_empty_text_and_the_text_that_looks_like_null_are_three_things() {
        let read = rows(&[b"\\N\t\t\\\\N\tN\n"]).expect("a row");
        assert_eq!(read, [vec![None, Some(vec![]), Some(b"\\N".to_vec()), Some(b"N".to_vec())]]);
    }

    #[test]
    fn an_escape_that_no_server_writes_is_refused() {
        for bad in [&b"a\\x41\n"[..], b"\\\n", b"a\\Nb\n", b"\\.\n"] {
            assert!(matches!(rows(&[bad]), Err(LoadError::Malformed(_))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_server_writes_is_read_back_however_it_is_cut(
            table in proptest::collection::vec(
                proptest::collection::vec(proptest::option::of(proptest::collection::vec(1u8..=255, 0..6)), 3), 0..6),
            size in 1usize..9,
        ) {
            let text: Vec<u8> = table.iter().flat_map(written).collect();
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            prop_assert_eq!(rows(&chunks).expect("rows"), table);
        }
    }
}
