//! What one principal's claims come to.

/// The value of one claims expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claimed {
    /// NULL.
    Null,
    /// Canonical text.
    Value(Box<[u8]>),
    /// A list; `None` is NULL.
    List(Box<[Option<Box<[u8]>>]>),
    /// Postgres would raise an error.
    Raises,
    /// Only Postgres knows.
    Unsure,
}
