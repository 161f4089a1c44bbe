//! Messages that are stored in `realtime.messages`, for a client that joins and names a time (`protocol.md` §7.7).
//!
//! Invariants:
//! * Never more than [`MOST_REPLAYED`] messages, none larger than [`LARGEST`], all of them not larger than [`MOST_BYTES`], within
//!   [`DEADLINE`]: a client chooses the rest.
//! * At most [`TURNS`] at a time in the process: the pool is there for others too.
//! * All of one snapshot, which is told, so that who follows the stream can tell which of its messages could be seen here.
//! * Read with `row_security = off`: a login that is subject to the policies gets an error instead of an empty answer. Whether
//!   the client may read the topic was asked before.
//! * Messages of one transaction have one time. Among them the place in the table decides, so they come in the order in which
//!   they were sent as far as the table's free space lets that be seen.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;

use crate::catalog::Snapshot;
use crate::change::Lsn;
use crate::error::{Fault, Remedy};
use crate::pg::{Lent, PgError, Pool};

/// At most so many messages are replayed, whatever a client asks for.
pub const MOST_REPLAYED: u32 = 25;
/// Bytes of a message's event and payload; larger payloads are not sent live either.
const LARGEST: i32 = 4 << 20;
/// Bytes of all messages of one replay, so counted; the newest within it.
pub const MOST_BYTES: u32 = 8 << 20;
/// Replays at a time; more wait, within their deadline.
static TURNS: Semaphore = Semaphore::const_new(4);
/// What a question begins with. The server ends it in time. The end of the WAL is looked at after the snapshot was taken: what
/// that shows was written before.
const BEGIN: &str = "begin isolation level repeatable read read only; set local row_security = off; \
    set local statement_timeout = '5s'; \
    select pg_catalog.pg_current_snapshot()::pg_catalog.text, pg_catalog.pg_current_wal_insert_lsn()";
/// For everything, also if the server's machine is gone. The server gives up earlier.
const DEADLINE: Duration = Duration::from_secs(8);
/// 9999-12-31: what is later is no time that Postgres could compare with.
const LATEST_MILLIS: i64 = 253_402_300_799_999;

/// Newest first up to the limit, then turned around. The table's times are UTC without saying so.
const SQL: &str = "select uuid_send(m.id), m.event, m.payload::text, m.binary_payload from ( \
        select id, event, payload, binary_payload, inserted_at, place, sum(octet_length(event) + octet_length(coalesce(binary_payload, \
          convert_to(payload::text, 'UTF8')))) over (order by inserted_at desc, place desc) as bytes from ( \
        select id, event, payload, binary_payload, inserted_at, ctid as place from realtime.messages \
        where topic = $1 and private is true and extension = 'broadcast' \
          and inserted_at >= timestamp 'epoch' + $2::bigint * interval '1 millisecond' \
          and inserted_at < (now() at time zone 'utc') + interval '1 minute' \
          and event is not null and (payload is not null or binary_payload is not null) \
          and octet_length(event) + octet_length(coalesce(binary_payload, convert_to(payload::text, 'UTF8'))) <= $4 \
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

/// What was read, and what it is to be told apart by from what comes through the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// The messages, the oldest first.
    pub stored: Vec<Stored>,
    /// Which transactions could be seen.
    pub sees: Snapshot,
    /// All of them ended at or before this.
    pub until: Lsn,
}

impl Stored {
    /// Bytes of its event and payload.
    pub fn size(&self) -> usize {
        let payload = match &self.payload {
            StoredPayload::Json(json) => json.len(),
            StoredPayload::Binary(bytes) => bytes.len(),
        };
        self.event.len() + payload
    }
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
    /// Postgres has not said which transactions the messages are of.
    #[error("Postgres did not tell the snapshot that it had taken")]
    NoSnapshot,
    /// Postgres did not answer, or not in time.
    #[error(transparent)]
    Pg(#[from] PgError),
}

impl Fault for ReplayError {
    fn remedy(&self) -> Remedy {
        match self {
            ReplayError::NotInstalled | ReplayError::NotAllowed(_) => Remedy::Operator,
            ReplayError::NoSnapshot => Remedy::Bug,
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
            ReplayError::NoSnapshot => "Tell us which server this is.".into(),
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

/// The right to one replay.
pub struct Turn {
    _permit: Option<SemaphorePermit<'static>>,
}

/// Waits for it.
pub async fn turn() -> Turn {
    // Never closed.
    Turn { _permit: TURNS.acquire().await.ok() }
}

/// The newest private messages of a topic since a time, the oldest of them first. `topic` is without the prefix `realtime:`;
/// `limit` is cut to [`MOST_REPLAYED`].
pub async fn replay(
    pool: &Pool,
    _turn: Turn,
    topic: &str,
    since_unix_millis: i64,
    limit: u32,
) -> Result<Reading, ReplayError> {
    let since = since_unix_millis.clamp(0, LATEST_MILLIS);
    let limit = i64::from(limit.clamp(1, MOST_REPLAYED));
    let asking = tokio::time::timeout(DEADLINE, ask(pool, topic, since, limit));
    asking.await.map_err(|_| PgError::Timeout(DEADLINE))?
}

async fn ask(pool: &Pool, topic: &str, since: i64, limit: i64) -> Result<Reading, ReplayError> {
    let mut lent = Lent(Some(pool.get().await?));
    let Some(client) = &lent.0 else { return Err(ReplayError::NoSnapshot) };
    // A connection whose transaction failed is closed, not given back.
    let begun = client.simple_query(BEGIN).await?;
    let (sees, until) = begun.iter().find_map(snapshot).ok_or(ReplayError::NoSnapshot)?;
    let statement = client.prepare_cached(SQL).await?;
    let rows = client.query(&statement, &[&topic, &since, &limit, &LARGEST, &i64::from(MOST_BYTES)]).await?;
    client.batch_execute("commit").await?;
    drop(lent.0.take());
    let stored: Result<Vec<Stored>, ReplayError> = rows.iter().map(stored).collect();
    Ok(Reading { stored: stored?, sees, until })
}

fn snapshot(message: &SimpleQueryMessage) -> Option<(Snapshot, Lsn)> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((Snapshot::parse(row.get(0)?).ok()?, row.get(1)?.parse().ok()?))
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
        let found = replay(&pool, turn().await, "t", 0, 25).await.expect("messages").stored;
        let events: Vec<&str> = found.iter().map(|stored| &*stored.event).collect();
        assert_eq!(events, ["e2", "e3", "e4"], "without a gap among them");
    }

    #[tokio::test]
    async fn a_name_is_counted_as_what_is_sent() {
        let (database, pool) = topic_of(&[10]).await;
        let name = format!("update realtime.messages set event = repeat('x', {LARGEST})");
        database.client.batch_execute(&name).await.expect("a name");
        assert_eq!(replay(&pool, turn().await, "t", 0, 25).await.expect("none").stored, []);
    }

    #[tokio::test]
    async fn replays_wait_for_a_turn() {
        let (_database, pool) = topic_of(&[10]).await;
        let turns = TURNS.acquire_many(4).await.expect("all turns");
        let mut next = Box::pin(turn());
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(turns);
        assert_eq!(replay(&pool, next.await, "t", 0, 25).await.expect("a message").stored.len(), 1);
    }
}
