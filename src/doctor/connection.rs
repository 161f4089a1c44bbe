//! The way to the server: is it reached, is it encrypted, is a pooler in between, does the stream get through.

use tokio_postgres::Client;
use tokio_postgres::config::Host;

use super::{Finding, Patient, Subject};
use crate::config::Config;
use crate::error::{Fault as _, chain};
use crate::pg::{PgConfig, SslMode};
use crate::wal::{self, WalError};

/// What poolers say to settings in the startup packet.
const POOLER_WORDS: &str = "unsupported startup parameter";

const WHY_NO_POOLER: &str = "The stream, its pinned settings and the questions to Postgres need a session of their own; a pooler \
                             that hands sessions around loses rows or judges them with another user's claims.";
const TODO_NO_POOLER: &str = "Name the server itself in DATABASE_URL, usually its port 5432, not the pooler's.";

fn pooler(what: String) -> Finding {
    Finding::error("pooler", Subject::server(), what).why(WHY_NO_POOLER).todo(TODO_NO_POOLER)
}

/// An ordinary connection, or the one finding that says why there is none.
pub(super) async fn reach(config: &Config, findings: &mut Vec<Finding>) -> Option<Client> {
    let error = match config.pg.connect().await {
        Ok(client) => return Some(client),
        Err(error) => error,
    };
    let text = chain(&error);
    if text.contains(POOLER_WORDS) {
        findings.push(pooler(format!("a pooler, not the server, answers: {text}")));
        return None;
    }
    let advice = error.advice();
    let advice = match advice.as_str() {
        "" => {
            "Check host and port in DATABASE_URL, that the server runs, and the way to it (firewall, listen_addresses)."
        }
        advice => advice,
    };
    findings.push(
        Finding::error("connection", Subject::server(), text)
            .why("Nothing else about the database can be told before it is reached.")
            .todo(advice),
    );
    None
}

pub(super) async fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let config = patient.config;
    let mut findings = vec![tls(&config.pg, patient.facts.encrypted, patient.facts.ssl)];
    if let Some(sign) = pooler_sign(patient).await {
        findings.push(pooler(sign));
    }
    // It would say the same again in worse words.
    if !patient.facts.replication {
        return findings;
    }
    match Box::pin(wal::probe(&config.ingest.wal)).await {
        Ok(()) => findings.push(Finding::ok(
            "replication_connection",
            Subject::server(),
            "the server lets us in for replication",
        )),
        Err(error) => findings.extend(no_stream(&error, &findings)),
    }
    findings
}

fn no_stream(error: &WalError, known: &[Finding]) -> Option<Finding> {
    let text = chain(error);
    let is_pooler = matches!(error, WalError::Pinned { .. }) || text.contains(POOLER_WORDS);
    if is_pooler {
        let told = known.iter().any(|finding| finding.check == "pooler");
        return (!told).then(|| pooler(format!("the replication connection does not reach the server: {text}")));
    }
    if matches!(error, WalError::Standby) {
        // Told by the server's own check.
        return None;
    }
    let finding =
        Finding::error("replication_connection", Subject::server(), format!("no replication connection: {text}"))
            .why("Changes are read over it; without it nothing is sent to anybody.");
    let advice = error.advice();
    let todo = match error.sqlstate() {
        Some("53300") => "Raise max_wal_senders, or end a replication connection that nobody needs.",
        _ if advice.is_empty() => "The server's log says more.",
        _ => &advice,
    };
    Some(finding.todo(todo))
}

/// How a pooler shows: settings that we pinned are not in force, or two sessions at a time are served by one process.
async fn pooler_sign(patient: &Patient<'_>) -> Option<String> {
    let facts = patient.facts;
    let pinned = patient.config.pg.statement_timeout.as_millis();
    if milliseconds(&facts.statement_timeout) != Some(pinned) || facts.date_style.replace(' ', "") != "ISO,MDY" {
        let what = format!(
            "the session's settings are not those that were asked for (statement_timeout is {}, DateStyle {})",
            facts.statement_timeout, facts.date_style
        );
        return Some(what);
    }
    let second = patient.config.pg.connect().await.ok()?;
    let (one, two) = (process(patient.client).await?, process(&second).await?);
    (one == two).then(|| "two connections at a time are served by one server process".into())
}

async fn process(client: &Client) -> Option<i32> {
    let asked = client.query_one("select pg_catalog.pg_backend_pid()", &[]);
    tokio::time::timeout(std::time::Duration::from_secs(5), asked).await.ok()?.ok()?.try_get(0).ok()
}

/// A setting of time as the server prints it: `10s`, `500ms`, `0`.
fn milliseconds(text: &str) -> Option<u128> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u128 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "" | "ms" => Some(number),
        "s" => Some(number * 1000),
        "min" => Some(number * 60_000),
        "h" => Some(number * 3_600_000),
        _ => None,
    }
}

fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        }
    }
}

fn tls(pg: &PgConfig, encrypted: bool, server_has: bool) -> Finding {
    let subject = Subject::server;
    let mode = match pg.tls.mode {
        SslMode::Disable => "disable",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    };
    if matches!(pg.tls.mode, SslMode::VerifyCa | SslMode::VerifyFull) {
        return Finding::ok(
            "tls",
            subject(),
            format!("TLS, and the server's certificate is verified (sslmode={mode})"),
        );
    }
    if pg.connection.get_hosts().iter().all(is_local) && pg.connection.get_hostaddrs().iter().all(|a| a.is_loopback()) {
        let line = if encrypted { "TLS" } else { "no TLS" };
        return Finding::ok("tls", subject(), format!("{line} (sslmode={mode}), on this machine"));
    }
    if encrypted {
        return Finding::note("tls", subject(), format!("TLS, but nobody's certificate is looked at (sslmode={mode})"))
            .why("Who can stand between the relay and the server can pose as the server, and reads every row and the password.")
            .todo("Write sslmode=verify-full&sslrootcert=/path/root.crt in DATABASE_URL.");
    }
    let finding = Finding::warning(
        "tls",
        subject(),
        format!("every row and the password's proof cross the network in clear (sslmode={mode})"),
    )
    .why("Whoever sees the line reads what row-level security hides.");
    if server_has {
        finding.todo("Write sslmode=verify-full&sslrootcert=/path/root.crt in DATABASE_URL.")
    } else {
        finding
            .sql("alter system set ssl = on;\nselect pg_reload_conf();")
            .todo("The server needs server.crt and server.key; then write sslmode=verify-full in DATABASE_URL.")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    #[test]
    fn a_line_in_clear_is_a_warning_unless_it_stays_on_the_machine() {
        let of = |url: &str, encrypted, ssl| {
            let finding = tls(&PgConfig::from_url(url).expect("a URL"), encrypted, ssl);
            (finding.severity, finding.sql.is_some())
        };
        assert_eq!(of("postgres://u@127.0.0.1/d", false, false), (Severity::Ok, false));
        assert_eq!(of("postgres://u@%2Frun/d", false, false), (Severity::Ok, false));
        assert_eq!(of("host=localhost hostaddr=10.0.0.1 user=u", false, false), (Severity::Warning, true));
        assert_eq!(of("postgres://u@db/d", false, false), (Severity::Warning, true));
        assert_eq!(of("postgres://u@db/d?sslmode=disable", false, true), (Severity::Warning, false));
        assert_eq!(of("postgres://u@db/d?sslmode=require", true, true), (Severity::Note, false));
        assert_eq!(of("postgres://u@db/d?sslmode=verify-full", true, true), (Severity::Ok, false));
    }

    #[test]
    fn times_are_read_as_the_server_prints_them() {
        for (text, value) in [("10s", 10_000), ("500ms", 500), ("0", 0), ("2min", 120_000), ("1h", 3_600_000)] {
            assert_eq!(milliseconds(text), Some(value), "{text}");
        }
        assert_eq!(milliseconds("1d"), None);
    }
}
