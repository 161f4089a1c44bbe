//! The scripts of `sql/`, run with plain psql as the role they name, twice, and undone.

mod events;
mod load;
mod monitor;
mod publications;
mod retention;
mod roles;
mod slots;
mod supabase;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::TestPg;

/// What psql printed, and whether it was content.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) ok: bool,
    /// Both streams: what a person would see.
    pub(crate) text: String,
}

impl Printed {
    #[track_caller]
    pub(crate) fn says(&self, parts: &[&str]) -> &Printed {
        for part in parts {
            assert!(self.text.contains(part), "no {part:?} in:\n{}", self.text);
        }
        self
    }
}

/// Runs a script as this login; it must succeed.
#[track_caller]
pub(crate) fn run<'a>(
    pg: &TestPg,
    login: &str,
    script: &'a str,
    variables: &'a [(&'a str, &'a str)],
) -> impl Future<Output = Printed> + use<'a> {
    let at = std::panic::Location::caller();
    let url = pg.url_as(login);
    async move {
        let printed = psql(url, script, variables).await;
        assert!(printed.ok, "at {at}: {script} failed:\n{}", printed.text);
        printed
    }
}

/// Runs a script as this login; it must fail.
#[track_caller]
pub(crate) fn refused<'a>(
    pg: &TestPg,
    login: &str,
    script: &'a str,
    variables: &'a [(&'a str, &'a str)],
) -> impl Future<Output = Printed> + use<'a> {
    let at = std::panic::Location::caller();
    let url = pg.url_as(login);
    async move {
        let printed = psql(url, script, variables).await;
        assert!(!printed.ok, "at {at}: {script} succeeded:\n{}", printed.text);
        printed
    }
}

async fn psql(url: String, script: &str, variables: &[(&str, &str)]) -> Printed {
    let mut command = Command::new(program());
    command.env_clear().env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command.args(["--no-psqlrc", "--dbname", &url]);
    for (name, value) in variables {
        command.arg("-v").arg(format!("{name}={value}"));
    }
    command.arg("-f").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(script));
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("no panic")
        .expect("psql, which comes with the server's package");
    let text = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Printed { ok: output.status.success(), text }
}

/// Beside the server's programs, or where the shell would find it.
fn program() -> PathBuf {
    let beside = std::env::var_os("PG_BIN").map(|folder| PathBuf::from(folder).join("psql"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "psql".into())
}

/// The first column of the first row.
pub(crate) async fn value<T: for<'a> tokio_postgres::types::FromSql<'a>>(pg: &TestPg, sql: &str) -> T {
    pg.client().await.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{error:?}\n{sql}")).get(0)
}

#[test]
fn every_script_says_how_to_use_it_who_may_run_it_what_it_locks_and_how_to_undo_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut scripts = 0;
    for entry in std::fs::read_dir(folder).expect("sql/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            scripts += 1;
            let text = std::fs::read_to_string(&path).expect("a script");
            for header in ["-- Usage:", "-- Who may run it:", "-- Locks:", "-- Undo:", "\\set ON_ERROR_STOP on"] {
                assert!(text.contains(header), "{} lacks {header:?}", path.display());
            }
            assert!(text.contains("search_path = pg_catalog, pg_temp"), "{}", path.display());
            assert!(!text.to_lowercase().contains(" cascade;"), "{} uses CASCADE", path.display());
        }
    }
    assert!(scripts > 0);
}
