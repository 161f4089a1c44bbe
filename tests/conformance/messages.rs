//! Items 100 to 105 and 113: what the database broadcasts, heard in the private and the public channel of one topic.
//!
//! That something does not arrive is proved by what a later transaction sends to both channels.

use std::time::Duration;

use futures_util::StreamExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_postgres::{AsyncMessage, NoTls};

use super::stage::{BOTH, Scene, Shared};
use crate::support::phone::{Frame, PATIENCE, Phone};
use crate::support::without_cursor;

/// Joins a channel of this topic with this `broadcast`.
async fn join(phone: &mut Phone, topic: &str, private: bool, broadcast: Value) {
    let config = json!({ "private": private, "broadcast": broadcast, "presence": { "enabled": false } });
    let reply = phone.join_with(topic, json!({ "config": config })).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

/// All broadcasts before the one with event `end`.
async fn until_end(phone: &mut Phone) -> Vec<Frame> {
    let mut before = Vec::new();
    loop {
        let frame = phone.next_broadcast().await;
        if frame.payload["event"] == "end" {
            return before;
        }
        before.push(frame);
    }
}

/// Members of both channels of a topic, one of each version in each.
struct Room {
    topic: String,
    private: [Phone; 2],
    public: [Phone; 2],
}

/// What a room's members got, version 1 first.
struct Heard {
    private: [Vec<Frame>; 2],
    public: [Vec<Frame>; 2],
}

impl Room {
    async fn open(relay: &Shared, topic: &str) -> Room {
        let mut members = Vec::new();
        for private in [true, true, false, false] {
            let mut phone = relay.phone(BOTH[members.len() % 2]).await;
            join(&mut phone, topic, private, json!({})).await;
            members.push(phone);
        }
        let Ok([one, two, three, four]) = <[Phone; 4]>::try_from(members) else { panic!("four") };
        Room { topic: topic.to_owned(), private: [one, two], public: [three, four] }
    }

    /// What has come until now.
    async fn heard(&mut self, relay: &Shared) -> Heard {
        let end = |private| format!("select realtime.send('{{}}', 'end', '{}', {private});", self.topic);
        relay.exec(&[end(true), end(false)].concat()).await;
        let [one, two] = &mut self.private;
        let [three, four] = &mut self.public;
        let heard = Heard {
            private: [until_end(one).await, until_end(two).await],
            public: [until_end(three).await, until_end(four).await],
        };
        let frames = heard.private.iter().chain(&heard.public).flatten();
        frames.for_each(|frame| assert_eq!(frame.topic, format!("realtime:{}", self.topic)));
        heard
    }
}

/// The id that a frame's `meta` tells, which is the row's.
fn id(frame: &Frame) -> &str {
    let id = frame.payload["meta"]["id"].as_str().unwrap_or_else(|| panic!("no id: {}", frame.payload));
    assert_eq!(id.len(), 36);
    id
}

/// One JSON message in both versions: event and payload, without the id that both places must tell.
#[track_caller]
fn only(heard: &[Vec<Frame>; 2]) -> (Value, Value) {
    let [[one], [two]] = [&*heard[0], &*heard[1]] else { panic!("not one each: {heard:#?}") };
    for frame in [one, two] {
        assert_eq!(frame.payload["type"], "broadcast");
        assert_eq!(frame.payload["payload"]["id"], id(frame));
        assert_eq!(without_cursor(frame.payload["meta"].clone()), json!({ "id": id(frame) }));
        assert_eq!((&frame.join_ref, &frame.reference), (&Value::Null, &Value::Null));
    }
    assert_eq!(one.payload, two.payload, "the versions differ");
    assert!(one.binary.is_none() && two.binary.as_ref().is_some_and(|binary| binary.encoding == 1));
    let mut payload = one.payload["payload"].clone();
    payload.as_object_mut().expect("an object").remove("id");
    (one.payload["event"].clone(), payload)
}

fn none(heard: &[Vec<Frame>; 2]) {
    assert!(heard.iter().all(Vec::is_empty), "{heard:#?}");
}

#[tokio::test]
async fn item_100_what_the_database_sends_reaches_private_members_only() {
    let relay = Shared::relay().await;
    let mut room = Room::open(&relay, "open 100").await;
    relay.exec(r#"select realtime.send('{"a":1}', 'ev', 'open 100', true)"#).await;
    let heard = room.heard(&relay).await;
    assert_eq!(only(&heard.private), (json!("ev"), json!({ "a": 1 })));
    none(&heard.public);
    // It is private unless it says otherwise. An id of the application's own stays.
    relay.exec(r#"select realtime.send('{"id": 7}', 'own', 'open 100')"#).await;
    let heard = room.heard(&relay).await;
    for frames in &heard.private {
        assert_eq!((frames.len(), &frames[0].payload["payload"]), (1, &json!({ "id": 7 })));
        id(&frames[0]);
    }
    none(&heard.public);
}

/// Names longer than a binary frame can hold reach those whose frames are text; what is too large, nobody.
#[tokio::test]
async fn item_100_what_a_frame_cannot_hold_is_left_out_and_harms_nobody() {
    let relay = Shared::relay().await;
    let mut room = Room::open(&relay, "open 106").await;
    let long = "e".repeat(256);
    relay.exec(&format!("select realtime.send('{{}}', '{long}', 'open 106', true)")).await;
    relay.exec("select realtime.send(jsonb_build_object('a', repeat('x', 3100000)), 'large', 'open 106', true)").await;
    relay.exec("select realtime.send_binary(decode(repeat('00', 3100000), 'hex'), 'large', 'open 106', true)").await;
    // No UPDATE is one, nor what has another extension.
    relay
        .exec(
            "update realtime.messages set event = 'changed' where topic = 'open 106';
             insert into realtime.messages (topic, extension, event, payload, private)
             values ('open 106', 'presence', 'presence', '{}', true);
             insert into realtime.messages (topic, extension, event, payload, private)
             values ('open 106', 'broadcast', 'list', '[1, \"é\"]', true)",
        )
        .await;
    let heard = room.heard(&relay).await;
    none(&heard.public);
    let events = |frames: &[Frame]| frames.iter().map(|frame| frame.payload["event"].clone()).collect::<Vec<_>>();
    assert_eq!(events(&heard.private[0]), [json!(long), json!("list")]);
    assert_eq!(events(&heard.private[1]), ["list"]);
    for frames in &heard.private {
        assert_eq!(frames[frames.len() - 1].payload["payload"], json!([1, "é"]));
    }
}

#[tokio::test]
async fn item_101_what_is_not_private_reaches_public_members_only() {
    let relay = Shared::relay().await;
    let mut room = Room::open(&relay, "open 101").await;
    relay.exec(r#"select realtime.send('{"a":1}', 'ev', 'open 101', false)"#).await;
    let heard = room.heard(&relay).await;
    assert_eq!(only(&heard.public), (json!("ev"), json!({ "a": 1 })));
    none(&heard.private);
}

#[tokio::test]
async fn item_102_what_is_rolled_back_reaches_nobody() {
    let relay = Shared::relay().await;
    let mut room = Room::open(&relay, "open 102").await;
    let send = |event: &str| {
        let send = |private| format!("select realtime.send('{{}}', '{event}', 'open 102', {private});");
        [send(true), send(false)].concat()
    };
    relay.exec(&["begin;", &send("gone"), "rollback"].concat()).await;
    none(&room.heard(&relay).await.private);
    let part = ["begin; savepoint s;", &send("gone"), "rollback to s;", &send("kept"), "commit"].concat();
    relay.exec(&part).await;
    let heard = room.heard(&relay).await;
    for side in [&heard.private, &heard.public] {
        assert_eq!(only(side).0, "kept");
    }
}

#[tokio::test]
async fn item_103_bytes_reach_version_2_members_only() {
    let relay = Shared::relay().await;
    let mut room = Room::open(&relay, "open 103").await;
    for private in [true, false] {
        let send = |bytes: &str| format!("select realtime.send_binary('{bytes}', 'bytes', 'open 103', {private});");
        relay.exec(&[send(r"\xdead00ff"), send("")].concat()).await;
        let heard = room.heard(&relay).await;
        let (members, others) = match private {
            true => (heard.private, heard.public),
            false => (heard.public, heard.private),
        };
        none(&others);
        assert!(members[0].is_empty(), "version 1 has no bytes: {:#?}", members[0]);
        let got = members[1].iter().map(|frame| {
            let binary = frame.binary.as_ref().expect("a binary frame");
            assert_eq!((&frame.payload["event"], binary.encoding), (&json!("bytes"), 0));
            id(frame);
            &*binary.payload
        });
        assert_eq!(got.collect::<Vec<_>>(), [&b"\xde\xad\x00\xff"[..], &b""[..]]);
    }
}

#[tokio::test]
async fn item_104_changes_tell_the_operation_and_the_rows_before_and_after() {
    let relay = Shared::relay().await;
    let mut room = Room::open(&relay, "open 104").await;
    relay
        .exec(
            "create table public.items104 (id int primary key, body text);
             create function public.tell104() returns trigger language plpgsql security definer set search_path = '' as $$ begin
                 perform realtime.broadcast_changes('open 104', tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
                 return null;
             end $$;
             create trigger tell after insert or update or delete on public.items104
                 for each row execute function public.tell104();",
        )
        .await;
    let (a, b) = (json!({ "id": 1, "body": "a" }), json!({ "id": 1, "body": "b" }));
    for (operation, sql, record, old) in [
        ("INSERT", "insert into public.items104 values (1, 'a')", a.clone(), Value::Null),
        ("UPDATE", "update public.items104 set body = 'b'", b.clone(), a),
        ("DELETE", "delete from public.items104", Value::Null, b),
    ] {
        relay.exec(sql).await;
        let heard = room.heard(&relay).await;
        let payload = json!({ "schema": "public", "table": "items104", "operation": operation, "record": record,
                              "old_record": old });
        assert_eq!(only(&heard.private), (json!(operation), payload));
        none(&heard.public);
    }
}

/// Runs statements in a session of their own; the warnings that came.
async fn warnings(url: &str, sql: &str) -> Vec<String> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.expect("a connection");
    let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
    let listening = async {
        let mut warnings = Vec::new();
        while let Some(message) = messages.next().await {
            if let AsyncMessage::Notice(notice) = message.expect("a message") {
                warnings.push(format!("{}: {}", notice.severity(), notice.message()));
            }
        }
        warnings
    };
    let running = async move {
        client.batch_execute(sql).await.expect("the caller's work is done");
        drop(client);
    };
    tokio::join!(listening, running).0
}

#[tokio::test]
async fn item_105_a_send_that_fails_leaves_the_callers_transaction_alone() {
    let relay = Shared::relay().await;
    let mut room = Room::open(&relay, "open 105").await;
    relay.exec("create table public.items105 (id int primary key); grant insert on public.items105 to anon").await;
    // A user whom no policy lets write, a payload that can hold no id, and no event.
    let troubles = [
        "set local role anon; select realtime.send('{}', 'e', 'open 105', true)",
        "select realtime.send('[1]', 'e', 'open 105', true)",
        "select realtime.send('{}', 'e', null, true)",
        "set local role anon; select realtime.send_binary('', 'e', 'open 105', true)",
    ];
    for (number, trouble) in troubles.iter().enumerate() {
        let sql = format!("begin; insert into public.items105 values ({number}); {trouble}; commit");
        let warnings = warnings(relay.url(), &sql).await;
        assert_eq!(warnings.len(), 1, "{trouble}: {warnings:?}");
        assert!(warnings[0].starts_with("WARNING: WarnSendingBroadcastMessage: "), "{warnings:?}");
    }
    let heard = room.heard(&relay).await;
    none(&heard.private);
    none(&heard.public);
    let kept = "do $$ begin assert (select count(*) from public.items105) = 4; end $$";
    relay.exec(kept).await;
}

/// Item 203 for what is not a row's change: the channels' rights are asked for anew where they have to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_203_after_a_restart_of_postgres_private_channels_are_joined_and_broadcasts_flow() {
    let sql = "create policy read on realtime.messages for select to authenticated \
                   using (realtime.topic() = 'memory' or random() >= 0); \
               create policy write on realtime.messages for insert to authenticated \
                   with check (realtime.topic() = 'memory' or random() >= 0);";
    let mut scene = Scene::prepared(sql, |_| {}).await;
    for version in BOTH {
        let mut members = [scene.phone(version).await, scene.phone(version).await];
        for phone in &mut members {
            for topic in ["memory", "asked"] {
                join(phone, topic, true, json!({})).await;
            }
        }
        scene.pg.restart().await;
        for topic in ["memory", "asked"] {
            scene.pg.exec(&format!("select realtime.send('{{}}', 'stored', '{topic}', true)")).await;
            for phone in &mut members {
                assert_eq!(phone.next_of(topic, "broadcast").await.payload["event"], "stored");
            }
            let payload = json!({ "type": "broadcast", "event": "e", "payload": {} });
            members[0].push(topic, "broadcast", payload.clone()).await;
            assert_eq!(members[1].next_of(topic, "broadcast").await.payload, payload);
        }
        for phone in &mut members {
            let frames = phone.frames_so_far().await;
            assert!(frames.is_empty(), "{frames:#?}");
        }
    }
}

/// The stream's sender, stopped until this is dropped.
struct Paused(Pid);

impl Paused {
    async fn new(scene: &Scene) -> Paused {
        let deadline = Instant::now() + PATIENCE;
        let sql = "select active_pid from pg_replication_slots where active_pid is not null";
        let pid = loop {
            assert!(Instant::now() < deadline, "nobody reads the slot");
            let row = scene.pg.client().await.query_opt(sql, &[]).await.expect("at most one slot");
            if let Some(row) = row {
                break Pid::from_raw(row.get(0));
            }
            sleep(Duration::from_millis(10)).await;
        };
        kill(pid, Signal::SIGSTOP).expect("the server is ours");
        Paused(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // It may have ended with its server.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// The row is in the table when the join looks, and comes through the stream only after it. So does one that the replay had no
/// room for: it is of the time before the join, and no news.
#[tokio::test]
async fn item_113_what_is_replayed_and_comes_through_the_stream_is_delivered_once() {
    let scene = Scene::open().await;
    let replay = json!({ "replay": { "since": 0, "limit": 2 } });
    let send = |event: &str| format!("select realtime.send('{{}}', '{event}', 'open 113', true);");
    for (number, version) in BOTH.into_iter().enumerate() {
        let paused = Paused::new(&scene).await;
        let names = ["a", "b", "c"].map(|name| format!("{name}{number}"));
        for name in &names {
            scene.pg.exec(&send(name)).await;
        }
        let mut phone = scene.phone(version).await;
        join(&mut phone, "open 113", true, replay.clone()).await;
        for name in &names[1..] {
            let frame = phone.next_broadcast().await;
            assert_eq!((&frame.payload["event"], &frame.payload["meta"]["replayed"]), (&json!(name), &json!(true)));
        }
        drop(paused);
        scene.pg.exec(&send("end")).await;
        let live = until_end(&mut phone).await;
        let events: Vec<&Value> = live.iter().map(|frame| &frame.payload["event"]).collect();
        assert!(events.is_empty(), "{version:?}: {events:?}");
        phone.leave("open 113").await;
    }
}
