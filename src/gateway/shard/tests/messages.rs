//! Database broadcasts with a shard that writes to paper.

use serde_json::Value as Json;

use super::*;
use crate::change::{Change, Lsn, Position, RelationColumn, ReplicaIdentity, RowChange, Timestamp, Tuple, Value};
use crate::hub::{Ids, Member};
use crate::policy::{Verdict, may_have_message};

const ID: &str = "6ecd8c99-4036-403d-bf84-cf8400f67836";

/// A row of `realtime.messages` in the stream: the payload is bytes if it begins with `\x`.
fn message(event: &str, payload: &str) -> Arc<Event> {
    let column = |name: &str| RelationColumn { name: name.into(), type_oid: 25, type_modifier: -1, key: false };
    let names = ["topic", "extension", "event", "private", "payload", "binary_payload", "id"];
    let relation = Arc::new(Relation {
        oid: 7,
        schema: "realtime".into(),
        table: "messages".into(),
        identity: ReplicaIdentity::Default,
        columns: names.map(column).into(),
    });
    let text = |text: &'static str| Value::Text(text.as_bytes());
    let payload = Value::Text(payload.as_bytes());
    let (json, bytes) = if payload.as_str().is_some_and(|text| text.starts_with(r"\x")) {
        (Value::Null, payload)
    } else {
        (payload, Value::Null)
    };
    let values = [text("room"), text("broadcast"), Value::Text(event.as_bytes()), text("f"), json, bytes, text(ID)];
    let change = Change::Insert { new: Tuple::from_values(values.into_iter()) };
    let row = RowChange { relation, position: Position { lsn: Lsn(5), ordinal: 0 }, change };
    Arc::new(Event::new(Arc::new(row), Timestamp(0), Instant::now(), Arc::new(Types::default()), Some(1)).of_message())
}

fn member(version: Version, cursor_as: Option<&str>) -> (Member, Paper) {
    let paper = Paper::default();
    let port = Port {
        id: ChannelId(1),
        outbox: paper.outbox(),
        shard: 0,
        topic: "realtime:room".into(),
        version,
        join_ref: "null".into(),
        stage: Arc::new(Stage::greeted()),
        place: Place::default(),
    };
    let (ids, cursor_as) = (Ids::from_slice(&[0]), cursor_as.map(Into::into));
    (Member { port: Arc::new(port), ids, cursor_as, cost: 0 }, paper)
}

fn send(shard: &mut Shard, event: &Arc<Event>, members: Vec<Member>) {
    let Verdict::Permit(permit) = may_have_message(None, None) else { panic!("the public may") };
    shard.write(vec![Outgoing::Change(Fanout { event: permit.admit(event.clone()), members })].into());
}

/// What is on it, without the frames' headers.
fn written(paper: &Paper) -> Vec<u8> {
    let bytes = std::mem::take(&mut *paper.0.lock().unwrap());
    match bytes.get(1) {
        None => bytes,
        Some(126) => bytes[4..].to_vec(),
        Some(_) => bytes[2..].to_vec(),
    }
}

#[test]
fn each_version_reads_a_message_in_its_own_way_and_all_of_one_version_share_a_frame() {
    let mut shard = shard();
    let event = message("ping", r#"{"a": 1}"#);
    let (one, old) = member(Version::V1, None);
    let (two, new) = member(Version::V2, None);
    let (three, same) = member(Version::V2, None);
    let (four, placeless) = member(Version::V1, Some(NO_CURSOR));
    send(&mut shard, &event, vec![one, two, three, four]);
    let cursor = event.cursor(&shard.key).unwrap().to_owned();
    let read: Json = serde_json::from_slice(&written(&old)).unwrap();
    assert_eq!(read["payload"]["payload"], serde_json::json!({"a": 1}));
    assert_eq!(read["payload"]["meta"], serde_json::json!({"id": ID, "cursor": cursor}));
    let read: Json = serde_json::from_slice(&written(&placeless)).unwrap();
    assert_eq!(read["payload"]["meta"], serde_json::json!({ "id": ID }));
    let (new, same) = (written(&new), written(&same));
    assert!(new.starts_with(b"\x04\x0d\x04") && new.ends_with(br#"{"a": 1}"#) && new[4] == 1, "{new:?}");
    assert_eq!(new, same);
    assert!(String::from_utf8_lossy(&new).contains(&cursor));
}

#[test]
fn who_can_not_be_told_in_his_version_is_left_out_and_counted() {
    let mut shard = shard();
    let dropped = |shard: &Shard, reason| shard.metrics.messages_dropped.get_or_create(&[("reason", reason)]).get();
    let (one, old) = member(Version::V1, None);
    let (two, new) = member(Version::V2, None);
    send(&mut shard, &message("bytes", r"\x00ff"), vec![one.clone(), two.clone(), one.clone()]);
    assert!(written(&old).is_empty());
    assert!(written(&new).ends_with(&[0, 0xff]));
    assert_eq!((dropped(&shard, "binary"), dropped(&shard, "header")), (2, 0));
    send(&mut shard, &message(&"e".repeat(256), "1"), vec![one, two]);
    assert!(!written(&old).is_empty() && written(&new).is_empty());
    assert_eq!((dropped(&shard, "binary"), dropped(&shard, "header")), (2, 1));
}
