//! `rowcast token`: what it makes is good for a relay, and what it must not make it refuses.

use serde_json::{Value, json};

use super::{NOTES, note, refused};
use crate::startup::process::{Ended, Rowcast};
use crate::support::stage::{Stage, all_of};
use crate::support::token::{ALICE, SECRET};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().expect("a folder"))
    }

    fn token(&self, arguments: &[&str]) -> Rowcast {
        let state = self.0.path().to_str().expect("text");
        let all: Vec<&str> = ["token", "--state-dir", state].iter().chain(arguments).copied().collect();
        Rowcast::new(&all)
    }

    /// As `rowcast dev` leaves it.
    fn keep(&self, secret: &str) {
        std::fs::write(self.0.path().join("jwt-secret"), secret).expect("a file");
    }
}

/// The claims of the one line that was printed.
#[track_caller]
fn claims(ended: &Ended) -> Value {
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{}", ended.stderr);
    let token = ended.stdout.strip_suffix('\n').expect("a whole line");
    assert!(!token.contains(char::is_whitespace), "{token:?}");
    jsonwebtoken::dangerous::insecure_decode::<Value>(token).expect("a token").claims
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_its_users_rows_at_a_relay_with_that_secret() {
    let stage = Stage::with(NOTES).await;
    let home = Home::new();
    let ended = home.token(&["--sub", ALICE, "--i-know"]).env("JWT_SECRET", SECRET).output().await;
    let claimed = claims(&ended);
    assert_eq!((&claimed["role"], &claimed["sub"]), (&json!("authenticated"), &json!(ALICE)));
    assert_eq!(claimed["exp"].as_i64(), claimed["iat"].as_i64().map(|iat| iat + 3600));
    let mut pair = stage.watch(ended.stdout.trim(), &all_of("notes")).await;
    stage.exec(&note(1, ALICE, "a")).await;
    assert_eq!(pair.next_change().await.record()["id"], 1);
}

#[tokio::test]
async fn the_secret_of_rowcast_dev_is_used_without_a_question() {
    let home = Home::new();
    let ended = home.token(&["--sub", ALICE]).output().await;
    refused(&ended, &["JWT_SECRET is not set", "rowcast dev"]);
    home.keep(&"5a".repeat(32));
    let claimed = claims(&home.token(&["--sub", ALICE, "--expires", "5m", "--claim", "org={\"id\":7}"]).output().await);
    assert_eq!((&claimed["org"]["id"], &claimed["sub"]), (&json!(7), &json!(ALICE)));
    assert_eq!(claimed["exp"].as_i64(), claimed["iat"].as_i64().map(|iat| iat + 300));
    let claimed = claims(&home.token(&["--role", "anon"]).env("JWT_SECRET", &"5a".repeat(32)).output().await);
    assert_eq!((&claimed["role"], &claimed["sub"]), (&json!("anon"), &Value::Null));
}

#[tokio::test]
async fn a_productions_settings_are_refused_until_somebody_says_he_knows() {
    let home = Home::new();
    home.keep(&"5a".repeat(32));
    let other = || home.token(&["--sub", ALICE]).env("JWT_SECRET", SECRET);
    let ended = other().output().await;
    refused(&ended, &["a production's settings: JWT_SECRET is not the one that `rowcast dev` made", "--i-know"]);
    assert!(!ended.stderr.contains(SECRET), "{}", ended.stderr);
    refused(&other().env("ROWCAST_ALLOW_TOKENS", "perhaps").output().await, &["ROWCAST_ALLOW_TOKENS is neither"]);
    refused(&other().env("ROWCAST_ALLOW_TOKENS", "false").output().await, &["a production's settings"]);
    claims(&other().env("ROWCAST_ALLOW_TOKENS", "true").output().await);

    let issuer = "https://idp.example/jwks.json";
    let ended = home.token(&[]).env("JWT_SECRET", &"5a".repeat(32)).env("JWKS_URL", issuer).output().await;
    refused(&ended, &["a production's settings: JWKS_URL is set"]);
    let ended = home.token(&["--i-know"]).env("JWKS_URL", issuer).output().await;
    refused(&ended, &["only the issuer can sign", "Get a token from the issuer"]);
}

#[tokio::test]
async fn roles_lives_and_claims_out_of_the_ordinary_are_refused() {
    let home = Home::new();
    home.keep(&"5a".repeat(32));
    for role in ["service_role", "postgres", "worker"] {
        refused(&home.token(&["--role", role]).output().await, &[role, "--any-role"]);
        let claimed = claims(&home.token(&["--role", role, "--any-role"]).output().await);
        assert_eq!(claimed["role"], role);
    }
    refused(&home.token(&["--claim", "role=\"service_role\""]).output().await, &["claim role", "--role"]);
    for usage in [["--expires", "25h"], ["--expires", "soon"], ["--claim", "org=acme"]] {
        let ended = home.token(&usage).output().await;
        assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{usage:?}: {}", ended.stderr);
    }
    let ended = home.token(&["--sub", "alice"]).output().await;
    assert!(ended.code == Some(0) && ended.stderr.contains("--sub is no UUID"), "{}", ended.stderr);
}
