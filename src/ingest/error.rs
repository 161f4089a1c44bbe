//! What can go wrong between the stream and the log.

use std::time::Duration;

use crate::change::Lsn;
use crate::error::{Fault, Remedy};
use crate::log::LogError;
use crate::pg::PgError;
use crate::wal::{SlotFault, WalError};

/// A session that reads the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id on the server.
    pub pid: i32,
    /// When it began, in microseconds since 1970 by the server's clock; `None` if our role may not see it.
    pub started: Option<i64>,
    /// Who it is, such as ` (application rowcast, user relay, from 10.0.0.7, for 12 s)`; may be empty.
    pub detail: String,
}

/// Why changes are not streaming.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The stream, or what must be there before it.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The ordinary connection.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The table that says which history the slot belongs to.
    #[error("the history of slot {slot} can't be kept in rowcast.lineage")]
    Lineage {
        /// Our slot.
        slot: String,
        /// What the server said.
        #[source]
        source: PgError,
    },
    /// Something took too long on the ordinary connection.
    #[error("{what} took more than {after:?}")]
    Timeout {
        /// What did.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// Somebody else reads the slot.
    #[error("slot {slot} is read by another session, pid {}{}", holder.pid, holder.detail)]
    Taken {
        /// Our slot.
        slot: String,
        /// Who.
        holder: Holder,
    },
    /// A session of our own reads the slot although we no longer hear it, and does not end.
    #[error("slot {slot} is still held by our own session from before, pid {}{}", holder.pid, holder.detail)]
    OwnSession {
        /// Our slot.
        slot: String,
        /// That session.
        holder: Holder,
    },
    /// A publication of the stream was dropped and made again while it was streaming.
    #[error("publication {} was dropped and made again", names.join(", "))]
    PublicationReplaced {
        /// Which.
        names: Vec<String>,
    },
    /// Somebody else wrote what only the one who holds the slot may write.
    #[error("rowcast.lineage no longer says of slot {slot} what was written there")]
    LineageChanged {
        /// Our slot.
        slot: String,
    },
    /// What was committed on the ordinary connection did not come through the stream.
    #[error("what was written to the database at {written} is not in the stream, which has come to {streamed}")]
    TwoHistories {
        /// The end of WAL behind what was written.
        written: Lsn,
        /// Where the stream is.
        streamed: Lsn,
    },
    /// The server is being shut down; it waits for those who read from it.
    #[error("the server is shutting down")]
    ServerStops,
    /// The stream has come to where it may have other publications.
    #[error("the stream gets other publications")]
    Switching,
    /// Another relay used the slot between our look at it and our getting hold of it.
    #[error("the slot was moved by somebody else while we connected")]
    Moved,
    /// The two connections reached different servers.
    #[error("queries reach cluster {queries}, but the stream comes from cluster {stream}")]
    TwoServers {
        /// System identifier on the ordinary connection.
        queries: u64,
        /// System identifier on the replication connection.
        stream: u64,
    },
    /// The log can't be written, and as much waits for it in memory as may.
    #[error("the log can't be written and {bytes} bytes wait for it, so the stream was closed")]
    BufferFull {
        /// Bytes that waited.
        bytes: usize,
        /// Why the log can't be written.
        #[source]
        source: LogError,
    },
    /// It did not work for as long as a start may take.
    #[error("changes were not streaming within {after:?}")]
    Startup {
        /// The limit.
        after: Duration,
        /// The last attempt's error.
        #[source]
        source: Box<IngestError>,
    },
}

impl IngestError {
    /// The server can't decode the next row: a publication is missing as of that row, or two have different columns. It is
    /// decoded by the catalog as of then, so no repair helps.
    pub(super) fn is_undecodable(&self, slot: &str) -> bool {
        matches!(self, IngestError::Wal(error @ WalError::Server { message, .. })
            if matches!(error.sqlstate(), Some("42704" | "0A000")) && !message.contains(&format!("\"{slot}\"")))
    }

    /// The server does not let anybody in any more.
    pub(super) fn is_of_a_shutdown(&self) -> bool {
        let state = match self {
            IngestError::Pg(error) | IngestError::Lineage { source: error, .. } => error.sqlstate().map(|s| s.code()),
            IngestError::Wal(error) => error.sqlstate(),
            _ => None,
        };
        state == Some("57P03")
    }

    /// It is somebody else's turn, or his to end: however long that takes, a start goes on waiting.
    pub(super) fn is_waiting_for_others(&self) -> bool {
        let wal = matches!(
            self,
            IngestError::Wal(
                WalError::SlotBlocked { .. } | WalError::SlotUnusable { fault: SlotFault::InCreation(_), .. }
            )
        );
        wal || matches!(self, IngestError::Taken { .. } | IngestError::OwnSession { .. } | IngestError::Moved)
            || matches!(self, IngestError::Wal(error) if error.sqlstate() == Some("55006"))
    }
}

impl Fault for IngestError {
    fn remedy(&self) -> Remedy {
        match self {
            IngestError::Wal(error) => error.remedy(),
            IngestError::Pg(error) => error.remedy(),
            IngestError::Log(error) => error.remedy(),
            IngestError::Lineage { source, .. } => source.remedy(),
            IngestError::Timeout { .. }
            | IngestError::Moved
            | IngestError::Taken { .. }
            | IngestError::OwnSession { .. }
            | IngestError::PublicationReplaced { .. }
            | IngestError::LineageChanged { .. }
            | IngestError::TwoHistories { .. }
            | IngestError::ServerStops
            | IngestError::Switching
            | IngestError::TwoServers { .. }
            | IngestError::BufferFull { .. } => Remedy::Retry,
            IngestError::Startup { .. } => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            IngestError::Wal(error) => error.advice(),
            IngestError::Pg(error) => error.advice(),
            IngestError::Log(error) => error.advice(),
            IngestError::Lineage { source, .. } if source.remedy() == Remedy::Retry => String::new(),
            IngestError::Lineage { .. } => "Run `rowcast migrate up` as the owner of the database, and let the relay's role read \
                                            and write rowcast.lineage."
                .into(),
            IngestError::Taken { slot, .. } => format!(
                "If it is a second relay, all is well: this one takes over when that one ends. Otherwise find out who it is, or give \
                 this relay a slot of its own (ROWCAST_SLOT); `SELECT pg_terminate_backend(pid)` ends a session that nobody needs. \
                 Look: `SELECT * FROM pg_replication_slots WHERE slot_name = '{slot}'`."
            ),
            IngestError::OwnSession { holder, .. } => {
                format!("It was told to end. If that lasts, `SELECT pg_terminate_backend({})` as a superuser.", holder.pid)
            }
            IngestError::PublicationReplaced { .. } => {
                "Change a publication with ALTER PUBLICATION; never drop one that a slot reads.".into()
            }
            IngestError::LineageChanged { .. } => {
                "Find out who writes there: only the relay that holds the slot may, and sql/slot_drop_and_rebuild.sql.".into()
            }
            IngestError::TwoHistories { .. } | IngestError::TwoServers { .. } => "Name one server in DATABASE_URL, not a balancer in front of several.".into(),
            IngestError::BufferFull { source, .. } => source.advice(),
            IngestError::Startup { source, .. } => match source.advice() {
                advice if advice.is_empty() => {
                    "Check that the server runs and can be reached from here; ROWCAST_STARTUP_TIMEOUT is how long to wait for it."
                        .into()
                }
                advice => advice,
            },
            IngestError::Timeout { .. } | IngestError::Moved | IngestError::ServerStops | IngestError::Switching => {
                String::new()
            },
        }
    }
}
