//! A disk in memory that keeps what was not synced apart, and loses it at the crash.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::log::files::{Files, Lock, LogFile};

/// Writes reach the disk in units of this many bytes.
const SECTOR: usize = 512;

/// What a crash keeps of the writes, truncations, creations and removals that no sync had covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Torn {
    /// Nothing.
    Lost,
    /// Of each file, the operations in order until so many bytes of them are written; and all names.
    Prefix(usize),
    /// Any sector of any write or none, in no order, and any name, by a random generator with this seed.
    Scattered(u64),
}

/// A file system in memory. What is read back includes unsynced writes, as with a page cache; [`DiscardingFiles::crash`]
/// throws them away. Clones share the disk.
#[derive(Clone, Default)]
pub struct DiscardingFiles {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Default)]
struct Disk {
    names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    durable_names: BTreeMap<PathBuf, Arc<Mutex<Inode>>>,
    unsynced_names: Vec<PathBuf>,
    locks: BTreeSet<PathBuf>,
    /// Changes at each crash: handles and locks from before are dead.
    boot: u64,
    /// Operations that still succeed; then the machine is off.
    operations_left: Option<u64>,
    failing_syncs: u32,
    /// Operations that succeed before the failing ones, and how many fail.
    faults: (u64, u64),
}

#[derive(Default)]
struct Inode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Operation>,
}

enum Operation {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

fn apply(bytes: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write(at, written) => {
            let end = at + written.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[*at..end].copy_from_slice(written);
        }
        Operation::Truncate(length) => bytes.resize(*length, 0),
    }
}

impl Inode {
    fn do_it(&mut self, operation: Operation) {
        apply(&mut self.cached, &operation);
        self.unsynced.push(operation);
    }

    /// What the disk holds after the crash.
    fn survivors(&self, torn: Torn, random: &mut SmallRng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let mut left = match torn {
            Torn::Prefix(count) => count,
            Torn::Lost | Torn::Scattered(_) => 0,
        };
        for operation in &self.unsynced {
            match (torn, operation) {
                (Torn::Lost, _) => {}
                (Torn::Prefix(_), Operation::Write(at, written)) => {
                    let kept = left.min(written.len());
                    apply(&mut bytes, &Operation::Write(*at, written[..kept].to_vec()));
                    left -= kept;
                    if kept < written.len() {
                        break;
                    }
                }
                (Torn::Prefix(_), Operation::Truncate(_)) => apply(&mut bytes, operation),
                (Torn::Scattered(_), Operation::Write(at, written)) => {
                    for (i, sector) in written.chunks(SECTOR).enumerate().filter(|_| random.random()) {
                        apply(&mut bytes, &Operation::Write(at + i * SECTOR, sector.to_vec()));
                    }
                }
                (Torn::Scattered(_), Operation::Truncate(_)) => {
                    if random.random() {
                        apply(&mut bytes, operation);
                    }
                }
            }
        }
        bytes
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiscardingFiles {
    /// An empty disk.
    pub fn new() -> DiscardingFiles {
        DiscardingFiles::default()
    }

    /// The power fails: what no sync covered is lost, but for `torn`. Handles and locks from before are dead.
    pub fn crash(&self, torn: Torn) {
        let mut disk = lock(&self.disk);
        let mut random = SmallRng::seed_from_u64(match torn {
            Torn::Scattered(seed) => seed,
            Torn::Lost | Torn::Prefix(_) => 0,
        });
        let mut names = std::mem::take(&mut disk.durable_names);
        for path in std::mem::take(&mut disk.unsynced_names) {
            let kept = match torn {
                Torn::Lost => false,
                Torn::Prefix(_) => true,
                Torn::Scattered(_) => random.random(),
            };
            match disk.names.get(&path) {
                Some(inode) if kept => drop(names.insert(path, inode.clone())),
                None if kept => drop(names.remove(&path)),
                Some(_) | None => {}
            }
        }
        for inode in names.values_mut() {
            let bytes = lock(inode).survivors(torn, &mut random);
            *inode = Arc::new(Mutex::new(Inode { cached: bytes.clone(), durable: bytes, unsynced: Vec::new() }));
        }
        disk.names = names.clone();
        disk.durable_names = names;
        disk.locks.clear();
        disk.boot += 1;
        disk.operations_left = None;
        disk.failing_syncs = 0;
        disk.faults = (0, 0);
    }

    /// After so many more operations that change the disk, all fail, as the last thing before a crash; `None` ends that.
    pub fn halt_after(&self, operations: Option<u64>) {
        lock(&self.disk).operations_left = operations;
    }

    /// After `skip` more operations that change the disk, `count` of them fail; then all is well again. A sync that fails
    /// does what [`DiscardingFiles::fail_syncs`] says.
    pub fn fail_operations(&self, skip: u64, count: u64) {
        lock(&self.disk).faults = (skip, count);
    }

    /// The next so many syncs of files fail, and, as Linux does it, forget that the bytes were dirty: they stay readable, and
    /// a later sync returns Ok without them.
    pub fn fail_syncs(&self, count: u32) {
        lock(&self.disk).failing_syncs = count;
    }

    /// The file's bytes as a reader sees them.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        lock(&self.disk).names.get(path).map(|inode| lock(inode).cached.clone())
    }

    /// Replaces the file, durably, whatever it was: damage, or a file that is not the log's.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let inode = Arc::new(Mutex::new(Inode { cached: bytes.clone(), durable: bytes, unsynced: Vec::new() }));
        let mut disk = lock(&self.disk);
        disk.names.insert(path.to_owned(), inode.clone());
        disk.durable_names.insert(path.to_owned(), inode);
    }

    /// The names in the folder, as a reader sees them.
    pub fn names(&self, dir: &Path) -> Vec<String> {
        let disk = lock(&self.disk);
        let inside = disk.names.keys().filter(|path| path.parent() == Some(dir));
        inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
    }

    fn handle(&self, boot: u64, inode: Arc<Mutex<Inode>>) -> Arc<dyn LogFile> {
        Arc::new(Handle { disk: self.disk.clone(), boot, inode })
    }
}

impl Disk {
    fn changing(&mut self) -> io::Result<()> {
        match &mut self.operations_left {
            Some(0) => return Err(io::Error::other("the machine is off")),
            Some(left) => *left -= 1,
            None => {}
        }
        match &mut self.faults {
            (0, 0) => Ok(()),
            (0, count) => {
                *count -= 1;
                Err(io::Error::other("an injected fault"))
            }
            (skip, _) => {
                *skip -= 1;
                Ok(())
            }
        }
    }
}

impl Files for DiscardingFiles {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Lock> {
        let mut disk = lock(&self.disk);
        if !disk.locks.insert(path.to_owned()) {
            return Ok(Lock::Held { holder: Some(std::process::id()) });
        }
        Ok(Lock::Ours(Box::new(Guard { disk: self.disk.clone(), path: path.to_owned(), boot: disk.boot })))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Ok(self.names(dir))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let mut disk = lock(&self.disk);
        disk.changing()?;
        let inode = match disk.names.get(path) {
            Some(inode) => {
                lock(inode).do_it(Operation::Truncate(0));
                inode.clone()
            }
            None => {
                let inode = Arc::<Mutex<Inode>>::default();
                disk.names.insert(path.to_owned(), inode.clone());
                disk.unsynced_names.push(path.to_owned());
                inode
            }
        };
        Ok(self.handle(disk.boot, inode))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let disk = lock(&self.disk);
        let inode = disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(disk.boot, inode.clone()))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.changing()?;
        disk.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
        disk.unsynced_names.push(path.to_owned());
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.changing()?;
        let unsynced = std::mem::take(&mut disk.unsynced_names);
        let (here, elsewhere) = unsynced.into_iter().partition(|path| path.parent() == Some(dir));
        disk.unsynced_names = elsewhere;
        for path in Vec::from_iter::<Vec<PathBuf>>(here) {
            match disk.names.get(&path).cloned() {
                Some(inode) => drop(disk.durable_names.insert(path, inode)),
                None => drop(disk.durable_names.remove(&path)),
            }
        }
        Ok(())
    }
}

struct Guard {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
    boot: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut disk = lock(&self.disk);
        if disk.boot == self.boot {
            disk.locks.remove(&self.path);
        }
    }
}

struct Handle {
    disk: Arc<Mutex<Disk>>,
    boot: u64,
    inode: Arc<Mutex<Inode>>,
}

impl Handle {
    fn changing(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = lock(&self.disk);
        if disk.boot != self.boot {
            return Err(io::Error::other("the machine went off since the file was opened"));
        }
        disk.changing()?;
        Ok(disk)
    }
}

impl LogFile for Handle {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _disk = self.changing()?;
        lock(&self.inode).do_it(Operation::Write(offset as usize, bytes.to_vec()));
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let inode = lock(&self.inode);
        let rest = usize::try_from(offset).ok().and_then(|at| inode.cached.get(at..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(lock(&self.inode).cached.len() as u64)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let _disk = self.changing()?;
        lock(&self.inode).do_it(Operation::Truncate(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let disk = self.changing();
        let mut inode = lock(&self.inode);
        let unsynced = std::mem::take(&mut inode.unsynced);
        let mut disk = disk?;
        if disk.failing_syncs > 0 {
            disk.failing_syncs -= 1;
            return Err(io::Error::other("write-back failed"));
        }
        for operation in &unsynced {
            apply(&mut inode.durable, operation);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_a_synced_file() -> (DiscardingFiles, Arc<dyn LogFile>) {
        let files = DiscardingFiles::new();
        let file = files.create(Path::new("/d/a")).expect("create");
        file.write_at(b"synced", 0).expect("write");
        file.sync_data().expect("sync");
        files.sync_dir(Path::new("/d")).expect("sync");
        file.write_at(b"lost", 6).expect("write");
        (files, file)
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_no_more_than_the_torn_part_of_the_rest() {
        for (torn, expected) in
            [(Torn::Lost, &b"synced"[..]), (Torn::Prefix(2), b"syncedlo"), (Torn::Prefix(99), b"syncedlost")]
        {
            let (files, file) = disk_with_a_synced_file();
            assert_eq!(files.bytes(Path::new("/d/a")).as_deref(), Some(&b"syncedlost"[..]));
            files.crash(torn);
            assert_eq!(files.bytes(Path::new("/d/a")).as_deref(), Some(expected));
            assert!(file.write_at(b"x", 0).is_err(), "a handle survived the crash");
        }
    }

    #[test]
    fn names_that_were_not_synced_vanish_and_removed_ones_come_back() {
        let (files, _) = disk_with_a_synced_file();
        files.create(Path::new("/d/b")).expect("create").sync_data().expect("sync");
        files.remove(Path::new("/d/a")).expect("remove");
        files.crash(Torn::Lost);
        assert_eq!(files.names(Path::new("/d")), ["a"]);
    }

    #[test]
    fn a_failed_sync_forgets_what_it_was_asked_for() {
        let (files, file) = disk_with_a_synced_file();
        files.fail_syncs(1);
        file.sync_data().expect_err("fails");
        file.sync_data().expect("claims to succeed");
        assert_eq!(files.bytes(Path::new("/d/a")).as_deref(), Some(&b"syncedlost"[..]));
        files.crash(Torn::Prefix(99));
        assert_eq!(files.bytes(Path::new("/d/a")).as_deref(), Some(&b"synced"[..]));
    }
}
