use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::gateway::frame::Opcode;

/// Opcode and payload of a frame whose header is right.
fn open(frame: &[u8]) -> (u8, &[u8]) {
    let size = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let opcode = if frame[0] == 0x81 { Opcode::Text } else { Opcode::Binary };
    let mut expected = Vec::new();
    crate::gateway::frame::header(opcode, frame.len() - size, &mut expected);
    assert_eq!(&frame[..size], expected);
    (frame[0] & 0x0f, &frame[size..])
}

fn text(frame: &[u8]) -> &str {
    let (opcode, payload) = open(frame);
    assert_eq!(opcode, 1);
    std::str::from_utf8(payload).unwrap()
}

fn binary(frame: &[u8]) -> &[u8] {
    let (opcode, payload) = open(frame);
    assert_eq!(opcode, 2);
    payload
}

fn event(name: &str, payload: Payload, meta: Option<&str>) -> Message {
    Message::Event { event: name.into(), payload, meta: meta.map(|meta| Bytes::copy_from_slice(meta.as_bytes())) }
}

fn json_payload(text: &str) -> Payload {
    Payload::Json(Bytes::copy_from_slice(text.as_bytes()))
}

const TOPIC: &str = "realtime:room";

#[test]
fn a_text_broadcast_is_passed_on_as_it_was_written() {
    for payload in [r#"{"a":1,"type":"broadcast","event":"x"}"#, "{}", r#""str""#, "[ 1.0,\n2 ]"] {
        let message = Message::Text { payload: Bytes::copy_from_slice(payload.as_bytes()) };
        let v1 = broadcast_frame(Version::V1, TOPIC, &message).unwrap();
        let expected = format!(r#"{{"topic":"realtime:room","event":"broadcast","payload":{payload},"ref":null}}"#);
        assert_eq!(text(&v1), expected);
        let v2 = broadcast_frame(Version::V2, TOPIC, &message).unwrap();
        assert_eq!(text(&v2), format!(r#"[null,null,"realtime:room","broadcast",{payload}]"#));
    }
}

#[test]
fn a_named_event_is_an_object_in_version_1_and_a_binary_frame_in_version_2() {
    let message = event("cur", json_payload(r#"{"x":3}"#), None);
    let v1 = broadcast_frame(Version::V1, TOPIC, &message).unwrap();
    let expected = r#"{"topic":"realtime:room","event":"broadcast","payload":{"event":"cur","payload":{"x":3},"type":"broadcast"},"ref":null}"#;
    assert_eq!(text(&v1), expected);
    let v2 = broadcast_frame(Version::V2, TOPIC, &message).unwrap();
    assert_eq!(binary(&v2), b"\x04\x0d\x03\x00\x01realtime:roomcur{\"x\":3}");

    let message = event("bin", Payload::Binary(Bytes::from_static(&[0xde, 0xad])), Some(r#"{"id":"a1"}"#));
    assert_eq!(broadcast_frame(Version::V1, TOPIC, &message), Err(NoFrame::NoForm));
    let v2 = broadcast_frame(Version::V2, TOPIC, &message).unwrap();
    assert_eq!(binary(&v2), b"\x04\x0d\x03\x0b\x00realtime:roombin{\"id\":\"a1\"}\xde\xad");

    let message = event("a\"b", json_payload("null"), Some(r#"{"id":"a1"}"#));
    let v1 = broadcast_frame(Version::V1, TOPIC, &message).unwrap();
    let payload = json!({"event": "a\"b", "payload": null, "type": "broadcast", "meta": {"id": "a1"}});
    assert_eq!(serde_json::from_str::<Value>(text(&v1)).unwrap()["payload"], payload);
}

#[test]
fn what_a_binary_header_cannot_say_is_not_for_version_2() {
    let (fits, long) = ("x".repeat(255), "x".repeat(256));
    let meta = |length: usize| format!("\"{}\"", "m".repeat(length - 2));
    for (topic, name, meta, sendable) in [
        (&fits, &fits, meta(255), true),
        (&long, &fits, meta(2), false),
        (&fits, &long, meta(2), false),
        (&fits, &fits, meta(256), false),
    ] {
        let message = event(name, json_payload("1"), Some(&meta));
        assert_eq!(broadcast_frame(Version::V2, topic, &message).err(), (!sendable).then_some(NoFrame::TooLong));
        assert!(broadcast_frame(Version::V1, topic, &message).is_ok());
    }
    let message = Message::Text { payload: Bytes::from_static(b"1") };
    assert!(broadcast_frame(Version::V2, &long, &message).is_ok(), "text has no such limit");
}

#[test]
fn bytes_that_are_not_json_do_not_get_into_a_text_frame() {
    for bytes in [&b"1,\"ref\":2"[..], b"", b"\"\xff\"", b"{} {}"] {
        let message = event("e", Payload::Json(Bytes::from(bytes)), None);
        assert_eq!(broadcast_frame(Version::V1, TOPIC, &message), Err(NoFrame::Malformed));
    }
    let message =
        Message::Event { event: "e".into(), payload: json_payload("1"), meta: Some(Bytes::from_static(b"1},\"x\":{")) };
    assert_eq!(broadcast_frame(Version::V1, TOPIC, &message), Err(NoFrame::Malformed));
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    assert!(
        broadcast_frame(Version::V1, TOPIC, &event("e", json_payload(&deep), None)).is_ok(),
        "and no depth does harm"
    );
}

#[test]
fn presence_carries_the_refs_that_clients_look_for() {
    let payload = br#"{"joins":{},"leaves":{}}"#;
    let v1 = presence_diff_frame(Version::V1, TOPIC, payload).unwrap();
    let expected = r#"{"topic":"realtime:room","event":"presence_diff","payload":{"joins":{},"leaves":{}},"ref":null}"#;
    assert_eq!(text(&v1), expected);
    let v2 = presence_diff_frame(Version::V2, TOPIC, payload).unwrap();
    assert_eq!(text(&v2), r#"[null,null,"realtime:room","presence_diff",{"joins":{},"leaves":{}}]"#);
    let v1 = presence_state_frame(Version::V1, TOPIC, "\"7\"", b"{}").unwrap();
    assert_eq!(text(&v1), r#"{"topic":"realtime:room","event":"presence_state","payload":{},"ref":null}"#);
    let v2 = presence_state_frame(Version::V2, TOPIC, "\"7\"", b"{}").unwrap();
    assert_eq!(text(&v2), r#"["7",null,"realtime:room","presence_state",{}]"#);
}

proptest! {
    #[test]
    fn any_topic_event_and_payload_arrive(
        topic in "\\PC{0,60}", name in any::<String>(), value in any::<String>(), size in prop_oneof![0usize..200, 65_300usize..65_700],
    ) {
        let json = serde_json::to_string(&format!("{value}{}", "x".repeat(size))).unwrap();
        let message = event(&name, json_payload(&json), None);
        let v1: Value = serde_json::from_str(text(&broadcast_frame(Version::V1, &topic, &message).unwrap())).unwrap();
        let expected: Value = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&v1["topic"], &json!(topic));
        prop_assert_eq!(&v1["payload"], &json!({"event": name, "payload": expected, "type": "broadcast"}));
        match broadcast_frame(Version::V2, &topic, &message) {
            Ok(frame) => {
                let bytes = binary(&frame);
                let (t, e) = (usize::from(bytes[1]), usize::from(bytes[2]));
                prop_assert_eq!(&bytes[5..5 + t], topic.as_bytes());
                prop_assert_eq!(&bytes[5 + t..5 + t + e], name.as_bytes());
                prop_assert_eq!(&bytes[5 + t + e..], json.as_bytes());
            }
            Err(error) => prop_assert!(error == NoFrame::TooLong && (topic.len() > 255 || name.len() > 255)),
        }
        let v2 = presence_state_frame(Version::V2, &topic, "null", json.as_bytes()).unwrap();
        prop_assert_eq!(serde_json::from_str::<Value>(text(&v2)).unwrap(), json!([null, null, topic, "presence_state", expected]));
    }
}
