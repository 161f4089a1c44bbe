//! Warnings that somebody else can cause as often as they like: whoever may insert a row, or send a message.
//!
//! The first one is told at once, then one in ten seconds at most, with how many were not told. Metrics count them all.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two that are told.
const PAUSE: Duration = Duration::from_secs(10);

/// Warnings of one kind. See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Seldom {
    /// There is something to warn of. `Some`: it is to be told, and so many were not told since the last one was.
    pub(crate) fn tell(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.last.is_some_and(|last| now < last + PAUSE) {
            told.untold += 1;
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_the_next_with_how_many_were_not() {
        let (seldom, begin) = (Seldom::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(seldom.tell(begin), Some(0));
        for _ in 0..1000 {
            assert_eq!(seldom.tell(at(9)), None);
        }
        assert_eq!((seldom.tell(at(10)), seldom.tell(at(11)), seldom.tell(at(30))), (Some(1000), None, Some(1)));
    }
}
