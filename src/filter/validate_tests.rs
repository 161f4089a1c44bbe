use std::collections::HashMap;

use tokio_postgres::Client;

use super::*;
use crate::change::{Change, Relation, RelationColumn, ReplicaIdentity, Tuple, Value};
use crate::filter::parse;
use crate::pgtype::TypeInfo;
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
    client: Client,
    validator: Validator,
    types: Types,
    relation: Relation,
    names: HashMap<String, (String, bool)>,
}

impl Fixture {
    async fn new() -> Fixture {
        let database = TestDatabase::new().await;
        database.run(SETUP).await;
        for row in ROWS {
            database.run(&format!("insert into t values ({row})")).await;
        }
        let sql =
            "select a.attname::text, a.atttypid, format_type(a.atttypid, -1), coalesce(c.collisdeterministic, true)
                   from pg_attribute a left join pg_collation c on c.oid = a.attcollation
                   where a.attrelid = 't'::regclass and a.attnum > 0 order by a.attnum";
        let (mut columns, mut names) = (Vec::new(), HashMap::new());
        for row in database.client.query(sql, &[]).await.unwrap() {
            names.insert(row.get(0), (row.get(2), row.get(3)));
            columns.push(RelationColumn { name: row.get(0), type_oid: row.get(1), type_modifier: -1, key: false });
        }
        let oid = |name| columns[columns.iter().position(|c| c.name == name).unwrap()].type_oid;
        let info = |name: &str, oid, kind| TypeInfo { oid, schema: "public".into(), name: name.into(), kind };
        let attributes = vec![("a".into(), 23), ("b".into(), 23)];
        let types = [
            info("mood", oid("m"), TypeKind::Enum),
            info("price", oid("p"), TypeKind::Domain { base: 1700 }),
            info("pair", oid("pr"), TypeKind::Composite { attributes }),
        ];
        let identity = ReplicaIdentity::Nothing;
        let relation = Relation { oid: 1, schema: "public".into(), table: "t".into(), identity, columns };
        let validator = Validator::new(database.pool("relay"));
        Fixture { client: database.client, validator, types: types.into_iter().collect(), relation, names }
    }

    fn columns(&self) -> Vec<ColumnSpec<'_>> {
        let spec = |c: &'_ RelationColumn| {
            let (name, (type_name, collation_deterministic)) = self.names.get_key_value(&c.name).unwrap();
            let collation_deterministic = *collation_deterministic;
            ColumnSpec { name, type_oid: c.type_oid, type_name, collation_deterministic, readable: true }
        };
        self.relation.columns.iter().map(spec).collect()
    }

    async fn predicate(&self, filter: &str) -> Result<Predicate, FilterError> {
        self.validator.validate(&parse(filter).unwrap(), &self.columns(), &self.types).await
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
        let sql = format!("select {} from t", list.collect::<Vec<_>>().join(", "));
        let rows = self.client.query(&sql, &[]).await.unwrap();
        let change = |row: &tokio_postgres::Row| {
            let texts: Vec<Option<&str>> = (0..row.len()).map(|i| row.get(i)).collect();
            let values = texts.iter().map(|text| text.map_or(Value::Null, |text| Value::Text(text.as_bytes())));
            Change::Insert { new: Tuple::from_values(values) }
        };
        rows.iter().map(change).collect()
    }

    /// Which rows Postgres selects.
    async fn selected(&self, filter: &str) -> Vec<bool> {
        let mut parts = Vec::new();
        for c in parse(filter).unwrap() {
            let (column, of) = (&c.column, &self.names[&c.column].0);
            let literal = format!("'{}'::{of}", c.value.replace('\'', "''"));
            let text = match c.operator {
                Operator::Eq => format!("{column} = {literal}"),
                Operator::Neq => format!("{column} != {literal}"),
                Operator::Lt => format!("{column} < {literal}"),
                Operator::Lte => format!("{column} <= {literal}"),
                Operator::Gt => format!("{column} > {literal}"),
                Operator::Gte => format!("{column} >= {literal}"),
                Operator::In => format!("{column} = any ({literal}[])"),
                Operator::Is => format!("{column} is {}", c.value),
                Operator::IsDistinct => format!("{column} is distinct from {literal}"),
                other => panic!("{other:?}"),
            };
            parts.push(if c.negated { format!("not ({text})") } else { format!("({text})") });
        }
        let sql = format!("select coalesce({}, false) from t", parts.join(" and "));
        let rows = self.client.query(&sql, &[]).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn filters_select_the_rows_that_postgres_selects() {
    let fixture = Fixture::new().await;
    let rows = fixture.rows().await;
    let negate = |filter: &str| filter.replacen('=', "=not.", 1);
    for filter in FILTERS.iter().flat_map(|f| [(*f).to_owned(), negate(f)]) {
        let predicate = fixture.predicate(&filter).await.unwrap_or_else(|e| panic!("{filter}: {}", e.client_detail()));
        let bound = predicate.bind(&fixture.relation).unwrap();
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

#[tokio::test]
async fn what_cannot_be_judged_exactly_is_refused_and_names_what_can() {
    let fixture = Fixture::new().await;
    for (filter, of, works) in [
        ("t=like.a%", "text", "eq, neq, in, is and isdistinct"),
        ("t=not.imatch.^a", "text", "eq, neq, in, is and isdistinct"),
        ("c=ilike.a%", "bpchar", "eq, neq, in, is and isdistinct"),
        ("t=gt.a", "text", "eq, neq, in, is and isdistinct"),
        ("m=lt.happy", "mood", "eq, neq, in, is and isdistinct"),
        ("nc=eq.a", "text", "is.null"),
        ("js=eq.{}", "json", "is.null"),
        ("iv=eq.30 days", "interval", "is.null"),
        ("arr=in.(1)", "integer[]", "is.null"),
        ("pr=is.null", "pair", "is.null"),
        ("tz=gt.now", "timestamp with time zone", "with fixed values"),
        ("da=in.(2026-01-01, Today)", "date", "with fixed values"),
    ] {
        let text = fixture.refusal(filter).await;
        let start = "ERROR 0A000 (feature_not_supported) filter operator ";
        assert!(
            text.starts_with(start) && text.contains(&format!(" of type {of}: ")) && text.contains(works),
            "{text}"
        );
    }
}

#[tokio::test]
async fn unreadable_columns_are_as_good_as_absent() {
    let fixture = Fixture::new().await;
    let mut columns = fixture.columns();
    columns[0].readable = false;
    let conditions = parse("i=eq.1").unwrap();
    let error = fixture.validator.validate(&conditions, &columns, &fixture.types).await.unwrap_err();
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
