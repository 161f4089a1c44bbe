//! TLS on the clients' listener: stock clients over `wss://`, certificates that are renewed, and clients that misbehave.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use rowcast::clock::Clock;
use rowcast::config::Config;
use rowcast::gateway::TlsFiles;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;

use super::mistakes::refused;
use super::process::{Process, Rowcast};
use super::tls::{Authority, authority, certificate};
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::sdk::SdkPhone;
use crate::support::stage::with_marks;
use crate::support::{Phone, Relay, Stock, TestPg, Version, pg, summary, token};

const NOTES: &str = "create table public.notes (id int primary key, body text); \
     create table public.marks (id bigint generated always as identity primary key, note text not null); \
     grant select on public.notes, public.marks to authenticated; \
     alter publication supabase_realtime add table public.notes, public.marks";

/// An authority of our own, and the files that the relay is told of.
struct Files {
    folder: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Files {
        let files = Files { folder: tempfile::tempdir().expect("a folder"), authority: authority("Rowcast test") };
        fs::write(files.path("root.crt"), files.authority.pem()).expect("a file");
        files.renew();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn settings(&self) -> TlsFiles {
        TlsFiles { certificate: self.path("server.crt"), key: self.path("server.key") }
    }

    /// Another certificate with another key; gives the certificate.
    fn renew(&self) -> CertificateDer<'static> {
        let (certificate, key) = certificate(&self.authority, "127.0.0.1");
        fs::write(self.path("server.crt"), &certificate).expect("a file");
        fs::write(self.path("server.key"), key).expect("a file");
        CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).expect("a certificate");
        roots.add(root).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }

    async fn connect(&self, port: u16, versions: &[&'static SupportedProtocolVersion]) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let connecting = timeout(PATIENCE, self.client(versions).connect(name, stream)).await;
        connecting.expect("a handshake in time").expect("a handshake")
    }

    async fn phone_by(&self, port: u16, versions: &[&'static SupportedProtocolVersion]) -> Phone {
        let line = Box::new(self.connect(port, versions).await);
        let base = format!("ws://127.0.0.1:{port}/realtime/v1");
        Phone::over(line, &base, &token::user(token::ALICE), Version::V2).await
    }

    async fn phone(&self, port: u16) -> Phone {
        self.phone_by(port, rustls::ALL_VERSIONS).await
    }

    /// A relay in this process.
    async fn relay(&self, pg: &TestPg, change: impl FnOnce(&mut Config)) -> Relay {
        pg.exec(NOTES).await;
        let files = self.settings();
        let settings = |config: &mut Config| {
            config.gateway.tls = Some(files);
            config.gateway.tls_poll = Duration::from_millis(50);
            change(config);
        };
        Relay::with(pg, Clock::system(), settings).await
    }

    /// A relay in a process of its own.
    fn process(&self, pg: &TestPg, port: u16) -> Rowcast {
        let TlsFiles { certificate, key } = self.settings();
        Rowcast::serve(&pg.url())
            .env("JWT_SECRET", token::SECRET)
            .env("PORT", &port.to_string())
            .env("ROWCAST_TLS_CERT", certificate.to_str().expect("text"))
            .env("ROWCAST_TLS_KEY", key.to_str().expect("text"))
    }
}

fn notes() -> Value {
    json!([{ "event": "*", "schema": "public", "table": "notes" }])
}

async fn until(relay: &Relay, name: &str, labels: &str, least: f64) {
    let deadline = Instant::now() + PATIENCE;
    while relay.metric(name, labels).await < least {
        assert!(Instant::now() < deadline, "{name}{{{labels}}} never came to {least}");
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_get_rows_over_tls() {
    let (pg, files) = (TestPg::start().await, Files::new());
    let relay = files.relay(&pg, |_| {}).await;
    let base = format!("wss://{}/realtime/v1", relay.addr());
    let (root, user) = (files.path("root.crt"), token::user(token::ALICE));
    for (id, stock) in [Stock::JavaScript, Stock::Python].into_iter().enumerate() {
        let mut phone = SdkPhone::connect_trusting(stock, &base, &user, Some(&root)).await;
        phone.subscribe("room", &with_marks(&notes())).await;
        pg.exec(&format!("insert into notes values ({id}, 'for {stock:?}')")).await;
        pg.exec(&format!("insert into marks (note) values ('{stock:?}')")).await;
        let changes = phone.changes_before(&format!("{stock:?}")).await;
        assert_eq!(summary(&changes, "id"), [format!("INSERT {id}")]);
        phone.exit().await;
    }
    relay.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_frames_go_both_ways_in_either_version_of_tls() {
    let (pg, files) = (TestPg::start().await, Files::new());
    let relay = files.relay(&pg, |_| {}).await;
    let port = relay.addr().port();
    for (id, version) in [&rustls::version::TLS12, &rustls::version::TLS13].into_iter().enumerate() {
        let mut phone = files.phone_by(port, &[version]).await;
        phone.subscribe("room", &notes()).await;
        // Far more than the socket, a record or the session takes at once.
        pg.exec(&format!(
            "insert into notes select {id}, string_agg(md5(n::text), '') from generate_series(1, 25000) n"
        ))
        .await;
        let body = phone.next_change().await.record()["body"].as_str().expect("a text").to_owned();
        let sum: String = pg.client().await.query_one("select md5($1)", &[&body]).await.expect("a row").get(0);
        let sql = format!("select md5(body) from notes where id = {id}");
        let expected: String = pg.client().await.query_one(&sql, &[]).await.expect("a row").get(0);
        assert_eq!((body.len(), sum), (800_000, expected), "{version:?}");
        // Dropped as malformed; what comes behind it is understood.
        phone.send(Message::text("x".repeat(3_000_000))).await;
        phone.heartbeat().await;
        // Many small ones at once, in order.
        let first = 1000 * (id + 1);
        pg.exec(&format!("insert into notes select n, 'small' from generate_series({first}, {}) n", first + 499)).await;
        for expected in first..first + 500 {
            assert_eq!(phone.next_change().await.record()["id"], expected);
        }
    }
    relay.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_for_new_connections_and_a_broken_one_for_none() {
    let (pg, files) = (TestPg::start().await, Files::new());
    let first = CertificateDer::from_pem_file(files.path("server.crt")).expect("a certificate");
    let relay = files.relay(&pg, |_| {}).await;
    let port = relay.addr().port();
    let mut early = files.phone(port).await;
    early.subscribe("room", &notes()).await;
    let shown = async || {
        let stream = files.connect(port, rustls::ALL_VERSIONS).await;
        stream.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned()
    };
    assert_eq!(shown().await, first);

    // A key that belongs to another certificate; then no key at all.
    fs::write(files.path("server.key"), certificate(&files.authority, "127.0.0.1").1).expect("a file");
    until(&relay, "rowcast_tls_reloads_total", "failed", 1.0).await;
    fs::remove_file(files.path("server.key")).expect("it is there");
    until(&relay, "rowcast_tls_reloads_total", "failed", 2.0).await;
    assert_eq!(shown().await, first);

    let second = files.renew();
    until(&relay, "rowcast_tls_reloads_total", "changed", 1.0).await;
    assert_eq!(shown().await, second);
    pg.exec("insert into notes values (1, 'still there')").await;
    assert_eq!(early.next_change().await.record()["body"], "still there");
    // Each of them was looked at once.
    assert_eq!(relay.metric("rowcast_tls_reloads_total", "").await, 3.0);
    relay.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stalls_in_the_handshake_is_cut_and_makes_room() {
    let (pg, files) = (TestPg::start().await, Files::new());
    let relay = files
        .relay(&pg, |config| {
            config.gateway.header_timeout = Duration::from_millis(1500);
            config.gateway.max_unauthenticated = 1;
        })
        .await;
    let cut = async |first: &[u8]| {
        let mut stream = TcpStream::connect(relay.addr()).await.expect("a connection");
        stream.write_all(first).await.expect("it takes them");
        let mut answer = Vec::new();
        // An alert or nothing, and then the end or a reset.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends in time");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    };
    // Nothing; the beginning of a ClientHello; no TLS at all.
    for first in [&b""[..], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3], b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"] {
        cut(first).await;
    }
    let failures = "rowcast_tls_handshake_failures_total";
    until(&relay, failures, "timeout", 2.0).await;
    until(&relay, failures, "failed", 1.0).await;
    // The handshake is not the only thing to stall in.
    let mut silent = files.connect(relay.addr().port(), rustls::ALL_VERSIONS).await;
    let _ = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await.expect("it ends in time");
    // The only place is free again.
    let mut phone = files.phone(relay.addr().port()).await;
    phone.heartbeat().await;
    relay.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_over_tls_is_closed_with_1013_and_delays_nobody() {
    let (pg, files) = (TestPg::start().await, Files::new());
    let relay = files.relay(&pg, |config| config.gateway.max_outbox_bytes = 1_000_000).await;
    let port = relay.addr().port();
    let (mut deaf, mut other) = (files.phone(port).await, files.phone(port).await);
    for phone in [&mut deaf, &mut other] {
        phone.subscribe("room", &notes()).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut written = 0;
    while relay.metric("rowcast_closes_total", "reason=\"slow\"").await < 1.0 {
        assert!(Instant::now() < deadline, "still connected after {written} rows");
        pg.exec(&format!("insert into notes values ({written}, repeat('x', 400000))")).await;
        assert_eq!(other.next_change().await.record()["id"], written);
        written += 1;
    }
    let code = deaf.close_code().await;
    assert!(matches!(code, Some(1013) | None), "{code:?}");
    other.heartbeat().await;
    relay.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_with_a_close_frame_and_the_goodbye_of_tls() {
    let (pg, files) = (TestPg::start().await, Files::new());
    let relay = files.relay(&pg, |_| {}).await;
    let mut stream = files.connect(relay.addr().port(), rustls::ALL_VERSIONS).await;
    let token = token::user(token::ALICE);
    let head = format!(
        "GET /realtime/v1/websocket?apikey={token} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("it takes them");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        assert_ne!(timeout(PATIENCE, stream.read_buf(&mut answer)).await.expect("in time").expect("bytes"), 0);
    }
    let drained = rowcast::task::spawn("drain", relay.drain());
    let mut last = Vec::new();
    // Without the goodbye this would be an error.
    timeout(PATIENCE, stream.read_to_end(&mut last)).await.expect("in time").expect("an orderly end");
    assert_eq!((last[0], &last[2..4]), (0x88, &1012u16.to_be_bytes()[..]), "{last:?}");
    drop(stream);
    drained.await.expect("it drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_asked_over_tls_and_an_idle_connection_takes_little() {
    const PHONES: usize = 400;
    let (pg, files) = (TestPg::start().await, Files::new());
    pg.exec(NOTES).await;
    let port = pg::free_port();
    let mut process = files.process(&pg, port).spawn();
    process.line_with("streaming changes").await;
    let TlsFiles { certificate, key } = files.settings();
    let health = Rowcast::new(&["health"])
        .env("PORT", &port.to_string())
        .env("ROWCAST_TLS_CERT", certificate.to_str().expect("text"))
        .env("ROWCAST_TLS_KEY", key.to_str().expect("text"));
    let ended = health.output().await;
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "ready\n"), "{}", ended.stderr);

    drop(idle_phones(&files, port, 50).await);
    let before = resident(&process);
    let phones = idle_phones(&files, port, PHONES).await;
    let each = resident(&process).saturating_sub(before) / PHONES as u64;
    println!("{PHONES} idle TLS connections, each with a subscription: {each} bytes of relay memory each");
    // A debug build, on a machine that does other things: only what would be absurd is refused.
    assert!(each < 200_000, "{each} bytes");
    drop(phones);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().await.code, Some(0));
}

async fn idle_phones(files: &Files, port: u16, count: usize) -> Vec<Phone> {
    let mut phones = Vec::new();
    while phones.len() < count {
        phones.extend(join_all((0..50).map(|_| files.phone(port))).await);
    }
    for phone in &mut phones {
        phone.subscribe("room", &notes()).await;
    }
    phones
}

/// Bytes, as Linux tells it; zero elsewhere.
fn resident(process: &Process) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_is_named() {
    let files = Files::new();
    let serve = || Rowcast::serve("postgres://u@127.0.0.1/x");
    let path = |name: &str| files.path(name).to_str().expect("text").to_owned();
    let (certificate_file, key_file) = (path("server.crt"), path("server.key"));
    let ended = serve().env("ROWCAST_TLS_CERT", &certificate_file).output().await;
    refused(&ended, &["ROWCAST_TLS_KEY is not set, but ROWCAST_TLS_CERT is", "Set both"]);
    let ended = serve().env("ROWCAST_TLS_KEY", &key_file).output().await;
    refused(&ended, &["ROWCAST_TLS_CERT is not set, but ROWCAST_TLS_KEY is"]);

    let both = |certificate: &str, key: &str| {
        serve().env("ROWCAST_TLS_CERT", certificate).env("ROWCAST_TLS_KEY", key).output()
    };
    let ended = both("/no/such/file", &key_file).await;
    refused(&ended, &["ROWCAST_TLS_CERT=/no/such/file", "fullchain.pem"]);
    let ended = both(&certificate_file, &certificate_file).await;
    refused(&ended, &["ROWCAST_TLS_KEY=", "unencrypted private key"]);
    let ended = both(&key_file, &key_file).await;
    refused(&ended, &["ROWCAST_TLS_CERT=", "holds no certificate"]);
    fs::write(files.path("other.key"), certificate(&files.authority, "x").1).expect("a file");
    let ended = both(&certificate_file, &path("other.key")).await;
    refused(&ended, &["can't be used together", "made for"]);
}
