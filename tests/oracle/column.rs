//! The types of generated columns, and values that have shown differences somewhere.

use super::dice::Dice;

/// A type as a column has it.
#[derive(Debug)]
pub(super) struct Kind {
    /// As declared, with length and collation.
    pub(super) sql: &'static str,
    /// What a filter's literal is cast to: without length or collation.
    pub(super) cast: &'static str,
    /// Input literals, of rows and of filters.
    values: &'static [&'static str],
    /// Of filters only: other spellings, and what the type's input refuses.
    literals: &'static [&'static str],
    /// More values, if the type has many.
    generate: Option<fn(&mut Dice) -> String>,
    /// Its floats compare as numbers, whatever their digits.
    pub(super) floating: bool,
    /// LIKE and the others are worth a try.
    pub(super) textual: bool,
    /// Some values are stored out of line, and not sent if an UPDATE doesn't touch them.
    pub(super) large: bool,
}

const fn kind(
    sql: &'static str,
    cast: &'static str,
    values: &'static [&'static str],
    literals: &'static [&'static str],
) -> Kind {
    Kind { sql, cast, values, literals, generate: None, floating: false, textual: false, large: false }
}

const fn text(sql: &'static str, cast: &'static str) -> Kind {
    Kind { generate: Some(words), textual: true, ..kind(sql, cast, TEXTS, TEXT_LITERALS) }
}

const TEXTS: &[&str] = &[
    "",
    "a",
    "A",
    "ab",
    "aB",
    "AB",
    "b",
    "B",
    "Z",
    "_",
    "é",
    "e\u{301}",
    "É",
    "ß",
    "ss",
    " a",
    "a ",
    "NULL",
    "a,b",
    "(x)",
    "\"q\"",
    "back\\slash",
    "it's",
    "100%",
    "日本",
    "😀",
    "a-b",
    "ab-",
    "1",
    "10",
    "9",
];
const TEXT_LITERALS: &[&str] =
    &["null", "NULL", "a%", "%b", "_", "^a", "[ab]+", "(", "a\\", "not.eq.a", "{a}", "\"", "a\"b"];
const INTS: &[&str] = &["0", "1", "-1", "7", "10", "9", "32767", "-32768"];
const INT_LITERALS: &[&str] = &[" 7 ", "+7", "007", "7.0", "x", "", "2147483648", "99999999999999999999", "null"];
const NUMBERS: &[&str] = &["0", "0.00", "1", "1.5", "1.50", "-1.5", "10", "9.99", "-0.01", "100"];
const FLOATS: &[&str] =
    &["0", "-0", "1", "0.1", "-1.5", "1e10", "1e15", "1e30", "1e-7", "NaN", "Infinity", "-Infinity", "123456.789"];
const INSTANTS: &[&str] = &[
    "2026-11-20 10:15:30.5",
    "2026-11-20 10:15:30",
    "1999-12-31 23:59:59.999999",
    "infinity",
    "-infinity",
    "0044-03-15 01:02:03 BC",
    "12026-01-01 00:00:00",
    "2026-03-29 02:30:00",
];

pub(super) static N: Kind = kind("int4", "int4", INTS, INT_LITERALS);
pub(super) static OWNER: Kind = kind(
    "uuid",
    "uuid",
    &[super::claims::ALICE, super::claims::ALICE, super::claims::BOB, "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    &["A11CE000-0000-4000-8000-00000000000A", "{a11ce000000040008000-00000000000a}", "x", ""],
);
pub(super) static FLAG: Kind = kind("bool", "bool", &["t", "f"], &["true", "off", "yes", "1", " f ", "maybe"]);
/// What an owner column of type text may be.
pub(super) static OWNER_TEXTS: [Kind; 5] = [
    Kind { large: true, ..owner_text("text") },
    owner_text("text"),
    owner_text("text collate \"C\""),
    owner_text("varchar(60) collate \"en-x-icu\""),
    owner_text("text collate \"und-x-icu\""),
];
/// The same where Postgres must be asked.
pub(super) static OTHER_OWNERS: [Kind; 3] = [
    Kind { cast: "bpchar", ..owner_text("char(40)") },
    Kind { cast: "citext", ..owner_text("citext") },
    owner_text("text collate oracle_nocase"),
];
pub(super) static ORGS: [Kind; 3] = [
    kind("int2", "int2", INTS, INT_LITERALS),
    kind("int4", "int4", INTS, INT_LITERALS),
    kind("int8", "int8", INTS, INT_LITERALS),
];
pub(super) static KEYS: [Kind; 5] = [
    Kind { generate: Some(|dice| dice.between(-50, 50).to_string()), ..kind("int4", "int4", INTS, INT_LITERALS) },
    Kind {
        generate: Some(|dice| dice.between(i64::MIN, i64::MAX).to_string()),
        ..kind("int8", "int8", INTS, INT_LITERALS)
    },
    Kind { generate: Some(uuids), ..kind("uuid", "uuid", &[], &["x"]) },
    text("text", "text"),
    Kind { generate: Some(|dice| dice.word("abAB", 4)), ..text("char(5)", "bpchar") },
];

const fn owner_text(sql: &'static str) -> Kind {
    const VALUES: &[&str] = &[
        super::claims::ALICE,
        super::claims::ALICE_UPPER,
        super::claims::BOB,
        "7",
        "Ann@Example.com",
        super::claims::ODD,
        "ann@example.com",
        "",
        "authenticated",
    ];
    Kind { textual: true, ..kind(sql, "text", VALUES, TEXT_LITERALS) }
}

/// Of the other columns.
#[rustfmt::skip]
pub(super) static KINDS: &[Kind] = &[
    text("text", "text"),
    Kind { large: true, ..text("text", "text") },
    text("text collate \"C\"", "text"),
    text("text collate \"en-x-icu\"", "text"),
    text("text collate oracle_nocase", "text"),
    text("varchar(8)", "varchar"),
    text("varchar(8) collate \"C\"", "varchar"),
    Kind { generate: Some(|dice| dice.word("abAB ", 5)), ..text("char(5)", "bpchar") },
    Kind { generate: Some(|dice| dice.word("abAB ", 5)), ..text("char(5) collate \"C\"", "bpchar") },
    text("citext", "citext"),
    text("name", "name"),
    Kind { generate: Some(|dice| dice.between(-300, 300).to_string()), ..kind("int2", "int2", INTS, INT_LITERALS) },
    Kind { generate: Some(|dice| dice.between(-9, 99).to_string()), ..kind("int4", "int4", &["2147483647"], INT_LITERALS) },
    Kind { generate: Some(|dice| dice.between(i64::MIN, i64::MAX).to_string()),
           ..kind("int8", "int8", &["9007199254740993", "-9223372036854775808", "10", "9"], INT_LITERALS) },
    Kind { generate: Some(decimals),
           ..kind("numeric", "numeric", &["NaN", "Infinity", "1e50", "1.500", "123456789012345678901234567890.123"], &["1.5", "1.500", "x", "15e-1"]) },
    Kind { generate: Some(decimals), ..kind("numeric(10,2)", "numeric", NUMBERS, &["1.5", "1.505", "NaN", "x"]) },
    Kind { floating: true, ..kind("float4", "float4", &["0", "-0", "1", "0.1", "1e10", "NaN", "Infinity", "16777216", "1e30"], &["1e60", "x"]) },
    Kind { floating: true, ..kind("float8", "float8", FLOATS, &["1.0", "x", "1e-400"]) },
    kind("bool", "bool", &["t", "f"], &["true", "no", "maybe"]),
    Kind { generate: Some(uuids), ..kind("uuid", "uuid", &["0b9f6c1e-0000-4000-8000-000000000001"], &["0B9F6C1E000040008000000000000001", "x"]) },
    kind("date", "date", &["2026-11-20", "infinity", "-infinity", "0044-03-15 BC", "12026-01-01"], &["20 Nov 2026", "2026-13-01", "epoch"]),
    kind("time", "time", &["00:00", "24:00:00", "10:15:30.5", "10:15:30.25"], &["10:15:30.50", "10:15 PM", "25:00"]),
    kind("timestamp", "timestamp", INSTANTS, &["2026-11-20T10:15:30.500", "Nov 20 2026", "x"]),
    kind("timestamptz", "timestamptz", &["2026-11-20 10:15:30.5+00", "2026-11-20 12:15:30.5+02", "2026-11-20 23:59:59-11:30", "infinity",
         "0044-03-15 01:02:03 BC", "1850-01-01 00:00:00+00:19:32"], &["2026-11-20 11:15:30.5+01", "2026-11-20T10:15:30.5Z", "2026-11-20 10:15:30.5", "x"]),
    kind("bytea", "bytea", &["", "\\x00", "\\x0102ff", "\\x01", "\\x0102"], &["abc", "\\x0", "\\\\"]),
    kind("jsonb", "jsonb", &["{\"a\": 1.50, \"b\": [1, {\"1.0\": \"1.0\"}]}", "{\"b\": [1.0, {\"1.0\": \"1.0\"}], \"a\": 1.5}", "1", "1.0", "[]", "{}",
         "null", "\"1.0\"", "[null, true, \"x\\\"y\"]", "1e3", "-0"], &["1.000", "{\"a\":1.5,\"b\":[1,{\"1.0\":\"1.0\"}]}", "{", "1000"]),
    kind("json", "json", &["{\"a\" :\n[1, 2.50]}", "null", "\"s\"", "{\"k\": 1, \"k\": 2}"], &["{}", "{"]),
    kind("mood", "mood", &["sad", "it's \"ok\"", "happy"], &["angry", "SAD"]),
    kind("price", "price", &["1.50", "1.5", "-3", "99"], &["1.500", "10000000", "x"]),
    kind("label", "label", &["a", "A", "b"], &["too long a label", ""]),
    kind("int4[]", "int4[]", &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={7,8}"], &["{1}", "x"]),
    kind("text[]", "text[]", &["{a,\"b,c\",\"d\\\"e\\\\\",\"\",\"NULL\",NULL,\"{}\"}", "{}"], &["{a}"]),
    kind("bool[]", "bool[]", &["{t,f,NULL}"], &["{t}"]),
    kind("numeric[]", "numeric[]", &["{1.50,NaN}", "{1.5}"], &["{1.5}"]),
    kind("timestamptz[]", "timestamptz[]", &["{\"2026-11-20 10:15:30.5+00\",infinity}"], &[]),
    kind("mood[]", "mood[]", &["{sad,\"it's \\\"ok\\\"\"}"], &[]),
    kind("interval", "interval", &["1 mon", "30 days", "1 day -02:03:04.5"], &["720 hours"]),
    kind("inet", "inet", &["10.0.0.1", "10.0.0.1/24", "::1"], &["10.0.0.1/32", "0:0::1", "x"]),
    kind("macaddr", "macaddr", &["08:00:2b:01:02:03"], &["08002b:010203", "x"]),
    kind("varbit", "varbit", &["1", "10", "", "01"], &["2"]),
    kind("oid", "oid", &["0", "123", "4294967295"], &["-1", "x"]),
    kind("\"char\"", "\"char\"", &["a", "", "\\"], &["abc"]),
    kind("pair", "pair", &["(1,\"a b\")", "(,)", "(2,)"], &["(1,x)"]),
    kind("int4range", "int4range", &["[1,5)", "empty", "(,3)"], &["[1,4]", "x"]),
    kind("money", "money", &["12.50", "-1"], &["$1"]),
    kind("timetz", "timetz", &["10:15:30.5+00", "11:15:30.5+01"], &["10:15:30.5Z"]),
];

/// The types of their own that they need.
pub(super) const TYPES: &str = "create extension if not exists citext;
    create collation oracle_nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    create type mood as enum ('sad', 'it''s \"ok\"', 'happy');
    create domain price as numeric check (value < 1000000);
    create domain label as varchar(6);
    create type pair as (x int, \"na\"\"me\" text);";

fn words(dice: &mut Dice) -> String {
    dice.word("aAbBcéÉ _-,.\"\\(%1", 6)
}

fn decimals(dice: &mut Dice) -> String {
    let (whole, places) = (dice.between(-300, 300), dice.below(4));
    let digits: String = (0..places).map(|_| dice.one(&["0", "5", "1"]).to_string()).collect();
    if digits.is_empty() { whole.to_string() } else { format!("{whole}.{digits}") }
}

fn uuids(dice: &mut Dice) -> String {
    let part = |dice: &mut Dice| dice.between(0, 0xFFFF);
    format!("{:04x}{:04x}-0000-4000-8000-{:012x}", part(dice), part(dice), part(dice))
}

impl Kind {
    /// An input literal for a row.
    pub(super) fn value(&self, dice: &mut Dice) -> String {
        if self.large && dice.percent(35) {
            return dice.one(&["L", "l"]).repeat(OUT_OF_LINE);
        }
        match self.generate {
            Some(generate) if self.values.is_empty() || dice.percent(50) => fit(self, generate(dice)),
            _ => fit(self, (*dice.one(self.values)).to_owned()),
        }
    }

    /// A literal for a filter, good or bad.
    pub(super) fn literal(&self, dice: &mut Dice) -> String {
        if !self.literals.is_empty() && dice.percent(25) {
            (*dice.one(self.literals)).to_owned()
        } else {
            self.value(dice)
        }
    }

    /// What `to_jsonb` says of a column of this type, with the one difference that clients know: bytea without its prefix.
    pub(super) fn json(&self, column: &str) -> String {
        match self.sql {
            "bytea" => format!("to_jsonb(encode({column}, 'hex'))"),
            "numeric" | "numeric(10,2)" | "float4" | "float8" => format!(
                "case when {column}::text in ('NaN', 'Infinity', '-Infinity') then 'null'::jsonb else to_jsonb({column}) end"
            ),
            _ => format!("to_jsonb({column})"),
        }
    }
}

/// Bytes of the large values. Postgres moves values out of line above some 2000 bytes a row.
const OUT_OF_LINE: usize = 3000;

/// Whether an UPDATE that doesn't touch this value leaves it out of the stream.
pub(super) fn is_out_of_line(value: Option<&String>) -> bool {
    value.is_some_and(|value| value.len() >= OUT_OF_LINE)
}

/// Cuts a text to the length of its column; blanks at the end would be cut anyway.
fn fit(kind: &Kind, value: String) -> String {
    let length = kind.sql.split_once("char(").and_then(|(_, rest)| rest.split_once(')')?.0.parse().ok());
    match length {
        Some(length) => value.chars().take(length).collect(),
        None => value,
    }
}

#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: &'static Kind,
}

impl Column {
    pub(super) fn new(name: &str, kind: &'static Kind) -> Column {
        Column { name: name.to_owned(), kind }
    }

    pub(super) fn quoted(&self) -> String {
        identifier(&self.name)
    }
}

pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `'…'`, or an `E'…'` if there is a backslash.
pub(super) fn quote(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}
