//! A broadcast that names its event, in the form of each protocol (`protocol.md` §2.3, §7.2, §7.6): from a client's binary
//! frame, from HTTP, or from the database.
//!
//! Protocol 2 has a binary frame for it (kind 4), whose header strings are at most 255 bytes; protocol 1 an object, which can't
//! hold bytes. Who can't be given a message in his protocol does not get it; others do. Fan-out frames carry no refs, so that
//! one is the same for all members of a version. Each is one allocation of the exact size.

use bytes::Bytes;

use super::envelope::Frame;
use super::topics;
use crate::gateway::frame::Opcode;
use crate::hub::Version;
use crate::pgtype::{json_string_len, write_json_string};

/// Why there is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFrame {
    /// The version has no form for it: a binary payload in protocol 1.
    #[error("the protocol's version has no form for it")]
    NoForm,
    /// The topic, the event's name or the metadata is longer than a binary frame can say.
    #[error("topic, event or metadata is longer than 255 bytes")]
    TooLong,
    /// It is said to be JSON, or bytes in hexadecimal digits, and is not.
    #[error("the payload is not what it is said to be")]
    Malformed,
}

impl NoFrame {
    /// The metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            NoFrame::NoForm => "binary",
            NoFrame::TooLong => "header",
            NoFrame::Malformed => "malformed",
        }
    }
}

/// What is said, as it stands in the frame.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'a> {
    /// JSON text; it was parsed somewhere.
    Json(&'a [u8]),
    Binary(&'a [u8]),
}

const KIND_BROADCAST: u8 = 4;

/// A broadcast for the members of this full topic. `meta`: JSON text of an object, or nothing.
pub(super) fn event_frame(
    version: Version,
    topic: &str,
    event: &str,
    content: Content<'_>,
    meta: &[u8],
) -> Result<Bytes, NoFrame> {
    let json = match (version, content) {
        (Version::V2, content) => return binary_frame(topic, event, content, meta),
        (Version::Topics, Content::Json(json)) => return Ok(topics::event_broadcast(topic, event, json, meta)),
        (Version::Topics, Content::Binary(bytes)) => return Ok(topics::binary_broadcast(topic, event, bytes, meta)),
        (Version::V1 | Version::Plain, Content::Binary(_)) => return Err(NoFrame::NoForm),
        (Version::V1 | Version::Plain, Content::Json(json)) => json,
    };
    let mut name = Vec::with_capacity(json_string_len(event));
    write_json_string(event.as_bytes(), &mut name);
    let mark: &[u8] = if meta.is_empty() { br#","type":"broadcast""# } else { br#","type":"broadcast","meta":"# };
    let object: [&[u8]; 7] = [br#"{"event":"#, &name, br#","payload":"#, json, mark, meta, b"}"];
    Ok(match version {
        Version::Plain => [br#"{"broadcast":"#.as_slice(), &object.concat(), b"}\n"].concat().into(),
        _ => text_frame(version, topic, None, "broadcast", &object),
    })
}

/// A message without a ref. `event` needs no escapes; the parts together are the payload.
pub(super) fn text_frame<P: AsRef<[u8]>>(
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
fn binary_frame(topic: &str, event: &str, content: Content<'_>, meta: &[u8]) -> Result<Bytes, NoFrame> {
    let (encoding, payload) = match content {
        Content::Binary(bytes) => (0, bytes),
        Content::Json(json) => (1, json),
    };
    let size = |part: &[u8]| u8::try_from(part.len()).map_err(|_| NoFrame::TooLong);
    let header = [KIND_BROADCAST, size(topic.as_bytes())?, size(event.as_bytes())?, size(meta)?, encoding];
    let length = header.len() + topic.len() + event.len() + meta.len() + payload.len();
    let mut frame = Frame::new(Opcode::Binary, length);
    frame.raw(header).raw(topic).raw(event).raw(meta).raw(payload);
    Ok(frame.finish())
}
