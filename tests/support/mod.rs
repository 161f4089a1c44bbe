//! What the tests are written with.

pub(crate) mod pg;

pub(crate) use pg::TestPg;
