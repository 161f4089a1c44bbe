//! What ingest remembers of its slot from one start to the next, in the log's folder: whoever holds the folder's lock is the
//! only one who can have written it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::log::Log;

/// See the fields; what is absent was never known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Notes {
    /// The server's timeline when the log was last written.
    pub(super) timeline: Option<u32>,
    /// The publications of the stream by name, with their oids: one that was dropped and made again is another.
    pub(super) publications: BTreeMap<String, u32>,
    /// The session of ours that had the slot last.
    pub(super) reader: Option<Reader>,
    /// Tokens that `rowcast.lineage` may hold: first the last that was seen in the stream, then one on its way at most.
    pub(super) tokens: Vec<String>,
}

/// A session of the server, told from a later one with the same process id by its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reader {
    /// Process id on the server.
    pub(super) pid: i32,
    /// Microseconds since 1970 by the server's clock.
    pub(super) started: i64,
}

/// The cluster that the log is written from, by its system identifier, and its timeline; `None` before that is known.
pub fn written_from(log: &Log) -> Option<(u64, u32)> {
    Some((log.epoch()?.system_identifier, Notes::read(log.slot_notes()).timeline?))
}

impl Notes {
    /// What cannot be read counts as nothing known.
    pub(super) fn read(value: Value) -> Notes {
        serde_json::from_value(value).unwrap_or_default()
    }

    pub(super) fn write(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// The names of publications that are there under another oid than before.
    pub(super) fn replaced(&self, found: &BTreeMap<String, u32>) -> Vec<String> {
        let replaced = |(name, oid): &(&String, &u32)| self.publications.get(*name).is_some_and(|known| known != *oid);
        found.iter().filter(replaced).map(|(name, _)| name.clone()).collect()
    }

    /// Whether the database may be the one that the log was read from. Without any token known, it may.
    pub(super) fn expects(&self, token: &str) -> bool {
        self.tokens.is_empty() || self.tokens.iter().any(|known| known == token)
    }
}
