//! Out: HTTP, WebSocket, Phoenix, and the encoding of what was permitted.

pub mod encode;
pub mod frame;
mod close;
mod handshake;
mod http;
mod limits;
pub mod shard;
pub mod phoenix;

#[cfg(test)]
mod tests;

pub use http::{BindError, Bound, Deps, Gateway};
pub use limits::GatewayConfig;

use std::sync::Arc;

use crate::claims::Verifier;
use crate::clock::Clock;
use crate::hub::HubHandle;
use crate::metrics::Metrics;
use crate::task::Drain;

/// What every connection needs; one per gateway.
struct Shared {
    config: GatewayConfig,
    hub: HubHandle,
    verifier: Arc<Verifier>,
    clock: Clock,
    metrics: Arc<Metrics>,
    drain: Drain,
}
