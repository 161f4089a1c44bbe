//! Gets the bytes of a key set: from a file, or with one HTTP request on a connection of its own.
//!
//! Invariants:
//! * Never more than [`MAX_BYTES`] in memory, whatever is announced: whoever answers may be hostile or broken.
//! * One deadline for everything from the name's lookup to the last byte.
//! * Redirects are not followed: where the keys come from is the operator's decision, not the server's.
//! * Only Mozilla's roots, or only the configured authority's, vouch for the server.
//!
//! Rejected: an HTTP client library. One request in ten minutes needs no pool, no cookies and no proxy settings from the
//! environment that would move the trust elsewhere.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;

use super::location::{KeySetLocation, WebAddress};
use crate::error::{Fault, Remedy};

/// The largest key set. A real one has a few kilobytes.
pub(super) const MAX_BYTES: usize = 1 << 20;
/// The largest file of authorities: a system's whole bundle has a quarter of a megabyte.
const MAX_CA_BYTES: usize = 8 << 20;
/// For one of several addresses, so that a dead one doesn't use up the time of the next.
const CONNECT: Duration = Duration::from_millis(1500);

/// Why there is no key set. Each text goes on from the location's name.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file.
    #[error("the file can't be read")]
    Read(#[source] io::Error),
    /// A folder, a pipe or a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// More than the limit.
    #[error("it is larger than 1 MiB")]
    TooLarge,
    /// Everything together took too long.
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
    /// No address, or none that answers.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The handshake, or the certificate.
    #[error("no TLS session")]
    Tls(#[source] io::Error),
    /// What the server sent is not HTTP, or ended early.
    #[error("the answer is broken")]
    Http(#[source] hyper::Error),
    /// Something else than 200.
    #[error("the server answered {0}")]
    Status(u16),
    /// Another address is named.
    #[error("the server answered {0}, and redirects are not followed")]
    Redirect(u16),
    /// The file of authorities.
    #[error("the authorities in {} can't be used: {reason}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Got, but it is none.
    #[error("it is no key set: {0}")]
    NoKeySet(&'static str),
}

impl Fault for FetchError {
    fn remedy(&self) -> Remedy {
        match self {
            FetchError::Read(_) | FetchError::NotAFile | FetchError::Authorities { .. } => Remedy::Operator,
            _ => Remedy::Retry,
        }
    }

    fn advice(&self) -> String {
        match self {
            FetchError::Read(_) | FetchError::NotAFile => {
                "Set JWKS_URL to a readable file with a JSON object {\"keys\": [...]}, or to an https address."
            }
            FetchError::Authorities { .. } => {
                "Set ROWCAST_JWKS_CA to a PEM file with the certificate of the authority that signed the key server's."
            }
            FetchError::Tls(_) => {
                "If a private authority signed the key server's certificate, give the authority's own as a PEM file in \
                 ROWCAST_JWKS_CA."
            }
            FetchError::Redirect(_) => "Set JWKS_URL to the address that it leads to in the end.",
            FetchError::Connect(_) | FetchError::Timeout(_) => {
                "Check JWKS_URL and that this machine may connect there; ROWCAST_STARTUP_TIMEOUT is how long to wait for it."
            }
            FetchError::TooLarge | FetchError::Http(_) | FetchError::Status(_) | FetchError::NoKeySet(_) => {
                "Check that JWKS_URL is the address of a key set, such as https://issuer/.well-known/jwks.json."
            }
        }
        .into()
    }
}

/// The bytes. `ca` is a PEM file that replaces the built-in roots.
pub(super) async fn fetch(
    location: &KeySetLocation,
    ca: Option<&Path>,
    timeout: Duration,
) -> Result<Vec<u8>, FetchError> {
    let fetching = async {
        match location {
            KeySetLocation::File(path) => read(path, MAX_BYTES).await,
            KeySetLocation::Web(address) => download(address, ca).await,
        }
    };
    tokio::time::timeout(timeout, Box::pin(fetching)).await.unwrap_or(Err(FetchError::Timeout(timeout)))
}

async fn read(path: &Path, limit: usize) -> Result<Vec<u8>, FetchError> {
    // Looked at first: opening a pipe would wait for its writer.
    if !tokio::fs::metadata(path).await.map_err(FetchError::Read)?.is_file() {
        return Err(FetchError::NotAFile);
    }
    let file = tokio::fs::File::open(path).await.map_err(FetchError::Read)?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).await.map_err(FetchError::Read)?;
    if bytes.len() > limit { Err(FetchError::TooLarge) } else { Ok(bytes) }
}

async fn download(address: &WebAddress, ca: Option<&Path>) -> Result<Vec<u8>, FetchError> {
    if !address.tls() {
        return request(connect(address).await?, address).await;
    }
    let config = tls(ca).await?;
    let name = ServerName::try_from(address.host().to_owned());
    let name =
        name.map_err(|_| FetchError::Tls(io::Error::other("the host is no name that a certificate may have")))?;
    let stream = connect(address).await?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(FetchError::Tls)?;
    request(stream, address).await
}

async fn connect(address: &WebAddress) -> Result<TcpStream, FetchError> {
    let found = tokio::net::lookup_host((address.host(), address.port())).await.map_err(FetchError::Connect)?;
    // `localhost` is whatever the resolver says.
    let allowed: Vec<SocketAddr> = found.filter(|at| address.tls() || at.ip().is_loopback()).collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address that may be used");
    for at in allowed {
        match tokio::time::timeout(CONNECT, TcpStream::connect(at)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(FetchError::Connect(last))
}

/// Made for each request, so that a renewed authority is noticed.
async fn tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>, FetchError> {
    let mut roots = RootCertStore::empty();
    match ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            let unusable = |reason: String| FetchError::Authorities { path: path.to_owned(), reason };
            let pem = read(path, MAX_CA_BYTES).await.map_err(|error| unusable(crate::error::chain(&error)))?;
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let certificates = certificates.map_err(|_| unusable("not a PEM file".into()))?;
            // A system's bundle may hold some that this library doesn't take; one that is needed and missing shows itself.
            let (taken, _) = roots.add_parsable_certificates(certificates);
            if taken == 0 {
                return Err(unusable("no certificate in it".into()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let versions = versions.map_err(|error| FetchError::Tls(io::Error::other(error)))?;
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn request<S>(stream: S, address: &WebAddress) -> Result<Vec<u8>, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(FetchError::Http)?;
    let request = Request::get(address.target())
        .header(header::HOST, address.authority())
        .header(header::ACCEPT, "application/json, application/jwk-set+json")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::USER_AGENT, concat!("rowcast/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(String::new());
    let mut answer = pin!(async {
        // All parts were valid when the address was read.
        let request = request.map_err(|_| FetchError::NoKeySet("its address can't be asked for"))?;
        body(sender.send_request(request).await.map_err(FetchError::Http)?).await
    });
    tokio::select! {
        answered = &mut answer => answered,
        // The connection moves the bytes. What it moved before its end is still there to be read; its error is the answer's.
        _ = pin!(connection) => answer.await,
    }
}

async fn body(response: Response<Incoming>) -> Result<Vec<u8>, FetchError> {
    let status = response.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect(status.as_u16()));
    }
    if status.as_u16() != 200 {
        return Err(FetchError::Status(status.as_u16()));
    }
    let mut incoming = response.into_body();
    if incoming.size_hint().lower() > MAX_BYTES as u64 {
        return Err(FetchError::TooLarge);
    }
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut incoming).poll_frame(context)).await {
        let Ok(data) = frame.map_err(FetchError::Http)?.into_data() else { continue };
        if bytes.len() + data.len() > MAX_BYTES {
            return Err(FetchError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
