//! Questions about private channels, and rights that follow the stream, with a whole hub.

use std::time::Instant;

use tokio::sync::Notify;

use super::*;
use crate::policy::members::fixture::MESSAGES;
use crate::policy::{Asking, Right, Rights, Told, Way};

const ALICE: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const BOB: &str = "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22";

const ROOMS: &str = "create publication rowcast_facts;
    create table room_members (room text, user_id uuid, primary key (room, user_id));
    alter table room_members replica identity full;
    grant select on room_members to authenticated;
    insert into room_members values ('room', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11');
    create policy r on realtime.messages for select to authenticated using (exists (
        select 1 from room_members m where m.user_id = auth.uid() and m.room = realtime.topic()));";

fn asking(topic: &str, role: &str, sub: &str) -> Asking {
    Asking { topic: topic.into(), principal: principal(role, sub), headers: "{}".into() }
}

impl Bench {
    async fn of_rooms() -> Bench {
        let config = HubConfig { other_publications: vec!["rowcast_facts".into()], ..HubConfig::default() };
        Bench::with(&format!("{MESSAGES}{ROOMS}"), config).await
    }

    /// What memory says once it can.
    async fn told(&self, asking: &Asking, way: Way) -> Told {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let told = self.hub.rights(asking.clone(), way, None).await;
            if let Some(told) = told.filter(|told| told.broadcast.is_some()) {
                return told;
            }
            assert!(Instant::now() < deadline, "memory never says: {told:?}");
        }
    }

    /// Does this in the database; the transaction's id.
    async fn commit(&self, sql: &str) -> u32 {
        let client = self.database.config("relay").connect().await.unwrap();
        client.batch_execute(&format!("begin; {sql}")).await.unwrap();
        let id = "select (pg_current_xact_id()::text::numeric % 4294967296)::text";
        let id = client.query_one(id, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap();
        client.batch_execute("commit").await.unwrap();
        id
    }

    /// A membership comes, or goes.
    async fn member(&mut self, operation: u8, relation: &Arc<Relation>, room: &str, user: &str) {
        let sql = match operation {
            b'I' => format!("insert into room_members values ('{room}', '{user}')"),
            _ => format!("delete from room_members where room = '{room}' and user_id = '{user}'"),
        };
        let xid = self.commit(&sql).await;
        let mut builder = TransactionBuilder::default();
        let mut raw = vec![if operation == b'I' { b'N' } else { b'O' }];
        Tuple::encode([room, user].iter().map(|text| Value::Text(text.as_bytes())), &mut raw);
        builder.row(operation, relation, &Bytes::from(raw)).unwrap();
        self.insert_by(xid, builder, relation, &[]);
    }

    async fn messages(&self) -> Arc<Relation> {
        let mut relation = Relation::clone(&*self.relation("messages").await);
        relation.schema = "realtime".into();
        Arc::new(relation)
    }

    fn post(&mut self, relation: &Arc<Relation>, topic: &str, event: &str) {
        let id = "6ecd8c99-4036-403d-bf84-cf8400f67836";
        let values: Vec<&str> = relation
            .columns
            .iter()
            .map(|column| match column.name.as_str() {
                "topic" => topic,
                "event" => event,
                "extension" => "broadcast",
                "private" => "t",
                "payload" => "{}",
                "id" => id,
                _ => "2026-01-01 00:00:00",
            })
            .collect();
        let mut raw = vec![b'N'];
        let column = relation.column("binary_payload");
        let values = values.iter().enumerate().map(|(place, text)| match Some(place) == column {
            true => Value::Null,
            false => Value::Text(text.as_bytes()),
        });
        Tuple::encode(values, &mut raw);
        let mut builder = TransactionBuilder::default();
        builder.row(b'I', relation, &Bytes::from(raw)).unwrap();
        self.insert_by(3, builder, relation, &[]);
    }

    /// The events of messages on each channel, until this one has this event.
    async fn events(&mut self, port: &Arc<Port>, event: &str, all: &mut BTreeMap<ChannelId, Vec<String>>) {
        while !all.get(&port.id).is_some_and(|events| events.iter().any(|known| known == event)) {
            let batch =
                tokio::time::timeout(DEADLINE, self.batches.recv()).await.expect("the marker comes").expect("runs");
            for outgoing in batch.items {
                let Outgoing::Change(fanout) = outgoing else { continue };
                let row = &fanout.event.value().row;
                let crate::change::Change::Insert { new } = &row.change else { continue };
                let place = row.relation.column("event").unwrap();
                let event = new.get(place).as_str().unwrap().to_owned();
                for member in &fanout.members {
                    all.entry(member.port.id).or_default().push(event.clone());
                }
            }
        }
    }
}

fn asks(topic: &str, member: Option<&Arc<Rights>>) -> Entry {
    let messages = Messages { topic: topic.into(), member: member.cloned(), replayed: None };
    Entry { messages: Some(messages), ..entry(0, "", None) }
}

async fn until(rights: &Rights, right: Right, wanted: Option<bool>) {
    let deadline = Instant::now() + DEADLINE;
    while rights.get(right) != wanted {
        assert!(Instant::now() < deadline, "{right:?} is still {:?}", rights.get(right));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn memory_answers_with_the_rules_and_facts_that_it_takes() {
    let bench = Bench::of_rooms().await;
    let told = |allowed, by_facts| Told { broadcast: Some(allowed), presence: Some(allowed), by_facts };
    assert_eq!(bench.told(&asking("room", "authenticated", ALICE), Way::Read).await, told(true, true));
    assert_eq!(bench.told(&asking("hall", "authenticated", ALICE), Way::Read).await, told(false, true));
    assert_eq!(bench.told(&asking("room", "authenticated", BOB), Way::Read).await, told(false, true));
    assert_eq!(bench.told(&asking("room", "authenticated", ALICE), Way::Write).await, told(false, false));
    assert_eq!(bench.told(&asking("room", "service_role", ALICE), Way::Write).await, told(true, false));
    // Rules that were committed before the question are those of the answer, however often.
    for n in 0..5 {
        let policy = format!("create policy w{n} on realtime.messages for insert to authenticated with check (true)");
        bench.database.run(&policy).await;
        assert_eq!(bench.told(&asking("room", "authenticated", BOB), Way::Write).await, told(true, false));
        bench.database.run(&format!("drop policy w{n} on realtime.messages")).await;
        assert_eq!(bench.told(&asking("room", "authenticated", BOB), Way::Write).await, told(false, false));
    }
    bench.stop().await;
}

#[tokio::test]
async fn messages_follow_rights_in_commit_order_and_the_member_is_woken() {
    let mut bench = Bench::of_rooms().await;
    let (members, messages) = (bench.relation("room_members").await, bench.messages().await);
    let alice = asking("room", "authenticated", ALICE);
    bench.told(&alice, Way::Read).await;
    let notify = Arc::new(Notify::new());
    let rights = Arc::new(Rights::new(notify.clone()));
    rights.set(Right::ReadBroadcast, Some(true));
    notify.notified().await;
    let _watch = bench.hub.watch(alice, rights.clone());
    let (port, witness) = (port(), port_with(1 << 20));
    bench.subscribe(&port, vec![asks("room", Some(&rights))], ALICE).await;
    let open = Arc::new(Rights::new(Arc::default()));
    open.set(Right::ReadBroadcast, Some(true));
    bench.subscribe(&witness, vec![asks("room", Some(&open))], BOB).await;
    bench.post(&messages, "room", "one");
    bench.member(b'D', &members, "room", ALICE).await;
    bench.post(&messages, "room", "two");
    bench.member(b'I', &members, "room", ALICE).await;
    bench.post(&messages, "room", "three");
    let mut all = BTreeMap::new();
    bench.events(&port, "three", &mut all).await;
    bench.events(&witness, "three", &mut all).await;
    assert_eq!(all[&port.id], ["one", "three"]);
    assert_eq!(all[&witness.id], ["one", "two", "three"]);
    notify.notified().await;
    until(&rights, Right::ReadBroadcast, Some(true)).await;
    // Without a message: the sweep.
    bench.member(b'D', &members, "room", ALICE).await;
    until(&rights, Right::ReadBroadcast, Some(false)).await;
    notify.notified().await;
    assert!(bench.metrics.authz_revocations.get() >= 1);
    // A rule, too.
    bench
        .database
        .run("create policy more on realtime.messages for select to authenticated using (topic = 'room')")
        .await;
    until(&rights, Right::ReadBroadcast, Some(true)).await;
    bench.stop().await;
}

#[tokio::test]
async fn memory_is_waited_for_when_postgres_knows_more() {
    let mut bench = Bench::of_rooms().await;
    let members = bench.relation("room_members").await;
    let bob = asking("room", "authenticated", BOB);
    assert_eq!(bench.told(&bob, Way::Read).await.broadcast, Some(false));
    let hub = bench.hub.clone();
    let expected = hub.rights(bob.clone(), Way::Read, Some((true, Some(true))));
    let (told, ()) = tokio::join!(expected, bench.member(b'I', &members, "room", BOB));
    let told = told.expect("an answer");
    // On a slow machine it may be late: then memory said what it knew.
    assert!(told.broadcast == Some(true) || bench.told(&bob, Way::Read).await.broadcast == Some(true));
    bench.stop().await;
}

#[tokio::test]
async fn while_the_stream_lags_nobody_is_let_in_by_facts_of_before() {
    let mut config = HubConfig { other_publications: vec!["rowcast_facts".into()], ..HubConfig::default() };
    config.ask.deadline = DEADLINE;
    let mut bench = Bench::with(&format!("{MESSAGES}{ROOMS}"), config).await;
    let alice = asking("room", "authenticated", ALICE);
    assert_eq!(bench.told(&alice, Way::Read).await.broadcast, Some(true));
    let notify = Arc::new(Notify::new());
    let rights = Arc::new(Rights::new(notify.clone()));
    rights.set(Right::ReadBroadcast, Some(true));
    let _watch = bench.hub.watch(alice.clone(), rights.clone());
    let members = bench.relation("room_members").await;
    // It is in the stream, and not visible yet to others: the hub waits with it.
    let client = bench.database.config("relay").connect().await.unwrap();
    client.batch_execute("begin").await.unwrap();
    let id = "select (pg_current_xact_id()::text::numeric % 4294967296)::text";
    let xid = client.query_one(id, &[]).await.unwrap().get::<_, &str>(0).parse().unwrap();
    let (mut builder, mut raw) = (TransactionBuilder::default(), vec![b'O']);
    Tuple::encode(["room", ALICE].iter().map(|text| Value::Text(text.as_bytes())), &mut raw);
    builder.row(b'D', &members, &Bytes::from(raw)).unwrap();
    bench.insert_by(xid, builder, &members, &[]);
    let deadline = Instant::now() + DEADLINE / 2;
    while bench.hub.rights(alice.clone(), Way::Read, None).await.is_some() {
        assert!(Instant::now() < deadline, "memory still lets her in");
    }
    // And who is in is asked about.
    while !rights.is_old(Way::Read) {
        tokio::time::timeout_at(deadline.into(), notify.notified()).await.expect("in time");
    }
    assert!(rights.allows(Right::ReadBroadcast) && !rights.is_old(Way::Write));
    assert!(bench.metrics.authz_facts_age.get() > 2.0);
    client.batch_execute("commit").await.unwrap();
    assert_eq!(bench.told(&alice, Way::Read).await.broadcast, Some(false));
    // Ended, or not decided where the facts were not known to be recent yet: then her connection asks.
    while rights.allows(Right::ReadBroadcast) || rights.is_old(Way::Read) {
        tokio::time::timeout(DEADLINE, notify.notified()).await.expect("in time");
    }
    bench.stop().await;
}
