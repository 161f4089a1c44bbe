//! From a difference to the least that shows it, as SQL.

use super::check::{Difference, check};
use super::column::quote;
use super::evaluator::Evaluator;
use super::round::Round;
use super::stage::{Stage, assume};

/// SQL to see it again, by hand.
pub(super) fn repeat(round: &Round, difference: &Difference) -> String {
    let rows: Vec<_> = round.rows.iter().collect();
    let mut sql = format!("-- {} (seed {})\n", difference.what.replace('\n', " "), round.seed);
    let key: Vec<String> = round.table.key.iter().map(|i| round.table.columns[*i].quoted()).collect();
    let identity = format!("{:?}", round.table.identity).to_lowercase();
    // Without the key: two images of one row stand side by side.
    sql.push_str(&format!("-- primary key ({}), replica identity {identity}\n", key.join(", ")));
    sql.push_str(&round.table.create_images("t"));
    sql.push_str(&round.table.insert("t", &rows));
    if let Some(step) = difference.step {
        sql.push_str(&format!("-- the change is {step:?}, by n\n"));
    }
    if let Some(who) = difference.who {
        sql.push_str(&assume(&round.who[who]));
        sql.push_str("select n from public.t; rollback;\n");
    }
    if let Some(filter) = difference.filter {
        let filter = &round.filters[filter];
        sql.push_str(&format!("-- the filter is {}\n", quote(&filter.text())));
        sql.push_str(&format!("select n, {} from public.t;\n", filter.sql(&round.table)));
    }
    sql
}

/// The same difference with as little as possible around it.
pub(super) async fn minimise(stage: &mut Stage, round: &Round, found: &Difference, evaluator: Evaluator) -> String {
    let mut best = (round.clone(), found.clone());
    let mut next = vec![round.narrowed(found.step, found.who, found.filter)];
    while !next.is_empty() {
        let mut smaller = Vec::new();
        for candidate in next {
            if let Ok((_, differences)) = check(stage, &candidate, evaluator).await
                && let Some(difference) = differences.into_iter().next()
            {
                smaller = candidate.smaller();
                best = (candidate, difference);
                break;
            }
        }
        next = smaller;
    }
    repeat(&best.0, &best.1)
}
