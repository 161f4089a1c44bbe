//! With which code a connection is closed.
//!
//! Never 1000 or 1001, after which Python clients don't come back, and never 4000 or above, after which Swift clients don't
//! (`protocol.md` §9.4).

use bytes::Bytes;
use tokio_tungstenite::tungstenite::Error;

use super::{frame, storm};
use crate::hub::CloseReason;
use crate::journal::Note;

/// The close frame for a reason of ours.
pub(super) fn frame_for(reason: CloseReason) -> Bytes {
    match reason {
        CloseReason::Slow => frame::close(1013, "slow consumer, resume"),
        CloseReason::Drain => frame::close(1012, &format!("server restarting, reconnect in {} s", storm::hint())),
        CloseReason::Idle => frame::close(1012, "idle, reconnect"),
        CloseReason::Unanswered => frame::close(1012, "pings unanswered, reconnect"),
        CloseReason::Slot => frame::close(1012, &format!("no changes come in here, reconnect in {} s", storm::hint())),
        CloseReason::Joins => frame::close(1012, "too many joins, reconnect"),
        CloseReason::Protocol => frame::close(1002, "protocol error"),
        CloseReason::Peer => frame::encode(frame::Opcode::Close, &[]),
    }
}

/// What the journal keeps of the end of a connection.
pub(super) fn note(connection: u64, reason: Option<CloseReason>) -> Note {
    let code = match reason {
        Some(CloseReason::Slow) => 1013,
        Some(
            CloseReason::Drain | CloseReason::Idle | CloseReason::Unanswered | CloseReason::Slot | CloseReason::Joins,
        ) => 1012,
        // Of the protocol errors one of several; and of the others, the peer's or none.
        Some(CloseReason::Protocol | CloseReason::Peer) | None => 0,
    };
    Note::Closed { connection, reason: reason.map_or("broken", CloseReason::as_str).into(), code }
}

/// The close frame for what can't be read any further; `None` if the peer is gone already.
pub(super) fn frame_for_error(error: &Error) -> Option<Bytes> {
    match error {
        Error::Capacity(_) => Some(frame::close(1009, "message too big")),
        Error::Utf8(_) => Some(frame::close(1007, "text is not UTF-8")),
        Error::Protocol(tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(frame_for(CloseReason::Protocol)),
        _ => None,
    }
}
