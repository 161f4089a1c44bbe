//! The body of a batch: read one level at a time, each mistake told beside the message that has it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::response::{Answer, TOO_LARGE};
use crate::gateway::json::{elements, is_value, members, string};
use crate::room::{Message, RoomKey};

/// Messages of one batch.
pub(super) const MAX_MESSAGES: usize = 10_000;

const BLANK: &str = "can't be blank";
const INVALID: &str = "is invalid";

/// A message as it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Posted<'a> {
    topic: Cow<'a, str>,
    private: bool,
    /// JSON text.
    event: &'a str,
    payload: &'a str,
    id: Option<&'a str>,
}

impl Posted<'_> {
    pub(super) fn room(&self) -> RoomKey {
        RoomKey { private: self.private, topic: Arc::from(&*self.topic) }
    }

    /// As a client would have sent it.
    pub(super) fn encode(&self) -> Message {
        let Posted { event, payload, .. } = self;
        let mut text = format!(r#"{{"type":"broadcast","event":{event},"payload":{payload}"#);
        if let Some(id) = self.id {
            text.push_str(&format!(r#","meta":{{"id":{id}}}"#));
        }
        text.push('}');
        Message::Text { payload: Bytes::from(text) }
    }
}

/// All messages, or why there are none. `most`: bytes of a payload.
pub(super) fn parse(body: &str, most: usize) -> Result<Vec<Posted<'_>>, Answer> {
    let all = |text: &str| Answer::Invalid(json!([text]));
    let mut given = None;
    let object = members(body, |name, value| {
        if name == "messages" {
            given = Some(value);
        }
        true
    });
    // Nothing at all is as good as nothing in it.
    if !object && !body.is_empty() && !is_value(body) {
        return Err(Answer::BadRequest);
    }
    let given = given.filter(|value| !matches!(*value, "null" | "\"\"")).ok_or_else(|| all(BLANK))?;
    if !given.starts_with('[') {
        return Err(all(INVALID));
    }
    let (mut messages, mut errors, mut any, mut objects) = (Vec::new(), Vec::new(), false, true);
    elements(given, |value| {
        match message(value, most) {
            Some(Ok(message)) => {
                messages.push(message);
                errors.push(Map::new());
            }
            Some(Err(wrong)) => {
                any = true;
                errors.push(wrong);
            }
            None => objects = false,
        }
        objects && errors.len() <= MAX_MESSAGES
    });
    if !objects {
        return Err(all(INVALID));
    }
    if errors.len() > MAX_MESSAGES {
        return Err(Answer::BatchTooLarge);
    }
    if errors.is_empty() {
        return Err(all(BLANK));
    }
    if any {
        return Err(Answer::Invalid(errors.into_iter().map(Value::Object).collect()));
    }
    Ok(messages)
}

/// One message, or what is wrong with each field; `None` if it is no object.
fn message(json: &str, most: usize) -> Option<Result<Posted<'_>, Map<String, Value>>> {
    let (mut topic, mut event, mut payload, mut private, mut id) = (None, None, None, None, None);
    let object = members(json, |name, value| {
        let field = match &*name {
            "topic" => &mut topic,
            "event" => &mut event,
            "payload" => &mut payload,
            "private" => &mut private,
            "id" => &mut id,
            _ => return true,
        };
        *field = Some(value).filter(|value| *value != "null");
        true
    });
    if !object {
        return None;
    }
    let mut wrong = Map::new();
    let mut say = |field: &str, text: &str| drop(wrong.insert(field.into(), json!([text])));
    let mut posted = Posted::default();
    match payload {
        None | Some("\"\"") => say("payload", BLANK),
        Some(text) if !text.starts_with('{') => say("payload", INVALID),
        Some(text) if text.len() > most => say("payload", TOO_LARGE),
        Some(text) => posted.payload = text,
    }
    match event {
        None | Some("\"\"") => say("event", BLANK),
        Some(text) if string(text).is_none() => say("event", INVALID),
        Some(text) => posted.event = text,
    }
    match topic.map(|text| (text, string(text))) {
        None | Some(("\"\"", _)) => say("topic", BLANK),
        Some((_, None)) => say("topic", INVALID),
        Some((_, Some(text))) => posted.topic = text,
    }
    match private {
        None | Some("false" | "\"false\"" | "\"0\"" | "\"\"") => {}
        Some("true" | "\"true\"" | "\"1\"") => posted.private = true,
        Some(_) => say("private", INVALID),
    }
    match id {
        Some(text) if string(text).is_none() => say("id", INVALID),
        Some("\"\"") | None => {}
        Some(text) => posted.id = Some(text),
    }
    Some(if wrong.is_empty() { Ok(posted) } else { Err(wrong) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(body: &str) -> Vec<(bool, String, String)> {
        let messages = parse(body, 100).unwrap_or_else(|answer| panic!("{body}: {answer:?}"));
        let text = |message: &Posted<'_>| match message.encode() {
            Message::Text { payload } => String::from_utf8(payload.to_vec()).unwrap(),
            Message::Event { .. } => unreachable!("a batch is text"),
        };
        messages.iter().map(|message| (message.private, message.topic.to_string(), text(message))).collect()
    }

    fn wrong(body: &str) -> Value {
        match parse(body, 100) {
            Err(Answer::Invalid(errors)) => errors,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn payloads_and_events_are_passed_on_as_they_came() {
        let body = r#" {"messages":[{"topic":"r\u00e4","event":"x\n","payload":{ "a" : 1.10e999},"id":"7"},
            {"topic":"b","event":"e","payload":{},"private":true,"more":1}]} "#;
        let first = r#"{"type":"broadcast","event":"x\n","payload":{ "a" : 1.10e999},"meta":{"id":"7"}}"#;
        let second = r#"{"type":"broadcast","event":"e","payload":{}}"#;
        let expected = [(false, "rä".to_owned(), first.to_owned()), (true, "b".to_owned(), second.to_owned())];
        assert_eq!(sent(body), expected);
    }

    #[test]
    fn each_mistake_stands_beside_its_message() {
        let body = r#"{"messages":[{"topic":"a"},{"topic":"a","event":"e","payload":{}}]}"#;
        assert_eq!(wrong(body), json!([{ "payload": [BLANK], "event": [BLANK] }, {}]));
        let body = r#"{"messages":[{"topic":1,"event":[],"payload":"x","private":7,"id":8},{"topic":"","event":"","payload":null}]}"#;
        let is = json!([INVALID]);
        assert_eq!(
            wrong(body),
            json!([
                { "topic": is, "event": is, "payload": is, "private": is, "id": is },
                { "topic": [BLANK], "event": [BLANK], "payload": [BLANK] },
            ])
        );
        let large = format!(r#"{{"messages":[{{"topic":"a","event":"e","payload":{{"x":"{}"}}}}]}}"#, "x".repeat(100));
        assert_eq!(wrong(&large), json!([{ "payload": [TOO_LARGE] }]));
    }

    #[test]
    fn no_messages_are_a_mistake_of_their_own() {
        for body in ["", "{}", r#"{"messages":null}"#, r#"{"messages":[]}"#, r#"{"messages":""}"#, "[1]", "7"] {
            assert_eq!(wrong(body), json!([BLANK]), "{body}");
        }
        for body in [r#"{"messages":{}}"#, r#"{"messages":"x"}"#, r#"{"messages":[1]}"#, r#"{"messages":[{},[]]}"#] {
            assert_eq!(wrong(body), json!([INVALID]), "{body}");
        }
        for body in ["{", "x", "{}{}", r#"{"messages":[}"#, "\u{feff}{}"] {
            assert_eq!(parse(body, 100), Err(Answer::BadRequest), "{body}");
        }
    }

    #[test]
    fn a_batch_is_bounded_and_depth_costs_nothing() {
        let many = format!(r#"{{"messages":[{}{{}}]}}"#, "{},".repeat(MAX_MESSAGES));
        assert_eq!(parse(&many, 100), Err(Answer::BatchTooLarge));
        let deep = format!("{}{}", r#"{"a":"#.repeat(300_000), "1".to_owned() + &"}".repeat(300_000));
        let body = format!(r#"{{"messages":[{{"topic":"a","event":"e","payload":{deep}}}]}}"#);
        assert_eq!(parse(&body, 10_000_000).unwrap()[0].payload, deep);
    }
}
