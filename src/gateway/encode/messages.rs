//! A database broadcast as a complete frame (`protocol.md` §7.6): the row's `jsonb` text or `bytea` as it is, with the row's id and
//! the cursor in `meta`.

use bytes::Bytes;

use super::event::{Content, NoFrame, event_frame};
use crate::hub::{Body, Message, Version};
use crate::pgtype::write_json_string;

/// The frame for members of this topic, which is the full one. `cursor`: from where on a client that has it goes on.
pub fn message_frame(
    version: Version,
    topic: &str,
    message: &Message<'_>,
    cursor: Option<&str>,
) -> Result<Bytes, NoFrame> {
    let meta = meta(message.id, cursor);
    let bytes;
    let content = match message.body {
        Body::Json(text) => Content::Json(text),
        Body::Hex(digits) => {
            bytes = decode(digits).ok_or(NoFrame::Malformed)?;
            Content::Binary(&bytes)
        }
    };
    event_frame(version, topic, message.event, content, &meta)
}

fn meta(id: &str, cursor: Option<&str>) -> Vec<u8> {
    let mut meta = br#"{"id":"#.to_vec();
    write_json_string(id.as_bytes(), &mut meta);
    if let Some(cursor) = cursor {
        meta.extend_from_slice(br#","cursor":"#);
        write_json_string(cursor.as_bytes(), &mut meta);
    }
    meta.push(b'}');
    meta
}

fn decode(digits: &[u8]) -> Option<Vec<u8>> {
    let nibble = |digit: u8| (digit as char).to_digit(16);
    let mut out = Vec::with_capacity(digits.len() / 2);
    let mut pairs = digits.chunks_exact(2);
    for pair in &mut pairs {
        out.push((nibble(pair[0])? << 4 | nibble(pair[1])?) as u8);
    }
    pairs.remainder().is_empty().then_some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::gateway::frame::{self, Opcode};

    const ID: &str = "6ecd8c99-4036-403d-bf84-cf8400f67836";

    fn message<'a>(event: &'a str, body: Body<'a>) -> Message<'a> {
        Message { private: true, topic: "room", event, id: ID, body }
    }

    #[test]
    fn protocol_1_has_an_object_with_meta() {
        let ping = message("ping", Body::Json(br#"{"a": 1}"#));
        let frame = message_frame(Version::V1, "realtime:room", &ping, Some("c1")).unwrap();
        let text = format!(
            r#"{{"topic":"realtime:room","event":"broadcast","payload":{{"event":"ping","payload":{{"a": 1}},"type":"broadcast","meta":{{"id":"{ID}","cursor":"c1"}}}},"ref":null}}"#
        );
        assert_eq!(&frame[4..], text.as_bytes());
        let line = message_frame(Version::Plain, "realtime:room", &ping, None).unwrap();
        let line: Value = serde_json::from_slice(&line).unwrap();
        let body = json!({"event": "ping", "payload": {"a": 1}, "type": "broadcast", "meta": {"id": ID}});
        assert_eq!(line, json!({ "broadcast": body }));
        let bytes = message("ping", Body::Hex(b"dead"));
        for version in [Version::V1, Version::Plain] {
            assert_eq!(message_frame(version, "realtime:room", &bytes, None), Err(NoFrame::NoForm));
        }
    }

    #[test]
    fn protocol_2_has_kind_4_with_the_payload_verbatim() {
        let meta = format!(r#"{{"id":"{ID}"}}"#);
        for (body, encoding, payload) in
            [(Body::Json(br#"{"a": 1}"#), 1, &br#"{"a": 1}"#[..]), (Body::Hex(b"deAD00"), 0, &[0xde, 0xad, 0])]
        {
            let frame = message_frame(Version::V2, "realtime:room", &message("cur", body), None).unwrap();
            let mut expected = vec![4, 13, 3, meta.len() as u8, encoding];
            expected.extend_from_slice(format!("realtime:roomcur{meta}").as_bytes());
            expected.extend_from_slice(payload);
            assert_eq!(frame, frame::encode(Opcode::Binary, &expected));
        }
    }

    #[test]
    fn what_protocol_2_can_not_say_is_said_in_protocol_1_alone() {
        for (topic, event) in [("t".repeat(256), "e".to_owned()), ("t".to_owned(), "é".repeat(128))] {
            let long = message(&event, Body::Json(b"1"));
            assert_eq!(message_frame(Version::V2, &topic, &long, None), Err(NoFrame::TooLong));
            assert!(message_frame(Version::V1, &topic, &long, None).is_ok());
        }
        let odd = message("e", Body::Hex(b"abc"));
        assert_eq!(message_frame(Version::V2, "t", &odd, None), Err(NoFrame::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_from_their_digits(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(decode(digits.as_bytes()), Some(bytes));
        }

        #[test]
        fn any_event_is_valid_json_in_protocol_1(event in any::<String>(), topic in any::<String>()) {
            let frame = message_frame(Version::V1, &topic, &message(&event, Body::Json(b"[1]")), Some("c")).unwrap();
            let start = frame.iter().position(|byte| *byte == b'{').unwrap();
            let read: Value = serde_json::from_slice(&frame[start..]).unwrap();
            prop_assert_eq!(&read["payload"]["event"], &json!(event));
            prop_assert_eq!(&read["topic"], &json!(topic));
        }
    }
}
