//! The subscription filter language (`protocol.md` §5.2–5.5): `id=gte.10,name=in.(a,"b,c"),deleted_at=is.null`.
//!
//! ```text
//! text ── parse ──► Condition ── Validator (Postgres casts the literals) ──► Predicate ── bind(relation) ──► BoundPredicate
//! ```
//!
//! Invariants:
//! * A predicate says what Postgres would say. A condition that memory can't judge exactly (order of text, regular expressions,
//!   types whose equality isn't their text's) is an [`AskedTerm`], which [`FilterAsker`] puts to Postgres.
//! * A NULL answer doesn't match, negated or not. A column that was not sent doesn't match anything, `is.null` included.
//! * A predicate narrows what a user gets; it is no permission. `policy` judges the row in any case.
//!
//! Rejected: parsing literals ourselves. Postgres casts them, so that its errors are its own and the text that rows are compared
//! with is the text that rows come with.

mod ask;
mod asked;
mod error;
mod grammar;
mod inspect;
mod like;
mod literals;
mod predicate;
mod query;
mod trial;
mod validate;

pub use ask::{FILTER_ROLE, FilterAnswer, FilterAskConfig, FilterAsker, FilterFailure, FilterQuestion, MAX_TERMS};
pub use asked::AskedTerm;
#[cfg(test)]
pub(crate) use asked::asked_for_tests;
pub use error::{FilterError, NOT_ENABLED, SubscribeParameters};
pub use grammar::{Condition, MAX_CONDITIONS, MAX_FILTER_BYTES, Operator, parse};
pub use predicate::{BoundPredicate, OpenTerms, Predicate};
pub use validate::{ColumnSpec, MAX_IN_VALUES, Validator, check_select};
pub(crate) use validate::{TextOf, parameter_type};
