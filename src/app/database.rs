//! Getting the database ready at the start: reach it, look whether it is fit, make what is ours, see that nothing is missing.

use std::time::Duration;

use tokio::time::Instant;

use super::AppError;
use crate::config::Config;
use crate::error::{Fault as _, Remedy, chain};
use crate::messages;
use crate::migrate;
use crate::task::Drain;
use crate::wal::{self, Backoff};

/// For one attempt. Making our objects may wait for locks.
const ATTEMPT: Duration = Duration::from_secs(150);

/// Tries until it works, a person must do something, or the time is over. Returns what is left of the time; `None` at the
/// drain.
pub(super) async fn prepare(config: &Config, drain: &Drain) -> Result<Option<Duration>, AppError> {
    let deadline = Instant::now() + config.startup_timeout;
    let mut backoff = Backoff::new();
    let mut told = String::new();
    loop {
        let tried = tokio::select! {
            () = drain.draining() => return Ok(None),
            tried = tokio::time::timeout(ATTEMPT, Box::pin(attempt(config))) => tried,
        };
        let error = match tried {
            Ok(Ok(())) => return Ok(Some(deadline.saturating_duration_since(Instant::now()))),
            Ok(Err(error)) if error.remedy() != Remedy::Retry => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => AppError::NotReady(ATTEMPT),
        };
        let pause = backoff.next();
        if Instant::now() + pause >= deadline {
            return Err(AppError::Unreachable { after: config.startup_timeout, source: Box::new(error) });
        }
        let text = chain(&error);
        if text != told {
            tracing::warn!(error = text, "the database can't be used yet; trying again");
            told = text;
        }
        tokio::select! {
            () = drain.draining() => return Ok(None),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn attempt(config: &Config) -> Result<(), AppError> {
    let mut client = config.pg.connect().await?;
    // First what a person must mend anyway, so that nothing is made on a server that can't be used.
    wal::check(&client, &config.ingest.wal).await?;
    if let Some(asking) = &config.ask_login {
        drop(asking.connect().await?);
    }
    let made = if config.migrate { migrate::up(&mut client).await } else { own(&mut client).await };
    let report = made?;
    for (version, name) in &report.steps {
        tracing::info!(version, name, "migration applied");
    }
    if config.migrate {
        // Today's partition is there before we are ready. Without it messages go to the default partition, so this is no
        // reason not to start; the keeper tries again and says what is wrong.
        let tending = messages::tend(&mut client, config.messages.scope, config.messages.keep).await;
        if let Err(error) = tending {
            tracing::debug!(error = chain(&error), "the partitions of realtime.messages could not be made yet");
        }
    }
    if let Some((sql, why)) = migrate::publish_messages(&client).await? {
        tracing::warn!(
            sql,
            why,
            "realtime.messages is not in publication rowcast_messages, so what is inserted into it is not broadcast"
        );
    }
    let missing = migrate::missing(&client, &config.publications).await?;
    if missing.is_empty() { Ok(()) } else { Err(AppError::Missing { missing }) }
}

async fn own(client: &mut tokio_postgres::Client) -> Result<migrate::Report, migrate::MigrateError> {
    migrate::ensure_own(client).await
}
