//! Clients that keep their cursor and come back with it: everything since, once and in order, and then what follows; or the
//! word that some of it can't be given.

use std::time::Duration;

use rowcast::clock::Clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Scene, database, mark, notify, watching};
use crate::support::pg::TestPgOptions;
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::sdk::{SdkPhone, Stock};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Phone, Relay, RelayProcess, TestPg, Version, summary};

/// Everything of these tables and the marks, after this place.
fn since(tables: &[&str], place: &Value) -> Value {
    let mut entries = watching(tables);
    entries.as_array_mut().expect("a list").iter_mut().for_each(|entry| entry["since"] = place.clone());
    entries
}

fn cursor(change: &Change) -> Value {
    change.data["cursor"].clone()
}

fn kinds(changes: &[Change]) -> Vec<&str> {
    changes.iter().map(|change| change.record()["kind"].as_str().unwrap_or_default()).collect()
}

async fn phone(base: &str, token: &str) -> Phone {
    Phone::connect(base, token, Version::V2).await
}

/// Alice, after this place; the payload of her join reply.
async fn back(base: &str, place: &Value) -> (Phone, Value) {
    let mut phone = phone(base, &token::user(ALICE)).await;
    let reply = phone.join("room", &since(&["notifications"], place)).await;
    assert_eq!(reply["status"], "ok");
    (phone, reply["response"].clone())
}

/// The notice of a gap, wherever it comes.
async fn gap(phone: &mut Phone) -> Value {
    loop {
        let system = phone.system("room").await;
        if system["message"].as_str().expect("a text").starts_with("Gap: ") {
            assert_eq!(system["status"], "error");
            return system["gap"].clone();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_missed_comes_once_and_in_order_and_then_what_follows_across_restarts_and_kills() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let (mut phone, reply) = back(&relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    let mut place = reply["cursor"].clone();
    let (mut sent, mut received) = (0, Vec::new());
    for round in 0..4 {
        for _ in 0..3 {
            pg.exec(&format!("{} {}", notify(ALICE, &sent.to_string()), notify(BOB, "his"))).await;
            sent += 1;
        }
        // What else comes before the end is not taken in.
        for _ in 0..round % 3 {
            let change = phone.next_change().await;
            place = cursor(&change);
            received.push(change);
        }
        match round % 2 {
            0 => relay.kill().await,
            _ => assert!(relay.stop().await.success(), "{}", relay.log()),
        }
        pg.exec(&notify(ALICE, &sent.to_string())).await;
        sent += 1;
        relay.start_again().await;
        pg.exec(&notify(ALICE, &sent.to_string())).await;
        sent += 1;
        (phone, _) = back(&relay.base(), &place).await;
        // Not waited for: replay and live rows meet.
        pg.exec(&notify(ALICE, &sent.to_string())).await;
        sent += 1;
    }
    mark(&pg, "end").await;
    received.extend(phone.changes_before("end").await);
    let expected: Vec<String> = (0..sent).map(|number| number.to_string()).collect();
    assert_eq!(kinds(&received), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_within_a_transaction_goes_on_within_it() {
    let scene = Scene::start().await;
    let (mut phone, _) = back(&scene.relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    scene.exec(&format!("begin; {} {} {} commit", notify(ALICE, "1"), notify(ALICE, "2"), notify(ALICE, "3"))).await;
    scene.mark("sent").await;
    let changes = phone.changes_before("sent").await;
    assert_eq!(kinds(&changes), ["1", "2", "3"]);
    for (at, rest) in [(0, &["2", "3"][..]), (1, &["3"]), (2, &[])] {
        let (mut phone, reply) = back(&scene.relay.base(), &cursor(&changes[at])).await;
        assert_eq!(reply["cursor"], cursor(&changes[at]), "where it begins");
        let system = phone.system("room").await;
        assert_eq!((&system["message"], &system["cursor"]), (&json!("Subscribed to PostgreSQL"), &reply["cursor"]));
        assert_eq!(kinds(&phone.changes_before("sent").await), rest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cursor_of_a_join_reply_serves_who_received_no_row() {
    let scene = Scene::start().await;
    let (mut first, reply) = back(&scene.relay.base(), &Value::Null).await;
    // Gone before anything was subscribed, or after.
    for wait in [false, true] {
        if wait {
            first.subscribed("room").await;
        }
        scene.exec(&notify(ALICE, if wait { "2" } else { "1" })).await;
    }
    drop(first);
    let (mut phone, _) = back(&scene.relay.base(), &reply["cursor"]).await;
    scene.mark("end").await;
    assert_eq!(kinds(&phone.changes_before("end").await), ["1", "2"]);
}

/// The answer and the rows went different ways: a client that keeps the last place which it is told went back with that notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn that_it_is_subscribed_is_told_before_the_first_row_however_soon_that_comes() {
    let scene = Scene::start().await;
    let (mut phone, reply) = back(&scene.relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    for number in 0..20 {
        scene.exec(&notify(ALICE, &number.to_string())).await;
    }
    scene.mark("sent").await;
    phone.changes_before("sent").await;
    for _ in 0..60 {
        let (mut phone, _) = back(&scene.relay.base(), &reply["cursor"]).await;
        let first = phone.next_frame().await;
        assert_eq!(first.payload["message"], "Subscribed to PostgreSQL", "{}", first.text);
        assert_eq!(first.payload["cursor"], reply["cursor"]);
        assert_eq!(phone.changes_before("sent").await.len(), 20);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_time_is_a_place_too_in_each_of_its_forms() {
    let scene = Scene::start().await;
    scene.exec(&notify(ALICE, "before")).await;
    // A millisecond is the finest that an application has.
    let sql = "select to_json(floor(extract(epoch from now()) * 1000)::int8)::text, \
               to_char(now() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') from pg_sleep(0.01)";
    let row =
        scene.pg.client().await.query_one(&format!("begin; {sql}").replace("begin; ", ""), &[]).await.expect("times");
    let (millis, text): (String, String) = (row.get(0), row.get(1));
    scene.exec(&notify(ALICE, "after")).await;
    scene.mark("sent").await;
    let millis: i64 = millis.parse().expect("a number");
    for place in [json!(millis + 5), json!(text)] {
        let (mut phone, reply) = back(&scene.relay.base(), &place).await;
        assert!(reply.get("cursor").is_none(), "not known yet: {reply}");
        let system = phone.system("room").await;
        assert!(system["cursor"].is_string(), "{system}");
        let changes = phone.changes_before("sent").await;
        assert_eq!(kinds(&changes), ["after"], "{place}");
        // The place that was told is one to come back with.
        let (mut phone, _) = back(&scene.relay.base(), &system["cursor"]).await;
        assert_eq!(kinds(&phone.changes_before("sent").await), ["after"], "{place}");
    }
    // Before all that there is: nobody can say what was then.
    let (mut phone, _) = back(&scene.relay.base(), &json!("2020-01-01T00:00:00Z")).await;
    assert_eq!(gap(&mut phone).await["reason"], "expired");
    assert_eq!(kinds(&phone.changes_before("sent").await), ["before", "after"]);
    // It has not come yet.
    let (mut phone, _) = back(&scene.relay.base(), &json!("2100-01-01T00:00:00Z")).await;
    phone.subscribed("room").await;
    scene.mark("end").await;
    phone.expect_nothing_before("end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_entry_goes_on_where_it_says() {
    let scene = Scene::start().await;
    let (mut phone, _) = back(&scene.relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    for kind in ["1", "2", "3"] {
        scene.exec(&notify(ALICE, kind)).await;
        scene.mark(kind).await;
    }
    scene.mark("sent").await;
    let changes = phone.changes_before("sent").await;
    let places: Vec<Value> = changes.iter().filter(|change| change.table() == "notifications").map(cursor).collect();
    let entry =
        |table: &str, since: &Value| json!({ "event": "*", "schema": "public", "table": table, "since": since });
    let entries = json!([
        entry("notifications", &places[1]),
        entry("notifications", &Value::Null),
        entry("marks", &places[2]),
        entry("session_events", &places[0]),
    ]);
    let mut again = scene.relay.phone(&token::user(ALICE)).await;
    let reply = again.join("room", &entries).await;
    assert_eq!(reply["response"]["cursor"], places[0], "the lowest");
    let ids: Vec<i64> = reply["response"]["postgres_changes"]
        .as_array()
        .expect("entries")
        .iter()
        .filter_map(|e| e["id"].as_i64())
        .collect();
    scene.exec(&notify(ALICE, "4")).await;
    scene.mark("end").await;
    let received = again.changes_before("end").await;
    let told: Vec<(String, Vec<i64>)> = received
        .iter()
        .map(|change| {
            let row = change.record();
            let (name, mut ids) = (row["kind"].as_str().or(row["note"].as_str()).expect("a name"), change.ids.clone());
            ids.sort_unstable();
            (format!("{} {name}", change.table()), ids)
        })
        .collect();
    let mut both = vec![ids[0], ids[1]];
    both.sort_unstable();
    let expected = [
        ("notifications 3", vec![ids[0]]),
        ("marks 3", vec![ids[2]]),
        ("marks sent", vec![ids[2]]),
        ("notifications 4", both),
    ];
    assert_eq!(told, expected.map(|(name, ids)| (name.to_owned(), ids)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_none_is_refused_in_words_and_the_channel_lives() {
    let scene = Scene::start().await;
    let (_, reply) = back(&scene.relay.base(), &Value::Null).await;
    let good = reply["cursor"].as_str().expect("a cursor").to_owned();
    let changed = format!("{}{}", &good[..20], good[20..].chars().rev().collect::<String>());
    for place in [json!("nonsense"), json!(changed), json!(&good[1..]), json!(true), json!({ "at": 1 })] {
        let (mut phone, reply) = back(&scene.relay.base(), &place).await;
        assert!(reply.get("cursor").is_none());
        let system = phone.system("room").await;
        let message = system["message"].as_str().expect("a text");
        assert_eq!(system["status"], "error");
        assert!(message.starts_with("Error parsing `since`: "), "{message}");
        phone.heartbeat().await;
        phone.leave("room").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_key_is_one_gap_and_then_everything_goes_on() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let (_, reply) = back(&relay.base(), &Value::Null).await;
    assert!(relay.stop().await.success(), "{}", relay.log());
    std::fs::remove_file(relay.data_dir().join("cursor.key")).expect("it was beside the log");
    relay.start_again().await;
    let (mut phone, again) = back(&relay.base(), &reply["cursor"]).await;
    assert!(again.get("cursor").is_none(), "not known yet: {again}");
    let told = gap(&mut phone).await;
    assert_eq!((&told["from"], &told["reason"]), (&Value::Null, &json!("unknown")));
    pg.exec(&notify(ALICE, "1")).await;
    mark(&pg, "one").await;
    assert_eq!(kinds(&phone.changes_before("one").await), ["1"]);
    phone.heartbeat().await;
    // Whether it was subscribed may have been said before the gap, or after it.
    let left = phone.frames_of("room");
    assert!(left.iter().all(|frame| frame.payload["status"] == "ok"), "once: {left:?}");
    let (mut phone, _) = back(&relay.base(), &told["to"]).await;
    mark(&pg, "two").await;
    assert_eq!(kinds(&phone.changes_before("one").await), ["1"]);
    phone.expect_nothing_before("two").await;
    phone.subscribed("room").await;
    phone.heartbeat().await;
    assert_eq!(phone.frames_of("room").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_below_the_floor_is_a_gap_with_its_two_ends_and_what_is_kept_follows() {
    let pg = database("").await;
    let relay = Relay::with(&pg, Clock::system(), |config| {
        (config.log.segment_bytes, config.log.retain_bytes) = (16 << 10, 64 << 10);
        config.ingest.retain_interval = Duration::from_millis(20);
    })
    .await;
    let (mut phone, reply) = back(&relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    let long = "x".repeat(2000);
    for round in 0..20 {
        for _ in 0..10 {
            pg.exec(&format!(
                "insert into notifications (user_id, kind, body) values ('{ALICE}', '{round}', '{long}')"
            ))
            .await;
        }
    }
    mark(&pg, "kept").await;
    // It may not have got them all either: so little is kept.
    phone.changes_before("kept").await;
    let deadline = Instant::now() + PATIENCE;
    while relay.log().bytes() > 64 << 10 {
        assert!(Instant::now() < deadline, "nothing is removed");
        pause().await;
    }
    let (mut phone, again) = back(&relay.base(), &reply["cursor"]).await;
    assert_eq!(again["cursor"], reply["cursor"], "who goes away before the word of the gap is told of it again");
    let told = gap(&mut phone).await;
    assert_eq!((&told["from"], &told["reason"]), (&reply["cursor"], &json!("expired")));
    let kept = phone.changes_before("kept").await;
    assert!(!kept.is_empty() && kept.len() < 200, "{}", kept.len());
    assert_eq!(kept.last().map(|change| change.record()["kind"].clone()), Some(json!("19")));
    // From the far end of the gap on, everything.
    let (mut phone, _) = back(&relay.base(), &told["to"]).await;
    assert_eq!(phone.changes_before("kept").await.len(), kept.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_in_another_history_is_a_gap() {
    let pg = database("").await;
    let mut relay = RelayProcess::start(&pg).await;
    let (_, reply) = back(&relay.base(), &Value::Null).await;
    assert!(relay.stop().await.success(), "{}", relay.log());
    drop_slot(&pg).await;
    relay.start_again().await;
    let (mut phone, _) = back(&relay.base(), &reply["cursor"]).await;
    let told = gap(&mut phone).await;
    assert_eq!((&told["from"], &told["reason"]), (&reply["cursor"], &json!("diverged")));
    pg.exec(&notify(ALICE, "1")).await;
    mark(&pg, "end").await;
    assert_eq!(kinds(&phone.changes_before("end").await), ["1"]);
    let (mut phone, _) = back(&relay.base(), &told["to"]).await;
    assert_eq!(kinds(&phone.changes_before("end").await), ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_that_outlives_the_relay_comes_once_when_it_is_committed() {
    let settings = vec![("max_prepared_transactions", "5")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    super::furnish(&pg, "").await;
    let mut relay = RelayProcess::start(&pg).await;
    let (mut phone, reply) = back(&relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    let mut place = reply["cursor"].clone();
    for (kind, name) in [("late", "kept"), ("never", "dropped"), ("later", "through two")] {
        pg.exec(&format!("begin; {} prepare transaction '{name}'", notify(ALICE, kind))).await;
    }
    for (kind, statements) in [
        ("1", &["rollback prepared 'dropped'", "commit prepared 'kept'"][..]),
        ("2", &["commit prepared 'through two'"]),
    ] {
        pg.exec(&notify(ALICE, kind)).await;
        let change = phone.next_change().await;
        assert_eq!(change.record()["kind"], kind);
        if cursor(&change).is_string() {
            place = cursor(&change);
        }
        // Whatever was confirmed, the slot still has what was prepared before.
        relay.kill().await;
        if kind == "1" {
            relay.start_again().await;
        }
        for statement in statements {
            pg.exec(statement).await;
        }
        if kind == "2" {
            relay.start_again().await;
        }
        mark(&pg, kind).await;
        (phone, _) = back(&relay.base(), &place).await;
        let changes = phone.changes_before(kind).await;
        assert_eq!(kinds(&changes), [if kind == "1" { "late" } else { "later" }]);
        place = cursor(&changes[0]);
    }
    mark(&pg, "end").await;
    phone.expect_nothing_before("end").await;
}

async fn drop_slot(pg: &TestPg) {
    // The server notices a moment later that its client is gone.
    let free = "do $$ begin for i in 1..500 loop exit when not (select active from pg_replication_slots where slot_name = 'rowcast'); \
                perform pg_sleep(0.02); end loop; end $$; select pg_drop_replication_slot('rowcast')";
    pg.exec(free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_record_carries_its_cursor_under_the_name_that_was_asked_for() {
    let scene = Scene::start().await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "notifications", "cursor_as": "_cursor" },
        { "event": "*", "schema": "public", "table": "marks" },
    ]);
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &entries).await;
    let mut js = scene.relay.sdk(Stock::JavaScript, &token::user(ALICE)).await;
    js.subscribe("room", &entries).await;
    scene.exec(&notify(ALICE, "1")).await;
    scene.exec("update notifications set kind = '2'").await;
    scene.exec("delete from notifications").await;
    scene.mark("end").await;
    let changes = phone.changes_before("end").await;
    assert_eq!(summary(&changes[..2], "kind"), ["INSERT 1", "UPDATE 2"]);
    for change in &changes {
        let row = if change.kind() == "DELETE" { change.old_record() } else { change.record() };
        assert_eq!(row["_cursor"], cursor(change));
        assert!(change.kind() != "UPDATE" || change.old_record().get("_cursor").is_none());
        let columns = change.data["columns"].as_array().expect("columns");
        assert!(columns.iter().all(|column| column["name"] != "_cursor"));
    }
    let seen = js.changes_before("end").await;
    let shown = |change: &Change| match change.kind() {
        "DELETE" => change.old_record()["_cursor"].clone(),
        _ => change.record()["_cursor"].clone(),
    };
    assert_eq!(seen.iter().map(shown).collect::<Vec<_>>(), changes.iter().map(cursor).collect::<Vec<_>>());
    js.exit().await;

    let hiding = json!([{ "event": "*", "schema": "public", "table": "notifications", "cursor_as": "kind" }]);
    phone.join("other", &hiding).await;
    let message = phone.system("other").await["message"].clone();
    let text =
        "Error parsing `cursor_as`: public.notifications has a column \"kind\"; choose a name that no column has";
    assert_eq!(message, text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_cursors_and_gets_nothing_is_given_fresh_ones() {
    let pg = database("").await;
    let relay = Relay::with(&pg, Clock::system(), |config| {
        config.gateway.tick = Duration::from_millis(20);
        // A tenth of it: at every tick.
        config.log.retain_bytes = 100;
    })
    .await;
    let (mut phone, _) = back(&relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    pg.exec(&notify(BOB, "his")).await;
    let mut fresh = phone.system("room").await;
    assert_eq!((&fresh["status"], &fresh["message"]), (&json!("ok"), &json!("Cursor")));
    mark(&pg, "seen").await;
    phone.expect_nothing_before("seen").await;
    // Whatever was told is a place behind which nothing is missing.
    pg.exec(&notify(ALICE, "hers")).await;
    mark(&pg, "end").await;
    let (mut again, _) = back(&relay.base(), &fresh["cursor"].take()).await;
    assert_eq!(kinds(&again.changes_before("seen").await), [] as [&str; 0]);
    assert_eq!(kinds(&again.changes_before("end").await), ["hers"]);
}

const TEAMS: &str = "
    create table public.members (user_id uuid primary key);
    create table public.posts (id int generated always as identity primary key, kind text not null);
    alter table public.posts enable row level security;
    create policy team on public.posts for select to authenticated
        using (exists (select 1 from public.members m where m.user_id = auth.uid()));
    grant select on public.posts, public.members to authenticated;
    alter publication supabase_realtime add table public.posts;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_whose_right_was_lost_meanwhile_are_not_replayed() {
    let scene = Scene::with(TEAMS).await;
    scene.exec(&format!("insert into members values ('{ALICE}'), ('{BOB}')")).await;
    let mut places = Vec::new();
    let mut live = scene.relay.phone(&token::user(ALICE)).await;
    live.subscribe("room", &watching(&[])).await;
    for user in [ALICE, BOB] {
        let mut phone = scene.relay.phone(&token::user(user)).await;
        phone.subscribe("room", &watching(&["posts"])).await;
        scene.exec("insert into posts (kind) values ('seen')").await;
        places.push(cursor(&phone.next_change().await));
    }
    scene.exec("insert into posts (kind) values ('missed')").await;
    scene.exec(&format!("delete from members where user_id = '{ALICE}'")).await;
    scene.mark("end").await;
    // Rows are judged by what the relay has seen by then.
    live.changes_before("end").await;
    for (user, place, expected) in [(ALICE, &places[0], &[][..]), (BOB, &places[1], &["missed"])] {
        let mut phone = scene.relay.phone(&token::user(user)).await;
        phone.subscribe("room", &since(&["posts"], place)).await;
        assert_eq!(kinds(&phone.changes_before("end").await), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_pass_a_place_through_and_are_not_disturbed_by_what_is_new() {
    let scene = Scene::start().await;
    let (mut phone, reply) = back(&scene.relay.base(), &Value::Null).await;
    phone.subscribed("room").await;
    for kind in ["1", "2"] {
        scene.exec(&notify(ALICE, kind)).await;
    }
    for stock in [Stock::JavaScript, Stock::Python] {
        let mut client = SdkPhone::connect(stock, &scene.relay.base(), &token::user(ALICE)).await;
        let entries = since(&["notifications"], &reply["cursor"]);
        client.subscribe("room", &entries).await;
        scene.mark(&format!("{stock:?}")).await;
        let changes = client.changes_before(&format!("{stock:?}")).await;
        // Python's client sends of an entry what it knows and no more.
        let expected: &[&str] = if stock == Stock::JavaScript { &["1", "2"] } else { &[] };
        let notifications: Vec<Change> =
            changes.into_iter().filter(|change| change.table() == "notifications").collect();
        assert_eq!(kinds(&notifications), expected, "{stock:?}");
        client.exit().await;
    }
}
