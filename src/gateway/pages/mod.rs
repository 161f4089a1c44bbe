//! `GET /api/snapshot` and `GET /api/history`: what a channel would get, as JSON pages.
//!
//! Invariants:
//! * A page is authenticated as a handshake is, before anything is read for it.
//! * Pages that are read at a time are bounded, in all and for each user; so are their bytes and their time.

mod read;
mod request;
mod response;
mod sink;

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tracing::info;
use warp::http::{HeaderMap, Method, Response};
use warp::{Filter, Rejection, Reply};

use self::request::Kind;
pub(super) use self::request::token;
use self::response::Failure;
use super::Shared;
use super::handshake::Refusal;
use crate::claims::Principal;

/// How many are being read, and for whom.
pub(super) struct Pages {
    shards: usize,
    next: AtomicUsize,
    /// By sharing key.
    readers: Mutex<HashMap<Arc<str>, usize>>,
}

/// One that is being read; makes room when dropped.
struct Turn<'a> {
    pages: &'a Pages,
    reader: Arc<str>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut readers = self.pages.readers.lock().unwrap_or_else(PoisonError::into_inner);
        match readers.get_mut(&self.reader) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(readers.remove(&self.reader)),
        }
    }
}

impl Pages {
    pub(super) fn new(shards: usize) -> Pages {
        Pages { shards: shards.max(1), next: AtomicUsize::new(0), readers: Mutex::default() }
    }

    fn turn(&self, shared: &Shared, principal: &Principal) -> Option<Turn<'_>> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = principal.user();
        let own = readers.get(&reader).copied().unwrap_or(0);
        let all: usize = readers.values().sum();
        if all >= shared.config.max_pages || own >= shared.config.max_user_pages {
            return None;
        }
        readers.insert(reader.clone(), own + 1);
        Some(Turn { pages: self, reader })
    }

    async fn page(
        &self,
        shared: &Shared,
        kind: Kind,
        headers: &HeaderMap,
        query: &str,
        principal: Result<Arc<Principal>, Refusal>,
    ) -> Response<Bytes> {
        let principal = match principal {
            Ok(principal) => principal,
            Err(refusal) => {
                shared.metrics.refusals.get_or_create(&[("code", refusal.code())]).inc();
                info!(target: "audit", reason = refusal.code(), "page refused");
                tokio::time::sleep(shared.config.handshake_failure_delay).await;
                return response::refused(&refusal);
            }
        };
        let reading = async {
            let asked = request::parse(kind, query, shared.config.max_page_rows, &shared.cursor_key);
            let asked = asked.map_err(Failure::Bad)?;
            let _turn = self.turn(shared, &principal).ok_or(Failure::Busy)?;
            let shard = self.next.fetch_add(1, Ordering::Relaxed) % self.shards;
            read::read(shared, &asked, principal.clone(), shard).await
        };
        let stopping = || Err(Failure::Later(crate::hub::RESTARTING.into()));
        let page = tokio::select! {
            page = reading => page,
            () = shared.drain.draining() => stopping(),
        };
        match page {
            Ok(page) => page.response(headers),
            Err(failure) => failure.response(),
        }
    }
}

/// The routes. `authenticate`: whose token this is.
pub(super) fn routes<A, F>(
    pages: Arc<Pages>,
    shared: Arc<Shared>,
    authenticate: A,
) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone
where
    A: Fn(Option<String>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Arc<Principal>, Refusal>> + Send,
{
    let kind = |kind: Kind| move || kind;
    let snapshot = warp::path!("api" / "snapshot").or(warp::path!("realtime" / "v1" / "api" / "snapshot")).unify();
    let history = warp::path!("api" / "history").or(warp::path!("realtime" / "v1" / "api" / "history")).unify();
    let path = snapshot.map(kind(Kind::Snapshot)).or(history.map(kind(Kind::History))).unify();
    path.and(warp::get().or(warp::options()).unify())
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .then(move |kind, method: Method, headers: HeaderMap, query: String| {
            let (pages, shared, authenticate) = (pages.clone(), shared.clone(), authenticate.clone());
            async move {
                if method == Method::OPTIONS {
                    return response::preflight();
                }
                let principal = authenticate(request::token(&headers, &query)).await;
                let page = pages.page(&shared, kind, &headers, &query, principal).await;
                let status = page.status();
                shared.metrics.pages.get_or_create(&[("status", status_label(status.as_u16()))]).inc();
                page
            }
        })
}

/// The labels of the metric, which are few.
fn status_label(status: u16) -> &'static str {
    match status {
        200 => "200",
        304 => "304",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        410 => "410",
        413 => "413",
        429 => "429",
        503 => "503",
        _ => "other",
    }
}
