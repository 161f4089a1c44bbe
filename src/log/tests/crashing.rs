use std::ops::Bound;

use super::*;
use crate::log::testing::Torn;

#[derive(Debug, Clone)]
enum Act {
    Append(Vec<Made>, bool),
    Advance,
    Sync,
    Faults(u64, u64),
    Repair,
    Retain,
    BeginEpoch,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (made(), any::<bool>()).prop_map(|(items, spill)| Act::Append(items, spill)),
        2 => Just(Act::Advance),
        4 => Just(Act::Sync),
        2 => (0u64..8, 1u64..4).prop_map(|(skip, count)| Act::Faults(skip, count)),
        1 => Just(Act::Repair),
        1 => Just(Act::Retain),
        1 => Just(Act::BeginEpoch),
    ]
}

/// How the machine goes down; `None` if only the process does.
fn torn() -> impl Strategy<Value = Option<Torn>> {
    prop_oneof![
        Just(None),
        Just(Some(Torn::Lost)),
        (0usize..2000).prop_map(|bytes| Some(Torn::Prefix(bytes))),
        any::<u64>().prop_map(|seed| Some(Torn::Scattered(seed)))
    ]
}

/// What must be true after the crash.
struct Promise {
    /// The history in which everything below happened. A new one that was begun, but not reported, may have replaced it.
    epoch: Epoch,
    begun: Option<Epoch>,
    durable: Lsn,
    /// All transactions ever given to the log in this epoch, by end LSN.
    given: std::collections::BTreeMap<Lsn, Arc<Transaction>>,
    /// The floor may not be above it.
    floor: Lsn,
}

impl Promise {
    fn of(epoch: Epoch, start: Lsn) -> Promise {
        Promise { epoch, begun: None, durable: start, given: Default::default(), floor: start }
    }

    /// Runs one act, which may fail.
    fn run(&mut self, bench: &Bench, opened: &mut Opened, act: &Act) {
        let Opened { log, writer } = opened;
        let next = Lsn(writer.end().0 + 10);
        match act {
            Act::Append(items, spill) => {
                // The stream is always the same at the same position.
                let original = self.given.get(&next).cloned().unwrap_or_else(|| transaction(next.0, items));
                self.given.insert(next, original.clone());
                let appended = writer.append(&if *spill { spilled(&original) } else { original });
                if appended.is_ok() {
                    // It went on in the old epoch, so the new one must not come up any more.
                    self.begun = None;
                }
            }
            Act::Advance if !self.given.contains_key(&next) => drop(writer.advance(next)),
            Act::Advance => {}
            Act::Sync => drop(log.sync()),
            Act::Faults(skip, count) => bench.disk.fail_operations(*skip, *count),
            Act::Repair => drop(writer.repair()),
            Act::Retain => drop(writer.retain()),
            Act::BeginEpoch => {
                let new = epoch(self.epoch.incarnation + 1);
                self.begun = Some(new);
                if writer.begin_epoch(new, Lsn(5)).is_ok() {
                    *self = Promise::of(new, Lsn(5));
                }
            }
        }
        self.durable = log.durable();
        self.floor = log.floor();
    }

    /// Checks what is there after the crash, and goes on from it.
    fn check(&mut self, log: &Log) {
        if log.epoch() != Some(self.epoch) {
            assert_eq!(log.epoch(), self.begun, "an epoch from nowhere");
            assert_eq!((log.end(), log.floor()), (Lsn(5), Lsn(5)));
            let epoch = self.begun.take().expect("begun");
            *self = Promise::of(epoch, Lsn(5));
            return;
        }
        assert!(log.end() >= self.durable, "{} was durable, the log ends at {}", self.durable, log.end());
        assert!(log.floor() <= self.floor, "the floor went up to {} from {}", log.floor(), self.floor);
        let read = all(log);
        let range = (Bound::Excluded(log.floor()), Bound::Included(log.end()));
        let expected: Vec<_> = self.given.range(range).map(|(_, t)| t).collect();
        assert_eq!(ends(&read), expected.iter().map(|t| t.end_lsn.0).collect::<Vec<_>>());
        read.iter().zip(expected).for_each(|(r, e)| assert_same(r, e));
        // What comes after the end was lost and may be something else now, such as an advance.
        self.given.retain(|lsn, _| *lsn <= log.end());
        self.begun = None;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn after_a_crash_at_any_point_everything_durable_is_there_in_order_and_nothing_is_invented(
        lives in proptest::collection::vec(
            (proptest::collection::vec(act(), 1..25), 0u64..60, torn()), 1..5),
        segment_bytes in 200u64..3000,
        tail_bytes in prop_oneof![Just(0), Just(1 << 20)],
    ) {
        let config = LogConfig { retain_bytes: 4000, ..Bench::new(segment_bytes, tail_bytes).config };
        let bench = Bench { config, ..Bench::new(0, 0) };
        drop(bench.begin());
        let mut promise = Promise::of(epoch(1), Lsn(0));
        for (acts, operations, torn) in lives {
            bench.disk.halt_after(Some(operations));
            // Opening itself may be interrupted too.
            if let Ok(mut opened) = bench.try_open() {
                promise.check(&opened.log);
                acts.iter().for_each(|act| promise.run(&bench, &mut opened, act));
            }
            match torn {
                Some(torn) => bench.disk.crash(torn),
                None => {
                    bench.disk.halt_after(None);
                    bench.disk.fail_operations(0, 0);
                }
            }
            promise.check(&bench.open().log);
        }
    }
}
