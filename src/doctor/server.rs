//! The server: its version, its settings, its clock.

use super::facts::{Asynchronous, Facts};
use super::finding::ident;
use super::{Finding, Patient, Subject};

/// Connections that a relay opens for queries beside its pools: the catalog, two for facts, heartbeats, the making of the slot.
const OTHER_CONNECTIONS: i64 = 6;
/// A clock that is off by less harms nobody.
const CLOCK_TOLERANCE_MS: i64 = 2_000;
/// The newest version that the suite runs on.
const NEWEST_TESTED: i32 = 18;

pub(super) fn check(patient: &Patient<'_>) -> Vec<Finding> {
    let facts = patient.facts;
    let mut findings = vec![version(facts), wal_level(facts), clock(facts)];
    if facts.standby {
        findings.push(
            Finding::error("standby", Subject::server(), "the server is a standby")
                .why("The relay makes its slot and its history on the primary.")
                .todo("Name the primary's host in DATABASE_URL; several hosts are tried in order."),
        );
    }
    if facts.encoding != "UTF8" {
        findings.push(
            Finding::warning(
                "encoding",
                Subject::server(),
                format!("the database's encoding is {}, not UTF8", facts.encoding),
            )
            .why("The stream's text is then not the table's text, so Postgres is asked about every row and subscriber.")
            .todo("Dump the database and restore it into one made with `encoding 'UTF8'`."),
        );
    }
    findings.extend(slot_budget(facts));
    findings.extend(synchronous_commit(facts));
    let hub = &patient.config.hub;
    // One more saves the frontiers of devices.
    let needed = patient.config.pg.pool_size + hub.ask.connections + hub.snapshot.connections + 1;
    findings.extend(connections(facts, needed));
    findings
}

fn version(facts: &Facts) -> Finding {
    let subject = Subject::server();
    let major = facts.version / 10_000;
    if major < 15 {
        return Finding::error("version", subject, format!("PostgreSQL {} is too old", facts.version_name))
            .why("Publications have neither row filters nor column lists that the relay could read before version 15.")
            .todo("Upgrade to PostgreSQL 15 or newer.");
    }
    if major > NEWEST_TESTED {
        return Finding::note(
            "version",
            subject,
            format!("PostgreSQL {} is newer than this Rowcast", facts.version_name),
        )
        .why(format!("Versions 15 to {NEWEST_TESTED} are known to work."))
        .todo("Look for a newer Rowcast.");
    }
    Finding::ok("version", subject, format!("PostgreSQL {}", facts.version_name))
}

fn wal_level(facts: &Facts) -> Finding {
    if facts.wal_level == "logical" {
        return Finding::ok("wal_level", Subject::server(), "wal_level is logical");
    }
    Finding::error("wal_level", Subject::server(), format!("wal_level is {}, not logical", facts.wal_level))
        .why("The write-ahead log then holds too little to read rows from it.")
        .sql("alter system set wal_level = 'logical';")
        .todo("Restart the server afterwards. Managed databases have a parameter for it, such as rds.logical_replication.")
}

fn clock(facts: &Facts) -> Finding {
    let off = facts.ahead_ms.abs() - facts.doubt_ms;
    if off < CLOCK_TOLERANCE_MS {
        return Finding::ok("clock", Subject::machine(), "our clock and the server's agree");
    }
    let (seconds, side) = (facts.ahead_ms.abs() / 1000, if facts.ahead_ms > 0 { "behind" } else { "ahead of" });
    Finding::warning("clock", Subject::machine(), format!("our clock is {seconds} s {side} the server's"))
        .why("Tokens expire by our clock: they live too long, or new ones are refused as expired.")
        .todo("Let both machines take their time from the same source (NTP).")
}

fn slot_budget(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.slot_keep_mb < 0 {
        findings.push(
            Finding::warning("slot_budget", Subject::server(), "max_slot_wal_keep_size is not set")
                .why(
                    "While the relay is away, its slot keeps all WAL; without a limit it fills the server's disk, and writing \
                     stops. With one, the slot is lost in the end instead, and clients are told of a gap.",
                )
                .sql("alter system set max_slot_wal_keep_size = '10GB';\nselect pg_reload_conf();")
                .todo("Take a size that the disk has and that lasts for the longest time without a relay."),
        );
    } else {
        let text = format!("a slot may keep {} MiB of WAL", facts.slot_keep_mb);
        findings.push(Finding::ok("slot_budget", Subject::server(), text));
    }
    if let Some(timeout) = &facts.idle_slot_timeout {
        findings.push(
            Finding::warning("idle_slot_timeout", Subject::server(), format!("idle_replication_slot_timeout is {timeout}"))
                .why("A relay that is away for longer loses its slot, however little WAL it holds; clients are told of a gap.")
                .sql("alter system set idle_replication_slot_timeout = 0;\nselect pg_reload_conf();"),
        );
    }
    findings
}

const WHY_SYNCHRONOUS: &str = "A commit is then told to the stream when the WAL writer comes round, about 180 ms later on average, \
                               instead of at once; and a crash may lose it.";

fn synchronous_commit(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Someone with a setting of his own sees his own here.
    if facts.synchronous_commit == "off" && facts.asynchronous.is_empty() {
        let what = format!("synchronous_commit is off (wal_writer_delay is {} ms)", facts.wal_writer_delay_ms);
        findings.push(
            Finding::note("synchronous_commit", Subject::server(), what)
                .why(WHY_SYNCHRONOUS)
                .sql("alter system set synchronous_commit = on;\nselect pg_reload_conf();"),
        );
    }
    findings.extend(facts.asynchronous.iter().map(|Asynchronous { role, database }| {
        let (whose, target) = match (role, database) {
            (Some(role), Some(database)) => (
                format!("role {role} in database {database}"),
                format!("role {} in database {}", ident(role), ident(database)),
            ),
            (Some(role), None) => (format!("role {role}"), format!("role {}", ident(role))),
            (None, Some(database)) => (format!("database {database}"), format!("database {}", ident(database))),
            (None, None) => ("all roles".into(), "role all".into()),
        };
        let subject = role.as_ref().map_or_else(Subject::server, |role| Subject::role(role));
        Finding::note("synchronous_commit", subject, format!("synchronous_commit is off for {whose}"))
            .why(WHY_SYNCHRONOUS)
            .sql(format!("alter {target} reset synchronous_commit;"))
    }));
    findings
}

fn connections(facts: &Facts, pool: usize) -> Option<Finding> {
    let needed = i64::try_from(pool).unwrap_or(i64::MAX).saturating_add(OTHER_CONNECTIONS);
    if (0..needed).contains(&facts.connection_limit) && !facts.superuser {
        let what =
            format!("{} may have {} connections; the relay uses up to {needed}", facts.login, facts.connection_limit);
        let finding = Finding::warning("connection_limit", Subject::role(&facts.login), what)
            .why("Questions to Postgres wait for each other, or fail.")
            .sql(format!("alter role {} connection limit {needed};", ident(&facts.login)));
        return Some(finding);
    }
    let free = facts.max_connections - facts.reserved_connections - facts.used_connections;
    // Ours are among those in use: this one, and perhaps a relay's.
    (free < needed).then(|| {
        let what = format!("{free} of {} connections are free; the relay uses up to {needed}", facts.max_connections);
        Finding::warning("connections", Subject::server(), what)
            .why("When all are in use, the relay waits to judge rows and clients wait for them.")
            .sql(format!("alter system set max_connections = {};", facts.max_connections + needed))
            .todo("Restart the server afterwards; or let applications use fewer.")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::Severity;
    use super::*;

    fn facts(change: Value) -> Facts {
        let mut all = json!({
            "version": 150_004, "version_name": "15.4", "standby": false, "encoding": "UTF8", "wal_level": "logical",
            "max_slots": 10, "used_slots": 0, "max_senders": 10, "used_senders": 0, "max_connections": 100,
            "reserved_connections": 3, "used_connections": 1, "slot_keep_mb": 100, "idle_slot_timeout": null,
            "synchronous_commit": "on", "wal_writer_delay_ms": 200, "asynchronous": [], "ssl": false, "encrypted": false,
            "statement_timeout": "10s", "date_style": "ISO, MDY", "now_ms": 0, "login": "u", "superuser": false,
            "bypass": false, "replication": true, "connection_limit": -1, "database": "d", "may_create": true,
            "has_schema": true, "messages_owner": null, "messages_by_bypass": false, "missing_publications": []
        });
        for (name, value) in change.as_object().expect("an object") {
            all[name] = value.clone();
        }
        serde_json::from_value(all).expect("facts")
    }

    #[test]
    fn old_versions_are_refused_and_unknown_ones_noted() {
        for (number, severity) in
            [(140_010, Severity::Error), (150_000, Severity::Ok), (180_001, Severity::Ok), (190_000, Severity::Note)]
        {
            assert_eq!(version(&facts(json!({ "version": number }))).severity, severity, "{number}");
        }
    }

    #[test]
    fn a_timeout_of_idle_slots_is_a_warning_with_its_cure() {
        let found = slot_budget(&facts(json!({ "idle_slot_timeout": "1d" })));
        let timeout = found.iter().find(|finding| finding.check == "idle_slot_timeout").expect("a finding");
        assert_eq!(timeout.severity, Severity::Warning);
        assert!(timeout.sql.as_ref().is_some_and(|sql| sql.contains("idle_replication_slot_timeout = 0")));
        assert_eq!(slot_budget(&facts(json!({}))).len(), 1);
    }

    #[test]
    fn a_clock_within_what_the_round_trip_leaves_open_is_fine() {
        let at = |ahead_ms, doubt_ms| clock(&Facts { ahead_ms, doubt_ms, ..facts(json!({})) }).severity;
        assert_eq!(at(1_500, 5), Severity::Ok);
        assert_eq!(at(-4_000, 3_000), Severity::Ok);
        assert_eq!(at(-4_000, 5), Severity::Warning);
    }
}
