//! What the tests are written with.

pub(crate) mod pg;
pub(crate) mod relay_process;

pub(crate) use pg::TestPg;
pub(crate) use relay_process::RelayHome;
