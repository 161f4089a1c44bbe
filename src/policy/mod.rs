//! Who may see a row: Postgres's own row-level security, decided per (change, principal).

mod permit;

pub use permit::{ColumnMask, DenyReason, Permit, Permitted, UndecidedReason, Verdict};
