//! From a token's text to a principal.
//!
//! Invariants:
//! * The algorithm comes from the key's type, never from the header alone: the header only chooses among what the key allows.
//! * Claims are looked at only after the signature holds.
//! * No token and no claim is printed, by `Debug` or in an error.
//!
//! Only the signature is left to jsonwebtoken. Rejected: its `Validation`, which refuses decimal `exp`, requires `typ` rules and
//! leeway that differ from what the clients' issuers send (`protocol.md` §1.5).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::{Principal, TokenError};

/// A longer text is not looked at; real tokens have a few hundred bytes to a few thousand.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// How much of a client's key id an error repeats.
const MAX_KID_CHARS: usize = 128;

/// What tokens are verified with.
#[derive(Clone, Default)]
pub struct VerifierConfig {
    /// The shared secret of HS256, HS384 and HS512; at least 32 bytes (checked where it is configured).
    pub jwt_secret: Option<Vec<u8>>,
    /// Opaque keys (`sb_publishable_…`, `sb_secret_…`) and the role each stands for.
    pub opaque_keys: BTreeMap<String, String>,
}

impl fmt::Debug for VerifierConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifierConfig")
            .field("jwt_secret", &self.jwt_secret.is_some())
            .field("opaque_keys", &self.opaque_keys.len())
            .finish()
    }
}

/// Verifies tokens. Shared by all connections.
pub struct Verifier {
    secret: Option<DecodingKey>,
    opaque: BTreeMap<String, String>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// Without a secret every JWT is refused.
    pub fn new(config: VerifierConfig) -> Verifier {
        let secret = config.jwt_secret.as_deref().map(DecodingKey::from_secret);
        Verifier { secret, opaque: config.opaque_keys }
    }

    /// Who the token speaks for at this second since 1970.
    ///
    /// The text may still contain percent-escapes and whitespace, as URLs and environment files leave them.
    pub fn verify(&self, token: &str, now_unix_seconds: i64) -> Result<Principal, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let token = clean(token);
        if let Some(role) = self.opaque.get(token.as_ref()) {
            let claims = Map::from_iter([("role".to_owned(), Value::from(role.as_str()))]);
            return Principal::new(claims, i64::MAX).ok_or(TokenError::MissingClaims);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header = object(header)?;
        let claims = object(payload)?;
        let (algorithm, key) = self.signer(&header)?;
        // An error here is a signature that is no base64, or of another length.
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm) {
            Ok(true) => principal(claims, now_unix_seconds),
            Ok(false) | Err(_) => Err(TokenError::Signature),
        }
    }

    /// Whether a token refused for this reason may be good once [`Verifier::learn`] has been awaited.
    pub fn may_learn(&self, _error: &TokenError) -> bool {
        false
    }

    /// Fetches the key set anew, at most once at a time and not more often than its floor allows.
    #[expect(clippy::unused_async, reason = "the signature of what replaces it")]
    pub async fn learn(&self) {}

    /// The key for a token, and the algorithm it is used with. Key sets (JWKS) join here: looked up by `kid`, each key bound to
    /// the algorithms of its type.
    fn signer(&self, header: &Map<String, Value>) -> Result<(Algorithm, &DecodingKey), TokenError> {
        let unusable = || TokenError::NoSigner { kid: None };
        // RFC 7515 §4.1.11: an extension that we don't know and that is declared critical.
        if header.contains_key("crit") {
            return Err(unusable());
        }
        let algorithm = match header.get("alg").and_then(Value::as_str).unwrap_or_default() {
            "HS256" => Algorithm::HS256,
            "HS384" => Algorithm::HS384,
            "HS512" => Algorithm::HS512,
            "RS256" | "RS384" | "RS512" | "ES256" | "ES384" | "ES512" | "EdDSA" | "Ed25519" | "Ed448" => {
                let kid = header.get("kid").and_then(Value::as_str);
                return Err(TokenError::NoSigner { kid: kid.map(|kid| kid.chars().take(MAX_KID_CHARS).collect()) });
            }
            _ => return Err(unusable()),
        };
        // A `kid` that no key set knows does not matter for HS*: the shared secret is what issuers mean.
        Ok((algorithm, self.secret.as_ref().ok_or_else(unusable)?))
    }
}

/// Undoes one more percent-encoding and drops whitespace.
fn clean(token: &str) -> Cow<'_, str> {
    if !token.contains(|c: char| c == '%' || c.is_whitespace()) {
        return Cow::Borrowed(token);
    }
    let bytes = token.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .filter(|hex| !hex.starts_with('+'))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        plain.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    let mut text = String::from_utf8_lossy(&plain).into_owned();
    text.retain(|c| !c.is_whitespace());
    Cow::Owned(text)
}

/// A base64url part that must be a JSON object.
fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

/// The claims' own rules, after the signature held.
fn principal(mut claims: Map<String, Value>, now: i64) -> Result<Principal, TokenError> {
    if !claims.get("role").is_some_and(Value::is_string) {
        return Err(TokenError::MissingClaims);
    }
    let expires = match claims.get("exp") {
        None | Some(Value::Null) => return Err(TokenError::MissingClaims),
        Some(exp) => exp.as_f64().ok_or(TokenError::ClaimType { claim: "exp" })?,
    };
    if claims.get("iat").is_some_and(|iat| !iat.is_number()) {
        return Err(TokenError::ClaimType { claim: "iat" });
    }
    let expires_at = round(expires);
    // Seconds since 1970 are exact in a double for the next 285 million years.
    if expires <= now as f64 {
        return Err(TokenError::Expired { seconds: now.saturating_sub(expires_at).max(0) });
    }
    // Policies that cast these claims to an integer must not fail on an issuer that writes decimals.
    for claim in ["exp", "iat"] {
        if let Some(number) = claims.get_mut(claim)
            && !number.is_i64()
            && let Some(decimal) = number.as_f64()
        {
            *number = Value::from(round(decimal));
        }
    }
    Principal::new(claims, expires_at).ok_or(TokenError::MissingClaims)
}

/// Half away from zero; out of range is the nearest end.
fn round(seconds: f64) -> i64 {
    seconds.round() as i64
}
