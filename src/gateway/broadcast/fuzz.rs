//! Bodies of broadcasts over HTTP as any bytes.

use bytes::Bytes;
use serde_json::Value;

use super::batch::parse;
use super::payload;
use super::request::Format;
use super::response::Answer;
use crate::gateway::encode::broadcast_frame;
use crate::gateway::json::{is_value, members};
use crate::gateway::phoenix::codec::json;
use crate::hub::Version;
use crate::room::{Message, Payload};

/// The bytes are a body: of a batch, and of a single broadcast in both of its forms.
pub(crate) fn bodies(bytes: &[u8]) {
    single(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match parse(text, 1000) {
        Ok(messages) => {
            assert!(!messages.is_empty());
            for message in messages {
                let (room, message) = (message.room(), message.encode());
                let Message::Text { payload } = &message else { panic!("a batch is text") };
                assert!(payload.len() <= bytes.len() + 64);
                let text = std::str::from_utf8(payload).expect("UTF-8");
                assert!(is_value(text), "{text}");
                // Posted again it is the same.
                let body = body(&room.topic, room.private, text);
                let again = parse(&body, 1000).unwrap_or_else(|answer| panic!("{body}: {answer:?}"));
                assert_eq!(again.len(), 1);
                assert_eq!(again[0].room(), room);
                let Message::Text { payload: same } = again[0].encode() else { panic!("a batch is text") };
                assert_eq!(same, *payload);
                framed(&room.topic, &message);
            }
        }
        Err(Answer::Invalid(errors)) => assert!(errors.as_array().is_some_and(|all| !all.is_empty())),
        Err(Answer::BadRequest) => assert!(serde_json::from_str::<Value>(text).is_err()),
        Err(answer) => assert_eq!(answer, Answer::BatchTooLarge),
    }
}

/// A batch with one message. `sent`: as members get it.
fn body(topic: &str, private: bool, sent: &str) -> String {
    let (mut event, mut payload, mut id) = ("", "", "null");
    members(sent, |name, value| {
        match &*name {
            "event" => event = value,
            "payload" => payload = value,
            "meta" => {
                members(value, |_, value| {
                    id = value;
                    true
                });
            }
            _ => assert_eq!((&*name, value), ("type", "\"broadcast\"")),
        }
        true
    });
    let topic = json(topic);
    format!(r#"{{"messages":[{{"topic":{topic},"event":{event},"payload":{payload},"private":{private},"id":{id}}}]}}"#)
}

fn single(bytes: &[u8]) {
    let sent = Bytes::copy_from_slice(bytes);
    let Ok(Payload::Binary(kept)) = payload(Format::Octets, sent.clone()) else { panic!("bytes are bytes") };
    assert_eq!(kept, sent);
    framed("t", &Message::Event { event: "e".into(), payload: Payload::Binary(kept), meta: None });
    match payload(Format::Json, sent.clone()) {
        Ok(Payload::Json(kept)) => {
            assert!(kept == sent || (sent.is_empty() && &*kept == b"{}"));
            framed("t", &Message::Event { event: "e".into(), payload: Payload::Json(kept), meta: None });
        }
        Ok(Payload::Binary(_)) => panic!("JSON is JSON"),
        Err(answer) => {
            assert_eq!(answer, Answer::BadRequest);
            assert!(!std::str::from_utf8(bytes).is_ok_and(is_value));
        }
    }
}

/// Every member gets it whose protocol can say it, and what is a text is one JSON value.
fn framed(topic: &str, message: &Message) {
    for version in [Version::V1, Version::V2, Version::Topics] {
        let bytes = matches!(message, Message::Event { payload: Payload::Binary(_), .. });
        let Ok(frame) = broadcast_frame(version, topic, message) else {
            assert!(bytes && version == Version::V1, "{version:?}: {message:?}");
            continue;
        };
        let head = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let binary = version == Version::V2 && matches!(message, Message::Event { .. });
        assert_eq!(frame[0], if binary { 0x82 } else { 0x81 });
        assert!(binary || std::str::from_utf8(&frame[head..]).is_ok_and(is_value), "{frame:?}");
    }
}
