//! Statuses, texts and headers of the answers, as SDKs know them (`protocol.md` §7.3, §7.4).

use std::fmt;

use bytes::Bytes;
use serde_json::{Value, json};
use warp::http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::rate::Seen;

/// How a request ended.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// All were handed over, or skipped as not permitted.
    Accepted,
    BadRequest,
    Unauthorized,
    /// Of the single endpoint: a private topic that the user may not write to.
    Forbidden,
    /// The body came too slowly.
    Slow,
    BodyTooLarge,
    MediaType,
    /// Of a batch: what is wrong with each message, or with all of them.
    Invalid(Value),
    PayloadTooLarge,
    TooLong {
        field: &'static str,
        most: usize,
    },
    /// A policy raised an error.
    Policy,
    Canceled,
    MissingPartition,
    Unavailable,
    PoolExhausted,
    TooManyRequests,
    OverRate,
    BatchTooLarge,
    /// The hand-over takes too long.
    Busy,
    Restarting,
}

/// Without what the client sent.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Answer::Policy => "a policy raised an error",
            Answer::Canceled => "the policies took too long",
            Answer::MissingPartition => "realtime.messages has no partition for today",
            Answer::Unavailable => "the database can't be asked",
            Answer::PoolExhausted => "no connection is free to ask the policies",
            Answer::Busy => "the hand-over takes too long",
            _ => "not accepted",
        })
    }
}

impl Answer {
    /// The operator can do something about it.
    pub(super) fn is_trouble(&self) -> bool {
        matches!(
            self,
            Answer::Policy
                | Answer::Canceled
                | Answer::MissingPartition
                | Answer::Unavailable
                | Answer::PoolExhausted
                | Answer::Busy
        )
    }

    fn parts(self) -> (u16, Option<Value>) {
        let message = |text: &str| Some(json!({ "message": text }));
        let errors = |errors: Value| Some(json!({ "errors": errors }));
        match self {
            Answer::Accepted => (202, None),
            Answer::BadRequest => (400, None),
            Answer::Unauthorized => (401, message("Unauthorized")),
            Answer::Forbidden => (403, message("Unauthorized")),
            Answer::Slow => (408, message("Request Timeout")),
            Answer::BodyTooLarge => (413, message("Request body too large, please reduce the batch size")),
            Answer::MediaType => {
                let text = "Unsupported Media Type. Use application/json or application/octet-stream";
                (415, Some(json!({ "error": text })))
            }
            Answer::Invalid(messages) => (422, errors(json!({ "messages": messages }))),
            Answer::PayloadTooLarge => (422, errors(json!({ "payload": [TOO_LARGE] }))),
            Answer::TooLong { field, most } => {
                (422, errors(json!({ field: [format!("should be at most {most} byte(s)")] })))
            }
            Answer::Policy => (422, message("RLS policy error")),
            Answer::Canceled => (422, message("Query canceled")),
            Answer::MissingPartition => (422, message("Missing messages partition")),
            Answer::Unavailable => (422, message("Tenant database unavailable")),
            Answer::PoolExhausted => (429, message("Connection pool exhausted")),
            Answer::TooManyRequests => (429, message("Too many requests")),
            Answer::OverRate => (429, message("You have exceeded your rate limit")),
            Answer::BatchTooLarge => (429, message("Too many messages to broadcast, please reduce the batch size")),
            Answer::Busy => (503, message("The messages could not be handed over in time, try again")),
            Answer::Restarting => (503, message(crate::hub::RESTARTING)),
        }
    }

    pub(super) fn response(self, seen: &Seen, id: &str) -> Response<Bytes> {
        let (status, body) = self.parts();
        let json = body.is_some();
        let text = match body {
            Some(body) => body.to_string().into(),
            None if status == 400 => Bytes::from_static(b"Bad Request"),
            None => Bytes::new(),
        };
        let mut response = Response::new(text);
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        if json {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        }
        if matches!(status, 429 | 503) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(rand::random_range(1..=4u16)));
        }
        let rolling = format!("{:.2}", seen.rolling);
        let left = (f64::from(seen.limit) - seen.rolling).max(0.0).floor();
        for (name, value) in [
            ("x-rate-rolling", rolling),
            ("x-rate-limit", seen.limit.to_string()),
            ("x-rate-limit-remaining", format!("{left:.0}")),
            ("x-request-id", id.to_owned()),
        ] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
        shared_by_all(headers);
        response
    }
}

/// Of one message's payload, and of the single one.
pub(super) const TOO_LARGE: &str = "Payload size exceeds tenant limit";

/// Of a browser that asks whether it may ask. There are no cookies, so every origin may, and with every header: the token is what
/// counts, and policies may look at headers of the application's own.
pub(super) fn preflight(asking: &HeaderMap) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    let known = HeaderValue::from_static("authorization, apikey, content-type, x-client-info");
    let wanted = asking.get(header::ACCESS_CONTROL_REQUEST_HEADERS).filter(|value| {
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b',' | b' ');
        !value.is_empty() && value.len() <= 1024 && value.as_bytes().iter().all(fits)
    });
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, known);
    if let Some(wanted) = wanted {
        headers.append(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    shared_by_all(headers);
    response
}

fn shared_by_all(headers: &mut HeaderMap) {
    const SHOWN: &str = "x-rate-rolling, x-rate-limit, x-rate-limit-remaining, x-request-id, retry-after";
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(SHOWN));
}

/// The labels of the metric, which are few.
pub(super) fn label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        202 => "202",
        400 => "400",
        401 => "401",
        403 => "403",
        408 => "408",
        413 => "413",
        415 => "415",
        422 => "422",
        429 => "429",
        503 => "503",
        _ => "other",
    }
}
