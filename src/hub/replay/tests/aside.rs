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

#[tokio::test]
async fn who_catches_up_over_a_damaged_region_is_told_of_it_and_gets_what_is_before_and_behind() {
    let small = |log: &mut LogConfig| (log.segment_bytes, log.tail_bytes) = (4096, 2048);
    let mut past = Past::with(small).await;
    for _ in 0..400 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    past.goes_by().await;
    let folder = past.bench._folder.path().join("log");
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut segments: Vec<_> = files.filter(|path| path.metadata().is_ok_and(|file| file.len() > 3000)).collect();
    segments.sort();
    assert!(segments.len() > 6, "{segments:?}");
    let mut bytes = std::fs::read(&segments[2]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0xA5);
    std::fs::write(&segments[2], bytes).unwrap();
    let ports = [port(), port()];
    let mut witness = Witness::default();
    for port in &ports {
        past.bench.subscribe(port, vec![since(1, "owned", place(100, u32::MAX))], ALICE).await;
    }
    let entries = [since(1, "owned", place(100, u32::MAX))];
    let owed = past.owed(ALICE, &entries);
    let last = owed.last().unwrap().id.clone();
    let done = |w: &mut Witness| ports.iter().all(|port| w.of(port).ids().last() == Some(&&*last));
    witness.until(&mut past.bench, "the rest", done).await;
    for port in &ports {
        let seen = witness.of(port);
        let [Details::Gap { from: Some(from), to, reason: GapReason::Lost }] = seen.gaps[..] else {
            panic!("{seen:?}")
        };
        let readable = owed.iter().filter(|row| row.at <= from.position || row.at > to.position);
        assert_eq!(seen.ids(), readable.map(|row| row.id.as_str()).collect::<Vec<_>>());
        let missing = owed.len() - seen.rows.len();
        assert!((1..60).contains(&missing), "{missing} rows of one segment");
    }
    past.bench.stop().await;
}

#[tokio::test]
async fn a_channel_that_was_removed_is_not_said_to_go_on_with_the_others() {
    let mut past = Past::new().await;
    let (alice, bob) = (port(), port());
    past.bench.subscribe(&alice, vec![entry(1, "owned", None)], ALICE).await;
    past.bench.subscribe(&bob, vec![entry(1, "owned", None)], BOB).await;
    let mut witness = Witness::default();
    past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x")]);
    witness.until(&mut past.bench, "the first", |w| w.of(&bob).rows.len() == 1).await;
    past.bench.hub.leave(alice.id).await;
    past.bench.hub.describe().await.expect("it has taken the command before this");
    past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x")]);
    let missed = past.rows[past.rows.len() - 2].at;
    let there = |w: &mut Witness| w.ports[&bob.id].reached().is_some_and(|reached| reached.position > missed);
    witness.until(&mut past.bench, "the others go on", there).await;
    assert_eq!(witness.of(&alice).rows.len(), 1);
    let reached = alice.reached().expect("it was active").position;
    assert!(witness.of(&alice).rows[0].1 <= reached && reached < missed, "{reached}");
    past.bench.stop().await;
}
