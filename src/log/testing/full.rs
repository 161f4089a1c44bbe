//! A disk with a limit.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::log::files::{Files, Lock, LogFile};

/// Passes everything on to another layer, but writes only so many bytes: the write that crosses the limit is done in part
/// and then fails with `StorageFull`, as every further one does until there is room again. Overwriting counts like extending.
pub struct FullDisk {
    inner: Arc<dyn Files>,
    limits: Arc<Mutex<Limits>>,
}

#[derive(Default)]
struct Limits {
    /// Bytes that may still be written; `None` is no limit.
    room: Option<u64>,
    truncate_fails: bool,
}

impl FullDisk {
    /// Without a limit at first.
    pub fn new(inner: Arc<dyn Files>) -> FullDisk {
        FullDisk { inner, limits: Arc::default() }
    }

    /// Lets so many more bytes be written; `None` for any number.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).room = bytes;
    }

    /// Whether cutting a file fails too.
    pub fn set_truncate_fails(&self, fails: bool) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).truncate_fails = fails;
    }

    fn wrap(&self, inner: Arc<dyn LogFile>) -> Arc<dyn LogFile> {
        Arc::new(LimitedFile { inner, limits: self.limits.clone() })
    }
}

impl Files for FullDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Lock> {
        self.inner.lock(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(self.wrap(self.inner.create(path)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(self.wrap(self.inner.open(path)?))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }
}

struct LimitedFile {
    inner: Arc<dyn LogFile>,
    limits: Arc<Mutex<Limits>>,
}

impl LogFile for LimitedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(room) = &mut limits.room else { return self.inner.write_at(bytes, offset) };
        let fits = bytes.len().min(usize::try_from(*room).unwrap_or(usize::MAX));
        *room -= fits as u64;
        self.inner.write_at(&bytes[..fits], offset)?;
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }
    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }
    fn truncate(&self, length: u64) -> io::Result<()> {
        if self.limits.lock().unwrap_or_else(PoisonError::into_inner).truncate_fails {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.truncate(length)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
}
