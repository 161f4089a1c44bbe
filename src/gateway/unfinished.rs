//! Messages that have begun and not ended: what all connections together may hold of them, and for how long.
//!
//! One message has a bound of its own. But whoever opens many connections and ends none of his messages would hold as many times
//! that, for as long as he sends a Ping now and then. Small messages are free: buffers hold them anyhow, and who sends no others
//! suffers nothing from those who do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a message that don't count.
const FREE: usize = 64 * 1024;

/// What there is of all connections.
pub(super) struct Unfinished {
    bytes: AtomicUsize,
    most: usize,
}

impl Unfinished {
    pub(super) fn new(most: usize) -> Arc<Unfinished> {
        Arc::new(Unfinished { bytes: AtomicUsize::new(0), most })
    }

    /// For one connection.
    pub(super) fn part(self: &Arc<Unfinished>) -> Part {
        Part { all: self.clone(), bytes: 0, since: None }
    }
}

/// One connection's part of it, given back when dropped.
pub(super) struct Part {
    all: Arc<Unfinished>,
    bytes: usize,
    /// When it began to count.
    since: Option<Instant>,
}

impl Part {
    /// So many bytes have come; whether there is a place for them.
    #[must_use]
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let before = self.counted();
        self.bytes += bytes;
        let more = self.counted() - before;
        if more == 0 {
            return true;
        }
        self.since.get_or_insert_with(Instant::now);
        self.all.bytes.fetch_add(more, Ordering::Relaxed) + more <= self.all.most
    }

    /// So many of them were no part of a message.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let before = self.counted();
        self.bytes = self.bytes.saturating_sub(bytes);
        self.all.bytes.fetch_sub(before - self.counted(), Ordering::Relaxed);
        if self.counted() == 0 {
            self.since = None;
        }
    }

    /// The message has ended.
    pub(super) fn end(&mut self) {
        self.shrink(self.bytes);
    }

    /// Whether it has counted for longer than that.
    pub(super) fn is_overdue(&self, most: Duration) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= most)
    }

    fn counted(&self) -> usize {
        self.bytes.saturating_sub(FREE)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_messages_share_a_bound_and_small_ones_are_free() {
        let all = Unfinished::new(1000);
        let (mut one, mut two, mut small) = (all.part(), all.part(), all.part());
        assert!(one.grow(FREE) && one.grow(600) && two.grow(FREE + 400));
        assert!(!two.grow(1));
        assert!(small.grow(FREE) && !small.is_overdue(Duration::ZERO) && one.is_overdue(Duration::ZERO));
        two.shrink(1);
        one.end();
        assert!(!one.is_overdue(Duration::ZERO) && two.grow(600) && !one.grow(FREE + 1));
        drop((one, two));
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }
}
