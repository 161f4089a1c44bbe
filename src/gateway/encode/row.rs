//! The `data` object of a change (`protocol.md` §4.3): what the permit shows of it, and nothing else.
//!
//! What a relation's rows have in common is written once ([`RowShape`]); a row then is copies of prepared keys and of its own
//! text, in one pass.
//!
//! Invariants:
//! * A column that was not sent is left out, never written as null. An unchanged TOAST value is taken from a full old row.
//! * Of a key-only old row, and of an old row made up from the new one, only identity columns are written.

use crate::change::{Change, OldRow, Relation, RowChange, Timestamp, Tuple, Value};
use crate::pgtype::{JsonKind, Types, json_kind, type_name, write_json, write_json_string};
use crate::policy::{ColumnMask, Permit};

/// Above this a record is cut to its short columns; Supabase's `poll_max_record_bytes`.
pub const DEFAULT_MAX_RECORD_BYTES: usize = 1_048_576;
/// What a cut record keeps: values whose JSON is at most this long.
const SHORT_VALUE_BYTES: usize = 64;
/// No text of this size becomes short JSON, so a cut record doesn't format it to find out.
const SURELY_LONG_BYTES: usize = 64 * SHORT_VALUE_BYTES;

struct Column {
    /// `,"name":`
    key: Box<[u8]>,
    /// `{"name":"…","type":"…"}`
    description: Box<[u8]>,
    kind: JsonKind,
    identity: bool,
}

/// What all rows of a relation have in common, prepared once per (relation, types).
pub struct RowShape {
    /// `{"schema":"…","table":"…","type":"`
    head: Box<[u8]>,
    columns: Box<[Column]>,
    /// All descriptions with their commas.
    descriptions: Box<[u8]>,
    /// What a row takes beside its values, for the size limit and for reserving.
    overhead: usize,
    max_record_bytes: usize,
}

impl RowShape {
    /// Prepares a relation as of these types.
    pub fn new(relation: &Relation, types: &Types) -> RowShape {
        let mut head = br#"{"schema":"#.to_vec();
        write_json_string(relation.schema.as_bytes(), &mut head);
        head.extend_from_slice(br#","table":"#);
        write_json_string(relation.table.as_bytes(), &mut head);
        head.extend_from_slice(br#","type":""#);
        let columns: Box<[Column]> = relation
            .columns
            .iter()
            .map(|column| {
                let mut name = Vec::new();
                write_json_string(column.name.as_bytes(), &mut name);
                let mut description = [br#"{"name":"#, &name[..], br#","type":"#].concat();
                write_json_string(type_name(types, column.type_oid).as_bytes(), &mut description);
                description.push(b'}');
                let key = [b",", &name[..], b":"].concat();
                Column {
                    key: key.into_boxed_slice(),
                    description: description.into_boxed_slice(),
                    kind: json_kind(types, column.type_oid),
                    identity: column.key,
                }
            })
            .collect();
        let descriptions =
            columns.iter().map(|c| &c.description[..]).collect::<Vec<_>>().join(&b',').into_boxed_slice();
        let overhead = head.len() + descriptions.len() + columns.iter().map(|c| c.key.len() + 3).sum::<usize>();
        RowShape {
            head: head.into_boxed_slice(),
            columns,
            descriptions,
            overhead,
            max_record_bytes: DEFAULT_MAX_RECORD_BYTES,
        }
    }

    /// With another size limit, in bytes.
    pub fn max_record_bytes(mut self, bytes: usize) -> RowShape {
        self.max_record_bytes = bytes;
        self
    }

    /// About the length of the change's JSON if everything were shown. The limit looks at this and not at what a permit
    /// shows: otherwise the cut would tell one user about the size of columns that only others may read.
    fn estimate(&self, change: &Change) -> usize {
        let values = |tuple: &Tuple| -> usize {
            let size = |value| if let Value::Text(text) = value { text.len() } else { 4 };
            tuple.values().map(size).sum()
        };
        let both = match change {
            Change::Insert { new } => values(new),
            Change::Update { new, old } => values(new) + old.as_ref().map_or(0, |old| values(old.tuple())),
            Change::Delete { old } => values(old.tuple()),
        };
        self.overhead + both
    }

    fn write_columns(&self, shown: &ColumnMask, out: &mut Vec<u8>) {
        if (0..self.columns.len()).all(|i| shown.contains(i)) {
            out.extend_from_slice(&self.descriptions);
            return;
        }
        let visible = self.columns.iter().enumerate().filter(|(i, _)| shown.contains(*i));
        for (nth, (_, column)) in visible.enumerate() {
            if nth > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&column.description);
        }
    }

    /// `{"key":value,…}` of the columns for which there is a value.
    fn write_record<'a>(&self, cut: bool, value: impl Fn(usize, &Column) -> Value<'a>, out: &mut Vec<u8>) {
        out.push(b'{');
        let mut first = true;
        for (index, column) in self.columns.iter().enumerate() {
            let value = value(index, column);
            if matches!(value, Value::Unchanged) || (cut && !is_short(value, &column.kind)) {
                continue;
            }
            out.extend_from_slice(&column.key[usize::from(first)..]);
            first = false;
            match value {
                Value::Text(text) if !is_not_finite(&column.kind, text) => write_json(&column.kind, text, out),
                Value::Text(_) | Value::Null | Value::Unchanged => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
    }
}

/// A column's own `NaN` or infinity is null, as from the engine that clients know (`protocol.md` §6.10): their typed decoders
/// take a number or nothing. Inside of an array or a record it stays the string that `to_jsonb` makes of it.
fn is_not_finite(kind: &JsonKind, text: &[u8]) -> bool {
    *kind == JsonKind::Number && matches!(text, b"NaN" | b"Infinity" | b"-Infinity")
}

/// Whether a cut record keeps the value. NULL goes too: its length is unknown to the engine that clients know.
fn is_short(value: Value<'_>, kind: &JsonKind) -> bool {
    let Value::Text(text) = value else { return false };
    if text.len() > SURELY_LONG_BYTES {
        return false;
    }
    let mut json = Vec::new();
    write_json(kind, text, &mut json);
    json.len() <= SHORT_VALUE_BYTES
}

/// The change's place in the stream, as it is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    /// The text of its cursor: letters, digits, `-` and `_`. `None` if it has none.
    pub cursor: Option<&'a str>,
    /// The name under which the record carries it too. A column of that name that is shown goes first.
    pub cursor_as: Option<&'a str>,
    /// It is none: the row is of a snapshot.
    pub snapshot: bool,
}

/// Appends the `data` object of the change as far as the permit shows it.
pub fn write_data(
    shape: &RowShape,
    change: &RowChange,
    commit_time: Timestamp,
    place: Place<'_>,
    permit: &Permit,
    out: &mut Vec<u8>,
) {
    write_shown(shape, &change.change, commit_time, place, permit.new_columns(), permit.old_columns(), out);
}

fn write_shown(
    shape: &RowShape,
    change: &Change,
    commit_time: Timestamp,
    place: Place<'_>,
    shown_new: &ColumnMask,
    shown_old: &ColumnMask,
    out: &mut Vec<u8>,
) {
    let (name, shown) = match change {
        Change::Insert { .. } => ("INSERT", shown_new),
        Change::Update { .. } => ("UPDATE", shown_new),
        Change::Delete { .. } => ("DELETE", shown_new),
    };
    let size = shape.estimate(change);
    let cut = size > shape.max_record_bytes;
    // Some text grows when it is escaped; most doesn't.
    out.reserve(256 + if cut { shape.overhead } else { size + size / 8 });
    out.extend_from_slice(&shape.head);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(br#"","commit_timestamp":""#);
    write_timestamp(commit_time, out);
    out.extend_from_slice(br#"","columns":["#);
    shape.write_columns(shown, out);
    out.push(b']');
    match change {
        Change::Insert { new } => {
            write_new(shape, cut, new, None, shown_new, out);
            write_within(shape, place, shown_new, out);
        }
        Change::Update { new, old } => {
            write_new(shape, cut, new, old.as_ref(), shown_new, out);
            write_within(shape, place, shown_new, out);
            // No old row means that the identity has not changed, so the new row has it.
            let (tuple, identity_only) = match old {
                Some(OldRow::Full(tuple)) => (tuple, false),
                Some(OldRow::KeyOnly(tuple)) => (tuple, true),
                None => (new, true),
            };
            write_old(shape, cut, tuple, identity_only, shown_old, out);
        }
        Change::Delete { old } => {
            write_old(shape, cut, old.tuple(), matches!(old, OldRow::KeyOnly(_)), shown_old, out);
            write_within(shape, place, shown_old, out);
        }
    }
    let errors: &[u8] = if cut { br#","errors":["Error 413: Payload Too Large"]"# } else { br#","errors":null"# };
    out.extend_from_slice(errors);
    if place.snapshot {
        out.extend_from_slice(br#","snapshot":true"#);
    }
    if let Some(cursor) = place.cursor {
        out.extend_from_slice(br#","cursor":""#);
        out.extend_from_slice(cursor.as_bytes());
        out.push(b'"');
    }
    out.push(b'}');
}

/// Adds the cursor to the record that was just written.
fn write_within(shape: &RowShape, place: Place<'_>, shown: &ColumnMask, out: &mut Vec<u8>) {
    let (Some(cursor), Some(name)) = (place.cursor, place.cursor_as) else { return };
    let mut key = Vec::with_capacity(name.len() + 4);
    key.push(b',');
    write_json_string(name.as_bytes(), &mut key);
    key.push(b':');
    if shape.columns.iter().enumerate().any(|(index, column)| *column.key == *key && shown.contains(index)) {
        return;
    }
    // The record's closing brace.
    out.pop();
    let first = out.last() == Some(&b'{');
    out.extend_from_slice(&key[usize::from(first)..]);
    out.push(b'"');
    out.extend_from_slice(cursor.as_bytes());
    out.extend_from_slice(b"\"}");
}

fn write_new(shape: &RowShape, cut: bool, new: &Tuple, old: Option<&OldRow>, shown: &ColumnMask, out: &mut Vec<u8>) {
    let fill = match old {
        Some(OldRow::Full(old)) => Some(old),
        _ => None,
    };
    out.extend_from_slice(br#","record":"#);
    let value = |index, _: &Column| match (shown.contains(index), new.get(index)) {
        (false, _) => Value::Unchanged,
        (true, Value::Unchanged) => fill.map_or(Value::Unchanged, |old| old.get(index)),
        (true, value) => value,
    };
    shape.write_record(cut, value, out);
}

fn write_old(shape: &RowShape, cut: bool, tuple: &Tuple, identity_only: bool, shown: &ColumnMask, out: &mut Vec<u8>) {
    out.extend_from_slice(br#","old_record":"#);
    let value = |index, column: &Column| {
        let real = shown.contains(index) && (column.identity || !identity_only);
        if real { tuple.get(index) } else { Value::Unchanged }
    };
    shape.write_record(cut, value, out);
}

/// `YYYY-MM-DDTHH:MM:SS.mmmZ`, cut to milliseconds.
fn write_timestamp(time: Timestamp, out: &mut Vec<u8>) {
    let millis = time.unix_micros().div_euclid(1000);
    let (days, of_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    let (year, month, day) = civil_from_days(days);
    // A commit outside these years is a clock gone mad; the form stays what clients parse.
    let year = year.clamp(0, 9999) as u32;
    // Each is below its unit, so it fits.
    let of_day = of_day as u32;
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut pair = |at: usize, value: u32| {
        text[at] += (value / 10) as u8;
        text[at + 1] += (value % 10) as u8;
    };
    pair(0, year / 100);
    pair(2, year % 100);
    pair(5, month);
    pair(8, day);
    pair(11, seconds / 3600);
    pair(14, seconds / 60 % 60);
    pair(17, seconds % 60);
    pair(20, millis / 10);
    text[22] += (millis % 10) as u8;
    out.extend_from_slice(&text);
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant's algorithm).
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097) as u32);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + i64::from(year_of_era) + i64::from(month <= 2), month, day)
}

#[cfg(test)]
#[path = "row_tests.rs"]
mod tests;
