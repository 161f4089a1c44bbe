//! What the head of a request says.

use std::sync::Arc;

use warp::http::{HeaderMap, header};

use crate::gateway::handshake::{headers_json, parameter};

/// Bytes of all headers as JSON. A head is bounded already; escapes make it longer.
const MAX_HEADERS: usize = 32 * 1024;

/// The token: `Authorization`, or if that is missing or empty, `apikey`.
pub(in crate::gateway) fn token(headers: &HeaderMap) -> Option<String> {
    let text = |name| {
        let value = headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned());
        value.filter(|value| !value.is_empty())
    };
    match text("authorization") {
        Some(value) => {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
        }
        None => text("apikey"),
    }
}

/// All headers as a JSON object, for policies: `request.headers`.
pub(super) fn all_headers(headers: &HeaderMap) -> Arc<str> {
    headers_json(headers, |_| true, MAX_HEADERS).into()
}

/// How a body of the single endpoint is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Json,
    Octets,
}

/// `None`: in no way that we know.
pub(super) fn format(headers: &HeaderMap) -> Option<Format> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Some(Format::Json) };
    let value = String::from_utf8_lossy(value.as_bytes());
    let essence = value.split(';').next().unwrap_or_default().trim();
    match essence.to_ascii_lowercase().as_str() {
        "" | "application/json" => Some(Format::Json),
        "application/octet-stream" => Some(Format::Octets),
        _ => None,
    }
}

/// The announced length of the body.
pub(super) fn length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Only `private=true` is private.
pub(super) fn is_private(query: &str) -> bool {
    parameter(query, "private").as_deref() == Some("true")
}

/// A segment of a path, percent-decoded; a plus is a plus. `None` if that is no UTF-8.
pub(super) fn segment(raw: &str) -> Option<String> {
    let mut plain = Vec::with_capacity(raw.len());
    let mut rest = raw.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    plain.push(high * 16 + low);
                    rest = after;
                }
                _ => plain.push(b'%'),
            },
            (other, _) => plain.push(*other),
        }
    }
    String::from_utf8(plain).ok()
}

/// The client's `x-request-id` if it looks like one, or one of ours.
pub(super) fn id(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    match given.filter(|text| (20..=200).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(given) => given.to_owned(),
        None => format!("{:032x}", rand::random::<u128>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_bearer_token_goes_before_the_key_and_nothing_else_is_looked_at() {
        for (given, expected) in [
            (&[][..], None),
            (&[("x-api-key", "a")], None),
            (&[("apikey", "a")], Some("a")),
            (&[("authorization", ""), ("apikey", "a")], Some("a")),
            (&[("authorization", "Bearer b"), ("apikey", "a")], Some("b")),
            (&[("authorization", "bEARER  b ")], Some("b")),
            (&[("authorization", "Basic b"), ("apikey", "a")], None),
            (&[("authorization", "Bearer"), ("apikey", "a")], None),
        ] {
            assert_eq!(token(&headers(given)).as_deref(), expected, "{given:?}");
        }
    }

    #[test]
    fn a_segment_is_decoded_once() {
        for (raw, plain) in [("t%3A1", "t:1"), ("a%2Fb", "a/b"), ("a+b", "a+b"), ("%252F", "%2F"), ("%zz%4", "%zz%4")] {
            assert_eq!(segment(raw).as_deref(), Some(plain), "{raw}");
        }
        assert_eq!(segment("%C3%A4").as_deref(), Some("ä"));
        assert_eq!(segment("%FF"), None);
    }

    #[test]
    fn bodies_are_json_or_octets() {
        for (kind, expected) in [
            ("application/json", Some(Format::Json)),
            ("Application/JSON; charset=utf-8", Some(Format::Json)),
            ("application/octet-stream", Some(Format::Octets)),
            ("text/plain", None),
            ("application/x-www-form-urlencoded", None),
        ] {
            assert_eq!(format(&headers(&[("content-type", kind)])), expected, "{kind}");
        }
        assert_eq!(format(&HeaderMap::new()), Some(Format::Json));
    }

    #[test]
    fn policies_see_all_headers() {
        let seen = all_headers(&headers(&[("authorization", "Bearer x"), ("x-a", "1"), ("x-a", "2")]));
        let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
        assert_eq!(seen, serde_json::json!({ "authorization": "Bearer x", "x-a": "1, 2" }));
    }

    #[test]
    fn a_requests_id_is_the_clients_if_it_is_one() {
        let given = "0123456789abcdefghij";
        assert_eq!(id(&headers(&[("x-request-id", given)])), given);
        for other in ["short", "with blanks in it, which no id has"] {
            assert_eq!(id(&headers(&[("x-request-id", other)])).len(), 32);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_segment_is_answered(raw: String) {
            let plain = segment(&raw);
            proptest::prop_assert!(raw.contains('%') || plain == Some(raw));
        }
    }
}
