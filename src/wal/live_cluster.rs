//! A private PostgreSQL cluster for the tests of this module: real server, unix socket, gone when dropped.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::pg::PgConfig;

use super::WalConfig;

/// For anything the server is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A prepared data directory that the clusters which live at the same time share as their origin.
struct Template {
    dir: TempDir,
}

static TEMPLATE: Mutex<Weak<Template>> = Mutex::new(Weak::new());

/// A running server with the databases `postgres` and `other`, superuser `postgres` (trusted). Roles named `locked` and
/// `old` must give a password, by SCRAM and MD5.
pub(super) struct Cluster {
    dir: TempDir,
    child: Child,
    _template: Arc<Template>,
}

fn binary(name: &str) -> PathBuf {
    let in_path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    let asked = Command::new("pg_config").arg("--bindir").output().ok().filter(|o| o.status.success());
    let asked = asked.map(|o| PathBuf::from(String::from_utf8_lossy(&o.stdout).trim()));
    let mut installed: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|dirs| dirs.flatten().map(|d| d.path().join("bin")).collect())
        .unwrap_or_default();
    installed.sort();
    let mut found = in_path.into_iter().chain(asked).chain(installed.into_iter().rev()).map(|dir| dir.join(name));
    found.find(|path| path.is_file()).unwrap_or_else(|| panic!("{name} is not installed; these tests need PostgreSQL"))
}

/// Postgres refuses to run as root.
fn unprivileged() -> Option<(u32, u32)> {
    let root = nix::unistd::geteuid().is_root();
    root.then(|| {
        let user = User::from_name("postgres").expect("users can be read").expect("root needs a user postgres");
        (user.uid.as_raw(), user.gid.as_raw())
    })
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/");
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
    let dir = tempfile::Builder::new().prefix("rowcast-wal-").tempdir_in(base).expect("a directory");
    if let Some((uid, gid)) = unprivileged() {
        chown(dir.path(), Some(uid), Some(gid)).expect("it can be given away");
    }
    dir
}

fn template() -> Arc<Template> {
    let mut shared = TEMPLATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(template) = shared.upgrade() {
        return template;
    }
    let dir = directory();
    let data = dir.path().join("data");
    let options = ["-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C", "--wal-segsize=1"];
    run(command(binary("initdb")).arg("-D").arg(&data).args(options));
    let hba = data.join("pg_hba.conf");
    let trust = std::fs::read_to_string(&hba).expect("pg_hba.conf");
    std::fs::write(&hba, format!("local all locked scram-sha-256\nlocal all old md5\n{trust}")).expect("pg_hba.conf");
    let template = Arc::new(Template { dir });
    *shared = Arc::downgrade(&template);
    template
}

impl Cluster {
    /// With `wal_level = logical`.
    pub(super) async fn start() -> Cluster {
        Cluster::start_with("log_checkpoints=off").await
    }

    /// With one more setting, which wins.
    pub(super) async fn start_with(setting: &str) -> Cluster {
        let template = template();
        let dir = directory();
        let data = dir.path().join("data");
        run(command("cp").arg("-r").arg(template.dir.path().join("data")).arg(&data));
        let child = postmaster(dir.path(), setting);
        let cluster = Cluster { dir, child, _template: template };
        cluster.sql("create database other").await;
        cluster
    }

    /// Where the socket is.
    pub(super) fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Parameters for this server as the superuser, with more of them.
    pub(super) fn pg(&self, more: &str) -> PgConfig {
        let user = if more.contains("user=") { "" } else { "user=postgres" };
        let dbname = if more.contains("dbname=") { "" } else { "dbname=postgres" };
        let text = format!("host={} {user} {dbname} {more}", self.dir.path().display());
        PgConfig::from_url(&text).expect("parameters")
    }

    /// A session.
    pub(super) async fn client(&self) -> Client {
        self.pg("").connect().await.expect("connected")
    }

    /// Runs statements in a session of their own.
    pub(super) async fn sql(&self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {}", crate::error::chain(&e)));
    }

    /// The first column of the first row, as text.
    pub(super) async fn text(&self, sql: &str) -> String {
        let row = self.client().await.query_one(&format!("select ({sql})::text"), &[]).await;
        row.expect("one row").get::<_, Option<String>>(0).unwrap_or_default()
    }

    /// A configuration with a slot `s1`, quick enough for tests.
    pub(super) fn config(&self, publications: &[&str]) -> WalConfig {
        let publications = publications.iter().map(|p| (*p).into()).collect();
        let mut config = WalConfig::new(self.pg(""), "s1", publications, self.dir.path().join("spill"));
        config.status_interval = Duration::from_millis(100);
        config
    }

    /// Waits until the query's text is as wanted.
    pub(super) async fn wait_until(&self, sql: &str, wanted: impl Fn(&str) -> bool) -> String {
        let client = self.client().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let row = client.query_one(&format!("select ({sql})::text"), &[]).await.expect("one row");
            let text = row.get::<_, Option<String>>(0).unwrap_or_default();
            if wanted(&text) {
                return text;
            }
            assert!(Instant::now() < deadline, "{sql} is still {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops the server as a crash would.
    pub(super) fn crash(&mut self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        let _ = kill(pid, Signal::SIGQUIT);
        let _ = self.child.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.crash();
    }
}

fn postmaster(dir: &Path, setting: &str) -> Child {
    let socket = format!("unix_socket_directories={}", dir.display());
    let fixed = [
        "wal_level=logical",
        "fsync=off",
        "listen_addresses=",
        "max_prepared_transactions=5",
        "shared_buffers=16MB",
        "autovacuum=off",
    ];
    let mut start = command(binary("postgres"));
    start.arg("-D").arg(dir.join("data")).args(["-c", &socket]);
    for setting in fixed.into_iter().chain([setting]) {
        start.args(["-c", setting]);
    }
    let mut child = start.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("postgres starts");
    let stderr = child.stderr.take().expect("piped");
    let (ready, is_ready) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut log = String::new();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.contains("ready to accept connections") {
                let _ = ready.try_send(Ok(()));
            }
            log = log + &line + "\n";
        }
        let _ = ready.try_send(Err(log));
    });
    match is_ready.recv_timeout(PATIENCE) {
        Ok(Ok(())) => child,
        Ok(Err(log)) => panic!("postgres did not start:\n{log}"),
        Err(_) => panic!("postgres was not ready in time"),
    }
}
