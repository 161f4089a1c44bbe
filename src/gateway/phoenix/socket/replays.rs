//! Stored messages are written when the client has read what was written before: the replays of several joins at once may be
//! far more than an outbox holds, and who is closed for that comes back and asks for the same again.
//!
//! The reply of a join that waits for its changes is written by others, when those are active. Until then its bytes count as if
//! they were in the outbox: several such joins may be activated in one instant.
//!
//! Rejected: a larger outbox for them, which is memory for each client that does not read. What waits here is bounded for each
//! connection, and in time.

use std::time::{Duration, Instant};

use futures_util::future::FutureExt as _;
use tracing::debug;

use super::{Connection, Done};
use crate::gateway::phoenix::session::{Effect, FromTable};

/// Between two looks whether there is room.
const LOOK: Duration = Duration::from_millis(20);

impl Connection {
    /// Stored messages were read, or could not be.
    pub(super) fn stored(&mut self, number: u64, stored: Option<FromTable>) -> Vec<Effect> {
        let now = self.now();
        let Some(stored) = stored.and_then(|mut stored| self.session.make_room(&mut stored).then_some(stored)) else {
            return self.session.stored(number, None, now);
        };
        let waiting = self.outbox.waiting() + self.session.promised();
        // An empty outbox takes whatever is one answer.
        if waiting == 0 || waiting + stored.size() <= self.outbox.limit() {
            return self.session.stored(number, Some(stored), now);
        }
        if stored.until <= Instant::now() {
            debug!(connection = self.number, "stored messages are not replayed: the client does not read");
            return self.session.stored(number, None, now);
        }
        let later = async move {
            tokio::time::sleep(LOOK).await;
            Done::Stored(number, Some(stored))
        };
        self.questions.push(later.boxed());
        Vec::new()
    }
}
