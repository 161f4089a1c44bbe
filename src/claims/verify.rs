//! From a token's text to a principal.
//!
//! Invariants:
//! * The algorithm comes from the key's type, never from the header alone: the header only chooses among what the key allows.
//! * Claims are looked at only after the signature holds.
//! * No token and no claim is printed, by `Debug` or in an error.
//! * Verifying waits for nothing: it takes the keys at hand. Whether asking for newer ones is worth it is a second question
//!   ([`Verifier::may_learn`]), so that whoever holds many sockets decides who may wait.
//!
//! Only the signature is left to jsonwebtoken. Rejected: its `Validation`, which refuses decimal `exp`, requires `typ` rules and
//! leeway that differ from what the clients' issuers send (`protocol.md` §1.5).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::key_set::{self, KeySet};
use super::keys::{KeySetConfig, KeySetError, Keys};
use super::{Principal, TokenError};
use crate::clock::Clock;
use crate::error::{Fault as _, chain};
use crate::metrics::Metrics;
use crate::task::Drain;

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
    /// The issuer's keys; `None` for the secret alone.
    pub key_set: Option<KeySetConfig>,
}

impl fmt::Debug for VerifierConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifierConfig")
            .field("jwt_secret", &self.jwt_secret.is_some())
            .field("opaque_keys", &self.opaque_keys.len())
            .field("key_set", &self.key_set)
            .finish()
    }
}

/// Verifies tokens. Shared by all connections.
pub struct Verifier {
    secret: Option<DecodingKey>,
    opaque: BTreeMap<String, String>,
    keys: Option<Keys>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    /// Without a secret and a key set every JWT is refused. A key set is empty until [`Verifier::load`].
    pub fn new(config: VerifierConfig, clock: Clock, metrics: Arc<Metrics>) -> Verifier {
        let secret = config.jwt_secret.as_deref().map(DecodingKey::from_secret);
        let keys = config.key_set.map(|config| Keys::new(config, clock, metrics));
        Verifier { secret, opaque: config.opaque_keys, keys }
    }

    /// Another number whenever the keys are other ones: what was verified before may not be any more.
    pub fn generation(&self) -> u64 {
        self.keys.as_ref().map_or(0, Keys::generation)
    }

    /// Whether it has keys to fetch, with [`Verifier::load`] and [`Verifier::keep`].
    pub fn has_key_set(&self) -> bool {
        self.keys.is_some()
    }

    /// Fetches the key set for the first time; to be awaited before anybody is let in. Tries again for this long. If it still
    /// can't be had, that is an error, unless there is a secret: then it is logged, and the set is tried again later.
    pub async fn load(&self, patience: Duration, drain: &Drain) -> Result<(), KeySetError> {
        let Some(keys) = &self.keys else { return Ok(()) };
        match keys.load(patience, drain).await {
            Err(error) if self.secret.is_some() => {
                let (error, advice) = (chain(&error), error.advice());
                tracing::warn!(
                    error,
                    advice,
                    "starting without the key set: only JWT_SECRET counts until it can be read"
                );
                Ok(())
            }
            loaded => loaded,
        }
    }

    /// Fetches the key set from time to time and for [`Verifier::learn`], until the drain. To be run once, after the load.
    pub async fn keep(&self, drain: &Drain) {
        match &self.keys {
            Some(keys) => keys.keep(drain).await,
            None => drain.draining().await,
        }
    }

    /// Whether [`Verifier::learn`] may turn this refusal into a yes: there is a key set, the refusal is an unknown key id, and
    /// a fetch is under way or the floor between two allows one. Also if the key has been learned since the refusal.
    pub fn may_learn(&self, error: &TokenError) -> bool {
        match (&self.keys, error) {
            (Some(keys), TokenError::NoSigner { kid: Some(kid) }) => keys.may_learn(kid),
            _ => false,
        }
    }

    /// Has the key set fetched again, or waits for the fetch under way; at once if neither may be. Returns when that has ended,
    /// well or not, within the time for one fetch and a second. The caller verifies again. Cancel-safe: the fetch goes on.
    pub async fn learn(&self) {
        if let Some(keys) = &self.keys {
            keys.learn().await;
        }
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
        let set = self.keys.as_ref().map(Keys::at_hand).unwrap_or_default();
        let (algorithm, key) = self.signer(&header, &set)?;
        // An error here is a signature that is no base64, or of another length.
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm) {
            Ok(true) => principal(claims, now_unix_seconds),
            Ok(false) | Err(_) => Err(TokenError::Signature),
        }
    }

    /// The key for a token, and the algorithm it is used with.
    fn signer<'a>(
        &'a self,
        header: &Map<String, Value>,
        set: &'a KeySet,
    ) -> Result<(Algorithm, &'a DecodingKey), TokenError> {
        let unusable = || TokenError::NoSigner { kid: None };
        // RFC 7515 §4.1.11: an extension that we don't know and that is declared critical.
        if header.contains_key("crit") {
            return Err(unusable());
        }
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(key_set::algorithm).ok_or_else(unusable)?;
        let kid = header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty());
        if let Some(key) = kid.and_then(|kid| set.get(kid, algorithm)) {
            return Ok((algorithm, key));
        }
        // A `kid` that the set lacks does not matter for HS*: the shared secret is what issuers mean.
        let shared = self.secret.as_ref().filter(|_| key_set::is_shared(algorithm));
        let unknown = || TokenError::NoSigner { kid: kid.map(|kid| kid.chars().take(MAX_KID_CHARS).collect()) };
        Ok((algorithm, shared.ok_or_else(unknown)?))
    }
}

/// Undoes one more percent-encoding and drops whitespace.
fn clean(token: &str) -> Cow<'_, str> {
    if !token.contains(|c: char| c == '%' || c.is_whitespace()) {
        return Cow::Borrowed(token);
    }
    let mut text = String::from_utf8_lossy(&percent_decoded(token)).into_owned();
    text.retain(|c| !c.is_whitespace());
    Cow::Owned(text)
}

/// Undoes percent-encoding; what is none stays as it is.
pub(super) fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
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
    plain
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
