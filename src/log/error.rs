//! What can go wrong with the log, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Fault, Remedy};

/// Why the log can't be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process (or another part of this one) owns the folder.
    #[error("the log folder {dir} is in use by {}", holder_text(*holder))]
    Locked {
        /// The folder.
        dir: PathBuf,
        /// Process id of the owner, if the lock file tells.
        holder: Option<u32>,
    },
    /// The file system refused. `StorageFull` is the usual one.
    #[error("cannot {action} {path}")]
    Io {
        /// What was being done, as a verb: `append to`.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Bytes that were durable once are not what was written.
    #[error("the log is damaged: {path} at byte {offset}: {what}")]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the damaged record or header begins.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// A segment of a format that this version doesn't know.
    #[error("{path} has log format {found}; this version reads format {known}")]
    Version {
        /// The segment.
        path: PathBuf,
        /// The version in its header.
        found: u16,
        /// The version we write.
        known: u16,
    },
    /// Nothing can be written before [`super::LogWriter::begin_epoch`].
    #[error("the log has no epoch yet")]
    NoEpoch,
    /// An fsync or the removal of a half-written record failed earlier; see [`super::LogWriter::repair`].
    #[error("the log refuses to go on after a failed write until it is repaired")]
    NeedsRepair,
    /// The spilled body of a transaction can't be read, or isn't as long as it says.
    #[error("cannot read the spilled transaction to append it")]
    Spill(#[source] io::Error),
    /// A transaction that the format can't express.
    #[error("the transaction can't be stored: {0}")]
    Unstorable(&'static str),
    /// A blocking read ended without an answer.
    #[error("the log read was aborted")]
    Aborted,
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl LogError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
        move |source| LogError::Io { action, path: path.to_owned(), source }
    }

    /// Whether the disk (or the quota) is full.
    pub fn is_full(&self) -> bool {
        matches!(self, LogError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl Fault for LogError {
    fn remedy(&self) -> Remedy {
        match self {
            LogError::Locked { .. } | LogError::Damaged { .. } | LogError::Version { .. } => Remedy::Operator,
            LogError::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory => {
                    Remedy::Operator
                }
                _ => Remedy::Retry,
            },
            LogError::NeedsRepair | LogError::Spill(_) | LogError::Aborted => Remedy::Retry,
            LogError::NoEpoch | LogError::Unstorable(_) => Remedy::Bug,
        }
    }

    fn advice(&self) -> String {
        match self {
            LogError::Locked { .. } => {
                "Stop the other relay, or give this one a data folder of its own: one folder has one owner.".into()
            }
            LogError::Io { .. } if self.is_full() => {
                "Make room on the disk or lower the log's size limit; writing goes on by itself then. \
                 The replication slot keeps what was not stored."
                    .into()
            }
            LogError::Damaged { path, .. } => format!(
                "Restore {} from a copy if there is one. Otherwise move the log folder away: the relay then starts a new \
                 history, and clients who were not up to date are told of a gap. Check the disk.",
                path.display()
            ),
            LogError::Version { .. } => {
                "Run the version that wrote this folder, or move the log folder away to start a new history.".into()
            }
            _ => String::new(),
        }
    }
}
