//! Cares for the partitions of `realtime.messages` at the start and every hour: a task around [`tend`].
//!
//! Invariants: on a connection of its own, opened for each round, so that no question waits for it; any number of relays may
//! run it; a round that could not finish is tried again soon; the same trouble is logged once.
//!
//! Rejected: pg_cron, which is not everywhere; doing it when a row comes, which would be too late for the row.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::upkeep::{Scope, Tended, UpkeepError, tend};
use crate::clock::Clock;
use crate::error::{Fault as _, chain};
use crate::metrics::Metrics;
use crate::pg::{PgConfig, PgError};
use crate::task::Drain;

/// For one round.
const DEADLINE: Duration = Duration::from_secs(180);

/// How the partitions are cared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeeperConfig {
    /// Whose.
    pub scope: Scope,
    /// Messages are kept for so long after their day is over.
    pub keep: Duration,
    /// From the end of one round to the next.
    pub interval: Duration,
    /// The same if something was left to do.
    pub again: Duration,
}

impl Default for KeeperConfig {
    fn default() -> KeeperConfig {
        KeeperConfig {
            scope: Scope::Own,
            keep: Duration::from_secs(72 * 3600),
            interval: Duration::from_secs(3600),
            again: Duration::from_secs(60),
        }
    }
}

/// The task; see the module's comment.
pub struct Keeper {
    /// The database.
    pub pg: PgConfig,
    /// How.
    pub config: KeeperConfig,
    /// It begins when changes stream: before, the table may not be there yet.
    pub ready: watch::Receiver<bool>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// For the time of the last round.
    pub clock: Clock,
    /// When to stop.
    pub drain: Drain,
}

impl Keeper {
    /// Runs until the drain. A round that is under way then is rolled back by the server.
    pub async fn run(mut self) {
        let drain = self.drain.clone();
        tokio::select! {
            () = drain.draining() => {}
            () = self.forever() => {}
        }
    }

    async fn forever(&mut self) {
        // Closed only if ingest is gone, and then the process ends.
        if self.config.scope == Scope::Nothing || self.ready.wait_for(|ready| *ready).await.is_err() {
            return std::future::pending().await;
        }
        let mut told = String::new();
        loop {
            let trouble = self.round().await;
            let pause = if trouble.is_some() { self.config.again } else { self.config.interval };
            match trouble {
                Some(text) if text != told => {
                    tracing::warn!(
                        error = text,
                        "the partitions of realtime.messages need care; it will be tried again"
                    );
                    told = text;
                }
                Some(_) => {}
                None => told.clear(),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// What is left to do, if anything.
    async fn round(&self) -> Option<String> {
        let (result, trouble) = match self.tend().await {
            Ok(tended) => {
                self.metrics.messages_moved.inc_by(tended.moved);
                self.metrics.messages_partitions_dropped.inc_by(tended.dropped.len() as u64);
                note(&tended);
                match (tended.busy, tended.left.is_empty()) {
                    (true, _) => ("busy", None),
                    (false, true) => {
                        self.metrics.messages_upkeep_last_run.set(self.clock.unix_seconds());
                        ("done", None)
                    }
                    (false, false) => ("left", Some(tended.left.join("; "))),
                }
            }
            Err(error) => {
                let advice = error.advice();
                let advice = if advice.is_empty() { advice } else { format!("; {advice}") };
                ("failed", Some(chain(&error) + &advice))
            }
        };
        self.metrics.messages_upkeep.get_or_create(&[("result", result)]).inc();
        trouble
    }

    async fn tend(&self) -> Result<Tended, UpkeepError> {
        let mut pg = self.pg.clone();
        pg.statement_timeout = DEADLINE;
        let tending = async {
            let mut client = pg.connect().await?;
            tend(&mut client, self.config.scope, self.config.keep).await
        };
        tokio::time::timeout(DEADLINE, tending).await.map_err(|_| PgError::Timeout(DEADLINE))?
    }
}

fn note(tended: &Tended) {
    if tended.made.is_empty() && tended.dropped.is_empty() && tended.moved == 0 && tended.deleted == 0 {
        return;
    }
    let Tended { made, dropped, moved, deleted, .. } = tended;
    tracing::info!(?made, ?dropped, moved, deleted, "partitions of realtime.messages");
}
