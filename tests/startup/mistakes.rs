//! What a newcomer gets wrong, each with the message that puts it right.

use std::fs;
use std::net::TcpListener;

use super::process::{Ended, Rowcast};
use crate::support::TestPg;
use crate::support::pg::TestPgOptions;

/// One `error:` line with these phrases, and exit code 1.
#[track_caller]
pub(super) fn refused(ended: &Ended, phrases: &[&str]) {
    let text = &ended.stderr;
    assert_eq!(ended.code, Some(1), "{text}");
    let errors = text.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{text}");
    let message = &text[text.find("error: ").expect("just counted")..];
    for phrase in phrases {
        assert!(message.contains(phrase), "no {phrase:?} in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_setting_is_named_at_once() {
    let ended = Rowcast::new(&["serve", "--port", "99999"])
        .env("JWT_SECRET", "too short")
        .env("ROWCAST_DELETES", "all")
        .env("ROWCAST_LOG_RETAIN_BYTES", "much")
        .output()
        .await;
    refused(
        &ended,
        &[
            "DATABASE_URL is not set",
            "JWT_SECRET has 9 bytes",
            "PORT",
            "ROWCAST_DELETES",
            "judged",
            "ROWCAST_LOG_RETAIN_BYTES",
        ],
    );
    assert!(!ended.stderr.contains("too short"), "a secret was printed:\n{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_secret_says_how_to_make_one() {
    let ended = Rowcast::serve("postgres://u@127.0.0.1/x").without("JWT_SECRET").output().await;
    refused(&ended, &["JWT_SECRET is not set", "openssl rand -hex 32"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_url_that_is_none_says_what_one_looks_like() {
    let ended = Rowcast::serve("mysql://somewhere").output().await;
    refused(&ended, &["DATABASE_URL", "postgres://user:password@host:5432/database"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_exits_with_2() {
    let ended = Rowcast::new(&["serve", "--no-such-flag"]).output().await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_there_is_waited_for_and_then_named() {
    // A port that nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let url = format!("postgres://u:hunter2@127.0.0.1:{port}/x");
    let ended = Rowcast::serve(&url).env("ROWCAST_STARTUP_TIMEOUT", "500ms").output().await;
    refused(&ended, &["could not be used within 500ms", "refused", "DATABASE_URL"]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_set_up_for_logical_decoding_says_how() {
    let settings = vec![("wal_level", "replica")];
    let pg = TestPg::with(TestPgOptions { settings, ..TestPgOptions::default() }).await;
    let ended = Rowcast::serve(&pg.url()).output().await;
    refused(&ended, &["wal_level is replica", "ALTER SYSTEM SET wal_level"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_login_lacks_is_named() {
    let pg = TestPg::start().await;
    pg.exec("create role weak login").await;
    let ended = Rowcast::serve(&pg.url_as("weak")).output().await;
    refused(&ended, &["role weak has no replication right", "ALTER ROLE \"weak\" REPLICATION"]);

    let ended = Rowcast::serve(&format!("{}nowhere", pg.url().trim_end_matches("postgres"))).output().await;
    refused(&ended, &["\"nowhere\" does not exist", "database name"]);

    let rules = pg.data().join("pg_hba.conf");
    let old = fs::read_to_string(&rules).expect("the rules");
    fs::write(&rules, format!("host all locked 127.0.0.1/32 scram-sha-256\n{old}")).expect("new rules");
    pg.exec("create role locked login replication password 'right'; select pg_reload_conf()").await;
    let url = pg.url_as("locked").replace(":test@", ":hunter2@");
    let ended = loop {
        let ended = Rowcast::serve(&url).output().await;
        // The server reads the new rules a moment later; until then the login fails at something else.
        if ended.stderr.contains("password") {
            break ended;
        }
    };
    refused(&ended, &["password authentication failed", "Check user and password in DATABASE_URL"]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_publication_names_the_command_that_makes_it() {
    let pg = TestPg::bare().await;
    let ended = Rowcast::serve(&pg.url()).output().await;
    refused(&ended, &["publication supabase_realtime", "rowcast migrate up"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let ended = Rowcast::serve("postgres://u@127.0.0.1/x").env("PORT", &address.port().to_string()).output().await;
    refused(&ended, &[&format!("cannot listen on {address}"), "PORT"]);

    let ended =
        Rowcast::serve("postgres://u@127.0.0.1/x").env("ROWCAST_ADMIN_ADDR", &address.to_string()).output().await;
    refused(&ended, &[&format!("admin address {address}"), "ROWCAST_ADMIN_ADDR"]);
}
