//! The relay goes and comes back: the clients join again by themselves, and everything works as before.

use serde_json::{Value, json};

use super::{STOCKS, TABLES, entry};
use crate::support::sdk::SdkPhone;
use crate::support::token::{self, ALICE};
use crate::support::{RelayProcess, Stock, TestPg};

async fn until(phone: &mut SdkPhone, topic: &str, wanted: &str) {
    while phone.status(topic).await.0 != wanted {}
}

/// Everybody hears everybody, sees everybody, and is told of a row.
async fn all_is_well(pg: &TestPg, phones: &mut [(Stock, SdkPhone)], round: usize) {
    for sender in 0..phones.len() {
        let payload = json!({ "round": round, "from": sender });
        phones[sender].1.send("room", "x", &payload).await;
        for (place, (stock, phone)) in phones.iter_mut().enumerate() {
            if place != sender {
                assert_eq!(phone.broadcast().await["payload"], payload, "{stock:?} {round}");
            }
        }
    }
    for (stock, phone) in phones.iter_mut() {
        let payload = json!({ "payload": { "who": format!("{stock:?}"), "round": round } });
        phone.act("track", "people", &payload).await;
    }
    let all = |state: &Value| {
        state.as_object().is_some_and(|keys| {
            let here = |key: &Value| key.as_array().is_some_and(|metas| metas.len() == 1 && metas[0]["round"] == round);
            keys.len() == STOCKS.len() && keys.values().all(here)
        })
    };
    let mut states = Vec::new();
    for (_, phone) in phones.iter_mut() {
        states.push(phone.presence_state_until("people", all).await);
    }
    assert!(states.iter().all(|state| state == &states[0]), "{states:#?}");
    pg.exec(&format!("insert into public.tasks (id) values ({round})")).await;
    for (stock, phone) in phones.iter_mut() {
        let change = phone.next_change().await;
        assert_eq!(change.record()["id"], round, "{stock:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_relay_broadcasts_presence_and_rows_work_again_with_nothing_done() {
    let pg = TestPg::start().await;
    pg.exec(TABLES).await;
    let mut relay = RelayProcess::start(&pg).await;
    let mut phones = Vec::new();
    for stock in STOCKS {
        let mut phone = SdkPhone::connect(stock, &relay.base(), &token::user(ALICE)).await;
        phone.open("room", &json!({})).await;
        phone.open_with_presence("people", &json!({ "presence": { "key": format!("{stock:?}") } })).await;
        phone.subscribe("rows", &json!([entry("INSERT", "tasks", &json!({}))])).await;
        phones.push((stock, phone));
    }
    all_is_well(&pg, &mut phones, 0).await;
    for round in 1..=2 {
        if round == 1 {
            relay.stop().await;
        } else {
            relay.kill().await;
        }
        relay.start_again().await;
        for (_, phone) in &mut phones {
            for topic in ["room", "people", "rows"] {
                until(phone, topic, "SUBSCRIBED").await;
            }
            phone.subscribed("rows").await;
        }
        all_is_well(&pg, &mut phones, round).await;
    }
    for (_, phone) in phones {
        phone.exit().await;
    }
}
