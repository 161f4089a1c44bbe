//! The rows of one fact table in memory.
//!
//! A row version is a line of symbols with two counts: how often it is there *before* the transaction that is being folded, and
//! *now*. A change of a row ends one version and begins another; a version leaves memory, and the indexes, when both counts are
//! zero. So either side of a transaction is read from the same indexes, and [`Store::end`] visits touched rows only.
//!
//! Rejected: a copy of the table for the other side, and a log of changes to undo.

use std::sync::{Arc, OnceLock};

use super::index::{Cells, Chain, Index, Row};
use super::layout::{FactKey, Layout};
use super::symbols::{NULL, Packed, Symbol, Symbols};
use super::{FactsError, Side};
use crate::pgtype::canonical;
use crate::policy::rule::{Conversion, convertible};

/// Indexes of one table; with more sets of columns, the last are looked up by fewer columns or not at all.
const MOST_INDEXES: usize = 24;
/// Conversions of columns that are watched; with more, rules that use them read the whole table.
const MOST_WATCHES: usize = 8;
/// This count's top bit: the row is in the list of touched rows.
const TOUCHED: u32 = 1 << 31;
/// A row that came without its partition.
pub(super) const UNKNOWN_LEAF: u16 = u16::MAX;

/// How many versions have a value in a column that a conversion would refuse.
pub(super) struct Watch {
    pub(super) column: u16,
    pub(super) conversion: Conversion,
    refused: u64,
}

/// The rows of one fact table.
pub(in crate::policy) struct Store {
    pub(super) layout: Arc<Layout>,
    symbols: Symbols,
    cells: Vec<Symbol>,
    before: Vec<u32>,
    now: Vec<u32>,
    /// The partition of each row, by its place in the layout; empty if there is only one.
    leaf: Vec<u16>,
    free: Vec<Row>,
    touched: Vec<Row>,
    /// Rows now, counted as often as they are there.
    live: u64,
    /// Some row's partition is not known, or may not be what is written here.
    leaves_unsure: bool,
    /// The first is over the columns that identify a row.
    pub(super) indexes: [OnceLock<Index>; MOST_INDEXES],
    pub(super) watches: [OnceLock<Watch>; MOST_WATCHES],
}

impl Store {
    pub(super) fn new(layout: Arc<Layout>) -> Store {
        let identity: Vec<u16> = (0..layout.key_columns() as u16).collect();
        let indexes = [const { OnceLock::new() }; MOST_INDEXES];
        let _ = indexes[0].set(Index::new(&identity));
        Store {
            layout,
            symbols: Symbols::default(),
            cells: Vec::new(),
            before: Vec::new(),
            now: Vec::new(),
            leaf: Vec::new(),
            free: Vec::new(),
            touched: Vec::new(),
            live: 0,
            leaves_unsure: false,
            indexes,
            watches: [const { OnceLock::new() }; MOST_WATCHES],
        }
    }

    // Reading.

    fn view(&self) -> Cells<'_> {
        Cells { cells: &self.cells, width: self.layout.columns.len() }
    }

    /// Rows now.
    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// Versions that either side may see have numbers below this.
    pub(in crate::policy) fn versions(&self) -> Row {
        self.now.len() as Row
    }

    /// Whether the version is there on this side.
    pub(in crate::policy) fn sees(&self, side: Side, row: Row) -> bool {
        match side {
            Side::Before => self.before[row as usize] & !TOUCHED > 0,
            Side::After => self.now[row as usize] > 0,
        }
    }

    /// How often it is there.
    #[cfg(test)]
    pub(super) fn count(&self, side: Side, row: Row) -> u32 {
        match side {
            Side::Before => self.before[row as usize] & !TOUCHED,
            Side::After => self.now[row as usize],
        }
    }

    pub(in crate::policy) fn cell(&self, row: Row, column: u16) -> Symbol {
        self.cells[row as usize * self.layout.columns.len() + usize::from(column)]
    }

    pub(in crate::policy) fn packed(&self, symbol: Symbol) -> &Packed {
        self.symbols.packed(symbol)
    }

    /// See [`Symbols::epoch`].
    pub(in crate::policy) fn epoch(&self) -> u64 {
        self.symbols.epoch()
    }

    pub(in crate::policy) fn find(&self, text: &[u8]) -> Option<Symbol> {
        self.symbols.find(text)
    }

    pub(in crate::policy) fn find_packed(&self, packed: &Packed) -> Option<Symbol> {
        self.symbols.find_packed(packed)
    }

    /// Versions with these values in the columns of an index, whichever side sees them.
    pub(in crate::policy) fn rows(&self, index: usize, key: &[Symbol]) -> Chain<'_> {
        self.index(index).rows(self.view(), key)
    }

    /// Whether a version has these values in the columns of an index.
    pub(in crate::policy) fn has_key(&self, index: usize, row: Row, key: &[Symbol]) -> bool {
        (row as usize) < self.now.len() && self.index(index).is(self.view(), row, key)
    }

    fn index(&self, index: usize) -> &Index {
        match self.indexes[index].get() {
            Some(index) => index,
            None => unreachable!("a binding names an index that was not made"),
        }
    }

    /// The columns of an index.
    pub(super) fn indexed(&self, index: usize) -> &[u16] {
        self.index(index).columns()
    }

    /// Versions that the transaction at hand has touched, some of them perhaps in vain.
    pub(super) fn touched(&self) -> usize {
        self.touched.len()
    }

    /// Those that are there on one of its sides only.
    pub(super) fn changed(&self) -> impl Iterator<Item = Row> {
        self.touched.iter().copied().filter(|row| self.sees(Side::Before, *row) != self.sees(Side::After, *row))
    }

    /// The number of the index over these columns, which ascend; made if it is new. `None` if there are too many already.
    pub(super) fn index_over(&self, columns: &[u16]) -> Option<usize> {
        let build = || {
            let mut index = Index::new(columns);
            for row in (0..self.versions()).filter(|row| self.in_use(*row)) {
                index.add(self.view(), row);
            }
            index
        };
        self.indexes.iter().position(|place| place.get_or_init(build).columns() == columns)
    }

    /// Columns that together identify a row.
    pub(super) fn is_unique(&self, columns: &[u16]) -> bool {
        matches!(self.layout.key, FactKey::Columns(n) if (0..n as u16).all(|column| columns.contains(&column)))
    }

    /// The number of the watch over this conversion of a column; made if it is new. `None` if there are too many already.
    pub(super) fn watch_over(&self, column: u16, conversion: Conversion) -> Option<usize> {
        let build = || {
            let refused = |row: &Row| self.refuses(conversion, self.cell(*row, column));
            let rows = (0..self.versions()).filter(|row| self.in_use(*row));
            Watch { column, conversion, refused: rows.filter(refused).count() as u64 }
        };
        self.watches.iter().position(|place| {
            let watch = place.get_or_init(build);
            watch.column == column && watch.conversion == conversion
        })
    }

    /// Whether some version has a value that a watched conversion would refuse.
    pub(in crate::policy) fn has_refused(&self, watch: usize) -> bool {
        self.watches[watch].get().is_none_or(|watch| watch.refused > 0)
    }

    fn refuses(&self, conversion: Conversion, symbol: Symbol) -> bool {
        symbol != NULL && !convertible(conversion, &self.symbols.packed(symbol).text())
    }

    fn in_use(&self, row: Row) -> bool {
        self.before[row as usize] & !TOUCHED > 0 || self.now[row as usize] > 0
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let numbers = self.cells.capacity()
            + self.before.capacity()
            + self.now.capacity()
            + self.free.capacity()
            + self.touched.capacity();
        let indexes = self.indexes.iter().filter_map(OnceLock::get).map(Index::bytes).sum::<usize>();
        numbers * size_of::<u32>() + self.leaf.capacity() * size_of::<u16>() + self.symbols.bytes() + indexes
    }

    // Writing.

    /// The symbol of a column's text, held once more. `None` if its type does not print that.
    pub(super) fn take(&mut self, column: usize, text: Option<&[u8]>) -> Option<Symbol> {
        let Some(text) = text else { return Some(NULL) };
        let text = canonical(self.layout.columns[column].kind.equality, text)?;
        Some(self.symbols.take(&text))
    }

    /// The symbol of a column's text if any row holds it.
    pub(super) fn known(&self, column: usize, text: &[u8]) -> Option<Symbol> {
        self.symbols.find(&canonical(self.layout.columns[column].kind.equality, text)?)
    }

    /// Holds a symbol once more.
    pub(super) fn share(&mut self, symbol: Symbol) -> Symbol {
        self.symbols.share(symbol)
    }

    /// Gives symbols back that became no row.
    pub(super) fn release(&mut self, symbols: &[Symbol]) {
        for symbol in symbols {
            self.symbols.release(*symbol);
        }
    }

    /// A row that is there now, by the columns that identify it, and by its partition if equal rows may be in several.
    pub(super) fn current(&self, key: &[Symbol], leaf: u16) -> Option<Row> {
        let mut other = None;
        for row in self.rows(0, key).filter(|row| self.now[*row as usize] > 0) {
            if self.layout.key != FactKey::Whole || self.leaf_of(row) == leaf {
                return Some(row);
            }
            if leaf == UNKNOWN_LEAF || self.leaf_of(row) == UNKNOWN_LEAF {
                other = Some(row);
            }
        }
        other
    }

    fn leaf_of(&self, row: Row) -> u16 {
        self.leaf.get(row as usize).copied().unwrap_or(UNKNOWN_LEAF)
    }

    fn has_leaves(&self) -> bool {
        self.layout.leaves.len() > 1
    }

    /// Adds a row whose symbols are held for it. `loaded`: it was there before, too. An error if its key is there already.
    pub(super) fn add(&mut self, row: &[Symbol], leaf: u16, loaded: bool) -> Result<(), String> {
        let key = &row[..self.layout.key_columns()];
        let leaf = if self.has_leaves() { leaf } else { UNKNOWN_LEAF };
        let mut same = None;
        for version in self.rows(0, key) {
            let now = self.now[version as usize] > 0;
            if now && self.layout.key != FactKey::Whole {
                self.release(row);
                return Err("a row came whose key is there already".to_owned());
            }
            if self.leaf_of(version) == leaf && self.view().row(version) == row {
                same = Some(version);
                break;
            }
        }
        self.leaves_unsure |= leaf == UNKNOWN_LEAF;
        self.live += 1;
        let version = match same {
            Some(version) => {
                self.release(row);
                version
            }
            None => self.place(row, leaf),
        };
        self.now[version as usize] += 1;
        match loaded {
            true => self.before[version as usize] += 1,
            false => self.touch(version),
        }
        Ok(())
    }

    /// A new version, in the indexes, with both counts zero.
    fn place(&mut self, row: &[Symbol], leaf: u16) -> Row {
        let version = match self.free.pop() {
            Some(version) => {
                let start = version as usize * row.len();
                self.cells[start..start + row.len()].copy_from_slice(row);
                version
            }
            None => {
                for list in [&mut self.before, &mut self.now] {
                    super::grow(list);
                    list.push(0);
                }
                super::grow_to(&mut self.cells, self.now.len() * row.len());
                self.cells.extend_from_slice(row);
                (self.now.len() - 1) as Row
            }
        };
        if self.has_leaves() {
            super::grow_to(&mut self.leaf, version as usize + 1);
            self.leaf.resize(self.leaf.len().max(version as usize + 1), UNKNOWN_LEAF);
            self.leaf[version as usize] = leaf;
        }
        let cells = Cells { cells: &self.cells, width: row.len() };
        for index in self.indexes.iter_mut().filter_map(OnceLock::get_mut) {
            index.add(cells, version);
        }
        self.count_refused(version, 1);
        version
    }

    fn count_refused(&mut self, version: Row, by: i64) {
        for watch in 0..MOST_WATCHES {
            let Some(Watch { column, conversion, .. }) = self.watches[watch].get() else { break };
            if self.refuses(*conversion, self.cell(version, *column))
                && let Some(watch) = self.watches[watch].get_mut()
            {
                watch.refused = watch.refused.saturating_add_signed(by);
            }
        }
    }

    fn touch(&mut self, version: Row) {
        let before = &mut self.before[version as usize];
        if *before & TOUCHED == 0 {
            *before |= TOUCHED;
            super::grow(&mut self.touched);
            self.touched.push(version);
        }
    }

    /// Takes one occurrence away of a version that is there now.
    pub(super) fn subtract(&mut self, version: Row, leaf: u16) {
        self.leaves_unsure |= self.has_leaves() && self.leaf_of(version) != leaf;
        self.now[version as usize] -= 1;
        self.live -= 1;
        self.touch(version);
        if !self.in_use(version) {
            self.unplace(version);
        }
    }

    /// Frees a version whose counts are zero.
    fn unplace(&mut self, version: Row) {
        let width = self.layout.columns.len();
        let cells = Cells { cells: &self.cells, width };
        for index in self.indexes.iter_mut().filter_map(OnceLock::get_mut) {
            index.remove(cells, version);
        }
        self.count_refused(version, -1);
        for column in 0..width {
            let symbol = self.cells[version as usize * width + column];
            self.symbols.release(symbol);
        }
        super::grow(&mut self.free);
        self.free.push(version);
    }

    /// A copy of a version's cells.
    pub(super) fn row(&self, version: Row) -> &[Symbol] {
        self.view().row(version)
    }

    /// Empties the table, or one partition of it. An error if nobody knows which rows those are.
    pub(super) fn truncate(&mut self, leaf: Option<u16>) -> Result<(), String> {
        let leaf = leaf.filter(|_| self.has_leaves());
        if leaf.is_some() && self.leaves_unsure {
            return Err("a partition was truncated, and it is not known which rows were in it".to_owned());
        }
        for version in 0..self.versions() {
            let gone = self.now[version as usize];
            if gone == 0 || leaf.is_some_and(|leaf| self.leaf_of(version) != leaf) {
                continue;
            }
            self.now[version as usize] = 0;
            self.live -= u64::from(gone);
            self.touch(version);
            if !self.in_use(version) {
                self.unplace(version);
            }
        }
        Ok(())
    }

    /// Before is now.
    pub(super) fn end(&mut self) {
        if self.live == 0 && self.touched.len() > 1000 {
            return self.reset();
        }
        while let Some(version) = self.touched.pop() {
            let at = version as usize;
            let was_there = self.before[at] & !TOUCHED > 0;
            self.before[at] = self.now[at];
            if was_there && self.now[at] == 0 {
                self.unplace(version);
            }
        }
        if self.touched.capacity() > 4096 {
            self.touched = Vec::new();
        }
    }

    /// Empty, with the same indexes and watches: quicker than freeing row by row.
    fn reset(&mut self) {
        let empty = Store::new(self.layout.clone());
        let old = std::mem::replace(self, empty);
        for (place, index) in self.indexes.iter().zip(&old.indexes) {
            if let Some(index) = index.get() {
                let _ = place.set(Index::new(index.columns()));
            }
        }
        for (place, watch) in self.watches.iter().zip(&old.watches) {
            if let Some(Watch { column, conversion, .. }) = watch.get() {
                let _ = place.set(Watch { column: *column, conversion: *conversion, refused: 0 });
            }
        }
    }
}

/// The rows of one fact table, being loaded: away from the hub, which takes it over whole.
pub struct FactTable {
    pub(super) store: Store,
    limit: usize,
    scratch: Vec<Symbol>,
    rows: u64,
}

impl FactTable {
    /// An empty one.
    pub fn new(layout: Arc<Layout>) -> FactTable {
        FactTable::limited(layout, usize::MAX)
    }

    /// An empty one that refuses to grow over so many bytes.
    pub fn limited(layout: Arc<Layout>, bytes: usize) -> FactTable {
        FactTable { store: Store::new(layout), limit: bytes, scratch: Vec::new(), rows: 0 }
    }

    /// Adds a row: its values in the layout's order, as Postgres prints them.
    pub fn insert<'a>(&mut self, values: impl Iterator<Item = Option<&'a [u8]>>) -> Result<(), FactsError> {
        self.insert_at(UNKNOWN_LEAF, values)
    }

    /// Adds a row of one partition. With [`FactTable::insert`] instead, the table has to be loaded again after a TRUNCATE of a
    /// single partition.
    pub fn insert_into<'a>(
        &mut self,
        leaf_oid: u32,
        values: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), FactsError> {
        let leaf = self.store.layout.leaf(leaf_oid);
        self.insert_at(leaf.unwrap_or(UNKNOWN_LEAF), values)
    }

    fn insert_at<'a>(&mut self, leaf: u16, values: impl Iterator<Item = Option<&'a [u8]>>) -> Result<(), FactsError> {
        self.scratch.clear();
        let expected = self.store.layout.columns.len();
        for (column, value) in values.enumerate() {
            if column >= expected {
                return Err(FactsError::Width { expected, found: column + 1 });
            }
            let symbol = self.store.take(column, value);
            let symbol = symbol.ok_or_else(|| FactsError::Text(self.store.layout.columns[column].name.clone()))?;
            self.scratch.push(symbol);
        }
        if self.scratch.len() != expected {
            return Err(FactsError::Width { expected, found: self.scratch.len() });
        }
        self.store.add(&self.scratch, leaf, true).map_err(FactsError::Diverged)?;
        self.rows += 1;
        // Adding up takes longer than adding a row.
        if self.rows.is_multiple_of(512) && self.bytes() > self.limit {
            return Err(FactsError::TooLarge { bytes: self.bytes(), limit: self.limit });
        }
        Ok(())
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        self.store.bytes()
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}
