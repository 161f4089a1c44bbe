//! File layers for tests: a disk that forgets what was not synced, and one that gets full. Nothing in production uses them;
//! they are here, and not behind `cfg(test)`, so that integration tests can run the whole relay on them.

mod discarding;
mod full;

pub use discarding::{DiscardingFiles, Torn};
pub use full::FullDisk;
