//! A JSON object from a client, one level deep: keys in order, values as the text they were sent as.
//!
//! Rejected: `serde_json::Value`, which copies the whole tree and refuses by depth what nobody looks at.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Borrows from the frame's text.
#[derive(Debug, Default)]
pub(super) struct Object<'a>(Vec<(Key<'a>, &'a RawValue)>);

/// Borrowed unless it has escapes.
#[derive(Debug, serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Object<'a> {
    /// `None` if the text is not a JSON object.
    pub(super) fn parse(json: &'a str) -> Option<Object<'a>> {
        serde_json::from_str(json).ok()
    }

    /// The value's text; of a key given twice, the last. `null` is a value.
    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(name, _)| name.0 == key).map(|(_, value)| value.get())
    }

    /// The value's text, unless it is `null`.
    pub(super) fn get_some(&self, key: &str) -> Option<&'a str> {
        self.get(key).filter(|value| *value != "null")
    }

    /// The value if it is a string.
    pub(super) fn string(&self, key: &str) -> Option<String> {
        self.get(key).and_then(string)
    }

    /// Whether the key was given, even as `null`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Keys and values in the client's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(key, value)| (key.0.as_ref(), value.get()))
    }
}

/// The string, if the JSON text is one.
pub(super) fn string(json: &str) -> Option<String> {
    if json.starts_with('"') { serde_json::from_str(json).ok() } else { None }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<'a>, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vec<(Key<'de>, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Pairs).map(Object)
    }
}
