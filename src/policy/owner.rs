//! The equality by which the hub finds the owners of a row without looking at anybody else.

use super::expr::Equality;
use crate::claims::Principal;

/// A column that must equal a claim for any permit under this plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerKey {
    /// The column's unquoted name.
    pub column: String,
    equality: Equality,
}

impl OwnerKey {
    pub(super) fn new(equality: &Equality) -> OwnerKey {
        OwnerKey { column: equality.column.clone(), equality: equality.clone() }
    }

    /// The text that the column must have. `None`: no row ever matches (the claim is absent, null, or raises when cast) — or,
    /// if [`OwnerKey::must_judge`] says so, that it can't be told here.
    pub fn value(&self, principal: &Principal) -> Option<Vec<u8>> {
        self.equality.claim.text(principal).ok().flatten().map(String::into_bytes)
    }

    /// The key says nothing about this principal: he must be judged on every row (Postgres will be asked). Only for claims
    /// that no one uses as an owner: a float, an object, `"0x1F"` for an integer, a NUL character.
    pub fn must_judge(&self, principal: &Principal) -> bool {
        self.equality.claim.text(principal) == Err(super::term::Fault::Unsure)
    }
}
