//! Messages from the database: what is replayed, from where on the rest comes, and when it flows (items 106–113).

use futures_util::FutureExt as _;

use super::super::session::FromTable;
use super::*;
use crate::authority::{Basis, Reads};
use crate::catalog::Snapshot;
use crate::change::{Lsn, Position};
use crate::hub::{Footing, Start};
use crate::messages::{Stored, StoredPayload};
use crate::policy::{Right, Way};

const REFUSED: &str = "UnableToReplayMessages: Replay params are not valid";

/// A client whose private join with this replay may read broadcasts; what that brought.
fn replaying(version: Version, replay: Value, may: bool) -> (Client, Vec<Value>) {
    let mut client = client_of(version, GatewayConfig::default());
    let payload = json!({"config": {"private": true, "broadcast": {"replay": replay}, "presence": {"enabled": true}}});
    let frames = match version {
        Version::V1 => client.raw(
            &json!({"topic": "realtime:t", "event": "phx_join", "payload": payload, "ref": "1", "join_ref": null})
                .to_string(),
        ),
        _ => client.join("realtime:t", payload),
    };
    assert!(frames.is_empty());
    let Some(Effect::Read { number, .. }) = client.asks.pop() else { panic!() };
    let reads = Reads { broadcast: may, presence: Some(true), basis: Basis::Followed };
    let effects = client.session.read_answered(number, Ok(reads), client.now);
    let frames = client.sort(effects);
    (client, frames)
}

fn stored() -> Vec<Stored> {
    let json = Stored { id: [1; 16], event: "e\"v".into(), payload: StoredPayload::Json(r#"{"a": 1}"#.into()) };
    let binary = StoredPayload::Binary(Bytes::from_static(b"\xde\xad"));
    vec![json, Stored { id: [2; 16], event: "bin".into(), payload: binary }]
}

fn answer(client: &mut Client, told: Option<Vec<Stored>>) -> Vec<Effect> {
    let Some(Effect::Stored { number, .. }) = client.asks.pop() else { panic!() };
    client.session.stored(number, told.map(from_table), client.now)
}

/// Where the tail begins.
const START: crate::resume::Cursor =
    crate::resume::Cursor { epoch: 7, position: Position { lsn: Lsn(100), ordinal: u32::MAX } };

fn from_table(messages: Vec<Stored>) -> FromTable {
    let ids = messages.iter().map(|stored| stored.id).collect();
    let sees = Snapshot::parse("9:9:").unwrap();
    let (start, replayed) = Footing::of(START).replayed(sees, Lsn(200), ids);
    FromTable { messages, start, replayed: Arc::new(replayed), room: None, until: Instant::now() }
}

fn greeting(effects: &[Effect]) -> Bytes {
    let greeting = effects.iter().find_map(|effect| match effect {
        Effect::Greet { greeting, .. } => Some(greeting.clone()),
        _ => None,
    });
    greeting.unwrap()
}

#[test]
fn stored_messages_follow_the_reply_and_are_skipped_later() {
    let (mut client, frames) = replaying(Version::V2, json!({"since": 5, "limit": 2}), true);
    assert!(frames.is_empty());
    let Some(Effect::Stored { topic, since: 5, limit: 2, .. }) = client.asks.last() else { panic!() };
    assert_eq!(&**topic, "t");
    let effects = answer(&mut client, Some(stored()));
    let frames = greeting(&effects);
    let binary = b"\x82\x51\x04\x0a\x03\x3d\x00realtime:tbin{\"replayed\":true,\"id\":\"02020202-0202-0202-0202-020202020202\"}\xde\xad";
    assert_eq!(&frames[frames.len() - binary.len()..], binary);
    let frames = texts(&frames[..frames.len() - binary.len()]);
    assert_eq!(frames[0][4]["status"], "ok");
    let meta = json!({"replayed": true, "id": "01010101-0101-0101-0101-010101010101"});
    let payload = json!({"type": "broadcast", "event": "e\"v", "payload": {"a": 1}, "meta": meta});
    assert_eq!(frames[1], json!(["1", null, "realtime:t", "broadcast", payload]));
    let Some(Effect::Subscribe { entries, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(entries[0].messages.as_ref().unwrap().replayed.as_ref().unwrap().ids(), [[1; 16], [2; 16]]);
    assert_eq!(entries[0].start, Start::After(START));
    let order: Vec<bool> = effects.iter().map(|effect| matches!(effect, Effect::PresenceState(_))).collect();
    assert_eq!(order.iter().position(|state| *state), Some(2), "behind the reply");
}

#[test]
fn version_1_gets_no_stored_bytes() {
    let (mut client, _) = replaying(Version::V1, json!({"since": 5}), true);
    let effects = answer(&mut client, Some(stored()));
    let frames = texts(&greeting(&effects));
    assert_eq!(frames.len(), 2);
    assert_eq!((&frames[1]["event"], &frames[1]["ref"]), (&json!("broadcast"), &json!(null)));
}

#[test]
fn at_the_topics_door_stored_bytes_come_as_they_do_live() {
    let stored =
        codec::replayed_binary(Version::Topics, "realtime:t", "bin", r#"{"replayed":true,"id":"i"}"#, b"\xde\xad");
    let message =
        crate::hub::Message { private: true, topic: "t", event: "bin", id: "i", body: crate::hub::Body::Hex(b"dead") };
    let live = crate::gateway::encode::message_frame(Version::Topics, "realtime:t", &message, None).unwrap();
    let read = |frame: &Bytes| serde_json::from_slice::<Value>(&frame[2..]).unwrap();
    let (stored, mut live) = (read(&stored.unwrap()), read(&live));
    assert_eq!((&live["encoding"], &live["payload"]), (&json!("base64"), &json!("3q0=")));
    live["meta"]["replayed"] = json!(true);
    assert_eq!(stored, live);
}

#[test]
fn what_can_not_be_replayed_refuses_the_join() {
    let config =
        |replay: Value, private: bool| json!({"config": {"private": private, "broadcast": {"replay": replay}}});
    for replay in [json!({"since": 5}), json!({}), json!("x")] {
        let reason = client().reason(config(replay, false));
        assert_eq!(reason, "UnableToReplayMessages: Replay is not allowed for public channels");
    }
    for replay in [json!({}), json!({"since": "5"}), json!({"since": 5, "limit": "2"}), json!({"cursor": "x"})] {
        let (client, frames) = replaying(Version::V2, replay, true);
        assert_eq!(frames[0][4]["response"]["reason"], REFUSED);
        assert!(client.asks.is_empty());
    }
    let (_, frames) = replaying(Version::V2, json!({"since": 5}), false);
    assert_eq!(
        frames[0][4]["response"]["reason"],
        "Unauthorized: You do not have permissions to read from this Channel topic: t"
    );
    let (mut client, _) = replaying(Version::V2, json!({"since": 5}), true);
    let effects = answer(&mut client, None);
    let frames = client.sort(effects);
    assert_eq!(frames[0][4]["response"]["reason"], "UnableToReplayMessages: Realtime was unable to replay messages");
}

#[test]
fn a_cursor_says_where_messages_begin() {
    let key = CursorKey::new([1; 32]);
    let place = crate::resume::Cursor { epoch: 7, position: crate::change::Position::default() };
    let foreign = CursorKey::new([2; 32]).seal(place);
    for (cursor, start) in [(key.seal(place), Start::After(place)), (foreign, Start::Lost)] {
        let (mut client, frames) = replaying(Version::V2, json!({"cursor": cursor}), true);
        assert_eq!(frames[0][4]["status"], "ok");
        let Some(Effect::Subscribe { entries, .. }) = client.quiet.pop() else { panic!() };
        assert_eq!(entries[0].start, start);
    }
}

#[test]
fn who_asked_is_told_when_the_stream_flows_or_loses_the_channel() {
    for flows in [true, false] {
        let mut client = client();
        client.join("realtime:t", json!({"config": {"broadcast": {"replication_ready": true}}}));
        let Some(Effect::AwaitStream(id)) = client.asks.pop() else { panic!() };
        let effects = client.session.stream_awaited(id, flows, client.now);
        let frames = client.sort(effects);
        if flows {
            assert_eq!(frames, [system("system", "ok", "Replication connection established")]);
        } else {
            let text = "Replication connection was not established in time";
            assert_eq!(frames[0], system("system", "error", text));
            assert_eq!(frames[1][3], "phx_close");
        }
    }
    let mut client = client();
    client.join("realtime:t", json!({}));
    assert!(!client.asks.iter().any(|ask| matches!(ask, Effect::AwaitStream(_))));
}

#[test]
fn a_right_that_ends_while_stored_messages_are_read_refuses_the_join() {
    let (mut client, _) = replaying(Version::V2, json!({"since": 5}), true);
    let [Effect::Watch { id, rights, .. }, Effect::Stored { .. }] = &*client.asks else { panic!("{:?}", client.asks) };
    let (watched, rights) = (*id, rights.clone());
    rights.set(Right::ReadBroadcast, Some(false));
    let effects = answer(&mut client, Some(stored()));
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Leave(id) if *id == watched)), "the watch ends");
    let frames = client.sort(effects);
    assert_eq!(frames.len(), 1, "nothing is replayed");
    let reason = frames[0][4]["response"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("Unauthorized"), "{reason}");
    // One that is only not followed any more is asked for again.
    let (mut client, _) = replaying(Version::V2, json!({"since": 5}), true);
    let [Effect::Watch { rights, .. }, _] = &*client.asks else { panic!() };
    rights.set(Right::ReadBroadcast, None);
    let effects = answer(&mut client, Some(stored()));
    let [Effect::Read { number, .. }] = &*effects else { panic!("{effects:?}") };
    let reads = Reads { broadcast: true, presence: Some(true), basis: Basis::Followed };
    let effects = client.session.read_answered(*number, Ok(reads), client.now);
    assert!(!greeting(&effects).is_empty());
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Watch { .. })));
}

#[test]
fn what_happens_to_rights_while_stored_messages_are_read_is_looked_at_by_the_channel() {
    let (mut client, _) = replaying(Version::V2, json!({"since": 5}), true);
    let [Effect::Watch { rights, .. }, Effect::Stored { .. }] = &*client.asks else { panic!("{:?}", client.asks) };
    let rights = rights.clone();
    let is_woken = |client: &Client| client.session.changed().notified().now_or_never().is_some();
    rights.set_old(Way::Read, true);
    assert!(is_woken(&client) && client.session.rights_changed(client.now).is_empty());
    assert!(!greeting(&answer(&mut client, Some(stored()))).is_empty());
    assert!(is_woken(&client));
    assert!(client.session.rights_changed(client.now).is_empty());
    let bound = client.shared.config.rights_recheck.as_secs() + 1;
    client.asks.clear();
    client.pass(bound);
    assert!(matches!(client.asks.as_slice(), [Effect::Read { .. }]), "{:?}", client.asks);
    // A join that is held looks at once, too.
    let mut client = self::client();
    assert!(waiting_with(&mut client, "realtime:t", 10).is_empty());
    assert!(is_woken(&client));
}

/// A join whose reply waits for its changes, with a replay of so many bytes; what is said at once.
fn waiting_with(client: &mut Client, topic: &str, size: usize) -> Vec<Value> {
    let mut payload = todos();
    payload["config"]["private"] = json!(true);
    payload["config"]["broadcast"] = json!({"replay": {"since": 5}});
    payload["config"]["postgres_changes_options"] = json!({"wait": true, "timeout": 10_000});
    assert!(client.join(topic, payload).is_empty());
    let Some(Effect::Read { number, .. }) = client.asks.pop() else { panic!() };
    let reads = Reads { broadcast: true, presence: Some(true), basis: Basis::Followed };
    let effects = client.session.read_answered(number, Ok(reads), client.now);
    client.sort(effects);
    let payload = StoredPayload::Binary(vec![0; size - 1].into());
    let effects = answer(client, Some(vec![Stored { id: [1; 16], event: "e".into(), payload }]));
    client.sort(effects)
}

#[test]
fn what_waits_to_be_replayed_is_bounded_on_all_topics_together() {
    const MOST: usize = crate::messages::MOST_BYTES as usize;
    let mut client = client();
    let mut ids = Vec::new();
    for topic in ["realtime:a", "realtime:b"] {
        assert!(waiting_with(&mut client, topic, MOST / 2).is_empty());
        ids.push(client.subscribed());
    }
    let told = waiting_with(&mut client, "realtime:c", 1000);
    assert_eq!(told[0][4]["response"]["reason"], "UnableToReplayMessages: Realtime was unable to replay messages");
    // One that is answered, refused or left makes room again.
    client.session.answered(ids[0], Ok(Activated::default()), client.now);
    client.wants.clear();
    assert!(waiting_with(&mut client, "realtime:d", MOST / 2).is_empty());
    let refused = Err(SubscribeError { message: "no".into(), retry: false });
    let id = client.subscribed();
    client.session.answered(id, refused, client.now);
    assert!(waiting_with(&mut client, "realtime:e", MOST / 2).is_empty());
    client.send(json!(["1", "9", "realtime:b", "phx_leave", {}]));
    assert!(waiting_with(&mut client, "realtime:f", MOST / 2).is_empty());
    let told = waiting_with(&mut client, "realtime:g", 1000);
    assert_eq!(told[0][4]["status"], "error");
}

#[test]
fn what_a_held_reply_will_bring_is_promised_until_it_is_written_or_given_up() {
    let mut client = client();
    let mut payload = todos();
    payload["config"]["postgres_changes_options"] = json!({"wait": true, "timeout": 10_000});
    assert!(client.join("realtime:none", payload).is_empty());
    client.wants.clear();
    assert_eq!(client.session.promised(), 0, "it has nothing to replay, and holds nobody up");
    let mut ids = Vec::new();
    for (topic, least) in [("realtime:a", 3000), ("realtime:b", 6000), ("realtime:c", 9000)] {
        assert!(waiting_with(&mut client, topic, 3000).is_empty());
        assert!((least..least + 3000).contains(&client.session.promised()), "{}", client.session.promised());
        ids.push(client.subscribed());
    }
    client.session.answered(ids[0], Ok(Activated::default()), client.now);
    assert!((6000..9000).contains(&client.session.promised()));
    client.session.answered(ids[1], Err(SubscribeError { message: "no".into(), retry: false }), client.now);
    client.send(json!(["1", "9", "realtime:c", "phx_leave", {}]));
    assert_eq!(client.session.promised(), 0);
}
