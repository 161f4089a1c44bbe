//! What monitoring shows with a relay, without one, and when there never was one.

use std::time::Duration;

use rowcast::clock::Clock;
use serde_json::json;
use tokio::time::Instant;

use super::{run, value};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::token::{ALICE, user};
use crate::support::{Relay, TestPg};

const MONITOR: &str = "monitor.sql";
const NOTIFICATIONS: &str = include_str!("../../sql/examples/notifications.sql");

#[tokio::test]
async fn it_shows_who_is_connected_while_a_relay_runs_and_since_when_none_does() {
    let pg = TestPg::start().await;
    pg.exec(NOTIFICATIONS).await;
    run(&pg, "postgres", "roles.sql", &[]).await;
    run(&pg, "rowcast_monitor", MONITOR, &[]).await.says(&["no relay has ever reported"]);

    let relay = Relay::with(&pg, Clock::system(), |config| config.report_interval = Duration::from_millis(100)).await;
    let mut phone = relay.phone(&user(ALICE)).await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "notifications" }]);
    phone.subscribe("mine", &entries).await;
    pg.exec(&format!("insert into public.notifications (user_id, kind) values ('{ALICE}', 'x')")).await;
    phone.next_change().await;
    let deadline = Instant::now() + PATIENCE;
    let reported = "select coalesce((select status #>> '{users,0,user}' is not null and (status #>> '{counters,rowcast_deliveries_total}')::float8 > 0 \
                    from rowcast.relay_status), false)";
    while !value::<bool>(&pg, reported).await {
        assert!(Instant::now() < deadline, "no report with a user within {PATIENCE:?}");
        pause().await;
    }
    for login in ["rowcast_monitor", "rowcast_dba", "rowcast_monitor"] {
        let printed = run(&pg, login, MONITOR, &[("disk_free_bytes", "1000000000")]).await;
        printed.says(&[
            "streaming",
            "running since",
            "commit_to_write",
            "notifications",
            "authenticated",
            ALICE,
            "verdicts",
        ]);
        printed.says(&["read by", "Forecast"]);
    }
    relay.drain().await;
    pg.exec("update rowcast.relay_status set reported_at = now() - interval '1 hour'").await;
    run(&pg, "rowcast_monitor", MONITOR, &[]).await.says(&["NO RELAY HAS REPORTED SINCE", "NOBODY READS IT"]);
}

#[tokio::test]
async fn events_by_type_are_counted_where_the_login_may_and_named_where_not() {
    let pg = super::retention::with_events().await;
    let rule = [("table", "public.events"), ("type_column", "type"), ("pattern", "dm.%")];
    run(&pg, "rowcast_dba", "retention_set.sql", &rule).await;
    pg.exec(&format!("insert into public.events (user_id, type) values ('{ALICE}', 'dm.text'), ('{ALICE}', 'dm.text'), ('{ALICE}', 'seen')")).await;
    run(&pg, "rowcast_dba", MONITOR, &[]).await.says(&["| dm.text |      2 |        0.2"]);
    run(&pg, "rowcast_monitor", MONITOR, &[]).await.says(&["not counted: query would be affected"]);
}
