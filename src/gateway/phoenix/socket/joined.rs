//! What a connection keeps of a channel that the hub knows: its port, and what its receipts prove.
//!
//! Invariant: an instance that has ended gets no further, whatever is still handed over for it.

use std::sync::Arc;

use crate::hub::{Entry, Messages, Port};
use crate::resume::{Cursor, Tracked};

/// A channel as far as its frames and their receipts are concerned.
pub(super) struct Joined {
    pub(super) port: Arc<Port>,
    /// Of a device's channel.
    pub(super) tracked: Option<Arc<Tracked>>,
    /// Which of its frontiers move: those of entries that are in force.
    pub(super) moves: Moves,
    /// From then on the hub withholds rows, and being past them proves nothing. Seconds since 1970.
    pub(super) expires_at: i64,
    /// Changes that had been written at the last question, and how many of the next ones may be about them.
    pub(super) delivered: u64,
    pub(super) fresh: u8,
}

impl Joined {
    /// See [`Port::reached`]. An instance that has ended gets no further: what is handed over for it is not written.
    pub(super) fn reached(&self) -> Option<Cursor> {
        self.port.reached().filter(|_| !self.port.stage.is_closed())
    }

    /// The client joins the channel anew, as it does because of what it has read: of the gaps whose words are out it need not be
    /// told again. Their receipts would come too late, about an instance that is no more.
    pub(super) fn skip_gaps(&self) {
        let Some(tracked) = self.tracked.as_ref().filter(|_| !self.port.stage.is_closed()) else { return };
        let gaps = self.port.place.gaps();
        // In this order: what is known here was queued before.
        if !gaps.is_empty() && self.port.outbox.is_out() {
            let handles = tracked.handles();
            gaps.iter().for_each(|(from, to)| from.iter().for_each(|from| handles.skip(*from, *to)));
        }
    }
}

/// Which frontiers of a channel its receipts move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moves {
    All,
    /// The others were refused: that of messages alone, which is the last.
    Messages,
    /// The others were refused, and messages of a public channel have none.
    Nothing,
}

impl Moves {
    pub(super) fn of(entries: &[Entry]) -> Moves {
        match entries {
            [Entry { messages: Some(Messages { member: Some(_), .. }), .. }] => Moves::Messages,
            [Entry { messages: Some(_), .. }] => Moves::Nothing,
            _ => Moves::All,
        }
    }
}
