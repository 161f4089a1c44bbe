//! The command line: what was asked for, the environment, signals, and an exit code that means something.
//!
//! | exit | means |
//! |---|---|
//! | 0 | stopped as asked |
//! | 1 | a person must do something; standard error says what |
//! | 2 | wrong usage |
//! | 70 | a bug |
//!
//! Only this module reads the environment. An error is printed once, with its causes and what to do.

mod args;
mod dev;
mod doctor;
mod explain;
mod health;
pub mod reference;
mod relay;
mod serve;
mod tail;
mod token;
mod why;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, LogFormat, Logging, Settings, default_data_dir};
use crate::error::{Fault, Remedy, chain};
use crate::migrate::{self, Scope};
use args::{Cli, Command, DatabaseArgs, MigrateAction};

/// A bug of ours (EX_SOFTWARE).
const EXIT_BUG: u8 = 70;

/// Why a command failed, ready to be printed.
struct Failure {
    text: String,
    advice: String,
    exit: u8,
}

impl<E: Fault> From<E> for Failure {
    fn from(error: E) -> Failure {
        let exit = if error.remedy() == Remedy::Bug { EXIT_BUG } else { 1 };
        Failure { text: chain(&error), advice: error.advice(), exit }
    }
}

/// The environment as texts; what is not UTF-8 is none of ours.
struct Environment {
    values: BTreeMap<String, String>,
    path: Option<OsString>,
}

impl Environment {
    fn read() -> Environment {
        let mut values = BTreeMap::new();
        let mut path = None;
        for (name, value) in std::env::vars_os() {
            if name == "PATH" {
                path = Some(value.clone());
            }
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                values.insert(name, value);
            }
        }
        Environment { values, path }
    }

    fn path(&self, name: &str) -> Option<&Path> {
        self.values.get(name).filter(|value| !value.is_empty()).map(Path::new)
    }

    fn settings(&self, file: Option<&Path>, flags: &BTreeMap<String, String>) -> Result<Settings, ConfigError> {
        Settings::load(file.or_else(|| self.path("ROWCAST_CONFIG")), &self.values, flags)
    }

    fn data_dir(&self) -> PathBuf {
        default_data_dir(self.path("XDG_STATE_HOME"), self.path("HOME"))
    }
}

/// Runs what the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let environment = Environment::read();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("rowcast").build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let text = format!("cannot start the runtime: {error}");
            return exit(Err(Failure { text, advice: String::new(), exit: 1 }));
        }
    };
    let result = runtime.block_on(Box::pin(run(cli.command, &environment)));
    // A thread that waits for standard input, or for a disk that hangs, must not hold up the exit.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    exit(result)
}

async fn run(command: Command, environment: &Environment) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::serve(&args, environment).await,
        Command::Dev(args) => dev::dev(&args, environment).await,
        Command::Migrate { action } => migrate(action, environment).await,
        Command::Doctor(args) => doctor::doctor(&args, environment).await,
        Command::ExplainPolicy(args) => explain::explain(&args, environment).await,
        Command::Why(args) => Box::pin(why::why(&args, environment)).await,
        Command::Health(args) => health::health(&args, environment).await,
        Command::Token(args) => token::token(&args, environment),
        Command::Tail(args) => Box::pin(tail::tail(&args, environment)).await,
        Command::Version => {
            println!("rowcast {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    }
}

fn exit(result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {}", failure.text);
    if !failure.advice.is_empty() {
        eprintln!("→ {}", failure.advice);
    }
    ExitCode::from(failure.exit)
}

/// Log lines to standard error. The filter was checked with the other settings.
fn start_logging(logging: &Logging) {
    // The replication library logs the errors that we handle.
    let filter = EnvFilter::new(format!("{},pgwire_replication=off", logging.filter));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match logging.format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            lines.with_ansi(colours).try_init()
        }
        LogFormat::Json => lines.json().try_init(),
    };
    if started.is_err() {
        eprintln!("warning: log lines go where they went before");
    }
}

async fn migrate(action: MigrateAction, environment: &Environment) -> Result<(), Failure> {
    let connect = async |args: &DatabaseArgs| -> Result<(tokio_postgres::Client, Settings), Failure> {
        let settings = environment.settings(args.config.as_deref(), &args.flags())?;
        let pg = settings.database()?;
        Ok((pg.connect().await?, settings))
    };
    match action {
        MigrateAction::Up(args) => {
            let (mut client, _) = connect(&args).await?;
            print!("{}", migrate::up(&mut client).await?);
            Ok(())
        }
        MigrateAction::Down { to, database } => {
            let (mut client, _) = connect(&database).await?;
            print!("{}", migrate::down(&mut client, to).await?);
            Ok(())
        }
        MigrateAction::Status(args) => {
            let (client, settings) = connect(&args).await?;
            status(&client, &settings.publications()).await
        }
    }
}

async fn status(client: &tokio_postgres::Client, publications: &[String]) -> Result<(), Failure> {
    for step in migrate::status(client).await? {
        let scope = match step.scope {
            Scope::Own => "own   ",
            Scope::Shared => "shared",
        };
        let when = step.applied_at.as_deref().unwrap_or("not applied");
        let changed = if step.changed { "  (from a different script)" } else { "" };
        println!("{:04} {:<12} {scope}  {when}{changed}", step.version, step.name);
    }
    let missing = migrate::missing(client, publications).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!("the database lacks {}", missing.join(", "));
    Err(Failure { text, advice: "Run `rowcast migrate up`.".into(), exit: 1 })
}
