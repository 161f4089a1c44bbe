//! The built program: what it prints, and its exit codes.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::Clinic;
use crate::support::phone::PATIENCE;
use crate::support::token::SECRET;

pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// With nothing of our environment but these.
async fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).stdin(Stdio::null());
    let ended = tokio::time::timeout(PATIENCE * 2, tokio::task::spawn_blocking(move || command.output())).await;
    let ended = ended.expect("it ends in time").expect("no panic").expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Ended { code: ended.status.code(), stdout: text(ended.stdout), stderr: text(ended.stderr) }
}

/// Against this clinic's server, as its login.
pub(super) async fn run(clinic: &Clinic, arguments: &[&str]) -> Ended {
    let (url, data) = (clinic.pg.url_as(clinic.login), clinic.data.path().to_str().expect("text"));
    run_with(arguments, &[("DATABASE_URL", &url), ("JWT_SECRET", SECRET), ("ROWCAST_DATA_DIR", data)]).await
}

fn parsed(ended: &Ended) -> Vec<Value> {
    let value: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|e| panic!("{e}:\n{}", ended.stdout));
    value.as_array().expect("an array").clone()
}

fn checks(ended: &Ended, severity: &str) -> Vec<String> {
    let worse = parsed(ended).into_iter().filter(|finding| finding["severity"] == severity);
    worse.map(|finding| finding["check"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_code_says_how_bad_it_is() {
    let clinic = Clinic::healthy().await;
    let ended = run(&clinic, &["doctor", "--strict"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let last = ended.stdout.lines().last().unwrap_or_default();
    assert!(last == "nothing to mend" || last.ends_with(" note") || last.ends_with(" notes"), "{}", ended.stdout);

    clinic.pg.exec("alter system reset max_slot_wal_keep_size").await;
    clinic.pg.exec("select pg_reload_conf()").await;
    clinic.until("a warning", |found| found.iter().any(|f| f.check == "slot_budget" && f.sql.is_some())).await;
    let ended = run(&clinic, &["doctor"]).await;
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    for phrase in [
        "server\n",
        "  warning  max_slot_wal_keep_size is not set\n",
        "             alter system set",
        "           → Take a size",
    ] {
        assert!(ended.stdout.contains(phrase), "no {phrase:?} in\n{}", ended.stdout);
    }
    let ended = run(&clinic, &["doctor", "--strict"]).await;
    assert_eq!(ended.code, Some(1), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("1 warning"), "{}", ended.stderr);

    clinic.pg.exec("alter role relay noreplication").await;
    let ended = run(&clinic, &["doctor", "--json"]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(checks(&ended, "error"), ["login_replication"]);
    for finding in parsed(&ended) {
        for field in ["check", "severity", "subject", "what", "why", "sql", "todo"] {
            assert!(finding.get(field).is_some(), "no {field} in {finding}");
        }
    }
    let ended = run(&clinic, &["doctor", "--no-such-flag"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_settings_are_findings_beside_those_of_the_database() {
    let clinic = Clinic::healthy().await;
    let (url, data) = (clinic.pg.url_as("relay"), clinic.data.path().join("file"));
    std::fs::write(&data, "").expect("a file");
    let data = data.to_str().expect("text");
    let ended = run_with(
        &["doctor", "--json"],
        &[("DATABASE_URL", &url), ("JWT_SECRET", "hunter2"), ("PORT", "many"), ("ROWCAST_DATA_DIR", data)],
    )
    .await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(checks(&ended, "error"), ["setting", "setting", "data_dir"]);
    assert!(checks(&ended, "ok").contains(&"wal_level".to_owned()), "{}", ended.stdout);
    assert!(!ended.stdout.contains("hunter2") && !ended.stderr.contains("hunter2"));

    let ended = run_with(&["doctor"], &[]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("DATABASE_URL is not set"), "{}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_secret_and_a_small_disk_are_warnings() {
    let clinic = Clinic::healthy().await;
    let (url, data) = (clinic.pg.url_as("relay"), clinic.data.path().to_str().expect("text"));
    let ended = run_with(
        &["doctor", "--json", "--log-retain-bytes", "900000TiB"],
        &[
            ("DATABASE_URL", &url),
            ("JWT_SECRET", "super-secret-jwt-token-with-at-least-32-characters-long"),
            ("ROWCAST_DATA_DIR", data),
        ],
    )
    .await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(checks(&ended, "warning"), ["jwt_secret", "disk"]);
    assert!(!ended.stdout.contains("super-secret"), "{}", ended.stdout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_help_is_its_own_and_names_the_settings() {
    let ended = run_with(&["doctor", "--help"], &[]).await;
    assert_eq!(ended.code, Some(0));
    for phrase in ["changes nothing", "--json", "--strict", "DATABASE_URL", "Exit codes: 0 nothing worse"] {
        assert!(ended.stdout.contains(phrase), "no {phrase:?} in\n{}", ended.stdout);
    }
    assert!(!ended.stdout.contains("SIGTERM"), "{}", ended.stdout);
}
