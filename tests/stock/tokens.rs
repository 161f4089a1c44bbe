//! `setAuth` on living channels, and what happens when a token runs out.

use serde_json::{Value, json};

use super::{STOCKS, TABLES, calls_before, entry, write_notes};
use crate::support::sdk::SdkPhone;
use crate::support::stage::with_marks;
use crate::support::token::{self, ALICE, BOB};
use crate::support::{Stage, Stock};

fn notes() -> Value {
    with_marks(&json!([entry("*", "notes", &json!({}))]))
}

/// What the owner of the row with this id is told by [`write_notes`].
fn own(id: u32) -> [String; 3] {
    ["INSERT", "UPDATE", "DELETE"].map(|kind| format!("0: {kind} {id}"))
}

pub(super) async fn connected(stage: &Stage, token: &str) -> Vec<(Stock, SdkPhone)> {
    let connect = async |stock| (stock, stage.relay.sdk(stock, token).await);
    futures_util::future::join_all(STOCKS.map(connect)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_auth_with_another_users_token_brings_that_users_rows_on_every_channel() {
    let stage = Stage::with(TABLES).await;
    let mut phones = connected(&stage, &token::user(ALICE)).await;
    for (_, phone) in &mut phones {
        phone.subscribe("one", &notes()).await;
        phone.subscribe("two", &json!([entry("INSERT", "notes", &json!({}))])).await;
    }
    for (round, (subject, id)) in [(ALICE, 1), (BOB, 2), (ALICE, 1)].into_iter().enumerate() {
        if round > 0 {
            let another = token::user(subject);
            for (_, phone) in &mut phones {
                phone.set_auth(&another).await;
                for topic in ["one", "two"] {
                    phone.subscribed(topic).await;
                }
            }
        }
        write_notes(&stage).await;
        let mark = format!("round {round}");
        stage.mark(&mark).await;
        for (stock, phone) in &mut phones {
            let changes = phone.changes_before(&mark).await;
            let of = |topic: &str| {
                let changes: Vec<_> = changes.iter().filter(|change| change.topic == topic).cloned().collect();
                super::calls(&changes)
            };
            assert_eq!(of("one"), own(id), "{stock:?} {round}");
            assert_eq!(of("two"), own(id)[..1], "{stock:?} {round}");
        }
    }
    for (_, phone) in phones {
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn set_auth_with_the_same_token_disturbs_nothing() {
    let stage = Stage::with(TABLES).await;
    let token = token::user(ALICE);
    for (stock, mut phone) in connected(&stage, &token).await {
        phone.subscribe("room", &notes()).await;
        for _ in 0..3 {
            phone.set_auth(&token).await;
        }
        write_notes(&stage).await;
        let mark = format!("{stock:?}");
        stage.mark(&mark).await;
        assert_eq!(calls_before(&mut phone, &mark).await, own(1), "{stock:?}");
        assert_eq!(phone.more_statuses("room"), [], "{stock:?}");
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_token_runs_out_the_channel_closes_and_can_be_opened_with_a_fresh_one() {
    let stage = Stage::with(TABLES).await;
    let mut phones = connected(&stage, &token::user(ALICE)).await;
    for (_, phone) in &mut phones {
        phone.subscribe("room", &notes()).await;
    }
    let short = token::short(ALICE, 3);
    for (_, phone) in &mut phones {
        phone.set_auth(&short).await;
        phone.subscribed("room").await;
    }
    for (stock, phone) in &mut phones {
        let message = if *stock == Stock::Python {
            let (status, error) = phone.status("room").await;
            assert_eq!(status, "CHANNEL_ERROR", "{error}");
            error
        } else {
            phone.system("room").await["message"].to_string()
        };
        assert!(message.contains("Token has expired"), "{stock:?}: {message}");
        // By phx_close: nothing else makes the clients say so.
        assert_eq!(phone.status("room").await.0, "CLOSED", "{stock:?}");
    }
    // Nothing of this reaches a closed channel. (Once somebody has it, no later subscription begins before it.)
    let fresh = token::user(ALICE);
    let mut witness = stage.watch(&fresh, &json!([])).await;
    write_notes(&stage).await;
    stage.mark("closed").await;
    witness.changes_before("closed").await;
    for (stock, phone) in &mut phones {
        phone.set_auth(&fresh).await;
        phone.subscribe("room", &notes()).await;
        stage.mark(&format!("before {stock:?}")).await;
        assert_eq!(calls_before(phone, &format!("before {stock:?}")).await, [""; 0], "{stock:?}");
        write_notes(&stage).await;
        stage.mark(&format!("after {stock:?}")).await;
        assert_eq!(calls_before(phone, &format!("after {stock:?}")).await, own(1), "{stock:?}");
        phone.unsubscribe("room").await;
    }
    for (_, phone) in phones {
        phone.exit().await;
    }
}
