//! `rowcast tail`: the changes that a token's owner gets, a line each, until told to stop.
//!
//! Standard output has changes and nothing else. An error that a person must mend ends it with 1; everything else is tried
//! again by [`Follow`], and said on standard error.

mod args;
mod line;
mod printer;

use std::future::pending;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::mpsc;

pub(super) use args::TailArgs;

use super::serve::Signals;
use super::{Environment, Failure};
use crate::client::{Address, Asked, ClientError, Follow, News};
use crate::clock::Clock;
use crate::config::duration;
use crate::error::{Fault, Remedy, chain};
use printer::Printer;

const DEFAULT_URL: &str = "ws://127.0.0.1:4000";
/// Name of the channel; nothing depends on it.
const CHANNEL: &str = "rowcast-tail";
/// For lines that wait for a reader, once told to stop.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Why it ends with 1.
#[derive(Debug, thiserror::Error)]
enum TailError {
    #[error("no token is given")]
    NoToken,
    #[error("cannot read the token's file {}", path.display())]
    TokenFile {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("not subscribed within {0:?}")]
    Never(Duration),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

impl Fault for TailError {
    fn remedy(&self) -> Remedy {
        match self {
            TailError::Client(error) => error.remedy(),
            _ => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            TailError::NoToken => "Set ROWCAST_TOKEN, or give --token-file, --token or --api-key; for development, \
                                   ROWCAST_TOKEN=$(rowcast token --sub <user id>)."
                .into(),
            TailError::Client(ClientError::Authorities { .. } | ClientError::Certificate(_)) => {
                let TailError::Client(error) = self else { return String::new() };
                format!("{} The flag is --ca.", error.advice())
            }
            TailError::Client(error) => error.advice(),
            TailError::Never(_) => "What it was waiting for is said above; --for may be too short.".into(),
            TailError::TokenFile { .. } | TailError::Output(_) => String::new(),
        }
    }
}

pub(super) async fn tail(args: &TailArgs, environment: &Environment) -> Result<(), Failure> {
    let asked = asked(args, environment)?;
    if asked.address.is_in_the_clear() {
        say("warning: without TLS the token can be read on the way; use wss://");
    }
    let mut signals = Signals::catch()?;
    let coloured = io::stdout().is_terminal() && environment.path("NO_COLOR").is_none();
    let printer = Printer::stdout();
    let watching = format!("{} at {}", line::clean(&asked.wanted.to_string()), asked.address);
    let mut follow = Follow::new(asked);
    let output = Output { lines: printer.lines(), json: args.json, coloured, cursors: args.cursors, watching };
    let stopped = {
        let mut printing = pin!(output.print(&mut follow, args.count));
        let mut reader_gone = pin!(printer::reader_gone());
        tokio::select! {
            biased;
            _ = signals.next() => Stopped::Asked,
            _ = &mut reader_gone => Stopped::Asked,
            () = time_over(args.time) => Stopped::TimeOver,
            printed = &mut printing => printed.map_err(TailError::Client)?,
        }
    };
    drop(output);
    let was_subscribed = follow.was_subscribed();
    if let Some(cursor) = follow.cursor().filter(|_| args.cursors && was_subscribed) {
        say(&format!("last cursor {}", line::clean(cursor)));
    }
    follow.close().await;
    let finished = async { printer.finish().await.map_err(TailError::Output) };
    match (stopped, args.time) {
        (Stopped::TimeOver, Some(time)) if !was_subscribed => return Err(TailError::Never(time).into()),
        // Whoever counts wants them all, however slowly they are read.
        (Stopped::Counted, _) => tokio::select! {
            finished = finished => finished?,
            _ = signals.next() => {}
        },
        _ => tokio::time::timeout(LAST_LINES, finished).await.unwrap_or(Ok(()))?,
    }
    Ok(())
}

/// Why the printing stopped, when nothing is wrong.
enum Stopped {
    /// A signal, or the reader had enough.
    Asked,
    TimeOver,
    Counted,
}

fn asked(args: &TailArgs, environment: &Environment) -> Result<Asked, TailError> {
    let set = |name: &str| environment.values.get(name).filter(|value| !value.is_empty());
    let url = args.url.as_ref().or_else(|| set("ROWCAST_URL")).map_or(DEFAULT_URL, String::as_str);
    let ca = args.ca.as_deref().or_else(|| environment.path("SSL_CERT_FILE"));
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => Some(token.clone()),
        (None, Some(path)) => Some(read(path)?),
        (None, None) => set("ROWCAST_TOKEN").cloned(),
    };
    let token = token.map(|token| token.trim().to_owned());
    let key = args.api_key.clone().or_else(|| token.clone()).ok_or(TailError::NoToken)?;
    Ok(Asked {
        address: Address::parse(url, ca)?,
        key,
        token,
        channel: CHANNEL.into(),
        wanted: args.wanted(),
        since: args.since.as_deref().map(since),
    })
}

/// As the relay reads it: what is a duration to us is a time to it.
fn since(text: &str) -> String {
    let Ok(ago) = duration(text) else { return text.to_owned() };
    let ago = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
    Clock::system().unix_millis().saturating_sub(ago).to_string()
}

fn read(path: &Path) -> Result<String, TailError> {
    std::fs::read_to_string(path).map_err(|source| TailError::TokenFile { path: path.to_owned(), source })
}

/// Where the lines go, and how they look.
struct Output {
    lines: mpsc::Sender<String>,
    json: bool,
    coloured: bool,
    cursors: bool,
    watching: String,
}

impl Output {
    /// Until `count` changes are handed over, or there is nobody to read them.
    async fn print(&self, follow: &mut Follow, count: Option<u64>) -> Result<Stopped, ClientError> {
        let mut left = count;
        // Said once, not at every try of a long outage.
        let mut told = String::new();
        loop {
            match follow.next().await? {
                News::Change(change) => {
                    let line = match self.json {
                        true => line::json(&change.data),
                        false => line::pretty(&change.data, self.coloured, self.cursors),
                    };
                    if self.lines.send(line).await.is_err() {
                        return Ok(Stopped::Asked);
                    }
                    left = left.map(|left| left - 1);
                    if left == Some(0) {
                        return Ok(Stopped::Counted);
                    }
                }
                News::Subscribed { again: false, .. } => say(&format!("subscribed to {}", self.watching)),
                News::Subscribed { again: true, resumed } => {
                    told.clear();
                    say(match resumed {
                        true => "subscribed again; going on after the last change",
                        false => "subscribed again; what was committed in between is not shown",
                    });
                }
                News::Notice(notice) => {
                    let kind = if notice.ok { "relay" } else { "relay error" };
                    say(&format!("{kind}: {}", line::clean(&notice.text)));
                }
                News::Lost { why, pause: _ } => {
                    let why = line::clean(&chain(&why));
                    if why != told {
                        say(&format!("{why}; trying again"));
                        told = why;
                    }
                }
            }
        }
    }
}

async fn time_over(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => pending().await,
    }
}

/// On standard error; nobody needs to be there.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
