//! The log as its users see it, on the disk in memory unless the real one matters.

mod crashing;
mod damage;
mod forking;
mod reading;
mod times;
mod writing;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::testing::DiscardingFiles;
use super::*;
use crate::change::{
    Body, Item, Relation, RelationColumn, ReplicaIdentity, SpilledBody, Timestamp, Transaction, TransactionBuilder,
    Tuple, Value,
};

const DIR: &str = "/log";

/// Everything a test of the log needs.
struct Bench {
    files: Arc<dyn Files>,
    disk: DiscardingFiles,
    clock: Clock,
    metrics: Arc<Metrics>,
    config: LogConfig,
}

impl Bench {
    /// Small segments; the tail holds everything or nothing.
    fn new(segment_bytes: u64, tail_bytes: usize) -> Bench {
        let disk = DiscardingFiles::new();
        let config = LogConfig { segment_bytes, tail_bytes, ..LogConfig::new(DIR) };
        Bench { files: Arc::new(disk.clone()), disk, clock: Clock::system(), metrics: Arc::new(Metrics::new()), config }
    }

    fn try_open(&self) -> Result<Opened, LogError> {
        open(self.config.clone(), self.files.clone(), self.clock.clone(), self.metrics.clone())
    }

    fn open(&self) -> Opened {
        self.try_open().expect("open")
    }

    /// Open, with an epoch that starts at 0.
    fn begin(&self) -> Opened {
        let mut opened = self.open();
        opened.writer.begin_epoch(epoch(1), Lsn(0)).expect("begin");
        opened
    }

    /// Paths of the segments, oldest first.
    fn segments(&self) -> Vec<PathBuf> {
        let names = self.disk.names(Path::new(DIR));
        let mut paths: Vec<_> = names.iter().filter(|n| segment::parse_name(n).is_some()).collect();
        paths.sort();
        paths.into_iter().map(|n| Path::new(DIR).join(n)).collect()
    }
}

fn epoch(incarnation: u128) -> Epoch {
    Epoch { system_identifier: 42, incarnation }
}

fn relation(oid: u32, columns: usize) -> Arc<Relation> {
    let column = |i| RelationColumn { name: format!("c{i}"), type_oid: 25, type_modifier: -1, key: i == 0 };
    Arc::new(Relation {
        oid,
        schema: "public".into(),
        table: format!("t{oid}"),
        identity: ReplicaIdentity::Full,
        columns: (0..columns).map(column).collect(),
    })
}

/// A transaction that inserts one row with this text and ends at `end`.
fn insert(end: u64, text: &[u8]) -> Arc<Transaction> {
    let mut raw = vec![b'N'];
    Tuple::encode([Value::Text(text)].into_iter(), &mut raw);
    let mut builder = TransactionBuilder::default();
    builder.row(b'I', &relation(1, 1), &Bytes::from(raw)).expect("row");
    Arc::new(builder.finish(end as u32, Lsn(end - 1), Lsn(end), Timestamp(end as i64 * 1000), None))
}

/// One item of a generated transaction: kind, relation, values.
#[derive(Debug, Clone)]
struct Made {
    kind: u8,
    relation: u32,
    text: Vec<u8>,
}

fn made() -> impl Strategy<Value = Vec<Made>> {
    let text = proptest::collection::vec(any::<u8>(), 0..120);
    let item = (0u8..8, 1u32..5, text).prop_map(|(kind, relation, text)| Made { kind, relation, text });
    proptest::collection::vec(item, 0..6)
}

/// The transaction of these items. Relation shapes alternate with `end`, so that definitions come and go.
fn transaction(end: u64, items: &[Made]) -> Arc<Transaction> {
    let mut builder = TransactionBuilder::default();
    for Made { kind, relation: oid, text } in items {
        let relation = relation(*oid, 2 + (end / 100 % 3) as usize);
        let values = [Value::Text(text), Value::Null, Value::Unchanged];
        let mut row = |tag: u8, kinds: &[u8]| {
            let mut raw = Vec::new();
            for kind in kinds {
                raw.push(*kind);
                Tuple::encode(values.into_iter(), &mut raw);
            }
            builder.row(tag, &relation, &Bytes::from(raw)).expect("row");
        };
        match kind {
            0 => row(b'I', b"N"),
            1 => row(b'U', b"N"),
            2 => row(b'U', b"KN"),
            3 => row(b'U', b"ON"),
            4 => row(b'D', b"K"),
            5 => row(b'D', b"O"),
            6 => builder.truncate(3, &[relation.clone(), self::relation(99, 1)]).expect("truncate"),
            _ => builder.message(Lsn(end), b"prefix", text).expect("message"),
        }
    }
    let origin = end.is_multiple_of(3).then(|| "rowcast_retention".into());
    if end.is_multiple_of(2) {
        builder.rules_changed();
    }
    let made = builder.finish(end as u32, Lsn(end - 1), Lsn(end), Timestamp(-(end as i64)), None);
    Arc::new(Transaction { origin, ..made })
}

fn items(transaction: &Transaction) -> Vec<Item> {
    transaction.iter().collect::<Result<_, _>>().expect("items")
}

/// Asserts that nothing of a transaction changed.
fn assert_same(read: &Transaction, appended: &Transaction) {
    let header =
        |t: &Transaction| (t.xid, t.commit_lsn, t.end_lsn, t.commit_time, t.origin.clone(), t.rules_changed, t.items);
    assert_eq!(header(read), header(appended));
    assert_eq!(read.relations, appended.relations);
    assert_eq!(items(read), items(appended));
}

/// A spill file, in memory; may claim to be longer than it is.
struct Spill {
    bytes: Bytes,
    length: u64,
}

impl SpilledBody for Spill {
    fn open(&self) -> io::Result<Box<dyn io::Read + Send>> {
        Ok(Box::new(io::Cursor::new(self.bytes.clone())))
    }
    fn len(&self) -> u64 {
        self.length
    }
}

/// The same transaction with its body spilled.
fn spilled(transaction: &Transaction) -> Arc<Transaction> {
    let Body::Memory(bytes) = &transaction.body else { panic!("spilled twice") };
    let body = Body::Spilled(Arc::new(Spill { bytes: bytes.clone(), length: bytes.len() as u64 }));
    Arc::new(Transaction { body, ..transaction.clone() })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// Everything from the reader's position to the end of the log. No read may take longer than ten seconds.
async fn rest(reader: &mut Reader) -> Result<Vec<Read>, LogError> {
    let mut reads = Vec::new();
    let deadline = Duration::from_secs(10);
    while let Some(read) = tokio::time::timeout(deadline, reader.try_next()).await.expect("a read hangs")? {
        reads.push(read);
    }
    Ok(reads)
}

async fn next(reader: &mut Reader) -> Read {
    tokio::time::timeout(Duration::from_secs(10), reader.next()).await.expect("a read hangs").expect("read")
}

/// The transactions among the reads; a gap is a failure.
fn transactions(reads: Vec<Read>) -> Vec<Arc<Transaction>> {
    let transaction = |read| match read {
        Read::Transaction(transaction) => Some(transaction),
        Read::Idle(_) => None,
        Read::Gap { from, resumed } => panic!("a gap from {from} to {resumed}"),
    };
    reads.into_iter().filter_map(transaction).collect()
}

/// All transactions the log holds, read from its floor.
fn all(log: &Log) -> Vec<Arc<Transaction>> {
    transactions(runtime().block_on(rest(&mut log.reader(log.floor()))).expect("read"))
}

fn ends(transactions: &[Arc<Transaction>]) -> Vec<u64> {
    transactions.iter().map(|t| t.end_lsn.0).collect()
}
