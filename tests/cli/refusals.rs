//! `rowcast tail` that can't: one clear message with what mends it, and exit code 1.

use tokio::net::TcpListener;

use super::{NOTES, Tail, refused, tail};
use crate::startup::process::Rowcast;
use crate::support::stage::Stage;
use crate::support::token::{self, ALICE};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relay_refuses_is_told_with_its_remedy() {
    let stage = Stage::with(&format!("{NOTES} create table public.\"Not published\" (id int primary key)")).await;
    let (url, good) = (stage.relay.base(), token::user(ALICE));
    let cases: [(&str, &[&str], &[&str]); 6] = [
        (&good, &["--table", "notes", "--filter", "wrong"], &["`filter` params", "column=operator.value"]),
        (&good, &["--table", "notes", "--filter", "nope=eq.1"], &["invalid column for filter nope", "GRANT SELECT"]),
        (
            &good,
            &["--table", "Not published"],
            &["public.Not published", "ALTER PUBLICATION supabase_realtime ADD TABLE public.\"Not published\";"],
        ),
        (&good, &["--select", "id"], &["Column selection is not supported", "Name one schema and one table"]),
        (&token::expired(ALICE), &["--table", "notes"], &["refused the token", "expired", "rowcast token"]),
        (
            &token::user_as("nobody_here", ALICE),
            &["--table", "notes"],
            &["role", "does not exist", "rowcast migrate up"],
        ),
    ];
    for (token, arguments, phrases) in cases {
        let ended = tail(&url, token, arguments).output().await;
        refused(&ended, phrases);
        assert!(!ended.stderr.contains(token), "a token was printed:\n{}", ended.stderr);
    }
    let forged = token::signed_with(
        "another secret of at least thirty-two bytes",
        &serde_json::json!({ "alg": "HS256" }),
        &serde_json::json!({ "role": "authenticated", "exp": 9_999_999_999_u64 }),
    );
    refused(&tail(&url, &forged, &[]).output().await, &["signature", "JWT_SECRET"]);
    // With a key for the door and a token for the rows.
    refused(&tail(&url, &forged, &["--api-key", &good]).output().await, &["refused the token", "signature"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_ends_it() {
    let stage = Stage::with(NOTES).await;
    let mut tail = Tail::start(&stage.relay.base(), &token::short(ALICE, 8), &["--table", "notes"]);
    tail.subscribed().await;
    let (ended, _) = tail.ended().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("error: the relay refused the token: Token has expired"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_a_relay_is_named() {
    let good = token::user(ALICE);
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}", free.local_addr().expect("an address"));
    drop(free);
    let ended = tail(&url, &good, &["--for", "1s"]).output().await;
    refused(&ended, &["not subscribed within 1s"]);
    assert!(ended.stderr.contains("cannot connect: ") && ended.stderr.contains("trying again"), "{}", ended.stderr);

    refused(&tail("relay.example.com", &good, &[]).output().await, &["the address", "ws://127.0.0.1:4000"]);
    let stage = Stage::with("").await;
    let elsewhere = format!("ws://{}/elsewhere", stage.relay.addr());
    refused(&tail(&elsewhere, &good, &[]).output().await, &["is no relay", "404", "/realtime/v1"]);
}

#[tokio::test]
async fn without_a_token_it_says_where_to_get_one() {
    refused(&Rowcast::new(&["tail"]).output().await, &["no token is given", "ROWCAST_TOKEN", "rowcast token"]);
    refused(&Rowcast::new(&["tail", "--token-file", "/no/such/file"]).output().await, &["/no/such/file"]);
    for usage in [["--event", "truncate"], ["--count", "0"], ["--for", "long"]] {
        let ended = Rowcast::new(&["tail", usage[0], usage[1]]).output().await;
        assert_eq!(ended.code, Some(2), "{usage:?}: {}", ended.stderr);
    }
}
