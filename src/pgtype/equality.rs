//! Equality of two values by their text: exactly as Postgres's `=` for the type, or not at all.
//!
//! [`equality`] says whether a type is in reach, [`canonical`] gives the bytes whose identity is the values' equality, fit for
//! hashing. Left out on purpose: interval (`1 mon` = `30 days`), citext and nondeterministic collations, arrays and ranges of
//! numbers (`{1.0}` = `{1.00}`), money and reg* (their text depends on the session), json and xml (no `=`).

use std::borrow::Cow;

use super::builtin::{kind_of, oid};
use super::json::is_number;
use super::{TypeKind, Types};

/// How texts of a type are made comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Equality {
    /// Equal text, equal value.
    Bytes,
    /// `character(n)`: blanks at the end don't count.
    Blanks,
    /// `numeric`: zeros at the end of the fraction don't count.
    Numeric,
    /// Floats: minus zero is zero.
    Float,
    /// `jsonb`: its numbers compare as numeric does.
    Jsonb,
}

/// The equality of a type, domains followed; `None` where text can't tell. `collation_deterministic` is the column's
/// `pg_collation.collisdeterministic`, true for types without a collation.
pub fn equality(types: &Types, oid: u32, collation_deterministic: bool) -> Option<Equality> {
    let base = types.base_of(oid);
    match base {
        oid::TEXT | oid::VARCHAR | oid::NAME => collation_deterministic.then_some(Equality::Bytes),
        oid::BPCHAR => collation_deterministic.then_some(Equality::Blanks),
        oid::BOOL
        | oid::INT2
        | oid::INT4
        | oid::INT8
        | oid::OID
        | oid::CHAR
        | oid::BYTEA
        | oid::UUID
        | oid::DATE
        | oid::TIME
        | oid::TIMESTAMP
        | oid::TIMESTAMPTZ
        | oid::INET
        | oid::CIDR
        | oid::MACADDR
        | oid::MACADDR8
        | oid::BIT
        | oid::VARBIT
        | oid::PG_LSN => Some(Equality::Bytes),
        oid::NUMERIC => Some(Equality::Numeric),
        oid::FLOAT4 | oid::FLOAT8 => Some(Equality::Float),
        oid::JSONB => Some(Equality::Jsonb),
        _ => matches!(kind_of(types, base), TypeKind::Enum).then_some(Equality::Bytes),
    }
}

/// The bytes that are identical for equal values and differ for others. `None` if the text isn't what the type prints.
pub fn canonical(equality: Equality, text: &[u8]) -> Option<Cow<'_, [u8]>> {
    match equality {
        Equality::Bytes => Some(Cow::Borrowed(text)),
        Equality::Blanks => Some(Cow::Borrowed(trim_end(text, b' '))),
        Equality::Numeric => match text {
            b"NaN" | b"Infinity" | b"-Infinity" => Some(Cow::Borrowed(text)),
            _ => is_decimal(text).then(|| Cow::Borrowed(trim_fraction(text))),
        },
        Equality::Float => Some(Cow::Borrowed(if text == b"-0" { b"0" } else { text })),
        Equality::Jsonb => canonical_jsonb(text),
    }
}

fn trim_end(text: &[u8], byte: u8) -> &[u8] {
    let end = text.iter().rposition(|b| *b != byte).map_or(0, |i| i + 1);
    &text[..end]
}

/// A number as numeric prints it: without an exponent, whose zeros would count, and without a negative zero.
fn is_decimal(text: &[u8]) -> bool {
    is_number(text) && !text.iter().any(|b| matches!(b, b'e' | b'E')) && trim_fraction(text) != b"-0"
}

/// `1.50` → `1.5`, `2.00` → `2`, `100` stays.
fn trim_fraction(text: &[u8]) -> &[u8] {
    if !text.contains(&b'.') {
        return text;
    }
    let trimmed = trim_end(text, b'0');
    trimmed.strip_suffix(b".").unwrap_or(trimmed)
}

/// Postgres prints jsonb with its keys sorted and its spacing fixed, so only numbers can differ between equal values.
fn canonical_jsonb(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut out: Option<Vec<u8>> = None;
    // Bytes of `text` that are in `out` already; the rest up to `at` is copied when a number had to be cut.
    let mut copied = 0;
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => at = string_end(text, at + 1)?,
            b'-' | b'0'..=b'9' => {
                let digit = |b: &u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let end = text[at..].iter().position(|b| !digit(b)).map_or(text.len(), |i| at + i);
                let number = &text[at..end];
                let trimmed = is_decimal(number).then(|| trim_fraction(number))?;
                if trimmed.len() < number.len() {
                    let out = out.get_or_insert_with(|| Vec::with_capacity(text.len()));
                    out.extend_from_slice(&text[copied..at + trimmed.len()]);
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    Some(match out {
        None => Cow::Borrowed(text),
        Some(mut out) => {
            out.extend_from_slice(&text[copied..]);
            Cow::Owned(out)
        }
    })
}

/// The index behind the closing quote.
fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgtype::TypeInfo;
    use proptest::prelude::*;

    fn same(equality: Equality, a: &str, b: &str) -> bool {
        canonical(equality, a.as_bytes()).unwrap() == canonical(equality, b.as_bytes()).unwrap()
    }

    #[test]
    fn equal_values_have_equal_canonical_text() {
        use Equality::*;
        for (equality, a, b) in [
            (Blanks, "ab   ", "ab"),
            (Blanks, "  ", ""),
            (Numeric, "1.50", "1.5"),
            (Numeric, "2.00", "2"),
            (Numeric, "0.0", "0"),
            (Numeric, "NaN", "NaN"),
            (Float, "-0", "0"),
            (Jsonb, r#"{"a": 1.50, "1.0": [2.0, "2.0"]}"#, r#"{"a": 1.5, "1.0": [2, "2.0"]}"#),
        ] {
            assert!(same(equality, a, b), "{a} {b}");
        }
        for (equality, a, b) in [
            (Bytes, "a", "A"),
            (Blanks, "ab", " ab"),
            (Numeric, "100", "1"),
            (Numeric, "10", "1"),
            (Numeric, "-1", "1"),
            (Jsonb, r#"{"a": "1.0"}"#, r#"{"a": "1"}"#),
            (Jsonb, r#"["\"1.0"]"#, r#"["\"1"]"#),
        ] {
            assert!(!same(equality, a, b), "{a} {b}");
        }
        assert_eq!(canonical(Numeric, b"x"), None);
        assert_eq!(canonical(Jsonb, b"\"open"), None);
    }

    #[test]
    fn types_that_text_cannot_tell_are_not_claimed() {
        let info = |oid, kind| TypeInfo { oid, schema: "s".into(), name: "n".into(), kind };
        let types: Types = [
            info(20_000, TypeKind::Enum),
            info(20_001, TypeKind::Domain { base: 1700 }),
            info(20_002, TypeKind::Base),
            info(20_003, TypeKind::Domain { base: 20_002 }),
        ]
        .into_iter()
        .collect();
        for oid in [114, 142, 790, 1186, 1266, 1007, 3906, 600, 2205, 20_002, 20_003, 0] {
            assert_eq!(equality(&types, oid, true), None, "{oid}");
        }
        for oid in [25, 1042, 1043, 19] {
            assert!(equality(&types, oid, true).is_some());
            assert_eq!(equality(&types, oid, false), None, "{oid}");
        }
        assert_eq!(equality(&types, 20_000, true), Some(Equality::Bytes));
        assert_eq!(equality(&types, 20_001, true), Some(Equality::Numeric));
    }

    proptest! {
        #[test]
        fn any_bytes_are_canonical_or_not_without_panic(
            text in prop_oneof![prop::collection::vec(any::<u8>(), 0..40), "[-0-9.eE\"\\\\ {},]{0,30}".prop_map(String::into_bytes)],
        ) {
            for equality in [Equality::Bytes, Equality::Blanks, Equality::Numeric, Equality::Float, Equality::Jsonb] {
                if let Some(once) = canonical(equality, &text) {
                    prop_assert_eq!(canonical(equality, &once), Some(once.clone()));
                }
            }
        }
    }
}
