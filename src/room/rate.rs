//! How many per second, on average over the last minute: twelve buckets of five seconds, as other servers count.

use std::time::Duration;

const BUCKETS: usize = 12;
const BUCKET: Duration = Duration::from_secs(5);
/// The time that it looks back.
pub(super) const WINDOW_SECONDS: u64 = 60;

/// See the module's comment.
#[derive(Debug, Default, Clone)]
pub(super) struct Rate {
    buckets: [u32; BUCKETS],
    /// The number of the newest bucket.
    at: u64,
}

impl Rate {
    /// Counts one at this time since the beginning of all.
    pub(super) fn count(&mut self, since: Duration) {
        self.move_to(since);
        let bucket = &mut self.buckets[(self.at % BUCKETS as u64) as usize];
        *bucket = bucket.saturating_add(1);
    }

    /// How many there were within the last minute.
    pub(super) fn sum(&mut self, since: Duration) -> u64 {
        self.move_to(since);
        self.buckets.iter().map(|count| u64::from(*count)).sum()
    }

    fn move_to(&mut self, since: Duration) {
        let now = since.as_secs() / BUCKET.as_secs();
        let passed = now.saturating_sub(self.at).min(BUCKETS as u64);
        for step in 1..=passed {
            self.buckets[((self.at + step) % BUCKETS as u64) as usize] = 0;
        }
        if now > self.at {
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_what_is_older_than_a_minute() {
        let mut rate = Rate::default();
        let at = Duration::from_secs;
        for second in 0..60 {
            rate.count(at(second));
        }
        assert_eq!(rate.sum(at(59)), 60);
        assert_eq!(rate.sum(at(60)), 55, "by buckets of five seconds");
        assert_eq!(rate.sum(at(114)), 5);
        assert_eq!(rate.sum(at(115)), 0);
        assert_eq!(rate.sum(at(10_000)), 0);
        rate.count(at(10_001));
        assert_eq!(rate.sum(at(10_001)), 1);
        assert_eq!(rate.sum(at(9_000)), 1, "a clock that is behind changes nothing");
    }
}
