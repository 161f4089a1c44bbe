//! The tables that policies look into, in memory: loaded from a snapshot, kept by the stream.
//!
//! ```text
//! record(layout) ─► begin(tx) … keeps its changes by xid ─► install(rows, snapshot) ─► begin(tx) folds ─► bind(rule)
//! ```
//!
//! Plain data: no I/O, no clock. Who loads the rows and when is the hub's affair.
//!
//! Invariants:
//! * Facts are those of the last folded transaction, or the table is not [`FactState::Ready`]. What can't be followed exactly
//!   makes it [`FactState::Broken`]; there is no third way.
//! * Whether a recorded transaction is in the loaded rows is decided by its xid in their snapshot, never by LSN: a commit is in
//!   the stream before others see it.
//! * Between [`Facts::begin`] and [`Facts::end`] both sides of the transaction can be read: old images are judged before it,
//!   new ones after it.
//! * Memory is bounded: over the limit a table is Broken, and Postgres is asked instead.
//!
//! Rejected: asking Postgres for facts as they are needed. Its answer is of another moment than the change.

mod fitness;
mod load;
mod publish;
mod bind;
mod concerns;
mod doubts;
mod fold;
mod index;
mod layout;
mod lookups;
mod probe;
mod symbols;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock};

pub use fitness::{Fit, Refusal, fitness};
pub use load::{LoadError, LoadLimits, load};
pub use publish::{PublishError, Writers, add, quoted, statement, wait_for_writers};
use smallvec::SmallVec;

pub use bind::FactBinding;
pub(super) use bind::{Access, KeyPart, Level, PathStep, SubPlan};
pub use concerns::{Concerns, Numbers};
pub(super) use doubts::Doubtful;
pub(super) use index::Row;
pub use layout::{FactKey, Layout};
pub use lookups::Lookups;
pub(super) use symbols::{NULL, Symbol};
pub use table::FactTable;
pub(super) use table::Store;

use crate::catalog::Snapshot;
use crate::change::{Item, Relation, Transaction, TransactionError};
use crate::error::{Fault, Remedy};
use fold::{Mapping, Recorder, Step};

/// Which state of the facts a row is judged with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Before the transaction that is being folded: for old images.
    Before,
    /// After it: for new images.
    After,
}

/// How far a fact table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FactState {
    /// Nobody asked for it.
    Absent,
    /// It is being loaded; so many changes were recorded since.
    Recording {
        /// Row changes and truncates.
        since_rows: u64,
    },
    /// Its facts are those of the last folded transaction.
    Ready {
        /// Rows.
        rows: u64,
        /// Memory.
        bytes: usize,
    },
    /// It must be loaded again; why.
    Broken(String),
}

/// Why facts can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// More memory than there may be.
    #[error("the facts take {bytes} bytes, over the limit of {limit}")]
    TooLarge {
        /// Needed so far.
        bytes: usize,
        /// Allowed.
        limit: usize,
    },
    /// A table was installed that nobody said was being loaded, or with another layout.
    #[error("table {0} was loaded, but not with the layout that is being recorded")]
    NotRecording(u32),
    /// A row of the wrong width.
    #[error("a row of {found} columns where {expected} were asked for")]
    Width {
        /// Columns of the layout.
        expected: usize,
        /// Columns of the row.
        found: usize,
    },
    /// A value that its type does not print.
    #[error("a value of column {0} is not as its type prints it")]
    Text(String),
    /// Rows and their changes contradict each other.
    #[error("the rows and their changes contradict each other: {0}")]
    Diverged(String),
}

impl Fault for FactsError {
    fn remedy(&self) -> Remedy {
        match self {
            FactsError::TooLarge { .. } => Remedy::Operator,
            FactsError::NotRecording(_) | FactsError::Diverged(_) => Remedy::Retry,
            FactsError::Width { .. } | FactsError::Text(_) => Remedy::Bug,
        }
    }
}

/// Facts that a rule needs are not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("facts of {table}: {why}")]
pub struct NotReady {
    /// `schema.table`.
    pub table: Arc<str>,
    /// Not loaded yet, being loaded, broken.
    pub why: String,
    /// They will not come by themselves ([`Facts::give_up`]): Postgres is asked instead, with all that this means. Else it is a
    /// matter of time, and what Postgres says of the past meanwhile is no answer.
    pub for_good: bool,
}

enum State {
    Recording(Recorder),
    Ready(Box<Store>),
    Broken(String),
}

struct Tracked {
    layout: Arc<Layout>,
    state: State,
    /// The last relations of the stream that were resolved.
    mappings: Vec<Arc<Mapping>>,
    /// What was loaded, until the stream has passed it: the rows are ahead of the stream, and transactions that the snapshot
    /// saw are in them.
    loaded_at: Option<Snapshot>,
    /// How many transactions have changed it.
    turns: u64,
}

impl Tracked {
    fn bytes(&self) -> usize {
        match &self.state {
            State::Recording(recorder) => recorder.bytes(),
            State::Ready(store) => store.bytes(),
            State::Broken(_) => 0,
        }
    }

    fn state(&self) -> FactState {
        match &self.state {
            State::Recording(recorder) => FactState::Recording { since_rows: recorder.rows },
            State::Ready(store) => FactState::Ready { rows: store.live(), bytes: store.bytes() },
            State::Broken(why) => FactState::Broken(why.clone()),
        }
    }

    /// Whether the rows have the transaction already.
    fn has(&self, xid: u32) -> bool {
        self.loaded_at.as_ref().is_some_and(|snapshot| snapshot.sees(xid))
    }

    fn mapping(&mut self, relation: &Arc<Relation>) -> Result<Arc<Mapping>, String> {
        if let Some(known) = self.mappings.iter().find(|mapping| Arc::ptr_eq(&mapping.relation, relation)) {
            return Ok(known.clone());
        }
        let mapping = Arc::new(Mapping::new(&self.layout, relation)?);
        if self.mappings.len() >= MOST_MAPPINGS {
            self.mappings.remove(0);
        }
        self.mappings.push(mapping.clone());
        Ok(mapping)
    }
}

/// Relations that a table remembers how to read; one per partition in use is enough.
const MOST_MAPPINGS: usize = 16;
/// Changes between two looks at the memory in use.
const CHANGES_PER_LOOK: u32 = 4096;

/// All fact tables of the process.
#[derive(Default)]
pub struct Facts {
    limit: usize,
    generation: u64,
    tables: Vec<Tracked>,
    /// By the oid of a relation that rows may come under, the tables they belong to.
    relations: HashMap<u32, SmallVec<[usize; 1]>>,
    /// Tables that the running transaction changed.
    touched: Vec<usize>,
    /// Tables that can't be had.
    given_up: BTreeSet<u32>,
    /// Some table has [`Tracked::loaded_at`].
    ahead: bool,
    /// Between a [`Facts::begin`] that changed something and its [`Facts::end`].
    folding: bool,
    /// How often that was.
    folded: u64,
    /// How often a transaction began that changes something.
    begun: u64,
}

static NONE: LazyLock<Facts> = LazyLock::new(Facts::default);

impl Facts {
    /// None, and memory for so many bytes.
    pub fn new(limit_bytes: usize) -> Facts {
        Facts { limit: limit_bytes, ..Facts::default() }
    }

    /// For rules that have no sources.
    pub fn none() -> &'static Facts {
        &NONE
    }

    /// From the next [`Facts::begin`] on, the table's changes are kept by transaction id: it is being loaded. What was there
    /// is dropped.
    pub fn record(&mut self, layout: Arc<Layout>) {
        self.tables.retain(|table| table.layout.table_oid != layout.table_oid);
        self.tables.push(Tracked {
            layout,
            state: State::Recording(Recorder::new()),
            mappings: Vec::new(),
            loaded_at: None,
            turns: 0,
        });
        self.rearrange();
    }

    /// Makes a loaded table ready: the recorded transactions that the snapshot does not see are folded into it. To be called
    /// between two transactions. Until the stream has passed the snapshot, the facts are those of the snapshot: no older than
    /// what is judged with them, perhaps newer, as when Postgres is asked.
    pub fn install(&mut self, loaded: FactTable, snapshot: &Snapshot) -> Result<(), FactsError> {
        let layout = loaded.store.layout.clone();
        let waiting = |table: &&mut Tracked| {
            table.layout.table_oid == layout.table_oid
                && table.layout == layout
                && matches!(table.state, State::Recording(_))
        };
        let not_recording = FactsError::NotRecording(layout.table_oid);
        let table = self.tables.iter_mut().find(waiting).ok_or(not_recording)?;
        let bytes = loaded.bytes();
        let mut store = Box::new(loaded.store);
        let recorded = std::mem::replace(&mut table.state, State::Broken("it is being installed".to_owned()));
        let outcome = match recorded {
            State::Recording(recorder) => recorder.replay(&mut store, snapshot),
            State::Ready(_) | State::Broken(_) => Ok(()),
        };
        self.generation += 1;
        if let Err(why) = outcome {
            table.state = State::Broken(why.clone());
            return Err(FactsError::Diverged(why));
        }
        table.state = State::Ready(store);
        table.loaded_at = Some(snapshot.clone());
        self.ahead = true;
        let total = self.bytes();
        if total > self.limit {
            let limit = self.limit;
            if let Some(table) = self.tables.iter_mut().find(|table| table.layout == layout) {
                table.state = State::Broken(format!("{bytes} bytes are more than there is room for"));
            }
            return Err(FactsError::TooLarge { bytes: total, limit });
        }
        Ok(())
    }

    /// Drops a table.
    pub fn forget(&mut self, table_oid: u32) {
        self.tables.retain(|table| table.layout.table_oid != table_oid);
        self.rearrange();
    }

    /// These tables can't be had, until something is changed by a person, or for a long time.
    pub fn give_up(&mut self, tables: BTreeSet<u32>) {
        if self.given_up != tables {
            self.given_up = tables;
            self.generation += 1;
        }
    }

    /// Whether some tables are those of a moment that the stream has not come to: what was before the transaction at hand is not
    /// known then.
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }

    /// After a change of the list of tables: whatever pointed into it is void.
    fn rearrange(&mut self) {
        self.generation += 1;
        self.touched.clear();
        self.relations.clear();
        for (place, table) in self.tables.iter().enumerate() {
            for oid in table.layout.leaves.iter().chain([&table.layout.table_oid]) {
                let places = self.relations.entry(*oid).or_default();
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        // Tables that a running transaction had changed still have to end it.
        self.touched.extend(0..self.tables.len());
    }

    /// How far the table is.
    pub fn state(&self, table_oid: u32) -> FactState {
        let table = self.tables.iter().find(|table| table.layout.table_oid == table_oid);
        table.map_or(FactState::Absent, Tracked::state)
    }

    /// The layout of a table that is not absent.
    pub fn layout(&self, table_oid: u32) -> Option<&Arc<Layout>> {
        self.tables.iter().find(|table| table.layout.table_oid == table_oid).map(|table| &table.layout)
    }

    /// Whether a transaction over these relations must be folded.
    pub fn concerns(&self, relations: &[Arc<Relation>]) -> bool {
        !self.tables.is_empty() && relations.iter().any(|relation| !self.followers(relation).is_empty())
    }

    /// The tables that follow a relation's rows.
    fn followers(&self, relation: &Relation) -> SmallVec<[usize; 1]> {
        let Some(places) = self.relations.get(&relation.oid) else { return SmallVec::new() };
        let follows = |place: &usize| !matches!(self.tables[*place].state, State::Broken(_));
        places.iter().copied().filter(follows).collect()
    }

    /// The stream has come to a transaction, be it of these tables or not: rows of a snapshot that it has passed are those of
    /// the stream from here on. To be called for every transaction. Ids wrap around: a snapshot that is kept for half of all
    /// ids, while other tables change, would take a new transaction for one that it saw.
    pub fn pass(&mut self, xid: u32) {
        if !self.ahead {
            return;
        }
        for table in &mut self.tables {
            table.loaded_at.take_if(|snapshot| snapshot.is_before(xid));
        }
        self.ahead = self.tables.iter().any(|table| table.loaded_at.is_some());
    }

    /// Folds a whole transaction. Until [`Facts::end`], [`Side::Before`] is the state before it, [`Side::After`] the state
    /// after it. A table that can't follow becomes [`FactState::Broken`]. An error means that the transaction can't be read.
    pub fn begin(&mut self, tx: &Transaction) -> Result<(), TransactionError> {
        self.end();
        self.pass(tx.xid);
        let mut mappings: Vec<(usize, Arc<Mapping>)> = Vec::new();
        for relation in &tx.relations {
            for place in self.followers(relation) {
                if self.tables[place].has(tx.xid) {
                    continue;
                }
                match self.tables[place].mapping(relation) {
                    Ok(mapping) => mappings.push((place, mapping)),
                    Err(why) => self.misfit(place, tx.xid, why),
                }
            }
        }
        if mappings.is_empty() {
            return Ok(());
        }
        self.folding = true;
        self.touched = mappings.iter().map(|(place, _)| *place).collect();
        self.touched.sort_unstable();
        self.touched.dedup();
        self.begun += 1;
        for place in &self.touched {
            self.tables[*place].turns += 1;
        }
        let outcome = self.fold(tx, &mappings);
        if outcome.is_err() {
            for place in self.touched.clone() {
                self.fail(place, "a transaction could not be read".to_owned());
            }
        }
        self.bound_memory();
        outcome
    }

    fn fold(&mut self, tx: &Transaction, mappings: &[(usize, Arc<Mapping>)]) -> Result<(), TransactionError> {
        let of = |relation: &Arc<Relation>| {
            let relation = relation.clone();
            mappings.iter().filter(move |(_, mapping)| Arc::ptr_eq(&mapping.relation, &relation))
        };
        let mut changes = 0u32;
        for item in tx.iter_of(|relation| of(relation).next().is_some()) {
            match item? {
                Item::Row(row) => {
                    for (place, mapping) in of(&row.relation) {
                        self.step(*place, tx.xid, &mapping.step(&row.change));
                    }
                }
                Item::Truncate(truncate) => {
                    for (place, mapping) in truncate.relations.iter().flat_map(of) {
                        self.step(*place, tx.xid, &mapping.truncate());
                    }
                }
                Item::Message(_) => {}
            }
            changes = changes.wrapping_add(1);
            if changes.is_multiple_of(CHANGES_PER_LOOK) {
                self.bound_memory();
            }
        }
        Ok(())
    }

    fn step(&mut self, place: usize, xid: u32, step: &Step<'_>) {
        let table = &mut self.tables[place];
        let outcome = match &mut table.state {
            State::Ready(store) => step.apply(store),
            State::Recording(recorder) => {
                recorder.record(&table.layout, xid, step);
                Ok(())
            }
            State::Broken(_) => Ok(()),
        };
        if let Err(why) = outcome {
            self.fail(place, why);
        }
    }

    /// A relation is not as the layout has it.
    fn misfit(&mut self, place: usize, xid: u32, why: String) {
        match &mut self.tables[place].state {
            State::Recording(recorder) => recorder.misfit(xid, why),
            State::Ready(_) | State::Broken(_) => self.fail(place, why),
        }
    }

    fn fail(&mut self, place: usize, why: String) {
        self.tables[place].state = State::Broken(why);
        self.generation += 1;
    }

    /// Gives up tables that changed, the largest first, until all fit into the limit.
    fn bound_memory(&mut self) {
        while self.bytes() > self.limit {
            let largest = self.touched.iter().copied().max_by_key(|place| self.tables[*place].bytes());
            let Some(place) = largest.filter(|place| self.tables[*place].bytes() > 0) else { return };
            let why = match self.tables[place].state {
                State::Recording(_) => "changed too much while it was loaded",
                State::Ready(_) | State::Broken(_) => "grew over the limit of memory",
            };
            self.fail(place, format!("it {why}"));
        }
    }

    /// The transaction is over: Before is After.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.folding) {
            self.folded += 1;
        }
        for place in std::mem::take(&mut self.touched) {
            if let State::Ready(store) = &mut self.tables[place].state {
                store.end();
            }
        }
    }

    /// Changes whenever a table becomes Ready, Broken, Absent or gets another layout.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Names the state of all facts; `None` while a transaction changes them, and so Before is not After. What was derived from
    /// facts of one version holds for just that version.
    pub fn version(&self) -> Option<u64> {
        (!self.folding).then_some(self.generation + self.folded)
    }

    /// Differs whenever [`Side::After`] may: what was judged by it holds as long as it is the same.
    pub fn stamp(&self) -> (u64, u64) {
        (self.generation, self.begun)
    }

    /// The same of these tables only.
    pub fn stamp_of(&self, tables: &[u32]) -> (u64, u64) {
        let of = self.tables.iter().filter(|table| tables.contains(&table.layout.table_oid));
        (self.generation, of.map(|table| table.turns).sum())
    }

    /// Memory that all tables take.
    pub fn bytes(&self) -> usize {
        self.tables.iter().map(Tracked::bytes).sum()
    }

    /// All tables that are not absent.
    pub fn tables(&self) -> impl Iterator<Item = (u32, FactState)> {
        self.tables.iter().map(|table| (table.layout.table_oid, table.state()))
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables: Vec<(u32, FactState)> = self.tables().collect();
        f.debug_struct("Facts").field("generation", &self.generation).field("tables", &tables).finish_non_exhaustive()
    }
}

/// Room for one more: a quarter at a time, since half of a large table lying idle is too much.
fn grow<T>(list: &mut Vec<T>) {
    grow_to(list, list.len() + 1);
}

fn grow_to<T>(list: &mut Vec<T>, length: usize) {
    if list.capacity() < length {
        let room = length.max(list.len() + list.len() / 4).max(16);
        list.reserve_exact(room - list.len());
    }
}
