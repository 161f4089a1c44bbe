//! The database side: migrations, examples, the private cluster.

mod cluster;
mod examples;
mod migrations;
