//! The Phoenix channel protocol over WebSocket, as the Supabase Realtime SDKs speak it (`protocol.md` §2–4).

pub mod codec;
mod questions;
mod receipts;
mod rooms;
mod session;
mod socket;

pub(in crate::gateway) use session::Visitor;
pub(in crate::gateway) use socket::run;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
