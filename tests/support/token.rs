//! Who the tests' users are, and the tokens that say so.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rowcast::clock::Clock;
use rowcast::dev::mint_token;
use serde_json::{Map, json};

/// `JWT_SECRET` of every relay in the tests.
pub(crate) const SECRET: &str = "the tests' secret, of more than thirty-two bytes";
pub(crate) const ALICE: &str = "a11ce000-0000-4000-8000-000000000001";
pub(crate) const BOB: &str = "b0b00000-0000-4000-8000-000000000001";

const HOUR: Duration = Duration::from_secs(3600);

/// Of a user of role `authenticated`, good for an hour.
pub(crate) fn user(subject: &str) -> String {
    token("authenticated", subject, HOUR)
}

/// Of a role without a subject, good for an hour.
pub(crate) fn role(role: &str) -> String {
    token(role, "", HOUR)
}

/// Of a user who has this role.
pub(crate) fn user_as(role: &str, subject: &str) -> String {
    token(role, subject, HOUR)
}

/// Of a user of role `authenticated`, good for a few seconds.
pub(crate) fn short(subject: &str, seconds: u64) -> String {
    token("authenticated", subject, Duration::from_secs(seconds))
}

/// Of a user of role `authenticated`, past its time.
pub(crate) fn expired(subject: &str) -> String {
    let clock = Clock::system();
    clock.advance(-2 * 3_600_000);
    sign("authenticated", subject, HOUR, &clock)
}

fn token(role: &str, subject: &str, valid: Duration) -> String {
    sign(role, subject, valid, &Clock::system())
}

fn sign(role: &str, subject: &str, valid: Duration, clock: &Clock) -> String {
    let mut claims = Map::new();
    claims.insert("role".into(), json!(role));
    if !subject.is_empty() {
        claims.insert("sub".into(), json!(subject));
    }
    mint_token(SECRET, claims, clock, valid).expect("claims can be signed")
}

/// With these claims alone, signed with the secret, under a header of the test's own.
pub(crate) fn raw(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    signed_with(SECRET, header, claims)
}

/// The same with another secret.
pub(crate) fn signed_with(secret: &str, header: &serde_json::Value, claims: &serde_json::Value) -> String {
    let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let algorithm = jsonwebtoken::Algorithm::HS256;
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, algorithm).expect("a signature");
    format!("{message}.{signature}")
}
