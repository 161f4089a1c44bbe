//! Every metric, in one struct: the field's doc comment is the metric's help text.
//!
//! What has a label begins with its usual values at zero, since to Prometheus the first of something that was not there
//! before is no increase.
//!
//! Rejected: metrics registered where they are used, which nobody can list.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// A counter per value of one label.
pub type Labelled = Family<[(&'static str, &'static str); 1], Counter>;

/// A gauge per value of one label.
pub type LabelledGauge = Family<[(&'static str, &'static str); 1], Gauge>;

/// A histogram of seconds per value of one label.
pub type LabelledHistogram = Family<[(&'static str, &'static str); 1], Histogram, fn() -> Histogram>;

/// A gauge of seconds with a fraction; may be infinite.
pub type Seconds = Gauge<f64, AtomicU64>;

fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident : $kind:ty = $name:literal $(in $unit:ident)? $(by $label:literal [$($value:literal),+])? $(, $make:expr)?;)*) => {
        /// All metrics of one relay.
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)*
        }

        impl Metrics {
            /// All at zero.
            pub fn new() -> Metrics {
                let mut registry = Registry::with_prefix("rowcast");
                $(
                    let $field: $kind = metrics!(@make $kind $(, $make)?);
                    let help = concat!($($help),+).trim().trim_end_matches('.');
                    metrics!(@register registry, $name, help, $field $(, $unit)?);
                    $($(drop($field.get_or_create(&[($label, $value)]));)+)?
                )*
                Metrics { registry, $($field,)* }
            }
        }
    };
    (@make $kind:ty) => { <$kind>::default() };
    (@make $kind:ty, $make:expr) => { $make };
    (@register $registry:ident, $name:literal, $help:ident, $field:ident) => {
        $registry.register($name, $help, $field.clone());
    };
    (@register $registry:ident, $name:literal, $help:ident, $field:ident, $unit:ident) => {
        $registry.register_with_unit($name, $help, Unit::$unit, $field.clone());
    };
}

metrics! {
    /// Transactions received from the replication stream
    transactions: Counter = "transactions";
    /// Row changes received from the replication stream, before any filter
    changes: Counter = "changes";
    /// Transactions that were too large for memory and went through a file
    spilled_transactions: Counter = "spilled_transactions";
    /// Times the replication stream was (re)connected
    stream_connects: Counter = "stream_connects";
    /// 1 while changes are streaming
    streaming: Gauge = "streaming";
    /// Replication stream failures by SQLSTATE class or kind
    stream_errors: Labelled = "stream_errors" by "kind" ["connection", "timeout", "silence", "authentication", "slot_lost"];
    /// 1 while a process holds our slot
    slot_active: Gauge = "slot_active";
    /// Bytes of WAL between the slot's confirmed position and the server's end of WAL, looked at every 15 s
    slot_lag: Gauge = "slot_lag" in Bytes;
    /// Bytes of WAL that the server keeps for the slot, from its restart_lsn, looked at every 15 s
    slot_retained: Gauge = "slot_retained" in Bytes;
    /// Seconds until the slot exceeds max_slot_wal_keep_size if it goes on as in the last five minutes; +Inf if it won't or there is no such limit
    slot_forecast: Seconds = "slot_forecast" in Seconds;
    /// Looks at the slot by result: seen, missing, lost (the server dropped WAL it needed), failed
    slot_looks: Labelled = "slot_looks" by "result" ["seen", "missing", "lost", "failed"];
    /// LSN up to which the log is durable and the slot confirmed
    confirmed_lsn: Gauge = "confirmed_lsn";
    /// Histories begun in the log by reason; every one after the first is a gap for clients that come back
    epochs: Labelled = "epochs" by "reason" ["new_slot", "slot_lost", "slot_invalidated", "slot_unreadable", "publication_replaced", "log_lost", "other_cluster", "other_history", "copy", "other_timeline", "promoted", "log_behind", "server_behind"];
    /// Sessions of our own that held the slot over a connection that was gone, and were ended
    slot_sessions_ended: Counter = "slot_sessions_ended";
    /// LSN of the oldest position that the log can be read from
    log_floor_lsn: Gauge = "log_floor_lsn";
    /// LSN of the log's end, durable or not
    log_end_lsn: Gauge = "log_end_lsn";
    /// Bytes in the log's segments
    log_bytes: Gauge = "log_size" in Bytes;
    /// Bytes of the log's newest transactions, kept in memory: grows with what is written until it is what `ROWCAST_LOG_MEMORY` allows
    log_memory: Gauge = "log_memory" in Bytes;
    /// Times an append to the log failed (disk full and the like)
    log_append_errors: Counter = "log_append_errors";
    /// Time one fsync of the log took
    log_fsync: Histogram = "log_fsync" in Seconds, latency();
    /// Time from the first message of a transaction to its last, decoded
    decode: Histogram = "decode" in Seconds, latency();
    /// Time one transaction took to be written to the log, not durable yet
    log_append: Histogram = "log_append" in Seconds, latency();
    /// Seconds from the commit to the append to the log, by the two machines' clocks
    commit_to_append: Histogram = "commit_to_append" in Seconds, latency();
    /// Time from the append of a transaction until the hub took it up; without those that it read from disk because it lagged
    append_to_match: Histogram = "append_to_match" in Seconds, latency();
    /// Time from the taking up of a transaction to the hand-over of its frames to the sockets, waiting for Postgres's answers included
    match_to_write: Histogram = "match_to_write" in Seconds, latency();
    /// Rows that wait for Postgres's answers, or behind others that do
    lane_rows: Gauge = "lane_rows";
    /// Bytes of the rows that wait for Postgres's answers, or behind others that do
    lane_size: Gauge = "lane_size" in Bytes;
    /// Questions that Postgres is answering now
    lane_questions: Gauge = "lane_questions";
    /// Questions that wait for a free connection to Postgres
    lane_queued: Gauge = "lane_queued";
    /// Channels with a row that waits for Postgres's answers
    lane_channels: Gauge = "lane_channels";
    /// Rows that left, at least for some channels, while others waited for Postgres's answers
    lane_passed: Counter = "lane_passed";
    /// Open client connections
    connections: Gauge = "connections";
    /// Open client connections by version of the Phoenix serializer
    connections_by_protocol: LabelledGauge = "connections_by_protocol" by "version" ["1.0.0", "2.0.0", "topics"];
    /// Channels joined
    joins: Counter = "joins";
    /// Channels left by the client, or joined anew
    leaves: Counter = "leaves";
    /// Channels ended because their token's time was over
    expiries: Counter = "expiries";
    /// Tokens that took another's place on a joined channel
    token_refreshes: Counter = "token_refreshes";
    /// Joined channels
    channels: Gauge = "channels";
    /// Active postgres_changes subscriptions
    subscriptions: Gauge = "subscriptions";
    /// Frames with a change handed to client outboxes
    deliveries: Counter = "deliveries";
    /// Database broadcasts that came: rows inserted into realtime.messages
    messages: Counter = "messages";
    /// Frames with a database broadcast handed to client outboxes
    message_deliveries: Counter = "message_deliveries";
    /// Database broadcasts that were not sent by reason: malformed (no topic, event, id or payload), extension (not broadcast), payload (too large), counted once each; header (topic, event or meta over 255 bytes on protocol 2), binary (on protocol 1), counted for each member
    messages_dropped: Labelled = "messages_dropped" by "reason" ["malformed", "extension", "payload", "header", "binary"];
    /// Verdicts on (change, subscriber) pairs by kind: permit, deny, undecided
    verdicts: Labelled = "verdicts" by "kind" ["permit", "deny", "undecided"];
    /// Denials by reason
    denials: Labelled = "denials" by "reason" ["policy", "no_policy", "no_grant", "missing_evidence", "expired"];
    /// Refused handshakes, joins and new tokens by code
    refusals: Labelled = "refusals" by "code" ["MalformedJWT", "JwtSignatureError", "JwtSignerError", "InvalidJWTToken", "MissingAPIKey"];
    /// Changes whose decision stayed open beyond the bound, told to the client as a gap
    undecided_gaps: Counter = "undecided_gaps";
    /// Gaps told to clients by reason: expired (older than the log), diverged (of another history), undecided, unknown (the cursor's key is lost), lost (by the log)
    gaps: Labelled = "gaps" by "reason" ["expired", "diverged", "undecided", "unknown", "lost"];
    /// Deletes made by retention, which are told to nobody
    retention_deletes_hidden: Counter = "retention_deletes_hidden";
    /// Rows that this relay's own runs of retention have removed
    retention_rows: Counter = "retention_rows";
    /// Runs of retention by result: done, busy, failed
    retention_runs: Labelled = "retention_runs";
    /// When this relay's last run of retention without an error ended, in seconds since 1970
    retention_last_run: Gauge = "retention_last_run_timestamp" in Seconds;
    /// Rounds of care for the partitions of realtime.messages by result: done, busy, left, failed
    messages_upkeep: Labelled = "messages_upkeep" by "result" ["done", "busy", "left", "failed"];
    /// Rows moved from the default partition of realtime.messages into their day's
    messages_moved: Counter = "messages_moved";
    /// Partitions of realtime.messages dropped since their time was over
    messages_partitions_dropped: Counter = "messages_partitions_dropped";
    /// When this relay last found the partitions of realtime.messages as they should be, in seconds since 1970
    messages_upkeep_last_run: Gauge = "messages_upkeep_last_run_timestamp" in Seconds;
    /// Times the relay's own status was written to the database, by result: written, failed
    reports: Labelled = "reports";
    /// Time Postgres took to judge one change for one role
    ask: Histogram = "ask" in Seconds, latency();
    /// Questions to Postgres asked again because the change was not yet visible to others
    ask_not_visible: Counter = "ask_not_visible";
    /// Transactions in which Postgres was asked to judge a change; each crosses the network once, but for large rows
    ask_rounds: Counter = "ask_rounds";
    /// Principals that Postgres was asked about, once for each change and each time it was asked again
    ask_principals: Counter = "ask_principals";
    /// Questions to Postgres whose connection broke before the answers had come
    ask_broken: Counter = "ask_broken";
    /// Policies, by table and role, that Postgres is not asked about for now since they kept failing; their rows are gaps
    ask_suspended: Gauge = "ask_suspended";
    /// Times a policy was suspended by reason: timeout, connection, role, behind (its rows waited too long for their turn)
    ask_suspensions: Labelled = "ask_suspensions" by "reason" ["timeout", "connection", "role", "behind"];
    /// Questions whether a private channel may be used that memory answered, by outcome: allowed, denied
    authz_memory: Labelled = "authz_memory" by "outcome" ["allowed", "denied"];
    /// Such questions that Postgres was asked with rows that are rolled back, by outcome: allowed, denied, timeout, partition (none for today), pool (no turn in time), unavailable, policy (it raised, or the role is unknown), not_installed
    authz_probes: Labelled = "authz_probes" by "outcome" ["allowed", "denied", "timeout", "partition", "pool", "unavailable", "policy", "not_installed"];
    /// Time such a question to Postgres took, waiting for its turn included
    authz_probe: Histogram = "authz_probe" in Seconds, latency();
    /// Rights of members of private channels that ended because a policy, or what it looks into, has changed
    authz_revocations: Counter = "authz_revocations";
    /// Members of private channels whose rights memory follows
    authz_watched: Gauge = "authz_watched";
    /// How far behind the database the facts are at the most that rights on private channels rest on, in seconds; 0 while nobody's do. From 2 on Postgres is asked about their members
    authz_facts_age: Seconds = "authz_facts_age" in Seconds;
    /// Time Postgres took to judge the filters of one change that memory can't judge
    filter_ask: Histogram = "filter_ask" in Seconds, latency();
    /// Filter conditions that Postgres was asked about
    filter_terms: Counter = "filter_terms";
    /// Filter conditions without an answer from Postgres by kind: timeout, raised, connection, role, too_many, over_budget
    filter_failures: Labelled = "filter_failures" by "kind" ["timeout", "raised", "connection", "role", "too_many", "over_budget"];
    /// Time it took to read one channel's snapshots, waiting for a turn included
    snapshot: Histogram = "snapshot" in Seconds, latency();
    /// Snapshots by result: taken, refused, timeout, too_large, busy (no turn in time), unavailable
    snapshots: Labelled = "snapshots" by "result" ["taken", "refused", "timeout", "too_large", "busy", "unavailable"];
    /// Rows read for snapshots
    snapshot_rows: Counter = "snapshot_rows";
    /// Channels whose snapshot is being sent, in their own pace
    snapshots_sending: Gauge = "snapshots_sending";
    /// Passes through the log for channels that begin in the past
    replay_passes: Gauge = "replay_passes";
    /// Channels that begin in the past and wait for a pass
    replay_waiting: Gauge = "replay_waiting";
    /// Channels that catch up and whose connection takes too little for now
    replay_parked: Gauge = "replay_parked";
    /// Requests to broadcast over HTTP, by status
    posts: Labelled = "posts" by "status" ["202", "400", "401", "403", "408", "413", "415", "422", "429", "503"];
    /// Requests for pages of history and for snapshots over HTTP, by status
    pages: Labelled = "pages" by "status" ["200", "304", "400", "401", "403", "404", "410", "413", "429", "503"];
    /// Catalog reads by result: changed, same, failed
    catalog_reads: Labelled = "catalog_reads" by "result" ["changed", "same", "failed"];
    /// Notes written to the journal, from which `rowcast why` answers
    journal_notes: Counter = "journal_notes";
    /// Notes that the journal could not take, since the disk or the writer was too slow or full
    journal_lost: Counter = "journal_lost_notes";
    /// Bytes of the journal's files
    journal_bytes: Gauge = "journal_size" in Bytes;
    /// When the reading of the catalog that is in force began, in seconds since 1970
    catalog_read_timestamp: Gauge = "catalog_read_timestamp" in Seconds;
    /// Seconds from the commit of what may have ended a right to the moment from which nobody is judged without it, by the two machines' clocks, by kind: facts (rows that policies look into), rules (policies, grants and the like)
    revocation: LabelledHistogram = "revocation" in Seconds by "kind" ["facts", "rules"], LabelledHistogram::new_with_constructor(latency);
    /// Tables that policies look into, by what their facts are at: preparing, loading, ready, resting (tried again later), refused (Postgres is asked until somebody changes something)
    fact_tables: LabelledGauge = "fact_tables" by "state" ["preparing", "loading", "ready", "resting", "refused"];
    /// Rows of facts in memory
    fact_rows: Gauge = "fact_rows";
    /// Bytes that facts take in memory
    fact_bytes: Gauge = "fact_size" in Bytes;
    /// Time from the decision to load a fact table until it was in force, writers that were waited for included
    fact_load: Histogram = "fact_load" in Seconds, latency();
    /// Loads of fact tables by result: loaded, broken (it could not follow the stream), changed (DDL meanwhile), too_large, blocked (by a writer without an end), not_added (to the publication), timeout, failed
    fact_loads: Labelled = "fact_loads" by "result" ["loaded", "broken", "changed", "too_large", "blocked", "not_added", "timeout", "failed"];
    /// Rules, one for each table and role in use, that Postgres is asked about because facts are not in memory
    rules_without_facts: Gauge = "rules_without_facts";
    /// Those of them that Postgres is asked about until somebody changes something: a DELETE that cascades from what they look into reaches nobody
    rules_left_to_postgres: Gauge = "rules_left_to_postgres";
    /// Key set (JWKS) fetches by result: changed, same, failed
    jwks_fetches: Labelled = "jwks_fetches" by "result" ["changed", "same", "failed"];
    /// Usable keys in the key set (JWKS) at hand
    jwks_keys: Gauge = "jwks_keys";
    /// Seconds from the commit to the hand-over of the frame to the socket, by the two machines' clocks
    commit_to_write: Histogram = "commit_to_write" in Seconds, latency();
    /// Connections closed by us by reason: slow, drain, idle, unanswered (pings), slot (we had it not), joins, protocol
    closes: Labelled = "closes" by "reason" ["slow", "drain", "idle", "unanswered", "slot", "joins", "protocol"];
    /// Pings sent to clients
    pings: Counter = "pings";
    /// Time from a Ping to its Pong
    pong: Histogram = "pong" in Seconds, latency();
    /// Frontiers, one for each device, topic and entry, by kind: live (of a connection), kept (for a device that is away)
    frontiers: LabelledGauge = "frontiers" by "kind" ["live", "kept"];
    /// Joins of entries that began where their device had been
    frontier_resumes: Counter = "frontier_resumes";
    /// Frontiers given up or not kept by reason: expired, user_limit, limit (of all), anonymous_limit (the share of devices without a user), refused (all of the user's are in use)
    frontiers_dropped: Labelled = "frontiers_dropped" by "reason" ["expired", "user_limit", "limit", "anonymous_limit", "refused"];
    /// Frontiers that wait to be saved
    frontiers_unsaved: Gauge = "frontiers_unsaved";
    /// Times frontiers were written to the database by result: saved, failed, fenced (another relay has taken over)
    frontier_saves: Labelled = "frontier_saves" by "result" ["saved", "failed", "fenced"];
    /// TLS handshakes of clients that failed by reason: timeout, failed
    tls_handshake_failures: Labelled = "tls_handshake_failures" by "reason" ["timeout", "failed"];
    /// Times new TLS files were looked at by result: changed, failed (the old certificate stays)
    tls_reloads: Labelled = "tls_reloads" by "result" ["changed", "failed"];
    /// Rooms with members
    rooms: Gauge = "rooms";
    /// Members of all rooms
    room_members: Gauge = "room_members";
    /// Broadcasts by kind: received (taken by a room), refused (more than the room may have), delivered (frames handed to client outboxes), denied (members who may not read them), unsendable (a protocol version can't say them), missed (large ones that a slow client's outbox had no place for)
    broadcasts: Labelled = "broadcasts" by "kind" ["received", "refused", "delivered", "denied", "unsendable", "missed"];
    /// Presence metas that are tracked
    presence_metas: Gauge = "presence_metas";
    /// Presence diffs sent to rooms
    presence_diffs: Counter = "presence_diffs";
    /// Changes of presence that had no diff of their own
    presence_coalesced: Counter = "presence_coalesced";
    /// Frames from clients that were malformed and dropped
    malformed_frames: Counter = "malformed_frames";
}

impl Metrics {
    /// What was committed at this time and may have ended a right is in force from now on: facts or rules.
    pub fn right_ended(&self, kind: &'static str, committed_unix_micros: i64, now_unix_millis: i64) {
        let late = now_unix_millis.saturating_sub(committed_unix_micros.div_euclid(1000)).max(0);
        self.revocation.get_or_create(&[("kind", kind)]).observe(late as f64 / 1000.0);
    }

    /// The OpenMetrics text of all of them.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_with_its_help() {
        let metrics = Metrics::new();
        metrics.verdicts.get_or_create(&[("kind", "deny")]).inc();
        let text = metrics.render();
        assert!(text.contains("# HELP rowcast_changes Row changes received"), "{text}");
        assert!(text.contains("rowcast_verdicts_total{kind=\"deny\"} 1"), "{text}");
        assert!(text.contains("rowcast_ask_seconds_bucket"), "{text}");
    }

    #[test]
    fn the_end_of_a_right_is_counted_from_its_commit() {
        let metrics = Metrics::new();
        metrics.right_ended("facts", 10_000_000, 10_250);
        metrics.right_ended("facts", 11_000_000, 10_000);
        let text = metrics.render();
        assert!(text.contains("rowcast_revocation_seconds_sum{kind=\"facts\"} 0.25"), "{text}");
        assert!(text.contains("rowcast_revocation_seconds_count{kind=\"facts\"} 2"), "a clock that is behind: {text}");
        assert!(text.contains("rowcast_revocation_seconds_count{kind=\"rules\"} 0"), "{text}");
    }
}
