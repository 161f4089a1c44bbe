//! The database side: migrations, examples, the private cluster.

mod chat;
mod cluster;
mod demo;
mod examples;
mod harness;
mod hints;
mod messages;
mod migrations;
