//! `policy` against a real Postgres: what `SET ROLE` and a SELECT say is right.

mod arrays;
mod asking;
mod compiled;
mod compiling;
mod forms;
mod judging;
mod options;
mod oracle;
mod snapshot;
mod support;
mod trips;
mod world;
