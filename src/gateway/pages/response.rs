//! What a page looks like on the wire: JSON, its status, and how long it may be kept.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use serde_json::{Value, json};
use warp::http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use crate::gateway::handshake::Refusal;

/// A page that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// `data` objects.
    pub(super) rows: Vec<Bytes>,
    /// Where the next one begins.
    pub(super) cursor: Option<String>,
    /// There is more than this.
    pub(super) more: bool,
    /// It is bounded on both sides, so it will not grow.
    pub(super) closed: bool,
}

/// Why there is no page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The request can't be met as it is.
    Bad(String),
    /// The role may not read it.
    Forbidden(String),
    /// There is no such table in the publication.
    Unknown(String),
    /// Something before the page can't be given any more: the notice's text and its `gap`.
    Gap(String, Value),
    /// More bytes than a page may have.
    TooLarge(String),
    /// As many as may be are being read.
    Busy,
    /// Not now.
    Later(String),
}

/// How long a closed page may be kept by who has fetched it, in seconds.
const MAX_AGE: u32 = 300;

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Failure::Bad(_) => StatusCode::BAD_REQUEST,
            Failure::Forbidden(_) => StatusCode::FORBIDDEN,
            Failure::Unknown(_) => StatusCode::NOT_FOUND,
            Failure::Gap(..) => StatusCode::GONE,
            Failure::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Failure::Busy => StatusCode::TOO_MANY_REQUESTS,
            Failure::Later(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    pub(super) fn response(self) -> Response<Bytes> {
        let status = self.status();
        let body = match self {
            Failure::Bad(text) | Failure::Forbidden(text) | Failure::Unknown(text) => json!({ "error": text }),
            Failure::TooLarge(text) | Failure::Later(text) => json!({ "error": text }),
            Failure::Gap(text, gap) => json!({ "error": text, "gap": gap }),
            Failure::Busy => json!({ "error": "Too many pages are being read; try again in a moment" }),
        };
        let mut response = answer(status, body.to_string().into());
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            // Not all at the same moment.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(rand::random_range(1..=4u16)));
        }
        response
    }
}

impl Page {
    fn body(&self) -> Bytes {
        let size: usize = self.rows.iter().map(|row| row.len() + 1).sum();
        let mut body = Vec::with_capacity(size + 128);
        body.extend_from_slice(br#"{"rows":["#);
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            body.extend_from_slice(row);
        }
        let cursor = self.cursor.as_ref().map_or_else(|| "null".into(), |text| format!("\"{text}\""));
        body.extend_from_slice(format!(r#"],"cursor":{cursor},"more":{}}}"#, self.more).as_bytes());
        body.into()
    }

    /// `headers`: of the request.
    pub(super) fn response(self, headers: &HeaderMap) -> Response<Bytes> {
        let body = self.body();
        if !self.closed {
            let mut response = answer(StatusCode::OK, body);
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            return response;
        }
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        let tag = format!("W/\"{:x}-{:x}\"", body.len(), hasher.finish());
        let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let known = known.flat_map(|value| value.split(',')).any(|value| value.trim() == tag);
        let mut response = match known {
            true => answer(StatusCode::NOT_MODIFIED, Bytes::new()),
            false => answer(StatusCode::OK, body),
        };
        let kept = format!("private, max-age={MAX_AGE}");
        let found = [(header::ETAG, tag), (header::CACHE_CONTROL, kept)];
        for (name, value) in found.into_iter().filter_map(|(name, value)| Some((name, value.parse().ok()?))) {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

/// Of a request that is not authenticated: as a handshake is refused.
pub(super) fn refused(refusal: &Refusal) -> Response<Bytes> {
    let mut response = refusal.response().map(Bytes::from);
    shared_by_all(response.headers_mut());
    response
}

/// Of a browser that asks whether it may ask. There are no cookies, so every origin may: the token is what counts.
pub(super) fn preflight() -> Response<Bytes> {
    let mut response = answer(StatusCode::NO_CONTENT, Bytes::new());
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, OPTIONS"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, apikey, x-api-key, x-client-info, if-none-match"),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn answer(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(header::VARY, HeaderValue::from_static("authorization, apikey, x-api-key"));
    shared_by_all(headers);
    response
}

fn shared_by_all(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("etag, retry-after"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(closed: bool) -> Page {
        let rows = ["{\"a\":1}", "{\"a\":2}"].map(Bytes::from).into();
        Page { rows, cursor: Some("c".into()), more: closed, closed }
    }

    #[test]
    fn an_open_page_is_not_kept_and_a_closed_one_has_a_tag() {
        let open = page(false).response(&HeaderMap::new());
        assert_eq!(open.body(), &r#"{"rows":[{"a":1},{"a":2}],"cursor":"c","more":false}"#);
        assert_eq!(open.headers()[header::CACHE_CONTROL], "no-store");
        assert!(!open.headers().contains_key(header::ETAG));
        let closed = page(true).response(&HeaderMap::new());
        let tag = closed.headers()[header::ETAG].clone();
        assert_eq!(closed.headers()[header::CACHE_CONTROL], "private, max-age=300");
        let mut asking = HeaderMap::new();
        asking.insert(header::IF_NONE_MATCH, format!("W/\"x\", {}", tag.to_str().unwrap()).parse().unwrap());
        let again = page(true).response(&asking);
        assert_eq!((again.status(), again.body().len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(again.headers()[header::ETAG], tag);
        assert_eq!(page(false).response(&asking).status(), StatusCode::OK);
    }

    #[test]
    fn who_comes_too_early_is_told_when_to_come() {
        for (failure, status) in [(Failure::Busy, 429), (Failure::Later("no".into()), 503)] {
            let response = failure.response();
            assert_eq!(response.status(), status);
            let after: u16 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
            assert!((1..=4).contains(&after));
        }
        let gap = Failure::Gap("Gap: x".into(), json!({ "reason": "expired" })).response();
        assert_eq!(gap.body(), &r#"{"error":"Gap: x","gap":{"reason":"expired"}}"#);
    }
}
