//! Channels that are aside for a reason of their own, and what they are owed then.

use super::*;

/// A channel of both tables with a backlog that its connection does not take.
async fn parked(past: &mut Past, witness: &mut Witness) -> Arc<Port> {
    let slow = port_with(16 << 10);
    for _ in 0..200 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    past.goes_by().await;
    witness.slow.insert(slow.id);
    let entries = vec![since(1, "owned", place(100, u32::MAX)), since(2, "waiting", place(100, u32::MAX))];
    past.bench.subscribe(&slow, entries, ALICE).await;
    witness.until(&mut past.bench, "some rows", |w| w.of(&slow).rows.len() > 3).await;
    slow
}

async fn told(past: &mut Past, witness: &mut Witness, port: &Arc<Port>, what: &str) {
    let began = witness.of(port).told.len();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while !witness.of(port).told[began..].iter().any(|message| message.contains(what)) {
        assert!(tokio::time::Instant::now() < deadline, "{what}: only {:?}", witness.of(port).told);
        past.commit(&[("owned", CARL, "x")]);
        if let Ok(Some(batch)) = tokio::time::timeout(Duration::from_millis(50), past.bench.batches.recv()).await {
            witness.take(batch);
        }
    }
}

#[tokio::test]
async fn a_table_that_leaves_the_publication_costs_who_catches_up_nothing_of_the_others_once_it_is_back() {
    let mut past = Past::new().await;
    let mut witness = Witness::default();
    let slow = parked(&mut past, &mut witness).await;
    past.bench.database.run("alter publication supabase_realtime drop table waiting").await;
    told(&mut past, &mut witness, &slow, "Please check Realtime").await;
    let (had, reached) = (witness.of(&slow).rows, slow.reached().unwrap());
    assert!(had.len() < 200 && reached.position == had[had.len() - 1].1, "{reached:?} with {} rows", had.len());
    past.commit(&[("owned", ALICE, "x")]);
    witness.let_go(None);
    past.bench.database.run("alter publication supabase_realtime add table waiting").await;
    told(&mut past, &mut witness, &slow, SUBSCRIBED).await;
    witness.until(&mut past.bench, "the rest", |w| w.of(&slow).rows.len() == 201).await;
    let entries = vec![since(1, "owned", place(100, u32::MAX))];
    assert_eq!(witness.of(&slow).ids(), Past::ids(&past.owed(ALICE, &entries)));
    assert!(witness.of(&slow).gaps.is_empty());
    past.bench.stop().await;
}
