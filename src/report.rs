//! The relay's own report: every ten seconds one row in `rowcast.relay_status`, from which `sql/monitor.sql` makes its tables.
//!
//! Invariants:
//! * Counts, times, positions, table names and subjects; never a row, a claim or a token.
//! * It harms nobody: a connection of its own, a deadline, and a failure is told once. The relay works as well without it.
//!
//! The metrics are taken from their text, so that whatever is measured is reported without being named here. Rejected: letting
//! the DBA ask the admin address, which is on another machine and for Prometheus.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::error::chain;
use crate::hub::{HubHandle, UserCount};
use crate::ingest::IngestHandle;
use crate::log::Log;
use crate::metrics::Metrics;
use crate::pg::{PgConfig, PgError};
use crate::task::{Connections, Drain};

/// For the hub's answer.
const HUB_DEADLINE: Duration = Duration::from_secs(2);

/// For one report.
const DEADLINE: Duration = Duration::from_secs(5);
const WRITE: &str = "insert into rowcast.relay_status (relay, slot, version, started_at, status) \
     values ($1, $2, $3, now() - make_interval(secs => $4), $5::text::jsonb) \
     on conflict (relay) do update set slot = excluded.slot, version = excluded.version, started_at = excluded.started_at, \
     reported_at = clock_timestamp(), status = excluded.status";

/// The task; see the module's comment.
pub struct Reporter {
    /// The database.
    pub pg: PgConfig,
    /// How often.
    pub interval: Duration,
    /// Ours; also the name under which we report, since no two relays can read one slot.
    pub slot: String,
    /// The log.
    pub log: Log,
    /// What ingest is doing.
    pub ingest: IngestHandle,
    /// The open connections.
    pub connections: Connections,
    /// Who is subscribed to what.
    pub hub: HubHandle,
    /// All that is counted.
    pub metrics: Arc<Metrics>,
    /// When to stop.
    pub drain: Drain,
}

impl Reporter {
    /// Reports until the drain.
    pub async fn run(self) {
        let drain = self.drain.clone();
        tokio::select! {
            () = drain.draining() => {}
            () = self.forever() => {}
        }
    }

    async fn forever(&self) {
        let started = tokio::time::Instant::now();
        let (mut client, mut told, mut before) = (None, false, Samples::default());
        let mut ready = self.ingest.ready.clone();
        // Before that, our table may not be there. Closed only if ingest is gone, and then the process ends.
        if ready.wait_for(|ready| *ready).await.is_err() {
            return std::future::pending().await;
        }
        let mut tick = tokio::time::interval(self.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = Samples::parse(&self.metrics.render());
            let status = self.status(&now, &before).await;
            before = now;
            let written = tokio::time::timeout(DEADLINE, self.write(&mut client, &status, started.elapsed())).await;
            let result = match written.unwrap_or(Err(PgError::Timeout(DEADLINE))) {
                Ok(()) => "written",
                Err(error) => {
                    client = None;
                    if !told {
                        tracing::warn!(
                            error = chain(&error),
                            "the relay's status can't be written to rowcast.relay_status; monitor.sql won't show it"
                        );
                        told = true;
                    }
                    "failed"
                }
            };
            self.metrics.reports.get_or_create(&[("result", result)]).inc();
        }
    }

    async fn write(&self, kept: &mut Option<Client>, status: &Value, age: Duration) -> Result<(), PgError> {
        let client = match kept.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.pg.connect().await?,
        };
        let text = status.to_string();
        let version = env!("CARGO_PKG_VERSION");
        let written = client.execute(WRITE, &[&self.slot, &self.slot, &version, &age.as_secs_f64(), &text]).await;
        written.map_err(PgError::query("cannot write the relay's status"))?;
        client
            .batch_execute("select rowcast.take_sample()")
            .await
            .map_err(PgError::query("cannot take a sample of the slots"))?;
        *kept = Some(client);
        Ok(())
    }

    async fn status(&self, now: &Samples, before: &Samples) -> Value {
        let hub = tokio::time::timeout(HUB_DEADLINE, self.hub.describe()).await.ok().flatten();
        let (tables, users) = hub.map(|hub| (hub.tables, hub.users)).unwrap_or_default();
        let tables: Vec<Value> =
            tables.iter().map(|t| json!({ "table": t.table, "subscriptions": t.subscriptions })).collect();
        let user = |user: &UserCount| {
            json!({
                "role": user.role, "user": user.subject, "channels": user.channels, "subscriptions": user.subscriptions
            })
        };
        let users: Vec<Value> = users.iter().map(user).collect();
        json!({
            "state": self.ingest.state.borrow().to_string(),
            "log": {
                "floor": self.log.floor().to_string(),
                "end": self.log.end().to_string(),
                "durable": self.log.durable().to_string(),
                "bytes": self.log.bytes(),
            },
            "tcp_connections": self.connections.len(),
            "counters": now.values,
            "latency": now.latencies(before),
            "tables": tables,
            "users": users,
        })
    }
}

/// The metrics' text, taken apart.
#[derive(Debug, Default)]
struct Samples {
    /// Counters and gauges by name, with their labels.
    values: BTreeMap<String, f64>,
    /// Histograms by name: upper bounds, ascending, with the number of observations up to each.
    histograms: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Samples {
    fn parse(text: &str) -> Samples {
        let mut samples = Samples::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            if let Some((name, rest)) = name.split_once("_bucket{le=\"") {
                let bound = rest.split('"').next().and_then(|bound| bound.parse().ok());
                samples.histograms.entry(name.to_owned()).or_default().push((bound.unwrap_or(f64::INFINITY), value));
            } else {
                samples.values.insert(name.to_owned(), value);
            }
        }
        samples
    }

    /// Of each histogram that has observed anything: how often, and its quantiles, since the start and since the last report.
    fn latencies(&self, before: &Samples) -> Value {
        let mut all = serde_json::Map::new();
        for (name, buckets) in &self.histograms {
            let count = buckets.last().map_or(0.0, |(_, count)| *count);
            if count == 0.0 {
                continue;
            }
            let recent: Vec<(f64, f64)> = match before.histograms.get(name) {
                Some(old) => buckets.iter().zip(old).map(|((bound, now), (_, then))| (*bound, now - then)).collect(),
                None => buckets.clone(),
            };
            let stage = name.trim_start_matches("rowcast_").trim_end_matches("_seconds");
            all.insert(
                stage.to_owned(),
                json!({
                    "count": count, "p50": quantile(buckets, 0.5), "p99": quantile(buckets, 0.99),
                    "recent": recent.last().map_or(0.0, |(_, count)| *count),
                    "recent_p50": quantile(&recent, 0.5), "recent_p99": quantile(&recent, 0.99),
                }),
            );
        }
        Value::Object(all)
    }
}

/// In seconds, interpolated within its bucket; `None` without observations. Above the last bound, that bound.
fn quantile(buckets: &[(f64, f64)], part: f64) -> Option<f64> {
    let total = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = total * part;
    let (mut below, mut counted) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= rank {
            if bound.is_infinite() {
                return Some(below);
            }
            let inside = if *count > counted { (rank - counted) / (count - counted) } else { 1.0 };
            return Some(below + (bound - below) * inside);
        }
        (below, counted) = (*bound, *count);
    }
    Some(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_measured_is_reported_without_being_named() {
        let metrics = Metrics::new();
        metrics.changes.inc_by(3);
        metrics.denials.get_or_create(&[("reason", "policy")]).inc_by(2);
        let before = Samples::parse(&metrics.render());
        for _ in 0..99 {
            metrics.commit_to_write.observe(0.001);
        }
        metrics.commit_to_write.observe(1.0);
        let now = Samples::parse(&metrics.render());
        assert_eq!(now.values["rowcast_changes_total"], 3.0);
        assert_eq!(now.values["rowcast_denials_total{reason=\"policy\"}"], 2.0);
        let latencies = now.latencies(&before);
        assert!(latencies.get("ask").is_none(), "never asked");
        let stage = &latencies["commit_to_write"];
        assert_eq!((&stage["count"], &stage["recent"]), (&json!(100.0), &json!(100.0)));
        let p50 = stage["p50"].as_f64().expect("a number");
        assert!((0.0005..0.002).contains(&p50), "{stage}");
        let later = now.latencies(&now);
        assert_eq!(later["commit_to_write"]["recent_p99"], Value::Null, "nothing since");
    }

    #[test]
    fn a_quantile_lies_in_the_bucket_that_holds_its_rank() {
        let buckets = [(1.0, 50.0), (2.0, 100.0), (f64::INFINITY, 101.0)];
        assert_eq!(quantile(&buckets, 0.5).map(|q| (q * 100.0).round()), Some(101.0));
        assert_eq!(quantile(&buckets, 1.0), Some(2.0));
        assert_eq!(quantile(&[(1.0, 0.0)], 0.5), None);
    }
}
