//! The table `realtime.messages`: its partitions, and what is replayed out of it.
//!
//! The database broadcasts by inserting into it. The rows reach members through the stream, as any row does; here is only what
//! the table itself needs ([`Keeper`]) and what is read back from it when a client asks for what it missed ([`replay`]).

mod keeper;
mod replay;
mod upkeep;

pub use keeper::{Keeper, KeeperConfig};
pub use replay::{MOST_BYTES, MOST_REPLAYED, Reading, ReplayError, Stored, StoredPayload, Turn, replay, turn};
pub use upkeep::{Scope, Tended, UpkeepError, tend};
