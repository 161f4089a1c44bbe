//! Snapshot and tail: what is there, then everything after; nothing missing, nothing twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rowcast::clock::Clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::visibility::{Held, hold_commits};
use super::{Scene, database, mark, notify};
use crate::support::pg::TestPgOptions;
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, Relay, RelayProcess, TestPg, Version};

/// Rows with an owner and a version that grows by one with each UPDATE.
const VERSIONED: &str =
    "create table public.things (id int primary key, user_id uuid not null, version int not null, note text);
     alter table public.things replica identity full; alter table public.things enable row level security;
     create policy own on public.things for select using (user_id = auth.uid());
     grant select on public.things to authenticated;
     alter publication supabase_realtime add table public.things;";

/// An entry with a snapshot, and the marks.
fn shown(table: &str, more: Value) -> Value {
    let mut entry = json!({ "event": "*", "schema": "public", "table": table, "snapshot": { "limit": 1000 } });
    let object = entry.as_object_mut().expect("an object");
    object.extend(more.as_object().expect("an object").clone());
    json!([entry, { "event": "*", "schema": "public", "table": "marks" }])
}

/// What a client got, in order.
#[derive(Debug, Default)]
struct Got {
    /// Records of the snapshot.
    rows: Vec<Value>,
    /// `system` payloads but `Subscribed`.
    notices: Vec<Value>,
    /// `data` of changes, marks left out.
    changes: Vec<Value>,
}

impl Got {
    fn column(&self, name: &str) -> Vec<String> {
        self.rows.iter().map(|row| plain(&row[name])).collect()
    }

    fn changed(&self, name: &str) -> Vec<String> {
        let of = |data: &Value| {
            let record = if data["type"] == "DELETE" { &data["old_record"] } else { &data["record"] };
            format!("{} {}", data["type"].as_str().expect("a type"), plain(&record[name]))
        };
        self.changes.iter().map(of).collect()
    }

    /// The notice behind the snapshot.
    #[track_caller]
    fn complete(&self) -> &Value {
        let found = self.notices.iter().find(|notice| notice["message"] == "Snapshot complete");
        found.unwrap_or_else(|| panic!("the snapshot is not complete: {:#?}", self.notices))
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Everything up to the mark, and until the snapshot is complete. Checks that nothing precedes the snapshot and that it has
/// no cursors.
async fn got_before(phone: &mut Phone, note: &str) -> Got {
    let (mut got, mut marked) = (Got::default(), false);
    while !marked || !got.notices.iter().any(|notice| notice["message"] == "Snapshot complete") {
        let frame = phone.next_frame().await;
        match frame.event.as_str() {
            "system" if frame.payload["message"] == "Subscribed to PostgreSQL" => {
                assert_eq!(frame.payload.get("cursor"), None, "there is none to go on from yet: {}", frame.text);
            }
            "system" => {
                assert_eq!(frame.payload["status"], "ok", "{}", frame.text);
                got.notices.push(frame.payload);
            }
            "postgres_changes" => {
                let data = &frame.payload["data"];
                if data["table"] == "marks" {
                    marked |= data["record"]["note"] == note;
                } else if data["snapshot"] == true {
                    assert!(got.changes.is_empty() && got.notices.is_empty(), "{}", frame.text);
                    assert_eq!((&data["type"], data.get("cursor")), (&json!("INSERT"), None), "{}", frame.text);
                    got.rows.push(data["record"].clone());
                } else {
                    assert_eq!(data.get("snapshot"), None, "{}", frame.text);
                    got.changes.push(data.clone());
                }
            }
            "phx_reply" => {}
            other => panic!("{other}: {}", frame.text),
        }
    }
    got
}

async fn joined(phone: &mut Phone, entries: &Value) -> i64 {
    let reply = phone.join("room", entries).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    reply["response"]["postgres_changes"][0]["id"].as_i64().expect("an id")
}

/// Waits until so many snapshots have been taken.
async fn taken(relay: &Relay, count: f64) {
    let deadline = Instant::now() + PATIENCE;
    while relay.metric("rowcast_snapshots_total", "taken").await < count {
        assert!(Instant::now() < deadline, "no snapshot within {PATIENCE:?}");
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rows_that_are_there_come_first_then_what_happens() {
    let scene = Scene::start().await;
    for (user, kind) in [(ALICE, "one"), (BOB, "his"), (ALICE, "two"), (ALICE, "three")] {
        scene.exec(&notify(user, kind)).await;
    }
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    let id = joined(&mut alice, &shown("notifications", json!({}))).await;
    scene.mark("joined").await;
    let got = got_before(&mut alice, "joined").await;
    assert_eq!(got.column("kind"), ["one", "two", "three"]);
    let complete = got.complete();
    assert_eq!(complete["snapshot"], json!({ "id": id, "rows": 3, "more": false }));
    assert!(complete["cursor"].is_string(), "{complete}");
    assert!(got.changes.is_empty());
    scene.exec(&notify(ALICE, "four")).await;
    scene.exec("update notifications set kind = 'new ' || kind where kind = 'one'").await;
    scene.exec("delete from notifications where kind = 'two'").await;
    for expected in ["INSERT four", "UPDATE new one", "DELETE two"] {
        let change = alice.next_change().await;
        let record = if change.kind() == "DELETE" { &change.data["old_record"] } else { &change.data["record"] };
        assert_eq!(format!("{} {}", change.kind(), plain(&record["kind"])), expected);
        assert!(change.data["cursor"].is_string() && change.data.get("snapshot").is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cursor_behind_a_snapshot_is_a_place_to_go_on_from() {
    let scene = Scene::start().await;
    scene.exec(&notify(ALICE, "there")).await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    joined(&mut alice, &shown("notifications", json!({}))).await;
    scene.mark("joined").await;
    let cursor = got_before(&mut alice, "joined").await.complete()["cursor"].clone();
    drop(alice);
    scene.exec(&notify(ALICE, "missed")).await;
    // Both keys: the cursor is good, so the snapshot is not needed.
    let entries = shown("notifications", json!({ "since": cursor }));
    let mut again = scene.relay.phone(&token::user(ALICE)).await;
    joined(&mut again, &entries).await;
    let change = again.next_change().await;
    assert_eq!((change.record()["kind"].as_str(), change.data.get("snapshot")), (Some("missed"), None));
}

/// Writes rows of Alice's until told to stop: each transaction inserts, updates and deletes, in parts that are rolled back or
/// not.
async fn write(pg: &TestPg, writer: u32, stop: Arc<AtomicBool>) {
    let client = pg.client().await;
    let (mut next, mut alive): (u32, Vec<u32>) = (writer * 100_000, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let mut sql = String::from("begin;");
        next += 1;
        sql += &format!("insert into things values ({next}, '{ALICE}', 1);");
        sql += &format!("savepoint a; update things set version = version + 1 where id = {next}; rollback to a;");
        if let Some(id) = alive.get(next as usize * 7 % alive.len().max(1)) {
            sql += &format!("savepoint b; update things set version = version + 1 where id = {id}; release b;");
        }
        if alive.len() > 20 {
            let gone = alive.remove(next as usize * 5 % 20);
            sql += &format!("delete from things where id = {gone};");
        }
        sql += "commit";
        client.batch_execute(&sql).await.expect("written");
        alive.push(next);
        if alive.len() % 3 == 0 {
            pause().await;
        }
    }
}

/// Puts what a client got together, and checks that of each row it has every version from the first on, once.
fn together(got: &Got) -> BTreeMap<i64, i64> {
    let of = |record: &Value| (record["id"].as_i64().expect("an id"), record["version"].as_i64());
    let mut rows: BTreeMap<i64, i64> = BTreeMap::new();
    for row in &got.rows {
        let (id, version) = of(row);
        assert!(rows.insert(id, version.expect("a version")).is_none(), "{id} twice in the snapshot");
    }
    for data in &got.changes {
        match data["type"].as_str() {
            Some("INSERT") => {
                let (id, version) = of(&data["record"]);
                assert_eq!((rows.insert(id, 1), version), (None, Some(1)), "{data}");
            }
            Some("UPDATE") => {
                let (id, version) = of(&data["record"]);
                let known = rows.get_mut(&id).unwrap_or_else(|| panic!("an UPDATE of what is not there: {data}"));
                assert_eq!(version, Some(*known + 1), "{data}");
                *known += 1;
            }
            _ => {
                let (id, _) = of(&data["old_record"]);
                assert!(rows.remove(&id).is_some(), "a DELETE of what is not there: {data}");
            }
        }
    }
    rows
}

async fn what_is_there(pg: &TestPg) -> BTreeMap<i64, i64> {
    let rows = pg.client().await.query("select id::int8, version::int8 from things", &[]).await.expect("rows");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_concurrent_writers_snapshot_and_tail_together_are_what_there_is() {
    let scene = Scene::with(VERSIONED).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = (1..=4).map(|writer| write(&scene.pg, writer, stop.clone()));
    let reading = async {
        let mut phones = Vec::new();
        for _ in 0..12 {
            let mut phone = scene.relay.phone(&token::user(ALICE)).await;
            joined(&mut phone, &shown("things", json!({}))).await;
            phones.push(phone);
        }
        stop.store(true, Ordering::Relaxed);
        phones
    };
    let (_, mut phones) = futures_util::future::join(futures_util::future::join_all(writing), reading).await;
    scene.mark("end").await;
    let there = what_is_there(&scene.pg).await;
    for phone in &mut phones {
        let got = got_before(phone, "end").await;
        assert_eq!(together(&got), there);
    }
}

/// Lets the relay see a row of each table, so that what follows doesn't wait for the rules of a table that is new to it.
async fn warm_up(scene: &Scene) {
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.join("warm", &super::watching(&["things"])).await;
    scene.exec(&format!("insert into things values (0, '{ALICE}', 1)")).await;
    scene.mark("warm").await;
    while !phone.next_change().await.is_mark("warm") {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_its_standby_is_in_the_tail_and_what_overtook_it_in_the_snapshot() {
    let scene = Scene::with(VERSIONED).await;
    warm_up(&scene).await;
    scene.exec(&format!("insert into things select n, '{ALICE}', 1 from generate_series(1, 4) n")).await;
    hold_commits(&scene.pg).await;
    let hidden = format!(
        "insert into things values (5, '{ALICE}', 1); savepoint s; update things set version = 2 where id = 1; release s; \
         delete from things where id = 2;"
    );
    let held = Held::commit(&scene.pg, &hidden).await;
    scene.exec("update things set version = 2 where id = 3").await;
    scene.exec(&format!("insert into things values (6, '{ALICE}', 1)")).await;
    let mut early = scene.relay.phone(&token::user(ALICE)).await;
    joined(&mut early, &shown("things", json!({}))).await;
    taken(&scene.relay, 1.0).await;
    scene.exec("update things set version = 3 where id = 3").await;
    scene.mark("end").await;
    let got = got_before(&mut early, "end").await;
    let ids: Vec<String> = ["0", "1", "2", "3", "4", "6"].map(String::from).into();
    assert_eq!(got.column("id"), ids);
    assert_eq!(got.column("version"), ["1", "1", "1", "2", "1", "1"]);
    assert_eq!(got.changed("id"), ["INSERT 5", "UPDATE 1", "DELETE 2", "UPDATE 3"]);
    // In the seam there is no place to go on from; behind it there is.
    let cursors: Vec<bool> = got.changes.iter().map(|data| data.get("cursor").is_some()).collect();
    assert_eq!(cursors, [false, false, false, true]);
    held.release(&scene.pg).await;
    assert_eq!(together(&got), what_is_there(&scene.pg).await);
    let mut late = scene.relay.phone(&token::user(ALICE)).await;
    joined(&mut late, &shown("things", json!({}))).await;
    scene.mark("late").await;
    let got = got_before(&mut late, "late").await;
    assert_eq!((got.column("id").len(), got.changes.len()), (6, 0));
}

/// What it knew of hidden commits before is gone; the log has them, and nobody sends them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_hidden_before_the_relay_began_is_in_the_tail_too() {
    let pg = database(VERSIONED).await;
    let mut relay = RelayProcess::start(&pg).await;
    let mut phone = Phone::connect(&relay.base(), &token::user(ALICE), Version::V2).await;
    phone.join("room", &super::watching(&["things"])).await;
    pg.exec(&format!("insert into things values (0, '{ALICE}', 1)")).await;
    hold_commits(&pg).await;
    let held = Held::commit(&pg, &format!("insert into things values (1, '{ALICE}', 1);")).await;
    pg.exec(&format!("insert into things values (2, '{ALICE}', 1)")).await;
    mark(&pg, "in the log").await;
    while !phone.next_change().await.is_mark("in the log") {}
    relay.stop().await;
    relay.start_again().await;
    let mut phone = Phone::connect(&relay.base(), &token::user(ALICE), Version::V2).await;
    joined(&mut phone, &shown("things", json!({}))).await;
    mark(&pg, "end").await;
    // The new relay has not seen the tables yet, and what is hidden can't be judged before it shows.
    held.release(&pg).await;
    let got = got_before(&mut phone, "end").await;
    let mut all = got.column("id");
    all.extend(got.changed("id").iter().map(|text| text.replace("INSERT ", "")));
    all.sort();
    assert_eq!(all, ["0", "1", "2"], "{got:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_user_brings_his_snapshot_and_nothing_more_of_the_first_ones() {
    let pg = database(VERSIONED).await;
    let rows = |first: u32, last: u32, user: &str| {
        format!("insert into things select n, '{user}', 1, repeat('x', 30000) from generate_series({first}, {last}) n;")
    };
    pg.exec(&rows(1, 900, ALICE)).await;
    pg.exec(&rows(2001, 2003, BOB)).await;
    let relay = Relay::with(&pg, Clock::system(), |config| {
        config.gateway.max_outbox_bytes = 256 * 1024;
        (config.hub.snapshot.max_bytes, config.hub.snapshot.max_held) = (64 << 20, 128 << 20);
        // So much takes a busy machine longer than one is let wait for a snapshot otherwise.
        (config.hub.snapshot.statement_timeout, config.hub.snapshot.deadline) = (PATIENCE, PATIENCE);
    })
    .await;
    let mut phone = relay.phone(&token::user(ALICE)).await;
    joined(&mut phone, &shown("things", json!({}))).await;
    taken(&relay, 1.0).await;
    phone.push_token("room", &token::user(BOB)).await;
    taken(&relay, 2.0).await;
    mark(&pg, "end").await;
    let got = got_before(&mut phone, "end").await;
    let ids = got.column("id");
    let first = ids.iter().position(|id| id == "2001").expect("Bob's rows come");
    assert_eq!(ids[first..], ["2001", "2002", "2003"]);
    assert!(first < 900, "all of Alice's rows were sent");
    assert_eq!(got.complete()["snapshot"]["rows"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_is_in_the_tail_once_it_is_committed() {
    let options = TestPgOptions { settings: vec![("max_prepared_transactions", "10")], ..TestPgOptions::default() };
    let pg = TestPg::with(options).await;
    pg.exec(super::MARKS).await;
    pg.exec(VERSIONED).await;
    let scene = Scene { relay: Relay::start(&pg).await, pg };
    let prepare = |id: u32| {
        format!(
            "begin; insert into things values ({id}, '{ALICE}', 1); savepoint a; insert into things values ({}, '{ALICE}', 1); \
             release a; prepare transaction 'p{id}'",
            id + 1
        )
    };
    scene.exec(&prepare(1)).await;
    scene.exec(&prepare(11)).await;
    scene.exec("commit prepared 'p11'").await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    joined(&mut alice, &shown("things", json!({}))).await;
    taken(&scene.relay, 1.0).await;
    scene.exec(&prepare(21)).await;
    scene.exec("commit prepared 'p1'").await;
    scene.exec("rollback prepared 'p21'").await;
    scene.mark("end").await;
    let got = got_before(&mut alice, "end").await;
    assert_eq!(got.column("id"), ["11", "12"]);
    assert_eq!(got.changed("id"), ["INSERT 1", "INSERT 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_columns_are_those_of_a_select_in_the_role() {
    let scene = Scene::with(
        "create table public.papers (id int primary key, user_id uuid, title text, secret text, length int generated always as (id * 2) stored);
         alter table public.papers enable row level security;
         create policy own on public.papers for select using (user_id = auth.uid() or title = 'public');
         create policy sober on public.papers as restrictive for select using (title <> 'withdrawn');
         grant select (id, user_id, title) on public.papers to authenticated;
         alter publication supabase_realtime add table public.papers;",
    )
    .await;
    scene
        .exec(&format!(
            "insert into papers values (1, '{ALICE}', 'hers', 's'), (2, '{BOB}', 'his', 's'), (3, '{BOB}', 'public', 's'), \
             (4, '{ALICE}', 'withdrawn', 's'), (5, null, 'nobody''s', 's')"
        ))
        .await;
    for (user, ids) in [(ALICE, ["1", "3"]), (BOB, ["2", "3"])] {
        let mut phone = scene.relay.phone(&token::user(user)).await;
        joined(&mut phone, &shown("papers", json!({}))).await;
        scene.mark(user).await;
        let got = got_before(&mut phone, user).await;
        assert_eq!(got.column("id"), ids);
        for row in &got.rows {
            let columns: Vec<&String> = row.as_object().expect("an object").keys().collect();
            assert_eq!(columns, ["id", "title", "user_id"]);
        }
    }
    let mut narrow = scene.relay.phone(&token::user(ALICE)).await;
    let entries = shown("papers", json!({ "select": ["title"], "filter": "title=neq.public" }));
    joined(&mut narrow, &entries).await;
    scene.exec(&format!("insert into papers values (6, '{ALICE}', 'public', 's'), (7, '{ALICE}', 'late', 's')")).await;
    scene.mark("narrow").await;
    let got = got_before(&mut narrow, "narrow").await;
    let all: Vec<Value> =
        got.rows.iter().cloned().chain(got.changes.iter().map(|data| data["record"].clone())).collect();
    assert_eq!(all, [json!({ "id": 1, "title": "hers" }), json!({ "id": 7, "title": "late" })]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_takes_the_newest_by_the_order_and_gives_them_oldest_first() {
    let scene = Scene::with(VERSIONED).await;
    scene.exec(&format!("insert into things select n, '{ALICE}', 10 - n from generate_series(1, 9) n")).await;
    for (snapshot, ids) in [
        (json!({ "limit": 3 }), ["7", "8", "9"]),
        (json!({ "limit": 3, "order": "id" }), ["1", "2", "3"]),
        (json!({ "limit": 3, "order": "version.desc" }), ["3", "2", "1"]),
        (json!({ "limit": 3, "order": ["version.asc", "id"] }), ["9", "8", "7"]),
    ] {
        let mut phone = scene.relay.phone(&token::user(ALICE)).await;
        let id = joined(&mut phone, &shown("things", json!({ "snapshot": snapshot }))).await;
        scene.mark("limit").await;
        let got = got_before(&mut phone, "limit").await;
        assert_eq!(got.column("id"), ids, "{snapshot}");
        assert_eq!(got.complete()["snapshot"], json!({ "id": id, "rows": 3, "more": true }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_taken_is_refused_with_the_reason_and_nothing_is_sent() {
    let scene = Scene::with(
        "create table public.closed (id int primary key); insert into public.closed values (1);
         alter publication supabase_realtime add table public.closed;
         create table public.raises (id int primary key); insert into public.raises select generate_series(1, 9);
         alter table public.raises enable row level security; grant select on public.raises to authenticated;
         create policy p on public.raises using (1 / (id - 5) <> 0 or pg_backend_pid() = 0);
         alter publication supabase_realtime add table public.raises;",
    )
    .await;
    let any = |more: Value| {
        let mut entry = json!({ "schema": "public", "event": "*", "snapshot": { "limit": 5 } });
        entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!([entry])
    };
    for (entries, says) in [
        (any(json!({ "table": "notifications", "snapshot": { "limit": 1001 } })), "the limit must be 1 to 1000"),
        (any(json!({ "table": "notifications", "snapshot": { "limit": 0 } })), "Error parsing `snapshot`"),
        (
            any(json!({ "table": "notifications", "snapshot": { "limit": 1, "order": "secret" } })),
            "invalid column for order secret",
        ),
        (any(json!({ "table": "notifications", "event": "DELETE" })), "ask for event * or INSERT"),
        (any(json!({ "table": "*" })), "name its schema and its table"),
        (any(json!({ "table": "closed" })), "the role may not read the table"),
        (any(json!({ "table": "raises" })), "the database refused it (SQLSTATE 22012)"),
    ] {
        let mut phone = scene.relay.phone(&token::user(ALICE)).await;
        phone.join("room", &entries).await;
        let system = phone.system("room").await;
        assert_eq!(system["status"], "error", "{entries}");
        assert!(system["message"].as_str().is_some_and(|text| text.contains(says)), "{system}");
        phone.heartbeat().await;
        assert!(phone.changes_so_far().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_takes_too_long_is_told_and_not_waited_for() {
    let pg = database(
        "create table public.slow (id int primary key); insert into public.slow values (1), (2);
         alter table public.slow enable row level security; grant select on public.slow to authenticated;
         create policy p on public.slow using (id < 2 or pg_sleep(30) is not null);
         alter publication supabase_realtime add table public.slow;",
    )
    .await;
    let relay = Relay::with(&pg, Clock::system(), |config| {
        config.hub.snapshot.statement_timeout = Duration::from_millis(300);
    })
    .await;
    let mut phone = relay.phone(&token::user(ALICE)).await;
    phone.join("room", &shown("slow", json!({}))).await;
    let system = phone.system("room").await;
    assert_eq!(system["status"], "error");
    assert!(system["message"].as_str().is_some_and(|text| text.contains("longer than 300ms")), "{system}");
    assert_eq!(relay.metric("rowcast_snapshots_total", "timeout").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_phones_at_once_are_a_few_questions_at_a_time() {
    const PHONES: usize = 40;
    let pg = database(
        "create table public.slow (id int primary key); insert into public.slow values (1);
         alter table public.slow enable row level security; grant select on public.slow to authenticated;
         create policy p on public.slow using (pg_sleep(0.02) is not null);
         alter publication supabase_realtime add table public.slow;",
    )
    .await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.hub.snapshot.connections = 2).await;
    let users = (0..PHONES).map(|n| token::user(&format!("00000000-0000-4000-8000-{n:012}")));
    let done = Arc::new(AtomicBool::new(false));
    let phones = futures_util::future::join_all(users.map(|user| {
        let relay = &relay;
        async move {
            let mut phone = relay.phone(&user).await;
            joined(&mut phone, &shown("slow", json!({}))).await;
            phone.wait_for_system("room", "Snapshot complete").await;
        }
    }));
    let watching = async {
        let (client, mut most) = (pg.client().await, 0);
        let sql = "select count(*) from pg_stat_activity where state = 'active' and query like 'select row(%'";
        while !done.load(Ordering::Relaxed) {
            most = most.max(client.query_one(sql, &[]).await.expect("a row").get::<_, i64>(0));
            pause().await;
        }
        most
    };
    let finished = async {
        phones.await;
        done.store(true, Ordering::Relaxed);
    };
    let ((), most) = futures_util::future::join(finished, watching).await;
    assert!((1..=2).contains(&most), "{most} at once");
    assert_eq!(relay.metric("rowcast_snapshots_total", "taken").await, PHONES as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_larger_than_the_outbox_comes_at_the_phones_pace() {
    let pg = database(VERSIONED).await;
    pg.exec(&format!("insert into things select n, '{ALICE}', 1, repeat('x', 4000) from generate_series(1, 900) n"))
        .await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.gateway.max_outbox_bytes = 256 * 1024).await;
    let mut phone = relay.phone(&token::user(ALICE)).await;
    joined(&mut phone, &shown("things", json!({}))).await;
    // The rows are on their way, and nobody reads.
    let deadline = Instant::now() + PATIENCE;
    while relay.metric("rowcast_deliveries_total", "").await < 20.0 {
        assert!(Instant::now() < deadline);
        pause().await;
    }
    pg.exec(&format!("insert into things values (1000, '{ALICE}', 1)")).await;
    mark(&pg, "end").await;
    let got = got_before(&mut phone, "end").await;
    assert_eq!((got.rows.len(), got.changed("id")), (900, vec!["INSERT 1000".to_owned()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_token_does_not_bring_the_snapshot_again() {
    let scene = Scene::start().await;
    scene.exec(&notify(ALICE, "there")).await;
    let mut alice = scene.relay.phone(&token::short(ALICE, 1800)).await;
    joined(&mut alice, &shown("notifications", json!({}))).await;
    scene.mark("joined").await;
    assert_eq!(got_before(&mut alice, "joined").await.rows.len(), 1);
    alice.push_token("room", &token::user(ALICE)).await;
    alice.heartbeat().await;
    scene.exec(&notify(ALICE, "later")).await;
    assert_eq!(alice.next_change().await.record()["kind"], "later");
    assert_eq!(scene.relay.metric("rowcast_snapshots_total", "taken").await, 1.0);
}
