//! The writing end: appending, and making durable in groups.
//!
//! One fsync runs at a time, on a blocking thread; what is appended meanwhile goes into the next one. Small appends are done
//! in place, since they only reach the page cache; large ones, and what waits for the disk, on a blocking thread.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::change::{Body, Lsn, Transaction};
use crate::log::{Log, LogError, LogWriter};

/// A body up to this is appended in place.
const IN_PLACE: u64 = 256 * 1024;

pub(super) struct Pen {
    pub(super) log: Log,
    /// `None` only while a blocking thread has it.
    writer: Option<LogWriter>,
    syncing: Option<JoinHandle<Result<Lsn, LogError>>>,
}

impl Pen {
    pub(super) fn new(log: Log, writer: LogWriter) -> Pen {
        Pen { log, writer: Some(writer), syncing: None }
    }

    /// Runs work that waits for the disk. Must not be given up half way: the writer would be gone.
    pub(super) async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut LogWriter) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, LogError> {
        let mut writer = self.writer.take().ok_or(LogError::Aborted)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut writer);
            (writer, result)
        });
        match done.await {
            Ok((writer, result)) => {
                self.writer = Some(writer);
                result
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(LogError::Aborted),
        }
    }

    /// Appends; readable when this returns, and on its way to being durable.
    pub(super) async fn append(&mut self, transaction: &Arc<Transaction>) -> Result<(), LogError> {
        match &transaction.body {
            Body::Memory(body) if body.len() as u64 <= IN_PLACE => {
                self.writer.as_mut().ok_or(LogError::Aborted)?.append(transaction)?;
            }
            _ => {
                let transaction = transaction.clone();
                self.blocking(move |writer| writer.append(&transaction).map(drop)).await?;
            }
        }
        self.start_sync();
        Ok(())
    }

    /// Notes that the stream is complete up to here.
    pub(super) fn advance(&mut self, lsn: Lsn) -> Result<(), LogError> {
        self.writer.as_mut().ok_or(LogError::Aborted)?.advance(lsn)?;
        self.start_sync();
        Ok(())
    }

    /// Starts making durable what isn't, unless that is going on already.
    pub(super) fn start_sync(&mut self) {
        if self.syncing.is_none() && self.log.durable() < self.log.end() {
            let log = self.log.clone();
            self.syncing = Some(tokio::task::spawn_blocking(move || log.sync()));
        }
    }

    /// Resolves with what is durable when the running fsync is over; never, if none runs. Cancel-safe.
    pub(super) async fn synced(&mut self) -> Result<Lsn, LogError> {
        let Some(syncing) = &mut self.syncing else { return std::future::pending().await };
        let joined = syncing.await;
        self.syncing = None;
        match joined {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(LogError::Aborted),
        }
    }

    /// Makes all that was appended durable.
    pub(super) async fn sync_all(&mut self) -> Result<Lsn, LogError> {
        loop {
            self.start_sync();
            if self.syncing.is_none() {
                return Ok(self.log.durable());
            }
            self.synced().await?;
        }
    }

    /// Makes all durable, or goes back to what is. Returns the position to go on from, and whether it went back.
    pub(super) async fn settle(&mut self) -> Result<(Lsn, bool), LogError> {
        match self.sync_all().await {
            // A log that was refused writing at its end looks durable here, so it is repaired anyway if it must be.
            Ok(_) => {
                let before = self.log.end();
                let end = self.blocking(LogWriter::repair).await?;
                Ok((end, end != before))
            }
            Err(_) => Ok((self.blocking(LogWriter::repair).await?, true)),
        }
    }
}
