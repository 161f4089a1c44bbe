//! Items 186 to 191, and what they rest on: keys that are missing or unreadable, names, partitions, replica identities,
//! publications (`protocol.md` §6.2, §6.5, §6.7, §6.11, decisions 9 and 25).

use serde_json::{Value, json};

use crate::support::stage::{all_of, with_marks};
use crate::support::token::{self, ALICE};
use crate::support::{Change, Pair, Stage, summary};

/// `kind table` of each.
fn told(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| format!("{} {}", change.kind(), change.table())).collect()
}

/// The second `system` frame of a subscription: that some table's changes can't be told, or not all of them.
fn assert_warning(system: &Value, topic: &str, status: &str, begin: &str, names: &[&str]) {
    let message = system["message"].as_str().expect("a text");
    let expected = json!({ "extension": "postgres_changes", "status": status, "message": message, "channel": topic });
    assert_eq!(*system, expected);
    assert!(message.starts_with(begin), "{message}");
    for name in names {
        assert!(message.contains(name), "{message} does not name {name}");
    }
}

const KEYLESS: &str = "
    create table public.keyless (n int, note text);
    create table public.keyed (id int primary key, note text);
    alter table public.keyless replica identity full;
    grant select on public.keyless, public.keyed to authenticated;
    alter publication supabase_realtime add table public.keyless, public.keyed;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_186_a_table_without_a_primary_key_is_told_once_and_only_its_deletes_are_delivered() {
    let stage = Stage::with(KEYLESS).await;
    let mut pair = stage.pair(&token::user(ALICE)).await;
    // Two entries for it, and one for another table: still one message.
    let entries = json!([
        { "event": "*", "schema": "public", "table": "keyless" },
        { "event": "INSERT", "schema": "public", "table": "keyless", "filter": "n=gt.0" },
        { "event": "*", "schema": "public", "table": "keyed" },
    ]);
    pair.subscribe("room", &with_marks(&entries)).await;
    let system = pair.system("room").await;
    assert_warning(&system, "room", "ok", "Error 400: Bad Request, no primary key", &["public.keyless"]);
    for n in 1..=3 {
        stage.exec(&format!("insert into keyless values ({n}, 'a'); insert into keyed values ({n})")).await;
    }
    stage.exec("update keyless set note = 'b'").await;
    stage.exec("delete from keyless where n = 1").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    assert_eq!(told(&changes), ["INSERT keyed", "INSERT keyed", "INSERT keyed", "DELETE keyless"]);
    assert_eq!((changes[3].old_record(), &changes[3].data["errors"]), (&json!({ "n": 1, "note": "b" }), &Value::Null));
    assert_eq!(pair.entries_of(&changes[3]), [0]);
    pair.expect_no_more_frames("room").await;
    // Where nothing else will come, it is an error.
    pair.subscribe("alone", &json!([{ "event": "*", "schema": "public", "table": "keyless" }])).await;
    let system = pair.system("alone").await;
    assert_warning(&system, "alone", "error", "Error 400: Bad Request, no primary key", &["public.keyless"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_186_a_wildcard_names_its_tables_without_a_primary_key_and_is_no_error() {
    let stage = Stage::with(&format!(
        "{KEYLESS} create table public.heap (n int); grant select on public.heap to authenticated;
         alter table public.heap replica identity full;
         alter publication supabase_realtime add table public.heap;"
    ))
    .await;
    let mut pair = stage.pair(&token::user(ALICE)).await;
    pair.subscribe("room", &json!([{ "event": "*", "schema": "public" }])).await;
    let system = pair.system("room").await;
    let begin = "Error 400: Bad Request, no primary key";
    assert_warning(&system, "room", "ok", begin, &["public.keyless", "public.heap"]);
    assert!(!system["message"].as_str().is_some_and(|message| message.contains("public.keyed")), "{system}");
    stage.exec("insert into keyless values (1); insert into heap values (1); insert into keyed values (1)").await;
    stage.exec("update heap set n = 2; update keyed set note = 'x'; delete from heap").await;
    stage.mark("end").await;
    assert_eq!(told(&pair.changes_before("end").await), ["INSERT keyed", "UPDATE keyed", "DELETE heap"]);
    pair.expect_no_more_frames("room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_187_a_role_that_may_not_read_the_key_is_told_once_and_gets_no_rows() {
    let stage = Stage::with(
        "create table public.vault (a int, b int, note text, primary key (a, b));
         alter table public.vault replica identity full;
         create table public.open (id int primary key);
         create role clerk nologin; grant usage on schema public to clerk;
         grant select (a, note) on public.vault to clerk;
         grant select on public.vault to authenticated;
         grant select on public.open to clerk, authenticated;
         alter publication supabase_realtime add table public.vault, public.open;",
    )
    .await;
    let mut reader = stage.watch(&token::user(ALICE), &all_of("vault")).await;
    let clerk = token::user_as("clerk", ALICE);
    let mut named = stage.pair(&clerk).await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "vault" },
        { "event": "*", "schema": "public", "table": "open" },
    ]);
    named.subscribe("room", &with_marks(&entries)).await;
    let system = named.system("room").await;
    assert_warning(&system, "room", "ok", "Error 401: Unauthorized", &["public.vault"]);
    let mut wild = stage.pair(&clerk).await;
    wild.subscribe("room", &json!([{ "event": "*", "schema": "public" }])).await;
    let system = wild.system("room").await;
    assert_warning(&system, "room", "ok", "Error 401: Unauthorized", &["public.vault"]);
    for n in 1..=3 {
        stage.exec(&format!("insert into vault values ({n}, {n}, 'x')")).await;
    }
    stage.exec("update vault set note = 'y'; update vault set a = a + 10").await;
    stage.exec("insert into open values (1)").await;
    stage.mark("end").await;
    assert_eq!(reader.changes_before("end").await.len(), 9);
    reader.expect_no_more_frames("room").await;
    for pair in [&mut named, &mut wild] {
        assert_eq!(told(&pair.changes_before("end").await), ["INSERT open"]);
        pair.expect_no_more_frames("room").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_187_a_column_that_the_role_may_not_read_is_missing_everywhere() {
    let stage = Stage::with(
        "create table public.files (id int primary key, secret text, note text, hidden text);
         alter table public.files replica identity full;
         create role clerk nologin; grant usage on schema public to clerk;
         grant select (note, id) on public.files to clerk;
         alter publication supabase_realtime add table public.files;",
    )
    .await;
    let clerk = token::user_as("clerk", ALICE);
    let entries = json!([{ "event": "*", "schema": "public", "table": "files" }, { "schema": "*" }]);
    let mut pair = stage.watch(&clerk, &entries).await;
    stage.exec("insert into files values (1, 'secret', 'n', 'hidden')").await;
    stage.exec("update files set secret = 'other secret', note = 'm'").await;
    stage.exec("update files set hidden = 'hidden too', id = 2").await;
    stage.exec("delete from files").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    assert_eq!(changes.iter().map(Change::kind).collect::<Vec<_>>(), ["INSERT", "UPDATE", "UPDATE", "DELETE"]);
    let row = |id: i32, note: &str| json!({ "id": id, "note": note });
    assert_eq!(changes[0].record(), &row(1, "n"));
    assert_eq!((changes[1].record(), changes[1].old_record()), (&row(1, "m"), &row(1, "n")));
    assert_eq!((changes[2].record(), changes[2].old_record()), (&row(2, "m"), &row(1, "m")));
    assert_eq!(changes[3].old_record(), &row(2, "m"));
    for change in &changes {
        assert_eq!(
            change.data["columns"],
            json!([{ "name": "id", "type": "int4" }, { "name": "note", "type": "text" }]),
            "{}",
            change.kind()
        );
        assert!(!change.text.contains("secret") && !change.text.contains("hidden"), "{}", change.text);
    }
    // Neither a filter nor a column list gets at it.
    for (index, rest) in [json!({ "filter": "secret=eq.secret" }), json!({ "select": ["secret"] })].iter().enumerate() {
        let mut entry = json!({ "event": "*", "schema": "public", "table": "files" });
        entry.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        let message = pair.refused(&format!("probe {index}"), &json!([entry])).await;
        assert!(message.contains("invalid column for "), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_188_quoted_names_of_schemas_tables_and_columns_work() {
    let table = r#""My Schema.x"."Täble, ""quoted"".%_*""#;
    let stage = Stage::with(&format!(
        r#"create schema "My Schema.x"; grant usage on schema "My Schema.x" to authenticated;
           create table {table} ("Id No" int, "a.b" text, "q""uote" int, "back\slash" int, "select" int, ünï text, " lead" int,
               "SELECT" boolean, primary key ("Id No", "q""uote"));
           alter table {table} enable row level security;
           create policy "own ""rows""" on {table} for select to authenticated using ("a.b" = auth.uid()::text or "SELECT");
           create table "My Schema.x".other (id int primary key);
           create table public."UPPER" (id int primary key);
           create table public.upper (id int primary key);
           grant select on {table}, "My Schema.x".other, public."UPPER", public.upper to authenticated;
           alter publication supabase_realtime add table {table}, "My Schema.x".other, public."UPPER", public.upper;"#
    ))
    .await;
    let (schema, name) = ("My Schema.x", r#"Täble, "quoted".%_*"#);
    let entry = |rest: Value| {
        let mut entry = json!({ "event": "*", "schema": schema, "table": name });
        entry.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        entry
    };
    let entries = json!([
        entry(json!({})),
        { "event": "*", "schema": schema },
        entry(json!({ "filter": "Id No=eq.1" })),
        entry(json!({ "filter": "a.b=neq.x" })),
        entry(json!({ "filter": "q\"uote=eq.7" })),
        entry(json!({ "filter": "back\\slash=lt.3" })),
        entry(json!({ "filter": "ünï=eq.ä, b" })),
        entry(json!({ "filter": "ünï=eq.\"ä, b\"" })),
        entry(json!({ "filter": "SELECT=is.true,select=eq.5" })),
        { "event": "*", "schema": "public", "table": "UPPER" },
        { "event": "*", "schema": "public", "table": "upper" },
    ]);
    let without_the_unparsable: Vec<Value> =
        entries.as_array().expect("a list").iter().filter(|entry| entry["filter"] != "ünï=eq.ä, b").cloned().collect();
    let mut pair = stage.watch(&token::user(ALICE), &Value::Array(without_the_unparsable)).await;
    stage.exec(&format!("insert into {table} values (1, '{ALICE}', 7, 2, 5, 'ä, b', 4, true)")).await;
    stage.exec(&format!("insert into {table} values (2, 'not hers', 7, 2, 5, 'ä, b', 4, false)")).await;
    stage.exec("insert into public.\"UPPER\" values (1); insert into public.upper values (2)").await;
    stage.exec(&format!("update {table} set \"Id No\" = 3 where \"Id No\" = 1")).await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    assert_eq!(changes.len(), 4);
    let row = |id: i32| {
        json!({ "Id No": id, "a.b": ALICE, "q\"uote": 7, "back\\slash": 2, "select": 5, "ünï": "ä, b", " lead": 4,
                "SELECT": true })
    };
    assert_eq!((&changes[0].data["schema"], changes[0].table()), (&json!(schema), name));
    assert_eq!((changes[0].record(), pair.entries_of(&changes[0])), (&row(1), vec![0, 1, 2, 3, 4, 5, 6, 7]));
    assert_eq!((changes[1].table(), pair.entries_of(&changes[1])), ("UPPER", vec![8]));
    assert_eq!((changes[2].table(), pair.entries_of(&changes[2])), ("upper", vec![9]));
    assert_eq!((changes[3].record(), changes[3].old_record()), (&row(3), &json!({ "Id No": 1, "q\"uote": 7 })));
    let names: Vec<_> = changes[0].data["columns"].as_array().expect("columns").iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["Id No", "a.b", "q\"uote", "back\\slash", "select", "ünï", " lead", "SELECT"]);
}

const PARTITIONS: &str = "
    create table public.parts (id int, region text, note text, primary key (id, region)) partition by list (region);
    create table public.parts_north partition of public.parts for values in ('north');
    create table public.parts_south (note text, region text not null, id int not null, primary key (id, region));
    alter table public.parts attach partition public.parts_south for values in ('south');
    grant select on public.parts, public.parts_north, public.parts_south to authenticated;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_189_leaf_partitions_can_be_subscribed_to_and_deliver_under_their_own_names() {
    let stage = Stage::with(&format!("{PARTITIONS} alter publication supabase_realtime add table public.parts;")).await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "parts_north" },
        { "event": "*", "schema": "public" },
        { "event": "*", "schema": "public", "table": "parts_south", "filter": "note=eq.n" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    // The root is not what is published.
    let message = stage.pair(&token::user(ALICE)).await.refused("root", &all_of("parts")).await;
    assert!(message.contains("Please check Realtime is enabled"), "{message}");
    stage.exec("insert into parts values (1, 'north', 'n')").await;
    stage.exec("insert into parts values (2, 'south', 'n')").await;
    stage.exec("insert into parts_north values (3, 'north')").await;
    stage.exec("update parts set note = 'm' where id = 1").await;
    stage.exec("update parts set region = 'south' where id = 1").await;
    stage.exec("delete from parts where id = 1").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let told: Vec<_> = changes.iter().map(|change| (change.kind(), change.table(), pair.entries_of(change))).collect();
    let expected = [
        ("INSERT", "parts_north", vec![0, 1]),
        ("INSERT", "parts_south", vec![1, 2]),
        ("INSERT", "parts_north", vec![0, 1]),
        ("UPDATE", "parts_north", vec![0, 1]),
        ("DELETE", "parts_north", vec![0, 1]),
        ("INSERT", "parts_south", vec![1]),
        ("DELETE", "parts_south", vec![1]),
    ];
    assert_eq!(told, expected);
    assert_eq!(changes[1].record(), &json!({ "id": 2, "region": "south", "note": "n" }));
    let columns: Vec<_> = changes[1].data["columns"].as_array().expect("columns").iter().map(|c| &c["name"]).collect();
    assert_eq!(columns, ["note", "region", "id"], "the leaf's own order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_189_a_publication_via_the_root_delivers_under_the_roots_name() {
    let stage = Stage::with(&format!(
        "{PARTITIONS} alter publication supabase_realtime set (publish_via_partition_root = true);
         alter publication supabase_realtime add table public.parts;"
    ))
    .await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "parts" },
        { "event": "*", "schema": "public", "table": "parts", "filter": "region=eq.south" },
        { "event": "*", "schema": "public" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    let message = stage.pair(&token::user(ALICE)).await.refused("leaf", &all_of("parts_north")).await;
    assert!(message.contains("Please check Realtime is enabled"), "{message}");
    stage.exec("insert into parts values (1, 'north', 'n')").await;
    stage.exec("insert into parts_south values ('s', 'south', 2)").await;
    stage.exec("update parts set note = 'm' where id = 1").await;
    stage
        .exec("create table parts_west partition of parts for values in ('west'); insert into parts values (3, 'west')")
        .await;
    stage.exec("delete from parts where id = 2").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let told: Vec<_> = changes.iter().map(|change| (change.kind(), change.table(), pair.entries_of(change))).collect();
    let expected = [
        ("INSERT", "parts", vec![0, 2]),
        ("INSERT", "parts", vec![0, 1, 2]),
        ("UPDATE", "parts", vec![0, 2]),
        ("INSERT", "parts", vec![0, 2]),
        ("DELETE", "parts", vec![0, 1, 2]),
    ];
    assert_eq!(told, expected);
    assert_eq!(changes[1].record(), &json!({ "id": 2, "region": "south", "note": "s" }));
    assert_eq!(changes[4].old_record(), &json!({ "id": 2, "region": "south" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_190_two_channels_of_one_socket_get_each_their_own_frame() {
    let stage = Stage::with(KEYLESS).await;
    let mut pair = stage.pair(&token::user(ALICE)).await;
    let filtered = json!([{ "event": "INSERT", "schema": "public", "table": "keyed", "filter": "id=gt.1" }]);
    pair.subscribe("one", &all_of("keyed")).await;
    let one = pair.ids.clone();
    pair.subscribe("two", &with_marks(&filtered)).await;
    let two = pair.ids.clone();
    stage
        .exec("insert into keyed values (1); insert into keyed values (2); update keyed set note = 'x' where id = 2")
        .await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let of = |topic: &str| changes.iter().filter(|change| change.topic == topic).cloned().collect::<Vec<_>>();
    assert_eq!(summary(&of("one"), "id"), ["INSERT 1", "INSERT 2", "UPDATE 2"]);
    assert_eq!(summary(&of("two"), "id"), ["INSERT 2"]);
    assert!(of("one").iter().all(|change| change.ids == one));
    assert_eq!(of("two")[0].ids, two[..1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_191_one_frame_carries_the_ids_of_all_entries_of_its_channel() {
    let stage = Stage::with(KEYLESS).await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "keyed" },
        { "event": "INSERT", "schema": "public", "table": "keyed" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    assert_ne!(pair.ids[0], pair.ids[1]);
    stage.exec("insert into keyed values (1); update keyed set note = 'x'").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let told: Vec<_> = changes.iter().map(|change| (change.kind(), pair.entries_of(change))).collect();
    assert_eq!(told, [("INSERT", vec![0, 1]), ("UPDATE", vec![0])]);
}

/// A row as a test expects to see it.
type Shown<'a> = &'a dyn Fn(i32, &str, &str) -> Value;

/// Of §6.5: what UPDATE and DELETE show under each replica identity.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_170_each_replica_identity_shows_the_old_row_as_far_as_it_has_it() {
    let tables = ["by_default", "by_index", "by_row", "by_nothing"];
    let mut sql = String::new();
    for table in tables {
        sql.push_str(&format!(
            "create table public.{table} (id int primary key, code text not null, note text);
             create unique index {table}_code on public.{table} (code);
             grant select on public.{table} to authenticated;
             alter publication supabase_realtime add table public.{table};"
        ));
    }
    sql.push_str(
        "alter table public.by_index replica identity using index by_index_code;
         alter table public.by_row replica identity full;
         alter table public.by_nothing replica identity nothing;",
    );
    let stage = Stage::with(&sql).await;
    let mut pair = stage.watch(&token::user(ALICE), &json!([{ "event": "*", "schema": "public" }])).await;
    let key = |id: i32, _: &str, _: &str| json!({ "id": id });
    let code = |_: i32, code: &str, _: &str| json!({ "code": code });
    let row = |id: i32, code: &str, note: &str| json!({ "id": id, "code": code, "note": note });
    let shown: [(&str, Shown<'_>); 3] = [("by_default", &key), ("by_index", &code), ("by_row", &row)];
    for (table, old) in shown {
        stage.exec(&format!("insert into {table} values (1, 'c', 'n')")).await;
        stage.exec(&format!("update {table} set note = 'm'")).await;
        stage.exec(&format!("update {table} set id = 2")).await;
        stage.exec(&format!("update {table} set code = 'd'")).await;
        stage.exec(&format!("delete from {table}")).await;
        stage.mark(table).await;
        let changes = pair.changes_before(table).await;
        assert_eq!(summary(&changes[..4], "id"), ["INSERT 1", "UPDATE 1", "UPDATE 2", "UPDATE 2"], "{table}");
        assert_eq!(changes[1].record(), &row(1, "c", "m"));
        let olds: Vec<&Value> = changes[1..].iter().map(Change::old_record).collect();
        assert_eq!(olds, [&old(1, "c", "n"), &old(1, "c", "m"), &old(2, "c", "m"), &old(2, "d", "m")], "{table}");
    }
    // Without an identity Postgres itself lets nothing but inserts through.
    stage.exec("insert into by_nothing values (1, 'c', 'n')").await;
    let client = stage.pg.client().await;
    for sql in ["update by_nothing set note = 'm'", "delete from by_nothing"] {
        assert!(client.batch_execute(sql).await.is_err(), "{sql}");
    }
    stage.mark("end").await;
    assert_eq!(told(&pair.changes_before("end").await), ["INSERT by_nothing"]);
}

/// Which of the three kinds a table's writes bring.
async fn kinds(stage: &Stage, pair: &mut Pair, table: &str) -> Vec<String> {
    stage
        .exec(&format!("insert into {table} values (1, 'a'); update {table} set note = 'b'; delete from {table}"))
        .await;
    stage.mark(table).await;
    pair.changes_before(table).await.iter().map(|change| change.kind().to_owned()).collect()
}

/// Of §6.11: `publish` decides what is sent; of two publications with one table, what either sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_172_publications_decide_which_kinds_there_are_and_are_united() {
    let tables = ["each", "first", "second", "third", "facts"];
    let mut sql = String::from(
        "create publication more with (publish = 'update');
         create publication ours with (publish = 'insert, delete');
         alter publication supabase_realtime set (publish = 'insert');",
    );
    for table in tables {
        sql.push_str(&format!(
            "create table public.{table} (id int primary key, note text);
             grant select on public.{table} to authenticated;"
        ));
    }
    sql.push_str(
        "alter publication supabase_realtime add table public.each, public.first, public.facts;
         alter publication more add table public.each, public.second;
         alter publication ours add table public.third, public.each;",
    );
    // `ours` is nobody's business: it is not the relay's.
    let stage =
        Stage::configured(&sql, |config| config.publications = vec!["supabase_realtime".into(), "more".into()]).await;
    // Tables that policies look into are read too, with all that happens to them; clients are told none of that.
    stage.exec("alter publication rowcast_facts add table public.facts, public.third").await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "each" },
        { "event": "*", "schema": "public", "table": "first" },
        { "event": "*", "schema": "public", "table": "second" },
        { "event": "*", "schema": "public", "table": "facts" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    let message = stage.pair(&token::user(ALICE)).await.refused("third", &all_of("third")).await;
    assert!(message.contains("Please check Realtime is enabled"), "{message}");
    assert_eq!(kinds(&stage, &mut pair, "each").await, ["INSERT", "UPDATE"]);
    assert_eq!(kinds(&stage, &mut pair, "first").await, ["INSERT"]);
    assert_eq!(kinds(&stage, &mut pair, "second").await, ["UPDATE"]);
    assert_eq!(kinds(&stage, &mut pair, "facts").await, ["INSERT"]);
    assert_eq!(kinds(&stage, &mut pair, "third").await, [""; 0]);
}

/// Of §6.11: what a publication leaves out is not told, whoever reads the same table for other reasons.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_172_row_filters_and_column_lists_of_the_publication_hold() {
    let stage = Stage::with(
        "create table public.rows (id int primary key, shown boolean not null, note text);
         create table public.columns (id int primary key, note text, left_out text);
         alter table public.rows replica identity full;
         grant select on public.rows, public.columns to authenticated;
         alter publication supabase_realtime add table public.rows where (shown), public.columns (id, note);",
    )
    .await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "rows" },
        { "event": "*", "schema": "public", "table": "columns" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    // Read for policies as well, without the row filter.
    stage.exec("alter publication rowcast_facts add table public.rows").await;
    stage.exec("insert into rows values (1, true, 'a'), (2, false, 'b')").await;
    stage.exec("update rows set note = 'c'").await;
    stage.exec("update rows set shown = not shown").await;
    stage.exec("delete from rows").await;
    stage.exec("insert into columns values (1, 'n', 'left out')").await;
    stage.exec("update columns set left_out = 'too'; delete from columns").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let rows: Vec<Change> = changes.iter().filter(|change| change.table() == "rows").cloned().collect();
    // An update that moves a row out of the publication is a DELETE to it, one that moves it in an INSERT; a relay that has to
    // apply the filter itself may call the two an UPDATE or nothing, but never shows a row that is outside.
    let ids = summary(&rows, "id");
    assert_eq!(ids[..2], ["INSERT 1", "UPDATE 1"]);
    assert_eq!(ids.last().map(String::as_str), Some("DELETE 2"));
    for change in &rows {
        for image in [change.record(), change.old_record()] {
            assert!(image["note"] != "b" && image["shown"] != false, "{change:#?}");
        }
    }
    let columns: Vec<&Change> = changes.iter().filter(|change| change.table() == "columns").collect();
    assert_eq!(columns.iter().map(|change| change.kind()).collect::<Vec<_>>(), ["INSERT", "UPDATE", "DELETE"]);
    for change in columns {
        assert!(!change.text.contains("left out") && !change.text.contains("too"), "{}", change.text);
        assert!(change.record().is_null() || *change.record() == json!({ "id": 1, "note": "n" }), "{change:#?}");
    }
}

/// Of §6.11: a publication for all tables has those that are made later, and none that has no changes of its own in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_166_a_publication_for_all_tables_has_the_next_one_too() {
    let stage = Stage::with(
        "create table public.first (id int primary key); grant select on public.first to authenticated;
         create unlogged table public.unlogged (id int primary key); grant select on public.unlogged to authenticated;
         create view public.looking as select * from public.first; grant select on public.looking to authenticated;
         drop publication supabase_realtime; create publication supabase_realtime for all tables;",
    )
    .await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "first" }, { "event": "*", "schema": "public" }]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    stage.exec("insert into unlogged values (1); insert into looking values (1)").await;
    stage.mark("one").await;
    let changes = pair.changes_before("one").await;
    assert_eq!((told(&changes), pair.entries_of(&changes[0])), (vec!["INSERT first".to_owned()], vec![0, 1]));
    let mut refused = stage.pair(&token::user(ALICE)).await;
    for table in ["unlogged", "looking"] {
        let message = refused.refused(table, &all_of(table)).await;
        assert!(message.contains("Please check Realtime is enabled"), "{table}: {message}");
    }
    stage.exec("create table public.second (id int primary key); grant select on public.second to authenticated").await;
    let deadline = tokio::time::Instant::now() + crate::support::phone::PATIENCE;
    for n in 1.. {
        stage.exec(&format!("insert into second values ({n})")).await;
        let mark = format!("second {n}");
        stage.mark(&mark).await;
        if told(&pair.changes_before(&mark).await) == ["INSERT second"] {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "it never arrives");
    }
}
