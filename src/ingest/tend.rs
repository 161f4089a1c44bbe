//! Looking after the stream from beside it: are the publications still the ones that it began with, how far has the server
//! written, and is the database that queries reach the one that the stream comes from?
//!
//! For the last, a new random token goes into `rowcast.lineage` each minute, and in the same transaction into the stream. A
//! token that was seen there is durable on the server, so a database that holds an older one is an older copy. A token that
//! does not come although the stream has passed the place where it was written is in another history.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::open::{new_token, passes_over};
use super::origin::Origin;
use super::start::Lineage;
use super::switch::among;
use super::{Core, IngestError};
use crate::change::{Item, Lsn, Transaction};
use crate::error::{Fault as _, Remedy, chain};
use crate::wal::{Received, WalError};

/// The prefix of the message that carries a token. Anybody may emit one: only those count that were just made up.
pub(super) const TOKEN_PREFIX: &str = "rowcast.lineage";

/// From one token to the next, for a history that is not changed otherwise.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub(super) lineage: Lineage,
    pub(super) to: String,
}

/// What was found beside the stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Tended {
    /// Up to where WAL was flushed.
    pub(super) written: Lsn,
    /// Such as 150018.
    pub(super) version: i32,
    /// By name, with their oids.
    /// All of the database.
    pub(super) publications: BTreeMap<String, u32>,
    /// The end of WAL behind the new token, if one was asked for. `None`: it was not written, since the row is not ours.
    pub(super) behind: Option<Option<Lsn>>,
}

type Task = JoinHandle<Result<Tended, IngestError>>;

/// What is under way.
pub(super) struct Tending {
    at: Instant,
    delay: Duration,
    token_at: Instant,
    task: Option<Task>,
    /// A token that was not seen yet, and the position at which it must have come.
    awaited: Option<(String, Option<Lsn>)>,
    seen: Option<String>,
    told: String,
}

impl Tending {
    pub(super) fn new(now: Instant, delay: Duration) -> Tending {
        let at = now + delay;
        Tending { at, delay, token_at: at, task: None, awaited: None, seen: None, told: String::new() }
    }

    /// When there is something to do.
    pub(super) fn wake(&self) -> Instant {
        // Far away while it is being done.
        if self.task.is_some() { self.at + Duration::from_secs(86_400) } else { self.at }
    }

    /// The answer of what is under way; never, if nothing is. Cancel-safe.
    pub(super) async fn done(&mut self) -> Result<Tended, IngestError> {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let done = task.await;
        self.task = None;
        // Aborted or panicked: the panic was printed.
        done.unwrap_or(Err(IngestError::Moved))
    }

    pub(super) fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// Looks for the awaited token in what the stream brings.
    pub(super) fn passed(&mut self, received: &Received) -> Result<(), IngestError> {
        let streamed = match received {
            Received::Idle(lsn) => *lsn,
            Received::Transaction(transaction) => {
                if transaction.rules_changed {
                    // One of the rules may be a publication's.
                    self.at = self.at.min(Instant::now() + self.delay);
                }
                if let Some((token, _)) = &self.awaited
                    && carries(transaction, token)
                {
                    self.seen = self.awaited.take().map(|(token, _)| token);
                }
                transaction.end_lsn
            }
        };
        match self.awaited {
            Some((_, Some(written))) if streamed >= written => {
                self.awaited = None;
                Err(IngestError::TwoHistories { written, streamed })
            }
            _ => Ok(()),
        }
    }
}

/// A token's transaction has nothing else in it that the stream brings, but for the row where all tables are published.
const FEW: u32 = 8;

fn carries(transaction: &Transaction, token: &str) -> bool {
    let is_it = |item| {
        matches!(item, Ok(Item::Message(message))
            if message.prefix == TOKEN_PREFIX && *message.content == *token.as_bytes())
    };
    transaction.items <= FEW && transaction.iter().any(is_it)
}

impl<O: Origin> Core<O> {
    /// Notes what was seen, and begins to look again.
    pub(super) async fn tend(&mut self, tending: &mut Tending) -> Result<(), IngestError> {
        let now = Instant::now();
        tending.at = now + self.config.tend_interval;
        if let Some(token) = tending.seen.take() {
            self.note(|notes| notes.tokens = vec![token]).await?;
        }
        let mut turn = None;
        if now >= tending.token_at
            && tending.awaited.is_none()
            && let Some(epoch) = self.pen.log.epoch()
        {
            tending.token_at = now + self.config.token_interval;
            if let Some(known) = self.notes.tokens.last().cloned() {
                let to = new_token();
                let next = to.clone();
                self.note(|notes| notes.tokens.push(next)).await?;
                tending.awaited = Some((to.clone(), None));
                turn = Some(Turn { lineage: Lineage::of(epoch, &known), to });
            }
        }
        tending.task = Some(crate::task::spawn("tend", self.origin.tend(turn)));
        Ok(())
    }

    /// Takes in what was found.
    pub(super) async fn tended(
        &mut self,
        tended: Result<Tended, IngestError>,
        tending: &mut Tending,
    ) -> Result<(), IngestError> {
        let tended = match tended {
            Ok(tended) => tended,
            // It waits for those who read from it, so nothing that holds us up may hold it up.
            Err(error) if error.is_of_a_shutdown() => return Err(IngestError::ServerStops),
            Err(error) => {
                tending.awaited = None;
                let text = chain(&error);
                if text != tending.told {
                    let advice = error.advice();
                    match error.remedy() {
                        Remedy::Retry => {
                            tracing::warn!(error = text, advice, "the database does not answer beside the stream")
                        }
                        _ => tracing::error!(
                            error = text,
                            advice,
                            "the database refuses what the stream must be looked after with"
                        ),
                    }
                    tending.told = text;
                }
                return Ok(());
            }
        };
        tending.told.clear();
        self.pen.log.set_written(tended.written);
        match tended.behind {
            Some(None) => return Err(IngestError::LineageChanged { slot: self.config.wal.slot.clone() }),
            Some(Some(written)) => {
                if let Some((_, by)) = &mut tending.awaited {
                    *by = Some(written);
                }
            }
            None => {}
        }
        self.check_publications(tended).await
    }

    async fn check_publications(&mut self, tended: Tended) -> Result<(), IngestError> {
        let wanted = &self.config.wal.publications;
        let missing = wanted.iter().filter(|name| !tended.publications.contains_key(*name));
        let names: Vec<String> = missing.cloned().collect();
        if !names.is_empty() {
            let url = &self.config.wal.pg.connection;
            let database = url.get_dbname().or(url.get_user()).unwrap_or_default().to_owned();
            return Err(WalError::PublicationMissing { names, database }.into());
        }
        let names = self.notes.replaced(&tended.publications);
        if names.is_empty() {
            return Ok(());
        }
        if passes_over(tended.version) {
            return Err(IngestError::PublicationReplaced { names });
        }
        // Nothing came between, or the server would have refused to go on.
        let streamed: Vec<String> = self.notes.publications.keys().cloned().collect();
        Ok(self.note(|notes| notes.publications = among(&tended.publications, &streamed)).await?)
    }
}
