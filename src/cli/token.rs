//! `rowcast token`: a token for development, signed with `JWT_SECRET`, and nothing else on standard output.
//!
//! A token opens the rows of whoever it names, so one is only made where no harm can come of it. The rule: free is what
//! `rowcast dev` made the secret for. With `JWKS_URL` set, or with any other `JWT_SECRET`, the settings count as those of a
//! production, and `--i-know` must be given; roles other than `anon` and `authenticated` need `--any-role`, since only the
//! database knows which of them see every row. Rejected: guessing from a host name or from `NODE_ENV`, which are wrong by accident.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};

use super::{Environment, Failure};
use crate::clock::Clock;
use crate::config::{SHORTEST_SECRET, duration, switch};
use crate::dev;
use crate::error::{Fault, Remedy};

/// A token made for development must not outlive the day.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The roles of ordinary users.
const ORDINARY: [&str; 2] = ["anon", "authenticated"];
/// Claims that have a flag of their own.
const OWN: [&str; 4] = ["role", "sub", "exp", "iat"];

#[derive(Args)]
#[command(
    after_help = "Without JWT_SECRET, the secret of `rowcast dev` is used. A production's settings are refused without --i-know: \
                  JWKS_URL is set, or JWT_SECRET is not the one that `rowcast dev` made."
)]
pub(super) struct TokenArgs {
    /// The role in the database
    #[arg(long, default_value = "authenticated")]
    role: String,
    /// The user, which auth.uid() returns
    #[arg(long, value_name = "UUID")]
    sub: Option<String>,
    /// One more claim, its value as JSON: --claim org='"acme"' --claim level=3
    #[arg(long = "claim", value_name = "NAME=JSON", value_parser = claim)]
    claims: Vec<(String, Value)>,
    /// For how long it is good, at most 24h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = life)]
    expires: Duration,
    /// Allow a role other than anon and authenticated, which may see every row
    #[arg(long)]
    any_role: bool,
    /// Sign though the settings are a production's [env: ROWCAST_ALLOW_TOKENS]
    #[arg(long)]
    i_know: bool,
    /// The state folder of `rowcast dev`
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// A TOML file with settings [env: ROWCAST_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl std::fmt::Debug for TokenArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenArgs")
    }
}

/// Why no token is made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum TokenError {
    #[error("JWT_SECRET is not set, and `rowcast dev` has made none in {}", .0.display())]
    NoSecret(PathBuf),
    #[error("JWKS_URL is set and JWT_SECRET is not: only the issuer can sign tokens for this relay")]
    IssuerOnly,
    #[error("JWT_SECRET has fewer than {SHORTEST_SECRET} bytes; no relay starts with it")]
    Short,
    #[error("these are a production's settings: {0}")]
    Production(&'static str),
    #[error("role {0:?} is neither anon nor authenticated and may see every row")]
    Role(String),
    #[error("ROWCAST_ALLOW_TOKENS is neither true nor false")]
    Switch,
    #[error("the claim {0} has a flag of its own")]
    OwnClaim(String),
}

impl Fault for TokenError {
    fn remedy(&self) -> Remedy {
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self {
            TokenError::NoSecret(_) => {
                "Set JWT_SECRET to the relay's, or run `rowcast dev` first (its --state-dir goes here too)."
            }
            TokenError::IssuerOnly => "Get a token from the issuer.",
            TokenError::Short => "Set it to the relay's own; `openssl rand -hex 32` makes a new one.",
            TokenError::Production(_) => {
                "Whoever has the token sees what its user sees. Get one from your issuer; or, if this is meant, add --i-know \
                 or set ROWCAST_ALLOW_TOKENS=true."
            }
            TokenError::Role(_) => "Add --any-role if that is meant.",
            TokenError::Switch => "Set it to true or false, or remove it.",
            TokenError::OwnClaim(_) => "Use --role, --sub or --expires.",
        }
        .into()
    }
}

pub(super) fn token(args: &TokenArgs, environment: &Environment) -> Result<(), Failure> {
    let settings = environment.settings(args.config.as_deref(), &BTreeMap::new())?;
    let state_dir = args
        .state_dir
        .clone()
        .unwrap_or_else(|| dev::default_state_dir(environment.path("XDG_STATE_HOME"), environment.path("HOME")));
    let known = Known {
        secret: settings.get("jwt_secret"),
        has_issuer: settings.get("jwks_url").is_some(),
        dev_secret: dev::kept_secret(&state_dir)?,
        allowed: args.i_know || allowed(environment)?,
    };
    let claims = claims(args)?;
    let secret = known.secret(&state_dir)?;
    if args.sub.as_deref().is_some_and(|sub| !is_uuid(sub)) {
        eprintln!("warning: --sub is no UUID; policies that use auth.uid() raise an error for it and show nothing");
    }
    println!("{}", dev::mint_token(&secret, claims, &Clock::system(), args.expires)?);
    Ok(())
}

/// What decides whether a token may be made.
struct Known<'a> {
    secret: Option<&'a str>,
    has_issuer: bool,
    dev_secret: Option<String>,
    allowed: bool,
}

impl Known<'_> {
    fn secret(self, state_dir: &Path) -> Result<String, TokenError> {
        let secret = match (self.secret, &self.dev_secret) {
            (Some(secret), _) => secret.to_owned(),
            (None, _) if self.has_issuer => return Err(TokenError::IssuerOnly),
            (None, Some(secret)) => secret.clone(),
            (None, None) => return Err(TokenError::NoSecret(state_dir.to_owned())),
        };
        if secret.len() < SHORTEST_SECRET {
            return Err(TokenError::Short);
        }
        if self.allowed {
            return Ok(secret);
        }
        if self.has_issuer {
            return Err(TokenError::Production("JWKS_URL is set"));
        }
        if self.dev_secret.as_ref() != Some(&secret) {
            return Err(TokenError::Production("JWT_SECRET is not the one that `rowcast dev` made"));
        }
        Ok(secret)
    }
}

fn allowed(environment: &Environment) -> Result<bool, TokenError> {
    let Some(text) = environment.values.get("ROWCAST_ALLOW_TOKENS") else { return Ok(false) };
    switch(text).map_err(|_| TokenError::Switch)
}

fn claims(args: &TokenArgs) -> Result<Map<String, Value>, TokenError> {
    if !args.any_role && !ORDINARY.contains(&&*args.role) {
        return Err(TokenError::Role(args.role.clone()));
    }
    let mut claims = Map::new();
    for (name, value) in &args.claims {
        if OWN.contains(&&**name) {
            return Err(TokenError::OwnClaim(name.clone()));
        }
        claims.insert(name.clone(), value.clone());
    }
    claims.insert("role".into(), args.role.clone().into());
    if let Some(sub) = &args.sub {
        claims.insert("sub".into(), sub.clone().into());
    }
    Ok(claims)
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("is not NAME=JSON")?;
    let value =
        serde_json::from_str(value).map_err(|_| "has no JSON behind the =; a text needs quotes: org='\"acme\"'")?;
    Ok((name.to_owned(), value))
}

fn life(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < Duration::from_secs(1) {
        return Err("is less than a second".into());
    }
    if time > LONGEST {
        return Err("is more than 24h, the longest that a development token is good for".into());
    }
    Ok(time)
}

/// As the database takes them in their usual form.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    lengths == [8, 4, 4, 4, 12] && groups.concat().chars().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "a secret of at least thirty-two bytes";

    fn signed_with(secret: Option<&str>, has_issuer: bool, allowed: bool) -> Result<String, TokenError> {
        Known { secret, has_issuer, dev_secret: Some(DEV.into()), allowed }.secret(Path::new("/state"))
    }

    #[test]
    fn only_the_secret_of_rowcast_dev_signs_unasked() {
        assert_eq!(signed_with(None, false, false).as_deref(), Ok(DEV));
        assert_eq!(signed_with(Some(DEV), false, false).as_deref(), Ok(DEV));
        for (secret, has_issuer) in [(OTHER, false), (OTHER, true), (DEV, true)] {
            let refused = signed_with(Some(secret), has_issuer, false).expect_err("a production's");
            assert!(matches!(refused, TokenError::Production(_)), "{refused}");
            assert!(!refused.to_string().contains(secret));
            assert_eq!(signed_with(Some(secret), has_issuer, true).as_deref(), Ok(secret));
        }
        // There is nothing that it could be signed with.
        assert_eq!(signed_with(None, true, true), Err(TokenError::IssuerOnly));
        assert_eq!(signed_with(Some("short"), false, true), Err(TokenError::Short));
        let none = Known { secret: None, has_issuer: false, dev_secret: None, allowed: true };
        assert_eq!(none.secret(Path::new("/state")), Err(TokenError::NoSecret("/state".into())));
    }

    #[test]
    fn a_claim_is_a_name_and_json() {
        assert_eq!(claim("org=\"a=b\""), Ok(("org".into(), "a=b".into())));
        assert_eq!(claim("level=3"), Ok(("level".into(), 3.into())));
        assert!(claim("org=acme").is_err() && claim("=1").is_err() && claim("org").is_err());
    }

    #[test]
    fn a_life_is_between_a_second_and_a_day() {
        assert_eq!(life("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(life("24h"), Ok(LONGEST));
        assert!(life("0").is_err() && life("25h").is_err() && life("2d").is_err() && life("soon").is_err());
    }

    #[test]
    fn a_uuid_is_told_from_what_is_none() {
        assert!(is_uuid("a11ce000-0000-4000-8000-000000000001"));
        assert!(!is_uuid("alice") && !is_uuid("") && !is_uuid("a11ce000-0000-4000-8000-00000000000g"));
    }
}
