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

/// `kind column` of each, for comparing whole sequences: `["INSERT a", "DELETE b"]`.
pub(crate) fn summary(changes: &[Change], column: &str) -> Vec<String> {
    let text = |change: &Change| {
        let row = if change.kind() == "DELETE" { change.old_record() } else { change.record() };
        let value = &row[column];
        format!("{} {}", change.kind(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    changes.iter().map(text).collect()
}
