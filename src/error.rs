//! The two faces of an error: what the operator must do, and what a stranger may read.
//!
//! Each module has its own `thiserror` enum whose `Display` prints itself and never its sources; [`chain`] prints them all,
//! once, where the error is handled. Rejected: one crate-wide error, which every module would have to import and extend.

use std::error::Error;
use std::fmt::Write as _;

/// What is to be done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Try again with backoff: it may pass by itself.
    Retry,
    /// Nothing will change until a person does something.
    Operator,
    /// A broken invariant of ours.
    Bug,
}

/// An error that somebody who runs the relay reads.
pub trait Fault: Error {
    /// Whether to retry, to stop and say so, or to report a bug.
    fn remedy(&self) -> Remedy;

    /// What the person should do, as a sentence; empty if the error's own text says it.
    fn advice(&self) -> String {
        String::new()
    }
}

/// An error that a client, who may be hostile, reads.
pub trait ClientFacing {
    /// The code of `protocol.md` §16, such as `MalformedJWT`; also the metric label.
    fn code(&self) -> &'static str;

    /// Text that tells nothing about the schema, other users or our insides.
    fn client_text(&self) -> String;
}

/// The error and its sources in one line: `cannot connect: connection refused`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Our own texts quote the server already; the driver's would do it again, as "db error: ERROR: …".
        let server = cause.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.as_db_error());
        if server.is_some_and(|server| text.contains(server.message())) {
            break;
        }
        let next = cause.to_string();
        // Libraries that print their source in their own text would say it twice.
        if !text.ends_with(&next) {
            let _ = write!(text, ": {next}");
        }
        source = cause.source();
    }
    text
}
