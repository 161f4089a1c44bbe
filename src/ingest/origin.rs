//! Where transactions come from: a seam behind which tests put a script, and the real thing, Postgres.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::IngestError;
use super::start::{Found, Lineage};
use crate::change::Lsn;
use crate::log::Epoch;
use crate::metrics::Metrics;
use crate::pg::{PgConfig, PgError};
use crate::wal::{self, Received, SLOT_DEADLINE, Stream, WalConfig, WalError};

/// An open stream.
pub(super) trait Source: Send {
    /// As [`Stream::next`]; cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Received, WalError>> + Send;
    /// As [`Stream::confirm`].
    fn confirm(&self, durable: Lsn);
    /// As [`Stream::close`].
    fn close(self, deadline: Duration) -> impl Future<Output = ()> + Send;
}

/// What streams are opened from.
pub(super) trait Origin: Send + 'static {
    type Source: Source;
    /// Makes sure that the slot is there, and says what is known of it.
    fn look(&mut self) -> impl Future<Output = Result<Found, IngestError>> + Send;
    /// Gets hold of the slot, from `start` on; says which cluster the stream comes from.
    fn connect(&mut self, start: Lsn) -> impl Future<Output = Result<(Self::Source, u64), IngestError>> + Send;
    /// Remembers in the database that the slot belongs to this history.
    fn record(&mut self, epoch: Epoch) -> impl Future<Output = Result<(), IngestError>> + Send;
    /// Makes a transaction that comes through the stream.
    fn beat(&self) -> impl Future<Output = Result<(), IngestError>> + Send + 'static;
}

impl Source for Stream {
    fn next(&mut self) -> impl Future<Output = Result<Received, WalError>> + Send {
        Stream::next(self)
    }
    fn confirm(&self, durable: Lsn) {
        Stream::confirm(self, durable);
    }
    fn close(self, deadline: Duration) -> impl Future<Output = ()> + Send {
        Stream::close(self, deadline)
    }
}

/// For one query on the ordinary connection.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);
/// For all that [`Origin::look`] does: the making of a slot may wait for old transactions.
const LOOK_DEADLINE: Duration = SLOT_DEADLINE.saturating_add(Duration::from_secs(30));

/// A Postgres server.
pub(super) struct Postgres {
    pg: PgConfig,
    wal: WalConfig,
    metrics: Arc<Metrics>,
    /// Kept between the looks of one attempt.
    client: Option<Client>,
    /// Heartbeats have a session of their own, so that they never wait for anything else.
    heart: Arc<tokio::sync::Mutex<Option<Client>>>,
}

impl Postgres {
    pub(super) fn new(pg: PgConfig, wal: WalConfig, metrics: Arc<Metrics>) -> Postgres {
        Postgres { pg, wal, metrics, client: None, heart: Arc::default() }
    }

    async fn client(&mut self) -> Result<&Client, IngestError> {
        let client = match self.client.take().filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => self.pg.connect().await?,
        };
        Ok(self.client.insert(client))
    }

    async fn examine(&mut self) -> Result<Found, IngestError> {
        let wal = self.wal.clone();
        let client = self.client().await?;
        let slot = wal::prepare(client, &wal).await?;
        let what = "cannot read the system identifier";
        let sql = "select system_identifier::text from pg_catalog.pg_control_system()";
        let row = client.query_one(sql, &[]).await.map_err(PgError::query(what))?;
        let text: String = row.try_get(0).map_err(PgError::query(what))?;
        // Postgres prints it as a signed number; it is not one.
        let parsed = text.parse::<u64>().or_else(|_| text.parse::<i64>().map(i64::cast_unsigned));
        let system_identifier = parsed.map_err(|e| WalError::Protocol(format!("pg_control_system: {e}")))?;
        let sql = "select system_identifier, incarnation from rowcast.lineage where slot = $1";
        let failed = |source| lineage_failed(&wal.slot, "cannot read rowcast.lineage", source);
        let row = client.query_opt(sql, &[&wal.slot]).await.map_err(failed)?;
        let read = |row: tokio_postgres::Row| -> Result<Lineage, tokio_postgres::Error> {
            Ok(Lineage { system_identifier: row.try_get(0)?, incarnation: row.try_get(1)? })
        };
        let lineage = row.map(read).transpose().map_err(failed)?;
        Ok(Found { system_identifier, slot, lineage })
    }
}

fn lineage_failed(slot: &str, what: &'static str, source: tokio_postgres::Error) -> IngestError {
    IngestError::Lineage { slot: slot.to_owned(), source: PgError::query(what)(source) }
}

async fn within<T>(
    after: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, IngestError>>,
) -> Result<T, IngestError> {
    tokio::time::timeout(after, work).await.map_err(|_| IngestError::Timeout { what, after })?
}

impl Origin for Postgres {
    type Source = Stream;

    async fn look(&mut self) -> Result<Found, IngestError> {
        let looked = within(LOOK_DEADLINE, "looking at the slot", Box::pin(self.examine())).await;
        if looked.is_err() {
            self.client = None;
        }
        looked
    }

    async fn connect(&mut self, start: Lsn) -> Result<(Stream, u64), IngestError> {
        let stream = Box::pin(Stream::connect(&self.wal, start, &self.metrics)).await?;
        let identity = stream.system_identifier();
        Ok((stream, identity))
    }

    async fn record(&mut self, epoch: Epoch) -> Result<(), IngestError> {
        let slot = self.wal.slot.clone();
        let client = self.client().await?;
        let Lineage { system_identifier, incarnation } = Lineage::of(epoch);
        let token = format!("{:032x}", rand::random::<u128>());
        let sql = "insert into rowcast.lineage (slot, system_identifier, incarnation, token) values ($1, $2, $3, $4) \
                   on conflict (slot) do update set system_identifier = excluded.system_identifier, \
                   incarnation = excluded.incarnation, token = excluded.token, changed_at = now()";
        within(QUERY_DEADLINE, "recording the history", async {
            let written = client.execute(sql, &[&slot, &system_identifier, &incarnation, &token]).await;
            written.map(drop).map_err(|source| lineage_failed(&slot, "cannot write rowcast.lineage", source))
        })
        .await
    }

    fn beat(&self) -> impl Future<Output = Result<(), IngestError>> + Send + 'static {
        let (heart, pg) = (self.heart.clone(), self.pg.clone());
        async move {
            let mut kept = heart.lock().await;
            let client = match kept.take().filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => pg.connect().await?,
            };
            // Kept only if it worked.
            wal::heartbeat(&client).await?;
            *kept = Some(client);
            Ok(())
        }
    }
}
