//! The issuer's key set: whose tokens are let in, by which keys, and from when on no longer.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rowcast::claims::{KeySetConfig, KeySetLocation};
use rowcast::clock::Clock;
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Error;

use super::{database, notify, watching};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::signer::{Kind, Signer, key_set};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Relay, summary};

fn claims(subject: &str) -> Value {
    let now = Clock::system().unix_seconds();
    json!({ "role": "authenticated", "sub": subject, "exp": now + 3600, "iat": now, "aud": "authenticated" })
}

/// As an editor or a mounted secret does: the new file takes the old one's place at once.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(new, path).expect("renamed");
}

/// Status and `error` of a handshake; 101 has none.
async fn handshake(relay: &Relay, token: &str) -> (u16, String) {
    let url = format!("{}/websocket?apikey={token}&vsn=2.0.0", relay.base());
    match tokio::time::timeout(PATIENCE, connect_async(url)).await.expect("an answer in time") {
        Ok(_) => (101, String::new()),
        Err(Error::Http(response)) => {
            let status = response.status().as_u16();
            let body = response.into_body().expect("a body");
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            (status, body["error"].as_str().expect("a text").to_owned())
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_every_kind_of_key_get_their_users_rows_and_rotation_is_noticed() {
    let pg = database("").await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys.json");
    let signers = Kind::ALL.map(|kind| Signer::new(kind, &format!("{kind:?}-1")));
    replace(&file, &key_set(&signers.each_ref()));
    let change = |config: &mut rowcast::config::Config| {
        let location = KeySetLocation::File(file.clone());
        config.verifier.key_set =
            Some(KeySetConfig { refresh: Duration::from_millis(200), ..KeySetConfig::new(location) });
    };
    let relay = Relay::with(&pg, Clock::system(), change).await;
    assert_eq!(relay.metric("rowcast_jwks_keys", "").await, 4.0);

    // The shared secret stays good beside the set, also with a `kid` that the set lacks.
    assert_eq!(handshake(&relay, &token::user(ALICE)).await.0, 101);
    let mut phones = Vec::new();
    for signer in &signers {
        let mut phone = relay.phone(&signer.token(&claims(ALICE))).await;
        phone.subscribe("room", &watching(&["notifications"])).await;
        phones.push(phone);
    }
    pg.exec(&notify(BOB, "not hers")).await;
    pg.exec(&notify(ALICE, "hers")).await;
    super::mark(&pg, "first").await;
    for phone in &mut phones {
        assert_eq!(summary(&phone.changes_before("first").await, "kind"), ["INSERT hers"]);
    }

    let refused = |kid: &str| {
        let why = "check your JWT secret or JWKS configuration";
        (401, format!("Failed to generate JWT signer for key ID (kid) \"{kid}\", {why}"))
    };
    let forged = Signer::new(Kind::Es256, "Es256-1").token(&claims(ALICE));
    assert_eq!(handshake(&relay, &forged).await, (401, "Failed to validate JWT signature".into()));
    let unnamed = signers[1].sign(&json!({ "alg": "ES256" }), &claims(ALICE));
    let text = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
    assert_eq!(handshake(&relay, &unnamed).await, (401, text.into()));
    let stranger = Signer::new(Kind::Ed25519, "nobody's").token(&claims(ALICE));
    assert_eq!(handshake(&relay, &stranger).await, refused("nobody's"));

    // The new key comes and the old ones go, with the file.
    let next = Signer::new(Kind::Es256, "Es256-2");
    replace(&file, &key_set(&[&next]));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while relay.metric("rowcast_jwks_keys", "").await != 1.0 {
        assert!(tokio::time::Instant::now() < deadline, "the new set is not noticed");
        pause().await;
    }
    assert_eq!(handshake(&relay, &next.token(&claims(ALICE))).await.0, 101);
    for signer in &signers {
        let kid = signer.jwk()["kid"].as_str().expect("text").to_owned();
        assert_eq!(handshake(&relay, &signer.token(&claims(ALICE))).await, refused(&kid));
    }
    // Who had joined is still there, and a file that is broken changes nothing.
    replace(&file, "potato");
    while relay.metric("rowcast_jwks_fetches_total", "failed").await == 0.0 {
        assert!(tokio::time::Instant::now() < deadline, "the broken file is not noticed");
        pause().await;
    }
    assert_eq!(handshake(&relay, &next.token(&claims(ALICE))).await.0, 101);
    pg.exec(&notify(ALICE, "still hers")).await;
    for phone in &mut phones {
        assert_eq!(phone.next_change().await.record()["kind"], "still hers");
    }
    relay.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_and_new_tokens_are_verified_with_the_set_too() {
    let pg = database("").await;
    let signer = Signer::new(Kind::Es256, "k");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), key_set(&[&signer])).expect("written");
    let change = |config: &mut rowcast::config::Config| {
        config.verifier.jwt_secret = None;
        config.verifier.key_set = Some(KeySetConfig::new(KeySetLocation::File(file.path().to_owned())));
    };
    let relay = Relay::with(&pg, Clock::system(), change).await;
    let text = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
    assert_eq!(handshake(&relay, &token::user(ALICE)).await, (401, text.into()), "there is no secret");
    let mut phone = relay.phone(&signer.token(&claims(ALICE))).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    // A token of another user, signed by the set's key, on the living channel.
    phone.push_token("room", &signer.token(&claims(BOB))).await;
    phone.subscribed("room").await;
    for user in [ALICE, BOB] {
        pg.exec(&notify(user, user)).await;
    }
    super::mark(&pg, "after").await;
    assert_eq!(summary(&phone.changes_before("after").await, "kind"), [format!("INSERT {BOB}")]);
    // Of somebody else's key with the same id.
    phone.speak_as(&Signer::new(Kind::Es256, "k").token(&claims(ALICE)));
    let reply = phone.join("forged", &watching(&["notifications"])).await;
    assert_eq!(reply["response"]["reason"], "JwtSignatureError: Failed to validate JWT signature");
}
