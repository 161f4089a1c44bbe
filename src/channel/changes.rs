//! One `postgres_changes` entry: echoed to the client exactly as sent, and handed to the hub if its shape is an accepted one.
//!
//! The filter's text is not read here: the hub validates it against the table, so that a filter error and a column error come
//! from one place.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Value;
use serde_json::value::RawValue;

use super::object::{Object, string};
use super::place::{self, Since};
use crate::hub::{Action, Entry, Name, Start};

/// How much of an entry an error repeats.
const MAX_INSPECTED: usize = 2000;
/// Ids are 1 ..= this: not zero for JS and PY, within 32 bits for KT (§5.8).
const MAX_ID: u32 = (1 << 27) - 1;

/// An entry as the client sent it, with the id it got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    json: Box<str>,
    id: i32,
}

impl Wanted {
    /// The entries of a JSON array, nulls removed, each with its id; `None` if it is no array of objects.
    pub fn parse_all(json: &str) -> Option<Vec<Wanted>> {
        let elements: Vec<&RawValue> = serde_json::from_str(json).ok()?;
        let mut taken = HashMap::new();
        let mut entries = Vec::with_capacity(elements.len());
        for element in elements.iter().map(|raw| raw.get()).filter(|text| *text != "null") {
            Object::parse(element)?;
            let id = give_id(canonical(element), &mut taken);
            entries.push(Wanted { json: element.into(), id });
        }
        Some(entries)
    }

    /// The id in the join reply.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Appends the client's object with the id inserted.
    pub fn echo(&self, out: &mut String) {
        let object = Object::parse(&self.json).unwrap_or_default();
        let body = self.json.trim_end().strip_suffix('}').unwrap_or("{");
        if object.has("id") {
            // Its own id would be there twice.
            out.push('{');
            for (key, value) in object.iter().filter(|(key, _)| *key != "id") {
                let _ = write!(out, "{}:{value},", Value::from(key));
            }
        } else {
            out.push_str(body);
            if object.iter().next().is_some() {
                out.push(',');
            }
        }
        let _ = write!(out, "\"id\":{}}}", self.id);
    }

    /// From where on the client wants it, or the `system` message that says why that is no place.
    pub fn since(&self) -> Result<Option<Since>, String> {
        place::since(Object::parse(&self.json).unwrap_or_default().get_some("since"))
    }

    /// Whether the client keeps cursors, and so is to be given fresh ones: it has the key `since`, even if it has no value yet, or
    /// `cursor_as`.
    pub fn keeps_cursors(&self) -> bool {
        let object = Object::parse(&self.json).unwrap_or_default();
        object.has("since") || object.get_some("cursor_as").is_some()
    }

    /// The same text for entries that differ only in where they begin: in `since` and `snapshot`, and the order of keys.
    pub fn canonical_without_place(&self) -> String {
        let Ok(Value::Object(mut object)) = serde_json::from_str(&self.json) else { return canonical(&self.json) };
        object.retain(|key, _| key != "since" && key != "snapshot");
        Value::Object(object).to_string()
    }

    /// What the hub needs to know, but for [`Wanted::since`]; or the `system` message that says why the entry is none (§5.1,
    /// §5.5).
    pub fn entry(&self) -> Result<Entry, String> {
        let object = Object::parse(&self.json).unwrap_or_default();
        let action = match object.string("event").map(|event| event.to_ascii_uppercase()).as_deref() {
            Some("INSERT") => Action::Insert,
            Some("UPDATE") => Action::Update,
            Some("DELETE") => Action::Delete,
            _ => Action::All,
        };
        let (schema, table) = (object.string("schema"), object.string("table"));
        let filter = object.string("filter");
        let shape = match (schema, table) {
            (Some(schema), Some(table)) if filter.is_some() || !object.has("filter") => {
                Some((name(&schema), name(&table)))
            }
            (Some(schema), None) if !object.has("table") && !object.has("filter") => Some((name(&schema), Name::Any)),
            (None, Some(table)) if !object.has("schema") && !object.has("filter") => {
                Some((name("public"), name(&table)))
            }
            _ => None,
        };
        let Some((schema, table)) = shape else {
            return Err(format!(
                "No subscription params provided. Please provide at least a `schema` or `table` to subscribe to: {}",
                self.inspected(&object)
            ));
        };
        let select = select(object.get_some("select"))?;
        if select.is_some() && (schema == Name::Any || table == Name::Any) {
            return Err("Column selection is not supported for wildcard subscriptions. Provide an explicit schema and table name.".into());
        }
        let cursor_as = place::cursor_as(object.get_some("cursor_as"))?.map(Arc::from);
        let snapshot = place::snapshot(object.get_some("snapshot"))?;
        Ok(Entry {
            id: self.id,
            action,
            schema,
            table,
            filter: filter.map(Arc::from),
            select,
            start: Start::Now,
            cursor_as,
            snapshot,
            messages: None,
        })
    }

    fn inspected(&self, object: &Object<'_>) -> String {
        if object.has("user_token") || object.has("auth_token") {
            return "<redacted>".into();
        }
        let Ok(value) = serde_json::from_str::<Value>(&self.json) else { return "<too deep>".into() };
        let mut text = String::new();
        inspect(&value, &mut text);
        if let Some((cut, _)) = text.char_indices().nth(MAX_INSPECTED) {
            text.truncate(cut);
            text.push_str("...");
        }
        text
    }
}

fn name(text: &str) -> Name {
    if text == "*" { Name::Any } else { Name::Is(text.into()) }
}

fn select(json: Option<&str>) -> Result<Option<Vec<String>>, String> {
    let Some(json) = json else { return Ok(None) };
    let elements: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| {
        "Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]"
            .to_owned()
    })?;
    let columns: Vec<String> = elements.iter().filter_map(|element| string(element.get())).collect();
    Ok(Some(columns).filter(|columns| !columns.is_empty()))
}

/// The same text for equal objects, whatever the order of their keys.
fn canonical(json: &str) -> String {
    // What is nested deeper than serde_json reads is only equal to itself.
    serde_json::from_str::<Value>(json).map_or_else(|_| json.to_owned(), |value| value.to_string())
}

/// Equal entries share an id; different ones never do.
fn give_id(canonical: String, taken: &mut HashMap<i32, String>) -> i32 {
    let mut id = crc32c::crc32c(canonical.as_bytes()) % MAX_ID + 1;
    loop {
        // Below 2^27, so the sign is safe.
        match taken.entry(id.cast_signed()) {
            Slot::Vacant(slot) => {
                slot.insert(canonical);
                return id.cast_signed();
            }
            Slot::Occupied(slot) if *slot.get() == canonical => return id.cast_signed(),
            Slot::Occupied(_) => id = id % MAX_ID + 1,
        }
    }
}

/// As the servers that clients know print a map: `%{"schema" => nil}`.
fn inspect(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("nil"),
        Value::Object(map) => {
            out.push_str("%{");
            for (index, (key, value)) in map.iter().enumerate() {
                let _ = write!(out, "{}{} => ", if index > 0 { ", " } else { "" }, Value::from(key.as_str()));
                inspect(value, out);
            }
            out.push('}');
        }
        Value::Array(list) => {
            out.push('[');
            for (index, value) in list.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                inspect(value, out);
            }
            out.push(']');
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(json: &str) -> Wanted {
        Wanted::parse_all(&format!("[{json}]")).unwrap().remove(0)
    }

    fn echo(wanted: &Wanted) -> String {
        let mut out = String::new();
        wanted.echo(&mut out);
        out
    }

    #[test]
    fn the_echo_is_the_clients_object_and_an_id() {
        let wanted = one(r#"{ "event":"insert","extra":{"x":[1.50]},"schema":"public" , "filter":"ä=eq.1" }"#);
        let expected = format!(
            r#"{{ "event":"insert","extra":{{"x":[1.50]}},"schema":"public" , "filter":"ä=eq.1" ,"id":{}}}"#,
            wanted.id()
        );
        assert_eq!(echo(&wanted), expected);
        assert_eq!(echo(&one("{}")), format!("{{\"id\":{}}}", one("{}").id()));
        let own = one(r#"{"id":"mine","table":"t"}"#);
        assert_eq!(echo(&own), format!(r#"{{"table":"t","id":{}}}"#, own.id()));
    }

    #[test]
    fn nulls_go_and_anything_but_objects_makes_the_field_unreadable() {
        assert_eq!(Wanted::parse_all("[null, null]"), Some(vec![]));
        assert_eq!(Wanted::parse_all("[]"), Some(vec![]));
        for bad in ["{}", "1", "[1]", r#"["a"]"#, "[[]]"] {
            assert_eq!(Wanted::parse_all(bad), None, "{bad}");
        }
    }

    #[test]
    fn equal_entries_share_an_id_whatever_their_order() {
        let all =
            Wanted::parse_all(r#"[{"schema":"a","table":"b"},{"table":"b","schema":"a"},{"schema":"a"}]"#).unwrap();
        assert_eq!(all[0].id(), all[1].id());
        assert_ne!(all[0].id(), all[2].id());
    }

    #[test]
    fn a_collision_is_probed_away() {
        let mut taken = HashMap::new();
        let first = give_id("a".into(), &mut taken);
        taken.insert(first, "something else".into());
        assert_eq!(give_id("a".into(), &mut taken), first % MAX_ID.cast_signed() + 1);
        assert_eq!(give_id("a".into(), &mut taken), first % MAX_ID.cast_signed() + 1);
    }

    #[test]
    fn the_accepted_shapes_are_read_in_order() {
        let is = |text: &str| Name::Is(text.into());
        let entry = one(r#"{"event":"Update","schema":"s","table":"t","filter":"id=eq.1","select":["a",5,"b"]}"#)
            .entry()
            .unwrap();
        assert_eq!((entry.action, entry.schema, entry.table), (Action::Update, is("s"), is("t")));
        assert_eq!(entry.filter.as_deref(), Some("id=eq.1"));
        assert_eq!(entry.select, Some(vec!["a".to_owned(), "b".to_owned()]));
        let entry = one(r#"{"event":"SELECT","schema":"s"}"#).entry().unwrap();
        assert_eq!((entry.action, entry.schema, entry.table, entry.filter), (Action::All, is("s"), Name::Any, None));
        let entry = one(r#"{"event":5,"table":"t","select":[]}"#).entry().unwrap();
        assert_eq!((entry.action, entry.schema, entry.table, entry.select), (Action::All, is("public"), is("t"), None));
        let entry = one(r#"{"schema":"*","table":"*"}"#).entry().unwrap();
        assert_eq!((entry.schema, entry.table), (Name::Any, Name::Any));
    }

    #[test]
    fn other_shapes_are_errors_that_show_the_entry() {
        for bad in [
            r#"{}"#,
            r#"{"event":"*"}"#,
            r#"{"filter":"id=eq.1"}"#,
            r#"{"schema":"s","filter":"id=eq.1"}"#,
            r#"{"table":"t","filter":"id=eq.1"}"#,
            r#"{"schema":"s","table":"t","filter":null}"#,
            r#"{"schema":"s","table":null}"#,
            r#"{"schema":1,"table":"t"}"#,
        ] {
            let error = one(bad).entry().unwrap_err();
            assert!(
                error.starts_with("No subscription params provided. Please provide at least a `schema` or `table`"),
                "{error}"
            );
        }
        let error = one(r#"{"event":"*","schema":null,"n":[1,{"a":true}]}"#).entry().unwrap_err();
        assert!(error.ends_with(r#": %{"event" => "*", "n" => [1, %{"a" => true}], "schema" => nil}"#), "{error}");
        assert!(one(r#"{"user_token":"x"}"#).entry().unwrap_err().ends_with(": <redacted>"));
        assert!(one(&format!(r#"{{"a":"{}"}}"#, "ä".repeat(100_000))).entry().unwrap_err().len() < 5000);
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(50_000), "]".repeat(50_000));
        assert!(one(&deep).entry().unwrap_err().ends_with("<too deep>"));
    }

    #[test]
    fn keys_of_the_place_are_read_and_do_not_change_what_the_entry_is() {
        let with = one(r#"{"since":"AbC","snapshot":{"limit":3},"cursor_as":"_c","table":"t"}"#);
        let entry = with.entry().unwrap();
        assert_eq!((entry.start, entry.cursor_as.as_deref()), (Start::Now, Some("_c")));
        assert_eq!(entry.snapshot.map(|wish| wish.limit), Some(3));
        assert_eq!(with.since(), Ok(Some(Since::Cursor("AbC".into()))));
        assert!(
            with.keeps_cursors()
                && one(r#"{"since":null}"#).keeps_cursors()
                && !one(r#"{"cursor_as":null}"#).keeps_cursors()
        );
        assert_eq!(with.canonical_without_place(), r#"{"cursor_as":"_c","table":"t"}"#);
        let without = one(r#"{"table":"t","cursor_as":"_c","since":null}"#);
        assert_eq!((without.since(), without.canonical_without_place()), (Ok(None), with.canonical_without_place()));
        assert_eq!(
            echo(&with).split_once(",\"id\"").unwrap().0,
            r#"{"since":"AbC","snapshot":{"limit":3},"cursor_as":"_c","table":"t""#
        );
        for bad in [r#"{"table":"t","cursor_as":""}"#, r#"{"table":"t","snapshot":5}"#] {
            assert!(one(bad).entry().unwrap_err().starts_with("Error parsing `"), "{bad}");
        }
        assert!(one(r#"{"table":"t","since":{}}"#).since().is_err());
    }

    #[test]
    fn select_needs_a_list_and_one_table() {
        let error = one(r#"{"schema":"s","table":"t","select":"a"}"#).entry().unwrap_err();
        assert_eq!(
            error,
            "Error parsing `select` params: expected a list of column name strings, e.g. select: [\"col1\", \"col2\"]"
        );
        for wild in [r#"{"schema":"s","select":["a"]}"#, r#"{"schema":"*","table":"t","select":["a"]}"#] {
            assert!(
                one(wild).entry().unwrap_err().starts_with("Column selection is not supported for wildcard"),
                "{wild}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_id_is_within_bounds(text in any::<String>()) {
            let id = one(&serde_json::json!({"table": text}).to_string()).id();
            prop_assert!(id >= 1 && id <= MAX_ID.cast_signed());
        }
    }
}
