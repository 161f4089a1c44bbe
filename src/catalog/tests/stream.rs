//! What the stream sends of a table, the state of its files, and what our login may do with it.

use super::*;

async fn table(database: &mut TestDatabase, name: &str) -> Arc<Table> {
    let catalog = read_again(database, &[]).await;
    catalog.named("public", name).unwrap_or_else(|| panic!("{name} is known")).clone()
}

/// Whether all actions and all rows of it are sent.
fn whole(table: &Arc<Table>) -> (bool, bool) {
    (table.streamed.all_actions, table.streamed.all_rows)
}

const DOCS: &str = "create table docs (id int primary key);
    create table members (org int primary key, user_id uuid, note text);
    create policy p on docs using (exists (select from members));
    alter publication supabase_realtime add table docs;
    create publication rowcast_facts; create publication other; create publication foreign_one;";

#[tokio::test]
async fn the_publications_of_the_stream_count_together() {
    let mut database = TestDatabase::new().await;
    database.run(DOCS).await;
    assert_eq!(whole(&table(&mut database, "docs").await), (true, true), "a client publication counts too");
    for (statement, expected) in [
        ("select", (false, false)),
        ("alter publication foreign_one add table members", (false, false)),
        ("alter publication rowcast_facts add table members", (true, true)),
        ("alter publication rowcast_facts set (publish = 'insert, update, delete')", (false, true)),
        ("alter publication other set (publish = 'truncate'); alter publication other add table members", (true, true)),
        ("alter publication other drop table members", (false, true)),
        ("alter publication rowcast_facts set (publish = 'insert, update, delete, truncate')", (true, true)),
    ] {
        database.run(statement).await;
        assert_eq!(whole(&table(&mut database, "members").await), expected, "{statement}");
    }
    if database.major().await < 15 {
        return;
    }
    for (statement, expected) in [
        ("alter publication rowcast_facts set table members where (org > 0)", (true, false)),
        ("alter publication other set (publish = 'insert'); alter publication other add table members", (true, false)),
        ("alter publication other set (publish = 'insert, update, delete')", (true, true)),
        ("alter publication other drop table members", (true, false)),
        (
            "alter publication rowcast_facts set table members; alter publication other add tables in schema public",
            (true, true),
        ),
        ("alter publication rowcast_facts drop table members", (false, true)),
    ] {
        database.run(statement).await;
        assert_eq!(whole(&table(&mut database, "members").await), expected, "{statement}");
    }
    assert!(!table(&mut database, "members").await.streamed.has_column_list);
    database
        .run("alter publication other set table docs; alter publication rowcast_facts set table members (user_id, org)")
        .await;
    let members = table(&mut database, "members").await;
    assert!(members.streamed.has_column_list && whole(&members) == (true, true));
    assert_eq!(members.streamed.columns, Some(BTreeSet::from(["org".to_owned(), "user_id".to_owned()])));
    database.run("drop publication rowcast_facts; create publication rowcast_facts for all tables").await;
    let members = table(&mut database, "members").await;
    assert_eq!(members.streamed, Streamed { all_actions: true, all_rows: true, ..Streamed::default() });
}

const PARTITIONED: &str = "create table docs (id int primary key);
    create table members (org int primary key) partition by range (org);
    create table members_1 partition of members for values from (0) to (10);
    create table members_2 partition of members for values from (10) to (30) partition by range (org);
    create table members_21 partition of members_2 for values from (10) to (20);
    create table members_22 partition of members_2 for values from (20) to (30);
    create policy p on docs using (exists (select from members) and exists (select from members_21));
    alter publication supabase_realtime add table docs;
    create publication rowcast_facts; create publication other;";

#[tokio::test]
async fn a_partitioned_table_is_sent_if_all_partitions_are_those_of_tomorrow_too() {
    let mut database = TestDatabase::new().await;
    database.run(PARTITIONED).await;
    let catalog = read_again(&mut database, &[]).await;
    let oid = |name: &str| catalog.named("public", name).expect("known").oid;
    let (members, leaf) = (catalog.named("public", "members").expect("known"), oid("members_21"));
    assert!(members.leaves.len() == 3 && members.leaves.contains(&leaf) && members.is_partitioned);
    assert_eq!(BTreeSet::from_iter(catalog.fact_roots(leaf).iter().copied()), BTreeSet::from([members.oid, leaf]));
    assert_eq!(catalog.fact_roots(members.oid), [members.oid]);
    assert_eq!(catalog.fact_roots(members.leaves[0]), [members.oid]);
    assert!(catalog.fact_roots(1).is_empty());

    let root = "its rows are sent under the name of the partitioned table above it";
    let middle = "its rows are sent under the name of a partitioned table below it";
    for (statement, root_whole, root_obstacle, leaf_whole, leaf_obstacle) in [
        ("alter publication rowcast_facts add table members", (true, true), None, (true, true), None),
        (
            "alter publication rowcast_facts set (publish_via_partition_root)",
            (true, true),
            None,
            (false, false),
            Some(root),
        ),
        // The root's name wins, and every publication's actions count, but for TRUNCATE.
        (
            "alter publication rowcast_facts set (publish = 'insert, truncate'); alter publication other add table members",
            (true, true),
            None,
            (false, false),
            Some(root),
        ),
        ("alter publication rowcast_facts set (publish = 'insert')", (false, true), None, (false, false), Some(root)),
        ("alter publication rowcast_facts drop table members", (true, true), None, (true, true), None),
        // All partitions of today are not all.
        ("alter publication other set table members_1, members_2", (false, false), None, (true, true), None),
        ("alter publication other set table members_1", (false, false), None, (false, false), None),
        (
            "alter publication other set table members, members_2; alter publication rowcast_facts set (publish = 'insert, update, delete, truncate'); alter publication rowcast_facts add table members_2",
            (false, false),
            Some(middle),
            (false, false),
            Some(root),
        ),
    ] {
        database.run(statement).await;
        let catalog = read_again(&mut database, &[]).await;
        let named = |name: &str| catalog.named("public", name).expect("known").clone();
        let (members, leaf) = (named("members"), named("members_21"));
        assert_eq!((whole(&members), members.streamed.obstacle), (root_whole, root_obstacle), "root: {statement}");
        assert_eq!((whole(&leaf), leaf.streamed.obstacle), (leaf_whole, leaf_obstacle), "leaf: {statement}");
    }
    database.run("alter publication rowcast_facts set table docs; alter publication other set table members").await;
    database.run("alter table members_22 set unlogged").await;
    let unlogged = table(&mut database, "members").await;
    assert_eq!(whole(&unlogged), (false, false));
    assert_eq!(unlogged.streamed.obstacle, Some("it is not logged, or one of its partitions isn't"));
    assert_eq!(
        whole(&table(&mut database, "members_21").await),
        (true, true),
        "another partition is none of its business"
    );
}

#[tokio::test]
async fn filters_and_lists_of_a_root_count_only_where_rows_bear_its_name() {
    let mut database = TestDatabase::new().await;
    if database.major().await < 15 {
        return;
    }
    database.run(PARTITIONED).await;
    for (statement, expected, listed) in [
        (
            "alter publication rowcast_facts set (publish_via_partition_root);
             alter publication rowcast_facts set table members (org)",
            (true, true),
            true,
        ),
        ("alter publication rowcast_facts set table members (org) where (org > 0)", (true, false), true),
        // Its rows keep the root's name, so the other one's filter does not count, nor its lack of one.
        (
            "alter publication rowcast_facts set table members; alter publication other set table members_1 where (org > 3)",
            (true, true),
            false,
        ),
        (
            "alter publication rowcast_facts set table members where (org > 0); alter publication other set table members_1, members_2",
            (true, false),
            false,
        ),
    ] {
        database.run(statement).await;
        let members = table(&mut database, "members").await;
        assert_eq!((whole(&members), members.streamed.has_column_list), (expected, listed), "{statement}");
    }
}

#[tokio::test]
async fn a_table_that_others_inherit_from_can_not_be_followed() {
    let mut database = TestDatabase::new().await;
    database.run(DOCS).await;
    database
        .run("create table heirs (more int) inherits (members); alter publication rowcast_facts add table members")
        .await;
    let members = table(&mut database, "members").await;
    assert_eq!((members.leaves.len(), members.streamed.obstacle), (2, Some("other tables inherit from it")));
    assert_eq!(whole(&members), (false, false));
}

#[tokio::test]
async fn its_storage_differs_when_rows_change_without_the_stream() {
    let mut database = TestDatabase::new().await;
    database.run(PARTITIONED).await;
    database
        .run(
            "create type mood as enum ('a', 'b'); create table plain (id int primary key, m mood, gone int);
             create policy q on docs using (exists (select from plain)); create table spare (org int primary key);",
        )
        .await;
    let mut before = (table(&mut database, "members").await.storage, table(&mut database, "plain").await.storage);
    for (statement, root, plain) in [
        (
            "insert into members values (1), (11); insert into plain values (1); update plain set m = 'a'; analyze",
            false,
            false,
        ),
        ("vacuum plain", false, false),
        // The stream tells of it.
        ("truncate members_21", false, false),
        ("truncate members", false, false),
        ("truncate plain", false, false),
        ("alter publication rowcast_facts add table plain", false, true),
        (
            "alter publication rowcast_facts drop table plain; alter publication rowcast_facts add table plain",
            false,
            true,
        ),
        // Other publications send what these do not; nobody knows since when.
        (
            "alter publication rowcast_facts set (publish = 'insert, update, delete');
             alter publication rowcast_facts set (publish = 'insert, update, delete, truncate')",
            true,
            true,
        ),
        ("alter publication rowcast_facts add table spare", false, false),
        ("alter publication rowcast_facts drop table spare", false, false),
        ("alter publication rowcast_facts add tables in schema public", true, true),
        (
            "alter publication rowcast_facts drop tables in schema public; alter publication rowcast_facts add tables in schema public",
            true,
            true,
        ),
        ("alter publication rowcast_facts drop tables in schema public", true, true),
        (
            "insert into plain values (2, 'a', 2); alter table plain alter column gone type int using gone + 1",
            false,
            true,
        ),
        ("alter table members detach partition members_1", true, false),
        ("alter table members attach partition members_1 for values from (0) to (10)", true, false),
        ("drop table members_22", true, false),
        ("alter table plain alter column gone type bigint using 7", false, true),
        ("alter table plain add column quick int default 5", false, true),
        ("alter table plain drop column gone", false, true),
        ("alter type mood rename value 'b' to 'c'", false, true),
        // It writes the default of the new column into each row.
        ("cluster plain using plain_pkey", false, true),
        ("alter policy q on docs using (exists (select from plain where id > 1))", false, false),
    ] {
        if statement.contains("in schema") && database.major().await < 15 {
            continue;
        }
        database.run(statement).await;
        let after = (table(&mut database, "members").await.storage, table(&mut database, "plain").await.storage);
        assert_eq!((before.0 != after.0, before.1 != after.1), (root, plain), "{statement}");
        before = after;
    }
    assert_eq!(table(&mut database, "docs").await.storage, 0, "nobody looks into it");
}

#[tokio::test]
async fn what_our_login_may_load_and_publish_is_known() {
    let database = TestDatabase::new().await;
    database.run(DOCS).await;
    database
        .run(
            "create role rights_relay login; create role rights_bypass login bypassrls; create role rights_owner;
             grant create on schema public to rights_owner; alter table members owner to rights_owner;
             alter default privileges in schema public revoke select on tables from public;",
        )
        .await;
    for (statement, relay, bypass) in [
        ("select", (false, false), (false, false)),
        ("grant select on members to rights_relay, rights_bypass", (true, false), (true, false)),
        ("alter table members enable row level security", (false, false), (true, false)),
        ("revoke select (note) on members from rights_bypass", (false, false), (true, false)),
        (
            "revoke select on members from rights_bypass; grant select (org, user_id) on members to rights_bypass",
            (false, false),
            (false, false),
        ),
        ("grant select (note) on members to rights_bypass", (false, false), (true, false)),
        ("grant rights_owner to rights_relay", (true, false), (true, false)),
        ("alter publication rowcast_facts owner to rights_relay", (true, true), (true, false)),
        ("alter table members force row level security", (false, true), (true, false)),
        ("alter table members disable row level security", (true, true), (true, false)),
        (
            "revoke usage on schema public from public; grant usage on schema public to rights_bypass",
            (false, true),
            (true, false),
        ),
        ("grant usage on schema public to rights_relay; drop publication rowcast_facts", (true, false), (true, false)),
    ] {
        database.run(statement).await;
        for (login, expected) in
            [("rights_relay", relay), ("rights_bypass", bypass), ("relay", (true, !statement.contains("drop p")))]
        {
            let mut client = database.config(login).connect().await.expect("connects");
            let catalog = read(&mut client, &wanted(&["anon"]))
                .await
                .unwrap_or_else(|e| panic!("{login}: {}", crate::error::chain(&e)));
            let members = catalog.named("public", "members").expect("known");
            assert_eq!((members.loadable, members.ours), expected, "{login}: {statement}");
        }
    }
    database.run("drop owned by rights_owner, rights_relay, rights_bypass cascade; drop role rights_owner, rights_relay, rights_bypass").await;
}
