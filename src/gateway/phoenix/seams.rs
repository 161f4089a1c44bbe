//! Names of the parts that a session works with, until they are there.

use std::sync::Arc;

use bytes::Bytes;

/// See `room`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Payload {
    Json(Bytes),
    Binary(Bytes),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RoomMessage {
    Text { payload: Bytes },
    Event { event: Arc<str>, payload: Payload, meta: Option<Bytes> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RoomError {
    TooManyMessages,
    TooManyPresence,
    Closed,
}

pub(super) struct Seat;

impl Seat {
    pub(super) async fn broadcast(&self, _message: RoomMessage, _to_self: bool) -> Result<(), RoomError> {
        Ok(())
    }
    pub(super) async fn track(&self, _payload: Arc<serde_json::value::RawValue>) -> Result<(), RoomError> {
        Ok(())
    }
    pub(super) async fn untrack(&self) -> Result<(), RoomError> {
        Ok(())
    }
    pub(super) async fn send_state(&self) {}
}
