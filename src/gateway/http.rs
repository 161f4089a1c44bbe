//! The listener, the routes, and the way from a request to a WebSocket.
//!
//! Invariants:
//! * Each TCP connection is one task: first HTTP, then, if upgraded, the socket; the first half's memory is freed between them.
//! * What has not authenticated is bounded in number, bytes and time.
//!
//! The accept loop is ours so that TLS can come before HTTP, and so that the upgraded connection can be taken apart into the
//! `TcpStream` that the outbox writes to.
//! Rejected: `warp::serve` with `warp::ws()`, which costs 2.5 × the CPU and 26 × the memory per connection.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};
use warp::http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use warp::{Filter, Rejection, Reply};

use super::anteroom::{Anteroom, Guest};
use super::broadcast::{self, Broadcasts};
use super::handshake::{self, Door, Grant, Refusal, plain};
use super::limits::{Admission, Admitted, Joins};
use super::pages::{self, Pages};
use super::stream::Stream;
use super::tls::Tls;
use super::unfinished::Unfinished;
use super::{GatewayConfig, Shared, Tokens, phoenix, storm};
use crate::authority::Authority;
use crate::claims::{Principal, TokenError};
use crate::clock::Clock;
use crate::error::{Fault, Remedy};
use crate::hub::HubHandle;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::resume::{CursorKey, Frontiers, History};
use crate::room::Rooms;
use crate::task::{Connections, Drain, Gate};

/// What the gateway needs from the rest of the relay.
pub struct Deps {
    /// Where channels subscribe.
    pub hub: HubHandle,
    /// Who is in a topic together.
    pub rooms: Arc<Rooms>,
    /// Who may come in.
    pub verifier: Arc<dyn Tokens>,
    /// What time it is.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where the ends of connections are noted.
    pub journal: Journal,
    /// What happened, for where a join begins.
    pub log: History,
    /// Seals and opens cursors.
    pub cursor_key: Arc<CursorKey>,
    /// What devices have received.
    pub frontiers: Arc<Frontiers>,
    /// Who may read and write private channels.
    pub authority: Authority,
    /// For stored messages.
    pub pool: Pool,
    /// When to stop.
    pub drain: Drain,
    /// The set that every connection's task belongs to.
    pub connections: Connections,
    /// Whether changes are streaming, for `/readyz`.
    pub ready: watch::Receiver<bool>,
    /// Closed while the relay has been without its slot for too long: nobody is let in, and who is there is sent away.
    pub gate: Gate,
    /// Shards of sockets; connections are given to them in turn.
    pub shards: usize,
    /// What connections begin with, unless they are plain.
    pub tls: Option<Arc<Tls>>,
}

/// Why the gateway can't listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}")]
pub struct BindError {
    /// The address that was asked for.
    pub addr: SocketAddr,
    /// The system's reason.
    pub source: io::Error,
}

impl Fault for BindError {
    fn remedy(&self) -> Remedy {
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                format!("another process listens on {}: stop it, or choose another port with PORT or --port", self.addr)
            }
            io::ErrorKind::PermissionDenied => {
                format!("port {} needs a privilege: choose a port above 1023 with PORT or --port", self.addr.port())
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("{} is no address of this machine: set HOST, for example to 0.0.0.0", self.addr.ip())
            }
            _ => String::new(),
        }
    }
}

/// The gateway before it listens.
pub struct Gateway {
    config: GatewayConfig,
    deps: Deps,
}

/// The gateway with its port reserved; clients that come before [`Bound::serve`] wait.
pub struct Bound {
    listener: TcpListener,
    local_addr: SocketAddr,
    gateway: Gateway,
}

impl Gateway {
    /// Nothing runs yet.
    pub fn new(config: GatewayConfig, deps: Deps) -> Gateway {
        Gateway { config, deps }
    }

    /// Reserves the port; 0 takes a free one.
    pub async fn bind(self, addr: SocketAddr) -> Result<Bound, BindError> {
        let failed = |source| BindError { addr, source };
        let listener = listen(addr).map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok(Bound { listener, local_addr, gateway: self })
    }
}

/// What the routes share.
struct Doors {
    shared: Arc<Shared>,
    admission: Admission,
    /// Turns of handshakes that wait for keys.
    learning: Semaphore,
    pages: Arc<Pages>,
    broadcasts: Arc<Broadcasts>,
}

/// How a request of an upgraded connection leaves the HTTP half of the task.
#[derive(Clone)]
struct Handover {
    connection: u64,
    peer: SocketAddr,
    accepted: Arc<Mutex<Option<Accepted>>>,
}

struct Accepted {
    upgrade: OnUpgrade,
    grant: Grant,
    admitted: Admitted,
}

/// Connections that may wait to be accepted; the system has a limit of its own (`net.core.somaxconn`).
const BACKLOG: u32 = 8192;
/// The part of the header timeout that a connection has for certain before it may have to make room.
const TIME_TO_SPEAK: u32 = 40;
/// How long the accept loop waits when the system has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Bound {
    /// The address that clients reach.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Accepts until the connections have been told to go, which at a drain takes a while: who comes meanwhile hears that the
    /// relay stops. The connections themselves end in their own set.
    pub async fn serve(self) {
        let Gateway { config, deps } = self.gateway;
        let shards = deps.shards.max(1) as u64;
        let anteroom = Anteroom::new(config.max_unauthenticated, config.header_timeout / TIME_TO_SPEAK);
        let admission = Admission::new(config.max_connections, deps.metrics.clone());
        let pages = Arc::new(Pages::new(deps.shards));
        let turns = storm::Turns::new(&config);
        let joins = Joins::new(&config);
        let unfinished = Unfinished::new(config.max_unfinished_bytes);
        let Deps { hub, verifier, clock, metrics, journal, log, cursor_key, frontiers, drain, gate, .. } = deps;
        let Deps { connections, ready, tls, rooms, authority, pool, .. } = deps;
        let shared = Arc::new(Shared {
            config,
            hub,
            verifier,
            clock,
            metrics,
            journal,
            log,
            cursor_key,
            frontiers,
            drain,
            gate,
            turns,
            joins,
            unfinished,
            rooms,
            authority,
            pool,
            ready,
        });
        let learning = Semaphore::new(shared.config.max_learning.min(Semaphore::MAX_PERMITS));
        let exchange = Box::new(broadcast::Inside { rooms: shared.rooms.clone(), authority: shared.authority.clone() });
        let broadcasts = Broadcasts::new(shared.config.clone(), exchange, shared.metrics.clone(), shared.drain.clone());
        let broadcasts = Arc::new(broadcasts);
        let doors = Arc::new(Doors { shared: shared.clone(), admission, learning, pages, broadcasts });
        let service = TowerToHyperService::new(warp::service(routes(doors)));
        let next = AtomicU64::new(0);
        info!(address = %self.local_addr, tls = tls.is_some(), "listening");
        let mut pace = storm::Pace::new(shared.config.max_connects_per_second);
        let accepting = async {
            let mut stopped = std::pin::pin!(shared.stopped());
            loop {
                let accepted = async {
                    pace.turn().await;
                    accept(&self.listener, &anteroom, &shared.metrics).await
                };
                let (guest, stream, peer) = tokio::select! {
                    accepted = accepted => accepted,
                    () = stopped.as_mut() => return,
                };
                let connection = next.fetch_add(1, Ordering::Relaxed);
                // A shard number fits: it is below a usize.
                let shard = (connection % shards) as usize;
                let arrival = Arrival { stream, peer, guest, connection, shard, tls: tls.clone() };
                connections.spawn("connection", live(shared.clone(), service.clone(), arrival));
            }
        };
        let keeping = async {
            if let Some(tls) = &tls {
                tls.clone().keep(&shared.drain).await;
            }
        };
        tokio::join!(accepting, keeping);
    }
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A new relay takes the port while connections of the one before linger.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

async fn accept(
    listener: &TcpListener,
    anteroom: &Arc<Anteroom>,
    metrics: &Metrics,
) -> (Arc<Guest>, TcpStream, SocketAddr) {
    let crowded = || {
        metrics.refusals.get_or_create(&[("code", "Crowded")]).inc();
    };
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (anteroom.enter(crowded).await, stream, peer),
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that was accepted.
struct Arrival {
    stream: TcpStream,
    peer: SocketAddr,
    /// Its place among those that have not authenticated.
    guest: Arc<Guest>,
    connection: u64,
    shard: usize,
    tls: Option<Arc<Tls>>,
}

/// One connection from accept to end. Each phase is boxed, so that neither keeps memory for the other.
fn live<S>(shared: Arc<Shared>, service: S, arrival: Arrival) -> impl Future<Output = ()> + Send + 'static
where
    S: Service<Request<Incoming>, Response = warp::reply::Response, Error = std::convert::Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    let first = Box::pin(async move {
        let Arrival { stream, peer, guest, connection, shard, tls } = arrival;
        let handover = Handover { connection, peer, accepted: Arc::default() };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "TCP_NODELAY could not be set");
        }
        match &tls {
            None => speak_http(&shared, service, stream, handover.clone(), &guest).await,
            Some(tls) => {
                let stream = tokio::select! {
                    stream = Box::pin(tls.accept(stream, shared.config.header_timeout)) => stream?,
                    () = shared.stopped() => return None,
                    () = guest.sent_away() => return None,
                };
                speak_http(&shared, service, stream, handover.clone(), &guest).await;
            }
        }
        drop(guest);
        let accepted = handover.accepted.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Accepted { upgrade, grant, admitted } = accepted?;
        // HTTP is over, so this is ready; it fails if the 101 could not be written.
        let upgraded = upgrade.await.ok()?;
        let (stream, leftover) = if tls.is_none() {
            let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
            (Stream::Plain(parts.io.into_inner()), parts.read_buf)
        } else {
            let parts = upgraded.downcast::<TokioIo<Box<TlsStream<TcpStream>>>>().ok()?;
            (Stream::Tls(parts.io.into_inner()), parts.read_buf)
        };
        let Grant { version, token, principal, headers, device, .. } = grant;
        let visitor =
            phoenix::Visitor { connection, version, token, principal, headers, device, probe: Arc::default() };
        Some(Box::pin(phoenix::run(shared, visitor, shard, stream, leftover, admitted)))
    });
    async move {
        if let Some(second) = first.await {
            second.await;
        }
    }
}

async fn speak_http<S, I>(shared: &Shared, service: S, stream: I, handover: Handover, guest: &Arc<Guest>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = warp::reply::Response, Error = std::convert::Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(handover.clone());
        let (served, answering) = (guest.served(), service.call(request));
        async move {
            let answer = answering.await;
            drop(served);
            answer
        }
    });
    let config = &shared.config;
    // It came while the others are told to go: one request is answered.
    let late = shared.drain.is_draining();
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(!late)
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.max_head_bytes.max(8192))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut http = std::pin::pin!(http);
    let ended = tokio::select! {
        ended = http.as_mut() => Some(ended),
        () = guest.sent_away() => None,
        () = shared.drain.draining() => {
            if !late {
                http.as_mut().graceful_shutdown();
            }
            tokio::time::timeout(config.close_timeout, http).await.ok()
        }
    };
    if let Some(Err(error)) = ended {
        debug!(%error, "an HTTP connection ended early");
    }
}

fn routes(doors: Arc<Doors>) -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    let (shared, shown) = (doors.shared.clone(), doors.pages.clone());
    let text = |text: &'static str| move || plain(StatusCode::OK, text.into());
    let json =
        || warp::reply::with_header(r#"{"message":"Success"}"#, "content-type", "application/json; charset=utf-8");
    let health = warp::path!("healthz").map(text("ok\n"));
    let check = warp::path!("healthcheck").map(text("ok"));
    let ping = warp::path!("api" / "ping").or(warp::path!("realtime" / "v1" / "api" / "ping")).unify().map(json);
    let ready = {
        let doors = doors.clone();
        warp::path!("readyz").map(move || readiness(&doors))
    };
    let feeds = {
        let (doors, broadcasts) = (doors.clone(), doors.broadcasts.clone());
        let authenticate = move |token| {
            let doors = doors.clone();
            async move { authenticate(&doors, token).await }
        };
        let posts = broadcast::routes(broadcasts, authenticate.clone());
        posts.or(pages::routes(shown, shared, authenticate))
    };
    let tenant = {
        let doors = doors.clone();
        // The original's health check: curl asks for the head alone.
        warp::path!("api" / "tenants" / String / "health")
            .and(warp::get().or(warp::head()).unify())
            .and(warp::header::headers_cloned())
            .then(move |_, headers: HeaderMap| {
                let doors = doors.clone();
                async move { tenant_health(&doors, broadcast::token(&headers)).await }
            })
    };
    // The paths first: who posts to none of them hears that it is not there, not that the method is wrong.
    let pages = health.or(ready).or(check).or(ping).and(warp::get()).or(tenant);
    let socket = warp::path!("realtime" / "v1" / "websocket")
        .or(warp::path!("socket" / "websocket"))
        .unify()
        .or(warp::path!("websocket"))
        .unify()
        .map(|| (Door::Phoenix, None))
        .or(warp::path!("realtime" / "v1" / "device" / String / "websocket")
            .or(warp::path!("socket" / "device" / String / "websocket"))
            .unify()
            .map(|device| (Door::Phoenix, Some(device))))
        .unify()
        .or(warp::path!("api" / "ws")
            .or(warp::path!("realtime" / "v1" / "api" / "ws"))
            .unify()
            .map(|| (Door::Topics, None)))
        .unify()
        .and(warp::method())
        .and(warp::header::headers_cloned())
        .and(warp::query::raw().or(warp::any().map(String::new)).unify())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::get::<Handover>())
        .then(move |(door, device): (Door, Option<String>), method, headers, query: String, upgrade, handover| {
            let doors = doors.clone();
            async move {
                let device = device.as_deref();
                let request = Opening { method: &method, headers: &headers, query: &query, door, device };
                shake_hands(&doors, &request, upgrade, &handover).await
            }
        });
    socket.or(feeds).or(pages)
}

/// What containers of the original are asked: whoever has a key may know, and there is one tenant, whatever its name.
async fn tenant_health(doors: &Doors, token: Option<String>) -> Response<String> {
    let (status, body) = match authenticate(doors, token).await {
        Ok(_) => {
            let up = *doors.shared.ready.borrow() && !doors.shared.drain.is_draining();
            let health = serde_json::json!({
                "healthy": up, "db_connected": up, "replication_connected": up,
                "connected_cluster": 1, "region": null, "node": "rowcast",
            });
            (StatusCode::OK, serde_json::json!({ "data": health }))
        }
        Err(_) => (StatusCode::UNAUTHORIZED, serde_json::json!({ "message": "Unauthorized" })),
    };
    let mut response = plain(status, body.to_string());
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn readiness(doors: &Doors) -> Response<String> {
    if doors.shared.drain.is_draining() {
        plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into())
    } else if *doors.shared.ready.borrow() {
        plain(StatusCode::OK, "streaming\n".into())
    } else {
        plain(StatusCode::SERVICE_UNAVAILABLE, "not streaming changes yet\n".into())
    }
}

/// The head of a request that is to become a WebSocket.
struct Opening<'a> {
    method: &'a Method,
    headers: &'a HeaderMap,
    query: &'a str,
    door: Door,
    /// The device, as it stands in the path.
    device: Option<&'a str>,
}

/// Whether keys were asked for since the token was refused; in time or not, what is known by now decides.
async fn learned(doors: &Doors, refused: &TokenError) -> bool {
    let Shared { verifier, config, .. } = &*doors.shared;
    if !verifier.may_learn(refused) {
        return false;
    }
    let Ok(_turn) = doors.learning.try_acquire() else { return false };
    let _ = tokio::time::timeout(config.learn_timeout, verifier.learn()).await;
    true
}

/// Who a request speaks for that is not to be upgraded.
async fn authenticate(doors: &Doors, token: Option<String>) -> Result<Arc<Principal>, Refusal> {
    let token = token.ok_or(Refusal::NoKey)?;
    let verify = || doors.shared.verifier.verify(&token, doors.shared.clock.unix_seconds());
    let mut verified = verify();
    if let Err(error) = &verified
        && learned(doors, error).await
    {
        verified = verify();
    }
    verified.map(Arc::new).map_err(Refusal::Token)
}

async fn shake_hands(
    doors: &Doors,
    request: &Opening<'_>,
    upgrade: Option<OnUpgrade>,
    handover: &Handover,
) -> Response<String> {
    let shared = &doors.shared;
    let Handover { connection, peer, .. } = *handover;
    let Opening { method, headers, query, door, device } = *request;
    let verifier = shared.verifier.as_ref();
    let check = || handshake::check(method, headers, query, (door, device), verifier, shared.clock.unix_seconds());
    let mut checked = check();
    if let Err(Refusal::Token(error)) = &checked
        && learned(doors, error).await
    {
        checked = check();
    }
    // Without it a device would seem to be a new one, and lose what it missed.
    if checked.as_ref().is_ok_and(|grant| grant.device.is_some() || shared.config.device.claim.is_some())
        && !shared.frontiers.opened(shared.config.device.patience).await
    {
        checked = Err(Refusal::NotReady);
    }
    let granted = checked.and_then(|grant| {
        let upgrade = upgrade.ok_or(Refusal::NotAnUpgrade("not a WebSocket upgrade"))?;
        if shared.drain.is_draining() {
            return Err(Refusal::Restarting);
        }
        if !shared.gate.is_open() {
            return Err(Refusal::NoSlot);
        }
        if shared.joins.are_too_many(std::time::Instant::now()) {
            return Err(Refusal::TooManyJoins);
        }
        let admitted = doors.admission.admit(grant.version).ok_or(Refusal::TooManyConnections)?;
        Ok(Accepted { upgrade, grant, admitted })
    });
    match granted {
        Ok(accepted) => {
            let Grant { principal, version, .. } = &accepted.grant;
            info!(target: "audit", connection, %peer, user = &*principal.subject, role = &*principal.role,
                version = version.as_str(), "connected");
            let response = accepted.grant.response();
            *handover.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
            response
        }
        Err(refusal) => {
            let code = refusal.code();
            shared.metrics.refusals.get_or_create(&[("code", code)]).inc();
            info!(target: "audit", connection, %peer, reason = code, "handshake refused");
            tokio::time::sleep(shared.config.handshake_failure_delay).await;
            refusal.response()
        }
    }
}
