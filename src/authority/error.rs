//! Why there is no answer to whether somebody may use a private channel.

use tokio_postgres::error::SqlState;

use crate::error::{Fault, Remedy};

/// See the module's comment. Whoever gets one treats the right as not given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Postgres gave up on the policies: its own words, without values (`QueryCanceled`).
    #[error("the policies of realtime.messages took too long: {0}")]
    Timeout(String),
    /// There is no partition of `realtime.messages` for today.
    #[error("realtime.messages has no partition for today")]
    MissingPartition,
    /// All connections for these questions were taken for too long.
    #[error("no connection was free to ask whether a private channel may be used")]
    PoolExhausted,
    /// The database could not be asked, or our login may not ask it.
    #[error("the database could not be asked whether a private channel may be used")]
    Unavailable,
    /// A policy raised an error, or the token's role can't be assumed. Clients are told that they have no permission.
    #[error("the policies of realtime.messages could not be evaluated for the token's role")]
    Policy,
    /// There is no table `realtime.messages`.
    #[error("there is no table realtime.messages")]
    NotInstalled,
}

impl AuthorityError {
    /// The metric's label.
    pub fn as_str(&self) -> &'static str {
        match self {
            AuthorityError::Timeout(_) => "timeout",
            AuthorityError::MissingPartition => "partition",
            AuthorityError::PoolExhausted => "pool",
            AuthorityError::Unavailable => "unavailable",
            AuthorityError::Policy => "policy",
            AuthorityError::NotInstalled => "not_installed",
        }
    }
}

impl Fault for AuthorityError {
    fn remedy(&self) -> Remedy {
        match self {
            AuthorityError::Timeout(_) | AuthorityError::PoolExhausted | AuthorityError::Unavailable => Remedy::Retry,
            AuthorityError::MissingPartition | AuthorityError::Policy | AuthorityError::NotInstalled => {
                Remedy::Operator
            }
        }
    }

    fn advice(&self) -> String {
        match self {
            AuthorityError::MissingPartition => {
                "Let the relay keep the partitions: run it with --migrate, or as a role \
                                                 that owns realtime.messages."
                    .into()
            }
            AuthorityError::NotInstalled => "Run `rowcast migrate up`.".into(),
            AuthorityError::PoolExhausted => "Make the policies of realtime.messages ones that are judged in memory \
                                              (`rowcast explain-policy`), or raise authz.connections."
                .into(),
            _ => String::new(),
        }
    }
}

/// Which part of a probe failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Our own statements: the transaction, the probe rows of a read check.
    Ours,
    /// Becoming the token's role.
    Role,
    /// As that role, under its policies.
    Theirs,
}

/// What an error of Postgres means: a plain no, or why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    Denied,
    /// Our login lacks a right that it needs.
    Unfit,
    Failed(AuthorityError),
}

pub(super) fn meaning(part: Part, error: &tokio_postgres::Error) -> Meaning {
    use Meaning::{Denied, Failed, Unfit};
    let Some(database) = error.as_db_error() else {
        // What can't be sent (a NUL) is the client's; the rest is the connection's.
        let unsendable = error.to_string().contains("serializing parameter");
        return Failed(if unsendable { AuthorityError::Policy } else { AuthorityError::Unavailable });
    };
    // What a function of a policy raises has a context.
    let direct = database.where_().is_none();
    let code = database.code().code();
    match (code, part) {
        ("57014" | "55P03", _) => Failed(AuthorityError::Timeout(database.message().to_owned())),
        // A CHECK constraint has a name; the lack of a partition has none.
        ("23514", _) if database.table() == Some("messages") && database.constraint().is_none() => {
            Failed(AuthorityError::MissingPartition)
        }
        ("42P01" | "3F000", Part::Ours | Part::Theirs) if direct => Failed(AuthorityError::NotInstalled),
        ("42501", Part::Theirs) => Denied,
        ("42501", Part::Ours | Part::Role) => Unfit,
        ("25006", Part::Ours) => Failed(AuthorityError::Unavailable),
        _ if is_away(database.code()) => Failed(AuthorityError::Unavailable),
        _ => Failed(AuthorityError::Policy),
    }
}

/// The server, not the policy: it stops, is full, or is a standby.
fn is_away(state: &SqlState) -> bool {
    let code = state.code();
    matches!(&code[..2], "08" | "25" | "3B" | "40" | "53" | "57" | "58" | "F0")
}
