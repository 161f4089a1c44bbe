//! Items 177 to 182: filters and column lists (`protocol.md` §5.2, §5.3, §6.9). What a filter should say is not written down
//! here: the server is asked, in SQL, about the rows as they lie in the table.

use serde_json::{Value, json};

use crate::support::token::{self, ALICE};
use crate::support::{Change, Stage, summary};

/// Columns of the types that filters are used on, and rows to write.
const SAMPLES: &str = "
    create extension citext;
    create type public.mood as enum ('sad', 'fine', 'Happy');
    create table public.samples (
        id int primary key, i int, big bigint, n numeric, f float8, t text, c char(6), ci citext, b boolean, u uuid,
        d date, ts timestamptz, j jsonb, m public.mood, tags text[], bin bytea, iv interval);
    create table public.sources (like public.samples);
    alter table public.samples replica identity full;
    insert into public.sources values
        (1, 5, 9007199254740993, 1.50, 0.1, 'abc', 'abc', 'Abc', true, 'a11ce000-0000-4000-8000-000000000001',
         '2026-01-02', '2026-01-02 03:04:05.678+00', '{\"a\": 1.50}', 'fine', '{a,b}', '\\x0102', '1 day'),
        (2, -3, 9007199254740992, 10, 'NaN', 'ABC', 'ABC', 'aBC', false, 'b0b00000-0000-4000-8000-000000000001',
         '1999-12-31', '2026-01-02 03:04:05.679+00', '{\"a\": \"1.5\"}', 'sad', '{}', '\\x', '24:00'),
        (3, 50, 0, 9, '-Infinity', 'a, \"b\"', 'b', 'zzz', null, null, 'infinity', '-infinity', '[1]', 'Happy', '{a}', null, '1 mon'),
        (4, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null),
        (5, 5, -1, 1.5, 1e300, '', '', '', true, null, '0044-03-15 BC', null, 'null', null, null, null, '-1 day'),
        (6, 7, 1, 'NaN', 0, E'a\\nb%_\\\\', 'éß', 'ÉSS', false, null, '2026-01-03', null, '{}', 'fine', '{\"x,y\"}', '\\xff', '0');
    grant select on public.samples to authenticated;
    alter publication supabase_realtime add table public.samples;";

/// A filter and what it means in SQL.
struct Case {
    filter: String,
    sql: String,
}

fn sql_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// As a filter has it: in quotes if it would be taken apart otherwise.
fn filter_value(text: &str) -> String {
    if text.contains([',', '"', '(', ')']) {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        text.to_owned()
    }
}

/// `column op value`, plain and negated.
fn case((column, kind): (&str, &str), operator: &str, value: &str) -> [Case; 2] {
    let symbol = match operator {
        "eq" => "=",
        "neq" => "<>",
        "lt" => "<",
        "lte" => "<=",
        "gt" => ">",
        "gte" => ">=",
        "like" => "like",
        "ilike" => "ilike",
        "match" => "~",
        "imatch" => "~*",
        "isdistinct" => "is distinct from",
        "in" | "is" => operator,
        other => panic!("{other}"),
    };
    let (sql, value) = match operator {
        "is" => (format!("{column} is {value}"), value.to_owned()),
        // The elements of an array literal.
        "in" => (format!("{column} = any ({}::{kind}[])", sql_literal(&format!("{{{value}}}"))), format!("({value})")),
        _ => (format!("{column} {symbol} {}::{kind}", sql_literal(value)), filter_value(value)),
    };
    ["", "not."].map(|word| Case {
        filter: format!("{column}={word}{operator}.{value}"),
        sql: if word.is_empty() { sql.clone() } else { format!("not ({sql})") },
    })
}

/// Each operator with each column's values.
fn cases(operators: &[&str], columns: &[((&str, &str), &[&str])]) -> Vec<Case> {
    let mut all = Vec::new();
    for operator in operators {
        for (column, values) in columns {
            all.extend(values.iter().flat_map(|value| case(*column, operator, value)));
        }
    }
    all
}

/// Writes, changes and deletes each row of `sources`, and compares who is told with what the server says.
async fn agree(cases: &[Case]) {
    let stage = Stage::with(SAMPLES).await;
    let entry = |case: &Case| json!({ "event": "*", "schema": "public", "table": "samples", "filter": case.filter });
    let mut pair = stage.watch(&token::user(ALICE), &cases.iter().map(entry).collect()).await;
    let selected: Vec<String> = cases.iter().map(|case| format!("coalesce({}, false)", case.sql)).collect();
    let client = stage.pg.client().await;
    let rows = client.query(&format!("select id, array[{}] from sources order by id", selected.join(", ")), &[]).await;
    let mut mistakes = Vec::new();
    for row in rows.expect("the server judges") {
        let (id, passed): (i32, Vec<bool>) = (row.get(0), row.get(1));
        stage.exec(&format!("insert into samples select * from sources where id = {id}")).await;
        stage.exec("update samples set id = id").await;
        stage.exec("delete from samples").await;
        let mark = format!("row {id}");
        stage.mark(&mark).await;
        let changes = pair.changes_before(&mark).await;
        for kind in ["INSERT", "UPDATE", "DELETE"] {
            let told: Vec<usize> = changes
                .iter()
                .filter(|change| change.kind() == kind)
                .flat_map(|change| pair.entries_of(change))
                .collect();
            for (index, case) in cases.iter().enumerate() {
                if told.contains(&index) != passed[index] {
                    mistakes.push(format!("{kind} of row {id}: {} is {}", case.filter, passed[index]));
                }
            }
        }
        assert!(changes.len() <= 3, "row {id}: {changes:#?}");
    }
    assert!(mistakes.is_empty(), "the server says otherwise:\n{}", mistakes.join("\n"));
}

const INT: (&str, &str) = ("i", "int");
const BIG: (&str, &str) = ("big", "bigint");
const NUMERIC: (&str, &str) = ("n", "numeric");
const FLOAT: (&str, &str) = ("f", "float8");
const TEXT: (&str, &str) = ("t", "text");
const CHAR: (&str, &str) = ("c", "bpchar");
const CITEXT: (&str, &str) = ("ci", "citext");
const BOOL: (&str, &str) = ("b", "boolean");
const UUID: (&str, &str) = ("u", "uuid");
const DATE: (&str, &str) = ("d", "date");
const STAMP: (&str, &str) = ("ts", "timestamptz");
const JSONB: (&str, &str) = ("j", "jsonb");
const MOOD: (&str, &str) = ("m", "public.mood");
const TAGS: (&str, &str) = ("tags", "text[]");
const BYTES: (&str, &str) = ("bin", "bytea");
const INTERVAL: (&str, &str) = ("iv", "interval");

/// Values that are the same as one in the table though written otherwise, and values that are not.
const EQUAL: &[((&str, &str), &[&str])] = &[
    (INT, &["5", " 005", "+7", "-3"]),
    (BIG, &["9007199254740993", "0"]),
    (NUMERIC, &["1.5", "1.500", "10.0", "1e1", "NaN"]),
    (FLOAT, &["0.1", "0", "1e300", "NaN", "-Infinity"]),
    (TEXT, &["abc", "a, \"b\"", "", "nope"]),
    (CHAR, &["abc", "abc  ", "b", ""]),
    (BOOL, &["true", "f", "yes", "0"]),
    (UUID, &["A11CE000-0000-4000-8000-000000000001"]),
    (DATE, &["2026-01-02", "Jan 2, 2026", "infinity", "0044-03-15 BC"]),
    (STAMP, &["2026-01-02T04:04:05.678+01:00", "-infinity"]),
    (JSONB, &["{\"a\":1.5}", "[1]", "null"]),
    (MOOD, &["fine", "Happy"]),
    (BYTES, &["\\x0102", "\\x"]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_177_equality_lets_through_what_the_server_calls_equal() {
    let mut all = cases(&["eq", "neq", "isdistinct"], EQUAL);
    all.extend(cases(
        &["in"],
        &[
            (INT, &["5", "5,7", "1, 50 ,3", "5,null", "null", ""]),
            (NUMERIC, &["1.5,2", "10.00"]),
            (TEXT, &["abc,ABC", "\"a, \\\"b\\\"\"", "\"\"", "\"null\""]),
            (UUID, &["a11ce000-0000-4000-8000-000000000001,B0B00000-0000-4000-8000-000000000001"]),
            (BOOL, &["t,f"]),
            (MOOD, &["sad,Happy"]),
            (DATE, &["2026-01-02,infinity"]),
        ],
    ));
    all.extend(cases(&["is"], &[(BOOL, &["true", "false", "unknown"])]));
    all.extend(cases(&["is"], &EQUAL.iter().map(|(column, _)| (*column, &["null"] as &[&str])).collect::<Vec<_>>()));
    Box::pin(agree(&all)).await;
}

/// Types whose equality is more than that of their text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_177_equality_of_types_with_rules_of_their_own_is_the_servers() {
    let odd: &[((&str, &str), &[&str])] = &[
        (CITEXT, &["ABC", "zZz", "éSS", ""]),
        (TAGS, &["{a,b}", "{ \"a\" }", "{}", "{\"x,y\"}"]),
        (INTERVAL, &["24 hours", "30 days", "00:00", "-24:00"]),
    ];
    let mut all = cases(&["eq", "neq", "isdistinct"], odd);
    all.extend(cases(&["in"], &[(CITEXT, &["abc,x"]), (INTERVAL, &["24:00,1 year"])]));
    all.extend(cases(&["is"], &[(CITEXT, &["null"]), (TAGS, &["null"]), (INTERVAL, &["null"])]));
    Box::pin(agree(&all)).await;
}

const ORDER: [&str; 4] = ["lt", "lte", "gt", "gte"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_177_numbers_and_times_are_ordered_as_the_server_orders_them() {
    let columns: &[((&str, &str), &[&str])] = &[
        (INT, &["5", "-3", "6"]),
        (BIG, &["9007199254740993", "-1"]),
        (NUMERIC, &["1.5", "9", "10.00", "NaN"]),
        (FLOAT, &["0.1", "NaN", "-Infinity"]),
        (BOOL, &["true", "false"]),
        (UUID, &["a11ce000-0000-4000-8000-000000000001"]),
        (DATE, &["2026-01-02", "infinity", "0044-03-15 BC"]),
        (STAMP, &["2026-01-02 04:04:05.678+01", "-infinity"]),
    ];
    Box::pin(agree(&cases(&ORDER, columns))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_177_text_and_the_other_types_are_ordered_as_the_server_orders_them() {
    let columns: &[((&str, &str), &[&str])] = &[
        (TEXT, &["abc", "ABC", "b", ""]),
        (CHAR, &["abc", "b"]),
        (CITEXT, &["ABC", "m"]),
        (JSONB, &["{\"a\": 1.5}", "[]"]),
        (MOOD, &["fine", "Happy"]),
        (TAGS, &["{a}", "{}"]),
        (BYTES, &["\\x0102", "\\x80"]),
        (INTERVAL, &["24:00", "30 days"]),
    ];
    Box::pin(agree(&cases(&ORDER, columns))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_177_patterns_match_what_the_server_matches() {
    let like: &[((&str, &str), &[&str])] = &[
        (TEXT, &["a%", "%B%", "_bc", "abc", "%\\_%", "%\\\\", "a, \"_\"", ""]),
        (CHAR, &["abc", "%B"]),
        (CITEXT, &["a%", "%SS"]),
    ];
    let regular: &[((&str, &str), &[&str])] =
        &[(TEXT, &["^a", "B", "^.bc$", "(a|z)", "a, .b", "\\\\$", ""]), (CITEXT, &["^a", "SS$"])];
    let mut all = cases(&["like", "ilike"], like);
    all.extend(cases(&["match", "imatch"], regular));
    Box::pin(agree(&all)).await;
}

/// `(filter, passes)` of a row.
async fn passing(stage: &Stage, filters: &[&str], sql: &str) -> Vec<String> {
    let entry = |filter: &&str| json!({ "event": "*", "schema": "public", "table": "items", "filter": filter });
    let mut pair = stage.watch(&token::user(ALICE), &filters.iter().map(entry).collect()).await;
    stage.exec(sql).await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    assert!(changes.len() <= 1, "{changes:#?}");
    let told = changes.iter().flat_map(|change| pair.entries_of(change));
    told.map(|index| filters[index].to_owned()).collect()
}

const ITEMS: &str = "
    create table public.items (id int primary key, title text, rank int, flag boolean, hidden text);
    grant select (id, title, rank, flag) on public.items to authenticated;
    alter publication supabase_realtime add table public.items;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_178_a_null_matches_is_null_and_isdistinct_only() {
    let stage = Stage::with(ITEMS).await;
    let no = [
        "title=eq.x",
        "title=neq.x",
        "title=not.eq.x",
        "title=not.neq.x",
        "title=in.(x,y)",
        "title=not.in.(x,y)",
        "title=in.(null)",
        "rank=lt.5",
        "rank=not.lt.5",
        "rank=gte.5",
        "rank=not.gte.5",
        "title=not.is.null",
        "title=not.isdistinct.x",
        "title=eq.null",
        "title=eq.",
        "flag=is.true",
        "flag=is.false",
        "flag=not.is.unknown",
        "title=is.null,rank=eq.1",
    ];
    let yes = [
        "title=is.null",
        "title=isdistinct.x",
        "rank=isdistinct.5",
        "flag=is.unknown",
        "flag=is.null",
        "flag=not.is.true",
        "flag=not.is.false",
        "title=is.null,rank=is.null",
        "id=eq.1,title=isdistinct.",
    ];
    let all: Vec<&str> = no.into_iter().chain(yes).collect();
    assert_eq!(passing(&stage, &all, "insert into items values (1)").await, yes);
}

/// The same for operators that only the server can judge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_178_a_null_matches_no_pattern_and_no_order_of_text() {
    let stage = Stage::with(ITEMS).await;
    let filters = [
        "title=like.%",
        "title=not.like.%",
        "title=ilike.%",
        "title=not.ilike.x",
        "title=match.^",
        "title=not.match.x",
        "title=imatch.^",
        "title=not.imatch.x",
        "title=lt.z",
        "title=not.lt.z",
        "title=gte.a",
        "title=not.gte.a",
    ];
    assert_eq!(passing(&stage, &filters, "insert into items values (1)").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_179_all_conditions_are_applied_and_quoted_values_may_have_commas() {
    let stage = Stage::with(ITEMS).await;
    let filters = [
        "id=gte.1,id=lte.5",
        "id=gt.1, id=lt.5",
        "title=eq.\"a, (b\\\" \\\\\"",
        "title=in.(\"a, (b\\\" \\\\\",x),id=not.eq.3",
    ];
    let entry = |filter: &&str| json!({ "event": "INSERT", "schema": "public", "table": "items", "filter": filter });
    let mut pair = stage.watch(&token::user(ALICE), &filters.iter().map(entry).collect()).await;
    stage
        .exec("insert into items select n, case when n > 2 then 'a, (b\" \\' else 'a' end from generate_series(0, 6) n")
        .await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let told: Vec<_> = changes.iter().map(|change| (change.record()["id"].as_i64(), pair.entries_of(change))).collect();
    let expected =
        [(1, vec![0]), (2, vec![0, 1]), (3, vec![0, 1, 2]), (4, vec![0, 1, 2, 3]), (5, vec![0, 2, 3]), (6, vec![2, 3])];
    assert_eq!(told, expected.map(|(id, entries)| (Some(id), entries)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_180_a_filter_on_a_column_that_the_identity_lacks_keeps_a_delete_back() {
    let stage = Stage::with(ITEMS).await;
    let filters =
        ["title=eq.x", "title=not.eq.y", "title=is.null", "title=isdistinct.y", "id=eq.1", "id=eq.1,title=eq.x"];
    let entry = |filter: &&str| json!({ "event": "*", "schema": "public", "table": "items", "filter": filter });
    let mut pair = stage.watch(&token::user(ALICE), &filters.iter().map(entry).collect()).await;
    stage.exec("insert into items values (1, 'x')").await;
    stage.exec("delete from items").await;
    stage.exec("insert into items values (2, 'x'); delete from items").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    let told: Vec<_> = changes.iter().map(|change| (change.kind(), pair.entries_of(change))).collect();
    assert_eq!(told, [("INSERT", vec![0, 1, 3, 4, 5]), ("DELETE", vec![4]), ("INSERT", vec![0, 1, 3])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_181_an_update_is_delivered_into_the_filter_and_not_out_of_it() {
    let stage = Stage::with(&format!("{ITEMS} alter table public.items replica identity full;")).await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "items", "filter": "rank=gte.5,title=eq.x" }]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    for sql in [
        "insert into items values (1, 'x', 1)",
        "update items set rank = 5",
        "update items set rank = 6",
        "update items set title = 'y'",
        "update items set title = 'x'",
        "update items set rank = null",
        "delete from items",
    ] {
        stage.exec(sql).await;
    }
    stage.mark("end").await;
    assert_eq!(summary(&pair.changes_before("end").await, "rank"), ["UPDATE 5", "UPDATE 6", "UPDATE 6"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_182_each_column_list_has_its_own_frame_of_the_key_and_the_columns_asked_for() {
    let stage = Stage::with(&format!("{ITEMS} alter table public.items replica identity full;")).await;
    let entry = |rest: Value| {
        let mut entry = json!({ "event": "*", "schema": "public", "table": "items" });
        entry.as_object_mut().expect("an object").extend(rest.as_object().expect("an object").clone());
        entry
    };
    let entries = json!([
        entry(json!({ "select": ["title"] })),
        entry(json!({ "select": ["rank", "flag", "rank", null, 5] })),
        entry(json!({ "select": ["title"], "filter": "rank=eq.7" })),
        entry(json!({ "select": [] })),
        entry(json!({ "select": ["id"], "event": "DELETE" })),
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    let mut other = stage.watch(&token::user(ALICE), &json!([entry(json!({ "select": ["flag"] }))])).await;
    stage.exec("insert into items values (1, 't', 7, true, 'h')").await;
    stage.exec("update items set rank = 8").await;
    stage.exec("delete from items").await;
    stage.mark("end").await;
    let names = |change: &Change| -> Vec<String> {
        let columns = change.data["columns"].as_array().expect("columns");
        columns.iter().map(|column| column["name"].as_str().expect("a name").to_owned()).collect()
    };
    let keys = |value: &Value| value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>());
    let changes = pair.changes_before("end").await;
    let mut told: Vec<(&str, Vec<usize>, String)> = Vec::new();
    for change in &changes {
        let columns = names(change);
        let mut sorted = columns.clone();
        sorted.sort_unstable();
        let (new, old) = (keys(change.record()), keys(change.old_record()));
        assert_eq!(new, (change.kind() != "DELETE").then(|| sorted.clone()), "{change:#?}");
        assert_eq!(old, (change.kind() != "INSERT").then_some(sorted), "{change:#?}");
        told.push((change.kind(), pair.entries_of(change), columns.join(" ")));
    }
    told.sort_by_key(|(kind, entries, _)| {
        (["INSERT", "UPDATE", "DELETE"].iter().position(|k| k == kind), entries.clone())
    });
    let frame = |kind, entries: &[usize], columns: &str| (kind, entries.to_vec(), columns.to_owned());
    assert_eq!(
        told,
        [
            frame("INSERT", &[0, 2], "id title"),
            frame("INSERT", &[1], "id rank flag"),
            frame("INSERT", &[3], "id title rank flag"),
            frame("UPDATE", &[0], "id title"),
            frame("UPDATE", &[1], "id rank flag"),
            frame("UPDATE", &[3], "id title rank flag"),
            frame("DELETE", &[0], "id title"),
            frame("DELETE", &[1], "id rank flag"),
            frame("DELETE", &[3], "id title rank flag"),
            frame("DELETE", &[4], "id"),
        ]
    );
    let changes = other.changes_before("end").await;
    assert_eq!(changes.iter().map(|change| names(change).join(" ")).collect::<Vec<_>>(), ["id flag"; 3]);
}
