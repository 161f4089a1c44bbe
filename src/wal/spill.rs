//! A transaction too large for memory, in a file without a name.
//!
//! The file is unlinked right after it is opened, so the kernel frees it whenever the last reader is gone, also after a
//! crash, and nobody else can open it. Rejected: a named file removed on drop, which a crash leaves behind; and a copy
//! in the log only, since the log takes whole transactions. Readers share the one descriptor and keep their own offset
//! (`pread`), so the log and a replay can read at the same time.
//!
//! Writing is done on the blocking pool while the stream goes on; at most one block is in flight.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::change::SpilledBody;

use super::WalError;

const PREFIX: &str = "rowcast-spill-";

/// A disk that does not take one block in this time is broken, and the socket must not stay unread for its sake.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// Where spill files are made, and how; the latter so that a test can have a full disk.
#[derive(Debug, Clone)]
pub(super) struct SpillPlace {
    pub(super) dir: PathBuf,
    pub(super) create: fn(&Path) -> io::Result<File>,
}

impl SpillPlace {
    pub(super) fn new(dir: &Path) -> SpillPlace {
        SpillPlace { dir: dir.into(), create: create_nameless }
    }
}

/// Makes the directory, if absent, and a file in it that only this process can reach.
fn create_nameless(dir: &Path) -> io::Result<File> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(format!("{PREFIX}{:016x}", rand::random::<u64>()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    match fs::remove_file(&path) {
        // Another relay that starts may have swept it away in between.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(file),
    }
}

/// Removes what a crash between the making of a file and its unlinking left: an empty file. Best effort.
pub(super) fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// One transaction's file while it is written.
#[derive(Debug)]
pub(super) struct Spill {
    place: SpillPlace,
    file: Option<File>,
    written: u64,
    job: Option<Job>,
}

#[derive(Debug)]
struct Job {
    handle: JoinHandle<io::Result<File>>,
    length: u64,
    deadline: Instant,
}

impl Spill {
    /// No file yet; the first block makes it.
    pub(super) fn new(place: SpillPlace) -> Spill {
        Spill { place, file: None, written: 0, job: None }
    }

    /// Whether a block is being written.
    pub(super) fn is_writing(&self) -> bool {
        self.job.is_some()
    }

    /// Starts to append a block. The block before must have been [`Spill::written`].
    pub(super) fn append(&mut self, block: Vec<u8>) {
        debug_assert!(self.job.is_none(), "two blocks in flight");
        let length = block.len() as u64;
        let (file, place) = (self.file.take(), self.place.clone());
        let handle = tokio::task::spawn_blocking(move || {
            let mut file = match file {
                Some(file) => file,
                None => (place.create)(&place.dir)?,
            };
            file.write_all(&block)?;
            Ok(file)
        });
        self.job = Some(Job { handle, length, deadline: Instant::now() + WRITE_DEADLINE });
    }

    /// Waits until the block in flight, if any, is in the file. Cancel-safe: the block goes on being written.
    pub(super) async fn written(&mut self) -> Result<(), WalError> {
        let Some(job) = &mut self.job else { return Ok(()) };
        let outcome = match timeout_at(job.deadline, &mut job.handle).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(join)) => Err(io::Error::other(join)),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {WRITE_DEADLINE:?}"))),
        };
        let length = job.length;
        self.job = None;
        let file = outcome.map_err(|source| WalError::Spill { dir: self.place.dir.clone(), source })?;
        self.file = Some(file);
        self.written += length;
        Ok(())
    }

    /// The whole file as a transaction's body; `None` if nothing was ever written or a block still is.
    pub(super) fn into_body(self) -> Option<Arc<dyn SpilledBody>> {
        match (self.file, self.job) {
            (Some(file), None) => Some(Arc::new(SpillFile { file: Arc::new(file), length: self.written })),
            _ => None,
        }
    }
}

/// A finished spill file; its space is freed when the last clone and the last reader are gone.
struct SpillFile {
    file: Arc<File>,
    length: u64,
}

impl SpilledBody for SpillFile {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let reader = Reader { file: self.file.clone(), at: 0 };
        Ok(Box::new(BufReader::with_capacity(256 << 10, reader)))
    }

    fn len(&self) -> u64 {
        self.length
    }
}

struct Reader {
    file: Arc<File>,
    at: u64,
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
pub(super) mod broken {
    use super::*;

    /// A disk without space.
    pub(crate) fn full_disk() -> SpillPlace {
        SpillPlace { dir: "/dev".into(), create: |_| OpenOptions::new().write(true).open("/dev/full") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Fault as _, Remedy};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    async fn spilled(dir: &Path, blocks: &[&[u8]]) -> Arc<dyn SpilledBody> {
        let mut spill = Spill::new(SpillPlace::new(dir));
        for block in blocks {
            spill.append(block.to_vec());
            spill.written().await.expect("written");
        }
        spill.into_body().expect("a body")
    }

    fn all(reader: &mut dyn Read) -> Vec<u8> {
        let mut out = Vec::new();
        reader.read_to_end(&mut out).expect("read");
        out
    }

    #[tokio::test]
    async fn what_was_written_is_read_by_several_readers_at_once() {
        let dir = tempfile::tempdir().expect("dir");
        let body = spilled(&dir.path().join("made"), &[b"one", b"", b"two"]).await;
        assert_eq!(body.len(), 6);
        let (mut first, mut second) = (body.open().expect("open"), body.open().expect("open"));
        let mut head = [0; 2];
        first.read_exact(&mut head).expect("read");
        assert_eq!(all(&mut *second), b"onetwo");
        drop(body);
        assert_eq!(all(&mut *first), b"etwo", "a reader outlives the body");
    }

    #[tokio::test]
    async fn nobody_else_can_find_or_open_the_file() {
        let dir = tempfile::tempdir().expect("dir");
        let spill_dir = dir.path().join("spill");
        let file = create_nameless(&spill_dir).expect("created");
        let meta = file.metadata().expect("metadata");
        assert_eq!((meta.nlink(), meta.mode() & 0o777), (0, 0o600));
        assert_eq!(fs::read_dir(&spill_dir).expect("dir").count(), 0);
        assert_eq!(fs::metadata(&spill_dir).expect("dir").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn only_our_own_leftovers_are_swept() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["rowcast-spill-0123", "rowcast.segment", "other"] {
            fs::write(dir.path().join(name), b"").expect("made");
        }
        sweep(dir.path());
        sweep(&dir.path().join("absent"));
        let mut left: Vec<_> = fs::read_dir(dir.path()).expect("dir").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["other", "rowcast.segment"]);
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_to_retry_that_says_where() {
        let mut spill = Spill::new(broken::full_disk());
        spill.append(b"block".to_vec());
        let error = spill.written().await.expect_err("no space");
        assert_eq!((error.remedy(), error.label()), (Remedy::Retry, "spill"));
        assert!(error.advice().contains("/dev"), "{}", error.advice());
        assert!(spill.into_body().is_none());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_can_be_taken_up_again() {
        let dir = tempfile::tempdir().expect("dir");
        let mut spill = Spill::new(SpillPlace::new(dir.path()));
        spill.append(vec![7; 1 << 20]);
        drop(futures_util::FutureExt::now_or_never(spill.written()));
        spill.written().await.expect("written");
        assert_eq!(spill.into_body().expect("a body").len(), 1 << 20);
    }
}
