//! What is said in a room, as complete frames: broadcasts, `presence_state` and `presence_diff` (`protocol.md` §2.3, §2.4, §7.2, §8).
//!
//! Fan-out frames carry no refs, so that one is the same for all members of a version; `presence_state` carries the channel's
//! join_ref. Each is one allocation of the exact size.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::envelope::Frame;
use super::topics;
use crate::gateway::frame::Opcode;
use crate::hub::Version;
use crate::pgtype::json_string_len;
use crate::room::{Message, Payload};

/// Why there is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFrame {
    /// The version has no form for it: a binary payload in protocol 1.
    #[error("the protocol's version has no form for it")]
    NoForm,
    /// The topic, the event's name or the metadata is longer than a binary frame can say.
    #[error("topic, event or metadata is longer than 255 bytes")]
    TooLong,
    /// It is said to be JSON, and is not.
    #[error("the payload is not JSON")]
    NotJson,
}

const KIND_BROADCAST: u8 = 4;
const BINARY: u8 = 0;
const JSON: u8 = 1;

/// A broadcast for the members of this full topic.
pub fn broadcast_frame(version: Version, topic: &str, message: &Message) -> Result<Bytes, NoFrame> {
    match (version, message) {
        (Version::V1 | Version::V2, Message::Text { payload }) => {
            Ok(text_frame(version, topic, None, "broadcast", &[payload]))
        }
        (Version::V1, Message::Event { event, payload, meta }) => {
            let Payload::Json(json) = payload else { return Err(NoFrame::NoForm) };
            // It comes from a binary frame, where nobody had to parse it, into a text frame that it could end.
            for part in [Some(json), meta.as_ref()].into_iter().flatten() {
                serde_json::from_slice::<&RawValue>(part).map_err(|_| NoFrame::NotJson)?;
            }
            let mut name = Vec::with_capacity(json_string_len(event));
            crate::pgtype::write_json_string(event.as_bytes(), &mut name);
            let (mark, meta): (&[u8], &[u8]) = match meta {
                Some(meta) => (br#","type":"broadcast","meta":"#, meta),
                None => (br#","type":"broadcast""#, b""),
            };
            let parts: [&[u8]; 7] = [br#"{"event":"#, &name, br#","payload":"#, json, mark, meta, b"}"];
            Ok(text_frame(version, topic, None, "broadcast", &parts))
        }
        (Version::V2, Message::Event { event, payload, meta }) => binary_frame(topic, event, payload, meta.as_deref()),
        (Version::Topics, message) => topics_frame(topic, message),
        (Version::Plain, _) => Err(NoFrame::NoForm),
    }
}

/// A `presence_diff` with this payload.
pub fn presence_diff_frame(version: Version, topic: &str, payload: &[u8]) -> Result<Bytes, NoFrame> {
    match version {
        Version::V1 | Version::V2 => Ok(text_frame(version, topic, None, "presence_diff", &[payload])),
        Version::Topics => topics_text(topic, "presence_diff", payload),
        Version::Plain => Err(NoFrame::NoForm),
    }
}

/// A `presence_state` with this payload, for the channel with this join_ref as JSON text.
pub fn presence_state_frame(
    version: Version,
    topic: &str,
    join_ref_json: &str,
    payload: &[u8],
) -> Result<Bytes, NoFrame> {
    match version {
        Version::V1 | Version::V2 => Ok(text_frame(version, topic, Some(join_ref_json), "presence_state", &[payload])),
        Version::Topics => topics_text(topic, "presence_state", payload),
        Version::Plain => Err(NoFrame::NoForm),
    }
}

fn topics_text(topic: &str, event: &str, payload: &[u8]) -> Result<Bytes, NoFrame> {
    let payload = std::str::from_utf8(payload).map_err(|_| NoFrame::NotJson)?;
    Ok(topics::event("null", topic, event, payload))
}

/// Typed JSON has a form for all of them.
fn topics_frame(topic: &str, message: &Message) -> Result<Bytes, NoFrame> {
    match message {
        Message::Text { payload } => topics_text(topic, "broadcast", payload),
        Message::Event { event, payload, meta } => {
            let meta = meta.as_deref().unwrap_or_default();
            match payload {
                Payload::Json(json) => {
                    let parts: [&[u8]; 2] = [json, meta];
                    for part in parts.into_iter().filter(|part| !part.is_empty()) {
                        serde_json::from_slice::<&RawValue>(part).map_err(|_| NoFrame::NotJson)?;
                    }
                    Ok(topics::event_broadcast(topic, event, json, meta))
                }
                Payload::Binary(bytes) => Ok(topics::binary_broadcast(topic, event, bytes, meta)),
            }
        }
    }
}

/// A message without a ref. `event` needs no escapes; the parts together are the payload.
fn text_frame<P: AsRef<[u8]>>(
    version: Version,
    topic: &str,
    join_ref_json: Option<&str>,
    event: &str,
    payload: &[P],
) -> Bytes {
    let join_ref = join_ref_json.unwrap_or("null");
    let (start, before_topic, before_event, before_payload, end) = match version {
        Version::V2 => (["[", join_ref], ",null,", ",\"", "\",", "]"),
        _ => (["", ""], r#"{"topic":"#, r#","event":""#, r#"","payload":"#, r#","ref":null}"#),
    };
    let fixed = [start[0], start[1], before_topic, before_event, event, before_payload, end];
    let length = fixed.iter().map(|part| part.len()).sum::<usize>()
        + json_string_len(topic)
        + payload.iter().map(|part| part.as_ref().len()).sum::<usize>();
    let mut frame = Frame::new(Opcode::Text, length);
    frame.raw(start[0]).raw(start[1]).raw(before_topic).string(topic);
    frame.raw(before_event).raw(event).raw(before_payload);
    for part in payload {
        frame.raw(part);
    }
    frame.raw(end);
    frame.finish()
}

/// A frame of kind 4.
fn binary_frame(topic: &str, event: &str, payload: &Payload, meta: Option<&[u8]>) -> Result<Bytes, NoFrame> {
    let meta = meta.unwrap_or_default();
    let (encoding, payload) = match payload {
        Payload::Json(json) => (JSON, json),
        Payload::Binary(bytes) => (BINARY, bytes),
    };
    let size = |part: &[u8]| u8::try_from(part.len()).map_err(|_| NoFrame::TooLong);
    let header = [KIND_BROADCAST, size(topic.as_bytes())?, size(event.as_bytes())?, size(meta)?, encoding];
    let length = header.len() + topic.len() + event.len() + meta.len() + payload.len();
    let mut frame = Frame::new(Opcode::Binary, length);
    frame.raw(header).raw(topic).raw(event).raw(meta).raw(payload);
    Ok(frame.finish())
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
