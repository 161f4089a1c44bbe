//! Database broadcasts over the wire: `realtime.send()` in the transaction of a row change, through the log, to the members.

use std::time::Duration;

use serde_json::{Value, json};

use super::{ALICES_SESSION, Scene, database, event, watching};
use crate::support::phone::{Frame, PATIENCE, Phone, Version};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{RelayProcess, TestPg};

/// Each user may read the private room that bears his id.
const RIGHTS: &str = "create policy rooms on realtime.messages for select to authenticated \
     using (extension = 'broadcast' and realtime.topic() = 'of:' || auth.uid()::text);";

pub(super) async fn rooms() -> TestPg {
    let pg = database("").await;
    pg.exec(RIGHTS).await;
    pg
}

pub(super) fn config(private: bool, entries: &Value, token: &str, replay: Option<Value>) -> Value {
    let mut broadcast = json!({ "ack": false, "self": false });
    if let Some(replay) = replay {
        broadcast["replay"] = replay;
    }
    let presence = json!({ "key": "", "enabled": false });
    let config =
        json!({ "broadcast": broadcast, "presence": presence, "private": private, "postgres_changes": entries });
    json!({ "config": config, "access_token": token })
}

async fn join(phone: &mut Phone, topic: &str, payload: Value) {
    let reply = phone.join_with(topic, payload).await;
    assert_eq!(reply["status"], "ok", "{reply}");
}

/// SQL that sends a number to a topic.
pub(super) fn send(number: usize, topic: &str, private: bool) -> String {
    format!("select realtime.send('{{\"n\": {number}}}', 'count', '{topic}', {private});")
}

/// The numbers that these frames bring, and the last cursor.
fn numbers(frames: &[Frame], version: Version) -> (Vec<usize>, Option<String>) {
    let broadcasts = frames.iter().filter(|frame| frame.event == "broadcast").inspect(|frame| {
        assert_eq!(frame.binary.is_some(), version == Version::V2, "{}", frame.text);
    });
    let counted: Vec<&Value> =
        broadcasts.map(|frame| &frame.payload).filter(|payload| payload["event"] == "count").collect();
    for payload in &counted {
        assert_eq!(payload["type"], "broadcast");
        assert_eq!(
            payload["meta"]["id"], payload["payload"]["id"],
            "realtime.send() puts the row's id into the payload"
        );
    }
    let cursor = counted.last().and_then(|payload| payload["meta"]["cursor"].as_str()).map(str::to_owned);
    let number = |payload: &&Value| payload["payload"]["n"].as_u64().expect("a number") as usize;
    (counted.iter().map(number).collect(), cursor)
}

/// What a frame says, in a word.
fn word(frame: &Frame) -> Option<String> {
    match frame.event.as_str() {
        "broadcast" => Some(format!("{}", frame.payload["payload"]["n"])),
        "postgres_changes" => Some(frame.payload["data"]["table"].as_str().expect("a table").to_owned()),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_comes_at_its_place_among_the_rows_of_its_transaction_to_those_of_its_privacy() {
    let pg = rooms().await;
    let scene = Scene { relay: crate::support::Relay::start(&pg).await, pg };
    let (alices, bobs) = (token::user(ALICE), token::user(BOB));
    let topic = format!("of:{ALICE}");
    let entries = watching(&["session_events"]);
    let mut alice = Phone::connect(&scene.relay.base(), &alices, Version::V1).await;
    join(&mut alice, &topic, config(true, &entries, &alices, None)).await;
    alice.subscribed(&topic).await;
    let mut bob = Phone::connect(&scene.relay.base(), &bobs, Version::V1).await;
    join(&mut bob, &topic, config(false, &json!([]), &bobs, None)).await;
    let refused = bob.join_with(&topic, config(true, &json!([]), &bobs, None)).await;
    assert_eq!(refused["status"], "error", "{refused}");
    join(&mut bob, &topic, config(false, &json!([]), &bobs, None)).await;

    let insert = event(ALICES_SESSION, "a");
    let all = [send(1, &topic, true), format!("{insert};"), send(2, &topic, true), send(3, &topic, false)].concat();
    scene.pg.exec(&format!("begin; {all} rollback")).await;
    scene.pg.exec(&format!("begin; {all} commit")).await;
    scene.pg.exec(&[send(4, &topic, false), send(5, &topic, true)].concat()).await;
    let mut words = Vec::new();
    while words.last().is_none_or(|word| word != "5") {
        words.extend(word(&alice.next_frame().await));
    }
    assert_eq!(words, ["1", "session_events", "2", "5"]);
    let mut words = Vec::new();
    while words.last().is_none_or(|word| word != "4") {
        words.extend(word(&bob.next_frame().await));
    }
    assert_eq!(words, ["3", "4"]);
    assert_eq!(scene.relay.metric("rowcast_messages_total", "").await, 5.0);
}

/// One whose connection goes again and again, and comes back.
struct Member {
    base: String,
    token: String,
    version: Version,
    topic: String,
    /// Asks for what comes after the last cursor.
    keeps_cursor: bool,
    cursor: Option<String>,
    got: Vec<usize>,
    phone: Phone,
}

impl Member {
    async fn new(relay: &RelayProcess, version: Version, device: Option<&str>, topic: &str) -> Member {
        let base = relay.base();
        let (base, keeps_cursor) = device.map_or((base.clone(), true), |id| (format!("{base}/device/{id}"), false));
        let token = token::user(ALICE);
        let phone = Phone::connect(&base, &token, version).await;
        let (topic, cursor, got) = (topic.into(), None, Vec::new());
        let mut member = Member { base, token, version, topic, keeps_cursor, cursor, got, phone };
        member.join().await;
        member
    }

    async fn join(&mut self) {
        let replay = self.cursor.as_ref().filter(|_| self.keeps_cursor).map(|cursor| json!({ "cursor": cursor }));
        let payload = config(true, &json!([]), &self.token, replay);
        join(&mut self.phone, &self.topic, payload).await;
    }

    fn take(&mut self) {
        let frames = self.phone.frames_of(&self.topic);
        let (numbers, cursor) = numbers(&frames, self.version);
        self.got.extend(numbers);
        self.cursor = cursor.or(self.cursor.take());
    }

    /// The relay is gone, and there again.
    async fn comes_back(&mut self) {
        self.phone.close_code().await;
        self.take();
        self.phone = Phone::connect(&self.base, &self.token, self.version).await;
        self.join().await;
    }

    async fn until(&mut self, number: usize) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.got.contains(&number) {
            assert!(tokio::time::Instant::now() < deadline, "{number} never came: {:?}", self.got);
            self.phone.heartbeat().await;
            self.take();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_while_messages_flow_costs_those_who_come_back_with_a_cursor_or_a_device_none() {
    let pg = rooms().await;
    let topic = format!("of:{ALICE}");
    let mut relay = RelayProcess::start(&pg).await;
    let mut members = Vec::new();
    for (version, device) in [(Version::V1, "d1"), (Version::V2, "d2")] {
        members.push(Member::new(&relay, version, None, &topic).await);
        members.push(Member::new(&relay, version, Some(device), &topic).await);
    }
    let mut sent = 0;
    // One that everybody has, so that there is a place to go on from.
    pg.exec(&send(sent, &topic, true)).await;
    for member in &mut members {
        member.until(0).await;
    }
    for _round in 0..3 {
        for _ in 0..40 {
            sent += 1;
            pg.exec(&send(sent, &topic, true)).await;
        }
        relay.kill().await;
        for _ in 0..10 {
            sent += 1;
            pg.exec(&send(sent, &topic, true)).await;
        }
        relay.start_again().await;
        relay.readiness(200).await;
        for member in &mut members {
            member.comes_back().await;
        }
    }
    sent += 1;
    pg.exec(&send(sent, &topic, true)).await;
    for member in &mut members {
        member.until(sent).await;
    }
    let all: Vec<usize> = (0..=sent).collect();
    for mut member in members {
        if member.keeps_cursor {
            assert_eq!(member.got, all, "by cursor each comes once, {:?}", member.version);
        } else {
            member.got.sort_unstable();
            member.got.dedup();
            assert_eq!(member.got, all, "by device none is missing, {:?}", member.version);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_dropped_by_retention_tells_nobody_and_stops_nothing() {
    let pg = rooms().await;
    let scene = Scene { relay: crate::support::Relay::start(&pg).await, pg };
    let (alices, topic) = (token::user(ALICE), format!("of:{ALICE}"));
    let mut alice = Phone::connect(&scene.relay.base(), &alices, Version::V1).await;
    join(&mut alice, &topic, config(true, &watching(&["session_events"]), &alices, None)).await;
    alice.subscribed(&topic).await;
    scene.pg.exec(&send(1, &topic, true)).await;
    scene
        .pg
        .exec(
            "create table realtime.messages_2001_01_01 partition of realtime.messages \
             for values from ('2001-01-01') to ('2001-01-02'); \
             insert into realtime.messages (topic, extension, event, private, payload, inserted_at) \
             values ('elsewhere', 'broadcast', 'count', true, '{}', '2001-01-01 12:00')",
        )
        .await;
    scene.pg.exec("drop table realtime.messages_2001_01_01").await;
    scene.pg.exec(&format!("{}; {}", event(ALICES_SESSION, "a"), send(2, &topic, true))).await;
    let mut words = Vec::new();
    while words.last().is_none_or(|word| word != "2") {
        let frame = alice.next_frame().await;
        assert_ne!(frame.event, "system", "{}", frame.text);
        words.extend(word(&frame));
    }
    assert_eq!(words, ["1", "session_events", "2"]);
}
