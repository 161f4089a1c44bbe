//! The file layer: all that the log asks of a file system, so that a test can stand in for a disk that crashes or is full.
//!
//! Invariants of an implementation:
//! * A write is positioned and whole, or an error; after an error any part of it may be there.
//! * Nothing is durable before `sync_data` (a file's bytes and length) or `sync_dir` (names) returned Ok.
//! * An open file stays readable after its name is removed.
//!
//! Rejected: memory maps (a full disk or a truncated file kills the process), and O_DIRECT (the page cache is what lets a
//! lagging reader be cheap).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A file system, as far as the log needs one. Blocking.
pub trait Files: Send + Sync {
    /// Creates the folder (mode 0700) and its missing parents; their names are durable when it returns.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the exclusive lock that the file at `path` stands for, creating it (mode 0600). Doesn't wait.
    fn lock(&self, path: &Path) -> io::Result<Lock>;
    /// Names of the files in the folder, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Creates the file (mode 0600), or empties it if it is there.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>>;
    /// Removes the name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in the folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. Blocking; may be used from several threads at once.
pub trait LogFile: Send + Sync {
    /// Writes all of `bytes` at the offset, extending the file if need be.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Reads some bytes; 0 means the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Cuts the file to this length.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Makes the bytes and the length durable.
    fn sync_data(&self) -> io::Result<()>;
}

/// What came of an attempt to lock.
pub enum Lock {
    /// It is ours until this is dropped.
    Ours(Box<dyn Send + Sync>),
    /// Somebody else has it.
    Held {
        /// Their process id, if they wrote it down.
        holder: Option<u32>,
    },
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealFiles;

impl Files for RealFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for created in missing {
            let parent = created.parent().filter(|p| !p.as_os_str().is_empty());
            self.sync_dir(parent.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Lock> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                // The process id is for the error message of the next one only; the lock is the flock, and a full disk is
                // no reason not to open.
                let pid = format!("{:<10}", std::process::id());
                if let Err(error) = lock.write_all_at(pid.as_bytes(), 0) {
                    tracing::debug!(%error, "cannot write our process id into the lock file");
                }
                Ok(Lock::Ours(Box::new(lock)))
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                Ok(Lock::Held { holder: text.trim().parse().ok() })
            }
            Err((_, errno)) => Err(errno.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            // A name that isn't UTF-8 isn't ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        let mut options = OpenOptions::new();
        Ok(Arc::new(options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl LogFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match std::os::unix::fs::FileExt::read_at(self, buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn folders_and_files_are_private_and_the_lock_names_its_holder() {
        let base = tempfile::tempdir().expect("tempdir");
        let dir = base.path().join("a/b");
        RealFiles.create_dir(&dir).expect("create");
        RealFiles.create_dir(&dir).expect("again");
        let mode = |path: &Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        RealFiles.create(&dir.join("x")).expect("file");
        assert_eq!(mode(&dir.join("x")), 0o600);

        let lock = dir.join("lock");
        let Lock::Ours(guard) = RealFiles.lock(&lock).expect("lock") else { panic!("held") };
        assert_eq!(mode(&lock), 0o600);
        let Lock::Held { holder } = RealFiles.lock(&lock).expect("lock") else { panic!("taken twice") };
        assert_eq!(holder, Some(std::process::id()));
        drop(guard);
        assert!(matches!(RealFiles.lock(&lock).expect("lock"), Lock::Ours(_)));
    }
}
