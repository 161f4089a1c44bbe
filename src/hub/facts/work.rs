//! What is done about fact tables beside the hub.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::catalog::Snapshot;
use crate::pg::Pool;
use crate::policy::facts::{self, FactTable, Layout, LoadError, LoadLimits, PublishError};

/// For all writers that were at work when a load began.
const WRITERS_DEADLINE: Duration = Duration::from_secs(600);
/// A writer that is waited for longer is reported.
const PATIENCE_WITH_WRITERS: Duration = Duration::from_secs(5);

pub(super) enum Outcome {
    Added(Result<(), PublishError>),
    Loaded(Box<Result<(FactTable, Snapshot), LoadError>>),
    /// Writers that did not end.
    Blocked(String),
}

pub(super) struct Done {
    pub(super) table: u32,
    pub(super) ticket: u64,
    pub(super) took: Duration,
    /// When it ended.
    pub(super) at: Instant,
    pub(super) outcome: Outcome,
}

/// Reads one table, beside the hub.
pub(super) struct Load {
    pub(super) pool: Pool,
    pub(super) layout: Arc<Layout>,
    pub(super) limits: LoadLimits,
    pub(super) name: Arc<str>,
    pub(super) loads: Arc<Semaphore>,
}

impl Load {
    pub(super) async fn run(self) -> Outcome {
        let mut reported = Duration::ZERO;
        let report = |writers: &facts::Writers, waited: Duration| {
            if waited >= PATIENCE_WITH_WRITERS && (reported.is_zero() || waited >= reported * 2) {
                reported = waited;
                tracing::warn!(
                    table = %self.name, %writers, ?waited,
                    "the facts of this table wait for transactions that began to write to it before"
                );
            }
        };
        // Intermediate partitioned tables are never locked alone by who writes.
        let mut tables = self.layout.leaves.clone();
        tables.push(self.layout.table_oid);
        match facts::wait_for_writers(&self.pool, &tables, WRITERS_DEADLINE, report).await {
            Ok(left) if left.is_empty() => {}
            Ok(left) => return Outcome::Blocked(left.to_string()),
            Err(error) => return Outcome::Loaded(Box::new(Err(error.into()))),
        }
        // Never closed; and whoever waits for Postgres's rows has a deadline.
        let _permit = self.loads.acquire().await;
        Outcome::Loaded(Box::new(facts::load(&self.pool, &self.layout, &self.limits).await))
    }
}
