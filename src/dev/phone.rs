//! A user's phone in the demonstration: a [`crate::client::Connection`] that watches `session_events`.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{DemoUser, DevError};
use crate::client::{Address, Asked, ClientError, Connection, Message, Wanted};
use crate::error::chain;

const TABLE: &str = "session_events";

/// One subscribed client.
pub(super) struct Phone {
    who: &'static str,
    connection: Connection,
}

/// A change, as it arrived.
pub(super) struct Received {
    /// When its frame was read.
    pub(super) at: Instant,
    /// `data` of the frame.
    pub(super) data: Value,
}

impl Phone {
    /// Connects and subscribes; returns once the server says that changes flow.
    pub(super) async fn subscribe(base_url: &str, user: &DemoUser, limit: Duration) -> Result<Phone, DevError> {
        let who = user.name;
        let failed = |error: ClientError| DevError::Phone { who, what: chain(&error) };
        let asked = Asked {
            address: Address::parse(base_url, None).map_err(failed)?,
            key: user.token.clone(),
            token: Some(user.token.clone()),
            channel: TABLE.into(),
            wanted: Wanted::table("public", TABLE),
            since: None,
        };
        Ok(Phone { who, connection: Connection::open(&asked, limit).await.map_err(failed)? })
    }

    /// The next change within the limit; `None` if there was none.
    pub(super) async fn next(&mut self, limit: Duration) -> Result<Option<Received>, DevError> {
        let who = self.who;
        let failed = |what| DevError::Phone { who, what };
        let change = async {
            loop {
                if let Message::Change(change) = self.connection.next().await? {
                    return Ok::<_, ClientError>(change);
                }
            }
        };
        let Ok(change) = tokio::time::timeout(limit, change).await else { return Ok(None) };
        let change = change.map_err(|error| failed(chain(&error)))?;
        let data = serde_json::from_str(change.data.get()).map_err(|_| failed("the change is not JSON".into()))?;
        Ok(Some(Received { at: change.at, data }))
    }

    /// Says goodbye; whether the server hears it doesn't matter.
    pub(super) async fn close(self) {
        self.connection.close().await;
    }
}
