//! Why a relay did not start, or stopped by itself.

use std::io;
use std::path::PathBuf;

use crate::admin::AdminError;
use crate::claims::KeySetError;
use crate::error::{Fault, Remedy};
use crate::gateway::{BindError, TlsError};
use crate::hub::HubError;
use crate::ingest::IngestError;
use crate::log::LogError;
use crate::migrate::MigrateError;
use crate::pg::PgError;
use crate::resume::KeyError;
use crate::wal::WalError;

/// See the variants.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The clients' port.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificate for clients.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The admin port.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The log folder.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The data folder.
    #[error("cannot make the data folder {}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// From the operating system.
        #[source]
        source: io::Error,
    },
    /// The key of cursors.
    #[error(transparent)]
    CursorKey(#[from] KeyError),
    /// The database.
    #[error(transparent)]
    Pg(#[from] PgError),
    /// The server is not fit.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// Our own objects could not be made.
    #[error(transparent)]
    Migrate(#[from] MigrateError),
    /// The database lacks something.
    #[error("the database lacks {}", missing.join(", "))]
    Missing {
        /// Each, such as `publication supabase_realtime`.
        missing: Vec<String>,
    },
    /// The database did not become usable in time.
    #[error("the database could not be used within {after:?}")]
    Unreachable {
        /// The limit.
        after: std::time::Duration,
        /// The last attempt's error.
        #[source]
        source: Box<AppError>,
    },
    /// The issuer's keys, without which nobody could be let in.
    #[error(transparent)]
    Keys(#[from] KeySetError),
    /// The stream.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A part that must not end has ended.
    #[error("the {0} ended by itself")]
    Ended(&'static str),
    /// A part has panicked; the panic was printed.
    #[error("the {0} panicked")]
    Panicked(&'static str),
    /// It did not stream in time.
    #[error("the relay is not ready after {0:?}")]
    NotReady(std::time::Duration),
}

impl Fault for AppError {
    fn remedy(&self) -> Remedy {
        match self {
            AppError::Bind(error) => error.remedy(),
            AppError::Tls(error) => error.remedy(),
            AppError::Admin(error) => error.remedy(),
            AppError::Log(error) => error.remedy(),
            AppError::CursorKey(error) => error.remedy(),
            AppError::Pg(error) => error.remedy(),
            AppError::Wal(error) => error.remedy(),
            AppError::Migrate(error) => error.remedy(),
            AppError::Ingest(error) => error.remedy(),
            AppError::Hub(error) => error.remedy(),
            // It was tried for as long as it should be.
            AppError::Keys(_) | AppError::DataDir { .. } | AppError::Missing { .. } | AppError::Unreachable { .. } => {
                Remedy::Operator
            }
            AppError::NotReady(_) => Remedy::Retry,
            AppError::Ended(_) | AppError::Panicked(_) => Remedy::Bug,
        }
    }

    fn advice(&self) -> String {
        match self {
            AppError::Bind(error) => error.advice(),
            AppError::Tls(error) => error.advice(),
            AppError::Admin(error) => error.advice(),
            AppError::Log(error) => error.advice(),
            AppError::CursorKey(error) => error.advice(),
            AppError::Pg(error) => error.advice(),
            AppError::Wal(error) => error.advice(),
            AppError::Migrate(error) => error.advice(),
            AppError::Ingest(error) => error.advice(),
            AppError::Hub(error) => error.advice(),
            AppError::Keys(error) => error.advice(),
            AppError::DataDir { .. } => "Set ROWCAST_DATA_DIR to a folder that this user may write to.".into(),
            AppError::Missing { .. } => "Run `rowcast migrate up` once with the rights of the database's owner (or start \
                                         with --migrate), or set ROWCAST_PUBLICATION to publications that exist."
                .into(),
            AppError::Unreachable { source, .. } => match source.advice() {
                advice if advice.is_empty() => {
                    "Check host and port in DATABASE_URL and that the server runs; ROWCAST_STARTUP_TIMEOUT is how long to \
                     wait for it."
                        .into()
                }
                advice => advice,
            },
            AppError::Ended(_) | AppError::Panicked(_) => "Please report this with the lines above.".into(),
            AppError::NotReady(_) => String::new(),
        }
    }
}
