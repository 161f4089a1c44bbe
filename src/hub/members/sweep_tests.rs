//! Sweeps of some: they come to what a sweep of everybody comes to, and look at nobody else.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;

const SCHEMA: &str = "
    create table room_members (room text, user_id uuid, role text, primary key (room, user_id));
    create table rooms (id text primary key, name text, host uuid);
    create table blocked (id text primary key, user_id uuid);
    create table open_halls (name text primary key);
    create table posts (id int primary key);
    alter table posts enable row level security;
    grant select on room_members, rooms, blocked, open_halls, posts to authenticated;
    create policy p on posts using (exists (select 1 from room_members) and exists (select 1 from rooms)
        and exists (select 1 from blocked) and exists (select 1 from open_halls));
    alter publication supabase_realtime add table posts;
    create policy r on realtime.messages for select to authenticated using (true);
    create policy w on realtime.messages for insert to authenticated with check (true);";

const TABLES: [&str; 4] = ["room_members", "rooms", "blocked", "open_halls"];

/// Conditions, and whether some changes concern everybody.
const CONDITIONS: &[(&str, bool)] = &[
    ("exists (select 1 from room_members m where m.user_id = auth.uid() and m.room = realtime.topic())", false),
    ("exists (select 1 from room_members m where m.user_id = auth.uid() and m.role = messages.extension)", false),
    ("exists (select 1 from room_members m where m.room = topic)", false),
    ("realtime.topic() in (select 'room:' || m.room from room_members m where m.user_id = auth.uid())", false),
    ("auth.uid() not in (select user_id from blocked) and topic <> 'hall'", false),
    ("topic not in (select m.room from room_members m where m.user_id = auth.uid() and m.role = 'banned')", false),
    (
        "exists (select 1 from room_members m join rooms r on r.id = m.room
            where m.user_id = auth.uid() and r.name = realtime.topic())",
        false,
    ),
    (
        "exists (select 1 from rooms r where r.name = topic and (r.host = auth.uid()
            or exists (select 1 from room_members m where m.room = r.id and m.user_id = auth.uid() and m.role = extension)))",
        false,
    ),
    ("exists (select 1 from open_halls h where h.name = 'hall') or topic = 'a'", true),
    ("exists (select 1 from open_halls h where h.name = split_part(topic, ':', 2)) or not exists (select 1 from blocked)", true),
];

const USERS: [&str; 4] = [ALICE, BOB, "c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a33", "nobody"];
const TOPICS: [&str; 5] = ["a", "b", "hall", "room:a", "room:b"];
const EXTENSIONS: [&str; 3] = ["broadcast", "presence", "banned"];

/// The rows that there are, by table and key.
type Rows = BTreeMap<(usize, Vec<&'static str>), Vec<&'static str>>;

/// A row that comes, or goes if one of its key is there.
fn change(dice: &mut StdRng, rows: &mut Rows) -> (char, usize, Vec<&'static str>) {
    let mut pick = |list: &[&'static str]| list[dice.random_range(0..list.len())];
    let (user, room, other, extension) = (pick(&USERS[..3]), pick(&TOPICS), pick(&TOPICS), pick(&EXTENSIONS));
    let table = dice.random_range(0..TABLES.len());
    let (row, key) = match table {
        0 => (vec![room, user, extension], 2),
        1 => (vec![room, other, user], 1),
        2 => (vec![room, user], 1),
        _ => (vec![room], 1),
    };
    let place = (table, row[..key].to_vec());
    match rows.remove(&place) {
        Some(row) => ('-', table, row),
        None => {
            rows.insert(place, row.clone());
            ('+', table, row)
        }
    }
}

struct Crowded {
    desk: Desk,
    rights: Vec<Arc<Rights>>,
    _watches: Vec<Watch>,
    rows: Rows,
    seed: u64,
    dice: StdRng,
}

/// A right, and what was last judged of it.
type State = Vec<([Option<bool>; 4], [Option<bool>; 4])>;

impl Crowded {
    async fn new() -> Crowded {
        let mut desk = Desk::new(SCHEMA).await;
        for table in TABLES {
            desk.load(table).await;
        }
        let (mut all, mut watches) = (Vec::new(), Vec::new());
        for topic in TOPICS {
            for user in USERS {
                let (rights, _) = rights([YES; 4]);
                watches.push(desk.watch(&asking(topic, user), &rights));
                all.push(rights);
            }
        }
        let seed = rand::random();
        Crowded { desk, rights: all, _watches: watches, rows: Rows::new(), seed, dice: StdRng::seed_from_u64(seed) }
    }

    async fn use_condition(&mut self, reads: &str, writes: &str) {
        let sql = format!(
            "alter policy r on realtime.messages using ({reads}); alter policy w on realtime.messages with check ({writes});"
        );
        self.desk.database.run(&sql).await;
        self.desk.read_rules().await;
        // What a session does with rights that were taken back: it asks, and Postgres says what memory does.
        self.desk.sweep();
        for rights in &self.rights {
            let member = &self.desk.members.members[&key(rights)];
            for right in Right::ALL {
                rights.set(right, member.seen[right as usize].get().verdict.or(NO));
            }
        }
        self.sweep_all();
    }

    fn state(&self) -> State {
        let seen = |rights: &Arc<Rights>| {
            let member = &self.desk.members.members[&key(rights)];
            (all(rights), Right::ALL.map(|right| member.seen[right as usize].get().verdict))
        };
        self.rights.iter().map(seen).collect()
    }

    fn sweep_all(&mut self) {
        self.desk.members.plans.values_mut().for_each(|used| used.everybody = used.version);
        self.desk.members.dirty = true;
        self.desk.sweep();
    }

    fn change(&mut self) {
        let (operation, table, row) = change(&mut self.dice, &mut self.rows);
        self.desk.play(operation, TABLES[table], &row);
    }

    /// Some transactions, then a sweep; says whether everybody was swept, and if that of some came to something else.
    fn step(&mut self) -> (bool, bool) {
        for _ in 0..self.dice.random_range(1..4) {
            self.change();
        }
        let everybody = self.desk.members.dirty;
        self.desk.sweep();
        let some = self.state();
        self.sweep_all();
        (everybody, self.state() != some)
    }
}

#[tokio::test]
async fn a_sweep_of_some_comes_to_what_one_of_everybody_does() {
    let mut crowded = Crowded::new().await;
    for (condition, may) in CONDITIONS {
        for other in [CONDITIONS[0].0, condition] {
            crowded.use_condition(condition, other).await;
            let (mut everybody, mut changes, mut step) = (0, 0, 0);
            while step < 60 || (changes == 0 && step < 2000) {
                if step % 20 == 10 {
                    let age = [Age::Old, Age::Unknown, Age::Recent][crowded.dice.random_range(0..3)];
                    crowded.desk.members.note_age(age);
                    crowded.desk.sweep();
                }
                let was = crowded.state();
                let (all, differs) = crowded.step();
                assert!(!differs, "seed {}: {step} steps with {condition} and {other}", crowded.seed);
                everybody += usize::from(all);
                changes += usize::from(was != crowded.state());
                step += 1;
            }
            crowded.desk.members.note_age(Age::Recent);
            crowded.desk.sweep();
            assert!(changes > 0, "{condition} was of no consequence");
            assert!(everybody == 0 || *may, "{everybody} of {step} steps concerned everybody: {condition} and {other}");
        }
    }
}

#[tokio::test]
async fn places_that_are_missing_are_noticed_and_made_up_for() {
    let mut crowded = Crowded::new().await;
    for (condition, _) in CONDITIONS.iter().filter(|(_, may)| !may) {
        crowded.use_condition(condition, "true").await;
        crowded.desk.members.crowd.forget_all();
        assert!((0..2000).any(|_| crowded.step().1), "seed {}: {condition}", crowded.seed);
        crowded.change();
        crowded.desk.members.crowd.recheck();
        crowded.desk.sweep();
        let some = crowded.state();
        crowded.sweep_all();
        assert_eq!(crowded.state(), some, "{condition}");
        // Places are made anew with other policies.
        crowded.use_condition("true", "true").await;
    }
}

#[tokio::test]
async fn a_commit_that_ends_one_members_right_has_nobody_else_judged() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let bobs: Vec<_> = (0..SLICE * 2).map(|_| rights([YES, NO, NO, NO])).collect();
    let (alice, woken) = rights([YES, YES, None, None]);
    desk.play('+', "room_members", &["room", BOB]);
    let _bobs: Vec<Watch> = bobs.iter().map(|(rights, _)| desk.watch(&asking("room", BOB), rights)).collect();
    let _alice = desk.watch(&asking("room", ALICE), &alice);
    desk.sweep();
    let version = |desk: &Desk, rights: &Arc<Rights>| desk.members.members[&key(rights)].seen[0].get().version;
    let before = version(&desk, &alice);
    desk.play('-', "room_members", &["room", ALICE]);
    // While everybody is looked at for another reason.
    desk.members.dirty = true;
    (desk.members.swept_at, desk.members.looked_at) = (None, None);
    assert!(desk.members.sweep(&desk.facts, &desk.metrics));
    assert_eq!((all(&alice), is_woken(&woken)), ([NO, NO, None, None], true), "first of all");
    desk.sweep();
    assert_eq!(version(&desk, &alice), before + 1);
    assert!(bobs.iter().all(|(rights, _)| version(&desk, rights) == before), "he has another claim");
    assert!(desk.may_read(&bobs[0].0));
    assert_eq!(version(&desk, &bobs[0].0), before + 1, "a message is decided by the facts of the moment");
}

#[tokio::test]
async fn a_change_that_was_not_seen_as_it_happened_concerns_everybody() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let (alice, _) = rights([YES, None, None, None]);
    let _alice = desk.watch(&asking("room", ALICE), &alice);
    desk.sweep();
    for noted_within in [false, true] {
        // A transaction that nobody looked at while it was at hand, then another.
        for (operation, user) in [('-', ALICE), ('+', BOB)] {
            let transaction = desk.transaction(operation, "room_members", &["room", user]);
            desk.facts.begin(&transaction).expect("readable");
            if noted_within && user == BOB {
                desk.members.note_facts(&desk.facts);
            }
            desk.facts.end();
        }
        desk.members.note_facts(&desk.facts);
        assert!(desk.members.dirty && !desk.members.crowd.is_told());
        desk.sweep();
        assert_eq!(alice.get(Right::ReadBroadcast), NO);
        for (operation, user) in [('-', BOB), ('+', ALICE)] {
            desk.play(operation, "room_members", &["room", user]);
        }
        desk.sweep();
        assert_eq!(alice.get(Right::ReadBroadcast), YES);
    }
}

#[tokio::test]
async fn who_is_gone_has_no_place_left() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let (alice, _) = rights([YES, None, None, None]);
    for _ in 0..2 {
        let first = desk.watch(&asking("room", ALICE), &alice);
        let second = desk.watch(&asking("other", ALICE), &alice);
        assert_eq!(desk.members.crowd.len(), 2, "one for each way");
        drop((first, second));
    }
    desk.members.tidy();
    assert_eq!(desk.members.crowd.len(), 0);
    drop(desk.watch(&asking("room", ALICE), &alice));
    desk.play('-', "room_members", &["room", ALICE]);
    desk.sweep();
    assert_eq!((desk.members.crowd.len(), desk.members.members.len()), (0, 0));
}

#[tokio::test]
async fn an_old_verdict_takes_or_gives_nothing_that_the_session_has_set_since() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let (alice, _) = rights([YES, NO, None, None]);
    let _alice = desk.watch(&asking("room", ALICE), &alice);
    desk.sweep();
    for (sign, right) in [('+', NO), ('-', YES)] {
        // Somebody else's commit has just been looked at, so that she has to wait for those whom changes tell of.
        desk.members.looked_at = Some(Instant::now());
        desk.play(sign, "blocked", &[ALICE]);
        alice.set(Right::WriteBroadcast, right);
        (desk.members.dirty, desk.members.swept_at) = (true, None);
        while desk.members.sweep(&desk.facts, &desk.metrics) {}
        assert_eq!(alice.get(Right::WriteBroadcast), right, "{sign}");
        desk.sweep();
        assert_eq!(alice.get(Right::WriteBroadcast), right, "{sign}");
    }
}

#[tokio::test]
async fn a_crowd_that_is_told_of_all_the_time_keeps_nobody_else_waiting() {
    let mut desk = Desk::new(SCHEMA).await;
    for table in TABLES {
        desk.load(table).await;
    }
    let reads = "exists (select 1 from room_members m where m.room = topic)";
    let alter = |writes: &str| {
        format!(
            "alter policy r on realtime.messages using ({reads}); alter policy w on realtime.messages with check ({writes});"
        )
    };
    desk.database.run(&alter("true")).await;
    desk.read_rules().await;
    desk.play('+', "room_members", &["hall", ALICE, "x"]);
    desk.play('+', "room_members", &["a", ALICE, "x"]);
    let crowd: Vec<_> = (0..SLICE * 2).map(|_| rights([YES, YES, YES, YES])).collect();
    let _crowd: Vec<Watch> = crowd.iter().map(|(rights, _)| desk.watch(&asking("hall", BOB), rights)).collect();
    let (alice, _) = rights([YES, YES, YES, YES]);
    let _alice = desk.watch(&asking("a", ALICE), &alice);
    desk.sweep();
    desk.database.run(&alter("false")).await;
    desk.read_rules().await;
    let mut slices = 0;
    while alice.get(Right::WriteBroadcast) == YES {
        slices += 1;
        assert!(slices < 10, "a sweep of everybody takes as many slices as it has members, and as many again");
        desk.play(if slices % 2 == 0 { '-' } else { '+' }, "room_members", &["hall", BOB, "x"]);
        // A round takes longer than the time between two.
        (desk.members.looked_at, desk.members.swept_at) = (None, None);
        desk.members.sweep(&desk.facts, &desk.metrics);
    }
}
