use super::*;
use crate::change::{RelationColumn, ReplicaIdentity};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

/// id int8 key, title text, body text, done bool.
fn todos(identity: ReplicaIdentity) -> Relation {
    let column = |name: &str, type_oid, key| RelationColumn { name: name.into(), type_oid, type_modifier: -1, key };
    let full = identity == ReplicaIdentity::Full;
    let columns =
        vec![column("id", 20, true), column("title", 25, full), column("body", 25, full), column("done", 16, full)];
    Relation { oid: 1, schema: "public".into(), table: "to\"dos".into(), identity, columns }
}

const UNCHANGED: &str = "\u{0}unchanged";

fn tuple(values: [Option<&str>; 4]) -> Tuple {
    Tuple::from_values(values.iter().map(|value| match value {
        None => Value::Null,
        Some(UNCHANGED) => Value::Unchanged,
        Some(text) => Value::Text(text.as_bytes()),
    }))
}

fn data_of(shape: &RowShape, change: &Change, new: &[usize], old: &[usize]) -> Json {
    let mut out = Vec::new();
    let time = Timestamp(848_484_930_123_999);
    let (new, old) = (new.iter().copied().collect(), old.iter().copied().collect());
    write_shown(shape, change, time, Place::default(), &new, &old, &mut out);
    serde_json::from_slice(&out).unwrap()
}

fn data(identity: ReplicaIdentity, change: &Change, new: &[usize], old: &[usize]) -> Json {
    data_of(&RowShape::new(&todos(identity), &Types::default()), change, new, old)
}

const ALL: &[usize] = &[0, 1, 2, 3];

#[test]
fn an_insert_has_a_record_and_no_old_record() {
    let new = tuple([Some("1"), Some("milk"), None, Some("t")]);
    assert_eq!(
        data(ReplicaIdentity::Default, &Change::Insert { new }, ALL, ALL),
        json!({
            "schema": "public", "table": "to\"dos", "type": "INSERT", "commit_timestamp": "2026-11-20T10:15:30.123Z",
            "columns": [{"name": "id", "type": "int8"}, {"name": "title", "type": "text"}, {"name": "body", "type": "text"},
                {"name": "done", "type": "bool"}],
            "record": {"id": 1, "title": "milk", "body": null, "done": true},
            "errors": null,
        })
    );
}

#[test]
fn the_keys_stand_in_the_order_that_people_read() {
    let shape = RowShape::new(&todos(ReplicaIdentity::Default), &Types::default());
    let new = tuple([Some("1"), Some("milk"), None, Some("t")]);
    let mut out = Vec::new();
    let mask = ColumnMask::all(1);
    write_shown(&shape, &Change::Update { new, old: None }, Timestamp(0), Place::default(), &mask, &mask, &mut out);
    let text = r#"{"schema":"public","table":"to\"dos","type":"UPDATE","commit_timestamp":"2000-01-01T00:00:00.000Z","#
        .to_owned()
        + r#""columns":[{"name":"id","type":"int8"}],"record":{"id":1},"old_record":{"id":1},"errors":null}"#;
    assert_eq!(String::from_utf8(out).unwrap(), text);
}

#[test]
fn an_update_that_keeps_the_key_takes_the_old_key_from_the_new_row() {
    let new = tuple([Some("1"), Some("milk"), Some(UNCHANGED), Some("t")]);
    let data = data(ReplicaIdentity::Default, &Change::Update { new, old: None }, ALL, ALL);
    assert_eq!(data["old_record"], json!({"id": 1}));
    assert_eq!(data["record"], json!({"id": 1, "title": "milk", "done": true}), "unchanged TOAST is absent, not null");
    assert_eq!(data["columns"].as_array().unwrap().len(), 4);
}

#[test]
fn an_update_of_the_key_shows_the_old_key_and_never_the_nulls_beside_it() {
    let new = tuple([Some("2"), Some("milk"), None, Some("t")]);
    let old = Some(OldRow::KeyOnly(tuple([Some("1"), None, None, None])));
    let data = data(ReplicaIdentity::Default, &Change::Update { new, old }, ALL, ALL);
    assert_eq!(data["old_record"], json!({"id": 1}));
}

#[test]
fn a_full_old_row_is_shown_and_fills_unchanged_columns() {
    let new = tuple([Some("1"), Some("new"), Some(UNCHANGED), None]);
    let old = Some(OldRow::Full(tuple([Some("1"), Some("old"), Some("long"), None])));
    let change = Change::Update { new, old };
    let shown = data(ReplicaIdentity::Full, &change, ALL, ALL);
    assert_eq!(shown["record"], json!({"id": 1, "title": "new", "body": "long", "done": null}));
    assert_eq!(shown["old_record"], json!({"id": 1, "title": "old", "body": "long", "done": null}));
    let hidden = data(ReplicaIdentity::Full, &change, &[0, 1], &[0]);
    assert_eq!(hidden["record"], json!({"id": 1, "title": "new"}));
    assert_eq!(hidden["old_record"], json!({"id": 1}));
    assert_eq!(data(ReplicaIdentity::Full, &change, ALL, &[])["old_record"], json!({}));
}

#[test]
fn a_delete_has_no_record_and_lists_the_columns_that_may_be_read() {
    let change = Change::Delete { old: OldRow::KeyOnly(tuple([Some("1"), None, None, None])) };
    let shown = data(ReplicaIdentity::Default, &change, &[0, 1], &[0, 1]);
    assert_eq!(shown["old_record"], json!({"id": 1}));
    assert_eq!(shown["columns"].as_array().unwrap().len(), 2);
    assert!(shown.get("record").is_none());
    let change = Change::Delete { old: OldRow::Full(tuple([Some("1"), Some("x"), None, None])) };
    assert_eq!(
        data(ReplicaIdentity::Full, &change, &[], &[0, 1, 2])["old_record"],
        json!({"id": 1, "title": "x", "body": null})
    );
}

#[test]
fn the_cursor_is_the_last_member_and_where_it_was_asked_for() {
    let shape = RowShape::new(&todos(ReplicaIdentity::Default), &Types::default());
    let row = || tuple([Some("1"), Some("milk"), None, Some("t")]);
    let delete = Change::Delete { old: OldRow::KeyOnly(tuple([Some("1"), None, None, None])) };
    let written = |change: &Change, cursor: Option<&str>, cursor_as: Option<&str>, shown: &[usize]| {
        let (mut out, mask) = (Vec::new(), shown.iter().copied().collect());
        write_shown(&shape, change, Timestamp(0), Place { cursor, cursor_as, snapshot: false }, &mask, &mask, &mut out);
        assert!(cursor.is_none_or(|cursor| out.ends_with(format!(r#","cursor":"{cursor}"}}"#).as_bytes())));
        serde_json::from_slice::<Json>(&out).unwrap()
    };
    let insert = Change::Insert { new: row() };
    let plain = written(&insert, None, Some("_cursor"), ALL);
    assert!(plain.get("cursor").is_none() && plain["record"].get("_cursor").is_none());
    let mut with = written(&insert, Some("c0-_"), Some("a \"b"), ALL);
    assert_eq!(with["record"].as_object_mut().unwrap().remove("a \"b"), Some(json!("c0-_")));
    assert_eq!(with.as_object_mut().unwrap().remove("cursor"), Some(json!("c0-_")));
    assert_eq!(with, plain, "nothing else is different");
    let update = written(&Change::Update { new: row(), old: None }, Some("c"), Some("_cursor"), ALL);
    assert_eq!((&update["record"]["_cursor"], update["old_record"].get("_cursor")), (&json!("c"), None));
    let old = written(&delete, Some("c"), Some("_cursor"), &[0])["old_record"].take();
    assert_eq!(old, json!({"id": 1, "_cursor": "c"}));
    // A column of that name is not hidden, and one that is not shown is not told of.
    assert_eq!(written(&insert, Some("c"), Some("title"), ALL)["record"]["title"], "milk");
    assert_eq!(written(&insert, Some("c"), Some("title"), &[0])["record"], json!({"id": 1, "title": "c"}));
    assert_eq!(written(&insert, Some("c"), Some("_cursor"), &[])["record"], json!({"_cursor": "c"}));
}

#[test]
fn columns_outside_the_permit_leave_no_trace() {
    let new = tuple([Some("1"), Some("secret"), Some("secret"), Some("t")]);
    let old = Some(OldRow::Full(tuple([Some("1"), Some("secret"), Some("secret"), Some("f")])));
    let data = data(ReplicaIdentity::Full, &Change::Update { new, old }, &[0, 3], &[0, 3]);
    let text = data.to_string();
    assert!(!text.contains("secret") && !text.contains("title") && !text.contains("body"), "{text}");
}

#[test]
fn a_record_over_the_limit_keeps_its_short_values_and_says_so() {
    let shape = RowShape::new(&todos(ReplicaIdentity::Default), &Types::default()).max_record_bytes(1000);
    let long = "x".repeat(1001);
    let (edge, over) = ("y".repeat(62), "y".repeat(63));
    let data = |title: &str, shown: &[usize]| {
        data_of(&shape, &Change::Insert { new: tuple([Some("1"), Some(title), Some(&long), None]) }, shown, &[])
    };
    assert_eq!(data(&edge, ALL)["record"], json!({"id": 1, "title": edge}), "64 bytes with the quotes");
    assert_eq!(data(&over, ALL)["record"], json!({"id": 1}));
    assert_eq!(data(&over, ALL)["errors"], json!(["Error 413: Payload Too Large"]));
    assert_eq!(data(&over, ALL)["columns"].as_array().unwrap().len(), 4);
    assert_eq!(data(&edge, &[0])["errors"], json!(["Error 413: Payload Too Large"]), "the same for all who get it");
}

#[test]
fn commit_times_are_cut_to_milliseconds_and_never_panic() {
    let written = |micros| {
        let mut out = Vec::new();
        write_timestamp(Timestamp(micros), &mut out);
        String::from_utf8(out).unwrap()
    };
    for (micros, text) in [
        (0, "2000-01-01T00:00:00.000Z"),
        (999, "2000-01-01T00:00:00.000Z"),
        (-1, "1999-12-31T23:59:59.999Z"),
        (5_097_600_000_000, "2000-02-29T00:00:00.000Z"),
        (-946_684_800_000_001, "1969-12-31T23:59:59.999Z"),
        (846_498_599_999_999, "2026-10-28T10:29:59.999Z"),
    ] {
        assert_eq!(written(micros), text);
    }
    for mad in [i64::MIN, i64::MAX] {
        assert_eq!(written(mad).len(), 24);
    }
}

proptest! {
    #[test]
    fn whatever_the_row_the_output_is_json_with_just_the_shown_and_present_columns(
        cells in prop::array::uniform4(prop::option::of(prop_oneof![any::<String>(), Just(UNCHANGED.to_owned())])),
        old in prop::option::of((any::<bool>(), prop::array::uniform4(prop::option::of(any::<String>())))),
        new_mask in prop::collection::vec(0usize..4, 0..5), old_mask in prop::collection::vec(0usize..4, 0..5),
        micros in any::<i64>(),
    ) {
        let new = tuple(cells.each_ref().map(Option::as_deref));
        let old = old.as_ref().map(|(full, cells)| {
            let tuple = tuple(cells.each_ref().map(Option::as_deref));
            if *full { OldRow::Full(tuple) } else { OldRow::KeyOnly(tuple) }
        });
        let shape = RowShape::new(&todos(ReplicaIdentity::Default), &Types::default());
        let masks: (ColumnMask, ColumnMask) = (new_mask.iter().copied().collect(), old_mask.iter().copied().collect());
        let mut out = Vec::new();
        let change = Change::Update { new: new.clone(), old: old.clone() };
        write_shown(&shape, &change, Timestamp(micros), Place::default(), &masks.0, &masks.1, &mut out);
        let data: Json = serde_json::from_slice(&out).unwrap();
        for (index, name) in ["id", "title", "body", "done"].into_iter().enumerate() {
            let filled = match (new.get(index), &old) {
                (Value::Unchanged, Some(OldRow::Full(old))) => old.get(index),
                (value, _) => value,
            };
            let expected = masks.0.contains(index) && filled != Value::Unchanged;
            prop_assert_eq!(data["record"].get(name).is_some(), expected);
            if index == 1 && let (true, Value::Text(text)) = (expected, filled) {
                prop_assert_eq!(data["record"][name].as_str().unwrap().as_bytes(), text);
            }
            let real = matches!(old, Some(OldRow::Full(_))) || index == 0;
            let there = old.as_ref().map_or(new.get(index), |old| old.tuple().get(index)) != Value::Unchanged;
            prop_assert_eq!(data["old_record"].get(name).is_some(), masks.1.contains(index) && real && there);
        }
    }
}
