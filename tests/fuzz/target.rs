//! Every target: the binary's name says which function of `rowcast::fuzz` it runs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rowcast::fuzz::run(env!("CARGO_BIN_NAME"), bytes));
