//! Frames from a client as any bytes, and our answers to them.

use bytes::Bytes;
use serde_json::Value;

use super::codec::{
    Decoded, Message, Ref, Status, close, decode_binary, decode_text, error, json, refusal, replayed, replayed_binary,
    reply, shared, system,
};
use crate::gateway::encode::changes_frame;
use crate::hub::Version;

/// First byte: protocol version, and text or binary. Rest: the frame's payload.
pub(crate) fn frames(bytes: &[u8]) {
    let Some((form, rest)) = bytes.split_first() else { return };
    let version = if form & 1 == 0 { Version::V1 } else { Version::V2 };
    let decoded = if form & 2 == 0 {
        let Ok(text) = std::str::from_utf8(rest) else { return };
        decode_text(version, text)
    } else {
        decode_binary(version, rest)
    };
    let Decoded::Message(message) = decoded else { return };
    let size = message.topic.len() + message.event.len() + message.payload.len();
    assert!(size <= rest.len() + "broadcast".len() + "null".len());
    for reference in [&message.join_ref, &message.reference] {
        assert!(reference.as_json().len() <= 6 * 256 + 2);
        assert!(serde_json::from_str::<Value>(reference.as_json()).is_ok_and(|value| !value.is_object()));
    }
    if form & 2 == 0 {
        let text = encode(version, &message);
        let expected = if version == Version::V1 && message.payload == "null" { None } else { Some(&message) };
        let Decoded::Message(again) = decode_text(version, &text) else { panic!("{text}") };
        assert!(expected.is_none_or(|message| *message == again), "{text}");
    } else if let Some(frame) = encode_binary(&message) {
        let Decoded::Message(again) = decode_binary(Version::V2, &frame) else { panic!("{frame:?}") };
        assert_eq!((&again.topic, &again.payload), (&message.topic, &message.payload));
        assert_eq!((&again.join_ref, &again.reference), (&message.join_ref, &message.reference));
    }
    if let Some(bytes) = message.push.as_ref().and_then(|push| push.binary.clone()) {
        let frame = Bytes::copy_from_slice(rest);
        assert_eq!(shared(&frame, bytes.clone()), *bytes);
        let _ = replayed_binary(version, &message.topic, &message.event, "{}", &bytes);
    }
    answers(version, &message);
}

/// As a client writes it.
fn encode(version: Version, message: &Message<'_>) -> String {
    let Message { join_ref, reference, topic, event, payload, .. } = message;
    let (join_ref, reference, topic, event) = (join_ref.as_json(), reference.as_json(), json(topic), json(event));
    match version {
        Version::V1 => format!(
            r#"{{"join_ref":{join_ref},"ref":{reference},"topic":{topic},"event":{event},"payload":{payload}}}"#
        ),
        Version::V2 | Version::Plain | Version::Topics => format!("[{join_ref},{reference},{topic},{event},{payload}]"),
    }
}

/// A broadcast with a JSON payload; the header's strings are short.
fn encode_binary(message: &Message<'_>) -> Option<Vec<u8>> {
    let plain = |reference: &Ref| match serde_json::from_str(reference.as_json()) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    };
    let header = [plain(&message.join_ref), plain(&message.reference), message.topic.to_string()];
    let [join_ref, reference, topic] = header.each_ref().map(|text| u8::try_from(text.len()).ok());
    let mut out = vec![3, join_ref?, reference?, topic?, 0, 0, 1];
    out.extend(header.concat().into_bytes());
    out.extend(message.payload.bytes());
    Some(out)
}

/// Whatever the client named itself and its channel, an answer is one JSON text of the version's form.
fn answers(version: Version, message: &Message<'_>) {
    let Message { join_ref, reference, topic, event, .. } = message;
    let frames = [
        reply(version, join_ref, reference, topic, Status::Ok, "{}"),
        refusal(version, join_ref, reference, topic, event),
        system(version, join_ref, topic, "postgres_changes", Status::Error, event, ""),
        replayed(version, join_ref, topic, "{}"),
        close(version, join_ref, topic),
        error(version, join_ref, topic),
        changes_frame(version, topic, &[i32::MIN, 7], b"{}"),
    ];
    for frame in frames {
        let value: Value = serde_json::from_slice(payload(&frame)).expect("JSON");
        match version {
            Version::V1 => {
                let keys: Vec<&String> = value.as_object().expect("an object").keys().collect();
                assert_eq!(keys, ["event", "payload", "ref", "topic"]);
                assert_eq!(value["topic"], **topic);
            }
            Version::V2 | Version::Plain | Version::Topics => {
                assert_eq!(value.as_array().map(Vec::len), Some(5));
                assert_eq!(value[2], **topic);
            }
        }
    }
}

fn payload(frame: &Bytes) -> &[u8] {
    let head = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let mut expected = Vec::new();
    crate::gateway::frame::header(crate::gateway::frame::Opcode::Text, frame.len() - head, &mut expected);
    assert_eq!(frame[..head], expected[..]);
    &frame[head..]
}
