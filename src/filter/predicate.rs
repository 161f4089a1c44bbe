//! A checked filter: what it asks of a row, and whether a row answers.

use std::sync::Arc;

use smallvec::SmallVec;

use super::asked::AskedTerm;
use super::like::Pattern;
use crate::change::{Change, OldRow, Relation, Value};
use crate::pgtype::{Equality, Order, canonical, compare, interchangeable};

/// `lt`, `lte`, `gt`, `gte`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A condition with everything decided that does not depend on the row. Values are canonical texts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Test {
    Null,
    True,
    False,
    Equal(Equality, Box<[u8]>),
    Distinct(Equality, Box<[u8]>),
    /// `values` sorted.
    In {
        equality: Equality,
        values: Box<[Box<[u8]>]>,
        has_null: bool,
    },
    Compare(Order, Comparison, Box<[u8]>),
    /// And the same for Postgres, which is asked where memory would take long.
    Like(Pattern, Arc<AskedTerm>),
}

impl Test {
    /// SQL's answer for this value, `None` being NULL. Text that its type would not print answers NULL: nothing matches it.
    fn holds(&self, value: Option<&[u8]>) -> Option<bool> {
        match self {
            Test::Null => Some(value.is_none()),
            Test::True => Some(value == Some(b"t")),
            Test::False => Some(value == Some(b"f")),
            Test::Equal(equality, wanted) => Some(*canonical(*equality, value?)? == **wanted),
            Test::Distinct(equality, wanted) => match value {
                None => Some(true),
                Some(text) => Some(*canonical(*equality, text)? != **wanted),
            },
            // Postgres doesn't look at the scalar if the array is empty, not even whether it is NULL.
            Test::In { values, has_null: false, .. } if values.is_empty() => Some(false),
            Test::In { equality, values, has_null } => {
                let value = canonical(*equality, value?)?;
                match values.binary_search_by(|v| (**v).cmp(&*value)) {
                    Ok(_) => Some(true),
                    Err(_) => (!has_null).then_some(false),
                }
            }
            Test::Like(pattern, _) => Some(pattern.matches(std::str::from_utf8(value?).ok()?)),
            Test::Compare(order, comparison, bound) => {
                let found = compare(*order, value?, bound)?;
                Some(match comparison {
                    Comparison::Less => found.is_lt(),
                    Comparison::LessOrEqual => found.is_le(),
                    Comparison::Greater => found.is_gt(),
                    Comparison::GreaterOrEqual => found.is_ge(),
                })
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Term {
    pub(super) column: Box<str>,
    pub(super) type_oid: u32,
    pub(super) negated: bool,
    pub(super) test: Test,
}

impl Term {
    fn matches(&self, value: Value<'_>) -> bool {
        if self.left_to_postgres(value).is_some() {
            return true;
        }
        let value = match value {
            Value::Unchanged => return false,
            Value::Null => None,
            Value::Text(text) => Some(text),
        };
        self.test.holds(value).is_some_and(|holds| holds != self.negated)
    }

    /// Rows are matched in the hub's own thread, before anybody's rights are looked at.
    fn left_to_postgres(&self, value: Value<'_>) -> Option<&Arc<AskedTerm>> {
        match (&self.test, value) {
            (Test::Like(pattern, asked), Value::Text(text)) if !pattern.is_cheap_on(text.len()) => Some(asked),
            _ => None,
        }
    }

    /// The text that the column's must be equal to for this to hold.
    fn required(&self) -> Option<(&[u8], Equality)> {
        match (&self.test, self.negated) {
            (Test::Equal(equality, wanted), false) | (Test::Distinct(equality, wanted), true) => {
                Some((wanted, *equality))
            }
            (Test::In { equality, values, .. }, false) => match &values[..] {
                [only] => Some((only, *equality)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// A filter checked against one table. Equal filters are equal predicates. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Predicate {
    terms: Arc<[Term]>,
    /// What Postgres has to judge.
    asked: Arc<[Arc<AskedTerm>]>,
}

/// Conditions that are still open for a row, each with its column's index.
pub type OpenTerms = SmallVec<[(Arc<AskedTerm>, usize); 1]>;

impl Predicate {
    pub(super) fn new(terms: Vec<Term>, asked: Vec<Arc<AskedTerm>>) -> Predicate {
        Predicate { terms: terms.into(), asked: asked.into() }
    }

    /// Matches every row.
    pub fn everything() -> Predicate {
        Predicate { terms: Arc::new([]), asked: Arc::new([]) }
    }

    /// Whether it asks nothing.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty() && self.asked.is_empty()
    }

    /// The columns that it reads, repeated if they are.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|term| &*term.column).chain(self.asked.iter().map(|term| &*term.column))
    }

    /// Finds its columns in a relation. `None` if one is missing there or has another type than the one that was checked (except
    /// where the text and its meaning stay, such as `int4` to `int8`): then no row matches, until the filter is checked again.
    pub fn bind(&self, relation: &Relation) -> Option<BoundPredicate> {
        self.bind_within(relation, |_| true)
    }

    /// The same where only some columns of a complete old row are values: the old rows of a partitioned root hold what its
    /// partitions log, and NULL for the rest.
    pub fn bind_within(&self, relation: &Relation, is_real: impl Fn(&str) -> bool) -> Option<BoundPredicate> {
        let place = |name: &str, type_oid| {
            let index = relation.column(name)?;
            let column = &relation.columns[index];
            let place = Place { index, key: column.key && is_real(name), real: is_real(name) };
            interchangeable(column.type_oid, type_oid).then_some(place)
        };
        let terms = self.terms.iter().map(|term| place(&term.column, term.type_oid));
        let asked = self.asked.iter().map(|term| place(&term.column, term.type_oid));
        let (places, asked_places) = (terms.collect::<Option<_>>()?, asked.collect::<Option<_>>()?);
        Some(BoundPredicate { predicate: self.clone(), places, asked_places })
    }
}

/// A predicate that knows where its columns are in one relation's rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPredicate {
    predicate: Predicate,
    /// For each term its column.
    places: SmallVec<[Place; 4]>,
    /// Likewise for each asked one.
    asked_places: SmallVec<[Place; 1]>,
}

/// A column of the relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    index: usize,
    /// Part of the identity: in a key-only old row.
    key: bool,
    /// In a complete old row.
    real: bool,
}

impl Place {
    /// The value by which the column is judged; [`Value::Unchanged`] if it was not sent.
    fn value(self, change: &Change) -> Value<'_> {
        let of_old = |old: &OldRow| match old {
            OldRow::Full(_) => self.real,
            OldRow::KeyOnly(_) => self.key,
        };
        match change {
            Change::Insert { new } => new.get(self.index),
            Change::Update { new, old } => match (new.get(self.index), old) {
                (Value::Unchanged, Some(OldRow::Full(old))) if self.real => old.get(self.index),
                (value, _) => value,
            },
            Change::Delete { old } if of_old(old) => old.tuple().get(self.index),
            Change::Delete { .. } => Value::Unchanged,
        }
    }
}

/// The value of a column that an open condition is about, which was found to be sent.
pub(super) fn sent(change: &Change, index: usize) -> Value<'_> {
    Place { index, key: true, real: true }.value(change)
}

impl BoundPredicate {
    /// Whether the row matches as far as memory can tell: the new row of INSERT and UPDATE, the old one of DELETE. What
    /// [`BoundPredicate::open`] gives is left to Postgres.
    pub fn matches(&self, change: &Change) -> bool {
        let asked = |(term, place): (&Arc<AskedTerm>, &Place)| match place.value(change) {
            Value::Unchanged => false,
            Value::Null => term.of_null.is_none_or(|answer| term.accepts(answer)),
            Value::Text(_) => true,
        };
        self.predicate.terms.iter().zip(&self.places).all(|(term, place)| term.matches(place.value(change)))
            && self.predicate.asked.iter().zip(&self.asked_places).all(asked)
    }

    /// What Postgres has to be asked about a row that [`BoundPredicate::matches`].
    pub fn open(&self, change: &Change) -> OpenTerms {
        let open = |(term, place): (&Arc<AskedTerm>, &Place)| {
            let known = term.of_null.is_some() && place.value(change) == Value::Null;
            (!known).then(|| (term.clone(), place.index))
        };
        let left = |(term, place): (&Term, &Place)| {
            term.left_to_postgres(place.value(change)).map(|asked| (asked.clone(), place.index))
        };
        let left = self.predicate.terms.iter().zip(&self.places).filter_map(left);
        self.predicate.asked.iter().zip(&self.asked_places).filter_map(open).chain(left).collect()
    }

    /// A condition that every matching row fulfils and that can be a hash key: the column's index, and the canonical text
    /// under that equality.
    pub fn eq_key(&self) -> Option<(usize, &[u8], Equality)> {
        let terms = self.predicate.terms.iter().zip(&self.places);
        terms.filter_map(|(term, place)| term.required().map(|(text, equality)| (place.index, text, equality))).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{RelationColumn, ReplicaIdentity, Tuple};

    fn relation() -> Relation {
        let column = |name: &str, type_oid, key| RelationColumn { name: name.into(), type_oid, type_modifier: -1, key };
        let columns = vec![column("id", 23, true), column("note", 25, false)];
        let identity = ReplicaIdentity::Default;
        Relation { oid: 1, schema: "public".into(), table: "t".into(), identity, columns }
    }

    fn term(column: &str, type_oid: u32, negated: bool, test: Test) -> Predicate {
        Predicate::new(vec![Term { column: column.into(), type_oid, negated, test }], Vec::new())
    }

    fn text(text: &str) -> Test {
        Test::Equal(Equality::Bytes, text.as_bytes().into())
    }

    fn row(id: Value<'_>, note: Value<'_>) -> Tuple {
        Tuple::from_values([id, note].into_iter())
    }

    const ID: Value<'static> = Value::Text(b"1");

    #[test]
    fn a_column_that_was_not_sent_matches_nothing() {
        let unsent = Change::Update { new: row(ID, Value::Unchanged), old: None };
        let key_only = Change::Delete { old: OldRow::KeyOnly(row(ID, Value::Null)) };
        for negated in [false, true] {
            for test in [text("x"), Test::Null, Test::Distinct(Equality::Bytes, b"x"[..].into())] {
                let bound = term("note", 25, negated, test).bind(&relation()).unwrap();
                assert!(!bound.matches(&unsent));
                assert!(!bound.matches(&key_only));
            }
        }
        let by_key = term("id", 23, false, text("1")).bind(&relation()).unwrap();
        assert!(by_key.matches(&key_only));
    }

    /// A root whose partitions log their keys alone sends complete old rows with NULL in place of what it doesn't have.
    #[test]
    fn what_a_partitioned_roots_old_row_does_not_hold_is_not_null() {
        let deleted = Change::Delete { old: OldRow::Full(row(ID, Value::Null)) };
        let toasted = Change::Update { new: row(ID, Value::Unchanged), old: Some(OldRow::Full(row(ID, Value::Null))) };
        let is_null = term("note", 25, false, Test::Null);
        for change in [&deleted, &toasted] {
            assert!(is_null.bind(&relation()).unwrap().matches(change));
            assert!(!is_null.bind_within(&relation(), |name| name == "id").unwrap().matches(change));
        }
        let by_key = term("id", 23, false, text("1")).bind_within(&relation(), |name| name == "id").unwrap();
        assert!(by_key.matches(&deleted));
    }

    #[test]
    fn unchanged_toast_is_read_from_a_full_old_row() {
        let bound = term("note", 25, false, text("x")).bind(&relation()).unwrap();
        let update = |old| Change::Update { new: row(ID, Value::Unchanged), old: Some(old) };
        assert!(bound.matches(&update(OldRow::Full(row(ID, Value::Text(b"x"))))));
        assert!(!bound.matches(&update(OldRow::KeyOnly(row(ID, Value::Text(b"x"))))));
        let old = Some(OldRow::Full(row(ID, Value::Text(b"x"))));
        assert!(!bound.matches(&Change::Update { new: row(ID, Value::Text(b"y")), old }), "the new row counts");
    }

    #[test]
    fn a_table_that_changed_its_shape_binds_only_where_the_meaning_stays() {
        let mut changed = relation();
        let predicate = term("id", 23, false, text("1"));
        changed.columns[0].type_oid = 20;
        assert!(predicate.bind(&changed).is_some());
        changed.columns[0].type_oid = 25;
        assert!(predicate.bind(&changed).is_none());
        changed.columns.remove(0);
        assert!(predicate.bind(&changed).is_none());
        assert!(Predicate::everything().bind(&changed).unwrap().matches(&Change::Insert { new: row(ID, ID) }));
    }

    #[test]
    fn the_hash_key_is_a_condition_that_every_match_fulfils() {
        let key = |negated, test| {
            let bound = term("id", 23, negated, test).bind(&relation()).unwrap();
            bound.eq_key().map(|(index, text, _)| (index, text.to_vec()))
        };
        let list = |values: &[&str], has_null| Test::In {
            equality: Equality::Bytes,
            values: values.iter().map(|v| v.as_bytes().into()).collect(),
            has_null,
        };
        let expected = Some((0, b"1".to_vec()));
        assert_eq!(key(false, text("1")), expected);
        assert_eq!(key(true, Test::Distinct(Equality::Bytes, b"1"[..].into())), expected);
        assert_eq!(key(false, list(&["1"], true)), expected);
        assert_eq!(key(true, text("1")), None);
        assert_eq!(key(false, list(&["1", "2"], false)), None);
        assert_eq!(key(true, list(&["1"], false)), None);
        assert_eq!(key(false, Test::Null), None);
    }
}
