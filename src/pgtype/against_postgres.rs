//! What the module claims, asked of a real server: JSON against `to_jsonb`, equality and order against `=` and `<`.

use std::cmp::Ordering;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::value::RawValue;
use tokio_postgres::Client;

use super::*;
use crate::testing::TestDatabase;

pub(super) const SETUP: &str = "create type mood as enum ('sad', 'it''s \"ok\"', 'happy');
    create domain price as numeric check (value > -1000000);
    create type spot as (x int, \"na\"\"me\" text, at timestamptz, tags text[], price price);
    create type nest as (s spot, n spot[], j jsonb);
    create domain pair as int[];";

/// Literals that have shown differences somewhere, by type as SQL writes it.
#[rustfmt::skip]
pub(super) const EDGES: &[(&str, &[&str])] = &[
    ("bool", &["t", "f"]),
    ("int2", &["-32768", "0", "32767"]),
    ("int4", &["-2147483648", "-1", "0", "2147483647"]),
    ("int8", &["-9223372036854775808", "9007199254740993", "10", "9"]),
    ("oid", &["0", "123", "4294967295"]),
    ("numeric", &["NaN", "Infinity", "-Infinity", "0", "0.00", "-0.0", "1.5", "1.50", "1.05", "-1.5", "-10", "1e50", "1e-50",
        "123456789012345678901234567890.123456789", "100", "1e2", "99"]),
    ("numeric(10,2)", &["1.005", "2", "-0.001"]),
    ("price", &["1.50", "1.5", "NaN"]),
    ("float4", &["NaN", "Infinity", "-Infinity", "-0", "0", "0.1", "1e30", "16777216", "1e-40", "3.4e38", "0.3"]),
    ("float8", &["NaN", "Infinity", "-Infinity", "-0", "0", "0.1", "1e300", "1e-300", "123456789.123456789", "5e-324", "1e15", "1e16"]),
    ("text", &["", "a", "A", "a ", "é", "e\u{301}", "\"\\\n\r\t\u{1}\u{7f}", "😀", "NULL", "{x}", "(a,b)", "日本"]),
    ("varchar(5)", &["", "ab", "ab "]),
    ("char(5)", &["", "ab", "ab  ", " ab"]),
    ("name", &["", "abc", "ABC"]),
    ("\"char\"", &["", "a", "\\", "\""]),
    ("bytea", &["", "\\x00", "\\x0102ff", "\\x01", "\\x0102"]),
    ("uuid", &["0b9f6c1e-0000-4000-8000-000000000001", "0B9F6C1E-0000-4000-8000-000000000001", "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "a0000000-0000-0000-0000-000000000000", "90000000-0000-0000-0000-000000000000"]),
    ("date", &["2026-11-20", "infinity", "-infinity", "0044-03-15 BC", "4713-01-01 BC", "12026-01-01", "0001-01-01"]),
    ("time", &["00:00", "24:00:00", "10:15:30.5", "10:15:30.50", "10:15:30.25", "10:15:30"]),
    ("timetz", &["10:15:30.5+00", "10:15:30.5+05:30", "00:00-12"]),
    ("timestamp", &["2026-11-20 10:15:30.5", "infinity", "-infinity", "0044-03-15 01:02:03 BC", "12026-01-01", "1999-12-31 23:59:59.999999"]),
    ("timestamptz", &["2026-11-20 10:15:30.5+00", "2026-11-20 12:15:30.5+02", "infinity", "-infinity", "0044-03-15 01:02:03 BC",
        "12026-01-01", "1850-01-01 00:00:00+00:19:32"]),
    ("interval", &["1 mon", "30 days", "1 day -02:03:04.5"]),
    ("json", &["{\"a\" :\n[1, 2.50, \"x\\u00e9\"]}", "null", "\"s\""]),
    ("jsonb", &["{\"a\": 1.50, \"b\": [1, {\"1.0\": \"1.0\"}]}", "{\"b\": [1.0, {\"1.0\": \"1.0\"}], \"a\": 1.5}", "1", "1.0", "[1]", "[]",
        "{}", "null", "\"\\\"1.0\"", "1e3", "1000", "-0", "0", "-0.0", "\"1.0\"", "\"1\"", "{\"a\": \"b\\\\\", \"c\": 1.0}"]),
    ("xml", &["<a>\"x\"</a>"]),
    ("inet", &["10.0.0.1", "10.0.0.1/32", "10.0.0.1/24", "::1", "0:0::1", "::ffff:1.2.3.4"]),
    ("cidr", &["10.0.0.0/8", "10.0.0.0/9", "2001:db8::/32"]),
    ("macaddr", &["08:00:2b:01:02:03", "08002b:010203"]),
    ("macaddr8", &["08:00:2b:01:02:03:04:05", "0800.2b01.0203.0405"]),
    ("bit(4)", &["1011", "0011"]),
    ("varbit", &["1", "10", "", "01"]),
    ("pg_lsn", &["0/0", "16/B374D848", "0016/b374d848"]),
    ("money", &["12.50", "-1"]),
    ("point", &["(1,2.5)"]),
    ("box", &["(1,1),(0,0)"]),
    ("box[]", &["{(1,1),(0,0);(2,2),(1,1)}"]),
    ("tsvector", &["'a':1 'b c':2"]),
    ("mood", &["sad", "it's \"ok\"", "happy"]),
    ("int4range", &["[1,5)", "empty", "(,3)"]),
    ("numrange", &["[1.0,2]"]),
    ("int4multirange", &["{[1,2),[5,6)}"]),
    ("int4[]", &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={7,8}", "[-1:0][2:3]={{1,2},{3,4}}", "{{{1}}}"]),
    ("text[]", &["{a,\"b,c\",\"d\\\"e\\\\\",\"\",\"NULL\",NULL,\"{}\",\" x \",\"\u{1}\"}"]),
    ("timestamptz[]", &["{\"2026-11-20 10:15:30.5+00\",infinity}"]),
    ("jsonb[]", &["{\"{\\\"a\\\": 1}\",\"\\\"x\\\"\",NULL,null}"]),
    ("float8[]", &["{1,NaN,-Infinity,1e300}"]),
    ("numeric[]", &["{1.50,NaN}"]),
    ("bool[]", &["{t,f,NULL}"]),
    ("mood[]", &["{sad,\"it's \\\"ok\\\"\"}"]),
    ("pair", &["{1,2}"]),
    ("pair[]", &["{\"{1,2}\",\"{3}\"}"]),
    ("spot", &["(1,\"a \"\"b\"\" \\\\ ,()\",2026-11-20,\"{x,\"\"y z\"\"}\",1.50)", "(,,,,)", "(,\"\",,{},)"]),
    ("spot[]", &["{\"(1,\\\"a,\\\\\\\"b\\\",,,)\",NULL}"]),
    ("nest", &["(\"(1,\"\"a\"\"\"\"b\"\",,,)\",\"{\"\"(2,,,\\\\\"\"{q,\\\\\\\\\\\\\"\"r s\\\\\\\\\\\\\"\"}\\\\\"\",)\"\"}\",\"{\"\"k\"\": [1, 2.0]}\")"]),
];

struct Column {
    oid: u32,
    sql: &'static str,
    /// What Postgres prints for each value, and its `to_jsonb`.
    values: Vec<(String, String)>,
}

/// Extra values for types whose space is large.
pub(super) fn generated(sql: &str, runner: &mut TestRunner) -> Vec<String> {
    let pick = |strategy: BoxedStrategy<String>, runner: &mut TestRunner| -> Vec<String> {
        (0..25).map(|_| strategy.new_tree(runner).expect("a value").current()).collect()
    };
    let number = "-?(0|[1-9][0-9]{0,3})\\.[0-9]{0,2}0{0,2}";
    match sql {
        "int2" => pick(any::<i16>().prop_map(|v| v.to_string()).boxed(), runner),
        "int4" => pick(any::<i32>().prop_map(|v| v.to_string()).boxed(), runner),
        "int8" => pick(any::<i64>().prop_map(|v| v.to_string()).boxed(), runner),
        "numeric" | "price" => pick(number.prop_map(|v| v.trim_end_matches('.').into()).boxed(), runner),
        "float4" => pick(any::<f32>().prop_map(|v| format!("{v:e}")).boxed(), runner),
        "float8" => pick(any::<f64>().prop_map(|v| format!("{v:e}")).boxed(), runner),
        "text" => pick("[ -~\u{1}-\u{1f}äß€😀]{0,12}".boxed(), runner),
        "char(5)" => pick("[ab ]{0,5}".boxed(), runner),
        "bytea" => pick("\\\\x([0-9a-f]{2}){0,3}".boxed(), runner),
        "timestamp" | "timestamptz" => {
            pick("20[0-3][0-9]-0[1-9]-[12][0-9] [01][0-9]:[0-5][0-9]:[0-5][0-9]\\.[0-9]{0,6}".boxed(), runner)
        }
        "date" => pick("[0-3][0-9][1-9][0-9]-0[1-9]-[12][0-9]( BC)?".boxed(), runner),
        "time" => pick("[01][0-9]:[0-5][0-9]:[0-5][0-9]\\.[0-9]{1,6}".boxed(), runner),
        "varbit" => pick("[01]{0,6}".boxed(), runner),
        "jsonb" => pick("\\{\"[ab1]\": [0-3]\\.0{1,2}, \"c\": \\[\"[0-9.]{1,3}\"\\]\\}".boxed(), runner),
        _ => Vec::new(),
    }
}

pub(super) async fn types_of(client: &Client) -> Types {
    let sql = "select t.oid, n.nspname::text, t.typname::text, t.typtype::text, t.typelem, t.typbasetype, t.typrelid,
                 t.typsubscript = 'array_subscript_handler'::regproc and t.typlen = -1,
                 coalesce((select e.typdelim::text from pg_type e where e.oid = t.typelem), ',')
               from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.oid >= 16384";
    let mut types = Vec::new();
    for row in client.query(sql, &[]).await.unwrap() {
        let kind = match row.get::<_, &str>(3) {
            "e" => TypeKind::Enum,
            "r" | "m" => TypeKind::Range,
            "d" => TypeKind::Domain { base: row.get(5) },
            "c" => {
                let sql = "select attname::text, atttypid from pg_attribute
                           where attrelid = $1 and attnum > 0 and not attisdropped order by attnum";
                let attributes = client.query(sql, &[&row.get::<_, u32>(6)]).await.unwrap();
                TypeKind::Composite { attributes: attributes.iter().map(|a| (a.get(0), a.get(1))).collect() }
            }
            _ if row.get(7) => TypeKind::Array { element: row.get(4), delimiter: row.get::<_, &str>(8).as_bytes()[0] },
            _ => TypeKind::Base,
        };
        types.push(TypeInfo { oid: row.get(0), schema: row.get(1), name: row.get(2), kind });
    }
    types.into_iter().collect()
}

/// One table per type, since values are compared within a type; the server's own texts come back.
async fn columns(client: &Client) -> Vec<Column> {
    let mut runner = TestRunner::deterministic();
    let mut columns = Vec::new();
    for (index, (sql, literals)) in EDGES.iter().enumerate() {
        let table = format!("v{index}");
        client.batch_execute(&format!("create table {table} (id serial, v {sql})")).await.unwrap();
        let literals = literals.iter().map(|s| (*s).to_owned()).chain(generated(sql, &mut runner));
        for literal in literals {
            let quoted = literal.replace('\'', "''");
            let insert = format!("insert into {table} (v) values ('{quoted}')");
            client.batch_execute(&insert).await.unwrap_or_else(|e| panic!("{insert}: {e:?}"));
        }
        // The bytea rule is ours; format('%s') prints by the type's output function, which a cast to text does not always.
        let json = if *sql == "bytea" { "to_jsonb(encode(v, 'hex'))" } else { "to_jsonb(v)" };
        let query = format!("select format('%s', v), {json}::text, '{table}.v'::text from {table} order by id");
        let rows = client.query(&query, &[]).await.unwrap();
        let oid = "select atttypid from pg_attribute where attrelid = $1::text::regclass and attname = 'v'";
        let oid = client.query_one(oid, &[&table]).await.unwrap().get(0);
        columns.push(Column { oid, sql, values: rows.iter().map(|r| (r.get(0), r.get(1))).collect() });
    }
    columns
}

/// The same value in one form: numbers as plain decimals without trailing zeros, since `1e+2` and `100` are one number; keys in
/// jsonb's order don't matter.
pub(super) fn normal(json: &str) -> String {
    fn object(json: &str) -> std::collections::BTreeMap<String, Box<RawValue>> {
        serde_json::from_str(json).unwrap()
    }
    let json = json.trim();
    match json.as_bytes()[0] {
        b'{' => {
            let members = object(json);
            let members = members.iter().map(|(k, v)| format!("{k:?}:{}", normal(v.get())));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        b'[' => {
            let elements: Vec<Box<RawValue>> = serde_json::from_str(json).unwrap();
            format!("[{}]", elements.iter().map(|v| normal(v.get())).collect::<Vec<_>>().join(","))
        }
        b'"' => format!("{:?}", serde_json::from_str::<String>(json).unwrap()),
        b'-' | b'0'..=b'9' => decimal(json),
        _ => json.to_owned(),
    }
}

fn decimal(number: &str) -> String {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |m| ("-", m));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let exponent = exponent.parse::<i64>().unwrap() - fraction.len() as i64;
    let significant = digits.trim_end_matches('0');
    let exponent = exponent + (digits.len() - significant.len()) as i64;
    match significant.trim_start_matches('0') {
        "" => "0".into(),
        significant => format!("{sign}{significant}e{exponent}"),
    }
}

#[tokio::test]
async fn what_we_write_and_claim_is_what_postgres_says() {
    let client = TestDatabase::new().await.client;
    client.batch_execute(SETUP).await.unwrap();
    let columns = columns(&client).await;
    let types = types_of(&client).await;
    for (index, column) in columns.iter().enumerate() {
        for (text, expected) in &column.values {
            let mut ours = Vec::new();
            write_json(&json_kind(&types, column.oid), text.as_bytes(), &mut ours);
            let ours = String::from_utf8(ours).unwrap();
            assert_eq!(normal(&ours), normal(expected), "{} {text:?}: {ours}", column.sql);
            if matches!(column.sql, "numeric" | "numeric(10,2)" | "price" | "int8") {
                assert_eq!(&ours, expected, "scale and precision are kept");
            }
        }
        pairs(&client, &types, column, index).await;
    }
}

/// Every pair of values of the column, both ways.
async fn pairs(client: &Client, types: &Types, column: &Column, index: usize) {
    let how = equality(types, column.oid, true);
    let ordered = order(types, column.oid, false);
    assert!(ordered.is_none() || how.is_some(), "{}: what is ordered has an equality", column.sql);
    let Some(how) = how else { return };
    let less = if ordered.is_some() { "a.v < b.v" } else { "false" };
    let sql = format!("select a.id, b.id, a.v = b.v, {less} from v{index} a, v{index} b");
    for row in client.query(&sql, &[]).await.unwrap() {
        let text = |i| column.values[row.get::<_, i32>(i) as usize - 1].0.as_bytes();
        let (a, b) = (text(0), text(1));
        let equal = canonical(how, a).unwrap() == canonical(how, b).unwrap();
        let shown = || format!("{} {} {}", column.sql, String::from_utf8_lossy(a), String::from_utf8_lossy(b));
        assert_eq!(equal, row.get::<_, bool>(2), "= {}", shown());
        if let Some(order) = ordered {
            let expected = match (row.get(2), row.get(3)) {
                (true, _) => Ordering::Equal,
                (_, true) => Ordering::Less,
                _ => Ordering::Greater,
            };
            assert_eq!(compare(order, a, b), Some(expected), "< {}", shown());
        }
    }
}

#[tokio::test]
async fn hstore_is_an_object_as_its_cast_to_json_has_it() {
    let client = TestDatabase::new().await.client;
    let available = client.query("select 1 from pg_available_extensions where name = 'hstore'", &[]).await.unwrap();
    if available.is_empty() {
        return;
    }
    client.batch_execute("create extension hstore").await.unwrap();
    let types = types_of(&client).await;
    let sql = "select 'hstore'::regtype::oid, format('%s', v), to_jsonb(v)::text from (values
        ('a=>1,\"b c\"=>NULL, \"d\\\"e\"=>\"x\\\\y, \"'::hstore), (''), ('\"\"=>\"\"'), ('\"NULL\"=>\"NULL\"')) t(v)";
    for row in client.query(sql, &[]).await.unwrap() {
        let mut ours = Vec::new();
        write_json(&json_kind(&types, row.get(0)), row.get::<_, &str>(1).as_bytes(), &mut ours);
        assert_eq!(normal(std::str::from_utf8(&ours).unwrap()), normal(row.get(2)));
    }
}
