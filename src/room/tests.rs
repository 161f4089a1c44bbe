//! Rooms over queues that the test reads, and with shards that write to paper.

mod model;
mod sharing;

use std::io::{self, IoSlice};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::members::Slot;
use super::*;
use crate::hub::{ChannelId, Outbox, Place, Port, Stage, Transmit, Version};
use crate::task::{self, Drain};

/// A socket that keeps what is written.
#[derive(Clone, Default)]
pub(super) struct Paper(Arc<Mutex<Vec<u8>>>);

impl Transmit for Paper {
    fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut bytes = self.0.lock().unwrap();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Ok(parts.iter().map(|part| part.len()).sum())
    }
}

/// A port whose frames go to the paper.
pub(super) fn port(id: u64, shard: usize, version: Version, stage: Stage) -> (Arc<Port>, Paper) {
    let paper = Paper::default();
    let port = Port {
        id: ChannelId(id),
        outbox: Arc::new(Outbox::new(Box::new(paper.clone()), 1 << 30, Bytes::new())),
        shard,
        topic: "realtime:room".into(),
        version,
        join_ref: "\"1\"".into(),
        stage: Arc::new(stage),
        place: Place::default(),
    };
    (Arc::new(port), paper)
}

pub(super) fn slot(id: u64) -> Arc<Slot> {
    let port = port(id, 0, Version::V2, Stage::greeted()).0;
    Arc::new(Slot { port, rights: None, presence: AtomicBool::new(true), form: 0, missed: AtomicBool::new(false) })
}

/// Rooms whose only shard is the test.
fn rooms(config: RoomConfig) -> (Arc<Rooms>, mpsc::Receiver<RoomBatch>, Drain) {
    let (queue, batches) = mpsc::channel(1024);
    let (rooms, drain) = (Rooms::new(config, vec![queue], Arc::default()), Drain::new());
    drop(task::spawn("rooms", rooms.clone().run(drain.clone())));
    (rooms, batches, drain)
}

fn public(topic: &str) -> RoomKey {
    RoomKey { private: false, topic: topic.into() }
}

fn member(id: u64, user: &str) -> Member {
    let port = port(id, 0, Version::V2, Stage::greeted()).0;
    Member { port, rights: None, presence: true, key: format!("k{id}").into(), user: user.into() }
}

fn text(payload: &'static str) -> Message {
    Message::Text { payload: Bytes::from_static(payload.as_bytes()) }
}

fn raw(text: &str) -> Arc<RawValue> {
    RawValue::from_string(text.into()).unwrap().into()
}

/// What a batch says, and to whom.
async fn next(batches: &mut mpsc::Receiver<RoomBatch>) -> (Vec<u64>, Vec<Value>) {
    let batch = timeout(PATIENCE, batches.recv()).await.expect("in time").expect("rooms");
    match batch.what {
        What::State { slot, payload } => (vec![slot.port.id.0], vec![serde_json::from_slice(&payload).unwrap()]),
        What::Casts { members, casts, skip } => {
            let ids = members.iter().flat_map(|block| block.iter()).map(|slot| slot.port.id);
            let mut ids: Vec<u64> = ids.filter(|id| Some(*id) != skip).map(|id| id.0).collect();
            ids.sort_unstable();
            let say = |cast: &Arc<Cast>| match &cast.kind {
                Kind::Broadcast(Message::Text { payload }) | Kind::Diff(payload) => {
                    serde_json::from_slice(payload).unwrap()
                }
                Kind::Broadcast(Message::Event { event, .. }) => json!(&**event),
            };
            (ids, casts.iter().map(say).collect())
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_message_goes_to_the_others_or_to_all_and_only_of_its_room() {
    let (rooms, mut batches, _drain) = rooms(RoomConfig::default());
    let one = rooms.enter(public("a"), member(1, "u"));
    let two = rooms.enter(public("a"), member(2, "v"));
    let private = RoomKey { private: true, topic: "a".into() };
    let _other = rooms.enter(private.clone(), member(3, "u"));
    one.broadcast(text("1"), false).await.unwrap();
    assert_eq!(next(&mut batches).await, (vec![2], vec![json!(1)]));
    two.broadcast(text("[2]"), true).await.unwrap();
    assert_eq!(next(&mut batches).await, (vec![1, 2], vec![json!([2])]));
    rooms.publish(&private, text("3")).await.unwrap();
    assert_eq!(next(&mut batches).await, (vec![3], vec![json!(3)]));
    rooms.publish(&public("nobody"), text("4")).await.unwrap();
    rooms.publish(&public("a"), text("5")).await.unwrap();
    assert_eq!(next(&mut batches).await, (vec![1, 2], vec![json!(5)]));
}

#[tokio::test]
async fn presence_is_told_and_ends_with_the_seat_and_empty_rooms_are_gone() {
    let (rooms, mut batches, _drain) = rooms(RoomConfig::default());
    let one = rooms.enter(public("a"), member(1, "u"));
    let two = rooms.enter(public("a"), member(2, "v"));
    one.send_state().await;
    assert_eq!(next(&mut batches).await, (vec![1], vec![json!({})]));
    two.track(raw(r#"{"n":1}"#)).await.unwrap();
    let (to, said) = next(&mut batches).await;
    assert_eq!((to, &said[0]["leaves"]), (vec![1, 2], &json!({})));
    two.track(raw(r#"{"n":1}"#)).await.unwrap();
    assert_eq!(two.track(raw("[]")).await, Err(RoomError::NotAMap));
    one.send_state().await;
    assert_eq!(next(&mut batches).await, (vec![1], vec![said[0]["joins"].clone()]));
    assert_eq!(rooms.metrics.presence_metas.get(), 1);
    drop(two);
    assert_eq!(next(&mut batches).await, (vec![1], vec![json!({"joins": {}, "leaves": said[0]["joins"]})]));
    assert_eq!((rooms.metrics.rooms.get(), rooms.metrics.presence_metas.get()), (1, 0));
    drop(one);
    assert_eq!((rooms.metrics.rooms.get(), rooms.metrics.room_members.get()), (0, 0));
}
