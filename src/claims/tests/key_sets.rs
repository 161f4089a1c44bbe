//! Tokens and key sets, with everything at hand: which key verifies what, and which keys are not taken.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::signer::{Kind, Signer, key_set};
use super::{NOW, SECRET, signed, token, verifier_of};
use crate::claims::key_set::KeySet;
use crate::claims::{KeySetConfig, KeySetLocation, TokenError, Verifier, VerifierConfig};
use crate::error::ClientFacing as _;
use crate::task::Drain;

fn claims() -> Value {
    json!({ "role": "anon", "exp": NOW + 60 })
}

/// Knows the keys of this set, and the secret if it should.
async fn knowing(set: &str, secret: bool) -> Verifier {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), set).expect("written");
    let location = KeySetLocation::File(file.path().to_owned());
    let verifier = verifier_of(VerifierConfig {
        jwt_secret: secret.then(|| SECRET.to_vec()),
        key_set: Some(KeySetConfig::new(location)),
        ..VerifierConfig::default()
    });
    verifier.load(super::server::PATIENCE, &Drain::new()).await.expect("a key set");
    verifier
}

fn of_keys(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

/// The reasons of the keys that are not taken, and how many are.
fn read(keys: &[Value]) -> (usize, Vec<&'static str>) {
    let (set, skipped) = KeySet::parse(of_keys(keys).as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    (set.len(), skipped.into_iter().map(|key| key.reason).collect())
}

fn changed(mut jwk: Value, changes: Value) -> Value {
    for (name, value) in changes.as_object().expect("an object") {
        jwk[name] = value.clone();
    }
    jwk
}

#[tokio::test]
async fn each_kind_of_key_verifies_its_own_tokens_and_those_of_no_other() {
    let signers = Kind::ALL.map(|kind| Signer::new(kind, &format!("{kind:?}")));
    let verifier = knowing(&key_set(&signers.each_ref()), false).await;
    for signer in &signers {
        let principal = verifier.verify(&signer.token(&claims()), NOW).expect("good");
        assert_eq!(&*principal.role, "anon");
        for other in &signers {
            let alg = format!("{:?}", Algorithm::RS256);
            let header = json!({ "alg": alg, "kid": other.jwk()["kid"] });
            let verdict = verifier.verify(&signer.sign(&header, &claims()), NOW);
            let same = signer.jwk()["kty"] == "RSA" && other.jwk()["kty"] == "RSA";
            assert_eq!(verdict.is_ok(), same, "{} as {}", signer.jwk()["kid"], other.jwk()["kid"]);
        }
    }
    // Both names of the one signature.
    let header = json!({ "alg": "Ed25519", "kid": "Ed25519" });
    assert!(verifier.verify(&signers[3].sign(&header, &claims()), NOW).is_ok());
}

#[tokio::test]
async fn another_key_of_the_same_id_is_a_signature_error() {
    for kind in [Kind::Es256, Kind::Es384, Kind::Ed25519] {
        let verifier = knowing(&key_set(&[&Signer::new(kind, "k")]), false).await;
        let forged = Signer::new(kind, "k").token(&claims());
        assert_eq!(verifier.verify(&forged, NOW), Err(TokenError::Signature), "{kind:?}");
        let (message, _) = forged.rsplit_once('.').expect("three parts");
        for signature in ["", "AA", "!!"] {
            assert_eq!(verifier.verify(&format!("{message}.{signature}"), NOW), Err(TokenError::Signature));
        }
    }
}

#[tokio::test]
async fn a_public_key_is_never_an_hmac_secret() {
    for kind in Kind::ALL {
        let signer = Signer::new(kind, "k");
        let jwk = signer.jwk();
        let field = if jwk["kty"] == "RSA" { "n" } else { "x" };
        let encoded = jwk[field].as_str().expect("text");
        let raw = URL_SAFE_NO_PAD.decode(encoded).expect("base64");
        let y = jwk["y"].as_str().map(|y| URL_SAFE_NO_PAD.decode(y).expect("base64")).unwrap_or_default();
        let point = [&[4], raw.as_slice(), &y].concat();
        for secret in [false, true] {
            let verifier = knowing(&key_set(&[&signer]), secret).await;
            // Whatever form of the public key the forger takes for the secret.
            let texts = [jwk.to_string().into_bytes(), encoded.as_bytes().to_vec(), raw.clone(), point.clone()];
            for (text, algorithm) in
                texts.iter().flat_map(|text| [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512].map(|a| (text, a)))
            {
                for name in [format!("{algorithm:?}"), format!("{:?}", Algorithm::RS256), "ES256".into()] {
                    let forged = signed(&json!({ "alg": name, "kid": "k" }), &claims(), algorithm, text);
                    assert!(verifier.verify(&forged, NOW).is_err(), "{kind:?} {name}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_key_id_is_needed_and_an_unknown_one_is_named() {
    let signer = Signer::new(Kind::Es256, "known");
    let verifier = knowing(&key_set(&[&signer]), true).await;
    let refused = |header: Value| verifier.verify(&signer.sign(&header, &claims()), NOW).expect_err("refused");
    let text = "Failed to generate JWT signer, check your JWT secret or JWKS configuration";
    for kid in [json!(null), json!(7), json!(["known"]), json!("")] {
        let error = refused(json!({ "alg": "ES256", "kid": kid }));
        assert_eq!(error.handshake(), (401, text.into()), "{kid}");
        assert!(!verifier.may_learn(&error));
    }
    assert_eq!(refused(json!({ "alg": "ES256" })).client_text(), text);
    // Not supported, so that no key would help.
    for alg in ["ES512", "Ed448", "PS256", "ES256K", "none"] {
        let error = refused(json!({ "alg": alg, "kid": "known" }));
        assert_eq!(error, TokenError::NoSigner { kid: None }, "{alg}");
    }
    let error = refused(json!({ "alg": "ES256", "kid": "unknown" }));
    let named =
        "Failed to generate JWT signer for key ID (kid) \"unknown\", check your JWT secret or JWKS configuration";
    assert_eq!(error.join_reason(), format!("JwtSignerError: {named}"));
    assert!(verifier.may_learn(&error));
    // The id is known, the key is of another type.
    assert_eq!(refused(json!({ "alg": "EdDSA", "kid": "known" })), TokenError::NoSigner { kid: Some("known".into()) });
}

#[tokio::test]
async fn an_hmac_token_takes_the_sets_secret_of_its_id_and_else_the_shared_one() {
    let other = b"the issuer's other secret, of more than thirty-two bytes";
    let jwk = json!({ "kty": "oct", "kid": "k", "k": URL_SAFE_NO_PAD.encode(other) });
    let with =
        |kid: &str, secret: &[u8]| signed(&json!({ "alg": "HS256", "kid": kid }), &claims(), Algorithm::HS256, secret);
    let verifier = knowing(&of_keys(std::slice::from_ref(&jwk)), true).await;
    assert!(verifier.verify(&with("k", other), NOW).is_ok());
    assert_eq!(verifier.verify(&with("k", SECRET), NOW), Err(TokenError::Signature));
    assert!(verifier.verify(&with("elsewhere", SECRET), NOW).is_ok());
    assert!(verifier.verify(&token(claims()), NOW).is_ok());
    let numbered = signed(&json!({ "alg": "HS256", "kid": 7 }), &claims(), Algorithm::HS256, SECRET);
    assert!(verifier.verify(&numbered, NOW).is_ok());
    // Without a shared secret an unknown id may be learned.
    let verifier = knowing(&of_keys(std::slice::from_ref(&jwk)), false).await;
    let error = verifier.verify(&with("elsewhere", SECRET), NOW).expect_err("no key");
    assert_eq!(error, TokenError::NoSigner { kid: Some("elsewhere".into()) });
    assert!(verifier.may_learn(&error));
    // Its `alg`, if it has one, is the only one.
    let verifier = knowing(&of_keys(&[changed(jwk, json!({ "alg": "HS512" }))]), false).await;
    assert!(verifier.verify(&with("k", other), NOW).is_err());
    let header = json!({ "alg": "HS512", "kid": "k" });
    assert!(verifier.verify(&signed(&header, &claims(), Algorithm::HS512, other), NOW).is_ok());
}

#[tokio::test]
async fn a_keys_own_algorithm_is_the_only_one() {
    let signer = Signer::new(Kind::Rs256, "k");
    for (alg, good) in [("RS256", true), ("RS512", false)] {
        let set = of_keys(&[changed(signer.jwk(), json!({ "alg": alg, "use": "sig", "key_ops": ["verify"] }))]);
        assert_eq!(knowing(&set, false).await.verify(&signer.token(&claims()), NOW).is_ok(), good, "{alg}");
    }
}

#[tokio::test]
async fn keys_of_one_id_may_differ_in_type_and_the_first_of_a_type_counts() {
    let (first, second) = (Signer::new(Kind::Es256, "k"), Signer::new(Kind::Es256, "k"));
    let (third, fourth) = (Signer::new(Kind::Ed25519, "k"), Signer::new(Kind::Rs256, "k"));
    let verifier = knowing(&key_set(&[&first, &second, &third, &fourth]), false).await;
    for (signer, good) in [(&first, true), (&second, false), (&third, true), (&fourth, true)] {
        assert_eq!(verifier.verify(&signer.token(&claims()), NOW).is_ok(), good);
    }
}

#[test]
fn a_key_that_cant_be_used_is_skipped_with_its_reason_and_the_others_stay() {
    let (rsa, ec) = (Signer::new(Kind::Rs256, "r").jwk(), Signer::new(Kind::Es256, "e").jwk());
    let ed = Signer::new(Kind::Ed25519, "o").jwk();
    let oct = json!({ "kty": "oct", "kid": "s", "k": URL_SAFE_NO_PAD.encode([7; 32]) });
    let wide = |bytes: usize| URL_SAFE_NO_PAD.encode([&vec![0xff_u8; bytes - 1][..], &[0xfb]].concat());
    // Leading zeros don't make a key longer.
    let padded = URL_SAFE_NO_PAD.encode([&[0_u8; 200][..], &[0xff; 128]].concat());
    let bad = [
        (json!(7), "not an object"),
        (json!({ "kid": "x" }), "no type (kty)"),
        (json!({ "kid": "x", "kty": "AKP" }), "a type (kty) that is not supported"),
        (changed(ec.clone(), json!({ "use": "enc" })), "not meant for checking signatures (use, key_ops)"),
        (changed(ec.clone(), json!({ "key_ops": ["sign"] })), "not meant for checking signatures (use, key_ops)"),
        (changed(ec.clone(), json!({ "key_ops": "verify" })), "not meant for checking signatures (use, key_ops)"),
        (changed(ec.clone(), json!({ "alg": "ES384" })), "an algorithm (alg) that is not supported for its type"),
        (changed(rsa.clone(), json!({ "alg": "HS256" })), "an algorithm (alg) that is not supported for its type"),
        (changed(rsa.clone(), json!({ "alg": 5 })), "an algorithm (alg) that is not supported for its type"),
        (changed(ec.clone(), json!({ "crv": "P-521" })), "a curve (crv) that is not supported"),
        (changed(ec.clone(), json!({ "crv": "P-384" })), "no base64url coordinates (x, y) of the curve's size"),
        (changed(ec.clone(), json!({ "x": "!!" })), "no base64url coordinates (x, y) of the curve's size"),
        (changed(ec.clone(), json!({ "x": ec["y"], "y": ec["x"] })), "not a valid public key"),
        (changed(ed.clone(), json!({ "crv": "Ed448" })), "a curve (crv) that is not supported"),
        (changed(ed.clone(), json!({ "x": "AA" })), "no base64url point (x) of the curve's size"),
        (changed(rsa.clone(), json!({ "n": wide(128) })), "an RSA key of less than 2048 bits"),
        (changed(rsa.clone(), json!({ "n": padded })), "an RSA key of less than 2048 bits"),
        (changed(rsa.clone(), json!({ "n": "" })), "an RSA key of less than 2048 bits"),
        (changed(rsa.clone(), json!({ "n": wide(513) })), "an RSA key of more than 4096 bits"),
        (changed(rsa.clone(), json!({ "e": "AQ" })), "not a valid public key"),
        (changed(rsa.clone(), json!({ "e": "" })), "not a valid public key"),
        (changed(rsa.clone(), json!({ "n": 7 })), "no base64url modulus and exponent (n, e)"),
        (changed(oct.clone(), json!({ "k": URL_SAFE_NO_PAD.encode([7; 31]) })), "a secret of less than 32 bytes"),
        (changed(oct.clone(), json!({ "k": "a b" })), "no base64url secret (k)"),
        (changed(ec.clone(), json!({ "kid": null })), "no key id (kid), by which tokens name it"),
        (changed(ec.clone(), json!({ "kid": 7 })), "no key id (kid), by which tokens name it"),
        (ec.clone(), "another key of this type has the same id"),
    ];
    let mut keys = vec![rsa, ec, ed, oct];
    keys.extend(bad.iter().map(|(key, _)| key.clone()));
    let (good, reasons) = read(&keys);
    assert_eq!(good, 4);
    assert_eq!(reasons, bad.map(|(_, reason)| reason));
    let many: Vec<Value> =
        (0..300).map(|n| json!({ "kty": "oct", "kid": n.to_string(), "k": URL_SAFE_NO_PAD.encode([7; 32]) })).collect();
    assert_eq!(read(&many).0, 256);
}

#[test]
fn what_is_no_set_at_all_is_an_error_and_an_empty_one_is_not() {
    for text in ["", "potato", "[]", "{}", "null", r#"{"keys":{}}"#, "{\"keys\":[", "\u{feff}{\"keys\":[]}"] {
        assert!(KeySet::parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(KeySet::parse("[".repeat(100_000).as_bytes()).is_err());
    assert_eq!(KeySet::parse(br#"{"keys":[],"more":1}"#).map(|(set, _)| set.len()).ok(), Some(0));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[A-Za-z0-9_=-]{0,90}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec![
            "RSA", "EC", "OKP", "oct", "P-256", "P-384", "Ed25519", "sig", "ES256", "HS256", "AQAB"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::from))
}

fn any_jwk() -> impl Strategy<Value = Value> {
    let names = vec!["kty", "kid", "alg", "use", "key_ops", "crv", "x", "y", "n", "e", "k", "d"];
    let fields = prop::collection::btree_map(prop::sample::select(names).prop_map(str::to_owned), any_json(), 0..10);
    fields.prop_map(|fields| Value::Object(fields.into_iter().collect()))
}

/// All of id `k`.
fn knowing_one_of_each() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        let signers = [Kind::Es256, Kind::Rs256, Kind::Ed25519].map(|kind| Signer::new(kind, "k"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(knowing(&key_set(&signers.each_ref()), true))
    })
}

proptest! {
    #[test]
    fn no_key_set_panics(keys in prop::collection::vec(any_jwk(), 0..6), text in any::<Vec<u8>>()) {
        let (set, skipped) = KeySet::parse(of_keys(&keys).as_bytes()).expect("a set");
        prop_assert_eq!(set.len() + skipped.len(), keys.len());
        let _ = KeySet::parse(&text);
    }

    #[test]
    fn a_good_key_with_one_field_changed_is_taken_or_skipped(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        name in prop::sample::select(vec!["kty", "kid", "alg", "use", "key_ops", "crv", "x", "y", "n", "e"]),
        value in any_json(),
    ) {
        let signer = Signer::new(kind, "k");
        let jwk = changed(signer.jwk(), json!({ name: value }));
        let (set, skipped) = KeySet::parse(of_keys(&[jwk]).as_bytes()).expect("a set");
        prop_assert_eq!(set.len() + skipped.len(), 1);
    }

    #[test]
    fn no_header_and_no_signature_makes_anybody(
        alg in prop_oneof![any_json(), prop::sample::select(vec!["HS256", "RS256", "ES256", "ES384", "EdDSA", "none"]).prop_map(Value::from)],
        kid in prop_oneof![any_json(), Just(json!("k"))],
        signature in "[A-Za-z0-9_-]{0,120}",
    ) {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}.{signature}", part(&json!({ "alg": alg, "kid": kid })), part(&claims()));
        prop_assert!(knowing_one_of_each().verify(&text, NOW).is_err());
    }
}
