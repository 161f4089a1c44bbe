//! The index that a rule yields: whom a row may concern, without looking at anybody else.
//!
//! A *key* is a necessary condition of every permit: "the viewer's claim is one of the values that this row yields". It comes
//! from `column = claim`, or from an equality of a claim with a column of a fact table that equalities connect to the row, be
//! it through several tables and nested sub-selects. AND needs one key, OR one of each branch.
//!
//! Branches that only read the row are decided for the row: then it concerns everybody. Branches that only read claims are
//! decided for the viewer: he must be judged on every row, or the branch is none of his. A key that finds too many is harmless,
//! one that misses somebody loses events; so whatever is not understood here yields no key.
//!
//! Rejected: a key of several claims together, which would be exact for more rules and cost an index each.

mod derive;

use std::fmt;

use smallvec::SmallVec;

use super::eval::Eval;
use super::{Claimed, ColumnRef, Expr, Rule, Scalar, Truth, Viewer};
use crate::change::Value;
use crate::pgtype::{Equality, canonical, elements};
use crate::policy::facts::{FactBinding, Facts, PathStep, Side, Store, Symbol};

/// In place of a claim: the index that has everybody under the empty value.
const EVERYBODY: u16 = u16::MAX;

/// What every permit under a rule implies: the viewer's value of one of these claims is among those that the row yields.
#[derive(Debug, Clone, PartialEq)]
pub struct Keys {
    keys: Vec<Key>,
    /// Conditions over claims alone: a viewer who meets one must be judged on every row.
    gates: Vec<Expr>,
    claims: Vec<u16>,
    /// What the keys refer to: the columns read, and the sources.
    rule: Rule,
    /// The same without sources, for conditions over the row or over claims.
    bare: Rule,
}

#[derive(Debug, Clone, PartialEq)]
struct Key {
    claim: u16,
    /// Conditions over the row alone, without which this key's branch is not true.
    when: Vec<Expr>,
    source: Source,
}

/// Where the values are.
#[derive(Debug, Clone, PartialEq)]
enum Source {
    /// `Rule::reads[i]`.
    Column(u16),
    /// The elements of an array, `Rule::reads[i]`, under this equality.
    Elements(u16, Equality),
    /// A column of facts, reached from the row.
    Path { steps: Vec<PathStep>, target: ColumnRef },
    /// Everybody.
    Row,
}

/// A viewer's place in the index of one claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewerKey {
    /// He is found by these values only; none: never by this claim.
    Values(SmallVec<[Box<[u8]>; 1]>),
    /// The claim says nothing about him: he must be judged on every row.
    MustJudge,
}

/// A value that a row yields: its own, or that of a fact, which has a number in its table as well.
#[derive(Clone, Copy)]
pub struct RowValue<'a>(Held<'a>);

#[derive(Clone, Copy)]
enum Held<'a> {
    Row(&'a [u8]),
    Fact(&'a Store, Symbol),
}

impl RowValue<'_> {
    /// The number of a fact's value, and the epoch under which it means that value and no other, in no other table.
    pub fn number(self) -> Option<(u64, u32)> {
        match self.0 {
            Held::Row(_) => None,
            Held::Fact(store, symbol) => Some((store.epoch(), symbol)),
        }
    }

    /// Calls `with` with its canonical text.
    pub fn with_text<T>(self, with: impl FnOnce(&[u8]) -> T) -> T {
        match self.0 {
            Held::Row(text) => with(text),
            Held::Fact(store, symbol) => with(&store.packed(symbol).text()),
        }
    }
}

/// What [`Keys::of_row`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowKeys {
    /// All values were found.
    Complete,
    /// For these claims there were too many: everybody in their indexes must be judged.
    TooMany(SmallVec<[u16; 2]>),
    /// A column that decides is absent.
    Absent,
}

impl Rule {
    /// The keys of this rule; `None` if everybody must be judged on every row.
    pub fn keys(&self) -> Option<Keys> {
        let derived = derive::derive(self)?;
        let mut claims: Vec<u16> = derived.keys.iter().map(|key| key.claim).collect();
        claims.sort_unstable();
        claims.dedup();
        // Whoever passes a gate has to stand in some index.
        if claims.is_empty() {
            claims.push(EVERYBODY);
        }
        let rule = Rule { condition: Expr::Constant(None), claims: Vec::new(), ..self.clone() };
        let bare = Rule { sources: Vec::new(), ..rule.clone() };
        Some(Keys { keys: derived.keys, gates: derived.gates, claims, rule, bare })
    }
}

impl Keys {
    /// The claims that have an index, each once. A number beyond [`Rule::claims`] is not a claim: it is an index in which
    /// [`Keys::of_viewer`] puts everybody, for rows that are open to all.
    pub fn claims(&self) -> &[u16] {
        &self.claims
    }

    /// The ways to facts that a binding needs indexes for, in a fixed order.
    pub(in crate::policy) fn paths(&self) -> impl Iterator<Item = &[PathStep]> {
        self.keys.iter().filter_map(|key| match &key.source {
            Source::Path { steps, .. } => Some(&steps[..]),
            Source::Column(_) | Source::Elements(..) | Source::Row => None,
        })
    }

    /// Under which values of a claim the viewer is to be found.
    pub fn of_viewer(&self, claim: u16, viewer: &Viewer) -> ViewerKey {
        let (binding, absent) = (FactBinding::default(), |_: usize| Value::Unchanged);
        if let Some(mut eval) = Eval::new(&self.bare, &binding, Facts::none(), Side::After, &absent, Some(viewer)) {
            let passes = |gate| matches!(eval.truth(gate), Truth::True | Truth::Unsure);
            if self.gates.iter().any(passes) {
                return ViewerKey::MustJudge;
            }
        }
        if claim == EVERYBODY {
            let open = self.keys.iter().any(|key| key.source == Source::Row);
            return ViewerKey::Values(if open { SmallVec::from_elem(Box::default(), 1) } else { SmallVec::new() });
        }
        match viewer.claimed(claim) {
            Claimed::Value(value) => ViewerKey::Values(SmallVec::from_elem(value.clone(), 1)),
            Claimed::List(list) => ViewerKey::Values(list.iter().flatten().cloned().collect()),
            // Never true, whatever the row.
            Claimed::Null | Claimed::Raises => ViewerKey::Values(SmallVec::new()),
            Claimed::Unsure => ViewerKey::MustJudge,
        }
    }

    /// Calls `found(claim, value)` for every value that this row yields, perhaps repeatedly. A claim is given up after `limit`
    /// rows of facts.
    pub fn of_row<'a>(
        &self,
        binding: &FactBinding,
        facts: &Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        limit: usize,
        found: &mut dyn FnMut(u16, &[u8]),
    ) -> RowKeys {
        let mut found = |claim, value: RowValue<'_>| value.with_text(|text| found(claim, text));
        self.values_of_row(binding, facts, side, column, limit, &mut found)
    }

    /// The same with the values as the row or the facts have them.
    pub fn values_of_row<'a>(
        &self,
        binding: &FactBinding,
        facts: &Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        limit: usize,
        found: &mut dyn FnMut(u16, RowValue<'_>),
    ) -> RowKeys {
        let mut too_many: SmallVec<[u16; 2]> = SmallVec::new();
        let mut path = 0;
        for key in &self.keys {
            let own_path = path;
            path += usize::from(matches!(key.source, Source::Path { .. }));
            if too_many.contains(&key.claim) || !self.applies(key, column) {
                continue;
            }
            let complete = match &key.source {
                Source::Row => {
                    found(EVERYBODY, RowValue(Held::Row(b"")));
                    true
                }
                Source::Column(read) => match column(usize::from(*read)) {
                    Value::Unchanged => return RowKeys::Absent,
                    Value::Null => true,
                    Value::Text(text) => {
                        let text = canonical(self.bare.reads[usize::from(*read)].kind.equality, text);
                        text.map(|text| found(key.claim, RowValue(Held::Row(&text)))).is_some()
                    }
                },
                Source::Elements(read, equality) => match column(usize::from(*read)) {
                    Value::Unchanged => return RowKeys::Absent,
                    Value::Null => true,
                    Value::Text(text) => {
                        let mut known = true;
                        let all = elements(text, &mut |element| {
                            let Some(element) = element else { return };
                            match canonical(*equality, element) {
                                Some(element) => found(key.claim, RowValue(Held::Row(&element))),
                                None => known = false,
                            }
                        });
                        all.is_some() && known
                    }
                },
                Source::Path { steps, target } => {
                    if self.lacks_start(steps, column) {
                        return RowKeys::Absent;
                    }
                    let mut found = |store: &Store, symbol| found(key.claim, RowValue(Held::Fact(store, symbol)));
                    self.walk(own_path, *target, binding, facts, side, column, limit, &mut found)
                }
            };
            if !complete {
                too_many.push(key.claim);
            }
        }
        if too_many.is_empty() { RowKeys::Complete } else { RowKeys::TooMany(too_many) }
    }

    /// Whether the row may pass by this key's branch.
    fn applies<'a>(&self, key: &Key, column: &dyn Fn(usize) -> Value<'a>) -> bool {
        if key.when.is_empty() {
            return true;
        }
        let binding = FactBinding::default();
        let Some(mut eval) = Eval::new(&self.bare, &binding, Facts::none(), Side::After, column, None) else {
            return true;
        };
        key.when.iter().all(|condition| matches!(eval.truth(condition), Truth::True | Truth::Unsure))
    }

    fn lacks_start<'a>(&self, steps: &[PathStep], column: &dyn Fn(usize) -> Value<'a>) -> bool {
        steps.iter().flat_map(|step| &step.key).any(|(_, _, scalar)| match scalar {
            Scalar::Column(ColumnRef { slot: 0, column: read }) => column(usize::from(*read)) == Value::Unchanged,
            _ => false,
        })
    }

    /// False if there are more than may be found.
    #[expect(clippy::too_many_arguments, reason = "the path, the row, its evidence and the visitor")]
    fn walk<'a>(
        &self,
        path: usize,
        target: ColumnRef,
        binding: &FactBinding,
        facts: &Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        limit: usize,
        found: &mut dyn FnMut(&Store, Symbol),
    ) -> bool {
        let Some(join) = binding.path(path) else { return false };
        let Some(mut eval) = Eval::new(&self.rule, binding, facts, side, column, None) else { return false };
        eval.budget = limit;
        let mut doubt = Truth::False;
        let gave_up = eval.walk(&join.levels, target, &mut doubt, found);
        !gave_up && doubt == Truth::False
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        let mut or = |f: &mut fmt::Formatter<'_>| match std::mem::replace(&mut first, false) {
            true => Ok(()),
            false => f.write_str(" or "),
        };
        for key in &self.keys {
            or(f)?;
            match &key.source {
                Source::Column(read) => f.write_str(&self.bare.reads[usize::from(*read)].name)?,
                Source::Elements(read, _) => write!(f, "each of {}", self.bare.reads[usize::from(*read)].name)?,
                Source::Path { steps, .. } => {
                    for (at, step) in steps.iter().enumerate() {
                        let source = &self.rule.sources[usize::from(step.slot) - 1];
                        write!(f, "{}{}", if at == 0 { "" } else { ", then " }, source.table)?;
                        for (at, (column, ..)) in step.key.iter().enumerate() {
                            let name = &source.columns[usize::from(*column)].name;
                            write!(f, "{}{name}", if at == 0 { " by " } else { ", " })?;
                        }
                    }
                }
                Source::Row => f.write_str("everybody, for some rows")?,
            }
        }
        if !self.gates.is_empty() {
            or(f)?;
            f.write_str("whoever's claims alone decide")?;
        }
        Ok(())
    }
}
