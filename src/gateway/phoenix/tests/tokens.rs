//! Tokens: at the join, renewed, expired (`protocol.md` §13.9).

use super::*;

#[test]
fn the_joins_token_is_verified() {
    let mut client = client();
    let expired = anon(-5);
    let no_role = token(json!({"exp": NOW + 5}));
    let mut wrong = anon(50);
    wrong.replace_range(wrong.len() - 6.., "AAAAAA");
    assert_eq!(client.reason(json!({"access_token": expired})), "InvalidJWTToken: Token has expired 5 seconds ago");
    assert_eq!(client.reason(json!({"access_token": "potato"})), "MalformedJWT: The token provided is not a valid JWT");
    assert_eq!(
        client.reason(json!({"access_token": no_role})),
        "InvalidJWTToken: Fields `role` and `exp` are required in JWT"
    );
    assert_eq!(client.reason(json!({"access_token": wrong})), "JwtSignatureError: Failed to validate JWT signature");
    // Nothing is left of a refused join.
    for payload in [
        json!({"access_token": "sb_publishable_x"}),
        json!({}),
        json!({"user_token": anon(9)}),
        json!({"access_token": anon(7)}),
    ] {
        assert_eq!(client.join("realtime:t", payload)[0][4]["status"], "ok");
    }
}

#[test]
fn a_connection_whose_token_has_expired_can_not_join_with_it() {
    let mut client = client();
    client.pass(3601);
    assert_eq!(client.reason(json!({})), "InvalidJWTToken: Token has expired 1 seconds ago");
}

#[test]
fn tokens_to_ignore_are_ignored() {
    let mut client = client();
    let own = anon(60);
    client.join("realtime:t", json!({"access_token": own}));
    for payload in [
        json!({"access_token": "sb_x"}),
        json!({"access_token": null}),
        json!({"access_token": own}),
        json!({}),
        json!(1),
    ] {
        assert!(client.send(json!(["1", "2", "realtime:t", "access_token", payload])).is_empty());
    }
    // A public channel without changes: a new token makes no sound either.
    assert!(client.send(json!([null, "2", "realtime:t", "access_token", {"access_token": anon(90)}])).is_empty());
    assert!(client.pass(61).is_empty() && client.pass(28).is_empty());
    assert_eq!(client.pass(1).len(), 2);
}

#[test]
fn a_bad_new_token_ends_the_channel_and_only_that() {
    for (bad, text) in [
        (anon(-3), "Token has expired 3 seconds ago"),
        (String::new(), "The token provided is not a valid JWT"),
        (token(json!({"exp": NOW + 9})), "Fields `role` and `exp` are required in JWT"),
    ] {
        let mut client = client();
        client.join("realtime:t", todos());
        client.join("realtime:other", json!({}));
        let frames = client.send(json!(["1", "2", "realtime:t", "access_token", {"access_token": bad}]));
        assert_eq!(frames, [system("system", "error", text), json!(["1", "1", "realtime:t", "phx_close", {}])]);
        assert!(matches!(client.wants.as_slice(), [Effect::Subscribe { .. }, Effect::Leave(_)]));
        let reply = client.send(json!(["1", "3", "realtime:other", "phx_leave", {}]));
        assert_eq!(reply.len(), 2);
    }
}

#[test]
fn a_new_token_is_put_in_force_and_told() {
    let mut client = client();
    client.join("realtime:t", todos());
    let id = client.subscribed();
    client.answer(id, Ok(Activated::default()));
    let other = token(json!({"role": "authenticated", "exp": NOW + 60}));
    assert!(client.send(json!([null, "2", "realtime:t", "access_token", {"access_token": other}])).is_empty());
    match client.wants.pop() {
        Some(Effect::Reclaim { id: reclaimed, principal, .. }) => {
            assert!(reclaimed == id && &*principal.role == "authenticated")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        client.answer(id, Ok(Activated::default())),
        [system("postgres_changes", "ok", "Subscribed to PostgreSQL")]
    );
}

#[test]
fn a_token_that_expires_ends_its_channel_only() {
    let mut client = client();
    client.join("realtime:t", json!({"access_token": anon(3)}));
    client.join("realtime:other", json!({}));
    assert_eq!(client.session.next_tick(client.now), Some(Duration::from_secs(3)));
    assert!(client.pass(2).is_empty());
    let frames = client.pass(1);
    assert_eq!(
        frames,
        [
            system("system", "error", "Token has expired 0 seconds ago"),
            json!(["1", "1", "realtime:t", "phx_close", {}])
        ]
    );
    assert!(client.pass(5).is_empty());
    assert_eq!(client.shared.metrics.channels.get(), 1);
}
