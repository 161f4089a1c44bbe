//! The last transactions, in memory, so that a reader who keeps up never touches the disk.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::change::{Body, Lsn, Transaction};

/// What a transaction costs beside its body.
const OVERHEAD: usize = 512;

/// Every transaction with an end LSN above [`Tail::from`], bounded in bytes.
pub(super) struct Tail {
    /// With the time of the append.
    entries: VecDeque<(Arc<Transaction>, Instant)>,
    /// Where each ends, and the items of all that were ever added up to there: a storm of readers asks how far apart two are.
    sums: VecDeque<(Lsn, u64)>,
    from: Lsn,
    bytes: usize,
    limit: usize,
}

impl Tail {
    pub(super) fn new(from: Lsn, limit: usize) -> Tail {
        Tail { entries: VecDeque::new(), sums: VecDeque::new(), from, bytes: 0, limit }
    }

    /// The position above which everything is here.
    pub(super) fn from(&self) -> Lsn {
        self.from
    }

    /// What it takes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the newest, and drops from the old end what is over the limit.
    pub(super) fn push(&mut self, transaction: Arc<Transaction>) {
        self.bytes += cost(&transaction);
        let before = self.sums.back().map_or(0, |(_, items)| *items);
        self.sums.push_back((transaction.end_lsn, before + u64::from(transaction.items)));
        self.entries.push_back((transaction, Instant::now()));
        while self.bytes > self.limit {
            let Some((dropped, _)) = self.entries.pop_front() else { break };
            self.sums.pop_front();
            self.bytes -= cost(&dropped);
            self.from = dropped.end_lsn;
        }
    }

    /// Takes back everything above `lsn`.
    pub(super) fn truncate(&mut self, lsn: Lsn) {
        while self.entries.back().is_some_and(|(t, _)| t.end_lsn > lsn) {
            self.sums.pop_back();
            self.bytes -= self.entries.pop_back().map_or(0, |(t, _)| cost(&t));
        }
        self.from = self.from.min(lsn);
    }

    /// How many transactions, and items in them, end above `after` and not above `to`; `None` if some of them are not here.
    pub(super) fn count(&self, after: Lsn, to: Lsn) -> Option<(usize, u64)> {
        if after < self.from {
            return None;
        }
        let up_to = |lsn| self.sums.partition_point(|(end, _)| *end <= lsn);
        let (first, end) = (up_to(after), up_to(to.max(after)));
        let items = |at: usize| self.sums.get(at).map_or(0, |(_, items)| *items);
        let own = |at: usize| self.entries.get(at).map_or(0, |(t, _)| u64::from(t.items));
        Some((end - first, if end > first { items(end - 1) - items(first) + own(first) } else { 0 }))
    }

    /// The first transaction that ends above `lsn`, which must not be below [`Tail::from`], and when it was appended.
    pub(super) fn after(&self, lsn: Lsn) -> Option<&(Arc<Transaction>, Instant)> {
        // A reader who keeps up wants the newest one.
        match self.entries.len().checked_sub(2).map(|i| self.entries[i].0.end_lsn <= lsn) {
            Some(true) => self.entries.back().filter(|(t, _)| t.end_lsn > lsn),
            _ => self.entries.get(self.entries.partition_point(|(t, _)| t.end_lsn <= lsn)),
        }
    }
}

fn cost(transaction: &Transaction) -> usize {
    OVERHEAD
        + match &transaction.body {
            Body::Memory(bytes) => bytes.len(),
            Body::Spilled(_) => 0,
        }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::Timestamp;

    fn transaction(end: u64, bytes: usize) -> Arc<Transaction> {
        let body = Body::Memory(Bytes::from(vec![0; bytes]));
        let (commit_lsn, end_lsn, commit_time) = (Lsn(end - 1), Lsn(end), Timestamp(0));
        Arc::new(Transaction {
            xid: 1,
            commit_lsn,
            end_lsn,
            commit_time,
            relations: Vec::new(),
            origin: None,
            rules_changed: false,
            items: 0,
            body,
        })
    }

    fn after(tail: &Tail, lsn: u64) -> Option<u64> {
        tail.after(Lsn(lsn)).map(|(t, _)| t.end_lsn.0)
    }

    #[test]
    fn the_next_one_is_found_and_the_oldest_go_first() {
        let mut tail = Tail::new(Lsn(5), 4 * (OVERHEAD + 100));
        assert_eq!(after(&tail, 5), None);
        for end in [10, 20, 30, 40] {
            tail.push(transaction(end, 100));
        }
        assert_eq!(tail.from(), Lsn(5));
        let found: Vec<_> = [5, 9, 10, 15, 30, 39, 40, 99].iter().map(|&lsn| after(&tail, lsn)).collect();
        assert_eq!(found, [Some(10), Some(10), Some(20), Some(20), Some(40), Some(40), None, None]);
        tail.push(transaction(50, 101));
        assert_eq!((tail.from(), after(&tail, 20)), (Lsn(20), Some(30)));
    }

    #[test]
    fn one_that_is_over_the_limit_alone_empties_the_tail() {
        let mut tail = Tail::new(Lsn(0), 2000);
        tail.push(transaction(10, 100));
        tail.push(transaction(20, 5000));
        assert_eq!((tail.from(), after(&tail, 20)), (Lsn(20), None));
    }

    #[test]
    fn how_far_apart_two_places_are_is_what_lies_between_them() {
        let mut tail = Tail::new(Lsn(5), 6 * (OVERHEAD + 100));
        for end in [10, 20, 30, 40, 50] {
            let transaction = Arc::unwrap_or_clone(transaction(end, 100));
            tail.push(Arc::new(Transaction { items: end as u32, ..transaction }));
        }
        tail.truncate(Lsn(40));
        let count = |tail: &Tail, after, to| tail.count(Lsn(after), Lsn(to));
        assert_eq!(count(&tail, 4, 99), None);
        assert_eq!(count(&tail, 5, 99), Some((4, 100)));
        assert_eq!((count(&tail, 10, 30), count(&tail, 15, 39)), (Some((2, 50)), Some((2, 50))));
        assert_eq!(
            (count(&tail, 30, 30), count(&tail, 40, 99), count(&tail, 99, 5)),
            (Some((0, 0)), Some((0, 0)), Some((0, 0)))
        );
        tail.push(transaction(60, 3 * (OVERHEAD + 100)));
        assert_eq!((count(&tail, 10, 60), count(&tail, 20, 60)), (None, Some((3, 70))));
    }

    #[test]
    fn what_is_taken_back_is_gone() {
        let mut tail = Tail::new(Lsn(0), 1 << 20);
        for end in [10, 20, 30] {
            tail.push(transaction(end, 100));
        }
        tail.truncate(Lsn(20));
        assert_eq!((after(&tail, 10), after(&tail, 20), tail.from()), (Some(20), None, Lsn(0)));
        tail.truncate(Lsn(0));
        assert_eq!(tail.bytes, 0);
    }
}
