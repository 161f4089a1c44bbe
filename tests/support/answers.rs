//! What a raw client reads out of its frames.

use std::panic::Location;

use serde_json::Value;
use serde_json::value::RawValue;

use super::Version;

/// `data` of a frame with a change, as it was sent.
pub(super) fn data_text(frame: &str, version: Version) -> String {
    #[derive(serde::Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        data: &'a RawValue,
    }
    #[derive(serde::Deserialize)]
    struct Whole<'a> {
        #[serde(borrow)]
        payload: Payload<'a>,
    }
    let payload = match version {
        Version::V1 => serde_json::from_str::<Whole<'_>>(frame).map(|whole| whole.payload),
        Version::V2 => {
            let array: Vec<&RawValue> = serde_json::from_str(frame).expect("it was read before");
            serde_json::from_str(array[4].get())
        }
    };
    payload.expect("it was read before").data.get().to_owned()
}

/// The ids in a join reply, which repeats the entries in their order (`protocol.md` §3.1.4).
#[track_caller]
pub(super) fn ids_of(answered: &Value, entries: &Value, at: &Location<'_>) -> Vec<i64> {
    let asked = entries.as_array().expect("a list of entries");
    let answered = answered.as_array().unwrap_or_else(|| panic!("at {at}: no entries in the reply"));
    assert_eq!(answered.len(), asked.len(), "at {at}");
    let id = |(answered, asked): (&Value, &Value)| {
        let mut rest = answered.as_object().expect("an object").clone();
        let id = rest.remove("id").and_then(|id| id.as_i64());
        let id = id.unwrap_or_else(|| panic!("at {at}: no integer id in {answered}"));
        assert_eq!(Value::Object(rest), *asked, "at {at}");
        assert!((1..=i64::from(i32::MAX)).contains(&id), "at {at}: {id}");
        id
    };
    answered.iter().zip(asked).map(id).collect()
}
