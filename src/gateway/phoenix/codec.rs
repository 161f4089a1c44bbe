//! Phoenix messages: decoded leniently, encoded exactly.
//!
//! Invariants:
//! * No bytes from outside panic or allocate more than a small multiple of themselves; payloads stay as they came: text that is
//!   JSON but was not parsed, or bytes. [`shared`] makes them shared without a copy.
//! * V1 frames carry exactly `topic`, `event`, `payload`, `ref`; V2 frames exactly five elements (§2.1, §2.2); which of them
//!   carries which refs is §2.4.
//!
//! Rejected: decoding into `serde_json::Value`, which copies every payload, also those that nobody reads.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::gateway::encode::topics::{self, Request};
use crate::gateway::frame::{self, Opcode};
use crate::hub::Version;

/// Longer refs than this are no refs: they are repeated in every frame of a channel.
const MAX_REF_BYTES: usize = 256;

/// A `ref` or `join_ref`: JSON text, repeated to the client as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ref(Option<Arc<str>>);

impl Ref {
    /// `null`.
    pub const NULL: Ref = Ref(None);

    /// From JSON text: a string, a number or null; `None` if it is something else or too long.
    fn from_json(text: &str) -> Option<Ref> {
        match text.as_bytes().first()? {
            _ if text.len() > MAX_REF_BYTES => None,
            b'n' => Some(Ref::NULL),
            // The same string, spelled in one way, so that refs can be compared.
            b'"' if text.contains('\\') => {
                let plain: String = serde_json::from_str(text).ok()?;
                Some(Ref::from_text(&plain))
            }
            b'"' | b'-' | b'0'..=b'9' => Some(Ref(Some(text.into()))),
            _ => None,
        }
    }

    /// From a binary frame's header field, where empty means none.
    fn from_text(text: &str) -> Ref {
        if text.is_empty() { Ref::NULL } else { Ref(Some(json(text).into())) }
    }

    /// Of a request of the topics door: no JSON, but what its answer is made from.
    pub(in crate::gateway) fn tagged(request: Request, reference: &str) -> Ref {
        Ref(Some(request.tag(reference).into()))
    }

    /// As JSON text; `null` if there is none.
    pub fn as_json(&self) -> &str {
        self.0.as_deref().unwrap_or("null")
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// This one, or the other if this is null.
    #[must_use]
    pub fn or(&self, other: &Ref) -> Ref {
        if self.is_null() { other.clone() } else { self.clone() }
    }
}

/// A message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// Which instance of the channel it is meant for.
    pub join_ref: Ref,
    /// What its reply must carry.
    pub reference: Ref,
    /// The full topic.
    pub topic: Cow<'a, str>,
    /// What it is.
    pub event: Cow<'a, str>,
    /// JSON text; `null` if the payload is binary.
    pub payload: Cow<'a, str>,
    /// What a binary frame has beside that.
    pub push: Option<Push<'a>>,
}

/// The parts of a broadcast that came as a binary frame (kind 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push<'a> {
    /// The event that the user named; the message's own is `broadcast`.
    pub event: Cow<'a, str>,
    /// The payload, if it is not JSON.
    pub binary: Option<Cow<'a, [u8]>>,
}

impl Message<'_> {
    /// A copy that outlives the frame.
    pub fn into_owned(self) -> Message<'static> {
        Message {
            join_ref: self.join_ref,
            reference: self.reference,
            topic: self.topic.into_owned().into(),
            event: self.event.into_owned().into(),
            payload: self.payload.into_owned().into(),
            push: self.push.map(|push| Push {
                event: push.event.into_owned().into(),
                binary: push.binary.map(|bytes| bytes.into_owned().into()),
            }),
        }
    }

    /// Bytes of its payload.
    pub fn size(&self) -> usize {
        let binary = self.push.as_ref().and_then(|push| push.binary.as_ref());
        binary.map_or(self.payload.len(), |bytes| bytes.len())
    }
}

/// The bytes as a part of the frame that they were borrowed from, or moved where they are owned: without a copy.
pub fn shared<B>(frame: &Bytes, part: Cow<'_, B>) -> Bytes
where
    B: AsRef<[u8]> + ToOwned + ?Sized,
    B::Owned: Into<Vec<u8>>,
{
    let part = match part {
        Cow::Owned(owned) => return Bytes::from(owned.into()),
        Cow::Borrowed(part) => part.as_ref(),
    };
    let (whole, range) = (frame.as_ptr_range(), part.as_ptr_range());
    if whole.start <= range.start && range.end <= whole.end {
        frame.slice_ref(part)
    } else {
        Bytes::copy_from_slice(part)
    }
}

/// What a frame turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// To be handled.
    Message(Message<'a>),
    /// Well-formed and of no use to anybody: a plain Phoenix binary push.
    Ignored,
    /// To be dropped and counted; the socket lives.
    Malformed,
}

impl<'a> From<Option<Message<'a>>> for Decoded<'a> {
    fn from(message: Option<Message<'a>>) -> Decoded<'a> {
        message.map_or(Decoded::Malformed, Decoded::Message)
    }
}

/// Reads a text frame.
pub fn decode_text(version: Version, text: &str) -> Decoded<'_> {
    match version {
        Version::V1 => decode_object(text).into(),
        Version::V2 => decode_array(text).into(),
        // The one asks by HTTP, the other has a reader of its own.
        Version::Plain | Version::Topics => Decoded::Malformed,
    }
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    #[serde(borrow, rename = "ref")]
    reference: Option<&'a RawValue>,
    #[serde(borrow)]
    join_ref: Option<&'a RawValue>,
}

fn decode_object(text: &str) -> Option<Message<'_>> {
    // serde's derive also takes an array for a struct; the protocol doesn't.
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let object: Object<'_> = serde_json::from_str(text).ok()?;
    let reference = |raw: Option<&RawValue>| raw.map_or(Some(Ref::NULL), |raw| Ref::from_json(raw.get()));
    Some(Message {
        join_ref: reference(object.join_ref)?,
        reference: reference(object.reference)?,
        topic: object.topic,
        event: object.event,
        payload: object.payload.map_or("{}", RawValue::get).into(),
        push: None,
    })
}

/// Borrowed unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn decode_array(text: &str) -> Option<Message<'_>> {
    struct Elements;
    impl<'de> Visitor<'de> for Elements {
        type Value = Message<'de>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("[join_ref, ref, topic, event, payload]")
        }
        fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Message<'de>, S::Error> {
            let missing = || de::Error::custom("too short");
            let no_ref = || de::Error::custom("not a ref");
            let join_ref: &RawValue = seq.next_element()?.ok_or_else(missing)?;
            let reference: &RawValue = seq.next_element()?.ok_or_else(missing)?;
            let topic: Text<'_> = seq.next_element()?.ok_or_else(missing)?;
            let event: Text<'_> = seq.next_element()?.ok_or_else(missing)?;
            let payload: &RawValue = seq.next_element()?.ok_or_else(missing)?;
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(Message {
                join_ref: Ref::from_json(join_ref.get()).ok_or_else(no_ref)?,
                reference: Ref::from_json(reference.get()).ok_or_else(no_ref)?,
                topic: topic.0,
                event: event.0,
                payload: payload.get().into(),
                push: None,
            })
        }
    }
    serde_json::Deserializer::from_str(text).deserialize_seq(Elements).ok()
}

/// Reads a binary frame; V1 has none (§2.3).
pub fn decode_binary(version: Version, bytes: &[u8]) -> Decoded<'_> {
    match (version, bytes.first()) {
        (Version::V2, Some(0)) => decode_push(bytes).map_or(Decoded::Malformed, |()| Decoded::Ignored),
        (Version::V2, Some(3)) => decode_broadcast(bytes).into(),
        _ => Decoded::Malformed,
    }
}

fn take<'a>(rest: &mut &'a [u8], length: u8) -> Option<&'a str> {
    let (head, tail) = rest.split_at_checked(usize::from(length))?;
    *rest = tail;
    std::str::from_utf8(head).ok()
}

fn decode_push(bytes: &[u8]) -> Option<()> {
    let (&[_, join_ref, reference, topic, event], mut rest) = bytes.split_first_chunk::<5>()?;
    for length in [join_ref, reference, topic, event] {
        take(&mut rest, length)?;
    }
    Some(())
}

fn decode_broadcast(bytes: &[u8]) -> Option<Message<'_>> {
    let (&[_, join_ref, reference, topic, event, metadata, encoding], mut rest) = bytes.split_first_chunk::<7>()?;
    let join_ref = Ref::from_text(take(&mut rest, join_ref)?);
    let reference = Ref::from_text(take(&mut rest, reference)?);
    let topic = take(&mut rest, topic)?;
    let event = take(&mut rest, event)?;
    let metadata = take(&mut rest, metadata)?;
    if !metadata.is_empty() {
        serde_json::from_str::<IgnoredAny>(metadata).ok()?;
    }
    let (payload, binary) = if encoding == 0 {
        ("null", Some(rest.into()))
    } else {
        let text = std::str::from_utf8(rest).ok()?;
        // It becomes a part of others' frames.
        serde_json::from_str::<IgnoredAny>(text).ok()?;
        (text, None)
    };
    let push = Some(Push { event: event.into(), binary });
    Some(Message { join_ref, reference, topic: topic.into(), event: "broadcast".into(), payload: payload.into(), push })
}

/// A string as JSON text.
pub fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Any message as a complete WebSocket frame. `payload` is JSON text.
fn encode(version: Version, join_ref: &Ref, reference: &Ref, topic: &str, event: &str, payload: &str) -> Bytes {
    if version == Version::Topics {
        return topics::event(reference.as_json(), topic, event, payload);
    }
    let (topic, reference) = (json(topic), reference.as_json());
    let text = match version {
        Version::V1 => {
            format!(r#"{{"topic":{topic},"event":"{event}","payload":{payload},"ref":{reference}}}"#)
        }
        Version::V2 | Version::Plain | Version::Topics => {
            format!(r#"[{},{reference},{topic},"{event}",{payload}]"#, join_ref.as_json())
        }
    };
    frame::text(text.as_bytes())
}

/// Whether a reply is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `ok`.
    Ok,
    /// `error`.
    Error,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Error => "error",
        }
    }
}

/// `phx_reply`. `response`: the JSON text of an object.
pub fn reply(version: Version, join_ref: &Ref, reference: &Ref, topic: &str, status: Status, response: &str) -> Bytes {
    let payload = format!(r#"{{"status":"{}","response":{response}}}"#, status.as_str());
    encode(version, join_ref, reference, topic, "phx_reply", &payload)
}

/// `phx_reply` with status error and `{"reason": …}`.
pub fn refusal(version: Version, join_ref: &Ref, reference: &Ref, topic: &str, reason: &str) -> Bytes {
    let response = format!(r#"{{"reason":{}}}"#, json(reason));
    reply(version, join_ref, reference, topic, Status::Error, &response)
}

/// `system`. `extension` is `postgres_changes` or `system`.
pub fn system(
    version: Version,
    join_ref: &Ref,
    topic: &str,
    extension: &str,
    status: Status,
    message: &str,
    more: &str,
) -> Bytes {
    let channel = json(topic.strip_prefix("realtime:").unwrap_or(topic));
    let payload = format!(
        r#"{{"extension":"{extension}","status":"{}","message":{},"channel":{channel}{more}}}"#,
        status.as_str(),
        json(message)
    );
    encode(version, join_ref, &Ref::NULL, topic, "system", &payload)
}

/// A text `broadcast` that the channel itself pushes: one that is replayed. `payload`: JSON text.
pub fn replayed(version: Version, join_ref: &Ref, topic: &str, payload: &str) -> Bytes {
    encode(version, join_ref, &Ref::NULL, topic, "broadcast", payload)
}

/// A broadcast with bytes for a payload (kind 4, or base64 at the door that has only text); `None` if a header's string is longer
/// than 255 bytes, or the version has no form for bytes.
pub fn replayed_binary(version: Version, topic: &str, event: &str, metadata: &str, payload: &[u8]) -> Option<Bytes> {
    match version {
        Version::V2 => {}
        Version::Topics => return Some(topics::binary_broadcast(topic, event, payload, metadata.as_bytes())),
        Version::V1 | Version::Plain => return None,
    }
    let [topic_length, event_length, metadata_length] =
        [topic, event, metadata].map(|text| u8::try_from(text.len()).ok());
    let head = [4, topic_length?, event_length?, metadata_length?, 0];
    let parts = [&head[..], topic.as_bytes(), event.as_bytes(), metadata.as_bytes(), payload];
    Some(frame::encode(Opcode::Binary, &parts.concat()))
}

/// `phx_close`: the channel ended on purpose. `join_ref` is that of the join frame, unaltered.
pub fn close(version: Version, join_ref: &Ref, topic: &str) -> Bytes {
    encode(version, join_ref, join_ref, topic, "phx_close", "{}")
}

/// `phx_error`: the channel ended by a fault of ours.
pub fn error(version: Version, join_ref: &Ref, topic: &str) -> Bytes {
    encode(version, join_ref, join_ref, topic, "phx_error", r#"{"reason":"channel_crash"}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(decoded: Decoded<'_>) -> Message<'_> {
        match decoded {
            Decoded::Message(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn v1(text: &str) -> Decoded<'_> {
        decode_text(Version::V1, text)
    }

    fn v2(text: &str) -> Decoded<'_> {
        decode_text(Version::V2, text)
    }

    fn text(frame: &Bytes) -> &str {
        let head = if frame[1] < 126 { 2 } else { 4 };
        std::str::from_utf8(&frame[head..]).unwrap()
    }

    #[test]
    fn a_v1_object_is_read() {
        let read = message(v1(
            r#" {"event":"phx_join","payload":{"a":[1]},"topic":"realtime:ä\n","ref":"1","join_ref":null,"joinRef":{}}"#,
        ));
        assert_eq!((&*read.topic, &*read.event, &*read.payload), ("realtime:ä\n", "phx_join", r#"{"a":[1]}"#));
        assert_eq!((read.join_ref.as_json(), read.reference.as_json()), ("null", "\"1\""));
    }

    #[test]
    fn v1_fields_may_be_missing_but_topic_and_event() {
        let read = message(v1(r#"{"event":"e","topic":"t"}"#));
        assert_eq!((read.reference, &*read.payload), (Ref::NULL, "{}"));
        assert_eq!(message(v1(r#"{"event":"e","topic":"t","payload":null,"ref":7}"#)).reference.as_json(), "7");
        for bad in [
            r#"{"event":"e"}"#,
            r#"{"topic":"t"}"#,
            r#"["t","e",{},"1",null]"#,
            r#"{"topic":1,"event":"e"}"#,
            "",
            "{",
            "null",
        ] {
            assert_eq!(v1(bad), Decoded::Malformed, "{bad}");
        }
    }

    #[test]
    fn a_v2_array_is_read_and_more_elements_are_ignored() {
        let read = message(v2(r#"["4",null,"realtime:t","phx_leave",{},{"x":[1]},7]"#));
        assert_eq!((read.join_ref.as_json(), read.reference.is_null(), &*read.event), ("\"4\"", true, "phx_leave"));
        for bad in [
            r#"["1","2","t","e"]"#,
            "[]",
            "{}",
            "",
            r#"["1","2",3,"e",{}]"#,
            r#"[{},"2","t","e",{}]"#,
            r#"["1","2","t","e",{}"#,
        ] {
            assert_eq!(v2(bad), Decoded::Malformed, "{bad}");
        }
    }

    #[test]
    fn refs_are_compared_as_strings_and_bounded() {
        let read = message(v2(r#"["\u0031","1","t","e",{}]"#));
        assert_eq!(read.join_ref, read.reference);
        assert_eq!(v2(&format!(r#"["{}","1","t","e",{{}}]"#, "x".repeat(300))), Decoded::Malformed);
    }

    #[test]
    fn deep_payloads_stay_text() {
        let deep = format!(r#"[null,null,"t","e",{}{}]"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(message(v2(&deep)).payload.len(), 200_000);
    }

    #[test]
    fn the_examples_of_a_binary_broadcast_are_read() {
        let frame = b"\x03\x01\x01\x0d\x03\x00\x0117realtime:roomcur{\"x\":3}";
        let read = message(decode_binary(Version::V2, frame));
        assert_eq!((read.join_ref.as_json(), read.reference.as_json()), ("\"1\"", "\"7\""));
        assert_eq!((&*read.topic, &*read.event, &*read.payload), ("realtime:room", "broadcast", "{\"x\":3}"));
        let frame = b"\x03\x00\x01\x0d\x03\x02\x008realtime:roombin{}\xde\xad";
        let read = message(decode_binary(Version::V2, frame));
        assert_eq!((&read.join_ref, &*read.payload, read.size()), (&Ref::NULL, "null", 2));
        let push = read.push.as_ref().unwrap();
        assert_eq!((&*push.event, push.binary.as_deref()), ("bin", Some(&b"\xde\xad"[..])));
        assert_eq!(read.clone().into_owned(), read);
    }

    #[test]
    fn other_binary_frames_do_no_harm() {
        assert_eq!(decode_binary(Version::V2, b"\x00\x01\x01\x01\x0112tedata"), Decoded::Ignored);
        let bad: [&[u8]; 9] = [
            b"",
            b"\x00\x01",
            b"\x00\xff\x00\x00\x00x",
            b"\x03",
            b"\x03\x01\x01\x01\x01\x01\x01",
            b"\x01abc",
            b"\x04",
            b"\x03\x00\x00\x01\x00\x01\x00t{",
            b"\x03\x00\x00\x01\x01\x00\x01te{},\"x\"",
        ];
        for bytes in bad {
            assert_eq!(decode_binary(Version::V2, bytes), Decoded::Malformed, "{bytes:?}");
        }
        assert_eq!(decode_binary(Version::V1, b"\x00\x00\x00\x00\x00"), Decoded::Malformed);
    }

    #[test]
    fn frames_have_the_keys_and_refs_of_the_protocol() {
        let (join, reference) = (Ref::from_text("4"), Ref::from_text("9"));
        let both = |frame: fn(Version, &Ref, &Ref) -> Bytes| {
            let (one, two) = (frame(Version::V1, &join, &reference), frame(Version::V2, &join, &reference));
            (text(&one).to_owned(), text(&two).to_owned())
        };
        let (one, two) = both(|v, j, r| reply(v, j, r, "realtime:\"t", Status::Ok, "{}"));
        assert_eq!(
            one,
            r#"{"topic":"realtime:\"t","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":"9"}"#
        );
        assert_eq!(two, r#"["4","9","realtime:\"t","phx_reply",{"status":"ok","response":{}}]"#);
        let (one, two) = both(|v, j, _| system(v, j, "realtime:t", "system", Status::Error, "no", ""));
        assert_eq!(
            one,
            r#"{"topic":"realtime:t","event":"system","payload":{"extension":"system","status":"error","message":"no","channel":"t"},"ref":null}"#
        );
        assert_eq!(
            two,
            r#"["4",null,"realtime:t","system",{"extension":"system","status":"error","message":"no","channel":"t"}]"#
        );
        let (one, two) = both(|v, j, _| close(v, j, "t"));
        assert_eq!(one, r#"{"topic":"t","event":"phx_close","payload":{},"ref":"4"}"#);
        assert_eq!(two, r#"["4","4","t","phx_close",{}]"#);
        let (_, two) = both(|v, j, _| error(v, j, "t"));
        assert_eq!(two, r#"["4","4","t","phx_error",{"reason":"channel_crash"}]"#);
        let (one, two) = both(|v, j, _| replayed(v, j, "t", "{}"));
        assert_eq!(one, r#"{"topic":"t","event":"broadcast","payload":{},"ref":null}"#);
        assert_eq!(two, r#"["4",null,"t","broadcast",{}]"#);
        let (_, two) = both(|v, j, r| refusal(v, j, r, "t", "a \"b\""));
        assert_eq!(two, r#"["4","9","t","phx_reply",{"status":"error","response":{"reason":"a \"b\""}}]"#);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in any::<String>(), kind in prop::sample::select(vec![0u8, 3])) {
            for version in [Version::V1, Version::V2] {
                decode_binary(version, &bytes);
                decode_text(version, &text);
                let mut framed = vec![kind];
                framed.extend(bytes.iter().map(|byte| byte % 8));
                decode_binary(version, &framed);
            }
        }

        #[test]
        fn what_is_sent_is_json(topic in any::<String>(), reason in any::<String>(), join_ref in any::<String>()) {
            for version in [Version::V1, Version::V2] {
                let frame = refusal(version, &Ref::from_text(&join_ref), &Ref::NULL, &topic, &reason);
                let head = match frame[1] { 126 => 4, 127 => 10, _ => 2 };
                let value: serde_json::Value = serde_json::from_slice(&frame[head..]).unwrap();
                let found = if version == Version::V1 { &value["topic"] } else { &value[2] };
                prop_assert_eq!(found, &serde_json::Value::from(topic.as_str()));
            }
        }
    }
}
