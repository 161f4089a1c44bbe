//! What a change looks like when it arrives.

use super::*;
use crate::change::{Body, ReplicaIdentity};
use crate::error::Fault as _;

/// A server with these tables in publication `p`, and its stream.
async fn with(ddl: &str, publication: &str) -> (TestServer, Stream) {
    let server = TestServer::start().await;
    server.sql(&format!("{ddl}; create publication p {publication}")).await;
    let config = wal_config(&server, &["p"]);
    let stream = stream(&server, &config).await;
    (server, stream)
}

async fn after(server: &TestServer, stream: &mut Stream, sql: &str) -> Vec<String> {
    server.sql(sql).await;
    shown(stream).await
}

/// Stored out of line, since it can't be compressed.
const BIG: &str = "(select string_agg(md5(i::text), '') from generate_series(1, 100) i)";

#[tokio::test]
async fn the_default_identity_sends_the_key_only_when_it_changes() {
    let (server, mut s) = with("create table t (id int primary key, b text, big text)", "for table t").await;
    let insert = format!("insert into t values (1, 'x', {BIG}), (2, null, null)");
    assert_eq!(after(&server, &mut s, &insert).await, ["I public.t N[1,x,<3200>]", "I public.t N[2,∅,∅]"]);
    assert_eq!(after(&server, &mut s, "update t set b = 'y' where id = 1").await, ["U public.t N[1,y,?]"]);
    assert_eq!(after(&server, &mut s, "update t set id = 3 where id = 1").await, ["U public.t K[1,∅,∅] N[3,y,?]"]);
    assert_eq!(after(&server, &mut s, "delete from t where id = 3").await, ["D public.t K[3,∅,∅]"]);
    assert_eq!(after(&server, &mut s, "update t set b = b where id = 2").await, ["U public.t N[2,∅,∅]"]);
    let upsert = "insert into t values (2, 'z') on conflict (id) do update set b = excluded.b";
    assert_eq!(after(&server, &mut s, upsert).await, ["U public.t N[2,z,∅]"]);
}

#[tokio::test]
async fn the_full_identity_sends_the_whole_old_row() {
    let ddl = "create table t (id int primary key, b text, big text); alter table t replica identity full";
    let (server, mut s) = with(ddl, "for table t").await;
    let insert = format!("insert into t values (1, 'x', {BIG})");
    assert_eq!(after(&server, &mut s, &insert).await, ["I public.t N[1,x,<3200>]"]);
    let update = after(&server, &mut s, "update t set b = 'y'").await;
    assert_eq!(update, ["U public.t O[1,x,<3200>] N[1,y,?]"], "the unchanged value is in the old row only");
    assert_eq!(after(&server, &mut s, "delete from t").await, ["D public.t O[1,y,<3200>]"]);
    server.sql("insert into t values (5)").await;
    let relation = transaction(&mut s).await.relations[0].clone();
    assert_eq!(relation.identity, ReplicaIdentity::Full);
    assert!(relation.columns.iter().all(|c| c.key), "every column is flagged");
}

#[tokio::test]
async fn an_index_identity_sends_the_indexs_columns() {
    let ddl = "create table t (id int primary key, a int not null, b text); create unique index ta on t (a); \
               alter table t replica identity using index ta";
    let (server, mut s) = with(ddl, "for table t").await;
    assert_eq!(after(&server, &mut s, "insert into t values (1, 10, 'x')").await, ["I public.t N[1,10,x]"]);
    assert_eq!(after(&server, &mut s, "update t set id = 2").await, ["U public.t N[2,10,x]"], "the pk is not the key");
    assert_eq!(after(&server, &mut s, "update t set a = 11").await, ["U public.t K[∅,10,∅] N[2,11,x]"]);
    server.sql("delete from t").await;
    let delete = transaction(&mut s).await;
    assert_eq!(show(&delete), ["D public.t K[∅,11,∅]"]);
    let relation = &delete.relations[0];
    assert_eq!(relation.identity, ReplicaIdentity::Index);
    assert_eq!(relation.columns.iter().map(|c| c.key).collect::<Vec<_>>(), [false, true, false]);
}

#[tokio::test]
async fn truncate_comes_with_its_tables_and_options() {
    let ddl = "create table a (id serial primary key); create table b (id int references a)";
    let (server, mut s) = with(ddl, "for table a, b").await;
    let truncate = after(&server, &mut s, "truncate a restart identity cascade").await;
    assert_eq!(truncate, ["T a,b true true"]);
    assert_eq!(after(&server, &mut s, "truncate b").await, ["T b false false"]);
}

#[tokio::test]
async fn transactional_messages_keep_their_place_and_others_are_passed_over() {
    let (server, mut s) = with("create table t (id int primary key)", "for table t").await;
    let messages = "begin; insert into t values (1); select pg_logical_emit_message(true, 'in', 'x'); \
                    select pg_logical_emit_message(false, 'loose', 'y'); insert into t values (2); commit";
    let rolled_back = "begin; select pg_logical_emit_message(true, 'gone', 'x'); \
                       select pg_logical_emit_message(false, 'loose', 'y'); rollback";
    server.sql(rolled_back).await;
    let items = after(&server, &mut s, messages).await;
    assert_eq!(items, ["I public.t N[1]", "M in x", "I public.t N[2]"]);
}

#[tokio::test]
async fn the_heartbeat_comes_back_with_its_position() {
    let (server, mut s) = with("create table t (id int primary key)", "for table t").await;
    let emitted = heartbeat(&server.client().await).await.expect("emitted");
    let transaction = transaction(&mut s).await;
    let items: Vec<Item> = transaction.iter().collect::<Result<_, _>>().expect("items");
    let [Item::Message(message)] = &items[..] else { panic!("{items:?}") };
    assert_eq!((&message.prefix[..], message.lsn), (HEARTBEAT_PREFIX, emitted));
    assert!(emitted < transaction.end_lsn && transaction.commit_time.unix_micros() > 1_600_000_000_000_000);
}

#[tokio::test]
async fn enums_domains_and_reserved_schemas_arrive_as_text_with_their_types_oid() {
    let ddl = "create type mood as enum ('sad', 'it''s ok'); create domain small as int check (value < 10); \
               create schema \"Odd.Schema\"; create table \"Odd.Schema\".\"T\" (id small primary key, m mood, l mood[])";
    let (server, mut s) = with(ddl, "for all tables").await;
    server.sql("insert into \"Odd.Schema\".\"T\" values (1, 'it''s ok', '{sad}')").await;
    let transaction = transaction(&mut s).await;
    assert_eq!(show(&transaction), ["I Odd.Schema.T N[1,it's ok,{sad}]"]);
    let oids: Vec<String> = transaction.relations[0].columns.iter().map(|c| c.type_oid.to_string()).collect();
    let wanted = "select concat_ws(',', 'small'::regtype::oid, 'mood'::regtype::oid, 'mood[]'::regtype::oid)";
    assert_eq!(oids.join(","), server.text(wanted).await, "the domain's own, not its base type's");
}

#[tokio::test]
async fn partitions_come_as_leaves_or_as_their_root() {
    let ddl = "create table pt (id int primary key, b text) partition by range (id); \
               create table p1 partition of pt for values from (0) to (10); \
               create table p2 partition of pt for values from (10) to (20)";
    let server = TestServer::start().await;
    let publications = "create publication leaf for table pt; \
                        create publication root for table pt with (publish_via_partition_root = true)";
    server.sql(&format!("{ddl}; {publications}")).await;
    let leaf = wal_config(&server, &["leaf"]);
    let root = WalConfig { slot: "s2".into(), ..wal_config(&server, &["root"]) };
    let (mut leaf, mut root) = (stream(&server, &leaf).await, stream(&server, &root).await);
    server.sql("insert into pt values (1, 'x'); update pt set id = 11; truncate pt").await;
    server.sql("insert into pt values (2, 'y')").await;
    let moved = ["D public.p1 K[1,∅]", "I public.p2 N[11,x]", "T p1,p2 false false"];
    assert_eq!(shown(&mut leaf).await, [&["I public.p1 N[1,x]"], &moved[..]].concat());
    let moved = ["D public.pt K[1,∅]", "I public.pt N[11,x]", "T pt false false"];
    assert_eq!(shown(&mut root).await, [&["I public.pt N[1,x]"], &moved[..]].concat());
    assert_eq!(shown(&mut leaf).await, ["I public.p1 N[2,y]"]);
    assert_eq!(shown(&mut root).await, ["I public.pt N[2,y]"]);
}

#[tokio::test]
async fn a_table_altered_in_the_middle_of_a_transaction_has_two_shapes_in_it() {
    let (server, mut s) = with("create table t (id int primary key, b text)", "for table t").await;
    let sql = "begin; insert into t values (1, 'x'); alter table t add c int; insert into t values (2, 'y', 3); \
               alter table t drop b; alter table t rename to u; insert into u values (4, 5); commit";
    server.sql(sql).await;
    let transaction = transaction(&mut s).await;
    assert_eq!(show(&transaction), ["I public.t N[1,x]", "I public.t N[2,y,3]", "I public.u N[4,5]"]);
    let names: Vec<Vec<&str>> =
        transaction.relations.iter().map(|r| r.columns.iter().map(|c| &c.name[..]).collect()).collect();
    assert_eq!(names, [vec!["id", "b"], vec!["id", "b", "c"], vec!["id", "c"]]);
    assert!(transaction.relations.iter().all(|r| r.oid == transaction.relations[0].oid));
}

#[tokio::test]
async fn a_shape_keeps_its_pointer_from_one_transaction_to_the_next() {
    let (server, mut s) = with("create table t (id int primary key, b text)", "for table t").await;
    server.sql("insert into t values (1)").await;
    // Makes the server send the Relation again, unchanged.
    server.sql("alter table t set (fillfactor = 90)").await;
    server.sql("insert into t values (2)").await;
    let (first, second) = (transaction(&mut s).await, transaction(&mut s).await);
    assert!(Arc::ptr_eq(&first.relations[0], &second.relations[0]));
}

#[tokio::test]
async fn a_big_transaction_spills_and_reads_the_same_twice() {
    let server = TestServer::start().await;
    server.sql("create table t (id int primary key, b text); create publication p for table t").await;
    let config = WalConfig { spill_threshold: 64 << 10, ..wal_config(&server, &["p"]) };
    prepare(&server.client().await, &config).await.expect("prepared");
    let metrics = Arc::new(Metrics::new());
    let mut s = Stream::connect(&config, Lsn::ZERO, &metrics).await.expect("connected");
    server.sql("insert into t select i, repeat('x', i % 50) from generate_series(1, 20000) i").await;
    server.sql("insert into t values (0, 'small')").await;
    let big = transaction(&mut s).await;
    assert!(matches!(big.body, Body::Spilled(_)));
    let first = show(&big);
    assert_eq!((first.len(), first.len()), (20000, big.items as usize));
    assert!((1..=20000).all(|i| first[i - 1] == format!("I public.t N[{i},{}]", "x".repeat(i % 50))));
    assert_eq!(show(&big), first);
    assert_eq!(std::fs::read_dir(&config.spill_dir).expect("made").count(), 0, "the file has no name");
    assert!(matches!(transaction(&mut s).await.body, Body::Memory(_)));
    let counted = (metrics.transactions.get(), metrics.changes.get(), metrics.spilled_transactions.get());
    assert_eq!(counted, (2, 20001, 1));
}

#[tokio::test]
async fn a_caller_who_gives_up_waiting_again_and_again_loses_nothing() {
    let server = TestServer::start().await;
    server.sql("create table t (id int primary key, b text); create publication p for table t").await;
    let config = WalConfig { spill_threshold: 10 << 10, buffer_events: 7, ..wal_config(&server, &["p"]) };
    let mut s = stream(&server, &config).await;
    for start in [0, 1000, 2000] {
        let sql = format!("insert into t select i, repeat('x', 100) from generate_series({start}, {start} + 999) i");
        server.sql(&sql).await;
    }
    let mut seen = 0;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while seen < 3000 {
        assert!(tokio::time::Instant::now() < deadline, "only {seen} rows came");
        let Ok(received) = tokio::time::timeout(Duration::from_micros(50), s.next()).await else { continue };
        if let Received::Transaction(transaction) = received.expect("no error") {
            let rows = show(&transaction);
            assert_eq!(rows[0], format!("I public.t N[{seen},<100>]"));
            seen += rows.len();
        }
    }
}

#[tokio::test]
async fn transactions_come_in_commit_order_with_growing_end_positions() {
    let (server, mut s) = with("create table t (id int primary key)", "for table t").await;
    let (first, second) = (server.client().await, server.client().await);
    first.batch_execute("begin; insert into t values (1)").await.expect("written");
    second
        .batch_execute("begin; insert into t values (2); savepoint a; insert into t values (3); rollback to a")
        .await
        .expect("written");
    second.batch_execute("commit").await.expect("committed");
    first.batch_execute("commit").await.expect("committed");
    let (a, b) = (transaction(&mut s).await, transaction(&mut s).await);
    assert_eq!((show(&a), show(&b)), (vec!["I public.t N[2]".into()], vec!["I public.t N[1]".into()]));
    assert!(a.commit_lsn < a.end_lsn && a.end_lsn <= b.commit_lsn && b.commit_lsn < b.end_lsn);
}

#[tokio::test]
async fn a_row_over_the_limit_stops_the_stream_and_says_which_limit() {
    let server = TestServer::start().await;
    server.sql("create table t (id int primary key, b text); create publication p for table t").await;
    let config = WalConfig { max_message_bytes: 64 << 10, ..wal_config(&server, &["p"]) };
    let mut s = stream(&server, &config).await;
    server.sql("insert into t values (1, repeat('x', 70000))").await;
    let error = try_transaction(&mut s).await.expect_err("too large");
    assert!(matches!(error, WalError::MessageTooLarge { limit: 65536, .. }), "{error:?}");
    assert!(error.advice().contains("70"), "{}", error.advice());
    assert!(matches!(received(&mut s).await, Err(WalError::Ended)), "and nothing after it");
}
