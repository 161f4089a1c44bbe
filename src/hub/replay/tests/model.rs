//! Any log, any joins, any answers: what each channel is owed is known beforehand.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::log::testing::DiscardingFiles;

/// Joins, parks, answers, commits and syncs that succeed or fail, in a random order; each gets what it is owed, once and in order.
async fn random(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = DiscardingFiles::new();
    let tail = random.random_range(10..16);
    let mut past = Past::on(Arc::new(disk.clone()), |log| log.tail_bytes = 1 << tail).await;
    let mut witness = Witness::default();
    let mut channels: Vec<(Arc<Port>, &str, Vec<Entry>)> = Vec::new();
    let kinds = ["q", "x", "slow"];
    for _ in 0..random.random_range(100..400) {
        let step = random.random_range(0..23);
        match step {
            0..14 => {
                let rows: Vec<_> = (0..random.random_range(1..6))
                    .map(|_| {
                        let table = if random.random_bool(0.1) { "waiting" } else { "owned" };
                        let owner = if random.random_bool(0.5) { ALICE } else { BOB };
                        (table, owner, kinds[random.random_range(0..3)])
                    })
                    .collect();
                past.commit(&rows);
                for (port, owner, entries) in &channels {
                    witness.owed.insert(port.id, past.owed(owner, entries));
                }
            }
            14..17 | 20 if channels.len() < if step == 20 { 18 } else { 12 } => {
                if step == 20 {
                    there(&mut past, &mut witness).await;
                    past.takes_back(&disk).await;
                }
                let owner = if random.random_bool(0.5) { ALICE } else { BOB };
                let (one, other) =
                    (random_start(&mut random, past.bench.lsn), random_start(&mut random, past.bench.lsn));
                let mut entries = vec![since(1, "owned", one)];
                if random.random_bool(0.4) {
                    entries.push(since(2, "waiting", other));
                }
                let port = port_with(if random.random_bool(0.5) { 24 << 10 } else { 1 << 20 });
                if random.random_bool(0.3) {
                    witness.slow.insert(port.id);
                }
                witness.owed.insert(port.id, past.owed(owner, &entries));
                past.bench.subscribe(&port, entries.clone(), owner).await;
                channels.push((port, owner, entries));
                runs(&past, random.random_range(0..20)).await;
            }
            17 => witness.let_go(channels.first().map(|(port, ..)| port.id)),
            18 => {
                let slow = channels.get(random.random_range(0..12)).map(|(port, ..)| port.id);
                witness.slow.extend(slow);
            }
            19 => drop(past.bench.log.sync().unwrap()),
            21 => past.comes_again(random.random_range(1..5)),
            _ => {}
        }
        while let Ok(batch) = past.bench.batches.try_recv() {
            witness.take(batch);
        }
    }
    past.comes_again(usize::MAX);
    witness.let_go(None);
    let all =
        |w: &mut Witness| w.owed.iter().all(|(id, owed)| w.seen.get(id).map_or(0, |s| s.rows.len()) >= owed.len());
    witness.until(&mut past.bench, &format!("seed {seed}"), all).await;
    for (port, owner, entries) in &channels {
        assert_eq!(witness.of(port).ids(), Past::ids(&past.owed(owner, entries)), "seed {seed}");
        assert!(witness.of(port).gaps.is_empty(), "seed {seed}");
    }
    let end = place(past.bench.lsn, u32::MAX);
    let there = |w: &mut Witness| channels.iter().all(|(p, ..)| w.ports[&p.id].reached().unwrap().position == end);
    witness.until(&mut past.bench, &format!("seed {seed}: all are there"), there).await;
    past.bench.stop().await;
}

/// The hub takes so many turns.
async fn runs(past: &Past, turns: u32) {
    for _ in 0..turns {
        past.bench.hub.describe().await.expect("runs");
    }
}

/// The hub comes to the end of the log.
async fn there(past: &mut Past, witness: &mut Witness) {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while past.bench.hub.describe().await.expect("runs").position < past.bench.log.end() {
        assert!(tokio::time::Instant::now() < deadline, "the hub stands still");
        while let Ok(batch) = past.bench.batches.try_recv() {
            witness.take(batch);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn random_start(random: &mut StdRng, end: u64) -> Position {
    let lsn = 100 + 10 * random.random_range(0..=(end - 100) / 10);
    // Nothing is before the log's first transaction, not even in one.
    let ordinal = if lsn == 100 || random.random_bool(0.5) { u32::MAX } else { random.random_range(0..4) };
    place(lsn, ordinal)
}

#[tokio::test]
async fn whenever_and_from_wherever_it_joins_each_gets_what_it_is_owed_once_and_in_order() {
    let seed = rand::random::<u32>();
    for seed in (0..6).map(|n| u64::from(seed) + n) {
        random(seed).await;
    }
}
