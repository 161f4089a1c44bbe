//! Where the PostgreSQL server programs are on this machine.
//!
//! The environment is passed in, not read: only the command line reads it. Rejected: linking an embedded server, which would
//! not be the server people run.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Fault, Remedy};

/// The oldest major version that has what Rowcast needs.
pub const OLDEST_MAJOR: u32 = 15;

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// `PG_BIN`: if given, this folder and no other.
    pub pg_bin: Option<PathBuf>,
    /// The value of `PATH`.
    pub path: Option<OsString>,
    /// More folders to try last, such as that of a downloaded package.
    pub extra: Vec<PathBuf>,
    /// Only this major version, such as that of an existing data directory.
    pub major: Option<u32>,
}

/// A folder with `postgres` and `initdb` of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The folder.
    pub dir: PathBuf,
    /// Such as 17.
    pub major: u32,
    /// What `postgres --version` says, such as `postgres (PostgreSQL) 17.5`.
    pub version: String,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// The folder that was asked for will not do.
    #[error("PG_BIN={}: {reason}", dir.display())]
    Chosen {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No folder will do.
    #[error("no PostgreSQL {wanted} server programs (postgres, initdb) were found{}", list(.refused))]
    NotFound {
        /// Such as `15 or newer`.
        wanted: String,
        /// Folders that had something, and why it was not taken.
        refused: Vec<String>,
    },
}

fn list(refused: &[String]) -> String {
    if refused.is_empty() { String::new() } else { format!("; looked at {}", refused.join(", ")) }
}

impl Fault for BinariesError {
    fn remedy(&self) -> Remedy {
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self {
            BinariesError::Chosen { .. } => "Point PG_BIN at the folder that holds `postgres` and `initdb`.".into(),
            BinariesError::NotFound { .. } => {
                "Install the server (Debian and Ubuntu: apt-get install postgresql; macOS: \
                 brew install postgresql@17), run scripts/dev, which offers to, or set PG_BIN to the folder that holds \
                 `postgres` and `initdb`."
                    .into()
            }
        }
    }
}

impl Binaries {
    /// The first folder that will do: `PG_BIN`; `PATH`; `pg_config --bindir`; the usual places, newest first; the extra ones.
    pub fn find(search: &Search) -> Result<Binaries, BinariesError> {
        if let Some(dir) = &search.pg_bin {
            return Binaries::at(dir, search.major)
                .map_err(|reason| BinariesError::Chosen { dir: dir.clone(), reason });
        }
        let mut refused = Vec::new();
        for dir in candidates(search) {
            if !dir.join("postgres").is_file() {
                continue;
            }
            match Binaries::at(&dir, search.major) {
                Ok(found) => return Ok(found),
                Err(reason) => refused.push(format!("{} ({reason})", dir.display())),
            }
        }
        let wanted = match search.major {
            Some(major) => major.to_string(),
            None => format!("{OLDEST_MAJOR} or newer"),
        };
        Err(BinariesError::NotFound { wanted, refused })
    }

    fn at(dir: &Path, wanted: Option<u32>) -> Result<Binaries, String> {
        for program in ["postgres", "initdb"] {
            if !dir.join(program).is_file() {
                return Err(format!("there is no {program}"));
            }
        }
        let output = Command::new(dir.join("postgres")).arg("--version").output();
        let output = output.map_err(|error| format!("postgres does not run: {error}"))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let major = major_of(&version).ok_or_else(|| "postgres does not tell its version".to_owned())?;
        match wanted {
            Some(wanted) if wanted != major => Err(format!("version {major}, not {wanted}")),
            _ if major < OLDEST_MAJOR => Err(format!("version {major} is older than {OLDEST_MAJOR}")),
            _ => Ok(Binaries { dir: dir.to_owned(), major, version }),
        }
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `psql` of the same folder, if the folder has it: packages of the bare server do not.
    pub fn psql(&self) -> Option<PathBuf> {
        let psql = self.dir.join("psql");
        psql.is_file().then_some(psql)
    }
}

/// The folder on `PATH` that holds this program.
pub fn on_path(path: Option<&OsStr>, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path?).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn candidates(search: &Search) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = search.path.as_deref().map(std::env::split_paths).into_iter().flatten().collect();
    if let Some(config) = on_path(search.path.as_deref(), "pg_config")
        && let Ok(output) = Command::new(config).arg("--bindir").output()
    {
        dirs.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    dirs.extend(versioned("/usr/lib/postgresql", "", "bin"));
    dirs.extend(versioned("/usr", "pgsql-", "bin"));
    for prefix in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
        dirs.extend(versioned(prefix, "postgresql@", "bin"));
        dirs.push(Path::new(prefix).join("postgresql/bin"));
    }
    dirs.extend(versioned("/Applications/Postgres.app/Contents/Versions", "", "bin"));
    dirs.extend(search.extra.iter().cloned());
    dirs
}

/// `parent/prefixNN/tail` for each number there is, the highest first.
fn versioned(parent: &str, prefix: &str, tail: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(parent) else { return Vec::new() };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join(tail)))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, dir)| dir).collect()
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-1)` is 15; `17beta2` is 17.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_every_form_of_the_version_line() {
        for (line, major) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some(15)),
            ("postgres (PostgreSQL) 17beta2", Some(17)),
            ("postgres (PostgreSQL) 18", Some(18)),
            ("bash: postgres: command not found", None),
        ] {
            assert_eq!(major_of(line), major, "{line}");
        }
    }

    #[test]
    fn a_chosen_folder_without_a_server_is_an_error_and_not_a_reason_to_look_elsewhere() {
        let empty = tempfile::tempdir().expect("a folder");
        let search = Search { pg_bin: Some(empty.path().to_owned()), ..Search::default() };
        let error = Binaries::find(&search).expect_err("it is empty");
        assert!(error.to_string().contains("there is no postgres"), "{error}");
        assert!(error.advice().contains("PG_BIN"));
    }

    #[test]
    fn folders_are_tried_with_the_newest_first() {
        let parent = tempfile::tempdir().expect("a folder");
        for name in ["9", "15", "17", "common"] {
            std::fs::create_dir(parent.path().join(name)).expect("a folder");
        }
        let found = versioned(parent.path().to_str().expect("text"), "", "bin");
        let expected: Vec<PathBuf> = ["17", "15", "9"].iter().map(|n| parent.path().join(n).join("bin")).collect();
        assert_eq!(found, expected);
    }
}
