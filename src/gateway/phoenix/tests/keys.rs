//! Tokens whose key is fetched first.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::{BoxFuture, FutureExt as _};

use super::*;
use crate::claims::{Principal, TokenError, Verifier};

/// Knows the tokens that begin with `new-` only after its lesson.
struct Pupil {
    inner: Verifier,
    learned: AtomicBool,
    willing: AtomicBool,
}

impl Tokens for Pupil {
    fn verify(&self, token: &str, now: i64) -> Result<Principal, TokenError> {
        match token.strip_prefix("new-") {
            Some(token) if self.learned.load(Ordering::SeqCst) => self.inner.verify(token, now),
            Some(_) => Err(TokenError::NoSigner { kid: Some("k2".into()) }),
            None => self.inner.verify(token, now),
        }
    }

    fn may_learn(&self, error: &TokenError) -> bool {
        matches!(error, TokenError::NoSigner { .. }) && self.willing.load(Ordering::SeqCst)
    }

    fn learn(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

fn pupil() -> (Client, Arc<Pupil>) {
    let (learned, willing) = (AtomicBool::new(false), AtomicBool::new(true));
    let pupil = Arc::new(Pupil { inner: verifier(), learned, willing });
    (client_with(Version::V2, GatewayConfig::default(), pupil.clone()), pupil)
}

impl Client {
    fn learned(&mut self) -> Vec<Value> {
        let effects = self.session.learned(self.now);
        self.sort(effects)
    }

    fn new_token(&mut self, lifetime: i64) -> String {
        format!("new-{}", anon(lifetime))
    }
}

const NO_SIGNER: &str =
    "Failed to generate JWT signer for key ID (kid) \"k2\", check your JWT secret or JWKS configuration";

#[test]
fn joins_wait_for_one_lesson_and_keep_their_order() {
    let (mut client, pupil) = pupil();
    let token = client.new_token(60);
    for topic in ["realtime:t", "realtime:u"] {
        let mut payload = todos();
        payload["access_token"] = json!(token);
        assert!(client.join(topic, payload).is_empty());
        assert!(client.send(json!(["1", "2", topic, "presence", {}])).is_empty());
    }
    assert!(matches!(client.wants.drain(..).collect::<Vec<_>>().as_slice(), [Effect::Learn]), "once for both");
    assert_eq!(client.join("realtime:v", json!({})).len(), 1, "others don't wait");
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(3600)));
    pupil.learned.store(true, Ordering::SeqCst);
    let frames = client.learned();
    assert_eq!(frames.len(), 4);
    for of_topic in frames.chunks(2) {
        assert_eq!((&of_topic[0][4]["status"], &of_topic[0][1]), (&json!("ok"), &json!("1")));
        assert_eq!((&of_topic[0][2], &of_topic[1][1]), (&of_topic[1][2], &json!("2")));
    }
    assert!(matches!(client.wants.as_slice(), [Effect::Subscribe { .. }, Effect::Subscribe { .. }]));
}

#[test]
fn a_lesson_that_teaches_nothing_refuses_and_is_not_repeated() {
    let (mut client, _) = pupil();
    let token = client.new_token(60);
    client.join("realtime:t", json!({"access_token": token}));
    client.send(json!(["1", "2", "realtime:t", "phx_leave", {}]));
    client.wants.clear();
    let frames = client.learned();
    assert_eq!(frames[0][4]["response"]["reason"], format!("JwtSignerError: {NO_SIGNER}"));
    assert_eq!(frames[1], ok(json!("1"), json!("2"), "realtime:t", json!({})));
    assert!(client.wants.is_empty());
}

#[test]
fn who_may_not_learn_is_refused_at_once() {
    let (mut client, pupil) = pupil();
    pupil.willing.store(false, Ordering::SeqCst);
    let token = client.new_token(60);
    assert_eq!(client.reason(json!({"access_token": token})), format!("JwtSignerError: {NO_SIGNER}"));
    assert!(client.wants.is_empty());
}

#[test]
fn a_new_token_waits_while_its_channel_goes_on() {
    let (mut client, pupil) = pupil();
    let mut payload = todos();
    payload["access_token"] = json!(anon(5));
    client.join("realtime:t", payload);
    let id = client.subscribed();
    let token = client.new_token(60);
    assert!(client.send(json!(["1", "2", "realtime:t", "access_token", {"access_token": token}])).is_empty());
    assert!(client.send(json!(["1", "3", "realtime:t", "presence", {}])).is_empty());
    assert!(matches!(client.wants.pop(), Some(Effect::Learn)));
    // The hub's answer is heard meanwhile.
    assert_eq!(
        client.answer(id, Ok(Activated::default())),
        [system("postgres_changes", "ok", "Subscribed to PostgreSQL")]
    );
    // The old token ends, but what follows it is here.
    assert!(client.pass(6).is_empty());
    pupil.learned.store(true, Ordering::SeqCst);
    assert_eq!(client.learned().len(), 1);
    assert!(matches!(client.wants.pop(), Some(Effect::Reclaim { .. })));
    assert_eq!(client.pass(54).len(), 2, "the new one's end");
}

#[test]
fn a_new_token_that_stays_unknown_ends_the_channel() {
    let (mut client, _) = pupil();
    client.join("realtime:t", json!({}));
    let token = client.new_token(60);
    client.send(json!(["1", "2", "realtime:t", "access_token", {"access_token": token}]));
    client.send(json!(["1", "3", "realtime:t", "phx_leave", {}]));
    let frames = client.learned();
    assert_eq!(frames[0], system("system", "error", NO_SIGNER));
    assert_eq!(frames[1][3], "phx_close");
    assert_eq!(frames[2], ok(json!("1"), json!("3"), "realtime:t", json!({})));
}

#[test]
fn a_join_that_waited_for_its_key_may_be_held_after_it() {
    let (mut client, pupil) = pupil();
    let mut payload = todos();
    payload["access_token"] = json!(client.new_token(60));
    payload["config"]["postgres_changes_options"] = json!({"wait": true});
    client.join("realtime:t", payload);
    client.send(json!(["1", "2", "realtime:t", "presence", {}]));
    client.wants.clear();
    pupil.learned.store(true, Ordering::SeqCst);
    assert!(client.learned().is_empty());
    let id = client.subscribed();
    let refs: Vec<Value> = client.answer(id, Ok(Activated::default())).iter().map(|frame| frame[1].clone()).collect();
    assert_eq!(refs, [json!("1"), json!(null), json!("2")]);
}
