//! How long to wait before the next attempt.
//!
//! Full jitter: a random time between nothing and the current bound, which doubles from 100 ms to 10 s. Rejected: a
//! fixed schedule, with which all relays that lost one database come back at the same moment, again and again.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Exponential backoff with full jitter.
#[derive(Debug)]
pub struct Backoff {
    attempt: u32,
    rng: StdRng,
}

impl Backoff {
    /// The bound of the first wait.
    pub const FIRST: Duration = Duration::from_millis(100);
    /// The bound of every wait.
    pub const CAP: Duration = Duration::from_secs(10);

    /// Starts at [`Backoff::FIRST`], seeded by the system.
    pub fn new() -> Backoff {
        Backoff { attempt: 0, rng: StdRng::from_os_rng() }
    }

    /// The same waits for the same seed, for tests.
    pub fn seeded(seed: u64) -> Backoff {
        Backoff { attempt: 0, rng: StdRng::seed_from_u64(seed) }
    }

    /// The bound of the wait that [`Backoff::next`] would draw now.
    fn bound(&self) -> Duration {
        Self::FIRST.saturating_mul(1 << self.attempt.min(16)).min(Self::CAP)
    }

    /// The next wait; each call doubles the bound.
    #[expect(clippy::should_implement_trait, reason = "an iterator that never ends and can be reset would mislead")]
    pub fn next(&mut self) -> Duration {
        let bound = self.bound();
        self.attempt = self.attempt.saturating_add(1);
        self.rng.random_range(Duration::ZERO..=bound)
    }

    /// After something worked: the next wait is short again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_under_a_bound_that_doubles_to_ten_seconds() {
        let mut backoff = Backoff::seeded(1);
        let mut bound = Backoff::FIRST;
        for _ in 0..100 {
            assert_eq!(backoff.bound(), bound);
            assert!(backoff.next() <= bound);
            bound = (bound * 2).min(Backoff::CAP);
        }
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST);
    }

    #[test]
    fn a_seed_repeats_and_two_seeds_differ() {
        let draw = |seed| (0..8).scan(Backoff::seeded(seed), |b, _| Some(b.next())).collect::<Vec<_>>();
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn the_whole_range_below_the_bound_is_used() {
        let mut backoff = Backoff::seeded(3);
        for _ in 0..20 {
            backoff.next();
        }
        let waits: Vec<_> = (0..200).map(|_| backoff.next()).collect();
        assert!(waits.iter().any(|w| *w < Backoff::CAP / 4) && waits.iter().any(|w| *w > Backoff::CAP * 3 / 4));
    }
}
