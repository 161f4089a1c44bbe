//! Getting the bytes of a key set from servers and files that behave as they should not.

use std::io::Write as _;
use std::time::Duration;

use super::server::{Answer, KeyServer, PATIENCE};
use crate::claims::KeySetLocation;
use crate::claims::fetch::{FetchError, MAX_BYTES, fetch};
use crate::error::{Fault as _, Remedy, chain};

const EMPTY: &str = r#"{"keys":[]}"#;

async fn fetched(server: &KeyServer, timeout: Duration) -> Result<Vec<u8>, FetchError> {
    let config = server.config();
    fetch(&config.location, config.ca.as_deref(), timeout).await
}

#[tokio::test]
async fn over_https_and_over_http_of_this_machine_the_body_arrives() {
    for server in [KeyServer::start(Answer::Set(EMPTY.into())).await, KeyServer::plain(Answer::Set(EMPTY.into())).await]
    {
        assert_eq!(fetched(&server, PATIENCE).await.expect("a body"), EMPTY.as_bytes());
        let heads = server.heads().to_ascii_lowercase();
        assert!(heads.starts_with("get /keys?tenant=7 http/1.1\r\n"), "{heads}");
        assert!(heads.contains(&format!("host: 127.0.0.1:{}\r\n", server.port())), "{heads}");
    }
    // As large as it may be.
    let server = KeyServer::start(Answer::Set(" ".repeat(MAX_BYTES))).await;
    assert_eq!(fetched(&server, PATIENCE).await.expect("a body").len(), MAX_BYTES);
}

#[tokio::test]
async fn what_is_no_answer_is_told_from_what_is_another() {
    let server = KeyServer::start(Answer::Garbage).await;
    assert!(matches!(fetched(&server, PATIENCE).await, Err(FetchError::Http(_))));
    server.answer(Answer::Cut);
    assert!(matches!(fetched(&server, PATIENCE).await, Err(FetchError::Http(_))));
    for status in [500, 404, 204, 206] {
        server.answer(Answer::Status(status));
        assert!(matches!(fetched(&server, PATIENCE).await, Err(FetchError::Status(found)) if found == status));
    }
    let before = server.requests();
    for status in [301, 302, 303, 307, 308] {
        server.answer(Answer::Status(status));
        let error = fetched(&server, PATIENCE).await.expect_err("not followed");
        assert!(matches!(error, FetchError::Redirect(found) if found == status), "{error}");
        assert!(error.advice().contains("JWKS_URL"));
    }
    assert_eq!(server.requests(), before + 5, "a redirect was followed");
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_read_to_its_end() {
    let server = KeyServer::start(Answer::Flood).await;
    assert!(matches!(fetched(&server, PATIENCE).await, Err(FetchError::TooLarge)));
    // What is on its way in the sockets' buffers comes on top.
    assert!(server.flooded() < 32 << 20, "{}", server.flooded());
    server.answer(Answer::Announced);
    assert!(matches!(fetched(&server, PATIENCE).await, Err(FetchError::TooLarge)), "the announcement is enough");
}

#[tokio::test]
async fn one_deadline_counts_for_all_of_it() {
    let short = Duration::from_millis(300);
    for answer in [Answer::Stall, Answer::Drip] {
        let server = KeyServer::start(answer.clone()).await;
        let error = fetched(&server, short).await.expect_err("too late");
        assert!(matches!(error, FetchError::Timeout(limit) if limit == short), "{answer:?}: {error}");
    }
    // Accepts, and says nothing: not even the handshake is answered.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let location: KeySetLocation = format!("https://127.0.0.1:{port}/k").parse().expect("an address");
    assert!(matches!(fetch(&location, None, short).await, Err(FetchError::Timeout(_))));
    // Nobody listens there.
    let location: KeySetLocation = "https://127.0.0.1:1/k".parse().expect("an address");
    assert!(matches!(fetch(&location, None, PATIENCE).await, Err(FetchError::Connect(_))));
}

#[tokio::test]
async fn only_the_configured_authority_vouches_for_the_server_and_only_by_its_name() {
    let server = KeyServer::start(Answer::Set(EMPTY.into())).await;
    let other = KeyServer::start(Answer::Set(EMPTY.into())).await;
    let (config, others) = (server.config(), other.config());
    for ca in [None, others.ca.as_deref()] {
        let error = fetch(&config.location, ca, PATIENCE).await.expect_err("not trusted");
        assert!(matches!(error, FetchError::Tls(_)), "{error}");
        assert!(error.advice().contains("ROWCAST_JWKS_CA"));
    }
    assert_eq!(server.requests(), 0);
    // Its location is 127.0.0.1, for which it has no certificate.
    let named = KeyServer::named(Answer::Set(EMPTY.into())).await;
    assert!(matches!(fetched(&named, PATIENCE).await, Err(FetchError::Tls(_))));
    let by_name: KeySetLocation = format!("https://localhost:{}/keys", named.port()).parse().expect("an address");
    fetch(&by_name, named.config().ca.as_deref(), PATIENCE).await.expect("the certificate's name");
}

#[tokio::test]
async fn a_file_of_authorities_that_holds_none_is_named() {
    let server = KeyServer::start(Answer::Set(EMPTY.into())).await;
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    write!(file, "not a certificate").expect("written");
    for path in [file.path(), std::path::Path::new("/no/such/file")] {
        let error = fetch(&server.location(), Some(path), PATIENCE).await.expect_err("unusable");
        assert!(matches!(error, FetchError::Authorities { .. }), "{error}");
        assert_eq!(error.remedy(), Remedy::Operator);
        assert!(chain(&error).contains(path.to_str().expect("text")), "{error}");
    }
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn a_file_is_read_up_to_the_limit_and_must_be_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let read = async |path: &std::path::Path| fetch(&KeySetLocation::File(path.to_owned()), None, PATIENCE).await;
    let missing = read(&path).await.expect_err("missing");
    assert!(matches!(missing, FetchError::Read(_)) && missing.remedy() == Remedy::Operator);
    std::fs::write(&path, EMPTY).expect("written");
    assert_eq!(read(&path).await.expect("read"), EMPTY.as_bytes());
    std::fs::write(&path, vec![b' '; MAX_BYTES + 1]).expect("written");
    assert!(matches!(read(&path).await, Err(FetchError::TooLarge)));
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    for path in [folder.path(), &pipe, std::path::Path::new("/dev/zero")] {
        assert!(matches!(read(path).await, Err(FetchError::NotAFile)), "{path:?}");
    }
}
