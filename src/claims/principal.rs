//! A verified token's role and claims.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

/// Who a channel speaks for: the role and claims of its last valid token. `Debug` shows neither claims nor subject.
#[derive(Clone, PartialEq)]
pub struct Principal {
    /// The `role` claim: a Postgres role name, not yet known to exist.
    pub role: Arc<str>,
    /// The `sub` claim if it is a string; the empty string otherwise.
    pub subject: Arc<str>,
    /// All claims.
    pub claims: Arc<Map<String, Value>>,
    /// The claims as the JSON text that Postgres sees in `request.jwt.claims`.
    pub claims_json: Arc<str>,
    /// Seconds since 1970; from this second on the principal is nobody. Rounded from a decimal `exp`.
    pub expires_at: i64,
    /// Role and all claims but `iat`, `exp`, `jti`, in a canonical order: two principals with equal keys may share verdicts.
    pub sharing_key: Arc<str>,
}

impl Principal {
    /// From a verified claims object; `None` without a string `role`.
    pub fn new(claims: Map<String, Value>, expires_at: i64) -> Option<Principal> {
        let role: Arc<str> = claims.get("role")?.as_str()?.into();
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default().into();
        let mut shared = claims.clone();
        for own in ["iat", "exp", "jti"] {
            shared.remove(own);
        }
        // serde_json's map is ordered by key (feature preserve_order off), also in nested objects.
        let sharing_key = Value::Object(shared).to_string().into();
        let claims_json = Value::Object(claims.clone()).to_string().into();
        Some(Principal { role, subject, claims: Arc::new(claims), claims_json, expires_at, sharing_key })
    }

    /// Whose share it is of what users have together, at every door: the user's, whichever of his tokens he shows; without a
    /// name, that of all with the same claims.
    pub fn user(&self) -> Arc<str> {
        if self.subject.is_empty() {
            return self.sharing_key.clone();
        }
        format!("{}\n{}", self.role, self.subject).into()
    }

    /// Whether the token behind it is no longer valid.
    pub fn is_expired(&self, unix_seconds: i64) -> bool {
        unix_seconds >= self.expires_at
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Principal")
            .field("role", &self.role)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_user_is_the_same_with_all_his_tokens_and_another_in_another_role() {
        let user = |claims: Value| {
            let Value::Object(claims) = claims else { unreachable!("an object") };
            Principal::new(claims, 0).expect("a role").user()
        };
        let ada = user(json!({ "role": "authenticated", "sub": "ada", "session_id": "one", "exp": 1 }));
        assert_eq!(ada, user(json!({ "role": "authenticated", "sub": "ada", "session_id": "two", "aal": "aal2" })));
        assert_ne!(ada, user(json!({ "role": "admin", "sub": "ada" })));
        let nobody = user(json!({ "role": "anon", "exp": 1 }));
        assert_eq!(nobody, user(json!({ "role": "anon", "exp": 2, "jti": "x" })));
        assert_ne!(nobody, user(json!({ "role": "anon", "tenant": 7 })));
    }
}
