//! The built binary, from its start to its exit: each mistake is one clear message on standard error and an exit code.

mod app;
mod jwks;
mod life;
mod mistakes;
pub(crate) mod process;
mod tls;
