//! Channels that begin in the past. The test plays the stream and the shards, and checks at every batch that nobody is said to be
//! farther than he is.

#[path = "tests/messages.rs"]
mod messages;
#[path = "tests/model.rs"]
mod model;
#[path = "tests/aside.rs"]
mod aside;
#[path = "tests/forks.rs"]
mod forks;
#[path = "tests/failed_syncs.rs"]
mod failed_syncs;

use std::collections::{BTreeSet, VecDeque};

use super::*;
use crate::change::{Position, Transaction};
use crate::resume::Cursor;

/// Of the log that a bench begins with.
fn tag() -> u64 {
    Epoch { system_identifier: 1, incarnation: 1 }.tag()
}

fn place(lsn: u64, ordinal: u32) -> Position {
    Position { lsn: Lsn(lsn), ordinal }
}

fn since(id: i32, table: &str, position: Position) -> Entry {
    Entry { start: Start::After(Cursor { epoch: tag(), position }), ..entry(id, table, None) }
}

const CARL: &str = "cccccccc-cccc-cccc-cccc-cccccccccccc";

/// A row as it was appended.
#[derive(Debug, Clone)]
struct Row {
    id: String,
    table: &'static str,
    owner: &'static str,
    at: Position,
}

/// What came for a channel.
#[derive(Debug, Default, Clone)]
struct Seen {
    rows: Vec<(String, Position)>,
    gaps: Vec<Details>,
    told: Vec<String>,
    live: usize,
    /// What came without a place to go on from.
    placeless: Vec<String>,
}

impl Seen {
    fn ids(&self) -> Vec<&str> {
        self.rows.iter().map(|(id, _)| id.as_str()).collect()
    }
}

/// The test as the only shard.
#[derive(Default)]
struct Witness {
    seen: BTreeMap<ChannelId, Seen>,
    ports: BTreeMap<ChannelId, Arc<Port>>,
    /// Rows that each channel must get, in order; those at or before how far it is said to be must have come.
    owed: BTreeMap<ChannelId, Vec<Row>>,
    reach: Arc<Reach>,
    /// Bytes on their way to connections that take nothing for now.
    stuck: Vec<(Arc<Port>, u32)>,
    slow: BTreeSet<ChannelId>,
    /// All that came, in order.
    order: Vec<(ChannelId, String)>,
}

impl Witness {
    fn take(&mut self, batch: Batch) {
        let reached = batch.cursor();
        let (mut holds, mut begun) = (Vec::new(), Vec::new());
        for outgoing in batch.items {
            match outgoing {
                Outgoing::Change(fanout) => {
                    let row = &fanout.event.value().row;
                    let crate::change::Change::Insert { new } = &row.change else { continue };
                    let id = new.get(0).as_str().unwrap().to_owned();
                    for member in &fanout.members {
                        let channel = member.port.id;
                        self.seen.entry(channel).or_default().rows.push((id.clone(), row.position));
                        if member.cursor_as.as_deref() == Some(crate::hub::NO_CURSOR) {
                            self.seen.entry(channel).or_default().placeless.push(id.clone());
                        }
                        self.order.push((channel, id.clone()));
                        match self.slow.contains(&channel) {
                            true => self.stuck.push((member.port.clone(), member.cost)),
                            false => member.port.place.pace().take(member.cost),
                        }
                    }
                }
                Outgoing::Notice(notice) => {
                    let of = self.seen.entry(notice.port.id).or_default();
                    of.told.push(notice.message.to_string());
                    of.gaps.extend(notice.details.filter(|details| matches!(details, Details::Gap { .. })));
                }
                Outgoing::Greeting(_) => {}
                Outgoing::Begin(port, start) => begun.push((port, start)),
                Outgoing::Hold(port, at) => holds.push((port, at)),
                Outgoing::Live(port, _) => self.seen.entry(port.id).or_default().live += 1,
            }
        }
        holds.into_iter().for_each(|(port, at)| port.place.hold(at));
        for (port, start) in begun {
            port.place.begin(self.reach.clone(), start);
            self.ports.insert(port.id, port);
        }
        self.reach.set(reached);
        self.check();
    }

    /// Nobody is said to be farther than he is.
    fn check(&self) {
        for (id, owed) in &self.owed {
            let Some(reached) = self.ports.get(id).and_then(|port| port.reached()) else { continue };
            let came = self.seen.get(id).map_or(0, |seen| seen.rows.len());
            if let Some(next) = owed.get(came) {
                assert!(reached.position < next.at, "{id:?} is said to be at {reached:?} and has not had {next:?}");
            }
        }
    }

    fn of(&self, port: &Arc<Port>) -> Seen {
        self.seen.get(&port.id).cloned().unwrap_or_default()
    }

    async fn until(&mut self, bench: &mut Bench, what: &str, mut enough: impl FnMut(&mut Witness) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !enough(self) {
            let batch = tokio::time::timeout_at(deadline, bench.batches.recv()).await;
            let batch = batch.unwrap_or_else(|_| panic!("{what}: only {:?} came", self.seen));
            self.take(batch.expect("runs"));
        }
    }

    fn let_go(&mut self, channel: Option<ChannelId>) {
        let gone = |port: &Arc<Port>| channel.is_none_or(|channel| port.id == channel);
        self.stuck.retain(|(port, cost)| gone(port).then(|| port.place.pace().take(*cost)).is_none());
        self.slow.retain(|id| channel.is_some_and(|channel| channel != *id));
    }
}

/// The rows of both tables, as long as the test needs them.
const TABLES: &str = "create table owned (id text primary key, user_id uuid, kind text);
    alter table owned replica identity full; alter table owned enable row level security;
    create policy own on owned for select to authenticated using (user_id = auth.uid());
    create table waiting (id text primary key, user_id uuid, kind text);
    alter table waiting replica identity full; alter table waiting enable row level security;
    create function judge(kind text) returns bool language plpgsql as $$ begin
        if kind = 'held' then perform pg_advisory_xact_lock_shared(7); end if;
        if kind = 'slow' then perform pg_sleep(random() * 0.01); end if;
        return true;
    end $$;
    create policy own on waiting for select to authenticated using (judge(kind) and user_id = auth.uid());
    alter publication supabase_realtime add table owned, waiting;";

/// A bench with what was appended to its log.
struct Past {
    bench: Bench,
    owned: Arc<Relation>,
    waiting: Arc<Relation>,
    rows: Vec<Row>,
    /// What a failed sync has taken back from the log, until it comes again.
    again: VecDeque<Arc<Transaction>>,
}

impl Past {
    async fn new() -> Past {
        Past::with(|_| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut LogConfig)) -> Past {
        Past::on(Arc::new(RealFiles), adjust).await
    }

    async fn on(files: Arc<dyn log::Files>, adjust: impl FnOnce(&mut LogConfig)) -> Past {
        let mut config = HubConfig::default();
        config.ask.statement_timeout = DEADLINE;
        config.ask.deadline = DEADLINE;
        let bench = Bench::on(files, TABLES, config, adjust).await;
        let (owned, waiting) = (bench.relation("owned").await, bench.relation("waiting").await);
        Past { bench, owned, waiting, rows: Vec::new(), again: VecDeque::new() }
    }

    /// Appends a transaction of rows: table, owner, kind. Returns its end.
    fn commit(&mut self, rows: &[(&'static str, &'static str, &str)]) -> u64 {
        self.comes_again(usize::MAX);
        let mut builder = TransactionBuilder::default();
        for (ordinal, (table, owner, kind)) in rows.iter().enumerate() {
            let id = format!("r{:05}", self.rows.len());
            let mut raw = vec![b'N'];
            let values = [id.as_str(), *owner, *kind].map(|text| Value::Text(text.as_bytes()));
            Tuple::encode(values.into_iter(), &mut raw);
            let relation = if *table == "owned" { &self.owned } else { &self.waiting };
            builder.row(b'I', relation, &Bytes::from(raw)).unwrap();
            self.rows.push(Row { id, table, owner, at: place(self.bench.lsn + 10, ordinal as u32) });
        }
        let owned = self.owned.clone();
        self.bench.insert_by(3, builder, &owned, &[]);
        self.bench.lsn
    }

    /// The hub has come to the log's end: what there is by now is the past.
    async fn goes_by(&mut self) {
        // When the hub has taken this up, it is done with what is before.
        self.commit(&[("owned", CARL, "x")]);
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while self.bench.hub.describe().await.expect("runs").position < Lsn(self.bench.lsn) {
            assert!(tokio::time::Instant::now() < deadline, "the hub stands still");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// What a user is owed of these tables after these places.
    fn owed(&self, owner: &str, entries: &[Entry]) -> Vec<Row> {
        let wants = |entry: &Entry, row: &Row| {
            let Start::After(cursor) = entry.start else { return false };
            entry.table == Name::Is(row.table.into()) && row.at > cursor.position
        };
        let owed = self.rows.iter().filter(|row| row.owner == owner && entries.iter().any(|entry| wants(entry, row)));
        owed.cloned().collect()
    }

    fn ids(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.id.as_str()).collect()
    }
}

#[tokio::test]
async fn what_came_since_is_replayed_and_then_it_is_live_each_row_once() {
    let mut past = Past::with(|log| log.tail_bytes = 4096).await;
    for _ in 0..300 {
        past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x"), ("owned", ALICE, "y")]);
    }
    past.goes_by().await;
    let (alice, bob, middle) = (port(), port(), port());
    past.bench.subscribe(&alice, vec![since(1, "owned", place(100, u32::MAX))], ALICE).await;
    let mut witness = Witness::default();
    // In the middle of a transaction.
    past.bench.subscribe(&middle, vec![since(1, "owned", place(1100, 0))], ALICE).await;
    past.bench.subscribe(&bob, vec![since(1, "owned", place(past.bench.lsn, u32::MAX))], BOB).await;
    past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x")]);
    let owed = past.owed(ALICE, &[since(1, "owned", place(100, u32::MAX))]);
    let later = past.owed(ALICE, &[since(1, "owned", place(1100, 0))]);
    assert_eq!((owed.len(), later.len()), (601, 402));
    witness.owed = [(alice.id, owed.clone()), (middle.id, later.clone())].into();
    let all = |w: &mut Witness| w.of(&alice).rows.len() >= owed.len() && w.of(&middle).rows.len() >= later.len();
    witness.until(&mut past.bench, "the past", all).await;
    witness.until(&mut past.bench, "the present", |w| w.of(&bob).rows.len() == 1).await;
    past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x")]);
    witness.owed.clear();
    witness.until(&mut past.bench, "a row that is live", |w| w.of(&bob).rows.len() == 2).await;
    assert_eq!(witness.of(&alice).ids()[..601], Past::ids(&owed));
    assert_eq!(witness.of(&middle).ids()[..402], Past::ids(&later));
    assert_eq!((witness.of(&alice).rows.len(), witness.of(&middle).rows.len()), (602, 403));
    assert_eq!((witness.of(&alice).live, witness.of(&middle).live, witness.of(&bob).live), (1, 1, 1));
    assert!(witness.of(&alice).told.is_empty(), "{:?}", witness.of(&alice).told);
    // All are as far as the stream.
    let end = place(past.bench.lsn, u32::MAX);
    let there =
        |w: &mut Witness| [&alice, &middle, &bob].iter().all(|p| w.ports[&p.id].reached().unwrap().position == end);
    witness.until(&mut past.bench, "all are there", there).await;
    past.bench.stop().await;
}

#[tokio::test]
async fn one_whose_connection_takes_nothing_is_parked_and_goes_on_where_it_was() {
    let mut past = Past::new().await;
    let (slow, quick) = (port_with(64 << 10), port_with(64 << 10));
    let entries = vec![since(1, "owned", place(100, u32::MAX))];
    for _ in 0..2000 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    past.goes_by().await;
    let mut witness = Witness::default();
    let owed = past.owed(ALICE, &entries);
    witness.owed = [(slow.id, owed.clone()), (quick.id, owed.clone())].into();
    witness.slow.insert(slow.id);
    past.bench.subscribe(&slow, entries.clone(), ALICE).await;
    past.bench.subscribe(&quick, entries, ALICE).await;
    witness.until(&mut past.bench, "the quick one", |w| w.of(&quick).rows.len() == 2000).await;
    let had = witness.of(&slow).rows.len();
    assert!((1..200).contains(&had), "{had} rows were sent to one who takes none");
    assert!(slow.burden() <= slow.outbox.limit() / 2, "{}", slow.burden());
    assert_eq!(witness.of(&slow).live, 0);
    let metrics = past.bench.metrics.clone();
    assert_eq!((metrics.replay_parked.get(), metrics.replay_waiting.get()), (1, 0));
    witness.let_go(None);
    witness.until(&mut past.bench, "the slow one", |w| w.of(&slow).rows.len() == 2000).await;
    assert_eq!(witness.of(&slow).ids(), Past::ids(&owed));
    witness.until(&mut past.bench, "it is live", |w| w.of(&slow).live == 1).await;
    assert_eq!(slow.burden(), 0);
    past.goes_by().await;
    assert_eq!((metrics.replay_parked.get(), metrics.replay_passes.get()), (0, 0));
    past.bench.stop().await;
}

#[tokio::test]
async fn who_is_answered_late_has_its_rows_in_order_across_the_switch_and_is_not_said_to_be_beyond_them() {
    let mut past = Past::new().await;
    let (alice, bob) = (port(), port());
    past.bench.database.run("select pg_advisory_lock(7)").await;
    past.commit(&[("owned", ALICE, "x"), ("waiting", ALICE, "held"), ("owned", ALICE, "x")]);
    past.goes_by().await;
    let entries = vec![since(1, "owned", place(100, u32::MAX)), since(2, "waiting", place(100, u32::MAX))];
    past.bench.subscribe(&alice, entries.clone(), ALICE).await;
    past.bench.subscribe(&bob, vec![since(1, "owned", place(100, u32::MAX))], BOB).await;
    let mut witness = Witness::default();
    past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x")]);
    witness.owed = [(alice.id, past.owed(ALICE, &entries))].into();
    witness.until(&mut past.bench, "others", |w| w.of(&bob).rows.len() == 1 && w.of(&alice).rows.len() == 1).await;
    past.commit(&[("owned", BOB, "x")]);
    witness.until(&mut past.bench, "others again", |w| w.of(&bob).rows.len() == 2).await;
    assert_eq!(witness.of(&alice).ids(), ["r00000"], "what is behind the row that waits waits too");
    assert_eq!(witness.of(&alice).live, 0, "it has not caught up before it has its rows");
    assert_eq!(witness.ports[&alice.id].reached().unwrap().position, place(110, 0));
    past.bench.database.run("select pg_advisory_unlock(7)").await;
    witness.until(&mut past.bench, "the answer", |w| w.of(&alice).rows.len() == 4).await;
    assert_eq!(witness.of(&alice).ids(), ["r00000", "r00001", "r00002", "r00004"]);
    witness.until(&mut past.bench, "it is live", |w| w.of(&alice).live == 1).await;
    let end = place(past.bench.lsn, u32::MAX);
    witness.until(&mut past.bench, "it is there", |w| w.ports[&alice.id].reached().unwrap().position == end).await;
    past.bench.stop().await;
}

#[tokio::test]
async fn places_that_are_not_here_are_gaps_with_their_reasons_and_it_goes_on_from_where_they_end() {
    let small = |log: &mut LogConfig| (log.segment_bytes, log.retain_bytes, log.tail_bytes) = (4096, 12_000, 2048);
    let mut past = Past::with(small).await;
    for _ in 0..400 {
        past.commit(&[("owned", ALICE, "x")]);
    }
    past.goes_by().await;
    past.bench.writer.retain().unwrap();
    let floor = past.bench.log.floor();
    assert!(floor > Lsn(110));
    let (expired, diverged, lost, timed) = (port(), port(), port(), port());
    let foreign = Cursor { epoch: 77, position: place(5, 0) };
    let started = |start| vec![Entry { start, ..entry(1, "owned", None) }];
    let mut witness = Witness::default();
    past.bench.subscribe(&expired, vec![since(1, "owned", place(110, 0))], ALICE).await;
    past.bench.subscribe(&diverged, started(Start::After(foreign)), ALICE).await;
    past.bench.subscribe(&lost, started(Start::Lost), ALICE).await;
    past.bench.subscribe(&timed, started(Start::Time(Timestamp(i64::MIN))), ALICE).await;
    past.commit(&[("owned", ALICE, "x")]);
    let last = past.rows.last().unwrap().id.clone();
    let kept: Vec<Row> = past.rows.iter().filter(|row| row.at.lsn > floor && row.owner == ALICE).cloned().collect();
    let done =
        |w: &mut Witness| [&expired, &diverged, &lost, &timed].iter().all(|p| w.of(p).ids().last() == Some(&&*last));
    witness.until(&mut past.bench, "the last row", done).await;
    assert_eq!(witness.of(&expired).ids(), Past::ids(&kept));
    assert_eq!(witness.of(&timed).ids(), Past::ids(&kept));
    assert_eq!((witness.of(&diverged).rows.len(), witness.of(&lost).rows.len()), (1, 1));
    let at = |position| Cursor { epoch: tag(), position };
    let (to, now) = (at(Position { lsn: floor, ordinal: u32::MAX }), at(place(past.bench.lsn - 10, u32::MAX)));
    let gap = |from, to, reason| vec![Details::Gap { from, to, reason }];
    assert_eq!(witness.of(&expired).gaps, gap(Some(at(place(110, 0))), to, GapReason::Expired));
    assert_eq!(witness.of(&diverged).gaps, gap(Some(foreign), now, GapReason::Diverged));
    assert_eq!(witness.of(&lost).gaps, gap(None, now, GapReason::Unknown));
    assert_eq!(witness.of(&timed).gaps, gap(None, to, GapReason::Expired));
    assert_eq!(past.bench.metrics.gaps.get_or_create(&[("reason", "expired")]).get(), 2);
    past.bench.stop().await;
}

#[tokio::test]
async fn a_row_of_the_past_is_judged_by_the_rules_of_now() {
    let mut past = Past::new().await;
    past.commit(&[("owned", ALICE, "x"), ("waiting", ALICE, "q")]);
    past.goes_by().await;
    past.bench.database.run("drop policy own on owned").await;
    let alice = port();
    // Until the rules are read again.
    let renewed = past.bench.metrics.catalog_reads.get_or_create(&[("result", "changed")]).get();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    past.bench.subscribe(&port(), vec![entry(1, "owned", None)], BOB).await;
    while past.bench.metrics.catalog_reads.get_or_create(&[("result", "changed")]).get() == renewed {
        assert!(tokio::time::Instant::now() < deadline, "the rules are not read");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut witness = Witness::default();
    let entries = vec![since(1, "owned", place(100, u32::MAX)), since(2, "waiting", place(100, u32::MAX))];
    past.bench.subscribe(&alice, entries, ALICE).await;
    witness.until(&mut past.bench, "the other table's row", |w| !w.of(&alice).rows.is_empty()).await;
    assert_eq!(witness.of(&alice).ids(), ["r00001"]);
    past.bench.stop().await;
}

#[tokio::test]
async fn while_five_are_far_behind_others_are_live_and_one_that_is_nearly_there_overtakes_them() {
    let mut past = Past::with(|log| log.tail_bytes = 16 << 10).await;
    for _ in 0..400 {
        past.commit(&[("owned", ALICE, "x"); 100]);
    }
    past.goes_by().await;
    let (live, near) = (port(), port());
    past.bench.subscribe(&live, vec![entry(1, "owned", None)], BOB).await;
    let far: Vec<_> = (0..5).map(|_| port()).collect();
    for (n, port) in far.iter().enumerate() {
        let entries = vec![since(1, "owned", place(100 + 10 * n as u64, u32::MAX))];
        past.bench.subscribe(port, entries, ALICE).await;
    }
    let start = place(past.bench.lsn, u32::MAX);
    past.commit(&[("owned", BOB, "x")]);
    past.bench.subscribe(&near, vec![since(1, "owned", start)], BOB).await;
    let mut witness = Witness::default();
    witness
        .until(&mut past.bench, "the live one", |w| w.of(&live).rows.len() == 1 && w.of(&near).rows.len() == 1)
        .await;
    assert!(far.iter().all(|port| witness.of(port).live == 0), "the far ones are there already");
    past.commit(&[("owned", BOB, "x")]);
    witness.until(&mut past.bench, "the next", |w| w.of(&live).rows.len() == 2 && w.of(&near).rows.len() == 2).await;
    // A drain does not wait for them.
    past.bench.stop().await;
}

#[tokio::test]
async fn whoever_leaves_or_has_a_new_token_on_the_way_changes_nothing_for_others() {
    let mut past = Past::with(|log| log.tail_bytes = 4096).await;
    for _ in 0..1000 {
        past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x")]);
    }
    past.goes_by().await;
    let (stays, leaves, turns) = (port(), port(), port());
    let entries = || vec![since(1, "owned", place(100, u32::MAX))];
    for port in [&stays, &leaves, &turns] {
        past.bench.subscribe(port, entries(), ALICE).await;
    }
    let mut witness = Witness::default();
    witness.owed.insert(stays.id, past.owed(ALICE, &entries()));
    past.bench.hub.leave(leaves.id).await;
    past.bench.hub.reclaim(turns.id, principal("authenticated", BOB)).await.expect("reclaimed");
    past.commit(&[("owned", ALICE, "x"), ("owned", BOB, "x")]);
    let (alice, bob) = (past.owed(ALICE, &entries()), past.owed(BOB, &entries()));
    let last = (alice.last().unwrap().id.clone(), bob.last().unwrap().id.clone());
    let done =
        |w: &mut Witness| w.of(&stays).ids().last() == Some(&&*last.0) && w.of(&turns).ids().last() == Some(&&*last.1);
    witness.until(&mut past.bench, "the last rows", done).await;
    assert_eq!(witness.of(&stays).ids(), Past::ids(&alice));
    // Up to the change those of the one, from there on those of the other: one of the two of each transaction.
    let turned: Vec<Position> = witness.of(&turns).rows.iter().map(|(_, at)| *at).collect();
    assert!(turned.is_sorted() && turned.len() >= 1000, "{}", turned.len());
    assert!(witness.of(&leaves).live <= 1);
    past.bench.stop().await;
}

#[tokio::test]
async fn the_floor_may_overtake_one_who_is_slow_and_a_new_history_too_and_both_are_gaps_from_where_he_was() {
    let small = |log: &mut LogConfig| (log.segment_bytes, log.retain_bytes, log.tail_bytes) = (4096, 16_384, 2048);
    let mut past = Past::with(small).await;
    let slow = port_with(16 << 10);
    let mut witness = Witness::default();
    let commit = |past: &mut Past, count| {
        for _ in 0..count {
            past.commit(&[("owned", ALICE, "x")]);
        }
    };
    commit(&mut past, 100);
    past.goes_by().await;
    witness.slow.insert(slow.id);
    past.bench.subscribe(&slow, vec![since(1, "owned", place(100, u32::MAX))], ALICE).await;
    witness.until(&mut past.bench, "the first rows", |w| !w.of(&slow).rows.is_empty()).await;
    commit(&mut past, 400);
    past.goes_by().await;
    while let Ok(batch) = past.bench.batches.try_recv() {
        witness.take(batch);
    }
    let had = witness.of(&slow).rows.len();
    assert!(had < 100 && slow.reached().unwrap().position == witness.of(&slow).rows[had - 1].1, "{:?}", slow.reached());
    past.bench.writer.retain().unwrap();
    let floor = past.bench.log.floor();
    witness.let_go(None);
    // He is slow again before he has it all.
    witness.slow.insert(slow.id);
    witness.until(&mut past.bench, "what is kept", |w| w.of(&slow).rows.len() > had).await;
    let at = |position| Some(Cursor { epoch: tag(), position });
    let (from, to) = (at(witness.of(&slow).rows[had - 1].1), at(Position { lsn: floor, ordinal: u32::MAX }).unwrap());
    assert_eq!(witness.of(&slow).gaps, [Details::Gap { from, to, reason: GapReason::Expired }]);
    assert!(witness.of(&slow).rows[had].1 > to.position && witness.of(&slow).rows[had].1.lsn.0 <= floor.0 + 20);
    // Until he is parked again.
    while let Ok(Some(batch)) = tokio::time::timeout(Duration::from_millis(300), past.bench.batches.recv()).await {
        witness.take(batch);
    }
    assert_eq!(witness.of(&slow).live, 0, "he is parked");
    let was = slow.reached().unwrap();
    let epoch = Epoch { system_identifier: 1, incarnation: 9 };
    past.bench.writer.begin_epoch(epoch, Lsn(past.bench.lsn + 1000)).unwrap();
    past.bench.lsn += 1000;
    past.commit(&[("owned", ALICE, "x")]);
    let last = past.rows.last().unwrap().id.clone();
    witness.let_go(None);
    witness.until(&mut past.bench, "the new history", |w| w.of(&slow).ids().last() == Some(&&*last)).await;
    let gap = witness.of(&slow).gaps[1];
    let Details::Gap { from, to, reason } = gap else { panic!("{gap:?}") };
    assert_eq!((from, to.epoch, reason), (Some(was), epoch.tag(), GapReason::Lost));
    assert!(to.position < past.rows.last().unwrap().at);
    past.bench.stop().await;
}

#[tokio::test]
async fn a_channel_that_waits_for_its_table_is_not_said_to_be_farther_while_others_are() {
    let mut past = Past::new().await;
    let (alice, bob) = (port(), port());
    // Too long to be remembered: it has to be asked about anew.
    let filter = format!("kind=neq.{}", "x".repeat(5000));
    past.bench.subscribe(&alice, vec![entry(1, "owned", Some(&filter))], ALICE).await;
    past.bench.subscribe(&bob, vec![entry(1, "waiting", None)], BOB).await;
    let mut witness = Witness::default();
    past.commit(&[("owned", ALICE, "y"), ("waiting", BOB, "x")]);
    let both = |w: &mut Witness| w.of(&alice).rows.len() == 1 && w.of(&bob).rows.len() == 1;
    witness.until(&mut past.bench, "the first", both).await;
    past.bench.pool.close();
    past.bench.database.run("alter table owned add column more text").await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut stuck = false;
    while !stuck {
        assert!(tokio::time::Instant::now() < deadline, "it is never resolved again");
        past.commit(&[("owned", ALICE, "y"), ("waiting", BOB, "x")]);
        let count = witness.of(&bob).rows.len();
        witness.until(&mut past.bench, "the others'", |w| w.of(&bob).rows.len() > count).await;
        stuck = witness.of(&alice).rows.len() < witness.of(&bob).rows.len();
    }
    let had = witness.of(&alice).rows.last().unwrap().1;
    past.commit(&[("waiting", BOB, "x")]);
    let end = place(past.bench.lsn, u32::MAX);
    witness
        .until(&mut past.bench, "the others are there", |w| w.ports[&bob.id].reached().unwrap().position == end)
        .await;
    let reached = alice.reached().unwrap().position;
    assert!(reached >= had && reached.lsn.0 <= had.lsn.0, "{reached} after {had}");
    assert!(witness.of(&alice).told.is_empty(), "nothing is lost yet: {:?}", witness.of(&alice).told);
    past.bench.stop().await;
}

#[tokio::test]
async fn a_row_of_the_past_is_judged_by_the_memberships_of_now() {
    let config = HubConfig { other_publications: vec!["rowcast_facts".into()], ..HubConfig::default() };
    let sql = format!("create publication rowcast_facts;
        create table members (team text, person text, primary key (team, person)); alter table members replica identity full;
        insert into members values ('green', '{ALICE}');
        create table posts (id text primary key, team text);
        alter table posts replica identity full; alter table posts enable row level security;
        create policy p on posts for select to authenticated
            using (exists (select from members m where m.team = posts.team and m.person = auth.uid()::text));
        alter publication supabase_realtime add table posts;");
    let mut bench = Bench::with(&sql, config).await;
    let posts = bench.relation("posts").await;
    bench.insert(&posts, &[vec!["1", "red"], vec!["2", "green"], vec!["3", "red"], vec!["4", "green"]]);
    let alice = port();
    bench.subscribe(&alice, vec![since(1, "posts", place(100, u32::MAX))], ALICE).await;
    let mut witness = Witness::default();
    witness.until(&mut bench, "hers", |w| w.of(&alice).rows.len() == 2).await;
    assert_eq!(witness.of(&alice).ids(), ["2", "4"]);
    assert_eq!(bench.metrics.ask_rounds.get(), 0, "nobody was asked");
    bench.stop().await;
}
