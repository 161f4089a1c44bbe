//! Generated values of every type, in arrays and composites of any depth, against `to_jsonb` of a real server.
//!
//! Numbers are compared by value and bytea without its `\x`: the differences that the module names.

use std::fmt::Write as _;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use tokio_postgres::Client;

use super::against_postgres::{EDGES, SETUP, generated, normal, types_of};
use super::*;
use crate::testing::TestDatabase;

/// Types that the other test has no use for, since nothing but their text is looked at.
#[rustfmt::skip]
const MORE: &[(&str, &[&str])] = &[
    ("int2vector", &["", "1", "1 2 3", "-5 7"]), ("oidvector", &["", "7", "1 4294967295"]),
    ("tid", &["(0,1)"]), ("xid", &["7"]), ("cid", &["7"]), ("xid8", &["18446744073709551615"]),
    ("pg_snapshot", &["10:20:10,14,15"]), ("txid_snapshot", &["10:20:"]), ("refcursor", &["a b", ""]), ("aclitem", &["=r/postgres"]),
    ("regproc", &["now"]), ("regprocedure", &["now()"]), ("regoper", &["||/"]), ("regoperator", &["+(int4,int4)"]),
    ("regclass", &["pg_class", "\"v \"\"1\"", "-", "4294967295"]), ("regtype", &["int4", "timestamptz"]), ("regconfig", &["simple"]),
    ("regdictionary", &["simple"]), ("regnamespace", &["pg_catalog"]), ("regrole", &["postgres"]), ("regcollation", &["\"C\""]),
    ("jsonpath", &["$.\"a\"[*] ? (@ > 1 && @ starts with \"x\")"]), ("tsquery", &["'a b' & c | !d"]),
    ("tsvector", &["'it''s':1A 'b\\\\c':2"]), ("line", &["{1,2,3}"]), ("lseg", &["[(1,2),(3,4)]"]), ("path", &["((1,2),(3,4))", "[(1,2)]"]),
    ("polygon", &["((1,2),(3,4))"]), ("circle", &["<(1,2),3>"]), ("bpchar", &["", " a "]), ("bit", &["1"]),
    ("numrange", &["empty", "(,1.50]"]), ("tsrange", &["[\"2026-11-20 10:15:30\",)"]), ("tstzrange", &["[\"2026-11-20 10:15:30.5+00\",infinity]"]),
    ("daterange", &["[2026-11-20,)"]), ("int8range", &["[1,9007199254740993)"]), ("nummultirange", &["{[1.0,2],(3,)}"]), ("tsmultirange", &["{}"]),
    ("tstzmultirange", &["{[\"2026-11-20 10:15:30+00\",)}"]), ("datemultirange", &["{[2026-11-20,2026-11-22)}"]), ("int8multirange", &["{}"]),
    ("citext", &["Ab \"c\"", ""]), ("isbn13", &["978-0-393-04002-9"]), ("isbn", &["0-393-04002-X"]), ("issn", &["1436-4522"]), ("ean13", &["9780393040029"]),
    ("upc", &["220356483481"]), ("ltree", &["Top.Child_1", ""]), ("lquery", &["Top.*{1,2}"]), ("ltxtquery", &["a & b*"]),
    ("cube", &["(1,2),(3,4.5)", "1e300"]), ("seg", &["1.50 .. 2.00", "~3", "<4"]), ("query_int", &["1&(2|!3)"]), ("lo", &["7"]),
    ("hstore", &["", "a=>1,\"b c\"=>NULL,\"d\\\"e\"=>\"x\\\\y, \"", "\"NULL\"=>\"NULL\",\"\"=>\"\""]),
];

/// How deep composites are nested.
const LEVELS: usize = 3;

const EXTENSIONS: &[&str] = &["citext", "isn", "ltree", "cube", "seg", "intarray", "lo", "hstore"];

/// A type as SQL names it, and how its values are made.
#[derive(Clone)]
enum Shape {
    /// Of these literals.
    Scalar(Vec<String>),
    /// Of this element, with this delimiter.
    Array(Box<Named>, char),
    Composite(Vec<Named>),
}

#[derive(Clone)]
struct Named {
    sql: String,
    shape: Shape,
}

struct Generator {
    rng: TestRng,
    scalars: Vec<Named>,
}

impl Generator {
    fn below(&mut self, bound: usize) -> usize {
        self.rng.next_u32() as usize % bound
    }

    fn any_scalar(&mut self) -> Named {
        let at = self.below(self.scalars.len());
        self.scalars[at].clone()
    }

    /// The literal of a value; `None` is NULL.
    fn value(&mut self, named: &Named) -> Option<String> {
        match &named.shape {
            _ if self.below(8) == 0 => None,
            Shape::Scalar(literals) => Some(literals[self.below(literals.len())].clone()),
            Shape::Array(element, delimiter) => Some(self.array(element, *delimiter)),
            Shape::Composite(fields) => {
                let fields: Vec<String> =
                    fields.iter().map(|field| self.value(field).map_or(String::new(), quoted)).collect();
                Some(format!("({})", fields.join(",")))
            }
        }
    }

    /// Up to three dimensions, often with lower bounds of its own.
    fn array(&mut self, element: &Named, delimiter: char) -> String {
        let lengths: Vec<usize> =
            (0..1 + self.below(3)).map(|_| self.below(3) + usize::from(self.below(8) > 0)).collect();
        if lengths.contains(&0) {
            return "{}".into();
        }
        let mut text = String::new();
        if self.below(3) == 0 {
            for length in &lengths {
                let lower = self.below(9) as i64 - 4;
                let _ = write!(text, "[{lower}:{}]", lower + *length as i64 - 1);
            }
            text.push('=');
        }
        self.dimension(&lengths, element, delimiter, &mut text);
        text
    }

    fn dimension(&mut self, lengths: &[usize], element: &Named, delimiter: char, text: &mut String) {
        let Some((length, inner)) = lengths.split_first() else {
            return text.push_str(&self.value(element).map_or("NULL".into(), quoted));
        };
        text.push('{');
        for i in 0..*length {
            if i > 0 {
                text.push(delimiter);
            }
            self.dimension(inner, element, delimiter, text);
        }
        text.push('}');
    }
}

fn quoted(text: String) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn array_of(element: &Named) -> Named {
    let delimiter = if element.sql == "box" { ';' } else { ',' };
    Named { sql: format!("{}[]", element.sql), shape: Shape::Array(Box::new(element.clone()), delimiter) }
}

/// The scalar types that this server has, with the extensions that are installed there.
async fn scalars(client: &Client) -> Vec<Named> {
    for extension in EXTENSIONS {
        let sql = format!(
            "do $$ begin if exists (select from pg_available_extensions where name = '{extension}') then
             create extension {extension}; end if; end $$"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    let mut runner = TestRunner::deterministic();
    let mut scalars = Vec::new();
    for (sql, literals) in EDGES.iter().chain(MORE) {
        let known = client.query_one("select to_regtype($1) is not null", &[sql]).await.unwrap();
        // Composites and arrays are made here.
        if !known.get::<_, bool>(0) || sql.ends_with("[]") || ["spot", "nest", "pair"].contains(sql) {
            continue;
        }
        let literals = literals.iter().map(|text| (*text).to_owned()).chain(generated(sql, &mut runner));
        scalars.push(Named { sql: (*sql).to_owned(), shape: Shape::Scalar(literals.collect()) });
    }
    scalars
}

/// Composites and domains made of scalars, then of the made ones before them. Each level doubles the backslashes of the one
/// inside it, so there are few levels.
async fn made_of(client: &Client, generator: &mut Generator) -> Vec<Named> {
    let mut made: Vec<Named> = Vec::new();
    for level in 0..LEVELS {
        let parts = made.clone();
        for i in 0..8 {
            let sql = format!("made{level}_{i}");
            let mut part = || match generator.below(4) {
                0 | 1 if !parts.is_empty() => parts[generator.below(parts.len())].clone(),
                _ => generator.any_scalar(),
            };
            let base = part();
            let fields = [base.clone(), array_of(&base), part(), generator.any_scalar()];
            let columns = fields.iter().enumerate().map(|(i, f)| format!("\"f {i}\"\"\\\" {}", f.sql));
            let columns: Vec<String> = columns.collect();
            client.batch_execute(&format!("create type {sql} as ({})", columns.join(", "))).await.unwrap();
            made.push(Named { sql: sql.clone(), shape: Shape::Composite(fields.to_vec()) });
            let base = array_of(&base);
            client.batch_execute(&format!("create domain over_{sql} as {}", base.sql)).await.unwrap();
            made.push(Named { sql: format!("over_{sql}"), shape: base.shape });
        }
    }
    made
}

/// Asks for all values of one type at once.
async fn compare_with_server(client: &Client, types: &Types, sql: &str, literals: &[String]) {
    // As constants: a cast from text is not always the type's input function.
    let values: Vec<String> = literals.iter().map(|text| format!("('{}'::{sql})", text.replace('\'', "''"))).collect();
    let query = format!(
        "select '{sql}'::regtype::oid, format('%s', v), to_jsonb(v)::text from (values {}) t(v)",
        values.join(", ")
    );
    let rows = client.query(&query, &[]).await.unwrap_or_else(|e| panic!("{query}: {e:?}"));
    for row in rows {
        let (oid, text, expected): (u32, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let mut ours = Vec::new();
        write_json(&json_kind(types, oid), text.as_bytes(), &mut ours);
        let ours = String::from_utf8(ours).unwrap();
        // At the start of a string, in both, since any text may begin so.
        let shown = |json: &str| normal(json).replace("\"\\\\x", "\"");
        assert_eq!(shown(&ours), shown(expected), "{sql} {text:?}: {ours}");
    }
}

#[tokio::test]
async fn generated_values_of_every_type_at_any_depth_are_what_to_jsonb_has() {
    let client = TestDatabase::new().await.client;
    client.batch_execute(SETUP).await.unwrap();
    client.batch_execute("create table \"v \"\"1\" ()").await.unwrap();
    let scalars = scalars(&client).await;
    let mut generator = Generator { rng: TestRng::deterministic_rng(RngAlgorithm::ChaCha), scalars };
    let made = made_of(&client, &mut generator).await;
    let types = types_of(&client).await;
    let all: Vec<Named> = generator.scalars.iter().chain(&made).cloned().collect();
    for named in all.iter().cloned().chain(all.iter().map(array_of)) {
        let literals: Vec<String> = match &named.shape {
            Shape::Scalar(literals) => literals.clone(),
            _ => (0..24).filter_map(|_| generator.value(&named)).collect(),
        };
        compare_with_server(&client, &types, &named.sql, &literals).await;
    }
}

#[tokio::test]
async fn every_built_in_type_has_values_in_these_tests() {
    let client = TestDatabase::new().await.client;
    let of_name = |sql: &str, name: &str| sql.split('(').next().is_some_and(|sql| sql.trim_matches('"') == name);
    let tested = |name: &str| EDGES.iter().chain(MORE).any(|(sql, _)| of_name(sql, name));
    let sql = "select typname::text from pg_type where typnamespace = 'pg_catalog'::regnamespace
               and typtype in ('b', 'r', 'm') and typcategory <> 'A' and typname !~ '^pg_(node_tree|ndistinct|dep|mcv|brin|ddl)'
               and typname <> 'gtsvector' and oid < 5070";
    for row in client.query(sql, &[]).await.unwrap() {
        assert!(tested(row.get(0)), "{}", row.get::<_, &str>(0));
    }
}
