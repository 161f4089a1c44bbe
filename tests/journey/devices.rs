//! Clients that name their device go on where they were: nothing is lost, and only what they had not receipted comes again.

use std::time::Duration;

use super::{Scene, notify, watching};
use crate::support::phone::{PATIENCE, Phone, Version};
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Change, Relay};

/// Of a device that is named in the path.
fn base_of(relay: &Relay, device: &str) -> String {
    format!("{}/device/{device}", relay.base())
}

async fn phone_of(relay: &Relay, device: &str, token: &str) -> Phone {
    Phone::connect(&base_of(relay, device), token, Version::V2).await
}

fn kinds(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| change.record()["kind"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Waits until this many Pongs have come, so that what was received before is receipted.
async fn receipted(relay: &Relay, phone: &mut Phone) {
    let before = relay.metric("rowcast_pong_seconds_count", "").await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // Two: the first may have been asked too early.
    while relay.metric("rowcast_pong_seconds_count", "").await < before + 2.0 {
        assert!(tokio::time::Instant::now() < deadline, "no Pongs");
        // A phone answers while it reads.
        phone.heartbeat().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_comes_back_gets_what_it_missed_once_and_then_what_follows() {
    let scene = Scene::start().await;
    let token = token::user(ALICE);
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    scene.exec(&notify(ALICE, "seen")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "seen");
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    for kind in ["missed 1", "missed 2"] {
        scene.exec(&notify(ALICE, kind)).await;
        scene.exec(&notify(BOB, "not hers")).await;
    }
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &watching(&["notifications"])).await;
    scene.exec(&notify(ALICE, "live")).await;
    scene.mark("end").await;
    assert_eq!(kinds(&phone.changes_before("end").await), ["missed 1", "missed 2", "live"]);
    // Another device of hers, another user on this one, and nobody in particular begin where the stream is.
    for (device, token) in [("tablet", token::user(ALICE)), ("phone", token::user(BOB)), ("phone", token::role("anon"))]
    {
        let mut other = phone_of(&scene.relay, device, &token).await;
        other.subscribe("room", &watching(&["notifications"])).await;
        scene.mark("other").await;
        other.expect_nothing_before("other").await;
    }
}
