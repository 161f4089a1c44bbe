//! One round: our verdicts, filters and JSON against Postgres's, each for every (row, subscriber).

use std::collections::BTreeMap;
use std::sync::Arc;

use rowcast::catalog::Table as CatalogTable;
use rowcast::change::{Change, OldRow, Position, Relation, RelationColumn, RowChange, Tuple, Value};
use rowcast::filter::FilterError;
use rowcast::pgtype::canonical;
use rowcast::policy::{Bound, DenyReason, Engine, Options, Question, compile};

use super::claims::{ROLES, Who};
use super::evaluator::{Checked, Evaluator, Said, said};
use super::filters::Filter;
use super::json::{members, normal};
use super::round::{Round, Step};
use super::rules::{Owed, Rules};
use super::stage::{Seen, Stage, Truth};

/// What was compared.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) filters: u64,
    pub(super) refused: u64,
    /// Left to Postgres, which the end-to-end scenes look at.
    pub(super) open: u64,
    pub(super) in_memory: u64,
    pub(super) asked: u64,
    pub(super) permits: u64,
    /// Rows that a SELECT shows and we don't, because a claim can't be cast.
    pub(super) withheld: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: Counts) {
        self.filters += other.filters;
        self.refused += other.refused;
        self.open += other.open;
        self.in_memory += other.in_memory;
        self.asked += other.asked;
        self.permits += other.permits;
        self.withheld += other.withheld;
    }

    pub(super) fn cases(&self) -> u64 {
        self.filters + self.refused + self.in_memory + self.asked + self.permits
    }
}

/// Where the two part, and what it takes to see it again.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    pub(super) what: String,
    pub(super) step: Option<Step>,
    pub(super) who: Option<usize>,
    pub(super) filter: Option<usize>,
}

/// Questions to Postgres of one round: they are slow.
const QUESTIONS: usize = 3;

struct Check<'a> {
    round: &'a Round,
    truth: &'a Truth,
    rules: Rules<'a>,
    evaluator: Evaluator,
    relation: Arc<Relation>,
    counts: Counts,
    differences: Vec<Difference>,
}

/// The error is of the round itself: its SQL doesn't run.
pub(super) async fn check(
    stage: &mut Stage,
    round: &Round,
    evaluator: Evaluator,
) -> Result<(Counts, Vec<Difference>), String> {
    let truth = stage.begin(round).await?;
    let table = truth.catalog.find("public", &truth.name).expect("the table").clone();
    let relation = Arc::new(relation(&table));
    let rules = Rules { round, truth: &truth };
    let (counts, differences) = (Counts::default(), Vec::new());
    let mut check = Check { round, truth: &truth, rules, evaluator, relation, counts, differences };
    check.filters(stage).await;
    let bounds: BTreeMap<&str, Bound> = ROLES
        .iter()
        .map(|role| {
            (*role, Arc::new(compile(&truth.catalog, table.oid, role, Options::default())).bind(&check.relation))
        })
        .collect();
    check.policies(&bounds);
    if evaluator.0.is_none() {
        check.questions(stage, &bounds).await;
    }
    let found = (check.counts, check.differences);
    stage.end(&truth).await;
    Ok(found)
}

/// The relation as the stream would describe it.
fn relation(table: &CatalogTable) -> Relation {
    let column = |c: &rowcast::catalog::Column| RelationColumn {
        name: c.name.clone(),
        type_oid: c.type_oid,
        type_modifier: c.type_modifier,
        key: table.identity_columns.contains(&c.name),
    };
    let columns = table.columns.iter().map(column).collect();
    Relation {
        oid: table.oid,
        schema: table.schema.clone(),
        table: table.name.clone(),
        identity: table.identity,
        columns,
    }
}

impl Check<'_> {
    /// The change as the stream would send it.
    fn change(&self, step: Step) -> Change {
        let (table, images) = (&self.round.table, &self.truth.images);
        let old = |row: usize| {
            if table.is_full() {
                OldRow::Full(images[row].clone())
            } else {
                OldRow::KeyOnly(self.key_only(&images[row]))
            }
        };
        match step {
            Step::Insert(row) => Change::Insert { new: images[row].clone() },
            Step::Delete(row) => Change::Delete { old: old(row) },
            Step::Update(from, to) => {
                let same = table.identity_columns().iter().all(|i| images[from].get(*i) == images[to].get(*i));
                let old = (table.is_full() || !same).then(|| old(from));
                Change::Update { new: self.touched(step, &images[to]), old }
            }
        }
    }

    fn touched(&self, step: Step, new: &Tuple) -> Tuple {
        let value = |i| if self.rules.is_untouched(step, i) { Value::Unchanged } else { new.get(i) };
        Tuple::from_values((0..new.len()).map(value))
    }

    fn key_only(&self, tuple: &Tuple) -> Tuple {
        let key = self.round.table.identity_columns();
        let value = |i| if key.contains(&i) { tuple.get(i) } else { Value::Null };
        Tuple::from_values((0..tuple.len()).map(value))
    }

    fn differ(&mut self, what: String, step: Option<Step>, who: Option<usize>, filter: Option<usize>) {
        self.differences.push(Difference { what, step, who, filter });
    }

    async fn filters(&mut self, stage: &Stage) {
        let mut accepted: Vec<(usize, Checked)> = Vec::new();
        for (index, filter) in self.round.filters.iter().enumerate() {
            let checked = self.evaluator.check(&stage.validator, &self.truth.catalog, &self.relation, filter).await;
            match checked {
                Ok(checked) => accepted.push((index, checked)),
                Err(FilterError::Refused { sqlstate, message }) => {
                    self.counts.refused += 1;
                    if let Err(why) = stage.refuses(self.round, self.truth, filter, &sqlstate).await {
                        let what = format!("refused with {sqlstate} ({message}), but {why}");
                        self.differ(what, None, None, Some(index));
                    }
                }
                Err(error) => self.differ(format!("refused: {}", error.client_detail()), None, None, Some(index)),
            }
        }
        let filters: Vec<&Filter> = accepted.iter().map(|(index, _)| &self.round.filters[*index]).collect();
        let answers = stage.matching(self.round, self.truth, &filters).await;
        for ((index, checked), answer) in accepted.iter().zip(answers) {
            let filter = &self.round.filters[*index];
            let truth = match answer {
                Ok(truth) => truth,
                Err(state) => {
                    self.differ(format!("accepted, but Postgres refuses it with {state}"), None, None, Some(*index));
                    continue;
                }
            };
            for step in &self.round.steps {
                let sent = self.rules.sent(*step, filter.0.iter().map(|condition| condition.column.as_str()));
                let expected = sent && truth[step.judged()];
                let Some(ours) = self.evaluator.matches(checked, &self.change(*step)) else {
                    self.counts.open += 1;
                    continue;
                };
                self.counts.filters += 1;
                if ours != expected {
                    let what = format!("we say {ours}, Postgres {expected}");
                    self.differ(what, Some(*step), None, Some(*index));
                } else if ours && !has_key(checked, &self.truth.images[step.judged()]) {
                    self.differ("a match has another hash key".into(), Some(*step), None, Some(*index));
                }
            }
        }
    }

    fn policies(&mut self, bounds: &BTreeMap<&str, Bound>) {
        for step in &self.round.steps {
            let change = self.change(*step);
            for (index, who) in self.round.who.iter().enumerate() {
                let bound = &bounds[who.role()];
                match self.evaluator.judge(bound, &change, &who.principal) {
                    Said::Ask => {}
                    answer => {
                        self.counts.in_memory += 1;
                        if matches!(answer, Said::Yes(Some(_))) && !is_found(bound, &change, who) {
                            self.differ(
                                "a permit for somebody whom the keys don't find".into(),
                                Some(*step),
                                Some(index),
                                None,
                            );
                        }
                        self.verdict(*step, &change, index, &answer, false, &bounds["service_role"]);
                    }
                }
            }
        }
    }

    /// Those of the changes that come first, in the order of a shuffle that the round's seed gives.
    async fn questions(&mut self, stage: &Stage, bounds: &BTreeMap<&str, Bound>) {
        let mut dice = super::dice::Dice::new(self.round.seed);
        for (role, bound) in bounds {
            if !matches!(bound.plan().engine, Engine::Ask { .. } | Engine::Pure(_)) {
                continue;
            }
            let indexes: Vec<usize> =
                (0..self.round.who.len()).filter(|i| self.round.who[*i].role() == *role).collect();
            if indexes.is_empty() {
                continue;
            }
            let asked = matches!(bound.plan().engine, Engine::Ask { .. });
            for _ in 0..if asked { QUESTIONS } else { 1 } {
                let step = *dice.one(&self.round.steps);
                let change = self.change(step);
                // What is decided without a question is not for Postgres to decide.
                let ask = |i: &usize| {
                    asked && matches!(self.evaluator.judge(bound, &change, &self.round.who[*i].principal), Said::Ask)
                };
                let pure = !asked && self.rules.has_evidence(step, role) && self.rules.may_read_key(role);
                let indexes: Vec<usize> = indexes.iter().copied().filter(|i| pure || ask(i)).collect();
                let principals = indexes.iter().map(|i| self.round.who[*i].principal.clone()).collect();
                let row = RowChange {
                    relation: self.relation.clone(),
                    position: Position::default(),
                    change: change.clone(),
                };
                let question =
                    Question { bound: Arc::new(bound.clone()), change: Arc::new(row), principals, xids: Arc::new([]) };
                for (index, verdict) in indexes.into_iter().zip(stage.asker.judge(&question).await) {
                    self.counts.asked += 1;
                    self.verdict(step, &change, index, &said(verdict), true, &bounds["service_role"]);
                }
            }
        }
    }

    fn verdict(&mut self, step: Step, change: &Change, index: usize, answer: &Said, asked: bool, of_all: &Bound) {
        let who = &self.round.who[index];
        let (truth, exact) = (self.truth.seen[index][step.judged()], self.rules.is_exact(who));
        let sent = self.rules.has_evidence(step, who.role());
        let shows_something = self.rules.shows_something(step, who.role());
        let agrees = match answer {
            Said::Yes(_) => shows_something && (truth == Seen::Yes || (asked && !exact && truth == Seen::Raises)),
            Said::No(DenyReason::NoGrant) => !shows_something,
            Said::No(DenyReason::MissingEvidence) => !sent,
            Said::No(DenyReason::PolicyError) => truth == Seen::Raises || !exact,
            Said::No(DenyReason::Policy | DenyReason::NoPolicy) => {
                truth == Seen::No || (truth == Seen::Raises && !exact)
            }
            Said::No(_) | Said::Undecided(_) | Said::Ask => false,
        };
        if !agrees {
            let how = if asked { "asked, " } else { "" };
            let ours = match answer {
                Said::Undecided(reason) => reason.as_str().to_owned(),
                answer => format!("{answer:?}"),
            };
            let what = format!("{how}we say {ours}; of a SELECT the answer is {truth:?}");
            self.differ(what, Some(step), Some(index), None);
        }
        if matches!(answer, Said::No(DenyReason::PolicyError)) && truth == Seen::Yes {
            self.counts.withheld += 1;
        }
        if let Said::Yes(Some(permit)) = answer {
            self.counts.permits += 1;
            let change =
                RowChange { relation: self.relation.clone(), position: Position::default(), change: change.clone() };
            let data = self.evaluator.data(&self.truth.catalog, &change, permit, of_all);
            if let Err(why) = self.json(step, index, &data) {
                self.differ(format!("{why} in {data}"), Some(step), Some(index), None);
            }
        }
    }

    fn json(&self, step: Step, who: usize, data: &str) -> Result<(), String> {
        let data = members(data);
        let all = self.rules.readable(who, &self.rules.all());
        let key = self.rules.readable(who, &self.round.table.identity_columns());
        let named = all.clone();
        let new = self.rules.readable(who, &self.rules.new_columns(step));
        let (kind, new, old) = match step {
            Step::Insert(row) => ("INSERT", Some((row, new)), None),
            Step::Delete(row) => ("DELETE", None, Some((row, self.rules.readable(who, &self.rules.identity())))),
            Step::Update(from, to) => {
                let wide = match self.rules.widened(from, who) {
                    Owed::Must => true,
                    Owed::Not => false,
                    Owed::May => self.object(&data, "old_record", Some((from, key.clone()))).is_err(),
                };
                let old = if wide { all } else { key };
                ("UPDATE", Some((to, new)), Some((from, old)))
            }
        };
        self.object(&data, "record", new)?;
        self.object(&data, "old_record", old)?;
        let expected: Vec<&str> = named.iter().map(|i| self.round.table.columns[*i].name.as_str()).collect();
        let columns: Vec<BTreeMap<String, String>> =
            serde_json::from_str(data["columns"].get()).map_err(|error| error.to_string())?;
        let columns: Vec<&str> = columns.iter().map(|column| column["name"].as_str()).collect();
        if columns != expected || data["type"].get() != format!("\"{kind}\"") || data["errors"].get() != "null" {
            return Err(format!("columns {columns:?} of {kind}, expected {expected:?}"));
        }
        Ok(())
    }

    fn object(
        &self,
        data: &BTreeMap<String, Box<serde_json::value::RawValue>>,
        name: &str,
        expected: Option<(usize, Vec<usize>)>,
    ) -> Result<(), String> {
        let (found, expected) = match (data.get(name), expected) {
            (None, None) => return Ok(()),
            (Some(found), Some(expected)) => (members(found.get()), expected),
            (found, _) => return Err(format!("{name} is {found:?}")),
        };
        let (row, columns) = expected;
        let table = &self.round.table;
        for i in &columns {
            let column = &table.columns[*i];
            let json = normal(&self.truth.json[row][*i], column.kind.floating);
            let ours = found.get(&column.name).map(|value| normal(value.get(), column.kind.floating));
            if ours.as_ref() != Some(&json) {
                return Err(format!("{name}.{} is {ours:?}, expected {json}", column.name));
            }
        }
        if found.len() > columns.len() {
            let names: Vec<&String> = found.keys().collect();
            return Err(format!("{name} has too much: {names:?}"));
        }
        Ok(())
    }
}

/// By this key the hub finds the filters that a row may match.
fn has_key(checked: &Checked, image: &Tuple) -> bool {
    let Checked::Predicate(predicate) = checked else { return true };
    let Some((index, key, equality)) = predicate.eq_key() else { return true };
    match image.get(index) {
        Value::Text(text) => canonical(equality, text).is_some_and(|text| *text == *key),
        Value::Null | Value::Unchanged => false,
    }
}

/// Whether the hub, which looks by keys, finds him for this change.
fn is_found(bound: &Bound, change: &Change, who: &Who) -> bool {
    bound.finds(change, &bound.plan().viewer(&who.principal), None)
}
