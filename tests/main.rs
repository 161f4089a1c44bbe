//! One integration binary: one link instead of a dozen. The nouns are in `support`.

mod support;

mod architecture;
mod cli;
mod conformance;
mod crash;
mod database;
mod deploy;
mod dba;
mod doctor;
mod docs;
mod load;
mod obligation;
mod oracle;
mod hostile;
mod journey;
mod ops;
mod recorded;
mod slot;
mod startup;
mod stock;
