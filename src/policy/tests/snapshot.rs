//! Snapshots are what a SELECT as the role shows, and what the live filter lets through.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::support::*;
use crate::catalog::Catalog;
use crate::change::{Change, Position, RowChange, Tuple};
use crate::claims::Principal;
use crate::filter::{self, ColumnSpec, FilterAnswer, FilterAskConfig, FilterAsker, FilterQuestion, Validator};
use crate::metrics::Metrics;
use crate::pgtype::type_name;
use crate::policy::{Asked, DenyReason, Options, Selection, Shown, SnapshotConfig, SnapshotError, Taker};
use crate::testing::TestDatabase;

const USERS: &str = "authenticated";

fn taker(database: &TestDatabase, config: SnapshotConfig) -> Taker {
    Taker::new(database.asking_pool("plain_relay"), config, Arc::new(Metrics::new()))
}

const ALL: Asked<'static> = Asked { filter: &[], select: None, limit: 100, order: &[] };

fn selection(catalog: &Catalog, table: &str, asked: Asked<'_>) -> Result<Selection, SnapshotError> {
    let table = catalog.find("public", table).expect("published");
    Selection::new(catalog, table, USERS, Options::default(), asked)
}

async fn shown(database: &TestDatabase, selection: Selection, principal: &Principal) -> Shown {
    let taken = taker(database, SnapshotConfig::default()).take("", principal, &[selection]).await;
    taken.expect("taken").shown.remove(0)
}

fn texts_of(row: &Tuple) -> Vec<Option<&str>> {
    row.values().map(|value| value.as_str()).collect()
}

fn first_column(shown: &Shown) -> Vec<&str> {
    shown.rows.iter().filter_map(|row| row.get(0).as_str()).collect()
}

async fn notes(policy: &str) -> (TestDatabase, Catalog) {
    let mut database = TestDatabase::new().await;
    database
        .run(&format!(
            "create table t (id int primary key, user_id uuid, body text, secret text, twice int generated always as (id * 2) stored);
             alter table t enable row level security; create policy p on t using ({policy});
             revoke select on t from authenticated; grant select (id, user_id, body) on t to authenticated;
             insert into t select n, case when n % 2 = 0 then '{ALICE}' else '{BOB}' end::uuid, 'body ' || n, 'secret' from generate_series(1, 9) n;
             insert into t values (10, '{ALICE}', E'odd \"quoted\\\\\" (x, y)', 's'), (11, '{ALICE}', '', 's'), (12, '{ALICE}', null, 's');
             alter publication supabase_realtime add table t"
        ))
        .await;
    let catalog = catalog(&mut database, &[USERS]).await;
    (database, catalog)
}

#[tokio::test]
async fn each_user_is_shown_his_rows_and_the_columns_that_the_role_may_select() {
    let (database, catalog) = notes("user_id = auth.uid()").await;
    let alice = shown(&database, selection(&catalog, "t", ALL).unwrap(), &user(ALICE)).await;
    let rows: Vec<_> = alice.rows.iter().map(texts_of).collect();
    let row = |id, body| vec![Some(id), Some(ALICE), body, None];
    assert_eq!(
        rows[3..],
        [row("8", Some("body 8")), row("10", Some(r#"odd "quoted\" (x, y)"#)), row("11", Some("")), row("12", None)]
    );
    let columns: Vec<usize> = (0..5).filter(|i| alice.permit.new_columns().contains(*i)).collect();
    assert_eq!((columns, alice.more, alice.relation.columns.len()), (vec![0, 1, 2], false, 4));
    assert!(alice.permit.old_columns() == &Default::default());
    let bob = shown(&database, selection(&catalog, "t", ALL).unwrap(), &user(BOB)).await;
    assert_eq!(first_column(&bob), ["1", "3", "5", "7", "9"]);
}

#[tokio::test]
async fn the_limit_takes_the_first_by_the_order_and_the_newest_comes_last() {
    let (database, catalog) = notes("true").await;
    let order = |columns: &[(&str, bool)]| columns.iter().map(|(name, desc)| ((*name).into(), *desc)).collect();
    for (columns, expected) in [
        (&[][..], ["10", "11", "12"]),
        (&[("id", true)], ["10", "11", "12"]),
        (&[("id", false)], ["1", "2", "3"]),
        (&[("user_id", false), ("id", true)], ["12", "11", "10"]),
        (&[("user_id", true)], ["5", "7", "9"]),
    ] {
        let order: Vec<(String, bool)> = order(columns);
        let selection = selection(&catalog, "t", Asked { limit: 3, order: &order, ..ALL }).unwrap();
        let shown = shown(&database, selection, &user(ALICE)).await;
        assert_eq!((first_column(&shown), shown.more), (expected.to_vec(), true), "{columns:?}");
    }
    for column in ["secret", "twice", "nothing", "id; drop table t"] {
        let order: Vec<(String, bool)> = order(&[(column, false)]);
        let refused = selection(&catalog, "t", Asked { order: &order, ..ALL }).unwrap_err();
        assert_eq!(refused, SnapshotError::Order(column.into()));
    }
}

#[tokio::test]
async fn selected_columns_alone_are_read() {
    let (database, catalog) = notes("user_id = auth.uid()").await;
    let select: BTreeSet<String> = ["id", "secret"].map(String::from).into();
    let selection = selection(&catalog, "t", Asked { select: Some(&select), limit: 1, ..ALL }).unwrap();
    let shown = shown(&database, selection, &user(ALICE)).await;
    assert_eq!(texts_of(&shown.rows[0]), [Some("12"), None, None, None]);
    assert!(shown.permit.new_columns().contains(0) && !shown.permit.new_columns().contains(3));
}

#[tokio::test]
async fn what_the_live_feed_never_sends_is_not_shown() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table no_key (id int); insert into no_key values (1);
             create table hidden_key (id int primary key, body text); revoke select on hidden_key from authenticated;
             grant select (body) on hidden_key to authenticated;
             create table part (id int primary key, room int) partition by range (id); alter table part enable row level security;
             create table part_1 partition of part for values from (0) to (10); insert into part values (1, 1);
             create table parent (id int primary key); create table child (more int) inherits (parent);
             insert into parent values (1); insert into child values (2, 2);
             create table few (id int primary key); insert into few select generate_series(1, 5);
             alter publication supabase_realtime add table no_key, hidden_key, part_1, only parent, few where (id > 3)",
        )
        .await;
    let catalog = catalog(&mut database, &[USERS, "relay"]).await;
    for (table, reason) in [
        ("no_key", DenyReason::NoPrimaryKey),
        ("hidden_key", DenyReason::NoGrant),
        ("part_1", DenyReason::UnprotectedPartition),
    ] {
        assert_eq!(selection(&catalog, table, ALL).unwrap_err(), SnapshotError::Barred(reason), "{table}");
    }
    let superuser = catalog.find("public", "few").expect("published");
    let refused = Selection::new(&catalog, superuser, "relay", Options::default(), ALL).unwrap_err();
    assert_eq!(refused, SnapshotError::Barred(DenyReason::SuperuserRole));
    for (table, expected) in [("parent", vec!["1"]), ("few", vec!["4", "5"])] {
        let shown = shown(&database, selection(&catalog, table, ALL).unwrap(), &user(ALICE)).await;
        assert_eq!(first_column(&shown), expected);
    }
}

#[tokio::test]
async fn of_a_policy_that_raises_hangs_or_writes_there_is_no_snapshot_at_all() {
    for (policy, expected) in [
        ("1 / (id - 5) <> 0", SnapshotError::Refused("22012".into())),
        ("id < 5 or pg_sleep(60) is null", SnapshotError::Timeout(Duration::from_millis(200))),
        ("id < 5 or auth.wrote()", SnapshotError::Refused("25006".into())),
    ] {
        let mut database = TestDatabase::new().await;
        database
            .run(&format!(
                "create table log (n int); grant all on log to public;
                 create function auth.wrote() returns bool language sql as $$ insert into public.log values (1) returning true $$;
                 create table t (id int primary key); alter table t enable row level security;
                 create policy p on t using ({policy}); insert into t select generate_series(1, 9);
                 alter publication supabase_realtime add table t"
            ))
            .await;
        let catalog = catalog(&mut database, &[USERS]).await;
        let config = SnapshotConfig { statement_timeout: Duration::from_millis(200), ..SnapshotConfig::default() };
        let taker = taker(&database, config);
        let selection = selection(&catalog, "t", ALL).unwrap();
        let refused = taker.take("", &user(ALICE), &[selection]).await.unwrap_err();
        assert_eq!(refused, expected, "{policy}");
    }
}

#[tokio::test]
async fn a_role_of_another_kind_is_not_left_behind_for_the_next() {
    let (database, catalog) = notes("user_id = auth.uid()").await;
    let config = SnapshotConfig { connections: 1, ..SnapshotConfig::default() };
    let taker = taker(&database, config);
    let selection = selection(&catalog, "t", ALL).unwrap();
    for _ in 0..3 {
        for (who, count) in [(user(ALICE), 7), (user(BOB), 5), (principal(USERS, json!({})), 0)] {
            let taken = taker.take("", &who, std::slice::from_ref(&selection)).await.unwrap();
            assert_eq!(taken.shown[0].rows.len(), count);
        }
    }
}

#[tokio::test]
async fn too_many_bytes_are_refused_and_what_is_held_is_given_back() {
    let (database, catalog) = notes("true").await;
    let size = |max_bytes| SnapshotConfig { max_bytes, max_held: 2048, ..SnapshotConfig::default() };
    let selection = selection(&catalog, "t", ALL).unwrap();
    let refused = taker(&database, size(100)).take("", &user(ALICE), std::slice::from_ref(&selection)).await;
    assert_eq!(refused.unwrap_err(), SnapshotError::TooLarge(100));
    let deadline = Duration::from_millis(500);
    let taker = taker(&database, SnapshotConfig { deadline, ..size(2048) });
    let first = taker.take("", &user(ALICE), std::slice::from_ref(&selection)).await.unwrap();
    let busy = taker.take("", &user(ALICE), std::slice::from_ref(&selection)).await;
    assert_eq!(busy.unwrap_err(), SnapshotError::Busy);
    drop(first);
    assert!(taker.take("", &user(ALICE), &[selection]).await.is_ok());
}

const TYPES: &str = "create type mood as enum ('sad', 'ok', 'happy'); create domain short as varchar(5);
    create type pair as (a int, b int);
    create table f (id int primary key, n bigint, t text, v short, b bool, at timestamptz, m mood, x numeric, c text collate \"C\", l int[], p pair);
    insert into f values (1, 1, 'one', 'a', true, '2026-01-01', 'sad', 1.0, 'a', '{1}', '(1,1)'),
        (2, 2, 'two', 'b', false, '2026-02-01', 'ok', 2.50, 'B', '{2,3}', '(,)'),
        (3, null, null, null, null, null, null, null, null, null, null),
        (4, -5, '', '', true, 'infinity', 'happy', 'NaN', '', '{}', '(2,)'),
        (5, 10, 'ONE%', 'ä', false, '-infinity', 'ok', -0.1, 'b', '{NULL}', null),
        (6, 10, E'on\\ne', 'a\\', null, '2026-01-01 00:00:00.000001', 'sad', 1, E'\\\\', '{1}', '(1,1)');
    alter publication supabase_realtime add table f";

const FILTERS: &[&str] = &[
    "",
    "id=eq.3",
    "id=neq.3",
    "id=not.eq.3",
    "n=gt.1",
    "n=lte.10",
    "n=not.gt.1",
    "n=in.(1,10)",
    "n=not.in.(1,10)",
    "n=is.null",
    "n=not.is.null",
    "n=isdistinct.10",
    "n=not.isdistinct.10",
    "t=eq.one",
    "t=neq.one",
    "t=like.o%",
    "t=ilike.ON%",
    "t=not.like.%e",
    "t=match.^o",
    "t=imatch.^ONE",
    "t=not.match.^o",
    "t=gt.a",
    "t=lt.two",
    "v=eq.a",
    "v=in.(a,b)",
    "v=like.a%",
    "b=is.true",
    "b=is.false",
    "b=is.unknown",
    "b=not.is.true",
    "b=eq.true",
    "b=not.is.unknown",
    "at=gt.2026-01-01",
    "at=eq.2026-01-01",
    "at=lt.now",
    "m=eq.ok",
    "m=gt.sad",
    "m=in.(ok,happy)",
    "m=neq.ok",
    "x=eq.1",
    "x=gt.1",
    "x=isdistinct.1.00",
    "c=gt.a",
    "c=lte.B",
    "l=eq.{1}",
    "l=isdistinct.{1}",
    "l=not.isdistinct.{1}",
    "p=is.null",
    "p=not.is.null",
    "p=eq.(1,1)",
    "p=isdistinct.(1,1)",
    "t=in.()",
    "n=gt.0,b=is.false",
    "t=eq.",
    "id=in.(1,2,9)",
];

/// What the live feed makes of every row that is there.
async fn live(database: &TestDatabase, catalog: &Catalog, text: &str, all: &Shown) -> Result<Vec<String>, String> {
    let (validator, conditions) = (validator(database), filter::parse(text).map_err(|e| e.to_string())?);
    let table = catalog.find("public", "f").expect("published");
    let specs = specs(catalog, table);
    let predicate = validator.validate("", &conditions, &specs, catalog.types()).await.map_err(|e| e.to_string())?;
    let bound = predicate.bind(&all.relation).expect("bound");
    let (pool, metrics) = (database.pool("plain_relay"), Arc::new(Metrics::new()));
    let asker = FilterAsker::new(pool, FilterAskConfig::default(), metrics);
    let mut matching = Vec::new();
    for row in &all.rows {
        let change = Change::Insert { new: row.clone() };
        let mut matches = bound.matches(&change);
        let terms = bound.open(&change).to_vec();
        if matches && !terms.is_empty() {
            let (relation, position) = (all.relation.clone(), Position::default());
            let row = Arc::new(RowChange { relation, position, change });
            let answers = asker.judge(&FilterQuestion { row, terms: terms.clone() }).await;
            let accepted = |((term, _), (answer, _)): (&(Arc<filter::AskedTerm>, usize), &(FilterAnswer, Duration))| matches!(answer, FilterAnswer::Says(says) if term.accepts(*says));
            matches = terms.iter().zip(&answers).all(accepted);
        }
        if matches {
            matching.push(row.get(0).as_str().expect("an id").to_owned());
        }
    }
    Ok(matching)
}

fn validator(database: &TestDatabase) -> Validator {
    Validator::new(database.pool("plain_relay"), Duration::from_secs(1))
}

fn specs<'a>(catalog: &'a Catalog, table: &'a crate::catalog::Table) -> Vec<ColumnSpec<'a>> {
    let spec = |column: &'a crate::catalog::Column| ColumnSpec {
        name: &column.name,
        type_oid: column.type_oid,
        type_name: type_name(catalog.types(), column.type_oid),
        collation_deterministic: column.collation_deterministic,
        collation: column.collation.as_ref().map(|collation| &*collation.name),
        collation_bytewise: column.collation.as_ref().is_some_and(|collation| collation.bytewise),
        utf8: catalog.is_utf8(),
        readable: true,
    };
    table.columns.iter().map(spec).collect()
}

#[tokio::test]
async fn a_filter_selects_just_the_rows_that_it_would_let_through_live() {
    let mut database = TestDatabase::new().await;
    database.run(TYPES).await;
    let catalog = catalog(&mut database, &[USERS]).await;
    let all = shown(&database, selection(&catalog, "f", ALL).unwrap(), &user(ALICE)).await;
    assert_eq!(all.rows.len(), 6);
    let table = catalog.find("public", "f").expect("published");
    let mut some = 0;
    for text in FILTERS {
        let live = live(&database, &catalog, text, &all).await;
        let conditions = filter::parse(text).unwrap();
        let specs = specs(&catalog, table);
        let conditions = validator(&database).conditions("", &conditions, &specs, catalog.types()).await;
        let selected = match conditions {
            Ok(filter) => {
                let selection = selection(&catalog, "f", Asked { filter: &filter, ..ALL }).unwrap();
                let shown = shown(&database, selection, &user(ALICE)).await;
                Ok(first_column(&shown).into_iter().map(str::to_owned).collect::<Vec<_>>())
            }
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(selected, live, "{text}");
        some += selected.is_ok_and(|rows| !rows.is_empty()) as usize;
    }
    assert!(some > FILTERS.len() / 2, "{some}");
}
