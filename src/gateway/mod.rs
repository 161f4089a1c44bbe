//! Out: HTTP, WebSocket, Phoenix, and the encoding of what was permitted.

pub mod encode;
pub mod frame;
