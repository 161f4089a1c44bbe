//! The replication session: what pgwire-replication leaves to its caller.
//!
//! * Hosts are tried in order, each with a deadline; the library has none.
//! * The settings that decide the text of values are pinned in the startup packet, where they win over `ALTER ROLE …
//!   SET`, and are read back, since a pooler may drop them.
//! * `wal_sender_timeout` is pinned as well. The library asks for no answers, so a silent line proves nothing, unless
//!   the server is made to ask: it does so after half of this time. For the same reason the library's own wake-up is
//!   set far away: every status it sends would put the server's question off.
//! * A session that is dropped is aborted. The library's own drop lets its task go on until the connection answers,
//!   which a dead one never does.

use std::time::Duration;

use pgwire_replication::{
    FeedbackObserver, IdentifySystem, PgWireError, ReplicationClient, ReplicationConfig, ReplicationEvent, SslMode,
    TlsConfig,
};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::Host;

use crate::change::Lsn;
use crate::error::{Fault as _, Remedy};
use crate::pg::{self, PgConfig, TEXT_SETTINGS};

use super::{WalConfig, WalError};

/// What decides the text of values beyond [`TEXT_SETTINGS`]: names in `regclass` and the like, `money`.
const STREAM_SETTINGS: &str = "-c search_path=pg_catalog -c quote_all_identifiers=off -c lc_monetary=C";

/// Timeouts which an administrator may have set for people. Streaming itself is exempt from most of them, the steps
/// before it are not.
const NO_TIMEOUTS: &str =
    "-c statement_timeout=0 -c lock_timeout=0 -c idle_session_timeout=0 -c idle_in_transaction_session_timeout=0";
/// That of a server that was never promoted or restored: it goes on from no other.
const FIRST_TIMELINE: u32 = 1;

/// One place where the server may be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    /// Name, address, or socket directory.
    host: String,
    port: u16,
    /// The name on its certificate, where `host` is an address that stands for it.
    name: Option<String>,
}

/// An authenticated, pinned session that streams, or is about to.
pub(super) struct Session {
    client: ReplicationClient,
    host: String,
    slot: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.client.abort();
    }
}

impl Session {
    /// Connects to the first host that is up and no standby, and has the stream started at `start`.
    pub(super) async fn start(
        config: &WalConfig,
        start: Lsn,
        observer: FeedbackObserver,
    ) -> Result<(Session, IdentifySystem), WalError> {
        config.validate()?;
        let mut failure = WalError::Config("DATABASE_URL names no host".into());
        for target in targets(&config.pg.connection)? {
            match Session::start_at(config, &target, start, observer.clone()).await {
                Ok(started) => return Ok(started),
                // Another host can't help against a taken slot or a wrong password.
                Err(error) if error.remedy() != Remedy::Retry || error.sqlstate() == Some("55006") => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::debug!(host = target.host, error = %crate::error::chain(&error), "a host was not usable");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn start_at(
        config: &WalConfig,
        target: &Target,
        start: Lsn,
        observer: FeedbackObserver,
    ) -> Result<(Session, IdentifySystem), WalError> {
        let settings = replication_config(config, target, start)?.with_feedback_observer(observer);
        let (mut session, identity) = Session::open(config, target, settings).await?;
        let within = config.connect_timeout;
        let written = Lsn(identity.xlogpos.0);
        if start > written {
            return Err(WalError::Ahead { start, written });
        }
        let deadline = Instant::now() + within;
        let starting = async {
            session.client.start().await?;
            session.client.wait_started().await
        };
        let late = |_| WalError::Timeout { what: "starting the stream", after: within };
        timeout_at(deadline, starting).await.map_err(late)?.map_err(|error| session.error(error))?;
        Ok((session, identity))
    }

    /// Logs in and looks at the session; nothing is started.
    async fn open(
        config: &WalConfig,
        target: &Target,
        settings: ReplicationConfig,
    ) -> Result<(Session, IdentifySystem), WalError> {
        let within = config.connect_timeout;
        let host =
            if target.host.starts_with('/') { target.host.clone() } else { format!("{}:{}", target.host, target.port) };
        let late = |what| move |_| WalError::Timeout { what, after: within };
        let failed = |error| WalError::library(error, &host, &config.slot);
        let deadline = Instant::now() + within;
        let client = ReplicationClient::connect_gated(settings).await.map_err(failed)?;
        let mut session = Session { client, host: host.clone(), slot: config.slot.clone() };
        let identified = timeout_at(deadline, session.client.identify_system()).await;
        let identity = identified.map_err(late("connecting and logging in"))?.map_err(failed)?;
        timeout_at(deadline, session.check()).await.map_err(late("looking at the session's settings"))??;
        Ok((session, identity))
    }

    /// Whether this is a primary, and the pins took.
    async fn check(&mut self) -> Result<(), WalError> {
        let pins: Vec<(&str, &str)> =
            settings(TEXT_SETTINGS).chain(settings(STREAM_SETTINGS)).chain([("client_encoding", "UTF8")]).collect();
        let values: Vec<String> = pins.iter().map(|(name, _)| format!("current_setting('{name}')")).collect();
        let sql = format!("select pg_is_in_recovery(), {}", values.join(", "));
        let rows = self.client.simple_query(&sql).await.map_err(|e| self.error(e))?;
        let [row] = &rows[..] else {
            return Err(WalError::Protocol(format!("one row was asked for, {} came", rows.len())));
        };
        let texts: Vec<String> =
            row.iter().map(|v| v.as_deref().map(String::from_utf8_lossy).unwrap_or_default().into_owned()).collect();
        let Some((standby, values)) = texts.split_first().filter(|(_, values)| values.len() == pins.len()) else {
            return Err(WalError::Protocol("a row has the wrong number of columns".into()));
        };
        if standby == "t" {
            return Err(WalError::Standby);
        }
        for ((name, wanted), found) in pins.into_iter().zip(values) {
            // The server puts a space after the comma in `ISO, MDY`.
            if !found.replace(' ', "").eq_ignore_ascii_case(wanted) {
                return Err(WalError::Pinned { name: name.into(), found: found.clone(), wanted: wanted.into() });
            }
        }
        Ok(())
    }

    /// The next event. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<ReplicationEvent, WalError> {
        match self.client.recv().await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(WalError::Ended),
            Err(error) => Err(self.error(error)),
        }
    }

    /// Everything before `durable` may be forgotten by the server.
    pub(super) fn confirm(&self, durable: Lsn) {
        self.client.update_applied_lsn(pgwire_replication::Lsn(durable.0));
    }

    /// The position in the last status that was written to the socket.
    pub(super) fn confirmed_on_the_wire(&self) -> Lsn {
        Lsn(self.client.metrics().last_applied_lsn().0)
    }

    /// Says goodbye; the caller bounds the wait.
    pub(super) async fn shutdown(&mut self) {
        if let Err(error) = self.client.shutdown().await {
            let error = self.error(error);
            tracing::debug!(error = %crate::error::chain(&error), "the replication session did not end cleanly");
        }
    }

    fn error(&self, error: PgWireError) -> WalError {
        WalError::library(error, &self.host, &self.slot)
    }
}

/// Logs in as the stream would, to the first host that lets us, looks at the session and leaves. Touches no slot.
pub async fn probe(config: &WalConfig) -> Result<(), WalError> {
    config.validate()?;
    let mut failure = WalError::Config("DATABASE_URL names no host".into());
    for target in targets(&config.pg.connection)? {
        let settings = replication_config(config, &target, Lsn::ZERO)?;
        match Session::open(config, &target, settings).await {
            Ok((mut session, _)) => {
                let _ = tokio::time::timeout(GOODBYE, session.shutdown()).await;
                return Ok(());
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The ends of the timelines before this one, as the server that is on it knows them: which, and up to where it was followed.
pub async fn timelines(config: &WalConfig, timeline: u32) -> Result<Vec<(u32, Lsn)>, WalError> {
    config.validate()?;
    if timeline == FIRST_TIMELINE {
        // There is no file to ask for, which the server would call an error.
        return Ok(Vec::new());
    }
    let mut failure = WalError::Config("DATABASE_URL names no host".into());
    for target in targets(&config.pg.connection)? {
        let settings = replication_config(config, &target, Lsn::ZERO)?;
        match Session::open(config, &target, settings).await {
            Ok((mut session, _)) => {
                let sql = format!("TIMELINE_HISTORY {timeline}");
                let asking = session.client.simple_query(&sql);
                let late = |_| WalError::Timeout { what: "asking for the timelines", after: config.connect_timeout };
                let rows = tokio::time::timeout(config.connect_timeout, asking).await.map_err(late)?;
                let rows = rows.map_err(|error| session.error(error))?;
                let _ = tokio::time::timeout(GOODBYE, session.shutdown()).await;
                let content = rows.first().and_then(|row| row.get(1)?.as_deref());
                return Ok(ends_of(&String::from_utf8_lossy(content.unwrap_or_default())));
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// The lines of a history file: timeline, position, reason, with tabs between.
fn ends_of(history: &str) -> Vec<(u32, Lsn)> {
    let end = |line: &str| {
        let mut fields = line.split_whitespace();
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    history.lines().filter_map(end).collect()
}

/// The library's configuration for one host.
fn replication_config(config: &WalConfig, target: &Target, start: Lsn) -> Result<ReplicationConfig, WalError> {
    let url = &config.pg.connection;
    let user = url.get_user().ok_or_else(|| WalError::Config("DATABASE_URL names no user".into()))?;
    let password = std::str::from_utf8(url.get_password().unwrap_or_default())
        .map_err(|_| WalError::Config("the password in DATABASE_URL is not UTF-8".into()))?;
    let database = url.get_dbname().unwrap_or(user);
    let publications: Vec<String> = config.publications.iter().map(|name| quote(name)).collect();
    let timeout = config.silence_timeout.as_millis() * 2 / 3;
    // Ours come last, so that they win.
    let own = url.get_options().unwrap_or_default();
    let options = format!("{own} {TEXT_SETTINGS} {STREAM_SETTINGS} {NO_TIMEOUTS} -c wal_sender_timeout={timeout}");
    Ok(ReplicationConfig::new(&target.host, user, password, database, &config.slot, publications)
        .with_port(target.port)
        .with_tls(tls(&config.pg, target))
        .with_start_lsn(pgwire_replication::Lsn(start.0))
        .with_status_interval(config.status_interval)
        .with_wakeup_interval(config.silence_timeout)
        .with_buffer_size(config.buffer_events)
        .with_max_message_size(config.max_message_bytes)
        .with_application_name(url.get_application_name().unwrap_or("rowcast"))
        .with_options(options.trim()))
}

fn tls(pg: &PgConfig, target: &Target) -> TlsConfig {
    let parameters = &pg.tls;
    let (certificate, key) = parameters.client_files.clone().unzip();
    TlsConfig {
        mode: match parameters.mode {
            pg::SslMode::Disable => SslMode::Disable,
            pg::SslMode::Prefer => SslMode::Prefer,
            pg::SslMode::Require => SslMode::Require,
            pg::SslMode::VerifyCa => SslMode::VerifyCa,
            pg::SslMode::VerifyFull => SslMode::VerifyFull,
        },
        ca_pem_path: parameters.root_file.clone(),
        // The library compares names also under `verify-ca`.
        sni_hostname: match parameters.mode {
            pg::SslMode::VerifyCa => pg.verified_name.get().or_else(|| target.name.clone()),
            _ => target.name.clone(),
        },
        client_cert_pem_path: certificate,
        client_key_pem_path: key,
    }
}

/// A publication's name as an element of `publication_names`, which the server splits and folds like identifiers.
/// The library doubles single quotes and nothing else.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The pairs of `-c name=value -c …`.
fn settings(options: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    options.split("-c ").filter_map(|pair| pair.trim().split_once('='))
}

/// Hosts with their ports, as libpq pairs them: `hostaddr` replaces the name for connecting, one port serves all.
fn targets(url: &tokio_postgres::Config) -> Result<Vec<Target>, WalError> {
    let (hosts, addresses, ports) = (url.get_hosts(), url.get_hostaddrs(), url.get_ports());
    if ports.len() > 1 && ports.len() != hosts.len().max(addresses.len()) {
        return Err(WalError::Config("DATABASE_URL has another number of ports than of hosts".into()));
    }
    let target = |i: usize| {
        let (host, name) = match (addresses.get(i), hosts.get(i)?) {
            (Some(address), Host::Tcp(name)) => (address.to_string(), Some(name.clone())),
            (Some(address), Host::Unix(_)) => (address.to_string(), None),
            (None, Host::Tcp(name)) => (name.clone(), None),
            (None, Host::Unix(dir)) => (dir.to_string_lossy().into_owned(), None),
        };
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        Some(Target { host, port, name })
    };
    Ok((0..hosts.len()).filter_map(target).collect())
}

/// How long [`Session::shutdown`] may take at the least, if a deadline has passed already.
pub(super) const GOODBYE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str, publications: &[&str]) -> WalConfig {
        let pg = PgConfig::from_url(url).expect("url");
        WalConfig::new(pg, "s1", publications.iter().map(|p| (*p).into()).collect(), "/nowhere".into())
    }

    fn built(config: &WalConfig) -> ReplicationConfig {
        let target = targets(&config.pg.connection).expect("targets").remove(0);
        replication_config(config, &target, Lsn(7)).expect("built")
    }

    #[test]
    fn hosts_ports_and_sockets_are_paired_as_libpq_does() {
        let of = |url: &str| {
            let targets = targets(&PgConfig::from_url(url).expect("url").connection)?;
            Ok::<_, WalError>(targets.into_iter().map(|t| (t.host, t.port)).collect::<Vec<_>>())
        };
        let pair = |host: &str, port| (host.to_owned(), port);
        assert_eq!(of("postgres://u@h/d").expect("ok"), [pair("h", 5432)]);
        assert_eq!(of("postgres://u@a:1,b:2/d").expect("ok"), [pair("a", 1), pair("b", 2)]);
        assert_eq!(of("host=a,b port=7 user=u").expect("ok"), [pair("a", 7), pair("b", 7)]);
        assert_eq!(of("host=a hostaddr=10.0.0.1 user=u").expect("ok"), [pair("10.0.0.1", 5432)]);
        assert_eq!(of("postgres://u@%2Frun%2Fpg:99/d").expect("ok"), [pair("/run/pg", 99)]);
        assert!(of("host=a,b,c port=1,2 user=u").is_err());
    }

    #[test]
    fn a_history_file_gives_the_ends_of_timelines() {
        let text = "1\t0/3000148\tno recovery target specified\n\n# note\n2\tA/5\tbefore 2026-01-01";
        assert_eq!(ends_of(text), [(1, Lsn(0x300_0148)), (2, Lsn(0xA_0000_0005))]);
        assert_eq!(ends_of(""), []);
    }

    #[test]
    fn our_settings_come_after_those_of_the_url() {
        let config = config("postgres://u:p@h/d?options=-c%20DateStyle%3DGerman", &["a"]);
        let options = built(&config).options.expect("options");
        let (theirs, ours) = (options.find("DateStyle=German"), options.find("DateStyle=ISO,MDY"));
        assert!(theirs.expect("theirs") < ours.expect("ours"), "{options}");
        assert!(options.ends_with("wal_sender_timeout=60000"), "{options}");
    }

    #[test]
    fn user_password_and_database_come_from_the_url() {
        let config = config("postgres://u:p%20w@h", &["a"]);
        let built = built(&config);
        assert_eq!((&built.user[..], &built.password[..], &built.database[..]), ("u", "p w", "u"));
        assert_eq!(built.application_name.as_deref(), Some("rowcast"));
        assert_eq!(built.start_lsn.0, 7);
    }

    #[test]
    fn publication_names_are_quoted_like_identifiers() {
        let config = config("postgres://u@h/d", &["plain", "Up, \"down\""]);
        assert_eq!(built(&config).publication.names(), ["\"plain\"", "\"Up, \"\"down\"\"\""]);
    }

    #[test]
    fn the_pinned_settings_are_read_as_pairs() {
        let pairs: Vec<_> = settings(TEXT_SETTINGS).collect();
        assert!(pairs.contains(&("DateStyle", "ISO,MDY")) && pairs.contains(&("TimeZone", "UTC")), "{pairs:?}");
        assert_eq!(pairs.len(), TEXT_SETTINGS.matches("-c ").count());
    }
}
