//! The Phoenix messages that carry changes and notices, as complete text frames (`protocol.md` §2, §4.2, §4.3).
//!
//! Fan-out frames carry no refs; a `system` frame of protocol 2 carries the channel's join_ref. A frame's length is computed
//! first, so that it is one allocation and its header stands where it belongs.

use bytes::Bytes;

use super::topics;
use crate::gateway::frame::{self, Opcode};
use crate::hub::Version;
use crate::pgtype::{json_string_len, write_json_string};

/// What stands before the payload and after it, without the topic.
struct Wrapping {
    before_topic: &'static str,
    after_topic: &'static str,
    end: &'static str,
}

const CHANGES_V1: Wrapping = Wrapping {
    before_topic: r#"{"topic":"#,
    after_topic: r#","event":"postgres_changes","payload":"#,
    end: r#","ref":null}"#,
};
const CHANGES_V2: Wrapping = Wrapping { before_topic: "[null,null,", after_topic: r#","postgres_changes","#, end: "]" };
const SYSTEM_V1: Wrapping =
    Wrapping { before_topic: r#"{"topic":"#, after_topic: r#","event":"system","payload":"#, end: r#","ref":null}"# };
/// The join_ref stands before `before_topic`.
const SYSTEM_V2: Wrapping = Wrapping { before_topic: ",null,", after_topic: r#","system","#, end: "]" };

/// A frame being filled; the capacity is exact.
pub(super) struct Frame {
    out: Vec<u8>,
    end: usize,
}

impl Frame {
    pub(super) fn new(opcode: Opcode, length: usize) -> Frame {
        let header = match length {
            0..=125 => 2,
            126..=0xFFFF => 4,
            _ => 10,
        };
        let mut out = Vec::with_capacity(header + length);
        frame::header(opcode, length, &mut out);
        Frame { end: out.len() + length, out }
    }

    pub(super) fn raw(&mut self, text: impl AsRef<[u8]>) -> &mut Frame {
        self.out.extend_from_slice(text.as_ref());
        self
    }

    pub(super) fn string(&mut self, text: &str) -> &mut Frame {
        write_json_string(text.as_bytes(), &mut self.out);
        self
    }

    pub(super) fn finish(self) -> Bytes {
        debug_assert_eq!(self.out.len(), self.end, "the announced length is the written one");
        Bytes::from(self.out)
    }
}

impl Wrapping {
    fn len(&self) -> usize {
        self.before_topic.len() + self.after_topic.len() + self.end.len()
    }
}

fn decimal_len(number: i32) -> usize {
    let digits = number.unsigned_abs().checked_ilog10().unwrap_or(0) as usize + 1;
    digits + usize::from(number < 0)
}

fn write_decimal(number: i32, out: &mut Vec<u8>) {
    let mut digits = [0u8; 10];
    let mut at = digits.len();
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// A `postgres_changes` message as a complete text frame. `topic` is the full one, `ids` those of the channel's entries that
/// match, `data` what [`super::write_data`] wrote.
pub fn changes_frame(version: Version, topic: &str, ids: &[i32], data: &[u8]) -> Bytes {
    const IDS: &str = r#"{"ids":["#;
    const DATA: &str = r#"],"data":"#;
    let wrapping = match version {
        Version::V1 => &CHANGES_V1,
        Version::V2 => &CHANGES_V2,
        Version::Plain => return [data, b"\n"].concat().into(),
        Version::Topics => return topics::change(topic, ids, data),
    };
    let id_bytes = ids.iter().map(|id| decimal_len(*id)).sum::<usize>() + ids.len().saturating_sub(1);
    let payload = IDS.len() + id_bytes + DATA.len() + data.len() + 1;
    let mut frame = Frame::new(Opcode::Text, wrapping.len() + json_string_len(topic) + payload);
    frame.raw(wrapping.before_topic).string(topic).raw(wrapping.after_topic).raw(IDS);
    for (i, id) in ids.iter().enumerate() {
        if i > 0 {
            frame.out.push(b',');
        }
        write_decimal(*id, &mut frame.out);
    }
    frame.raw(DATA).raw(data).raw("}").raw(wrapping.end);
    frame.finish()
}

/// A `system` message as a complete text frame. `topic` is the full one (the payload's `channel` is derived from it);
/// `join_ref_json` is the channel's join_ref as JSON text, a quoted string or `null`, and is sent in protocol 2 only. `more`: further members, each
/// with a comma before it ([`super::details`]), or nothing.
pub fn system_frame(
    version: Version,
    topic: &str,
    join_ref_json: &str,
    extension: &str,
    status_ok: bool,
    message: &str,
    more: &str,
) -> Bytes {
    const STATUS: &str = r#"{"status":"#;
    const MESSAGE: &str = r#","message":"#;
    const EXTENSION: &str = r#","extension":"#;
    const CHANNEL: &str = r#","channel":"#;
    let channel = topic.strip_prefix("realtime:").unwrap_or(topic);
    let status = if status_ok { "ok" } else { "error" };
    let strings: usize = [topic, status, message, extension, channel].into_iter().map(json_string_len).sum();
    let fixed = STATUS.len() + MESSAGE.len() + EXTENSION.len() + CHANNEL.len() + more.len() + 1;
    let (wrapping, join_ref) = match version {
        Version::V1 => (&SYSTEM_V1, None),
        Version::V2 => (&SYSTEM_V2, Some(join_ref_json)),
        Version::Plain => return plain_notice(status, message, more),
        Version::Topics => return topics::notice(topic, extension, status, message, more),
    };
    let join_ref_len = join_ref.map_or(0, |text| text.len() + 1);
    let mut frame = Frame::new(Opcode::Text, wrapping.len() + join_ref_len + strings + fixed);
    if let Some(text) = join_ref {
        frame.raw("[").raw(text);
    }
    frame.raw(wrapping.before_topic).string(topic).raw(wrapping.after_topic);
    frame.raw(STATUS).string(status).raw(MESSAGE).string(message);
    frame.raw(EXTENSION).string(extension).raw(CHANNEL).string(channel).raw(more).raw("}");
    frame.raw(wrapping.end);
    frame.finish()
}

/// A notice as a line of its own.
fn plain_notice(status: &str, message: &str, more: &str) -> Bytes {
    let mut line = br#"{"notice":{"status":"#.to_vec();
    write_json_string(status.as_bytes(), &mut line);
    line.extend_from_slice(br#","message":"#);
    write_json_string(message.as_bytes(), &mut line);
    line.extend_from_slice(more.as_bytes());
    line.extend_from_slice(b"}}\n");
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// The payload of a frame, its header checked.
    fn payload(frame: &[u8]) -> Value {
        assert_eq!(frame[0], 0x81);
        let header = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let mut expected = Vec::new();
        frame::header(Opcode::Text, frame.len() - header, &mut expected);
        assert_eq!(&frame[..header], expected);
        serde_json::from_slice(&frame[header..]).unwrap()
    }

    #[test]
    fn changes_look_as_each_protocol_version_wants_them() {
        let v1 = changes_frame(Version::V1, "realtime:room", &[7, 78_123_401], br#"{"a":1}"#);
        let text = r#"{"topic":"realtime:room","event":"postgres_changes","payload":{"ids":[7,78123401],"data":{"a":1}},"ref":null}"#;
        assert_eq!(&v1[2..], text.as_bytes());
        let v2 = changes_frame(Version::V2, "realtime:room", &[1], br#"{"a":1}"#);
        assert_eq!(&v2[2..], br#"[null,null,"realtime:room","postgres_changes",{"ids":[1],"data":{"a":1}}]"#);
    }

    #[test]
    fn system_notices_name_the_channel_without_its_prefix() {
        let body = json!({"status": "ok", "message": "Subscribed to PostgreSQL", "extension": "postgres_changes", "channel": "room"});
        let v1 = system_frame(
            Version::V1,
            "realtime:room",
            "\"1\"",
            "postgres_changes",
            true,
            "Subscribed to PostgreSQL",
            "",
        );
        assert_eq!(payload(&v1), json!({"topic": "realtime:room", "event": "system", "payload": body, "ref": null}));
        let v2 = system_frame(
            Version::V2,
            "realtime:room",
            "\"1\"",
            "postgres_changes",
            true,
            "Subscribed to PostgreSQL",
            "",
        );
        assert_eq!(payload(&v2), json!(["1", null, "realtime:room", "system", body]));
        let v2 = system_frame(Version::V2, "realtime:room", "null", "system", false, "no", r#","cursor":"c""#);
        assert_eq!(payload(&v2)[0], Value::Null);
        assert_eq!(payload(&v2)[4]["status"], "error");
        assert_eq!(payload(&v2)[4]["cursor"], "c");
    }

    proptest! {
        #[test]
        fn any_topic_and_message_and_size_fit(
            topic in any::<String>(), message in any::<String>(), ids in prop::collection::vec(any::<i32>(), 1..5),
            size in prop_oneof![0usize..200, 65_400usize..65_600],
        ) {
            let data = serde_json::to_vec(&"x".repeat(size)).unwrap();
            for version in [Version::V1, Version::V2] {
                let changes = payload(&changes_frame(version, &topic, &ids, &data));
                let (seen, body) = match version {
                    Version::V1 => (&changes["topic"], &changes["payload"]),
                    _ => (&changes[2], &changes[4]),
                };
                prop_assert_eq!(seen, &json!(topic));
                prop_assert_eq!(&body["ids"], &json!(ids));
                let system = payload(&system_frame(version, &topic, "null", "system", true, &message, ""));
                let body = match version {
                    Version::V1 => &system["payload"],
                    _ => &system[4],
                };
                prop_assert_eq!(&body["message"], &json!(message));
            }
        }
    }
}
