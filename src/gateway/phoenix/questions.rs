//! What a session has to know from elsewhere, each asked within a bound: rights on a private channel, stored messages, whether
//! the stream flows.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout;
use tracing::warn;

use super::session::{FromTable, Place};
use super::socket::Done;
use crate::authority::{Asking, AuthorityError, Watch};
use crate::error::chain;
use crate::gateway::Shared;
use crate::hub::{ChannelId, Footing, Port};
use crate::messages::{self, Reading, ReplayError};
use crate::policy::Rights;
use crate::room::{Member, RoomKey, Seat};

/// As Postgres says it.
fn late() -> AuthorityError {
    AuthorityError::Timeout("canceling statement due to statement timeout".into())
}

/// What may be read.
pub(super) async fn read(shared: Arc<Shared>, number: u64, asking: Asking, presence: bool) -> Done {
    let answer = timeout(shared.config.rights_timeout, shared.authority.read(&asking, presence)).await;
    Done::Read(number, answer.unwrap_or_else(|_| Err(late())))
}

/// What may be written.
pub(super) async fn write(shared: Arc<Shared>, number: u64, asking: Asking) -> Done {
    let answer = timeout(shared.config.rights_timeout, shared.authority.write(&asking)).await;
    Done::Wrote(number, answer.unwrap_or_else(|_| Err(late())))
}

/// Messages of the table.
pub(super) async fn stored(shared: Arc<Shared>, number: u64, topic: Arc<str>, since: i64, limit: u32) -> Done {
    let reading = async {
        let turn = messages::turn().await;
        // In its turn: what the stream has and others may not see yet is as much as there was since the last look.
        let Some(footing) = shared.hub.footing().await else { return Ok(None) };
        let reading = messages::replay(&shared.pool, turn, &topic, since, limit).await?;
        Ok::<_, ReplayError>(Some(from_table(&footing, reading, Instant::now() + shared.config.rights_timeout)))
    };
    let stored = match timeout(shared.config.rights_timeout, reading).await {
        Ok(Ok(stored)) => {
            if stored.is_none() {
                warn!("there is no stream to join stored messages to");
            }
            stored
        }
        Ok(Err(error)) => {
            warn!(error = %chain(&error), "stored messages could not be read");
            None
        }
        Err(_) => {
            warn!("stored messages could not be read in time");
            None
        }
    };
    Done::Stored(number, stored)
}

fn from_table(footing: &Footing, reading: Reading, by: Instant) -> FromTable {
    let Reading { stored: messages, sees, until } = reading;
    let ids = messages.iter().map(|stored| stored.id).collect();
    let (start, replayed) = footing.replayed(sees, until, ids);
    FromTable { messages, start, replayed: Arc::new(replayed), room: None, until: by }
}

/// Whether changes stream, now or in time.
pub(super) async fn streams(shared: Arc<Shared>, id: ChannelId) -> Done {
    let mut ready = shared.ready.clone();
    let flowing = timeout(shared.config.stream_patience, ready.wait_for(|ready| *ready)).await;
    Done::Streams(id, matches!(flowing, Ok(Ok(_))))
}

/// A seat in the room of the port's topic.
pub(super) fn enter(shared: &Shared, port: Arc<Port>, seat: Place) -> Seat {
    let Place { rights, presence, key, user } = seat;
    let topic = port.topic.strip_prefix("realtime:").unwrap_or(&port.topic).into();
    shared.rooms.enter(RoomKey { private: rights.is_some(), topic }, Member { port, rights, presence, key, user })
}

pub(super) fn watch(shared: &Shared, asking: Asking, rights: Arc<Rights>) -> Watch {
    shared.authority.watch(&asking, rights)
}
