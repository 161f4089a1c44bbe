//! Literals that Postgres has cast already, so that a thousand phones with one filter are one question.
//!
//! Two generations: when the young one is full it becomes the old one, and the old one is forgotten; what is asked for again
//! moves to the young one. Refusals are not kept. A type that is dropped and made again has a new oid; an enum's label that is
//! renamed stays known under its old name, which then matches no row.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The texts of a literal's values, `None` for a NULL element.
pub(super) type Values = Arc<[Option<Box<str>>]>;

/// Most literals in one generation.
const GENERATION: usize = 2048;
/// Longer ones are asked again each time.
const MAX_LITERAL_BYTES: usize = 4096;

type Key = (u32, bool, Box<str>);

#[derive(Default)]
pub(super) struct Literals {
    generations: Mutex<(HashMap<Key, Values>, HashMap<Key, Values>)>,
}

impl Literals {
    pub(super) fn get(&self, type_oid: u32, list: bool, literal: &str) -> Option<Values> {
        if literal.len() > MAX_LITERAL_BYTES {
            return None;
        }
        let key = (type_oid, list, literal.into());
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = generations.0.get(&key) {
            return Some(values.clone());
        }
        let values = generations.1.remove(&key)?;
        remember(&mut generations, key, values.clone());
        Some(values)
    }

    pub(super) fn insert(&self, type_oid: u32, list: bool, literal: &str, values: Values) {
        if literal.len() <= MAX_LITERAL_BYTES {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            remember(&mut generations, (type_oid, list, literal.into()), values);
        }
    }
}

fn remember(generations: &mut (HashMap<Key, Values>, HashMap<Key, Values>), key: Key, values: Values) {
    if generations.0.len() >= GENERATION {
        generations.1 = std::mem::take(&mut generations.0);
    }
    generations.0.insert(key, values);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_again_outlives_what_is_not_and_the_size_is_bounded() {
        let literals = Literals::default();
        let values: Values = Arc::from([Some("1".into())]);
        literals.insert(23, false, "kept", values.clone());
        for i in 0..5 * GENERATION {
            literals.insert(23, false, &i.to_string(), values.clone());
            assert_eq!(literals.get(23, false, "kept"), Some(values.clone()));
        }
        assert_eq!(literals.get(23, false, "0"), None);
        assert_eq!(literals.get(23, true, "kept"), None);
        let (young, old) = &*literals.generations.lock().unwrap();
        assert!(young.len() + old.len() <= 2 * GENERATION);
    }
}
