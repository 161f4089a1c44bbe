//! The smallest Realtime client: one connection, one channel, one `postgres_changes` entry; for the command line and the
//! demonstration.
//!
//! [`Connection`] is one WebSocket from the handshake to its end; [`Follow`] begins again with a new one when it is lost.
//!
//! Invariants:
//! * Nothing of the server's own codec is used: what this client proves is the wire.
//! * Every wait has a deadline, and silence ends a connection.
//! * A key or token is in no text that can be printed: not in an error, not in `Debug`, not in an address.
//! * What can't get better by waiting is told apart from what can ([`Fault::remedy`]).
//!
//! Rejected: an SDK crate. None speaks held join replies, and we would test it instead of the relay.

mod address;
mod connection;
mod follow;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

pub use address::Address;
pub use connection::{Change, Connection, Message, Notice};
pub use follow::{Follow, News};

use crate::error::{Fault, Remedy};

/// Who connects, and what is asked for.
#[derive(Clone)]
pub struct Asked {
    /// Where.
    pub address: Address,
    /// For the handshake: a token or an opaque key.
    pub key: String,
    /// For the channel; without one it has the connection's.
    pub token: Option<String>,
    /// Name of the channel, without `realtime:`.
    pub channel: String,
    /// Which changes.
    pub wanted: Wanted,
    /// From where on: a cursor, or a commit time, as text or in milliseconds since 1970. `None`: from now on.
    pub since: Option<String>,
}

/// One entry of `postgres_changes`. A text that is `None` is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// `*`, `INSERT`, `UPDATE` or `DELETE`.
    pub event: String,
    /// A name, or `*`.
    pub schema: String,
    /// A name; `None` for every published table of the schema.
    pub table: Option<String>,
    /// Such as `id=eq.5`.
    pub filter: Option<String>,
    /// Columns; none for all.
    pub select: Vec<String>,
}

impl Wanted {
    /// Every change of one table.
    pub fn table(schema: &str, table: &str) -> Wanted {
        Wanted { event: "*".into(), schema: schema.into(), table: Some(table.into()), filter: None, select: Vec::new() }
    }

    fn entry(&self, since: Option<&str>) -> Value {
        let mut entry = json!({ "event": self.event, "schema": self.schema });
        if let Some(table) = &self.table {
            entry["table"] = json!(table);
        }
        if let Some(filter) = &self.filter {
            entry["filter"] = json!(filter);
        }
        if !self.select.is_empty() {
            entry["select"] = json!(self.select);
        }
        // Null too: it says that we keep cursors, and are to be given fresh ones while it is quiet.
        entry["since"] = since
            .map_or(Value::Null, |since| since.parse::<i64>().map_or_else(|_| json!(since), |millis| json!(millis)));
        entry
    }
}

impl std::fmt::Display for Wanted {
    /// Such as `public.notes`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table.as_deref().unwrap_or("*"))
    }
}

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("the address {0}")]
    Address(&'static str),
    /// The file of authorities can't be used.
    #[error("the authorities in {} can't be used: {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers there.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection broke during the TLS handshake.
    #[error("no TLS session")]
    Tls(#[source] io::Error),
    /// The certificate is not trusted.
    #[error("no TLS session")]
    Certificate(#[source] io::Error),
    /// What answers speaks no TLS that we speak.
    #[error("no TLS session")]
    NoTls(#[source] io::Error),
    /// What answers is no relay.
    #[error("the server at this address is no relay: {0}")]
    NotRelay(String),
    /// The key or the token was refused.
    #[error("the relay refused the token: {0}")]
    Token(String),
    /// What was asked for was refused.
    #[error("the relay refused the subscription to {wanted}: {text}")]
    Refused {
        /// Schema and table.
        wanted: String,
        /// Why, in the relay's words.
        text: String,
    },
    /// Refused for now.
    #[error("the relay is not ready: {0}")]
    NotReady(String),
    /// Not subscribed in time.
    #[error("not subscribed within {0:?}")]
    Timeout(Duration),
    /// The connection or the channel ended.
    #[error("{0}")]
    Ended(String),
}

impl Fault for ClientError {
    fn remedy(&self) -> Remedy {
        match self {
            ClientError::Address(_)
            | ClientError::Authorities { .. }
            | ClientError::Certificate(_)
            | ClientError::NoTls(_)
            | ClientError::NotRelay(_)
            | ClientError::Token(_)
            | ClientError::Refused { .. } => Remedy::Operator,
            ClientError::Connect(_)
            | ClientError::Tls(_)
            | ClientError::NotReady(_)
            | ClientError::Timeout(_)
            | ClientError::Ended(_) => Remedy::Retry,
        }
    }

    fn advice(&self) -> String {
        match self {
            ClientError::Address(_) => "Write it like ws://127.0.0.1:4000 or wss://relay.example.com.".into(),
            ClientError::Authorities { .. } => {
                "Give a PEM file with the certificate of the authority that signed the relay's.".into()
            }
            ClientError::Certificate(_) => {
                "If a private authority signed the relay's certificate, give the authority's own as a PEM file.".into()
            }
            ClientError::NoTls(_) => "If the relay has no TLS, the address begins with ws://.".into(),
            ClientError::NotRelay(_) => {
                "Check host, port and path; with TLS the address begins with wss://; behind a gateway the path is often /realtime/v1."
                    .into()
            }
            ClientError::Token(text) => token_advice(text),
            ClientError::Refused { wanted, text } => refusal_advice(wanted, text),
            ClientError::Connect(_) => "Check that the relay runs and that host and port are right.".into(),
            _ => String::new(),
        }
    }
}

fn token_advice(text: &str) -> String {
    if text.contains("expired") {
        return "Get a new one: from your issuer, or for development with `rowcast token`.".into();
    }
    if text.contains("signature") || text.contains("signer") {
        return "It must be signed with the relay's JWT_SECRET or with a key of its JWKS_URL.".into();
    }
    "Get one from your issuer, or for development with `rowcast token`.".into()
}

/// What the relay's known texts (`protocol.md` §5.5) call for.
fn refusal_advice(wanted: &str, text: &str) -> String {
    let (schema, table) = wanted.split_once('.').unwrap_or(("public", wanted));
    let known = [
        (
            "Please check Realtime is enabled",
            match table {
                "*" => "Publish a table of this schema: ALTER PUBLICATION supabase_realtime ADD TABLE …;".to_owned(),
                _ => format!(
                    "Check the names, and publish it: ALTER PUBLICATION supabase_realtime ADD TABLE {}.{};",
                    identifier(schema),
                    identifier(table)
                ),
            },
        ),
        (
            "invalid column for",
            format!("Check that {wanted} has this column and that the token's role may select it (GRANT SELECT)."),
        ),
        (
            "`filter` params",
            "Write a filter as column=operator.value, such as id=eq.5 or kind=in.(a,b); several with commas.".to_owned(),
        ),
        (
            "Column selection is not supported",
            "Name one schema and one table to select columns.".to_owned(),
        ),
        (
            "does not exist",
            "The token's role must exist in the database; `rowcast migrate up` makes anon, authenticated and service_role."
                .to_owned(),
        ),
        (
            "parsing `since`",
            "Give a cursor as it was printed, or a time such as 10m or 2026-11-21T10:15:30Z.".to_owned(),
        ),
        ("Subscription ended", "Use a simpler filter, such as an equality.".to_owned()),
    ];
    let found = known.into_iter().find(|(phrase, _)| text.contains(phrase));
    found.map(|(_, advice)| advice).unwrap_or_default()
}

/// As it is written in SQL.
fn identifier(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return name.to_owned();
    }
    format!("\"{}\"", name.replace('"', "\"\""))
}
