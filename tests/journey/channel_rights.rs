//! Rights on private channels that go by membership, as rows come and go.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowcast::clock::Clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::database;
use crate::support::phone::{PATIENCE, Phone, Version};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Relay, TestPg};

const ROOMS: &str = "create table room_members (room text, user_id uuid, primary key (room, user_id));
    grant select on room_members to authenticated;
    create policy members on realtime.messages for select to authenticated using (exists (
        select 1 from room_members m where m.user_id = auth.uid() and m.room = (select realtime.topic())));";

fn config(token: &str) -> Value {
    let config =
        json!({ "broadcast": { "ack": false, "self": false }, "presence": { "enabled": false }, "private": true });
    json!({ "config": config, "access_token": token })
}

fn send(number: usize) -> String {
    format!("select realtime.send('{{\"n\": {number}}}', 'count', 'room', true);")
}

/// The numbers that came until this one, or until the channel's end, and what was said at the end.
async fn numbers(phone: &mut Phone, last: u64) -> (Vec<u64>, Option<String>) {
    let (mut numbers, mut said) = (Vec::new(), None);
    loop {
        let frame = phone.next_frame().await;
        match frame.event.as_str() {
            "broadcast" => numbers.push(frame.payload["payload"]["n"].as_u64().expect("a number")),
            "system" => said = frame.payload["message"].as_str().map(str::to_owned),
            "phx_close" => return (numbers, said),
            _ => {}
        }
        if numbers.last() == Some(&last) {
            return (numbers, said);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_who_is_removed_gets_no_message_of_a_later_commit_and_is_told_so() {
    let pg = database("").await;
    pg.exec(ROOMS).await;
    pg.exec(&format!("insert into room_members values ('room', '{ALICE}'), ('room', '{BOB}')")).await;
    let relay = Relay::start(&pg).await;
    let (alices, bobs) = (token::user(ALICE), token::user(BOB));
    let mut alice = Phone::connect(&relay.base(), &alices, Version::V1).await;
    let mut bob = Phone::connect(&relay.base(), &bobs, Version::V1).await;
    // The first ones may come before the table that the policy looks into is in memory: Postgres is asked.
    let by_memory = "outcome=\"allowed\"";
    let mut early = Phone::connect(&relay.base(), &bobs, Version::V1).await;
    while relay.metric("rowcast_authz_memory_total", by_memory).await < 1.0 {
        let reply = early.join_with("room", config(&bobs)).await;
        assert_eq!(reply["status"], "ok", "{reply}");
    }
    let reply = bob.join_with("room", config(&bobs)).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    let reply = alice.join_with("room", config(&alices)).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    assert!(relay.metric("rowcast_authz_memory_total", by_memory).await >= 3.0);

    pg.exec(&send(1)).await;
    pg.exec(&format!("delete from room_members where user_id = '{ALICE}'")).await;
    pg.exec(&send(2)).await;
    let (got, said) = numbers(&mut alice, 2).await;
    assert_eq!(got, [1]);
    assert_eq!(said.as_deref(), Some("You do not have permissions to read from this Channel topic: room"));
    let refused = alice.join_with("room", config(&alices)).await;
    assert_eq!(refused["status"], "error", "{refused}");

    // Whoever is let in again may join at once, wherever the stream is.
    for _ in 0..5 {
        pg.exec(&format!("insert into room_members values ('room', '{ALICE}')")).await;
        let reply = alice.join_with("room", config(&alices)).await;
        assert_eq!(reply["status"], "ok", "{reply}");
        pg.exec(&format!("delete from room_members where user_id = '{ALICE}'")).await;
        alice.channel_closed("room").await;
    }
    pg.exec(&send(3)).await;
    assert_eq!(numbers(&mut bob, 3).await.0, [1, 2, 3]);
    let probes = "select count(*) from realtime.messages where payload is null";
    let stored: i64 = pg.client().await.query_one(probes, &[]).await.expect("a count").get(0);
    assert_eq!(stored, 0, "no probe stays");
}

/// Whatever takes the right away, and be it in the transaction that sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_change_hold_for_every_message_from_their_commit_on() {
    let pg = database("").await;
    pg.exec("create policy room on realtime.messages for select to authenticated using (realtime.topic() = 'room')")
        .await;
    let relay = Relay::start(&pg).await;
    let alices = token::user(ALICE);
    let mut alice = Phone::connect(&relay.base(), &alices, Version::V1).await;
    let mut sent = 0;
    for (away, back) in [
        (
            "alter policy room on realtime.messages using (realtime.topic() = 'other')",
            "alter policy room on realtime.messages using (realtime.topic() = 'room')",
        ),
        (
            "drop policy room on realtime.messages",
            "create policy room on realtime.messages for select to authenticated using (realtime.topic() = 'room')",
        ),
        ("revoke select on realtime.messages from authenticated", "grant select on realtime.messages to authenticated"),
        (
            "create policy no on realtime.messages as restrictive for select using (false)",
            "drop policy no on realtime.messages",
        ),
    ] {
        for together in [false, true] {
            let reply = alice.join_with("room", config(&alices)).await;
            assert_eq!(reply["status"], "ok", "{back}: {reply}");
            sent += 2;
            pg.exec(&send(sent - 1)).await;
            // A message that is on its way when the right ends may come or not.
            assert_eq!(numbers(&mut alice, sent as u64 - 1).await.0, [sent as u64 - 1]);
            if together {
                pg.exec(&format!("begin; {away}; {} commit", send(sent))).await;
            } else {
                pg.exec(away).await;
                pg.exec(&send(sent)).await;
            }
            let (got, said) = numbers(&mut alice, sent as u64).await;
            assert!(got.is_empty(), "{got:?} after {away}, in one transaction with the message: {together}");
            assert_eq!(said.as_deref(), Some("You do not have permissions to read from this Channel topic: room"));
            pg.exec(back).await;
        }
    }
}

/// As the documentation of Supabase has it.
const NUMBERED: &str = "create table rooms_users (room_id uuid, user_id uuid, primary key (room_id, user_id));
    grant select on rooms_users to authenticated;
    create policy members on realtime.messages for select to authenticated using (topic like 'room:%' and exists (
        select 1 from rooms_users m where m.user_id = (select auth.uid()) and m.room_id = split_part(topic, ':', 2)::uuid));";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_that_is_a_part_of_the_topic_is_followed_in_memory() {
    const ROOM: &str = "room:a11ce000-0000-4000-8000-0000000000aa";
    let pg = database("").await;
    pg.exec(NUMBERED).await;
    let member = |user: &str| format!("insert into rooms_users values (substr('{ROOM}', 6)::uuid, '{user}')");
    pg.exec(&member(ALICE)).await;
    pg.exec(&member(BOB)).await;
    let relay = Relay::start(&pg).await;
    let (alices, bobs) = (token::user(ALICE), token::user(BOB));
    let mut alice = Phone::connect(&relay.base(), &alices, Version::V1).await;
    let mut bob = Phone::connect(&relay.base(), &bobs, Version::V1).await;
    let by_memory = "outcome=\"allowed\"";
    while relay.metric("rowcast_authz_memory_total", by_memory).await < 1.0 {
        let reply = bob.join_with(ROOM, config(&bobs)).await;
        assert_eq!(reply["status"], "ok", "{reply}");
    }
    let reply = alice.join_with(ROOM, config(&alices)).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    assert!(relay.metric("rowcast_authz_memory_total", by_memory).await >= 2.0);

    let send = |n: usize| format!("select realtime.send('{{\"n\": {n}}}', 'count', '{ROOM}', true);");
    pg.exec(&send(1)).await;
    pg.exec(&format!("delete from rooms_users where user_id = '{ALICE}'")).await;
    pg.exec(&send(2)).await;
    let (got, said) = numbers(&mut alice, 2).await;
    assert_eq!(got, [1]);
    assert!(said.is_some_and(|said| said.contains("permissions to read from this Channel topic")));
    let (got, said) = numbers(&mut bob, 2).await;
    assert_eq!((got, said), (vec![1, 2], None));

    // What Postgres would raise an error about, Postgres is asked about.
    let refused = alice.join_with("room:one", config(&alices)).await;
    assert_eq!(refused["status"], "error", "{refused}");
    let refused = alice.join_with("hall:a11ce000-0000-4000-8000-0000000000aa", config(&alices)).await;
    assert_eq!(refused["status"], "error", "{refused}");
}

/// The process that sends the stream, stopped; it goes on when this is dropped.
struct Stopped(Pid);

impl Stopped {
    async fn walsender(pg: &TestPg) -> Stopped {
        let sql = "select pid from pg_stat_replication where application_name = 'rowcast'";
        let pid: i32 = pg.client().await.query_one(sql, &[]).await.expect("a stream").get(0);
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("ours");
        Stopped(Pid::from_raw(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Joins until memory has let it in.
async fn join_by_memory(relay: &Relay, phone: &mut Phone, token: &str) {
    let deadline = Instant::now() + PATIENCE;
    let by_memory = "outcome=\"allowed\"";
    let before = relay.metric("rowcast_authz_memory_total", by_memory).await;
    while relay.metric("rowcast_authz_memory_total", by_memory).await <= before {
        assert!(Instant::now() < deadline, "memory lets nobody in");
        let reply = phone.join_with("room", config(token)).await;
        assert_eq!(reply["status"], "ok", "{reply}");
    }
}

/// The stream stands, so the row that gave the right is still there for all that Rowcast reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_stream_stands_still_whoever_is_removed_soon_hears_nothing_and_the_others_go_on() {
    let pg = database("").await;
    pg.exec(ROOMS).await;
    pg.exec(
        "create policy speakers on realtime.messages for insert to authenticated with check (exists (
            select 1 from room_members m where m.user_id = auth.uid() and m.room = (select realtime.topic())))",
    )
    .await;
    pg.exec(&format!("insert into room_members values ('room', '{ALICE}'), ('room', '{BOB}')")).await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.authority.recheck = Duration::from_secs(1)).await;
    let (alices, bobs) = (token::user(ALICE), token::user(BOB));
    let mut alice = Phone::connect(&relay.base(), &alices, Version::V1).await;
    let mut bob = Phone::connect(&relay.base(), &bobs, Version::V1).await;
    join_by_memory(&relay, &mut alice, &alices).await;
    join_by_memory(&relay, &mut bob, &bobs).await;
    let said = |n: u64| json!({ "type": "broadcast", "event": "said", "payload": { "n": n } });
    alice.push("room", "broadcast", said(1)).await;
    assert_eq!(numbers(&mut bob, 1).await.0, [1]);
    bob.push("room", "broadcast", said(2)).await;
    assert_eq!(numbers(&mut alice, 2).await.0, [2]);
    let age = || relay.metric("rowcast_authz_facts_age_seconds", "");
    let probes = relay.metric("rowcast_authz_probes_total", "").await;
    let deadline = Instant::now() + PATIENCE;
    while age().await > 1.5 {
        assert!(Instant::now() < deadline, "the stream is not there though nothing is wrong");
        tokio::task::yield_now().await;
    }
    assert_eq!(relay.metric("rowcast_authz_probes_total", "").await, probes, "nobody is asked about for nothing");

    let stopped = Stopped::walsender(&pg).await;
    pg.exec(&format!("delete from room_members where user_id = '{ALICE}'")).await;
    // She is told within the bound: 2 s until it is noticed, and recheck. Bob is asked about too, and stays.
    let (_, told) = tokio::time::timeout(PATIENCE, numbers(&mut alice, u64::MAX)).await.expect("she is told");
    assert_eq!(told.as_deref(), Some("You do not have permissions to read from this Channel topic: room"));
    assert!(age().await > 2.0);
    bob.push("room", "broadcast", said(3)).await;
    let refused = alice.join_with("room", config(&alices)).await;
    assert_eq!(refused["status"], "error", "{refused}");
    // Whoever was let in meanwhile is let in by Postgres.
    pg.exec(&format!("insert into room_members values ('room', '{ALICE}')")).await;
    let reply = alice.join_with("room", config(&alices)).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    bob.push("room", "broadcast", said(4)).await;
    let (heard, _) = numbers(&mut alice, 4).await;
    assert_eq!(heard, [4], "nothing of while she was out");
    alice.push("room", "broadcast", said(5)).await;
    assert_eq!(numbers(&mut bob, 5).await, (vec![5], None));

    // It goes on from before she was removed, and takes nothing from anybody.
    drop(stopped);
    let deadline = Instant::now() + PATIENCE;
    while age().await > 1.5 {
        assert!(Instant::now() < deadline, "the stream is never there again");
        tokio::task::yield_now().await;
    }
    pg.exec(&send(6)).await;
    assert_eq!(numbers(&mut alice, 6).await, (vec![6], None));
    assert_eq!(numbers(&mut bob, 6).await, (vec![6], None));
    pg.exec(&format!("delete from room_members where user_id = '{ALICE}'")).await;
    pg.exec(&send(7)).await;
    assert!(numbers(&mut alice, 7).await.0.is_empty());
}

/// What a large transaction that is open leaves at the end of WAL is no lag.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_database_with_an_open_transaction_is_not_taken_for_a_stream_that_is_behind() {
    let pg = database("").await;
    pg.exec(ROOMS).await;
    pg.exec("create table bulk (text text)").await;
    pg.exec(&format!("insert into room_members values ('room', '{ALICE}')")).await;
    let relay = Relay::with(&pg, Clock::system(), |config| config.authority.recheck = Duration::from_secs(1)).await;
    let alices = token::user(ALICE);
    let mut alice = Phone::connect(&relay.base(), &alices, Version::V1).await;
    join_by_memory(&relay, &mut alice, &alices).await;
    let probes = relay.metric("rowcast_authz_probes_total", "").await;
    let open = pg.client().await;
    let sql = "begin; insert into bulk select repeat('x', 777) from generate_series(1, 500)";
    open.batch_execute(sql).await.expect("inserted");
    // Long enough for her to be asked about, if it were; and the stream is known to be there after that.
    let (since, long) = (Instant::now(), Duration::from_secs(4));
    while since.elapsed() < long || relay.metric("rowcast_authz_facts_age_seconds", "").await > 1.5 {
        assert!(since.elapsed() < PATIENCE, "the stream is not there though nothing is wrong");
        tokio::task::yield_now().await;
    }
    assert_eq!(relay.metric("rowcast_authz_probes_total", "").await, probes);
    drop(open);
}
