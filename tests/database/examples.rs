//! The example tables: who may read and write, and that running them twice changes nothing.

use rowcast::config::Config;
use serde_json::json;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use crate::support::{Relay, TestPg, summary, token};

const SESSION_EVENTS: &str = include_str!("../../sql/examples/session_events.sql");
const NOTIFICATIONS: &str = include_str!("../../sql/examples/notifications.sql");
const TEAMS: &str = include_str!("../../sql/examples/teams.sql");
const ALL: [&str; 3] = [SESSION_EVENTS, NOTIFICATIONS, TEAMS];
const ALICE: &str = "a11ce000-0000-4000-8000-000000000001";
const BOB: &str = "b0b00000-0000-4000-8000-000000000001";

async fn with_examples() -> (TestPg, Client) {
    let pg = TestPg::start().await;
    let client = pg.client().await;
    for script in ALL {
        client.batch_execute(script).await.expect("the example runs");
    }
    (pg, client)
}

/// A transaction of this user, as the relay would judge for him.
async fn acting<'a>(client: &'a mut Client, role: &str, subject: &str) -> Transaction<'a> {
    let transaction = client.transaction().await.expect("a transaction");
    let claims = match subject {
        "" => format!(r#"{{"role":"{role}"}}"#),
        subject => format!(r#"{{"role":"{role}","sub":"{subject}"}}"#),
    };
    rowcast::pg::assume(&transaction, role, subject, &claims).await.expect("the role can be assumed");
    transaction
}

/// One session of each user, with one event, and one notification.
async fn fill(client: &Client) {
    for (user, name) in [(ALICE, "alice"), (BOB, "bob")] {
        let sql = format!(
            "with s as (insert into public.coding_sessions (user_id, title) values ('{user}', '{name}') returning id) \
             insert into public.session_events (session_id, event_type) select id, '{name}' from s; \
             insert into public.notifications (user_id, kind) values ('{user}', '{name}')"
        );
        client.batch_execute(&sql).await.expect("rows");
    }
}

#[tokio::test]
async fn examples_can_be_run_twice() {
    let (_pg, client) = with_examples().await;
    fill(&client).await;
    for script in ALL {
        client.batch_execute(script).await.expect("the second run");
    }
    let sql = "select string_agg(tablename, ' ' order by tablename) from pg_publication_tables \
               where pubname = 'supabase_realtime'";
    let published: String = client.query_one(sql, &[]).await.expect("a row").get(0);
    assert_eq!(published, "notifications posts session_events");
    let kept: i64 = client.query_one("select count(*) from session_events", &[]).await.expect("a row").get(0);
    assert_eq!(kept, 2);
}

#[tokio::test]
async fn each_user_reads_only_rows_of_his_own() {
    let (_pg, mut client) = with_examples().await;
    fill(&client).await;
    for (user, name) in [(ALICE, "alice"), (BOB, "bob"), (ALICE, "alice")] {
        let transaction = acting(&mut client, "authenticated", user).await;
        for sql in [
            "select event_type from public.session_events",
            "select title from public.coding_sessions",
            "select kind from public.notifications",
        ] {
            let rows = transaction.query(sql, &[]).await.expect("may read");
            let seen: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(seen, [name], "{sql}");
        }
    }
    // Somebody without a subject owns nothing; anon has no right at all.
    let transaction = acting(&mut client, "authenticated", "").await;
    let rows = transaction.query("select 1 from public.session_events", &[]).await.expect("may read");
    assert!(rows.is_empty());
    drop(transaction);
    let transaction = acting(&mut client, "anon", "").await;
    let error = transaction.query("select 1 from public.session_events", &[]).await.expect_err("no right");
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
}

#[tokio::test]
async fn users_cannot_write_and_the_backend_can() {
    let (_pg, mut client) = with_examples().await;
    fill(&client).await;
    let writes = [
        "insert into public.session_events (session_id, event_type) select id, 'forged' from public.coding_sessions limit 1",
        "insert into public.notifications (user_id, kind) values ('a11ce000-0000-4000-8000-000000000001', 'forged')",
        "update public.session_events set event_type = 'forged'",
        "delete from public.notifications",
    ];
    for sql in writes {
        let transaction = acting(&mut client, "authenticated", ALICE).await;
        let error = transaction.batch_execute(sql).await.expect_err(sql);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{sql}");
        drop(transaction);
        let transaction = acting(&mut client, "service_role", "").await;
        transaction.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        transaction.rollback().await.expect("a rollback");
    }
}

#[tokio::test]
async fn deleting_a_session_deletes_its_events_and_carries_the_whole_old_row() {
    let (_pg, client) = with_examples().await;
    fill(&client).await;
    let sql =
        "select relreplident::text from pg_class where oid in ('session_events'::regclass, 'notifications'::regclass)";
    for row in client.query(sql, &[]).await.expect("rows") {
        assert_eq!(row.get::<_, &str>(0), "f");
    }
    let sql = format!("delete from coding_sessions where user_id = '{ALICE}'");
    client.batch_execute(&sql).await.expect("a cascade");
    let left: i64 = client.query_one("select count(*) from session_events", &[]).await.expect("a row").get(0);
    assert_eq!(left, 1);
}

/// Two teams: alice is a member of the first, bob a guest of it and the owner of the second.
const RED: &str = "7ea00000-0000-4000-8000-000000000001";
const BLUE: &str = "7ea00000-0000-4000-8000-000000000002";

fn teams() -> String {
    format!(
        "insert into public.teams (id, name) values ('{RED}', 'red'), ('{BLUE}', 'blue');
         insert into public.members (team_id, user_id, role)
             values ('{RED}', '{ALICE}', 'member'), ('{RED}', '{BOB}', 'guest'), ('{BLUE}', '{BOB}', 'owner');"
    )
}

fn post(team: &str, body: &str) -> String {
    format!("insert into public.posts (team_id, body) values ('{team}', '{body}');")
}

fn internal(team: &str, body: &str) -> String {
    format!("insert into public.posts (team_id, body, internal) values ('{team}', '{body}', true);")
}

#[tokio::test]
async fn members_read_the_posts_of_their_teams_and_guests_none_that_are_internal() {
    let (_pg, mut client) = with_examples().await;
    let posts =
        [post(RED, "red"), internal(RED, "red, internal"), post(BLUE, "blue"), internal(BLUE, "blue, internal")];
    client.batch_execute(&format!("{} {}", teams(), posts.join(" "))).await.expect("rows");
    for (user, names, bodies) in [
        (ALICE, vec!["red"], vec!["red", "red, internal"]),
        (BOB, vec!["blue", "red"], vec!["blue", "blue, internal", "red"]),
        (RED, vec![], vec![]),
    ] {
        let transaction = acting(&mut client, "authenticated", user).await;
        for (sql, wanted) in [
            ("select name from public.teams order by name", names),
            ("select body from public.posts order by body", bodies),
        ] {
            let rows = transaction.query(sql, &[]).await.expect("may read");
            let seen: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
            assert_eq!(seen, wanted, "{sql} of {user}");
        }
    }
    let transaction = acting(&mut client, "anon", "").await;
    let error = transaction.query("select 1 from public.posts", &[]).await.expect_err("no right");
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));
}

/// With a real relay: who comes, who goes, and a team that is deleted with all that is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn posts_reach_the_members_of_their_team_and_postgres_is_not_asked() {
    let pg = TestPg::start().await;
    pg.exec(TEAMS).await;
    pg.exec(&teams()).await;
    pg.exec(
        "create table public.marks (id bigint generated always as identity primary key, note text not null);
         grant select on public.marks to authenticated; alter publication supabase_realtime add table public.marks",
    )
    .await;
    let relay = Relay::start(&pg).await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "posts" },
        { "event": "*", "schema": "public", "table": "marks" },
    ]);
    let mut phones = Vec::new();
    for user in [ALICE, BOB] {
        let mut phone = relay.phone(&token::user(user)).await;
        phone.subscribe("room", &entries).await;
        phones.push(phone);
    }
    for sql in [
        post(RED, "red"),
        internal(RED, "red, internal"),
        post(BLUE, "blue"),
        format!("update public.members set role = 'member' where user_id = '{BOB}' and team_id = '{RED}'"),
        internal(RED, "bob is no guest"),
        format!("delete from public.members where user_id = '{ALICE}'"),
        post(RED, "alice has left"),
        format!("insert into public.members (team_id, user_id) values ('{BLUE}', '{ALICE}')"),
        format!("delete from public.teams where id = '{BLUE}'"),
        "insert into public.marks (note) values ('end')".to_owned(),
    ] {
        pg.exec(&sql).await;
    }
    let mut received = Vec::new();
    for phone in &mut phones {
        received.push(summary(&phone.changes_before("end").await, "body"));
    }
    assert_eq!(received[0], ["INSERT red", "INSERT red, internal", "INSERT bob is no guest", "DELETE blue"]);
    assert_eq!(
        received[1],
        ["INSERT red", "INSERT blue", "INSERT bob is no guest", "INSERT alice has left", "DELETE blue"]
    );
    assert_eq!(relay.metric("rowcast_ask_seconds_count", "").await, 0.0, "Postgres was asked");
}

#[tokio::test]
async fn memory_judges_every_example() {
    let (pg, _client) = with_examples().await;
    let data = tempfile::tempdir().expect("a folder");
    let config = Config::new(&pg.url(), "a-secret-of-at-least-thirty-two-bytes", data.path()).expect("a configuration");
    for table in ["session_events", "notifications", "posts"] {
        let explained = rowcast::doctor::explain(&config, table, &["authenticated".to_owned()]).await;
        let [explained] = &explained.expect("it is published")[..] else { panic!("one role") };
        assert_eq!(explained.engine, "pure", "{table}: {}", explained.reason);
        assert!(explained.owner_column.is_some(), "{table}: its receivers are not found by what they own");
    }
}
