//! `rowcast doctor` and `rowcast explain-policy`, on databases made wrong on purpose.

mod asking;
mod checks;
mod command;
mod explain;
mod facts;
mod mended;
mod messages;
mod pooler;

use std::path::Path;
use std::time::Duration;

use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::doctor::{Finding, Severity, examine, worst};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::TestPg;
use crate::support::pg::TestPgOptions;
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::SECRET;

/// A database in order: two tables with policies, and a login for the relay that is no superuser.
const HEALTHY: &[&str] = &[
    include_str!("../../sql/examples/session_events.sql"),
    include_str!("../../sql/examples/notifications.sql"),
    "alter system set max_slot_wal_keep_size = '2GB'",
    "create role relay login replication; grant anon, authenticated, service_role, rowcast_filter to relay; \
     grant usage on schema rowcast to relay; grant select on rowcast.migrations to relay; \
     grant select, insert, update on rowcast.lineage to relay; select pg_reload_conf()",
    // Private channels are judged by the owner of messages.
    "grant supabase_realtime_admin to relay; grant select on rowcast.installed to relay",
    "do $$ begin if exists (select from pg_publication where pubname = 'rowcast_messages') and not exists ( \
         select from pg_publication_tables where pubname = 'rowcast_messages') then \
     alter publication rowcast_messages add table realtime.messages; end if; end $$",
    // The policy on events looks into sessions.
    "grant select on coding_sessions to relay; alter role relay bypassrls; alter publication rowcast_facts add table coding_sessions",
];

/// A server, and the folder of a relay that never runs.
struct Clinic {
    pg: TestPg,
    data: TempDir,
    /// What tokens name beside the usual roles.
    roles: Vec<String>,
    /// Who looks.
    login: &'static str,
}

impl Clinic {
    async fn healthy() -> Clinic {
        let mut clinic = Clinic::with(TestPgOptions::default()).await;
        for sql in HEALTHY {
            clinic.pg.exec(sql).await;
        }
        // The prepared cluster may be of another day.
        let mut client = clinic.pg.client().await;
        let keep = Duration::from_secs(72 * 3600);
        rowcast::messages::tend(&mut client, rowcast::messages::Scope::Own, keep).await.expect("partitions");
        clinic.login = "relay";
        clinic.until("a healthy database", |found| worst(found) < Severity::Warning).await;
        clinic
    }

    /// Examined as the superuser.
    async fn with(options: TestPgOptions) -> Clinic {
        let data = tempfile::tempdir().expect("a folder");
        Clinic { pg: TestPg::with(options).await, data, roles: Vec::new(), login: "postgres" }
    }

    async fn findings(&self) -> Vec<Finding> {
        self.findings_at(&self.pg.url_as(self.login), &Clock::system()).await
    }

    async fn findings_at(&self, url: &str, clock: &Clock) -> Vec<Finding> {
        examine(&config(url, self.data.path()), &self.roles, clock).await
    }

    /// Looks until it is so: the server follows a reload a moment later.
    async fn until(&self, what: &str, so: impl Fn(&[Finding]) -> bool) -> Vec<Finding> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.findings().await;
            if so(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}:\n{}", shown(&found));
            pause().await;
        }
    }
}

fn config(url: &str, data: &Path) -> Config {
    Config::new(url, SECRET, data).expect("a configuration")
}

fn shown(found: &[Finding]) -> String {
    found.iter().filter(|finding| finding.severity > Severity::Ok).map(|finding| format!("{finding:#?}\n")).collect()
}
