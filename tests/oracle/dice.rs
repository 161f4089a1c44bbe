//! Chance that repeats: everything a round is made of follows from its seed.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

pub(super) struct Dice(StdRng);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(StdRng::seed_from_u64(seed))
    }

    /// From 0; `count` is not 0.
    pub(super) fn below(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    pub(super) fn between(&mut self, from: i64, to: i64) -> i64 {
        self.0.random_range(from..=to)
    }

    pub(super) fn percent(&mut self, chance: u32) -> bool {
        self.0.random_ratio(chance, 100)
    }

    pub(super) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// Of these letters, up to this many.
    pub(super) fn word(&mut self, letters: &str, most: usize) -> String {
        let letters: Vec<char> = letters.chars().collect();
        let length = self.below(most + 1);
        (0..length).map(|_| *self.one(&letters)).collect()
    }
}
