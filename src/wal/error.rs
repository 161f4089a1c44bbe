//! Why the stream could not be prepared, started or read.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pgwire_replication::PgWireError;

use crate::change::Lsn;
use crate::error::{Fault, Remedy};
use crate::pg::PgError;

use super::pgoutput::Malformed;
use super::sqlstate;

/// See the variants; each knows its remedy and, through [`Fault::advice`], what to do.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The configuration can't work.
    #[error("{0}")]
    Config(String),
    /// A host could not be reached, or the connection broke.
    #[error("the replication connection to {host} failed")]
    Connection {
        /// Host and port, or the socket directory.
        host: String,
        /// From the operating system.
        #[source]
        source: Arc<io::Error>,
    },
    /// Something took too long.
    #[error("{what} took more than {after:?}")]
    Timeout {
        /// What did.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// The server sent nothing, though it was due to.
    #[error("the server sent nothing for {0:?}; the connection is taken for dead")]
    Silence(Duration),
    /// The server said no on the replication connection.
    #[error("{message}{}", code_suffix(.code.as_deref()))]
    Server {
        /// Its words.
        message: String,
        /// SQLSTATE.
        code: Option<String>,
        /// Our slot, for the advice.
        slot: String,
    },
    /// The two sides could not agree on how to log in, or the server could not prove that it knows the password.
    #[error("logging in failed: {0}")]
    Authentication(String),
    /// A pinned setting did not take, so values would be written differently.
    #[error("the session has {name} = {found:?} although {wanted:?} was asked for")]
    Pinned {
        /// The setting.
        name: String,
        /// Its value in the session.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// The server is a standby.
    #[error("the server is a standby")]
    Standby,
    /// The server's version is too old.
    #[error("the server's version is {0}; 14 or newer is needed")]
    Version(String),
    /// Not set up for logical decoding.
    #[error("wal_level is {0}, not logical")]
    WalLevel(String),
    /// The role may not read the stream.
    #[error("role {0} has no replication right")]
    NotReplication(String),
    /// Publications are missing.
    #[error("database {database} has no publication {}", list(.names))]
    PublicationMissing {
        /// The missing ones.
        names: Vec<String>,
        /// Where they were looked for.
        database: String,
    },
    /// Publications contradict each other, which would make the slot unreadable at the first row.
    #[error("the publications have different column lists for {}", list(.tables))]
    ColumnLists {
        /// `schema.table`.
        tables: Vec<String>,
    },
    /// The slot is there but can't be ours.
    #[error("slot {slot} {fault}")]
    SlotUnusable {
        /// Its name.
        slot: String,
        /// Why.
        fault: SlotFault,
    },
    /// Making the slot had to wait for older transactions, too long.
    #[error("making slot {slot} waited {waited:?} for transactions that were open before{}", named(.blockers))]
    SlotBlocked {
        /// Its name.
        slot: String,
        /// How long.
        waited: Duration,
        /// Who held it up, oldest first; empty if they ended meanwhile.
        blockers: Vec<Blocker>,
    },
    /// We hold positions that this server has not written yet: it is another history.
    #[error("position {start} was asked for, but the server has written only up to {written}")]
    Ahead {
        /// Ours.
        start: Lsn,
        /// The server's flush position.
        written: Lsn,
    },
    /// An ordinary query failed.
    #[error(transparent)]
    Query(#[from] PgError),
    /// The stream breaks the rules of pgoutput.
    #[error("the stream is malformed")]
    Malformed(#[from] Malformed),
    /// The connection does not speak the protocol.
    #[error("protocol error on the replication connection: {0}")]
    Protocol(String),
    /// A row or message over the limit.
    #[error("a message of {bytes} bytes is over the limit of {limit}")]
    MessageTooLarge {
        /// Announced.
        bytes: usize,
        /// Accepted.
        limit: usize,
    },
    /// The spill file could not be made or written.
    #[error("cannot write a large transaction to {}", .dir.display())]
    Spill {
        /// The directory.
        dir: PathBuf,
        /// From the operating system.
        #[source]
        source: io::Error,
    },
    /// The stream is over: the server closed it, or an error was returned before.
    #[error("the stream has ended")]
    Ended,
}

/// Why an existing slot can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotFault {
    /// A physical slot.
    Physical,
    /// It decodes with this plugin.
    Plugin(String),
    /// It belongs to this database.
    Database(String),
    /// It would vanish with the session that made it.
    Temporary,
    /// It sends prepared transactions, which may still be rolled back.
    TwoPhase,
    /// Its WAL is gone, for this reason as the server states it.
    Lost(String),
    /// Another session (its pid) is still making it.
    InCreation(Option<i32>),
}

impl fmt::Display for SlotFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotFault::Physical => f.write_str("is a physical one"),
            SlotFault::Plugin(plugin) => write!(f, "decodes with {plugin}, not pgoutput"),
            SlotFault::Database(database) => write!(f, "belongs to database {database}"),
            SlotFault::Temporary => f.write_str("is temporary"),
            SlotFault::TwoPhase => f.write_str("has two_phase on"),
            SlotFault::Lost(reason) => write!(f, "has lost WAL that it needs ({reason})"),
            SlotFault::InCreation(Some(pid)) => write!(f, "is still being made by pid {pid}"),
            SlotFault::InCreation(None) => f.write_str("is still being made"),
        }
    }
}

/// A transaction that the making of a slot must wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The session; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Of a prepared transaction.
    pub gid: Option<String>,
    /// As `pg_stat_activity` shows it to us: state, user, age.
    pub detail: String,
}

fn named(blockers: &[Blocker]) -> String {
    let each = blockers.iter().map(|b| match (b.pid, &b.gid) {
        (Some(pid), _) => format!("pid {pid}{}", b.detail),
        (None, Some(gid)) => format!("prepared transaction '{gid}'"),
        (None, None) => "a prepared transaction".into(),
    });
    let all: Vec<String> = each.collect();
    if all.is_empty() { String::new() } else { format!(": {}", all.join(", ")) }
}

fn list(names: &[String]) -> String {
    names.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ")
}

fn code_suffix(code: Option<&str>) -> String {
    code.map(|code| format!(" (SQLSTATE {code})")).unwrap_or_default()
}

impl WalError {
    /// From the library; `host` and `slot` are for the text.
    pub(super) fn library(error: PgWireError, host: &str, slot: &str) -> WalError {
        match error {
            PgWireError::Io(source) => WalError::Connection { host: host.into(), source },
            PgWireError::Server(text) => {
                let (message, code) = sqlstate::split(&text);
                WalError::Server { message: message.into(), code: code.map(Into::into), slot: slot.into() }
            }
            PgWireError::Auth(text) => WalError::Authentication(text),
            PgWireError::MessageTooLarge { payload_bytes, limit_bytes } => {
                WalError::MessageTooLarge { bytes: payload_bytes, limit: limit_bytes }
            }
            other => WalError::Protocol(other.to_string()),
        }
    }

    /// The server's code, if a server answered.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            WalError::Server { code, .. } => code.as_deref(),
            WalError::Query(error) => error.sqlstate().map(|state| state.code()),
            _ => None,
        }
    }

    /// The value of the label `kind` of `stream_errors`.
    pub fn label(&self) -> &'static str {
        match self {
            WalError::Config(_) => "config",
            WalError::Connection { .. } => "connection",
            WalError::Timeout { .. } => "timeout",
            WalError::Silence(_) => "silence",
            WalError::Server { code, .. } => sqlstate::label(code.as_deref()),
            WalError::Authentication(_) => "authentication",
            WalError::Pinned { .. } => "settings",
            WalError::Standby => "standby",
            WalError::Version(_) => "version",
            WalError::WalLevel(_) => "wal_level",
            WalError::NotReplication(_) => "permission",
            WalError::PublicationMissing { .. } => "publication_missing",
            WalError::ColumnLists { .. } => "column_lists",
            WalError::SlotUnusable { fault: SlotFault::Lost(_), .. } => "slot_lost",
            WalError::SlotUnusable { .. } => "slot_unusable",
            WalError::SlotBlocked { .. } => "slot_blocked",
            WalError::Ahead { .. } => "ahead",
            WalError::Query(_) => sqlstate::label(self.sqlstate()),
            WalError::Malformed(_) => "malformed",
            WalError::Protocol(_) => "protocol",
            WalError::MessageTooLarge { .. } => "message_too_large",
            WalError::Spill { .. } => "spill",
            WalError::Ended => "ended",
        }
    }
}

impl Fault for WalError {
    fn remedy(&self) -> Remedy {
        match self {
            WalError::Connection { .. }
            | WalError::Timeout { .. }
            | WalError::Silence(_)
            | WalError::Standby
            | WalError::SlotUnusable { fault: SlotFault::InCreation(_), .. }
            | WalError::SlotBlocked { .. }
            // A broken frame is the line's fault; a new connection starts clean.
            | WalError::Protocol(_)
            | WalError::Malformed(Malformed::TooManyRelations(_))
            | WalError::Spill { .. }
            | WalError::Ended => Remedy::Retry,
            WalError::Server { code, .. } => sqlstate::remedy(code.as_deref()),
            WalError::Query(error) => error.remedy(),
            WalError::Config(_)
            | WalError::Authentication(_)
            | WalError::Pinned { .. }
            | WalError::Version(_)
            | WalError::WalLevel(_)
            | WalError::NotReplication(_)
            | WalError::PublicationMissing { .. }
            | WalError::ColumnLists { .. }
            | WalError::SlotUnusable { .. }
            | WalError::Ahead { .. }
            | WalError::MessageTooLarge { .. } => Remedy::Operator,
            WalError::Malformed(_) => Remedy::Bug,
        }
    }

    fn advice(&self) -> String {
        match self {
            WalError::Server { message, code, slot } => sqlstate::advice(code.as_deref(), message, slot),
            WalError::Query(error) => error.advice(),
            WalError::Authentication(_) => "The relay logs in with a password by SCRAM-SHA-256, MD5 or in clear, or by trust. Check \
                                            the method in pg_hba.conf, and that the role's password is stored for it."
                .into(),
            WalError::Pinned { .. } => "Connect to the server itself: a pooler such as pgbouncer may drop settings.".into(),
            WalError::Standby => "Name the primary's host in DATABASE_URL; several hosts are tried in order.".into(),
            WalError::Version(_) => "Upgrade the server.".into(),
            WalError::WalLevel(_) => {
                "`ALTER SYSTEM SET wal_level = 'logical'` as superuser, then restart the server (managed databases have a parameter for \
                 it, such as rds.logical_replication or cloudsql.logical_decoding)."
                    .into()
            }
            WalError::NotReplication(role) => {
                let role = role.replace('"', "\"\"");
                format!("`ALTER ROLE \"{role}\" REPLICATION` as superuser (on RDS: `GRANT rds_replication TO \"{role}\"`).")
            }
            WalError::PublicationMissing { names, .. } => {
                let sql = names.iter().map(|n| format!("`CREATE PUBLICATION \"{}\"`", n.replace('"', "\"\"")));
                let sql: Vec<String> = sql.collect();
                format!("Run `rowcast migrate up`, or {} in that database, and add the tables.", sql.join(", "))
            }
            WalError::ColumnLists { .. } => {
                "Give each of these tables the same columns in all of the publications: `ALTER PUBLICATION … SET TABLE …`.".into()
            }
            WalError::SlotUnusable { slot, fault } => fault.advice(slot),
            WalError::SlotBlocked { blockers, .. } => {
                let sql = blockers.iter().filter_map(|b| match (b.pid, &b.gid) {
                    (Some(pid), _) => Some(format!("`SELECT pg_terminate_backend({pid})`")),
                    (None, Some(gid)) => Some(format!("`ROLLBACK PREPARED '{}'`", gid.replace('\'', "''"))),
                    (None, None) => None,
                });
                let sql: Vec<String> = sql.collect();
                match &sql[..] {
                    [] => "It is tried again.".into(),
                    sql => format!("It is tried again. Wait for them, or end them: {}.", sql.join(", ")),
                }
            }
            WalError::Ahead { .. } => {
                "The database was restored or replaced by one that lags behind. Start with an empty data directory; clients are told \
                 of the gap."
                    .into()
            }
            WalError::MessageTooLarge { bytes, .. } => {
                format!("Raise the largest accepted message above {bytes} bytes and restart; the relay can't read past it otherwise.")
            }
            WalError::Spill { dir, .. } => format!("Make room in {} or name another directory.", dir.display()),
            WalError::Malformed(_) => "Please report this with the server's version.".into(),
            _ => String::new(),
        }
    }
}

impl SlotFault {
    fn advice(&self, slot: &str) -> String {
        match self {
            SlotFault::InCreation(_) => String::new(),
            SlotFault::Lost(_) => format!(
                "It can't be repaired, and it is not known to be the relay's own, so it is left alone: `SELECT \
                 pg_drop_replication_slot('{slot}')`; the relay then makes a new one by itself, and clients are told of the gap. To \
                 avoid it, raise max_slot_wal_keep_size (and idle_replication_slot_timeout) or stop the relay for shorter."
            ),
            _ => format!(
                "Name another slot for the relay, or, if nobody needs it, `SELECT pg_drop_replication_slot('{slot}')`."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_errors_get_their_kind_and_remedy() {
        let from = |error| WalError::library(error, "h:5432", "s1");
        let eof = Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof));
        for (error, remedy, label) in [
            (PgWireError::Io(eof), Remedy::Retry, "connection"),
            (PgWireError::Server("active (SQLSTATE 55006)".into()), Remedy::Retry, "slot_active"),
            (PgWireError::Server("no (SQLSTATE 28P01)".into()), Remedy::Operator, "authentication"),
            (PgWireError::Server("odd".into()), Remedy::Retry, "server"),
            (PgWireError::Auth("no".into()), Remedy::Operator, "authentication"),
            (PgWireError::Protocol("odd".into()), Remedy::Retry, "protocol"),
            (PgWireError::Task("panicked".into()), Remedy::Retry, "protocol"),
            (PgWireError::MessageTooLarge { payload_bytes: 9, limit_bytes: 1 }, Remedy::Operator, "message_too_large"),
        ] {
            let error = from(error);
            assert_eq!((error.remedy(), error.label()), (remedy, label), "{error}");
        }
    }

    #[test]
    fn texts_do_not_repeat_their_sources() {
        let source = Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused));
        let error = WalError::Connection { host: "h:5432".into(), source };
        let text = crate::error::chain(&error);
        assert_eq!(text, "the replication connection to h:5432 failed: connection refused");
    }

    #[test]
    fn a_blocked_slot_names_who_blocks_and_how_to_end_it() {
        let session = Blocker { pid: Some(42), gid: None, detail: " (idle in transaction)".into() };
        let prepared = Blocker { pid: None, gid: Some("it's".into()), detail: String::new() };
        let blockers = vec![session, prepared];
        let error = WalError::SlotBlocked { slot: "s".into(), waited: Duration::from_secs(3), blockers };
        assert!(error.to_string().ends_with("pid 42 (idle in transaction), prepared transaction 'it's'"), "{error}");
        let advice = error.advice();
        assert!(
            advice.contains("pg_terminate_backend(42)") && advice.contains("ROLLBACK PREPARED 'it''s'"),
            "{advice}"
        );
    }

    #[test]
    fn advice_quotes_names() {
        let error = WalError::PublicationMissing { names: vec!["a\"b".into()], database: "d".into() };
        assert!(error.advice().contains("CREATE PUBLICATION \"a\"\"b\""), "{}", error.advice());
    }
}
