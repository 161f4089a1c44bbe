//! A client's connection once HTTP is over, plain or behind TLS: one half to read, one half to write.
//!
//! Invariants:
//! * A write never waits: what TLS has encrypted and the socket does not take stays in the TLS session, at most
//!   [`MAX_ENCRYPTED`], and until it is out nothing more is accepted.
//! * Both halves of a TLS connection share its session behind one lock, which is never held across an await. So records leave in
//!   the order in which they were encrypted, whoever wrote them.
//!
//! A plain connection pays one branch per system call for this. Rejected: `dyn AsyncRead + AsyncWrite` for both, which would
//! need a task to write; and tokio's `split`, whose lock is also held by a reader that waits.

use std::io::{self, IoSlice, Read as _, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::server::TlsStream;

/// Bytes of a TLS connection that are encrypted and not out. Two full records.
const MAX_ENCRYPTED: usize = 32 * 1024;

/// The whole of it.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The half that the connection's task reads.
pub(super) enum ReadHalf {
    Plain(OwnedReadHalf),
    Tls(OwnedReadHalf, Arc<Session>),
}

/// The half that the outbox writes to. Dropping it half-closes the socket.
pub(super) enum WriteHalf {
    Plain(OwnedWriteHalf),
    Tls(OwnedWriteHalf, Arc<Session>),
}

/// The TLS state of a connection.
pub(super) struct Session(Mutex<ServerConnection>);

impl Session {
    fn lock(&self) -> MutexGuard<'_, ServerConnection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stream {
    pub(super) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Plain(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Plain(read), WriteHalf::Plain(write))
            }
            Stream::Tls(stream) => {
                let (stream, mut session) = stream.into_inner();
                session.set_buffer_limit(Some(MAX_ENCRYPTED));
                let (read, write) = stream.into_split();
                let session = Arc::new(Session(Mutex::new(session)));
                (ReadHalf::Tls(read, session.clone()), WriteHalf::Tls(write, session))
            }
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ReadHalf::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            ReadHalf::Tls(tcp, session) => poll_decrypted(tcp, &mut session.lock(), cx, buf),
        }
    }
}

/// Ends by itself however much comes: the socket's readiness is given out in portions (tokio's coop budget).
fn poll_decrypted(
    tcp: &mut OwnedReadHalf,
    session: &mut ServerConnection,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    loop {
        match session.reader().read(buf.initialize_unfilled()) {
            Ok(size) => {
                buf.advance(size);
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        match session.read_tls(&mut Polled { tcp, cx }) {
            // The end of the stream too: the reader above says whether it was an orderly one.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) => return Poll::Ready(Err(error)),
        }
        // What the session wants to say back (an alert, a key update) goes out with the next write.
        session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    }
}

/// Reads for rustls; a read that would wait has registered the task.
struct Polled<'a, 'b> {
    tcp: &'a mut OwnedReadHalf,
    cx: &'a mut Context<'b>,
}

impl io::Read for Polled<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(bytes);
        match Pin::new(&mut *self.tcp).poll_read(self.cx, &mut buf) {
            Poll::Ready(done) => done.map(|()| buf.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// Writes for rustls what the socket takes.
struct Direct<'a>(&'a OwnedWriteHalf);

impl Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn flush_encrypted(tcp: &OwnedWriteHalf, session: &mut ServerConnection) -> io::Result<()> {
    while session.wants_write() {
        if session.write_tls(&mut Direct(tcp))? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

impl WriteHalf {
    /// Takes what it can; `WouldBlock` if nothing.
    pub(super) fn try_write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            WriteHalf::Plain(tcp) => tcp.try_write_vectored(parts),
            WriteHalf::Tls(tcp, session) => {
                let mut session = session.lock();
                flush_encrypted(tcp, &mut session)?;
                let taken = session.writer().write_vectored(parts)?;
                match flush_encrypted(tcp, &mut session) {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                    // What is left is told by `try_flush`, or by the next write.
                    _ => Ok(taken),
                }
            }
        }
    }

    /// `WouldBlock` while something that was taken is not out.
    pub(super) fn try_flush(&self) -> io::Result<()> {
        match self {
            WriteHalf::Plain(_) => Ok(()),
            WriteHalf::Tls(tcp, session) => flush_encrypted(tcp, &mut session.lock()),
        }
    }

    /// Resolves when the socket may take something.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            WriteHalf::Plain(tcp) | WriteHalf::Tls(tcp, _) => tcp.writable().await,
        }
    }

    /// The last of what is said, where TLS has something to say: without it the peer can't tell the end from a cut.
    pub(super) fn say_goodbye(&self) {
        if let WriteHalf::Tls(tcp, session) = self {
            let mut session = session.lock();
            session.send_close_notify();
            // A socket that is full or gone is closed without it.
            let _ = flush_encrypted(tcp, &mut session);
        }
    }
}
