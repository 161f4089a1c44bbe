//! One postmaster that this process started: initdb, start, stop.
//!
//! Postgres refuses to run as root, so as root we run it as `postgres` or, without such a user, as `nobody`; the data
//! directory then belongs to that user. The postmaster is our direct child in a process group of its own, so a Ctrl-C on the
//! terminal reaches us and not it. Settings are given on its command line: the data directory holds none of ours.
//!
//! Rejected: `pg_ctl`, which detaches the server from us, so that nobody would reap it or know that it died.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, chown};

use super::binaries::Binaries;
use crate::error::{Fault, Remedy};

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// We are root and there is nobody to run it as.
    #[error("PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody to run it as")]
    NoUser,
    /// The user that runs it can't get at a folder.
    #[error("user {user} can't enter {}, which is on the way to {}", blocked.display(), wanted.display())]
    Unreachable {
        /// The unprivileged user.
        user: String,
        /// The folder that stops it.
        blocked: PathBuf,
        /// Where it has to get.
        wanted: PathBuf,
    },
    /// A program did not run.
    #[error("cannot run {}", program.display())]
    Run {
        /// Its path.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// initdb failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The server ended while starting.
    #[error("the server did not start: {0}")]
    Start(String),
    /// The server was not ready in time.
    #[error("the server was not ready within {0:?}")]
    Timeout(Duration),
    /// A file could not be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ServerError {
    /// For `map_err`: names the file.
    pub(super) fn file(path: &Path) -> impl FnOnce(io::Error) -> ServerError + '_ {
        move |source| ServerError::File { path: path.to_owned(), source }
    }
}

impl Fault for ServerError {
    fn remedy(&self) -> Remedy {
        match self {
            ServerError::Timeout(_) => Remedy::Retry,
            _ => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            ServerError::NoUser => "Run it as an ordinary user.".into(),
            ServerError::Unreachable { .. } => {
                "Choose a folder that every user may enter (--state-dir), or run it as an ordinary user.".into()
            }
            _ => String::new(),
        }
    }
}

/// The user that the server runs as, when that is not us.
#[derive(Debug, Clone)]
pub struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// `None` for an ordinary user, who runs the server as himself.
    pub fn for_server() -> Result<Option<Account>, ServerError> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let found = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
        let user = found.ok_or(ServerError::NoUser)?;
        Ok(Some(Account { name: user.name, uid: user.uid, gid: user.gid }))
    }

    /// Whether this user can enter the folder; the error names the first one on the way that it can't.
    fn check_reach(&self, wanted: &Path) -> Result<(), ServerError> {
        let absolute = fs::canonicalize(wanted).map_err(ServerError::file(wanted))?;
        let mut ancestors: Vec<&Path> = absolute.ancestors().collect();
        ancestors.reverse();
        for folder in ancestors {
            let meta = fs::metadata(folder).map_err(ServerError::file(folder))?;
            let needed = if meta.uid() == self.uid.as_raw() {
                0o100
            } else if meta.gid() == self.gid.as_raw() {
                0o010
            } else {
                0o001
            };
            if meta.mode() & needed == 0 {
                let (user, blocked, wanted) = (self.name.clone(), folder.to_owned(), absolute.clone());
                return Err(ServerError::Unreachable { user, blocked, wanted });
            }
        }
        Ok(())
    }
}

/// Gives a path to the server's user; nothing to do for an ordinary user.
pub fn give(path: &Path, account: Option<&Account>) -> Result<(), ServerError> {
    match account {
        Some(account) => {
            chown(path, Some(account.uid), Some(account.gid)).map_err(|e| ServerError::file(path)(e.into()))
        }
        None => Ok(()),
    }
}

/// Makes a folder that only the server's user may enter.
pub fn make_private_dir(path: &Path, account: Option<&Account>) -> Result<(), ServerError> {
    fs::create_dir_all(path).map_err(ServerError::file(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(ServerError::file(path))?;
    give(path, account)
}

fn command(binaries: &Binaries, program: &str, dir: &Path, account: Option<&Account>) -> Result<Command, ServerError> {
    if let Some(account) = account {
        account.check_reach(dir)?;
        account.check_reach(&binaries.dir)?;
    }
    let mut command = Command::new(binaries.program(program));
    command.current_dir(dir).stdin(Stdio::null()).env("LC_ALL", "C");
    // Meant for the user's own servers; they must not steer ours.
    for variable in ["PGDATA", "PGPORT", "PGHOST", "PGUSER", "PGDATABASE", "PGPASSWORD", "PGOPTIONS", "PGSERVICE"] {
        command.env_remove(variable);
    }
    if let Some(account) = account {
        // Clears the supplementary groups too, since we are root then.
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    Ok(command)
}

/// How initdb is to make the cluster.
#[derive(Debug, Clone, Default)]
pub struct Initdb {
    /// Password of the superuser `postgres`; without one everybody who reaches the server is let in.
    pub password: Option<String>,
    /// More arguments, such as `--wal-segsize=1`.
    pub arguments: Vec<String>,
}

/// Makes a data directory at `data`, whole or not at all. Its parent must exist and belong to the server's user.
pub fn initdb(
    binaries: &Binaries,
    data: &Path,
    options: &Initdb,
    account: Option<&Account>,
) -> Result<(), ServerError> {
    let parent = data.parent().unwrap_or(Path::new("/"));
    // A run that was killed leaves the half-made directory under this name, never under the real one.
    let unfinished = data.with_extension("unfinished");
    match fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ServerError::file(&unfinished)(error)),
        _ => {}
    }
    let mut command = command(binaries, "initdb", parent, account)?;
    command.arg("--pgdata").arg(&unfinished).args(["--username=postgres", "--encoding=UTF8", "--locale=C"]);
    command.args(&options.arguments);
    let password_file = data.with_extension("password");
    match &options.password {
        Some(password) => {
            write_secret(&password_file, password)?;
            give(&password_file, account)?;
            command.arg("--auth=scram-sha-256").arg("--pwfile").arg(&password_file);
        }
        None => {
            command.arg("--auth=trust");
        }
    }
    let output = command.output();
    if options.password.is_some() {
        fs::remove_file(&password_file).map_err(ServerError::file(&password_file))?;
    }
    let output = output.map_err(|source| ServerError::Run { program: binaries.program("initdb"), source })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(ServerError::Initdb(last_lines(&text, 3)));
    }
    fs::rename(&unfinished, data).map_err(ServerError::file(data))
}

/// Writes a file that only its owner may read, replacing it in one step.
pub fn write_secret(path: &Path, text: &str) -> Result<(), ServerError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = path.with_extension("new");
    let _ = fs::remove_file(&new);
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path))
        .map_err(ServerError::file(path))
}

/// How to run a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The data directory.
    pub data: PathBuf,
    /// The server's output goes here.
    pub log: PathBuf,
    /// On 127.0.0.1.
    pub port: u16,
    /// Folder of the unix socket; `None` for no such socket. The system allows about 100 bytes for the whole path.
    pub socket_dir: Option<PathBuf>,
    /// Settings, such as `("fsync", "off")`; `wal_level` is logical already.
    pub settings: Vec<(String, String)>,
    /// Within which it must accept connections.
    pub start_timeout: Duration,
}

/// A running server; dropping it stops it at once.
#[derive(Debug)]
pub struct Server {
    child: Child,
}

impl Server {
    /// Starts it and waits until it accepts connections.
    pub fn start(
        binaries: &Binaries,
        options: &ServerOptions,
        account: Option<&Account>,
    ) -> Result<Server, ServerError> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&options.log);
        let log = log.map_err(ServerError::file(&options.log))?;
        let log_start = log.metadata().map_err(ServerError::file(&options.log))?.len();
        let for_stderr = log.try_clone().map_err(ServerError::file(&options.log))?;
        let mut command = command(binaries, "postgres", &options.data, account)?;
        let sockets = options.socket_dir.as_deref().unwrap_or(Path::new(""));
        command.arg("-D").arg(&options.data).stdout(log).stderr(for_stderr).process_group(0);
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        set("listen_addresses", "127.0.0.1");
        set("port", &options.port.to_string());
        set("unix_socket_directories", &sockets.to_string_lossy());
        set("wal_level", "logical");
        set("logging_collector", "off");
        for (name, value) in &options.settings {
            set(name, value);
        }
        let child = command.spawn();
        let child = child.map_err(|source| ServerError::Run { program: binaries.program("postgres"), source })?;
        let mut server = Server { child };
        server.wait_ready(options, log_start)?;
        Ok(server)
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The postmaster writes its state into line 8 of its pid file; that is also what `pg_ctl` waits for.
    fn wait_ready(&mut self, options: &ServerOptions, log_start: u64) -> Result<(), ServerError> {
        let pid_file = options.data.join("postmaster.pid");
        let own_pid = self.child.id().to_string();
        let deadline = Instant::now() + options.start_timeout;
        loop {
            if let Ok(Some(_)) = self.child.try_wait() {
                let log = fs::read(&options.log).unwrap_or_default();
                let from = usize::try_from(log_start).unwrap_or(0).min(log.len());
                return Err(ServerError::Start(last_lines(&String::from_utf8_lossy(&log[from..]), 4)));
            }
            let text = fs::read_to_string(&pid_file).unwrap_or_default();
            let mut lines = text.lines();
            // A killed server's file says "ready" too, so the process id has to be ours.
            if lines.next() == Some(own_pid.as_str()) && lines.nth(6).is_some_and(|line| line.trim() == "ready") {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(ServerError::Timeout(options.start_timeout));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends sessions, writes a checkpoint and stops; if that takes longer than the limit, stops at once.
    pub fn stop(&mut self, limit: Duration) {
        self.end(Signal::SIGINT, limit);
    }

    /// Stops without a checkpoint, as a crash would: the next start recovers from the log.
    pub fn kill(&mut self) {
        self.end(Signal::SIGQUIT, Duration::from_secs(5));
    }

    fn end(&mut self, first: Signal, limit: Duration) {
        let Ok(raw) = i32::try_from(self.child.id()) else { return };
        for (signal, limit) in [(first, limit), (Signal::SIGQUIT, Duration::from_secs(5))] {
            if !self.is_running() {
                return;
            }
            let _ = kill(Pid::from_raw(raw), signal);
            if wait_until(limit, || !self.is_running()) {
                return;
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends what an earlier run left in this data directory: a server that outlived it, sessions that outlived their killed
/// postmaster, or a pid file whose number belongs to another process by now. The caller holds the lock that says no other run
/// of ours uses the directory.
pub fn clear_leftover(data: &Path) -> Result<(), ServerError> {
    let data = fs::canonicalize(data).map_err(ServerError::file(data))?;
    let pid_file = data.join("postmaster.pid");
    let text = match fs::read_to_string(&pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ServerError::file(&pid_file)(error)),
    };
    let postmaster = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    for (signal, limit) in [(Signal::SIGINT, 20), (Signal::SIGQUIT, 5), (Signal::SIGKILL, 5)] {
        let running = processes_of(&data, postmaster);
        // Sessions follow their postmaster; without one, each is told.
        let told: Vec<i32> = match running.iter().find(|pid| Some(**pid) == postmaster) {
            Some(pid) => vec![*pid],
            None => running,
        };
        for pid in &told {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
        if told.is_empty() || wait_until(Duration::from_secs(limit), || processes_of(&data, postmaster).is_empty()) {
            break;
        }
    }
    // With nobody left the file says nothing more, and a new owner of its process id would stop the next start.
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ServerError::file(&pid_file)(error)),
        _ => Ok(()),
    }
}

/// The server processes that work in this data directory. Only `postgres` programs count: a shell may stand there too.
fn processes_of(data: &Path, postmaster: Option<i32>) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return postmaster.filter(|pid| ps_says_postmaster(*pid, data)).into_iter().collect();
    };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let process = PathBuf::from(format!("/proc/{pid}"));
        fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == data)
            && fs::read_to_string(process.join("comm")).is_ok_and(|comm| comm.trim_end() == "postgres")
    })
    .collect()
}

/// For systems without /proc.
fn ps_says_postmaster(pid: i32, data: &Path) -> bool {
    let listed = Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]).output();
    listed.is_ok_and(|output| {
        let line = String::from_utf8_lossy(&output.stdout);
        line.contains("postgres") && line.contains(&*data.to_string_lossy())
    })
}

/// Polls until the condition holds; says whether it did within the limit.
fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" / ")
}
