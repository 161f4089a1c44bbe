//! Frames from a client as any bytes, and our answers to them.

use bytes::Bytes;
use serde_json::Value;

use super::codec::{
    Decoded, Message, Ref, Status, close, decode_binary, decode_text, error, json, refusal, replayed, replayed_binary,
    reply, shared, system,
};
use super::session::for_the_room;
use crate::gateway::encode::{NoFrame, broadcast_frame, changes_frame};
use crate::gateway::frame::Opcode;
use crate::gateway::json::{elements, is_value, members, string};
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
        assert!(is_value(reference.as_json()) && !reference.as_json().starts_with(['{', '[']));
    }
    if form & 2 == 0 {
        let text = encode(version, &message);
        let expected = if version == Version::V1 && message.payload == "null" { None } else { Some(&message) };
        let Decoded::Message(again) = decode_text(version, &text) else { panic!("{text}") };
        assert!(expected.is_none_or(|message| *message == again), "{text}");
    } else if let Some(frame) = encode_binary(&message) {
        let Decoded::Message(again) = decode_binary(Version::V2, &frame) else { panic!("{frame:?}") };
        assert_eq!(again, message);
    }
    if let Some(bytes) = message.push.as_ref().and_then(|push| push.binary.clone()) {
        let frame = Bytes::copy_from_slice(rest);
        assert_eq!(shared(&frame, bytes.clone()), *bytes);
        let _ = replayed_binary(version, &message.topic, &message.event, "{}", &bytes);
    }
    answers(version, &message);
    let whole = Bytes::copy_from_slice(rest);
    let again = match std::str::from_utf8(&whole) {
        Ok(text) if form & 2 == 0 => decode_text(version, text),
        _ => decode_binary(version, &whole),
    };
    let Decoded::Message(again) = again else { panic!("{whole:?} is read once") };
    assert_eq!(again, message);
    passed_on(again, &whole);
}

/// What the others get of a broadcast is what its sender has sent, byte by byte. `whole`: what the message was read from.
fn passed_on(message: Message<'_>, whole: &Bytes) {
    let owned = message.clone().into_owned();
    let (topic, push) = (&owned.topic, &owned.push);
    let sent = for_the_room(message, whole);
    let frame = |version| broadcast_frame(version, topic, &sent);
    assert_eq!(frame(Version::Plain), Err(NoFrame::NoForm));
    let typed = frame(Version::Topics).expect("a form for everything");
    assert!(typed.is_empty() || is_value(text(&typed)), "{typed:?}");
    let Some(push) = push else {
        let mut parts = Vec::new();
        let array = frame(Version::V2).expect("text for text");
        assert!(elements(text(&array), |part| {
            parts.push(part.to_owned());
            true
        }));
        let named = string(&parts[2]).is_some_and(|name| name == *topic);
        assert!(named && parts.len() == 5, "{parts:?}");
        assert_eq!([&*parts[0], &*parts[1], &*parts[3]], ["null", "null", "\"broadcast\""]);
        assert_eq!(parts[4], owned.payload);
        return assert_eq!(object(&frame(Version::V1).expect("text for text"), topic), *owned.payload);
    };
    let (kind_4, bytes) = (frame(Version::V2).expect("its strings are short"), push.binary.as_deref());
    let sent = bytes.unwrap_or(owned.payload.as_bytes());
    let size = |text: &str| u8::try_from(text.len()).expect("as it came");
    let head = [4, size(topic), size(&push.event), 0, u8::from(bytes.is_none())];
    let expected = [&head[..], topic.as_bytes(), push.event.as_bytes(), sent].concat();
    assert_eq!(content(&kind_4, Opcode::Binary), expected);
    if bytes.is_some() {
        return assert_eq!(frame(Version::V1), Err(NoFrame::NoForm));
    }
    let payload = object(&frame(Version::V1).expect("JSON"), topic);
    let mut names = Vec::new();
    assert!(members(&payload, |name, value| {
        match &*name {
            "event" => assert_eq!(string(value).as_deref(), Some(&*push.event)),
            "payload" => assert_eq!(value, owned.payload.trim_matches([' ', '\t', '\r', '\n'])),
            _ => assert_eq!((&*name, value), ("type", "\"broadcast\"")),
        }
        names.push(name.into_owned());
        true
    }));
    assert_eq!(names, ["event", "payload", "type"]);
}

/// The payload of a fan-out frame of version 1.
fn object(frame: &Bytes, topic: &str) -> String {
    let mut payload = String::new();
    let mut count = 0;
    assert!(members(text(frame), |name, value| {
        match &*name {
            "topic" => assert_eq!(string(value).as_deref(), Some(topic)),
            "payload" => value.clone_into(&mut payload),
            "event" => assert_eq!(value, "\"broadcast\""),
            _ => assert_eq!((&*name, value), ("ref", "null")),
        }
        count += 1;
        true
    }));
    assert_eq!(count, 4);
    payload
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

/// A broadcast as a binary frame; the header's strings are short.
fn encode_binary(message: &Message<'_>) -> Option<Vec<u8>> {
    let plain = |reference: &Ref| match serde_json::from_str(reference.as_json()) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    };
    let push = message.push.as_ref()?;
    let metadata = r#"{"of":"nobody"}"#.to_owned();
    let header = [&message.join_ref, &message.reference].map(plain);
    let header = [&header[0], &header[1], &*message.topic, &*push.event, &metadata];
    let mut out = vec![3];
    for part in header {
        out.push(u8::try_from(part.len()).ok()?);
    }
    out.push(u8::from(push.binary.is_none()));
    out.extend(header.concat().into_bytes());
    out.extend_from_slice(push.binary.as_deref().unwrap_or(message.payload.as_bytes()));
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
        let Ok(value) = serde_json::from_str::<Value>(text(&frame)) else {
            // A ref may be a number that no tree can hold.
            assert!(is_value(text(&frame)), "{frame:?}");
            continue;
        };
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

fn text(frame: &Bytes) -> &str {
    std::str::from_utf8(content(frame, Opcode::Text)).expect("UTF-8")
}

/// Without the head, which is the shortest that there is.
fn content(frame: &Bytes, opcode: Opcode) -> &[u8] {
    let head = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let mut expected = Vec::new();
    crate::gateway::frame::header(opcode, frame.len() - head, &mut expected);
    assert_eq!(frame[..head], expected[..]);
    &frame[head..]
}
