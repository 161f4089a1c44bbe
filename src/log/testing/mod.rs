//! File layers for tests: a disk that forgets what was not synced, and one that gets full. Nothing in production uses them;
//! they are here, and not behind `cfg(test)`, so that integration tests can run the whole relay on them.

mod discarding;
mod full;

pub use discarding::{DiscardingFiles, Torn};
pub use full::FullDisk;

use std::sync::Arc;

use super::{LogConfig, LogError, Opened, open};
use crate::clock::Clock;
use crate::metrics::Metrics;

/// A log in memory, empty and without a history.
pub fn in_memory() -> Result<Opened, LogError> {
    let (files, metrics) = (Arc::new(DiscardingFiles::new()), Arc::new(Metrics::new()));
    open(LogConfig::new("/log"), files, Clock::system(), metrics)
}
