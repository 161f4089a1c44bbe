//! Whatever the rule, the facts, the row and the viewer: the evaluator says what the reference says, on both sides of every
//! transaction, and the keys find whoever is permitted. So it does for viewers who are judged one after the other, row after
//! row and transaction after transaction, whatever is remembered of them.

use std::collections::BTreeSet;

use super::Dice;
use super::folding::Seam;
use super::reference::{Mistake, Reference};
use super::rules::{Rules, judged, viewer};
use super::world::{Cell, Row};
use crate::change::Value;
use crate::policy::facts::{FactBinding, Facts, Side};
use crate::policy::rule::{Keys, KnownViewer, RowKeys, Rule, Truth, Viewer, ViewerKey};

/// What one run came to.
#[derive(Default, Debug)]
pub(super) struct Tally {
    pub(super) cases: u64,
    pub(super) permitted: u64,
    pub(super) with_keys: u64,
    pub(super) raised: u64,
    pub(super) wrong: Vec<String>,
}

fn column(row: &[Cell]) -> impl Fn(usize) -> Value<'static> {
    let row = row.to_vec();
    move |at| row[at].map_or(Value::Null, |text| Value::Text(text.as_bytes()))
}

/// Whether the hub would judge this viewer for this row.
fn finds(
    keys: &Keys,
    viewer: &Viewer,
    row: &[Cell],
    binding: &FactBinding,
    facts: &Facts,
    side: Side,
    limit: usize,
) -> bool {
    let mut found: BTreeSet<(u16, Vec<u8>)> = BTreeSet::new();
    let outcome = keys.of_row(binding, facts, side, &column(row), limit, &mut |claim, value| {
        found.insert((claim, value.to_vec()));
    });
    let crowded: &[u16] = match &outcome {
        RowKeys::Complete => &[],
        RowKeys::TooMany(claims) => claims,
        RowKeys::Absent => panic!("nothing is absent"),
    };
    keys.claims().iter().any(|claim| match keys.of_viewer(*claim, viewer) {
        ViewerKey::MustJudge => true,
        ViewerKey::Values(values) => {
            values.iter().any(|value| crowded.contains(claim) || found.contains(&(*claim, value.to_vec())))
        }
    })
}

/// False and NULL are one where a policy ends.
fn answer(truth: Truth) -> Truth {
    if truth == Truth::Null { Truth::False } else { truth }
}

pub(super) fn check(
    dice: &mut Dice,
    rule: &Rule,
    facts: &Facts,
    sides: [(Side, &[Vec<Row>]); 2],
    crowd: &[KnownViewer],
    mistake: Mistake,
    tally: &mut Tally,
) {
    let binding = facts.bind(rule).expect("the tables are ready");
    let keys = rule.keys();
    for (side, state) in sides {
        let row = judged(dice);
        let column = column(&row);
        let mut judge = rule.judge_row(&binding, facts, side, &column);
        for viewer in crowd {
            let reference = Reference { rule, state, row: &row, viewer: viewer.viewer(), mistake };
            let (expected, truth) = (answer(reference.truth()), answer(judge.truth(viewer)));
            tally.cases += 1;
            tally.permitted += u64::from(truth == Truth::True);
            tally.raised += u64::from(truth == Truth::Raises);
            tally.with_keys += u64::from(keys.is_some());
            if truth != expected {
                tally.wrong.push(format!(
                    "{truth:?}, not {expected:?}, in a crowd, {side:?}, row {row:?}, {rule:#?}, state {state:?}"
                ));
            }
        }
    }
    for (side, state) in sides {
        for _ in 0..4 {
            let (row, viewer) = (judged(dice), viewer(dice));
            let reference = Reference { rule, state, row: &row, viewer: &viewer, mistake };
            let expected = answer(reference.truth());
            let truth = answer(rule.truth(&binding, facts, side, &column(&row), &viewer));
            tally.cases += 1;
            tally.permitted += u64::from(truth == Truth::True);
            tally.raised += u64::from(truth == Truth::Raises);
            tally.with_keys += u64::from(keys.is_some());
            if truth != expected {
                tally
                    .wrong
                    .push(format!("{truth:?}, not {expected:?}, {side:?}, row {row:?}, {rule:#?}, state {state:?}"));
            }
            let limit = if dice.one_in(4) { 1 + dice.roll(3) } else { 1000 };
            let missed = |keys: &&Keys| !finds(keys, &viewer, &row, &binding, facts, side, limit);
            if truth == Truth::True && keys.as_ref().filter(missed).is_some() {
                tally.wrong.push(format!("missed {side:?}, row {row:?}, {rule:#?}, {keys:#?}, state {state:?}"));
            }
        }
    }
}

pub(super) fn run(seeds: std::ops::Range<u64>, mistake: Mistake) -> Tally {
    let mut tally = Tally::default();
    for seed in seeds {
        let mut dice = Dice::new(seed);
        let mut seam = Seam::new(&mut dice);
        let rules: Vec<Rule> = (0..4).map(|_| Rules::rule(&mut dice)).collect();
        let crowd: Vec<KnownViewer> = (0..4).map(|_| KnownViewer::new(viewer(&mut dice))).collect();
        for _ in 0..6 {
            let before = seam.world.state();
            let tx = seam.world.transaction(&mut dice);
            let after = seam.world.state();
            seam.facts.begin(&tx).expect("it can be read");
            for rule in &rules {
                let sides = [(Side::Before, &before[..]), (Side::After, &after[..])];
                check(&mut dice, rule, &seam.facts, sides, &crowd, mistake, &mut tally);
            }
            if !tally.wrong.is_empty() && mistake == Mistake::None {
                panic!("seed {seed}: {}", tally.wrong[0]);
            }
            seam.facts.end();
        }
    }
    tally
}

#[test]
fn rules_are_true_of_facts_exactly_when_they_are_by_definition() {
    let tally = run(0..400, Mistake::None);
    assert!(tally.cases >= 50_000, "{tally:?}");
    // The grammar does not only make rules that are never true, always raise, or have no keys.
    assert!(tally.permitted * 8 > tally.cases, "{tally:?}");
    assert!(tally.raised > 500 && tally.raised * 3 < tally.cases, "{tally:?}");
    assert!(tally.with_keys * 5 > tally.cases, "{tally:?}");
}
