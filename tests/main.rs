//! One integration binary: one link instead of a dozen. The nouns are in `support`.

mod support;

mod architecture;
mod crash;
mod database;
mod dba;
mod load;
mod journey;
mod startup;
