//! One integration binary: one link instead of a dozen. The nouns are in `support`.

mod support;

mod database;
mod journey;
mod startup;
