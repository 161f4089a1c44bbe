//! `rowcast tail` over TLS: a proxy with a certificate stands before the relay, as in production.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{NOTES, Tail, note, refused, tail};
use crate::support::stage::Stage;
use crate::support::token::{self, ALICE};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// A proxy for a relay, made out to `localhost`; where it listens.
async fn proxy(authority: &Authority, relay: SocketAddr) -> SocketAddr {
    let key = KeyPair::generate().expect("a key");
    let parameters = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = parameters.signed_by(&key, authority).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .expect("a certificate and its key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    drop(rowcast::task::spawn("proxy", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            drop(rowcast::task::spawn("proxied", async move {
                let Ok(mut outer) = acceptor.accept(stream).await else { return };
                let mut inner = TcpStream::connect(relay).await.expect("the relay");
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            }));
        }
    }));
    addr
}

fn file(folder: &TempDir, authority: &Authority) -> PathBuf {
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, authority.pem()).expect("a file");
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_authority_is_trusted_when_it_is_named_and_no_other() {
    let stage = Stage::with(NOTES).await;
    let (ours, folder) = (authority("ours"), TempDir::new().expect("a folder"));
    let port = proxy(&ours, stage.relay.addr()).await.port();
    let (url, token) = (format!("wss://localhost:{port}"), token::user(ALICE));
    let ca = file(&folder, &ours);
    let ca = ca.to_str().expect("text");

    let mut tail_ours = Tail::start(&url, &token, &["--table", "notes", "--ca", ca]);
    tail_ours.subscribed().await;
    stage.exec(&note(1, ALICE, "a")).await;
    assert!(tail_ours.line().await.expect("a line").contains("id=1"));
    tail_ours.process.signal(Signal::SIGINT);
    let (ended, _) = tail_ours.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let ended = tail(&url, &token, &["--for", "20s", "--ca", "/no/such/file"]).output().await;
    refused(&ended, &["/no/such/file", "--ca"]);

    let foreign = TempDir::new().expect("a folder");
    let other = file(&foreign, &authority("other"));
    for arguments in [&["--table", "notes"][..], &["--ca", other.to_str().expect("text")]] {
        refused(&tail(&url, &token, arguments).output().await, &["certificate", "--ca"]);
    }
    // The name is looked at too.
    let by_address = format!("wss://127.0.0.1:{port}");
    refused(&tail(&by_address, &token, &["--ca", ca]).output().await, &["certificate"]);
    // TLS is spoken to what has none.
    let plain = format!("wss://{}", stage.relay.addr());
    refused(&tail(&plain, &token, &["--ca", ca]).output().await, &["no TLS session", "ws://"]);
}
