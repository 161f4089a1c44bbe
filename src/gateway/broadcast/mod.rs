//! `POST /api/broadcast` and `POST /api/broadcast/{topic}/events/{event}`: broadcasts from who has no channel.
//!
//! Invariants:
//! * Who is not authenticated makes us read a head and nothing more: no byte of a body is asked for before.
//! * Bytes of bodies are bounded, in all and for each user, as are his requests at a time, and every step has a deadline.
//! * A message to a private topic is handed over only if policies let the request's user write there; who can't be asked is a no.
//! * Payloads are passed on byte by byte.
//!
//! Rejected: warp's JSON bodies, which buffer first and ask later.

mod batch;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod rate;
mod request;
mod response;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt as _};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use warp::http::{HeaderMap, Method, Response};
use warp::{Filter, Rejection, Reply};

use self::rate::{Place, Rates, Seen};
use self::request::Format;
pub(super) use self::request::token;
use self::response::Answer;
use super::GatewayConfig;
use super::handshake::Refusal;
use super::json::is_value;
use crate::authority::{Asking, Authority, AuthorityError};
use crate::claims::Principal;
use crate::metrics::Metrics;
use crate::room::{Message, Payload, RoomError, RoomKey, Rooms};
use crate::task::Drain;

/// The rest of the relay as far as it is needed here. A trait, so that tests say who may, and see what is sent.
pub(super) trait Exchange: Send + Sync {
    /// Whether policies let the user broadcast to a private topic.
    fn may_write(&self, asking: Asking) -> BoxFuture<'_, Result<bool, AuthorityError>>;

    /// Hands a message to everybody in the room; waits while they are slow.
    fn publish(&self, room: RoomKey, message: Message, user: Arc<str>) -> BoxFuture<'_, Result<(), RoomError>>;
}

/// The real one.
pub(super) struct Inside {
    pub(super) rooms: Arc<Rooms>,
    pub(super) authority: Authority,
}

impl Exchange for Inside {
    fn may_write(&self, asking: Asking) -> BoxFuture<'_, Result<bool, AuthorityError>> {
        Box::pin(async move { self.authority.write(&asking).await.map(|writes| writes.broadcast) })
    }

    fn publish(&self, room: RoomKey, message: Message, user: Arc<str>) -> BoxFuture<'_, Result<(), RoomError>> {
        Box::pin(async move { self.rooms.publish(&room, message, &user).await })
    }
}

/// Private topics of one batch, each of which may be a question to Postgres.
const MAX_PRIVATE_TOPICS: usize = 100;
/// Bytes of an event's name, which frames of protocol 2 give one byte for.
const MAX_EVENT: usize = 255;

/// What is shared by all requests.
pub(super) struct Broadcasts {
    config: GatewayConfig,
    exchange: Box<dyn Exchange>,
    rates: Rates,
    metrics: Arc<Metrics>,
    drain: Drain,
}

/// Where a request posts to.
enum Target {
    Batch,
    /// Segments of the path, as they came.
    Event {
        topic: String,
        event: String,
    },
}

/// A request whose body has not been read.
struct Posted<'a> {
    target: Target,
    headers: &'a HeaderMap,
    query: &'a str,
}

impl Broadcasts {
    pub(super) fn new(
        config: GatewayConfig,
        exchange: Box<dyn Exchange>,
        metrics: Arc<Metrics>,
        drain: Drain,
    ) -> Broadcasts {
        let rates = Rates::new(&config);
        Broadcasts { config, exchange, rates, metrics, drain }
    }

    async fn answer<S, B>(
        &self,
        posted: &Posted<'_>,
        body: S,
        principal: Result<Arc<Principal>, Refusal>,
    ) -> Response<Bytes>
    where
        S: Stream<Item = Result<B, warp::Error>>,
        B: Buf,
    {
        let id = request::id(posted.headers);
        let principal = match principal {
            Ok(principal) => principal,
            Err(refusal) => {
                let code = refusal.code();
                self.metrics.refusals.get_or_create(&[("code", code)]).inc();
                info!(target: "audit", reason = code, request = id, "broadcast refused");
                tokio::time::sleep(self.config.handshake_failure_delay).await;
                return Answer::Unauthorized.response(&self.rates.nobody(), &id);
            }
        };
        let user = principal.user();
        let seen = self.rates.request(&user);
        let answer = match self.post(posted, body, &principal, &user, &seen).await {
            Ok(()) => Answer::Accepted,
            Err(answer) => answer,
        };
        if answer.is_trouble() {
            warn!(request = id, ?answer, "a broadcast over HTTP was not taken");
        }
        answer.response(&seen, &id)
    }

    async fn post<S, B>(
        &self,
        posted: &Posted<'_>,
        body: S,
        principal: &Arc<Principal>,
        user: &Arc<str>,
        seen: &Seen,
    ) -> Result<(), Answer>
    where
        S: Stream<Item = Result<B, warp::Error>>,
        B: Buf,
    {
        if !seen.admitted {
            return Err(Answer::TooManyRequests);
        }
        if self.drain.is_draining() {
            return Err(Answer::Restarting);
        }
        let mut under_way = self.rates.begin(user).ok_or(Answer::TooManyRequests)?;
        if !self.rates.may_send(user, 1) {
            return Err(Answer::OverRate);
        }
        let deadline = Instant::now() + self.config.post_timeout;
        // Until the end: the messages are as large as the body, and wait for slow rooms.
        let (messages, _place) = match &posted.target {
            Target::Batch => {
                let limit = largest_batch(&self.config);
                let (body, place) =
                    self.read(posted.headers, body, limit, Answer::BodyTooLarge, user, deadline).await?;
                (self.batch(&body)?, place)
            }
            Target::Event { topic, event } => {
                let (room, event) = self.room(topic, event, posted.query)?;
                let format = request::format(posted.headers).ok_or(Answer::MediaType)?;
                let limit = self.config.largest_payload();
                let (body, place) =
                    self.read(posted.headers, body, limit, Answer::PayloadTooLarge, user, deadline).await?;
                let payload = payload(format, body)?;
                (vec![(room, Message::Event { event, payload, meta: None })], place)
            }
        };
        under_way.is_read();
        if !self.rates.may_send(user, messages.len()) {
            return Err(Answer::BatchTooLarge);
        }
        let single = matches!(posted.target, Target::Event { .. });
        let allowed = self.allowed(&messages, posted.headers, principal, single, deadline).await?;
        for (room, message) in messages {
            if room.private && !allowed.get(&room.topic).copied().unwrap_or(false) {
                continue;
            }
            self.rates.sent(user, 1);
            let handed = timeout_at(deadline, self.exchange.publish(room, message, user.clone())).await;
            handed.map_err(|_| Answer::Busy)?.map_err(|error| match error {
                RoomError::Closed => Answer::Restarting,
                _ => Answer::OverRate,
            })?;
        }
        Ok(())
    }

    /// The whole body, if it is not longer than `limit`, and the place that it takes.
    async fn read<'p, S, B>(
        &'p self,
        headers: &HeaderMap,
        body: S,
        limit: usize,
        too_large: Answer,
        user: &Arc<str>,
        deadline: Instant,
    ) -> Result<(Bytes, Place<'p>), Answer>
    where
        S: Stream<Item = Result<B, warp::Error>>,
        B: Buf,
    {
        let length = request::length(headers);
        if length.is_some_and(|length| length > limit) {
            return Err(too_large);
        }
        let place = self.rates.reserve(user, length.unwrap_or(limit)).ok_or(Answer::TooManyRequests)?;
        let mut whole = BytesMut::with_capacity(length.unwrap_or(0).min(FIRST));
        let reading = async {
            let mut body = std::pin::pin!(body);
            while let Some(part) = body.next().await {
                let mut part = part.map_err(|_| Answer::BadRequest)?;
                if whole.len() + part.remaining() > limit {
                    return Err(too_large);
                }
                while part.has_remaining() {
                    let chunk = part.chunk();
                    whole.extend_from_slice(chunk);
                    let size = chunk.len();
                    part.advance(size);
                }
            }
            Ok(whole.freeze())
        };
        let body = timeout_at(deadline, reading).await.map_err(|_| Answer::Slow)??;
        Ok((body, place))
    }

    fn batch(&self, body: &[u8]) -> Result<Vec<(RoomKey, Message)>, Answer> {
        let text = std::str::from_utf8(body).map_err(|_| Answer::BadRequest)?;
        let messages = batch::parse(text, self.config.largest_payload())?;
        Ok(messages.into_iter().map(|message| (message.room(), message.encode())).collect())
    }

    fn room(&self, topic: &str, event: &str, query: &str) -> Result<(RoomKey, Arc<str>), Answer> {
        let plain = |segment: &str| request::segment(segment).ok_or(Answer::BadRequest);
        let (topic, event) = (plain(topic)?, plain(event)?);
        if topic.len() > self.config.max_topic_bytes {
            return Err(Answer::TooLong { field: "topic", most: self.config.max_topic_bytes });
        }
        if event.len() > MAX_EVENT {
            return Err(Answer::TooLong { field: "event", most: MAX_EVENT });
        }
        Ok((RoomKey { private: request::is_private(query), topic: topic.into() }, event.into()))
    }

    /// To which private topics of these messages the user may write; each is asked about once. `single`: what stands in the way
    /// is told; of a batch only what may pass by itself.
    async fn allowed(
        &self,
        messages: &[(RoomKey, Message)],
        headers: &HeaderMap,
        principal: &Arc<Principal>,
        single: bool,
        deadline: Instant,
    ) -> Result<HashMap<Arc<str>, bool>, Answer> {
        let mut allowed = HashMap::new();
        let mut all = None;
        for (room, _) in messages.iter().filter(|(room, _)| room.private) {
            if allowed.contains_key(&room.topic) {
                continue;
            }
            if allowed.len() == MAX_PRIVATE_TOPICS {
                return Err(Answer::BatchTooLarge);
            }
            let headers = all.get_or_insert_with(|| request::all_headers(headers)).clone();
            let asking = Asking { topic: room.topic.clone(), principal: principal.clone(), headers };
            let asked = timeout_at(deadline, self.exchange.may_write(asking)).await;
            let verdict = match asked.unwrap_or(Err(AuthorityError::Unavailable)) {
                Ok(verdict) => verdict,
                Err(AuthorityError::Policy) if single => return Err(Answer::Policy),
                // Nobody may write where there is nothing that says so.
                Err(AuthorityError::Policy | AuthorityError::NotInstalled) => false,
                Err(AuthorityError::Timeout(_)) => return Err(Answer::Canceled),
                Err(AuthorityError::MissingPartition) => return Err(Answer::MissingPartition),
                Err(AuthorityError::PoolExhausted) => return Err(Answer::PoolExhausted),
                Err(AuthorityError::Unavailable) => return Err(Answer::Unavailable),
            };
            if single && !verdict {
                return Err(Answer::Forbidden);
            }
            allowed.insert(room.topic.clone(), verdict);
        }
        Ok(allowed)
    }
}

/// Bytes of a batch's body: at least one message with the largest payload is taken.
fn largest_batch(config: &GatewayConfig) -> usize {
    config.max_post_bytes.max(config.largest_payload().saturating_add(ENVELOPE))
}

/// Bytes around a payload.
const ENVELOPE: usize = 4096;
/// Bytes allocated for a body before the first of it is there.
const FIRST: usize = 16 * 1024;

fn payload(format: Format, body: Bytes) -> Result<Payload, Answer> {
    match format {
        Format::Octets => Ok(Payload::Binary(body)),
        Format::Json if body.is_empty() => Ok(Payload::Json(Bytes::from_static(b"{}"))),
        Format::Json => match std::str::from_utf8(&body) {
            Ok(text) if is_value(text) => Ok(Payload::Json(body)),
            _ => Err(Answer::BadRequest),
        },
    }
}

/// The routes. `authenticate`: whose token this is.
pub(super) fn routes<A, F>(
    broadcasts: Arc<Broadcasts>,
    authenticate: A,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone
where
    A: Fn(Option<String>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Arc<Principal>, Refusal>> + Send,
{
    let batch = warp::path!("api" / "broadcast").or(warp::path!("realtime" / "v1" / "api" / "broadcast")).unify();
    let batch = batch.map(|| Target::Batch);
    let event = warp::path!("api" / "broadcast" / String / "events" / String)
        .or(warp::path!("realtime" / "v1" / "api" / "broadcast" / String / "events" / String))
        .unify()
        .map(|topic, event| Target::Event { topic, event });
    let target = batch.or(event).unify();
    target
        .and(warp::post().or(warp::options()).unify())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::body::stream())
        .then(move |target, method: Method, headers: HeaderMap, query: String, body| {
            let (broadcasts, authenticate) = (broadcasts.clone(), authenticate.clone());
            async move {
                if method == Method::OPTIONS {
                    return response::preflight(&headers);
                }
                let principal = authenticate(token(&headers)).await;
                let posted = Posted { target, headers: &headers, query: &query };
                // The body's buffers live as long as this; boxed, so that other requests don't carry them.
                let answer = Box::pin(broadcasts.answer(&posted, body, principal)).await;
                let status = response::label(answer.status());
                broadcasts.metrics.posts.get_or_create(&[("status", status)]).inc();
                answer
            }
        })
}
