use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn transactions_of_all_kinds_come_back_from_memory_from_disk_and_after_reopening(
        made in proptest::collection::vec((made(), any::<bool>(), 1u64..60), 1..30),
        segment_bytes in 300u64..6000,
        tail_bytes in prop_oneof![Just(0), Just(3000), Just(1 << 20)],
    ) {
        let bench = Bench::new(segment_bytes, tail_bytes);
        let Opened { log, mut writer } = bench.begin();
        let (mut end, mut appended) = (0, Vec::new());
        for (items, spill, distance) in made {
            end += distance;
            let original = transaction(end, &items);
            let given = if spill { spilled(&original) } else { original.clone() };
            let stored = writer.append(&given).expect("append").expect("stored");
            assert_same(&stored, &original);
            appended.push(original);
        }
        let read = all(&log);
        prop_assert_eq!(read.len(), appended.len());
        read.iter().zip(&appended).for_each(|(r, a)| assert_same(r, a));

        drop((log, writer));
        let Opened { log, writer } = bench.open();
        prop_assert_eq!((writer.end(), log.durable(), log.floor()), (Lsn(end), Lsn(end), Lsn(0)));
        prop_assert_eq!(log.epoch(), Some(epoch(1)));
        let read = all(&log);
        prop_assert_eq!(read.len(), appended.len());
        read.iter().zip(&appended).for_each(|(r, a)| assert_same(r, a));

        // From every position between.
        for from in 0..=end {
            let first = runtime().block_on(log.reader(Lsn(from)).try_next()).expect("read");
            let expected = appended.iter().find(|t| t.end_lsn.0 > from).map(|t| t.end_lsn);
            let found = first.map(|read| match read {
                Read::Transaction(t) => t.end_lsn,
                other => panic!("{other:?}"),
            });
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn equal_relations_are_shared_across_segments_and_with_the_writer() {
    let bench = Bench::new(400, 0);
    let Opened { log, mut writer } = bench.begin();
    let mine = insert(1, b"x");
    writer.append(&mine).expect("append");
    for end in 2..20 {
        writer.append(&insert(end, b"a row with some text in it")).expect("append");
    }
    assert!(bench.segments().len() > 3);
    let read = all(&log);
    assert_eq!(read.len(), 19);
    assert!(read.iter().all(|t| Arc::ptr_eq(&t.relations[0], &mine.relations[0])));
}

#[test]
fn a_relation_is_written_once_per_segment() {
    let bench = Bench::new(1 << 20, 0);
    let Opened { log, mut writer } = bench.begin();
    writer.append(&insert(1, b"x")).expect("append");
    let first = log.bytes() - segment::HEADER;
    writer.append(&insert(2, b"x")).expect("append");
    let second = log.bytes() - segment::HEADER - first;
    assert!(second < first - 10, "{first} then {second}");
    // And is still known after reopening.
    drop((log, writer));
    let Opened { log, mut writer } = bench.open();
    writer.append(&insert(3, b"x")).expect("append");
    assert_eq!(log.bytes() - segment::HEADER, first + 2 * second);
    assert_eq!(ends(&all(&log)), [1, 2, 3]);
}

#[test]
fn a_lagging_reader_catches_up_without_hole_or_duplicate_while_a_writer_appends() {
    const COUNT: u64 = 20_000;
    let bench = Bench::new(20_000, 8_000);
    let Opened { log, mut writer } = bench.begin();
    for end in 1..=1000 {
        writer.append(&insert(end, b"before")).expect("append");
    }
    let syncing = log.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let appending = std::thread::spawn(move || {
        for end in 1001..=COUNT {
            writer.append(&insert(end, &end.to_le_bytes())).expect("append");
            if end % 500 == 0 {
                syncing.sync().expect("sync");
            }
        }
        writer
    });
    runtime.block_on(async {
        let mut readers = [log.reader(Lsn(0)), log.reader(Lsn(999)), log.reader(Lsn(0))];
        for (i, reader) in readers.iter_mut().enumerate() {
            let mut expected = reader.position().0;
            while expected < COUNT {
                let read = match i {
                    // One that is cancelled all the time must still get on.
                    2 => tokio::select! {
                        biased;
                        read = reader.next() => read.expect("read"),
                        () = tokio::task::yield_now() => continue,
                    },
                    _ => next(reader).await,
                };
                match read {
                    Read::Transaction(t) => assert_eq!(t.end_lsn.0, expected + 1),
                    other => panic!("{other:?}"),
                }
                expected += 1;
            }
            assert!(reader.try_next().await.expect("read").is_none());
        }
    });
    drop(appending.join().expect("join"));
}

#[test]
fn a_reader_at_the_end_wakes_for_a_transaction_and_for_an_advance() {
    let Opened { log, mut writer } = Bench::new(1 << 20, 1 << 20).begin();
    runtime().block_on(async {
        let mut reader = log.reader(Lsn(0));
        let waiting = async {
            assert!(matches!(next(&mut reader).await, Read::Transaction(t) if t.end_lsn == Lsn(10)));
            assert!(matches!(next(&mut reader).await, Read::Idle(Lsn(30))));
            assert_eq!(reader.position(), Lsn(30));
        };
        let writing = async {
            tokio::task::yield_now().await;
            writer.append(&insert(10, b"x")).expect("append");
            tokio::task::yield_now().await;
            writer.advance(Lsn(30)).expect("advance");
        };
        tokio::join!(waiting, writing);
    });
}

#[test]
fn a_reader_ahead_of_the_end_waits_until_the_stream_has_passed_it() {
    let Opened { log, mut writer } = Bench::new(1 << 20, 1 << 20).begin();
    runtime().block_on(async {
        let mut reader = log.reader(Lsn(25));
        for end in [10, 20, 25] {
            writer.append(&insert(end, b"x")).expect("append");
            assert!(reader.try_next().await.expect("read").is_none());
        }
        writer.append(&insert(30, b"x")).expect("append");
        assert!(matches!(next(&mut reader).await, Read::Transaction(t) if t.end_lsn == Lsn(30)));
    });
}

#[test]
fn a_large_record_comes_back_as_a_range_of_its_own_segment_and_outlives_its_removal() {
    let bench = Bench { config: LogConfig { retain_bytes: 0, ..Bench::new(4096, 0).config }, ..Bench::new(0, 0) };
    let Opened { log, mut writer } = bench.begin();
    let text: Vec<u8> = (0..9_000_000u32).map(|i| (i % 251) as u8).collect();
    let (memory, spill) = (insert(20, &text), insert(30, &text));
    writer.append(&insert(10, b"small")).expect("append");
    writer.append(&memory).expect("append");
    let stored = writer.append(&spilled(&spill)).expect("append").expect("stored");
    writer.append(&insert(40, b"small")).expect("append");
    assert_eq!(bench.segments().len(), 4);

    let read = all(&log);
    assert_eq!(ends(&read), [10, 20, 30, 40]);
    assert!(matches!(read[1].body, Body::Spilled(_)) && matches!(read[2].body, Body::Spilled(_)));
    writer.retain().expect("retain");
    assert_eq!((log.floor(), bench.segments().len()), (Lsn(30), 1));
    for (from, to) in [(&read[1], &memory), (&read[2], &spill), (&stored, &spill)] {
        assert_same(from, to);
    }
}

#[test]
fn handles_and_waiting_reads_can_move_between_threads() {
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    let Opened { log, writer } = sendable(Bench::new(1 << 20, 0).begin());
    drop(sendable(writer));
    let mut reader = sendable(log.reader(Lsn(0)));
    drop(sendable(reader.next()));
    drop(sendable(reader.try_next()));
}
