//! What is said in a room, as complete frames: broadcasts, `presence_state` and `presence_diff` (`protocol.md` §2.4, §7.2, §8).
//!
//! `presence_state` carries the channel's join_ref; all others carry no refs, so that one is the same for all members of a
//! version.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::event::{Content, NoFrame, event_frame, text_frame};
use super::topics;
use crate::hub::Version;
use crate::room::{Message, Payload};

/// A broadcast for the members of this full topic.
pub fn broadcast_frame(version: Version, topic: &str, message: &Message) -> Result<Bytes, NoFrame> {
    match (version, message) {
        // Nobody is in a room with it.
        (Version::Plain, _) => Err(NoFrame::NoForm),
        (Version::V1 | Version::V2, Message::Text { payload }) => {
            Ok(text_frame(version, topic, None, "broadcast", &[payload]))
        }
        (Version::Topics, Message::Text { payload }) => topics_text(topic, "broadcast", payload),
        (version, Message::Event { event, payload, meta }) => {
            let meta = meta.as_deref().unwrap_or_default();
            let content = match payload {
                Payload::Json(json) => Content::Json(json),
                Payload::Binary(bytes) => Content::Binary(bytes),
            };
            if let (Version::V1 | Version::Topics, Content::Json(json)) = (version, content) {
                // It comes from a binary frame, where nobody had to parse it, into a text frame that it could end.
                for part in [Some(json), (!meta.is_empty()).then_some(meta)].into_iter().flatten() {
                    serde_json::from_slice::<&RawValue>(part).map_err(|_| NoFrame::Malformed)?;
                }
            }
            event_frame(version, topic, event, content, meta)
        }
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
    let payload = std::str::from_utf8(payload).map_err(|_| NoFrame::Malformed)?;
    Ok(topics::event("null", topic, event, payload))
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
