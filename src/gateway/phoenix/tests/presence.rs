//! Presence messages: what is asked of the room, and what is answered (items 136–150).

use super::*;
use crate::room::RoomError;

fn joined(config: GatewayConfig) -> (Client, ChannelId) {
    let mut client = client_of(Version::V2, config);
    client.join("realtime:t", json!({"config": {"presence": {"key": 123, "enabled": true}}}));
    let asks: Vec<Effect> = client.asks.drain(..).collect();
    let [Effect::Enter { id, seat, .. }, Effect::PresenceState(of)] = &*asks else { panic!("{asks:?}") };
    assert!(seat.presence && id == of);
    assert_eq!(&*seat.key, "123");
    (client, *id)
}

fn presence(client: &mut Client, payload: Value) -> Vec<Value> {
    client.send(json!([null, "5", "realtime:t", "presence", payload]))
}

fn tracked(client: &mut Client, id: ChannelId, taken: Result<(), RoomError>) -> Vec<Value> {
    let Some(Effect::Track { id: of, reference, ok, .. }) = client.asks.pop() else { panic!() };
    assert_eq!(of, id);
    let effects = match taken {
        Ok(()) => vec![Effect::Send(ok)],
        Err(error) => client.session.untaken(id, &reference, error, client.now),
    };
    client.sort(effects)
}

#[test]
fn what_the_room_has_taken_is_answered_with_the_channels_refs() {
    let (mut client, id) = joined(GatewayConfig::default());
    for event in ["track", "TRACK"] {
        assert!(presence(&mut client, json!({"event": event, "payload": {"name": "ann"}})).is_empty());
        let Some(Effect::Track { payload: Some(payload), .. }) = client.asks.last() else { panic!() };
        assert_eq!(payload.get(), r#"{"name":"ann"}"#);
        let expected = ok(json!("1"), json!("5"), "realtime:t", json!({}));
        assert_eq!(tracked(&mut client, id, Ok(())), [expected]);
    }
    assert!(presence(&mut client, json!({"event": "untrack"})).is_empty());
    assert!(matches!(client.asks.last(), Some(Effect::Track { payload: None, .. })));
    assert_eq!(tracked(&mut client, id, Ok(()))[0][4]["status"], "ok");
}

#[test]
fn what_is_none_is_answered_without_the_room() {
    let (mut client, _) = joined(GatewayConfig::default());
    let reply = |status: &str, response: Value| json!(["1", "5", "realtime:t", "phx_reply", {"status": status, "response": response}]);
    let no_map = json!({"reason": "Presence track payload must be a map"});
    for (payload, expected) in [
        (json!({"event": "track", "payload": [1]}), reply("error", no_map)),
        (json!({"event": "dance"}), reply("error", json!({}))),
        (json!({"payload": {}}), reply("ok", json!({}))),
    ] {
        assert_eq!(presence(&mut client, payload), [expected]);
    }
    assert!(client.asks.is_empty());
}

#[test]
fn what_the_room_refuses_is_told_or_ends_the_channel() {
    let (mut client, id) = joined(GatewayConfig::default());
    let mut refused = |error| {
        presence(&mut client, json!({"event": "track"}));
        tracked(&mut client, id, Err(error))
    };
    assert_eq!(refused(RoomError::Closed)[0][4], json!({"status": "error", "response": {}}));
    assert_eq!(refused(RoomError::PresenceFull)[0][4]["response"]["reason"], "Too many presences");
    let frames = refused(RoomError::TooManyPresence);
    assert_eq!(frames[0], system("system", "error", "Too many presence messages per second"));
    assert_eq!(frames[1][3], "phx_close");
}

#[test]
fn too_many_calls_in_the_window_end_the_channel() {
    let (mut client, id) = joined(GatewayConfig { max_presence_calls: 2, ..GatewayConfig::default() });
    for _ in 0..2 {
        presence(&mut client, json!({"event": "untrack"}));
        tracked(&mut client, id, Ok(()));
        presence(&mut client, json!({}));
    }
    client.pass(30);
    for _ in 0..2 {
        presence(&mut client, json!({"event": "dance"}));
    }
    let frames = presence(&mut client, json!({"event": "track"}));
    assert_eq!(frames[0], system("system", "error", "Client presence rate limit exceeded"));
    assert_eq!(frames[1], json!(["1", "1", "realtime:t", "phx_close", {}]));
    assert!(client.asks.is_empty());
}

#[test]
fn too_large_a_presence_ends_the_channel() {
    let (mut client, _) = joined(GatewayConfig { max_payload_bytes: 100, ..GatewayConfig::default() });
    let frames = presence(&mut client, json!({"event": "track", "payload": {"x": "y".repeat(600)}}));
    assert_eq!(frames[0], system("system", "error", "Track message size exceeded"));
    assert_eq!(frames[1][3], "phx_close");
}

#[test]
fn who_names_no_key_gets_another_one_at_each_join() {
    let mut client = client();
    let mut keys = Vec::new();
    for key in [json!(null), json!(""), json!("mine")] {
        client.join("realtime:t", json!({"config": {"presence": {"key": key}}}));
        let Some(Effect::Enter { seat, .. }) = client.asks.pop() else { panic!() };
        keys.push(seat.key);
    }
    assert!(keys[0].len() == 36 && keys[1].len() == 36 && keys[0] != keys[1]);
    assert_eq!(&*keys[2], "mine");
}

#[test]
fn a_presence_state_that_no_room_takes_in_time_ends_the_channel() {
    let (mut client, id) = joined(GatewayConfig::default());
    let effects = client.session.stateless(id, client.now);
    let frames = client.sort(effects);
    assert_eq!(frames[0], system("system", "error", "Presence state could not be sent in time"));
    assert_eq!(frames[1], json!(["1", "1", "realtime:t", "phx_close", {}]));
    assert!(matches!(client.quiet.last(), Some(Effect::Leave(of)) if *of == id));
    assert!(client.session.stateless(id, client.now).is_empty());
}
