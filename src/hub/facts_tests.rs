//! The keeper of facts over a real catalog and real rows; the stream is played by the test.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::FactsConfig;
use super::facts::Keeper;
use super::resolve::Target;
use super::rules::{RulesHandle, RulesReader};
use crate::catalog::{Catalog, Table};
use crate::change::{Lsn, Relation, RelationColumn, ReplicaIdentity, Timestamp, TransactionBuilder, Tuple, Value};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::pgtype::Equality;
use crate::policy::Options;
use crate::policy::facts::{self, FactState, Facts, Layout, LoadLimits, PublishError, Side};
use crate::policy::rule::{
    ColumnRef, CompareOp, Expr, FactSource, Kind, Rule, RuleColumn, Scalar, Subquery, Truth, Viewer,
};
use crate::task::Drain;
use crate::testing::{PATIENCE, TestDatabase};

const MEMBERS: &str = "create publication rowcast_facts;
    create table members (team text, person text, primary key (team, person));
    insert into members values ('red', 'ann');
    create table posts (id int primary key, team text);
    alter table posts enable row level security;
    create policy p on posts for select to authenticated
        using (exists (select from members m where m.team = posts.team and m.person = auth.uid()::text));
    alter publication supabase_realtime add table posts;";

/// A keeper with its facts, and the catalog as a hub has it.
struct Desk {
    database: TestDatabase,
    keeper: Keeper,
    facts: Facts,
    rules: RulesHandle,
    metrics: Arc<Metrics>,
    drain: Drain,
    lsn: u64,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.drain.drain();
    }
}

impl Desk {
    async fn new(sql: &str) -> Desk {
        Desk::with(sql, "relay", FactsConfig::default()).await
    }

    async fn with(sql: &str, login: &str, config: FactsConfig) -> Desk {
        let database = TestDatabase::new().await;
        database.run(sql).await;
        let (metrics, drain) = (Arc::new(Metrics::new()), Drain::new());
        let publications = (vec!["supabase_realtime".into()], vec![config.publication.clone()]);
        let stream = vec!["supabase_realtime".into(), config.publication.clone()];
        let (reader, rules) = RulesReader::new(
            database.pool(login),
            publications,
            Duration::from_millis(50),
            (Clock::system(), metrics.clone()),
            drain.clone(),
        );
        drop(crate::task::spawn("catalog", reader.run()));
        let facts = Facts::new(config.memory);
        let keeper = Keeper::new(database.pool(login), config, stream, Options::default(), metrics.clone());
        let mut desk = Desk { database, keeper, facts, rules, metrics, drain, lsn: 100 };
        desk.rules.with_role("authenticated", PATIENCE).await.expect("a catalog");
        desk
    }

    fn catalog(&self) -> Arc<Catalog> {
        self.rules.latest().expect("read").catalog
    }

    fn table(&self, name: &str) -> Arc<Table> {
        self.catalog().named("public", name).expect("the table").clone()
    }

    /// A subscription on `posts` looks into these columns of a table.
    fn look_into(&mut self, table: &str, columns: &[&str]) {
        let (posts, source) = (self.table("posts").oid, source(&self.table(table), columns));
        self.keeper.also.push(((posts, "authenticated".into()), source));
        self.keeper.forget_plans();
        let predicate = crate::filter::Predicate::everything();
        let (action, select, cursor_as) = (super::Action::All, None, None);
        let target = Target { table_oid: posts, entry_id: 1, entry: 0, action, predicate, select, cursor_as };
        self.keeper.want(&[target], &"authenticated".into());
        self.keeper.look_again();
    }

    /// Goes on as a hub does until the table's facts are as wanted.
    async fn until(&mut self, table: &str, what: &str, wanted: impl Fn(&FactState, &str) -> bool) {
        let (oid, deadline) = (self.table(table).oid, Instant::now() + PATIENCE);
        loop {
            let rules = self.rules.latest().expect("read");
            self.keeper.tend(&mut self.facts, &rules, &self.rules);
            let state = self.keeper.describe(&self.facts).into_iter().find(|of| of.table.ends_with(table));
            let label = state.as_ref().map_or("", |state| state.state);
            if wanted(&self.facts.state(oid), label) {
                return;
            }
            assert!(Instant::now() < deadline, "{table} is never {what}: {state:?}");
            tokio::select! {
                () = self.keeper.finished() => {}
                () = self.rules.changed() => self.keeper.look_again(),
                () = tokio::time::sleep(Duration::from_millis(5)) => self.keeper.look_again(),
            }
        }
    }

    async fn ready(&mut self, table: &str) {
        self.until(table, "ready", |state, label| matches!(state, FactState::Ready { .. }) && label == "ready").await;
    }

    /// Plays a transaction of rows: an operation of `+` (INSERT) or `-` (DELETE) each.
    fn play(&mut self, xid: u32, table: &str, rows: &[(char, &[&str])]) {
        let relation = relation(&self.table(table));
        let mut builder = TransactionBuilder::default();
        for (operation, row) in rows {
            let (tag, kind) = if *operation == '+' { (b'I', b'N') } else { (b'D', b'K') };
            let mut raw = vec![kind];
            Tuple::encode(row.iter().map(|text| Value::Text(text.as_bytes())), &mut raw);
            builder.row(tag, &relation, &Bytes::from(raw)).expect("a row");
        }
        self.lsn += 10;
        let lsn = Lsn(self.lsn);
        let transaction = builder.finish(xid, lsn, lsn, Timestamp(0), None);
        assert!(self.facts.concerns(&transaction.relations) || self.facts.state(relation.oid) == FactState::Absent);
        self.facts.begin(&transaction).expect("readable");
        self.facts.end();
    }

    /// Whether this person is in this team, by the facts.
    fn is_member(&self, team: &str, person: &str) -> bool {
        let rule = membership(&self.table("members"));
        let binding = self.facts.bind(&rule).expect("ready");
        let row = |column: usize| Value::Text([team, person][column].as_bytes());
        rule.truth(&binding, &self.facts, Side::After, &row, &Viewer::new([])) == Truth::True
    }

    /// A session in a transaction that has done this, and its id.
    async fn open(&self, sql: &str) -> (tokio_postgres::Client, u32) {
        let client = self.database.config("relay").connect().await.expect("connected");
        client.batch_execute(&format!("begin; {sql}")).await.expect("done");
        let row = client.query_one("select (pg_current_xact_id()::text::numeric % 4294967296)::text", &[]).await;
        let xid = row.expect("an id").get::<_, &str>(0).parse().expect("a number");
        (client, xid)
    }

    /// Does this in a transaction of its own; returns its id.
    async fn commit(&self, sql: &str) -> u32 {
        let (client, xid) = self.open(sql).await;
        client.batch_execute("commit").await.expect("committed");
        xid
    }
}

fn columns(table: &Table, names: &[&str]) -> Vec<RuleColumn> {
    let column = |name: &&str| {
        let column = table.column(name).expect("the column");
        RuleColumn { name: column.name.clone(), number: column.number, kind: text() }
    };
    names.iter().map(column).collect()
}

fn text() -> Kind {
    Kind { oid: 25, equality: Equality::Bytes, order: None }
}

fn source(table: &Table, names: &[&str]) -> FactSource {
    let name = format!("{}.{}", table.schema, table.name).into();
    FactSource { table_oid: table.oid, table: name, columns: columns(table, names) }
}

/// `exists (select from members m where m.team = row.team and m.person = row.person)`.
fn membership(members: &Table) -> Rule {
    let source = source(members, &["team", "person"]);
    let equal = |column: u16| {
        let of = |slot| Scalar::Column(ColumnRef { slot, column });
        Expr::Compare(CompareOp::Eq, text(), Box::new((of(1), of(0))))
    };
    let condition = Expr::And(vec![equal(0), equal(1)]);
    let reads = columns(members, &["team", "person"]);
    let exists = Expr::Exists(Box::new(Subquery { slots: vec![1], condition, outputs: Vec::new() }));
    Rule { condition: exists, reads, claims: Vec::new(), sources: vec![source] }
}

fn relation(table: &Table) -> Arc<Relation> {
    let columns = table.columns.iter().map(|column| RelationColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        key: table.primary_key.contains(&column.name),
    });
    let (oid, schema, name) = (table.oid, table.schema.clone(), table.name.clone());
    Arc::new(Relation { oid, schema, table: name, identity: ReplicaIdentity::Default, columns: columns.collect() })
}

fn layout(desk: &Desk, table: &str) -> Arc<Layout> {
    let (catalog, table) = (desk.catalog(), desk.table(table));
    let all: BTreeSet<i16> = table.columns.iter().map(|column| column.number).collect();
    Arc::new(Layout::of(&table, catalog.types(), &all).expect("fit"))
}

const LIMITS: LoadLimits = LoadLimits { bytes: 1 << 20, deadline: PATIENCE };

#[tokio::test]
async fn a_table_that_a_rule_looks_into_is_published_loaded_and_followed() {
    let mut desk = Desk::new(MEMBERS).await;
    desk.look_into("members", &["team", "person"]);
    desk.ready("members").await;
    assert!(desk.is_member("red", "ann") && !desk.is_member("red", "bob"));
    let listed = "select count(*) from pg_publication_tables where pubname = 'rowcast_facts' and tablename = 'members'";
    assert_eq!(desk.database.client.query_one(listed, &[]).await.unwrap().get::<_, i64>(0), 1);
    let xid = desk.commit("insert into members values ('red', 'bob')").await;
    desk.play(xid, "members", &[('+', &["red", "bob"])]);
    assert!(desk.is_member("red", "bob"));
    let xid = desk.commit("delete from members").await;
    desk.play(xid, "members", &[('-', &["red", "ann"]), ('-', &["red", "bob"])]);
    assert!(!desk.is_member("red", "ann") && !desk.is_member("red", "bob"));
    assert_eq!(desk.metrics.fact_loads.get_or_create(&[("result", "loaded")]).get(), 1);
}

/// A commit is in the stream before others see it, when a synchronous standby hangs for instance.
#[tokio::test]
async fn a_transaction_that_the_snapshot_does_not_see_is_folded_and_one_that_it_sees_is_not() {
    let mut desk = Desk::new(MEMBERS).await;
    let layout = layout(&desk, "members");
    desk.facts.record(layout.clone());
    let (hanging, unseen) = desk.open("insert into members values ('red', 'unseen')").await;
    let seen = desk.commit("insert into members values ('red', 'seen')").await;
    desk.play(unseen, "members", &[('+', &["red", "unseen"])]);
    let (table, snapshot) = facts::load(&desk.database.pool("relay"), &layout, &LIMITS).await.expect("loaded");
    assert!(snapshot.sees(seen) && !snapshot.sees(unseen));
    desk.facts.install(table, &snapshot).expect("installed");
    hanging.batch_execute("commit").await.expect("committed");
    assert!(desk.is_member("red", "unseen"), "lost in the seam");
    // The stream comes to what the snapshot saw already.
    desk.play(seen, "members", &[('+', &["red", "seen"])]);
    let gone = desk.commit("delete from members where person = 'seen'").await;
    desk.play(gone, "members", &[('-', &["red", "seen"])]);
    assert!(!desk.is_member("red", "seen"), "counted twice");
    assert!(desk.is_member("red", "ann"));
}

#[tokio::test]
async fn who_began_to_write_before_the_table_was_published_is_waited_for() {
    let mut desk = Desk::new(MEMBERS).await;
    let (writer, _) = desk.open("insert into members values ('red', 'bob')").await;
    desk.look_into("members", &["team", "person"]);
    desk.until("members", "loading", |_, label| label == "loading").await;
    // Had nobody waited, it would be loaded long before the catalog has been read some times.
    for _ in 0..10 {
        desk.rules.changed().await;
        desk.until("members", "loading", |_, label| label == "loading").await;
    }
    writer.batch_execute("commit").await.expect("committed");
    desk.ready("members").await;
    assert!(desk.is_member("red", "bob"), "it is not in the stream, and was not in the snapshot");
}

#[tokio::test]
async fn what_no_row_in_the_stream_tells_is_loaded_again() {
    let mut desk = Desk::new(MEMBERS).await;
    desk.look_into("members", &["team", "person"]);
    desk.ready("members").await;
    // As a partition that is attached, or an ALTER TABLE that rewrites: nothing of it is played.
    desk.database
        .run("insert into members values ('blue', 'bob'); alter table members add lot int default (random() * 9)::int")
        .await;
    let blue =
        |desk: &Desk| desk.facts.bind(&membership(&desk.table("members"))).is_ok() && desk.is_member("blue", "bob");
    let deadline = Instant::now() + PATIENCE;
    while !blue(&desk) {
        assert!(Instant::now() < deadline, "never loaded again");
        desk.rules.changed().await;
        desk.keeper.look_again();
        desk.ready("members").await;
    }
    // A hole in the stream.
    desk.database.run("insert into members values ('red', 'carl')").await;
    desk.keeper.distrust(&mut desk.facts);
    assert!(desk.facts.bind(&membership(&desk.table("members"))).is_err(), "not trusted any more");
    desk.ready("members").await;
    assert!(desk.is_member("red", "carl"));
}

#[tokio::test]
async fn partitions_come_and_go_with_their_rows() {
    let sql = "create publication rowcast_facts;
        create table members (team text, person text, primary key (team, person)) partition by list (team);
        create table members_red partition of members for values in ('red');
        create table members_blue partition of members for values in ('blue');
        create table members_grey (team text not null, person text not null, primary key (team, person));
        insert into members values ('red', 'ann'), ('blue', 'ann'); insert into members_grey values ('grey', 'ann');
        create table posts (id int primary key, team text);
        alter table posts enable row level security;
        create policy p on posts for select to authenticated
            using (exists (select from members m where m.team = posts.team and m.person = auth.uid()::text));
        alter publication supabase_realtime add table posts;";
    let mut desk = Desk::new(sql).await;
    desk.look_into("members", &["team", "person"]);
    desk.ready("members").await;
    let teams = |desk: &Desk| ["red", "blue", "grey"].map(|team| desk.is_member(team, "ann"));
    assert_eq!(teams(&desk), [true, true, false]);
    // Attached with its rows, of which the stream tells nothing.
    let attach = "alter table members attach partition members_grey for values in ('grey')";
    let detach = "alter table members detach partition members_red";
    for (change, wanted) in [(attach, [true, true, true]), (detach, [false, true, true])] {
        desk.database.run(change).await;
        let deadline = Instant::now() + PATIENCE;
        while teams(&desk) != wanted {
            assert!(Instant::now() < deadline, "{change} went by unseen");
            desk.rules.changed().await;
            desk.keeper.look_again();
            desk.ready("members").await;
        }
    }
    // Rows come under the partition's name, and its TRUNCATE is of its own rows only.
    let row = desk.database.client.query_one("select 'members_blue'::regclass::oid", &[]).await.expect("a row");
    let blue = Arc::new(Relation { oid: row.get(0), ..relation(&desk.table("members")).as_ref().clone() });
    let mut builder = TransactionBuilder::default();
    builder.truncate(0, &[blue]).expect("a record");
    let xid = desk.commit("truncate members_blue").await;
    let transaction = builder.finish(xid, Lsn(900), Lsn(900), Timestamp(0), None);
    assert!(desk.facts.concerns(&transaction.relations));
    desk.facts.begin(&transaction).expect("readable");
    desk.facts.end();
    assert_eq!(teams(&desk), [false, false, true]);
}

#[tokio::test]
async fn more_columns_are_loaded_when_another_rule_reads_them() {
    let mut desk = Desk::new(MEMBERS).await;
    desk.database.run("alter table members add rank text; update members set rank = 'captain'").await;
    desk.rules.request();
    while desk.table("members").column("rank").is_none() {
        desk.rules.changed().await;
    }
    desk.look_into("members", &["team", "person"]);
    desk.ready("members").await;
    let mut rule = membership(&desk.table("members"));
    rule.sources[0].columns = columns(&desk.table("members"), &["team", "person", "rank"]);
    assert!(desk.facts.bind(&rule).is_err(), "the column is not there yet");
    desk.look_into("members", &["rank"]);
    desk.ready("members").await;
    assert!(desk.facts.bind(&rule).is_ok());
}

#[tokio::test]
async fn what_does_not_fit_into_memory_is_left_to_postgres_and_said_so() {
    let sql =
        format!("{MEMBERS} insert into members select 'team ' || n, 'person ' || n from generate_series(1, 20000) n;");
    let config = FactsConfig { memory: 100_000, ..FactsConfig::default() };
    let mut desk = Desk::with(&sql, "relay", config).await;
    desk.look_into("members", &["team", "person"]);
    desk.until("members", "given up", |state, label| label == "resting" && *state == FactState::Absent).await;
    let said = desk.keeper.describe(&desk.facts);
    assert!(said[0].why.contains("memory") && said[0].remedy.contains("ROWCAST_FACTS_MEMORY"), "{said:?}");
    assert_eq!(desk.metrics.fact_loads.get_or_create(&[("result", "too_large")]).get(), 1);
    assert_eq!(desk.metrics.rules_without_facts.get(), 1);
    let posts = relation(&desk.table("posts"));
    assert!(!desk.keeper.holds(&[posts]), "nobody waits for what will not come");
}

#[tokio::test]
async fn a_login_without_the_right_is_told_the_statement_and_goes_on_when_it_was_run() {
    let sql = format!("{MEMBERS} grant select on members to plain_relay;");
    let mut desk = Desk::with(&sql, "plain_relay", FactsConfig::default()).await;
    desk.look_into("members", &["team", "person"]);
    desk.until("members", "refused", |_, label| label == "refused").await;
    let said = desk.keeper.describe(&desk.facts).remove(0);
    assert!(said.remedy.starts_with("alter publication \"rowcast_facts\" add table"), "{said:?}");
    desk.database.run(&said.remedy).await;
    desk.ready("members").await;
    assert!(desk.is_member("red", "ann"));
    // What a login subject to the policies would read is nothing, and not the truth.
    desk.database.run("alter table members enable row level security").await;
    desk.until("members", "refused", |state, label| label == "refused" && *state == FactState::Absent).await;
    let said = desk.keeper.describe(&desk.facts).remove(0);
    assert!(said.remedy.contains("bypassrls"), "{said:?}");
    let pool = desk.database.pool("plain_relay");
    let refused = facts::load(&pool, &layout(&desk, "members"), &LIMITS).await.err().expect("refused");
    assert!(crate::error::chain(&refused).contains("row-level security"), "{refused}");
}

#[tokio::test]
async fn nothing_is_published_that_would_break_its_writers_or_the_slot() {
    let sql = "create publication rowcast_facts; create publication other;
        create table bare (n int); create table keyed (id int primary key);
        create table late (id int, constraint k primary key (id) deferrable);
        create table parts (id int primary key) partition by range (id);
        create table parts_1 partition of parts for values from (0) to (9);
        alter table parts_1 replica identity nothing;
        create table posts (id int primary key); alter table posts enable row level security;
        create policy p on posts for select to authenticated using (exists (select from bare)
            or exists (select from keyed) or exists (select from late) or exists (select from parts));
        alter publication supabase_realtime add table posts;
        alter publication other add table keyed (id);";
    let desk = Desk::new(sql).await;
    let pool = desk.database.pool("relay");
    let stream = |other: &str| vec!["supabase_realtime".to_owned(), "rowcast_facts".into(), other.into()];
    for (name, why) in [
        ("bare", "no replica identity"),
        ("late", "no replica identity"),
        ("parts", "parts_1 has no replica identity"),
        ("keyed", "column list"),
    ] {
        let table = desk.table(name);
        let error = facts::add(&pool, "rowcast_facts", &stream("other"), &table).await.expect_err(name);
        assert!(matches!(&error, PublishError::Unfit(text) if text.contains(why)), "{name}: {error}");
    }
    let listed = "select count(*) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where pubname = 'rowcast_facts'";
    assert_eq!(desk.database.client.query_one(listed, &[]).await.unwrap().get::<_, i64>(0), 0, "all taken out again");
    // In a publication that the stream does not read, it harms nobody.
    facts::add(&pool, "rowcast_facts", &stream("nothing"), &desk.table("keyed")).await.expect("added");
    facts::add(&pool, "rowcast_facts", &stream("nothing"), &desk.table("keyed")).await.expect("it is there already");
    desk.database.run("insert into bare values (1); update bare set n = 2; update parts set id = 3").await;
}

#[tokio::test]
async fn facts_are_not_put_into_force_under_rules_that_were_read_before_them() {
    let mut desk = Desk::new(MEMBERS).await;
    desk.look_into("members", &["team", "person"]);
    desk.until("members", "loading", |_, label| label == "loading").await;
    // A hub that has no newer reading than this one.
    let before = desk.rules.latest().expect("read");
    let loaded = |desk: &Desk| desk.metrics.fact_loads.get_or_create(&[("result", "loaded")]).get();
    tokio::time::timeout(PATIENCE, desk.keeper.finished()).await.expect("the load ends");
    for _ in 0..10 {
        desk.rules.changed().await;
        desk.keeper.look_again();
        desk.keeper.tend(&mut desk.facts, &before, &desk.rules);
        assert!(matches!(desk.facts.state(desk.table("members").oid), FactState::Recording { .. }));
        assert_eq!(loaded(&desk), 0, "together they would be the rights of no moment");
    }
    // The stream goes on meanwhile.
    let xid = desk.commit("insert into members values ('red', 'bob')").await;
    desk.play(xid, "members", &[('+', &["red", "bob"])]);
    desk.ready("members").await;
    assert_eq!(loaded(&desk), 1);
    assert!(desk.is_member("red", "ann") && desk.is_member("red", "bob"));
}

#[tokio::test]
async fn rows_wait_for_facts_that_are_on_their_way_and_no_longer_than_they_may() {
    let wait = Duration::from_millis(300);
    let mut desk = Desk::with(MEMBERS, "relay", FactsConfig { wait, ..FactsConfig::default() }).await;
    let (writer, _) = desk.open("insert into members values ('red', 'bob')").await;
    let posts = relation(&desk.table("posts"));
    desk.look_into("members", &["team", "person"]);
    let began = Instant::now();
    let rules = desk.rules.latest().expect("read");
    desk.keeper.tend(&mut desk.facts, &rules, &desk.rules);
    assert!(desk.keeper.holds(std::slice::from_ref(&posts)) || began.elapsed() >= wait);
    assert!(desk.keeper.wake_at().is_some_and(|at| at <= began + wait + PATIENCE));
    desk.until("members", "loading", |_, label| label == "loading").await;
    while desk.keeper.holds(std::slice::from_ref(&posts)) {
        assert!(began.elapsed() < wait + PATIENCE, "it waits for ever");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(began.elapsed() >= wait, "it did not wait: {:?}", began.elapsed());
    assert!(desk.keeper.hopes(), "and yet it comes");
    let other = relation(&desk.table("members"));
    assert!(!desk.keeper.holds(&[other]), "what no rule decides about by these facts does not wait");
    writer.batch_execute("commit").await.expect("committed");
    desk.ready("members").await;
    assert!(!desk.keeper.hopes());
}

#[tokio::test]
async fn a_load_that_is_cut_off_leaves_nothing_and_is_tried_again() {
    let rows = "insert into members select 'team ' || n, 'person ' || n from generate_series(1, 20000) n;";
    let mut desk = Desk::new(&format!("{MEMBERS} {rows} alter publication rowcast_facts add table members;")).await;
    let way = desk.database.way("relay");
    let pool = way.config.pool().expect("a pool");
    let layout = layout(&desk, "members");
    let half = 300_000;
    way.left.store(half, std::sync::atomic::Ordering::Relaxed);
    let outcome = facts::load(&pool, &layout, &LoadLimits { bytes: 64 << 20, deadline: PATIENCE }).await;
    let error = outcome.err().expect("half of the rows are no rows");
    assert!(matches!(error, facts::LoadError::Pg(_)), "{error}");
    assert!(way.left.load(std::sync::atomic::Ordering::Relaxed) < half / 2, "the rows were on their way");
    // The same under a keeper.
    let config = FactsConfig::default();
    let stream = vec!["supabase_realtime".into(), config.publication.clone()];
    desk.keeper = Keeper::new(pool, config, stream, Options::default(), desk.metrics.clone());
    desk.look_into("members", &["team", "person"]);
    desk.until("members", "resting", |state, label| label == "resting" && *state == FactState::Absent).await;
    assert!(desk.keeper.hopes(), "it may pass: {:?}", desk.keeper.describe(&desk.facts));
    assert!(desk.keeper.describe(&desk.facts)[0].why.contains("could not be read"));
    way.left.store(usize::MAX, std::sync::atomic::Ordering::Relaxed);
    desk.ready("members").await;
    assert!(desk.is_member("team 20000", "person 20000") && desk.is_member("red", "ann"));
}

#[tokio::test]
async fn a_table_that_changes_more_than_there_is_room_for_while_it_is_loaded_is_loaded_again_later() {
    let config = FactsConfig { memory: 100_000, ..FactsConfig::default() };
    let mut desk = Desk::with(MEMBERS, "relay", config).await;
    let (writer, _) = desk.open("insert into members values ('red', 'bob')").await;
    desk.look_into("members", &["team", "person"]);
    desk.until("members", "loading", |_, label| label == "loading").await;
    let members = desk.table("members").oid;
    for n in 0.. {
        desk.play(2_000_000 + n, "members", &[('+', &["blue", &format!("person {n}")])]);
        assert!(desk.facts.bytes() <= 100_000, "more than there may be");
        if let FactState::Broken(why) = desk.facts.state(members) {
            assert!(why.contains("while it was loaded"), "{why}");
            break;
        }
    }
    desk.until("members", "resting", |state, label| label == "resting" && *state == FactState::Absent).await;
    assert_eq!(desk.metrics.fact_loads.get_or_create(&[("result", "broken")]).get(), 1);
    writer.batch_execute("commit").await.expect("committed");
    desk.ready("members").await;
    assert!(desk.is_member("red", "bob") && !desk.is_member("blue", "person 0"), "the played ones were never there");
}
