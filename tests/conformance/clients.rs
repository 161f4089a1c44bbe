//! Items 82 to 85, 99 and 153: what the clients themselves show. JavaScript's and Python's are the stock ones; of Dart's,
//! Swift's and Kotlin's there are sessions (`tests/recorded`).

use serde_json::{Value, json};

use crate::recorded::{Decoder, play};
use crate::support::sdk::SdkPhone;
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock};

async fn javascript(stage: &Stage) -> SdkPhone {
    stage.relay.sdk(Stock::JavaScript, &token::user(ALICE)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_082_send_with_ack_is_ok_and_the_payload_arrives_equal() {
    let stage = Stage::with("").await;
    let (mut one, mut two) = tokio::join!(javascript(&stage), javascript(&stage));
    one.open("room", &json!({ "broadcast": { "ack": true } })).await;
    two.open("room", &json!({})).await;
    for payload in [
        json!({}),
        json!({ "a": 1, "b": [null, true, 1.5e300, "\u{2028} \"é😀\\"], "c": { "type": "broadcast", "event": "y" } }),
        json!([1, [2]]),
        json!("text"),
        json!(0),
    ] {
        one.send("room", "x", &payload).await;
        assert_eq!(two.broadcast().await, json!({ "type": "broadcast", "event": "x", "payload": payload }));
    }
    one.exit().await;
    two.exit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_083_an_array_buffer_arrives_as_one() {
    let stage = Stage::with("").await;
    let (mut one, mut two) = tokio::join!(javascript(&stage), javascript(&stage));
    one.open("room", &json!({ "broadcast": { "ack": true, "self": true } })).await;
    two.open("room", &json!({})).await;
    let all: String = (0..=255).map(|byte| format!("{byte:02x}")).collect();
    for bytes in ["", "00", &*all] {
        assert_eq!(one.act("send", "room", &json!({ "event": "b", "bytes": bytes })).await, "ok");
        for phone in [&mut one, &mut two] {
            let expected = json!({ "type": "broadcast", "event": "b", "payload": { "bytes": bytes } });
            assert_eq!(phone.broadcast().await, expected);
        }
    }
    one.exit().await;
    two.exit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_084_python_and_javascript_hear_each_other() {
    let stage = Stage::with("").await;
    let token = token::user(ALICE);
    let (mut js, mut py) = tokio::join!(javascript(&stage), stage.relay.sdk(Stock::Python, &token));
    js.open("room", &json!({})).await;
    py.open("room", &json!({})).await;
    for n in 0..10 {
        let payload = json!({ "n": n, "deep": { "é": [1.5, null] } });
        py.send("room", "from py", &payload).await;
        assert_eq!(js.broadcast().await, json!({ "type": "broadcast", "event": "from py", "payload": payload }));
        js.send("room", "from js", &payload).await;
        let heard = py.broadcast().await;
        assert_eq!((&heard["event"], &heard["payload"]), (&json!("from js"), &payload));
    }
    js.exit().await;
    py.exit().await;
}

/// The tables and policies that the sessions speak of.
const OF_SESSIONS: &str = "
    create table public.notes (id int primary key, user_id uuid, note text);
    alter table public.notes replica identity full;
    alter table public.notes enable row level security;
    create policy own on public.notes for select to authenticated using (user_id = auth.uid());
    grant select on public.notes to authenticated;
    alter publication supabase_realtime add table public.notes;
    create policy reads on realtime.messages for select to authenticated using (realtime.topic() like 'team/%');
    create policy writes on realtime.messages for insert to authenticated with check (realtime.topic() like 'team/%');";

async fn with_javascript(decoder: Decoder, session: &str) {
    let stage = Stage::with(OF_SESSIONS).await;
    play(&stage, decoder, session).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_085_a_session_of_darts_client_works_with_javascript() {
    with_javascript(Decoder::Dart, include_str!("../recorded/dart.session")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_085_a_session_of_swifts_client_works_with_javascript() {
    with_javascript(Decoder::Swift, include_str!("../recorded/swift.session")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_085_a_session_of_kotlins_client_works_with_javascript() {
    with_javascript(Decoder::Kotlin, include_str!("../recorded/kotlin.session")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_099_http_send_succeeds_and_so_does_send_before_subscribe() {
    let stage = Stage::with("").await;
    let (mut one, mut two) = tokio::join!(javascript(&stage), javascript(&stage));
    two.open("room", &json!({})).await;
    let more = json!({ "event": "x", "payload": { "a": 1 } });
    let expected = json!({ "type": "broadcast", "event": "x", "payload": { "a": 1 } });
    assert_eq!(one.act("send", "room", &more).await, "ok");
    assert_eq!(two.broadcast().await, expected);
    assert_eq!(one.act("httpSend", "room", &more).await, json!({ "success": true }));
    assert_eq!(two.broadcast().await, expected);
    one.exit().await;
    two.exit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_153_presence_callbacks_fire_and_both_clients_have_the_servers_state() {
    let stage = Stage::with("").await;
    let (mut one, mut two) = tokio::join!(javascript(&stage), javascript(&stage));
    for (phone, key) in [(&mut one, "one"), (&mut two, "two")] {
        phone.open_with_presence("room", &json!({ "presence": { "key": key } })).await;
        phone.presence("sync").await;
    }
    assert_eq!(one.act("track", "room", &json!({ "payload": { "n": 1 } })).await, "ok");
    let mut references = Vec::new();
    for phone in [&mut one, &mut two] {
        let (key, presences) = phone.presence("join").await;
        phone.presence("sync").await;
        assert_eq!((&*key, &presences[0]["n"]), ("one", &json!(1)));
        assert!(presences[0]["presence_ref"].is_string(), "{presences}");
        references.push(presences[0]["presence_ref"].clone());
    }
    assert_eq!(references[0], references[1]);
    assert_eq!(two.act("track", "room", &json!({ "payload": { "n": 2 } })).await, "ok");
    let both = |state: &Value| state.as_object().is_some_and(|keys| keys.len() == 2);
    let states = [one.presence_state_until("room", both).await, two.presence_state_until("room", both).await];
    assert_eq!(states[0], states[1]);
    // Who comes later has the server's word for it.
    let mut three = javascript(&stage).await;
    three.open_with_presence("room", &json!({})).await;
    assert_eq!(three.presence_state_until("room", both).await, states[0]);
    assert_eq!(one.act("untrack", "room", &json!({})).await, "ok");
    for phone in [&mut one, &mut two, &mut three] {
        let (key, presences) = phone.presence("leave").await;
        assert_eq!((&*key, &presences), ("one", &json!([{ "n": 1, "presence_ref": references[0] }])));
        let state = phone.presence_state_until("room", |state| state.get("one").is_none()).await;
        assert_eq!(state["two"], states[0]["two"]);
    }
    for phone in [one, two, three] {
        phone.exit().await;
    }
}
