//! A connection's places in rooms, and what is on its way from it to them.
//!
//! What one connection sends to rooms is sent in order, one after the other. Nearly always a room takes it at once. When it
//! doesn't, its shards have more to write than they can, and the connection is not read until the room has taken it, or its
//! time is over: so whoever floods a room waits, and not the others' heartbeats.
//!
//! Rejected: a queue per channel. It would be one more bound to choose, and only postpone the waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::task::noop_waker_ref;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::codec::Ref;
use crate::hub::{ChannelId, Stage};
use crate::room::{Message, RoomError, Seat};

/// What has become of something that was sent to a room.
pub(super) enum Sent {
    /// A broadcast, with the answer that its sender wants.
    Broadcast { id: ChannelId, ack: Option<Bytes>, taken: Result<(), RoomError> },
    /// A presence, with the ref of what asked for it and the answer if all is well.
    Tracked { id: ChannelId, reference: Ref, ok: Bytes, taken: Result<(), RoomError> },
    /// A presence state is on its way, or was not taken in time.
    State { id: ChannelId, taken: bool },
    /// The room did not take a broadcast in time, and nobody got it.
    Late,
}

pub(super) type Sending = BoxFuture<'static, Sent>;

/// See the module's comment.
#[derive(Default)]
pub(super) struct Seats {
    seats: HashMap<ChannelId, (Arc<Seat>, Arc<Stage>)>,
    /// The first is under way.
    sending: VecDeque<Sending>,
}

impl Seats {
    /// `stage`: of the port that the seat writes to.
    pub(super) fn enter(&mut self, id: ChannelId, seat: Seat, stage: Arc<Stage>) {
        self.seats.insert(id, (Arc::new(seat), stage));
    }

    /// Nothing more is written for the channel. What it has sent is still taken by the room.
    pub(super) fn leave(&mut self, id: ChannelId) {
        if let Some((_, stage)) = self.seats.remove(&id) {
            stage.close();
        }
    }

    /// The same for all, and what is not sent yet is given up.
    pub(super) fn end(&mut self) {
        self.sending.clear();
        self.seats.drain().for_each(|(_, (_, stage))| stage.close());
    }

    pub(super) fn contains(&self, id: ChannelId) -> bool {
        self.seats.contains_key(&id)
    }

    fn seat(&self, id: ChannelId) -> Option<Arc<Seat>> {
        self.seats.get(&id).map(|(seat, _)| seat.clone())
    }

    /// What sends a broadcast, within a bound.
    pub(super) fn broadcast(
        &self,
        id: ChannelId,
        message: Message,
        echo: bool,
        ack: Option<Bytes>,
        patience: Duration,
    ) -> Option<Sending> {
        let seat = self.seat(id)?;
        let sending = async move {
            match timeout(patience, seat.broadcast(message, echo)).await {
                Ok(taken) => Sent::Broadcast { id, ack, taken },
                Err(_) => Sent::Late,
            }
        };
        Some(sending.boxed())
    }

    /// What tracks a presence, or none.
    pub(super) fn track(
        &self,
        id: ChannelId,
        payload: Option<Arc<RawValue>>,
        (reference, ok): (Ref, Bytes),
        patience: Duration,
    ) -> Option<Sending> {
        let seat = self.seat(id)?;
        let sending = async move {
            let tracking = async {
                match payload {
                    Some(payload) => seat.track(payload).await,
                    None => seat.untrack().await,
                }
            };
            let taken = timeout(patience, tracking).await.unwrap_or(Err(RoomError::Closed));
            Sent::Tracked { id, reference, ok, taken }
        };
        Some(sending.boxed())
    }

    /// What has the room send the presence state.
    pub(super) fn state(&self, id: ChannelId, patience: Duration) -> Option<Sending> {
        let seat = self.seat(id)?;
        let sending = async move {
            let taken = timeout(patience, seat.send_state()).await.is_ok();
            Sent::State { id, taken }
        };
        Some(sending.boxed())
    }

    /// Begins to send, behind what is being sent. The outcome, if it is there at once.
    pub(super) fn send(&mut self, mut sending: Sending) -> Option<Sent> {
        if self.sending.is_empty()
            && let Poll::Ready(sent) = sending.as_mut().poll(&mut Context::from_waker(noop_waker_ref()))
        {
            return Some(sent);
        }
        self.sending.push_back(sending);
        None
    }

    pub(super) fn is_sending(&self) -> bool {
        !self.sending.is_empty()
    }

    /// The outcome of the next one. Nothing is lost if that is not awaited to its end.
    pub(super) async fn sent(&mut self) -> Sent {
        let Some(first) = self.sending.front_mut() else { return std::future::pending().await };
        let sent = first.await;
        self.sending.pop_front();
        sent
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice};

    use tokio::sync::mpsc;

    use super::*;
    use crate::hub::{Outbox, Place, Port, Transmit, Version};
    use crate::room::{Member, RoomConfig, RoomKey, Rooms};

    struct Nowhere;

    impl Transmit for Nowhere {
        fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
            Ok(parts.iter().map(|part| part.len()).sum())
        }
    }

    #[tokio::test]
    async fn what_no_shard_takes_in_time_is_said_to_be_late() {
        let (queue, _full) = mpsc::channel(1);
        let rooms = Rooms::new(RoomConfig::default(), vec![queue], Arc::default());
        let (id, stage) = (ChannelId(1), Arc::new(Stage::greeted()));
        let port = Port {
            id,
            outbox: Arc::new(Outbox::new(Box::new(Nowhere), 1000, Bytes::new())),
            shard: 0,
            topic: "realtime:t".into(),
            version: Version::V2,
            join_ref: "\"1\"".into(),
            stage: stage.clone(),
            place: Place::default(),
        };
        let member = Member { port: Arc::new(port), rights: None, presence: true, key: "k".into(), user: "u".into() };
        let seat = rooms.enter(RoomKey { private: false, topic: "t".into() }, member);
        let mut seats = Seats::default();
        seats.enter(id, seat, stage.clone());
        let short = Duration::from_millis(1);
        let text = || Message::Text { payload: Bytes::from_static(b"1") };
        assert!(matches!(
            seats.broadcast(id, text(), true, None, short).unwrap().await,
            Sent::Broadcast { taken: Ok(()), .. }
        ));
        // The queue is full now, and nobody reads it.
        assert!(matches!(seats.broadcast(id, text(), true, None, short).unwrap().await, Sent::Late));
        assert!(matches!(seats.state(id, short).unwrap().await, Sent::State { taken: false, .. }));
        // What is still under way is not written behind the channel's end.
        seats.leave(id);
        assert!(!stage.is_greeted());
    }
}
