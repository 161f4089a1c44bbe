//! The event triggers of migration 7: whose DDL they tell of, that they hurt nobody, and who makes and removes them.

use rowcast::migrate;
use tokio_postgres::Client;

use crate::support::TestPg;

/// A slot that hears of hints, and a role that is nobody.
async fn watched(pg: &TestPg) -> (Client, Client) {
    pg.exec("create publication watched; create role plain login; grant all on schema public to plain").await;
    pg.exec("select pg_create_logical_replication_slot('hints', 'pgoutput')").await;
    (pg.client().await, pg.client_as("plain").await)
}

/// How many hints came since the last look.
async fn hints(client: &Client) -> i64 {
    let sql = "select count(*) from pg_logical_slot_get_binary_changes('hints', null, null, 'proto_version', '1', \
               'publication_names', 'watched', 'messages', 'true') where position('rowcast.rules'::bytea in data) > 0";
    client.query_one(sql, &[]).await.expect("the slot is read").get(0)
}

async fn triggers(client: &Client) -> i64 {
    let sql = "select count(*) from pg_event_trigger where evtname like 'rowcast%'";
    client.query_one(sql, &[]).await.expect("a row").get(0)
}

#[tokio::test]
async fn anybodys_change_of_rules_is_told_once_it_commits() {
    let pg = TestPg::start().await;
    let (admin, plain) = watched(&pg).await;
    // The first five are those that the stream does not tell of by itself.
    for sql in [
        "create function allowed() returns bool language sql as 'select true'",
        "create or replace function allowed() returns bool language sql as 'select false'",
        "revoke execute on function allowed() from public",
        "create schema plain authorization plain; drop schema plain",
        "drop function allowed()",
        "create table t (id int primary key); alter table t enable row level security",
        "create policy one on t using (true)",
        "alter policy one on t using (false)",
        "drop policy one on t",
        "grant select on t to public",
        "revoke select (id) on t from public",
        "begin; grant select on t to public; commit",
        "drop table t",
    ] {
        if sql.starts_with("create schema") {
            admin.batch_execute(sql).await.expect(sql);
        } else {
            plain.batch_execute(sql).await.expect(sql);
        }
        assert!(hints(&admin).await > 0, "{sql}");
    }
    let silent = [
        "begin; create function gone() returns bool language sql as 'select true'; rollback",
        "create temp table scratch (id int); alter table scratch add b int; drop table scratch",
        "create table quiet (id int primary key)",
        "create index on quiet (id); analyze quiet; comment on table quiet is 'x'",
    ];
    for sql in silent {
        plain.batch_execute(sql).await.expect(sql);
        assert_eq!(hints(&admin).await, 0, "{sql}");
    }
    admin
        .batch_execute("set session_replication_role = replica; alter table quiet owner to postgres")
        .await
        .expect("done");
    assert_eq!(hints(&admin).await, 1, "also where triggers are silenced");
}

#[tokio::test]
async fn nobodys_ddl_fails_for_a_hint_that_cannot_be_given() {
    let pg = TestPg::start().await;
    let (admin, plain) = watched(&pg).await;
    // Even where an administrator took the right from everybody.
    let revoke = "revoke execute on all functions in schema pg_catalog from public; \
                  alter function rowcast.hint_rules() owner to plain; alter function rowcast.hint_rules() security invoker";
    admin.batch_execute(revoke).await.expect("revoked");
    hints(&admin).await;
    plain.batch_execute("create table t (id int); alter table t add b int; drop table t").await.expect("it works");
    assert_eq!(hints(&admin).await, 0);
    assert_eq!(triggers(&admin).await, 2);
}

#[tokio::test]
async fn who_may_not_make_them_does_without_until_a_superuser_does() {
    let pg = TestPg::bare().await;
    pg.exec("create role clerk login createrole; grant create on database postgres to clerk; create role service_role nologin bypassrls").await;
    if pg.major() >= 16 {
        pg.exec("grant service_role to clerk with admin option").await;
    }
    let mut clerk = pg.client_as("clerk").await;
    for _ in 0..2 {
        let report = migrate::up(&mut clerk).await.expect("up");
        assert_eq!(report.left_out, [(7, "rule_hints")], "{report}");
        assert!(report.to_string().contains("only a superuser"), "{report}");
    }
    let applied = migrate::status(&clerk).await.expect("status");
    assert!(applied.iter().all(|step| step.applied_at.is_some() == (step.version != 7)), "{applied:?}");
    let mut admin = pg.client().await;
    assert_eq!(triggers(&admin).await, 0);

    let report = migrate::up(&mut admin).await.expect("up");
    assert_eq!((report.steps, report.left_out), (vec![(7, "rule_hints")], vec![]));
    assert!(report.made.contains(&"event trigger rowcast_rules_dropped".to_owned()), "{:?}", report.made);
    assert_eq!(triggers(&admin).await, 2);

    // Removed by hand, they are made again; disabled, they are somebody's wish.
    admin.batch_execute("drop event trigger rowcast_rules_changed").await.expect("dropped");
    let report = migrate::up(&mut admin).await.expect("up");
    assert_eq!((report.steps, triggers(&admin).await), (vec![(7, "rule_hints")], 2));
    assert_eq!(migrate::up(&mut admin).await.expect("up").to_string(), "nothing to do\n");
    admin.batch_execute("alter event trigger rowcast_rules_changed disable").await.expect("disabled");
    let report = migrate::up(&mut admin).await.expect("up");
    assert_eq!((report.steps, report.left_out), (vec![], vec![(7, "rule_hints")]));
    admin.batch_execute("alter event trigger rowcast_rules_changed enable always").await.expect("enabled");

    // Only their owner removes them; they stay ours.
    let report = migrate::down(&mut clerk, Some(6)).await.expect("down");
    assert!(report.kept.iter().any(|line| line.starts_with("event trigger rowcast_rules_changed:")), "{report}");
    assert_eq!(triggers(&admin).await, 2);
    migrate::up(&mut clerk).await.expect("up");
    let report = migrate::down(&mut admin, None).await.expect("down");
    // From 16 on, what the clerk was granted for having made a role depends on him.
    let clerks = |line: &String| pg.major() >= 16 && line.starts_with("membership ");
    assert!(report.kept.iter().all(clerks), "{report}");
    assert_eq!(triggers(&admin).await, 0);
}

#[tokio::test]
async fn what_has_their_names_and_is_not_ours_is_left_alone() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    let theirs = "create function theirs() returns event_trigger language plpgsql as 'begin end'; \
                  create event trigger rowcast_rules_dropped on sql_drop execute function theirs()";
    client.batch_execute(theirs).await.expect("made");
    let report = migrate::up(&mut client).await.expect("up");
    assert_eq!(report.left_out, [(7, "rule_hints")]);
    assert_eq!(triggers(&client).await, 1, "nothing is half made");
    migrate::down(&mut client, None).await.expect("down");
    assert_eq!(triggers(&client).await, 1);
    client.batch_execute("drop event trigger rowcast_rules_dropped").await.expect("dropped");

    // Whoever owns the function decides what everybody's DDL runs.
    pg.exec("create role clerk login; grant create on database postgres to clerk").await;
    let mut clerk = pg.client_as("clerk").await;
    migrate::ensure_own(&mut clerk).await.expect("own");
    let trap =
        "create function rowcast.hint_rules() returns event_trigger language plpgsql as 'begin raise ''trap''; end'";
    clerk.batch_execute(trap).await.expect("made");
    let report = migrate::up(&mut client).await.expect("up");
    assert_eq!(report.left_out, [(7, "rule_hints")]);
    assert_eq!(triggers(&client).await, 0);
}
