//! The hub over a real catalog and a real log; the stream and the sockets are played by the test.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::change::{Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, TransactionBuilder, Tuple, Value};
use crate::claims::Principal;
use crate::log::{self, Epoch, LogConfig, LogWriter, RealFiles};
use crate::testing::TestDatabase;

#[path = "follow_tests.rs"]
mod follow_tests;
#[path = "lane_tests.rs"]
mod lane_tests;
#[path = "replay/tests.rs"]
mod replay_tests;
#[path = "lost_tests.rs"]
mod lost_tests;
#[path = "merged_tests.rs"]
mod merged_tests;
#[path = "token_tests.rs"]
mod token_tests;

const DEADLINE: Duration = Duration::from_secs(20);

struct Hole;

impl Transmit for Hole {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(parts.iter().map(|p| p.len()).sum())
    }
}

/// A hub with the test as its stream and its only shard.
struct Bench {
    database: TestDatabase,
    hub: HubHandle,
    batches: mpsc::Receiver<Batch>,
    writer: LogWriter,
    drain: Drain,
    task: tokio::task::JoinHandle<Result<(), HubError>>,
    metrics: Arc<Metrics>,
    /// For filters and questions.
    pool: crate::pg::Pool,
    lsn: u64,
    log: log::Log,
    /// The hub's.
    clock: Clock,
    _folder: tempfile::TempDir,
}

/// What came for a channel: the rows' ids with the entry ids, and notices.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Received {
    rows: Vec<(String, Vec<i32>)>,
    notices: Vec<String>,
}

impl Bench {
    async fn new(sql: &str) -> Bench {
        Bench::with(sql, HubConfig::default()).await
    }

    async fn with(sql: &str, hub_config: HubConfig) -> Bench {
        Bench::on(Arc::new(RealFiles), sql, hub_config, |_| {}).await
    }

    async fn on(
        files: Arc<dyn log::Files>,
        sql: &str,
        hub_config: HubConfig,
        adjust: impl FnOnce(&mut LogConfig),
    ) -> Bench {
        let database = TestDatabase::new().await;
        database.run(sql).await;
        let folder = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new());
        let mut config = LogConfig::new(folder.path().join("log"));
        adjust(&mut config);
        let opened = log::open(config, files, Clock::system(), metrics.clone()).unwrap();
        let mut writer = opened.writer;
        writer.begin_epoch(Epoch { system_identifier: 1, incarnation: 1 }, Lsn(100)).unwrap();
        let (shard, batches) = mpsc::channel(64);
        let (drain, clock) = (Drain::new(), Clock::system());
        let pool = database.pool("relay");
        let deps = HubDeps {
            log: opened.log,
            pool: pool.clone(),
            ask_pool: database.asking_pool("relay"),
            snapshot_pool: database.asking_pool("relay"),
            catalog_pool: database.pool("relay"),
            facts_pool: database.pool("relay"),
            clock: clock.clone(),
            metrics: metrics.clone(),
            journal: crate::journal::Journal::off(),
            drain: drain.clone(),
            shards: vec![shard],
        };
        let log = deps.log.clone();
        // The database's positions are not those of the test: whatever is there has come.
        log.set_streamed(Lsn(u64::MAX));
        let (hub, handle) = Hub::new(hub_config, deps);
        let task = crate::task::spawn("hub", hub.run());
        Bench {
            database,
            hub: handle,
            batches,
            writer,
            drain,
            task,
            metrics,
            pool,
            lsn: 100,
            log,
            clock,
            _folder: folder,
        }
    }

    async fn relation(&self, table: &str) -> Arc<Relation> {
        let sql = "select c.oid, a.attname, a.atttypid from pg_class c join pg_attribute a on a.attrelid = c.oid
                   where c.relname = $1 and a.attnum > 0 order by a.attnum";
        let rows = self.database.client.query(sql, &[&table]).await.unwrap();
        let columns = rows.iter().map(|row| RelationColumn {
            name: row.get(1),
            type_oid: row.get(2),
            type_modifier: -1,
            key: true,
        });
        let (oid, identity) = (rows[0].get(0), ReplicaIdentity::Full);
        let columns = columns.collect();
        Arc::new(Relation { oid, schema: "public".into(), table: table.into(), identity, columns })
    }

    /// Appends a transaction of inserts; its id is one that every snapshot sees.
    fn insert(&mut self, relation: &Arc<Relation>, rows: &[Vec<&str>]) {
        self.insert_by(3, TransactionBuilder::default(), relation, rows);
    }

    /// Appends a transaction with this id of what the builder has and these inserts.
    fn insert_by(&mut self, xid: u32, mut builder: TransactionBuilder, relation: &Arc<Relation>, rows: &[Vec<&str>]) {
        for row in rows {
            let mut raw = vec![b'N'];
            Tuple::encode(row.iter().map(|text| Value::Text(text.as_bytes())), &mut raw);
            builder.row(b'I', relation, &Bytes::from(raw)).unwrap();
        }
        self.lsn += 10;
        let lsn = Lsn(self.lsn);
        let transaction = builder.finish(xid, lsn, lsn, Timestamp(0), None);
        self.writer.append(&Arc::new(transaction)).unwrap();
    }

    async fn subscribe(&self, port: &Arc<Port>, entries: Vec<Entry>, sub: &str) {
        let done = self.hub.subscribe(port.clone(), entries, principal("authenticated", sub));
        tokio::time::timeout(DEADLINE, done).await.expect("in time").expect("accepted");
    }

    /// Everything up to the row with this id on this channel.
    async fn until(&mut self, port: &Arc<Port>, id: &str) -> BTreeMap<ChannelId, Received> {
        let mut received: BTreeMap<ChannelId, Received> = BTreeMap::new();
        let marked = |r: &BTreeMap<ChannelId, Received>| {
            r.get(&port.id).is_some_and(|r| r.rows.iter().any(|(row, _)| row == id))
        };
        while !marked(&received) {
            let batch =
                tokio::time::timeout(DEADLINE, self.batches.recv()).await.expect("the marker comes").expect("runs");
            for outgoing in batch.items {
                match outgoing {
                    Outgoing::Change(fanout) => {
                        let crate::change::Change::Insert { new } = &fanout.event.value().row.change else { continue };
                        let row = new.get(0).as_str().unwrap().to_owned();
                        for member in &fanout.members {
                            let of = received.entry(member.port.id).or_default();
                            of.rows.push((row.clone(), member.ids.to_vec()));
                        }
                    }
                    Outgoing::Notice(notice) => {
                        received.entry(notice.port.id).or_default().notices.push(notice.message.to_string());
                    }
                    Outgoing::Greeting(greeting) => {
                        let of = received.entry(greeting.port.id).or_default();
                        assert!(of.rows.is_empty() && of.notices.is_empty(), "something came before the join reply");
                        of.notices.push(String::from_utf8(greeting.frames.to_vec()).unwrap());
                    }
                    Outgoing::Begin(..) | Outgoing::Hold(..) | Outgoing::Live(..) => {}
                }
            }
        }
        received
    }

    async fn stop(self) {
        self.drain.drain();
        self.task.await.unwrap().unwrap();
    }
}

pub(super) fn port() -> Arc<Port> {
    port_with(1 << 20)
}

/// On a connection of which so many bytes may wait.
fn port_with(limit: usize) -> Arc<Port> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let outbox = Arc::new(Outbox::new(Box::new(Hole), limit, Bytes::new()));
    let id = ChannelId(NEXT.fetch_add(1, Ordering::Relaxed));
    let (topic, join_ref, stage) = ("realtime:t".into(), "null".into(), Arc::new(Stage::greeted()));
    Arc::new(Port { id, outbox, shard: 0, topic, version: Version::V2, join_ref, stage, place: Place::default() })
}

fn principal(role: &str, sub: &str) -> Arc<Principal> {
    let claims = json!({"role": role, "sub": sub, "exp": 4_000_000_000_i64});
    Arc::new(Principal::new(claims.as_object().unwrap().clone(), 4_000_000_000).unwrap())
}

fn entry(id: i32, table: &str, filter: Option<&str>) -> Entry {
    Entry {
        id,
        action: Action::All,
        schema: Name::Is("public".into()),
        table: Name::Is(table.into()),
        filter: filter.map(Into::into),
        select: None,
        start: super::Start::Now,
        cursor_as: None,
        snapshot: None,
        messages: None,
    }
}

const ALICE: &str = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa";
const BOB: &str = "bbbbbbbb-bbbb-bbbb-bbbb-bbbbbbbbbbbb";

const OWNED: &str = "create table owned (id text primary key, user_id uuid, kind text);
    alter table owned replica identity full; alter table owned enable row level security;
    create policy own on owned for select to authenticated using (user_id = auth.uid());
    alter publication supabase_realtime add table owned;";

const ASKED: &str = "create table asked (id text primary key, user_id uuid, kind text);
    alter table asked replica identity full; alter table asked enable row level security;
    create policy own on asked for select to authenticated
      using (case when length(kind) > 3 then pg_sleep(0.2) is not null else true end and user_id = auth.uid());
    alter publication supabase_realtime add table asked;";

#[tokio::test]
async fn a_token_of_equal_rights_costs_nothing_while_the_database_is_away() {
    let mut bench = Bench::new(OWNED).await;
    let alice = port();
    // Too long to be remembered.
    let filter = format!("kind=neq.{}", "x".repeat(5000));
    bench.subscribe(&alice, vec![entry(1, "owned", Some(&filter))], ALICE).await;
    bench.pool.close();
    let renewed = json!({"role": "authenticated", "sub": ALICE, "exp": 4_000_000_001_i64});
    let renewed = Arc::new(Principal::new(renewed.as_object().unwrap().clone(), 4_000_000_001).unwrap());
    let reclaim = |principal| tokio::time::timeout(DEADLINE, bench.hub.reclaim(alice.id, principal));
    assert_eq!(reclaim(renewed).await.expect("in time"), Ok(super::Activated::default()));
    let refused = reclaim(principal("authenticated", BOB)).await.expect("in time").unwrap_err();
    assert!(refused.retry, "{refused:?}");
    let relation = bench.relation("owned").await;
    bench.insert(&relation, &[vec!["1", BOB, "a"], vec!["end", ALICE, "a"]]);
    let received = bench.until(&alice, "end").await;
    assert_eq!(received[&alice.id].rows, [("end".to_owned(), vec![1])]);
    bench.stop().await;
}

#[tokio::test]
async fn owners_get_their_rows_by_the_index_and_filters_only_narrow_them() {
    let mut bench = Bench::new(OWNED).await;
    let (alice, bob, narrow) = (port(), port(), port());
    bench.subscribe(&alice, vec![entry(1, "owned", None), entry(2, "owned", Some("kind=eq.x"))], ALICE).await;
    bench.subscribe(&bob, vec![entry(3, "owned", None)], BOB).await;
    bench.subscribe(&narrow, vec![entry(4, "owned", Some("kind=eq.x"))], ALICE).await;
    let relation = bench.relation("owned").await;
    bench.insert(&relation, &[vec!["1", ALICE, "x"], vec!["2", BOB, "x"], vec!["3", ALICE, "y"]]);
    bench.insert(&relation, &[vec!["end", BOB, "x"]]);
    let received = bench.until(&bob, "end").await;
    let rows = |port: &Arc<Port>| received.get(&port.id).cloned().unwrap_or_default().rows;
    assert_eq!(rows(&alice), [("1".into(), vec![1, 2]), ("3".into(), vec![1])]);
    assert_eq!(rows(&bob), [("2".into(), vec![3]), ("end".into(), vec![3])]);
    assert_eq!(rows(&narrow), [("1".into(), vec![4])]);
    bench.stop().await;
}

#[tokio::test]
async fn a_held_join_reply_is_queued_at_the_activation_and_not_at_a_refusal() {
    let mut bench = Bench::new(OWNED).await;
    let (held, refused) = (port(), port());
    let (alice, reply) = (principal("authenticated", ALICE), Some(Bytes::from_static(b"reply")));
    let bad = vec![entry(1, "owned", Some("nocolumn=eq.x"))];
    let answer = bench.hub.subscribe_greeting(refused.clone(), bad, alice.clone(), reply.clone()).await;
    assert!(answer.is_err());
    let relation = bench.relation("owned").await;
    let subscribing = bench.hub.clone();
    let good = vec![entry(1, "owned", None)];
    let (answer, ()) = tokio::join!(subscribing.subscribe_greeting(held.clone(), good, alice, reply), async {
        for id in 0..50 {
            bench.insert(&relation, &[vec![id.to_string().as_str(), ALICE, "x"]]);
            tokio::task::yield_now().await;
        }
    });
    assert!(answer.is_ok());
    bench.insert(&relation, &[vec!["end", ALICE, "x"]]);
    // That nothing of it comes before, the bench checks for every channel.
    let received = bench.until(&held, "end").await;
    assert_eq!(received[&held.id].notices, ["reply"]);
    assert!(!received.contains_key(&refused.id));
    bench.stop().await;
}

#[tokio::test]
async fn a_slow_answer_of_postgres_delays_and_never_reorders() {
    let mut bench = Bench::new(&format!("{OWNED}{ASKED}")).await;
    let (alice, bob) = (port(), port());
    bench.subscribe(&alice, vec![entry(1, "owned", None), entry(2, "asked", None)], ALICE).await;
    bench.subscribe(&bob, vec![entry(3, "asked", None)], BOB).await;
    let (owned, asked) = (bench.relation("owned").await, bench.relation("asked").await);
    bench.insert(&asked, &[vec!["1", ALICE, "slow"], vec!["2", ALICE, "q"], vec!["3", BOB, "slow"]]);
    bench.insert(&owned, &[vec!["4", ALICE, "q"]]);
    bench.insert(&asked, &[vec!["5", ALICE, "q"]]);
    bench.insert(&owned, &[vec!["end", ALICE, "q"]]);
    let received = bench.until(&alice, "end").await;
    let ids: Vec<&str> = received[&alice.id].rows.iter().map(|(row, _)| row.as_str()).collect();
    assert_eq!(ids, ["1", "2", "4", "5", "end"]);
    assert_eq!(received[&bob.id].rows, [("3".into(), vec![3])]);
    bench.stop().await;
}

#[tokio::test]
async fn a_policy_that_is_dropped_ends_deliveries_and_a_new_one_starts_them() {
    let mut bench = Bench::new(&format!(
        "{OWNED} create table open (id text primary key); alter publication supabase_realtime add table open;"
    ))
    .await;
    let (alice, watcher) = (port(), port());
    bench.subscribe(&alice, vec![entry(1, "owned", None), entry(2, "open", None)], ALICE).await;
    bench.subscribe(&watcher, vec![entry(3, "open", None)], BOB).await;
    let (owned, open) = (bench.relation("owned").await, bench.relation("open").await);
    bench.insert(&owned, &[vec!["1", ALICE, "x"]]);
    bench.until(&alice, "1").await;
    bench.database.run("drop policy own on owned").await;
    let dropped = tokio::time::Instant::now();
    let mut denied = false;
    let mut sent = 1;
    while !denied {
        assert!(dropped.elapsed() < DEADLINE, "deliveries never ended");
        sent += 1;
        let (row, marker) = (format!("r{sent}"), format!("m{sent}"));
        bench.insert(&owned, &[vec![&row, ALICE, "x"]]);
        bench.insert(&open, &[vec![&marker]]);
        let received = bench.until(&watcher, &marker).await;
        denied = !received.get(&alice.id).is_some_and(|r| r.rows.iter().any(|(id, _)| *id == row));
    }
    assert!(dropped.elapsed() < Duration::from_secs(5), "{:?}", dropped.elapsed());
    bench.database.run("create policy own on owned for select to authenticated using (user_id = auth.uid())").await;
    let made = tokio::time::Instant::now();
    loop {
        assert!(made.elapsed() < DEADLINE, "deliveries never came back");
        sent += 1;
        let (row, marker) = (format!("r{sent}"), format!("m{sent}"));
        bench.insert(&owned, &[vec![&row, ALICE, "x"]]);
        bench.insert(&open, &[vec![&marker]]);
        let received = bench.until(&watcher, &marker).await;
        if received.get(&alice.id).is_some_and(|r| r.rows.iter().any(|(id, _)| *id == row)) {
            break;
        }
    }
    bench.stop().await;
}

/// Nothing but the hint makes the catalog be read again here.
#[tokio::test]
async fn a_hint_that_rules_changed_is_followed_before_its_rows_are_judged() {
    let hour = Duration::from_secs(3600);
    let config = HubConfig { catalog_interval: hour, max_rules_age: hour, ..HubConfig::default() };
    let sql =
        format!("{OWNED} create table open (id text primary key); alter publication supabase_realtime add table open;");
    let mut bench = Bench::with(&sql, config).await;
    let alice = port();
    bench.subscribe(&alice, vec![entry(1, "owned", None), entry(2, "open", None)], ALICE).await;
    let (owned, open) = (bench.relation("owned").await, bench.relation("open").await);
    bench.insert(&owned, &[vec!["1", ALICE, "x"]]);
    bench.insert(&open, &[vec!["before"]]);
    let received = bench.until(&alice, "before").await;
    assert_eq!(received[&alice.id].rows.len(), 2);
    bench.database.run("begin; drop policy own on owned").await;
    let id =
        bench.database.client.query_one("select (pg_current_xact_id()::text::numeric % 4294967296)::text", &[]).await;
    let xid = id.unwrap().get::<_, &str>(0).parse().unwrap();
    bench.database.run("commit").await;
    let hint = || {
        let mut builder = TransactionBuilder::default();
        builder.rules_changed();
        builder
    };
    bench.insert_by(xid, hint(), &owned, &[vec!["2", ALICE, "x"]]);
    bench.insert(&open, &[vec!["after"]]);
    let received = bench.until(&alice, "after").await;
    assert_eq!(received[&alice.id].rows, [("after".to_owned(), vec![2])]);
    // What a reading has seen already is not read again, however many hints there are.
    let reads = |bench: &Bench| bench.metrics.catalog_reads.get_or_create(&[("result", "same")]).get();
    let before = reads(&bench);
    for _ in 0..20 {
        bench.insert_by(xid, hint(), &owned, &[vec!["3", ALICE, "x"]]);
    }
    bench.insert(&open, &[vec!["end"]]);
    bench.until(&alice, "end").await;
    assert_eq!(reads(&bench), before);
    bench.stop().await;
}

#[tokio::test]
async fn one_bad_entry_means_none_is_active_and_the_reason_is_told() {
    let bench = Bench::new(OWNED).await;
    let refused = async |entries: Vec<Entry>, role: &str| {
        let done = bench.hub.subscribe(port(), entries, principal(role, ALICE));
        tokio::time::timeout(DEADLINE, done).await.expect("in time").expect_err("refused").message
    };
    let good = entry(1, "owned", None);
    let missing = refused(vec![good.clone(), entry(2, "nowhere", None)], "authenticated").await;
    assert!(missing.contains("Please check Realtime is enabled"), "{missing}");
    let syntax = refused(vec![good.clone(), entry(2, "owned", Some("wrong"))], "authenticated").await;
    assert_eq!(syntax, r#"Error parsing `filter` params: ["wrong"]"#);
    let cast = refused(vec![entry(2, "owned", Some("user_id=eq.hey"))], "authenticated").await;
    assert!(cast.contains("ERROR 22P02 (invalid_text_representation)"), "{cast}");
    let role = refused(vec![good], "nobody_such").await;
    assert!(role.contains(r#"role "nobody_such" does not exist"#), "{role}");
    assert_eq!(bench.metrics.subscriptions.get(), 0);
    bench.stop().await;
}

#[tokio::test]
async fn a_channel_that_left_or_asked_again_gets_nothing_twice() {
    let mut bench = Bench::new(OWNED).await;
    let (gone, again, marker) = (port(), port(), port());
    bench.subscribe(&gone, vec![entry(1, "owned", None)], ALICE).await;
    bench.subscribe(&again, vec![entry(2, "owned", None)], ALICE).await;
    bench.subscribe(&again, vec![entry(3, "owned", None)], ALICE).await;
    bench.subscribe(&marker, vec![entry(4, "owned", None)], BOB).await;
    bench.hub.leave(gone.id).await;
    bench.hub.reclaim(again.id, principal("authenticated", BOB)).await.expect("reclaimed");
    let relation = bench.relation("owned").await;
    bench.insert(&relation, &[vec!["1", ALICE, "x"], vec!["end", BOB, "x"]]);
    let received = bench.until(&marker, "end").await;
    assert!(!received.contains_key(&gone.id));
    assert_eq!(received[&again.id].rows, [("end".into(), vec![3])]);
    assert_eq!(bench.metrics.subscriptions.get(), 2);
    bench.stop().await;
}

#[tokio::test]
async fn a_table_added_later_reaches_wildcards_and_a_dropped_one_is_told() {
    let mut bench = Bench::new(OWNED).await;
    let (all, one) = (port(), port());
    let wildcard = Entry { table: Name::Any, ..entry(1, "", None) };
    bench.subscribe(&all, vec![wildcard], ALICE).await;
    bench.subscribe(&one, vec![entry(2, "owned", None)], ALICE).await;
    bench
        .database
        .run("create table later (id text primary key); alter publication supabase_realtime add table later;")
        .await;
    let later = bench.relation("later").await;
    // The relation is new to the stream, so the catalog is read before its first row is judged.
    bench.insert(&later, &[vec!["first"]]);
    let received = bench.until(&all, "first").await;
    assert_eq!(received[&all.id].rows, [("first".into(), vec![1])]);
    bench.database.run("alter publication supabase_realtime drop table owned").await;
    let started = tokio::time::Instant::now();
    let mut told = false;
    for i in 0.. {
        assert!(started.elapsed() < DEADLINE, "nobody was told");
        let marker = format!("m{i}");
        bench.insert(&later, &[vec![&marker]]);
        let received = bench.until(&all, &marker).await;
        told |= received.get(&one.id).is_some_and(|r| r.notices.iter().any(|n| n.contains("Please check Realtime")));
        if told {
            break;
        }
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_new_token_in_the_middle_of_a_transaction_skips_none_of_its_rows() {
    let mut bench = Bench::new(OWNED).await;
    let alice = port();
    bench.subscribe(&alice, vec![entry(1, "owned", None)], ALICE).await;
    let relation = bench.relation("owned").await;
    let ids: Vec<String> = (0..1000).map(|i| format!("r{i:04}")).collect();
    let rows: Vec<Vec<&str>> = ids.iter().map(|id| vec![id.as_str(), ALICE, "x"]).collect();
    // The relation is new, so the transaction waits for a reading of the catalog while the token changes.
    bench.insert(&relation, &rows);
    bench.hub.reclaim(alice.id, principal("authenticated", ALICE)).await.expect("reclaimed");
    bench.insert(&relation, &[vec!["end", ALICE, "x"]]);
    let received = bench.until(&alice, "end").await;
    let got: Vec<&str> = received[&alice.id].rows.iter().map(|(row, _)| row.as_str()).collect();
    assert_eq!(got[..1000], ids);
    bench.stop().await;
}

#[tokio::test]
async fn a_row_that_waits_for_postgres_while_the_user_changes_is_told_as_a_gap() {
    let mut bench = Bench::new(ASKED).await;
    let alice = port();
    bench.subscribe(&alice, vec![entry(1, "asked", None)], ALICE).await;
    let relation = bench.relation("asked").await;
    bench.insert(&relation, &[vec!["0", ALICE, "q"]]);
    bench.until(&alice, "0").await;
    // Each of these takes Postgres 0.2 s, so some of them still wait when the token changes.
    let rows: Vec<String> = (1..=12).map(|i| i.to_string()).collect();
    bench.insert(&relation, &rows.iter().map(|id| vec![id.as_str(), ALICE, "slow"]).collect::<Vec<_>>());
    bench.hub.reclaim(alice.id, principal("authenticated", BOB)).await.expect("reclaimed");
    bench.insert(&relation, &[vec!["end", BOB, "q"]]);
    let received = bench.until(&alice, "end").await;
    let of_alice = received[&alice.id].rows.len() as u64 - 1;
    assert_eq!(of_alice + bench.metrics.undecided_gaps.get(), 12, "{received:?}");
    let notices = &received[&alice.id].notices;
    assert!(!notices.is_empty() && notices.iter().all(|n| n.starts_with("Gap:")), "{received:?}");
    bench.stop().await;
}

#[tokio::test]
async fn a_new_history_that_begins_lower_is_told_and_goes_on_at_once() {
    let mut bench = Bench::new(OWNED).await;
    let alice = port();
    bench.subscribe(&alice, vec![entry(1, "owned", None)], ALICE).await;
    let relation = bench.relation("owned").await;
    bench.lsn = 1_000_000;
    bench.insert(&relation, &[vec!["old", ALICE, "x"]]);
    bench.until(&alice, "old").await;
    bench.writer.begin_epoch(Epoch { system_identifier: 2, incarnation: 2 }, Lsn(500)).unwrap();
    bench.lsn = 500;
    bench.insert(&relation, &[vec!["new", ALICE, "x"]]);
    let received = bench.until(&alice, "new").await;
    assert!(received[&alice.id].notices.iter().any(|n| n.starts_with("Gap:")), "{received:?}");
    bench.stop().await;
}

#[tokio::test]
async fn a_table_that_leaves_the_publication_and_comes_back_is_delivered_again() {
    let other = "create table other (id text primary key); alter publication supabase_realtime add table other;";
    let mut bench = Bench::new(&format!("{OWNED}{other}")).await;
    let (alice, watcher) = (port(), port());
    bench.subscribe(&alice, vec![entry(1, "owned", Some("kind=eq.x"))], ALICE).await;
    bench.subscribe(&watcher, vec![entry(2, "other", None)], ALICE).await;
    let (owned, other) = (bench.relation("owned").await, bench.relation("other").await);
    let mut marks = 0;
    for (sql, expected) in [("drop", "Please check Realtime"), ("add", "Subscribed to PostgreSQL")] {
        bench.database.run(&format!("alter publication supabase_realtime {sql} table owned")).await;
        let started = tokio::time::Instant::now();
        loop {
            assert!(started.elapsed() < DEADLINE, "{expected} was not told");
            marks += 1;
            let marker = format!("m{marks}");
            bench.insert(&other, &[vec![&marker]]);
            let received = bench.until(&watcher, &marker).await;
            if received.get(&alice.id).is_some_and(|r| r.notices.iter().any(|n| n.contains(expected))) {
                break;
            }
        }
    }
    bench.insert(&owned, &[vec!["back", ALICE, "x"]]);
    bench.until(&alice, "back").await;
    bench.stop().await;
}

#[tokio::test]
async fn a_filter_on_a_column_that_is_no_longer_granted_ends_with_the_reason() {
    let other = "create table other (id text primary key); alter publication supabase_realtime add table other;";
    let mut bench = Bench::new(&format!("{OWNED}{other}")).await;
    let (alice, watcher) = (port(), port());
    bench.subscribe(&alice, vec![entry(1, "owned", Some("kind=eq.x"))], ALICE).await;
    bench.subscribe(&watcher, vec![entry(2, "other", None)], ALICE).await;
    let other = bench.relation("other").await;
    bench
        .database
        .run("revoke select on owned from authenticated; grant select (id, user_id) on owned to authenticated")
        .await;
    let started = tokio::time::Instant::now();
    for mark in 0.. {
        assert!(started.elapsed() < DEADLINE, "the filter stayed in force");
        let marker = format!("m{mark}");
        bench.insert(&other, &[vec![&marker]]);
        let received = bench.until(&watcher, &marker).await;
        if received
            .get(&alice.id)
            .is_some_and(|r| r.notices.iter().any(|n| n.contains("invalid column for filter kind")))
        {
            break;
        }
    }
    bench.stop().await;
}
