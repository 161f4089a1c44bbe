//! Which changes of rules the stream tells of in order, before the next row that they could concern.
//!
//! Postgres describes a table again (a Relation message) before the next row after anything that invalidates what the
//! walsender has cached of *that table*: nobody can forge or forget it, and it needs no event trigger. So covered without
//! the hints of migration 7, by the tests here: its policies, grants, owner, columns and publications.
//!
//! Not covered by it, as the tests show too:
//! * roles: membership, BYPASSRLS, new and dropped ones. They are shared objects, which make no hint either: polling only;
//! * functions that a policy calls, and schemas (USAGE): by the hints, else by polling;
//! * other tables that a policy looks into: they are described before *their* next row, not before this table's;
//! * a partitioned table that is published as its root: only its leaves' changes are told. Its own, which are those that
//!   count, come by the hints, else by polling.

use super::*;

/// A table with a policy that calls a function; the stream has seen a row of it already.
async fn with_rules() -> (TestServer, Stream) {
    let server = TestServer::start().await;
    let ddl = "create role reader; create role other; create table t (id serial primary key, b text); \
               create table inner_table (id int primary key); \
               create function allowed() returns bool language sql as 'select true'; \
               create policy first on t using (allowed()); create publication p for table t, inner_table";
    server.sql(ddl).await;
    let config = wal_config(&server, &["p"]);
    let mut stream = stream(&server, &config).await;
    server.sql("insert into t (b) values ('first')").await;
    assert!(transaction(&mut stream).await.rules_changed, "the first of a session, whatever happened before");
    (server, stream)
}

/// Whether the row that is written right after `sql`, in a transaction of its own, is marked.
async fn marked_after(server: &TestServer, stream: &mut Stream, sql: &str) -> bool {
    server.sql(sql).await;
    server.sql("insert into t (b) values ('next')").await;
    let next = transaction(stream).await;
    assert!(next.items == 1 && show(&next)[0].contains(",next"), "{:?} after {sql}", show(&next));
    server.sql("insert into t (b) values ('later')").await;
    assert!(!transaction(stream).await.rules_changed, "the second row after {sql}");
    next.rules_changed
}

#[tokio::test]
async fn what_belongs_to_the_table_is_told_before_its_next_row() {
    let (server, mut stream) = with_rules().await;
    for sql in [
        "grant select on t to reader",
        "revoke select on t from reader",
        "grant select (b) on t to reader",
        "revoke select (b) on t from reader",
        "create policy one on t using (true)",
        "alter policy one on t using (false)",
        "alter policy one on t to reader",
        "alter policy one on t rename to two",
        "drop policy two on t",
        "alter table t enable row level security",
        "alter table t force row level security",
        "alter table t disable row level security",
        "alter table t owner to other",
        "alter table t add c int",
        "alter table t replica identity full",
        "alter table t set (fillfactor = 90)",
        "alter publication p set (publish = 'insert, update')",
        "create publication q for table t",
        // No rule, but Postgres can't tell.
        "analyze t",
    ] {
        assert!(marked_after(&server, &mut stream, sql).await, "{sql}");
    }
    // What else is in its publication: from 18 on only the tables concerned are told of.
    for sql in ["alter publication p drop table inner_table", "alter publication p add table inner_table"] {
        assert_eq!(marked_after(&server, &mut stream, sql).await, server.major().await < 18, "{sql}");
    }
}

#[tokio::test]
async fn what_does_not_belong_to_the_table_is_not_told() {
    let (server, mut stream) = with_rules().await;
    for sql in [
        "grant reader to other",
        "revoke reader from other",
        "alter role reader bypassrls",
        "create or replace function allowed() returns bool language sql as 'select false'",
        "alter function allowed() owner to other",
        "revoke execute on function allowed() from public",
        "create policy inside on inner_table using (true)",
        "grant select on inner_table to reader",
        "begin; create policy one on t using (true); rollback",
    ] {
        assert!(!marked_after(&server, &mut stream, sql).await, "{sql}");
    }
    let schema = "revoke usage on schema public from public";
    assert_eq!(marked_after(&server, &mut stream, schema).await, server.major().await >= 16, "{schema}");
}

#[tokio::test]
async fn a_partitioned_table_that_comes_as_its_root_tells_of_its_leaves_only() {
    let server = TestServer::start().await;
    let ddl = "create role reader; create table t (id serial, b text) partition by range (id); \
               create table t1 partition of t for values from (0) to (1000); \
               create publication p for table t with (publish_via_partition_root = true)";
    server.sql(ddl).await;
    let config = wal_config(&server, &["p"]);
    let mut stream = stream(&server, &config).await;
    server.sql("insert into t (b) values ('first')").await;
    assert!(transaction(&mut stream).await.rules_changed);
    for sql in ["grant select on t to reader", "create policy one on t using (true)"] {
        assert!(!marked_after(&server, &mut stream, sql).await, "{sql}");
    }
    assert!(marked_after(&server, &mut stream, "grant select on t1 to reader").await);
}

#[tokio::test]
async fn a_change_within_a_transaction_or_beside_it_marks_the_one_that_commits_later() {
    let (server, mut stream) = with_rules().await;
    server.sql("begin; insert into t (b) values ('a'); grant select on t to reader; insert into t (b) values ('b'); commit").await;
    assert!(transaction(&mut stream).await.rules_changed);
    let writer = server.client().await;
    writer.batch_execute("begin; insert into inner_table values (1)").await.expect("written");
    server.sql("revoke select on t from reader; insert into t (b) values ('c')").await;
    writer.batch_execute("insert into t (b) values ('d'); commit").await.expect("committed");
    let (revoked, later) = (transaction(&mut stream).await, transaction(&mut stream).await);
    assert_eq!((show(&revoked).len(), show(&later).len()), (1, 2));
    assert!(revoked.rules_changed, "its row is judged without the grant");
    // The first row of `inner_table` in this session.
    assert!(later.rules_changed);
}

#[tokio::test]
async fn the_hint_marks_its_transaction_and_a_rolled_back_or_loose_one_does_not() {
    let (server, mut stream) = with_rules().await;
    server.sql("begin; select pg_logical_emit_message(true, 'rowcast.rules', ''); rollback").await;
    server.sql("select pg_logical_emit_message(false, 'rowcast.rules', '')").await;
    server.sql("insert into t (b) values ('a')").await;
    assert!(!transaction(&mut stream).await.rules_changed);
    server.sql("select pg_logical_emit_message(true, 'rowcast.rules', '')").await;
    let hint = transaction(&mut stream).await;
    assert_eq!((show(&hint), hint.rules_changed), (vec!["M rowcast.rules ".to_owned()], true));
    server.sql("insert into t (b) values ('b')").await;
    assert!(!transaction(&mut stream).await.rules_changed);
}

#[tokio::test]
async fn every_session_marks_the_first_row_of_a_table() {
    let (server, stream) = with_rules().await;
    let config = wal_config(&server, &["p"]);
    drop(stream);
    let mut stream = loop {
        // The server frees the slot when it notices.
        if let Ok(stream) = connect(&config, Lsn::ZERO).await {
            break stream;
        }
    };
    server.sql("insert into t (b) values ('again')").await;
    while !show(&*transaction(&mut stream).await)[0].ends_with(",again]") {}
    server.sql("insert into inner_table values (7)").await;
    assert!(transaction(&mut stream).await.rules_changed);
    server.sql("insert into inner_table values (8)").await;
    assert!(!transaction(&mut stream).await.rules_changed);
}
