//! Names of the parts that a session works with, until they are there.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::claims::Principal;

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

#[derive(Debug, Clone)]
pub(super) struct Asking {
    pub(super) topic: Arc<str>,
    pub(super) principal: Arc<Principal>,
    pub(super) headers: Arc<str>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Reads {
    pub(super) broadcast: bool,
    pub(super) presence: Option<bool>,
    pub(super) basis: Basis,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Writes {
    pub(super) broadcast: bool,
    pub(super) presence: bool,
    pub(super) basis: Basis,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Basis {
    Followed,
    Until(Instant),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AuthorityError {
    Timeout(String),
    MissingPartition,
    PoolExhausted,
    Unavailable,
    Policy,
    NotInstalled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) id: [u8; 16],
    pub(super) event: String,
    pub(super) payload: StoredPayload,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoredPayload {
    Json(String),
    Binary(Bytes),
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

pub(super) struct Watch;
