use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::*;

const BOUNDS: Bounds = Bounds { metas: 100, meta: 9000, bytes: 10_000 };

fn tracked(text: &str) -> Tracked {
    Tracked::new(&RawValue::from_string(text.into()).unwrap()).unwrap()
}

/// Presence with references that count up.
#[derive(Default)]
struct Room {
    presence: Presence,
    next: u64,
}

impl Room {
    fn track(&mut self, key: &str, id: u64, text: &str) -> Result<bool, RoomError> {
        self.next += 1;
        let reference = Reference { process: 0, number: self.next };
        self.presence.track(&format!("{key:?}").into(), ChannelId(id), &tracked(text), reference, BOUNDS)
    }

    fn untrack(&mut self, key: &str, id: u64) -> bool {
        self.presence.untrack(&format!("{key:?}").into(), ChannelId(id))
    }

    fn diffs(&mut self) -> Vec<Value> {
        self.presence.publish().payloads.iter().map(|diff| serde_json::from_slice(diff).unwrap()).collect()
    }

    fn state(&mut self) -> Value {
        serde_json::from_slice(&self.presence.state()).unwrap()
    }
}

fn reference(number: u64) -> String {
    Reference { process: 0, number }.to_string()
}

#[test]
fn the_life_of_a_meta_is_told_as_it_happens() {
    let mut room = Room::default();
    assert_eq!(room.track("u", 1, r#"{"n":1}"#), Ok(true));
    let one = json!({"n": 1, "phx_ref": reference(1)});
    assert_eq!(room.state(), json!({}), "it is not published yet");
    assert_eq!(room.diffs(), [json!({"joins": {"u": {"metas": [one]}}, "leaves": {}})]);
    assert_eq!(room.state(), json!({"u": {"metas": [one]}}));
    assert_eq!(room.track("u", 1, r#"{"n":1}"#), Ok(false));
    assert!(room.diffs().is_empty(), "the same again");
    assert_eq!(room.track("u", 1, r#"{"n":2}"#), Ok(true));
    let two = json!({"n": 2, "phx_ref": reference(3), "phx_ref_prev": reference(1)});
    assert_eq!(room.diffs(), [json!({"joins": {"u": {"metas": [two]}}, "leaves": {"u": {"metas": [one]}}})]);
    assert!(room.untrack("u", 1) && !room.untrack("u", 1));
    assert_eq!(room.diffs(), [json!({"joins": {}, "leaves": {"u": {"metas": [two]}}})]);
    assert_eq!((room.state(), room.presence.len(), room.presence.bytes), (json!({}), 0, 0));
}

#[test]
fn two_under_one_key_are_two_metas_and_one_of_them_leaves() {
    let mut room = Room::default();
    room.track("u", 1, r#"{"n":1}"#).unwrap();
    room.track("a", 3, "{}").unwrap();
    room.track("u", 2, r#"{"n":2}"#).unwrap();
    let [diff] = &room.diffs()[..] else { panic!("one diff") };
    assert_eq!(diff["joins"]["u"]["metas"].as_array().unwrap().len(), 2);
    assert_eq!(room.state(), diff["joins"]);
    room.untrack("u", 1);
    assert_eq!(room.diffs()[0]["leaves"], json!({"u": {"metas": [diff["joins"]["u"]["metas"][0]]}}));
    assert_eq!(room.state()["u"], json!({"metas": [diff["joins"]["u"]["metas"][1]]}));
}

#[test]
fn what_came_and_went_between_two_diffs_leaves_no_trace() {
    let mut room = Room::default();
    room.track("u", 1, r#"{"n":1}"#).unwrap();
    room.track("u", 1, r#"{"n":2}"#).unwrap();
    room.untrack("u", 1);
    assert!(!room.presence.is_dirty() && room.diffs().is_empty());
    // An update of what nobody saw is a join of its own.
    room.track("u", 1, r#"{"n":1}"#).unwrap();
    room.track("u", 1, r#"{"n":2}"#).unwrap();
    let [diff] = &room.diffs()[..] else { panic!("one diff") };
    assert_eq!(diff, &json!({"joins": {"u": {"metas": [{"n": 2, "phx_ref": reference(4)}]}}, "leaves": {}}));
    // Of several updates the previous reference is the one that was seen.
    room.track("u", 1, r#"{"n":3}"#).unwrap();
    room.track("u", 1, r#"{"n":4}"#).unwrap();
    let [diff] = &room.diffs()[..] else { panic!("one diff") };
    assert_eq!(diff["joins"]["u"]["metas"][0]["phx_ref_prev"], reference(4));
    assert_eq!(diff["leaves"]["u"]["metas"][0]["phx_ref"], reference(4));
}

#[test]
fn untracked_and_tracked_again_is_a_leave_and_a_join_without_a_previous_one() {
    let mut room = Room::default();
    room.track("u", 1, r#"{"n":1}"#).unwrap();
    room.diffs();
    room.untrack("u", 1);
    room.track("u", 1, r#"{"n":1}"#).unwrap();
    let meta = |number| json!({"u": {"metas": [{"n": 1, "phx_ref": reference(number)}]}});
    assert_eq!(room.diffs(), [json!({"joins": meta(2), "leaves": meta(1)})]);
}

#[test]
fn what_is_kept_is_bounded_in_number_and_size() {
    let mut room = Room::default();
    for id in 0..100 {
        assert_eq!(room.track("u", id, "{}"), Ok(true));
    }
    assert_eq!(room.track("u", 100, "{}"), Err(RoomError::PresenceFull));
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(8000));
    assert_eq!(room.track("u", 1, &long), Err(RoomError::PresenceFull), "there are other metas too");
    assert_eq!(room.track("u", 1, r#"{"a":1}"#), Ok(true), "an update takes a place that it has");
    room.diffs();
    (0..100).for_each(|id| assert!(room.untrack("u", id)));
    room.diffs();
    assert_eq!((room.presence.bytes, room.presence.entries.len()), (0, 0));
    assert_eq!(room.track("u", 1, &long), Ok(true));
}

#[test]
fn a_large_diff_comes_in_parts_of_whole_changes() {
    let mut presence = Presence::default();
    let text = format!("{{\"a\":\"{}\"}}", "x".repeat(1000));
    let bounds = Bounds { metas: 10_000, meta: 1 << 20, bytes: 100 << 20 };
    for id in 0..1000 {
        let reference = Reference { process: 0, number: id };
        presence.track(&"\"u\"".into(), ChannelId(id), &tracked(&text), reference, bounds).unwrap();
    }
    let diffs = presence.publish();
    assert!(diffs.payloads.len() > 2 && diffs.payloads.iter().all(|diff| diff.len() < DIFF_BYTES + 2000));
    assert_eq!(diffs.coalesced, 1000 - diffs.payloads.len() as u64);
    let metas =
        |diff: &Bytes| serde_json::from_slice::<Value>(diff).unwrap()["joins"]["u"]["metas"].as_array().unwrap().len();
    assert_eq!(diffs.payloads.iter().map(metas).sum::<usize>(), 1000);
    let state: Value = serde_json::from_slice(&presence.state()).unwrap();
    assert_eq!(state["u"]["metas"].as_array().unwrap().len(), 1000);
}
