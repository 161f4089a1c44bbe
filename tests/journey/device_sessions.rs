//! What becomes of a device's place when its connection goes on: with another user, under another name, with a join anew.

use std::time::Duration;

use rowcast::gateway::Receipt;
use serde_json::{Value, json};

use super::devices::{in_the_log, joined, kinds, phone_of, receipted, received, scene, scene_with, until};
use super::{Scene, notify, watching};
use crate::support::phone::{PATIENCE, Phone, Version};
use crate::support::token::{self, ALICE, BOB};

/// Alice's token of this session.
fn token_of(session: &str) -> String {
    let claims = json!({ "role": "authenticated", "sub": ALICE, "session_id": session, "exp": 4_000_000_000_u64 });
    token::raw(&json!({ "alg": "HS256", "typ": "JWT" }), &claims)
}

/// The rows of the user before went on to come until the next one's first place was saved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_out_gets_nothing_more_also_while_the_next_users_place_waits_to_be_saved() {
    let scene = scene().await;
    let mut phone = joined(&scene.relay, "shared", &token::user(ALICE)).await;
    until("her place is saved", async || scene.relay.metric("rowcast_frontier_saves_total", "saved").await > 0.0).await;
    let client = scene.pg.client().await;
    client.batch_execute("begin; lock table rowcast.frontiers in access exclusive mode").await.expect("locked");
    phone.push_token("room", &token::user(BOB)).await;
    // Answered, so the token was read.
    phone.heartbeat().await;
    scene.exec(&notify(ALICE, "hers")).await;
    phone.subscribed("room").await;
    client.batch_execute("rollback").await.expect("let go");
    scene.exec(&notify(BOB, "his")).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "end").await), ["his"]);
    // To her it is not lost.
    phone.push_token("room", &token::user(ALICE)).await;
    phone.subscribed("room").await;
    assert_eq!(kinds(&received(&scene, &mut phone, "hers again").await), ["hers"]);
}

/// The claim named the device at the join only: the next connection, which names the new session, was a stranger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_token_of_another_session_takes_the_place_along() {
    let scene = scene_with(|config| config.gateway.device.claim = Some("session_id".into())).await;
    let entries = watching(&["notifications"]);
    let mut phone = scene.relay.phone(&token_of("s1")).await;
    phone.subscribe("room", &entries).await;
    scene.exec(&notify(ALICE, "seen before")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "seen before");
    receipted(&scene.relay, &mut phone).await;
    phone.push_token("room", &token_of("s2")).await;
    phone.subscribed("room").await;
    scene.exec(&notify(ALICE, "seen after")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "seen after");
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    scene.exec(&notify(ALICE, "missed")).await;
    in_the_log(&scene).await;
    // To the name before, what came after may come again; under a third one she is a stranger.
    for (session, expected) in [("s2", &["missed"][..]), ("s1", &["seen after", "missed"]), ("s3", &[])] {
        let mut phone = scene.relay.phone(&token_of(session)).await;
        phone.subscribe("room", &entries).await;
        assert_eq!(kinds(&received(&scene, &mut phone, session).await), expected, "{session}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_user_names_the_device_that_he_comes_back_as() {
    let scene = scene_with(|config| config.gateway.device.claim = Some("session_id".into())).await;
    let his = |session: &str| {
        let claims = json!({ "role": "authenticated", "sub": BOB, "session_id": session, "exp": 4_000_000_000_u64 });
        token::raw(&json!({ "alg": "HS256", "typ": "JWT" }), &claims)
    };
    let entries = watching(&["notifications"]);
    let mut phone = scene.relay.phone(&token_of("hers")).await;
    phone.subscribe("room", &entries).await;
    phone.push_token("room", &his("his")).await;
    phone.subscribed("room").await;
    drop(phone);
    scene.exec(&notify(BOB, "missed")).await;
    in_the_log(&scene).await;
    let mut phone = scene.relay.phone(&his("his")).await;
    phone.subscribe("room", &entries).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "end").await), ["missed"]);
}

/// A log that is soon gone, and where heartbeats are receipts.
async fn short_log() -> Scene {
    scene_with(|config| {
        config.gateway.device.receipt = Receipt::Heartbeat;
        (config.log.segment_bytes, config.log.retain_bytes) = (16 << 10, 64 << 10);
        config.ingest.retain_interval = Duration::from_millis(200);
    })
    .await
}

/// Others are busy until the log has nothing left of now.
async fn roll_over(scene: &Scene) {
    let before = scene.relay.end();
    let deadline = tokio::time::Instant::now() + 6 * PATIENCE;
    while scene.relay.floor() <= before {
        assert!(tokio::time::Instant::now() < deadline, "the log keeps everything");
        let other =
            "insert into notifications (user_id, kind, body) select gen_random_uuid(), 'other', repeat('x', 1000)";
        scene.exec(&format!("{other} from generate_series(1, 20)")).await;
        in_the_log(scene).await;
    }
}

/// The notices of gaps before a mark that is made now.
async fn gaps(scene: &Scene, phone: &mut Phone, note: &str) -> Vec<Value> {
    scene.mark(note).await;
    phone.changes_before(note).await;
    let frames = phone.frames_so_far().await.into_iter();
    frames.filter(|frame| frame.payload["gap"].is_object()).map(|frame| frame.payload["gap"].clone()).collect()
}

/// Python joins anew at each gap notice. Each of its joins began below the log, until its next heartbeat but one; and that was
/// about a channel which was not there any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_anew_because_of_a_gap_is_not_told_of_it_again() {
    let scene = short_log().await;
    let token = token::user(ALICE);
    let entries = watching(&["notifications"]);
    let mut phone = joined(&scene.relay, "phone", &token).await;
    scene.exec(&notify(ALICE, "seen")).await;
    phone.next_change().await;
    drop(phone);
    roll_over(&scene).await;
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    assert_eq!(phone.join("room", &entries).await["status"], "ok");
    let told = gaps(&scene, &mut phone, "first").await;
    assert_eq!(told.len(), 1, "{told:?}");
    scene.exec(&notify(ALICE, "after the gap")).await;
    assert_eq!(phone.next_change().await.record()["kind"], "after the gap");
    // What followed the gap is not receipted and comes again, the gap does not.
    assert_eq!(phone.join("room", &entries).await["status"], "ok");
    assert_eq!(kinds(&received(&scene, &mut phone, "second").await), ["after the gap"]);
    let frames = phone.frames_so_far().await;
    assert!(frames.iter().all(|frame| frame.payload["gap"].is_null()), "{frames:#?}");
}

/// Who leaves may do so before it has read what is on the way to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_and_comes_back_is_told_of_a_gap_that_it_may_not_have_read() {
    let scene = short_log().await;
    let token = token::user(ALICE);
    let entries = watching(&["notifications"]);
    drop(joined(&scene.relay, "phone", &token).await);
    roll_over(&scene).await;
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    for note in ["first", "second"] {
        assert_eq!(phone.join("room", &entries).await["status"], "ok");
        assert_eq!(gaps(&scene, &mut phone, note).await.len(), 1, "{note}");
        phone.leave("room").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_since_with_each_join_of_a_device_is_where_it_began_and_another_is_a_new_beginning() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    let reply = phone.join("room", &watching(&["notifications"])).await;
    let mut entries = watching(&["notifications"]);
    let since = |entries: &mut Value, place: &Value| {
        entries.as_array_mut().expect("a list").iter_mut().for_each(|entry| entry["since"] = place.clone());
    };
    since(&mut entries, &reply["response"]["cursor"]);
    scene.exec(&notify(ALICE, "one")).await;
    let change = phone.next_change().await;
    assert_eq!(change.record()["kind"], "one");
    drop(phone);
    // An application keeps one payload for all its joins.
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &entries).await;
    assert_eq!(phone.next_change().await.record()["kind"], "one", "after its own place");
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    scene.exec(&notify(ALICE, "two")).await;
    in_the_log(&scene).await;
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &entries).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "same").await), ["two"], "from where it was");
    receipted(&scene.relay, &mut phone).await;
    drop(phone);
    since(&mut entries, &change.data["cursor"]);
    let mut phone = phone_of(&scene.relay, "phone", &token).await;
    phone.subscribe("room", &entries).await;
    assert_eq!(kinds(&received(&scene, &mut phone, "other").await), ["two"], "after the place that it names now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_named_by_header_or_query_is_resumed_too() {
    let scene = scene().await;
    let token = token::user(ALICE);
    let entries = watching(&["notifications"]);
    let base = scene.relay.base();
    let by_header = async || Phone::connect_with(&base, &token, Version::V2, ("x-device-id", "by-header")).await;
    let by_query = async || {
        let mut phone = Phone::connect(&base, &format!("{token}&device=by-query"), Version::V2).await;
        phone.speak_as(&token);
        phone
    };
    for mut phone in [by_header().await, by_query().await] {
        phone.subscribe("room", &entries).await;
    }
    scene.exec(&notify(ALICE, "missed")).await;
    in_the_log(&scene).await;
    for (mut phone, note) in [(by_header().await, "header"), (by_query().await, "query")] {
        phone.subscribe("room", &entries).await;
        assert_eq!(kinds(&received(&scene, &mut phone, note).await), ["missed"], "{note}");
    }
}
