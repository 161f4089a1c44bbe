//! Where transactions come from: a seam behind which tests put a script, and the real thing, Postgres.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Client;

use super::IngestError;
use super::error::Holder;
use super::notes::Reader;
use super::report::Report;
use super::start::{Found, Lineage};
use super::tend::{TOKEN_PREFIX, Tended, Turn};
use crate::change::Lsn;
use crate::log::Epoch;
use crate::metrics::Metrics;
use crate::pg::{PgConfig, PgError};
use crate::wal::{self, Received, SLOT_DEADLINE, SlotFault, Stream, WalConfig, WalError};

/// An open stream.
pub(super) trait Source: Send {
    /// As [`Stream::next`]; cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Received, WalError>> + Send;
    /// As [`Stream::confirm`].
    fn confirm(&self, durable: Lsn);
    /// Which cluster it comes from, and on which timeline.
    fn identity(&self) -> (u64, u32);
    /// As [`Stream::close`].
    fn close(self, deadline: Duration) -> impl Future<Output = ()> + Send;
}

/// What streams are opened from.
pub(super) trait Origin: Send + 'static {
    type Source: Source;
    /// Makes sure that the slot is there, and says what is known of it. While that has to wait, it is told why.
    fn look(&mut self, report: &mut Report) -> impl Future<Output = Result<Found, IngestError>> + Send;
    /// What `rowcast.lineage` says of the slot.
    fn lineage(&mut self) -> impl Future<Output = Result<Option<Lineage>, IngestError>> + Send;
    /// The ends of the timelines before this one.
    fn timelines(&mut self, timeline: u32) -> impl Future<Output = Result<Vec<(u32, Lsn)>, IngestError>> + Send;
    /// Gets hold of the slot, from `start` on, with these publications.
    fn connect(
        &mut self,
        start: Lsn,
        publications: &[String],
    ) -> impl Future<Output = Result<Self::Source, IngestError>> + Send;
    /// Ends a session, if it is still this one.
    fn terminate(&mut self, reader: Reader) -> impl Future<Output = Result<(), IngestError>> + Send;
    /// Removes the slot.
    fn drop_slot(&mut self) -> impl Future<Output = Result<(), IngestError>> + Send;
    /// Remembers in the database that the slot belongs to this history.
    fn record(&mut self, epoch: Epoch, token: &str) -> impl Future<Output = Result<(), IngestError>> + Send;
    /// Looks beside the stream, and writes a new token if one is given.
    fn tend(&self, turn: Option<Turn>) -> impl Future<Output = Result<Tended, IngestError>> + Send + 'static;
    /// Waits, however long, until everything has ended that is begun, and gives a place behind it that the stream comes to.
    fn settle(&self) -> impl Future<Output = Result<Lsn, IngestError>> + Send + 'static;
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
    fn identity(&self) -> (u64, u32) {
        (self.system_identifier(), self.timeline())
    }
    fn close(self, deadline: Duration) -> impl Future<Output = ()> + Send {
        Stream::close(self, deadline)
    }
}

/// For one query on the ordinary connection.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);
/// For all that [`Origin::look`] does: the making of a slot may wait for old transactions.
const LOOK_DEADLINE: Duration = SLOT_DEADLINE.saturating_add(Duration::from_secs(30));
/// A look that takes longer is asked what it waits for, and again as often.
const LOOK_PATIENCE: Duration = Duration::from_secs(3);

/// Between two looks at the transactions that are open.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

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
        let what = "cannot look at the server";
        // The name of a file of WAL begins with the timeline.
        let sql = "select system_identifier::text, current_setting('server_version_num')::int, \
                   left(pg_walfile_name(pg_current_wal_lsn()), 8), pg_current_wal_flush_lsn()::text, \
                   coalesce(current_setting('synchronized_standby_slots', true), '') <> '' from pg_catalog.pg_control_system()";
        let row = client.query_one(sql, &[]).await.map_err(PgError::query(what))?;
        let read = |row: &tokio_postgres::Row| -> Result<_, tokio_postgres::Error> {
            let (identifier, version): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
            let (timeline, written): (String, String) = (row.try_get(2)?, row.try_get(3)?);
            Ok((identifier, version, timeline, written, row.try_get(4)?))
        };
        let (identifier, version, timeline, written, waits_for_standbys) = read(&row).map_err(PgError::query(what))?;
        // Postgres prints it as a signed number; it is not one.
        let parsed = identifier.parse::<u64>().or_else(|_| identifier.parse::<i64>().map(i64::cast_unsigned));
        let system_identifier = parsed.map_err(|e| WalError::Protocol(format!("pg_control_system: {e}")))?;
        let odd = |e: std::num::ParseIntError| WalError::Protocol(format!("pg_walfile_name: {e}"));
        let timeline = u32::from_str_radix(&timeline, 16).map_err(odd)?;
        let written = position(&written)?;
        let publications = publications(client).await?;
        let holder = match slot.active_pid {
            Some(pid) => Some(holder(client, pid).await?),
            None => None,
        };
        let lineage = lineage(client, &wal.slot).await?;
        let parted = None;
        Ok(Found {
            system_identifier,
            version,
            timeline,
            parted,
            written,
            waits_for_standbys,
            slot,
            holder,
            publications,
            lineage,
        })
    }
}

fn position(text: &str) -> Result<Lsn, WalError> {
    text.parse().map_err(|error: crate::change::ParseLsnError| WalError::Protocol(error.to_string()))
}

async fn publications(client: &Client) -> Result<BTreeMap<String, u32>, IngestError> {
    let what = "cannot read the publications";
    let sql = "select pubname::text, oid from pg_catalog.pg_publication";
    let rows = client.query(sql, &[]).await.map_err(PgError::query(what))?;
    let read = |row: &tokio_postgres::Row| Ok((row.try_get(0)?, row.try_get(1)?));
    let all: Result<_, tokio_postgres::Error> = rows.iter().map(read).collect();
    Ok(all.map_err(PgError::query(what))?)
}

async fn lineage(client: &Client, slot: &str) -> Result<Option<Lineage>, IngestError> {
    let sql = "select system_identifier, incarnation, token from rowcast.lineage where slot = $1";
    let failed = |source| lineage_failed(slot, "cannot read rowcast.lineage", source);
    let row = client.query_opt(sql, &[&slot]).await.map_err(failed)?;
    let read = |row: tokio_postgres::Row| -> Result<Lineage, tokio_postgres::Error> {
        Ok(Lineage { system_identifier: row.try_get(0)?, incarnation: row.try_get(1)?, token: row.try_get(2)? })
    };
    row.map(read).transpose().map_err(failed)
}

/// Who a session is. What our role may not see of somebody else's is left out.
async fn holder(client: &Client, pid: i32) -> Result<Holder, IngestError> {
    let what = "cannot look who reads the slot";
    let sql = "select (extract(epoch from backend_start) * 1000000)::int8, \
               ' (' || concat_ws(', ', 'application ' || nullif(application_name, ''), 'user ' || usename, \
               'from ' || host(client_addr), 'for ' || extract(epoch from clock_timestamp() - backend_start)::int8 || ' s') \
               || ')' from pg_catalog.pg_stat_activity where pid = $1";
    let row = client.query_opt(sql, &[&pid]).await.map_err(PgError::query(what))?;
    let read = |row: tokio_postgres::Row| -> Result<Holder, tokio_postgres::Error> {
        Ok(Holder { pid, started: row.try_get(0)?, detail: row.try_get::<_, Option<String>>(1)?.unwrap_or_default() })
    };
    let gone = Holder { pid, started: None, detail: String::new() };
    Ok(row.map(read).transpose().map_err(PgError::query(what))?.unwrap_or(gone))
}

/// Who holds up the making of the slot, if that is what takes so long.
async fn blocked(pg: &PgConfig, wal: &WalConfig, waited: Duration) -> Option<IngestError> {
    let asking = async {
        let client = pg.connect().await.ok()?;
        match wal::inspect(&client, wal).await {
            Err(WalError::SlotUnusable { fault: SlotFault::InCreation(_), .. }) => {}
            _ => return None,
        }
        let blockers = wal::blockers(&client, wal).await.ok().filter(|blockers| !blockers.is_empty())?;
        Some(WalError::SlotBlocked { slot: wal.slot.clone(), waited, blockers }.into())
    };
    tokio::time::timeout(QUERY_DEADLINE, asking).await.ok()?
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

    async fn look(&mut self, report: &mut Report) -> Result<Found, IngestError> {
        let (pg, wal, began) = (self.pg.clone(), self.wal.clone(), Instant::now());
        let looked = {
            let mut examining = Box::pin(self.examine());
            loop {
                match tokio::time::timeout(LOOK_PATIENCE, &mut examining).await {
                    Ok(looked) => break looked,
                    Err(_) if began.elapsed() > LOOK_DEADLINE => {
                        break Err(IngestError::Timeout { what: "looking at the slot", after: LOOK_DEADLINE });
                    }
                    Err(_) => {
                        if let Some(error) = Box::pin(blocked(&pg, &wal, began.elapsed())).await {
                            report.tell(&error);
                        }
                    }
                }
            }
        };
        if looked.is_err() {
            self.client = None;
        }
        looked
    }

    async fn lineage(&mut self) -> Result<Option<Lineage>, IngestError> {
        let slot = self.wal.slot.clone();
        let client = self.client().await?;
        within(QUERY_DEADLINE, "reading the history", lineage(client, &slot)).await
    }

    async fn timelines(&mut self, timeline: u32) -> Result<Vec<(u32, Lsn)>, IngestError> {
        Ok(Box::pin(wal::timelines(&self.wal, timeline)).await?)
    }

    async fn connect(&mut self, start: Lsn, publications: &[String]) -> Result<Stream, IngestError> {
        let wal = WalConfig { publications: publications.to_vec(), ..self.wal.clone() };
        Ok(Box::pin(Stream::connect(&wal, start, &self.metrics)).await?)
    }

    async fn terminate(&mut self, reader: Reader) -> Result<(), IngestError> {
        let client = self.client().await?;
        let sql = "select pg_terminate_backend(pid) from pg_catalog.pg_stat_activity where pid = $1 \
                   and (extract(epoch from backend_start) * 1000000)::int8 = $2";
        within(QUERY_DEADLINE, "ending our own session", async {
            let ended = client.execute(sql, &[&reader.pid, &reader.started]).await;
            Ok(ended.map(drop).map_err(PgError::query("cannot end our own session"))?)
        })
        .await
    }

    async fn drop_slot(&mut self) -> Result<(), IngestError> {
        let wal = self.wal.clone();
        Ok(wal::drop_slot(self.client().await?, &wal).await?)
    }

    async fn record(&mut self, epoch: Epoch, token: &str) -> Result<(), IngestError> {
        let slot = self.wal.slot.clone();
        let client = self.client().await?;
        let Lineage { system_identifier, incarnation, token } = Lineage::of(epoch, token);
        let sql = "insert into rowcast.lineage (slot, system_identifier, incarnation, token) values ($1, $2, $3, $4) \
                   on conflict (slot) do update set system_identifier = excluded.system_identifier, \
                   incarnation = excluded.incarnation, token = excluded.token, changed_at = now()";
        within(QUERY_DEADLINE, "recording the history", async {
            // What the log is about to rely on must survive a crash of the server, and need not be on a standby.
            let durable = client.batch_execute("set synchronous_commit = local").await;
            durable.map_err(|source| lineage_failed(&slot, "cannot write rowcast.lineage", source))?;
            let written = client.execute(sql, &[&slot, &system_identifier, &incarnation, &token]).await;
            written.map(drop).map_err(|source| lineage_failed(&slot, "cannot write rowcast.lineage", source))
        })
        .await
    }

    fn tend(&self, turn: Option<Turn>) -> impl Future<Output = Result<Tended, IngestError>> + Send + 'static {
        let (heart, pg, wal) = (self.heart.clone(), self.pg.clone(), self.wal.clone());
        within(QUERY_DEADLINE, "looking beside the stream", async move {
            let mut kept = heart.lock().await;
            let client = match kept.take().filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => pg.connect().await?,
            };
            let what = "cannot look beside the stream";
            let behind = match turn {
                Some(turn) => Some(write_token(&client, &wal.slot, &turn).await?),
                None => None,
            };
            let sql = "select pg_current_wal_flush_lsn()::text, current_setting('server_version_num')::int";
            let row = client.query_one(sql, &[]).await.map_err(PgError::query(what))?;
            let written = position(row.try_get(0).map_err(PgError::query(what))?)?;
            let version = row.try_get(1).map_err(PgError::query(what))?;
            let publications = publications(&client).await?;
            *kept = Some(client);
            Ok(Tended { written, version, publications, behind })
        })
    }

    fn settle(&self) -> impl Future<Output = Result<Lsn, IngestError>> + Send + 'static {
        let pg = self.pg.clone();
        async move {
            let what = "cannot look which transactions are open";
            let client = within(QUERY_DEADLINE, "connecting", async { Ok(pg.connect().await?) }).await?;
            let sql = "select pg_snapshot_xmax(pg_current_snapshot())::text";
            let row = client.query_one(sql, &[]).await.map_err(PgError::query(what))?;
            let next: String = row.try_get(0).map_err(PgError::query(what))?;
            loop {
                let sql = "select pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8, pg_current_wal_insert_lsn()::text";
                let asked = async { Ok(client.query_one(sql, &[&next]).await.map_err(PgError::query(what))?) };
                let row = within(QUERY_DEADLINE, what, asked).await?;
                let (over, here): (bool, String) =
                    (row.try_get(0).map_err(PgError::query(what))?, row.try_get(1).map_err(PgError::query(what))?);
                if over {
                    // So that the stream comes there though nobody writes.
                    wal::heartbeat(&client).await?;
                    return Ok(position(&here)?);
                }
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
        }
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

/// Writes a new token where the one before it is, and into the stream. Gives the end of WAL behind it; `None` if another one
/// is there.
async fn write_token(client: &Client, slot: &str, turn: &Turn) -> Result<Option<Lsn>, IngestError> {
    let Lineage { system_identifier, incarnation, token } = &turn.lineage;
    let sql = "with written as (update rowcast.lineage set token = $5, changed_at = now() where slot = $1 \
               and system_identifier = $2 and incarnation = $3 and token = $4 returning slot) \
               select pg_logical_emit_message(true, $6, $5)::text from written";
    let failed = |source| lineage_failed(slot, "cannot write rowcast.lineage", source);
    let written = client.query_opt(sql, &[&slot, system_identifier, incarnation, token, &turn.to, &TOKEN_PREFIX]).await;
    if written.map_err(failed)?.is_none() {
        return Ok(None);
    }
    let row = client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await.map_err(failed)?;
    Ok(Some(position(row.try_get(0).map_err(failed)?)?))
}
