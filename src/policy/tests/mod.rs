//! `policy` against a real Postgres: what `SET ROLE` and a SELECT say is right.

mod asking;
mod compiling;
mod judging;
mod options;
mod oracle;
mod support;
mod trips;
mod world;
