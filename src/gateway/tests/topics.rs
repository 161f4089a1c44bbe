//! The topics door on the wire, with a hub that only answers.

use super::*;

async fn visit(relay: &Relay, path: &str, headers: &[(&'static str, String)]) -> Result<Phone, u16> {
    let mut request = format!("ws://{}{path}", relay.addr).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let stream = TcpStream::connect(relay.addr).await.unwrap();
    match client_async(request, stream).await {
        Ok((phone, _)) => Ok(phone),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

async fn visitor(relay: &Relay) -> Phone {
    visit(relay, &format!("/api/ws?token={}", relay.token(3600)), &[]).await.unwrap()
}

#[tokio::test]
async fn a_token_may_come_in_every_way_that_clients_have() {
    let relay = relay(quick()).await;
    let token = relay.token(60);
    for path in ["/api/ws", "/realtime/v1/api/ws", "/api/ws/"] {
        for query in ["token", "apikey"] {
            assert!(visit(&relay, &format!("{path}?{query}={token}"), &[]).await.is_ok());
        }
        for (name, value) in
            [("authorization", format!("Bearer {token}")), ("x-api-key", token.clone()), ("apikey", token.clone())]
        {
            assert!(visit(&relay, path, &[(name, value)]).await.is_ok(), "{name}");
        }
    }
    assert_eq!(visit(&relay, "/api/ws", &[]).await.err(), Some(401));
    assert_eq!(visit(&relay, &format!("/api/ws?token={}", relay.token(-1)), &[]).await.err(), Some(401));
    let both = [("authorization", "Bearer bad".to_owned())];
    assert_eq!(visit(&relay, &format!("/api/ws?token={token}"), &both).await.err(), Some(401));
    assert_eq!(relay.http("GET /api/ws", "").await.0, 400);
}

#[tokio::test]
async fn frames_are_typed_and_answered_with_their_refs() {
    let relay = relay(quick()).await;
    let mut phone = visitor(&relay).await;
    send(&mut phone, json!({ "type": "ping", "ref": [1] })).await;
    assert_eq!(next_json(&mut phone).await, json!({ "type": "pong", "ref": [1] }));
    send(&mut phone, json!({ "type": "subscribe", "topics": ["a", "b"], "private": false, "ref": 2 })).await;
    for topic in ["a", "b"] {
        let answer = next_json(&mut phone).await;
        assert_eq!(
            (&answer["type"], &answer["topic"], &answer["ref"]),
            (&json!("subscribed"), &json!(topic), &json!(2))
        );
    }
    send(&mut phone, json!({ "type": "unsubscribe", "topics": ["a", "never"] })).await;
    for topic in ["a", "never"] {
        assert_eq!(next_json(&mut phone).await, json!({ "type": "unsubscribed", "topic": topic }));
    }
    send(&mut phone, json!({ "type": "publish", "topic": "never", "event": "e", "ref": "p" })).await;
    let answer = next_json(&mut phone).await;
    let expected = (&json!("error"), &json!("publish"), &json!("NotSubscribed"), &json!("p"));
    assert_eq!((&answer["type"], &answer["request"], &answer["code"], &answer["ref"]), expected);
    assert_eq!(relay.metrics.connections_by_protocol.get_or_create(&[("version", "topics")]).get(), 1);
}

#[tokio::test]
async fn what_can_not_be_read_is_named_and_the_connection_lives() {
    let relay = relay(quick()).await;
    let mut phone = visitor(&relay).await;
    let deep = format!(r#"{{"type":"publish","topic":"a","event":"e","payload":{}"#, "[".repeat(500_000));
    for (text, code) in [
        ("", "BadFrame"),
        ("{", "BadFrame"),
        ("[null,null,\"phoenix\",\"heartbeat\",{}]", "BadFrame"),
        (r#"{"type":"join"}"#, "UnknownType"),
        (r#"{"type":"subscribe","topics":["a"],"sinse":{}}"#, "UnknownField"),
        (&deep, "BadFrame"),
    ] {
        phone.send(Message::text(text)).await.unwrap();
        let answer = next_json(&mut phone).await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{answer}");
    }
    phone.send(Message::binary(b"\x03".to_vec())).await.unwrap();
    assert_eq!(next_json(&mut phone).await["code"], "BinaryFrame");
    assert_eq!(relay.metrics.malformed_frames.get(), 7);
    send(&mut phone, json!({ "type": "subscribe", "topics": [""], "private": false })).await;
    assert_eq!(next_json(&mut phone).await["code"], "TopicNameRequired");
    send(&mut phone, json!({ "type": "ping" })).await;
    assert_eq!(next_json(&mut phone).await["type"], "pong");
}

#[tokio::test]
async fn a_new_token_is_that_of_all_topics_and_of_later_ones() {
    let relay = relay(quick()).await;
    let mut phone = visitor(&relay).await;
    send(&mut phone, json!({ "type": "subscribe", "topics": ["a", "b"], "private": false })).await;
    next_json(&mut phone).await;
    next_json(&mut phone).await;
    send(&mut phone, json!({ "type": "token", "token": relay.token(-1) })).await;
    let mut ended = Vec::new();
    for _ in 0..2 {
        let told = next_json(&mut phone).await;
        assert_eq!((&told["type"], &told["status"]), (&json!("system"), &json!("error")), "{told}");
        assert!(told["message"].as_str().unwrap().starts_with("Token has expired"), "{told}");
        let end = next_json(&mut phone).await;
        assert_eq!((&end["type"], &end["topic"]), (&json!("unsubscribed"), &told["topic"]));
        ended.push(end["topic"].as_str().unwrap().to_owned());
    }
    ended.sort();
    assert_eq!(ended, ["a", "b"]);
    send(&mut phone, json!({ "type": "subscribe", "topics": ["c"], "private": false })).await;
    assert_eq!(next_json(&mut phone).await["code"], "InvalidJWTToken");
    send(&mut phone, json!({ "type": "token", "token": relay.token(600) })).await;
    send(&mut phone, json!({ "type": "subscribe", "topics": ["c"], "private": false })).await;
    assert_eq!(next_json(&mut phone).await["type"], "subscribed");
}

#[tokio::test]
async fn too_many_joins_and_a_drain_close_the_door_as_they_close_the_other() {
    let relay = relay(GatewayConfig { max_joins_per_second: 1, ..quick() }).await;
    let mut phone = visitor(&relay).await;
    let topics: Vec<String> = (0..61).map(|number| format!("t{number}")).collect();
    send(&mut phone, json!({ "type": "subscribe", "topics": topics, "private": false })).await;
    assert_eq!(close_code(&mut phone).await, Some(1012));
    let mut phone = visitor(&relay).await;
    relay.drain.drain();
    assert_eq!(close_code(&mut phone).await, Some(1012));
}
