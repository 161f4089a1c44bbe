//! The payload of a `presence` message (`protocol.md` §3.6).

use serde_json::value::RawValue;

use super::object::Object;

/// What it asks for.
#[derive(Debug)]
pub enum Presence {
    /// To be present with this object; `None` if it is none.
    Track(Option<Box<RawValue>>),
    /// Not to be present any more.
    Untrack,
    /// What nobody knows.
    Unknown,
    /// It has no `event`.
    Nothing,
}

impl PartialEq for Presence {
    fn eq(&self, other: &Presence) -> bool {
        match (self, other) {
            (Presence::Track(Some(one)), Presence::Track(Some(two))) => one.get() == two.get(),
            (Presence::Track(one), Presence::Track(two)) => one.is_none() && two.is_none(),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl Eq for Presence {}

/// Reads the payload. The event is compared without regard to case; a payload of its own that is absent is an empty object.
pub fn presence(payload: &str) -> Presence {
    let object = Object::parse(payload).unwrap_or_default();
    if object.get_some("event").is_none() {
        return Presence::Nothing;
    }
    match object.string("event").map(|event| event.to_ascii_lowercase()).as_deref() {
        Some("track") => {
            let payload = object.get("payload").unwrap_or("{}");
            let is_object = Object::parse(payload).is_some();
            Presence::Track(is_object.then(|| RawValue::from_string(payload.to_owned()).ok()).flatten())
        }
        Some("untrack") => Presence::Untrack,
        _ => Presence::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_presence_message_is_read_leniently() {
        let track = |json: &str| Presence::Track(RawValue::from_string(json.to_owned()).ok());
        assert_eq!(presence(r#"{"event":"TRACK","payload":{"a": 1}}"#), track(r#"{"a": 1}"#));
        assert_eq!(presence(r#"{"type":"presence","event":"track"}"#), track("{}"));
        assert_eq!(presence(r#"{"event":"unTrack","payload":5}"#), Presence::Untrack);
        for payload in ["[1]", "null", "5", r#""a""#] {
            assert_eq!(presence(&format!(r#"{{"event":"track","payload":{payload}}}"#)), Presence::Track(None));
        }
        for unknown in [r#"{"event":"dance"}"#, r#"{"event":5}"#, r#"{"event":""}"#] {
            assert_eq!(presence(unknown), Presence::Unknown);
        }
        for nothing in ["{}", "[]", "null", r#"{"event":null}"#, r#"{"payload":{}}"#] {
            assert_eq!(presence(nothing), Presence::Nothing);
        }
    }
}
