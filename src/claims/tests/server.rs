//! A key server on the loopback interface, over TLS with an authority of its own, that counts its requests and misbehaves
//! when it is told to.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::claims::{KeySetConfig, KeySetLocation};
use crate::task;

/// For anything that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What it does with a request.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// 200 with this body.
    Set(String),
    /// The same, once [`KeyServer::release`] was called.
    Held(String),
    /// An empty answer with this status, and a place to go.
    Status(u16),
    /// Not HTTP.
    Garbage,
    /// Nothing, for ever.
    Stall,
    /// A body that comes byte by byte and never ends.
    Drip,
    /// A length over the limit is announced, and nothing follows.
    Announced,
    /// A body without a length that never ends, as fast as it goes.
    Flood,
    /// Less of the body than was announced.
    Cut,
}

struct Shared {
    answer: Mutex<Answer>,
    requests: AtomicUsize,
    released: Semaphore,
    flooded: AtomicUsize,
    heads: Mutex<String>,
}

pub(super) struct KeyServer {
    address: SocketAddr,
    tls: bool,
    ca: NamedTempFile,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

impl KeyServer {
    /// With a certificate for `localhost` and 127.0.0.1.
    pub(super) async fn start(answer: Answer) -> KeyServer {
        KeyServer::with(answer, true, &["localhost", "127.0.0.1"]).await
    }

    /// With a certificate for `localhost` alone.
    pub(super) async fn named(answer: Answer) -> KeyServer {
        KeyServer::with(answer, true, &["localhost"]).await
    }

    /// Without TLS.
    pub(super) async fn plain(answer: Answer) -> KeyServer {
        KeyServer::with(answer, false, &["localhost"]).await
    }

    async fn with(answer: Answer, tls: bool, names: &[&str]) -> KeyServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (config, ca) = certified(names);
        let shared = Arc::new(Shared {
            answer: Mutex::new(answer),
            requests: AtomicUsize::new(0),
            released: Semaphore::new(0),
            flooded: AtomicUsize::new(0),
            heads: Mutex::default(),
        });
        let (acceptor, own) = (TlsAcceptor::from(config), shared.clone());
        let serving = task::spawn("key server", async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shared) = (acceptor.clone(), own.clone());
                connections.spawn(async move {
                    if !tls {
                        serve(stream, &shared).await;
                    } else if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, &shared).await;
                    }
                });
            }
        });
        KeyServer { address, tls, ca, shared, serving }
    }

    /// How to fetch from it, trusting its authority; refreshed so seldom that a test must ask for it.
    pub(super) fn config(&self) -> KeySetConfig {
        let ca = Some(self.ca.path().to_owned());
        // Fetches that should succeed must do so on a busy machine as well.
        KeySetConfig { ca, timeout: PATIENCE, ..KeySetConfig::new(self.location()) }
    }

    pub(super) fn location(&self) -> KeySetLocation {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}/keys?tenant=7", self.address).parse().expect("an address")
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on.
    pub(super) fn answer(&self, answer: Answer) {
        *self.shared.answer.lock().unwrap() = answer;
    }

    /// Lets one held answer go.
    pub(super) fn release(&self) {
        self.shared.released.add_permits(1);
    }

    pub(super) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Waits until this many requests were read.
    pub(super) async fn requested(&self, times: usize) {
        until("requests", || self.requests() >= times).await;
    }

    /// Bytes of endless bodies that were written.
    pub(super) fn flooded(&self) -> usize {
        self.shared.flooded.load(Ordering::SeqCst)
    }

    /// All heads of requests.
    pub(super) fn heads(&self) -> String {
        self.shared.heads.lock().unwrap().clone()
    }
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Waits for a condition that nothing announces.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("still waiting for {what}"));
}

/// The server's side of TLS, and the authority as a PEM file.
fn certified(names: &[&str]) -> (Arc<ServerConfig>, NamedTempFile) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "an authority of the tests");
    let authority_key = KeyPair::generate().expect("a key");
    let certificate = authority.self_signed(&authority_key).expect("a certificate");
    let mut ca = NamedTempFile::new().expect("a file");
    let text = STANDARD.encode(certificate.der());
    write!(ca, "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n").expect("written");
    let key = KeyPair::generate().expect("a key");
    let names = names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let leaf = CertificateParams::new(names).expect("parameters");
    let leaf = leaf.signed_by(&key, &Issuer::new(authority, authority_key)).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a certificate that fits its key");
    (Arc::new(config), ca)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, shared: &Shared) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    shared.heads.lock().unwrap().push_str(&String::from_utf8_lossy(&head));
    let answer = shared.answer.lock().unwrap().clone();
    shared.requests.fetch_add(1, Ordering::SeqCst);
    // A client that has had enough hangs up.
    let _ = respond(&mut stream, answer, shared).await;
    let _ = stream.shutdown().await;
}

async fn respond<S: AsyncWrite + Unpin>(stream: &mut S, answer: Answer, shared: &Shared) -> std::io::Result<()> {
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    match answer {
        Answer::Set(body) => stream.write_all(format!("{}{body}", head(body.len())).as_bytes()).await,
        Answer::Held(body) => {
            shared.released.acquire().await.expect("open").forget();
            stream.write_all(format!("{}{body}", head(body.len())).as_bytes()).await
        }
        Answer::Status(status) => {
            let text = format!("HTTP/1.1 {status} x\r\nlocation: /keys\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(text.as_bytes()).await
        }
        Answer::Garbage => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await,
        Answer::Stall => std::future::pending().await,
        Answer::Drip => {
            stream.write_all(head(1000).as_bytes()).await?;
            loop {
                stream.write_all(b" ").await?;
                stream.flush().await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Answer::Announced => {
            stream.write_all(head(100 << 20).as_bytes()).await?;
            std::future::pending().await
        }
        Answer::Flood => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await?;
            loop {
                stream.write_all(&[b' '; 16 << 10]).await?;
                shared.flooded.fetch_add(16 << 10, Ordering::SeqCst);
            }
        }
        Answer::Cut => stream.write_all(format!("{}{{\"keys\":[]}}", head(1000)).as_bytes()).await,
    }
}
