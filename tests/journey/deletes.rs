//! Deletes are judged by the old row, with the rights from before the transaction; what can't be judged is denied and counted.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ALICES_SESSION, BOBS_SESSION, Scene, database, event, mark, watching};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, RelayProcess, Version, summary};

/// A child of the sessions that carries its owner itself.
const NOTES: &str = "
    create table public.session_notes (
        id         bigint generated always as identity primary key,
        session_id uuid not null references public.coding_sessions (id) on delete cascade,
        user_id    uuid not null,
        note       text not null);
    alter table public.session_notes replica identity full;
    alter table public.session_notes enable row level security;
    create policy own on public.session_notes for select to authenticated using (user_id = auth.uid());
    grant select on public.session_notes to authenticated;
    alter publication supabase_realtime add table public.session_notes;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cascade_the_owner_receives_each_delete() {
    let scene = Scene::with(NOTES).await;
    for (session, user) in [(ALICES_SESSION, ALICE), (BOBS_SESSION, BOB)] {
        for note in ["one", "two", "three"] {
            scene
                .exec(&format!(
                    "insert into session_notes (session_id, user_id, note) values ('{session}', '{user}', '{note}')"
                ))
                .await;
        }
    }
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    let mut bob = scene.relay.phone(&token::user(BOB)).await;
    alice.subscribe("room", &watching(&["session_notes"])).await;
    bob.subscribe("room", &watching(&["session_notes"])).await;
    // A subscription may begin a little before it was asked for.
    scene.mark("begin").await;
    alice.changes_before("begin").await;
    bob.changes_before("begin").await;
    scene.exec(&format!("delete from coding_sessions where id = '{ALICES_SESSION}'")).await;
    scene.mark("end").await;
    let mut received = summary(&alice.changes_before("end").await, "note");
    received.sort_unstable();
    assert_eq!(received, ["DELETE one", "DELETE three", "DELETE two"]);
    bob.expect_nothing_before("end").await;
}

/// Before the transaction the session was hers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cascade_under_a_policy_that_looks_at_the_parent_the_deletes_reach_the_owner() {
    let scene = Scene::start().await;
    for kind in ["one", "two"] {
        scene.exec(&event(ALICES_SESSION, kind)).await;
    }
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    let mut bob = scene.relay.phone(&token::user(BOB)).await;
    alice.subscribe("room", &watching(&["session_events"])).await;
    bob.subscribe("room", &watching(&["session_events"])).await;
    scene.mark("begin").await;
    alice.changes_before("begin").await;
    bob.changes_before("begin").await;
    scene.exec(&format!("delete from coding_sessions where id = '{ALICES_SESSION}'")).await;
    scene.mark("end").await;
    let mut received = summary(&alice.changes_before("end").await, "event_type");
    received.sort_unstable();
    assert_eq!(received, ["DELETE one", "DELETE two"]);
    bob.expect_nothing_before("end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cascade_under_a_policy_that_postgres_is_asked_about_nothing_is_sent_and_the_denial_is_counted() {
    let scene = Scene::with(
        "alter policy \"users see events of their own sessions\" on public.session_events using (
            now() is not null and session_id in (select id from public.coding_sessions where user_id = auth.uid()))",
    )
    .await;
    for kind in ["one", "two"] {
        scene.exec(&event(ALICES_SESSION, kind)).await;
    }
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    alice.subscribe("room", &watching(&["session_events"])).await;
    scene.mark("begin").await;
    alice.changes_before("begin").await;
    let denied = async || scene.relay.metric("rowcast_denials_total", "reason=\"policy\"").await;
    let before = denied().await;
    // The session is gone when Postgres is asked, so nobody can be shown to have owned it.
    scene.exec(&format!("delete from coding_sessions where id = '{ALICES_SESSION}'")).await;
    scene.mark("end").await;
    alice.expect_nothing_before("end").await;
    assert!(denied().await >= before + 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_without_the_column_that_the_policy_reads_is_denied_and_counted() {
    let thin = "create table public.thin (id int primary key, user_id uuid not null);
        alter table public.thin enable row level security;
        create policy own on public.thin for select to authenticated using (user_id = auth.uid());
        grant select on public.thin to authenticated;
        alter publication supabase_realtime add table public.thin;";
    let scene = Scene::with(thin).await;
    let mut alice = scene.relay.phone(&token::user(ALICE)).await;
    alice.subscribe("room", &watching(&["thin"])).await;
    let denied = async || scene.relay.metric("rowcast_denials_total", "reason=\"missing_evidence\"").await;
    let before = denied().await;
    scene.exec(&format!("insert into thin values (1, '{ALICE}')")).await;
    scene.exec("update thin set id = 2").await;
    scene.exec("delete from thin").await;
    scene.mark("end").await;
    let changes = alice.changes_before("end").await;
    assert_eq!(summary(&changes, "id"), ["INSERT 1", "UPDATE 2"]);
    assert_eq!(changes[1].old_record(), &json!({ "id": 1 }));
    assert!(denied().await > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_row_level_security_a_delete_carries_the_identity() {
    let open = "create table public.open (id int primary key, note text);
        grant select on public.open to authenticated, anon;
        alter publication supabase_realtime add table public.open;";
    let scene = Scene::with(open).await;
    let mut anybody = scene.relay.phone(&token::role("anon")).await;
    anybody.subscribe("room", &watching(&["open"])).await;
    scene.exec("insert into open values (1, 'n')").await;
    scene.exec("delete from open").await;
    assert_eq!(anybody.next_change().await.record(), &json!({ "id": 1, "note": "n" }));
    let change = anybody.next_change().await;
    assert_eq!((change.kind(), change.old_record(), change.data.get("record")), ("DELETE", &json!({ "id": 1 }), None));
}

/// Nothing comes by itself that would show that the stream has passed what was read of the tables that policies look into.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_delete_that_the_relay_missed_in_a_quiet_database_is_a_gap_for_nobody() {
    let pg = database("").await;
    pg.exec(&event(ALICES_SESSION, "one")).await;
    let mut relay = RelayProcess::start(&pg).await;
    let since = |place: &Value| {
        let mut entries = watching(&["session_events"]);
        entries.as_array_mut().expect("a list").iter_mut().for_each(|entry| entry["since"] = place.clone());
        entries
    };
    let mut bob = Phone::connect(&relay.base(), &token::user(BOB), Version::V2).await;
    let place = bob.join("room", &since(&Value::Null)).await["response"]["cursor"].clone();
    assert!(place.is_string(), "{place}");
    bob.subscribed("room").await;
    assert!(relay.stop().await.success(), "{}", relay.log());
    pg.exec("delete from session_events").await;
    let client = pg.client().await;
    client.query("select pg_create_logical_replication_slot('watch', 'pgoutput')", &[]).await.expect("a slot");
    let sent = async |prefix: &str| {
        let sql =
            "select count(*) > 0 from pg_logical_slot_peek_binary_changes('watch', null, null, 'proto_version', '1',
                   'publication_names', 'supabase_realtime', 'messages', 'true') where encode(data, 'escape') like $1";
        client.query_one(sql, &[&format!("%{prefix}%")]).await.expect("what was sent").get::<_, bool>(0)
    };
    let deadline = Instant::now() + PATIENCE;
    relay.start_again().await;
    // What a relay writes when it starts.
    while !sent("rowcast.lineage").await {
        assert!(Instant::now() < deadline, "nothing is sent through the stream: {}", relay.log());
        pause().await;
    }
    let mut bob = Phone::connect(&relay.base(), &token::user(BOB), Version::V2).await;
    bob.subscribe("room", &since(&place)).await;
    // Until then nobody can know; and if nothing were sent, he would be told of a gap.
    let mut frames = Vec::new();
    while !sent("rowcast.heartbeat").await {
        frames.extend(bob.frames_so_far().await);
        assert!(!frames.iter().any(|frame| frame.event == "system"), "{frames:#?}");
        assert!(Instant::now() < deadline, "nothing is sent through the stream: {}", relay.log());
        pause().await;
    }
    // Whatever he is still owed is told before the next row that has a cursor.
    mark(&pg, "end").await;
    while !bob.next_change().await.data["cursor"].is_string() {
        mark(&pg, "end").await;
    }
    frames.extend(bob.frames_so_far().await);
    assert!(!frames.iter().any(|frame| frame.event == "system"), "{frames:#?}");
}
