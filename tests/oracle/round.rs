//! One round's question: a table, images of its rows, changes from one to another, subscribers and filters. Plain data, so
//! that a round that fails can be tried again with less of everything.

use super::claims::Who;
use super::column::Column;
use super::dice::Dice;
use super::filters::Filter;
use super::table::{Row, Table};

/// A change, by the numbers of its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Insert(usize),
    /// From, to.
    Update(usize, usize),
    Delete(usize),
}

impl Step {
    /// The image that decides.
    pub(super) fn judged(self) -> usize {
        match self {
            Step::Insert(row) | Step::Update(_, row) | Step::Delete(row) => row,
        }
    }

    pub(super) fn is_delete(self) -> bool {
        matches!(self, Step::Delete(_))
    }
}

#[derive(Debug, Clone)]
pub(super) struct Round {
    pub(super) seed: u64,
    pub(super) table: Table,
    /// The number of an image is its index, and the value of column `n`.
    pub(super) rows: Vec<Row>,
    pub(super) steps: Vec<Step>,
    pub(super) who: Vec<Who>,
    pub(super) filters: Vec<Filter>,
}

const IMAGES: usize = 22;
const SUBSCRIBERS: usize = 14;
const FILTERS: usize = 45;

impl Round {
    pub(super) fn generate(seed: u64) -> Round {
        let mut dice = Dice::new(seed);
        let table = Table::generate(&mut dice);
        let mut rows: Vec<Row> = Vec::new();
        for n in 0..IMAGES {
            let mut row = table.row(&mut dice, n);
            if n > 0 && dice.percent(60) {
                // Another state of an earlier row.
                let earlier = dice.below(n);
                for i in 1..table.columns.len() {
                    if table.key.contains(&i) || dice.percent(55) {
                        row[i].clone_from(&rows[earlier][i]);
                    }
                }
            }
            rows.push(row);
        }
        let mut steps: Vec<Step> = (0..IMAGES).map(Step::Insert).chain((0..IMAGES).map(Step::Delete)).collect();
        for to in 0..IMAGES {
            let same: Vec<usize> =
                (0..IMAGES).filter(|from| *from != to && table.same_key(&rows[*from], &rows[to])).collect();
            let from = if same.is_empty() || dice.percent(20) { dice.below(IMAGES) } else { *dice.one(&same) };
            steps.push(Step::Update(from, to));
        }
        let who = (0..SUBSCRIBERS).map(|_| Who::generate(&mut dice)).collect();
        let filters = (0..FILTERS).map(|_| Filter::generate(&mut dice, &table, &rows)).collect();
        Round { seed, table, rows, steps, who, filters }
    }

    /// Only what a difference is about.
    pub(super) fn narrowed(&self, step: Option<Step>, who: Option<usize>, filter: Option<usize>) -> Round {
        let mut round = self.clone();
        if let Some(step) = step {
            let kept: Vec<usize> = match step {
                Step::Insert(row) | Step::Delete(row) => vec![row],
                Step::Update(from, to) if from == to => vec![to],
                Step::Update(from, to) => vec![from, to],
            };
            round.rows = kept.iter().map(|row| self.rows[*row].clone()).collect();
            for (n, row) in round.rows.iter_mut().enumerate() {
                row[0] = Some(n.to_string());
            }
            let place = |row: usize| kept.iter().position(|kept| *kept == row).expect("it was kept");
            round.steps = vec![match step {
                Step::Insert(row) => Step::Insert(place(row)),
                Step::Delete(row) => Step::Delete(place(row)),
                Step::Update(from, to) => Step::Update(place(from), place(to)),
            }];
        } else {
            round.rows.truncate(1);
            round.steps = vec![Step::Insert(0)];
        }
        round.who = who.map(|who| self.who[who].clone()).into_iter().collect();
        round.filters = filter.map(|filter| self.filters[filter].clone()).into_iter().collect();
        round
    }

    /// Rounds with one thing less: a policy, a condition, a column, a value.
    pub(super) fn smaller(&self) -> Vec<Round> {
        let mut all = Vec::new();
        for i in 0..self.table.policies.len() {
            let mut round = self.clone();
            round.table.policies.remove(i);
            all.push(round);
        }
        for (f, filter) in self.filters.iter().enumerate().filter(|(_, filter)| filter.0.len() > 1) {
            for i in 0..filter.0.len() {
                let mut round = self.clone();
                round.filters[f].0.remove(i);
                all.push(round);
            }
        }
        for (i, Column { name, .. }) in self.table.columns.iter().enumerate() {
            if self.filters.iter().any(|filter| filter.reads(name)) {
                continue;
            }
            if let Some(table) = self.table.without(i) {
                let mut round = Round { table, ..self.clone() };
                round.rows.iter_mut().for_each(|row| {
                    row.remove(i);
                });
                all.push(round);
            }
        }
        all
    }
}
