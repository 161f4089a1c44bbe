//! The examples that broadcast: chat rooms and agents. Who may do what with the rows, who may use which channel, what is broadcast.

use rowcast::config::Config;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use crate::support::phone::{PATIENCE, Phone, Version};
use crate::support::{Relay, TestPg, token};

const CHAT: &str = include_str!("../../sql/examples/chat.sql");
const AGENTS: &str = include_str!("../../sql/examples/agent_sessions.sql");
const ALICE: &str = token::ALICE;
const BOB: &str = token::BOB;
/// Alice and bob are in it.
const RED: &str = "4ed00000-0000-4000-8000-000000000001";
/// Bob alone is.
const BLUE: &str = "b1000000-0000-4000-8000-000000000001";

async fn scene() -> (TestPg, Client) {
    let pg = TestPg::start().await;
    let client = pg.client().await;
    for script in [CHAT, AGENTS, CHAT, AGENTS] {
        client.batch_execute(script).await.expect("the example runs, twice");
    }
    let rows = format!(
        "insert into public.chat_rooms (id, name) values ('{RED}', 'red'), ('{BLUE}', 'blue');
         insert into public.chat_members (room_id, user_id) values ('{RED}', '{ALICE}'), ('{RED}', '{BOB}'), ('{BLUE}', '{BOB}');"
    );
    client.batch_execute(&rows).await.expect("two rooms");
    (pg, client)
}

async fn acting<'a>(client: &'a mut Client, role: &str, subject: &str) -> Transaction<'a> {
    let transaction = client.transaction().await.expect("a transaction");
    let claims = json!({ "role": role, "sub": subject }).to_string();
    rowcast::pg::assume(&transaction, role, subject, &claims).await.expect("the role can be assumed");
    transaction
}

/// What the user writes, and commits; or the SQLSTATE.
async fn write(client: &mut Client, user: &str, sql: &str) -> Result<u64, SqlState> {
    let transaction = acting(client, "authenticated", user).await;
    let written =
        transaction.execute(sql, &[]).await.map_err(|error| error.code().cloned().expect("the server says why"))?;
    transaction.commit().await.expect("committed");
    Ok(written)
}

/// Whether the user may read and write a private channel: by the probe of the protocol, §7.5.
async fn may_use(client: &mut Client, user: &str, topic: &str, extension: &str) -> (bool, bool) {
    let mut transaction = client.transaction().await.expect("a transaction");
    let id: String = transaction
        .query_one(
            "insert into realtime.messages (topic, extension) values ($1, $2) returning id::text",
            &[&topic, &extension],
        )
        .await
        .expect("a probe")
        .get(0);
    transaction.execute("select set_config('realtime.topic', $1, true)", &[&topic]).await.expect("the topic");
    let claims = json!({ "role": "authenticated", "sub": user }).to_string();
    rowcast::pg::assume(&transaction, "authenticated", user, &claims).await.expect("the role");
    let seen =
        transaction.query("select 1 from realtime.messages where id::text = $1", &[&id]).await.expect("may look");
    let inner = transaction.savepoint("probe").await.expect("a savepoint");
    let written =
        inner.execute("insert into realtime.messages (topic, extension) values ($1, $2)", &[&topic, &extension]).await;
    if let Err(error) = &written {
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
    }
    (!seen.is_empty(), written.is_ok())
}

/// Topic, event, table, and what of `body`, `kind` or `status` the record and the old record have.
async fn broadcast(client: &Client) -> Vec<String> {
    let sql = "select topic, event, private, payload::text from realtime.messages order by inserted_at, ctid";
    let rows = client.query(sql, &[]).await.expect("rows");
    let told = |row: &tokio_postgres::Row| {
        assert_eq!(row.get::<_, Option<bool>>(2), Some(true));
        let payload: Value = serde_json::from_str(row.get(3)).expect("JSON");
        let of = |image: &str| {
            ["body", "kind", "status"].iter().find_map(|name| payload[image][name].as_str()).unwrap_or("-").to_owned()
        };
        let (topic, event): (&str, &str) = (row.get(0), row.get(1));
        let topic = topic.replace(RED, "red").replace(BLUE, "blue");
        format!("{topic} {event} {} {} {}", payload["table"].as_str().unwrap_or("-"), of("record"), of("old_record"))
    };
    rows.iter().map(told).collect()
}

#[tokio::test]
async fn members_write_read_and_annotate_in_their_rooms_and_strangers_nowhere() {
    let (_pg, mut client) = scene().await;
    let say = |room: &str, body: &str| {
        format!("insert into public.chat_messages (room_id, body) values ('{room}', '{body}')")
    };
    assert_eq!(write(&mut client, ALICE, &say(RED, "hello")).await, Ok(1));
    assert_eq!(write(&mut client, BOB, &say(BLUE, "alone")).await, Ok(1));
    let refused = Err(SqlState::INSUFFICIENT_PRIVILEGE);
    assert_eq!(write(&mut client, ALICE, &say(BLUE, "let me in")).await, refused);
    let forged =
        format!("insert into public.chat_messages (room_id, author_id, body) values ('{RED}', '{BOB}', 'forged')");
    assert_eq!(write(&mut client, ALICE, &forged).await, refused);
    assert_eq!(
        write(
            &mut client,
            ALICE,
            &format!("insert into public.chat_members (room_id, user_id) values ('{BLUE}', '{ALICE}')")
        )
        .await,
        refused
    );
    let like = "insert into public.chat_annotations (message_id, room_id, kind) select id, room_id, 'like' from public.chat_messages";
    assert_eq!(write(&mut client, ALICE, like).await, Ok(1), "of what she sees");
    let elsewhere =
        format!("insert into public.chat_annotations (message_id, room_id, kind) values (2, '{RED}', 'like')");
    assert_eq!(
        write(&mut client, ALICE, &elsewhere).await,
        Err(SqlState::FOREIGN_KEY_VIOLATION),
        "a message of another room"
    );
    assert_eq!(
        write(&mut client, BOB, "update public.chat_messages set body = 'changed' where body = 'hello'").await,
        Ok(0)
    );
    assert_eq!(write(&mut client, ALICE, "update public.chat_messages set body = 'hello, all'").await, Ok(1));
    assert_eq!(write(&mut client, BOB, "delete from public.chat_annotations").await, Ok(0));
    assert_eq!(write(&mut client, ALICE, "delete from public.chat_annotations").await, Ok(1));
    for (user, bodies) in [(ALICE, vec!["hello, all"]), (BOB, vec!["alone", "hello, all"]), (RED, vec![])] {
        let transaction = acting(&mut client, "authenticated", user).await;
        let rows =
            transaction.query("select body from public.chat_messages order by body", &[]).await.expect("may read");
        assert_eq!(rows.iter().map(|row| row.get::<_, &str>(0)).collect::<Vec<_>>(), bodies);
    }
    assert_eq!(
        broadcast(&client).await,
        [
            "room:red INSERT chat_messages hello -",
            "room:blue INSERT chat_messages alone -",
            "room:red INSERT chat_annotations like -",
            "room:red UPDATE chat_messages hello, all hello",
            "room:red DELETE chat_annotations - like",
        ]
    );
}

#[tokio::test]
async fn a_rooms_channel_is_its_members_until_they_leave() {
    let (_pg, mut client) = scene().await;
    let (red, blue) = (format!("room:{RED}"), format!("room:{BLUE}"));
    for extension in ["broadcast", "presence"] {
        for (user, topic, may) in [
            (ALICE, &red, true),
            (ALICE, &blue, false),
            (BOB, &blue, true),
            (RED, &red, false),
            (ALICE, &"room:".to_owned(), false),
        ] {
            assert_eq!(may_use(&mut client, user, topic, extension).await, (may, may), "{user} {topic}");
        }
    }
    assert_eq!(may_use(&mut client, ALICE, &red, "other").await, (true, false));
    assert_eq!(write(&mut client, ALICE, "delete from public.chat_members").await, Ok(1), "she leaves her room");
    assert_eq!(may_use(&mut client, ALICE, &red, "broadcast").await, (false, false));
    assert_eq!(may_use(&mut client, BOB, &red, "broadcast").await, (true, true));
}

#[tokio::test]
async fn a_users_agents_are_his_alone() {
    let (_pg, mut client) = scene().await;
    let sessions =
        format!("insert into public.agent_sessions (id, user_id) values ('{RED}', '{ALICE}'), ('{BLUE}', '{BOB}')");
    let transaction = acting(&mut client, "service_role", "").await;
    for sql in [
        sessions,
        format!("update public.agent_sessions set status = 'working' where user_id = '{ALICE}'"),
        "insert into public.agent_events (session_id, kind) select id, title || 'started' from public.agent_sessions"
            .to_owned(),
        format!("select realtime.send('{{\"text\":\"Look\"}}', 'delta', 'agent:{RED}')"),
    ] {
        transaction.batch_execute(&sql).await.expect("the backend may");
    }
    transaction.commit().await.expect("committed");
    assert_eq!(
        broadcast(&client).await,
        [
            "agent:red INSERT agent_sessions waiting -",
            "agent:blue INSERT agent_sessions waiting -",
            "agent:red UPDATE agent_sessions working waiting",
            "agent:red delta - - -",
        ]
    );
    for (user, topic, may) in [(ALICE, RED, true), (ALICE, BLUE, false), (BOB, BLUE, true), (BOB, RED, false)] {
        let topic = format!("agent:{topic}");
        assert_eq!(may_use(&mut client, user, &topic, "broadcast").await, (may, may), "{user} {topic}");
        assert_eq!(may_use(&mut client, user, &topic, "presence").await, (may, false), "{user} {topic}");
    }
    let transaction = acting(&mut client, "authenticated", ALICE).await;
    let events: i64 =
        transaction.query_one("select count(*) from public.agent_events", &[]).await.expect("may read").get(0);
    assert_eq!(events, 1);
    let error =
        transaction.batch_execute("update public.agent_sessions set title = 'mine'").await.expect_err("no right");
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
}

#[tokio::test]
async fn an_admin_who_is_no_superuser_runs_them() {
    let pg = TestPg::start().await;
    pg.exec("create role admin login; grant supabase_realtime_admin to admin; grant create on schema public to admin; \
             grant usage on schema auth to admin; alter publication supabase_realtime owner to admin; grant create on database postgres to admin").await;
    let mut admin = pg.client_as("admin").await;
    for script in [CHAT, AGENTS, CHAT] {
        admin.batch_execute(script).await.expect("the example runs");
    }
    pg.exec(&format!("insert into public.chat_rooms (id, name) values ('{RED}', 'red'); insert into public.chat_members (room_id, user_id) values ('{RED}', '{ALICE}')")).await;
    let mut client = pg.client().await;
    let say = format!("insert into public.chat_messages (room_id, body) values ('{RED}', 'hello')");
    assert_eq!(write(&mut client, ALICE, &say).await, Ok(1));
    assert_eq!(broadcast(&client).await, ["room:red INSERT chat_messages hello -"]);
    let undo = |script: &str| {
        let lines =
            script.lines().skip_while(|line| !line.starts_with("-- Undo:")).take_while(|line| line.starts_with("--"));
        lines.map(|line| line.trim_start_matches("-- Undo:").trim_start_matches("--")).collect::<Vec<_>>().join("\n")
    };
    for script in [CHAT, AGENTS] {
        admin.batch_execute(&undo(script)).await.expect("what the header says undoes it");
    }
    let left: i64 = admin
        .query_one("select count(*) from pg_class where relname ~ '^(chat|agent)_'", &[])
        .await
        .expect("a row")
        .get(0);
    let policies: i64 = admin.query_one("select count(*) from pg_policy", &[]).await.expect("a row").get(0);
    assert_eq!((left, policies), (0, 0));
    let _ = &mut admin;
}

#[tokio::test]
async fn memory_judges_them() {
    let (pg, _client) = scene().await;
    let data = tempfile::tempdir().expect("a folder");
    let config = Config::new(&pg.url(), token::SECRET, data.path()).expect("a configuration");
    for table in ["chat_messages", "chat_annotations", "agent_events"] {
        let explained = rowcast::doctor::explain(&config, table, &["authenticated".to_owned()]).await;
        let [explained] = &explained.expect("it is published")[..] else { panic!("one role") };
        assert_eq!(explained.engine, "pure", "{table}: {}", explained.reason);
        assert!(explained.owner_column.is_some(), "{table}: its receivers are not found by what they own");
    }
}

/// What every SDK sends when it joins a private channel.
fn private() -> Value {
    json!({ "config": { "broadcast": { "ack": false, "self": false }, "presence": { "key": "", "enabled": false },
                        "postgres_changes": [], "private": true } })
}

/// `event table body` of the broadcasts to a room that have come so far.
fn heard(phone: &mut Phone, topic: &str) -> Vec<String> {
    let frames = phone.frames_of(topic);
    let broadcasts = frames.iter().filter(|frame| frame.event == "broadcast").map(|frame| &frame.payload);
    let told = |payload: &Value| {
        assert!(payload["meta"]["id"].is_string() && payload["type"] == "broadcast", "{payload}");
        let row =
            [&payload["payload"]["record"], &payload["payload"]["old_record"]].into_iter().find(|row| row.is_object());
        let row = row.expect("a row");
        let what = ["body", "kind", "status"].iter().find_map(|name| row[name].as_str()).unwrap_or("-");
        format!(
            "{} {} {what}",
            payload["event"].as_str().expect("an event"),
            payload["payload"]["table"].as_str().expect("a table")
        )
    };
    broadcasts.map(told).collect()
}

/// Waits for the broadcast with this in it; what came until then, it included.
async fn heard_until(phone: &mut Phone, topic: &str, last: &str) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    loop {
        all.extend(heard(phone, topic));
        if all.iter().any(|one| one.contains(last)) {
            return all;
        }
        assert!(Instant::now() < deadline, "no {last:?} in {all:?}");
        phone.heartbeat().await;
    }
}

/// With a real relay: a member's phone hears what is written, a stranger's nothing, and who leaves stops hearing at that commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_phone_hears_the_room_a_strangers_does_not_and_who_is_put_out_stops_hearing() {
    let (pg, mut client) = scene().await;
    let relay = Relay::start(&pg).await;
    let (red, blue) = (format!("room:{RED}"), format!("room:{BLUE}"));
    let mut alice = Phone::connect(&relay.base(), &token::user(ALICE), Version::V1).await;
    let mut bob = Phone::connect(&relay.base(), &token::user(BOB), Version::V1).await;
    let mut stranger = Phone::connect(&relay.base(), &token::user(RED), Version::V1).await;
    let joined = alice.join_with(&red, private()).await;
    assert_eq!(joined["status"], "ok", "{joined}");
    assert_eq!(alice.join_with(&blue, private()).await["status"], "error", "not her room");
    for topic in [&red, &blue] {
        assert_eq!(bob.join_with(topic, private()).await["status"], "ok");
        let refused = stranger.join_with(topic, private()).await;
        assert_eq!(refused["status"], "error");
        assert!(refused["response"]["reason"].as_str().is_some_and(|text| text.contains("Unauthorized")), "{refused}");
    }
    // Whoever writes `realtime:room:…` without being asked whether it is private gets a channel of another name's room.
    let open = json!({ "config": { "broadcast": { "self": false }, "presence": { "key": "" }, "postgres_changes": [], "private": false } });
    assert_eq!(stranger.join_with(&red, open).await["status"], "ok");

    let say = |room: &str, body: &str| {
        format!("insert into public.chat_messages (room_id, body) values ('{room}', '{body}')")
    };
    for (user, sql) in [
        (ALICE, say(RED, "hello")),
        (BOB, "insert into public.chat_annotations (message_id, room_id, kind) select id, room_id, 'like' from public.chat_messages".to_owned()),
        (BOB, say(BLUE, "alone")),
        (ALICE, "update public.chat_messages set body = 'hello, all'".to_owned()),
    ] {
        assert_eq!(write(&mut client, user, &sql).await, Ok(1));
    }
    let wanted = ["INSERT chat_messages hello", "INSERT chat_annotations like", "UPDATE chat_messages hello, all"];
    assert_eq!(heard_until(&mut alice, &red, "hello, all").await, wanted);
    assert_eq!(heard_until(&mut bob, &red, "hello, all").await, wanted);
    assert_eq!(heard_until(&mut bob, &blue, "alone").await, ["INSERT chat_messages alone"]);

    // Alice is put out, and in the next transaction something is said.
    pg.exec(&format!("delete from public.chat_members where user_id = '{ALICE}'")).await;
    assert_eq!(write(&mut client, BOB, &say(RED, "she has left")).await, Ok(1));
    assert_eq!(heard_until(&mut bob, &red, "she has left").await, ["INSERT chat_messages she has left"]);
    alice.channel_closed(&red).await;
    assert_eq!(heard(&mut alice, &red), Vec::<String>::new(), "a message of after the commit that put her out");
    // Let in again, she joins again, and hears what follows.
    pg.exec(&format!("insert into public.chat_members (room_id, user_id) values ('{RED}', '{ALICE}')")).await;
    let deadline = Instant::now() + PATIENCE;
    while alice.join_with(&red, private()).await["status"] != "ok" {
        assert!(Instant::now() < deadline, "she is a member again");
    }
    assert_eq!(write(&mut client, BOB, &say(RED, "welcome back")).await, Ok(1));
    assert_eq!(heard_until(&mut alice, &red, "welcome back").await, ["INSERT chat_messages welcome back"]);
    assert_eq!(heard(&mut stranger, &red), Vec::<String>::new(), "in the public room of that name");
    // The policies of the example are such that memory can judge them, as soon as the relay has the members.
    assert!(relay.metric("rowcast_authz_memory_total", "").await > 0.0, "Postgres was asked each time");
}
