//! What a session has to know from elsewhere, each asked within a bound: rights on a private channel, stored messages, whether
//! the stream flows.

use std::sync::Arc;

use super::seams::{Asking, AuthorityError, Reads, Seat, Stored, Watch, Writes};
use super::session::Place;
use super::socket::Done;
use crate::gateway::Shared;
use crate::hub::{ChannelId, Port};
use crate::policy::Rights;

pub(super) async fn read(_shared: Arc<Shared>, number: u64, _asking: Asking, _presence: bool) -> Done {
    Done::Read(number, Err::<Reads, _>(AuthorityError::NotInstalled))
}

pub(super) async fn write(_shared: Arc<Shared>, number: u64, _asking: Asking) -> Done {
    Done::Wrote(number, Err::<Writes, _>(AuthorityError::NotInstalled))
}

pub(super) async fn stored(_shared: Arc<Shared>, number: u64, _topic: Arc<str>, _since: i64, _limit: u32) -> Done {
    Done::Stored(number, None::<Vec<Stored>>)
}

/// Whether changes stream, now or in time.
pub(super) async fn streams(shared: Arc<Shared>, id: ChannelId) -> Done {
    let mut ready = shared.ready.clone();
    let flowing = tokio::time::timeout(shared.config.stream_patience, ready.wait_for(|ready| *ready)).await;
    Done::Streams(id, matches!(flowing, Ok(Ok(_))))
}

pub(super) fn enter(_shared: &Shared, _port: Arc<Port>, _seat: Place) -> Seat {
    Seat
}

pub(super) fn watch(_shared: &Shared, _asking: Asking, _rights: Arc<Rights>) -> Watch {
    Watch
}
