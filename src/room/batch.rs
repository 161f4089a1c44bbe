//! What a room hands to a shard.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use smallvec::SmallVec;

use super::Message;
use super::members::{Blocks, Slot};
use crate::hub::ChannelId;

/// Something for one shard to write, for the members of one room that belong to it.
#[derive(Debug)]
pub struct RoomBatch {
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// For all.
    Casts {
        members: Blocks,
        casts: SmallVec<[Arc<Cast>; 1]>,
        /// Not for this one: it is its own.
        skip: Option<ChannelId>,
    },
    /// `presence_state` for one.
    State { slot: Arc<Slot>, payload: Bytes },
}

/// One message, encoded once in each form that a room's members have.
#[derive(Debug)]
pub struct Cast {
    pub(crate) kind: Kind,
    forms: Box<[OnceLock<Option<Bytes>>]>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Broadcast(Message),
    /// The payload of a `presence_diff`.
    Diff(Bytes),
}

impl Cast {
    pub(super) fn new(kind: Kind, forms: usize) -> Arc<Cast> {
        Arc::new(Cast { kind, forms: (0..forms).map(|_| OnceLock::new()).collect() })
    }

    /// Its frame in this form; `encode` runs if nobody has made it yet. `None`: there is none.
    pub(crate) fn frame(&self, form: usize, encode: impl FnOnce() -> Option<Bytes>) -> Option<&Bytes> {
        self.forms.get(form)?.get_or_init(encode).as_ref()
    }
}
