//! A change as a line for a person: time, type, table, key, and what changed.
//!
//! The frame does not say which columns are the key. It is `old_record` where that is a part of the row, else `id`, else the
//! first column. Values are the row's, which anybody could have written, so nothing in them reaches the terminal as a command.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::dev::screen::{Style, paint};

/// Characters of one value.
const LONGEST: usize = 60;

type Row = BTreeMap<String, Box<RawValue>>;

#[derive(Deserialize)]
struct Data {
    schema: String,
    table: String,
    r#type: String,
    commit_timestamp: Option<String>,
    #[serde(default)]
    columns: Vec<Column>,
    record: Option<Row>,
    old_record: Option<Row>,
    errors: Option<Vec<String>>,
    cursor: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

/// The object as it came, on one line: between its values JSON may have line breaks, in them it has none.
pub(super) fn json(data: &RawValue) -> String {
    data.get().replace(['\n', '\r'], " ")
}

/// One line, with colours and the cursor if asked for.
pub(super) fn pretty(data: &RawValue, coloured: bool, cursors: bool) -> String {
    let Ok(data) = serde_json::from_str::<Data>(data.get()) else { return clean(data.get()) };
    let dim = |text: &str| paint(coloured, Style::Dim, text);
    let style = match &*data.r#type {
        "INSERT" => Style::Green,
        "UPDATE" => Style::Yellow,
        _ => Style::Red,
    };
    let time = data.commit_timestamp.as_deref().and_then(|stamp| stamp.split_once('T'));
    let time = time.map_or_else(|| "-".to_owned(), |(_, time)| clean(time));
    let kind = paint(coloured, style, &format!("{:<6}", clean(&data.r#type)));
    let mut line = format!("{}  {kind}  {}.{}", dim(&time), clean(&data.schema), clean(&data.table));
    let key = data.key();
    for name in &key {
        if let Some(value) = data.row().and_then(|row| row.get(*name)) {
            let pair = format!("{}={}", clean(name), short(value));
            let _ = write!(line, "  {}", paint(coloured, Style::Bold, &pair));
        }
    }
    for (name, text) in data.changed(&key) {
        let _ = write!(line, "  {}{text}", dim(&format!("{}=", clean(name))));
    }
    for error in data.errors.iter().flatten() {
        let _ = write!(line, "  {}", paint(coloured, Style::Red, &clean(error)));
    }
    if let Some(cursor) = data.cursor.as_ref().filter(|_| cursors) {
        let _ = write!(line, "  {}", dim(&format!("@{}", clean(cursor.get().trim_matches('"')))));
    }
    line
}

impl Data {
    fn row(&self) -> Option<&Row> {
        self.record.as_ref().or(self.old_record.as_ref())
    }

    /// In the order of the table.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| &*column.name)
    }

    fn key(&self) -> Vec<&str> {
        if let Some(old) = self.old_record.as_ref().filter(|old| !old.is_empty() && old.len() < self.columns.len()) {
            return self.names().filter(|name| old.contains_key(*name)).collect();
        }
        let found = self.names().find(|name| *name == "id").or_else(|| self.names().next());
        found.into_iter().collect()
    }

    /// Names and what to show for them: both values where both are known, else the one that is.
    fn changed(&self, key: &[&str]) -> Vec<(&str, String)> {
        let Some(row) = self.row() else { return Vec::new() };
        let old = self.record.as_ref().and(self.old_record.as_ref()).filter(|old| old.len() > key.len());
        let show = |name: &str| match (row.get(name)?, old.and_then(|old| old.get(name))) {
            (new, Some(old)) if new.get() == old.get() => None,
            (new, Some(old)) => Some(format!("{} → {}", short(old), short(new))),
            (new, None) => Some(short(new)),
        };
        self.names().filter(|name| !key.contains(name)).filter_map(|name| Some((name, show(name)?))).collect()
    }
}

/// The value's own JSON, cut.
fn short(value: &RawValue) -> String {
    let text = clean(value.get());
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Without what a terminal would obey: control characters and those that turn the direction of text.
pub(super) fn clean(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { cleaned.extend(c.escape_unicode()) } else { cleaned.push(c) }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(data: &str) -> String {
        pretty(&RawValue::from_string(data.to_owned()).expect("JSON"), false, true)
    }

    const COLUMNS: &str = r#""schema":"public","table":"notes","errors":null,"commit_timestamp":"2026-11-20T10:15:30.123Z","columns":[{"name":"id","type":"int8"},{"name":"title","type":"text"},{"name":"price","type":"numeric"}]"#;

    #[test]
    fn an_insert_shows_every_column_in_the_tables_order() {
        let line = shown(&format!(r#"{{{COLUMNS},"type":"INSERT","record":{{"title":"milk","id":5,"price":1.10}}}}"#));
        assert_eq!(line, r#"10:15:30.123Z  INSERT  public.notes  id=5  title="milk"  price=1.10"#);
    }

    #[test]
    fn an_update_shows_what_changed_where_the_old_row_is_known() {
        let full = r#""old_record":{"id":5,"title":"milk","price":1}"#;
        let line =
            shown(&format!(r#"{{{COLUMNS},"type":"UPDATE","record":{{"id":5,"title":"bread","price":1}},{full}}}"#));
        assert_eq!(line, r#"10:15:30.123Z  UPDATE  public.notes  id=5  title="milk" → "bread""#);
        let key = r#""old_record":{"id":5}"#;
        let line =
            shown(&format!(r#"{{{COLUMNS},"type":"UPDATE","record":{{"id":5,"title":"bread","price":1}},{key}}}"#));
        assert_eq!(line, r#"10:15:30.123Z  UPDATE  public.notes  id=5  title="bread"  price=1"#);
    }

    #[test]
    fn a_delete_shows_the_row_that_is_gone_and_a_cursor_stands_at_the_end() {
        let line = shown(&format!(r#"{{{COLUMNS},"type":"DELETE","old_record":{{"id":5}},"cursor":"0/1-2"}}"#));
        assert_eq!(line, "10:15:30.123Z  DELETE  public.notes  id=5  @0/1-2");
    }

    #[test]
    fn nothing_of_a_row_is_a_command_to_the_terminal() {
        let data =
            format!("{{{COLUMNS},\"type\":\"INSERT\",\"record\":{{\"id\":5,\"title\":\"\u{9b}2J\u{202e}\u{7f}\"}}}}");
        let line = shown(&data);
        assert!(line.ends_with(r#"title="\u{9b}2J\u{202e}\u{7f}""#), "{line}");
        let long = shown(&format!(r#"{{{COLUMNS},"type":"INSERT","record":{{"id":5,"title":"{}"}}}}"#, "ä".repeat(99)));
        assert!(long.ends_with(&format!("\"{}…", "ä".repeat(59))), "{long}");
    }

    #[test]
    fn a_change_of_an_unknown_shape_is_shown_as_it_is() {
        assert_eq!(shown("{\"a\":\n1}"), "{\"a\":\\u{a}1}");
        let raw = RawValue::from_string("{\"a\":\n\"x\\n\"}".into()).expect("JSON");
        assert_eq!(json(&raw), "{\"a\": \"x\\n\"}");
    }
}
