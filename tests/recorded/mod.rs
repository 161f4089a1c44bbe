//! Sessions of clients that don't run here: Dart's, Swift's and Kotlin's.
//!
//! A session is a file of frames in the form that the client really sends them (its join's keys, its refs, its binary frames),
//! and of what it has to be answered. [`Player`] plays it against a relay, with the stock JavaScript client in the same room
//! in both versions of the protocol, and reads every answer as strictly as the client's own decoder does ([`decoder`]).
//!
//! One step a line; `\xNN` is a byte, `$TOKEN` and `$FRESH` are tokens of `$ALICE`, in expectations `$string`, `$int` and `$any`
//! are any value of the kind, as a key `$key` is any:
//!
//! ```text
//! connect 2.0.0                  a connection, instead of the one before
//! client …                       a text frame from the client, as it is
//! client-binary …                a binary one
//! server …                       the answer; several in a row may come in any order,
//! server-first …                 but this one before the others
//! server-binary …                a binary one
//! server-binary-json {…}         the same by its parts, where not all bytes are known
//! post <path> <type> <body>      a broadcast over HTTP, which is accepted
//! js-says, v1-says {…}           the JavaScript client sends a broadcast
//! js-hears, v1-hears {…}         and its callback is given one
//! sql …                          a statement
//! ```

mod decoder;
mod player;

pub(crate) use decoder::Decoder;
pub(crate) use player::play;
