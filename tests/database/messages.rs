//! Schema `realtime`: who may do what with it, what the functions send, how the partitions are cared for, what is replayed.

use std::time::Duration;

use rowcast::error::Fault as _;
use rowcast::messages::{self, ReplayError, Scope, Stored, StoredPayload, Tended, UpkeepError, tend};
use rowcast::migrate;
use rowcast::pg::{PgConfig, Pool};
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::support::TestPg;

/// What is replayed, in a turn of its own.
async fn replay(pool: &Pool, topic: &str, since: i64, limit: u32) -> Result<Vec<Stored>, ReplayError> {
    messages::replay(pool, messages::turn().await, topic, since, limit).await.map(|reading| reading.stored)
}

const KEPT: Duration = Duration::from_secs(72 * 3600);

async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(client: &Client, sql: &str) -> T {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{error:?}\n{sql}")).get(0)
}

/// The table as a fresh migration makes it; the template's was made when the template was.
async fn fresh() -> (TestPg, Client) {
    let pg = TestPg::start().await;
    let mut client = pg.client().await;
    tend(&mut client, Scope::Own, KEPT).await.expect("a round");
    (pg, client)
}

/// Names of the partitions, the default one last.
async fn partitions(client: &Client) -> Vec<String> {
    let sql = "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid \
               where i.inhparent = 'realtime.messages'::regclass order by 1";
    client.query(sql, &[]).await.expect("the partitions").iter().map(|row| row.get(0)).collect()
}

/// The name of the partition of the day that is so many days ahead.
async fn named(client: &Client, ahead: i32) -> String {
    let sql = format!("select to_char((now() at time zone 'utc')::date + {ahead}, '\"messages_\"YYYY_MM_DD')");
    value(client, &sql).await
}

/// What a day with its partition gone begins with.
async fn drop_day(client: &Client, ahead: i32) -> String {
    let name = named(client, ahead).await;
    client.batch_execute(&format!("drop table realtime.{name}")).await.expect("the day goes");
    name
}

async fn make_day(client: &Client, ahead: i32) -> String {
    let name = named(client, ahead).await;
    let sql = format!(
        "do $$ declare day date := (now() at time zone 'utc')::date + {ahead}; begin \
         execute format('create table realtime.{name} partition of realtime.messages for values from (%L) to (%L)', day, day + 1); end $$"
    );
    client.batch_execute(&sql).await.expect("the day is made");
    name
}

#[tokio::test]
async fn a_day_that_is_missing_is_made_and_one_that_is_over_is_dropped() {
    let (_pg, mut client) = fresh().await;
    let window = partitions(&client).await;
    assert_eq!(window.len(), 6, "yesterday to three days ahead, and the default one: {window:?}");
    let nothing = tend(&mut client, Scope::Own, KEPT).await.expect("a round");
    assert_eq!(nothing, Tended::default(), "all is as it should be");

    let missing = drop_day(&client, 2).await;
    let (old, young) = (make_day(&client, -5).await, make_day(&client, -2).await);
    client.batch_execute("create table realtime.messages_2001_01_01 (odd int); create table realtime.messages_old partition of realtime.messages for values from ('2001-01-01') to ('2001-01-02')").await.expect("others");
    let tended = tend(&mut client, Scope::Own, KEPT).await.expect("a round");
    assert_eq!((&tended.made, &tended.dropped), (&vec![missing], &vec![old]));
    let now = partitions(&client).await;
    assert!(now.contains(&young) && now.contains(&"messages_old".to_owned()), "not ours to drop: {now:?}");

    // However short the time: what would be made again is not dropped.
    let tended = tend(&mut client, Scope::Own, Duration::from_secs(3600)).await.expect("a round");
    assert_eq!(tended.dropped, [young]);
    assert_eq!(tended.made, Vec::<String>::new());
    let sql = "select bool_and(relrowsecurity and relowner = 'supabase_realtime_admin'::regrole \
               and not has_table_privilege('authenticated', oid, 'SELECT')) from pg_class \
               where relname ~ '^messages_(2|default)' and relkind = 'r' and relispartition and relname <> 'messages_old'";
    assert!(value::<bool>(&client, sql).await, "a partition can be reached past the table's policies");
}

/// The rows that the stream's reader has not seen yet, as text.
async fn streamed(client: &Client) -> Vec<String> {
    let sql = "select encode(data, 'escape') from pg_logical_slot_get_binary_changes('watch', null, null, 'proto_version', '1', \
               'publication_names', 'watched') where get_byte(data, 0) in (ascii('I'), ascii('U'), ascii('D'))";
    client.query(sql, &[]).await.expect("the stream").iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn rows_of_the_default_partition_move_to_their_day_without_being_sent_again() {
    let (_pg, mut client) = fresh().await;
    let publication = "create publication watched for table realtime.messages with (publish = 'insert', publish_via_partition_root = true)";
    client.batch_execute(publication).await.expect("a publication");
    client.batch_execute("select pg_create_logical_replication_slot('watch', 'pgoutput')").await.expect("a slot");
    let today = drop_day(&client, 0).await;
    client
        .batch_execute("select realtime.send('{}', 'first', 'room:1'), realtime.send('{}', 'second', 'room:1')")
        .await
        .expect("sent");
    let held: i64 = value(&client, "select count(*) from only realtime.messages_default").await;
    assert_eq!(held, 2, "an insert is never refused");
    assert_eq!(streamed(&client).await.len(), 2);

    let tended = tend(&mut client, Scope::Own, KEPT).await.expect("a round");
    assert_eq!((tended.made, tended.moved), (vec![today.clone()], 2));
    let sql = format!("select count(*) from realtime.{today}");
    assert_eq!(value::<i64>(&client, &sql).await, 2);
    client.batch_execute("select realtime.send('{}', 'third', 'room:1')").await.expect("sent");
    let sent = streamed(&client).await;
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert!(sent[0].contains("third"), "{sent:?}");
    let order: Vec<String> = client
        .query("select event from realtime.messages order by inserted_at, ctid", &[])
        .await
        .expect("rows")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(order, ["first", "second", "third"]);
}

#[tokio::test]
async fn a_day_with_too_many_rows_to_move_stays_in_the_default_partition_and_ages_there() {
    let (_pg, mut client) = fresh().await;
    let today = drop_day(&client, 0).await;
    let fill = "insert into realtime.messages (topic, extension, event, payload) select 'room:1', 'broadcast', 'e', '{}' from generate_series(1, 10001);
        insert into realtime.messages (topic, extension, event, payload, inserted_at) select 'room:1', 'broadcast', 'old', '{}', now() - interval '9 days' from generate_series(1, 6000)";
    client.batch_execute(fill).await.expect("rows");
    let tended = tend(&mut client, Scope::Own, KEPT).await.expect("a round");
    assert_eq!((tended.moved, tended.deleted), (0, 6000));
    assert!(tended.left.len() == 1 && tended.left[0].starts_with(&today), "{:?}", tended.left);
    assert_eq!(value::<i64>(&client, "select count(*) from realtime.messages").await, 10_001);
}

#[tokio::test]
async fn a_table_that_rowcast_did_not_make_only_gets_days_that_are_missing() {
    let (_pg, mut client) = fresh().await;
    client
        .batch_execute("delete from rowcast.installed where identity = 'realtime.messages'")
        .await
        .expect("forgotten");
    let old = make_day(&client, -6).await;
    let missing = drop_day(&client, 1).await;
    client.batch_execute("insert into realtime.messages (topic, extension, inserted_at) values ('t', 'broadcast', now() - interval '9 days')").await.expect("a row");
    assert_eq!(
        tend(&mut client, Scope::Nothing, KEPT).await.expect("a round"),
        Tended { absent: true, ..Tended::default() }
    );
    let tended = tend(&mut client, Scope::Own, KEPT).await.expect("a round");
    assert_eq!(tended, Tended { made: vec![missing], ..Tended::default() });
    let tended = tend(&mut client, Scope::All, KEPT).await.expect("a round");
    assert_eq!((tended.dropped, tended.deleted), (vec![old], 1));
}

#[tokio::test]
async fn several_at_once_take_turns_and_a_lock_held_by_others_is_given_up() {
    let (pg, mut first) = fresh().await;
    let (mut second, mut third) = (pg.client().await, pg.client().await);
    for ahead in [1, 2, 3] {
        drop_day(&first, ahead).await;
    }
    let (a, b, c) = tokio::join!(
        tend(&mut first, Scope::Own, KEPT),
        tend(&mut second, Scope::Own, KEPT),
        tend(&mut third, Scope::Own, KEPT)
    );
    let made: usize = [a, b, c].map(|tended| tended.expect("a round").made.len()).iter().sum();
    assert!((1..=3).contains(&made), "{made}");
    tend(&mut first, Scope::Own, KEPT).await.expect("what another was busy with");
    assert_eq!(partitions(&first).await.len(), 6);

    make_day(&first, -6).await;
    let holder = second.transaction().await.expect("a transaction");
    holder.batch_execute("select 1 from realtime.messages").await.expect("a reader");
    let error = tend(&mut first, Scope::Own, KEPT).await.expect_err("a reader is in the way");
    assert!(matches!(error, UpkeepError::Locked(_)), "{error:?}");
    holder.rollback().await.expect("gone");
    assert_eq!(tend(&mut first, Scope::Own, KEPT).await.expect("a round").dropped.len(), 1);
}

#[tokio::test]
async fn a_login_that_is_no_member_of_the_owner_is_told_what_to_do() {
    let (pg, client) = fresh().await;
    drop_day(&client, 1).await;
    client.batch_execute("create role relay login; grant usage on schema rowcast, realtime to relay; grant select on rowcast.installed, realtime.messages to relay").await.expect("a login");
    let mut relay = pg.client_as("relay").await;
    let error = tend(&mut relay, Scope::Own, KEPT).await.expect_err("no rights");
    assert!(error.advice().contains("grant supabase_realtime_admin to relay;"), "{}", error.advice());
    let pool = PgConfig::from_url(&pg.url_as("relay")).expect("a URL").pool().expect("a pool");
    let error = replay(&pool, "room:1", 0, 25).await.expect_err("policies apply");
    assert!(matches!(error, ReplayError::NotAllowed(_)), "{error:?}");
    client.batch_execute("grant supabase_realtime_admin to relay").await.expect("granted");
    assert_eq!(tend(&mut relay, Scope::Own, KEPT).await.expect("a round").made.len(), 1);
    assert_eq!(replay(&pool, "room:1", 0, 25).await.expect("an answer"), []);
}

#[tokio::test]
async fn an_admin_who_is_no_superuser_migrates_and_adds_policies() {
    let pg = TestPg::bare().await;
    pg.exec("create role owner login createrole createdb; grant create on database postgres to owner; create role service_role nologin bypassrls").await;
    if pg.major() >= 16 {
        pg.exec("grant service_role to owner with admin option").await;
    }
    let mut owner = pg.client_as("owner").await;
    let report = migrate::up(&mut owner).await.expect("up");
    assert!(report.made.contains(&"role supabase_realtime_admin".to_owned()), "{report}");
    tend(&mut owner, Scope::Own, KEPT).await.expect("a round");

    pg.exec("create role admin login; grant supabase_realtime_admin to admin").await;
    let mut admin = pg.client_as("admin").await;
    let policies = "create policy \"members read\" on realtime.messages for select to authenticated using (realtime.topic() = 'room:1');
        create policy \"members write\" on realtime.messages for insert to authenticated with check (realtime.topic() = 'room:1')";
    admin.batch_execute(policies).await.expect("a member of the owner may");
    for (topic, wanted) in [("room:1", 1_i64), ("room:2", 0)] {
        let transaction = owner.transaction().await.expect("a transaction");
        rowcast::pg::assume(&transaction, "authenticated", "x", r#"{"sub":"x"}"#).await.expect("a user");
        transaction
            .batch_execute(&format!("select realtime.send('{{}}', 'e', '{topic}')"))
            .await
            .expect("only a warning");
        let seen = transaction.query_one("select count(*) from realtime.messages where topic = realtime.topic()", &[]);
        assert_eq!(seen.await.expect("a row").get::<_, i64>(0), wanted, "{topic}");
    }
    let error = admin.batch_execute("select * from realtime.messages_default").await;
    assert!(error.is_ok(), "the owner's member may look");

    let report = migrate::down(&mut owner, Some(8)).await.expect("down");
    let table = report.kept.iter().find(|line| line.starts_with("table realtime.messages"));
    assert!(table.is_some_and(|line| line.contains("policy \"members read\"")), "{report}");
    assert!(report.kept.iter().any(|line| line.starts_with("role supabase_realtime_admin")), "{report}");
    assert_eq!(value::<i64>(&owner, "select count(*) from realtime.messages").await, 0);
    migrate::up(&mut owner).await.expect("and up again");
    let transaction = admin.transaction().await.expect("a transaction");
    transaction
        .batch_execute(
            "drop policy \"members read\" on realtime.messages; drop policy \"members write\" on realtime.messages",
        )
        .await
        .expect("dropped");
    transaction.commit().await.expect("committed");
    let report = migrate::down(&mut owner, Some(8)).await.expect("down");
    assert!(report.kept.is_empty(), "{report}");
    assert!(value::<bool>(&owner, "select to_regnamespace('realtime') is null").await);
}

#[tokio::test]
async fn a_function_that_a_trigger_calls_stays_and_so_does_a_published_table() {
    let (_pg, mut client) = fresh().await;
    let uses = "create table notes (id int primary key); create publication theirs for table realtime.messages;
        create function tell() returns trigger language plpgsql as $$ begin perform realtime.broadcast_changes('t', tg_op, tg_op, tg_table_name, tg_table_schema, new, old); return null; end $$;
        create trigger tell after insert on notes for each row execute function tell()";
    client.batch_execute(uses).await.expect("a trigger");
    let report = migrate::down(&mut client, Some(8)).await.expect("down");
    for (what, because) in
        [("function realtime.broadcast_changes", "tell()"), ("table realtime.messages", "publication theirs")]
    {
        let line = report.kept.iter().find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("{what}: {report}"));
        assert!(line.contains(because), "{line}");
    }
}

#[tokio::test]
async fn the_table_enters_the_streams_publication_where_that_is_there() {
    let (_pg, mut client) = fresh().await;
    migrate::down(&mut client, Some(8)).await.expect("down");
    client.batch_execute("drop publication if exists rowcast_messages; create publication rowcast_messages with (publish = 'insert', publish_via_partition_root = true)").await.expect("a publication");
    let published = "select coalesce(string_agg(schemaname || '.' || tablename, ' '), '') from pg_publication_tables where pubname = 'rowcast_messages'";
    migrate::up(&mut client).await.expect("up");
    assert_eq!(value::<String>(&client, published).await, "realtime.messages");
    migrate::down(&mut client, Some(8)).await.expect("down");
    assert_eq!(value::<String>(&client, published).await, "");
}

async fn sent(client: &Client) -> Vec<(String, String, Option<bool>, Value)> {
    let sql = "select topic, event, private, coalesce(payload::text, 'null') from realtime.messages order by inserted_at, ctid";
    let rows = client.query(sql, &[]).await.expect("rows");
    let parse = |text: &str| serde_json::from_str(text).expect("JSON");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), parse(row.get(3)))).collect()
}

/// Items 100, 101, 103 of `protocol.md` §13, as far as the database goes.
#[tokio::test]
async fn send_adds_the_rows_id_and_sets_the_topic_until_the_transaction_ends() {
    let (_pg, mut client) = fresh().await;
    // Whatever the session's zone and path: names in it are not found first.
    let trap = "set timezone = 'Pacific/Kiritimati'; create schema trap; create function trap.gen_random_uuid() returns uuid language sql as 'select null::uuid';
        create function trap.jsonb_set(jsonb, text[], jsonb) returns jsonb language sql as 'select null::jsonb'; create domain trap.uuid as int; create domain trap.jsonb as int;
        set search_path = trap, pg_catalog";
    client.batch_execute(trap).await.expect("a trap");
    let transaction = client.transaction().await.expect("a transaction");
    transaction.batch_execute("select realtime.send('{\"a\":1}', 'plain', 't1'); select realtime.send('{\"id\":7}', 'own id', 't2', false)").await.expect("sent");
    let topic: Option<String> = transaction.query_one("select realtime.topic()", &[]).await.expect("a row").get(0);
    assert_eq!(topic.as_deref(), Some("t2"));
    transaction.commit().await.expect("committed");
    assert_eq!(value::<Option<String>>(&client, "select realtime.topic()").await, None);
    client.batch_execute("select realtime.send_binary('\\xdeadbeef', 'bytes', 't3')").await.expect("sent");
    let id: String = value(&client, "select id::text from realtime.messages where event = 'plain'").await;
    assert_eq!(
        sent(&client).await,
        [
            ("t1".to_owned(), "plain".to_owned(), Some(true), json!({ "a": 1, "id": id })),
            ("t2".to_owned(), "own id".to_owned(), Some(false), json!({ "id": 7 })),
            ("t3".to_owned(), "bytes".to_owned(), Some(true), Value::Null),
        ]
    );
    let utc = "select bool_and(abs(extract(epoch from inserted_at - (now() at time zone 'utc'))) < 60 and updated_at = inserted_at) \
               and bool_and(extension = 'broadcast') and count(*) = 3 and bool_and(tableoid <> 'realtime.messages_default'::regclass) from realtime.messages";
    assert!(value::<bool>(&client, utc).await, "its time is not UTC");
    client
        .batch_execute("insert into realtime.messages (topic, extension) values ('by hand', 'broadcast')")
        .await
        .expect("a row");
    let utc = "select abs(extract(epoch from inserted_at - (now() at time zone 'utc'))) < 60 from realtime.messages where topic = 'by hand'";
    assert!(value::<bool>(&client, utc).await, "the default is not UTC");
    let both = client.batch_execute("insert into realtime.messages (topic, extension, payload, binary_payload) values ('t', 'broadcast', '{}', '')").await;
    assert_eq!(both.expect_err("two payloads").code(), Some(&SqlState::CHECK_VIOLATION));
}

/// What the roles of tokens may do, whatever the database grants and revokes by default.
#[tokio::test]
async fn users_reach_the_table_and_the_functions_and_no_partition() {
    let pg = TestPg::bare().await;
    let mut client = pg.client().await;
    let defaults =
        "create role anon nologin; create role authenticated nologin; create role service_role nologin bypassrls;
        alter default privileges revoke execute on functions from public;
        alter default privileges grant all on tables to anon, authenticated, service_role";
    client.batch_execute(defaults).await.expect("default privileges");
    migrate::up(&mut client).await.expect("up");
    drop_day(&client, 2).await;
    let made = tend(&mut client, Scope::Own, KEPT).await.expect("a round").made;
    assert_eq!(made, [named(&client, 2).await]);
    for role in ["anon", "authenticated", "service_role"] {
        let rights = format!(
            "select array_agg(privilege order by privilege) from unnest(array['DELETE', 'INSERT', 'REFERENCES', 'SELECT', 'TRIGGER', 'TRUNCATE', 'UPDATE']) as privilege
             where has_table_privilege('{role}', 'realtime.messages', privilege)"
        );
        assert_eq!(value::<Vec<String>>(&client, &rights).await, ["INSERT", "SELECT", "UPDATE"], "{role}");
        let partitions = format!(
            "select coalesce(string_agg(c.relname, ', '), '') from pg_class c join pg_inherits i on i.inhrelid = c.oid
             where inhparent = 'realtime.messages'::regclass
               and (has_table_privilege('{role}', c.oid, 'SELECT') or has_table_privilege('{role}', c.oid, 'INSERT')
                    or has_table_privilege('{role}', c.oid, 'DELETE') or has_table_privilege('{role}', c.oid, 'TRUNCATE'))"
        );
        assert_eq!(value::<String>(&client, &partitions).await, "", "{role}");
        let schema = format!(
            "select has_schema_privilege('{role}', 'realtime', 'USAGE') and not has_schema_privilege('{role}', 'realtime', 'CREATE')"
        );
        assert!(value::<bool>(&client, &schema).await, "{role}");
        let functions = format!(
            "select count(*) from pg_proc where pronamespace = 'realtime'::regnamespace and has_function_privilege('{role}', oid, 'EXECUTE')"
        );
        assert_eq!(value::<i64>(&client, &functions).await, 4, "{role}");
    }
    // Whoever is in that role looks after all of it.
    let others = "select coalesce(string_agg(name, ', '), '') from (
            select oid::regprocedure::text, proowner from pg_proc where pronamespace = 'realtime'::regnamespace
            union all select oid::regclass::text, relowner from pg_class where relnamespace = 'realtime'::regnamespace and relkind in ('r', 'p')
        ) as made (name, owner) where owner <> 'supabase_realtime_admin'::regrole";
    assert_eq!(value::<String>(&client, others).await, "");
    let inserts = "select pubinsert and not pubupdate and not pubdelete and not pubtruncate and pubviaroot from pg_publication where pubname = 'rowcast_messages'";
    assert!(value::<bool>(&client, inserts).await, "only what is inserted is a message");
}

#[tokio::test]
async fn a_schema_realtime_that_was_there_keeps_what_it_had_and_survives_down() {
    let theirs = "create function realtime.topic() returns text language sql as 'select ''theirs''::text'";
    for more in ["", theirs] {
        let pg = TestPg::bare().await;
        let mut client = pg.client().await;
        let before = format!("create role supabase_realtime_admin nologin; create schema realtime; {more}");
        client.batch_execute(&before).await.expect("what is there");
        let report = migrate::up(&mut client).await.expect("up");
        for found in ["schema realtime", "role supabase_realtime_admin"] {
            assert!(!report.made.contains(&found.to_owned()), "{found} was there");
        }
        assert!(report.made.contains(&"table realtime.messages".to_owned()), "{report}");
        if more == theirs {
            assert_eq!(value::<String>(&client, "select realtime.topic()").await, "theirs");
            let sql = "select proowner = 'postgres'::regrole from pg_proc where oid = 'realtime.topic()'::regprocedure";
            assert!(value::<bool>(&client, sql).await, "it has another owner");
        }
        let _ = migrate::down(&mut client, None).await.expect("down");
        let left = "select to_regnamespace('realtime') is not null and to_regrole('supabase_realtime_admin') is not null and to_regclass('realtime.messages') is null";
        assert!(value::<bool>(&client, left).await);
        let functions = "select count(*) from pg_proc where pronamespace = to_regnamespace('realtime')";
        assert_eq!(value::<i64>(&client, functions).await, i64::from(more == theirs));
    }
}

/// Item 105.
#[tokio::test]
async fn a_send_that_fails_inside_only_warns_and_the_callers_transaction_commits() {
    let (_pg, mut client) = fresh().await;
    client.batch_execute("create table notes (body text); grant insert on notes to authenticated; create function fail() returns trigger language plpgsql as $$ begin raise 'no room'; end $$").await.expect("a table");
    for (trouble, mend) in [
        ("alter table realtime.messages rename to elsewhere", "alter table realtime.elsewhere rename to messages"),
        (
            "create trigger no before insert on realtime.messages for each row execute function fail()",
            "drop trigger no on realtime.messages",
        ),
        (
            "alter table realtime.messages detach partition realtime.messages_default; alter table realtime.messages alter inserted_at set default '2001-01-01'",
            "select 1",
        ),
    ] {
        client.batch_execute(trouble).await.expect("trouble");
        let transaction = client.transaction().await.expect("a transaction");
        transaction.batch_execute("insert into notes values ('kept'); select realtime.send('{}', 'e', 't'); select realtime.send_binary('', 'e', 't'); select realtime.send('[1]', 'e', null)").await.expect("a warning only");
        transaction.commit().await.expect("the caller's work");
        client.batch_execute(mend).await.expect("mended");
    }
    assert_eq!(value::<i64>(&client, "select count(*) from notes").await, 3);
    // A user whom no policy lets write.
    let transaction = client.transaction().await.expect("a transaction");
    rowcast::pg::assume(&transaction, "authenticated", "x", "{}").await.expect("a user");
    transaction
        .batch_execute("insert into notes values ('user'); select realtime.send('{}', 'e', 't')")
        .await
        .expect("a warning only");
    transaction.commit().await.expect("the user's work");
    assert_eq!(value::<i64>(&client, "select count(*) from notes").await, 4);
    assert_eq!(value::<i64>(&client, "select count(*) from realtime.messages where event = 'e' and topic = 't' and inserted_at::date = '2001-01-01'").await, 0);
}

/// Item 104.
#[tokio::test]
async fn broadcast_changes_sends_the_rows_before_and_after() {
    let (_pg, client) = fresh().await;
    let setup = "create table public.notes (id int primary key, body text);
        create function public.tell() returns trigger language plpgsql security definer set search_path = '' as $$ begin
            perform realtime.broadcast_changes('note:' || coalesce(new.id, old.id), tg_op, tg_op, tg_table_name, tg_table_schema, new, old); return null; end $$;
        create trigger tell after insert or update or delete on public.notes for each row execute function public.tell();
        insert into public.notes values (1, 'a'); update public.notes set body = 'b'; delete from public.notes";
    client.batch_execute(setup).await.expect("three changes");
    let mut sent = sent(&client).await;
    for (_, _, private, payload) in &mut sent {
        assert_eq!(*private, Some(true));
        assert!(payload.as_object_mut().and_then(|object| object.remove("id")).is_some_and(|id| id.is_string()));
    }
    let payload = |operation: &str, record: Value, old: Value| json!({ "schema": "public", "table": "notes", "operation": operation, "record": record, "old_record": old });
    let (a, b) = (json!({ "id": 1, "body": "a" }), json!({ "id": 1, "body": "b" }));
    let wanted = [
        ("INSERT", payload("INSERT", a.clone(), Value::Null)),
        ("UPDATE", payload("UPDATE", b.clone(), a)),
        ("DELETE", payload("DELETE", Value::Null, b)),
    ];
    let wanted = wanted.map(|(event, payload)| ("note:1".to_owned(), event.to_owned(), Some(true), payload));
    assert_eq!(sent, wanted);

    for (level, operation, says) in [
        (
            "STATEMENT",
            "INSERT",
            "Failed to process the row: function can only be triggered for each row, not for each statement",
        ),
        ("ROW", "TRUNCATE", "Failed to process the row: Unexpected operation type: TRUNCATE"),
    ] {
        let sql = format!(
            "select realtime.broadcast_changes('t', 'e', '{operation}', 'notes', 'public', null::public.notes, null::public.notes, '{level}')"
        );
        let error = client.batch_execute(&sql).await.expect_err("refused");
        assert_eq!(error.as_db_error().map(|db| db.message()), Some(says));
    }
}

/// Items 108 and 109.
#[tokio::test]
async fn the_newest_messages_since_a_time_are_replayed_oldest_first() {
    let (pg, client) = fresh().await;
    let pool = PgConfig::from_url(&pg.url()).expect("a URL").pool().expect("a pool");
    let rows = "insert into realtime.messages (topic, extension, event, payload, private, inserted_at)
            select 'room:1', 'broadcast', 'e' || n, jsonb_build_object('n', n), true, (now() at time zone 'utc') - (n || ' minutes')::interval from generate_series(1, 40) as n;
        insert into realtime.messages (topic, extension, event, payload, private, inserted_at) values
            ('room:2', 'broadcast', 'other topic', '{}', true, now() at time zone 'utc'), ('room:1', 'broadcast', 'public', '{}', false, now() at time zone 'utc'),
            ('room:1', 'presence', 'presence', '{}', true, now() at time zone 'utc'), ('room:1', 'broadcast', null, '{}', true, now() at time zone 'utc'),
            ('room:1', 'broadcast', 'nothing', null, true, now() at time zone 'utc'), ('room:1', 'broadcast', 'future', '{}', true, (now() at time zone 'utc') + interval '1 hour')";
    client.batch_execute(rows).await.expect("rows");
    let events = |stored: Vec<Stored>| stored.into_iter().map(|one| one.event).collect::<Vec<_>>();
    let now: i64 = value(&client, "select (extract(epoch from now()) * 1000)::bigint").await;
    let two = replay(&pool, "room:1", now - 3_600_000, 2).await.expect("two");
    assert_eq!(
        two.iter().map(|one| one.payload.clone()).collect::<Vec<_>>(),
        [r#"{"n": 2}"#, r#"{"n": 1}"#].map(|text| StoredPayload::Json(text.into()))
    );
    let id: Vec<u8> = value(&client, "select uuid_send(id) from realtime.messages where event = 'e2'").await;
    assert_eq!(two[0].id.as_slice(), id);
    assert_eq!(events(replay(&pool, "room:1", now - 150_000, 25).await.expect("since")), ["e2", "e1"]);
    assert_eq!(replay(&pool, "room:1", 0, 100).await.expect("all").len(), 25);
    for absurd in [i64::MIN, -1] {
        assert_eq!(replay(&pool, "room:1", absurd, 0).await.expect("one").len(), 1);
    }
    assert_eq!(replay(&pool, "room:1", i64::MAX, 25).await.expect("none"), []);
    assert_eq!(replay(&pool, "room:1'; drop table x", 0, 25).await.expect("none"), []);

    // Of one transaction, in the order they were sent; and bytes.
    client.batch_execute("begin; select realtime.send('{}', 'a', 'room:3'), realtime.send('{}', 'b', 'room:3'); select realtime.send_binary('\\x00ff', 'c', 'room:3'); commit").await.expect("sent");
    let three = replay(&pool, "room:3", now - 60_000, 25).await.expect("three");
    assert_eq!(three[2].payload, StoredPayload::Binary(bytes::Bytes::from_static(&[0, 255])));
    assert_eq!(events(three), ["a", "b", "c"]);
    assert_eq!(events(replay(&pool, "room:3", now - 60_000, 2).await.expect("two")), ["b", "c"]);

    client.batch_execute("drop table realtime.messages").await.expect("dropped");
    let error = replay(&pool, "room:1", 0, 25).await.expect_err("no table");
    assert!(matches!(error, ReplayError::NotInstalled), "{error:?}");
}
