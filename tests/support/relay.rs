//! `Relay`: the real `App` inside the test's process. `RelayProcess`: the built program, where a signal or a kill is meant.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowcast::app::{App, Running};
use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::log::RealFiles;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::phone::{PATIENCE, Phone, Version};
use super::sdk::{SdkPhone, Stock};
use super::token::SECRET;
use super::{TestPg, pg};

/// A running relay in this process. Dropping it ends it without a goodbye.
pub(crate) struct Relay {
    running: Running,
    addr: SocketAddr,
    admin: SocketAddr,
    _data: TempDir,
}

impl Relay {
    /// On ports of the system's choice; returns when changes are streaming.
    #[track_caller]
    pub(crate) fn start(pg: &TestPg) -> impl Future<Output = Relay> + use<> {
        Relay::with(pg, Clock::system(), |_| {})
    }

    /// With a clock that the test moves (timers don't follow it), and settings that it changes.
    #[track_caller]
    pub(crate) fn with<F: FnOnce(&mut Config)>(
        pg: &TestPg,
        clock: Clock,
        change: F,
    ) -> impl Future<Output = Relay> + use<F> {
        let at = Location::caller();
        let data = tempfile::tempdir().expect("a folder");
        let mut config = Config::new(&pg.url(), SECRET, data.path()).unwrap_or_else(|error| failed(at, &error));
        config.admin = Some(([127, 0, 0, 1], 0).into());
        change(&mut config);
        async move {
            let app = Box::pin(App::build_on(config, Arc::new(RealFiles), clock))
                .await
                .unwrap_or_else(|error| failed(at, &error));
            let mut running = app.spawn();
            let (addr, admin) = (running.local_addr, running.admin_addr.expect("an admin address"));
            running.ready(PATIENCE).await.unwrap_or_else(|error| failed(at, &error));
            Relay { running, addr, admin, _data: data }
        }
    }

    /// What an application is configured with.
    pub(crate) fn base(&self) -> String {
        base(self.addr)
    }

    /// Where the relay listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where metrics and the state are.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its log.
    pub(crate) fn log(&self) -> &rowcast::log::Log {
        self.running.log()
    }

    /// A connected raw client.
    #[track_caller]
    pub(crate) fn phone(&self, token: &str) -> impl Future<Output = Phone> + use<> {
        Phone::connect(&self.base(), token, Version::V2)
    }

    /// A connected stock client.
    #[track_caller]
    pub(crate) fn sdk(&self, stock: Stock, token: &str) -> impl Future<Output = SdkPhone> + use<> {
        SdkPhone::connect(stock, &self.base(), token)
    }

    /// The sum of all samples of a metric whose labels contain this text, such as `reason="policy"`; zero if there are none.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        let (status, text) = get(self.admin, "/metrics").await.expect("the admin address answers");
        assert_eq!(status, 200);
        let value = |line: &str| {
            let (sample, value) = line.rsplit_once(' ')?;
            let (found, with) = sample.split_once('{').unwrap_or((sample, ""));
            (found == name && with.contains(labels)).then(|| value.parse::<f64>().expect("a number"))
        };
        text.lines().filter_map(value).sum()
    }

    /// From where on the log can be read.
    pub(crate) fn floor(&self) -> rowcast::change::Lsn {
        self.running.log().floor()
    }

    /// Up to where.
    pub(crate) fn end(&self) -> rowcast::change::Lsn {
        self.running.log().end()
    }

    /// Says goodbye to all and ends, in order.
    pub(crate) async fn drain(self) {
        let drained = self.running.drain().await;
        assert!(drained.is_clean(), "{drained:?}");
    }
}

/// The built program in a process of its own, on a port that it keeps over restarts. Dropping it kills it.
pub(crate) struct RelayProcess {
    database_url: String,
    addr: SocketAddr,
    home: TempDir,
    child: Option<Child>,
    runs: u32,
    settings: Vec<(String, String)>,
    program: PathBuf,
}

impl RelayProcess {
    /// Returns when changes are streaming.
    pub(crate) async fn start(pg: &TestPg) -> RelayProcess {
        let mut relay = RelayProcess::new(pg);
        relay.start_again().await;
        relay
    }

    /// Not started yet.
    pub(crate) fn new(pg: &TestPg) -> RelayProcess {
        let home = tempfile::tempdir().expect("a folder");
        let addr = ([127, 0, 0, 1], pg::free_port()).into();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_rowcast"));
        RelayProcess { database_url: pg.url(), addr, home, child: None, runs: 0, settings: Vec::new(), program }
    }

    /// Reaches the database at another port, such as that of a wire; from the next start on.
    pub(crate) fn through(&mut self, port: u16) {
        let (head, path) = self.database_url.rsplit_once('/').expect("a URL");
        let (login, _) = head.rsplit_once(':').expect("a port");
        self.database_url = format!("{login}:{port}/{path}");
    }

    /// One more variable of its environment; from the next start on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    /// Another build of the program; `None`: the one that is tested. From the next start on.
    pub(crate) fn run_instead(&mut self, program: Option<&Path>) {
        self.program = program.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_rowcast")), Path::to_owned);
    }

    /// The opposite of `set`.
    pub(crate) fn unset(&mut self, name: &str) {
        self.settings.retain(|(known, _)| known != name);
    }

    /// After `stop` or `kill`: the same port, the same data.
    pub(crate) async fn start_again(&mut self) {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while get(self.addr, "/readyz").await.is_none_or(|(status, _)| status != 200) {
            let ended = self.child.as_mut().expect("it was started").try_wait().expect("a status");
            assert!(ended.is_none(), "it ended with {ended:?}:\n{}", self.log());
            assert!(Instant::now() < deadline, "not ready within {PATIENCE:?}:\n{}", self.log());
            pause().await;
        }
    }

    /// Like `start_again`, but returns at once.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs");
        self.runs += 1;
        let log = File::create(self.home.path().join(format!("{}.log", self.runs))).expect("a file for the log");
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .env_clear()
            .env("DATABASE_URL", &self.database_url)
            .env("HOST", self.addr.ip().to_string())
            .env("PORT", self.addr.port().to_string())
            .env("JWT_SECRET", SECRET)
            .env("ROWCAST_DATA_DIR", self.data_dir())
            .env("ROWCAST_ADMIN_ADDR", "127.0.0.1:0")
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        self.child = Some(command.spawn().expect("the program starts"));
    }

    /// SIGTERM, and the end of it.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM).await
    }

    /// SIGKILL. It must have been running until then.
    pub(crate) async fn kill(&mut self) {
        let status = self.signal(Signal::SIGKILL).await;
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "it had ended by itself:\n{}", self.log());
    }

    /// SIGSTOP: it stands still, with its connections open.
    pub(crate) fn freeze(&self) {
        self.send(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        self.send(Signal::SIGCONT);
    }

    fn send(&self, signal: Signal) {
        let id = i32::try_from(self.pid()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("it takes signals");
    }

    /// How it ended, if it has by itself; it may then be started again.
    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        let ended = self.child.as_mut()?.try_wait().expect("a status")?;
        self.child = None;
        Some(ended)
    }

    async fn signal(&mut self, signal: Signal) -> ExitStatus {
        self.send(signal);
        let mut child = self.child.take().expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("a status") {
                return status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("it is still there {PATIENCE:?} after {signal}:\n{}", self.log());
            }
            pause().await;
        }
    }

    /// Waits until this stands in the log.
    #[track_caller]
    pub(crate) fn logged<'a>(&'a self, text: &'a str) -> impl Future<Output = String> + 'a {
        let at = Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                if let Some(line) = self.log().lines().find(|line| line.contains(text)) {
                    return line.to_owned();
                }
                assert!(Instant::now() < deadline, "at {at}: not within {PATIENCE:?}: {text}\n{}", self.log());
                pause().await;
            }
        }
    }

    /// Waits until `/readyz` has this status; its text.
    #[track_caller]
    pub(crate) fn readiness(&self, wanted: u16) -> impl Future<Output = String> + '_ {
        let at = Location::caller();
        async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match get(self.addr, "/readyz").await {
                    Some((status, text)) if status == wanted => return text,
                    found => assert!(Instant::now() < deadline, "at {at}: {found:?}, not {wanted}\n{}", self.log()),
                }
                pause().await;
            }
        }
    }

    /// Waits until it has ended by itself; with which code.
    pub(crate) async fn end_by_itself(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        let child = self.child.as_mut().expect("it was started");
        loop {
            if let Some(status) = child.try_wait().expect("a status") {
                self.child = None;
                return status.code();
            }
            assert!(Instant::now() < deadline, "it still runs");
            pause().await;
        }
    }

    /// What an application is configured with.
    pub(crate) fn base(&self) -> String {
        base(self.addr)
    }

    /// Where the program listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `ROWCAST_DATA_DIR`.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Of the running process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What all runs have logged.
    pub(crate) fn log(&self) -> String {
        let run = |number| fs::read_to_string(self.home.path().join(format!("{number}.log"))).unwrap_or_default();
        (1..=self.runs).map(run).collect()
    }
}

impl Drop for RelayProcess {
    /// A test that fails says what the relay said; it ends with it.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            println!("what the relay has said:\n{}", self.log());
        }
    }
}

fn failed(at: &Location<'_>, error: &dyn std::error::Error) -> ! {
    panic!("at {at}: {}", rowcast::error::chain(error))
}

fn base(addr: SocketAddr) -> String {
    format!("ws://{addr}/realtime/v1")
}

/// Between two looks at a condition that nothing announces.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Status and body; `None` if nobody answers.
pub(crate) async fn get(addr: SocketAddr, path: &str) -> Option<(u16, String)> {
    let request = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        let text = format!("GET {path} HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    };
    tokio::time::timeout(PATIENCE, request).await.ok()?
}
