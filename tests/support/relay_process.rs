//! `RelayProcess`: the built binary in a process of its own, for tests that kill it, load it or measure it.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::TestPg;

/// Of every relay that a test starts.
pub(crate) const JWT_SECRET: &str = "the secret of a test relay, longer than thirty-two bytes";

/// Where a relay runs and keeps its files; may be started again and again.
#[derive(Debug)]
pub(crate) struct RelayHome {
    database_url: String,
    port: u16,
    dir: tempfile::TempDir,
}

impl RelayHome {
    /// For this database, on a free port, with an empty data folder on a real disk.
    pub(crate) fn new(pg: &TestPg) -> RelayHome {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        RelayHome { database_url: pg.url(), port: free_port(), dir }
    }

    /// `host:port` of the public door.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `ROWCAST_DATA_DIR`.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What all relays here have said.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    /// Starts `rowcast serve` and returns at once.
    pub(crate) fn start(&self) -> RelayProcess {
        let output = File::options().create(true).append(true).open(self.dir.path().join("output")).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
        command.arg("serve").env_clear().current_dir(self.dir.path());
        command.env("DATABASE_URL", &self.database_url).env("JWT_SECRET", JWT_SECRET);
        command.env("HOST", "127.0.0.1").env("PORT", self.port.to_string());
        command.env("ROWCAST_DATA_DIR", self.data_dir()).env("ROWCAST_ADMIN_ADDR", "127.0.0.1:0");
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a handle")).stderr(output);
        RelayProcess { child: command.spawn().expect("the relay's binary"), address: self.address() }
    }

    /// Starts it and waits until changes stream.
    pub(crate) async fn start_ready(&self) -> RelayProcess {
        let mut relay = self.start();
        if let Err(what) = relay.ready(Duration::from_secs(30)).await {
            panic!("the relay is not ready: {what}\n{}", tail(&self.output()));
        }
        relay
    }
}

/// A running relay. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct RelayProcess {
    child: Child,
    address: String,
}

impl RelayProcess {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `/readyz` says 200, or says why it doesn't.
    pub(crate) async fn ready(&mut self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let mut last = "no answer".to_owned();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended with {status}"));
            }
            match get(&self.address, "/readyz").await {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => last = format!("{status} {body}"),
                Err(error) if Instant::now() >= deadline => last = error.to_string(),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(last);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL; returns when the process is gone. It must have been running until then.
    pub(crate) fn kill_running(&mut self, output: &str) {
        self.child.kill().expect("a signal");
        let status = self.child.wait().expect("its end");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "it ended by itself with {status}\n{}", tail(output));
    }

    /// SIGTERM; `None` if it is still there after the limit.
    pub(crate) async fn stop(mut self, limit: Duration) -> Option<ExitStatus> {
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM).expect("a signal");
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("its state") {
                return Some(status);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// Memory in use, in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// CPU time used so far, in user and kernel.
    pub(crate) fn cpu_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // After the name in parentheses; utime and stime are the 14th and 15th field, in ticks of 10 ms.
        let fields = text.rsplit(") ").next().unwrap_or_default().split(' ');
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(10 * ticks)
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body.
async fn get(address: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.ok_or_else(|| io::Error::other("no HTTP answer"))?, body.to_owned()))
}

/// The last lines of a relay's output.
pub(crate) fn tail(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Where the profile's programs are: `target/debug` or `target/release`.
pub(crate) fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rowcast")).parent().expect("a folder")
}

/// Below the range that the system hands to outgoing connections and beside that of the servers, so that a restart finds its
/// port free; none twice in this process.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 6000).expect("small");
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 6000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
