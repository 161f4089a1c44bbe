//! Rowcast: a row inserted with plain SQL reaches the phones of the users who own it, and nobody else's.
//!
//! ```text
//!  INSERT/UPDATE/DELETE                                                    phone, browser, worker
//!         │ COMMIT                                                                 ▲
//!         ▼                                                                        │ one encoded frame, shared
//!   Postgres WAL ──► wal ──► ingest ──► log ◄── pulls ── hub ─────► outbox ──► gateway
//!    (pgoutput)     whole    append     durable          policy,     bounded    phoenix v1/v2
//!                   trans-   then       record of        match,      queue
//!                   actions  confirm    the past         permit
//! ```
//!
//! The modules stand here in the order of that journey. **A module imports only modules above it**; the integration test
//! `architecture` checks it.
//!
//! A row's way through the code:
//!
//! 1. [`wal`] reads the replication slot and assembles whole committed transactions ([`change::Transaction`]). A position is
//!    the commit's end LSN and an ordinal counted before any filter, so it is the same after a crash.
//! 2. [`ingest`] appends them to the [`log`], makes them durable in groups, and only then confirms them to Postgres.
//! 3. [`hub`], one task, pulls them from the log, finds whom a row may concern, and asks [`policy`].
//! 4. [`policy`] decides as Postgres would: in memory where it can do exactly that, by asking Postgres otherwise. Its answer is
//!    Permit, Deny or Undecided, and only a Permit makes a [`policy::Permitted`], which is what leaves the hub.
//! 5. The [`gateway`]'s shards encode a permitted row once for all who may see the same of it, and write it into the
//!    connections' bounded outboxes.
//!
//! Beside it: rows of [`messages`] (`realtime.messages`) go the same way as broadcasts of a topic; [`authority`] says who may hear and
//! speak in a private channel; a [`room`] passes on what clients say to each other and who is there, from memory and in no order
//! with the rows.
//!
//! Seven promises, each with tests that fail without it: order; no loss between the commit and the log; no leak; rights no
//! older than the commit; a slow phone harms nobody; the disk is safe; silence is explained.

// Ground.
pub mod error;
pub mod clock;
pub mod fail;
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
// What became of it.
pub mod journal;
// To whom.
pub mod resume;
pub mod messages;
pub mod hub;
pub mod authority;
pub mod room;
pub mod channel;
// Out.
pub mod gateway;
// Over it all.
pub mod why;
pub mod admin;
pub mod config;
pub mod migrate;
pub mod retention;
pub mod report;
pub mod doctor;
pub mod app;
pub mod client;
pub mod dev;
pub mod cli;
// For the tests of all of them.
#[cfg(test)]
mod testing;
// Whatever reads bytes from outside, given any bytes at all.
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(test)]
#[path = "../tests/bench/mod.rs"]
mod bench;
