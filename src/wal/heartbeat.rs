//! A message of our own in the stream.
//!
//! On a database where nothing published changes, nothing would come through the slot; the heartbeat makes a
//! transaction that does, so that the slot moves and the time to its arrival can be measured. Transactional, because a
//! non-transactional one is not flushed at once and would arrive some hundred milliseconds late. Rejected: a row in a
//! table of ours, which needs that table in a publication and VACUUM.

use std::time::Duration;

use tokio_postgres::Client;

use crate::change::Lsn;
use crate::pg::PgError;

use super::WalError;

/// The prefix of our heartbeats. Anybody may emit one, so it proves nothing but that the stream flows.
pub const HEARTBEAT_PREFIX: &str = "rowcast.heartbeat";

const DEADLINE: Duration = Duration::from_secs(10);

/// Emits one and returns its LSN: a [`LogicalMessage`](crate::change::LogicalMessage) with this `lsn` will come in the
/// stream.
pub async fn heartbeat(client: &Client) -> Result<Lsn, WalError> {
    let sql = "select pg_logical_emit_message(true, $1, '')::text";
    let asked = tokio::time::timeout(DEADLINE, client.query_one(sql, &[&HEARTBEAT_PREFIX])).await;
    let row = asked
        .map_err(|_| WalError::Timeout { what: "emitting a heartbeat", after: DEADLINE })?
        .map_err(PgError::query("cannot emit a heartbeat"))?;
    let text: String = row.try_get(0).map_err(PgError::query("cannot read a heartbeat's position"))?;
    text.parse().map_err(|error: crate::change::ParseLsnError| WalError::Protocol(error.to_string()))
}
