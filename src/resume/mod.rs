//! Going on where one left off: what a place in the stream looks like to a client, and where each device was.

mod cursor;

pub use cursor::{Cursor, CursorError, CursorKey, KeyError};
