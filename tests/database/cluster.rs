//! The private cluster of `rowcast dev`: what survives, what is cleaned up, what is refused.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use rowcast::dev::binaries::Search;
use rowcast::dev::cluster::{Cluster, ClusterError, ClusterOptions};
use rowcast::error::{Fault as _, chain};
use rowcast::pg::PgConfig;

use crate::support::TestPg;

fn options(state: &Path) -> ClusterOptions {
    let search = Search {
        pg_bin: std::env::var_os("PG_BIN").map(PathBuf::from),
        path: std::env::var_os("PATH"),
        ..Search::default()
    };
    ClusterOptions { state_dir: state.to_owned(), search, port: None }
}

/// A folder that every user may enter, since the server does not run as root.
fn state_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    folder
}

async fn start(options: &ClusterOptions) -> Result<Cluster, ClusterError> {
    let options = options.clone();
    tokio::task::spawn_blocking(move || Cluster::start(&options)).await.expect("no panic")
}

async fn stop(cluster: Cluster) {
    tokio::task::spawn_blocking(move || cluster.stop()).await.expect("no panic");
}

async fn query(cluster: &Cluster, sql: &str) -> String {
    let config = PgConfig::from_url(&cluster.url("postgres")).expect("a URL");
    let client = config.connect().await.expect("a connection");
    client.query_one(sql, &[]).await.expect("a row").get(0)
}

fn is_alive(pid: u32) -> bool {
    // A zombie is dead too; only the state tells.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']) && !rest.is_empty())
}

#[tokio::test]
async fn the_cluster_keeps_data_port_and_password_between_runs() {
    let state = state_folder();
    let options = options(&state.path().join("state"));
    let cluster = start(&options).await.expect("the first start");
    let (url, pid) = (cluster.url("postgres"), cluster.pid());
    assert_eq!(query(&cluster, "show wal_level").await, "logical");
    assert_eq!(query(&cluster, "show listen_addresses").await, "127.0.0.1");
    let client = PgConfig::from_url(&url).expect("a URL").connect().await.expect("a connection");
    client.batch_execute("create table kept ()").await.expect("a table");
    stop(cluster).await;
    assert!(!is_alive(pid));

    let cluster = start(&options).await.expect("the second start");
    assert_eq!(cluster.url("postgres"), url);
    assert_eq!(query(&cluster, "select to_regclass('kept')::text").await, "kept");
    let pid = cluster.pid();
    drop(cluster);
    assert!(!is_alive(pid), "dropping it stops the server");
}

#[tokio::test]
async fn a_wrong_password_is_refused() {
    let state = state_folder();
    let cluster = start(&options(state.path())).await.expect("it starts");
    let url = format!("postgres://postgres:guess@127.0.0.1:{}/postgres", cluster.port());
    let error = PgConfig::from_url(&url).expect("a URL").connect().await.expect_err("a wrong password");
    assert_eq!(error.sqlstate().map(|state| state.code()), Some("28P01"));
    let mode = fs::metadata(state.path().join("password")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn as_root_the_server_runs_as_somebody_else_in_a_folder_of_his() {
    if !Uid::effective().is_root() {
        return;
    }
    let state = state_folder();
    let cluster = start(&options(state.path())).await.expect("it starts");
    let process = fs::metadata(format!("/proc/{}", cluster.pid())).expect("it runs");
    assert_ne!(process.uid(), 0);
    let data = fs::metadata(state.path().join("cluster/data")).expect("there");
    assert_eq!((data.uid(), data.mode() & 0o777), (process.uid(), 0o700));
    drop(cluster);

    // In a folder that nobody else may enter, the error names the folder and the way out.
    fs::set_permissions(state.path(), fs::Permissions::from_mode(0o700)).expect("a mode");
    let error = start(&options(state.path())).await.expect_err("unreachable");
    assert!(error.to_string().contains("can't enter"), "{error}");
    assert!(error.advice().contains("--state-dir"), "{}", error.advice());
}

#[tokio::test]
async fn a_second_run_is_refused_and_does_not_harm_the_first() {
    let state = state_folder();
    let cluster = start(&options(state.path())).await.expect("it starts");
    let error = start(&options(state.path())).await.expect_err("in use");
    assert!(matches!(error, ClusterError::InUse(_)), "{}", chain(&error));
    assert_eq!(query(&cluster, "select 'still here'").await, "still here");
}

#[tokio::test]
async fn a_server_that_outlived_its_run_is_ended_and_another_one_is_not() {
    let state = state_folder();
    let options = options(state.path());
    let cluster = start(&options).await.expect("it starts");
    let bystander = TestPg::bare().await;
    // What a SIGKILL of the whole process leaves: a running server, and a lock that nobody holds. Forgetting the value
    // keeps the lock's file open, so it is replaced, as a new boot of the process would see it free.
    let orphan = cluster.pid();
    std::mem::forget(cluster);
    fs::remove_file(state.path().join("lock")).expect("the lock");
    assert!(is_alive(orphan));

    let cluster = start(&options).await.expect("it starts again");
    assert!(!is_alive(orphan));
    assert_eq!(query(&cluster, "select 'new'").await, "new");
    bystander.exec("select 1").await;
    // It was our child, so somebody has to take note of its end.
    let orphan = Pid::from_raw(i32::try_from(orphan).expect("a pid"));
    nix::sys::wait::waitpid(orphan, None).expect("it ended");
}

#[tokio::test]
async fn a_killed_postmasters_pid_file_does_not_stop_the_next_start() {
    let state = state_folder();
    let options = options(state.path());
    let pid_file = state.path().join("cluster/data/postmaster.pid");

    let cluster = start(&options).await.expect("it starts");
    kill(Pid::from_raw(i32::try_from(cluster.pid()).expect("a pid")), Signal::SIGKILL).expect("killed");
    drop(cluster);
    assert!(pid_file.exists());
    let cluster = start(&options).await.expect("it starts after a kill");
    let kept = fs::read_to_string(&pid_file).expect("there");
    stop(cluster).await;

    // The number may belong to somebody else by then; he is left alone.
    let mut bystander = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
    let lines: Vec<&str> = kept.lines().skip(1).collect();
    fs::write(&pid_file, format!("{}\n{}\n", bystander.id(), lines.join("\n"))).expect("written");
    let cluster = start(&options).await.expect("it starts with a reused pid");
    assert!(is_alive(bystander.id()));
    stop(cluster).await;
    bystander.kill().expect("ours");
    bystander.wait().expect("ended");
}

#[tokio::test]
async fn a_start_that_was_cut_short_is_made_good() {
    let state = state_folder();
    let half = state.path().join("cluster/data.unfinished");
    fs::create_dir_all(half.join("base")).expect("a half-made directory");
    let cluster = start(&options(state.path())).await.expect("it starts");
    assert_eq!(query(&cluster, "select 'whole'").await, "whole");
    assert!(!half.exists());
}
