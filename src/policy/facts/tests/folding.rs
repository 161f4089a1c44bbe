//! The seam between loaded rows and the stream, and what follows.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Dice;
use super::world::{Cell, Row, Table, World};
use crate::catalog::Snapshot;
use crate::change::Transaction;
use crate::policy::facts::{FactState, FactTable, Facts, Side, State};

/// Facts that were loaded while transactions went on.
pub(super) struct Seam {
    pub(super) world: World,
    pub(super) facts: Facts,
}

fn loaded(table: &Table, rows: &[Row]) -> FactTable {
    let mut loaded = FactTable::new(table.layout.clone());
    for row in rows {
        let values = row.cells.iter().map(|cell| cell.map(str::as_bytes));
        loaded.insert_into(table.layout.leaves[row.leaf], values).expect("a row");
    }
    loaded
}

impl Seam {
    /// Some transactions before recording began, some recorded; the snapshot is of any moment since, also one that the stream
    /// reaches only later.
    pub(super) fn new(dice: &mut Dice) -> Seam {
        let mut world = World::new();
        let mut facts = Facts::new(usize::MAX);
        let mut states = vec![world.state()];
        let mut transactions: Vec<Transaction> = Vec::new();
        for _ in 0..8 {
            transactions.push(world.transaction(dice));
            states.push(world.state());
        }
        // Ids are given at the first write, positions at the commit.
        for at in 1..transactions.len() {
            if dice.one_in(3) {
                let (a, b) = transactions.split_at_mut(at);
                std::mem::swap(&mut a[at - 1].xid, &mut b[0].xid);
            }
        }
        let record = dice.roll(4);
        let snapshot_at = record + dice.roll(8 - record);
        let install = record + dice.roll(8 - record);
        let snapshot = snapshot(&transactions, snapshot_at);
        for (at, tx) in transactions.iter().enumerate() {
            if at == record {
                world.tables.iter().for_each(|table| facts.record(table.layout.clone()));
            }
            if at == install {
                for (table, rows) in world.tables.iter().zip(&states[snapshot_at]) {
                    facts.install(loaded(table, rows), &snapshot).expect("installed");
                }
            }
            facts.begin(tx).expect("it can be read");
            facts.end();
        }
        Seam { world, facts }
    }
}

/// One that sees the first so many.
fn snapshot(transactions: &[Transaction], seen: usize) -> Snapshot {
    let (seen, unseen) = transactions.split_at(seen);
    let xmax = seen.iter().map(|tx| tx.xid + 1).max().unwrap_or(100);
    let open: Vec<u32> = unseen.iter().map(|tx| tx.xid).filter(|xid| *xid < xmax).collect();
    let xmin = open.iter().min().copied().unwrap_or(xmax);
    let open: Vec<String> = open.iter().map(u32::to_string).collect();
    Snapshot::parse(&format!("{xmin}:{xmax}:{}", open.join(","))).expect("a snapshot")
}

type Shown = Vec<Option<Vec<u8>>>;

/// What a side shows, sorted; numbers in their canonical text.
fn shown(facts: &Facts, oid: u32, side: Side) -> Vec<(Shown, u32)> {
    let table = facts.tables.iter().find(|table| table.layout.table_oid == oid).expect("known");
    let State::Ready(store) = &table.state else { panic!("{:?}", table.state()) };
    let mut rows: Vec<_> = (0..store.versions())
        .filter(|row| store.sees(side, *row))
        .map(|row| {
            let cell = |symbol: &u32| (*symbol != 0).then(|| store.packed(*symbol).text().to_vec());
            (store.row(row).iter().map(cell).collect(), store.count(side, row))
        })
        .collect();
    rows.sort();
    rows
}

fn expected(rows: &[Row]) -> Vec<(Shown, u32)> {
    let canonical = |cell: &Cell| cell.map(|text| if text == "1.0" { b"1".to_vec() } else { text.as_bytes().to_vec() });
    let mut counted: BTreeMap<(usize, Shown), u32> = BTreeMap::new();
    for row in rows {
        *counted.entry((row.leaf, row.cells.iter().map(canonical).collect())).or_default() += 1;
    }
    let mut rows: Vec<_> = counted.into_iter().map(|((_, cells), count)| (cells, count)).collect();
    rows.sort();
    rows
}

#[test]
fn facts_are_those_of_the_history_on_both_sides_of_every_transaction() {
    for seed in 0..600 {
        let mut dice = Dice::new(seed);
        let mut seam = Seam::new(&mut dice);
        for turn in 0..12 {
            let before = seam.world.state();
            let tx = seam.world.transaction(&mut dice);
            seam.facts.begin(&tx).expect("it can be read");
            for (at, table) in seam.world.tables.iter().enumerate() {
                let oid = table.layout.table_oid;
                let what = format!("seed {seed}, turn {turn}, table {at}");
                assert_eq!(shown(&seam.facts, oid, Side::Before), expected(&before[at]), "{what}, before");
                assert_eq!(shown(&seam.facts, oid, Side::After), expected(&table.rows), "{what}, after");
            }
            seam.facts.end();
            for table in &seam.world.tables {
                let oid = table.layout.table_oid;
                assert_eq!(shown(&seam.facts, oid, Side::Before), expected(&table.rows), "seed {seed}, at the end");
                let rows = table.rows.len() as u64;
                assert!(matches!(seam.facts.state(oid), FactState::Ready { rows: found, .. } if found == rows));
            }
        }
    }
}

#[test]
fn a_change_that_contradicts_the_rows_breaks_the_table_and_no_other() {
    let mut broken = 0;
    for seed in 0..100 {
        let mut dice = Dice::new(seed);
        let mut seam = Seam::new(&mut dice);
        let generation = seam.facts.generation();
        let tx = seam.world.transaction(&mut dice);
        // The same transaction twice: most changes can't happen again.
        for _ in 0..2 {
            seam.facts.begin(&tx).expect("it can be read");
            seam.facts.end();
        }
        let states: Vec<FactState> = seam.facts.tables().map(|(_, state)| state).collect();
        let failed = states.iter().filter(|state| matches!(state, FactState::Broken(_))).count();
        assert_eq!(failed > 0, seam.facts.generation() != generation);
        broken += failed;
    }
    assert!(broken > 30, "{broken}");
}

#[test]
fn a_table_that_was_forgotten_is_followed_no_more() {
    let mut dice = Dice::new(1);
    let mut seam = Seam::new(&mut dice);
    let relations: Vec<Arc<crate::change::Relation>> = seam.world.transaction(&mut dice).relations;
    assert!(seam.facts.concerns(&relations));
    for oid in [1001, 1002, 1003] {
        seam.facts.forget(oid);
        assert_eq!(seam.facts.state(oid), FactState::Absent);
    }
    assert!(!seam.facts.concerns(&relations));
}
