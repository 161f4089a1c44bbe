//! A private Postgres cluster for the tests of what must agree with Postgres: one directory, a Unix socket, gone on drop.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::pg::PgConfig;

/// A running server, its superuser `postgres`.
pub(crate) struct Cluster {
    bin: PathBuf,
    dir: TempDir,
}

/// Where the server's binaries are: `PG_BIN`, the search path, `pg_config`, or where packages put them (the newest).
fn binaries() -> PathBuf {
    let has = |dir: &PathBuf| dir.join("initdb").exists() && dir.join("pg_ctl").exists();
    if let Some(dir) = std::env::var_os("PG_BIN") {
        return dir.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let asked = Command::new("pg_config").arg("--bindir").output().ok();
    let asked = asked.map(|out| PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    let mut packaged: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    packaged.sort_by_key(|dir| dir.parent().and_then(|p| p.file_name()?.to_str()?.parse::<u32>().ok()));
    let found = std::env::split_paths(&path).chain(asked).chain(packaged.into_iter().rev()).find(has);
    found.expect("this test needs the PostgreSQL server binaries; set PG_BIN to their directory")
}

impl Cluster {
    /// Makes and starts one.
    pub(crate) fn start() -> Cluster {
        let base = Path::new("/dev/shm");
        let dir = if base.is_dir() { TempDir::new_in(base) } else { TempDir::new() }.expect("a temporary directory");
        let cluster = Cluster { bin: binaries(), dir };
        if let Some(user) = server_user() {
            chown(cluster.dir.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        fs::set_permissions(cluster.dir.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
        cluster.run("initdb", &["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C", "-D"], &[]);
        let options = format!("-F -c listen_addresses= -c unix_socket_directories={}", cluster.dir.path().display());
        let log = cluster.dir.path().join("log").display().to_string();
        cluster.run("pg_ctl", &["-w", "-l", &log, "-o", &options, "-D"], &["start"]);
        cluster
    }

    /// How to connect as the superuser.
    pub(crate) fn config(&self) -> PgConfig {
        let host = self.dir.path().display().to_string().replace('/', "%2F");
        PgConfig::from_url(&format!("postgres://postgres@{host}/postgres")).expect("our own URL")
    }

    fn run(&self, program: &str, before: &[&str], after: &[&str]) {
        let mut command = Command::new(self.bin.join(program));
        command.args(before).arg(self.dir.path().join("data")).args(after);
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(user) = server_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let status = command.status().unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(status.success(), "{program} failed");
    }
}

/// Postgres refuses to run as root.
fn server_user() -> Option<nix::unistd::User> {
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    let user = nix::unistd::User::from_name("postgres").expect("the user database");
    Some(user.expect("as root, this test runs the server as the user postgres"))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A server that never started has nothing to stop, and a panic here would hide the reason.
        if self.dir.path().join("data/postmaster.pid").exists() {
            self.run("pg_ctl", &["-m", "immediate", "-D"], &["stop"]);
        }
    }
}
