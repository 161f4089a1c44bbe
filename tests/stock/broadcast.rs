//! Broadcasts between the stock clients, both ways, over the connection and over HTTP.

use serde_json::{Value, json};

use super::tokens::connected;
use crate::support::sdk::SdkPhone;
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock};

/// What the callback is given; Python's shows no `type`.
fn shown(mut message: Value) -> (String, Value) {
    (message["event"].as_str().unwrap_or_default().to_owned(), message["payload"].take())
}

async fn heard(phone: &mut SdkPhone) -> (String, Value) {
    shown(phone.broadcast().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_hears_the_others_in_order_and_itself_only_if_it_asked_to() {
    let stage = Stage::with("").await;
    let mut phones = connected(&stage, &token::user(ALICE)).await;
    for (_, phone) in &mut phones {
        phone.open("room", &json!({})).await;
        phone.open("echo", &json!({ "broadcast": { "self": true, "ack": true } })).await;
    }
    for sender in 0..phones.len() {
        let stock = phones[sender].0;
        let payload =
            |n: usize| json!({ "from": format!("{stock:?}"), "n": n, "deep": [{ "é \"😀\"": null }, 1.5, [true]] });
        for n in 0..20 {
            phones[sender].1.send("room", "Note", &payload(n)).await;
        }
        // Of the two channels the sender asked for itself in one: this is the first that it hears.
        phones[sender].1.send("echo", "end", &payload(20)).await;
        for (place, (_, phone)) in phones.iter_mut().enumerate() {
            let notes = if place == sender { 0 } else { 20 };
            for n in 0..notes {
                assert_eq!(heard(phone).await, ("Note".to_owned(), payload(n)), "{stock:?}");
            }
            assert_eq!(heard(phone).await, ("end".to_owned(), payload(20)), "{stock:?}");
        }
    }
    for (_, phone) in phones {
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_send_over_http_what_members_hear_and_bytes_to_those_who_know_them() {
    let stage = Stage::with("").await;
    let mut phones = connected(&stage, &token::user(ALICE)).await;
    let topic = "a room: 100%/ä?";
    for (_, phone) in &mut phones {
        phone.open(topic, &json!({})).await;
    }
    for (stock, mut outsider) in connected(&stage, &token::user(ALICE)).await {
        let payload = json!({ "from": format!("{stock:?}"), "n": [1, 2] });
        let (said, bytes) =
            (json!({ "event": "said it?", "payload": payload }), json!({ "event": "b", "bytes": "00ff7b" }));
        assert_eq!(outsider.act("httpSend", topic, &bytes).await, json!({ "success": true }), "{stock:?}");
        assert_eq!(outsider.act("httpSend", topic, &said).await, json!({ "success": true }), "{stock:?}");
        if stock != Stock::Python {
            // Python's client does not send before it has subscribed.
            outsider.send(topic, "early", &payload).await;
        }
        for (of, phone) in &mut phones {
            if *of == Stock::JavaScript {
                assert_eq!(heard(phone).await, ("b".to_owned(), json!({ "bytes": "00ff7b" })), "{stock:?}");
            }
            assert_eq!(heard(phone).await, ("said it?".to_owned(), payload.clone()), "{stock:?} to {of:?}");
            if stock != Stock::Python {
                assert_eq!(heard(phone).await, ("early".to_owned(), payload.clone()), "{stock:?} to {of:?}");
            }
        }
        outsider.exit().await;
    }
    for (_, phone) in phones {
        phone.exit().await;
    }
}
