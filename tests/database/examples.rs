//! The example tables: who may read and write, and that running them twice changes nothing.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Transaction};

use crate::support::TestPg;

const SESSION_EVENTS: &str = include_str!("../../sql/examples/session_events.sql");
const NOTIFICATIONS: &str = include_str!("../../sql/examples/notifications.sql");
const ALICE: &str = "a11ce000-0000-4000-8000-000000000001";
const BOB: &str = "b0b00000-0000-4000-8000-000000000001";

async fn with_examples() -> (TestPg, Client) {
    let pg = TestPg::start().await;
    let client = pg.client().await;
    for script in [SESSION_EVENTS, NOTIFICATIONS] {
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
    for script in [SESSION_EVENTS, NOTIFICATIONS] {
        client.batch_execute(script).await.expect("the second run");
    }
    let sql = "select string_agg(tablename, ' ' order by tablename) from pg_publication_tables \
               where pubname = 'supabase_realtime'";
    let published: String = client.query_one(sql, &[]).await.expect("a row").get(0);
    assert_eq!(published, "notifications session_events");
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
