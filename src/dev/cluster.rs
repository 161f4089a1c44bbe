//! The private cluster of `rowcast dev`, in a state folder that survives between runs.
//!
//! The folder holds `lock`, `port`, `password` and `cluster/` (data, log, socket). One run at a time: the lock tells a second
//! one apart from a leftover of a killed one, which alone may be stopped.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rand::Rng as _;

use super::binaries::{Binaries, BinariesError, Search};
use super::server::{self, Account, Initdb, Server, ServerError, ServerOptions};
use crate::error::{Fault, Remedy};

/// Why the cluster is not there.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No server programs.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Another run has the folder.
    #[error("another `rowcast dev` runs in {}", .0.display())]
    InUse(PathBuf),
    /// The wanted port is taken.
    #[error("port {0} on 127.0.0.1 is taken")]
    PortTaken(u16),
    /// No port could be had.
    #[error("no free port on 127.0.0.1")]
    NoPort(#[source] io::Error),
    /// The data directory says nothing we understand.
    #[error("{} is not a PostgreSQL data directory", .0.display())]
    NotData(PathBuf),
}

impl Fault for ClusterError {
    fn remedy(&self) -> Remedy {
        match self {
            ClusterError::Binaries(error) => error.remedy(),
            ClusterError::Server(error) => error.remedy(),
            _ => Remedy::Operator,
        }
    }

    fn advice(&self) -> String {
        match self {
            ClusterError::Binaries(error) => error.advice(),
            ClusterError::Server(error) => error.advice(),
            ClusterError::InUse(_) => "Stop it first, or give this one a folder of its own (--state-dir).".into(),
            ClusterError::PortTaken(_) => "Choose another port, or none: a free one is found.".into(),
            ClusterError::NotData(path) => format!("Remove {} to start afresh.", path.display()),
            ClusterError::NoPort(_) => String::new(),
        }
    }
}

/// How to run it.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The state folder; made if absent.
    pub state_dir: PathBuf,
    /// Where the server programs are.
    pub search: Search,
    /// On 127.0.0.1; `None` for the one used last time, or a free one.
    pub port: Option<u16>,
}

/// A running private cluster. Dropping it stops it.
#[derive(Debug)]
pub struct Cluster {
    server: Server,
    binaries: Binaries,
    port: u16,
    password: String,
    log: PathBuf,
    _lock: Flock<fs::File>,
}

/// Longest path of a socket's folder that leaves room for `/.s.PGSQL.65535.lock`.
const LONGEST_SOCKET_DIR: usize = 80;

impl Cluster {
    /// Makes it on the first run, starts it on every run. Blocks for up to some seconds: call it off the async threads.
    pub fn start(options: &ClusterOptions) -> Result<Cluster, ClusterError> {
        let account = Account::for_server()?;
        let account = account.as_ref();
        let state = make_state_dir(&options.state_dir, account)?;
        let lock = lock(&state)?;
        let home = state.join("cluster");
        server::make_private_dir(&home, account)?;
        let data = home.join("data");
        let log = home.join("server.log");
        let binaries = Binaries::find(&Search { major: major_of_data(&data)?, ..options.search.clone() })?;
        let password = secret::<16>(&state.join("password"))?;
        if data.exists() {
            server::clear_leftover(&data)?;
        } else {
            let initdb = Initdb { password: Some(password.clone()), arguments: Vec::new() };
            server::initdb(&binaries, &data, &initdb, account)?;
        }
        let port = choose_port(&state.join("port"), options.port)?;
        // One run's log: the history of a toy server helps nobody.
        let _ = fs::remove_file(&log);
        let socket_dir = (home.as_os_str().len() <= LONGEST_SOCKET_DIR).then(|| home.clone());
        let start_timeout = Duration::from_secs(60);
        let settings = Vec::new();
        let running = ServerOptions { data, log: log.clone(), port, socket_dir, settings, start_timeout };
        let server = Server::start(&binaries, &running, account)?;
        Ok(Cluster { server, binaries, port, password, log, _lock: lock })
    }

    /// The URL of a database in it, for the superuser.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The server programs it runs with.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// On 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Where the server writes what it has to say.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Stops it, keeping the data. Blocks for up to some seconds.
    pub fn stop(mut self) {
        self.server.stop(Duration::from_secs(20));
    }
}

/// A folder that others may enter but not read, if the server runs as another user; else only its owner.
fn make_state_dir(path: &Path, account: Option<&Account>) -> Result<PathBuf, ServerError> {
    let is_new = !path.exists();
    fs::create_dir_all(path).map_err(ServerError::file(path))?;
    if is_new {
        let mode = if account.is_some() { 0o711 } else { 0o700 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(ServerError::file(path))?;
    }
    fs::canonicalize(path).map_err(ServerError::file(path))
}

fn lock(state: &Path) -> Result<Flock<fs::File>, ClusterError> {
    let path = state.join("lock");
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(ServerError::file(&path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| ClusterError::InUse(state.to_owned()))
}

fn major_of_data(data: &Path) -> Result<Option<u32>, ClusterError> {
    if !data.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default();
    match text.trim().parse() {
        Ok(major) => Ok(Some(major)),
        Err(_) => Err(ClusterError::NotData(data.to_owned())),
    }
}

/// The secret kept in this file; made on the first call, so many random bytes as hexadecimal digits.
pub(super) fn secret<const BYTES: usize>(path: &Path) -> Result<String, ServerError> {
    match fs::read_to_string(path) {
        Ok(text) if text.len() == 2 * BYTES => return Ok(text),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(ServerError::file(path)(error)),
        _ => {}
    }
    let bytes: [u8; BYTES] = rand::rng().random();
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    server::write_secret(path, &text)?;
    Ok(text)
}

fn choose_port(file: &Path, wanted: Option<u16>) -> Result<u16, ClusterError> {
    if let Some(port) = wanted {
        return if is_free(port) { Ok(port) } else { Err(ClusterError::PortTaken(port)) };
    }
    let kept = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    if let Some(port) = kept
        && is_free(port)
    {
        return Ok(port);
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(ClusterError::NoPort)?;
    let port = listener.local_addr().map_err(ClusterError::NoPort)?.port();
    fs::write(file, port.to_string()).map_err(ServerError::file(file))?;
    Ok(port)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("jwt-secret");
        let first = secret::<32>(&path).expect("made");
        assert_eq!(first.len(), 64);
        assert_eq!(secret::<32>(&path).expect("read"), first);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_port_is_kept_while_it_is_free_and_replaced_when_it_is_taken() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("port");
        let first = choose_port(&file, None).expect("a port");
        assert_eq!(choose_port(&file, None).expect("a port"), first);
        let taken = TcpListener::bind(("127.0.0.1", first)).expect("free");
        let second = choose_port(&file, None).expect("a port");
        assert_ne!(second, first);
        assert!(matches!(choose_port(&file, Some(first)), Err(ClusterError::PortTaken(_))));
        drop(taken);
    }

    #[test]
    fn a_second_run_in_the_same_folder_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let held = lock(dir.path()).expect("free");
        assert!(matches!(lock(dir.path()), Err(ClusterError::InUse(_))));
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }
}
