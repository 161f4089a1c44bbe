//! JSON from a client, one level at a time: names and elements in their order, values as the text that they were sent as.
//!
//! Whatever is deep inside a value is skipped without recursion, so depth costs nothing, and what is passed on is passed on as
//! it came. Rejected: `serde_json::Value`, which copies the tree, rounds numbers and refuses by depth what nobody looks at.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Borrowed unless it has escapes.
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

struct Members<F>(F);

impl<'de, F: FnMut(Cow<'de, str>, &'de str) -> bool> Visitor<'de> for Members<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<(), M::Error> {
        while let Some((name, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
            if !(self.0)(name.0, value.get()) {
                return Err(M::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

/// Calls `each` with name and value of every member; it may end the reading with `false`. Whether the text is one JSON object and
/// was read to its end. A name given twice comes twice.
pub(super) fn members<'a>(json: &'a str, each: impl FnMut(Cow<'a, str>, &'a str) -> bool) -> bool {
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_map(Members(each)).is_ok() && reader.end().is_ok()
}

struct Elements<F>(F);

impl<'de, F: FnMut(&'de str) -> bool> Visitor<'de> for Elements<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<S: SeqAccess<'de>>(mut self, mut seq: S) -> Result<(), S::Error> {
        while let Some(value) = seq.next_element::<&'de RawValue>()? {
            if !(self.0)(value.get()) {
                return Err(S::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

/// The same for the elements of an array.
pub(super) fn elements<'a>(json: &'a str, each: impl FnMut(&'a str) -> bool) -> bool {
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_seq(Elements(each)).is_ok() && reader.end().is_ok()
}

/// The string, if the text is one.
pub(super) fn string(json: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(json).ok().map(|text| text.0)
}

/// Whether the text is one JSON value, whatever its depth.
pub(super) fn is_value(json: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(json).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<Vec<(String, String)>> {
        let mut found = Vec::new();
        members(json, |name, value| {
            found.push((name.into_owned(), value.to_owned()));
            true
        })
        .then_some(found)
    }

    #[test]
    fn values_stay_as_they_were_sent() {
        let found = read(r#" {"a" : {"x":1.10, "x":2} , "\u0062":"\n", "a":null} "#).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(found, [pair("a", r#"{"x":1.10, "x":2}"#), pair("b", r#""\n""#), pair("a", "null")]);
        let mut all = Vec::new();
        assert!(elements("[1, [2 ], 1e999]", |value| {
            all.push(value);
            true
        }));
        assert_eq!(all, ["1", "[2 ]", "1e999"]);
    }

    #[test]
    fn other_forms_and_broken_ones_are_refused() {
        for json in ["", "null", "[]", "{", "{}{}", "{\"a\"}", "{\"a\":}", "{a:1}", "\"{}\""] {
            assert_eq!(read(json), None, "{json}");
        }
        for json in ["{}", "[", "[1,]", "[1]x", "1"] {
            assert!(!elements(json, |_| true), "{json}");
        }
        assert_eq!((string("\"a\\u00e4\"").as_deref(), string("1"), string("null")), (Some("aä"), None, None));
    }

    #[test]
    fn reading_ends_when_it_is_told_to() {
        let mut seen = 0;
        assert!(!elements("[1,2,3]", |_| {
            seen += 1;
            seen < 2
        }));
        assert_eq!(seen, 2);
    }

    #[test]
    fn depth_costs_nothing() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert_eq!(read(&deep).unwrap()[0].1.len(), 2_000_000);
        assert!(is_value(&deep) && !is_value(&deep[..1_000_000]));
    }
}
