//! How a column's text becomes JSON: what `to_jsonb(value)` prints, with the deviations of `protocol.md` §6.10 (bytea without
//! `\x`; the digits of a float as Postgres wrote them, so `1e+300` instead of three hundred zeros).
//!
//! Invariants: no bytes make it panic, and text that isn't what its type prints becomes a JSON string, so the output is always
//! one valid JSON value. One exception: `json` and `jsonb` go out as they are, because Postgres has already parsed them.

use super::builtin::{kind_of, oid};
use super::string::{is_plain, write_json_string};
use super::{TypeKind, Types, nested};

/// The way a type's text is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonKind {
    /// `t` and `f`.
    Bool,
    /// Integers, numeric and floats; `NaN` and the infinities are quoted.
    Number,
    /// Verbatim.
    Json,
    /// Quoted text: everything that has no rule of its own, dates and times included.
    String,
    /// Hexadecimal without its `\x`.
    Bytea,
    /// `T` between date and time.
    Timestamp,
    /// Likewise, and an offset of hours and minutes.
    TimestampTz,
    /// A JSON array, nested for more dimensions.
    Array {
        /// How an element is written.
        element: Box<JsonKind>,
        /// Between elements: `,`, or `;` for box.
        delimiter: u8,
    },
    /// A JSON object.
    Composite {
        /// For each attribute its JSON key with quotes and colon, and how it is written.
        fields: Box<[(Box<[u8]>, JsonKind)]>,
    },
    /// `int2vector` and `oidvector`: a JSON array, though their text is not an array's.
    Vector {
        /// How an element is written.
        element: Box<JsonKind>,
    },
    /// The hstore extension's type, which has a cast to json: an object of strings and nulls.
    Hstore,
}

/// No real type is nested deeper; a corrupt catalog could be.
const MAX_DEPTH: u32 = 12;

/// How the type of this oid is written. Follows domains; knows the built-in types without a catalog.
pub fn json_kind(types: &Types, oid: u32) -> JsonKind {
    kind_at(types, oid, MAX_DEPTH)
}

fn kind_at(types: &Types, oid: u32, depth: u32) -> JsonKind {
    let base = types.base_of(oid);
    match base {
        oid::BOOL => return JsonKind::Bool,
        oid::INT2 | oid::INT4 | oid::INT8 | oid::FLOAT4 | oid::FLOAT8 | oid::NUMERIC => return JsonKind::Number,
        oid::JSON | oid::JSONB => return JsonKind::Json,
        oid::BYTEA => return JsonKind::Bytea,
        oid::TIMESTAMP => return JsonKind::Timestamp,
        oid::TIMESTAMPTZ => return JsonKind::TimestampTz,
        oid::INT2VECTOR => return JsonKind::Vector { element: Box::new(JsonKind::Number) },
        oid::OIDVECTOR => return JsonKind::Vector { element: Box::new(JsonKind::String) },
        _ if depth == 0 => return JsonKind::String,
        _ => {}
    }
    match kind_of(types, base) {
        TypeKind::Array { element, delimiter } => {
            JsonKind::Array { element: Box::new(kind_at(types, element, depth - 1)), delimiter }
        }
        TypeKind::Composite { attributes } => {
            let field = |(name, oid): &(String, u32)| {
                let mut key = Vec::with_capacity(name.len() + 3);
                write_json_string(name.as_bytes(), &mut key);
                key.push(b':');
                (key.into_boxed_slice(), kind_at(types, *oid, depth - 1))
            };
            JsonKind::Composite { fields: attributes.iter().map(field).collect() }
        }
        // An extension's type has no fixed oid. Text that isn't hstore's own falls back to a string, so a namesake does no harm.
        TypeKind::Base if types.get(base).is_some_and(|info| info.name == "hstore") => JsonKind::Hstore,
        TypeKind::Base | TypeKind::Domain { .. } | TypeKind::Enum | TypeKind::Range => JsonKind::String,
    }
}

/// Appends the JSON of a value that is not NULL.
pub fn write_json(kind: &JsonKind, text: &[u8], out: &mut Vec<u8>) {
    match kind {
        JsonKind::String => write_json_string(text, out),
        JsonKind::Number => write_number(text, out),
        JsonKind::Bool => match text {
            b"t" => out.extend_from_slice(b"true"),
            b"f" => out.extend_from_slice(b"false"),
            _ => write_json_string(text, out),
        },
        JsonKind::Json => write_verbatim(text, out),
        JsonKind::Bytea => write_json_string(text.strip_prefix(b"\\x").unwrap_or(text), out),
        JsonKind::Timestamp => write_timestamp(text, false, out),
        JsonKind::TimestampTz => write_timestamp(text, true, out),
        JsonKind::Array { element, delimiter } => {
            or_string(text, out, |out| nested::write_array(element, *delimiter, text, out));
        }
        JsonKind::Composite { fields } => or_string(text, out, |out| nested::write_record(fields, text, out)),
        JsonKind::Vector { element } => or_string(text, out, |out| nested::write_vector(element, text, out)),
        JsonKind::Hstore => or_string(text, out, |out| nested::write_hstore(text, out)),
    }
}

/// Undoes a half-written value whose text turned out malformed.
fn or_string(text: &[u8], out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Option<()>) {
    let start = out.len();
    if write(out).is_none() {
        out.truncate(start);
        write_json_string(text, out);
    }
}

fn write_number(text: &[u8], out: &mut Vec<u8>) {
    match text {
        // Only a float prints it; in jsonb it is numeric's zero.
        b"-0" => out.push(b'0'),
        _ if is_number(text) => out.extend_from_slice(text),
        _ => write_json_string(text, out),
    }
}

/// Whether the text is a number by JSON's grammar.
pub(super) fn is_number(text: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(text);
    if whole == 0 || (whole > 1 && text[0] == b'0') {
        return false;
    }
    let mut rest = &text[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let count = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = &fraction[count..];
    }
    match rest {
        [] => true,
        [b'e' | b'E', exponent @ ..] => {
            let exponent = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
        _ => false,
    }
}

fn write_verbatim(text: &[u8], out: &mut Vec<u8>) {
    if text.is_empty() {
        out.extend_from_slice(b"\"\"");
    } else if std::str::from_utf8(text).is_ok() {
        out.extend_from_slice(text);
    } else {
        // In valid JSON such bytes stand only inside strings, so this stays valid.
        out.extend_from_slice(String::from_utf8_lossy(text).as_bytes());
    }
}

/// `2026-11-20 10:15:30.5+00` becomes `2026-11-20T10:15:30.5+00:00`; infinity stays, and so does ` BC` at the end.
fn write_timestamp(text: &[u8], zoned: bool, out: &mut Vec<u8>) {
    if !is_plain(text) {
        return write_json_string(text, out);
    }
    // Nearly always: four digits of year, AD, in UTC.
    if text.len() > 13 && text[10] == b' ' && !text.ends_with(b"C") && (!zoned || text.ends_with(b"+00")) {
        out.push(b'"');
        out.extend_from_slice(&text[..10]);
        out.push(b'T');
        out.extend_from_slice(&text[11..]);
        out.extend_from_slice(if zoned { b":00\"" } else { b"\"" });
        return;
    }
    let Some(space) = text.iter().position(|b| *b == b' ') else { return write_json_string(text, out) };
    let (date, time) = (&text[..space], &text[space + 1..]);
    out.push(b'"');
    out.extend_from_slice(date);
    out.push(b'T');
    let end = time.iter().position(|b| *b == b' ').unwrap_or(time.len());
    out.extend_from_slice(&time[..end]);
    let sign = time[..end].iter().rposition(|b| matches!(b, b'+' | b'-'));
    // Only whole hours are printed without minutes in text.
    if zoned && sign.is_some_and(|sign| end - sign == 3) {
        out.extend_from_slice(b":00");
    }
    out.extend_from_slice(&time[end..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgtype::TypeInfo;
    use proptest::prelude::*;

    fn types() -> Types {
        let info = |oid, name: &str, kind| TypeInfo { oid, schema: "public".into(), name: name.into(), kind };
        let attributes = |list: &[(&str, u32)]| TypeKind::Composite {
            attributes: list.iter().map(|(name, oid)| ((*name).into(), *oid)).collect(),
        };
        [
            info(20_001, "mood", TypeKind::Enum),
            info(20_002, "price", TypeKind::Domain { base: 1700 }),
            info(20_003, "point3", attributes(&[("x", 23), ("na\"me", 25), ("when", 1184), ("tags", 1009)])),
            info(20_004, "_point3", TypeKind::Array { element: 20_003, delimiter: b',' }),
            info(20_005, "hstore", TypeKind::Base),
            info(20_006, "one", attributes(&[("only", 25)])),
            info(20_007, "none", attributes(&[])),
            info(20_008, "matrix", TypeKind::Domain { base: 1007 }),
            info(20_009, "_matrix", TypeKind::Array { element: 20_008, delimiter: b',' }),
            info(20_010, "span", TypeKind::Range),
            info(20_011, "loop", TypeKind::Array { element: 20_011, delimiter: b',' }),
        ]
        .into_iter()
        .collect()
    }

    fn json(oid: u32, text: &str) -> String {
        let mut out = Vec::new();
        write_json(&json_kind(&types(), oid), text.as_bytes(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn scalars_are_written_as_the_table_of_types_says() {
        #[rustfmt::skip]
        let table = [
            (16, "t", "true"), (16, "f", "false"), (16, "?", r#""?""#),
            (20, "9007199254740993", "9007199254740993"), (21, "-1", "-1"), (23, "", r#""""#), (23, "007", r#""007""#),
            (1700, "1.50", "1.50"), (1700, "NaN", r#""NaN""#), (1700, "-Infinity", r#""-Infinity""#), (20_002, "0.10", "0.10"),
            (700, "1e-07", "1e-07"), (701, "1e+300", "1e+300"), (701, "-0", "0"), (701, "Infinity", r#""Infinity""#),
            (26, "123", r#""123""#), (25, "a\"b\\c\n", r#""a\"b\\c\n""#), (1042, "ab  ", r#""ab  ""#),
            (114, "{\"a\" :\n1}", "{\"a\" :\n1}"), (3802, r#"[1, "x"]"#, r#"[1, "x"]"#), (3802, "", r#""""#),
            (17, "\\x0102ff", r#""0102ff""#), (17, "\\x", r#""""#),
            (1082, "2026-11-20", r#""2026-11-20""#), (1082, "infinity", r#""infinity""#),
            (1083, "10:15:30.5", r#""10:15:30.5""#), (1266, "10:15:30.5+00", r#""10:15:30.5+00""#),
            (1114, "2026-11-20 10:15:30.5", r#""2026-11-20T10:15:30.5""#), (1114, "-infinity", r#""-infinity""#),
            (1114, "0044-03-15 00:00:00 BC", r#""0044-03-15T00:00:00 BC""#),
            (1184, "2026-11-20 10:15:30.5+00", r#""2026-11-20T10:15:30.5+00:00""#),
            (1184, "2026-11-20 10:15:30-03", r#""2026-11-20T10:15:30-03:00""#),
            (1184, "2026-11-20 10:15:30+05:30", r#""2026-11-20T10:15:30+05:30""#),
            (1184, "0044-03-15 01:02:03+00 BC", r#""0044-03-15T01:02:03+00:00 BC""#), (1184, "infinity", r#""infinity""#),
            (1186, "1 day", r#""1 day""#), (3904, "[1,5)", r#""[1,5)""#), (20_010, "[a,b]", r#""[a,b]""#),
            (20_001, "happy", r#""happy""#), (2950, "0b9f", r#""0b9f""#), (77_777, "?", r#""?""#),
        ];
        for (oid, text, expected) in table {
            assert_eq!(json(oid, text), expected, "{oid} {text}");
        }
    }

    #[test]
    fn arrays_composites_and_hstore_become_structures() {
        #[rustfmt::skip]
        let table = [
            (1007, "{1,2,NULL}", "[1,2,null]"), (1007, "{}", "[]"), (1007, "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
            (1007, "[0:1]={7,8}", "[7,8]"), (1007, "[1:1][-2:-1]={{1,2}}", "[[1,2]]"),
            (1009, r#"{a,"b,c","d\"e\\","","NULL",null}"#, r#"["a","b,c","d\"e\\","","NULL",null]"#),
            (1020, "{(1,1),(0,0);(2,2),(1,1)}", r#"["(1,1),(0,0)","(2,2),(1,1)"]"#),
            (1001, r#"{"\\x01","\\xff"}"#, r#"["01","ff"]"#), (1000, "{t,f}", "[true,false]"),
            (3807, r#"{"{\"a\": 1}",3}"#, r#"[{"a": 1},3]"#),
            (1185, r#"{"2026-11-20 10:15:30+00"}"#, r#"["2026-11-20T10:15:30+00:00"]"#),
            (20_009, r#"{"{1,2}","{3}"}"#, "[[1,2],[3]]"),
            (20_003, r#"(1,"a ""b"" \\",,"{x,""y z""}")"#, r#"{"x":1,"na\"me":"a \"b\" \\","when":null,"tags":["x","y z"]}"#),
            (20_004, r#"{"(1,,,)","(,\"q,\",,)"}"#,
                r#"[{"x":1,"na\"me":null,"when":null,"tags":null},{"x":null,"na\"me":"q,","when":null,"tags":null}]"#),
            (20_006, "()", r#"{"only":null}"#), (20_006, r#"("")"#, r#"{"only":""}"#), (20_007, "()", "{}"),
            (20_005, r#""a"=>"1", "b c"=>NULL, "d\"e"=>"x\\y""#, r#"{"a":"1","b c":null,"d\"e":"x\\y"}"#),
            (20_005, "", "{}"),
        ];
        for (oid, text, expected) in table {
            assert_eq!(json(oid, text), expected, "{oid} {text}");
        }
    }

    #[test]
    fn malformed_structures_become_strings() {
        let bad = [
            "{", "{1", "{1,}", "{1}x", "{{1}", "1,2", "[0:1]{1}", "[x]={1}", "{\"a}", "{a\"b}", "{,}", "{1}}", "{}{}",
            "{{}}",
        ];
        for (oid, text) in bad.iter().map(|t| (1007, *t)).chain([
            (20_003, "(1,2,3)"),
            (20_003, "(1,2,3,4,5)"),
            (20_003, "(1,2,3,4"),
            (20_003, "x"),
            (20_003, "(1,2,3,4)x"),
            (20_005, "a=>1"),
            (20_005, r#""a"=>"1","#),
            (20_005, r#""a"=>"#),
        ]) {
            assert_eq!(json(oid, text), serde_json::to_string(text).unwrap(), "{oid} {text}");
        }
        assert!(json(20_011, &"{".repeat(100_000)).starts_with('"'));
    }

    proptest! {
        #[test]
        fn any_bytes_of_any_type_give_valid_json(
            oid in prop::sample::select(vec![16u32, 23, 1700, 17, 25, 1114, 1184, 1007, 1009, 1185, 1020,
                20_001, 20_003, 20_004, 20_005, 20_006, 20_009, 20_011]),
            text in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "[{}(),\"\\\\a1N =>:\\[\\]-]{0,60}".prop_map(String::into_bytes),
                "\\{(\"[a\\\\\"]{0,4}\"|[a1]|NULL)(,(\"[a, ]{0,4}\"|[a1]))*\\}".prop_map(String::into_bytes),
            ],
        ) {
            let mut out = Vec::new();
            write_json(&json_kind(&types(), oid), &text, &mut out);
            let parsed: Result<serde_json::Value, _> = serde_json::from_slice(&out);
            prop_assert!(parsed.is_ok(), "{:?}", String::from_utf8_lossy(&out));
        }

        #[test]
        fn arrays_of_text_come_back(elements in prop::collection::vec(prop::option::of(any::<String>()), 0..6)) {
            let quoted = elements.iter().map(|e| match e {
                None => "NULL".to_owned(),
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            });
            let text = format!("{{{}}}", quoted.collect::<Vec<_>>().join(","));
            let parsed: Vec<Option<String>> = serde_json::from_str(&json(1009, &text)).unwrap();
            prop_assert_eq!(parsed, elements);
        }
    }
}
