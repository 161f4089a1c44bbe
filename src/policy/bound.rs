//! A plan over one relation of the stream: evidence, masks and the verdict in memory.
//!
//! No evaluator runs unless every column that the policy reads is really there. "There" is decided here and nowhere else: an
//! unchanged TOAST value is taken from a complete old row or it is absent; a key-only old row has its key columns and nothing
//! else; of a partitioned root's old row, what all partitions log.

use std::sync::Arc;

use super::facts::{FactBinding, Facts, Side};
use super::image::record;
use super::permit::{ColumnMask, DenyReason, Permit, UndecidedReason, Verdict};
use super::plan::{Engine, Plan};
use super::rule::{KnownViewer, RowEval, RowKeys, RowValue, Rule, Truth, Viewer, ViewerKey};
use crate::catalog::{OldImage, Table};
use crate::change::{Change, OldRow, Relation, ReplicaIdentity, Tuple, Value};
use crate::claims::Principal;

/// A plan bound to a relation.
#[derive(Debug, Clone)]
pub struct Bound {
    plan: Arc<Plan>,
    relation: Arc<Relation>,
    /// For each column of the catalog's table, its index here; `None` if it is not sent or has another type.
    indexes: Vec<Option<usize>>,
    /// The columns that the engine reads.
    reads: Vec<Read>,
    /// The columns that a question to Postgres reads.
    form_reads: Vec<Read>,
    readable: ColumnMask,
    /// The columns that say which row it is.
    key: ColumnMask,
    all: ColumnMask,
    primary_key: ColumnMask,
    has_primary_key: bool,
    key_readable: bool,
    /// The relation and the catalog disagree about a column that the policy reads: one of them is older.
    stale: bool,
    /// For a rule that looks into no table.
    no_facts: Option<Arc<(FactBinding, Facts)>>,
}

/// A column that must be present.
#[derive(Debug, Clone)]
struct Read {
    name: String,
    index: Option<usize>,
}

/// The answer of [`Bound::judge`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// There is one.
    Decided(Verdict),
    /// Postgres must be asked.
    Ask,
}

/// A change that is judged for many viewers; see [`Bound::judge_row`].
pub struct RowJudge<'a> {
    bound: &'a Bound,
    change: &'a Change,
    decider: Decider<'a>,
}

#[expect(clippy::large_enum_variant, reason = "one for each row, on the stack")]
enum Decider<'a> {
    /// It is the same for everybody.
    Anybody(Judged),
    Rule {
        rule: &'a Rule,
        binding: &'a FactBinding,
        facts: &'a Facts,
        row: RowEval<'a>,
        /// The old row of an UPDATE, once somebody may see the new one.
        old: Option<Box<RowEval<'a>>>,
    },
}

impl<'a> RowJudge<'a> {
    /// See [`Bound::verdict`].
    pub fn verdict(&mut self, viewer: &'a KnownViewer) -> Judged {
        let (bound, change) = (self.bound, self.change);
        let (rule, binding, facts, row, old) = match &mut self.decider {
            Decider::Anybody(judged) => return judged.clone(),
            Decider::Rule { rule, binding, facts, row, old } => (*rule, *binding, *facts, row, old),
        };
        match row.truth(viewer) {
            Truth::True => {
                let old_passes = bound.old_to_widen(change).is_some_and(|image| {
                    let column = |column| bound.read(image, column);
                    let old =
                        old.get_or_insert_with(|| Box::new(rule.judge_row(binding, facts, Side::Before, &column)));
                    old.truth(viewer) == Truth::True
                });
                bound.permit(change, old_passes)
            }
            Truth::False | Truth::Null => deny(DenyReason::Policy),
            Truth::Raises => deny(DenyReason::PolicyError),
            Truth::Unsure => bound.ask(change),
        }
    }
}

/// An image of a row, with what is known of its cells.
#[derive(Clone, Copy)]
pub(super) struct Image<'a> {
    tuple: &'a Tuple,
    /// A complete old row that has the values which were not sent again.
    fill: Option<&'a Tuple>,
    real: &'a ColumnMask,
}

impl<'a> Image<'a> {
    /// The value of a column of the relation; [`Value::Unchanged`] if it is absent.
    fn get(&self, column: usize) -> Value<'a> {
        if !self.real.contains(column) {
            return Value::Unchanged;
        }
        match (self.tuple.get(column), self.fill) {
            (Value::Unchanged, Some(fill)) => fill.get(column),
            (value, _) => value,
        }
    }
}

fn deny(reason: DenyReason) -> Judged {
    Judged::Decided(Verdict::Deny(reason))
}

impl Bound {
    pub(super) fn new(plan: Arc<Plan>, relation: Arc<Relation>) -> Bound {
        let all = ColumnMask::all(relation.columns.len());
        let mut bound = Bound {
            indexes: Vec::new(),
            reads: Vec::new(),
            form_reads: Vec::new(),
            readable: ColumnMask::none(),
            key: ColumnMask::none(),
            all,
            primary_key: ColumnMask::none(),
            has_primary_key: false,
            key_readable: false,
            stale: false,
            no_facts: None,
            plan,
            relation,
        };
        if let Some(table) = bound.plan.table.clone() {
            bound.resolve(&table);
        }
        bound
    }

    fn resolve(&mut self, table: &Table) {
        let relation = &self.relation;
        self.indexes = table
            .columns
            .iter()
            .map(|column| relation.column(&column.name).filter(|i| relation.columns[*i].type_oid == column.type_oid))
            .collect();
        let columns = |names: &mut dyn Iterator<Item = &String>| -> ColumnMask {
            names.filter_map(|name| relation.column(name)).collect()
        };
        self.readable = columns(&mut self.plan.readable.iter());
        let from_primary_key = relation.identity == ReplicaIdentity::Full || table.old_image == OldImage::PrimaryKey;
        self.key = match table.old_image {
            OldImage::Nothing => ColumnMask::none(),
            _ if from_primary_key => columns(&mut table.primary_key.iter()),
            _ => (0..relation.columns.len()).filter(|i| relation.columns[*i].key).collect(),
        };
        self.primary_key = columns(&mut table.primary_key.iter());
        self.has_primary_key = !table.primary_key.is_empty();
        self.key_readable = table.primary_key.iter().all(|name| self.plan.readable.contains(name));
        let read = |name: &str| {
            let place = table.columns.iter().position(|c| c.name == name);
            Read { name: name.to_owned(), index: place.and_then(|place| self.indexes[place]) }
        };
        let form_reads = self.plan.form.iter().flat_map(|form| &form.reads);
        let form_reads: Vec<Read> = form_reads.map(|name| read(name)).collect();
        self.reads = match &self.plan.engine {
            // In the order of the rule's columns.
            Engine::Pure(rule) => rule.reads.iter().map(|column| read(&column.name)).collect(),
            _ => form_reads.clone(),
        };
        self.form_reads = form_reads;
        self.stale = self
            .reads
            .iter()
            .any(|read| read.index.is_none() && table.column(&read.name).is_none_or(|column| table.is_sent(column)));
        self.no_facts = self.plan.rule().filter(|rule| rule.sources.is_empty()).and_then(|rule| {
            let none = Facts::new(0);
            Some(Arc::new((none.bind(rule).ok()?, none)))
        });
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The relation.
    pub fn relation(&self) -> &Arc<Relation> {
        &self.relation
    }

    /// Whether the relation and the catalog disagree, so that nothing can be decided.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Judges an INSERT or UPDATE by its new row, a DELETE by its old row. `viewer` is [`Plan::viewer`] of this principal;
    /// `facts` may be left out for a rule that looks into no table.
    pub fn judge(
        &self,
        change: &Change,
        viewer: &Viewer,
        principal: &Principal,
        facts: Option<(&FactBinding, &Facts)>,
        now_unix_seconds: i64,
    ) -> Judged {
        if principal.is_expired(now_unix_seconds) {
            return deny(DenyReason::Expired);
        }
        // Another role's plan says nothing about him. The caller groups by role; this is the second lock.
        if *principal.role != *self.plan.role {
            return deny(DenyReason::UnknownRole);
        }
        self.verdict(change, viewer, facts)
    }

    /// The same for everybody of the plan's role who has this viewer and whose token is valid.
    pub fn verdict(&self, change: &Change, viewer: &Viewer, facts: Option<(&FactBinding, &Facts)>) -> Judged {
        let viewer = KnownViewer::new(viewer.clone());
        self.judge_row(change, facts).verdict(&viewer)
    }

    /// The same for many viewers of one change.
    pub fn judge_row<'a>(&'a self, change: &'a Change, facts: Option<(&'a FactBinding, &'a Facts)>) -> RowJudge<'a> {
        let decider = match self.decide(change) {
            Some(judged) => Decider::Anybody(judged),
            None => match (self.plan.rule(), self.facts(facts)) {
                (Some(rule), Some((binding, facts))) => {
                    let image = self.judged(change);
                    let column = |column| self.read(image, column);
                    let row = rule.judge_row(binding, facts, side(change), &column);
                    Decider::Rule { rule, binding, facts, row, old: None }
                }
                _ => Decider::Anybody(self.ask(change)),
            },
        };
        RowJudge { bound: self, change, decider }
    }

    /// The same while the facts are on their way: Postgres is asked, and where it can't be, nobody is denied for that.
    pub(crate) fn judge_without_facts<'a>(&'a self, change: &'a Change) -> RowJudge<'a> {
        let asked = || match has_all(&self.form_reads, self.judged(change)) {
            true => Judged::Ask,
            false => Judged::Decided(Verdict::Undecided(UndecidedReason::Facts)),
        };
        RowJudge { bound: self, change, decider: Decider::Anybody(self.decide(change).unwrap_or_else(asked)) }
    }

    /// What does not depend on the viewer; `None` if the rule decides.
    fn decide(&self, change: &Change) -> Option<Judged> {
        let is_delete = matches!(change, Change::Delete { .. });
        if is_delete && self.plan.deletes_to_all() {
            return Some(self.announce(change));
        }
        if let Engine::Deny(reason) = self.plan.engine {
            return Some(deny(reason));
        }
        // Decision 25: the client was told when it subscribed.
        if !is_delete && !self.has_primary_key {
            return Some(deny(DenyReason::NoPrimaryKey));
        }
        if !is_delete && !self.key_readable {
            return Some(deny(DenyReason::NoGrant));
        }
        match &self.plan.engine {
            Engine::Deny(reason) => Some(deny(*reason)),
            Engine::Everything => Some(self.permit(change, true)),
            Engine::Ask { .. } => match self.evidence(change) {
                Ok(()) => Some(Judged::Ask),
                Err(verdict) => Some(Judged::Decided(verdict)),
            },
            Engine::Pure(_) => self.evidence(change).err().map(Judged::Decided),
        }
    }

    /// Calls `found` with each (claim, value) of [`Plan::keys`] that this change yields: whoever has none of them is not
    /// permitted it. Without the facts that it takes, each claim is said to have too many. See [`super::rule::Keys::of_row`].
    pub fn row_keys(
        &self,
        change: &Change,
        facts: Option<(&FactBinding, &Facts)>,
        limit: usize,
        found: &mut dyn FnMut(u16, RowValue<'_>),
    ) -> RowKeys {
        let Some(keys) = self.plan.keys() else { return RowKeys::Complete };
        let Some((binding, facts)) = self.facts(facts) else { return RowKeys::TooMany(keys.claims().into()) };
        let image = self.judged(change);
        keys.values_of_row(binding, facts, side(change), &|column| self.read(image, column), limit, found)
    }

    /// Writes down what the rule reads of the image by which a change is judged: equal bytes have equal keys and, for equal
    /// viewers and facts, equal verdicts but for what is shown. False if something is absent.
    pub(crate) fn write_reads(&self, change: &Change, out: &mut Vec<u8>) -> bool {
        let image = self.judged(change);
        (0..self.reads.len()).all(|column| match self.read(image, column) {
            Value::Unchanged => false,
            Value::Null => {
                out.push(0);
                true
            }
            Value::Text(text) => {
                out.push(1);
                out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                out.extend_from_slice(text);
                true
            }
        })
    }

    /// Whether an index by [`Plan::keys`] finds a principal with this viewer for this change. Nobody is permitted whom it does
    /// not find.
    pub fn finds(&self, change: &Change, viewer: &Viewer, facts: Option<(&FactBinding, &Facts)>) -> bool {
        let Some(keys) = self.plan.keys() else { return true };
        let of_viewer: Vec<_> = keys.claims().iter().map(|claim| (*claim, keys.of_viewer(*claim, viewer))).collect();
        if of_viewer.iter().all(|(_, values)| matches!(values, ViewerKey::Values(values) if values.is_empty())) {
            return false;
        }
        let mut is_found = of_viewer.iter().any(|(_, values)| matches!(values, ViewerKey::MustJudge));
        let mut look = |claim: u16, value: RowValue<'_>| {
            let values = of_viewer.iter().find(|(known, _)| *known == claim).map(|(_, values)| values);
            is_found |= matches!(values, Some(ViewerKey::Values(values)) if value.with_text(|value| values.iter().any(|v| **v == *value)));
        };
        match self.row_keys(change, facts, usize::MAX, &mut look) {
            RowKeys::Complete => is_found,
            RowKeys::TooMany(_) | RowKeys::Absent => true,
        }
    }

    fn facts<'a>(&'a self, given: Option<(&'a FactBinding, &'a Facts)>) -> Option<(&'a FactBinding, &'a Facts)> {
        self.no_facts.as_deref().map(|(binding, facts)| (binding, facts)).or(given)
    }

    /// A DELETE that goes to everybody: not judged by any policy. Columns that the role may not select are left out; with
    /// none left, it still learns that a row is gone.
    fn announce(&self, change: &Change) -> Judged {
        let Change::Delete { old } = change else { return deny(DenyReason::Policy) };
        let barred = [
            DenyReason::UnknownRole,
            DenyReason::SuperuserRole,
            DenyReason::UnknownTable,
            DenyReason::UnprotectedPartition,
        ];
        let Some(table) = &self.plan.table else { return deny(DenyReason::UnknownTable) };
        if let Engine::Deny(reason) = self.plan.engine
            && barred.contains(&reason)
        {
            return deny(reason);
        }
        let real = self.real(old).intersection(&self.readable);
        let shown = if table.row_security { real.intersection(&self.primary_key) } else { real };
        Judged::Decided(Verdict::Permit(Permit::grant(self.readable.clone(), shown)))
    }

    /// What memory can't judge. Postgres is asked about all columns of the policies, also those which folding removed here.
    fn ask(&self, change: &Change) -> Judged {
        match has_all(&self.form_reads, self.judged(change)) {
            true => Judged::Ask,
            false => deny(DenyReason::MissingEvidence),
        }
    }

    /// The verdict for a row that passed; `old_passes` if the old row of an UPDATE passed too.
    pub(super) fn permit(&self, change: &Change, old_passes: bool) -> Judged {
        let permit = match change {
            Change::Insert { .. } => Permit::grant(self.readable.clone(), ColumnMask::none()),
            Change::Update { old, .. } => {
                let shown = match old {
                    Some(old) if old_passes => self.real(old),
                    _ => &self.key,
                };
                Permit::grant(self.readable.clone(), shown.intersection(&self.readable))
            }
            Change::Delete { old } => {
                let shown = self.real(old).intersection(&self.readable);
                if shown == ColumnMask::none() {
                    return deny(DenyReason::NoGrant);
                }
                Permit::grant(self.readable.clone(), shown)
            }
        };
        Judged::Decided(Verdict::Permit(permit))
    }

    /// The image that decides.
    pub(super) fn judged<'a>(&'a self, change: &'a Change) -> Image<'a> {
        match change {
            Change::Insert { new } => Image { tuple: new, fill: None, real: &self.all },
            Change::Update { new, old } => {
                let complete = old.as_ref().filter(|old| self.is_complete(old));
                Image { tuple: new, fill: complete.map(OldRow::tuple), real: &self.all }
            }
            Change::Delete { old } => Image { tuple: old.tuple(), fill: None, real: self.real(old) },
        }
    }

    /// The complete old row of an UPDATE: if it passes as well, it may be shown.
    pub(super) fn old_to_widen<'a>(&'a self, change: &'a Change) -> Option<Image<'a>> {
        match change {
            Change::Update { old: Some(old), .. } if self.is_complete(old) => {
                let image = Image { tuple: old.tuple(), fill: None, real: &self.all };
                has_all(&self.reads, image).then_some(image)
            }
            _ => None,
        }
    }

    /// Whether every column that a question to Postgres reads is present.
    pub(super) fn can_be_asked(&self, change: &Change) -> bool {
        !self.stale && has_all(&self.form_reads, self.judged(change))
    }

    /// The image as a composite literal, in the catalog's order of columns.
    pub(super) fn literal(&self, image: Image<'_>) -> Option<String> {
        record(self.indexes.iter().map(|index| index.map_or(Value::Null, |i| image.get(i))))
    }

    /// Whether the key of the row is in the image, so that it can be looked up.
    pub(super) fn has_key(&self, image: Image<'_>) -> bool {
        let table = self.plan.table.as_ref();
        let present =
            |name: &String| self.relation.column(name).is_some_and(|index| image.get(index) != Value::Unchanged);
        table.is_some_and(|t| t.primary_key.iter().all(present))
    }

    fn is_complete(&self, old: &OldRow) -> bool {
        matches!(old, OldRow::Full(_)) && *self.real(old) == self.all
    }

    /// The columns of an old row that are values.
    fn real(&self, old: &OldRow) -> &ColumnMask {
        let as_sent = self.plan.table.as_ref().is_some_and(|t| t.old_image == OldImage::AsSent);
        match old {
            OldRow::Full(_) if as_sent => &self.all,
            OldRow::Full(_) | OldRow::KeyOnly(_) => &self.key,
        }
    }

    fn evidence(&self, change: &Change) -> Result<(), Verdict> {
        if self.stale {
            return Err(Verdict::Undecided(UndecidedReason::Catalog));
        }
        match has_all(&self.reads, self.judged(change)) {
            true => Ok(()),
            false => Err(Verdict::Deny(DenyReason::MissingEvidence)),
        }
    }

    /// The value of a column of the rule, by its number there.
    fn read<'a>(&self, image: Image<'a>, column: usize) -> Value<'a> {
        self.reads.get(column).and_then(|read| read.index).map_or(Value::Unchanged, |index| image.get(index))
    }
}

/// The facts by which the deciding row of a change is judged.
fn side(change: &Change) -> Side {
    match change {
        Change::Insert { .. } | Change::Update { .. } => Side::After,
        Change::Delete { .. } => Side::Before,
    }
}

fn has_all(reads: &[Read], image: Image<'_>) -> bool {
    reads.iter().all(|read| read.index.is_some_and(|index| image.get(index) != Value::Unchanged))
}
