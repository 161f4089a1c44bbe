//! TLS for clients: certificate and key from two files, looked at again every few seconds.
//!
//! Invariants:
//! * A pair that can't be used never takes the place of one that can: files are read when they have stopped changing, and what
//!   is wrong with them is said once.
//! * A new pair is for new connections; those that are open keep what they have.
//! * TLS 1.2 at least; HTTP/1.1 is all that is offered, since WebSocket is all that it is for.
//!
//! Rejected: a signal for the reload, which whoever renews certificates would have to be taught; and a file watcher, which
//! misses what Kubernetes does with its symbolic links.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, info};

use crate::error::{Fault, Remedy, chain};
use crate::metrics::Metrics;
use crate::task::Drain;

/// Where certificate and key are. PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and an authority that clients know.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Why they can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One is no PEM file that can be read.
    #[error("{setting}={} can't be read as PEM", path.display())]
    Unreadable {
        /// `ROWCAST_TLS_CERT` or `ROWCAST_TLS_KEY`.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// There is no certificate in the file.
    #[error("ROWCAST_TLS_CERT={} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// Each can be read, but they don't work together.
    #[error("ROWCAST_TLS_CERT and ROWCAST_TLS_KEY can't be used together")]
    Unusable(#[source] rustls::Error),
}

impl Fault for TlsError {
    fn remedy(&self) -> Remedy {
        Remedy::Operator
    }

    fn advice(&self) -> String {
        match self {
            TlsError::Unreadable { setting: "ROWCAST_TLS_KEY", .. } => {
                "Name a PEM file with an unencrypted private key that the relay's user may read.".into()
            }
            TlsError::Unreadable { .. } | TlsError::Empty(_) => {
                "Name a PEM file with the certificate first and the intermediate ones after it (Let's Encrypt calls it \
                 fullchain.pem)."
                    .into()
            }
            TlsError::Unusable(_) => {
                "The key must be the one that the first certificate in the file was made for.".into()
            }
        }
    }
}

/// What tells that a file is another one than before.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// The pair in use.
pub struct Tls {
    files: TlsFiles,
    poll: Duration,
    metrics: Arc<Metrics>,
    current: RwLock<Arc<ServerConfig>>,
    /// Of the files when they were read first.
    loaded: Stamp,
}

impl Tls {
    /// Reads the files. `poll`: between two looks at them. Blocks for as long as the disk takes.
    pub fn load(files: TlsFiles, poll: Duration, metrics: Arc<Metrics>) -> Result<Tls, TlsError> {
        // Before they are read: what changes in between is read again.
        let loaded = stamp(&files);
        let current = RwLock::new(read(&files)?);
        Ok(Tls { files, poll, metrics, current, loaded })
    }

    /// The handshake, within the deadline; `None` if there was none.
    pub(super) async fn accept(&self, stream: TcpStream, deadline: Duration) -> Option<Box<TlsStream<TcpStream>>> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let refused = match tokio::time::timeout(deadline, TlsAcceptor::from(config).accept(stream)).await {
            Ok(Ok(stream)) => return Some(Box::new(stream)),
            Ok(Err(error)) => {
                debug!(%error, "a TLS handshake failed");
                "failed"
            }
            Err(_) => "timeout",
        };
        self.metrics.tls_handshake_failures.get_or_create(&[("reason", refused)]).inc();
        None
    }

    /// Takes new files into use, until the drain.
    pub(super) async fn keep(self: Arc<Tls>, drain: &Drain) {
        let (mut tried, mut seen) = (self.loaded, self.loaded);
        loop {
            tokio::select! {
                () = drain.draining() => return,
                () = tokio::time::sleep(self.poll) => {}
            }
            let tls = self.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let now = stamp(&tls.files);
                // Half of a renewal is no mistake: it is read when both files have been the same twice.
                let settled = now == seen && now != tried;
                (now, settled.then(|| read(&tls.files)))
            });
            // It can't panic, and is not cancelled but by the end of the runtime.
            let Ok((now, result)) = looked.await else { return };
            seen = now;
            if let Some(result) = result {
                tried = now;
                self.change(result);
            }
        }
    }

    fn change(&self, result: Result<Arc<ServerConfig>, TlsError>) {
        let label = match result {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                info!(target: "audit", certificate = %self.files.certificate.display(), "certificate changed");
                "changed"
            }
            Err(failed) => {
                let (text, advice) = (chain(&failed), failed.advice());
                error!(error = text, advice, "the new TLS certificate can't be used; the old one stays");
                "failed"
            }
        };
        self.metrics.tls_reloads.get_or_create(&[("result", label)]).inc();
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    [of(&files.certificate), of(&files.key)]
}

fn read(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let unreadable = |setting, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Unreadable { setting, path, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect);
    let chain = chain.map_err(unreadable("ROWCAST_TLS_CERT", &files.certificate))?;
    if chain.is_empty() {
        return Err(TlsError::Empty(files.certificate.clone()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(unreadable("ROWCAST_TLS_KEY", &files.key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(TlsError::Unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
