//! The conformance suite: one test per numbered item of the protocol's list of observable
//! behaviours, and a table that says which item is held by which test.
//!
//! A test's name starts with its item's number (`item_044_…`), and `items.txt` lists every item;
//! `table.rs` fails when the two disagree.

mod broadcast;
mod clients;
mod deletes_mode;
mod delivery;
mod delivery_filters;
mod delivery_tables;
mod delivery_values;
mod framing;
mod handshake;
mod http;
mod joins;
mod limits;
mod messages;
mod presence;
mod private;
mod rls;
mod stage;
mod stored;
mod subscribing;
mod table;
mod tokens;
mod topics;
