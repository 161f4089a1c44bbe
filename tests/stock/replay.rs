//! What the database broadcasts, live and replayed.

use serde_json::{Value, json};

use super::tokens::connected;
use super::{STOCKS, entry};
use crate::support::stage::with_marks;
use crate::support::token::{self, ALICE};
use crate::support::{Stage, Stock};

const ROOMS: &str = "
    create policy everybody on realtime.messages for select to authenticated using (true);
    create table public.orders (id int primary key, state text);
    grant select on public.orders to authenticated;
    alter publication supabase_realtime add table public.orders;
    create function public.order_changed() returns trigger language plpgsql security definer set search_path = '' as $$
    begin
        perform realtime.broadcast_changes('orders', tg_op, tg_op, tg_table_name, tg_table_schema, new, old);
        return null;
    end $$;
    create trigger changed after insert or update or delete on public.orders
        for each row execute function public.order_changed();";

/// The payload of a broadcast without the id that the database gave it, which must be that of `meta`.
fn without_id(mut message: Value) -> Value {
    let mut payload = message["payload"].take();
    let id = payload.as_object_mut().and_then(|object| object.remove("id")).expect("an id");
    assert_eq!(id, message["meta"]["id"], "{message}");
    payload
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_sends_reaches_the_clients_between_the_rows_of_its_transaction() {
    let stage = Stage::with(ROOMS).await;
    let mut phones = connected(&stage, &token::user(ALICE)).await;
    for (_, phone) in &mut phones {
        phone.open("orders", &json!({ "private": true })).await;
        phone.open("lobby", &json!({})).await;
        phone.subscribe("rows", &with_marks(&json!([entry("*", "orders", &json!({}))]))).await;
    }
    stage.exec("begin; insert into orders values (0, 'never'); rollback").await;
    stage.exec("insert into orders values (1, 'new')").await;
    stage.exec("update orders set state = 'paid'").await;
    stage.exec("delete from orders").await;
    stage.exec("select realtime.send('{\"n\": 1}', 'note', 'orders', true)").await;
    stage.exec("select realtime.send('{\"n\": 2}', 'note', 'orders', false)").await;
    stage.exec("select realtime.send_binary('\\x00ff', 'bytes', 'lobby', false)").await;
    stage.exec("select realtime.send('{\"n\": 3}', 'note', 'lobby', false)").await;
    stage.mark("end").await;
    let row = |state: &str| json!({ "id": 1, "state": state });
    let change = |operation: &str, record: Value, old: Value| json!({ "schema": "public", "table": "orders", "operation": operation, "record": record, "old_record": old });
    for (stock, phone) in &mut phones {
        for (operation, record, old) in [
            ("INSERT", row("new"), Value::Null),
            ("UPDATE", row("paid"), row("new")),
            ("DELETE", Value::Null, row("paid")),
        ] {
            let message = phone.broadcast().await;
            assert_eq!(message["event"], operation, "{stock:?}");
            assert_eq!(without_id(message), change(operation, record, old), "{stock:?}");
        }
        assert_eq!(without_id(phone.broadcast().await), json!({ "n": 1 }), "{stock:?}");
        if *stock == Stock::JavaScript {
            assert_eq!(phone.broadcast().await["payload"], json!({ "bytes": "00ff" }));
        }
        let last = phone.broadcast().await;
        assert!(last["meta"].get("replayed").is_none(), "{last}");
        assert_eq!(without_id(last), json!({ "n": 3 }), "{stock:?}");
        let rows = crate::support::summary(&phone.changes_before("end").await, "id");
        assert_eq!(rows, ["INSERT 1", "UPDATE 1", "DELETE 1"], "{stock:?}");
    }
    for (_, phone) in phones {
        phone.exit().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_a_replay_is_given_the_newest_messages_marked_as_such_and_then_the_live_ones() {
    let stage = Stage::with(ROOMS).await;
    for n in 1..=4 {
        stage.exec(&format!("select realtime.send('{{\"n\": {n}}}', 'note', 'room', true)")).await;
    }
    stage
        .exec("update realtime.messages set inserted_at = inserted_at - interval '1 hour' where payload->>'n' = '1'")
        .await;
    let now = rowcast::clock::Clock::system().unix_millis();
    let since = now - 600_000;
    let mut phones = Vec::new();
    for (stock, limit, expected) in
        STOCKS.into_iter().flat_map(|stock| [(stock, 2, vec![3, 4]), (stock, 25, vec![2, 3, 4])])
    {
        let mut phone = stage.relay.sdk(stock, &token::user(ALICE)).await;
        let replay = json!({ "since": since, "limit": limit });
        phone.open("room", &json!({ "private": true, "broadcast": { "replay": replay } })).await;
        for n in expected {
            let message = phone.broadcast().await;
            assert_eq!((&message["event"], &message["meta"]["replayed"]), (&json!("note"), &json!(true)), "{stock:?}");
            assert_eq!(without_id(message), json!({ "n": n }), "{stock:?}");
        }
        phones.push((stock, phone));
    }
    stage.exec("select realtime.send('{\"n\": 5}', 'note', 'room', true)").await;
    for (stock, mut phone) in phones {
        let message = phone.broadcast().await;
        assert!(message["meta"].get("replayed").is_none(), "{stock:?}: {message}");
        assert_eq!(without_id(message), json!({ "n": 5 }), "{stock:?}");
        phone.exit().await;
    }
    // JavaScript's client refuses this by itself.
    let mut phone = stage.relay.sdk(Stock::Python, &token::user(ALICE)).await;
    phone.ask_to_subscribe_with("room", &json!([]), &json!({ "broadcast": { "replay": { "since": since } } }));
    let (status, error) = phone.status("room").await;
    assert_eq!(status, "CHANNEL_ERROR");
    assert!(error.contains("Replay is not allowed for public channels"), "{error}");
}
