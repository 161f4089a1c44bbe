//! What can go wrong between the stream and the log.

use std::time::Duration;

use crate::error::{Fault, Remedy};
use crate::log::LogError;
use crate::pg::PgError;
use crate::wal::WalError;

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

impl Fault for IngestError {
    fn remedy(&self) -> Remedy {
        match self {
            IngestError::Wal(error) => error.remedy(),
            IngestError::Pg(error) => error.remedy(),
            IngestError::Log(error) => error.remedy(),
            IngestError::Lineage { source, .. } => source.remedy(),
            IngestError::Timeout { .. }
            | IngestError::Moved
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
            IngestError::TwoServers { .. } => "Name one server in DATABASE_URL, not a balancer in front of several.".into(),
            IngestError::BufferFull { source, .. } => source.advice(),
            IngestError::Startup { source, .. } => match source.advice() {
                advice if advice.is_empty() => {
                    "Check that the server runs and can be reached from here; ROWCAST_STARTUP_TIMEOUT is how long to wait for it."
                        .into()
                }
                advice => advice,
            },
            IngestError::Timeout { .. } | IngestError::Moved => String::new(),
        }
    }
}
