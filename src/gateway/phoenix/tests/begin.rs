//! Where joins begin, and what their replies tell of it.

use super::*;
use crate::change::{Lsn, Position, Timestamp};
use crate::hub::Start;
use crate::log::Epoch;
use crate::resume::Cursor;

/// A client whose relay's log has a history, and where that ends.
fn client_at(lsn: u64) -> (Client, Cursor) {
    let client = client();
    let epoch = Epoch { system_identifier: 1, incarnation: 7 };
    client.writer.lock().unwrap().begin_epoch(epoch, Lsn(lsn)).unwrap();
    let position = Position { lsn: Lsn(lsn), ordinal: u32::MAX };
    (client, Cursor { epoch: epoch.tag(), position })
}

#[test]
fn a_join_begins_at_the_place_that_its_reply_tells() {
    let (mut client, here) = client_at(100);
    let key = client.shared.cursor_key.clone();
    let place = |lsn| Cursor { position: Position { lsn: Lsn(lsn), ordinal: 4 }, ..here };
    let (one, two) = (key.seal(place(50)), key.seal(place(60)));
    let foreign = CursorKey::new([2; 32]).seal(here);
    let (now, time) = (Start::After(here), Start::Time(Timestamp(-Timestamp::UNIX_OFFSET_MICROS)));
    for (since, starts, told) in [
        (json!([null, null]), vec![now, now], Some(here)),
        (json!([two, one]), vec![Start::After(place(60)), Start::After(place(50))], Some(place(50))),
        (json!([two, null]), vec![Start::After(place(60)), now], Some(place(60))),
        (json!([0, null]), vec![time, now], None),
        (json!([foreign, one]), vec![Start::Lost, Start::After(place(50))], None),
    ] {
        let entries: Vec<Value> =
            since.as_array().unwrap().iter().map(|since| json!({"table": "t", "since": since})).collect();
        for wait in [false, true] {
            let options = json!({"wait": wait});
            let config = json!({"postgres_changes": entries, "postgres_changes_options": options});
            let frames = client.join("realtime:t", json!({"config": config}));
            let Some(Effect::Subscribe { id, entries, greeting, .. }) = client.wants.pop() else { panic!("{since}") };
            let begins: Vec<Start> = entries.iter().map(|entry| entry.start).collect();
            assert_eq!((&begins[..2], begins[2]), (&starts[..], now), "{since}");
            let reply = greeting.map_or_else(|| frames[0].clone(), |greeting| texts(&greeting)[0].clone());
            let cursor = reply[4]["response"].get("cursor").and_then(Value::as_str);
            assert_eq!(cursor.map(|text| key.open(text).unwrap()), told, "{since}");
            let activated = Activated { cursor: Some(here), ..Activated::default() };
            let frames = client.answer(id, Ok(activated));
            assert_eq!(frames.last().unwrap()[4]["cursor"], key.seal(here));
            client.send(json!(["1", "9", "realtime:t", "phx_leave", {}]));
            client.wants.clear();
        }
    }
    let frames = client.join("realtime:t", json!({}));
    assert_eq!(frames[0][4]["response"], json!({"postgres_changes": []}), "nothing to come back to");
}

#[test]
fn a_place_that_is_none_is_refused_and_the_text_says_which_key() {
    let (mut client, here) = client_at(100);
    let good = client.shared.cursor_key.seal(here);
    let forged = format!("{}A", &good[..54]);
    for since in [json!("x"), json!(""), json!(forged), json!(format!("{good} ")), json!(true), json!({})] {
        let entries = json!([{"table": "t"}, {"table": "u", "since": since}]);
        let frames = client.join("realtime:t", json!({"config": {"postgres_changes": entries}}));
        assert_eq!((&frames[0][4]["status"], frames[0][4]["response"].get("cursor")), (&json!("ok"), None), "{since}");
        let message = frames[1][4]["message"].as_str().unwrap();
        assert!(message.starts_with("Error parsing `since`: "), "{message}");
        assert!(client.wants.is_empty());
        client.send(json!(["1", "9", "realtime:t", "phx_leave", {}]));
        let config = json!({"postgres_changes": entries, "postgres_changes_options": {"wait": true}});
        let reason = client.reason(json!({"config": config}));
        assert!(reason.starts_with("RealtimeDisabledForConfiguration: Error parsing `since`: "), "{reason}");
        client.pass(10);
    }
}

#[test]
fn before_the_first_history_there_is_no_place() {
    let mut client = client();
    let frames = client.join("realtime:t", todos());
    assert!(frames[0][4]["response"].get("cursor").is_none());
    let Some(Effect::Subscribe { entries, .. }) = client.wants.pop() else { panic!() };
    assert!(entries.iter().all(|entry| entry.start == Start::Now));
}

#[test]
fn who_keeps_cursors_is_given_fresh_ones_while_it_is_quiet_and_others_are_not() {
    let (mut client, here) = client_at(100);
    let key = client.shared.cursor_key.clone();
    let mut ids = Vec::new();
    for (topic, entry) in [
        ("realtime:a", json!({"table": "t", "since": null})),
        ("realtime:b", json!({"table": "t", "cursor_as": "_c"})),
        ("realtime:c", json!({"table": "t"})),
    ] {
        client.join(topic, json!({"config": {"postgres_changes": [entry]}}));
        let id = client.subscribed();
        client.answer(id, Ok(Activated::default()));
        ids.push(id);
    }
    let later = Cursor { position: Position { lsn: Lsn(200), ordinal: u32::MAX }, ..here };
    let told = |client: &mut Client, hours: u64, reached: Option<Cursor>| {
        client.now.at += Duration::from_secs(hours * 3600);
        let effects = client.session.freshen(client.now.at, |_| reached);
        let mut frames: Vec<_> = client
            .sort(effects)
            .into_iter()
            .map(|frame| {
                let (topic, body) = (frame[2].as_str().unwrap().to_owned(), &frame[4]);
                assert_eq!((&body["status"], &body["message"]), (&json!("ok"), &json!("Cursor")));
                (topic, key.open(body["cursor"].as_str().unwrap()).unwrap())
            })
            .collect();
        frames.sort_by_key(|frame| frame.0.clone());
        frames
    };
    let both = |cursor| vec![("realtime:a".to_owned(), cursor), ("realtime:b".to_owned(), cursor)];
    assert_eq!(told(&mut client, 2, Some(later)), []);
    assert_eq!(told(&mut client, 1, None), [], "not active yet");
    assert_eq!(told(&mut client, 0, Some(here)), [], "it has that one");
    assert_eq!(told(&mut client, 0, Some(later)), both(later));
    assert_eq!(told(&mut client, 2, Some(here)), [], "a fresh one");
    let latest = Cursor { position: Position { lsn: Lsn(300), ordinal: u32::MAX }, ..here };
    client.shared.clock.advance(-client.shared.clock.unix_millis() + (NOW + 3600) * 1000);
    assert_eq!(told(&mut client, 3, Some(latest)), [], "what its token no longer shows has not passed it by");
    client.shared.clock.advance(-1000);
    assert_eq!(told(&mut client, 0, Some(latest)), both(latest));
}
