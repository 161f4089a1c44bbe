//! Broadcasts: what goes to the room, and what is answered (items 36–39, 67–78).

use super::*;
use crate::hub::CloseReason;
use crate::room::{Message, Payload, RoomError};

fn joined(config: Value) -> Client {
    let mut client = client();
    assert_eq!(client.join("realtime:t", json!({"config": {"broadcast": config}}))[0][4]["status"], "ok");
    client.asks.clear();
    client
}

/// The one broadcast that was just asked for: the message, whether it comes back, and its answer.
fn cast(client: &mut Client) -> (Message, bool, Option<Value>) {
    match client.asks.drain(..).collect::<Vec<_>>().pop() {
        Some(Effect::Broadcast { message, echo, ack, .. }) => (message, echo, ack.map(|ack| texts(&ack).remove(0))),
        other => panic!("{other:?}"),
    }
}

fn text(message: Message) -> String {
    match message {
        Message::Text { payload } => String::from_utf8(payload.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_text_goes_to_the_room_as_it_came() {
    for payload in [r#"{"a": 1.50,"type":"broadcast","event":"x"}"#, "{}", r#""str""#, "[1]", "null", r#"{"é":"ä"}"#]
    {
        let mut client = joined(json!({}));
        assert!(client.raw(&format!(r#"["1","2","realtime:t","broadcast",{payload}]"#)).is_empty());
        let (message, echo, ack) = cast(&mut client);
        assert_eq!((text(message).as_str(), echo, ack), (payload, false, None));
    }
}

#[test]
fn an_answer_carries_the_channels_join_ref_whatever_the_push_had() {
    for join_ref in [json!(null), json!("0"), json!("1")] {
        let mut client = joined(json!({"ack": true, "self": "True"}));
        client.send(json!([join_ref, "7", "realtime:t", "broadcast", {"event": "e"}]));
        let (_, echo, ack) = cast(&mut client);
        assert_eq!((echo, ack), (true, Some(ok(json!("1"), json!("7"), "realtime:t", json!({})))));
    }
}

#[test]
fn a_binary_frame_is_an_event_whose_payload_is_a_part_of_it() {
    let mut client = joined(json!({}));
    let frame = |encoding: u8, payload: &[u8]| {
        let head = [3, 1, 1, 10, 3, 2, encoding];
        Bytes::from([&head[..], b"17", b"realtime:t", b"cur", b"{}", payload].concat())
    };
    for (encoding, bytes) in [(1, &b"{\"x\":3}"[..]), (0, &b"\xde\xad"[..]), (0, b""), (7, b"[]")] {
        let frame = frame(encoding, bytes);
        assert!(client.binary(&frame).is_empty());
        let (Message::Event { event, payload, meta }, ..) = cast(&mut client) else { panic!() };
        assert_eq!((&*event, meta), ("cur", None));
        let (is_json, payload) = match payload {
            Payload::Json(payload) => (true, payload),
            Payload::Binary(payload) => (false, payload),
        };
        assert_eq!((is_json, &payload[..]), (encoding > 0, bytes));
        let shares = frame.as_ptr_range().contains(&payload.as_ptr()) || payload.is_empty();
        assert!(shares, "without a copy");
    }
    client.binary(&frame(1, b"{\"x\":"));
    assert!(client.asks.is_empty(), "others could not read it");
}

#[test]
fn what_is_too_large_goes_to_nobody_and_only_who_asked_is_told() {
    let config = GatewayConfig { max_payload_bytes: 100, ..GatewayConfig::default() };
    for ack in [true, false] {
        let mut client = client_of(Version::V2, config.clone());
        client.join("realtime:t", json!({"config": {"broadcast": {"ack": ack}}}));
        client.asks.clear();
        let told = client.send(json!(["1", "2", "realtime:t", "broadcast", {"x": "y".repeat(600)}]));
        let expected = no(json!("1"), json!("2"), "realtime:t", "payload_size_exceeded");
        assert_eq!(told, if ack { vec![expected] } else { vec![] });
        assert!(client.asks.is_empty());
        client.send(json!(["1", "3", "realtime:t", "broadcast", {}]));
        cast(&mut client);
    }
}

#[test]
fn who_sends_too_much_loses_the_channel_and_not_the_connection() {
    let config = GatewayConfig { max_messages_per_second: 1, ..GatewayConfig::default() };
    let mut client = client_of(Version::V2, config);
    client.join("realtime:t", json!({}));
    for event in ["broadcast", "whatever"].into_iter().cycle().take(60) {
        assert!(client.send(json!(["1", "2", "realtime:t", event, {}])).is_empty());
    }
    let frames = client.send(json!(["1", "2", "realtime:t", "broadcast", {}]));
    let closed = json!(["1", "1", "realtime:t", "phx_close", {}]);
    assert_eq!(frames, [system("system", "error", "Too many messages per second"), closed]);
    assert_eq!(client.join("realtime:t", json!({}))[0][4]["status"], "ok");
    assert_eq!(client.send(json!([null, "6", "phoenix", "heartbeat", {}])).len(), 1);
    assert!(!client.wants.iter().any(|want| matches!(want, Effect::Close(_))));
}

#[test]
fn a_room_that_has_too_much_ends_the_channel_of_who_sends() {
    let mut client = joined(json!({}));
    let Some(Effect::Subscribe { id, .. }) = client.quiet.last() else { panic!() };
    let id = *id;
    let effects = client.session.rejected(id, RoomError::Closed, client.now);
    assert!(client.sort(effects).is_empty());
    let effects = client.session.rejected(id, RoomError::TooManyMessages, client.now);
    let frames = client.sort(effects);
    assert_eq!(frames[0], system("system", "error", "Too many messages per second"));
    assert_eq!(frames[1][3], "phx_close");
    let effects = client.session.rejected(id, RoomError::TooManyMessages, client.now);
    assert!(client.sort(effects).is_empty());
}

#[test]
fn a_channel_enters_its_room_before_its_reply_and_leaves_it_once() {
    let mut client = client();
    let message = codec::decode_text(Version::V2, r#"["1","1","realtime:t","phx_join",{}]"#);
    let Decoded::Message(message) = message else { panic!() };
    let effects = client.session.handle(message, &Bytes::new(), client.now);
    let [Effect::Enter { id, stage, seat, .. }, Effect::Greet { stage: greeted, .. }, Effect::Subscribe { .. }] =
        &*effects
    else {
        panic!("{effects:?}")
    };
    assert!(Arc::ptr_eq(stage, greeted) && !stage.is_greeted() && seat.rights.is_none());
    assert_eq!((seat.key.len(), &*seat.user), (36, "anon#1"));
    let id = *id;
    let _ = client.sort(effects);
    client.send(json!(["1", "2", "realtime:t", "phx_leave", {}]));
    assert!(matches!(client.quiet.as_slice(), [Effect::Subscribe { .. }, Effect::Leave(left)] if *left == id));
}

/// What a user sends through his channels, over HTTP and through the topics door is one share of the room.
#[test]
fn a_user_has_the_same_share_of_a_room_at_every_door() {
    let mut client = client();
    let token = crate::claims::tests::token(json!({ "role": "authenticated", "sub": "ada", "exp": NOW + 60 }));
    let payload = json!({ "access_token": token }).to_string();
    let message = format!(r#"["1","1","realtime:t","phx_join",{payload}]"#);
    let Decoded::Message(message) = codec::decode_text(Version::V2, &message) else { panic!() };
    let effects = client.session.handle(message, &Bytes::new(), client.now);
    let [Effect::Enter { seat, .. }, ..] = &*effects else { panic!("{effects:?}") };
    let principal = claims::tests::verifier().verify(&token, NOW).unwrap();
    assert_eq!(seat.user, principal.user());
}

#[test]
fn too_many_joins_of_all_close_who_comes_last() {
    let config = GatewayConfig { max_all_joins_per_second: 1, ..GatewayConfig::default() };
    let mut client = client_of(Version::V2, config);
    for number in 0..60 {
        assert!(!client.shared.joins.are_too_many(client.now.at));
        client.join(&format!("realtime:{number}"), json!({}));
    }
    assert!(client.shared.joins.are_too_many(client.now.at));
    let frames = client.join("realtime:t", json!({}));
    assert_eq!(frames[0][4]["response"]["reason"], "ClientJoinRateLimitReached: Too many joins per second");
    assert!(matches!(client.wants.as_slice(), [Effect::Close(CloseReason::Joins)]));
}
