//! Binary frames: broadcasts of kind 3 from a client, and of kind 4 to one (`protocol.md` §2.3).

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::Version;
use super::phone::Frame;

/// What a binary frame has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binary {
    /// 0 for bytes, 1 for JSON.
    pub(crate) encoding: u8,
    /// As it came; empty for none.
    pub(crate) metadata: String,
    pub(crate) payload: Vec<u8>,
}

/// A broadcast as a binary frame of a client (kind 3).
pub(crate) fn kind_3(
    refs: (&str, &str),
    topic: &str,
    event: &str,
    metadata: &str,
    encoding: u8,
    payload: &[u8],
) -> Message {
    let parts = [refs.0, refs.1, topic, event, metadata];
    let mut frame = vec![3];
    frame.extend(parts.map(|part| u8::try_from(part.len()).expect("short")));
    frame.push(encoding);
    parts.iter().for_each(|part| frame.extend_from_slice(part.as_bytes()));
    frame.extend_from_slice(payload);
    Message::Binary(frame.into())
}

/// A frame of kind 4.
pub(crate) fn parse(version: Version, bytes: &[u8]) -> Frame {
    assert_eq!((version, bytes.first()), (Version::V2, Some(&4)), "only kind 4 is sent, and only to version 2");
    let lengths = [bytes[1], bytes[2], bytes[3]].map(usize::from);
    let (mut at, mut parts) = (5, Vec::new());
    for length in lengths {
        parts.push(std::str::from_utf8(&bytes[at..at + length]).expect("UTF-8").to_owned());
        at += length;
    }
    let (payload, encoding) = (bytes[at..].to_vec(), bytes[4]);
    let [topic, event, metadata] = parts.try_into().expect("three");
    let mut shown = json!({ "type": "broadcast", "event": event });
    if encoding == 1 {
        shown["payload"] = serde_json::from_slice(&payload).expect("JSON");
    }
    if !metadata.is_empty() {
        shown["meta"] = serde_json::from_str(&metadata).expect("JSON");
    }
    let binary = Some(Binary { encoding, metadata, payload });
    let (join_ref, reference) = (Value::Null, Value::Null);
    Frame { join_ref, reference, topic, event: "broadcast".into(), payload: shown, text: event, binary }
}
