//! What one connection may take.

use super::*;
use crate::hub::{Activated, CloseReason};

fn entries(count: usize) -> Value {
    let entries: Vec<Value> = (0..count).map(|n| json!({"schema": "public", "table": format!("t{n}")})).collect();
    json!({"config": {"postgres_changes": entries}})
}

#[test]
fn the_entries_of_all_channels_are_counted_together() {
    let config = GatewayConfig { max_connection_entries: 5, ..GatewayConfig::default() };
    let mut client = client_of(Version::V2, config);
    assert_eq!(client.join("realtime:a", entries(3))[0][4]["status"], "ok");
    let refused = "InvalidJoinPayload: Too many postgres_changes entries on this connection";
    assert_eq!(client.reason(entries(3)), refused);
    assert_eq!(client.join("realtime:b", entries(2))[0][4]["status"], "ok");
    assert_eq!(client.reason(entries(1)), refused);
    assert_eq!(client.join("realtime:c", json!({}))[0][4]["status"], "ok", "it asks for none");
    client.send(json!(["1", "2", "realtime:a", "phx_leave", {}]));
    assert_eq!(client.join("realtime:t", entries(3))[0][4]["status"], "ok");
}

#[test]
fn the_bytes_of_the_entries_are_bounded_too() {
    let config = GatewayConfig { max_connection_entry_bytes: 300_000, ..GatewayConfig::default() };
    let mut client = client_of(Version::V2, config);
    let mut large = entries(1);
    large["config"]["postgres_changes"][0]["filter"] = json!(format!("id=eq.{}", "1".repeat(200_000)));
    assert_eq!(client.join("realtime:a", large.clone())[0][4]["status"], "ok");
    assert!(client.reason(large).starts_with("InvalidJoinPayload: Too many"));
}

#[test]
fn who_joins_too_often_is_told_and_closed() {
    let mut client = client_of(Version::V2, GatewayConfig { max_joins_per_second: 1, ..GatewayConfig::default() });
    for _ in 0..60 {
        assert_eq!(client.join("realtime:t", json!({}))[0][4]["status"], "ok");
    }
    let frames = client.join("realtime:t", json!({}));
    let expected = no(json!("1"), json!("1"), "realtime:t", "ClientJoinRateLimitReached: Too many joins per second");
    assert_eq!(frames[0], expected);
    assert_eq!(frames[1][3], "phx_close");
    assert!(matches!(client.wants.as_slice(), [Effect::Close(CloseReason::Joins)]));
}

#[test]
fn what_waits_on_all_topics_is_bounded_together() {
    let config = GatewayConfig { max_pending_bytes: 1000, ..GatewayConfig::default() };
    let mut client = client_of(Version::V2, config);
    let mut payload = todos();
    payload["config"]["postgres_changes_options"] = json!({"wait": true});
    let mut ids = Vec::new();
    for topic in ["realtime:a", "realtime:b"] {
        client.join(topic, payload.clone());
        ids.push(client.subscribed());
    }
    let large = json!({"x": "y".repeat(700)});
    assert!(client.send(json!(["1", "2", "realtime:a", "presence", large])).is_empty());
    let told = client.send(json!(["1", "3", "realtime:b", "presence", large]));
    assert_eq!(told, [no(json!(null), json!("3"), "realtime:b", "too many messages while a join is pending")]);
    // Handled, it makes room again.
    assert_eq!(client.answer(ids[0], Ok(Activated::default())).len(), 3);
    assert!(client.send(json!(["1", "4", "realtime:b", "presence", large])).is_empty());
}

#[test]
fn a_held_join_counts_as_a_channel() {
    let mut client = client_of(Version::V2, GatewayConfig { max_channels: 1, ..GatewayConfig::default() });
    let mut payload = todos();
    payload["config"]["postgres_changes_options"] = json!({"wait": true});
    assert!(client.join("realtime:a", payload).is_empty());
    assert_eq!(client.reason(json!({})), "ChannelRateLimitReached: Too many channels");
}

#[test]
fn new_tokens_count_as_messages() {
    let mut client = client_of(Version::V2, GatewayConfig { max_messages_per_second: 1, ..GatewayConfig::default() });
    client.join("realtime:t", json!({}));
    let renewal = |n: i64| json!(["1", "2", "realtime:t", "access_token", {"access_token": anon(60 + n)}]);
    for n in 0..60 {
        assert!(client.send(renewal(n)).is_empty());
    }
    let frames = client.send(renewal(60));
    assert_eq!(frames[0], system("system", "error", "Too many messages per second"));
    assert_eq!(frames[1][3], "phx_close");
}
