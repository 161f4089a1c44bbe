mod fetching;
mod key_sets;
mod keeping;
mod server;
#[path = "../../../tests/support/signer.rs"]
pub(crate) mod signer;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::clock::Clock;
use crate::error::ClientFacing as _;
use crate::metrics::Metrics;

pub(crate) const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
const NOW: i64 = 1_800_000_000;

/// Knows the tests' secret and `sb_publishable_abc`.
pub(crate) fn verifier() -> Verifier {
    verifier_of(VerifierConfig {
        jwt_secret: Some(SECRET.to_vec()),
        opaque_keys: [("sb_publishable_abc".to_owned(), "anon".to_owned())].into(),
        key_set: None,
    })
}

pub(crate) fn verifier_of(config: VerifierConfig) -> Verifier {
    Verifier::new(config, Clock::system(), Arc::new(Metrics::new()))
}

fn signed(header: &Value, claims: &Value, algorithm: Algorithm, secret: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), algorithm).unwrap();
    format!("{message}.{signature}")
}

/// A token of the tests' secret.
pub(crate) fn token(claims: Value) -> String {
    signed(&json!({"alg": "HS256"}), &claims, Algorithm::HS256, SECRET)
}

fn refused(token: &str) -> TokenError {
    verifier().verify(token, NOW).unwrap_err()
}

#[test]
fn a_valid_token_makes_a_principal() {
    let claims =
        json!({"role": "authenticated", "sub": "u1", "exp": NOW + 60, "iat": NOW, "nbf": NOW + 9, "aud": 7, "iss": []});
    let principal = verifier().verify(&token(claims), NOW).unwrap();
    assert_eq!((&*principal.role, &*principal.subject, principal.expires_at), ("authenticated", "u1", NOW + 60));
}

#[test]
fn all_three_hmac_algorithms_are_taken_and_an_unknown_kid_does_not_matter() {
    let claims = json!({"role": "anon", "exp": NOW + 1});
    for (name, algorithm) in [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)] {
        let token = signed(&json!({"alg": name, "kid": "nobody knows"}), &claims, algorithm, SECRET);
        assert!(verifier().verify(&token, NOW).is_ok(), "{name}");
    }
}

#[test]
fn escapes_and_whitespace_in_a_token_are_undone() {
    let token = token(json!({"role": "anon", "exp": NOW + 1}));
    let dressed = format!(" {}\n", token.replace('.', "%2e"));
    assert!(verifier().verify(&dressed, NOW).is_ok());
}

#[test]
fn what_is_no_jwt_says_so() {
    for text in ["", "potato", "a.b", "a.b.c", "%", "%zz.%+1.x", "e30.e30", "W10.W10.x", "ä.ö.ü"] {
        let error = refused(text);
        assert_eq!(error, TokenError::Malformed, "{text}");
        assert_eq!(error.handshake(), (401, "The token provided is not a valid JWT".into()));
        assert_eq!(error.join_reason(), "MalformedJWT: The token provided is not a valid JWT");
    }
    assert_eq!(refused(&"x".repeat(1 << 20)), TokenError::Malformed);
}

#[test]
fn another_secret_is_a_signature_error() {
    let claims = json!({"role": "anon", "exp": NOW + 1});
    let other =
        signed(&json!({"alg": "HS256"}), &claims, Algorithm::HS256, b"another secret of thirty-two bytes and more");
    let cut = token(claims).rsplit_once('.').unwrap().0.to_owned() + ".!!";
    for text in [other, cut] {
        let error = refused(&text);
        assert_eq!(error.handshake(), (401, "Failed to validate JWT signature".into()));
        assert_eq!(error.join_reason(), "JwtSignatureError: Failed to validate JWT signature");
    }
}

#[test]
fn the_header_can_not_choose_another_algorithm_than_the_one_signed_with() {
    let claims = json!({"role": "anon", "exp": NOW + 1});
    assert_eq!(refused(&signed(&json!({"alg": "HS512"}), &claims, Algorithm::HS256, SECRET)), TokenError::Signature);
}

#[test]
fn none_and_unknown_algorithms_have_no_signer() {
    let claims = json!({"role": "service_role", "exp": NOW + 1});
    for header in
        [json!({"alg": "none"}), json!({"alg": "NONE"}), json!({}), json!({"alg": 5}), json!({"alg": "RS256"})]
    {
        let error = refused(&signed(&header, &claims, Algorithm::HS256, SECRET));
        let text = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
        assert_eq!(error.handshake(), (401, text.into()), "{header}");
        assert_eq!(error.join_reason(), format!("JwtSignerError: {text}"));
    }
    let unsigned =
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims.to_string()));
    assert_eq!(refused(&unsigned), TokenError::NoSigner { kid: None });
    let critical = json!({"alg": "HS256", "crit": ["b64"]});
    assert_eq!(refused(&signed(&critical, &claims, Algorithm::HS256, SECRET)), TokenError::NoSigner { kid: None });
}

#[test]
fn a_key_id_that_is_unknown_is_named() {
    let header = json!({"alg": "ES256", "kid": "k1"});
    let error = refused(&signed(&header, &json!({"role": "anon", "exp": NOW + 1}), Algorithm::HS256, SECRET));
    let text = "Failed to generate JWT signer for key ID (kid) \"k1\", check your JWT secret or JWKS configuration";
    assert_eq!(error.client_text(), text);
    assert_eq!(error.handshake(), (401, text.into()));
}

#[test]
fn without_a_secret_every_jwt_is_refused() {
    let verifier = verifier_of(VerifierConfig::default());
    let token = token(json!({"role": "anon", "exp": NOW + 1}));
    assert_eq!(verifier.verify(&token, NOW), Err(TokenError::NoSigner { kid: None }));
}

#[test]
fn expiry_is_strict_and_says_how_long_ago() {
    let at = |exp: Value| verifier().verify(&token(json!({"role": "anon", "exp": exp})), NOW);
    assert_eq!(at(json!(NOW)), Err(TokenError::Expired { seconds: 0 }));
    let error = at(json!(NOW - 7)).unwrap_err();
    assert_eq!(error.handshake(), (401, "Token has expired".into()));
    assert_eq!(error.join_reason(), "InvalidJWTToken: Token has expired 7 seconds ago");
    assert_eq!(error.client_text(), "Token has expired 7 seconds ago");
    assert_eq!(at(json!(i64::MIN)), Err(TokenError::Expired { seconds: i64::MAX }));
    assert_eq!(at(json!(u64::MAX)).unwrap().expires_at, i64::MAX);
    assert_eq!(at(json!(1e300)).unwrap().expires_at, i64::MAX);
}

#[test]
fn decimal_times_are_rounded_in_the_claims_too() {
    let claims = json!({"role": "anon", "exp": NOW as f64 + 1.5, "iat": NOW as f64 - 0.4});
    let principal = verifier().verify(&token(claims), NOW).unwrap();
    assert_eq!(principal.expires_at, NOW + 2);
    assert_eq!(principal.claims["exp"], json!(NOW + 2));
    assert_eq!(principal.claims["iat"], json!(NOW));
}

#[test]
fn role_and_exp_are_required() {
    for claims in [json!({"exp": NOW + 1}), json!({"role": "anon"}), json!({"role": null, "exp": NOW + 1}), json!({})] {
        let error = refused(&token(claims));
        assert_eq!(error.handshake(), (401, "Fields `role` and `exp` are required in JWT".into()));
        assert_eq!(error.join_reason(), "InvalidJWTToken: Fields `role` and `exp` are required in JWT");
    }
}

#[test]
fn times_of_another_type_are_an_internal_error_as_clients_know_it() {
    let exp = json!({"role": "anon", "exp": (NOW + 1).to_string()});
    let iat = json!({"role": "anon", "exp": NOW + 1, "iat": "yesterday"});
    for claims in [exp, iat] {
        let error = refused(&token(claims));
        assert_eq!(error.handshake(), (500, "Error connecting to Realtime".into()));
        assert_eq!(error.join_reason(), "Unknown Error on Channel");
    }
}

#[test]
fn an_opaque_key_stands_for_its_role() {
    let principal = verifier().verify("sb_publishable_abc", NOW).unwrap();
    assert_eq!(&*principal.role, "anon");
    assert!(!principal.is_expired(i64::MAX - 1));
    assert_eq!(refused("sb_publishable_abd"), TokenError::Malformed);
}

#[test]
fn debug_shows_no_secret() {
    let (jwt_secret, opaque_keys) = (Some(SECRET.to_vec()), [("sb_x".into(), "r".into())].into());
    let config = VerifierConfig { jwt_secret, opaque_keys, key_set: None };
    let text = format!("{config:?} {:?}", verifier_of(config.clone()));
    assert!(!text.contains("sb_x") && !text.contains("97"), "{text}");
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>(), parts in "[A-Za-z0-9_%-]{0,40}\\.[A-Za-z0-9_%-]{0,40}\\.[A-Za-z0-9_%-]{0,9}") {
        prop_assert!(verifier().verify(&text, NOW).is_err());
        prop_assert!(verifier().verify(&parts, NOW).is_err());
    }
}
