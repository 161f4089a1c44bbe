//! A column's text as a typed value: its JSON form, and equality and order exactly as Postgres has them or not at all.
//!
//! Everything works on the text that Postgres itself printed under the pinned settings (`crate::pg::TEXT_SETTINGS`); nothing
//! here parses what a person typed. Rejected: decoding into typed values first. The text is already the JSON in nearly every
//! case, and for most types equal text is equal value.

mod builtin;
mod equality;
mod json;
mod nested;
mod order;
mod string;
mod types;
#[cfg(test)]
mod against_postgres;
#[cfg(test)]
mod generated;

pub use builtin::{array_over, element_of, interchangeable, oid, type_name};
pub use equality::{Equality, canonical, equality};
pub use json::{JsonKind, json_kind, write_json};
pub use nested::elements;
pub use order::{Order, compare, order};
pub use string::{json_string_len, write_json_string};
pub use types::{TypeInfo, TypeKind, Types};
