//! The key set at hand: learned, refreshed, kept through outages, and asked for no more often than it may be.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::server::{Answer, KeyServer, PATIENCE, until};
use super::signer::{Kind, Signer, key_set};
use super::{NOW, SECRET, token};
use crate::claims::{FetchError, KeySetConfig, KeySetLocation, TokenError, Verifier, VerifierConfig};
use crate::clock::Clock;
use crate::error::{Fault as _, chain};
use crate::metrics::Metrics;
use crate::task::{self, Drain};

const FLOOR: i64 = 30_000;

fn claims() -> Value {
    json!({ "role": "anon", "exp": NOW + 60 })
}

fn unknown(kid: &str) -> TokenError {
    TokenError::NoSigner { kid: Some(kid.to_owned()) }
}

/// A verifier with its own clock and metrics.
struct Bench {
    verifier: Arc<Verifier>,
    clock: Clock,
    metrics: Arc<Metrics>,
    drain: Drain,
    keeping: Option<JoinHandle<()>>,
}

impl Bench {
    fn new(config: KeySetConfig, secret: bool) -> Bench {
        let (clock, metrics) = (Clock::system(), Arc::new(Metrics::new()));
        let jwt_secret = secret.then(|| SECRET.to_vec());
        let config = VerifierConfig { jwt_secret, key_set: Some(config), ..VerifierConfig::default() };
        let verifier = Arc::new(Verifier::new(config, clock.clone(), metrics.clone()));
        Bench { verifier, clock, metrics, drain: Drain::new(), keeping: None }
    }

    /// Loaded and kept.
    async fn start(config: KeySetConfig) -> Bench {
        let mut bench = Bench::new(config, false);
        bench.verifier.load(PATIENCE, &bench.drain).await.expect("a key set");
        bench.keep();
        bench
    }

    fn keep(&mut self) {
        let (verifier, drain) = (self.verifier.clone(), self.drain.clone());
        self.keeping = Some(task::spawn("keys", async move { verifier.keep(&drain).await }));
    }

    fn knows(&self, signer: &Signer) -> bool {
        self.verifier.verify(&signer.token(&claims()), NOW).is_ok()
    }

    /// As the gateway does.
    async fn verify(&self, signer: &Signer) -> Result<(), TokenError> {
        let token = signer.token(&claims());
        match self.verifier.verify(&token, NOW) {
            Err(error) if self.verifier.may_learn(&error) => {
                self.verifier.learn().await;
                self.verifier.verify(&token, NOW).map(drop)
            }
            verified => verified.map(drop),
        }
    }

    fn fetches(&self, result: &'static str) -> u64 {
        self.metrics.jwks_fetches.get_or_create(&[("result", result)]).get()
    }

    async fn end(mut self) {
        self.drain.drain();
        let keeping = self.keeping.take().expect("it was kept");
        tokio::time::timeout(PATIENCE, keeping).await.expect("it ends").expect("without a panic");
    }
}

#[tokio::test]
async fn two_hundred_who_need_a_new_key_cause_one_request() {
    let (old, new) = (Signer::new(Kind::Es256, "old"), Signer::new(Kind::Ed25519, "new"));
    let server = KeyServer::start(Answer::Set(key_set(&[&old]))).await;
    let bench = Bench::start(server.config()).await;
    server.answer(Answer::Held(key_set(&[&old, &new])));
    let learning = join_all((0..200).map(|_| bench.verify(&new)));
    let releasing = async {
        server.requested(2).await;
        server.release();
    };
    let (learned, ()) = tokio::join!(learning, releasing);
    assert!(learned.iter().all(Result::is_ok), "{learned:?}");
    assert!(bench.knows(&old));
    assert_eq!((server.requests(), bench.metrics.jwks_keys.get()), (2, 2));
    // Whoever was refused before the key was known may try again, at no request's cost.
    assert!(bench.verifier.may_learn(&unknown("new")));
    bench.verifier.learn().await;
    assert_eq!(server.requests(), 2);
    bench.end().await;
}

#[tokio::test]
async fn invented_key_ids_cause_one_request_in_the_floor() {
    let signer = Signer::new(Kind::Es256, "known");
    let server = KeyServer::start(Answer::Set(key_set(&[&signer]))).await;
    let bench = Bench::start(server.config()).await;
    for round in 1..4 {
        for invented in ["a", "b", "c"] {
            let refused = bench.verify(&Signer::new(Kind::Es256, invented)).await;
            assert_eq!(refused, Err(unknown(invented)));
            assert_eq!(server.requests(), 1 + round);
        }
        assert!(!bench.verifier.may_learn(&unknown("d")));
        bench.clock.advance(FLOOR - 1000);
        assert!(!bench.verifier.may_learn(&unknown("d")), "too early");
        bench.clock.advance(1000);
        assert!(bench.verifier.may_learn(&unknown("d")));
    }
    // A clock that was set back must not stop it for as long.
    bench.verifier.learn().await;
    assert!(!bench.verifier.may_learn(&unknown("d")));
    bench.clock.advance(-3_600_000);
    assert!(bench.verifier.may_learn(&unknown("d")));
    // Other refusals are not worth a request.
    let others = [TokenError::Malformed, TokenError::Signature, TokenError::NoSigner { kid: None }];
    assert!(others.iter().all(|error| !bench.verifier.may_learn(error)));
    assert_eq!((bench.fetches("changed"), bench.fetches("same")), (1, 4));
    bench.end().await;
}

#[tokio::test]
async fn who_asks_and_hangs_up_doesnt_stop_the_fetch() {
    let (old, new) = (Signer::new(Kind::Es256, "old"), Signer::new(Kind::Es256, "new"));
    let server = KeyServer::start(Answer::Set(key_set(&[&old]))).await;
    let bench = Bench::start(server.config()).await;
    server.answer(Answer::Held(key_set(&[&new])));
    tokio::select! {
        _ = bench.verify(&new) => panic!("the answer is held"),
        () = server.requested(2) => {}
    }
    server.release();
    bench.verify(&new).await.expect("learned");
    assert_eq!(server.requests(), 2);
    bench.end().await;
}

#[tokio::test]
async fn the_last_good_set_stays_whatever_the_server_does_and_the_outage_is_told_once() {
    let lines = Lines::collected();
    let (signer, new) = (Signer::new(Kind::Es256, "known"), Signer::new(Kind::Es256, "new"));
    let server = KeyServer::start(Answer::Set(key_set(&[&signer]))).await;
    let bench = Bench::start(server.config()).await;
    let place = server.location().to_string();
    let told = |text: &str| lines.count(&[&place, text]);
    let bad = [
        Answer::Status(500),
        Answer::Status(302),
        Answer::Garbage,
        Answer::Cut,
        Answer::Flood,
        Answer::Announced,
        Answer::Set("potato".into()),
        Answer::Set("{}".into()),
    ];
    for (times, answer) in (1..).zip(bad) {
        server.answer(answer);
        bench.clock.advance(FLOOR);
        assert_eq!(bench.verify(&new).await, Err(unknown("new")));
        assert!(bench.knows(&signer));
        assert_eq!(bench.fetches("failed"), times);
    }
    assert_eq!(told("the key set can't be fetched; the last good one stays"), 1);
    server.answer(Answer::Set(key_set(&[&signer])));
    bench.clock.advance(FLOOR);
    assert_eq!(bench.verify(&new).await, Err(unknown("new")));
    assert_eq!(told("can be fetched again"), 1);
    server.answer(Answer::Status(503));
    bench.clock.advance(FLOOR);
    assert_eq!(bench.verify(&new).await, Err(unknown("new")));
    assert_eq!(told("the key set can't be fetched"), 2);
    assert_eq!(lines.count(&["tenant"]), 0, "the query was printed");
    bench.end().await;
}

#[tokio::test]
async fn a_server_that_stalls_holds_nobody_longer_than_one_fetch_may_take() {
    let server = KeyServer::start(Answer::Stall).await;
    let config = KeySetConfig { timeout: Duration::from_millis(300), ..server.config() };
    let mut bench = Bench::new(config, true);
    bench.verifier.load(Duration::ZERO, &bench.drain).await.expect("there is a secret");
    bench.keep();
    let refused = tokio::time::timeout(PATIENCE, bench.verify(&Signer::new(Kind::Es256, "x"))).await;
    assert_eq!(refused.expect("in time"), Err(unknown("x")));
    assert_eq!(bench.fetches("failed"), 2);
    bench.end().await;
}

#[tokio::test]
async fn a_key_that_left_the_set_is_invalid_after_the_next_refresh() {
    let (old, new) = (Signer::new(Kind::Es384, "old"), Signer::new(Kind::Rs256, "new"));
    let server = KeyServer::start(Answer::Set(key_set(&[&old]))).await;
    let bench = Bench::start(server.config()).await;
    assert!(bench.knows(&old) && !bench.knows(&new));
    server.answer(Answer::Set(key_set(&[&new])));
    // Nobody asks; it is time.
    bench.clock.advance(600_000);
    until("the new set", || bench.knows(&new)).await;
    assert_eq!(bench.verifier.verify(&old.token(&claims()), NOW).map(drop), Err(unknown("old")));
    server.answer(Answer::Set(key_set(&[])));
    bench.clock.advance(600_000);
    until("the empty set", || bench.metrics.jwks_keys.get() == 0).await;
    assert!(!bench.knows(&new), "a set without keys is a set");
    bench.end().await;
}

#[tokio::test]
async fn after_a_failure_it_is_tried_again_sooner_than_the_refresh() {
    let signer = Signer::new(Kind::Es256, "k");
    let server = KeyServer::start(Answer::Status(500)).await;
    let mut bench = Bench::new(server.config(), true);
    bench.verifier.load(Duration::ZERO, &bench.drain).await.expect("there is a secret");
    assert!(bench.verifier.verify(&token(claims()), NOW).is_ok() && !bench.knows(&signer));
    bench.keep();
    server.answer(Answer::Set(key_set(&[&signer])));
    bench.clock.advance(30_000);
    until("the key", || bench.knows(&signer)).await;
    bench.end().await;
}

#[tokio::test]
async fn the_first_set_is_waited_for_and_its_absence_is_an_error_without_a_secret() {
    let signer = Signer::new(Kind::Es256, "k");
    let server = KeyServer::start(Answer::Status(503)).await;
    let bench = Bench::new(server.config(), false);
    let recovering = async {
        server.requested(2).await;
        server.answer(Answer::Set(key_set(&[&signer])));
    };
    let (loaded, ()) = tokio::join!(bench.verifier.load(PATIENCE, &bench.drain), recovering);
    loaded.expect("in the end");
    assert!(bench.knows(&signer));

    server.answer(Answer::Status(503));
    let bench = Bench::new(server.config(), false);
    let error = bench.verifier.load(Duration::from_millis(600), &bench.drain).await.expect_err("no set");
    let text = format!("{} {}", chain(&error), error.advice());
    assert!(text.contains(&server.location().to_string()) && text.contains("503"), "{text}");
    assert!(text.contains("JWKS_URL") && !text.contains("tenant"), "{text}");
    // At the drain it is no error.
    bench.drain.drain();
    bench.verifier.load(PATIENCE, &bench.drain).await.expect("the drain");
}

#[tokio::test]
async fn a_drain_ends_a_fetch_and_lets_go_whoever_waits() {
    let server = KeyServer::start(Answer::Set(key_set(&[]))).await;
    let bench = Bench::start(server.config()).await;
    server.answer(Answer::Stall);
    let verifier = bench.verifier.clone();
    let waiting = task::spawn("waiting", async move { verifier.learn().await });
    server.requested(2).await;
    bench.drain.drain();
    tokio::time::timeout(PATIENCE / 2, waiting).await.expect("let go").expect("no panic");
    let verifier = bench.verifier.clone();
    bench.end().await;
    assert!(!verifier.may_learn(&unknown("x")), "nobody fetches any more");
    verifier.learn().await;
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_file_is_read_again_for_an_unknown_key_and_a_missing_one_is_not_waited_for() {
    let (first, second) = (Signer::new(Kind::Es256, "first"), Signer::new(Kind::Ed25519, "second"));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("keys.json");
    let config = KeySetConfig::new(KeySetLocation::File(path.clone()));
    let bench = Bench::new(config.clone(), false);
    let error = bench.verifier.load(PATIENCE * 100, &bench.drain).await.expect_err("no file");
    assert!(matches!(error.reason, FetchError::Read(_)) && error.to_string().contains("keys.json"), "{error}");
    std::fs::write(&path, key_set(&[&first])).expect("written");
    let bench = Bench::start(config).await;
    assert!(bench.knows(&first));
    std::fs::write(&path, key_set(&[&second])).expect("written");
    bench.verify(&second).await.expect("learned");
    assert!(!bench.knows(&first));
    bench.end().await;
}

#[tokio::test]
async fn skipped_keys_are_logged_by_id_and_reason_once() {
    let lines = Lines::collected();
    let good = Signer::new(Kind::Es256, "good");
    let set = |extra: &str| {
        let bad = json!({ "kty": "oct", "kid": "of three bytes", "k": "AAAA" });
        json!({ "keys": [good.jwk(), bad], "more": extra }).to_string()
    };
    let server = KeyServer::start(Answer::Set(set("1"))).await;
    let bench = Bench::start(server.config()).await;
    server.answer(Answer::Set(set("2")));
    assert_eq!(bench.verify(&Signer::new(Kind::Es256, "x")).await, Err(unknown("x")));
    assert_eq!((server.requests(), bench.fetches("changed")), (2, 2));
    assert_eq!(lines.count(&["of three bytes"]), 1);
    assert_eq!(lines.count(&["of three bytes", "a secret of less than 32 bytes", "WARN"]), 1);
    bench.end().await;
}

/// What this module logs in all tests of the process: each looks for what only its own lines have. Rejected: a subscriber per
/// thread, which misses lines whose place in the code another thread came to first.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn collected() -> &'static Lines {
        static LINES: OnceLock<Lines> = OnceLock::new();
        LINES.get_or_init(|| {
            let lines = Lines::default();
            let writer = lines.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_ansi(false)
                .with_env_filter("off,rowcast::claims=info")
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::set_global_default(subscriber).expect("nobody else collects");
            lines
        })
    }

    /// How many lines have all of these.
    fn count(&self, parts: &[&str]) -> usize {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        text.lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
