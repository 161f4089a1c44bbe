//! Pings and what they prove, and where a device is named, over real sockets.

use super::*;
use crate::change::{Lsn, Position};
use crate::claims::Principal;
use crate::gateway::{DeviceConfig, Receipt};
use crate::hub::{Reach, SubscribeError};
use crate::resume::{Cursor, CursorKey, Key, Wanted};

/// Times that a test can wait for.
fn quick_pings(receipt: Receipt) -> GatewayConfig {
    let ms = Duration::from_millis;
    let device = DeviceConfig {
        receipt,
        patience: ms(100),
        quiet: ms(400),
        busy: ms(60),
        behind: ms(10),
        unanswered: ms(150),
        ..DeviceConfig::default()
    };
    GatewayConfig { device, ..quick() }
}

async fn phone_at(relay: &Relay, path: &str) -> Phone {
    let url = format!("ws://{}{path}?vsn=2.0.0&apikey={}", relay.addr, relay.token(3600));
    let stream = TcpStream::connect(relay.addr).await.unwrap();
    client_async(url.into_client_request().unwrap(), stream).await.unwrap().0
}

const PATH: &str = "/realtime/v1/device/phone/websocket";

/// Joined, and active as far as the hub goes.
async fn joined(relay: &Relay) -> (Phone, Arc<Port>, Arc<Reach>) {
    let mut phone = phone_at(relay, PATH).await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    until("it is subscribed", || relay.asked.count() == 1).await;
    let port = relay.asked.ports.lock().unwrap().values().next().unwrap().clone();
    let reach = Arc::new(Reach::default());
    port.place.begin(reach.clone(), None);
    (phone, port, reach)
}

fn at(lsn: u64) -> Cursor {
    Cursor { epoch: 1, position: Position { lsn: Lsn(lsn), ordinal: 0 } }
}

/// Where a device would begin that comes now.
fn place(relay: &Relay) -> Option<Cursor> {
    let claims = json!({"role": "anon"});
    let principal = Principal::new(claims.as_object().unwrap().clone(), 0).unwrap();
    let entry = r#"{"event":"*","schema":"public","table":"todos"}"#;
    let wanted = [Wanted { key: Key::new(&principal, "phone", "realtime:t", entry), since: None, otherwise: None }];
    relay.frontiers.peek(&wanted[0].key)
}

/// Reads until a Ping has come and been answered, which is done by reading on.
async fn read(phone: &mut Phone) -> Message {
    timeout(PATIENCE, phone.next()).await.unwrap().unwrap().unwrap()
}

async fn pinged(phone: &mut Phone) {
    while !matches!(read(phone).await, Message::Ping(_)) {}
    phone.flush().await.unwrap();
}

#[tokio::test]
async fn the_answer_to_a_ping_moves_the_frontier_to_where_the_channel_was_when_it_was_asked() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    let (mut phone, port, reach) = joined(&relay).await;
    reach.set(Some(at(10)));
    port.place.deliver();
    assert!(port.outbox.send(frame::text(b"a row")));
    while !matches!(read(&mut phone).await, Message::Ping(_)) {}
    // Not answered yet, for nobody has read on.
    reach.set(Some(at(20)));
    assert_eq!(place(&relay), None);
    phone.flush().await.unwrap();
    until("it is receipted", || place(&relay) == Some(at(10))).await;
    // And once more for what the hub says a moment later.
    pinged(&mut phone).await;
    until("that too", || place(&relay) == Some(at(20))).await;
    reach.set(Some(at(30)));
    pinged(&mut phone).await;
    until("quiet progress too", || place(&relay) == Some(at(30))).await;
}

#[tokio::test]
async fn many_rows_are_one_question() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    let (mut phone, port, reach) = joined(&relay).await;
    reach.set(Some(at(10)));
    for _ in 0..500 {
        assert!(port.outbox.send(frame::text(b"a row")));
    }
    pinged(&mut phone).await;
    until("it is receipted", || place(&relay) == Some(at(10))).await;
    assert!(relay.metrics.pings.get() <= 3, "{}", relay.metrics.pings.get());
}

#[tokio::test]
async fn an_expired_token_proves_nothing() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    let (mut phone, port, reach) = joined(&relay).await;
    reach.set(Some(at(10)));
    // What the hub withholds from now on is not received, and the channel is not ended yet.
    relay.clock.advance(3_600_000);
    assert!(port.outbox.send(frame::text(b"a row")));
    let mut pings = 0;
    while pings < 2 {
        match timeout(PATIENCE, phone.next()).await.unwrap().unwrap().unwrap() {
            Message::Ping(_) => pings += 1,
            Message::Text(text) if text.contains("phx_close") => break,
            _ => {}
        }
    }
    assert_eq!(place(&relay), None);
}

#[tokio::test]
async fn behind_a_proxy_that_answers_pings_only_heartbeats_count_and_only_the_next_one() {
    let relay = relay(quick_pings(Receipt::Heartbeat)).await;
    let (mut phone, port, reach) = joined(&relay).await;
    reach.set(Some(at(10)));
    assert!(port.outbox.send(frame::text(b"a row")));
    for _ in 0..2 {
        pinged(&mut phone).await;
    }
    until("they were answered", || relay.metrics.pings.get() >= 2).await;
    assert_eq!(place(&relay), None);
    let beat = |reference: Value| json!([null, reference, "phoenix", "heartbeat", {}]);
    let answered = async |phone: &mut Phone| {
        while !matches!(read(phone).await, Message::Text(text) if text.contains("phx_reply")) {}
    };
    send(&mut phone, beat(json!("1"))).await;
    answered(&mut phone).await;
    assert_eq!(place(&relay), None, "it may have been sent before the row came");
    reach.set(Some(at(20)));
    // Without a ref nobody waits for the answer to the one before.
    send(&mut phone, beat(Value::Null)).await;
    answered(&mut phone).await;
    assert_eq!(place(&relay), None);
    send(&mut phone, beat(json!("2"))).await;
    until("it is receipted", || place(&relay) == Some(at(10))).await;
}

#[tokio::test]
async fn who_answers_no_ping_and_says_nothing_is_closed_with_1012() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    let phone = relay.phone().await;
    // A socket of which nobody reads, and nobody knows.
    until("it is given up", || relay.connections.is_empty()).await;
    assert_eq!(relay.metrics.closes.get_or_create(&[("reason", "unanswered")]).get(), 1);
    assert_eq!(relay.metrics.pings.get(), 2);
    drop(phone);
}

#[tokio::test]
async fn who_talks_but_answers_no_ping_stays() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    let mut phone = relay.phone().await;
    for n in 0..30 {
        // Sent, and nothing read.
        phone.feed(Message::text(json!([null, n.to_string(), "phoenix", "heartbeat", {}]).to_string())).await.unwrap();
        phone.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(relay.metrics.connections.get(), 1);
    assert!(relay.metrics.pings.get() <= 4, "{}", relay.metrics.pings.get());
}

#[tokio::test]
async fn a_device_is_named_in_several_places_and_must_have_a_good_name() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    let key = relay.token(60);
    for (path, headers) in [
        (format!("/realtime/v1/device/a%2Fb/websocket?apikey={key}"), ""),
        (format!("/socket/device/abc/websocket?apikey={key}"), ""),
        (format!("/realtime/v1/websocket?apikey={key}&device=abc"), ""),
        (format!("/realtime/v1/websocket?apikey={key}"), "x-device-id: abc\r\n"),
    ] {
        assert_eq!(relay.upgrade(&path, headers).await.0, 101, "{path}");
    }
    for (path, headers) in [
        (format!("/realtime/v1/device/a%20b/websocket?apikey={key}"), ""),
        (format!("/realtime/v1/websocket?apikey={key}&device="), ""),
        (format!("/realtime/v1/websocket?apikey={key}"), "x-device-id: a b\r\n"),
    ] {
        let (status, _, body) = relay.upgrade(&path, headers).await;
        let expected = r#"{"error":"a device id has 1 to 128 visible ASCII characters"}"#;
        assert_eq!((status, body.as_str()), (400, expected), "{path}");
    }
    // Whoever may not come in is not told what else is wrong.
    assert_eq!(relay.upgrade("/realtime/v1/device/a%20b/websocket?apikey=x", "").await.0, 401);
}

#[tokio::test]
async fn before_what_was_saved_is_loaded_devices_are_told_to_come_again_and_others_come_in() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    relay.frontiers.close();
    let key = relay.token(60);
    let (status, _, body) = relay.upgrade(&format!("{PATH}?apikey={key}"), "").await;
    assert_eq!((status, body.as_str()), (503, r#"{"error":"Realtime is starting, please come again"}"#));
    assert_eq!(relay.upgrade(&format!("/websocket?apikey={key}"), "").await.0, 101);
}

#[tokio::test]
async fn the_frontiers_of_refused_entries_do_not_move_with_those_of_messages() {
    let relay = relay(quick_pings(Receipt::Pong)).await;
    relay.asked.hold.store(true, Ordering::SeqCst);
    let mut phone = phone_at(&relay, PATH).await;
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", todos()])).await;
    until("it is subscribed", || relay.asked.held.lock().unwrap().len() == 1).await;
    relay.asked.hold.store(false, Ordering::SeqCst);
    let first = relay.asked.ports.lock().unwrap().values().next().unwrap().clone();
    let refused = SubscribeError { message: "no".into(), retry: false };
    let _ = relay.asked.held.lock().unwrap().pop().unwrap().send(Err(refused));
    let alone = || relay.asked.ports.lock().unwrap().values().next().filter(|port| !Arc::ptr_eq(port, &first)).cloned();
    until("messages are asked for alone", || alone().is_some()).await;
    let (port, reach) = (alone().unwrap(), Arc::new(Reach::default()));
    port.place.begin(reach.clone(), None);
    reach.set(Some(at(10)));
    // When the next one comes, the answer to the one before has been read.
    for _ in 0..3 {
        pinged(&mut phone).await;
    }
    assert_eq!(place(&relay), None);
}

#[tokio::test]
async fn while_a_first_place_waits_to_be_saved_heartbeats_are_answered_and_other_channels_end() {
    // Nothing waits longer than this; on a machine that was busy for so long it is tried again.
    let most = Duration::from_secs(2);
    for attempt in 1.. {
        let relay = relay(quick()).await;
        relay.frontiers.saving(true);
        let mut phone = phone_at(&relay, PATH).await;
        send(&mut phone, json!(["1", "1", "realtime:u", "phx_join", {}])).await;
        until("one that has nothing to come back for does not wait", || relay.asked.count() == 1).await;
        let started = std::time::Instant::now();
        let mut first = todos();
        first["config"]["postgres_changes"][0]["since"] = json!(CursorKey::new([1; 32]).seal(at(5)));
        send(&mut phone, json!(["2", "2", "realtime:t", "phx_join", first])).await;
        send(&mut phone, json!([null, "3", "phoenix", "heartbeat", {}])).await;
        send(&mut phone, json!(["1", "4", "realtime:u", "phx_leave", {}])).await;
        let mut refs = Vec::new();
        while refs.last() != Some(&json!("3")) {
            refs.push(next_json(&mut phone).await[1].clone());
        }
        let has = |topic: &str| relay.asked.ports.lock().unwrap().values().any(|port| &*port.topic == topic);
        until("its end is told to the hub", || !has("realtime:u")).await;
        let waits = !has("realtime:t");
        if started.elapsed() < most {
            assert!(waits && !refs.contains(&json!("2")), "{refs:?}");
            while next_json(&mut phone).await[1] != "2" {}
            break;
        }
        assert!(attempt < 5, "the machine is too busy");
    }
}

async fn reply_to(phone: &mut Phone, reference: &str) {
    while next_json(phone).await[1] != reference {}
}

/// A channel of a user's on a device, active, and the token of another, who was there before. Of him nothing is saved.
async fn between_users(relay: &Relay) -> (Phone, Arc<Port>, String) {
    let of = |user: &str| token(json!({"role": "anon", "sub": user, "exp": relay.clock.unix_seconds() + 3600}));
    relay.frontiers.saving(false);
    let join = async |user: &str| {
        let mut phone = phone_at(relay, PATH).await;
        let mut payload = todos();
        payload["config"]["postgres_changes"][0]["since"] = json!(CursorKey::new([1; 32]).seal(at(5)));
        payload["access_token"] = json!(of(user));
        send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", payload])).await;
        reply_to(&mut phone, "1").await;
        until("it is subscribed", || relay.asked.count() == 1).await;
        phone
    };
    drop(join("bob").await);
    until("he is gone", || relay.asked.count() == 0).await;
    let phone = join("alice").await;
    let port = relay.asked.ports.lock().unwrap().values().next().unwrap().clone();
    relay.frontiers.saving(true);
    (phone, port, of("bob"))
}

#[tokio::test]
async fn with_a_token_of_another_user_nothing_more_is_written_for_the_one_before() {
    let relay = relay(quick()).await;
    let (mut phone, port, bobs) = between_users(&relay).await;
    let reach = Arc::new(Reach::default());
    port.place.begin(reach.clone(), Some(at(5)));
    assert!(!port.stage.is_closed());
    send(&mut phone, json!(["1", "2", "realtime:t", "access_token", {"access_token": bobs}])).await;
    send(&mut phone, json!([null, "3", "phoenix", "heartbeat", {}])).await;
    reply_to(&mut phone, "3").await;
    assert!(port.stage.is_closed(), "also while his first place waits to be saved");
}

#[tokio::test]
async fn who_leaves_does_not_wait_for_its_own_place_to_be_saved() {
    for attempt in 1.. {
        let relay = relay(quick()).await;
        let (mut phone, port, bobs) = between_users(&relay).await;
        let started = std::time::Instant::now();
        send(&mut phone, json!(["1", "2", "realtime:t", "access_token", {"access_token": bobs}])).await;
        send(&mut phone, json!(["1", "3", "realtime:t", "phx_leave", {}])).await;
        reply_to(&mut phone, "3").await;
        until("the hub hears of it", || relay.asked.count() == 0).await;
        assert!(port.stage.is_closed());
        // Nothing waits longer than that; on a machine that was busy for so long it is tried again.
        if started.elapsed() < Duration::from_secs(2) {
            break;
        }
        assert!(attempt < 5, "it waits");
    }
}

#[tokio::test]
async fn of_a_gap_whose_word_is_not_out_a_join_anew_is_told_again() {
    let relay = relay(GatewayConfig {
        device: DeviceConfig { receipt: Receipt::Heartbeat, ..DeviceConfig::default() },
        ..quick()
    })
    .await;
    let mut phone = phone_at(&relay, PATH).await;
    let mut payload = todos();
    payload["config"]["postgres_changes"][0]["since"] = json!(CursorKey::new([1; 32]).seal(at(5)));
    let port = || relay.asked.ports.lock().unwrap().values().next().cloned();
    send(&mut phone, json!(["1", "1", "realtime:t", "phx_join", payload])).await;
    until("it is subscribed", || port().is_some()).await;
    reply_to(&mut phone, "1").await;
    let first = port().unwrap();
    // Nobody reads, until the socket takes nothing more.
    let filler = vec![b'x'; 64 << 10];
    while first.outbox.is_out() {
        assert!(first.outbox.send(frame::text(&filler)));
    }
    first.place.tell_gap(Some(at(5)), at(10));
    send(&mut phone, json!(["2", "2", "realtime:t", "phx_join", payload])).await;
    until("it is joined anew", || port().is_some_and(|port| port.id != first.id)).await;
    assert_eq!(place(&relay), Some(at(5)));
    while !matches!(read(&mut phone).await, Message::Text(text) if text.contains("\"2\",\"2\"")) {}
    let second = port().unwrap();
    until("all is read", || second.outbox.is_out()).await;
    second.place.tell_gap(Some(at(6)), at(10));
    send(&mut phone, json!(["3", "3", "realtime:t", "phx_join", payload])).await;
    reply_to(&mut phone, "3").await;
    assert_eq!(place(&relay), Some(at(5)), "between its place and the gap there is something");
    until("it is joined anew", || port().is_some_and(|port| port.id != second.id)).await;
    port().unwrap().place.tell_gap(Some(at(5)), at(10));
    send(&mut phone, json!(["4", "4", "realtime:t", "phx_join", payload])).await;
    reply_to(&mut phone, "4").await;
    assert_eq!(place(&relay), Some(at(10)));
}
