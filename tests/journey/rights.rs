//! Roles, grants and claims: two readers of one change each get what is theirs, whoever comes first.

use serde_json::{Value, json};

use super::{ALICES_SESSION, BOBS_SESSION, Scene, event, notify, watching};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Phone, summary};

/// A role that may read three columns of a user's notifications.
const CLERK: &str = "
    create role clerk nologin;
    grant usage on schema public to clerk;
    grant select (id, user_id, kind) on public.notifications to clerk;
    grant select on public.marks to clerk;
    create policy clerks on public.notifications for select to clerk using (user_id = auth.uid());";

async fn subscribed(scene: &Scene, token: &str, entries: &Value) -> Phone {
    let mut phone = scene.relay.phone(token).await;
    phone.subscribe("room", entries).await;
    phone
}

fn keys(value: &Value) -> Vec<String> {
    value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_is_shown_its_own_columns_of_one_change_whoever_comes_first() {
    let scene = Scene::with(CLERK).await;
    let entries = watching(&["notifications"]);
    let all = ["body", "created_at", "id", "kind", "read_at", "user_id"].map(str::to_owned).to_vec();
    let few = ["id", "kind", "user_id"].map(str::to_owned).to_vec();
    for clerk_first in [true, false] {
        let mut roles = [("clerk", &few), ("authenticated", &all)];
        if !clerk_first {
            roles.reverse();
        }
        let mut phones = Vec::new();
        for (role, columns) in roles {
            phones.push((role, columns, subscribed(&scene, &token::user_as(role, ALICE), &entries).await));
        }
        scene.exec(&notify(ALICE, "n")).await;
        scene.exec("update notifications set kind = 'm'").await;
        scene.exec("delete from notifications").await;
        for (role, columns, phone) in &mut phones {
            for (kind, new, old) in [("INSERT", true, false), ("UPDATE", true, true), ("DELETE", false, true)] {
                let change = phone.next_change().await;
                let expected = |present: bool| if present { columns.to_vec() } else { Vec::new() };
                assert_eq!(change.kind(), kind, "{role}");
                assert_eq!(keys(change.record()), expected(new), "{role} {kind}");
                assert_eq!(keys(change.old_record()), expected(old), "{role} {kind}");
                let columns = change.data["columns"].as_array().expect("columns");
                let mut named: Vec<String> =
                    columns.iter().map(|column| column["name"].as_str().expect("a name").to_owned()).collect();
                named.sort_unstable();
                assert_eq!(named, expected(true), "{role} {kind}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_whose_answers_from_postgres_differ_get_each_his_own_whoever_comes_first() {
    let scene = Scene::start().await;
    let entries = watching(&["session_events"]);
    for users in [[ALICE, BOB], [BOB, ALICE]] {
        let mut phones = Vec::new();
        for user in users {
            phones.push((user, subscribed(&scene, &token::user(user), &entries).await));
        }
        for (session, kind) in [(ALICES_SESSION, "a"), (BOBS_SESSION, "b"), (BOBS_SESSION, "b"), (ALICES_SESSION, "a")]
        {
            scene.exec(&event(session, kind)).await;
        }
        scene.mark("end").await;
        for (user, phone) in &mut phones {
            let own = if *user == ALICE { "INSERT a" } else { "INSERT b" };
            assert_eq!(summary(&phone.changes_before("end").await, "event_type"), [own, own], "{users:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_users_of_one_role_get_each_his_own() {
    let scene = Scene::start().await;
    let users: Vec<String> = (0..20).map(|n| format!("00000000-0000-4000-8000-0000000000{n:02}")).collect();
    let entries = watching(&["notifications", "session_events"]);
    let mut phones = Vec::new();
    for user in &users {
        scene.exec(&format!("insert into coding_sessions (id, user_id) values ('{user}', '{user}')")).await;
        phones.push(subscribed(&scene, &token::user(user), &entries).await);
    }
    for user in &users {
        scene.exec(&notify(user, user)).await;
        scene.exec(&event(user, user)).await;
    }
    scene.mark("end").await;
    for (user, phone) in users.iter().zip(&mut phones) {
        let changes = phone.changes_before("end").await;
        assert_eq!(changes.len(), 2, "{user}");
        assert_eq!((&changes[0].record()["kind"], &changes[1].record()["event_type"]), (&json!(user), &json!(user)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_bypasses_row_level_security_gets_everything_and_who_has_no_policy_gets_nothing() {
    // A role with a policy on neither table, although it may select.
    let guest = "create role \"Night-Guest\" nologin; grant usage on schema public to \"Night-Guest\";
        grant select on notifications, session_events, coding_sessions, marks to \"Night-Guest\";";
    let scene = Scene::with(guest).await;
    let entries = watching(&["notifications", "session_events"]);
    let mut service = subscribed(&scene, &token::role("service_role"), &entries).await;
    let mut guest = subscribed(&scene, &token::user_as("Night-Guest", ALICE), &entries).await;
    for sql in [notify(ALICE, "a"), notify(BOB, "b"), event(ALICES_SESSION, "a")] {
        scene.exec(&sql).await;
    }
    scene.mark("end").await;
    assert_eq!(service.changes_before("end").await.len(), 3);
    guest.expect_nothing_before("end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_row_level_security_goes_to_all_who_may_select_from_it() {
    let open = "create table public.open (id int primary key, note text);
        grant select on public.open to authenticated;
        alter publication supabase_realtime add table public.open;";
    let scene = Scene::with(open).await;
    let mut alice = subscribed(&scene, &token::user(ALICE), &watching(&["open"])).await;
    let mut bob = subscribed(&scene, &token::user(BOB), &watching(&["open"])).await;
    scene.exec("insert into open values (1, 'n')").await;
    for phone in [&mut alice, &mut bob] {
        assert_eq!(phone.next_change().await.record(), &json!({ "id": 1, "note": "n" }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_select_receives_nothing_and_so_does_an_unknown_role() {
    let scene = Scene::start().await;
    for role in ["anon", "nobody-of-that-name", "postgres"] {
        let mut phone = scene.relay.phone(&token::user_as(role, ALICE)).await;
        let reply = phone.join("room", &watching(&["notifications"])).await;
        assert_eq!(reply["status"], "ok", "{role}");
        let system = phone.system("room").await;
        let mut witness = subscribed(&scene, &token::user(ALICE), &watching(&["notifications"])).await;
        scene.exec(&notify(ALICE, "n")).await;
        scene.exec("update notifications set kind = 'm'").await;
        scene.exec("delete from notifications").await;
        scene.mark("end").await;
        assert_eq!(witness.changes_before("end").await.len(), 3);
        if system["status"] == "ok" && role == "anon" {
            // Anon may read the marks.
            phone.expect_nothing_before("end").await;
        } else {
            phone.heartbeat().await;
            assert_eq!(phone.changes_so_far(), [], "{role}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_read_the_key_receives_no_rows() {
    let blind = "create role blind nologin; grant usage on schema public to blind;
        grant select (user_id, kind) on public.notifications to blind; grant select on public.marks to blind;
        create policy blind on public.notifications for select to blind using (user_id = auth.uid());";
    let scene = Scene::with(blind).await;
    let mut phone = scene.relay.phone(&token::user_as("blind", ALICE)).await;
    let reply = phone.join("room", &watching(&["notifications"])).await;
    assert_eq!(reply["status"], "ok");
    phone.subscribed("room").await;
    scene.exec(&notify(ALICE, "n")).await;
    scene.exec("update notifications set kind = 'm'").await;
    scene.mark("end").await;
    phone.expect_nothing_before("end").await;
}
