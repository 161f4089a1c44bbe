//! Connections: liveness, limits, closing, and what the hub is asked (`protocol.md` §13.2–13.4, 13.9, 13.14).

use super::*;

#[tokio::test]
async fn frames_sent_right_behind_the_handshake_are_read() {
    let relay = relay(quick()).await;
    let mut stream = TcpStream::connect(relay.addr).await.unwrap();
    let mut bytes =
        format!("GET /websocket?apikey={} HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n", relay.token(60)).into_bytes();
    let heartbeat = r#"{"topic":"phoenix","event":"heartbeat","ref":"1"}"#;
    bytes.extend([0x81, 0x80 | u8::try_from(heartbeat.len()).unwrap(), 0, 0, 0, 0]);
    bytes.extend(heartbeat.as_bytes());
    stream.write_all(&bytes).await.unwrap();
    let mut read = Vec::new();
    let expected = r#"{"topic":"phoenix","event":"phx_reply","payload":{"status":"ok","response":{}},"ref":"1"}"#;
    let found = timeout(PATIENCE, async {
        while !read.ends_with(expected.as_bytes()) {
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0);
        }
    });
    assert!(found.await.is_ok(), "{}", String::from_utf8_lossy(&read));
}

#[tokio::test]
async fn a_ping_is_answered_and_a_close_echoed() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    phone.send(Message::Ping(Bytes::from_static(b"are you there"))).await.unwrap();
    assert_eq!(next(&mut phone).await, Message::Pong(Bytes::from_static(b"are you there")));
    phone.close(None).await.unwrap();
    assert_eq!(close_code(&mut phone).await, None);
    until("the connection is forgotten", || relay.connections.is_empty()).await;
    assert_eq!(relay.metrics.connections.get(), 0);
}

#[tokio::test]
async fn malformed_frames_are_dropped_and_the_socket_lives() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    for text in ["", "{", "{}", "[1,2,3,4]"] {
        phone.send(Message::text(text)).await.unwrap();
    }
    for bytes in [&b""[..], b"\x07", b"\x03\x01", b"\x00\x00\x00\x00\x00"] {
        phone.send(Message::binary(bytes)).await.unwrap();
    }
    // And a message in pieces is one message.
    let (one, two) = (r#"[null,"1","phoenix","#, r#""heartbeat",{}]"#);
    for (piece, kind, last) in [(one, Data::Text, false), (two, Data::Continue, true)] {
        let frame = Frame::message(Utf8Bytes::from(piece), OpCode::Data(kind), last);
        phone.send(Message::Frame(frame)).await.unwrap();
    }
    assert_eq!(next_json(&mut phone).await[1], "1");
    assert_eq!(relay.metrics.malformed_frames.get(), 7);
}

#[tokio::test]
async fn messages_that_do_not_end_have_a_bound_together_and_a_time() {
    let kib = 1024;
    let relay = relay(GatewayConfig { max_unfinished_bytes: 500 * kib, ..quick() }).await;
    let part = |size: usize| Message::Frame(Frame::message(vec![b'['; size], OpCode::Data(Data::Text), false));
    let (mut one, mut two) = (relay.phone().await, relay.phone().await);
    for phone in [&mut one, &mut two] {
        phone.send(part(250 * kib)).await.unwrap();
    }
    // Of one user. Each is less than half of all, and one of them is one too many.
    let (first, second) = (close_code(&mut one), close_code(&mut two));
    let (first, second) = (std::pin::pin!(first), std::pin::pin!(second));
    match futures_util::future::select(first, second).await {
        futures_util::future::Either::Left((code, _)) | futures_util::future::Either::Right((code, _)) => {
            assert_eq!(code, Some(1013));
        }
    }
    // Small ones have a place always.
    let mut phone = relay.phone().await;
    send(&mut phone, json!([null, "1", "phoenix", "heartbeat", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "1");
    let config = GatewayConfig { idle_timeout: Duration::from_millis(300), ..quick() };
    let relay = self::relay(config).await;
    let mut phone = relay.phone().await;
    phone.send(part(100 * kib)).await.unwrap();
    // Pings show that it lives, and not that its message will end.
    let ended = timeout(PATIENCE, async {
        while phone.send(Message::Ping(Bytes::new())).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(ended.await.is_ok());
}

#[tokio::test]
async fn too_large_a_message_closes_with_1009() {
    let relay = relay(GatewayConfig { max_message_bytes: 1000, ..quick() }).await;
    let mut phone = relay.phone().await;
    let _ = phone.send(Message::text("x".repeat(3_000_000))).await;
    assert_eq!(close_code(&mut phone).await, Some(1009));
    let mut phone = relay.phone().await;
    for kind in [Data::Text, Data::Continue] {
        let frame = Frame::message(Utf8Bytes::from("x".repeat(600)), OpCode::Data(kind), false);
        phone.send(Message::Frame(frame)).await.unwrap();
    }
    assert_eq!(close_code(&mut phone).await, Some(1009));
    until("both are counted", || relay.metrics.closes.get_or_create(&[("reason", "protocol")]).get() == 2).await;
}

#[tokio::test]
async fn a_large_message_leaves_the_connection_as_it_was() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    for round in 0..3 {
        let reference = round.to_string();
        let heartbeat = json!([null, reference, "phoenix", "heartbeat", {}]).to_string();
        phone.feed(Message::text(json!(["x".repeat(100_000 * round)]).to_string())).await.unwrap();
        // Sent together with what follows, or in pieces, or alone.
        if round == 2 {
            phone.flush().await.unwrap();
            until("it has been read", || relay.metrics.malformed_frames.get() == 3).await;
            phone.send(Message::Ping(Bytes::from_static(b"p"))).await.unwrap();
            assert_eq!(next(&mut phone).await, Message::Pong(Bytes::from_static(b"p")));
        }
        phone.send(Message::text(heartbeat)).await.unwrap();
        assert_eq!(next_json(&mut phone).await[1], json!(reference));
    }
}

#[tokio::test]
async fn a_quiet_connection_is_closed_with_1012_and_a_ping_keeps_it() {
    let relay = relay(GatewayConfig { idle_timeout: Duration::from_millis(300), ..quick() }).await;
    let (mut quiet, mut alive) = (relay.phone().await, relay.phone().await);
    let pinging = async {
        for _ in 0..8 {
            alive.send(Message::Ping(Bytes::new())).await.unwrap();
            assert_eq!(next(&mut alive).await, Message::Pong(Bytes::new()));
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
    };
    let (code, ()) = tokio::join!(close_code(&mut quiet), pinging);
    assert_eq!(code, Some(1012));
}

#[tokio::test]
async fn a_drain_closes_all_with_1012_and_ends_in_time() {
    let relay = relay(quick()).await;
    let mut phones = Vec::new();
    for _ in 0..20 {
        let mut phone = relay.phone().await;
        send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
        assert_eq!(next_json(&mut phone).await[4]["status"], "ok");
        phones.push(phone);
    }
    until("all are subscribed", || relay.asked.count() == 20).await;
    // One that never reads must not hold the others up.
    let deaf = relay.phone().await;
    relay.drain.drain();
    let codes = async {
        for phone in &mut phones {
            assert_eq!(close_code(phone).await, Some(1012));
        }
    };
    let ((), ended) = tokio::join!(codes, relay.connections.join(PATIENCE));
    assert!(ended);
    assert_eq!((relay.asked.count(), relay.metrics.connections.get(), relay.metrics.channels.get()), (0, 0, 0));
    assert_eq!(relay.metrics.closes.get_or_create(&[("reason", "drain")]).get(), 21);
    drop(deaf);
    assert!(TcpStream::connect(relay.addr).await.is_err());
}

#[tokio::test]
async fn at_a_drain_the_phones_are_closed_one_after_the_other_and_who_comes_meanwhile_hears_why() {
    let window = Duration::from_millis(1500);
    let config = GatewayConfig { max_closes_per_second: 1, drain_window: window, ..quick() };
    let relay = relay(config).await;
    relay.ready.send_replace(true);
    assert_eq!(relay.http("GET /readyz", "").await.0, 200);
    let mut phones = Vec::new();
    for _ in 0..30 {
        phones.push(relay.phone().await);
    }
    let started = std::time::Instant::now();
    relay.drain.drain();
    let late = async {
        let (status, head, _) = relay.http("GET /readyz", "").await;
        assert_eq!(status, 503, "{head}");
        let (status, head, _) = relay.upgrade(&format!("/websocket?apikey={}", relay.token(60)), "").await;
        assert_eq!(status, 503, "{head}");
        assert!(head.to_lowercase().contains("retry-after: "), "{head}");
        assert!(
            started.elapsed() > window || relay.metrics.connections.get() > 0,
            "told before the last one was closed"
        );
    };
    let closed = phones.iter_mut().map(|phone| async {
        assert_eq!(close_code(phone).await, Some(1012));
        started.elapsed()
    });
    let ((), moments) = tokio::join!(late, futures_util::future::join_all(closed));
    let first = moments.iter().min().copied().unwrap_or_default();
    let last = moments.iter().max().copied().unwrap_or_default();
    assert!(last - first > window / 4, "all at once: {moments:?}");
    assert!(relay.connections.join(PATIENCE).await);
    until("the port is free", || std::net::TcpStream::connect(relay.addr).is_err()).await;
}

#[tokio::test]
async fn a_phone_that_stops_reading_is_closed_with_1013() {
    let relay = relay(GatewayConfig { max_outbox_bytes: 10_000, ..quick() }).await;
    let mut phone = relay.phone().await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    until("it is subscribed", || relay.asked.count() == 1).await;
    let port = relay.asked.ports.lock().unwrap().values().next().unwrap().clone();
    let change = frame::text("x".repeat(5000).as_bytes());
    let mut sent = 0;
    while port.outbox.send(change.clone()) {
        sent += 1;
        assert!(sent < 100_000, "it never filled up");
    }
    assert_eq!(close_code(&mut phone).await, Some(1013));
    until("the hub was told", || relay.asked.count() == 0).await;
    assert_eq!(relay.metrics.closes.get_or_create(&[("reason", "slow")]).get(), 1);
}

#[tokio::test]
async fn a_phone_that_takes_nothing_for_long_is_closed_though_it_still_talks() {
    let relay = relay(GatewayConfig { idle_timeout: Duration::from_millis(200), ..quick() }).await;
    let mut phone = relay.phone().await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    until("it is subscribed", || relay.asked.count() == 1).await;
    let port = relay.asked.ports.lock().unwrap().values().next().unwrap().clone();
    while port.outbox.waiting() < 500_000 {
        assert!(port.outbox.send(frame::text("x".repeat(50_000).as_bytes())));
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    while port.outbox.is_open() {
        assert!(std::time::Instant::now() < deadline);
        let _ = phone.send(Message::Ping(Bytes::new())).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(port.outbox.closing(), Some(crate::hub::CloseReason::Slow));
}

#[tokio::test]
async fn a_token_that_expires_ends_its_channel_and_not_the_socket() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    let payload = json!({"access_token": relay.token(100)});
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", payload])).await;
    send(&mut phone, json!(["2", "2", "realtime:u", "phx_join", {}])).await;
    next_json(&mut phone).await;
    next_json(&mut phone).await;
    relay.clock.advance(105_000);
    let told = next_json(&mut phone).await;
    // Five, and what the machine took for it.
    let ago = told[4]["message"]
        .as_str()
        .unwrap()
        .strip_prefix("Token has expired ")
        .and_then(|m| m.strip_suffix(" seconds ago"));
    assert!(ago.is_some_and(|seconds| seconds.parse::<u32>().unwrap() >= 5), "{told}");
    assert_eq!(next_json(&mut phone).await, json!(["1", "1", "realtime:t", "phx_close", {}]));
    send(&mut phone, json!(["2", "3", "realtime:u", "phx_leave", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "3");
}

#[tokio::test]
async fn a_hundred_joins_at_once_are_all_answered() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    for n in 0..100 {
        let reference = n.to_string();
        phone
            .feed(Message::text(
                json!([reference, reference, format!("realtime:{n}"), "phx_join", todos()]).to_string(),
            ))
            .await
            .unwrap();
    }
    phone.flush().await.unwrap();
    let (mut replies, mut subscribed) = (0, 0);
    while replies < 100 || subscribed < 100 {
        let frame = next_json(&mut phone).await;
        match frame[3].as_str().unwrap() {
            "phx_reply" => replies += 1,
            "system" => {
                assert_eq!(frame[4]["message"], "Subscribed to PostgreSQL");
                subscribed += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((relay.asked.count(), relay.metrics.channels.get()), (100, 100));
    drop(phone);
    until("the hub forgot them all", || relay.asked.count() == 0).await;
    until("the gauges are back", || relay.metrics.channels.get() == 0 && relay.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn a_slow_hub_holds_up_neither_heartbeats_nor_leaves() {
    let relay = relay(quick()).await;
    relay.asked.hold.store(true, Ordering::SeqCst);
    let mut phone = relay.phone().await;
    for topic in ["realtime:a", "realtime:b", "realtime:c"] {
        send(&mut phone, json!(["1", "1", topic, "phx_join", todos()])).await;
        assert_eq!(next_json(&mut phone).await[3], "phx_reply");
    }
    send(&mut phone, json!([null, "2", "phoenix", "heartbeat", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "2");
    until("all are asked for", || relay.asked.count() == 3).await;
    send(&mut phone, json!(["1", "3", "realtime:a", "phx_leave", {}])).await;
    assert_eq!(next_json(&mut phone).await[1], "3");
    assert_eq!(next_json(&mut phone).await[3], "phx_close");
    until("the one is forgotten", || relay.asked.count() == 2).await;
    // Joined again: the new instance is subscribed, the old one stays forgotten.
    send(&mut phone, json!(["4", "4", "realtime:b", "phx_join", todos()])).await;
    assert_eq!(next_json(&mut phone).await[1], "4");
    assert_eq!(next_json(&mut phone).await, json!(["1", "1", "realtime:b", "phx_close", {}]));
    until("all three have been asked", || relay.asked.held.lock().unwrap().len() == 4).await;
    for reply in relay.asked.held.lock().unwrap().drain(..) {
        let _ = reply.send(Ok(Activated::default()));
    }
    let mut told = [next_json(&mut phone).await[2].clone(), next_json(&mut phone).await[2].clone()];
    told.sort_by_key(Value::to_string);
    assert_eq!(told, ["realtime:b", "realtime:c"]);
    until("two are left", || relay.asked.count() == 2).await;
    drop(phone);
    until("none is left", || relay.asked.count() == 0).await;
}

#[tokio::test]
async fn a_new_token_reaches_the_hub() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    next_json(&mut phone).await;
    assert_eq!(next_json(&mut phone).await[4]["message"], "Subscribed to PostgreSQL");
    send(&mut phone, json!([null, "2", "realtime:t", "access_token", {"access_token": relay.token(99)}])).await;
    assert_eq!(next_json(&mut phone).await[4]["message"], "Subscribed to PostgreSQL");
    assert_eq!(relay.asked.reclaims.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn who_joins_too_often_is_closed_with_1012() {
    let relay = relay(GatewayConfig { max_joins_per_second: 1, ..quick() }).await;
    let mut phone = relay.phone().await;
    for n in 0..61 {
        let topic = format!("realtime:{n}");
        phone.feed(Message::text(json!(["1", "1", topic, "phx_join", {}]).to_string())).await.unwrap();
    }
    phone.flush().await.unwrap();
    for _ in 0..60 {
        assert_eq!(next_json(&mut phone).await[4]["status"], "ok");
    }
    let reason = &next_json(&mut phone).await[4]["response"]["reason"];
    assert_eq!(reason, "ClientJoinRateLimitReached: Too many joins per second");
    assert_eq!(close_code(&mut phone).await, Some(1012));
    until("it is counted", || relay.metrics.closes.get_or_create(&[("reason", "joins")]).get() == 1).await;
}

#[tokio::test]
async fn a_presence_state_that_no_shard_takes_ends_its_channel() {
    // Nobody reads it, and it has room for one.
    let (queue, _full) = mpsc::channel(1);
    let config = GatewayConfig { room_patience: Duration::from_millis(50), ..quick() };
    let stuck = |_, metrics, _| Rooms::new(RoomConfig::default(), vec![queue], metrics);
    let relay = relay_of(config, Arc::new(verifier()), stuck).await;
    let mut phone = relay.phone().await;
    for topic in ["realtime:one", "realtime:two"] {
        send(&mut phone, json!(["1", "1", topic, "phx_join", {"config": {"presence": {"enabled": true}}}])).await;
    }
    let mut came = Vec::new();
    while came.len() < 4 {
        let frame = next_json(&mut phone).await;
        came.push(json!([frame[2], frame[3], frame[4]["message"]]));
    }
    let expected = json!([
        ["realtime:one", "phx_reply", null],
        ["realtime:two", "phx_reply", null],
        ["realtime:two", "system", "Presence state could not be sent in time"],
        ["realtime:two", "phx_close", null],
    ]);
    assert_eq!(Value::from(came), expected);
    until("the hub has heard of it", || relay.asked.count() == 1).await;
}

#[tokio::test]
async fn who_leaves_a_private_channel_is_watched_no_longer() {
    let relay = relay(quick()).await;
    let mut phone = relay.phone().await;
    for topic in ["realtime:one", "realtime:two"] {
        send(&mut phone, json!(["1", "1", topic, "phx_join", {"config": {"private": true}}])).await;
        assert_eq!(next_json(&mut phone).await[4]["status"], "ok");
    }
    let watched = || relay.asked.watched.lock().unwrap().iter().map(Watched::is_wanted).collect::<Vec<_>>();
    until("both are watched", || watched() == [true, true]).await;
    send(&mut phone, json!(["1", "2", "realtime:one", "phx_leave", {}])).await;
    assert_eq!(next_json(&mut phone).await[3], "phx_reply");
    until("one is left", || watched() == [false, true]).await;
}
