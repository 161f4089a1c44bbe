//! Presence as applications see it: who is there, and that all clients agree about it.

use serde_json::{Value, json};

use super::tokens::connected;
use crate::support::sdk::SdkPhone;
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock};

/// Everybody's state, once it satisfies the condition; it is the same for all.
async fn agreed(phones: &mut [(Stock, SdkPhone)], topic: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut states = Vec::new();
    for (_, phone) in phones {
        states.push(phone.presence_state_until(topic, &wanted).await);
    }
    for state in &states {
        assert_eq!(state, &states[0]);
    }
    states.swap_remove(0)
}

/// `key: payloads` of a state without the refs, which are checked: they are strings, each another.
fn without_refs(state: &Value) -> Value {
    let mut seen = Vec::new();
    let mut strip = |presence: &Value| {
        let mut presence = presence.clone();
        let reference = presence.as_object_mut().and_then(|object| object.remove("presence_ref"));
        let reference = reference.and_then(|reference| reference.as_str().map(str::to_owned)).expect("a presence_ref");
        assert!(!seen.contains(&reference), "{reference} twice");
        seen.push(reference);
        presence
    };
    let keys = state.as_object().expect("an object").iter();
    keys.map(|(key, metas)| {
        let metas: Vec<Value> = metas.as_array().expect("a list").iter().map(&mut strip).collect();
        (key.clone(), Value::Array(metas))
    })
    .collect::<serde_json::Map<_, _>>()
    .into()
}

fn named(stock: Stock) -> Value {
    json!({ "presence": { "key": format!("{stock:?}") } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_tracks_is_seen_by_all_clients_alike_until_it_goes() {
    let stage = Stage::with("").await;
    let mut phones = connected(&stage, &token::user(ALICE)).await;
    for (stock, phone) in &mut phones {
        phone.open_with_presence("room", &named(*stock)).await;
        phone.presence("sync").await;
    }
    assert_eq!(agreed(&mut phones, "room", |state| state == &json!({})).await, json!({}));
    let mut expected = json!({});
    for place in 0..phones.len() {
        let (stock, phone) = &mut phones[place];
        let (key, payload) = (format!("{stock:?}"), json!({ "name": format!("{stock:?}"), "at": [place] }));
        let answer = phone.act("track", "room", &json!({ "payload": payload })).await;
        assert!(answer == "ok" || *stock == Stock::Python, "{stock:?}: {answer}");
        expected[&key] = json!([payload]);
        for (to, phone) in &mut phones {
            let (joined, presences) = phone.presence("join").await;
            assert_eq!(joined, key, "{to:?}");
            assert_eq!(without_refs(&json!({ "x": presences })), json!({ "x": [payload] }), "{to:?}");
        }
        let all = expected.as_object().expect("an object").len();
        let state = agreed(&mut phones, "room", |state| state.as_object().is_some_and(|keys| keys.len() == all)).await;
        assert_eq!(without_refs(&state), expected);
    }
    // An update is one meta for another.
    for place in 0..phones.len() {
        let key = format!("{:?}", phones[place].0);
        let payload = json!({ "name": "new" });
        phones[place].1.act("track", "room", &json!({ "payload": payload })).await;
        expected[&key] = json!([payload]);
        let is_new = |state: &Value| state[&key].as_array().is_some_and(|m| m.len() == 1 && m[0]["name"] == "new");
        assert_eq!(without_refs(&agreed(&mut phones, "room", is_new).await), expected);
    }
    // A second device of one user, that comes late, sees all, and is seen beside the first.
    let mut late = stage.relay.sdk(Stock::JavaScript, &token::user(ALICE)).await;
    late.open_with_presence("room", &named(Stock::Python)).await;
    let all = late.presence_state_until("room", |state| state != &json!({})).await;
    assert_eq!(without_refs(&all), expected);
    late.act("track", "room", &json!({ "payload": { "name": "late" } })).await;
    phones.push((Stock::JavaScript, late));
    let two = agreed(&mut phones, "room", |state| state["Python"].as_array().is_some_and(|m| m.len() == 2)).await;
    assert_eq!(without_refs(&two)["Python"], json!([{ "name": "new" }, { "name": "late" }]));
    // Who untracks goes, and so does whose process ends.
    phones[0].1.act("untrack", "room", &json!({})).await;
    for (_, phone) in &mut phones {
        // Of the updates too each client is told.
        while phone.presence("leave").await.0 != "JavaScript" {}
    }
    agreed(&mut phones, "room", |state| state.get("JavaScript").is_none()).await;
    drop(phones.pop());
    let one = agreed(&mut phones, "room", |state| state["Python"].as_array().is_some_and(|m| m.len() == 1)).await;
    expected.as_object_mut().expect("an object").remove("JavaScript");
    assert_eq!(without_refs(&one), expected);
    for (_, phone) in phones {
        phone.exit().await;
    }
}
