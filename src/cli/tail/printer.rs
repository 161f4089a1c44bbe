//! Standard output of `rowcast tail`: whole lines, written by a thread of its own.
//!
//! A terminal that is held, or a pipe nobody reads, blocks a write for as long as it likes; the thread keeps that away from
//! signals. The queue is short, so a slow reader is felt by the relay and not by our memory.

use std::future::pending;
use std::io::{self, BufWriter, Stdout, Write as _};
use std::os::fd::AsFd as _;

use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

/// Lines that wait for the thread.
const QUEUE: usize = 256;

/// Takes lines.
pub(super) struct Printer {
    lines: mpsc::Sender<String>,
    done: oneshot::Receiver<io::Result<()>>,
}

/// What follows from there being nobody to read.
pub(super) struct ReaderGone;

impl Printer {
    /// Starts the thread.
    pub(super) fn stdout() -> Printer {
        let (lines, queue) = mpsc::channel(QUEUE);
        let (ended, done) = oneshot::channel();
        // A write can't be given up; should one never end, the thread ends with the process.
        std::thread::spawn(move || {
            let _ = ended.send(write_all(queue));
        });
        Printer { lines, done }
    }

    /// For handing lines over.
    pub(super) fn lines(&self) -> mpsc::Sender<String> {
        self.lines.clone()
    }

    /// Waits until all is written; every other handle must have been dropped.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.lines);
        match self.done.await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            // Whoever stops reading has had enough, as `head` has.
            _ => Ok(()),
        }
    }
}

fn write_all(mut queue: mpsc::Receiver<String>) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout());
    while let Some(line) = queue.blocking_recv() {
        write_line(&mut out, &line)?;
        while let Ok(line) = queue.try_recv() {
            write_line(&mut out, &line)?;
        }
        out.flush()?;
    }
    Ok(())
}

fn write_line(out: &mut BufWriter<Stdout>, line: &str) -> io::Result<()> {
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")
}

/// Resolves when the reader of a pipe is gone, so that `| head` ends without another line. Never, where the system does not
/// tell: the next write will.
pub(super) async fn reader_gone() -> ReaderGone {
    let watched = io::stdout().as_fd().try_clone_to_owned().and_then(|stdout| {
        // Unchecked: it may be a terminal or a socket as well, and it stays blocking, since others may share it.
        pipe::Sender::from_owned_fd_unchecked(stdout)
    });
    let Ok(watched) = watched else { return pending().await };
    match watched.ready(Interest::ERROR).await {
        Ok(_) => ReaderGone,
        Err(_) => pending().await,
    }
}
