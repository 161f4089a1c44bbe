use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::change::{Lsn, Position};
use crate::log::RealFiles;
use crate::log::testing::FullDisk;
use crate::task::{self, Drain};

fn at(lsn: u64) -> Position {
    Position { lsn: Lsn(lsn), ordinal: 3 }
}

fn user() -> User {
    User { role: "authenticated".into(), subject: "alice".into() }
}

fn joined(channel: u64, filter: &str) -> Note {
    let entry = Wanted {
        id: 7,
        action: "INSERT".into(),
        schema: Some("public".into()),
        table: None,
        filter: Some(filter.into()),
    };
    Note::Joined {
        channel,
        connection: 1,
        topic: "realtime:room".into(),
        user: user(),
        expires_at: -1,
        from: at(5),
        entries: vec![entry],
    }
}

fn left(channel: u64) -> Note {
    Note::Left { channel, connection: 1, topic: "realtime:room".into(), user: user(), from: at(5), at: at(9) }
}

struct Desk {
    journal: Journal,
    metrics: Arc<Metrics>,
    drain: Drain,
    task: tokio::task::JoinHandle<()>,
}

impl Desk {
    fn open(dir: &Path, bytes: u64) -> Desk {
        Desk::on(dir, bytes, Arc::new(RealFiles))
    }

    fn on(dir: &Path, bytes: u64, files: Arc<dyn Files>) -> Desk {
        let config = JournalConfig { bytes, ..JournalConfig::new(dir) };
        let (metrics, drain) = (Arc::new(Metrics::new()), Drain::new());
        let (journal, writer) = Journal::new(config, files, Clock::system(), metrics.clone());
        journal.note(Note::Started { position: Lsn(1) });
        let stop = drain.clone();
        let writer = writer.unwrap();
        let task = task::spawn("journal", async move { writer.run(stop).await });
        Desk { journal, metrics, drain, task }
    }

    async fn read(&self) -> (Vec<Note>, Extent) {
        assert!(self.journal.flush().await);
        read(&self.journal)
    }

    async fn close(self) {
        self.drain.drain();
        self.task.await.unwrap();
    }
}

fn read(journal: &Journal) -> (Vec<Note>, Extent) {
    let mut notes = Vec::new();
    let extent = journal.read(&mut |_, note| notes.push(note)).unwrap();
    (notes, extent)
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn size(dir: &Path) -> u64 {
    files(dir).iter().map(|file| file.metadata().unwrap().len()).sum()
}

#[tokio::test]
async fn every_note_is_read_back_in_order_and_a_run_begins_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("journal");
    let desk = Desk::open(&dir, 1 << 20);
    let undecided = |channel, lsn| Note::Undecided {
        channel,
        table: 16_400,
        reason: "timeout".into(),
        first: at(lsn),
        last: at(lsn),
        count: 1,
    };
    let all = vec![
        joined(1, "id=eq.5"),
        Note::Refused { channel: 2, topic: "realtime:x".into(), user: user() },
        Note::Token { channel: 1, user: user(), expires_at: i64::MAX, at: at(6) },
        Note::Expired { channel: 1 },
        left(1),
        Note::Paused { channel: 1, at: at(7) },
        Note::Resumed { channel: 1, at: at(8) },
        Note::Ended { channel: 1, at: at(8) },
        Note::Closed { connection: 1, reason: "slow".into(), code: 1013 },
        Note::Gap { from: Lsn(3), resumed: Lsn(4) },
        Note::FactState { table: 5, at: at(8), state: "loaded".into() },
        Note::Rules { at: at(9) },
    ];
    all.iter().cloned().for_each(|note| desk.journal.note(note));
    desk.journal.note(undecided(1, 10));
    let (notes, extent) = desk.read().await;
    assert_eq!(notes[0], Note::Started { position: Lsn(1) });
    assert_eq!(notes[1..13], all[..]);
    assert_eq!(notes[13..], [undecided(1, 10)]);
    assert_eq!(extent.from, Some(Lsn(1)));
    assert!(extent.begins.is_some_and(|begins| begins > 0) && extent.bytes > 0);
    desk.close().await;

    // The next run goes on in a file of its own, and knows that the one before it ended in order.
    let desk = Desk::open(&dir, 1 << 20);
    let (notes, _) = desk.read().await;
    assert_eq!(notes[14..], [Note::Stopped, Note::Started { position: Lsn(1) }]);
    assert_eq!(files(&dir).len(), 2);
    desk.close().await;
}

#[tokio::test]
async fn many_of_a_kind_are_told_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::open(folder.path(), 1 << 20);
    for lsn in 1..=1000 {
        desk.journal.note(Note::Facts { table: 5, first: at(lsn), last: at(lsn), rows: 2 });
        for channel in [1, 2] {
            desk.journal.note(Note::Undecided {
                channel,
                table: 9,
                reason: "timeout".into(),
                first: at(lsn),
                last: at(lsn),
                count: 1,
            });
        }
    }
    let (notes, _) = desk.read().await;
    assert!(notes.len() < 20, "{} notes", notes.len());
    let mut rows = 0;
    let mut undecided = [0, 0];
    for note in notes {
        match note {
            Note::Facts { rows: more, .. } => rows += more,
            Note::Undecided { channel, count, .. } => undecided[channel as usize - 1] += count,
            other => assert_eq!(other, Note::Started { position: Lsn(1) }),
        }
    }
    assert_eq!((rows, undecided), (2000, [1000, 1000]));
    desk.close().await;
}

#[tokio::test]
async fn files_are_private_and_say_what_is_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("journal");
    let desk = Desk::open(&dir, 1 << 20);
    desk.read().await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for file in files(&dir) {
        assert_eq!(mode(&file), 0o600);
        let text = std::fs::read(&file).unwrap();
        let line = text.split(|byte| *byte == b'\n').next().unwrap();
        let line = std::str::from_utf8(line).unwrap();
        assert!(line.starts_with("rowcast journal 1: user ids") && line.ends_with("Keep it private."), "{line}");
    }
    desk.close().await;
}

#[tokio::test]
async fn it_is_bounded_in_bytes_and_forgets_the_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let bound = 200 << 10;
    let desk = Desk::open(folder.path(), bound);
    let filter = "x".repeat(500);
    for channel in 0..2000 {
        desk.journal.note(joined(channel, &filter));
        if channel % 100 == 0 {
            assert!(desk.journal.flush().await);
            assert!(size(folder.path()) <= bound, "{}", size(folder.path()));
        }
    }
    let (notes, extent) = desk.read().await;
    assert!(size(folder.path()) <= bound);
    assert!(notes.len() > 50 && notes.len() < 500, "{}", notes.len());
    assert_eq!(notes.last(), Some(&joined(1999, &filter)));
    assert!(!notes.iter().any(|note| matches!(note, Note::Hole { .. })), "the oldest are gone, nothing in between");
    assert_eq!(extent.from, None, "the run's start is gone as well");
    assert!(desk.metrics.journal_bytes.get() as u64 <= bound && desk.metrics.journal_notes.get() == 2001);
    desk.close().await;
}

#[tokio::test]
async fn what_is_too_old_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let config = JournalConfig { age: Duration::from_secs(80), ..JournalConfig::new(folder.path()) };
    let mut segments = segments::Segments::new(config, Arc::new(RealFiles));
    let mut record = Vec::new();
    codec::encode(0, &left(1), &mut record);
    for now in [0, 5_000, 20_000, 60_000] {
        segments.append(&record, now).unwrap();
    }
    assert_eq!(files(folder.path()).len(), 3, "a file is closed after an eighth of the age");
    segments.expire(70_000);
    assert_eq!(files(folder.path()).len(), 3);
    segments.expire(86_000);
    assert_eq!(files(folder.path()).len(), 2);
    segments.expire(200_000);
    assert_eq!(files(folder.path()).len(), 0);
    assert_eq!(segments.bytes(), 0);
}

#[tokio::test]
async fn a_torn_end_is_a_hole_before_what_follows_and_a_crash_is_one_too() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::open(folder.path(), 1 << 20);
    desk.journal.note(left(1));
    desk.journal.note(left(2));
    desk.read().await;
    desk.task.abort();
    let file = files(folder.path()).remove(0);
    let length = file.metadata().unwrap().len();
    std::fs::File::options().write(true).open(&file).unwrap().set_len(length - 3).unwrap();
    assert_eq!(read(&desk.journal).0, [Note::Started { position: Lsn(1) }, left(1)], "what is whole is read");

    let desk = Desk::open(folder.path(), 1 << 20);
    let (notes, _) = desk.read().await;
    assert_eq!(notes[1], left(1));
    assert!(matches!(notes[2], Note::Hole { lost: 0, .. }), "{notes:?}");
    assert_eq!(notes[3], Note::Started { position: Lsn(1) });
    desk.task.abort();
    let _ = desk.task.await;

    // Whole files, but nobody said goodbye: what was noted last may be missing.
    let desk = Desk::open(folder.path(), 1 << 20);
    let (notes, _) = desk.read().await;
    assert!(matches!(notes[4], Note::Hole { .. }), "{notes:?}");
    desk.close().await;
}

#[tokio::test]
async fn a_file_of_another_version_or_one_that_is_gone_is_a_hole() {
    let folder = tempfile::tempdir().unwrap();
    for run in 0..3 {
        let desk = Desk::open(folder.path(), 1 << 20);
        desk.journal.note(left(run));
        desk.close().await;
    }
    let all = files(folder.path());
    let holes = |journal: &Journal| {
        let notes = read(journal).0;
        notes.iter().filter(|note| matches!(note, Note::Hole { .. })).count()
    };
    let (journal, _) =
        Journal::new(JournalConfig::new(folder.path()), Arc::new(RealFiles), Clock::system(), Arc::new(Metrics::new()));
    assert_eq!(holes(&journal), 0);
    let text = std::fs::read(&all[1]).unwrap();
    std::fs::write(&all[1], [b"rowcast journal 9".as_slice(), &text[17..]].concat()).unwrap();
    assert_eq!((holes(&journal), read(&journal).0.len()), (1, 7));
    std::fs::remove_file(&all[1]).unwrap();
    assert_eq!(holes(&journal), 1);
}

#[tokio::test]
async fn a_full_disk_is_counted_and_told_and_over_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(FullDisk::new(Arc::new(RealFiles)));
    let desk = Desk::on(folder.path(), 1 << 20, disk.clone());
    desk.journal.note(left(1));
    assert_eq!(desk.read().await.0.len(), 2);
    disk.set_room(Some(20));
    desk.journal.note(left(2));
    desk.journal.note(left(3));
    assert_eq!(desk.read().await.0.len(), 2, "half a record is none");
    desk.journal.note(left(4));
    desk.journal.flush().await;
    assert_eq!(desk.metrics.journal_lost.get(), 3);
    disk.set_room(None);
    desk.journal.note(left(5));
    let (notes, _) = desk.read().await;
    assert!(matches!(notes[2], Note::Hole { lost: 3, .. }), "{notes:?}");
    assert_eq!(notes[3..], [left(5)]);
    desk.close().await;
}

#[tokio::test]
async fn a_folder_that_can_not_be_made_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let desk = Desk::open(&folder.path().join("file/journal"), 1 << 20);
    desk.journal.note(left(1));
    assert!(desk.journal.flush().await);
    assert!(desk.metrics.journal_lost.get() >= 2);
    desk.close().await;
}

#[tokio::test]
async fn notes_that_the_queue_has_no_room_for_leave_a_hole() {
    let folder = tempfile::tempdir().unwrap();
    let config = JournalConfig::new(folder.path());
    let (clock, metrics) = (Clock::system(), Arc::new(Metrics::new()));
    let (journal, writer) = Journal::new(config, Arc::new(RealFiles), clock, metrics.clone());
    for channel in 0..QUEUE as u64 + 10 {
        journal.note(Note::Expired { channel });
    }
    let drain = Drain::new();
    let stop = drain.clone();
    let task = task::spawn("journal", async move { writer.unwrap().run(stop).await });
    while !journal.flush().await {}
    let (notes, _) = read(&journal);
    let lost: Vec<u64> =
        notes.iter().filter_map(|note| if let Note::Hole { lost, .. } = note { Some(*lost) } else { None }).collect();
    assert_eq!((lost, notes.len(), metrics.journal_lost.get()), (vec![10], QUEUE + 1, 10));
    drain.drain();
    task.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_read_while_it_is_written_and_its_files_removed() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::open(folder.path(), 100 << 10);
    let over = Arc::new(AtomicBool::new(false));
    let (journal, stop) = (desk.journal.clone(), over.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let mut reads = 0;
        while !stop.load(Ordering::Relaxed) || reads == 0 {
            let mut last = None;
            let read = journal.read(&mut |_, note| {
                if let Note::Expired { channel } = note {
                    assert!(last.is_none_or(|last| last + 1 == channel), "{last:?} {channel}");
                    last = Some(channel);
                }
            });
            // A file in the middle that is removed under the reader is an error, and asking again reads again.
            reads += u32::from(read.is_ok());
        }
        reads
    });
    for channel in 0..20_000 {
        desk.journal.note(Note::Expired { channel });
        if channel % 500 == 0 {
            assert!(desk.journal.flush().await);
        }
    }
    over.store(true, Ordering::Relaxed);
    assert!(reading.await.unwrap() > 0);
    desk.close().await;
}

#[tokio::test]
async fn without_a_journal_there_is_no_task_and_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = JournalConfig { bytes: 0, ..JournalConfig::new(folder.path().join("journal")) };
    let (journal, writer) = Journal::new(config, Arc::new(RealFiles), Clock::system(), Arc::new(Metrics::new()));
    assert!(writer.is_none() && !journal.is_on());
    journal.note(left(1));
    assert!(journal.flush().await);
    assert_eq!(read(&journal), (Vec::new(), Extent::default()));
    assert!(!folder.path().join("journal").exists());
}

#[test]
fn a_join_that_is_too_long_is_kept_without_what_it_asked_for() {
    let mut out = Vec::new();
    assert!(!codec::encode(1, &joined(1, &"x".repeat(codec::MAX_PAYLOAD)), &mut out) && out.is_empty());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0usize..200) {
        let _ = codec::decode(&bytes);
        let mut record = Vec::new();
        codec::encode(-5, &joined(1, "id=eq.1"), &mut record);
        prop_assert_eq!(codec::decode(&record), Some((record.len(), -5, joined(1, "id=eq.1"))));
        let cut = cut.min(record.len() - 1);
        prop_assert_eq!(codec::decode(&record[..cut]), None);
        if let Some(first) = bytes.first() {
            let mut other = record.clone();
            other[cut] ^= first;
            prop_assert!(*first == 0 || codec::decode(&other).is_none_or(|(length, ..)| length != record.len()));
        }
    }
}
