//! Frontiers in the database: loaded when this relay takes its slot's frontiers over, then written behind memory.
//!
//! Invariants:
//! * One statement at a time, at most one in [`PACE`], each with many rows: what devices receive costs the database a bounded
//!   amount of work.
//! * Fenced: every statement writes only while `rowcast.frontier_owners` names this relay, and holds that row against a
//!   takeover until it commits. Who takes over reads after the last write of the one before.
//! * Memory never waits for it. While the database is away, changes collect in memory by slot, not by time.
//! * Who may have lost the slot may have lost the frontiers: whenever changes begin or cease to stream, no device joins before the
//!   database has said that they are still ours, or they were read anew.
//! * What the table has nothing else of, such as first places, is durable when it counts as saved. Anything else is not waited
//!   for (`synchronous_commit = off`): losing the last moments of it costs repeats.
//!
//! Frontiers of a slot that nobody has any more are removed by whoever takes over others, when they are too old for anybody.
//!
//! Rejected: writing where receipts are taken, which makes the delivery of rows wait for the database; a file beside the log,
//! which the machine that takes over does not have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_postgres::Client;
use tokio_postgres::types::{PgLsn, ToSql};

use super::frontier::{Frontiers, Owner, Part, Row, Unsaved};
use super::{Cursor, Key};
use crate::change::{Lsn, Position};
use crate::error::{Fault as _, Remedy, chain};
use crate::fail::{self, Point};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::pg::{PgConfig, PgError};
use crate::task::Drain;

/// Between two statements.
const PACE: Duration = Duration::from_millis(200);
/// Between two tries while the database can't be written to.
const RETRY: Duration = Duration::from_secs(2);
/// Between two looks at what is too old, and at what the table has too far behind.
const SWEEP: Duration = Duration::from_secs(5);
/// For one write, one takeover.
const DEADLINE: Duration = Duration::from_secs(10);
/// Rows of one statement.
const MOST: usize = 2000;
/// Rows of one that only removes.
const MOST_FORGOTTEN: i64 = 10_000;
/// For the last writes, at the drain.
const GOODBYE: Duration = Duration::from_secs(2);

const TAKE_OVER: &str = "insert into rowcast.frontier_owners (slot, relay) values ($1, $2) \
    on conflict (slot) do update set relay = excluded.relay, taken_at = now()";
const LOAD: &str = "select owner, device, what, tab, anonymous, epoch, lsn, ordinal, since, departed, \
    extract(epoch from now() - saved_at)::float8 from rowcast.frontiers where slot = $1 order by saved_at";
/// Of slots that are gone, if nobody has saved anything there for so many seconds; at most so many.
const FORGET: &str = "delete from rowcast.frontiers where ctid = any (array(select ctid from rowcast.frontiers where slot = any (array( \
    select slot from rowcast.frontiers where slot <> $1 group by slot having max(saved_at) < now() - $2 * interval '1 second' \
    and not exists (select from pg_catalog.pg_replication_slots where slot_name = slot))) limit $3))";
/// Holds the right to write until the commit; no row if another relay has it.
const OURS: &str = "select from rowcast.frontier_owners where slot = $1 and relay = $2 for share";
const REMOVE: &str = "delete from rowcast.frontiers f using unnest($2::bytea[], $3::bytea[], $4::bytea[], $5::int4[]) \
    as gone (owner, device, what, tab) \
    where f.slot = $1 and (f.owner, f.device, f.what, f.tab) = (gone.owner, gone.device, gone.what, gone.tab)";
const WRITE: &str = "insert into rowcast.frontiers (slot, owner, device, what, tab, anonymous, epoch, lsn, ordinal, since, departed) \
    select $1, * from unnest($2::bytea[], $3::bytea[], $4::bytea[], $5::int4[], $6::bool[], $7::int8[], $8::pg_lsn[], \
    $9::int8[], $10::bytea[], $11::bool[]) \
    on conflict (slot, owner, device, what, tab) do update set epoch = excluded.epoch, lsn = excluded.lsn, \
    ordinal = excluded.ordinal, since = excluded.since, departed = excluded.departed, saved_at = now()";

/// What the store works with.
pub struct StoreDeps {
    /// What it loads into and saves from.
    pub frontiers: Arc<Frontiers>,
    /// The database.
    pub pg: PgConfig,
    /// Whose frontiers these are: relays on different slots don't share any.
    pub slot: String,
    /// Whether changes are streaming: only who has the slot takes its frontiers.
    pub ready: watch::Receiver<bool>,
    /// What is kept, for what must be saved before it is not.
    pub log: Log,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// When to save the last and stop.
    pub drain: Drain,
}

/// The task that loads and saves.
pub struct FrontierStore {
    deps: StoreDeps,
    /// This run of the relay, in `rowcast.frontier_owners`.
    relay: String,
    client: Option<Client>,
    owner: bool,
    /// Another relay has had them meanwhile.
    fenced: bool,
    /// There may be frontiers of slots that are gone.
    forgets: bool,
    /// The last trouble told, so that an outage is told once.
    told: String,
}

/// How a write went.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    Saved,
    /// Another relay has taken the frontiers over.
    Fenced,
}

impl FrontierStore {
    /// Does nothing yet.
    pub fn new(deps: StoreDeps) -> FrontierStore {
        let relay = format!("{:032x}", rand::random::<u128>());
        FrontierStore { deps, relay, client: None, owner: false, fenced: false, forgets: true, told: String::new() }
    }

    /// Loads, then saves until the drain, and then what is left.
    pub async fn run(mut self) {
        let drain = self.deps.drain.clone();
        let closing = close_when_in_doubt(self.deps.ready.clone(), self.deps.frontiers.clone());
        tokio::select! {
            () = drain.draining() => {}
            () = closing => {}
            () = self.forever() => {}
        }
        self.deps.frontiers.saving(false);
        // A statement that was under way may have ended with its connection, its rows unsaved.
        self.client = None;
        if self.owner && tokio::time::timeout(GOODBYE, self.save_rest()).await.is_err() {
            let unsaved = self.deps.frontiers.with(|access| access.unsaved());
            tracing::warn!(unsaved, "not all frontiers were saved in time: their devices get some rows twice");
        }
    }

    async fn forever(&mut self) {
        let mut swept = Instant::now();
        let mut ready = self.deps.ready.clone();
        loop {
            let begun = Instant::now();
            let streaming = *ready.borrow_and_update();
            let in_doubt = !streaming || !self.deps.frontiers.is_open();
            if in_doubt && self.owner {
                self.look(&ready).await;
            }
            if streaming && !self.owner {
                self.take_over(&ready).await;
            }
            let saved = self.save().await;
            let forgets = saved && self.forget().await;
            if begun.duration_since(swept) >= SWEEP {
                swept = begun;
                self.sweep(begun);
            }
            let (pause, rest) = (if saved { PACE } else { RETRY }, if streaming { SWEEP } else { RETRY });
            let pausing = async {
                tokio::time::sleep(pause.saturating_sub(begun.elapsed())).await;
                if saved && !forgets && self.deps.frontiers.with(|access| access.unsaved()) == 0 {
                    // What comes first is written at once.
                    let _ = tokio::time::timeout(rest, self.deps.frontiers.work.notified()).await;
                }
            };
            tokio::select! {
                () = pausing => {}
                // An error: ingest is gone, and then the process ends.
                Ok(()) = ready.changed() => {}
            }
        }
    }

    /// Whether they are still ours. Who knows it lets devices in, unless `ready` has changed meanwhile.
    async fn look(&mut self, ready: &watch::Receiver<bool>) {
        let (slot, relay) = (self.deps.slot.clone(), self.relay.clone());
        let looking = async {
            let row = self.client().await?.query_opt(OURS, &[&slot, &relay]).await;
            row.map_err(PgError::query("cannot look at rowcast.frontier_owners"))
        };
        match tokio::time::timeout(DEADLINE, looking).await.unwrap_or(Err(PgError::Timeout(DEADLINE))) {
            Ok(Some(_)) => self.open(ready),
            Ok(None) => self.lose(),
            Err(error) => {
                // Whatever is wrong will be told by the next write.
                tracing::debug!(error = chain(&error), "it can't be seen whose frontiers they are");
                self.client = None;
                match is_lasting(&error) {
                    true => self.open(ready),
                    false => self.deps.frontiers.open(false),
                }
            }
        }
    }

    fn open(&self, ready: &watch::Receiver<bool>) {
        if !ready.has_changed().unwrap_or(true) {
            self.deps.frontiers.open(true);
        }
    }

    /// Another relay has them.
    fn lose(&mut self) {
        tracing::warn!("another relay has taken the frontiers of this slot over; this one saves none");
        (self.owner, self.fenced) = (false, true);
        // What the other one saves must be read before a device may join here again.
        self.deps.frontiers.open(false);
    }

    async fn take_over(&mut self, ready: &watch::Receiver<bool>) {
        let taken = tokio::time::timeout(DEADLINE, self.load()).await;
        match taken.unwrap_or(Err(PgError::Timeout(DEADLINE))) {
            Ok(rows) => {
                tracing::debug!(frontiers = rows.len(), "frontiers loaded");
                self.deps.frontiers.with(|access| access.load(rows, self.fenced, Instant::now()));
                (self.owner, self.fenced, self.forgets, self.told) = (true, false, true, String::new());
                self.deps.frontiers.saving(true);
                self.open(ready);
            }
            Err(error) => {
                // The statement may still be under way on it, and nobody answers.
                self.client = None;
                self.trouble(&error, "what devices have received can't be loaded");
                if is_lasting(&error) {
                    self.open(ready);
                }
            }
        }
    }

    async fn load(&mut self) -> Result<Vec<(Row, Duration)>, PgError> {
        let slot = self.deps.slot.clone();
        let relay = self.relay.clone();
        let client = self.client().await?;
        let failed = || PgError::query("cannot take over rowcast.frontiers");
        client.execute(TAKE_OVER, &[&slot, &relay]).await.map_err(failed())?;
        let rows = client.query(LOAD, &[&slot]).await.map_err(failed())?;
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Writes one portion, if there is something and we may. False if it should be tried again later.
    async fn save(&mut self) -> bool {
        if !self.owner {
            return false;
        }
        let unsaved = self.deps.frontiers.with(|access| access.take_unsaved(MOST));
        if unsaved.rows.is_empty() && unsaved.gone.is_empty() {
            return true;
        }
        // If this is dropped half-way, its rows must not be lost.
        let mut taken = Taken { frontiers: self.deps.frontiers.clone(), unsaved: Some(unsaved) };
        let written = match &taken.unsaved {
            Some(unsaved) => tokio::time::timeout(DEADLINE, self.write(unsaved)).await,
            None => return true,
        };
        let (result, good) = match written.unwrap_or(Err(PgError::Timeout(DEADLINE))) {
            Ok(Written::Saved) => {
                if let Some(unsaved) = taken.unsaved.take() {
                    self.deps.frontiers.with(|access| access.saved(&unsaved, Instant::now()));
                }
                self.told.clear();
                ("saved", true)
            }
            Ok(Written::Fenced) => {
                taken.unsaved = None;
                self.lose();
                ("fenced", false)
            }
            Err(error) => {
                self.client = None;
                self.trouble(
                    &error,
                    "what devices have received can't be saved; they get some rows twice if the relay ends now",
                );
                ("failed", false)
            }
        };
        self.deps.frontiers.saving(good);
        self.deps.metrics.frontier_saves.get_or_create(&[("result", result)]).inc();
        good
    }

    async fn write(&mut self, unsaved: &Unsaved) -> Result<Written, PgError> {
        let (slot, relay) = (self.deps.slot.clone(), self.relay.clone());
        let mut client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.deps.pg.connect().await?,
        };
        let failed = || PgError::query("cannot write rowcast.frontiers");
        let transaction = client.transaction().await.map_err(failed())?;
        let commit = if unsaved.firm { "on" } else { "off" };
        transaction.batch_execute(&format!("set local synchronous_commit = {commit}")).await.map_err(failed())?;
        if transaction.query_opt(OURS, &[&slot, &relay]).await.map_err(failed())?.is_none() {
            return Ok(Written::Fenced);
        }
        if !unsaved.gone.is_empty() {
            let gone = Columns::of(unsaved.gone.iter().map(|(key, tab)| (key, *tab)));
            transaction
                .execute(REMOVE, &[&slot, &gone.owner, &gone.device, &gone.what, &gone.tab])
                .await
                .map_err(failed())?;
        }
        if !unsaved.rows.is_empty() {
            let rows = &unsaved.rows;
            let keys = Columns::of(rows.iter().map(|row| (&row.key, row.tab)));
            let anonymous: Vec<bool> = rows.iter().map(|row| row.key.anonymous).collect();
            let epoch: Vec<i64> = rows.iter().map(|row| row.at.epoch.cast_signed()).collect();
            let lsn: Vec<PgLsn> = rows.iter().map(|row| PgLsn::from(row.at.position.lsn.0)).collect();
            let ordinal: Vec<i64> = rows.iter().map(|row| i64::from(row.at.position.ordinal)).collect();
            let since: Vec<Option<&[u8]>> = rows.iter().map(|row| row.since.as_ref().map(Part::as_slice)).collect();
            let departed: Vec<bool> = rows.iter().map(|row| row.left).collect();
            let values: [&(dyn ToSql + Sync); 11] = [
                &slot,
                &keys.owner,
                &keys.device,
                &keys.what,
                &keys.tab,
                &anonymous,
                &epoch,
                &lsn,
                &ordinal,
                &since,
                &departed,
            ];
            transaction.execute(WRITE, &values).await.map_err(failed())?;
        }
        transaction.commit().await.map_err(failed())?;
        fail::point(Point::FrontierSaved);
        self.client = Some(client);
        Ok(Written::Saved)
    }

    /// Removes a portion of what slots that are gone have left behind; whether there may be more.
    async fn forget(&mut self) -> bool {
        if !self.owner || !self.forgets {
            return false;
        }
        let slot = self.deps.slot.clone();
        let old = self.deps.frontiers.kept_for().as_secs_f64();
        let forgetting = async {
            let removed = self.client().await?.execute(FORGET, &[&slot, &old, &MOST_FORGOTTEN]).await;
            removed.map_err(PgError::query("cannot remove old rows of rowcast.frontiers"))
        };
        let removed = tokio::time::timeout(DEADLINE, forgetting).await.unwrap_or(Err(PgError::Timeout(DEADLINE)));
        self.forgets = match removed {
            Ok(removed) => removed > 0,
            Err(error) => {
                // They are in nobody's way; the next takeover tries it again.
                tracing::warn!(error = chain(&error), "frontiers of slots that are gone can't be removed");
                self.client = None;
                false
            }
        };
        self.forgets
    }

    async fn save_rest(&mut self) {
        self.deps.frontiers.with(|access| access.save_all());
        while self.save().await && self.deps.frontiers.with(|access| access.unsaved()) > 0 {}
    }

    fn sweep(&self, now: Instant) {
        let StoreDeps { frontiers, log, metrics, .. } = &self.deps;
        let (floor, end) = (log.floor().0, log.end().0);
        frontiers.with(|access| {
            access.expire(now);
            if let Some(epoch) = log.epoch() {
                // Who is quiet has this much of the log left before what is saved of him would be a gap.
                let lowest = Position { lsn: Lsn(floor + end.saturating_sub(floor) / 2), ordinal: 0 };
                access.save_behind(epoch.tag(), lowest, now);
            }
        });
        let (live, kept) = frontiers.count_all();
        for (kind, count) in [("live", live), ("kept", kept)] {
            metrics.frontiers.get_or_create(&[("kind", kind)]).set(count as i64);
        }
        metrics.frontiers_unsaved.set(frontiers.with(|access| access.unsaved()) as i64);
    }

    async fn client(&mut self) -> Result<&Client, PgError> {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => self.deps.pg.connect().await?,
        };
        Ok(self.client.insert(client))
    }

    fn trouble(&mut self, error: &PgError, what: &str) {
        let text = chain(error);
        if text != self.told {
            tracing::warn!(error = text, "{what}");
            self.told = text;
        }
    }
}

/// A right that is missing is not there a moment later. Devices are served from memory then.
fn is_lasting(error: &PgError) -> bool {
    error.remedy() != Remedy::Retry
}

/// Whenever changes begin or cease to stream, since another relay may have had the frontiers meanwhile.
async fn close_when_in_doubt(mut ready: watch::Receiver<bool>, frontiers: Arc<Frontiers>) {
    while ready.changed().await.is_ok() {
        frontiers.open(false);
        frontiers.work.notify_one();
    }
    // Ingest is gone, and then the process ends.
    std::future::pending().await
}

/// Rows on their way to the table. Dropped with them in it, they are to be saved again.
struct Taken {
    frontiers: Arc<Frontiers>,
    unsaved: Option<Unsaved>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(unsaved) = self.unsaved.take() {
            self.frontiers.with(|access| access.not_saved(unsaved));
        }
    }
}

/// The parts of keys, as arrays.
struct Columns<'a> {
    owner: Vec<&'a [u8]>,
    device: Vec<&'a [u8]>,
    what: Vec<&'a [u8]>,
    tab: Vec<i32>,
}

impl<'a> Columns<'a> {
    fn of(rows: impl Iterator<Item = (&'a Key, i32)>) -> Columns<'a> {
        let mut columns = Columns { owner: Vec::new(), device: Vec::new(), what: Vec::new(), tab: Vec::new() };
        for (key, tab) in rows {
            columns.owner.push(&key.owner.0);
            columns.device.push(&key.device);
            columns.what.push(&key.what);
            columns.tab.push(tab);
        }
        columns
    }
}

/// A row of the table with its age; `None` if somebody else has written it.
fn read(row: &tokio_postgres::Row) -> Option<(Row, Duration)> {
    let part = |column: usize| -> Option<Part> { row.try_get::<_, &[u8]>(column).ok()?.try_into().ok() };
    let since = match row.try_get::<_, Option<&[u8]>>(8).ok()? {
        Some(bytes) => Some(bytes.try_into().ok()?),
        None => None,
    };
    let position = Position {
        lsn: Lsn(row.try_get::<_, PgLsn>(6).ok()?.into()),
        ordinal: u32::try_from(row.try_get::<_, i64>(7).ok()?).ok()?,
    };
    let key = Key { owner: Owner(part(0)?), device: part(1)?, what: part(2)?, anonymous: row.try_get(4).ok()? };
    let at = Cursor { epoch: row.try_get::<_, i64>(5).ok()?.cast_unsigned(), position };
    let age = row.try_get::<_, f64>(10).ok()?;
    let age = Duration::try_from_secs_f64(age.max(0.0)).unwrap_or(Duration::MAX);
    Some((Row { key, tab: row.try_get(3).ok()?, at, since, left: row.try_get(9).ok()? }, age))
}
