//! Items 65 and 200 to 204: rates, ends, restarts, and a client that is too slow.

use serde_json::json;
use tokio::time::Instant;

use super::stage::{BOTH, Scene, joined, refused, tables, watching};
use crate::support::phone::PATIENCE;
use crate::support::sdk::SdkPhone;
use crate::support::token::{self, ALICE};
use crate::support::{Phone, RelayProcess, Stock, TestPg, Version, summary};

async fn mark(pg: &TestPg, note: &str) {
    pg.exec(&format!("insert into public.marks (note) values ('{note}')")).await;
}

async fn stock_clients(relay: &RelayProcess) -> Vec<SdkPhone> {
    let mut phones = Vec::new();
    for stock in [Stock::JavaScript, Stock::Python] {
        let mut phone = SdkPhone::connect(stock, &relay.base(), &token::user(ALICE)).await;
        phone.subscribe("room", &watching()).await;
        phones.push(phone);
    }
    phones
}

/// Python's client says each failed attempt.
async fn joins_again(phone: &mut SdkPhone) {
    loop {
        match &*phone.status("room").await.0 {
            "SUBSCRIBED" => break,
            status => assert_eq!(status, "CHANNEL_ERROR"),
        }
    }
    phone.subscribed("room").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_201_sigterm_closes_every_socket_with_1012_and_stock_clients_join_again() {
    let pg = tables().await;
    let mut relay = RelayProcess::start(&pg).await;
    let mut raw = Vec::new();
    for version in BOTH {
        let mut phone = Phone::connect(&relay.base(), &token::user(ALICE), version).await;
        phone.subscribe("room", &watching()).await;
        raw.push(phone);
    }
    let mut stock = stock_clients(&relay).await;
    // At the same time: a phone that doesn't read can't answer the goodbye, which the relay waits for.
    let codes = futures_util::future::join_all(raw.iter_mut().map(Phone::close_code));
    let (codes, status) = tokio::join!(codes, relay.stop());
    assert_eq!(codes, [Some(1012), Some(1012)]);
    assert!(status.success(), "{}", relay.log());
    relay.start_again().await;
    for phone in &mut stock {
        joins_again(phone).await;
    }
}

/// The other stock clients speak as recorded sessions would; there is none of them here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_202_after_a_restart_changes_flow_again_without_application_code() {
    let pg = tables().await;
    let mut relay = RelayProcess::start(&pg).await;
    let mut phones = stock_clients(&relay).await;
    mark(&pg, "before").await;
    for phone in &mut phones {
        assert_eq!(phone.changes_before("before").await, []);
    }
    relay.kill().await;
    relay.start_again().await;
    for phone in &mut phones {
        joins_again(phone).await;
    }
    mark(&pg, "after").await;
    for phone in &mut phones {
        assert_eq!(phone.changes_before("after").await, []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_203_after_a_restart_of_postgres_channels_are_joined_and_changes_flow() {
    let mut scene = Scene::start().await;
    let mut phones = Vec::new();
    for version in BOTH {
        let mut phone = scene.phone(version).await;
        phone.subscribe("room", &watching()).await;
        phones.push(phone);
    }
    scene.pg.restart().await;
    scene.notify(ALICE, "after").await;
    scene.mark("end").await;
    for phone in &mut phones {
        assert_eq!(summary(&phone.changes_before("end").await, "kind"), ["INSERT after"]);
        // Still the same channel: nobody has closed it.
        let frames = phone.frames_so_far().await;
        assert!(frames.iter().all(|frame| frame.event == "system"), "{frames:#?}");
        super::stage::assert_joined(phone, "realtime:room").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_204_a_client_that_stops_reading_is_closed_and_delays_nobody() {
    let scene = Scene::with(|config| config.gateway.max_outbox_bytes = 1_000_000).await;
    let entries = json!([{ "event": "*", "schema": "public", "table": "notifications" }]);
    let mut deaf = scene.phone(Version::V2).await;
    let mut other = scene.phone(Version::V1).await;
    for phone in [&mut deaf, &mut other] {
        phone.subscribe("room", &entries).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let mut written = 0;
    // The system's buffers take what they can before the relay's own begins to fill.
    while scene.relay.metric("rowcast_closes_total", "reason=\"slow\"").await < 1.0 {
        assert!(Instant::now() < deadline, "still connected after {written} rows");
        let insert =
            format!("insert into notifications (user_id, kind, body) values ('{ALICE}', 'n', repeat('x', 400000))");
        scene.pg.exec(&insert).await;
        written += 1;
        // It gets each row at once, also those that the other one doesn't take.
        assert_eq!(other.next_change().await.record()["body"].as_str().map(str::len), Some(400_000));
    }
    let code = deaf.close_code().await;
    assert!(matches!(code, Some(1013) | None), "{code:?}");
    other.heartbeat().await;
}

/// Decision 17: with 1012, since a Python client takes 1001 for the end.
#[tokio::test]
async fn item_065_who_joins_too_often_is_told_and_closed() {
    for relay_wide in [false, true] {
        for version in BOTH {
            let scene = Scene::with(|config| match relay_wide {
                false => config.gateway.max_joins_per_second = 1,
                true => config.gateway.max_all_joins_per_second = 1,
            })
            .await;
            let mut phone = scene.phone(version).await;
            for number in 0..60 {
                assert_eq!(phone.join(&format!("room{number}"), &json!([])).await, joined());
            }
            let reply = phone.join("one more", &json!([])).await;
            assert_eq!(reply, refused("ClientJoinRateLimitReached: Too many joins per second"));
            assert_eq!(phone.close_code().await, Some(1012));
            if !relay_wide {
                scene.phone(version).await.heartbeat().await;
            }
        }
    }
}

/// Decision 27: it is the sender's channel that ends. Elsewhere all who receive lose theirs.
#[tokio::test]
async fn item_200_who_sends_too_much_is_told_and_loses_the_channel() {
    let scene = Scene::with(|config| config.gateway.max_messages_per_second = 1).await;
    for version in BOTH {
        let (mut loud, mut other) = (scene.phone(version).await, scene.phone(version).await);
        for phone in [&mut loud, &mut other] {
            assert_eq!(phone.join("room", &json!([])).await, joined());
        }
        for number in 0..61 {
            let payload = json!({ "type": "broadcast", "event": "e", "payload": { "number": number } });
            loud.push("room", "broadcast", payload).await;
        }
        let system = loud.system("room").await;
        let expected = json!({ "extension": "system", "status": "error", "channel": "room",
                               "message": "Too many messages per second" });
        assert_eq!(system, expected);
        loud.channel_closed("room").await;
        for number in 0..60 {
            assert_eq!(other.next_broadcast().await.payload["payload"]["number"], number);
        }
        super::stage::assert_joined(&mut other, "realtime:room").await;
        assert_eq!(loud.join("room", &json!([])).await, joined());
    }
}
