//! The verdicts, and the only door a row leaves by.
//!
//! A [`Permit`] is made in `policy` and nowhere else; a [`Permitted`] is made by a permit and nowhere else. What writes to a
//! client takes a `Permitted<T>`, so a path that forgot to ask does not compile.

use smallvec::SmallVec;

/// A set of columns of one relation, by index.
#[derive(Debug, PartialEq, Eq, Hash, Default)]
pub struct ColumnMask(SmallVec<[u64; 2]>);

impl Clone for ColumnMask {
    /// One for each recipient: whole words at once.
    fn clone(&self) -> ColumnMask {
        ColumnMask(SmallVec::from_slice(&self.0))
    }
}

impl ColumnMask {
    /// No column.
    pub fn none() -> ColumnMask {
        ColumnMask::default()
    }

    /// The first `count` columns.
    pub fn all(count: usize) -> ColumnMask {
        (0..count).collect()
    }

    /// Adds a column.
    pub fn insert(&mut self, column: usize) {
        let word = column / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (column % 64);
    }

    /// Whether the column is in it.
    pub fn contains(&self, column: usize) -> bool {
        self.0.get(column / 64).is_some_and(|word| word & (1 << (column % 64)) != 0)
    }

    /// The columns in both.
    pub fn intersection(&self, other: &ColumnMask) -> ColumnMask {
        let words: SmallVec<[u64; 2]> = self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect();
        let used = words.iter().rposition(|w| *w != 0).map_or(0, |i| i + 1);
        ColumnMask(words[..used].into())
    }
}

impl FromIterator<usize> for ColumnMask {
    fn from_iter<I: IntoIterator<Item = usize>>(columns: I) -> ColumnMask {
        let mut mask = ColumnMask::default();
        for column in columns {
            mask.insert(column);
        }
        mask
    }
}

/// Why nobody with this principal gets the row. The `as_str` is the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DenyReason {
    /// The policies' answer is false or NULL.
    Policy,
    /// Row-level security is on and no permissive policy applies to the role.
    NoPolicy,
    /// The role may not select from the table, or from no column of it.
    NoGrant,
    /// The token names a role that the database does not have.
    UnknownRole,
    /// The token names a superuser: tokens must not.
    SuperuserRole,
    /// The policy raised an error for this row and these claims.
    PolicyError,
    /// A column that the policy reads was not sent (unchanged TOAST, key-only old row, unpublished or generated column).
    MissingEvidence,
    /// The token has expired.
    Expired,
    /// The table is not known to the catalog any more.
    UnknownTable,
    /// A partition without row-level security of its own, under a partitioned table that has it.
    UnprotectedPartition,
    /// The table has no primary key, so an INSERT or UPDATE can't say which row it is about.
    NoPrimaryKey,
}

impl DenyReason {
    /// A stable lower-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            DenyReason::Policy => "policy",
            DenyReason::NoPolicy => "no_policy",
            DenyReason::NoGrant => "no_grant",
            DenyReason::UnknownRole => "unknown_role",
            DenyReason::SuperuserRole => "superuser_role",
            DenyReason::PolicyError => "policy_error",
            DenyReason::MissingEvidence => "missing_evidence",
            DenyReason::Expired => "expired",
            DenyReason::UnknownTable => "unknown_table",
            DenyReason::UnprotectedPartition => "unprotected_partition",
            DenyReason::NoPrimaryKey => "no_primary_key",
        }
    }
}

/// Why there is no answer yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UndecidedReason {
    /// Postgres did not answer in time.
    Timeout,
    /// No connection, or it broke.
    Connection,
    /// A transaction at or before the change was still invisible to other sessions.
    NotVisibleYet,
    /// The catalog could not be read, or it and the stream describe the table differently.
    Catalog,
    /// The relay's login may not become the role that has to be asked as.
    Role,
    /// The table's policies for the role kept failing, so that Postgres is not asked for a while.
    Suspended,
    /// What the policies look into is being loaded, or is of another moment than the row: what Postgres says now of a row that
    /// is gone is no answer.
    Facts,
}

impl UndecidedReason {
    /// A stable lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            UndecidedReason::Timeout => "timeout",
            UndecidedReason::Connection => "connection",
            UndecidedReason::NotVisibleYet => "not_visible_yet",
            UndecidedReason::Catalog => "catalog",
            UndecidedReason::Role => "role",
            UndecidedReason::Suspended => "suspended",
            UndecidedReason::Facts => "facts",
        }
    }
}

/// Leave to show certain columns of the new row and of the old row of one change. Made only by `policy`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Permit {
    new: ColumnMask,
    old: ColumnMask,
}

impl Permit {
    /// Only `policy` decides.
    pub(super) fn grant(new: ColumnMask, old: ColumnMask) -> Permit {
        Permit { new, old }
    }

    /// Columns of the new row that may be shown, and those that `columns` may name; of a DELETE, which has no new row, only
    /// the latter.
    pub fn new_columns(&self) -> &ColumnMask {
        &self.new
    }

    /// Columns of the old row that may be shown.
    pub fn old_columns(&self) -> &ColumnMask {
        &self.old
    }

    /// A permit for no more than these columns of either row. Narrowing needs no judge.
    pub fn narrowed(&self, keep: &ColumnMask) -> Permit {
        Permit { new: self.new.intersection(keep), old: self.old.intersection(keep) }
    }

    /// Lets this through the door.
    pub fn admit<T>(&self, value: T) -> Permitted<T> {
        Permitted { permit: self.clone(), value }
    }
}

/// Something that may leave, with what of it may be shown.
#[derive(Debug, Clone)]
pub struct Permitted<T> {
    permit: Permit,
    value: T,
}

impl<T> Permitted<T> {
    /// What may be shown.
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The thing itself.
    pub fn value(&self) -> &T {
        &self.value
    }
}

/// The answer for one change and one principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// He may see it, this much of it.
    Permit(Permit),
    /// Postgres's answer would be no, or the policy raises.
    Deny(DenyReason),
    /// No answer: nothing is sent, nothing is forgotten.
    Undecided(UndecidedReason),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_hold_wide_tables() {
        let mask: ColumnMask = [0, 63, 64, 130, 1599].into_iter().collect();
        for column in 0..1700 {
            assert_eq!(mask.contains(column), [0, 63, 64, 130, 1599].contains(&column), "{column}");
        }
        let both = mask.intersection(&ColumnMask::all(64));
        assert_eq!(both, [0, 63].into_iter().collect());
    }
}
