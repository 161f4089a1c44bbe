//! Who may see a row: Postgres's own row-level security, decided per (change, principal).
//!
//! ```text
//! catalog ──► compile ──► Plan ──bind──► Bound ──judge──► Decided(Permit | Deny | Undecided)
//!              │ parse      (table, role)  (relation)  └─► Ask ──► Asker ──► the same three
//! ```
//!
//! Invariants:
//! * A [`Permit`] is made here only, and only after an evaluator said *true*, or for rows that Postgres itself gave to the
//!   user's role ([`Taker`]). False, NULL, an error, missing evidence and doubt are never a permit.
//! * No evaluator runs on an image in which a column that the policy reads is absent ([`Bound`]).
//! * Pure answers are exactly Postgres's or they are none: what is not known to be exact is asked ([`Judged::Ask`]).
//! * An answer of Postgres counts only if its snapshot shows every transaction up to the change ([`Asker`]).
//!
//! Rejected: a rule language of our own (a second truth that drifts from the first), and asking Postgres always (a query per
//! change and subscriber).

mod ask;
mod bodies;
mod bound;
mod compile;
pub mod facts;
mod form;
mod image;
pub(crate) mod members;
mod message;
mod permit;
mod plan;
mod round;
mod rights;
pub mod rule;
mod snapshot;
mod term;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use plan::denying_for_tests;

pub use ask::{Answers, AskConfig, Asker, Question};
pub use bound::{Bound, Judged, RowJudge};
pub use compile::{compile, obstacle, obstacles_to_memory};
pub use facts::{FactBinding, FactState, FactTable, Facts, Layout, Side};
pub use form::Form;
pub use members::{Asking, MemberEngine, MemberPlan, Told, Way};
pub use message::may_have_message;
pub use permit::{ColumnMask, DenyReason, Permit, Permitted, UndecidedReason, Verdict};
pub use plan::{Deletes, Engine, Options, Plan};
pub use rights::{Right, Rights};
pub use snapshot::{Asked, BARRED, Selection, Shown, SnapshotConfig, SnapshotError, Taken, Taker};
pub use term::{Elements, Fault, Setting, Term, TermType};
