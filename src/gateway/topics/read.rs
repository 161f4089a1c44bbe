//! A frame of the topics door, read and made into what a Phoenix client would push.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use super::Mistake;
use crate::gateway::encode::topics::Request;
use crate::gateway::json::{elements, members, string};
use crate::gateway::limits::GatewayConfig;
use crate::gateway::phoenix::codec::json;

/// Topics of one frame.
pub(super) const MAX_TOPICS: usize = 100;
/// Bytes of a client's `ref`.
const MAX_REF: usize = 128;
/// Members of a frame; none has as many.
const MAX_MEMBERS: usize = 16;

/// What every frame has, as far as it could be read: errors repeat it.
#[derive(Default)]
pub(super) struct Head<'a> {
    pub(super) request: Option<Request>,
    /// JSON text, or nothing.
    pub(super) reference: &'a str,
}

/// What a frame asks for. JSON stays text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked<'a> {
    Subscribe(Subscribe<'a>),
    Unsubscribe {
        topics: Vec<Cow<'a, str>>,
    },
    /// `event`: a JSON string.
    Publish {
        topic: Cow<'a, str>,
        event: &'a str,
        payload: &'a str,
    },
    Track {
        topic: Cow<'a, str>,
        payload: &'a str,
    },
    Untrack {
        topic: Cow<'a, str>,
    },
    Token {
        token: Cow<'a, str>,
    },
    Ping,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Subscribe<'a> {
    /// Each with its cursor, a JSON string, or nothing.
    topics: Vec<(Cow<'a, str>, &'a str)>,
    private: bool,
    own: bool,
    /// An array, or nothing.
    changes: &'a str,
    /// An object, or nothing.
    presence: &'a str,
}

fn mistake<T>(code: &'static str, message: impl Into<String>) -> Result<T, Mistake> {
    Err((code, message.into()))
}

/// Types, in a sentence.
const TYPES: &str = "subscribe, unsubscribe, publish, track, untrack, token or ping";

/// Reads a frame; `head` is filled as far as possible.
pub(super) fn read<'a>(text: &'a str, config: &GatewayConfig, head: &mut Head<'a>) -> Result<Asked<'a>, Mistake> {
    let mut found: Vec<(Cow<'a, str>, &'a str)> = Vec::new();
    let whole = members(text, |name, value| {
        found.push((name, value));
        found.len() <= MAX_MEMBERS
    });
    if !whole {
        let message = if found.len() > MAX_MEMBERS {
            format!("a frame has at most {MAX_MEMBERS} members; leave out what the type does not have")
        } else {
            r#"a frame is one JSON object, such as {"type":"subscribe","topics":["thread:45"]}"#.to_owned()
        };
        return mistake("BadFrame", message);
    }
    let mut members = Members { found };
    head.reference = members.take("ref").unwrap_or_default();
    if head.reference.len() > MAX_REF {
        head.reference = "";
        return mistake("BadRef", format!("`ref` is longer than {MAX_REF} bytes; number your frames instead"));
    }
    let Some(kind) = members.take("type").and_then(string) else {
        return mistake("BadFrame", format!("`type` is missing or no string; send {TYPES}"));
    };
    let Some(request) = Request::named(&kind) else {
        let shown: String = kind.chars().take(32).collect();
        return mistake("UnknownType", format!("{} is no type of a frame; send {TYPES}", json(&shown)));
    };
    head.request = Some(request);
    let asked = members.asked(request, config)?;
    members.none_left(request)?;
    Ok(asked)
}

struct Members<'a> {
    found: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> Members<'a> {
    /// Of a name given twice the last; `null` is as if it were not there.
    fn take(&mut self, name: &str) -> Option<&'a str> {
        let last = self.found.iter().rev().find(|(found, _)| found == name).map(|(_, value)| *value);
        self.found.retain(|(found, _)| found != name);
        last.filter(|value| *value != "null")
    }

    fn none_left(&self, request: Request) -> Result<(), Mistake> {
        let Some((name, _)) = self.found.first() else { return Ok(()) };
        let shown: String = name.chars().take(32).collect();
        mistake(
            "UnknownField",
            format!("a {} frame has no field {}: correct its name or leave it out", request.as_str(), json(&shown)),
        )
    }

    fn asked(&mut self, request: Request, config: &GatewayConfig) -> Result<Asked<'a>, Mistake> {
        Ok(match request {
            Request::Subscribe => Asked::Subscribe(self.subscribe(config)?),
            Request::Unsubscribe => Asked::Unsubscribe { topics: self.topics()? },
            Request::Publish => {
                let topic = self.topic()?;
                let event = self.take("event").filter(|event| string(event).is_some());
                let Some(event) = event else {
                    return mistake("BadEvent", "`event` is missing or no string; name the event that is sent");
                };
                Asked::Publish { topic, event, payload: self.take("payload").unwrap_or("{}") }
            }
            Request::Track => {
                let (topic, payload) = (self.topic()?, self.take("payload").unwrap_or("{}"));
                if !payload.starts_with('{') {
                    return mistake(
                        "BadPayload",
                        "`payload` of a track frame is an object, such as {\"name\":\"Ada\"}",
                    );
                }
                Asked::Track { topic, payload }
            }
            Request::Untrack => Asked::Untrack { topic: self.topic()? },
            Request::Token => match self.take("token").and_then(string) {
                Some(token) => Asked::Token { token },
                None => {
                    return mistake("BadToken", "`token` is missing or no string; send the user's new access token");
                }
            },
            Request::Ping => Asked::Ping,
        })
    }

    fn subscribe(&mut self, config: &GatewayConfig) -> Result<Subscribe<'a>, Mistake> {
        let topics = self.topics()?;
        let flag = |value: Option<&str>, name, default| match value {
            None => Ok(default),
            Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(_) => mistake("BadField", format!("`{name}` is true or false")),
        };
        let private = flag(self.take("private"), "private", true)?;
        let own = flag(self.take("self"), "self", false)?;
        let changes = self.take("changes").unwrap_or_default();
        if !changes.is_empty() && !changes.starts_with('[') {
            return mistake(
                "BadChanges",
                r#"`changes` is a list, such as [{"event":"*","schema":"public","table":"todos"}]"#,
            );
        }
        let presence = match self.take("presence") {
            None | Some("false") => "",
            Some("true") => "{}",
            Some(object) if object.starts_with('{') => object,
            Some(_) => {
                return mistake("BadPresence", r#"`presence` is true, or an object with a key, such as {"key":"ada"}"#);
            }
        };
        if changes.len() + presence.len() > config.max_join_bytes {
            return mistake(
                "TooLarge",
                format!("`changes` and `presence` are longer than {} bytes", config.max_join_bytes),
            );
        }
        let since = since(self.take("since"), &topics)?;
        Ok(Subscribe { topics: topics.into_iter().zip(since).collect(), private, own, changes, presence })
    }

    fn topics(&mut self) -> Result<Vec<Cow<'a, str>>, Mistake> {
        let mut topics = Vec::new();
        let mut strings = true;
        let given = self.take("topics").unwrap_or_default();
        let whole = elements(given, |value| {
            match string(value) {
                Some(topic) => topics.push(topic),
                None => strings = false,
            }
            strings && topics.len() <= MAX_TOPICS
        });
        if topics.len() > MAX_TOPICS {
            return mistake("TooManyTopics", format!("a frame names at most {MAX_TOPICS} topics; send several frames"));
        }
        if !whole || topics.is_empty() {
            return mistake(
                "BadTopics",
                r#"`topics` is missing or no list of strings; send for example ["thread:45"]"#,
            );
        }
        Ok(topics)
    }

    fn topic(&mut self) -> Result<Cow<'a, str>, Mistake> {
        let topic = self.take("topic").and_then(string);
        topic.map_or_else(
            || mistake("BadTopic", "`topic` is missing or no string; name one topic that is subscribed"),
            Ok,
        )
    }
}

/// The cursor of each topic as JSON text, or nothing.
fn since<'a>(given: Option<&'a str>, topics: &[Cow<'a, str>]) -> Result<Vec<&'a str>, Mistake> {
    let mut all = vec![""; topics.len()];
    let Some(given) = given else { return Ok(all) };
    let mut wrong = None;
    let whole = members(given, |name, value| {
        let at = topics.iter().position(|topic| *topic == name).filter(|_| value.starts_with('"'));
        match at {
            Some(at) => all[at] = value,
            None if value == "null" => {}
            None => wrong = Some(name),
        }
        wrong.is_none()
    });
    if let Some(name) = wrong {
        let shown: String = name.chars().take(32).collect();
        let text = "is none of the frame's topics, or its cursor is no string";
        return mistake("BadSince", format!("`since` of {}: it {text}", json(&shown)));
    }
    if !whole {
        return mistake("BadSince", r#"`since` is an object with a cursor for each topic, such as {"thread:45":"…"}"#);
    }
    Ok(all)
}

impl Asked<'_> {
    /// Messages that it becomes.
    pub(super) fn count(&self, joined: usize) -> usize {
        match self {
            Asked::Subscribe(subscribe) => subscribe.topics.len(),
            Asked::Unsubscribe { topics } => topics.len(),
            Asked::Token { .. } => joined,
            _ => 1,
        }
    }

    /// Topic, event and payload of one of them.
    pub(super) fn push<'s>(
        &'s self,
        index: usize,
        joined: &'s [Arc<str>],
        token: Option<&str>,
    ) -> (Cow<'s, str>, &'static str, Cow<'s, str>) {
        let full = |topic: &str| Cow::Owned(format!("realtime:{topic}"));
        match self {
            Asked::Subscribe(subscribe) => {
                let (topic, since) = &subscribe.topics[index];
                (full(topic), "phx_join", subscribe.payload(since, token).into())
            }
            Asked::Unsubscribe { topics } => (full(&topics[index]), "phx_leave", "{}".into()),
            Asked::Publish { topic, event, payload } => {
                let payload = format!(r#"{{"type":"broadcast","event":{event},"payload":{payload}}}"#);
                (full(topic), "broadcast", payload.into())
            }
            Asked::Track { topic, payload } => {
                let payload = format!(r#"{{"type":"presence","event":"track","payload":{payload}}}"#);
                (full(topic), "presence", payload.into())
            }
            Asked::Untrack { topic } => (full(topic), "presence", r#"{"type":"presence","event":"untrack"}"#.into()),
            Asked::Token { token } => (
                Cow::Borrowed(&*joined[index]),
                "access_token",
                format!(r#"{{"access_token":{}}}"#, json(token)).into(),
            ),
            Asked::Ping => ("phoenix".into(), "heartbeat", "{}".into()),
        }
    }
}

impl Subscribe<'_> {
    /// As the payload of a join. Every push is to be answered: the door leaves out the answers that nobody asked for.
    fn payload(&self, since: &str, token: Option<&str>) -> String {
        let mut payload =
            format!(r#"{{"config":{{"private":{},"broadcast":{{"ack":true,"self":{}"#, self.private, self.own);
        if self.private && !since.is_empty() {
            let _ = write!(payload, r#","replay":{{"cursor":{since}}}"#);
        }
        payload.push('}');
        if !self.presence.is_empty() {
            // Behind what the client wrote, so that it counts.
            let inner = self.presence[1..self.presence.len() - 1].trim();
            let comma = if inner.is_empty() { "" } else { "," };
            let _ = write!(payload, r#","presence":{{{inner}{comma}"enabled":true}}"#);
        }
        if !self.changes.is_empty() {
            payload.push_str(r#","postgres_changes":["#);
            let mut first = true;
            elements(self.changes, |entry| {
                payload.push_str(if first { "" } else { "," });
                first = false;
                entry_since(entry, since, &mut payload);
                true
            });
            payload.push(']');
        }
        payload.push('}');
        if let Some(token) = token {
            let _ = write!(payload, r#","access_token":{}"#, json(token));
        }
        payload.push('}');
        payload
    }
}

/// An entry with the topic's cursor, unless it has a place of its own.
fn entry_since(entry: &str, since: &str, out: &mut String) {
    let mut own = false;
    let object = members(entry, |name, _| {
        own |= name == "since";
        true
    });
    if since.is_empty() || own || !object {
        return out.push_str(entry);
    }
    let inner = entry[1..entry.len() - 1].trim();
    let comma = if inner.is_empty() { "" } else { "," };
    let _ = write!(out, r#"{{{inner}{comma}"since":{since}}}"#);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(text: &str) -> Result<Asked<'_>, Mistake> {
        read(text, &GatewayConfig::default(), &mut Head::default())
    }

    fn pushes(text: &str, token: Option<&str>) -> Vec<(String, String, Value)> {
        let asked = asked(text).unwrap();
        let joined = [Arc::from("realtime:a"), Arc::from("realtime:b")];
        let push = |index| {
            let (topic, event, payload) = asked.push(index, &joined, token);
            (topic.into_owned(), event.to_owned(), serde_json::from_str(&payload).unwrap())
        };
        (0..asked.count(joined.len())).map(push).collect()
    }

    #[test]
    fn a_subscription_is_a_private_join_of_each_topic() {
        let all = pushes(r#"{"type":"subscribe","topics":["thread:45","x"],"ref":1}"#, None);
        let config = json!({ "config": { "private": true, "broadcast": { "ack": true, "self": false } } });
        assert_eq!(all[0], ("realtime:thread:45".into(), "phx_join".into(), config.clone()));
        assert_eq!(all[1], ("realtime:x".into(), "phx_join".into(), config));
    }

    #[test]
    fn a_cursor_is_the_topics_own_and_goes_into_every_entry_that_has_none() {
        let frame = r#"{"type":"subscribe","topics":["a","b"],"private":false,"self":true,"presence":{"key":"k"},
            "since":{"a":"cur","b":null},"changes":[{"table":"t"},{"table":"u","since":5},{}, 7]}"#;
        let all = pushes(frame, Some("tok\"en"));
        let entries = json!([{ "table": "t", "since": "cur" }, { "table": "u", "since": 5 }, { "since": "cur" }, 7]);
        let config = |entries: &Value| {
            json!({ "private": false, "broadcast": { "ack": true, "self": true },
                "presence": { "key": "k", "enabled": true }, "postgres_changes": entries })
        };
        assert_eq!(all[0].2, json!({ "config": config(&entries), "access_token": "tok\"en" }));
        let entries = json!([{ "table": "t" }, { "table": "u", "since": 5 }, {}, 7]);
        assert_eq!(all[1].2["config"], config(&entries));
        let all = pushes(r#"{"type":"subscribe","topics":["a"],"since":{"a":"cur"},"presence":true}"#, None);
        assert_eq!(all[0].2["config"]["broadcast"]["replay"], json!({ "cursor": "cur" }));
        assert_eq!(all[0].2["config"]["presence"], json!({ "enabled": true }));
    }

    #[test]
    fn the_other_frames_are_pushes() {
        let one = |text: &str| pushes(text, None).remove(0);
        let sent = json!({ "type": "broadcast", "event": "e", "payload": [1] });
        let push = one(r#"{"type":"publish","topic":"a","event":"e","payload":[1]}"#);
        assert_eq!(push, ("realtime:a".into(), "broadcast".into(), sent));
        let sent = json!({ "type": "presence", "event": "track", "payload": { "n": 1 } });
        let push = one(r#"{"type":"track","topic":"a","payload":{"n":1}}"#);
        assert_eq!(push, ("realtime:a".into(), "presence".into(), sent));
        assert_eq!(one(r#"{"type":"untrack","topic":"a"}"#).2["event"], "untrack");
        assert_eq!(one(r#"{"type":"unsubscribe","topics":["a"]}"#).1, "phx_leave");
        assert_eq!(one(r#"{"type":"ping","ref":null}"#).0, "phoenix");
        let all = pushes(r#"{"type":"token","token":"x"}"#, None);
        assert_eq!(all.len(), 2);
        assert_eq!(all[1], ("realtime:b".into(), "access_token".into(), json!({ "access_token": "x" })));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = format!(r#"{{"type":"subscribe","topics":[{}"a"]}}"#, r#""a","#.repeat(100));
        let large = format!(r#"{{"type":"subscribe","topics":["a"],"changes":["{}"]}}"#, "x".repeat(300_000));
        let members = format!(r#"{{"type":"ping"{}}}"#, r#","a":1"#.repeat(20));
        let long = format!(r#"{{"type":"ping","ref":"{}"}}"#, "x".repeat(200));
        for (text, code) in [
            ("", "BadFrame"),
            ("[]", "BadFrame"),
            ("{\"type\":\"ping\"", "BadFrame"),
            ("{}", "BadFrame"),
            (r#"{"type":1}"#, "BadFrame"),
            (&members, "BadFrame"),
            (&long, "BadRef"),
            (r#"{"type":"phx_join"}"#, "UnknownType"),
            (r#"{"type":"subscribe"}"#, "BadTopics"),
            (r#"{"type":"subscribe","topics":"a"}"#, "BadTopics"),
            (r#"{"type":"subscribe","topics":[]}"#, "BadTopics"),
            (r#"{"type":"subscribe","topics":["a",1]}"#, "BadTopics"),
            (&many, "TooManyTopics"),
            (&large, "TooLarge"),
            (r#"{"type":"subscribe","topics":["a"],"topic":"a"}"#, "UnknownField"),
            (r#"{"type":"subscribe","topics":["a"],"sinse":{}}"#, "UnknownField"),
            (r#"{"type":"subscribe","topics":["a"],"private":"no"}"#, "BadField"),
            (r#"{"type":"subscribe","topics":["a"],"self":1}"#, "BadField"),
            (r#"{"type":"subscribe","topics":["a"],"changes":{}}"#, "BadChanges"),
            (r#"{"type":"subscribe","topics":["a"],"presence":1}"#, "BadPresence"),
            (r#"{"type":"subscribe","topics":["a"],"since":"c"}"#, "BadSince"),
            (r#"{"type":"subscribe","topics":["a"],"since":{"b":"c"}}"#, "BadSince"),
            (r#"{"type":"subscribe","topics":["a"],"since":{"a":1}}"#, "BadSince"),
            (r#"{"type":"publish","topic":"a"}"#, "BadEvent"),
            (r#"{"type":"publish","event":"a"}"#, "BadTopic"),
            (r#"{"type":"track","topic":"a","payload":[]}"#, "BadPayload"),
            (r#"{"type":"token"}"#, "BadToken"),
        ] {
            let (found, message) = asked(text).unwrap_err();
            assert_eq!(found, code, "{text}: {message}");
            assert!(message.len() > 20, "{message}");
        }
        let mut head = Head::default();
        let frame = r#"{"ref":[1,2],"type":"publish","nonsense":1,"topic":"a","event":"e"}"#;
        assert_eq!(read(frame, &GatewayConfig::default(), &mut head).unwrap_err().0, "UnknownField");
        assert_eq!((head.request, head.reference), (Some(Request::Publish), "[1,2]"));
    }
}
