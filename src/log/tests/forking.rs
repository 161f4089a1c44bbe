//! Another history that goes on from within this one.

use super::*;

fn ids(reads: &[Read]) -> Vec<u64> {
    reads.iter().filter_map(|read| if let Read::Transaction(t) = read { Some(t.end_lsn.0) } else { None }).collect()
}

/// A log with a transaction at 10, 20, … 90, in segments of a few each.
fn filled(bench: &Bench) -> Opened {
    let mut opened = bench.begin();
    for end in (10..100).step_by(10) {
        opened.writer.append(&insert(end, &[b'x'; 100])).expect("appended");
    }
    opened.log.sync().expect("synced");
    opened
}

#[test]
fn what_lies_before_the_fork_stays_and_what_lies_behind_is_told_as_a_gap() {
    for tail in [1 << 20, 0] {
        let bench = Bench::new(500, tail);
        let Opened { log, mut writer } = filled(&bench);
        assert!(bench.segments().len() > 3, "several segments: {:?}", bench.segments());
        let runtime = runtime();
        let (mut early, mut late) = (log.reader(Lsn(20)), log.reader(Lsn(0)));
        assert_eq!(ids(&runtime.block_on(rest(&mut late)).expect("read")).len(), 9);
        assert_eq!(writer.last_at_or_before(Lsn(55)).expect("a place"), Some(Lsn(50)));
        assert_eq!(writer.last_at_or_before(Lsn(500)).expect("a place"), Some(Lsn(90)));
        writer.fork(epoch(2), Lsn(50), Lsn(50)).expect("forked");
        assert_eq!((log.end(), log.durable(), log.epoch()), (Lsn(50), Lsn(50), Some(epoch(2))));
        writer.append(&insert(52, b"new")).expect("appended");
        writer.append(&insert(95, b"new")).expect("appended");
        log.sync().expect("synced");
        let reads = runtime.block_on(rest(&mut late)).expect("read");
        assert!(matches!(reads[0], Read::Gap { from: Lsn(90), resumed: Lsn(50) }), "{reads:?}");
        assert_eq!(ids(&reads), [52, 95]);
        let reads = runtime.block_on(rest(&mut early)).expect("read");
        assert!(!reads.iter().any(|read| matches!(read, Read::Gap { .. })), "{reads:?}");
        assert_eq!(ids(&reads), [30, 40, 50, 52, 95]);
        let check = |log: &Log| {
            assert!(log.shares(epoch(2).tag(), Lsn(95)) && log.shares(epoch(1).tag(), Lsn(50)));
            assert!(!log.shares(epoch(1).tag(), Lsn(51)), "that never happened here");
            assert!(!log.shares(epoch(9).tag(), Lsn(1)));
            assert_eq!(ends(&all(log)), [10, 20, 30, 40, 50, 52, 95]);
        };
        check(&log);
        drop((writer, log, early, late));
        bench.disk.crash(super::super::testing::Torn::Lost);
        let Opened { log, mut writer } = bench.open();
        check(&log);
        // And once more, within what was appended since.
        writer
            .fork(epoch(3), writer.last_at_or_before(Lsn(60)).expect("a place").expect("one"), Lsn(60))
            .expect("forked");
        assert_eq!(ends(&all(&log)), [10, 20, 30, 40, 50, 52]);
        assert!(log.shares(epoch(1).tag(), Lsn(50)) && !log.shares(epoch(2).tag(), Lsn(95)));
        writer.begin_epoch(epoch(4), Lsn(200)).expect("begun");
        assert!(!log.shares(epoch(3).tag(), Lsn(10)), "another history altogether");
    }
}

#[test]
fn a_fork_at_a_segments_base_and_before_the_log_and_at_its_end() {
    let bench = Bench::new(500, 0);
    let Opened { log, mut writer } = filled(&bench);
    let bases: Vec<Lsn> = writer.shared.state().segments.iter().map(|s| s.header.base).collect();
    writer.fork(epoch(2), bases[2], bases[2]).expect("forked");
    assert_eq!((log.end(), ends(&all(&log)).last().copied()), (bases[2], Some(bases[2].0)));
    writer.fork(epoch(3), log.end(), Lsn(1000)).expect("nothing is taken back");
    assert!(log.shares(epoch(1).tag(), bases[2]) && log.shares(epoch(2).tag(), Lsn(1000)), "what is yet to come here");
    writer.fork(epoch(4), Lsn(0), Lsn(0)).expect("everything is taken back");
    assert_eq!((log.floor(), log.end(), ends(&all(&log))), (Lsn(0), Lsn(0), Vec::new()));
    writer.append(&insert(7, b"new")).expect("appended");
    assert_eq!(ends(&all(&log)), [7]);
    drop((writer, log));
    let opened = bench.open();
    assert_eq!(ends(&all(&opened.log)), [7]);
    let mut writer = opened.writer;
    writer.begin_epoch(epoch(5), Lsn(100)).expect("begun");
    assert_eq!(writer.last_at_or_before(Lsn(99)).expect("asked"), None);
    assert!(writer.fork(epoch(6), Lsn(50), Lsn(50)).is_err());
}

/// A crash at any write of a fork leaves the old history (or a part of it that the database's own record will not match) or the
/// new one, and never a log that can't be opened.
#[test]
fn a_fork_that_is_interrupted_anywhere_leaves_a_log_that_opens() {
    let mut outcomes = Vec::new();
    for halted in 0..40 {
        let bench = Bench::new(500, 0);
        let Opened { log, mut writer } = filled(&bench);
        bench.disk.halt_after(Some(halted));
        let _ = writer.fork(epoch(2), Lsn(50), Lsn(50));
        drop((writer, log));
        bench.disk.crash(super::super::testing::Torn::Lost);
        bench.disk.halt_after(None);
        let opened = bench.open();
        let found = opened.log.epoch().expect("an epoch");
        match found == epoch(2) {
            true => assert_eq!(ends(&all(&opened.log)), [10, 20, 30, 40, 50]),
            false => assert_eq!(ends(&all(&opened.log)), [10, 20, 30, 40, 50, 60, 70, 80, 90]),
        }
        outcomes.push(found.incarnation);
    }
    assert!(outcomes.is_sorted() && outcomes.contains(&1) && outcomes.contains(&2), "{outcomes:?}");
}
