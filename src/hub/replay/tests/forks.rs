//! Another server goes on with the history, and has not got all that the one before it had sent: a promotion.

use super::*;

fn next() -> Epoch {
    Epoch { system_identifier: 1, incarnation: 2 }
}

fn at(epoch: u64, position: Position) -> Cursor {
    Cursor { epoch, position }
}

impl Past {
    /// The hub stands at a transaction that others can't see yet, until this session commits.
    async fn halts(&mut self) -> tokio_postgres::Client {
        let client = self.bench.database.config("relay").connect().await.expect("connected");
        client.batch_execute("begin; create temp table t (a int)").await.expect("done");
        let id = client.query_one("select (pg_current_xact_id()::text::numeric % 4294967296)::text", &[]).await;
        let xid = id.unwrap().get::<_, &str>(0).parse().unwrap();
        let mut builder = TransactionBuilder::default();
        builder.rules_changed();
        let owned = self.owned.clone();
        self.bench.insert_by(xid, builder, &owned, &[vec!["halt", CARL, "x"]]);
        self.rows.push(Row { id: "halt".into(), table: "owned", owner: CARL, at: place(self.bench.lsn, 0) });
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while self.bench.hub.describe().await.expect("runs").position < Lsn(self.bench.lsn) {
            assert!(tokio::time::Instant::now() < deadline, "the hub stands still");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        client
    }

    /// Appends a row of Alice's that no snapshot sees, and gives its id.
    fn commit_unseen(&mut self) -> String {
        let id = format!("u{}", self.bench.lsn);
        let owned = self.owned.clone();
        self.bench.insert_by(1_000_000, TransactionBuilder::default(), &owned, &[vec![&id, ALICE, "x"]]);
        id
    }

    /// What is behind this place was taken back.
    fn fork(&mut self, to: u64) {
        self.bench.writer.fork(next(), Lsn(to), Lsn(to)).unwrap();
        self.bench.lsn = to;
        self.rows.retain(|row| row.at.lsn.0 <= to);
    }
}

#[tokio::test]
async fn who_begins_ahead_of_the_stream_and_behind_a_fork_is_told_and_gets_what_comes_at_places_that_it_had_passed() {
    let mut past = Past::new().await;
    past.commit(&[("owned", ALICE, "x"), ("waiting", ALICE, "q")]);
    past.goes_by().await;
    let early = place(past.bench.lsn, u32::MAX);
    past.commit(&[("owned", ALICE, "x")]);
    let halted = past.halts().await;
    let fork = past.bench.lsn;
    for _ in 0..10 {
        past.commit(&[("owned", ALICE, "x"), ("waiting", ALICE, "q")]);
    }
    // As joins do: from the end of the log. One goes on from the past with another entry.
    let end = place(past.bench.lsn, u32::MAX);
    let (ahead, both) = (port(), port());
    past.bench.subscribe(&ahead, vec![since(1, "owned", end)], ALICE).await;
    past.bench.subscribe(&both, vec![since(1, "owned", early), since(2, "waiting", end)], ALICE).await;
    past.fork(fork);
    let before = past.rows.len();
    for _ in 0..3 {
        past.commit(&[("owned", ALICE, "x"), ("waiting", ALICE, "q")]);
    }
    halted.batch_execute("commit").await.expect("committed");
    let new: Vec<Row> = past.rows[before..].to_vec();
    let mut witness = Witness::default();
    let done = |w: &mut Witness| w.of(&ahead).rows.len() >= 3 && w.of(&both).rows.len() >= 7;
    witness.until(&mut past.bench, "the new history", done).await;
    let owned: Vec<Row> = new.iter().filter(|row| row.table == "owned").cloned().collect();
    assert_eq!(witness.of(&ahead).ids(), Past::ids(&owned));
    assert_eq!(witness.of(&both).ids()[1..], Past::ids(&new));
    let (from, to) = (Some(at(tag(), end)), at(next().tag(), place(fork, u32::MAX)));
    for port in [&ahead, &both] {
        assert_eq!(witness.of(port).gaps, [Details::Gap { from, to, reason: GapReason::Lost }]);
    }
    past.bench.stop().await;
}

#[tokio::test]
async fn who_begins_ahead_of_the_stream_does_not_wait_for_another_history_to_come_to_that_place() {
    let mut past = Past::new().await;
    past.goes_by().await;
    let halted = past.halts().await;
    let resumed = past.bench.lsn + 50;
    for _ in 0..10 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    let (ahead, end) = (port(), place(past.bench.lsn, u32::MAX));
    past.bench.subscribe(&ahead, vec![since(1, "owned", end)], ALICE).await;
    past.bench.writer.begin_epoch(next(), Lsn(resumed)).unwrap();
    past.bench.lsn = resumed;
    past.commit(&[("owned", ALICE, "x")]);
    halted.batch_execute("commit").await.expect("committed");
    let last = past.rows.last().unwrap().id.clone();
    let mut witness = Witness::default();
    witness.until(&mut past.bench, "the new history", |w| w.of(&ahead).ids() == [&*last]).await;
    assert_eq!(witness.of(&ahead).gaps.len(), 1);
    past.bench.stop().await;
}

#[tokio::test]
async fn who_is_parked_behind_a_fork_goes_on_from_there_and_gets_nothing_twice() {
    let mut past = Past::new().await;
    let slow = port_with(16 << 10);
    let mut witness = Witness::default();
    for _ in 0..300 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    past.goes_by().await;
    witness.slow.insert(slow.id);
    past.bench.subscribe(&slow, vec![since(1, "owned", place(100, u32::MAX))], ALICE).await;
    witness.until(&mut past.bench, "some rows", |w| w.of(&slow).rows.len() > 3).await;
    while let Ok(Some(batch)) = tokio::time::timeout(Duration::from_millis(300), past.bench.batches.recv()).await {
        witness.take(batch);
    }
    let had = witness.of(&slow).rows;
    assert!(had.len() < 300, "it is parked");
    let (was, fork) = (slow.reached().unwrap(), had[had.len() - 3].1.lsn.0);
    past.fork(fork);
    past.commit(&[("owned", ALICE, "y")]);
    past.commit(&[("owned", ALICE, "y")]);
    witness.let_go(None);
    witness.until(&mut past.bench, "the new rows", |w| w.of(&slow).rows.len() == had.len() + 2).await;
    let new = Past::ids(&past.rows[past.rows.len() - 2..]).into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(witness.of(&slow).ids()[had.len()..], new);
    let to = at(next().tag(), place(fork, u32::MAX));
    assert_eq!(witness.of(&slow).gaps, [Details::Gap { from: Some(was), to, reason: GapReason::Lost }]);
    past.bench.stop().await;
}

/// A channel with a snapshot whose seam is not behind it.
async fn with_snapshot(past: &mut Past, witness: &mut Witness) -> Arc<Port> {
    past.bench.database.run(&format!("insert into owned values ('shown', '{ALICE}', 'x')")).await;
    past.goes_by().await;
    let alice = port();
    let snapshot = Some(SnapshotWish { limit: 10, order: Vec::new() });
    past.bench.subscribe(&alice, vec![Entry { snapshot, ..entry(1, "owned", None) }], ALICE).await;
    let last = past.commit_unseen();
    witness.until(&mut past.bench, "the snapshot", |w| w.of(&alice).ids().last() == Some(&&*last)).await;
    assert_eq!(witness.of(&alice).ids(), ["shown", &last]);
    assert_eq!((witness.of(&alice).told.len(), alice.reached()), (0, None), "in the seam");
    alice
}

/// Far behind all that the server has written, so behind the seam too.
const BEYOND: u64 = 1 << 60;

#[tokio::test]
async fn a_snapshot_that_shows_what_was_taken_back_is_a_gap_and_never_complete() {
    let mut past = Past::new().await;
    let mut witness = Witness::default();
    let alice = with_snapshot(&mut past, &mut witness).await;
    past.fork(past.bench.lsn);
    past.commit(&[("owned", ALICE, "x")]);
    past.bench.lsn = BEYOND;
    past.commit(&[("owned", ALICE, "x")]);
    let beyond = place(past.bench.lsn, u32::MAX);
    let there = |w: &mut Witness| w.ports[&alice.id].reached().is_some_and(|reached| reached.position == beyond);
    witness.until(&mut past.bench, "it is there", there).await;
    let seen = witness.of(&alice);
    assert_eq!((seen.rows.len(), seen.gaps.len(), seen.told.len()), (4, 1, 1), "{seen:?}");
    assert!(matches!(seen.gaps[0], Details::Gap { from: None, reason: GapReason::Lost, .. }));
    past.bench.stop().await;
}

#[tokio::test]
async fn a_snapshot_of_what_both_histories_share_is_complete_when_its_seam_is_behind_it_and_not_before() {
    let mut past = Past::new().await;
    let mut witness = Witness::default();
    let alice = with_snapshot(&mut past, &mut witness).await;
    past.bench.writer.fork(next(), Lsn(past.bench.lsn), Lsn(BEYOND)).unwrap();
    // The snapshot shows this.
    past.commit(&[("owned", ALICE, "x")]);
    let row = past.commit_unseen();
    witness.until(&mut past.bench, "a row", |w| w.of(&alice).ids().last() == Some(&&*row)).await;
    past.goes_by().await;
    while let Ok(batch) = past.bench.batches.try_recv() {
        witness.take(batch);
    }
    assert_eq!((witness.of(&alice).told.len(), alice.reached()), (0, None), "still in the seam");
    assert_eq!(witness.of(&alice).rows.len(), 3);
    past.bench.lsn = BEYOND;
    past.commit(&[("owned", ALICE, "x")]);
    witness.until(&mut past.bench, "its end", |w| w.of(&alice).told == [COMPLETE]).await;
    assert!(alice.reached().is_some_and(|reached| reached.epoch == next().tag()));
    past.bench.stop().await;
}
