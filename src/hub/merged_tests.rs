//! Rows that were not decided in time and are told together: what a client that comes back at any moment knows of them.

use std::collections::BTreeSet;

use super::lane_tests::{WAITING, patient};
use super::lost_tests::{Room, config, members, open};
use super::*;
use crate::change::Position;
use crate::resume::Cursor;

/// Nobody is told of its rows as long as the test holds lock 8.
const CLOSED: &str = "create table closed (id text primary key); alter table closed enable row level security;
    create function open() returns bool language plpgsql set lock_timeout = '20ms' as $$ begin
        perform pg_advisory_xact_lock_shared(8); return true;
    end $$;
    create policy open on closed for select to authenticated using (open());
    alter publication supabase_realtime add table closed;";

/// One client, which notes what it has and up to where it could go on.
struct Client {
    port: Arc<Port>,
    /// Its rows that are never decided.
    lost: BTreeSet<Position>,
    /// Of which it was told.
    told: BTreeSet<Position>,
    notices: usize,
    rows: Vec<String>,
    /// Those of them from which it can go on.
    placed: Vec<String>,
    hold: Option<Cursor>,
    /// The end of the last gap: nothing before it comes behind its notice.
    behind: Position,
}

impl Client {
    fn new(port: &Arc<Port>) -> Client {
        let (lost, told, hold, behind) = (BTreeSet::new(), BTreeSet::new(), None, Position::default());
        Client { port: port.clone(), lost, told, notices: 0, rows: Vec::new(), placed: Vec::new(), hold, behind }
    }

    /// Whoever goes on from here must have been told of all that it lost before.
    fn may_go_on_from(&self, place: Position, what: &str) {
        let missed: Vec<_> = self.lost.range(..=place).filter(|lost| !self.told.contains(lost)).collect();
        assert!(missed.is_empty(), "from {what} at {place} on it would never hear of {missed:?}");
    }

    /// What a batch has for it, in order.
    fn take(&mut self, batch: Batch) {
        let reached = batch.reached;
        for outgoing in batch.items {
            match outgoing {
                Outgoing::Change(fanout) => {
                    let row = &fanout.event.value().row;
                    let crate::change::Change::Insert { new } = &row.change else { continue };
                    for member in fanout.members.iter().filter(|member| member.port.id == self.port.id) {
                        let id = new.get(0).as_str().unwrap().to_owned();
                        assert!(row.position > self.behind, "{id} comes behind the notice of a gap that it is in");
                        if member.cursor_as.as_deref() != Some(NO_CURSOR) {
                            self.may_go_on_from(row.position, &id);
                            self.placed.push(id.clone());
                        }
                        self.rows.push(id);
                    }
                }
                Outgoing::Notice(notice) if notice.port.id == self.port.id => {
                    let Some(Details::Gap { from: Some(from), to, .. }) = notice.details else {
                        panic!("{notice:?}");
                    };
                    self.notices += 1;
                    self.told.extend(self.lost.iter().filter(|lost| from.position < **lost && **lost <= to.position));
                    self.may_go_on_from(to.position, "a gap's end");
                    self.behind = to.position;
                }
                Outgoing::Hold(port, hold) if port.id == self.port.id => self.hold = hold,
                _ => {}
            }
        }
        let hold = self.hold.map_or(reached, |hold| hold.position.min(reached));
        self.may_go_on_from(hold, "where a device would");
    }

    async fn until(&mut self, bench: &mut Bench, enough: impl Fn(&Client) -> bool) {
        while !enough(self) {
            let batch = tokio::time::timeout(DEADLINE, bench.batches.recv()).await;
            self.take(batch.unwrap_or_else(|_| panic!("only {:?} came", self.rows)).expect("runs"));
        }
    }
}

/// Nobody is asked about `closed` any more, and all that it was asked about was told.
async fn scene(more: &str) -> (Bench, Client, Arc<Relation>) {
    let config = patient(|ask| (ask.failures, ask.suspension) = (1, Duration::from_secs(600)));
    let mut bench = Bench::with(&format!("{OWNED}{CLOSED}{more}"), config).await;
    bench.database.run("select pg_advisory_lock(8)").await;
    let alice = port();
    let mut entries = vec![entry(1, "owned", None), entry(2, "closed", None)];
    if !more.is_empty() {
        entries.push(entry(3, "waiting", None));
    }
    bench.subscribe(&alice, entries, ALICE).await;
    let closed = bench.relation("closed").await;
    let mut client = Client::new(&alice);
    lose(&mut bench, &mut client, &closed, "first");
    client.until(&mut bench, |client| client.notices == 1).await;
    assert_eq!(bench.metrics.ask_suspended.get(), 1);
    (bench, client, closed)
}

fn lose(bench: &mut Bench, client: &mut Client, closed: &Arc<Relation>, id: &str) {
    bench.insert(closed, &[vec![id]]);
    client.lost.insert(Position { lsn: Lsn(bench.lsn), ordinal: 0 });
}

#[tokio::test]
async fn rows_that_are_not_decided_are_told_together_and_nobody_goes_on_behind_one_unheard() {
    let (mut bench, mut client, closed) = scene("").await;
    let owned = bench.relation("owned").await;
    let began = tokio::time::Instant::now();
    for n in 0..1200 {
        let id = n.to_string();
        lose(&mut bench, &mut client, &closed, &id);
        bench.insert(&owned, &[vec![&id, ALICE, "x"]]);
    }
    client.until(&mut bench, |client| client.told.len() == 1201 && client.rows.len() == 1200).await;
    let most = 2 + began.elapsed().as_secs() as usize;
    assert!(client.notices <= most, "{} notices in {:?}", client.notices, began.elapsed());
    assert_eq!(bench.metrics.undecided_gaps.get(), 1201, "each row is counted");
    let gaps = bench.metrics.gaps.get_or_create(&[("reason", "undecided")]).get();
    assert_eq!(gaps, client.notices as u64, "and each notice");
    // Nothing is owed any more.
    bench.insert(&owned, &[vec!["end", ALICE, "x"]]);
    client.until(&mut bench, |client| client.placed.iter().any(|id| id == "end")).await;
    client.until(&mut bench, |client| client.hold.is_none()).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_notice_goes_ahead_of_rows_that_wait_which_are_places_to_go_on_from_then() {
    let (mut bench, mut client, closed) = scene(WAITING).await;
    let waiting = bench.relation("waiting").await;
    bench.database.run("select pg_advisory_lock(7)").await;
    lose(&mut bench, &mut client, &closed, "second");
    bench.insert(&waiting, &[vec!["1", ALICE, "held"]]);
    client.until(&mut bench, |client| client.told.len() == 2).await;
    assert_eq!((client.rows.len(), client.notices), (0, 2), "it waits for nothing");
    bench.database.run("select pg_advisory_unlock(7)").await;
    client.until(&mut bench, |client| client.rows.len() == 1).await;
    assert_eq!(client.placed, ["1"], "it has heard of everything");
    bench.stop().await;
}

/// Rows that there are no facts for are lost without waiting for Postgres: here one beyond a row that waits, and one before it or
/// none.
async fn around_one_that_waits(before: bool) {
    let mut config = config(|_| {});
    (config.ask.statement_timeout, config.ask.deadline) = (DEADLINE, DEADLINE);
    let bench = Bench::with(&format!("{}{WAITING}", members()), config).await;
    // The facts are ahead of the deletions.
    let (deleting, xid) = open(&bench, "delete from members where team = 'red'").await;
    deleting.batch_execute("commit").await.expect("committed");
    let mut room = Room::with(bench).await;
    let alice = port();
    let entries = vec![entry(1, "posts", None), entry(2, "marks", None), entry(3, "waiting", None)];
    room.bench.subscribe(&alice, entries, ALICE).await;
    let mut client = Client::new(&alice);
    let (waiting, marks) = (room.bench.relation("waiting").await, room.marks.clone());
    let (members, posts) = (room.members.clone(), room.posts.clone());
    let lose = |room: &mut Room, client: &mut Client, id| {
        room.delete(xid, &[(&members, &["red", ALICE]), (&posts, &[id, "red"])]);
        client.lost.insert(Position { lsn: Lsn(room.bench.lsn), ordinal: 1 });
    };
    if before {
        lose(&mut room, &mut client, "w");
    }
    room.bench.database.run("select pg_advisory_lock(7)").await;
    room.bench.insert(&waiting, &[vec!["1", ALICE, "held"]]);
    lose(&mut room, &mut client, "x");
    // The stream comes to the facts: what is owed is due a second later.
    let (after, later) = open(&room.bench, "insert into members values ('red', 'nobody')").await;
    after.batch_execute("commit").await.expect("committed");
    room.bench.insert_by(later, TransactionBuilder::default(), &marks, &[vec!["2"]]);
    // One who waits for nothing is told.
    let other = room.alice.id;
    let mut is_told = false;
    while !is_told {
        let batch = tokio::time::timeout(DEADLINE, room.bench.batches.recv()).await.expect("in time").expect("runs");
        is_told = batch.items.iter().any(|item| matches!(item, Outgoing::Notice(notice) if notice.port.id == other));
        client.take(batch);
    }
    client.until(&mut room.bench, |client| client.told.len() == usize::from(before)).await;
    assert_eq!((client.notices, client.rows.len()), (usize::from(before), 0), "up to the row that waits");
    room.bench.database.run("select pg_advisory_unlock(7)").await;
    client.until(&mut room.bench, |client| client.told == client.lost).await;
    assert_eq!((client.notices, &client.rows[..]), (1 + usize::from(before), &["1".to_owned(), "2".to_owned()][..]));
    room.bench.stop().await;
}

#[tokio::test]
async fn what_is_lost_beyond_a_row_that_waits_is_told_when_that_has_left() {
    around_one_that_waits(false).await;
}

#[tokio::test]
async fn what_is_lost_before_a_row_that_waits_is_told_without_what_is_lost_beyond_it() {
    around_one_that_waits(true).await;
}

#[tokio::test]
async fn a_row_of_which_a_part_was_not_decided_is_no_place_to_go_on_from() {
    let mut bench = Bench::with(OWNED, HubConfig::default()).await;
    let alice = port();
    // The second entry's filter has to be asked about, and Postgres is away.
    let hard = format!("id=imatch.^{}", "x".repeat(40));
    bench.subscribe(&alice, vec![entry(1, "owned", None), entry(2, "owned", Some(&hard))], ALICE).await;
    let owned = bench.relation("owned").await;
    bench.pool.close();
    let mut client = Client::new(&alice);
    bench.insert(&owned, &[vec!["1", ALICE, "x"]]);
    client.lost.insert(Position { lsn: Lsn(bench.lsn), ordinal: 0 });
    client.until(&mut bench, |client| client.told.len() == 1).await;
    assert_eq!((client.rows, client.placed), (vec!["1".to_owned()], vec![]));
    bench.stop().await;
}
