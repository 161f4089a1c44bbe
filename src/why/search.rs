//! Finding the changes of a row in the log, newest first, within bounds of time and bytes.
//!
//! The log is read forwards and has no index, so it is looked through in windows from its end, each four times the last.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::clock::time;
use crate::catalog::Table;
use crate::change::{Change, Item, Lsn, Position, Relation, RowChange, Timestamp, Transaction, Tuple, Value};
use crate::log::{Log, LogError, Read};
use crate::pgtype::{self, Types, canonical};

/// Changes that are explained.
pub(super) const MOST: usize = 5;
/// For one search.
const LONGEST: Duration = Duration::from_secs(15);
/// Bytes of transactions read in one search.
const MOST_BYTES: u64 = 4 << 30;
const FIRST_WINDOW: u64 = 16 << 20;
/// A larger body is gone through on a thread of its own.
const LARGE: u64 = 64 << 10;

/// Which changes are wanted.
#[derive(Clone)]
pub(super) struct Wanted {
    /// `None`: of any table.
    pub(super) table: Option<TableName>,
    /// Columns of the key and their texts; empty: any row.
    pub(super) key: Vec<(String, String)>,
    /// The place in the transaction.
    pub(super) ordinal: Option<u32>,
}

#[derive(Clone)]
pub(super) struct TableName {
    pub(super) oid: Option<u32>,
    pub(super) schema: String,
    pub(super) name: String,
}

/// A change with what its transaction says of it.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) row: Arc<RowChange>,
    pub(super) commit_time: Timestamp,
    pub(super) retention: bool,
}

/// What came of a search.
#[derive(Default)]
pub(super) struct Searched {
    /// Oldest first, at most [`MOST`]: the newest.
    pub(super) found: Vec<Found>,
    /// Everything that was to be searched was.
    pub(super) complete: bool,
    /// In words.
    pub(super) text: String,
}

impl Found {
    pub(super) fn millis(&self) -> i64 {
        self.commit_time.unix_micros().div_euclid(1000)
    }
}

impl Wanted {
    fn is_table(&self, relation: &Relation) -> bool {
        self.table.as_ref().is_none_or(|table| match table.oid {
            Some(oid) => relation.oid == oid,
            None => relation.schema == table.schema && relation.table == table.name,
        })
    }

    fn is_row(&self, row: &RowChange, types: &Types) -> bool {
        let with = |tuple: &Tuple| {
            self.key.iter().all(|(name, wanted)| {
                let Some(column) = row.relation.column(name) else { return false };
                let Value::Text(text) = tuple.get(column) else { return false };
                same(types, row.relation.columns[column].type_oid, text, wanted)
            })
        };
        let matches = self.key.is_empty()
            || match &row.change {
                Change::Insert { new } => with(new),
                Change::Update { new, old } => with(new) || old.as_ref().is_some_and(|old| with(old.tuple())),
                Change::Delete { old } => with(old.tuple()),
            };
        matches && self.is_table(&row.relation) && self.ordinal.is_none_or(|ordinal| ordinal == row.position.ordinal)
    }

    fn of(&self, transaction: &Transaction, types: &Types) -> Vec<Found> {
        let (commit_time, retention) = (transaction.commit_time, transaction.is_retention());
        let rows = transaction.iter().filter_map(|item| match item {
            Ok(Item::Row(row)) if self.is_row(&row, types) => Some(row),
            _ => None,
        });
        rows.map(|row| Found { row: Arc::new(row), commit_time, retention }).collect()
    }
}

/// Whether a text in the stream is the value that was asked for.
fn same(types: &Types, type_oid: u32, text: &[u8], wanted: &str) -> bool {
    let base = types.base_of(type_oid);
    if text == wanted.as_bytes() {
        return true;
    }
    if base == pgtype::oid::UUID {
        return text.eq_ignore_ascii_case(wanted.as_bytes());
    }
    let Some(equality) = pgtype::equality(types, type_oid, true) else { return false };
    match (canonical(equality, text), canonical(equality, wanted.as_bytes())) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// The key of the row as it was asked for: values in key order, or `column=value`.
pub(super) fn key(pk: &[String], table: Option<&Table>) -> Result<Vec<(String, String)>, String> {
    let columns: &[String] = table.map_or(&[], |table| &table.primary_key);
    let has = |name: &str| table.is_none_or(|table| table.column(name).is_some());
    let named = |part: &str| {
        let (name, value) = part.split_once('=')?;
        has(name).then(|| (name.to_owned(), value.to_owned()))
    };
    // A value may hold a comma: it is split only if the key has several columns or names are given.
    let parts: Vec<&str> = match pk {
        [one] if columns.len() == 1 && named(one).is_none() => vec![one],
        _ => pk.iter().flat_map(|part| part.split(',')).collect(),
    };
    let by_name: Vec<_> = parts.iter().map(|part| named(part)).collect();
    if !parts.is_empty() && by_name.iter().all(Option::is_some) {
        return Ok(by_name.into_iter().flatten().collect());
    }
    if columns.is_empty() {
        return Err("the table has no primary key that is known here: write --pk column=value".into());
    }
    if parts.len() != columns.len() {
        let (given, wanted) = (parts.len(), columns.len());
        return Err(format!("--pk has {given} values, the primary key has {wanted}: {}", columns.join(", ")));
    }
    Ok(columns.iter().cloned().zip(parts.into_iter().map(str::to_owned)).collect())
}

/// What bounds a search.
struct Budget {
    until: Instant,
    bytes: u64,
    transactions: u64,
}

impl Budget {
    fn is_spent(&self) -> bool {
        Instant::now() >= self.until || self.bytes >= MOST_BYTES
    }
}

/// The rows of one transaction.
pub(super) async fn at(log: &Log, position: Lsn, wanted: &Wanted, types: &Arc<Types>) -> Result<Searched, LogError> {
    let (floor, end) = (log.floor(), log.end());
    let mut searched = Searched { complete: true, ..Searched::default() };
    if position <= floor {
        searched.complete = false;
        searched.text = format!("nothing: the log begins after {floor}; what was before is gone");
        return Ok(searched);
    }
    if position > end {
        searched.complete = false;
        searched.text = format!("nothing: the stream has come to {end}; {position} is not in the log yet");
        return Ok(searched);
    }
    let mut reader = log.reader(Lsn(position.0 - 1));
    if let Some(Read::Transaction(transaction)) = reader.try_next().await?
        && transaction.end_lsn == position
    {
        searched.found = matching(&transaction, wanted, types).await;
        searched.found.truncate(MOST);
        searched.text = format!("the transaction that ends at {position}, of {} changes", transaction.items);
    } else {
        searched.text = format!("the log from {floor} to {end}: no transaction ends at {position}");
    }
    Ok(searched)
}

/// The newest changes of a row. `since`: milliseconds since 1970.
pub(super) async fn newest(
    log: &Log,
    wanted: &Wanted,
    types: &Arc<Types>,
    since: Option<i64>,
) -> Result<Searched, LogError> {
    let (floor, end) = (log.floor(), log.end());
    let mut budget = Budget { until: Instant::now() + LONGEST, bytes: 0, transactions: 0 };
    let mut found: Vec<Found> = Vec::new();
    let (mut high, mut size, mut earliest) = (end, FIRST_WINDOW, None);
    let (mut complete, mut reached) = (false, end);
    while high > floor {
        let low = Lsn(high.0.saturating_sub(size)).max(floor);
        let Some(mut window) = window(log, (low, high), wanted, types, &mut budget).await? else { break };
        reached = low;
        earliest = window.first.or(earliest);
        window.found.append(&mut found);
        found = window.found;
        let left = since.is_some_and(|since| window.first.is_some_and(|first| first < since));
        complete = low == floor || left;
        if complete || found.len() >= MOST {
            break;
        }
        (high, size) = (low, size.saturating_mul(4));
    }
    complete |= high <= floor;
    if let Some(since) = since {
        found.retain(|found| found.millis() >= since);
    }
    let more = found.len() > MOST;
    found.drain(..found.len().saturating_sub(MOST));
    let (transactions, mib) = (budget.transactions, budget.bytes >> 20);
    let from = earliest.map(|first| format!(" (from {})", time(first))).unwrap_or_default();
    let mut text = format!("the log from {reached}{from} to {end}: {transactions} transactions, {mib} MiB");
    if complete && since.is_none() {
        text.push_str("; the log begins there");
    } else if more || found.len() >= MOST {
        text.push_str(&format!("; stopped after the newest {MOST} changes"));
    } else if !complete {
        text.push_str("; stopped there, the time or the bytes of one search are spent: narrow it with --since");
    }
    Ok(Searched { found, complete, text })
}

struct Window {
    found: Vec<Found>,
    /// When its first transaction was committed.
    first: Option<i64>,
}

/// `None` if the budget ended in it.
async fn window(
    log: &Log,
    (low, high): (Lsn, Lsn),
    wanted: &Wanted,
    types: &Arc<Types>,
    budget: &mut Budget,
) -> Result<Option<Window>, LogError> {
    let mut reader = log.reader(low);
    let mut window = Window { found: Vec::new(), first: None };
    while let Some(read) = reader.try_next().await? {
        match read {
            Read::Transaction(transaction) if transaction.end_lsn <= high => {
                budget.transactions += 1;
                budget.bytes += transaction.body.len();
                window.first.get_or_insert(transaction.commit_time.unix_micros().div_euclid(1000));
                if transaction.relations.iter().any(|relation| wanted.is_table(relation)) {
                    window.found.append(&mut matching(&transaction, wanted, types).await);
                }
                if budget.transactions.is_multiple_of(64) {
                    if budget.is_spent() {
                        return Ok(None);
                    }
                    // What is in memory is handed out without a pause.
                    tokio::task::yield_now().await;
                }
            }
            Read::Transaction(_) => break,
            Read::Idle(lsn) if lsn >= high => break,
            // The floor has risen: what is left of the window is above it.
            Read::Idle(_) | Read::Gap { .. } => {}
        }
        if reader.position() >= high {
            break;
        }
    }
    Ok(Some(window))
}

async fn matching(transaction: &Arc<Transaction>, wanted: &Wanted, types: &Arc<Types>) -> Vec<Found> {
    if transaction.body.len() <= LARGE {
        return wanted.of(transaction, types);
    }
    let (transaction, wanted, types) = (transaction.clone(), wanted.clone(), types.clone());
    tokio::task::spawn_blocking(move || wanted.of(&transaction, &types)).await.unwrap_or_default()
}

/// `LSN/ordinal`, `LSN#ordinal` or `LSN`.
pub(super) fn position(text: &str) -> Result<(Lsn, Option<u32>), String> {
    let wrong =
        || format!("--cursor is {text:?}, which is no cursor; a position is written like 16/B374D848/0 or 16/B374D848");
    let slash = || text.match_indices('/').nth(1).map(|(at, _)| text.split_at(at));
    let (lsn, ordinal) = match text.split_once('#').or_else(|| slash().map(|(lsn, rest)| (lsn, &rest[1..]))) {
        Some((lsn, ordinal)) => (lsn, Some(ordinal.parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    Ok((lsn.parse().map_err(|_| wrong())?, ordinal))
}

/// As it is typed and printed.
pub(super) fn shown(position: Position) -> String {
    match position.ordinal {
        u32::MAX => position.lsn.to_string(),
        ordinal => format!("{}/{ordinal}", position.lsn),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_printed() {
        let at = |lsn, ordinal| Ok((Lsn(lsn), ordinal));
        assert_eq!(position("16/B374D848/3"), at(0x16_B374_D848, Some(3)));
        assert_eq!(position("16/B374D848#3"), at(0x16_B374_D848, Some(3)));
        assert_eq!(position("16/B374D848"), at(0x16_B374_D848, None));
        for bad in ["", "x", "1/2/x", "1/2/", "1#2", "1/2/3/4"] {
            assert!(position(bad).is_err(), "{bad}");
        }
        let printed = shown(Position { lsn: Lsn(0x16_B374_D848), ordinal: 3 });
        assert_eq!(position(&printed), at(0x16_B374_D848, Some(3)));
    }

    #[test]
    fn values_are_the_same_if_postgres_says_so() {
        let types = Types::default();
        assert!(same(&types, pgtype::oid::UUID, b"ab", "AB") && !same(&types, pgtype::oid::TEXT, b"ab", "AB"));
        assert!(same(&types, pgtype::oid::NUMERIC, b"1.50", "1.5") && !same(&types, pgtype::oid::INT4, b"1", "2"));
    }
}
