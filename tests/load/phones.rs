//! The process with the phones in it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::token::SECRET;

/// To subscribe all of them, and again from the last row to the summary.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the process; it ends with this one anyway.
const DEADLINE_SECONDS: u64 = 600;

/// Killed when dropped.
pub(super) struct Phones {
    process: Child,
    /// Its end is the end of the phones.
    order: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

/// What the process saw.
#[derive(Deserialize)]
pub(super) struct Summary {
    /// In the order of the users.
    pub(super) phones: Vec<PhoneRecord>,
    /// The first of them.
    pub(super) faults: Vec<String>,
    pub(super) fault_count: usize,
}

#[derive(Deserialize)]
pub(super) struct PhoneRecord {
    pub(super) user: String,
    /// The last row came.
    pub(super) complete: bool,
    /// `id`, and microseconds since 1970.
    pub(super) rows: Vec<(i64, i64)>,
}

#[derive(Deserialize)]
struct Ready {
    seconds: f64,
}

impl Phones {
    /// One phone per user; returns before they are connected.
    pub(super) fn start(address: &str, table: &str, users: &[String]) -> Phones {
        Phones::start_with(address, table, users, false)
    }

    /// Phones that come back with their cursors.
    pub(super) fn start_resuming(address: &str, table: &str, users: &[String]) -> Phones {
        Phones::start_with(address, table, users, true)
    }

    fn start_with(address: &str, table: &str, users: &[String], resume: bool) -> Phones {
        let programs = Path::new(env!("CARGO_BIN_EXE_rowcast")).parent().expect("a folder");
        let program = programs.join("examples/phones");
        let release = if cfg!(debug_assertions) { "" } else { "--release " };
        assert!(program.exists(), "{} is missing: cargo build {release}--example phones", program.display());
        let spawned = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = spawned.expect("the phones' process");
        let order = json!({
            "address": address, "secret": SECRET, "table": table, "users": users, "deadline_seconds": DEADLINE_SECONDS,
            "resume": resume,
        });
        let mut input = process.stdin.take().expect("a pipe");
        writeln!(input, "{order}").expect("an order");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let (found, lines) = mpsc::channel(4);
        // Ends with the process.
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| found.blocking_send(line)));
        Phones { process, order: Some(input), lines }
    }

    /// Waits until all are subscribed; returns how long that took, in seconds.
    pub(super) async fn ready(&mut self) -> f64 {
        let line = self.line("all phones to be subscribed").await;
        let ready: Result<Ready, _> = serde_json::from_str(&line);
        ready.unwrap_or_else(|_| panic!("instead of being ready: {line}")).seconds
    }

    /// Takes the network away from all of them, or gives it back.
    pub(super) fn cut(&mut self, cut: bool) {
        let order = self.order.as_mut().expect("they were not told to end");
        writeln!(order, "{}", if cut { "cut" } else { "back" }).expect("they listen");
    }

    /// Waits until all are subscribed again; returns how long that took since they were given the network back.
    pub(super) async fn back(&mut self) -> f64 {
        let line = self.line("all phones to be back").await;
        let back: Result<Ready, _> = serde_json::from_str(&line);
        back.unwrap_or_else(|_| panic!("instead of being back: {line}")).seconds
    }

    /// Waits until all have their last row.
    pub(super) async fn summary(mut self) -> Summary {
        let line = self.line("all phones to get their last row").await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    async fn line(&mut self, what: &str) -> String {
        let deadline = tokio::time::timeout(PATIENCE, self.lines.recv()).await;
        let line = match deadline {
            Ok(line) => line,
            // Told to end, it says how far it got.
            Err(_) => {
                drop(self.order.take());
                let told = tokio::time::timeout(PATIENCE, self.lines.recv()).await;
                panic!("waited {PATIENCE:?} for {what}: {told:?}");
            }
        };
        line.unwrap_or_else(|| panic!("the phones ended instead of {what}"))
    }
}

impl Drop for Phones {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// For this process and those that it starts: a relay with a thousand sockets needs more than the usual 1,024.
pub(crate) fn raise_file_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a higher limit");
    assert!(
        hard >= 4096,
        "the limit of open files is {hard}, which a thousand sockets don't fit into; raise it: ulimit -Hn"
    );
}

/// The clock that the phones use too.
pub(super) fn unix_micros() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "compared with the phones' clock, in microseconds")]
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_micros()).expect("in range")
}
