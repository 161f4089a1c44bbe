//! Messages that are stored in `realtime.messages`, for a client that joins and names a time (`protocol.md` §7.7).
//!
//! Invariants:
//! * Never more than [`MOST_REPLAYED`] messages, none larger than [`LARGEST`], all of them not larger than [`ALL`], within
//!   [`DEADLINE`]: a client chooses the rest.
//! * At most [`TURNS`] at a time in the process: the pool is there for others too.
//! * Read with `row_security = off`: a login that is subject to the policies gets an error instead of an empty answer. Whether
//!   the client may read the topic was asked before.
//! * Messages of one transaction have one time. Among them the place in the table decides, so they come in the order in which
//!   they were sent as far as the table's free space lets that be seen.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_postgres::error::SqlState;

use crate::error::{Fault, Remedy};
use crate::pg::{Lent, PgError, Pool};

/// At most so many messages are replayed, whatever a client asks for.
pub const MOST_REPLAYED: u32 = 25;
/// Bytes of a payload; larger ones are not sent live either.
const LARGEST: i32 = 4 << 20;
/// Bytes of all payloads of one replay; the newest within it.
const ALL: i64 = 8 << 20;
/// Replays at a time; more wait, within their deadline.
static TURNS: Semaphore = Semaphore::const_new(4);
/// What a question begins with. The server ends it in time.
const BEGIN: &str = "begin read only; set local row_security = off; set local statement_timeout = '5s'";
/// For everything, also if the server's machine is gone. The server gives up earlier.
const DEADLINE: Duration = Duration::from_secs(8);
/// 9999-12-31: what is later is no time that Postgres could compare with.
const LATEST_MILLIS: i64 = 253_402_300_799_999;

/// Newest first up to the limit, then turned around. The table's times are UTC without saying so.
const SQL: &str = "select uuid_send(m.id), m.event, m.payload::text, m.binary_payload from ( \
        select id, event, payload, binary_payload, inserted_at, place, sum(octet_length(coalesce(binary_payload, \
          convert_to(payload::text, 'UTF8')))) over (order by inserted_at desc, place desc) as bytes from ( \
        select id, event, payload, binary_payload, inserted_at, ctid as place from realtime.messages \
        where topic = $1 and private is true and extension = 'broadcast' \
          and inserted_at >= timestamp 'epoch' + $2::bigint * interval '1 millisecond' \
          and inserted_at < (now() at time zone 'utc') + interval '1 minute' \
          and event is not null and (payload is not null or binary_payload is not null) \
          and octet_length(coalesce(binary_payload, convert_to(payload::text, 'UTF8'))) <= $4 \
        order by inserted_at desc, ctid desc limit $3) newest) m \
    where m.bytes <= $5 \
    order by m.inserted_at, m.place";

/// A message as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The row's id, a UUID's 16 bytes.
    pub id: [u8; 16],
    /// The event's name.
    pub event: String,
    /// What was sent.
    pub payload: StoredPayload,
}

/// The one of the two payload columns that is set; if both were, the binary one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredPayload {
    /// The text of the jsonb.
    Json(String),
    /// The bytes as they were stored.
    Binary(Bytes),
}

/// Why nothing could be replayed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// There is no table to replay from.
    #[error("there is no table realtime.messages")]
    NotInstalled,
    /// The policies of the table apply to the relay's own login.
    #[error("the relay's login may not read all of realtime.messages")]
    NotAllowed(#[source] PgError),
    /// Postgres did not answer, or not in time.
    #[error(transparent)]
    Pg(#[from] PgError),
}

impl Fault for ReplayError {
    fn remedy(&self) -> Remedy {
        match self {
            ReplayError::NotInstalled | ReplayError::NotAllowed(_) => Remedy::Operator,
            ReplayError::Pg(error) => error.remedy(),
        }
    }

    fn advice(&self) -> String {
        match self {
            ReplayError::NotInstalled => "Run `rowcast migrate up`.".into(),
            ReplayError::NotAllowed(_) => {
                "Make the login an inheriting member of the table's owner: grant supabase_realtime_admin to LOGIN;"
                    .into()
            }
            ReplayError::Pg(error) => error.advice(),
        }
    }
}

impl From<tokio_postgres::Error> for ReplayError {
    fn from(error: tokio_postgres::Error) -> ReplayError {
        let code = error.code().cloned();
        let error = PgError::query("cannot read realtime.messages")(error);
        match code {
            Some(code) if code == SqlState::UNDEFINED_TABLE || code == SqlState::INVALID_SCHEMA_NAME => {
                ReplayError::NotInstalled
            }
            Some(code) if code == SqlState::INSUFFICIENT_PRIVILEGE => ReplayError::NotAllowed(error),
            _ => ReplayError::Pg(error),
        }
    }
}

/// The newest private messages of a topic since a time, the oldest of them first. `topic` is without the prefix `realtime:`;
/// `limit` is cut to [`MOST_REPLAYED`].
pub async fn replay(pool: &Pool, topic: &str, since_unix_millis: i64, limit: u32) -> Result<Vec<Stored>, ReplayError> {
    let since = since_unix_millis.clamp(0, LATEST_MILLIS);
    let limit = i64::from(limit.clamp(1, MOST_REPLAYED));
    let asking = tokio::time::timeout(DEADLINE, ask(pool, topic, since, limit));
    asking.await.map_err(|_| PgError::Timeout(DEADLINE))?
}

async fn ask(pool: &Pool, topic: &str, since: i64, limit: i64) -> Result<Vec<Stored>, ReplayError> {
    // Never closed.
    let _turn = TURNS.acquire().await.ok();
    let mut lent = Lent(Some(pool.get().await?));
    let Some(client) = &lent.0 else { return Ok(Vec::new()) };
    // A connection whose transaction failed is closed, not given back.
    client.batch_execute(BEGIN).await?;
    let statement = client.prepare_cached(SQL).await?;
    let rows = client.query(&statement, &[&topic, &since, &limit, &LARGEST, &ALL]).await?;
    client.batch_execute("commit").await?;
    drop(lent.0.take());
    rows.iter().map(stored).collect()
}

fn stored(row: &tokio_postgres::Row) -> Result<Stored, ReplayError> {
    let read = || -> Result<Stored, tokio_postgres::Error> {
        let mut id = [0; 16];
        let sent: &[u8] = row.try_get(0)?;
        id.iter_mut().zip(sent).for_each(|(to, from)| *to = *from);
        let payload = match row.try_get::<_, Option<&[u8]>>(3)? {
            Some(bytes) => StoredPayload::Binary(Bytes::copy_from_slice(bytes)),
            None => StoredPayload::Json(row.try_get(2)?),
        };
        Ok(Stored { id, event: row.try_get(1)?, payload })
    };
    Ok(read()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::members::fixture::MESSAGES;
    use crate::testing::TestDatabase;

    async fn topic_of(sizes: &[usize]) -> (TestDatabase, Pool) {
        let database = TestDatabase::new().await;
        database.run(MESSAGES).await;
        for (number, size) in sizes.iter().enumerate() {
            let sql = format!(
                "insert into realtime.messages (topic, extension, event, private, payload, inserted_at) values \
                 ('t', 'broadcast', 'e{number}', true, to_jsonb(repeat('x', {size})), \
                  now() at time zone 'utc' - interval '1 minute' + interval '{number} s')"
            );
            database.client.batch_execute(&sql).await.expect("a message");
        }
        let pool = database.config("plain_relay").pool().expect("a pool");
        (database, pool)
    }

    #[tokio::test]
    async fn the_messages_of_one_replay_are_bounded_in_bytes_and_the_newest_come() {
        let (_database, pool) = topic_of(&[10, 3 << 20, 3 << 20, 10, 3 << 20]).await;
        let found = replay(&pool, "t", 0, 25).await.expect("messages");
        let events: Vec<&str> = found.iter().map(|stored| &*stored.event).collect();
        assert_eq!(events, ["e2", "e3", "e4"], "without a gap among them");
    }

    #[tokio::test]
    async fn replays_wait_for_a_turn() {
        let (database, _) = topic_of(&[10]).await;
        let mut config = database.config("plain_relay");
        config.pool_size = 1;
        let pool = config.pool().expect("a pool");
        let turns = TURNS.acquire_many(4).await.expect("all turns");
        let mut asking = Box::pin(replay(&pool, "t", 0, 25));
        assert!(futures_util::poll!(&mut asking).is_pending());
        let lent = pool.get().await;
        assert!(lent.is_ok(), "who waits for a turn has taken no connection");
        drop((lent, turns));
        assert_eq!(asking.await.expect("a message").len(), 1);
    }
}
