//! Tables in and out of the publication, and what their settings mean for clients.

use super::{refused, run, value};
use crate::support::TestPg;

const ADD: &str = "publication_add_table.sql";
const REMOVE: &str = "publication_remove_table.sql";
const STATUS: &str = "publication_status.sql";
const IDENTITY: &str = "replica_identity.sql";

/// A login that owns the publication and its tables, and nothing else.
async fn with_owner() -> TestPg {
    let pg = TestPg::start().await;
    pg.exec(
        "create role keeper login; grant create on database postgres to keeper; grant create on schema public to keeper; grant usage on schema auth to keeper;
         alter publication supabase_realtime owner to keeper; set role keeper;
         create table public.\"Odd Orders\" (id int primary key, user_id uuid not null, note text);
         alter table public.\"Odd Orders\" enable row level security;
         create policy own on public.\"Odd Orders\" for select to authenticated using (user_id = auth.uid());
         create table public.keyless (n int);
         reset role; grant select on public.\"Odd Orders\" to authenticated",
    )
    .await;
    pg
}

async fn published(pg: &TestPg) -> String {
    let sql = "select coalesce(string_agg(tablename, ' ' order by tablename), '') from pg_publication_tables \
               where pubname = 'supabase_realtime'";
    value(pg, sql).await
}

#[tokio::test]
async fn a_table_is_added_twice_and_removed_twice_by_its_owner() {
    let pg = with_owner().await;
    let odd = [("table", "public.\"Odd Orders\"")];
    for expected in ["was added", "already"] {
        let printed = run(&pg, "keeper", ADD, &odd).await;
        printed.says(&[expected, "row-level security", "on", "own", "authenticated", "reaches nobody whose policy"]);
        assert_eq!(published(&pg).await, "Odd Orders");
    }
    // Without the schema, public is meant.
    run(&pg, "keeper", ADD, &[("table", "keyless")]).await.says(&["FAIL from now on", "enable row level security"]);
    assert_eq!(published(&pg).await, "Odd Orders keyless");
    for expected in ["was taken out", "is not in"] {
        run(&pg, "keeper", REMOVE, &odd).await.says(&[expected]);
        assert_eq!(published(&pg).await, "keyless");
    }
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_with_the_reason() {
    let pg = with_owner().await;
    pg.exec(
        "set role keeper; create view public.seen as select 1 as n; create unlogged table public.fleeting (id int primary key);
         reset role; create table public.others (id int primary key)",
    )
    .await;
    for (table, publication, says) in [
        ("public.absent", "supabase_realtime", "there is no table"),
        ("public.absent'; drop table public.keyless; --", "supabase_realtime", ""),
        ("public.seen", "supabase_realtime", "is not a table"),
        ("public.fleeting", "supabase_realtime", "set logged"),
        ("public.keyless", "absent", "there is no publication"),
        ("public.others", "supabase_realtime", "must be owner of table others"),
    ] {
        let variables = [("table", table), ("publication", publication)];
        refused(&pg, "keeper", ADD, &variables).await.says(&[says]);
    }
    // Different columns of one table in two publications of a stream would stop it for good.
    pg.exec("alter publication rowcast_facts add table public.keyless (n)").await;
    let keyless = [("table", "public.keyless")];
    refused(&pg, "keeper", ADD, &keyless).await.says(&["rowcast_facts lists some columns", "0A000"]);
    pg.exec("alter publication rowcast_facts drop table public.keyless").await;
    refused(&pg, "keeper", ADD, &[]).await.says(&["-v table="]);
    assert_eq!(published(&pg).await, "");
    assert!(value::<bool>(&pg, "select to_regclass('public.keyless') is not null").await);
}

#[tokio::test]
async fn the_status_names_the_deletes_that_nobody_will_get() {
    let pg = with_owner().await;
    pg.exec(
        "create role watcher login; set role keeper;
         create table public.whole (id int primary key, user_id uuid); alter table public.whole replica identity full;
         alter table public.whole enable row level security;
         create policy own on public.whole for select to authenticated using (user_id = auth.uid());
         create table public.root (id int, day date, primary key (id, day)) partition by range (day);
         create table public.leaf partition of public.root for values from ('2026-01-01') to ('2026-01-02');
         alter table public.root enable row level security;
         alter publication supabase_realtime add table public.\"Odd Orders\", public.keyless, public.whole, public.root",
    )
    .await;
    for _ in 0..2 {
        let printed = run(&pg, "watcher", STATUS, &[]).await;
        printed.says(&["NOBODY: the policies read user_id", "the DELETE itself fails", "its owner", "NO KEY"]);
        printed.says(&["alter table public.leaf enable row level security;"]);
    }
}

#[tokio::test]
async fn replica_identity_is_set_on_all_partitions_and_set_back() {
    let pg = with_owner().await;
    pg.exec(
        "set role keeper; create table public.root (id int, day date, primary key (id, day)) partition by range (day);
         create table public.leaf partition of public.root for values from ('2026-01-01') to ('2026-01-02')",
    )
    .await;
    let of = "select string_agg(relname || ' ' || relreplident::text, ', ' order by relname) from pg_class \
              where relname in ('root', 'leaf', 'Odd Orders')";
    for expected in ["before: alter table public.leaf replica identity default", "has that identity already"] {
        run(&pg, "keeper", IDENTITY, &[("table", "public.root"), ("identity", "full")]).await.says(&[expected]);
        assert_eq!(value::<String>(&pg, of).await, "Odd Orders d, leaf f, root f");
    }
    run(&pg, "keeper", IDENTITY, &[("table", "public.root"), ("identity", "default")]).await;
    assert_eq!(value::<String>(&pg, of).await, "Odd Orders d, leaf d, root d");

    pg.exec("create unique index odd on public.\"Odd Orders\" (id, user_id)").await;
    let index = [("table", "public.\"Odd Orders\""), ("identity", "index"), ("index", "odd")];
    for expected in ["using index odd", "already"] {
        run(&pg, "keeper", IDENTITY, &index).await.says(&[expected]);
    }
    let back = [("table", "public.\"Odd Orders\""), ("identity", "default")];
    run(&pg, "keeper", IDENTITY, &back).await.says(&["before", "using index odd"]);

    for (variables, says) in [
        (vec![("table", "public.root")], "give -v identity"),
        (vec![("table", "public.root"), ("identity", "index"), ("index", "odd")], "on each partition"),
        (vec![("table", "public.absent"), ("identity", "full")], "there is no table"),
    ] {
        refused(&pg, "keeper", IDENTITY, &variables).await.says(&[says]);
    }
    pg.exec("alter publication supabase_realtime add table public.keyless").await;
    let keyless = [("table", "public.keyless"), ("identity", "default")];
    refused(&pg, "keeper", IDENTITY, &keyless).await.says(&["no primary key and is published"]);
}
