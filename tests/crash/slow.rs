//! A disk whose syncs take as long as those of a real one, so that there always is something that is written and not synced.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rowcast::log::{Files, Lock, LogFile};

/// The longest sync.
const SYNC: Duration = Duration::from_millis(40);

/// Passes everything on; only `sync_data` takes its time.
pub(super) struct SlowFiles(pub(super) Arc<dyn Files>);

struct SlowFile(Arc<dyn LogFile>);

fn wait() {
    thread::sleep(SYNC.mul_f64(rand::random()));
}

impl Files for SlowFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.create_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Lock> {
        self.0.lock(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(SlowFile(self.0.create(path)?)))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(SlowFile(self.0.open(path)?)))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
}

impl LogFile for SlowFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }
    /// Whether what is written during a sync is in it or not depends on the disk.
    fn sync_data(&self) -> io::Result<()> {
        if rand::random() {
            wait();
            return self.0.sync_data();
        }
        let synced = self.0.sync_data();
        wait();
        synced
    }
}
