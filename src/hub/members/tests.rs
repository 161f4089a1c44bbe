//! Rights of members over real rules and facts; the stream is played by the test.

#[path = "../../../tests/bench/members.rs"]
mod bench;
#[path = "sweep_tests.rs"]
mod swept;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::sync::Notify;

use super::sweep::SLICE;
use super::*;
use crate::catalog::{Wanted, read};
use crate::change::{
    Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, Transaction, TransactionBuilder, Tuple, Value,
};
use crate::claims::Principal;
use crate::policy::DenyReason;
use crate::policy::facts::{self, Layout, LoadLimits};
use crate::policy::members::fixture::MESSAGES;
use crate::testing::{PATIENCE, TestDatabase};

const ALICE: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const BOB: &str = "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22";

const ROOMS: &str = "
    create table room_members (room text, user_id uuid, primary key (room, user_id));
    create table blocked (user_id uuid primary key);
    grant select on room_members, blocked to authenticated;
    insert into room_members values ('room', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11');
    create policy r on realtime.messages for select to authenticated using (exists (
        select 1 from room_members m where m.user_id = auth.uid() and m.room = realtime.topic()));
    create policy w on realtime.messages for insert to authenticated with check (
        extension = 'broadcast' and auth.uid() not in (select user_id from blocked));";

/// Members with the rules and facts as a hub has them.
struct Desk {
    database: TestDatabase,
    members: Members,
    facts: Facts,
    metrics: Metrics,
    catalog: Arc<Catalog>,
    xid: u32,
}

impl Desk {
    async fn new(sql: &str) -> Desk {
        let mut database = TestDatabase::new().await;
        database.run(&format!("{MESSAGES}{sql}")).await;
        let catalog = Arc::new(catalog(&mut database).await);
        let facts = Facts::new(64 << 20);
        let mut desk =
            Desk { database, members: Members::default(), facts, metrics: Metrics::new(), catalog, xid: 2_000_000_000 };
        desk.members.note_rules(&desk.catalog, &desk.facts);
        desk
    }

    async fn read_rules(&mut self) {
        self.catalog = Arc::new(catalog(&mut self.database).await);
        self.members.note_rules(&self.catalog, &self.facts);
    }

    async fn load(&mut self, name: &str) {
        let table = self.catalog.named("public", name).expect("the table");
        let columns: BTreeSet<i16> = table.columns.iter().map(|column| column.number).collect();
        let layout = Arc::new(Layout::of(table, self.catalog.types(), &columns).expect("fit"));
        self.facts.record(layout.clone());
        let limits = LoadLimits { bytes: 64 << 20, deadline: PATIENCE };
        let (rows, snapshot) = facts::load(&self.database.pool("relay"), &layout, &limits).await.expect("loaded");
        self.facts.install(rows, &snapshot).expect("installed");
        self.members.note_facts(&self.facts);
    }

    /// Begins a transaction of one row; `+` or `-`.
    fn begin(&mut self, operation: char, table: &str, row: &[&str]) {
        let transaction = self.transaction(operation, table, row);
        self.facts.begin(&transaction).expect("readable");
        self.members.note_facts(&self.facts);
    }

    fn transaction(&mut self, operation: char, table: &str, row: &[&str]) -> Transaction {
        let table = self.catalog.named("public", table).expect("the table");
        let columns = table.columns.iter().map(|column| RelationColumn {
            name: column.name.clone(),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
            key: table.primary_key.contains(&column.name),
        });
        let (oid, schema, name) = (table.oid, table.schema.clone(), table.name.clone());
        let columns = columns.collect();
        let relation = Arc::new(Relation { oid, schema, table: name, identity: ReplicaIdentity::Default, columns });
        let (tag, kind) = if operation == '+' { (b'I', b'N') } else { (b'D', b'K') };
        let mut raw = vec![kind];
        Tuple::encode(row.iter().map(|text| Value::Text(text.as_bytes())), &mut raw);
        let mut builder = TransactionBuilder::default();
        builder.row(tag, &relation, &Bytes::from(raw)).expect("a row");
        self.xid += 1;
        builder.finish(self.xid, Lsn(1), Lsn(1), Timestamp(0), None)
    }

    fn play(&mut self, operation: char, table: &str, row: &[&str]) {
        self.begin(operation, table, row);
        self.facts.end();
        self.members.note_facts(&self.facts);
    }

    fn watch(&mut self, asking: &Asking, rights: &Arc<Rights>) -> Watch {
        let (watch, watched) = Watch::new(asking.clone(), rights.clone());
        self.members.add(watched, &self.facts, &self.metrics);
        watch
    }

    fn may_read(&self, rights: &Arc<Rights>) -> bool {
        match self.members.may_read(rights, &self.facts, &self.metrics) {
            Verdict::Permit(_) => true,
            Verdict::Deny(reason) => {
                assert_eq!(reason, DenyReason::Policy);
                false
            }
            Verdict::Undecided(reason) => panic!("undecided: {reason:?}"),
        }
    }

    /// A whole sweep, whenever the next may begin.
    fn sweep(&mut self) {
        (self.members.swept_at, self.members.looked_at) = (None, None);
        while self.members.sweep(&self.facts, &self.metrics) {}
    }
}

async fn catalog(database: &mut TestDatabase) -> Catalog {
    let roles: BTreeSet<String> = ["anon", "authenticated", "service_role"].map(str::to_owned).into();
    let (publications, others) = (vec!["supabase_realtime".to_owned()], vec!["rowcast_facts".to_owned()]);
    read(&mut database.client, &Wanted { publications, others, roles }).await.expect("a catalog")
}

fn asking(topic: &str, sub: &str) -> Asking {
    let claims = json!({"role": "authenticated", "sub": sub});
    let principal = Principal::new(claims.as_object().expect("claims").clone(), i64::MAX).expect("a role");
    Asking { topic: topic.into(), principal: Arc::new(principal), headers: "{}".into() }
}

/// In the order of [`Right::ALL`]; nobody was woken yet.
fn rights(allowed: [Option<bool>; 4]) -> (Arc<Rights>, Arc<Notify>) {
    let notify = Arc::new(Notify::new());
    let rights = Arc::new(Rights::new(notify.clone()));
    for (right, allowed) in Right::ALL.into_iter().zip(allowed) {
        rights.set(right, allowed);
    }
    let _ = notify.notified().now_or_never();
    (rights, notify)
}

fn is_woken(notify: &Notify) -> bool {
    notify.notified().now_or_never().is_some()
}

fn all(rights: &Rights) -> [Option<bool>; 4] {
    Right::ALL.map(|right| rights.get(right))
}

const YES: Option<bool> = Some(true);
const NO: Option<bool> = Some(false);

#[tokio::test]
async fn a_right_ends_and_comes_back_with_the_commit_and_within_it() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let (rights, notify) = rights([YES, None, YES, NO]);
    let _watch = desk.watch(&asking("room", ALICE), &rights);
    assert!(desk.may_read(&rights) && !is_woken(&notify));
    desk.begin('-', "room_members", &["room", ALICE]);
    assert!(!desk.may_read(&rights), "in the very transaction");
    assert!(is_woken(&notify), "at once, for the message's sake");
    desk.facts.end();
    desk.members.note_facts(&desk.facts);
    assert!(!desk.may_read(&rights));
    desk.play('+', "room_members", &["room", BOB]);
    assert!(!desk.may_read(&rights));
    desk.play('+', "room_members", &["room", ALICE]);
    assert!(desk.may_read(&rights));
    assert_eq!(all(&rights), [YES, None, YES, NO]);
    assert_eq!(desk.metrics.authz_revocations.get(), 1);
    desk.play('+', "blocked", &["b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22"]);
    desk.play('+', "blocked", &[ALICE]);
    assert_eq!(rights.get(Right::WriteBroadcast), YES, "not looked at yet");
    desk.sweep();
    assert_eq!(all(&rights), [YES, None, NO, NO]);
    assert_eq!(desk.metrics.authz_revocations.get(), 2);
}

#[tokio::test]
async fn a_commit_that_changes_no_fact_of_a_plan_is_no_news_for_its_members() {
    let mut desk = Desk::new(&format!(
        "{ROOMS} create table posts (id int primary key, team text); create table teams (team text primary key);
         alter table posts enable row level security; grant select on posts, teams to authenticated;
         create policy p on posts using (team in (select team from teams));
         alter publication supabase_realtime add table posts;"
    ))
    .await;
    for table in ["room_members", "blocked", "teams"] {
        desk.load(table).await;
    }
    let (rights, _) = rights([YES, YES, YES, NO]);
    let _watch = desk.watch(&asking("room", ALICE), &rights);
    desk.sweep();
    let versions = |desk: &Desk| -> Vec<u64> {
        let of = |way| desk.members.plan(&asking("room", ALICE), way).expect("a plan").version;
        [Way::Read, Way::Write].map(of).to_vec()
    };
    let before = versions(&desk);
    desk.play('+', "teams", &["red"]);
    assert_eq!(versions(&desk), before);
    assert!(!desk.members.dirty && !desk.members.crowd.is_told());
    desk.play('+', "blocked", &[BOB]);
    assert_eq!(versions(&desk)[0], before[0]);
    assert_ne!(versions(&desk)[1], before[1]);
    assert!(desk.members.crowd.is_told() && !desk.members.dirty, "nobody here is concerned");
}

#[tokio::test]
async fn many_members_are_swept_in_slices_and_gone_ones_forgotten() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let count = SLICE * 3;
    let users: Vec<_> = (0..count).map(|_| rights([YES, YES, None, None])).collect();
    let watches: Vec<Watch> = users.iter().map(|(rights, _)| desk.watch(&asking("room", ALICE), rights)).collect();
    desk.sweep();
    desk.play('-', "room_members", &["room", ALICE]);
    (desk.members.swept_at, desk.members.looked_at) = (None, None);
    let mut slices = 1;
    while desk.members.sweep(&desk.facts, &desk.metrics) {
        let done = users.iter().filter(|(rights, _)| all(rights) == [NO, NO, None, None]).count();
        assert_eq!(done, slices * SLICE);
        slices += 1;
    }
    assert!(users.iter().all(|(rights, notify)| all(rights) == [NO, NO, None, None] && is_woken(notify)));
    assert_eq!(desk.members.members.len(), count);
    drop(watches);
    desk.play('+', "room_members", &["room", ALICE]);
    desk.sweep();
    assert_eq!(desk.members.members.len(), 0);
    assert!(users.iter().all(|(rights, _)| all(rights) == [NO, NO, None, None]));
}

#[tokio::test]
async fn what_memory_can_judge_no_more_is_taken_back_and_what_it_never_could_is_left_alone() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let ((pure, woken), (odd, odd_woken)) = (rights([YES, YES, None, None]), rights([YES, None, YES, YES]));
    let _pure = desk.watch(&asking("room", ALICE), &pure);
    // His claims make the policies raise, in memory: Postgres was asked.
    let _odd = desk.watch(&asking("room", "nobody"), &odd);
    assert_eq!(all(&odd), [YES, None, YES, YES]);
    let oid = desk.catalog.named("public", "room_members").expect("the table").oid;
    desk.facts.forget(oid);
    desk.members.note_facts(&desk.facts);
    assert!(matches!(desk.members.may_read(&pure, &desk.facts, &desk.metrics), Verdict::Undecided(_)));
    assert!(desk.may_read(&odd));
    desk.sweep();
    assert_eq!((all(&pure), is_woken(&woken)), ([None, None, None, None], true));
    assert_eq!((all(&odd), is_woken(&odd_woken)), ([YES, None, YES, YES], false));
    // Asked again, and told by Postgres: that stays until memory can judge.
    pure.set(Right::ReadBroadcast, YES);
    desk.load("room_members").await;
    desk.sweep();
    assert_eq!(all(&pure), [YES, YES, None, None]);
    desk.play('-', "room_members", &["room", ALICE]);
    desk.sweep();
    assert_eq!(all(&pure), [NO, NO, None, None]);
}

#[tokio::test]
async fn other_policies_are_judged_by_at_once_and_those_of_postgres_are_asked_again() {
    let mut desk = Desk::new("create policy r on realtime.messages for select to authenticated using (topic = 'room');
        create policy w on realtime.messages for insert to authenticated with check (now() > '2000-01-01' and topic = 'room');").await;
    let (member, woken) = rights([YES, YES, YES, YES]);
    let _watch = desk.watch(&asking("room", ALICE), &member);
    desk.database.run("alter table realtime.messages add note text").await;
    desk.read_rules().await;
    desk.sweep();
    assert_eq!((all(&member), is_woken(&woken)), ([YES; 4], false));
    desk.database
        .run(
            "alter policy r on realtime.messages using (topic = 'hall');
             alter policy w on realtime.messages with check (now() > '2000-01-01' and topic = 'hall')",
        )
        .await;
    desk.read_rules().await;
    assert!(!desk.may_read(&member));
    desk.sweep();
    assert_eq!((all(&member), is_woken(&woken)), ([NO, NO, None, None], true));
    desk.database.run("drop policy w on realtime.messages").await;
    member.set(Right::WriteBroadcast, YES);
    desk.read_rules().await;
    desk.sweep();
    // Memory says no, which Postgres has not said yet.
    assert_eq!(all(&member), [NO, NO, None, None]);
}

/// Memory may be behind Postgres, or newer than what a session makes of an answer.
#[tokio::test]
async fn where_memory_and_the_session_disagree_the_session_asks_once_more() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.load("blocked").await;
    let (bob, woken) = rights([YES, None, None, None]);
    let _watch = desk.watch(&asking("room", BOB), &bob);
    assert_eq!((all(&bob), is_woken(&woken)), ([None; 4], true), "Postgres knew more, or less");
    bob.set(Right::ReadBroadcast, YES);
    assert!(is_woken(&woken));
    desk.members.dirty = true;
    desk.sweep();
    assert_eq!((all(&bob), is_woken(&woken)), ([YES, None, None, None], false), "asked once more: so it is");
    assert!(!desk.may_read(&bob), "but not as of the commit that memory is at");
    desk.play('+', "room_members", &["room", BOB]);
    desk.play('-', "room_members", &["room", BOB]);
    desk.sweep();
    assert_eq!(all(&bob), [None; 4], "and again when facts have changed since");
    // An answer of before the block, set after it was judged.
    let (alice, _) = rights([YES, None, None, None]);
    let _watch = desk.watch(&asking("room", ALICE), &alice);
    desk.play('+', "blocked", &[ALICE]);
    desk.sweep();
    alice.set(Right::WriteBroadcast, YES);
    desk.members.dirty = true;
    desk.sweep();
    assert_eq!(all(&alice), [YES, None, None, None]);
}

#[tokio::test]
async fn rights_that_were_taken_while_facts_were_away_are_given_back_without_asking_postgres_for_each() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    let ((alice, woken), (bob, _)) = (rights([YES, None, None, None]), rights([NO, None, None, None]));
    let _alice = desk.watch(&asking("room", ALICE), &alice);
    let _bob = desk.watch(&asking("room", BOB), &bob);
    let oid = desk.catalog.named("public", "room_members").expect("the table").oid;
    desk.facts.forget(oid);
    desk.members.note_facts(&desk.facts);
    desk.sweep();
    assert_eq!((alice.get(Right::ReadBroadcast), is_woken(&woken)), (None, true));
    desk.load("room_members").await;
    desk.sweep();
    assert_eq!((all(&alice), is_woken(&woken)), ([YES, None, None, None], true), "and nothing that was never asked");
    assert_ne!(bob.get(Right::ReadBroadcast), YES);
    // What the hub has not taken, it does not give.
    alice.set(Right::ReadBroadcast, None);
    desk.play('+', "room_members", &["other", ALICE]);
    desk.sweep();
    assert_eq!(all(&alice), [None; 4]);
}

#[tokio::test]
async fn a_member_who_is_watched_anew_after_each_answer_is_not_asked_about_again_and_again() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    let (bob, woken) = rights([YES, None, None, None]);
    let mut _watch = desk.watch(&asking("room", BOB), &bob);
    assert_eq!((all(&bob), is_woken(&woken)), ([None; 4], true), "memory is behind Postgres");
    for _ in 0..3 {
        bob.set(Right::ReadBroadcast, YES);
        let _ = is_woken(&woken);
        _watch = desk.watch(&asking("room", BOB), &bob);
        assert_eq!((all(&bob), is_woken(&woken)), ([YES, None, None, None], false), "Postgres has said so once more");
    }
    // Somebody else is.
    _watch = desk.watch(&asking("room", "c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a33"), &bob);
    assert_eq!(all(&bob), [None; 4]);
}

#[tokio::test]
async fn a_watch_that_is_over_when_it_comes_takes_no_place_from_one_that_lives() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    let (alice, _) = rights([YES, None, None, None]);
    let _lives = desk.watch(&asking("room", ALICE), &alice);
    drop(desk.watch(&asking("room", ALICE), &alice));
    let (over, late) = Watch::new(asking("room", ALICE), alice.clone());
    let _lives = desk.watch(&asking("room", ALICE), &alice);
    drop(over);
    desk.members.add(late, &desk.facts, &desk.metrics);
    desk.sweep();
    desk.play('-', "room_members", &["room", ALICE]);
    desk.sweep();
    assert_eq!(all(&alice), [NO, None, None, None]);
}

#[tokio::test]
async fn facts_of_long_ago_take_rights_and_give_none_until_the_stream_is_there() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.members.note_age(Age::Old);
    let ((alice, _), (bob, _)) = (rights([NO, None, None, None]), rights([YES, None, None, None]));
    let _alice = desk.watch(&asking("room", ALICE), &alice);
    let _bob = desk.watch(&asking("room", BOB), &bob);
    assert_eq!([&alice, &bob].map(|rights| rights.get(Right::ReadBroadcast)), [NO, None], "Postgres has said no");
    desk.sweep();
    assert_eq!(alice.get(Right::ReadBroadcast), NO);
    desk.members.note_age(Age::Recent);
    desk.sweep();
    assert_eq!(all(&alice), [YES, None, None, None]);
}

#[tokio::test]
async fn rights_that_rest_on_facts_are_old_as_long_as_these_are_and_no_others() {
    let mut desk = Desk::new(&format!(
        "{ROOMS} alter policy w on realtime.messages with check (extension = 'broadcast' and topic = 'room');"
    ))
    .await;
    desk.load("room_members").await;
    let (alice, woken) = rights([YES, None, YES, None]);
    let _watch = desk.watch(&asking("room", ALICE), &alice);
    let old = |rights: &Rights| [Way::Read, Way::Write].map(|way| rights.is_old(way));
    assert_eq!((old(&alice), is_woken(&woken)), ([false, false], false));
    desk.members.note_age(Age::Old);
    desk.sweep();
    assert_eq!((old(&alice), is_woken(&woken)), ([true, false], true));
    assert_eq!(all(&alice), [YES, None, YES, None], "they hold until Postgres has said otherwise");
    let (late, _) = rights([YES, None, None, None]);
    let _late = desk.watch(&asking("room", ALICE), &late);
    assert_eq!(old(&late), [true, false], "who comes then, too");
    // What is known not to be recent gives nothing, and is not old.
    desk.members.note_age(Age::Unknown);
    alice.set(Right::ReadBroadcast, NO);
    desk.sweep();
    assert_eq!((old(&alice), alice.get(Right::ReadBroadcast)), ([false, false], NO));
    desk.members.note_age(Age::Recent);
    desk.sweep();
    assert_eq!((old(&alice), alice.get(Right::ReadBroadcast)), ([false, false], YES));
}

#[tokio::test]
async fn what_facts_of_long_ago_deny_is_asked_for_and_does_not_end() {
    for age in [Age::Old, Age::Unknown] {
        let mut desk = Desk::new(ROOMS).await;
        desk.load("room_members").await;
        desk.members.note_age(age);
        // She was removed and let in again; of that, the facts have nothing yet.
        let (alice, woken) = rights([YES, None, None, None]);
        let _watch = desk.watch(&asking("room", ALICE), &alice);
        desk.sweep();
        let _ = is_woken(&woken);
        desk.play('-', "room_members", &["room", ALICE]);
        assert!(!desk.may_read(&alice), "as of that commit");
        assert_eq!((all(&alice), is_woken(&woken)), ([None; 4], true));
        alice.set(Right::ReadBroadcast, YES);
        desk.play('+', "room_members", &["room", ALICE]);
        desk.sweep();
        desk.members.note_age(Age::Recent);
        desk.sweep();
        assert_eq!((all(&alice), desk.metrics.authz_revocations.get()), ([YES, None, None, None], 0));
        desk.play('-', "room_members", &["room", ALICE]);
        desk.sweep();
        assert_eq!((all(&alice), desk.metrics.authz_revocations.get()), ([NO, None, None, None], 1));
    }
}

#[tokio::test]
async fn while_facts_catch_up_nobody_is_asked_about_with_each_commit() {
    let mut desk = Desk::new(ROOMS).await;
    desk.load("room_members").await;
    desk.members.note_age(Age::Old);
    let (bob, woken) = rights([YES, YES, None, None]);
    let _watch = desk.watch(&asking("room", BOB), &bob);
    assert_eq!((all(&bob), bob.lapses()), ([None; 4], 1), "Postgres is asked");
    let answered = || {
        bob.set(Right::ReadBroadcast, YES);
        bob.set(Right::ReadPresence, YES);
        let _ = is_woken(&woken);
    };
    answered();
    for room in ["a", "b", "c"] {
        desk.play('+', "room_members", &[room, BOB]);
        desk.sweep();
        assert!(!desk.may_read(&bob));
        assert_eq!((all(&bob), bob.lapses(), is_woken(&woken)), ([YES, YES, None, None], 1, false));
    }
    // What Postgres has said, it has said of other policies.
    desk.database
        .run(
            "alter policy r on realtime.messages using (exists (
        select 1 from room_members m where m.user_id = auth.uid() and m.room = realtime.topic() and m.room <> ''))",
        )
        .await;
    desk.read_rules().await;
    desk.sweep();
    assert_eq!(all(&bob), [None; 4]);
    answered();
    // It has said so before the last commit that memory knows of.
    desk.members.note_age(Age::Recent);
    desk.sweep();
    assert_eq!(all(&bob), [None; 4], "now memory knows better, or nearly");
}

#[tokio::test]
async fn rights_that_nobody_watches_are_as_they_were_set() {
    let desk = Desk::new(ROOMS).await;
    let (yes, no, open) = (rights([YES, None, None, None]).0, rights([NO, None, None, None]).0, rights([None; 4]).0);
    assert!(desk.may_read(&yes) && !desk.may_read(&no));
    assert!(matches!(desk.members.may_read(&open, &desk.facts, &desk.metrics), Verdict::Undecided(_)));
}
