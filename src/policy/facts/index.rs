//! Rows of a fact table by some of their columns.
//!
//! Rows with equal values in the index's columns are a chain; its first row stands in a hash table. A row costs eight bytes, and
//! a distinct key some five to ten. An index holds every row that either side of the running transaction sees.

use super::probe::Probe;
use super::symbols::Symbol;

/// A row's number in its table.
pub(in crate::policy) type Row = u32;

const NONE: Row = Row::MAX;

#[derive(Clone, Copy)]
struct Link {
    next: Row,
    before: Row,
}

/// One index.
pub(super) struct Index {
    /// Ascending.
    columns: Box<[u16]>,
    heads: Probe,
    links: Vec<Link>,
}

/// The cells of all rows, row by row.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    pub(super) cells: &'a [Symbol],
    pub(super) width: usize,
}

impl<'a> Cells<'a> {
    pub(super) fn row(self, row: Row) -> &'a [Symbol] {
        let start = row as usize * self.width;
        &self.cells[start..start + self.width]
    }
}

fn hash(symbols: impl Iterator<Item = Symbol>) -> u64 {
    // Symbols are our own numbers: nobody outside can choose them.
    symbols.fold(0x51_7c_c1_b7_27_22_0a_95, |hash, symbol| {
        let mixed = (hash ^ u64::from(symbol)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ (mixed >> 29)
    })
}

impl Index {
    /// An empty one over these columns, which ascend.
    pub(super) fn new(columns: &[u16]) -> Index {
        Index { columns: columns.into(), heads: Probe::default(), links: Vec::new() }
    }

    pub(super) fn columns(&self) -> &[u16] {
        &self.columns
    }

    fn hash_of(&self, cells: Cells<'_>, row: Row) -> u64 {
        let row = cells.row(row);
        hash(self.columns.iter().map(|column| row[usize::from(*column)]))
    }

    /// The rows whose columns have these values, in the index's order of columns.
    pub(super) fn rows(&self, cells: Cells<'_>, key: &[Symbol]) -> Chain<'_> {
        let first = self.heads.find(hash(key.iter().copied()), |row| self.is(cells, row, key));
        Chain { links: &self.links, next: first.unwrap_or(NONE) }
    }

    /// Whether the row's columns have these values.
    pub(super) fn is(&self, cells: Cells<'_>, row: Row, key: &[Symbol]) -> bool {
        let row = cells.row(row);
        self.columns.iter().zip(key).all(|(column, symbol)| row[usize::from(*column)] == *symbol)
    }

    /// Adds a row whose cells are there already.
    pub(super) fn add(&mut self, cells: Cells<'_>, row: Row) {
        let at = row as usize;
        if self.links.len() <= at {
            super::grow_to(&mut self.links, at + 1);
            self.links.resize(at + 1, Link { next: NONE, before: NONE });
        }
        let own = cells.row(row);
        let same = |other: Row| {
            let other = cells.row(other);
            self.columns.iter().all(|column| own[usize::from(*column)] == other[usize::from(*column)])
        };
        let row_hash = self.hash_of(cells, row);
        let head = self.heads.find(row_hash, same);
        self.links[at] = match head {
            // Second in the chain: the head stays where it is.
            Some(head) => {
                let next = std::mem::replace(&mut self.links[head as usize].next, row);
                if next != NONE {
                    self.links[next as usize].before = row;
                }
                Link { next, before: head }
            }
            None => Link { next: NONE, before: NONE },
        };
        if head.is_none() {
            let columns = &self.columns;
            let hash_of = |row: Row| {
                let row = cells.row(row);
                hash(columns.iter().map(|column| row[usize::from(*column)]))
            };
            self.heads.insert(row_hash, row, hash_of);
        }
    }

    /// Takes a row out whose cells are still there.
    pub(super) fn remove(&mut self, cells: Cells<'_>, row: Row) {
        let Link { next, before } = self.links[row as usize];
        if next != NONE {
            self.links[next as usize].before = before;
        }
        if before != NONE {
            self.links[before as usize].next = next;
            return;
        }
        let row_hash = self.hash_of(cells, row);
        if next != NONE {
            self.heads.replace(row_hash, row, next);
            return;
        }
        let columns = &self.columns;
        let hash_of = |row: Row| {
            let row = cells.row(row);
            hash(columns.iter().map(|column| row[usize::from(*column)]))
        };
        self.heads.remove(row_hash, |head| head == row, hash_of);
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.heads.bytes() + self.links.capacity() * size_of::<Link>()
    }
}

/// The rows of one key.
pub(in crate::policy) struct Chain<'a> {
    links: &'a [Link],
    next: Row,
}

impl Iterator for Chain<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        if self.next == NONE {
            return None;
        }
        let row = self.next;
        self.next = self.links[row as usize].next;
        Some(row)
    }
}
