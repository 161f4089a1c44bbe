//! Whom a changed row of facts can concern, without looking at anybody else.
//!
//! ```text
//! how a bound rule looks rows up ──► Concerns ─┬─ of_viewer   by which numbers somebody who is judged again and again is to be found
//!                                              └─ Facts::concerned   the same numbers, of the rows that a transaction changes
//! ```
//!
//! An evaluation sees of a table just the rows that it looks up. Where it looks them up by claims and by what is judged, it goes
//! on as it did before when rows of other values come or go: nobody but those with the values of a changed row can be judged
//! otherwise now. So the numbers are made of what [`bind`](super::bind) has planned, and not of the policy once more.
//!
//! Invariants:
//! * Too many may be found, and nobody may be missed. Whatever is in doubt concerns everybody: a sub-select that reads all, a
//!   value that a watched conversion refuses, a row that is looked up by nothing that is known of a viewer, a change of which
//!   not every row is at hand. A viewer with a value in doubt is found by any change.
//! * A number is a hash: it finds too many where two collide.
//! * Where rows are told apart by a filter only, one of them may still count against the bound of what an evaluation looks at.
//!   Verdicts that come to nothing for that reason are not promised to be found.
//!
//! Rejected: the keys that find whom a row concerns ([`crate::policy::rule::Keys`]). They hold for who is permitted, not for who
//! was until now; and they lead from a row to claims, where facts are in the middle.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;

use super::bind::{Access, KeyPart, Level, SubPlan};
use super::doubts::Doubtful;
use super::index::Row;
use super::symbols::NULL;
use super::table::Store;
use super::{FactBinding, Facts};
use crate::change::Value;
use crate::pgtype::{Equality, canonical};
use crate::policy::rule::{Claimed, ColumnRef, CompareOp, Expr, Kind, Rule, Scalar, Viewer, exact_under};

/// Rows that one transaction may change in a table before it concerns everybody.
const MOST_CHANGED: usize = 4096;
/// The place of those who are found by any change.
const ALWAYS: usize = usize::MAX;

/// See the module's comment. Of one rule and one binding.
#[derive(Debug, Clone, PartialEq)]
pub struct Concerns {
    concerns: Vec<Concern>,
    /// While one of them has refused a value, everything is read.
    watches: Vec<(usize, usize)>,
    /// Who has one of these in doubt reads everything.
    lazy: Vec<Scalar>,
    /// What equality makes the judged row's values canonical.
    reads: Vec<Equality>,
}

/// One lookup.
#[derive(Debug, Clone, PartialEq)]
struct Concern {
    table: usize,
    /// The columns of the table that decide, and what they must be. Without one that [`Must::Equal`] names every row that meets
    /// the others concerns everybody.
    columns: Vec<(u16, Must)>,
    /// Who has NULL there reads everything.
    reads_all_for_null: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Must {
    /// What the viewer has here, a claim or a column of the judged row.
    Equal(Equality, Scalar),
    /// A canonical text; `None` for NULL.
    Be(Option<Box<[u8]>>),
}

/// What a viewer has.
enum Has<'a> {
    Text(Cow<'a, [u8]>),
    Null,
    Doubt,
}

/// Makes the numbers of one set of members.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'a> {
    /// Of all sets.
    pub state: &'a RandomState,
    /// Which set this is.
    pub set: u64,
}

impl Numbers<'_> {
    fn begin(&self, concern: usize) -> ahash::AHasher {
        let mut hasher = self.state.build_hasher();
        hasher.write_u64(self.set);
        hasher.write_usize(concern);
        hasher
    }

    /// The number of those who are found by any change.
    pub fn always(&self) -> u64 {
        self.begin(ALWAYS).finish()
    }
}

fn add(hasher: &mut ahash::AHasher, text: &[u8]) {
    hasher.write(text);
    hasher.write_usize(text.len());
}

/// Known of a viewer without a look at facts.
fn is_known(scalar: &Scalar) -> bool {
    matches!(scalar, Scalar::Claim(_) | Scalar::Column(ColumnRef { slot: 0, .. }))
}

fn is_of_row(scalar: &Scalar, slots: &[u16]) -> bool {
    matches!(scalar, Scalar::Column(column) if column.slot != 0 && !slots.contains(&column.slot))
}

impl Facts {
    /// Whom changes can concern, of a rule and its binding, which must be valid; `None` if each of them may concern everybody.
    pub fn concerns_of(&self, rule: &Rule, binding: &FactBinding) -> Option<Concerns> {
        let (mut concerns, mut watches, mut lazy) = (Vec::new(), Vec::new(), Vec::new());
        let mut seen = vec![false; rule.sources.len()];
        for plan in binding.plans() {
            if plan.naive {
                return None;
            }
            watches.extend_from_slice(&plan.watches);
            for doubtful in &plan.lazy {
                match doubtful {
                    Doubtful::Scalar(scalar) if is_known(scalar) => lazy.push(scalar.clone()),
                    _ => return None,
                }
            }
            for (level, reads_all_for_null) in levels(plan) {
                *seen.get_mut(usize::from(level.slot).checked_sub(1)?)? = true;
                let concern = self.concern(rule, binding, level, reads_all_for_null)?;
                if !concerns.contains(&concern) {
                    concerns.push(concern);
                }
            }
        }
        let reads = rule.reads.iter().map(|read| read.kind.equality).collect();
        // What was not planned is read as it is written.
        seen.iter().all(|seen| *seen).then_some(Concerns { concerns, watches, lazy, reads })
    }

    fn concern(&self, rule: &Rule, binding: &FactBinding, level: &Level, reads_all_for_null: bool) -> Option<Concern> {
        let table = binding.tables().nth(usize::from(level.slot) - 1)?;
        let store = self.store(table)?;
        let mut columns: Vec<(u16, Must)> = Vec::new();
        if let Access::Index { index, key } = &level.access {
            for (column, part) in store.indexed(*index).iter().zip(key) {
                match part {
                    KeyPart::Null => columns.push((*column, Must::Be(None))),
                    KeyPart::Equal(equality, Scalar::Constant(Some(text))) => {
                        // One that is not of its type is in doubt, whatever the rows.
                        let text = canonical(*equality, text).map(|text| text.as_ref().into());
                        columns.extend(text.map(|text| (*column, Must::Be(Some(text)))));
                    }
                    KeyPart::Equal(equality, scalar) if is_known(scalar) => {
                        columns.push((*column, Must::Equal(*equality, scalar.clone())));
                    }
                    // Any row of another table may have it.
                    KeyPart::Equal(..) => {}
                }
            }
        }
        if !columns.iter().any(|(_, must)| matches!(must, Must::Equal(..))) {
            for filter in &level.filters {
                let Expr::Compare(CompareOp::Eq, kind, pair) = filter else { continue };
                for (own, other) in [(&pair.0, &pair.1), (&pair.1, &pair.0)] {
                    let Scalar::Column(own) = own else { continue };
                    if own.slot == level.slot && is_known(other) && is_exact(rule, *own, kind) {
                        columns.push((binding.column(*own), Must::Equal(kind.equality, other.clone())));
                    }
                }
            }
        }
        Some(Concern { table, columns, reads_all_for_null })
    }

    /// How many of these tables the transaction at hand changes, of which every changed row is at hand.
    pub fn changing(&self, tables: &[u32]) -> u64 {
        if !self.folding {
            return 0;
        }
        let of = |place: &&usize| tables.contains(&self.tables[**place].layout.table_oid);
        self.touched.iter().filter(of).count() as u64
    }

    /// Calls `found` with the number of each viewer who may be judged otherwise after the transaction at hand, by the concerns of
    /// a binding that is valid; perhaps repeatedly. False: everybody may be.
    pub fn concerned(&self, concerns: &Concerns, numbers: Numbers<'_>, found: &mut dyn FnMut(u64)) -> bool {
        let refused =
            |(table, watch): &(usize, usize)| self.store(*table).is_none_or(|store| store.has_refused(*watch));
        if concerns.watches.iter().any(refused) {
            return false;
        }
        for table in &self.touched {
            let of_table = |(_, concern): &(usize, &Concern)| concern.table == *table;
            let looked_up: Vec<_> = concerns.concerns.iter().enumerate().filter(of_table).collect();
            if looked_up.is_empty() {
                continue;
            }
            let Some(store) = self.store(*table).filter(|store| store.touched() <= MOST_CHANGED) else { return false };
            let mut changed = store.changed().peekable();
            if changed.peek().is_some() {
                found(numbers.always());
            }
            for row in changed {
                for (at, concern) in &looked_up {
                    if !concern.of_row(store, row, numbers.begin(*at), found) {
                        return false;
                    }
                }
            }
        }
        true
    }
}

/// The lookups of a sub-select, and whether who has NULL in them looks elsewhere, too.
fn levels(plan: &SubPlan) -> Vec<(&Level, bool)> {
    let all = plan.all.levels.iter().map(|level| (level, false));
    let Some(probe) = &plan.probe else { return all.collect() };
    let slots: Vec<u16> = probe.levels.iter().map(|level| level.slot).collect();
    let parts = probe.levels.iter().filter_map(|level| match &level.access {
        Access::Index { key, .. } => Some(key),
        Access::Scan => None,
    });
    let is_of_others = |part: &KeyPart| matches!(part, KeyPart::Equal(_, scalar) if is_of_row(scalar, &slots));
    // NOT IN with NULL on its left side goes through all of them.
    let reads_all = !plan.positive && parts.flatten().any(is_of_others);
    let nulls = plan.nulls.iter().flat_map(|nulls| &nulls.levels);
    let found = probe.levels.iter().chain(nulls).map(|level| (level, !plan.positive));
    found.chain(all.filter(|_| reads_all)).collect()
}

fn is_exact(rule: &Rule, column: ColumnRef, kind: &Kind) -> bool {
    let source = usize::from(column.slot).checked_sub(1).and_then(|source| rule.sources.get(source));
    let own = source.and_then(|source| source.columns.get(usize::from(column.column)));
    own.is_some_and(|own| exact_under(&own.kind, kind.equality))
}

impl Concern {
    /// False: the row concerns everybody.
    fn of_row(&self, store: &Store, row: Row, mut number: ahash::AHasher, found: &mut dyn FnMut(u64)) -> bool {
        let mut named = false;
        for (column, must) in &self.columns {
            let symbol = store.cell(row, *column);
            match must {
                Must::Be(None) if symbol == NULL => {}
                Must::Be(Some(text)) if symbol != NULL && store.packed(symbol).is(text) => {}
                Must::Equal(..) if symbol != NULL => {
                    named = true;
                    add(&mut number, &store.packed(symbol).text());
                }
                // Nobody looks it up.
                Must::Be(_) | Must::Equal(..) => return true,
            }
        }
        if named {
            found(number.finish());
        }
        named
    }
}

impl Concerns {
    /// Calls `found` with the numbers by which the viewer is to be found, of the judged row whose values are `column`'s: those of
    /// the rule's `reads`, as the stream has them.
    pub fn of_viewer<'a>(
        &self,
        viewer: &Viewer,
        column: &dyn Fn(usize) -> Value<'a>,
        numbers: Numbers<'_>,
        found: &mut dyn FnMut(u64),
    ) {
        if self.lazy.iter().any(|scalar| matches!(self.has(scalar, viewer, column), Has::Doubt)) {
            found(numbers.always());
        }
        'concerns: for (at, concern) in self.concerns.iter().enumerate() {
            let (mut number, mut named) = (numbers.begin(at), false);
            for (_, must) in &concern.columns {
                let Must::Equal(equality, scalar) = must else { continue };
                named = true;
                let has = self.has(scalar, viewer, column);
                let text = match &has {
                    Has::Text(text) => canonical(*equality, text),
                    Has::Null if !concern.reads_all_for_null => continue 'concerns,
                    Has::Null | Has::Doubt => None,
                };
                match text {
                    Some(text) => add(&mut number, &text),
                    None => {
                        found(numbers.always());
                        continue 'concerns;
                    }
                }
            }
            if named {
                found(number.finish());
            }
        }
    }

    /// As an evaluation has it.
    fn has<'v, 'a: 'v>(&self, scalar: &Scalar, viewer: &'v Viewer, column: &dyn Fn(usize) -> Value<'a>) -> Has<'v> {
        match scalar {
            Scalar::Claim(claim) => match viewer.claimed(*claim) {
                Claimed::Null => Has::Null,
                Claimed::Value(text) => Has::Text(Cow::Borrowed(text)),
                Claimed::List(_) | Claimed::Raises | Claimed::Unsure => Has::Doubt,
            },
            Scalar::Column(ColumnRef { slot: 0, column: read }) => match column(usize::from(*read)) {
                Value::Null => Has::Null,
                Value::Unchanged => Has::Doubt,
                Value::Text(text) => {
                    let equality = self.reads.get(usize::from(*read));
                    equality.and_then(|equality| canonical(*equality, text)).map_or(Has::Doubt, Has::Text)
                }
            },
            _ => Has::Doubt,
        }
    }

    /// The same without one lookup: what must be noticed.
    #[cfg(test)]
    pub(super) fn without(mut self, concern: usize) -> Option<Concerns> {
        (concern < self.concerns.len()).then(|| {
            // Its number stays, and nothing has it.
            self.concerns[concern].table = usize::MAX;
            self
        })
    }
}
