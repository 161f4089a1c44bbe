//! Names of the parts that this works with, until they are there.

use std::sync::Arc;

use bytes::Bytes;

use crate::claims::Principal;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::gateway) struct RoomKey {
    pub(in crate::gateway) private: bool,
    pub(in crate::gateway) topic: Arc<str>,
}

#[derive(Debug, Clone)]
pub(in crate::gateway) enum Payload {
    Json(Bytes),
    Binary(Bytes),
}

#[derive(Debug, Clone)]
pub(in crate::gateway) enum Message {
    Text { payload: Bytes },
    Event { event: Arc<str>, payload: Payload, meta: Option<Bytes> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum RoomError {
    TooManyMessages,
    Closed,
}

pub(in crate::gateway) struct Asking {
    pub(in crate::gateway) topic: Arc<str>,
    pub(in crate::gateway) principal: Arc<Principal>,
    pub(in crate::gateway) headers: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::gateway) enum AuthorityError {
    Timeout(String),
    MissingPartition,
    PoolExhausted,
    Unavailable,
    Policy,
    NotInstalled,
}

/// Until rooms are there.
pub(in crate::gateway) struct Nowhere;

impl super::Exchange for Nowhere {
    fn may_write(&self, asking: Asking) -> futures_util::future::BoxFuture<'_, Result<bool, AuthorityError>> {
        drop(asking);
        Box::pin(async { Err(AuthorityError::NotInstalled) })
    }

    fn publish(&self, room: RoomKey, message: Message) -> futures_util::future::BoxFuture<'_, Result<(), RoomError>> {
        drop((room, message));
        Box::pin(async { Err(RoomError::Closed) })
    }
}
