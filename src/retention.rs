//! Retention on a schedule: calls `rowcast.run_retention`, the same procedure that a DBA calls by hand.
//!
//! Invariants:
//! * Runs only if the setting says so, on a connection of its own: deleting never delays a question or a reading of the rules.
//! * One call lasts a few seconds and holds the procedure's advisory lock that long, so any number of relays and people take
//!   turns. A drain waits for no batch: it ends the session, and Postgres rolls the batch back.
//! * The deletes carry the origin [`crate::change::RETENTION_ORIGIN`]. Where the login may not mark them, nothing is deleted.
//!
//! Rejected: deleting from here with statements of our own. The rules, the rights and the marking would exist twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::clock::Clock;
use crate::error::chain;
use crate::metrics::Metrics;
use crate::pg::{PgConfig, PgError};
use crate::task::Drain;

/// How long one call goes on starting batches.
const CALL: &str = "call rowcast.run_retention(lasted => '5 seconds')";
/// For one call, its last batch included. The server gives up a little earlier than we do.
const DEADLINE: Duration = Duration::from_secs(90);
/// For ending a session at the drain.
const GOODBYE: Duration = Duration::from_secs(2);
/// Between two calls of one run.
const BREATH: Duration = Duration::from_millis(100);

/// The task; see the module's comment.
pub struct Retention {
    /// The database.
    pub pg: PgConfig,
    /// From the start of one run to the next.
    pub interval: Duration,
    /// Nothing is deleted before changes stream.
    pub ready: watch::Receiver<bool>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For the time of the last run.
    pub clock: Clock,
    /// When to stop.
    pub drain: Drain,
}

/// What one call did.
#[derive(Debug, PartialEq, Eq)]
struct Called {
    deleted: u64,
    partitions: i32,
    more: bool,
    busy: bool,
    errors: Option<String>,
}

impl Retention {
    /// Runs until the drain.
    pub async fn run(mut self) {
        let drain = self.drain.clone();
        let session = AtomicI32::new(0);
        tokio::select! {
            () = drain.draining() => {}
            () = self.forever(&session) => {}
        }
        let pid = session.into_inner();
        if pid != 0
            && let Err(error) =
                tokio::time::timeout(GOODBYE, self.end(pid)).await.unwrap_or(Err(PgError::Timeout(GOODBYE)))
        {
            tracing::warn!(
                error = chain(&error),
                "a session that runs retention goes on after us, for some seconds at most"
            );
        }
    }

    /// Dropping the client is not enough: the session would finish its call first.
    async fn end(&self, pid: i32) -> Result<(), PgError> {
        let sql = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where pid = $1 and usename = current_user and query like 'call rowcast.run_retention%'";
        let ended = self.pg.connect().await?.execute(sql, &[&pid]).await;
        ended.map(drop).map_err(PgError::query("cannot end the session that runs retention"))
    }

    async fn forever(&mut self, session: &AtomicI32) {
        let mut told = String::new();
        // Closed only if ingest is gone, and then the process ends.
        if self.ready.wait_for(|ready| *ready).await.is_err() {
            return std::future::pending().await;
        }
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let ended = self.once(session).await;
            session.store(0, Ordering::Relaxed);
            let problem = match ended {
                Ok(problem) => problem,
                Err(error) => {
                    self.count("failed");
                    let rights = error.sqlstate() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
                    let advice = if rights { "; sql/roles.sql -v runner=relay gives a login the rights" } else { "" };
                    Some(chain(&error) + advice)
                }
            };
            match problem {
                Some(text) if text != told => {
                    tracing::warn!(error = text, "retention failed; it will be tried again");
                    told = text;
                }
                Some(_) => {}
                None => told.clear(),
            }
        }
    }

    /// Calls until nothing is left, and says what did not work.
    async fn once(&self, session: &AtomicI32) -> Result<Option<String>, PgError> {
        let mut pg = self.pg.clone();
        pg.statement_timeout = DEADLINE - Duration::from_secs(5);
        let client = pg.connect().await?;
        let what = "cannot ask for the session's number";
        let row = client.query_one("select pg_backend_pid()", &[]).await.map_err(PgError::query(what))?;
        session.store(row.try_get(0).map_err(PgError::query(what))?, Ordering::Relaxed);
        // So that the server notices when we are killed. Not every platform has it.
        let _ = client.batch_execute("set client_connection_check_interval = '1s'").await;
        loop {
            let called = call(&client).await?;
            self.metrics.retention_rows.inc_by(called.deleted);
            if called.deleted > 0 || called.partitions > 0 {
                tracing::info!(rows = called.deleted, partitions = called.partitions, "retention removed");
            }
            if called.busy {
                self.count("busy");
                return Ok(None);
            }
            if let Some(errors) = called.errors {
                self.count("failed");
                return Ok(Some(errors));
            }
            if !called.more {
                self.count("done");
                self.metrics.retention_last_run.set(self.clock.unix_seconds());
                return Ok(None);
            }
            tokio::time::sleep(BREATH).await;
        }
    }

    fn count(&self, result: &'static str) {
        self.metrics.retention_runs.get_or_create(&[("result", result)]).inc();
    }
}

async fn call(client: &Client) -> Result<Called, PgError> {
    let what = "cannot run retention";
    let called = tokio::time::timeout(DEADLINE, client.query_one(CALL, &[])).await;
    let row = called.map_err(|_| PgError::Timeout(DEADLINE))?.map_err(PgError::query(what))?;
    let read = || -> Result<Called, tokio_postgres::Error> {
        Ok(Called {
            deleted: row.try_get::<_, i64>("deleted")?.unsigned_abs(),
            partitions: row.try_get("partitions")?,
            more: row.try_get("more")?,
            busy: row.try_get("busy")?,
            errors: row.try_get("errors")?,
        })
    };
    read().map_err(PgError::query(what))
}
