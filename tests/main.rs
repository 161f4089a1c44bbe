//! One integration binary: one link instead of a dozen. The nouns are in `support`.

mod support;

mod architecture;
mod conformance;
mod crash;
mod database;
mod deploy;
mod docs;
mod load;
mod oracle;
mod journey;
mod startup;
mod stock;
