//! `rowcast dev`: everything a newcomer needs on one machine, and nothing that outlives it.
//!
//! A private PostgreSQL cluster in a state folder, the migrations, the example tables, two users with a session each and
//! tokens for both; then a demonstration over real sockets that one user's rows reach that user and not the other.
//!
//! Invariants: no cluster but our own is ever touched; secrets are generated, kept in the state folder and readable by its
//! owner only; what was started is stopped, also when a step fails or the value is dropped.

pub mod binaries;
pub mod server;
pub mod cluster;
