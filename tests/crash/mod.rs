//! What a crash leaves behind. The process is killed, or the machine loses what it had not synced; afterwards the log holds
//! exactly what was committed, in commit order, each row once.
//!
//! The truth comes from a second replication slot, read by SQL and decoded here, not by the code under test.

mod killed;
mod slow;
mod unsynced;
mod witness;
mod writers;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rowcast::change::{Change, Item, Lsn};
use rowcast::log::{Log, Read};

use crate::support::TestPg;

/// One transaction, as far as table `steps` is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Committed {
    /// Commit end LSN.
    pub(super) end: Lsn,
    /// The ids of its rows, in the order of the WAL.
    pub(super) ids: Vec<String>,
}

/// Published, with an id that says nothing of the order.
async fn create_table(pg: &TestPg) {
    pg.exec(
        "create table public.steps (id uuid primary key default gen_random_uuid(), writer int not null, note text not null); \
         alter publication supabase_realtime add table public.steps",
    )
    .await;
}

/// Chooses the moments; printed, so that `ROWCAST_SEED=…` repeats them.
fn dice() -> StdRng {
    let given = std::env::var_os("ROWCAST_SEED").and_then(|seed| seed.to_str()?.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random());
    println!("ROWCAST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Everything in the log after `from` that touches table `steps`, in the log's order, its positions checked.
async fn logged(log: &Log, from: Lsn) -> Vec<Committed> {
    let mut reader = log.reader(from);
    let (mut found, mut last) = (Vec::new(), None);
    while let Some(read) = reader.try_next().await.expect("a readable log") {
        let transaction = match read {
            Read::Transaction(transaction) => transaction,
            Read::Idle(_) => continue,
            Read::Gap { from, resumed } => panic!("a gap from {from} to {resumed}"),
        };
        let mut ids = Vec::new();
        for item in transaction.iter() {
            let item = item.expect("a readable item");
            let position = match &item {
                Item::Row(row) => row.position,
                Item::Truncate(truncate) => truncate.position,
                Item::Message(message) => message.position,
            };
            assert!(last < Some(position), "{position} comes after {last:?}");
            assert_eq!(position.lsn, transaction.end_lsn);
            last = Some(position);
            let Item::Row(row) = item else { continue };
            if row.relation.table != "steps" {
                continue;
            }
            let Change::Insert { new } = row.change else { panic!("only inserts were made") };
            let id = row.relation.column("id").and_then(|column| new.get(column).as_str());
            ids.push(id.expect("an id").to_owned());
        }
        if !ids.is_empty() {
            found.push(Committed { end: transaction.end_lsn, ids });
        }
    }
    found
}

/// Compares, and tells the first difference instead of ten thousand rows.
#[track_caller]
fn assert_same(logged: &[Committed], committed: &[Committed]) {
    for (index, pair) in logged.iter().zip(committed).enumerate() {
        assert!(pair.0 == pair.1, "transaction {index}: the log has {:?}, committed was {:?}", pair.0, pair.1);
    }
    let (first_extra, first_missing) = (logged.get(committed.len()), committed.get(logged.len()));
    assert!(first_extra.is_none(), "the log goes on with {first_extra:?}");
    assert!(first_missing.is_none(), "the log ends before {first_missing:?}, and {} in all", committed.len());
}
