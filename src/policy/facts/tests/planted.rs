//! Errors on purpose: the comparison notices each of them.

use super::Dice;
use super::agreement::{Tally, check, run};
use super::folding::Seam;
use super::reference::Mistake;
use super::rules::Rules;
use crate::policy::facts::Side;

#[test]
fn a_reference_that_is_wrong_is_contradicted() {
    for mistake in [Mistake::NullsInNotIn, Mistake::NullIsNotAny, Mistake::RaisesIsFalse, Mistake::TextOfNumbers] {
        let tally = run(0..60, mistake);
        assert!(!tally.wrong.is_empty(), "{mistake:?} was not noticed in {} cases", tally.cases);
    }
}

/// One transaction each, of which `skip` is not folded.
fn tally(swapped: bool, skip: Option<usize>) -> Tally {
    let mut tally = Tally::default();
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let mut seam = Seam::new(&mut dice);
        for turn in 0..4 {
            let before = seam.world.state();
            let tx = seam.world.transaction(&mut dice);
            let after = seam.world.state();
            if skip != Some(turn) {
                seam.facts.begin(&tx).expect("it can be read");
            }
            let mut sides = [(Side::Before, &before[..]), (Side::After, &after[..])];
            if swapped {
                sides = [(Side::After, &before[..]), (Side::Before, &after[..])];
            }
            let rule = Rules::rule(&mut dice);
            let ready = seam.facts.bind(&rule).is_ok();
            if ready {
                check(&mut dice, &rule, &seam.facts, sides, &[], Mistake::None, &mut tally);
            }
            seam.facts.end();
        }
    }
    tally
}

#[test]
fn sides_that_are_swapped_are_noticed() {
    assert!(tally(false, None).wrong.is_empty());
    assert!(!tally(true, None).wrong.is_empty());
}

#[test]
fn facts_that_are_stale_are_noticed() {
    assert!(!tally(false, Some(2)).wrong.is_empty());
}
