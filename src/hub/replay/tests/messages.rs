//! Database broadcasts: live and in the past, among row changes, as rights come and go.

use tokio::sync::Notify;

use super::*;
use crate::change::RelationColumn;
use crate::policy::{Right, Rights};

/// As the stream has `realtime.messages`; the event stands first, so that what came can be told by it.
fn messages_table() -> Arc<Relation> {
    let columns = ["event", "topic", "private", "extension", "payload", "id"];
    let columns = columns.map(|name| RelationColumn { name: name.into(), type_oid: 25, type_modifier: -1, key: false });
    let (schema, table, identity) = ("realtime".into(), "messages".into(), ReplicaIdentity::Default);
    Arc::new(Relation { oid: 7_000_000, schema, table, identity, columns: columns.into() })
}

/// What a transaction holds.
enum Item<'a> {
    /// A row of `owned` for Alice with this id.
    Row(&'a str),
    /// A row of `waiting` for Alice, about which Postgres answers when it is let.
    Held(&'a str),
    /// A message: event, topic, private.
    Message(&'a str, &'a str, bool),
    /// Any row of `realtime.messages`, in the order of its columns; the operation.
    Odd(u8, [&'a str; 6]),
}
use Item::{Held, Message, Odd, Row as OwnRow};

/// A value of an [`Odd`] row.
const NULL: &str = "\0";

fn value(text: &str) -> Value<'_> {
    if text == NULL { Value::Null } else { Value::Text(text.as_bytes()) }
}

const ID: &str = "6ecd8c99-4036-403d-bf84-cf8400f67836";

impl Past {
    /// Appends a transaction; returns its end.
    fn post(&mut self, items: &[Item<'_>]) -> u64 {
        self.post_by(3, items)
    }

    fn post_by(&mut self, xid: u32, items: &[Item<'_>]) -> u64 {
        let (mut builder, messages) = (TransactionBuilder::default(), messages_table());
        let mut add = |operation: u8, relation: &Arc<Relation>, values: &[&str]| {
            let mut raw = vec![if operation == b'D' { b'K' } else { b'N' }];
            Tuple::encode(values.iter().map(|text| value(text)), &mut raw);
            builder.row(operation, relation, &Bytes::from(raw)).unwrap();
        };
        for item in items {
            match item {
                OwnRow(id) => add(b'I', &self.owned, &[id, ALICE, "x"]),
                Held(id) => add(b'I', &self.waiting, &[id, ALICE, "held"]),
                Message(event, topic, private) => {
                    let private = if *private { "t" } else { "f" };
                    add(b'I', &messages, &[event, topic, private, "broadcast", "{\"a\": 1}", ID]);
                }
                Odd(operation, values) => add(*operation, &messages, values),
            }
        }
        let owned = self.owned.clone();
        self.bench.insert_by(xid, builder, &owned, &[]);
        self.bench.lsn
    }
}

/// Of the private channel if there are rights.
fn asks(id: i32, topic: &str, member: Option<&Arc<Rights>>) -> Entry {
    let messages = Messages { topic: topic.into(), member: member.cloned(), replayed: None };
    Entry { messages: Some(messages), ..entry(id, "", None) }
}

fn after(mut entry: Entry, position: Position) -> Entry {
    entry.start = Start::After(Cursor { epoch: tag(), position });
    entry
}

fn reads(allowed: Option<bool>) -> Arc<Rights> {
    let rights = Rights::new(Arc::new(Notify::new()));
    rights.set(Right::ReadBroadcast, allowed);
    Arc::new(rights)
}

#[tokio::test]
async fn a_message_reaches_the_members_of_its_topic_and_privacy_and_nobody_else() {
    let mut past = Past::new().await;
    let member = reads(Some(true));
    let [public, private, other, table] = [port(), port(), port(), port()];
    past.bench.subscribe(&public, vec![asks(0, "room", None)], BOB).await;
    past.bench.subscribe(&private, vec![asks(0, "room", Some(&member))], ALICE).await;
    past.bench.subscribe(&other, vec![asks(0, "hall", None)], ALICE).await;
    past.bench
        .subscribe(&table, vec![Entry { table: Name::Any, schema: Name::Any, ..entry(3, "", None) }], ALICE)
        .await;
    past.post(&[Message("one", "room", false), Message("two", "room", true), Message("three", "private:room", false)]);
    past.post(&[Message("end", "hall", false), OwnRow("end")]);
    let mut witness = Witness::default();
    let end = |w: &mut Witness| w.of(&table).rows.len() == 1 && w.of(&other).rows.len() == 1;
    witness.until(&mut past.bench, "the end", end).await;
    assert_eq!(witness.of(&public).ids(), ["one"]);
    assert_eq!(witness.of(&private).ids(), ["two"]);
    assert_eq!(witness.of(&other).ids(), ["end"]);
    assert_eq!(witness.of(&table).ids(), ["end"], "who asks for all tables does not get messages");
    let metrics = &past.bench.metrics;
    assert_eq!((metrics.messages.get(), metrics.message_deliveries.get()), (4, 3));
    past.bench.stop().await;
}

#[tokio::test]
async fn messages_and_rows_of_a_channel_come_in_commit_order_also_behind_one_that_waits() {
    let mut past = Past::new().await;
    let (alice, bob) = (port(), port());
    let entries = vec![asks(0, "room", None), entry(1, "owned", None), entry(2, "waiting", None)];
    past.bench.subscribe(&alice, entries, ALICE).await;
    past.bench.subscribe(&bob, vec![asks(0, "room", None)], BOB).await;
    past.bench.database.run("select pg_advisory_lock(7)").await;
    let first = past.post(&[Message("m1", "room", false), OwnRow("r1"), Message("m2", "room", false)]);
    past.post(&[Held("w1"), Message("m3", "room", false), OwnRow("r2"), Message("m4", "room", false)]);
    let mut witness = Witness::default();
    witness.until(&mut past.bench, "Bob's", |w| w.of(&bob).rows.len() == 4).await;
    assert_eq!(witness.of(&bob).ids(), ["m1", "m2", "m3", "m4"]);
    assert_eq!(witness.of(&alice).ids(), ["m1", "r1", "m2"]);
    let places: Vec<Position> = witness.of(&alice).rows.iter().map(|(_, at)| *at).collect();
    assert_eq!(places, [place(first, 0), place(first, 1), place(first, 2)]);
    past.bench.database.run("select pg_advisory_unlock(7)").await;
    witness.until(&mut past.bench, "Alice's", |w| w.of(&alice).rows.len() == 7).await;
    assert_eq!(witness.of(&alice).ids()[3..], ["w1", "m3", "r2", "m4"]);
    past.bench.stop().await;
}

#[tokio::test]
async fn a_right_that_is_not_decided_holds_the_channel_before_the_message_and_loses_nothing() {
    let mut past = Past::new().await;
    let rights = reads(Some(true));
    let (alice, bob) = (port(), port());
    past.bench.subscribe(&alice, vec![asks(0, "room", Some(&rights)), entry(1, "owned", None)], ALICE).await;
    past.bench.subscribe(&bob, vec![asks(0, "hall", None)], BOB).await;
    let mut witness = Witness::default();
    let mut owed = Vec::new();
    for (round, expected) in [(0, None), (1, Some(true)), (2, None), (3, Some(false))] {
        rights.set(Right::ReadBroadcast, None);
        let ids = [format!("a{round}"), format!("m{round}"), format!("b{round}")];
        let mark = format!("mark{round}");
        let lsn = past.post(&[OwnRow(&ids[0]), Message(&ids[1], "room", true), OwnRow(&ids[2])]);
        past.post(&[Message(&mark, "hall", false)]);
        for (ordinal, id) in ids.iter().enumerate() {
            let at = place(lsn, ordinal as u32);
            owed.push(Row { id: id.clone(), table: "owned", owner: ALICE, at });
        }
        if expected.is_none() && round > 0 {
            continue;
        }
        if expected == Some(false) {
            owed.retain(|row| !["m2", "m3"].contains(&&*row.id));
        }
        witness.owed = [(alice.id, owed.clone())].into();
        let marked = |w: &mut Witness| w.of(&bob).ids().last() == Some(&&*mark);
        witness.until(&mut past.bench, "the mark", marked).await;
        assert!(!witness.of(&alice).ids().contains(&&*ids[2]), "what is behind the message waits");
        rights.set(Right::ReadBroadcast, expected.or(Some(true)));
        witness.until(&mut past.bench, "all of it", |w| w.of(&alice).rows.len() == owed.len()).await;
    }
    assert_eq!(witness.of(&alice).ids(), ["a0", "m0", "b0", "a1", "m1", "b1", "a2", "b2", "a3", "b3"]);
    assert!(witness.of(&alice).told.is_empty(), "{:?}", witness.of(&alice).told);
    let end = place(past.bench.lsn, u32::MAX);
    witness.until(&mut past.bench, "it is there", |w| w.ports[&alice.id].reached().unwrap().position == end).await;
    past.bench.stop().await;
}

#[tokio::test]
async fn who_may_not_read_broadcasts_or_whose_time_is_over_gets_none() {
    let mut past = Past::new().await;
    let (denied, expired, watcher) = (port(), port(), port());
    past.bench.subscribe(&denied, vec![asks(0, "room", Some(&reads(Some(false))))], ALICE).await;
    let claims = json!({"role": "authenticated", "sub": BOB, "exp": 1});
    let over = Arc::new(Principal::new(claims.as_object().unwrap().clone(), 1).unwrap());
    past.bench.hub.subscribe(expired.clone(), vec![asks(0, "room", None)], over).await.expect("accepted");
    past.bench.subscribe(&watcher, vec![asks(0, "hall", None)], BOB).await;
    past.post(&[Message("m1", "room", true), Message("m2", "room", false)]);
    past.post(&[Message("end", "hall", false)]);
    let mut witness = Witness::default();
    witness.until(&mut past.bench, "the end", |w| w.of(&watcher).rows.len() == 1).await;
    assert!(witness.of(&denied).rows.is_empty() && witness.of(&expired).rows.is_empty());
    past.bench.stop().await;
}

#[tokio::test]
async fn a_message_that_meets_a_token_that_is_over_waits_for_the_next_one_and_is_not_lost() {
    let mut past = Past::new().await;
    let rights = reads(Some(true));
    let lasting = |bench: &Bench| {
        let exp = bench.clock.unix_seconds() + 100;
        let claims = json!({"role": "authenticated", "sub": ALICE, "exp": exp});
        Arc::new(Principal::new(claims.as_object().unwrap().clone(), exp).unwrap())
    };
    let (alice, watcher) = (port(), port());
    let entries = vec![asks(0, "room", Some(&rights)), entry(1, "owned", None)];
    past.bench.hub.subscribe(alice.clone(), entries, lasting(&past.bench)).await.expect("accepted");
    past.bench.subscribe(&watcher, vec![asks(0, "hall", None)], BOB).await;
    // Her client has renewed it in time; that takes a while to be in force.
    past.bench.clock.advance(200_000);
    past.post(&[Message("m1", "room", true), OwnRow("r1"), Message("m2", "room", true)]);
    past.post(&[Message("mark", "hall", false)]);
    let mut witness = Witness::default();
    witness.until(&mut past.bench, "the mark", |w| w.of(&watcher).rows.len() == 1).await;
    assert!(witness.of(&alice).rows.is_empty(), "by a token that is no longer valid she gets nothing");
    past.bench.hub.reclaim(alice.id, lasting(&past.bench)).await.expect("reclaimed");
    past.post(&[Message("end", "room", true)]);
    witness.until(&mut past.bench, "the end", |w| w.of(&alice).ids().last() == Some(&"end")).await;
    assert_eq!(witness.of(&alice).ids(), ["m1", "r1", "m2", "end"]);
    assert!(witness.of(&alice).told.is_empty(), "nothing is missing");
    past.bench.stop().await;
}

#[tokio::test]
async fn what_is_no_broadcast_is_dropped_and_counted() {
    let config = HubConfig { max_message_bytes: 100, ..HubConfig::default() };
    let bench = Bench::with(TABLES, config).await;
    let (owned, waiting) = (bench.relation("owned").await, bench.relation("waiting").await);
    let mut past = Past { bench, owned, waiting, rows: Vec::new(), again: VecDeque::new() };
    let alice = port();
    past.bench.subscribe(&alice, vec![asks(0, "room", None)], ALICE).await;
    let large = format!("\"{}\"", "x".repeat(99));
    let row = |event, private, extension, payload| [event, "room", private, extension, payload, ID];
    past.post(&[
        Odd(b'U', row("update", "f", "broadcast", "1")),
        Odd(b'D', row("delete", "f", "broadcast", "1")),
        Odd(b'I', row("presence", "f", "presence", "1")),
        Odd(b'I', row("odd", "", "broadcast", "1")),
        Odd(b'I', row(NULL, "f", "broadcast", "1")),
        Odd(b'I', row("no payload", "f", "broadcast", NULL)),
        Odd(b'I', row("no privacy", NULL, "broadcast", "1")),
        Odd(b'I', ["no topic", NULL, "f", "broadcast", "1", ID]),
        Odd(b'I', row("large", "f", "broadcast", &large)),
        Odd(b'I', row("end", "f", "broadcast", "1")),
    ]);
    let mut witness = Witness::default();
    witness.until(&mut past.bench, "the end", |w| w.of(&alice).rows.len() == 1).await;
    assert_eq!(witness.of(&alice).ids(), ["end"]);
    let dropped = |reason| past.bench.metrics.messages_dropped.get_or_create(&[("reason", reason)]).get();
    assert_eq!(["malformed", "extension", "payload"].map(dropped), [5, 1, 1]);
    assert_eq!(past.bench.metrics.messages.get(), 8, "only what was inserted counts");
    past.bench.stop().await;
}

#[tokio::test]
async fn messages_since_a_place_are_replayed_in_order_with_rows_and_those_that_were_had_are_left_out() {
    let mut past = Past::with(|log| log.tail_bytes = 4096).await;
    let names: Vec<String> = (0..200).map(|i| format!("m{i}")).collect();
    for name in &names {
        past.post(&[Message(name, "room", true), OwnRow(name), Message("not mine", "hall", true)]);
    }
    past.goes_by().await;
    let rights = reads(Some(true));
    let (all, half, skips, late) = (port(), port(), port(), port());
    let entries = |at| vec![after(asks(0, "room", Some(&rights)), at), after(entry(1, "owned", None), at)];
    past.bench.subscribe(&all, entries(place(100, u32::MAX)), ALICE).await;
    // Each entry from its own place.
    let own = vec![
        after(asks(0, "room", Some(&rights)), place(1100, 0)),
        after(entry(1, "owned", None), place(past.bench.lsn, u32::MAX)),
    ];
    past.bench.subscribe(&half, own, ALICE).await;
    let mut had = after(asks(0, "room", Some(&rights)), place(2050, 0));
    if let Some(messages) = &mut had.messages {
        // All but what ended last had been seen when the table was read, which found a message of this id.
        let had = [0x6e, 0xcd, 0x8c, 0x99, 0x40, 0x36, 0x40, 0x3d, 0xbf, 0x84, 0xcf, 0x84, 0, 0xf6, 0x78, 0x36];
        let footing = Footing::of(Cursor { epoch: tag(), position: place(2050, 0) });
        let sees = crate::catalog::Snapshot::parse("1000:1000:").unwrap();
        let (_, replayed) = footing.replayed(sees, Lsn(past.bench.lsn), vec![had]);
        messages.replayed = Some(Arc::new(replayed));
    }
    past.bench.subscribe(&skips, vec![had], ALICE).await;
    past.bench.subscribe(&late, vec![asks(0, "room", Some(&rights))], ALICE).await;
    let other = "11111111-1111-1111-1111-111111111111";
    past.post(&[Odd(b'I', ["end", "room", "t", "broadcast", "1", other])]);
    let mut witness = Witness::default();
    let ports = [&all, &half, &skips, &late];
    let ended = |w: &mut Witness| ports.iter().all(|port| w.of(port).ids().last() == Some(&"end"));
    witness.until(&mut past.bench, "the end", ended).await;
    let both: Vec<&str> = names.iter().flat_map(|name| [name.as_str(), name.as_str()]).chain(["end"]).collect();
    assert_eq!(witness.of(&all).ids(), both);
    // The transaction that ends at 1100 is the hundredth; its message is the first item.
    let rest: Vec<&str> = names[100..].iter().map(String::as_str).chain(["end"]).collect();
    assert_eq!(witness.of(&half).ids(), rest);
    assert_eq!(witness.of(&skips).ids(), ["end"]);
    assert_eq!(witness.of(&late).ids(), ["end"]);
    past.bench.stop().await;
}

#[tokio::test]
async fn what_a_reading_of_the_table_saw_is_left_out_and_what_was_hidden_from_it_is_not() {
    let mut past = Past::new().await;
    past.post(&[Message("before", "room", true)]);
    let start = past.post(&[Message("ground", "room", true)]);
    past.post_by(7, &[Message("hidden", "room", true), OwnRow("row"), Message("hidden too", "room", true)]);
    past.post_by(8, &[Message("seen", "room", true), Message("seen too", "room", true)]);
    past.goes_by().await;
    let (rights, alice) = (reads(Some(true)), port());
    let footing = Footing::of(Cursor { epoch: tag(), position: place(start, u32::MAX) });
    let sees = crate::catalog::Snapshot::parse("7:9:7").unwrap();
    let (start, replayed) = footing.replayed(sees, Lsn(past.bench.lsn), Vec::new());
    let mut asked = asks(0, "room", Some(&rights));
    asked.messages.as_mut().unwrap().replayed = Some(Arc::new(replayed));
    past.bench.subscribe(&alice, vec![after(asked, start.position)], ALICE).await;
    past.post_by(8, &[Message("end", "room", true)]);
    let mut witness = Witness::default();
    witness.until(&mut past.bench, "the end", |w| w.of(&alice).ids().last() == Some(&"end")).await;
    assert_eq!(witness.of(&alice).ids(), ["hidden", "hidden too", "end"], "also by a number that is used again");
    past.bench.stop().await;
}

#[tokio::test]
async fn what_a_reading_saw_is_let_go_of_behind_its_end_and_a_late_commit_comes_once_all_the_same() {
    let mut past = Past::new().await;
    let start = past.post(&[Message("ground", "room", true)]);
    past.post_by(8, &[Message("seen", "room", true)]);
    past.goes_by().await;
    let (rights, alice) = (reads(Some(true)), port());
    let footing = Footing::of(Cursor { epoch: tag(), position: place(start, u32::MAX) });
    // Of 7 and 9 the one is not over when the table is read, and the other is over and hidden. Two more were over as well; what they
    // did is on its way to the relay.
    let sees = crate::catalog::Snapshot::parse("7:12:7,9").unwrap();
    let (start, replayed) = footing.replayed(sees, Lsn(past.bench.lsn + 30), Vec::new());
    let replayed = Arc::new(replayed);
    let mut asked = asks(0, "room", Some(&rights));
    asked.messages.as_mut().unwrap().replayed = Some(replayed.clone());
    past.bench.subscribe(&alice, vec![after(asked, start.position)], ALICE).await;
    past.post_by(9, &[Message("hidden", "room", true)]);
    past.post_by(10, &[Message("read", "room", true)]);
    let mut witness = Witness::default();
    witness.until(&mut past.bench, "the hidden one", |w| w.of(&alice).ids() == ["hidden"]).await;
    assert!(replayed.has_seam(), "more that it saw may come");
    past.post_by(11, &[Message("read too", "room", true)]);
    // The relay looks when something happens.
    let (deadline, mut sent) = (tokio::time::Instant::now() + DEADLINE, 0);
    while replayed.has_seam() {
        assert!(tokio::time::Instant::now() < deadline, "it is kept");
        sent += 1;
        past.post_by(20, &[Message("more", "room", true)]);
        witness.until(&mut past.bench, "another one", |w| w.of(&alice).rows.len() == 1 + sent).await;
    }
    past.post_by(7, &[Message("late", "room", true)]);
    past.post_by(21, &[Message("end", "room", true)]);
    witness.until(&mut past.bench, "the end", |w| w.of(&alice).ids().last() == Some(&"end")).await;
    let mut came = witness.of(&alice).ids().into_iter().map(str::to_owned).collect::<Vec<_>>();
    came.retain(|event| event != "more");
    assert_eq!(came, ["hidden", "late", "end"]);
    past.bench.stop().await;
}

#[tokio::test]
async fn messages_go_on_when_the_channels_table_is_gone_and_its_rows_when_it_is_back() {
    let mut past = Past::new().await;
    let alice = port();
    past.bench.subscribe(&alice, vec![asks(0, "room", None), entry(1, "owned", None)], ALICE).await;
    let mut witness = Witness::default();
    let mut sent = 0;
    for (sql, told) in [("drop", "Please check Realtime"), ("add", SUBSCRIBED)] {
        past.bench.database.run(&format!("alter publication supabase_realtime {sql} table owned")).await;
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !witness.of(&alice).told.iter().any(|text| text.contains(told)) {
            assert!(tokio::time::Instant::now() < deadline, "{told}");
            sent += 1;
            past.post(&[Message("m", "room", false)]);
            witness.until(&mut past.bench, "the message", |w| w.of(&alice).rows.len() == sent).await;
        }
    }
    past.post(&[OwnRow("back"), Message("end", "room", false)]);
    witness.until(&mut past.bench, "the end", |w| w.of(&alice).rows.len() == sent + 2).await;
    assert_eq!(witness.of(&alice).ids()[sent..], ["back", "end"]);
    past.bench.stop().await;
}

#[tokio::test]
async fn rows_that_are_missed_while_only_messages_go_on_are_told_as_a_gap_when_the_tables_are_back() {
    let mut past = Past::new().await;
    let alice = port();
    let entries = vec![asks(0, "room", None), entry(1, "owned", None), entry(2, "waiting", None)];
    past.bench.subscribe(&alice, entries, ALICE).await;
    let mut witness = Witness::default();
    let first = past.post(&[OwnRow("r1"), Message("m", "room", false)]);
    witness.until(&mut past.bench, "the first", |w| w.of(&alice).rows.len() == 2).await;
    let (mut sent, mut missed) = (2, Vec::new());
    for (sql, told) in [("drop", "Please check Realtime"), ("add", SUBSCRIBED)] {
        if sql == "add" {
            missed.push(place(past.post(&[OwnRow("r2"), Message("alone", "room", false)]), 0));
            sent += 1;
            witness.until(&mut past.bench, "the message", |w| w.of(&alice).rows.len() == sent).await;
            let reached = witness.ports[&alice.id].reached().unwrap().position;
            assert!(
                place(first, 1) <= reached && reached < missed[0],
                "{reached}: it has not had what is at {missed:?}"
            );
        }
        past.bench.database.run(&format!("alter publication supabase_realtime {sql} table waiting")).await;
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !witness.of(&alice).told.iter().any(|text| text.contains(told)) {
            assert!(tokio::time::Instant::now() < deadline, "{told}");
            sent += 1;
            past.post(&[Message("m", "room", false)]);
            witness.until(&mut past.bench, "the message", |w| w.of(&alice).rows.len() == sent).await;
        }
    }
    past.post(&[OwnRow("back"), Message("end", "room", false)]);
    witness.until(&mut past.bench, "the end", |w| w.of(&alice).rows.len() == sent + 2).await;
    let seen = witness.of(&alice);
    assert_eq!(seen.ids()[sent..], ["back", "end"]);
    // Whoever went on from there would never hear of what was missed.
    assert!(seen.placeless.iter().any(|event| event == "alone"), "{seen:?}");
    assert!(!seen.placeless.iter().any(|event| event == "back" || event == "end"), "{seen:?}");
    let [Details::Gap { from: Some(from), to, .. }] = seen.gaps[..] else { panic!("{seen:?}") };
    assert!(place(first, 1) <= from.position && from.position < missed[0] && missed[0] <= to.position, "{seen:?}");
    let end = place(past.bench.lsn, u32::MAX);
    witness.until(&mut past.bench, "it is there", |w| w.ports[&alice.id].reached().unwrap().position == end).await;
    past.bench.stop().await;
}

#[tokio::test]
async fn messages_go_on_when_the_table_is_gone_for_which_the_channel_was_paused() {
    let slow = "create function judged(kind text) returns bool language plpgsql as $$ begin
            if left(kind, 4) = 'held' then perform pg_advisory_xact_lock_shared(7); end if;
            return true;
        end $$;
        create domain slow_text as text check (judged(value));
        create table slow (id text primary key, kind slow_text);
        alter publication supabase_realtime add table slow;";
    let bench = Bench::with(&format!("{TABLES}{slow}"), HubConfig::default()).await;
    let (owned, waiting) = (bench.relation("owned").await, bench.relation("waiting").await);
    let mut past = Past { bench, owned, waiting, rows: Vec::new(), again: VecDeque::new() };
    let (alice, bob) = (port(), port());
    // Too long to be remembered.
    let filter = format!("kind=eq.held{}", "x".repeat(5000));
    past.bench.subscribe(&alice, vec![asks(0, "room", None), entry(1, "slow", Some(&filter))], ALICE).await;
    past.bench.subscribe(&bob, vec![asks(0, "hall", None)], BOB).await;
    past.bench.database.run("select pg_advisory_lock(7)").await;
    past.bench.database.run("alter table slow add column note text").await;
    let mut witness = Witness::default();
    let (mut sent, deadline) = (0, tokio::time::Instant::now() + DEADLINE);
    while witness.of(&alice).rows.len() == sent {
        assert!(tokio::time::Instant::now() < deadline, "it is never paused");
        past.post(&[Message("m", "room", false), Message("m", "hall", false)]);
        sent += 1;
        witness.until(&mut past.bench, "Bob's", |w| w.of(&bob).rows.len() == sent).await;
    }
    past.bench.database.run("alter publication supabase_realtime drop table slow").await;
    witness.until(&mut past.bench, "what it missed", |w| w.of(&alice).rows.len() == sent).await;
    past.bench.database.run("select pg_advisory_unlock(7)").await;
    past.bench.stop().await;
}
