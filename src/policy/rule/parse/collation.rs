//! Which collation decides a comparison of texts (`assign_collations`, as far as it is needed here).

use crate::catalog::Column;

/// The collation that an expression brings along without being told: its columns'.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Collated {
    /// Not the default one.
    name: Option<String>,
    /// Orders by bytes; `None`: nothing is known of it.
    bytewise: Option<bool>,
    deterministic: bool,
    /// Two different ones: Postgres refuses to compare.
    clash: bool,
}

impl Collated {
    /// Of constants and claims, and of types without a collation.
    pub(super) const DEFAULT: Collated = Collated { name: None, bytewise: None, deterministic: true, clash: false };

    pub(super) fn of(column: &Column) -> Collated {
        let Some(collation) = &column.collation else { return Collated::DEFAULT };
        let name = (collation.name != "pg_catalog.\"default\"").then(|| collation.name.clone());
        let deterministic = column.collation_deterministic;
        Collated { name, bytewise: Some(collation.bytewise), deterministic, clash: false }
    }

    pub(super) fn with(&self, other: &Collated) -> Collated {
        let deterministic = self.deterministic && other.deterministic;
        let clash = self.clash || other.clash;
        let (name, bytewise) = match (&self.name, &other.name) {
            (None, None) => (None, self.bytewise.or(other.bytewise)),
            (Some(name), None) => (Some(name.clone()), self.bytewise),
            (None, Some(name)) => (Some(name.clone()), other.bytewise),
            (Some(a), Some(b)) if a == b => (Some(a.clone()), self.bytewise),
            (Some(_), Some(_)) => return Collated { name: None, bytewise: None, deterministic, clash: true },
        };
        Collated { name, bytewise, deterministic, clash }
    }

    /// Equal text is equal value.
    pub(super) fn is_exact(&self) -> bool {
        self.deterministic && !self.clash
    }

    pub(super) fn is_bytewise(&self) -> bool {
        !self.clash && self.bytewise == Some(true)
    }
}
