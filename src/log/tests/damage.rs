use super::*;

/// A log with these ends, each synced, closed again; the bytes of its one segment, and where each record begins.
fn recorded(ends: &[u64], synced: bool) -> (Bench, PathBuf, Vec<u8>, Vec<usize>) {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.begin();
    let mut starts = Vec::new();
    for &end in ends {
        starts.push(log.bytes() as usize);
        writer.append(&insert(end, &end.to_le_bytes())).expect("append");
        if synced {
            log.sync().expect("sync");
        }
    }
    drop((log, writer));
    let path = bench.segments().remove(0);
    let bytes = bench.disk.bytes(&path).expect("bytes");
    (bench, path, bytes, starts)
}

#[test]
fn a_torn_tail_is_cut_at_every_offset_and_the_log_goes_on() {
    let (bench, path, bytes, starts) = recorded(&[1, 2, 3], true);
    for length in segment::HEADER as usize..=bytes.len() {
        // Cut short, filled with zeros, or with what was there before on the disk.
        for filler in [None, Some(0), Some(0xA5)] {
            let mut torn = bytes[..length].to_vec();
            if let Some(byte) = filler {
                torn.resize(bytes.len() + 100, byte);
            }
            bench.disk.put(&path, torn.clone());
            let Opened { log, mut writer } = bench.open();
            // What was there before may happen to be what was to be written.
            let is_whole = |end: usize| torn.get(..end) == Some(&bytes[..end]);
            let whole = starts[1..].iter().chain([&bytes.len()]).filter(|end| is_whole(**end)).count() as u64;
            assert_eq!(ends(&all(&log)), (1..=whole).collect::<Vec<_>>(), "length {length} filler {filler:?}");
            assert_eq!(log.end(), Lsn(whole));
            writer.append(&insert(9, b"on")).expect("append");
            drop((log, writer));
            assert_eq!(ends(&all(&bench.open().log)).last(), Some(&9));
        }
    }
}

#[test]
fn a_flipped_byte_before_a_record_that_proves_it_durable_is_refused_and_in_the_last_one_cut() {
    let (bench, path, bytes, starts) = recorded(&[1, 2, 3], true);
    for at in segment::HEADER as usize..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x40;
        bench.disk.put(&path, flipped);
        let record = starts.iter().rposition(|&start| start <= at).expect("a record");
        match bench.try_open() {
            Ok(opened) => {
                assert_eq!(record, 2, "byte {at}");
                assert_eq!(ends(&all(&opened.log)), [1, 2]);
            }
            Err(LogError::Damaged { path: named, offset, .. }) => {
                assert!(record < 2, "byte {at}");
                assert_eq!((named, offset as usize), (path.clone(), starts[record]));
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_group_that_was_never_synced_is_cut_from_its_first_bad_record() {
    let (bench, path, mut bytes, starts) = recorded(&[1, 2, 3], false);
    bytes[starts[1] + 30] ^= 1;
    bench.disk.put(&path, bytes);
    assert_eq!(ends(&all(&bench.open().log)), [1]);
}

#[test]
fn a_row_that_looks_like_a_record_does_not_make_a_torn_tail_look_damaged() {
    let (_, _, bytes, starts) = recorded(&[1, 2, 3], true);
    let (bench, path) = {
        let bench = Bench::new(1 << 20, 0);
        let Opened { mut writer, .. } = bench.begin();
        // A whole synced record of another segment inside a row: the best that a stranger could write.
        writer.append(&insert(1, b"a")).expect("append");
        writer.append(&insert(2, &bytes[starts[2]..])).expect("append");
        let path = bench.segments().remove(0);
        (bench, path)
    };
    let mut torn = bench.disk.bytes(&path).expect("bytes");
    torn.pop();
    bench.disk.put(&path, torn);
    assert_eq!(ends(&all(&bench.open().log)), [1]);
}

/// A log of several segments, closed.
fn several() -> (Bench, Vec<PathBuf>) {
    let bench = Bench::new(300, 0);
    let Opened { mut writer, .. } = bench.begin();
    for end in 1..=12 {
        writer.append(&insert(end, b"some text")).expect("append");
    }
    let paths = bench.segments();
    assert!(paths.len() >= 4);
    (bench, paths)
}

#[test]
fn damage_in_an_older_segment_stops_the_reader_that_meets_it() {
    let (bench, paths) = several();
    let whole = bench.disk.bytes(&paths[1]).expect("bytes");
    let last = whole.len() - 10;
    for bytes in [whole[..last].to_vec(), whole[..segment::HEADER as usize].to_vec(), {
        let mut flipped = whole.clone();
        flipped[last] ^= 1;
        flipped
    }] {
        bench.disk.put(&paths[1], bytes);
        let Opened { log, .. } = bench.open();
        let mut reader = log.reader(Lsn(0));
        runtime().block_on(async {
            let error = rest(&mut reader).await.expect_err("damaged");
            assert!(matches!(&error, LogError::Damaged { path, .. } if *path == paths[1]), "{error}");
            let stopped = reader.position();
            assert!(stopped > Lsn(0) && stopped < Lsn(12), "{stopped}");
            // It doesn't get past it by asking again, and others who don't need that segment read on.
            assert!(reader.try_next().await.is_err());
            assert_eq!(reader.position(), stopped);
            assert_eq!(transactions(rest(&mut log.reader(Lsn(11))).await.expect("read")).len(), 1);
        });
    }
}

#[test]
fn bytes_behind_the_end_of_an_older_segment_mean_nothing() {
    let (bench, paths) = several();
    let mut bytes = bench.disk.bytes(&paths[1]).expect("bytes");
    bytes.extend_from_slice(b"left by a record that was taken back");
    bench.disk.put(&paths[1], bytes);
    assert_eq!(ends(&all(&bench.open().log)), (1..=12).collect::<Vec<_>>());
}

#[test]
fn a_damaged_header_is_refused_and_a_torn_new_segment_is_dropped() {
    let (bench, paths) = several();
    let whole = bench.disk.bytes(&paths[1]).expect("bytes");
    let mut flipped = whole.clone();
    flipped[50] ^= 1;
    bench.disk.put(&paths[1], flipped);
    assert!(matches!(bench.try_open(), Err(LogError::Damaged { offset: 0, .. })));
    let mut newer = whole.clone();
    newer[8] = 9;
    bench.disk.put(&paths[1], newer);
    let error = bench.try_open().expect_err("newer");
    assert!(matches!(error, LogError::Version { found: 9, known: 1, .. }), "{error}");
    bench.disk.put(&paths[1], whole.clone());

    let next = Path::new(DIR).join(segment::file_name(paths.len() as u64 + 1));
    for length in 0..=segment::HEADER as usize {
        let torn = if length < segment::HEADER as usize { whole[..length].to_vec() } else { vec![0; length] };
        bench.disk.put(&next, torn);
        assert_eq!(ends(&all(&bench.open().log)), (1..=12).collect::<Vec<_>>());
        assert_eq!(bench.disk.bytes(&next), None);
    }
}

#[test]
fn a_missing_segment_is_a_gap_and_never_a_silent_hole() {
    let (bench, paths) = several();
    bench.files.remove(&paths[1]).expect("remove");
    let Opened { log, .. } = bench.open();
    assert_eq!(bench.segments(), paths[2..]);
    let reads = runtime().block_on(rest(&mut log.reader(Lsn(0)))).expect("read");
    assert!(matches!(reads[0], Read::Gap { from: Lsn(0), resumed } if resumed == log.floor() && resumed > Lsn(1)));
}

#[test]
fn a_file_that_is_not_ours_is_left_alone() {
    let (bench, paths) = several();
    for name in ["notes.txt", "1.rowlog", "0000000000000099.rowlog.bak"] {
        bench.disk.put(&Path::new(DIR).join(name), b"mine".to_vec());
    }
    let Opened { log, mut writer } = bench.open();
    assert_eq!(all(&log).len(), 12);
    writer.begin_epoch(epoch(2), Lsn(0)).expect("begin");
    assert_eq!(bench.segments().len(), 1);
    assert!(!bench.segments().contains(&paths[0]));
    assert_eq!(bench.disk.bytes(&Path::new(DIR).join("notes.txt")).as_deref(), Some(&b"mine"[..]));
}
