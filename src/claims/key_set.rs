//! A key set (JWKS, RFC 7517) as text, to keys that are each bound to the algorithms they may be used with.
//!
//! Invariants:
//! * What a key may verify comes from the key alone: its type and curve and, if it has one, its `alg`. So a public RSA key is
//!   never an HMAC secret, whatever a token's header says.
//! * A key that can't be used is skipped with its reason; the others stay. A text that is no set at all is an error.
//! * Keys of one id may differ in type; of two with the same id and type the first counts.
//!
//! Not supported, for want of an implementation that we would trust: ES512 (P-521) and Ed448.

use std::collections::HashMap;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

/// More are skipped: a real set has a few, and each is looked at on every refresh.
const MAX_KEYS: usize = 256;
/// How much of a key id a log line repeats.
const MAX_KID_CHARS: usize = 128;
/// The least that is safe, of an HMAC secret.
const MIN_SECRET_BYTES: usize = 32;
/// The least that is safe, and the most that the library takes.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// Some issuers pad.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Keys by their ids.
#[derive(Default)]
pub(super) struct KeySet {
    keys: HashMap<String, Vec<Key>>,
}

struct Key {
    kind: String,
    algorithms: Vec<Algorithm>,
    verifying: DecodingKey,
}

/// A key that is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Skipped {
    /// Its id, shortened; empty if it has none.
    pub(super) kid: String,
    /// Why.
    pub(super) reason: &'static str,
    /// It is a good key, for something else.
    pub(super) harmless: bool,
}

impl KeySet {
    /// The usable keys, and the others. The error says what the text is not.
    pub(super) fn parse(text: &[u8]) -> Result<(KeySet, Vec<Skipped>), &'static str> {
        let set: Value = serde_json::from_slice(text).map_err(|_| "not JSON")?;
        let listed =
            set.get("keys").ok_or("not an object with `keys`")?.as_array().ok_or("its `keys` is not a list")?;
        let (mut set, mut skipped) = (KeySet::default(), Vec::new());
        for (place, jwk) in listed.iter().enumerate() {
            let kid = jwk.get("kid").and_then(Value::as_str).unwrap_or_default();
            let added =
                if place < MAX_KEYS { set.add(kid, jwk) } else { Err(Unusable("more keys than are looked at")) };
            if let Err(Unusable(reason)) = added {
                let kid = kid.chars().take(MAX_KID_CHARS).collect();
                skipped.push(Skipped { kid, reason, harmless: reason == NOT_FOR_SIGNATURES });
            }
        }
        Ok((set, skipped))
    }

    fn add(&mut self, kid: &str, jwk: &Value) -> Result<(), Unusable> {
        let jwk = jwk.as_object().ok_or(Unusable("not an object"))?;
        let key = Key::read(jwk)?;
        if kid.is_empty() {
            return Err(Unusable("no key id (kid), by which tokens name it"));
        }
        let same_id = self.keys.entry(kid.to_owned()).or_default();
        if same_id.iter().any(|other| other.kind == key.kind) {
            return Err(Unusable("another key of this type has the same id"));
        }
        same_id.push(key);
        Ok(())
    }

    /// The key of this id that may be used with this algorithm.
    pub(super) fn get(&self, kid: &str, algorithm: Algorithm) -> Option<&DecodingKey> {
        let key = self.keys.get(kid)?.iter().find(|key| key.algorithms.contains(&algorithm))?;
        Some(&key.verifying)
    }

    /// Whether some key has this id.
    pub(super) fn knows(&self, kid: &str) -> bool {
        self.keys.get(kid).is_some_and(|keys| !keys.is_empty())
    }

    /// How many keys it has.
    pub(super) fn len(&self) -> usize {
        self.keys.values().map(Vec::len).sum()
    }
}

struct Unusable(&'static str);

const NOT_FOR_SIGNATURES: &str = "not meant for checking signatures (use, key_ops)";

impl Key {
    fn read(jwk: &Map<String, Value>) -> Result<Key, Unusable> {
        let purpose = jwk.get("use").is_none_or(|purpose| purpose == "sig");
        let verifies = |ops: &Value| ops.as_array().is_some_and(|ops| ops.iter().any(|op| op == "verify"));
        if !purpose || !jwk.get("key_ops").is_none_or(verifies) {
            return Err(Unusable(NOT_FOR_SIGNATURES));
        }
        let kind = text(jwk, "kty").ok_or(Unusable("no type (kty)"))?;
        let (mut algorithms, verifying) = match kind {
            "oct" => secret(jwk)?,
            "RSA" => rsa(jwk)?,
            "EC" => elliptic(jwk)?,
            "OKP" => edwards(jwk)?,
            _ => return Err(Unusable("a type (kty) that is not supported")),
        };
        if let Some(wanted) = jwk.get("alg") {
            let wanted = wanted.as_str().and_then(algorithm);
            algorithms.retain(|algorithm| Some(*algorithm) == wanted);
        }
        let Some(any) = algorithms.first() else {
            return Err(Unusable("an algorithm (alg) that is not supported for its type"));
        };
        // The library reads the key anew for each signature. A key that it can't read must not look like a forged token.
        match jsonwebtoken::crypto::verify("", b"", &verifying, *any) {
            Ok(_) => Ok(Key { kind: kind.to_owned(), algorithms, verifying }),
            Err(_) => Err(Unusable("not a valid public key")),
        }
    }
}

/// By its name in a header or a key. Only what some key may be used with.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "HS256" => Algorithm::HS256,
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        // RFC 9864 names the curve; both are the same signature.
        "EdDSA" | "Ed25519" => Algorithm::EdDSA,
        _ => return None,
    })
}

/// Whether who can verify can also sign.
pub(super) fn is_shared(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    jwk.get(name)?.as_str()
}

fn bytes(jwk: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    LENIENT.decode(text(jwk, name)?).ok()
}

fn secret(jwk: &Map<String, Value>) -> Result<(Vec<Algorithm>, DecodingKey), Unusable> {
    let secret = bytes(jwk, "k").ok_or(Unusable("no base64url secret (k)"))?;
    if secret.len() < MIN_SECRET_BYTES {
        return Err(Unusable("a secret of less than 32 bytes"));
    }
    Ok((vec![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512], DecodingKey::from_secret(&secret)))
}

fn rsa(jwk: &Map<String, Value>) -> Result<(Vec<Algorithm>, DecodingKey), Unusable> {
    let unreadable = || Unusable("no base64url modulus and exponent (n, e)");
    let (modulus, exponent) = (bytes(jwk, "n").ok_or_else(unreadable)?, bytes(jwk, "e").ok_or_else(unreadable)?);
    let (modulus, exponent) = (significant(&modulus), significant(&exponent));
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
    if bits < *RSA_BITS.start() {
        return Err(Unusable("an RSA key of less than 2048 bits"));
    }
    if bits > *RSA_BITS.end() {
        return Err(Unusable("an RSA key of more than 4096 bits"));
    }
    let odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    // 3 is the least that is one; 65537 is what everybody has.
    if !odd(modulus) || !odd(exponent) || exponent == [1] || exponent.len() > 4 {
        return Err(Unusable("not a valid public key"));
    }
    let key = DecodingKey::from_rsa_raw_components(modulus, exponent);
    Ok((vec![Algorithm::RS256, Algorithm::RS384, Algorithm::RS512], key))
}

/// Without leading zeros.
fn significant(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

fn elliptic(jwk: &Map<String, Value>) -> Result<(Vec<Algorithm>, DecodingKey), Unusable> {
    let (algorithm, size) = match text(jwk, "crv") {
        Some("P-256") => (Algorithm::ES256, 32),
        Some("P-384") => (Algorithm::ES384, 48),
        _ => return Err(Unusable("a curve (crv) that is not supported")),
    };
    let coordinate = |name| bytes(jwk, name).filter(|number| number.len() == size);
    let (Some(x), Some(y)) = (coordinate("x"), coordinate("y")) else {
        return Err(Unusable("no base64url coordinates (x, y) of the curve's size"));
    };
    // An uncompressed point of SEC 1.
    let point = [&[4], x.as_slice(), &y].concat();
    Ok((vec![algorithm], DecodingKey::from_ec_der(&point)))
}

fn edwards(jwk: &Map<String, Value>) -> Result<(Vec<Algorithm>, DecodingKey), Unusable> {
    if text(jwk, "crv") != Some("Ed25519") {
        return Err(Unusable("a curve (crv) that is not supported"));
    }
    let point = bytes(jwk, "x").filter(|point| point.len() == 32);
    let point = point.ok_or(Unusable("no base64url point (x) of the curve's size"))?;
    Ok((vec![Algorithm::EdDSA], DecodingKey::from_ed_der(&point)))
}
