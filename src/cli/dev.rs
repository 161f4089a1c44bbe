//! `rowcast dev`: a private database, the relay on top of it, the demonstration, and then whatever the newcomer types.
//!
//! Whatever happens, what was started is stopped: the relay first, then its database.

use std::io::IsTerminal as _;

use super::args::DevArgs;
use super::serve::{READY_TIMEOUT, Signals, drain};
use super::{Environment, Failure, start_logging};
use crate::app::{App, Running};
use crate::clock::Clock;
use crate::config::{Config, Settings};
use crate::dev::binaries::Search;
use crate::dev::{self, DevEnvironment, DevOptions};

/// The settings that make sense here; the database and all that goes with it are our own.
const TAKEN: [&str; 5] = ["port", "host", "admin_addr", "log", "log_format"];

pub(super) async fn dev(args: &DevArgs, environment: &Environment) -> Result<(), Failure> {
    let mut settings = environment.settings(None, &args.flags())?;
    settings.retain(&TAKEN);
    settings.set_default("host", "127.0.0.1");
    settings.set_default("admin_addr", "off");
    settings.set_default("log", "warn");
    start_logging(&settings.logging()?);
    let mut signals = Signals::catch()?;
    let search = Search {
        pg_bin: environment.path("PG_BIN").map(Into::into),
        path: environment.path.clone(),
        ..Search::default()
    };
    let state_dir = args
        .state_dir
        .clone()
        .unwrap_or_else(|| dev::default_state_dir(environment.path("XDG_STATE_HOME"), environment.path("HOME")));
    let options = DevOptions { state_dir, search, postgres_port: args.postgres_port, clock: Clock::system() };
    eprintln!("preparing a private PostgreSQL in {} …", options.state_dir.display());
    // Dropped half way, it stops what it started.
    let prepared = tokio::select! {
        prepared = Box::pin(dev::prepare(options)) => prepared?,
        _ = signals.next() => return Ok(()),
    };
    let result = with_database(args, settings, &prepared, &mut signals).await;
    prepared.stop().await;
    result
}

async fn with_database(
    args: &DevArgs,
    mut settings: Settings,
    prepared: &DevEnvironment,
    signals: &mut Signals,
) -> Result<(), Failure> {
    settings.set("database_url", &prepared.database_url);
    settings.set("jwt_secret", &prepared.jwt_secret);
    let config: Config = settings.config(&prepared.data_dir)?;
    let mut running = Box::pin(App::build(config)).await?.spawn();
    let result = tokio::select! {
        result = show(args, prepared, &mut running) => result,
        _ = signals.next() => Ok(()),
    };
    drain(running, signals).await;
    result
}

async fn show(args: &DevArgs, prepared: &DevEnvironment, running: &mut Running) -> Result<(), Failure> {
    running.ready(READY_TIMEOUT).await?;
    let base_url = running.base_url();
    tokio::select! {
        shown = Box::pin(dev::demo(prepared, &base_url)) => drop(shown?),
        error = running.finished() => return Err(error.into()),
    }
    if args.once {
        return Ok(());
    }
    dev::what_next(prepared, &base_url)?;
    let typing = async {
        if std::io::stdin().is_terminal() {
            dev::insert_typed_lines(prepared).await?;
        }
        // No terminal, or its end: the relay goes on until a signal.
        std::future::pending::<Result<(), Failure>>().await
    };
    tokio::select! {
        typed = typing => typed,
        error = running.finished() => Err(error.into()),
    }
}
