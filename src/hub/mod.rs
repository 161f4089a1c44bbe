//! To whom: who has subscribed to what, and which change goes to whom.

mod command;
mod outbox;

pub use command::{Action, ChannelId, Command, Entry, HubHandle, Name, Port, SubscribeError, Version};
pub use outbox::{CloseReason, Flushed, Outbox, Transmit};
