//! How we talk to Postgres with ordinary queries: one bounded pool, pinned session settings, a deadline on every wait.
//!
//! Invariants:
//! * Each connection pins what decides the text of a value (TimeZone, DateStyle, IntervalStyle, bytea_output,
//!   extra_float_digits) and its timeouts, so that `ALTER ROLE … SET` can't change what clients see.
//! * A role is assumed only with `SET LOCAL` inside a transaction ([`assume`]), never on a session.
//! * What `sslmode` demands is met by every connection, or there is none ([`TlsParameters`]).

mod tls;

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, RecyclingMethod};
use futures_util::future::{self, MaybeDone};
use tokio_postgres::Transaction;
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

use tls::TlsFault;
pub(crate) use tls::unverified as unverified_tls;
pub use tls::{SslMode, TlsParameters, VerifiedName};

use crate::error::{Fault, Remedy};

/// The settings that decide how values are written as text; the same for queries and for the stream.
pub const TEXT_SETTINGS: &str =
    "-c TimeZone=UTC -c DateStyle=ISO,MDY -c IntervalStyle=postgres -c bytea_output=hex -c extra_float_digits=1";

/// How long the network may keep what was sent for a question without the server's machine having got it.
const SILENCE: Duration = Duration::from_secs(5);

/// Why a query or a connection failed.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The URL is not one.
    #[error("DATABASE_URL is not a PostgreSQL connection string (postgres://user:password@host:5432/database)")]
    Url(#[source] tokio_postgres::Error),
    /// The URL asks for something that is not there.
    #[error("DATABASE_URL: {0}")]
    Unsupported(String),
    /// No connection could be had in time.
    #[error("no connection to the database within {0:?}")]
    Timeout(Duration),
    /// Could not connect or log in.
    #[error("cannot connect to the database{}", server_message(.0))]
    Connect(#[source] tokio_postgres::Error),
    /// The pool failed for another reason.
    #[error("the connection pool failed: {0}")]
    Pool(String),
    /// The server refused a statement, or the connection broke under it.
    #[error("{what}{}", server_message(.source))]
    Query {
        /// What we were doing, as "cannot …".
        what: &'static str,
        /// The answer.
        #[source]
        source: tokio_postgres::Error,
    },
}

fn server_message(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!(": {} (SQLSTATE {})", db.message(), db.code().code()),
        None => String::new(),
    }
}

impl PgError {
    /// For `map_err`: names what was being done.
    pub fn query(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> PgError {
        move |source| PgError::Query { what, source }
    }

    /// The server's code, if a server answered.
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            PgError::Connect(source) | PgError::Query { source, .. } => source.code(),
            _ => None,
        }
    }
}

/// Whether waiting can help: connection trouble, a server that starts or is full, a lost race; but not a wrong password, a
/// missing database or a missing right.
pub fn is_transient(state: &SqlState) -> bool {
    let code = state.code();
    matches!(&code[..2], "08" | "53" | "57" | "40") || matches!(code, "55006" | "55P03")
}

impl Fault for PgError {
    fn remedy(&self) -> Remedy {
        match self {
            PgError::Url(_) | PgError::Unsupported(_) => Remedy::Operator,
            PgError::Timeout(_) | PgError::Pool(_) => Remedy::Retry,
            PgError::Connect(source) | PgError::Query { source, .. } => match source.code() {
                Some(state) if !is_transient(state) => Remedy::Operator,
                None if TlsFault::of(source).is_some() => Remedy::Operator,
                _ => Remedy::Retry,
            },
        }
    }

    fn advice(&self) -> String {
        if let PgError::Connect(source) = self
            && let Some(fault) = TlsFault::of(source)
        {
            return fault.advice().into();
        }
        let Some(state) = self.sqlstate() else { return String::new() };
        match state.code() {
            "28P01" | "28000" => "Check user and password in DATABASE_URL (or ROWCAST_ASK_USER and ROWCAST_ASK_PASSWORD), and pg_hba.conf on the server.".into(),
            "3D000" => "Check the database name at the end of DATABASE_URL.".into(),
            "42501" => "Grant the missing right to the relay's role, or run `rowcast migrate up` as an owner.".into(),
            _ => String::new(),
        }
    }
}

/// How to reach the database. `Debug` hides the password.
#[derive(Clone)]
pub struct PgConfig {
    /// Parsed `DATABASE_URL`, without its TLS parameters.
    pub connection: tokio_postgres::Config,
    /// Its TLS parameters.
    pub tls: TlsParameters,
    /// Under `verify-ca`, a name on the server's certificate.
    pub verified_name: VerifiedName,
    connector: MakeRustlsConnect,
    /// Most connections for queries, 8 by default. The stream has one of its own.
    pub pool_size: usize,
    /// For connecting and for waiting on the pool.
    pub connect_timeout: Duration,
    /// `statement_timeout` of ordinary queries.
    pub statement_timeout: Duration,
}

impl std::fmt::Debug for PgConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PgConfig").field("connection", &self.connection).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl PgConfig {
    /// Parses `DATABASE_URL`.
    pub fn from_url(url: &str) -> Result<PgConfig, PgError> {
        let (url, tls) = TlsParameters::take(url)?;
        let mut connection: tokio_postgres::Config = url.parse().map_err(PgError::Url)?;
        // What was not taken out would be overruled by what was.
        if connection.get_ssl_mode() != tokio_postgres::config::SslMode::Prefer {
            let text = "sslmode can't be read where it stands; percent-encode `?`, `@`, `/` and `#` in the password";
            return Err(PgError::Unsupported(text.into()));
        }
        connection.ssl_mode(tls.plain_mode());
        if connection.get_hosts().is_empty() {
            return Err(PgError::Unsupported("it names no host".into()));
        }
        if connection.get_user().is_none() {
            return Err(PgError::Unsupported("it names no user".into()));
        }
        let is_address = |host: &Host| matches!(host, Host::Tcp(name) if name.parse::<std::net::IpAddr>().is_ok());
        if tls.mode == SslMode::VerifyFull && connection.get_hosts().iter().any(is_address) {
            // The replication library does not compare addresses with certificates.
            let text =
                "sslmode=verify-full needs the server's name, not its address; give both as host=NAME hostaddr=ADDRESS";
            return Err(PgError::Unsupported(text.into()));
        }
        let verified_name = VerifiedName::default();
        let connector = tls.connector(&verified_name)?;
        Ok(PgConfig {
            connection,
            tls,
            verified_name,
            connector,
            pool_size: 8,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
        })
    }

    /// The same server and database for another user; without a password if there is none, not with the first one's.
    pub fn as_user(&self, user: &str, password: Option<&str>) -> PgConfig {
        let mut config = self.clone();
        config.connection.user(user).password(password.unwrap_or_default());
        config
    }

    /// The connection parameters with our pinned settings.
    fn pinned(&self) -> tokio_postgres::Config {
        self.pinned_with("")
    }

    /// The same with further ones for the server's command line.
    fn pinned_with(&self, more: &str) -> tokio_postgres::Config {
        let mut connection = self.connection.clone();
        let timeout = self.statement_timeout.as_millis();
        let own = connection.get_options().unwrap_or_default();
        let options = format!(
            "{own} {TEXT_SETTINGS} -c statement_timeout={timeout} -c idle_in_transaction_session_timeout=30000 -c lock_timeout=5000{more}"
        );
        connection.options(options.trim());
        connection.connect_timeout(self.connect_timeout);
        if connection.get_application_name().is_none() {
            connection.application_name("rowcast");
        }
        connection
    }

    /// One connection outside the pool, with its driver running as a task that ends when the client is dropped.
    pub async fn connect(&self) -> Result<tokio_postgres::Client, PgError> {
        let connecting = self.pinned();
        let connecting = connecting.connect(self.connector.clone());
        let connected = tokio::time::timeout(self.connect_timeout, connecting).await;
        let (client, connection) =
            connected.map_err(|_| PgError::Timeout(self.connect_timeout))?.map_err(PgError::Connect)?;
        drop(crate::task::spawn("pg-connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = %crate::error::chain(&error), "a database connection ended");
            }
        }));
        Ok(client)
    }

    /// A pool of such connections; opens none yet.
    pub fn pool(&self) -> Result<Pool, PgError> {
        self.pool_of(self.pinned(), self.pool_size, RecyclingMethod::Verified)
    }

    /// A pool for questions about rows, of this many connections: read-only by themselves, and lent without asking the server
    /// first whether it is still there, which would double what a question costs. A way that is dead shows after
    /// five seconds, and the question is asked again on another.
    pub fn asking_pool(&self, connections: usize) -> Result<Pool, PgError> {
        let mut config = self.pinned_with(" -c default_transaction_read_only=on");
        config.tcp_user_timeout(SILENCE);
        self.pool_of(config, connections, RecyclingMethod::Fast)
    }

    fn pool_of(
        &self,
        config: tokio_postgres::Config,
        size: usize,
        recycling_method: RecyclingMethod,
    ) -> Result<Pool, PgError> {
        let manager = Manager::from_config(config, self.connector.clone(), ManagerConfig { recycling_method });
        let pool = deadpool_postgres::Pool::builder(manager)
            .max_size(size)
            .wait_timeout(Some(self.connect_timeout))
            .create_timeout(Some(self.connect_timeout))
            .recycle_timeout(Some(self.connect_timeout))
            .runtime(deadpool_postgres::Runtime::Tokio1)
            .build()
            .map_err(|e| PgError::Pool(e.to_string()))?;
        Ok(Pool { pool, timeout: self.connect_timeout })
    }
}

/// The pool for ordinary queries. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    pool: deadpool_postgres::Pool,
    timeout: Duration,
}

impl Pool {
    /// A connection, within the connect timeout.
    pub async fn get(&self) -> Result<deadpool_postgres::Object, PgError> {
        self.pool.get().await.map_err(|error| match error {
            deadpool_postgres::PoolError::Timeout(_) => PgError::Timeout(self.timeout),
            deadpool_postgres::PoolError::Backend(error) => PgError::Connect(error),
            other => PgError::Pool(other.to_string()),
        })
    }

    /// Closes it: waiting and later calls fail.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// A pooled connection that goes back to the pool only when it is taken out after its work was finished; otherwise it is
/// closed, since the server may be busy with statements that nobody waits for.
pub struct Lent(pub Option<deadpool_postgres::Object>);

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(deadpool_postgres::Object::take(object));
        }
    }
}

/// Runs futures together, each polled for the first time in the given order, so that what they send is in that order.
pub async fn in_order<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let running = futures.into_iter().map(|f| Box::pin(future::maybe_done(f)));
    let mut running: Vec<Pin<Box<MaybeDone<F>>>> = running.collect();
    future::poll_fn(|context| {
        let mut pending = false;
        for future in &mut running {
            pending |= future.as_mut().poll(context).is_pending();
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    running.iter_mut().filter_map(|done| done.as_mut().take_output()).collect()
}

/// What [`assume`] executes: claims as JSON, subject, role. The role comes last: the earlier settings are made with our own rights.
pub const ASSUME: &str = "select set_config('request.jwt.claims', $1, true), set_config('request.jwt.claim.sub', $2, true), \
    set_config('request.jwt.claim.role', $3, true), set_config('role', $3, true)";

/// Makes this transaction run as the role with the claims that PostgREST and Supabase Realtime would set
/// (`protocol.md` §6.3, decision 8). Transaction-local, so the session keeps nothing.
pub async fn assume(
    transaction: &Transaction<'_>,
    role: &str,
    subject: &str,
    claims_json: &str,
) -> Result<(), tokio_postgres::Error> {
    transaction.query_one(ASSUME, &[&claims_json, &subject, &role]).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_cannot_work_are_refused_with_the_reason() {
        for (url, says) in [
            ("nonsense", "not a PostgreSQL connection string"),
            ("postgres://u@h/d?sslmode=allow", "sslmode=allow"),
            ("postgres://u:pa?ss@h/d?sslmode=require", "percent-encode"),
            ("postgres://u@h/d?%73slmode=require", "percent-encode"),
            ("postgres://u@10.0.0.1/d?sslmode=verify-full", "needs the server's name"),
            ("dbname=x user=y", "names no host"),
        ] {
            let error = PgConfig::from_url(url).expect_err(url);
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.remedy(), Remedy::Operator);
        }
        for url in ["postgres://u:p@h:5433/d", "postgres://u@h/d?sslmode=require", "host=h user=u sslmode=verify-full"]
        {
            assert!(PgConfig::from_url(url).is_ok(), "{url}");
        }
    }
}
