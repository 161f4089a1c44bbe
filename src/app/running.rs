//! A relay that runs: whether it is ready, whether a part of it ended, and how it stops.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout_at};

use super::{AppError, Drains};
use crate::ingest::{IngestHandle, IngestState};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::task::{self, Connections};

/// A task that must not end before the drain.
pub(super) struct Service {
    name: &'static str,
    handle: JoinHandle<Result<(), AppError>>,
}

/// Starts one.
pub(super) fn service(
    name: &'static str,
    work: impl Future<Output = Result<(), AppError>> + Send + 'static,
) -> Service {
    Service { name, handle: task::spawn(name, work) }
}

/// How a drain went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had not ended in time and were dropped.
    pub connections_left: usize,
    /// Services that had not ended in time and were dropped, or that failed at the end.
    pub services_left: Vec<&'static str>,
}

impl Drained {
    /// Everybody was told, and all was confirmed.
    pub fn is_clean(&self) -> bool {
        *self == Drained::default()
    }
}

/// A running relay. Dropping it stops everything at once, as [`Running::kill`] does without waiting.
pub struct Running {
    /// Where clients connect.
    pub local_addr: SocketAddr,
    /// Where metrics are.
    pub admin_addr: Option<SocketAddr>,
    pub(super) drain_timeout: Duration,
    pub(super) ingest: IngestHandle,
    pub(super) log: Log,
    pub(super) metrics: Arc<Metrics>,
    pub(super) connections: Connections,
    pub(super) pool: Pool,
    pub(super) drains: Drains,
    pub(super) services: Vec<Service>,
}

impl Running {
    /// `http://…`, for clients on this machine.
    pub fn base_url(&self) -> String {
        let mut address = self.local_addr;
        if address.ip().is_unspecified() {
            let loopback = if address.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
            address.set_ip(loopback);
        }
        format!("http://{address}")
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What is counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What ingest is doing.
    pub fn state(&self) -> IngestState {
        self.ingest.state.borrow().clone()
    }

    /// Resolves once changes stream; with the error, if a service ended before.
    pub async fn ready(&mut self, deadline: Duration) -> Result<(), AppError> {
        let mut ready = self.ingest.ready.clone();
        let streaming = async {
            // Closed only if ingest is gone, and then its service has ended.
            if ready.wait_for(|ready| *ready).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            error = self.finished() => Err(error),
            () = streaming => Ok(()),
            () = tokio::time::sleep(deadline) => Err(AppError::NotReady(deadline)),
        }
    }

    /// Resolves if a service ends by itself, with the reason. Cancel-safe.
    pub async fn finished(&mut self) -> AppError {
        poll_fn(|context| {
            for place in 0..self.services.len() {
                if let Poll::Ready(ended) = Pin::new(&mut self.services[place].handle).poll(context) {
                    let name = self.services.swap_remove(place).name;
                    return Poll::Ready(reason(name, ended));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Stops in order, within the drain timeout: clients first, then whoever feeds them, and last the stream, so that what was
    /// read is durable and confirmed.
    pub async fn drain(mut self) -> Drained {
        let deadline = Instant::now() + self.drain_timeout;
        // Each stage leaves time for those after it.
        let stage = |part: u32| deadline.min(Instant::now() + self.drain_timeout * part / 10);
        let (clients, hub, shards, ingest, admin) = (stage(7), stage(8), stage(8), deadline, deadline);
        let mut drained = Drained::default();
        tracing::info!(connections = self.connections.len(), "draining");
        self.drains.chores.drain();
        self.drains.gateway.drain();
        self.join("gateway", clients, &mut drained).await;
        self.join("keys", clients, &mut drained).await;
        if !self.connections.join(clients.saturating_duration_since(Instant::now())).await {
            drained.connections_left = self.connections.len();
            self.connections.kill();
        }
        self.drains.frontiers.drain();
        self.drains.hub.drain();
        self.join("hub", hub, &mut drained).await;
        self.join("rooms", shards, &mut drained).await;
        self.join("shard", shards, &mut drained).await;
        self.join("retention", shards, &mut drained).await;
        self.join("frontiers", shards, &mut drained).await;
        self.join("report", shards, &mut drained).await;
        self.join("standby", shards, &mut drained).await;
        self.drains.journal.drain();
        self.join("journal", shards, &mut drained).await;
        self.drains.ingest.drain();
        self.join("ingest", ingest, &mut drained).await;
        // A look at the slot that hangs harms nobody.
        self.join("slot", admin.min(Instant::now() + Duration::from_millis(200)), &mut Drained::default()).await;
        self.drains.admin.drain();
        // Nobody is harmed if somebody still reads metrics.
        self.join("admin", admin.min(Instant::now() + Duration::from_millis(200)), &mut Drained::default()).await;
        tracing::info!(confirmed = %self.log.durable(), clean = drained.is_clean(), "drained");
        drained
    }

    /// Waits for all services of this name; what is late is dropped.
    async fn join(&mut self, name: &'static str, deadline: Instant, drained: &mut Drained) {
        let (named, others): (Vec<_>, Vec<_>) = self.services.drain(..).partition(|service| service.name == name);
        self.services = others;
        for mut service in named {
            match timeout_at(deadline, &mut service.handle).await {
                Ok(Ok(Ok(()))) => {}
                Ok(ended) => {
                    let error = reason(name, ended);
                    tracing::error!(error = crate::error::chain(&error), "a part failed while draining");
                    drained.services_left.push(name);
                }
                Err(_) => {
                    service.handle.abort();
                    let _ = service.handle.await;
                    drained.services_left.push(name);
                }
            }
        }
    }

    /// Stops everything where it stands, as SIGKILL would: no close frame, no last fsync, no last confirmation. The folder
    /// and the ports are free when it returns.
    pub async fn kill(mut self) {
        self.connections.kill();
        for service in &self.services {
            service.handle.abort();
        }
        for service in self.services.drain(..) {
            let _ = service.handle.await;
        }
        self.connections.join(Duration::from_secs(5)).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for service in &self.services {
            service.handle.abort();
        }
        self.connections.kill();
        self.pool.close();
    }
}

fn reason(name: &'static str, ended: Result<Result<(), AppError>, JoinError>) -> AppError {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(())) => AppError::Ended(name),
        Err(error) if error.is_panic() => AppError::Panicked(name),
        Err(_) => AppError::Ended(name),
    }
}
