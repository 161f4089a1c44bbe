//! The stream: committed transactions out of Postgres's write-ahead log, whole and in commit order.
//!
//! ```text
//!  prepare        slot.rs      is the server fit, are the publications there; then the slot
//!  Stream         stream.rs    next() → Transaction | Idle(position); confirm(position); watchdog
//!    Session      client.rs    hosts, pinned settings, deadlines, over pgwire-replication
//!    Message      pgoutput.rs  bytes → messages; rows stay as they came
//!    Relations    relations.rs shapes by oid
//!    Assembler    assemble.rs  Begin … Commit → Transaction
//!    Spill        spill.rs     what is too large for memory goes through a nameless file
//!  heartbeat      heartbeat.rs a message of our own, so that an idle slot moves and the round trip can be measured
//!  WalError       error.rs     what failed, whether to retry, what a person should do
//! ```
//!
//! Invariants:
//! * Nothing is confirmed on this module's own initiative, and never more than it has returned: Postgres accepts a
//!   confirmation beyond what it sent and then silently skips what lies between.
//! * A position is the commit's *end* LSN. Confirming the commit's start would bring the transaction again.
//! * The slot is created only after its publications were seen. A publication that is younger than the slot poisons it:
//!   decoding uses the catalog as of each row.
//! * Memory is bounded by the spill threshold (twice), the event buffer and the largest message; never by a
//!   transaction.
//!
//! Rejected: protocol 2 and up with `streaming`, which delivers rows before their commit and asks us to forget them on
//! an abort; Postgres spills open transactions itself. Rejected: reading through SQL functions
//! (`pg_logical_slot_get_changes`), which loses what was read if we fail after it.

mod assemble;
mod backoff;
mod client;
mod error;
mod heartbeat;
mod pgoutput;
mod relations;
mod slot;
mod spill;
mod sqlstate;
mod stream;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod live_tests;

pub use backoff::Backoff;
pub use client::{probe, timelines};
pub use error::{Blocker, SlotFault, WalError};
pub use heartbeat::{HEARTBEAT_PREFIX, heartbeat};
pub use pgoutput::Malformed;
pub use slot::{SLOT_DEADLINE, SlotState, blockers, check, drop_slot, inspect, prepare};
pub use stream::{Received, Stream};

use std::path::PathBuf;
use std::time::Duration;

use crate::pg::PgConfig;

/// What the stream needs to know.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// Where the database is. Hosts, ports, socket directories, user, password and `options` come from here.
    pub pg: PgConfig,
    /// The replication slot: 1 to 63 of `a-z`, `0-9`, `_`.
    pub slot: String,
    /// The publications to read, by their unquoted names; at least one.
    pub publications: Vec<String>,
    /// Whether a slot that is made is one that standbys get a copy of, where the server can (17 and up). Off.
    pub failover: bool,
    /// How soon a confirmed position is sent to the server. 1 s.
    pub status_interval: Duration,
    /// For one host: to connect, log in and look at the session; and again for the start of the stream. 10 s.
    pub connect_timeout: Duration,
    /// A server that sent nothing for so long is taken for dead. 90 s. The session's `wal_sender_timeout` is set to two
    /// thirds of it, so that a living server, which asks after half of that, is heard three times in it. Only whole
    /// messages count, so the slowest link must carry the largest message in this time. Older servers say nothing while
    /// they decode a large transaction that has nothing to send (REFRESH MATERIALIZED VIEW); raise it if that takes
    /// longer.
    pub silence_timeout: Duration,
    /// Largest single message (a row, or a logical message) that is accepted. 256 MiB. A larger one stops the stream
    /// for good.
    pub max_message_bytes: usize,
    /// Messages read ahead. The bound is a number, not bytes, so in the worst case this many messages of the largest
    /// size. 1024.
    pub buffer_events: usize,
    /// Bytes of one transaction kept in memory before it goes to a file. 8 MiB.
    pub spill_threshold: usize,
    /// Where those files are made, nameless. Created with mode 0700 if absent.
    pub spill_dir: PathBuf,
}

impl WalConfig {
    /// The defaults named at the fields.
    pub fn new(pg: PgConfig, slot: impl Into<String>, publications: Vec<String>, spill_dir: PathBuf) -> WalConfig {
        WalConfig {
            pg,
            slot: slot.into(),
            publications,
            failover: false,
            status_interval: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(10),
            silence_timeout: Duration::from_secs(90),
            max_message_bytes: 256 << 20,
            buffer_events: 1024,
            spill_threshold: 8 << 20,
            spill_dir,
        }
    }

    /// Says what can't work. [`prepare`] and [`Stream::connect`] call it; a configuration loader may, to report it
    /// early.
    pub fn validate(&self) -> Result<(), WalError> {
        let bad = |text: String| Err(WalError::Config(text));
        let slot_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.slot.is_empty() || self.slot.len() > 63 || !self.slot.chars().all(slot_char) {
            return bad(format!("the slot name {:?} must be 1 to 63 of a-z, 0-9 and _", self.slot));
        }
        if self.publications.is_empty() {
            return bad("no publication is named".into());
        }
        // Postgres would cut a longer name and then not find it.
        if let Some(name) = self.publications.iter().find(|n| n.is_empty() || n.len() > 63 || n.contains('\0')) {
            return bad(format!("{name:?} can't be a publication's name (1 to 63 bytes)"));
        }
        let durations = [
            ("status interval", self.status_interval),
            ("connect timeout", self.connect_timeout),
            ("silence timeout", self.silence_timeout),
        ];
        if let Some((what, _)) = durations.iter().find(|(_, d)| *d < Duration::from_millis(10)) {
            return bad(format!("the {what} must be 10 ms at least"));
        }
        if self.max_message_bytes < 64 << 10 || self.buffer_events == 0 || self.spill_threshold == 0 {
            return bad(
                "the message limit must be 64 KiB at least, the buffer and the spill threshold above zero".into()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Fault as _, Remedy};

    fn config(slot: &str, publications: &[&str]) -> WalConfig {
        let pg = PgConfig::from_url("postgres://u@h/d").expect("url");
        WalConfig::new(pg, slot, publications.iter().map(|p| (*p).into()).collect(), "/nowhere".into())
    }

    #[test]
    fn what_cannot_work_is_refused_before_a_connection_is_made() {
        assert!(config("rowcast_1", &["a", "B,\"'"]).validate().is_ok());
        let long = "x".repeat(64);
        for bad in [
            config("", &["a"]),
            config("Upper", &["a"]),
            config("a b", &["a"]),
            config(&long, &["a"]),
            config("a", &[]),
            config("a", &[""]),
            config("a", &[&long]),
            WalConfig { buffer_events: 0, ..config("a", &["a"]) },
            WalConfig { silence_timeout: Duration::ZERO, ..config("a", &["a"]) },
        ] {
            let error = bad.validate().expect_err("refused");
            assert_eq!(error.remedy(), Remedy::Operator, "{error}");
        }
    }
}
