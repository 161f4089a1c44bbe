//! What the tests are written with.

pub(crate) mod binary;
pub(crate) mod change;
pub(crate) mod pg;
pub(crate) mod phone;
pub(crate) mod relay;
pub(crate) mod sdk;
pub(crate) mod signer;
pub(crate) mod stage;
pub(crate) mod token;
pub(crate) mod wire;

pub(crate) use change::{Change, summary, without_cursor};
pub(crate) use pg::TestPg;
pub(crate) use phone::{Phone, Version};
pub(crate) use relay::{Relay, RelayProcess};
pub(crate) use sdk::Stock;
pub(crate) use stage::{Pair, Stage};
pub(crate) use wire::{Flow, Wire};
