//! Going on where one left off: what a place in the stream looks like to a client, and where each device was.

mod cursor;
mod frontier;
mod history;
mod store;

pub use cursor::{Cursor, CursorError, CursorKey, KeyError};
pub use frontier::{FrontierConfig, Frontiers, Handles, Key, Tracked, Wanted};
pub use history::History;
pub use store::{FrontierStore, StoreDeps};
