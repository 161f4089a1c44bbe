//! Out: HTTP, WebSocket, Phoenix, and the encoding of what was permitted.

pub(crate) mod broadcast;
pub mod encode;
pub mod frame;
mod anteroom;
mod close;
mod device;
mod handshake;
mod http;
mod json;
mod limits;
mod pages;
pub mod shard;
mod storm;
mod stream;
mod tls;
mod unfinished;
pub(crate) mod topics;
pub mod phoenix;

#[cfg(test)]
mod tests;

pub use device::{DeviceConfig, Receipt};
pub use http::{BindError, Bound, Deps, Gateway};
pub use limits::GatewayConfig;
pub use tls::{Tls, TlsError, TlsFiles};

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::watch;

use crate::authority::Authority;
use crate::claims::{Principal, TokenError, Verifier};
use crate::clock::Clock;
use crate::hub::HubHandle;
use crate::journal::Journal;
use crate::metrics::Metrics;
use crate::pg::Pool;
use crate::resume::{CursorKey, Frontiers, History};
use crate::room::Rooms;
use crate::task::{Drain, Gate};

/// What the gateway asks about tokens. A trait because [`Verifier`] learns keys from another server, and tests must say when.
pub trait Tokens: Send + Sync {
    /// Who the token speaks for at this second since 1970.
    fn verify(&self, token: &str, now_unix_seconds: i64) -> Result<Principal, TokenError>;

    /// Another number whenever the keys are other ones: what was verified before may not be any more.
    fn generation(&self) -> u64 {
        0
    }

    /// Whether a token refused for this reason may be good once [`Tokens::learn`] has been awaited.
    fn may_learn(&self, error: &TokenError) -> bool;

    /// Fetches keys anew, as often as may be.
    fn learn(&self) -> BoxFuture<'_, ()>;
}

impl Tokens for Verifier {
    fn verify(&self, token: &str, now_unix_seconds: i64) -> Result<Principal, TokenError> {
        Verifier::verify(self, token, now_unix_seconds)
    }

    fn generation(&self) -> u64 {
        Verifier::generation(self)
    }

    fn may_learn(&self, error: &TokenError) -> bool {
        Verifier::may_learn(self, error)
    }

    fn learn(&self) -> BoxFuture<'_, ()> {
        Verifier::learn(self).boxed()
    }
}

/// What every connection needs; one per gateway.
struct Shared {
    config: GatewayConfig,
    hub: HubHandle,
    verifier: Arc<dyn Tokens>,
    clock: Clock,
    metrics: Arc<Metrics>,
    journal: Journal,
    log: History,
    cursor_key: Arc<CursorKey>,
    frontiers: Arc<Frontiers>,
    drain: Drain,
    gate: Gate,
    turns: storm::Turns,
    joins: limits::Joins,
    unfinished: Arc<unfinished::Unfinished>,
    rooms: Arc<Rooms>,
    authority: Authority,
    /// For stored messages.
    pool: Pool,
    /// Whether changes are streaming.
    ready: watch::Receiver<bool>,
}

impl Shared {
    /// How long a connection stays when all are told to go.
    fn farewell(&self) -> Duration {
        storm::farewell(&self.config, self.connections())
    }

    /// Resolves when the last connection has been told to go.
    async fn stopped(&self) {
        self.drain.draining().await;
        tokio::time::sleep(storm::window(&self.config, self.connections())).await;
    }

    fn connections(&self) -> usize {
        usize::try_from(self.metrics.connections.get()).unwrap_or(0)
    }
}
