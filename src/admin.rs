//! The operator's own small listener: metrics, health, and a dump of the state.
//!
//! Invariants: on the loopback interface unless told otherwise, since nothing here asks who is there; it shows positions and
//! counts, never rows, tokens or claims, but for `/why`, which shows the values of a row if it is asked to. It goes on until the drain is over, so that the drain can be watched.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use warp::http::StatusCode;
use warp::reply::Response;
use warp::{Filter, Rejection, Reply};

use crate::error::{Fault, Remedy, chain};
use crate::hub::{HubHandle, Summary};
use crate::ingest::{IngestHandle, IngestState};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::task::{Connections, Drain};
use crate::why::{Request, Why, WhyError};

/// Why the admin port can't be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the admin address {addr}")]
pub struct AdminError {
    /// The address that was asked for.
    pub addr: SocketAddr,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

impl Fault for AdminError {
    fn remedy(&self) -> Remedy {
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => format!(
                "Another process listens on {}: stop it, or set ROWCAST_ADMIN_ADDR to another address, or to off.",
                self.addr
            ),
            _ => "Set ROWCAST_ADMIN_ADDR to an address of this machine, such as 127.0.0.1:4001, or to off.".into(),
        }
    }
}

/// What is shown.
#[derive(Clone)]
pub struct AdminDeps {
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The log.
    pub log: Log,
    /// What ingest is doing.
    pub ingest: IngestHandle,
    /// The open connections.
    pub connections: Connections,
    /// Whether the relay is stopping.
    pub drain: Drain,
    /// Our slot.
    pub slot: Arc<str>,
    /// Who subscribed to what.
    pub hub: HubHandle,
    /// Why somebody did not get a row.
    pub why: Arc<Why>,
}

/// The reserved admin port.
pub struct Admin {
    listener: TcpListener,
    local_addr: SocketAddr,
}

impl Admin {
    /// Reserves the port; 0 takes a free one.
    pub async fn bind(addr: SocketAddr) -> Result<Admin, AdminError> {
        let failed = |source| AdminError { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        if !local_addr.ip().is_loopback() {
            tracing::warn!(address = %local_addr, "the admin address can be reached from other machines, and asks nobody who they are");
        }
        Ok(Admin { listener, local_addr })
    }

    /// The address that operators reach.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `stop`.
    pub async fn serve(self, deps: AdminDeps, stop: Drain) {
        let stopping = async move { stop.draining().await };
        warp::serve(routes(deps)).incoming(self.listener).graceful(stopping).run().await;
    }
}

/// Of the hub's part of the state.
const HUB_DEADLINE: Duration = Duration::from_secs(2);

fn routes(deps: AdminDeps) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let asked = deps.why.clone();
    let (shown, ready) = (deps.clone(), deps.clone());
    let metrics = warp::path!("metrics").map(move || {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        warp::reply::with_header(deps.metrics.render(), "content-type", kind).into_response()
    });
    let health = warp::path!("healthz").map(|| "ok\n".into_response());
    let readiness = warp::path!("readyz").map(move || {
        let (status, text) = if ready.drain.is_draining() {
            (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned())
        } else if *ready.ingest.ready.borrow() {
            (StatusCode::OK, "streaming\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", *ready.ingest.state.borrow()))
        };
        warp::reply::with_status(text, status).into_response()
    });
    let state = warp::path!("state").then(move || {
        let shown = shown.clone();
        async move {
            tracing::info!(target: "audit", "state read");
            // A hub that waits for something is one of the things worth seeing here.
            let hub = tokio::time::timeout(HUB_DEADLINE, shown.hub.describe()).await.ok().flatten();
            warp::reply::json(&dump(&shown, hub.as_ref())).into_response()
        }
    });
    let shown = warp::get().and(metrics.or(health).unify().or(readiness).unify().or(state).unify());
    shown.or(why(asked)).unify()
}

/// What a question may have: a token is the longest part of it.
const MAX_QUESTION: u64 = 64 << 10;

/// A page that a browser shows can't ask: it would have to say so in `Origin`, and may not send JSON elsewhere.
fn why(why: Arc<Why>) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let body = warp::body::content_length_limit(MAX_QUESTION).and(warp::body::json());
    let asked = warp::path!("why").and(warp::post()).and(warp::header::optional::<String>("origin")).and(body);
    asked.then(move |origin: Option<String>, request: Request| {
        let why = why.clone();
        async move {
            if origin.is_some() {
                let text = "a browser may not ask\n";
                return warp::reply::with_status(text, StatusCode::FORBIDDEN).into_response();
            }
            tracing::info!(target: "audit", user = request.user, table = request.table, values = request.show_row, "why asked");
            match Box::pin(why.answer(&request)).await {
                Ok(answer) => warp::reply::json(&answer).into_response(),
                Err(error) => refused(&error),
            }
        }
    })
}

fn refused(error: &WhyError) -> Response {
    let status = match error.remedy() {
        Remedy::Operator => StatusCode::BAD_REQUEST,
        Remedy::Retry => StatusCode::SERVICE_UNAVAILABLE,
        Remedy::Bug => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let body = json!({ "error": chain(error), "advice": error.advice() });
    warp::reply::with_status(warp::reply::json(&body), status).into_response()
}

fn dump(deps: &AdminDeps, hub: Option<&Summary>) -> serde_json::Value {
    let (name, reason) = match &*deps.ingest.state.borrow() {
        IngestState::Starting => ("starting", None),
        IngestState::Streaming => ("streaming", None),
        IngestState::Buffering(reason) => ("buffering", Some(reason.clone())),
        IngestState::Blocked(reason) => ("blocked", Some(reason.clone())),
        IngestState::Waiting(reason) => ("waiting", Some(reason.clone())),
    };
    let epoch = deps.log.epoch().map(|epoch| {
        json!({
            "system_identifier": epoch.system_identifier.to_string(),
            "incarnation": format!("{:032x}", epoch.incarnation),
        })
    });
    let by_protocol = |version| deps.metrics.connections_by_protocol.get_or_create(&[("version", version)]).get();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "draining": deps.drain.is_draining(),
        "slot": &*deps.slot,
        "ingest": { "state": name, "reason": reason, "ready": *deps.ingest.ready.borrow() },
        "log": {
            "epoch": epoch,
            "floor": deps.log.floor().to_string(),
            "end": deps.log.end().to_string(),
            "durable": deps.log.durable().to_string(),
            "bytes": deps.log.bytes(),
        },
        "hub": hub.map(hub_json),
        "connections": {
            "tcp": deps.connections.len(),
            "websocket": deps.metrics.connections.get(),
            "by_protocol": { "1.0.0": by_protocol("1.0.0"), "2.0.0": by_protocol("2.0.0") },
            "channels": deps.metrics.channels.get(),
            "subscriptions": deps.metrics.subscriptions.get(),
        },
    })
}

fn hub_json(hub: &Summary) -> serde_json::Value {
    let tables = hub.tables.iter().map(|t| json!({ "table": t.table, "subscriptions": t.subscriptions }));
    let users = hub.users.iter().map(
        |u| json!({ "role": &*u.role, "user": &*u.subject, "channels": u.channels, "subscriptions": u.subscriptions }),
    );
    let facts = hub.facts.iter().map(|f| {
        json!({ "table": f.table, "state": f.state, "rows": f.rows, "bytes": f.bytes, "why": f.why, "remedy": f.remedy })
    });
    json!({
        "position": hub.position.to_string(),
        "channels": hub.channels,
        "subscriptions": hub.subscriptions,
        "lane": { "rows": hub.lane_rows, "bytes": hub.lane_bytes, "questions": hub.questions },
        "catalog_age_seconds": hub.catalog_age.map(|age| age.as_secs_f64()),
        "facts": facts.collect::<Vec<_>>(),
        "subscriptions_by_table": tables.collect::<Vec<_>>(),
        "subscriptions_by_user": users.collect::<Vec<_>>(),
    })
}
