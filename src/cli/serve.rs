//! `rowcast serve`: until a signal, or until a part of the relay ends.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::ServeArgs;
use super::{Environment, Failure, start_logging};
use crate::app::{App, Running};

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they don't end the process by themselves.
    pub(super) fn catch() -> Result<Signals, Failure> {
        let failed = |error: std::io::Error| Failure {
            text: format!("cannot listen for signals: {error}"),
            advice: String::new(),
            exit: 1,
        };
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        Ok(Signals { terminate, interrupt })
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

pub(super) async fn serve(args: &ServeArgs, environment: &Environment) -> Result<(), Failure> {
    let settings = environment.settings(args.config.as_deref(), &args.flags())?;
    let config = settings.config(&environment.data_dir())?;
    start_logging(&settings.logging()?);
    let mut signals = Signals::catch()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        slot = config.ingest.wal.slot,
        publications = config.publications.join(","),
        data_dir = %config.data_dir.display(),
        "starting"
    );
    let built = tokio::select! {
        built = Box::pin(App::build(config)) => built?,
        _ = signals.next() => return Ok(()),
    };
    let mut running = built.spawn();
    let ended = tokio::select! {
        error = running.finished() => Err(error),
        name = signals.next() => Ok(name),
    };
    match ended {
        Ok(name) => {
            tracing::info!(target: "audit", signal = name, "stop asked for");
            tracing::info!(signal = name, "stopping; a second signal stops at once");
            drain(running, &mut signals).await;
            Ok(())
        }
        Err(error) => {
            // What can still be told and confirmed, is. The error itself is printed at the end, once.
            drain(running, &mut signals).await;
            Err(error.into())
        }
    }
}

/// Drains, unless a signal says that it takes too long.
pub(super) async fn drain(running: Running, signals: &mut Signals) {
    tokio::select! {
        drained = running.drain() => {
            if !drained.is_clean() {
                tracing::warn!(connections = drained.connections_left, services = ?drained.services_left, "not all ended in time");
            }
        }
        _ = signals.next() => tracing::warn!("stopped at once"),
    }
}

/// For a relay that is to be used right after its start.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(60);
