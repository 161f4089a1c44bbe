use std::collections::{BTreeSet, HashMap};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::catalog::{Catalog, Column, Wanted};
use crate::change::{Change, Lsn, Position, Relation, RelationColumn, ReplicaIdentity, RowChange, Tuple, Value};
use crate::filter::{FilterAnswer, FilterAskConfig, FilterAsker, FilterFailure, FilterQuestion, parse};
use crate::metrics::Metrics;
use crate::testing::TestDatabase;

const SETUP: &str = "create type mood as enum ('sad', 'happy');
    create domain price as numeric check (value < 1000000);
    create type pair as (a int, b int);
    create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create table t (
        i int, s smallint, b bigint, n numeric(10,2), f real, d double precision, t text, v varchar(5), c char(5),
        nc text collate nocase, flag bool, u uuid, ts timestamp, tz timestamptz, da date, ti time, by bytea, j jsonb, js json,
        m mood, p price, pr pair, iv interval, ip inet, arr int[]);";

/// Rows as SQL values, in the order of the columns.
const ROWS: &[&str] = &[
    "1, 1, 1, 1.50, 0.1, 0.1, 'a', 'ab', 'ab', 'A', true, '0b9f6c1e-0000-4000-8000-000000000001', '2026-11-20 10:15:30.5',
     '2026-11-20 10:15:30.5+00', '2026-11-20', '10:15:30.5', '\\x01ff', '{\"a\": 1.0}', '{}', 'sad', 1.50, '(1,)', '1 day', '10.0.0.1', '{1}'",
    "null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
     null, null, null, null",
    "-5, 9, 10, 'NaN', '-0', 'Infinity', 'NULL', '', '', 'b', false, 'ffffffff-ffff-ffff-ffff-ffffffffffff', 'infinity',
     '-infinity', '0044-03-15 BC', '24:00', '', '\"x\"', '1', 'happy', 99, '(,)', '1 mon', '10.0.0.1/24', '{}'",
    "10, 10, 9223372036854775807, 2.00, 'NaN', 'NaN', 'a,\"b', 'ab ', ' ab', 'c', true, '90000000-0000-0000-0000-000000000000',
     '1999-12-31', '2026-11-20 12:15:30.5+02', 'infinity', '00:00', '\\x01', '[1, 2]', '[]', 'sad', -1, '(1,2)', '30 days', '::1', null",
];

/// Filters that must be judged, on those rows, as Postgres judges them; `in` elements are Postgres array syntax.
#[rustfmt::skip]
const FILTERS: &[&str] = &[
    "i=eq.1", "i=eq. 1 ", "i=neq.1", "i=lt.1", "i=lte.1", "i=gt.-5", "i=gte.10", "i=in.(1,10)", "i=in.(1,null)", "i=in.()", "i=in.(null)",
    "i=isdistinct.1", "i=is.null", "s=gt.1", "b=eq.9223372036854775807", "b=lt.10", "b=gte.9",
    "n=eq.1.5", "n=eq.1.500", "n=eq.NaN", "n=gt.1.49", "n=lt.NaN", "n=gte.2", "n=in.(1.5,2)", "n=eq.1.505", "n=lt.1e2",
    "f=eq.0.1", "f=eq.0", "f=gt.0", "f=eq.NaN", "d=gt.0.1", "d=lte.Infinity", "d=eq.-0", "d=isdistinct.NaN",
    "t=eq.a", "t=eq.NULL", "t=eq.null", r#"t=eq."a,\"b""#, r#"t=in.(a,"a,\"b")"#, r#"t=in.("NULL",x)"#, "t=in.(NULL,x)", "t=neq.a", "t=isdistinct.a",
    "v=eq.ab", "v=eq.ab ", r#"v=eq."ab ""#, "v=eq.abcdefgh", "c=eq.ab", r#"c=eq."ab       ""#, "c=eq.abcdefgh", "c=eq.", "c=in.(ab,x)",
    "flag=eq.t", "flag=eq.yes", "flag=lt.true", "flag=is.true", "flag=is.false", "flag=is.unknown", "flag=is.null", "flag=in.(on)",
    "u=eq.0B9F6C1E-0000-4000-8000-000000000001", "u=gt.90000000-0000-0000-0000-000000000000", "u=lte.{ffffffff-ffff-ffff-ffff-ffffffffffff}",
    "ts=eq.2026-11-20T10:15:30.50", "ts=gt.2000-01-01", "ts=lte.infinity", "tz=eq.2026-11-20 12:15:30.5+02", "tz=gt.-infinity",
    "tz=gte.Fri Nov 20 11:15:30.5 2026 CET", "da=lt.2026-11-20", "da=eq.epoch", "da=gt.0044-03-15 BC", "ti=eq.24:00", "ti=lt.10:15:30.6",
    "by=eq.\\x01ff", "by=gt.\\x01", "by=eq.", "j=eq.{\"a\":1.000}", r#"j=eq."\"x\"""#, "j=in.(\"{\\\"a\\\": 1}\",\"[1,2]\")",
    "m=eq.sad", "m=in.(sad,happy)", "m=isdistinct.sad", "p=eq.1.5", "p=gt.1", "p=in.(1.5,99.00)", "ip=eq.10.0.0.1/32", "ip=neq.10.0.0.1",
    "js=is.null", "iv=is.null", "arr=is.null", "nc=is.null", "i=gte.1,i=lte.5", "i=gt.0,t=eq.a", "i=eq.1,t=is.null",
];

struct Fixture {
    database: TestDatabase,
    validator: Validator,
    asker: FilterAsker,
    catalog: Catalog,
    relation: Arc<Relation>,
    /// `format_type(…)` by column.
    names: HashMap<String, String>,
}

impl Fixture {
    async fn new() -> Fixture {
        let fixture = Fixture::with(SETUP).await;
        for row in ROWS {
            fixture.database.run(&format!("insert into t values ({row})")).await;
        }
        fixture
    }

    /// A database whose table `t` the script makes.
    async fn with(sql: &str) -> Fixture {
        let mut database = TestDatabase::new().await;
        database.run(sql).await;
        database.run("alter publication supabase_realtime add table t").await;
        let wanted =
            Wanted { publications: vec!["supabase_realtime".into()], others: Vec::new(), roles: BTreeSet::new() };
        let catalog = crate::catalog::read(&mut database.client, &wanted).await.unwrap();
        let table = catalog.find("public", "t").unwrap();
        let column =
            |c: &Column| RelationColumn { name: c.name.clone(), type_oid: c.type_oid, type_modifier: -1, key: false };
        let columns = table.columns.iter().map(column).collect();
        let identity = ReplicaIdentity::Nothing;
        let relation = Relation { oid: 1, schema: "public".into(), table: "t".into(), identity, columns };
        let sql = "select attname::text, format_type(atttypid, -1) from pg_attribute
                   where attrelid = 't'::regclass and attnum > 0";
        let rows = database.client.query(sql, &[]).await.unwrap();
        let names = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        // A login with few rights, as the relay's should be.
        let pool = database.pool("plain_relay");
        let asker = FilterAsker::new(pool.clone(), patient(), Arc::new(Metrics::new()));
        Fixture {
            validator: Validator::new(pool, patient().statement_timeout),
            asker,
            catalog,
            relation: Arc::new(relation),
            names,
            database,
        }
    }

    fn columns(&self) -> Vec<ColumnSpec<'_>> {
        let spec = |c: &'_ Column| ColumnSpec {
            // Lives as long as the fixture.
            name: self.names.get_key_value(&c.name).unwrap().0,
            type_oid: c.type_oid,
            type_name: &self.names[&c.name],
            collation_deterministic: c.collation_deterministic,
            collation: None,
            collation_bytewise: c.collation.as_ref().is_some_and(|c| c.bytewise),
            utf8: self.catalog.is_utf8(),
            readable: true,
        };
        let table = self.catalog.find("public", "t").unwrap();
        let all = table.columns.iter();
        all.map(|c| ColumnSpec { collation: c.collation.as_ref().map(|c| &*c.name), ..spec(c) }).collect()
    }

    async fn predicate(&self, filter: &str) -> Result<Predicate, FilterError> {
        self.validator.validate("alice", &parse(filter).unwrap(), &self.columns(), self.catalog.types()).await
    }

    async fn refusal(&self, filter: &str) -> String {
        self.predicate(filter).await.expect_err(filter).client_detail()
    }

    /// What the stream would send of each row.
    async fn rows(&self) -> Vec<Change> {
        // With IS NULL a composite of NULLs would count as one.
        let list = self.relation.columns.iter().map(|c| {
            let name = &c.name;
            format!("case when {name} is not distinct from null then null else format('%s', {name}) end")
        });
        let sql = format!("select {} from t order by ctid", list.collect::<Vec<_>>().join(", "));
        let rows = self.database.client.query(&sql, &[]).await.unwrap();
        let change = |row: &tokio_postgres::Row| {
            let texts: Vec<Option<&str>> = (0..row.len()).map(|i| row.get(i)).collect();
            let values = texts.iter().map(|text| text.map_or(Value::Null, |text| Value::Text(text.as_bytes())));
            Change::Insert { new: Tuple::from_values(values) }
        };
        rows.iter().map(change).collect()
    }

    /// Which of the rows we select, those open asked of Postgres.
    async fn ours(&self, predicate: &Predicate, rows: &[Change]) -> Vec<bool> {
        let bound = predicate.bind(&self.relation).unwrap();
        let mut matches = Vec::new();
        for change in rows {
            let mut matched = bound.matches(change);
            let open = bound.open(change);
            if matched && !open.is_empty() {
                let position = Position { lsn: Lsn(1), ordinal: 0 };
                let row = RowChange { relation: self.relation.clone(), position, change: change.clone() };
                let question = FilterQuestion { row: Arc::new(row), terms: open.to_vec() };
                for ((answer, _), (term, _)) in self.asker.judge(&question).await.into_iter().zip(&open) {
                    let FilterAnswer::Says(answer) = answer else { panic!("{term:?}: {answer:?}") };
                    matched &= term.accepts(answer);
                }
            }
            matches.push(matched);
        }
        matches
    }

    /// About a row of one column.
    fn question(&self, predicate: &Predicate, text: &str) -> FilterQuestion {
        let change = Change::Insert { new: Tuple::from_values([Value::Text(text.as_bytes())].into_iter()) };
        let terms = predicate.bind(&self.relation).unwrap().open(&change).to_vec();
        let position = Position { lsn: Lsn(1), ordinal: 0 };
        FilterQuestion { row: Arc::new(RowChange { relation: self.relation.clone(), position, change }), terms }
    }

    /// Which rows Postgres selects; its error if it refuses.
    async fn theirs(&self, filter: &str) -> Result<Vec<bool>, String> {
        let mut parts = Vec::new();
        for c in parse(filter).unwrap() {
            let (column, of) = (&c.column, &self.names[&c.column]);
            let literal = format!("'{}'::{of}", c.value.replace('\'', "''"));
            let sign = crate::filter::asked::sign(c.operator);
            let text = match c.operator {
                Operator::In => format!("{column} = any ({literal}[])"),
                Operator::Is if c.negated => format!("not ({column} is not {})", c.value),
                Operator::Is => format!("{column} is {}", c.value),
                Operator::IsDistinct => format!("{column} is distinct from {literal}"),
                _ => format!("{column} {sign} {literal}"),
            };
            parts.push(if c.negated { format!("not ({text})") } else { format!("({text})") });
        }
        let sql = format!("select coalesce({}, false) from t order by ctid", parts.join(" and "));
        let rows = self.database.client.query(&sql, &[]).await;
        let rows = rows.map_err(|e| format!("{:?}", e.as_db_error().map(|db| db.message().to_owned())))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    async fn selected(&self, filter: &str) -> Vec<bool> {
        self.theirs(filter).await.unwrap_or_else(|e| panic!("{filter}: {e}"))
    }
}

fn patient() -> FilterAskConfig {
    FilterAskConfig { statement_timeout: Duration::from_secs(20), ..FilterAskConfig::default() }
}

#[tokio::test]
async fn filters_select_the_rows_that_postgres_selects() {
    let fixture = Fixture::new().await;
    let rows = fixture.rows().await;
    let negate = |filter: &str| filter.replacen('=', "=not.", 1);
    for filter in FILTERS.iter().flat_map(|f| [(*f).to_owned(), negate(f)]) {
        let predicate = fixture.predicate(&filter).await.unwrap_or_else(|e| panic!("{filter}: {}", e.client_detail()));
        let bound = predicate.bind(&fixture.relation).unwrap();
        assert!(bound.open(&rows[0]).is_empty(), "{filter} is judged in memory");
        let ours: Vec<bool> = rows.iter().map(|row| bound.matches(row)).collect();
        assert_eq!(ours, fixture.selected(&filter).await, "{filter}");
        if let Some((index, key, equality)) = bound.eq_key() {
            for row in rows.iter().filter(|row| bound.matches(row)) {
                let Change::Insert { new } = row else { unreachable!() };
                let Value::Text(text) = new.get(index) else { panic!("{filter} matches NULL") };
                assert_eq!(*canonical(equality, text).unwrap(), *key, "{filter}");
            }
        }
    }
}

#[tokio::test]
async fn refusals_carry_postgres_own_words_or_those_of_the_protocol() {
    let fixture = Fixture::new().await;
    #[rustfmt::skip]
    let table = [
        ("i=eq.hey", r#"ERROR 22P02 (invalid_text_representation) invalid input syntax for type integer: "hey""#),
        ("s=eq.40000", r#"ERROR 22003 (numeric_value_out_of_range) value "40000" is out of range for type smallint"#),
        ("m=eq.angry", r#"ERROR 22P02 (invalid_text_representation) invalid input value for enum mood: "angry""#),
        ("u=in.(x)", r#"ERROR 22P02 (invalid_text_representation) invalid input syntax for type uuid: "x""#),
        ("i=in.(1,,2)", r#"ERROR 22P02 (invalid_text_representation) malformed array literal: "{1,,2}""#),
        ("p=eq.1000000", r#"ERROR 23514 (check_violation) value for domain price violates check constraint "price_check""#),
        ("ts=eq.2026-13-01", r#"ERROR 22008 (datetime_field_overflow) date/time field value out of range: "2026-13-01""#),
        ("t=eq.a\u{0}", r#"ERROR 22021 (character_not_in_repertoire) invalid byte sequence for encoding "UTF8": 0x00"#),
        ("nope=eq.1", "ERROR P0001 (raise_exception) invalid column for filter nope"),
        ("i=is.yes", "ERROR P0001 (raise_exception) invalid value for is filter: must be null, true, false, or unknown"),
        ("i=is.true", "ERROR P0001 (raise_exception) is true filter requires a boolean column, got integer"),
        ("i=like.1%", "ERROR P0001 (raise_exception) operator like requires a text-compatible column type, got integer"),
        ("j=imatch.x", "ERROR P0001 (raise_exception) operator imatch requires a text-compatible column type, got jsonb"),
    ];
    for (filter, expected) in table {
        assert_eq!(fixture.refusal(filter).await, expected, "{filter}");
    }
    let list = |n: usize| format!("i=in.({})", vec!["1"; n].join(","));
    assert!(fixture.predicate(&list(100)).await.is_ok());
    let text = "ERROR P0001 (raise_exception) too many values for `in` filter. Maximum 100";
    assert_eq!(fixture.refusal(&list(101)).await, text);
}

/// Of each column its type and its values; NULL is added to them.
#[rustfmt::skip]
const EVERYTHING: &[(&str, &str, &[&str])] = &[
    ("t", "text", &["", "a", "B", "b", "ä", "Äb", "z", "a%b", "a\\b", "😀x", "a_b", "  "]),
    ("tc", "text collate \"C\"", &["", "a", "B", "ä", "Z", "a b"]),
    ("de", "text collate german", &["", "a", "B", "ä", "Z", "z", "ss", "ß"]),
    ("nc", "text collate nocase", &["a", "A", "b", "ä"]),
    ("v", "varchar(5) collate german", &["", "a", "B", "ab ", "ä"]),
    ("c", "char(4)", &["", "a", "B", "ab ", "  x"]),
    ("cc", "char(4) collate \"C\"", &["", "a", "B", "ab ", "a!"]),
    ("na", "name", &["", "a", "B", "ab"]),
    ("ch", "\"char\"", &["", "a", "B"]),
    ("ci", "ext.citext", &["", "a", "A", "B", "äb", "ÄB"]),
    ("cg", "ext.citext collate german", &["a", "A", "Ä", "z"]),
    ("e", "mood", &["sad", "happy", "Ok"]),
    ("i", "int", &["0", "1", "-5", "10"]),
    ("n", "numeric", &["0", "1.0", "1.00", "NaN", "-7.5"]),
    ("d", "float8", &["0", "-0", "1e300", "NaN"]),
    ("flag", "bool", &["t", "f"]),
    ("u", "uuid", &["0b9f6c1e-0000-4000-8000-000000000001", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
    ("by", "bytea", &["", "\\x01ff", "\\x6162", "\\x5c"]),
    ("j", "jsonb", &["{\"a\": 1.0}", "{\"a\": 1}", "[1]", "\"x\"", "null", "{}"]),
    ("js", "json", &["{}", "[1]"]),
    ("iv", "interval", &["1 day", "24:00:00", "1 mon", "30 days", "-1 day"]),
    ("tz", "timestamptz", &["2026-11-20 10:15:30+00", "-infinity", "9999-01-01 00:00:00+00"]),
    ("da", "date", &["2000-01-01", "9999-01-01", "0044-03-15 BC"]),
    ("ti", "time", &["00:00:00", "24:00:00"]),
    ("tt", "timetz", &["10:00:00+00", "12:00:00+02", "10:00:00-05"]),
    ("ip", "inet", &["10.0.0.1", "10.0.0.1/24", "::1"]),
    ("cd", "cidr", &["10.0.0.0/8", "10.1.0.0/16"]),
    ("ma", "macaddr", &["08:00:2b:01:02:03", "ff:00:00:00:00:00"]),
    ("bi", "bit varying(8)", &["", "1", "10", "0"]),
    ("ls", "pg_lsn", &["0/0", "16/B374D848"]),
    ("mo", "money", &["$1.00", "-$2.50", "$10.00"]),
    ("ai", "int[]", &["{}", "{1,2}", "{2}", "{1,NULL}"]),
    ("an", "numeric[]", &["{1.0}", "{1.00}", "{}"]),
    ("at", "text[] collate german", &["{}", "{a,B}", "{\"a,b\"}", "{ä}"]),
    ("r", "int4range", &["empty", "[1,3)", "[1,)", "(,5)"]),
    ("rn", "numrange", &["[1.0,2)", "[1.00,2)", "empty"]),
    ("mr", "int4multirange", &["{}", "{[1,3),[5,7)}"]),
    ("pr", "pair", &["(1,2)", "(1,)", "(,)", "(2,1)"]),
    ("dp", "price", &["1.50", "1.5", "99"]),
    ("dt", "word", &["a", "B", "ä"]),
    ("dc", "ciword", &["a", "A", "b"]),
    ("x", "xml", &["<a/>", "b"]),
    ("p", "point", &["(1,2)", "(0,0)"]),
    ("bo", "box", &["(2,2),(0,0)", "(1,1),(0,0)"]),
    ("cr", "circle", &["<(0,0),1>", "<(1,1),1>"]),
    ("ts", "tsvector", &["'a'", "'a':1 'b':2"]),
    ("tq", "tsquery", &["'a'", "'a' & 'b'"]),
    ("xi", "xid", &["1", "7"]),
    ("ti2", "tid", &["(0,1)", "(0,2)"]),
];

const EVERYTHING_SETUP: &str = "create schema ext; grant usage on schema ext to plain_relay; create extension citext schema ext; set search_path = public, ext;
    create type mood as enum ('sad', 'Ok', 'happy');
    create type pair as (a int, b int);
    create domain price as numeric check (value < 1000000);
    create collation german (provider = icu, locale = 'de-DE');
    create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create domain word as text collate german check (value <> 'never');
    create domain ciword as ext.citext;";

/// Literals that are no value of any row.
const PATTERNS: &[&str] = &[
    "%",
    "_",
    "a%",
    "%B",
    "_b%",
    "a\\%b",
    "a\\\\b",
    "%\\_%",
    "ä%",
    "^a",
    "[[:alpha:]]",
    "b$",
    "a|z",
    "(",
    "(?i)A",
    ".*",
    "\\d",
    "a\\",
    "nonsense",
    "\\y",
    "x{2,1}",
];

/// Chooses the cases; the seed is printed, so that `ROWCAST_SEED=…` repeats them.
fn random() -> StdRng {
    let given = std::env::var_os("ROWCAST_SEED").and_then(|seed| seed.to_str()?.parse().ok());
    let seed = given.unwrap_or_else(rand::random);
    println!("ROWCAST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// As an element of a filter's list: `a,b` is `"a,b"`.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[tokio::test]
async fn every_operator_on_every_type_says_what_postgres_says() {
    let columns: Vec<String> = EVERYTHING.iter().map(|(name, of, _)| format!("{name} {of}")).collect();
    let fixture = Fixture::with(&format!("{EVERYTHING_SETUP} create table t ({})", columns.join(", "))).await;
    let longest = EVERYTHING.iter().map(|(_, _, values)| values.len()).max().unwrap();
    for i in 0..=longest {
        let value = |values: &[&str]| values.get(i).map_or("null".into(), |v| format!("'{}'", v.replace('\'', "''")));
        let values: Vec<String> = EVERYTHING.iter().map(|(_, _, values)| value(values)).collect();
        fixture.database.run(&format!("insert into t values ({})", values.join(", "))).await;
    }
    let rows = fixture.rows().await;
    let mut random = random();
    let (mut accepted, mut asked) = (0, 0);
    for (name, of, values) in EVERYTHING {
        for operator in Operator::ALL {
            // Two literals at random, one from the values and one from anywhere.
            let own = values[random.random_range(0..values.len())];
            let other = PATTERNS[random.random_range(0..PATTERNS.len())];
            for (literal, negated) in [(own, random.random()), (other, random.random())] {
                let value = match operator {
                    Operator::In => match random.random_range(0..4) {
                        0 => "()".into(),
                        1 => format!("({},null)", quoted(literal)),
                        _ => format!("({},{})", quoted(literal), quoted(values[0])),
                    },
                    Operator::Is => ["null", "true", "false", "unknown"][random.random_range(0..4)].into(),
                    _ => quoted(literal),
                };
                let not = if negated { "not." } else { "" };
                let filter = format!("{name}={not}{}.{value}", operator.as_str());
                match (fixture.predicate(&filter).await, fixture.theirs(&filter).await) {
                    (Ok(predicate), Ok(theirs)) => {
                        accepted += 1;
                        let bound = predicate.bind(&fixture.relation).unwrap();
                        asked += usize::from(rows.iter().any(|row| !bound.open(row).is_empty()));
                        assert_eq!(fixture.ours(&predicate, &rows).await, theirs, "{filter} on {of}");
                    }
                    (Err(_), Err(_)) => {}
                    // It fails only once a text is long enough.
                    (Err(error), Ok(_)) if error.client_detail().contains("22025") => {}
                    (Err(error), Ok(_)) => panic!("{filter} on {of}: {}", error.client_detail()),
                    (Ok(_), Err(error)) => panic!("{filter} on {of} is accepted, but Postgres says {error}"),
                }
            }
        }
    }
    assert!(accepted > 400 && asked > 200, "{accepted} accepted, {asked} asked");
}

#[tokio::test]
async fn like_in_memory_is_like_in_postgres() {
    let fixture = Fixture::with("create table t (t text)").await;
    let mut random = random();
    let mut any = |letters: &[char]| -> String {
        (0..random.random_range(0..9)).map(|_| letters[random.random_range(0..letters.len())]).collect()
    };
    let (mut patterns, mut texts) = (Vec::new(), Vec::new());
    for _ in 0..5000 {
        patterns.push(any(&['a', 'b', 'ä', '😀', '%', '%', '_', '\\']));
        texts.push(any(&['a', 'b', 'ä', '😀', '%', '_', '\\']));
    }
    patterns.retain(|pattern| !crate::filter::asked::ends_in_escape(oid::TEXT, pattern));
    texts.truncate(patterns.len());
    let sql = "select t like p from unnest($1::text[], $2::text[]) as pair (t, p)";
    let rows = fixture.database.client.query(sql, &[&texts, &patterns]).await.unwrap();
    for ((text, pattern), row) in texts.iter().zip(&patterns).zip(&rows) {
        let parsed = Pattern::parse(pattern).unwrap();
        assert_eq!(parsed.matches(text), row.get::<_, bool>(0), "{text:?} like {pattern:?}");
    }
}

#[tokio::test]
async fn what_postgres_refuses_is_refused_in_its_words() {
    let fixture = Fixture::new().await;
    #[rustfmt::skip]
    let table = [
        ("t=match.(", "ERROR P0001 (raise_exception) invalid regular expression for match filter: \
                       invalid regular expression: parentheses () not balanced"),
        ("t=not.imatch.[", "ERROR P0001 (raise_exception) invalid regular expression for imatch filter: \
                            invalid regular expression: brackets [] not balanced"),
        ("t=like.a\\", "ERROR 22025 (invalid_escape_sequence) LIKE pattern must not end with escape character"),
        ("t=ilike.a\\", "ERROR 22025 (invalid_escape_sequence) LIKE pattern must not end with escape character"),
        ("t=ilike.a\u{0}", "ERROR 22021 (character_not_in_repertoire) invalid byte sequence for encoding \"UTF8\": 0x00"),
        ("t=like.a\u{0}", "ERROR 22021 (character_not_in_repertoire) invalid byte sequence for encoding \"UTF8\": 0x00"),
        ("js=eq.{}", "ERROR 42883 (undefined_function) operator does not exist: json = json"),
        ("js=not.in.(\"{}\")", "ERROR 42883 (undefined_function) operator does not exist: json = json"),
        ("js=lt.{}", "ERROR 42883 (undefined_function) operator does not exist: json < json"),
        ("arr=in.(1)", "ERROR 42883 (undefined_function) operator does not exist: integer[] = integer"),
        ("iv=gt.never", "ERROR 22007 (invalid_datetime_format) invalid input syntax for type interval: \"never\""),
        ("pr=eq.(1)", "ERROR 22P02 (invalid_text_representation) malformed record literal: \"(1)\""),
        ("tz=gt.nowhere", "ERROR 22007 (invalid_datetime_format) invalid input syntax for type timestamp with time zone: \"nowhere\""),
        ("iv=like.1%", "ERROR P0001 (raise_exception) operator like requires a text-compatible column type, got interval"),
    ];
    for (filter, expected) in table {
        assert_eq!(fixture.refusal(filter).await, expected, "{filter}");
    }
}

#[tokio::test]
async fn literals_relative_to_the_clock_are_read_again_for_each_row() {
    let fixture = Fixture::new().await;
    let rows = fixture.rows().await;
    for filter in ["tz=lt.now", "tz=not.gte.now", "da=in.(2026-11-20, Today)", "ts=neq.tomorrow"] {
        let predicate = fixture.predicate(filter).await.unwrap();
        assert!(!predicate.bind(&fixture.relation).unwrap().open(&rows[0]).is_empty(), "{filter}");
        assert_eq!(fixture.ours(&predicate, &rows).await, fixture.selected(filter).await, "{filter}");
    }
}

#[tokio::test]
async fn without_the_role_only_what_memory_judges_is_accepted() {
    let mut fixture = Fixture::new().await;
    fixture.database.run("create role filters_outsider login").await;
    fixture.validator = Validator::new(fixture.database.pool("filters_outsider"), patient().statement_timeout);
    assert!(fixture.predicate("t=eq.a,t=like.a%,i=gt.1").await.is_ok());
    for filter in ["t=ilike.a%", "t=match.a", "iv=eq.1 day", "tz=gt.now", "pr=is.null"] {
        let text = fixture.refusal(filter).await;
        assert!(text.contains("rowcast_filter") && text.contains("`rowcast migrate up`"), "{text}");
    }
}

#[tokio::test]
async fn a_hostile_pattern_is_cut_off_and_its_neighbours_are_answered() {
    let mut fixture = Fixture::with("create table t (t text)").await;
    let hostile = r"^(a*)(a*)(a*)(a*)\1\2\3\4$";
    let predicate = fixture.predicate(&format!("t=ilike.A%,t=match.{},t=imatch.^A", quoted(hostile))).await.unwrap();
    let config = FilterAskConfig { statement_timeout: Duration::from_millis(200), ..patient() };
    fixture.asker = FilterAsker::new(fixture.database.pool("plain_relay"), config, Arc::new(Metrics::new()));
    let text = "a".repeat(401);
    let judged = fixture.asker.judge(&fixture.question(&predicate, &text)).await;
    let (answers, took): (Vec<_>, Vec<_>) = judged.into_iter().unzip();
    let yes = FilterAnswer::Says(Some(true));
    assert_eq!(answers, [yes, FilterAnswer::Failed(FilterFailure::Timeout), yes]);
    assert!(took[1] >= Duration::from_millis(100), "{took:?}");
    // On so much it proves nothing about the pattern.
    let text = "a".repeat(64 << 10) + "a";
    assert_eq!(fixture.asker.judge(&fixture.question(&predicate, &text)).await[1].0, FilterAnswer::TooLarge);
}

#[tokio::test]
async fn like_on_a_large_value_is_left_to_postgres() {
    let fixture = Fixture::with("create table t (t text, v varchar)").await;
    fixture
        .database
        .run("insert into t values ('a', 'a'), (repeat('xa', 9000), repeat('xa', 9000)), (null, null)")
        .await;
    let rows = fixture.rows().await;
    for filter in ["t=like.%x%a%", "t=not.like.%x_x%", "v=like.%y%", "v=not.like.%y%", "v=like.x%a"] {
        let predicate = fixture.predicate(filter).await.unwrap();
        let bound = predicate.bind(&fixture.relation).unwrap();
        let open: Vec<usize> = rows.iter().map(|row| bound.open(row).len()).collect();
        assert_eq!(open, [0, 1, 0], "{filter}");
        assert_eq!(fixture.ours(&predicate, &rows).await, fixture.selected(filter).await, "{filter}");
    }
}

#[tokio::test]
async fn literals_do_not_wait_for_trials_and_nobody_for_all_of_anothers() {
    let fixture = Fixture::with("create table t (t text, i int)").await;
    let (validator, columns) = (&fixture.validator, fixture.columns());
    let (of_memory, of_postgres) = (parse("i=gt.4711").unwrap(), parse("t=ilike.x").unwrap());
    let check = |owner, conditions| validator.validate(owner, conditions, &columns, fixture.catalog.types());
    let all = validator.trials.acquire_many(TRIALS_AT_ONCE as u32).await.unwrap();
    assert!(check("alice", &of_memory).await.is_ok());
    drop(all);
    let line = validator.line("mallory");
    let busy = line.lock().await;
    let mut waiting = Box::pin(check("mallory", &of_postgres));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    assert!(check("alice", &of_postgres).await.is_ok());
    drop(busy);
    assert!(waiting.await.is_ok());
}

/// The type's operator ends the connection of a canary if it is run with the rights of our own login.
#[tokio::test]
async fn without_the_role_no_condition_is_run() {
    let mut fixture = Fixture::with(
        "create type probe as enum ('a', 'b', 'c');
         create function peek(probe, probe) returns bool language sql as
             $$ select case when current_user <> 'rowcast_filter' then
                  (select bool_and(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'canary') end $$;
         create operator < (leftarg = probe, rightarg = probe, function = peek);
         create table t (p probe)",
    )
    .await;
    // Roles are everybody's: one of its own, since others run beside it.
    fixture.database.run("create role filters_degraded login; grant rowcast_filter to filters_degraded").await;
    let pool = fixture.database.pool("filters_degraded");
    fixture.asker = FilterAsker::new(pool.clone(), patient(), Arc::new(Metrics::new()));
    let predicate = fixture.predicate("p=lt.a,p=lt.b,p=lt.c").await.unwrap();
    assert_eq!(fixture.asker.judge(&fixture.question(&predicate, "a")).await[2].0, FilterAnswer::Says(None));
    let canary = pool.get().await.unwrap();
    canary.batch_execute("set application_name = 'canary'").await.unwrap();
    fixture.database.run("revoke rowcast_filter from filters_degraded").await;
    let answers = fixture.asker.judge(&fixture.question(&predicate, "a")).await;
    assert_eq!(answers, [(FilterAnswer::Undecided, Duration::ZERO); 3]);
    canary.batch_execute("select 1").await.expect("nothing was run with our own rights");
}

#[tokio::test]
async fn what_judges_a_filter_has_no_rights() {
    let fixture = Fixture::with(
        "create table secrets (s text); insert into secrets values ('x');
         create type probe as enum ('a');
         create function peek(probe, probe) returns bool language sql as 'select exists (select from public.secrets)';
         create operator < (leftarg = probe, rightarg = probe, function = peek);
         create table t (p probe)",
    )
    .await;
    let text = fixture.refusal("p=lt.a").await;
    // It is run once for the trial, as whoever will run it; NULL doesn't keep it from being run.
    assert_eq!(text, "ERROR 42501 (insufficient_privilege) permission denied for table secrets");
}

#[tokio::test]
async fn names_that_depend_on_the_session_are_not_compared() {
    let fixture = Fixture::with("create table t (c regclass)").await;
    assert!(fixture.predicate("c=is.null").await.is_ok());
    let text = fixture.refusal("c=eq.pg_class").await;
    assert!(text.contains("ERROR 0A000 (feature_not_supported)") && text.contains("search_path"), "{text}");
}

#[tokio::test]
async fn unreadable_columns_are_as_good_as_absent() {
    let fixture = Fixture::new().await;
    let mut columns = fixture.columns();
    columns[0].readable = false;
    let conditions = parse("i=eq.1").unwrap();
    let error = fixture.validator.validate("alice", &conditions, &columns, fixture.catalog.types()).await.unwrap_err();
    assert_eq!(error.client_detail(), "ERROR P0001 (raise_exception) invalid column for filter i");
    assert_eq!(
        check_select(["t", "i"], &columns).unwrap_err().client_detail(),
        "ERROR P0001 (raise_exception) invalid column for select i"
    );
    assert!(check_select(["t"], &columns).is_ok());
}

#[tokio::test]
async fn an_unreachable_database_is_not_a_refusal_and_known_literals_need_none() {
    let fixture = Fixture::new().await;
    let before = fixture.predicate("i=eq.1,t=in.(a,b)").await.unwrap();
    fixture.validator.pool.close();
    assert_eq!(fixture.predicate("i=eq.1,t=in.(a,b)").await.unwrap(), before);
    let error = fixture.predicate("i=eq.2").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}
