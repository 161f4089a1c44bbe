//! From a permitted row to the bytes of a frame.
//!
//! Two steps, so that their results can be shared: [`write_data`] makes the `data` object, the same for all who may see the same
//! columns; [`changes_frame`] puts it into a complete WebSocket frame, the same for all members of a topic with the same ids.
//! A column that the permit doesn't show leaves no trace in the bytes. Rejected: `serde_json::Value`, ten times slower, and it
//! would round numbers that a `double` can't hold.

mod details;
mod envelope;
mod event;
mod messages;
mod room;
mod row;
pub(in crate::gateway) mod topics;

pub use details::details;
pub use envelope::{changes_frame, system_frame};
pub use event::NoFrame;
pub use messages::message_frame;
pub use room::{broadcast_frame, presence_diff_frame, presence_state_frame};
pub use row::{DEFAULT_MAX_RECORD_BYTES, Place, RowShape, write_data};
