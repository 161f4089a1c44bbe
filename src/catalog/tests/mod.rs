//! The catalog against a real server.

mod inner;
mod stream;

use std::collections::BTreeSet;

use super::*;
use crate::change::ReplicaIdentity;
use crate::pgtype::TypeKind;
use crate::testing::TestDatabase;

fn wanted(roles: &[&str]) -> Wanted {
    let publications = vec!["supabase_realtime".to_owned(), "missing".to_owned()];
    Wanted {
        publications,
        others: vec!["other".to_owned(), FACTS_PUBLICATION.to_owned()],
        roles: roles.iter().map(|r| (*r).to_owned()).collect(),
    }
}

async fn read_again(database: &mut TestDatabase, roles: &[&str]) -> Catalog {
    read(&mut database.client, &wanted(roles)).await.unwrap_or_else(|e| panic!("{}", crate::error::chain(&e)))
}

#[tokio::test]
async fn a_table_is_read_with_all_that_decides_about_it() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create domain owner_id as uuid; create type mood as enum ('a', 'b');
             create collation public.loose (provider = icu, locale = 'und', deterministic = false);
             create table \"Odd Name\" (gone int, b int, a int, user_id owner_id not null, tags text[], m mood,
                 folded text collate public.loose, twice int generated always as (b * 2) stored, primary key (a, b) include (m));
             alter table \"Odd Name\" drop column gone, enable row level security, replica identity full;
             create policy mine on \"Odd Name\" to authenticated using (user_id = auth.uid());
             create policy writers on \"Odd Name\" for insert with check (true);
             create policy checks on \"Odd Name\" with check (true);
             create policy whole on \"Odd Name\" as restrictive for select using (ctid is not null and b > 0);
             create table hidden (id int primary key);
             revoke select on \"Odd Name\" from anon; grant select (a, b) on \"Odd Name\" to anon;
             alter publication supabase_realtime add table \"Odd Name\"",
        )
        .await;
    let catalog = read_again(&mut database, &["anon", "authenticated", "nobody"]).await;
    let table = catalog.find("public", "Odd Name").expect("published").clone();
    assert!(catalog.find("public", "hidden").is_none());
    assert_eq!(table.primary_key, ["a", "b"]);
    assert_eq!(table.identity, ReplicaIdentity::Full);
    let names: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["b", "a", "user_id", "tags", "m", "folded", "twice"]);
    assert_eq!(table.columns[0].number, 2, "the dropped column keeps its number");
    assert!(!table.columns[5].collation_deterministic && table.columns[3].collation_deterministic);
    assert!(table.columns[6].generated && !table.is_sent(&table.columns[6]));
    assert!(table.row_security && !table.force_row_security);
    let policies: Vec<_> = table.policies.iter().map(|p| (p.name.as_str(), p.expression.as_deref())).collect();
    let expected = [
        ("checks", None),
        ("mine", Some("((user_id)::uuid = auth.uid())")),
        ("whole", Some("((ctid IS NOT NULL) AND (b > 0))")),
    ];
    assert_eq!(policies, expected);
    assert_eq!(table.policies[1].columns, [4]);
    assert_eq!(table.policies[1].roles, ["authenticated"]);
    assert!(table.policies[2].system_columns && !table.policies[2].permissive);
    let function = table.policies[1].functions.first().and_then(|oid| catalog.function(*oid)).expect("auth.uid");
    assert!(function.sql_body.as_deref().is_some_and(|b| b.contains("request.jwt.claim.sub")));
    assert!(function.executable_by.contains("anon"));
    assert_eq!(table.access["anon"].columns, BTreeSet::from([2, 3]));
    assert_eq!(table.access["anon"].policies, BTreeSet::from(["checks".to_owned(), "whole".to_owned()]));
    assert_eq!(table.access["authenticated"].columns.len(), 7);
    assert!(catalog.role("nobody").is_none() && catalog.role("anon").is_some_and(|r| r.assumable));
    assert_eq!(catalog.types().base_of(table.columns[2].type_oid), 2950);
    let tags = catalog.types().get(table.columns[3].type_oid).expect("text[]");
    assert_eq!(tags.kind, TypeKind::Array { element: 25, delimiter: b',' });
    assert!(catalog.types().get(25).is_some(), "the element's type is here too");
    assert!(catalog.is_utf8() && !catalog.has_foreign_claims());
}

#[tokio::test]
async fn rules_are_the_same_until_something_that_decides_changes() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create role same_rules_member; create role same_rules_group;
             create table t (id int primary key); alter table t enable row level security;
             create policy p on t to same_rules_group using (true);
             alter publication supabase_realtime add table t",
        )
        .await;
    let roles = ["same_rules_member"];
    let mut before = read_again(&mut database, &roles).await;
    database.run("insert into t values (1); create table other (x int)").await;
    let after = read_again(&mut database, &roles).await;
    assert!(before.same_rules(&after), "rows and unpublished tables are not rules");
    assert_ne!(before.snapshot, after.snapshot);
    // Since version 16 a membership itself says whether rights are inherited; the role's word counts for later grants only.
    let noinherit = if database.major().await < 16 {
        "alter role same_rules_member noinherit"
    } else {
        "grant same_rules_group to same_rules_member with inherit false"
    };
    for change in [
        "grant same_rules_group to same_rules_member",
        noinherit,
        "grant select on t to same_rules_member",
        "alter role same_rules_member bypassrls",
        "alter policy p on t using (id > 1)",
        "alter table t force row level security",
        "alter table t replica identity full",
        "alter table t add column note text",
        "alter publication supabase_realtime set (publish = 'insert')",
        "alter publication supabase_realtime drop table t",
    ] {
        database.run(change).await;
        let after = read_again(&mut database, &roles).await;
        assert!(!before.same_rules(&after), "{change}");
        before = after;
    }
    database.run("drop table t; drop role same_rules_member; drop role same_rules_group").await;
}

#[tokio::test]
async fn the_snapshot_tells_whether_a_transaction_is_in_the_read() {
    let mut database = TestDatabase::new().await;
    database.run("create table t (id int)").await;
    let writer = database.config("relay").connect().await.expect("connects");
    writer.batch_execute("begin; insert into t values (1)").await.expect("inserts");
    let row = writer.query_one("select pg_current_xact_id()::xid::text", &[]).await.expect("an id");
    let xid: u32 = row.get::<_, String>(0).parse().expect("a number");
    let during = read_again(&mut database, &[]).await;
    writer.batch_execute("commit").await.expect("commits");
    let after = read_again(&mut database, &[]).await;
    assert!(!during.snapshot.sees(xid));
    assert!(after.snapshot.sees(xid));
}

#[tokio::test]
async fn partitions_know_their_ancestors_and_roots_what_old_rows_hold() {
    let mut database = TestDatabase::new().await;
    database
        .run(
            "create table root (id int primary key, v text) partition by range (id);
             create table leaf1 partition of root for values from (0) to (10);
             create table leaf2 partition of root for values from (10) to (20);
             alter table root enable row level security;
             alter publication supabase_realtime add table root",
        )
        .await;
    let leaves = read_again(&mut database, &["anon"]).await;
    assert!(leaves.find("public", "root").is_none(), "without via_root the leaves are published");
    let leaf = leaves.find("public", "leaf1").expect("published");
    let root = leaves.table(*leaf.ancestors.last().expect("a root")).expect("loaded");
    assert!(root.row_security && !leaf.row_security && root.published.is_none());

    database.run("alter publication supabase_realtime set (publish_via_partition_root = true)").await;
    let mut images = Vec::new();
    for change in [
        "select 1",
        "alter table leaf1 replica identity full; alter table root replica identity full",
        "alter table leaf2 replica identity full",
        "alter table leaf2 replica identity using index leaf2_pkey",
    ] {
        database.run(change).await;
        images.push(read_again(&mut database, &[]).await.find("public", "root").expect("published").old_image);
    }
    assert_eq!(images, [OldImage::PrimaryKey, OldImage::PrimaryKey, OldImage::AsSent, OldImage::Nothing]);
}

#[tokio::test]
async fn collations_are_read_with_their_names_and_whether_they_order_by_bytes() {
    let server = crate::testing::TestServer::start().await;
    let sql = "create publication supabase_realtime; create schema \"S x\";
         create collation \"S x\".\"G de\" (provider = icu, locale = 'de-DE');
         create table t (d text, c text collate \"C\", p char(3) collate \"POSIX\", g varchar collate \"S x\".\"G de\", n name, i int);
         alter publication supabase_realtime add table t";
    server.sql("create database other template template0 locale 'C.UTF-8'").await;
    for (database, bytewise) in [("postgres", true), ("other", false)] {
        let mut client = server.pg(&format!("dbname={database}")).connect().await.expect("connected");
        client.batch_execute(sql).await.expect("a table");
        let catalog = read(&mut client, &wanted(&[])).await.expect("read");
        let columns = &catalog.find("public", "t").expect("published").columns;
        let found: Vec<_> = columns.iter().map(|c| c.collation.as_ref().map(|c| (&*c.name, c.bytewise))).collect();
        let expected = [
            Some(("pg_catalog.\"default\"", bytewise)),
            Some(("pg_catalog.\"C\"", true)),
            Some(("pg_catalog.\"POSIX\"", true)),
            Some(("\"S x\".\"G de\"", false)),
            Some(("pg_catalog.\"C\"", true)),
            None,
        ];
        assert_eq!(found, expected, "{database}");
    }
}
