//! The slot as the server sees it, looked at every 15 seconds: how far we are behind, how much WAL is kept for us, and when
//! that will be too much.
//!
//! Invariants: it only measures; a database that does not answer changes nothing but a counter, and what it last said stays.
//! The forecast looks back over minutes, since `restart_lsn` moves in jumps.
//!
//! Rejected: computing the lag from ingest's own positions, which know nothing of what the server keeps, and are silent just
//! when the stream is down and the lag matters.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::chain;
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::task::Drain;

const INTERVAL: Duration = Duration::from_secs(15);
/// For one look.
const DEADLINE: Duration = Duration::from_secs(5);
/// How far the forecast looks back.
const WINDOW: Duration = Duration::from_secs(300);

/// A limit this near is worth a line.
const NEAR: f64 = 6.0 * 3600.0;

const SQL: &str = "with here as (select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
     else pg_current_wal_lsn() end as lsn) \
     select active, wal_status, safe_wal_size, (lsn - confirmed_flush_lsn)::int8, (lsn - restart_lsn)::int8, \
     (select setting::int8 from pg_settings where name = 'idle_replication_slot_timeout') \
     from pg_replication_slots, here where slot_name = $1";

/// What the server said at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    active: bool,
    lost: bool,
    /// Bytes of WAL that may be written before the slot is over its limit; `None` without a limit.
    safe: Option<i64>,
    lag: i64,
    retained: i64,
    /// Seconds without a reader after which the server gives the slot up; 0 for never.
    idle_timeout: i64,
}

/// Looks until the drain.
pub(super) struct Watch {
    pool: Pool,
    slot: String,
    metrics: Arc<Metrics>,
    drain: Drain,
    /// Of the last five minutes, oldest first.
    history: VecDeque<(Instant, i64)>,
    /// The limit is near, and that was said.
    near: bool,
    /// What was said of the time without a reader.
    idle_timeout: i64,
}

impl Watch {
    pub(super) fn new(pool: Pool, slot: &str, metrics: Arc<Metrics>, drain: Drain) -> Watch {
        metrics.slot_forecast.set(f64::INFINITY);
        Watch { pool, slot: slot.to_owned(), metrics, drain, history: VecDeque::new(), near: false, idle_timeout: 0 }
    }

    pub(super) async fn run(mut self) {
        let mut streaming_soon = Duration::from_secs(1);
        loop {
            tokio::select! {
                () = self.drain.draining() => return,
                () = tokio::time::sleep(streaming_soon) => {}
            }
            let result = match tokio::time::timeout(DEADLINE, self.look()).await {
                Ok(Ok(Some(look))) => self.seen(look, Instant::now()),
                Ok(Ok(None)) => "missing",
                Ok(Err(error)) => {
                    tracing::debug!(error, "the slot could not be looked at");
                    "failed"
                }
                Err(_) => "failed",
            };
            self.metrics.slot_looks.get_or_create(&[("result", result)]).inc();
            streaming_soon = if result == "missing" { Duration::from_secs(1) } else { INTERVAL };
        }
    }

    async fn look(&self) -> Result<Option<Look>, String> {
        let connection = self.pool.get().await.map_err(|error| chain(&error))?;
        let row = connection.query_opt(SQL, &[&self.slot]).await.map_err(|error| chain(&error))?;
        let Some(row) = row else { return Ok(None) };
        let status: Option<&str> = row.get(1);
        let number = |column: usize| row.get::<_, Option<i64>>(column);
        Ok(Some(Look {
            active: row.get(0),
            lost: status == Some("lost"),
            safe: number(2),
            lag: number(3).unwrap_or(0).max(0),
            retained: number(4).unwrap_or(0).max(0),
            idle_timeout: number(5).unwrap_or(0),
        }))
    }

    /// The metrics' label.
    fn seen(&mut self, look: Look, now: Instant) -> &'static str {
        let metrics = &self.metrics;
        metrics.slot_active.set(i64::from(look.active));
        metrics.slot_lag.set(look.lag);
        metrics.slot_retained.set(look.retained);
        let forecast = if look.lost { 0.0 } else { forecast(&mut self.history, look.safe, now) };
        metrics.slot_forecast.set(forecast);
        self.warn(look, forecast);
        if look.lost { "lost" } else { "seen" }
    }
}

impl Watch {
    /// Says once what a person can still do something about.
    fn warn(&mut self, look: Look, forecast: f64) {
        if look.idle_timeout != self.idle_timeout {
            self.idle_timeout = look.idle_timeout;
            if look.idle_timeout > 0 {
                let hours = look.idle_timeout as f64 / 3600.0;
                tracing::warn!(
                    hours,
                    advice = "ALTER SYSTEM SET idle_replication_slot_timeout = 0, or never stop the relay for longer",
                    "the server gives up a slot that nobody reads for so many hours (idle_replication_slot_timeout): a relay \
                     that is stopped for longer begins a new history, and clients are told of a gap"
                );
            }
        }
        // Back from the edge only with some distance, so that it is not said again and again.
        let near = look.safe.is_some() && forecast < if self.near { 2.0 * NEAR } else { NEAR };
        if near && !self.near {
            let advice = if look.active {
                "The relay reads, so something else keeps the slot back: a transaction that is open for long (SELECT pid, \
                 usename, xact_start FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start), or a full disk \
                 here. End it, or raise max_slot_wal_keep_size."
            } else {
                "Nobody reads the slot. Get changes streaming again (the lines before say why they don't), or raise \
                 max_slot_wal_keep_size."
            };
            tracing::warn!(
                seconds = forecast,
                retained = look.retained,
                left = look.safe,
                advice,
                "the server keeps so much WAL for the slot that it will soon be over max_slot_wal_keep_size; it then gives the \
                 slot up, and clients are told of a gap"
            );
        }
        self.near = near;
    }
}

/// Seconds until nothing is left, at the rate of the history, to which this look is added.
fn forecast(history: &mut VecDeque<(Instant, i64)>, safe: Option<i64>, now: Instant) -> f64 {
    let Some(safe) = safe else {
        history.clear();
        return f64::INFINITY;
    };
    while history.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
        history.pop_front();
    }
    history.push_back((now, safe));
    if safe <= 0 {
        return 0.0;
    }
    let Some((first_at, first)) = history.front() else { return f64::INFINITY };
    let (seconds, used) = (now.saturating_duration_since(*first_at).as_secs_f64(), first - safe);
    if seconds <= 0.0 || used <= 0 { f64::INFINITY } else { safe as f64 * seconds / used as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forecast_is_what_is_left_at_the_rate_of_the_last_minutes() {
        let (start, mut history) = (Instant::now(), VecDeque::new());
        let mut at = |seconds, safe| forecast(&mut history, safe, start + Duration::from_secs(seconds));
        assert_eq!(at(0, Some(1000)), f64::INFINITY);
        assert_eq!(at(15, Some(850)), 85.0);
        // The slot moves on: more is free than at the beginning.
        assert_eq!(at(30, Some(2000)), f64::INFINITY);
        // Five minutes later only what is in the window counts.
        assert_eq!(at(330, Some(1400)), 1400.0 * 300.0 / 600.0);
        assert_eq!(at(345, Some(-5)), 0.0);
        assert_eq!(at(360, None), f64::INFINITY);
        assert_eq!(at(375, Some(100)), f64::INFINITY);
    }
}
