//! One presence meta: the object that a client tracks, with our references in it, as JSON text.
//!
//! The object's members are taken over as they were written, but for the two names that are ours. Nothing is parsed deeper than
//! the first level, so no depth of nesting costs stack. Rejected: `serde_json::Value`, which recurses and rewrites numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

const REF: &str = "phx_ref";
const PREV: &str = "phx_ref_prev";

/// The members of a client's object, without braces, and without those that are ours.
#[derive(Debug, Clone)]
pub(super) struct Tracked(String);

impl Tracked {
    /// Bytes that the client wrote.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// `None` if it is no object.
    pub(super) fn new(payload: &RawValue) -> Option<Tracked> {
        let text = payload.get().trim();
        let inner = text.strip_prefix('{')?.strip_suffix('}')?.trim();
        // A name may be written with escapes.
        if !inner.contains(REF) && !inner.contains("\\u") {
            return Some(Tracked(inner.to_owned()));
        }
        let Members(members) = serde_json::from_str(text).ok()?;
        if !members.iter().any(|(name, _)| is_ours(name)) {
            return Some(Tracked(inner.to_owned()));
        }
        let mut out = String::with_capacity(inner.len());
        for (name, value) in members.iter().filter(|(name, _)| !is_ours(name)) {
            if !out.is_empty() {
                out.push(',');
            }
            push_json_string(name, &mut out);
            out.push(':');
            out.push_str(value.get());
        }
        Some(Tracked(out))
    }
}

fn is_ours(name: &str) -> bool {
    name == REF || name == PREV
}

/// Appends a quoted string.
pub(super) fn push_json_string(text: &str, out: &mut String) {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    crate::pgtype::write_json_string(text.as_bytes(), &mut bytes);
    out.push_str(&String::from_utf8_lossy(&bytes));
}

/// A meta as others read it.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    /// The complete object.
    text: Bytes,
    /// How many bytes of it, behind the brace, the client wrote.
    inner: usize,
    /// What is within the quotes of `phx_ref`.
    pub(super) reference: Reference,
}

/// A `phx_ref`: unique among all metas of this process, and by its first part most likely among those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) process: u32,
    pub(super) number: u64,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}{:x}", self.process, self.number)
    }
}

impl Meta {
    /// `previous`: that of the meta that this one takes the place of.
    pub(super) fn new(tracked: &Tracked, reference: Reference, previous: Option<Reference>) -> Meta {
        use std::fmt::Write as _;
        let inner = &tracked.0;
        let mut text = String::with_capacity(inner.len() + 80);
        text.push('{');
        text.push_str(inner);
        let comma = if inner.is_empty() { "" } else { "," };
        // Writing to a String can't fail.
        let _ = write!(text, "{comma}\"{REF}\":\"{reference}\"");
        if let Some(previous) = previous {
            let _ = write!(text, ",\"{PREV}\":\"{previous}\"");
        }
        text.push('}');
        text.shrink_to_fit();
        Meta { text: Bytes::from(text), inner: inner.len(), reference }
    }

    /// The complete object.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Whether the client has tracked just that: the same text, or the same members in another order or spacing. Values that are
    /// objects are compared as they are written: a difference that is none costs one diff.
    pub(super) fn tracks(&self, tracked: &Tracked) -> bool {
        let Some(own) = self.text.get(1..1 + self.inner).and_then(|inner| std::str::from_utf8(inner).ok()) else {
            return false;
        };
        own == tracked.0 || (own.len().abs_diff(tracked.0.len()) <= SPACING && same_members(own, &tracked.0))
    }
}

/// Texts of the same members are not further apart in length, or are treated as different.
const SPACING: usize = 4096;

fn same_members(one: &str, other: &str) -> bool {
    fn read(inner: &str) -> Option<BTreeMap<String, String>> {
        let object = format!("{{{inner}}}");
        let Members(members) = serde_json::from_str(&object).ok()?;
        // Of a name that is there twice the last counts, as in most parsers.
        Some(members.into_iter().map(|(name, value)| (name.into_owned(), packed(value.get()))).collect())
    }
    read(one).zip(read(other)).is_some_and(|(one, other)| one == other)
}

/// JSON without the space between its tokens.
fn packed(json: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keep = |c: &char| {
        if quoted {
            quoted = escaped || *c != '"';
            escaped = !escaped && *c == '\\';
            return true;
        }
        quoted = *c == '"';
        !c.is_ascii_whitespace()
    };
    json.chars().filter(keep).collect()
}

/// The members of an object, in order; values as they were written.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// A name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'de>, D::Error> {
        struct Reading;
        impl<'de> Visitor<'de> for Reading {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reading)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    fn tracked(text: &str) -> Tracked {
        Tracked::new(&raw(text)).unwrap()
    }

    fn reference(number: u64) -> Reference {
        Reference { process: 0xab, number }
    }

    fn text(payload: &str, previous: Option<u64>) -> String {
        let meta = Meta::new(&tracked(payload), reference(0x1f), previous.map(reference));
        String::from_utf8(meta.text().to_vec()).unwrap()
    }

    #[test]
    fn the_object_stays_as_it_was_written_with_our_references_behind() {
        assert_eq!(text("{}", None), r#"{"phx_ref":"000000ab1f"}"#);
        assert_eq!(text(r#"{ "a" : 1.0 }"#, None), r#"{"a" : 1.0,"phx_ref":"000000ab1f"}"#);
        assert_eq!(text(r#"{"a":1}"#, Some(1)), r#"{"a":1,"phx_ref":"000000ab1f","phx_ref_prev":"000000ab1"}"#);
    }

    #[test]
    fn references_of_clients_are_taken_out_however_they_are_written() {
        for theirs in [
            r#"{"phx_ref":"x","a":{"phx_ref":1}}"#,
            r#"{"a":{"phx_ref":1},"phx_ref":{"deep":[]}}"#,
            r#"{"\u0070hx_ref":"x","a":{"phx_ref":1},"phx_ref_prev":2,"phx_ref":3}"#,
        ] {
            assert_eq!(text(theirs, None), r#"{"a":{"phx_ref":1},"phx_ref":"000000ab1f"}"#);
        }
        assert_eq!(text(r#"{"phx_ref":"x"}"#, None), r#"{"phx_ref":"000000ab1f"}"#);
        assert_eq!(text(r#"{"a":"phx_ref \u0041"}"#, None), r#"{"a":"phx_ref \u0041","phx_ref":"000000ab1f"}"#);
    }

    #[test]
    fn what_is_no_object_is_no_meta() {
        for other in ["1", "[]", "null", "\"{}\"", "\"a}\""] {
            assert!(Tracked::new(&raw(other)).is_none(), "{other}");
        }
    }

    #[test]
    fn no_depth_of_nesting_costs_stack() {
        let deep = format!("{{\"phx_ref\":1,\"a\":{}1{}}}", "[".repeat(500_000), "]".repeat(500_000));
        let meta = Meta::new(&tracked(&deep), reference(1), None);
        assert!(meta.tracks(&tracked(&deep)));
        assert!(!meta.tracks(&tracked("{}")));
    }

    #[test]
    fn the_same_members_in_another_order_or_spacing_are_the_same() {
        let meta = Meta::new(&tracked(r#"{"a":1,"b":[1, "x y\" z"]}"#), reference(1), None);
        assert!(meta.tracks(&tracked(r#"{ "b":[1,"x y\" z"],"a": 1}"#)));
        assert!(!meta.tracks(&tracked(r#"{"b":[1,"xy\" z"],"a":1}"#)));
        assert!(!meta.tracks(&tracked(r#"{"a":1}"#)));
        assert!(!meta.tracks(&tracked(r#"{"a":1,"b":[1, "x y\" z"],"c":null}"#)));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf =
            prop_oneof![any::<i64>().prop_map(Value::from), any::<String>().prop_map(Value::from), Just(json!(null))];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]|phx_ref", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_meta_is_the_object_with_our_references(
            mut object in prop::collection::btree_map("[a-c\"\u{e9}]|phx_ref|phx_ref_prev", value(), 0..5), pretty in any::<bool>(),
        ) {
            let write = if pretty { serde_json::to_string_pretty } else { serde_json::to_string };
            let written = write(&object).unwrap();
            let meta = Meta::new(&tracked(&written), reference(7), None);
            object.remove(PREV);
            object.insert(REF.into(), json!("000000ab7"));
            prop_assert_eq!(serde_json::from_slice::<Value>(meta.text()).unwrap(), json!(object));
            prop_assert!(meta.tracks(&tracked(&written)));
        }
    }
}
