//! A transaction's changes of a fact table, applied to its rows or kept until they are loaded.
//!
//! Whatever contradicts the rows (a change of a row that is not there, a key that is there already, a column that went away) is
//! an error and never a guess: the table is then loaded again.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::layout::{FactKey, Layout};
use super::symbols::{NULL, Symbol};
use super::table::{Store, UNKNOWN_LEAF};
use crate::catalog::Snapshot;
use crate::change::{Change, OldRow, Relation, ReplicaIdentity, Tuple, Value};

type Cells = SmallVec<[Symbol; 8]>;

/// Where a relation's tuples have the columns of a layout.
pub(super) struct Mapping {
    pub(super) relation: Arc<Relation>,
    /// The partition; `None` for a relation that stands for all of them.
    leaf: Option<u16>,
    places: Box<[u16]>,
}

impl Mapping {
    /// An error if the relation is not as the layout has it.
    pub(super) fn new(layout: &Layout, relation: &Arc<Relation>) -> Result<Mapping, String> {
        let mut places = Vec::with_capacity(layout.columns.len());
        for (at, (column, type_oid)) in layout.columns.iter().zip(&layout.types).enumerate() {
            let name = &column.name;
            let place = relation.column(name).ok_or_else(|| format!("column {name} is not in the stream"))?;
            let sent = &relation.columns[place];
            if sent.type_oid != *type_oid {
                return Err(format!("column {name} has another type in the stream"));
            }
            // Otherwise the column may change and the stream would not say what it was.
            if matches!(layout.key, FactKey::Columns(n) if at < n) && !sent.key {
                return Err(format!("column {name} is no longer in the replica identity"));
            }
            places.push(place as u16);
        }
        if layout.key == FactKey::Whole && relation.identity != ReplicaIdentity::Full {
            return Err("its replica identity is no longer full".to_owned());
        }
        Ok(Mapping { relation: relation.clone(), leaf: layout.leaf(relation.oid), places: places.into() })
    }

    /// The change in the layout's columns.
    pub(super) fn step<'a>(&'a self, change: &'a Change) -> Step<'a> {
        let image = |tuple: &'a Tuple| Image { tuple, places: Some(&self.places) };
        let op = match change {
            Change::Insert { new } => Op::Insert(image(new)),
            Change::Update { new, old } => Op::Update(image(new), old.as_ref().map(|old| image(old.tuple()))),
            Change::Delete { old: OldRow::Full(old) | OldRow::KeyOnly(old) } => Op::Delete(image(old)),
        };
        Step { leaf: self.leaf, op }
    }

    pub(super) fn truncate(&self) -> Step<'static> {
        Step { leaf: self.leaf, op: Op::Truncate }
    }
}

/// A tuple of which only the layout's columns count.
#[derive(Clone, Copy)]
struct Image<'a> {
    tuple: &'a Tuple,
    /// `None`: it has those and no others.
    places: Option<&'a [u16]>,
}

impl<'a> Image<'a> {
    fn get(&self, column: usize) -> Value<'a> {
        self.tuple.get(self.places.map_or(column, |places| usize::from(places[column])))
    }
}

enum Op<'a> {
    Insert(Image<'a>),
    Update(Image<'a>, Option<Image<'a>>),
    Delete(Image<'a>),
    Truncate,
}

/// One change of one fact table.
pub(super) struct Step<'a> {
    leaf: Option<u16>,
    op: Op<'a>,
}

impl Step<'_> {
    /// Applies it.
    pub(super) fn apply(&self, store: &mut Store) -> Result<(), String> {
        let leaf = self.leaf.unwrap_or(UNKNOWN_LEAF);
        match &self.op {
            Op::Truncate => store.truncate(self.leaf),
            Op::Insert(new) => {
                let row = taken(store, new, None)?;
                store.add(&row, leaf, false)
            }
            Op::Delete(old) => {
                let version = current(store, old, leaf)?;
                store.subtract(version, leaf);
                Ok(())
            }
            Op::Update(new, old) => {
                if old.is_none() && store.layout.key == FactKey::Whole {
                    return Err("an update came without its old row".to_owned());
                }
                let version = current(store, old.as_ref().unwrap_or(new), leaf)?;
                let was: Cells = store.row(version).into();
                let row = taken(store, new, Some(&was))?;
                if row == was {
                    // Nothing that is kept of it has changed.
                    store.release(&row);
                    return Ok(());
                }
                store.subtract(version, leaf);
                store.add(&row, leaf, false)
            }
        }
    }

    fn encode(&self, layout: &Layout, log: &mut Vec<u8>) {
        let columns = 0..layout.columns.len();
        let mut write = |tag: u8, images: &[&Image<'_>]| {
            log.push(tag);
            log.extend_from_slice(&self.leaf.unwrap_or(UNKNOWN_LEAF).to_le_bytes());
            for image in images {
                Tuple::encode(columns.clone().map(|column| image.get(column)), log);
            }
        };
        match &self.op {
            Op::Insert(new) => write(b'I', &[new]),
            Op::Update(new, None) => write(b'N', &[new]),
            Op::Update(new, Some(old)) => write(b'U', &[new, old]),
            Op::Delete(old) => write(b'D', &[old]),
            Op::Truncate => write(b'T', &[]),
        }
    }
}

/// The symbols of a new row, held for it. Values that were not sent are those of the row as it was.
fn taken(store: &mut Store, image: &Image<'_>, was: Option<&[Symbol]>) -> Result<Cells, String> {
    let mut row = Cells::new();
    for column in 0..store.layout.columns.len() {
        let symbol = match (image.get(column), was) {
            (Value::Null, _) => Ok(NULL),
            (Value::Text(text), _) => store.take(column, Some(text)).ok_or("is not as its type prints it"),
            (Value::Unchanged, Some(was)) => Ok(store.share(was[column])),
            (Value::Unchanged, None) => Err("was not sent with a new row"),
        };
        match symbol {
            Ok(symbol) => row.push(symbol),
            Err(why) => {
                store.release(&row);
                return Err(format!("column {} {why}", store.layout.columns[column].name));
            }
        }
    }
    Ok(row)
}

/// The row that is there now and that the image identifies.
fn current(store: &Store, image: &Image<'_>, leaf: u16) -> Result<u32, String> {
    let mut key = Cells::new();
    for column in 0..store.layout.key_columns() {
        let symbol = match image.get(column) {
            Value::Null => Some(NULL),
            Value::Text(text) => store.known(column, text),
            Value::Unchanged => return Err("a change came without the key of its row".to_owned()),
        };
        key.push(symbol.ok_or_else(missing)?);
    }
    store.current(&key, leaf).ok_or_else(missing)
}

fn missing() -> String {
    "a row was changed that is not there".to_owned()
}

/// The changes of a table while it is being loaded, by transaction id.
pub(super) struct Recorder {
    log: Vec<u8>,
    transactions: Vec<Recorded>,
    pub(super) rows: u64,
}

struct Recorded {
    xid: u32,
    /// Where its changes end in the log.
    end: usize,
    /// They can't be kept; why. No harm if the snapshot sees the transaction.
    misfit: Option<String>,
}

impl Recorder {
    pub(super) fn new() -> Recorder {
        Recorder { log: Vec::new(), transactions: Vec::new(), rows: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.log.capacity() + self.transactions.capacity() * size_of::<Recorded>()
    }

    fn of(&mut self, xid: u32) -> &mut Recorded {
        let end = self.log.len();
        if self.transactions.last().is_none_or(|last| last.xid != xid) {
            self.transactions.push(Recorded { xid, end, misfit: None });
        }
        let last = self.transactions.len() - 1;
        &mut self.transactions[last]
    }

    pub(super) fn record(&mut self, layout: &Layout, xid: u32, step: &Step<'_>) {
        self.of(xid);
        step.encode(layout, &mut self.log);
        let end = self.log.len();
        self.of(xid).end = end;
        self.rows += 1;
    }

    pub(super) fn misfit(&mut self, xid: u32, why: String) {
        self.of(xid).misfit = Some(why);
    }

    /// Applies what the snapshot of the loaded rows does not have.
    pub(super) fn replay(self, store: &mut Store, snapshot: &Snapshot) -> Result<(), String> {
        let log = Bytes::from(self.log);
        let mut start = 0;
        for Recorded { xid, end, misfit } in self.transactions {
            let changes = log.slice(start..end);
            start = end;
            if snapshot.sees(xid) {
                continue;
            }
            if let Some(why) = misfit {
                return Err(why);
            }
            replay(store, &changes)?;
            store.end();
        }
        Ok(())
    }
}

fn replay(store: &mut Store, log: &Bytes) -> Result<(), String> {
    let mut at = 0;
    while let Some([tag, low, high]) = log.get(at..at + 3) {
        at += 3;
        let leaf = Some(u16::from_le_bytes([*low, *high])).filter(|leaf| *leaf != UNKNOWN_LEAF);
        let mut tuple = || Tuple::parse(log, &mut at).map_err(|error| error.to_string());
        let new = if *tag == b'T' { None } else { Some(tuple()?) };
        let old = if *tag == b'U' { Some(tuple()?) } else { None };
        let image = |tuple| Image { tuple, places: None };
        let op = match (tag, &new) {
            (b'I', Some(new)) => Op::Insert(image(new)),
            (b'D', Some(old)) => Op::Delete(image(old)),
            (_, Some(new)) => Op::Update(image(new), old.as_ref().map(image)),
            (_, None) => Op::Truncate,
        };
        Step { leaf, op }.apply(store)?;
    }
    Ok(())
}
