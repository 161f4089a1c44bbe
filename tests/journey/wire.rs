//! Both versions of the protocol on both paths.

use serde_json::json;

use super::{Scene, notify, watching};
use crate::support::phone::PATIENCE;
use crate::support::relay::get;
use crate::support::token::{self, ALICE};
use crate::support::{Phone, Version};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_work_on_both_paths_side_by_side() {
    let scene = Scene::start().await;
    let mut phones = Vec::new();
    for path in ["realtime/v1", "socket"] {
        for version in [Version::V1, Version::V2] {
            let base = format!("ws://{}/{path}", scene.relay.addr());
            let mut phone = Phone::connect(&base, &token::user(ALICE), version).await;
            phone.heartbeat().await;
            phone.subscribe("room:1 ä", &watching(&["notifications"])).await;
            phones.push(phone);
        }
    }
    scene.exec(&notify(ALICE, "n")).await;
    let mut all = Vec::new();
    for phone in &mut phones {
        all.push(phone.next_change().await);
    }
    assert_eq!(all[0].topic, "room:1 ä");
    assert!(all.iter().all(|change| *change == all[0]), "{all:#?}");
    for phone in &mut phones {
        phone.leave("room:1 ä").await;
        phone.heartbeat().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_also_asks_for_broadcast_and_presence_is_accepted() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let config = json!({
        "broadcast": { "ack": true, "self": true }, "presence": { "key": "alice", "enabled": true },
        "postgres_changes": watching(&["notifications"]), "private": false,
    });
    let reply = phone.join_with("room", json!({ "config": config })).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    phone.subscribed("room").await;
    scene.exec(&notify(ALICE, "n")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_without_entries_gets_an_empty_list_and_no_changes() {
    let scene = Scene::start().await;
    let mut phone = scene.relay.phone(&token::user(ALICE)).await;
    let reply = phone.join("empty", &json!([])).await;
    assert_eq!(reply, json!({ "status": "ok", "response": { "postgres_changes": [] } }));
    phone.subscribe("room", &watching(&["notifications"])).await;
    scene.exec(&notify(ALICE, "n")).await;
    assert_eq!(phone.next_change().await.topic, "room");
    phone.heartbeat().await;
    assert!(phone.frames_of("empty").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_readiness_are_answered() {
    let scene = Scene::start().await;
    for path in ["/healthz", "/readyz"] {
        let answer = tokio::time::timeout(PATIENCE, get(scene.relay.addr(), path)).await.expect("in time");
        assert_eq!(answer.map(|(status, _)| status), Some(200), "{path}");
    }
}
