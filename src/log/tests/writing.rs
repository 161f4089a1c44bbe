use super::*;
use crate::log::testing::{FullDisk, Torn};

#[test]
fn appending_is_idempotent_by_position() {
    let Opened { log, mut writer } = Bench::new(1 << 20, 1 << 20).begin();
    assert!(writer.append(&insert(10, b"a")).expect("append").is_some());
    assert!(writer.append(&insert(10, b"a")).expect("append").is_none());
    assert!(writer.append(&insert(9, b"a")).expect("append").is_none());
    writer.advance(Lsn(20)).expect("advance");
    let bytes = log.bytes();
    writer.advance(Lsn(20)).expect("advance");
    assert!(writer.append(&insert(15, b"a")).expect("append").is_none());
    assert_eq!((log.bytes(), log.end()), (bytes, Lsn(20)));
    assert_eq!(ends(&all(&log)), [10]);
}

#[test]
fn nothing_is_durable_before_it_is_synced() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let Opened { log, mut writer } = bench.begin();
    writer.append(&insert(10, b"a")).expect("append");
    assert_eq!((log.end(), log.durable()), (Lsn(10), Lsn(0)));
    assert_eq!(log.sync().expect("sync"), Lsn(10));
    writer.append(&insert(20, b"b")).expect("append");
    assert_eq!((log.end(), log.durable()), (Lsn(20), Lsn(10)));
    drop((log, writer));
    bench.disk.crash(Torn::Lost);
    assert_eq!(ends(&all(&bench.open().log)), [10]);
}

#[test]
fn an_advance_survives_reopening() {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.begin();
    writer.append(&insert(10, b"a")).expect("append");
    writer.advance(Lsn(50)).expect("advance");
    assert_eq!(log.sync().expect("sync"), Lsn(50));
    drop((log, writer));
    bench.disk.crash(Torn::Lost);
    let Opened { log, mut writer } = bench.open();
    assert_eq!((writer.end(), log.durable()), (Lsn(50), Lsn(50)));
    writer.append(&insert(60, b"b")).expect("append");
    let reads = runtime().block_on(rest(&mut log.reader(Lsn(0)))).expect("read");
    assert!(matches!(&reads[..], [Read::Transaction(_), Read::Idle(Lsn(50)), Read::Transaction(_)]), "{reads:?}");
}

#[test]
fn nothing_can_be_written_before_an_epoch() {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.open();
    assert!(matches!(writer.append(&insert(10, b"a")), Err(LogError::NoEpoch)));
    assert!(matches!(writer.advance(Lsn(10)), Err(LogError::NoEpoch)));
    assert_eq!((log.epoch(), log.sync().expect("sync")), (None, Lsn(0)));
    writer.retain().expect("retain");
}

#[test]
fn a_new_epoch_replaces_the_old_one_and_its_readers_are_told() {
    let bench = Bench::new(300, 0);
    let Opened { log, mut writer } = bench.open();
    let mut early = log.reader(Lsn(0));
    writer.begin_epoch(epoch(1), Lsn(0)).expect("begin");
    for end in 1..20 {
        writer.append(&insert(end * 10, b"some text")).expect("append");
    }
    runtime().block_on(async {
        let mut reader = log.reader(Lsn(0));
        assert!(matches!(next(&mut reader).await, Read::Transaction(t) if t.end_lsn == Lsn(10)));
        // A restored database: positions go back.
        writer.begin_epoch(epoch(2), Lsn(5)).expect("begin");
        writer.append(&insert(7, b"new")).expect("append");
        assert!(matches!(next(&mut reader).await, Read::Gap { from: Lsn(10), resumed: Lsn(5) }));
        assert!(matches!(next(&mut reader).await, Read::Transaction(t) if t.end_lsn == Lsn(7)));
        // The early one never was in the old epoch; but it is below the new one's start.
        assert!(matches!(next(&mut early).await, Read::Gap { from: Lsn(0), resumed: Lsn(5) }));
    });
    assert_eq!((log.epoch(), writer.epoch()), (Some(epoch(2)), Some(epoch(2))));
    drop((log, writer));
    // The append was not synced, the epoch is durable all the same.
    bench.disk.crash(Torn::Lost);
    let Opened { log, .. } = bench.open();
    assert_eq!((log.epoch(), log.floor(), log.end()), (Some(epoch(2)), Lsn(5), Lsn(5)));
    assert_eq!(bench.segments().len(), 1);
}

#[test]
fn retention_by_size_and_by_age_moves_the_floor_and_readers_below_it_get_a_gap() {
    let bench = Bench { config: LogConfig { retain_bytes: 2000, ..Bench::new(500, 0).config }, ..Bench::new(0, 0) };
    let Opened { log, mut writer } = bench.begin();
    let mut reader = log.reader(Lsn(0));
    for end in 1..=60 {
        writer.append(&insert(end, b"some text that takes room")).expect("append");
    }
    assert!(log.bytes() > 2500);
    writer.retain().expect("retain");
    assert!(log.bytes() <= 2000 && log.bytes() > 1000, "{}", log.bytes());
    let floor = log.floor();
    runtime().block_on(async {
        let first = next(&mut reader).await;
        assert!(matches!(first, Read::Gap { from: Lsn(0), resumed } if resumed == floor), "{first:?}");
        assert!(matches!(next(&mut reader).await, Read::Transaction(t) if t.end_lsn.0 == floor.0 + 1));
        let mut at_floor = log.reader(floor);
        assert!(matches!(next(&mut at_floor).await, Read::Transaction(t) if t.end_lsn.0 == floor.0 + 1));
    });

    let hours = |h: i64| h * 3_600_000;
    bench.clock.advance(hours(23));
    writer.retain().expect("retain");
    assert_eq!(log.floor(), floor);
    bench.clock.advance(hours(2));
    writer.retain().expect("retain");
    assert_eq!(bench.segments().len(), 1);
    assert!(log.floor() > floor && log.floor() < log.end(), "the active segment stays");
    assert!(bench.metrics.render().contains(&format!("rowcast_log_size_bytes {}", log.bytes())));
    let floor = log.floor();
    drop((log, writer));
    bench.disk.crash(Torn::Lost);
    assert_eq!(bench.open().log.floor(), floor);
}

#[test]
fn a_second_owner_is_refused_until_the_first_is_gone() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bench = Bench { files: Arc::new(RealFiles), ..Bench::new(1 << 20, 0) };
    let bench = Bench { config: LogConfig { dir: folder.path().join("log"), ..bench.config.clone() }, ..bench };
    let opened = bench.begin();
    let error = bench.try_open().expect_err("two owners");
    let pid = std::process::id();
    assert!(matches!(error, LogError::Locked { holder: Some(holder), .. } if holder == pid), "{error}");
    assert!(error.to_string().contains(&format!("process {pid}")), "{error}");
    let Opened { log, mut writer } = opened;
    writer.append(&insert(10, b"a")).expect("append");
    log.sync().expect("sync");
    drop(writer);
    assert_eq!(ends(&all(&bench.open().log)), [10]);
}

#[test]
fn a_full_disk_leaves_the_log_consistent_and_it_goes_on_when_there_is_room() {
    let bench = Bench::new(2000, 0);
    for room in 0..700 {
        let bench = Bench { config: bench.config.clone(), ..Bench::new(0, 0) };
        let full = Arc::new(FullDisk::new(bench.files.clone()));
        let bench = Bench { files: full.clone(), ..bench };
        let Opened { log, mut writer } = bench.begin();
        full.set_room(Some(1600 + room));
        let (mut end, mut spill) = (0, false);
        let error = loop {
            let next = insert(end + 1, &[b'x'; 100]);
            spill = !spill;
            match writer.append(&if spill { spilled(&next) } else { next }) {
                Ok(_) => end += 1,
                Err(error) => break error,
            }
        };
        assert!(error.is_full(), "{error}");
        assert_eq!(log.end(), Lsn(end));
        writer.append(&insert(end + 1, b"y")).expect_err("still full");
        assert_eq!(all(&log).len() as u64, end);
        full.set_room(None);
        writer.append(&insert(end + 1, b"z")).expect("there is room");
        writer.append(&insert(end + 2, b"z")).expect("there is room");
        log.sync().expect("sync");
        drop((log, writer));
        bench.disk.crash(Torn::Lost);
        assert_eq!(ends(&all(&bench.open().log)), (1..=end + 2).collect::<Vec<_>>(), "room {room}");
    }
}

#[test]
fn a_half_written_record_that_cannot_be_cut_off_stops_the_log_until_it_is_repaired() {
    let bench = Bench::new(1 << 20, 0);
    let full = Arc::new(FullDisk::new(bench.files.clone()));
    let bench = Bench { files: full.clone(), ..bench };
    let Opened { log, mut writer } = bench.begin();
    writer.append(&insert(1, b"durable")).expect("append");
    log.sync().expect("sync");
    writer.append(&insert(2, b"not durable")).expect("append");
    full.set_room(Some(20));
    full.set_truncate_fails(true);
    assert!(writer.append(&insert(3, b"fails")).expect_err("full").is_full());
    full.set_room(None);
    assert!(matches!(writer.append(&insert(3, b"x")), Err(LogError::NeedsRepair)));
    assert!(matches!(writer.advance(Lsn(3)), Err(LogError::NeedsRepair)));
    assert!(matches!(log.sync(), Err(LogError::NeedsRepair)));
    assert_eq!(ends(&all(&log)), [1, 2], "what was readable stays readable");
    assert_eq!(writer.repair().expect("repair"), Lsn(1));
    for end in 2..5 {
        writer.append(&insert(end, b"again")).expect("append");
    }
    log.sync().expect("sync");
    assert_eq!(ends(&all(&log)), [1, 2, 3, 4]);
    drop((log, writer));
    bench.disk.crash(Torn::Lost);
    assert_eq!(ends(&all(&bench.open().log)), [1, 2, 3, 4]);
}

#[test]
fn after_a_failed_sync_nothing_counts_as_durable_until_it_was_written_again() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let Opened { log, mut writer } = bench.begin();
    writer.append(&insert(1, b"durable")).expect("append");
    log.sync().expect("sync");
    let mut reader = log.reader(Lsn(0));
    writer.append(&insert(2, b"lost by the kernel")).expect("append");
    bench.disk.fail_syncs(1);
    log.sync().expect_err("fails");
    log.sync().expect_err("and a second one is not believed");
    assert_eq!(log.durable(), Lsn(1));
    assert_eq!(transactions(runtime().block_on(rest(&mut reader)).expect("read")).len(), 2);

    assert_eq!(writer.repair().expect("repair"), Lsn(1));
    assert_eq!(log.end(), Lsn(1));
    assert_eq!(writer.repair().expect("nothing to repair"), Lsn(1));
    writer.append(&insert(2, b"lost by the kernel")).expect("append");
    writer.append(&insert(3, b"new")).expect("append");
    assert_eq!(log.sync().expect("sync"), Lsn(3));
    // The reader that was ahead sees no repeat.
    assert_eq!(ends(&transactions(runtime().block_on(rest(&mut reader)).expect("read"))), [3]);
    drop((log, writer, reader));
    bench.disk.crash(Torn::Lost);
    assert_eq!(ends(&all(&bench.open().log)), [1, 2, 3]);
}

#[test]
fn a_reader_on_disk_that_was_ahead_of_a_repair_goes_on_without_hole_or_repeat() {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.begin();
    let runtime = runtime();
    let mut reader = log.reader(Lsn(0));
    for end in 1..=1000 {
        writer.append(&insert(end, b"text")).expect("append");
        if end == 10 {
            log.sync().expect("sync");
        }
    }
    // Reads ahead a batch and keeps its place in the file.
    for end in 1..=512 {
        assert!(matches!(runtime.block_on(next(&mut reader)), Read::Transaction(t) if t.end_lsn == Lsn(end)));
    }
    bench.disk.fail_syncs(1);
    log.sync().expect_err("fails");
    assert_eq!(writer.repair().expect("repair"), Lsn(10));
    for end in 11..=2000 {
        writer.append(&insert(end, b"text")).expect("append");
    }
    let read = transactions(runtime.block_on(rest(&mut reader)).expect("read"));
    assert_eq!(ends(&read), (513..=2000).collect::<Vec<_>>());
}

#[test]
fn a_place_that_a_repair_took_back_is_still_one_that_was_given_out() {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.begin();
    log.set_written(Lsn(5));
    for end in [10, 20] {
        log.sync().expect("sync");
        writer.append(&insert(end, b"text")).expect("append");
    }
    bench.disk.fail_syncs(1);
    log.sync().expect_err("fails");
    assert_eq!(writer.repair().expect("repair"), Lsn(10));
    let place = |lsn| log.place(epoch(1).tag(), crate::change::Position { lsn: Lsn(lsn), ordinal: u32::MAX });
    assert_eq!((place(10), place(20), place(21)), (Place::Here, Place::Here, Place::Diverged));
}

#[test]
fn after_a_failed_sync_and_a_restart_the_records_are_written_again_before_they_count() {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.begin();
    writer.append(&insert(1, b"in the page cache only")).expect("append");
    bench.disk.fail_syncs(1);
    log.sync().expect_err("fails");
    drop((log, writer));
    // The process restarts, the machine doesn't: the page cache still shows the record.
    let Opened { log, writer } = bench.open();
    assert_eq!(log.durable(), Lsn(1));
    drop((log, writer));
    bench.disk.crash(Torn::Lost);
    assert_eq!(ends(&all(&bench.open().log)), [1]);
}

#[test]
fn a_spill_shorter_than_it_says_is_refused_and_leaves_nothing() {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.begin();
    let whole = insert(10, &[b'x'; 1000]);
    let Body::Memory(bytes) = &whole.body else { panic!("spilled") };
    let body = Body::Spilled(Arc::new(Spill { bytes: bytes.slice(..500), length: bytes.len() as u64 }));
    let short = Arc::new(Transaction { body, ..(*whole).clone() });
    assert!(matches!(writer.append(&short), Err(LogError::Spill(_))));
    assert_eq!((log.end(), log.bytes()), (Lsn(0), segment::HEADER));
    writer.append(&whole).expect("append");
    assert_same(&all(&log)[0], &whole);
}

#[test]
fn what_has_come_without_a_transaction_is_known_at_once_to_who_is_at_the_end_and_to_nobody_else() {
    let bench = Bench::new(1 << 20, 1 << 20);
    let Opened { log, mut writer } = bench.begin();
    for end in [10, 20] {
        writer.append(&insert(end, b"x")).expect("append");
    }
    log.set_streamed(Lsn(35));
    log.set_streamed(Lsn(30));
    assert_eq!([5, 20, 40].map(|position| log.known_from(Lsn(position)).0), [5, 35, 40]);
    writer.append(&insert(40, b"x")).expect("append");
    assert_eq!([20, 40].map(|position| log.known_from(Lsn(position)).0), [20, 40]);
    // Of another stream, of another history, or of what was taken back, nothing is known.
    log.set_streamed(Lsn(50));
    log.forget_streamed();
    assert_eq!(log.known_from(Lsn(40)), Lsn(40));
    log.set_streamed(Lsn(50));
    writer.begin_epoch(epoch(2), Lsn(40)).expect("begun");
    assert_eq!(log.known_from(Lsn(40)), Lsn(40));
}
