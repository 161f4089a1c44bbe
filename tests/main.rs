//! One integration binary: one link instead of a dozen. The nouns are in `support`.

mod support;

mod architecture;
mod conformance;
mod crash;
mod database;
mod deploy;
mod doctor;
mod load;
mod journey;
mod startup;
mod stock;
