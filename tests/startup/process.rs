//! `rowcast` in a process of its own.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;

pub(crate) const SECRET: &str = "a secret of at least thirty-two bytes";
/// For everything that a process does here.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a process ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary with nothing of our environment, a free port and a data folder of its own.
pub(crate) struct Rowcast {
    command: Command,
    data: TempDir,
}

impl Rowcast {
    pub(crate) fn new(arguments: &[&str]) -> Rowcast {
        let data = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
        command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Rowcast { command, data }
    }

    /// `serve`, with all that is needed but the right database.
    pub(crate) fn serve(database_url: &str) -> Rowcast {
        let rowcast = Rowcast::new(&["serve"]);
        let data = rowcast.data.path().to_owned();
        rowcast
            .at(&data)
            .env("DATABASE_URL", database_url)
            .env("JWT_SECRET", SECRET)
            .env("HOST", "127.0.0.1")
            .env("PORT", "0")
            .env("ROWCAST_ADMIN_ADDR", "off")
            .env("ROWCAST_STARTUP_TIMEOUT", "3s")
    }

    /// With this data folder, which outlives the process.
    pub(crate) fn at(self, data: &Path) -> Rowcast {
        self.env("ROWCAST_DATA_DIR", data.to_str().expect("text"))
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Rowcast {
        self.command.env(name, value);
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Rowcast {
        self.command.env_remove(name);
        self
    }

    /// Runs it to its end.
    pub(crate) async fn output(self) -> Ended {
        self.spawn().ended().await
    }

    /// Starts it and reads its log lines.
    pub(crate) fn spawn(mut self) -> Process {
        let mut child = self.command.spawn().expect("it starts");
        let (sender, lines) = mpsc::channel(1024);
        let stderr = child.stderr.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Process { child, lines, _data: self.data, seen: String::new() }
    }
}

/// A process that runs; killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    _data: TempDir,
    seen: String,
}

impl Process {
    async fn line(&mut self) -> Option<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("nothing more is logged after:\n{}", self.seen))?;
        self.seen.push_str(&line);
        self.seen.push('\n');
        Some(line)
    }

    /// Waits for a log line with this text; gives the line.
    pub(crate) async fn line_with(&mut self, text: &str) -> String {
        loop {
            match self.line().await {
                Some(line) if line.contains(text) => return line,
                Some(_) => {}
                None => panic!("no line with {text:?} in:\n{}", self.seen),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, for whoever reads it while it runs; [`Process::ended`] then has none of it.
    pub(crate) fn take_stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("not taken before")
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).expect("the signal is sent");
    }

    /// Waits for its end: standard error is closed then.
    pub(crate) async fn ended(mut self) -> Ended {
        while self.line().await.is_some() {}
        let status = self.child.wait().expect("an exit status");
        let mut stdout = String::new();
        if let Some(mut pipe) = self.child.stdout.take() {
            pipe.read_to_string(&mut stdout).expect("standard output");
        }
        Ended { code: status.code(), stdout, stderr: std::mem::take(&mut self.seen) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
