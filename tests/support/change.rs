//! A change as a client received it.

use serde_json::Value;

/// One `postgres_changes` event, or one call of a stock client's callback.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// Without `realtime:`.
    pub(crate) topic: String,
    /// `ids` of the frame; of a stock client, the index of the entry whose callback was called.
    pub(crate) ids: Vec<i64>,
    /// `data` of the frame. JavaScript applications don't see `columns`.
    pub(crate) data: Value,
    /// The same as it was sent, byte for byte; empty of a stock client.
    pub(crate) text: String,
}

impl Change {
    /// `INSERT`, `UPDATE` or `DELETE`.
    pub(crate) fn kind(&self) -> &str {
        self.data["type"].as_str().unwrap_or_default()
    }

    pub(crate) fn table(&self) -> &str {
        self.data["table"].as_str().unwrap_or_default()
    }

    /// `record`; null if there is none.
    pub(crate) fn record(&self) -> &Value {
        &self.data["record"]
    }

    /// `old_record`; null if there is none.
    pub(crate) fn old_record(&self) -> &Value {
        &self.data["old_record"]
    }

    /// Whether this is the row of `marks` with this note.
    pub(crate) fn is_mark(&self, note: &str) -> bool {
        self.table() == "marks" && self.record()["note"] == note
    }
}

/// A frame's payload, or a `data`, without the `cursor` that we add to what the protocol has. It has one, of the right form.
#[track_caller]
pub(crate) fn without_cursor(mut payload: Value) -> Value {
    let cursor = payload.as_object_mut().and_then(|payload| payload.remove("cursor"));
    let text = cursor.as_ref().and_then(Value::as_str).unwrap_or_else(|| panic!("no cursor: {payload}"));
    assert_eq!(text.len(), 55, "{text}");
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')), "{text}");
    payload
}

/// `kind column` of each, for comparing whole sequences: `["INSERT a", "DELETE b"]`.
pub(crate) fn summary(changes: &[Change], column: &str) -> Vec<String> {
    let text = |change: &Change| {
        let row = if change.kind() == "DELETE" { change.old_record() } else { change.record() };
        let value = &row[column];
        format!("{} {}", change.kind(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    changes.iter().map(text).collect()
}
