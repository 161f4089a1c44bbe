//! Handshakes whose token needs a key that is fetched first.

use std::sync::atomic::AtomicUsize;

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::Semaphore;

use super::*;
use crate::claims::{Principal, TokenError, Verifier};

/// Refuses every token until a lesson has ended; lessons end as the test allows.
struct Pupil {
    inner: Verifier,
    learned: AtomicBool,
    begun: AtomicUsize,
    end: Semaphore,
}

impl Tokens for Pupil {
    fn verify(&self, token: &str, now: i64) -> Result<Principal, TokenError> {
        if self.learned.load(Ordering::SeqCst) {
            return self.inner.verify(token, now);
        }
        Err(TokenError::NoSigner { kid: Some("k2".into()) })
    }

    fn may_learn(&self, _: &TokenError) -> bool {
        !self.learned.load(Ordering::SeqCst)
    }

    fn learn(&self) -> BoxFuture<'_, ()> {
        async {
            self.begun.fetch_add(1, Ordering::SeqCst);
            self.end.acquire().await.unwrap().forget();
            self.learned.store(true, Ordering::SeqCst);
        }
        .boxed()
    }
}

fn pupil() -> Arc<Pupil> {
    let (learned, begun, end) = (AtomicBool::new(false), AtomicUsize::new(0), Semaphore::new(0));
    Arc::new(Pupil { inner: verifier(), learned, begun, end })
}

#[tokio::test]
async fn a_handshake_waits_for_the_key() {
    let pupil = pupil();
    let relay = relay_with(quick(), pupil.clone()).await;
    let path = format!("/websocket?apikey={}", relay.token(60));
    let ending = async {
        until("it waits", || pupil.begun.load(Ordering::SeqCst) == 1).await;
        pupil.end.add_permits(1);
    };
    let ((status, ..), ()) = tokio::join!(relay.upgrade(&path, ""), ending);
    assert_eq!(status, 101);
}

#[tokio::test]
async fn a_key_that_does_not_come_refuses_in_time_and_few_wait_for_it() {
    let config = GatewayConfig { learn_timeout: Duration::from_millis(200), max_learning: 1, ..quick() };
    let pupil = pupil();
    let relay = relay_with(config, pupil.clone()).await;
    let path = format!("/websocket?apikey={}", relay.token(60));
    let second = async {
        until("the first waits", || pupil.begun.load(Ordering::SeqCst) == 1).await;
        relay.upgrade(&path, "").await
    };
    let (first, second) = tokio::join!(relay.upgrade(&path, ""), second);
    for (status, _, body) in [first, second] {
        assert_eq!(status, 401);
        assert!(body.contains("Failed to generate JWT signer for key ID (kid)"), "{body}");
    }
    assert_eq!(pupil.begun.load(Ordering::SeqCst), 1, "the second did not wait");
}

#[tokio::test]
async fn a_join_waits_for_the_key_and_no_longer_than_it_may() {
    let pupil = pupil();
    pupil.learned.store(true, Ordering::SeqCst);
    let relay = relay_with(GatewayConfig { learn_timeout: Duration::from_millis(200), ..quick() }, pupil.clone()).await;
    let mut phone = relay.phone().await;
    pupil.learned.store(false, Ordering::SeqCst);
    let payload = json!({"access_token": relay.token(60)});
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", payload])).await;
    send(&mut phone, json!([null, "2", "phoenix", "heartbeat", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "2", "heartbeats don't wait");
    let refused = next_json(&mut phone).await;
    assert!(refused[4]["response"]["reason"].as_str().unwrap().starts_with("JwtSignerError: "), "{refused}");
    pupil.end.add_permits(1);
    send(&mut phone, json!(["3", "3", "realtime:t", "phx_join", payload])).await;
    assert_eq!(next_json(&mut phone).await[4]["status"], "ok");
}
