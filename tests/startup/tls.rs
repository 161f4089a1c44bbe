//! TLS to a real server: each `sslmode` on both connections, queries and the stream, and what each refuses.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rowcast::clock::Clock;
use rowcast::pg::PgConfig;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::Instant;

use super::process::Rowcast;
use crate::support::pg::TestPgOptions;
use crate::support::phone::PATIENCE;
use crate::support::relay::pause;
use crate::support::{Relay, TestPg, token};

pub(super) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(super) fn authority(name: &str) -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).expect("parameters");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// Certificate and key, made out to a host and to a common name.
pub(super) fn certificate(authority: &Authority, name: &str) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    parameters.distinguished_name.push(DnType::CommonName, name);
    let signed = parameters.signed_by(&key, authority).expect("a certificate");
    (signed.pem(), key.serialize_pem())
}

/// A server whose certificate is made out to this name, and that lets in whom these lines let in.
async fn server(authority: &Authority, name: &str, hba: &str) -> TestPg {
    let (certificate, key) = certificate(authority, name);
    let files = vec![
        ("server.crt", certificate),
        ("server.key", key),
        ("root.crt", authority.pem()),
        ("pg_hba.conf", format!("local all all trust\n{hba}\n")),
    ];
    let settings = vec![("ssl", "on"), ("ssl_ca_file", "root.crt")];
    let pg = TestPg::with(TestPgOptions { files, settings, ..TestPgOptions::default() }).await;
    pg.exec(
        "create table public.notes (id int primary key); grant select on public.notes to authenticated;
         alter publication supabase_realtime add table public.notes",
    )
    .await;
    pg
}

const LET_ALL_IN: &str = "host all all all trust\nhost replication all all trust";

/// A relay with these TLS parameters delivers a row; says how its connections are protected.
async fn protected(pg: &TestPg, parameters: &str, id: u32) -> Vec<bool> {
    let url = format!("postgres://postgres:test@localhost:{}/postgres?application_name=tested&{parameters}", pg.port());
    let relay = Relay::with(pg, Clock::system(), |config| {
        config.pg = PgConfig::from_url(&url).expect("a good URL");
        config.ingest.wal.pg = config.pg.clone();
    })
    .await;
    let mut phone = relay.phone(&token::user(token::ALICE)).await;
    phone.subscribe("room", &json!([{ "event": "*", "schema": "public", "table": "notes" }])).await;
    pg.exec(&format!("insert into notes values ({id})")).await;
    assert_eq!(phone.next_change().await.record()["id"], id);
    drop(phone);
    let sql = "select s.ssl from pg_stat_ssl s join pg_stat_activity a using (pid) where a.application_name = 'tested' \
               order by a.backend_type";
    let rows = pg.client().await.query(sql, &[]).await.expect("rows");
    let walsender = "select count(*) from pg_stat_replication where application_name = 'tested'";
    let streams: i64 = pg.client().await.query_one(walsender, &[]).await.expect("a row").get(0);
    assert_eq!(streams, 1);
    relay.drain().await;
    // The server's side of the stream may take a moment longer to end than ours.
    let active = "select active from pg_replication_slots where slot_name = 'rowcast'";
    let client = pg.client().await;
    let deadline = Instant::now() + PATIENCE;
    while client.query_one(active, &[]).await.expect("a row").get(0) {
        assert!(Instant::now() < deadline, "the slot is still active");
        pause().await;
    }
    pg.exec("select pg_drop_replication_slot('rowcast')").await;
    rows.iter().map(|row| row.get(0)).collect()
}

/// What the program says about these TLS parameters.
async fn refusal(pg: &TestPg, parameters: &str) -> String {
    let url = format!("postgres://postgres:test@localhost:{}/postgres?{parameters}", pg.port());
    let ended = Rowcast::serve(&url).env("ROWCAST_STARTUP_TIMEOUT", "1s").output().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    ended.stderr
}

fn written(folder: &TempDir, name: &str, text: &str) -> String {
    let path: &Path = &folder.path().join(name);
    std::fs::write(path, text).expect("a file");
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sslmode_protects_both_connections_as_it_says() {
    let (ours, folder) = (authority("ours"), TempDir::new().expect("a folder"));
    let pg = server(&ours, "localhost", LET_ALL_IN).await;
    let root = written(&folder, "root.crt", &ours.pem());
    let modes = [
        ("sslmode=disable", false),
        ("", true),
        ("sslmode=prefer", true),
        ("sslmode=require", true),
        (&*format!("sslmode=verify-ca&sslrootcert={root}"), true),
        (&*format!("sslmode=verify-full&sslrootcert={root}"), true),
    ];
    for (id, (parameters, expected)) in (1..).zip(modes) {
        let found = protected(&pg, parameters, id).await;
        assert!(found.len() > 1 && found.iter().all(|ssl| *ssl == expected), "{parameters}: {found:?}");
    }
    // Another authority's, and one that nobody knows.
    let foreign = written(&folder, "foreign.crt", &authority("foreign").pem());
    for parameters in [
        format!("sslmode=verify-ca&sslrootcert={foreign}"),
        format!("sslmode=require&sslrootcert={foreign}"),
        "sslmode=verify-full".to_owned(),
    ] {
        let text = refusal(&pg, &parameters).await;
        assert!(text.contains("certificate") && text.contains("sslrootcert"), "{parameters}:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_not_on_the_certificate_is_refused_by_verify_full_alone() {
    let (ours, folder) = (authority("ours"), TempDir::new().expect("a folder"));
    let pg = server(&ours, "db.example.com", LET_ALL_IN).await;
    let root = written(&folder, "root.crt", &ours.pem());
    assert!(protected(&pg, &format!("sslmode=verify-ca&sslrootcert={root}"), 1).await.iter().all(|ssl| *ssl));
    let text = refusal(&pg, &format!("sslmode=verify-full&sslrootcert={root}")).await;
    assert!(text.contains("certificate") && text.contains("verify-ca"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_if_tls_is_required() {
    let pg = TestPg::start().await;
    for mode in ["require", "verify-full"] {
        let text = refusal(&pg, &format!("sslmode={mode}")).await;
        assert!(text.contains("TLS") && text.contains("ssl = on"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_stands_for_a_password() {
    let (ours, folder) = (authority("ours"), TempDir::new().expect("a folder"));
    let pg = server_for_certificates(&ours).await;
    let root = written(&folder, "root.crt", &ours.pem());
    let (certificate, key) = certificate(&ours, "relay");
    let (certificate, key) = (written(&folder, "c.crt", &certificate), written(&folder, "c.key", &key));
    let with = format!("sslmode=verify-full&sslrootcert={root}&sslcert={certificate}&sslkey={key}");
    let url = format!("postgres://relay@localhost:{}/postgres?{with}", pg.port());
    let relay = Relay::with(&pg, Clock::system(), |config| {
        config.pg = PgConfig::from_url(&url).expect("a good URL");
        config.ingest.wal.pg = config.pg.clone();
    })
    .await;
    relay.drain().await;
    let url = format!("postgres://relay@localhost:{}/postgres?sslmode=verify-full&sslrootcert={root}", pg.port());
    let ended = Rowcast::serve(&url).env("ROWCAST_STARTUP_TIMEOUT", "1s").output().await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("certificate"), "{}", ended.stderr);
}

/// Everybody is let in but `relay`, who must show a certificate.
async fn server_for_certificates(authority: &Authority) -> TestPg {
    let hba = "hostssl all relay all cert\nhostssl replication relay all cert\n\
               host all relay all reject\nhost all all all trust";
    let pg = server(authority, "localhost", hba).await;
    pg.exec("create role relay superuser replication login").await;
    pg
}
