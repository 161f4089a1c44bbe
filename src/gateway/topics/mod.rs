//! The topics door, `/api/ws`: a WebSocket for clients without Phoenix, typed JSON in both directions (`TOPICS.md`).
//!
//! It is another serializer of the same session: a frame becomes the joins, leaves and pushes that a Phoenix client would send,
//! and what the session answers is written as typed JSON (`encode::topics`). So rights, cursors, devices and limits are the same
//! by construction, and neither the hub nor the session knows this door.
//!
//! Invariants:
//! * A topic is private unless its frame says `"private": false`: who forgets to say it gets too little, never too much.
//! * What can't be read is answered with an `error` that names it and says what to send instead; the connection lives.
//! * One frame costs memory once, whatever the number of its topics: its messages are made one after another.
//!
//! Fields that no frame of the type has are refused, not ignored: a misspelt `since` would lose what it was to bring.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod read;

use std::sync::Arc;

use bytes::Bytes;

use self::read::Asked;
use super::phoenix::codec::{Message, Ref};
use crate::gateway::encode::topics::{self, Request};
use crate::gateway::limits::GatewayConfig;

/// Why a frame is not understood: code, what is wrong and what to do.
type Mistake = (&'static str, String);

/// What one connection's frames have said so far.
#[derive(Default)]
pub(in crate::gateway) struct Door {
    /// The last one renewed; later subscriptions speak with it.
    token: Option<String>,
}

/// A frame that was understood.
pub(in crate::gateway) struct Frame<'a> {
    asked: Asked<'a>,
    reference: Ref,
}

impl Door {
    /// Reads a text frame, or answers what is wrong with it.
    pub(in crate::gateway) fn read<'a>(&mut self, text: &'a str, config: &GatewayConfig) -> Result<Frame<'a>, Bytes> {
        let mut head = read::Head::default();
        match read::read(text, config, &mut head) {
            Ok(asked) => {
                if let Asked::Token { token } = &asked {
                    self.token = Some(token.clone().into_owned());
                }
                // Every frame that was understood is of a known type.
                let request = head.request.unwrap_or(Request::Ping);
                Ok(Frame { asked, reference: Ref::tagged(request, head.reference) })
            }
            Err((code, message)) => Err(topics::refuse(head.request, head.reference, code, &message)),
        }
    }

    /// What a session is told, one message at a time. `joined`: the full topics of the connection's channels, for a new token.
    pub(in crate::gateway) fn messages<'a>(
        &'a self,
        frame: &'a Frame<'a>,
        joined: &'a [Arc<str>],
    ) -> impl Iterator<Item = Message<'a>> {
        let count = frame.asked.count(joined.len());
        (0..count).map(move |index| {
            let (topic, event, payload) = frame.asked.push(index, joined, self.token.as_deref());
            let (join_ref, reference) = (Ref::NULL, frame.reference.clone());
            Message { join_ref, reference, topic, event: event.into(), payload, push: None }
        })
    }
}

impl Frame<'_> {
    /// Whether it concerns all channels.
    pub(in crate::gateway) fn renews(&self) -> bool {
        matches!(self.asked, Asked::Token { .. })
    }
}

/// The answer to a binary frame.
pub(in crate::gateway) fn refuse_binary() -> Bytes {
    topics::refuse(
        None,
        "",
        "BinaryFrame",
        "this door takes text frames of JSON; send bytes as base64 in a publish frame",
    )
}
