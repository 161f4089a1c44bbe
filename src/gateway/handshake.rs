//! May this request become a WebSocket, and for whom? Checks, statuses and texts of `protocol.md` §1.4, in its order.
//!
//! Pure: the head of a request in, a grant or a refusal out.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use warp::http::{HeaderMap, Method, Response, StatusCode, header};

use super::{Tokens, device, pages, storm};
use crate::claims::{Principal, TokenError};
use crate::error::ClientFacing as _;
use crate::hub::{RESTARTING, Version};

/// A request that may be upgraded.
pub(super) struct Grant {
    pub(super) version: Version,
    pub(super) token: Arc<str>,
    pub(super) principal: Arc<Principal>,
    /// The request's `x-…` headers as a JSON object.
    pub(super) headers: Box<str>,
    /// The device that the client names.
    pub(super) device: Option<Arc<str>>,
    /// The value of `Sec-WebSocket-Accept`.
    accept: String,
}

/// Why a request is not upgraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is no WebSocket upgrade.
    NotAnUpgrade(&'static str),
    /// `vsn` is none that we speak.
    Version,
    NoKey,
    Token(TokenError),
    /// What is given for a device is no name.
    Device(&'static str),
    TooManyConnections,
    /// So many join that nobody else should.
    TooManyJoins,
    /// The relay stops.
    Restarting,
    /// What devices have received is not loaded yet.
    NotReady,
    /// The relay has been without its slot for too long.
    NoSlot,
}

/// What is asked for at this path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// Phoenix; `vsn` says which.
    Phoenix,
    /// Typed JSON.
    Topics,
}

/// All checks but the number of connections, which is asked last and by the caller. `device`: as it stands in the path.
pub(super) fn check(
    method: &Method,
    headers: &HeaderMap,
    query: &str,
    (door, device): (Door, Option<&str>),
    verifier: &dyn Tokens,
    now_unix_seconds: i64,
) -> Result<Grant, Refusal> {
    let accept = accept_key(method, headers)?;
    let version = match (door, parameter(query, "vsn")) {
        (Door::Topics, _) => Version::Topics,
        (Door::Phoenix, None) => Version::V1,
        (Door::Phoenix, Some(text)) => version(&text).ok_or(Refusal::Version)?,
    };
    let token = match door {
        Door::Topics => pages::token(headers, query).or_else(|| parameter(query, "token")).ok_or(Refusal::NoKey)?,
        // The header wins even if it is invalid: gateways put the real token there.
        Door::Phoenix => match headers.get("x-api-key") {
            Some(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            None => parameter(query, "apikey").ok_or(Refusal::NoKey)?,
        },
    };
    let principal = verifier.verify(&token, now_unix_seconds).map_err(Refusal::Token)?;
    let device = device::named(device, query, headers).map_err(Refusal::Device)?;
    let headers = kept_headers(headers);
    Ok(Grant { version, token: token.into(), principal: Arc::new(principal), headers, device, accept })
}

/// How much of a request's `x-…` headers a connection keeps, as JSON.
const MAX_KEPT_HEADERS: usize = 4096;

/// What policies on messages see as `request.headers`: all `x-…` headers but the key, names in lower case, in their order. What
/// would exceed the bound is left out whole, so that no policy reads half a value.
fn kept_headers(headers: &HeaderMap) -> Box<str> {
    headers_json(headers, |name| name.starts_with("x-") && name != "x-api-key", MAX_KEPT_HEADERS).into()
}

/// Headers as a JSON object of at most `most` bytes: what would exceed it is left out whole.
pub(super) fn headers_json(headers: &HeaderMap, keep: impl Fn(&str) -> bool, most: usize) -> String {
    let mut kept = serde_json::Map::new();
    let mut size = 2;
    // A `HeaderName` is in lower case already.
    for name in headers.keys().filter(|name| keep(name.as_str())) {
        let values = headers.get_all(name).into_iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
        let value = serde_json::Value::from(values.collect::<Vec<_>>().join(", "));
        size += name.as_str().len() + value.to_string().len() + 4;
        if size > most {
            tracing::debug!(%name, "more headers than are kept");
            break;
        }
        kept.insert(name.as_str().to_owned(), value);
    }
    serde_json::Value::Object(kept).to_string()
}

fn accept_key(method: &Method, headers: &HeaderMap) -> Result<String, Refusal> {
    let has = |name, word: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
    };
    if method != Method::GET {
        return Err(Refusal::NotAnUpgrade("WebSocket needs GET"));
    }
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(Refusal::NotAnUpgrade("not a WebSocket upgrade"));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(Refusal::NotAnUpgrade("Sec-WebSocket-Version must be 13"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| key.as_bytes());
    match key.filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16)) {
        Some(key) => Ok(derive_accept_key(key)),
        None => Err(Refusal::NotAnUpgrade("Sec-WebSocket-Key is missing or invalid")),
    }
}

/// `1.0.x` and `2.0.x`.
fn version(text: &str) -> Option<Version> {
    let (line, patch) = text.rsplit_once('.')?;
    if patch.is_empty() || !patch.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match line {
        "1.0" => Some(Version::V1),
        "2.0" => Some(Version::V2),
        _ => None,
    }
}

/// The last value of a query parameter, decoded as a form field.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.rev().find(|(key, _)| decode(key) == name).map(|(_, value)| decode(value))
}

fn decode(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let hex = |byte: u8| char::from(byte).to_digit(16);
        match (byte, tail) {
            (b'+', _) => plain.push(b' '),
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                let value = hex(*high).unwrap_or(0) * 16 + hex(*low).unwrap_or(0);
                plain.push(u8::try_from(value).unwrap_or(b'?'));
                rest = after;
            }
            (other, _) => plain.push(*other),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

impl Grant {
    /// The 101; no subprotocol, no extension.
    pub(super) fn response(&self) -> Response<String> {
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
        if let Ok(accept) = self.accept.parse() {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    }
}

impl Refusal {
    /// The metric's label.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Refusal::NotAnUpgrade(_) => "NotAnUpgrade",
            Refusal::Restarting => "Restarting",
            Refusal::Version => "UnsupportedVersion",
            Refusal::NoKey => "MissingAPIKey",
            Refusal::Token(error) => error.code(),
            Refusal::Device(_) => "InvalidDevice",
            Refusal::TooManyConnections => "ConnectionRateLimitReached",
            Refusal::TooManyJoins => "ClientJoinRateLimitReached",
            Refusal::NotReady => "NotReady",
            Refusal::NoSlot => "NoSlot",
        }
    }

    /// The answer.
    pub(super) fn response(&self) -> Response<String> {
        let (status, text) = match self {
            Refusal::NotAnUpgrade(text) => return plain(StatusCode::BAD_REQUEST, (*text).into()),
            Refusal::Version => return plain(StatusCode::FORBIDDEN, String::new()),
            Refusal::NoKey => (401, "API key is missing".into()),
            Refusal::Token(error) => error.handshake(),
            Refusal::Device(text) => (400, (*text).into()),
            Refusal::TooManyConnections => (429, "Too many connected users".into()),
            Refusal::TooManyJoins => (429, "Too many joins per second".into()),
            Refusal::Restarting => (503, RESTARTING.into()),
            Refusal::NotReady => (503, "Realtime is starting, please come again".into()),
            Refusal::NoSlot => (503, "No changes come in here at present, try again".into()),
        };
        let mut response = Response::new(serde_json::json!({ "error": text }).to_string());
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let json = header::HeaderValue::from_static("application/json; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if matches!(status, 429 | 503) {
            // No SDK reads it; gateways, workers and load balancers do.
            response.headers_mut().insert(header::RETRY_AFTER, storm::hint().into());
        }
        response
    }
}

/// A short text.
pub(super) fn plain(status: StatusCode, text: String) -> Response<String> {
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let content = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, content);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_lines_of_versions_are_spoken() {
        for (text, expected) in [
            ("1.0.0", Some(Version::V1)),
            ("1.0.9", Some(Version::V1)),
            ("2.0.0", Some(Version::V2)),
            ("2.0.1", Some(Version::V2)),
            ("2.0.", None),
            ("2.0", None),
            ("2.1.0", None),
            ("3.0.0", None),
            ("abc", None),
            ("", None),
            ("2.0.x", None),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    #[test]
    fn parameters_are_decoded_and_the_last_counts() {
        assert_eq!(parameter("a=1&apikey=x%2Ey+z&b", "apikey").as_deref(), Some("x.y z"));
        assert_eq!(parameter("apikey=1&apikey=2", "apikey").as_deref(), Some("2"));
        assert_eq!(parameter("apikey", "apikey").as_deref(), Some(""));
        assert_eq!(parameter("%61pikey=%zz%4", "apikey").as_deref(), Some("%zz%4"));
        assert_eq!(parameter("", "apikey"), None);
    }

    #[test]
    fn x_headers_are_kept_but_the_key_and_what_is_too_much() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("host", "a"), ("x-api-key", "secret"), ("X-Client-Info", "dart/1 \"2\""), ("x-a", "1")] {
            headers.append(warp::http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers.append("x-a", "2".parse().unwrap());
        let kept: serde_json::Value = serde_json::from_str(&kept_headers(&headers)).unwrap();
        assert_eq!(kept, serde_json::json!({"x-client-info": "dart/1 \"2\"", "x-a": "1, 2"}));
        headers.insert("x-b", "b".repeat(5000).parse().unwrap());
        assert!(kept_headers(&headers).len() <= MAX_KEPT_HEADERS);
        assert_eq!(&*kept_headers(&HeaderMap::new()), "{}");
    }

    #[test]
    fn the_key_must_be_sixteen_bytes() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket"), ("sec-websocket-version", "13")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        let refused = |headers: &HeaderMap| matches!(accept_key(&Method::GET, headers), Err(Refusal::NotAnUpgrade(_)));
        assert!(refused(&headers));
        headers.insert("sec-websocket-key", "c2hvcnQ=".parse().unwrap());
        assert!(refused(&headers));
        headers.insert("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        assert_eq!(accept_key(&Method::GET, &headers), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".into()));
        assert!(accept_key(&Method::POST, &headers).is_err());
    }
}
