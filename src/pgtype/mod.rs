//! A column's text as a typed value: its JSON form, and equality exactly as Postgres has it or not at all.

mod types;

pub use types::{TypeInfo, TypeKind, Types};
