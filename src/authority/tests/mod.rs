//! Questions about private channels to a real Postgres: what its own policies say is right.

mod oracle;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Authority, AuthorityConfig, AuthorityError, Basis};
use crate::claims::Principal;
use crate::hub::{Command, HubHandle};
use crate::metrics::Metrics;
use crate::policy::members::fixture::MESSAGES;
use crate::policy::{Asking, Told};
use crate::task;
use crate::testing::{PATIENCE, TestDatabase};

const ALICE: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
const BOB: &str = "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a22";

async fn database(policies: &str) -> TestDatabase {
    let database = TestDatabase::new().await;
    database.run(MESSAGES).await;
    database.run(policies).await;
    database
}

fn asking(topic: &str, role: &str, claims: Json) -> Asking {
    let Json::Object(mut claims) = claims else { panic!("claims are an object") };
    claims.insert("role".into(), role.into());
    let principal = Principal::new(claims, i64::MAX).expect("a role");
    Asking { topic: topic.into(), principal: Arc::new(principal), headers: "{}".into() }
}

fn user(topic: &str, sub: &str) -> Asking {
    asking(topic, "authenticated", json!({ "sub": sub }))
}

/// Without a hub: everything is asked.
fn authority(
    database: &TestDatabase,
    login: &str,
    change: impl FnOnce(&mut AuthorityConfig),
) -> (Authority, Arc<Metrics>) {
    let mut config = AuthorityConfig { deadline: PATIENCE, statement_timeout: PATIENCE, ..AuthorityConfig::default() };
    change(&mut config);
    let metrics = Arc::new(Metrics::new());
    let (commands, _) = mpsc::channel(1);
    let mut pg = database.config(login);
    pg.pool_size = config.connections;
    (Authority::new(pg.pool().expect("a pool"), HubHandle::new(commands), config, metrics.clone()), metrics)
}

fn prober(database: &TestDatabase) -> Authority {
    authority(database, "plain_relay", |_| {}).0
}

/// Broadcast, presence.
async fn reads(authority: &Authority, asking: &Asking) -> Result<(bool, bool), AuthorityError> {
    authority.read(asking, true).await.map(|reads| (reads.broadcast, reads.presence == Some(true)))
}

async fn writes(authority: &Authority, asking: &Asking) -> Result<(bool, bool), AuthorityError> {
    authority.write(asking).await.map(|writes| (writes.broadcast, writes.presence))
}

async fn rows(database: &TestDatabase) -> i64 {
    database.client.query_one("select count(*) from realtime.messages", &[]).await.expect("a count").get(0)
}

/// 114, 115, 116, 118, 119, 123.
#[tokio::test]
async fn policies_of_the_table_decide_by_topic_extension_and_claims() {
    let database = database("").await;
    let authority = prober(&database);
    assert_eq!(reads(&authority, &user("a", ALICE)).await, Ok((false, false)));
    assert_eq!(writes(&authority, &user("a", ALICE)).await, Ok((false, false)));
    let service = asking("any", "service_role", json!({}));
    assert_eq!(reads(&authority, &service).await, Ok((true, true)));
    assert_eq!(writes(&authority, &service).await, Ok((true, true)));
    database
        .run(&format!(
            "create policy a on realtime.messages for select to authenticated using (realtime.topic() = 'a');
             create policy p on realtime.messages for select to authenticated
                 using (realtime.topic() = 'p' and extension = 'presence' and topic = 'p' and not private
                        and event is null and payload is null and inserted_at > now() at time zone 'utc' - interval '1 hour');
             create policy w on realtime.messages for insert to authenticated
                 with check (auth.uid() = '{ALICE}' and extension = 'broadcast' and realtime.topic() = 'a');"
        ))
        .await;
    assert_eq!(reads(&authority, &user("a", ALICE)).await, Ok((true, true)));
    assert_eq!(reads(&authority, &user("b", ALICE)).await, Ok((false, false)));
    assert_eq!(reads(&authority, &user("p", ALICE)).await, Ok((false, true)));
    let only = authority.read(&user("p", ALICE), false).await.expect("an answer");
    assert_eq!((only.broadcast, only.presence), (false, None));
    assert_eq!(reads(&authority, &asking("a", "anon", json!({}))).await, Ok((false, false)));
    assert_eq!(writes(&authority, &user("a", ALICE)).await, Ok((true, false)));
    assert_eq!(writes(&authority, &user("a", BOB)).await, Ok((false, false)));
    assert_eq!(writes(&authority, &user("b", ALICE)).await, Ok((false, false)));
    assert_eq!(rows(&database).await, 0);
}

#[tokio::test]
async fn what_was_asked_holds_until_the_recheck_and_no_longer() {
    let database = database("").await;
    let (authority, metrics) = authority(&database, "plain_relay", |config| config.recheck = Duration::from_secs(77));
    let before = Instant::now();
    let reads = authority.read(&user("a", ALICE), true).await.expect("an answer");
    let Basis::Until(at) = reads.basis else { panic!("{reads:?}") };
    assert!(at >= before + Duration::from_secs(77) && at <= Instant::now() + Duration::from_secs(77));
    assert_eq!(metrics.authz_probes.get_or_create(&[("outcome", "denied")]).get(), 1);
}

/// 122.
#[tokio::test]
async fn a_policy_may_look_at_the_headers_of_the_request() {
    let database = database(
        "create policy h on realtime.messages for select to authenticated
             using (current_setting('request.headers')::json ->> 'x-test' = 'yes');",
    )
    .await;
    let authority = prober(&database);
    assert_eq!(reads(&authority, &user("a", ALICE)).await, Ok((false, false)));
    let with = Asking { headers: r#"{"x-test":"yes"}"#.into(), ..user("a", ALICE) };
    assert_eq!(reads(&authority, &with).await, Ok((true, true)));
    assert_eq!(reads(&authority, &user("a", ALICE)).await, Ok((false, false)), "settings of the one before are gone");
}

#[tokio::test]
async fn topics_claims_and_roles_of_every_kind_are_passed_as_they_are() {
    let odd = "it's \"odd\" \\ $1 %_ ; drop table x -- ünï😀\n";
    let database = database("").await;
    database
        .run(
            "create role \"Weird-Role A\"; grant \"Weird-Role A\" to plain_relay; grant authenticated to \"Weird-Role A\";
             create policy r on realtime.messages for select to \"Weird-Role A\" using (
                 topic = realtime.topic() and current_setting('request.jwt.claims')::jsonb ->> 'topic' = topic
                 and current_setting('request.jwt.claim.sub') = 'x' and current_user = 'Weird-Role A'
                 and current_setting('request.jwt.claim.role') = 'Weird-Role A');
             create policy w on realtime.messages for insert to \"Weird-Role A\" with check (
                 topic = realtime.topic() and current_setting('request.jwt.claims')::jsonb ->> 'topic' = topic);",
        )
        .await;
    let authority = prober(&database);
    for topic in [odd, "", "a", "\\", "'", "''", "E'x'"] {
        let asking = asking(topic, "Weird-Role A", json!({ "sub": "x", "topic": topic }));
        // `realtime.topic()` of an empty one is NULL.
        let read = !topic.is_empty();
        assert_eq!(reads(&authority, &asking).await, Ok((read, read)), "{topic:?}");
        assert_eq!(writes(&authority, &asking).await, Ok((read, read)), "{topic:?}");
    }
    let nul = asking("a\0b", "Weird-Role A", json!({ "sub": "x" }));
    assert_eq!(reads(&authority, &nul).await, Err(AuthorityError::Policy));
    assert_eq!(writes(&authority, &nul).await, Err(AuthorityError::Policy));
}

/// 121.
#[tokio::test]
async fn a_role_that_does_not_exist_or_is_not_ours_or_is_a_superuser_gets_nothing() {
    let database = database(
        "create policy everything on realtime.messages using (true) with check (true);
         create role authz_foreign; grant usage on schema realtime to authz_foreign;
         grant all on realtime.messages to authz_foreign;",
    )
    .await;
    let authority = prober(&database);
    // To Postgres `none` is the word for the login itself.
    for role in ["nobody_of_this_name", "authz_foreign", "none", "\"", "a\0b"] {
        let asking = asking("a", role, json!({}));
        assert_eq!(reads(&authority, &asking).await, Err(AuthorityError::Policy), "{role}");
        assert_eq!(writes(&authority, &asking).await, Err(AuthorityError::Policy), "{role}");
    }
    let authority = self::authority(&database, "relay", |_| {}).0;
    let superuser = asking("a", "relay", json!({}));
    assert_eq!(reads(&authority, &superuser).await, Ok((false, false)));
    assert_eq!(writes(&authority, &superuser).await, Ok((false, false)));
    assert_eq!(reads(&authority, &user("a", ALICE)).await, Ok((true, true)));
}

/// 120, 124.
#[tokio::test]
async fn hostile_policies_are_refused_and_harm_nobody_who_comes_after() {
    let database = database(
        "create function boom() returns boolean language plpgsql as $$ begin raise exception 'secret %', now(); end $$;
         create function nap() returns boolean language plpgsql as $$ begin perform pg_sleep(60); return true; end $$;
         create function reset_role() returns boolean language plpgsql as $$ begin
             perform set_config('role', 'none', false);
             perform set_config('default_transaction_read_only', 'off', false);
             perform set_config('realtime.topic', 'good', false); return true; end $$;
         create table notes (n int); grant insert, select on notes to authenticated;
         create function leave_a_note() returns boolean language plpgsql volatile as $$ begin
             insert into notes values (1); return true; end $$;
         create policy boom on realtime.messages for all to authenticated using (topic <> 'boom' or boom());
         create policy nap on realtime.messages as restrictive for all to authenticated using (topic <> 'nap' or nap());
         create policy reset on realtime.messages as restrictive for all to authenticated
             using (topic <> 'reset' or reset_role());
         create policy note on realtime.messages as restrictive for all to authenticated
             using (topic <> 'note' or leave_a_note());",
    )
    .await;
    let (authority, _) = authority(&database, "plain_relay", |config| {
        (config.connections, config.statement_timeout) = (1, Duration::from_millis(300))
    });
    for _ in 0..2 {
        assert_eq!(reads(&authority, &user("boom", ALICE)).await, Err(AuthorityError::Policy));
        assert_eq!(writes(&authority, &user("boom", ALICE)).await, Err(AuthorityError::Policy));
        let said = "canceling statement due to statement timeout".to_owned();
        assert_eq!(reads(&authority, &user("nap", ALICE)).await, Err(AuthorityError::Timeout(said.clone())));
        assert_eq!(writes(&authority, &user("nap", ALICE)).await, Err(AuthorityError::Timeout(said)));
        let _ = reads(&authority, &user("reset", ALICE)).await;
        let _ = writes(&authority, &user("reset", ALICE)).await;
        let _ = reads(&authority, &user("note", ALICE)).await;
        let _ = writes(&authority, &user("note", ALICE)).await;
        assert_eq!(reads(&authority, &user("good", ALICE)).await, Ok((true, true)));
        assert_eq!(reads(&authority, &asking("good", "anon", json!({}))).await, Ok((false, false)));
    }
    assert_eq!(rows(&database).await, 0);
    let notes: i64 = database.client.query_one("select count(*) from notes", &[]).await.expect("a count").get(0);
    assert_eq!(notes, 0);
    database
        .run(
            "drop policy boom on realtime.messages;
             create policy again on realtime.messages for select to authenticated
                 using (exists (select 1 from realtime.messages m where m.topic = 'x'));",
        )
        .await;
    assert_eq!(reads(&authority, &user("good", ALICE)).await, Err(AuthorityError::Policy), "infinite recursion");
    assert_eq!(reads(&authority, &asking("good", "service_role", json!({}))).await, Ok((true, true)));
}

#[tokio::test]
async fn what_stands_in_the_way_is_told_apart() {
    let database = database("create policy signed_in on realtime.messages using (auth.uid() is not null);").await;
    let authority = prober(&database);
    let alice = user("a", ALICE);
    // Of a CHECK of the table's own, which has the same SQLSTATE as the lack of a partition.
    database.run("alter table realtime.messages add constraint no_x check (topic <> 'x')").await;
    assert_eq!(reads(&authority, &user("x", ALICE)).await, Err(AuthorityError::Policy));
    assert_eq!(writes(&authority, &user("x", ALICE)).await, Err(AuthorityError::Policy));
    database.run("revoke insert on realtime.messages from authenticated").await;
    assert_eq!(reads(&authority, &alice).await, Ok((true, true)));
    assert_eq!(writes(&authority, &alice).await, Ok((false, false)));
    database.run("revoke select on realtime.messages from authenticated").await;
    assert_eq!(reads(&authority, &alice).await, Ok((false, false)));
    database.run("grant select, insert on realtime.messages to authenticated").await;
    database.run("revoke usage on schema realtime from authenticated").await;
    assert_eq!(reads(&authority, &alice).await, Ok((false, false)));
    assert_eq!(writes(&authority, &alice).await, Ok((false, false)));
    database.run("grant usage on schema realtime to authenticated").await;
    // Somebody else's table: the login is under its policies, or may not insert at all.
    database.run("alter table realtime.messages owner to relay").await;
    assert_eq!(reads(&authority, &alice).await, Err(AuthorityError::Unavailable));
    let client = database.config("plain_relay").connect().await.expect("connected");
    assert_eq!(super::can_probe(&client).await, Err(AuthorityError::Unavailable));
    database.run("alter table realtime.messages owner to plain_relay").await;
    assert_eq!(super::can_probe(&client).await, Ok(()));
    assert_eq!(reads(&authority, &alice).await, Ok((true, true)));
    database
        .run(
            "do $$ declare t regclass; begin
                 for t in select inhrelid from pg_inherits where inhparent = 'realtime.messages'::regclass loop
                     execute format('drop table %s', t);
                 end loop; end $$;",
        )
        .await;
    assert_eq!(reads(&authority, &alice).await, Err(AuthorityError::MissingPartition));
    assert_eq!(writes(&authority, &alice).await, Err(AuthorityError::MissingPartition));
    database.run("drop table realtime.messages").await;
    assert_eq!(reads(&authority, &alice).await, Err(AuthorityError::NotInstalled));
    assert_eq!(writes(&authority, &alice).await, Err(AuthorityError::NotInstalled));
    assert_eq!(super::can_probe(&client).await, Err(AuthorityError::NotInstalled));
    database.run("drop schema realtime cascade").await;
    assert_eq!(reads(&authority, &alice).await, Err(AuthorityError::NotInstalled));
    assert_eq!(writes(&authority, &alice).await, Err(AuthorityError::NotInstalled));
}

#[tokio::test]
async fn a_connection_that_died_is_replaced_and_a_server_that_is_away_is_said() {
    let database = database("create policy everything on realtime.messages using (true) with check (true);").await;
    let (authority, _) = authority(&database, "plain_relay", |config| config.connections = 1);
    let alice = user("a", ALICE);
    for _ in 0..3 {
        assert_eq!(reads(&authority, &alice).await, Ok((true, true)));
        database
            .run(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity
                  where usename = 'plain_relay' and datname = current_database()",
            )
            .await;
        assert_eq!(writes(&authority, &alice).await, Ok((true, true)));
    }
    let mut nowhere = database.config("plain_relay");
    nowhere.connection = "host=/nowhere user=x dbname=y".parse().expect("parameters");
    let (commands, _) = mpsc::channel(1);
    let config = AuthorityConfig::default();
    let authority = Authority::new(nowhere.pool().expect("a pool"), HubHandle::new(commands), config, Arc::default());
    assert_eq!(reads(&authority, &alice).await, Err(AuthorityError::Unavailable));
}

#[tokio::test]
async fn a_thousand_joins_at_once_take_no_more_connections_than_there_may_be() {
    let database =
        database("create policy mine on realtime.messages for select using (topic = 'mine-' || auth.uid());").await;
    let (authority, metrics) = authority(&database, "plain_relay", |config| config.connections = 3);
    let joins = (0..1000).map(|n| {
        let authority = authority.clone();
        let mine = n % 2 == 0;
        let topic = format!("mine-{}", if mine { ALICE } else { BOB });
        async move { (mine, reads(&authority, &user(&topic, ALICE)).await) }
    });
    for (mine, read) in futures_util::future::join_all(joins).await {
        assert_eq!(read, Ok((mine, mine)));
    }
    let used = "select count(*) from pg_stat_activity where usename = 'plain_relay' and datname = current_database()";
    let used: i64 = database.client.query_one(used, &[]).await.expect("a count").get(0);
    assert!((1..=3).contains(&used), "{used}");
    assert_eq!(metrics.authz_probes.get_or_create(&[("outcome", "allowed")]).get(), 500);
    assert_eq!(rows(&database).await, 0);
}

#[tokio::test]
async fn who_waits_too_long_for_a_turn_is_told_that_the_pool_is_exhausted() {
    let database = database(
        "create function nap() returns boolean language plpgsql as $$ begin perform pg_sleep(60); return true; end $$;
         create policy nap on realtime.messages for select to authenticated using (nap());",
    )
    .await;
    let (authority, _) = authority(&database, "plain_relay", |config| {
        (config.connections, config.deadline) = (1, Duration::from_millis(400));
    });
    let alice = user("a", ALICE);
    let (one, two) = tokio::join!(reads(&authority, &alice), reads(&authority, &alice));
    let mut errors = [one.expect_err("a time-out").as_str(), two.expect_err("a time-out").as_str()];
    errors.sort_unstable();
    assert_eq!(errors, ["pool", "timeout"]);
}

/// Claims that no policy should ever see as somebody else's.
#[tokio::test]
async fn two_users_on_one_connection_never_get_each_others_answer() {
    let database = database(
        "create policy mine on realtime.messages for all to authenticated
             using (topic in (select auth.uid()::text)) with check (topic in (select auth.uid()::text));",
    )
    .await;
    let (authority, _) = authority(&database, "plain_relay", |config| config.connections = 1);
    for _ in 0..10 {
        for (sub, topic) in [(ALICE, ALICE), (BOB, ALICE), (ALICE, BOB), (BOB, BOB)] {
            let right = sub == topic;
            assert_eq!(reads(&authority, &user(topic, sub)).await, Ok((right, right)));
            assert_eq!(writes(&authority, &user(topic, sub)).await, Ok((right, right)));
        }
    }
}

#[tokio::test]
async fn one_users_slow_questions_keep_neither_others_waiting_nor_who_was_let_in_before() {
    const GREEDY: &str = "c0eebc99-9c0b-4ef8-bb6d-6bb9bd380a33";
    let database = database(
        "create function nap() returns boolean language plpgsql as $$ begin perform pg_advisory_xact_lock_shared(7); return true; end $$;
         create policy nap on realtime.messages for select to authenticated using (realtime.topic() not like 'slow%' or nap());",
    )
    .await;
    let (authority, _) = authority(&database, "plain_relay", |config| config.connections = 3);
    let yes = Ok((true, true));
    assert_eq!(reads(&authority, &user("a", ALICE)).await, yes);
    database.run("select pg_advisory_lock(7)").await;
    let ask = |topic: String, sub: &'static str| {
        let authority = authority.clone();
        task::spawn("question", async move { reads(&authority, &user(&topic, sub)).await })
    };
    let napping = async |least: i64| {
        let deadline = Instant::now() + PATIENCE;
        let sql = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                   and database = (select oid from pg_database where datname = current_database())";
        while database.client.query_one(sql, &[]).await.expect("a count").get::<_, i64>(0) < least {
            assert!(Instant::now() < deadline, "Postgres is not asked");
        }
    };
    let mut slow: Vec<_> = (0..10).map(|n| ask(format!("slow {n}"), GREEDY)).collect();
    napping(1).await;
    // Of two places for everybody he has one.
    assert_eq!(reads(&authority, &user("a", BOB)).await, yes);
    slow.push(ask("slow".into(), BOB));
    napping(2).await;
    // Nobody new has a place now.
    assert_eq!(reads(&authority, &user("a", ALICE)).await, yes, "she is a member already");
    database.run("select pg_advisory_unlock(7)").await;
    for asked in slow {
        assert_eq!(asked.await.expect("an answer"), yes);
    }
}

/// With a hub whose memory rests on facts: what it says at once, and what when it has been told what Postgres says.
fn remembering(database: &TestDatabase, at_once: bool, later: bool) -> (Authority, Arc<Metrics>) {
    let (commands, mut questions) = mpsc::channel(1);
    drop(task::spawn("hub", async move {
        while let Some(command) = questions.recv().await {
            if let Command::Rights { expected, reply, .. } = command {
                let says = Some(if expected.is_some() { later } else { at_once });
                let _ = reply.send(Some(Told { broadcast: says, presence: says, by_facts: true }));
            }
        }
    }));
    let (config, metrics) = (AuthorityConfig::default(), Arc::new(Metrics::new()));
    let pool = database.config("plain_relay").pool().expect("a pool");
    (Authority::new(pool, HubHandle::new(commands), config, metrics.clone()), metrics)
}

#[tokio::test]
async fn memory_that_lags_neither_turns_anybody_away_nor_is_followed() {
    let database =
        database("create policy open on realtime.messages for select to authenticated using (topic = 'open');").await;
    let (open, closed) = (user("open", ALICE), user("closed", ALICE));
    // At once, later; which topic; what comes of it, whether it is followed, and whether Postgres was asked.
    for (at_once, later, asking, allowed, followed, asked) in [
        (true, true, &open, true, true, false),
        (false, true, &open, true, true, true),
        (false, false, &open, true, false, true),
        (false, false, &closed, false, true, true),
    ] {
        let (authority, metrics) = remembering(&database, at_once, later);
        let case = format!("{at_once} {later} {}", asking.topic);
        let read = authority.read(asking, false).await.expect("an answer");
        assert_eq!((read.broadcast, read.presence), (allowed, None), "{case}");
        assert_eq!(read.basis == Basis::Followed, followed, "{case}");
        let both = authority.read(asking, true).await.expect("an answer");
        assert_eq!(
            (both.broadcast, both.presence, both.basis == Basis::Followed),
            (allowed, Some(allowed), followed),
            "{case}"
        );
        let probes = ["allowed", "denied"].map(|told| metrics.authz_probes.get_or_create(&[("outcome", told)]).get());
        assert_eq!(probes.iter().sum::<u64>(), if asked { 2 } else { 0 }, "{case}");
    }
}
