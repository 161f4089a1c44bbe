//! Why a token was refused, and the three texts clients know for it: at the handshake, at a join, on a joined channel.
//!
//! The texts are the protocol's own (`protocol.md` §1.4, §3.1.3, §3.4); SDK users match on them, so they are spelled once, here.

use crate::error::{ClientFacing, Fault, Remedy};

/// Why a token does not make anybody. Holds nothing of the token but its key id, shortened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It can't be split and decoded into a JSON header and a JSON payload.
    #[error("the token is not a JWT")]
    Malformed,
    /// The signature is not that of our key.
    #[error("the token's signature does not match")]
    Signature,
    /// No key fits its algorithm and key id.
    #[error("no key fits the token's algorithm and key id")]
    NoSigner {
        /// The key id, if the algorithm looks its key up by one.
        kid: Option<String>,
    },
    /// `exp` is not after now.
    #[error("the token has expired {seconds} seconds ago")]
    Expired {
        /// How long ago, never negative.
        seconds: i64,
    },
    /// `role` or `exp` is missing.
    #[error("the token lacks `role` or `exp`")]
    MissingClaims,
    /// A claim has a type that it may not have.
    #[error("the claim `{claim}` is not a number")]
    ClaimType {
        /// Which.
        claim: &'static str,
    },
}

impl TokenError {
    /// Status and `error` text of a refused handshake.
    pub fn handshake(&self) -> (u16, String) {
        match self {
            TokenError::Expired { .. } => (401, "Token has expired".into()),
            TokenError::ClaimType { .. } => (500, "Error connecting to Realtime".into()),
            other => (401, other.client_text()),
        }
    }

    /// The `reason` of a refused join.
    pub fn join_reason(&self) -> String {
        match self {
            TokenError::ClaimType { .. } => self.client_text(),
            other => format!("{}: {}", other.code(), other.client_text()),
        }
    }
}

impl ClientFacing for TokenError {
    fn code(&self) -> &'static str {
        match self {
            TokenError::Malformed => "MalformedJWT",
            TokenError::Signature => "JwtSignatureError",
            TokenError::NoSigner { .. } => "JwtSignerError",
            TokenError::Expired { .. } | TokenError::MissingClaims => "InvalidJWTToken",
            TokenError::ClaimType { .. } => "UnknownErrorOnChannel",
        }
    }

    /// The `message` of the `system` frame when a joined channel's token is refused.
    fn client_text(&self) -> String {
        match self {
            TokenError::Malformed => "The token provided is not a valid JWT".into(),
            TokenError::Signature => "Failed to validate JWT signature".into(),
            TokenError::NoSigner { kid: None } => {
                "Failed to generate JWT signer, check your JWT secret or JWKS configuration".into()
            }
            TokenError::NoSigner { kid: Some(kid) } => format!(
                "Failed to generate JWT signer for key ID (kid) \"{kid}\", check your JWT secret or JWKS configuration"
            ),
            TokenError::Expired { seconds } => format!("Token has expired {seconds} seconds ago"),
            TokenError::MissingClaims => "Fields `role` and `exp` are required in JWT".into(),
            TokenError::ClaimType { .. } => "Unknown Error on Channel".into(),
        }
    }
}

impl Fault for TokenError {
    fn remedy(&self) -> Remedy {
        // All of them are the client's to mend; a wrong secret on our side is the operator's.
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self {
            TokenError::Signature | TokenError::NoSigner { .. } => {
                "if every client gets this, JWT_SECRET or JWKS_URL is not that of who issues the tokens".into()
            }
            _ => String::new(),
        }
    }
}
