//! Rights on private channels that go by membership, as rows come and go.

use serde_json::{Value, json};

use super::database;
use crate::support::Relay;
use crate::support::phone::{Phone, Version};
use crate::support::token::{self, ALICE, BOB};

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
