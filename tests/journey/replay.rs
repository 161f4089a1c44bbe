//! `replay: { since }`: what the table has, then what the stream brings; nothing missing at the seam and nothing twice.

use std::time::Duration;

use rowcast::clock::Clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Scene;
use super::messages::{config, rooms, send};
use super::visibility::{Held, hold_commits};
use crate::support::phone::{Frame, PATIENCE};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, Relay, TestPg, Version};

const BOTH: [Version; 2] = [Version::V1, Version::V2];

/// What a member got: numbers of what was replayed, and of what came through the stream.
#[derive(Debug, Default, PartialEq)]
struct Got {
    replayed: Vec<usize>,
    live: Vec<usize>,
}

impl Got {
    fn take(&mut self, frame: &Frame, version: Version) -> usize {
        let payload = &frame.payload;
        let number = payload["payload"]["n"].as_u64().unwrap_or_else(|| panic!("a number: {payload}")) as usize;
        if payload["meta"]["replayed"] == true {
            assert_eq!(
                (&self.live, payload["meta"].get("cursor")),
                (&vec![], None),
                "first, and at no place: {payload}"
            );
            self.replayed.push(number);
        } else {
            assert!(payload["meta"]["cursor"].is_string(), "{payload}");
            assert_eq!(frame.binary.is_some(), version == Version::V2, "{payload}");
            self.live.push(number);
        }
        number
    }

    fn all(&self) -> Vec<usize> {
        let mut all = [&*self.replayed, &self.live].concat();
        all.sort_unstable();
        all
    }
}

struct Member {
    phone: Phone,
    version: Version,
    reply: Value,
    got: Got,
}

impl Member {
    async fn join(relay: &Relay, version: Version, topic: &str, replay: Option<Value>) -> Member {
        Member::at(&relay.base(), ALICE, version, topic, replay).await
    }

    async fn at(base: &str, user: &str, version: Version, topic: &str, replay: Option<Value>) -> Member {
        let token = token::user(user);
        let mut phone = Phone::connect(base, &token, version).await;
        let reply = phone.join_with(topic, config(true, &json!([]), &token, replay)).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        Member { phone, version, reply, got: Got::default() }
    }

    async fn since(relay: &Relay, version: Version, topic: &str, limit: u32) -> Member {
        Member::join(relay, version, topic, Some(json!({ "since": 0, "limit": limit }))).await
    }

    /// Everything up to this number.
    async fn until(&mut self, number: usize) -> &Got {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let next = tokio::time::timeout_at(deadline, self.phone.next_broadcast()).await;
            let frame = next.unwrap_or_else(|_| panic!("{number} never came: {:?}", self.got));
            assert_eq!(frame.payload["event"], "count", "{}", frame.text);
            if self.got.take(&frame, self.version) == number {
                return &self.got;
            }
        }
    }
}

/// A room, a relay that knows the table's shape, and the topic.
async fn scene() -> (Scene, String) {
    let pg = rooms().await;
    let scene = Scene { relay: Relay::start(&pg).await, pg };
    let topic = format!("of:{ALICE}");
    let mut member = Member::join(&scene.relay, Version::V1, &topic, None).await;
    scene.exec(&send(0, &topic, true)).await;
    member.until(0).await;
    (scene, topic)
}

/// With rooms that all users may read.
async fn open_rooms() -> TestPg {
    let pg = super::database("").await;
    pg.exec("create policy rooms on realtime.messages for select to authenticated using (extension = 'broadcast')")
        .await;
    pg
}

/// The same as [`scene`], with such rooms.
async fn open() -> Scene {
    let pg = open_rooms().await;
    Scene { relay: Relay::start(&pg).await, pg }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_in_the_stream_and_still_hidden_comes_live_and_what_overtook_it_once() {
    let (scene, topic) = scene().await;
    let mut watching = Member::join(&scene.relay, Version::V1, &topic, None).await;
    scene.exec(&send(1, &topic, true)).await;
    hold_commits(&scene.pg).await;
    let held = Held::commit(&scene.pg, &[send(2, &topic, true), send(3, &topic, true)].concat()).await;
    for number in [4, 5, 6] {
        scene.exec(&send(number, &topic, true)).await;
    }
    watching.until(6).await;
    let mut joined = Vec::new();
    for version in BOTH {
        for (limit, replayed) in [(25, vec![0, 1, 4, 5, 6]), (2, vec![5, 6])] {
            joined.push((Member::since(&scene.relay, version, &topic, limit).await, replayed));
        }
    }
    scene.exec(&send(7, &topic, true)).await;
    for (member, replayed) in &mut joined {
        let replayed = std::mem::take(replayed);
        assert_eq!(*member.until(7).await, Got { replayed, live: vec![2, 3, 7] });
    }
    held.release(&scene.pg).await;
    scene.exec(&send(8, &topic, true)).await;
    for (member, _) in &mut joined {
        member.until(8).await;
        assert_eq!(member.got.live, [2, 3, 7, 8], "showing itself makes no message of it again");
        // The reply's place is before all that is owed.
        let cursor = &member.reply["response"]["cursor"];
        let back = Some(json!({ "cursor": cursor }));
        let mut back = Member::join(&scene.relay, member.version, &topic, back).await;
        let live = back.until(8).await.live.clone();
        assert!(live.ends_with(&[2, 3, 4, 5, 6, 7, 8]), "{live:?}");
    }
    let late = &mut Member::since(&scene.relay, Version::V1, &topic, 25).await;
    scene.exec(&send(9, &topic, true)).await;
    late.until(9).await;
    assert_eq!((late.got.all(), &*late.got.live), ((0..=9).collect(), &[9][..]));
}

/// What is replayed is cut to a limit; a device is owed all that it has missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_gets_what_it_missed_and_the_limit_left_out_from_the_stream() {
    let (scene, topic) = scene().await;
    for (round, version) in BOTH.into_iter().enumerate() {
        let base = format!("{}/device/d{round}", scene.relay.base());
        let since = |limit: u32| Some(json!({ "since": 0, "limit": limit }));
        let mut member = Member::at(&base, ALICE, version, &topic, since(1)).await;
        let first = 1 + round * 10;
        scene.exec(&send(first, &topic, true)).await;
        member.until(first).await;
        drop(member);
        for number in first + 1..=first + 5 {
            scene.exec(&send(number, &topic, true)).await;
        }
        let mut member = Member::at(&base, ALICE, version, &topic, since(2)).await;
        scene.exec(&send(first + 6, &topic, true)).await;
        let Got { replayed, live } = member.until(first + 6).await;
        assert_eq!(*replayed, [first + 4, first + 5]);
        assert!(live.ends_with(&[first + 1, first + 2, first + 3, first + 6]), "{live:?}");
        assert!(live.iter().all(|number| !replayed.contains(number)), "{live:?}");
    }
}

/// What was replayed to one is not taken from the next whose token the channel has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_of_a_device_gets_what_he_missed_though_it_was_replayed_to_the_one_before() {
    let scene = open().await;
    let base = format!("{}/device/d1", scene.relay.base());
    let mut bob = Member::at(&base, BOB, Version::V2, "room", None).await;
    scene.exec(&send(0, "room", true)).await;
    bob.until(0).await;
    drop(bob);
    for number in [1, 2] {
        scene.exec(&send(number, "room", true)).await;
    }
    let since = Some(json!({ "since": 0 }));
    let mut alice = Member::at(&base, ALICE, Version::V2, "room", since).await;
    scene.exec(&send(3, "room", true)).await;
    assert_eq!(*alice.until(3).await, Got { replayed: vec![0, 1, 2], live: vec![3] });
    alice.phone.push_token("room", &token::user(BOB)).await;
    alice.until(2).await;
    assert!(alice.got.live.ends_with(&[1, 2]), "{:?}", alice.got);
}

/// Messages of a round: as many as a replay brings at most.
const EACH: usize = 5;
const WRITERS: usize = 4;

/// A writer's messages, each in a transaction of its own, which is open for a moment.
async fn write(pg: &TestPg, topic: &str, writer: usize) {
    let client = pg.client().await;
    for number in 0..EACH {
        let sql = send(1 + writer * EACH + number, topic, true);
        let pause = (writer * 3 + number * 7) % 5;
        let sql = format!("begin; {sql} select pg_sleep(0.00{pause}); commit");
        client.batch_execute(&sql).await.expect("sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_while_many_write_has_each_message_once_and_what_is_live_in_the_order_of_commits() {
    let scene = open().await;
    let last = 1 + EACH * WRITERS;
    for round in 0..12 {
        let topic = format!("storm {round}");
        let mut witness = Member::join(&scene.relay, Version::V2, &topic, None).await;
        let writing = (0..WRITERS).map(|writer| write(&scene.pg, &topic, writer));
        let joining = (0..12_usize).map(|place| {
            let (relay, topic) = (&scene.relay, &topic);
            async move {
                tokio::time::sleep(Duration::from_millis(place as u64 * 2)).await;
                Member::since(relay, BOTH[place % 2], topic, 25).await
            }
        });
        let (_, members) = futures_util::future::join(
            futures_util::future::join_all(writing),
            futures_util::future::join_all(joining),
        )
        .await;
        scene.exec(&send(last, &topic, true)).await;
        let order = witness.until(last).await.live.clone();
        assert_eq!(order.len(), last);
        for mut member in members {
            member.until(last).await;
            assert_eq!(member.got.all(), (1..=last).collect::<Vec<_>>(), "round {round}: {:?}", member.got);
            let live = member.got.live.iter().map(|number| order.iter().position(|known| known == number));
            assert!(live.is_sorted(), "round {round}: {:?} of {order:?}", member.got);
        }
    }
}

/// Together they are more than all buffers on the way hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_several_channels_with_much_to_replay_is_not_sent_away_for_reading_slowly() {
    let pg = open_rooms().await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.gateway.max_outbox_bytes = 64 << 10).await;
    let (topics, token) = (["one", "two", "three"], token::user(ALICE));
    for topic in topics {
        let payload = "jsonb_build_object('n', n, 'text', repeat('x', 130000))";
        pg.exec(&format!("select realtime.send({payload}, 'count', '{topic}', true) from generate_series(1, 20) n"))
            .await;
    }
    let since = || Some(json!({ "since": 0, "limit": 25 }));
    let mut phone = Phone::connect(&relay.base(), &token, Version::V2).await;
    let mut references = Vec::new();
    for topic in topics {
        references.push(phone.push_join(topic, config(true, &json!([]), &token, since())).await);
    }
    // Nothing is read yet; others' replays come behind those.
    for _ in 0..6 {
        Member::at(&relay.base(), BOB, Version::V2, "one", since()).await.until(20).await;
    }
    for (topic, reference) in topics.iter().zip(references) {
        let reply = phone.reply_to(&json!(reference)).await;
        assert_eq!(reply.payload["status"], "ok", "{topic}: {}", reply.text);
    }
}

/// Each of them waits at the hub for the memberships, which can't be loaded while somebody writes them: without a bound all
/// would be activated, and written, in one instant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_several_joins_held_with_much_to_replay_is_not_sent_away_for_reading_slowly() {
    let pg = open_rooms().await;
    pg.exec(
        "create table public.members (team int, person uuid, primary key (team, person));
         create table public.posts (id int primary key, team int); grant select on public.posts, public.members to authenticated;
         alter table public.posts enable row level security;
         create policy team on public.posts for select to authenticated
             using (exists (select from public.members m where m.team = posts.team and m.person = auth.uid()));
         alter publication supabase_realtime add table public.posts;",
    )
    .await;
    let relay = Relay::with(&pg, Clock::system(), |config| {
        config.gateway.max_outbox_bytes = 64 << 10;
        config.gateway.rights_timeout = 3 * PATIENCE;
        config.hub.facts.wait = Duration::from_secs(1);
    })
    .await;
    let writer = pg.client().await;
    writer.batch_execute("begin; insert into members values (1, gen_random_uuid())").await.expect("written");
    let (topics, token) = (["one", "two", "three"], token::user(ALICE));
    for topic in topics {
        let payload = "jsonb_build_object('n', n, 'text', repeat('x', 130000))";
        pg.exec(&format!("select realtime.send({payload}, 'count', '{topic}', true) from generate_series(1, 20) n"))
            .await;
    }
    let mut phone = Phone::connect(&relay.base(), &token, Version::V2).await;
    let mut references = Vec::new();
    for topic in topics {
        let entries = json!([{ "event": "*", "schema": "public", "table": "posts" }]);
        let mut payload = config(true, &entries, &token, Some(json!({ "since": 0, "limit": 25 })));
        payload["config"]["postgres_changes_options"] = json!({ "wait": true, "timeout": 20_000 });
        references.push(phone.push_join(topic, payload).await);
    }
    // Nothing is read yet; others wait for the memberships behind those.
    for _ in 0..3 {
        let mut other = Phone::connect(&relay.base(), &token, Version::V2).await;
        other.subscribe("other", &json!([{ "event": "*", "schema": "public", "table": "posts" }])).await;
    }
    for (topic, reference) in topics.iter().zip(references) {
        let reply = phone.reply_to(&json!(reference)).await;
        assert_eq!(reply.payload["status"], "ok", "{topic}: {}", reply.text);
    }
    drop(writer);
}
