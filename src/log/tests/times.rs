//! From a commit time to a place.

use super::*;
use crate::change::Position;

/// Ends at `end`, committed then.
fn at(end: u64, time: i64) -> Arc<Transaction> {
    let made = insert(end, b"0123456789");
    Arc::new(Transaction { commit_time: Timestamp(time), ..Arc::unwrap_or_clone(made) })
}

fn append(writer: &mut LogWriter, transactions: &[(u64, i64)]) {
    for (end, time) in transactions {
        writer.append(&at(*end, *time)).expect("append");
    }
}

fn place(log: &Log, time: i64) -> u64 {
    log.position_at(Timestamp(time)).expect("read").0
}

#[test]
fn a_time_leads_to_the_first_transaction_that_committed_then_or_later() {
    for segment_bytes in [300, 1 << 20] {
        let mut opened = Bench::new(segment_bytes, 0).begin();
        // The clock is set back once.
        append(&mut opened.writer, &[(10, 100), (20, 200), (30, 150), (40, 300), (50, 250), (60, 400)]);
        opened.writer.advance(Lsn(70)).expect("advance");
        append(&mut opened.writer, &[(80, 500)]);
        // Twice: what was read the first time is remembered.
        for _ in 0..2 {
            for (time, before) in
                [(101, 10), (150, 10), (200, 10), (201, 30), (300, 30), (301, 50), (400, 50), (401, 70), (501, 80)]
            {
                assert_eq!(place(&opened.log, time), before, "{time} with segments of {segment_bytes}");
            }
        }
    }
}

#[test]
fn a_time_before_all_that_is_kept_leads_below_the_floor() {
    let bench = Bench::new(300, 0);
    let mut opened = bench.open();
    opened.writer.begin_epoch(epoch(1), Lsn(5)).expect("begin");
    assert_eq!(place(&opened.log, 100), 4, "nothing was here yet");
    append(&mut opened.writer, &[(10, 100), (20, 200), (30, 300), (40, 400)]);
    assert_eq!(place(&opened.log, 100), 4);
    assert_eq!(place(&opened.log, 101), 10);
    bench.clock.advance(25 * 3_600_000);
    opened.writer.retain().expect("retain");
    let floor = opened.log.floor().0;
    assert!(floor > 10, "{floor}");
    let first = 100 * (floor as i64 / 10 + 1);
    assert_eq!(place(&opened.log, first - 50), floor, "what is gone was read before");
    assert_eq!(place(&opened.log, first - 100), floor - 1);
    assert_eq!(place(&opened.log, first + 1), floor + 10);
    drop(opened);
    let opened = bench.open();
    assert_eq!(place(&opened.log, first), floor - 1, "what was before is not known");
    assert_eq!(place(&opened.log, first + 1), floor + 10);
}

#[test]
fn a_log_that_was_quiet_for_long_knows_that_nothing_was_missed() {
    let mut opened = Bench::new(300, 0).open();
    opened.writer.begin_epoch(epoch(1), Lsn(5)).expect("begin");
    let now = Clock::system().unix_millis() * 1000 - Timestamp::UNIX_OFFSET_MICROS;
    append(&mut opened.writer, &[(10, now + 7_300_000_000), (20, now + 7_400_000_000)]);
    // The log began two hours before.
    assert_eq!(place(&opened.log, now + 7_200_000_000), 5);
    assert_eq!(place(&opened.log, now), 4, "the clocks may differ");
    assert_eq!(place(&opened.log, now + 7_300_000_001), 10);
}

#[test]
fn the_bytes_after_a_position_are_known_about() {
    for segment_bytes in [300, 1 << 20] {
        let mut opened = Bench::new(segment_bytes, 0).begin();
        assert_eq!(opened.log.bytes_since(Lsn(0)), 0);
        append(&mut opened.writer, &(1..=20).map(|i| (10 * i, 0)).collect::<Vec<_>>());
        let (all, since) = (opened.log.bytes(), |lsn| opened.log.bytes_since(Lsn(lsn)));
        assert_eq!((since(0), since(200), since(300)), (all, 0, 0));
        assert!(since(100) > all / 3 && since(100) < all * 2 / 3, "{} of {all}", since(100));
    }
}

#[test]
fn a_place_is_here_expired_or_of_another_history() {
    let bench = Bench::new(300, 0);
    let mut opened = bench.begin();
    append(&mut opened.writer, &[(10, 1), (20, 2), (30, 3), (40, 4)]);
    bench.clock.advance(25 * 3_600_000);
    opened.writer.retain().expect("retain");
    let (log, tag, floor) = (&opened.log, epoch(1).tag(), opened.log.floor().0);
    let of = |tag, lsn, ordinal| log.place(tag, Position { lsn: Lsn(lsn), ordinal });
    assert_eq!(of(tag, floor, u32::MAX), Place::Here);
    assert_eq!(of(tag, floor, 0), Place::Expired, "the rest of that transaction is gone");
    assert_eq!(of(tag, floor + 1, 0), Place::Here);
    assert_eq!(of(tag, floor - 1, u32::MAX), Place::Expired);
    assert_eq!(of(tag, 1000, 0), Place::Here, "the stream will come to it");
    assert_eq!(of(epoch(2).tag(), floor, u32::MAX), Place::Diverged);
}

proptest! {
    #[test]
    fn everything_before_the_place_committed_earlier_and_what_follows_did_not(
        times in proptest::collection::vec(0i64..20, 1..40), time in -1i64..22, segment_bytes in 200u64..2000,
    ) {
        let mut opened = Bench::new(segment_bytes, 0).begin();
        let transactions: Vec<(u64, i64)> = times.iter().enumerate().map(|(i, time)| (10 * (i as u64 + 1), *time)).collect();
        // What was read before is not read again.
        for some in transactions.chunks(7) {
            append(&mut opened.writer, some);
            let end = some.last().map_or(0, |(end, _)| *end);
            let there: Vec<_> = transactions.iter().filter(|(at, _)| *at <= end).collect();
            let found = place(&opened.log, time);
            prop_assert!(there.iter().filter(|(end, _)| *end <= found).all(|(_, at)| *at < time));
            let next = there.iter().find(|(end, _)| *end > found);
            prop_assert!(next.is_none_or(|(_, at)| *at >= time));
        }
    }
}
