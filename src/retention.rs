//! Retention on a schedule: calls `rowcast.run_retention`, the same procedure that a DBA calls by hand.
//!
//! Invariants:
//! * Runs only if the setting says so, on a connection of its own: deleting never delays a question or a reading of the rules.
//! * One call lasts a few seconds and holds the procedure's advisory lock that long, so any number of relays and people take
//!   turns, and a drain waits for no batch: the connection is dropped and Postgres rolls the batch back.
//! * The deletes carry the origin [`crate::change::RETENTION_ORIGIN`]. Where the login may not mark them, nothing is deleted.
//!
//! Rejected: deleting from here with statements of our own. The rules, the rights and the marking would exist twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;

use crate::clock::Clock;
use crate::error::chain;
use crate::metrics::Metrics;
use crate::pg::{PgConfig, PgError};
use crate::task::Drain;

/// How long one call goes on starting batches.
const CALL: &str = "call rowcast.run_retention(lasted => '5 seconds')";
/// For one call, its last batch included. The server gives up a little earlier than we do.
const DEADLINE: Duration = Duration::from_secs(90);
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
        tokio::select! {
            () = drain.draining() => {}
            () = self.forever() => {}
        }
    }

    async fn forever(&mut self) {
        let mut told = String::new();
        // Closed only if ingest is gone, and then the process ends.
        if self.ready.wait_for(|ready| *ready).await.is_err() {
            return std::future::pending().await;
        }
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let problem = match self.once().await {
                Ok(problem) => problem,
                Err(error) => {
                    self.count("failed");
                    Some(chain(&error))
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
    async fn once(&self) -> Result<Option<String>, PgError> {
        let client =
            PgConfig { statement_timeout: DEADLINE - Duration::from_secs(5), ..self.pg.clone() }.connect().await?;
        // So that the server notices at once when we go away. Not every platform has it.
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
