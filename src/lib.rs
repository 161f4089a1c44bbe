//! Rowcast: a row inserted with plain SQL reaches the phones of the users who own it, and nobody else's.

// Ground.
pub mod error;
pub mod clock;
pub mod metrics;
pub mod task;
pub mod pg;
// What happened: plain data, no I/O, no tokio.
pub mod change;
pub mod pgtype;
pub mod catalog;
// In.
pub mod wal;
pub mod log;
pub mod ingest;
// Who may see.
pub mod claims;
pub mod filter;
pub mod policy;
// To whom.
pub mod hub;
pub mod channel;
// Out.
pub mod gateway;
// Over it all.
pub mod admin;
pub mod config;
pub mod migrate;
pub mod app;
pub mod dev;
pub mod cli;
