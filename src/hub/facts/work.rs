//! What is done about fact tables beside the hub.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Keeper;
use crate::catalog::{Catalog, Snapshot};
use crate::pg::Pool;
use crate::policy::facts::{self, FactTable, Layout, LoadError, LoadLimits, Lookups, PublishError};
use crate::policy::rule::Rule;

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
    pub(super) lookups: Lookups,
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
        let mut loaded = facts::load(&self.pool, &self.layout, &self.limits).await;
        if let Ok((table, _)) = &mut loaded {
            table.prepare(&self.lookups);
            if table.bytes() > self.limits.bytes {
                loaded = Err(LoadError::TooLarge { limit: self.limits.bytes });
            }
        }
        Outcome::Loaded(Box::new(loaded))
    }
}

impl Keeper {
    /// What the rules in use look up in a table of this layout.
    pub(super) fn lookups(&self, catalog: &Catalog, layout: &Arc<Layout>) -> Lookups {
        let looks = |rule: &&Arc<Rule>| rule.sources.iter().any(|source| source.table_oid == layout.table_oid);
        let rules: Vec<Arc<Rule>> = self.rules.values().chain(&self.channels.1).filter(looks).cloned().collect();
        let others = rules.iter().flat_map(|rule| &rule.sources).map(|source| source.table_oid);
        let others: BTreeSet<u32> = others.filter(|oid| *oid != layout.table_oid).collect();
        let of = |oid: &u32| {
            let (table, entry) = (catalog.table(*oid)?, self.entries.get(oid)?);
            Layout::of(table, catalog.types(), &entry.columns).ok().map(Arc::new)
        };
        let layouts: Vec<Arc<Layout>> = [layout.clone()].into_iter().chain(others.iter().filter_map(of)).collect();
        Lookups::of(&layouts, &rules)
    }
}
