//! A relay that can't have its key set: what it says, and when it starts all the same.

use std::net::TcpListener;

use super::mistakes::refused;
use super::process::Rowcast;
use crate::support::TestPg;

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_that_cant_be_had_is_named_without_its_query_and_what_to_do() {
    let pg = TestPg::start().await;
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("an address").port();
    drop(free);
    let url = format!("https://127.0.0.1:{port}/keys?token=hunter2");
    let ended = Rowcast::serve(&pg.url())
        .without("JWT_SECRET")
        .env("JWKS_URL", &url)
        .env("ROWCAST_STARTUP_TIMEOUT", "1s")
        .output()
        .await;
    refused(&ended, &[&format!("the key set https://127.0.0.1:{port}/keys can't be used"), "refused", "JWKS_URL"]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);

    let ended = Rowcast::serve(&pg.url()).without("JWT_SECRET").env("JWKS_URL", "/no/such/keys.json").output().await;
    refused(&ended, &["the key set /no/such/keys.json can't be used", "No such file", "JWKS_URL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_secret_it_is_a_warning() {
    let pg = TestPg::start().await;
    let mut process = Rowcast::serve(&pg.url()).env("JWKS_URL", "file:///no/such/keys.json").spawn();
    let line = process.line_with("starting without the key set").await;
    assert!(line.contains("/no/such/keys.json") && line.contains("WARN"), "{line}");
    process.line_with("listening").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_not_safe_is_a_mistake() {
    let ended = Rowcast::serve("postgres://u@127.0.0.1/x").env("JWKS_URL", "http://idp.example/keys").output().await;
    refused(&ended, &["JWKS_URL is a plain http address of another machine", "https"]);
    let with_password = "https://user:hunter2@idp.example/keys";
    let ended = Rowcast::serve("postgres://u@127.0.0.1/x").env("JWKS_URL", with_password).output().await;
    refused(&ended, &["JWKS_URL has a user name or password"]);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}
