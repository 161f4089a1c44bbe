//! What clients of the topics door read: one JSON object a text frame, its `type` first.
//!
//! Everything is made from the same parts as Phoenix frames, so nobody sees more or less through this door. A `cursor` stands at
//! the top level of every frame that moves its topic's place, so that a client keeps it in one line of code.
//!
//! An answer's `ref` is the client's own, behind a letter that says what was asked ([`Request`]): a session hands refs through
//! without reading them. Rejected: a table of what was asked, which grows with what is never answered.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::gateway::frame;
use crate::gateway::json::{is_value, members, string};
use crate::pgtype::write_json_string;

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum Request {
    /// `subscribe`.
    Subscribe,
    /// `unsubscribe`.
    Unsubscribe,
    /// `publish`.
    Publish,
    /// `track`.
    Track,
    /// `untrack`.
    Untrack,
    /// `token`.
    Token,
    /// `ping`.
    Ping,
}

/// Request, the letter before its ref, its `type`, and the `type` of its good answer.
const REQUESTS: [(Request, char, &str, &str); 7] = [
    (Request::Subscribe, 's', "subscribe", "subscribed"),
    (Request::Unsubscribe, 'u', "unsubscribe", "unsubscribed"),
    (Request::Publish, 'p', "publish", "published"),
    (Request::Track, 't', "track", "tracked"),
    (Request::Untrack, 'x', "untrack", "untracked"),
    (Request::Token, 'k', "token", "renewed"),
    (Request::Ping, 'i', "ping", "pong"),
];

impl Request {
    fn row(self) -> &'static (Request, char, &'static str, &'static str) {
        // The table is in the order of the enum.
        &REQUESTS[self as usize]
    }

    /// The `type` of the frame that asks for it.
    pub(in crate::gateway) fn as_str(self) -> &'static str {
        self.row().2
    }

    /// By the `type` of a frame.
    pub(in crate::gateway) fn named(name: &str) -> Option<Request> {
        REQUESTS.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The ref that the session repeats. `reference`: the client's, as JSON text, or nothing.
    pub(in crate::gateway) fn tag(self, reference: &str) -> String {
        format!("{}{reference}", self.row().1)
    }

    /// The request and the client's ref of a tag.
    fn of(tag: &str) -> Option<(Request, &str)> {
        let mut rest = tag.chars();
        let letter = rest.next()?;
        REQUESTS.iter().find(|row| row.1 == letter).map(|row| (row.0, rest.as_str()))
    }
}

/// A frame being written.
struct Object(Vec<u8>);

impl Object {
    fn new(kind: &str) -> Object {
        let mut object = Object(br#"{"type":"#.to_vec());
        write_json_string(kind.as_bytes(), &mut object.0);
        object
    }

    fn text(mut self, name: &str, value: &str) -> Object {
        self.name(name);
        write_json_string(value.as_bytes(), &mut self.0);
        self
    }

    /// `json`: one JSON value, or nothing, which leaves the member out.
    fn raw(mut self, name: &str, json: &[u8]) -> Object {
        if !json.is_empty() {
            self.name(name);
            self.0.extend_from_slice(json);
        }
        self
    }

    /// `topic`: the full one; clients see it without its prefix.
    fn topic(self, topic: &str) -> Object {
        self.text("topic", topic.strip_prefix("realtime:").unwrap_or(topic))
    }

    fn name(&mut self, name: &str) {
        self.0.push(b',');
        write_json_string(name.as_bytes(), &mut self.0);
        self.0.push(b':');
    }

    fn finish(mut self) -> Bytes {
        self.0.push(b'}');
        frame::text(&self.0)
    }
}

/// The values of these members of a JSON object; what is not there is empty.
fn pick<'a, const N: usize>(json: &'a str, names: [&str; N]) -> [&'a str; N] {
    let mut found = [""; N];
    members(json, |name, value| {
        if let Some(at) = names.iter().position(|wanted| *wanted == name) {
            found[at] = value;
        }
        true
    });
    found
}

/// A refusal: what is wrong and what to do. `reference`: the client's, or nothing.
pub(in crate::gateway) fn refuse(request: Option<Request>, reference: &str, code: &str, message: &str) -> Bytes {
    let error = Object::new("error");
    let error = match request {
        Some(request) => error.text("request", request.as_str()),
        None => error,
    };
    error.raw("ref", reference.as_bytes()).text("code", code).text("message", message).finish()
}

/// The frame that stands for a Phoenix message; empty if this door has none for it. `tag`: its ref as JSON text, which for an answer
/// is a tag of a [`Request`]; `payload`: its payload as JSON text.
pub(in crate::gateway) fn event(tag: &str, topic: &str, event: &str, payload: &str) -> Bytes {
    match event {
        "phx_reply" => answer(tag, topic, payload),
        "system" => system(topic, payload),
        "phx_close" => Object::new("unsubscribed").topic(topic).finish(),
        "phx_error" => Object::new("unsubscribed").topic(topic).text("reason", "internal error").finish(),
        "broadcast" => broadcast(topic, payload),
        "presence_state" => Object::new(event).topic(topic).raw("presences", payload.as_bytes()).finish(),
        "presence_diff" => {
            let [joins, leaves] = pick(payload, ["joins", "leaves"]).map(str::as_bytes);
            Object::new(event).topic(topic).raw("joins", joins).raw("leaves", leaves).finish()
        }
        other => Object::new(other).topic(topic).raw("payload", payload.as_bytes()).finish(),
    }
}

fn answer(tag: &str, topic: &str, payload: &str) -> Bytes {
    let Some((request, reference)) = Request::of(tag) else { return Bytes::new() };
    let [status, response] = pick(payload, ["status", "response"]);
    if status != "\"ok\"" {
        return refused(request, reference, topic, response);
    }
    let (kind, reference) = (request.row().3, reference.as_bytes());
    match request {
        Request::Ping => Object::new(kind).raw("ref", reference).finish(),
        Request::Subscribe => {
            let [cursor, changes] = pick(response, ["cursor", "postgres_changes"]);
            let subscribed = Object::new(kind).topic(topic).raw("ref", reference).raw("cursor", cursor.as_bytes());
            let changes = if changes == "[]" { "" } else { changes };
            subscribed.raw("changes", changes.as_bytes()).finish()
        }
        // Who gave no ref does not ask whether it worked.
        Request::Publish | Request::Track | Request::Untrack | Request::Token if reference.is_empty() => Bytes::new(),
        _ => Object::new(kind).topic(topic).raw("ref", reference).finish(),
    }
}

/// `Code: text` in two members.
fn refused(request: Request, reference: &str, topic: &str, response: &str) -> Bytes {
    let [reason] = pick(response, ["reason"]);
    let reason = string(reason).unwrap_or_default();
    let is_code = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let (code, message) = match reason.split_once(": ").filter(|(code, _)| is_code(code)) {
        Some(parts) => parts,
        None if reason == "unmatched topic" => {
            ("NotSubscribed", "this connection is not subscribed to the topic: send a frame of type subscribe first")
        }
        None if reason.is_empty() => ("Refused", "the topic refuses this; ask whether the user may do it"),
        None => ("Refused", &*reason),
    };
    let error = Object::new("error").text("request", request.as_str()).topic(topic).raw("ref", reference.as_bytes());
    error.text("code", code).text("message", message).finish()
}

/// A notice; one that tells of a gap has a type of its own, and goes on at its end.
fn system(topic: &str, payload: &str) -> Bytes {
    let names = ["extension", "status", "message", "cursor", "snapshot", "gap"];
    let [extension, status, message, cursor, snapshot, gap] = pick(payload, names).map(str::as_bytes);
    if !gap.is_empty() {
        let [to] = pick(std::str::from_utf8(gap).unwrap_or_default(), ["to"]);
        let notice = Object::new("gap").topic(topic).raw("cursor", to.as_bytes());
        return notice.raw("message", message).raw("gap", gap).finish();
    }
    let notice = Object::new("system").topic(topic).raw("cursor", cursor).raw("status", status);
    notice.raw("extension", extension).raw("message", message).raw("snapshot", snapshot).finish()
}

/// A `system` notice from its parts; `more` as [`super::details`] writes it.
pub(in crate::gateway) fn notice(topic: &str, extension: &str, status: &str, message: &str, more: &str) -> Bytes {
    let mut payload = format!(r#"{{"extension":"{extension}","status":"{status}","message":"#).into_bytes();
    write_json_string(message.as_bytes(), &mut payload);
    payload.extend_from_slice(more.as_bytes());
    payload.push(b'}');
    // Each part is a `str`.
    system(topic, std::str::from_utf8(&payload).unwrap_or_default())
}

/// A row change. `data`: as `write_data` wrote it, its cursor last.
pub(in crate::gateway) fn change(topic: &str, ids: &[i32], data: &[u8]) -> Bytes {
    let mut list = String::from("[");
    for (index, id) in ids.iter().enumerate() {
        let _ = write!(list, "{}{id}", if index > 0 { "," } else { "" });
    }
    list.push(']');
    let change = Object::new("change").topic(topic).raw("cursor", last_cursor(data));
    change.raw("ids", list.as_bytes()).raw("data", data).finish()
}

/// The JSON text of the `cursor` that ends this object, or nothing.
fn last_cursor(data: &[u8]) -> &[u8] {
    const NAME: &[u8] = br#","cursor":"#;
    let Some(inner) = data.strip_suffix(b"\"}") else { return &[] };
    let body = inner.iter().rposition(|byte| *byte == b'"').unwrap_or(0);
    if inner[..body].ends_with(NAME) { &data[body..data.len() - 1] } else { &[] }
}

/// A broadcast that was sent as a text: `payload` is the whole of it. Most have `event` and `payload` (and `type`, and `meta`);
/// what has not is handed on whole. It has no cursor: only the stream's own have one, and what a client writes into its message
/// must not become the place from which others go on.
pub(in crate::gateway) fn broadcast(topic: &str, payload: &str) -> Bytes {
    let [event, inner, meta] = pick(payload, ["event", "payload", "meta"]);
    let event = string(event).map(|_| event).unwrap_or_default();
    let inner = if inner.is_empty() || event.is_empty() { payload } else { inner };
    let frame = Object::new("broadcast").topic(topic).raw("event", event.as_bytes());
    frame.raw("payload", inner.as_bytes()).raw("meta", meta.as_bytes()).finish()
}

/// A broadcast with a header of its own. `payload`: JSON text; `meta`: JSON text or nothing.
pub(in crate::gateway) fn event_broadcast(topic: &str, event: &str, payload: &[u8], meta: &[u8]) -> Bytes {
    let cursor = std::str::from_utf8(meta).map(cursor_of).unwrap_or_default();
    let frame = Object::new("broadcast").topic(topic).raw("cursor", cursor).text("event", event);
    frame.raw("payload", payload).raw("meta", meta).finish()
}

/// The same with a payload of bytes, which a text frame carries as base64.
pub(in crate::gateway) fn binary_broadcast(topic: &str, event: &str, payload: &[u8], meta: &[u8]) -> Bytes {
    let cursor = std::str::from_utf8(meta).map(cursor_of).unwrap_or_default();
    let frame = Object::new("broadcast").topic(topic).raw("cursor", cursor).text("event", event);
    let frame = frame.text("encoding", "base64").text("payload", &STANDARD.encode(payload));
    frame.raw("meta", meta).finish()
}

fn cursor_of(meta: &str) -> &[u8] {
    let [cursor] = pick(meta, ["cursor"]);
    debug_assert!(cursor.is_empty() || is_value(cursor), "raw values are values");
    cursor.as_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(frame: &Bytes) -> Value {
        let head = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        serde_json::from_slice(&frame[head..]).unwrap()
    }

    fn answered(request: Request, reference: &str, payload: Value) -> Bytes {
        event(&request.tag(reference), "realtime:thread:45", "phx_reply", &payload.to_string())
    }

    #[test]
    fn the_table_of_requests_is_in_the_order_of_the_enum() {
        for row in &REQUESTS {
            assert_eq!((row.0.row(), Request::named(row.2)), (row, Some(row.0)));
            assert_eq!(Request::of(&row.0.tag("{\"a\":1}")), Some((row.0, "{\"a\":1}")));
        }
    }

    #[test]
    fn good_answers_have_the_type_of_what_was_asked() {
        let ok = |response: Value| json!({ "status": "ok", "response": response });
        let entry = json!([{ "id": 1 }]);
        let joined = answered(Request::Subscribe, "7", ok(json!({ "postgres_changes": entry, "cursor": "c" })));
        let expected =
            json!({ "type": "subscribed", "topic": "thread:45", "ref": 7, "cursor": "c", "changes": [{ "id": 1 }] });
        assert_eq!(read(&joined), expected);
        let bare = answered(Request::Subscribe, "", ok(json!({ "postgres_changes": [] })));
        assert_eq!(read(&bare), json!({ "type": "subscribed", "topic": "thread:45" }));
        let left = answered(Request::Unsubscribe, "\"a\"", ok(json!({})));
        assert_eq!(read(&left), json!({ "type": "unsubscribed", "topic": "thread:45", "ref": "a" }));
        assert_eq!(read(&answered(Request::Ping, "null", ok(json!({})))), json!({ "type": "pong", "ref": null }));
        let sent = answered(Request::Publish, "[1]", ok(json!({})));
        assert_eq!(read(&sent), json!({ "type": "published", "topic": "thread:45", "ref": [1] }));
        assert!(answered(Request::Publish, "", ok(json!({}))).is_empty());
    }

    #[test]
    fn refusals_say_what_was_asked_and_why_it_is_not() {
        let refused = |request, reason: &str| {
            let frame = answered(request, "1", json!({ "status": "error", "response": { "reason": reason } }));
            let read = read(&frame);
            assert_eq!(
                (&read["type"], &read["topic"], &read["ref"]),
                (&json!("error"), &json!("thread:45"), &json!(1))
            );
            (read["request"].clone(), read["code"].clone(), read["message"].clone())
        };
        let text = "You do not have permissions to read from this Channel topic: thread:45";
        let told = refused(Request::Subscribe, &format!("Unauthorized: {text}"));
        assert_eq!(told, (json!("subscribe"), json!("Unauthorized"), json!(text)));
        assert_eq!(refused(Request::Publish, "unmatched topic").1, "NotSubscribed");
        assert_eq!(refused(Request::Track, "two words: x"), (json!("track"), json!("Refused"), json!("two words: x")));
        assert_eq!(
            read(&answered(Request::Track, "", json!({ "status": "error", "response": {} })))["code"],
            "Refused"
        );
    }

    #[test]
    fn a_gap_has_a_type_of_its_own_and_a_notice_keeps_its_members() {
        let gap = r#","gap":{"from":null,"to":"t","reason":"expired"}"#;
        let expected = json!({ "type": "gap", "topic": "a", "cursor": "t", "message": "Gap: x",
            "gap": { "from": null, "to": "t", "reason": "expired" } });
        assert_eq!(read(&notice("realtime:a", "postgres_changes", "ok", "Gap: x", gap)), expected);
        let expected = json!({ "type": "system", "topic": "a", "cursor": "c", "status": "ok",
            "extension": "postgres_changes", "message": "\"hi\"" });
        let told = notice("realtime:a", "postgres_changes", "ok", "\"hi\"", r#","cursor":"c""#);
        assert_eq!(read(&told), expected);
        let payload =
            r#"{"extension":"system","status":"error","message":"Token has expired 0 seconds ago","channel":"a"}"#;
        let told = read(&event("null", "realtime:a", "system", payload));
        assert_eq!((&told["status"], &told["message"]), (&json!("error"), &json!("Token has expired 0 seconds ago")));
        let ended = read(&event("null", "realtime:realtime:a", "phx_close", "{}"));
        assert_eq!(ended, json!({ "type": "unsubscribed", "topic": "realtime:a" }));
    }

    #[test]
    fn a_change_shows_its_cursor_at_the_top() {
        let data = br#"{"type":"INSERT","record":{"a":"x"},"errors":null,"cursor":"Ab-_9"}"#;
        let frame = read(&change("realtime:a", &[1, -2], data));
        assert_eq!(
            (&frame["type"], &frame["cursor"], &frame["ids"]),
            (&json!("change"), &json!("Ab-_9"), &json!([1, -2]))
        );
        assert_eq!(frame["data"], serde_json::from_slice::<Value>(data).unwrap());
        for data in [&br#"{"record":{"a":1,"cursor":"x"}}"#[..], br#"{"a":"x"}"#, b"{}", b"\"}", b""] {
            assert!(last_cursor(data).is_empty(), "{}", String::from_utf8_lossy(data));
        }
    }

    #[test]
    fn presence_has_its_two_types() {
        let of = |name, payload| read(&event("null", "realtime:a", name, payload));
        let expected = json!({ "type": "presence_state", "topic": "a", "presences": { "u": { "metas": [] } } });
        assert_eq!(of("presence_state", r#"{"u":{"metas":[]}}"#), expected);
        let expected = json!({ "type": "presence_diff", "topic": "a", "joins": { "u": 1 }, "leaves": {} });
        assert_eq!(of("presence_diff", r#"{"joins":{"u":1},"leaves":{}}"#), expected);
    }

    #[test]
    fn broadcasts_are_taken_apart_and_odd_ones_are_handed_on() {
        let sent = r#"{"type":"broadcast","event":"cur","payload":{"x": 1.10},"meta":{"id":"i","cursor":"c"}}"#;
        let frame = broadcast("realtime:a", sent);
        assert!(String::from_utf8_lossy(&frame).contains(r#""payload":{"x": 1.10}"#));
        let expected = json!({ "type": "broadcast", "topic": "a", "event": "cur", "payload": { "x": 1.1 },
            "meta": { "id": "i", "cursor": "c" } });
        assert_eq!(read(&frame), expected);
        let flat = r#"{"msg":"hi","type":"broadcast","event":"x"}"#;
        let expected = json!({ "type": "broadcast", "topic": "a", "event": "x",
            "payload": { "msg": "hi", "type": "broadcast", "event": "x" } });
        assert_eq!(read(&broadcast("realtime:a", flat)), expected);
        for odd in ["1", "\"x\"", "[{}]", "{}", "null", r#"{"event":1,"payload":2}"#] {
            let value: Value = serde_json::from_str(odd).unwrap();
            assert_eq!(
                read(&broadcast("realtime:a", odd)),
                json!({ "type": "broadcast", "topic": "a", "payload": value })
            );
        }
        let event = read(&event_broadcast("realtime:a", "e", b"[1]", b""));
        assert_eq!(event, json!({ "type": "broadcast", "topic": "a", "event": "e", "payload": [1] }));
        let bytes = read(&binary_broadcast("realtime:a", "e", b"\xde\xad", br#"{"id":"i"}"#));
        assert_eq!((&bytes["encoding"], &bytes["payload"]), (&json!("base64"), &json!("3q0=")));
    }
}
