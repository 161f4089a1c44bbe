//! The catalog as the hub uses it: read again at least once an interval, and whenever somebody asks.
//!
//! Invariants:
//! * Rules older than [`Rules::is_fresh`] allows judge nobody: the hub waits for the next read. An unreadable catalog is
//!   therefore "undecided", and what came meanwhile waits in the log.
//! * Age counts from the *start* of a read: what committed before it is in it.
//!
//! Rejected: event triggers alone as the signal. They need a superuser, and roles, memberships and disabled triggers give none.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_postgres::Row;

use super::freshness::Mark;
use crate::catalog::{self, Catalog, Snapshot, Wanted};
use crate::clock::Clock;
use crate::error::chain;
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::task::Drain;

/// One reading.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// The same `Arc` as long as the rules are the same.
    pub(super) catalog: Arc<Catalog>,
    /// What this reading could see; newer than the catalog's own if the rules have not changed since.
    pub(super) snapshot: Snapshot,
    /// The token roles it was read for, those that don't exist included.
    pub(super) roles: Arc<BTreeSet<String>>,
    /// When the read began.
    pub(super) read_at: Instant,
    /// Where WAL ended then, if that was wanted.
    pub(super) mark: Option<Mark>,
}

impl Rules {
    pub(super) fn is_fresh(&self, max_age: Duration) -> bool {
        self.read_at.elapsed() <= max_age
    }
}

/// What the hub and its helpers hold of the reader.
#[derive(Clone)]
pub(super) struct RulesHandle {
    latest: watch::Receiver<Option<Rules>>,
    shared: Arc<Requests>,
}

struct Requests {
    roles: Mutex<BTreeSet<String>>,
    wake: Notify,
    /// It is wanted where WAL ends.
    marks: AtomicBool,
}

impl RulesHandle {
    /// The latest reading, if there is one.
    pub(super) fn latest(&self) -> Option<Rules> {
        self.latest.borrow().clone()
    }

    /// Resolves at the next reading.
    pub(super) async fn changed(&mut self) {
        if self.latest.changed().await.is_err() {
            // The reader ends at the drain only; who waits here is about to end too.
            std::future::pending::<()>().await;
        }
    }

    /// Asks for a reading that begins after this call.
    pub(super) fn request(&self) {
        self.shared.wake.notify_one();
    }

    /// Whether each reading that begins from now on is to say where WAL ends.
    pub(super) fn want_marks(&self, wanted: bool) {
        self.shared.marks.store(wanted, Ordering::Relaxed);
    }

    /// Has the rules read for this role too, from the next reading on.
    pub(super) fn want(&self, role: &str) {
        if self.add(role) {
            self.request();
        }
    }

    /// Whether there is room for it.
    fn add(&self, role: &str) -> bool {
        let mut roles = self.shared.roles.lock().unwrap_or_else(PoisonError::into_inner);
        if roles.len() >= MAX_ROLES && !roles.contains(role) {
            return false;
        }
        roles.insert(role.to_owned());
        true
    }

    /// A reading that knows this role, within the deadline.
    pub(super) async fn with_role(&mut self, role: &str, deadline: Duration) -> Option<Rules> {
        if !self.add(role) {
            return None;
        }
        let knows = |rules: &Option<Rules>| rules.as_ref().is_some_and(|r| r.roles.contains(role));
        if !knows(&self.latest.borrow()) {
            self.request();
        }
        let waiting = self.latest.wait_for(knows);
        tokio::time::timeout(deadline, waiting).await.ok()?.ok()?.clone()
    }
}

/// Reads until the drain.
pub(super) struct RulesReader {
    pool: Pool,
    publications: Vec<String>,
    others: Vec<String>,
    interval: Duration,
    metrics: Arc<Metrics>,
    clock: Clock,
    drain: Drain,
    publish: watch::Sender<Option<Rules>>,
    shared: Arc<Requests>,
}

/// Roles that tokens name can be invented by whoever signs tokens, not by strangers; still, the list must end somewhere. Those
/// that came first stay: nobody loses his role to a newcomer.
const MAX_ROLES: usize = 1000;

/// What was committed before is written: whoever commits asynchronously waits for it no longer than `wal_writer_delay`, three
/// times at the most. A standby, which a connection may reach during a failover, has no such place. The name of a file of WAL
/// begins with the timeline.
const END_OF_WAL: &str = "select pg_catalog.pg_current_wal_flush_lsn()::text, \
    pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_flush_lsn()), 8), \
    (select system_identifier from pg_catalog.pg_control_system()) \
    where not pg_catalog.pg_is_in_recovery()";

impl RulesReader {
    pub(super) fn new(
        pool: Pool,
        (publications, others): (Vec<String>, Vec<String>),
        interval: Duration,
        (clock, metrics): (Clock, Arc<Metrics>),
        drain: Drain,
    ) -> (RulesReader, RulesHandle) {
        let (publish, latest) = watch::channel(None);
        let roles: BTreeSet<String> = ["anon", "authenticated", "service_role"].map(String::from).into();
        let shared =
            Arc::new(Requests { roles: Mutex::new(roles), wake: Notify::new(), marks: AtomicBool::new(false) });
        let reader = RulesReader {
            pool,
            publications,
            others,
            interval,
            metrics,
            clock,
            drain,
            publish,
            shared: shared.clone(),
        };
        (reader, RulesHandle { latest, shared })
    }

    pub(super) async fn run(self) {
        let mut failing = false;
        loop {
            let (read_at, unix) = (Instant::now(), self.clock.unix_seconds());
            let roles = self.roles();
            match self.read(&roles).await {
                Ok((catalog, mark)) => {
                    if read_at.elapsed() > self.interval {
                        tracing::warn!(took = ?read_at.elapsed(), "reading the catalog is slow; changes wait for it");
                    }
                    if failing {
                        tracing::info!("the catalog is readable again");
                    }
                    failing = false;
                    self.publish(catalog, mark, roles, read_at);
                    self.metrics.catalog_read_timestamp.set(unix);
                }
                Err(error) => {
                    self.count("failed");
                    if !failing {
                        tracing::warn!(error, "the catalog can't be read; changes wait in the log until it can");
                    }
                    failing = true;
                }
            }
            let pause = tokio::time::sleep_until(read_at + self.interval);
            tokio::select! {
                biased;
                () = self.drain.draining() => return,
                () = self.shared.wake.notified() => {}
                () = pause => {}
            }
        }
    }

    fn roles(&self) -> Arc<BTreeSet<String>> {
        Arc::new(self.shared.roles.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn read(&self, roles: &BTreeSet<String>) -> Result<(Catalog, Option<Mark>), String> {
        let (publications, others) = (self.publications.clone(), self.others.clone());
        let wanted = Wanted { publications, others, roles: roles.clone() };
        let mut connection = self.pool.get().await.map_err(|e| chain(&e))?;
        let catalog = catalog::read(&mut connection, &wanted).await.map_err(|e| chain(&e))?;
        if !self.shared.marks.load(Ordering::Relaxed) {
            return Ok((catalog, None));
        }
        // Without an answer there is no mark, and that says enough.
        let asked_at = Instant::now();
        let found = connection.query_opt(END_OF_WAL, &[]).await.ok().flatten();
        Ok((catalog, found.and_then(|row| mark(&row, asked_at))))
    }

    /// Keeps the catalog's `Arc` while the rules are the same, so that what was made from it need not be compared again.
    fn publish(&self, catalog: Catalog, mark: Option<Mark>, roles: Arc<BTreeSet<String>>, read_at: Instant) {
        let snapshot = catalog.snapshot.clone();
        let known = self.publish.borrow().as_ref().map(|rules| rules.catalog.clone());
        let same = known.filter(|known| known.same_rules(&catalog));
        self.count(if same.is_some() { "same" } else { "changed" });
        let catalog = same.unwrap_or_else(|| Arc::new(catalog));
        self.publish.send_replace(Some(Rules { catalog, snapshot, roles, read_at, mark }));
    }

    fn count(&self, result: &'static str) {
        self.metrics.catalog_reads.get_or_create(&[("result", result)]).inc();
    }
}

/// What [`END_OF_WAL`] has found.
fn mark(row: &Row, asked_at: Instant) -> Option<Mark> {
    let (written, timeline): (String, String) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
    // Postgres has it as a signed number; it is not one.
    let system = row.try_get::<_, i64>(2).ok()?.cast_unsigned();
    let server = (system, u32::from_str_radix(&timeline, 16).ok()?);
    Some(Mark { asked_at, written: written.parse().ok()?, server })
}
