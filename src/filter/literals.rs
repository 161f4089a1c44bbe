//! What Postgres has said of literals already, so that a thousand phones with one filter are one question.
//!
//! Two generations: when the young one is full it becomes the old one, and the old one is forgotten; what is asked for again
//! moves to the young one. Refusals are not kept. A type that is dropped and made again has a new oid; an enum's label that is
//! renamed stays known under its old name, which then matches no row.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// The texts of a literal's values, `None` for a NULL element.
pub(super) type Values = Arc<[Option<Box<str>>]>;

/// Most literals in one generation.
const GENERATION: usize = 2048;
/// Longer ones are asked again each time.
pub(super) const MAX_LITERAL_BYTES: usize = 4096;

/// Answers by what was asked.
pub(super) struct Known<K, V> {
    generations: Mutex<(HashMap<K, V>, HashMap<K, V>)>,
}

impl<K: Eq + Hash, V: Clone> Known<K, V> {
    pub(super) fn new() -> Known<K, V> {
        Known { generations: Mutex::new((HashMap::new(), HashMap::new())) }
    }

    pub(super) fn get(&self, key: K) -> Option<V> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = generations.0.get(&key) {
            return Some(value.clone());
        }
        let value = generations.1.remove(&key)?;
        remember(&mut generations, key, value.clone());
        Some(value)
    }

    pub(super) fn insert(&self, key: K, value: V) {
        remember(&mut self.generations.lock().unwrap_or_else(PoisonError::into_inner), key, value);
    }
}

fn remember<K: Eq + Hash, V>(generations: &mut (HashMap<K, V>, HashMap<K, V>), key: K, value: V) {
    if generations.0.len() >= GENERATION {
        generations.1 = std::mem::take(&mut generations.0);
    }
    generations.0.insert(key, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_again_outlives_what_is_not_and_the_size_is_bounded() {
        let literals: Known<(u32, bool, String), u32> = Known::new();
        let key = |text: &str| (23, false, text.to_owned());
        literals.insert(key("kept"), 1);
        for i in 0..5 * GENERATION {
            literals.insert(key(&i.to_string()), 2);
            assert_eq!(literals.get(key("kept")), Some(1));
        }
        assert_eq!(literals.get(key("0")), None);
        assert_eq!(literals.get((23, true, "kept".to_owned())), None);
        let (young, old) = &*literals.generations.lock().unwrap();
        assert!(young.len() + old.len() <= 2 * GENERATION);
    }
}
