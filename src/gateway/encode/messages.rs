//! A database broadcast as a complete frame (`protocol.md` §7.6): the row's `jsonb` text or `bytea` as it is, with the row's id and
//! the cursor in `meta`.
//!
//! Protocol 2 has a binary frame of its own for it (kind 4, §2.3), whose header strings are at most 255 bytes; protocol 1 an
//! object that can't hold bytes. Who can't be given a message in his protocol does not get it; others do.

use bytes::Bytes;

use super::topics;
use crate::gateway::frame::{self, Opcode};
use crate::hub::{Body, Message, Version};
use crate::pgtype::write_json_string;

/// Why a message has no frame in a protocol; the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsendable {
    /// Topic, event or meta is longer than protocol 2 can say.
    Header,
    /// Bytes, which JSON can't hold.
    Binary,
    /// It is no message.
    Malformed,
}

impl Unsendable {
    /// As the metric has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Unsendable::Header => "header",
            Unsendable::Binary => "binary",
            Unsendable::Malformed => "malformed",
        }
    }
}

/// Kind of a broadcast to a client.
const KIND: u8 = 4;
const BINARY: u8 = 0;
const JSON: u8 = 1;

/// The frame for members of this topic, which is the full one. `cursor`: from where on a client that has it goes on.
pub fn message_frame(
    version: Version,
    topic: &str,
    message: &Message<'_>,
    cursor: Option<&str>,
) -> Result<Bytes, Unsendable> {
    let meta = meta(message.id, cursor);
    match version {
        Version::V2 => binary(topic, message, &meta),
        Version::V1 => {
            let mut text = br#"{"topic":"#.to_vec();
            write_json_string(topic.as_bytes(), &mut text);
            text.extend_from_slice(br#","event":"broadcast","payload":"#);
            object(message, &meta, &mut text)?;
            text.extend_from_slice(br#","ref":null}"#);
            Ok(frame::text(&text))
        }
        Version::Plain => {
            let mut line = br#"{"broadcast":"#.to_vec();
            object(message, &meta, &mut line)?;
            line.extend_from_slice(b"}\n");
            Ok(line.into())
        }
        Version::Topics => match message.body {
            Body::Json(payload) => Ok(topics::event_broadcast(topic, message.event, payload, &meta)),
            Body::Hex(digits) => {
                let mut bytes = Vec::with_capacity(digits.len() / 2);
                decode(digits, &mut bytes).ok_or(Unsendable::Malformed)?;
                Ok(topics::binary_broadcast(topic, message.event, &bytes, &meta))
            }
        },
    }
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

/// As protocol 1 has it.
fn object(message: &Message<'_>, meta: &[u8], out: &mut Vec<u8>) -> Result<(), Unsendable> {
    let Body::Json(payload) = message.body else { return Err(Unsendable::Binary) };
    out.extend_from_slice(br#"{"event":"#);
    write_json_string(message.event.as_bytes(), out);
    out.extend_from_slice(br#","payload":"#);
    out.extend_from_slice(payload);
    out.extend_from_slice(br#","type":"broadcast","meta":"#);
    out.extend_from_slice(meta);
    out.push(b'}');
    Ok(())
}

fn binary(topic: &str, message: &Message<'_>, meta: &[u8]) -> Result<Bytes, Unsendable> {
    let strings = [topic.as_bytes(), message.event.as_bytes(), meta];
    let mut lengths = [0; 3];
    for (length, string) in lengths.iter_mut().zip(strings) {
        *length = u8::try_from(string.len()).map_err(|_| Unsendable::Header)?;
    }
    let length = 5 + strings.iter().map(|string| string.len()).sum::<usize>() + message.body.size();
    let mut out = Vec::with_capacity(length + 10);
    frame::header(Opcode::Binary, length, &mut out);
    out.push(KIND);
    out.extend_from_slice(&lengths);
    out.push(if matches!(message.body, Body::Json(_)) { JSON } else { BINARY });
    strings.iter().for_each(|string| out.extend_from_slice(string));
    match message.body {
        Body::Json(text) => out.extend_from_slice(text),
        Body::Hex(digits) => decode(digits, &mut out).ok_or(Unsendable::Malformed)?,
    }
    Ok(out.into())
}

fn decode(digits: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let nibble = |digit: u8| (digit as char).to_digit(16);
    let mut pairs = digits.chunks_exact(2);
    for pair in &mut pairs {
        out.push((nibble(pair[0])? << 4 | nibble(pair[1])?) as u8);
    }
    pairs.remainder().is_empty().then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

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
            assert_eq!(message_frame(version, "realtime:room", &bytes, None), Err(Unsendable::Binary));
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
            assert_eq!(message_frame(Version::V2, &topic, &long, None), Err(Unsendable::Header));
            assert!(message_frame(Version::V1, &topic, &long, None).is_ok());
        }
        let odd = message("e", Body::Hex(b"abc"));
        assert_eq!(message_frame(Version::V2, "t", &odd, None), Err(Unsendable::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_from_their_digits(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut decoded = Vec::new();
            prop_assert_eq!(decode(digits.as_bytes(), &mut decoded), Some(()));
            prop_assert_eq!(decoded, bytes);
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
