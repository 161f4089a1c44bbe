//! Items 183 to 185: values of every type, unchanged TOAST, and records that are too large (`protocol.md` §6.6, §6.8, §6.10).

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::support::stage::all_of;
use crate::support::token::{self, ALICE};
use crate::support::{Change, Stage};

/// JSON in one way of writing it, numbers digit by digit as they are: no floating point comes near them.
fn canonical(json: &str) -> String {
    let json = json.trim();
    match json.as_bytes().first() {
        Some(b'{') => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).expect("an object");
            let member = |(key, value): (&String, &&RawValue)| format!("{}:{}", json!(key), canonical(value.get()));
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        }
        Some(b'[') => {
            let elements: Vec<&RawValue> = serde_json::from_str(json).expect("an array");
            format!("[{}]", elements.iter().map(|element| canonical(element.get())).collect::<Vec<_>>().join(","))
        }
        Some(b'"') => json!(serde_json::from_str::<String>(json).expect("a string")).to_string(),
        _ => json.to_owned(),
    }
}

/// The members of `record` or `old_record`, as they were sent.
fn sent(change: &Change, image: &str) -> BTreeMap<String, String> {
    let data: BTreeMap<String, &RawValue> = serde_json::from_str(&change.text).expect("an object");
    let image = data.get(image).unwrap_or_else(|| panic!("no {image} in {}", change.text));
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(image.get()).expect("an object");
    members.into_iter().map(|(name, value)| (name, canonical(value.get()))).collect()
}

/// What a value of a type should come out as.
#[derive(Clone, Copy)]
enum As {
    /// The server's own `to_jsonb`.
    ToJsonb,
    /// This, which differs from it as `protocol.md` says.
    Json(&'static str),
    /// The number as the type prints it: `to_jsonb` would write an exponent out.
    Digits,
}
use As::{Digits, Json, ToJsonb};

const TYPES: &str = "
    create extension hstore;
    create extension citext;
    create type public.mood as enum ('sad', 'Very \"fine\"', 'a,b');
    create domain public.positive as int check (value > 0);
    create domain public.label as text;
    create domain public.twice as public.positive;
    create domain public.labels as text[];
    create type public.point3 as (x int, \"Y y\" numeric, label text, tags text[], at timestamptz);
    create type public.nested as (p public.point3, m public.mood, ps public.point3[], j jsonb, b bytea, g public.positive);
    create domain public.spot as public.point3;
    create type public.floats as range (subtype = float8);
    create type public.\"Odd Type\" as enum ('x');";

/// A type, a literal of it, and what it comes out as.
const VALUES: &[(&str, &str, As)] = &[
    ("bool", "true", ToJsonb),
    ("bool", "false", ToJsonb),
    ("int2", "-32768", ToJsonb),
    ("int4", "-2147483648", ToJsonb),
    ("int8", "9007199254740993", ToJsonb),
    ("int8", "-9223372036854775808", ToJsonb),
    ("float4", "0.1", ToJsonb),
    ("float4", "1e-10", Digits),
    ("float8", "0.1", ToJsonb),
    ("float8", "1e300", Digits),
    ("float8", "-0", ToJsonb),
    ("float8", "1.7976931348623157e308", Digits),
    ("numeric", "1.50", ToJsonb),
    ("numeric", "0", ToJsonb),
    ("numeric", "-0.00", ToJsonb),
    ("numeric", "123456789012345678901234567890.123456789012345678901234567890", ToJsonb),
    ("numeric(12, 4)", "1.5", ToJsonb),
    ("oid", "123", ToJsonb),
    ("regclass", "pg_catalog.pg_class", ToJsonb),
    ("text", "", ToJsonb),
    ("text", "quotes \" back \\ slash / é ß 🙂 \u{7f} \u{2028}", ToJsonb),
    ("text", "\n\r\t\u{8}\u{c}\u{1}\u{1f}", ToJsonb),
    ("text", "null", ToJsonb),
    ("varchar(20)", "abc", ToJsonb),
    ("char(5)", "abc", ToJsonb),
    ("\"char\"", "x", ToJsonb),
    ("name", "a name", ToJsonb),
    ("citext", "MiXed", ToJsonb),
    ("uuid", "A11CE000-0000-4000-8000-000000000001", ToJsonb),
    (
        "json",
        "{ \"b\" : [1.50, 1e5, null], \"a\" : {\"x\": \"\\u00e9\"} }",
        Json("{\"b\":[1.50,1e5,null],\"a\":{\"x\":\"é\"}}"),
    ),
    ("json", "[]", ToJsonb),
    ("json", "\"text\"", ToJsonb),
    ("json", "null", ToJsonb),
    ("jsonb", "{\"b\": [1.50, 123456789012345678901234567890, null], \"a\": {}}", ToJsonb),
    ("jsonb", "null", ToJsonb),
    ("jsonb", "1.0", ToJsonb),
    ("xml", "<a b=\"c\">d</a>", ToJsonb),
    ("inet", "192.168.0.1/24", ToJsonb),
    ("cidr", "2001:db8::/32", ToJsonb),
    ("macaddr", "08:00:2b:01:02:03", ToJsonb),
    ("macaddr8", "08:00:2b:01:02:03:04:05", ToJsonb),
    ("bit(4)", "1011", ToJsonb),
    ("bit varying", "10", ToJsonb),
    ("tsvector", "'a':1 'b':2", ToJsonb),
    ("tsquery", "'a' & 'b'", ToJsonb),
    ("money", "1234.5", ToJsonb),
    ("pg_lsn", "16/B374D848", ToJsonb),
    ("point", "(1,2.5)", ToJsonb),
    ("line", "{1,2,3}", ToJsonb),
    ("lseg", "[(0,0),(1,1)]", ToJsonb),
    ("box", "(1,1),(0,0)", ToJsonb),
    ("path", "((0,0),(1,1))", ToJsonb),
    ("polygon", "((0,0),(1,1),(1,0))", ToJsonb),
    ("circle", "<(0,0),1>", ToJsonb),
    ("date", "2026-11-20", ToJsonb),
    ("date", "infinity", ToJsonb),
    ("date", "-infinity", ToJsonb),
    ("date", "0044-03-15 BC", ToJsonb),
    ("date", "12345-01-02", ToJsonb),
    ("time", "10:15:30.5", ToJsonb),
    ("time", "24:00", ToJsonb),
    ("timetz", "10:15:30.5+05:30", ToJsonb),
    ("timestamp", "2026-11-20 10:15:30.123456", ToJsonb),
    ("timestamp", "0044-03-15 12:00 BC", ToJsonb),
    ("timestamp", "infinity", ToJsonb),
    ("timestamp(0)", "2026-11-20 10:15:30.6", ToJsonb),
    ("timestamptz", "2026-11-20 10:15:30.5+01", ToJsonb),
    ("timestamptz", "1883-11-18 12:00:00+00", ToJsonb),
    ("timestamptz", "0044-03-15 12:00:00+00 BC", ToJsonb),
    ("timestamptz", "99999-12-31 00:00+00", ToJsonb),
    ("timestamptz", "-infinity", ToJsonb),
    ("interval", "1 year 2 mons -3 days 04:05:06.7", ToJsonb),
    ("interval", "0", ToJsonb),
    ("bytea", "\\x0102ff", Json("\"0102ff\"")),
    ("bytea", "\\x", Json("\"\"")),
    ("public.mood", "Very \"fine\"", ToJsonb),
    ("public.\"Odd Type\"", "x", ToJsonb),
    ("public.positive", "7", ToJsonb),
    ("public.twice", "7", ToJsonb),
    ("public.label", "7", ToJsonb),
    ("public.labels", "{a,\"b c\",NULL}", ToJsonb),
    ("public.spot", "(1,1.50,l,,)", ToJsonb),
    ("int4range", "[1,4]", ToJsonb),
    ("int4range", "empty", ToJsonb),
    ("numrange", "(,1.50]", ToJsonb),
    ("tstzrange", "[2026-01-01 00:00+00,infinity)", ToJsonb),
    ("daterange", "[2026-01-01,2026-01-02]", ToJsonb),
    ("public.floats", "[0.1,1e300)", ToJsonb),
    ("int4multirange", "{[1,3),[7,9)}", ToJsonb),
    ("datemultirange", "{}", ToJsonb),
    ("public.point3", "(1,1.50,\"a \"\"b\"\", c\",\"{x,\"\"y z\"\"}\",\"2026-11-20 10:15:30.5+01\")", ToJsonb),
    ("public.point3", "(,,,,)", ToJsonb),
    ("public.point3", "(1,,\"\",{},)", ToJsonb),
    ("hstore", "a=>1, \"b c\"=>\"d \\\"e\\\"\", n=>NULL", ToJsonb),
    ("text[]", "{}", ToJsonb),
    ("text[]", "{a,\"b, c\",\"quote \\\" back \\\\ slash\",NULL,\"NULL\",\"\",\"{}\"}", ToJsonb),
    ("int[]", "{1,NULL,-3}", ToJsonb),
    ("int[][]", "{{1,2},{3,4},{5,NULL}}", ToJsonb),
    ("int[]", "{{{1},{2}},{{3},{4}}}", ToJsonb),
    ("int[]", "[0:1][5:6]={{1,2},{3,4}}", ToJsonb),
    ("int8[]", "{9007199254740993}", ToJsonb),
    ("numeric[]", "{1.50,0.000}", ToJsonb),
    ("bool[]", "{t,f,NULL}", ToJsonb),
    ("uuid[]", "{a11ce000-0000-4000-8000-000000000001}", ToJsonb),
    ("timestamptz[]", "{\"2026-11-20 10:15:30.5+01\",infinity}", ToJsonb),
    ("timestamp[]", "{\"2026-11-20 10:15:30\"}", ToJsonb),
    ("date[]", "{2026-11-20,\"0044-03-15 BC\"}", ToJsonb),
    ("jsonb[]", "{\"{\\\"a\\\": [1.50]}\",\"null\",NULL}", ToJsonb),
    ("json[]", "{\"[1,2]\"}", ToJsonb),
    ("bytea[]", "{\"\\\\x0102\",NULL}", Json("[\"0102\",null]")),
    ("float8[]", "{0.5,NaN,Infinity}", ToJsonb),
    ("public.mood[]", "{sad,\"a,b\",\"Very \\\"fine\\\"\"}", ToJsonb),
    ("public.positive[]", "{1,2}", ToJsonb),
    ("public.point3[]", "{\"(1,2,l,,)\",\"(,,,\\\"{a,b}\\\",)\",NULL}", ToJsonb),
    ("int4range[]", "{\"[1,4)\",empty}", ToJsonb),
    ("box[]", "{(1,1),(0,0);(2,2),(1,1)}", ToJsonb),
    ("hstore[]", "{\"a=>1\"}", ToJsonb),
    ("citext[]", "{Aa}", ToJsonb),
    ("char(3)[]", "{a,bc}", ToJsonb),
    ("interval[]", "{\"1 day\"}", ToJsonb),
    ("oid[]", "{1}", ToJsonb),
    ("public.nested", "(\"(1,2,l,,)\",sad,\"{\"\"(1,,,,)\"\"}\",\"{\"\"a\"\": 1.50}\",,3)", ToJsonb),
    ("xid", "5", ToJsonb),
    ("tid", "(0,1)", ToJsonb),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_183_values_of_every_type_come_out_as_the_servers_json() {
    let nulls = VALUES.iter().map(|(kind, ..)| (*kind, None, Json("null")));
    let values: Vec<_> = VALUES.iter().map(|(kind, text, form)| (*kind, Some(*text), *form)).chain(nulls).collect();
    come_out(&values).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_183_numbers_that_json_has_no_number_for_are_null() {
    let odd =
        [("float4", "NaN"), ("float8", "NaN"), ("float8", "Infinity"), ("float8", "-Infinity"), ("numeric", "NaN")];
    come_out(&odd.map(|(kind, text)| (kind, Some(text), Json("null")))).await;
}

/// A type, a value's text unless it is NULL, and what it comes out as.
type Written<'a> = (&'a str, Option<&'a str>, As);

/// Writes one row with all of these values, changes and deletes it, and compares each of its images.
async fn come_out(values: &[Written<'_>]) {
    let list = |part: &dyn Fn(usize, &Written<'_>) -> String| {
        values.iter().enumerate().map(|(index, value)| part(index, value)).collect::<Vec<_>>().join(", ")
    };
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let declared = list(&|index, (kind, ..)| format!("c{index} {kind}"));
    let literals = list(&|_, (_, text, _)| text.map_or("null".to_owned(), literal));
    let stage = Stage::with(&format!(
        "{TYPES} create table public.kinds (id int primary key, {declared});
         alter table public.kinds replica identity full;
         grant select on public.kinds to authenticated;
         alter publication supabase_realtime add table public.kinds;"
    ))
    .await;
    let mut pair = stage.watch(&token::user(ALICE), &all_of("kinds")).await;
    stage.exec(&format!("insert into kinds values (1, {literals})")).await;
    let client = stage.pg.client().await;
    let expressions = list(&|index, (_, _, form)| match form {
        Digits => format!("c{index}::text"),
        _ => format!("to_jsonb(c{index})::text"),
    });
    client.batch_execute("set timezone to 'UTC'").await.expect("set");
    let row =
        client.query_one(&format!("select array[{expressions}] from kinds"), &[]).await.expect("the server's JSON");
    let expected: Vec<Option<String>> = row.get(0);
    // Neither the writer's settings nor the database's change what is sent.
    stage
        .exec(
            "set datestyle to 'SQL, DMY'; set intervalstyle to 'iso_8601'; set extra_float_digits to -3; \
             set bytea_output to 'escape'; set timezone to 'Asia/Kolkata'; \
             update kinds set id = 1; delete from kinds; reset all",
        )
        .await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    assert_eq!(changes.iter().map(Change::kind).collect::<Vec<_>>(), ["INSERT", "UPDATE", "DELETE"]);
    let mut mistakes = Vec::new();
    for (kind, image) in [(0, "record"), (1, "record"), (1, "old_record"), (2, "old_record")] {
        let sent = sent(&changes[kind], image);
        for (index, (kind, value, form)) in values.iter().enumerate() {
            let expected = match form {
                Json(json) => canonical(json),
                _ => canonical(expected[index].as_deref().unwrap_or("null")),
            };
            let came = sent.get(&format!("c{index}"));
            if came != Some(&expected) {
                mistakes.push(format!("{kind} {value:?} in {image}: {came:?} instead of {expected}"));
            }
        }
    }
    mistakes.sort_unstable();
    mistakes.dedup();
    assert!(mistakes.is_empty(), "{} mistakes:\n{}", mistakes.len(), mistakes.join("\n"));
}

const LONG: &str = "
    create table public.by_key (id int primary key, small text, long text);
    create table public.by_row (like public.by_key including all);
    alter table public.by_key alter long set storage external;
    alter table public.by_row alter long set storage external;
    alter table public.by_row replica identity full;
    grant select on public.by_key, public.by_row to authenticated;
    alter publication supabase_realtime add table public.by_key, public.by_row;";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_184_an_unchanged_long_value_is_absent_unless_the_identity_has_it() {
    let stage = Stage::with(LONG).await;
    let filtered =
        |table: &str, filter: &str| json!({ "event": "UPDATE", "schema": "public", "table": table, "filter": filter });
    let entries = json!([
        { "event": "*", "schema": "public", "table": "by_key" },
        { "event": "*", "schema": "public", "table": "by_row" },
        filtered("by_key", "long=is.null"),
        filtered("by_key", "long=isdistinct.x"),
        filtered("by_row", "long=isdistinct.x"),
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    let long = "x".repeat(10_000);
    for table in ["by_key", "by_row"] {
        stage.exec(&format!("insert into {table} values (1, 'one', repeat('x', 10000))")).await;
        stage.exec(&format!("update {table} set small = 'two'")).await;
        stage.exec(&format!("update {table} set long = repeat('y', 10000)")).await;
        stage.exec(&format!("update {table} set long = null")).await;
    }
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    assert_eq!(changes.len(), 8);
    let other = "y".repeat(10_000);
    let row = |small: &str, long: &str| json!({ "id": 1, "small": small, "long": long });
    let key = json!({ "id": 1 });
    // By the key: the column is not there at all, which is not the same as null.
    assert_eq!((changes[1].record(), changes[1].old_record()), (&json!({ "id": 1, "small": "two" }), &key));
    assert_eq!((changes[2].record(), changes[2].old_record()), (&row("two", &other), &key));
    assert_eq!(changes[3].record(), &json!({ "id": 1, "small": "two", "long": null }));
    // With the whole row as identity the old row has it.
    assert_eq!((changes[5].record(), changes[5].old_record()), (&row("two", &long), &row("one", &long)));
    assert_eq!((changes[6].record(), changes[6].old_record()), (&row("two", &other), &row("two", &long)));
    for change in &changes {
        assert_eq!(change.data["errors"], Value::Null);
    }
    // It is a column all the same, and a filter on it does not match while it is absent.
    assert_eq!(changes[1].data["columns"].as_array().map(Vec::len), Some(3));
    let told: Vec<_> = changes.iter().map(|change| pair.entries_of(change)).collect();
    let expected = [vec![0], vec![0], vec![0, 3], vec![0, 2, 3], vec![1], vec![1, 4], vec![1, 4], vec![1, 4]];
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_185_of_a_record_over_a_mebibyte_only_short_values_remain() {
    let stage = Stage::with(
        "create table public.big (id int primary key, short text, edge text, over text, none text, long text);
         grant select on public.big to authenticated;
         alter publication supabase_realtime add table public.big;",
    )
    .await;
    let entries = json!([
        { "event": "*", "schema": "public", "table": "big" },
        { "event": "INSERT", "schema": "public", "table": "big", "filter": "long=neq.x" },
        { "event": "*", "schema": "public", "table": "big", "filter": "long=eq.x" },
    ]);
    let mut pair = stage.watch(&token::user(ALICE), &entries).await;
    let insert = |id: u32, length: usize| {
        // A string of 62 letters is 64 bytes of JSON.
        format!("insert into big values ({id}, 's', repeat('e', 62), repeat('o', 63), null, repeat('l', {length}))")
    };
    stage.exec(&insert(1, 1_100_000)).await;
    stage.exec(&insert(2, 1_000_000)).await;
    stage.exec("update big set short = 't', long = long || 'l' where id = 1").await;
    stage.exec("alter table big replica identity full; delete from big where id = 1").await;
    stage.mark("end").await;
    let changes = pair.changes_before("end").await;
    assert_eq!(changes.len(), 4);
    let too_large = json!(["Error 413: Payload Too Large"]);
    let cut = |short: &str| json!({ "id": 1, "short": short, "edge": "e".repeat(62) });
    assert_eq!((changes[0].record(), &changes[0].data["errors"]), (&cut("s"), &too_large));
    assert_eq!(pair.entries_of(&changes[0]), [0, 1], "filters see the whole record");
    assert_eq!(&changes[1].data["errors"], &Value::Null);
    assert_eq!(changes[1].record()["long"].as_str().map(str::len), Some(1_000_000));
    assert_eq!(
        (changes[2].record(), changes[2].old_record(), &changes[2].data["errors"]),
        (&cut("t"), &json!({ "id": 1 }), &too_large)
    );
    assert_eq!((changes[3].old_record(), &changes[3].data["errors"]), (&cut("t"), &too_large));
    for change in &changes {
        assert_eq!(change.data["columns"].as_array().map(Vec::len), Some(6), "{}", change.kind());
        assert!(change.data["commit_timestamp"].is_string());
    }
}
