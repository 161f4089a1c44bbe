//! What a relay at work shows, and to whom.

use rowcast::clock::Clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::pg::TestPgOptions;
use crate::support::phone::PATIENCE;
use crate::support::relay::{get, pause};
use crate::support::stage::{all_of, with_marks};
use crate::support::token::{ALICE, BOB};
use crate::support::{Relay, Stage, TestPg, token};

/// Rows of `asked` are judged by Postgres, those of `owned` in memory.
const TABLES: &str = "
    create table public.owned (id int primary key, user_id uuid not null);
    alter table public.owned enable row level security;
    create policy own on public.owned for select to authenticated using (user_id = auth.uid());
    create table public.asked (id int primary key, kind text);
    alter table public.asked enable row level security;
    create policy brief on public.asked for select to authenticated using (length(kind) < 10);
    grant select on public.owned, public.asked to authenticated;
    alter publication supabase_realtime add table public.owned, public.asked;";

async fn at_least(stage: &Stage, name: &str, labels: &str, least: f64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let value = stage.relay.metric(name, labels).await;
        if value >= least {
            return;
        }
        assert!(Instant::now() < deadline, "{name}{{{labels}}} is {value}, not {least}");
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stage_of_a_rows_journey_is_measured() {
    let stage = Stage::with(TABLES).await;
    let mut pair = stage.watch(&token::user(ALICE), &json!([{ "event": "*", "schema": "public" }])).await;
    stage
        .exec(&format!("insert into owned values (1, '{ALICE}'), (2, '{BOB}'); insert into asked values (1, 'short')"))
        .await;
    stage.mark("end").await;
    assert_eq!(pair.changes_before("end").await.len(), 2);
    for stage_name in
        ["decode", "log_append", "commit_to_append", "append_to_match", "match_to_write", "commit_to_write"]
    {
        at_least(&stage, &format!("rowcast_{stage_name}_seconds_count"), "", 1.0).await;
    }
    at_least(&stage, "rowcast_ask_seconds_count", "", 1.0).await;
    // At rest nothing waits.
    for gauge in ["rowcast_lane_rows", "rowcast_lane_size_bytes", "rowcast_lane_questions"] {
        assert_eq!(stage.relay.metric(gauge, "").await, 0.0, "{gauge}");
    }
    assert_eq!(stage.relay.metric("rowcast_joins_total", "").await, 2.0);
    for version in ["1.0.0", "2.0.0"] {
        assert_eq!(stage.relay.metric("rowcast_connections_by_protocol", version).await, 1.0, "{version}");
    }
    for phone in &mut pair.phones {
        phone.leave("room").await;
    }
    at_least(&stage, "rowcast_leaves_total", "", 2.0).await;

    at_least(&stage, "rowcast_slot_looks_total", "result=\"seen\"", 1.0).await;
    assert_eq!(stage.relay.metric("rowcast_slot_active", "").await, 1.0);
    // The test's server has no limit.
    assert_eq!(stage.relay.metric("rowcast_slot_forecast_seconds", "").await, f64::INFINITY);
    let (floor, end) =
        (stage.relay.metric("rowcast_log_floor_lsn", "").await, stage.relay.metric("rowcast_log_end_lsn", "").await);
    assert!(0.0 < floor && floor < end, "{floor} {end}");
    let read = stage.relay.metric("rowcast_catalog_read_timestamp_seconds", "").await;
    let age = Clock::system().unix_seconds() as f64 - read;
    assert!((-1.0..60.0).contains(&age), "{age}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_is_counted_as_an_expiry_and_a_bad_one_as_a_refusal() {
    let stage = Stage::with(TABLES).await;
    let mut short = stage.relay.phone(&token::short(ALICE, 2)).await;
    short.subscribe("room", &with_marks(&all_of("owned"))).await;
    short.channel_closed("room").await;
    at_least(&stage, "rowcast_expiries_total", "", 1.0).await;
    assert_eq!(stage.relay.metric("rowcast_refusals_total", "").await, 0.0);

    let mut phone = stage.relay.phone(&token::user(ALICE)).await;
    phone.subscribe("room", &with_marks(&all_of("owned"))).await;
    phone.push_token("room", &token::user(ALICE).replace("eyJ", "eyK")).await;
    phone.channel_closed("room").await;
    at_least(&stage, "rowcast_refusals_total", "", 1.0).await;
    assert_eq!(stage.relay.metric("rowcast_expiries_total", "").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_names_tables_and_users_and_is_for_the_admin_address_alone() {
    let stage = Stage::with(TABLES).await;
    let mut alice = stage.relay.phone(&token::user(ALICE)).await;
    let filtered = json!([{ "event": "*", "schema": "public", "table": "owned", "filter": "id=eq.4711" }]);
    alice.subscribe("room", &with_marks(&filtered)).await;
    let mut bob = stage.relay.phone(&token::user(BOB)).await;
    bob.subscribe("den", &all_of("owned")).await;
    let (status, text) = get(stage.relay.admin(), "/state").await.expect("an answer");
    let state: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(status, 200);
    assert_eq!(state["ingest"]["state"], "streaming");
    assert_eq!(state["connections"]["by_protocol"], json!({ "1.0.0": 0, "2.0.0": 2 }));
    let hub = &state["hub"];
    assert_eq!((&hub["channels"], &hub["subscriptions"]), (&json!(2), &json!(3)));
    assert_eq!(
        hub["subscriptions_by_table"],
        json!([{ "table": "public.owned", "subscriptions": 2 }, { "table": "public.marks", "subscriptions": 1 }])
    );
    assert_eq!(
        hub["subscriptions_by_user"],
        json!([{ "role": "authenticated", "user": ALICE, "channels": 1, "subscriptions": 2 },
               { "role": "authenticated", "user": BOB, "channels": 1, "subscriptions": 1 }])
    );
    assert_eq!(hub["lane"], json!({ "rows": 0, "bytes": 0, "questions": 0 }));
    assert!(hub["catalog_age_seconds"].as_f64().is_some_and(|age| age < 60.0), "{hub}");
    assert!(state["log"]["epoch"]["incarnation"].is_string() && hub["position"].is_string(), "{state}");
    // No filter, no topic.
    assert!(!text.contains("4711") && !text.contains("room"), "{text}");

    for path in ["/metrics", "/state", "/realtime/v1/metrics", "/metrics/"] {
        assert_eq!(get(stage.relay.addr(), path).await.expect("an answer").0, 404, "{path}");
    }
    assert_eq!(get(stage.relay.admin(), "/realtime/v1/websocket").await.expect("an answer").0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_is_looked_at_on_a_server_with_a_limit_too() {
    let settings = vec![("max_slot_wal_keep_size", "1GB")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    let stage = Stage { relay: Relay::start(&pg).await, pg };
    at_least(&stage, "rowcast_slot_looks_total", "result=\"seen\"", 1.0).await;
    assert_eq!(stage.relay.metric("rowcast_slot_looks_total", "result=\"failed\"").await, 0.0);
    // After one look there is no rate yet.
    assert_eq!(stage.relay.metric("rowcast_slot_forecast_seconds", "").await, f64::INFINITY);
    assert!(stage.relay.metric("rowcast_slot_retained_bytes", "").await > 0.0);
}
